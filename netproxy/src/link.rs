//! What worker and supervisor say to each other: short requests, and answers that
//! start with the request's number.
//!
//! A worker that an attacker has taken over speaks this too: the supervisor
//! believes nothing in it and refuses never-addresses by itself.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use nemoclaw_spec::decide::Caller;

/// Size of most requests, in bytes.
const SHORT_BYTES: usize = 48;
/// Size of an address in one, in bytes.
const ADDRESS_BYTES: usize = 19;
/// Largest request, in bytes: with the longest name.
pub(crate) const REQUEST_BYTES: usize = SHORT_BYTES + ADDRESS_BYTES + 255;
/// What each answer begins with: number and errno.
const HEAD_BYTES: usize = 8;
/// Largest answer, in bytes.
pub(crate) const ANSWER_BYTES: usize = 64 * 1024;

/// What the worker asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ask {
    /// Who owns the socket with this source and destination?
    Identify { source: SocketAddr, destination: SocketAddr },
    /// The same, and at once a TCP socket on its way to `target`, if policy lets that
    /// caller reach `host`, or the destination where there is none, there.
    Open { source: SocketAddr, destination: SocketAddr, target: SocketAddr, host: Option<String> },
    /// A TCP socket on its way to this address.
    Tcp(SocketAddr),
    /// A UDP socket connected to this resolver.
    Udp(SocketAddr),
}

/// A request with the number its answer will carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) number: u32,
    pub(crate) ask: Ask,
}

impl Request {
    /// The wire form.
    pub(crate) fn encode(self) -> Vec<u8> {
        let (kind, first, second, more) = match self.ask {
            Ask::Identify { source, destination } => (1_u8, source, Some(destination), None),
            Ask::Tcp(address) => (2, address, None, None),
            Ask::Udp(address) => (3, address, None, None),
            Ask::Open { source, destination, target, host } => {
                (4, source, Some(destination), Some((target, host)))
            }
        };
        let mut bytes = Vec::with_capacity(REQUEST_BYTES);
        bytes.extend([kind, 0, 0, 0]);
        bytes.extend(self.number.to_ne_bytes());
        for address in [Some(first), second] {
            encode_address(&mut bytes, address);
        }
        bytes.resize(SHORT_BYTES, 0);
        if let Some((target, host)) = more {
            encode_address(&mut bytes, Some(target));
            bytes.extend(host.unwrap_or_default().into_bytes());
        }
        bytes
    }

    /// Reads the wire form; `None` for anything else.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (short, more) = bytes.split_at_checked(SHORT_BYTES)?;
        let longer = short.first() == Some(&4);
        if longer == more.is_empty() || bytes.len() > REQUEST_BYTES {
            return None;
        }
        let number = u32::from_ne_bytes(bytes.get(4..8)?.try_into().ok()?);
        let first = decode_address(bytes.get(8..27)?)?;
        let ask = match bytes.first()? {
            1 => Ask::Identify { source: first, destination: decode_address(bytes.get(27..46)?)? },
            2 => Ask::Tcp(first),
            3 => Ask::Udp(first),
            4 => {
                let (target, host) = more.split_at_checked(ADDRESS_BYTES)?;
                let host = std::str::from_utf8(host).ok()?;
                Ask::Open {
                    source: first,
                    destination: decode_address(bytes.get(27..46)?)?,
                    target: decode_address(target)?,
                    host: (!host.is_empty()).then(|| host.to_owned()),
                }
            }
            _ => return None,
        };
        Some(Self { number, ask })
    }
}

/// Family, address, port: 19 bytes.
fn encode_address(bytes: &mut Vec<u8>, address: Option<SocketAddr>) {
    let (family, ip, port) = match address {
        None => (0_u8, Ipv6Addr::UNSPECIFIED, 0),
        Some(SocketAddr::V4(v4)) => (4, v4.ip().to_ipv6_mapped(), v4.port()),
        Some(SocketAddr::V6(v6)) => (6, *v6.ip(), v6.port()),
    };
    bytes.push(family);
    bytes.extend(ip.octets());
    bytes.extend(port.to_ne_bytes());
}

