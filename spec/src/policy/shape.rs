//! Checks a file's tree against the table of the language: unknown keys,
//! missing keys, wrong kinds. Everything that is wrong is found, not only the
//! first; what remains has the shape that the table says.

use super::diagnostic::{Findings, nearest};
use super::language::{Enforced, FILE, Field, Kind, Section};
use super::tree::{Node, Value};

/// Words that OpenShell takes in any spelling and gives a meaning: a file in
/// its language keeps it, with advice.
const LENIENT: [&str; 3] = ["tls", "enforcement", "access"];
/// Top-level keys whose contents are reported one by one where this version
/// does not enforce them; an endpoint's keys are judged together instead.
const REPORTED: [&str; 2] = ["nemoclaw", "network_middlewares"];

/// Checks the tree; `ours` says that the file is in our language.
pub(super) fn check(file: &Node, ours: bool, findings: &mut Findings<'_>) {
    Shape { ours, report: false, findings }.section(file, &FILE, &[]);
}

struct Shape<'a, 'b> {
    ours: bool,
    /// Whether keys that this version does not enforce are reported.
    report: bool,
    findings: &'a mut Findings<'b>,
}

impl Shape<'_, '_> {
    fn section(&mut self, node: &Node, section: &'static Section, path: &[&str]) {
        if !matches!(node.value, Value::Map(_)) {
            let example = section.fields.first().map_or("", |field| field.example);
            self.findings.error(
                node.at,
                format!("{} must be a map, not {}", section.name, node.value.kind()),
                &format!("write {{{example}}}"),
            );
            return;
        }
        for (key, value) in node.entries() {
            let Some(field) = section.field(&key.text) else {
                self.unknown(key, section);
                continue;
            };
            if value.value == Value::Null {
                self.null(value, field.key);
                continue;
            }
            let here = [path, &[field.key]].concat();
            let report = self.report || (path.is_empty() && REPORTED.contains(&field.key));
            let before = std::mem::replace(&mut self.report, report);
            if self.report && field.enforced == Enforced::NotYet && !inert(field, value) {
                self.findings.unenforced(
                    key.at,
                    format!("`{}` is not enforced by this version", here.join(".")),
                    "remove it to start containers with this policy",
                );
                self.report = false;
            }
            self.value(value, field.kind, field.key, &here);
            self.report = before;
        }
        for field in section.fields.iter().filter(|field| field.required) {
            if node.get(field.key).is_none() {
                self.findings.error(
                    node.at,
                    format!("{} lacks the key `{}`", section.name, field.key),
                    &format!("write {{{}}}", field.example),
                );
            }
        }
    }

    /// A key without a value: OpenShell takes it as absent. In a file of ours
    /// it is a mistake, because what is left of it would mean the default.
    fn null(&mut self, node: &Node, key: &str) {
        if self.ours {
            self.findings.error(
                node.at,
                format!("`{key}` has no value"),
                "write one (`{}` or `[]` for an empty one), or remove the key",
            );
        }
    }

    fn unknown(&mut self, key: &super::tree::Key, section: &Section) {
        let known: Vec<&str> = section.fields.iter().map(|field| field.key).collect();
        let ours = FILE.field("nemoclaw").and_then(|field| match field.kind {
            Kind::Section(section) => section.field(&key.text),
            _ => None,
        });
        let help = if key.text.contains(':') {
            "put a space after the `:`".to_owned()
        } else if section.name == FILE.name && ours.is_some() {
            "put it under `nemoclaw:`".to_owned()
        } else if section.name == "a rule" && key.text == "host" {
            "put it into `endpoints: [{host: …, port: …}]`".to_owned()
        } else {
            nearest(&key.text, &known).map_or_else(
                || format!("known keys here: {}", known.join(", ")),
                |near| format!("did you mean `{near}`?"),
            )
        };
        let shown: String = key.text.chars().take(80).collect();
        self.findings.error(
            key.at,
            format!("unknown key `{}` in {}", shown.escape_debug(), section.name),
            &help,
        );
    }

    fn value(&mut self, node: &Node, kind: Kind, key: &'static str, path: &[&str]) {
        match kind {
            Kind::Free => {}
            Kind::Section(section) => self.section(node, section, path),
            Kind::Map(kind) => {
                if !matches!(node.value, Value::Map(_)) {
                    self.wrong(node, key, "a map", "write {NAME: …}");
                }
                for (_, value) in node.entries() {
                    if value.value == Value::Null && key == "network_policies" {
                        // A rule without keys is a rule without endpoints.
                        self.null(value, key);
                        continue;
                    }
                    self.value(value, *kind, key, path);
                }
            }
            Kind::List(kind) => {
                if !matches!(node.value, Value::List(_)) {
                    let example = match key {
                        "ports" => "[80, 443]".to_owned(),
                        "presets" => "[pypi]".to_owned(),
                        _ => "[first, second]".to_owned(),
                    };
                    self.wrong(node, key, "a list", &format!("write {key}: {example}"));
                }
                for item in node.items() {
                    self.value(item, *kind, key, path);
                }
            }
            Kind::Or(word, other) => {
                if node.text() == Some(word) {
                    return;
                }
                if matches!(node.value, Value::Text(_)) {
                    let help = format!(
                        "write a list such as `{key}: [{{path: /usr/bin/curl}}]`, or `{word}`"
                    );
                    self.wrong(node, key, &format!("`{word}` or a list"), &help);
                } else {
                    self.value(node, *other, key, path);
                }
            }
            Kind::Matcher => {
                let list = node.get("any");
                let fine = node.text().is_some()
                    || (node.entries().len() == 1
                        && list.is_some_and(|list| {
                            !list.items().is_empty()
                                && list.items().iter().all(|item| item.text().is_some())
                        }));
                if !fine {
                    self.wrong(
                        node,
                        key,
                        "a pattern",
                        "write \"pattern\" or {any: [\"a\", \"b\"]}",
                    );
                }
            }
            scalar => self.scalar(node, scalar, key),
        }
    }

