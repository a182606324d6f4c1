//! The command line: runc's verbs and flags, and the operator verbs that
//! `nemoclaw-ctl` carries out.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command as Process, ExitCode};

use clap::{Args, Parser, Subcommand};

use crate::reexec;
use crate::report::Report;

/// An OCI runtime that confines what it starts and polices its egress.
#[derive(Debug, Parser)]
#[command(
    name = "nemoclaw",
    version,
    disable_help_subcommand = true,
    after_help = "For operators:\n  policy test explain lint diff show export schema reference\n                Ask about policies (see: nemoclaw policy --help)\n  presets       See the presets, postures and tiers there are\n  logs          Print audit records, or check them\n  metrics       Count what the sandboxes did, for Prometheus\n\nVerbs for engines see only what lies under their --root (Docker has one of its own);\nverify, logs, metrics and shields see every container, by its id."
)]
pub(crate) struct Invocation {
    /// Directory for the state of containers
    #[arg(long, default_value = "/run/nemoclaw/oci", value_name = "DIR")]
    pub(crate) root: PathBuf,
    /// File for messages (engines show its last line)
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Form of the messages: text or json
    #[arg(long, default_value = "text", value_name = "FORMAT")]
    log_format: String,
    /// Accepted for runc's sake
    #[arg(long)]
    debug: bool,
    /// Let systemd manage cgroups
    #[arg(long)]
    pub(crate) systemd_cgroup: bool,
    /// Accepted for runc's sake: true, false or auto
    #[arg(long, value_name = "MODE")]
    rootless: Option<String>,
    /// Accepted for runc's sake
    #[arg(long, value_name = "PATH", hide = true)]
    criu: Option<String>,
    /// Policy: a file by its absolute path, or NAME for
    /// /etc/nemoclaw/policies/NAME.yaml; `observe` only records
    #[arg(long, value_name = "NAME|FILE")]
    pub(crate) policy: Option<String>,
    /// The verb
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// `verify`.
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Print JSON, the plan included
    #[arg(long)]
    pub(crate) json: bool,
    /// The container: its id, or the beginning of it
    pub(crate) id: String,
}

/// `shields`.
#[derive(Debug, Args)]
pub(crate) struct Shields {
    #[command(subcommand)]
    pub(crate) verb: ShieldsVerb,
}

/// What to do with shields.
#[derive(Debug, Subcommand)]
pub(crate) enum ShieldsVerb {
    /// Lock the directories that the policy names
    Up {
        /// Also while a process has a file in them open for writing: it can go on
        /// writing that file, and no other
        #[arg(long)]
        force: bool,
        /// The container: its id, or the beginning of it
        id: String,
    },
    /// Unlock them
    Down {
        /// Lock them again after this time: 90s, 15m, 2h
        #[arg(long = "for", value_name = "TIME", value_parser = crate::shields::parse_duration)]
        duration: Option<std::time::Duration>,
        /// The container: its id, or the beginning of it
        id: String,
    },
    /// Say whether they are locked: exit 0 when all are, else 3
    Status {
        /// The container: its id, or the beginning of it
        id: String,
    },
}

impl ShieldsVerb {
    /// The container.
    pub(crate) fn id(&self) -> &str {
        match self {
            Self::Up { id, .. } | Self::Down { id, .. } | Self::Status { id } => id,
        }
    }
}

/// `doctor`.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a container; it waits for start
    Create(Create),
    /// Run the user's program in a created container
    Start(Id),
    /// Print the state of a container
    State(Id),
    /// Send a signal to a container's init
    Kill(Kill),
    /// Remove a container and what belongs to it
    Delete(Delete),
    /// Create and start a container
    Run(Run),
    /// Run another program in a container, equally confined
    Exec(Box<Exec>),
    /// List containers
    List(List),
    /// Compare a running container with its plan: exit 0 as planned, 3 when
    /// something differs, 4 when it does not run
    Verify(Verify),
    /// Lock and unlock directories of a running container
    Shields(Shields),
    /// Say what this host can and cannot enforce: exit 3 when something is missing
    Doctor(Doctor),
    /// List the processes of a container
    Ps(Ps),
    /// Suspend every process of a container
    Pause(Id),
    /// Let a paused container go on
    Resume(Id),
    /// Change a container's resource limits
    Update(Box<Update>),
    /// Print resource usage
    Events(Events),
    /// Write an example config.json
    Spec(Spec),
    /// Print what this runtime supports
    Features,
    /// Refused: a checkpoint would leave the proxy's connections behind
    Checkpoint(Rest),
    /// Refused, as checkpoint
    Restore(Rest),
    /// Operator verbs: policy, logs
    #[command(external_subcommand)]
    Operator(Vec<OsString>),
}

#[derive(Debug, Args)]
pub(crate) struct Id {
    /// Container id
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Directory with config.json
    #[arg(short, long, default_value = ".", value_name = "DIR")]
    pub(crate) bundle: PathBuf,
    /// Socket that gets the terminal's master end
    #[arg(long, value_name = "PATH")]
    pub(crate) console_socket: Option<PathBuf>,
    /// Socket that gets a pidfd of init
    #[arg(long, value_name = "PATH")]
    pub(crate) pidfd_socket: Option<PathBuf>,
    /// File for the pid of init
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
    /// Use chroot instead of pivot_root
    #[arg(long)]
    pub(crate) no_pivot: bool,
    /// Accepted for runc's sake: no keyring is made
    #[arg(long)]
    pub(crate) no_new_keyring: bool,
    /// Number of descriptors above stderr to pass on
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(crate) preserve_fds: i32,
    /// Container id
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) create: Create,
    /// Return as soon as the container runs
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Keep the container when it has ended
    #[arg(long)]
    pub(crate) keep: bool,
    /// Accepted for runc's sake
    #[arg(long)]
    pub(crate) no_subreaper: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Kill {
    /// Signal every process of the container
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Container id
    pub(crate) id: String,
    /// Signal by name or number
    #[arg(default_value = "SIGTERM")]
    pub(crate) signal: String,
}

