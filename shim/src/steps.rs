//! Named steps of create and exec, so that tests can end the runtime at each of
//! them and look for what is left.
//!
//! `NEMOCLAW_END_AT` comes from the engine's environment, which is the
//! operator's; all it can do is end the runtime early.

use std::io::Write as _;

/// The variable that names a step.
const VARIABLE: &str = "NEMOCLAW_END_AT";

/// Every step, in order.
pub(crate) const CREATE: [&str; 18] = [
    "create:parsed",
    "create:policy",
    "create:planned",
    "create:proxy-spawned",
    "create:entry",
    "create:filters",
    "create:directories",
    "create:bundle",
    "create:plan-saved",
    "create:record-saved",
    "create:built",
    "create:pid-saved",
    "create:namespace",
    "create:locked",
    "create:sandbox-directory",
    "create:proxy-entered",
    "create:joined",
    "create:done",
];

/// Every step of exec, in order; those with `child` end the new process.
pub(crate) const EXEC: [&str; 8] = [
    "exec:loaded",
    "exec:planned",
    "exec:opened",
    "exec:child-cgroups",
    "exec:child-namespaces",
    "exec:child-identity",
    "exec:child-prepared",
    "exec:spawned",
];

/// Marks that a step has been reached.
pub(crate) fn reached(step: &'static str) {
    debug_assert!(CREATE.contains(&step) || EXEC.contains(&step), "unlisted step {step}");
    if std::env::var_os(VARIABLE).is_some_and(|wanted| wanted == step) {
        let _told = writeln!(std::io::stderr(), "nemoclaw: ended at {step}");
        let _ended = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
    }
}
