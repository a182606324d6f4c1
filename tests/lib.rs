//! What the end-to-end suites share: commands with deadlines, and trials that
//! say "ignored" where they cannot run (or fail, under `NEMOCLAW_CI=1`).

#![expect(clippy::missing_errors_doc, reason = "an error is a failed trial, which says why")]

pub mod engine;

use std::io::Read as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};

/// What a trial returns.
pub type Outcome = Result<(), Failed>;

/// Trials by name.
pub type Trials<'a> = Vec<(&'a str, fn() -> Outcome)>;

/// The repository's root.
pub fn repository() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// A release binary that `hack/build` has made.
pub fn binary(name: &str) -> PathBuf {
    repository().join("target/dist").join(name)
}

/// Where `hack/image` and `hack/engine` keep what they make.
pub fn work() -> PathBuf {
    std::env::var_os("NEMOCLAW_WORK")
        .map_or_else(|| repository().join("target/engines"), PathBuf::from)
}

/// Whether the whole of every suite is wanted (`hack/test --full`).
pub fn full() -> bool {
    std::env::var_os("NEMOCLAW_FULL").is_some()
}

/// Runs a suite whose trials need root.
pub fn run_as_root(trials: Trials<'_>) -> ExitCode {
    let root = rustix::process::geteuid().is_root();
    let ci = std::env::var_os("NEMOCLAW_CI").is_some();
    run(trials, !root && !ci)
}

/// Runs a suite that anybody can run.
pub fn run_as_anyone(trials: Trials<'_>) -> ExitCode {
    run(trials, false)
}

fn run(trials: Trials<'_>, ignored: bool) -> ExitCode {
    let trials = trials
        .into_iter()
        .map(|(name, body)| Trial::test(name, body).with_ignored_flag(ignored))
        .collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// What a command did.
#[derive(Debug, Clone)]
pub struct Done {
    /// Exit code; 128 + n for a signal, -1 when the deadline ended it.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
    /// How long it took.
    pub took: Duration,
}

impl Done {
    /// The trial fails unless the command succeeded.
    pub fn ok(self) -> Result<Self, Failed> {
        if self.code == 0 { Ok(self) } else { Err(format!("{self:?}").into()) }
    }

    /// Both outputs.
    pub fn text(&self) -> String {
        format!("{}{}", self.out, self.err)
    }
}

/// Runs a command to its end, at most 60 seconds.
pub fn run_command(command: &mut Command) -> Done {
    run_for(command, Duration::from_mins(1))
}

/// Runs a command to its end or to the deadline.
pub fn run_for(command: &mut Command, deadline: Duration) -> Done {
    let started = Instant::now();
    let spawned =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            return Done {
                code: 127,
                out: String::new(),
                err: format!("{command:?}: {error}"),
                took: Duration::ZERO,
            };
        }
    };
    let mut stdout = child.stdout.take();
    let mut stderr = child.stderr.take();
    let reader = |pipe: Option<Box<dyn std::io::Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut pipe) = pipe {
                let _length = pipe.read_to_end(&mut bytes);
            }
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let out = reader(stdout.take().map(|pipe| Box::new(pipe) as Box<dyn std::io::Read + Send>));
    let err = reader(stderr.take().map(|pipe| Box::new(pipe) as Box<dyn std::io::Read + Send>));
    let code = loop {
        match child.try_wait() {
            Ok(Some(status)) => {
                use std::os::unix::process::ExitStatusExt as _;
                break status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
            }
            Ok(None) if started.elapsed() > deadline => {
                let _killed = child.kill();
                let _reaped = child.wait();
                break -1;
            }
            Ok(None) => std::thread::sleep(Duration::from_millis(3)),
            Err(_) => break -1,
        }
    };
    let took = started.elapsed();
    Done { code, out: out.join().unwrap_or_default(), err: err.join().unwrap_or_default(), took }
}

/// Runs a shell command on the host.
pub fn sh(script: &str) -> Done {
    run_command(Command::new("bash").arg("-c").arg(script).current_dir(repository()))
}

