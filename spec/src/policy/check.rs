//! From one file as written to a layer of a policy: sections read, values
//! checked, contradictions reported. All problems of a file at once.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Map, Value as Json};

use super::diagnostic::{Diagnostic, Findings, Place};
use super::options::{json, path_problem, shown};
use super::tree::{Node, Value};
use super::{
    Filesystem, Identity, LandlockMode, Middleware, ProcessIdentity, Rule, endpoint, options, shape,
};
use crate::glob::{Kind, Pattern};

const MAX_FILESYSTEM_PATHS: usize = 256;
const MAX_MIDDLEWARES: usize = 10;
const MAX_SELECTORS: usize = 32;

/// What one file says; what it does not say is `None`.
#[derive(Debug, Default)]
pub(super) struct Layer {
    pub(super) ours: bool,
    pub(super) filesystem: Option<Filesystem>,
    pub(super) landlock: Option<LandlockMode>,
    pub(super) process: Option<ProcessIdentity>,
    pub(super) options: Map<String, Json>,
    pub(super) rules: Vec<Rule>,
    pub(super) middlewares: Vec<Middleware>,
    /// What it starts from, with the places where it says so.
    pub(super) bases: Vec<(Base, Place)>,
    /// A preset's own description.
    pub(super) description: Option<String>,
    pub(super) advice: Vec<Diagnostic>,
    pub(super) unenforced: Vec<Diagnostic>,
}

impl Layer {
    /// Whether it is more than a set of rules.
    pub(super) fn says_more_than_rules(&self) -> bool {
        self.filesystem.is_some()
            || self.landlock.is_some()
            || self.process.is_some()
            || !self.options.is_empty()
            || !self.middlewares.is_empty()
            || !self.bases.is_empty()
    }
}

/// Another file that a policy starts from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Base {
    /// `extends`: a policy of the operator's.
    Policy(String),
    /// `presets`: rules by name.
    Preset(String),
    /// `posture`: a built-in policy.
    Posture(String),
    /// `tier`: a built-in choice of presets.
    Tier(String),
}

/// Checks one file.
///
/// # Errors
/// Everything that is wrong with it, in the order of the file.
pub(super) fn layer(tree: &Node, source: &str, name: &str) -> Result<Layer, Vec<Diagnostic>> {
    let mut findings = Findings::new(name, source);
    let ours = tree.get("nemoclaw").is_some()
        || tree.entries().iter().any(|(key, _)| key.text == "nemoclaw");
    shape::check(tree, ours, &mut findings);
    let mut layer = Layer { ours, ..Layer::default() };
    if tree.get("version").is_none() && tree.get("preset").is_none() {
        findings.error(
            Place { line: 1, column: 1 },
            "the policy lacks the key `version`".to_owned(),
            "begin the file with `version: 1`",
        );
    }
    layer.description = tree
        .get("preset")
        .and_then(|preset| preset.get("description"))
        .and_then(|text| text.text().map(str::to_owned));
    layer.filesystem = tree.get("filesystem_policy").map(|node| filesystem(node, &mut findings));
    layer.landlock = tree
        .get("landlock")
        .and_then(|section| section.get("compatibility"))
        .and_then(|word| match word.text() {
            Some("best_effort") => Some(LandlockMode::BestEffort),
            Some("hard_requirement" | "strict") => Some(LandlockMode::HardRequirement),
            _ => None,
        });
    layer.process = tree.get("process").map(|section| ProcessIdentity {
        user: section.get("run_as_user").and_then(|n| identity(n, "run_as_user", &mut findings)),
        group: section.get("run_as_group").and_then(|n| identity(n, "run_as_group", &mut findings)),
    });
    let file: Arc<str> = Arc::from(name);
    for (key, node) in tree.get("network_policies").map(Node::entries).unwrap_or_default() {
        layer.rules.push(endpoint::rule(key, node, &file, ours, &mut findings));
    }
    layer.middlewares = middlewares(tree.get("network_middlewares"), &mut findings);
    if let Some(section) = tree.get("nemoclaw") {
        layer.options = options::read(section, &mut findings);
        layer.bases = bases(section);
    }
    if !findings.found.is_empty() {
        let mut problems = findings.found;
        problems.sort_by_key(|problem| (problem.line, problem.column));
        problems.dedup();
        return Err(problems);
    }
    layer.advice = findings.advice;
    layer.unenforced = findings.unenforced;
    Ok(layer)
}

fn bases(section: &Node) -> Vec<(Base, Place)> {
    let mut bases = Vec::new();
    let word = |node: &Node| (node.text().unwrap_or_default().to_owned(), node.at);
    if let Some((word, at)) = section.get("posture").map(word) {
        bases.push((Base::Posture(word), at));
    }
    if let Some((word, at)) = section.get("tier").map(word) {
        bases.push((Base::Tier(word), at));
    }
    for (word, at) in section.get("extends").map(Node::items).unwrap_or_default().iter().map(word) {
        bases.push((Base::Policy(word), at));
    }
    for (word, at) in section.get("presets").map(Node::items).unwrap_or_default().iter().map(word) {
        bases.push((Base::Preset(word), at));
    }
    bases
}

