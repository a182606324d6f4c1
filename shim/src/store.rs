//! What the runtime remembers of its containers, beside (never in)
//! libcontainer's own state, which libcontainer removes as a whole.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use libcontainer::container::Container;
use nemoclaw_spec::plan::Plan;
use serde::{Deserialize, Serialize};

use crate::{cgroups, facts};

/// Version of [`Record`].
pub(crate) const VERSION: u32 = 1;
/// Everything volatile.
pub(crate) const RUN: &str = nemoclaw_spec::control::RUN;

/// One container as we know it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) version: u32,
    pub(crate) id: String,
    /// The engine's bundle; libcontainer knows the shadow bundle only.
    pub(crate) bundle: PathBuf,
    /// The image's root on the host.
    pub(crate) rootfs: PathBuf,
    /// Pid of init in the host's view; 0 until it exists.
    pub(crate) pid: i32,
    /// Start time of init (proc(5), field 22), which tells a reused pid.
    pub(crate) start_time: u64,
    /// RFC 3339.
    pub(crate) created: String,
    /// Directory of the sandbox; none under a policy that needs no proxy.
    pub(crate) sandbox: Option<PathBuf>,
    pub(crate) confined: bool,
    /// Whether this container is the first of its sandbox, whose name files
    /// count.
    #[serde(default)]
    pub(crate) first: bool,
    /// Whether the network namespace was locked and the proxy put in charge;
    /// nothing runs in a confined container before.
    #[serde(default)]
    pub(crate) locked: bool,
    /// The container's path among cgroups, where more than libcgroups' own
    /// hierarchies have it.
    #[serde(default)]
    pub(crate) cgroup: Option<String>,
    /// Its path in the hierarchy that limits processes.
    #[serde(default)]
    pub(crate) pids_group: Option<String>,
    pub(crate) systemd_cgroup: bool,
    pub(crate) annotations: std::collections::HashMap<String, String>,
}

/// A process that proved its Landlock domain before it became the user's.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Executor {
    /// Pid in the host's view.
    pub(crate) pid: i32,
    /// Start time (proc(5), field 22).
    pub(crate) start_time: u64,
    /// What Landlock enforces.
    pub(crate) landlock: String,
}

/// Where one container's files are.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// `--root`/ID, libcontainer's.
    pub(crate) container: PathBuf,
    /// Ours.
    pub(crate) directory: PathBuf,
    pub(crate) id: String,
}

/// Refuses ids that are paths or could be mistaken for options.
pub(crate) fn check_id(id: &str) -> Result<()> {
    let fine = !id.is_empty()
        && id.len() <= 1024
        && id != "."
        && id != ".."
        && !id.starts_with('-')
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-._".contains(&b));
    if !fine {
        bail!("invalid container id `{}`: use letters, digits and `+-._`", id.escape_debug());
    }
    Ok(())
}

impl Record {
    /// Takes note of init and its cgroups.
    pub(crate) fn born(&mut self, pid: i32) {
        self.pid = pid;
        self.start_time = start_time(pid).unwrap_or_default();
        self.pids_group = cgroups::of(pid, "pids");
        self.cgroup = cgroups::path_of(pid).filter(|_| facts::cgroup_v1());
        if let Some(path) = &self.cgroup {
            cgroups::join(pid, path);
        }
    }

    /// Refuses a container whose creation was cut short.
    pub(crate) fn require_locked(&self) -> Result<()> {
        if self.locked {
            return Ok(());
        }
        bail!(
            "container {0} was never confined completely: its creation was interrupted; delete it and create it anew: nemoclaw delete --force {0}",
            self.id
        )
    }
}

impl Entry {
    pub(crate) fn new(root: &Path, id: &str) -> Result<Self> {
        check_id(id)?;
        Ok(Self {
            container: root.join(id),
            directory: containers(root).join(id),
            id: id.to_owned(),
        })
    }

