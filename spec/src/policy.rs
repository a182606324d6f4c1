//! The policy: what an operator allows, read from YAML and checked.
//!
//! `Policy::parse` is the only way in. It reports every problem of a file at
//! once, each with its place and its fix, and never guesses: an unknown key is
//! an error, because a misspelt restriction would otherwise vanish.

mod check;
pub mod diagnostic;
mod endpoint;
mod language;
pub mod lint;
mod merge;
mod options;
mod overlap;
pub mod preset;
pub mod print;
pub mod reference;
mod shape;
mod tree;
mod upstream;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;

use crate::glob::Pattern;
use crate::http::Method;
use crate::name::{BinaryPattern, HostPattern, Trust};
pub use diagnostic::{Diagnostic, InvalidPolicy, Severity};
pub use merge::{Files, Library, NoLibrary};
pub use options::{Assertion, Connections, Excess, Ingress, Options, ToolFiles};
pub use upstream::UpstreamProxy;

/// The policy that applies when the operator has written none: no egress,
/// every confinement on. Same text as `policies/baseline.yaml`.
pub const BASELINE: &str = include_str!("../../policies/baseline.yaml");

/// What a policy without `filesystem_policy` lets be read besides
/// [`NEEDED_READ_ONLY`].
pub(crate) const BASELINE_READ_ONLY: [&str; 6] =
    ["/libx32", "/opt", "/srv", "/sys", "/run", "/var"];
/// What it lets be written besides [`NEEDED_READ_WRITE`].
pub(crate) const BASELINE_READ_WRITE: [&str; 2] = ["/sandbox", "/var/tmp"];
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
pub const MAX_POLICY_BYTES: usize = 4 * 1024 * 1024;

/// A checked policy, with everything it extends merged in.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Where it came from: a file path, a preset or `built-in baseline`.
    pub origin: Source,
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
    /// Egress rules in the order of the files.
    pub rules: Vec<Rule>,
    /// `network_middlewares`, which this version does not run.
    pub middlewares: Vec<Middleware>,
    /// What the files say and this version does not enforce: a reason to
    /// refuse a container start, not to refuse the file.
    pub unenforced: Notes,
    /// Advice that only the text can give, such as about a word that OpenShell
    /// reads as another.
    pub advice: Notes,
}

/// A place in a file. Places are no part of a policy's meaning: all are equal.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// The file.
    pub file: Arc<str>,
    /// The line, from 1; 0 where unknown.
    pub line: u64,
}

impl PartialEq for Origin {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Origin {}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 { write!(f, ":{}", self.line) } else { Ok(()) }
    }
}

/// The name of a file; as [`Origin`], no part of the meaning.
#[derive(Debug, Clone)]
pub struct Source(pub Arc<str>);

impl PartialEq for Source {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Findings about the text; as [`Origin`], no part of the meaning.
#[derive(Debug, Clone, Default)]
pub struct Notes(pub Vec<Diagnostic>);

impl PartialEq for Notes {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// `filesystem_policy`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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

/// One entry of `network_policies`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The key in the file.
    pub key: Arc<str>,
    /// A name for people.
    pub name: Option<String>,
    /// Where the rule stands.
    pub at: Origin,
    /// Where the rule may reach.
    pub endpoints: Vec<Endpoint>,
    /// Which programs it is for.
    pub binaries: Binaries,
}

/// Which programs a rule is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Binaries {
    /// Every program of the sandbox.
    Any,
    /// A program whose executable, or an ancestor's, matches one of these. An
    /// empty list matches nothing.
    Listed(Vec<BinaryPattern>),
}

/// One host (or pattern), its ports, and what requests there may do.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// Whether the connection is never looked into.
    pub tls_skip: bool,
    /// What is inspected; `None` for a connection that is passed on untouched.
    pub inspection: Option<Inspection>,
    /// What of OpenShell's credential handling the endpoint asks for.
    pub credentials: Credentials,
    /// Where it stands.
    pub at: Origin,
}

/// How requests to an endpoint are read and judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// What the connection carries.
    pub protocol: Protocol,
    /// Request paths it is for; all of them where `None`.
    pub path: Option<Pattern>,
    /// Whether a refusal is only recorded.
    pub audit: bool,
    /// `access`, where the file says it; its rules are in `allow` too.
    pub access: Option<Access>,
    /// What requests may do.
    pub allow: Vec<Matcher>,
    /// What they may never do.
    pub deny: Vec<Matcher>,
    /// Whether `%2F` may stand in a path segment.
    pub encoded_slash: bool,
    /// The largest body read, in bytes.
    pub max_body_bytes: u32,
    /// GraphQL: queries that may be named by hash; `None` where none may be.
    pub registry: Option<BTreeMap<String, Registered>>,
    /// MCP: refuse tools whose names are not plain.
    pub strict_tool_names: bool,
    /// MCP: allow every method, `tools/call` where no rule names a tool.
    pub all_mcp_methods: bool,
}

