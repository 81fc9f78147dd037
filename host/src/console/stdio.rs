//! The terminal, or the pipes, that the program was started with.
//!
//! A terminal is made raw: every key is for the guest, save the commands of [`super::escape`]. Descriptors that are
//! shared with other programs must not be made non-blocking, so a thread reads and another writes. The reader reads on
//! while the guest does not, so that the commands work when the guest hangs. Where standard input is no terminal, there
//! are no commands, bytes wait for the guest, and the end of the input ends nothing.

use std::fs::File;
use std::io::{ErrorKind, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::escape::{ConsoleCommand, Escape, HELP, Typed};
use super::line::Line;
use super::{CommandHook, Description};
use crate::io::Io;
use crate::terminal;

/// Takes over standard input and output.
pub(super) fn open(io: &Arc<Io>, block: bool, hook: &CommandHook) -> std::io::Result<(Arc<Line>, Description)> {
    let input = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let output = File::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    let commands = terminal::make_raw()?;
    let line = Line::patient("stdio", block);
    start(&line, io, input, output, commands.then(|| hook.clone()))?;
    let text = if commands { "this terminal; ~? shows the commands" } else { "standard input and output" };
    Ok((line.clone(), Description::new(text.to_owned(), None, Some(line))))
}

/// Starts the threads. Without a hook there are no commands.
pub(super) fn start(
    line: &Arc<Line>,
    io: &Arc<Io>,
    input: File,
    output: File,
    hook: Option<CommandHook>,
) -> std::io::Result<()> {
    line.relay(io);
    let shown = output.is_terminal();
    spawn_writer("stdout", line, output)?;
    let line = line.clone();
    std::thread::Builder::new().name("stdin".to_owned()).spawn(move || match hook {
        Some(hook) => read_keys(&line, input, shown, &*hook),
        None => read_bytes(&line, input),
    })?;
    Ok(())
}

/// A thread that writes a line's output to a descriptor that may block, until the device lets go of the line.
pub(super) fn spawn_writer(name: &str, line: &Arc<Line>, mut to: File) -> std::io::Result<()> {
    let line = line.clone();
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let mut failed = false;
        while let Some(mut bytes) = line.take() {
            // A closed terminal or a full disk is no reason to stop a guest.
            if let Err(e) = write_all(&mut to, bytes.make_contiguous())
                && !std::mem::replace(&mut failed, true)
            {
                tracing::warn!("{}: output is lost: {e}", line.name());
            }
        }
    })?;
    Ok(())
}

/// Writes all, also where somebody made the descriptor non-blocking for all who share it.
pub(super) fn write_all(to: &mut File, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => await_ready(to, PollFlags::POLLOUT),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Reads some bytes; none at the end, or when there will be no more.
pub(crate) fn read<'a>(from: &mut File, buf: &'a mut [u8]) -> &'a [u8] {
    loop {
        match from.read(buf) {
            Ok(n) => return &buf[..n],
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => await_ready(from, PollFlags::POLLIN),
            Err(_) => return &[],
        }
    }
}

fn await_ready(fd: &File, what: PollFlags) {
    // When it fails, the next read or write tells why.
    let _ = poll(&mut [PollFd::new(fd.as_fd(), what)], PollTimeout::NONE);
}

fn read_bytes(line: &Line, mut input: File) {
    let mut buf = [0; 1024];
    loop {
        match read(&mut input, &mut buf) {
            [] => return,
            bytes => line.put_all(bytes),
        }
    }
}

fn read_keys(line: &Line, mut input: File, shown: bool, hook: &dyn Fn(ConsoleCommand)) {
    let mut buf = [0; 256];
    let mut escape = Escape::default();
    loop {
        let keys = read(&mut input, &mut buf);
        if keys.is_empty() {
            return;
        }
        for &key in keys {
            match escape.feed(key) {
                Typed::Held => {}
                Typed::Byte(byte) => line.put(&[byte]),
                Typed::Both(key, byte) => line.put(&[key, byte]),
                Typed::Command(command) => hook(command),
                Typed::Suspend => terminal::suspend(),
                Typed::Help if shown => line.notice(HELP),
                Typed::Help => eprint!("{HELP}"),
            }
        }
    }
}
