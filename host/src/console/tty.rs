//! A terminal device that is there already: a serial port of the host, or an end of an nmdm(4) pair.
//!
//! It is made raw, without hardware flow control or modem lines of its own: a cable with three wires will do. Its speed
//! stays as stty(1) has set it, and all modes come back when the machine ends. Output that the device does not take is
//! dropped after a second, as [`super::line`] says: an nmdm(4) whose other end is closed must not stop a guest.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use mio::Interest;
use mio::unix::SourceFd;
use nix::libc::{O_NOCTTY, O_NONBLOCK};
use nix::sys::termios::{ControlFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use super::Description;
use super::line::Line;
use crate::io::{Gate, Io, Source};

/// Opens the device.
pub(super) fn open(io: &Arc<Io>, path: &Path, block: bool) -> io::Result<(Arc<Line>, Description)> {
    // Without O_NONBLOCK the open of a serial port would wait for a carrier.
    let device = OpenOptions::new().read(true).write(true).custom_flags(O_NOCTTY | O_NONBLOCK).open(path)?;
    if !device.is_terminal() {
        return Err(io::Error::other("it is no terminal device (isatty(3) says so)"));
    }
    let found = tcgetattr(&device)?;
    let mut modes = found.clone();
    cfmakeraw(&mut modes);
    modes.control_flags |= ControlFlags::CLOCAL | ControlFlags::CREAD;
    modes.control_flags -= ControlFlags::CRTSCTS | ControlFlags::HUPCL;
    tcsetattr(&device, SetArg::TCSANOW, &modes)?;

    let place = path.display().to_string();
    let line = Line::loose(&place, block);
    let key = io.key();
    io.registry().register(&mut SourceFd(&device.as_raw_fd()), key.token(), Interest::READABLE | Interest::WRITABLE)?;
    line.serve(io, key);
    io.add(key, Box::new(Tty { line: line.clone(), device, found }));
    Ok((line.clone(), Description::new(format!("tty {place}"), Some(place), Some(line))))
}

struct Tty {
    line: Arc<Line>,
    device: File,
    /// The modes in which it was found.
    found: Termios,
}

impl Source for Tty {
    fn turn(&mut self, gate: &Gate) -> bool {
        self.line.exchange(&self.device, gate)
    }

    fn deadline(&self) -> Option<Instant> {
        self.line.deadline()
    }
}

impl Drop for Tty {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.device, SetArg::TCSANOW, &self.found);
    }
}
