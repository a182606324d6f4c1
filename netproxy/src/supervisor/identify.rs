//! Whose socket is it? sock_diag(7) gives the inode of the socket with exactly
//! this source and destination; its holders are looked for among the
//! sandbox's processes, in the host's view.
//!
//! Every holder counts, and a socket nobody seems to hold (its descriptor may
//! be parked in a unix socket) has no caller: it is refused.
//!
//! Where the kernel notes who connects ([`super::connects`]), that process has to run
//! the same program still; if it alone held the socket, nobody else is looked for.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs;
use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nemoclaw_spec::address;
use nemoclaw_spec::connects::{Executed, Note};
use nemoclaw_spec::control::{EXPLICIT_PORT, FileId};
use nemoclaw_spec::decide::{CHANGED, Caller, Engine, Process};
use nemoclaw_spec::name::MAX_PATH_BYTES;
use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as NetlinkAddr};
use rustix::fs::{Dir, Mode, OFlags, openat, readlinkat};

use rustix::time::{ClockId, clock_gettime};

use super::connects::unified;
use super::control::{Joined, Members};

/// Most processes looked at in one sandbox.
const MAX_PROCESSES: usize = 16_384;
/// Most descriptors looked at in one process.
const MAX_DESCRIPTORS: usize = 65_536;
/// How often a sandbox is looked at that cannot be seen through at once.
const TRIES: u32 = 3;
/// The pause in between.
const PAUSE: Duration = Duration::from_millis(2);
/// Most ancestors recorded.
const MAX_ANCESTORS: usize = 64;
/// Most bytes of programs that are hashed in [`HASH_PERIOD`], half a second's work: who
/// keeps changing a file gets no answer for it. Most digests kept.
const MAX_HASHED: u64 = 512 * 1024 * 1024;
const HASH_PERIOD: Duration = Duration::from_secs(10);
const MAX_DIGESTS: usize = 64;
/// How long a file must have stayed as it is for its digest to be kept: two changes
/// within one tick of the clock look alike.
const SETTLED: i128 = 2_000_000_000;
/// Most bytes of ancestors' paths in one answer.
const MAX_LINEAGE: usize = 8 * 1024;

/// Asks the kernel about sockets of the namespace it was made in.
pub(super) struct Identifier {
    socket: Socket,
    files: Files,
    sequence: u32,
}

/// What is known of executables.
struct Files {
    /// Paths that mean a program only where its file was known at the start.
    watched: HashSet<String>,
    /// Digests of files in one state.
    digests: HashMap<FileId, String>,
    /// When the last ones were made, and of how many bytes.
    hashed: VecDeque<(Instant, u64)>,
    clock: Clock,
}

/// Tells files that were there before a container began from later ones. ctime is the
/// host's clock, which may be set back meanwhile; nobody inside can set either.
struct Clock {
    /// The least that the clock was ahead of the time since boot, in nanoseconds.
    ahead: i128,
}

impl Clock {
    fn new() -> Self {
        Self { ahead: ahead() }
    }

    /// Whether an inode changed after a container began.
    fn is_late(&mut self, changed: (i64, u32), began: i128) -> bool {
        self.ahead = self.ahead.min(ahead());
        let changed = i128::from(changed.0) * 1_000_000_000 + i128::from(changed.1);
        changed >= began + self.ahead
    }
}

fn nanoseconds(time: rustix::time::Timespec) -> i128 {
    i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
}

fn ahead() -> i128 {
    nanoseconds(clock_gettime(ClockId::Realtime)) - since_boot()
}

/// Time since boot, in nanoseconds, suspension included.
pub(super) fn since_boot() -> i128 {
    nanoseconds(clock_gettime(ClockId::Boottime))
}

impl Identifier {
    pub(super) fn new(watched: HashSet<String>) -> Result<Self> {
        let socket = Socket::new(NETLINK_SOCK_DIAG)
            .and_then(|socket| socket.connect(&NetlinkAddr::new(0, 0)).map(|()| socket))
            .context("cannot ask the kernel about sockets (sock_diag); is CONFIG_INET_DIAG on?")?;
        let files = Files {
            watched,
            digests: HashMap::new(),
            hashed: VecDeque::new(),
            clock: Clock::new(),
        };
        Ok(Self { socket, files, sequence: 0 })
    }

