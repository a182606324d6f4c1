//! HTTP requests as decisions see them: canonical by construction, so that the
//! text that is matched is the text that is sent.
//!
//! Sources: RFC 3986 sections 3.3 and 6.2.2, RFC 9110 section 9.1, RFC 9112
//! section 3.2.

use std::fmt;
use std::fmt::Write as _;

/// Longest request target accepted, in bytes.
pub const MAX_TARGET_BYTES: usize = 4096;
/// Longest query accepted, in bytes.
pub const MAX_QUERY_BYTES: usize = 16 * 1024;
/// Most segments of a path accepted.
const MAX_SEGMENTS: usize = 512;
/// Most query parameters accepted.
const MAX_PARAMETERS: usize = 1000;
/// Longest method accepted, in bytes.
const MAX_METHOD_BYTES: usize = 64;

/// Why a request line cannot be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRequest {
    /// The method is empty, too long or no token.
    #[error("the method is no HTTP token")]
    Method,
    /// The path or query is longer than we read.
    #[error("the request target is too long")]
    TooLong,
    /// Neither an absolute path nor an absolute URI.
    #[error("the path does not start with `/`")]
    Form,
    /// A control character, `#`, or a byte that must be escaped.
    #[error("the request target holds a character that must be escaped")]
    Character,
    /// `%` without two hexadecimal digits, or an escaped control character.
    #[error("the request target holds a bad escape")]
    Escape,
    /// `%2F` where the endpoint does not allow it.
    #[error(
        "the path holds an encoded slash, and the endpoint does not say `allow_encoded_slash: true`"
    )]
    EncodedSlash,
    /// `..` leads above the root, or hides behind an encoded slash.
    #[error("the path leads above its root")]
    AboveRoot,
    /// The query is no UTF-8 after decoding, or has too many parameters.
    #[error("the query cannot be read")]
    Query,
}

/// A request method: upper case, a token of RFC 9110 section 5.6.2.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Method(Box<str>);

