//! Policy files: no text makes the reader panic, and what it accepts prints
//! as a policy with the same meaning.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nemoclaw_spec::policy::{Policy, lint::lint, print};

fuzz_target!(|text: &str| {
    let Ok(policy) = Policy::parse(text, "fuzz.yaml") else { return };
    let _advice = lint(&policy);
    let printed = print::yaml(&policy, true);
    assert_eq!(Policy::parse(&printed, "printed.yaml").expect("it parses again"), policy);
});