    /// Makes our directory; fails if the container exists.
    pub(crate) fn make(&self) -> Result<()> {
        if self.container.exists() {
            bail!("container with given ID already exists: {}", self.id);
        }
        // Left by a runtime that died before its container existed.
        if self.directory.exists() {
            fs::remove_dir_all(&self.directory)
                .with_context(|| format!("cannot remove the stale {}", self.directory.display()))?;
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)
            .with_context(|| format!("cannot make {}", self.directory.display()))
    }

    pub(crate) fn save(&self, record: &Record) -> Result<()> {
        write_file(&self.directory.join("record.json"), &serde_json::to_vec(record)?)
    }

    pub(crate) fn record(&self) -> Result<Record> {
        read_json(&self.directory.join("record.json"))
            .with_context(|| format!("container {} does not exist", self.id))
    }

    pub(crate) fn save_plan(&self, plan: &Plan) -> Result<()> {
        write_file(&self.directory.join("plan.json"), &serde_json::to_vec(plan)?)
    }

    pub(crate) fn plan(&self) -> Result<Plan> {
        let mut plan: Plan = read_json(&self.directory.join("plan.json"))?;
        if plan.version < 2 {
            // Older plans did not say it.
            plan.filter.root_possible = plan.allow_root || plan.identity.uid == 0;
        }
        if plan.version > nemoclaw_spec::plan::VERSION {
            bail!("the container was created by a newer nemoclaw (plan version {})", plan.version);
        }
        Ok(plan)
    }

    /// Records a process whose executor proved that Landlock holds it.
    pub(crate) fn add_executor(&self, executor: &Executor) -> Result<()> {
        const COMPACTED_FROM: u64 = 64 * 1024;
        let path = self.directory.join("executors.jsonl");
        if fs::metadata(&path).is_ok_and(|metadata| metadata.len() > COMPACTED_FROM) {
            let alive = self.executors().into_iter();
            let alive = alive.filter(|known| start_time(known.pid) == Some(known.start_time));
            let lines: Result<Vec<String>, _> =
                alive.map(|known| serde_json::to_string(&known).map(|line| line + "\n")).collect();
            write_file(&path, lines?.concat().as_bytes())?;
        }
        let mut line = serde_json::to_vec(executor)?;
        line.push(b'\n');
        // One write of less than a page: lines of several runtimes do not mix.
        fs::OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(&line))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Processes recorded so far.
    pub(crate) fn executors(&self) -> Vec<Executor> {
        let text = fs::read_to_string(self.directory.join("executors.jsonl")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Libcontainer's view of the container.
    pub(crate) fn load(&self) -> Result<Container> {
        if !self.container.exists() {
            bail!("container {} does not exist", self.id);
        }
        Container::load(self.container.clone())
            .with_context(|| format!("cannot read the state of container {}", self.id))
    }

    /// Removes our files; gone already is fine.
    pub(crate) fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.directory.display()))
            }
            _ => {
                // The directory of a root without containers; it may have some.
                let _removed = self.directory.parent().map(fs::remove_dir);
                Ok(())
            }
        }
    }
}

/// Our directory for the containers of one `--root`.
pub(crate) fn containers(root: &Path) -> PathBuf {
    // FNV-1a: only has to tell roots apart, and to stay what it is.
    let hash =
        root.as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
    Path::new(RUN).join("containers").join(format!("{hash:016x}"))
}

/// Writes a file so that a reader sees the old or the new text, never half.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let new = path.with_extension("new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .with_context(|| format!("cannot write {}", new.display()))?;
    file.write_all(bytes).with_context(|| format!("cannot write {}", new.display()))?;
    fs::rename(&new, path).with_context(|| format!("cannot write {}", path.display()))
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("cannot understand {}", path.display()))
}

/// Start time of a process in clock ticks since boot (proc(5), field 22).
pub(crate) fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold spaces and parentheses.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}
