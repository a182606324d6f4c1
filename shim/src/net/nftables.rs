//! The rules of a locked namespace, written to the kernel in one batch
//! (nf_tables netlink, include/uapi/linux/netfilter/nf_tables.h).
//!
//! Only packets that carry the proxy's mark, which needs CAP_NET_ADMIN to set,
//! leave. Everything here is IPv4 and IPv6 alike (family inet).

use std::io;

use ipnet::IpNet;
use nemoclaw_spec::control::{CAPTURE_PORT, DNS_PORT, INBOUND_MARK, PACKET_MARK, POOL_V4, POOL_V6};
use nemoclaw_spec::policy::Ingress;
use nix::sys::socket::SockProtocol;

use super::netlink::{APPEND, Buffer, CREATE, DUMP, Dumps, EXCLUSIVE, REQUEST, exchange};

const TABLE: &str = "nemoclaw";
const FAMILY_INET: u8 = 1;
const FAMILY_NETDEV: u8 = 5;
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const DELETE_TABLE: u16 = (SUBSYSTEM << 8) | 2;
const NEW_CHAIN: u16 = (SUBSYSTEM << 8) | 3;
const GET_CHAIN: u16 = (SUBSYSTEM << 8) | 4;
const NEW_RULE: u16 = (SUBSYSTEM << 8) | 6;
const GET_RULE: u16 = (SUBSYSTEM << 8) | 7;

const HOOK_INPUT: u32 = 1;
const HOOK_FORWARD: u32 = 2;
const HOOK_OUTPUT: u32 = 3;
const HOOK_POSTROUTING: u32 = 4;
/// Of netdev: where frames go to a device (NF_NETDEV_EGRESS, since Linux 5.16).
const HOOK_EGRESS: u32 = 1;
/// Before Docker's own chains, which sit at -100.
const BEFORE_DOCKER: i32 = -110;

/// After every chain that could still change a packet.
const AFTER_ALL: i32 = 300;

const DROP: u32 = 0;
const ACCEPT: u32 = 1;
const RETURN: u32 = 0xffff_fffb;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const ARP: u16 = 0x0806;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
/// Docker's resolver inside the namespace; it forwards to the outside.
const DOCKER_RESOLVER: [u8; 4] = [127, 0, 0, 11];

/// This network, link-local with metadata services, multicast and what is reserved; a
/// node's own resolver may be link-local.
const NEVER_V4: [([u8; 4], u8); 3] =
    [([0, 0, 0, 0], 8), ([169, 254, 0, 0], 16), ([224, 0, 0, 0], 3)];
/// Link-local and multicast, by their first two bytes.
const NEVER_V6: [([u8; 2], u8); 2] = [([0xfe, 0x80], 10), ([0xff, 0], 8)];

/// What the rules are for.
#[derive(Debug, Clone)]
pub(crate) enum Kind {
    /// Nothing leaves but the proxy's packets.
    Locked {
        /// Whether sockets of the host's root in this namespace are the
        /// engine's resolver and nothing else: no process of the sandbox can
        /// be root. Docker 20.10 forwards names from inside the namespace.
        engine_resolver: bool,
        /// What may connect in; `None` for any TCP.
        ingress: Option<Vec<Ingress>>,
    },
    /// Connections are recorded; nothing is closed but metadata services.
    Observed,
}

/// Writes the rules; false where the kernel takes no chain on the devices themselves.
///
/// # Errors
/// When the kernel refuses the batch; nothing of it is in force then.
pub(super) fn install(kind: &Kind) -> io::Result<bool> {
    let devices = devices()?;
    match write_anew(kind, &devices) {
        // A kernel without that hook: it only backs up what the others do.
        Err(_) if !devices.is_empty() => write_anew(kind, &[]).map(|()| false),
        written => written.map(|()| true),
    }
}

