//! The part of the plan that libcontainer carries out, written into the spec.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Capability, LinuxCapabilities, LinuxDeviceCgroup, LinuxDeviceType, LinuxPids, LinuxResources,
    Mount, MountBuilder, PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process, Spec,
};

use super::refuse::STANDARD_DEVICES;
use super::{ENGINE_FILES, Plan, STEP_DOWN, limit};

/// Writes `plan` into `spec`. `rootfs` is the absolute path of the image's
/// root on the host, `cgroups_path` what to use where the engine named none.
pub fn harden(
    mut spec: Spec,
    plan: &Plan,
    rootfs: &str,
    cgroups_path: &str,
    cgroup_v1: bool,
) -> Spec {
    normalise(&mut spec, cgroups_path);
    if !plan.confined {
        return spec;
    }
    privileges(&mut spec, plan);
    if let Some(hooks) = spec.hooks_mut() {
        // Ours to run, confined.
        hooks.set_start_container(None);
    }
    mounts(&mut spec, plan, rootfs);
    kernel(&mut spec, plan, cgroup_v1);
    spec
}

/// The engine's mounts without devices and set-user-ID bits, and our own.
fn mounts(spec: &mut Spec, plan: &Plan, rootfs: &str) {
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    // Before the engine's, so that none of them is hidden by it.
    mounts.splice(0..0, plan.tmp.and_then(sized_tmp));
    for mount in &mut mounts {
        // Device nodes belong to /dev, which is a mount of its own.
        let bind = mount.typ().as_deref() == Some("bind")
            || mount.options().iter().flatten().any(|option| option == "bind" || option == "rbind");
        let tmpfs = mount.typ().as_deref() == Some("tmpfs");
        if (bind || (tmpfs && plan.landlock.system_only))
            && !mount.destination().starts_with("/dev")
        {
            let mut options = mount.options().clone().unwrap_or_default();
            options.retain(|option| option != "dev" && option != "suid");
            options.extend(["nodev".to_owned(), "nosuid".to_owned()]);
            if options.iter().any(|option| option == "rbind") {
                // What is mounted beneath the source comes along.
                options.extend(["rnodev".to_owned(), "rnosuid".to_owned()]);
            }
            // Their owner, a kept root, could still change modes and times.
            if ENGINE_FILES.iter().any(|file| mount.destination() == Path::new(file)) {
                options.retain(|option| option != "rw");
                options.push("ro".to_owned());
            }
            if plan.landlock.system_only && !options.iter().any(|option| option == "ro") {
                options.retain(|option| option != "exec");
                options.push("noexec".to_owned());
                if options.iter().any(|option| option == "rbind") {
                    options.push("rnoexec".to_owned());
                }
            }
            dedup(&mut options);
            mount.set_options(Some(options));
        }
    }
    for own in &plan.guard.own_mounts {
        // From the container's own tree, so that what is mounted deeper comes along.
        let source = format!("{rootfs}{}", own.path);
        let mut mount = own_mount(&source, &own.path, if own.read_only { "ro" } else { "rw" });
        if let Some(mount) = mount.as_mut().filter(|_| plan.landlock.system_only) {
            let mut options = mount.options().clone().unwrap_or_default();
            options.push("noexec".to_owned());
            mount.set_options(Some(options));
        }
        mounts.extend(mount);
    }
    // First of all mounts, so that none of the engine's is hidden by them.
    let no_exec = plan
        .no_exec_mounts
        .iter()
        .filter_map(|path| own_mount(&format!("{rootfs}{path}"), path, "noexec"));
    mounts.splice(0..0, no_exec);
    spec.set_mounts(Some(mounts));
}

