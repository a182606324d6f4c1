//! The `verify` verb: the kernel's own view of every process of a container,
//! compared with the plan.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use nemoclaw_spec::plan::{ImageView as _, Plan};
use nemoclaw_spec::verify::{
    Difference, Landlock, Mount, Observed, Process, compare, mount_changes,
};
use serde_json::json;

use crate::cli::Verify;
use crate::image::Image;
use crate::init::Filters;
use crate::store::{self, Entry, Executor, Record, start_time};
use crate::{cgroups, guard, net, proxy, shields};

/// Exit code where something differs from the plan.
const DIFFERS: u8 = 3;
/// Exit code where nothing runs that could be compared.
const NOTHING: u8 = 4;
/// Namespaces compared, by their names in /proc/PID/ns.
const NAMESPACES: [&str; 7] = ["mnt", "pid", "net", "ipc", "uts", "user", "cgroup"];

/// Verifies one container.
pub(crate) fn run(root: &Path, args: &Verify) -> Result<ExitCode> {
    let entry = find(root, &args.id)?;
    let (record, plan) = (entry.record()?, entry.plan()?);
    if start_time(record.pid) != Some(record.start_time) {
        writeln!(std::io::stdout(), "{}: not running; there is nothing to compare", record.id)?;
        return Ok(ExitCode::from(NOTHING));
    }
    if !plan.confined {
        if args.json {
            print_json(&record, &plan, None, &[])?;
        } else {
            writeln!(std::io::stdout(), "{}: NOT CONFINED (--policy observe)", record.id)?;
        }
        return Ok(ExitCode::from(DIFFERS));
    }
    let observed = observe(&entry, &record, &plan)?;
    let differences = compare(&plan, &observed);
    if args.json {
        print_json(&record, &plan, Some(&observed), &differences)?;
    } else {
        print_text(&record, &plan, &observed, &differences)?;
    }
    Ok(if differences.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(DIFFERS) })
}

/// The container of that id under this root, else of that id or its beginning
/// under any root.
pub(crate) fn find(root: &Path, id: &str) -> Result<Entry> {
    let entry = Entry::new(root, id)?;
    if entry.directory.join("record.json").exists() {
        return Ok(entry);
    }
    let listed = |directory: &Path| {
        fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
    };
    let all = Path::new(store::RUN).join("containers");
    let mut found: Vec<PathBuf> = listed(&all)
        .flat_map(|root| listed(&root).collect::<Vec<_>>())
        .filter(|path| {
            path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(id.as_bytes()))
        })
        .collect();
    match (found.pop(), found.is_empty()) {
        (Some(directory), true) => {
            let id = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Ok(Entry { container: root.join(&id), directory, id })
        }
        (Some(_), false) => bail!("several containers' ids begin with `{id}`; write more of it"),
        (None, _) if !rustix::process::geteuid().is_root() => {
            bail!("cannot look for containers: run it as root")
        }
        (None, _) => bail!(
            "container {id} does not exist: it has ended, or is not nemoclaw's; write an id of `docker ps`"
        ),
    }
}

fn observe(entry: &Entry, record: &Record, plan: &Plan) -> Result<Observed> {
    let init = record.pid;
    let group = record.pids_group.clone().context("there is no record of the cgroup")?;
    let executors = executors(entry);
    let mut processes = Vec::new();
    for pid in members(init, &group) {
        // A process may end while it is looked at.
        let landlock = lineage(pid, &executors);
        for task in tasks(pid) {
            processes.extend(process(pid, task, init, &group, landlock));
        }
    }
    let path = format!("/proc/{init}/mountinfo");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let mounts = mounts(&text);
    let before = fs::read_to_string(entry.directory.join("mountinfo"))
        .context("there is no record of the mounts at the start")?;
    let root = Image::open(Path::new(&format!("/proc/{init}/root")))?;
    Ok(Observed {
        processes,
        changed_mounts: {
            let shields: Vec<&str> = plan.guard.shields.iter().map(String::as_str).collect();
            mount_changes(&self::mounts(&before), &mounts, &shields)
        },
        shields_up: shields::expected(entry, plan),
        watcher: guard::alive(entry),
        mounts,
        host_namespaces: NAMESPACES
            .into_iter()
            .filter(|name| !matches!(*name, "user" | "cgroup"))
            .filter(|name| namespace("self", name) == namespace(&init.to_string(), name))
            .collect(),
        pids_max: pids_max(&group),
        filters: Filters::compile(plan).context("seccomp")?.len(),
        rules: rules(record, init),
        proxy: record.sandbox.as_deref().is_some_and(proxy::alive),
        masked: plan.masked.iter().map(|path| (path.clone(), root.look(path).is_some())).collect(),
    })
}

