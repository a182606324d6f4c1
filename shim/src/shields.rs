//! The `shields` verb: directories of a running sandbox locked and unlocked from
//! outside, by the read-only flag of their own mounts. Nothing in the sandbox can
//! change mounts.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use nemoclaw_spec::plan::{OwnMount, Plan};
use serde::{Deserialize, Serialize};

use crate::cli::{Shields, ShieldsVerb};
use crate::guard::{self, Finding};
use crate::store::{self, Entry, Record, start_time};
use crate::sys::{self, Fork};
use crate::{mounts, verify};

/// Exit code of `status` where something is not locked.
const DOWN: u8 = 3;

/// What the operator said last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    up: bool,
    /// Seconds since 1970 at which they rise by themselves.
    until: Option<u64>,
}

/// Carries out one verb.
pub(crate) fn run(root: &Path, args: &Shields) -> Result<ExitCode> {
    let entry = verify::find(root, args.verb.id())?;
    let (record, plan) = (entry.record()?, entry.plan()?);
    if start_time(record.pid) != Some(record.start_time) {
        bail!("container {} does not run", record.id);
    }
    let own = shielded(&plan);
    if own.is_empty() {
        bail!(
            "the policy of {} names no directories to shield; write `shields: {{paths: [...]}}` in it and start the container anew",
            record.id
        );
    }
    match &args.verb {
        ShieldsVerb::Status { .. } => status(&entry, &record, &own),
        ShieldsVerb::Up { force, .. } => {
            change(&entry, &record, &own, &State { up: true, until: None }, *force)?;
            status(&entry, &record, &own)
        }
        ShieldsVerb::Down { duration, .. } => {
            let until = duration.map(|duration| now() + duration.as_secs());
            change(&entry, &record, &own, &State { up: false, until }, false)?;
            if until.is_some() {
                raise_later(&entry, &record, &own)?;
            }
            writeln!(std::io::stdout(), "{}", line(&entry, &record, &own)?)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Mounts of the plan that are shields, not the way to one.
fn shielded(plan: &Plan) -> Vec<&OwnMount> {
    let named = |own: &&OwnMount| {
        plan.guard.shields.iter().any(|path| path.trim_end_matches('/') == own.path)
    };
    plan.guard.own_mounts.iter().filter(named).collect()
}

/// Whether shields should be up now: what the operator said last, else the plan.
pub(crate) fn expected(entry: &Entry, plan: &Plan) -> bool {
    let state = load(entry);
    state.map_or(plan.guard.shields_up, |state| {
        state.up || state.until.is_some_and(|until| until + 60 < now())
    })
}

fn file_of(entry: &Entry) -> PathBuf {
    entry.directory.join("shields.json")
}

fn load(entry: &Entry) -> Option<State> {
    serde_json::from_slice(&fs::read(file_of(entry)).ok()?).ok()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn change(
    entry: &Entry,
    record: &Record,
    own: &[&OwnMount],
    state: &State,
    force: bool,
) -> Result<()> {
    let word = if state.up { "up" } else { "down" };
    mounts::set_read_only(record.pid, own, state.up, force)
        .with_context(|| format!("the shields of {} cannot go {word}", record.id))?;
    store::write_file(&file_of(entry), &serde_json::to_vec(state)?)?;
    let until = state.until.map(|until| format!("until {until} (seconds since 1970)"));
    for mount in own {
        let detail = until.clone().unwrap_or_default();
        let finding = Finding::new(&mount.path, &format!("shield {word}"), detail);
        guard::add_record(&record.id, &finding);
    }
    Ok(())
}

fn line(entry: &Entry, record: &Record, own: &[&OwnMount]) -> Result<String> {
    let mut words = Vec::new();
    for mount in own {
        let up = mounts::is_read_only(record.pid, &mount.path)?;
        words.push(format!("{} {}", mount.path.escape_debug(), if up { "up" } else { "down" }));
    }
    let left = load(entry).and_then(|state| state.until).map(|until| until.saturating_sub(now()));
    let left = left.map(|left| format!(" (up again in {left} s)")).unwrap_or_default();
    Ok(format!("{}: {}{left}", record.id, words.join(", ")))
}

fn status(entry: &Entry, record: &Record, own: &[&OwnMount]) -> Result<ExitCode> {
    writeln!(std::io::stdout(), "{}", line(entry, record, own)?)?;
    let up = own
        .iter()
        .map(|mount| mounts::is_read_only(record.pid, &mount.path))
        .collect::<Result<Vec<_>>>()?;
    Ok(if up.into_iter().all(|up| up) { ExitCode::SUCCESS } else { ExitCode::from(DOWN) })
}

/// Leaves a process behind that raises the shields in time, whoever writes then;
/// another word of the operator's ends it.
fn raise_later(entry: &Entry, record: &Record, own: &[&OwnMount]) -> Result<()> {
    let mine = load(entry);
    if let Fork::Parent(_) = sys::fork().context("cannot fork")? {
        return Ok(());
    }
    let alone = rustix::process::setsid().is_ok()
        && fs::File::options().read(true).write(true).open("/dev/null").is_ok_and(|null| {
            rustix::stdio::dup2_stdin(&null).is_ok()
                && rustix::stdio::dup2_stdout(&null).is_ok()
                && rustix::stdio::dup2_stderr(&null).is_ok()
        })
        && sys::close_all_but(&[]).is_ok();
    let alive = || start_time(record.pid) == Some(record.start_time);
    while alone && alive() && load(entry) == mine {
        let due = mine.as_ref().and_then(|state| state.until).is_none_or(|until| until <= now());
        if due && change(entry, record, own, &State { up: true, until: None }, true).is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    sys::exit_now(0);
}

/// A time of the command line: `90s`, `15m`, `2h`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    const MOST: u64 = 7 * 24 * 3600;
    let wrong = || "write a time such as 90s, 15m or 2h, at most a week".to_owned();
    let unit = text.chars().last().ok_or_else(wrong)?;
    let scale = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        _ => return Err(wrong()),
    };
    let number: u64 = text.trim_end_matches(unit).parse().map_err(|_digits| wrong())?;
    number
        .checked_mul(scale)
        .filter(|seconds| (1..=MOST).contains(seconds))
        .map(Duration::from_secs)
        .ok_or_else(wrong)
}
