//! A policy file as a tree of values with their places. The only file that
//! names the YAML crate. Reading is bounded in size, depth and nodes, and
//! refuses anchors, aliases, merge keys, tags and repeated keys.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};
use serde_saphyr::options::MergeKeyPolicy;
use serde_saphyr::{Error, Spanned};

use super::MAX_POLICY_BYTES;
use super::diagnostic::{Diagnostic, InvalidPolicy, Place, Severity, line_of};

/// A value and where it stands.
#[derive(Debug, Clone, Default)]
pub(super) struct Node {
    pub(super) at: Place,
    pub(super) value: Value,
}

/// What YAML's core schema makes of a value.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) enum Value {
    #[default]
    Null,
    Bool(bool),
    Integer(i64),
    /// Numbers that are no integers of 64 bits; no key takes one as it is.
    Number(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A key and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Key {
    pub(super) at: Place,
    pub(super) text: String,
}

impl PartialEq for Node {
    /// Places are no part of the meaning.
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl Value {
    /// What a person would call it.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "true or false",
            Self::Integer(_) => "a whole number",
            Self::Number(_) => "a number",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        }
    }
}

impl Node {
    /// The value of `key` in a map; `None` for other values too. A key that
    /// is written without a value counts as absent.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        let Value::Map(entries) = &self.value else { return None };
        entries
            .iter()
            .find(|(own, value)| own.text == key && value.value != Value::Null)
            .map(|(_, value)| value)
    }

    pub(super) fn entries(&self) -> &[(Key, Self)] {
        if let Value::Map(entries) = &self.value { entries } else { &[] }
    }

    pub(super) fn items(&self) -> &[Self] {
        if let Value::List(items) = &self.value { items } else { &[] }
    }

    pub(super) fn text(&self) -> Option<&str> {
        if let Value::Text(text) = &self.value { Some(text) } else { None }
    }

    pub(super) fn bool(&self) -> Option<bool> {
        if let Value::Bool(value) = self.value { Some(value) } else { None }
    }

    pub(super) fn integer(&self) -> Option<i64> {
        if let Value::Integer(value) = self.value { Some(value) } else { None }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Value;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }
            fn visit_none<E: de::Error>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }
            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
                Ok(Value::Bool(value))
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
                Ok(Value::Integer(value))
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
                Ok(i64::try_from(value).map_or(Value::Number(f64::INFINITY), Value::Integer))
            }
            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
                Ok(Value::Number(value))
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
                Ok(Value::Text(value.to_owned()))
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element::<Spanned<Value>>()? {
                    items.push(node(item));
                }
                Ok(Value::List(items))
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
                let mut entries = Vec::new();
                while let Some((key, value)) =
                    map.next_entry::<Spanned<String>, Spanned<Value>>()?
                {
                    let at = place(&key);
                    entries.push((Key { at, text: key.value }, node(value)));
                }
                Ok(Value::Map(entries))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

fn node(spanned: Spanned<Value>) -> Node {
    Node { at: place(&spanned), value: spanned.value }
}

fn place<T>(spanned: &Spanned<T>) -> Place {
    Place { line: spanned.referenced.line(), column: spanned.referenced.column() }
}

/// Reads the YAML of one policy file.
///
/// # Errors
/// The first place where the text is no YAML, or none that we take.
pub(super) fn read(text: &str, name: &str) -> Result<Node, InvalidPolicy> {
    if text.len() > MAX_POLICY_BYTES {
        let message =
            format!("the file has {} bytes; at most {MAX_POLICY_BYTES} are read", text.len());
        return Err(one(name, text, Place::default(), message, "split it into presets"));
    }
    let budget = serde_saphyr::budget! {
        max_depth: 32,
        max_nodes: 400_000,
        max_events: 800_000,
        max_anchors: 0,
        max_aliases: 0,
        max_documents: 1,
        max_merge_keys: 0,
        flow_nesting_limit: 32,
    };
    let options = serde_saphyr::options! {
        budget: budget,
        strict_booleans: true,
        strict_indentation: true,
        reject_unsupported_tags: true,
        reject_tagged_field_names: true,
        underscored_numbers_as_strings: true,
        leading_zero_numbers_as_strings: true,
        merge_keys: MergeKeyPolicy::Error,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options::<Spanned<Value>>(text, options)
        .map(node)
        .map_err(|error| describe(&error, name, text))
}

fn describe(error: &Error, name: &str, text: &str) -> InvalidPolicy {
    let error = error.without_snippet();
    let at = error.location().map_or_else(Place::default, |location| Place {
        line: location.line(),
        column: location.column(),
    });
    let (message, help) = match error {
        Error::DuplicateMappingKey { key, .. } => (
            format!("the key `{}` stands here twice", key.as_deref().unwrap_or("?").escape_debug()),
            "keep one of them",
        ),
        other => {
            let text = other.to_string();
            // The library appends the place, which we print in front.
            let text = text.split(" at line ").next().unwrap_or_default();
            let first = text.lines().next().unwrap_or_default();
            let advice = advice(first);
            (first.chars().take(300).collect(), advice)
        }
    };
    one(name, text, at, message, help)
}

/// What usually is behind the reader's own words.
fn advice(message: &str) -> &'static str {
    let known = [
        (
            "anchor",
            "policies take no anchors and aliases; put a text that begins with `*` or `&` in quotes",
        ),
        (
            "alias",
            "policies take no anchors and aliases; put a text that begins with `*` or `&` in quotes",
        ),
        ("merge key", "policies take no `<<:`; write the keys out"),
        ("tag", "policies take no tags; remove the `!`"),
        ("ocument", "keep one document in the file"),
        ("end of input", "begin the file with `version: 1`"),
        ("end of file", "begin the file with `version: 1`"),
        ("budget", "the file is too large or too deeply nested to be a policy"),
        ("nesting", "the file is too deeply nested to be a policy"),
        ("depth", "the file is too deeply nested to be a policy"),
        ("ndent", "indent the keys of one map by the same number of spaces"),
        ("tab", "indent with spaces"),
    ];
    known
        .iter()
        .find(|(words, _)| message.contains(words))
        .map_or("check the YAML at this place", |(_, advice)| advice)
}

/// One finding about a whole file.
pub(super) fn one(
    name: &str,
    source: &str,
    at: Place,
    message: String,
    help: &str,
) -> InvalidPolicy {
    InvalidPolicy {
        problems: vec![Diagnostic {
            file: name.to_owned(),
            line: at.line,
            column: at.column,
            severity: Severity::Error,
            message,
            help: help.to_owned(),
            text: line_of(source, at.line),
        }],
    }
}
