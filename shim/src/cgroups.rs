//! Hierarchies that libcgroups leaves alone on hosts with cgroup v1
//! controllers: the named one of systemd and the unified one. Left in the
//! engine's group there, a container would end with the engine's unit.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nemoclaw_spec::devices;
use nemoclaw_spec::plan::device_rules;
use oci_spec::runtime::{LinuxNamespaceType, Mount, MountBuilder, Spec};

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

/// Mounts the container's groups one by one where it takes a pid namespace that
/// exists already. libcontainer's own way (rootfs/mount.rs, 0.7.0) reads
/// /proc/PID/cgroup of the host with the pid that init has in *that* namespace:
/// it fails where the host has no such process.
pub(crate) fn mount_by_hand(spec: &mut Spec) {
    let joins =
        spec.linux().iter().flat_map(|linux| linux.namespaces().iter().flatten()).any(
            |namespace| namespace.typ() == LinuxNamespaceType::Pid && namespace.path().is_some(),
        );
    let linux = spec.linux().as_ref();
    let group = linux.and_then(|linux| linux.cgroups_path().clone()).unwrap_or_default();
    if !joins || !crate::facts::cgroup_v1() {
        return;
    }
    let mut mounts = Vec::new();
    for mount in spec.mounts().clone().unwrap_or_default() {
        if mount.typ().as_deref() != Some("cgroup") {
            mounts.push(mount);
            continue;
        }
        let destination = mount.destination();
        mounts.extend(own_mount(destination, "tmpfs", Path::new("tmpfs"), &["mode=755"]));
        // A group of systemd's is named in another form: then there is none to show.
        for name in controllers().filter(|_| group.is_absolute()) {
            let relative = group.strip_prefix("/").unwrap_or(&group);
            let source = Path::new("/sys/fs/cgroup").join(&name).join(relative);
            mounts.extend(own_mount(&destination.join(&name), "bind", &source, &["bind", "ro"]));
        }
    }
    spec.set_mounts(Some(mounts));
}

/// Names of the mounted v1 hierarchies that limit something.
fn controllers() -> impl Iterator<Item = String> {
    fs::read_dir("/sys/fs/cgroup")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name != "systemd" && name != "unified")
        .filter(|name| Path::new("/sys/fs/cgroup").join(name).join("cgroup.procs").exists())
}

fn own_mount(destination: &Path, typ: &str, source: &Path, options: &[&str]) -> Option<Mount> {
    let common = ["nosuid", "nodev", "noexec"];
    let options: Vec<String> = options.iter().chain(&common).map(ToString::to_string).collect();
    MountBuilder::default()
        .destination(destination)
        .typ(typ)
        .source(source)
        .options(options)
        .build()
        .ok()
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

/// Lets the plan's device rules decide in the container's group of cgroup v2,
/// which libcgroups leaves open (its feature needs a C library).
///
/// # Errors
/// When the kernel takes no program; the container must not start.
pub(crate) fn restrict_devices(pid: i32, spec: &Spec) -> Result<()> {
    if crate::facts::cgroup_v1() {
        return Ok(());
    }
    let path = of(pid, "").context("the container's cgroup cannot be found")?;
    let directory = Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/'));
    let group = fs::File::open(&directory)
        .with_context(|| format!("cannot open the cgroup {}", directory.display()))?;
    let program = devices::program(&device_rules(spec));
    crate::sys::restrict_devices(group.as_fd(), &program).context(
        "devices: the kernel takes no program for the container's cgroup; is it built with CONFIG_CGROUP_BPF?",
    )
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
