//! Why a decision is what it is, and the smallest change that would make it
//! the other.

use std::sync::Arc;

use serde::Serialize;

use super::request::may_deny;
use super::{Caller, Decision, Destination, Engine, Intent, Reason, remedy};
use crate::glob::{Kind, Pattern};
use crate::http::Request;
use crate::name::{BinaryPattern, HostPattern};
use crate::policy::{Access, Binaries, Endpoint, Inspection, Matcher, Policy, print};

/// Most endpoints described.
const MAX_CONSIDERED: usize = 20;

/// Why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// `allow`, `inspect` or `deny`.
    pub decision: &'static str,
    /// The stable code of a refusal.
    pub reason: Option<&'static str>,
    /// The reason as a sentence.
    pub detail: Option<&'static str>,
    /// The rule that decided, or the nearest one.
    pub rule: Option<String>,
    /// What the rules would have refused, where they only audit.
    pub audited: Option<&'static str>,
    /// Endpoints that have to do with the intent, the nearest first.
    pub considered: Vec<Considered>,
    /// The smallest change to the policy that makes the decision the other.
    pub change: Vec<String>,
}

/// How far one endpoint fits an intent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Considered {
    /// The rule's key.
    pub rule: String,
    /// Where the endpoint stands.
    pub place: String,
    /// Its host as policy names it.
    pub host: String,
    /// Whether it names the host.
    pub host_fits: bool,
    /// Whether it names the port.
    pub port_fits: bool,
    /// Whether the rule names the program.
    pub binary_fits: bool,
}

/// A change to a policy.
#[derive(Debug, Clone)]
enum Edit {
    AddBinary { rule: usize, path: String },
    AddPort { rule: usize, endpoint: usize, port: u16 },
    AddAllow { rule: usize, endpoint: usize, matcher: Matcher },
    AddDeny { rule: usize, endpoint: usize, matcher: Matcher },
    RemoveDeny { rule: usize, endpoint: usize, matcher: usize },
    RemovePort { rule: usize, endpoint: usize, port: u16 },
}

/// Explains the decision about `intent`.
pub fn explain(engine: &Engine, intent: &Intent, caller: &Caller) -> Explanation {
    let decision = engine.decide(intent, caller);
    let considered = considered(engine.policy(), intent, caller);
    let (word, reason, rule, audited) = match &decision {
        Decision::Allow(permit) => (
            "allow",
            None,
            Some(permit.rule().to_string()),
            permit.audited().map(|denial| denial.reason.code()),
        ),
        Decision::Inspect(inspect) => ("inspect", None, Some(inspect.rule.to_string()), None),
        Decision::Deny(denial) => {
            ("deny", Some(denial.reason), denial.nearest.as_ref().map(ToString::to_string), None)
        }
    };
    let change = match &decision {
        Decision::Inspect(_) => Vec::new(),
        Decision::Allow(permit) if permit.audited().is_some() => {
            vec![format!("at {} write `enforcement: enforce`", permit.rule())]
        }
        Decision::Allow(_) => refuse(engine, intent, caller),
        Decision::Deny(denial) => allow(engine, intent, caller, denial.reason),
    };
    Explanation {
        decision: word,
        reason: reason.map(Reason::code),
        detail: reason.map(Reason::sentence),
        rule,
        audited,
        considered,
        change,
    }
}

fn host_fits(endpoint: &Endpoint, destination: &Destination) -> bool {
    match destination {
        Destination::Host(host) => endpoint.host.matches(host),
        Destination::Address { address, names } => {
            endpoint.host == HostPattern::Address(*address)
                || endpoint.host == HostPattern::Any
                || names.iter().any(|name| endpoint.host.matches(name))
        }
    }
}

fn binary_fits(binaries: &Binaries, caller: &Caller) -> bool {
    match binaries {
        Binaries::Any => true,
        Binaries::Listed(list) => {
            !caller.holders.is_empty()
                && caller.holders.iter().all(|holder| {
                    holder.paths().any(|path| list.iter().any(|pattern| pattern.matches(path)))
                })
        }
    }
}

fn considered(policy: &Policy, intent: &Intent, caller: &Caller) -> Vec<Considered> {
    let mut list: Vec<Considered> = Vec::new();
    for rule in &policy.rules {
        let binary_fits = binary_fits(&rule.binaries, caller);
        for endpoint in &rule.endpoints {
            let host_fits = host_fits(endpoint, &intent.destination);
            if host_fits {
                list.push(Considered {
                    rule: rule.key.to_string(),
                    place: endpoint.at.to_string(),
                    host: endpoint.host.to_string(),
                    host_fits,
                    port_fits: endpoint.ports.contains(&intent.port),
                    binary_fits,
                });
            }
        }
    }
    list.sort_by_key(|own| (!own.port_fits, !own.binary_fits, own.rule.clone()));
    list.truncate(MAX_CONSIDERED);
    list
}

