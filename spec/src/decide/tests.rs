use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;
use crate::http::{Content, GraphQl, Method, Target};
use crate::name::HostPattern;

const POLICY: &str = "
version: 1
nemoclaw: {}
network_policies:
  web:
    endpoints:
      - {host: api.example.com, port: 443}
      - {host: '*.cdn.example.com', ports: [80, 443]}
      - {host: 203.0.113.9, port: 5432}
    binaries: [{path: /usr/bin/curl}, {path: '/usr/lib/git-core/*'}]
  inner:
    endpoints: [{host: db.corp.example, port: 5432, allowed_ips: [10.0.0.0/8]}]
    binaries: any
  lan:
    endpoints: [{host: lan.example.com, port: 80, private: true}]
";

fn engine(text: &str) -> Engine {
    Engine::new(Policy::parse(text, "test.yaml").unwrap(), HashMap::new())
}

fn to(host: &str, port: u16) -> Intent {
    Intent::connect(Destination::Host(Host::parse(host).unwrap()), port)
}

fn by(binary: &str, ancestors: &[&str]) -> Caller {
    Caller {
        holders: vec![Process::new(
            binary.to_owned(),
            ancestors.iter().map(ToString::to_string).collect(),
        )],
    }
}

fn reason(decision: Decision) -> Option<Reason> {
    match decision {
        Decision::Allow(_) | Decision::Inspect(_) => None,
        Decision::Deny(denial) => Some(denial.reason),
    }
}

