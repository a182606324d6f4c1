//! The decision: may this program reach that host and port, and may it make
//! that request there?
//!
//! `Engine::decide` is the only function that can make a [`Permit`], and the
//! relay takes nothing else. It is pure: the same policy, intent and caller
//! always get the same answer, whichever tool asks.

pub mod diff;
pub mod explain;
mod index;
mod naming;
mod request;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::address::{self, AddressClass};
use crate::http::Request;
use crate::name::Host;
use crate::policy::{Policy, Protocol};
use index::{Bundle, Group, Index, Site};
pub use naming::Naming;

/// What a connection, or one request on it, is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    /// Where to.
    pub destination: Destination,
    /// The port, 1 to 65535.
    pub port: u16,
    /// The request, once the connection is read; `None` before.
    pub request: Option<Request>,
}

impl Intent {
    /// An intent about a connection as such.
    pub fn connect(destination: Destination, port: u16) -> Self {
        Self { destination, port, request: None }
    }
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
    /// How many of the nearest ancestors are known to have been what they are when the
    /// next one was forked; all where nobody knows. Others count for nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kin: Option<usize>,
    /// Those of them whose files were written or made after the container started.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub late: BTreeSet<String>,
    /// SHA-256 digests, in lower-case hexadecimal, of those that policy asks about.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub digests: BTreeMap<String, String>,
}

/// Stands before the path of a program whose file is another one, or in another
/// state, than policy's path meant when the container started. Paths begin with `/`:
/// no pattern means it.
pub const CHANGED: &str = "(changed) ";

impl Process {
    /// A process of which nothing is known but what it executes.
    pub fn new(binary: String, ancestors: Vec<String>) -> Self {
        Self { binary, ancestors, ..Self::default() }
    }

    /// The same with files that are those which rules ask for by their digest.
    #[must_use]
    pub fn as_meant_by<const N: usize>(mut self, policies: [&Policy; N]) -> Self {
        let meant = |path: &String| {
            let mut digests = policies.iter().flat_map(|policy| policy.digests_of(path));
            Some((path.clone(), digests.next()?.to_owned()))
        };
        self.digests = self.paths().filter_map(meant).collect();
        self
    }

    /// Programs that it counts as.
    fn paths(&self) -> impl Iterator<Item = &String> {
        let kin = self.ancestors.iter().take(self.kin.unwrap_or(usize::MAX));
        std::iter::once(&self.binary).chain(kin)
    }

    /// The same if its files were those that policy means.
    fn unchanged(&self) -> Self {
        let strip = |path: &String| path.strip_prefix(CHANGED).unwrap_or(path).to_owned();
        Self {
            binary: strip(&self.binary),
            ancestors: self.ancestors.iter().map(strip).collect(),
            kin: self.kin,
            late: BTreeSet::new(),
            digests: self.digests.clone(),
        }
    }
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
    /// One for every holder and layer: an address must satisfy all of them.
    addresses: Vec<AddressRule>,
    audited: Option<Denial>,
}

/// Which addresses a destination may turn out to have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct AddressRule {
    ranges: Vec<IpNet>,
    /// Some rule names no ranges: any public address will do.
    unrestricted: bool,
    /// Private addresses will do where nothing names ranges.
    private: bool,
}

impl fmt::Display for AddressRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words: Vec<String> = Vec::new();
        if self.unrestricted {
            words.push(if self.private { "public or private" } else { "public" }.to_owned());
        }
        if !self.ranges.is_empty() {
            let ranges: Vec<String> = self.ranges.iter().map(ToString::to_string).collect();
            words.push(format!("in {}", ranges.join(", ")));
        }
        f.write_str(&words.join(" or "))
    }
}

impl AddressRule {
    fn join(&mut self, other: &Self) {
        self.ranges.extend(other.ranges.iter().copied());
        self.unrestricted |= other.unrestricted;
        self.private |= other.private;
    }

    fn check(&self, real: IpAddr) -> Result<(), Reason> {
        if self.ranges.iter().any(|range| range.contains(&real)) {
            return Ok(());
        }
        match address::classify(real) {
            AddressClass::Never => Err(Reason::AddressNever),
            _ if !self.unrestricted => Err(Reason::AddressNotListed),
            AddressClass::Private if !self.private => Err(Reason::AddressPrivate),
            AddressClass::Private | AddressClass::Global => Ok(()),
        }
    }
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

