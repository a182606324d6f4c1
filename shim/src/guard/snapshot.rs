//! What a workspace's tool files are at a moment, and what became of them.

use std::collections::{BTreeMap, VecDeque};
use std::io::Read as _;
use std::os::fd::OwnedFd;

use nemoclaw_spec::hex;
use nemoclaw_spec::plan::{TOOL_FILES, WATCHED_BESIDES};
use rustix::fs::{FileType, Stat};
use sha2::{Digest as _, Sha256};

use super::findings::Finding;
use super::tree::Tree;

/// Most files, directories and names looked at in one workspace.
const MAX_LOOKS: usize = 4096;
/// Greatest depth below a tool's directory.
const MAX_DEPTH: usize = 6;
/// Most bytes digested in one look.
const MAX_READ: u64 = 32 * 1024 * 1024;
/// Largest file digested, in bytes.
const MAX_DIGESTED: u64 = 1024 * 1024;
/// Largest file whose lines are kept, in bytes.
const MAX_TEXT: usize = 16 * 1024;
/// Most lines told of a change, and the most characters of each.
const MAX_LINES: usize = 5;
const MAX_LINE: usize = 160;

/// One file, directory or link.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    /// Inode, size, time of change, mode, names: the same when nothing changed, but for
    /// stores to shared mappings, which leave no trace here.
    state: (u64, i64, i64, u64, u32, u64),
    digest: Option<String>,
    text: Option<String>,
}

/// All of them by path, as the container sees it.
#[derive(Debug, Clone, Default)]
pub(super) struct Snapshot {
    place: String,
    files: BTreeMap<String, Seen>,
    /// Whether there was more than could be looked at.
    partial: bool,
}

impl Snapshot {
    /// Looks at the workspace that is mounted at `place`.
    pub(super) fn take(tree: &Tree, place: &str) -> Self {
        Self::again(tree, place, &Self::default(), false)
    }

    /// Looks again. What seems not to have changed is not read again where `trust`
    /// says so.
    pub(super) fn again(tree: &Tree, place: &str, before: &Self, trust: bool) -> Self {
        let place = place.trim_end_matches('/').to_owned();
        let mut snapshot = Self { place, files: BTreeMap::new(), partial: false };
        // What has a name in the lists comes first, so that nothing below hides it.
        let mut left: VecDeque<(String, usize)> =
            TOOL_FILES.iter().map(|path| ((*path).to_owned(), 0)).collect();
        for pattern in WATCHED_BESIDES {
            let found = tree.matching(pattern).into_iter();
            // Of `.git` itself only whether it is a file, which says where it is.
            let depth = if pattern == ".git" { MAX_DEPTH } else { 1 };
            left.extend(found.map(|path| (path.trim_start_matches('/').to_owned(), depth)));
        }
        let (mut looks, mut read) = (0, 0);
        while let Some((path, depth)) = left.pop_front() {
            looks += 1;
            if looks > MAX_LOOKS {
                snapshot.partial = true;
                break;
            }
            let Some((found, stat)) = tree.look(&path) else { continue };
            let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if directory && depth < MAX_DEPTH {
                let (names, all) = tree.names(&path);
                snapshot.partial |= !all;
                left.extend(names.into_iter().map(|name| (format!("{path}/{name}"), depth + 1)));
            } else if directory && path != ".git" {
                snapshot.partial = true;
            }
            // Times and sizes of a directory move with what it holds.
            if directory && (depth > 0 || path == ".git") {
                continue;
            }
            let shown = format!("{}/{path}", snapshot.place);
            let known = before.files.get(&shown).filter(|_| trust || read > MAX_READ);
            snapshot.partial |= read > MAX_READ;
            let seen = Seen::of(&found, &stat, directory, known);
            read += u64::try_from(stat.st_size).unwrap_or(0).min(MAX_DIGESTED);
            snapshot.files.insert(shown, seen);
        }
        snapshot
    }

