//! The audit file: one JSON line a record, appended by the supervisor only.
//! The worker hands over records it cannot change afterwards.
//!
//! The lines are a chain: each holds, as `prev`, the SHA-256 of the line before it
//! (zeros for the first), over restarts and from a full file to the next, so that
//! a line that was changed, removed or put in between shows (`nemoclaw logs
//! --check`). A line that a crash cut short is ended, and said to be so.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use nemoclaw_spec::audit::MAX_RECORD_BYTES;
use nemoclaw_spec::control::Counts;
use nemoclaw_spec::hex;
use nix::sys::socket::{MsgFlags, recv};
use serde_json::json;
use sha2::{Digest as _, Sha256};

/// Size at which a file is put aside, in bytes. Two files bound the disk space
/// of a sandbox that floods us with refusals.
const MAX_FILE_BYTES: u64 = 64 * 1024 * 1024;

/// Events that the supervisor tells, and nobody else.
const OURS_ALONE: [&str; 5] =
    ["dial", "worker_restarted", "torn_record", "unreadable_record", "callers_unnoted"];
/// Most records of the worker written at a time: others wait for us as well.
const MAX_RECORDS: usize = 256;

/// Fields that the supervisor writes.
const OURS: [&str; 4] = ["time_ms", "sandbox", "seq", "prev"];

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
    /// SHA-256 of the last line.
    previous: String,
    /// Lines that are not written yet.
    pending: Vec<u8>,
    /// What the records of this supervisor say.
    pub(super) counts: Counts,
}

/// SHA-256 in lower-case hexadecimal.
fn digest(line: &[u8]) -> String {
    hex::lower(&Sha256::digest(line))
}

/// SHA-256 of what is read, in lower-case hexadecimal.
pub(super) fn digest_of(source: &mut impl std::io::Read) -> std::io::Result<String> {
    let mut hash = Sha256::new();
    let mut bytes = vec![0; 128 * 1024];
    loop {
        match source.read(&mut bytes)? {
            0 => return Ok(hex::lower(&hash.finalize())),
            length => hash.update(bytes.get(..length).unwrap_or_default()),
        }
    }
}

