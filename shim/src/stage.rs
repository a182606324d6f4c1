//! A mount namespace of the runtime's own, in which sources of mounts are
//! prepared before libcontainer takes them by path. The host sees nothing of it.

use std::fs::{self, DirBuilder, File};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nemoclaw_spec::plan::{IdMap, exchange_ids};
use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use oci_spec::runtime::Spec;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::sys::{self, Fork};

/// Where prepared mounts hang, in that namespace only. Not below our state, which
/// the ids of a user namespace could not pass.
const PLACE: &str = "/run/nemoclaw-stage";

/// While it lives, this process is in the namespace.
#[derive(Debug)]
pub(crate) struct Stage {
    namespace: File,
    root: OwnedFd,
    directory: OwnedFd,
    moved: Vec<Moved>,
}

/// A source that stands elsewhere while the container is made.
#[derive(Debug)]
struct Moved {
    source: PathBuf,
    place: PathBuf,
    /// The mount for which alone it counts; any where `None`.
    destination: Option<PathBuf>,
}

impl Stage {
    /// Enters a new namespace that follows the host's mounts.
    pub(crate) fn enter() -> Result<Self> {
        let open = |path: &str| {
            rustix::fs::open(
                path,
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )
        };
        let namespace =
            File::open("/proc/self/ns/mnt").context("cannot open the mount namespace")?;
        let (root, directory) = (open("/")?, open(".")?);
        match DirBuilder::new().mode(0o711).create(PLACE) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(error).context(format!("cannot make {PLACE}"));
            }
            _ => {}
        }
        nix::sched::unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
        let stage = Self { namespace, root, directory, moved: Vec::new() };
        let none: Option<&str> = None;
        nix::mount::mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
            .context("cannot part from the host's mounts")?;
        let options = Some("mode=711,size=64k");
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        nix::mount::mount(Some("tmpfs"), PLACE, Some("tmpfs"), flags, options)
            .with_context(|| format!("cannot mount {PLACE}"))?;
        Ok(stage)
    }

    /// Clones what is mounted at `source`, with other ids where `map` says so. False:
    /// the file system cannot exchange ids.
    pub(crate) fn prepare(&mut self, source: &Path, map: Option<&IdMap>) -> Result<bool> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE;
        let tree = open_tree(CWD, source, flags)
            .with_context(|| format!("cannot clone the mount of {}", source.display()))?;
        if let Some(map) = map {
            let namespace = user_namespace(map)?;
            match sys::set_ids(tree.as_fd(), namespace.as_fd()) {
                Err(error) if error.raw_os_error() == Some(nix::libc::EINVAL) => return Ok(false),
                result => result.context("cannot exchange the ids of a mount")?,
            }
        }
        let place = Path::new(PLACE).join(self.moved.len().to_string());
        if fs::metadata(source)?.is_dir() {
            DirBuilder::new().mode(0o711).create(&place)
        } else {
            File::create(&place).map(drop)
        }
        .with_context(|| format!("cannot make {}", place.display()))?;
        move_mount(&tree, "", CWD, &place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .with_context(|| format!("cannot mount {}", place.display()))?;
        let destination = map.map(|map| PathBuf::from(&map.path));
        self.moved.push(Moved { source: source.to_owned(), place, destination });
        // The longest first: parts of a mount are prepared with it.
        self.moved.sort_by_key(|own| std::cmp::Reverse(own.source.as_os_str().len()));
        Ok(true)
    }

    /// Where the source of a mount at `destination` stands now.
    pub(crate) fn place_of(&self, source: &Path, destination: &Path) -> Option<PathBuf> {
        self.moved.iter().find_map(|own| {
            let rest = source.strip_prefix(&own.source).ok()?;
            let counts =
                own.destination.as_ref().is_none_or(|place| destination.starts_with(place));
            let whole = rest.as_os_str().is_empty();
            counts.then(|| if whole { own.place.clone() } else { own.place.join(rest) })
        })
    }

    /// Lets the mounts of a spec take what was prepared.
    pub(crate) fn redirect(&self, spec: &mut Spec) {
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        for mount in &mut mounts {
            let source = mount.source().clone().filter(|source| source.is_absolute());
            let real = source.map(|source| fs::canonicalize(&source).unwrap_or(source));
            let place = real.and_then(|source| self.place_of(&source, mount.destination()));
            if place.is_some() {
                mount.set_source(place);
            }
        }
        spec.set_mounts(Some(mounts));
    }

    /// Goes back to the host's mounts.
    pub(crate) fn leave(self) -> Result<()> {
        self.back().context("cannot return to the host's mounts")
    }

    fn back(&self) -> Result<()> {
        move_into_link_name_space(self.namespace.as_fd(), Some(LinkNameSpaceType::Mount))?;
        // Entering sets root and directory to those of the namespace.
        rustix::process::fchdir(&self.root)?;
        rustix::process::chroot(".")?;
        rustix::process::fchdir(&self.directory)?;
        Ok(())
    }
}

/// A user namespace in which the two identities are exchanged.
fn user_namespace(map: &IdMap) -> Result<File> {
    let (mut ready, tell) = std::io::pipe()?;
    let (wait, release) = std::io::pipe()?;
    let child = match sys::fork().context("cannot fork")? {
        Fork::Child => {
            drop((ready, release));
            let made = nix::sched::unshare(CloneFlags::CLONE_NEWUSER).is_ok();
            let _told = (&tell).write_all(if made { b"y" } else { b"n" });
            drop(tell);
            let _ended = (&wait).read(&mut [0]);
            sys::exit_now(0);
        }
        Fork::Parent(pid) => pid,
    };
    drop((tell, wait));
    let mut answer = [0];
    let result = ready
        .read_exact(&mut answer)
        .context("the process of a user namespace ended early")
        .and_then(|()| {
            if answer != *b"y" {
                bail!("this host makes no user namespaces (user.max_user_namespaces?)");
            }
            let write = |name: &str, text: String| {
                let path = format!("/proc/{child}/{name}");
                fs::write(&path, text).with_context(|| format!("cannot write {path}"))
            };
            write("uid_map", exchange_ids(map.host.0, map.container.0))?;
            write("gid_map", exchange_ids(map.host.1, map.container.1))?;
            File::open(format!("/proc/{child}/ns/user")).context("cannot open a user namespace")
        });
    drop(release);
    let _reaped = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child), None);
    result
}