    /// What became of the files between this moment and a later one.
    pub(super) fn changes(&self, now: &Self) -> Vec<Finding> {
        let mut found = Vec::new();
        if now.partial && !self.partial {
            let told = "there is more than is looked at, or a name that is no text";
            found.push(Finding::new(&self.place, "not all is watched", told.to_owned()));
        }
        for (path, seen) in &now.files {
            match self.files.get(path) {
                Some(before) if before.same(seen) => {}
                before => found.push(told(path, before, Some(seen))),
            }
        }
        for (path, before) in &self.files {
            if !now.files.contains_key(path) {
                found.push(told(path, Some(before), None));
            }
        }
        found
    }

    /// Directories whose events tell of changes.
    pub(super) fn directories(&self, tree: &Tree) -> Vec<OwnedFd> {
        let mut paths: Vec<String> = vec![String::new()];
        for path in self.files.keys() {
            let relative = path.strip_prefix(&self.place).unwrap_or(path);
            paths.push(relative.to_owned());
            let ends = relative.match_indices('/').skip(1);
            paths.extend(ends.filter_map(|(end, _)| relative.get(..end)).map(str::to_owned));
        }
        paths.push("/.git".to_owned());
        paths.sort_unstable();
        paths.dedup();
        paths.iter().filter_map(|path| tree.directory(path)).collect()
    }
}

impl Seen {
    /// Whether nobody could tell the difference: a file written anew with the same
    /// bytes and the same mode is the same file.
    fn same(&self, other: &Self) -> bool {
        self == other
            || (self.digest.is_some()
                && self.digest == other.digest
                && (self.state.4, self.state.5) == (other.state.4, other.state.5))
    }

    fn of(found: &OwnedFd, stat: &Stat, directory: bool, before: Option<&Self>) -> Self {
        let mode = stat.st_mode;
        let state = if directory {
            (stat.st_ino, 0, 0, 0, mode, 0)
        } else {
            (stat.st_ino, stat.st_size, stat.st_ctime, stat.st_ctime_nsec, mode, stat.st_nlink)
        };
        if let Some(before) = before.filter(|before| before.state == state) {
            return before.clone();
        }
        let mut bytes = Vec::new();
        let file = Tree::read(found, stat).filter(|_| !directory);
        let whole = file
            .and_then(|file| file.take(MAX_DIGESTED + 1).read_to_end(&mut bytes).ok())
            .is_some_and(|length| u64::try_from(length).is_ok_and(|length| length <= MAX_DIGESTED));
        let digest = whole.then(|| hex::lower(&Sha256::digest(&bytes)));
        let text = (whole && bytes.len() <= MAX_TEXT)
            .then(|| String::from_utf8_lossy(&bytes).into_owned());
        Self { state, digest, text }
    }
}

