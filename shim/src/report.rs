//! How errors leave the runtime: to stderr, to `--log` in runc's form (engines
//! show people its last line), and as an exit code.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::process::ExitCode;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Where messages go.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    /// `--log`.
    pub(crate) file: Option<PathBuf>,
    /// `--log-format json`.
    pub(crate) json: bool,
}

/// An error that decides the exit code itself.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct CodedError {
    /// The exit code: 126 not executable, 127 not found, 3 refused by policy.
    pub(crate) code: u8,
    /// The whole message.
    pub(crate) message: String,
}

impl Report {
    /// Tells of a failure and gives the exit code for it.
    pub(crate) fn failure(&self, error: &anyhow::Error) -> ExitCode {
        let message = format!("{error:#}");
        self.write("error", &message);
        let _shown = writeln!(std::io::stderr(), "nemoclaw: {message}");
        let coded = error.chain().find_map(|cause| cause.downcast_ref::<CodedError>());
        ExitCode::from(coded.map_or(1, |coded| coded.code))
    }

    /// Tells of something done otherwise than asked.
    pub(crate) fn note(&self, message: &str) {
        self.write("warning", message);
    }

    /// Appends one line to the log file. A log that cannot be written must not
    /// decide whether a container starts.
    fn write(&self, level: &str, message: &str) {
        let Some(path) = &self.file else { return };
        let time = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
        let line = if self.json {
            serde_json::json!({"level": level, "msg": message, "time": time}).to_string()
        } else {
            let quoted = serde_json::Value::from(message).to_string();
            format!("time=\"{time}\" level={level} msg={quoted}")
        };
        let opened = OpenOptions::new().append(true).create(true).mode(0o644).open(path);
        if let Ok(mut file) = opened {
            let _written = writeln!(file, "{line}");
        }
    }
}
