//! The YAML shape of a policy as written. The only file that names the YAML
//! crate. Reading is bounded in size, depth and nodes, and refuses anchors,
//! aliases, merge keys, tags and repeated keys.

use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, Visitor};
use serde_saphyr::options::MergeKeyPolicy;
use serde_saphyr::{Error, Spanned};

use super::MAX_POLICY_BYTES;
use super::diagnostic::{Diagnostic, InvalidPolicy, Place, Severity, line_of, nearest};

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PolicyFile {
    pub(super) version: Spanned<u32>,
    pub(super) filesystem_policy: Option<FilesystemFile>,
    pub(super) landlock: Option<LandlockFile>,
    pub(super) process: Option<ProcessFile>,
    #[serde(default)]
    pub(super) network_policies: Option<Rules>,
    pub(super) network_middlewares: Option<Spanned<IgnoredAny>>,
    pub(super) nemoclaw: Option<NemoclawFile>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FilesystemFile {
    pub(super) include_workdir: Option<bool>,
    #[serde(default)]
    pub(super) read_only: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) read_write: Vec<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LandlockFile {
    pub(super) compatibility: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProcessFile {
    pub(super) run_as_user: Option<Spanned<String>>,
    pub(super) run_as_group: Option<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct NemoclawFile {
    pub(super) pids: Option<Spanned<i64>>,
    pub(super) allow_root: bool,
    pub(super) excess_capabilities: Option<Spanned<String>>,
    pub(super) sockets: Vec<Spanned<String>>,
    pub(super) keep_environment: Vec<Spanned<String>>,
    pub(super) keep_toolchain: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RuleFile {
    #[serde(default)]
    #[expect(dead_code, reason = "a display name; the key identifies the rule")]
    pub(super) name: Option<String>,
    #[serde(default)]
    pub(super) endpoints: Vec<EndpointFile>,
    pub(super) binaries: Option<Spanned<BinariesFile>>,
}

/// `any`, or a list.
#[derive(Debug)]
pub(super) enum BinariesFile {
    Word(String),
    List(Vec<BinaryFile>),
}

impl<'de> Deserialize<'de> for BinariesFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BinariesVisitor;
        impl<'de> Visitor<'de> for BinariesVisitor {
            type Value = BinariesFile;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("`any`, or a list such as [{path: /usr/bin/curl}]")
            }
            fn visit_str<E: de::Error>(self, word: &str) -> Result<BinariesFile, E> {
                Ok(BinariesFile::Word(word.to_owned()))
            }
            fn visit_seq<A: de::SeqAccess<'de>>(
                self,
                mut list: A,
            ) -> Result<BinariesFile, A::Error> {
                let mut binaries = Vec::new();
                while let Some(binary) = list.next_element()? {
                    binaries.push(binary);
                }
                Ok(BinariesFile::List(binaries))
            }
        }
        deserializer.deserialize_any(BinariesVisitor)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BinaryFile {
    pub(super) path: String,
    #[serde(default)]
    #[expect(dead_code, reason = "OpenShell accepts and ignores it, so do we")]
    pub(super) harness: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EndpointFile {
    pub(super) host: Option<Spanned<String>>,
    pub(super) port: Option<Spanned<Port>>,
    pub(super) ports: Option<Vec<Spanned<Port>>>,
    #[serde(default)]
    pub(super) allowed_ips: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) private: bool,
    pub(super) protocol: Option<Spanned<String>>,
    pub(super) tls: Option<Spanned<String>>,
    pub(super) access: Option<Spanned<String>>,
    #[expect(dead_code, reason = "without a protocol, `enforcement` changes nothing")]
    pub(super) enforcement: Option<Spanned<String>>,
    pub(super) path: Option<Spanned<IgnoredAny>>,
    pub(super) rules: Option<Spanned<IgnoredAny>>,
    pub(super) deny_rules: Option<Spanned<IgnoredAny>>,
    pub(super) allow_encoded_slash: Option<Spanned<IgnoredAny>>,
    pub(super) websocket_credential_rewrite: Option<Spanned<IgnoredAny>>,
    pub(super) request_body_credential_rewrite: Option<Spanned<IgnoredAny>>,
    pub(super) allow_uninspected_credentials: Option<Spanned<IgnoredAny>>,
    pub(super) credential_signing: Option<Spanned<IgnoredAny>>,
    pub(super) signing_service: Option<Spanned<IgnoredAny>>,
    pub(super) signing_region: Option<Spanned<IgnoredAny>>,
    pub(super) credential_binding: Option<Spanned<IgnoredAny>>,
    pub(super) persisted_queries: Option<Spanned<IgnoredAny>>,
    pub(super) graphql_persisted_queries: Option<Spanned<IgnoredAny>>,
    pub(super) graphql_max_body_bytes: Option<Spanned<IgnoredAny>>,
    pub(super) json_rpc: Option<Spanned<IgnoredAny>>,
    pub(super) mcp: Option<Spanned<IgnoredAny>>,
}

/// The rules in the order of the file, each key with its place. Repeated keys
/// never get here: the reader refuses them.
#[derive(Debug, Default)]
pub(super) struct Rules(pub(super) Vec<(Spanned<String>, RuleFile)>);

impl<'de> Deserialize<'de> for Rules {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RulesVisitor;
        impl<'de> Visitor<'de> for RulesVisitor {
            type Value = Rules;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a map from rule names to rules")
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Rules, A::Error> {
                let mut rules = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    rules.push(entry);
                }
                Ok(Rules(rules))
            }
        }
        deserializer.deserialize_map(RulesVisitor)
    }
}

