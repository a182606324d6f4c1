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

/// Prepares a network namespace for its proxy: loopback, routes for the virtual
/// pools, and what the kernel must not do by itself.
///
/// # Errors
/// Names the step that failed; nothing may run in the namespace then.
pub(crate) fn prepare(netns: &File, kind: &Kind) -> Result<()> {
    inside(netns, || {
        if matches!(kind, Kind::Locked { .. }) {
            // A mapped root binds port 80 as root would. The file is
            // that of the namespace this thread is in.
            std::fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")
                .context("cannot open the low ports of the container's network namespace")?;
            // A socket of the sandbox must not inherit the proxy's mark
            // from a packet it receives (ip-sysctl).
            for name in ["ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect", "ipv6/fwmark_reflect"] {
                let path = format!("/proc/sys/net/{name}");
                match std::fs::write(&path, "0") {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(error).context(format!("cannot write {path}"));
                    }
                    _ => {}
                }
            }
        }
        route::install().context("cannot set up routes in the container's network namespace")
    })
}

/// Locks a network namespace: capture of all TCP and DNS, everything else rejected.
/// Returns what [`fingerprint`] finds then.
///
/// # Errors
/// Names the step that failed; nothing may run in the namespace then.
pub(crate) fn lock(netns: &File, kind: &Kind) -> Result<Vec<u8>> {
    inside(netns, || {
        nftables::install(kind)
            .context("cannot lock the container's network namespace with nf_tables; is the kernel built with CONFIG_NF_TABLES_INET, CONFIG_NFT_REDIR, CONFIG_NFT_FIB_INET and CONFIG_NFT_REJECT_INET?")?;
        nftables::fingerprint().context("cannot read the namespace's nf_tables rules")
    })
}

/// What our rules in a network namespace look like to the kernel.
///
/// # Errors
/// When the namespace cannot be entered or asked.
pub(crate) fn fingerprint(netns: &File) -> Result<Vec<u8>> {
    inside(netns, || nftables::fingerprint().context("cannot read the namespace's nf_tables rules"))
}

/// Does something in a network namespace, from a thread of its own: the namespace of
/// a thread is its own, and the rest of the runtime stays.
fn inside<T: Send>(netns: &File, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
                    .context("cannot enter the container's network namespace")?;
                work()
            })
            .join()
            .unwrap_or_else(|_panic| Err(anyhow!("the thread in the namespace ended early")))
    })
}
