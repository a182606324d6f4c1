//! The confinement plan: what is done to a container, worked out before
//! anything is done.
//!
//! [`Plan::resolve`] reads the engine's spec, the policy and facts about image
//! and host, and answers with a plan or with every reason why there is none.
//! [`harden()`] applies the part that libcontainer carries out; the rest
//! (Landlock, seccomp, hooks) is done by the runtime's own executor, for init
//! and for exec alike, from the same stored plan.

mod content;
mod environment;
mod guard;
mod harden;
mod identity;
mod ids;
mod limits;
mod privileges;
mod refuse;
mod toolchain;

use std::fmt;

use oci_spec::runtime::{Hook, LinuxSeccomp, Process, Spec};
use serde::{Deserialize, Serialize};

use crate::policy::{LandlockMode, NEEDED_READ_ONLY, NEEDED_READ_WRITE, Policy};
use crate::seccomp::FilterPlan;
pub use content::{ContentView, MISSING};
pub use guard::{
    GuardPlan, IdMap, OwnMount, ShieldFact, TOOL_FILES, ToolFact, WATCHED_BESIDES, exchange_ids,
};
pub use harden::{DeviceRule, device_rules, harden};
pub use identity::home_of;
pub use ids::{Ids, has_user_namespace};
pub use limits::limit;

/// Version of the stored plan.
pub const VERSION: u32 = 2;

/// What an entry point that starts as root may do, to become somebody else.
pub const STEP_DOWN: [&str; 5] = ["SETUID", "SETGID", "CHOWN", "FOWNER", "KILL"];

/// What is known about one path of the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathFact {
    /// The path with every symbolic link resolved inside the image.
    pub real: String,
    /// Whether it is a directory.
    pub directory: bool,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

/// Read-only look into the image's root file system. The implementation must
/// never leave it (`openat2(2)`, `RESOLVE_IN_ROOT`) and must bound what it
/// reads: every byte is hostile.
pub trait ImageView {
    /// What stands at `path`; `None` when nothing does.
    fn look(&self, path: &str) -> Option<PathFact>;
    /// The text of a small file.
    fn read(&self, path: &str) -> Option<String>;
    /// Names in a directory.
    fn list(&self, path: &str) -> Vec<String>;
}

/// What is known about the host and the engine's request.
#[derive(Debug, Clone, Default)]
pub struct HostFacts {
    /// Landlock ABI of the kernel; 0 without Landlock.
    pub landlock_abi: u32,
    /// Greatest number of open files this runtime may grant.
    pub nofile_max: u64,
    /// Whether the host uses cgroup v1 controllers.
    pub cgroup_v1: bool,
    /// Whether the number of processes can be limited (pids controller).
    pub pids_controller: bool,
    /// One entry for each mount of the spec, in order.
    pub mounts: Vec<MountFact>,
    /// Namespaces of the spec that are the host's own although they have a path.
    pub host_namespaces: Vec<String>,
    /// Namespaces of the spec that belong to a process no sandbox of ours has.
    pub foreign_namespaces: Vec<String>,
    /// Whether the pid namespace is shared with a container of another sandbox.
    pub shares_pids_beyond: bool,
    /// Devices of the host that the policy names.
    pub devices: Vec<DeviceFact>,
    /// Directories that the policy wants to shield.
    pub shields: Vec<ShieldFact>,
    /// Digests of the image, as the engine tells them; none where it does not.
    pub image: Vec<String>,
}

/// What is known about the source of one mount.
#[derive(Debug, Clone, Default)]
pub struct MountFact {
    /// The source with every symbolic link resolved; empty unless a bind.
    pub source: String,
    /// Whether the source is a directory.
    pub directory: bool,
    /// Whether the source is a socket.
    pub socket: bool,
    /// Sensitive paths of the host that are, or lie beneath, the source.
    pub exposes: Vec<String>,
    /// Owner of the source.
    pub uid: u32,
    /// Group of the source.
    pub gid: u32,
    /// Device and inode of the source, by which it is known again once mounted.
    pub device: u64,
    /// See `device`.
    pub inode: u64,
    /// Those of [`TOOL_FILES`] that a directory has.
    pub tools: Vec<ToolFact>,
}

