//! The `policy` and `presets` verbs.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, anyhow, bail};
use clap::{Args, Subcommand};
use nemoclaw_spec::decide::diff::diff;
use nemoclaw_spec::decide::explain::explain;
use nemoclaw_spec::decide::{
    Caller, Decision, Destination, Engine, Intent, Process, Reason, remedy,
};
use nemoclaw_spec::http::{Content, GraphQl, JsonRpc, Method, Operation, Request, Target};
use nemoclaw_spec::name::Host;
use nemoclaw_spec::policy::{
    Diagnostic, InvalidPolicy, Library, Policy, Severity, lint::lint as advise, preset,
    print as out, reference,
};
use serde_json::json;

/// Exit code of a refusal.
const REFUSED: u8 = 3;
/// Longest policy file read, in bytes, with room for the parser to say so.
const MAX_BYTES: u64 = 16 * 1024 * 1024;
/// Where the operator's policies and presets live.
const CONFIG: &str = "/etc/nemoclaw";

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Decide as the proxy would: exit 0 for allow and inspect, 3 for deny
    Test(Box<Question>),
    /// Say why, and the smallest change that would turn the decision
    Explain(Box<Question>),
    /// Check policies: exit 0 when containers can start with every one, else 1
    Lint {
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Policies: files or names
        #[arg(required = true, value_name = "POLICY")]
        policies: Vec<String>,
    },
    /// Say what the second policy newly allows (+) and newly denies (-)
    Diff {
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// The policy before
        before: String,
        /// The policy after
        after: String,
    },
    /// Print a policy
    Show {
        /// With everything it extends, and where each rule comes from
        #[arg(long)]
        effective: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// The confinement plan of a running container instead (not its rules): its id, or
        /// the beginning of it
        #[arg(long, value_name = "ID", conflicts_with = "policy")]
        container: Option<String>,
        /// A file or name; the built-in baseline without
        #[arg(default_value = "baseline")]
        policy: String,
    },
    /// Print a policy in OpenShell's language
    Export {
        /// The only other language there is
        #[arg(long, required = true)]
        openshell: bool,
        /// A file or name
        policy: String,
        /// Print JSON: the text, and what the language cannot say
        #[arg(long)]
        json: bool,
    },
    /// Print the JSON Schema of policy files, for editors
    Schema {
        /// The schema is JSON anyway
        #[arg(long)]
        json: bool,
    },
    /// Print the reference of the policy language
    Reference,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PresetVerb {
    /// List the built-in presets, postures and tiers, and the operator's presets
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print one
    Show {
        /// Its name
        name: String,
    },
}

