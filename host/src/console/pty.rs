//! A pseudo-terminal. Programs open its slave, as cu(1) and screen(1) do, close it and open it again as they like.
//!
//! We hold the slave open ourselves. Otherwise the master reports a hang-up whenever the last user leaves, in ways that
//! differ between systems, and FreeBSD puts the slave back into cooked mode, in which it would echo the guest's own
//! output to the guest. The price is that nobody can tell whether there is a user: output that is not read is dropped
//! after a second, as [`super::line`] says.
//!
//! With the master go the bytes that the slave's user has not read yet. So who reads slowly is waited for at the end.

use std::fs::{File, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::Interest;
use mio::unix::SourceFd;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

use super::Description;
use super::line::Line;
use crate::broker::Name;
use crate::io::{Gate, Io, Source};

/// How long the last output may stay unread.
const LAST_OUTPUT: Duration = Duration::from_secs(1);
/// How often we look whether it still is: nothing tells of a reader.
const LOOK: Duration = Duration::from_millis(5);

/// Opens a pseudo-terminal, with a symbolic link to its slave if a path is given.
pub(super) fn open(io: &Arc<Io>, link: Option<&Path>, block: bool) -> io::Result<(Arc<Line>, Description)> {
    let pair = openpty(None, None)?;
    let (master, slave) = (File::from(pair.master), pair.slave);
    for fd in [master.as_fd(), slave.as_fd()] {
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    fcntl(&master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let mut modes = tcgetattr(&slave)?;
    cfmakeraw(&mut modes);
    tcsetattr(&slave, SetArg::TCSANOW, &modes)?;
    let name = nix::unistd::ttyname(&slave)?;
    // Group tty could otherwise write(1) to it, which the guest would take for typed.
    std::fs::set_permissions(&name, Permissions::from_mode(0o600))?;
    let link = link.map(|path| link_to(path, &name)).transpose()?;

    let line = Line::loose(&name.display().to_string(), block);
    let key = io.key();
    io.registry().register(&mut SourceFd(&master.as_raw_fd()), key.token(), Interest::READABLE | Interest::WRITABLE)?;
    line.serve(io, key);
    let mut text = format!("pty {}", name.display());
    if let Some(link) = &link {
        text = format!("{text}, linked from {}", link.path().display());
    }
    io.add(key, Box::new(Pty { line: line.clone(), master, slave, _link: link }));
    Ok((line.clone(), Description::new(text, Some(name.display().to_string()), Some(line))))
}

struct Pty {
    line: Arc<Line>,
    master: File,
    slave: OwnedFd,
    _link: Option<Name>,
}

impl Source for Pty {
    fn turn(&mut self, gate: &Gate) -> bool {
        self.line.exchange(&self.master, gate)
    }

    fn deadline(&self) -> Option<Instant> {
        self.line.deadline()
    }
}

impl Pty {
    /// Whether the slave's user has something to read. FIONREAD would not see what is still on its way to the slave.
    fn is_unread(&self) -> bool {
        poll(&mut [PollFd::new(self.slave.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(1)
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        let end = Instant::now() + LAST_OUTPUT;
        while self.is_unread() && Instant::now() < end {
            std::thread::sleep(LOOK);
        }
    }
}

/// Makes a symbolic link, in the place of an old one.
fn link_to(path: &Path, to: &Path) -> io::Result<Name> {
    match std::fs::symlink_metadata(path) {
        Ok(there) if there.is_symlink() => std::fs::remove_file(path)?,
        Ok(_) => return Err(io::Error::new(ErrorKind::AlreadyExists, "it exists and is no symbolic link")),
        // Making the link says what is wrong.
        Err(_) => {}
    }
    std::os::unix::fs::symlink(to, path)?;
    Name::of(path)
}
