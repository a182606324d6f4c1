//! What one policy allows and another does not, as sets of intents.
//!
//! Exact, not sampled: hosts, programs, paths and values fall into finitely
//! many classes that no rule of either policy can tell apart. Each class is
//! decided once, by the same engine that decides connections. Callers are
//! taken as one process without ancestors.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use super::{Caller, Decision, Destination, Engine, Intent, Process};
use crate::glob::{Kind, Pattern, Texts, classes};
use crate::http::{Content, GraphQl, JsonRpc, Method, Operation, Request, Target};
use crate::name::{Host, HostPattern};
use crate::policy::{Binaries, Endpoint, Inspection, Matcher, Policy, Protocol};

/// Most states of one automaton, and most requests compared on one port.
const MAX_STATES: usize = 100_000;
const MAX_REQUESTS: usize = 200_000;
/// Names that no policy lists stand for all of those.
const UNLISTED_HOST: &str = "unlisted.invalid";

/// Two policies that cannot be compared in full.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the patterns of {what} intertwine in too many ways to be compared exactly")]
pub struct TooIntertwined {
    /// Whose patterns.
    pub what: String,
}

/// One set of intents that the two policies treat differently.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Change {
    /// True where the second policy allows what the first refuses.
    pub allowed: bool,
    /// The programs, by the most specific pattern that covers them.
    pub binary: String,
    /// The hosts, in the same way.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The method; `None` where connections as such are meant.
    pub method: Option<String>,
    /// The paths or what else tells the requests apart.
    pub request: Option<String>,
    /// One intent of the set.
    pub example: String,
}

/// A class of texts: an example, and the patterns that cover it.
#[derive(Debug, Clone)]
struct Class {
    example: String,
    label: String,
}

/// Compares `before` with `after`.
///
/// # Errors
/// [`TooIntertwined`] rather than an answer that may be wrong.
pub fn diff(before: &Engine, after: &Engine) -> Result<Vec<Change>, TooIntertwined> {
    let policies = [before.policy(), after.policy()];
    let hosts = hosts(policies)?;
    let binaries = binaries(policies)?;
    let mut changes = BTreeSet::new();
    for host in &hosts {
        let destination = destination(&host.example);
        let endpoints: Vec<&Endpoint> = policies
            .iter()
            .flat_map(|policy| policy.rules.iter().flat_map(|rule| &rule.endpoints))
            .filter(|endpoint| covers(&endpoint.host, &destination))
            .collect();
        let ports: BTreeSet<u16> =
            endpoints.iter().flat_map(|endpoint| endpoint.ports.iter().copied()).collect();
        for port in ports {
            let own: Vec<&Endpoint> =
                endpoints.iter().copied().filter(|e| e.ports.contains(&port)).collect();
            let requests = requests(&own)?;
            for binary in &binaries {
                let caller = Caller {
                    holders: vec![
                        Process::new(binary.example.clone(), Vec::new())
                            .as_meant_by([before.policy(), after.policy()]),
                    ],
                };
                let spot = Spot { host, port, binary, destination: &destination };
                spot.compare([before, after], &caller, &requests, &mut changes);
            }
        }
    }
    Ok(changes.into_iter().collect())
}

struct Spot<'a> {
    host: &'a Class,
    port: u16,
    binary: &'a Class,
    destination: &'a Destination,
}

