//! What runs inside a container's process after its identity and capabilities
//! are set: Landlock, seccomp, and the user's program. Shared by init and exec.

mod hooks;
mod landlock;
mod program;

use std::collections::HashMap;
use std::ffi::CString;
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::rc::Rc;

use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
use nemoclaw_spec::plan::Plan;
use nemoclaw_spec::seccomp;
use oci_spec::runtime::{Hook, Spec};
use serde::{Deserialize, Serialize};

use crate::report::CodedError;
use crate::weaken;

/// What init tells the runtime over a pipe that the container cannot reach.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Why the process cannot run, in the words engines know.
    pub(crate) error: Option<String>,
    /// Exit code that goes with the error.
    pub(crate) code: u8,
    /// What Landlock enforces, proved by the self-test.
    pub(crate) landlock: Option<String>,
}

/// Seccomp programs of one process, compiled before it exists, in the order in
/// which they are installed.
#[derive(Debug, Clone)]
pub(crate) struct Filters(Vec<seccompiler::BpfProgram>);

impl Filters {
    /// Compiles the plan's filters.
    pub(crate) fn compile(plan: &Plan) -> Result<Self, seccomp::InvalidFilter> {
        if weaken::left_away("seccomp") {
            return Ok(Self(Vec::new()));
        }
        let mut programs = if plan.confined { seccomp::ours(&plan.filter)? } else { Vec::new() };
        if let Some(profile) = &plan.seccomp {
            programs.extend(seccomp::engine(profile)?);
        }
        Ok(Self(programs))
    }

    /// How many programs there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    fn install(&self) -> Result<(), CodedError> {
        for program in &self.0 {
            seccompiler::apply_filter(program).map_err(|error| CodedError {
                code: 1,
                message: format!(
                    "seccomp: the filter cannot be installed: {error}; is CONFIG_SECCOMP_FILTER on?"
                ),
            })?;
        }
        Ok(())
    }
}

/// Confines a process and finds its program; everything that can fail before
/// the user's code runs.
pub(crate) fn prepare(
    plan: &Plan,
    args: &[String],
    path: &str,
    scoped: bool,
) -> Result<(CString, Option<String>), CodedError> {
    let program = program::find(args, path)?;
    let enforced = if plan.confined && !weaken::left_away("landlock") {
        Some(landlock::restrict(&plan.landlock, scoped)?)
    } else {
        None
    };
    Ok((program, enforced))
}

/// Installs the filters, runs the container's startContainer hooks under them,
/// and becomes the user's program; returns only on failure.
pub(crate) fn execute(
    filters: &Filters,
    hooks: &[Hook],
    id: &str,
    program: &CString,
    args: &[String],
    env: &[CString],
) -> CodedError {
    if let Err(error) = filters.install().and_then(|()| hooks::run(hooks, id)) {
        return error;
    }
    crate::sys::restore_signals();
    let args: Vec<CString> =
        args.iter().filter_map(|arg| CString::new(arg.as_str()).ok()).collect();
    match nix::unistd::execve(program, &args, env) {
        Ok(never) => match never {},
        Err(errno) => program::refused(program, errno),
    }
}

/// The executor libcontainer calls in the container's init.
#[derive(Debug, Clone)]
pub(crate) struct ConfinedInit {
    plan: Rc<Plan>,
    filters: Rc<Filters>,
    report: Rc<OwnedFd>,
    id: Rc<str>,
}

impl ConfinedInit {
    pub(crate) fn new(id: &str, plan: Plan, filters: Filters, report: OwnedFd) -> Self {
        Self {
            plan: Rc::new(plan),
            filters: Rc::new(filters),
            report: Rc::new(report),
            id: id.into(),
        }
    }
}

impl Executor for ConfinedInit {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let args = arguments(spec);
        let path = path_of(spec);
        let outcome = match prepare(&self.plan, &args, &path, self.plan.landlock.scoped) {
            Ok((_, landlock)) => Outcome { error: None, code: 0, landlock },
            Err(error) => {
                Outcome { error: Some(error.message.clone()), code: error.code, landlock: None }
            }
        };
        tell(self.report.as_fd(), &outcome);
        outcome
            .error
            .map_or(Ok(()), |error| Err(ExecutorValidationError::ArgValidationError(error)))
    }

    fn setup_envs(&self, envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // Only these two are not in the spec; `exec` builds the rest from it.
        for name in ["LISTEN_FDS", "LISTEN_PID", "HOME"] {
            if let Some(value) = envs.get(name) {
                crate::sys::set_variable(name, value);
            }
        }
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        if let Err(error) = enter_directory(&self.plan) {
            let _shown = writeln!(
                std::io::stderr(),
                "nemoclaw: the working directory cannot be entered: {error}; let the container's user enter it"
            );
            crate::sys::exit_now(1);
        }
        let args = arguments(spec);
        let mut env = environment(spec);
        for name in ["LISTEN_FDS", "LISTEN_PID", "HOME"] {
            let known =
                env.iter().any(|entry| entry.to_bytes().starts_with(format!("{name}=").as_bytes()));
            if let (Some(value), false) = (std::env::var_os(name), known) {
                let entry = [name.as_bytes(), b"=", &value.into_vec()].concat();
                env.extend(CString::new(entry));
            }
        }
        let error = match program::find(&args, &path_of(spec)) {
            Ok(program) => {
                execute(&self.filters, &self.plan.start_hooks, &self.id, &program, &args, &env)
            }
            Err(error) => error,
        };
        // Engines have let go of us: the container's own stderr is all there is.
        let _shown = writeln!(std::io::stderr(), "nemoclaw: {}", error.message);
        crate::sys::exit_now(i32::from(error.code.max(1)));
    }
}

/// Enters the working directory anew: libcontainer did before it was covered by a
/// read-only mount, and what it entered would stay writable.
fn enter_directory(plan: &Plan) -> std::io::Result<()> {
    let entered = std::env::current_dir()?;
    if plan.read_only_mounts.iter().any(|path| entered.starts_with(path)) {
        std::env::set_current_dir(entered)?;
    }
    Ok(())
}

/// Writes one outcome; a reader that has gone needs none.
pub(crate) fn tell(pipe: BorrowedFd<'_>, outcome: &Outcome) {
    let line = serde_json::to_vec(outcome).unwrap_or_default();
    let _sent = rustix::io::write(pipe, &line);
}

fn arguments(spec: &Spec) -> Vec<String> {
    spec.process().as_ref().and_then(|process| process.args().clone()).unwrap_or_default()
}

fn path_of(spec: &Spec) -> String {
    let env = spec.process().as_ref().and_then(|process| process.env().clone()).unwrap_or_default();
    path_in(&env)
}

/// The value of PATH in an environment; the last one counts.
pub(crate) fn path_in(env: &[String]) -> String {
    env.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default().to_owned()
}

fn environment(spec: &Spec) -> Vec<CString> {
    spec.process()
        .as_ref()
        .and_then(|process| process.env().clone())
        .unwrap_or_default()
        .into_iter()
        .filter_map(|entry| CString::new(entry).ok())
        .collect()
}
