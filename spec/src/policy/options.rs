//! The `nemoclaw:` section: what OpenShell's language cannot say.

use std::net::IpAddr;
use std::str::FromStr as _;

use ipnet::IpNet;
use serde_json::{Map, Value as Json};

use super::diagnostic::{Findings, Place};
use super::tree::{Node, Value};
use super::upstream::UpstreamProxy;
use crate::name::{Host, HostPattern};
use crate::seccomp::Relaxation;

/// Capabilities that no policy may give: each is a way out of the sandbox or
/// into its neighbours (capabilities(7)).
pub(crate) const NEVER_KEPT: [&str; 27] = [
    "ALL",
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "DAC_READ_SEARCH",
    "IPC_LOCK",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_MODULE",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "WAKE_ALARM",
];
/// Capabilities that a policy may let a container keep.
pub(crate) const MAY_BE_KEPT: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "IPC_OWNER",
    "KILL",
    "NET_BIND_SERVICE",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
    "SYS_NICE",
];

/// The `nemoclaw:` section with its defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// The greatest number of processes in the sandbox; 0 for no limit.
    pub pids: i64,
    /// The greatest number of open files of a process (RLIMIT_NOFILE).
    pub open_files: u64,
    /// The greatest amount of memory in bytes, where the policy limits it.
    pub memory: Option<i64>,
    /// The greatest share of processors, in thousandths.
    pub millicpus: Option<i64>,
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
    /// Capabilities the container keeps of those the engine gives, without
    /// `CAP_`.
    pub keep_capabilities: Vec<String>,
    /// Whether an entry point starts as root with five capabilities, to drop to
    /// another user.
    pub step_down: bool,
    /// Users and groups of the image that a step-down may take besides root and
    /// the container's own user.
    pub identities: Vec<String>,
    /// Exceptions from our system call filter.
    pub relaxed: Vec<Relaxation>,
    /// Whether programs run from read-only paths only.
    pub system_only: bool,
    /// Whether processes of `exec` cannot signal those of the container.
    pub isolate_exec: bool,
    /// Devices of the host beyond the standard set.
    pub devices: Vec<String>,
    /// Files and the SHA-256 digests, in lower-case hexadecimal, that they must
    /// have at the start.
    pub integrity: Vec<(String, String)>,
    /// Values that JSON files must hold at the start.
    pub assertions: Vec<Assertion>,
    /// What happens to files of a workspace that the person's tools run later.
    pub tool_files: ToolFiles,
    /// Supplementary groups kept of those asked for.
    pub groups: Vec<String>,
    /// Paths kept at modes 600 and 700, with `*` for one name.
    pub private_modes: Vec<String>,
    /// Directories that can be locked while the sandbox runs.
    pub shields: Vec<String>,
    /// Whether they start locked.
    pub shields_up: bool,
    /// Digests of images that may run; any when empty.
    pub image_digests: Vec<String>,
    /// Whether an image of unknown digest is refused.
    pub unknown_image_refused: bool,
    /// Docker's socket, to be asked for the digest.
    pub docker_socket: Option<String>,
    /// Whether CRI's annotations tell the digest.
    pub image_by_cri: bool,
    /// What may connect in; `None` for what DESIGN 7 admits by itself.
    pub ingress: Option<Vec<Ingress>>,
    /// Bounds on connections out.
    pub connections: Connections,
    /// The operator's own proxy.
    pub upstream_proxy: Option<UpstreamProxy>,
    /// Size of a /tmp in memory, in bytes.
    pub tmp: Option<i64>,
    /// The most processes the engine may ask for; the limit itself by default.
    pub pids_max: i64,
    /// Whether an HTTP endpoint without inspection is an error.
    pub refuse_uninspected_http: bool,
    /// Everything the section says, those parts too that this version does not
    /// enforce.
    pub said: Map<String, Json>,
}

impl Default for Options {
    fn default() -> Self {
        Self::of(Map::new())
    }
}