/// What to decide.
#[derive(Debug, Args)]
pub(crate) struct Question {
    /// Policy: a file, a name in /etc/nemoclaw/policies, or a built-in name
    #[arg(long, value_name = "POLICY")]
    policy: String,
    /// Executable of the program, as /proc/PID/exe names it
    #[arg(long, value_name = "PATH")]
    binary: String,
    /// Executable of an ancestor, nearest first
    #[arg(long, value_name = "PATH")]
    ancestor: Vec<String>,
    /// Host name or address
    #[arg(long)]
    host: String,
    /// Port
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// HTTP method of a request; GET where only --path is given
    #[arg(long)]
    method: Option<String>,
    /// HTTP path of a request, with its query
    #[arg(long)]
    path: Option<String>,
    /// GraphQL operation: TYPE[:NAME[:FIELD,FIELD...]]
    #[arg(long, conflicts_with = "rpc")]
    graphql: Option<String>,
    /// JSON-RPC or MCP method
    #[arg(long)]
    rpc: Option<String>,
    /// MCP tool, with --rpc tools/call
    #[arg(long, requires = "rpc")]
    tool: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs one of the `policy` verbs.
pub(crate) fn run(verb: &Verb) -> Result<ExitCode> {
    match verb {
        Verb::Test(question) => test(question),
        Verb::Explain(question) => explained(question),
        Verb::Lint { json, policies } => lint(policies, *json),
        Verb::Diff { json, before, after } => compare(before, after, *json),
        Verb::Show { container: Some(id), .. } => show_plan(id),
        Verb::Show { effective, json, policy, container: None } => show(policy, *effective, *json),
        Verb::Export { policy, json, .. } => export(policy, *json),
        Verb::Schema { .. } => done(&serde_json::to_string_pretty(&reference::schema())?),
        Verb::Reference => done(reference::markdown().trim_end()),
    }
}

/// Runs one of the `presets` verbs.
pub(crate) fn presets(verb: &PresetVerb) -> Result<ExitCode> {
    match verb {
        PresetVerb::Ls { json } => list_presets(*json),
        PresetVerb::Show { name } => {
            let built_in = preset::preset(name)
                .or_else(|| preset::posture(name))
                .or_else(|| preset::tier(name))
                .map(str::to_owned);
            let text = built_in.or_else(|| Operator.preset(name).map(|(text, _)| text));
            let text = text.with_context(|| {
                format!("there is no preset `{}`; see: nemoclaw presets ls", name.escape_debug())
            })?;
            done(text.trim_end())
        }
    }
}

fn list_presets(json: bool) -> Result<ExitCode> {
    let built_in = [
        ("preset", preset::PRESETS.as_slice()),
        ("posture", preset::POSTURES.as_slice()),
        ("tier", preset::TIERS.as_slice()),
    ];
    let mut rows = Vec::new();
    for (kind, table) in built_in {
        for (name, text) in table {
            rows.push((kind, (*name).to_owned(), "built in".to_owned(), description(text)));
        }
    }
    let directory = Path::new(CONFIG).join("presets");
    for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        if let (Some(name), Some("yaml")) = (name, path.extension().and_then(|e| e.to_str())) {
            let text = fs::read_to_string(&path).unwrap_or_default();
            rows.push(("preset", name, path.display().to_string(), description(&text)));
        }
    }
    if json {
        let rows: Vec<_> = rows
            .iter()
            .map(|(kind, name, place, about)| {
                json!({ "kind": kind, "name": name, "place": place, "description": about })
            })
            .collect();
        return done(&serde_json::to_string(&rows)?);
    }
    for (kind, name, place, about) in rows {
        print(&format!("{kind:8} {name:20} {place:10} {}", about.escape_debug()))?;
    }
    print("")?;
    print("Presets inspect requests, which this version's runtime does not do yet: the tools")?;
    print("understand them, and a container whose policy names one does not start.")?;
    Ok(ExitCode::SUCCESS)
}

/// The sentence that a preset says about itself, or its first comment.
fn description(text: &str) -> String {
    let said = text.lines().find_map(|line| {
        let (_, after) = line.split_once("description:")?;
        Some(after.trim().trim_end_matches('}').trim().trim_matches(['"', '\'']).to_owned())
    });
    said.or_else(|| text.lines().next()?.strip_prefix('#').map(|comment| comment.trim().to_owned()))
        .unwrap_or_default()
}

impl Question {
    fn intent(&self, policy: &Policy) -> Result<(Intent, Caller)> {
        let destination = match self.host.parse::<IpAddr>() {
            Ok(address) => Destination::Address { address, names: Vec::new() },
            Err(_) => Destination::Host(
                Host::parse(&self.host)
                    .map_err(|why| anyhow!("`{}` is no host: {why}", self.host.escape_debug()))?,
            ),
        };
        for path in std::iter::once(&self.binary).chain(&self.ancestor) {
            if !path.starts_with('/') {
                bail!(
                    "`{}` is no absolute path; give the program as `readlink /proc/PID/exe` prints it",
                    path.escape_debug()
                );
            }
        }
        let caller = Caller {
            holders: vec![
                Process::new(self.binary.clone(), self.ancestor.clone()).as_meant_by([policy]),
            ],
        };
        let mut intent = Intent::connect(destination, self.port);
        intent.request = self.request()?;
        Ok((intent, caller))
    }