/// What a connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// HTTP.
    Rest,
    /// A WebSocket and its text messages.
    WebSocket,
    /// GraphQL over HTTP.
    GraphQl,
    /// JSON-RPC over HTTP.
    JsonRpc,
    /// The Model Context Protocol over HTTP.
    Mcp,
    /// SQL, which OpenShell only passes on and records.
    Sql,
}

impl Protocol {
    /// The word of the language.
    pub fn word(self) -> &'static str {
        match self {
            Self::Rest => "rest",
            Self::WebSocket => "websocket",
            Self::GraphQl => "graphql",
            Self::JsonRpc => "json-rpc",
            Self::Mcp => "mcp",
            Self::Sql => "sql",
        }
    }
}

/// `access`: rules by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    ReadOnly,
    /// Reading and writing, without DELETE.
    ReadWrite,
    /// Everything.
    Full,
    /// A word that OpenShell knows no rules for.
    Nothing,
}

/// Which requests a rule means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Matcher {
    /// By method, path and query.
    Http {
        /// `None` for any.
        method: Option<Method>,
        /// The canonical path.
        path: Pattern,
        /// Parameters by name: one of the patterns must match.
        query: BTreeMap<String, Vec<Pattern>>,
    },
    /// By GraphQL operation.
    GraphQl {
        /// `None` for any kind.
        kind: Option<String>,
        /// `None` for any name.
        name: Option<Pattern>,
        /// Empty for any fields.
        fields: Vec<Pattern>,
    },
    /// By JSON-RPC or MCP method.
    Rpc {
        /// `None` for any.
        method: Option<Pattern>,
        /// Empty for any tool.
        tool: Vec<Pattern>,
    },
    /// By SQL command, upper case; `None` for any.
    Sql {
        /// The command.
        command: Option<String>,
    },
}

/// What a registered GraphQL query does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Registered {
    /// `query`, `mutation` or `subscription`.
    pub kind: String,
    /// Its name; may be empty.
    pub name: String,
    /// Its root fields.
    pub fields: Vec<String>,
}

/// OpenShell's credential keys of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Credentials {
    /// `websocket_credential_rewrite`.
    pub websocket_rewrite: bool,
    /// `request_body_credential_rewrite`.
    pub body_rewrite: bool,
    /// `allow_uninspected_credentials`.
    pub allow_uninspected: bool,
    /// `credential_signing`; empty for none.
    pub signing: String,
    /// `signing_service`; empty for none.
    pub signing_service: String,
    /// `signing_region`; empty for the host's.
    pub signing_region: String,
    /// `credential_binding.provider`; empty for none.
    pub provider: String,
}

/// One entry of `network_middlewares`.
#[derive(Debug, Clone, PartialEq)]
pub struct Middleware {
    /// The key in the file.
    pub key: String,
    /// A name for people.
    pub name: Option<String>,
    /// Which one.
    pub middleware: String,
    /// Its place among several.
    pub order: i64,
    /// Its own options, as JSON.
    pub config: Option<serde_json::Value>,
    /// Whether a request passes when it fails.
    pub fail_open: bool,
    /// Hosts it is for.
    pub include: Vec<String>,
    /// Hosts it is not for.
    pub exclude: Vec<String>,
}

impl Policy {
    fn binaries(&self) -> impl Iterator<Item = &BinaryPattern> {
        let patterns = self.rules.iter().filter_map(|rule| match &rule.binaries {
            Binaries::Listed(patterns) => Some(patterns),
            Binaries::Any => None,
        });
        patterns.flatten()
    }

    /// Programs that rules name by their whole path.
    pub fn paths(&self) -> BTreeSet<&str> {
        let literal = self.binaries().filter(|pattern| pattern.is_literal());
        literal.map(BinaryPattern::as_str).collect()
    }

    /// Programs that rules name by their whole path, and mean as they are at the start.
    pub fn programs(&self) -> BTreeSet<&str> {
        let literal = self.binaries().filter(|pattern| pattern.is_literal());
        literal
            .filter(|pattern| *pattern.trust() == Trust::Start)
            .map(BinaryPattern::as_str)
            .collect()
    }

    /// Whether some rule asks for the digest of a program at this path.
    pub fn asks_for_digest(&self, path: &str) -> bool {
        self.digests_of(path).next().is_some()
    }

    /// The digests that rules ask of a program at this path.
    pub fn digests_of(&self, path: &str) -> impl Iterator<Item = &str> {
        self.binaries().filter_map(move |pattern| match pattern.trust() {
            Trust::Digest(digest) if pattern.matches(path) => Some(digest.as_str()),
            _ => None,
        })
    }

    /// Reads and checks a policy that extends nothing but built-in files.
    /// `name` is what messages call the file.
    ///
    /// # Errors
    /// [`InvalidPolicy`] with every problem found.
    pub fn parse(text: &str, name: &str) -> Result<Self, InvalidPolicy> {
        merge::load(text, name, &NoLibrary)
    }

    /// As [`Policy::parse`], with other files to extend.
    ///
    /// # Errors
    /// [`InvalidPolicy`] with every problem found.
    pub fn parse_with(
        text: &str,
        name: &str,
        library: &dyn Library,
    ) -> Result<Self, InvalidPolicy> {
        merge::load(text, name, library)
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
