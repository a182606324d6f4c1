//! `proxy.local:3128`: CONNECT and absolute-form requests for clients that
//! insist on a proxy. Every request is decided; hyper parses and re-serialises.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use hyper::http::uri::Authority;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use nemoclaw_spec::decide::{Denial, Destination, Intent, Reason};
use nemoclaw_spec::name::Host;
use tokio::net::TcpStream;

use super::connection::{Attempt, Opening};
use super::{Context, refuse};

type Body = BoxBody<Bytes, hyper::Error>;

/// How long a client may take for a request's head.
const HEAD: Duration = Duration::from_secs(30);
/// Headers that belong to one hop (RFC 9110 section 7.6.1).
const HOP_BY_HOP: [&str; 7] = [
    "connection",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "upgrade",
];

/// Serves one connection to the explicit proxy.
pub(super) async fn serve(
    context: &Context,
    stream: TcpStream,
    client: SocketAddr,
    dialled: SocketAddr,
) {
    // Borrowed data cannot outlive this call, so tunnels run here as well:
    // the request that asked for one leaves it behind.
    let tunnel = std::cell::RefCell::new(None);
    let service = service_fn(|request: Request<Incoming>| {
        let tunnel = &tunnel;
        async move {
            let response = if request.method() == Method::CONNECT {
                connect(context, request, client, dialled, tunnel).await
            } else {
                forward(context, request, client, dialled).await
            };
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_headers(100)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let _ended = connection.await;
    let started = tunnel.borrow_mut().take();
    if let Some(Tunnel { upgrade, upstream, mut attempt, started }) = started {
        let parts = upgrade.await.ok().and_then(|it| it.downcast::<TokioIo<TcpStream>>().ok());
        match parts {
            Some(parts) => {
                attempt.relay((parts.io.into_inner(), &parts.read_buf), upstream).await;
            }
            None => attempt.close(started, 0, 0).await,
        }
    }
}

struct Tunnel<'a> {
    upgrade: hyper::upgrade::OnUpgrade,
    upstream: TcpStream,
    attempt: Attempt<'a>,
    started: Instant,
}

/// CONNECT host:port (RFC 9110 section 9.3.6).
async fn connect<'a>(
    context: &'a Context,
    mut request: Request<Incoming>,
    client: SocketAddr,
    dialled: SocketAddr,
    tunnel: &std::cell::RefCell<Option<Tunnel<'a>>>,
) -> Response<Body> {
    let intent = match request.uri().authority().map(|authority| intent(authority, None)) {
        Some(Ok(intent)) => intent,
        Some(Err(why)) => return malformed(why),
        None => return malformed("CONNECT needs host:port"),
    };
    let opening = Opening::new(context);
    let caller = context.link.identify(client, dialled).await;
    let mut attempt = Attempt::new(context, "connect", intent, caller, client);
    let opened = attempt.open().await;
    drop(opening);
    match opened {
        Ok(upstream) => {
            let upgrade = hyper::upgrade::on(&mut request);
            *tunnel.borrow_mut() =
                Some(Tunnel { upgrade, upstream, attempt, started: Instant::now() });
            Response::new(empty())
        }
        Err(denial) => refusal(context, &attempt, &denial),
    }
}

/// `GET http://host/path`: one decision and one upstream connection a request.
async fn forward(
    context: &Context,
    mut request: Request<Incoming>,
    client: SocketAddr,
    dialled: SocketAddr,
) -> Response<Body> {
    let uri = request.uri().clone();
    let (Some("http"), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return malformed("this is a proxy: use CONNECT, or an absolute http:// address");
    };
    let intent = match intent(authority, Some(80)) {
        Ok(intent) => intent,
        Err(why) => return malformed(why),
    };
    let opening = Opening::new(context);
    let caller = context.link.identify(client, dialled).await;
    let mut attempt = Attempt::new(context, "http", intent, caller, client);
    let opened = attempt.open().await;
    drop(opening);
    let upstream = match opened {
        Ok(upstream) => upstream,
        Err(denial) => return refusal(context, &attempt, &denial),
    };
    let started = Instant::now();
    if !rewrite(&mut request, &uri, authority.as_str()) {
        return malformed("the address has no path");
    }
    let response = match hyper::client::conn::http1::handshake(TokioIo::new(upstream)).await {
        Ok((mut sender, connection)) => {
            tokio::task::spawn_local(async move {
                let _ended = connection.await;
            });
            sender.send_request(request).await
        }
        Err(error) => Err(error),
    };
    attempt.close(started, 0, 0).await;
    match response {
        Ok(mut response) => {
            strip(response.headers_mut());
            response.map(BodyExt::boxed)
        }
        Err(_) => refusal(
            context,
            &attempt,
            &Denial { reason: Reason::UpstreamUnreachable, nearest: None },
        ),
    }
}

/// Origin-form, the authority as Host, nothing of this hop (RFC 9112 3.2.2).
fn rewrite(request: &mut Request<Incoming>, uri: &Uri, authority: &str) -> bool {
    let path = uri.path_and_query().map_or("/", hyper::http::uri::PathAndQuery::as_str);
    let (Ok(path), Ok(host)) = (path.parse::<Uri>(), HeaderValue::from_str(authority)) else {
        return false;
    };
    *request.uri_mut() = path;
    *request.version_mut() = Version::HTTP_11;
    strip(request.headers_mut());
    request.headers_mut().insert(HOST, host);
    request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    true
}

fn strip(headers: &mut hyper::HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Where an authority leads. It is written plainly or refused: who reads it otherwise
/// than we do must not find another place in it.
fn intent(authority: &Authority, default: Option<u16>) -> Result<Intent, &'static str> {
    let host = authority.host();
    let port = match authority.as_str().strip_prefix(host) {
        Some("") => default.ok_or("CONNECT needs host:port")?,
        Some(rest) => rest
            .strip_prefix(':')
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
            .filter(|digits| !digits.starts_with('0'))
            .and_then(|digits| digits.parse().ok())
            .ok_or("the port is no number from 1 to 65535 without zeros before it")?,
        None => return Err("user information in an address is not passed on"),
    };
    let bare = host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']'));
    let destination = match bare.unwrap_or(host).parse::<IpAddr>() {
        Ok(address) => Destination::Address { address, names: Vec::new() },
        Err(_) => Destination::Host(Host::parse(host).map_err(|_odd| "the address names no host")?),
    };
    Ok(Intent::connect(destination, port))
}