    fn request(&self) -> Result<Option<Request>> {
        let body = self.graphql.is_some() || self.rpc.is_some();
        if self.method.is_none() && self.path.is_none() && !body {
            return Ok(None);
        }
        let method = self.method.as_deref().unwrap_or(if body { "POST" } else { "GET" });
        let method = Method::parse(method)
            .map_err(|why| anyhow!("`{}` is no method: {why}", method.escape_debug()))?;
        let path = self.path.as_deref().unwrap_or("/");
        let target = Target::parse(path)
            .map_err(|why| anyhow!("`{}` is no path: {why}", path.escape_debug()))?;
        let content = match (&self.graphql, &self.rpc) {
            (Some(text), _) => Content::GraphQl(graphql(text)),
            (None, Some(method)) => Content::JsonRpc(JsonRpc {
                method: method.clone(),
                tool: self.tool.clone(),
                ..JsonRpc::default()
            }),
            (None, None) => Content::Opaque,
        };
        Ok(Some(Request { method, target, content }))
    }
}

fn graphql(text: &str) -> GraphQl {
    let mut parts = text.splitn(3, ':').map(str::to_owned);
    let operation = Operation {
        kind: parts.next().unwrap_or_default(),
        name: parts.next().unwrap_or_default(),
        fields: parts
            .next()
            .map(|fields| fields.split(',').map(str::to_owned).collect())
            .unwrap_or_default(),
        persisted: None,
    };
    GraphQl { operations: vec![operation], malformed: false }
}

/// Decides with the proxy's own function.
fn test(question: &Question) -> Result<ExitCode> {
    let engine = engine(&question.policy)?;
    let (intent, caller) = question.intent(engine.policy())?;
    let decision = engine.decide(&intent, &caller);
    let (word, rule, denial) = match &decision {
        Decision::Allow(permit) => ("allow", Some(permit.rule()), permit.audited()),
        Decision::Inspect(inspect) => ("inspect", Some(&inspect.rule), None),
        Decision::Deny(denial) => ("deny", denial.nearest.as_ref(), Some(denial)),
    };
    let reason = denial.map(|denial| denial.reason);
    let allow_with = match &decision {
        Decision::Deny(denial) => remedy(Some(engine.policy()), &intent, &caller, denial.reason),
        _ => None,
    };
    let unenforced = engine.policy().unenforced.0.first().map(ToString::to_string);
    let addresses = match &decision {
        Decision::Allow(permit) => Some(permit.addresses()),
        _ => None,
    };
    if question.json {
        print(
            &json!({
                "decision": word,
                "addresses": addresses,
                "rule": rule.map(ToString::to_string),
                "reason": reason.map(Reason::code),
                "detail": reason.map(Reason::sentence),
                "allow_with": allow_with,
                "unenforced": unenforced,
            })
            .to_string(),
        )?;
    } else {
        print(&format!(
            "{word}: {}",
            rule.map_or_else(|| "no rule".to_owned(), ToString::to_string)
        ))?;
        if let Some(addresses) = addresses {
            print(&format!("  if every address of the host is {addresses}"))?;
        }
        for digest in engine.policy().digests_of(&question.binary) {
            print(&format!("  if the program's SHA-256 digest is {digest}"))?;
        }
        match (word, reason) {
            ("allow", Some(reason)) => {
                print(&format!("  only audited: {} ({})", reason.sentence(), reason.code()))?;
            }
            (_, Some(reason)) => {
                print(&format!("  because {} ({})", reason.sentence(), reason.code()))?;
            }
            ("inspect", None) => {
                print("  every request is decided on its own: ask with --method and --path")?;
            }
            _ => {}
        }
        if reason == Some(Reason::BinaryNotAllowed) {
            print("  symbolic links that a policy names are followed in the image, not here")?;
        }
        if let Some(yaml) = allow_with {
            print(&format!("  to allow it, add under network_policies: {yaml}"))?;
        }
        if let Some(finding) = unenforced {
            print(&format!("  containers with this policy do not start yet: {finding}"))?;
        }
    }
    Ok(if word == "deny" { ExitCode::from(REFUSED) } else { ExitCode::SUCCESS })
}

