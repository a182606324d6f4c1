//! exec: another process in a running container, equally confined.
//!
//! Our own, because libcontainer's tenant builder installs no seccomp filter
//! and does not join the user namespace. The process joins the container's
//! cgroup and every namespace of its init, and is built from the stored plan:
//! what `process.json` asks beyond it is cut back.

mod namespaces;
mod terminal;

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{IoSlice, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, anyhow, bail};
use caps::{CapSet, CapsHashSet};
use libcontainer::container::ContainerStatus;
use nemoclaw_spec::plan::{ImageView as _, Plan, home_of};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Gid, Pid, Uid};
use oci_spec::runtime::{PosixRlimitType, Process, ProcessBuilder, UserBuilder};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Resource, Rlimit};

use crate::cli::{Exec, Invocation};
use crate::image::Image;
use crate::init::{self, Filters, Outcome};
use crate::report::CodedError;
use crate::store::{Entry, Executor, start_time};
use crate::sys::{self, Fork};
use crate::{reexec, stdio, steps, store};
use namespaces::Target;

/// The `exec` verb.
pub(crate) fn run(invocation: &Invocation, args: &Exec) -> Result<ExitCode> {
    reexec::protect()?;
    let entry = Entry::new(&invocation.root, &args.id)?;
    let container = entry.load()?;
    match container.status() {
        ContainerStatus::Running | ContainerStatus::Created => {}
        ContainerStatus::Paused if args.ignore_paused => {}
        ContainerStatus::Paused => {
            bail!("cannot exec in a paused container (use --ignore-paused to override)")
        }
        other => bail!("cannot exec in a {} container", other.to_string().to_ascii_lowercase()),
    }
    let record = entry.record()?;
    record.require_locked()?;
    steps::reached("exec:loaded");
    if start_time(record.pid) != Some(record.start_time) {
        bail!("the container's init has ended");
    }
    let plan = entry.plan()?;
    let process = plan.confine_process(requested(args, &entry, &plan)?).map_err(|refusal| {
        anyhow!(CodedError { code: 3, message: format!("refused: {refusal}") })
    })?;
    let filters = Filters::compile(&plan).context("seccomp")?;
    steps::reached("exec:planned");
    // Everything that needs the host's view is opened before anything is joined.
    let target = Target::open(record.pid, args.cgroup.as_deref())?;
    steps::reached("exec:opened");
    let child = Child {
        entry: &entry,
        plan: &plan,
        process: &process,
        filters: &filters,
        target: &target,
        args,
    };
    let pid = child.spawn()?;
    steps::reached("exec:spawned");
    if let Some(file) = &args.pid_file {
        store::write_file(file, pid.to_string().as_bytes())?;
    }
    if let Some(socket) = &args.pidfd_socket {
        send_pidfd(socket, pid)?;
    }
    if args.detach {
        return Ok(ExitCode::SUCCESS);
    }
    Ok(ExitCode::from(wait_for(pid)?))
}

/// The process as asked for: `--process`, or flags over init's own process.
fn requested(args: &Exec, entry: &Entry, plan: &Plan) -> Result<Process> {
    if let Some(file) = &args.process {
        let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        return serde_json::from_slice(&text)
            .with_context(|| format!("cannot understand {}", file.display()));
    }
    if args.command.is_empty() {
        bail!("exec needs --process or a program");
    }
    let init = crate::bundle::read(&entry.directory.join("bundle"))?;
    let init = init.process().clone().context("the container has no process")?;
    let mut env = init.env().clone().unwrap_or_default();
    env.extend(args.env.iter().cloned());
    let (uid, gid) = match &args.user {
        None => (plan.identity.uid, plan.identity.gid),
        Some(text) => {
            let (uid, gid) = text.split_once(':').unwrap_or((text, "0"));
            let id = |text: &str| text.parse::<u32>().with_context(|| format!("`{text}` is no id"));
            (id(uid)?, id(gid)?)
        }
    };
    let user = UserBuilder::default().uid(uid).gid(gid).build()?;
    let mut process = ProcessBuilder::default()
        .cwd(args.cwd.clone().unwrap_or_else(|| init.cwd().clone()))
        .args(args.command.clone())
        .env(env)
        .user(user)
        .build()?;
    process.set_terminal(Some(args.tty));
    process.set_capabilities(init.capabilities().clone());
    process.set_rlimits(init.rlimits().clone());
    process.set_no_new_privileges(init.no_new_privileges());
    Ok(process)
}