impl Spot<'_> {
    fn compare(
        &self,
        engines: [&Engine; 2],
        caller: &Caller,
        requests: &[(Request, String)],
        changes: &mut BTreeSet<Change>,
    ) {
        let connect = Intent::connect(self.destination.clone(), self.port);
        let [one, other] = engines.map(|engine| engine.decide(&connect, caller));
        match (&one, &other) {
            (Decision::Deny(_), Decision::Deny(_)) => {}
            (Decision::Allow(a), Decision::Allow(b)) => {
                if a.addresses != b.addresses {
                    let (before, after) = (a.addresses(), b.addresses());
                    let text = format!("addresses {after}, before: {before}");
                    changes.insert(self.change(b.wider_than(a), None, Some(&text)));
                }
            }
            (Decision::Deny(_), Decision::Allow(_)) => {
                changes.insert(self.change(true, None, None));
            }
            (Decision::Allow(_), Decision::Deny(_)) => {
                changes.insert(self.change(false, None, None));
            }
            _ => {
                for (request, label) in requests {
                    let intent = Intent { request: Some(request.clone()), ..connect.clone() };
                    let [a, b] = engines
                        .map(|engine| matches!(engine.decide(&intent, caller), Decision::Allow(_)));
                    if a != b {
                        changes.insert(self.change(b, Some(request), Some(label)));
                    }
                }
            }
        }
    }

    fn change(&self, allowed: bool, request: Option<&Request>, label: Option<&str>) -> Change {
        let target = request
            .map_or_else(String::new, |request| format!(" {} {}", request.method, request.target));
        Change {
            allowed,
            binary: self.binary.label.clone(),
            host: self.host.label.clone(),
            port: self.port,
            method: request.map(|request| request.method.to_string()),
            request: label.map(str::to_owned),
            example: format!(
                "{} -> {}:{}{target}",
                self.binary.example, self.host.example, self.port
            ),
        }
    }
}

fn destination(example: &str) -> Destination {
    match example.parse::<IpAddr>() {
        Ok(address) => Destination::Address { address, names: Vec::new() },
        Err(_) => Host::parse(example).map_or_else(
            |_never| Destination::Address {
                address: IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
                names: Vec::new(),
            },
            Destination::Host,
        ),
    }
}

fn covers(pattern: &HostPattern, destination: &Destination) -> bool {
    match (pattern, destination) {
        (HostPattern::Any, _) => true,
        (HostPattern::Address(own), Destination::Address { address, .. }) => own == address,
        (pattern, Destination::Host(host)) => pattern.matches(host),
        _ => false,
    }
}

/// The most specific of the patterns that cover a text, or what stands for
/// none.
fn label(covering: &[&Pattern], none: &str) -> String {
    covering
        .iter()
        .max_by_key(|pattern| (pattern.specificity(), pattern.as_str().len()))
        .map_or_else(|| none.to_owned(), |pattern| pattern.as_str().to_owned())
}

fn classify(
    patterns: &BTreeMap<String, Pattern>,
    texts: Texts,
    what: &str,
    none: &str,
) -> Result<Vec<Class>, TooIntertwined> {
    let list: Vec<&Pattern> = patterns.values().collect();
    let found = classes(&list, texts, MAX_STATES)
        .ok_or_else(|| TooIntertwined { what: what.to_owned() })?;
    Ok(found
        .into_iter()
        .map(|(example, covering)| {
            let covering: Vec<&Pattern> =
                covering.iter().filter_map(|n| list.get(*n).copied()).collect();
            Class { example, label: label(&covering, none) }
        })
        .collect())
}

fn hosts(policies: [&Policy; 2]) -> Result<Vec<Class>, TooIntertwined> {
    let all =
        || policies.iter().flat_map(|policy| policy.rules.iter().flat_map(|rule| &rule.endpoints));
    let mut patterns: BTreeMap<String, Pattern> = BTreeMap::new();
    for endpoint in all() {
        if let HostPattern::Wild(pattern) = &endpoint.host {
            patterns.insert(pattern.as_str().to_owned(), pattern.clone());
        }
    }
    let mut found = Vec::new();
    let mut exact: BTreeMap<String, Pattern> = BTreeMap::new();
    for endpoint in all() {
        match &endpoint.host {
            HostPattern::Address(ip) => {
                let text = ip.to_string();
                found.push(Class { example: text.clone(), label: text });
            }
            HostPattern::Exact(host) => {
                let text = host.to_string();
                exact.insert(text.clone(), Pattern::literal(&text, Kind::Dotted));
            }
            _ => {}
        }
    }
    let (covered, alone): (BTreeMap<_, _>, BTreeMap<_, _>) = exact
        .into_iter()
        .partition(|(text, _)| patterns.values().any(|pattern| pattern.matches(text)));
    found.extend(alone.into_keys().map(|text| Class { example: text.clone(), label: text }));
    patterns.extend(covered);
    let mut others = classify(&patterns, Texts::Hosts, "hosts", "other hosts")?;
    others.retain(|class| class.label != "other hosts");
    found.extend(others);
    found.push(Class { example: UNLISTED_HOST.to_owned(), label: "other hosts".to_owned() });
    found.sort_by(|a, b| a.example.cmp(&b.example));
    found.dedup_by(|a, b| a.example == b.example);
    Ok(found)
}

