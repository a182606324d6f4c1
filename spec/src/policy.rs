//! The policy: what an operator allows, read from YAML and checked.
//!
//! `Policy::parse` is the only way in. It reports every problem of a file at
//! once, each with its place and its fix, and never guesses: an unknown key is
//! an error, because a misspelt restriction would otherwise vanish.

mod check;
pub mod diagnostic;
mod file;
pub mod lint;

use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;

use crate::name::{BinaryPattern, HostPattern};
pub use diagnostic::{Diagnostic, InvalidPolicy, Severity};

/// The policy that applies when the operator has written none: no egress,
/// every confinement on. Same text as `policies/baseline.yaml`.
pub const BASELINE: &str = include_str!("../../policies/baseline.yaml");

/// What a policy without `filesystem_policy` lets be read: the lists of
/// [`BASELINE`].
pub(crate) const BASELINE_READ_ONLY: [&str; 18] = [
    "/usr",
    "/lib",
    "/proc",
    "/dev/urandom",
    "/app",
    "/etc",
    "/var/log",
    "/bin",
    "/sbin",
    "/lib32",
    "/lib64",
    "/libx32",
    "/opt",
    "/srv",
    "/sys",
    "/run",
    "/var",
    "/dev/random",
];
/// What it lets be written.
pub(crate) const BASELINE_READ_WRITE: [&str; 12] = [
    "/sandbox",
    "/tmp",
    "/var/tmp",
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/tty",
    "/dev/ptmx",
    "/dev/pts",
    "/dev/shm",
    "/dev/mqueue",
    "/dev/console",
];
/// What every policy gets besides its own list, because nothing starts
/// without: OpenShell adds such a set too.
pub(crate) const NEEDED_READ_ONLY: [&str; 12] = [
    "/usr",
    "/lib",
    "/proc",
    "/dev/urandom",
    "/dev/random",
    "/app",
    "/etc",
    "/var/log",
    "/bin",
    "/sbin",
    "/lib32",
    "/lib64",
];
/// As [`NEEDED_READ_ONLY`], for writing.
pub(crate) const NEEDED_READ_WRITE: [&str; 10] = [
    "/tmp",
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/tty",
    "/dev/ptmx",
    "/dev/pts",
    "/dev/shm",
    "/dev/mqueue",
    "/dev/console",
];

/// Largest policy file accepted, in bytes.
pub const MAX_POLICY_BYTES: usize = 1024 * 1024;

/// A checked policy.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Where it came from: a file path, a preset or `built-in baseline`.
    pub origin: Arc<str>,
    /// True when the file has a `nemoclaw:` section, i.e. is one of ours.
    pub ours: bool,
    /// Paths of the file system.
    pub filesystem: Filesystem,
    /// What happens where the kernel cannot enforce Landlock in full.
    pub landlock: LandlockMode,
    /// The identity of the container's processes.
    pub process: ProcessIdentity,
    /// The `nemoclaw:` section.
    pub options: Options,
    /// Egress rules in the order of the file.
    pub rules: Vec<Rule>,
    /// What the file says and this version does not enforce: a reason to
    /// refuse a container start, not to refuse the file.
    pub unenforced: Vec<Diagnostic>,
}

/// `filesystem_policy`.
#[derive(Debug, Clone, Default)]
pub struct Filesystem {
    /// Whether the working directory is writable (where it may be).
    pub include_workdir: bool,
    /// Paths that may be read and executed.
    pub read_only: Vec<String>,
    /// Paths that may be written too.
    pub read_write: Vec<String>,
    /// True when a file named these paths, so that a missing one is an error;
    /// false for the built-in baseline, whose missing paths are skipped.
    pub named: bool,
}

/// `landlock.compatibility`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LandlockMode {
    /// Enforce what the kernel can; say what is lost.
    BestEffort,
    /// Refuse the start unless everything is enforced.
    #[default]
    HardRequirement,
}

/// `process`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProcessIdentity {
    /// `run_as_user`, or the image's choice.
    pub user: Option<Identity>,
    /// `run_as_group`, or the user's primary group.
    pub group: Option<Identity>,
}

/// A user or group as policy names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// A numeric id.
    Id(u32),
    /// A name looked up in the image's own passwd or group file.
    Name(String),
}

/// The `nemoclaw:` section: what OpenShell's language cannot say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The greatest number of processes in the sandbox; 0 for no limit.
    pub pids: i64,
    /// Whether a container may run as root of its user namespace.
    pub allow_root: bool,
    /// What to do with capabilities asked for beyond the engine's default set.
    pub excess: Excess,
    /// Sockets that may be mounted although they lead out of the sandbox.
    pub sockets: Vec<String>,
    /// Environment variables kept although they can inject code.
    pub keep_environment: Vec<String>,
    /// Whether compilers and netcat stay visible.
    pub keep_toolchain: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            pids: 512,
            allow_root: false,
            excess: Excess::Refuse,
            sockets: Vec::new(),
            keep_environment: Vec::new(),
            keep_toolchain: false,
        }
    }
}

/// What to do with a request that goes beyond the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Excess {
    /// Refuse the start and say why.
    Refuse,
    /// Start without it and record so.
    Strip,
}

/// One entry of `network_policies`.
#[derive(Debug, Clone)]
pub struct Rule {
    /// The key in the file.
    pub key: Arc<str>,
    /// Line of the key, from 1; 0 where unknown.
    pub line: u64,
    /// Where the rule may reach.
    pub endpoints: Vec<Endpoint>,
    /// Which programs it is for.
    pub binaries: Binaries,
}

/// Which programs a rule is for.
#[derive(Debug, Clone)]
pub enum Binaries {
    /// Every program of the sandbox.
    Any,
    /// A program whose executable, or an ancestor's, matches one of these. An
    /// empty list matches nothing.
    Listed(Vec<BinaryPattern>),
}

/// One host (or pattern) and its ports.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// The host as policy names it.
    pub host: HostPattern,
    /// Ports, each 1 to 65535, sorted and without repeats.
    pub ports: Vec<u16>,
    /// Address ranges every resolved address must lie in; replaces the
    /// built-in rule about private ranges.
    pub allowed_ips: Vec<IpNet>,
    /// Whether private ranges may be reached.
    pub private: bool,
    /// Line of the host in the file, from 1; 0 where unknown.
    pub line: u64,
}

impl Policy {
    /// Reads and checks a policy. `name` is what messages call the file.
    ///
    /// # Errors
    /// [`InvalidPolicy`] with every problem found.
    pub fn parse(text: &str, name: &str) -> Result<Self, InvalidPolicy> {
        let written = file::read(text, name)?;
        check::check(written, text, name)
    }

    /// The built-in baseline: no egress, every confinement on.
    ///
    /// # Errors
    /// [`InvalidPolicy`] never, for the text is tested; it is still no reason
    /// to panic in a privileged process.
    pub fn baseline() -> Result<Self, InvalidPolicy> {
        Self::parse(BASELINE, "built-in baseline")
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)
    }
}

#[cfg(test)]
mod tests;
