//! What must hold of every policy and every intent.

use std::fmt::Write as _;

use proptest::prelude::*;

use super::diff::diff;
use super::explain::explain;
use super::*;
use crate::http::{Content, Method, Target};
use crate::policy::print;

/// One rule as its YAML, without its key.
fn rule() -> impl Strategy<Value = String> {
    let host = prop::sample::select(vec![
        "a.example",
        "b.example",
        "x.a.example",
        "*.a.example",
        "**.a.example",
        "x*.a.example",
        "203.0.113.7",
    ]);
    let port = prop::sample::select(vec!["80", "443"]);
    let binaries = prop::sample::select(vec![
        "any",
        "[{path: /usr/bin/curl}]",
        "[{path: '/usr/bin/*'}]",
        "[{path: '/opt/**'}, {path: /usr/bin/node}]",
    ]);
    let matcher = (
        prop::sample::select(vec!["GET", "POST", "'*'"]),
        prop::sample::select(vec![
            "/**",
            "/v1/*",
            "/v1/**",
            "/v1/a",
            "/{v1,v2}/a",
            "/v1/[ab]",
            "/**/a",
        ]),
        prop::sample::select(vec!["", ", query: {q: 'a*'}", ", query: {q: {any: [a, b.c]}}"]),
    )
        .prop_map(|(method, path, query)| format!("{{method: {method}, path: '{path}'{query}}}"));
    let allow = prop::collection::vec(matcher.clone(), 1..3).prop_map(|list| {
        let list: Vec<String> = list.iter().map(|one| format!("{{allow: {one}}}")).collect();
        format!("rules: [{}]", list.join(", "))
    });
    let allow = prop_oneof![
        allow,
        Just("access: read-only".to_owned()),
        Just("access: read-write".to_owned())
    ];
    let deny = prop_oneof![
        2 => Just(String::new()),
        1 => matcher.prop_map(|one| format!(", deny_rules: [{one}]")),
    ];
    let inspection = prop_oneof![
        2 => Just(String::new()),
        3 => (allow, deny).prop_map(|(allow, deny)| format!(", protocol: rest, {allow}{deny}")),
    ];
    (host, port, binaries, inspection).prop_map(|(host, port, binaries, inspection)| {
        format!(
            "{{endpoints: [{{host: '{host}', port: {port}{inspection}}}], binaries: {binaries}}}"
        )
    })
}

fn text(rules: &[String]) -> String {
    let mut text = String::from("version: 1\nnemoclaw: {}\nnetwork_policies:\n");
    for (n, rule) in rules.iter().enumerate() {
        writeln!(text, "  r{n}: {rule}").unwrap();
    }
    if rules.is_empty() {
        text.push_str("  {}\n");
    }
    text
}

fn rules() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(rule(), 0..6)
}

fn policy(rules: &[String]) -> Policy {
    Policy::parse(&text(rules), "generated").unwrap()
}

fn engine(rules: &[String]) -> Engine {
    Engine::new(policy(rules), HashMap::new())
}

fn intent() -> impl Strategy<Value = Intent> {
    let host = prop::sample::select(vec![
        "a.example",
        "b.example",
        "x.a.example",
        "xy.a.example",
        "x.y.a.example",
        "c.example",
    ]);
    let method = prop::sample::select(vec!["GET", "HEAD", "POST", "DELETE"]);
    let target = prop::sample::select(vec![
        "/",
        "/v1/a",
        "/v1/b",
        "/v1/c",
        "/v1/a/b",
        "/v2/a",
        "/v1/",
        "/v1/a?q=a",
        "/v1/a?q=ab&q=c",
        "/v1/a?q=b.c",
        "/x?q=z",
    ]);
    let port = prop::sample::select(vec![80_u16, 443, 22]);
    let whole = prop::bool::weighted(0.2);
    (host, port, method, target, whole).prop_map(|(host, port, method, target, whole)| {
        let mut intent = Intent::connect(Destination::Host(Host::parse(host).unwrap()), port);
        if !whole {
            intent.request = Some(Request {
                method: Method::parse(method).unwrap(),
                target: Target::parse(target).unwrap(),
                content: Content::Opaque,
            });
        }
        intent
    })
}

fn caller() -> impl Strategy<Value = Caller> {
    prop::sample::select(vec!["/usr/bin/curl", "/usr/bin/node", "/usr/bin/x/y", "/opt/a/b", "/z"])
        .prop_map(|binary| Caller { holders: vec![Process::new(binary.to_owned(), Vec::new())] })
}

