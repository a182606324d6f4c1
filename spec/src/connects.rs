//! Who connects, as the kernel sees it at connect(2): a BPF program on the container's
//! cgroup notes process and executable under the socket's cookie, which sock_diag(7)
//! gives as well (`BPF_PROG_TYPE_CGROUP_SOCK_ADDR`, since Linux 4.17; BTF and
//! `bpf_skc_to_tcp_sock`, since 5.9).
//!
//! Who asks later whose socket it is sees what has become of it: a process may have
//! executed another program meanwhile. The note also tells whether nobody else held
//! the socket, so that nobody else needs to be looked for, and what the ancestors
//! executed that have executed nothing else since they forked: a parent that becomes
//! another program makes its children nobody's.

use serde::{Deserialize, Serialize};

use crate::bpf::{
    ADD, CALL, COPY, EXIT, Instruction, JUMP_IF_DIFFERENT, JUMP_IF_EQUAL, JUMP_IF_NOT_EQUAL, LOAD,
    LOAD_WIDE, LOAD_WORD, MOVE, SHIFT_RIGHT_WIDE, STORE, STORE_NUMBER, encode,
};
use crate::btf::Types;

/// Bytes of a key: the socket's cookie.
pub const KEY_BYTES: u32 = 8;
/// Bytes of a note.
pub const NOTE_BYTES: usize = 256;
/// Most ancestors noted.
const LEVELS: i16 = 8;

/// Where the program finds things in the running kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// `task_struct`: `mm`, `group_leader`, `start_boottime`, `files`, `signal`.
    task: [u32; 5],
    /// And `real_parent`, `parent_exec_id`, `self_exec_id` (64 bits since Linux 5.7).
    lineage: [u32; 3],
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
            lineage: types
                .fields("task_struct", ["real_parent", "parent_exec_id", "self_exec_id"])?,
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
const NOTE: i16 = -256;
const PROCESS: i16 = NOTE;
const STARTED: i16 = NOTE + 8;
const INODE: i16 = NOTE + 16;
const SECONDS: i16 = NOTE + 24;
const REFERENCES: i16 = NOTE + 32;
const USERS: i16 = NOTE + 40;
const THREADS: i16 = NOTE + 44;
const GROUP: i16 = NOTE + 48;
const NANOSECONDS: i16 = NOTE + 56;
/// Inode, seconds and nanoseconds for each ancestor.
const ANCESTORS: i16 = NOTE + 64;
const ANCESTOR_BYTES: i16 = 24;
const KEY: i16 = NOTE - 8;
const POINTER: i16 = NOTE - 16;
const OF_PARENT: i16 = NOTE - 24;
const OF_CHILD: i16 = NOTE - 32;

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

    /// Notes the file that a task executes.
    fn executable(&mut self, layout: &Layout, inode: i16, seconds: i16, nanoseconds: i16) {
        let [mm, ..] = layout.task;
        let [of_seconds, of_nanoseconds] = layout.changed;
        self.follow(TASK, mm);
        self.follow(THERE, layout.executable);
        self.follow(THERE, layout.inode);
        self.read(inode, 8, THERE, layout.number);
        self.read(seconds, 8, THERE, of_seconds);
        self.read(nanoseconds, 4, THERE, of_nanoseconds);
    }

    /// Notes the ancestors, up to the first that has executed something else since it
    /// forked (kernel/fork.c, `copy_process`; fs/exec.c, `begin_new_exec`).
    fn ancestors(&mut self, layout: &Layout) {
        let [parent, of_parent, own] = layout.lineage;
        let mut ends = Vec::new();
        for level in 0..LEVELS {
            let place = ANCESTORS + level * ANCESTOR_BYTES;
            self.read(OF_CHILD, 8, TASK, of_parent);
            self.follow(TASK, parent);
            self.read(OF_PARENT, 8, THERE, own);
            self.add(LOAD, 1, FRAME, OF_CHILD, 0);
            self.add(LOAD, 2, FRAME, OF_PARENT, 0);
            ends.push(self.0.len());
            self.add(JUMP_IF_DIFFERENT, 1, 2, 0, 0);
            self.add(COPY, TASK, THERE, 0, 0);
            self.executable(layout, place, place + 8, place + 16);
        }
        for end in ends {
            self.land(end, JUMP_IF_DIFFERENT, (1, 2), 0);
        }
    }

    /// Makes [`THERE`] what a field behind a register points to.
    fn follow(&mut self, base: u8, offset: u32) {
        self.read(POINTER, 8, base, offset);
        self.add(LOAD, THERE, FRAME, POINTER, 0);
    }
}

