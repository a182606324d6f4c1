//! delete: idempotent, and the backstop of everything a container left.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use libcgroups::common::CgroupManager as _;
use libcontainer::container::{Container, ContainerStatus};
use nix::sys::signal::{Signal, kill};

use super::signal;
use crate::store::Entry;
use crate::{cgroups, guard, proxy};

/// Removes a container. With `force`, a running one is killed and a missing
/// one is no error: engines delete twice.
pub(super) fn delete(root: &Path, id: &str, force: bool) -> Result<()> {
    let entry = Entry::new(root, id)?;
    let record = entry.record().ok();
    if entry.container.exists() {
        let mut container = entry.load()?;
        let status = container.status();
        if !force && !matches!(status, ContainerStatus::Stopped | ContainerStatus::Created) {
            bail!(
                "cannot delete container {id} that is not stopped: {}",
                status.to_string().to_ascii_lowercase()
            );
        }
        end_processes(&container);
        container.delete(true).with_context(|| format!("cannot delete container {id}"))?;
    } else if record.is_none() && !force {
        bail!("container {id} does not exist");
    }
    guard::end(&entry);
    if let Some(path) = record.as_ref().and_then(|record| record.cgroup.as_deref()) {
        cgroups::remove(path);
    }
    if let Some(sandbox) =
        record.and_then(|record| record.sandbox).filter(|path| !path.as_os_str().is_empty())
    {
        proxy::leave(&sandbox, id);
    }
    entry.remove()
}

/// Ends whatever still runs in the container's cgroup: processes of a shared
/// pid namespace, or an init whose runtime died while making it.
fn end_processes(container: &Container) {
    let Ok(cgroup) = signal::cgroup(container) else { return };
    for _try in 0..200 {
        let pids = cgroup.get_all_pids().unwrap_or_default();
        if pids.is_empty() {
            return;
        }
        for pid in pids {
            let _ended = kill(pid, Signal::SIGKILL);
        }
        // A frozen v1 cgroup ends nobody until it thaws.
        if crate::facts::cgroup_v1() {
            let _thawed = cgroup.freeze(libcgroups::common::FreezerState::Thawed);
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
