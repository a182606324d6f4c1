//! Joining a container: its cgroup in every hierarchy, and every namespace of
//! its init, opened from the host's view before anything is entered.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Namespaces in the order in which they are joined: the user namespace first,
/// because it gives the right to the others; mount last, because it changes
/// what paths mean.
const ORDER: [(&str, LinkNameSpaceType); 6] = [
    ("user", LinkNameSpaceType::User),
    ("cgroup", LinkNameSpaceType::ControlGroup),
    ("ipc", LinkNameSpaceType::InterProcessCommunication),
    ("uts", LinkNameSpaceType::HostNameAndNISDomainName),
    ("net", LinkNameSpaceType::Network),
    ("mnt", LinkNameSpaceType::Mount),
];

/// A running container's init, opened for joining.
#[derive(Debug)]
pub(super) struct Target {
    pid: Option<File>,
    namespaces: Vec<(&'static str, LinkNameSpaceType, File)>,
    cgroups: Vec<(PathBuf, File)>,
    user: bool,
}

impl Target {
    /// Opens everything of the process `init`, which must exist.
    pub(super) fn open(init: i32, sub_cgroup: Option<&str>) -> Result<Self> {
        let mut namespaces = Vec::new();
        for (name, kind) in ORDER {
            if let Some(file) = foreign(init, name)? {
                namespaces.push((name, kind, file));
            }
        }
        let user = namespaces.iter().any(|(name, ..)| *name == "user");
        Ok(Self {
            pid: foreign(init, "pid")?,
            namespaces,
            cgroups: cgroups(init, sub_cgroup)?,
            user,
        })
    }

    /// Makes the container's pid namespace that of this process's children.
    pub(super) fn join_pid_namespace(&self) -> Result<()> {
        let Some(file) = &self.pid else { return Ok(()) };
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::ProcessID))
            .context("cannot join the pid namespace")
    }

    /// Moves this process into the container's cgroups.
    pub(super) fn join_cgroups(&self) -> Result<()> {
        for (path, file) in &self.cgroups {
            let mut file = file;
            file.write_all(b"0")
                .with_context(|| format!("cannot join the cgroup {}", path.display()))?;
        }
        Ok(())
    }

    /// Joins every other namespace.
    pub(super) fn join_namespaces(&self) -> Result<()> {
        for (name, kind, file) in &self.namespaces {
            move_into_link_name_space(file.as_fd(), Some(*kind))
                .with_context(|| format!("cannot join the {name} namespace"))?;
            if *name == "user" {
                // Root of the new namespace, so that the rest can be joined.
                nix::unistd::setresgid(0.into(), 0.into(), 0.into())
                    .context("cannot become the namespace's root group")?;
                nix::unistd::setresuid(0.into(), 0.into(), 0.into())
                    .context("cannot become the namespace's root")?;
            }
        }
        debug_assert!(
            !self.user || self.namespaces.first().is_some_and(|(name, ..)| *name == "user")
        );
        Ok(())
    }
}

/// A namespace of `init` that is not ours already.
fn foreign(init: i32, name: &str) -> Result<Option<File>> {
    let path = format!("/proc/{init}/ns/{name}");
    let file = File::open(&path).with_context(|| format!("cannot open {path}"))?;
    let own = fs::metadata(format!("/proc/self/ns/{name}"))
        .context("cannot examine the runtime's own namespaces")?;
    let theirs = file.metadata().with_context(|| format!("cannot examine {path}"))?;
    Ok((own.ino() != theirs.ino()).then_some(file))
}

/// cgroup.procs of `init` in every mounted hierarchy.
fn cgroups(init: i32, sub: Option<&str>) -> Result<Vec<(PathBuf, File)>> {
    if sub.is_some_and(|sub| sub.split('/').any(|part| part == "..")) {
        bail!("--cgroup must stay below the container's cgroup");
    }
    let mounts = mounts()?;
    let text = fs::read_to_string(format!("/proc/{init}/cgroup"))
        .context("cannot read the container's cgroups")?;
    let mut found = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let Some(mount) = mounts.iter().find(|mount| mount.serves(controllers)) else { continue };
        let mut directory = mount.point.join(path.trim_start_matches('/'));
        if let Some(sub) = sub {
            directory.push(sub.trim_start_matches('/'));
        }
        let procs = directory.join("cgroup.procs");
        let file = fs::OpenOptions::new()
            .write(true)
            .open(&procs)
            .with_context(|| format!("cannot open {}", procs.display()))?;
        found.push((directory, file));
    }
    if found.is_empty() {
        bail!("the container's cgroup was not found; is /sys/fs/cgroup mounted?");
    }
    Ok(found)
}

struct Mount {
    point: PathBuf,
    v2: bool,
    options: Vec<String>,
}

impl Mount {
    fn serves(&self, controllers: &str) -> bool {
        if controllers.is_empty() {
            return self.v2;
        }
        !self.v2
            && controllers
                .split(',')
                .all(|wanted| self.options.iter().any(|option| option == wanted))
    }
}

/// Mounted cgroup hierarchies (proc(5), mountinfo).
fn mounts() -> Result<Vec<Mount>> {
    let text =
        fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    let mut mounts = Vec::new();
    for line in text.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let device = before.split_whitespace().nth(2).unwrap_or_default();
        let point = before.split_whitespace().nth(4).unwrap_or_default();
        let mut fields = after.split_whitespace();
        let kind = fields.next().unwrap_or_default();
        let options = fields.nth(1).unwrap_or_default();
        if kind != "cgroup" && kind != "cgroup2" || !Path::new(point).starts_with("/sys/fs/cgroup")
        {
            continue;
        }
        // A hierarchy that another mount hides is not reached by its path.
        let seen = fs::metadata(point).map(|metadata| {
            let device = metadata.dev();
            format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device))
        });
        if seen.ok().as_deref() != Some(device) {
            continue;
        }
        mounts.push(Mount {
            point: PathBuf::from(point),
            v2: kind == "cgroup2",
            options: options.split(',').map(str::to_owned).collect(),
        });
    }
    Ok(mounts)
}

/// Whether setgroups(2) is allowed in this user namespace (user_namespaces(7)).
pub(super) fn may_set_groups() -> bool {
    fs::read_to_string("/proc/self/setgroups").map_or(true, |text| text.trim() != "deny")
}