/// A device of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceFact {
    /// Whether it is a block device.
    pub block: bool,
    /// Its major number.
    pub major: i64,
    /// Its minor number.
    pub minor: i64,
}

/// Everything done to a container's processes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// [`VERSION`].
    pub version: u32,
    /// False only under `--policy observe`.
    pub confined: bool,
    /// Name of the policy, for messages.
    pub policy: String,
    /// Who init runs as (after stepping down, under that profile), and what root
    /// and exec are mapped to.
    pub identity: RunAs,
    /// Whether init starts as root, with [`STEP_DOWN`], to drop to another user.
    #[serde(default)]
    pub step_down: bool,
    /// Capabilities of every process, without `CAP_`: what the policy keeps of
    /// those the engine gives.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// Our system call filter.
    #[serde(default)]
    pub filter: FilterPlan,
    /// Writable paths that get a mount of their own without execution.
    #[serde(default)]
    pub no_exec_mounts: Vec<String>,
    /// Whether root may stay root.
    pub allow_root: bool,
    /// Variables kept although they can inject code.
    pub keep_environment: Vec<String>,
    /// Image entries of PATH that are root-owned and read-only.
    pub path_entries: Vec<String>,
    /// Landlock rules.
    pub landlock: LandlockPlan,
    /// Paths that get a read-only mount of their own.
    pub read_only_mounts: Vec<String>,
    /// Paths hidden from the container.
    pub masked: Vec<String>,
    /// Directories to make in the image before start.
    pub make_directories: Vec<MakeDirectory>,
    /// Process limit of the cgroup; 0 where the operator goes without.
    pub pids: i64,
    /// Memory limit in bytes, where the policy has one.
    #[serde(default)]
    pub memory: Option<i64>,
    /// Limit of processors in thousandths, where the policy has one.
    #[serde(default)]
    pub millicpus: Option<i64>,
    /// Open-files limit.
    pub nofile: u64,
    /// startContainer hooks, which our executor runs confined.
    #[serde(default)]
    pub start_hooks: Vec<Hook>,
    /// The engine's seccomp profile, compiled anew for every process.
    pub seccomp: Option<LinuxSeccomp>,
    /// How ids correspond with the host's.
    #[serde(default)]
    pub ids: Ids,
    /// What is guarded from outside.
    #[serde(default)]
    pub guard: GuardPlan,
    /// Size in bytes of a /tmp in memory.
    #[serde(default)]
    pub tmp: Option<i64>,
    /// What was changed and is worth telling the operator.
    pub notes: Vec<String>,
}

/// An identity inside the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunAs {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups that processes may keep of those they ask for.
    #[serde(default)]
    pub groups: Vec<u32>,
    /// HOME.
    pub home: String,
    /// Whether the image or engine asked for another one.
    pub mapped: bool,
    /// How it was chosen, for messages.
    pub origin: String,
}

/// Landlock rules as data.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LandlockPlan {
    /// Whether anything less than full enforcement stops the start.
    pub required: bool,
    /// Whether signals and abstract sockets are kept within the process's own
    /// domain (since ABI 6): the pid namespace is shared beyond the sandbox.
    #[serde(default)]
    pub scoped: bool,
    /// Whether the same holds for processes of exec, each by itself.
    #[serde(default)]
    pub isolate_exec: bool,
    /// Whether programs run from read-only paths only.
    #[serde(default)]
    pub system_only: bool,
    /// Readable and executable paths.
    pub read_only: Vec<String>,
    /// Paths that are writable too.
    pub read_write: Vec<String>,
    /// Baseline paths this image does not have.
    pub missing: Vec<String>,
}

/// A directory the image lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MakeDirectory {
    /// Where.
    pub path: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// One reason why a container cannot start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The step that cannot be done.
    pub step: &'static str,
    /// Why.
    pub cause: String,
    /// What to do about it.
    pub fix: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.step, self.cause, self.fix)
    }
}

/// A container that cannot be confined as policy demands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidPlan {
    /// At least one reason.
    pub refusals: Vec<Refusal>,
}

