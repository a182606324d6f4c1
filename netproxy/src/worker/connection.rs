//! Path (b) of the product: a captured connection, from accept to close.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nemoclaw_spec::address;
use nemoclaw_spec::audit::Event;
use nemoclaw_spec::control::{EXPLICIT_HOST, EXPLICIT_PORT};
use nemoclaw_spec::decide::{
    Caller, Decision, Denial, Destination, Intent, Naming, Permit, Reason,
};
use nemoclaw_spec::name::Host;
use nemoclaw_spec::policy::UpstreamProxy;
use nix::sys::socket::{getsockopt, sockopt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::names::Names;
use super::relay::End;
use super::supervisor::Link;
use super::{Context, chain, explicit, refuse, relay};

/// How long one address may take to answer before the next is tried.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// How long one may take before the next is tried as well (RFC 8305 section 8).
const STAGGER: Duration = Duration::from_millis(250);
/// Most addresses of one name that are dialled.
const MAX_TARGETS: usize = 8;

/// Serves one captured connection of the listener at `local`.
pub(super) async fn serve(
    context: &Context,
    stream: TcpStream,
    client: SocketAddr,
    local: SocketAddr,
) {
    let Some(dialled) = original_destination(&stream, local) else {
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
    let opening = Opening::new(context);
    let (caller, begun) = match opening.candidates(&destination) {
        Some((first, candidates)) => {
            let target = SocketAddr::new(first, dialled.port());
            let host = match &destination {
                Destination::Host(host) => Some(host),
                Destination::Address { .. } => None,
            };
            let (caller, socket) = context.link.open(client, dialled, target, host).await;
            (caller, socket.map(|socket| Begun { candidates, target, socket }))
        }
        None => (context.link.identify(client, dialled).await, None),
    };
    let intent = Intent::connect(destination, dialled.port());
    let mut attempt = Attempt::new(context, "tcp", intent, caller, client);
    attempt.begun = begun;
    let outcome = attempt.open().await;
    drop(opening);
    match outcome {
        Ok(upstream) => attempt.relay((stream, &[]), upstream).await,
        Err(denial) => refuse::captured(context, stream, &attempt, &denial).await,
    }
}

/// A socket that the supervisor has sent on its way already.
struct Begun {
    /// The addresses of which the first is dialled.
    candidates: Vec<IpAddr>,
    target: SocketAddr,
    socket: OwnedFd,
}

/// A connection that may be allowed and is not counted yet.
pub(super) struct Opening<'a>(&'a Context);

impl<'a> Opening<'a> {
    pub(super) fn new(context: &'a Context) -> Self {
        context.opening.set(context.opening.get() + 1);
        Self(context)
    }

    /// The addresses of which the first may be dialled as soon as the caller is known
    /// and allowed, where nothing else than policy could be against it: the name is
    /// spelled out in a rule and its addresses are known, and no program has half of
    /// the connections it may have, with those that begin meanwhile.
    fn candidates(&self, destination: &Destination) -> Option<(IpAddr, Vec<IpAddr>)> {
        let Self(context) = self;
        let engine = context.engine?;
        let most = context.programs.borrow().values().max().copied().unwrap_or_default();
        if engine.policy().options.upstream_proxy.is_some()
            || most.saturating_add(context.opening.get()) > context.per_program / 2
        {
            return None;
        }
        let candidates = match destination {
            Destination::Host(host) => {
                let spelled = engine.naming(host) == Naming::Spelled;
                context.resolver.known(host).filter(|_| spelled)?
            }
            Destination::Address { address, .. } if Names::is_shared(*address) => return None,
            Destination::Address { address, .. } => vec![*address],
        };
        Some((address::unwrap_mapped(*candidates.first()?), candidates))
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.0.opening.set(self.0.opening.get().saturating_sub(1));
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

/// Where the client dialled, before the redirection to the listener at `local`.
fn original_destination(stream: &TcpStream, local: SocketAddr) -> Option<SocketAddr> {
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
    context.written.destination(dialled)
}

/// One thing a client wants, with the record of what became of it.
pub(super) struct Attempt<'a> {
    context: &'a Context,
    pub(super) intent: Intent,
    pub(super) caller: Caller,
    pub(super) event: Event,
    accepted: Instant,
    begun: Option<Begun>,
    /// The program's place among its connections, once allowed.
    place: Option<Place<'a>>,
}

/// One of the connections that a program may have at once.
struct Place<'a> {
    context: &'a Context,
    program: String,
}

impl<'a> Place<'a> {
    /// `None`: the program has as many as it may have.
    fn take(context: &'a Context, program: &str) -> Option<Self> {
        let mut programs = context.programs.borrow_mut();
        let open = programs.entry(program.to_owned()).or_default();
        if *open >= context.per_program {
            return None;
        }
        *open += 1;
        Some(Self { context, program: program.to_owned() })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut programs = self.context.programs.borrow_mut();
        if let Some(open) = programs.get_mut(&self.program) {
            *open = open.saturating_sub(1);
            if *open == 0 {
                programs.remove(&self.program);
            }
        }
    }
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
        let accepted = Instant::now();
        Self { context, intent, caller, event, accepted, begun: None, place: None }
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
                self.place = Place::take(self.context, &self.event.binary);
                let dialled = match (&self.place, self.proxy_for(&permit)) {
                    (Some(_), Some(proxy)) => {
                        let place = format!("{}:{}", proxy.host, proxy.port);
                        self.event.upstream_proxy = Some(place);
                        chain::dial(self.context, proxy, &permit).await
                    }
                    (Some(_), None) => {
                        let begun = self.begun.take();
                        self.dial(&permit, begun).await
                    }
                    (None, _) => Err(Reason::ConnectionBudget),
                };
                dialled.map_err(|reason| Denial { reason, nearest: Some(permit.rule().clone()) })
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
        if let Destination::Address { address, .. } = &self.intent.destination
            && Names::is_shared(*address)
        {
            return Err(Denial { reason: Reason::NameBudget, nearest: None });
        }
        let decision = match self.context.engine {
            Some(engine) => engine.decide(&self.intent, &self.caller),
            None => Decision::observed(&self.intent),
        };
        match decision {
            Decision::Allow(permit) => match permit.destination() {
                Destination::Host(host) if !self.may_resolve(host) => {
                    let nearest = Some(permit.rule().clone());
                    Err(Denial { reason: Reason::NameBudget, nearest })
                }
                _ => Ok(permit),
            },
            // Policies whose rules look inside are refused before they get
            // here; unread requests are nobody's to allow.
            Decision::Inspect(inspect) => {
                Err(Denial { reason: Reason::Internal, nearest: Some(inspect.rule) })
            }
            Decision::Deny(denial) => Err(denial),
        }
    }

    /// The operator's proxy, where it is to choose the address.
    fn proxy_for(&self, permit: &Permit) -> Option<&'static UpstreamProxy> {
        let proxy = self.context.engine?.policy().options.upstream_proxy.as_ref()?;
        let chosen = proxy.serves(permit.destination()) && permit.takes_any_public_address();
        chosen.then_some(proxy)
    }

    /// Names of the sandbox's own making reach outside: so many and no more.
    fn may_resolve(&self, host: &Host) -> bool {
        let Context { engine, names, wildcard_names, .. } = self.context;
        engine.is_none_or(|engine| engine.naming(host) == Naming::Spelled)
            || names.may_resolve(host, *wildcard_names)
    }

    /// Resolves, checks every address and dials one that was checked.
    async fn dial(
        &self,
        permit: &Permit,
        begun: Option<Begun>,
    ) -> Result<(TcpStream, SocketAddr), Reason> {
        let (candidates, begun) = match (begun, permit.destination()) {
            // Asked again, a resolver may say something else.
            (Some(begun), _) => (begun.candidates, Some((begun.target, begun.socket))),
            (None, Destination::Host(host)) => {
                let resolved = self.context.resolver.resolve(host).await;
                (resolved.map_err(|_error| Reason::UpstreamUnreachable)?, None)
            }
            (None, Destination::Address { address, .. }) => (vec![*address], None),
        };
        if candidates.is_empty() {
            return Err(Reason::NoSuchHost);
        }
        let mut refused = None;
        let mut targets = Vec::new();
        for candidate in candidates {
            let candidate = address::unwrap_mapped(candidate);
            match permit.check_address(candidate) {
                Ok(()) => targets.push(SocketAddr::new(candidate, permit.port())),
                Err(reason) => {
                    refused.get_or_insert(reason);
                }
            }
        }
        if targets.is_empty() {
            return Err(refused.unwrap_or(Reason::UpstreamUnreachable));
        }
        let dialled = race(&self.context.link, by_turns(targets), begun).await;
        if let (None, Destination::Host(host)) = (&dialled, permit.destination()) {
            self.context.resolver.forget(host);
        }
        dialled.ok_or(Reason::UpstreamUnreachable)
    }

    /// Relays an allowed connection to its end, and records that.
    pub(super) async fn relay(&mut self, (client, early): (TcpStream, &[u8]), upstream: TcpStream) {
        let started = Instant::now();
        let Context { limits, pipes, .. } = self.context;
        let destination = &self.intent.destination;
        let destination = self.context.engine.map(|_enforces| destination);
        let relayed = relay::run((client, early), upstream, destination, *limits, pipes).await;
        match relayed.end {
            End::Closed | End::Broken => {}
            End::Idle => self.event.reason = Some("idle".to_owned()),
            End::Lifetime => self.event.reason = Some("lifetime".to_owned()),
            End::ServerName => {
                let denial = Denial { reason: Reason::ServerName, nearest: None };
                self.event.refused(&denial, &self.intent, &self.caller);
            }
        }
        self.event.server_name = relayed.server_name;
        self.close(started, relayed.sent, relayed.received).await;
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

/// Addresses of both families in turn, those of the first address first (RFC 8305
/// section 4), at most [`MAX_TARGETS`].
fn by_turns(targets: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v4 = targets.first().is_some_and(SocketAddr::is_ipv4);
    let (first, second): (Vec<_>, Vec<_>) =
        targets.into_iter().partition(|target| target.is_ipv4() == first_is_v4);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut ordered = Vec::new();
    loop {
        let pair = [first.next(), second.next()];
        if pair == [None, None] || ordered.len() >= MAX_TARGETS {
            ordered.truncate(MAX_TARGETS);
            return ordered;
        }
        ordered.extend(pair.into_iter().flatten());
    }
}

/// Dials one address after the other, without waiting long for any, and takes the
/// first that answers (RFC 8305 section 5). The others are given up. `begun` is on its
/// way to the first of them.
pub(super) async fn race(
    link: &Rc<Link>,
    targets: Vec<SocketAddr>,
    begun: Option<(SocketAddr, OwnedFd)>,
) -> Option<(TcpStream, SocketAddr)> {
    let mut dialled = JoinSet::new();
    let mut targets = targets.into_iter().peekable();
    let mut begun = begun.filter(|(target, _)| targets.peek() == Some(target));
    loop {
        let ended = match targets.next() {
            Some(target) => {
                let link = Rc::clone(link);
                let begun = begun.take();
                dialled.spawn_local(async move {
                    let connecting = async {
                        match begun {
                            Some((_, socket)) => Link::connected(socket).await,
                            None => link.connect(target).await,
                        }
                    };
                    let stream = timeout(CONNECT_PATIENCE, connecting).await;
                    stream.ok().and_then(Result::ok).map(|stream| (stream, target))
                });
                match timeout(STAGGER, dialled.join_next()).await {
                    Ok(ended) => ended,
                    Err(_late) => continue,
                }
            }
            None => Some(dialled.join_next().await?),
        };
        if let Some(Ok(Some(found))) = ended {
            return Some(found);
        }
    }
}

fn milliseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns() {
        let targets = |texts: &[&str]| -> Vec<SocketAddr> {
            texts.iter().map(|text| SocketAddr::new(text.parse().unwrap(), 1)).collect()
        };
        assert_eq!(
            by_turns(targets(&["192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1"])),
            targets(&["192.0.2.1", "2001:db8::1", "192.0.2.2", "192.0.2.3"])
        );
        assert_eq!(
            by_turns(targets(&["2001:db8::1", "192.0.2.1"])),
            targets(&["2001:db8::1", "192.0.2.1"])
        );
        assert_eq!(by_turns(targets(&["192.0.2.1"; 30])).len(), MAX_TARGETS);
        assert!(by_turns(Vec::new()).is_empty());
    }
}
