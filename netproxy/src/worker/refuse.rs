//! Telling a client no: at once, and in words where it speaks plain HTTP.

use std::time::Duration;

use nemoclaw_spec::decide::{Denial, Reason};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Context;
use super::connection::Attempt;

/// How long a client may take to show which protocol it speaks.
const FIRST_BYTES: Duration = Duration::from_millis(250);
/// How long a client may take for the rest of its request.
const REST: Duration = Duration::from_millis(500);
/// Most bytes of a refused request that are read, so that the client gets to
/// our answer.
const MAX_READ: usize = 64 * 1024;

/// Ends a connection with a reset.
pub(super) fn reset(stream: &TcpStream) {
    // Without it the client would see an orderly, empty answer.
    let _set = stream.set_zero_linger();
}

/// Refuses a captured connection: HTTP clients get a 403 that explains, all
/// others a reset.
pub(super) async fn captured(
    context: &Context,
    mut stream: TcpStream,
    attempt: &Attempt<'_>,
    denial: &Denial,
) {
    let Ok(_explained) = context.explained.try_acquire() else {
        reset(&stream);
        return;
    };
    let mut first = [0_u8; 16];
    let speaks_http = match timeout(FIRST_BYTES, stream.peek(&mut first)).await {
        Ok(Ok(length)) => is_http(first.get(..length).unwrap_or_default()),
        _ => false,
    };
    if !speaks_http || timeout(REST, drain_head(&mut stream)).await.is_err() {
        reset(&stream);
        return;
    }
    let body = explanation(context, attempt, denial);
    let head = format!(
        "HTTP/1.1 {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n",
        status_line(denial.reason),
        body.len()
    );
    let answer = [head.as_bytes(), body.as_bytes()].concat();
    let polite = async {
        stream.write_all(&answer).await?;
        stream.shutdown().await?;
        // Unread bytes would turn the close into a reset that can overtake the answer.
        let mut rest = [0_u8; 4096];
        let mut read = 0;
        while read < MAX_READ {
            match stream.read(&mut rest).await? {
                0 => break,
                length => read += length,
            }
        }
        std::io::Result::Ok(())
    };
    let _told = timeout(REST, polite).await;
}

/// The status of a refusal: what policy refuses is forbidden, what the network
/// refuses is a gateway's error.
pub(super) fn status(reason: Reason) -> u16 {
    match reason {
        Reason::NoSuchHost | Reason::UpstreamUnreachable => 502,
        Reason::Malformed => 400,
        Reason::Internal => 500,
        Reason::AddressNever
        | Reason::AddressNotListed
        | Reason::AddressPrivate
        | Reason::BinaryChanged
        | Reason::BinaryNotAllowed
        | Reason::CallerUnknown
        | Reason::ConnectionBudget
        | Reason::NoEndpoint
        | Reason::RequestDenied
        | Reason::RequestNotAllowed
        | Reason::NameBudget
        | Reason::ServerName => 403,
    }
}

/// What policy refuses is refused; what the network refuses is not our doing.
fn verdict(reason: Reason) -> &'static str {
    if status(reason) == 502 { "allowed by nemoclaw, but it failed" } else { "refused by nemoclaw" }
}

fn status_line(reason: Reason) -> &'static str {
    match status(reason) {
        400 => "400 Bad Request",
        500 => "500 Internal Server Error",
        502 => "502 Bad Gateway",
        _ => "403 Forbidden",
    }
}

/// The body of a refusal, ending with a line feed for terminals.
pub(super) fn explanation(context: &Context, attempt: &Attempt<'_>, denial: &Denial) -> String {
    let event = &attempt.event;
    let mut text = json!({
        "error": format!("{}: {}", verdict(denial.reason), denial.reason.sentence()),
        "reason": denial.reason.code(),
        "detail": denial.reason.sentence(),
        "host": event.host,
        "port": event.port,
        "binary": event.binary,
        "rule": event.rule,
        "allow_with": event.allow_with,
        "sandbox": context.sandbox,
    })
    .to_string();
    text.push('\n');
    text
}

/// True when the bytes can begin an HTTP/1 request (RFC 9112 section 3): a
/// method and a space.
fn is_http(bytes: &[u8]) -> bool {
    let method = bytes.iter().take_while(|byte| byte.is_ascii_uppercase()).count();
    (3..=10).contains(&method) && bytes.get(method) == Some(&b' ')
}

/// Reads up to the end of the request's head, or as much as we read of anyone.
async fn drain_head(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut seen: Vec<u8> = Vec::new();
    let mut bytes = [0_u8; 4096];
    while seen.len() < MAX_READ {
        let length = stream.read(&mut bytes).await?;
        seen.extend(bytes.get(..length).unwrap_or_default());
        if length == 0 || seen.windows(4).any(|end| end == b"\r\n\r\n") {
            return Ok(());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::is_http;

    #[test]
    fn http_is_told_from_other_protocols() {
        for text in ["GET / HTTP/1.1", "OPTIONS * HT", "POST /x"] {
            assert!(is_http(text.as_bytes()), "{text}");
        }
        for bytes in [&b"\x16\x03\x01\x02"[..], b"SSH-2.0-x", b"", b"EHLO", b"get /", b"G /"] {
            assert!(!is_http(bytes), "{bytes:?}");
        }
    }
}
