//! Hierarchies that libcgroups leaves alone on hosts with cgroup v1
//! controllers: the named one of systemd and the unified one. Left in the
//! engine's group there, a container would end with the engine's unit.

use std::fs;
use std::path::{Path, PathBuf};

const ROOTS: [&str; 2] = ["/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"];

/// The container's own path among cgroups, as its init's controllers have it.
pub(crate) fn path_of(pid: i32) -> Option<String> {
    of(pid, "pids").filter(|path| path.len() > 1)
}

/// The path of a process in the hierarchy of a controller, or in cgroup v2's.
pub(crate) fn of(pid: i32, controller: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let lines = text.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':');
        let controllers = fields.nth(1)?;
        Some((controllers, fields.next()?))
    });
    let mut unified = None;
    for (controllers, path) in lines {
        if controllers.split(',').any(|own| own == controller) {
            return Some(path.to_owned());
        }
        if controllers.is_empty() {
            unified = Some(path.to_owned());
        }
    }
    unified
}

fn directories(path: &str) -> impl Iterator<Item = PathBuf> {
    let relative = path.trim_start_matches('/').to_owned();
    ROOTS
        .into_iter()
        .map(Path::new)
        .filter(|root| crate::facts::cgroup_v1() && root.join("cgroup.procs").exists())
        .map(move |root| root.join(&relative))
}

/// Moves init into its group in both hierarchies. They limit nothing, so a host
/// that does not allow it loses no confinement.
pub(crate) fn join(pid: i32, path: &str) {
    for directory in directories(path) {
        if fs::create_dir_all(&directory).is_ok() {
            let _moved = fs::write(directory.join("cgroup.procs"), pid.to_string());
        }
    }
}

/// Removes both groups when the container is gone.
pub(crate) fn remove(path: &str) {
    for directory in directories(path) {
        for _try in 0..50 {
            match fs::remove_dir(&directory) {
                Err(error) if error.raw_os_error() == Some(nix::libc::EBUSY) => {
                    std::thread::sleep(std::time::Duration::from_millis(2));
                }
                _ => break,
            }
        }
    }
}