fn decode_address(bytes: &[u8]) -> Option<SocketAddr> {
    let octets: [u8; 16] = bytes.get(1..17)?.try_into().ok()?;
    let port = u16::from_ne_bytes(bytes.get(17..19)?.try_into().ok()?);
    let v6 = Ipv6Addr::from(octets);
    let ip = match bytes.first()? {
        4 => IpAddr::V4(v6.to_ipv4_mapped()?),
        6 => IpAddr::V6(v6),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// The head of an answer: number, then 0 or an errno. What was asked for
/// follows, or comes along as a descriptor.
pub(crate) fn encode_answer(number: u32, errno: i32, rest: &[u8]) -> Vec<u8> {
    let mut bytes = number.to_ne_bytes().to_vec();
    bytes.extend(errno.to_ne_bytes());
    bytes.extend(rest);
    bytes
}

/// What is told of a caller; nothing, which means nobody, where that is too long.
pub(crate) fn encode_caller(caller: &Caller) -> Vec<u8> {
    let text = serde_json::to_vec(caller).unwrap_or_default();
    if text.len() + HEAD_BYTES > ANSWER_BYTES { Vec::new() } else { text }
}

/// Number, errno and rest of an answer.
pub(crate) fn decode_answer(bytes: &[u8]) -> Option<(u32, i32, &[u8])> {
    let number = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?);
    let errno = i32::from_ne_bytes(bytes.get(4..8)?.try_into().ok()?);
    Some((number, errno, bytes.get(8..)?))
}

#[cfg(test)]
mod tests {
    use nemoclaw_spec::decide::Process;

    use super::*;

    #[test]
    fn requests_survive_the_wire() {
        let v4: SocketAddr = "10.1.2.3:443".parse().unwrap();
        let v6: SocketAddr = "[2001:db8::1]:53".parse().unwrap();
        for ask in [
            Ask::Identify { source: v4, destination: v6 },
            Ask::Identify { source: v6, destination: v4 },
            Ask::Tcp(v6),
            Ask::Udp(v4),
            Ask::Open { source: v4, destination: v6, target: v4, host: None },
            Ask::Open { source: v4, destination: v6, target: v6, host: Some("x".repeat(255)) },
        ] {
            let request = Request { number: 7, ask };
            let bytes = request.clone().encode();
            assert!(bytes.len() <= REQUEST_BYTES);
            assert_eq!(Request::decode(&bytes), Some(request));
        }
    }

    #[test]
    fn anything_else_is_no_request() {
        assert_eq!(Request::decode(&[]), None);
        for kind in 0..=5 {
            for length in [SHORT_BYTES - 1, SHORT_BYTES, SHORT_BYTES + 1, 86, REQUEST_BYTES + 1] {
                assert_eq!(Request::decode(&vec![kind; length]), None);
            }
        }
        let address: SocketAddr = "10.1.2.3:443".parse().unwrap();
        let mut longer = Request { number: 1, ask: Ask::Tcp(address) }.encode();
        longer.push(0);
        assert_eq!(Request::decode(&longer), None);
    }

    #[test]
    fn a_caller_that_fits_no_answer_is_nobody() {
        let of = |holders| {
            let deep = Process { ancestors: vec!["/a".repeat(4096)], ..Process::default() };
            encode_caller(&Caller { holders: vec![deep; holders] })
        };
        assert!(!of(7).is_empty());
        assert!(of(8).is_empty());
    }

    #[test]
    fn answers_survive_the_wire() {
        let bytes = encode_answer(9, 111, b"x");
        assert_eq!(decode_answer(&bytes), Some((9, 111, &b"x"[..])));
        assert_eq!(decode_answer(&bytes[..7]), None);
    }
}
