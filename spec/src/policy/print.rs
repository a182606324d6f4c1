//! Policies as text: the effective policy for people and for parsing again,
//! and the same in OpenShell's language.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Map, Value as Json, json};

use super::{
    Access, Binaries, Endpoint, Identity, Inspection, LandlockMode, Matcher, Middleware, Policy,
    Protocol, Registered, Rule,
};
use crate::glob::Pattern;
use crate::name::{BinaryPattern, HostPattern, Trust};

/// The policy as a file that parses to the same policy. With `origins`, a
/// comment tells where each rule comes from.
pub fn yaml(policy: &Policy, origins: bool) -> String {
    let mut text = String::from("version: 1\n");
    if policy.ours {
        line(&mut text, 0, "nemoclaw", &Json::Object(policy.options.said.clone()));
    }
    sections(&mut text, policy);
    rules(&mut text, policy, origins, &|rule| (endpoints(rule, policy.ours), binaries(rule)));
    middlewares(&mut text, &policy.middlewares);
    text
}

/// The policy in OpenShell's language, and what that language cannot say of
/// it.
pub fn openshell(policy: &Policy) -> (String, Vec<String>) {
    let mut lost = Vec::new();
    let mut text = String::from("version: 1\n");
    for key in policy.options.said.keys() {
        lost.push(format!("`nemoclaw.{key}` has no counterpart"));
    }
    sections(&mut text, policy);
    for rule in &policy.rules {
        if let Binaries::Listed(list) = &rule.binaries {
            for pattern in list.iter().filter(|own| policy.ours && *own.trust() != Trust::Writable)
            {
                if matches!(pattern.trust(), Trust::Digest(_)) || !pattern.is_literal() {
                    lost.push(format!("rule `{}`: any file at {pattern} counts there", rule.key));
                }
            }
        }
        for endpoint in &rule.endpoints {
            if policy.ours && !endpoint.private && matches!(endpoint.host, HostPattern::Exact(_)) {
                lost.push(format!(
                    "rule `{}`: OpenShell lets {} have private addresses",
                    rule.key, endpoint.host
                ));
            }
            if endpoint.private && !matches!(endpoint.host, HostPattern::Exact(_)) {
                lost.push(format!(
                    "rule `{}`: `private: true` of {} needs `allowed_ips` there",
                    rule.key, endpoint.host
                ));
            }
        }
    }
    rules(&mut text, policy, false, &|rule| {
        let binaries = match &rule.binaries {
            Binaries::Any => json!([{ "path": "/**" }]),
            Binaries::Listed(list) => {
                Json::Array(list.iter().map(|own| json!({ "path": own.as_str() })).collect())
            }
        };
        (endpoints(rule, false), binaries)
    });
    middlewares(&mut text, &policy.middlewares);
    (text, lost)
}

/// Everything a policy says beside rules, by key: what `diff` compares.
pub fn settings(policy: &Policy) -> BTreeMap<String, Json> {
    let mut settings = BTreeMap::new();
    let mut put = |key: &str, value: Json| drop(settings.insert(key.to_owned(), value));
    let filesystem = &policy.filesystem;
    put("filesystem_policy.include_workdir", json!(filesystem.include_workdir));
    put("filesystem_policy.read_only", json!(filesystem.read_only));
    put("filesystem_policy.read_write", json!(filesystem.read_write));
    let hard = policy.landlock == LandlockMode::HardRequirement;
    put("landlock", json!(if hard { "hard_requirement" } else { "best_effort" }));
    put("process", json!(format!("{:?}:{:?}", policy.process.user, policy.process.group)));
    let options = &policy.options;
    put("nemoclaw.resources.pids", json!(options.pids));
    put("nemoclaw.resources.pids_max", json!(options.pids_max));
    put("nemoclaw.resources.open_files", json!(options.open_files));
    put("nemoclaw.allow_root", json!(options.allow_root));
    for (key, value) in &options.said {
        if !matches!(key.as_str(), "resources" | "allow_root") {
            put(&format!("nemoclaw.{key}"), value.clone());
        }
    }
    if !policy.middlewares.is_empty() {
        let keys: Vec<&str> = policy.middlewares.iter().map(|own| own.key.as_str()).collect();
        put("network_middlewares", json!(keys));
    }
    settings
}

fn line(text: &mut String, indent: usize, key: &str, value: &Json) {
    // Writing to a String cannot fail. JSON is YAML in flow style.
    let _written = writeln!(text, "{:indent$}{key}: {value}", "");
}