/// Bounds on connections out of the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connections {
    /// How long one may carry nothing, in milliseconds.
    pub idle_ms: u64,
    /// How long one may last, in milliseconds.
    pub lifetime_ms: Option<u64>,
    /// How many one program may have at once.
    pub per_program: u64,
    /// How many there may be at once.
    pub total: u64,
    /// How many bits a label may carry of a name that only a wildcard admits.
    pub wildcard_bits: u64,
    /// How many such names may be resolved while the sandbox runs.
    pub wildcard_names: u64,
}

impl Connections {
    fn of(section: Option<&Json>) -> Self {
        let number = |key: &str| section?.get(key)?.as_u64();
        let milliseconds =
            |key: &str| section?.get(key)?.as_str().and_then(super::shape::parse_duration);
        Self {
            idle_ms: milliseconds("idle").unwrap_or(24 * 3_600_000),
            lifetime_ms: milliseconds("lifetime"),
            per_program: number("per_program").unwrap_or(1024),
            total: number("total").unwrap_or(4096),
            wildcard_bits: number("wildcard_bits").unwrap_or(200),
            wildcard_names: number("wildcard_names").unwrap_or(1000),
        }
    }

    /// The stricter of two, as the section would say it.
    fn narrowed(&self, other: &Self) -> Json {
        let mut said = Map::new();
        let idle = self.idle_ms.min(other.idle_ms);
        said.insert("idle".to_owned(), Json::from(format!("{idle}ms")));
        if let Some(most) = self.lifetime_ms.into_iter().chain(other.lifetime_ms).min() {
            said.insert("lifetime".to_owned(), Json::from(format!("{most}ms")));
        }
        for (key, a, b) in [
            ("per_program", self.per_program, other.per_program),
            ("total", self.total, other.total),
            ("wildcard_bits", self.wildcard_bits, other.wildcard_bits),
            ("wildcard_names", self.wildcard_names, other.wildcard_names),
        ] {
            said.insert(key.to_owned(), Json::from(a.min(b)));
        }
        Json::Object(said)
    }
}

/// A value that a JSON file must hold at the start.
#[derive(Debug, Clone, PartialEq)]
pub struct Assertion {
    /// The file, as the container sees it.
    pub file: String,
    /// The value's keys, with dots between them.
    pub path: String,
    /// What it must be.
    pub equals: Option<Json>,
    /// What it, or every entry of it, may be.
    pub within: Vec<Json>,
    /// Whether the file may be missing.
    pub optional: bool,
    /// Whether it is asked only where something may connect in.
    pub when_ingress: bool,
    /// Whether the container starts all the same, with a warning.
    pub warn: bool,
}

impl Assertion {
    fn of(entry: &Json) -> Option<Self> {
        let text = |key: &str| entry.get(key)?.as_str();
        Some(Self {
            file: text("file")?.to_owned(),
            path: text("path")?.to_owned(),
            equals: entry.get("equals").cloned(),
            within: entry.get("within").and_then(Json::as_array).cloned().unwrap_or_default(),
            optional: entry.get("optional").and_then(Json::as_bool).unwrap_or(false),
            when_ingress: text("when") == Some("ingress"),
            warn: text("otherwise") == Some("warn"),
        })
    }
}

/// What happens to files of a mounted workspace that the person's own tools run
/// later, strictest last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ToolFiles {
    /// Nothing.
    Off,
    /// Changes are recorded.
    Watch,
    /// Those there are cannot be changed.
    ReadOnly,
}

impl ToolFiles {
    const WORDS: [(Self, &str); 3] =
        [(Self::Off, "off"), (Self::Watch, "watch"), (Self::ReadOnly, "read-only")];

    fn of(word: Option<&str>) -> Self {
        let known = Self::WORDS.into_iter().find(|(_, name)| Some(*name) == word);
        known.map_or(Self::Watch, |(value, _)| value)
    }

