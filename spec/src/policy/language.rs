//! The language of policies as a table: every key with its type, default, an
//! example and a mistake. The reader checks files against it, and the reference
//! and the JSON Schema are printed from it, so that none of them can drift.

/// What a value may be.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Bool,
    /// Any text; numbers are taken as they are written.
    Text,
    /// One of these words. Where the word is another, files in OpenShell's own
    /// language keep OpenShell's meaning of it.
    Word(&'static [&'static str]),
    /// A whole number within these bounds, both included.
    Integer(i64, i64),
    /// A number of bytes: a whole number, or one with KiB, MiB or GiB.
    Bytes,
    /// A time: a whole number with ms, s, m or h.
    Duration,
    /// A positive number, fractions allowed.
    Number,
    List(&'static Self),
    /// Keys of the writer's choice.
    Map(&'static Self),
    Section(&'static Section),
    /// A word, or what stands behind it.
    Or(&'static str, &'static Self),
    /// A text, or a list of texts under `any`.
    Matcher,
    /// Read by somebody else.
    Free,
}

/// Whether this version's runtime enforces a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Enforced {
    /// It does.
    Yes,
    /// The tools understand it; a container with it does not start.
    NotYet,
}

/// A map with fixed keys.
#[derive(Debug)]
pub(super) struct Section {
    /// What errors call it.
    pub(super) name: &'static str,
    /// One or two sentences.
    pub(super) about: &'static str,
    /// Where it stands, with `@` for its own text in flow style.
    pub(super) frame: &'static str,
    pub(super) fields: &'static [Field],
}

/// One key.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) key: &'static str,
    pub(super) kind: Kind,
    /// What holds without it, in words.
    pub(super) default: &'static str,
    /// Whether a running sandbox takes a change.
    pub(super) hot: bool,
    pub(super) enforced: Enforced,
    /// Whether the key must be there.
    pub(super) required: bool,
    pub(super) about: &'static str,
    /// The section's text in flow style, with this key in it.
    pub(super) example: &'static str,
    /// A value of this key that is refused.
    pub(super) wrong: &'static str,
}

impl Section {
    pub(super) fn field(&self, key: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.key == key)
    }
}

const fn key(
    key: &'static str,
    kind: Kind,
    default: &'static str,
    about: &'static str,
    example: &'static str,
    wrong: &'static str,
) -> Field {
    let (hot, enforced, required) = (false, Enforced::Yes, false);
    Field { key, kind, default, hot, enforced, required, about, example, wrong }
}

impl Field {
    /// A running sandbox takes a change of it.
    const fn hot(mut self) -> Self {
        self.hot = true;
        self
    }

    const fn later(mut self) -> Self {
        self.enforced = Enforced::NotYet;
        self
    }

    const fn required(mut self) -> Self {
        self.required = true;
        self
    }
}

use Kind::{Bool, Bytes, Duration, Free, Integer, List, Map, Matcher, Number, Or, Text, Word};

const PORT: Kind = Integer(1, 65535);
const U32: Kind = Integer(0, u32::MAX as i64);

/// A whole policy file.
pub(super) static FILE: Section = Section {
    name: "the policy",
    about: "A policy file is one YAML document with these keys. A file without `nemoclaw:` is in OpenShell's language and keeps its meaning there.",
    frame: "@",
    fields: &[
        key("version", Integer(1, 1), "required", "The version of the language. A file with `preset:` may leave it out.", "version: 1", "2"),
        key("preset", Kind::Section(&PRESET), "none", "Marks the file as a preset: rules that other policies name under `presets`.", "version: 1, preset: {name: pypi, description: Python packages}", "pypi"),
        key("filesystem_policy", Kind::Section(&FILESYSTEM), "the built-in baseline's paths", "Which paths can be read and written.", "version: 1, filesystem_policy: {read_only: [/usr, /lib, /lib64, /bin, /etc, /proc], read_write: [/sandbox, /tmp]}", "[/usr]"),
        key("landlock", Kind::Section(&LANDLOCK), "hard_requirement", "What happens where the kernel cannot enforce the paths in full.", "version: 1, landlock: {compatibility: hard_requirement}", "strict"),
        key("process", Kind::Section(&PROCESS), "the image's user, never root", "Who the sandbox's processes are.", "version: 1, process: {run_as_user: sandbox, run_as_group: sandbox}", "root"),
        key("network_policies", Map(&Kind::Section(&RULE)), "nothing may leave", "What may leave the sandbox: rules under names of your choice. A connection needs one rule that covers host, port and program; a request one that allows it and none that denies it.", "version: 1, network_policies: {web: {endpoints: [{host: api.example.com, port: 443}], binaries: [{path: /usr/bin/curl}]}}", "deny").hot(),
        key("network_middlewares", Map(&Kind::Section(&MIDDLEWARE)), "none", "OpenShell's hooks on requests. Understood, checked and printed; no middleware is run.", "version: 1, network_middlewares: {redact: {middleware: openshell/regex, endpoints: {include: ['**.example.com']}}}", "openshell/regex").hot().later(),
        key("nemoclaw", Kind::Section(&NEMOCLAW), "absent: the file is in OpenShell's language", "What OpenShell's language cannot say. Its presence makes the file one of ours: unknown words are errors, `enforcement` defaults to `enforce`, and `binaries` may be left out.", "version: 1, nemoclaw: {resources: {pids: 256}}", "512"),
    ],
};

static PRESET: Section = Section {
    name: "preset",
    about: "What a preset is called.",
    frame: "version: 1, preset: {@}",
    fields: &[
        key("name", Text, "the file's name", "Its name.", "name: pypi", "[pypi]"),
        key(
            "description",
            Text,
            "none",
            "A sentence for people.",
            "name: pypi, description: Python packages",
            "[a]",
        ),
    ],
};

