//! Who connects, as the kernel sees it at connect(2): a BPF program on the container's
//! cgroup notes process and executable under the socket's cookie, which sock_diag(7)
//! gives as well (`BPF_PROG_TYPE_CGROUP_SOCK_ADDR`, since Linux 4.17; BTF and
//! `bpf_skc_to_tcp_sock`, since 5.9).
//!
//! Who asks later whose socket it is sees what has become of it: a process may have
//! executed another program meanwhile. The note also tells whether nobody else held
//! the socket, so that nobody else needs to be looked for.

use serde::{Deserialize, Serialize};

use crate::bpf::{
    ADD, CALL, COPY, EXIT, Instruction, JUMP_IF_EQUAL, JUMP_IF_NOT_EQUAL, LOAD, LOAD_WIDE,
    LOAD_WORD, MOVE, SHIFT_RIGHT_WIDE, STORE, STORE_NUMBER, encode,
};
use crate::btf::Types;

/// Bytes of a key: the socket's cookie.
pub const KEY_BYTES: u32 = 8;
/// Bytes of a note.
pub const NOTE_BYTES: usize = 64;

/// Where the program finds things in the running kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// `task_struct`: `mm`, `group_leader`, `start_boottime`, `files`, `signal`.
    task: [u32; 5],
    /// `mm_struct.exe_file`.
    executable: u32,
    /// `file.f_inode`.
    inode: u32,
    /// `inode.i_ino`.
    number: u32,
    /// Seconds and nanoseconds of the `inode`'s last change.
    changed: [u32; 2],
    /// The count of references to a `file`.
    references: u32,
    /// What that count says of one reference: 0 since Linux 6.13 (`file_ref_t`).
    one: u64,
    /// `files_struct.count`.
    users: u32,
    /// `signal_struct.nr_threads`.
    threads: u32,
    /// `sock.sk_socket`.
    socket: u32,
    /// `socket.file`.
    file: u32,
}

impl Layout {
    /// Reads the kernel's description of its types; `None` where something is missing.
    pub fn find(btf: &[u8]) -> Option<Self> {
        let types = Types::parse(btf)?;
        let one = |name, field| types.fields(name, [field]).map(|[offset]| offset);
        let counted = one("file", "f_ref").map(|offset| (offset, 0));
        let (references, first) = counted.or_else(|| Some((one("file", "f_count")?, 1)))?;
        Some(Self {
            task: types.fields(
                "task_struct",
                ["mm", "group_leader", "start_boottime", "files", "signal"],
            )?,
            executable: one("mm_struct", "exe_file")?,
            inode: one("file", "f_inode")?,
            number: one("inode", "i_ino")?,
            changed: changed(&types)?,
            references,
            one: first,
            users: one("files_struct", "count")?,
            threads: one("signal_struct", "nr_threads")?,
            socket: one("sock", "sk_socket")?,
            file: one("socket", "file")?,
        })
    }
}

/// Of `inode`: one `struct timespec64` until Linux 6.10, then two fields.
fn changed(types: &Types<'_>) -> Option<[u32; 2]> {
    types.fields("inode", ["i_ctime_sec", "i_ctime_nsec"]).or_else(|| {
        let whole = ["__i_ctime", "i_ctime"];
        let [at] = whole.into_iter().find_map(|field| types.fields("inode", [field]))?;
        Some([at, at.checked_add(8)?])
    })
}

// What the program keeps on its stack, below the frame pointer.
const NOTE: i16 = -64;
const PROCESS: i16 = NOTE;
const STARTED: i16 = NOTE + 8;
const INODE: i16 = NOTE + 16;
const SECONDS: i16 = NOTE + 24;
const REFERENCES: i16 = NOTE + 32;
const USERS: i16 = NOTE + 40;
const THREADS: i16 = NOTE + 44;
const GROUP: i16 = NOTE + 48;
const NANOSECONDS: i16 = NOTE + 56;
const KEY: i16 = -72;
const POINTER: i16 = -80;

// Registers: the result, the context, what pointers lead to, and the frame.
const RESULT: u8 = 0;
const CONTEXT: u8 = 6;
const TASK: u8 = 7;
const THERE: u8 = 8;
const FRAME: u8 = 10;

// Helpers (linux/bpf.h, `enum bpf_func_id`).
const UPDATE: i32 = 2;
const CURRENT_PROCESS: i32 = 14;
const CURRENT_TASK: i32 = 35;
const COOKIE: i32 = 46;
const CURRENT_GROUP: i32 = 80;
const READ_KERNEL: i32 = 113;
const TCP_SOCKET: i32 = 137;

/// `struct bpf_sock_addr`: `type` and `sk`.
const KIND: i16 = 32;
const SOCKET: i16 = 64;
const STREAM: i32 = 1;

/// A program under construction.
#[derive(Default)]
struct Code(Vec<Instruction>);

impl Code {
    fn add(&mut self, opcode: u8, to: u8, from: u8, offset: i16, value: i32) {
        self.0.push(encode(opcode, to, from, offset, value));
    }

