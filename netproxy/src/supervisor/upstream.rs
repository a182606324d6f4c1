//! Sockets for permits: in the sandbox's namespace, so that the engine's
//! network applies, and marked, so that the rules let them out. The supervisor
//! refuses never-addresses by itself, whatever the worker says.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use ipnet_contains::pool_contains;
use nemoclaw_spec::address::{AddressClass, classify, unwrap_mapped};
use nemoclaw_spec::control::{PACKET_MARK, SandboxConfig};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr as NetlinkAddr};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, ipproto, socket_with};

/// Makes sockets in the namespace that it was made in.
pub(super) struct Upstream {
    /// Tells when an address comes or goes (rtnetlink(7)).
    changes: Option<Socket>,
    /// The namespace's addresses; none where they could not be read.
    own: Option<HashSet<IpAddr>>,
}

/// Groups of messages: `RTMGRP_IPV4_IFADDR` and `RTMGRP_IPV6_IFADDR`.
const ADDRESSES: u32 = 0x10 | 0x100;

impl Upstream {
    pub(super) fn new() -> Self {
        let subscribed = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind(&NetlinkAddr::new(0, ADDRESSES))?;
            socket.set_non_blocking(true)?;
            Ok::<_, io::Error>(socket)
        };
        // Without it the addresses are read anew each time.
        let changes = subscribed().ok();
        Self { changes, own: own_addresses() }
    }

    /// A TCP socket that has begun to connect.
    pub(super) fn tcp(
        &mut self,
        address: SocketAddr,
        config: &SandboxConfig,
    ) -> io::Result<OwnedFd> {
        let address = plain(address);
        let resolver = config.place.names.resolvers.contains(&address);
        if !resolver && (!reachable(address.ip()) || self.is_own(address.ip())) {
            return Err(io::Error::from_raw_os_error(nix::libc::EACCES));
        }
        open(address, SocketType::STREAM)
    }

    /// An address of the sandbox itself: its own listeners are no upstream.
    fn is_own(&mut self, address: IpAddr) -> bool {
        // A message, or too many of them: something may have changed.
        let mut message = Vec::with_capacity(4096);
        let stale = self.changes.as_mut().is_none_or(|changes| {
            let mut stale = false;
            loop {
                message.clear();
                match changes.recv(&mut message, 0) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return stale,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    _ => stale = true,
                }
            }
        });
        if stale || self.own.is_none() {
            self.own = own_addresses();
        }
        // What cannot be told apart is taken for our own, and not dialled.
        self.own.as_ref().is_none_or(|own| own.contains(&address))
    }
}

/// A UDP socket to one of the sandbox's resolvers.
pub(super) fn udp(address: SocketAddr, config: &SandboxConfig) -> io::Result<OwnedFd> {
    let address = plain(address);
    if !config.place.names.resolvers.contains(&address) {
        return Err(io::Error::from_raw_os_error(nix::libc::EACCES));
    }
    open(address, SocketType::DGRAM)
}

/// IPv4 in the dress of IPv6 is what the kernel makes of it.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(unwrap_mapped(address.ip()), address.port())
}

fn own_addresses() -> Option<HashSet<IpAddr>> {
    let interfaces = nix::ifaddrs::getifaddrs().ok()?.filter_map(|interface| interface.address);
    let ip = |own: nix::sys::socket::SockaddrStorage| {
        let v4 = own.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| own.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    };
    Some(interfaces.filter_map(ip).collect())
}

fn reachable(address: IpAddr) -> bool {
    classify(address) != AddressClass::Never && !pool_contains(address)
}

fn open(address: SocketAddr, kind: SocketType) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let protocol = if kind == SocketType::STREAM { ipproto::TCP } else { ipproto::UDP };
    let socket =
        socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, Some(protocol))?;
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Mark, &PACKET_MARK)?;
    if kind == SocketType::STREAM {
        rustix::net::sockopt::set_tcp_nodelay(&socket, true)?;
        rustix::net::sockopt::set_socket_keepalive(&socket, true)?;
    }
    match connect(&socket, &address) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}

mod ipnet_contains {
    use std::net::IpAddr;

    use nemoclaw_spec::control::{POOL_V4, POOL_V6};

    /// True for virtual addresses, which exist in the sandbox only.
    pub(super) fn pool_contains(address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => {
                let shift = 32 - u32::from(POOL_V4.1);
                u32::from(v4) >> shift == u32::from(POOL_V4.0) >> shift
            }
            IpAddr::V6(v6) => {
                let shift = 128 - u32::from(POOL_V6.1);
                u128::from(v6) >> shift == u128::from(POOL_V6.0) >> shift
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_addresses_and_virtual_ones_are_not_reachable() {
        for text in
            ["127.0.0.1", "169.254.169.254", "::ffff:127.0.0.1", "11.22.3.4", "fd6e:656d:6f00::5"]
        {
            assert!(!reachable(text.parse().unwrap()), "{text}");
        }
        for text in ["10.0.0.1", "93.184.216.34", "2606:4700::1"] {
            assert!(reachable(text.parse().unwrap()), "{text}");
        }
    }
}
