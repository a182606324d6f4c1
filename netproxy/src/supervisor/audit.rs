//! The audit file: one JSON line a record, appended by the supervisor only.
//! The worker hands over records it cannot change afterwards.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use nemoclaw_spec::audit::MAX_RECORD_BYTES;
use nix::sys::socket::{MsgFlags, recv};
use serde_json::json;

/// Size at which a file is put aside, in bytes. Two files bound the disk space
/// of a sandbox that floods us with refusals.
const MAX_FILE_BYTES: u64 = 64 * 1024 * 1024;

fn create(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)
}

/// Appends records of one sandbox.
pub(super) struct AuditFile {
    file: File,
    path: PathBuf,
    bytes: u64,
    failed: bool,
    sandbox: String,
    sequence: u64,
}

impl AuditFile {
    pub(super) fn open(path: &Path, sandbox: &str) -> Result<Self> {
        if let Some(directory) = path.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .with_context(|| format!("cannot make {}", directory.display()))?;
        }
        let file = create(path)
            .with_context(|| format!("cannot write the audit file {}", path.display()))?;
        let bytes = file.metadata().map_or(0, |metadata| metadata.len());
        let (path, sandbox) = (path.to_owned(), sandbox.to_owned());
        Ok(Self { file, path, bytes, failed: false, sandbox, sequence: 0 })
    }

    /// Writes every record the worker has handed over.
    pub(super) fn drain(&mut self, socket: &OwnedFd) {
        let mut bytes = vec![0; MAX_RECORD_BYTES];
        while let Ok(length) = recv(socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
            if length == 0 {
                return;
            }
            // A record that is no JSON object is the worker's own fault and
            // says so; it must not break the lines of others.
            match serde_json::from_slice(bytes.get(..length).unwrap_or_default()) {
                Ok(serde_json::Value::Object(record)) => self.append(record),
                _ => self.note("unreadable_record"),
            }
        }
    }

    /// Writes a record of the supervisor's own.
    pub(super) fn note(&mut self, event: &str) {
        if let serde_json::Value::Object(record) = json!({"v": 1, "event": event}) {
            self.append(record);
        }
    }

    /// True once a record could not be written: what cannot be recorded must
    /// not happen, so the sandbox's egress ends.
    pub(super) fn has_failed(&self) -> bool {
        self.failed
    }

    /// Starts a new file when the old one is full; one old file is kept.
    fn rotate(&mut self, added: usize) -> std::io::Result<()> {
        self.bytes += added as u64;
        if self.bytes < MAX_FILE_BYTES {
            return Ok(());
        }
        std::fs::rename(&self.path, self.path.with_extension("jsonl.1"))?;
        self.file = create(&self.path)?;
        self.bytes = 0;
        Ok(())
    }

    fn append(&mut self, record: serde_json::Map<String, serde_json::Value>) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.sequence += 1;
        let mut whole = serde_json::Map::new();
        whole.insert(
            "time_ms".to_owned(),
            json!(u64::try_from(now.as_millis()).unwrap_or(u64::MAX)),
        );
        whole.insert("sandbox".to_owned(), json!(self.sandbox));
        whole.insert("seq".to_owned(), json!(self.sequence));
        whole.extend(record);
        let mut line = serde_json::to_vec(&whole).unwrap_or_default();
        line.push(b'\n');
        // One write a line: lines of two writers never mix.
        let written = self.file.write_all(&line).and_then(|()| self.rotate(line.len()));
        self.failed |= written.is_err();
    }
}
