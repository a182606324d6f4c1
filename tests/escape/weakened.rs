//! Controls left away one by one: `verify` must notice, and the attempts that
//! the control alone refuses must get through.

use std::process::Command;

use nemoclaw_tests::docker::{Container, run};
use nemoclaw_tests::{Outcome, binary, contains, equal, repository, run_command};

const IMAGE: &str = "nemoclaw-test/base";

pub(super) const TRIALS: [crate::Named; 3] = [
    ("verify_notices_every_control_that_is_left_away", noticed),
    ("attempts_get_through_exactly_where_their_control_is_left_away", through),
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

/// Sets of controls left away, and how many attempts get through at least.
const SETS: [(&str, usize); 6] = [
    ("seccomp", 20),
    ("user,landlock,read_only_mounts", 20),
    ("masked_paths", 0),
    ("capabilities,user", 8),
    ("capabilities,user,landlock,read_only_mounts", 40),
    ("capabilities,user,seccomp", 40),
];

fn through() -> Outcome {
    let script = repository().join("tests/escape/attempts.py");
    let mount = format!("{}:/attempts.py:ro", script.display());
    let mut all = std::collections::BTreeSet::new();
    for (names, least) in SETS {
        let variable = format!("NEMOCLAW_WEAKEN={names}");
        let options = [
            "-v",
            &mount,
            "-e",
            &variable,
            "--security-opt",
            "seccomp=unconfined",
            "--tmpfs",
            "/scratch",
        ];
        let done = run("nemoclaw-weak", &options, IMAGE, &["python3", "/attempts.py"]).ok()?;
        let mut number = 0;
        for line in done.out.lines() {
            let value: serde_json::Value = serde_json::from_str(line)?;
            let text =
                |key: &str| value.get(key).and_then(serde_json::Value::as_str).unwrap_or_default();
            if text("result") == "succeeded" {
                number += 1;
                all.insert(text("name").to_owned());
            }
        }
        if number < least {
            return Err(format!("{names}: only {number} get through, wanted {least}").into());
        }
    }
    if all.len() < 80 {
        return Err(
            format!("only {} of the attempts get through anywhere: {all:?}", all.len()).into()
        );
    }
    Ok(())
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