    /// The caller behind a captured connection; without holders when unknown.
    pub(super) fn identify(
        &mut self,
        source: SocketAddr,
        destination: SocketAddr,
        members: &Members,
        engine: Option<&Engine>,
    ) -> Caller {
        let Ok(Some((inode, cookie))) = self.socket_of(source, destination) else {
            return Caller::default();
        };
        let again = destination.port() == EXPLICIT_PORT;
        let note = members.connects.as_ref().and_then(|connects| connects.note(cookie, again));
        let connector = match &note {
            None => None,
            Some(note) => match connector(note, members) {
                Some(held) => Some(held),
                // It has ended, or executes something else.
                None => return Caller::default(),
            },
        };
        // A connection that asks again may be another's by now.
        let alone = !again && note.as_ref().is_some_and(|note| note.alone);
        if let Some(held) = connector.as_ref().filter(|_| alone) {
            let above = |held: &Held<'_>| parent(held, members);
            let ancestors = std::iter::successors(parent(held, members), above);
            let process = self.files.describe(held, ancestors, engine);
            return Caller { holders: process.into_iter().collect() };
        }
        // Descriptors on their way between processes arrive in a moment.
        for _try in 0..TRIES {
            let found = holders(inode, members, connector.as_ref(), &mut self.files, engine);
            match found {
                Some(found) => {
                    // Who is watched and was not noted did not connect it.
                    let known = found.iter().all(|(_, noted, _)| !noted || note.is_some());
                    let among = connector
                        .as_ref()
                        .is_none_or(|held| found.iter().any(|(pid, ..)| *pid == held.pid));
                    let holders: Option<Vec<Process>> =
                        found.into_iter().map(|(.., process)| process).collect();
                    return match holders {
                        Some(holders) if known && among => Caller { holders },
                        _ => Caller::default(),
                    };
                }
                None => std::thread::sleep(PAUSE),
            }
        }
        Caller::default()
    }

    /// Inode and cookie of the socket.
    fn socket_of(
        &mut self,
        source: SocketAddr,
        destination: SocketAddr,
    ) -> io::Result<Option<(u32, u64)>> {
        // Sockets of dual-stack programs are IPv4 to the kernel's tables.
        let (source_ip, destination_ip) =
            (address::unwrap_mapped(source.ip()), address::unwrap_mapped(destination.ip()));
        let family = if source_ip.is_ipv4() { 2 } else { 10 };
        let request = InetRequest {
            family,
            protocol: 6,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::all(),
            socket_id: SocketId {
                source_port: source.port(),
                destination_port: destination.port(),
                source_address: source_ip,
                destination_address: destination_ip,
                interface_id: 0,
                cookie: [0xff; 8],
            },
        };
        let mut header = NetlinkHeader::default();
        self.sequence = self.sequence.wrapping_add(1);
        header.sequence_number = self.sequence;
        header.flags = NLM_F_REQUEST;
        let mut packet = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
        packet.finalize();
        let mut bytes = vec![0; packet.header.length as usize];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut answer = Vec::with_capacity(4096);
        self.socket.recv(&mut answer, 0)?;
        let message = NetlinkMessage::<SockDiagMessage>::deserialize(&answer)
            .map_err(|error| io::Error::other(error.to_string()))?;
        match message.payload {
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                // The kernel may answer with a listener of the same port.
                let id = &response.header.socket_id;
                let same = id.source_port == source.port()
                    && id.destination_port == destination.port()
                    && matches_address(id.destination_address, destination_ip);
                let found = (response.header.inode, u64::from_ne_bytes(id.cookie));
                Ok((same && found.0 != 0).then_some(found))
            }
            _ => Ok(None),
        }
    }
}

fn matches_address(found: IpAddr, wanted: IpAddr) -> bool {
    address::unwrap_mapped(found) == wanted
}

/// One process held open, so that its pid cannot come to mean another.
struct Held<'a> {
    pid: i32,
    /// Programs of its container as they were before it ran.
    programs: &'a HashMap<String, FileId>,
    /// The kernel notes what its container connects.
    noted: bool,
    /// When its container joined, in nanoseconds since boot.
    began: i128,
    parent: i32,
    /// When it began, in ticks since boot.
    started: u64,
    /// The first thread has ended and others go on: what it holds cannot be
    /// seen through it.
    headless: bool,
    /// What it executed when it connected, where the kernel noted that.
    connected: Option<Executed>,
    /// And what its ancestors did then.
    lineage: Vec<Executed>,
    directory: OwnedFd,
}