    fn call(&mut self, helper: i32) {
        self.add(CALL, 0, 0, 0, helper);
    }

    /// Copies kernel memory from behind a register to the stack; zeros where there is
    /// none.
    fn read(&mut self, to: i16, bytes: i32, base: u8, offset: u32) {
        self.add(COPY, 3, base, 0, 0);
        self.add(ADD, 3, 0, 0, i32::try_from(offset).unwrap_or(i32::MAX));
        self.add(MOVE, 2, 0, 0, bytes);
        self.add(COPY, 1, FRAME, 0, 0);
        self.add(ADD, 1, 0, 0, i32::from(to));
        self.call(READ_KERNEL);
    }

    /// Makes [`THERE`] what a field behind a register points to.
    fn follow(&mut self, base: u8, offset: u32) {
        self.read(POINTER, 8, base, offset);
        self.add(LOAD, THERE, FRAME, POINTER, 0);
    }
}

/// The program: notes who connects a TCP socket, and lets it.
pub fn program(layout: &Layout, map: i32) -> Vec<Instruction> {
    let [mm, leader, started, files, signal] = layout.task;
    let [seconds, nanoseconds] = layout.changed;
    let mut code = Code::default();
    code.add(COPY, CONTEXT, 1, 0, 0);
    code.add(LOAD_WORD, 2, CONTEXT, KIND, 0);
    // Over everything to the end; its length is filled in below.
    let skip = code.0.len();
    code.add(JUMP_IF_NOT_EQUAL, 2, 0, 0, STREAM);
    for place in (POINTER..0).step_by(8) {
        code.add(STORE_NUMBER, FRAME, 0, place, 0);
    }
    code.add(COPY, 1, CONTEXT, 0, 0);
    code.call(COOKIE);
    code.add(STORE, FRAME, RESULT, KEY, 0);
    code.call(CURRENT_PROCESS);
    code.add(SHIFT_RIGHT_WIDE, RESULT, 0, 0, 32);
    code.add(STORE, FRAME, RESULT, PROCESS, 0);
    code.call(CURRENT_GROUP);
    code.add(STORE, FRAME, RESULT, GROUP, 0);
    code.call(CURRENT_TASK);
    code.add(COPY, TASK, RESULT, 0, 0);
    code.follow(TASK, leader);
    code.read(STARTED, 8, THERE, started);
    code.follow(TASK, mm);
    code.follow(THERE, layout.executable);
    code.follow(THERE, layout.inode);
    code.read(INODE, 8, THERE, layout.number);
    code.read(SECONDS, 8, THERE, seconds);
    code.read(NANOSECONDS, 4, THERE, nanoseconds);
    code.follow(TASK, files);
    code.read(USERS, 4, THERE, layout.users);
    code.follow(TASK, signal);
    code.read(THREADS, 4, THERE, layout.threads);
    code.add(LOAD, 1, CONTEXT, SOCKET, 0);
    code.call(TCP_SOCKET);
    // All ones: not the only reference.
    code.add(MOVE, 2, 0, 0, -1);
    code.add(STORE, FRAME, 2, REFERENCES, 0);
    let without = code.0.len();
    code.add(JUMP_IF_EQUAL, RESULT, 0, 0, 0);
    code.follow(RESULT, layout.socket);
    code.follow(THERE, layout.file);
    code.read(REFERENCES, 8, THERE, layout.references);
    code.land(without, JUMP_IF_EQUAL, RESULT, 0);
    // The map's descriptor comes in two instructions.
    code.add(LOAD_WIDE, 1, 1, 0, map);
    code.add(0, 0, 0, 0, 0);
    for (register, place) in [(2, KEY), (3, NOTE)] {
        code.add(COPY, register, FRAME, 0, 0);
        code.add(ADD, register, 0, 0, i32::from(place));
    }
    code.add(MOVE, 4, 0, 0, 0);
    code.call(UPDATE);
    code.land(skip, JUMP_IF_NOT_EQUAL, 2, STREAM);
    code.add(MOVE, RESULT, 0, 0, 1);
    code.add(EXIT, 0, 0, 0, 0);
    code.0
}

impl Code {
    /// Lets a jump written earlier lead to what comes next.
    fn land(&mut self, from: usize, opcode: u8, register: u8, value: i32) {
        let over = i16::try_from(self.0.len() - from - 1).unwrap_or(i16::MAX);
        if let Some(jump) = self.0.get_mut(from) {
            *jump = encode(opcode, register, 0, over, value);
        }
    }
}

/// What the kernel noted about a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Note {
    /// The process, in the first pid namespace.
    pub pid: i32,
    /// When it began, in nanoseconds since boot.
    pub started: u64,
    /// Inode of its executable.
    pub inode: u64,
    /// When that inode changed last, in seconds since the epoch and nanoseconds. With
    /// the number it tells files apart whatever file systems (overlayfs, btrfs) say of
    /// devices: nobody inside can set it.
    pub changed: (i64, u32),
    /// The cgroup it is in.
    pub group: u64,
    /// Nobody but its threads held the socket.
    pub alone: bool,
}

