//! The `doctor` verb: what this host can and cannot enforce, and what to do.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, anyhow};
use nemoclaw_spec::plan::losses;
use serde::Serialize;
use serde_json::json;

use crate::cli::Doctor;
use crate::{facts, net, policy, reexec, sys};

/// Exit code where containers would not start, or not be confined in full.
const MISSING: u8 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// Works, with something less.
    Less,
    Missing,
}

/// One thing examined.
#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    verdict: Verdict,
    found: String,
    /// What to do, where something is to be done.
    fix: String,
}

/// Examines the host.
pub(crate) fn run(args: &Doctor) -> Result<ExitCode> {
    let findings = [
        privileges(),
        landlock(),
        seccomp(),
        namespace_lock(),
        cgroup(),
        devices(),
        identified_mounts(),
        baseline(),
        proxy(),
        connects(),
        path(),
    ];
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{:#}", json!(findings))?;
    } else {
        for finding in &findings {
            let word = match finding.verdict {
                Verdict::Ok => "ok     ",
                Verdict::Less => "less   ",
                Verdict::Missing => "MISSING",
            };
            writeln!(out, "{word} {:<12} {}", finding.what, finding.found)?;
            if !finding.fix.is_empty() {
                writeln!(out, "                     -> {}", finding.fix)?;
            }
        }
    }
    let missing = findings.iter().any(|finding| finding.verdict == Verdict::Missing);
    Ok(if missing { ExitCode::from(MISSING) } else { ExitCode::SUCCESS })
}

fn finding(what: &'static str, verdict: Verdict, found: String, fix: &str) -> Finding {
    Finding { what, verdict, found, fix: fix.to_owned() }
}

fn privileges() -> Finding {
    let root = rustix::process::geteuid().is_root();
    if root {
        finding("root", Verdict::Ok, "runs as root".to_owned(), "")
    } else {
        let found = "not root: the rest can only be told in part".to_owned();
        finding("root", Verdict::Less, found, "run `sudo nemoclaw doctor`")
    }
}

fn landlock() -> Finding {
    let abi = sys::landlock_abi();
    if abi == 0 {
        let found = "this kernel has none, or it is off".to_owned();
        let fix = "boot Linux 5.13 or newer with `lsm=landlock,...`; until then policies need `landlock: {compatibility: best_effort}`";
        return finding("Landlock", Verdict::Missing, found, fix);
    }
    let lost = losses(abi);
    if lost.is_empty() {
        return finding("Landlock", Verdict::Ok, format!("ABI {abi}"), "");
    }
    let found = format!("ABI {abi}; it does not control {}", lost.join(", "));
    finding("Landlock", Verdict::Less, found, "use a newer kernel")
}

fn seccomp() -> Finding {
    let there = Path::new("/proc/sys/kernel/seccomp/actions_avail").exists();
    if there {
        finding("seccomp", Verdict::Ok, "filters are available".to_owned(), "")
    } else {
        let found = "this kernel has no seccomp filters".to_owned();
        finding("seccomp", Verdict::Missing, found, "use a kernel with CONFIG_SECCOMP_FILTER")
    }
}

/// Locks a network namespace of its own, as a start does.
fn namespace_lock() -> Finding {
    let tried = std::thread::scope(|scope| {
        scope
            .spawn(|| -> Result<()> {
                // The namespace of a thread is its own, and ends with it.
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
                    .context("no network namespace can be made")?;
                let netns = File::open("/proc/thread-self/ns/net")?;
                let kind = net::Kind::Locked { engine_resolver: false, ingress: None };
                net::lock(&netns, &kind).map(|_rules| ())
            })
            .join()
            .unwrap_or_else(|_panic| Err(anyhow!("the trial ended early")))
    });
    match tried {
        Ok(()) => {
            let found = "a network namespace can be locked".to_owned();
            finding("egress lock", Verdict::Ok, found, "")
        }
        Err(error) => finding(
            "egress lock",
            Verdict::Missing,
            format!("{error:#}"),
            "use a kernel with nf_tables (CONFIG_NF_TABLES_INET, NFT_REDIR, NFT_FIB_INET, NFT_REJECT_INET), as root",
        ),
    }
}

