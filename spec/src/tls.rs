//! What a TLS client says it wants, before anything is encrypted: the server name
//! of its ClientHello (RFC 8446 section 4.1.2, RFC 6066 section 3).
//!
//! The name never opens anything. It has to agree with the host that the
//! connection was opened to, or whoever relays untouched bytes relays them to
//! another site of the same servers.

use std::net::IpAddr;

use crate::address;
use crate::decide::Destination;
use crate::name::Host;

/// Most bytes of a ClientHello that are looked at; hellos with post-quantum shares
/// have about two thousand.
pub const MAX_HELLO_BYTES: usize = 32 * 1024;

const HANDSHAKE: u8 = 22;
const ALERT: u8 = 21;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
/// A record's content: 2^14, and 2048 more where peers are generous (RFC 5246).
const MAX_RECORD: usize = 16_384 + 2_048;

/// What the first bytes of a stream are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hello {
    /// The beginning of a ClientHello; more has to come.
    Incomplete,
    /// No TLS.
    Other,
    /// A ClientHello, with its server name where it has one.
    Client(Option<String>),
    /// TLS that no client of good faith sends.
    Malformed,
}

/// Reads the first bytes that a client sent. Whatever more is appended to bytes that
/// were [`Hello::Other`], [`Hello::Client`] or [`Hello::Malformed`], the answer stays.
pub fn hello(bytes: &[u8]) -> Hello {
    match bytes {
        [] | [HANDSHAKE | ALERT] => return Hello::Incomplete,
        [HANDSHAKE, 3, ..] => {}
        [HANDSHAKE | ALERT, 0..=15, ..] => return disguised(bytes),
        _ => return Hello::Other,
    }
    let mut message = Vec::new();
    let mut rest = bytes;
    loop {
        // The message may be cut into several records.
        let mut reader = Reader(rest);
        match (reader.byte(), reader.byte(), reader.byte().and_then(|_minor| reader.number())) {
            (Some(HANDSHAKE), Some(3), Some(length)) => {
                if length == 0 || length > MAX_RECORD {
                    return Hello::Malformed;
                }
                let here = length.min(reader.0.len());
                message.extend(reader.0.get(..here).unwrap_or_default());
                match client_hello(&message) {
                    Hello::Incomplete if here == length => {
                        rest = reader.0.get(length..).unwrap_or_default();
                    }
                    Hello::Incomplete => break,
                    other => return other,
                }
            }
            (Some(HANDSHAKE) | None, Some(3) | None, _) => break,
            _ => return Hello::Malformed,
        }
    }
    if bytes.len() >= MAX_HELLO_BYTES { Hello::Malformed } else { Hello::Incomplete }
}

/// Some servers take a hello in a record of any version below 16, or after alerts (Go's
/// crypto/tls, `readRecordOrCCS`): what looks like that is no other protocol, as far
/// as the lengths in it agree.
fn disguised(bytes: &[u8]) -> Hello {
    /// A hello without anything optional (RFC 5246).
    const SHORTEST: usize = 38;
    let mut reader = Reader(bytes);
    let kind = reader.byte();
    let (Some(_version), Some(length)) = (reader.number(), reader.number()) else {
        return Hello::Incomplete;
    };
    if kind == Some(ALERT) {
        return if length == 2 { Hello::Malformed } else { Hello::Other };
    }
    let first = reader.byte();
    // A message that goes on in the next record.
    if first == Some(CLIENT_HELLO) && (1..4).contains(&length) {
        return Hello::Malformed;
    }
    match (first, reader.byte(), reader.number()) {
        (Some(CLIENT_HELLO), Some(0), Some(inner)) if inner >= SHORTEST => Hello::Malformed,
        (Some(CLIENT_HELLO) | None, Some(0) | None, None) => Hello::Incomplete,
        _ => Hello::Other,
    }
}

/// Reads a handshake message as far as it has come.
fn client_hello(message: &[u8]) -> Hello {
    let mut reader = Reader(message);
    match reader.byte() {
        None => return Hello::Incomplete,
        Some(CLIENT_HELLO) => {}
        Some(_) => return Hello::Malformed,
    }
    let (Some(high), Some(low)) = (reader.byte(), reader.number()) else {
        return Hello::Incomplete;
    };
    let length = usize::from(high) << 16 | low;
    if length > MAX_HELLO_BYTES {
        return Hello::Malformed;
    }
    match reader.take(length) {
        None => Hello::Incomplete,
        Some(body) => server_name(body).map_or(Hello::Malformed, Hello::Client),
    }
}

