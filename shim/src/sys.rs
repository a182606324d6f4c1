//! System calls that neither rustix nor nix wraps. The only unsafe code of the
//! runtime; each function is safe to call.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::libc;

/// Turns a raw result into a descriptor or the last error.
fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = check(result)?;
    let fd = i32::try_from(fd).map_err(|_range| io::Error::other("descriptor out of range"))?;
    // SAFETY: the kernel has just returned this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A private clone of the mount at an open file, attached nowhere
/// (`open_tree(2)`, since Linux 5.2).
pub(crate) fn clone_mount(file: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::OPEN_TREE_CLONE
        | libc::OPEN_TREE_CLOEXEC
        | u32::try_from(libc::AT_EMPTY_PATH).unwrap_or_default();
    // SAFETY: the path is a valid, empty C string and the descriptor is open.
    descriptor(unsafe { libc::syscall(libc::SYS_open_tree, file.as_raw_fd(), c"".as_ptr(), flags) })
}

#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Makes a mount read-only (`mount_setattr(2)`, since Linux 5.12).
pub(crate) fn make_read_only(mount: BorrowedFd<'_>) -> io::Result<()> {
    const MOUNT_ATTR_RDONLY: u64 = 1;
    let attr = MountAttr { attr_set: MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: the structure is valid for the size passed and outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    check(result).map(|_zero| ())
}

/// Makes the mount at `path` nodev and nosuid, whatever it was.
pub(crate) fn restrict_mount(path: &std::ffi::CStr) -> io::Result<()> {
    const MOUNT_ATTR_NOSUID: u64 = 2;
    const MOUNT_ATTR_NODEV: u64 = 4;
    let attr = MountAttr {
        attr_set: MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: path and structure are valid and outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            0,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    check(result).map(|_zero| ())
}

/// Replaces this program by the one behind `file`; returns only on failure.
pub(crate) fn execute_descriptor(
    file: BorrowedFd<'_>,
    args: &[CString],
    env: &[CString],
) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|s| s.as_ptr()).chain(std::iter::once(std::ptr::null())).collect()
    };
    let (argv, envp) = (pointers(args), pointers(env));
    // SAFETY: both arrays are null-terminated and their strings outlive the call.
    unsafe {
        libc::execveat(
            file.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr().cast(),
            envp.as_ptr().cast(),
            libc::AT_EMPTY_PATH,
        );
    }
    io::Error::last_os_error()
}

/// Marks every descriptor from `first` on close-on-exec (`close_range(2)`,
/// since Linux 5.11 with this flag).
pub(crate) fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: no memory is passed; descriptors stay open until execve.
    let result =
        unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    check(result).map(|_zero| ())
}

/// What [`fork`] returns.
pub(crate) enum Fork {
    /// In the new process.
    Child,
    /// In the old one: the pid of the new, as this process sees it.
    Parent(i32),
}

/// Duplicates this process (`fork(2)`).
///
/// The runtime has one thread wherever it calls this, so that the child may
/// use the allocator and the standard library.
pub(crate) fn fork() -> io::Result<Fork> {
    // SAFETY: there is no other thread that could hold a lock in the child.
    let result = unsafe { libc::fork() };
    match result {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid)),
    }
}

/// Ends this process without running destructors or exit handlers, which
/// belong to its parent.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// The newest Landlock ABI, 0 without Landlock
/// (`landlock_create_ruleset(2)`, `LANDLOCK_CREATE_RULESET_VERSION`).
pub(crate) fn landlock_abi() -> u32 {
    const VERSION: u32 = 1;
    // SAFETY: a null attribute with size 0 is how the version is asked.
    let result = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, VERSION)
    };
    u32::try_from(result).unwrap_or(0)
}

/// Sets the I/O priority of this process (`ioprio_set(2)`).
pub(crate) fn set_io_priority(value: i32) -> io::Result<()> {
    const WHO_PROCESS: i32 = 1;
    // SAFETY: no memory is passed.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, value) }).map(|_zero| ())
}

/// Sets a variable of this process's environment.
pub(crate) fn set_variable(name: &str, value: &str) {
    // SAFETY: the runtime has one thread wherever it calls this.
    unsafe { std::env::set_var(name, value) }
}

/// Gives every signal back the effect that programs expect. Rust's start-up code
/// ignores SIGPIPE, an engine started by nohup(1) ignores SIGHUP, and execve(2)
/// would pass that on.
pub(crate) fn restore_signals() {
    const LAST: i32 = 64;
    for signal in 1..=LAST {
        // SAFETY: the default action needs no handler; no other thread runs.
        // Signals that cannot be changed (signal(2), EINVAL) keep their action.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
}
