//! Bytes both ways, untouched, with half-close: each side may end its own
//! direction while the other goes on. Between two sockets the kernel moves them
//! (splice(2)); they are never copied here.
//!
//! What a client says before it encrypts is read, once: the server name of a TLS
//! hello has to agree with the host the connection was opened to.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use nemoclaw_spec::decide::Destination;
use nemoclaw_spec::tls::{self, Hello};
use rustix::io::Errno;
use rustix::net::{RecvFlags, Shutdown};
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

/// Most bytes moved at once: what a pipe holds (pipe(7)).
const CHUNK: usize = 64 * 1024;
/// Buffer where no pipe is to be had, in bytes.
const BUFFER: usize = 16 * 1024;
/// Most pipes at once; further directions copy.
const MAX_PIPES: usize = 128;
/// How long a client may take for the rest of a TLS hello it has begun.
const PATIENCE: Duration = Duration::from_secs(10);
/// In how many pieces a hello may come.
const MAX_PIECES: usize = 64;

/// How a relayed connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Both sides have said all.
    Closed,
    /// One side broke off.
    Broken,
    /// Nothing came from either side for too long.
    Idle,
    /// It has lasted as long as one may.
    Lifetime,
    /// The client asked for another server, or sent a hello that makes no sense.
    ServerName,
}

/// How long a connection may last.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Without a byte in either direction.
    pub(super) idle: Duration,
    /// In all.
    pub(super) lifetime: Duration,
}

/// What has been relayed.
#[derive(Debug)]
pub(super) struct Relayed {
    pub(super) end: End,
    /// Bytes from the client.
    pub(super) sent: u64,
    /// Bytes from the server.
    pub(super) received: u64,
    /// The server name that the client's hello gave.
    pub(super) server_name: Option<String>,
}

/// Pipes that no direction uses at the moment, and a buffer for all.
#[derive(Debug)]
pub(super) struct Pipes {
    free: RefCell<Vec<Pipe>>,
    made: Cell<usize>,
    /// For what is copied, by whoever has its turn.
    buffer: RefCell<Box<[u8; BUFFER]>>,
}

impl Default for Pipes {
    fn default() -> Self {
        let buffer = RefCell::new(Box::new([0; BUFFER]));
        Self { free: RefCell::default(), made: Cell::default(), buffer }
    }
}

#[derive(Debug)]
struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Pipes {
    fn take(&self) -> Option<Pipe> {
        if let Some(pipe) = self.free.borrow_mut().pop() {
            return Some(pipe);
        }
        if self.made.get() >= MAX_PIPES {
            return None;
        }
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        self.made.set(self.made.get() + 1);
        Some(Pipe { reader, writer })
    }

    /// Takes back an empty pipe.
    fn give(&self, pipe: Pipe) {
        self.free.borrow_mut().push(pipe);
    }

    /// Forgets one that is not empty: what it holds belongs to one connection.
    fn lose(&self, pipe: Pipe) {
        drop(pipe);
        self.made.set(self.made.get().saturating_sub(1));
    }
}

/// A pipe in use; one that is dropped on the way is closed with what it holds.
struct Lent<'a> {
    pipes: &'a Pipes,
    pipe: Option<Pipe>,
    filled: bool,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        match self.pipe.take() {
            Some(pipe) if self.filled => self.pipes.lose(pipe),
            Some(pipe) => self.pipes.give(pipe),
            None => {}
        }
    }
}

/// One connection while it is relayed.
struct Relay<'a> {
    client: &'a TcpStream,
    upstream: &'a TcpStream,
    pipes: &'a Pipes,
    sent: Cell<u64>,
    received: Cell<u64>,
    moved: Cell<Instant>,
    server_name: RefCell<Option<String>>,
    disagrees: Cell<bool>,
    /// One direction has ended.
    one_ended: Cell<bool>,
}