fn told(path: &str, before: Option<&Seen>, now: Option<&Seen>) -> Finding {
    let change = match (before, now) {
        (None, _) => "created",
        (_, None) => "removed",
        (Some(before), Some(now)) if before.digest == now.digest && now.digest.is_some() => {
            "mode or names changed"
        }
        _ => "changed",
    };
    let lines = |seen: Option<&Seen>| -> Vec<String> {
        let text = seen.and_then(|seen| seen.text.as_deref()).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    };
    let known = lines(before);
    let added = lines(now).into_iter().filter(|line| !known.contains(line) && !line.is_empty());
    let cut =
        |line: String| line.chars().take(MAX_LINE).collect::<String>().escape_debug().to_string();
    let mode = now.map(|seen| format!("mode {:o}", seen.state.4 & 0o7777)).unwrap_or_default();
    let mut finding = Finding::new(path, change, mode);
    finding.before = before.and_then(|seen| seen.digest.clone());
    finding.after = now.and_then(|seen| seen.digest.clone());
    // Elsewhere, tokens stand in such files.
    let git = path.contains("/.git/") || path.contains("/.husky/");
    finding.added = added.filter(|_| git).take(MAX_LINES).map(cut).collect();
    finding
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{Mode, OFlags};

    #[test]
    fn changes_of_tool_files_are_told_and_others_are_not() {
        let place = std::env::temp_dir().join(format!("nc-snapshot-{}", std::process::id()));
        std::fs::create_dir_all(place.join(".git/hooks")).unwrap();
        std::fs::write(place.join(".git/config"), "[core]\n").unwrap();
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let tree = Tree::new(rustix::fs::open(&place, flags, Mode::empty()).unwrap());
        let before = Snapshot::take(&tree, "/sandbox/");
        assert!(before.changes(&Snapshot::take(&tree, "/sandbox")).is_empty());
        std::fs::write(place.join("README"), "x").unwrap();
        std::fs::write(place.join(".git/HEAD"), "x").unwrap();
        let now = Snapshot::again(&tree, "/sandbox", &before, true);
        assert!(before.changes(&now).is_empty());
        std::fs::write(place.join(".git/hooks/pre-commit"), "evil\u{1b}\n").unwrap();
        std::fs::write(place.join(".git/config"), "[core]\nfsmonitor = evil\n").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", place.join(".envrc")).unwrap();
        let later = Snapshot::again(&tree, "/sandbox", &now, true);
        let found = now.changes(&later);
        let told: Vec<_> =
            found.iter().map(|f| (f.path.as_str(), f.change.as_str(), f.added.join("|"))).collect();
        assert_eq!(
            told,
            [
                ("/sandbox/.envrc", "created", String::new()),
                ("/sandbox/.git/config", "changed", "fsmonitor = evil".to_owned()),
                ("/sandbox/.git/hooks/pre-commit", "created", "evil\\u{1b}".to_owned()),
            ]
        );
        std::fs::remove_file(place.join(".git/config")).unwrap();
        let last = Snapshot::again(&tree, "/sandbox", &later, false);
        assert_eq!(later.changes(&last)[0].change, "removed");
        assert!(last.directories(&tree).len() >= 3);
        // A store to a shared mapping changes no time: only reading tells.
        let hook = place.join(".git/hooks/pre-push");
        std::fs::write(&hook, "fine").unwrap();
        let before = Snapshot::again(&tree, "/sandbox", &last, true);
        let mut hidden = before.clone();
        hidden.files.get_mut("/sandbox/.git/hooks/pre-push").unwrap().digest = None;
        assert_eq!(hidden.changes(&Snapshot::again(&tree, "/sandbox", &hidden, true)).len(), 0);
        assert_eq!(hidden.changes(&Snapshot::again(&tree, "/sandbox", &hidden, false)).len(), 1);
        // What leads git elsewhere.
        std::fs::write(place.join(".git/commondir"), "../.x").unwrap();
        std::fs::create_dir_all(place.join(".git/modules/m/hooks")).unwrap();
        std::fs::write(place.join(".git/modules/m/hooks/h"), "x").unwrap();
        let now = Snapshot::again(&tree, "/sandbox", &before, true);
        let paths: Vec<_> = before.changes(&now).into_iter().map(|found| found.path).collect();
        assert_eq!(paths, ["/sandbox/.git/commondir", "/sandbox/.git/modules/m/hooks/h"]);
        // More than can be looked at is said, and hides nothing that has a name.
        std::fs::create_dir_all(place.join(".vscode")).unwrap();
        for n in 0..1100 {
            std::fs::write(place.join(format!(".vscode/{n}")), "").unwrap();
        }
        std::fs::write(place.join(".yarnrc.yml"), "x").unwrap();
        let full = Snapshot::again(&tree, "/sandbox", &now, true);
        let found = now.changes(&full);
        assert_eq!(found[0].change, "not all is watched");
        assert!(found.iter().any(|found| found.path == "/sandbox/.yarnrc.yml"));
        std::fs::remove_dir_all(&place).unwrap();
    }
}
