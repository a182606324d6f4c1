//! Endpoints that cover the same host and port must agree on how a connection
//! there is treated, or the order of rules would decide it. OpenShell refuses
//! such policies too.

use std::collections::{BTreeMap, HashMap};

use super::diagnostic::{Diagnostic, Severity};
use super::{Endpoint, Inspection, Policy, Protocol, Rule};
use crate::glob::{Kind, Pattern, Texts, Trie};
use crate::name::HostPattern;

/// Most contradictions reported.
const MAX_REPORTED: usize = 50;

/// An endpoint and the rule it belongs to.
type Site<'a> = (&'a Rule, &'a Endpoint);

/// Finds contradictions between endpoints.
///
/// # Errors
/// One finding for each pair.
pub(super) fn check(policy: &Policy) -> Result<(), Vec<Diagnostic>> {
    let sites: Vec<Site<'_>> = policy
        .rules
        .iter()
        .flat_map(|rule| rule.endpoints.iter().map(move |endpoint| (rule, endpoint)))
        .collect();
    // Where all endpoints are treated alike there is nothing to contradict.
    let Some(first) = sites.first() else { return Ok(()) };
    if sites.iter().all(|site| {
        connection_differs(first.1, site.1).is_none()
            && site.1.inspection.is_none()
            && first.1.inspection.is_none()
    }) {
        return Ok(());
    }
    let mut problems = Vec::new();
    for group in groups(&sites) {
        compare(&group, policy.ours, &mut problems);
        if problems.len() >= MAX_REPORTED {
            break;
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

/// Endpoints whose hosts overlap, group by group: those of one exact host with
/// the wildcards that cover it, and those of each pair of wildcards.
fn groups<'a>(sites: &[Site<'a>]) -> Vec<Vec<Site<'a>>> {
    let mut exact: HashMap<String, Vec<usize>> = HashMap::new();
    let mut wild: BTreeMap<&str, (&Pattern, Vec<usize>)> = BTreeMap::new();
    let mut everywhere = Vec::new();
    for (n, (_, endpoint)) in sites.iter().enumerate() {
        match &endpoint.host {
            HostPattern::Exact(host) => exact.entry(host.to_string()).or_default().push(n),
            HostPattern::Address(ip) => exact.entry(ip.to_string()).or_default().push(n),
            HostPattern::Wild(pattern) => {
                wild.entry(pattern.as_str()).or_insert((pattern, Vec::new())).1.push(n);
            }
            HostPattern::Any => everywhere.push(n),
            HostPattern::Never(_) => {}
        }
    }
    let mut trie = Trie::new(Kind::Dotted);
    for (pattern, own) in wild.values() {
        for n in own {
            trie.insert(pattern, *n);
        }
    }
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (host, mut own) in exact {
        own.extend(trie.find(&host));
        own.extend(&everywhere);
        groups.push(own);
    }
    let treatments = treatments(sites);
    // Wildcards of different domains cannot meet: only those with one suffix,
    // or without a literal one, are compared.
    let mut by_suffix: BTreeMap<Option<String>, Vec<&(&Pattern, Vec<usize>)>> = BTreeMap::new();
    for entry in wild.values() {
        by_suffix.entry(suffix(entry.0.as_str())).or_default().push(entry);
    }
    let open: Vec<&(&Pattern, Vec<usize>)> = by_suffix.remove(&None).unwrap_or_default();
    let mut buckets: Vec<Vec<&(&Pattern, Vec<usize>)>> = by_suffix.into_values().collect();
    buckets.push(Vec::new());
    for bucket in &mut buckets {
        let own = bucket.len();
        bucket.extend(&open);
        for (i, (pattern, members)) in bucket.iter().enumerate() {
            // Pairs of open ones are compared once, in the last, empty bucket.
            if i >= own && own > 0 {
                break;
            }
            groups.push(members.iter().chain(&everywhere).copied().collect());
            for (other, others) in bucket.iter().skip(i + 1) {
                // The automata only where there is something to contradict.
                let mut both = members.iter().chain(others).filter_map(|n| treatments.get(*n));
                let alike = both.next().is_none_or(|first| both.all(|own| own == first));
                if !alike && pattern.overlaps(other, Texts::Hosts) {
                    groups.push(members.iter().chain(others).copied().collect());
                }
            }
        }
    }
    groups.push(everywhere);
    groups
        .into_iter()
        .filter(|group| group.len() > 1)
        .map(|mut group| {
            group.sort_unstable();
            group.dedup();
            group.into_iter().filter_map(|n| sites.get(n).copied()).collect()
        })
        .collect()
}

/// The last two labels where they are literal.
fn suffix(pattern: &str) -> Option<String> {
    let mut labels = pattern.rsplit('.');
    let (last, before) = (labels.next()?, labels.next()?);
    let literal = |label: &str| !label.contains(['*', '?', '[', ']', '{', '}', ',']);
    (literal(last) && literal(before)).then(|| format!("{before}.{last}"))
}

