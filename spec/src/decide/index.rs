//! A policy as tables: hosts to groups, programs to patterns, and for each
//! (group, port, program pattern) everything a decision needs. Looking up costs
//! what matches, not what the policy holds.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use super::{AddressRule, Destination, Process};
use crate::address;
use crate::glob::{Kind, Pattern, Trie};
use crate::name::{Host, HostPattern};
use crate::policy::{Binaries, Endpoint, Inspection, Matcher, Policy, Protocol, Rule};

/// An endpoint by its place in the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Site {
    rule: usize,
    endpoint: usize,
}

impl Site {
    pub(super) fn of(self, policy: &Policy) -> (Option<&Rule>, Option<&Endpoint>) {
        let rule = policy.rules.get(self.rule);
        (rule, rule.and_then(|rule| rule.endpoints.get(self.endpoint)))
    }
}

/// Hosts that the same endpoints name in the same words.
type Group = u32;
/// A pattern over executables; 0 stands for any program.
type Binary = u32;
const ANY_BINARY: Binary = 0;

/// The tables.
#[derive(Debug)]
pub(super) struct Index {
    exact: HashMap<Host, Group>,
    addresses: HashMap<IpAddr, Group>,
    wild: Trie<Group>,
    everywhere: Option<Group>,
    /// The first endpoint of a group's port, to be named in refusals.
    ports: HashMap<(Group, u16), Site>,
    executables: Trie<Binary>,
    bundles: HashMap<(Group, u16, Binary), Bundle>,
}

/// What one program may do on one port of one group of hosts.
#[derive(Debug, Default)]
pub(super) struct Bundle {
    /// The first endpoint that is passed on untouched.
    pub(super) raw: Option<Site>,
    /// The first endpoint that is inspected.
    pub(super) inspected: Option<Site>,
    pub(super) addresses: AddressRule,
    pub(super) requests: Option<Box<Requests>>,
}

/// The inspected endpoints of a bundle.
#[derive(Debug)]
pub(super) struct Requests {
    /// One endpoint for all that have no path of their own.
    pub(super) pathless: Option<Site>,
    /// One endpoint for each path.
    pub(super) by_path: Trie<Site>,
    paths: HashSet<String>,
    pub(super) allow: Clauses,
    pub(super) deny: Clauses,
    /// Endpoints whose rules are about bodies.
    pub(super) bodies: Vec<Site>,
    protocols: Vec<Protocol>,
}

/// Rules about method, path and query.
#[derive(Debug)]
pub(super) struct Clauses {
    pub(super) by_path: Trie<usize>,
    pub(super) list: Vec<Clause>,
    /// Texts of the rules that are in, and of the endpoints' own paths.
    known: HashSet<String>,
    denies: bool,
}

/// One of them: a matcher of an endpoint.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clause {
    pub(super) site: Site,
    pub(super) matcher: usize,
}

impl Bundle {
    pub(super) fn protocols(&self) -> Vec<Protocol> {
        self.requests.as_ref().map(|requests| requests.protocols.clone()).unwrap_or_default()
    }
}

impl Index {
    pub(super) fn new(policy: &Policy, aliases: &HashMap<String, String>) -> Self {
        let mut index = Self {
            exact: HashMap::new(),
            addresses: HashMap::new(),
            wild: Trie::new(Kind::Dotted),
            everywhere: None,
            ports: HashMap::new(),
            executables: Trie::new(Kind::Path),
            bundles: HashMap::new(),
        };
        let mut names = Names::default();
        // The answer must not depend on the order of rules in the file.
        let mut order: Vec<usize> = (0..policy.rules.len()).collect();
        order.sort_by_key(|n| policy.rules.get(*n).map(|rule| rule.key.clone()));
        for (rule, n) in order.iter().filter_map(|n| Some((policy.rules.get(*n)?, *n))) {
            let binaries = index.binaries_of(rule, aliases, &mut names);
            let mut endpoints: Vec<usize> = (0..rule.endpoints.len()).collect();
            endpoints.sort_by_key(|e| rule.endpoints.get(*e).map(|endpoint| endpoint.at.line));
            for e in endpoints {
                let Some(endpoint) = rule.endpoints.get(e) else { continue };
                let Some(group) = index.group(endpoint, &mut names) else { continue };
                let site = Site { rule: n, endpoint: e };
                for port in &endpoint.ports {
                    index.ports.entry((group, *port)).or_insert(site);
                    for binary in &binaries {
                        index
                            .bundles
                            .entry((group, *port, *binary))
                            .or_default()
                            .add(site, endpoint);
                    }
                }
            }
        }
        index
    }

