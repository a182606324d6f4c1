//! Path (b) of the product: a captured connection, from accept to close.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use nemoclaw_spec::address;
use nemoclaw_spec::audit::Event;
use nemoclaw_spec::control::{EXPLICIT_HOST, EXPLICIT_PORT};
use nemoclaw_spec::decide::{Caller, Decision, Denial, Destination, Intent, Permit, Reason};
use nemoclaw_spec::name::Host;
use nix::sys::socket::{getsockopt, sockopt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Context, explicit, refuse, relay};

/// How long one address may take to answer before the next is tried.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

/// Serves one captured connection.
pub(super) async fn serve(context: &Context, stream: TcpStream, client: SocketAddr) {
    let Some(dialled) = original_destination(&stream) else {
        // Somebody dialled our listener itself; there is nothing to serve.
        refuse::reset(&stream);
        record_stray(context, &stream, client).await;
        return;
    };
    let _held = context.names.hold(dialled.ip());
    let destination = destination(context, dialled.ip());
    let explicit =
        matches!(&destination, Destination::Host(host) if host.as_str() == EXPLICIT_HOST);
    if explicit && dialled.port() == EXPLICIT_PORT {
        explicit::serve(context, stream, client, dialled).await;
        return;
    }
    let intent = Intent::connect(destination, dialled.port());
    let caller = context.link.identify(client, dialled).await;
    let mut attempt = Attempt::new(context, "tcp", intent, caller, client);
    match attempt.open().await {
        Ok(upstream) => {
            let started = Instant::now();
            let (sent, received) = relay::run(stream, upstream).await;
            attempt.close(started, sent, received).await;
        }
        Err(denial) => refuse::captured(context, stream, &attempt, &denial).await,
    }
}

/// Records a connection that was never meant for anything outside.
async fn record_stray(context: &Context, stream: &TcpStream, client: SocketAddr) {
    let Ok(local) = stream.local_addr() else { return };
    let destination = Destination::Address { address: local.ip(), names: Vec::new() };
    let intent = Intent::connect(destination, local.port());
    let caller = context.link.identify(client, local).await;
    let mut event = Event::new("tcp", &intent, &caller, client.to_string());
    event.refused(&Denial { reason: Reason::Malformed, nearest: None }, &intent, &caller);
    // The connection is reset either way.
    let _recorded = context.recorder.write(&event).await;
}

/// Where the client dialled, before the redirection.
fn original_destination(stream: &TcpStream) -> Option<SocketAddr> {
    let local = stream.local_addr().ok()?;
    let dialled = if local.is_ipv4() {
        let raw = getsockopt(stream, sockopt::OriginalDst).ok()?;
        SocketAddr::from((
            u32::from_be(raw.sin_addr.s_addr).to_be_bytes(),
            u16::from_be(raw.sin_port),
        ))
    } else {
        let raw = getsockopt(stream, sockopt::Ip6tOriginalDst).ok()?;
        SocketAddr::from((raw.sin6_addr.s6_addr, u16::from_be(raw.sin6_port)))
    };
    (dialled != local).then_some(dialled)
}

/// What an address means: the name our resolver gave it to, or itself with the
/// names of the engine's hosts file.
fn destination(context: &Context, dialled: IpAddr) -> Destination {
    let dialled = address::unwrap_mapped(dialled);
    if let Some(host) = context.names.host_of(dialled) {
        return Destination::Host(host);
    }
    let names = context
        .hosts
        .iter()
        .filter(|(address, _)| *address == dialled)
        .flat_map(|(_, names)| names)
        .filter_map(|name| Host::parse(name).ok())
        .collect();
    Destination::Address { address: dialled, names }
}

/// One thing a client wants, with the record of what became of it.
pub(super) struct Attempt<'a> {
    context: &'a Context,
    pub(super) intent: Intent,
    pub(super) caller: Caller,
    pub(super) event: Event,
    accepted: Instant,
}

impl<'a> Attempt<'a> {
    pub(super) fn new(
        context: &'a Context,
        via: &str,
        intent: Intent,
        caller: Caller,
        client: SocketAddr,
    ) -> Self {
        let event = Event::new(via, &intent, &caller, client.to_string());
        Self { context, intent, caller, event, accepted: Instant::now() }
    }

    /// Decides, dials, and records either outcome before anything else
    /// happens.
    ///
    /// # Errors
    /// The refusal, already recorded.
    pub(super) async fn open(&mut self) -> Result<TcpStream, Denial> {
        let outcome = match self.decide() {
            Ok(permit) => {
                self.event.allowed(permit.rule());
                self.dial(&permit)
                    .await
                    .map_err(|reason| Denial { reason, nearest: Some(permit.rule().clone()) })
            }
            Err(denial) => Err(denial),
        };
        let outcome = match outcome {
            Ok((stream, address)) => {
                self.event.address = Some(address.to_string());
                Ok(stream)
            }
            Err(denial) => {
                self.event.refused(&denial, &self.intent, &self.caller);
                Err(denial)
            }
        };
        self.event.ms = milliseconds(self.accepted);
        // What cannot be recorded does not happen.
        if self.context.recorder.write(&self.event).await.is_err() {
            return Err(Denial { reason: Reason::Internal, nearest: None });
        }
        outcome
    }

    fn decide(&self) -> Result<Permit, Denial> {
        let decision = match self.context.engine {
            Some(engine) => engine.decide(&self.intent, &self.caller),
            None => Decision::observed(&self.intent),
        };
        match decision {
            Decision::Allow(permit) => Ok(permit),
            // Policies whose rules look inside are refused before they get
            // here; unread requests are nobody's to allow.
            Decision::Inspect(inspect) => {
                Err(Denial { reason: Reason::Internal, nearest: Some(inspect.rule) })
            }
            Decision::Deny(denial) => Err(denial),
        }
    }

    /// Resolves, checks every address and dials one that was checked.
    async fn dial(&self, permit: &Permit) -> Result<(TcpStream, SocketAddr), Reason> {
        let candidates = match permit.destination() {
            Destination::Host(host) => self
                .context
                .resolver
                .resolve(host)
                .await
                .map_err(|_error| Reason::UpstreamUnreachable)?,
            Destination::Address { address, .. } => vec![*address],
        };
        if candidates.is_empty() {
            return Err(Reason::NoSuchHost);
        }
        let mut refused = None;
        for candidate in candidates {
            let candidate = address::unwrap_mapped(candidate);
            if let Err(reason) = permit.check_address(candidate) {
                refused.get_or_insert(reason);
                continue;
            }
            let target = SocketAddr::new(candidate, permit.port());
            match timeout(CONNECT_PATIENCE, self.context.link.connect(target)).await {
                Ok(Ok(stream)) => return Ok((stream, target)),
                Ok(Err(_)) | Err(_) => {
                    refused = Some(Reason::UpstreamUnreachable);
                }
            }
        }
        Err(refused.unwrap_or(Reason::UpstreamUnreachable))
    }

    /// Records the end of an allowed connection.
    pub(super) async fn close(&mut self, started: Instant, sent: u64, received: u64) {
        "close".clone_into(&mut self.event.event);
        self.event.sent = sent;
        self.event.received = received;
        self.event.ms = milliseconds(started);
        // The connection has ended; a lost supervisor ends us as well.
        let _recorded = self.context.recorder.write(&self.event).await;
    }
}

fn milliseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