/// Pids of the container's cgroup, and of whatever else shares its mounts.
fn members(init: i32, group: &str) -> Vec<i32> {
    let wanted = namespace(&init.to_string(), "mnt");
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids: Vec<i32> = entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            let shares = wanted.is_some()
                && tasks(*pid).iter().any(|task| namespace(&task.to_string(), "mnt") == wanted);
            // The runtime itself enters for a moment to prepare an exec.
            shares || cgroups::of(*pid, "pids").is_some_and(|own| below(&own, group))
        })
        .collect();
    pids.sort_unstable();
    pids
}

fn below(path: &str, parent: &str) -> bool {
    path == parent || path.strip_prefix(parent).is_some_and(|rest| rest.starts_with('/'))
}

fn namespace(process: &str, name: &str) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{process}/ns/{name}")).ok()
}

fn pids_max(group: &str) -> Option<i64> {
    ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].iter().find_map(|root| {
        let path = format!("{root}{group}/pids.max");
        fs::read_to_string(path).ok()?.trim().parse().ok()
    })
}

/// Every process of this `--root` that proved its Landlock domain.
fn executors(entry: &Entry) -> HashMap<i32, u64> {
    let siblings = entry.directory.parent().map(fs::read_dir).into_iter().flatten().flatten();
    siblings
        .flatten()
        .flat_map(|sibling| {
            let directory = sibling.path();
            Entry { container: PathBuf::new(), directory, id: String::new() }.executors()
        })
        .map(|Executor { pid, start_time, .. }| (pid, start_time))
        .collect()
}

/// Threads of a process: each has credentials, filters and namespaces of its own,
/// and lives on when the first of them has ended.
fn tasks(pid: i32) -> Vec<i32> {
    fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

fn process(pid: i32, task: i32, init: i32, group: &str, landlock: Landlock) -> Option<Process> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{task}/status")).ok()?;
    let field = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    };
    // An ended thread has no privileges left to compare.
    if field("State").is_some_and(|state| state.starts_with(['Z', 'X'])) {
        return None;
    }
    let uid_map = id_map(task, "uid_map");
    let gid_map = id_map(task, "gid_map");
    let ids = |name: &str, map: &[(u32, u32, u32)]| -> Option<Vec<u32>> {
        let ids = field(name)?.split_whitespace();
        Some(ids.filter_map(|id| id.parse().ok()).map(|id| inside(id, map)).collect())
    };
    let sets = [
        ("Inh", "CapInh"),
        ("Prm", "CapPrm"),
        ("Eff", "CapEff"),
        ("Bnd", "CapBnd"),
        ("Amb", "CapAmb"),
    ];
    let limits = fs::read_to_string(format!("/proc/{pid}/task/{task}/limits")).ok()?;
    let hard = |name: &str| -> Option<u64> {
        let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    Some(Process {
        pid,
        uids: ids("Uid", &uid_map)?.try_into().ok()?,
        gids: ids("Gid", &gid_map)?.try_into().ok()?,
        groups: ids("Groups", &gid_map)?,
        capabilities: sets
            .into_iter()
            .map(|(name, key)| Some((name, u64::from_str_radix(field(key)?, 16).ok()?)))
            .collect::<Option<_>>()?,
        no_new_privileges: field("NoNewPrivs") == Some("1"),
        seccomp: field("Seccomp").and_then(|mode| mode.parse().ok()).unwrap_or(0),
        filters: field("Seccomp_filters").and_then(|number| number.parse().ok()),
        limits: [hard("Max open files"), hard("Max core file size")],
        other_namespaces: NAMESPACES
            .into_iter()
            .filter(|name| namespace(&task.to_string(), name) != namespace(&init.to_string(), name))
            .collect(),
        in_cgroup: cgroups::of(task, "pids").is_some_and(|own| below(&own, group)),
        landlock,
    })
}

