//! Confinement of the proxy's own two processes.

use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, bail};
use caps::{CapSet, Capability, CapsHashSet};
use landlock::{
    ABI, Access as _, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr as _, RulesetStatus,
};
use nemoclaw_spec::control::SandboxConfig;
use nemoclaw_spec::seccomp;
use nix::unistd::{Gid, Uid};
use rustix::process::{DumpableBehavior, Resource, Rlimit, Signal};

use crate::worker::Handles;

/// What the supervisor keeps: reading /proc of other users' processes and
/// marking sockets; becoming the worker's user; ending the worker.
const KEPT: [Capability; 7] = [
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_DAC_READ_SEARCH,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
    Capability::CAP_SETPCAP,
    Capability::CAP_KILL,
];

/// Cuts the supervisor back to what it needs.
pub(super) fn supervisor() -> Result<()> {
    let kept: CapsHashSet = KEPT.into_iter().collect();
    drop_bounding(&kept)?;
    caps::clear(None, CapSet::Ambient).context("cannot clear ambient capabilities")?;
    caps::clear(None, CapSet::Inheritable).context("cannot clear inheritable capabilities")?;
    // Where the host's root has fewer, fewer are kept.
    let own = caps::read(None, CapSet::Permitted).context("cannot read capabilities")?;
    let kept: CapsHashSet = kept.intersection(&own).copied().collect();
    caps::set(None, CapSet::Effective, &kept).context("cannot reduce effective capabilities")?;
    caps::set(None, CapSet::Permitted, &kept).context("cannot reduce permitted capabilities")?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .context("cannot become undumpable")?;
    // Sockets of many connections pass through here.
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    rustix::process::setrlimit(Resource::Nofile, raised)
        .context("cannot raise the limit on open files")?;
    nix::sys::prctl::set_no_new_privs().context("cannot forbid new privileges")?;
    install(&seccomp::supervisor()?)
}

/// Turns a forked child into a worker: a user of its own, no capability, no
/// file, no new socket, gone with the supervisor.
pub(super) fn worker(
    config: &SandboxConfig,
    handles: &Handles,
    link: &OwnedFd,
    audit: &OwnedFd,
) -> Result<()> {
    close_others(handles, link, audit)?;
    let parent = rustix::process::getppid();
    nix::unistd::setgroups(&[]).context("cannot clear groups")?;
    drop_bounding(&CapsHashSet::new())?;
    let id = config.place.worker_id;
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    nix::unistd::setresgid(gid, gid, gid).context("cannot set the worker's group")?;
    nix::unistd::setresuid(uid, uid, uid).context("cannot set the worker's user")?;
    for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
        if !caps::read(None, set).context("cannot read capabilities")?.is_empty() {
            bail!("the worker still has capabilities");
        }
    }
    // After the change of user, which clears it (prctl(2)).
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .context("cannot tie the worker to the supervisor")?;
    if rustix::process::getppid() != parent {
        bail!("the supervisor has ended");
    }
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .context("cannot become undumpable")?;
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(Resource::Core, none).context("cannot forbid core dumps")?;
    landlock()?;
    install(&seccomp::worker()?)
}

/// No file system at all.
fn landlock() -> Result<()> {
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V7))
        .and_then(Ruleset::create)
        .and_then(landlock::RulesetCreated::restrict_self)
        .context("cannot take the file system from the worker")?;
    // A kernel without Landlock leaves uid, capabilities and seccomp.
    if status.ruleset == RulesetStatus::NotEnforced
        && std::fs::File::open("/proc/self/status").is_err()
    {
        bail!("Landlock reports no enforcement");
    }
    Ok(())
}

fn install(programs: &[seccompiler::BpfProgram]) -> Result<()> {
    for program in programs {
        seccompiler::apply_filter(program).context("cannot install the proxy's seccomp filter")?;
    }
    Ok(())
}

fn drop_bounding(kept: &CapsHashSet) -> Result<()> {
    let bounding = caps::read(None, CapSet::Bounding).context("cannot read capabilities")?;
    for capability in bounding.difference(kept) {
        caps::drop(None, CapSet::Bounding, *capability)
            .with_context(|| format!("cannot drop {capability} from the bounding set"))?;
    }
    Ok(())
}

/// The worker keeps its listeners, its two links and the name table.
fn close_others(handles: &Handles, link: &OwnedFd, audit: &OwnedFd) -> Result<()> {
    let kept: Vec<i32> =
        handles.descriptors().chain([link.as_raw_fd(), audit.as_raw_fd()]).collect();
    let listed: Vec<i32> = std::fs::read_dir("/proc/self/fd")
        .context("cannot list descriptors")?
        .filter_map(std::result::Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    for descriptor in listed {
        if descriptor > 2 && !kept.contains(&descriptor) {
            // One of them listed the directory and is closed already.
            let _closed = nix::unistd::close(descriptor);
        }
    }
    // stdin was the runtime's control socket.
    let null = std::fs::File::open("/dev/null").context("cannot open /dev/null")?;
    rustix::stdio::dup2_stdin(&null).context("cannot close the control socket")?;
    Ok(())
}