impl Note {
    /// Reads a note; `None` where the kernel could not tell everything.
    pub fn read(bytes: &[u8; NOTE_BYTES], layout: &Layout) -> Option<Self> {
        let wide = |place: i16| {
            let at = usize::try_from(place - NOTE).ok()?;
            Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
        };
        let word = |place: i16| {
            let at = usize::try_from(place - NOTE).ok()?;
            Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
        };
        let (users, threads) = (word(USERS)?, word(THREADS)?);
        let references =
            wide(REFERENCES)?.checked_sub(layout.one).map(|more| more.saturating_add(1));
        // A call on a table that threads share holds a reference of its own while it
        // lasts (fs/file.c, `__fget_light`).
        let most = if users > 1 { 2 } else { 1 };
        let alone = (1..=threads).contains(&users)
            && references.is_some_and(|references| (1..=most).contains(&references));
        let note = Self {
            pid: i32::try_from(wide(PROCESS)?).ok()?,
            started: wide(STARTED)?,
            inode: wide(INODE)?,
            // The top bit is the kernel's own (I_CTIME_QUERIED, since Linux 6.13).
            changed: (wide(SECONDS)?.cast_signed(), word(NANOSECONDS)? & 0x7fff_ffff),
            group: wide(GROUP)?,
            alone,
        };
        (note.pid > 0 && note.started > 0 && note.inode > 0).then_some(note)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::btf::tests::Made;

    fn kernel(references: &str) -> Vec<u8> {
        let mut made = Made::default();
        let mut with = |name: &str, fields: &[&str]| {
            let at = |n: usize| u32::try_from((n + 1) * 64).unwrap();
            let members: Vec<_> =
                fields.iter().enumerate().map(|(n, field)| (*field, 0, at(n))).collect();
            made.structure(name, false, &members);
        };
        with("task_struct", &["mm", "group_leader", "start_boottime", "files", "signal"]);
        with("mm_struct", &["exe_file"]);
        with("file", &["f_inode", references]);
        with("inode", &["i_ino", "i_ctime_sec", "i_ctime_nsec"]);
        with("files_struct", &["count"]);
        with("signal_struct", &["nr_threads"]);
        with("sock", &["sk_socket"]);
        with("socket", &["file"]);
        made.bytes()
    }

    #[test]
    fn the_layout_is_complete_or_absent() {
        let new = Layout::find(&kernel("f_ref")).unwrap();
        assert_eq!((new.references, new.one, new.task), (16, 0, [8, 16, 24, 32, 40]));
        assert_eq!(Layout::find(&kernel("f_count")).unwrap().one, 1);
        assert_eq!(Layout::find(&kernel("f_other")), None);
        assert_eq!(Layout::find(b""), None);
    }

    #[test]
    fn jumps_lead_to_the_end() {
        let code = program(&Layout::find(&kernel("f_ref")).unwrap(), 7);
        assert_eq!(code.last(), Some(&encode(EXIT, 0, 0, 0, 0)));
        let target = |from: usize| from + 1 + usize::try_from(code[from] >> 16 & 0xffff).unwrap();
        assert_eq!(target(2), code.len() - 2);
        let without = code.iter().position(|word| word & 0xff == u64::from(JUMP_IF_EQUAL)).unwrap();
        assert_eq!(code[target(without)], encode(LOAD_WIDE, 1, 1, 0, 7));
    }

    fn note(references: u64, users: u32, threads: u32) -> [u8; NOTE_BYTES] {
        let mut bytes = [0; NOTE_BYTES];
        let words = [42, 5_000_000_000, 99, 1_700_000_000, references];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&u64::to_ne_bytes(word));
        }
        bytes[40..44].copy_from_slice(&users.to_ne_bytes());
        bytes[44..48].copy_from_slice(&threads.to_ne_bytes());
        bytes[48..56].copy_from_slice(&u64::to_ne_bytes(77));
        bytes[56..60].copy_from_slice(&(1_u32 << 31 | 5).to_ne_bytes());
        bytes
    }

    #[test]
    fn a_note_tells_whether_the_process_was_alone() {
        for (field, shift) in [("f_ref", 0), ("f_count", 1)] {
            let layout = Layout::find(&kernel(field)).unwrap();
            let alone = |more: u64, users, threads| {
                Note::read(&note(more + shift, users, threads), &layout).unwrap().alone
            };
            assert!(alone(0, 1, 1) && alone(0, 1, 8) && alone(1, 3, 8));
            // Duplicated, shared with another process, or in nobody's table.
            assert!(!alone(1, 1, 1) && !alone(2, 3, 8) && !alone(0, 2, 1) && !alone(0, 0, 1));
            assert!(!Note::read(&note(u64::MAX, 1, 1), &layout).unwrap().alone);
        }
        let layout = Layout::find(&kernel("f_ref")).unwrap();
        let read = Note::read(&note(0, 1, 1), &layout).unwrap();
        assert_eq!((read.pid, read.inode, read.group), (42, 99, 77));
        assert_eq!(read.changed, (1_700_000_000, 5));
        assert_eq!(Note::read(&[0; NOTE_BYTES], &layout), None);
    }
}