fn binaries(policies: [&Policy; 2]) -> Result<Vec<Class>, TooIntertwined> {
    let mut patterns = BTreeMap::new();
    for rule in policies.iter().flat_map(|policy| &policy.rules) {
        if let Binaries::Listed(list) = &rule.binaries {
            for binary in list {
                patterns.insert(binary.as_str().to_owned(), binary.pattern().clone());
            }
        }
    }
    classify(&patterns, Texts::Files, "binaries", "other programs")
}

/// One request of every kind that the endpoints can tell apart.
fn requests(endpoints: &[&Endpoint]) -> Result<Vec<(Request, String)>, TooIntertwined> {
    let inspections: Vec<&Inspection> =
        endpoints.iter().filter_map(|endpoint| endpoint.inspection.as_ref()).collect();
    if inspections.is_empty() {
        return Ok(Vec::new());
    }
    let mut methods: BTreeSet<String> = ["GET", "HEAD", "POST", "OTHER"].map(str::to_owned).into();
    let mut paths = BTreeMap::new();
    let mut values: BTreeMap<String, BTreeMap<String, Pattern>> = BTreeMap::new();
    let keep = |map: &mut BTreeMap<String, Pattern>, pattern: &Pattern| {
        drop(map.insert(pattern.as_str().to_owned(), pattern.clone()));
    };
    for inspection in &inspections {
        if let Some(path) = &inspection.path {
            keep(&mut paths, path);
        }
        for rule in inspection.allow.iter().chain(&inspection.deny) {
            if let Matcher::Http { method, path, query } = rule {
                methods.extend(method.as_ref().map(ToString::to_string));
                keep(&mut paths, path);
                for (name, list) in query {
                    let own = values.entry(name.clone()).or_default();
                    for pattern in list {
                        keep(own, pattern);
                    }
                }
            }
        }
    }
    let paths = classify(&paths, Texts::RequestPaths, "paths", "other paths")?;
    let queries = queries(&values)?;
    let contents = contents(&inspections)?;
    let count = methods.len() * paths.len() * queries.len() * contents.len();
    if count > MAX_REQUESTS {
        return Err(TooIntertwined { what: "requests".to_owned() });
    }
    let mut list = Vec::with_capacity(count);
    for method in methods.iter().filter_map(|method| Method::parse(method).ok()) {
        for path in &paths {
            for (query, query_label) in &queries {
                for (content, content_label) in &contents {
                    let Ok(target) = Target::parse(&format!("{}{query}", escaped(&path.example)))
                    else {
                        continue;
                    };
                    let label = format!("{}{query_label}{content_label}", path.label);
                    let request =
                        Request { method: method.clone(), target, content: content.clone() };
                    list.push((request, label));
                }
            }
        }
    }
    Ok(list)
}

/// A path of an automaton's as a target: what patterns can say and targets
/// cannot is escaped, and then is another path, which no request can have.
fn escaped(path: &str) -> String {
    path.chars()
        .map(|c| {
            if c.is_ascii_graphic() && c != '?' && c != '#' {
                c.to_string()
            } else {
                format!("%{:02X}", u32::from(c) & 0xff)
            }
        })
        .collect()
}