/// The places of endpoints that fit a predicate.
fn places(policy: &Policy, fits: impl Fn(usize, &Endpoint) -> bool) -> Vec<(usize, usize)> {
    let mut places = Vec::new();
    for (r, rule) in policy.rules.iter().enumerate() {
        for (e, endpoint) in rule.endpoints.iter().enumerate() {
            if fits(r, endpoint) {
                places.push((r, e));
            }
        }
    }
    places
}

/// The smallest change that allows what is refused: tried one by one, those
/// that work are told. Mostly it is one.
fn allow(engine: &Engine, intent: &Intent, caller: &Caller, reason: Reason) -> Vec<String> {
    let mut policy = engine.policy().clone();
    let mut told = Vec::new();
    let mut now = reason;
    'steps: for _ in 0..MAX_CONSIDERED {
        for edit in edits(&policy, intent, caller, now).into_iter().take(MAX_CONSIDERED * 4) {
            let Some(edited) = edit.apply(&policy) else { continue };
            let tried = Engine::new(edited.clone(), engine.aliases.clone());
            let after = match tried.decide(intent, caller) {
                Decision::Deny(denial) => Some(denial.reason),
                _ => None,
            };
            // Several deny rules may cover one request.
            if after != Some(now) || matches!(edit, Edit::RemoveDeny { .. }) {
                told.push(edit.describe(&policy));
                policy = edited;
                match after {
                    Some(reason) => now = reason,
                    None => return told,
                }
                continue 'steps;
            }
        }
        break;
    }
    remedy(Some(engine.policy()), intent, caller, reason)
        .map(|rule| format!("add under network_policies: {rule}"))
        .into_iter()
        .collect()
}

/// Changes that could help against a refusal, the smallest first.
fn edits(policy: &Policy, intent: &Intent, caller: &Caller, reason: Reason) -> Vec<Edit> {
    let rule_fits =
        |r: usize| policy.rules.get(r).is_some_and(|rule| binary_fits(&rule.binaries, caller));
    let reaches = |endpoint: &Endpoint| {
        host_fits(endpoint, &intent.destination) && endpoint.ports.contains(&intent.port)
    };
    let mut edits: Vec<Edit> = Vec::new();
    match reason {
        Reason::RequestDenied => {
            for (rule, endpoint) in places(policy, |r, own| rule_fits(r) && reaches(own)) {
                let list = inspection(policy, rule, endpoint).map(|own| own.deny.as_slice());
                for (matcher, deny) in list.unwrap_or_default().iter().enumerate() {
                    if intent.request.as_ref().is_none_or(|request| may_deny(deny, request)) {
                        edits.push(Edit::RemoveDeny { rule, endpoint, matcher });
                    }
                }
            }
        }
        Reason::RequestNotAllowed => {
            let matcher = intent.request.as_ref().and_then(matcher);
            for (rule, endpoint) in places(policy, |r, own| rule_fits(r) && reaches(own)) {
                edits.extend(matcher.clone().map(|matcher| Edit::AddAllow {
                    rule,
                    endpoint,
                    matcher,
                }));
            }
        }
        Reason::BinaryNotAllowed => {
            let paths = caller.holders.iter().map(|holder| &holder.binary);
            for (rule, _) in places(policy, |_, endpoint| reaches(endpoint)) {
                edits.extend(
                    paths.clone().map(|path| Edit::AddBinary { rule, path: super::program(path) }),
                );
            }
        }
        Reason::NoEndpoint => {
            for (rule, endpoint) in
                places(policy, |r, own| rule_fits(r) && host_fits(own, &intent.destination))
            {
                edits.push(Edit::AddPort { rule, endpoint, port: intent.port });
            }
        }
        _ => {}
    }
    edits
}

/// The changes that together refuse what is allowed.
fn refuse(engine: &Engine, intent: &Intent, caller: &Caller) -> Vec<String> {
    let mut policy = engine.policy().clone();
    let mut told = Vec::new();
    for _ in 0..MAX_CONSIDERED {
        let tried = Engine::new(policy.clone(), engine.aliases.clone());
        if matches!(tried.decide(intent, caller), Decision::Deny(_)) {
            return told;
        }
        let own = places(&policy, |r, endpoint| {
            policy.rules.get(r).is_some_and(|rule| binary_fits(&rule.binaries, caller))
                && host_fits(endpoint, &intent.destination)
                && endpoint.ports.contains(&intent.port)
        });
        let denying = own.iter().find_map(|(rule, endpoint)| {
            let inspected = inspection(&policy, *rule, *endpoint).is_some_and(|own| !own.audit);
            let matcher = intent.request.as_ref().and_then(matcher).filter(|_| inspected)?;
            Some(Edit::AddDeny { rule: *rule, endpoint: *endpoint, matcher })
        });
        let removing = own.first().map(|(rule, endpoint)| Edit::RemovePort {
            rule: *rule,
            endpoint: *endpoint,
            port: intent.port,
        });
        let edit = if told.is_empty() { denying.or(removing) } else { removing };
        let Some(edit) = edit else { break };
        let Some(edited) = edit.apply(&policy) else { break };
        told.push(edit.describe(&policy));
        policy = edited;
    }
    told
}

