//! From a rule as written to a [`Rule`]: names canonicalised, matchers
//! compiled, contradictions reported.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::str::FromStr as _;
use std::sync::Arc;

use ipnet::IpNet;

use super::diagnostic::{Findings, Place};
use super::options::{place, shown};
use super::tree::{Key, Node};
use super::{
    Access, Binaries, Credentials, Endpoint, Inspection, Matcher, Origin, Protocol, Registered,
    Rule,
};
use crate::address;
use crate::glob::{Kind, Pattern};
use crate::http::Method;
use crate::name::{BinaryPattern, HostPattern, Trust};

/// Largest body read where the policy says nothing, in bytes.
const MAX_BODY_BYTES: u32 = 65_536;
/// Most endpoints of one rule, and most entries of one list of rules.
const MAX_ENTRIES: usize = 10_000;

/// Reads one entry of `network_policies`.
pub(super) fn rule(
    key: &Key,
    node: &Node,
    file: &Arc<str>,
    ours: bool,
    findings: &mut Findings<'_>,
) -> Rule {
    if key.text.starts_with("_provider_") {
        findings.error(
            key.at,
            format!("the rule name `{}` is reserved", shown(&key.text)),
            "rename the rule",
        );
    }
    let mut reader = Reader { file, ours, findings };
    let endpoints = node.get("endpoints").map(Node::items).unwrap_or_default();
    if endpoints.len() > MAX_ENTRIES {
        let message =
            format!("the rule has {} endpoints, at most {MAX_ENTRIES} are read", endpoints.len());
        reader.findings.error(key.at, message, "split the rule");
    }
    Rule {
        key: Arc::from(key.text.as_str()),
        name: node.get("name").and_then(text),
        at: reader.origin(key.at),
        binaries: reader.binaries(node),
        endpoints: endpoints
            .iter()
            .take(MAX_ENTRIES)
            .filter_map(|endpoint| reader.endpoint(endpoint))
            .collect(),
    }
}

/// A text; numbers as they read.
fn text(node: &Node) -> Option<String> {
    node.text().map(str::to_owned).or_else(|| node.integer().map(|number| number.to_string()))
}

fn texts(node: Option<&Node>) -> Vec<String> {
    node.map(Node::items).unwrap_or_default().iter().filter_map(text).collect()
}

fn flag(node: &Node, key: &str) -> bool {
    node.get(key).and_then(Node::bool).unwrap_or(false)
}

struct Reader<'a, 'b, 'c> {
    file: &'a Arc<str>,
    ours: bool,
    findings: &'b mut Findings<'c>,
}

