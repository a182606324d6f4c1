//! Resolving names for permits, through the resolver the engine gave the
//! container. Only names that a rule allows are ever asked for.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use nemoclaw_spec::control::SandboxConfig;
use nemoclaw_spec::name::Host;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::supervisor::Link;

/// How long one resolver may take for one answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Most addresses taken from an answer.
const MAX_ADDRESSES: usize = 32;
/// How long an answer is kept, in seconds, whatever its TTL: the order in which names
/// are asked for says something too.
const KEPT: Duration = Duration::from_secs(5);
/// Most answers kept.
const MAX_KEPT: usize = 1024;

/// Asks the sandbox's resolvers.
pub(super) struct Resolver {
    link: Rc<Link>,
    servers: Vec<SocketAddr>,
    hosts: Vec<(IpAddr, Vec<String>)>,
    /// Answers and until when they hold. Each address is checked anew before it is
    /// dialled.
    kept: RefCell<HashMap<Host, (Instant, Vec<IpAddr>)>>,
}

impl Resolver {
    pub(super) fn new(link: Rc<Link>, config: &SandboxConfig) -> Self {
        let names = &config.place.names;
        let (servers, hosts) = (names.resolvers.clone(), names.hosts.clone());
        Self { link, servers, hosts, kept: RefCell::default() }
    }

    /// Every address of `host`, IPv4 first. Empty when the name does not
    /// exist.
    ///
    /// # Errors
    /// When no resolver answers.
    pub(super) async fn resolve(&self, host: &Host) -> io::Result<Vec<IpAddr>> {
        let written: Vec<IpAddr> = self
            .hosts
            .iter()
            .filter(|(_, names)| {
                names.iter().any(|name| Host::parse(name).is_ok_and(|name| name == *host))
            })
            .map(|(address, _)| *address)
            .collect();
        if !written.is_empty() {
            return Ok(written);
        }
        if let Some(addresses) = self.known(host) {
            return Ok(addresses);
        }
        let now = Instant::now();
        let (v4, v6) =
            tokio::join!(self.query(host, RecordType::A), self.query(host, RecordType::AAAA));
        let addresses = match (v4, v6) {
            (Ok(mut v4), v6) => {
                v4.extend(v6.unwrap_or_default());
                v4
            }
            (Err(_), Ok(v6)) if !v6.is_empty() => v6,
            (Err(error), _) => return Err(error),
        };
        let mut kept = self.kept.borrow_mut();
        if kept.len() >= MAX_KEPT {
            kept.retain(|_, (until, _)| *until > now);
        }
        if kept.len() < MAX_KEPT {
            kept.insert(host.clone(), (now + KEPT, addresses.clone()));
        }
        Ok(addresses)
    }

    /// The addresses of `host`, where they have been asked for a moment ago.
    pub(super) fn known(&self, host: &Host) -> Option<Vec<IpAddr>> {
        let kept = self.kept.borrow();
        let (until, addresses) = kept.get(host)?;
        (*until > Instant::now()).then(|| addresses.clone())
    }

    /// Forgets an answer that led nowhere.
    pub(super) fn forget(&self, host: &Host) {
        self.kept.borrow_mut().remove(host);
    }

    async fn query(&self, host: &Host, kind: RecordType) -> io::Result<Vec<IpAddr>> {
        let mut last = io::Error::other("the sandbox has no resolver");
        for server in &self.servers {
            match timeout(PATIENCE, self.ask(*server, host, kind)).await {
                Ok(Ok(addresses)) => return Ok(addresses),
                Ok(Err(error)) => last = error,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(last)
    }

    async fn ask(
        &self,
        server: SocketAddr,
        host: &Host,
        kind: RecordType,
    ) -> io::Result<Vec<IpAddr>> {
        let name = Name::from_ascii(format!("{host}.")).map_err(io::Error::other)?;
        let id = random_id()?;
        let mut query = Message::new(id, hickory_proto::op::MessageType::Query, OpCode::Query);
        query.metadata.recursion_desired = true;
        let question = Query::query(name, kind);
        query.add_query(question.clone());
        let bytes = query.to_vec().map_err(io::Error::other)?;
        let socket = self.link.datagram(server).await?;
        socket.send(&bytes).await?;
        let mut answer = vec![0; 4096];
        loop {
            let length = socket.recv(&mut answer).await?;
            let Ok(message) = Message::from_vec(answer.get(..length).unwrap_or_default()) else {
                continue;
            };
            if message.metadata.id != id || message.queries.first() != Some(&question) {
                continue;
            }
            if message.metadata.truncation {
                return addresses(&self.ask_tcp(server, &bytes, id).await?);
            }
            return addresses(&message);
        }
    }

    async fn ask_tcp(&self, server: SocketAddr, query: &[u8], id: u16) -> io::Result<Message> {
        let mut stream = self.link.connect(server).await?;
        stream.write_u16(u16::try_from(query.len()).unwrap_or(u16::MAX)).await?;
        stream.write_all(query).await?;
        let mut answer = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut answer).await?;
        let message = Message::from_vec(&answer).map_err(io::Error::other)?;
        if message.metadata.id == id { Ok(message) } else { Err(io::ErrorKind::InvalidData.into()) }
    }
}

/// Addresses of an answer; an alias's own addresses come in the same answer.
fn addresses(message: &Message) -> io::Result<Vec<IpAddr>> {
    match message.metadata.response_code {
        ResponseCode::NoError => {}
        ResponseCode::NXDomain => return Ok(Vec::new()),
        other => return Err(io::Error::other(format!("the resolver answers {other}"))),
    }
    let found = message.answers.iter().filter_map(|record| match &record.data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
        _ => None,
    });
    Ok(found.take(MAX_ADDRESSES).collect())
}

/// An id that an off-path attacker cannot guess.
fn random_id() -> io::Result<u16> {
    let mut bytes = [0_u8; 2];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u16::from_ne_bytes(bytes))
}