/// Masked and read-only paths, limits and devices.
fn kernel(spec: &mut Spec, plan: &Plan, cgroup_v1: bool) {
    let devices = device_rules(spec);
    if let Some(linux) = spec.linux_mut() {
        let mut masked = linux.masked_paths().clone().unwrap_or_default();
        let mut read_only = linux.readonly_paths().clone().unwrap_or_default();
        masked.extend(plan.masked.iter().cloned());
        read_only.extend(
            ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
                .map(str::to_owned),
        );
        if cgroup_v1 {
            // libcontainer leaves cgroup v1 mounts writable (mount.rs).
            // The runtime makes them read-only all at once, where it restricts the root.
            masked.push("/sys/fs/cgroup/systemd".to_owned());
        }
        dedup(&mut masked);
        dedup(&mut read_only);
        read_only.retain(|path| !masked.contains(path));
        linux.set_masked_paths(Some(masked));
        linux.set_readonly_paths(Some(read_only));
        let mut resources = linux.resources().clone().unwrap_or_else(LinuxResources::default);
        let mut pids = LinuxPids::default();
        pids.set_limit(plan.pids);
        resources.set_pids((plan.pids > 0).then_some(pids));
        limit(&mut resources, plan, true);
        resources.set_devices(Some(written(&devices)));
        // Raw cgroup v2 files could undo the limits above.
        let unified = resources.unified().clone().map(|files| {
            files
                .into_iter()
                .filter(|(name, _)| {
                    let limited = (plan.memory.is_some() && name.starts_with("memory."))
                        || (plan.millicpus.is_some() && name.starts_with("cpu."));
                    !limited && !name.starts_with("pids.") && !name.starts_with("cgroup.")
                })
                .collect()
        });
        resources.set_unified(unified);
        linux.set_resources(Some(resources));
    }
}

/// Identity, environment, capabilities and limits of init.
fn privileges(spec: &mut Spec, plan: &Plan) {
    let Some(process) = spec.process_mut() else { return };
    let asked = process.env().clone().unwrap_or_default();
    process.set_env(Some(plan.environment(&asked, Some(&plan.identity.home))));
    let groups = plan.kept_groups(process);
    if plan.step_down {
        set_user(process, 0, 0, groups);
        let mut capabilities: Vec<String> = STEP_DOWN.map(str::to_owned).to_vec();
        capabilities.extend(plan.capabilities.iter().cloned());
        restrict(process, plan.nofile, &[]);
        process.set_capabilities(Some(sets(&capabilities, false)));
    } else {
        set_user(process, plan.identity.uid, plan.identity.gid, groups);
        restrict(process, plan.nofile, &plan.capabilities);
    }
}

/// One device, or all of a major number, that a container may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceRule {
    /// Whether it is a block device, else a character device.
    pub block: bool,
    /// Its major number; any where `None`.
    pub major: Option<i32>,
    /// Its minor number; any where `None`.
    pub minor: Option<i32>,
    /// Whether nodes of it may be made (mknod(2)).
    pub make: bool,
}

/// The usual devices and what the spec lists, which has been checked: an image's
/// own device nodes open nothing.
pub fn device_rules(spec: &Spec) -> Vec<DeviceRule> {
    let number = |value: i64| i32::try_from(value).unwrap_or(i32::MAX);
    let standard = STANDARD_DEVICES.iter().map(|(major, minor)| DeviceRule {
        block: false,
        major: Some(number(*major)),
        minor: minor.map(number),
        make: true,
    });
    let listed = spec.linux().iter().flat_map(|linux| linux.devices().iter().flatten());
    let listed = listed.map(|device| DeviceRule {
        block: device.typ() == LinuxDeviceType::B,
        major: Some(number(device.major())),
        minor: Some(number(device.minor())),
        make: false,
    });
    standard.chain(listed).collect()
}

/// The same in the words of the OCI spec, for cgroup v1.
fn written(rules: &[DeviceRule]) -> Vec<LinuxDeviceCgroup> {
    let mut none = LinuxDeviceCgroup::default();
    none.set_allow(false);
    none.set_typ(Some(LinuxDeviceType::A));
    none.set_access(Some("rwm".to_owned()));
    let some = rules.iter().map(|device| {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(true);
        rule.set_typ(Some(if device.block { LinuxDeviceType::B } else { LinuxDeviceType::C }));
        rule.set_major(device.major.map(i64::from));
        rule.set_minor(device.minor.map(i64::from));
        rule.set_access(Some(if device.make { "rwm" } else { "rw" }.to_owned()));
        rule
    });
    std::iter::once(none).chain(some).collect()
}

