//! Value types for names that policy and clients use: host names, host
//! patterns, and patterns over the paths of executables.
//!
//! Every type is canonical by construction, so that equality is meaning.
//! Nothing here touches a file, a socket or the environment.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr as _;

use crate::glob::{InvalidPattern, Kind, Pattern};

/// Longest host name accepted, in bytes (RFC 1035 section 2.3.4).
pub const MAX_HOST_BYTES: usize = 253;
/// Longest label of a host name, in bytes (RFC 1035 section 2.3.4).
pub const MAX_LABEL_BYTES: usize = 63;
/// Longest path of an executable we take into a pattern or a record.
pub const MAX_PATH_BYTES: usize = 4096;

/// Why a text is not a name of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// The text has no characters.
    #[error("it is empty")]
    Empty,
    /// The text is longer than the protocol allows.
    #[error("it is longer than {limit} bytes")]
    TooLong {
        /// The longest length allowed, in bytes.
        limit: usize,
    },
    /// The text is an IP address where a host name is wanted.
    #[error("it is an IP address, not a host name")]
    IpLiteral,
    /// A label is empty, too long, or holds a character outside `a-z 0-9 - _`.
    #[error("the label `{label}` is not made of letters, digits, `-` and `_`, 1 to 63 of them")]
    Label {
        /// The offending label, escaped.
        label: String,
    },
    /// The name cannot be written in ASCII (IDNA, UTS 46).
    #[error("it cannot be written as an internationalised host name")]
    Idna,
    /// The pattern is a bare wildcard or covers a whole top-level domain.
    #[error("it covers every host, or every host of a top-level domain; name a domain below it")]
    TooBroad,
    /// `**` stands somewhere else than as the first label.
    #[error("`**` may only be the whole first label")]
    DoubleStar,
    /// `*` stands beside other characters in a label that is not the first.
    #[error("beyond the first label, a `*` must be a label of its own")]
    InnerStar,
    /// The pattern cannot be compiled.
    #[error("it is no pattern: {0}")]
    Pattern(InvalidPattern),
    /// A path must begin with `/`.
    #[error("it does not start with `/`")]
    Relative,
    /// A path must not hold `..`.
    #[error("it contains a `..` component")]
    DotDot,
}

/// A host name in canonical form.
///
/// INVARIANT: lower case, A-labels (RFC 5891), no trailing dot, 1 to 253
/// bytes, each label 1 to 63 bytes of `a-z 0-9 - _`, not an IP address.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Host(Box<str>);

impl Host {
    /// Canonicalises `text` into a host name.
    ///
    /// # Errors
    /// [`InvalidName`] when the text is not a host name.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() {
            return Err(InvalidName::Empty);
        }
        // IDNA can only shrink what it maps away; a longer text is never a host.
        if text.len() > MAX_HOST_BYTES * 4 {
            return Err(InvalidName::TooLong { limit: MAX_HOST_BYTES });
        }
        let ascii = if text.is_ascii() {
            text.to_ascii_lowercase()
        } else {
            idna::domain_to_ascii(text).map_err(|_errors| InvalidName::Idna)?
        };
        check_labels(&ascii)?;
        if looks_like_address(&ascii) {
            return Err(InvalidName::IpLiteral);
        }
        Ok(Self(ascii.into_boxed_str()))
    }

    /// The canonical text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True for a single label such as a compose service name.
    pub fn is_single_label(&self) -> bool {
        !self.0.contains('.')
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Host({})", self.0)
    }
}

fn check_labels(ascii: &str) -> Result<(), InvalidName> {
    if ascii.len() > MAX_HOST_BYTES {
        return Err(InvalidName::TooLong { limit: MAX_HOST_BYTES });
    }
    for label in ascii.split('.') {
        let fine = !label.is_empty()
            && label.len() <= MAX_LABEL_BYTES
            && label
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_');
        if !fine {
            return Err(InvalidName::Label { label: label.escape_debug().to_string() });
        }
    }
    Ok(())
}