/// The server name of a whole ClientHello; `None` for one that breaks the rules.
#[expect(clippy::option_option, reason = "broken, without a name, with one")]
fn server_name(body: &[u8]) -> Option<Option<String>> {
    const VERSION_AND_RANDOM: usize = 34;
    let mut reader = Reader(body);
    reader.take(VERSION_AND_RANDOM)?;
    let session = usize::from(reader.byte()?);
    reader.take(session)?;
    reader.vector()?;
    let compression = usize::from(reader.byte()?);
    reader.take(compression)?;
    if reader.0.is_empty() {
        return Some(None);
    }
    let mut extensions = Reader(reader.vector()?);
    if !reader.0.is_empty() {
        return None;
    }
    let mut found = None;
    while !extensions.0.is_empty() {
        let kind = extensions.number()?;
        let content = extensions.vector()?;
        if kind != usize::from(SERVER_NAME) {
            continue;
        }
        let mut list = Reader(content);
        let mut names = Reader(list.vector()?);
        let (kind, name) = (names.byte()?, names.vector()?);
        // RFC 6066: one name of a type, and there is one type.
        if kind != HOST_NAME || !names.0.is_empty() || !list.0.is_empty() || found.is_some() {
            return None;
        }
        if name.is_empty() || !name.iter().all(u8::is_ascii_graphic) {
            return None;
        }
        found = Some(String::from_utf8_lossy(name).into_owned());
    }
    Some(found)
}

/// Whether a server name agrees with what the connection was opened to. A client
/// that names nobody disagrees with nobody; an address without names cannot be
/// confirmed by one.
pub fn agrees(server_name: Option<&str>, destination: &Destination) -> bool {
    let Some(text) = server_name else { return true };
    match destination {
        Destination::Host(host) => Host::parse(text).is_ok_and(|named| named == *host),
        Destination::Address { names, .. } if names.is_empty() => true,
        Destination::Address { address, names } => {
            Host::parse(text).is_ok_and(|named| names.contains(&named))
                || text.parse::<IpAddr>().is_ok_and(|named| address::unwrap(named) == *address)
        }
    }
}