    /// Why the rules would have refused it, where they only audit.
    pub fn audited(&self) -> Option<&Denial> {
        self.audited.as_ref()
    }

    /// Whether this permit takes some addresses that `other` does not.
    fn wider_than(&self, other: &Self) -> bool {
        let (Some(own), Some(other)) = (self.addresses.first(), other.addresses.first()) else {
            return false;
        };
        (own.unrestricted && !other.unrestricted)
            || (own.private && !other.private)
            || own.ranges.iter().any(|range| {
                !other.ranges.iter().any(|wide| wide.contains(range)) && !other.unrestricted
            })
    }

    /// Whether any public address will do, so that others may choose it.
    pub fn takes_any_public_address(&self) -> bool {
        self.addresses
            .iter()
            .all(|rule| rule.unrestricted && !rule.private && rule.ranges.is_empty())
    }

    /// Which addresses the destination may turn out to have, in words.
    pub fn addresses(&self) -> String {
        let words: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
        words.join("; and ")
    }

    /// Whether a resolved address may be dialled under this permit.
    ///
    /// # Errors
    /// The reason why not.
    pub fn check_address(&self, candidate: IpAddr) -> Result<(), Reason> {
        let real = address::unwrap(candidate);
        // An address in another's dress would pass as the one it wraps and
        // reach whatever translates it.
        if real != address::unwrap_mapped(candidate)
            || address::classify(real) == AddressClass::Never
        {
            return Err(Reason::AddressNever);
        }
        self.addresses.iter().try_for_each(|rule| rule.check(real))
    }
}

/// Leave to connect so far as to read requests, each of which needs a decision
/// of its own. It is no permit: nothing may be dialled with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspect {
    /// The nearest rule that inspects.
    pub rule: RuleRef,
    /// The protocols that the rules there read.
    pub protocols: Vec<Protocol>,
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
    /// A program that policy names is another file than at the container's start.
    BinaryChanged,
    /// A rule covers host and port, but not this program.
    BinaryNotAllowed,
    /// The socket's owner could not be found, or changed while we looked.
    CallerUnknown,
    /// The program has as many connections as one may have.
    ConnectionBudget,
    /// Something of ours failed.
    Internal,
    /// A name carries more than one that only a wildcard admits may, or there were too
    /// many names.
    NameBudget,
    /// The protocol or destination makes no sense here.
    Malformed,
    /// No rule covers host and port.
    NoEndpoint,
    /// The name does not resolve.
    NoSuchHost,
    /// A deny rule covers the request.
    RequestDenied,
    /// No rule covers the request.
    RequestNotAllowed,
    /// The TLS client asks for another server than the connection was opened to, or
    /// breaks the rules of TLS.
    ServerName,
    /// The upstream server could not be reached.
    UpstreamUnreachable,
}

impl Reason {
    /// Every reason there is.
    pub const ALL: [Self; 16] = [
        Self::AddressNever,
        Self::AddressNotListed,
        Self::AddressPrivate,
        Self::BinaryChanged,
        Self::BinaryNotAllowed,
        Self::CallerUnknown,
        Self::ConnectionBudget,
        Self::Internal,
        Self::Malformed,
        Self::NameBudget,
        Self::NoEndpoint,
        Self::NoSuchHost,
        Self::RequestDenied,
        Self::RequestNotAllowed,
        Self::ServerName,
        Self::UpstreamUnreachable,
    ];

