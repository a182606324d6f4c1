//! Watching a running sandbox's files from outside: changes of what the person's
//! own tools run later become findings, and private files keep their modes.
//!
//! One small process for each container that has something to watch. It ends with
//! the container's init; `delete` is the backstop. It reads hostile files: no link
//! is followed, nothing but regular files is opened, everything is bounded.

mod findings;
mod snapshot;
mod tree;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use caps::{CapSet, Capability, CapsHashSet};
use nemoclaw_spec::plan::GuardPlan;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use serde::{Deserialize, Serialize};

pub(crate) use findings::{Finding, add as add_finding, add_record};
use snapshot::Snapshot;
use tree::Tree;

use crate::store::{self, Entry, start_time};
use crate::sys::{self, Fork};
use crate::{mounts, proxy};

/// Changes that come within this time are looked at together.
const PAUSE: Duration = Duration::from_millis(100);
/// How often everything is looked at although no event came: a mount or a limit
/// of inotify(7) may hide one.
const SECONDS: i64 = 5;
/// How often one path is told of before the end.
const MOST_TOLD: usize = 20;
/// Most changes told of one look, and most paths told of before the end.
const MOST_AT_ONCE: usize = 64;
const MOST_PATHS: usize = 1024;
/// Most directories watched by events.
const MOST_WATCHED: usize = 256;
/// How often everything is read anew.
const FULL_LOOK: Duration = Duration::from_secs(5);
/// What the watcher keeps of root's powers: to read and to change modes.
const KEPT: [Capability; 3] =
    [Capability::CAP_DAC_OVERRIDE, Capability::CAP_DAC_READ_SEARCH, Capability::CAP_FOWNER];

/// The watcher of a container.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Watcher {
    pid: i32,
    start_time: u64,
}

/// Sets private modes, and starts watching where there is something to watch.
///
/// # Errors
/// When it cannot be watched; the container must not start.
pub(crate) fn start(entry: &Entry, init: i32, sandbox: &str, plan: &GuardPlan) -> Result<()> {
    if plan.watched.is_empty() && plan.private.is_empty() {
        return Ok(());
    }
    let root = mounts::root_of(init)?;
    let mut guard = Guard {
        id: entry.id.clone(),
        private: plan.private.clone(),
        workspaces: Vec::new(),
        root: Tree::new(root.try_clone()?),
    };
    for path in &plan.watched {
        let tree = guard.root.below(path).context("cannot open a mounted workspace")?;
        let seen = Snapshot::take(&tree, path);
        let (first, told) = (seen.clone(), HashMap::new());
        guard.workspaces.push(Workspace { path: path.clone(), tree, first, seen, told, untold: 0 });
    }
    guard.keep_private()?;
    let init = rustix::process::Pid::from_raw(init).context("the container has no init")?;
    let init = rustix::process::pidfd_open(init, rustix::process::PidfdFlags::empty())
        .context("cannot watch the container's init")?;
    let (mut ready, tell) = std::io::pipe()?;
    match sys::fork().context("cannot fork")? {
        Fork::Child => {
            if guard.alone(&init, tell).is_ok() {
                guard.run(&init);
            }
            sys::exit_now(0);
        }
        Fork::Parent(pid) => {
            drop(tell);
            ready.read_exact(&mut [0]).context("the watcher of files cannot start")?;
            proxy::confine(sandbox, pid.cast_unsigned());
            let watcher = Watcher { pid, start_time: start_time(pid).unwrap_or_default() };
            store::write_file(&file_of(entry), &serde_json::to_vec(&watcher)?)
        }
    }
}

fn file_of(entry: &Entry) -> std::path::PathBuf {
    entry.directory.join("watcher.json")
}

