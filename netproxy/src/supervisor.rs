//! The supervisor: small, synchronous, one thread. It holds the listeners, the
//! pidfds of the sandbox's containers and the audit file; it answers the
//! worker, and replaces a dead one. It ends with the last container.

mod audit;
mod confine;
mod connects;
mod control;
mod identify;
mod upstream;

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nemoclaw_spec::control::{Names, RUN, SandboxConfig, VERSION};
use nemoclaw_spec::decide::{Caller, Decision, Destination, Engine, Intent};
use nemoclaw_spec::name::Host;
use nemoclaw_spec::policy::Policy;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, sendmsg, socketpair,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid,
};

use crate::link::{self, Ask, Request};
use crate::sys::{self, Fork};
use crate::worker::{self, Handles};
use audit::AuditFile;
use connects::Connects;
use control::{Control, Members, Told};
use identify::Identifier;
use upstream::Upstream;

/// A worker that dies younger than this is replaced after a pause.
const YOUNG: Duration = Duration::from_millis(20);
/// Most questions of the worker answered at a time.
const MAX_BATCH: usize = 32;
/// Longest pause before a replacement.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Runs the proxy of one sandbox until its last container has ended.
///
/// # Errors
/// Before the sandbox is served; the runtime then refuses the container.
pub(crate) fn run() -> Result<()> {
    sys::close_from(3).context("cannot close inherited descriptors")?;
    rustix::process::setsid().ok();
    // While the runtime still plans. Without the kernel's notes, or with those of an
    // unknown kernel, sockets are looked for among the processes.
    let connects = Connects::load(Path::new(RUN));
    let stdin = std::io::stdin().as_fd().try_clone_to_owned().context("no control socket")?;
    let first = UnixStream::from(stdin);
    let mut config = read_configuration(&first)?;
    let engine = prepare_engine(&config)?;
    let named = named(engine.as_ref(), &config);
    let mut control = Control::new(first);
    let (netns, place) =
        control.receive_namespace().context("the runtime did not hand over the namespace")?;
    config.place = place;
    let mut audit = AuditFile::open(Path::new(&config.audit_file), &config.sandbox)?;
    let handles =
        Handles::bind(&netns).inspect_err(|error| control.refuse(&format!("{error:#}")))?;
    drop(netns);
    let socket = Path::new(&config.place.directory).join("supervisor.sock");
    let listener = UnixListener::bind(&socket)
        .with_context(|| format!("cannot listen at {}", socket.display()))
        .inspect_err(|error| control.refuse(&format!("{error:#}")))?;
    let identifier = Identifier::new(watched(engine.as_ref(), &named))
        .inspect_err(|error| control.refuse(&format!("{error:#}")))?;
    confine::supervisor().inspect_err(|error| control.refuse(&format!("{error:#}")))?;
    let (upstream, pause) = (Upstream::new(), Duration::ZERO);
    let mut supervisor =
        Supervisor { config, engine, handles, identifier, upstream, named, worker: None, pause };
    supervisor.start_worker().inspect_err(|error| control.refuse(&format!("{error:#}")))?;
    control.accept_with(listener);
    let result = supervisor.serve(&mut control, &mut audit, connects);
    supervisor.end_worker();
    // What `delete` cleans up after a supervisor that was killed.
    let _removed = std::fs::remove_dir_all(&supervisor.config.place.directory);
    result
}

/// Tries what a start needs to have the kernel note who connects.
///
/// # Errors
/// Where it will not.
pub(crate) fn examine() -> Result<()> {
    let mounted = ["/sys/fs/cgroup/unified/cgroup.procs", "/sys/fs/cgroup/cgroup.procs"];
    if !mounted.iter().any(|file| Path::new(file).exists()) {
        bail!("cgroup v2 is not mounted");
    }
    Connects::load(Path::new(RUN)).map(|_loaded| ())
}

