//! The guest's text screen on the user's terminal, and the user's keys on the guest's keyboard.
//!
//! One thread looks at the screen 25 times a second and writes what has changed, another reads keys. The commands of
//! [`crate::console`] are the same here: a tilde after the Enter key. The terminal is as it was found whenever the
//! program does not run ([`crate::terminal`]).

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use emu::DeviceCell;

use super::canvas::Canvas;
use crate::console::CommandHook;
use crate::console::escape::{Escape, HELP, Typed};
use crate::console::stdio;
use crate::keyboard::{Decoder, Typist};
use crate::terminal;

/// From one look to the next.
const LOOK: Duration = Duration::from_millis(40);
/// How long the help stays.
const HELP_STAYS: Duration = Duration::from_secs(5);
/// What a terminal has that does not say.
const USUAL_SIZE: (usize, usize) = (80, 24);

/// The terminal while it shows a guest's screen.
pub struct Terminal {
    stop: Option<Sender<bool>>,
    thread: Option<JoinHandle<()>>,
}

impl Terminal {
    /// Shows the screen of the adapter in `screen`, and types with `typist`.
    ///
    /// # Errors
    /// When there is no terminal, or the host has no threads.
    pub fn start(screen: Arc<DeviceCell>, typist: Arc<Typist>, hook: CommandHook) -> std::io::Result<Terminal> {
        if !std::io::stdout().is_terminal() || !terminal::make_raw()? {
            return Err(std::io::Error::other("standard input and output are no terminal"));
        }
        terminal::take_screen()?;
        let (stop, stopped) = channel();
        let mut output = File::from(std::io::stdout().as_fd().try_clone_to_owned()?);
        let thread = std::thread::Builder::new().name("screen".to_owned()).spawn(move || {
            let mut canvas = Canvas::default();
            let mut wait = LOOK;
            loop {
                let last = match stopped.recv_timeout(wait) {
                    Ok(help) => {
                        wait = HELP_STAYS;
                        if help {
                            let _ = output.write_all(format!("\x1b[0m\x1b[2J\x1b[H{HELP}").as_bytes());
                            canvas.forget();
                            continue;
                        }
                        true
                    }
                    Err(RecvTimeoutError::Timeout) => false,
                    Err(RecvTimeoutError::Disconnected) => true,
                };
                wait = LOOK;
                if terminal::screen_is_lost() {
                    canvas.forget();
                }
                // A terminal that is gone is no reason to stop a guest.
                let _ = output.write_all(look(&screen, &mut canvas).as_bytes());
                if last {
                    return;
                }
            }
        })?;
        let help = stop.clone();
        let input = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
        std::thread::Builder::new()
            .name("keys".to_owned())
            .spawn(move || read_keys(input, &typist, &*hook, || _ = help.send(true)))?;
        Ok(Terminal { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Terminal {
    /// Shows the last screen, and gives the terminal back.
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(false);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        terminal::restore_terminal();
    }
}

fn look(screen: &DeviceCell, canvas: &mut Canvas) -> String {
    match screen.with(|device| device.display().and_then(|display| display.text())).flatten() {
        Some(text) => canvas.show(&text, terminal::size().unwrap_or(USUAL_SIZE)),
        None => canvas.say(super::NO_TEXT),
    }
}

fn read_keys(mut input: File, typist: &Typist, hook: &dyn Fn(crate::ConsoleCommand), help: impl Fn()) {
    let mut buf = [0; 256];
    let (mut escape, mut decoder) = (Escape::default(), Decoder::default());
    loop {
        let keys = stdio::read(&mut input, &mut buf);
        if keys.is_empty() {
            return;
        }
        let mut bytes = Vec::new();
        for &key in keys {
            match escape.feed(key) {
                Typed::Held => {}
                Typed::Byte(byte) => bytes.push(byte),
                Typed::Both(key, byte) => bytes.extend([key, byte]),
                Typed::Command(command) => hook(command),
                Typed::Suspend => terminal::suspend(),
                Typed::Help => help(),
            }
        }
        // Who types on while the guest does not read loses what is too much.
        typist.press(&decoder.feed(&bytes));
    }
}