/// How a process is known to be within Landlock: by itself or by an ancestor.
fn lineage(pid: i32, executors: &HashMap<i32, u64>) -> Landlock {
    let known =
        |pid: i32| executors.get(&pid).copied() == start_time(pid) && start_time(pid).is_some();
    if known(pid) {
        return Landlock::Recorded;
    }
    let mut seen = HashSet::new();
    let mut next = parent(pid);
    while let Some(pid) = next.filter(|pid| *pid > 1 && seen.insert(*pid)) {
        if known(pid) {
            return Landlock::Inferred;
        }
        next = parent(pid);
    }
    Landlock::Unknown
}

fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Lines of uid_map or gid_map: inside, outside, length (user_namespaces(7)).
fn id_map(pid: i32, name: &str) -> Vec<(u32, u32, u32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let mut numbers = line.split_whitespace().map(str::parse);
            Some((numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?))
        })
        .collect()
}

/// An id of the host as the process sees it.
fn inside(id: u32, map: &[(u32, u32, u32)]) -> u32 {
    map.iter()
        .find_map(|(inside, outside, length)| {
            id.checked_sub(*outside).filter(|offset| offset < length).map(|offset| inside + offset)
        })
        .unwrap_or(id)
}

fn rules(record: &Record, init: i32) -> Result<(), String> {
    let Some(sandbox) = &record.sandbox else {
        return Err("the network namespace is the host's".to_owned());
    };
    let before = fs::read(sandbox.join("rules")).unwrap_or_default();
    let now = File::open(format!("/proc/{init}/ns/net"))
        .map_err(anyhow::Error::from)
        .and_then(|netns| net::fingerprint(&netns))
        .map_err(|error| format!("{error:#}"))?;
    if now.is_empty() {
        return Err("the network namespace holds no rules of nemoclaw any more".to_owned());
    }
    if now != before {
        return Err("the rules of the network namespace changed since the start".to_owned());
    }
    Ok(())
}

/// Mounts of a mountinfo file (proc(5)).
fn mounts(text: &str) -> Vec<Mount> {
    text.lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let mut fields = before.split_whitespace().skip(4);
            Some(Mount {
                point: unescape(fields.next()?),
                options: fields.next()?.split(',').map(str::to_owned).collect(),
                kind: after.split_whitespace().next()?.to_owned(),
            })
        })
        .collect()
}

/// Octal escapes of mountinfo: `\040` is a space.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let code = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let Some(byte) = code.filter(|_| *first == b'\\') {
            bytes.push(byte);
            rest = tail.get(3..).unwrap_or_default();
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn print_text(
    record: &Record,
    plan: &Plan,
    observed: &Observed,
    differences: &[Difference],
) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if differences.is_empty() {
        let inferred =
            observed.processes.iter().filter(|p| p.landlock == Landlock::Inferred).count();
        writeln!(
            out,
            "{}: as planned ({} processes, policy {}; Landlock proved by {}, inferred for {inferred})",
            record.id,
            observed.processes.len(),
            plan.policy.escape_debug(),
            observed.processes.len() - inferred,
        )?;
    }
    for Difference { pid, control, found } in differences {
        let whose = pid.map_or_else(|| "container".to_owned(), |pid| format!("process {pid}"));
        writeln!(out, "{}: {whose}: {control}: {found}", record.id)?;
    }
    Ok(())
}

fn print_json(
    record: &Record,
    plan: &Plan,
    observed: Option<&Observed>,
    differences: &[Difference],
) -> Result<()> {
    let processes: Vec<_> = observed
        .iter()
        .flat_map(|observed| &observed.processes)
        .map(|process| json!({"pid": process.pid, "landlock": process.landlock}))
        .collect();
    let answer = json!({
        "id": record.id,
        "confined": plan.confined,
        "as_planned": plan.confined && differences.is_empty(),
        "differences": differences,
        "processes": processes,
        "plan": plan,
    });
    writeln!(std::io::stdout(), "{answer:#}")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mountinfo_line_gives_point_options_and_kind() {
        let text = "36 35 98:0 /r /mnt\\0402 rw,noatime shared:1 - ext4 /dev/x rw\nshort line\n";
        let found = mounts(text);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].point, "/mnt 2");
        assert_eq!(found[0].options, ["rw", "noatime"]);
        assert_eq!(found[0].kind, "ext4");
        assert_eq!(unescape("a\\b\\9"), "a\\b\\9");
    }

    #[test]
    fn ids_are_told_as_the_container_sees_them() {
        let map = [(0, 100_000, 65_536)];
        assert_eq!(inside(100_998, &map), 998);
        assert_eq!(inside(5, &map), 5);
        assert_eq!(inside(5, &[]), 5);
    }
}