fn refusal(context: &Context, attempt: &Attempt<'_>, denial: &Denial) -> Response<Body> {
    let status =
        StatusCode::from_u16(refuse::status(denial.reason)).unwrap_or(StatusCode::FORBIDDEN);
    answer(status, refuse::explanation(context, attempt, denial))
}

fn malformed(why: &str) -> Response<Body> {
    answer(StatusCode::BAD_REQUEST, format!("{{\"error\":\"{why}\"}}\n"))
}

fn answer(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Full::from(text).map_err(|never| match never {}).boxed());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn empty() -> Body {
    Full::default().map_err(|never| match never {}).boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_are_written_plainly_or_refused() {
        let read = |text: &str, default| {
            let authority = text.parse::<Authority>().ok()?;
            let intent = intent(&authority, default).ok()?;
            Some(format!("{} {}", intent.destination, intent.port))
        };
        for (text, wanted) in [
            ("a.test:80", "a.test 80"),
            ("A.Test.:443", "a.test 443"),
            ("192.0.2.1:1", "192.0.2.1 1"),
            ("[2001:db8::1]:65535", "2001:db8::1 65535"),
        ] {
            assert_eq!(read(text, None).as_deref(), Some(wanted));
        }
        assert_eq!(read("a.test", Some(80)).as_deref(), Some("a.test 80"));
        for odd in [
            "a.test",
            "a.test:",
            "a.test:0",
            "a.test:080",
            "a.test:65536",
            "a.test:+80",
            "a.test:8 0",
            "u@a.test:80",
            "u:p@a.test:80",
            "a.test:80:80",
            "[192.0.2.1:80",
            "*.a.test:80",
            "%61.test:80",
        ] {
            assert_eq!(read(odd, None), None, "{odd}");
        }
    }
}