    /// The stable code of audit records and answers.
    pub fn code(self) -> &'static str {
        match self {
            Self::AddressNever => "address_never",
            Self::AddressNotListed => "address_not_listed",
            Self::AddressPrivate => "address_private",
            Self::BinaryChanged => "binary_changed",
            Self::BinaryNotAllowed => "binary_not_allowed",
            Self::CallerUnknown => "caller_unknown",
            Self::ConnectionBudget => "connection_budget",
            Self::Internal => "internal",
            Self::Malformed => "malformed",
            Self::NameBudget => "name_budget",
            Self::NoEndpoint => "no_endpoint",
            Self::NoSuchHost => "no_such_host",
            Self::RequestDenied => "request_denied",
            Self::RequestNotAllowed => "request_not_allowed",
            Self::ServerName => "server_name",
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
            Self::BinaryChanged => {
                "a rule names this program, but not this file: it was not there or was another one when the container started, or has another digest than the rule's `sha256`; start the container again to trust what is there then, or name the file by `sha256` (`trust: writable` takes any)"
            }
            Self::BinaryNotAllowed => "a rule names this host and port, but not this program",
            Self::CallerUnknown => {
                "the program behind the connection could not be told: it has ended, executes another one, or shares the socket; try again, and if it stays so ask `nemoclaw doctor` (callers)"
            }
            Self::ConnectionBudget => {
                "the program has as many connections as `connections: {per_program: ...}` allows"
            }
            Self::Internal => "an internal error; refused to be safe",
            Self::Malformed => "the request makes no sense to the proxy",
            Self::NameBudget => {
                "only a wildcard admits the name, and it is long and random or one of too many; spell it out in a rule, or raise `nemoclaw: {connections: {wildcard_bits: ..., wildcard_names: ...}}`"
            }
            Self::NoEndpoint => "no rule names this host and port",
            Self::NoSuchHost => "the name does not exist",
            Self::RequestDenied => "a deny rule covers this request",
            Self::RequestNotAllowed => {
                "rules cover this host, port and program, but not this request"
            }
            Self::ServerName => {
                "the TLS client asks for another server than the connection was opened to"
            }
            Self::UpstreamUnreachable => "the server could not be reached",
        }
    }
}

/// What [`Engine::decide`] answers.
#[derive(Debug)]
pub enum Decision {
    /// Go ahead under this permit.
    Allow(Permit),
    /// Read the request, then ask again.
    Inspect(Inspect),
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
            addresses: vec![AddressRule { ranges: Vec::new(), unrestricted: true, private: true }],
            audited: None,
        })
    }
}

/// A policy prepared for fast decisions.
#[derive(Debug)]
pub struct Engine {
    policy: Policy,
    index: Index,
    aliases: HashMap<String, String>,
    /// Layers that may only narrow: all of them must allow what this allows.
    narrower: Vec<Self>,
}

impl Engine {
    /// Prepares `policy`. `aliases` maps a path a policy names to the path the
    /// kernel reports for it, where the image has a symbolic link in between
    /// (`/usr/bin/python3` to `/usr/bin/python3.11`).
    pub fn new(policy: Policy, aliases: HashMap<String, String>) -> Self {
        let index = Index::new(&policy, &aliases);
        Self { policy, index, aliases, narrower: Vec::new() }
    }

    /// Adds a layer that can only take away: what either refuses is refused.
    #[must_use]
    pub fn narrowed_by(mut self, layer: Policy) -> Self {
        let aliases = self.aliases.clone();
        self.narrower.push(Self::new(layer, aliases));
        self
    }

    /// The policy behind this engine.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Decides one connection, or one request on it.
    ///
    /// Every holder of the socket must be allowed, by every layer.
    pub fn decide(&self, intent: &Intent, caller: &Caller) -> Decision {
        if let Destination::Address { address, names } = &intent.destination
            && names.is_empty()
            && address::classify(*address) == AddressClass::Never
        {
            return deny(Reason::AddressNever, None);
        }
        let groups = self.index.groups(&intent.destination);
        let mut answer: Option<Decision> = None;
        for (n, holder) in caller.holders.iter().enumerate() {
            // Holders are often the same program many times.
            if caller.holders.iter().take(n).any(|other| other == holder) {
                continue;
            }
            let own = self.decide_for(intent, holder, &groups);
            answer = Some(match answer {
                Some(answer) => both(answer, own),
                None => own,
            });
        }
        let Some(mut answer) = answer else {
            let Some(first) = self.index.first(&groups, intent.port) else {
                return deny(Reason::NoEndpoint, None);
            };
            return deny(Reason::CallerUnknown, Some(self.reference(first)));
        };
        for layer in &self.narrower {
            answer = both(answer, layer.decide(intent, caller));
        }
        match (&answer, &intent.destination) {
            (Decision::Allow(_) | Decision::Inspect(_), Destination::Host(host))
                if !self.may_carry(host) =>
            {
                let nearest = self.index.first(&groups, intent.port);
                deny(Reason::NameBudget, nearest.map(|first| self.reference(first)))
            }
            _ => answer,
        }
    }

    /// Whether a name says no more than one of its kind may.
    fn may_carry(&self, host: &Host) -> bool {
        if self.naming(host) == Naming::Spelled {
            return true;
        }
        let most = self.policy.options.connections.wildcard_bits;
        let (sum, one) = naming::carried(host);
        one <= most && sum <= most.saturating_mul(3) / 2
    }

