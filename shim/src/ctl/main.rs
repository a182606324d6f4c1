//! `nemoclaw-ctl`: the operator's verbs. People type `nemoclaw VERB`.

mod logs;
mod metrics;
mod policy;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Operator verbs of nemoclaw.
#[derive(Debug, Parser)]
#[command(name = "nemoclaw", bin_name = "nemoclaw", version, disable_help_subcommand = true)]
struct Invocation {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Ask about policies
    #[command(subcommand)]
    Policy(policy::Verb),
    /// See the presets, postures and tiers there are
    #[command(subcommand)]
    Presets(policy::PresetVerb),
    /// Print audit records
    Logs(logs::Logs),
    /// Print counts for Prometheus
    Metrics(metrics::Metrics),
}

fn main() -> ExitCode {
    let invocation = match Invocation::try_parse() {
        Ok(invocation) => invocation,
        Err(error) => {
            let _shown = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let result = match invocation.verb {
        Verb::Policy(verb) => policy::run(&verb),
        Verb::Presets(verb) => policy::presets(&verb),
        Verb::Logs(logs) => logs.run(),
        Verb::Metrics(metrics) => metrics.run(),
    };
    result.unwrap_or_else(|error| {
        // `nemoclaw logs | head` is no failure.
        let pipe = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        if pipe == Some(std::io::ErrorKind::BrokenPipe) {
            return ExitCode::SUCCESS;
        }
        let _shown = writeln!(std::io::stderr(), "nemoclaw: {error:#}");
        ExitCode::FAILURE
    })
}
