//! `nemoclaw`: an OCI runtime that confines what it starts.
//!
//! Path (a) of the product: `config.json` + policy -> plan -> hardened spec ->
//! libcontainer -> executor. Synchronous; no TLS, no async runtime.

mod bundle;
mod cgroups;
mod cli;
mod commands;
mod content;
mod doctor;
mod exec;
mod facts;
mod guard;
mod image;
mod init;
mod mounts;
mod net;
mod origin;
mod policy;
mod proxy;
mod reexec;
mod report;
mod shields;
mod stage;
mod stdio;
mod steps;
mod store;
#[expect(unsafe_code, reason = "system calls that no library wraps; the only unsafe code here")]
mod sys;
mod verify;
mod weaken;
mod workspace;

use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::parse() {
        Ok(invocation) => commands::run(&invocation),
        Err(code) => code,
    }
}