struct Child<'a> {
    entry: &'a Entry,
    plan: &'a Plan,
    process: &'a Process,
    filters: &'a Filters,
    target: &'a Target,
    args: &'a Exec,
}

impl Child<'_> {
    /// Starts the process; returns when it has become the user's program.
    fn spawn(&self) -> Result<i32> {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let console = match &self.args.console_socket {
            Some(path) => {
                Some(UnixStream::connect(path).context("cannot reach the console socket")?)
            }
            None => None,
        };
        // SECURITY: while it shares the container's namespaces and still is the
        // runtime, nobody in there may look into it.
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
            .context("cannot make the runtime undumpable")?;
        // The pid namespace takes effect in children only: one fork is enough.
        self.target.join_pid_namespace()?;
        let pid = match sys::fork().context("cannot fork")? {
            Fork::Parent(pid) => pid,
            Fork::Child => {
                drop(reader);
                let error = self.become_program(&writer, console);
                init::tell(
                    writer.as_fd(),
                    &Outcome { error: Some(error.message), code: error.code, landlock: None },
                );
                sys::exit_now(i32::from(error.code));
            }
        };
        drop(writer);
        let mut text = String::new();
        File::from(reader).read_to_string(&mut text).context("cannot hear from the process")?;
        // The last outcome counts: one says that all is prepared, a second one
        // that the program could not be executed after all. Silence is death.
        let outcomes = serde_json::Deserializer::from_str(&text).into_iter::<Outcome>();
        let error = match outcomes.last() {
            Some(Ok(Outcome { error: None, landlock, .. })) => {
                if let Err(error) = self.record(pid, landlock) {
                    let _killed = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
                    let _reaped = waitpid(Pid::from_raw(pid), None);
                    return Err(error);
                }
                return Ok(pid);
            }
            Some(Ok(Outcome { error: Some(message), code, .. })) => {
                anyhow!(CodedError { code, message })
            }
            _ => anyhow!("the process ended before its program started"),
        };
        let _reaped = waitpid(Pid::from_raw(pid), None);
        Err(error)
    }

    /// Remembers what the process proved, for `verify`.
    fn record(&self, pid: i32, landlock: Option<String>) -> Result<()> {
        // A process that has ended already needs no record.
        let (Some(landlock), Some(start_time)) = (landlock, start_time(pid)) else { return Ok(()) };
        self.entry.add_executor(&Executor { pid, start_time, landlock })
    }

    /// In the child: joins, confines itself and executes. Returns only errors.
    fn become_program(&self, pipe: &OwnedFd, console: Option<UnixStream>) -> CodedError {
        let steps = self.target.join_cgroups().and_then(|()| {
            steps::reached("exec:child-cgroups");
            stdio::give_pipes(self.plan.ids.outside(self.process.user().uid(), 0).0);
            self.adjust_oom()?;
            self.target.join_namespaces()?;
            steps::reached("exec:child-namespaces");
            rustix::process::setsid().context("cannot start a session")?;
            self.limits()?;
            if self.process.terminal().unwrap_or_default() {
                let socket = console.context("a terminal needs --console-socket")?;
                terminal::set_up(&socket, self.process)?;
            }
            self.identity()
        });
        if let Err(error) = steps {
            return CodedError { code: 1, message: format!("{error:#}") };
        }
        steps::reached("exec:child-identity");
        let mut env = self.process.env().clone().unwrap_or_default();
        if !env.iter().any(|entry| entry.starts_with("HOME=")) {
            env.push(format!("HOME={}", self.home()));
        }
        let args = self.process.args().clone().unwrap_or_default();
        let (program, landlock) = match init::prepare(
            self.plan,
            &args,
            &init::path_in(&env),
            self.plan.landlock.scoped || self.plan.landlock.isolate_exec,
        ) {
            Ok(prepared) => prepared,
            Err(error) => return error,
        };
        steps::reached("exec:child-prepared");
        let env: Vec<CString> =
            env.into_iter().filter_map(|entry| CString::new(entry).ok()).collect();
        if let Err(error) = sys::close_on_exec_from(3 + self.args.preserve_fds) {
            return CodedError { code: 1, message: format!("cannot close descriptors: {error}") };
        }
        // Prepared; the pipe stays open until execve closes it.
        init::tell(pipe.as_fd(), &Outcome { error: None, code: 0, landlock });
        init::execute(self.filters, &[], "", &program, &args, &env)
    }

    fn adjust_oom(&self) -> Result<()> {
        let Some(score) = self.process.oom_score_adj() else { return Ok(()) };
        fs::write("/proc/self/oom_score_adj", score.to_string()).context("cannot set the OOM score")
    }

    fn limits(&self) -> Result<()> {
        for limit in self.process.rlimits().iter().flatten() {
            let resource = resource(limit.typ());
            let value = |v: u64| (v != u64::MAX).then_some(v);
            let wanted = Rlimit { current: value(limit.soft()), maximum: value(limit.hard()) };
            rustix::process::setrlimit(resource, wanted)
                .with_context(|| format!("cannot set the limit {}", limit.typ()))?;
        }
        if let Some(priority) = self.process.io_priority() {
            let class = match priority.class() {
                oci_spec::runtime::IOPriorityClass::IoprioClassRt => 1,
                oci_spec::runtime::IOPriorityClass::IoprioClassBe => 2,
                oci_spec::runtime::IOPriorityClass::IoprioClassIdle => 3,
            };
            let level = i32::try_from(priority.priority()).unwrap_or(4);
            sys::set_io_priority((class << 13) | level).context("cannot set the I/O priority")?;
        }
        Ok(())
    }

    /// Working directory, groups, user, capabilities, no new privileges.
    fn identity(&self) -> Result<()> {
        let user = self.process.user();
        if let Some(umask) = user.umask() {
            nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(umask));
        }
        let cwd = self.process.cwd();
        let changed = std::env::set_current_dir(cwd);
        let groups: Vec<Gid> =
            user.additional_gids().iter().flatten().map(|gid| Gid::from_raw(*gid)).collect();
        // A user namespace may deny setgroups(2); then there are none to clear.
        if namespaces::may_set_groups() {
            nix::unistd::setgroups(&groups).context("cannot set supplementary groups")?;
        }
        let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
        let wanted = self.capabilities(CapSet::Effective);
        // Dropping what is not wanted needs capabilities after the user is set.
        nix::sys::prctl::set_keepcaps(true).context("cannot keep capabilities")?;
        let bounding = caps::read(None, CapSet::Bounding).context("cannot read capabilities")?;
        for capability in bounding.difference(&wanted) {
            caps::drop(None, CapSet::Bounding, *capability)
                .with_context(|| format!("cannot drop {capability}"))?;
        }
        nix::unistd::setresgid(gid, gid, gid).context("cannot set the group")?;
        nix::unistd::setresuid(uid, uid, uid).context("cannot set the user")?;
        let (uids, gids) = (nix::unistd::getresuid()?, nix::unistd::getresgid()?);
        if [uids.real, uids.effective, uids.saved] != [uid; 3]
            || [gids.real, gids.effective, gids.saved] != [gid; 3]
        {
            bail!("the process did not become user {uid} and group {gid}");
        }
        caps::clear(None, CapSet::Ambient).context("cannot clear the ambient capabilities")?;
        let inheritable = self.capabilities(CapSet::Inheritable);
        for (set, wanted) in [
            (CapSet::Inheritable, &inheritable),
            (CapSet::Effective, &wanted),
            (CapSet::Permitted, &wanted),
        ] {
            caps::set(None, set, wanted)
                .with_context(|| format!("cannot set the {set:?} capabilities"))?;
        }
        for capability in self.capabilities(CapSet::Ambient) {
            caps::raise(None, CapSet::Ambient, capability)
                .with_context(|| format!("cannot keep {capability}"))?;
        }
        if changed.is_err() {
            std::env::set_current_dir(cwd)
                .with_context(|| format!("cannot change to the directory {}", cwd.display()))?;
        }
        // A descriptor of the host as working directory (CVE-2024-21626).
        let inside = std::env::current_dir().context("cannot tell the working directory")?;
        if !inside.is_absolute() || inside.starts_with("(unreachable)") {
            bail!("the working directory lies outside the container");
        }
        if self.process.no_new_privileges().unwrap_or_default() {
            nix::sys::prctl::set_no_new_privs().context("cannot forbid new privileges")?;
        }
        Ok(())
    }

    /// HOME where nobody said it, as runc sets it: from the container's own
    /// account file, which this process sees by now; `/` where that says none.
    fn home(&self) -> String {
        let text = Image::open(Path::new("/"))
            .ok()
            .and_then(|root| root.read("/etc/passwd"))
            .unwrap_or_default();
        home_of(&text, self.process.user().uid()).unwrap_or_else(|| "/".to_owned())
    }

    /// What the process keeps: under observe the engine's wish, else the plan's.
    fn capabilities(&self, set: CapSet) -> CapsHashSet {
        let asked = self.process.capabilities().as_ref().and_then(|sets| {
            match set {
                CapSet::Inheritable => sets.inheritable().clone(),
                // Observe passes the engine's wish on without ambient ones.
                CapSet::Ambient if self.plan.confined => sets.ambient().clone(),
                CapSet::Ambient => None,
                _ => sets.effective().clone(),
            }
        });
        let names = asked.unwrap_or_default();
        names
            .iter()
            .filter_map(|capability| {
                format!("CAP_{}", capability.to_string().trim_start_matches("CAP_")).parse().ok()
            })
            .collect()
    }
}

