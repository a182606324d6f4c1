//! The operator's own HTTP proxy, through which permitted connections leave
//! (`nemoclaw.upstream_proxy`).

use std::net::IpAddr;
use std::str::FromStr as _;

use ipnet::IpNet;
use serde_json::Value as Json;

use super::diagnostic::Findings;
use super::options::shown;
use super::tree::Node;
use crate::address::{self, AddressClass};
use crate::decide::Destination;
use crate::name::Host;

/// Where it is, and what does not go through it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamProxy {
    /// Its host or address.
    pub host: Destination,
    /// Its port.
    pub port: u16,
    /// Names that go out directly, with everything below them.
    names: Vec<Host>,
    /// Addresses that do.
    ranges: Vec<IpNet>,
}

impl UpstreamProxy {
    pub(super) fn of(section: Option<&Json>) -> Option<Self> {
        let section = section?;
        let (host, port) = place(section.get("url")?.as_str()?)?;
        let (mut names, mut ranges) = (Vec::new(), Vec::new());
        for entry in section.get("no_proxy").and_then(Json::as_array).into_iter().flatten() {
            let text = entry.as_str().unwrap_or_default();
            match range(text) {
                Some(range) => ranges.push(range),
                None => names.extend(Host::parse(text.trim_start_matches('.'))),
            }
        }
        Some(Self { host, port, names, ranges })
    }

    /// Whether a connection goes through it. Services of the engine's network and
    /// private addresses never do.
    pub fn serves(&self, destination: &Destination) -> bool {
        match destination {
            Destination::Host(host) => {
                !host.is_single_label() && !self.names.iter().any(|name| below(host, name))
            }
            Destination::Address { address, names } => {
                let real = address::unwrap(*address);
                names.is_empty()
                    && address::classify(real) == AddressClass::Global
                    && !self.ranges.iter().any(|range| range.contains(&real))
            }
        }
    }
}

fn below(host: &Host, name: &Host) -> bool {
    let rest = host.as_str().strip_suffix(name.as_str());
    rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn range(text: &str) -> Option<IpNet> {
    IpNet::from_str(text).ok().or_else(|| IpAddr::from_str(text).ok().map(IpNet::from))
}

/// `http://host:port`, with nothing else in it.
fn place(url: &str) -> Option<(Destination, u16)> {
    let rest = url.strip_prefix("http://")?;
    let (host, port) = rest.strip_suffix('/').unwrap_or(rest).rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port > 0)?;
    let bare = host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(host);
    let host = match IpAddr::from_str(bare) {
        Ok(address) => Destination::Address { address, names: Vec::new() },
        Err(_) => Destination::Host(Host::parse(host).ok()?),
    };
    Some((host, port))
}

pub(super) fn examine(section: &Node, findings: &mut Findings<'_>) {
    if let Some(url) = section.get("url") {
        let text = url.text().unwrap_or_default();
        if place(text).is_none() {
            findings.error(
                url.at,
                format!("`{}` is no HTTP proxy", shown(text)),
                "write http://proxy.example.com:3128, without a path, a user or TLS",
            );
        }
    }
    for entry in section.get("no_proxy").map(Node::items).unwrap_or_default() {
        let text = entry.text().unwrap_or_default();
        if range(text).is_none() && Host::parse(text.trim_start_matches('.')).is_err() {
            findings.error(
                entry.at,
                format!("`{}` is no host, address or range", shown(text)),
                "write a domain (what is below it counts too), or a range such as 10.0.0.0/8",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_through_it_and_what_does_not() {
        let section = serde_json::json!({
            "url": "http://proxy.example.com:3128",
            "no_proxy": [".corp.example", "direct.example.com", "198.51.100.0/24"],
        });
        let proxy = UpstreamProxy::of(Some(&section)).unwrap();
        assert_eq!((proxy.host.to_string().as_str(), proxy.port), ("proxy.example.com", 3128));
        let serves = |text: &str| {
            proxy.serves(&match text.parse::<IpAddr>() {
                Ok(address) => Destination::Address { address, names: Vec::new() },
                Err(_) => Destination::Host(Host::parse(text).unwrap()),
            })
        };
        for through in ["api.example.com", "xcorp.example", "93.184.216.34", "corp.example.com"] {
            assert!(serves(through), "{through}");
        }
        for direct in [
            "corp.example",
            "a.b.corp.example",
            "direct.example.com",
            "web",
            "198.51.100.7",
            "10.0.0.1",
            "::ffff:10.0.0.1",
            "127.0.0.1",
        ] {
            assert!(!serves(direct), "{direct}");
        }
    }

    #[test]
    fn it_is_written_plainly() {
        assert!(
            place("http://[2001:db8::1]:80/").is_some() && place("http://192.0.2.1:1").is_some()
        );
        for odd in [
            "proxy:3128",
            "https://p.example:1",
            "http://p.example",
            "http://u:p@p.example:1",
            "http://p.example:1/x",
            "http://p.example:0",
            "http://p.example:x",
            "http://:1",
        ] {
            assert_eq!(place(odd), None, "{odd}");
        }
    }
}