fn write_anew(kind: &Kind, devices: &[String]) -> io::Result<()> {
    match write(kind, devices, false) {
        // A namespace that an engine made and we locked before: replace.
        Err(error) if error.raw_os_error() == Some(nix::libc::EEXIST) => write(kind, devices, true),
        other => other,
    }
}

/// The devices that lead out.
fn devices() -> io::Result<Vec<String>> {
    let interfaces = nix::net::if_::if_nameindex()?;
    Ok(interfaces
        .iter()
        // The loopback interface has index 1 in every namespace.
        .filter(|interface| interface.index() != 1)
        .filter_map(|interface| Some(interface.name().to_str().ok()?.to_owned()))
        .collect())
}

fn write(kind: &Kind, devices: &[String], replace: bool) -> io::Result<()> {
    let mut batch = Batch::new();
    batch.bracket(BATCH_BEGIN);
    if replace {
        batch.add(DELETE_TABLE, 0, |m| m.text(1, TABLE));
    }
    batch.add(NEW_TABLE, CREATE | EXCLUSIVE, |m| m.text(1, TABLE));
    match kind {
        Kind::Observed => observed(&mut batch),
        Kind::Locked { engine_resolver, ingress } => {
            locked(&mut batch, *engine_resolver);
            inbound(&mut batch, ingress.as_deref());
            batch.chain("forward", "filter", HOOK_FORWARD, 0, DROP);
            if !devices.is_empty() {
                wire(&mut batch, devices, replace);
            }
        }
    }
    batch.acknowledge_last();
    batch.bracket(BATCH_END);
    exchange(SockProtocol::NetlinkNetFilter, &batch.buffer)
}

/// Chains and rules of our table as the kernel gives them, to be compared
/// later: nobody else has a reason to change them.
///
/// # Errors
/// When the kernel does not answer, or with more than a megabyte.
pub(super) fn fingerprint() -> io::Result<Vec<u8>> {
    const GENERIC_HEADER: usize = 4;
    const MOST: usize = 1024 * 1024;
    let mut print = Vec::new();
    let mut dumps = Dumps::open(SockProtocol::NetlinkNetFilter)?;
    let families = [FAMILY_INET, FAMILY_NETDEV];
    for (family, kind) in families.into_iter().flat_map(|f| [(f, GET_CHAIN), (f, GET_RULE)]) {
        // What backs up the others is nothing without them.
        if family == FAMILY_NETDEV && print.is_empty() {
            break;
        }
        let mut request = Buffer::default();
        request.message(kind, REQUEST | DUMP, |m| m.raw(&[family, 0, 0, 0]));
        for body in dumps.dump(&request, MOST)? {
            // The header holds the generation, which any change of others moves.
            let body = body.get(GENERIC_HEADER..).unwrap_or_default();
            if body.windows(TABLE.len()).any(|window| window == TABLE.as_bytes()) {
                print.extend(body);
            }
        }
    }
    Ok(print)
}

