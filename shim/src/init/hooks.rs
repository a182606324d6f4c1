//! startContainer hooks (OCI runtime spec, "Hooks"): they run in the container,
//! where libcontainer would run them unconfined. Here they run after Landlock
//! and seccomp, as the container's user, with only their own environment.

use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use oci_spec::runtime::Hook;

use crate::report::CodedError;

/// Longest error text kept of a hook, in bytes.
const MAX_TEXT: u64 = 4096;
/// A hook without a timeout of its own must not hold the container for ever.
const PATIENCE: Duration = Duration::from_mins(5);
const STEP: Duration = Duration::from_millis(2);

/// Runs the hooks in order; the first that fails stops the container.
pub(super) fn run(hooks: &[Hook], id: &str) -> Result<(), CodedError> {
    let state = serde_json::json!({
        "ociVersion": "1.0.2",
        "id": id,
        "status": "created",
        "pid": std::process::id(),
        "bundle": "/",
    });
    hooks.iter().try_for_each(|hook| one(hook, &state.to_string()))
}

fn one(hook: &Hook, state: &str) -> Result<(), CodedError> {
    let path = hook.path().display().to_string();
    let failed = |why: &str| CodedError {
        code: 1,
        message: format!("the startContainer hook `{}` {why}", path.escape_debug()),
    };
    let args = hook.args().clone().unwrap_or_default();
    let mut command = Command::new(hook.path());
    if let Some((name, rest)) = args.split_first() {
        command.arg0(name).args(rest);
    }
    let env = hook.env().clone().unwrap_or_default();
    let env = env.iter().filter_map(|entry| entry.split_once('='));
    command.env_clear().envs(env).current_dir("/").process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| failed(&format!("cannot run: {error}")))?;
    if let Some(mut input) = child.stdin.take() {
        // A hook that does not read its state has closed the pipe.
        let _sent = input.write_all(state.as_bytes());
    }
    let patience = hook
        .timeout()
        .and_then(|seconds| u64::try_from(seconds).ok())
        .filter(|seconds| *seconds > 0)
        .map_or(PATIENCE, Duration::from_secs);
    let status = wait(&mut child, patience)
        .map_err(|error| failed(&format!("cannot be waited for: {error}")))?;
    match status {
        Some(status) if status.success() => Ok(()),
        Some(status) => {
            let mut text = Vec::new();
            // What is there by now: a child of the hook may hold the pipe for ever.
            if let Some(errors) = child.stderr.take()
                && rustix::fs::fcntl_setfl(&errors, rustix::fs::OFlags::NONBLOCK).is_ok()
            {
                let _length = errors.take(MAX_TEXT).read_to_end(&mut text);
            }
            let text = String::from_utf8_lossy(&text).trim().escape_debug().to_string();
            Err(failed(&format!("failed ({status}): {text}")))
        }
        None => Err(failed(&format!("did not end within {} s", patience.as_secs()))),
    }
}

/// The status, or none when the child had to be killed.
fn wait(
    child: &mut Child,
    patience: Duration,
) -> std::io::Result<Option<std::process::ExitStatus>> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if started.elapsed() > patience {
            let group = i32::try_from(child.id()).unwrap_or_default();
            let _gone = nix::sys::signal::killpg(
                nix::unistd::Pid::from_raw(group),
                nix::sys::signal::Signal::SIGKILL,
            );
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(STEP);
    }
}
