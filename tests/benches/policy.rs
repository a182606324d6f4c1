//! Times the policy: cargo bench -p nemoclaw-tests --bench policy
//!
//! Decisions against 1,000 and 100,000 rules, compiling 10,000 rules, reading
//! files. Medians of many rounds; exit 1 where a number that is promised does
//! not hold.

#![expect(clippy::print_stdout, reason = "a bench prints its figures")]
#![expect(clippy::expect_used, reason = "a bench that cannot be set up has nothing to say")]

use std::collections::HashMap;
use std::fmt::Write as _;
use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nemoclaw_spec::decide::{Caller, Decision, Destination, Engine, Intent, Process};
use nemoclaw_spec::http::{Content, Method, Request, Target};
use nemoclaw_spec::name::Host;
use nemoclaw_spec::policy::{BASELINE, Policy};

/// How rules differ from one another.
#[derive(Debug, Clone, Copy)]
enum Spread {
    /// A host for each rule.
    Hosts,
    /// A wildcard for each rule.
    Wildcards,
    /// One host, a path for each rule.
    Paths,
    /// One host, a program for each rule.
    Programs,
}

fn rule(spread: Spread, n: usize) -> String {
    let (host, path, program) = match spread {
        Spread::Hosts => (format!("h{n}.example"), "/v1/**".to_owned(), "/usr/bin/curl".to_owned()),
        Spread::Wildcards => {
            (format!("'*.d{n}.example'"), "/v1/**".to_owned(), "/usr/bin/curl".to_owned())
        }
        Spread::Paths => {
            ("api.example.com".to_owned(), format!("/v1/p{n}/*"), "/usr/bin/curl".to_owned())
        }
        Spread::Programs => {
            ("api.example.com".to_owned(), "/v1/**".to_owned(), format!("/opt/p{n}/bin/run"))
        }
    };
    format!(
        "  r{n}: {{endpoints: [{{host: {host}, port: 443, protocol: rest, rules: [{{allow: {{method: GET, path: '{path}'}}}}]}}], binaries: [{{path: {program}}}]}}\n"
    )
}

fn intent(spread: Spread, n: usize) -> (Intent, Caller) {
    let (host, path, program) = match spread {
        Spread::Hosts => {
            (format!("h{n}.example"), "/v1/a/b".to_owned(), "/usr/bin/curl".to_owned())
        }
        Spread::Wildcards => {
            (format!("x.d{n}.example"), "/v1/a/b".to_owned(), "/usr/bin/curl".to_owned())
        }
        Spread::Paths => {
            ("api.example.com".to_owned(), format!("/v1/p{n}/b"), "/usr/bin/curl".to_owned())
        }
        Spread::Programs => {
            ("api.example.com".to_owned(), "/v1/a/b".to_owned(), format!("/opt/p{n}/bin/run"))
        }
    };
    let destination = Destination::Host(Host::parse(&host).expect("a host"));
    let mut intent = Intent::connect(destination, 443);
    intent.request = Some(Request {
        method: Method::parse("GET").expect("a method"),
        target: Target::parse(&path).expect("a path"),
        content: Content::Opaque,
    });
    let ancestors = vec!["/usr/bin/bash".to_owned(), "/usr/local/bin/node".to_owned()];
    let holders = vec![Process::new(program, ancestors)];
    (intent, Caller { holders })
}

fn policy(spread: Spread, from: usize, to: usize) -> Policy {
    let mut text = String::from("version: 1\nnemoclaw: {}\nnetwork_policies:\n");
    for n in from..to {
        // Writing to a String cannot fail.
        let _written = write!(text, "{}", rule(spread, n));
    }
    Policy::parse(&text, "bench").expect("a policy")
}

/// More rules than one file may hold, from several.
fn large(spread: Spread, rules: usize) -> Policy {
    const FILE: usize = 10_000;
    let mut whole = policy(spread, 0, rules.min(FILE));
    let mut next = FILE;
    while next < rules {
        whole.rules.extend(policy(spread, next, (next + FILE).min(rules)).rules);
        next += FILE;
    }
    whole
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// The median time of one decision, over as many allowed intents as a busy
/// agent has destinations: more would measure the machine's memory.
fn decision(spread: Spread, rules: usize) -> Duration {
    const ASKED: usize = 64;
    let engine = Engine::new(large(spread, rules), HashMap::new());
    let asked: Vec<(Intent, Caller)> =
        (0..ASKED).map(|n| intent(spread, n * 7919 % rules)).collect();
    for (intent, caller) in &asked {
        assert!(matches!(engine.decide(intent, caller), Decision::Allow(_)), "{spread:?}");
    }
    let rounds = (0..101).map(|_| {
        let start = Instant::now();
        for (intent, caller) in &asked {
            let _decision = black_box(engine.decide(black_box(intent), black_box(caller)));
        }
        start.elapsed() / u32::try_from(ASKED).unwrap_or(1)
    });
    median(rounds.collect())
}

fn times(rounds: usize, mut work: impl FnMut()) -> Duration {
    let times = (0..rounds).map(|_| {
        let start = Instant::now();
        work();
        start.elapsed()
    });
    median(times.collect())
}

fn main() -> ExitCode {
    let mut kept = true;
    let mut promise = |what: &str, held: bool| {
        println!("  {} {what}", if held { "held:  " } else { "BROKEN:" });
        kept &= held;
    };
    for spread in [Spread::Hosts, Spread::Wildcards, Spread::Paths, Spread::Programs] {
        let (few, many) = (decision(spread, 1000), decision(spread, 100_000));
        let ratio = many.as_secs_f64() / few.as_secs_f64();
        println!(
            "decision, rules apart by {spread:?}: 1,000 rules {few:?}, 100,000 rules {many:?}, {ratio:.2}x"
        );
        promise("at most 2 us at 1,000 rules", few <= Duration::from_micros(2));
        promise("at most 1.5x of that at 100,000 rules", ratio <= 1.5);
    }
    for spread in [Spread::Hosts, Spread::Paths] {
        let policy = policy(spread, 0, 10_000);
        let mut copies: Vec<Policy> = (0..11).map(|_| policy.clone()).collect();
        let compiled = times(11, || {
            let engine = copies.pop().map(|policy| Engine::new(policy, HashMap::new()));
            drop(black_box(engine));
        });
        println!("compiling 10,000 rules apart by {spread:?}: {compiled:?}");
        promise("at most 50 ms", compiled <= Duration::from_millis(50));
    }
    let baseline = times(101, || drop(black_box(Policy::parse(black_box(BASELINE), "baseline"))));
    println!("reading the baseline: {baseline:?}");
    promise("at most 1 ms", baseline <= Duration::from_millis(1));
    for (what, text) in [
        ("200 kB of `[`", "[".repeat(200_000)),
        ("50,000 nested maps", "{a: ".repeat(50_000)),
        ("10 MB", "x: 1\n".repeat(2_000_000)),
        ("100,000 times one key", format!("version: 1\n{}", "a: 1\n".repeat(100_000))),
        ("aliases", format!("version: 1\na: &a [1]\n{}", "b: *a\n".repeat(1000))),
    ] {
        let refused = times(5, || assert!(Policy::parse(black_box(&text), "hostile").is_err()));
        println!("refusing {what}: {refused:?}");
        promise("within 100 ms", refused <= Duration::from_millis(100));
    }
    if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
