//! The decision: may this program reach that host and port?
//!
//! `Engine::decide` is the only function that can make a [`Permit`], and the
//! relay takes nothing else. It is pure: the same policy, intent and caller
//! always get the same answer, whichever tool asks.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::address::{self, AddressClass};
use crate::name::{Host, HostPattern};
use crate::policy::{Binaries, Endpoint, Policy, Rule};

/// What a connection is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    /// Where to.
    pub destination: Destination,
    /// The port, 1 to 65535.
    pub port: u16,
}

/// Where a connection is meant to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// A host the sandbox asked our resolver for.
    Host(Host),
    /// A literal address, and the names that the engine's hosts file gives it
    /// (empty for most).
    Address {
        /// The address as the client dialled it.
        address: IpAddr,
        /// Names the engine wrote for that address.
        names: Vec<Host>,
    },
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(host) => host.fmt(f),
            Self::Address { address, .. } => address.fmt(f),
        }
    }
}

/// The process that made a connection.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Caller {
    /// Every holder of the socket. All of them must be allowed; none means the
    /// caller is unknown and is refused.
    pub holders: Vec<Process>,
}

/// One process as the kernel names it.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Process {
    /// Its executable, as the target of `/proc/PID/exe`.
    pub binary: String,
    /// Executables of its ancestors up to the container's init, nearest first.
    pub ancestors: Vec<String>,
}

/// Leave to reach one destination, given by one rule.
///
/// INVARIANT: only [`Engine::decide`] makes one.
#[must_use]
#[derive(Debug)]
pub struct Permit {
    destination: Destination,
    port: u16,
    rule: RuleRef,
    addresses: AddressRule,
}

#[derive(Debug, Clone)]
struct AddressRule {
    allowed: Vec<IpNet>,
    private: bool,
}

impl Permit {
    /// Where the connection may go.
    pub fn destination(&self) -> &Destination {
        &self.destination
    }

    /// The port it may use.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The rule that allowed it.
    pub fn rule(&self) -> &RuleRef {
        &self.rule
    }

    /// Whether a resolved address may be dialled under this permit.
    ///
    /// # Errors
    /// The reason why not.
    pub fn check_address(&self, candidate: IpAddr) -> Result<(), Reason> {
        let real = address::unwrap(candidate);
        // An address in another's dress would pass as the one it wraps and
        // reach whatever translates it.
        if real != address::unwrap_mapped(candidate) {
            return Err(Reason::AddressNever);
        }
        match address::classify(real) {
            AddressClass::Never => Err(Reason::AddressNever),
            _ if !self.addresses.allowed.is_empty() => {
                if self.addresses.allowed.iter().any(|range| range.contains(&real)) {
                    Ok(())
                } else {
                    Err(Reason::AddressNotListed)
                }
            }
            AddressClass::Private if self.addresses.private => Ok(()),
            AddressClass::Private => Err(Reason::AddressPrivate),
            AddressClass::Global => Ok(()),
        }
    }
}

/// Names the rule behind a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleRef {
    /// The rule's key in its file.
    pub key: Arc<str>,
    /// The file.
    pub origin: Arc<str>,
    /// The line of the endpoint.
    pub line: u64,
}

impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}:{})", self.key, self.origin, self.line)
    }
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// Why.
    pub reason: Reason,
    /// The nearest rule: it names the host and port, but not the program.
    pub nearest: Option<RuleRef>,
}

/// Why a connection is refused. Codes are stable: audit readers key on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The address may never be reached.
    AddressNever,
    /// The address is outside the rule's `allowed_ips`.
    AddressNotListed,
    /// The address is private and the rule does not say `private: true`.
    AddressPrivate,
    /// A rule covers host and port, but not this program.
    BinaryNotAllowed,
    /// The socket's owner could not be found, or changed while we looked.
    CallerUnknown,
    /// Something of ours failed.
    Internal,
    /// The protocol or destination makes no sense here.
    Malformed,
    /// No rule covers host and port.
    NoEndpoint,
    /// The name does not resolve.
    NoSuchHost,
    /// The upstream server could not be reached.
    UpstreamUnreachable,
}