impl fmt::Display for InvalidPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, refusal) in self.refusals.iter().enumerate() {
            if n > 0 {
                f.write_str(" | ")?;
            }
            refusal.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for InvalidPlan {}

/// Collects refusals, so that the operator sees all of them at once.
#[derive(Debug, Default)]
struct Refusals(Vec<Refusal>);

impl Refusals {
    fn add(&mut self, step: &'static str, cause: String, fix: &str) {
        self.0.push(Refusal { step, cause, fix: fix.to_owned() });
    }
}

impl Plan {
    /// Works out the plan for one container.
    ///
    /// # Errors
    /// [`InvalidPlan`] with every reason why the container must not start.
    pub fn resolve(
        spec: &Spec,
        policy: &Policy,
        image: &dyn ImageView,
        host: &HostFacts,
        content: &dyn ContentView,
    ) -> Result<Self, InvalidPlan> {
        let mut refusals = Refusals::default();
        let mut notes = Vec::new();
        content::check(&policy.options, content, &mut refusals, &mut notes);
        content::check_image(&policy.options, &host.image, &mut refusals, &mut notes);
        refuse::check(spec, policy, host, &mut refusals, &mut notes);
        if !host.pids_controller && policy.options.pids > 0 {
            refusals.add(
                "pids",
                "this host has no pids cgroup controller, so the number of processes cannot be limited".to_owned(),
                "enable it (`pids` in /sys/fs/cgroup/cgroup.controllers), or write `nemoclaw: {resources: {pids: 0}}` in the policy to go without a limit",
            );
        }
        let identity = identity::resolve(spec, policy, image, host, &mut refusals);
        let filesystem = filesystem(spec, policy, image, host, identity.as_ref(), &mut refusals);
        let read_write = &filesystem.landlock.read_write;
        let guard =
            guard::resolve(spec, policy, host, identity.as_ref(), read_write, &mut refusals);
        let mut privileges =
            privileges::resolve(spec, policy, image, identity.as_ref(), &mut refusals);
        // Such bits would be the person's, or a group's of the host.
        privileges.filter.root_possible |= guard.id_map.is_some();
        let (Some(identity), true) = (identity, refusals.0.is_empty()) else {
            return Err(InvalidPlan { refusals: refusals.0 });
        };
        let lost = losses(host.landlock_abi);
        if !filesystem.landlock.required && !lost.is_empty() {
            notes.push(format!(
                "Landlock: this kernel (ABI {}) does not control {}; the policy accepts that",
                host.landlock_abi,
                lost.join(", ")
            ));
        }
        if privileges.step_down {
            notes.push(format!(
                "starts as root with {} to step down; exec runs as {}:{}",
                STEP_DOWN.join(" "),
                identity.uid,
                identity.gid
            ));
        } else if identity.mapped {
            notes.push(format!("runs as {}:{} ({})", identity.uid, identity.gid, identity.origin));
        }
        let asked =
            spec.process().as_ref().and_then(|process| process.env().clone()).unwrap_or_default();
        let mut masked = toolchain::hidden_proc_and_sys();
        if !policy.options.keep_toolchain {
            masked.extend(toolchain::masked(image));
        }
        Ok(Self {
            version: VERSION,
            confined: true,
            policy: policy.origin.to_string(),
            step_down: privileges.step_down,
            capabilities: privileges.capabilities,
            filter: privileges.filter,
            no_exec_mounts: filesystem.no_exec_mounts,
            allow_root: policy.options.allow_root,
            keep_environment: policy.options.keep_environment.clone(),
            path_entries: environment::trusted_path_entries(&asked, image),
            landlock: filesystem.landlock,
            read_only_mounts: filesystem.read_only_mounts,
            masked,
            make_directories: filesystem.make_directories,
            pids: pids(spec, policy),
            memory: policy.options.memory,
            millicpus: policy.options.millicpus,
            start_hooks: spec
                .hooks()
                .as_ref()
                .and_then(|hooks| hooks.start_container().clone())
                .unwrap_or_default(),
            nofile: host.nofile_max.min(policy.options.open_files),
            ids: Ids::of(spec),
            guard,
            tmp: policy.options.tmp.filter(|_| {
                !mount_targets(spec, host).iter().any(|target| beneath("/tmp", &target.path))
            }),
            seccomp: spec.linux().as_ref().and_then(|linux| linux.seccomp().clone()),
            identity,
            notes,
        })
    }

