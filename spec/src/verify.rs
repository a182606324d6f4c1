//! Comparing what the kernel says of a sandbox with the plan.
//!
//! Pure: the runtime reads /proc, this module judges. What /proc does not show
//! (Landlock) is known by the executor's self-test, which the runtime recorded
//! with pid and start time over a pipe the container cannot reach; processes
//! that descend from such an executor have it by inheritance (landlock(7)).

use serde::Serialize;

use crate::control::{WORKER_UID_BASE, WORKER_UID_END};
use crate::plan::{Plan, STEP_DOWN, beneath};
use crate::seccomp::Relaxation;

/// Capabilities by number (linux/capability.h).
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// How a process is known to be within Landlock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Landlock {
    /// Its executor tested it.
    Recorded,
    /// It descends from a process whose executor tested it.
    Inferred,
    /// Neither.
    Unknown,
}

/// One process as the kernel shows it (proc(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// In the host's view.
    pub pid: i32,
    /// Real, effective, saved and file-system user ids, in the container's view.
    pub uids: [u32; 4],
    /// The same for groups.
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// The sets Inh, Prm, Eff, Bnd, Amb by name.
    pub capabilities: Vec<(&'static str, u64)>,
    /// `NoNewPrivs`.
    pub no_new_privileges: bool,
    /// `Seccomp`; 2 is a filter.
    pub seccomp: u32,
    /// `Seccomp_filters` (since Linux 5.9); `None` on older kernels.
    pub filters: Option<usize>,
    /// Hard limits of open files and core size; `None` for no limit.
    pub limits: [Option<u64>; 2],
    /// Namespaces that are not those of the container's init.
    pub other_namespaces: Vec<&'static str>,
    /// Whether it is in the container's cgroup, or below.
    pub in_cgroup: bool,
    /// Whether Landlock is known to hold it.
    pub landlock: Landlock,
}

/// One mount of the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where.
    pub point: String,
    /// The options of the mount itself.
    pub options: Vec<String>,
    /// The file system's type.
    pub kind: String,
}

/// A container as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Every process of it.
    pub processes: Vec<Process>,
    /// Its mounts in order, the last of a path on top.
    pub mounts: Vec<Mount>,
    /// Namespaces it shares with the host.
    pub host_namespaces: Vec<&'static str>,
    /// Its process limit; `None` for none.
    pub pids_max: Option<i64>,
    /// Filters the plan installs.
    pub filters: usize,
    /// Whether the network namespace holds the rules it was locked with;
    /// otherwise how they differ.
    pub rules: Result<(), String>,
    /// Whether the proxy answers.
    pub proxy: bool,
    /// Whether shields should be up.
    pub shields_up: bool,
    /// Whether the watcher of files runs; `None` where the runtime started none.
    pub watcher: Option<bool>,
    /// How the mounts differ from those recorded at the start.
    pub changed_mounts: Vec<String>,
    /// Masked paths and whether something is there to mask.
    pub masked: Vec<(String, bool)>,
}

/// Something that is not as the plan has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The process, or none where it is about the container.
    pub pid: Option<i32>,
    /// The control.
    pub control: &'static str,
    /// What was found, and what the plan says.
    pub found: String,
}

/// Everything that is not as the plan has it.
pub fn compare(plan: &Plan, observed: &Observed) -> Vec<Difference> {
    let mut found = Vec::new();
    container(plan, observed, &mut found);
    mounts(plan, observed, &mut found);
    for process in &observed.processes {
        let mut add = |control, text: String| {
            found.push(Difference { pid: Some(process.pid), control, found: text });
        };
        privileges(plan, observed.filters, process, &mut add);
        identity(plan, process, &mut add);
        place(plan, process, &mut add);
    }
    found
}

fn container(plan: &Plan, observed: &Observed, found: &mut Vec<Difference>) {
    let mut add = |control, text: String| {
        found.push(Difference { pid: None, control, found: text });
    };
    for name in &observed.host_namespaces {
        add("namespaces", format!("the {name} namespace is the host's"));
    }
    if plan.pids > 0 && observed.pids_max.is_none_or(|limit| limit > plan.pids) {
        let limit = observed.pids_max.map_or_else(|| "none".to_owned(), |limit| limit.to_string());
        add("pids", format!("the process limit is {limit}, the plan says {}", plan.pids));
    }
    if let Err(why) = &observed.rules {
        add("network", why.clone());
    }
    if !observed.proxy {
        add("network", "the sandbox's proxy does not answer".to_owned());
    }
    let guarded = !plan.guard.watched.is_empty() || !plan.guard.private.is_empty();
    if guarded && observed.watcher != Some(true) {
        add("files", "the watcher of the sandbox's files does not run".to_owned());
    }
    if observed.processes.is_empty() {
        add("processes", "the container has none".to_owned());
    }
}