    /// The word of the language.
    pub fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(value, _)| *value == self).map_or("watch", |(_, name)| name)
    }
}

/// What may connect in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ingress {
    /// The port in the container.
    pub port: u16,
    /// Whether it is UDP, else TCP.
    pub udp: bool,
    /// Where from; anywhere when empty.
    pub from: Vec<IpNet>,
}

impl Ingress {
    fn of(entry: &Json) -> Option<Self> {
        let from = entry.get("from").and_then(Json::as_array).into_iter().flatten();
        Some(Self {
            port: u16::try_from(entry.get("port")?.as_u64()?).ok()?,
            udp: entry.get("protocol").and_then(Json::as_str) == Some("udp"),
            // A range that cannot be read must not come to mean anywhere: the
            // reader has refused it, and the whole entry goes.
            from: from.map(|text| range(text.as_str()?)).collect::<Option<_>>()?,
        })
    }
}

/// A CIDR range, or a single address.
fn range(text: &str) -> Option<IpNet> {
    IpNet::from_str(text).ok().or_else(|| IpAddr::from_str(text).ok().map(IpNet::from))
}

/// What to do with a request that goes beyond the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Excess {
    /// Refuse the start and say why.
    Refuse,
    /// Start without it and record so.
    Strip,
}

impl Options {
    /// The options that a section says, with defaults for the rest.
    pub(super) fn of(said: Map<String, Json>) -> Self {
        let at = |path: &str| -> Option<&Json> {
            let mut parts = path.split('.');
            let first = said.get(parts.next().unwrap_or_default());
            parts.fold(first, |value, part| value?.get(part))
        };
        let words = |path: &str| -> Vec<String> {
            at(path)
                .and_then(Json::as_array)
                .into_iter()
                .flatten()
                .filter_map(|word| {
                    let number = || word.as_u64().map(|number| number.to_string());
                    word.as_str().map(str::to_owned).or_else(number)
                })
                .collect()
        };
        let list = |key: &str| at(key).and_then(Json::as_array).into_iter().flatten();
        let relaxed = words("seccomp.allow");
        let pids = at("resources.pids").and_then(Json::as_i64).unwrap_or(512);
        Self {
            pids,
            pids_max: at("resources.pids_max").and_then(Json::as_i64).unwrap_or(pids).max(pids),
            keep_capabilities: words("capabilities.keep")
                .into_iter()
                .map(|name| name.trim_start_matches("CAP_").to_owned())
                .collect(),
            step_down: at("capabilities.profile").and_then(Json::as_str) == Some("step-down"),
            identities: words("capabilities.identities"),
            relaxed: Relaxation::ALL
                .into_iter()
                .filter(|word| relaxed.iter().any(|said| said == word.word()))
                .collect(),
            system_only: at("exec").and_then(Json::as_str) == Some("system-only"),
            isolate_exec: at("isolate_exec").and_then(Json::as_bool).unwrap_or(false),
            devices: words("devices"),
            integrity: list("integrity")
                .filter_map(|entry| {
                    let text = |key: &str| entry.get(key)?.as_str();
                    Some((text("path")?.to_owned(), text("sha256")?.to_ascii_lowercase()))
                })
                .collect(),
            assertions: list("assertions").filter_map(Assertion::of).collect(),
            tool_files: ToolFiles::of(at("tool_files").and_then(Json::as_str)),
            groups: words("groups"),
            private_modes: words("private_modes"),
            shields: words("shields.paths"),
            shields_up: at("shields.state").and_then(Json::as_str) == Some("up"),
            image_digests: words("images.digests")
                .into_iter()
                .map(|digest| digest.to_ascii_lowercase())
                .collect(),
            unknown_image_refused: at("images.unknown").and_then(Json::as_str) == Some("refuse"),
            docker_socket: at("images.docker_socket").and_then(Json::as_str).map(str::to_owned),
            image_by_cri: at("images.cri").and_then(Json::as_bool).unwrap_or(false),
            ingress: at("ingress")
                .and_then(Json::as_array)
                .map(|entries| entries.iter().filter_map(Ingress::of).collect()),
            connections: Connections::of(at("connections")),
            upstream_proxy: UpstreamProxy::of(at("upstream_proxy")),
            tmp: at("resources.tmp").and_then(in_bytes),
            memory: at("resources.memory").and_then(in_bytes),
            millicpus: at("resources.cpus").and_then(Json::as_f64).map(in_thousandths),
            open_files: at("resources.open_files").and_then(Json::as_u64).unwrap_or(65_536),
            allow_root: at("allow_root").and_then(Json::as_bool).unwrap_or(false),
            excess: match at("capabilities.excess").and_then(Json::as_str) {
                Some("strip") => Excess::Strip,
                _ => Excess::Refuse,
            },
            sockets: words("sockets"),
            keep_environment: words("environment.keep"),
            keep_toolchain: at("toolchain").and_then(Json::as_str) == Some("visible"),
            refuse_uninspected_http: at("checks.uninspected_http").and_then(Json::as_str)
                == Some("error"),
            said,
        }
    }