/// The first line on the control socket. Read byte by byte: what follows it
/// comes with descriptors.
fn read_configuration(socket: &UnixStream) -> Result<SandboxConfig> {
    const LIMIT: u64 = 16 * 1024 * 1024;
    struct OneByOne<'a>(&'a UnixStream);
    impl std::io::Read for OneByOne<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            // The writer sends one line and waits for no answer; taking all
            // that is there up to the line feed needs a peek.
            let length = recv(self.0.as_raw_fd(), buffer, MsgFlags::MSG_PEEK)?;
            let seen = buffer.get(..length).unwrap_or_default();
            let wanted = seen.iter().position(|byte| *byte == b'\n').map_or(length, |at| at + 1);
            let taken = buffer.get_mut(..wanted).unwrap_or_default();
            Ok(recv(self.0.as_raw_fd(), taken, MsgFlags::empty())?)
        }
    }
    let mut line = String::new();
    BufReader::new(OneByOne(socket).take(LIMIT))
        .read_line(&mut line)
        .context("no configuration")?;
    let config: SandboxConfig =
        serde_json::from_str(&line).context("the configuration makes no sense")?;
    if config.version != VERSION {
        bail!("runtime and proxy are of different versions; install both from one build");
    }
    Ok(config)
}

/// The engine that decides; none under `observe`.
fn prepare_engine(config: &SandboxConfig) -> Result<Option<Engine>> {
    if config.observe {
        return Ok(None);
    }
    let policy =
        Policy::parse_with(&config.policy_text, &config.policy_name, &config.policy_files)?;
    if let Some(finding) = policy.unenforced.0.first() {
        bail!("{finding}");
    }
    Ok(Some(Engine::new(policy, config.aliases.clone())))
}

/// Programs that policy names by their whole path, and where that led in the first
/// container's image.
fn named(engine: Option<&Engine>, config: &SandboxConfig) -> Vec<String> {
    let programs = engine.iter().flat_map(|engine| engine.policy().programs());
    let meant =
        programs.flat_map(|path| [Some(path), config.aliases.get(path).map(String::as_str)]);
    let paths: BTreeSet<String> = meant.flatten().map(str::to_owned).collect();
    paths.into_iter().collect()
}

/// Those that are no such program where no file was known at the start. A file in
/// OpenShell's own language trusts on first use, as OpenShell does.
fn watched(engine: Option<&Engine>, named: &[String]) -> HashSet<String> {
    if !engine.is_some_and(|engine| engine.policy().ours) {
        return HashSet::new();
    }
    named.iter().cloned().collect()
}

/// A running worker, seen from here.
struct Worker {
    pid: Pid,
    pidfd: OwnedFd,
    link: OwnedFd,
    audit: OwnedFd,
    started: Instant,
    /// Answers that the worker has no room for yet; it is not heard before they are
    /// gone.
    answers: VecDeque<(Vec<u8>, Option<OwnedFd>)>,
}

struct Supervisor {
    config: SandboxConfig,
    engine: Option<Engine>,
    handles: Handles,
    identifier: Identifier,
    upstream: Upstream,
    /// Programs that policy names by their whole path.
    named: Vec<String>,
    worker: Option<Worker>,
    pause: Duration,
}

impl Supervisor {
    /// Forks a worker that shares listeners, engine and name table with every
    /// worker before it.
    fn start_worker(&mut self) -> Result<()> {
        let pair = || {
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .context("cannot make a socket pair for the worker")
        };
        let (link, worker_link) = pair()?;
        let (audit, worker_audit) = pair()?;
        let pid = match sys::fork().context("cannot fork the worker")? {
            Fork::Child => {
                drop((link, audit));
                let code =
                    confine::worker(&self.config, &self.handles, &worker_link, &worker_audit)
                        .and_then(|()| {
                            worker::run(
                                &self.config,
                                self.engine.as_ref(),
                                &self.handles,
                                worker_link,
                                worker_audit,
                            )
                        })
                        .map_or(1, |()| 0);
                sys::exit_now(code);
            }
            Fork::Parent(pid) => Pid::from_raw(pid).context("fork gave no pid")?,
        };
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("cannot watch the worker")?;
        let (started, answers) = (Instant::now(), VecDeque::new());
        self.worker = Some(Worker { pid, pidfd, link, audit, started, answers });
        Ok(())
    }

    fn end_worker(&mut self) {
        if let Some(worker) = self.worker.take() {
            let _killed = pidfd_send_signal(&worker.pidfd, Signal::KILL);
            let _reaped = waitpid(Some(worker.pid), WaitOptions::empty());
        }
    }

