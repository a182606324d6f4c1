//! The `logs` verb: audit records and findings, printed, followed and checked.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use nemoclaw_spec::hex;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// Where the records are.
const DIRECTORY: &str = "/var/log/nemoclaw";
/// Exit code where a chain is broken.
const BROKEN: u8 = 3;
/// How often files are looked at while they are followed.
const STEP: Duration = Duration::from_millis(200);
/// Longest part of a file that is read at a time, in bytes.
const MAX_PART: u64 = 1024 * 1024;

/// What to print.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// Only this sandbox (container id, or its beginning)
    #[arg(long)]
    sandbox: Option<String>,
    /// Only refusals
    #[arg(long)]
    denied: bool,
    /// Also each socket that the proxy opened, resolvers' included: from where, to where
    #[arg(long, conflicts_with_all = ["denied", "findings"])]
    dials: bool,
    /// What happened to guarded files instead: tool files, private modes, shields
    #[arg(long, conflicts_with = "denied")]
    findings: bool,
    /// Go on with records as they come
    #[arg(short, long)]
    follow: bool,
    /// Check instead that no record was changed, removed from the beginning or the
    /// middle, or put in: exit 3 where one was. What was cut off at the end, or written
    /// anew as a whole, does not show: ship records elsewhere
    #[arg(long, conflicts_with_all = ["denied", "findings", "follow"])]
    check: bool,
}