fn locked(batch: &mut Batch, engine_resolver: bool) {
    batch.chain("capture", "nat", HOOK_OUTPUT, BEFORE_DOCKER, ACCEPT);
    if engine_resolver {
        for protocol in [UDP, TCP] {
            batch.rule("capture", |r| {
                r.of_host_root().protocol_is(protocol).port_is(53).verdict(RETURN)
            });
        }
    }
    capture_rules(batch);
    batch.chain("output", "filter", HOOK_OUTPUT, 0, DROP);
    aimed(batch);
    batch.rule("output", |r| {
        r.mark_is(PACKET_MARK).set_connection_mark(PACKET_MARK).verdict(ACCEPT)
    });
    batch.rule("output", |r| r.connection_mark_is(INBOUND_MARK).verdict(ACCEPT));
    if engine_resolver {
        for protocol in [UDP, TCP] {
            batch.rule("output", |r| {
                r.of_host_root()
                    .protocol_is(protocol)
                    .port_is(53)
                    .set_connection_mark(PACKET_MARK)
                    .verdict(ACCEPT)
            });
        }
    }
    // Who binds the resolver's address answers questions that the proxy asks:
    // only the flows the proxy began may come from there.
    batch.rule("output", |r| {
        r.network_is(NFPROTO_IPV4)
            .source4(DOCKER_RESOLVER)
            .connection_mark_is_not(PACKET_MARK)
            .verdict(DROP)
    });
    // Asked directly, Docker's resolver would carry questions to the outside.
    batch.rule("output", |r| {
        r.network_is(NFPROTO_IPV4).daddr4(DOCKER_RESOLVER, 32).protocol_is(TCP).reject_tcp()
    });
    batch.rule("output", |r| r.network_is(NFPROTO_IPV4).daddr4(DOCKER_RESOLVER, 32).reject());
    batch.rule("output", |r| r.destination_is_local().verdict(ACCEPT));
    batch.rule("output", |r| r.neighbour_discovery().verdict(ACCEPT));
    batch.rule("output", |r| r.protocol_is(TCP).reject_tcp());
    batch.rule("output", Rule::reject);
    // Where a packet really goes is known after routing: a socket bound to an
    // interface (SO_BINDTODEVICE, IP_UNICAST_IF) takes local addresses outside.
    batch.chain("leave", "filter", HOOK_POSTROUTING, AFTER_ALL, DROP);
    batch.rule("leave", |r| r.leaves_by_loopback().verdict(ACCEPT));
    // What may leave carries the mark from here on: see `wire`.
    batch.rule("leave", |r| r.mark_is(PACKET_MARK).verdict(ACCEPT));
    batch.rule("leave", |r| {
        r.connection_mark_is(PACKET_MARK).of_host_root().set_mark(PACKET_MARK).verdict(ACCEPT)
    });
    batch.rule("leave", |r| {
        r.connection_mark_is(INBOUND_MARK).set_mark(PACKET_MARK).verdict(ACCEPT)
    });
    batch.rule("leave", |r| r.neighbour_discovery().set_mark(PACKET_MARK).verdict(ACCEPT));
    batch.chain("input", "filter", HOOK_INPUT, 0, DROP);
    // Answers of a resolver outside do not come over loopback: a sandbox that
    // takes its address must not answer the proxy.
    batch.rule("input", |r| {
        r.via_loopback()
            .network_is(NFPROTO_IPV6)
            .protocol_is(UDP)
            .connection_mark_is(PACKET_MARK)
            .verdict(DROP)
    });
    batch.rule("input", |r| {
        r.via_loopback()
            .network_is(NFPROTO_IPV4)
            .protocol_is(UDP)
            .connection_mark_is(PACKET_MARK)
            .in_reply()
            .source4_is_not(DOCKER_RESOLVER)
            .verdict(DROP)
    });
    batch.rule("input", |r| r.via_loopback().verdict(ACCEPT));
    batch.rule("input", |r| r.connection_mark_is(PACKET_MARK).verdict(ACCEPT));
    batch.rule("input", |r| r.connection_mark_is(INBOUND_MARK).verdict(ACCEPT));
    batch.rule("input", |r| r.neighbour_discovery().verdict(ACCEPT));
}

