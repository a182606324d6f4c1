//! A directory of the container, looked into from outside.
//!
//! SECURITY: every lookup is `openat2(2)` within the directory and without links;
//! what is opened for reading is known to be a regular file, and is opened without
//! waiting (a lease of the sandbox's would make it wait, fcntl(2)).

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use anyhow::{Context as _, Result};
use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, Stat, chmod, fstat, openat2};
use rustix::io::Errno;

/// Most names read from one directory.
const MAX_NAMES: usize = 1024;
/// Most paths that one pattern names.
const MAX_PATHS: usize = 1024;
/// Greatest depth below a private directory.
const MAX_DEPTH: usize = 6;

/// The directory.
#[derive(Debug)]
pub(super) struct Tree(OwnedFd);

/// A mode that was changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Changed {
    pub(super) path: String,
    pub(super) before: u32,
    pub(super) after: u32,
}

/// The path by which the kernel knows an open file.
pub(super) fn path_of(file: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

impl AsFd for Tree {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Tree {
    pub(super) fn new(directory: OwnedFd) -> Self {
        Self(directory)
    }

    /// A directory of this one.
    pub(super) fn below(&self, path: &str) -> Result<Self> {
        self.open(path, OFlags::PATH | OFlags::DIRECTORY)
            .map(Self)
            .with_context(|| format!("cannot open `{}`", path.escape_debug()))
    }

    fn open(&self, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let relative = path.trim_start_matches('/');
        let relative = if relative.is_empty() { "." } else { relative };
        let resolve =
            ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        openat2(&self.0, relative, flags, Mode::empty(), resolve)
    }

    /// What stands at a path, links included.
    pub(super) fn look(&self, path: &str) -> Option<(OwnedFd, Stat)> {
        let found = self.open(path, OFlags::PATH).ok()?;
        let stat = fstat(&found).ok()?;
        Some((found, stat))
    }

    /// Opens for reading what [`Tree::look`] found, if it is a regular file.
    pub(super) fn read(found: &OwnedFd, stat: &Stat) -> Option<File> {
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return None;
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        rustix::fs::open(path_of(found), flags, Mode::empty()).ok().map(File::from)
    }

    /// Names in a directory, in order, and whether these are all: a name that is no
    /// text, or one too many, is missing.
    pub(super) fn names(&self, path: &str) -> (Vec<String>, bool) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK;
        let Ok(directory) = self.open(path, flags) else { return (Vec::new(), true) };
        let Ok(entries) = Dir::new(directory) else { return (Vec::new(), false) };
        let mut names = Vec::new();
        let mut all = true;
        for entry in entries {
            match entry.as_ref().map(|entry| entry.file_name().to_str()) {
                Ok(Ok("." | "..")) => {}
                Ok(Ok(name)) if names.len() < MAX_NAMES => names.push(name.to_owned()),
                Ok(Err(_)) => all = false,
                Ok(Ok(_)) | Err(_) => {
                    all = false;
                    break;
                }
            }
        }
        names.sort_unstable();
        (names, all)
    }

    /// A directory, opened to be watched.
    pub(super) fn directory(&self, path: &str) -> Option<OwnedFd> {
        self.open(path, OFlags::PATH | OFlags::DIRECTORY).ok()
    }

    /// Paths that a pattern names, where `*` stands for any part of one name.
    pub(super) fn matching(&self, pattern: &str) -> Vec<String> {
        let mut paths = vec![String::new()];
        for part in pattern.split('/').filter(|part| !part.is_empty()) {
            let mut next = Vec::new();
            for path in paths {
                if !part.contains('*') {
                    next.push(format!("{path}/{part}"));
                    continue;
                }
                let names = self.names(&path).0.into_iter().filter(|name| fits(part, name));
                next.extend(names.map(|name| format!("{path}/{name}")));
                if next.len() >= MAX_PATHS {
                    break;
                }
            }
            next.truncate(MAX_PATHS);
            paths = next;
        }
        paths
    }

    /// Takes the rights of group and others from what a pattern names, and from
    /// what lies below directories.
    pub(super) fn make_private(&self, pattern: &str) -> Result<Vec<Changed>> {
        let mut changed = Vec::new();
        let mut left: Vec<(String, usize)> =
            self.matching(pattern).into_iter().map(|path| (path, 0)).collect();
        let mut seen = 0;
        while let Some((path, depth)) = left.pop() {
            seen += 1;
            if seen > MAX_PATHS {
                break;
            }
            let Some((found, stat)) = self.look(&path) else { continue };
            let kind = FileType::from_raw_mode(stat.st_mode);
            if kind == FileType::Directory && depth < MAX_DEPTH {
                let names = self.names(&path).0.into_iter();
                left.extend(names.map(|name| (format!("{path}/{name}"), depth + 1)));
            }
            let mode = stat.st_mode & 0o7777;
            // Another name may be another's: whoever linked it here owns neither.
            let single = kind == FileType::Directory || stat.st_nlink == 1;
            let ours = matches!(kind, FileType::Directory | FileType::RegularFile);
            if mode & 0o7077 == 0 || !single || !ours {
                continue;
            }
            let after = mode & 0o700;
            match chmod(path_of(&found), Mode::from_raw_mode(after)) {
                Ok(()) => changed.push(Changed { path, before: mode, after }),
                Err(Errno::NOENT) => {}
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("cannot make `{}` private", path.escape_debug()));
                }
            }
        }
        Ok(changed)
    }

    /// Directories to watch for a pattern: those that hold what it names, and it.
    pub(super) fn directories_of(&self, pattern: &str) -> Vec<OwnedFd> {
        let parent = pattern.rsplit_once('/').map_or("", |(parent, _)| parent);
        let parents = pattern.match_indices('/').skip(1).filter_map(|(end, _)| pattern.get(..end));
        let mut paths: Vec<String> = parents.flat_map(|parent| self.matching(parent)).collect();
        paths.extend(self.matching(parent));
        paths.extend(self.matching(pattern));
        paths.sort_unstable();
        paths.dedup();
        paths.iter().filter_map(|path| self.directory(path)).take(MAX_PATHS).collect()
    }
}

