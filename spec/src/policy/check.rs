//! From the file as written to a [`Policy`]: names canonicalised, ranges
//! checked, contradictions reported. All problems of a file at once.

use std::net::IpAddr;
use std::str::FromStr as _;
use std::sync::Arc;

use ipnet::IpNet;
use serde_saphyr::Spanned;

use super::diagnostic::{Findings, InvalidPolicy, Place, nearest};
use super::file::{
    BinariesFile, EndpointFile, FilesystemFile, NemoclawFile, PolicyFile, RuleFile, place,
};
use super::{
    BASELINE_READ_ONLY, BASELINE_READ_WRITE, Binaries, Endpoint, Excess, Filesystem, Identity,
    LandlockMode, Options, Policy, ProcessIdentity, Rule,
};
use crate::address;
use crate::name::{BinaryPattern, HostPattern};

const MAX_FILESYSTEM_PATHS: usize = 256;
const MAX_PATH_BYTES: usize = 4096;

pub(super) fn check(file: PolicyFile, source: &str, name: &str) -> Result<Policy, InvalidPolicy> {
    let mut findings = Findings::new(name, source);
    let mut unenforced = Vec::new();
    if file.version.value != 1 {
        findings.error(
            place(&file.version),
            format!("version {} is unknown", file.version.value),
            "write `version: 1`",
        );
    }
    if let Some(middlewares) = &file.network_middlewares {
        unenforced.push(findings.make(
            place(middlewares),
            "`network_middlewares` is not enforced by this version".to_owned(),
            "remove it, or the container does not start",
        ));
    }
    let ours = file.nemoclaw.is_some();
    let filesystem = filesystem(file.filesystem_policy, &mut findings);
    let landlock =
        landlock(file.landlock.and_then(|section| section.compatibility), ours, &mut findings);
    let process = file.process.map_or_else(ProcessIdentity::default, |section| ProcessIdentity {
        user: section.run_as_user.and_then(|user| identity(&user, "run_as_user", &mut findings)),
        group: section
            .run_as_group
            .and_then(|group| identity(&group, "run_as_group", &mut findings)),
    });
    let options = options(file.nemoclaw.unwrap_or_default(), &mut findings);
    let mut rules = Vec::new();
    for (key, rule) in file.network_policies.unwrap_or_default().0 {
        rules.push(self::rule(&key, rule, ours, &mut findings, &mut unenforced));
    }
    if !findings.found.is_empty() {
        let mut problems = findings.found;
        problems.sort_by_key(|problem| (problem.line, problem.column));
        return Err(InvalidPolicy { problems });
    }
    Ok(Policy {
        origin: Arc::from(name),
        ours,
        filesystem,
        landlock,
        process,
        options,
        rules,
        unenforced,
    })
}

fn filesystem(section: Option<FilesystemFile>, findings: &mut Findings<'_>) -> Filesystem {
    // OpenShell: absent section means the working directory is included, a
    // present one without the key means it is not.
    let Some(section) = section else {
        return Filesystem {
            include_workdir: true,
            read_only: BASELINE_READ_ONLY.map(str::to_owned).to_vec(),
            read_write: BASELINE_READ_WRITE.map(str::to_owned).to_vec(),
            named: false,
        };
    };
    let count = section.read_only.len() + section.read_write.len();
    if count > MAX_FILESYSTEM_PATHS {
        findings.error(
            Place::default(),
            format!(
                "filesystem_policy names {count} paths; at most {MAX_FILESYSTEM_PATHS} are allowed"
            ),
            "name a common parent directory",
        );
    }
    for path in &section.read_write {
        if path.value.trim_end_matches('/').is_empty() {
            findings.error(
                place(path),
                "a writable `/` would undo every other path".to_owned(),
                "name the directories that need writing",
            );
        }
    }
    Filesystem {
        include_workdir: section.include_workdir.unwrap_or(false),
        read_only: paths(section.read_only, findings),
        read_write: paths(section.read_write, findings),
        named: true,
    }
}

fn paths(list: Vec<Spanned<String>>, findings: &mut Findings<'_>) -> Vec<String> {
    for path in &list {
        let problem = if !path.value.starts_with('/') {
            Some("a path must start with `/`")
        } else if path.value.split('/').any(|part| part == "..") {
            Some("a path must not contain `..`")
        } else if path.value.len() > MAX_PATH_BYTES || path.value.contains('\0') {
            Some("the path is longer than 4096 bytes or holds a zero byte")
        } else {
            None
        };
        if let Some(problem) = problem {
            findings.error(place(path), problem.to_owned(), "write an absolute path without `..`");
        }
    }
    list.into_iter().map(|path| path.value).collect()
}