fn mounts(plan: &Plan, observed: &Observed, found: &mut Vec<Difference>) {
    let mut add =
        |text: String| found.push(Difference { pid: None, control: "mounts", found: text });
    let at = |path: &str| observed.mounts.iter().rev().find(|mount| mount.point == path);
    let mut demand = |path: &str, options: &[&str]| match at(path) {
        // A later mount above it hides it (mounts are listed in their order).
        Some(_) if hidden(path, &observed.mounts) => {
            add(format!("`{}` is hidden by a mount above it", path.escape_debug()));
        }
        None => add(format!("`{}` is no mount of its own", path.escape_debug())),
        Some(mount) => {
            for option in
                options.iter().filter(|option| !mount.options.iter().any(|o| o == *option))
            {
                add(format!("`{}` is not mounted {option}", path.escape_debug()));
            }
        }
    };
    demand("/", &["nosuid", "nodev"]);
    for path in &plan.read_only_mounts {
        demand(path, &["ro", "nosuid", "nodev"]);
    }
    for path in &plan.no_exec_mounts {
        demand(path, &["noexec"]);
    }
    for own in &plan.guard.own_mounts {
        let shield = plan.guard.shields.iter().any(|p| p.trim_end_matches('/') == own.path);
        let locked = if shield { observed.shields_up } else { own.read_only };
        let mut options = if locked { vec!["ro"] } else { Vec::new() };
        options.extend(plan.landlock.system_only.then_some("noexec"));
        demand(&own.path, &options);
    }
    if plan.tmp.is_some() && at("/tmp").is_none_or(|mount| mount.kind != "tmpfs") {
        add("`/tmp` is no file system in memory".to_owned());
    }
    for (path, there) in &observed.masked {
        if *there && at(path).is_none() {
            add(format!("`{}` is not masked", path.escape_debug()));
        }
    }
    for change in &observed.changed_mounts {
        add(change.clone());
    }
}

fn hidden(path: &str, mounts: &[Mount]) -> bool {
    let above = |mount: &Mount| mount.point != path && beneath(path, &mount.point);
    let last = mounts.iter().rposition(|mount| mount.point == path);
    last.is_some_and(|last| mounts.iter().skip(last).any(above))
}