impl Reason {
    /// The stable code of audit records and answers.
    pub fn code(self) -> &'static str {
        match self {
            Self::AddressNever => "address_never",
            Self::AddressNotListed => "address_not_listed",
            Self::AddressPrivate => "address_private",
            Self::BinaryNotAllowed => "binary_not_allowed",
            Self::CallerUnknown => "caller_unknown",
            Self::Internal => "internal",
            Self::Malformed => "malformed",
            Self::NoEndpoint => "no_endpoint",
            Self::NoSuchHost => "no_such_host",
            Self::UpstreamUnreachable => "upstream_unreachable",
        }
    }

    /// One sentence for people.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::AddressNever => {
                "the address is loopback, link-local, multicast or a metadata service, which no rule can open"
            }
            Self::AddressNotListed => "the name resolves outside the rule's allowed_ips",
            Self::AddressPrivate => {
                "the name resolves to a private address, and the rule does not say `private: true` or name it in allowed_ips"
            }
            Self::BinaryNotAllowed => "a rule names this host and port, but not this program",
            Self::CallerUnknown => "the program behind the connection could not be determined",
            Self::Internal => "an internal error; refused to be safe",
            Self::Malformed => "the request makes no sense to the proxy",
            Self::NoEndpoint => "no rule names this host and port",
            Self::NoSuchHost => "the name does not exist",
            Self::UpstreamUnreachable => "the server could not be reached",
        }
    }
}

/// What [`Engine::decide`] answers.
#[derive(Debug)]
pub enum Decision {
    /// Go ahead under this permit.
    Allow(Permit),
    /// Refuse.
    Deny(Denial),
}

impl Decision {
    /// What `--policy observe` decides: everything may go, but for addresses
    /// that may never be reached.
    pub fn observed(intent: &Intent) -> Self {
        if let Destination::Address { address, .. } = &intent.destination
            && address::classify(*address) == AddressClass::Never
        {
            return deny(Reason::AddressNever, None);
        }
        Self::Allow(Permit {
            destination: intent.destination.clone(),
            port: intent.port,
            rule: RuleRef {
                key: Arc::from("observe"),
                origin: Arc::from("--policy observe, bypassable"),
                line: 0,
            },
            addresses: AddressRule { allowed: Vec::new(), private: true },
        })
    }
}

/// A policy prepared for fast decisions.
#[derive(Debug)]
pub struct Engine {
    policy: Policy,
    names: HashMap<Host, Vec<Site>>,
    addresses: HashMap<IpAddr, Vec<Site>>,
    globs: Vec<Site>,
    aliases: HashMap<String, String>,
}

/// Index of an endpoint: rule, then endpoint within it.
#[derive(Debug, Clone, Copy)]
struct Site {
    rule: usize,
    endpoint: usize,
}

impl Engine {
    /// Prepares `policy`. `aliases` maps a path a policy names to the path the
    /// kernel reports for it, where the image has a symbolic link in between
    /// (`/usr/bin/python3` to `/usr/bin/python3.11`).
    pub fn new(policy: Policy, aliases: HashMap<String, String>) -> Self {
        let mut names: HashMap<Host, Vec<Site>> = HashMap::new();
        let mut addresses: HashMap<IpAddr, Vec<Site>> = HashMap::new();
        let mut globs = Vec::new();
        for (r, rule) in policy.rules.iter().enumerate() {
            for (e, endpoint) in rule.endpoints.iter().enumerate() {
                let site = Site { rule: r, endpoint: e };
                match &endpoint.host {
                    HostPattern::Exact(host) => names.entry(host.clone()).or_default().push(site),
                    HostPattern::Address(ip) => {
                        addresses.entry(address::unwrap(*ip)).or_default().push(site);
                    }
                    HostPattern::Glob(_) => globs.push(site),
                }
            }
        }
        Self { policy, names, addresses, globs, aliases }
    }

    /// The policy behind this engine.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Decides one connection.
    pub fn decide(&self, intent: &Intent, caller: &Caller) -> Decision {
        if let Destination::Address { address, names } = &intent.destination
            && names.is_empty()
            && address::classify(*address) == AddressClass::Never
        {
            return deny(Reason::AddressNever, None);
        }
        let mut covering: Vec<(&Rule, &Endpoint)> = self
            .sites(&intent.destination)
            .filter_map(|site| {
                let rule = self.policy.rules.get(site.rule)?;
                Some((rule, rule.endpoints.get(site.endpoint)?))
            })
            .filter(|(_, endpoint)| endpoint.ports.binary_search(&intent.port).is_ok())
            .collect();
        // The answer must not depend on the order of rules in the file.
        covering.sort_by(|(a, x), (b, y)| a.key.cmp(&b.key).then(x.line.cmp(&y.line)));
        let Some((first, first_endpoint)) = covering.first() else {
            return deny(Reason::NoEndpoint, None);
        };
        let nearest = Some(self.reference(first, first_endpoint));
        if caller.holders.is_empty() {
            return deny(Reason::CallerUnknown, nearest);
        }
        let allowing: Vec<&(&Rule, &Endpoint)> =
            covering.iter().filter(|(rule, _)| self.covers_caller(rule, caller)).collect();
        let Some((rule, endpoint)) = allowing.first() else {
            return deny(Reason::BinaryNotAllowed, nearest);
        };
        let addresses = self.address_rule(&allowing, &intent.destination);
        Decision::Allow(Permit {
            destination: intent.destination.clone(),
            port: intent.port,
            rule: self.reference(rule, endpoint),
            addresses,
        })
    }

