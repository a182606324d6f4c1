//! The worker's end of the link to the supervisor.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nemoclaw_spec::decide::Caller;
use nemoclaw_spec::name::Host;
use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, send};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixDatagram};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::link::{ANSWER_BYTES, Ask, Request, decode_answer};

/// How long the supervisor may take; it scans a few processes.
const PATIENCE: Duration = Duration::from_secs(5);

struct Answer {
    errno: i32,
    rest: Vec<u8>,
    descriptor: Option<OwnedFd>,
}

/// Asks the supervisor; many questions may be under way.
pub(super) struct Link {
    /// A SOCK_SEQPACKET pair; the type only says that messages have ends.
    socket: UnixDatagram,
    waiting: RefCell<HashMap<u32, oneshot::Sender<Answer>>>,
    next: Cell<u32>,
}

impl Link {
    pub(super) fn new(socket: OwnedFd) -> Result<Rc<Self>> {
        let socket = std::os::unix::net::UnixDatagram::from(socket);
        socket.set_nonblocking(true).context("cannot make the link asynchronous")?;
        let socket = UnixDatagram::from_std(socket).context("cannot watch the link")?;
        Ok(Rc::new(Self { socket, waiting: RefCell::default(), next: Cell::new(0) }))
    }

    /// Hands answers to those who wait, until the supervisor's end closes.
    pub(super) async fn receive(self: Rc<Self>) -> Result<()> {
        let mut bytes = vec![0; ANSWER_BYTES];
        loop {
            self.socket.readable().await.context("cannot wait for the supervisor")?;
            let received = self
                .socket
                .try_io(Interest::READABLE, || receive_one(self.socket.as_raw_fd(), &mut bytes));
            let (length, descriptor) = match received {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                other => other.context("cannot hear the supervisor")?,
            };
            if length == 0 {
                bail!("the supervisor has ended");
            }
            let Some((number, errno, rest)) = bytes.get(..length).and_then(decode_answer) else {
                continue;
            };
            if let Some(waiting) = self.waiting.borrow_mut().remove(&number) {
                let _waits = waiting.send(Answer { errno, rest: rest.to_vec(), descriptor });
            }
        }
    }

    async fn ask(&self, ask: Ask) -> io::Result<Answer> {
        let number = self.next.get().wrapping_add(1);
        self.next.set(number);
        let (sender, receiver) = oneshot::channel();
        self.waiting.borrow_mut().insert(number, sender);
        let bytes = Request { number, ask }.encode();
        let exchange = async {
            loop {
                self.socket.writable().await?;
                let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
                let sent = self.socket.try_io(Interest::WRITABLE, || {
                    Ok(send(self.socket.as_raw_fd(), &bytes, flags)?)
                });
                match sent {
                    Ok(_) => break,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            receiver.await.map_err(|_closed| io::Error::from(io::ErrorKind::BrokenPipe))
        };
        let answer = timeout(PATIENCE, exchange).await;
        self.waiting.borrow_mut().remove(&number);
        let answer = answer.map_err(|_late| io::Error::from(io::ErrorKind::TimedOut))??;
        if answer.errno == 0 { Ok(answer) } else { Err(io::Error::from_raw_os_error(answer.errno)) }
    }

    /// Who owns this connection; a caller without holders when unknown.
    pub(super) async fn identify(&self, source: SocketAddr, destination: SocketAddr) -> Caller {
        match self.ask(Ask::Identify { source, destination }).await {
            Ok(answer) => serde_json::from_slice(&answer.rest).unwrap_or_default(),
            Err(_) => Caller::default(),
        }
    }

    /// The same, with a socket on its way to `target` if policy lets that caller reach
    /// `host`, or `destination` where there is none, there.
    pub(super) async fn open(
        &self,
        source: SocketAddr,
        destination: SocketAddr,
        target: SocketAddr,
        host: Option<&Host>,
    ) -> (Caller, Option<OwnedFd>) {
        let host = host.map(|host| host.as_str().to_owned());
        match self.ask(Ask::Open { source, destination, target, host }).await {
            Ok(answer) => {
                (serde_json::from_slice(&answer.rest).unwrap_or_default(), answer.descriptor)
            }
            Err(_) => (Caller::default(), None),
        }
    }

    /// A TCP stream to `address`, connected.
    pub(super) async fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        Self::connected(self.descriptor(Ask::Tcp(address)).await?).await
    }

    /// A socket on its way, once it is there.
    pub(super) async fn connected(socket: OwnedFd) -> io::Result<TcpStream> {
        let stream = TcpStream::from_std(std::net::TcpStream::from(socket))?;
        stream.writable().await?;
        match stream.take_error()? {
            Some(error) => Err(error),
            None => Ok(stream),
        }
    }

    /// A UDP socket connected to a resolver.
    pub(super) async fn datagram(&self, resolver: SocketAddr) -> io::Result<tokio::net::UdpSocket> {
        let socket = self.descriptor(Ask::Udp(resolver)).await?;
        tokio::net::UdpSocket::from_std(std::net::UdpSocket::from(socket))
    }

    async fn descriptor(&self, ask: Ask) -> io::Result<OwnedFd> {
        self.ask(ask).await?.descriptor.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }
}

fn receive_one(socket: RawFd, bytes: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = cmsg_space!([RawFd; 1]);
    let mut parts = [IoSliceMut::new(bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(socket, &mut parts, Some(&mut space), flags)?;
    let mut descriptor = None;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            descriptor = raw.into_iter().map(crate::sys::own).next_back();
        }
    }
    Ok((message.bytes, descriptor))
}
