//! Mounted directories, examined before planning: files in them that the person's
//! own tools run later, and directories to be shielded.
//!
//! SECURITY: an earlier sandbox may have left links there; none is followed.

use std::os::fd::OwnedFd;
use std::path::Path;

use nemoclaw_spec::plan::{MountFact, ShieldFact, TOOL_FILES, ToolFact};
use nemoclaw_spec::policy::Policy;
use oci_spec::runtime::Spec;
use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat2};
use rustix::io::Errno;

use crate::image::Image;

/// What stands at a relative path: nothing, something behind a link, or this.
enum Found {
    Nothing,
    Linked,
    This(Stat),
}

fn open(path: &Path) -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).ok()
}

fn look(root: &OwnedFd, path: &str) -> Found {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match openat2(root, path, flags, Mode::empty(), resolve).and_then(fstat) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => Found::Linked,
        Ok(stat) => Found::This(stat),
        Err(Errno::NOENT | Errno::NOTDIR) => Found::Nothing,
        // A link on the way, or something that cannot be told.
        Err(_) => Found::Linked,
    }
}

/// Those of [`TOOL_FILES`] that a directory has, and the directories on the way.
pub(crate) fn tools(directory: &Path) -> Vec<ToolFact> {
    let Some(root) = open(directory) else { return Vec::new() };
    let mut facts: Vec<ToolFact> = Vec::new();
    for path in TOOL_FILES {
        let mut pinned = true;
        if let Some((parent, _)) = path.rsplit_once('/') {
            for (end, _) in path.match_indices('/') {
                pinned &= add(&root, path.get(..end).unwrap_or(parent), true, &mut facts);
            }
        }
        if pinned {
            add(&root, path, false, &mut facts);
        }
    }
    facts
}

/// Adds a fact; false where nothing can lie below the path.
fn add(root: &OwnedFd, path: &str, way: bool, facts: &mut Vec<ToolFact>) -> bool {
    if facts.iter().any(|known| known.path == path) {
        return facts.iter().any(|known| known.path == path && known.pin);
    }
    let (stat, linked) = match look(root, path) {
        Found::Nothing => return false,
        Found::Linked => (None, true),
        Found::This(stat) => (Some(stat), false),
    };
    let kind = stat.as_ref().map(|stat| FileType::from_raw_mode(stat.st_mode));
    let directory = kind == Some(FileType::Directory);
    facts.push(ToolFact {
        path: path.to_owned(),
        // A worktree has a file `.git`, which says where its repository is.
        pin: way && directory,
        linked,
        hard_linked: if directory {
            !way && has_second_names(root, path)
        } else {
            stat.as_ref().is_some_and(|stat| stat.st_nlink > 1)
        },
        device: stat.as_ref().map_or(0, |stat| stat.st_dev),
        inode: stat.as_ref().map_or(0, |stat| stat.st_ino),
    });
    directory
}

/// Whether a file below a directory has another name: through that one it could be
/// changed although the directory is locked. What is too large to tell counts as
/// such.
fn has_second_names(root: &OwnedFd, path: &str) -> bool {
    const MAX_LOOKS: usize = 4096;
    let mut left = vec![path.to_owned()];
    let mut looks = 0;
    while let Some(path) = left.pop() {
        looks += 1;
        if looks > MAX_LOOKS {
            return true;
        }
        let Found::This(stat) = look(root, &path) else { continue };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
                let opened = openat2(root, path.as_str(), flags, Mode::empty(), resolve);
                let Ok(entries) = opened.and_then(Dir::new) else { return true };
                for entry in entries.take(MAX_LOOKS).flatten() {
                    match entry.file_name().to_str() {
                        Ok("." | "..") => {}
                        Ok(name) => left.push(format!("{path}/{name}")),
                        Err(_) => return true,
                    }
                }
            }
            FileType::RegularFile if stat.st_nlink > 1 => return true,
            _ => {}
        }
    }
    false
}