#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// Kill a running container first; a missing one is no error
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Container id
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// Socket that gets the terminal's master end
    #[arg(long, value_name = "PATH")]
    pub(crate) console_socket: Option<PathBuf>,
    /// Socket that gets a pidfd of the process
    #[arg(long, value_name = "PATH")]
    pub(crate) pidfd_socket: Option<PathBuf>,
    /// Working directory
    #[arg(long, value_name = "DIR")]
    pub(crate) cwd: Option<PathBuf>,
    /// Environment variable, NAME=VALUE
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// Allocate a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// User as UID or UID:GID
    #[arg(short, long, value_name = "UID[:GID]")]
    pub(crate) user: Option<String>,
    /// Accepted for runc's sake; supplementary groups are cleared
    #[arg(short = 'g', long, value_name = "GID")]
    pub(crate) additional_gids: Vec<u32>,
    /// Process description, as in config.json
    #[arg(short, long, value_name = "FILE")]
    pub(crate) process: Option<PathBuf>,
    /// Return as soon as the process runs
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// File for the pid
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
    /// Accepted for runc's sake
    #[arg(long, value_name = "LABEL")]
    pub(crate) process_label: Option<String>,
    /// Accepted for runc's sake
    #[arg(long, value_name = "PROFILE")]
    pub(crate) apparmor: Option<String>,
    /// Always on
    #[arg(long)]
    pub(crate) no_new_privs: bool,
    /// Capability; cut back to the plan, which has none
    #[arg(short, long, value_name = "CAP")]
    pub(crate) cap: Vec<String>,
    /// Number of descriptors above stderr to pass on
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(crate) preserve_fds: u32,
    /// Sub-cgroup of the container's
    #[arg(long, value_name = "PATH")]
    pub(crate) cgroup: Option<String>,
    /// Run although the container is paused
    #[arg(long)]
    pub(crate) ignore_paused: bool,
    /// Container id
    pub(crate) id: String,
    /// Program and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// table or json
    #[arg(short, long, default_value = "table", value_name = "FORMAT")]
    pub(crate) format: String,
    /// Ids only
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Ps {
    /// table or json
    #[arg(short, long, default_value = "table", value_name = "FORMAT")]
    pub(crate) format: String,
    /// Container id
    pub(crate) id: String,
    /// Options of ps(1), `-ef` by default
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) options: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Update {
    /// File with resources as in config.json, `-` for stdin
    #[arg(short, long, value_name = "FILE")]
    pub(crate) resources: Option<String>,
    /// Block I/O weight
    #[arg(long)]
    pub(crate) blkio_weight: Option<u16>,
    /// CPU period, microseconds
    #[arg(long)]
    pub(crate) cpu_period: Option<u64>,
    /// CPU quota, microseconds in a period
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) cpu_quota: Option<i64>,
    /// CPU shares
    #[arg(long, alias = "cpu-share")]
    pub(crate) cpu_shares: Option<u64>,
    /// CPUs to use
    #[arg(long)]
    pub(crate) cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long)]
    pub(crate) cpuset_mems: Option<String>,
    /// Memory limit, bytes
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) memory: Option<i64>,
    /// Memory reservation, bytes
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) memory_reservation: Option<i64>,
    /// Memory and swap limit, bytes; -1 for none
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) memory_swap: Option<i64>,
    /// Number of processes; bounded by the policy
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) pids_limit: Option<i64>,
    /// Container id
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Seconds between records
    #[arg(long, default_value = "5s")]
    pub(crate) interval: String,
    /// Print one record and end
    #[arg(long)]
    pub(crate) stats: bool,
    /// Container id
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct Spec {
    /// Directory to write config.json to
    #[arg(short, long, default_value = ".", value_name = "DIR")]
    pub(crate) bundle: PathBuf,
    /// For a container without root on the host
    #[arg(long)]
    pub(crate) rootless: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Rest {
    /// Ignored
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    rest: Vec<String>,
}

impl Invocation {
    /// Where this invocation's messages go.
    pub(crate) fn report(&self) -> Report {
        Report { file: self.log.clone(), json: self.log_format == "json" }
    }

    /// Whether the policy is `observe`.
    pub(crate) fn observes(&self) -> bool {
        self.policy.as_deref() == Some("observe")
    }
}

/// Parses the command line; hands operator verbs to `nemoclaw-ctl`.
pub(crate) fn parse() -> Result<Invocation, ExitCode> {
    match Invocation::try_parse() {
        Ok(Invocation { command: Command::Operator(args), .. }) => Err(operate(&args)),
        Ok(invocation) => Ok(invocation),
        Err(error) => {
            let _shown = error.print();
            Err(if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS })
        }
    }
}

/// Becomes `nemoclaw-ctl`; returns only on failure.
fn operate(args: &[OsString]) -> ExitCode {
    let error = match reexec::sibling("nemoclaw-ctl") {
        Ok(path) => anyhow::Error::new(Process::new(&path).args(args).exec())
            .context(format!("cannot start {}", path.display())),
        Err(error) => error,
    };
    let _shown = writeln!(
        std::io::stderr(),
        "nemoclaw: {error:#}; is nemoclaw-ctl installed beside nemoclaw?"
    );
    ExitCode::FAILURE
}