fn landlock(
    text: Option<Spanned<String>>,
    ours: bool,
    findings: &mut Findings<'_>,
) -> LandlockMode {
    let Some(text) = text else { return LandlockMode::HardRequirement };
    match text.value.as_str() {
        "best_effort" => LandlockMode::BestEffort,
        "hard_requirement" | "strict" => LandlockMode::HardRequirement,
        other => {
            let known = ["best_effort", "hard_requirement"];
            let help = nearest(other, &known).map_or_else(
                || "write best_effort or hard_requirement".to_owned(),
                |near| format!("did you mean `{near}`?"),
            );
            // OpenShell reads any other word as best_effort; silently weaker
            // is not a meaning we can keep.
            let whose = if ours { "" } else { " (OpenShell would read it as best_effort)" };
            findings.error(
                place(&text),
                format!("`{}` is no Landlock compatibility{whose}", other.escape_debug()),
                &help,
            );
            LandlockMode::HardRequirement
        }
    }
}

fn identity(text: &Spanned<String>, key: &str, findings: &mut Findings<'_>) -> Option<Identity> {
    if text.value.is_empty() {
        return None;
    }
    if text.value.bytes().all(|b| b.is_ascii_digit()) {
        return match text.value.parse::<u32>() {
            Ok(id) if id > 0 && id < u32::MAX => Some(Identity::Id(id)),
            _ => {
                findings.error(
                    place(text),
                    format!("`{key}: {}` is not an id from 1 to 4294967294", text.value),
                    "for root write `nemoclaw: {allow_root: true}` and leave the key out",
                );
                None
            }
        };
    }
    let fine = text.value != "root"
        && text.value.len() <= 64
        && text.value.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
    if fine {
        Some(Identity::Name(text.value.clone()))
    } else {
        findings.error(
            place(text),
            format!("`{key}: {}` is not a user a sandbox may run as", text.value.escape_debug()),
            "write `sandbox`, another name of the image, or an id from 1",
        );
        None
    }
}

fn options(section: NemoclawFile, findings: &mut Findings<'_>) -> Options {
    let defaults = Options::default();
    let pids = section.pids.map_or(defaults.pids, |pids| {
        if !(0..=4_194_304).contains(&pids.value) {
            findings.error(
                place(&pids),
                format!("`pids: {}` is out of range", pids.value),
                "write a number from 1 to 4194304, or 0 for no limit",
            );
        }
        pids.value
    });
    let excess =
        section.excess_capabilities.map_or(defaults.excess, |word| match word.value.as_str() {
            "refuse" => Excess::Refuse,
            "strip" => Excess::Strip,
            other => {
                findings.error(
                    place(&word),
                    format!("`{}` is no way to treat excess capabilities", other.escape_debug()),
                    "write refuse or strip",
                );
                Excess::Refuse
            }
        });
    Options {
        pids,
        allow_root: section.allow_root,
        excess,
        sockets: paths(section.sockets, findings),
        keep_environment: section.keep_environment.into_iter().map(|name| name.value).collect(),
        keep_toolchain: section.keep_toolchain,
    }
}

fn rule(
    key: &Spanned<String>,
    written: RuleFile,
    ours: bool,
    findings: &mut Findings<'_>,
    unenforced: &mut Vec<super::Diagnostic>,
) -> Rule {
    if key.value.starts_with("_provider_") {
        findings.error(
            place(key),
            format!("the rule name `{}` is reserved", key.value.escape_debug()),
            "rename the rule",
        );
    }
    let binaries = binaries(written.binaries, ours, findings);
    let endpoints = written
        .endpoints
        .into_iter()
        .filter_map(|endpoint| self::endpoint(endpoint, place(key), findings, unenforced))
        .collect();
    Rule { key: Arc::from(key.value.as_str()), line: place(key).line, endpoints, binaries }
}

fn binaries(
    written: Option<Spanned<BinariesFile>>,
    ours: bool,
    findings: &mut Findings<'_>,
) -> Binaries {
    let Some(written) = written else {
        // The same omission means "nothing" to OpenShell's engine and "any" to
        // the language this file says it is written in.
        return if ours { Binaries::Any } else { Binaries::Listed(Vec::new()) };
    };
    let at = place(&written);
    match written.value {
        BinariesFile::Word(word) if word == "any" => Binaries::Any,
        BinariesFile::Word(word) => {
            findings.error(
                at,
                format!("`binaries: {}` is neither a list nor `any`", word.escape_debug()),
                "write `binaries: any` or a list of `{path: /usr/bin/…}`",
            );
            Binaries::Listed(Vec::new())
        }
        BinariesFile::List(list) => {
            if list.is_empty() && ours {
                findings.error(
                    at,
                    "an empty list of binaries matches no program".to_owned(),
                    "write `binaries: any`, or list programs",
                );
            }
            let patterns = list
                .into_iter()
                .filter_map(|binary| match BinaryPattern::parse(&binary.path) {
                    Ok(pattern) => Some(pattern),
                    Err(why) => {
                        findings.error(
                            at,
                            format!("`{}` is no path of a program: {why}", binary.path.escape_debug()),
                            "write an absolute path; `*` stands for part of one component, `**` for any depth",
                        );
                        None
                    }
                })
                .collect();
            Binaries::Listed(patterns)
        }
    }
}