/// The process that the kernel noted.
fn connector<'a>(note: &Note, members: &'a Members) -> Option<Held<'a>> {
    let in_group = |joined: &&Joined| joined.noted.as_ref().is_some_and(|own| own.id == note.group);
    let mut held = hold(note.pid, members.iter().find(in_group)?)?;
    held.connected = Some(note.executed);
    held.lineage.clone_from(&note.ancestors);
    // /proc/PID/stat counts in hundredths of a second (USER_HZ).
    (held.started == note.started / 10_000_000).then_some(held)
}

/// The parent of a process, where it is one of the sandbox.
fn parent<'a>(process: &Held<'_>, members: &'a Members) -> Option<Held<'a>> {
    if members.iter().any(|joined| joined.member.pid == process.pid) {
        return None;
    }
    let path = format!("/proc/{}/cgroup", process.parent);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let cgroup = read_small(&rustix::fs::open(path, flags, Mode::empty()).ok()?)?;
    let path = unified(&cgroup)?;
    let joined = members
        .iter()
        .find(|joined| joined.noted.as_ref().is_some_and(|group| group.path == path))?;
    hold(process.parent, joined)
}

/// A holder: its pid, whether the kernel notes what it connects, and what it is; `None`
/// where that is no longer what connected.
type Holder = (i32, bool, Option<Process>);

/// The holders; `None` when there may be others that cannot be seen.
fn holders(
    inode: u32,
    members: &Members,
    connector: Option<&Held<'_>>,
    files: &mut Files,
    engine: Option<&Engine>,
) -> Option<Vec<Holder>> {
    let wanted = format!("socket:[{inode}]");
    let mut processes = HashMap::new();
    for joined in members.iter() {
        for cgroup in &joined.cgroups {
            collect(cgroup, joined, &mut processes, 0);
        }
        // A container in a cgroup we cannot read still has its init.
        if let Some(init) = hold(joined.member.pid, joined) {
            processes.entry(init.pid).or_insert(init);
        }
    }
    let inits: Vec<i32> = members.iter().map(|joined| joined.member.pid).collect();
    let mut pids: Vec<i32> = processes.keys().copied().collect();
    pids.sort_unstable();
    let mut found = Vec::new();
    for process in pids.iter().filter_map(|pid| processes.get(pid)) {
        match holds(process, &wanted) {
            Some(true) => {
                let above = |process: &&Held<'_>| {
                    if inits.contains(&process.pid) { None } else { processes.get(&process.parent) }
                };
                let ancestors = std::iter::successors(above(&process), above);
                // The noted one is asked by what it was when it connected.
                let own = connector.filter(|held| held.pid == process.pid).unwrap_or(process);
                found.push((process.pid, process.noted, files.describe(own, ancestors, engine)));
            }
            Some(false) => {}
            // A process we cannot see into may hold it as well.
            None => return None,
        }
    }
    Some(found)
}

/// Opens every process of a cgroup and of the cgroups below it.
fn collect<'a>(
    cgroup: &Path,
    joined: &'a Joined,
    processes: &mut HashMap<i32, Held<'a>>,
    depth: usize,
) {
    if depth > 8 {
        return;
    }
    let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    for pid in text.lines().filter_map(|line| line.parse().ok()) {
        if processes.len() >= MAX_PROCESSES {
            return;
        }
        if let Some(held) = hold(pid, joined) {
            processes.insert(pid, held);
        }
    }
    for entry in fs::read_dir(cgroup).into_iter().flatten().filter_map(std::result::Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), joined, processes, depth + 1);
        }
    }
}

fn hold(pid: i32, joined: &Joined) -> Option<Held<'_>> {
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    let directory = rustix::fs::open(format!("/proc/{pid}"), flags, Mode::empty()).ok()?;
    let stat = openat(&directory, "stat", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let text = read_small(&stat)?;
    // The name in parentheses may hold anything.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let parent = fields.get(1)?.parse().ok()?;
    let threads: u32 = fields.get(17)?.parse().ok()?;
    let started = fields.get(19)?.parse().ok()?;
    let headless = fields.first() == Some(&"Z") && threads > 1;
    let (programs, noted) = (&joined.member.programs, joined.noted.is_some());
    let began = joined.began;
    let (connected, lineage) = (None, Vec::new());
    Some(Held {
        pid,
        programs,
        noted,
        began,
        parent,
        started,
        headless,
        connected,
        lineage,
        directory,
    })
}