    /// The plan of `--policy observe`: the engine's spec as it is, its seccomp
    /// profile installed by us because libcontainer would ignore it.
    pub fn observe(spec: &Spec) -> Self {
        let user = spec.process().as_ref().map(Process::user);
        Self {
            version: VERSION,
            confined: false,
            policy: "observe".to_owned(),
            identity: RunAs {
                uid: user.map_or(0, oci_spec::runtime::User::uid),
                gid: user.map_or(0, oci_spec::runtime::User::gid),
                groups: Vec::new(),
                home: String::new(),
                mapped: false,
                origin: "the image".to_owned(),
            },
            step_down: false,
            capabilities: Vec::new(),
            filter: FilterPlan::default(),
            no_exec_mounts: Vec::new(),
            allow_root: true,
            keep_environment: Vec::new(),
            path_entries: Vec::new(),
            landlock: LandlockPlan::default(),
            read_only_mounts: Vec::new(),
            masked: Vec::new(),
            make_directories: Vec::new(),
            pids: 0,
            memory: None,
            millicpus: None,
            // libcontainer runs them.
            start_hooks: Vec::new(),
            nofile: 0,
            ids: Ids::of(spec),
            guard: GuardPlan::default(),
            tmp: None,
            seccomp: spec.linux().as_ref().and_then(|linux| linux.seccomp().clone()),
            notes: vec!["NOT CONFINED: --policy observe".to_owned()],
        }
    }

    /// Cuts an exec'd process back to the plan: what it asks beyond the plan
    /// (capabilities, root, injected variables) it does not get.
    ///
    /// # Errors
    /// A [`Refusal`] for an identity that belongs to a proxy.
    pub fn confine_process(&self, mut process: Process) -> Result<Process, Refusal> {
        if !self.confined {
            return Ok(process);
        }
        let user = process.user().clone();
        identity::check_worker_range(user.uid(), user.gid(), user.additional_gids().as_deref())?;
        let root = user.uid() == 0 && !self.allow_root;
        let mut home = None;
        let groups = self.kept_groups(&process);
        if root {
            harden::set_user(&mut process, self.identity.uid, self.identity.gid, groups);
            home = Some(self.identity.home.as_str());
        } else {
            let gid = if user.gid() == 0 && user.uid() != 0 {
                if user.uid() == self.identity.uid { self.identity.gid } else { user.uid() }
            } else {
                user.gid()
            };
            if user.uid() == self.identity.uid && user.uid() != 0 {
                home = Some(self.identity.home.as_str());
            }
            harden::set_user(&mut process, user.uid(), gid, groups);
        }
        let asked = process.env().clone().unwrap_or_default();
        process.set_env(Some(self.environment(&asked, home)));
        harden::restrict(&mut process, self.nofile, &self.capabilities);
        Ok(process)
    }

    /// Supplementary groups of those a process asks for that the policy names.
    fn kept_groups(&self, process: &Process) -> Vec<u32> {
        let asked = process.user().additional_gids().clone().unwrap_or_default();
        asked.into_iter().filter(|gid| self.identity.groups.contains(gid)).collect()
    }

    /// The environment a confined process gets for the one asked for.
    fn environment(&self, asked: &[String], home: Option<&str>) -> Vec<String> {
        environment::filter(asked, &self.keep_environment, &self.path_entries, home)
    }
}

fn pids(spec: &Spec, policy: &Policy) -> i64 {
    let asked = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().as_ref())
        .and_then(|resources| resources.pids().as_ref().map(oci_spec::runtime::LinuxPids::limit))
        .filter(|limit| *limit > 0);
    if policy.options.pids == 0 {
        return 0;
    }
    // RLIMIT_NPROC counts per uid over all sandboxes (setrlimit(2)); what was meant
    // is a limit of this one, too.
    let limits = spec.process().iter().flat_map(|process| process.rlimits().iter().flatten());
    let processes = limits
        .filter(|limit| limit.typ() == oci_spec::runtime::PosixRlimitType::RlimitNproc)
        .filter_map(|limit| i64::try_from(limit.hard()).ok())
        .find(|limit| *limit > 0);
    let asked = asked.into_iter().chain(processes).min();
    asked.map_or(policy.options.pids, |limit| limit.min(policy.options.pids_max))
}

