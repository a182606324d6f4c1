//! One file for each verb, and what they share.

mod create;
mod delete;
mod events;
mod features;
mod list;
mod signal;
mod spec;
mod state;
mod update;

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::cli::{Command, Invocation};
use crate::{doctor, exec, shields, verify};

/// Carries out one invocation.
pub(crate) fn run(invocation: &Invocation) -> ExitCode {
    match dispatch(invocation) {
        Ok(code) => code,
        Err(error) => invocation.report().failure(&error),
    }
}

fn dispatch(invocation: &Invocation) -> Result<ExitCode> {
    let root = &invocation.root;
    match &invocation.command {
        Command::Create(args) => create::create(invocation, args).map(|()| ExitCode::SUCCESS),
        Command::Run(args) => create::run(invocation, args),
        Command::Start(args) => create::start(root, &args.id).map(|()| ExitCode::SUCCESS),
        Command::State(args) => state::print(root, &args.id).map(|()| ExitCode::SUCCESS),
        Command::Kill(args) => signal::kill(root, args).map(|()| ExitCode::SUCCESS),
        Command::Delete(args) => {
            delete::delete(root, &args.id, args.force).map(|()| ExitCode::SUCCESS)
        }
        Command::Exec(args) => exec::run(invocation, args),
        Command::List(args) => list::list(root, args).map(|()| ExitCode::SUCCESS),
        Command::Ps(args) => list::ps(root, args).map(|()| ExitCode::SUCCESS),
        Command::Pause(args) => signal::freeze(root, &args.id, true).map(|()| ExitCode::SUCCESS),
        Command::Resume(args) => signal::freeze(root, &args.id, false).map(|()| ExitCode::SUCCESS),
        Command::Update(args) => update::update(root, args).map(|()| ExitCode::SUCCESS),
        Command::Events(args) => events::events(root, args).map(|()| ExitCode::SUCCESS),
        Command::Verify(args) => verify::run(root, args),
        Command::Shields(args) => shields::run(root, args),
        Command::Doctor(args) => doctor::run(args),
        Command::Spec(args) => spec::write(args).map(|()| ExitCode::SUCCESS),
        Command::Features => features::print().map(|()| ExitCode::SUCCESS),
        Command::Checkpoint(_) | Command::Restore(_) => {
            bail!(
                "checkpoint and restore are not supported: the proxy's connections and keys cannot be part of an image; stop the container and start a new one"
            )
        }
        Command::Operator(_) => bail!("operator verbs are handled by nemoclaw-ctl"),
    }
}

/// Prints to stdout; engines read some verbs' output.
fn print(text: &str) -> Result<()> {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()?;
    Ok(())
}
