//! What the runtime asks of a running sandbox, over a socket only root reaches.

use std::fs::{self, File};
use std::io::{IoSliceMut, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use super::connects::{Connects, Group};
use anyhow::{Context as _, Result, anyhow, bail};
use nemoclaw_spec::control::{Counts, Member, Names, Place, Reply, Request};
use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Longest request, in bytes.
const MAX_REQUEST: usize = 16 * 1024 * 1024;
/// How much of one is read at a time, in bytes.
const PART: usize = 64 * 1024;
/// Most connections of the runtime at once.
const MAX_CONNECTIONS: usize = 32;

/// One container of the sandbox.
#[derive(Debug)]
pub(super) struct Joined {
    pub(super) member: Member,
    pidfd: OwnedFd,
    /// Directories with cgroup.procs files of its processes.
    pub(super) cgroups: Vec<PathBuf>,
    /// Its group of cgroup v2, where the kernel notes who connects.
    pub(super) noted: Option<Group>,
    /// When it joined, before anything of the user's ran: nanoseconds since boot.
    pub(super) began: i128,
}

/// The containers of the sandbox.
#[derive(Debug, Default)]
pub(super) struct Members {
    joined: Vec<Joined>,
    ever: bool,
    /// Whether the sandbox only records.
    pub(super) observe: bool,
    /// What the runtime has said about names and nobody has read yet.
    pub(super) names: Option<Names>,
    /// The kernel's notes of connections, where it makes any.
    pub(super) connects: Option<Connects>,
    /// Why it makes none, of the last container where it does not.
    unnoted: String,
    /// Such a container has joined and nobody has recorded that yet.
    pub(super) unnoted_joined: bool,
}

impl Members {
    pub(super) fn new(observe: bool, connects: Result<Connects>) -> Self {
        let mut members = Self { observe, ..Self::default() };
        match connects {
            Ok(connects) => members.connects = Some(connects),
            Err(error) => members.unnoted = format!("{error:#}"),
        }
        members
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Joined> {
        self.joined.iter()
    }

    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.joined.iter().map(|joined| joined.pidfd.as_fd())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.joined.is_empty()
    }

    /// True when there were containers and none is left.
    pub(super) fn is_finished(&self) -> bool {
        self.ever && self.joined.is_empty()
    }

    /// Forgets containers whose init has ended.
    pub(super) fn remove_ended(&mut self) {
        self.joined.retain(|joined| {
            let mut watched = [PollFd::new(&joined.pidfd, PollFlags::IN)];
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            !matches!(poll(&mut watched, Some(&now)), Ok(ready) if ready > 0)
        });
    }

    fn join(&mut self, member: Member, pidfd: OwnedFd) {
        let cgroups = cgroup_directories(member.pid);
        // Without notes its sockets are looked for among its processes.
        let noted = match &self.connects {
            Some(connects) => connects.watch(member.pid),
            None => Err(anyhow!("{}", self.unnoted)),
        };
        if let Err(error) = &noted {
            self.unnoted = format!("{error:#}");
            self.unnoted_joined = true;
        }
        let noted = noted.ok();
        self.joined.retain(|joined| joined.member.id != member.id);
        let began = super::identify::since_boot();
        self.joined.push(Joined { member, pidfd, cgroups, noted, began });
        self.ever = true;
    }

    fn leave(&mut self, id: &str) {
        self.joined.retain(|joined| joined.member.id != id);
    }
}

/// Where the processes of a container are listed: one hierarchy is enough, for
/// the runtime moves every process into all of them.
fn cgroup_directories(pid: i32) -> Vec<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let path_of = |wanted: &str| {
        text.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let controllers = fields.nth(1)?;
            let path = fields.next()?;
            (controllers.split(',').any(|name| name == wanted) && path != "/")
                .then(|| path.to_owned())
        })
    };
    for (controller, root) in [
        ("pids", "/sys/fs/cgroup/pids"),
        ("", "/sys/fs/cgroup"),
        ("", "/sys/fs/cgroup/unified"),
        ("memory", "/sys/fs/cgroup/memory"),
        ("cpu", "/sys/fs/cgroup/cpu"),
        ("freezer", "/sys/fs/cgroup/freezer"),
        ("name=systemd", "/sys/fs/cgroup/systemd"),
    ] {
        if let Some(path) = path_of(controller) {
            let directory = PathBuf::from(format!("{root}{path}"));
            if directory.join("cgroup.procs").exists() {
                return vec![directory];
            }
        }
    }
    Vec::new()
}

