//! System call filters: the engine's profile and ours, compiled to BPF.
//!
//! The kernel runs every installed filter and takes the strictest answer
//! (seccomp(2)); between two errno answers the filter installed last wins.
//! So the engine's program goes last. It answers `ENOSYS` to system calls newer
//! than its profile, which libc takes as "old kernel".

mod program;
pub mod table;

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator};
use seccompiler::{BpfProgram, SeccompAction};
use serde::{Deserialize, Serialize};
use syscalls::Sysno;

use crate::control::{WORKER_UID_BASE, WORKER_UID_END};
use program::{Compare, Condition, Filter};
pub use table::Relaxation;
use table::{Answer, Argument, Group};

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
const EPROTONOSUPPORT: u32 = 93;
const EAFNOSUPPORT: u32 = 97;

/// Why a filter cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum InvalidFilter {
    /// The profile wants an action we cannot give.
    #[error(
        "the profile answers `{syscall}` with {action}, which nemoclaw does not support; use a profile without it"
    )]
    Action {
        /// The first system call of the rule.
        syscall: String,
        /// The action.
        action: String,
    },
    /// The compiler refused the rules.
    #[error("the filter does not compile: {why}")]
    Compile {
        /// The compiler's reason.
        why: String,
    },
    /// The machine is not one of x86_64, aarch64 and riscv64.
    #[error("there is no filter for {arch}")]
    Arch {
        /// The machine.
        arch: String,
    },
}

/// The answer that lets a system call through.
const ALLOW: u32 = 0x7fff_0000;

/// The answer that makes a system call fail with this error (`SECCOMP_RET_ERRNO`).
const fn errno(number: u32) -> u32 {
    0x0005_0000 | number
}

/// What a sandbox's filter depends on besides the table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterPlan {
    /// Exceptions the policy makes.
    pub relaxed: Vec<Relaxation>,
    /// Whether a process of the sandbox may be root.
    pub root_possible: bool,
    /// Whether programs run from read-only paths only.
    pub system_only: bool,
    /// The only ids that processes may take; `None` where no process has the
    /// capability to change its ids, or where policy leaves them free.
    pub identities: Option<Vec<u32>>,
}

/// Our filter: programs in the order in which they are to be installed.
///
/// # Errors
/// [`InvalidFilter`] where the rules do not compile for this machine.
pub fn ours(plan: &FilterPlan) -> Result<Vec<BpfProgram>, InvalidFilter> {
    Ok(vec![sandbox(plan)?.compile()?])
}

/// What every process of a sandbox is held to.
fn sandbox(plan: &FilterPlan) -> Result<Filter, InvalidFilter> {
    let mut groups: Vec<&Group> = table::ALWAYS.iter().collect();
    if plan.root_possible {
        groups.extend(table::WITH_ROOT);
    }
    if plan.system_only {
        groups.extend(table::SYSTEM_ONLY);
    }
    groups.retain(|group| group.relaxed_by.is_none_or(|word| !plan.relaxed.contains(&word)));
    let mut filter = denying();
    // NETLINK_ROUTE (0) is what getifaddrs(3) and Node need.
    let other = vec![dword(0, Compare::Equal, 16)?, dword(2, Compare::NotEqual, 0)?];
    add(&mut filter, "socket", &[other], errno(EPROTONOSUPPORT));
    let unlisted = table::SOCKET_DOMAINS
        .iter()
        .map(|&domain| dword(0, Compare::NotEqual, domain))
        .collect::<Result<_, _>>()?;
    add(&mut filter, "socket", &[unlisted], errno(EAFNOSUPPORT));
    // Raw sockets need a capability that no policy gives; the kind is the low byte.
    let raw = vec![dword(0, Compare::NotEqual, 16)?, dword(1, Compare::Masked(0xf), 3)?];
    add(&mut filter, "socket", &[raw], errno(EPERM));
    refuse(&mut filter, &groups, Answer::NotPermitted)?;
    if plan.root_possible {
        keep_ids(&mut filter, plan.identities.as_deref())?;
    }
    refuse(&mut filter, &groups, Answer::Unknown)?;
    Ok(filter)
}

/// A filter that lets everything through that is not added to it.
const fn denying() -> Filter {
    // The x32 ABI has the architecture of x86_64 and numbers of its own from
    // 0x40000000, which would pass every rule written by number.
    Filter::new(ALLOW, 0x3fff_ffff, errno(ENOSYS))
}

