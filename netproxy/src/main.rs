//! `nemoclaw-netproxy`: the egress proxy of one sandbox, started by the
//! runtime and by nobody else.
//!
//! Path (b) of the product: accept -> original destination and name ->
//! identity -> decision (a permit) -> relay -> audit. Two processes share the
//! work: the *worker* reads hostile bytes and can open nothing; the
//! *supervisor* opens what a permit allows, knows whose socket it is, keeps
//! the record, and reads no byte from the network.

mod link;
mod supervisor;
#[expect(
    unsafe_code,
    reason = "fork, bpf(2) and descriptors from the kernel; the only unsafe code here"
)]
mod sys;
mod worker;

use std::io::Write as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("--version") {
        let _shown = writeln!(std::io::stdout(), "nemoclaw-netproxy {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    if std::env::args().nth(1).as_deref() == Some("examine") {
        return match supervisor::examine() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                let _shown = writeln!(std::io::stderr(), "{error:#}");
                ExitCode::FAILURE
            }
        };
    }
    if std::env::args().nth(1).as_deref() != Some("supervise") {
        let _shown = writeln!(
            std::io::stderr(),
            "nemoclaw-netproxy is started by the nemoclaw runtime, once for each sandbox"
        );
        return ExitCode::from(2);
    }
    match supervisor::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _shown = writeln!(std::io::stderr(), "nemoclaw-netproxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}