fn cgroup() -> Finding {
    let version = if facts::cgroup_v1() { "v1" } else { "v2" };
    if facts::pids_controller() {
        return finding("cgroups", Verdict::Ok, format!("{version}, processes can be limited"), "");
    }
    finding(
        "cgroups",
        Verdict::Missing,
        format!("{version}, without a pids controller: the number of processes cannot be limited"),
        "enable it, or write `nemoclaw: {resources: {pids: 0}}` in the policy to go without",
    )
}

fn devices() -> Finding {
    if facts::cgroup_v1() {
        let there = Path::new("/sys/fs/cgroup/devices/cgroup.procs").exists();
        if there {
            return finding(
                "devices",
                Verdict::Ok,
                "the devices controller is there".to_owned(),
                "",
            );
        }
    }
    finding(
        "devices",
        Verdict::Less,
        "no device controller is used here: nodev mounts and the empty capability sets are what keeps devices away".to_owned(),
        "",
    )
}

fn identified_mounts() -> Finding {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let text = format!("Linux {}", release.trim());
    // mount_setattr(2), openat2(2), close_range(2).
    if version >= (5, 12) {
        finding("kernel", Verdict::Ok, text, "")
    } else {
        finding("kernel", Verdict::Missing, text, "use Linux 5.13 or newer")
    }
}

fn baseline() -> Finding {
    match policy::select(None) {
        Ok(selected) => {
            let unenforced = &selected.policy.unenforced.0;
            let found =
                format!("the default is {}", selected.policy.origin.to_string().escape_debug());
            if unenforced.is_empty() {
                finding("policy", Verdict::Ok, found, "")
            } else {
                let first = unenforced.first().map(ToString::to_string).unwrap_or_default();
                finding("policy", Verdict::Missing, found, &first)
            }
        }
        Err(error) => {
            finding("policy", Verdict::Missing, format!("{error:#}"), "mend the policy file")
        }
    }
}

fn proxy() -> Finding {
    match reexec::sibling("nemoclaw-netproxy") {
        Ok(path) => finding("proxy", Verdict::Ok, path.display().to_string(), ""),
        Err(error) => finding(
            "proxy",
            Verdict::Missing,
            format!("{error:#}"),
            "install nemoclaw-netproxy beside nemoclaw",
        ),
    }
}

/// Whether the kernel notes who connects: the proxy tries what it does at a start.
fn connects() -> Finding {
    let asked = reexec::sibling("nemoclaw-netproxy").and_then(|program| {
        std::process::Command::new(program)
            .arg("examine")
            .env_clear()
            .output()
            .context("the proxy cannot be asked")
    });
    match asked {
        Ok(output) if output.status.success() => {
            finding("callers", Verdict::Ok, "noted by the kernel when they connect".to_owned(), "")
        }
        asked => {
            let why = asked.map_or_else(
                |error| format!("{error:#}"),
                |output| String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            );
            finding(
                "callers",
                Verdict::Less,
                format!(
                    "looked for among the processes once they have connected ({})",
                    why.escape_debug()
                ),
                "use a kernel with CONFIG_CGROUP_BPF and CONFIG_DEBUG_INFO_BTF, and cgroup v2 mounted, as root",
            )
        }
    }
}

/// Whether people who type `nemoclaw` get this program.
fn path() -> Finding {
    let own = std::env::current_exe().and_then(fs::canonicalize).ok();
    let path = std::env::var("PATH").unwrap_or_default();
    let first =
        path.split(':').map(|dir| Path::new(dir).join("nemoclaw")).find(|file| file.is_file());
    match first {
        Some(other) if fs::canonicalize(&other).ok() != own => finding(
            "PATH",
            Verdict::Less,
            format!("`nemoclaw` is {} there, another program", other.display()),
            "type the whole path of this one, or put its directory first in PATH",
        ),
        Some(_) => finding("PATH", Verdict::Ok, "`nemoclaw` is this program".to_owned(), ""),
        None => finding("PATH", Verdict::Ok, "`nemoclaw` is not in PATH".to_owned(), ""),
    }
}