/// Where the proxy's own packets never go. Its worker reads hostile bytes and holds
/// sockets with the mark: taken over, it could aim them anew (sendto(2), MSG_FASTOPEN).
/// None goes back inside but to the engine's resolver, to metadata services, or anywhere
/// by UDP but to port 53.
fn aimed(batch: &mut Batch) {
    batch.rule("output", |r| {
        r.mark_is(PACKET_MARK)
            .network_is(NFPROTO_IPV4)
            .daddr4(DOCKER_RESOLVER, 32)
            .set_connection_mark(PACKET_MARK)
            .verdict(ACCEPT)
    });
    batch.rule("output", |r| r.mark_is(PACKET_MARK).destination_is_local().reject());
    batch.rule("output", |r| r.mark_is(PACKET_MARK).protocol_is(UDP).port_is_not(53).reject());
    for (network, prefix) in NEVER_V4 {
        batch.rule("output", |r| {
            r.mark_is(PACKET_MARK)
                .network_is(NFPROTO_IPV4)
                .daddr4(network, prefix)
                .port_is_not(53)
                .reject()
        });
    }
    for (first, prefix) in NEVER_V6 {
        let mut network = [0; 16];
        let [a, b, ..] = &mut network;
        [*a, *b] = first;
        batch.rule("output", |r| {
            r.mark_is(PACKET_MARK)
                .network_is(NFPROTO_IPV6)
                .daddr6(network, prefix)
                .port_is_not(53)
                .reject()
        });
    }
}

/// The last thing before a device: frames that did not pass [`locked`]'s last chain, of
/// whatever protocol, go nowhere. ARP knows no marks.
fn wire(batch: &mut Batch, devices: &[String], replace: bool) {
    batch.family = FAMILY_NETDEV;
    if replace {
        // There may be none, or one of before: made, it can be deleted.
        batch.add(NEW_TABLE, CREATE, |m| m.text(1, TABLE));
        batch.add(DELETE_TABLE, 0, |m| m.text(1, TABLE));
    }
    batch.add(NEW_TABLE, CREATE | EXCLUSIVE, |m| m.text(1, TABLE));
    batch.chain_on(devices, "wire", "filter", (HOOK_EGRESS, 0), DROP);
    batch.rule("wire", |r| r.mark_is(PACKET_MARK).verdict(ACCEPT));
    batch.rule("wire", |r| {
        r.meta(META_PROTOCOL).compare(EQUAL, ARP.to_be_bytes().to_vec()).verdict(ACCEPT)
    });
    batch.family = FAMILY_INET;
}

/// New connections from outside; replies leave by their mark only.
fn inbound(batch: &mut Batch, ingress: Option<&[Ingress]>) {
    let Some(entries) = ingress else {
        // Published ports and neighbours.
        batch.rule("input", |r| {
            r.protocol_is(TCP)
                .opens_connection()
                .connection_is_new()
                .set_connection_mark(INBOUND_MARK)
                .verdict(ACCEPT)
        });
        return;
    };
    for entry in entries {
        let anywhere = [None];
        let from: Vec<Option<&IpNet>> = if entry.from.is_empty() {
            anywhere.to_vec()
        } else {
            entry.from.iter().map(Some).collect()
        };
        for range in from {
            batch.rule("input", |r| {
                let r = match range {
                    None => r,
                    Some(IpNet::V4(range)) => r
                        .network_is(NFPROTO_IPV4)
                        .payload(1, 12, 4)
                        .prefix(&range.network().octets(), range.prefix_len()),
                    Some(IpNet::V6(range)) => r
                        .network_is(NFPROTO_IPV6)
                        .payload(1, 8, 16)
                        .prefix(&range.network().octets(), range.prefix_len()),
                };
                let r = if entry.udp {
                    r.protocol_is(UDP).port_is(entry.port)
                } else {
                    r.protocol_is(TCP).port_is(entry.port).opens_connection()
                };
                r.connection_is_new().set_connection_mark(INBOUND_MARK).verdict(ACCEPT)
            });
        }
    }
}

/// Under `observe` connections pass through the proxy to be recorded, and
/// nothing else is stopped.
fn observed(batch: &mut Batch) {
    batch.chain("capture", "nat", HOOK_OUTPUT, BEFORE_DOCKER, ACCEPT);
    capture_rules(batch);
    // Metadata services stay closed even to observed containers.
    batch.chain("output", "filter", HOOK_OUTPUT, 0, ACCEPT);
    batch.rule("output", |r| r.network_is(NFPROTO_IPV4).daddr4([169, 254, 169, 254], 32).reject());
}