impl Logs {
    /// Carries out the verb.
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let files = self.files()?;
        if let (Some(wanted), true) = (&self.sandbox, files.is_empty()) {
            self.require_known(wanted)?;
        }
        if self.check {
            return check(&files);
        }
        let mut offsets = HashMap::new();
        let mut lines = Vec::new();
        for file in files {
            let opened =
                File::open(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let length = opened.metadata()?.len();
            for line in BufReader::new(opened.take(length)).split(b'\n') {
                let line = String::from_utf8_lossy(&line?).into_owned();
                if self.wants(&line) {
                    lines.push((time_of(&line), line));
                }
            }
            offsets.insert(file, length);
        }
        lines.sort_by_key(|(time, _)| *time);
        let mut out = std::io::stdout().lock();
        for (_, line) in lines {
            writeln!(out, "{line}")?;
        }
        out.flush()?;
        if self.follow {
            self.go_on(offsets)?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn wants(&self, line: &str) -> bool {
        (self.dials || !line.contains("\"event\":\"dial\""))
            && (!self.denied || line.contains("\"decision\":\"deny\""))
    }

    fn files(&self) -> Result<Vec<PathBuf>> {
        let mut files: Vec<PathBuf> = fs::read_dir(DIRECTORY)
            .with_context(|| format!("there are no records in {DIRECTORY}"))?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"))
            .filter(|path| {
                let name = path.file_stem().unwrap_or_default().to_string_lossy();
                name.ends_with(".findings") == self.findings
                    && self.sandbox.as_ref().is_none_or(|wanted| name.starts_with(wanted))
            })
            .collect();
        files.sort();
        Ok(files)
    }

    /// Every sandbox has a record, and few have findings.
    fn require_known(&self, wanted: &str) -> Result<()> {
        let known = fs::read_dir(DIRECTORY)?
            .flatten()
            .any(|entry| entry.file_name().as_encoded_bytes().starts_with(wanted.as_bytes()));
        if !(known && self.findings) {
            bail!(
                "there are no records of a sandbox `{}`; ids are those of `docker ps`",
                wanted.escape_debug()
            );
        }
        writeln!(std::io::stderr(), "no findings")?;
        Ok(())
    }

    /// Prints whole lines as they are added, of new files too; ends with the reader.
    fn go_on(&self, mut offsets: HashMap<PathBuf, u64>) -> Result<()> {
        loop {
            std::thread::sleep(STEP);
            for file in self.files()? {
                let offset = offsets.entry(file.clone()).or_default();
                // A file may be put aside between the two.
                let Ok(mut opened) = File::open(&file) else { continue };
                if opened.metadata()?.len() < *offset {
                    *offset = 0;
                }
                opened.seek(SeekFrom::Start(*offset))?;
                let mut bytes = Vec::new();
                opened.take(MAX_PART).read_to_end(&mut bytes)?;
                let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
                *offset += u64::try_from(whole).unwrap_or_default();
                let text = String::from_utf8_lossy(bytes.get(..whole).unwrap_or_default());
                let mut out = std::io::stdout().lock();
                for line in text.lines().filter(|line| self.wants(line)) {
                    writeln!(out, "{line}")?;
                }
                out.flush()?;
            }
        }
    }
}

/// Follows the chain of each sandbox through its files.
fn check(files: &[PathBuf]) -> Result<ExitCode> {
    let mut broken = false;
    let mut out = std::io::stdout().lock();
    for file in files {
        let name = file.file_stem().unwrap_or_default().to_string_lossy();
        let mut chain = Chain::default();
        let aside = file.with_extension("jsonl.1");
        // The first of all follows nothing; of two files the older one may be gone.
        if !aside.exists() {
            chain.previous = Some("0".repeat(64));
        }
        for file in [aside.as_path(), file].into_iter().filter(|file| file.exists()) {
            let opened =
                File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
            for line in BufReader::new(opened).split(b'\n') {
                chain.add(&line?);
            }
        }
        chain.end();
        broken |= chain.broken.is_some();
        match chain.broken {
            None => writeln!(out, "{name}: {} records, unbroken", chain.number)?,
            Some(line) => writeln!(
                out,
                "{name}: record {line} of {} does not follow the one before it: one of them was changed, removed or put in",
                chain.number
            )?,
        }
    }
    Ok(if broken { ExitCode::from(BROKEN) } else { ExitCode::SUCCESS })
}

/// The state of a chain: each record names the SHA-256 of the line before it.
#[derive(Debug, Default)]
struct Chain {
    previous: Option<String>,
    number: usize,
    broken: Option<usize>,
    /// A line without a readable record, which the next one must own up to.
    torn: bool,
}

impl Chain {
    fn add(&mut self, line: &[u8]) {
        self.number += 1;
        let record = serde_json::from_slice::<Value>(line).ok();
        let text = |key: &str| record.as_ref()?.get(key)?.as_str();
        let follows = match (text("prev"), &self.previous) {
            // Files before the oldest kept one are gone.
            (Some(_), None) => true,
            (Some(prev), Some(wanted)) => prev == wanted,
            (None, _) => false,
        };
        let owned_up = text("event") == Some("torn_record");
        let fine = if record.is_none() { !self.torn } else { follows && (!self.torn || owned_up) };
        if !fine && self.broken.is_none() {
            self.broken = Some(self.number);
        }
        self.torn = record.is_none();
        self.previous = Some(digest(line));
    }

    /// A torn last line may be one that is being written.
    fn end(&mut self) {
        if self.torn {
            self.number -= 1;
        }
    }
}

/// SHA-256 in lower-case hexadecimal.
fn digest(line: &[u8]) -> String {
    hex::lower(&Sha256::digest(line))
}

/// When a record was written, in milliseconds since 1970.
fn time_of(line: &str) -> u64 {
    serde_json::from_str::<Value>(line)
        .ok()
        .and_then(|record| record.get("time_ms").and_then(Value::as_u64))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(events: &[&str]) -> Vec<String> {
        let mut previous = "0".repeat(64);
        events
            .iter()
            .map(|event| {
                let line = if event.is_empty() {
                    "{\"event\":\"cu".to_owned()
                } else {
                    format!("{{\"event\":\"{event}\",\"prev\":\"{previous}\"}}")
                };
                previous = digest(line.as_bytes());
                line
            })
            .collect()
    }

    fn broken(lines: &[String]) -> Option<usize> {
        let mut chain = Chain::default();
        for line in lines {
            chain.add(line.as_bytes());
        }
        chain.end();
        chain.broken
    }

    #[test]
    fn a_chain_shows_what_was_changed_removed_or_put_in() {
        let whole = lines(&["a", "b", "c", "d"]);
        assert_eq!(broken(&whole), None);
        // What was put aside and thrown away is not missed.
        assert_eq!(broken(whole.get(2..).unwrap()), None);
        let mut changed = whole.clone();
        changed[1] = changed[1].replace("\"b\"", "\"x\"");
        assert_eq!(broken(&changed), Some(3));
        let mut removed = whole.clone();
        removed.remove(1);
        assert_eq!(broken(&removed), Some(2));
        let mut added = whole;
        added.insert(2, "{\"event\":\"x\"}".to_owned());
        assert_eq!(broken(&added), Some(3));
    }

    #[test]
    fn a_torn_line_is_fine_where_the_next_one_says_so() {
        assert_eq!(broken(&lines(&["a", "", "torn_record", "b"])), None);
        assert_eq!(broken(&lines(&["a", "", "b"])), Some(3));
        assert_eq!(broken(&lines(&["a", ""])), None);
        assert_eq!(broken(&lines(&["a", "", "", "torn_record"])), Some(3));
    }
}
