//! The reference of the language and its JSON Schema, printed from the table
//! that the reader checks files against.

use std::fmt::Write as _;

use serde_json::{Map, Value as Json, json};

use super::Policy;
use super::language::{Enforced, FILE, Field, Kind, Section};
use crate::decide::Reason;

/// The reference as Markdown.
pub fn markdown() -> String {
    let mut text = String::from(
        "# The policy language\n\nPrinted from the parser's own table (`nemoclaw policy reference`); every example is parsed and every\nfailure text is what the parser says, by the tests.\n\nA *hot* key is one that a running sandbox could take a change of (this version has no way to send one yet); a *locked*\none counts from the next start. A key that is *not yet*\nenforced is understood by `nemoclaw policy`, and a container whose policy has it does not start: nothing is ignored.\n",
    );
    text.push_str(NOTES);
    let mut todo = vec![("the file".to_owned(), &FILE)];
    let mut seen: Vec<&str> = Vec::new();
    while let Some((path, section)) = todo.pop() {
        if seen.contains(&section.name) {
            continue;
        }
        seen.push(section.name);
        describe(&mut text, &path, section);
        for field in section.fields.iter().rev() {
            if let Some(inner) = inner(field.kind) {
                let above = if path == "the file" { String::new() } else { format!("{path}.") };
                todo.push((format!("{above}{}", field.key), inner));
            }
        }
    }
    reasons(&mut text);
    text
}

/// Every reason a refusal may have.
fn reasons(text: &mut String) {
    text.push_str("\n## Reasons of refusals\n\nAs records (`reason`), answers and metrics have them; the codes are stable.\n\n| reason | what it means, and what to do |\n|---|---|\n");
    for reason in Reason::ALL {
        let _written = writeln!(text, "| `{}` | {} |", reason.code(), reason.sentence());
    }
    text.push_str("\nA connection that ended by a bound has the reason `idle` or `lifetime`. Records of the supervisor itself: `dial` (a socket it opened), `worker_restarted`, `torn_record` (a line that a crash cut short), `unreadable_record`, `callers_unnoted` (the kernel does not note who connects). Fields: `client` is the connection's source inside, `via` how it asked (`tcp`, `connect`, `http`), `address` what was dialled, `seq` and `prev` make the chain that `nemoclaw logs --check` follows.\n");
}

const NOTES: &str = "\n## Where we differ from OpenShell\n
* `version` must be 1; OpenShell takes any number.
* `landlock.compatibility`: an unknown word is an error, where OpenShell reads it as best_effort; the default is hard_requirement.
* A host name with a trailing dot is the same host as without, in policies and in requests; OpenShell never matches it.
* A set such as `[!a]` never matches the separator of its pattern.
* `allow` and `deny` rules, `access`, `enforcement`, `tls` and `binaries` of a file without `nemoclaw:` mean what they mean there: `enforcement` defaults to audit, an unknown word of it audits, an empty or missing list of binaries matches nothing, a rule without `path` matches nothing. `policy lint` says so at each place.
* A name that is written out may have private addresses in a file without `nemoclaw:`; in ours it needs `private: true` or `allowed_ips`. A name without a dot is a service of the engine's network and may be private.
* Where an inspected and an uninspected endpoint cover one host, port and program, requests are inspected. Adding an inspected endpoint can therefore narrow what an uninspected one allows; `policy lint` names such pairs.
* A GET rule covers HEAD. OPTIONS is covered by no other method.
* In a file with `nemoclaw:` a deny rule also covers the path with `%2F` read as a slash and without a slash at its end, `*` alone in a query value or tool means any value (in OpenShell's files it ends at a dot), and an endpoint that only audits silences none that enforces.\n* A host written as an address needs neither `private: true` nor `allowed_ips`. A preset of the operator's replaces a built-in one of that name.\n* A body that was not read as its endpoint's protocol demands is refused, in audit too.\n* Request paths are compared in canonical form: escapes undone and redone, dot segments and `;parameters` removed, empty segments collapsed. What has no canonical form is refused.
";

fn describe(text: &mut String, path: &str, section: &Section) {
    // Writing to a String cannot fail.
    let _written = write!(text, "\n## {path}\n\n{}\n", section.about);
    for field in section.fields {
        let change = if field.hot { "hot" } else { "locked" };
        let enforced = match field.enforced {
            Enforced::Yes => "enforced",
            Enforced::NotYet => "not yet enforced",
        };
        let _written = write!(
            text,
            "\n### `{}`\n\n{}\n\n* Type: {}\n* Default: {}\n* {change}, {enforced}\n* Example: `{}`\n",
            field.key,
            field.about,
            kind_text(field.kind),
            field.default,
            field.example
        );
        if let Some(failure) = failure(section, field) {
            let _written = writeln!(
                text,
                "* `{}: {}` fails: {}",
                field.key,
                field.wrong,
                failure.replace('\n', " ")
            );
        }
    }
}

/// The example of a key as a whole file.
#[cfg(test)]
pub(super) fn example(section: &Section, field: &Field) -> String {
    format!("{{{}}}\n", section.frame.replace('@', field.example))
}

/// What the parser says about the key's mistake.
pub(super) fn failure(section: &Section, field: &Field) -> Option<String> {
    if field.wrong.is_empty() {
        return None;
    }
    let own = format!("{}: {}", field.key, field.wrong);
    let own = if section.name == FILE.name && field.key != "version" {
        format!("version: 1, {own}")
    } else {
        own
    };
    let text = format!("{{{}}}\n", section.frame.replace('@', &own));
    let problems = Policy::parse(&text, "policy.yaml").err()?.problems;
    let value = field.wrong.trim_matches(|c| "[]'{}".contains(c));
    let about = |message: &str| {
        message.contains(&format!("`{}", field.key)) || message.contains(&format!("`{value}"))
    };
    let problem =
        problems.iter().find(|problem| about(&problem.message)).or_else(|| problems.first())?;
    let help = if problem.help.is_empty() { "" } else { "; " };
    Some(format!("{}{help}{}", problem.message, problem.help))
}

/// The section behind a kind, however deep.
fn inner(kind: Kind) -> Option<&'static Section> {
    match kind {
        Kind::Section(section) => Some(section),
        Kind::List(kind) | Kind::Map(kind) | Kind::Or(_, kind) => inner(*kind),
        _ => None,
    }
}