    /// What these options and those of a layer above give together: a key of
    /// the layer above replaces the one below, but for maps, which are merged.
    pub(super) fn under(self, above: Map<String, Json>) -> Self {
        let mut said = self.said;
        overlay(&mut said, above);
        Self::of(said)
    }

    /// The stricter of two in everything that can be ordered.
    pub(super) fn narrowed(&self, other: &Self) -> Self {
        let pids = match (self.pids, other.pids) {
            (0, limit) | (limit, 0) => limit,
            (a, b) => a.min(b),
        };
        let both = |a: &[String], b: &[String]| -> Vec<Json> {
            a.iter().filter(|own| b.contains(own)).map(|text| Json::from(text.as_str())).collect()
        };
        let mut said = self.said.clone();
        let mut set = |path: [&str; 2], value: Json| {
            let [section, key] = path;
            if key.is_empty() {
                said.insert(section.to_owned(), value);
            } else if let Json::Object(map) =
                said.entry(section).or_insert_with(|| Json::Object(Map::new()))
            {
                map.insert(key.to_owned(), value);
            }
        };
        set(["resources", "pids"], Json::from(pids));
        set(["resources", "open_files"], Json::from(self.open_files.min(other.open_files)));
        set(["connections", ""], self.connections.narrowed(&other.connections));
        let least = |a: Option<i64>, b: Option<i64>| a.into_iter().chain(b).min();
        if let Some(memory) = least(self.memory, other.memory) {
            set(["resources", "memory"], Json::from(memory));
        }
        if let Some(millicpus) = least(self.millicpus, other.millicpus) {
            let cpus = f64::from(u32::try_from(millicpus).unwrap_or(u32::MAX)) / 1000.0;
            set(["resources", "cpus"], Json::from(cpus));
        }
        set(["allow_root", ""], Json::from(self.allow_root && other.allow_root));
        let refuse = self.excess == Excess::Refuse || other.excess == Excess::Refuse;
        set(["capabilities", "excess"], Json::from(if refuse { "refuse" } else { "strip" }));
        set(["sockets", ""], Json::Array(both(&self.sockets, &other.sockets)));
        let keep = both(&self.keep_environment, &other.keep_environment);
        set(["environment", "keep"], Json::Array(keep));
        let visible = self.keep_toolchain && other.keep_toolchain;
        set(["toolchain", ""], Json::from(if visible { "visible" } else { "masked" }));
        let keep = both(&self.keep_capabilities, &other.keep_capabilities);
        set(["capabilities", "keep"], Json::Array(keep));
        let step_down = self.step_down && other.step_down;
        set(["capabilities", "profile"], Json::from(if step_down { "step-down" } else { "none" }));
        set(["capabilities", "identities"], Json::Array(both(&self.identities, &other.identities)));
        let relaxed = self.relaxed.iter().filter(|word| other.relaxed.contains(word));
        set(["seccomp", "allow"], relaxed.map(|word| Json::from(word.word())).collect());
        let system_only = self.system_only || other.system_only;
        set(["exec", ""], Json::from(if system_only { "system-only" } else { "any" }));
        set(["isolate_exec", ""], Json::from(self.isolate_exec || other.isolate_exec));
        set(["devices", ""], Json::Array(both(&self.devices, &other.devices)));
        set(["resources", "pids_max"], Json::from(self.pids_max.min(other.pids_max)));
        set(["tool_files", ""], Json::from(self.tool_files.max(other.tool_files).word()));
        set(["groups", ""], Json::Array(both(&self.groups, &other.groups)));
        if let Some(tmp) = least(self.tmp, other.tmp) {
            set(["resources", "tmp"], Json::from(tmp));
        }
        self.narrow_guards(other, &mut set);
        Self::of(said)
    }
}