/// What the supervisor can say of the sandbox.
pub(super) struct Told<'a> {
    /// Pid of the worker.
    pub(super) worker: i32,
    pub(super) counts: &'a Counts,
    /// Its name in records.
    pub(super) sandbox: &'a str,
    /// Programs that its policy names by their whole path.
    pub(super) named: &'a [String],
}

/// The runtime's connections.
pub(super) struct Control {
    /// The connection over which the runtime started us.
    first: Option<UnixStream>,
    listener: Option<UnixListener>,
    connections: Vec<UnixStream>,
}

impl Control {
    pub(super) fn new(first: UnixStream) -> Self {
        Self { first: Some(first), listener: None, connections: Vec::new() }
    }

    /// Waits for the namespace and for what is known with it.
    pub(super) fn receive_namespace(&mut self) -> Result<(File, Place)> {
        let first = self.first.as_ref().context("there is no control connection")?;
        match receive(first)? {
            Some((Request::Enter(place), Some(namespace))) => Ok((File::from(namespace), place)),
            _ => bail!("the runtime asked for something else first"),
        }
    }

    /// Tells the runtime that the sandbox cannot be served.
    pub(super) fn refuse(&self, why: &str) {
        if let Some(first) = &self.first {
            reply(first, &Reply::failed(why.to_owned()));
        }
    }

    /// Serves from now on: tells the runtime so and takes further connections.
    pub(super) fn accept_with(&mut self, listener: UnixListener) {
        self.listener = Some(listener);
        if let Some(first) = self.first.take() {
            reply(&first, &Reply::done());
            self.connections.push(first);
        }
    }

    /// The listener, then the connections.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.listener.iter().map(AsFd::as_fd).chain(self.connections.iter().map(AsFd::as_fd))
    }

    /// True when the runtime that started us has hung up.
    pub(super) fn is_alone(&self) -> bool {
        self.connections.is_empty()
    }

    /// Handles what is ready, in the order of [`Control::descriptors`].
    pub(super) fn handle(&mut self, ready: &[bool], members: &mut Members, told: &Told<'_>) {
        let mut flags = ready.iter().copied();
        let accept = self.listener.is_some() && flags.next().unwrap_or_default();
        let mut kept = Vec::new();
        for connection in self.connections.drain(..) {
            if !flags.next().unwrap_or_default() || handle_one(&connection, members, told) {
                kept.push(connection);
            }
        }
        self.connections = kept;
        if accept
            && let Some(listener) = &self.listener
            && let Ok((connection, _)) = listener.accept()
            && self.connections.len() < MAX_CONNECTIONS
            && is_root(&connection)
        {
            // A caller that stops half-way must not hold the sandbox.
            let patience = Some(Duration::from_secs(1));
            if connection.set_read_timeout(patience).is_ok()
                && connection.set_write_timeout(patience).is_ok()
            {
                self.connections.push(connection);
            }
        }
    }
}

fn is_root(connection: &UnixStream) -> bool {
    nix::sys::socket::getsockopt(connection, nix::sys::socket::sockopt::PeerCredentials)
        .is_ok_and(|credentials| credentials.uid() == 0)
}