/// True for whatever a resolver might read as an IPv4 address without asking
/// DNS: `inet_aton(3)` takes `127.1`, `0x7f.1` and `2130706433` too. The last
/// label decides, as in the WHATWG URL standard.
fn looks_like_address(ascii: &str) -> bool {
    let last = ascii.rsplit('.').next().unwrap_or(ascii);
    let digits = last.strip_prefix("0x").map_or(last, |hex| hex);
    if last.starts_with("0x") {
        return digits.bytes().all(|b| b.is_ascii_hexdigit());
    }
    last.bytes().all(|b| b.is_ascii_digit())
}

/// What an endpoint's `host:` covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostPattern {
    /// One address, written literally in the policy.
    Address(IpAddr),
    /// One name.
    Exact(Host),
    /// Names by wildcard: `*` stays within a label, a first label `**` spans
    /// one or more.
    Wild(Pattern),
    /// Every name: an endpoint that names addresses instead.
    Any,
    /// A text that OpenShell accepts and no host name can ever match.
    Never(String),
}

impl HostPattern {
    /// Reads a host pattern as policy writes it.
    ///
    /// # Errors
    /// [`InvalidName`] when the text is no host name, address or wildcard.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        if let Ok(address) = IpAddr::from_str(text) {
            return Ok(Self::Address(crate::address::unwrap(address)));
        }
        // The other wildcards mean something only beside a `*`.
        if text.contains('*') {
            return wild(text).map(Self::Wild);
        }
        Host::parse(text).map(Self::Exact)
    }

    /// True when `host` is covered.
    pub fn matches(&self, host: &Host) -> bool {
        match self {
            Self::Address(_) | Self::Never(_) => false,
            Self::Exact(own) => own == host,
            Self::Wild(pattern) => pattern.matches(host.as_str()),
            Self::Any => true,
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Exact(host) => host.fmt(f),
            Self::Wild(pattern) => pattern.fmt(f),
            Self::Any => f.write_str("any host"),
            Self::Never(text) => f.write_str(text),
        }
    }
}

fn wild(text: &str) -> Result<Pattern, InvalidName> {
    if text.len() > MAX_HOST_BYTES {
        return Err(InvalidName::TooLong { limit: MAX_HOST_BYTES });
    }
    let text = text.to_ascii_lowercase();
    let labels: Vec<&str> = text.split('.').collect();
    let star = |label: &&str| matches!(*label, "*" | "**");
    if labels.iter().all(star) || (labels.len() == 2 && labels.first().is_some_and(star)) {
        return Err(InvalidName::TooBroad);
    }
    for (n, label) in labels.iter().enumerate() {
        if label.contains("**") && (n > 0 || *label != "**") {
            return Err(InvalidName::DoubleStar);
        }
        if n > 0 && label.contains('*') && *label != "*" {
            return Err(InvalidName::InnerStar);
        }
        let fine = !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_*?[]{},!^".contains(&b));
        if !fine {
            return Err(InvalidName::Label { label: label.escape_debug().to_string() });
        }
    }
    let pattern = Pattern::parse(&text, Kind::Dotted).map_err(InvalidName::Pattern)?;
    // Other spellings of "everything below a top-level domain".
    let last = labels.last().copied().unwrap_or_default();
    let literal = last.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let tops: [&str; 3] = if literal { [last; 3] } else { ["com", "net", "example"] };
    if tops.iter().any(|top| {
        pattern.matches(&format!("q0z-9x7.{top}")) && pattern.matches(&format!("w8v-2k.{top}"))
    }) {
        return Err(InvalidName::TooBroad);
    }
    Ok(pattern)
}

/// A pattern over the absolute path of an executable, as the kernel reports it
/// in `/proc/PID/exe`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BinaryPattern {
    pattern: Pattern,
    literal: bool,
    trust: Trust,
}

/// Which files at a path are the program that policy means.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum Trust {
    /// Those that were there before anything in the sandbox ran, as they were.
    #[default]
    Start,
    /// Whatever the sandbox puts there.
    Writable,
    /// One with this SHA-256 digest, in lower-case hexadecimal.
    Digest(String),
}