/// A port number; only a plain YAML integer will do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Port(pub(super) u16);

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PortVisitor;
        impl Visitor<'_> for PortVisitor {
            type Value = Port;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a port number, 1 to 65535, without quotes")
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Port, E> {
                match u16::try_from(value) {
                    Ok(port) if port > 0 => Ok(Port(port)),
                    _ => Err(E::invalid_value(de::Unexpected::Unsigned(value), &self)),
                }
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Port, E> {
                u64::try_from(value)
                    .map_err(|_negative| E::invalid_value(de::Unexpected::Signed(value), &self))
                    .and_then(|value| self.visit_u64(value))
            }
        }
        deserializer.deserialize_any(PortVisitor)
    }
}

/// Where a spanned value stands.
pub(super) fn place<T>(spanned: &Spanned<T>) -> Place {
    Place { line: spanned.referenced.line(), column: spanned.referenced.column() }
}

/// Reads the YAML of one policy file.
pub(super) fn read(text: &str, name: &str) -> Result<PolicyFile, InvalidPolicy> {
    if text.len() > MAX_POLICY_BYTES {
        let message =
            format!("the file has {} bytes; at most {MAX_POLICY_BYTES} are read", text.len());
        return Err(one(name, text, Place::default(), message, String::new()));
    }
    let budget = serde_saphyr::budget! {
        max_depth: 32,
        max_nodes: 200_000,
        max_events: 400_000,
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
    serde_saphyr::from_str_with_options::<PolicyFile>(text, options)
        .map_err(|error| describe(&error, name, text))
}

fn describe(error: &Error, name: &str, text: &str) -> InvalidPolicy {
    let error = error.without_snippet();
    let at = error.location().map_or_else(Place::default, |location| Place {
        line: location.line(),
        column: location.column(),
    });
    let (message, help) = match error {
        Error::SerdeUnknownField { field, expected, .. } => {
            let help = nearest(field, expected).map_or_else(
                || format!("known keys here: {}", expected.join(", ")),
                |near| format!("did you mean `{near}`?"),
            );
            (format!("unknown key `{}`", field.escape_debug()), help)
        }
        Error::SerdeMissingField { field, .. } => {
            (format!("the key `{field}` is missing"), format!("add `{field}:`"))
        }
        Error::DuplicateMappingKey { key, .. } => (
            format!("the key `{}` stands here twice", key.as_deref().unwrap_or("?").escape_debug()),
            "keep one of them".to_owned(),
        ),
        other => {
            let text = other.to_string();
            // The library appends the place, which we print in front.
            let text = text.split(" at line ").next().unwrap_or_default();
            let first = text.lines().next().unwrap_or_default();
            (first.chars().take(300).collect(), advice(first).to_owned())
        }
    };
    one(name, text, at, message, help)
}

/// What usually is behind the reader's own words.
fn advice(message: &str) -> &'static str {
    let known = [
        ("sequence start", "write a list here: [first, second]"),
        ("mapping start", "write a map here: {key: value}; a program is {path: /usr/bin/curl}"),
        ("unknown anchor", "put a text that begins with `*` in quotes"),
        ("true/false", "write true or false"),
        ("Documents", "keep one document in the file"),
        ("end of input", "begin the file with `version: 1`"),
        ("u32", "write `version: 1`"),
    ];
    known.iter().find(|(words, _)| message.contains(words)).map_or("", |(_, advice)| advice)
}

fn one(name: &str, source: &str, at: Place, message: String, help: String) -> InvalidPolicy {
    InvalidPolicy {
        problems: vec![Diagnostic {
            file: name.to_owned(),
            line: at.line,
            column: at.column,
            severity: Severity::Error,
            message,
            help,
            text: line_of(source, at.line),
        }],
    }
}