/// The program: notes who connects a TCP socket, and lets it.
pub fn program(layout: &Layout, map: i32) -> Vec<Instruction> {
    let [_, leader, started, files, signal] = layout.task;
    let mut code = Code::default();
    code.add(COPY, CONTEXT, 1, 0, 0);
    code.add(LOAD_WORD, 2, CONTEXT, KIND, 0);
    // Over everything to the end; its length is filled in below.
    let skip = code.0.len();
    code.add(JUMP_IF_NOT_EQUAL, 2, 0, 0, STREAM);
    for place in (OF_CHILD..0).step_by(8) {
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
    code.executable(layout, INODE, SECONDS, NANOSECONDS);
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
    code.land(without, JUMP_IF_EQUAL, (RESULT, 0), 0);
    code.ancestors(layout);
    // The map's descriptor comes in two instructions.
    code.add(LOAD_WIDE, 1, 1, 0, map);
    code.add(0, 0, 0, 0, 0);
    for (register, place) in [(2, KEY), (3, NOTE)] {
        code.add(COPY, register, FRAME, 0, 0);
        code.add(ADD, register, 0, 0, i32::from(place));
    }
    code.add(MOVE, 4, 0, 0, 0);
    code.call(UPDATE);
    code.land(skip, JUMP_IF_NOT_EQUAL, (2, 0), STREAM);
    code.add(MOVE, RESULT, 0, 0, 1);
    code.add(EXIT, 0, 0, 0, 0);
    code.0
}

impl Code {
    /// Lets a jump written earlier lead to what comes next.
    fn land(&mut self, from: usize, opcode: u8, (one, other): (u8, u8), value: i32) {
        let over = i16::try_from(self.0.len() - from - 1).unwrap_or(i16::MAX);
        if let Some(jump) = self.0.get_mut(from) {
            *jump = encode(opcode, one, other, over, value);
        }
    }
}

/// A file that was executed: its inode's number, and when that changed last, in seconds
/// since the epoch and nanoseconds. Both together tell files apart whatever file systems
/// (overlayfs, btrfs) say of devices: nobody inside can set the time.
pub type Executed = (u64, (i64, u32));

/// What the kernel noted about a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The process, in the first pid namespace.
    pub pid: i32,
    /// When it began, in nanoseconds since boot.
    pub started: u64,
    /// What it executed.
    pub executed: Executed,
    /// What its ancestors executed, nearest first, as far as they have executed nothing
    /// else since they forked the next one.
    pub ancestors: Vec<Executed>,
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
        // The top bit is the kernel's own (I_CTIME_QUERIED, since Linux 6.13).
        let executed = |inode, seconds, nanoseconds| {
            let changed = (wide(seconds)?.cast_signed(), word(nanoseconds)? & 0x7fff_ffff);
            Some((wide(inode)?, changed))
        };
        let ancestors = (0..LEVELS).map_while(|level| {
            let place = ANCESTORS + level * ANCESTOR_BYTES;
            executed(place, place + 8, place + 16).filter(|(inode, _)| *inode > 0)
        });
        let note = Self {
            pid: i32::try_from(wide(PROCESS)?).ok()?,
            started: wide(STARTED)?,
            executed: executed(INODE, SECONDS, NANOSECONDS)?,
            ancestors: ancestors.collect(),
            group: wide(GROUP)?,
            alone,
        };
        (note.pid > 0 && note.started > 0 && note.executed.0 > 0).then_some(note)
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
        with(
            "task_struct",
            &[
                "mm",
                "group_leader",
                "start_boottime",
                "files",
                "signal",
                "real_parent",
                "parent_exec_id",
                "self_exec_id",
            ],
        );
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
        let jumps = [JUMP_IF_EQUAL, JUMP_IF_NOT_EQUAL, JUMP_IF_DIFFERENT].map(u64::from);
        let is_call = |word: u64| word & 0xff == u64::from(CALL);
        let of: Vec<usize> =
            (0..code.len()).filter(|n| jumps.contains(&(code[*n] & 0xff))).collect();
        assert_eq!(of.len(), 2 + usize::try_from(LEVELS).unwrap());
        // Over everything; over what a socket needs; out of the line of ancestors.
        assert_eq!(target(of[0]), code.len() - 2);
        assert!(target(of[1]) < of[2] && is_call(code[target(of[1]) - 1]));
        let after = code.iter().position(|word| *word == encode(LOAD_WIDE, 1, 1, 0, 7)).unwrap();
        assert!(of[2..].iter().all(|from| target(*from) == after));
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
        assert_eq!((read.pid, read.group), (42, 77));
        assert_eq!(read.executed, (99, (1_700_000_000, 5)));
        assert!(read.ancestors.is_empty());
        let mut bytes = note(0, 1, 1);
        for level in [0, 1, 3] {
            bytes[64 + level * 24] = 7;
        }
        // One that could not be told ends the line.
        assert_eq!(Note::read(&bytes, &layout).unwrap().ancestors, [(7, (0, 0)); 2]);
        assert_eq!(Note::read(&[0; NOTE_BYTES], &layout), None);
    }
}
