//! System calls that no library offers as safe functions.

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};

use nix::libc;

/// What [`fork`] returns.
#[derive(Debug)]
pub(crate) enum Fork {
    /// In the new process.
    Child,
    /// In the old one: the pid of the new.
    Parent(i32),
}

/// Duplicates this process (`fork(2)`). The supervisor has one thread, so the
/// child may use the allocator and start a runtime of its own.
pub(crate) fn fork() -> io::Result<Fork> {
    // SAFETY: there is no other thread that could hold a lock in the child.
    let result = unsafe { libc::fork() };
    match result {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid)),
    }
}

/// Ends this process at once.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Closes every descriptor from `first` on (`close_range(2)`, since Linux 5.9).
pub(crate) fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: called at start, before anything owns a descriptor that high.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Takes ownership of a descriptor that the kernel has just delivered.
pub(crate) fn own(raw: RawFd) -> OwnedFd {
    // SAFETY: it came with SCM_RIGHTS in this process and nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(raw) }
}