fn resource(typ: PosixRlimitType) -> Resource {
    match typ {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    }
}

/// Sends a pidfd of `pid` over a unix socket, as runc's `--pidfd-socket`.
pub(crate) fn send_pidfd(path: &Path, pid: i32) -> Result<()> {
    let socket = UnixStream::connect(path).context("cannot reach the pidfd socket")?;
    let pid = rustix::process::Pid::from_raw(pid).context("no pid")?;
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
    let raw = [pidfd.as_raw_fd()];
    sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(b"pidfd")],
        &[ControlMessage::ScmRights(&raw)],
        MsgFlags::empty(),
        None,
    )
    .context("cannot send the pidfd")?;
    Ok(())
}

/// Waits for a process as a foreground command does: signals that this command
/// gets are passed on. Gives the exit code, 128 + n for a signal.
///
/// # Errors
/// When the process cannot be watched.
pub(crate) fn wait_for(pid: i32) -> Result<u8> {
    let mut set = SigSet::empty();
    for signal in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGWINCH,
    ] {
        set.add(signal);
    }
    set.thread_block().context("cannot hold signals back")?;
    let signals = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .context("cannot watch signals")?;
    let raw = rustix::process::Pid::from_raw(pid).context("no pid")?;
    let pidfd = rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty())
        .context("cannot watch the process")?;
    loop {
        let mut watched = [
            PollFd::new(&pidfd, PollFlags::IN),
            PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
        ];
        match rustix::event::poll(&mut watched, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for the process"),
        }
        while let Ok(Some(info)) = signals.read_signal() {
            let number = i32::try_from(info.ssi_signo).unwrap_or_default();
            if let Ok(signal) = Signal::try_from(number) {
                let _sent = nix::sys::signal::kill(Pid::from_raw(pid), signal);
            }
        }
        match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(u8::try_from(code & 0xff).unwrap_or(1)),
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                return Ok(u8::try_from(128 + signal as i32).unwrap_or(255));
            }
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot wait for the process"),
        }
    }
}
