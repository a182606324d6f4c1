//! Advice about a policy that is valid but probably not meant so: the
//! mission's list of common mistakes, and what rules quietly allow.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{
    Access, Binaries, Diagnostic, Endpoint, LandlockMode, Matcher, Origin, Policy, Rule, Severity,
};
use crate::address::{AddressClass, classify};
use crate::glob::{Kind, Pattern};
use crate::name::{HostPattern, Trust};

/// Hosts that advice knows: `KIND PATTERN` on each line.
const KNOWN_HOSTS: &str = include_str!("../../../policies/presets/known-hosts.txt");
/// Directories that no sandbox should be able to write as a whole.
const SYSTEM: [&str; 12] = [
    "/usr", "/lib", "/lib64", "/etc", "/bin", "/sbin", "/opt", "/var", "/home", "/root", "/proc",
    "/sys",
];
/// Where a sandbox can write: a program there is whatever it put there.
const WRITABLE: [&str; 6] = ["/sandbox", "/tmp", "/var/tmp", "/home", "/dev/shm", "/run"];
/// What helps against an endpoint that nobody looks into.
pub(super) const INSPECT: &str =
    "write `protocol: rest` with `access` or `rules` once the runtime inspects requests";
/// Ports of HTTP.
const HTTP_PORTS: [u16; 2] = [80, 443];

/// Everything worth a thought about `policy`, and everything that keeps a
/// container with it from starting.
pub fn lint(policy: &Policy) -> Vec<Diagnostic> {
    let mut linter = Linter { policy, known: known(), found: Vec::new() };
    linter.whole();
    for rule in &policy.rules {
        linter.rule(rule);
    }
    linter.pairs();
    let mut found = linter.found;
    found.extend(policy.advice.0.iter().cloned());
    // A container with this policy does not start.
    found.extend(policy.unenforced.0.iter().cloned());
    found.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
    found.dedup();
    found
}

fn known() -> BTreeMap<&'static str, Vec<Pattern>> {
    let mut known: BTreeMap<&str, Vec<Pattern>> = BTreeMap::new();
    for line in KNOWN_HOSTS.lines().filter(|line| !line.starts_with('#')) {
        if let Some((kind, host)) = line.split_once(' ')
            && let Ok(pattern) = Pattern::parse(host.trim(), Kind::Dotted)
        {
            known.entry(kind).or_default().push(pattern);
        }
    }
    known
}

struct Linter<'a> {
    policy: &'a Policy,
    known: BTreeMap<&'static str, Vec<Pattern>>,
    found: Vec<Diagnostic>,
}