struct FilesystemPlan {
    landlock: LandlockPlan,
    read_only_mounts: Vec<String>,
    no_exec_mounts: Vec<String>,
    make_directories: Vec<MakeDirectory>,
}

/// Files the engine writes and mounts into every container.
const ENGINE_FILES: [&str; 3] = ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];

/// System directories that get a read-only mount: Landlock does not govern
/// chmod, chown and utimes, a read-only mount does.
const READ_ONLY_MOUNTS: [&str; 12] = [
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt", "/srv", "/app",
    "/var/log",
];

fn filesystem(
    spec: &Spec,
    policy: &Policy,
    image: &dyn ImageView,
    host: &HostFacts,
    identity: Option<&RunAs>,
    refusals: &mut Refusals,
) -> FilesystemPlan {
    let mounts = mount_targets(spec, host);
    refuse_linked_mounts(&mounts, image, refusals);
    let mounted = |path: &str| mounts.iter().any(|mount| beneath(path, &mount.path));
    let Listed { mut read_only, mut read_write, missing, mut make_directories } =
        listed(policy, image, &mounts, identity, refusals);
    if policy.filesystem.named {
        let add = |wanted: &[&str], list: &mut Vec<String>, others: &[String]| {
            for path in wanted {
                let known = list.iter().chain(others).any(|known| beneath(path, known));
                if !known && (image.look(path).is_some() || engine_made(path)) {
                    list.push((*path).to_owned());
                }
            }
        };
        add(&NEEDED_READ_ONLY, &mut read_only, &read_write);
        add(&NEEDED_READ_WRITE, &mut read_write, &read_only);
    }
    for mount in &mounts {
        let list = if mount.read_only || mount.beneath_read_only(&read_only) {
            &mut read_only
        } else {
            &mut read_write
        };
        list.push(mount.path.clone());
    }
    if let Some(identity) = identity {
        if identity.home == "/sandbox" && image.look("/sandbox").is_none() && !mounted("/sandbox") {
            make_directories.extend(home_directory("/sandbox", Some(identity)));
        }
        if let Some(home) = writable_home(identity, image) {
            read_write.push(home);
        }
    }
    read_write.extend(make_directories.iter().map(|made| made.path.clone()));
    let cwd = spec.process().as_ref().map(|process| process.cwd().display().to_string());
    if let Some(cwd) = cwd
        && policy.filesystem.include_workdir
        && cwd.trim_end_matches('/').len() > 1
        && !read_only.iter().chain(&read_write).any(|known| beneath(&cwd, known))
    {
        // An image chooses WORKDIR: reading it is harmless, writing is not
        // given outside mounts, HOME, /sandbox and /tmp.
        read_only.push(cwd);
    }
    // Checked above; the engine makes their nodes in /dev.
    let devices = spec.linux().iter().flat_map(|linux| linux.devices().iter().flatten());
    read_write.extend(devices.map(|device| device.path().display().to_string()));
    dedup(&mut read_only);
    dedup(&mut read_write);
    dedup_by_path(&mut make_directories);
    let read_only_mounts = READ_ONLY_MOUNTS
        .iter()
        .filter(|path| image.look(path).is_some_and(|fact| fact.directory && fact.real == **path))
        .filter(|path| !read_write.iter().any(|writable| writable == *path))
        .map(ToString::to_string)
        .collect();
    let real = |path: &&String| {
        image.look(path).is_some_and(|fact| fact.directory && fact.real == **path)
            || make_directories.iter().any(|made| made.path == **path)
    };
    let no_exec_mounts = read_write
        .iter()
        .filter(|path| policy.options.system_only && !beneath(path, "/dev") && !mounted(path))
        .filter(|path| policy.options.tmp.is_none() || *path != "/tmp")
        .filter(real)
        .cloned()
        .collect();
    let landlock = LandlockPlan {
        required: policy.landlock == LandlockMode::HardRequirement,
        scoped: host.shares_pids_beyond,
        isolate_exec: policy.options.isolate_exec,
        system_only: policy.options.system_only,
        read_only,
        read_write,
        missing,
    };
    refuse_weak_landlock(&landlock, host.landlock_abi, refusals);
    FilesystemPlan { landlock, read_only_mounts, no_exec_mounts, make_directories }
}