    /// True when some rule could allow this host: such a host keeps its
    /// virtual address for the life of the sandbox.
    pub fn knows_host(&self, host: &Host) -> bool {
        self.host_sites(host).next().is_some()
    }

    fn sites<'a>(&'a self, destination: &'a Destination) -> Box<dyn Iterator<Item = Site> + 'a> {
        match destination {
            Destination::Host(host) => Box::new(self.host_sites(host)),
            Destination::Address { address, names } => Box::new(
                self.addresses
                    .get(&address::unwrap(*address))
                    .into_iter()
                    .flatten()
                    .copied()
                    .chain(names.iter().flat_map(|name| self.host_sites(name))),
            ),
        }
    }

    fn host_sites<'a>(&'a self, host: &'a Host) -> impl Iterator<Item = Site> + 'a {
        let globs = self.globs.iter().copied().filter(move |site| {
            self.policy
                .rules
                .get(site.rule)
                .and_then(|rule| rule.endpoints.get(site.endpoint))
                .is_some_and(|endpoint| endpoint.host.matches(host))
        });
        self.names.get(host).into_iter().flatten().copied().chain(globs)
    }

    fn covers_caller(&self, rule: &Rule, caller: &Caller) -> bool {
        match &rule.binaries {
            Binaries::Any => true,
            Binaries::Listed(patterns) => caller.holders.iter().all(|holder| {
                std::iter::once(&holder.binary).chain(&holder.ancestors).any(|path| {
                    patterns.iter().any(|pattern| {
                        pattern.matches(path)
                            || self.aliases.get(pattern.as_str()).is_some_and(|real| real == path)
                    })
                })
            }),
        }
    }

    /// Several rules may allow one connection; what any of them opens is open.
    fn address_rule(
        &self,
        allowing: &[&(&Rule, &Endpoint)],
        destination: &Destination,
    ) -> AddressRule {
        // A literal address in a policy is its own permission to be private,
        // and so is a single-label service name in a file of ours.
        let named = match destination {
            Destination::Address { .. } => true,
            Destination::Host(host) => self.policy.ours && host.is_single_label(),
        };
        // A pure OpenShell file has no private-range rule of its own kind.
        let private = named || allowing.iter().any(|(_, endpoint)| endpoint.private);
        let unrestricted = allowing.iter().any(|(_, endpoint)| endpoint.allowed_ips.is_empty());
        let allowed = if unrestricted && private {
            Vec::new()
        } else {
            allowing.iter().flat_map(|(_, endpoint)| endpoint.allowed_ips.clone()).collect()
        };
        AddressRule { allowed, private }
    }

    fn reference(&self, rule: &Rule, endpoint: &Endpoint) -> RuleRef {
        RuleRef {
            key: Arc::clone(&rule.key),
            origin: Arc::clone(&self.policy.origin),
            line: endpoint.line,
        }
    }
}

fn deny(reason: Reason, nearest: Option<RuleRef>) -> Decision {
    Decision::Deny(Denial { reason, nearest })
}

/// The YAML an operator could add to allow what was refused; `None` where no
/// rule would help.
pub fn remedy(intent: &Intent, caller: &Caller, reason: Reason) -> Option<String> {
    // What no rule can open, or no rule closed, needs no rule.
    if matches!(
        reason,
        Reason::AddressNever
            | Reason::Internal
            | Reason::Malformed
            | Reason::NoSuchHost
            | Reason::UpstreamUnreachable
    ) {
        return None;
    }
    let private = if reason == Reason::AddressPrivate { ", private: true" } else { "" };
    let binary = caller.holders.first().map_or("", |holder| holder.binary.as_str());
    let host = match &intent.destination {
        Destination::Host(host) => host.to_string(),
        Destination::Address { address, names } => {
            names.first().map_or_else(|| address.to_string(), ToString::to_string)
        }
    };
    // JSON strings are YAML strings: hostile paths cannot break out of them.
    let quote = |text: &str| serde_json::Value::from(text).to_string();
    let binaries =
        if binary.is_empty() { "any".to_owned() } else { format!("[{{path: {}}}]", quote(binary)) };
    Some(format!(
        "{}: {{endpoints: [{{host: {}, port: {}{private}}}], binaries: {binaries}}}",
        quote(&format!("allow-{host}")),
        quote(&host),
        intent.port,
    ))
}

#[cfg(test)]
mod tests;