    fn group(&mut self, endpoint: &Endpoint, names: &mut Names) -> Option<Group> {
        Some(match &endpoint.host {
            HostPattern::Exact(host) => {
                *self.exact.entry(host.clone()).or_insert_with(|| names.group())
            }
            HostPattern::Address(ip) => {
                *self.addresses.entry(address::unwrap(*ip)).or_insert_with(|| names.group())
            }
            HostPattern::Any => *self.everywhere.get_or_insert_with(|| names.group()),
            HostPattern::Wild(pattern) => {
                if let Some(group) = names.wild.get(pattern.as_str()) {
                    return Some(*group);
                }
                let group = names.group();
                names.wild.insert(pattern.as_str().to_owned(), group);
                self.wild.insert(pattern, group);
                group
            }
            HostPattern::Never(_) => return None,
        })
    }

    fn binaries_of(
        &mut self,
        rule: &Rule,
        aliases: &HashMap<String, String>,
        names: &mut Names,
    ) -> Vec<Binary> {
        let Binaries::Listed(list) = &rule.binaries else { return vec![ANY_BINARY] };
        let mut binaries = Vec::with_capacity(list.len());
        for pattern in list {
            let id = names.binaries.get(pattern.as_str()).copied().unwrap_or_else(|| {
                let id = names.binary();
                names.binaries.insert(pattern.as_str().to_owned(), id);
                self.executables.insert(pattern.pattern(), id);
                if let Some(real) = aliases.get(pattern.as_str()) {
                    self.executables.insert(&Pattern::literal(real, Kind::Path), id);
                }
                id
            });
            binaries.push(id);
        }
        binaries.sort_unstable();
        binaries.dedup();
        binaries
    }

    /// The groups that a destination belongs to.
    fn groups(&self, destination: &Destination) -> Vec<Group> {
        let mut groups = match destination {
            Destination::Host(host) => self.groups_of(host),
            Destination::Address { address, names } => {
                let mut groups: Vec<Group> =
                    self.addresses.get(&address::unwrap(*address)).copied().into_iter().collect();
                groups.extend(names.iter().flat_map(|name| self.groups_of(name)));
                groups.extend(self.everywhere);
                groups
            }
        };
        groups.sort_unstable();
        groups.dedup();
        groups
    }

    fn groups_of(&self, host: &Host) -> Vec<Group> {
        let mut groups = self.wild.find(host.as_str());
        groups.extend(self.exact.get(host));
        groups.extend(self.everywhere);
        groups
    }

    pub(super) fn knows(&self, host: &Host) -> bool {
        self.exact.contains_key(host) || !self.wild.find(host.as_str()).is_empty()
    }

    /// The first endpoint for this host and port, whoever asks.
    pub(super) fn first(&self, destination: &Destination, port: u16) -> Option<Site> {
        self.groups(destination)
            .into_iter()
            .filter_map(|group| self.ports.get(&(group, port)).copied())
            .min()
    }

    /// The patterns that cover a process or one of its ancestors.
    pub(super) fn binaries(&self, process: &Process) -> Vec<Binary> {
        let mut binaries = vec![ANY_BINARY];
        for path in std::iter::once(&process.binary).chain(&process.ancestors) {
            binaries.extend(self.executables.find(path));
        }
        binaries.sort_unstable();
        binaries.dedup();
        binaries
    }

