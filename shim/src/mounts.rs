//! What is done to, and checked about, a container's mounts after libcontainer
//! has made them and before anything of the user's runs.

use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail};
use nemoclaw_spec::control::FileId;
use nemoclaw_spec::plan::{HostFacts, OwnMount};
use oci_spec::runtime::Spec;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatVfsMountFlags, StatxAttributes,
    StatxFlags, fstat, openat2,
};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{facts, sys, weaken};

/// Compares every bind mount with what was examined before: a path may have
/// come to mean something else in between, and libcontainer mounts by path.
///
/// # Errors
/// When a mount is not what was examined; the container must not start.
pub(crate) fn verify(pid: i32, spec: &Spec, facts: &HostFacts, hidden: &[String]) -> Result<()> {
    let root = root_of(pid)?;
    let mounts: Vec<_> = spec.mounts().iter().flatten().zip(&facts.mounts).collect();
    for (number, (mount, fact)) in mounts.iter().enumerate() {
        let destination = mount.destination();
        let covered =
            mounts.iter().skip(number + 1).any(|(later, _)| later.destination() == destination)
                || hidden.iter().any(|path| Path::new(path) == destination);
        let bind = mount.typ().as_deref() == Some("bind")
            || mount.options().iter().flatten().any(|option| option == "bind" || option == "rbind");
        if !bind || covered {
            continue;
        }
        // It was not there when it was to be examined, and is there now.
        if fact.source.is_empty() {
            bail!(
                "mounts: what is mounted at `{}` could not be examined before; give an absolute source that exists",
                destination.display().to_string().escape_debug(),
            );
        }
        let relative = destination.strip_prefix("/").unwrap_or(destination);
        let found = openat2(
            &root,
            relative,
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        )
        .with_context(|| format!("cannot find the mount {}", destination.display()))?;
        let stat = fstat(&found).context("cannot examine a mount")?;
        if (stat.st_dev, stat.st_ino) != (fact.device, fact.inode) {
            bail!(
                "mounts: `{}` changed while the container was made, or something else is mounted at `{}`; start it again when nobody else changes that path",
                fact.source.escape_debug(),
                destination.display().to_string().escape_debug(),
            );
        }
    }
    Ok(())
}

/// The same for the mounts that the plan makes of parts of others.
///
/// # Errors
/// When one is not what was examined; the container must not start.
pub(crate) fn verify_own(pid: i32, own: &[OwnMount]) -> Result<()> {
    let root = root_of(pid)?;
    for mount in own {
        let found = find(&root, Path::new(&mount.path))
            .with_context(|| format!("cannot find the mount {}", mount.path.escape_debug()))?;
        let stat = fstat(&found).context("cannot examine a mount")?;
        let flags = rustix::fs::fstatvfs(&found)?.f_flag;
        let read_only = flags.contains(StatVfsMountFlags::RDONLY);
        let same = (stat.st_dev, stat.st_ino) == (mount.device, mount.inode);
        if !same || !is_mount_root(&found)? || (mount.read_only && !read_only) {
            bail!(
                "mounts: `{}` changed while the container was made, or something is mounted over it; start it again when nobody else changes that path",
                mount.path.escape_debug(),
            );
        }
    }
    Ok(())
}

/// The container's root directory.
pub(crate) fn root_of(pid: i32) -> Result<OwnedFd> {
    let path = format!("/proc/{pid}/root");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty()).context("cannot open the container's root")
}

/// The program that a path of the container means, by the path that /proc/PID/exe
/// will show, and which file it is now; `None` where there is none.
///
/// # Errors
/// When that cannot be told; the container must not start.
pub(crate) fn program(root: &OwnedFd, path: &str) -> Result<Option<(String, FileId)>> {
    let relative = path.trim_start_matches('/');
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let found = match openat2(root, relative, flags, Mode::empty(), resolve) {
        // The last two: OpenShell takes any text for a path.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG | Errno::INVAL) => {
            return Ok(None);
        }
        found => found.with_context(|| format!("cannot examine `{}`", path.escape_debug()))?,
    };
    let stat = fstat(&found).context("cannot examine a program")?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    // The link of a file in another namespace begins at that one's root (d_path).
    let real = std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd()))
        .context("cannot tell a program's path")?;
    let identity = FileId {
        device: stat.st_dev,
        inode: stat.st_ino,
        size: stat.st_size,
        changed: stat.st_ctime,
        nanoseconds: i64::try_from(stat.st_ctime_nsec).unwrap_or(-1),
    };
    // Policy is UTF-8: it names no other path.
    Ok(real.to_str().map(|real| (real.to_owned(), identity)))
}

