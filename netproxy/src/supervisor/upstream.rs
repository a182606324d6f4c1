//! Sockets for permits: in the sandbox's namespace, so that the engine's
//! network applies, and marked, so that the rules let them out. The supervisor
//! refuses never-addresses by itself, whatever the worker says.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use ipnet_contains::pool_contains;
use nemoclaw_spec::address::{AddressClass, classify};
use nemoclaw_spec::control::{PACKET_MARK, SandboxConfig};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, ipproto, socket_with};

/// A TCP socket that has begun to connect.
pub(super) fn tcp(address: SocketAddr, config: &SandboxConfig) -> io::Result<OwnedFd> {
    let resolver = config.resolvers.contains(&address);
    if !resolver && (!reachable(address.ip()) || is_own(address.ip())) {
        return Err(io::Error::from_raw_os_error(nix::libc::EACCES));
    }
    open(address, SocketType::STREAM)
}

/// A UDP socket to one of the sandbox's resolvers.
pub(super) fn udp(address: SocketAddr, config: &SandboxConfig) -> io::Result<OwnedFd> {
    if !config.resolvers.contains(&address) {
        return Err(io::Error::from_raw_os_error(nix::libc::EACCES));
    }
    open(address, SocketType::DGRAM)
}

/// An address of the sandbox itself: its own listeners are no upstream.
fn is_own(address: IpAddr) -> bool {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return true };
    interfaces.filter_map(|interface| interface.address).any(|own| {
        own.as_sockaddr_in().is_some_and(|v4| IpAddr::V4(v4.ip()) == address)
            || own.as_sockaddr_in6().is_some_and(|v6| IpAddr::V6(v6.ip()) == address)
    })
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
