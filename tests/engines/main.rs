//! The same features on every engine, for runc and for nemoclaw in one go.

#![expect(clippy::indexing_slicing, reason = "a trial that panics has failed")]

use std::process::{Command, ExitCode};
use std::time::Duration;

use libtest_mimic::{Arguments, Trial};
use nemoclaw_tests::{full, repository, run_for};

/// Engines of the ordinary run; the rest come with `--full`.
const ORDINARY: [&str; 3] = ["docker20", "podman5", "containerd"];
const FURTHER: [&str; 3] = ["docker26", "podman4", "ctr17"];

fn main() -> ExitCode {
    let root = rustix::process::geteuid().is_root();
    let ignored = !root && std::env::var_os("NEMOCLAW_CI").is_none();
    let engines = ORDINARY.into_iter().chain(FURTHER.into_iter().filter(|_| full()));
    let mut trials: Vec<Trial> = engines
        .map(|engine| trial(engine, &["runc", "nemoclaw"]).with_ignored_flag(ignored))
        .collect();
    if full() {
        trials.push(trial("docker20", &["runc", "nemoclaw-observe"]).with_ignored_flag(ignored));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn trial(engine: &'static str, runtimes: &'static [&'static str]) -> Trial {
    Trial::test(
        format!("{engine}_behaves_under_{}_as_under_{}", runtimes[1], runtimes[0]),
        move || {
            let mut command = Command::new(repository().join("hack/matrix"));
            command.arg(engine).args(runtimes).current_dir(repository());
            let done = run_for(&mut command, Duration::from_mins(10));
            if done.code == 0 { Ok(()) } else { Err(format!("{}\n{}", done.out, done.err).into()) }
        },
    )
}
