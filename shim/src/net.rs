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

/// Locks a network namespace: routes for the virtual pools, capture of all TCP
/// and DNS, everything else rejected.
///
/// # Errors
/// Names the step that failed; nothing may run in the namespace then.
pub(crate) fn lock(netns: &File, kind: &Kind) -> Result<()> {
    // The namespace of a thread is its own: the rest of the runtime stays.
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
                    .context("cannot enter the container's network namespace")?;
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
                route::install().context("cannot set up routes in the container's network namespace")?;
                nftables::install(kind)
                    .context("cannot lock the container's network namespace with nf_tables; is the kernel built with CONFIG_NF_TABLES_INET, CONFIG_NFT_REDIR, CONFIG_NFT_FIB_INET and CONFIG_NFT_REJECT_INET?")
            })
            .join()
            .unwrap_or_else(|_panic| Err(anyhow!("the thread that locks the namespace ended early")))
    })
}

/// What our rules in a network namespace look like to the kernel.
///
/// # Errors
/// When the namespace cannot be entered or asked.
pub(crate) fn fingerprint(netns: &File) -> Result<Vec<u8>> {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
                    .context("cannot enter the container's network namespace")?;
                nftables::fingerprint().context("cannot read the namespace's nf_tables rules")
            })
            .join()
            .unwrap_or_else(|_panic| Err(anyhow!("the thread that reads the rules ended early")))
    })
}