    fn scalar(&mut self, node: &Node, kind: Kind, key: &'static str) {
        let fine = match kind {
            Kind::Bool => node.bool().is_some(),
            Kind::Text => node.text().is_some() || node.integer().is_some(),
            Kind::Word(words) => match node.text() {
                Some(word) => return self.word(node, word, words, key),
                None => false,
            },
            Kind::Integer(low, high) => {
                node.integer().is_some_and(|value| (low..=high).contains(&value))
            }
            Kind::Bytes => bytes(node).is_some_and(|bytes| bytes > 0),
            Kind::Duration => duration(node).is_some(),
            Kind::Number => number(node).is_some_and(|value| value > 0.0 && value < 1e6),
            _ => true,
        };
        if fine {
            return;
        }
        let (what, help) = match kind {
            Kind::Bool => {
                ("true or false".to_owned(), "write true or false, without quotes".to_owned())
            }
            Kind::Integer(1, 65535) => (
                "a port number, 1 to 65535, without quotes".to_owned(),
                "write `port: 443`".to_owned(),
            ),
            Kind::Integer(1, 1) => ("1".to_owned(), "write `version: 1`".to_owned()),
            Kind::Integer(low, high) => (
                format!("a whole number from {low} to {high}"),
                format!("write `{key}: {}`", low.max(1)),
            ),
            Kind::Bytes => (
                "a number of bytes, with K, M, G or KiB, MiB, GiB".to_owned(),
                format!("write `{key}: 4GiB`"),
            ),
            Kind::Duration => ("a time".to_owned(), format!("write `{key}: 30s`")),
            Kind::Number => ("a positive number".to_owned(), format!("write `{key}: 1.5`")),
            Kind::Word(words) => {
                ("a word".to_owned(), format!("write one of {}", words.join(", ")))
            }
            _ => ("a text".to_owned(), "write a text".to_owned()),
        };
        self.wrong(node, key, &what, &help);
    }

    fn word(&mut self, node: &Node, word: &str, words: &[&str], key: &'static str) {
        if words.contains(&word) || (word.is_empty() && !self.ours) {
            return;
        }
        let help = nearest(word, words).map_or_else(
            || format!("write one of {}", words.join(", ")),
            |near| format!("did you mean `{near}`?"),
        );
        let shown: String = word.chars().take(80).collect();
        let message = format!("`{key}: {}` is unknown", shown.escape_debug());
        if !self.ours && LENIENT.contains(&key) {
            let meaning = match key {
                "tls" => "OpenShell reads it as auto",
                "enforcement" => "OpenShell reads it as audit, which forbids nothing",
                _ => "OpenShell makes no rule of it, so nothing is allowed",
            };
            self.findings.advice(node.at, format!("{message}; {meaning}"), &help);
        } else {
            self.findings.error(node.at, message, &help);
        }
    }

    fn wrong(&mut self, node: &Node, key: &str, what: &str, help: &str) {
        let found = match &node.value {
            Value::Text(text) => {
                let shown: String = text.chars().take(80).collect();
                format!("the text `{}`", shown.escape_debug())
            }
            Value::Integer(value) => format!("`{value}`"),
            other => other.kind().to_owned(),
        };
        self.findings.error(node.at, format!("`{key}` must be {what}, not {found}"), help);
    }
}

/// True for a value that says what holds anyway.
fn inert(field: &Field, node: &Node) -> bool {
    // Where it is present, nothing else may come in.
    if field.key == "ingress" {
        return false;
    }
    match field.kind {
        Kind::Bool => node.bool() == Some(false),
        Kind::Word(words) => node.text().is_some_and(|word| words.first() == Some(&word)),
        Kind::List(_) => node.value == Value::List(Vec::new()),
        Kind::Map(_) => node.value == Value::Map(Vec::new()),
        _ => false,
    }
}

/// A number of bytes: `4096`, `512KiB`, `4GiB`.
pub(super) fn bytes(node: &Node) -> Option<u64> {
    if let Some(value) = node.integer() {
        return u64::try_from(value).ok();
    }
    parse_bytes(node.text()?)
}

/// The same of a text.
pub(super) fn parse_bytes(text: &str) -> Option<u64> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let scale: u64 = match unit.trim() {
        "KiB" | "K" => 1 << 10,
        "MiB" | "M" => 1 << 20,
        "GiB" | "G" => 1 << 30,
        "TiB" | "T" => 1 << 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(scale).filter(|value| *value > 0)
}

/// A time in milliseconds: `500ms`, `30s`, `5m`, `2h`.
pub(super) fn duration(node: &Node) -> Option<u64> {
    parse_duration(node.text()?)
}

/// The same of a text.
pub(super) fn parse_duration(text: &str) -> Option<u64> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let scale: u64 = match unit.trim() {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(scale).filter(|value| *value > 0)
}

/// A number, with or without a fraction.
pub(super) fn number(node: &Node) -> Option<f64> {
    match node.value {
        Value::Number(value) if value.is_finite() => Some(value),
        Value::Integer(value) => i32::try_from(value).ok().map(f64::from),
        _ => None,
    }
}