/// Refuses ids that no process of the sandbox may take: all but the plan's
/// where it names some, and in any case those of the proxies' workers.
fn keep_ids(filter: &mut Filter, identities: Option<&[u32]>) -> Result<(), InvalidFilter> {
    let unchanged = u64::from(u32::MAX);
    for (syscall, arguments) in table::SET_IDS {
        for argument in 0..arguments {
            let conditions = match identities {
                Some(ids) => ids
                    .iter()
                    .map(|id| u64::from(*id))
                    .chain([unchanged])
                    .map(|id| dword(argument, Compare::NotEqual, id))
                    .collect::<Result<_, _>>()?,
                None => vec![
                    dword(argument, Compare::AtLeast, u64::from(WORKER_UID_BASE))?,
                    dword(argument, Compare::Below, u64::from(WORKER_UID_END))?,
                ],
            };
            add(filter, syscall, &[conditions], errno(EPERM));
        }
    }
    Ok(())
}

/// The filter of the proxy's worker.
///
/// # Errors
/// [`InvalidFilter`] where the rules do not compile for this machine.
pub fn worker() -> Result<Vec<BpfProgram>, InvalidFilter> {
    let groups = table::WORKER.iter().collect::<Vec<_>>();
    let mut own = denying();
    refuse(&mut own, &groups, Answer::NotPermitted)?;
    Ok(vec![sandbox(&FilterPlan::default())?.compile()?, own.compile()?])
}

/// The filter of the proxy's supervisor: sockets yes, programs no.
///
/// # Errors
/// [`InvalidFilter`] where the rules do not compile for this machine.
pub fn supervisor() -> Result<Vec<BpfProgram>, InvalidFilter> {
    // Without the rules on socket families: it asks sock_diag(7).
    let mut groups: Vec<&Group> = table::ALWAYS.iter().chain(table::SUPERVISOR).collect();
    groups.retain(|group| group.why != table::KERNEL_PROGRAMS);
    let mut filter = denying();
    refuse(&mut filter, &groups, Answer::NotPermitted)?;
    refuse(&mut filter, &groups, Answer::Unknown)?;
    Ok(vec![filter.compile()?])
}

/// Adds the calls of the groups that have this answer.
fn refuse(filter: &mut Filter, groups: &[&Group], answer: Answer) -> Result<(), InvalidFilter> {
    let errno = errno(match answer {
        Answer::NotPermitted => EPERM,
        Answer::Unknown => ENOSYS,
    });
    let calls = groups.iter().filter(|group| group.answer == answer).flat_map(|group| group.calls);
    for call in calls {
        if call.when.is_empty() {
            add(filter, call.name, &[Vec::new()], errno);
        }
        for argument in call.when {
            add(filter, call.name, &alternatives_of(*argument)?, errno);
        }
    }
    Ok(())
}

/// The conjunctions of which one must hold for the argument to be a match.
fn alternatives_of(argument: Argument) -> Result<Vec<Vec<Condition>>, InvalidFilter> {
    // O_CREAT; __O_TMPFILE.
    const MAKING: [u64; 2] = [0x40, 0x40_0000];
    let bits = |index, bits| dword(index, Compare::Masked(bits), bits);
    Ok(match argument {
        Argument::Is(index, value) => vec![vec![dword(index, Compare::Equal, value)?]],
        Argument::HasBits(index, wanted) => vec![vec![bits(index, wanted)?]],
        Argument::LacksBits(index, wanted) => {
            vec![vec![dword(index, Compare::Masked(wanted), 0)?]]
        }
        Argument::NoneOf(index, values) => {
            let none = values.iter().map(|value| dword(index, Compare::NotEqual, *value));
            vec![none.collect::<Result<_, _>>()?]
        }
        Argument::Makes(flags, mode, wanted) => MAKING
            .into_iter()
            .map(|making| Ok(vec![bits(flags, making)?, bits(mode, wanted)?]))
            .collect::<Result<_, InvalidFilter>>()?,
    })
}

fn dword(index: u8, compare: Compare, value: u64) -> Result<Condition, InvalidFilter> {
    Condition::new(index, false, compare, value)
}