fn sections(text: &mut String, policy: &Policy) {
    if policy.filesystem.named {
        text.push_str("filesystem_policy:\n");
        line(text, 2, "include_workdir", &json!(policy.filesystem.include_workdir));
        line(text, 2, "read_only", &json!(policy.filesystem.read_only));
        line(text, 2, "read_write", &json!(policy.filesystem.read_write));
    }
    let mode = match policy.landlock {
        LandlockMode::BestEffort => "best_effort",
        LandlockMode::HardRequirement => "hard_requirement",
    };
    line(text, 0, "landlock", &json!({ "compatibility": mode }));
    let mut process = Map::new();
    for (key, identity) in
        [("run_as_user", &policy.process.user), ("run_as_group", &policy.process.group)]
    {
        let name = match identity {
            Some(Identity::Id(id)) => id.to_string(),
            Some(Identity::Name(name)) => name.clone(),
            None => continue,
        };
        process.insert(key.to_owned(), Json::from(name));
    }
    if !process.is_empty() {
        line(text, 0, "process", &Json::Object(process));
    }
}

fn rules(
    text: &mut String,
    policy: &Policy,
    origins: bool,
    parts: &dyn Fn(&Rule) -> (Vec<Json>, Json),
) {
    if policy.rules.is_empty() {
        text.push_str("network_policies: {}\n");
        return;
    }
    text.push_str("network_policies:\n");
    for rule in &policy.rules {
        if origins {
            let _written = writeln!(text, "  # {}", rule.at.to_string().escape_debug());
        }
        let _written = writeln!(text, "  {}:", Json::from(&*rule.key));
        if let Some(name) = &rule.name {
            line(text, 4, "name", &json!(name));
        }
        let (endpoints, binaries) = parts(rule);
        if endpoints.is_empty() {
            text.push_str("    endpoints: []\n");
        } else {
            text.push_str("    endpoints:\n");
        }
        for endpoint in endpoints {
            let _written = writeln!(text, "      - {endpoint}");
        }
        line(text, 4, "binaries", &binaries);
    }
}

fn binaries(rule: &Rule) -> Json {
    match &rule.binaries {
        Binaries::Any => json!("any"),
        Binaries::Listed(list) => Json::Array(list.iter().map(binary).collect()),
    }
}

fn binary(pattern: &BinaryPattern) -> Json {
    let path = pattern.as_str();
    match pattern.trust() {
        Trust::Start => json!({ "path": path }),
        Trust::Writable => json!({ "path": path, "trust": "writable" }),
        Trust::Digest(digest) => json!({ "path": path, "sha256": digest }),
    }
}

fn endpoints(rule: &Rule, ours: bool) -> Vec<Json> {
    rule.endpoints.iter().map(|endpoint| Json::Object(self::endpoint(endpoint, ours))).collect()
}

fn endpoint(endpoint: &Endpoint, ours: bool) -> Map<String, Json> {
    let mut map = Map::new();
    let mut put = |key: &str, value: Json| drop(map.insert(key.to_owned(), value));
    if endpoint.host != HostPattern::Any {
        put("host", json!(endpoint.host.to_string()));
    }
    put("ports", json!(endpoint.ports));
    if !endpoint.allowed_ips.is_empty() {
        put("allowed_ips", json!(endpoint.allowed_ips));
    }
    if endpoint.private && ours {
        put("private", json!(true));
    }
    if endpoint.tls_skip {
        put("tls", json!("skip"));
    }
    let credentials = &endpoint.credentials;
    for (key, value) in [
        ("websocket_credential_rewrite", credentials.websocket_rewrite),
        ("request_body_credential_rewrite", credentials.body_rewrite),
        ("allow_uninspected_credentials", credentials.allow_uninspected),
    ] {
        if value {
            put(key, json!(true));
        }
    }
    for (key, value) in [
        ("credential_signing", &credentials.signing),
        ("signing_service", &credentials.signing_service),
        ("signing_region", &credentials.signing_region),
    ] {
        if !value.is_empty() {
            put(key, json!(value));
        }
    }
    if !credentials.provider.is_empty() {
        put("credential_binding", json!({ "provider": credentials.provider }));
    }
    if let Some(inspection) = &endpoint.inspection {
        map.extend(self::inspection(inspection));
    }
    map
}

