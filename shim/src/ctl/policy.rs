//! `policy test`, `policy lint` and `logs`.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use nemoclaw_spec::decide::{Caller, Decision, Destination, Engine, Intent, Process, remedy};
use nemoclaw_spec::name::Host;
use nemoclaw_spec::policy::{InvalidPolicy, Policy, Severity, lint::lint as advise};
use serde_json::json;

/// Exit code of a refusal.
const REFUSED: u8 = 3;
/// Longest policy file read, in bytes, with room for the parser to say so.
const MAX_BYTES: u64 = 4 * 1024 * 1024;

/// Arguments of `policy test`.
#[derive(Debug, Args)]
pub(crate) struct Test {
    /// Policy file
    #[arg(long, value_name = "FILE")]
    policy: PathBuf,
    /// Executable of the program, as /proc/PID/exe names it
    #[arg(long, value_name = "PATH")]
    binary: String,
    /// Executable of an ancestor, nearest first
    #[arg(long, value_name = "PATH")]
    ancestor: Vec<String>,
    /// Host name or address
    #[arg(long)]
    host: String,
    /// Port
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// HTTP method; endpoints of this version decide without it
    #[arg(long)]
    method: Option<String>,
    /// HTTP path; endpoints of this version decide without it
    #[arg(long)]
    path: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Decides one connection with the proxy's own function.
pub(crate) fn test(args: &Test) -> Result<ExitCode> {
    let policy = read(&args.policy)?.map_err(|invalid| anyhow!("{invalid}"))?;
    if let Some(finding) = policy.unenforced.first() {
        bail!("this policy cannot be enforced by this version: {finding}");
    }
    let destination = match args.host.parse::<IpAddr>() {
        Ok(address) => Destination::Address { address, names: Vec::new() },
        Err(_) => Destination::Host(
            Host::parse(&args.host)
                .map_err(|why| anyhow!("`{}` is no host: {why}", args.host.escape_debug()))?,
        ),
    };
    let intent = Intent { destination, port: args.port };
    let caller = Caller {
        holders: vec![Process { binary: args.binary.clone(), ancestors: args.ancestor.clone() }],
    };
    let engine = Engine::new(policy, HashMap::new());
    let (allowed, rule, reason, allow_with) = match engine.decide(&intent, &caller) {
        Decision::Allow(permit) => (true, Some(permit.rule().to_string()), None, None),
        Decision::Deny(denial) => (
            false,
            denial.nearest.as_ref().map(ToString::to_string),
            Some(denial.reason),
            remedy(&intent, &caller, denial.reason),
        ),
    };
    let decision = if allowed { "allow" } else { "deny" };
    if args.json {
        print(
            &json!({
                "decision": decision,
                "rule": rule,
                "reason": reason.map(nemoclaw_spec::decide::Reason::code),
                "detail": reason.map(nemoclaw_spec::decide::Reason::sentence),
                "allow_with": allow_with,
            })
            .to_string(),
        )?;
    } else {
        let rule = rule.unwrap_or_else(|| "no rule".to_owned());
        print(&format!("{decision}: {rule}"))?;
        if let Some(reason) = reason {
            print(&format!("  because {} ({})", reason.sentence(), reason.code()))?;
        }
        if let Some(yaml) = allow_with {
            print(&format!("  to allow it, add under network_policies: {yaml}"))?;
        }
    }
    Ok(if allowed { ExitCode::SUCCESS } else { ExitCode::from(REFUSED) })
}

/// Checks files; advice alone is no failure.
pub(crate) fn lint(files: &[PathBuf], json: bool) -> Result<ExitCode> {
    let mut findings = Vec::new();
    for file in files {
        match read(file)? {
            Ok(policy) => findings.extend(advise(&policy)),
            Err(InvalidPolicy { problems }) => findings.extend(problems),
        }
    }
    let failed = findings.iter().any(|finding| finding.severity == Severity::Error);
    if json {
        print(&serde_json::to_string(&findings)?)?;
    } else {
        for finding in &findings {
            print(&finding.to_string())?;
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn read(path: &Path) -> Result<Result<Policy, InvalidPolicy>> {
    let size = fs::metadata(path).with_context(|| format!("cannot find {}", path.display()))?.len();
    if size > MAX_BYTES {
        bail!("{} is too large to be a policy", path.display());
    }
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let text =
        String::from_utf8(bytes).with_context(|| format!("{} is no UTF-8 text", path.display()))?;
    Ok(Policy::parse(&text, &path.display().to_string()))
}

/// Prints audit records of one or all sandboxes.
pub(crate) fn logs(sandbox: Option<&str>, denied: bool) -> Result<ExitCode> {
    let directory = Path::new("/var/log/nemoclaw");
    let mut files: Vec<PathBuf> = fs::read_dir(directory)
        .with_context(|| format!("there are no records in {}", directory.display()))?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"))
        .filter(|path| {
            let name = path
                .file_stem()
                .map(|stem| stem.to_string_lossy().into_owned())
                .unwrap_or_default();
            sandbox.is_none_or(|wanted| name.starts_with(wanted))
        })
        .collect();
    files.sort();
    let mut lines = Vec::new();
    for file in files {
        let reader = BufReader::new(
            fs::File::open(&file).with_context(|| format!("cannot read {}", file.display()))?,
        );
        for line in reader.lines() {
            let line = line?;
            if !denied || line.contains("\"decision\":\"deny\"") {
                lines.push((time_of(&line), line));
            }
        }
    }
    lines.sort_by_key(|(time, _)| *time);
    for (_, line) in lines {
        print(&line)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// When a record was written, in milliseconds since 1970.
fn time_of(line: &str) -> u64 {
    serde_json::from_str::<serde_json::Value>(line)
        .ok()
        .and_then(|record| record.get("time_ms").and_then(serde_json::Value::as_u64))
        .unwrap_or_default()
}

fn print(text: &str) -> Result<()> {
    writeln!(std::io::stdout().lock(), "{text}")?;
    Ok(())
}
