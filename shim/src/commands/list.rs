//! list and ps.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use libcgroups::common::CgroupManager as _;

use super::{print, signal, state};
use crate::cli::{List, Ps};
use crate::store::{Entry, containers};

/// The `list` verb.
pub(super) fn list(root: &Path, args: &List) -> Result<()> {
    let mut ids: Vec<String> = fs::read_dir(containers(root))
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    ids.sort_unstable();
    let states: Vec<serde_json::Value> =
        ids.iter().filter_map(|id| state::print_json(root, id).ok()).collect();
    let text = |state: &serde_json::Value, key: &str| match state.get(key) {
        Some(serde_json::Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    };
    if args.quiet {
        for state in &states {
            print(&text(state, "id"))?;
        }
        return Ok(());
    }
    match args.format.as_str() {
        "json" => print(&serde_json::to_string(&states)?),
        "table" => {
            let rows = states.iter().map(|state| {
                ["id", "pid", "status", "bundle", "created", "owner"].map(|key| text(state, key))
            });
            let header = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
            let rows: Vec<[String; 6]> = std::iter::once(header).chain(rows).collect();
            for row in &rows {
                let cells: Vec<String> = row
                    .iter()
                    .enumerate()
                    .map(|(column, cell)| {
                        let width = rows
                            .iter()
                            .filter_map(|r| r.get(column))
                            .map(String::len)
                            .max()
                            .unwrap_or(0);
                        format!("{cell:width$}")
                    })
                    .collect();
                print(cells.join("   ").trim_end())?;
            }
            Ok(())
        }
        other => bail!("unknown format {}; use table or json", other.escape_debug()),
    }
}

/// The `ps` verb.
pub(super) fn ps(root: &Path, args: &Ps) -> Result<()> {
    let container = Entry::new(root, &args.id)?.load()?;
    let pids: Vec<i32> = signal::cgroup(&container)?
        .get_all_pids()
        .context("cannot list the container's processes")?
        .into_iter()
        .map(nix::unistd::Pid::as_raw)
        .collect();
    match args.format.as_str() {
        "json" => print(&serde_json::to_string(&pids)?),
        "table" => {
            let default = vec!["-ef".to_owned()];
            let options = if args.options.is_empty() { &default } else { &args.options };
            let output = Command::new("ps").args(options).output().context("cannot run ps")?;
            let text = String::from_utf8_lossy(&output.stdout);
            let mut lines = text.lines();
            let header = lines.next().unwrap_or_default();
            let column = header
                .split_whitespace()
                .position(|word| word == "PID")
                .context("ps prints no PID column with these options")?;
            print(header)?;
            for line in lines {
                let pid =
                    line.split_whitespace().nth(column).and_then(|word| word.parse::<i32>().ok());
                if pid.is_some_and(|pid| pids.contains(&pid)) {
                    print(line)?;
                }
            }
            Ok(())
        }
        other => bail!("unknown format {}; use table or json", other.escape_debug()),
    }
}