static FILESYSTEM: Section = Section {
    name: "filesystem_policy",
    about: "Paths for Landlock. What a program needs to start is added. A file that names a path which does not exist in the image stops the start; the baseline's own missing paths are skipped.",
    frame: "version: 1, filesystem_policy: {@}",
    fields: &[
        key(
            "include_workdir",
            Bool,
            "false; true where the whole section is absent",
            "Makes the working directory writable where it lies in a mount, HOME, /sandbox or /tmp.",
            "include_workdir: true",
            "'yes'",
        ),
        key(
            "read_only",
            List(&Text),
            "[]",
            "Paths that can be read and executed. At most 256 paths in both lists together.",
            "read_only: [/usr, /etc]",
            "[usr]",
        ),
        key(
            "read_write",
            List(&Text),
            "[]",
            "Paths that can be written, too.",
            "read_write: [/sandbox, /tmp]",
            "[/]",
        ),
    ],
};

static LANDLOCK: Section = Section {
    name: "landlock",
    about: "How much of the file-system boundary must hold.",
    frame: "version: 1, landlock: {@}",
    fields: &[key(
        "compatibility",
        Word(&["hard_requirement", "best_effort", "strict"]),
        "hard_requirement",
        "`hard_requirement` (also `strict`) refuses a start that Landlock cannot enforce in full, `best_effort` starts and says what is lost. Any other word is an error, where OpenShell reads it as best_effort.",
        "compatibility: hard_requirement",
        "hard",
    )],
};

static PROCESS: Section = Section {
    name: "process",
    about: "Who the sandbox's processes are. Root is never among them but by `nemoclaw: {allow_root: true}`.",
    frame: "version: 1, process: {@}",
    fields: &[
        key(
            "run_as_user",
            Text,
            "the image's user; root is mapped",
            "A name of the image's passwd file, or an id from 1 to 4294967294.",
            "run_as_user: sandbox",
            "root",
        ),
        key(
            "run_as_group",
            Text,
            "the user's group",
            "A name of the image's group file, or an id from 1 to 4294967294.",
            "run_as_group: '1500'",
            "0",
        ),
    ],
};

static RULE: Section = Section {
    name: "a rule",
    about: "Which programs may reach which endpoints.",
    frame: "version: 1, network_policies: {web: {@}}",
    fields: &[
        key("name", Text, "the rule's key", "A name for people. Decisions and records use the key.", "name: web access", "[a]").hot(),
        key("endpoints", List(&Kind::Section(&ENDPOINT)), "[]", "Where the rule may reach.", "endpoints: [{host: api.example.com, port: 443}]", "api.example.com").hot(),
        key("binaries", Or("any", &List(&Kind::Section(&BINARY))), "OpenShell's files: no program; ours: any program", "The executables the rule is for, or `any`. A connection matches where every holder of its socket, or an ancestor of that process, is listed. A program named by its whole path has to be the file that was there when the container started: one that is written to, replaced or new is refused (`binary_changed`) until the container starts again (in OpenShell's files, a new one is taken as it is first seen). So is a program that a pattern names and that was written or made while the container ran (in OpenShell's files it counts). `sha256` and `trust: writable` name programs that come later.", "binaries: [{path: /usr/bin/curl}]", "curl").hot(),
    ],
};

static BINARY: Section = Section {
    name: "a binary",
    about: "An executable as the kernel reports it in /proc/PID/exe: the program that runs (`/usr/bin/node`), not the script it runs (`npm`).",
    frame: "version: 1, nemoclaw: {}, network_policies: {web: {binaries: [{@}]}}",
    fields: &[
        key("path", Text, "required", "An absolute path. With a `*` it is a pattern: `*` stays within a component, `**` spans any number, and `?`, `[a-z]`, `{a,b}` work too. Without one it is compared byte by byte. Symbolic links of the image are followed.", "path: /usr/bin/python3*", "curl").hot().required(),
        key("sha256", Text, "the file that was there at the start", "Ours: the program is a file with this digest, wherever it comes from and whenever it appears: 64 hexadecimal digits, as `sha256sum` prints them. Files of more than 512 MiB match none.", "path: /sandbox/agent, sha256: '0000000000000000000000000000000000000000000000000000000000000000'", "[a]").hot(),
        key("trust", Word(&["start", "writable"]), "start", "Ours: `start` means files that were there before anything in the sandbox ran. `writable` also means what the sandbox puts there or changes: whoever can write the path has the rule's powers.", "path: /sandbox/tools/*, trust: writable", "first").hot(),
        key("harness", Bool, "ignored", "OpenShell's legacy key, without effect.", "path: /usr/bin/node, harness: true", "'no'"),
    ],
};