    /// Takes note of a dead worker and starts the next; its streams are gone
    /// with it, nothing else is.
    fn replace_worker(&mut self, audit: &mut AuditFile) -> Result<()> {
        let Some(worker) = self.worker.take() else { return Ok(()) };
        let _killed = pidfd_send_signal(&worker.pidfd, Signal::KILL);
        let _reaped = waitpid(Some(worker.pid), WaitOptions::empty());
        audit.drain_to_the_end(&worker.audit);
        audit.note("worker_restarted");
        audit.flush();
        audit.counts.restarted();
        if worker.started.elapsed() < YOUNG {
            self.pause = (self.pause * 2).clamp(Duration::from_millis(10), LONGEST_PAUSE);
            std::thread::sleep(self.pause);
        } else {
            self.pause = Duration::ZERO;
        }
        self.start_worker()
    }

    /// Waits for the worker, the runtime and the containers until no container
    /// is left.
    fn serve(
        &mut self,
        control: &mut Control,
        audit: &mut AuditFile,
        connects: Result<Connects>,
    ) -> Result<()> {
        let mut members = Members::new(self.config.observe, connects);
        loop {
            let Some(worker) = &self.worker else { bail!("there is no worker") };
            let mut watched = vec![&worker.pidfd, &worker.link, &worker.audit]
                .into_iter()
                .map(|fd| fd.as_fd())
                .collect::<Vec<_>>();
            let from_control = watched.len();
            watched.extend(control.descriptors());
            let from_members = watched.len();
            watched.extend(members.descriptors());
            let mut polled: Vec<PollFd<'_>> =
                watched.into_iter().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
            if let Some(link) = polled.get_mut(1).filter(|_| !worker.answers.is_empty()) {
                *link = PollFd::new(&worker.link, PollFlags::OUT);
            }
            match poll(&mut polled, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("cannot wait"),
            }
            let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
            let is_ready = |index: usize| ready.get(index).copied().unwrap_or_default();
            if is_ready(2) {
                // What is left is there at the next turn.
                let _more = audit.drain(&worker.audit);
            }
            if audit.has_failed() {
                bail!("the audit file cannot be written; egress is closed");
            }
            if is_ready(1) && !self.answer(&members, audit) {
                self.end_worker_now();
            }
            let status = self.worker.as_ref().map_or(0, |worker| worker.pid.as_raw_nonzero().get());
            let gone = is_ready(0);
            control.handle(
                ready.get(from_control..from_members).unwrap_or_default(),
                &mut members,
                &Told {
                    worker: status,
                    counts: &audit.counts,
                    sandbox: &self.config.sandbox,
                    named: &self.named,
                },
            );
            if std::mem::take(&mut members.unnoted_joined) {
                audit.note("callers_unnoted");
                audit.flush();
            }
            if let Some(names) = members.names.take() {
                self.rename(names)?;
            }
            if ready.get(from_members..).is_some_and(|ended| ended.contains(&true)) {
                members.remove_ended();
            }
            if members.is_finished() || (control.is_alone() && members.is_empty()) {
                if let Some(worker) = self.worker.take() {
                    let _killed = pidfd_send_signal(&worker.pidfd, Signal::KILL);
                    let _reaped = waitpid(Some(worker.pid), WaitOptions::empty());
                    audit.drain_to_the_end(&worker.audit);
                }
                return Ok(());
            }
            if gone {
                self.replace_worker(audit)?;
            }
        }
    }

    /// Takes over what the engine has written about names since; a worker that
    /// knows otherwise is replaced. No user code runs yet.
    fn rename(&mut self, names: Names) -> Result<()> {
        if self.config.place.names == names {
            return Ok(());
        }
        self.config.place.names = names;
        self.end_worker();
        self.start_worker()
    }

    /// A worker that does not speak the protocol is replaced.
    fn end_worker_now(&self) {
        if let Some(worker) = &self.worker {
            let _killed = pidfd_send_signal(&worker.pidfd, Signal::KILL);
        }
    }

