//! A policy as tables: hosts to groups, programs to patterns, and for each
//! (group, port, program pattern) everything a decision needs. Looking up costs
//! what matches, not what the policy holds.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use super::{AddressRule, Destination, Naming, Process};
use crate::address;
use crate::glob::{Kind, Map, Pattern, Trie};
use crate::name::{Host, HostPattern, Trust};
use crate::policy::{Binaries, Endpoint, Inspection, Matcher, Policy, Protocol, Rule};

/// An endpoint by its place in the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Site {
    /// Its place in the order of keys, which is not that of the file.
    rank: u32,
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
pub(super) type Group = u32;
/// A pattern over executables; 0 stands for any program.
type Binary = u32;
const ANY_BINARY: Binary = 0;

/// The tables.
#[derive(Debug)]
pub(super) struct Index {
    exact: Map<Host, Group>,
    addresses: Map<IpAddr, Group>,
    wild: Trie<Group>,
    everywhere: Option<Group>,
    /// The first endpoint of a group's port, to be named in refusals.
    ports: Map<(Group, u16), Site>,
    executables: Trie<Binary>,
    /// Which files of a pattern are meant, by its number; 0 is any program.
    trust: Vec<Trust>,
    /// Request paths of all rules.
    pub(super) paths: Trie<PathId>,
    bundles: Map<(Group, u16, Binary), Bundle>,
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

/// A pattern over request paths, which rules of many hosts may share.
pub(super) type PathId = u32;

/// The inspected endpoints of a bundle.
#[derive(Debug, Default)]
pub(super) struct Requests {
    /// One endpoint for all that have no path of their own.
    pub(super) pathless: Option<Site>,
    /// One endpoint for each path, sorted: equal paths are read alike.
    pub(super) by_path: Vec<(PathId, Site)>,
    pub(super) allow: Clauses,
    pub(super) deny: Clauses,
    /// Endpoints whose rules are about bodies, with their own paths.
    pub(super) bodies: Vec<(Option<PathId>, Site)>,
    protocols: Vec<Protocol>,
}

/// Rules about method, path and query, sorted by path.
#[derive(Debug, Default)]
pub(super) struct Clauses(Vec<Clause>);

/// One of them: a matcher of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Clause {
    path: PathId,
    pub(super) site: Site,
    matcher: u32,
    /// The endpoint's own path, which must cover the request too.
    own_path: Option<PathId>,
    denies: bool,
}

impl Bundle {
    pub(super) fn protocols(&self) -> Vec<Protocol> {
        self.requests.as_ref().map(|requests| requests.protocols.clone()).unwrap_or_default()
    }
}