static ENDPOINT: Section = Section {
    name: "an endpoint",
    about: "A host with ports, and what requests to it may do. Without `protocol` the connection is passed on untouched; with one it is inspected and every request needs a rule.",
    frame: "version: 1, nemoclaw: {}, network_policies: {web: {endpoints: [{@}], binaries: any}}",
    fields: &[
        key("host", Text, "required, unless `allowed_ips` names addresses", "A name, an address, or a name with wildcards: `*` stays within a label, a first label `**` spans one or more; `?`, `[a-z]`, `{a,b}` work in a name that has a `*`. Case does not matter.", "host: '*.example.com', port: 443", "'*.com'").hot(),
        key("port", PORT, "one of `port` and `ports` is required", "The port.", "host: api.example.com, port: 443", "70000").hot(),
        key("ports", List(&PORT), "one of `port` and `ports` is required", "Several ports.", "host: api.example.com, ports: [80, 443]", "[0]").hot(),
        key("path", Text, "every path", "Narrows an inspected endpoint to these request paths; of several endpoints on one host and port the one with the most specific path decides how a request is read.", "host: api.example.com, port: 443, path: '/v1/**', protocol: rest, access: read-only", "v1").hot().later(),
        key("protocol", Word(&["tcp", "rest", "websocket", "graphql", "json-rpc", "mcp", "sql"]), "none: the connection is passed on untouched", "What the connection carries, and thereby what rules can say about it.", "host: api.example.com, port: 443, protocol: rest, access: read-only", "http").hot().later(),
        key("tls", Word(&["skip", "terminate", "passthrough", "auto"]), "auto", "`skip` never looks inside. `auto` looks inside where `protocol` asks for it; `terminate` and `passthrough` are older words for it.", "host: api.example.com, port: 443, tls: skip", "off").hot(),
        key("enforcement", Word(&["enforce", "audit"]), "ours: enforce; OpenShell's files: audit", "`audit` lets a request that the rules refuse pass, and records that.", "host: api.example.com, port: 443, protocol: rest, enforcement: audit, access: read-only", "block").hot().later(),
        key("access", Word(&["read-only", "read-write", "full"]), "`rules` decide", "A set of rules by name. read-only: GET, HEAD, OPTIONS (GraphQL: queries). read-write: also POST, PUT, PATCH (mutations). full: everything, DELETE included.", "host: api.example.com, port: 443, protocol: rest, access: read-only", "read").hot().later(),
        key("rules", List(&Kind::Section(&ALLOW)), "`access` decides", "What requests may do. One of them must cover the request.", "host: api.example.com, port: 443, protocol: rest, rules: [{allow: {method: GET, path: '/v1/**'}}]", "[]").hot().later(),
        key("deny_rules", List(&Kind::Section(&MATCH)), "[]", "What requests may never do, whatever else allows it.", "host: api.example.com, port: 443, protocol: rest, access: read-write, deny_rules: [{method: POST, path: /admin/**}]", "[]").hot().later(),
        key("allowed_ips", List(&Text), "public addresses", "Ranges that every address of the host must lie in; opens private ones. Loopback, link-local and metadata addresses are never reachable.", "host: db.example.com, port: 5432, allowed_ips: [10.0.5.0/24]", "[127.0.0.0/8]").hot(),
        key("private", Bool, "false", "Ours: the host's addresses may be private ones.", "host: db.example.com, port: 5432, private: true", "10.0.0.0/8").hot(),
        key("allow_encoded_slash", Bool, "false", "Lets `%2F` stand in a path segment instead of refusing the request.", "host: api.example.com, port: 443, protocol: rest, access: read-only, allow_encoded_slash: true", "1").hot().later(),
        key("websocket_credential_rewrite", Bool, "false", "Replaces credential placeholders in WebSocket text messages.", "host: rt.example.com, port: 443, protocol: websocket, access: read-write, websocket_credential_rewrite: true", "on").hot().later(),
        key("request_body_credential_rewrite", Bool, "false", "Replaces credential placeholders in request bodies up to 256 KiB.", "host: api.example.com, port: 443, protocol: rest, access: read-write, request_body_credential_rewrite: true", "on").hot().later(),
        key("allow_uninspected_credentials", Bool, "false", "Lets a connection that is not inspected carry a placeholder.", "host: api.example.com, port: 443, allow_uninspected_credentials: true", "on").hot().later(),
        key("credential_signing", Word(&["sigv4", "sigv4:body", "sigv4:no_body"]), "none", "Signs requests for a cloud's API; needs `signing_service`.", "host: api.example.com, port: 443, protocol: rest, access: full, credential_signing: sigv4, signing_service: s3", "v4").hot().later(),
        key("signing_service", Text, "none", "The service to sign for.", "host: api.example.com, port: 443, protocol: rest, access: full, credential_signing: sigv4, signing_service: s3", "[s3]").hot().later(),
        key("signing_region", Text, "from the host", "The region to sign for.", "host: api.example.com, port: 443, protocol: rest, access: full, credential_signing: sigv4, signing_service: s3, signing_region: eu-west-1", "[eu]").hot().later(),
        key("credential_binding", Kind::Section(&BINDING), "by the provider's own profile", "Binds a provider's credentials to this endpoint.", "host: api.example.com, port: 443, protocol: rest, access: full, credential_binding: {provider: work-api}", "work-api").hot().later(),
        key("persisted_queries", Word(&["deny", "allow_registered"]), "deny", "GraphQL: whether a query may be named by the hash of a registered one.", "host: gql.example.com, port: 443, protocol: graphql, access: read-only, persisted_queries: allow_registered", "allow").hot().later(),
        key("graphql_persisted_queries", Map(&Kind::Section(&REGISTERED)), "{}", "GraphQL: registered queries by hash or id.", "host: gql.example.com, port: 443, protocol: graphql, access: read-only, graphql_persisted_queries: {abc123: {operation_type: query, fields: [viewer]}}", "[abc123]").hot().later(),
        key("graphql_max_body_bytes", U32, "65536", "GraphQL: the largest body read.", "host: gql.example.com, port: 443, protocol: graphql, access: read-only, graphql_max_body_bytes: 131072", "64k").hot().later(),
        key("json_rpc", Kind::Section(&JSON_RPC), "{max_body_bytes: 65536}", "Options of `protocol: json-rpc`.", "host: rpc.example.com, port: 443, protocol: json-rpc, rules: [{allow: {method: ping}}], json_rpc: {max_body_bytes: 4096}", "65536").hot().later(),
        key("mcp", Kind::Section(&MCP), "{max_body_bytes: 65536, strict_tool_names: true, allow_all_known_mcp_methods: false}", "Options of `protocol: mcp`.", "host: mcp.example.com, port: 443, protocol: mcp, mcp: {allow_all_known_mcp_methods: true}", "true").hot().later(),
    ],
};

static ALLOW: Section = Section {
    name: "an entry of rules",
    about: "One thing that requests may do.",
    frame: "version: 1, nemoclaw: {}, network_policies: {web: {endpoints: [{host: api.example.com, port: 443, protocol: rest, rules: [{@}]}], binaries: any}}",
    fields: &[key(
        "allow",
        Kind::Section(&MATCH),
        "required",
        "What it is.",
        "allow: {method: GET, path: '/v1/**'}",
        "GET",
    )
    .hot()
    .later()
    .required()],
};

