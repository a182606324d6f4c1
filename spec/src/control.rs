//! Messages between the runtime and the proxy of a sandbox, and between the
//! proxy's two processes.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::address::unwrap_mapped;
use crate::decide::{Destination, Reason};
use crate::name::Host;
use crate::policy::Files;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Version of everything the runtime and the supervisor say to each other.
pub const VERSION: u32 = 2;

/// What lives until the host starts again; only root writes there.
pub const RUN: &str = "/run/nemoclaw";

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
/// line, while the container is made; a [`Place`] follows with the namespace.
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
    /// The audit file.
    pub audit_file: String,
    /// True for `--policy observe`: record only, allow all but metadata.
    pub observe: bool,
    /// Where it is, once that is known.
    #[serde(skip)]
    pub place: Place,
}

/// What is known of a sandbox when its network namespace exists.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Place {
    /// Directory of this sandbox below `/run/nemoclaw/sandboxes`.
    pub directory: String,
    /// uid and gid of the worker.
    pub worker_id: u32,
    /// Names as the engine has them by now.
    pub names: Names,
}

/// A container that lives in the sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Member {
    /// The engine's id.
    pub id: String,
    /// Its init, in the host's pid namespace.
    pub pid: i32,
    /// Programs that policy names by their whole path, as their files were before
    /// anything of the user's ran: another file at such a path is another program,
    /// and so is one where none was.
    #[serde(default)]
    pub programs: HashMap<String, FileId>,
}

/// Most programs that a policy may name by their whole path.
pub const MAX_PROGRAMS: usize = 1024;

/// Which file it is, and in which state: whatever writes to a file, replaces it or
/// changes its attributes moves one of these (inode(7)), and ctime cannot be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileId {
    /// The device.
    pub device: u64,
    /// The inode.
    pub inode: u64,
    /// Length in bytes.
    pub size: i64,
    /// Time of the last change, in seconds since the epoch.
    pub changed: i64,
    /// And its nanoseconds.
    pub nanoseconds: i64,
}

/// What the engine wrote about names, before user code runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// Names the engine's hosts file gives to addresses.
    pub hosts: Vec<(IpAddr, Vec<String>)>,
    /// Resolvers for upstream names, `address:port`.
    pub resolvers: Vec<SocketAddr>,
    /// Search domains of the engine's resolver file.
    pub search: Vec<String>,
}

impl Names {
    /// What an address means that no name of ours stands for: itself, with the names
    /// that the engine's hosts file gives it.
    #[must_use]
    pub fn destination(&self, dialled: IpAddr) -> Destination {
        let address = unwrap_mapped(dialled);
        let names = self
            .hosts
            .iter()
            .filter(|(own, _)| *own == address)
            .flat_map(|(_, names)| names)
            .filter_map(|name| Host::parse(name).ok())
            .collect();
        Destination::Address { address, names }
    }
}

/// What the runtime asks of a running supervisor, one JSON line each.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Take the sandbox's network namespace: its descriptor comes along.
    Enter(Place),
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
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Reply {
    /// Whether it was done.
    pub ok: bool,
    /// Why not; empty when done.
    pub error: String,
    /// The sandbox's name in records, for [`Request::Status`].
    #[serde(default)]
    pub sandbox: String,
    /// Members, for [`Request::Status`].
    #[serde(default)]
    pub members: Vec<String>,
    /// Pid of the worker, for [`Request::Status`].
    #[serde(default)]
    pub worker: i32,
    /// Programs that the sandbox's policy names by their whole path, for
    /// [`Request::Status`].
    #[serde(default)]
    pub named: Vec<String>,
    /// Whether the sandbox only records, for [`Request::Status`].
    #[serde(default)]
    pub observe: bool,
    /// Why the kernel does not note who connects, for [`Request::Status`]; empty where
    /// it does.
    #[serde(default)]
    pub unnoted: String,
    /// What has happened so far, for [`Request::Status`].
    #[serde(default)]
    pub counts: Counts,
}

/// What the supervisor has recorded since it started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Records written.
    pub records: u64,
    /// Connections and requests allowed.
    pub allowed: u64,
    /// Connections and requests refused, by reason code; codes that are none of
    /// ours count as `other`.
    pub refused: BTreeMap<String, u64>,
    /// Allowed connections that have ended.
    pub closed: u64,
    /// Bytes from the sandbox, of connections that have ended.
    pub sent: u64,
    /// Bytes to the sandbox, of connections that have ended.
    pub received: u64,
    /// Workers that were replaced.
    pub restarts: u64,
}

impl Counts {
    /// Counts a worker that was replaced. Its connections ended with it, and nobody
    /// recorded that.
    pub fn restarted(&mut self) {
        self.restarts += 1;
        self.closed = self.allowed;
    }

    /// Counts one record of a worker.
    pub fn add(&mut self, record: &Map<String, Value>) {
        let word = |key: &str| record.get(key).and_then(Value::as_str).unwrap_or_default();
        let number = |key: &str| record.get(key).and_then(Value::as_u64).unwrap_or_default();
        self.records += 1;
        match (word("event"), word("decision")) {
            ("connection", "allow") => self.allowed += 1,
            ("close", _) => {
                self.closed += 1;
                self.sent = self.sent.saturating_add(number("sent"));
                self.received = self.received.saturating_add(number("received"));
            }
            _ => {}
        }
        if word("decision") == "deny" {
            let known = Reason::ALL.iter().map(|reason| reason.code());
            let code = known.into_iter().find(|code| *code == word("reason")).unwrap_or("other");
            *self.refused.entry(code.to_owned()).or_default() += 1;
        }
    }
}

impl Reply {
    /// It was done.
    pub fn done() -> Self {
        Self { ok: true, ..Self::default() }
    }

    /// It was not done, and why.
    pub fn failed(error: String) -> Self {
        Self { error, ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn records_are_counted_by_what_they_say() {
        let mut counts = Counts::default();
        for record in [
            json!({"event": "connection", "decision": "allow"}),
            json!({"event": "connection", "decision": "allow"}),
            json!({"event": "connection", "decision": "deny", "reason": "no_endpoint"}),
            json!({"event": "connection", "decision": "deny", "reason": "made up"}),
            json!({"event": "close", "decision": "allow", "sent": 5, "received": u64::MAX}),
            json!({"event": "close", "decision": "deny", "reason": "server_name", "received": 9}),
            json!({"event": "other"}),
        ] {
            counts.add(record.as_object().unwrap());
        }
        let refused = BTreeMap::from(
            [("no_endpoint", 1), ("other", 1), ("server_name", 1)]
                .map(|(code, count)| (code.to_owned(), count)),
        );
        let wanted = Counts {
            records: 7,
            allowed: 2,
            refused,
            closed: 2,
            sent: 5,
            received: u64::MAX,
            restarts: 0,
        };
        assert_eq!(counts, wanted);
        counts.add(json!({"event": "connection", "decision": "allow"}).as_object().unwrap());
        // Only the supervisor knows of that.
        counts.add(json!({"event": "worker_restarted"}).as_object().unwrap());
        assert_eq!((counts.closed, counts.restarts), (2, 0));
        counts.restarted();
        assert_eq!((counts.allowed, counts.closed, counts.restarts), (3, 3, 1));
    }
}