/// Whether a name fits a pattern in which `*` stands for any characters.
fn fits(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let mut last = None;
    for part in parts {
        if let Some(before) = last.replace(part) {
            match rest.split_once(before) {
                Some((_, after)) => rest = after,
                None => return false,
            }
        }
    }
    last.map_or(rest.is_empty(), |last| rest.ends_with(last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_star_stands_for_any_characters_of_a_name() {
        for (pattern, name, wanted) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("*", "anything", true),
            ("*.json", "a.json", true),
            ("*.json", "a.json.bak", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c", false),
            ("ab*ba", "aba", false),
        ] {
            assert_eq!(fits(pattern, name), wanted, "{pattern} {name}");
        }
    }

    #[test]
    fn private_files_lose_the_rights_of_others_and_no_link_is_followed() {
        let place = std::env::temp_dir().join(format!("nc-private-{}", std::process::id()));
        std::fs::create_dir_all(place.join("c/agents/one")).unwrap();
        for (name, mode) in [("outside", 0o644), ("c/agents/one/auth.json", 0o644)] {
            std::fs::write(place.join(name), "").unwrap();
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(place.join(name), mode).unwrap();
        }
        std::os::unix::fs::symlink("../outside", place.join("c/link")).unwrap();
        std::fs::hard_link(place.join("outside"), place.join("c/second")).unwrap();
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let tree = Tree::new(rustix::fs::open(&place, flags, Mode::empty()).unwrap());
        let mode =
            |name: &str| std::fs::metadata(place.join(name)).unwrap().permissions().mode() & 0o7777;
        let changed = tree.make_private("/c/agents/*/auth.json").unwrap();
        assert_eq!(
            changed,
            [Changed { path: "/c/agents/one/auth.json".to_owned(), before: 0o644, after: 0o600 }]
        );
        assert_eq!(mode("c/agents/one"), 0o755);
        assert!(!tree.make_private("/c").unwrap().is_empty());
        assert_eq!((mode("c"), mode("c/agents/one")), (0o700, 0o700));
        assert_eq!(mode("outside"), 0o644);
        assert!(tree.make_private("/c").unwrap().is_empty());
        assert_eq!(tree.directories_of("/c/agents/*/auth.json").len(), 3);
        std::fs::remove_dir_all(&place).unwrap();
    }
}