fn kind_text(kind: Kind) -> String {
    match kind {
        Kind::Bool => "true or false".to_owned(),
        Kind::Text => "text".to_owned(),
        Kind::Word(words) => words.join(", "),
        Kind::Integer(low, high) => format!("whole number from {low} to {high}"),
        Kind::Bytes => "bytes, such as 512MiB".to_owned(),
        Kind::Duration => "time, such as 30s".to_owned(),
        Kind::Number => "positive number".to_owned(),
        Kind::List(kind) => format!("list of {}", kind_text(*kind)),
        Kind::Map(kind) => format!("map from names to {}", kind_text(*kind)),
        Kind::Section(section) => section.name.to_owned(),
        Kind::Or(word, kind) => format!("{word}, or {}", kind_text(*kind)),
        Kind::Matcher => "pattern, or {any: [patterns]}".to_owned(),
        Kind::Free => "anything".to_owned(),
    }
}

/// The JSON Schema (draft 2020-12) of policy files, for editors.
pub fn schema() -> Json {
    let mut definitions = Map::new();
    let root = section_schema(&FILE, &mut definitions);
    let mut schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "nemoclaw policy",
    });
    if let (Json::Object(schema), Json::Object(root)) = (&mut schema, root) {
        schema.extend(root);
        schema.insert("$defs".to_owned(), Json::Object(definitions));
    }
    schema
}

fn section_schema(section: &'static Section, definitions: &mut Map<String, Json>) -> Json {
    let mut properties = Map::new();
    for field in section.fields {
        let mut schema = kind_schema(field.kind, definitions);
        if let Json::Object(map) = &mut schema {
            map.insert("description".to_owned(), json!(field.about));
        }
        // A key without a value counts as absent.
        properties.insert(field.key.to_owned(), json!({ "anyOf": [schema, { "type": "null" }] }));
    }
    let required: Vec<&str> =
        section.fields.iter().filter(|field| field.required).map(|field| field.key).collect();
    let mut schema = json!({
        "type": "object",
        "description": section.about,
        "properties": properties,
        "additionalProperties": false,
    });
    if let (false, Json::Object(map)) = (required.is_empty(), &mut schema) {
        map.insert("required".to_owned(), json!(required));
    }
    schema
}

fn kind_schema(kind: Kind, definitions: &mut Map<String, Json>) -> Json {
    let text = || json!({ "type": "string" });
    match kind {
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::Text => json!({ "type": ["string", "integer"] }),
        Kind::Word(words) => json!({ "enum": words }),
        Kind::Integer(low, high) => json!({ "type": "integer", "minimum": low, "maximum": high }),
        Kind::Bytes => {
            json!({ "type": ["string", "integer"], "pattern": "^[0-9]+ ?([KMGT](iB)?)?$" })
        }
        Kind::Duration => json!({ "type": "string", "pattern": "^[0-9]+ ?(ms|s|m|h)$" }),
        Kind::Number => json!({ "type": "number", "exclusiveMinimum": 0 }),
        Kind::List(kind) => json!({ "type": "array", "items": kind_schema(*kind, definitions) }),
        Kind::Map(kind) => {
            json!({ "type": "object", "additionalProperties": kind_schema(*kind, definitions) })
        }
        Kind::Or(word, kind) => {
            json!({ "anyOf": [{ "const": word }, kind_schema(*kind, definitions)] })
        }
        Kind::Matcher => json!({ "anyOf": [text(), {
            "type": "object",
            "properties": { "any": { "type": "array", "items": text(), "minItems": 1 } },
            "required": ["any"],
            "additionalProperties": false,
        }] }),
        Kind::Free => json!({}),
        Kind::Section(section) => {
            let name = section.name.replace(' ', "-");
            if !definitions.contains_key(&name) {
                // Reserved first: a section may hold itself.
                definitions.insert(name.clone(), Json::Null);
                let schema = section_schema(section, definitions);
                definitions.insert(name.clone(), schema);
            }
            json!({ "$ref": format!("#/$defs/{name}") })
        }
    }
}