impl Linter<'_> {
    fn say(&mut self, at: &Origin, severity: Severity, message: String, help: &str) {
        let file = if at.file.is_empty() { &self.policy.origin.0 } else { &at.file };
        self.found.push(Diagnostic {
            file: file.to_string(),
            line: at.line,
            column: 0,
            severity,
            message,
            help: help.to_owned(),
            text: String::new(),
        });
    }

    fn advise(&mut self, at: &Origin, message: String, help: &str) {
        self.say(at, Severity::Advice, message, help);
    }

    fn is(&self, kind: &str, host: &HostPattern) -> bool {
        let patterns = self.known.get(kind).map(Vec::as_slice).unwrap_or_default();
        match host {
            HostPattern::Exact(host) => patterns.iter().any(|own| own.matches(host.as_str())),
            HostPattern::Wild(pattern) => patterns
                .iter()
                .any(|own| own.as_str() == pattern.as_str() || pattern.matches(own.as_str())),
            _ => false,
        }
    }

    /// What the policy says beside rules.
    fn whole(&mut self) {
        let at = Origin::default();
        let options = &self.policy.options;
        let (pids, root) = (options.pids, options.allow_root);
        if self.policy.landlock == LandlockMode::BestEffort {
            self.advise(
                &at,
                "`best_effort` lets a container start with a weaker file-system boundary"
                    .to_owned(),
                "write `compatibility: hard_requirement`",
            );
        }
        if pids == 0 {
            self.advise(
                &at,
                "`pids: 0` lets a fork bomb take the host along".to_owned(),
                "write a limit",
            );
        }
        if pids > 1024 {
            self.advise(&at, format!("`pids: {pids}` is more than 1024"), "lower it");
        }
        if root {
            self.advise(
                &at,
                "`allow_root` lets containers run as root".to_owned(),
                "name a user under `process` instead",
            );
        }
        let broad: Vec<String> = self
            .policy
            .filesystem
            .read_write
            .iter()
            .filter(|path| SYSTEM.contains(&path.trim_end_matches('/')))
            .cloned()
            .collect();
        for path in broad {
            self.advise(
                &at,
                format!("`{path}` is writable as a whole"),
                "name the directory that needs it",
            );
        }
        let direct = options
            .said
            .get("inference")
            .and_then(|section| section.get("allow_direct"))
            .and_then(serde_json::Value::as_bool);
        if direct == Some(true) {
            self.known.remove("provider");
        }
    }

    fn rule(&mut self, rule: &Rule) {
        match &rule.binaries {
            // Whoever writes `any` means it; an omission is told at its place.
            Binaries::Any => {}
            Binaries::Listed(list) if list.is_empty() => self.advise(
                &rule.at,
                format!("rule `{}` lists no binaries and therefore matches nothing", rule.key),
                "list the programs, or write {path: \"/**\"} for any",
            ),
            Binaries::Listed(list) => {
                for pattern in list {
                    let text = pattern.as_str();
                    if text == "/**" || text == "**" {
                        self.advise(
                            &rule.at,
                            format!("`{text}` is every program"),
                            "list the programs that need it",
                        );
                    } else if *pattern.trust() == Trust::Writable {
                        self.advise(
                            &rule.at,
                            format!(
                                "whoever writes to `{text}` in the sandbox has this rule's powers"
                            ),
                            "name a digest with `sha256`, or a program in a read-only directory",
                        );
                    } else if *pattern.trust() == Trust::Start
                        && (WRITABLE.iter().any(|place| text.starts_with(place))
                            || text.starts_with("/**"))
                    {
                        self.advise(
                            &rule.at,
                            format!("`{text}` covers paths that the sandbox can write; what is written there while it runs does not count"),
                            "name a program in a read-only directory, a digest with `sha256`, or write `trust: writable`",
                        );
                    }
                }
            }
        }
        if rule.endpoints.is_empty() {
            self.advise(
                &rule.at,
                format!("rule `{}` has no endpoints", rule.key),
                "add one, or remove the rule",
            );
        }
        for endpoint in &rule.endpoints {
            self.host(endpoint);
            self.requests(endpoint);
        }
    }

    fn host(&mut self, endpoint: &Endpoint) {
        let at = &endpoint.at;
        let host = &endpoint.host;
        match host {
            HostPattern::Wild(pattern) => {
                self.advise(
                    at,
                    format!("`{pattern}` lets data out in the names themselves"),
                    "name the hosts",
                );
                let text = pattern.as_str();
                let first = text.split('.').next().unwrap_or_default();
                let public_suffix = text.split('.').count() == 3
                    && ["co", "com", "net", "org", "gov", "edu", "ac"]
                        .contains(&text.split('.').nth(1).unwrap_or_default());
                if (first.starts_with('*') && first.len() > 2) || public_suffix || text.ends_with('*') {
                    self.advise(
                        at,
                        format!("`{text}` covers names that anybody can register"),
                        "end the pattern in a domain of one owner, with its dot: *.example.com",
                    );
                }
            }
            HostPattern::Address(address) if classify(*address) == AddressClass::Never => self.say(
                at,
                Severity::Error,
                format!("`{address}` is loopback, link-local, multicast or a metadata service, and never reachable"),
                "remove it; for services of the host write `host_services`",
            ),
            HostPattern::Exact(name) if name.as_str() == "localhost" || name.as_str().ends_with(".localhost") => self.say(
                at,
                Severity::Error,
                format!("`{name}` is the sandbox itself and needs no rule"),
                "remove it; for services of the host write `host_services`",
            ),
            HostPattern::Any => self.advise(
                at,
                "an endpoint without `host` covers every name with these addresses".to_owned(),
                "name the hosts",
            ),
            _ => {}
        }
        if self.is("provider", host) && self.policy.options.said.get("inference").is_none() {
            self.advise(
                at,
                format!("`{host}` is an inference provider: a program that reaches it needs its key in the sandbox"),
                "use https://inference.local with `nemoclaw: {inference: …}`, or say `allow_direct: true` there",
            );
        }
        if self.is("cdn", host) {
            self.advise(
                at,
                format!("`{host}` is shared by many owners: what it leads to is decided by whoever asks for it"),
                "name the owner's own domain",
            );
        }
        let private = !self.policy.ours
            && matches!(host, HostPattern::Exact(_))
            && endpoint.allowed_ips.is_empty();
        if private && !self.is("api", host) && !self.is("provider", host) {
            self.advise(
                at,
                format!("`{host}` may turn out to have a private address, as OpenShell allows for names that are written out"),
                "add `nemoclaw: {}` to the file to require `private: true` for that",
            );
        }
        if endpoint.allowed_ips.iter().any(|range| {
            range.prefix_len() < if matches!(range.network(), IpAddr::V4(_)) { 16 } else { 32 }
        }) {
            self.advise(
                at,
                "`allowed_ips` holds a very wide range".to_owned(),
                "name the range that is needed",
            );
        }
    }

    fn requests(&mut self, endpoint: &Endpoint) {
        let at = &endpoint.at;
        let host = &endpoint.host;
        let Some(inspection) = &endpoint.inspection else {
            let http =
                endpoint.ports.iter().any(|port| HTTP_PORTS.contains(port)) || self.is("api", host);
            if http {
                let severity = if self.policy.options.refuse_uninspected_http {
                    Severity::Error
                } else {
                    Severity::Advice
                };
                self.say(
                    at,
                    severity,
                    format!(
                        "`{host}` usually speaks HTTP and is not inspected: every request to it is allowed"
                    ),
                    INSPECT,
                );
            }
            return;
        };
        if self.policy.options.refuse_uninspected_http && inspection.access.is_some() {
            self.say(
                at,
                Severity::Error,
                format!("`{host}` has `access` in place of rules of its own"),
                "write `rules` with the methods and paths that are needed",
            );
        }
        if inspection.audit {
            self.advise(
                at,
                format!("`enforcement: audit` lets every request to `{host}` pass"),
                "write `enforcement: enforce`",
            );
        }
        if inspection.access == Some(Access::Full) {
            self.advise(
                at,
                format!("`access: full` allows every request to `{host}`, DELETE included"),
                "write `access: read-write`, or `rules`",
            );
        }
        let deletes = inspection.allow.iter().any(|rule| {
            matches!(rule, Matcher::Http { method, path, .. }
                if method.as_ref().is_none_or(|method| method.as_str() == "DELETE") && path.as_str().ends_with("**"))
        });
        if deletes && inspection.access.is_none() {
            self.advise(
                at,
                format!("DELETE is allowed on whole trees of `{host}`"),
                "name the paths that may be deleted",
            );
        }
    }

    /// What only shows when rules are seen together.
    fn pairs(&mut self) {
        let mut raw: BTreeMap<String, Vec<(&Rule, &Endpoint)>> = BTreeMap::new();
        let policy = self.policy;
        for rule in &policy.rules {
            for endpoint in rule.endpoints.iter().filter(|endpoint| endpoint.inspection.is_none()) {
                raw.entry(endpoint.host.to_string()).or_default().push((rule, endpoint));
            }
        }
        let meet = |a: &Endpoint, b: &Endpoint| a.ports.iter().any(|port| b.ports.contains(port));
        let within = |a: &Endpoint, b: &Endpoint| a.ports.iter().all(|port| b.ports.contains(port));
        let mut told = Vec::new();
        for rule in &policy.rules {
            for endpoint in &rule.endpoints {
                // Policies with thousands of rules for one host get a sample.
                let same =
                    raw.get(&endpoint.host.to_string()).map(Vec::as_slice).unwrap_or_default();
                for (other, coverer) in same.iter().take(50) {
                    let one = std::ptr::eq(*coverer, endpoint);
                    if one || !meet(endpoint, coverer) {
                        continue;
                    }
                    if endpoint.inspection.is_some() {
                        told.push((
                            endpoint.at.clone(),
                            format!(
                                "rule `{}` inspects {}, which rule `{}` ({}) passes on untouched: for programs of both, requests are inspected",
                                rule.key, endpoint.host, other.key, coverer.at
                            ),
                            "remove one of them",
                        ));
                    } else if within(endpoint, coverer)
                        && endpoint.private == coverer.private
                        && endpoint.allowed_ips == coverer.allowed_ips
                        && covers(&other.binaries, &rule.binaries)
                        && (coverer.at.line, &other.key) < (endpoint.at.line, &rule.key)
                    {
                        told.push((
                            endpoint.at.clone(),
                            format!(
                                "rule `{}` adds nothing for {}: rule `{}` ({}) covers it",
                                rule.key, endpoint.host, other.key, coverer.at
                            ),
                            "remove one of them",
                        ));
                    }
                }
            }
        }
        for (at, message, help) in told {
            self.advise(&at, message, help);
        }
    }
}

/// Whether `wide` names every program that `narrow` names.
fn covers(wide: &Binaries, narrow: &Binaries) -> bool {
    match (wide, narrow) {
        (Binaries::Any, _) => true,
        (_, Binaries::Any) => false,
        (Binaries::Listed(wide), Binaries::Listed(narrow)) => narrow.iter().all(|own| {
            wide.iter().any(|pattern| {
                pattern == own
                    || (own.is_literal()
                        && pattern.trust() == own.trust()
                        && pattern.matches(own.as_str()))
            })
        }),
    }
}
