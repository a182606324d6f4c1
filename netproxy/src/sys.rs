//! System calls that no library offers as safe functions.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

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
    // SAFETY: the kernel has just made it for this process and nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

/// `struct bpf_attr` of `BPF_MAP_CREATE`, as far as it is needed (bpf(2)).
#[repr(C)]
struct MakeMap {
    kind: u32,
    key_bytes: u32,
    value_bytes: u32,
    entries: u32,
    flags: u32,
}

/// `struct bpf_attr` of `BPF_PROG_LOAD`.
#[repr(C)]
struct LoadProgram {
    kind: u32,
    length: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_bytes: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attached_as: u32,
}

/// `struct bpf_attr` of `BPF_PROG_ATTACH`.
#[repr(C)]
struct AttachProgram {
    target: u32,
    program: u32,
    attached_as: u32,
    flags: u32,
}

/// `struct bpf_attr` of `BPF_MAP_LOOKUP_ELEM`.
#[repr(C)]
struct LookUp {
    map: u32,
    key: u64,
    value: u64,
    flags: u64,
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: the structure, and what it points to, outlive the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attributes, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn made(descriptor: libc::c_long) -> io::Result<OwnedFd> {
    i32::try_from(descriptor).map(own).map_err(|_too_large| io::ErrorKind::InvalidData.into())
}

fn number(descriptor: RawFd) -> u32 {
    u32::try_from(descriptor).unwrap_or(u32::MAX)
}

/// A map that forgets what was used longest ago (`BPF_MAP_TYPE_LRU_HASH`).
pub(crate) fn bpf_map(key_bytes: u32, value_bytes: u32, entries: u32) -> io::Result<OwnedFd> {
    made(bpf(0, &MakeMap { kind: 9, key_bytes, value_bytes, entries, flags: 0 })?)
}

/// Loads a program for connect(2) in cgroups (`BPF_PROG_TYPE_CGROUP_SOCK_ADDR`).
pub(crate) fn bpf_load(instructions: &[u64], attached_as: u32) -> io::Result<OwnedFd> {
    let load = LoadProgram {
        kind: 18,
        length: u32::try_from(instructions.len()).unwrap_or(u32::MAX),
        instructions: instructions.as_ptr().addr() as u64,
        license: c"GPL".as_ptr().addr() as u64,
        log_level: 0,
        log_bytes: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: *b"nemoclaw_dials\0\0",
        interface: 0,
        attached_as,
    };
    made(bpf(5, &load)?)
}

/// Attaches a program to a cgroup, beside those of others.
pub(crate) fn bpf_attach(
    cgroup: BorrowedFd<'_>,
    program: &OwnedFd,
    attached_as: u32,
) -> io::Result<()> {
    const ALLOW_MULTI: u32 = 2;
    let (target, program) = (number(cgroup.as_raw_fd()), number(program.as_raw_fd()));
    bpf(8, &AttachProgram { target, program, attached_as, flags: ALLOW_MULTI }).map(|_zero| ())
}

/// Looks a key up in a map of [`bpf_map`]; `N` is the size of its values.
pub(crate) fn bpf_look_up<const N: usize>(map: &OwnedFd, key: u64) -> Option<[u8; N]> {
    let mut value = [0; N];
    let look_up = LookUp {
        map: number(map.as_raw_fd()),
        key: (&raw const key).addr() as u64,
        value: value.as_mut_ptr().addr() as u64,
        flags: 0,
    };
    bpf(1, &look_up).is_ok().then_some(value)
}