fn filesystem(section: &Node, findings: &mut Findings<'_>) -> Filesystem {
    let (read_only, read_write) = (section.get("read_only"), section.get("read_write"));
    let count =
        [read_only, read_write].iter().flatten().map(|list| list.items().len()).sum::<usize>();
    if count > MAX_FILESYSTEM_PATHS {
        findings.error(
            section.at,
            format!(
                "filesystem_policy names {count} paths; at most {MAX_FILESYSTEM_PATHS} are allowed"
            ),
            "name a common parent directory",
        );
    }
    for path in read_write.map(Node::items).unwrap_or_default() {
        if path
            .text()
            .is_some_and(|text| text.starts_with('/') && text.trim_end_matches('/').is_empty())
        {
            findings.error(
                path.at,
                "a writable `/` would undo every other path".to_owned(),
                "name the directories that need writing",
            );
        }
    }
    Filesystem {
        // OpenShell: absent section means the working directory is included,
        // a present one without the key means it is not.
        include_workdir: section.get("include_workdir").and_then(Node::bool).unwrap_or(false),
        read_only: paths(read_only, findings),
        read_write: paths(read_write, findings),
        named: true,
    }
}

fn paths(list: Option<&Node>, findings: &mut Findings<'_>) -> Vec<String> {
    let mut paths = Vec::new();
    for node in list.map(Node::items).unwrap_or_default() {
        let text = node.text().unwrap_or_default();
        if let Some(problem) = path_problem(text) {
            findings.error(node.at, problem.to_owned(), "write an absolute path without `..`");
        }
        paths.push(text.to_owned());
    }
    paths
}

fn identity(node: &Node, key: &str, findings: &mut Findings<'_>) -> Option<Identity> {
    let number = node.integer().map(|number| number.to_string());
    let text = node.text().map(str::to_owned).or(number)?;
    if text.is_empty() {
        return None;
    }
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return match text.parse::<u32>() {
            Ok(id) if id > 0 && id < u32::MAX => Some(Identity::Id(id)),
            _ => {
                findings.error(
                    node.at,
                    format!("`{key}: {}` is not an id from 1 to 4294967294", shown(&text)),
                    "for root write `nemoclaw: {allow_root: true}` and leave the key out",
                );
                None
            }
        };
    }
    let fine = text != "root"
        && text.len() <= 64
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
        && !text.starts_with('-');
    if fine {
        Some(Identity::Name(text))
    } else {
        findings.error(
            node.at,
            format!("`{key}: {}` is not a user a sandbox may run as", shown(&text)),
            "write `sandbox`, another name of the image, or an id from 1",
        );
        None
    }
}

fn middlewares(section: Option<&Node>, findings: &mut Findings<'_>) -> Vec<Middleware> {
    let Some(section) = section else { return Vec::new() };
    if section.entries().len() > MAX_MIDDLEWARES {
        findings.error(
            section.at,
            format!(
                "{} middlewares are too many; at most {MAX_MIDDLEWARES} are read",
                section.entries().len()
            ),
            "remove some",
        );
    }
    let mut orders = BTreeSet::new();
    let mut list = Vec::new();
    for (key, node) in section.entries() {
        let word = |name: &str| node.get(name).and_then(Node::text).map(str::to_owned);
        let order = node.get("order").and_then(Node::integer).unwrap_or(0);
        if !orders.insert(order) {
            findings.error(
                node.at,
                format!("two middlewares have the order {order}"),
                "give each its own `order`",
            );
        }
        let endpoints = node.get("endpoints");
        let mut hosts = |name: &str| -> Vec<String> {
            let list = endpoints.and_then(|section| section.get(name));
            let items = list.map(Node::items).unwrap_or_default();
            if items.len() > MAX_SELECTORS || (name == "include" && items.is_empty()) {
                findings.error(
                    list.map_or(node.at, |list| list.at),
                    format!("`{name}` takes 1 to {MAX_SELECTORS} host patterns"),
                    "write `include: ['**.example.com']`",
                );
            }
            let mut hosts = Vec::new();
            for item in items {
                let text = item.text().unwrap_or_default();
                let odd = text.is_empty()
                    || text.contains(['{', '}'])
                    || text.chars().any(char::is_whitespace)
                    || text.split('.').any(str::is_empty)
                    || Pattern::parse(text, Kind::Dotted).is_err();
                if odd {
                    findings.error(
                        item.at,
                        format!("`{}` is no host pattern", shown(text)),
                        "write a name such as api.example.com or **.example.com",
                    );
                }
                hosts.push(text.to_owned());
            }
            hosts
        };
        let (include, exclude) = (hosts("include"), hosts("exclude"));
        list.push(Middleware {
            key: key.text.clone(),
            name: word("name"),
            middleware: word("middleware").unwrap_or_default(),
            order,
            config: node.get("config").filter(|node| node.value != Value::Null).map(json),
            fail_open: word("on_error").as_deref() == Some("fail_open"),
            include,
            exclude,
        });
    }
    list
}
