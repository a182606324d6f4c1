//! Messages between the runtime and the proxy of a sandbox, and between the
//! proxy's two processes.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::policy::Files;
use serde::{Deserialize, Serialize};

/// Version of everything the runtime and the supervisor say to each other.
pub const VERSION: u32 = 1;

/// Mark of the proxy's own packets: the only ones that leave. `"nemo"`.
pub const PACKET_MARK: u32 = 0x6e65_6d6f;
/// Connection mark of inbound flows that the input chain admitted.
pub const INBOUND_MARK: u32 = 0x6e65_6d69;
/// Port of the resolver inside the sandbox's namespace, udp and tcp.
pub const DNS_PORT: u16 = 10_053;
/// Port every TCP connection is redirected to.
pub const CAPTURE_PORT: u16 = 10_080;
/// Port of the explicit proxy as clients write it.
pub const EXPLICIT_PORT: u16 = 3128;
/// The name of the explicit proxy.
pub const EXPLICIT_HOST: &str = "proxy.local";
/// First uid of the workers. Container identities in
/// `WORKER_UID_BASE..WORKER_UID_END` are refused.
pub const WORKER_UID_BASE: u32 = 0x7000_0000;
/// First uid after those of the workers.
pub const WORKER_UID_END: u32 = 0x8000_0000;

/// Virtual IPv4 pool: global-looking, never routed out of the sandbox.
pub const POOL_V4: (Ipv4Addr, u8) = (Ipv4Addr::new(11, 22, 0, 0), 16);
/// Virtual IPv6 pool (RFC 4193 unique local, a /48 whose last 16 bits mirror
/// the IPv4 pool).
pub const POOL_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0xfd6e, 0x656d, 0x6f00, 0, 0, 0, 0, 0), 48);

/// What the runtime tells a new supervisor on its standard input, one JSON
/// line, followed by the namespace over the control socket.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxConfig {
    /// [`VERSION`].
    pub version: u32,
    /// The engine's container id: names the sandbox in records.
    pub sandbox: String,
    /// Policy text; parsed again by the proxy with the same code.
    pub policy_text: String,
    /// The operator's other files that the policy starts from.
    #[serde(default)]
    pub policy_files: Files,
    /// What messages call that policy.
    pub policy_name: String,
    /// Paths of policy that are symbolic links in the image, and their targets.
    pub aliases: HashMap<String, String>,
    /// Names the engine's hosts file gives to addresses.
    pub hosts: Vec<(IpAddr, Vec<String>)>,
    /// Resolvers for upstream names, `address:port`.
    pub resolvers: Vec<SocketAddr>,
    /// Search domains of the engine's resolver file.
    pub search: Vec<String>,
    /// Directory of this sandbox below `/run/nemoclaw/sandboxes`.
    pub directory: String,
    /// The audit file.
    pub audit_file: String,
    /// uid and gid of the worker.
    pub worker_id: u32,
    /// True for `--policy observe`: record only, allow all but metadata.
    pub observe: bool,
}

/// A container that lives in the sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Member {
    /// The engine's id.
    pub id: String,
    /// Its init, in the host's pid namespace.
    pub pid: i32,
}

/// What the engine wrote about names, before user code runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// As [`SandboxConfig::hosts`].
    pub hosts: Vec<(IpAddr, Vec<String>)>,
    /// As [`SandboxConfig::resolvers`].
    pub resolvers: Vec<SocketAddr>,
    /// As [`SandboxConfig::search`].
    pub search: Vec<String>,
}

/// What the runtime asks of a running supervisor, one JSON line each.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Take the sandbox's network namespace: its descriptor comes along.
    Enter,
    /// A container has joined; its init's pidfd comes along.
    Join(Member),
    /// A container is gone.
    Leave {
        /// The engine's id.
        id: String,
    },
    /// The engine's name files as they are when the first container starts:
    /// podman writes them after create.
    Names(Names),
    /// Say who is there.
    Status,
}

/// The supervisor's answer, one JSON line.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reply {
    /// Whether it was done.
    pub ok: bool,
    /// Why not; empty when done.
    pub error: String,
    /// Members, for [`Request::Status`].
    #[serde(default)]
    pub members: Vec<String>,
    /// Pid of the worker, for [`Request::Status`].
    #[serde(default)]
    pub worker: i32,
    /// Whether the sandbox only records, for [`Request::Status`].
    #[serde(default)]
    pub observe: bool,
}

impl Reply {
    /// It was done.
    pub fn done() -> Self {
        Self { ok: true, error: String::new(), members: Vec::new(), worker: 0, observe: false }
    }

    /// It was not done, and why.
    pub fn failed(error: String) -> Self {
        Self { ok: false, error, members: Vec::new(), worker: 0, observe: false }
    }
}
