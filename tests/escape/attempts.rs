//! Every named attempt of `attempts.py`, from inside, under several policies.

use nemoclaw_tests::docker::{Container, docker, run};
use nemoclaw_tests::{Done, Outcome, equal, repository};

const IMAGE: &str = "nemoclaw-test/base";

pub(super) const TRIALS: [crate::Named; 4] = [
    ("no_attempt_succeeds_in_init", in_init),
    ("no_attempt_succeeds_in_a_privileged_exec", in_exec),
    ("no_attempt_succeeds_as_root_but_to_be_root", as_root),
    ("the_attempts_succeed_where_their_controls_are_missing", positive_controls),
];

/// What an attempt came to.
struct Attempt {
    name: String,
    result: String,
    line: String,
}

fn mounted() -> String {
    format!("{}:/attempts.py:ro", repository().join("tests/escape/attempts.py").display())
}

fn parse(done: Done) -> Result<Vec<Attempt>, libtest_mimic::Failed> {
    let done = done.ok()?;
    let attempts: Vec<Attempt> = done
        .out
        .lines()
        .filter_map(|line| {
            let value: serde_json::Value = serde_json::from_str(line).ok()?;
            Some(Attempt {
                name: value.get("name")?.as_str()?.to_owned(),
                result: value.get("result")?.as_str()?.to_owned(),
                line: line.to_owned(),
            })
        })
        .collect();
    if attempts.len() < 500 {
        return Err(format!("only {} attempts: {}", attempts.len(), done.text()).into());
    }
    Ok(attempts)
}

/// Nothing but `open` succeeds, and nothing goes wrong in an unforeseen way.
fn closed(attempts: &[Attempt], open: &[&str]) -> Outcome {
    let bad: Vec<&str> = attempts
        .iter()
        .filter(|attempt| matches!(attempt.result.as_str(), "succeeded" | "error"))
        .filter(|attempt| !open.contains(&attempt.name.as_str()))
        .map(|attempt| attempt.line.as_str())
        .collect();
    equal("what succeeded", &bad.join("\n"), &String::new())
}

fn once(runtime: &str, options: &[&str]) -> Result<Vec<Attempt>, libtest_mimic::Failed> {
    let mount = mounted();
    let mut all = vec!["-v", mount.as_str()];
    all.extend(options);
    parse(run(runtime, &all, IMAGE, &["python3", "/attempts.py"]))
}

fn in_init() -> Outcome {
    closed(&once("nemoclaw", &[])?, &[])?;
    closed(&once("nemoclaw", &["--user", "4321"])?, &[])
}

fn in_exec() -> Outcome {
    let container = Container::start("nemoclaw", IMAGE, &["-v", &mounted()])?;
    let done =
        docker(&["exec", "--privileged", "-u", "0", &container.name, "python3", "/attempts.py"]);
    closed(&parse(done)?, &[])
}

/// What root may do because the image's files are root's.
const ROOTS_OWN: [&str; 1] = ["read_shadow"];

fn as_root() -> Outcome {
    closed(&once("nemoclaw-root", &[])?, &ROOTS_OWN)
}

/// The attempts are worth something only if the same code gets through where
/// nothing holds it.
fn positive_controls() -> Outcome {
    let mut through = std::collections::BTreeSet::new();
    let mut names = std::collections::BTreeSet::new();
    let weak = ["--security-opt", "seccomp=unconfined", "--cap-add", "ALL"];
    // Capabilities that the machine's own root may lack.
    let without = ["--cap-drop", "SYS_RESOURCE"];
    for options in [&[][..], &["--user", "10001"], &[&weak[..], &without[..]].concat()] {
        for attempt in once("runc", options)? {
            if attempt.result == "succeeded" {
                through.insert(attempt.name.clone());
            }
            names.insert(attempt.name);
        }
    }
    if through.len() < 300 {
        let never: Vec<_> = names.difference(&through).collect();
        return Err(format!("only {} succeed anywhere; never: {never:?}", through.len()).into());
    }
    Ok(())
}