/// Bytes not read yet.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    /// A number of two bytes.
    fn number(&mut self) -> Option<usize> {
        match self.take(2)? {
            &[high, low] => Some(usize::from(high) << 8 | usize::from(low)),
            _ => None,
        }
    }

    /// Bytes behind their number.
    fn vector(&mut self) -> Option<&'a [u8]> {
        let length = self.number()?;
        self.take(length)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn vector(content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).unwrap();
        [&length.to_be_bytes()[..], content].concat()
    }

    fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &vector(content)].concat()
    }

    fn named(name: &str) -> Vec<u8> {
        extension(0, &vector(&[&[0][..], &vector(name.as_bytes())].concat()))
    }

    fn message(extensions: &[u8]) -> Vec<u8> {
        let body = [
            &[3, 3][..],
            &[7; 32],
            &[32],
            &[9; 32],
            &vector(&[0x13, 1, 0x13, 2]),
            &[1, 0],
            &vector(extensions),
        ]
        .concat();
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        [&[1][..], &length[1..], &body].concat()
    }

    fn record(message: &[u8]) -> Vec<u8> {
        [&[22, 3, 1][..], &vector(message)].concat()
    }

    fn client(extensions: &[u8]) -> Vec<u8> {
        record(&message(extensions))
    }

    #[test]
    fn the_server_name_is_found() {
        let both = [extension(43, &[2, 3, 4]), named("Api.Example"), extension(51, &[0; 1200])];
        assert_eq!(hello(&client(&both.concat())), Hello::Client(Some("Api.Example".to_owned())));
        assert_eq!(hello(&client(&extension(43, &[2, 3, 4]))), Hello::Client(None));
        // What follows the hello (early data) changes nothing.
        let more = [client(&named("a.example")), vec![23, 3, 3, 0, 1, 0]].concat();
        assert_eq!(hello(&more), Hello::Client(Some("a.example".to_owned())));
    }

    #[test]
    fn what_breaks_the_rules_is_malformed() {
        let twice = [named("a.example"), named("b.example")].concat();
        let two = [&[0][..], &vector(b"a.example"), &[0], &vector(b"b.example")].concat();
        for broken in [
            client(&twice),
            client(&extension(0, &vector(&two))),
            client(&named("")),
            client(&named("a.example\0.b.example")),
            client(&[0, 0, 0, 9, 1]),
            record(&[2, 0, 0, 1, 0]),
            vec![22, 3, 1, 0, 0],
            vec![22, 3, 1, 0xff, 0xff],
            [record(&message(&named("a.example"))[..20]), vec![23, 3, 3, 0, 1, 0]].concat(),
            record(&[1, 0xff, 0, 0]),
        ] {
            assert_eq!(hello(&broken), Hello::Malformed, "{broken:02x?}");
        }
        // What a lenient server would take for a hello.
        let whole = client(&named("b.example"));
        let versions = [0, 1, 2, 15].map(|major| [&[22, major][..], &whole[2..]].concat());
        let alerts = [[21, 3, 1, 0, 2, 1, 90], [21, 0, 0, 0, 2, 1, 90]];
        for disguised in versions.iter().map(Vec::as_slice).chain(alerts.iter().map(|a| &a[..])) {
            assert_eq!(hello(disguised), Hello::Malformed, "{disguised:02x?}");
            assert_eq!(hello(&disguised[..4]), Hello::Incomplete);
        }
        for cut in 1..60 {
            let whole = message(&named("b.example"));
            let (first, second) = whole.split_at(cut);
            let mut pieces = [record(first), record(second)].concat();
            pieces[1] = 2;
            assert_eq!(hello(&pieces), Hello::Malformed, "cut at {cut}");
        }
        // MongoDB and MySQL begin with a length, least byte first.
        let mongo = [22, 1, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 221, 7, 0, 0];
        let mysql = [21, 0, 0, 1, 133, 166];
        for other in
            [&b"GET / HTTP/1.1"[..], b"SSH-2.0", &mongo, &mysql, &[0x80, 0x2e, 1], &[22, 16]]
        {
            assert_eq!(hello(other), Hello::Other, "{other:02x?}");
        }
    }

    #[test]
    fn names_have_to_agree() {
        let host = |text: &str| Host::parse(text).unwrap();
        let to_host = Destination::Host(host("api.example"));
        assert!(agrees(None, &to_host));
        assert!(agrees(Some("API.example"), &to_host));
        assert!(!agrees(Some("other.example"), &to_host));
        assert!(!agrees(Some("203.0.113.9"), &to_host));
        let address: IpAddr = "203.0.113.9".parse().unwrap();
        let bare = Destination::Address { address, names: Vec::new() };
        assert!(agrees(Some("any.example"), &bare));
        let written = Destination::Address { address, names: vec![host("db"), host("db.example")] };
        assert!(agrees(Some("db.example"), &written) && agrees(Some("203.0.113.9"), &written));
        assert!(!agrees(Some("api.example"), &written));
    }

    proptest! {
        #[test]
        fn it_does_not_matter_where_it_is_cut(
            name in "[a-z]{1,20}(\\.[a-z]{1,20}){1,3}",
            padding in 0_usize..3000,
            cuts in prop::collection::vec(1_usize..900, 1..6),
        ) {
            let extensions = [extension(21, &vec![0; padding]), named(&name)].concat();
            let whole = message(&extensions);
            let mut rest = &whole[..];
            let mut bytes = Vec::new();
            for cut in cuts {
                let (first, second) = rest.split_at(cut.min(rest.len() - 1));
                bytes.extend(record(first));
                rest = second;
                if rest.len() == 1 { break; }
            }
            bytes.extend(record(rest));
            prop_assert_eq!(hello(&bytes), Hello::Client(Some(name)));
            for length in 0..bytes.len() {
                prop_assert_eq!(hello(&bytes[..length]), Hello::Incomplete, "{}", length);
            }
        }

        #[test]
        fn an_answer_stays_whatever_follows(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            tls in any::<bool>(),
            more in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let start: &[u8] = if tls { &[22, 3, 1, 0, 60, 1, 0, 0, 56] } else { &[] };
            let bytes = [start, &bytes].concat();
            let first = hello(&bytes);
            if first != Hello::Incomplete {
                prop_assert_eq!(hello(&[bytes, more].concat()), first);
            }
        }
    }
}
