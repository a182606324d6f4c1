//! Self-protection: the runtime never touches a container through a file the
//! container could write (CVE-2019-5736). It executes itself again from a
//! detached, read-only clone of the mount its binary lives on.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use rustix::fs::{StatVfsMountFlags, fstatvfs};

use crate::sys;

/// Set only by [`protect`], for the second start: where the binary lies, which
/// a detached mount cannot tell.
const SELF: &str = "_NEMOCLAW_EXE";

/// Starts this program again from a read-only clone of itself, once.
///
/// # Errors
/// When the kernel refuses the clone or the start.
pub(crate) fn protect() -> Result<()> {
    let exe = File::open("/proc/self/exe").context("cannot open /proc/self/exe")?;
    let read_only = fstatvfs(&exe)
        .context("cannot examine /proc/self/exe")?
        .f_flag
        .contains(StatVfsMountFlags::RDONLY);
    if read_only {
        return Ok(());
    }
    let path = std::fs::read_link("/proc/self/exe").context("cannot read /proc/self/exe")?;
    let clone = sys::clone_mount(exe.as_fd())
        .context("cannot clone the mount of the runtime (open_tree, needs Linux 5.12)")?;
    sys::set_read_only(clone.as_fd(), true)
        .context("cannot make the runtime's own mount read-only")?;
    let args = std::env::args_os().map(c_string).collect::<Result<Vec<_>>>()?;
    let mut env = std::env::vars_os()
        .filter(|(name, _)| name != SELF)
        .map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            c_string(name)
        })
        .collect::<Result<Vec<_>>>()?;
    let mut own = OsString::from(format!("{SELF}="));
    own.push(path);
    env.push(c_string(own)?);
    let error = sys::execute_descriptor(clone.as_fd(), &args, &env);
    Err(error).context("cannot start the runtime again from its read-only clone")
}

fn c_string(text: OsString) -> Result<CString> {
    CString::new(text.into_vec()).context("an argument holds a zero byte")
}

/// Path of a program that lies beside this one.
///
/// # Errors
/// When this program's own place is unknown.
pub(crate) fn sibling(name: &str) -> Result<PathBuf> {
    let own = match std::env::var_os(SELF) {
        Some(path) => PathBuf::from(OsString::from_vec(path.as_bytes().to_vec())),
        None => std::fs::read_link("/proc/self/exe").context("cannot read /proc/self/exe")?,
    };
    let directory = own.parent().context("the runtime's binary has no directory")?;
    Ok(directory.join(name))
}