/// splice(2) stops at urgent data (tcp(7)), as if there were nothing more or the
/// stream had ended: `None` where something is left all the same, 0 at the end.
fn nothing_left(source: &TcpStream) -> io::Result<Option<usize>> {
    let mut one = [0];
    match rustix::net::recv(source, &mut one, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((0, _)) => Ok(Some(0)),
        Ok(_) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Relays until both directions have ended, or the limits end it.
/// `early` is what the client has sent already; without a `destination` the server
/// name is only recorded. An upstream stream only exists where
/// a permit was dialled.
pub(super) async fn run(
    (client, early): (TcpStream, &[u8]),
    upstream: TcpStream,
    destination: Option<&Destination>,
    limits: Limits,
    pipes: &Pipes,
) -> Relayed {
    let relay = Relay {
        client: &client,
        upstream: &upstream,
        pipes,
        sent: Cell::new(0),
        received: Cell::new(0),
        moved: Cell::new(Instant::now()),
        server_name: RefCell::new(None),
        disagrees: Cell::new(false),
        one_ended: Cell::new(false),
    };
    let end = relay.both(early, destination, limits).await;
    if end != End::Closed {
        // Whoever is still there hears of it as if there were nobody between.
        for stream in [&client, &upstream] {
            let _set = stream.set_zero_linger();
        }
    }
    Relayed {
        end,
        sent: relay.sent.get(),
        received: relay.received.get(),
        server_name: relay.server_name.take(),
    }
}

impl Relay<'_> {
    async fn both(
        &self,
        early: &[u8],
        destination: Option<&Destination>,
        Limits { idle, lifetime }: Limits,
    ) -> End {
        let last = Instant::now() + lifetime;
        let outward = async {
            if self.start(early, destination).await? {
                self.pump(self.client, self.upstream, &self.sent).await?;
            }
            self.end_of(self.upstream)
        };
        let inward = async {
            self.pump(self.upstream, self.client, &self.received).await?;
            self.end_of(self.client)
        };
        let work = async { tokio::try_join!(outward, inward) };
        tokio::pin!(work);
        loop {
            let deadline = (self.moved.get() + idle).min(last);
            tokio::select! {
                result = &mut work => {
                    let result: io::Result<((), ())> = result;
                    return match result {
                        Ok(_) => End::Closed,
                        Err(_) if self.disagrees.get() => End::ServerName,
                        Err(_) => End::Broken,
                    };
                }
                () = sleep_until(deadline) => {
                    if last <= Instant::now() {
                        return End::Lifetime;
                    }
                    if self.moved.get() + idle <= Instant::now() {
                        return End::Idle;
                    }
                }
            }
        }
    }

    /// Tells a side that the other has said all. The last end comes with the close.
    fn end_of(&self, sink: &TcpStream) -> io::Result<()> {
        if self.one_ended.replace(true) {
            return Ok(());
        }
        Ok(rustix::net::shutdown(sink, Shutdown::Write)?)
    }

    /// Passes on the client's first bytes once they are known to ask for nobody
    /// else. False: the client has ended already.
    async fn start(&self, early: &[u8], destination: Option<&Destination>) -> io::Result<bool> {
        let mut bytes = early.to_vec();
        if bytes.is_empty() {
            // Servers may speak first: that may take as long as they let it.
            self.client.readable().await?;
        }
        let read = async {
            for _piece in 0..MAX_PIECES {
                match tls::hello(&bytes) {
                    Hello::Incomplete => {}
                    Hello::Other => return Ok(true),
                    Hello::Malformed if destination.is_none() => return Ok(true),
                    Hello::Malformed => break,
                    Hello::Client(name) => {
                        let agrees = destination.is_none_or(|to| tls::agrees(name.as_deref(), to));
                        *self.server_name.borrow_mut() = name;
                        if !agrees {
                            break;
                        }
                        return Ok(true);
                    }
                }
                if self.read_more(&mut bytes).await? == 0 {
                    if bytes.is_empty() {
                        return Ok(false);
                    }
                    break;
                }
            }
            self.disagrees.set(true);
            Err(io::Error::from(io::ErrorKind::InvalidData))
        };
        let Ok(goes_on) = timeout(PATIENCE, read).await else {
            self.disagrees.set(true);
            return Err(io::ErrorKind::TimedOut.into());
        };
        if !goes_on? {
            return Ok(false);
        }
        self.write(self.upstream, &bytes).await?;
        self.count(&self.sent, bytes.len());
        Ok(true)
    }

    /// Appends what the client has sent; 0 at its end.
    async fn read_more(&self, bytes: &mut Vec<u8>) -> io::Result<usize> {
        loop {
            self.client.readable().await?;
            match self.client.try_read_buf(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }

    /// Moves bytes from one socket to the other until the first one ends. A few are
    /// copied, which costs less than a pipe; many the kernel moves.
    async fn pump(
        &self,
        source: &TcpStream,
        sink: &TcpStream,
        count: &Cell<u64>,
    ) -> io::Result<()> {
        let mut many = false;
        loop {
            source.readable().await?;
            let before = count.get();
            // No pipe is held while nothing comes.
            let moved = match many.then(|| self.pipes.take()).flatten() {
                Some(pipe) => {
                    let lent = Lent { pipes: self.pipes, pipe: Some(pipe), filled: false };
                    self.splice(source, sink, count, lent).await?
                }
                None => self.copy(source, sink, count).await?,
            };
            if !moved {
                return Ok(());
            }
            // Nothing, where it was only awake too early, tells nothing.
            if count.get() > before {
                many = count.get() - before >= BUFFER as u64;
            }
            // Others have their turn before this one goes on.
            tokio::task::coop::consume_budget().await;
        }
    }

    /// Lets the kernel move what there is; false at the end of the source.
    async fn splice(
        &self,
        source: &TcpStream,
        sink: &TcpStream,
        count: &Cell<u64>,
        mut lent: Lent<'_>,
    ) -> io::Result<bool> {
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        loop {
            let Some(pipe) = &lent.pipe else { return Ok(true) };
            let filled = source.try_io(Interest::READABLE, || {
                let into = pipe.writer.as_fd();
                match splice(source.as_fd(), None, into, None, CHUNK, flags) {
                    Ok(0) | Err(Errno::AGAIN) => nothing_left(source),
                    result => Ok(Some(result?)),
                }
            });
            let mut left = match filled {
                Ok(Some(0)) => return Ok(false),
                Ok(Some(length)) => length,
                Ok(None) => return self.copy(source, sink, count).await,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            };
            lent.filled = true;
            while left > 0 {
                let drained = sink.try_io(Interest::WRITABLE, || {
                    Ok(splice(pipe.reader.as_fd(), None, sink.as_fd(), None, left, flags)?)
                });
                match drained {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(length) => {
                        left -= length;
                        self.count(count, length);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        sink.writable().await?;
                    }
                    Err(error) => return Err(error),
                }
            }
            lent.filled = false;
            tokio::task::coop::consume_budget().await;
        }
    }

    /// The same with a buffer of ours.
    async fn copy(
        &self,
        source: &TcpStream,
        sink: &TcpStream,
        count: &Cell<u64>,
    ) -> io::Result<bool> {
        let left = {
            let mut buffer = self.pipes.buffer.borrow_mut();
            let length = match source.try_read(buffer.as_mut_slice()) {
                Ok(0) => return Ok(false),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            };
            let bytes = buffer.get(..length).unwrap_or_default();
            let written = match sink.try_write(bytes) {
                Ok(written) => written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(error) => return Err(error),
            };
            self.count(count, written);
            bytes.get(written..).unwrap_or_default().to_vec()
        };
        // The buffer is everybody's: what has to wait is kept apart.
        self.write(sink, &left).await?;
        self.count(count, left.len());
        Ok(true)
    }

    async fn write(&self, sink: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match sink.try_write(bytes) {
                Ok(length) => bytes = bytes.get(length..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    sink.writable().await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn count(&self, count: &Cell<u64>, length: usize) {
        count.set(count.get().saturating_add(u64::try_from(length).unwrap_or(u64::MAX)));
        self.moved.set(Instant::now());
    }
}
