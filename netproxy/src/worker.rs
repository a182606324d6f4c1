//! The worker: reads hostile bytes, decides, relays. One thread, many
//! connections; it owns no right but what the supervisor hands it.

mod chain;
mod connection;
mod dns;
mod explicit;
mod names;
mod record;
mod refuse;
mod relay;
mod resolve;
mod supervisor;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nemoclaw_spec::control::{self, CAPTURE_PORT, DNS_PORT, SandboxConfig};
use nemoclaw_spec::decide::Engine;
use rustix::fs::MemfdFlags;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::runtime::LocalOptions;
use tokio::sync::Semaphore;

use names::Names;
use record::Recorder;
use relay::{Limits, Pipes};
use resolve::Resolver;
use supervisor::Link;

/// Most connections at once; further ones wait in the listener's queue.
const MAX_CONNECTIONS: usize = 4096;
/// Most refusals explained at once: who floods us with what is refused must not keep
/// others from being heard. Further ones are reset.
const MAX_EXPLAINED: usize = 256;
/// Longest time that is waited for anything.
const LONGEST: Duration = Duration::from_hours(365 * 24);
/// Length of the listeners' queues.
const BACKLOG: i32 = 1024;

/// What every worker of a sandbox shares, made once by the supervisor inside
/// the sandbox's namespace.
#[derive(Debug)]
pub(crate) struct Handles {
    capture: Vec<TcpListener>,
    dns_tcp: Vec<TcpListener>,
    dns_udp: Vec<UdpSocket>,
    /// Virtual addresses given out so far; survives a worker.
    table: File,
}

impl Handles {
    /// Enters the namespace and binds the listeners. IPv6 may be off there.
    pub(crate) fn bind(netns: &File) -> Result<Self> {
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
            .context("cannot enter the sandbox's network namespace")?;
        let table = rustix::fs::memfd_create("nemoclaw-names", MemfdFlags::CLOEXEC)
            .context("cannot make the table of names")?;
        let mut handles = Self {
            capture: Vec::new(),
            dns_tcp: Vec::new(),
            dns_udp: Vec::new(),
            table: File::from(table),
        };
        let v4 = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let v6 = |port| SocketAddr::from((Ipv6Addr::LOCALHOST, port));
        handles.capture.push(listen(v4(CAPTURE_PORT))?);
        handles.dns_tcp.push(listen(v4(DNS_PORT))?);
        handles.dns_udp.push(datagram(v4(DNS_PORT))?);
        if let Ok(capture) = listen(v6(CAPTURE_PORT)) {
            handles.capture.push(capture);
            handles.dns_tcp.push(listen(v6(DNS_PORT))?);
            handles.dns_udp.push(datagram(v6(DNS_PORT))?);
        }
        Ok(handles)
    }

    /// Whether the namespace has IPv6.
    fn has_v6(&self) -> bool {
        self.capture.len() > 1
    }

    /// Descriptors a worker keeps.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = i32> {
        let tcp = self.capture.iter().chain(&self.dns_tcp).map(std::os::fd::AsRawFd::as_raw_fd);
        let udp = self.dns_udp.iter().map(std::os::fd::AsRawFd::as_raw_fd);
        tcp.chain(udp).chain([self.table.as_raw_fd()])
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    // For what is accepted there too: its sockets begin as copies of this one.
    sockopt::set_tcp_nodelay(&socket, true)?;
    bind(&socket, &address).and_then(|()| listen(&socket, BACKLOG)).with_context(|| {
        format!("cannot listen on {address} in the sandbox; is the port taken?")
    })?;
    Ok(TcpListener::from(socket))
}

