//! The signals that a user or the system sends to the program, taken by a thread instead of by handlers, so that what
//! they lead to may lock and write.

#![expect(unsafe_code, reason = "a signal's disposition can be read by sigaction only")]

use std::io;

use nix::sys::signal::{SigSet, Signal};

use crate::terminal;

/// A signal that asks the program to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndSignal {
    /// SIGTERM.
    Terminate,
    /// SIGINT; not from a terminal that is a guest's console, where the key goes to the guest.
    Interrupt,
    /// SIGHUP: the terminal is gone.
    Hangup,
}

/// From now on `told` hears of SIGTERM, SIGINT and SIGHUP, on a thread of its own, each time one comes. SIGTSTP stops
/// the program with its terminal restored, and SIGCONT makes it raw again.
///
/// To be called before any other thread is started: threads inherit that they do not take these signals.
///
/// # Errors
/// When the host has no thread for it.
pub fn watch_signals(told: impl Fn(EndSignal) + Send + 'static) -> io::Result<()> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGTSTP] {
        // nohup(1) and shells without job control start programs with some of them ignored; waiting would undo that.
        if !ignored(signal) {
            set.add(signal);
        }
    }
    set.add(Signal::SIGCONT);
    // A file that may not grow past a limit of the shell's is an error of the write and no reason to end.
    set.add(Signal::SIGXFSZ);
    set.thread_block()?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        loop {
            match set.wait() {
                Ok(Signal::SIGTERM) => told(EndSignal::Terminate),
                Ok(Signal::SIGINT) => told(EndSignal::Interrupt),
                Ok(Signal::SIGHUP) => told(EndSignal::Hangup),
                Ok(Signal::SIGTSTP) => terminal::suspend(),
                Ok(Signal::SIGCONT) => terminal::resumed(),
                Ok(_) | Err(_) => {}
            }
        }
    })?;
    Ok(())
}

fn ignored(signal: Signal) -> bool {
    // SAFETY: all-zero bytes are a valid sigaction, which the call only fills in.
    let action = unsafe {
        let mut action: nix::libc::sigaction = std::mem::zeroed();
        nix::libc::sigaction(signal as nix::libc::c_int, std::ptr::null(), &raw mut action);
        action
    };
    action.sa_sigaction == nix::libc::SIG_IGN
}
