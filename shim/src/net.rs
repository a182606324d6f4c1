//! The sandbox's network namespace: locked by the runtime before user code
//! runs, so that a crash of the proxy closes egress and opens nothing.

mod netlink;
mod nftables;
mod route;

use std::fs::File;
use std::os::fd::AsFd;

use anyhow::{Context as _, Result, anyhow};
pub(crate) use nftables::Kind;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A namespace that has been locked.
#[derive(Debug)]
pub(crate) struct Locked {
    /// The rules' [`fingerprint`].
    pub(crate) rules: Vec<u8>,
    /// Whether frames are stopped at the devices too.
    pub(crate) at_devices: bool,
}

/// Locks a network namespace: routes for the virtual pools, capture of all TCP
/// and DNS, everything else rejected.
///
/// # Errors
/// Names the step that failed; nothing may run in the namespace then.
pub(crate) fn lock(netns: &File, kind: &Kind) -> Result<Locked> {
    within(netns, || {
        if matches!(kind, Kind::Locked { .. }) {
            // The files are those of the namespace this thread is in.
            for name in [LOW_PORTS].into_iter().chain(MARKS) {
                set_to_zero(name)?;
            }
        }
        route::install().context("cannot set up routes in the container's network namespace")?;
        let at_devices = nftables::install(kind)
                    .context("cannot lock the container's network namespace with nf_tables; is the kernel built with CONFIG_NF_TABLES_INET, CONFIG_NFT_REDIR, CONFIG_NFT_FIB_INET and CONFIG_NFT_REJECT_INET?")?;
        let rules =
            nftables::fingerprint().context("cannot read the namespace's nf_tables rules")?;
        Ok(Locked { rules, at_devices })
    })
}

/// Opened to everybody: a mapped root binds port 80 as root would.
const LOW_PORTS: &str = "ipv4/ip_unprivileged_port_start";
/// A socket of the sandbox must not inherit the proxy's mark from a packet it receives
/// (ip-sysctl).
const MARKS: [&str; 3] = ["ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect", "ipv6/fwmark_reflect"];

fn set_to_zero(name: &str) -> Result<()> {
    let path = format!("/proc/sys/net/{name}");
    match std::fs::write(&path, "0") {
        // Kernels without IPv6 have no such file.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && name != LOW_PORTS => Ok(()),
        other => other
            .with_context(|| format!("cannot write {path} in the container's network namespace")),
    }
}

/// What our rules in a network namespace look like to the kernel.
///
/// # Errors
/// When the namespace cannot be entered or asked.
pub(crate) fn fingerprint(netns: &File) -> Result<Vec<u8>> {
    within(netns, || nftables::fingerprint().context("cannot read the namespace's nf_tables rules"))
}

/// Does something in a network namespace. That of a thread is its own: the rest of the
/// runtime stays.
fn within<T: Send>(netns: &File, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let ended = |_panic| Err(anyhow!("the thread in the container's network ended early"));
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
                .context("cannot enter the container's network namespace")?;
            work()
        });
        thread.join().unwrap_or_else(ended)
    })
}