/// Every way in which the named parameters can be absent or differ: a
/// parameter can be given several times, so that sets of values count.
fn queries(
    values: &BTreeMap<String, BTreeMap<String, Pattern>>,
) -> Result<Vec<(String, String)>, TooIntertwined> {
    const MAX_CLASSES: usize = 10;
    let too_many = || TooIntertwined { what: "query values".to_owned() };
    let mut queries = vec![(String::new(), String::new())];
    for (name, patterns) in values {
        let found = classify(patterns, Texts::Values, "query values", "another value")?;
        if found.len() > MAX_CLASSES {
            return Err(too_many());
        }
        let mut next = Vec::new();
        for set in 0..1_u32 << found.len() {
            let members = || {
                let chosen = found.iter().enumerate();
                chosen.filter(move |(n, _)| set >> n & 1 == 1).map(|(_, class)| class)
            };
            for (query, label) in &queries {
                let (mut query, mut label) = (query.clone(), label.clone());
                for class in members() {
                    let join = if query.is_empty() { '?' } else { '&' };
                    // Writing to a String cannot fail.
                    let _written =
                        write!(query, "{join}{}={}", encoded(name), encoded(&class.example));
                    let _written = write!(label, "{join}{name}={}", class.label);
                }
                next.push((query, label));
            }
        }
        if next.len() > MAX_REQUESTS {
            return Err(too_many());
        }
        queries = next;
    }
    Ok(queries)
}

fn encoded(text: &str) -> String {
    text.bytes()
        .map(|b| {
            if b.is_ascii_alphanumeric() || b"-._~".contains(&b) {
                char::from(b).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect()
}

/// Bodies that the endpoints' rules can tell apart; one field or tool at a
/// time.
fn contents(inspections: &[&Inspection]) -> Result<Vec<(Content, String)>, TooIntertwined> {
    let mut contents = vec![(Content::Opaque, String::new())];
    let (mut names, mut fields, mut methods, mut tools) =
        (BTreeMap::new(), BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let mut kinds = BTreeSet::new();
    let mut rpc = false;
    for inspection in inspections {
        match inspection.protocol {
            Protocol::GraphQl => {
                kinds.extend(["query", "mutation", "subscription"]);
            }
            Protocol::JsonRpc | Protocol::Mcp => rpc = true,
            _ => {}
        }
        for rule in inspection.allow.iter().chain(&inspection.deny) {
            let keep = |map: &mut BTreeMap<String, Pattern>, pattern: &Pattern| {
                drop(map.insert(pattern.as_str().to_owned(), pattern.clone()));
            };
            match rule {
                Matcher::GraphQl { name, fields: own, .. } => {
                    kinds.extend(["query", "mutation", "subscription"]);
                    if let Some(pattern) = name {
                        keep(&mut names, pattern);
                    }
                    for pattern in own {
                        keep(&mut fields, pattern);
                    }
                }
                Matcher::Rpc { method, tool } => {
                    if let Some(pattern) = method {
                        keep(&mut methods, pattern);
                    }
                    for pattern in tool {
                        keep(&mut tools, pattern);
                    }
                }
                Matcher::Http { .. } | Matcher::Sql { .. } => {}
            }
        }
    }
    let values = |map: &BTreeMap<String, Pattern>| classify(map, Texts::Values, "names", "another");
    if !kinds.is_empty() {
        let (names, fields) = (values(&names)?, values(&fields)?);
        for kind in kinds {
            for name in &names {
                for field in &fields {
                    let operation = Operation {
                        kind: kind.to_owned(),
                        name: name.example.clone(),
                        fields: vec![field.example.clone()],
                        persisted: None,
                    };
                    contents.push((
                        Content::GraphQl(GraphQl { operations: vec![operation], malformed: false }),
                        format!(" {kind} {} {}", name.label, field.label),
                    ));
                }
            }
        }
    }
    if rpc {
        let (methods, tools) = (values(&methods)?, values(&tools)?);
        for method in methods.iter().filter(|method| !method.example.is_empty()) {
            for tool in std::iter::once(None).chain(tools.iter().map(Some)) {
                let body = JsonRpc {
                    method: method.example.clone(),
                    tool: tool.map(|tool| tool.example.clone()),
                    ..JsonRpc::default()
                };
                let tool = tool.map_or_else(String::new, |tool| format!(" {}", tool.label));
                contents.push((Content::JsonRpc(body), format!(" {}{tool}", method.label)));
            }
        }
        let response = JsonRpc { response: true, ..JsonRpc::default() };
        contents.push((Content::JsonRpc(response), " a response".to_owned()));
        let stream = JsonRpc { receive_stream: true, ..JsonRpc::default() };
        contents.push((Content::JsonRpc(stream), " a receive stream".to_owned()));
    }
    Ok(contents)
}