fn read_small(file: &OwnedFd) -> Option<String> {
    // procfs gives what fits at once.
    let mut bytes = [0; 4096];
    let length = rustix::io::read(file, &mut bytes).ok()?;
    Some(String::from_utf8_lossy(bytes.get(..length)?).into_owned())
}

/// Whether a process, by any of its threads, holds the socket; `None` when that
/// cannot be told.
fn holds(process: &Held<'_>, wanted: &str) -> Option<bool> {
    if process.headless {
        return None;
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // Threads may have tables of their own (clone(2) without CLONE_FILES).
    let Ok(Ok(tasks)) = openat(&process.directory, "task", flags, Mode::empty()).map(Dir::new)
    else {
        // Ended meanwhile: it holds nothing any more.
        return Some(false);
    };
    let mut held = false;
    for task in tasks.filter_map(std::result::Result::ok) {
        let name = task.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        let descriptors =
            match openat(&process.directory, format!("task/{name}/fd"), flags, Mode::empty()) {
                Ok(descriptors) => descriptors,
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::SRCH) => continue,
                Err(_) => return None,
            };
        let mut seen = 0;
        let listing = Dir::read_from(descriptors.as_fd()).ok()?;
        for entry in listing.filter_map(std::result::Result::ok) {
            seen += 1;
            if seen > MAX_DESCRIPTORS {
                return None;
            }
            let Ok(target) = readlinkat(&descriptors, entry.file_name(), Vec::new()) else {
                continue;
            };
            if target.as_bytes() == wanted.as_bytes() {
                held = true;
            } else if target.as_bytes().starts_with(b"socket:")
                && carries_descriptors(process, &name, &entry.file_name().to_string_lossy())
            {
                // A descriptor parked in a unix socket belongs to whoever
                // takes it out.
                return None;
            }
        }
    }
    Some(held)
}

