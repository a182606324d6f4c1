//! Going out through the operator's own HTTP proxy (RFC 9110 section 9.3.6).

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use nemoclaw_spec::decide::{Destination, Permit, Reason};
use nemoclaw_spec::policy::UpstreamProxy;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Context;
use super::connection::race;

/// How long the proxy may take to reach a server.
const PATIENCE: Duration = Duration::from_secs(15);
/// Longest head of its answer, in bytes.
const MAX_HEAD: usize = 8 * 1024;

/// A stream through the proxy to where a permit leads.
///
/// # Errors
/// Why there is none; what the proxy says counts as the server's own word.
pub(super) async fn dial(
    context: &Context,
    proxy: &UpstreamProxy,
    permit: &Permit,
) -> Result<(TcpStream, SocketAddr), Reason> {
    let unreachable = |_error| Reason::UpstreamUnreachable;
    // Literal addresses are ours to check; names are the proxy's to resolve.
    if let Destination::Address { address, .. } = permit.destination() {
        permit.check_address(*address)?;
    }
    let addresses = match &proxy.host {
        Destination::Host(host) => context.resolver.resolve(host).await.map_err(unreachable)?,
        Destination::Address { address, .. } => vec![*address],
    };
    let targets = addresses.into_iter().map(|ip| SocketAddr::new(ip, proxy.port)).collect();
    let dialled = race(&context.link, targets, None).await;
    let (mut stream, address) = dialled.ok_or(Reason::UpstreamUnreachable)?;
    let asked = timeout(PATIENCE, connect(&mut stream, permit)).await;
    match asked {
        Ok(Ok(true)) => Ok((stream, address)),
        Ok(Ok(false) | Err(_)) | Err(_) => Err(Reason::UpstreamUnreachable),
    }
}

/// Asks for a tunnel; false where the proxy refuses.
async fn connect(stream: &mut TcpStream, permit: &Permit) -> io::Result<bool> {
    let port = permit.port();
    let authority = match permit.destination() {
        Destination::Host(host) => format!("{host}:{port}"),
        Destination::Address { address, .. } => SocketAddr::new(*address, port).to_string(),
    };
    let request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let head = head(stream).await?;
    // `HTTP/1.1 200 ...`: any 2xx opens the tunnel.
    let status = head.strip_prefix(b"HTTP/1.").and_then(|rest| rest.get(1..4));
    Ok(status.is_some_and(|status| status.starts_with(b" 2")))
}

/// The head of the answer, and not a byte of what follows: a server may speak first.
async fn head(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    const END: &[u8] = b"\r\n\r\n";
    let mut head = Vec::new();
    let mut seen = vec![0; MAX_HEAD];
    while head.len() < MAX_HEAD {
        let length = stream.peek(&mut seen).await?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let already = head.len();
        head.extend(seen.get(..length).unwrap_or_default());
        let from = already.saturating_sub(END.len() - 1);
        let found = head.get(from..).unwrap_or_default();
        let end = found.windows(END.len()).position(|window| window == END);
        let whole = end.map(|at| from + at + END.len());
        head.truncate(whole.unwrap_or(head.len()));
        let taken = head.len() - already;
        stream.read_exact(seen.get_mut(..taken).unwrap_or_default()).await?;
        if whole.is_some() {
            return Ok(head);
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}
