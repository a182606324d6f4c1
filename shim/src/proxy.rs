//! The proxy of a sandbox, seen from the runtime: started beside the
//! container, handed the namespace, waited for, and told when containers come
//! and go.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, IoSlice, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nemoclaw_spec::control::{
    Member, Names, Place, Reply, Request, SandboxConfig, VERSION, WORKER_UID_BASE,
};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::policy::Selected;
use crate::store::RUN;
use crate::{reexec, steps};

/// How long the proxy may take to answer; it answers in milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// Memory ceiling of a proxy's two processes, in bytes.
const MEMORY_BYTES: u64 = 256 * 1024 * 1024;
/// Process ceiling of a proxy.
const PROCESSES: u32 = 16;
/// Hierarchies of cgroups that a proxy gets groups of its own in.
const HIERARCHIES: [&str; 6] = ["memory", "pids", "cpu", "systemd", "unified", ""];
/// Processor time of a proxy in a period of 100 ms, in microseconds: what a sandbox
/// makes it do is bounded.
const PROCESSOR: u32 = 150_000;
/// The first inode number of namespaces (PROC_DYNAMIC_FIRST).
const FIRST_INODE: u64 = 0xf000_0000;

/// Directory of the sandbox that owns a network namespace.
pub(crate) fn directory(inode: u64) -> PathBuf {
    Path::new(RUN).join("sandboxes").join(inode.to_string())
}

/// Inode number of a namespace file.
pub(crate) fn inode(path: &Path) -> Result<u64> {
    let metadata =
        fs::metadata(path).with_context(|| format!("cannot examine {}", path.display()))?;
    Ok(metadata.ino())
}

/// A proxy that has been started and does not serve yet; it ends with this value.
#[derive(Debug)]
pub(crate) struct Starting {
    /// None once it serves.
    child: Option<Child>,
    socket: UnixStream,
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _killed = child.kill();
            let _reaped = child.wait();
        }
    }
}

impl Starting {
    /// Starts the proxy's program; it waits for [`Starting::serve`].
    pub(crate) fn spawn() -> Result<Self> {
        let program = reexec::sibling("nemoclaw-netproxy")?;
        let (own, theirs) =
            UnixStream::pair().context("cannot make a socket pair for the proxy")?;
        own.set_read_timeout(Some(PATIENCE))?;
        own.set_write_timeout(Some(PATIENCE))?;
        let child = Command::new(&program)
            .arg("supervise")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            .env_clear()
            .spawn()
            .with_context(|| {
                format!("cannot start the proxy {}; install it beside nemoclaw", program.display())
            })?;
        Ok(Self { child: Some(child), socket: own })
    }

    /// Hands the proxy its configuration, which it prepares for while the container
    /// is made.
    pub(crate) fn configure(&self, config: &SandboxConfig) -> Result<()> {
        let mut line = serde_json::to_vec(config)?;
        line.push(b'\n');
        (&self.socket).write_all(&line).context("cannot send the proxy its configuration")
    }

    /// Hands the proxy the locked namespace, does `meanwhile` what the container needs
    /// before it can start, and waits until the proxy serves.
    pub(crate) fn serve(
        mut self,
        place: Place,
        netns: &File,
        meanwhile: impl FnOnce() -> Result<Member>,
    ) -> Result<()> {
        let name = Path::new(&place.directory)
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        if let Some(child) = &self.child {
            confine(&name, child.id());
        }
        self.converse(place, netns, meanwhile)?;
        self.child = None;
        Ok(())
    }

    fn converse(
        &self,
        place: Place,
        netns: &File,
        meanwhile: impl FnOnce() -> Result<Member>,
    ) -> Result<()> {
        send(&self.socket, &Request::Enter(place), &[netns.as_fd()])?;
        let member = meanwhile()?;
        answer(&self.socket)?;
        steps::reached("create:proxy-entered");
        join_over(&self.socket, &member)?;
        steps::reached("create:joined");
        Ok(())
    }
}

/// Puts a process of the sandbox's proxy, or its watcher, into a cgroup of their
/// own, outside the container's and the engine's. Where the host does not let us,
/// they still work.
pub(crate) fn confine(name: &str, pid: u32) {
    for hierarchy in HIERARCHIES {
        let root = Path::new("/sys/fs/cgroup").join(hierarchy);
        if !root.join("cgroup.procs").exists() {
            continue;
        }
        let group = root.join("nemoclaw").join(name);
        if fs::create_dir_all(&group).is_err() {
            continue;
        }
        for (file, value) in [
            ("memory.limit_in_bytes", MEMORY_BYTES.to_string()),
            ("memory.max", MEMORY_BYTES.to_string()),
            ("pids.max", PROCESSES.to_string()),
            ("cpu.cfs_quota_us", PROCESSOR.to_string()),
            ("cpu.max", format!("{PROCESSOR} 100000")),
        ] {
            if group.join(file).exists() {
                let _limited = fs::write(group.join(file), value);
            }
        }
        let _moved = fs::write(group.join("cgroup.procs"), pid.to_string());
    }
}