impl Reader<'_, '_, '_> {
    fn origin(&self, at: Place) -> Origin {
        Origin { file: Arc::clone(self.file), line: at.line }
    }

    /// Which files at a path are meant.
    fn trust(&mut self, binary: &Node) -> Trust {
        let digest = binary.get("sha256").and_then(text);
        let writable = binary.get("trust").and_then(text).as_deref() == Some("writable");
        if let Some(digest) = digest {
            if digest.len() != 64 || !digest.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                self.findings.error(
                    binary.at,
                    format!("`{}` is no SHA-256 digest", shown(&digest)),
                    "write 64 hexadecimal digits, as `sha256sum` prints them",
                );
            } else if writable {
                self.findings.error(
                    binary.at,
                    "`sha256` and `trust: writable` contradict each other".to_owned(),
                    "write the digest alone: it means the file wherever it comes from",
                );
            }
            return Trust::Digest(digest.to_ascii_lowercase());
        }
        if writable { Trust::Writable } else { Trust::Start }
    }

    fn binaries(&mut self, rule: &Node) -> Binaries {
        let Some(node) = rule.get("binaries") else {
            // The same omission means "nothing" to OpenShell's engine and
            // "any" in the language of a file of ours.
            if !self.ours {
                return Binaries::Listed(Vec::new());
            }
            self.findings.advice(
                rule.at,
                "a rule without `binaries` is for every program".to_owned(),
                "list the programs that need it, or write `binaries: any` to say that you mean it",
            );
            return Binaries::Any;
        };
        if node.text().is_some() {
            return Binaries::Any;
        }
        if node.value == super::tree::Value::List(Vec::new()) && self.ours {
            self.findings.error(
                node.at,
                "an empty list of binaries matches no program".to_owned(),
                "write `binaries: any`, or list programs",
            );
        }
        let mut patterns = Vec::new();
        for binary in node.items() {
            let Some(path) = binary.get("path").and_then(text) else { continue };
            let odd = path.starts_with('/')
                && (path.contains("//") || path.ends_with('/') || path.trim() != path);
            if odd {
                let message = format!("`{}` is no path that the kernel reports", shown(&path));
                let help = "write it as `readlink /proc/PID/exe` prints it";
                if self.ours {
                    self.findings.error(binary.at, message, help);
                } else {
                    self.findings.advice(binary.at, message, help);
                }
            } else if path.contains(['{', '[', '?', '|']) && !path.contains('*') {
                self.findings.advice(
                    binary.at,
                    format!(
                        "`{}` has no `*` and is therefore taken letter by letter",
                        shown(&path)
                    ),
                    "list the programs one by one",
                );
            }
            match BinaryPattern::parse(&path) {
                Ok(pattern) => patterns.push(pattern.trusting(self.trust(binary))),
                Err(why) => {
                    let message = format!("`{}` is no path of a program: {why}", shown(&path));
                    let help = "write an absolute path; `*` stands for part of one component, `**` for any depth";
                    match BinaryPattern::parse_any(&path) {
                        Ok(never) if !self.ours => {
                            self.findings.advice(
                                binary.at,
                                format!("{message}; it matches nothing"),
                                help,
                            );
                            patterns.push(never);
                        }
                        _ => self.findings.error(binary.at, message, help),
                    }
                }
            }
        }
        Binaries::Listed(patterns)
    }

    fn endpoint(&mut self, node: &Node) -> Option<Endpoint> {
        let at = place(node.get("host"), node.at);
        let ports = self.ports(node, at);
        let allowed_ips = self.allowed_ips(node);
        let protocol = protocol(node);
        let raw_tcp = node.get("protocol").and_then(Node::text).is_some_and(|word| word == "tcp");
        let host = self.host(node, at, !allowed_ips.is_empty() && !raw_tcp);
        let tls_skip = node.get("tls").and_then(Node::text) == Some("skip");
        if raw_tcp {
            self.only_raw_keys(node, host.as_ref());
        }
        let inspection = self.inspection(node, protocol);
        if let (true, Some(inspection)) = (tls_skip, &inspection)
            && inspection.protocol != Protocol::Sql
        {
            let message = "`tls: skip` leaves nothing to inspect, so that `protocol` and its rules do nothing";
            let help = "remove `tls: skip`, or `protocol` with its rules";
            if self.ours {
                self.findings.error(at, message.to_owned(), help);
            } else {
                self.findings.advice(at, message.to_owned(), help);
            }
        }
        self.report_unenforced(node, inspection.as_ref());
        Some(Endpoint {
            ports,
            allowed_ips,
            private: flag(node, "private")
                // OpenShell trusts names that are written out with private
                // addresses; only a file of ours can ask for less.
                || (!self.ours && matches!(host, Some(HostPattern::Exact(_)))),
            tls_skip,
            inspection,
            credentials: self.credentials(node, at),
            at: self.origin(at),
            host: host?,
        })
    }

    fn host(&mut self, node: &Node, at: Place, addresses: bool) -> Option<HostPattern> {
        let Some(text) = node.get("host").and_then(text).filter(|text| !text.is_empty()) else {
            if addresses {
                return Some(HostPattern::Any);
            }
            self.findings.error(
                at,
                "an endpoint has no host".to_owned(),
                "add `host: api.example.com`, or `allowed_ips` for any host with these addresses",
            );
            return None;
        };
        if text.contains(['\u{201c}', '\u{201d}', '\u{2018}', '\u{2019}', '\u{ab}', '\u{bb}']) {
            self.findings.error(
                at,
                format!("`{}` holds typographic quotes", shown(&text)),
                "write plain quotes, or none",
            );
            return None;
        }
        match HostPattern::parse(&text) {
            Ok(host) => Some(host),
            Err(why) => {
                use crate::name::InvalidName::{DoubleStar, InnerStar, TooBroad};
                let message = format!("`{}` is no host: {why}", shown(&text));
                let help = "write a name such as api.example.com, a wildcard such as *.example.com, or an address";
                // OpenShell refuses these few, and takes everything else.
                if self.ours || matches!(why, TooBroad | DoubleStar | InnerStar) {
                    self.findings.error(at, message, help);
                    return None;
                }
                self.findings.advice(at, format!("{message}; it matches nothing"), help);
                Some(HostPattern::Never(text))
            }
        }
    }

    fn ports(&mut self, node: &Node, at: Place) -> Vec<u16> {
        let port = |node: &Node| node.integer().and_then(|port| u16::try_from(port).ok());
        let (one, several) = (node.get("port"), node.get("ports"));
        if let (Some(one), Some(_)) = (one, several) {
            let message = "`port` and `ports` exclude each other".to_owned();
            if self.ours {
                self.findings.error(one.at, message, "keep `ports`");
            } else {
                self.findings.advice(one.at, format!("{message}; `ports` counts"), "remove `port`");
            }
        }
        let mut ports: Vec<u16> = match (several, one) {
            (Some(list), _) => list.items().iter().filter_map(port).collect(),
            (None, Some(one)) => port(one).into_iter().collect(),
            (None, None) => Vec::new(),
        };
        ports.sort_unstable();
        ports.dedup();
        let empty = super::tree::Value::List(Vec::new());
        if one.is_none() && several.is_none_or(|list| list.value == empty) {
            self.findings.error(at, "an endpoint has no port".to_owned(), "add `port: 443`");
        }
        ports
    }

    fn allowed_ips(&mut self, node: &Node) -> Vec<IpNet> {
        let mut ranges = Vec::new();
        for range in node.get("allowed_ips").map(Node::items).unwrap_or_default() {
            let text = range.text().unwrap_or_default();
            let parsed = IpNet::from_str(text)
                .or_else(|_not_a_range| IpAddr::from_str(text).map(IpNet::from));
            match parsed {
                Ok(net) if address::overlaps_never(&net) => {
                    let message =
                        format!("`{text}` reaches loopback, link-local or metadata addresses");
                    let help = "those are never reachable; name a smaller range";
                    if self.ours {
                        self.findings.error(range.at, message, help);
                    } else {
                        self.findings.advice(
                            range.at,
                            format!("{message}, which stay closed"),
                            help,
                        );
                        ranges.push(net.trunc());
                    }
                }
                Ok(net) => ranges.push(net.trunc()),
                Err(_) => self.findings.error(
                    range.at,
                    format!("`{}` is no address or CIDR range", shown(text)),
                    "write 10.0.5.0/24 or 10.0.5.7",
                ),
            }
        }
        ranges
    }

    /// `protocol: tcp` takes nothing that would need a look inside.
    fn only_raw_keys(&mut self, node: &Node, host: Option<&HostPattern>) {
        let known = [
            "host",
            "port",
            "ports",
            "protocol",
            "tls",
            "allowed_ips",
            "private",
            "allow_uninspected_credentials",
        ];
        for (key, value) in node.entries() {
            if !known.contains(&key.text.as_str()) && value.value != super::tree::Value::Null {
                self.findings.error(
                    key.at,
                    format!(
                        "`protocol: tcp` passes connections on untouched and takes no `{}`",
                        shown(&key.text)
                    ),
                    "remove the key, or write the protocol that is to be inspected",
                );
            }
        }
        if let (Some(HostPattern::Address(_)), false) = (host, self.ours) {
            self.findings.error(
                node.at,
                "`protocol: tcp` needs a host name, not an address".to_owned(),
                "write a name, or leave `protocol` out",
            );
        }
    }

    fn inspection(&mut self, node: &Node, protocol: Option<Protocol>) -> Option<Inspection> {
        let Some(protocol) = protocol else {
            self.without_protocol(node);
            return None;
        };
        let at = place(node.get("protocol"), node.at);
        let (allow, access) = self.allowed(node, protocol, at);
        let deny = self.denied(node, protocol);
        if !deny.is_empty() && allow.is_empty() && access.is_none() && protocol != Protocol::Mcp {
            self.findings.error(
                place(node.get("deny_rules"), at),
                "`deny_rules` only take from what `rules` or `access` allow".to_owned(),
                "add `access: read-write`, or `rules`",
            );
        }
        let audit = match node.get("enforcement").and_then(Node::text) {
            Some("enforce") => false,
            Some(_) => true,
            None => !self.ours,
        };
        if protocol == Protocol::Sql && !audit {
            self.findings.error(
                at,
                "SQL is only passed on and recorded, and cannot be enforced".to_owned(),
                "write `enforcement: audit`",
            );
        }
        let mcp = node.get("mcp");
        if let (Some(mcp), true) = (mcp, protocol != Protocol::Mcp) {
            let message = "`mcp` goes with `protocol: mcp` only".to_owned();
            self.findings.error(mcp.at, message, "remove it");
        }
        let limit = match protocol {
            Protocol::GraphQl | Protocol::WebSocket => node.get("graphql_max_body_bytes"),
            Protocol::Mcp => mcp.and_then(|mcp| mcp.get("max_body_bytes")),
            Protocol::JsonRpc => {
                node.get("json_rpc").and_then(|section| section.get("max_body_bytes"))
            }
            Protocol::Rest | Protocol::Sql => None,
        };
        let registered = node.get("persisted_queries").and_then(Node::text);
        Some(Inspection {
            protocol,
            path: self.endpoint_path(node),
            audit,
            access,
            allow,
            deny,
            encoded_slash: flag(node, "allow_encoded_slash"),
            max_body_bytes: limit
                .and_then(Node::integer)
                .and_then(|bytes| u32::try_from(bytes).ok())
                .unwrap_or(MAX_BODY_BYTES),
            registry: (registered == Some("allow_registered")).then(|| registry(node)),
            strict_tool_names: mcp
                .and_then(|mcp| mcp.get("strict_tool_names"))
                .and_then(Node::bool)
                .unwrap_or(true),
            all_mcp_methods: mcp.is_some_and(|mcp| flag(mcp, "allow_all_known_mcp_methods")),
        })
    }

    /// Keys that mean nothing where nothing is inspected.
    fn without_protocol(&mut self, node: &Node) {
        for key in ["rules", "deny_rules", "path"] {
            if let Some(value) = node.get(key) {
                let message = format!("`{key}` does nothing without `protocol`");
                self.does_nothing(value.at, key, message);
            }
        }
        if let Some(access) = node.get("access")
            && access.text() != Some("full")
        {
            let message = "`access` does nothing without `protocol`: everything on this host and port is allowed";
            self.does_nothing(access.at, "access", message.to_owned());
        }
    }

    fn does_nothing(&mut self, at: Place, key: &str, message: String) {
        let fix = format!(
            "remove `{key}`: this version limits connections, not requests (later: `protocol: rest`)"
        );
        if self.ours {
            self.findings.error(at, message, &fix);
        } else {
            self.findings.advice(at, message, &fix);
        }
    }

    fn endpoint_path(&mut self, node: &Node) -> Option<Pattern> {
        let path = node.get("path")?;
        let text = path.text().filter(|text| !text.is_empty())?;
        if !text.starts_with('/') && text != "**" {
            self.findings.error(
                path.at,
                format!("the path `{}` must start with `/` or be `**`", shown(text)),
                "write `path: /v1/**`",
            );
            return None;
        }
        self.pattern(text, Kind::Path, path.at)
    }

    fn pattern(&mut self, text: &str, kind: Kind, at: Place) -> Option<Pattern> {
        // OpenShell's `*` ends at a dot; whoever writes it alone means any.
        let any = self.ours && kind == Kind::Dotted && text == "*";
        Pattern::parse(if any { "**" } else { text }, kind)
            .map_err(|why| {
                self.findings.error(
                    at,
                    format!("`{}` is no pattern: {why}", shown(text)),
                    "put a `\\` before characters that are meant literally",
                );
            })
            .ok()
    }

    fn allowed(
        &mut self,
        node: &Node,
        protocol: Protocol,
        at: Place,
    ) -> (Vec<Matcher>, Option<Access>) {
        let (access, rules) = (node.get("access"), node.get("rules"));
        if let (Some(access), Some(_)) = (access, rules) {
            self.findings.error(
                access.at,
                "`rules` and `access` exclude each other".to_owned(),
                "keep one of them",
            );
        }
        let mut list = Vec::new();
        for entry in self.bounded(rules) {
            list.extend(entry.get("allow").and_then(|allow| self.matcher(allow, protocol)));
        }
        if let Some(rules) = rules.filter(|rules| rules.items().is_empty()) {
            self.findings.error(
                rules.at,
                "an empty list of rules would deny all traffic".to_owned(),
                "add a rule such as {allow: {method: GET, path: /**}}, or remove the endpoint",
            );
        }
        let Some(word) = access else {
            let all_mcp = protocol == Protocol::Mcp
                && node.get("mcp").is_some_and(|mcp| flag(mcp, "allow_all_known_mcp_methods"));
            if rules.is_none() && !all_mcp {
                self.findings.error(
                    at,
                    format!(
                        "`protocol: {}` needs rules or access to say what is allowed",
                        protocol.word()
                    ),
                    "add `access: read-only`, or `rules: [{allow: {method: GET, path: /**}}]`",
                );
            }
            return (list, None);
        };
        if matches!(protocol, Protocol::JsonRpc | Protocol::Mcp | Protocol::Sql) {
            self.findings.error(
                word.at,
                format!("`access` has no meaning for `protocol: {}`", protocol.word()),
                "write `rules`",
            );
            return (list, None);
        }
        let access = match word.text() {
            Some("read-only") => Access::ReadOnly,
            Some("read-write") => Access::ReadWrite,
            Some("full") => Access::Full,
            _ => Access::Nothing,
        };
        list.extend(expand(access, protocol));
        (list, Some(access))
    }

    fn denied(&mut self, node: &Node, protocol: Protocol) -> Vec<Matcher> {
        let Some(rules) = node.get("deny_rules") else { return Vec::new() };
        if rules.items().is_empty() {
            self.findings.error(
                rules.at,
                "an empty list of deny_rules denies nothing".to_owned(),
                "add a rule such as {method: DELETE, path: /**}, or remove the key",
            );
        }
        self.bounded(Some(rules)).iter().filter_map(|entry| self.matcher(entry, protocol)).collect()
    }

    /// The entries of a list of rules; too many are an error, never cut off.
    fn bounded<'n>(&mut self, rules: Option<&'n Node>) -> &'n [Node] {
        let items = rules.map(Node::items).unwrap_or_default();
        if let (Some(rules), true) = (rules, items.len() > MAX_ENTRIES) {
            let message =
                format!("{} rules in one list, at most {MAX_ENTRIES} are read", items.len());
            self.findings.error(rules.at, message, "split the endpoint by `path`");
            return &[];
        }
        items
    }

    /// Reads one entry of `rules` or `deny_rules`.
    fn matcher(&mut self, node: &Node, protocol: Protocol) -> Option<Matcher> {
        let has = |key: &str| node.get(key).is_some();
        let graphql = has("operation_type") || has("operation_name") || has("fields");
        let keys: &[&str] = match protocol {
            Protocol::WebSocket if graphql => &["operation_type", "operation_name", "fields"],
            Protocol::Rest | Protocol::WebSocket => &["method", "path", "query"],
            Protocol::GraphQl => &["operation_type", "operation_name", "fields"],
            Protocol::JsonRpc => &["method"],
            Protocol::Mcp => &["method", "tool", "params"],
            Protocol::Sql => &["command"],
        };
        for (key, _) in node.entries() {
            if !keys.contains(&key.text.as_str()) {
                self.findings.error(
                    key.at,
                    format!(
                        "a rule for `protocol: {}` takes no `{}`",
                        protocol.word(),
                        shown(&key.text)
                    ),
                    &format!("its keys are {}", keys.join(", ")),
                );
                return None;
            }
        }
        match protocol {
            Protocol::WebSocket if graphql => self.graphql(node),
            Protocol::Rest | Protocol::WebSocket => self.http(node),
            Protocol::GraphQl => self.graphql(node),
            Protocol::JsonRpc | Protocol::Mcp => self.rpc(node, protocol),
            Protocol::Sql => {
                let Some(command) = node.get("command").and_then(text) else {
                    self.missing(node, "command", "command: SELECT");
                    return None;
                };
                let command = (command != "*").then(|| command.to_ascii_uppercase());
                Some(Matcher::Sql { command })
            }
        }
    }

    fn missing(&mut self, node: &Node, key: &str, example: &str) {
        self.findings.error(
            node.at,
            format!("the rule lacks the key `{key}`"),
            &format!("write `{example}`"),
        );
    }

    fn http(&mut self, node: &Node) -> Option<Matcher> {
        let Some(word) = node.get("method") else {
            self.missing(node, "method", "method: GET");
            return None;
        };
        let name = text(word).unwrap_or_default();
        let method = if name == "*" {
            None
        } else if let Ok(method) = Method::parse(&name) {
            Some(method)
        } else {
            let message = format!("`{}` is no HTTP method", shown(&name));
            self.findings.error(word.at, message, "write GET, or `*` for any");
            return None;
        };
        let path = match node.get("path") {
            Some(path) => {
                let text = path.text().unwrap_or_default();
                if !text.starts_with('/') && text != "**" {
                    let message = format!(
                        "the path `{}` matches no request: it does not start with `/`",
                        shown(text)
                    );
                    if self.ours {
                        self.findings.error(path.at, message, "write `path: /v1/**`");
                        return None;
                    }
                    self.findings.advice(path.at, message, "write `path: /v1/**`");
                }
                if let Some(problem) = uncanonical(text) {
                    let message =
                        format!("the path `{}` matches no request: {problem}", shown(text));
                    let help =
                        "write the path as requests have it in canonical form, such as /caf%C3%A9";
                    if self.ours {
                        self.findings.error(path.at, message, help);
                        return None;
                    }
                    self.findings.advice(path.at, message, help);
                }
                self.pattern(text, Kind::Path, path.at)?
            }
            None if self.ours => {
                self.missing(node, "path", "path: /**");
                return None;
            }
            None => {
                self.findings.advice(
                    node.at,
                    "a rule without `path` matches no request".to_owned(),
                    "write `path: /**`",
                );
                Pattern::literal("", Kind::Path)
            }
        };
        let mut query = BTreeMap::new();
        for (key, value) in node.get("query").map(Node::entries).unwrap_or_default() {
            query.insert(key.text.clone(), self.patterns(value)?);
        }
        Some(Matcher::Http { method, path, query })
    }

    /// One pattern, or those under `any`.
    fn patterns(&mut self, node: &Node) -> Option<Vec<Pattern>> {
        if let Some(text) = node.text() {
            return Some(vec![self.pattern(text, Kind::Dotted, node.at)?]);
        }
        let Some(list) = node.get("any") else {
            // The table has said so already, but for what it takes as absent.
            self.findings.error(
                node.at,
                "a pattern is missing".to_owned(),
                "write \"pattern\" or {any: [\"a\", \"b\"]}",
            );
            return None;
        };
        list.items()
            .iter()
            .map(|item| self.pattern(item.text().unwrap_or_default(), Kind::Dotted, item.at))
            .collect()
    }

    fn graphql(&mut self, node: &Node) -> Option<Matcher> {
        let Some(kind) = node.get("operation_type").and_then(text) else {
            self.missing(node, "operation_type", "operation_type: query");
            return None;
        };
        let name = match node.get("operation_name") {
            Some(name) => {
                Some(self.pattern(&text(name).unwrap_or_default(), Kind::Dotted, name.at)?)
            }
            None => None,
        };
        let fields = node
            .get("fields")
            .map(Node::items)
            .unwrap_or_default()
            .iter()
            .map(|field| self.pattern(field.text().unwrap_or_default(), Kind::Dotted, field.at))
            .collect::<Option<Vec<Pattern>>>()?;
        Some(Matcher::GraphQl { kind: (kind != "*").then_some(kind), name, fields })
    }

    fn rpc(&mut self, node: &Node, protocol: Protocol) -> Option<Matcher> {
        let params = node.get("params").and_then(|params| params.get("name"));
        let tool = match node.get("tool").or(params) {
            Some(tool) => self.patterns(tool)?,
            None => Vec::new(),
        };
        let named = node.get("method").and_then(text);
        let Some(method) = named.or_else(|| (!tool.is_empty()).then(|| "tools/call".to_owned()))
        else {
            self.missing(node, "method", "method: tools/call");
            return None;
        };
        let at = place(node.get("method"), node.at);
        if !tool.is_empty() && method != "tools/call" {
            self.findings.error(
                at,
                "`tool` goes with `method: tools/call` only".to_owned(),
                "write `method: tools/call`",
            );
            return None;
        }
        let method = match protocol {
            Protocol::JsonRpc if method == "*" => None,
            Protocol::JsonRpc => Some(Pattern::literal(&method, Kind::Dotted)),
            _ => Some(self.pattern(&method, Kind::Dotted, at)?),
        };
        Some(Matcher::Rpc { method, tool })
    }

    fn credentials(&mut self, node: &Node, at: Place) -> Credentials {
        let word = |key: &str| node.get(key).and_then(text).unwrap_or_default();
        let binding = node.get("credential_binding").and_then(|section| section.get("provider"));
        let credentials = Credentials {
            websocket_rewrite: flag(node, "websocket_credential_rewrite"),
            body_rewrite: flag(node, "request_body_credential_rewrite"),
            allow_uninspected: flag(node, "allow_uninspected_credentials"),
            signing: word("credential_signing"),
            signing_service: word("signing_service"),
            signing_region: word("signing_region"),
            provider: binding.and_then(text).unwrap_or_default(),
        };
        if !credentials.signing.is_empty() && credentials.signing_service.is_empty() {
            self.findings.error(
                place(node.get("credential_signing"), at),
                "`credential_signing` needs a service to sign for".to_owned(),
                "add `signing_service: s3`",
            );
        }
        if !credentials.signing.is_empty() && credentials.body_rewrite {
            self.findings.error(
                place(node.get("credential_signing"), at),
                "`credential_signing` and `request_body_credential_rewrite` exclude each other"
                    .to_owned(),
                "keep one of them",
            );
        }
        credentials
    }

    /// Names what of an endpoint this version's runtime does not enforce.
    fn report_unenforced(&mut self, node: &Node, inspection: Option<&Inspection>) {
        if let Some(inspection) = inspection {
            self.findings.unenforced(
                place(node.get("protocol"), node.at),
                format!("`protocol: {}` is not enforced by this version", inspection.protocol.word()),
                "leave `protocol` and its rules out for an endpoint by host, port and program, or wait for a version that inspects requests",
            );
            return;
        }
        for key in [
            "websocket_credential_rewrite",
            "request_body_credential_rewrite",
            "allow_uninspected_credentials",
            "credential_signing",
            "credential_binding",
        ] {
            if let Some(value) = node.get(key)
                && value.bool() != Some(false)
                && value.text() != Some("")
            {
                self.findings.unenforced(
                    value.at,
                    format!("`{key}` is not enforced by this version"),
                    "remove it to start containers with this policy",
                );
            }
        }
    }
}