static MATCH: Section = Section {
    name: "a request rule",
    about: "Which requests are meant. rest: `method`, `path`, `query`. websocket: the same, with method GET for the upgrade and WEBSOCKET_TEXT for messages, or GraphQL's keys. graphql: `operation_type`, `operation_name`, `fields`. json-rpc: `method`. mcp: `method`, `tool` or `params: {name: …}`. sql: `command`.",
    frame: "version: 1, nemoclaw: {}, network_policies: {web: {endpoints: [{host: api.example.com, port: 443, protocol: rest, rules: [{allow: {@}}]}], binaries: any}}",
    fields: &[
        key("method", Text, "required but for graphql and sql", "The HTTP method, `*` for any; GET covers HEAD too. For json-rpc and mcp the method called; mcp takes wildcards in `tools/…`.", "method: GET, path: '/**'", "[GET]").hot().later(),
        key("path", Text, "required for rest and websocket", "The request path in canonical form, without its query. `*` stays within a segment, `**` spans any number; `/x/**` covers what is below /x, not /x itself.", "method: GET, path: '/repos/*/issues'", "v1").hot().later(),
        key("query", Map(&Matcher), "any query", "Query parameters by name. To allow, every value of each must match; to deny, any value. `*` does not cross a dot.", "method: GET, path: '/search', query: {tag: 'v1.*', kind: {any: [a, b]}}", "tag").hot().later(),
        key("operation_type", Word(&["query", "mutation", "subscription", "*"]), "required for graphql", "GraphQL: the kind of operation.", "method: GET, path: /graphql", "read").hot().later(),
        key("operation_name", Text, "any name", "GraphQL: a pattern for the operation's name.", "method: GET, path: /graphql", "[a]").hot().later(),
        key("fields", List(&Text), "any field", "GraphQL: patterns for root fields. To allow, every field must match one; to deny, any field.", "method: GET, path: /graphql", "viewer").hot().later(),
        key("tool", Matcher, "any tool", "mcp: a pattern for the tool of `tools/call`.", "method: GET, path: /mcp", "[a]").hot().later(),
        key("params", Kind::Section(&PARAMS), "any parameters", "mcp: `name` means the same as `tool`.", "method: GET, path: /mcp", "search").hot().later(),
        key("command", Text, "required for sql", "sql: the command, `*` for any.", "method: GET, path: /sql", "[SELECT]").hot().later(),
    ],
};

static PARAMS: Section = Section {
    name: "params",
    about: "Parameters of an MCP call.",
    frame: "version: 1, nemoclaw: {}, network_policies: {web: {endpoints: [{host: mcp.example.com, port: 443, protocol: mcp, rules: [{allow: {method: tools/call, params: {@}}}]}], binaries: any}}",
    fields: &[key(
        "name",
        Matcher,
        "any tool",
        "A pattern for the tool's name.",
        "name: 'search_*'",
        "[a]",
    )
    .hot()
    .later()],
};

static BINDING: Section = Section {
    name: "credential_binding",
    about: "Binds credentials to an endpoint.",
    frame: "version: 1, nemoclaw: {}, network_policies: {web: {endpoints: [{host: api.example.com, port: 443, protocol: rest, access: full, credential_binding: {@}}], binaries: any}}",
    fields: &[key(
        "provider",
        Text,
        "required",
        "The provider's name.",
        "provider: work-api",
        "[a]",
    )
    .hot()
    .later()
    .required()],
};

static REGISTERED: Section = Section {
    name: "a registered query",
    about: "What a registered GraphQL query does.",
    frame: "version: 1, nemoclaw: {}, network_policies: {web: {endpoints: [{host: gql.example.com, port: 443, protocol: graphql, access: full, graphql_persisted_queries: {abc: {@}}}], binaries: any}}",
    fields: &[
        key(
            "operation_type",
            Word(&["query", "mutation", "subscription"]),
            "required",
            "Its kind.",
            "operation_type: query",
            "read",
        )
        .hot()
        .later()
        .required(),
        key(
            "operation_name",
            Text,
            "none",
            "Its name.",
            "operation_type: query, operation_name: Me",
            "[Me]",
        )
        .hot()
        .later(),
        key(
            "fields",
            List(&Text),
            "[]",
            "Its root fields.",
            "operation_type: query, fields: [viewer]",
            "viewer",
        )
        .hot()
        .later(),
    ],
};

static JSON_RPC: Section = Section {
    name: "json_rpc",
    about: "Options of `protocol: json-rpc`.",
    frame: "version: 1, nemoclaw: {}, network_policies: {web: {endpoints: [{host: rpc.example.com, port: 443, protocol: json-rpc, rules: [{allow: {method: ping}}], json_rpc: {@}}], binaries: any}}",
    fields: &[key(
        "max_body_bytes",
        U32,
        "65536",
        "The largest body read.",
        "max_body_bytes: 4096",
        "64k",
    )
    .hot()
    .later()],
};

static MCP: Section = Section {
    name: "mcp",
    about: "Options of `protocol: mcp`.",
    frame: "version: 1, nemoclaw: {}, network_policies: {web: {endpoints: [{host: mcp.example.com, port: 443, protocol: mcp, rules: [{allow: {method: initialize}}], mcp: {@}}], binaries: any}}",
    fields: &[
        key("max_body_bytes", U32, "65536", "The largest body read.", "max_body_bytes: 4096", "64k").hot().later(),
        key("strict_tool_names", Bool, "true", "Refuses calls of tools whose names are not plain.", "strict_tool_names: false", "'no'").hot().later(),
        key("allow_all_known_mcp_methods", Bool, "false", "Allows every method; `tools/call` stays with the rules that name tools, where there are any.", "allow_all_known_mcp_methods: true", "'no'").hot().later(),
    ],
};

static MIDDLEWARE: Section = Section {
    name: "a middleware",
    about: "OpenShell's hook on requests to some hosts.",
    frame: "version: 1, network_middlewares: {redact: {@}}",
    fields: &[
        key("name", Text, "the key", "A name for people.", "name: Redact, middleware: openshell/regex, endpoints: {include: ['**.example.com']}", "[a]").hot().later(),
        key("middleware", Text, "required", "Which one.", "middleware: openshell/regex, endpoints: {include: ['**.example.com']}", "[a]").hot().later().required(),
        key("order", Integer(i32::MIN as i64, i32::MAX as i64), "0", "Its place among several; no two may share one.", "middleware: openshell/regex, order: 10, endpoints: {include: ['**.example.com']}", "first").hot().later(),
        key("config", Free, "{}", "Its own options.", "middleware: openshell/regex, config: {mode: redact}, endpoints: {include: ['**.example.com']}", "").hot().later(),
        key("on_error", Word(&["fail_closed", "fail_open"]), "fail_closed", "What happens to a request when it fails.", "middleware: openshell/regex, on_error: fail_open, endpoints: {include: ['**.example.com']}", "ignore").hot().later(),
        key("endpoints", Kind::Section(&SELECTOR), "required", "The hosts it is for.", "middleware: openshell/regex, endpoints: {include: ['**.example.com']}", "all").hot().later().required(),
    ],
};