/// Whether descriptors wait in a unix socket's queue (`scm_fds` of
/// /proc/PID/fdinfo, since Linux 5.8). A socket that cannot be examined any
/// more has been closed.
fn carries_descriptors(process: &Held<'_>, task: &str, descriptor: &str) -> bool {
    let path = format!("task/{task}/fdinfo/{descriptor}");
    let opened = openat(&process.directory, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let Some(text) = opened.ok().as_ref().and_then(read_small) else { return false };
    text.lines()
        .find_map(|line| line.strip_prefix("scm_fds:"))
        .is_some_and(|count| count.trim() != "0")
}

impl Files {
    /// What a process and its ancestors execute; `None` where it executes something else
    /// than when it connected.
    fn describe<'a, H>(
        &mut self,
        process: &Held<'_>,
        ancestors: impl Iterator<Item = H>,
        engine: Option<&Engine>,
    ) -> Option<Process>
    where
        H: std::borrow::Borrow<Held<'a>>,
    {
        let mut found = Process::default();
        let (path, _executed) = self.executable(process, engine, &mut found)?;
        found.binary = path;
        let (mut bytes, mut kin) = (0, 0);
        for held in ancestors.take(MAX_ANCESTORS) {
            let (path, executed) = self.executable(held.borrow(), engine, &mut found)?;
            // Up to the first that is not what it was when the connection was made.
            let same = executed.is_some() && process.lineage.get(kin).copied() == executed;
            if kin == found.ancestors.len() && same {
                kin += 1;
            }
            bytes += path.len();
            if bytes > MAX_LINEAGE {
                break;
            }
            found.ancestors.push(path);
        }
        // Whose connection nobody noted may have been anybody's child.
        found.kin = process.noted.then_some(kin);
        Some(found)
    }

    /// Where the file lies that a process executes. One without a name any more
    /// (deleted, memfd), and one that is not what policy's path meant at the start, is
    /// marked so that no path of a policy can mean it; and what tells it apart. `None`:
    /// see [`Files::describe`].
    fn executable(
        &mut self,
        process: &Held<'_>,
        engine: Option<&Engine>,
        found: &mut Process,
    ) -> Option<(String, Option<Executed>)> {
        // Following the link reaches the very inode that runs; all that is said of it
        // is asked of this one descriptor, for the process may execute another meanwhile.
        let opened =
            openat(&process.directory, "exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let Ok(file) = opened else {
            return process.connected.is_none().then(|| ("(unknown)".to_owned(), None));
        };
        let stat = rustix::fs::fstat(&file).ok()?;
        let changed = (stat.st_ctime, u32::try_from(stat.st_ctime_nsec).unwrap_or(u32::MAX));
        let executed = (stat.st_ino, changed);
        if process.connected.is_some_and(|connected| connected != executed) {
            return None;
        }
        let own = format!("/proc/self/fd/{}", file.as_raw_fd());
        let target = rustix::fs::readlink(&own, Vec::new()).ok()?;
        let mut path = target.to_string_lossy().into_owned();
        if path.len() > MAX_PATH_BYTES {
            return Some(("(too long)".to_owned(), Some(executed)));
        }
        if stat.st_nlink == 0 {
            path.insert_str(0, "(deleted) ");
            return Some((path, Some(executed)));
        }
        let id = file_id(&stat);
        let other = match process.programs.get(&path) {
            Some(known) => id != *known,
            None => self.watched.contains(&path),
        };
        if other {
            path.insert_str(0, CHANGED);
            return Some((path, Some(executed)));
        }
        if self.clock.is_late(changed, process.began) {
            found.late.insert(path.clone());
        }
        if engine.is_some_and(|engine| engine.asks_for_digest(&path))
            && let Some(digest) = self.digest(&own, id)
        {
            found.digests.insert(path.clone(), digest);
        }
        Some((path, Some(executed)))
    }

    /// The digest of an executable, opened anew by its descriptor; `None` where it
    /// cannot be read, is too large, or changes meanwhile.
    fn digest(&mut self, file: &str, own: FileId) -> Option<String> {
        if let Some(digest) = self.digests.get(&own) {
            return Some(digest.clone());
        }
        let (now, size) = (Instant::now(), u64::try_from(own.size).ok()?);
        self.hashed.retain(|(made, _)| now.duration_since(*made) < HASH_PERIOD);
        let lately: u64 = self.hashed.iter().map(|(_, bytes)| *bytes).sum();
        if lately.saturating_add(size) > MAX_HASHED {
            return None;
        }
        self.hashed.push_back((now, size.max(4096)));
        let mut file = fs::File::open(file).ok()?;
        let same =
            |file: &fs::File| rustix::fs::fstat(file).is_ok_and(|stat| file_id(&stat) == own);
        if !same(&file) {
            return None;
        }
        let digest = super::audit::digest_of(&mut (&mut file).take(size)).ok()?;
        if !same(&file) {
            return None;
        }
        let changed = i128::from(own.changed) * 1_000_000_000 + i128::from(own.nanoseconds);
        if since_boot() + ahead() - changed >= SETTLED {
            if self.digests.len() >= MAX_DIGESTS {
                self.digests.clear();
            }
            self.digests.insert(own, digest.clone());
        }
        Some(digest)
    }
}

fn file_id(stat: &rustix::fs::Stat) -> FileId {
    FileId {
        device: stat.st_dev,
        inode: stat.st_ino,
        size: stat.st_size,
        changed: stat.st_ctime,
        nanoseconds: i64::try_from(stat.st_ctime_nsec).unwrap_or(-1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_back_makes_nothing_older() {
        let mut clock = Clock::new();
        let (began, real) = (since_boot(), nanoseconds(clock_gettime(ClockId::Realtime)));
        let at = |nanoseconds: i128| {
            let seconds = i64::try_from(nanoseconds / 1_000_000_000).unwrap();
            (seconds, u32::try_from(nanoseconds % 1_000_000_000).unwrap())
        };
        assert!(!clock.is_late(at(real - 50_000_000), began));
        assert!(clock.is_late(at(real + 50_000_000), began));
        // It was an hour behind for a while: what changed then counts as late.
        clock.ahead -= 3_600_000_000_000;
        assert!(clock.is_late(at(real - 50_000_000), began));
        assert!(!clock.is_late(at(real - 3_700_000_000_000), began));
    }
}
