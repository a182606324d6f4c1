//! Controls left away one by one: `verify` must notice, and the attempts that
//! the control alone refuses must get through.

use std::collections::BTreeMap;
use std::process::Command;

use nemoclaw_tests::docker::{Container, run};
use nemoclaw_tests::{Outcome, binary, contains, equal, repository, run_command};

const IMAGE: &str = "nemoclaw-test/base";

pub(super) const TRIALS: [crate::Named; 6] = [
    ("verify_notices_every_control_that_is_left_away", noticed),
    ("attempts_get_through_without_their_controls_1", || through(0)),
    ("attempts_get_through_without_their_controls_2", || through(1)),
    ("attempts_get_through_without_their_controls_3", || through(2)),
    ("attempts_get_through_without_their_controls_4", || through(3)),
    ("the_release_runtime_leaves_nothing_away", release),
];

/// What is left away, and what `verify` says of it. `no_new_privs` cannot be left
/// away alone: Landlock and seccomp set it for a process without capabilities.
const WEAKENINGS: [(&str, &str); 10] = [
    ("capabilities", "capabilities: CapBnd holds"),
    ("seccomp", "seccomp: the mode is"),
    ("landlock", "Landlock: it descends from no process"),
    ("user", "user: it is root"),
    ("read_only_mounts", "mounts: `/usr` is no mount of its own"),
    ("masked_paths", "is not masked"),
    ("root_mount", "mounts: `/` is not mounted nosuid"),
    ("pids", "pids: the process limit is none"),
    ("core", "rlimits: the hard limit of core size is none"),
    ("capabilities,user", "user: it is root"),
];

fn noticed() -> Outcome {
    for (names, told) in WEAKENINGS {
        let variable = format!("NEMOCLAW_WEAKEN={names}");
        // The limit of cores has to be gone for verify to see it.
        let options = ["-e", &variable, "--security-opt", "seccomp=unconfined"];
        let container = Container::start("nemoclaw-weak", IMAGE, &options)?;
        let done = run_command(Command::new(binary("nemoclaw")).args(["verify", &container.id]));
        equal(names, &done.code, &3).map_err(|_differs| format!("{names}: {}", done.text()))?;
        contains(names, &done.out, told)?;
    }
    let whole = Container::start("nemoclaw-weak", IMAGE, &[])?;
    let done = run_command(Command::new(binary("nemoclaw")).args(["verify", &whole.id]));
    equal("nothing left away", &done.code, &0).map_err(|_differs| done.text().into())
}

/// Attempts and the smallest set of controls without which each gets through.
const CONTROLS: &str = include_str!("controls.tsv");
/// Trials that share the sets, so that none takes long.
const PARTS: usize = 4;

/// Attempts by the set of controls that they need left away.
fn sets() -> BTreeMap<&'static str, Vec<&'static str>> {
    let mut sets: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in CONTROLS.lines().filter(|line| !line.starts_with('#')) {
        if let Some((attempt, controls)) = line.split_once('\t') {
            sets.entry(controls).or_default().push(attempt);
        }
    }
    sets
}

/// Each attempt that a set of controls refuses gets through without that set, by
/// the same code in the same image: what refuses it elsewhere is that set.
fn through(part: usize) -> Outcome {
    let script = repository().join("tests/escape/attempts.py");
    let mount = format!("{}:/attempts.py:ro", script.display());
    let sets = sets();
    let known: usize = sets.values().map(Vec::len).sum();
    if known < 380 {
        return Err(format!("the table names only {known} attempts").into());
    }
    let mut refused = Vec::new();
    for (controls, attempts) in sets.iter().skip(part).step_by(PARTS) {
        let variable = format!("NEMOCLAW_WEAKEN={controls}");
        let mut options = vec!["-v", &mount, "-e", &variable, "--tmpfs", "/scratch"];
        if controls.split(',').any(|control| control == "seccomp") {
            options.extend(["--security-opt", "seccomp=unconfined"]);
        }
        let command = [&["python3", "/attempts.py"], attempts.as_slice()].concat();
        let done = run("nemoclaw-weak", &options, IMAGE, &command).ok()?;
        let succeeded: Vec<String> = done
            .out
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .filter(|value| value.get("result").is_some_and(|result| result == "succeeded"))
            .filter_map(|value| Some(value.get("name")?.as_str()?.to_owned()))
            .collect();
        let missing = attempts.iter().filter(|name| !succeeded.iter().any(|own| own == *name));
        refused.extend(missing.map(|name| format!("{name} without {controls}")));
    }
    equal("refused all the same", &refused, &Vec::new())
}

fn release() -> Outcome {
    for name in ["nemoclaw", "nemoclaw-ctl", "nemoclaw-netproxy"] {
        let bytes = std::fs::read(binary(name))?;
        let found = bytes.windows(15).any(|window| window == b"NEMOCLAW_WEAKEN");
        equal(name, &found, &false)?;
    }
    let options = ["-e", "NEMOCLAW_WEAKEN=capabilities,user,seccomp,landlock"];
    let status = run("nemoclaw", &options, IMAGE, &["cat", "/proc/self/status"]).ok()?.out;
    for told in ["CapBnd:\t0000000000000000", "Seccomp:\t2", "Uid:\t10001"] {
        contains("the release runtime", &status, told)?;
    }
    Ok(())
}