    pub(super) fn bundles(
        &self,
        destination: &Destination,
        port: u16,
        binaries: &[Binary],
    ) -> Vec<&Bundle> {
        let mut bundles = Vec::new();
        for group in self.groups(destination) {
            for binary in binaries {
                bundles.extend(self.bundles.get(&(group, port, *binary)));
            }
        }
        bundles
    }
}

/// Numbers given out while the tables are made.
#[derive(Default)]
struct Names {
    groups: Group,
    wild: HashMap<String, Group>,
    binaries: HashMap<String, Binary>,
}

impl Names {
    fn group(&mut self) -> Group {
        self.groups += 1;
        self.groups
    }

    fn binary(&self) -> Binary {
        // 0 is any program.
        Binary::try_from(self.binaries.len() + 1).unwrap_or(Binary::MAX)
    }
}

impl Bundle {
    fn add(&mut self, site: Site, endpoint: &Endpoint) {
        self.addresses.join(&AddressRule {
            ranges: endpoint.allowed_ips.clone(),
            unrestricted: endpoint.allowed_ips.is_empty(),
            private: endpoint.private,
        });
        self.addresses.ranges.sort_unstable();
        self.addresses.ranges.dedup();
        let Some(inspection) = endpoint.inspection.as_ref().filter(|inspection| {
            // OpenShell passes these on without a look inside.
            !endpoint.tls_skip && inspection.protocol != Protocol::Sql
        }) else {
            self.raw.get_or_insert(site);
            return;
        };
        self.inspected.get_or_insert(site);
        let requests = self.requests.get_or_insert_with(|| Box::new(Requests::new()));
        if !requests.protocols.contains(&inspection.protocol) {
            requests.protocols.push(inspection.protocol);
        }
        let path = inspection.path.as_ref();
        match path {
            None => drop(requests.pathless.get_or_insert(site)),
            Some(path) => {
                // One endpoint for each path: equal paths are read alike.
                if requests.paths.insert(path.as_str().to_owned()) {
                    requests.by_path.insert(path, site);
                }
            }
        }
        let own_path = path.map_or("", Pattern::as_str);
        let mut bodies = matches!(
            inspection.protocol,
            Protocol::GraphQl | Protocol::WebSocket | Protocol::JsonRpc | Protocol::Mcp
        );
        for (clauses, matchers) in
            [(&mut requests.allow, &inspection.allow), (&mut requests.deny, &inspection.deny)]
        {
            for (n, matcher) in matchers.iter().enumerate() {
                if let Matcher::Http { method, path, query } = matcher {
                    let method = method.as_ref().map_or("*", |method| method.as_str());
                    let text = format!("{method} {path} {own_path} {query:?}");
                    clauses.add(path, text, Clause { site, matcher: n });
                } else {
                    bodies = true;
                }
            }
        }
        if bodies {
            requests.bodies.push(site);
        }
    }
}

impl Requests {
    fn new() -> Self {
        Self {
            pathless: None,
            by_path: Trie::new(Kind::Path),
            paths: HashSet::new(),
            allow: Clauses::new(false),
            deny: Clauses::new(true),
            bodies: Vec::new(),
            protocols: Vec::new(),
        }
    }
}

impl Clauses {
    fn new(denies: bool) -> Self {
        let (by_path, list) = (Trie::new(Kind::Path), Vec::new());
        Self { by_path, list, known: HashSet::new(), denies }
    }

    /// Adds a rule; one that says the same as another adds nothing.
    fn add(&mut self, path: &Pattern, text: String, clause: Clause) {
        if self.known.insert(text) {
            self.by_path.insert(path, self.list.len());
            self.list.push(clause);
        }
    }

    /// The matcher behind a rule of these.
    pub(super) fn matcher<'a>(
        &self,
        clause: &Clause,
        inspection: &'a Inspection,
    ) -> Option<&'a Matcher> {
        let list = if self.denies { &inspection.deny } else { &inspection.allow };
        list.get(clause.matcher)
    }
}
