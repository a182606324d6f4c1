//! Files that are guarded from outside while a sandbox runs: what the person's
//! own tools would run later, directories with shields, files with private
//! modes; and the ids of a mounted workspace.

use std::fmt::Write as _;

use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use super::{HostFacts, Refusals, RunAs, Target, beneath, identity, mount_targets};
use crate::policy::{Policy, ToolFiles};

/// What programs of the person at the host run, or take commands from, when they
/// are used in a workspace later; relative to its root.
pub const TOOL_FILES: [&str; 26] = [
    ".git/hooks",
    ".git/config",
    ".git/config.worktree",
    ".git/info/attributes",
    ".gitmodules",
    ".husky",
    ".pre-commit-config.yaml",
    ".envrc",
    ".vscode",
    ".idea",
    ".zed",
    ".exrc",
    ".nvim.lua",
    ".vimrc",
    ".dir-locals.el",
    ".gdbinit",
    ".lldbinit",
    ".mcp.json",
    ".cursor",
    ".claude",
    ".codex",
    ".gemini",
    ".continue",
    ".aider.conf.yml",
    ".yarnrc.yml",
    ".npmrc",
];

/// What leads git to another configuration, and repositories within one: watched,
/// because work with git writes there. `*` stands for one name.
pub const WATCHED_BESIDES: [&str; 6] = [
    ".git",
    ".git/commondir",
    ".git/modules/*/config",
    ".git/modules/*/hooks",
    ".git/worktrees/*/commondir",
    ".git/worktrees/*/config.worktree",
];

/// Most workspaces guarded.
const MAX_WORKSPACES: usize = 8;

/// One of [`TOOL_FILES`] in a mounted directory, or a directory on the way to one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ToolFact {
    /// Relative to the mount's root.
    pub path: String,
    /// Whether it is only on the way to one.
    pub pin: bool,
    /// Whether it is a symbolic link.
    pub linked: bool,
    /// Whether it is, or holds, a file that has another name besides.
    pub hard_linked: bool,
    /// Device and inode, by which it is known again once mounted.
    pub device: u64,
    /// See `device`.
    pub inode: u64,
}

/// A directory that policy wants to shield, or one on the way to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShieldFact {
    /// As the container sees it.
    pub path: String,
    /// Whether it is only on the way to one.
    pub pin: bool,
    /// Whether it is there; otherwise why it cannot be shielded.
    pub found: Result<(), String>,
    /// Device and inode.
    pub device: u64,
    /// See `device`.
    pub inode: u64,
}

/// What is guarded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardPlan {
    /// Parts of the container's files that get mounts of their own, in order.
    pub own_mounts: Vec<OwnMount>,
    /// The mount whose ids are exchanged.
    pub id_map: Option<IdMap>,
    /// Mounted workspaces whose tool files are watched.
    pub watched: Vec<String>,
    /// Patterns of paths kept at modes 600 and 700.
    pub private: Vec<String>,
    /// Directories that can be locked while the sandbox runs.
    pub shields: Vec<String>,
    /// Whether they start locked.
    pub shields_up: bool,
}

/// A part of the container's files with a mount of its own, which can be made
/// read-only and can be neither renamed nor removed (rename(2), EBUSY).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnMount {
    /// In the container.
    pub path: String,
    /// Whether it is read-only.
    pub read_only: bool,
    /// Device and inode of what was examined.
    pub device: u64,
    /// See `device`.
    pub inode: u64,
}

/// An idmapped mount (mount_setattr(2), since Linux 5.12): what belongs to the
/// person on the host belongs to the container's user inside, and the other way
/// round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// Where it is mounted.
    pub path: String,
    /// The person's user and group.
    pub host: (u32, u32),
    /// The container's.
    pub container: (u32, u32),
}

/// Works out what is guarded; `read_write` are the paths Landlock opens.
pub(super) fn resolve(
    spec: &Spec,
    policy: &Policy,
    host: &HostFacts,
    run_as: Option<&RunAs>,
    read_write: &[String],
    refusals: &mut Refusals,
) -> GuardPlan {
    let options = &policy.options;
    let targets = mount_targets(spec, host);
    let workspaces: Vec<&Target> = targets
        .iter()
        .filter(|target| target.named_bind && !target.read_only && target.directory)
        .take(MAX_WORKSPACES)
        .collect();
    let mut own_mounts = Vec::new();
    if options.tool_files == ToolFiles::ReadOnly {
        for workspace in &workspaces {
            lock_tools(workspace, &targets, host, &mut own_mounts, refusals);
        }
    }
    shields(policy, host, read_write, &mut own_mounts, refusals);
    GuardPlan {
        own_mounts,
        id_map: run_as.and_then(|run_as| id_map(spec, policy, host, run_as)),
        watched: workspaces
            .iter()
            .filter(|_| options.tool_files != ToolFiles::Off)
            .map(|workspace| workspace.path.clone())
            .collect(),
        private: options.private_modes.clone(),
        shields: options.shields.clone(),
        shields_up: options.shields_up,
    }
}

