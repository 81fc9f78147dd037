//! A user at a console of another process: the terminal, or the pipes, that this program was started with, and a stream.
//!
//! A terminal is raw meanwhile, and as it was found afterwards, however that comes ([`crate::terminal`]).

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::escape::{ATTACHED_HELP, ConsoleCommand, Escape, Typed};
use crate::terminal;

/// Bytes that may wait for a guest that does not read.
const MOST: usize = 64 << 10;
/// How often a terminal that shows a screen is asked for its size.
const LOOK: Duration = Duration::from_millis(500);
/// How long the last bytes may take after leaving.
const LAST_OUTPUT: Duration = Duration::from_secs(2);

/// How a visit ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// The user left.
    Detached,
    /// The console ended.
    Ended,
}

/// A visit to come.
pub struct Visit<'a> {
    /// What a command begins with, at the start of a line, if there are to be any.
    pub escape: Option<u8>,
    /// The stream shows a screen.
    pub screen: bool,
    /// Nothing is to be typed.
    pub readonly: bool,
    /// Hears of the commands but that to leave.
    pub command: &'a dyn Fn(ConsoleCommand),
    /// Hears of the size of the terminal when it changes.
    pub resized: &'a dyn Fn((usize, usize)),
}

/// Columns and lines of the terminal at standard output, if it is one that says.
pub fn terminal_size() -> Option<(usize, usize)> {
    terminal::size()
}

impl Visit<'_> {
    /// Carries bytes both ways until the user leaves or the stream ends. The end of the input, where that is no
    /// terminal, ends nothing.
    ///
    /// # Errors
    /// When standard output cannot be written, or what the host says.
    pub fn make(self, mut stream: UnixStream) -> io::Result<Left> {
        let mut input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let mut output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        let raw = terminal::make_raw()?;
        if self.screen && raw {
            terminal::take_screen()?;
        }
        stream.set_nonblocking(true)?;
        let left = self.carry(&mut stream, &mut input, &mut output, raw);
        if matches!(left, Ok(Left::Detached)) {
            // Nothing more is sent, and what was sent is the end.
            let _ = stream.shutdown(Shutdown::Write);
            let end = Instant::now() + LAST_OUTPUT;
            while !self.screen && Instant::now() < end {
                wait(&[(stream.as_fd(), PollFlags::POLLIN)], Some(LAST_OUTPUT))?;
                if !copy(&mut stream, &mut output)? {
                    break;
                }
            }
        }
        terminal::restore_terminal();
        left
    }

    fn carry(&self, stream: &mut UnixStream, input: &mut File, output: &mut File, raw: bool) -> io::Result<Left> {
        let mut escape = Escape::attached(self.escape);
        let mut reads = raw || !self.readonly;
        let mut size = terminal::size();
        let mut waiting: Vec<u8> = Vec::new();
        loop {
            let out = if waiting.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
            let mut fds = vec![(stream.as_fd(), PollFlags::POLLIN | out)];
            // At a terminal there are the commands, whatever the guest reads.
            if reads && (raw || waiting.len() < MOST) {
                fds.push((input.as_fd(), PollFlags::POLLIN));
            }
            let ready = wait(&fds, self.screen.then_some(LOOK))?;
            if self.screen && terminal::size() != size {
                size = terminal::size();
                size.into_iter().for_each(self.resized);
            }
            if ready[0] && !copy(stream, output)? {
                return Ok(Left::Ended);
            }
            if ready.get(1) == Some(&true) {
                let mut buf = [0; 4096];
                let typed = super::stdio::read(input, &mut buf);
                // A terminal that is gone ends the visit, a pipe only its input.
                if typed.is_empty() && raw {
                    return Ok(Left::Detached);
                }
                reads &= !typed.is_empty();
                for &byte in typed {
                    let typed = if raw { escape.feed(byte) } else { Typed::Byte(byte) };
                    match typed {
                        Typed::Held => {}
                        Typed::Byte(byte) => waiting.push(byte),
                        Typed::Both(key, byte) => waiting.extend([key, byte]),
                        Typed::Command(ConsoleCommand::Quit) => return Ok(Left::Detached),
                        Typed::Command(command) => (self.command)(command),
                        Typed::Suspend => terminal::suspend(),
                        Typed::Help => output.write_all(ATTACHED_HELP.as_bytes())?,
                    }
                }
                waiting.truncate(2 * MOST);
            }
            while !waiting.is_empty() {
                match stream.write(&waiting) {
                    Ok(n) => drop(waiting.drain(..n)),
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    // When it is gone, reading says so, behind its last words.
                    Err(e) if e.kind() != ErrorKind::WouldBlock => waiting.clear(),
                    Err(_) => break,
                }
            }
        }
    }
}

/// Waits until something is ready, and says which.
fn wait(fds: &[(std::os::fd::BorrowedFd, PollFlags)], limit: Option<Duration>) -> io::Result<Vec<bool>> {
    let mut polled: Vec<PollFd> = fds.iter().map(|(fd, flags)| PollFd::new(*fd, *flags)).collect();
    let limit = limit.map_or(PollTimeout::NONE, |limit| limit.try_into().unwrap_or(PollTimeout::MAX));
    match poll(&mut polled, limit) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(e) => return Err(e.into()),
    }
    Ok(polled.iter().map(|fd| fd.revents().is_some_and(|events| !events.is_empty())).collect())
}

/// Copies what is there; false at the end.
fn copy(stream: &mut UnixStream, output: &mut File) -> io::Result<bool> {
    let mut buf = [0; 16 << 10];
    match stream.read(&mut buf) {
        Ok(0) => Ok(false),
        Ok(n) => super::stdio::write_all(output, &buf[..n]).map(|()| true),
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(true),
        Err(_) => Ok(false),
    }
}