    fn decide_for(&self, intent: &Intent, holder: &Process, groups: &[Group]) -> Decision {
        let nearest = || self.index.first(groups, intent.port).map(|first| self.reference(first));
        let binaries = self.index.binaries(holder, self.policy.ours);
        let bundles = self.index.bundles(groups, intent.port, &binaries);
        if bundles.is_empty() {
            let nearest = nearest();
            let known = nearest.is_some();
            let meant = self.index.binaries_by_path(&holder.unchanged());
            let changed = !self.index.bundles(groups, intent.port, &meant).is_empty();
            let reason = match (known, changed) {
                (true, true) => Reason::BinaryChanged,
                (true, false) => Reason::BinaryNotAllowed,
                (false, _) => Reason::NoEndpoint,
            };
            return deny(reason, nearest);
        }
        let mut addresses = AddressRule::default();
        for bundle in &bundles {
            addresses.join(&bundle.addresses);
        }
        // An address that a policy spells out is its own permission, and so is
        // the name of a service of the engine's network in a file of ours.
        let service = |host: &Host| self.policy.ours && host.is_single_label();
        addresses.private |= match &intent.destination {
            Destination::Host(host) => service(host),
            Destination::Address { address, names } => {
                self.index.spells(*address) || names.iter().any(service)
            }
        };
        if let Destination::Address { address, .. } = &intent.destination
            && let Err(reason) = addresses.check(address::unwrap(*address))
        {
            return deny(reason, nearest());
        }
        let permit = |rule: RuleRef, audited: Option<Denial>| {
            Decision::Allow(Permit {
                destination: intent.destination.clone(),
                port: intent.port,
                rule,
                addresses: vec![addresses.clone()],
                audited,
            })
        };
        let inspected: Vec<&Bundle> =
            bundles.iter().copied().filter(|bundle| bundle.inspected.is_some()).collect();
        if inspected.is_empty() {
            let raw = bundles.iter().filter_map(|bundle| bundle.raw);
            return match raw.min_by_key(|site| self.rank(*site)) {
                Some(site) => permit(self.reference(site), None),
                None => deny(Reason::Internal, nearest()),
            };
        }
        match &intent.request {
            None => self.inspect(&inspected, nearest()),
            Some(request) => match self.judge(request, &inspected) {
                Ok((site, audited)) => permit(self.reference(site), audited),
                Err(denial) => Decision::Deny(denial),
            },
        }
    }

    fn inspect(&self, inspected: &[&Bundle], nearest: Option<RuleRef>) -> Decision {
        let mut protocols: Vec<Protocol> =
            inspected.iter().flat_map(|bundle| bundle.protocols()).collect();
        protocols.sort_unstable();
        protocols.dedup();
        let site = inspected
            .iter()
            .filter_map(|bundle| bundle.inspected)
            .min_by_key(|site| self.rank(*site));
        match site {
            Some(site) => Decision::Inspect(Inspect { rule: self.reference(site), protocols }),
            None => deny(Reason::Internal, nearest),
        }
    }

    /// Whether some rule asks for the digest of the program at this path, by it or by a
    /// link to it.
    pub fn asks_for_digest(&self, path: &str) -> bool {
        let links = self.aliases.iter().filter(|(_, real)| *real == path);
        self.policy.asks_for_digest(path)
            || links.into_iter().any(|(link, _)| self.policy.asks_for_digest(link))
    }

    /// How rules could come to allow this host: one that is spelled out keeps its
    /// virtual address for the life of the sandbox.
    pub fn naming(&self, host: &Host) -> Naming {
        self.index.naming(host)
    }

    /// The order in which equal rules are named: by key, then place.
    fn rank(&self, site: Site) -> (Arc<str>, u64) {
        let reference = self.reference(site);
        (reference.key, reference.line)
    }

    fn reference(&self, site: Site) -> RuleRef {
        let (rule, endpoint) = site.of(&self.policy);
        RuleRef {
            key: rule.map_or_else(|| Arc::from("?"), |rule| Arc::clone(&rule.key)),
            origin: endpoint.map_or_else(|| Arc::from(""), |own| Arc::clone(&own.at.file)),
            line: endpoint.map_or(0, |own| own.at.line),
        }
    }
}