/// What libcontainer would reject or misread, for any policy.
fn normalise(spec: &mut Spec, cgroups_path: &str) {
    if let Some(mounts) = spec.mounts_mut() {
        for mount in mounts.iter_mut().filter(|mount| mount.typ().as_deref() == Some("tmpfs")) {
            // podman's wish to start the tmpfs with the image's files; the
            // directories it wishes that for are empty in nearly every image.
            let options = mount.options().clone().map(|options| {
                options.into_iter().filter(|option| option != "tmpcopyup").collect::<Vec<_>>()
            });
            mount.set_options(options);
        }
    }
    if let Some(linux) = spec.linux_mut() {
        let propagation = linux.rootfs_propagation().as_deref().map(|word| match word {
            "rslave" => "slave",
            "rprivate" => "private",
            "rshared" => "shared",
            "runbindable" => "unbindable",
            other => other,
        });
        let propagation = propagation.map(str::to_owned);
        linux.set_rootfs_propagation(propagation);
        if linux.cgroups_path().as_ref().is_none_or(|path| path.as_os_str().is_empty()) {
            linux.set_cgroups_path(Some(PathBuf::from(cgroups_path)));
        }
        // Installed by our executor, for exec too.
        linux.set_seccomp(None);
    }
}

/// Cuts the capabilities to those kept, forbids new privileges, sets the limits.
pub(super) fn restrict(process: &mut Process, nofile: u64, kept: &[String]) {
    process.set_capabilities(Some(sets(kept, true)));
    process.set_no_new_privileges(Some(true));
    let mut limits: Vec<PosixRlimit> = process.rlimits().clone().unwrap_or_default();
    let open_files = limits
        .iter()
        .find(|limit| limit.typ() == PosixRlimitType::RlimitNofile)
        .map_or((nofile, nofile), |limit| (limit.soft().min(nofile), limit.hard().min(nofile)));
    limits.retain(|limit| {
        !matches!(limit.typ(), PosixRlimitType::RlimitNofile | PosixRlimitType::RlimitCore)
    });
    limits.extend(rlimit(PosixRlimitType::RlimitNofile, open_files));
    limits.extend(rlimit(PosixRlimitType::RlimitCore, (0, 0)));
    process.set_rlimits(Some(limits));
}

/// Every set with these capabilities. The ambient set gives them to programs of
/// a user that is not root (capabilities(7)).
fn sets(names: &[String], ambient: bool) -> LinuxCapabilities {
    let all: std::collections::HashSet<Capability> =
        names.iter().filter_map(|name| named(name)).collect();
    let across = if ambient { all.clone() } else { std::collections::HashSet::default() };
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(all.clone()));
    sets.set_effective(Some(all.clone()));
    sets.set_permitted(Some(all));
    sets.set_inheritable(Some(across.clone()));
    sets.set_ambient(Some(across));
    sets
}

fn named(name: &str) -> Option<Capability> {
    serde_json::from_value(serde_json::Value::String(format!("CAP_{name}"))).ok()
}

fn rlimit(typ: PosixRlimitType, (soft, hard): (u64, u64)) -> Option<PosixRlimit> {
    PosixRlimitBuilder::default().typ(typ).soft(soft).hard(hard).build().ok()
}

/// Sets the identity; supplementary groups are cleared but for these.
pub(super) fn set_user(process: &mut Process, uid: u32, gid: u32, groups: Vec<u32>) {
    let mut user = process.user().clone();
    user.set_uid(uid);
    user.set_gid(gid);
    user.set_additional_gids((!groups.is_empty()).then_some(groups));
    user.set_username(None);
    process.set_user(user);
}

/// A /tmp in memory, of a size in bytes.
fn sized_tmp(bytes: i64) -> Option<Mount> {
    let size = format!("size={bytes}");
    MountBuilder::default()
        .destination("/tmp")
        .typ("tmpfs")
        .source("tmpfs")
        .options(["nosuid", "nodev", "mode=1777", size.as_str()].map(str::to_owned).to_vec())
        .build()
        .ok()
}

/// A part of the container's files, mounted over itself with an option more.
fn own_mount(source: &str, path: &str, option: &str) -> Option<Mount> {
    MountBuilder::default()
        .destination(path)
        .typ("bind")
        .source(source)
        .options(["rbind", option, "nodev", "nosuid"].map(str::to_owned).to_vec())
        .build()
        .ok()
}

fn dedup(paths: &mut Vec<String>) {
    let mut seen = std::collections::HashSet::new();
    paths.retain(|path| seen.insert(path.clone()));
}
