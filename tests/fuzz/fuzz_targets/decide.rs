//! Decisions: any policy, any intent; the answer is the same for every order
//! of rules, and a narrower layer never adds.
#![no_main]

use std::collections::HashMap;

use libfuzzer_sys::fuzz_target;
use nemoclaw_spec::decide::{Caller, Decision, Destination, Engine, Intent, Process};
use nemoclaw_spec::http::{Content, Method, Request, Target};
use nemoclaw_spec::name::Host;
use nemoclaw_spec::policy::Policy;

fn word(decision: &Decision) -> &'static str {
    match decision {
        Decision::Allow(_) => "allow",
        Decision::Inspect(_) => "inspect",
        Decision::Deny(_) => "deny",
    }
}

fuzz_target!(|input: (&str, &str, &str, &str, &str, u16)| {
    let (text, host, binary, method, target, port) = input;
    let Ok(policy) = Policy::parse(text, "fuzz.yaml") else { return };
    let Ok(host) = Host::parse(host) else { return };
    let mut intent = Intent::connect(Destination::Host(host), port.max(1));
    if let (Ok(method), Ok(target)) = (Method::parse(method), Target::parse(target)) {
        intent.request = Some(Request { method, target, content: Content::Opaque });
    }
    let process = Process { binary: binary.to_owned(), ancestors: Vec::new() };
    let caller = Caller { holders: vec![process] };
    let mut turned = policy.clone();
    turned.rules.reverse();
    let engine = Engine::new(policy.clone(), HashMap::new());
    let decision = engine.decide(&intent, &caller);
    let other = Engine::new(turned, HashMap::new()).decide(&intent, &caller);
    assert_eq!(word(&decision), word(&other));
    let narrow = Engine::new(policy.clone(), HashMap::new()).narrowed_by(policy);
    assert_eq!(word(&decision), word(&narrow.decide(&intent, &caller)));
});