fn compare(group: &[Site<'_>], ours: bool, problems: &mut Vec<Diagnostic>) {
    let mut by_port: BTreeMap<u16, Vec<Site<'_>>> = BTreeMap::new();
    for site in group {
        for port in &site.1.ports {
            by_port.entry(*port).or_default().push(*site);
        }
    }
    for (port, sites) in by_port {
        // Endpoints by the thousand on one host are usually treated alike.
        if sites.first().is_none_or(|first| sites.iter().all(|own| treated_alike(first.1, own.1))) {
            continue;
        }
        // One representative for each treatment of each path.
        let mut kinds: Vec<Site<'_>> = Vec::new();
        for site in sites {
            let contradiction = kinds.iter().find_map(|own| {
                connection_differs(own.1, site.1)
                    .or_else(|| requests_differ(own.1, site.1, ours))
                    .map(|what| (*own, what))
            });
            if let Some((other, what)) = contradiction {
                problems.push(report(other, site, port, what));
                if problems.len() >= MAX_REPORTED {
                    return;
                }
            }
            if !kinds.iter().any(|own| alike(own.1, site.1)) {
                kinds.push(site);
            }
        }
    }
}

/// How an endpoint reads requests, without what it allows.
fn reading(endpoint: &Endpoint) -> Option<Inspection> {
    endpoint.inspection.as_ref().map(|inspection| Inspection {
        allow: Vec::new(),
        deny: Vec::new(),
        access: None,
        path: None,
        registry: None,
        all_mcp_methods: false,
        ..*inspection
    })
}

fn paths_meet(a: &Inspection, b: &Inspection) -> bool {
    match (&a.path, &b.path) {
        (Some(a), Some(b)) => a.overlaps(b, Texts::RequestPaths),
        _ => true,
    }
}

fn alike(a: &Endpoint, b: &Endpoint) -> bool {
    let path = |endpoint: &Endpoint| {
        endpoint.inspection.as_ref().and_then(|inspection| inspection.path.clone())
    };
    treated_alike(a, b) && path(a) == path(b)
}

/// Whether it does not matter which of two endpoints decides how a connection
/// and its requests are treated.
fn treated_alike(a: &Endpoint, b: &Endpoint) -> bool {
    connection_differs(a, b).is_none() && reading(a) == reading(b) && a.credentials == b.credentials
}

/// A number for each endpoint, equal where they are treated alike.
fn treatments(sites: &[Site<'_>]) -> Vec<usize> {
    let mut kinds: Vec<&Endpoint> = Vec::new();
    sites
        .iter()
        .map(|(_, endpoint)| {
            kinds.iter().position(|own| treated_alike(own, endpoint)).unwrap_or_else(|| {
                kinds.push(endpoint);
                kinds.len() - 1
            })
        })
        .collect()
}

/// What two endpoints say differently about connections.
fn connection_differs(a: &Endpoint, b: &Endpoint) -> Option<&'static str> {
    if a.tls_skip != b.tls_skip {
        return Some("tls");
    }
    let ranges = |endpoint: &Endpoint| {
        let mut ranges = endpoint.allowed_ips.clone();
        ranges.sort_unstable();
        ranges.dedup();
        ranges
    };
    (ranges(a) != ranges(b)).then_some("allowed_ips")
}

/// What two endpoints say differently about requests that both would read.
fn requests_differ(a: &Endpoint, b: &Endpoint, ours: bool) -> Option<&'static str> {
    let (one, other) = (a.inspection.as_ref()?, b.inspection.as_ref()?);
    let rank = |inspection: &Inspection| inspection.path.as_ref().map_or(0, Pattern::specificity);
    let same_rank = match (&one.path, &other.path) {
        (Some(_), Some(_)) => rank(one) == rank(other),
        (None, None) => true,
        (Some(path), None) | (None, Some(path)) => path.specificity() == 0,
    };
    // The automata only where there is something to contradict.
    let unequal = reading(a) != reading(b) || a.credentials != b.credentials;
    let meet = same_rank && unequal && paths_meet(one, other);
    let differs = one.protocol != other.protocol;
    let rest_first = (one.protocol == Protocol::Rest && rank(one) > rank(other))
        || (other.protocol == Protocol::Rest && rank(other) > rank(one));
    if ours && differs && !meet && rest_first && paths_meet(one, other) {
        return Some("protocol: the more specific path would hide bodies that the other reads");
    }
    if !meet {
        return None;
    }
    let checks = [
        ("protocol", one.protocol != other.protocol),
        ("enforcement", one.audit != other.audit),
        ("allow_encoded_slash", one.encoded_slash != other.encoded_slash),
        ("the body limit", one.max_body_bytes != other.max_body_bytes),
        ("mcp.strict_tool_names", one.strict_tool_names != other.strict_tool_names),
        ("credential handling", {
            let rid = |endpoint: &Endpoint| super::Credentials {
                allow_uninspected: false,
                ..endpoint.credentials.clone()
            };
            rid(a) != rid(b)
        }),
    ];
    checks.into_iter().find_map(|(what, differs)| differs.then_some(what))
}

fn report(a: Site<'_>, b: Site<'_>, port: u16, what: &str) -> Diagnostic {
    Diagnostic {
        file: b.1.at.file.to_string(),
        line: b.1.at.line,
        column: 0,
        severity: Severity::Error,
        message: format!(
            "the rules `{}` ({}) and `{}` both cover {} on port {port} and disagree on {what}",
            a.0.key, a.1.at, b.0.key, b.1.host
        ),
        help: format!("make {what} equal, or the hosts, ports or paths distinct"),
        text: String::new(),
    }
}
