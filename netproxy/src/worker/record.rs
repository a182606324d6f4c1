//! Handing records to the supervisor, which alone can write them down. Nothing
//! is relayed before its record is on its way.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use nemoclaw_spec::audit::{Event, MAX_RECORD_BYTES};
use nix::sys::socket::{MsgFlags, send};
use tokio::io::Interest;
use tokio::net::UnixDatagram;

/// Sends records, waiting while the supervisor is behind.
pub(super) struct Recorder {
    socket: UnixDatagram,
}

impl Recorder {
    pub(super) fn new(socket: OwnedFd) -> Result<Self> {
        let socket = std::os::unix::net::UnixDatagram::from(socket);
        socket.set_nonblocking(true).context("cannot make the record asynchronous")?;
        Ok(Self { socket: UnixDatagram::from_std(socket).context("cannot watch the record")? })
    }

    /// Hands over one record.
    ///
    /// # Errors
    /// When the supervisor is gone; what was to be recorded must not happen.
    pub(super) async fn write(&self, event: &Event) -> io::Result<()> {
        let mut line = event.to_line().into_bytes();
        if line.len() > MAX_RECORD_BYTES / 2 {
            line = event.shortened().to_line().into_bytes();
        }
        loop {
            self.socket.writable().await?;
            let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
            let sent = self
                .socket
                .try_io(Interest::WRITABLE, || Ok(send(self.socket.as_raw_fd(), &line, flags)?));
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other.map(|_length| ()),
            }
        }
    }
}