fn inspection(inspection: &Inspection) -> Map<String, Json> {
    let mut map = Map::new();
    let mut put = |key: &str, value: Json| drop(map.insert(key.to_owned(), value));
    put("protocol", json!(inspection.protocol.word()));
    if let Some(path) = &inspection.path {
        put("path", json!(path.as_str()));
    }
    put("enforcement", json!(if inspection.audit { "audit" } else { "enforce" }));
    match inspection.access {
        Some(access) => put("access", json!(word(access))),
        None if inspection.allow.is_empty() => {}
        None => put(
            "rules",
            inspection.allow.iter().map(|rule| json!({ "allow": matcher(rule) })).collect(),
        ),
    }
    if !inspection.deny.is_empty() {
        put("deny_rules", inspection.deny.iter().map(matcher).collect());
    }
    if inspection.encoded_slash {
        put("allow_encoded_slash", json!(true));
    }
    let limit = json!(inspection.max_body_bytes);
    match inspection.protocol {
        Protocol::GraphQl | Protocol::WebSocket => put("graphql_max_body_bytes", limit),
        Protocol::Mcp => put(
            "mcp",
            json!({
                "max_body_bytes": limit,
                "strict_tool_names": inspection.strict_tool_names,
                "allow_all_known_mcp_methods": inspection.all_mcp_methods,
            }),
        ),
        Protocol::JsonRpc => put("json_rpc", json!({ "max_body_bytes": limit })),
        Protocol::Rest | Protocol::Sql => {}
    }
    if let Some(registry) = &inspection.registry {
        put("persisted_queries", json!("allow_registered"));
        put("graphql_persisted_queries", self::registry(registry));
    }
    map
}

fn registry(registry: &BTreeMap<String, Registered>) -> Json {
    let entries = registry.iter().map(|(key, query)| {
        let mut map = Map::new();
        map.insert("operation_type".to_owned(), json!(query.kind));
        if !query.name.is_empty() {
            map.insert("operation_name".to_owned(), json!(query.name));
        }
        map.insert("fields".to_owned(), json!(query.fields));
        (key.clone(), Json::Object(map))
    });
    Json::Object(entries.collect())
}

/// The word of the language for a set of rules.
fn word(access: Access) -> &'static str {
    match access {
        Access::ReadOnly => "read-only",
        Access::ReadWrite => "read-write",
        Access::Full => "full",
        Access::Nothing => "nothing",
    }
}

/// One request rule as the language writes it.
pub(crate) fn matcher(matcher: &Matcher) -> Json {
    let patterns = |list: &[Pattern]| match list {
        [one] => json!(one.as_str()),
        several => json!({ "any": several.iter().map(Pattern::as_str).collect::<Vec<_>>() }),
    };
    let mut map = Map::new();
    match matcher {
        Matcher::Http { method, path, query } => {
            let method = method.as_ref().map_or("*", |method| method.as_str());
            map.insert("method".to_owned(), json!(method));
            map.insert("path".to_owned(), json!(path.as_str()));
            if !query.is_empty() {
                let entries = query.iter().map(|(key, list)| (key.clone(), patterns(list)));
                map.insert("query".to_owned(), Json::Object(entries.collect()));
            }
        }
        Matcher::GraphQl { kind, name, fields } => {
            map.insert("operation_type".to_owned(), json!(kind.as_deref().unwrap_or("*")));
            if let Some(name) = name {
                map.insert("operation_name".to_owned(), json!(name.as_str()));
            }
            if !fields.is_empty() {
                let fields: Vec<&str> = fields.iter().map(Pattern::as_str).collect();
                map.insert("fields".to_owned(), json!(fields));
            }
        }
        Matcher::Rpc { method, tool } => {
            let method = method.as_ref().map_or("*", Pattern::as_str);
            map.insert("method".to_owned(), json!(method));
            if !tool.is_empty() {
                map.insert("tool".to_owned(), patterns(tool));
            }
        }
        Matcher::Sql { command } => {
            map.insert("command".to_owned(), json!(command.as_deref().unwrap_or("*")));
        }
    }
    Json::Object(map)
}

fn middlewares(text: &mut String, list: &[Middleware]) {
    if list.is_empty() {
        return;
    }
    text.push_str("network_middlewares:\n");
    for middleware in list {
        let mut map = Map::new();
        if let Some(name) = &middleware.name {
            map.insert("name".to_owned(), json!(name));
        }
        map.insert("middleware".to_owned(), json!(middleware.middleware));
        map.insert("order".to_owned(), json!(middleware.order));
        if let Some(config) = &middleware.config {
            map.insert("config".to_owned(), config.clone());
        }
        let on_error = if middleware.fail_open { "fail_open" } else { "fail_closed" };
        map.insert("on_error".to_owned(), json!(on_error));
        let mut endpoints = Map::new();
        endpoints.insert("include".to_owned(), json!(middleware.include));
        if !middleware.exclude.is_empty() {
            endpoints.insert("exclude".to_owned(), json!(middleware.exclude));
        }
        map.insert("endpoints".to_owned(), Json::Object(endpoints));
        let key = Json::from(middleware.key.as_str()).to_string();
        line(text, 2, &key, &Json::Object(map));
    }
}
