//! The netlink wire format (netlink(7)), as far as routes and nf_tables need
//! it. No maintained permissive crate speaks nf_tables in pure Rust, and the
//! `nft` program costs 23 ms a start where one message costs 0.2.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto,
    socket,
};

pub(super) const REQUEST: u16 = 0x1;
pub(super) const ACK: u16 = 0x4;
pub(super) const DUMP: u16 = 0x300;
pub(super) const EXCLUSIVE: u16 = 0x200;
pub(super) const CREATE: u16 = 0x400;
pub(super) const APPEND: u16 = 0x800;
/// Flag of attributes that hold attributes.
const NESTED: u16 = 0x8000;
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// A message under construction, or several in a row.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    sequence: u32,
}

impl Buffer {
    /// Appends a message whose body `fill` writes.
    pub(super) fn message(&mut self, kind: u16, flags: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.sequence += 1;
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(self.sequence.to_ne_bytes());
        self.bytes.extend([0; 4]);
        fill(self);
        self.set_length_u32(start);
    }

    /// Length so far, in bytes.
    pub(super) fn length(&self) -> usize {
        self.bytes.len()
    }

    /// Asks for an answer to the message that begins at `start`.
    pub(super) fn acknowledge(&mut self, start: usize) {
        const FLAGS: usize = 6;
        let [low, high] = ACK.to_ne_bytes();
        if let Some([first, second]) = self.bytes.get_mut(start + FLAGS..start + FLAGS + 2) {
            *first |= low;
            *second |= high;
        }
    }

    /// Appends raw bytes.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    /// Appends an attribute, padded to four bytes.
    pub(super) fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Appends a string attribute with its zero byte.
    pub(super) fn text(&mut self, kind: u16, value: &str) {
        self.attribute(kind, &[value.as_bytes(), &[0]].concat());
    }

    /// Appends a 32-bit attribute in network order, as nf_tables wants it.
    pub(super) fn be32(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// Appends an attribute of attributes.
    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend((kind | NESTED).to_ne_bytes());
        fill(self);
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        if let Some(slot) = self.bytes.get_mut(start..start + 2) {
            slot.copy_from_slice(&length.to_ne_bytes());
        }
    }

    fn set_length_u32(&mut self, start: usize) {
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        if let Some(slot) = self.bytes.get_mut(start..start + 4) {
            slot.copy_from_slice(&length.to_ne_bytes());
        }
    }
}

/// Sends `buffer` and waits for the first acknowledgement or error.
pub(super) fn exchange(protocol: SockProtocol, buffer: &Buffer) -> io::Result<()> {
    let socket = open(protocol)?;
    let kernel = NetlinkAddr::new(0, 0);
    sendto(socket.as_raw_fd(), &buffer.bytes, &kernel, MsgFlags::empty())?;
    let mut answer = [0_u8; 8192];
    loop {
        let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        let mut rest = answer.get(..length).unwrap_or_default();
        if rest.len() < 20 {
            return Err(io::Error::other("a short answer from the kernel"));
        }
        while let Some(header) = rest.get(..20) {
            let word = |at: usize| -> [u8; 4] {
                header.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).unwrap_or_default()
            };
            let size = usize::try_from(u32::from_ne_bytes(word(0))).unwrap_or_default();
            let [low, high, ..] = word(4);
            if u16::from_ne_bytes([low, high]) == ERROR {
                return match i32::from_ne_bytes(word(16)) {
                    0 => Ok(()),
                    code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
                };
            }
            rest = rest.get(size.max(16).next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// Asks for dumps, one after the other.
pub(super) struct Dumps {
    socket: OwnedFd,
    answer: Vec<u8>,
}

impl Dumps {
    pub(super) fn open(protocol: SockProtocol) -> io::Result<Self> {
        // The kernel gives 32 KiB at a time at most (af_netlink.c).
        Ok(Self { socket: open(protocol)?, answer: vec![0; 32 * 1024] })
    }

    /// Sends a request for a dump and gives the bodies of the answers, at most
    /// `most` bytes of them.
    pub(super) fn dump(&mut self, buffer: &Buffer, most: usize) -> io::Result<Vec<Vec<u8>>> {
        let socket = self.socket.as_raw_fd();
        sendto(socket, &buffer.bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        bodies(socket, &mut self.answer, most)
    }
}

fn bodies(socket: RawFd, answer: &mut [u8], most: usize) -> io::Result<Vec<Vec<u8>>> {
    let mut bodies = Vec::new();
    let mut taken = 0;
    loop {
        let length = recv(socket, answer, MsgFlags::empty())?;
        let mut rest = answer.get(..length).unwrap_or_default();
        if rest.len() < 16 {
            return Err(io::Error::other("a short answer from the kernel"));
        }
        while let Some(&[a, b, c, d, low, high]) = rest.get(..6) {
            let size = usize::try_from(u32::from_ne_bytes([a, b, c, d])).unwrap_or_default();
            let body = rest.get(16..size).unwrap_or_default();
            match u16::from_ne_bytes([low, high]) {
                DONE => return Ok(bodies),
                ERROR => {
                    let code = body.get(..4).and_then(|code| code.try_into().ok());
                    let code = code.map_or(0, i32::from_ne_bytes);
                    return Err(io::Error::from_raw_os_error(code.saturating_neg()));
                }
                _ => bodies.push(body.to_vec()),
            }
            taken += size;
            if taken > most {
                return Err(io::Error::other("the kernel's answer is too long"));
            }
            rest = rest.get(size.max(16).next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

fn open(protocol: SockProtocol) -> io::Result<OwnedFd> {
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    // Bounds the wait for an acknowledgement; the kernel answers at once.
    let timeout = nix::sys::time::TimeVal::new(5, 0);
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::ReceiveTimeout, &timeout)?;
    Ok(socket)
}
