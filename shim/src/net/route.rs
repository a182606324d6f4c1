//! Routes of the namespace: virtual addresses are local, and a namespace
//! without a way out still leads connections into the capture rules.

use std::io;
use std::net::Ipv4Addr;

use nemoclaw_spec::control::{POOL_V4, POOL_V6};
use nix::sys::socket::SockProtocol;

use super::netlink::{ACK, Buffer, CREATE, REQUEST, exchange};

const RTM_NEWLINK: u16 = 16;
const RTM_NEWROUTE: u16 = 24;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const TABLE_MAIN: u8 = 254;
const TABLE_LOCAL: u8 = 255;
const SCOPE_LINK: u8 = 253;
const SCOPE_HOST: u8 = 254;
const TYPE_UNICAST: u8 = 1;
const TYPE_LOCAL: u8 = 2;
const PROTOCOL_STATIC: u8 = 4;
const INET: u8 = 2;
const INET6: u8 = 10;
/// The loopback interface is the first of every namespace.
const LOOPBACK: u32 = 1;
/// Worse than any route that an engine sets.
const LAST_RESORT: u32 = 4_000_000;

/// # Errors
/// When the kernel refuses a link or route; IPv6 may be off.
pub(super) fn install() -> io::Result<()> {
    loopback_up()?;
    add(&Route {
        family: INET,
        prefix: POOL_V4.1,
        table: TABLE_LOCAL,
        scope: SCOPE_HOST,
        kind: TYPE_LOCAL,
        destination: &POOL_V4.0.octets(),
        metric: None,
        source: &[],
    })?;
    add(&Route {
        family: INET,
        prefix: 0,
        table: TABLE_MAIN,
        scope: SCOPE_LINK,
        kind: TYPE_UNICAST,
        destination: &[],
        metric: Some(LAST_RESORT),
        source: &Ipv4Addr::LOCALHOST.octets(),
    })?;
    let v6 = add(&Route {
        family: INET6,
        prefix: POOL_V6.1,
        table: TABLE_LOCAL,
        scope: SCOPE_HOST,
        kind: TYPE_LOCAL,
        destination: &POOL_V6.0.octets(),
        metric: None,
        source: &[],
    });
    // Engines turn IPv6 off on loopback, and kernels may lack it; there is
    // then no IPv6 to capture, and our resolver gives no AAAA.
    match v6.map_err(|error| error.raw_os_error()) {
        Err(Some(errno))
            if ![
                nix::libc::EACCES,
                nix::libc::EOPNOTSUPP,
                nix::libc::EAFNOSUPPORT,
                nix::libc::ENODEV,
            ]
            .contains(&errno) =>
        {
            Err(io::Error::from_raw_os_error(errno))
        }
        _ => Ok(()),
    }
}

fn loopback_up() -> io::Result<()> {
    const IFF_UP: u32 = 1;
    let mut buffer = Buffer::default();
    buffer.message(RTM_NEWLINK, REQUEST | ACK, |message| {
        // struct ifinfomsg (rtnetlink(7)).
        message.raw(&[0, 0, 0, 0]);
        message.raw(&LOOPBACK.to_ne_bytes());
        message.raw(&IFF_UP.to_ne_bytes());
        message.raw(&IFF_UP.to_ne_bytes());
    });
    exchange(SockProtocol::NetlinkRoute, &buffer)
}

struct Route<'a> {
    family: u8,
    prefix: u8,
    table: u8,
    scope: u8,
    kind: u8,
    destination: &'a [u8],
    metric: Option<u32>,
    source: &'a [u8],
}

fn add(route: &Route<'_>) -> io::Result<()> {
    let mut buffer = Buffer::default();
    buffer.message(RTM_NEWROUTE, REQUEST | ACK | CREATE, |message| {
        // struct rtmsg (rtnetlink(7)).
        message.raw(&[
            route.family,
            route.prefix,
            0,
            0,
            route.table,
            PROTOCOL_STATIC,
            route.scope,
            route.kind,
        ]);
        message.raw(&[0; 4]);
        if !route.destination.is_empty() {
            message.attribute(RTA_DST, route.destination);
        }
        message.attribute(RTA_OIF, &LOOPBACK.to_ne_bytes());
        if let Some(metric) = route.metric {
            message.attribute(RTA_PRIORITY, &metric.to_ne_bytes());
        }
        if !route.source.is_empty() {
            message.attribute(RTA_PREFSRC, route.source);
        }
    });
    match exchange(SockProtocol::NetlinkRoute, &buffer) {
        // A namespace that an engine made and we locked before.
        Err(error) if error.raw_os_error() == Some(nix::libc::EEXIST) => Ok(()),
        other => other,
    }
}
