//! The filter as data: what is refused, with what answer, why, and which word
//! of a policy (`nemoclaw.seccomp.allow`) takes the refusal back.

use serde::{Deserialize, Serialize};

/// A named exception from our filter; never one from the engine's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Relaxation {
    /// Debuggers and profilers of the sandbox's own processes.
    Ptrace,
    /// Programs with sandboxes of their own, such as browsers.
    Userns,
    /// Performance counters.
    Perf,
    /// The asynchronous I/O rings.
    IoUring,
    /// Programs run from memory, which `exec: system-only` refuses.
    MemfdExec,
}

impl Relaxation {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Ptrace, Self::Userns, Self::Perf, Self::IoUring, Self::MemfdExec];

    /// The word of the language.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ptrace => "ptrace",
            Self::Userns => "userns",
            Self::Perf => "perf",
            Self::IoUring => "io_uring",
            Self::MemfdExec => "memfd_exec",
        }
    }
}

/// What a refused call answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// `EPERM`: the caller expects to lack the right.
    NotPermitted,
    /// `ENOSYS`: the caller takes its older way.
    Unknown,
}

/// Calls that are refused for one reason.
#[derive(Debug)]
pub struct Group {
    /// Why.
    pub why: &'static str,
    /// With what.
    pub answer: Answer,
    /// Which exception takes it back.
    pub relaxed_by: Option<Relaxation>,
    /// The calls.
    pub calls: &'static [Call],
}

/// A system call and the arguments with which it is refused.
#[derive(Debug)]
pub struct Call {
    /// Its name.
    pub name: &'static str,
    /// Any of these is a match; empty means whatever the arguments.
    pub when: &'static [Argument],
}

