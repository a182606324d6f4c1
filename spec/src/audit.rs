//! The record of what happened to each connection: one JSON line each.

use serde::{Deserialize, Serialize};

use crate::decide::{Caller, Denial, Destination, Intent, Reason, RuleRef, remedy};
use crate::name::MAX_HOST_BYTES;

/// Version of the record's shape.
pub const VERSION: u32 = 1;
/// Longest record, in bytes, including the fields the supervisor adds.
pub const MAX_RECORD_BYTES: usize = 16 * 1024;
/// Longest path of a binary kept in a record, in bytes.
const MAX_PATH_SHOWN: usize = 1024;
/// Most ancestors and holders kept in a record.
const MAX_PROCESSES_SHOWN: usize = 16;

/// One connection, from accept to close.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// [`VERSION`].
    pub v: u32,
    /// `connection`.
    pub event: String,
    /// `allow` or `deny`.
    pub decision: String,
    /// How the sandbox asked: `tcp`, `connect` or `http`.
    pub via: String,
    /// Host name or literal address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Executable of the process that owns the socket; empty when unknown.
    pub binary: String,
    /// Executables of its ancestors, nearest first.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub ancestors: Vec<String>,
    /// Further holders of the same socket.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub other_holders: Vec<String>,
    /// The deciding rule as `key (file:line)`, or null when no rule fits.
    pub rule: Option<String>,
    /// Reason code of a refusal.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// What the reason code means.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub detail: Option<String>,
    /// The rule that would allow what was refused.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub allow_with: Option<String>,
    /// The upstream address that was dialled.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub address: Option<String>,
    /// The operator's proxy, where the connection goes through it: then `address` is
    /// its.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub upstream_proxy: Option<String>,
    /// The server name of the TLS hello, where the connection began with one; it is
    /// told when the connection closes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub server_name: Option<String>,
    /// Source of the connection inside the sandbox, `address:port`.
    pub client: String,
    /// Bytes from the sandbox to the server.
    pub sent: u64,
    /// Bytes from the server to the sandbox.
    pub received: u64,
    /// Milliseconds from accept to close.
    pub ms: u64,
}

impl Event {
    /// The record of a connection that has just been understood.
    pub fn new(via: &str, intent: &Intent, caller: &Caller, client: String) -> Self {
        let holder = caller.holders.first();
        Self {
            v: VERSION,
            event: "connection".to_owned(),
            decision: "deny".to_owned(),
            via: via.to_owned(),
            host: intent.destination.to_string(),
            port: intent.port,
            binary: holder.map(|process| shorten(&process.binary)).unwrap_or_default(),
            ancestors: holder.map_or_else(Vec::new, |process| {
                process
                    .ancestors
                    .iter()
                    .take(MAX_PROCESSES_SHOWN)
                    .map(|path| shorten(path))
                    .collect()
            }),
            other_holders: caller
                .holders
                .iter()
                .skip(1)
                .take(MAX_PROCESSES_SHOWN)
                .map(|process| shorten(&process.binary))
                .collect(),
            rule: None,
            reason: Some(Reason::Internal.code().to_owned()),
            detail: None,
            allow_with: None,
            address: None,
            upstream_proxy: None,
            server_name: None,
            client,
            sent: 0,
            received: 0,
            ms: 0,
        }
    }

    /// Turns the record into that of an allowed connection.
    pub fn allowed(&mut self, rule: &RuleRef) {
        "allow".clone_into(&mut self.decision);
        self.rule = Some(rule.to_string());
        self.reason = None;
    }

    /// Turns the record into that of a refused connection.
    pub fn refused(&mut self, denial: &Denial, intent: &Intent, caller: &Caller) {
        "deny".clone_into(&mut self.decision);
        self.rule = denial.nearest.as_ref().map(ToString::to_string);
        self.reason = Some(denial.reason.code().to_owned());
        self.detail = Some(denial.reason.sentence().to_owned());
        self.allow_with = remedy(None, intent, caller, denial.reason)
            .map(|yaml| shorten_to(&yaml, 2 * MAX_PATH_SHOWN));
        if matches!(intent.destination, Destination::Host(ref host) if host.as_str() == "proxy.local")
        {
            self.allow_with = None;
        }
    }

    /// The same without what the sandbox can make long: what was asked for, by whom,
    /// and what became of it stays.
    #[must_use]
    pub fn shortened(&self) -> Self {
        let mut short = self.clone();
        short.ancestors.clear();
        short.other_holders.clear();
        short.allow_with = None;
        short.server_name = short.server_name.map(|name| shorten_to(&name, MAX_HOST_BYTES));
        short
    }

    /// One line of JSON without its line feed.
    pub fn to_line(&self) -> String {
        serde_json::to_string(self)
            .unwrap_or_else(|_| String::from("{\"v\":1,\"event\":\"unprintable\"}"))
    }
}

fn shorten(text: &str) -> String {
    shorten_to(text, MAX_PATH_SHOWN)
}

fn shorten_to(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let mut kept: String = text.chars().take(limit / 4).collect();
    kept.push('…');
    kept
}
