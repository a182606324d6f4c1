//! kill, pause and resume.

use std::path::Path;
use std::str::FromStr as _;

use anyhow::{Context as _, Result, anyhow, bail};
use libcgroups::common::{
    AnyCgroupManager, CgroupConfig, CgroupManager as _, FreezerState, create_cgroup_manager,
};
use libcontainer::container::{Container, ContainerStatus};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill as send};
use nix::unistd::Pid;

use crate::cli::Kill;
use crate::store::Entry;

/// The cgroup of a container.
pub(super) fn cgroup(container: &Container) -> Result<AnyCgroupManager> {
    create_cgroup_manager(CgroupConfig {
        cgroup_path: container
            .spec()
            .context("cannot read the container's cgroup path")?
            .cgroup_path,
        systemd_cgroup: container.systemd(),
        container_name: container.id().to_owned(),
    })
    .context("cannot find the container's cgroup")
}

/// Sends a signal to init, or with `--all` to every process.
pub(super) fn kill(root: &Path, args: &Kill) -> Result<()> {
    let signal = parse(&args.signal)?;
    let entry = Entry::new(root, &args.id)?;
    let container = entry.load()?;
    let status = container.status();
    if args.all {
        return kill_all(&container, signal);
    }
    if status == ContainerStatus::Stopped {
        bail!("container not running");
    }
    let pid = container.pid().context("the container has no init")?;
    deliver(pid, signal)?;
    // A frozen v1 cgroup delivers nothing until it thaws.
    if status == ContainerStatus::Paused
        && signal == Some(Signal::SIGKILL)
        && crate::facts::cgroup_v1()
    {
        cgroup(&container)?.freeze(FreezerState::Thawed).context("cannot thaw the container")?;
    }
    Ok(())
}

fn kill_all(container: &Container, signal: Option<Signal>) -> Result<()> {
    let pids = cgroup(container)?.get_all_pids().unwrap_or_default();
    for pid in pids {
        deliver(pid, signal)?;
    }
    Ok(())
}

fn deliver(pid: Pid, signal: Option<Signal>) -> Result<()> {
    match send(pid, signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot signal process {pid}")),
    }
}

/// A signal by name with or without SIG, or by number.
fn parse(text: &str) -> Result<Option<Signal>> {
    if let Ok(number) = text.parse::<i32>() {
        if number == 0 {
            return Ok(None);
        }
        return Signal::try_from(number)
            .map(Some)
            .map_err(|_unknown| anyhow!("unknown signal {number}"));
    }
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    Signal::from_str(&name)
        .map(Some)
        .map_err(|_unknown| anyhow!("unknown signal \"{}\"", text.escape_debug()))
}

/// Pauses or resumes.
pub(super) fn freeze(root: &Path, id: &str, frozen: bool) -> Result<()> {
    let entry = Entry::new(root, id)?;
    let mut container = entry.load()?;
    if frozen {
        if !matches!(container.status(), ContainerStatus::Running | ContainerStatus::Created) {
            bail!("container not running");
        }
        container.pause().context("cannot pause the container")
    } else {
        if container.status() != ContainerStatus::Paused {
            bail!("container not paused");
        }
        container.resume().context("cannot resume the container")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_go_by_name_and_number() {
        for text in ["TERM", "SIGTERM", "term", "15"] {
            assert_eq!(parse(text).unwrap(), Some(Signal::SIGTERM), "{text}");
        }
        assert_eq!(parse("0").unwrap(), None);
        assert!(parse("SIGNOPE").is_err());
        assert!(parse("-1").is_err());
    }
}