/// Directories that the policy wants to shield, and those on the way that a
/// process could rename.
pub(crate) fn shields(
    spec: &Spec,
    policy: &Policy,
    image: &Image,
    mounts: &[MountFact],
) -> Vec<ShieldFact> {
    let mut facts: Vec<ShieldFact> = Vec::new();
    for path in &policy.options.shields {
        let path = path.trim_end_matches('/');
        // `/sandbox` itself lies in a directory that nobody can write.
        for (end, _) in path.match_indices('/').skip(2) {
            let way = path.get(..end).unwrap_or_default();
            if !facts.iter().any(|known| known.path == way) {
                facts.push(shield(spec, image, mounts, way, true));
            }
        }
        facts.retain(|known| known.path != path);
        facts.push(shield(spec, image, mounts, path, false));
    }
    // Outer ones first, so that none hides another.
    facts.sort_by(|a, b| a.path.cmp(&b.path));
    facts
}

fn shield(spec: &Spec, image: &Image, mounts: &[MountFact], path: &str, pin: bool) -> ShieldFact {
    let mut shield = ShieldFact {
        path: path.to_owned(),
        pin,
        found: Err("is not there".to_owned()),
        device: 0,
        inode: 0,
    };
    let over = spec.mounts().iter().flatten().zip(mounts);
    let over = over.filter(|(mount, _)| Path::new(path).starts_with(mount.destination())).last();
    let (root, rest) = match &over {
        None => (
            image.path(),
            Path::new(path).strip_prefix("/").unwrap_or_else(|_outside| Path::new(path)),
        ),
        Some((_, fact)) if fact.source.is_empty() => {
            shield.found = Err("is in a file system that is empty at the start".to_owned());
            return shield;
        }
        Some((mount, fact)) => (
            Path::new(&fact.source),
            Path::new(path)
                .strip_prefix(mount.destination())
                .unwrap_or_else(|_outside| Path::new(path)),
        ),
    };
    let rest = if rest.as_os_str().is_empty() { Path::new(".") } else { rest };
    let Some(directory) = open(root) else { return shield };
    match look(&directory, &rest.display().to_string()) {
        Found::Nothing => {}
        Found::Linked => shield.found = Err("is reached by a symbolic link".to_owned()),
        Found::This(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Directory => {
            shield.found = Err("is no directory".to_owned());
        }
        Found::This(_) if !pin && has_second_names(&directory, &rest.display().to_string()) => {
            let why = "holds a file with another name (a hard link), or too much to tell";
            shield.found = Err(why.to_owned());
        }
        Found::This(stat) => {
            shield.found = Ok(());
            (shield.device, shield.inode) = (stat.st_dev, stat.st_ino);
        }
    }
    shield
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tool_files_of_a_directory_are_found_and_no_link_is_followed() {
        let place = std::env::temp_dir().join(format!("nc-tools-{}", std::process::id()));
        std::fs::create_dir_all(place.join(".git/hooks")).unwrap();
        std::fs::write(place.join(".git/config"), "[core]").unwrap();
        std::fs::write(place.join("a"), "").unwrap();
        std::fs::hard_link(place.join("a"), place.join(".envrc")).unwrap();
        std::os::unix::fs::symlink("/etc", place.join(".vscode")).unwrap();
        let facts = tools(&place);
        let told: Vec<_> = facts
            .iter()
            .map(|fact| (fact.path.as_str(), fact.pin, fact.linked, fact.hard_linked))
            .collect();
        assert_eq!(
            told,
            [
                (".git", true, false, false),
                (".git/hooks", false, false, false),
                (".git/config", false, false, false),
                (".envrc", false, false, true),
                (".vscode", false, true, false),
            ]
        );
        std::fs::remove_dir_all(place.join(".git")).unwrap();
        std::fs::write(place.join(".git"), "gitdir: /elsewhere").unwrap();
        let first = tools(&place).into_iter().next().unwrap();
        assert_eq!((first.path.as_str(), first.pin), (".git", false));
        std::fs::remove_dir_all(&place).unwrap();
    }
}
