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
#[derive(Default)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

const MOUNT_ATTR_RDONLY: u64 = 1;
const MOUNT_ATTR_NOSUID: u64 = 2;
const MOUNT_ATTR_NODEV: u64 = 4;
const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

/// Changes the mount whose root is the open file (`mount_setattr(2)`, since
/// Linux 5.12).
fn change_mount(root: BorrowedFd<'_>, attr: &MountAttr) -> io::Result<()> {
    change_mounts(root, attr, 0)
}

fn change_mounts(root: BorrowedFd<'_>, attr: &MountAttr, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: path and structure are valid for the size passed and outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            root.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    check(result).map(|_zero| ())
}

/// Makes a mount read-only, or writable again. `EBUSY` while files are open for
/// writing in it.
pub(crate) fn set_read_only(root: BorrowedFd<'_>, read_only: bool) -> io::Result<()> {
    let (set, clear) = if read_only { (MOUNT_ATTR_RDONLY, 0) } else { (0, MOUNT_ATTR_RDONLY) };
    change_mount(root, &MountAttr { attr_set: set, attr_clr: clear, ..MountAttr::default() })
}

/// Makes a mount and all that is mounted below it read-only; all of them or none.
pub(crate) fn set_all_read_only(root: BorrowedFd<'_>) -> io::Result<()> {
    let attr = MountAttr { attr_set: MOUNT_ATTR_RDONLY, ..MountAttr::default() };
    change_mounts(root, &attr, libc::AT_RECURSIVE)
}

/// Gives a detached mount the ids of a user namespace. `EINVAL` where the file
/// system cannot.
pub(crate) fn set_ids(root: BorrowedFd<'_>, namespace: BorrowedFd<'_>) -> io::Result<()> {
    let userns_fd = u64::try_from(namespace.as_raw_fd()).unwrap_or_default();
    change_mount(root, &MountAttr { attr_set: MOUNT_ATTR_IDMAP, userns_fd, ..MountAttr::default() })
}

/// Makes a mount read-only, nodev and nosuid, and leaves those below it as they are.
pub(crate) fn seal_mount(root: BorrowedFd<'_>) -> io::Result<()> {
    let attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
    change_mount(root, &MountAttr { attr_set, ..MountAttr::default() })
}

/// Makes a mount nodev and nosuid, whatever it was.
pub(crate) fn restrict_mount(root: BorrowedFd<'_>) -> io::Result<()> {
    change_mount(
        root,
        &MountAttr { attr_set: MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, ..MountAttr::default() },
    )
}

/// `struct bpf_attr` of `BPF_PROG_LOAD`, as far as it is needed (bpf(2)).
#[repr(C)]
struct LoadProgram {
    kind: u32,
    length: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// `struct bpf_attr` of `BPF_PROG_ATTACH`.
#[repr(C)]
struct AttachProgram {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Lets a program decide about the devices of a cgroup v2, besides those that are
/// attached already: all of them must admit.
pub(crate) fn restrict_devices(cgroup: BorrowedFd<'_>, program: &[u64]) -> io::Result<()> {
    const LOAD: libc::c_int = 5;
    const ATTACH: libc::c_int = 8;
    const OF_DEVICES: u32 = 15;
    const AT_DEVICES: u32 = 6;
    const ALLOW_MULTI: u32 = 2;
    let number = |fd: i32| u32::try_from(fd).unwrap_or(u32::MAX);
    let load = LoadProgram {
        kind: OF_DEVICES,
        length: u32::try_from(program.len()).unwrap_or(u32::MAX),
        instructions: program.as_ptr().addr() as u64,
        license: c"GPL".as_ptr().addr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: the structure, the instructions and the licence outlive the call.
    let loaded = descriptor(unsafe {
        libc::syscall(libc::SYS_bpf, LOAD, &raw const load, size_of::<LoadProgram>())
    })?;
    let attach = AttachProgram {
        target: number(cgroup.as_raw_fd()),
        program: number(loaded.as_raw_fd()),
        kind: AT_DEVICES,
        flags: ALLOW_MULTI,
    };
    // SAFETY: the structure outlives the call, and both descriptors are open.
    check(unsafe {
        libc::syscall(libc::SYS_bpf, ATTACH, &raw const attach, size_of::<AttachProgram>())
    })
    .map(|_zero| ())
}

/// Closes every descriptor from 3 on but these (`close_range(2)`, since Linux 5.9).
///
/// Only for a forked process that leaves by [`exit_now`]: what others own is gone.
pub(crate) fn close_all_but(kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    let number = |fd: &BorrowedFd<'_>| u32::try_from(fd.as_raw_fd()).unwrap_or_default();
    let mut kept: Vec<u32> = kept.iter().map(number).collect();
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept.into_iter().chain([u32::MAX]) {
        if fd > first {
            // SAFETY: no memory is passed; the caller gives the descriptors up.
            check(unsafe { libc::syscall(libc::SYS_close_range, first, fd - 1, 0) })?;
        }
        first = fd.saturating_add(1).max(first);
    }
    Ok(())
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