impl Method {
    /// Reads a method; its case does not matter, as it does not to OpenShell.
    ///
    /// # Errors
    /// [`InvalidRequest::Method`] when it is no token.
    pub fn parse(text: &str) -> Result<Self, InvalidRequest> {
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if text.is_empty() || text.len() > MAX_METHOD_BYTES || !text.bytes().all(token) {
            return Err(InvalidRequest::Method);
        }
        Ok(Self(text.to_ascii_uppercase().into_boxed_str()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a request goes on its host.
///
/// INVARIANT: `path` is absolute, without dot segments, empty segments (but a
/// last one), parameters (`;…`), and with nothing escaped that need not be;
/// escapes are upper case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    path: Box<str>,
    query: Option<Box<str>>,
    parameters: Vec<(String, String)>,
}

impl Target {
    /// Canonicalises a request target: origin form, or absolute form, of which
    /// the scheme and authority are ignored here.
    ///
    /// An encoded slash stays encoded; [`Target::has_encoded_slash`] tells.
    ///
    /// # Errors
    /// [`InvalidRequest`] when it has no canonical form.
    pub fn parse(text: &str) -> Result<Self, InvalidRequest> {
        let (path, query) = match text.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (text, None),
        };
        if path.len() > MAX_TARGET_BYTES || query.is_some_and(|query| query.len() > MAX_QUERY_BYTES)
        {
            return Err(InvalidRequest::TooLong);
        }
        let bad = |b: u8| b <= 0x20 || b == 0x7f || b >= 0x80 || b == b'#';
        if text.bytes().any(bad) {
            return Err(InvalidRequest::Character);
        }
        let path = canonical(origin_form(path)?)?.into_boxed_str();
        let parameters = query.map_or_else(|| Ok(Vec::new()), parameters)?;
        Ok(Self { path, query: query.map(Into::into), parameters })
    }

    /// The canonical path.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The query as it was written.
    pub fn query(&self) -> Option<&str> {
        self.query.as_deref()
    }

    /// Its parameters, decoded, in order.
    pub fn parameters(&self) -> &[(String, String)] {
        &self.parameters
    }

    /// Whether a segment holds `%2F`, which only some endpoints allow.
    pub fn has_encoded_slash(&self) -> bool {
        self.path.contains("%2F")
    }
}

impl fmt::Display for Target {
    /// What is sent upstream.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)?;
        self.query.as_deref().map_or(Ok(()), |query| write!(f, "?{query}"))
    }
}

fn origin_form(path: &str) -> Result<&str, InvalidRequest> {
    if path.starts_with('/') {
        return Ok(path);
    }
    let lower = path.get(..8).unwrap_or(path).to_ascii_lowercase();
    let scheme = ["http://", "https://"].into_iter().find(|scheme| lower.starts_with(scheme));
    let authority =
        scheme.and_then(|scheme| path.get(scheme.len()..)).ok_or(InvalidRequest::Form)?;
    match authority.find('/') {
        Some(0) => Err(InvalidRequest::Form),
        Some(at) => authority.get(at..).ok_or(InvalidRequest::Form),
        None if authority.is_empty() => Err(InvalidRequest::Form),
        None => Ok("/"),
    }
}

fn canonical(path: &str) -> Result<String, InvalidRequest> {
    let mut segments: Vec<String> = Vec::new();
    let mut open = false;
    if path.split('/').count() > MAX_SEGMENTS {
        return Err(InvalidRequest::TooLong);
    }
    for raw in path.split('/').skip(1) {
        // Parameters belong to no resource that policy names.
        let decoded = decode(raw.split(';').next().unwrap_or_default().as_bytes(), false)?;
        open = false;
        match decoded.as_slice() {
            b"" | b"." => open = true,
            b".." => {
                segments.pop().ok_or(InvalidRequest::AboveRoot)?;
                open = true;
            }
            // A server that decodes the slash would climb.
            hidden if (hidden.contains(&b'/') || hidden.contains(&b'\\')) && climbs(hidden) => {
                return Err(InvalidRequest::AboveRoot);
            }
            other => segments.push(encode(other)),
        }
    }
    let mut canonical = String::with_capacity(path.len());
    for segment in &segments {
        canonical.push('/');
        canonical.push_str(segment);
    }
    if open || segments.is_empty() {
        canonical.push('/');
    }
    Ok(canonical)
}

fn climbs(decoded: &[u8]) -> bool {
    decoded.split(|b| matches!(b, b'/' | b'\\')).any(|part| matches!(part, b"." | b".."))
}

/// Undoes percent-encoding; `controls` says whether it may hide control
/// characters.
fn decode(text: &[u8], controls: bool) -> Result<Vec<u8>, InvalidRequest> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        if *byte != b'%' {
            decoded.push(*byte);
            continue;
        }
        let mut digit = || {
            let byte = bytes.next().ok_or(InvalidRequest::Escape)?;
            char::from(*byte).to_digit(16).ok_or(InvalidRequest::Escape)
        };
        let value = digit()? << 4 | digit()?;
        let value = u8::try_from(value).map_err(|_impossible| InvalidRequest::Escape)?;
        if value < 0x20 && !controls {
            return Err(InvalidRequest::Escape);
        }
        decoded.push(value);
    }
    Ok(decoded)
}

/// Escapes what is not `pchar` (RFC 3986), and `;`, which servers give meaning.
fn encode(decoded: &[u8]) -> String {
    let mut text = String::with_capacity(decoded.len());
    for byte in decoded {
        if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,=:@".contains(byte) {
            text.push(char::from(*byte));
        } else {
            // Writing to a String cannot fail.
            let _written = write!(text, "%{byte:02X}");
        }
    }
    text
}

fn parameters(query: &str) -> Result<Vec<(String, String)>, InvalidRequest> {
    let mut list = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        if list.len() >= MAX_PARAMETERS {
            return Err(InvalidRequest::Query);
        }
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        list.push((form(name)?, form(value)?));
    }
    Ok(list)
}

fn form(text: &str) -> Result<String, InvalidRequest> {
    // A literal plus comes as `%2B`, so that spaces can be told first.
    let spaced: Vec<u8> = text.bytes().map(|b| if b == b'+' { b' ' } else { b }).collect();
    String::from_utf8(decode(&spaced, true)?).map_err(|_no_utf8| InvalidRequest::Query)
}

/// One request, as far as rules can tell requests apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The method; `WEBSOCKET_TEXT` for a text message of a WebSocket.
    pub method: Method,
    /// Path and query.
    pub target: Target,
    /// What its body says, where the endpoint's protocol reads it.
    pub content: Content,
}

/// What a request's body says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Content {
    /// Not read.
    #[default]
    Opaque,
    /// A GraphQL request.
    GraphQl(GraphQl),
    /// A JSON-RPC or MCP request.
    JsonRpc(JsonRpc),
    /// A SQL command, upper case.
    Sql(String),
}

/// A GraphQL request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GraphQl {
    /// Its operations; more than one in a batch.
    pub operations: Vec<Operation>,
    /// True when the body is no GraphQL; refused even under `audit`.
    pub malformed: bool,
}