/// Why no canonical request path (`http::Target`) can match a pattern, where
/// that is plain to see.
fn uncanonical(text: &str) -> Option<&'static str> {
    let escape_is_odd = |rest: &str| {
        let digits = rest.get(..2).unwrap_or_default();
        let value = u8::from_str_radix(digits, 16).ok();
        digits.len() != 2
            || digits.bytes().any(|b| b.is_ascii_lowercase())
            || value.is_none_or(|b| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,=:@".contains(&b))
    };
    if text.bytes().any(|b| b <= 0x20 || b >= 0x7f || b == b'#') {
        Some("it holds characters that requests escape")
    } else if text.contains(';') {
        Some("parameters after `;` are removed from requests")
    } else if text.contains("//") {
        Some("empty segments are removed from requests")
    } else if text.split('/').any(|part| part == "." || part == "..") {
        Some("dot segments are removed from requests")
    } else if text.split('%').skip(1).any(escape_is_odd) {
        Some("it holds an escape that requests have not")
    } else if text.split_once('?').is_some_and(|(_, rest)| rest.contains('=')) {
        Some("the query is no part of the path; use `query`")
    } else {
        None
    }
}

/// What the endpoint says it carries; `None` where nothing is to be read.
fn protocol(node: &Node) -> Option<Protocol> {
    Some(match node.get("protocol").and_then(Node::text)? {
        "rest" => Protocol::Rest,
        "websocket" => Protocol::WebSocket,
        "graphql" => Protocol::GraphQl,
        "json-rpc" => Protocol::JsonRpc,
        "mcp" => Protocol::Mcp,
        "sql" => Protocol::Sql,
        _ => return None,
    })
}