impl Options {
    /// Of two policies, both guard what they name.
    fn narrow_guards(&self, other: &Self, set: &mut impl FnMut([&str; 2], Json)) {
        let all = |a: &[String], b: &[String]| -> Json {
            let more = b.iter().filter(|path| !a.contains(path));
            a.iter().chain(more).map(|path| Json::from(path.as_str())).collect()
        };
        set(["private_modes", ""], all(&self.private_modes, &other.private_modes));
        set(["shields", "paths"], all(&self.shields, &other.shields));
        let up = self.shields_up || other.shields_up;
        set(["shields", "state"], Json::from(if up { "up" } else { "down" }));
        let digests = match (self.image_digests.as_slice(), other.image_digests.as_slice()) {
            ([], digests) | (digests, []) => digests.to_vec(),
            (own, theirs) => {
                let both: Vec<String> =
                    own.iter().filter(|digest| theirs.contains(digest)).cloned().collect();
                // None in common: no image has this one.
                if both.is_empty() { vec![format!("sha256:{:0>64}", "")] } else { both }
            }
        };
        set(["images", "digests"], all(&digests, &[]));
        let refuse = self.unknown_image_refused || other.unknown_image_refused;
        set(["images", "unknown"], Json::from(if refuse { "refuse" } else { "warn" }));
        let ingress = match (self.said.get("ingress"), other.said.get("ingress")) {
            (Some(Json::Array(own)), Some(Json::Array(theirs))) => Some(Json::Array(
                own.iter().filter(|entry| theirs.contains(entry)).cloned().collect(),
            )),
            // Without the key any TCP may come in, and no UDP.
            (own, theirs) => own.or(theirs).and_then(Json::as_array).map(|entries| {
                let tcp = |entry: &&Json| entry.get("protocol").is_none_or(|word| word != "udp");
                entries.iter().filter(tcp).cloned().collect()
            }),
        };
        for key in ["integrity", "assertions"] {
            let entries = |options: &Self| options.said.get(key).and_then(Json::as_array).cloned();
            let mut all = entries(self).unwrap_or_default();
            let more = entries(other).unwrap_or_default();
            all.extend(more.into_iter().filter(|entry| !all.contains(entry)).collect::<Vec<_>>());
            if !all.is_empty() {
                set([key, ""], Json::Array(all));
            }
        }
        if let Some(ingress) = ingress {
            set(["ingress", ""], ingress);
        }
    }
}

fn in_bytes(value: &Json) -> Option<i64> {
    let bytes = match value {
        Json::String(text) => super::shape::parse_bytes(text)?,
        other => other.as_u64()?,
    };
    i64::try_from(bytes).ok().filter(|bytes| *bytes > 0)
}

#[expect(clippy::cast_possible_truncation, reason = "the language bounds it to a million")]
fn in_thousandths(cpus: f64) -> i64 {
    ((cpus * 1000.0) as i64).max(1)
}

