//! Host names and patterns: canonical forms are fixed points, and a pattern
//! alone decides as it does among others.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nemoclaw_spec::glob::{Kind, Pattern, Trie};
use nemoclaw_spec::name::{Host, HostPattern};

fuzz_target!(|input: (&str, &str)| {
    let (pattern, text) = input;
    let Ok(host) = Host::parse(text) else { return };
    assert_eq!(Host::parse(host.as_str()).expect("canonical"), host);
    assert_eq!(Host::parse(&format!("{}.", host.as_str().to_uppercase())).expect("same"), host);
    if let Ok(parsed) = HostPattern::parse(pattern) {
        let covers = parsed.matches(&host);
        if let HostPattern::Wild(own) = &parsed {
            let mut trie = Trie::new(Kind::Dotted);
            trie.insert(own, 7_u32);
            trie.insert(&Pattern::literal("other.example", Kind::Dotted), 8);
            assert_eq!(trie.find(host.as_str()).contains(&7), covers);
        }
    }
});