fn explained(question: &Question) -> Result<ExitCode> {
    let engine = engine(&question.policy)?;
    let (intent, caller) = question.intent(engine.policy())?;
    let told = explain(&engine, &intent, &caller);
    if question.json {
        print(&serde_json::to_string(&told)?)?;
    } else {
        print(&format!("{}: {}", told.decision, told.rule.as_deref().unwrap_or("no rule")))?;
        if let (Some(detail), Some(code)) = (told.detail, told.reason) {
            print(&format!("  because {detail} ({code})"))?;
        }
        if let Some(code) = told.audited {
            print(&format!("  only audited: would be refused as {code}"))?;
        }
        for own in &told.considered {
            let fits = |fits: bool| if fits { "fits" } else { "does not fit" };
            print(&format!(
                "  rule {} ({}): {}, port {}, program {}",
                own.rule,
                own.place,
                own.host,
                fits(own.port_fits),
                fits(own.binary_fits)
            ))?;
        }
        let turn = if told.decision == "deny" { "allow" } else { "refuse" };
        if told.change.len() > 1 {
            print(&format!("  to {turn} it, all of these:"))?;
        }
        for change in &told.change {
            print(&format!("  to {turn} it: {change}"))?;
        }
    }
    Ok(if told.decision == "deny" { ExitCode::from(REFUSED) } else { ExitCode::SUCCESS })
}