static SELECTOR: Section = Section {
    name: "a middleware's endpoints",
    about: "Hosts by pattern.",
    frame: "version: 1, network_middlewares: {redact: {middleware: openshell/regex, endpoints: {@}}}",
    fields: &[
        key(
            "include",
            List(&Text),
            "required",
            "Hosts it is for, at most 32 patterns.",
            "include: ['**.example.com']",
            "[]",
        )
        .hot()
        .later()
        .required(),
        key(
            "exclude",
            List(&Text),
            "[]",
            "Hosts it is not for, at most 32 patterns.",
            "include: ['**.example.com'], exclude: [mtls.example.com]",
            "mtls",
        )
        .hot()
        .later(),
    ],
};

static NEMOCLAW: Section = Section {
    name: "nemoclaw",
    about: "What OpenShell's language cannot say.",
    frame: "version: 1, nemoclaw: {@}",
    fields: &[
        key(
            "extends",
            List(&Text),
            "[]",
            "Policies this one starts from: names of /etc/nemoclaw/policies. Their rules are added to this file's; of everything else the last one that says it counts, this file last.",
            "extends: []",
            "base",
        ),
        key(
            "presets",
            List(&Text),
            "[]",
            "Sets of rules by name, built in or of /etc/nemoclaw/presets.",
            "presets: [pypi]",
            "[nosuch]",
        )
        .hot(),
        key(
            "posture",
            Word(&["locked-down", "development", "integration-testing"]),
            "none",
            "A built-in policy to start from.",
            "posture: locked-down",
            "relaxed",
        ),
        key(
            "tier",
            Word(&["restricted", "balanced", "open"]),
            "none",
            "A built-in choice of presets.",
            "tier: restricted",
            "closed",
        )
        .hot(),
        key(
            "allow_root",
            Bool,
            "false",
            "Lets containers run as root where the image or the engine asks for it.",
            "allow_root: true",
            "'yes'",
        ),
        key(
            "resources",
            Kind::Section(&RESOURCES),
            "{pids: 512, open_files: 65536}",
            "Limits on the whole sandbox.",
            "resources: {pids: 256}",
            "512",
        ),
        key(
            "capabilities",
            Kind::Section(&CAPABILITIES),
            "{keep: [], excess: refuse}",
            "Linux capabilities; none by default.",
            "capabilities: {excess: strip}",
            "[CHOWN]",
        ),
        key(
            "seccomp",
            Kind::Section(&SECCOMP),
            "{allow: []}",
            "Exceptions from our system call filter, never from the engine's.",
            "seccomp: {allow: [ptrace]}",
            "unconfined",
        ),
        key(
            "environment",
            Kind::Section(&ENVIRONMENT),
            "{keep: []}",
            "Variables that could inject code are removed, but for these.",
            "environment: {keep: [NODE_OPTIONS]}",
            "[A]",
        ),
        key(
            "toolchain",
            Word(&["masked", "visible"]),
            "masked",
            "Whether compilers, make and the netcat family can be seen.",
            "toolchain: visible",
            "hidden",
        ),
        key(
            "exec",
            Word(&["any", "system-only"]),
            "any",
            "`system-only` runs programs of read-only paths only.",
            "exec: system-only",
            "none",
        ),
        key(
            "isolate_exec",
            Bool,
            "false",
            "Keeps processes of `exec` from signalling those of the container.",
            "isolate_exec: true",
            "'yes'",
        ),
        key(
            "userns",
            Word(&["none", "auto"]),
            "none",
            "`auto` maps every sandbox to ids of its own.",
            "userns: auto",
            "host",
        )
        .later(),
        key(
            "sockets",
            List(&Text),
            "[]",
            "Sockets that may be mounted although they lead out of the sandbox.",
            "sockets: [/run/app.sock]",
            "[app.sock]",
        ),
        key(
            "devices",
            List(&Text),
            "[]",
            "Devices of the host beyond the standard set that the engine may pass in. They keep owner and mode: the container's user needs access.",
            "devices: [/dev/kvm]",
            "[kvm]",
        ),
        key(
            "ingress",
            List(&Kind::Section(&INGRESS)),
            "TCP from anywhere: published ports and neighbours",
            "What may connect in. Where the key is present, only this: ports published with `docker run -p 8080:80` need an entry for port 80.",
            "ingress: [{port: 8080, from: [10.0.0.0/8]}]",
            "8080",
        ),
        key(
            "connections",
            Kind::Section(&CONNECTIONS),
            "{idle: 24h, per_program: 1024, total: 4096, wildcard_bits: 200, wildcard_names: 1000}",
            "Bounds on connections out of the sandbox, and on what names may carry out.",
            "connections: {idle: 30m}",
            "many",
        ),
        key(
            "upstream_proxy",
            Kind::Section(&UPSTREAM_PROXY),
            "none: connections go out directly",
            "An HTTP proxy of yours through which permitted connections leave, by CONNECT. It resolves the names; rules with `allowed_ips` or `private`, names without a dot and private addresses go out directly.",
            "upstream_proxy: {url: 'http://proxy.example.com:3128'}",
            "http://proxy.example.com:3128",
        ),
        key(
            "host_services",
            List(&Kind::Section(&HOST_SERVICE)),
            "[]",
            "Services on the host's own addresses, by a name that works in the sandbox.",
            "host_services: [{name: ollama, port: 11434}]",
            "11434",
        )
        .hot()
        .later(),
        key(
            "approvals",
            Kind::Section(&APPROVALS),
            "{mode: refuse}",
            "What happens to a request that no rule covers.",
            "approvals: {mode: refuse}",
            "hold",
        )
        .hot(),
        key(
            "inference",
            Kind::Section(&INFERENCE),
            "none",
            "Where https://inference.local leads.",
            "inference: {provider: nvidia}",
            "nvidia",
        )
        .hot()
        .later(),
        key(
            "credentials",
            Map(&Kind::Section(&CREDENTIAL)),
            "{}",
            "Keys that stay on the host, by the variable that holds a placeholder in the sandbox.",
            "credentials: {API_KEY: {file: /etc/nemoclaw/keys/api, hosts: [api.example.com]}}",
            "[A]",
        )
        .hot()
        .later(),
        key(
            "secrets",
            Kind::Section(&SECRETS),
            "{action: report}",
            "Watches files for keys and tokens.",
            "secrets: {watch: [/sandbox/memory], action: quarantine}",
            "on",
        )
        .hot()
        .later(),
        key(
            "shields",
            Kind::Section(&SHIELDS),
            "none",
            "Directories that `nemoclaw shields` locks and unlocks while the sandbox runs. They must exist at the start, be writable, and be reached by no symbolic link.",
            "shields: {paths: [/sandbox/.config], state: up}",
            "up",
        ),
        key(
            "images",
            Kind::Section(&IMAGES),
            "any image",
            "Images by digest.",
            "images: {digests: ['sha256:0000000000000000000000000000000000000000000000000000000000000000']}",
            "[a]",
        ),
        key(
            "integrity",
            List(&Kind::Section(&INTEGRITY)),
            "[]",
            "Files whose content must be this at the start.",
            "integrity: [{path: /app/config.json, sha256: '0000000000000000000000000000000000000000000000000000000000000000'}]",
            "[a]",
        ),
        key(
            "assertions",
            List(&Kind::Section(&ASSERTION)),
            "[]",
            "Values that configuration files must hold at the start.",
            "assertions: [{file: /sandbox/app.json, path: gateway.auth, equals: 'on'}]",
            "[a]",
        ),
        key(
            "tool_files",
            Word(&["watch", "read-only", "off"]),
            "watch",
            "Files at the top of each directory that is mounted writable (at most eight) that the person's own tools run later: .git/hooks, .git/config, .git/config.worktree, .git/info/attributes, a file .git, .gitmodules, .husky, .pre-commit-config.yaml, .envrc, .vscode, .idea, .zed, .exrc, .nvim.lua, .vimrc, .dir-locals.el, .gdbinit, .lldbinit, .mcp.json, .cursor, .claude, .codex, .gemini, .continue, .aider.conf.yml, .yarnrc.yml, .npmrc. `watch` records changes as findings; `read-only` keeps those there are as they are too (`git config` then fails inside), and refuses links and second names.",
            "tool_files: read-only",
            "locked",
        ),
        key(
            "groups",
            List(&Text),
            "[]",
            "Supplementary groups, by name or id, that processes keep of those the image or the engine gives; all others are cleared.",
            "groups: [video]",
            "video",
        ),
        key(
            "private_modes",
            List(&Text),
            "[]",
            "Files and directories that are kept at modes 600 and 700: at the start, and when they appear or change later. `*` stands for one name.",
            "private_modes: [/sandbox/.config]",
            "[config]",
        ),
        key(
            "checks",
            Kind::Section(&CHECKS),
            "{uninspected_http: advice}",
            "How strict the policy is with itself.",
            "checks: {uninspected_http: error}",
            "strict",
        ),
    ],
};

