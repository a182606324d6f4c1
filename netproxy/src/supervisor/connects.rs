//! The kernel's notes of who connects: the programs are loaded while the supervisor
//! still may, and attached to each container's cgroup before anything of the user's
//! runs there. Where the kernel does not allow it, sockets are looked for among the
//! processes alone.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use nemoclaw_spec::connects::{KEY_BYTES, Layout, NOTE_BYTES, Note, program};
use serde::{Deserialize, Serialize};

use crate::sys;

/// `BPF_CGROUP_INET4_CONNECT` and `BPF_CGROUP_INET6_CONNECT`.
const ATTACHED_AS: [u32; 2] = [10, 11];
/// Notes kept by the kernel, 320 bytes each. One is needed from connect(2) until the
/// connection is decided: for as long as it waits in the listener's queue.
const NOTES: u32 = 2048;
/// Notes kept here, of connections that are decided again for each request.
const REMEMBERED: usize = 1024;
/// The kernel's description of its types, and the most of it that is read.
const BTF: &str = "/sys/kernel/btf/vmlinux";
const MAX_BTF: u64 = 64 * 1024 * 1024;

/// Loaded programs and the map they write.
#[derive(Debug)]
pub(super) struct Connects {
    layout: Layout,
    map: OwnedFd,
    programs: [OwnedFd; 2],
    remembered: RefCell<VecDeque<(u64, Note)>>,
}

/// A group whose processes' connections are noted.
#[derive(Debug)]
pub(super) struct Group {
    /// As notes name it.
    pub(super) id: u64,
    /// As /proc/PID/cgroup names it.
    pub(super) path: String,
}

impl Connects {
    /// Loads the programs.
    ///
    /// # Errors
    /// Where the kernel is too old, does not describe its types, or forbids it.
    pub(super) fn load(run: &Path) -> Result<Self> {
        // Notes have pids of the first namespace (PROC_PID_INIT_INO).
        if fs::metadata("/proc/self/ns/pid").map_or(0, |own| own.ino()) != 0xefff_fffc {
            bail!("this is not the first pid namespace of the host");
        }
        let layout = layout(run)?;
        let value = u32::try_from(NOTE_BYTES).unwrap_or(u32::MAX);
        let map = sys::bpf_map(KEY_BYTES, value, NOTES).context("cannot make a BPF map")?;
        let code = program(&layout, std::os::fd::AsRawFd::as_raw_fd(&map));
        let load = |kind| sys::bpf_load(&code, kind).context("the kernel takes no BPF program");
        let [first, second] = ATTACHED_AS;
        let programs = [load(first)?, load(second)?];
        Ok(Self { layout, map, programs, remembered: RefCell::default() })
    }

    /// Watches a container's cgroup from now on.
    ///
    /// # Errors
    /// Where the kernel refuses, or the container has no group of its own in cgroup v2.
    pub(super) fn watch(&self, pid: i32) -> Result<Group> {
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let path = unified(&cgroup).filter(|path| *path != "/");
        let path = path.context("it has no cgroup of its own in cgroup v2")?.to_owned();
        let directory = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            .into_iter()
            .map(|root| Path::new(root).join(path.trim_start_matches('/')))
            .find(|group| group.join("cgroup.type").exists())
            .context("its cgroup cannot be found")?;
        let group = File::open(&directory)
            .with_context(|| format!("cannot open {}", directory.display()))?;
        for (program, kind) in self.programs.iter().zip(ATTACHED_AS) {
            sys::bpf_attach(group.as_fd(), program, kind).context("cannot attach to the cgroup")?;
        }
        // A cgroup's id is its directory's inode (kernfs_ino, since Linux 5.5).
        Ok(Group { id: group.metadata()?.ino(), path })
    }

    /// Who connected the socket with this cookie. `again`: it will be asked later too.
    pub(super) fn note(&self, cookie: u64, again: bool) -> Option<Note> {
        let mut remembered = self.remembered.borrow_mut();
        let found = sys::bpf_look_up::<NOTE_BYTES>(&self.map, cookie);
        let Some(note) = found.and_then(|bytes| Note::read(&bytes, &self.layout)) else {
            return remembered.iter().find(|(own, _)| *own == cookie).map(|(_, note)| note.clone());
        };
        if again && !remembered.iter().any(|(own, _)| *own == cookie) {
            remembered.truncate(REMEMBERED - 1);
            remembered.push_front((cookie, note.clone()));
        }
        Some(note)
    }
}

/// The path of a process in the hierarchy of cgroup v2, of its /proc/PID/cgroup.
pub(super) fn unified(cgroup: &str) -> Option<&str> {
    cgroup.lines().find_map(|line| line.strip_prefix("0::"))
}

/// Which fields a kept layout has.
const FORM: u32 = 2;

/// The layout as it is kept until the next start of the host.
#[derive(Serialize, Deserialize)]
struct Kept {
    kernel: String,
    layout: Layout,
}

/// Where the running kernel keeps things; reading it out of the kernel's description
/// takes milliseconds, so it is kept beside the sandboxes, where only root writes.
fn layout(run: &Path) -> Result<Layout> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version = fs::read_to_string("/proc/sys/kernel/version").unwrap_or_default();
    let kernel = format!("{FORM}: {release}{version}");
    let path = run.join("kernel-layout.json");
    let kept = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Kept>(&bytes).ok());
    if let Some(kept) = kept.filter(|kept| kept.kernel == kernel) {
        return Ok(kept.layout);
    }
    let file = File::open(BTF).with_context(|| format!("cannot open {BTF}"))?;
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(file, MAX_BTF), &mut bytes)
        .with_context(|| format!("cannot read {BTF}"))?;
    let layout = Layout::find(&bytes).context("the kernel's description lacks what is needed")?;
    // Only saves the next one the time.
    let _kept = keep(&path, &Kept { kernel, layout: layout.clone() });
    Ok(layout)
}

fn keep(path: &Path, kept: &Kept) -> Result<()> {
    let new = path.with_extension(format!("json.{}", std::process::id()));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(&serde_json::to_vec(kept)?)?;
    fs::rename(&new, path)?;
    Ok(())
}