/// Waits until `condition` holds, at most `limit`.
pub fn eventually(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Outcome {
    let started = Instant::now();
    while !condition() {
        if started.elapsed() > limit {
            return Err(format!("not within {limit:?}: {what}").into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Fails with both values unless they are equal.
pub fn equal<T: PartialEq + std::fmt::Debug>(what: &str, got: &T, wanted: &T) -> Outcome {
    if got == wanted {
        Ok(())
    } else {
        Err(format!("{what}: got {got:?}, wanted {wanted:?}").into())
    }
}

/// Fails unless `text` contains `wanted`.
pub fn contains(what: &str, text: &str, wanted: &str) -> Outcome {
    if text.contains(wanted) {
        Ok(())
    } else {
        Err(format!("{what}: no `{wanted}` in: {text}").into())
    }
}

/// A name no other trial uses.
pub fn unique(prefix: &str) -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// Containers of the private Docker 20.10 that `hack/test` starts.
pub mod docker {
    use std::process::Command;
    use std::time::Duration;

    use libtest_mimic::Failed;

    use super::{Done, run_for, unique};

    /// The `docker` client with these arguments.
    pub fn docker(args: &[&str]) -> Done {
        docker_for(args, Duration::from_mins(1))
    }

    /// The same, to its end or to the deadline.
    pub fn docker_for(args: &[&str], deadline: Duration) -> Done {
        let host = std::env::var("NEMOCLAW_DOCKER_HOST")
            .unwrap_or_else(|_| "unix:///run/nc-engines/docker20/docker.sock".to_owned());
        run_for(Command::new("docker").args(args).env("DOCKER_HOST", host), deadline)
    }

    /// A running container, removed when dropped.
    #[derive(Debug)]
    pub struct Container {
        /// Its name.
        pub name: String,
        /// Its id.
        pub id: String,
    }

    impl Container {
        /// Starts a container that sleeps, from `image`, with extra options.
        pub fn start(runtime: &str, image: &str, options: &[&str]) -> Result<Self, Failed> {
            Self::start_with(runtime, image, options, &["sleep", "1000"])
        }

        /// Starts a container that runs `command`.
        pub fn start_with(
            runtime: &str,
            image: &str,
            options: &[&str],
            command: &[&str],
        ) -> Result<Self, Failed> {
            let name = unique("t");
            let mut args = vec!["run", "-d", "--name", &name, "--runtime", runtime];
            args.extend(options);
            args.push(image);
            args.extend(command);
            let done = docker(&args).ok()?;
            Ok(Self { id: done.out.trim().to_owned(), name })
        }

        /// Runs a shell command in it.
        pub fn sh(&self, script: &str) -> Done {
            docker(&["exec", &self.name, "sh", "-c", script])
        }

        /// Pid of init on the host.
        pub fn pid(&self) -> Result<i32, Failed> {
            let done = docker(&["inspect", "-f", "{{.State.Pid}}", &self.name]).ok()?;
            done.out.trim().parse().map_err(|error| Failed::from(format!("{error}: {done:?}")))
        }

        /// Audit records of its sandbox, but for what the supervisor says of itself.
        pub fn audit(&self) -> Vec<serde_json::Value> {
            let own = ["dial", "callers_unnoted"];
            let told = |record: &serde_json::Value| !own.iter().any(|own| record["event"] == *own);
            self.records().into_iter().filter(told).collect()
        }

        /// All audit records of its sandbox.
        pub fn records(&self) -> Vec<serde_json::Value> {
            std::fs::read_to_string(format!("/var/log/nemoclaw/{}.jsonl", self.id))
                .unwrap_or_default()
                .lines()
                .filter_map(|line| serde_json::from_str(line).ok())
                .collect()
        }
    }

    impl Drop for Container {
        fn drop(&mut self) {
            docker(&["rm", "-f", "-v", &self.name]);
        }
    }

    /// Runs a container to its end.
    pub fn run(runtime: &str, options: &[&str], image: &str, command: &[&str]) -> Done {
        let mut args = vec!["run", "--rm", "--runtime", runtime];
        args.extend(options);
        args.push(image);
        args.extend(command);
        docker(&args)
    }
}