fn datagram(address: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(address)
        .with_context(|| format!("cannot listen on {address} (udp) in the sandbox"))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Everything a connection needs.
pub(crate) struct Context {
    engine: Option<&'static Engine>,
    names: Names,
    link: Rc<Link>,
    resolver: Resolver,
    recorder: Recorder,
    sandbox: String,
    /// What the engine's files say of names.
    written: control::Names,
    slots: Semaphore,
    /// Connections of each program that has any.
    programs: RefCell<HashMap<String, u64>>,
    per_program: u64,
    /// Connections that may be allowed and are not counted yet.
    opening: Cell<u64>,
    wildcard_names: u64,
    limits: Limits,
    pipes: Pipes,
    /// Refusals that may be explained at once.
    explained: Semaphore,
}

/// Serves until the supervisor ends.
pub(crate) fn run(
    config: &SandboxConfig,
    engine: Option<&Engine>,
    handles: &Handles,
    link: OwnedFd,
    audit: OwnedFd,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build_local(LocalOptions::default())
        .context("cannot start the event loop")?;
    // The worker's process ends with this function; so does the engine.
    let engine: Option<&'static Engine> = engine.map(|engine| {
        let copy = Engine::new(engine.policy().clone(), config.aliases.clone());
        &*Box::leak(Box::new(copy))
    });
    runtime.block_on(serve(config, engine, handles, link, audit))
}

async fn serve(
    config: &SandboxConfig,
    engine: Option<&'static Engine>,
    handles: &Handles,
    link: OwnedFd,
    audit: OwnedFd,
) -> Result<()> {
    let link = Link::new(link)?;
    let table = handles.table.try_clone().context("cannot share the table of names")?;
    let names = Names::load(table, handles.has_v6(), &config.place.names.search);
    let bounds = engine.map(|engine| engine.policy().options.connections);
    let context = Rc::new(Context {
        engine,
        names,
        resolver: Resolver::new(Rc::clone(&link), config),
        link: Rc::clone(&link),
        recorder: Recorder::new(audit)?,
        sandbox: config.sandbox.clone(),
        written: config.place.names.clone(),
        slots: Semaphore::new(bounds.map_or(MAX_CONNECTIONS, |bounds| {
            usize::try_from(bounds.total).map_or(MAX_CONNECTIONS, |n| n.min(MAX_CONNECTIONS))
        })),
        programs: RefCell::default(),
        opening: Cell::new(0),
        per_program: bounds.map_or(u64::MAX, |bounds| bounds.per_program),
        wildcard_names: bounds.map_or(u64::MAX, |bounds| bounds.wildcard_names),
        limits: Limits {
            idle: bounds
                .map_or(Duration::MAX, |bounds| Duration::from_millis(bounds.idle_ms))
                .min(LONGEST),
            lifetime: bounds
                .and_then(|bounds| bounds.lifetime_ms)
                .map_or(Duration::MAX, Duration::from_millis)
                .min(LONGEST),
        },
        pipes: Pipes::default(),
        explained: Semaphore::new(MAX_EXPLAINED),
    });
    for listener in &handles.capture {
        let listener = tokio::net::TcpListener::from_std(listener.try_clone()?)?;
        tokio::task::spawn_local(accept(Rc::clone(&context), listener));
    }
    for socket in &handles.dns_udp {
        let socket = tokio::net::UdpSocket::from_std(socket.try_clone()?)?;
        tokio::task::spawn_local(dns::serve_udp(Rc::clone(&context), socket));
    }
    for listener in &handles.dns_tcp {
        let listener = tokio::net::TcpListener::from_std(listener.try_clone()?)?;
        tokio::task::spawn_local(dns::serve_tcp(Rc::clone(&context), listener));
    }
    // Ends when the supervisor's end closes.
    link.receive().await
}

/// Accepts captured connections for as long as the worker lives.
async fn accept(context: Rc<Context>, listener: tokio::net::TcpListener) {
    let Ok(local) = listener.local_addr() else { return };
    loop {
        let Ok(slot) = context.slots.acquire().await else { return };
        match listener.accept().await {
            Ok((stream, client)) => {
                slot.forget();
                let context = Rc::clone(&context);
                tokio::task::spawn_local(async move {
                    let _returned = Slot(Rc::clone(&context));
                    connection::serve(&context, stream, client, local).await;
                });
            }
            // Out of descriptors or memory: connections wait in the queue.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Gives a connection's place back, however the connection ends.
struct Slot(Rc<Context>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.slots.add_permits(1);
    }
}