fn overlay(below: &mut Map<String, Json>, above: Map<String, Json>) {
    for (key, value) in above {
        match (below.get_mut(&key), value) {
            (Some(Json::Object(own)), Json::Object(value)) => overlay(own, value),
            (_, value) => drop(below.insert(key, value)),
        }
    }
}

/// What the section says, as JSON, without the keys that are about files.
pub(super) fn read(node: &Node, findings: &mut Findings<'_>) -> Map<String, Json> {
    examine(node, findings);
    let mut said = Map::new();
    for (key, value) in node.entries() {
        let about_files = matches!(key.text.as_str(), "extends" | "presets" | "posture" | "tier");
        if !about_files && value.value != Value::Null {
            said.insert(key.text.clone(), json(value));
        }
    }
    said
}

/// A tree as JSON.
pub(super) fn json(node: &Node) -> Json {
    match &node.value {
        Value::Null => Json::Null,
        Value::Bool(value) => Json::from(*value),
        Value::Integer(value) => Json::from(*value),
        Value::Number(value) => Json::from(*value),
        Value::Text(text) => Json::from(text.as_str()),
        Value::List(items) => Json::Array(items.iter().map(json).collect()),
        Value::Map(entries) => Json::Object(
            entries.iter().map(|(key, value)| (key.text.clone(), json(value))).collect(),
        ),
    }
}

/// What the table of the language cannot say about values.
fn examine(node: &Node, findings: &mut Findings<'_>) {
    let at = |path: &[&str]| path.iter().try_fold(node, |node, key| node.get(key));
    for path in [
        &["sockets"][..],
        &["devices"],
        &["secrets", "watch"],
        &["shields", "paths"],
        &["private_modes"],
    ] {
        for item in at(path).map(Node::items).unwrap_or_default() {
            absolute(item, findings);
        }
    }
    guards(node, findings);
    if let Some(section) = at(&["upstream_proxy"]) {
        super::upstream::examine(section, findings);
    }
    for item in at(&["capabilities", "keep"]).map(Node::items).unwrap_or_default() {
        capability(item, findings);
    }
    for entry in at(&["ingress"]).map(Node::items).unwrap_or_default() {
        for range in entry.get("from").map(Node::items).unwrap_or_default() {
            let text = range.text().unwrap_or_default();
            if self::range(text).is_none() {
                findings.error(
                    range.at,
                    format!("`{}` is no address or CIDR range", shown(text)),
                    "write 10.0.5.0/24 or 10.0.5.7",
                );
            }
        }
    }
    for entry in at(&["host_services"]).map(Node::items).unwrap_or_default() {
        host(entry.get("name"), findings);
        if let Some(address) = entry.get("address")
            && IpAddr::from_str(address.text().unwrap_or_default()).is_err()
        {
            findings.error(
                address.at,
                format!("`{}` is no address", shown(address.text().unwrap_or_default())),
                "write an address of the host, such as 127.0.0.1",
            );
        }
    }
    for (_, entry) in at(&["credentials"]).map(Node::entries).unwrap_or_default() {
        credential(entry, findings);
    }
    for item in at(&["images", "digests"]).map(Node::items).unwrap_or_default() {
        let digest = item.text().unwrap_or_default();
        hexadecimal(digest.strip_prefix("sha256:"), item, "an image digest", findings);
    }
    for entry in at(&["integrity"]).map(Node::items).unwrap_or_default() {
        if let Some(path) = entry.get("path") {
            absolute(path, findings);
        }
        if let Some(digest) = entry.get("sha256") {
            hexadecimal(digest.text(), digest, "a SHA-256 digest", findings);
        }
    }
    for entry in at(&["assertions"]).map(Node::items).unwrap_or_default() {
        if let Some(file) = entry.get("file") {
            absolute(file, findings);
        }
    }
    if let Some(mode) = at(&["approvals", "mode"])
        && mode.text() == Some("hold")
    {
        findings.unenforced(
            mode.at,
            "`nemoclaw.approvals.mode: hold` is not enforced by this version".to_owned(),
            "write `mode: refuse` to start containers with this policy",
        );
    }
}

