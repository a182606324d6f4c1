//! Findings: what happened to guarded files, one JSON line each, for the operator.

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// Where records are.
const DIRECTORY: &str = "/var/log/nemoclaw";
/// Largest file of findings, in bytes; a last line says that it is full.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// One change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// The path as the container sees it.
    pub(crate) path: String,
    /// What happened.
    pub(crate) change: String,
    /// More about it.
    pub(crate) detail: String,
    /// SHA-256 of a file before and after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) before: Option<String>,
    /// See `before`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) after: Option<String>,
    /// Lines that were not there before, escaped and cut.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) added: Vec<String>,
}

impl Finding {
    pub(crate) fn new(path: &str, change: &str, detail: String) -> Self {
        Self {
            path: path.escape_debug().to_string(),
            change: change.to_owned(),
            detail,
            ..Self::default()
        }
    }
}

#[derive(Serialize)]
struct Line<'a> {
    time_ms: u64,
    sandbox: &'a str,
    kind: &'a str,
    #[serde(flatten)]
    finding: &'a Finding,
}

/// Appends a finding. Findings tell, they do not hold: where they cannot be
/// written, the container goes on.
pub(crate) fn add(id: &str, finding: &Finding) {
    append(id, finding, MAX_BYTES);
}

/// Appends what the operator did, for which there is room when a sandbox has filled
/// its own.
pub(crate) fn add_record(id: &str, finding: &Finding) {
    append(id, finding, MAX_BYTES * 2);
}

fn append(id: &str, finding: &Finding, most: u64) {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let time_ms = u64::try_from(time).unwrap_or(u64::MAX);
    let line = Line { time_ms, sandbox: id, kind: "finding", finding };
    let Ok(mut text) = serde_json::to_string(&line) else { return };
    text.push('\n');
    let _made = DirBuilder::new().recursive(true).mode(0o700).create(DIRECTORY);
    let opened = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(Path::new(DIRECTORY).join(format!("{id}.findings.jsonl")));
    let Ok(mut file) = opened else { return };
    let length = file.metadata().map_or(u64::MAX, |metadata| metadata.len());
    if length >= most {
        return;
    }
    if length.saturating_add(text.len() as u64) >= most {
        text.push_str("{\"kind\":\"full\"}\n");
    }
    let _written = file.write_all(text.as_bytes());
}