/// Removes the cgroups of a proxy that has ended.
fn remove_cgroups(name: &str) {
    for hierarchy in HIERARCHIES {
        let group = Path::new("/sys/fs/cgroup").join(hierarchy).join("nemoclaw").join(name);
        let _removed = fs::remove_dir(group);
    }
}

/// Adds a container to a running sandbox.
pub(crate) fn join(directory: &Path, member: &Member) -> Result<()> {
    join_over(&connect(directory)?, member)
}

fn join_over(socket: &UnixStream, member: &Member) -> Result<()> {
    let pid = Pid::from_raw(member.pid).context("the container has no init")?;
    let pidfd =
        pidfd_open(pid, PidfdFlags::empty()).context("cannot watch the container's init")?;
    ask(socket, &Request::Join(member.clone()), &[pidfd.as_fd()]).map(|_reply| ())
}

/// Tells a sandbox what the engine's name files say now.
pub(crate) fn rename(directory: &Path, names: Names) -> Result<()> {
    ask(&connect(directory)?, &Request::Names(names), &[]).map(|_reply| ())
}

/// Tells a sandbox that a container is gone. A sandbox that has ended with its
/// last container is what should be.
pub(crate) fn leave(directory: &Path, id: &str) {
    if let Ok(socket) = connect(directory) {
        let request = Request::Leave { id: id.to_owned() };
        if ask(&socket, &request, &[]).is_ok_and(|reply| !reply.members.is_empty()) {
            return;
        }
        drop(socket);
        // The last one: the supervisor ends by itself, in milliseconds.
        for _try in 0..500 {
            if connect(directory).is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    if connect(directory).is_err() {
        clean(directory);
    }
}

/// Removes what a sandbox without a supervisor left behind.
fn clean(directory: &Path) {
    let _removed = fs::remove_dir_all(directory);
    if let Some(name) = directory.file_name() {
        // The supervisor needs a moment between its socket's end and its own.
        for _try in 0..50 {
            let name = name.to_string_lossy();
            remove_cgroups(&name);
            let left = HIERARCHIES.iter().any(|h| {
                Path::new("/sys/fs/cgroup").join(h).join("nemoclaw").join(&*name).exists()
            });
            if !left {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// True when a supervisor answers in this directory.
pub(crate) fn alive(directory: &Path) -> bool {
    connect(directory).and_then(|socket| ask(&socket, &Request::Status, &[])).is_ok()
}

/// Programs that the policy of a running sandbox names by their whole path.
pub(crate) fn named(directory: &Path) -> Result<Vec<String>> {
    Ok(ask(&connect(directory)?, &Request::Status, &[])?.named)
}

/// True when a supervisor answers that only records.
pub(crate) fn observes(directory: &Path) -> bool {
    connect(directory)
        .and_then(|socket| ask(&socket, &Request::Status, &[]))
        .is_ok_and(|reply| reply.observe)
}

/// Makes the directory of a new sandbox, removing what a dead one left.
pub(crate) fn make_directory(directory: &Path) -> Result<()> {
    if directory.exists() {
        clean(directory);
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("cannot make {}", directory.display()))
}

fn connect(directory: &Path) -> Result<UnixStream> {
    let path = directory.join("supervisor.sock");
    let socket = UnixStream::connect(&path)
        .with_context(|| format!("no proxy answers at {}", path.display()))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// One request, its descriptors, and the answer.
fn ask(socket: &UnixStream, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<Reply> {
    send(socket, request, descriptors)?;
    answer(socket)
}

fn send(socket: &UnixStream, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    let raw: Vec<i32> = descriptors.iter().map(std::os::fd::AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(&line)],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )
    .context("cannot reach the proxy")?;
    Ok(())
}

fn answer(socket: &UnixStream) -> Result<Reply> {
    let mut answer = String::new();
    BufReader::new(socket).read_line(&mut answer).context("the proxy does not answer")?;
    if answer.is_empty() {
        bail!("the proxy ended before it was ready; its log is in the audit directory");
    }
    let reply: Reply =
        serde_json::from_str(&answer).context("the proxy's answer makes no sense")?;
    if !reply.ok {
        bail!("the proxy refuses: {}", reply.error);
    }
    Ok(reply)
}

/// What a proxy is told about its sandbox.
pub(crate) fn configuration(
    id: &str,
    selected: &Selected,
    aliases: std::collections::HashMap<String, String>,
    observe: bool,
) -> SandboxConfig {
    SandboxConfig {
        version: VERSION,
        sandbox: id.to_owned(),
        policy_text: selected.text.clone(),
        policy_files: selected.files.clone(),
        policy_name: selected.name.clone(),
        aliases,
        audit_file: format!("/var/log/nemoclaw/{id}.jsonl"),
        observe,
        place: Place::default(),
    }
}

/// Where a sandbox is that owns this network namespace.
pub(crate) fn place(netns_inode: u64, names: Names) -> Place {
    let index =
        u32::try_from(netns_inode.saturating_sub(FIRST_INODE) & 0x0fff_ffff).unwrap_or_default();
    Place {
        directory: directory(netns_inode).display().to_string(),
        worker_id: WORKER_UID_BASE + index,
        names,
    }
}