/// What is wrong with what is to be guarded, and would be found at the start only.
fn guards(node: &Node, findings: &mut Findings<'_>) {
    const KERNELS: [&str; 3] = ["/proc", "/sys", "/dev"];
    let section = node.get("shields");
    let shields = section.and_then(|shields| shields.get("paths"));
    let private = node.get("private_modes");
    for item in [shields, private].into_iter().flatten().flat_map(Node::items) {
        let text = item.text().unwrap_or_default();
        let kernels = KERNELS.iter().any(|place| crate::plan::beneath(text, place));
        if kernels || text.trim_matches('/').is_empty() {
            findings.error(
                item.at,
                format!("`{}` cannot be guarded", shown(text)),
                "name a directory of the image or of a mount",
            );
        }
    }
    for item in shields.map(Node::items).unwrap_or_default() {
        if item.text().is_some_and(|text| text.contains('*')) {
            let text = "a shield is one directory: `*` stands for nothing here".to_owned();
            findings.error(item.at, text, "name each directory");
        }
    }
    for item in private.map(Node::items).unwrap_or_default() {
        if item.text().is_some_and(|text| text.contains("**")) {
            let text = "`*` stands for one name: `**` is no pattern here".to_owned();
            findings.error(item.at, text, "name the directory: what lies below it counts too");
        }
    }
    if let Some(section) = section
        && shields.is_none_or(|paths| paths.items().is_empty())
    {
        let text = "`shields` without paths lock nothing".to_owned();
        findings.advice(section.at, text, "write `paths: [/sandbox/.config]`");
    }
    for item in node.get("groups").map(Node::items).unwrap_or_default() {
        if matches!(item.text(), Some("0" | "root")) || item.integer() == Some(0) {
            let text = "root's group cannot be kept".to_owned();
            findings.error(item.at, text, "take it out of the policy");
        }
    }
    for entry in node.get("ingress").map(Node::items).unwrap_or_default() {
        if let Some(from) = entry.get("from").filter(|from| from.items().is_empty()) {
            let text = "`from: []` names no range".to_owned();
            findings.error(from.at, text, "leave it out for anywhere, or name ranges");
        }
    }
    for entry in node.get("assertions").map(Node::items).unwrap_or_default() {
        assertion(entry, findings);
    }
    images(node, findings);
}

fn assertion(entry: &Node, findings: &mut Findings<'_>) {
    if entry.get("equals").is_none() == entry.get("within").is_none() {
        findings.error(
            entry.at,
            "an assertion needs one of `equals` and `within`".to_owned(),
            "write `equals: VALUE`, or `within: [VALUE, ...]`",
        );
    }
    if let Some(path) = entry.get("path") {
        let text = path.text().unwrap_or_default();
        if text.split('.').any(|key| key.is_empty() || key.starts_with('$') || key.contains('[')) {
            findings.error(
                path.at,
                format!("`{}` is no path of keys", shown(text)),
                "write keys with dots between them, a list's entries by number: gateway.origins.0",
            );
        }
    }
    if let Some(within) = entry.get("within").filter(|within| within.items().is_empty()) {
        findings.error(within.at, "`within: []` admits no value".to_owned(), "name the values");
    }
}

fn images(node: &Node, findings: &mut Findings<'_>) {
    let Some(images) = node.get("images") else { return };
    if images.get("digests").is_none_or(|digests| digests.items().is_empty()) {
        findings.advice(
            images.at,
            "`images` without digests admits every image".to_owned(),
            "write `digests: ['sha256:...']`, or remove it",
        );
    }
    match images.get("docker_socket") {
        Some(socket) => absolute(socket, findings),
        None if images.get("cri").and_then(Node::bool) != Some(true) => findings.advice(
            images.at,
            "nothing tells the image's digest: with `unknown: warn` every image starts".to_owned(),
            "write `docker_socket: /run/docker.sock` under Docker, `cri: true` under Kubernetes",
        ),
        None => {}
    }
}

