//! Who owns what a container's first descriptors lead to. Programs reopen
//! /dev/stdout, which the kernel allows only the owner of a pipe or terminal.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

use rustix::fs::{FileType, Uid, fchown, fstat, major};

/// First and last major number of Unix98 terminals.
const TERMINALS: std::ops::RangeInclusive<u32> = 136..=143;

/// Gives the pipes behind stdin, stdout and stderr to `uid`. Only pipes: a file
/// or socket may be anybody's. What cannot be given stays as it is.
pub(crate) fn give_pipes(uid: u32) {
    let give = |fd: BorrowedFd<'_>| {
        let pipe =
            fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo);
        if pipe {
            let _given = fchown(fd, Some(Uid::from_raw(uid)), None);
        }
    };
    give(io::stdin().as_fd());
    give(io::stdout().as_fd());
    give(io::stderr().as_fd());
}

/// Gives the terminal at `path` to `uid`; its group stays tty.
///
/// # Errors
/// When it is no terminal or cannot be given.
pub(crate) fn give_terminal(path: &str, uid: u32) -> io::Result<()> {
    let metadata = std::fs::metadata(path)?;
    if !metadata.file_type().is_char_device() || !TERMINALS.contains(&major(metadata.rdev())) {
        return Err(io::Error::other("it is no terminal"));
    }
    std::os::unix::fs::chown(path, Some(uid), None)
}
