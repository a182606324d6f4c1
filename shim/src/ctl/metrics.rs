//! The `metrics` verb: what the sandboxes of this host have done, in Prometheus'
//! text format (exposition formats, version 0.0.4).

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use nemoclaw_spec::control::{Reply, Request};

/// Where the sandboxes are.
const DIRECTORY: &str = "/run/nemoclaw/sandboxes";
/// How long one sandbox may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest answer, in bytes.
const MAX_ANSWER: u64 = 1024 * 1024;

/// Counts of each sandbox since it started; they end with it.
#[derive(Debug, Args)]
pub(crate) struct Metrics {
    /// Only this sandbox (container id, or its beginning)
    #[arg(long)]
    sandbox: Option<String>,
}

impl Metrics {
    /// Carries out the verb.
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let (mut replies, mut silent) = (Vec::new(), 0_u64);
        let entries = match fs::read_dir(DIRECTORY) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            entries => Some(entries.with_context(|| {
                format!("cannot read {DIRECTORY}; metrics are root's: try sudo")
            })?),
        };
        for entry in entries.into_iter().flatten() {
            match ask(&entry?.path()) {
                Ok(reply) => replies.push(reply),
                Err(_) => silent += 1,
            }
        }
        if let Some(wanted) = &self.sandbox {
            replies.retain(|reply| reply.sandbox.starts_with(wanted.as_str()));
            if replies.is_empty() {
                bail!(
                    "no sandbox that runs has an id that begins with `{}`",
                    wanted.escape_debug()
                );
            }
        }
        replies.sort_by(|a, b| a.sandbox.cmp(&b.sandbox));
        std::io::stdout().write_all(text(&replies, silent).as_bytes())?;
        Ok(ExitCode::SUCCESS)
    }
}

fn ask(directory: &Path) -> Result<Reply> {
    let mut socket = UnixStream::connect(directory.join("supervisor.sock"))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(&Request::Status)?;
    line.push(b'\n');
    socket.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(socket.take(MAX_ANSWER)).read_line(&mut answer)?;
    Ok(serde_json::from_str(&answer)?)
}

type Family = (&'static str, &'static str, &'static str, fn(&Reply) -> u64);

/// Name, kind, help, and the value of one sandbox.
const FAMILIES: [Family; 9] = [
    ("containers", "gauge", "Containers that run in the sandbox.", |reply| {
        u64::try_from(reply.members.len()).unwrap_or(u64::MAX)
    }),
    ("connections_allowed_total", "counter", "Connections and requests allowed.", |reply| {
        reply.counts.allowed
    }),
    ("connections_open", "gauge", "Allowed connections that have not ended.", |reply| {
        reply.counts.allowed.saturating_sub(reply.counts.closed)
    }),
    ("sent_bytes_total", "counter", "Bytes out of the sandbox, of ended connections.", |reply| {
        reply.counts.sent
    }),
    ("received_bytes_total", "counter", "Bytes into the sandbox, of ended connections.", |reply| {
        reply.counts.received
    }),
    ("records_total", "counter", "Audit records written.", |reply| reply.counts.records),
    ("worker_restarts_total", "counter", "Workers of the proxy that died.", |reply| {
        reply.counts.restarts
    }),
    ("observed", "gauge", "1 where the policy only records.", |reply| reply.observe.into()),
    ("connects_noted", "gauge", "1 where the kernel notes who connects.", |reply| {
        reply.unnoted.is_empty().into()
    }),
];

fn text(replies: &[Reply], silent: u64) -> String {
    let mut text = String::new();
    let head = |text: &mut String, name: &str, kind: &str, help: &str| {
        let _infallible =
            write!(text, "# HELP nemoclaw_{name} {help}\n# TYPE nemoclaw_{name} {kind}\n");
    };
    head(&mut text, "sandboxes", "gauge", "Sandboxes whose proxy answers.");
    let _infallible = writeln!(text, "nemoclaw_sandboxes {}", replies.len());
    head(&mut text, "sandboxes_silent", "gauge", "Sandboxes whose proxy does not answer.");
    let _infallible = writeln!(text, "nemoclaw_sandboxes_silent {silent}");
    for (name, kind, help, value) in FAMILIES {
        head(&mut text, name, kind, help);
        for reply in replies {
            let sandbox = label(&reply.sandbox);
            let _infallible =
                writeln!(text, "nemoclaw_{name}{{sandbox=\"{sandbox}\"}} {}", value(reply));
        }
    }
    let name = "connections_refused_total";
    head(&mut text, name, "counter", "Connections and requests refused, by reason.");
    for reply in replies {
        for (reason, count) in &reply.counts.refused {
            let (sandbox, reason) = (label(&reply.sandbox), label(reason));
            let _infallible = writeln!(
                text,
                "nemoclaw_{name}{{sandbox=\"{sandbox}\",reason=\"{reason}\"}} {count}"
            );
        }
    }
    text
}

/// A label's value as the format wants it.
fn label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use nemoclaw_spec::control::Counts;

    use super::*;

    #[test]
    fn counts_are_written_as_prometheus_reads_them() {
        let mut reply = Reply::done();
        reply.sandbox = "a\"b".to_owned();
        reply.members = vec!["a".to_owned()];
        reply.counts = Counts { allowed: 5, closed: 3, sent: 7, ..Counts::default() };
        reply.counts.refused.insert("no_endpoint".to_owned(), 2);
        let text = text(&[reply], 1);
        for line in [
            "nemoclaw_sandboxes 1",
            "nemoclaw_sandboxes_silent 1",
            "# TYPE nemoclaw_connections_open gauge",
            "nemoclaw_connections_open{sandbox=\"a\\\"b\"} 2",
            "nemoclaw_sent_bytes_total{sandbox=\"a\\\"b\"} 7",
            "nemoclaw_connections_refused_total{sandbox=\"a\\\"b\",reason=\"no_endpoint\"} 2",
        ] {
            assert!(text.lines().any(|own| own == line), "{line}\n{text}");
        }
        assert!(text.lines().all(|line| line.starts_with("# ") || line.contains(' ')));
    }
}