fn capture_rules(batch: &mut Batch) {
    let chain = "capture";
    batch.rule(chain, |r| r.mark_is(PACKET_MARK).verdict(RETURN));
    batch.rule(chain, |r| r.protocol_is(UDP).port_is(53).redirect(DNS_PORT));
    batch.rule(chain, |r| r.protocol_is(TCP).port_is(53).redirect(DNS_PORT));
    // Before the rule on local destinations: the pools are routed as local.
    batch.rule(chain, |r| {
        r.network_is(NFPROTO_IPV4)
            .daddr4(POOL_V4.0.octets(), POOL_V4.1)
            .protocol_is(TCP)
            .redirect(CAPTURE_PORT)
    });
    batch.rule(chain, |r| {
        r.network_is(NFPROTO_IPV6)
            .daddr6(POOL_V6.0.octets(), POOL_V6.1)
            .protocol_is(TCP)
            .redirect(CAPTURE_PORT)
    });
    batch.rule(chain, |r| r.destination_is_local().verdict(RETURN));
    batch.rule(chain, |r| r.protocol_is(TCP).redirect(CAPTURE_PORT));
}

#[derive(Debug)]
struct Batch {
    buffer: Buffer,
    /// Where the last message begins.
    last: usize,
    /// What tables and rules are of.
    family: u8,
}

impl Batch {
    fn new() -> Self {
        Self { buffer: Buffer::default(), last: 0, family: FAMILY_INET }
    }

    /// The begin or end of the transaction.
    fn bracket(&mut self, kind: u16) {
        self.buffer.message(kind, REQUEST, |m| {
            // struct nfgenmsg: family, version, subsystem in network order.
            m.raw(&[0, 0]);
            m.raw(&SUBSYSTEM.to_be_bytes());
        });
    }

    fn add(&mut self, kind: u16, flags: u16, fill: impl FnOnce(&mut Buffer)) {
        self.last = self.buffer.length();
        let family = self.family;
        self.buffer.message(kind, REQUEST | flags, |m| {
            m.raw(&[family, 0, 0, 0]);
            fill(m);
        });
    }

    /// Lets the kernel say when all is done. An error of any message is told before,
    /// and one of the whole batch in its place (nfnetlink.c, `nfnetlink_rcv_batch`).
    fn acknowledge_last(&mut self) {
        self.buffer.acknowledge(self.last);
    }

    fn chain(&mut self, name: &str, kind: &str, hook: u32, priority: i32, policy: u32) {
        self.chain_on(&[], name, kind, (hook, priority), policy);
    }

    /// A chain on devices, where its family has them.
    fn chain_on(
        &mut self,
        devices: &[String],
        name: &str,
        kind: &str,
        (hook, priority): (u32, i32),
        policy: u32,
    ) {
        self.add(NEW_CHAIN, CREATE, |m| {
            m.text(1, TABLE);
            m.text(3, name);
            m.nest(4, |hook_attribute| {
                hook_attribute.be32(1, hook);
                hook_attribute.be32(2, priority.cast_unsigned());
                if !devices.is_empty() {
                    hook_attribute.nest(4, |list| {
                        for device in devices {
                            list.text(1, device);
                        }
                    });
                }
            });
            m.be32(5, policy);
            m.text(7, kind);
        });
    }

    fn rule(&mut self, chain: &str, expressions: impl FnOnce(Rule) -> Rule) {
        let rule = expressions(Rule::default());
        self.add(NEW_RULE, CREATE | APPEND, |m| {
            m.text(1, TABLE);
            m.text(2, chain);
            m.nest(4, |list| rule.0.into_iter().for_each(|expression| expression(list)));
        });
    }
}

type Expression = Box<dyn FnOnce(&mut Buffer)>;

/// Expressions of one rule; register 1 carries values between them.
#[derive(Default)]
struct Rule(Vec<Expression>);