fn endpoint(
    written: EndpointFile,
    rule_at: Place,
    findings: &mut Findings<'_>,
    unenforced: &mut Vec<super::Diagnostic>,
) -> Option<Endpoint> {
    report_unenforced(&written, findings, unenforced);
    let at = written.host.as_ref().map_or(rule_at, place);
    let ports = ports(&written, at, findings);
    let allowed_ips = allowed_ips(&written.allowed_ips, findings);
    let Some(host) = written.host.filter(|host| !host.value.is_empty()) else {
        findings.error(at, "an endpoint has no host".to_owned(), "add `host: api.example.com`");
        return None;
    };
    let host = match HostPattern::parse(&host.value) {
        Ok(host) => host,
        Err(why) => {
            findings.error(
                place(&host),
                format!("`{}` is no host: {why}", host.value.escape_debug()),
                "write a name such as api.example.com, a wildcard such as *.example.com, or an address",
            );
            return None;
        }
    };
    Some(Endpoint { host, ports, allowed_ips, private: written.private, line: at.line })
}

fn ports(written: &EndpointFile, at: Place, findings: &mut Findings<'_>) -> Vec<u16> {
    let mut ports: Vec<u16> = match (&written.ports, &written.port) {
        (Some(_), Some(port)) => {
            findings.error(
                place(port),
                "`port` and `ports` exclude each other".to_owned(),
                "keep `ports`",
            );
            Vec::new()
        }
        (Some(list), None) => list.iter().map(|port| port.value.0).collect(),
        (None, Some(port)) => vec![port.value.0],
        (None, None) => Vec::new(),
    };
    ports.sort_unstable();
    ports.dedup();
    if ports.is_empty() && written.port.is_none() {
        findings.error(at, "an endpoint has no port".to_owned(), "add `port: 443`");
    }
    ports
}

fn allowed_ips(written: &[Spanned<String>], findings: &mut Findings<'_>) -> Vec<IpNet> {
    let mut ranges = Vec::new();
    for range in written {
        let parsed = IpNet::from_str(&range.value)
            .or_else(|_not_a_range| IpAddr::from_str(&range.value).map(IpNet::from));
        match parsed {
            Ok(net) if address::overlaps_never(&net) => findings.error(
                place(range),
                format!("`{}` reaches loopback, link-local or metadata addresses", range.value),
                "those are never reachable; name a smaller range",
            ),
            Ok(net) => ranges.push(net.trunc()),
            Err(_) => findings.error(
                place(range),
                format!("`{}` is no address or CIDR range", range.value.escape_debug()),
                "write 10.0.5.0/24 or 10.0.5.7",
            ),
        }
    }
    ranges
}

/// Names everything of an endpoint that this version does not enforce.
fn report_unenforced(
    written: &EndpointFile,
    findings: &Findings<'_>,
    unenforced: &mut Vec<super::Diagnostic>,
) {
    let mut report = |at: Place, what: &str| {
        unenforced.push(findings.make(
            at,
            format!("`{what}` is not enforced by this version"),
            "remove it for an endpoint by host, port and binary, or wait for a version that inspects requests",
        ));
    };
    if let Some(protocol) = &written.protocol
        && !matches!(protocol.value.as_str(), "" | "tcp")
    {
        report(place(protocol), &format!("protocol: {}", protocol.value.escape_debug()));
    }
    if let Some(access) = &written.access
        && access.value != "full"
    {
        report(place(access), &format!("access: {}", access.value.escape_debug()));
    }
    if let Some(tls) = &written.tls
        && !matches!(tls.value.as_str(), "skip" | "auto" | "passthrough")
    {
        report(place(tls), &format!("tls: {}", tls.value.escape_debug()));
    }
    let keys = [
        ("path", &written.path),
        ("rules", &written.rules),
        ("deny_rules", &written.deny_rules),
        ("allow_encoded_slash", &written.allow_encoded_slash),
        ("websocket_credential_rewrite", &written.websocket_credential_rewrite),
        ("request_body_credential_rewrite", &written.request_body_credential_rewrite),
        ("allow_uninspected_credentials", &written.allow_uninspected_credentials),
        ("credential_signing", &written.credential_signing),
        ("signing_service", &written.signing_service),
        ("signing_region", &written.signing_region),
        ("credential_binding", &written.credential_binding),
        ("persisted_queries", &written.persisted_queries),
        ("graphql_persisted_queries", &written.graphql_persisted_queries),
        ("graphql_max_body_bytes", &written.graphql_max_body_bytes),
        ("json_rpc", &written.json_rpc),
        ("mcp", &written.mcp),
    ];
    for (key, value) in keys {
        if let Some(value) = value {
            report(place(value), key);
        }
    }
}
