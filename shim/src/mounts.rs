//! What is done to, and checked about, a container's mounts after libcontainer
//! has made them and before anything of the user's runs.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use nemoclaw_spec::plan::HostFacts;
use oci_spec::runtime::Spec;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::sys::{self, Fork};

/// Compares every bind mount with what was examined before: a path may have
/// come to mean something else in between, and libcontainer mounts by path.
///
/// # Errors
/// When a mount is not what was examined; the container must not start.
pub(crate) fn verify(pid: i32, spec: &Spec, facts: &HostFacts, hidden: &[String]) -> Result<()> {
    let root = rustix::fs::openat(
        CWD,
        format!("/proc/{pid}/root"),
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .context("cannot open the container's root")?;
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

/// Takes the meaning from device nodes and set-user-ID bits of the image: /dev
/// is a mount of its own.
///
/// # Errors
/// When the kernel refuses; the container must not start.
pub(crate) fn restrict_root(pid: i32) -> Result<()> {
    let path = format!("/proc/{pid}/ns/mnt");
    let namespace = File::open(&path).with_context(|| format!("cannot open {path}"))?;
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    match sys::fork().context("cannot fork")? {
        Fork::Child => {
            drop(reader);
            let done = move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))
                .map_err(std::io::Error::from)
                .and_then(|()| sys::restrict_mount(c"/"));
            let answer = done.map_or_else(|error| error.to_string(), |()| "done".to_owned());
            let _told = rustix::io::write(&writer, answer.as_bytes());
            sys::exit_now(0);
        }
        Fork::Parent(child) => {
            drop(writer);
            let mut answer = String::new();
            let read = std::io::Read::read_to_string(&mut File::from(reader), &mut answer);
            let _reaped = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child), None);
            read.context("cannot hear from the process in the container's mounts")?;
            if answer != "done" {
                bail!("mounts: the image's root cannot be mounted nodev and nosuid: {answer}");
            }
            Ok(())
        }
    }
}