impl Index {
    pub(super) fn new(policy: &Policy, aliases: &HashMap<String, String>) -> Self {
        let mut index = Self {
            exact: Map::default(),
            addresses: Map::default(),
            wild: Trie::new(Kind::Dotted),
            everywhere: None,
            ports: Map::default(),
            executables: Trie::new(Kind::Path),
            trust: vec![Trust::Writable],
            paths: Trie::new(Kind::Path),
            bundles: Map::default(),
        };
        let mut names = Names::new();
        // The answer must not depend on the order of rules in the file.
        let mut order: Vec<usize> = (0..policy.rules.len()).collect();
        order.sort_by_key(|n| policy.rules.get(*n).map(|rule| rule.key.clone()));
        let mut rank = 0;
        for (rule, n) in order.iter().filter_map(|n| Some((policy.rules.get(*n)?, *n))) {
            let binaries = index.binaries_of(rule, aliases, &mut names);
            let mut endpoints: Vec<usize> = (0..rule.endpoints.len()).collect();
            endpoints.sort_by_key(|e| rule.endpoints.get(*e).map(|endpoint| endpoint.at.line));
            for e in endpoints {
                let Some(endpoint) = rule.endpoints.get(e) else { continue };
                let Some(group) = index.group(endpoint, &mut names) else { continue };
                let site = Site { rank, rule: n, endpoint: e };
                rank += 1;
                for port in &endpoint.ports {
                    index.ports.entry((group, *port)).or_insert(site);
                    for binary in &binaries {
                        let key = (group, *port, *binary);
                        let bundle = index.bundles.entry(key).or_default();
                        bundle.add(key, site, endpoint, &mut names);
                    }
                }
            }
        }
        for bundle in index.bundles.values_mut() {
            bundle.finish();
        }
        index.paths = names.paths;
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
            let key = (pattern.as_str().to_owned(), pattern.trust().clone());
            let id = names.binaries.get(&key).copied().unwrap_or_else(|| {
                let id = names.binary();
                names.binaries.insert(key, id);
                self.trust.push(if pattern.is_literal() && *pattern.trust() == Trust::Start {
                    // Told apart by what the supervisor calls it: see `CHANGED`.
                    Trust::Writable
                } else {
                    pattern.trust().clone()
                });
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
    pub(super) fn groups(&self, destination: &Destination) -> Vec<Group> {
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

    /// Whether a rule names this very address.
    pub(super) fn spells(&self, address: IpAddr) -> bool {
        self.addresses.contains_key(&address::unwrap(address))
    }

    pub(super) fn naming(&self, host: &Host) -> Naming {
        if self.exact.contains_key(host) {
            Naming::Spelled
        } else if self.everywhere.is_some() || !self.wild.find(host.as_str()).is_empty() {
            Naming::Wildcard
        } else {
            Naming::Unknown
        }
    }

    /// The first endpoint for these hosts and this port, whoever asks.
    pub(super) fn first(&self, groups: &[Group], port: u16) -> Option<Site> {
        groups.iter().filter_map(|group| self.ports.get(&(*group, port)).copied()).min()
    }

    /// The patterns that cover a process or one of its ancestors and mean its file. In
    /// OpenShell's files every file at a path is meant.
    pub(super) fn binaries(&self, process: &Process, ours: bool) -> Vec<Binary> {
        self.binaries_where(process, |id, path| match self.trust.get(id as usize) {
            Some(Trust::Digest(digest)) => process.digests.get(path) == Some(digest),
            Some(Trust::Writable) => true,
            Some(Trust::Start) | None => !ours || !process.late.contains(path),
        })
    }

    /// The same whatever files lie there.
    pub(super) fn binaries_by_path(&self, process: &Process) -> Vec<Binary> {
        self.binaries_where(process, |_id, _path| true)
    }

    fn binaries_where(
        &self,
        process: &Process,
        meant: impl Fn(Binary, &str) -> bool,
    ) -> Vec<Binary> {
        let mut binaries = vec![ANY_BINARY];
        for path in process.paths() {
            let found = self.executables.find(path);
            binaries.extend(found.into_iter().filter(|id| meant(*id, path)));
        }
        binaries.sort_unstable();
        binaries.dedup();
        binaries
    }

    pub(super) fn bundles(&self, groups: &[Group], port: u16, binaries: &[Binary]) -> Vec<&Bundle> {
        let mut bundles = Vec::new();
        for group in groups {
            for binary in binaries {
                bundles.extend(self.bundles.get(&(*group, port, *binary)));
            }
        }
        bundles
    }
}

/// Numbers given out while the tables are made.
struct Names {
    groups: Group,
    wild: Map<String, Group>,
    binaries: Map<(String, Trust), Binary>,
    path_ids: Map<String, PathId>,
    paths: Trie<PathId>,
    said: HashSet<Said, foldhash::fast::FixedState>,
}

/// What a rule about requests says, to tell repetitions.
type Said = ((Group, u16, Binary), PathId, Option<PathId>, bool, String);

impl Names {
    fn new() -> Self {
        Self {
            groups: 0,
            wild: Map::default(),
            binaries: Map::default(),
            path_ids: Map::default(),
            paths: Trie::new(Kind::Path),
            said: HashSet::default(),
        }
    }

    fn group(&mut self) -> Group {
        self.groups += 1;
        self.groups
    }

    fn binary(&self) -> Binary {
        // 0 is any program.
        Binary::try_from(self.binaries.len() + 1).unwrap_or(Binary::MAX)
    }

    fn path(&mut self, pattern: &Pattern) -> PathId {
        if let Some(id) = self.path_ids.get(pattern.as_str()) {
            return *id;
        }
        let id = PathId::try_from(self.path_ids.len()).unwrap_or(PathId::MAX);
        self.path_ids.insert(pattern.as_str().to_owned(), id);
        self.paths.insert(pattern, id);
        id
    }
}

impl Bundle {
    fn add(
        &mut self,
        key: (Group, u16, Binary),
        site: Site,
        endpoint: &Endpoint,
        names: &mut Names,
    ) {
        self.addresses.join(&AddressRule {
            ranges: endpoint.allowed_ips.clone(),
            unrestricted: endpoint.allowed_ips.is_empty(),
            private: endpoint.private,
        });
        let Some(inspection) = endpoint.inspection.as_ref().filter(|inspection| {
            // OpenShell passes these on without a look inside.
            !endpoint.tls_skip && inspection.protocol != Protocol::Sql
        }) else {
            self.raw.get_or_insert(site);
            return;
        };
        self.inspected.get_or_insert(site);
        let requests = self.requests.get_or_insert_default();
        if !requests.protocols.contains(&inspection.protocol) {
            requests.protocols.push(inspection.protocol);
        }
        let own_path = inspection.path.as_ref().map(|path| names.path(path));
        match own_path {
            None => drop(requests.pathless.get_or_insert(site)),
            Some(path) => requests.by_path.push((path, site)),
        }
        let mut bodies = matches!(
            inspection.protocol,
            Protocol::GraphQl | Protocol::WebSocket | Protocol::JsonRpc | Protocol::Mcp
        );
        for (clauses, matchers, denies) in [
            (&mut requests.allow, &inspection.allow, false),
            (&mut requests.deny, &inspection.deny, true),
        ] {
            for (n, matcher) in (0..).zip(matchers) {
                let Matcher::Http { method, path, query } = matcher else {
                    bodies = true;
                    continue;
                };
                let path = names.path(path);
                let method = method.as_ref().map_or("*", |method| method.as_str());
                let same = (key, path, own_path, denies, format!("{method} {query:?}"));
                // A rule that says the same as another adds nothing.
                if names.said.insert(same) {
                    clauses.0.push(Clause { path, site, matcher: n, own_path, denies });
                }
            }
        }
        if bodies {
            requests.bodies.push((own_path, site));
        }
    }

    /// Brings everything into the order that lookups rely on.
    fn finish(&mut self) {
        self.addresses.ranges.sort_unstable();
        self.addresses.ranges.dedup();
        if let Some(requests) = &mut self.requests {
            requests.by_path.sort_unstable();
            requests.by_path.dedup_by_key(|(path, _)| *path);
            requests.allow.0.sort_unstable();
            requests.deny.0.sort_unstable();
        }
    }
}

impl Requests {
    /// The endpoints that could read a request with these paths.
    pub(super) fn readers(&self, paths: &[PathId]) -> impl Iterator<Item = Site> {
        let found = paths.iter().filter_map(|path| {
            let n = self.by_path.binary_search_by_key(path, |(own, _)| *own).ok()?;
            self.by_path.get(n).map(|(_, site)| *site)
        });
        found.chain(self.pathless)
    }
}

impl Clauses {
    /// The rules for a request with these paths.
    pub(super) fn find(&self, paths: &[PathId]) -> impl Iterator<Item = &Clause> {
        paths.iter().flat_map(move |path| {
            let from = self.0.partition_point(|clause| clause.path < *path);
            let list = self.0.get(from..).unwrap_or_default();
            list.iter().take_while(move |clause| clause.path == *path).filter(move |clause| {
                clause.own_path.is_none_or(|own| paths.binary_search(&own).is_ok())
            })
        })
    }
}

impl Clause {
    /// The matcher behind it.
    pub(super) fn matcher(self, inspection: &Inspection) -> Option<&Matcher> {
        let list = if self.denies { &inspection.deny } else { &inspection.allow };
        list.get(usize::try_from(self.matcher).ok()?)
    }
}