/// Whether a file is the root of a mount (statx(2), since Linux 5.8).
fn is_mount_root(found: &OwnedFd) -> rustix::io::Result<bool> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
    let stat = rustix::fs::statx(found, "", flags, StatxFlags::empty())?;
    Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// A path of the container, found without following links of its processes.
fn find(root: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    openat2(root, relative, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// Takes the meaning from device nodes and set-user-ID bits of the image: /dev
/// is a mount of its own. Covers `read_only` paths with read-only mounts of
/// themselves, and makes cgroup v1 read-only, which libcontainer mounts writable
/// (mount.rs).
///
/// # Errors
/// When the kernel refuses; the container must not start.
pub(crate) fn restrict_root(pid: i32, read_only: &[String]) -> Result<()> {
    within(pid, |root| {
        if !weaken::left_away("root_mount") {
            sys::restrict_mount(root.as_fd())
                .context("mounts: the image's root cannot be mounted nodev and nosuid")?;
        }
        for path in read_only {
            find(root, Path::new(path))
                .map_err(anyhow::Error::from)
                .and_then(|found| cover(&found))
                .with_context(|| {
                    format!("mounts: `{}` cannot become read-only", path.escape_debug())
                })?;
        }
        if !facts::cgroup_v1() || weaken::left_away("proc_paths") {
            return Ok(());
        }
        let cgroups = match find(root, Path::new("/sys/fs/cgroup")) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            found => found.context("mounts: cannot find /sys/fs/cgroup")?,
        };
        // Where it is not mounted, what is there is read-only with /sys.
        if is_mount_root(&cgroups)? {
            sys::set_all_read_only(cgroups.as_fd())
                .context("mounts: /sys/fs/cgroup cannot become read-only")?;
        }
        Ok(())
    })
}

/// Makes mounts of the container read-only, or writable: all of them or none. With
/// `force`, a mount that cannot become read-only while somebody writes is covered by
/// a read-only one: who holds a file open can go on writing that file, and no other.
///
/// # Errors
/// Which one cannot be changed, and why.
pub(crate) fn set_read_only(
    pid: i32,
    own: &[&OwnMount],
    read_only: bool,
    force: bool,
) -> Result<()> {
    within(pid, |root| {
        let mut changed: Vec<OwnedFd> = Vec::new();
        let result = own.iter().try_for_each(|mount| {
            let shown = mount.path.escape_debug();
            let found = find(root, Path::new(&mount.path))
                .with_context(|| format!("cannot find `{shown}`"))?;
            let stat = fstat(&found)?;
            if (stat.st_dev, stat.st_ino) != (mount.device, mount.inode) {
                bail!("`{shown}` is no longer the directory it was at the start");
            }
            if let Err(error) = sys::set_read_only(found.as_fd(), read_only) {
                if error.raw_os_error() == Some(nix::libc::EBUSY) && read_only && force {
                    return cover(&found).with_context(|| format!("cannot cover `{shown}`"));
                }
                return Err(match error.raw_os_error() {
                    Some(nix::libc::EBUSY) => {
                        anyhow!("a process holds a file in `{shown}` open for writing")
                    }
                    _ => anyhow!(error).context(format!("cannot change the mount `{shown}`")),
                });
            }
            changed.push(found);
            Ok(())
        });
        if result.is_err() {
            for found in &changed {
                sys::set_read_only(found.as_fd(), !read_only).context("cannot undo a change")?;
            }
        }
        result
    })
}

/// Mounts a read-only clone of a directory over it, with what is mounted below it.
fn cover(found: &OwnedFd) -> Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let clone = open_tree(found, "", flags)?;
    sys::seal_mount(clone.as_fd())?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&clone, "", found, "", flags)?;
    Ok(())
}

/// Whether a mount of the container is read-only.
pub(crate) fn is_read_only(pid: i32, path: &str) -> Result<bool> {
    let found = find(&root_of(pid)?, Path::new(path))
        .with_context(|| format!("cannot find `{}`", path.escape_debug()))?;
    Ok(rustix::fs::fstatvfs(&found)?.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// Does something in the container's mount namespace, from a thread with root and
/// directory of its own; the rest of the runtime stays where it is.
fn within<T: Send>(pid: i32, work: impl FnOnce(&OwnedFd) -> Result<T> + Send) -> Result<T> {
    let path = format!("/proc/{pid}/ns/mnt");
    let namespace = File::open(&path).with_context(|| format!("cannot open {path}"))?;
    let root = root_of(pid)?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)
                .context("cannot part from the runtime's directory")?;
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))
                .context("cannot enter the container's mounts")?;
            work(&root)
        });
        thread
            .join()
            .unwrap_or_else(|_panic| bail!("the thread in the container's mounts ended early"))
    })
}