static RESOURCES: Section = Section {
    name: "resources",
    about: "Limits on the whole sandbox.",
    frame: "version: 1, nemoclaw: {resources: {@}}",
    fields: &[
        key(
            "pids",
            Integer(0, 4_194_304),
            "512",
            "The greatest number of processes; 0 for no limit.",
            "pids: 256",
            "-1",
        ),
        key(
            "pids_max",
            Integer(1, 4_194_304),
            "`pids`",
            "How far the engine may raise `pids` (`docker run --pids-limit`).",
            "pids_max: 1024",
            "0",
        ),
        key(
            "open_files",
            Integer(64, 1_048_576),
            "65536",
            "The greatest number of open files of a process (RLIMIT_NOFILE).",
            "open_files: 4096",
            "1",
        ),
        key(
            "memory",
            Bytes,
            "the engine's",
            "The greatest amount of memory; the engine may give less.",
            "memory: 4GiB",
            "lots",
        ),
        key(
            "cpus",
            Number,
            "the engine's",
            "The greatest share of processors; the engine may give less.",
            "cpus: 1.5",
            "many",
        ),
        key(
            "tmp",
            Bytes,
            "the image's /tmp",
            "Size of a /tmp in memory, where the engine mounts nothing there; it counts against the memory limit.",
            "tmp: 1GiB",
            "big",
        ),
    ],
};

static UPSTREAM_PROXY: Section = Section {
    name: "upstream_proxy",
    about: "A proxy between this host and the Internet. Connections that it refuses are recorded as `upstream_unreachable`.",
    frame: "version: 1, nemoclaw: {upstream_proxy: {@}}",
    fields: &[
        key(
            "url",
            Text,
            "required",
            "Where it is: plain HTTP, a host or an address, and a port.",
            "url: 'http://192.0.2.7:3128'",
            "'https://proxy.example.com:3128'",
        )
        .required(),
        key(
            "no_proxy",
            List(&Text),
            "[]",
            "Domains (with everything below them), addresses and ranges that go out directly.",
            "url: 'http://192.0.2.7:3128', no_proxy: [corp.example, 198.51.100.0/24]",
            "corp.example",
        ),
    ],
};

static CONNECTIONS: Section = Section {
    name: "connections",
    about: "Bounds on connections out of the sandbox, and on what names may carry out. What ends by them is reset, and its record says `idle`, `lifetime`, `connection_budget` or `name_budget`.",
    frame: "version: 1, nemoclaw: {connections: {@}}",
    fields: &[
        key(
            "idle",
            Duration,
            "24h",
            "How long a connection may carry nothing in either direction.",
            "idle: 30m",
            "never",
        ),
        key(
            "per_program",
            Integer(1, 4096),
            "1024",
            "How many connections one program may have at once; others keep theirs.",
            "per_program: 64",
            "0",
        ),
        key(
            "total",
            Integer(1, 4096),
            "4096",
            "How many connections there may be at once. Further ones wait.",
            "total: 256",
            "0",
        ),
        key(
            "lifetime",
            Duration,
            "no limit",
            "How long a connection may last, whatever it carries.",
            "lifetime: 8h",
            "never",
        ),
        key(
            "wildcard_bits",
            Integer(0, 1024),
            "200",
            "How many bits one label of a name may carry that only a wildcard admits, by the frequency of its characters; the whole name half as many again. 40 hexadecimal digits have 160, 52 random letters and digits 220. A rule that spells the name out admits it whatever it carries.",
            "wildcard_bits: 120",
            "few",
        ),
        key(
            "wildcard_names",
            Integer(0, 100_000),
            "1000",
            "How many different names that only a wildcard admits may be resolved while the sandbox runs.",
            "wildcard_names: 50",
            "few",
        ),
    ],
};