/// The end of what an earlier supervisor wrote: the last line without its line feed,
/// and whether it has one.
fn last_line(path: &Path) -> std::io::Result<Option<(Vec<u8>, bool)>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let most = u64::try_from(MAX_RECORD_BYTES).unwrap_or(u64::MAX) * 2;
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    let whole = bytes.last() == Some(&b'\n');
    if whole {
        bytes.pop();
    }
    let last = bytes.rsplit(|byte| *byte == b'\n').next().unwrap_or_default().to_vec();
    Ok((length > 0).then_some((last, whole)))
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
        let why = || format!("cannot write the audit file {}", path.display());
        let mut file = create(path).with_context(why)?;
        let bytes = file.metadata().map_or(0, |metadata| metadata.len());
        // A container that starts again goes on where it ended.
        let full = path.with_extension("jsonl.1");
        let before = match last_line(path).with_context(why)? {
            Some(last) => Some(last),
            None if full.exists() => last_line(&full).with_context(why)?,
            None => None,
        };
        let torn = bytes > 0 && before.as_ref().is_some_and(|(_, whole)| !whole);
        if torn {
            file.write_all(b"\n").with_context(why)?;
        }
        let sequence = before
            .as_ref()
            .and_then(|(line, _)| serde_json::from_slice::<serde_json::Value>(line).ok())
            .and_then(|record| record.get("seq")?.as_u64())
            .unwrap_or_default();
        let previous = before.map_or_else(|| "0".repeat(64), |(line, _)| digest(&line));
        let (path, sandbox) = (path.to_owned(), sandbox.to_owned());
        let counts = Counts::default();
        let pending = Vec::new();
        let mut audit =
            Self { file, path, bytes, failed: false, sandbox, sequence, previous, pending, counts };
        if torn {
            audit.note("torn_record");
            audit.flush();
        }
        Ok(audit)
    }

    /// Writes every record that a worker handed over which has ended.
    pub(super) fn drain_to_the_end(&mut self, socket: &OwnedFd) {
        while self.drain(socket) {}
    }

    /// Writes records that the worker has handed over; true where there may be more.
    pub(super) fn drain(&mut self, socket: &OwnedFd) -> bool {
        let mut more = true;
        let mut bytes = [0; MAX_RECORD_BYTES];
        for _record in 0..MAX_RECORDS {
            let received = recv(socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT);
            let Ok(length @ 1..) = received else {
                more = false;
                break;
            };
            // A record that is no JSON object is the worker's own fault and
            // says so; it must not break the lines of others.
            match serde_json::from_slice(bytes.get(..length).unwrap_or_default()) {
                Ok(serde_json::Value::Object(mut record)) => {
                    let event = record.get("event").and_then(serde_json::Value::as_str);
                    if event.is_none_or(|event| OURS_ALONE.contains(&event)) {
                        record.insert("event".to_owned(), json!("worker_said"));
                    }
                    self.append(record);
                }
                _ => self.note("unreadable_record"),
            }
        }
        self.flush();
        more
    }

    /// A record of the supervisor's own, written with the next [`AuditFile::flush`].
    pub(super) fn note(&mut self, event: &str) {
        if let serde_json::Value::Object(record) = json!({"v": 1, "event": event}) {
            self.append(record);
        }
    }

    /// Records a socket that has begun to go out, and gives it back; the record is
    /// written with the next [`AuditFile::flush`].
    ///
    /// # Errors
    /// Where nobody can say where it comes from.
    pub(super) fn dial(
        &mut self,
        socket: OwnedFd,
        protocol: &str,
        to: SocketAddr,
    ) -> std::io::Result<OwnedFd> {
        let from = SocketAddr::try_from(rustix::net::getsockname(&socket)?)?;
        let (from, to) = (from.to_string(), to.to_string());
        let record = json!({"v": 1, "event": "dial", "protocol": protocol, "from": from, "to": to});
        if let serde_json::Value::Object(record) = record {
            self.append(record);
        }
        Ok(socket)
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
        // What the worker says of these counts for nothing.
        whole.extend(record.into_iter().filter(|(key, _)| !OURS.contains(&key.as_str())));
        self.counts.add(&whole);
        whole.insert("prev".to_owned(), json!(self.previous));
        let mut line = serde_json::to_vec(&whole).unwrap_or_default();
        self.previous = digest(&line);
        line.push(b'\n');
        self.pending.extend(line);
        // A file is put aside between two lines.
        if self.bytes + self.pending.len() as u64 >= MAX_FILE_BYTES {
            self.flush();
        }
    }

    /// Writes what has been recorded so far.
    pub(super) fn flush(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        // Whole lines in one write: lines of two writers never mix.
        let lines = std::mem::take(&mut self.pending);
        let written = self.file.write_all(&lines).and_then(|()| self.rotate(lines.len()));
        self.failed |= written.is_err();
        self.pending = lines;
        self.pending.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_cannot_tell_what_is_ours_and_nothing_of_it_is_lost() {
        let place = std::env::temp_dir().join(format!("nc-drain-{}", std::process::id()));
        std::fs::create_dir_all(&place).unwrap();
        let path = place.join("s.jsonl");
        let mut audit = AuditFile::open(&path, "s").unwrap();
        let (ours, theirs) = nix::sys::socket::socketpair(
            nix::sys::socket::AddressFamily::Unix,
            nix::sys::socket::SockType::SeqPacket,
            None,
            nix::sys::socket::SockFlag::empty(),
        )
        .unwrap();
        let say = |line: &str| {
            nix::sys::socket::send(theirs.as_raw_fd(), line.as_bytes(), MsgFlags::empty()).unwrap();
        };
        say(r#"{"event":"dial","from":"192.0.2.1:1","to":"192.0.2.2:2"}"#);
        say("no JSON");
        // Less than the socket's queue holds (unix(7), net.unix.max_dgram_qlen aside).
        assert!(!audit.drain(&ours));
        for number in 0..100 {
            say(&format!("{{\"event\":\"connection\",\"number\":{number}}}"));
        }
        drop(theirs);
        audit.drain_to_the_end(&ours);
        let text = std::fs::read_to_string(&path).unwrap();
        let count = |event: &str| text.matches(&format!("\"event\":\"{event}\"")).count();
        assert_eq!((count("dial"), count("worker_said"), count("unreadable_record")), (0, 1, 1));
        assert_eq!(count("connection"), 100);
        std::fs::remove_dir_all(&place).unwrap();
    }

    #[test]
    fn lines_are_a_chain_over_restarts_and_a_torn_one_is_ended() {
        let place = std::env::temp_dir().join(format!("nc-audit-{}", std::process::id()));
        std::fs::create_dir_all(&place).unwrap();
        let path = place.join("s.jsonl");
        let open = || AuditFile::open(&path, "s").unwrap();
        let mut audit = open();
        audit.note("one");
        let forged = json!({"event": "two", "seq": 99, "prev": "x", "sandbox": "other"});
        audit.append(forged.as_object().unwrap().clone());
        audit.flush();
        drop(audit);
        let noted = |event: &str| {
            let mut audit = open();
            audit.note(event);
            audit.flush();
        };
        noted("three");
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"{\"event\":\"cut").unwrap();
        noted("four");
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let events: Vec<_> = lines
            .iter()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .map(|record| Some(record?.get("event")?.as_str()?.to_owned()))
            .map(Option::unwrap_or_default)
            .collect();
        assert_eq!(events, ["one", "two", "three", "", "torn_record", "four"]);
        let mut previous = "0".repeat(64);
        for (line, event) in lines.iter().zip(&events) {
            if !event.is_empty() {
                let record: serde_json::Value = serde_json::from_str(line).unwrap();
                assert_eq!(record.get("prev").unwrap(), &json!(previous), "{line}");
                assert_eq!(record.get("sandbox").unwrap(), "s");
            }
            previous = digest(line.as_bytes());
        }
        let last: serde_json::Value = serde_json::from_str(lines[5]).unwrap();
        // The torn line had no number that can be read.
        assert_eq!(last.get("seq").unwrap(), 2);
        std::fs::remove_dir_all(&place).unwrap();
    }
}