/// An answer without its permit.
fn answer(engine: &Engine, intent: &Intent, caller: &Caller) -> String {
    match engine.decide(intent, caller) {
        Decision::Allow(permit) => format!("allow by {}", permit.rule().key),
        Decision::Inspect(inspect) => format!("inspect by {}", inspect.rule.key),
        Decision::Deny(denial) => format!("deny: {}", denial.reason.code()),
    }
}

fn refused(engine: &Engine, intent: &Intent, caller: &Caller) -> bool {
    matches!(engine.decide(intent, caller), Decision::Deny(_))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn an_empty_policy_denies_all(intent in intent(), caller in caller()) {
        prop_assert!(refused(&engine(&[]), &intent, &caller));
    }

    #[test]
    fn the_order_of_rules_changes_nothing(
        rules in rules(), seed in any::<prop::sample::Index>(), intent in intent(), caller in caller()
    ) {
        let mut turned = policy(&rules);
        let middle = if rules.is_empty() { 0 } else { seed.index(rules.len()) };
        turned.rules.rotate_left(middle);
        turned.rules.reverse();
        let other = Engine::new(turned, HashMap::new());
        prop_assert_eq!(answer(&engine(&rules), &intent, &caller), answer(&other, &intent, &caller));
    }

    /// Rules about connections as such never take away; nor does a further
    /// allow among the rules of an endpoint.
    #[test]
    fn allowing_more_never_refuses_more(
        rules in rules(), extra in rules(), intent in intent(), caller in caller()
    ) {
        let before = policy(&rules);
        let mut after = before.clone();
        for rule in &mut after.rules {
            for inspection in rule.endpoints.iter_mut().filter_map(|e| e.inspection.as_mut()) {
                let own = policy(&extra);
                let more = own.rules.iter().flat_map(|rule| &rule.endpoints);
                inspection.allow.extend(
                    more.filter_map(|e| e.inspection.as_ref()).flat_map(|i| i.allow.clone()),
                );
            }
        }
        let raw = policy(&extra);
        let raw = raw.rules.into_iter().filter(|r| r.endpoints.iter().all(|e| e.inspection.is_none()));
        after.rules.extend(raw);
        let (before, after) =
            (Engine::new(before, HashMap::new()), Engine::new(after, HashMap::new()));
        if !refused(&before, &intent, &caller) {
            prop_assert!(!refused(&after, &intent, &caller));
        }
    }

    #[test]
    fn spellings_of_one_intent_decide_alike(rules in rules(), intent in intent(), caller in caller()) {
        let engine = engine(&rules);
        let mut spelt = intent.clone();
        let Destination::Host(host) = &intent.destination else { panic!("hosts only") };
        let loud = format!("{}.", host.as_str().to_ascii_uppercase());
        spelt.destination = Destination::Host(Host::parse(&loud).unwrap());
        if let Some(request) = &mut spelt.request {
            let text = request.target.to_string();
            let odd = text.replacen('/', "//x/..;y/./", 1).replace('v', "%76");
            request.target = Target::parse(&odd).unwrap();
        }
        prop_assert_eq!(answer(&engine, &intent, &caller), answer(&engine, &spelt, &caller));
    }

    #[test]
    fn a_narrower_layer_never_widens(
        rules in rules(), layer in rules(), intent in intent(), caller in caller()
    ) {
        let wide = engine(&rules);
        let narrow = engine(&rules).narrowed_by(policy(&layer));
        if refused(&wide, &intent, &caller) {
            prop_assert!(refused(&narrow, &intent, &caller));
        }
        if refused(&engine(&layer), &intent, &caller) {
            prop_assert!(refused(&narrow, &intent, &caller));
        }
    }

    #[test]
    fn a_policy_prints_as_itself(rules in rules()) {
        let policy = policy(&rules);
        let printed = print::yaml(&policy, true);
        prop_assert_eq!(Policy::parse(&printed, "printed").unwrap(), policy);
    }

    #[test]
    fn explain_tells_a_change_that_turns_the_decision(
        rules in rules(), intent in intent(), caller in caller()
    ) {
        let engine = engine(&rules);
        let told = explain(&engine, &intent, &caller);
        prop_assert_eq!(told.decision == "deny", refused(&engine, &intent, &caller));
        if told.decision != "inspect" {
            prop_assert!(!told.change.is_empty(), "{:?}", told);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    /// Where two policies answer an intent differently, `diff` names a set with
    /// it in; every example it gives is answered as it says.
    #[test]
    fn diff_agrees_with_decisions(
        before in rules(), after in rules(),
        asked in prop::collection::vec((intent(), caller()), 20)
    ) {
        let (before, after) = (engine(&before), engine(&after));
        let changes = diff(&before, &after).unwrap();
        for change in &changes {
            let (intent, caller) = example(&change.example);
            let (a, b) = (refused(&before, &intent, &caller), refused(&after, &intent, &caller));
            let addresses = change.request.as_deref().is_some_and(|r| r.starts_with("its addresses"));
            prop_assert!(addresses || (a && !b) == change.allowed, "{:?}", change);
        }
        for (intent, caller) in asked {
            let allowed = |engine: &Engine| matches!(engine.decide(&intent, &caller), Decision::Allow(_));
            let inspected = |engine: &Engine| matches!(engine.decide(&intent, &caller), Decision::Inspect(_));
            if inspected(&before) || inspected(&after) || allowed(&before) == allowed(&after) {
                continue;
            }
            let named = changes.iter().any(|change| {
                let (other, by) = example(&change.example);
                change.allowed == allowed(&after)
                    && other.port == intent.port
                    && alike(&before, &after, (&intent, &caller), (&other, &by))
            });
            prop_assert!(named, "{:?} by {:?} is in none of {:#?}", intent, caller, changes);
        }
    }
}

/// The intent that a change's example spells out.
fn example(text: &str) -> (Intent, Caller) {
    let (binary, rest) = text.split_once(" -> ").unwrap();
    let mut words = rest.splitn(3, ' ');
    let (host, port) = words.next().unwrap().rsplit_once(':').unwrap();
    let destination = match host.parse() {
        Ok(address) => Destination::Address { address, names: Vec::new() },
        Err(_) => Destination::Host(Host::parse(host).unwrap()),
    };
    let mut intent = Intent::connect(destination, port.parse().unwrap());
    if let Some(method) = words.next() {
        intent.request = Some(Request {
            method: Method::parse(method).unwrap(),
            target: Target::parse(words.next().unwrap()).unwrap(),
            content: Content::Opaque,
        });
    }
    let holders = vec![Process::new(binary.to_owned(), Vec::new())];
    (intent, Caller { holders })
}

/// Whether no rule of either policy tells two intents apart.
fn alike(a: &Engine, b: &Engine, one: (&Intent, &Caller), other: (&Intent, &Caller)) -> bool {
    let Destination::Host(host) = &one.0.destination else { return false };
    let Destination::Host(other_host) = &other.0.destination else { return false };
    let rules = || [a, b].into_iter().flat_map(|engine| &engine.policy().rules);
    let binary = |caller: &Caller| caller.holders[0].binary.clone();
    rules().all(|rule| {
        let programs = match &rule.binaries {
            crate::policy::Binaries::Any => true,
            crate::policy::Binaries::Listed(list) => {
                list.iter().all(|p| p.matches(&binary(one.1)) == p.matches(&binary(other.1)))
            }
        };
        programs
            && rule.endpoints.iter().all(|e| {
                let port = e.ports.contains(&one.0.port);
                e.host.matches(host) == e.host.matches(other_host)
                    && (!port || !e.host.matches(host) || requests_alike(e, one.0, other.0))
            })
    })
}

fn requests_alike(endpoint: &crate::policy::Endpoint, one: &Intent, other: &Intent) -> bool {
    let (Some(a), Some(b)) = (&one.request, &other.request) else { return true };
    let Some(inspection) = &endpoint.inspection else { return true };
    inspection.allow.iter().chain(&inspection.deny).all(|rule| {
        let crate::policy::Matcher::Http { method, path, query } = rule else { return true };
        let methods = |request: &Request| {
            method.as_ref().is_none_or(|m| {
                *m == request.method || (m.as_str() == "GET" && request.method.as_str() == "HEAD")
            })
        };
        methods(a) == methods(b)
            && path.matches(a.target.path()) == path.matches(b.target.path())
            && query.iter().all(|(name, patterns)| {
                let fits = |request: &Request| -> (bool, bool, bool) {
                    let values: Vec<&String> = request
                        .target
                        .parameters()
                        .iter()
                        .filter(|(own, _)| own == name)
                        .map(|(_, value)| value)
                        .collect();
                    let fit = |value: &&&String| patterns.iter().any(|p| p.matches(value));
                    (
                        values.is_empty(),
                        values.iter().all(|v| fit(&v)),
                        values.iter().any(|v| fit(&v)),
                    )
                };
                fits(a) == fits(b)
            })
    })
}