    /// Answers what the worker has asked; false when it must not live on. A socket is
    /// only handed over once it is on record, whatever the worker says of it later.
    fn answer(&mut self, members: &Members, audit: &mut AuditFile) -> bool {
        let Some(worker) = &mut self.worker else { return true };
        let link = worker.link.as_raw_fd();
        let mut answers = std::mem::take(&mut worker.answers);
        let mut bytes = [0; link::REQUEST_BYTES + 1];
        while answers.len() < MAX_BATCH {
            let length = match recv(link, &mut bytes, MsgFlags::MSG_DONTWAIT) {
                // The worker has closed its end: its pidfd tells the rest.
                Ok(0) => return false,
                Ok(length) => length,
                Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => break,
                Err(_) => return false,
            };
            let Some(request) = bytes.get(..length).and_then(Request::decode) else {
                return false;
            };
            let (errno, rest, socket) = self.reply(request.ask, members, audit);
            answers.push_back((link::encode_answer(request.number, errno, &rest), socket));
        }
        audit.flush();
        if audit.has_failed() {
            return false;
        }
        let Some(worker) = &mut self.worker else { return true };
        while let Some((answer, socket)) = answers.pop_front() {
            match send(&worker.link, &answer, socket.as_ref()) {
                Ok(()) => {}
                Err(nix::errno::Errno::EAGAIN) => {
                    answers.push_front((answer, socket));
                    break;
                }
                Err(_) => return false,
            }
        }
        worker.answers = answers;
        true
    }

    fn identify(
        &mut self,
        source: SocketAddr,
        destination: SocketAddr,
        members: &Members,
    ) -> Caller {
        self.identifier.identify(source, destination, members, self.engine.as_ref())
    }

    /// Whether policy lets a caller be connected to `target` for what it dialled. The
    /// worker decides with the same engine before it relays anything.
    fn permits(
        &self,
        caller: &Caller,
        dialled: SocketAddr,
        target: SocketAddr,
        host: Option<&str>,
    ) -> bool {
        let Some(engine) = &self.engine else { return false };
        let destination = match host.map(Host::parse) {
            Some(Ok(host)) => Destination::Host(host),
            Some(Err(_)) => return false,
            None => self.config.place.names.destination(dialled.ip()),
        };
        let intent = Intent::connect(destination, dialled.port());
        match engine.decide(&intent, caller) {
            Decision::Allow(permit) => {
                permit.port() == target.port() && permit.check_address(target.ip()).is_ok()
            }
            _ => false,
        }
    }

    fn reply(&mut self, ask: Ask, members: &Members, audit: &mut AuditFile) -> Answer {
        let (opened, protocol, to) = match ask {
            Ask::Identify { source, destination } => {
                let caller = self.identify(source, destination, members);
                return (0, link::encode_caller(&caller), None);
            }
            Ask::Open { source, destination, target, host } => {
                let caller = self.identify(source, destination, members);
                let told = link::encode_caller(&caller);
                // The worker refuses whom it is not told of: nothing leaves for them.
                let permitted =
                    !told.is_empty() && self.permits(&caller, destination, target, host.as_deref());
                let socket = permitted
                    .then(|| self.upstream.tcp(target, &self.config).ok())
                    .flatten()
                    .and_then(|socket| audit.dial(socket, "tcp", target).ok());
                return (0, told, socket);
            }
            Ask::Tcp(to) => (self.upstream.tcp(to, &self.config), "tcp", to),
            Ask::Udp(to) => (upstream::udp(to, &self.config), "udp", to),
        };
        match opened.and_then(|socket| audit.dial(socket, protocol, to)) {
            Ok(socket) => (0, Vec::new(), Some(socket)),
            Err(error) => (error.raw_os_error().unwrap_or(nix::libc::EIO), Vec::new(), None),
        }
    }
}

type Answer = (i32, Vec<u8>, Option<OwnedFd>);

/// Sends without waiting: a worker that does not read must not stop us.
fn send(link: &OwnedFd, answer: &[u8], socket: Option<&OwnedFd>) -> nix::Result<()> {
    let raw: Vec<i32> = socket.iter().map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let parts = [std::io::IoSlice::new(answer)];
    sendmsg::<()>(link.as_raw_fd(), &parts, control, flags, None).map(|_length| ())
}