const META_PROTOCOL: u32 = 1;
const META_MARK: u32 = 3;
const META_IIF: u32 = 4;
const META_OIF: u32 = 5;
const META_SKUID: u32 = 10;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const AT_MOST: u32 = 3;
const AT_LEAST: u32 = 5;

impl Rule {
    fn expression(mut self, name: &'static str, fill: impl FnOnce(&mut Buffer) + 'static) -> Self {
        self.0.push(Box::new(move |list| {
            list.nest(1, |element| {
                element.text(1, name);
                element.nest(2, fill);
            });
        }));
        self
    }

    fn meta(self, key: u32) -> Self {
        self.expression("meta", move |e| {
            e.be32(1, 1);
            e.be32(2, key);
        })
    }

    fn compare(self, operation: u32, value: Vec<u8>) -> Self {
        self.expression("cmp", move |e| {
            e.be32(1, 1);
            e.be32(2, operation);
            e.nest(3, |data| data.attribute(1, &value));
        })
    }

    fn payload(self, base: u32, offset: u32, length: u32) -> Self {
        self.expression("payload", move |e| {
            e.be32(1, 1);
            e.be32(2, base);
            e.be32(3, offset);
            e.be32(4, length);
        })
    }

    fn mask(self, mask: Vec<u8>) -> Self {
        self.expression("bitwise", move |e| {
            e.be32(1, 1);
            e.be32(2, 1);
            e.be32(3, u32::try_from(mask.len()).unwrap_or_default());
            e.nest(4, |data| data.attribute(1, &mask));
            e.nest(5, |data| data.attribute(1, &vec![0; mask.len()]));
        })
    }

    fn connection(self, key: u32) -> Self {
        self.expression("ct", move |e| {
            e.be32(1, 1);
            e.be32(2, key);
        })
    }

    fn mark_is(self, mark: u32) -> Self {
        self.meta(META_MARK).compare(EQUAL, mark.to_ne_bytes().to_vec())
    }

    fn connection_mark_is(self, mark: u32) -> Self {
        self.connection(3).compare(EQUAL, mark.to_ne_bytes().to_vec())
    }

    fn connection_is_new(self) -> Self {
        const NEW: u32 = 8;
        self.connection(0).mask(NEW.to_ne_bytes().to_vec()).compare(NOT_EQUAL, vec![0; 4])
    }

    /// SYN alone. Connection tracking takes up flows in the middle too, and such
    /// a flow would be a channel that no connection ever opened.
    fn opens_connection(self) -> Self {
        const FLAGS: u8 = 0x17; // FIN, SYN, RST, ACK
        const SYN: u8 = 0x02;
        self.payload(2, 13, 1).mask(vec![FLAGS]).compare(EQUAL, vec![SYN])
    }

    fn set_connection_mark(self, mark: u32) -> Self {
        self.expression("immediate", move |e| {
            e.be32(1, 1);
            e.nest(2, |data| data.attribute(1, &mark.to_ne_bytes()));
        })
        .expression("ct", |e| {
            e.be32(2, 3);
            e.be32(4, 1);
        })
    }

    /// Gives the packet itself a mark.
    fn set_mark(self, mark: u32) -> Self {
        self.expression("immediate", move |e| {
            e.be32(1, 1);
            e.nest(2, |data| data.attribute(1, &mark.to_ne_bytes()));
        })
        // NFTA_META_SREG.
        .expression("meta", |e| {
            e.be32(2, META_MARK);
            e.be32(3, 1);
        })
    }

    fn via_loopback(self) -> Self {
        // The loopback interface has index 1 in every namespace.
        self.meta(META_IIF).compare(EQUAL, 1_u32.to_ne_bytes().to_vec())
    }

    fn leaves_by_loopback(self) -> Self {
        self.meta(META_OIF).compare(EQUAL, 1_u32.to_ne_bytes().to_vec())
    }

    /// Sent by a socket of uid 0 of the host.
    fn of_host_root(self) -> Self {
        self.meta(META_SKUID).compare(EQUAL, vec![0; 4])
    }