fn inspection(policy: &Policy, rule: usize, endpoint: usize) -> Option<&Inspection> {
    policy.rules.get(rule)?.endpoints.get(endpoint)?.inspection.as_ref()
}

/// A rule for just this request.
fn matcher(request: &Request) -> Option<Matcher> {
    if request.content != crate::http::Content::Opaque {
        return None;
    }
    Some(Matcher::Http {
        method: Some(request.method.clone()),
        path: Pattern::parse(&super::literal(request.target.path()), Kind::Path).ok()?,
        query: std::collections::BTreeMap::new(),
    })
}

impl Edit {
    fn place(&self) -> (usize, Option<usize>) {
        match self {
            Self::AddBinary { rule, .. } => (*rule, None),
            Self::AddPort { rule, endpoint, .. }
            | Self::AddAllow { rule, endpoint, .. }
            | Self::AddDeny { rule, endpoint, .. }
            | Self::RemoveDeny { rule, endpoint, .. }
            | Self::RemovePort { rule, endpoint, .. } => (*rule, Some(*endpoint)),
        }
    }

    fn apply(&self, policy: &Policy) -> Option<Policy> {
        let mut policy = policy.clone();
        let (r, e) = self.place();
        let rule = policy.rules.get_mut(r)?;
        if let Self::AddBinary { path, .. } = self {
            let Binaries::Listed(list) = &mut rule.binaries else { return None };
            list.push(BinaryPattern::parse(path).ok()?);
            return Some(policy);
        }
        let endpoint = rule.endpoints.get_mut(e?)?;
        match self {
            Self::AddBinary { .. } => {}
            Self::AddPort { port, .. } => {
                endpoint.ports.push(*port);
                endpoint.ports.sort_unstable();
            }
            Self::RemovePort { port, .. } => endpoint.ports.retain(|own| own != port),
            Self::AddAllow { matcher, .. } => {
                let inspection = endpoint.inspection.as_mut()?;
                inspection.access = None;
                inspection.allow.push(matcher.clone());
            }
            Self::AddDeny { matcher, .. } => {
                endpoint.inspection.as_mut()?.deny.push(matcher.clone());
            }
            Self::RemoveDeny { matcher, .. } => {
                drop(endpoint.inspection.as_mut()?.deny.drain(*matcher..=*matcher));
            }
        }
        Some(policy)
    }

    fn describe(&self, policy: &Policy) -> String {
        let (r, e) = self.place();
        let rule = policy.rules.get(r);
        let endpoint = e.and_then(|e| rule?.endpoints.get(e));
        let key = rule.map_or_else(|| Arc::from("?"), |rule| Arc::clone(&rule.key));
        let at = endpoint.map_or_else(
            || rule.map_or_else(String::new, |rule| rule.at.to_string()),
            |endpoint| endpoint.at.to_string(),
        );
        let host = endpoint.map_or_else(String::new, |endpoint| endpoint.host.to_string());
        let inspection = endpoint.and_then(|endpoint| endpoint.inspection.as_ref());
        match self {
            Self::AddBinary { path, .. } => {
                let path = serde_json::Value::from(path.as_str());
                format!("in rule `{key}` ({at}) add to binaries: {{path: {path}}}")
            }
            Self::AddPort { port, .. } => {
                format!("in rule `{key}` ({at}) add port {port} to the endpoint {host}")
            }
            Self::RemovePort { port, .. } => {
                format!("in rule `{key}` ({at}) remove port {port} from the endpoint {host}")
            }
            Self::AddAllow { matcher, .. } => {
                let written = match inspection.and_then(|own| own.access) {
                    Some(Access::ReadOnly) => " (write `access: read-only` out as rules)",
                    Some(_) => " (write `access` out as rules)",
                    None => "",
                };
                let rule = print::matcher(matcher);
                format!("in rule `{key}` ({at}) add to rules of {host}: {{allow: {rule}}}{written}")
            }
            Self::AddDeny { matcher, .. } => {
                let rule = print::matcher(matcher);
                format!("in rule `{key}` ({at}) add to deny_rules of {host}: {rule}")
            }
            Self::RemoveDeny { matcher, .. } => {
                let rule = inspection
                    .and_then(|own| own.deny.get(*matcher))
                    .map_or_else(|| "?".to_owned(), |own| print::matcher(own).to_string());
                format!("in rule `{key}` ({at}) remove from deny_rules of {host}: {rule}")
            }
        }
    }
}