/// Adds alternatives for `syscall`; an empty one is "whatever the arguments".
/// Names this machine does not have are skipped.
fn add(filter: &mut Filter, syscall: &str, alternatives: &[Vec<Condition>], answer: u32) {
    let Ok(number) = syscall.parse::<Sysno>() else { return };
    for conditions in alternatives {
        filter.add(number.id().unsigned_abs(), conditions.clone(), answer);
    }
}

/// The engine's profile: programs in the order in which they are to be
/// installed.
///
/// # Errors
/// [`InvalidFilter`] for actions that need a tracer or a listener, or rules
/// that do not compile.
pub fn engine(profile: &LinuxSeccomp) -> Result<Vec<BpfProgram>, InvalidFilter> {
    let default = action(profile.default_action(), profile.default_errno_ret(), "the default")?;
    let mut entries = Vec::new();
    let mut newest = MINIMUM_KNOWN;
    for entry in profile.syscalls().iter().flatten() {
        let first = entry.names().first().map_or("", String::as_str);
        let answer = action(entry.action(), entry.errno_ret(), first)?;
        let known = entry.names().iter().filter_map(|name| name.parse::<Sysno>().ok());
        newest = known.map(|number| number.id().unsigned_abs()).fold(newest, u32::max);
        if answer != default {
            entries.push((entry, answer));
        }
    }
    // As if every answer had a program of its own: the strictest decides, and
    // of several errors the one that the profile names last.
    entries.reverse();
    entries.sort_by_key(|(_, answer)| strictness(*answer));
    let (last, above) =
        if default == ALLOW { (u32::MAX, default) } else { (newest, errno(ENOSYS)) };
    let mut filter = Filter::new(default, last, above);
    for (entry, answer) in entries {
        let alternatives = alternatives(entry.args().as_deref().unwrap_or_default())?;
        for name in entry.names() {
            add(&mut filter, name, &alternatives, answer);
        }
    }
    if default == ALLOW && filter.is_empty() { Ok(Vec::new()) } else { Ok(vec![filter.compile()?]) }
}

/// The order in which the kernel prefers answers, the strictest first (seccomp(2)).
const fn strictness(answer: u32) -> i32 {
    (answer & 0xffff_0000).cast_signed()
}

/// A profile of a few calls must not turn everything else into `ENOSYS`.
const MINIMUM_KNOWN: u32 = 450;

fn action(
    action: LinuxSeccompAction,
    errno: Option<u32>,
    syscall: &str,
) -> Result<u32, InvalidFilter> {
    let action = match action {
        LinuxSeccompAction::ScmpActAllow => SeccompAction::Allow,
        LinuxSeccompAction::ScmpActErrno => SeccompAction::Errno(errno.unwrap_or(EPERM)),
        // Without a tracer the kernel answers ENOSYS (seccomp(2)).
        LinuxSeccompAction::ScmpActTrace => SeccompAction::Errno(ENOSYS),
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            SeccompAction::KillThread
        }
        LinuxSeccompAction::ScmpActKillProcess => SeccompAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => SeccompAction::Trap,
        LinuxSeccompAction::ScmpActLog => SeccompAction::Log,
        LinuxSeccompAction::ScmpActNotify => {
            return Err(InvalidFilter::Action {
                syscall: syscall.escape_debug().to_string(),
                action: "SCMP_ACT_NOTIFY".to_owned(),
            });
        }
    };
    Ok(action.into())
}

/// The alternatives one profile entry stands for. As in libseccomp's users,
/// conditions on one argument index twice mean "or", otherwise "and".
fn alternatives(args: &[LinuxSeccompArg]) -> Result<Vec<Vec<Condition>>, InvalidFilter> {
    if args.is_empty() {
        return Ok(vec![Vec::new()]);
    }
    let mut seen = Vec::new();
    let mut repeated = false;
    let mut conditions = Vec::new();
    for arg in args {
        repeated |= seen.contains(&arg.index());
        seen.push(arg.index());
        let index = u8::try_from(arg.index()).unwrap_or(u8::MAX);
        let (op, value) = match arg.op() {
            LinuxSeccompOperator::ScmpCmpNe => (Compare::NotEqual, arg.value()),
            LinuxSeccompOperator::ScmpCmpLt => (Compare::Below, arg.value()),
            LinuxSeccompOperator::ScmpCmpLe => (Compare::AtMost, arg.value()),
            LinuxSeccompOperator::ScmpCmpEq => (Compare::Equal, arg.value()),
            LinuxSeccompOperator::ScmpCmpGe => (Compare::AtLeast, arg.value()),
            LinuxSeccompOperator::ScmpCmpGt => (Compare::Above, arg.value()),
            LinuxSeccompOperator::ScmpCmpMaskedEq => {
                (Compare::Masked(arg.value()), arg.value_two().unwrap_or_default())
            }
        };
        conditions.push(Condition::new(index, true, op, value)?);
    }
    if repeated {
        return Ok(conditions.into_iter().map(|condition| vec![condition]).collect());
    }
    Ok(vec![conditions])
}

