//! Queries: sent as written, read without panic, and patterns over values end.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nemoclaw_spec::glob::{Kind, Pattern};
use nemoclaw_spec::http::Target;

fuzz_target!(|input: (&str, &str)| {
    let (pattern, query) = input;
    let Ok(target) = Target::parse(&format!("/x?{query}")) else { return };
    assert_eq!(target.to_string(), format!("/x?{query}"));
    if let Ok(pattern) = Pattern::parse(pattern, Kind::Dotted) {
        for (_, value) in target.parameters() {
            let _covers = pattern.matches(value);
        }
    }
});
