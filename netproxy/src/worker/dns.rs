//! The resolver of the sandbox. It answers every syntactically valid name with
//! a virtual address and asks nobody, so that nothing leaks through DNS and a
//! refusal happens at the connection, where it can be explained.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use nemoclaw_spec::control::EXPLICIT_HOST;
use nemoclaw_spec::decide::Naming;
use nemoclaw_spec::name::Host;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::Context;
use super::names::TTL;

/// Largest query read, in bytes.
const MAX_QUERY: usize = 4096;
/// Most TCP clients at once; further ones are closed.
const MAX_TCP: usize = 64;
/// How long a TCP client may take for a query.
const PATIENCE: Duration = Duration::from_secs(10);

/// Answers datagrams.
pub(super) async fn serve_udp(context: Rc<Context>, socket: UdpSocket) {
    let mut bytes = vec![0; MAX_QUERY];
    loop {
        match socket.recv_from(&mut bytes).await {
            Ok((length, client)) => {
                if let Some(answer) = answer(&context, bytes.get(..length).unwrap_or_default()) {
                    let _sent = socket.send_to(&answer, client).await;
                }
            }
            // An ICMP error of an earlier answer; the next datagram may be fine.
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

/// Answers over TCP (RFC 7766).
pub(super) async fn serve_tcp(context: Rc<Context>, listener: TcpListener) {
    let slots = Rc::new(Semaphore::new(MAX_TCP));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let Ok(slot) = Rc::clone(&slots).try_acquire_owned_rc() else { continue };
                let context = Rc::clone(&context);
                tokio::task::spawn_local(async move {
                    let _slot = slot;
                    let _ended = serve_stream(&context, stream).await;
                });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// `Semaphore::try_acquire_owned` for `Rc`.
trait AcquireRc {
    fn try_acquire_owned_rc(self) -> Result<RcPermit, ()>;
}

struct RcPermit(Rc<Semaphore>);

impl AcquireRc for Rc<Semaphore> {
    fn try_acquire_owned_rc(self) -> Result<RcPermit, ()> {
        self.try_acquire().map_err(|_full| ())?.forget();
        Ok(RcPermit(self))
    }
}

impl Drop for RcPermit {
    fn drop(&mut self) {
        self.0.add_permits(1);
    }
}

async fn serve_stream(context: &Context, mut stream: TcpStream) -> std::io::Result<()> {
    loop {
        let length = timeout(PATIENCE, stream.read_u16()).await??;
        let mut bytes = vec![0; usize::from(length).min(MAX_QUERY)];
        timeout(PATIENCE, stream.read_exact(&mut bytes)).await??;
        if usize::from(length) > MAX_QUERY {
            return Ok(());
        }
        let Some(answer) = answer(context, &bytes) else { return Ok(()) };
        stream.write_u16(u16::try_from(answer.len()).unwrap_or(u16::MAX)).await?;
        stream.write_all(&answer).await?;
    }
}

/// The answer to one query; `None` for what is no query.
fn answer(context: &Context, bytes: &[u8]) -> Option<Vec<u8>> {
    let Ok(query) = Message::from_vec(bytes) else {
        return malformed(bytes);
    };
    if query.metadata.message_type != MessageType::Query {
        return None;
    }
    let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
    answer.metadata.recursion_desired = query.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(1232);
        answer.set_edns(edns);
    }
    let questions = &query.queries;
    let [question] = questions.as_slice() else {
        answer.metadata.response_code = ResponseCode::FormErr;
        return answer.to_vec().ok();
    };
    answer.add_query(question.clone());
    answer.metadata.response_code =
        if query.metadata.op_code != OpCode::Query || question.query_class() != DNSClass::IN {
            ResponseCode::NotImp
        } else {
            match lookup(context, question.name(), question.query_type()) {
                Ok(data) => {
                    for data in data {
                        answer.add_answer(Record::from_rdata(question.name().clone(), TTL, data));
                    }
                    ResponseCode::NoError
                }
                Err(code) => code,
            }
        };
    answer.to_vec().ok()
}

/// FORMERR for something that has at least a query's header.
fn malformed(bytes: &[u8]) -> Option<Vec<u8>> {
    let &[high, low, flags, ..] = bytes else { return None };
    if bytes.len() < 12 || flags & 0x80 != 0 {
        return None;
    }
    let id = u16::from_be_bytes([high, low]);
    Message::error_msg(id, OpCode::Query, ResponseCode::FormErr).to_vec().ok()
}

fn lookup(context: &Context, name: &Name, kind: RecordType) -> Result<Vec<RData>, ResponseCode> {
    if kind == RecordType::PTR {
        return reverse(context, name);
    }
    let host = Host::parse(&name.to_ascii()).map_err(|_not_a_host| ResponseCode::NXDomain)?;
    if host.as_str() == "localhost" || host.as_str().ends_with(".localhost") {
        return Ok(match kind {
            RecordType::A => vec![RData::A(A(Ipv4Addr::LOCALHOST))],
            RecordType::AAAA if context.names.has_v6() => {
                vec![RData::AAAA(AAAA(Ipv6Addr::LOCALHOST))]
            }
            _ => Vec::new(),
        });
    }
    let written: Vec<IpAddr> = context
        .written
        .hosts
        .iter()
        .filter(|(_, names)| {
            names.iter().any(|name| Host::parse(name).is_ok_and(|name| name == host))
        })
        .map(|(address, _)| *address)
        .collect();
    if !written.is_empty() {
        // As the container's hosts file has it; the connection is judged by name.
        return Ok(written
            .into_iter()
            .filter_map(|address| match (address, kind) {
                (IpAddr::V4(v4), RecordType::A) => Some(RData::A(A(v4))),
                (IpAddr::V6(v6), RecordType::AAAA) => Some(RData::AAAA(AAAA(v6))),
                _ => None,
            })
            .collect());
    }
    let naming = match context.engine {
        _ if host.as_str() == EXPLICIT_HOST => Naming::Spelled,
        Some(engine) => engine.naming(&host),
        None => Naming::Wildcard,
    };
    // `api.example.com.corp.example` is a resolver library's try, not a name
    // somebody means; answering it would hide the real one.
    if naming == Naming::Unknown && context.names.is_search_attempt(&host) {
        return Err(ResponseCode::NXDomain);
    }
    let wants_v6 = kind == RecordType::AAAA && context.names.has_v6();
    if kind != RecordType::A && !wants_v6 {
        // HTTPS and SVCB too: no hints for QUIC or encrypted hellos.
        return Ok(Vec::new());
    }
    let address = context.names.assign(&host, naming).ok_or(ResponseCode::ServFail)?;
    Ok(vec![if wants_v6 { RData::AAAA(AAAA(address.v6())) } else { RData::A(A(address.v4())) }])
}

fn reverse(context: &Context, name: &Name) -> Result<Vec<RData>, ResponseCode> {
    let address = reverse_address(&name.to_ascii()).ok_or(ResponseCode::NXDomain)?;
    let host = context.names.host_of(address).ok_or(ResponseCode::NXDomain)?;
    let target =
        Name::from_ascii(format!("{host}.")).map_err(|_too_long| ResponseCode::ServFail)?;
    Ok(vec![RData::PTR(PTR(target))])
}

/// The address in a name below in-addr.arpa or ip6.arpa.
fn reverse_address(name: &str) -> Option<IpAddr> {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    if let Some(rest) = name.strip_suffix(".in-addr.arpa") {
        let octets: Vec<u8> =
            rest.split('.').rev().map(str::parse).collect::<Result<_, _>>().ok()?;
        let octets: [u8; 4] = octets.try_into().ok()?;
        return Some(IpAddr::from(octets));
    }
    let rest = name.strip_suffix(".ip6.arpa")?;
    let nibbles: Vec<&str> = rest.split('.').collect();
    if nibbles.len() != 32 || nibbles.iter().any(|nibble| nibble.len() != 1) {
        return None;
    }
    let digits: String = nibbles.into_iter().rev().collect();
    Some(IpAddr::from(Ipv6Addr::from(u128::from_str_radix(&digits, 16).ok()?)))
}

#[cfg(test)]
mod tests {
    use super::reverse_address;

    #[test]
    fn reverse_names_are_read_strictly() {
        assert_eq!(reverse_address("5.0.22.11.in-addr.arpa."), Some("11.22.0.5".parse().unwrap()));
        assert_eq!(reverse_address("0.22.11.in-addr.arpa"), None);
        let v6 = format!("1.{}{}", "0.".repeat(23), "8.b.d.0.1.0.0.2.ip6.arpa.");
        assert_eq!(reverse_address(&v6), Some("2001:db8::1".parse().unwrap()));
        assert_eq!(reverse_address("example.com"), None);
    }
}