fn privileges(
    plan: &Plan,
    filters: usize,
    process: &Process,
    add: &mut impl FnMut(&'static str, String),
) {
    for (set, bits) in &process.capabilities {
        let beyond: Vec<&str> = CAPABILITIES
            .iter()
            .enumerate()
            .filter(|(number, name)| {
                bits & (1 << number) != 0 && !allowed(plan, set, process, name)
            })
            .map(|(_, name)| *name)
            .collect();
        if !beyond.is_empty() {
            let names = match beyond.len() {
                0..=8 => beyond.join(" "),
                number => format!(
                    "{number} capabilities, {} among them",
                    beyond.iter().take(8).copied().collect::<Vec<_>>().join(" ")
                ),
            };
            add("capabilities", format!("Cap{set} holds {names}"));
        }
        if bits >> CAPABILITIES.len() != 0 {
            add("capabilities", format!("Cap{set} holds capabilities of no name: {bits:x}"));
        }
    }
    if !process.no_new_privileges {
        add("no_new_privs", "new privileges are not forbidden".to_owned());
    }
    if process.seccomp != 2 {
        add("seccomp", format!("the mode is {}, not 2 (filter)", process.seccomp));
    } else if process.filters.is_some_and(|number| number < filters) {
        let number = process.filters.unwrap_or_default();
        add("seccomp", format!("{number} filters are installed, the plan has {filters}"));
    }
    for (limit, name, most) in
        [(process.limits[0], "open files", plan.nofile), (process.limits[1], "core size", 0)]
    {
        if limit.is_none_or(|limit| limit > most) {
            let found = limit.map_or_else(|| "none".to_owned(), |limit| limit.to_string());
            add("rlimits", format!("the hard limit of {name} is {found}, the plan says {most}"));
        }
    }
}

/// Under step-down, the five are root's; what stays in the bounding set gives a
/// process nothing under `no_new_privs`.
fn allowed(plan: &Plan, set: &str, process: &Process, name: &str) -> bool {
    let stepping =
        plan.step_down && STEP_DOWN.contains(&name) && (set == "Bnd" || process.uids.contains(&0));
    stepping || plan.capabilities.iter().any(|kept| kept == name)
}

fn identity(plan: &Plan, process: &Process, add: &mut impl FnMut(&'static str, String)) {
    let root = plan.allow_root || plan.step_down;
    let ids = process.uids.iter().chain(&process.gids).chain(&process.groups);
    if !root && ids.clone().any(|id| *id == 0) {
        add("user", "it is root, or in root's group".to_owned());
    }
    if ids.clone().any(|id| (WORKER_UID_BASE..WORKER_UID_END).contains(id)) {
        add("user", "it has the identity of a proxy".to_owned());
    }
    if plan.filter.identities.is_none()
        && let Some(stranger) = process
            .groups
            .iter()
            .find(|gid| !process.gids.contains(gid) && !plan.identity.groups.contains(gid))
    {
        add("user", format!("it is in the group {stranger}, which the plan does not name"));
    }
    // seccomp cannot read the list that setgroups(2) is given.
    if let Some(known) = &plan.filter.identities
        && let Some(stranger) = process
            .groups
            .iter()
            .find(|gid| !known.contains(gid) && !plan.identity.groups.contains(gid))
    {
        add("user", format!("it is in the group {stranger}, which the plan does not name"));
    }
}

fn place(plan: &Plan, process: &Process, add: &mut impl FnMut(&'static str, String)) {
    for name in &process.other_namespaces {
        if !plan.filter.relaxed.contains(&Relaxation::Userns) {
            add("namespaces", format!("its {name} namespace is not the container's"));
        }
    }
    if !process.in_cgroup {
        add("cgroup", "it is outside the container's cgroup".to_owned());
    }
    if process.landlock == Landlock::Unknown && plan.landlock.required {
        add(
            "Landlock",
            "it descends from no process that nemoclaw confined (nsenter from the host?)"
                .to_owned(),
        );
    }
}

/// How two lists of mounts differ; places below `ignored` do not count.
pub fn mount_changes(before: &[Mount], now: &[Mount], ignored: &[&str]) -> Vec<String> {
    let told = |mount: &&Mount| !ignored.iter().any(|place| beneath(&mount.point, place));
    let describe = |mount: &Mount, word: &str| {
        format!(
            "`{}` ({}, {}) {word} since the start",
            mount.point.escape_debug(),
            mount.kind.escape_debug(),
            mount.options.join(",")
        )
    };
    let added = now.iter().filter(|mount| !before.contains(mount)).filter(told);
    let gone = before.iter().filter(|mount| !now.contains(mount)).filter(told);
    added
        .map(|mount| describe(mount, "was mounted or changed"))
        .chain(gone.map(|mount| describe(mount, "was unmounted or changed")))
        .take(32)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{GuardPlan, Ids, LandlockPlan, RunAs};
    use crate::seccomp::FilterPlan;

    fn plan() -> Plan {
        Plan {
            version: 2,
            confined: true,
            policy: "test".to_owned(),
            identity: RunAs {
                uid: 1000,
                gid: 1000,
                groups: vec![44],
                home: "/sandbox".to_owned(),
                mapped: false,
                origin: String::new(),
            },
            step_down: false,
            capabilities: vec!["NET_BIND_SERVICE".to_owned()],
            filter: FilterPlan::default(),
            no_exec_mounts: vec!["/tmp".to_owned()],
            allow_root: false,
            keep_environment: Vec::new(),
            path_entries: Vec::new(),
            landlock: LandlockPlan { required: true, ..LandlockPlan::default() },
            read_only_mounts: vec!["/usr".to_owned()],
            masked: vec!["/proc/kcore".to_owned()],
            make_directories: Vec::new(),
            pids: 512,
            memory: None,
            millicpus: None,
            nofile: 1024,
            start_hooks: Vec::new(),
            seccomp: None,
            ids: Ids::default(),
            guard: GuardPlan::default(),
            tmp: None,
            notes: Vec::new(),
        }
    }

    fn mount(point: &str, options: &str) -> Mount {
        let options = options.split(',').map(str::to_owned).collect();
        Mount { point: point.to_owned(), options, kind: "overlay".to_owned() }
    }

    fn observed() -> Observed {
        Observed {
            processes: vec![Process {
                pid: 7,
                uids: [1000; 4],
                gids: [1000; 4],
                groups: Vec::new(),
                capabilities: vec![("Bnd", 1 << 10), ("Eff", 0)],
                no_new_privileges: true,
                seccomp: 2,
                filters: Some(6),
                limits: [Some(1024), Some(0)],
                other_namespaces: Vec::new(),
                in_cgroup: true,
                landlock: Landlock::Inferred,
            }],
            mounts: vec![
                mount("/", "rw,nosuid,nodev"),
                mount("/usr", "ro,nosuid,nodev"),
                mount("/tmp", "rw,noexec"),
                mount("/proc/kcore", "ro"),
            ],
            host_namespaces: Vec::new(),
            pids_max: Some(512),
            filters: 6,
            rules: Ok(()),
            proxy: true,
            shields_up: false,
            watcher: None,
            changed_mounts: Vec::new(),
            masked: vec![("/proc/kcore".to_owned(), true), ("/proc/acpi".to_owned(), false)],
        }
    }

    #[test]
    fn what_is_as_planned_makes_no_difference() {
        assert_eq!(compare(&plan(), &observed()), []);
    }

    #[test]
    fn each_control_that_is_missing_is_told_by_its_name() {
        type Change = fn(&mut Observed);
        let changes: [(&str, Change); 22] = [
            ("capabilities", |o| o.processes[0].capabilities[1].1 = 1 << 21),
            ("capabilities", |o| o.processes[0].capabilities[1].1 = 1 << 50),
            ("no_new_privs", |o| o.processes[0].no_new_privileges = false),
            ("seccomp", |o| o.processes[0].seccomp = 0),
            ("seccomp", |o| o.processes[0].filters = Some(5)),
            ("rlimits", |o| o.processes[0].limits[0] = None),
            ("rlimits", |o| o.processes[0].limits[1] = Some(1)),
            ("user", |o| o.processes[0].uids[2] = 0),
            ("user", |o| o.processes[0].groups = vec![0]),
            ("user", |o| o.processes[0].gids[0] = WORKER_UID_BASE),
            ("namespaces", |o| o.processes[0].other_namespaces = vec!["net"]),
            ("cgroup", |o| o.processes[0].in_cgroup = false),
            ("Landlock", |o| o.processes[0].landlock = Landlock::Unknown),
            ("namespaces", |o| o.host_namespaces = vec!["pid"]),
            ("pids", |o| o.pids_max = None),
            ("pids", |o| o.pids_max = Some(513)),
            ("network", |o| o.rules = Err("gone".to_owned())),
            ("network", |o| o.proxy = false),
            ("mounts", |o| o.mounts[0] = mount("/", "rw,nodev")),
            ("mounts", |o| drop(o.mounts.remove(1))),
            ("mounts", |o| drop(o.mounts.remove(3))),
            ("mounts", |o| o.changed_mounts = vec!["x".to_owned()]),
        ];
        for (number, (control, change)) in changes.into_iter().enumerate() {
            let mut observed = observed();
            change(&mut observed);
            let found = compare(&plan(), &observed);
            assert!(
                found.iter().any(|difference| difference.control == control),
                "{number} {control}: {found:?}"
            );
        }
    }

    #[test]
    fn root_under_step_down_may_hold_the_five_and_nobody_else() {
        let mut plan = plan();
        plan.step_down = true;
        plan.filter.identities = Some(vec![0, 1000]);
        let mut observed = observed();
        observed.processes[0].capabilities = vec![("Bnd", 1 << 7), ("Eff", 1 << 7)];
        assert_eq!(compare(&plan, &observed).len(), 1);
        observed.processes[0].uids = [0; 4];
        assert_eq!(compare(&plan, &observed), []);
        observed.processes[0].groups = vec![42];
        assert_eq!(compare(&plan, &observed)[0].control, "user");
    }

    #[test]
    fn a_mount_that_comes_goes_or_changes_is_told() {
        let before = [mount("/", "rw"), mount("/data", "ro"), mount("/dev/x", "rw")];
        let now = [mount("/", "rw"), mount("/data", "rw"), mount("/new", "rw")];
        assert_eq!(mount_changes(&before, &before, &[]), Vec::<String>::new());
        assert_eq!(mount_changes(&before, &now, &["/dev"]).len(), 3);
    }
}
