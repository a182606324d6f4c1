//! A terminal inside the container, its master end sent to the engine.

use std::io::IoSlice;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::net::UnixStream;

use anyhow::{Context as _, Result};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use oci_spec::runtime::Process;
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, ptsname, unlockpt};
use rustix::termios::Winsize;

/// Opens a terminal in the container's devpts, makes it this session's, and
/// sends its master over `socket`.
pub(super) fn set_up(socket: &UnixStream, process: &Process) -> Result<()> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = rustix::pty::openpt(flags).context("cannot open /dev/ptmx in the container")?;
    grantpt(&master).context("cannot grant the terminal")?;
    unlockpt(&master).context("cannot unlock the terminal")?;
    let name = ptsname(&master, Vec::new()).context("cannot name the terminal")?;
    let slave =
        rustix::fs::open(&name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())
            .context("cannot open the terminal")?;
    if let Some(size) = process.console_size() {
        let dimension = |value: u64| u16::try_from(value).unwrap_or(u16::MAX);
        let size = Winsize {
            ws_row: dimension(size.height()),
            ws_col: dimension(size.width()),
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&master, size).context("cannot set the terminal's size")?;
    }
    // The terminal belongs to who types into it.
    rustix::fs::fchown(&slave, Some(rustix::fs::Uid::from_raw(process.user().uid())), None)
        .context("cannot give the terminal to its user")?;
    let raw = [master.as_raw_fd()];
    sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(b"/dev/ptmx")],
        &[ControlMessage::ScmRights(&raw)],
        MsgFlags::empty(),
        None,
    )
    .context("cannot send the terminal to the engine")?;
    rustix::process::ioctl_tiocsctty(slave.as_fd()).context("cannot take the terminal")?;
    rustix::stdio::dup2_stdin(&slave).context("cannot connect stdin")?;
    rustix::stdio::dup2_stdout(&slave).context("cannot connect stdout")?;
    rustix::stdio::dup2_stderr(&slave).context("cannot connect stderr")?;
    Ok(())
}