/// Read-only mounts of the tool files that are there. A link leads elsewhere and
/// a second name goes round a mount: both are refused.
fn lock_tools(
    workspace: &Target,
    targets: &[Target],
    host: &HostFacts,
    own_mounts: &mut Vec<OwnMount>,
    refusals: &mut Refusals,
) {
    let Some(fact) = host.mounts.get(workspace.number) else { return };
    for tool in &fact.tools {
        let path = format!("{}/{}", workspace.path.trim_end_matches('/'), tool.path);
        let covered = targets.iter().any(|other| {
            other.number > workspace.number
                && beneath(&other.path, &workspace.path)
                && beneath(&path, &other.path)
        });
        if covered {
            continue;
        }
        let why = match (tool.linked, tool.hard_linked && !tool.pin) {
            (true, _) => "is a symbolic link",
            (_, true) => "is or holds a file with another name (a hard link)",
            _ => {
                own_mounts.push(OwnMount {
                    path,
                    read_only: !tool.pin,
                    device: tool.device,
                    inode: tool.inode,
                });
                continue;
            }
        };
        refusals.add(
            "tool files",
            format!("`{}` {why}, so it cannot be kept as it is", path.escape_debug()),
            "replace it by a file of its own, or write `tool_files: watch` in the policy",
        );
    }
}

fn shields(
    policy: &Policy,
    host: &HostFacts,
    read_write: &[String],
    own_mounts: &mut Vec<OwnMount>,
    refusals: &mut Refusals,
) {
    for fact in &host.shields {
        let writable = read_write.iter().any(|path| beneath(&fact.path, path));
        let locked = policy.options.shields_up && !fact.pin;
        if let Some(known) = own_mounts.iter_mut().find(|known| known.path == fact.path) {
            known.read_only |= locked;
            continue;
        }
        match &fact.found {
            Ok(()) if writable => own_mounts.push(OwnMount {
                path: fact.path.clone(),
                read_only: locked,
                device: fact.device,
                inode: fact.inode,
            }),
            // Nobody in the sandbox can rename what it cannot write.
            Ok(()) if fact.pin => {}
            Ok(()) => refusals.add(
                "shields",
                format!("`{}` is not writable anyway", fact.path.escape_debug()),
                "take it out of `shields`, or make it writable in the policy",
            ),
            Err(why) => refusals.add(
                "shields",
                format!("`{}` {why}", fact.path.escape_debug()),
                "make the directory in the image or the mount, or take it out of `shields`",
            ),
        }
    }
}

/// Where the container's user is not the person the workspace belongs to, their
/// ids are exchanged in the mount.
fn id_map(spec: &Spec, policy: &Policy, host: &HostFacts, run_as: &RunAs) -> Option<IdMap> {
    let workspace = identity::workspace(spec, host)?;
    // There the engine has chosen the ids.
    let user_namespace = super::has_user_namespace(spec);
    let roots = run_as.uid == 0 || policy.options.allow_root || policy.options.step_down;
    let same = (workspace.uid, workspace.gid) == (run_as.uid, run_as.gid);
    if workspace.read_only || !workspace.directory || user_namespace || roots || same {
        return None;
    }
    // Groups of the system's are not a person's to give.
    let gid = if workspace.gid < identity::FIRST_PERSON { run_as.gid } else { workspace.gid };
    Some(IdMap {
        path: workspace.path,
        host: (workspace.uid, gid),
        container: (run_as.uid, run_as.gid),
    })
}

/// Lines of uid_map or gid_map (user_namespaces(7)) that exchange two ids and
/// leave all others as they are.
pub fn exchange_ids(one: u32, other: u32) -> String {
    let (low, high) = (one.min(other), one.max(other));
    let ranges = if low == high {
        vec![(0, 0, u32::MAX)]
    } else {
        vec![
            (0, 0, low),
            (low, high, 1),
            (low + 1, low + 1, high - low - 1),
            (high, low, 1),
            (high + 1, high + 1, u32::MAX - high - 1),
        ]
    };
    ranges.into_iter().filter(|(.., length)| *length > 0).fold(
        String::new(),
        |mut text, (inside, outside, length)| {
            let _infallible = writeln!(text, "{inside} {outside} {length}");
            text
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_ids_are_exchanged_and_the_others_stay() {
        assert_eq!(
            exchange_ids(1500, 1000),
            "0 0 1000\n1000 1500 1\n1001 1001 499\n1500 1000 1\n1501 1501 4294965794\n"
        );
        assert_eq!(exchange_ids(1, 2), "0 0 1\n1 2 1\n2 1 1\n3 3 4294967292\n");
        assert_eq!(exchange_ids(7, 7), "0 0 4294967295\n");
    }
}