    fn in_reply(self) -> Self {
        const DIRECTION: u32 = 1;
        self.connection(DIRECTION).compare(EQUAL, vec![1])
    }

    fn connection_mark_is_not(self, mark: u32) -> Self {
        self.connection(3).compare(NOT_EQUAL, mark.to_ne_bytes().to_vec())
    }

    fn source4(self, address: [u8; 4]) -> Self {
        self.payload(1, 12, 4).compare(EQUAL, address.to_vec())
    }

    fn source4_is_not(self, address: [u8; 4]) -> Self {
        self.payload(1, 12, 4).compare(NOT_EQUAL, address.to_vec())
    }

    fn network_is(self, family: u8) -> Self {
        self.meta(META_NFPROTO).compare(EQUAL, vec![family])
    }

    fn protocol_is(self, protocol: u8) -> Self {
        self.meta(META_L4PROTO).compare(EQUAL, vec![protocol])
    }

    fn port_is(self, port: u16) -> Self {
        self.payload(2, 2, 2).compare(EQUAL, port.to_be_bytes().to_vec())
    }

    /// Of TCP and UDP alike.
    fn port_is_not(self, port: u16) -> Self {
        self.payload(2, 2, 2).compare(NOT_EQUAL, port.to_be_bytes().to_vec())
    }

    fn daddr4(self, address: [u8; 4], prefix: u8) -> Self {
        self.payload(1, 16, 4).prefix(&address, prefix)
    }

    fn daddr6(self, address: [u8; 16], prefix: u8) -> Self {
        self.payload(1, 24, 16).prefix(&address, prefix)
    }

    fn prefix(self, address: &[u8], prefix: u8) -> Self {
        let mask: Vec<u8> = (0..address.len())
            .map(|n| {
                let bits = usize::from(prefix).saturating_sub(n * 8).min(8);
                u8::try_from(0xff00_u32 >> bits & 0xff).unwrap_or_default()
            })
            .collect();
        let network = address.iter().zip(&mask).map(|(byte, mask)| byte & mask).collect();
        self.mask(mask).compare(EQUAL, network)
    }

    fn destination_is_local(self) -> Self {
        const RTN_LOCAL: u32 = 2;
        const RESULT_ADDRESS_TYPE: u32 = 3;
        const FLAG_DESTINATION: u32 = 2;
        self.expression("fib", |e| {
            e.be32(1, 1);
            e.be32(2, RESULT_ADDRESS_TYPE);
            e.be32(3, FLAG_DESTINATION);
        })
        .compare(EQUAL, RTN_LOCAL.to_ne_bytes().to_vec())
    }

    /// Router and neighbour solicitation and advertisement (RFC 4861).
    fn neighbour_discovery(self) -> Self {
        self.network_is(NFPROTO_IPV6)
            .protocol_is(ICMPV6)
            .payload(2, 0, 1)
            .compare(AT_LEAST, vec![133])
            .compare(AT_MOST, vec![136])
    }

    fn redirect(self, port: u16) -> Self {
        self.expression("immediate", move |e| {
            e.be32(1, 1);
            e.nest(2, |data| data.attribute(1, &port.to_be_bytes()));
        })
        .expression("redir", |e| e.be32(1, 1))
    }

    fn verdict(self, code: u32) -> Self {
        self.expression("immediate", move |e| {
            e.be32(1, 0);
            e.nest(2, |data| data.nest(2, |verdict| verdict.be32(1, code)));
        })
    }

    fn reject_tcp(self) -> Self {
        self.expression("reject", |e| {
            e.be32(1, 1);
            e.attribute(2, &[0]);
        })
    }

    /// Administratively prohibited, ICMP or ICMPv6.
    fn reject(self) -> Self {
        self.expression("reject", |e| {
            e.be32(1, 2);
            e.attribute(2, &[3]);
        })
    }
}
