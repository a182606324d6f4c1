//! Finding the user's program, with runc's words for what is wrong: engines
//! turn them into exit codes 126 and 127.

use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};

use crate::report::CodedError;

const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

/// The path of `args[0]`: itself when it holds a slash (PATH is not needed
/// then), else the first executable of that name on `path`.
pub(super) fn find(args: &[String], path: &str) -> Result<CString, CodedError> {
    let Some(name) = args.first().filter(|name| !name.is_empty()) else {
        return Err(coded(1, "the process has no arguments"));
    };
    let found = if name.contains('/') {
        check(name, Path::new(name))?;
        PathBuf::from(name)
    } else {
        search(name, path)?
    };
    CString::new(found.into_os_string().into_encoded_bytes()).map_err(|_zero| {
        coded(NOT_FOUND, &format!("exec: \"{}\": holds a zero byte", name.escape_debug()))
    })
}

fn search(name: &str, path: &str) -> Result<PathBuf, CodedError> {
    let mut denied = false;
    for directory in path.split(':') {
        let candidate = Path::new(if directory.is_empty() { "." } else { directory }).join(name);
        match check(name, &candidate) {
            Ok(()) => return Ok(candidate),
            Err(error) => denied |= error.code == NOT_EXECUTABLE && candidate.is_file(),
        }
    }
    let name = name.escape_debug();
    if denied {
        return Err(coded(NOT_EXECUTABLE, &format!("exec: \"{name}\": permission denied")));
    }
    Err(coded(NOT_FOUND, &format!("exec: \"{name}\": executable file not found in $PATH")))
}

fn check(name: &str, path: &Path) -> Result<(), CodedError> {
    let name = name.escape_debug();
    match std::fs::metadata(path) {
        Err(error) => {
            let code = if error.kind() == std::io::ErrorKind::PermissionDenied {
                NOT_EXECUTABLE
            } else {
                NOT_FOUND
            };
            let why =
                if code == NOT_FOUND { "no such file or directory" } else { "permission denied" };
            Err(coded(code, &format!("exec: \"{name}\": stat {name}: {why}")))
        }
        Ok(metadata) if metadata.is_dir() => Err(coded(
            NOT_EXECUTABLE,
            &format!("exec: \"{name}\": is a directory: permission denied"),
        )),
        Ok(_) => match access(path, AccessFlags::X_OK) {
            Ok(()) => Ok(()),
            Err(_) => Err(coded(NOT_EXECUTABLE, &format!("exec: \"{name}\": permission denied"))),
        },
    }
}

/// The error of an execve that failed.
pub(super) fn refused(program: &CStr, errno: Errno) -> CodedError {
    let name = program.to_string_lossy().escape_debug().to_string();
    let code = if errno == Errno::ENOENT { NOT_FOUND } else { NOT_EXECUTABLE };
    let words = match errno {
        Errno::ENOENT => "no such file or directory",
        Errno::EACCES => "permission denied",
        Errno::ENOEXEC => "exec format error",
        other => other.desc(),
    };
    coded(code, &format!("exec {name}: {words}"))
}

fn coded(code: u8, message: &str) -> CodedError {
    CodedError { code, message: format!("unable to start container process: {message}") }
}
