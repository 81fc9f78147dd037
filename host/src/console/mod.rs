//! Consoles: what is at the other end of a guest's serial line.
//!
//! All of them share [`line`], which says what happens to bytes that nobody takes. A console lives as long as the
//! device that it was given to; sockets and links go with it.

pub(crate) mod escape;
mod file;
mod line;
mod nmdm;
mod pty;
mod script;
mod server;
mod socket;
pub(crate) mod stdio;
#[cfg(test)]
pub(crate) mod tests;
mod tty;
mod visit;

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::{Context, Result};
use emu::DeviceCell;
use emu::backend::Chardev;

pub use self::escape::ConsoleCommand;
use self::line::Line;
pub use self::script::{Desk, Script, Step, When};
pub use self::server::{Consoles, From, LogSpec, Place, Server, Wish};
pub use self::visit::{Left, Visit, terminal_size};
use crate::io::Io;

/// A kind of console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsoleSpec {
    /// The terminal or the pipes that the program was started with. For one console only.
    Stdio,
    /// Output into a regular file, no input.
    File {
        /// Its name.
        path: PathBuf,
        /// Keep what it holds.
        append: bool,
    },
    /// A pseudo-terminal.
    Pty {
        /// A symbolic link to be made to the slave.
        link: Option<PathBuf>,
    },
    /// A terminal device that is there: a serial port of the host, or one end of a null modem.
    Tty {
        /// Its name.
        path: PathBuf,
    },
    /// One end of a null modem cable, nmdm(4).
    Nmdm {
        /// Its name, which ends in A or B.
        path: PathBuf,
    },
    /// A listening UNIX socket of mode 0600.
    Unix {
        /// Its name.
        path: PathBuf,
    },
    /// A listening TCP socket.
    Tcp {
        /// Name or address to listen at.
        host: String,
        /// Port to listen at, 0 for any.
        port: u16,
        /// Addresses beyond this host's loopback are allowed. There is no authentication.
        remote: bool,
    },
    /// Takes all output and has no input.
    None,
}

/// Hears of the commands that a user types at the terminal. Called from the console's thread; the console reads nothing
/// until it returns.
pub type CommandHook = Arc<dyn Fn(ConsoleCommand) + Send + Sync>;

/// What the user should know of a console, and how to bring its output to an end.
#[derive(Clone)]
pub struct Description {
    /// For messages: `pty /dev/pts/3, linked from com1`.
    pub text: String,
    /// What programs open or connect to: the slave's name, a path, `address:port`.
    pub place: Option<String>,
    line: Option<Arc<Line>>,
    /// Who has it after the line.
    server: Option<Consoles>,
}

impl Description {
    fn new(text: String, place: Option<String>, line: Option<Arc<Line>>) -> Description {
        Description { text, place, line, server: None }
    }

    /// Waits until all that the device handed over is with the host. False when nobody takes it, or when it takes
    /// longer than `limit`.
    pub fn flush(&self, limit: Duration) -> bool {
        self.line.as_ref().is_none_or(|line| line.flush(limit))
            && self.server.as_ref().is_none_or(|server| server.flush(limit))
    }
}

/// Opens a console. With `block` its writers wait instead of being refused, so that what a guest sees does not depend
/// on the host's speed. Nothing reaches the device before `io` has its thread.
///
/// # Errors
/// One line that names the place.
pub fn open(
    spec: &ConsoleSpec,
    io: &Arc<Io>,
    block: bool,
    hook: &CommandHook,
) -> Result<(Box<dyn Chardev>, Description)> {
    let (line, description) = match spec {
        ConsoleSpec::Stdio => stdio::open(io, block, hook).context("console stdio")?,
        ConsoleSpec::File { path, append } => {
            file::open(io, path, *append, block).with_context(|| format!("console file {}", path.display()))?
        }
        ConsoleSpec::Pty { link } => pty::open(io, link.as_deref(), block).with_context(|| match link {
            Some(link) => format!("console pty with link {}", link.display()),
            None => "console pty".to_owned(),
        })?,
        ConsoleSpec::Tty { path } => {
            tty::open(io, path, block).with_context(|| format!("console tty {}", path.display()))?
        }
        ConsoleSpec::Nmdm { path } => {
            nmdm::open(io, path, block).with_context(|| format!("console nmdm {}", path.display()))?
        }
        ConsoleSpec::Unix { path } => {
            socket::open_unix(io, path, block).with_context(|| format!("console socket {}", path.display()))?
        }
        ConsoleSpec::Tcp { host, port, remote } => {
            socket::open_tcp(io, host, *port, *remote, block).with_context(|| format!("console tcp {host}:{port}"))?
        }
        ConsoleSpec::None => return Ok((Box::new(Nothing), Description::new("none".to_owned(), None, None))),
    };
    Ok((line.port(), description))
}

/// No console at all.
pub struct Nothing;

impl Chardev for Nothing {
    fn write(&mut self, data: &[u8]) -> usize {
        data.len()
    }

    fn attach(&mut self, _to: Weak<DeviceCell>, _: usize) {}

    fn want(&mut self, _bytes: usize) {}
}