/// What two answers about one intent come to: a refusal wins over all, then
/// the wish to look inside.
fn both(a: Decision, b: Decision) -> Decision {
    match (a, b) {
        (Decision::Deny(denial), _) | (_, Decision::Deny(denial)) => Decision::Deny(denial),
        (Decision::Inspect(mut a), Decision::Inspect(b)) => {
            a.protocols.extend(b.protocols);
            a.protocols.sort_unstable();
            a.protocols.dedup();
            Decision::Inspect(a)
        }
        (Decision::Inspect(inspect), Decision::Allow(_))
        | (Decision::Allow(_), Decision::Inspect(inspect)) => Decision::Inspect(inspect),
        (Decision::Allow(mut a), Decision::Allow(b)) => {
            a.addresses.extend(b.addresses);
            a.audited = a.audited.or(b.audited);
            Decision::Allow(a)
        }
    }
}

fn deny(reason: Reason, nearest: Option<RuleRef>) -> Decision {
    Decision::Deny(Denial { reason, nearest })
}

/// The YAML an operator could add to allow what was refused; `None` where no
/// rule would help.
pub fn remedy(
    policy: Option<&Policy>,
    intent: &Intent,
    caller: &Caller,
    reason: Reason,
) -> Option<String> {
    // What no rule can open, or no rule closed, needs no rule.
    if matches!(
        reason,
        Reason::AddressNever
            | Reason::BinaryChanged
            | Reason::CallerUnknown
            | Reason::ConnectionBudget
            | Reason::Internal
            | Reason::Malformed
            | Reason::NameBudget
            | Reason::NoSuchHost
            | Reason::RequestDenied
            | Reason::ServerName
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
    if host == "localhost" || host.ends_with(".localhost") {
        return None;
    }
    // Endpoints that overlap must agree on addresses and TLS.
    let rules = policy.iter().flat_map(|policy| &policy.rules);
    let beside = rules.flat_map(|rule| &rule.endpoints).find(|endpoint| {
        endpoint.ports.contains(&intent.port)
            && match &intent.destination {
                Destination::Host(host) => endpoint.host.matches(host),
                Destination::Address { address, .. } => {
                    endpoint.host == crate::name::HostPattern::Address(*address)
                }
            }
    });
    let mut more = String::new();
    if let Some(endpoint) = beside {
        if !endpoint.allowed_ips.is_empty() {
            more = format!(", allowed_ips: {}", serde_json::json!(endpoint.allowed_ips));
        }
        if endpoint.tls_skip {
            more.push_str(", tls: skip");
        }
    }
    // JSON strings are YAML strings: hostile paths cannot break out of them.
    let quote = |text: &str| serde_json::Value::from(text).to_string();
    let binaries = if binary.is_empty() {
        "any".to_owned()
    } else {
        format!("[{{path: {}}}]", quote(&program(binary)))
    };
    // Two refusals of one host are two rules.
    let name = binary.rsplit('/').next().unwrap_or_default();
    let plain =
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.+".contains(&b));
    let key = format!(
        "allow-{host}-{}{}",
        intent.port,
        if plain { format!("-{name}") } else { String::new() }
    );
    let request = intent.request.as_ref().map_or_else(String::new, |request| {
        format!(
            ", protocol: rest, enforcement: enforce, rules: [{{allow: {{method: {}, path: {}}}}}]",
            quote(request.method.as_str()),
            quote(&literal(request.target.path())),
        )
    });
    let rule = format!(
        "{}: {{endpoints: [{{host: {}, port: {}{private}{more}{request}}}], binaries: {binaries}}}",
        quote(&key),
        quote(&host),
        intent.port,
    );
    // What would make the policy contradict itself is no help.
    let fits = policy.is_none_or(|policy| {
        let text = format!("version: 1\nnemoclaw: {{}}\nnetwork_policies: {{{rule}}}\n");
        Policy::parse(&text, "remedy").is_ok_and(|own| policy.clone().with_rules_of(&own).is_ok())
    });
    fits.then_some(rule)
}

/// A program as `binaries` names it: with a `*` in it, its path would be read
/// as a pattern of the sandbox's own making.
fn program(path: &str) -> String {
    if path.contains('*') { literal(path) } else { path.to_owned() }
}

/// A pattern that matches just this path.
fn literal(path: &str) -> String {
    let mut pattern = String::with_capacity(path.len());
    for c in path.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '{' | '}' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