/// Ends the watcher of a container that is gone; it ends by itself in time.
pub(crate) fn end(entry: &Entry) {
    let Ok(text) = fs::read(file_of(entry)) else { return };
    let Ok(watcher) = serde_json::from_slice::<Watcher>(&text) else { return };
    let alive = || start_time(watcher.pid) == Some(watcher.start_time);
    // It has a last look to take.
    for _try in 0..1500 {
        if !alive() {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    if alive() {
        let pid = nix::unistd::Pid::from_raw(watcher.pid);
        let _ended = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    }
}

/// Whether the watcher of a container runs; `None` where it needs none.
pub(crate) fn alive(entry: &Entry) -> Option<bool> {
    let text = fs::read(file_of(entry)).ok()?;
    let watcher: Watcher = serde_json::from_slice(&text).ok()?;
    Some(start_time(watcher.pid) == Some(watcher.start_time))
}

struct Workspace {
    path: String,
    tree: Tree,
    first: Snapshot,
    seen: Snapshot,
    /// How often each path was told of.
    told: HashMap<String, usize>,
    /// Changes that were not told when they came.
    untold: usize,
}

impl Workspace {
    /// Tells of what changed since the last look; of paths that change and change,
    /// only at the end.
    fn look(&mut self, id: &str, trust: bool) {
        let now = Snapshot::again(&self.tree, &self.path, &self.seen, trust);
        let changes = self.seen.changes(&now);
        let untold = changes.len().saturating_sub(MOST_AT_ONCE);
        for mut finding in changes.into_iter().take(MOST_AT_ONCE) {
            if self.told.len() >= MOST_PATHS && !self.told.contains_key(&finding.path) {
                self.untold += 1;
                continue;
            }
            let times = self.told.entry(finding.path.clone()).or_default();
            *times += 1;
            if *times > MOST_TOLD {
                continue;
            }
            if *times == MOST_TOLD {
                finding.detail.push_str("; further changes of this path are told at the end");
            }
            add_finding(id, &finding);
        }
        self.untold += untold;
        self.seen = now;
    }

    /// What became of the paths that changed too often.
    fn conclude(&mut self, id: &str) {
        self.look(id, false);
        if self.untold > 0 {
            let told = format!("{} changes were not told one by one", self.untold);
            add_finding(id, &Finding::new(&self.path, "many changes", told));
        }
        for mut finding in self.first.changes(&self.seen).into_iter().take(MOST_PATHS) {
            if self.told.get(&finding.path).is_none_or(|times| *times > MOST_TOLD) {
                finding.detail.push_str("; in the end, after many changes");
                add_finding(id, &finding);
            }
        }
    }
}

struct Guard {
    id: String,
    private: Vec<String>,
    workspaces: Vec<Workspace>,
    root: Tree,
}

impl Guard {
    /// Parts from the engine: its descriptors, session, terminal and rights.
    fn alone(&self, init: &OwnedFd, mut tell: std::io::PipeWriter) -> Result<()> {
        rustix::process::setsid()?;
        let null = fs::File::options().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(&null)?;
        drop(null);
        let mut kept: Vec<BorrowedFd<'_>> = vec![init.as_fd(), self.root.as_fd(), tell.as_fd()];
        kept.extend(self.workspaces.iter().map(|workspace| workspace.tree.as_fd()));
        sys::close_all_but(&kept)?;
        std::env::set_current_dir("/")?;
        rustix::thread::set_name(c"nemoclaw-files")?;
        let kept: CapsHashSet = KEPT.into_iter().collect();
        for set in [CapSet::Inheritable, CapSet::Ambient] {
            caps::clear(None, set)?;
        }
        caps::set(None, CapSet::Effective, &kept)?;
        caps::set(None, CapSet::Permitted, &kept)?;
        nix::sys::prctl::set_no_new_privs()?;
        // Work that the sandbox causes must not slow the host down.
        rustix::process::nice(10)?;
        tell.write_all(b"y")?;
        Ok(())
    }

    /// Looks again whenever something changed, until the container's init ends.
    fn run(&mut self, init: &OwnedFd) {
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK);
        let mut watched = HashSet::new();
        let mut read = Instant::now();
        loop {
            if let Ok(watch) = &watch {
                self.observe(watch, &mut watched);
            }
            // What changed while the directories were being added is seen here. A
            // store to a shared mapping raises no event: everything is read anew
            // from time to time.
            let trust = read.elapsed() < FULL_LOOK;
            self.look(trust);
            if !trust {
                read = Instant::now();
            }
            let mut polled = vec![PollFd::new(init, PollFlags::IN)];
            polled.extend(watch.as_ref().ok().map(|watch| PollFd::new(watch, PollFlags::IN)));
            let seconds = if watch.is_ok() { SECONDS } else { 1 };
            let timeout = Timespec { tv_sec: seconds, tv_nsec: 0 };
            let _waited = poll(&mut polled, Some(&timeout));
            if polled.first().is_some_and(|init| !init.revents().is_empty()) {
                // The container's mounts are gone, but for those held open.
                for workspace in &mut self.workspaces {
                    workspace.conclude(&self.id);
                }
                return;
            }
            std::thread::sleep(PAUSE);
            if let Ok(watch) = &watch {
                let mut buffer = [0; 8 * 1024];
                while rustix::io::read(watch, &mut buffer).is_ok_and(|length| length > 0) {}
            }
        }
    }

    fn look(&mut self, trust: bool) {
        for workspace in &mut self.workspaces {
            workspace.look(&self.id, trust);
        }
        if let Err(error) = self.keep_private() {
            let told = format!("{error:#}");
            add_finding(&self.id, &Finding::new("private modes", "cannot be kept", told));
        }
    }

    /// Takes the rights of group and others from what policy keeps private.
    fn keep_private(&self) -> Result<()> {
        for pattern in &self.private {
            for changed in self.root.make_private(pattern)? {
                let told = format!("mode {:o} became {:o}", changed.before, changed.after);
                add_finding(&self.id, &Finding::new(&changed.path, "made private", told));
            }
        }
        Ok(())
    }

    /// Watches the directories there are now, and those only: watches are counted
    /// for the host's root.
    fn observe(&self, watch: &OwnedFd, watched: &mut HashSet<i32>) {
        let mask = inotify::WatchFlags::CLOSE_WRITE
            | inotify::WatchFlags::MODIFY
            | inotify::WatchFlags::ATTRIB
            | inotify::WatchFlags::CREATE
            | inotify::WatchFlags::DELETE
            | inotify::WatchFlags::MOVE
            | inotify::WatchFlags::ONLYDIR;
        let directories = self
            .workspaces
            .iter()
            .flat_map(|workspace| workspace.seen.directories(&workspace.tree))
            .chain(self.private.iter().flat_map(|pattern| self.root.directories_of(pattern)));
        let now: HashSet<i32> = directories
            .take(MOST_WATCHED)
            .filter_map(|directory| {
                let path = tree::path_of(&directory);
                inotify::add_watch(watch, Path::new(&path), mask).ok()
            })
            .collect();
        for old in watched.difference(&now) {
            let _gone = inotify::remove_watch(watch, *old);
        }
        *watched = now;
    }
}