fn permit(decision: Decision) -> Permit {
    match decision {
        Decision::Allow(permit) => permit,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_listed_program_reaches_a_listed_host() {
    let engine = engine(POLICY);
    let curl = by("/usr/bin/curl", &["/usr/bin/bash"]);
    assert_eq!(reason(engine.decide(&to("API.example.com.", 443), &curl)), None);
    assert_eq!(reason(engine.decide(&to("a.cdn.example.com", 80), &curl)), None);
    assert_eq!(reason(engine.decide(&to("api.example.com", 80), &curl)), Some(Reason::NoEndpoint));
    assert_eq!(reason(engine.decide(&to("evil.test", 443), &curl)), Some(Reason::NoEndpoint));
    let permit = permit(engine.decide(&to("api.example.com", 443), &curl));
    assert_eq!(permit.rule().to_string(), "web (test.yaml:7)");
}

#[test]
fn the_program_or_an_ancestor_must_be_listed() {
    let engine = engine(POLICY);
    let intent = to("api.example.com", 443);
    assert_eq!(
        reason(engine.decide(&intent, &by("/usr/bin/wget", &[]))),
        Some(Reason::BinaryNotAllowed)
    );
    assert_eq!(reason(engine.decide(&intent, &by("/bin/x", &["/usr/bin/curl"]))), None);
    assert_eq!(reason(engine.decide(&intent, &by("/usr/lib/git-core/git-remote-http", &[]))), None);
    assert_eq!(reason(engine.decide(&intent, &Caller::default())), Some(Reason::CallerUnknown));
}

#[test]
fn every_holder_must_be_listed() {
    let engine = engine(POLICY);
    let mut caller = by("/usr/bin/curl", &[]);
    caller.holders.push(Process::new("/tmp/evil".to_owned(), vec![]));
    assert_eq!(
        reason(engine.decide(&to("api.example.com", 443), &caller)),
        Some(Reason::BinaryNotAllowed)
    );
}

#[test]
fn a_program_that_has_changed_is_none_that_policy_names() {
    let engine = engine(POLICY);
    let changed = format!("{CHANGED}/usr/bin/curl");
    let asked = to("api.example.com", 443);
    for caller in [by(&changed, &[]), by("/usr/bin/sh", &[&changed])] {
        let decision = engine.decide(&asked, &caller);
        assert_eq!(reason(decision), Some(Reason::BinaryChanged));
        assert_eq!(remedy(None, &asked, &caller, Reason::BinaryChanged), None);
    }
    let elsewhere = to("unlisted.example", 443);
    let decision = engine.decide(&elsewhere, &by(&changed, &[]));
    assert_eq!(reason(decision), Some(Reason::NoEndpoint));
}

#[test]
fn a_symbolic_link_in_policy_means_its_target() {
    let policy = Policy::parse(POLICY, "test.yaml").unwrap();
    let aliases = HashMap::from([("/usr/bin/curl".to_owned(), "/opt/curl-8".to_owned())]);
    let engine = Engine::new(policy, aliases);
    assert_eq!(reason(engine.decide(&to("api.example.com", 443), &by("/opt/curl-8", &[]))), None);
}

#[test]
fn addresses_are_checked_after_resolution() {
    let engine = engine(POLICY);
    let curl = by("/usr/bin/curl", &[]);
    let check = |host: &str, port, ip: &str| {
        permit(engine.decide(&to(host, port), &curl)).check_address(ip.parse().unwrap())
    };
    assert_eq!(check("api.example.com", 443, "93.184.216.34"), Ok(()));
    assert_eq!(check("api.example.com", 443, "10.0.0.1"), Err(Reason::AddressPrivate));
    assert_eq!(check("api.example.com", 443, "127.0.0.1"), Err(Reason::AddressNever));
    assert_eq!(check("api.example.com", 443, "::ffff:169.254.169.254"), Err(Reason::AddressNever));
    assert_eq!(check("db.corp.example", 5432, "10.1.2.3"), Ok(()));
    assert_eq!(check("db.corp.example", 5432, "11.1.2.3"), Err(Reason::AddressNotListed));
    assert_eq!(check("lan.example.com", 80, "192.168.1.1"), Ok(()));
    assert_eq!(check("lan.example.com", 80, "169.254.169.254"), Err(Reason::AddressNever));
}

#[test]
fn literal_addresses_need_a_rule_of_their_own() {
    let engine = engine(POLICY);
    let curl = by("/usr/bin/curl", &[]);
    let at = |ip: &str, port| {
        let address = ip.parse().unwrap();
        Intent::connect(Destination::Address { address, names: vec![] }, port)
    };
    assert_eq!(reason(engine.decide(&at("203.0.113.9", 5432), &curl)), None);
    assert_eq!(reason(engine.decide(&at("::ffff:203.0.113.9", 5432), &curl)), None);
    assert_eq!(reason(engine.decide(&at("203.0.113.10", 5432), &curl)), Some(Reason::NoEndpoint));
    assert_eq!(
        reason(engine.decide(&at("169.254.169.254", 80), &curl)),
        Some(Reason::AddressNever)
    );
}

#[test]
fn the_remedy_is_valid_policy_and_flips_the_decision() {
    let hostile = "/tmp/a\"}], binaries: any #";
    for (intent, caller) in [
        (to("new.example.com", 8443), by("/usr/bin/wget", &[])),
        (to("new.example.com", 8443), by(hostile, &[])),
    ] {
        let yaml = format!(
            "version: 1\nnemoclaw: {{}}\nnetwork_policies:\n  {}\n",
            remedy(None, &intent, &caller, Reason::NoEndpoint).unwrap()
        );
        let engine = engine(&yaml);
        assert_eq!(reason(engine.decide(&intent, &caller)), None, "{yaml}");
        assert!(reason(engine.decide(&intent, &by("/usr/bin/other", &[]))).is_some(), "{yaml}");
    }
}

fn request(method: &str, target: &str, content: Content) -> Intent {
    let mut intent = to("api.example.com", 443);
    intent.request = Some(Request {
        method: Method::parse(method).unwrap(),
        target: Target::parse(target).unwrap(),
        content,
    });
    intent
}

fn rest(endpoints: &str) -> Engine {
    engine(&format!(
        "version: 1\nnemoclaw: {{}}\nnetwork_policies: {{web: {{endpoints: [{endpoints}], binaries: any}}}}\n"
    ))
}

/// What a red team got past the engine once.
#[test]
fn a_deny_rule_is_not_dodged_by_spelling() {
    let engine = rest(
        "{host: api.example.com, port: 443, protocol: rest, access: full, allow_encoded_slash: true, deny_rules: [{method: POST, path: '/admin/**'}, {method: POST, path: /top}, {method: POST, path: /q, query: {force: '*'}}]}",
    );
    let caller = by("/usr/bin/curl", &[]);
    for target in [
        "/admin/x",
        "/admin%2Fx",
        "/admin%2fdelete/1",
        "/top",
        "/top/",
        "/top/.",
        "/q?force=1.0",
        "/q?force=",
    ] {
        let asked = request("POST", target, Content::Opaque);
        assert_eq!(reason(engine.decide(&asked, &caller)), Some(Reason::RequestDenied), "{target}");
    }
    let other = request("POST", "/other", Content::Opaque);
    assert_eq!(reason(engine.decide(&other, &caller)), None);
    assert!(Target::parse("/x/..%5Cadmin/x").is_err());
}

#[test]
fn an_endpoint_that_audits_silences_none_that_enforces() {
    let engine = rest(
        "{host: api.example.com, port: 443, protocol: rest, access: read-only, deny_rules: [{method: GET, path: '/secret/**'}]}, {host: '*.example.com', port: 443, path: '/**', protocol: rest, enforcement: audit, access: read-only}",
    );
    let caller = by("/usr/bin/curl", &[]);
    for (method, target) in [("GET", "/secret/x"), ("DELETE", "/x")] {
        let asked = request(method, target, Content::Opaque);
        assert!(reason(engine.decide(&asked, &caller)).is_some(), "{method} {target}");
    }
}

#[test]
fn a_body_is_read_as_its_endpoint_demands_or_refused() {
    let engine = rest(
        "{host: api.example.com, port: 443, path: /graphql, protocol: graphql, access: read-only}, {host: api.example.com, port: 443, protocol: rest, access: read-write}",
    );
    let caller = by("/usr/bin/curl", &[]);
    for asked in [
        request("POST", "/graphql", Content::Opaque),
        request("GET", "/graphql?query=mutation%7Bx%7D", Content::Opaque),
        request("POST", "/x", Content::GraphQl(GraphQl::default())),
    ] {
        assert_eq!(reason(engine.decide(&asked, &caller)), Some(Reason::Malformed), "{asked:?}");
    }
}

#[test]
fn a_name_from_the_hosts_file_opens_no_private_address() {
    let engine = engine(POLICY);
    let address = |ip: &str, names: &[&str], port| {
        let names = names.iter().map(|name| Host::parse(name).unwrap()).collect();
        Intent::connect(Destination::Address { address: ip.parse().unwrap(), names }, port)
    };
    let curl = by("/usr/bin/curl", &[]);
    let asked = address("10.0.0.5", &["api.example.com"], 443);
    assert_eq!(reason(engine.decide(&asked, &curl)), Some(Reason::AddressPrivate));
    let asked = address("11.1.2.3", &["db.corp.example"], 5432);
    assert_eq!(reason(engine.decide(&asked, &curl)), Some(Reason::AddressNotListed));
    let asked = address("10.1.2.3", &["db.corp.example"], 5432);
    assert_eq!(reason(engine.decide(&asked, &curl)), None);
}

#[test]
fn a_program_cannot_name_itself_a_pattern() {
    let intent = to("new.example.com", 443);
    let yaml = remedy(None, &intent, &by("/tmp/**", &[]), Reason::NoEndpoint).unwrap();
    let engine = engine(&format!("version: 1\nnemoclaw: {{}}\nnetwork_policies: {{{yaml}}}\n"));
    assert_eq!(reason(engine.decide(&intent, &by("/tmp/**", &[]))), None);
    assert!(reason(engine.decide(&intent, &by("/tmp/evil/other", &[]))).is_some());
}

fn hosts() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a.example", "b.example", "x.a.example", "c.test"])
        .prop_map(str::to_owned)
}

fn rules() -> impl Strategy<Value = Vec<(String, u16, String)>> {
    let port = prop::sample::select(vec![80_u16, 443]);
    let binary =
        prop::sample::select(vec!["/usr/bin/curl", "/usr/bin/*", "/**"]).prop_map(str::to_owned);
    prop::collection::vec((hosts(), port, binary), 0..6)
}

fn yaml(rules: &[(String, u16, String)]) -> String {
    let mut text = String::from("version: 1\nnemoclaw: {}\nnetwork_policies:\n");
    for (n, (host, port, binary)) in rules.iter().enumerate() {
        let rule = format!(
            "{{endpoints: [{{host: {host}, port: {port}}}], binaries: [{{path: '{binary}'}}]}}"
        );
        writeln!(text, "  r{n}: {rule}").unwrap();
    }
    if rules.is_empty() {
        text.push_str("  {}\n");
    }
    text
}

proptest! {
    #[test]
    fn decisions_agree_with_a_naive_reading(
        rules in rules(), host in hosts(), port in prop::sample::select(vec![80_u16, 443, 22]),
        binary in prop::sample::select(vec!["/usr/bin/curl", "/usr/bin/x/y", "/opt/z"])
    ) {
        let engine = engine(&yaml(&rules));
        let allowed = reason(engine.decide(&to(&host, port), &by(binary, &[]))).is_none();
        let expected = rules.iter().any(|(h, p, b)| {
            let fits = match b.as_str() {
                "/**" => true,
                "/usr/bin/*" => binary == "/usr/bin/curl",
                exact => exact == binary,
            };
            *h == host && *p == port && fits
        });
        prop_assert_eq!(allowed, expected);
    }

    #[test]
    fn more_rules_never_deny_more(rules in rules(), extra in rules(), host in hosts()) {
        let before = engine(&yaml(&rules));
        let mut all = rules;
        all.extend(extra);
        let after = engine(&yaml(&all));
        let caller = by("/usr/bin/curl", &[]);
        for port in [80, 443] {
            if reason(before.decide(&to(&host, port), &caller)).is_none() {
                prop_assert!(reason(after.decide(&to(&host, port), &caller)).is_none());
            }
        }
    }

    #[test]
    fn hosts_never_panic(text in "\\PC{0,300}") {
        let _parsed = Host::parse(&text);
        let _pattern = HostPattern::parse(&text);
    }

    #[test]
    fn policies_never_panic(text in "\\PC{0,400}") {
        let _parsed = Policy::parse(&text, "fuzz");
    }
}

#[test]
fn a_late_file_counts_where_it_is_trusted_or_known_by_its_digest() {
    let text = |mark: &str, digest: &str| {
        format!(
            "version: 1\n{mark}network_policies:\n  start: {{endpoints: [{{host: a.example, port: 1}}], binaries: [{{path: '/opt/*'}}, {{path: /opt/deep/one}}]}}\n  writable: {{endpoints: [{{host: b.example, port: 1}}], binaries: [{{path: '/opt/*', trust: writable}}]}}\n  pinned: {{endpoints: [{{host: c.example, port: 1}}], binaries: [{{path: '/opt/*', sha256: '{digest}'}}]}}\n"
        )
    };
    let (good, other) = ("ab".repeat(32), "cd".repeat(32));
    let ours = engine(&text("nemoclaw: {}\n", &good.to_uppercase()));
    let caller = |late: bool, digest: &str| {
        let mut caller = by("/opt/tool", &["/usr/bin/sh"]);
        let holder = &mut caller.holders[0];
        if late {
            holder.late.insert("/opt/tool".to_owned());
        }
        holder.digests.insert("/opt/tool".to_owned(), digest.to_owned());
        caller
    };
    let asked = |engine: &Engine, host: &str, late: bool, digest: &str| {
        reason(engine.decide(&to(host, 1), &caller(late, digest)))
    };
    assert_eq!(asked(&ours, "a.example", false, &other), None);
    assert_eq!(asked(&ours, "a.example", true, &good), Some(Reason::BinaryChanged));
    assert_eq!(asked(&ours, "b.example", true, &other), None);
    assert_eq!(asked(&ours, "c.example", true, &good), None);
    assert_eq!(asked(&ours, "c.example", false, &other), Some(Reason::BinaryChanged));
    // A file that no pattern names is not allowed, late or not.
    let mut unlisted = by("/tmp/tool", &[]);
    unlisted.holders[0].late.insert("/tmp/tool".to_owned());
    assert_eq!(reason(ours.decide(&to("a.example", 1), &unlisted)), Some(Reason::BinaryNotAllowed));
    // A whole path is told apart by what the supervisor calls it.
    let mut exact = by("/opt/deep/one", &[]);
    exact.holders[0].late.insert("/opt/deep/one".to_owned());
    assert_eq!(reason(ours.decide(&to("a.example", 1), &exact)), None);
    let marked = by(&format!("{CHANGED}/opt/deep/one"), &[]);
    assert_eq!(reason(ours.decide(&to("a.example", 1), &marked)), Some(Reason::BinaryChanged));
    // In OpenShell's language every file at a path is meant.
    let plain = "version: 1\nnetwork_policies: {a: {endpoints: [{host: a.example, port: 1}], binaries: [{path: '/opt/*'}]}}\n";
    assert_eq!(asked(&engine(plain), "a.example", true, &other), None);
    let printed = crate::policy::print::yaml(ours.policy(), false);
    assert_eq!(Policy::parse(&printed, "p").unwrap().rules.len(), 3, "{printed}");
    for part in ["trust", "writable", &good] {
        assert!(printed.contains(part), "{printed}");
    }
}
