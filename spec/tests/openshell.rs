//! The engine against a second reading of OpenShell's behaviour.
//!
//! The oracle here shares nothing with the engine but the types that carry a
//! question: it has its own patterns, its own canonical paths and its own query
//! decoder, all as naive as they can be. A generator with a fixed seed writes
//! policies as OpenShell files and asks both about each intent.

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};
    use std::fmt::Write as _;

    use nemoclaw_spec::decide::{Caller, Decision, Destination, Engine, Intent, Permit, Process};
    use nemoclaw_spec::http::{Content, GraphQl, JsonRpc, Method, Operation, Request, Target};
    use nemoclaw_spec::name::Host;
    use nemoclaw_spec::policy::Policy;

    const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
    const POLICIES: usize = 1000;
    const INTENTS: usize = 32;
    /// How often a feature must have decided an answer before we stop looking.
    const ENOUGH: usize = 3;

    // ---------------------------------------------------------------- chance

    /// xorshift64*: the same numbers on every machine.
    struct Rng(u64);

    impl Rng {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
        }

        fn below(&mut self, limit: usize) -> usize {
            usize::try_from(self.next() % u64::try_from(limit).unwrap()).unwrap()
        }

        /// True in `percent` of 100 cases.
        fn chance(&mut self, percent: usize) -> bool {
            self.below(100) < percent
        }

        fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
            &list[self.below(list.len())]
        }

        fn word(&mut self, list: &[&str]) -> String {
            (*self.pick(list)).to_owned()
        }
    }

    // ----------------------------------------------------------------- model

    #[derive(Debug, Clone)]
    struct Pol {
        rules: Vec<Rul>,
    }

    #[derive(Debug, Clone)]
    struct Rul {
        key: String,
        ends: Vec<End>,
        binaries: Option<Vec<String>>,
    }

    #[derive(Debug, Clone, Default)]
    struct End {
        /// Which hosts it may overlap with; no part of the file.
        family: usize,
        host: Option<String>,
        ports: Vec<u16>,
        single: bool,
        path: Option<String>,
        protocol: Option<String>,
        tls: Option<String>,
        enforcement: Option<String>,
        access: Option<String>,
        allowed_ips: Vec<String>,
        slash: Option<bool>,
        persisted: Option<String>,
        registry: BTreeMap<String, Reg>,
        all_mcp: Option<bool>,
        allow: Vec<Mat>,
        deny: Vec<Mat>,
    }

    #[derive(Debug, Clone)]
    struct Reg {
        kind: String,
        name: Option<String>,
        fields: Vec<String>,
    }

    #[derive(Debug, Clone, Default)]
    struct Mat {
        method: Option<String>,
        path: Option<String>,
        query: Vec<(String, Val)>,
        kind: Option<String>,
        name: Option<String>,
        fields: Vec<String>,
        tool: Option<Val>,
        /// Written as `params: {name: …}`.
        as_params: bool,
        command: Option<String>,
    }

    #[derive(Debug, Clone)]
    enum Val {
        One(String),
        Any(Vec<String>),
    }

    impl Val {
        fn list(&self) -> Vec<String> {
            match self {
                Self::One(one) => vec![one.clone()],
                Self::Any(list) => list.clone(),
            }
        }
    }

    #[derive(Debug, Clone)]
    struct Want {
        /// A host name or an IP address.
        host: String,
        port: u16,
        binary: String,
        ancestors: Vec<String>,
        ask: Option<Ask>,
    }

    #[derive(Debug, Clone)]
    struct Ask {
        method: String,
        target: String,
        content: Content,
    }

    // ------------------------------------------------------------------ file

    fn quote(text: &str) -> String {
        format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
    }

    fn quoted(list: &[String]) -> String {
        let list: Vec<String> = list.iter().map(|text| quote(text)).collect();
        format!("[{}]", list.join(", "))
    }

    impl Val {
        fn yaml(&self) -> String {
            match self {
                Self::One(one) => quote(one),
                Self::Any(list) => format!("{{any: {}}}", quoted(list)),
            }
        }
    }

    impl Mat {
        fn yaml(&self) -> String {
            let mut keys = Vec::new();
            for (key, value) in [
                ("method", &self.method),
                ("path", &self.path),
                ("operation_type", &self.kind),
                ("operation_name", &self.name),
                ("command", &self.command),
            ] {
                if let Some(value) = value {
                    keys.push(format!("{key}: {}", quote(value)));
                }
            }
            if !self.query.is_empty() {
                let query: Vec<String> = self
                    .query
                    .iter()
                    .map(|(key, value)| format!("{}: {}", quote(key), value.yaml()))
                    .collect();
                keys.push(format!("query: {{{}}}", query.join(", ")));
            }
            if !self.fields.is_empty() {
                keys.push(format!("fields: {}", quoted(&self.fields)));
            }
            match &self.tool {
                Some(tool) if self.as_params => {
                    keys.push(format!("params: {{name: {}}}", tool.yaml()));
                }
                Some(tool) => keys.push(format!("tool: {}", tool.yaml())),
                None => {}
            }
            format!("{{{}}}", keys.join(", "))
        }
    }

    impl End {
        fn yaml(&self) -> String {
            let mut text = String::new();
            let mut put = |key: &str, value: String| {
                let lead = if text.is_empty() { "      - " } else { "        " };
                writeln!(text, "{lead}{key}: {value}").unwrap();
            };
            if let Some(host) = &self.host {
                put("host", quote(host));
            }
            if self.single {
                put("port", self.ports[0].to_string());
            } else {
                put("ports", format!("{:?}", self.ports));
            }
            for (key, value) in [
                ("path", &self.path),
                ("protocol", &self.protocol),
                ("tls", &self.tls),
                ("enforcement", &self.enforcement),
                ("access", &self.access),
                ("persisted_queries", &self.persisted),
            ] {
                if let Some(value) = value {
                    put(key, quote(value));
                }
            }
            if !self.allowed_ips.is_empty() {
                put("allowed_ips", quoted(&self.allowed_ips));
            }
            if let Some(slash) = self.slash {
                put("allow_encoded_slash", slash.to_string());
            }
            if let Some(all) = self.all_mcp {
                put("mcp", format!("{{allow_all_known_mcp_methods: {all}}}"));
            }
            if !self.registry.is_empty() {
                let list: Vec<String> = self.registry.iter().map(registered).collect();
                put("graphql_persisted_queries", format!("{{{}}}", list.join(", ")));
            }
            if !self.allow.is_empty() {
                let list: Vec<String> =
                    self.allow.iter().map(|own| format!("{{allow: {}}}", own.yaml())).collect();
                put("rules", format!("[{}]", list.join(", ")));
            }
            if !self.deny.is_empty() {
                let list: Vec<String> = self.deny.iter().map(Mat::yaml).collect();
                put("deny_rules", format!("[{}]", list.join(", ")));
            }
            text
        }
    }

    fn registered((id, entry): (&String, &Reg)) -> String {
        let name = entry
            .name
            .as_ref()
            .map_or_else(String::new, |name| format!(", operation_name: {}", quote(name)));
        format!(
            "{}: {{operation_type: {}{name}, fields: {}}}",
            quote(id),
            quote(&entry.kind),
            quoted(&entry.fields)
        )
    }

    impl Pol {
        fn yaml(&self) -> String {
            let mut text = "version: 1\nnetwork_policies:\n".to_owned();
            for rule in &self.rules {
                writeln!(text, "  {}:\n    endpoints:", rule.key).unwrap();
                for end in &rule.ends {
                    text.push_str(&end.yaml());
                }
                if let Some(binaries) = &rule.binaries {
                    let list: Vec<String> =
                        binaries.iter().map(|path| format!("{{path: {}}}", quote(path))).collect();
                    writeln!(text, "    binaries: [{}]", list.join(", ")).unwrap();
                }
            }
            text
        }
    }

    // -------------------------------------------------------------- patterns

    /// Every text that the braces of a pattern stand for.
    fn unbrace(pattern: &str) -> Vec<String> {
        let Some((before, rest)) = pattern.split_once('{') else {
            return vec![pattern.to_owned()];
        };
        let Some((inner, after)) = rest.split_once('}') else {
            return vec![pattern.to_owned()];
        };
        let mut list = Vec::new();
        for choice in inner.split(',') {
            for tail in unbrace(after) {
                list.push(format!("{before}{choice}{tail}"));
            }
        }
        list
    }

    /// One part of a pattern against one part of a text; nothing in it can
    /// reach the next part.
    fn part(pattern: &[char], text: &[char]) -> bool {
        match pattern {
            [] => text.is_empty(),
            ['*', rest @ ..] => (0..=text.len()).any(|n| part(rest, &text[n..])),
            ['?', rest @ ..] => !text.is_empty() && part(rest, &text[1..]),
            ['[', rest @ ..] => {
                let end = rest.iter().position(|c| *c == ']').unwrap();
                !text.is_empty()
                    && class(&rest[..end], text[0])
                    && part(&rest[end + 1..], &text[1..])
            }
            [literal, rest @ ..] => {
                !text.is_empty() && *literal == text[0] && part(rest, &text[1..])
            }
        }
    }

    fn class(inner: &[char], c: char) -> bool {
        match inner {
            ['!' | '^', rest @ ..] => !class(rest, c),
            [from, '-', to, rest @ ..] => (*from <= c && c <= *to) || class(rest, c),
            [one, rest @ ..] => *one == c || class(rest, c),
            [] => false,
        }
    }

    /// `least(last)` is how many parts a `**` spans at least.
    fn parts(pattern: &[&str], text: &[&str], least: fn(bool) -> usize) -> bool {
        match pattern {
            [] => text.is_empty(),
            ["**", rest @ ..] => {
                (least(rest.is_empty())..=text.len()).any(|n| parts(rest, &text[n..], least))
            }
            [own, rest @ ..] => {
                let own: Vec<char> = own.chars().collect();
                !text.is_empty()
                    && part(&own, &text[0].chars().collect::<Vec<char>>())
                    && parts(rest, &text[1..], least)
            }
        }
    }

    /// A pattern over paths: `**` spans any number of components, but a last
    /// one at least one, which may be empty.
    fn path_glob(pattern: &str, text: &str) -> bool {
        pattern == "**"
            || unbrace(pattern).iter().any(|own| {
                let own: Vec<&str> = own.split('/').collect();
                let text: Vec<&str> = text.split('/').collect();
                parts(&own, &text, usize::from)
            })
    }

    /// A pattern over dotted texts: `**` spans one component or more.
    fn dot_glob(pattern: &str, text: &str) -> bool {
        unbrace(pattern).iter().any(|own| {
            let own: Vec<&str> = own.split('.').collect();
            let text: Vec<&str> = text.split('.').collect();
            parts(&own, &text, |_last| 1)
        })
    }

    fn value_glob(pattern: &str, text: &str, quirk: Quirk) -> bool {
        match quirk {
            Quirk::StarCrossesDot => {
                let text = text.replace('.', "_");
                dot_glob(&pattern.replace('.', "_"), &text)
            }
            Quirk::SlashSplitsValue => {
                dot_glob(&pattern.replace('/', "."), &text.replace('/', "."))
            }
            _ => dot_glob(pattern, text),
        }
    }

    // ------------------------------------------------------------- canonical

    struct Canonical {
        path: String,
        parameters: Vec<(String, String)>,
    }

    fn unescape(text: &str) -> Option<Vec<u8>> {
        let bytes = text.as_bytes();
        let mut out = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            if bytes[at] == b'%' {
                let high = char::from(*bytes.get(at + 1)?).to_digit(16)?;
                let low = char::from(*bytes.get(at + 2)?).to_digit(16)?;
                out.push(u8::try_from(high * 16 + low).unwrap());
                at += 3;
            } else {
                out.push(bytes[at]);
                at += 1;
            }
        }
        Some(out)
    }

    /// The canonical form of a request target, if it has one.
    fn canonical(target: &str) -> Option<Canonical> {
        if target.bytes().any(|b| !(0x21..=0x7e).contains(&b) || b == b'#') {
            return None;
        }
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        if path.len() > 4096 {
            return None;
        }
        let path = match path.split_once("://") {
            Some((_scheme, rest)) if !path.starts_with('/') => rest
                .split_once('/')
                .map_or_else(|| "/".to_owned(), |(_host, own)| format!("/{own}")),
            _ => path.to_owned(),
        };
        let mut stack: Vec<String> = Vec::new();
        let mut directory = true;
        let segments = path.strip_prefix('/')?.split('/');
        for segment in segments {
            let bare = segment.split(';').next().unwrap();
            let decoded = unescape(bare)?;
            if decoded.iter().any(|b| *b < 0x20) {
                return None;
            }
            let inner: Vec<&[u8]> = decoded.split(|b| *b == b'/').collect();
            let dots = |own: &&[u8]| **own == *b"." || **own == *b"..";
            if inner.len() > 1 && inner.iter().any(dots) {
                return None;
            }
            directory = true;
            if decoded == b".." {
                stack.pop()?;
            } else if decoded != b"" && decoded != b"." {
                directory = false;
                stack.push(escape(&decoded));
            }
        }
        let slash = if directory && !stack.is_empty() { "/" } else { "" };
        let path = format!("/{}{slash}", stack.join("/"));
        Some(Canonical { path, parameters: parameters(query)? })
    }

    fn escape(decoded: &[u8]) -> String {
        let mut text = String::new();
        for byte in decoded {
            let c = char::from(*byte);
            if c.is_ascii_alphanumeric() || "-._~!$&'()*+,=:@".contains(c) {
                text.push(c);
            } else {
                write!(text, "%{byte:02X}").unwrap();
            }
        }
        text
    }

    fn parameters(query: &str) -> Option<Vec<(String, String)>> {
        let mut list = Vec::new();
        for pair in query.split('&') {
            if pair.is_empty() {
                continue;
            }
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let text = |own: &str| String::from_utf8(unescape(&own.replace('+', " "))?).ok();
            list.push((text(key)?, text(value)?));
        }
        Some(list)
    }

    // ---------------------------------------------------------------- oracle

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Answer {
        /// The target has no canonical form.
        Refused,
        Deny,
        Raw,
        Inspect,
        Allow,
        Audited,
    }

    /// A way in which the oracle could be wrong; used to see which intents
    /// would notice.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Quirk {
        None,
        StarCrossesDot,
        SlashSplitsValue,
        LeastSpecific,
        ResponsesAllowed,
        NoReceiveStream,
        HeadIsNotGet,
        CaseMatters,
        RawPath,
        FirstRuleOnly,
        DenyNeedsAll,
        AllowNeedsAny,
        PathStarCrosses,
        MalformedIgnored,
        SlashAudited,
        GraphQlDenyIgnored,
        OneOperation,
    }

    const INSPECTED: [&str; 5] = ["rest", "websocket", "graphql", "json-rpc", "mcp"];

    fn is(own: Option<&String>, word: &str) -> bool {
        own.is_some_and(|own| own == word)
    }

    impl End {
        fn inspected(&self) -> bool {
            !is(self.tls.as_ref(), "skip")
                && self.protocol.as_ref().is_some_and(|own| INSPECTED.contains(&own.as_str()))
        }

        fn covers_host(&self, host: &str, quirk: Quirk) -> bool {
            let Some(pattern) = &self.host else {
                return true;
            };
            let (pattern, host) = if quirk == Quirk::CaseMatters {
                (pattern.clone(), host.to_owned())
            } else {
                (pattern.to_lowercase(), host.to_lowercase())
            };
            if pattern.contains('*') { dot_glob(&pattern, &host) } else { pattern == host }
        }

        fn covers_path(&self, path: &str) -> bool {
            self.path.as_ref().is_none_or(|own| path_glob(own, path))
        }

        fn specificity(&self) -> (bool, usize) {
            let path = self.path.as_deref().unwrap_or_default();
            (self.path.is_some(), path.chars().filter(|c| *c != '*').count())
        }

        /// Its allow rules, with `access` written out.
        fn allows(&self) -> Vec<Mat> {
            let http = |method: &str| Mat {
                method: Some(method.to_owned()),
                path: Some("**".to_owned()),
                ..Mat::default()
            };
            let kind = |kind: &str| Mat { kind: Some(kind.to_owned()), ..Mat::default() };
            let word = self.access.as_deref().unwrap_or_default();
            let preset = match (self.protocol.as_deref().unwrap_or_default(), word) {
                ("graphql", "read-only") => vec![kind("query")],
                ("graphql", "read-write") => vec![kind("query"), kind("mutation")],
                ("graphql", "full") => vec![kind("*")],
                ("websocket", "read-only") => vec![http("GET")],
                ("websocket", "read-write") => vec![http("GET"), http("WEBSOCKET_TEXT")],
                ("rest", "read-only") => vec![http("GET"), http("HEAD"), http("OPTIONS")],
                ("rest", "read-write") => {
                    ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH"].map(http).to_vec()
                }
                (_, "full") => vec![http("*")],
                _ => Vec::new(),
            };
            self.allow.iter().cloned().chain(preset).collect()
        }
    }

    impl Rul {
        fn covers(&self, binary: &str) -> bool {
            // No `binaries` and an empty list are the same: nothing.
            self.binaries.iter().flatten().any(|pattern| {
                if pattern.contains('*') { path_glob(pattern, binary) } else { pattern == binary }
            })
        }
    }

    /// One request as the rules see it.
    struct Seen<'a> {
        method: &'a str,
        path: &'a str,
        parameters: &'a [(String, String)],
        content: &'a Content,
        quirk: Quirk,
    }

    fn http_matches(rule: &Mat, seen: &Seen<'_>, denying: bool) -> bool {
        let Some(method) = &rule.method else {
            return false;
        };
        let method =
            if seen.quirk == Quirk::CaseMatters { method.clone() } else { method.to_uppercase() };
        let head = method == "GET" && seen.method == "HEAD" && seen.quirk != Quirk::HeadIsNotGet;
        if method != "*" && method != seen.method && !head {
            return false;
        }
        let Some(path) = &rule.path else {
            return false;
        };
        let covered = if seen.quirk == Quirk::PathStarCrosses {
            let flat = |text: &str| text.replace('/', "_");
            path == "**" || path_glob(&flat(path), &flat(seen.path))
        } else {
            path_glob(path, seen.path)
        };
        covered
            && rule.query.iter().all(|(key, patterns)| {
                let fits = |value: &&String| {
                    patterns.list().iter().any(|own| value_glob(own, value, seen.quirk))
                };
                let values: Vec<&String> = seen
                    .parameters
                    .iter()
                    .filter(|(own, _value)| own == key)
                    .map(|(_key, value)| value)
                    .collect();
                let any = (denying && seen.quirk != Quirk::DenyNeedsAll)
                    || seen.quirk == Quirk::AllowNeedsAny;
                !values.is_empty()
                    && if any { values.iter().any(fits) } else { values.iter().all(fits) }
            })
    }

    fn operation_matches(rule: &Mat, seen: &Operation, denying: bool, quirk: Quirk) -> bool {
        let kind = rule.kind.as_ref().is_some_and(|own| own == "*" || *own == seen.kind);
        let name = rule.name.as_ref().is_none_or(|own| value_glob(own, &seen.name, quirk));
        let fits = |field: &String| rule.fields.iter().any(|own| value_glob(own, field, quirk));
        let fields = rule.fields.is_empty()
            || if denying { seen.fields.iter().any(fits) } else { seen.fields.iter().all(fits) };
        kind && name && fields
    }

    fn rpc_matches(rule: &Mat, seen: &JsonRpc, mcp: bool, quirk: Quirk) -> bool {
        let Some(method) = &rule.method else {
            return false;
        };
        let method = if mcp {
            value_glob(method, &seen.method, quirk)
        } else {
            method == "*" || *method == seen.method
        };
        let tool = rule.tool.as_ref().is_none_or(|patterns| {
            seen.tool
                .as_ref()
                .is_some_and(|tool| patterns.list().iter().any(|own| value_glob(own, tool, quirk)))
        });
        method && tool
    }

    impl End {
        /// What a persisted query stands for; nothing where it may not be sent.
        fn resolve(&self, operation: &Operation) -> Option<Operation> {
            let Some(id) = &operation.persisted else {
                return Some(operation.clone());
            };
            if !is(self.persisted.as_ref(), "allow_registered") {
                return None;
            }
            let entry = self.registry.get(id)?;
            Some(Operation {
                kind: entry.kind.clone(),
                name: entry.name.clone().unwrap_or_default(),
                fields: entry.fields.clone(),
                persisted: None,
            })
        }

        fn http_rules(rules: &[Mat], seen: &Seen<'_>, denying: bool) -> bool {
            rules.iter().any(|rule| http_matches(rule, seen, denying))
        }

        fn allows_operations(&self, graph: &GraphQl, quirk: Quirk) -> bool {
            let rules = self.allows();
            let fits = |operation: &Operation| {
                self.resolve(operation).is_some_and(|own| {
                    rules.iter().any(|rule| operation_matches(rule, &own, false, quirk))
                })
            };
            if quirk == Quirk::OneOperation {
                graph.operations.iter().any(fits)
            } else {
                graph.operations.iter().all(fits)
            }
        }

        fn denies_operations(&self, graph: &GraphQl, quirk: Quirk) -> bool {
            graph.operations.iter().any(|operation| {
                self.resolve(operation).is_some_and(|own| {
                    self.deny.iter().any(|rule| operation_matches(rule, &own, true, quirk))
                })
            })
        }

        fn allows_rpc(&self, seen: &Seen<'_>, rpc: &JsonRpc) -> bool {
            let mcp = is(self.protocol.as_ref(), "mcp");
            if mcp && seen.method == "GET" {
                return rpc.receive_stream && seen.quirk != Quirk::NoReceiveStream;
            }
            if seen.method != "POST" {
                return false;
            }
            if self.allow.iter().any(|rule| rpc_matches(rule, rpc, mcp, seen.quirk)) {
                return true;
            }
            let named = self.allow.iter().any(|rule| rule.tool.is_some());
            mcp && self.all_mcp == Some(true) && (rpc.method != "tools/call" || !named)
        }

        fn allows_request(&self, seen: &Seen<'_>) -> bool {
            let http = || Self::http_rules(&self.allows(), seen, false);
            match (self.protocol.as_deref().unwrap_or_default(), seen.content) {
                // The two kinds of rules are not mixed: an operation is judged
                // by the rules that name operations.
                ("websocket" | "graphql", Content::GraphQl(graph)) => {
                    self.allows_operations(graph, seen.quirk)
                }
                ("rest" | "websocket", _) => http(),
                ("json-rpc" | "mcp", Content::JsonRpc(rpc)) => self.allows_rpc(seen, rpc),
                _ => false,
            }
        }

        fn denies_request(&self, seen: &Seen<'_>) -> bool {
            let http = || Self::http_rules(&self.deny, seen, true);
            let protocol = self.protocol.as_deref().unwrap_or_default();
            match (protocol, seen.content) {
                ("websocket" | "graphql", Content::GraphQl(graph)) => {
                    self.denies_operations(graph, seen.quirk)
                        || (seen.quirk != Quirk::GraphQlDenyIgnored && !self.allows_request(seen))
                        || (protocol == "websocket" && http())
                }
                ("rest" | "websocket", _) => http(),
                ("json-rpc", Content::JsonRpc(rpc))
                    if rpc.response && seen.quirk != Quirk::ResponsesAllowed =>
                {
                    true
                }
                ("json-rpc" | "mcp", Content::JsonRpc(rpc)) if seen.method == "POST" => {
                    let mcp = protocol == "mcp";
                    self.deny.iter().any(|rule| rpc_matches(rule, rpc, mcp, seen.quirk))
                }
                _ => false,
            }
        }
    }

    /// Endpoints that name host, port and program.
    fn sites<'a>(pol: &'a Pol, want: &Want, quirk: Quirk) -> Vec<&'a End> {
        let mut list = Vec::new();
        for rule in &pol.rules {
            let programs = std::iter::once(&want.binary).chain(&want.ancestors);
            if !programs.into_iter().any(|program| rule.covers(program)) {
                continue;
            }
            let own =
                |end: &&End| end.covers_host(&want.host, quirk) && end.ports.contains(&want.port);
            list.extend(rule.ends.iter().filter(own));
            if quirk == Quirk::FirstRuleOnly && !list.is_empty() {
                break;
            }
        }
        list
    }

    fn oracle(pol: &Pol, want: &Want, quirk: Quirk) -> Answer {
        let form = match &want.ask {
            None => None,
            Some(ask) => match canonical(&ask.target) {
                Some(form) => Some((ask, form)),
                None => return Answer::Refused,
            },
        };
        let sites = sites(pol, want, quirk);
        if sites.is_empty() {
            return Answer::Deny;
        }
        let inspected: Vec<&End> = sites.into_iter().filter(|end| end.inspected()).collect();
        if inspected.is_empty() {
            return Answer::Raw;
        }
        let Some((ask, form)) = form else {
            return Answer::Inspect;
        };
        let written = ask.target.split('?').next().unwrap().to_owned();
        let path = if quirk == Quirk::RawPath { written } else { form.path };
        let part: Vec<&End> = inspected.into_iter().filter(|end| end.covers_path(&path)).collect();
        let reader = if quirk == Quirk::LeastSpecific {
            part.iter().min_by_key(|end| end.specificity())
        } else {
            part.iter().max_by_key(|end| end.specificity())
        };
        let Some(reader) = reader else {
            return Answer::Deny;
        };
        let audit = !is(reader.enforcement.as_ref(), "enforce");
        let refused = if audit { Answer::Audited } else { Answer::Deny };
        if path.contains("%2F") && reader.slash != Some(true) {
            return if quirk == Quirk::SlashAudited { refused } else { Answer::Deny };
        }
        let malformed = match &ask.content {
            Content::GraphQl(graph) => graph.malformed,
            Content::JsonRpc(rpc) => rpc.malformed,
            _ => false,
        };
        if malformed && quirk != Quirk::MalformedIgnored {
            return Answer::Deny;
        }
        // Ours: a body that was not read as the reader demands is nobody's.
        let fits = match reader.protocol.as_deref().unwrap_or_default() {
            "rest" => matches!(ask.content, Content::Opaque),
            "websocket" => matches!(ask.content, Content::Opaque | Content::GraphQl(_)),
            "graphql" => matches!(ask.content, Content::GraphQl(_)),
            "json-rpc" | "mcp" => matches!(ask.content, Content::JsonRpc(_)),
            _ => true,
        };
        if !fits {
            return Answer::Deny;
        }
        let seen = Seen {
            method: &ask.method.to_uppercase(),
            path: &path,
            parameters: &form.parameters,
            content: &ask.content,
            quirk,
        };
        let allowed = part.iter().any(|end| end.allows_request(&seen));
        let denied = part.iter().any(|end| end.denies_request(&seen));
        if allowed && !denied { Answer::Allow } else { refused }
    }

    // ------------------------------------------------------ writing policies

    const BASES: [&str; 4] = ["alpha.test", "beta.test", "gamma.example.net", "delta.dev"];
    const PORTS: [u16; 4] = [443, 8443, 80, 3000];
    const ADDRESSES: [&str; 4] = ["1.1.1.1", "1.0.0.1", "9.9.9.9", "8.8.4.4"];
    const HOSTS: [&str; 18] = [
        "api.", "web.", "api1.", "api-eu.", "x-eu.", "a.", "a.b.", "b.a.", "x.one.", "y.two.",
        "x.three.", "api.one.", "", "db7.", "a.b.c.", "API.", "api.z.", "web.q.",
    ];
    const EXACT: [&str; 6] = ["api.", "web.", "", "a.b.", "API.", "db7."];
    const GLOBS: [&str; 14] = [
        "*.",
        "*.",
        "**.",
        "**.",
        "api*.",
        "*-eu.",
        "*[0-9].",
        "*.{one,two}.",
        "{api,web}*.",
        "api.*.",
        "*.[ab].",
        "*.?.",
        "a?i*.",
        "**.one.",
    ];
    const PROGRAMS: [&str; 12] = [
        "/usr/bin/curl",
        "/usr/bin/python3",
        "/usr/bin/python3.11",
        "/usr/local/bin/python3",
        "/usr/python3",
        "/bin/bash",
        "/opt/app/node",
        "/opt/app/v2/node20",
        "/opt/node",
        "/usr/bin/.hidden",
        "/home/u/a[b]c",
        "/usr/bin/CURL",
    ];
    const BINARIES: [&str; 20] = [
        "/usr/bin/curl",
        "/usr/bin/python3",
        "/bin/bash",
        "/opt/app/node",
        "/home/u/a[b]c",
        "/usr/bin/*",
        "/usr/**/python*",
        "/opt/**/node*",
        "/**",
        "/**",
        "/**",
        "**",
        "*",
        "/usr/bin/python3*",
        "/usr/bin/[cp]*",
        "/usr/bin/{curl,wget}*",
        "/usr/bin/c?rl*",
        "/usr/bin/c?rl",
        "/opt/**",
        "/usr/*/*",
    ];
    const PATHS: [&str; 28] = [
        "/",
        "/v1",
        "/v1/",
        "/v1/items",
        "/v1/items/7",
        "/v1/items/7/notes",
        "/v1/notes",
        "/v1/admin",
        "/v1/admin/x",
        "/v2/items",
        "/v2/Items",
        "/repos/a/issues",
        "/repos/a/b/issues",
        "/repos",
        "/repos/",
        "/graphql",
        "/graphql/x",
        "/ws",
        "/ws/admin",
        "/mcp",
        "/rpc",
        "/files/a%2Fb",
        "/files/a%2Fb/c",
        "/files/a",
        "/v1/.hidden",
        "/a%20b",
        "/index.html",
        "/v1/item9",
    ];
    const PATTERNS: [&str; 25] = [
        "**",
        "/**",
        "/v1/**",
        "/v1/*",
        "/v1/items",
        "/v1/items/*",
        "/v1/*/7",
        "/v1/**/notes",
        "/repos/*/issues",
        "/repos/**",
        "/v[12]/items",
        "/v?/items",
        "/{v1,v2}/items",
        "/v1/item[!0-8]",
        "/v1/items/**",
        "/files/*",
        "/files/**",
        "/v1/i**",
        "/graphql",
        "/ws/**",
        "/*",
        "**/issues",
        "/a%20b",
        "/v[!2]/*",
        "/ws",
    ];
    const SLOTS: [&str; 12] = [
        "/v1/**",
        "/v1/items/**",
        "/graphql",
        "/v1/admin/**",
        "/repos/*/issues",
        "/ws",
        "/mcp",
        "/rpc",
        "/files/**",
        "/**",
        "/v1/*",
        "**",
    ];
    const METHODS: [&str; 9] =
        ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "get", "WEBSOCKET_TEXT"];
    const KEYS: [&str; 4] = ["tag", "kind", "a b", "n"];
    const VALUES: [&str; 16] = [
        "v1.2", "B", "X.y", "v1.2.3", "v1", "a/b", "a b", "a", "b", "abc", "x.y", "w.x.y", "1", "",
        "a/b.c", "v1.",
    ];
    const VALUE_PATTERNS: [&str; 16] = [
        "v1.*", "v1.**", "*", "a/*", "a*", "b", "a b", "[ab]", "{a,b}", "?", "**", "x.y", "**.y",
        "v1.?.3", "*/b", "v1.*.3",
    ];
    const KINDS: [&str; 3] = ["query", "mutation", "subscription"];
    const NAMES: [&str; 6] = ["", "Me", "IssueCreate", "Issue.Create", "Issue.a.b", "Drop"];
    const NAME_PATTERNS: [&str; 5] = ["Me", "Issue*", "Issue.*", "Issue.**", "*"];
    const FIELDS: [&str; 6] =
        ["viewer", "repo", "repository", "repo.owner", "deleteRepo", "createIssue"];
    const FIELD_PATTERNS: [&str; 8] =
        ["viewer", "repo*", "repo.*", "*", "create*", "**", "delete*", "{viewer,repo}"];
    const IDS: [&str; 3] = ["abc123", "sha256:def", "nope"];
    const RPC: [&str; 4] = ["eth_call", "admin.drop", "admin.x", "system.list"];
    const MCP: [&str; 7] = [
        "initialize",
        "ping",
        "tools/list",
        "tools/call",
        "resources/read",
        "prompts/get",
        "notifications/initialized",
    ];
    const TOOLS: [&str; 5] = ["search_repos", "search_a.b", "delete_repo", "read", "fs/read"];
    const TOOL_PATTERNS: [&str; 9] = [
        "search_*",
        "search_*.b",
        "read",
        "fs/*",
        "*",
        "delete_*",
        "**",
        "[rs]e*",
        "{read,fs/read}",
    ];

    /// Endpoints that may overlap, and what they must therefore agree on.
    #[derive(Debug, Clone)]
    struct Family {
        base: String,
        ports: Vec<u16>,
        tls: Option<String>,
        allowed_ips: Vec<String>,
        sort: Sort,
        slots: Vec<End>,
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Sort {
        Inspected,
        Raw,
        Tcp,
        Sql,
        Skip,
        Hostless,
        Address,
    }

    fn value(rng: &mut Rng, list: &[&str]) -> Val {
        if rng.chance(60) {
            Val::One(rng.word(list))
        } else {
            Val::Any((0..=rng.below(3)).map(|_n| rng.word(list)).collect())
        }
    }

    /// True where two endpoint paths may cover one path and be of one rank.
    fn rivals(a: &End, b: &End) -> bool {
        let prefix = |end: &End| {
            let path = end.path.clone().unwrap_or_default();
            path.split('*').next().unwrap().to_owned()
        };
        let (x, y) = (prefix(a), prefix(b));
        let apart = !x.starts_with(&y) && !y.starts_with(&x);
        a.specificity().1 == b.specificity().1 && !apart
    }

    fn slot(rng: &mut Rng, protocols: &[&str]) -> End {
        let protocol = rng.word(protocols);
        let enforcement = match rng.below(10) {
            0..6 => Some("enforce"),
            6 | 7 => Some("audit"),
            8 => Some(*rng.pick(&["Enforce", "enforced", "block"])),
            _ => None,
        };
        let own = match protocol.as_str() {
            "graphql" => "/graphql",
            "websocket" => "/ws",
            "mcp" => "/mcp",
            "json-rpc" => "/rpc",
            _ => "/v1/**",
        };
        let path = match rng.below(10) {
            0..4 => None,
            4..7 => Some(own.to_owned()),
            _ => Some(rng.word(&SLOTS)),
        };
        let slash = match rng.below(4) {
            0 | 1 => Some(true),
            2 => Some(false),
            _ => None,
        };
        End {
            protocol: Some(protocol),
            enforcement: enforcement.map(ToOwned::to_owned),
            path,
            slash,
            ..End::default()
        }
    }

    fn slots(rng: &mut Rng) -> Vec<End> {
        // What reads one host's requests in two ways at once is not for us to
        // say: GraphQL stays apart from WebSocket, JSON-RPC from MCP.
        let one = if rng.chance(50) { "graphql" } else { "websocket" };
        let two = if rng.chance(50) { "json-rpc" } else { "mcp" };
        let protocols = ["rest", "rest", one, two];
        let mut list: Vec<End> = vec![slot(rng, &protocols)];
        for _more in 0..rng.below(4) {
            let next = slot(rng, &protocols);
            if !list.iter().any(|own| rivals(own, &next)) {
                list.push(next);
            }
        }
        list
    }

    fn family(rng: &mut Rng, number: usize) -> Family {
        let sort = match rng.below(30) {
            0..22 => Sort::Inspected,
            22 => Sort::Raw,
            23 => Sort::Tcp,
            24 => Sort::Sql,
            25 => Sort::Skip,
            26..29 => Sort::Hostless,
            _ => Sort::Address,
        };
        let mut ports: Vec<u16> = PORTS.to_vec();
        while ports.len() > 1 && rng.chance(50) {
            ports.remove(rng.below(ports.len()));
        }
        if sort == Sort::Hostless {
            ports = vec![9000 + u16::try_from(number).unwrap()];
        }
        let tls = match sort {
            Sort::Skip => Some("skip"),
            Sort::Tcp => None,
            _ if rng.chance(20) => Some(*rng.pick(&["terminate", "passthrough", "Skip", "what"])),
            _ => None,
        };
        let listed = sort == Sort::Hostless
            || (matches!(sort, Sort::Inspected | Sort::Raw) && rng.chance(15));
        let allowed_ips = if listed { vec!["10.9.0.0/16", "10.1.2.3"] } else { Vec::new() };
        Family {
            base: BASES[number].to_owned(),
            ports,
            tls: tls.map(ToOwned::to_owned),
            allowed_ips: allowed_ips.into_iter().map(ToOwned::to_owned).collect(),
            sort,
            slots: slots(rng),
        }
    }

    fn fill_host(rng: &mut Rng, family: &Family, end: &mut End) {
        end.tls.clone_from(&family.tls);
        end.allowed_ips.clone_from(&family.allowed_ips);
        end.ports.clone_from(&family.ports);
        while end.ports.len() > 1 && rng.chance(40) {
            end.ports.remove(rng.below(end.ports.len()));
        }
        end.single = end.ports.len() == 1 && rng.chance(70);
        end.host = match family.sort {
            Sort::Hostless if rng.chance(70) => None,
            Sort::Address => Some(ADDRESSES[end.family].to_owned()),
            _ if rng.chance(40) => Some(rng.word(&EXACT) + &family.base),
            _ => Some(rng.word(&GLOBS) + &family.base),
        };
    }

    fn endpoint(rng: &mut Rng, families: &[Family]) -> End {
        let number = rng.below(families.len());
        let family = &families[number];
        let raw = match family.sort {
            Sort::Raw | Sort::Tcp | Sort::Sql => true,
            Sort::Inspected | Sort::Hostless | Sort::Address => rng.chance(12),
            Sort::Skip => rng.chance(40),
        };
        let mut end = if raw { End::default() } else { rng.pick(&family.slots).clone() };
        end.family = number;
        fill_host(rng, family, &mut end);
        if !raw {
            fill_rules(rng, &mut end);
        }
        if family.sort == Sort::Tcp {
            end.protocol = Some("tcp".to_owned());
            end.tls = None;
        }
        if family.sort == Sort::Sql && rng.chance(70) {
            end.protocol = Some("sql".to_owned());
            end.enforcement = Some("audit".to_owned());
            let command = Some(rng.word(&["SELECT", "INSERT"]));
            end.allow = vec![Mat { command, ..Mat::default() }];
        }
        end
    }

    fn fill_rules(rng: &mut Rng, end: &mut End) {
        let protocol = end.protocol.clone().unwrap();
        let plain = matches!(protocol.as_str(), "rest" | "websocket" | "graphql");
        if protocol == "graphql" && rng.chance(60) {
            end.persisted = Some(rng.word(&["allow_registered", "allow_registered", "deny"]));
            for id in &IDS[..2] {
                let name = if rng.chance(50) { Some(rng.word(&NAMES[1..])) } else { None };
                let entry = Reg { kind: rng.word(&KINDS), name, fields: fields(rng) };
                end.registry.insert((*id).to_owned(), entry);
            }
        }
        if protocol == "mcp" && rng.chance(50) {
            end.all_mcp = Some(rng.chance(70));
        }
        let bare = end.all_mcp == Some(true) && rng.chance(30);
        if plain && rng.chance(35) {
            end.access = Some(rng.word(&["read-only", "read-write", "full", "read_only"]));
        } else if !bare {
            end.allow = (0..=rng.below(3)).map(|_n| rule(rng, end, false)).collect();
        }
        if rng.chance(30) {
            end.deny = (0..=rng.below(2)).map(|_n| rule(rng, end, true)).collect();
        }
        // An endpoint that can allow nothing is refused when it is loaded.
        if !end.allow.is_empty() && end.allow.iter().all(|own| own.yaml() == "{}") {
            end.allow = vec![rule(rng, end, false)];
        }
    }

    fn fields(rng: &mut Rng) -> Vec<String> {
        (0..=rng.below(2)).map(|_n| rng.word(&FIELDS)).collect()
    }

    fn rule(rng: &mut Rng, end: &End, denying: bool) -> Mat {
        match end.protocol.as_deref().unwrap() {
            "graphql" => graph_rule(rng),
            "websocket" if rng.chance(25) => graph_rule(rng),
            "json-rpc" => {
                let method = if rng.chance(40) && !denying { "*" } else { *rng.pick(&RPC) };
                Mat { method: Some(method.to_owned()), ..Mat::default() }
            }
            "mcp" => mcp_rule(rng),
            _ => http_rule(rng, end, denying),
        }
    }

    fn graph_rule(rng: &mut Rng) -> Mat {
        let name = if rng.chance(40) { Some(rng.word(&NAME_PATTERNS)) } else { None };
        let count = if rng.chance(60) { 1 + rng.below(2) } else { 0 };
        let fields = (0..count).map(|_n| rng.word(&FIELD_PATTERNS)).collect();
        Mat { kind: Some(rng.word(&KINDS)), name, fields, ..Mat::default() }
    }

    fn mcp_rule(rng: &mut Rng) -> Mat {
        if rng.chance(50) {
            let method = if rng.chance(40) {
                *rng.pick(&["tools/*", "tools/c*", "tools/?ist", "tools/{list,call}"])
            } else {
                *rng.pick(&MCP)
            };
            return Mat { method: Some(method.to_owned()), ..Mat::default() };
        }
        Mat {
            method: Some("tools/call".to_owned()),
            tool: Some(value(rng, &TOOL_PATTERNS)),
            as_params: rng.chance(50),
            ..Mat::default()
        }
    }

    fn http_rule(rng: &mut Rng, end: &End, denying: bool) -> Mat {
        let method = if rng.chance(25) {
            "*"
        } else if is(end.protocol.as_ref(), "websocket") {
            *rng.pick(&["GET", "WEBSOCKET_TEXT"])
        } else {
            *rng.pick(&METHODS[..8])
        };
        let reach: Vec<&str> = PATHS.into_iter().filter(|path| end.covers_path(path)).collect();
        let mut path = rng.word(&PATTERNS);
        for _again in 0..12 {
            if reach.iter().any(|own| path_glob(&path, own)) {
                break;
            }
            path = rng.word(&PATTERNS);
        }
        let mut query: Vec<(String, Val)> = Vec::new();
        while query.len() < 2 && rng.chance(if denying { 60 } else { 35 }) {
            let key = rng.word(&KEYS);
            if !query.iter().any(|(own, _value)| *own == key) {
                query.push((key, value(rng, &VALUE_PATTERNS)));
            }
        }
        Mat {
            method: Some(method.to_owned()),
            path: if rng.chance(94) { Some(path) } else { None },
            query,
            ..Mat::default()
        }
    }

    fn policy(rng: &mut Rng) -> Pol {
        let families: Vec<Family> = (0..=rng.below(3)).map(|n| family(rng, n)).collect();
        let mut rules = Vec::new();
        for number in 0..2 + rng.below(4) {
            let ends = (0..=rng.below(3)).map(|_n| endpoint(rng, &families)).collect();
            let binaries = match rng.below(20) {
                0 => None,
                1 => Some(Vec::new()),
                _ => Some((0..=rng.below(2)).map(|_n| rng.word(&BINARIES)).collect()),
            };
            rules.push(Rul { key: format!("r{number}"), ends, binaries });
        }
        Pol { rules }
    }

    // ------------------------------------------------------- writing intents

    fn fitting(rng: &mut Rng, list: &[&str], fits: impl Fn(&str) -> bool) -> String {
        let good: Vec<&str> = list.iter().copied().filter(|own| fits(own)).collect();
        if good.is_empty() { rng.word(list) } else { rng.word(&good) }
    }

    /// Writes a canonical path in another way; now and then in a wrong one.
    fn spell(rng: &mut Rng, path: &str) -> String {
        if rng.chance(35) {
            return path.to_owned();
        }
        let mut text = String::new();
        for segment in path.split('/').skip(1) {
            match rng.below(16) {
                0 => text.push_str("/."),
                1 => text.push_str("/%2e"),
                2 => text.push_str("/x/.."),
                3 => text.push_str("/x;p=1/%2E%2e;q"),
                4 => text.push('/'),
                _ => {}
            }
            text.push('/');
            let mut escaped = 0;
            for c in segment.chars() {
                let skip = escaped > 0 || c == '%';
                escaped = if c == '%' { 2 } else { usize::saturating_sub(escaped, 1) };
                if !skip && rng.chance(8) {
                    write!(text, "%{:02x}", u32::from(c)).unwrap();
                } else if escaped > 0 || skip {
                    text.push(if rng.chance(50) { c.to_ascii_lowercase() } else { c });
                } else {
                    text.push(c);
                }
            }
            if rng.chance(6) {
                text.push_str(";p=1");
            }
        }
        match rng.below(60) {
            0 => text.push_str("/.."),
            1 => text.push('/'),
            2 => text.push_str("/."),
            3 => text = format!("/..{text}"),
            4 => text.push_str("%zz"),
            5 => text.push_str("%0"),
            6 => text.push_str("/%00"),
            7 => text.push('#'),
            8 => text.push('é'),
            9 => text.push_str("%2F.."),
            10 => text.push_str("%2f%2e/y"),
            11 => text.push_str("%2F..y"),
            12 => text.push_str("%7F%c3%A9{"),
            13 | 14 => text = format!("http://h.example:80{text}"),
            15 => text = text.trim_start_matches('/').to_owned(),
            16 => text.push_str("%1f"),
            17 => text.push_str("/%25%32%45"),
            _ => {}
        }
        text
    }

    fn spell_value(rng: &mut Rng, value: &str) -> String {
        let mut text = String::new();
        for c in value.chars() {
            match c {
                ' ' if rng.chance(50) => text.push('+'),
                ' ' => text.push_str("%20"),
                _ if rng.chance(15) => write!(text, "%{:02X}", u32::from(c)).unwrap(),
                _ => text.push(c),
            }
        }
        if rng.chance(1) {
            text.push_str(&rng.word(&["%ff", "%", "%g0"]));
        }
        text
    }

    fn query(rng: &mut Rng, rule: &Mat) -> String {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for (key, patterns) in &rule.query {
            let fits = |own: &str| patterns.list().iter().any(|one| dot_glob(one, own));
            pairs.push((key.clone(), fitting(rng, &VALUES, fits)));
            if rng.chance(25) {
                pairs.push((key.clone(), fitting(rng, &VALUES, fits)));
            }
            if rng.chance(20) {
                pairs.push((key.clone(), rng.word(&VALUES)));
            }
        }
        if rng.chance(25) {
            pairs.push((rng.word(&KEYS), rng.word(&VALUES)));
        }
        if !pairs.is_empty() && rng.chance(10) {
            pairs.remove(rng.below(pairs.len()));
        }
        if rng.chance(30) {
            pairs.reverse();
        }
        let list: Vec<String> = pairs
            .iter()
            .map(|(key, value)| format!("{}={}", spell_value(rng, key), spell_value(rng, value)))
            .collect();
        if list.is_empty() && rng.chance(90) {
            String::new()
        } else {
            format!("?{}", list.join("&"))
        }
    }

    fn operation(rng: &mut Rng, end: &End, rule: &Mat) -> Operation {
        if !end.registry.is_empty() && rng.chance(30) {
            return Operation { persisted: Some(rng.word(&IDS)), ..Operation::default() };
        }
        let kind = match rule.kind.as_deref() {
            Some(kind) if kind != "*" && rng.chance(92) => kind.to_owned(),
            _ => rng.word(&KINDS),
        };
        let name = fitting(rng, &NAMES, |own| {
            rule.name.as_ref().is_none_or(|pattern| dot_glob(pattern, own))
        });
        let mut fields = Vec::new();
        for _field in 0..=rng.below(2) {
            fields.push(fitting(rng, &FIELDS, |own| {
                rule.fields.is_empty() || rule.fields.iter().any(|one| dot_glob(one, own))
            }));
        }
        if rng.chance(15) {
            fields.push(rng.word(&FIELDS));
        }
        Operation { kind, name, fields, persisted: None }
    }

    fn graph(rng: &mut Rng, end: &End) -> Content {
        let denied = rng.chance(15).then_some(&end.deny).into_iter().flatten().cloned();
        let rules: Vec<Mat> =
            end.allows().into_iter().chain(denied).filter(|own| own.kind.is_some()).collect();
        let mut operations = Vec::new();
        while operations.is_empty() || rng.chance(20) {
            let rule = if rules.is_empty() { Mat::default() } else { rng.pick(&rules).clone() };
            operations.push(operation(rng, end, &rule));
        }
        Content::GraphQl(GraphQl { operations, malformed: rng.chance(4) })
    }

    fn rpc(rng: &mut Rng, end: &End) -> Content {
        let mcp = is(end.protocol.as_ref(), "mcp");
        let denied = rng.chance(15).then_some(&end.deny).into_iter().flatten();
        let rules: Vec<&Mat> = end.allow.iter().chain(denied).collect();
        let rule = if rules.is_empty() { Mat::default() } else { (*rng.pick(&rules)).clone() };
        let names: &[&str] = if mcp { &MCP } else { &RPC };
        if !mcp && rng.chance(8) {
            return Content::JsonRpc(JsonRpc { response: true, ..JsonRpc::default() });
        }
        let stray = rng.chance(15);
        let method = fitting(rng, names, |own| {
            !stray && rule.method.as_ref().is_none_or(|pattern| dot_glob(pattern, own))
        });
        let mut tool = None;
        if method == "tools/call" || method == "prompts/get" {
            tool = Some(fitting(rng, &TOOLS, |own| {
                let fits = |list: &Val| list.list().iter().any(|one| dot_glob(one, own));
                !stray && rule.tool.as_ref().is_none_or(fits)
            }));
        }
        Content::JsonRpc(JsonRpc { method, tool, malformed: rng.chance(4), ..JsonRpc::default() })
    }

    fn ask(rng: &mut Rng, end: &End) -> Ask {
        let allows = end.allows();
        let protocol = end.protocol.as_deref().unwrap_or_default();
        let denied = rng.chance(15).then_some(&end.deny).into_iter().flatten().cloned();
        let http: Vec<Mat> =
            allows.into_iter().chain(denied).filter(|own| own.path.is_some()).collect();
        let rule = if http.is_empty() {
            Mat { path: Some("**".to_owned()), ..Mat::default() }
        } else {
            rng.pick(&http).clone()
        };
        let pattern = rule.path.clone().unwrap();
        let stray = rng.chance(10);
        let path =
            fitting(rng, &PATHS, |own| !stray && end.covers_path(own) && path_glob(&pattern, own));
        let mut method = match rule.method.as_deref() {
            Some("GET") if rng.chance(25) => "HEAD".to_owned(),
            Some(word) if word != "*" && rng.chance(85) => word.to_owned(),
            _ => rng.word(&METHODS),
        };
        let mut content = Content::Opaque;
        match protocol {
            "graphql" => {
                method = "POST".to_owned();
                content = graph(rng, end);
            }
            "websocket" if end.allow.iter().any(|own| own.kind.is_some()) && rng.chance(70) => {
                method = "WEBSOCKET_TEXT".to_owned();
                content = graph(rng, end);
            }
            "json-rpc" | "mcp" => {
                method = "POST".to_owned();
                content = rpc(rng, end);
            }
            _ => {}
        }
        if rng.chance(4) {
            method = rng.word(&METHODS);
        }
        // Only a GET receives.
        if matches!(protocol, "mcp" | "json-rpc") && rng.chance(10) {
            method = "GET".to_owned();
            content = Content::JsonRpc(JsonRpc { receive_stream: true, ..JsonRpc::default() });
        }
        if rng.chance(3) {
            content = Content::Opaque;
        }
        if protocol == "rest" && rng.chance(6) {
            content = if rng.chance(50) { graph(rng, end) } else { rpc(rng, end) };
            if matches!(&content, Content::JsonRpc(own) if own.response) {
                content = Content::Opaque;
            }
        }
        Ask { method, target: spell(rng, &path) + &query(rng, &rule), content }
    }

    fn want(rng: &mut Rng, pol: &Pol) -> Want {
        let live: Vec<&Rul> =
            pol.rules.iter().filter(|own| own.binaries.iter().flatten().count() > 0).collect();
        let rule =
            if live.is_empty() || rng.chance(8) { rng.pick(&pol.rules) } else { *rng.pick(&live) };
        let end = rng.pick(&rule.ends);
        let base = BASES[end.family];
        let stray = rng.chance(6);
        let hosts: Vec<String> = HOSTS.iter().map(|own| format!("{own}{base}")).collect();
        let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
        let mut host = fitting(rng, &hosts, |own| !stray && end.covers_host(own, Quirk::None));
        let address = ADDRESSES[end.family];
        if is(end.host.as_ref(), address) {
            host = address.to_owned();
        } else if end.host.is_none() && rng.chance(30) {
            host = rng.word(&["elsewhere.example", "single"]);
        }
        let stray = rng.chance(8);
        let binary = fitting(rng, &PROGRAMS, |own| !stray && rule.covers(own));
        let mut ancestors: Vec<String> = Vec::new();
        while rng.chance(35) {
            ancestors.push(rng.word(&PROGRAMS));
        }
        let (binary, ancestors) = if rng.chance(15) {
            let other = rng.word(&PROGRAMS);
            ancestors.push(binary);
            (other, ancestors)
        } else {
            (binary, ancestors)
        };
        let port = if rng.chance(95) { *rng.pick(&end.ports) } else { *rng.pick(&PORTS) };
        let requests = if end.inspected() { 85 } else { 35 };
        // A request to a raw endpoint may still be read by another one.
        let ask = if rng.chance(requests) { Some(ask(rng, end)) } else { None };
        Want { host, port, binary, ancestors, ask }
    }

    // -------------------------------------------------------------- coverage

    type Change = fn(&mut Pol, &mut Want) -> Quirk;

    /// A feature, and a change that takes it away: an intent depends on the
    /// feature if the oracle then answers differently.
    type Feature = (&'static str, Change);

    fn ends(pol: &mut Pol, change: impl Fn(&mut End)) -> Quirk {
        pol.rules.iter_mut().flat_map(|rule| &mut rule.ends).for_each(change);
        Quirk::None
    }

    fn without(pol: &mut Pol, lost: impl Fn(&End) -> bool) -> Quirk {
        for rule in &mut pol.rules {
            rule.ends.retain(|end| !lost(end));
        }
        Quirk::None
    }

    fn without_host(pol: &mut Pol, lost: impl Fn(&str) -> bool) -> Quirk {
        without(pol, |end| end.host.as_deref().is_some_and(&lost))
    }

    fn without_protocol(pol: &mut Pol, protocol: &str) -> Quirk {
        without(pol, |end| is(end.protocol.as_ref(), protocol))
    }

    fn allowing(pol: &mut Pol, change: impl Fn(&mut Mat)) -> Quirk {
        ends(pol, |end| end.allow.iter_mut().for_each(&change))
    }

    fn denying(pol: &mut Pol, change: impl Fn(&mut Mat)) -> Quirk {
        ends(pol, |end| end.deny.iter_mut().for_each(&change))
    }

    fn binaries(pol: &mut Pol, change: impl Fn(&mut Option<Vec<String>>)) -> Quirk {
        pol.rules.iter_mut().for_each(|rule| change(&mut rule.binaries));
        Quirk::None
    }

    fn without_binary(pol: &mut Pol, lost: impl Fn(&str) -> bool) -> Quirk {
        binaries(pol, |list| {
            if let Some(list) = list {
                list.retain(|path| !lost(path));
            }
        })
    }

    fn enforced(pol: &mut Pol, old: Option<&str>, new: &str) -> Quirk {
        ends(pol, |end| {
            if end.enforcement.as_deref() == old {
                end.enforcement = Some(new.to_owned());
            }
        })
    }

    fn without_access(pol: &mut Pol, word: &str) -> Quirk {
        without(pol, |end| is(end.access.as_ref(), word))
    }

    fn rpc_methods(pol: &mut Pol, protocol: &str, change: impl Fn(&mut Mat)) -> Quirk {
        ends(pol, |end| {
            if is(end.protocol.as_ref(), protocol) {
                end.allow.iter_mut().for_each(&change);
            }
        })
    }

    const PLACES: &[Feature] = &[
        ("host exact", |p, _| without_host(p, |own| !own.contains('*'))),
        ("host *", |p, _| without_host(p, |own| own.contains('*') && !own.contains("**"))),
        ("host **", |p, _| {
            ends(p, |end| end.host = end.host.as_ref().map(|own| own.replace("**", "*")))
        }),
        ("host ?", |p, _| without_host(p, |own| own.contains('?'))),
        ("host []", |p, _| without_host(p, |own| own.contains('['))),
        ("host {}", |p, _| without_host(p, |own| own.contains('{'))),
        ("host address", |p, _| without_host(p, |own| ADDRESSES.contains(&own))),
        ("hostless", |p, _| without(p, |end| end.host.is_none())),
        ("case", |_, _| Quirk::CaseMatters),
        ("port", |p, _| without(p, |end| end.single)),
        ("ports", |p, _| ends(p, |end| end.ports.truncate(1))),
        ("path", |p, _| ends(p, |end| end.path = None)),
        ("path specificity", |_, _| Quirk::LeastSpecific),
        ("protocol none", |p, _| without(p, |end| end.protocol.is_none())),
        ("protocol tcp", |p, _| without_protocol(p, "tcp")),
        ("protocol sql", |p, _| without_protocol(p, "sql")),
        ("protocol rest", |p, _| without_protocol(p, "rest")),
        ("protocol websocket", |p, _| without_protocol(p, "websocket")),
        ("protocol graphql", |p, _| without_protocol(p, "graphql")),
        ("protocol json-rpc", |p, _| without_protocol(p, "json-rpc")),
        ("protocol mcp", |p, _| without_protocol(p, "mcp")),
        ("tls skip", |p, _| ends(p, |end| end.tls = None)),
        ("tls other", |p, _| {
            ends(p, |end| end.tls = end.tls.as_ref().map(|_other| "skip".to_owned()))
        }),
        ("binaries exact", |p, _| without_binary(p, |own| !own.contains('*'))),
        ("binaries glob", |p, _| without_binary(p, |own| own.contains('*') && own != "/**")),
        ("binaries /**", |p, _| without_binary(p, |own| own == "/**")),
        ("binaries *", |p, _| {
            binaries(p, |list| {
                if list.as_ref().is_some_and(|own| own.contains(&"*".to_owned())) {
                    *list = Some(vec!["/**".to_owned()]);
                }
            })
        }),
        ("binaries empty", |p, _| {
            binaries(p, |list| {
                if list.as_ref().is_some_and(Vec::is_empty) {
                    *list = Some(vec!["/**".to_owned()]);
                }
            })
        }),
        ("binaries missing", |p, _| {
            binaries(p, |list| {
                list.get_or_insert_with(|| vec!["/**".to_owned()]);
            })
        }),
        ("ancestors", |_, want| {
            want.ancestors.clear();
            Quirk::None
        }),
        ("several rules", |_, _| Quirk::FirstRuleOnly),
    ];

    const REQUESTS: &[Feature] = &[
        ("enforcement enforce", |p, _| enforced(p, Some("enforce"), "audit")),
        ("enforcement audit", |p, _| enforced(p, Some("audit"), "enforce")),
        ("enforcement absent", |p, _| enforced(p, None, "enforce")),
        ("enforcement typo", |p, _| {
            ends(p, |end| {
                let typo = end.enforcement.as_ref().is_some_and(|own| own != "audit");
                end.enforcement =
                    if typo { Some("enforce".to_owned()) } else { end.enforcement.clone() };
            })
        }),
        ("access read-only", |p, _| without_access(p, "read-only")),
        ("access read-write", |p, _| without_access(p, "read-write")),
        ("access full", |p, _| without_access(p, "full")),
        ("access unknown", |p, _| {
            ends(p, |end| {
                if is(end.access.as_ref(), "read_only") {
                    end.access = Some("full".to_owned());
                }
            })
        }),
        ("rule method", |p, _| {
            allowing(p, |own| {
                if own.path.is_some() {
                    own.method = Some("*".to_owned());
                }
            })
        }),
        ("rule path", |p, _| {
            allowing(p, |own| own.path = own.path.as_ref().map(|_path| "**".to_owned()))
        }),
        ("rule path missing", |p, _| {
            allowing(p, |own| {
                if own.kind.is_none() && own.path.is_none() {
                    own.path = Some("**".to_owned());
                }
            })
        }),
        ("rule query string", |p, _| {
            allowing(p, |own| own.query.retain(|(_, value)| matches!(value, Val::Any(_))))
        }),
        ("rule query any", |p, _| {
            allowing(p, |own| own.query.retain(|(_, value)| matches!(value, Val::One(_))))
        }),
        ("rule query every value", |_, _| Quirk::AllowNeedsAny),
        ("rule query dot", |_, _| Quirk::StarCrossesDot),
        ("rule query slash", |_, _| Quirk::SlashSplitsValue),
        ("rule path star", |_, _| Quirk::PathStarCrosses),
        ("get covers head", |_, _| Quirk::HeadIsNotGet),
        ("canonical path", |_, _| Quirk::RawPath),
        ("deny", |p, _| ends(p, |end| end.deny.clear())),
        ("deny method", |p, _| denying(p, |own| own.method = Some("*".to_owned()))),
        ("deny path", |p, _| {
            denying(p, |own| own.path = own.path.as_ref().map(|_path| "**".to_owned()))
        }),
        ("deny query", |p, _| denying(p, |own| own.query.clear())),
        ("deny query any value", |_, _| Quirk::DenyNeedsAll),
        ("allow_encoded_slash", |p, _| ends(p, |end| end.slash = None)),
        ("encoded slash refused", |p, _| ends(p, |end| end.slash = Some(true))),
        ("encoded slash under audit", |_, _| Quirk::SlashAudited),
        ("malformed", |_, _| Quirk::MalformedIgnored),
    ];

    const BODIES: &[Feature] = &[
        ("graphql operation_type", |p, _| {
            allowing(p, |own| own.kind = own.kind.as_ref().map(|_kind| "*".to_owned()))
        }),
        ("graphql operation_name", |p, _| allowing(p, |own| own.name = None)),
        ("graphql fields", |p, _| allowing(p, |own| own.fields.clear())),
        ("graphql deny fields", |p, _| denying(p, |own| own.fields.clear())),
        ("graphql deny name", |p, _| denying(p, |own| own.name = None)),
        ("graphql batch", |_, _| Quirk::OneOperation),
        ("graphql refuses for others", |_, _| Quirk::GraphQlDenyIgnored),
        ("persisted_queries", |p, _| ends(p, |end| end.persisted = None)),
        ("persisted_queries deny", |p, _| {
            ends(p, |end| end.persisted = Some("allow_registered".to_owned()))
        }),
        ("registry", |p, _| ends(p, |end| end.registry.clear())),
        ("websocket operations", |p, _| {
            ends(p, |end| {
                if is(end.protocol.as_ref(), "websocket") {
                    end.allow.retain(|own| own.kind.is_none());
                }
            })
        }),
        ("json_rpc method", |p, _| {
            rpc_methods(p, "json-rpc", |own| {
                if !is(own.method.as_ref(), "*") {
                    own.method = None;
                }
            })
        }),
        ("json_rpc *", |p, _| {
            rpc_methods(p, "json-rpc", |own| {
                if is(own.method.as_ref(), "*") {
                    own.method = None;
                }
            })
        }),
        ("response frame", |_, _| Quirk::ResponsesAllowed),
        ("mcp method", |p, _| {
            rpc_methods(p, "mcp", |own| {
                if !own.method.as_ref().is_some_and(|own| own.contains(['*', '?', '{'])) {
                    own.method = None;
                }
            })
        }),
        ("mcp method glob", |p, _| {
            rpc_methods(p, "mcp", |own| {
                if own.method.as_ref().is_some_and(|own| own.contains(['*', '?', '{'])) {
                    own.method = None;
                }
            })
        }),
        ("mcp tool", |p, _| {
            rpc_methods(p, "mcp", |own| {
                if !own.as_params {
                    own.tool = None;
                }
            })
        }),
        ("mcp params.name", |p, _| {
            rpc_methods(p, "mcp", |own| {
                if own.as_params {
                    own.tool = None;
                }
            })
        }),
        ("mcp deny tool", |p, _| denying(p, |own| own.tool = None)),
        ("mcp all methods", |p, _| ends(p, |end| end.all_mcp = None)),
        ("mcp all methods but named tools", |p, _| {
            ends(p, |end| end.allow.retain(|own| own.tool.is_none()))
        }),
        ("mcp receive stream", |_, _| Quirk::NoReceiveStream),
    ];

    /// Counted where they are seen, for there is no field to take away.
    const SEEN: [&str; 5] = [
        "raw beside inspected",
        "allowed_ips inside",
        "allowed_ips outside",
        "target refused",
        "several endpoints take part",
    ];

    #[derive(Default)]
    struct Coverage(BTreeMap<&'static str, usize>);

    impl Coverage {
        fn new() -> Self {
            let features = [PLACES, REQUESTS, BODIES].concat();
            let names = features.iter().map(|(name, _change)| *name).chain(SEEN);
            Self(names.map(|name| (name, 0)).collect())
        }

        fn count(&mut self, name: &'static str) {
            *self.0.get_mut(name).unwrap() += 1;
        }

        fn look(&mut self, pol: &Pol, want: &Want, answer: Answer) {
            let requests = want.ask.is_some();
            for (list, wanted) in [(PLACES, true), (REQUESTS, requests), (BODIES, requests)] {
                for (name, change) in list {
                    if !wanted || self.0[name] >= ENOUGH {
                        continue;
                    }
                    let (mut pol, mut want) = (pol.clone(), want.clone());
                    let quirk = change(&mut pol, &mut want);
                    if oracle(&pol, &want, quirk) != answer {
                        self.count(name);
                    }
                }
            }
            let sites = sites(pol, want, Quirk::None);
            let inspected = sites.iter().filter(|end| end.inspected()).count();
            if inspected > 0 && inspected < sites.len() {
                self.count("raw beside inspected");
            }
            if requests && inspected > 1 && answer == Answer::Allow {
                self.count("several endpoints take part");
            }
            if answer == Answer::Refused {
                self.count("target refused");
            }
        }
    }

    // ---------------------------------------------------------------- engine

    fn destination(host: &str) -> Destination {
        match host.parse() {
            Ok(address) => Destination::Address { address, names: Vec::new() },
            Err(_name) => Destination::Host(Host::parse(host).unwrap()),
        }
    }

    /// What the engine answers, and the leave it gave.
    fn engine(engine: &Engine, want: &Want) -> (Answer, Option<Permit>) {
        let mut intent = Intent::connect(destination(&want.host), want.port);
        if let Some(ask) = &want.ask {
            let Ok(target) = Target::parse(&ask.target) else {
                return (Answer::Refused, None);
            };
            let method = Method::parse(&ask.method).unwrap();
            intent.request = Some(Request { method, target, content: ask.content.clone() });
        }
        let holder = Process::new(want.binary.clone(), want.ancestors.clone());
        match engine.decide(&intent, &Caller { holders: vec![holder] }) {
            Decision::Deny(_denial) => (Answer::Deny, None),
            Decision::Inspect(_inspect) => (Answer::Inspect, None),
            Decision::Allow(permit) if permit.audited().is_some() => {
                (Answer::Audited, Some(permit))
            }
            Decision::Allow(permit) => (Answer::Allow, Some(permit)),
        }
    }

    /// What a permit says about addresses, where the rules name some.
    fn addresses(pol: &Pol, want: &Want, permit: &Permit, coverage: &mut Coverage) -> Vec<String> {
        let sites = sites(pol, want, Quirk::None);
        if sites.iter().any(|end| end.allowed_ips.is_empty()) {
            return Vec::new();
        }
        let mut wrong = Vec::new();
        for (address, inside) in
            [("10.9.3.4", true), ("10.1.2.3", true), ("10.8.0.1", false), ("8.8.8.8", false)]
        {
            coverage.count(if inside { "allowed_ips inside" } else { "allowed_ips outside" });
            if permit.check_address(address.parse().unwrap()).is_ok() != inside {
                wrong.push(format!("address {address}: oracle says inside = {inside}"));
            }
        }
        wrong
    }

    /// Everything that differs about one intent.
    fn compare(
        pol: &Pol,
        own: &Engine,
        want: &Want,
        coverage: &mut Coverage,
    ) -> (Answer, Vec<String>) {
        let expected = oracle(pol, want, Quirk::None);
        let (found, permit) = engine(own, want);
        let mut wrong = Vec::new();
        // A raw connection is an allowed one.
        let as_found = if expected == Answer::Raw { Answer::Allow } else { expected };
        if as_found != found {
            wrong.push(format!("oracle {expected:?}, engine {found:?}"));
        }
        if let Some(ask) = &want.ask
            && let (Some(form), Ok(target)) = (canonical(&ask.target), Target::parse(&ask.target))
            && (form.path != target.path() || form.parameters != target.parameters())
        {
            wrong.push(format!(
                "canonical: oracle {} {:?}, engine {} {:?}",
                form.path,
                form.parameters,
                target.path(),
                target.parameters()
            ));
        }
        if let Some(permit) = &permit {
            wrong.extend(addresses(pol, want, permit, coverage));
        }
        (expected, wrong)
    }

    #[test]
    fn the_engine_decides_as_openshell_does() {
        let mut rng = Rng(SEED);
        let mut coverage = Coverage::new();
        let mut answers: BTreeMap<String, usize> = BTreeMap::new();
        let (mut pairs, mut allowed) = (0_usize, 0_usize);
        let mut unread: Vec<String> = Vec::new();
        let mut wrong: Vec<String> = Vec::new();
        for _policy in 0..POLICIES {
            let pol = policy(&mut rng);
            let text = pol.yaml();
            let parsed = match Policy::parse(&text, "generated.yaml") {
                Ok(parsed) => parsed,
                Err(error) => {
                    unread.push(format!("{text}\n{error}"));
                    continue;
                }
            };
            let own = Engine::new(parsed, HashMap::new());
            for _intent in 0..INTENTS {
                let want = want(&mut rng, &pol);
                let (answer, differences) = compare(&pol, &own, &want, &mut coverage);
                pairs += 1;
                if !matches!(answer, Answer::Deny | Answer::Refused) {
                    allowed += 1;
                }
                *answers.entry(format!("{answer:?}")).or_default() += 1;
                coverage.look(&pol, &want, answer);
                if !differences.is_empty() {
                    wrong.push(format!("{text}\n{want:#?}\n{}", differences.join("\n")));
                }
                assert!(wrong.len() < 10, "{}", wrong.join("\n\n"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
        let refused = unread.len() * 100;
        assert!(refused < POLICIES * 2, "{} unread: {}", unread.len(), unread.join("\n\n"));
        println!("{pairs} pairs, {allowed} allowed, {} unread: {answers:?}", unread.len());
        println!("{:?}\n{}", coverage.0, unread.join("\n"));
        assert!(pairs >= 20_000, "only {pairs} pairs");
        assert!(allowed * 100 >= pairs * 40, "only {allowed} of {pairs} pairs allowed");
        let missed: Vec<&&str> = coverage
            .0
            .iter()
            .filter(|(_name, count)| **count == 0)
            .map(|(name, _count)| name)
            .collect();
        assert!(missed.is_empty(), "no intent depended on {missed:?}");
    }
}