fn registry(node: &Node) -> BTreeMap<String, Registered> {
    node.get("graphql_persisted_queries")
        .map(Node::entries)
        .unwrap_or_default()
        .iter()
        .map(|(key, query)| {
            let word = |name: &str| query.get(name).and_then(text).unwrap_or_default();
            let registered = Registered {
                kind: word("operation_type"),
                name: word("operation_name"),
                fields: texts(query.get("fields")),
            };
            (key.text.clone(), registered)
        })
        .collect()
}

/// The rules behind a word of `access`.
fn expand(access: Access, protocol: Protocol) -> Vec<Matcher> {
    let http = |methods: &[&str]| -> Vec<Matcher> {
        methods
            .iter()
            .filter_map(|method| {
                Some(Matcher::Http {
                    method: if *method == "*" { None } else { Some(Method::parse(method).ok()?) },
                    path: Pattern::parse("**", Kind::Path).ok()?,
                    query: BTreeMap::new(),
                })
            })
            .collect()
    };
    let graphql = |kinds: &[&str]| -> Vec<Matcher> {
        kinds
            .iter()
            .map(|kind| Matcher::GraphQl {
                kind: (*kind != "*").then(|| (*kind).to_owned()),
                name: None,
                fields: Vec::new(),
            })
            .collect()
    };
    match (access, protocol) {
        (Access::Nothing, _) => Vec::new(),
        (Access::ReadOnly, Protocol::GraphQl) => graphql(&["query"]),
        (Access::ReadWrite, Protocol::GraphQl) => graphql(&["query", "mutation"]),
        (Access::Full, Protocol::GraphQl) => graphql(&["*"]),
        (Access::ReadOnly, Protocol::WebSocket) => http(&["GET"]),
        (Access::ReadWrite, Protocol::WebSocket) => http(&["GET", "WEBSOCKET_TEXT"]),
        (Access::ReadOnly, _) => http(&["GET", "HEAD", "OPTIONS"]),
        (Access::ReadWrite, _) => http(&["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH"]),
        (Access::Full, _) => http(&["*"]),
    }
}