/// A kernel that cannot enforce what the plan means is refused, unless the
/// policy accepts that.
fn refuse_weak_landlock(landlock: &LandlockPlan, abi: u32, refusals: &mut Refusals) {
    // ABI 2 only adds a right (moving between directories) that is denied
    // without it; the rest would be open.
    let lost: Vec<&str> = losses(abi)
        .into_iter()
        .filter(|lost| abi > 0 && !lost.starts_with("moving"))
        .filter(|lost| landlock.scoped || landlock.isolate_exec || !lost.starts_with("signals"))
        .collect();
    if landlock.required && !lost.is_empty() {
        refusals.add(
            "Landlock",
            format!(
                "this kernel's Landlock (ABI {abi}) does not control {}",
                lost.join(", ")
            ),
            "use a newer kernel, or write `landlock: {compatibility: best_effort}` in the policy to go without",
        );
    }
    if landlock.required && abi == 0 {
        refusals.add(
            "Landlock",
            "this kernel has no Landlock, or it is off".to_owned(),
            "boot Linux 5.13 or newer with `lsm=landlock,...`, or write `landlock: {compatibility: best_effort}` in the policy",
        );
    }
}

/// Mounts that the image's symbolic links lead elsewhere: onto the kernel's own
/// file systems, or a volume (which an image can ask for) onto system files.
fn refuse_linked_mounts(mounts: &[Target], image: &dyn ImageView, refusals: &mut Refusals) {
    for mount in mounts {
        let Some(fact) = image.look(&mount.path).filter(|fact| fact.real != mount.path) else {
            continue;
        };
        let under = |places: &[&str]| places.iter().any(|place| beneath(&fact.real, place));
        if under(&["/proc", "/sys", "/dev"])
            || fact.real == "/"
            || (mount.volume && under(&READ_ONLY_MOUNTS))
        {
            refusals.add(
                "mounts",
                format!(
                    "the image leads the mount at `{}` to its `{}` by a symbolic link",
                    mount.path.escape_debug(),
                    fact.real.escape_debug()
                ),
                "mount at the real path, or mend the image",
            );
        }
    }
}

struct Listed {
    read_only: Vec<String>,
    read_write: Vec<String>,
    missing: Vec<String>,
    make_directories: Vec<MakeDirectory>,
}

/// The paths a policy names, as far as this container has them.
fn listed(
    policy: &Policy,
    image: &dyn ImageView,
    mounts: &[Target],
    identity: Option<&RunAs>,
    refusals: &mut Refusals,
) -> Listed {
    let mut read_only = Vec::new();
    let mut read_write = Vec::new();
    let mut missing = Vec::new();
    let mut make_directories = Vec::new();
    let mounted = |path: &str| mounts.iter().any(|mount| beneath(path, &mount.path));
    for path in &policy.filesystem.read_only {
        match image.look(path) {
            Some(_) => read_only.push(path.clone()),
            None if mounted(path) || engine_made(path) => read_only.push(path.clone()),
            None if policy.filesystem.named => missing_path(path, refusals),
            None => missing.push(path.clone()),
        }
    }
    for path in &policy.filesystem.read_write {
        match image.look(path) {
            Some(fact) if !beneath(&fact.real, path) && !allowed_target(&fact.real, policy) => {
                refusals.add(
                    "file system",
                    format!(
                        "the writable path `{path}` is a symbolic link of the image to `{}`",
                        fact.real.escape_debug()
                    ),
                    "name the target in the policy, or mend the image",
                );
            }
            Some(_) => read_write.push(path.clone()),
            None if mounted(path) || engine_made(path) => read_write.push(path.clone()),
            None if path == "/sandbox" => make_directories.extend(home_directory(path, identity)),
            None if policy.filesystem.named => missing_path(path, refusals),
            None => missing.push(path.clone()),
        }
    }
    Listed { read_only, read_write, missing, make_directories }
}

fn missing_path(path: &str, refusals: &mut Refusals) {
    refusals.add(
        "file system",
        format!("the policy names `{path}`, which this image does not have"),
        "make it in the image, mount it, or take it out of the policy",
    );
}