/// A condition on one 32-bit argument.
#[derive(Debug, Clone, Copy)]
pub enum Argument {
    /// The argument of this index is this value.
    Is(u8, u64),
    /// All these bits are set.
    HasBits(u8, u64),
    /// None of these bits is set.
    LacksBits(u8, u64),
    /// The argument is none of these values.
    NoneOf(u8, &'static [u64]),
    /// open(2) makes a file: the flags in the first argument named say so, and
    /// the mode in the second has all these bits. Without the flags the mode is
    /// whatever the register held.
    Makes(u8, u8, u64),
}

const fn call(name: &'static str) -> Call {
    Call { name, when: &[] }
}

const NEW_NAMESPACES: &[Argument] = &[
    Argument::HasBits(0, 0x0002_0000), // CLONE_NEWNS
    Argument::HasBits(0, 0x0200_0000), // CLONE_NEWCGROUP
    Argument::HasBits(0, 0x0400_0000), // CLONE_NEWUTS
    Argument::HasBits(0, 0x0800_0000), // CLONE_NEWIPC
    Argument::HasBits(0, 0x1000_0000), // CLONE_NEWUSER
    Argument::HasBits(0, 0x2000_0000), // CLONE_NEWPID
    Argument::HasBits(0, 0x4000_0000), // CLONE_NEWNET
];

/// Set-user-ID and set-group-ID bits in argument 1 or 2.
const SET_ID_1: &[Argument] = &[Argument::HasBits(1, 0o4000), Argument::HasBits(1, 0o2000)];
const SET_ID_2: &[Argument] = &[Argument::HasBits(2, 0o4000), Argument::HasBits(2, 0o2000)];

/// The group that the supervisor has a rule of its own for.
pub(super) const KERNEL_PROGRAMS: &str = "programs that run in the kernel";

/// Refused in every sandbox.
pub const ALWAYS: &[Group] = &[
    Group {
        why: "a namespace of one's own gives capabilities over new kernel surface",
        answer: Answer::NotPermitted,
        relaxed_by: Some(Relaxation::Userns),
        calls: &[
            Call { name: "unshare", when: NEW_NAMESPACES },
            Call { name: "clone", when: NEW_NAMESPACES },
        ],
    },
    Group {
        why: "entering a namespace, or a clock of one's own, leaves what the policy is about",
        answer: Answer::NotPermitted,
        relaxed_by: None,
        calls: &[
            // CLONE_NEWTIME; in clone(2) the bit is part of the exit signal.
            Call { name: "unshare", when: &[Argument::HasBits(0, 0x80)] },
            call("setns"),
        ],
    },
    Group {
        why: "mounting changes what read-only and Landlock mean",
        answer: Answer::NotPermitted,
        relaxed_by: None,
        calls: &[
            call("mount"),
            call("umount2"),
            call("pivot_root"),
            call("move_mount"),
            call("open_tree"),
            call("open_tree_attr"),
            call("fsopen"),
            call("fsconfig"),
            call("fsmount"),
            call("fspick"),
            call("mount_setattr"),
        ],
    },
    Group {
        why: "a file handle opens files past every directory above them (CVE-2014-9357, shocker)",
        answer: Answer::NotPermitted,
        relaxed_by: None,
        calls: &[call("open_by_handle_at")],
    },
    Group {
        why: "reaching into other processes borrows their network identity",
        answer: Answer::NotPermitted,
        relaxed_by: Some(Relaxation::Ptrace),
        calls: &[
            call("ptrace"),
            call("process_vm_readv"),
            call("process_vm_writev"),
            call("process_madvise"),
            call("kcmp"),
        ],
    },
    Group {
        why: "taking another process's descriptors takes its connections",
        answer: Answer::NotPermitted,
        relaxed_by: None,
        calls: &[call("pidfd_getfd")],
    },
    Group {
        why: "performance counters observe the whole machine and have a long list of kernel bugs",
        answer: Answer::NotPermitted,
        relaxed_by: Some(Relaxation::Perf),
        calls: &[call("perf_event_open")],
    },
    Group {
        why: KERNEL_PROGRAMS,
        answer: Answer::NotPermitted,
        relaxed_by: None,
        calls: &[call("bpf")],
    },
    Group {
        why: "kernel surface without a use in a sandbox",
        answer: Answer::NotPermitted,
        relaxed_by: None,
        calls: &[
            call("userfaultfd"),
            call("fanotify_init"),
            call("lookup_dcookie"),
            call("nfsservctl"),
            call("vm86"),
            call("vm86old"),
            call("uselib"),
            call("ustat"),
            call("sysfs"),
            call("_sysctl"),
        ],
    },
    Group {
        why: "key rings are not namespaced",
        answer: Answer::NotPermitted,
        relaxed_by: None,
        calls: &[call("keyctl"), call("add_key"), call("request_key")],
    },
    Group {
        why: "the host's own state",
        answer: Answer::NotPermitted,
        relaxed_by: None,
        calls: &[
            call("kexec_load"),
            call("kexec_file_load"),
            call("init_module"),
            call("finit_module"),
            call("delete_module"),
            call("create_module"),
            call("query_module"),
            call("get_kernel_syms"),
            call("iopl"),
            call("ioperm"),
            call("swapon"),
            call("swapoff"),
            call("reboot"),
            call("acct"),
            call("quotactl"),
            call("quotactl_fd"),
            call("settimeofday"),
            call("clock_settime"),
            call("stime"),
            call("syslog"),
            call("vhangup"),
        ],
    },
    Group {
        why: "typing into the terminal that the operator looks at (CVE-2017-5226)",
        answer: Answer::NotPermitted,
        relaxed_by: None,
        // TIOCSTI, TIOCLINUX.
        calls: &[Call { name: "ioctl", when: &[Argument::Is(1, 0x5412), Argument::Is(1, 0x541c)] }],
    },
    Group {
        why: "PR_SET_MM moves /proc/self/exe, by which programs are told apart",
        answer: Answer::NotPermitted,
        relaxed_by: None,
        calls: &[Call { name: "prctl", when: &[Argument::Is(0, 35)] }],
    },
    Group {
        why: "personalities switch off address randomisation and old protections",
        answer: Answer::NotPermitted,
        relaxed_by: Some(Relaxation::Ptrace),
        // PER_LINUX and PER_LINUX32, each with UNAME26 or not, and the question.
        calls: &[Call {
            name: "personality",
            when: &[Argument::NoneOf(0, &[0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff])],
        }],
    },
    Group {
        why: "its flags sit in memory, where no filter reads them; libc falls back to clone",
        answer: Answer::Unknown,
        relaxed_by: None,
        calls: &[call("clone3")],
    },
    Group {
        why: "the kernel opens its sockets, past the rules on socket(2)",
        answer: Answer::Unknown,
        relaxed_by: Some(Relaxation::IoUring),
        calls: &[call("io_uring_setup"), call("io_uring_enter"), call("io_uring_register")],
    },
];

/// Refused besides where a process may be root: a set-user-ID file in a mounted
/// directory would be root's for everybody on the host.
pub const WITH_ROOT: &[Group] = &[
    Group {
        why: "a set-user-ID file of root in a mounted directory works on the host",
        answer: Answer::NotPermitted,
        relaxed_by: None,
        calls: &[
            Call { name: "chmod", when: SET_ID_1 },
            Call { name: "fchmod", when: SET_ID_1 },
            Call { name: "fchmodat", when: SET_ID_2 },
            Call { name: "fchmodat2", when: SET_ID_2 },
            Call { name: "creat", when: SET_ID_1 },
            Call {
                name: "open",
                when: &[Argument::Makes(1, 2, 0o4000), Argument::Makes(1, 2, 0o2000)],
            },
            Call {
                name: "openat",
                when: &[Argument::Makes(2, 3, 0o4000), Argument::Makes(2, 3, 0o2000)],
            },
            Call { name: "mknod", when: SET_ID_1 },
            Call { name: "mknodat", when: SET_ID_2 },
        ],
    },
    Group {
        why: "its mode sits in memory, where no filter reads it; libc falls back to openat",
        answer: Answer::Unknown,
        relaxed_by: None,
        calls: &[call("openat2")],
    },
];

/// Refused besides under `exec: system-only`.
pub const SYSTEM_ONLY: &[Group] = &[Group {
    why: "a program in memory is in no read-only directory",
    answer: Answer::NotPermitted,
    relaxed_by: Some(Relaxation::MemfdExec),
    // MFD_NOEXEC_SEAL, since Linux 6.3.
    calls: &[Call { name: "memfd_create", when: &[Argument::LacksBits(1, 0x8)] }],
}];

/// What the proxy's worker, which reads hostile bytes, can do without: it gets
/// every socket from the supervisor and opens, starts and signals nothing.
pub(super) const WORKER: &[Group] = &[Group {
    why: "the worker is handed all it needs",
    answer: Answer::NotPermitted,
    relaxed_by: None,
    calls: &[
        call("execve"),
        call("execveat"),
        call("socket"),
        call("connect"),
        call("bind"),
        call("listen"),
        call("kill"),
        call("tkill"),
        call("pidfd_open"),
        call("pidfd_send_signal"),
        call("chmod"),
        call("fchmod"),
        call("fchmodat"),
        call("chown"),
        call("fchown"),
        call("fchownat"),
        call("chroot"),
        call("personality"),
        call("unshare"),
        call("fork"),
        call("vfork"),
        call("clone"),
        call("sendmmsg"),
        // MSG_FASTOPEN connects a socket that was handed over to somewhere else.
        Call { name: "sendto", when: &[Argument::HasBits(3, 0x2000_0000)] },
        Call { name: "sendmsg", when: &[Argument::HasBits(2, 0x2000_0000)] },
    ],
}];

/// What the proxy's supervisor can do without.
pub(super) const SUPERVISOR: &[Group] = &[
    Group {
        why: "the supervisor starts nothing",
        answer: Answer::NotPermitted,
        relaxed_by: None,
        calls: &[call("execve"), call("execveat"), call("personality"), call("chroot")],
    },
    Group {
        why: "it attaches the programs it loaded before, and reads their map",
        answer: Answer::NotPermitted,
        relaxed_by: None,
        // BPF_MAP_LOOKUP_ELEM, BPF_PROG_ATTACH.
        calls: &[Call { name: "bpf", when: &[Argument::NoneOf(0, &[1, 8])] }],
    },
];

/// AF_UNIX, AF_INET, AF_INET6, AF_NETLINK; the rest (AF_VSOCK, AF_ALG,
/// AF_PACKET, AF_XDP, ...) has ways out that no netfilter rule sees.
pub(super) const SOCKET_DOMAINS: [u64; 4] = [1, 2, 10, 16];

/// Calls that change a process's ids, and how many of their arguments are ids.
pub(super) const SET_IDS: [(&str, u8); 8] = [
    ("setuid", 1),
    ("setreuid", 2),
    ("setresuid", 3),
    ("setfsuid", 1),
    ("setgid", 1),
    ("setregid", 2),
    ("setresgid", 3),
    ("setfsgid", 1),
];