#[cfg(test)]
mod tests {
    use seccompiler::sock_filter;

    use super::*;

    /// Runs a program over one system call, as the kernel would.
    pub(super) fn run(program: &[sock_filter], number: u32, args: [u64; 6]) -> u32 {
        let arch: u32 = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };
        let mut data = [0_u8; 64];
        data[0..4].copy_from_slice(&number.to_le_bytes());
        data[4..8].copy_from_slice(&arch.to_le_bytes());
        for (n, arg) in args.iter().enumerate() {
            data[16 + 8 * n..24 + 8 * n].copy_from_slice(&arg.to_le_bytes());
        }
        let (mut pc, mut a) = (0_usize, 0_u32);
        loop {
            let i = &program[pc];
            pc += 1;
            match i.code {
                0x20 => a = u32::from_le_bytes(data[i.k as usize..][..4].try_into().unwrap()),
                0x54 => a &= i.k,
                0x05 => pc += i.k as usize,
                0x15 => pc += usize::from(if a == i.k { i.jt } else { i.jf }),
                0x25 => pc += usize::from(if a > i.k { i.jt } else { i.jf }),
                0x35 => pc += usize::from(if a >= i.k { i.jt } else { i.jf }),
                0x06 => return i.k,
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }

    /// The kernel's answer over several programs, installed in order.
    fn answer(programs: &[BpfProgram], syscall: &str, args: [u64; 6]) -> u32 {
        let number = syscall.parse::<Sysno>().unwrap().id().unsigned_abs();
        answer_to(programs, number, args)
    }

    fn answer_to(programs: &[BpfProgram], number: u32, args: [u64; 6]) -> u32 {
        let strictness = |value: u32| (value & 0xffff_0000).cast_signed();
        programs
            .iter()
            .rev()
            .map(|program| run(program, number, args))
            .reduce(|kept, next| if strictness(next) < strictness(kept) { next } else { kept })
            .unwrap()
    }

    const ALLOW: u32 = 0x7fff_0000;
    const ERRNO: u32 = 0x0005_0000;

    fn default() -> Vec<BpfProgram> {
        ours(&FilterPlan::default()).unwrap()
    }

    #[test]
    fn ours_refuses_what_the_table_says() {
        let programs = default();
        for group in table::ALWAYS {
            let wanted = match group.answer {
                Answer::NotPermitted => ERRNO | EPERM,
                Answer::Unknown => ERRNO | ENOSYS,
            };
            for call in group.calls.iter().filter(|call| call.when.is_empty()) {
                if call.name.parse::<Sysno>().is_ok() {
                    assert_eq!(answer(&programs, call.name, [0; 6]), wanted, "{}", call.name);
                }
            }
        }
        for (name, args) in [
            ("unshare", [0x1000_0000, 0, 0, 0, 0, 0]),
            ("unshare", [0x80, 0, 0, 0, 0, 0]),
            ("clone", [0x4000_0011, 0, 0, 0, 0, 0]),
            ("ioctl", [0, 0x5412, 0, 0, 0, 0]),
            ("ioctl", [0, 0xffff_ffff_0000_5412, 0, 0, 0, 0]),
            ("ioctl", [0, 0x541c, 0, 0, 0, 0]),
            ("prctl", [35, 0, 0, 0, 0, 0]),
            ("socket", [2, 3, 1, 0, 0, 0]),
            ("socket", [10, 0x8_0003, 58, 0, 0, 0]),
            ("personality", [0x4_0000, 0, 0, 0, 0, 0]),
        ] {
            assert_eq!(answer(&programs, name, args), ERRNO | EPERM, "{name} {args:x?}");
        }
    }

    #[test]
    fn ours_leaves_ordinary_programs_alone() {
        let programs = default();
        for (name, args) in [
            ("read", [0; 6]),
            ("execve", [0; 6]),
            ("clone", [0x0120_0011, 0, 0, 0, 0, 0]),
            ("clone", [0x3d_0f00, 0, 0, 0, 0, 0]),
            ("unshare", [0x400, 0, 0, 0, 0, 0]),
            ("memfd_create", [0; 6]),
            ("ioctl", [0, 0x5401, 0, 0, 0, 0]),
            ("socket", [1, 1, 0, 0, 0, 0]),
            ("socket", [2, 1, 6, 0, 0, 0]),
            ("socket", [10, 2, 17, 0, 0, 0]),
            ("socket", [16, 3, 0, 0, 0, 0]),
            ("personality", [0xffff_ffff, 0, 0, 0, 0, 0]),
            ("chmod", [0, 0o4755, 0, 0, 0, 0]),
            ("setuid", [5, 0, 0, 0, 0, 0]),
            ("prctl", [38, 1, 0, 0, 0, 0]),
        ] {
            assert_eq!(answer(&programs, name, args), ALLOW, "{name} {args:x?}");
        }
    }

    #[test]
    fn a_worker_makes_no_process_and_aims_no_socket() {
        let programs = worker().unwrap();
        let fast = 0x2000_0000;
        for (name, args) in [
            ("clone", [17, 0, 0, 0, 0, 0]),
            ("fork", [0; 6]),
            ("sendto", [0, 0, 0, fast, 0, 0]),
            ("sendmsg", [0, 0, fast, 0, 0, 0]),
            ("sendmmsg", [0; 6]),
            ("connect", [0; 6]),
        ] {
            assert_ne!(answer(&programs, name, args), ALLOW, "{name}");
        }
        // MSG_DONTWAIT | MSG_NOSIGNAL.
        assert_eq!(answer(&programs, "sendto", [0, 0, 0, 0x4040, 0, 0]), ALLOW);
        assert_eq!(answer(&programs, "sendmsg", [0, 0, 0x4040, 0, 0, 0]), ALLOW);
    }

    #[test]
    fn the_supervisor_attaches_and_looks_up_and_loads_nothing() {
        let programs = supervisor().unwrap();
        for command in 0..40 {
            let wanted = matches!(command, 1 | 8);
            assert_eq!(answer(&programs, "bpf", [command, 0, 0, 0, 0, 0]) == ALLOW, wanted);
            assert_ne!(answer(&worker().unwrap(), "bpf", [command, 0, 0, 0, 0, 0]), ALLOW);
        }
    }

    #[test]
    fn a_word_of_the_policy_takes_back_exactly_its_groups() {
        for word in Relaxation::ALL {
            let plan = FilterPlan { relaxed: vec![word], system_only: true, ..Default::default() };
            let (relaxed, strict) =
                (ours(&plan).unwrap(), ours(&FilterPlan { relaxed: vec![], ..plan }).unwrap());
            for group in table::ALWAYS.iter().chain(table::SYSTEM_ONLY) {
                for call in group.calls.iter().filter(|call| call.name.parse::<Sysno>().is_ok()) {
                    let args = match call.when.first() {
                        Some(Argument::Is(n, value) | Argument::HasBits(n, value)) => {
                            let mut args = [0; 6];
                            args[usize::from(*n)] = *value;
                            args
                        }
                        Some(Argument::NoneOf(..)) => [0x4_0000, 0, 0, 0, 0, 0],
                        _ => [0; 6],
                    };
                    assert_ne!(answer(&strict, call.name, args), ALLOW, "{}", call.name);
                    let allowed = answer(&relaxed, call.name, args) == ALLOW;
                    assert_eq!(allowed, group.relaxed_by == Some(word), "{} {word:?}", call.name);
                }
            }
        }
    }

    #[test]
    fn where_root_is_possible_ids_and_set_id_bits_are_kept() {
        let plan = FilterPlan {
            root_possible: true,
            identities: Some(vec![0, 998]),
            ..FilterPlan::default()
        };
        let programs = ours(&plan).unwrap();
        for (name, args, wanted) in [
            ("setuid", [998, 0, 0, 0, 0, 0], ALLOW),
            ("setuid", [0; 6], ALLOW),
            ("setuid", [999, 0, 0, 0, 0, 0], ERRNO | EPERM),
            ("setresuid", [998, 998, 998, 0, 0, 0], ALLOW),
            ("setresuid", [0xffff_ffff, 998, 0xffff_ffff, 0, 0, 0], ALLOW),
            ("setresuid", [998, 998, 7, 0, 0, 0], ERRNO | EPERM),
            ("setregid", [998, 7, 0, 0, 0, 0], ERRNO | EPERM),
            ("setfsgid", [7, 0, 0, 0, 0, 0], ERRNO | EPERM),
            ("chmod", [0, 0o4755, 0, 0, 0, 0], ERRNO | EPERM),
            ("fchmodat", [0, 0, 0o2755, 0, 0, 0], ERRNO | EPERM),
            ("openat", [0, 0, 0x41, 0o4755, 0, 0], ERRNO | EPERM),
            ("openat", [0, 0, 0, 0o4755, 0, 0], ALLOW),
            ("openat2", [0; 6], ERRNO | ENOSYS),
            ("chmod", [0, 0o755, 0, 0, 0, 0], ALLOW),
        ] {
            assert_eq!(answer(&programs, name, args), wanted, "{name} {args:x?}");
        }
        let free = ours(&FilterPlan { identities: None, ..plan }).unwrap();
        assert_eq!(answer(&free, "setuid", [999, 0, 0, 0, 0, 0]), ALLOW);
        let worker = u64::from(WORKER_UID_BASE) + 3;
        assert_eq!(answer(&free, "setresuid", [0, worker, 0, 0, 0, 0]), ERRNO | EPERM);
    }

    #[test]
    fn other_address_families_are_refused() {
        let programs = default();
        for domain in [0, 3, 17, 38, 40, 44, 0x1_0000_0028] {
            assert_eq!(
                answer(&programs, "socket", [domain, 1, 0, 0, 0, 0]),
                ERRNO | EAFNOSUPPORT,
                "{domain}"
            );
        }
        assert_eq!(answer(&programs, "socket", [16, 3, 9, 0, 0, 0]), ERRNO | EPROTONOSUPPORT);
    }

    #[test]
    fn x32_numbers_do_not_exist() {
        assert_eq!(answer_to(&default(), 0x4000_0000, [0; 6]), ERRNO | ENOSYS);
    }

    fn profile(json: &str) -> LinuxSeccomp {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn an_engine_profile_keeps_its_meaning() {
        let programs = engine(&profile(
            r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":1,"syscalls":[
                {"names":["read","execve","futex_waitv"],"action":"SCMP_ACT_ALLOW"},
                {"names":["personality"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":8,"op":"SCMP_CMP_EQ"}]},
                {"names":["personality"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":0,"op":"SCMP_CMP_EQ"}]},
                {"names":["clone"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}]},
                {"names":["clone3"],"action":"SCMP_ACT_ERRNO","errnoRet":38}]}"#,
        ))
        .unwrap();
        assert_eq!(answer(&programs, "read", [0; 6]), ALLOW);
        assert_eq!(answer(&programs, "write", [0; 6]), ERRNO | EPERM);
        assert_eq!(answer(&programs, "personality", [8, 0, 0, 0, 0, 0]), ALLOW);
        assert_eq!(answer(&programs, "personality", [9, 0, 0, 0, 0, 0]), ERRNO | EPERM);
        assert_eq!(answer(&programs, "clone", [0x11, 0, 0, 0, 0, 0]), ALLOW);
        assert_eq!(answer(&programs, "clone", [0x1000_0011, 0, 0, 0, 0, 0]), ERRNO | EPERM);
        assert_eq!(answer(&programs, "clone3", [0; 6]), ERRNO | ENOSYS);
        assert_eq!(answer_to(&programs, 4000, [0; 6]), ERRNO | ENOSYS);
    }

    #[test]
    fn a_deny_list_profile_works_too() {
        let programs = engine(&profile(
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
                {"names":["chmod"],"action":"SCMP_ACT_ERRNO","errnoRet":13},
                {"names":["acct"],"action":"SCMP_ACT_KILL_PROCESS"}]}"#,
        ))
        .unwrap();
        assert_eq!(answer(&programs, "read", [0; 6]), ALLOW);
        assert_eq!(answer(&programs, "chmod", [0; 6]), ERRNO | 0xd);
        assert_eq!(answer(&programs, "acct", [0; 6]), 0x8000_0000);
    }

    #[test]
    fn a_listener_is_refused_by_name() {
        let refused = engine(&profile(
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_NOTIFY"}]}"#,
        ))
        .unwrap_err();
        assert!(refused.to_string().contains("mkdir"), "{refused}");
    }
}