/// One request; false when the connection is over.
fn handle_one(connection: &UnixStream, members: &mut Members, told: &Told<'_>) -> bool {
    let answer = match receive(connection) {
        Ok(Some((Request::Join(member), Some(pidfd)))) => {
            members.join(member, pidfd);
            Reply::done()
        }
        Ok(Some((Request::Leave { id }, _))) => {
            members.leave(&id);
            Reply {
                members: members.iter().map(|joined| joined.member.id.clone()).collect(),
                ..Reply::done()
            }
        }
        Ok(Some((Request::Names(names), _))) => {
            members.names = Some(names);
            Reply::done()
        }
        Ok(Some((Request::Status, _))) => Reply {
            members: members.iter().map(|joined| joined.member.id.clone()).collect(),
            sandbox: told.sandbox.to_owned(),
            worker: told.worker,
            counts: told.counts.clone(),
            named: told.named.to_vec(),
            observe: members.observe,
            unnoted: members.unnoted.clone(),
            ..Reply::done()
        },
        Ok(Some((Request::Enter(_), _))) => {
            Reply::failed("this sandbox has its namespace".to_owned())
        }
        Ok(Some((Request::Join(_), None))) => Reply::failed("no pidfd came along".to_owned()),
        Ok(None) | Err(_) => return false,
    };
    reply(connection, &answer);
    true
}

fn reply(mut connection: &UnixStream, reply: &Reply) {
    let mut line = serde_json::to_vec(reply).unwrap_or_default();
    line.push(b'\n');
    let _sent = connection.write_all(&line);
}

/// One request, up to its line feed, with the descriptor that came along; `None` at
/// the end.
fn receive(connection: &UnixStream) -> Result<Option<(Request, Option<OwnedFd>)>> {
    let mut line = Vec::new();
    let mut descriptor = None;
    // What comes with a descriptor is given out by itself, a part at a time (unix(7)).
    while line.last() != Some(&b'\n') {
        let mut bytes = vec![0; PART];
        let mut space = cmsg_space!([std::os::fd::RawFd; 1]);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(connection.as_raw_fd(), &mut parts, Some(&mut space), flags)
            .context("cannot receive")?;
        let length = message.bytes;
        for control in message.cmsgs().context("cannot read descriptors")? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                descriptor = raw.into_iter().map(crate::sys::own).next_back().or(descriptor);
            }
        }
        if length == 0 {
            return Ok(None);
        }
        line.extend(bytes.get(..length).unwrap_or_default());
        if line.len() > MAX_REQUEST {
            bail!("a request is too long");
        }
    }
    let request = serde_json::from_slice(&line).context("no known request")?;
    Ok(Some((request, descriptor)))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::io::IoSlice;

    use nemoclaw_spec::control::{FileId, MAX_PROGRAMS};
    use nix::sys::socket::{ControlMessage, sendmsg};

    use super::*;

    #[test]
    fn the_longest_request_arrives_with_its_descriptor() {
        let identity = FileId { device: 1, inode: 2, size: 3, changed: 4, nanoseconds: 5 };
        let path = |number: usize| format!("/opt/{}/{number}", "x".repeat(200));
        let programs: HashMap<String, FileId> =
            (0..2 * MAX_PROGRAMS).map(|number| (path(number), identity)).collect();
        let request = Request::Join(Member { id: "a".to_owned(), pid: 7, programs });
        let mut line = serde_json::to_vec(&request).unwrap();
        line.push(b'\n');
        let (ours, theirs) = UnixStream::pair().unwrap();
        let null = File::open("/dev/null").unwrap();
        let heard = std::thread::scope(|scope| {
            scope.spawn(|| {
                let raw = [null.as_raw_fd()];
                let rights = [ControlMessage::ScmRights(&raw)];
                let parts = [IoSlice::new(&line)];
                sendmsg::<()>(theirs.as_raw_fd(), &parts, &rights, MsgFlags::empty(), None)
            });
            receive(&ours).unwrap()
        });
        match heard {
            Some((Request::Join(member), Some(_))) => {
                assert_eq!(member.programs.len(), 2 * MAX_PROGRAMS);
            }
            other => panic!("{other:?}"),
        }
    }
}