static CAPABILITIES: Section = Section {
    name: "capabilities",
    about: "Linux capabilities (capabilities(7)); none by default, in any set.",
    frame: "version: 1, nemoclaw: {capabilities: {@}}",
    fields: &[
        key(
            "keep",
            List(&Text),
            "[]",
            "Capabilities the container may keep of those the engine gives.",
            "keep: [CHOWN]",
            "[SYS_ADMIN]",
        ),
        key(
            "profile",
            Word(&["none", "step-down"]),
            "none",
            "`step-down` lets an entry point start as root with SETUID, SETGID, CHOWN, FOWNER and KILL, to drop to another user.",
            "profile: step-down",
            "root",
        ),
        key(
            "identities",
            List(&Text),
            "[]",
            "`step-down`: users of the image, by name or id, that the entry point may become besides the container's own user; other user ids and primary groups are refused. Supplementary groups cannot be refused: `verify` reports those the policy does not name.",
            "identities: [gateway]",
            "gateway",
        ),
        key(
            "excess",
            Word(&["refuse", "strip"]),
            "refuse",
            "What to do where the engine gives more than its default set.",
            "excess: strip",
            "keep",
        ),
    ],
};

static SECCOMP: Section = Section {
    name: "seccomp",
    about: "Exceptions from our system call filter.",
    frame: "version: 1, nemoclaw: {seccomp: {@}}",
    fields: &[key(
        "allow",
        List(&Word(&["ptrace", "userns", "perf", "io_uring", "memfd_exec"])),
        "[]",
        "What to allow: `ptrace` for debuggers, `userns` for programs with sandboxes of their own, `perf`, `memfd_exec`, and `io_uring`, whose rings open sockets of every family, AF_VSOCK too, past filter and network rules.",
        "allow: [ptrace]",
        "[mount]",
    )],
};

static ENVIRONMENT: Section = Section {
    name: "environment",
    about: "The variables of the container's processes.",
    frame: "version: 1, nemoclaw: {environment: {@}}",
    fields: &[key(
        "keep",
        List(&Text),
        "[]",
        "Variables kept although they can inject code.",
        "keep: [NODE_OPTIONS]",
        "NODE_OPTIONS",
    )],
};

static INGRESS: Section = Section {
    name: "an entry of ingress",
    about: "What may connect in.",
    frame: "version: 1, nemoclaw: {ingress: [{@}]}",
    fields: &[
        key("port", PORT, "required", "The port in the container.", "port: 8080", "http")
            .required(),
        key(
            "protocol",
            Word(&["tcp", "udp"]),
            "tcp",
            "The protocol.",
            "port: 53, protocol: udp",
            "icmp",
        ),
        key(
            "from",
            List(&Text),
            "anywhere",
            "Ranges it may come from.",
            "port: 8080, from: [192.0.2.0/24]",
            "[lan]",
        ),
    ],
};

static HOST_SERVICE: Section = Section {
    name: "a host service",
    about: "A service on the host's own addresses.",
    frame: "version: 1, nemoclaw: {host_services: [{@}]}",
    fields: &[
        key(
            "name",
            Text,
            "required",
            "The name that leads to it.",
            "name: ollama, port: 11434",
            "[a]",
        )
        .hot()
        .later()
        .required(),
        key("port", PORT, "required", "Its port.", "name: ollama, port: 11434", "0")
            .hot()
            .later()
            .required(),
        key(
            "address",
            Text,
            "127.0.0.1",
            "Its address on the host.",
            "name: ollama, port: 11434, address: 192.0.2.1",
            "host",
        )
        .hot()
        .later(),
    ],
};

static APPROVALS: Section = Section {
    name: "approvals",
    about: "What happens to a request that no rule covers.",
    frame: "version: 1, nemoclaw: {approvals: {@}}",
    fields: &[
        key("mode", Word(&["refuse", "hold", "off"]), "refuse", "`refuse` refuses at once and offers it to the operator, `hold` waits for the operator, `off` only refuses.", "mode: refuse", "ask").hot(),
        key("hold", Duration, "30s", "How long `hold` waits.", "mode: hold, hold: 10s", "soon").hot().later(),
    ],
};

static INFERENCE: Section = Section {
    name: "inference",
    about: "Where https://inference.local leads.",
    frame: "version: 1, nemoclaw: {inference: {@}}",
    fields: &[
        key(
            "provider",
            Word(&["nvidia", "openai", "anthropic", "gemini", "ollama", "vllm", "custom"]),
            "required",
            "Who serves it.",
            "provider: ollama",
            "nobody",
        )
        .hot()
        .later()
        .required(),
        key(
            "model",
            Text,
            "the client's choice",
            "The model that requests get.",
            "provider: ollama, model: small",
            "[a]",
        )
        .hot()
        .later(),
        key(
            "url",
            Text,
            "the provider's own",
            "Where the provider is.",
            "provider: custom, url: 'https://llm.example.com/v1'",
            "[a]",
        )
        .hot()
        .later(),
        key(
            "credential",
            Text,
            "none",
            "The entry of `credentials` whose key it gets.",
            "provider: openai, credential: API_KEY",
            "[a]",
        )
        .hot()
        .later(),
        key(
            "data",
            Word(&["any", "local"]),
            "any",
            "`local` takes providers on this host only.",
            "provider: ollama, data: local",
            "cloud",
        )
        .hot()
        .later(),
        key(
            "allow_direct",
            Bool,
            "false",
            "Silences the advice about provider hosts that rules list directly.",
            "provider: nvidia, allow_direct: true",
            "'yes'",
        )
        .hot()
        .later(),
    ],
};