/// Paths that engine and runtime make whatever the image holds.
fn engine_made(path: &str) -> bool {
    path == "/proc" || path == "/sys" || path == "/dev" || path.starts_with("/dev/")
}

fn allowed_target(real: &str, policy: &Policy) -> bool {
    engine_made(real) || policy.filesystem.read_write.iter().any(|path| beneath(real, path))
}

fn home_directory(path: &str, identity: Option<&RunAs>) -> Option<MakeDirectory> {
    identity.map(|identity| MakeDirectory {
        path: path.to_owned(),
        uid: identity.uid,
        gid: identity.gid,
    })
}

/// HOME is writable when it lies where homes lie and belongs to the user.
fn writable_home(identity: &RunAs, image: &dyn ImageView) -> Option<String> {
    let fact = image.look(&identity.home)?;
    let place = ["/home", "/sandbox"].iter().any(|parent| beneath(&fact.real, parent));
    let own = fact.uid == identity.uid && fact.directory && fact.real == identity.home;
    (place && own).then_some(fact.real)
}

/// What a kernel with this Landlock ABI does not control of what the plan means
/// (landlock(7), "Previous limitations").
pub fn losses(abi: u32) -> Vec<&'static str> {
    [
        (2, "moving files between directories"),
        (3, "truncating files"),
        (5, "ioctls on devices"),
        (6, "signals and abstract sockets between sandboxes that share namespaces"),
    ]
    .into_iter()
    .filter(|(since, _)| abi < *since)
    .map(|(_, what)| what)
    .collect()
}

/// True when `path` is `parent` or lies below it.
pub(crate) fn beneath(path: &str, parent: &str) -> bool {
    let parent = parent.trim_end_matches('/');
    path == parent || path.strip_prefix(parent).is_some_and(|rest| rest.starts_with('/'))
}

fn dedup(paths: &mut Vec<String>) {
    paths.sort_unstable();
    paths.dedup();
}

fn dedup_by_path(made: &mut Vec<MakeDirectory>) {
    made.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    made.dedup_by(|a, b| a.path == b.path);
}

/// A mount that people or engines put into the container.
pub(crate) struct Target {
    /// Which of the spec's mounts it is.
    pub(crate) number: usize,
    pub(crate) path: String,
    pub(crate) directory: bool,
    pub(crate) read_only: bool,
    /// From the engine's own volume store: an image can ask for those.
    pub(crate) volume: bool,
    /// A bind of a path that somebody named.
    pub(crate) named_bind: bool,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Target {
    /// An image can declare `VOLUME /etc`; that lifts no read-only path.
    fn beneath_read_only(&self, read_only: &[String]) -> bool {
        self.volume
            && read_only.iter().any(|path| {
                // /var and /run are readable as a whole and hold data.
                !matches!(path.as_str(), "/var" | "/run")
                    && (beneath(&self.path, path) || beneath(path, &self.path))
            })
    }
}

/// Bind and tmpfs mounts of the spec, without the ones every container has.
pub(crate) fn mount_targets(spec: &Spec, host: &HostFacts) -> Vec<Target> {
    let mut targets = Vec::new();
    for (n, mount) in spec.mounts().iter().flatten().enumerate() {
        let target = mount.destination().display().to_string();
        let typ = mount.typ().as_deref().unwrap_or("none");
        let options = mount.options().as_deref().unwrap_or_default();
        let has = |wanted: &str| options.iter().any(|option| option == wanted);
        let bind = typ == "bind" || has("bind") || has("rbind");
        if !bind && typ != "tmpfs" {
            continue;
        }
        if ["/proc", "/sys", "/dev"].iter().any(|special| beneath(&target, special)) {
            continue;
        }
        let fact = host.mounts.get(n).cloned().unwrap_or_default();
        let mut parts = fact.source.rsplit('/');
        let volume = bind && parts.next() == Some("_data") && parts.nth(1) == Some("volumes");
        let engine_file = ENGINE_FILES.contains(&target.as_str());
        targets.push(Target {
            number: n,
            directory: fact.directory,
            read_only: has("ro") || engine_file,
            volume,
            named_bind: bind && !volume && !engine_file,
            uid: fact.uid,
            gid: fact.gid,
            path: target,
        });
    }
    targets
}

#[cfg(test)]
mod tests;
