//! Looking into an image's root file system without ever leaving it.
//!
//! SECURITY: every lookup goes through `openat2(2)` with `RESOLVE_IN_ROOT`
//! (since Linux 5.6), so that symbolic links of the image end inside it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::Read as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nemoclaw_spec::plan::{Ids, ImageView, MakeDirectory, PathFact};
use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, fstat, mkdirat, openat2,
};
use rustix::io::Errno;

/// Largest file read from an image, in bytes.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// Most names read from one directory.
const MAX_NAMES: usize = 50_000;

/// An image's root, held open.
#[derive(Debug)]
pub(crate) struct Image {
    root: OwnedFd,
    path: PathBuf,
    ids: Ids,
    /// What was found before: planning asks for the same paths again and again, and
    /// must get the same answers.
    known: RefCell<HashMap<String, Option<PathFact>>>,
}

impl Image {
    /// Opens the root file system at an absolute path.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let path = std::fs::canonicalize(path)
            .with_context(|| format!("cannot find the root file system {}", path.display()))?;
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let root = rustix::fs::open(&path, flags, Mode::empty())
            .with_context(|| format!("cannot open the root file system {}", path.display()))?;
        Ok(Self { root, path, ids: Ids::default(), known: RefCell::default() })
    }

    /// Tells owners as a container with these ids sees them.
    pub(crate) fn seen_with(mut self, ids: Ids) -> Self {
        self.ids = ids;
        self
    }

    /// The canonical path of the root on the host.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Refuses images whose /dev, /proc or /sys is a symbolic link: what the
    /// runtime makes there would land on the host (class of CVE-2026-41579).
    pub(crate) fn refuse_linked_mount_points(&self) -> Result<()> {
        for name in ["dev", "proc", "sys"] {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match openat2(&self.root, name, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
                Ok(found) => {
                    let kind = FileType::from_raw_mode(fstat(&found)?.st_mode);
                    if kind != FileType::Directory {
                        bail!(
                            "/{name} of the image is no directory but a {}; mend the image",
                            if kind == FileType::Symlink { "symbolic link" } else { "file" }
                        );
                    }
                }
                Err(Errno::NOENT) => {}
                Err(error) => {
                    return Err(error).context(format!("cannot examine /{name} of the image"));
                }
            }
        }
        Ok(())
    }

    fn find(&self, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        self.resolve(path, flags, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
    }

    fn resolve(
        &self,
        path: &str,
        flags: OFlags,
        resolve: ResolveFlags,
    ) -> rustix::io::Result<OwnedFd> {
        let relative = path.trim_start_matches('/');
        let relative = if relative.is_empty() { "." } else { relative };
        openat2(&self.root, relative, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    fn examine(&self, path: &str) -> Option<PathFact> {
        // Without links on the way the path is the real one already.
        let plain = is_plain(path).then(|| {
            self.resolve(path, OFlags::PATH, ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS)
        });
        let (found, host) = match plain {
            Some(Ok(found)) => (found, None),
            Some(Err(Errno::NOENT)) => return None,
            _ => {
                let found = self.find(path, OFlags::PATH).ok()?;
                let link = format!("/proc/self/fd/{}", found.as_raw_fd());
                (found, Some(std::fs::read_link(link).ok()?))
            }
        };
        let stat = fstat(&found).ok()?;
        let inside = match &host {
            Some(host) => host.strip_prefix(&self.path).ok()?.to_str()?,
            None => path.trim_start_matches('/'),
        };
        let (uid, gid) = self.ids.inside(stat.st_uid, stat.st_gid);
        Some(PathFact {
            real: format!("/{inside}"),
            directory: FileType::from_raw_mode(stat.st_mode) == FileType::Directory,
            uid,
            gid,
            mode: stat.st_mode & 0o7777,
        })
    }

    /// Makes a directory in the image and gives it to its owner. One that has
    /// come to exist meanwhile is left as it is.
    pub(crate) fn make_directory(&self, wanted: &MakeDirectory) -> Result<()> {
        let (parent, name) = wanted.path.rsplit_once('/').unwrap_or(("", &wanted.path));
        let parent = self
            .find(parent, OFlags::PATH | OFlags::DIRECTORY)
            .with_context(|| format!("cannot find the parent of {} in the image", wanted.path))?;
        let (uid, gid) = self.ids.outside(wanted.uid, wanted.gid);
        match mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => chownat(
                &parent,
                name,
                Some(Uid::from_raw(uid)),
                Some(Gid::from_raw(gid)),
                AtFlags::SYMLINK_NOFOLLOW,
            )
            .with_context(|| format!("cannot give {} of the image to its user", wanted.path)),
            Err(Errno::EXIST) => Ok(()),
            Err(error) => {
                Err(error).with_context(|| format!("cannot make {} in the image", wanted.path))
            }
        }
    }
}

/// Whether an absolute path has one slash between names, and none at the end, and no
/// name that leads elsewhere than down.
fn is_plain(path: &str) -> bool {
    let names = path.strip_prefix('/').unwrap_or_default();
    !names.is_empty() && names.split('/').all(|name| !matches!(name, "" | "." | ".."))
}

/// Opens for reading what an `O_PATH` descriptor names, if it is a regular file.
///
/// SECURITY: opening a device node acts already (a watchdog starts, a tape
/// rewinds), and opening a named pipe waits: what it is has to be known before.
///
/// # Errors
/// When it cannot be examined or opened.
pub(crate) fn open_regular(found: &OwnedFd) -> std::io::Result<Option<std::fs::File>> {
    if FileType::from_raw_mode(fstat(found)?.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    std::fs::File::open(format!("/proc/self/fd/{}", found.as_raw_fd())).map(Some)
}

impl ImageView for Image {
    fn look(&self, path: &str) -> Option<PathFact> {
        if let Some(known) = self.known.borrow().get(path) {
            return known.clone();
        }
        let fact = self.examine(path);
        self.known.borrow_mut().insert(path.to_owned(), fact.clone());
        fact
    }

    fn read(&self, path: &str) -> Option<String> {
        let found = open_regular(&self.find(path, OFlags::PATH).ok()?).ok().flatten()?;
        let mut bytes = Vec::new();
        found.take(MAX_FILE_BYTES).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn list(&self, path: &str) -> Vec<String> {
        let Ok(found) = self.find(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK)
        else {
            return Vec::new();
        };
        let Ok(directory) = Dir::new(found) else { return Vec::new() };
        directory
            .take(MAX_NAMES)
            .filter_map(Result::ok)
            .filter_map(|entry| entry.file_name().to_str().ok().map(str::to_owned))
            .collect()
    }
}