/// One GraphQL operation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Operation {
    /// `query`, `mutation` or `subscription`; empty for a query named by hash.
    pub kind: String,
    /// Its name; may be empty.
    pub name: String,
    /// The root fields it selects.
    pub fields: Vec<String>,
    /// The hash or id of a persisted query.
    pub persisted: Option<String>,
}

/// A JSON-RPC message from the client.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JsonRpc {
    /// The method called; empty for a response and for a receive stream.
    pub method: String,
    /// `params.name` where it is a text: the tool of MCP's `tools/call`.
    pub tool: Option<String>,
    /// True for a response to a request of the server's.
    pub response: bool,
    /// True for a GET that only receives (MCP's streams).
    pub receive_stream: bool,
    /// True when the body is no JSON-RPC; refused even under `audit`.
    pub malformed: bool,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(text: &str) -> Result<String, InvalidRequest> {
        Target::parse(text).map(|target| target.path().to_owned())
    }

    #[test]
    fn spellings_of_one_path_are_equal() {
        for (text, canonical) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a//b", "/a/b"),
            ("/a/./b", "/a/b"),
            ("/a/%2e/b", "/a/b"),
            ("/a/x/../b", "/a/b"),
            ("/a/x/%2E%2e/b", "/a/b"),
            ("/%41", "/A"),
            ("/a b".replace(' ', "%20").as_str(), "/a%20b"),
            ("/a;x=1/b;y", "/a/b"),
            ("/a;x/..;/b", "/b"),
            ("/a/", "/a/"),
            ("/a/.", "/a/"),
            ("/a/..", "/"),
            ("/%c3%a9", "/%C3%A9"),
            ("/a%3bb", "/a%3Bb"),
            ("/a%3fb", "/a%3Fb"),
            ("http://Host.example:80/x?q", "/x"),
            ("https://host.example", "/"),
        ] {
            assert_eq!(path(text).as_deref(), Ok(canonical), "{text}");
        }
    }

    #[test]
    fn what_has_no_canonical_form_is_refused() {
        for (text, error) in [
            ("/..", InvalidRequest::AboveRoot),
            ("/a/../..", InvalidRequest::AboveRoot),
            ("/a%2f..%2fb", InvalidRequest::AboveRoot),
            ("/a%2f%2e", InvalidRequest::AboveRoot),
            ("/%", InvalidRequest::Escape),
            ("/%4", InvalidRequest::Escape),
            ("/%zz", InvalidRequest::Escape),
            ("/%+1", InvalidRequest::Escape),
            ("/%00", InvalidRequest::Escape),
            ("/%0d%0a", InvalidRequest::Escape),
            ("/a b", InvalidRequest::Character),
            ("/a#b", InvalidRequest::Character),
            ("/é", InvalidRequest::Character),
            ("a", InvalidRequest::Form),
            ("", InvalidRequest::Form),
            ("*", InvalidRequest::Form),
            ("http:///x", InvalidRequest::Form),
            ("ftp://h/x", InvalidRequest::Form),
        ] {
            assert_eq!(path(text), Err(error), "{text}");
        }
        assert_eq!(path(&format!("/{}", "a".repeat(5000))), Err(InvalidRequest::TooLong));
        assert!(Target::parse("/a%2fb").unwrap().has_encoded_slash());
    }

    #[test]
    fn a_query_is_read_and_left_as_it_is() {
        let target = Target::parse("/s?a=1&a=x+y&b=%26%2B&c").unwrap();
        let pairs: Vec<(&str, &str)> =
            target.parameters().iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(pairs, [("a", "1"), ("a", "x y"), ("b", "&+"), ("c", "")]);
        assert_eq!(target.to_string(), "/s?a=1&a=x+y&b=%26%2B&c");
        assert_eq!(Target::parse("/s?a=%ff").map(|_| ()), Err(InvalidRequest::Query));
        assert_eq!(Target::parse("/s?a=%+f").map(|_| ()), Err(InvalidRequest::Escape));
    }

    proptest! {
        #[test]
        fn canonical_is_a_fixed_point(text in "/[a-c/.;%25eE2Ff]{0,24}") {
            if let Ok(target) = Target::parse(&text) {
                let again = Target::parse(target.path()).unwrap();
                prop_assert_eq!(again.path(), target.path());
                prop_assert!(!target.path().contains("//"));
                prop_assert!(!target.path().split('/').any(|s| s == "." || s == ".."));
            }
        }
    }
}