static CREDENTIAL: Section = Section {
    name: "a credential",
    about: "A key that stays on the host.",
    frame: "version: 1, nemoclaw: {credentials: {API_KEY: {@}}}",
    fields: &[
        key(
            "file",
            Text,
            "one of `file` and `command` is required",
            "A file of root's that holds it.",
            "file: /etc/nemoclaw/keys/api, hosts: [api.example.com]",
            "keys/api",
        )
        .hot()
        .later(),
        key(
            "command",
            List(&Text),
            "one of `file` and `command` is required",
            "A command that prints it.",
            "command: [/usr/local/bin/key], hosts: [api.example.com]",
            "key",
        )
        .hot()
        .later(),
        key(
            "hosts",
            List(&Text),
            "required",
            "The hosts that may get it.",
            "file: /etc/nemoclaw/keys/api, hosts: [api.example.com]",
            "[]",
        )
        .hot()
        .later()
        .required(),
        key(
            "header",
            Text,
            "authorization",
            "The header it may stand in.",
            "file: /etc/nemoclaw/keys/api, hosts: [api.example.com], header: x-api-key",
            "[a]",
        )
        .hot()
        .later(),
    ],
};

static SECRETS: Section = Section {
    name: "secrets",
    about: "Watches files for keys and tokens.",
    frame: "version: 1, nemoclaw: {secrets: {@}}",
    fields: &[
        key(
            "watch",
            List(&Text),
            "[]",
            "Directories to watch.",
            "watch: [/sandbox/memory]",
            "[memory]",
        )
        .hot()
        .later(),
        key(
            "action",
            Word(&["report", "scrub", "quarantine"]),
            "report",
            "What to do with a file that holds one.",
            "watch: [/sandbox/memory], action: scrub",
            "delete",
        )
        .hot()
        .later(),
    ],
};

static SHIELDS: Section = Section {
    name: "shields",
    about: "Directories that can be locked while the sandbox runs.",
    frame: "version: 1, nemoclaw: {shields: {@}}",
    fields: &[
        key(
            "paths",
            List(&Text),
            "[]",
            "The directories.",
            "paths: [/sandbox/.config]",
            "[config]",
        ),
        key(
            "state",
            Word(&["up", "down"]),
            "down",
            "Whether they start locked.",
            "paths: [/sandbox/.config], state: up",
            "on",
        ),
    ],
};

static IMAGES: Section = Section {
    name: "images",
    about: "Images by digest.",
    frame: "version: 1, nemoclaw: {images: {@}}",
    fields: &[
        key(
            "digests",
            List(&Text),
            "[]",
            "Digests that may run.",
            "digests: ['sha256:0000000000000000000000000000000000000000000000000000000000000000']",
            "[latest]",
        ),
        key(
            "unknown",
            Word(&["warn", "refuse"]),
            "warn",
            "What to do where the engine does not tell the digest.",
            "unknown: refuse",
            "run",
        ),
        key(
            "docker_socket",
            Text,
            "none",
            "Docker's socket on the host, which is asked for the image's digest: Docker does not tell it otherwise.",
            "digests: [], docker_socket: /run/docker.sock",
            "[a]",
        ),
        key(
            "cri",
            Bool,
            "false",
            "Takes the digest from the annotations that containerd's CRI writes. Only where no other engine starts containers with this policy: Docker and podman let callers write them.",
            "digests: [], cri: true",
            "'yes'",
        ),
    ],
};

static INTEGRITY: Section = Section {
    name: "an entry of integrity",
    about: "A file whose content must be this at the start.",
    frame: "version: 1, nemoclaw: {integrity: [{@}]}",
    fields: &[
        key("path", Text, "required", "The file.", "path: /app/a, sha256: '0000000000000000000000000000000000000000000000000000000000000000'", "a").required(),
        key("sha256", Text, "required", "Its digest, 64 hexadecimal digits.", "path: /app/a, sha256: '0000000000000000000000000000000000000000000000000000000000000000'", "abc").required(),
    ],
};

static ASSERTION: Section = Section {
    name: "an assertion",
    about: "A value that a configuration file must hold at the start.",
    frame: "version: 1, nemoclaw: {assertions: [{@}]}",
    fields: &[
        key(
            "file",
            Text,
            "required",
            "The JSON file.",
            "file: /sandbox/app.json, path: a.b, equals: true",
            "app.json",
        )
        .required(),
        key(
            "path",
            Text,
            "required",
            "The value's keys, with dots between them.",
            "file: /sandbox/app.json, path: a.b, equals: true",
            "[a]",
        )
        .required(),
        key(
            "equals",
            Free,
            "one of `equals` and `within` is required",
            "What it must be.",
            "file: /sandbox/app.json, path: a.b, equals: true",
            "",
        ),
        key(
            "within",
            List(&Free),
            "one of `equals` and `within` is required",
            "What it may be: the value, or every entry of a list, must be one of these.",
            "file: /sandbox/app.json, path: a.b, within: [webchat]",
            "webchat",
        ),
        key(
            "optional",
            Bool,
            "false",
            "Whether the file may be missing.",
            "file: /sandbox/app.json, path: a.b, equals: true, optional: true",
            "'yes'",
        ),
        key(
            "when",
            Word(&["always", "ingress"]),
            "always",
            "`ingress` asks only where something beyond loopback may connect in.",
            "file: /sandbox/app.json, path: a.b, equals: true, when: ingress",
            "never",
        ),
        key(
            "otherwise",
            Word(&["warn", "refuse"]),
            "refuse",
            "What happens where it is not.",
            "file: /sandbox/app.json, path: a.b, equals: true, otherwise: warn",
            "ignore",
        ),
    ],
};

static CHECKS: Section = Section {
    name: "checks",
    about: "How strict the policy is with itself.",
    frame: "version: 1, nemoclaw: {checks: {@}}",
    fields: &[
        key(
            "uninspected_http",
            Word(&["advice", "error"]),
            "advice",
            "How to treat endpoints on HTTP's ports or hosts that have no `protocol: rest` with rules of their own.",
            "uninspected_http: error",
            "ignore",
        ),
        key(
            "unused_rules",
            Word(&["silent", "report"]),
            "silent",
            "Whether rules that no connection used are reported when the sandbox ends.",
            "unused_rules: report",
            "fail",
        )
        .later(),
    ],
};