impl BinaryPattern {
    /// Reads a pattern: `*` stays within a component, `**` spans any depth; a
    /// text without `*` is one path, compared byte by byte.
    ///
    /// # Errors
    /// [`InvalidName`] when the path is relative, too long or holds `..`.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        if !text.starts_with('/') && text != "**" {
            return Err(if text.is_empty() { InvalidName::Empty } else { InvalidName::Relative });
        }
        if text.split('/').any(|part| part == "..") {
            return Err(InvalidName::DotDot);
        }
        Self::parse_any(text)
    }

    /// As [`BinaryPattern::parse`], but also what no path can match: OpenShell
    /// takes any text.
    ///
    /// # Errors
    /// [`InvalidName`] when the text is too long or no pattern.
    pub fn parse_any(text: &str) -> Result<Self, InvalidName> {
        if text.len() > MAX_PATH_BYTES {
            return Err(InvalidName::TooLong { limit: MAX_PATH_BYTES });
        }
        let literal = !text.contains('*');
        let pattern = if literal {
            Pattern::literal(text, Kind::Path)
        } else {
            Pattern::parse(text, Kind::Path).map_err(InvalidName::Pattern)?
        };
        Ok(Self { pattern, literal, trust: Trust::Start })
    }

    /// The same with another kind of trust.
    #[must_use]
    pub fn trusting(self, trust: Trust) -> Self {
        Self { trust, ..self }
    }

    /// Which files at its path are meant.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// The text as policy wrote it.
    pub fn as_str(&self) -> &str {
        self.pattern.as_str()
    }

    /// The pattern behind it.
    pub fn pattern(&self) -> &Pattern {
        &self.pattern
    }

    /// True when the pattern names exactly one path.
    pub fn is_literal(&self) -> bool {
        self.literal
    }

    /// True when `path` is covered.
    pub fn matches(&self, path: &str) -> bool {
        self.pattern.matches(path)
    }
}

impl fmt::Display for BinaryPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_host_are_equal() {
        let canonical = Host::parse("api.example.com").unwrap();
        for spelling in ["API.example.COM", "api.example.com.", "Api.Example.Com."] {
            assert_eq!(Host::parse(spelling).unwrap(), canonical, "{spelling}");
        }
        assert_eq!(Host::parse("bücher.example").unwrap().as_str(), "xn--bcher-kva.example");
    }

    #[test]
    fn addresses_in_any_dress_are_not_hosts() {
        for text in ["127.0.0.1", "127.1", "2130706433", "0x7f.1", "0x7f000001", "1.2.3.4."] {
            assert_eq!(Host::parse(text), Err(InvalidName::IpLiteral), "{text}");
        }
    }

    #[test]
    fn bad_hosts_are_refused() {
        for text in ["", ".", "a..b", "a b.example", "a/b", "*.example.com", "-\u{0}.x"] {
            assert!(Host::parse(text).is_err(), "{text:?}");
        }
        assert!(Host::parse(&"a".repeat(64)).is_err());
        assert!(Host::parse(&["abcdefg"; 40].join(".")).is_err());
    }

    #[test]
    fn a_star_stays_within_its_label() {
        let glob = HostPattern::parse("*.example.com").unwrap();
        assert!(glob.matches(&Host::parse("a.example.com").unwrap()));
        assert!(!glob.matches(&Host::parse("a.b.example.com").unwrap()));
        assert!(!glob.matches(&Host::parse("example.com").unwrap()));
        let deep = HostPattern::parse("**.example.com").unwrap();
        assert!(deep.matches(&Host::parse("a.b.example.com").unwrap()));
        assert!(!deep.matches(&Host::parse("example.com.evil.test").unwrap()));
    }

    #[test]
    fn broad_wildcards_are_refused() {
        for text in ["*", "**", "*.com", "**.com", "*.*", "*.*.*", "a**.x.com", "a.**.com"] {
            assert!(HostPattern::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn binary_patterns_follow_components() {
        let one = BinaryPattern::parse("/usr/bin/python3*").unwrap();
        assert!(one.matches("/usr/bin/python3.11"));
        assert!(!one.matches("/usr/bin/python3/evil"));
        let deep = BinaryPattern::parse("/opt/**/node").unwrap();
        assert!(deep.matches("/opt/node"));
        assert!(deep.matches("/opt/a/b/node"));
        assert!(BinaryPattern::parse("/**").unwrap().matches("/anything/at/all"));
        assert!(!BinaryPattern::parse("/usr/bin/curl").unwrap().matches("/usr/bin/curl2"));
        assert!(BinaryPattern::parse("curl").is_err());
        assert!(BinaryPattern::parse("/usr/../bin/curl").is_err());
    }
}
