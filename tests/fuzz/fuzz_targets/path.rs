//! Request targets: a canonical path is a fixed point and climbs nowhere, and
//! a pattern alone decides as it does among others.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nemoclaw_spec::glob::{Kind, Pattern, Trie};
use nemoclaw_spec::http::Target;

fuzz_target!(|input: (&str, &str)| {
    let (pattern, text) = input;
    let Ok(target) = Target::parse(text) else { return };
    let path = target.path();
    assert!(path.starts_with('/') && !path.contains("//"));
    assert!(!path.split('/').any(|part| part == "." || part == ".."));
    assert_eq!(Target::parse(path).expect("canonical").path(), path);
    if let Ok(pattern) = Pattern::parse(pattern, Kind::Path) {
        let mut trie = Trie::new(Kind::Path);
        trie.insert(&pattern, 7_u32);
        assert_eq!(trie.find(path), if pattern.matches(path) { vec![7] } else { Vec::new() });
    }
});