fn credential(entry: &Node, findings: &mut Findings<'_>) {
    if entry.get("file").is_some() == entry.get("command").is_some() {
        findings.error(
            entry.at,
            "a credential needs one of `file` and `command`".to_owned(),
            "write `file: /etc/nemoclaw/keys/NAME`",
        );
    }
    if let Some(file) = entry.get("file") {
        absolute(file, findings);
    }
    let hosts = entry.get("hosts");
    if let Some(hosts) = hosts.filter(|hosts| hosts.items().is_empty()) {
        findings.error(
            hosts.at,
            "a credential without hosts could go nowhere".to_owned(),
            "name the hosts that may get it",
        );
    }
    for item in hosts.map(Node::items).unwrap_or_default() {
        let text = item.text().unwrap_or_default();
        if let Err(why) = HostPattern::parse(text) {
            findings.error(
                item.at,
                format!("`{}` is no host: {why}", shown(text)),
                "write a name such as api.example.com",
            );
        }
    }
}

fn capability(item: &Node, findings: &mut Findings<'_>) {
    let text = item.text().unwrap_or_default();
    let name = text.strip_prefix("CAP_").unwrap_or(text);
    if NEVER_KEPT.contains(&name) {
        findings.error(
            item.at,
            format!("the capability {name} leads out of a sandbox and cannot be kept"),
            "remove it; no policy can give it",
        );
    } else if !MAY_BE_KEPT.contains(&name) {
        let help = super::diagnostic::nearest(name, &MAY_BE_KEPT).map_or_else(
            || format!("write one of {}", MAY_BE_KEPT.join(", ")),
            |near| format!("did you mean `{near}`?"),
        );
        findings.error(item.at, format!("`{}` is no capability", shown(text)), &help);
    }
}

fn absolute(item: &Node, findings: &mut Findings<'_>) {
    let text = item.text().unwrap_or_default();
    if let Some(problem) = path_problem(text) {
        findings.error(item.at, problem.to_owned(), "write an absolute path without `..`");
    }
}

/// What is wrong with a path of a policy.
pub(super) fn path_problem(text: &str) -> Option<&'static str> {
    const MAX_PATH_BYTES: usize = 4096;
    if !text.starts_with('/') {
        Some("a path must start with `/`")
    } else if text.split('/').any(|part| part == "..") {
        Some("a path must not contain `..`")
    } else if text.len() > MAX_PATH_BYTES || text.contains('\0') {
        Some("the path is longer than 4096 bytes or holds a zero byte")
    } else {
        None
    }
}

fn host(item: Option<&Node>, findings: &mut Findings<'_>) {
    let Some(item) = item else { return };
    let text = item.text().unwrap_or_default();
    if let Err(why) = Host::parse(text) {
        findings.error(
            item.at,
            format!("`{}` is no host name: {why}", shown(text)),
            "write a name such as ollama",
        );
    }
}

fn hexadecimal(digits: Option<&str>, item: &Node, what: &str, findings: &mut Findings<'_>) {
    let fine = digits
        .is_some_and(|digits| digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit()));
    if !fine {
        findings.error(
            item.at,
            format!("`{}` is not {what}", shown(item.text().unwrap_or_default())),
            "write 64 hexadecimal digits (for images after `sha256:`)",
        );
    }
}

/// A text of the file, bounded and without control characters.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(80).collect::<String>().escape_debug().to_string()
}

/// The place of a node, or that of what it stands in.
pub(super) fn place(node: Option<&Node>, otherwise: Place) -> Place {
    node.map_or(otherwise, |node| node.at)
}