/// Checks policies; advice alone is no failure.
fn lint(policies: &[String], json: bool) -> Result<ExitCode> {
    let mut findings = Vec::new();
    for name in policies {
        match read(name)? {
            Ok(policy) => {
                findings.extend(advise(&policy));
                findings.extend(ownership(name));
            }
            Err(InvalidPolicy { problems }) => findings.extend(problems),
        }
    }
    let failed = findings.iter().any(|finding| finding.severity == Severity::Error);
    if json {
        print(&serde_json::to_string(&findings)?)?;
    } else {
        for finding in &findings {
            print(&finding.to_string())?;
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The runtime takes files of root's own only.
fn ownership(name: &str) -> Option<Diagnostic> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = fs::metadata(name).ok()?;
    let own = metadata.uid() == 0 && metadata.mode() & 0o022 == 0;
    (!own).then(|| Diagnostic {
        file: name.to_owned(),
        line: 0,
        column: 0,
        severity: Severity::Advice,
        message: "the runtime takes a policy only where root owns it and nobody else can write it"
            .to_owned(),
        help: format!("before use run: chown root {name} && chmod go-w {name}"),
        text: String::new(),
    })
}

fn compare(before: &str, after: &str, json: bool) -> Result<ExitCode> {
    let (before, after) = (engine(before)?, engine(after)?);
    let changes = diff(&before, &after)?;
    let (own, other) = (out::settings(before.policy()), out::settings(after.policy()));
    let keys: BTreeSet<&String> = own.keys().chain(other.keys()).collect();
    let settings: Vec<_> = keys
        .into_iter()
        .filter(|key| own.get(*key) != other.get(*key))
        .map(|key| (key, own.get(key), other.get(key)))
        .collect();
    if json {
        let settings: Vec<_> = settings
            .iter()
            .map(|(key, before, after)| json!({ "key": key, "before": before, "after": after }))
            .collect();
        return done(&json!({ "egress": changes, "settings": settings }).to_string());
    }
    for change in &changes {
        let sign = if change.allowed { '+' } else { '-' };
        let method = match change.method.as_deref() {
            Some("OTHER") => "any other method",
            Some(method) => method,
            None => "any request",
        };
        let request = change.request.as_deref().unwrap_or_default();
        print(&format!(
            "{sign} {} -> {}:{} {method} {request}  (such as {})",
            change.binary, change.host, change.port, change.example
        ))?;
    }
    let said = |value: Option<&serde_json::Value>| {
        value.map_or_else(|| "not said".to_owned(), ToString::to_string)
    };
    for (key, before, after) in &settings {
        print(&format!("~ {key}: {} -> {}", said(*before), said(*after)))?;
    }
    if changes.is_empty() {
        print("both let the same out")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The plan of a running container, as the runtime recorded it.
fn show_plan(id: &str) -> Result<ExitCode> {
    let listed = |directory: PathBuf| {
        fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
    };
    let mut found: Vec<PathBuf> = listed(PathBuf::from("/run/nemoclaw/containers"))
        .flat_map(listed)
        .filter(|path| {
            !id.is_empty()
                && path
                    .file_name()
                    .is_some_and(|name| name.as_encoded_bytes().starts_with(id.as_bytes()))
        })
        .collect();
    match (found.pop(), found.is_empty()) {
        (Some(directory), true) => {
            let path = directory.join("plan.json");
            let text =
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let plan: serde_json::Value = serde_json::from_slice(&text)?;
            done(&format!("{plan:#}"))
        }
        (Some(_), false) => bail!("several containers' ids begin with `{}`", id.escape_debug()),
        (None, _) => bail!(
            "there is no container `{}`; write an id of `docker ps`, and run it as root",
            id.escape_debug()
        ),
    }
}

fn show(name: &str, effective: bool, json: bool) -> Result<ExitCode> {
    if !effective && !json {
        return done(text_of(name)?.0.trim_end());
    }
    let policy = read(name)?.map_err(|invalid| anyhow!("{invalid}"))?;
    let text = out::yaml(&policy, effective);
    if json {
        let rules: Vec<_> = policy
            .rules
            .iter()
            .map(|rule| json!({ "key": &*rule.key, "origin": rule.at.to_string() }))
            .collect();
        let unenforced: Vec<String> = policy.unenforced.0.iter().map(ToString::to_string).collect();
        let value = json!({
            "origin": policy.origin.to_string(),
            "yaml": text,
            "rules": rules,
            "unenforced": unenforced,
        });
        return done(&value.to_string());
    }
    done(text.trim_end())
}

fn export(name: &str, json: bool) -> Result<ExitCode> {
    let policy = read(name)?.map_err(|invalid| anyhow!("{invalid}"))?;
    let (text, lost) = out::openshell(&policy);
    if json {
        return done(&json!({ "yaml": text, "lost": lost }).to_string());
    }
    for what in lost {
        print(&format!("# lost: {}", what.escape_debug()))?;
    }
    done(text.trim_end())
}

fn engine(name: &str) -> Result<Engine> {
    let policy = read(name)?.map_err(|invalid| anyhow!("{invalid}"))?;
    Ok(Engine::new(policy, HashMap::new()))
}

fn read(name: &str) -> Result<Result<Policy, InvalidPolicy>> {
    let (text, file) = text_of(name)?;
    Ok(Policy::parse_with(&text, &file, &Operator))
}

/// The text of a policy: a file, a name of the operator's, or a built-in one.
fn text_of(name: &str) -> Result<(String, String)> {
    let path = Path::new(name);
    if !name.contains('/') && !path.exists() {
        let built_in =
            preset::policy(name).or_else(|| preset::tier(name)).or_else(|| preset::preset(name));
        if let Some(found) = Operator.policy(name) {
            return Ok(found);
        }
        return built_in.map(|text| (text.to_owned(), format!("built-in {name}"))).with_context(
            || {
                format!(
                    "there is no policy `{}`: no file, nothing in {CONFIG}/policies, and not built in",
                    name.escape_debug()
                )
            },
        );
    }
    Ok((text_in(path)?, path.display().to_string()))
}

fn text_in(path: &Path) -> Result<String> {
    let size = fs::metadata(path).with_context(|| format!("cannot find {}", path.display()))?.len();
    if size > MAX_BYTES {
        bail!("{} is too large to be a policy", path.display());
    }
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    String::from_utf8(bytes).with_context(|| format!("{} is no UTF-8 text", path.display()))
}

/// The operator's files, as the runtime finds them; who owns them matters at a
/// container's start only.
struct Operator;

impl Operator {
    fn find(kind: &str, name: &str) -> Option<(String, String)> {
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if !plain || name.starts_with('.') || name.is_empty() {
            return None;
        }
        let path = Path::new(CONFIG).join(kind).join(format!("{name}.yaml"));
        Some((text_in(&path).ok()?, path.display().to_string()))
    }
}

impl Library for Operator {
    fn policy(&self, name: &str) -> Option<(String, String)> {
        Self::find("policies", name)
    }

    fn preset(&self, name: &str) -> Option<(String, String)> {
        Self::find("presets", name)
    }
}

fn done(text: &str) -> Result<ExitCode> {
    print(text)?;
    Ok(ExitCode::SUCCESS)
}

fn print(text: &str) -> Result<()> {
    writeln!(std::io::stdout().lock(), "{text}")?;
    Ok(())
}
