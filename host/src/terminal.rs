//! The terminal that the program was started from: raw while it is a guest's console, and with a screen of its own
//! while it shows the guest's; as it was found whenever the program is not running.
//!
//! "Whenever" means: a normal end and `exit` (by atexit), a panic (by a hook, for the program is built to abort), a
//! crash (by handlers that put the terminal right and then let the signal end the program), the signals that
//! [`crate::watch_signals`] takes, and suspension. Only SIGKILL leaves it raw.

#![expect(unsafe_code, reason = "atexit and signal handlers have no safe form")]

use std::io::IsTerminal;
use std::os::fd::BorrowedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, kill, raise, sigaction};
use nix::sys::termios::{SetArg, SpecialCharacterIndices, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{Pid, getpgrp, tcgetpgrp};

/// The modes found at the start.
static FOUND: OnceLock<libc::termios> = OnceLock::new();
/// The terminal is raw now.
static RAW: AtomicBool = AtomicBool::new(false);
/// It is to be raw whenever the program runs in the foreground.
static WANTED: AtomicBool = AtomicBool::new(false);

/// The guest's screen is shown on it, on a screen of its own.
static SCREEN: AtomicBool = AtomicBool::new(false);
/// What was on that screen is not there any more.
static LOST: AtomicBool = AtomicBool::new(false);

/// To the terminal's other screen and back. Attributes, cursor and scrolling are as programs expect them.
const ENTER_SCREEN: &[u8] = b"\x1b[?1049h\x1b[?7l\x1b[0m\x1b[2J";
const LEAVE_SCREEN: &[u8] = b"\x1b[0m\x1b[?25h\x1b[?7h\x1b[?1049l";

/// The signals of a crash, and what they did before.
const CRASHES: [Signal; 5] = [Signal::SIGABRT, Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE];
static BEFORE: [OnceLock<SigAction>; CRASHES.len()] = [const { OnceLock::new() }; CRASHES.len()];

fn terminal() -> BorrowedFd<'static> {
    // SAFETY: the program never closes descriptor 0; if its parent did, the calls fail with EBADF.
    unsafe { BorrowedFd::borrow_raw(0) }
}

/// Makes standard input raw, to be restored on any exit. False if it is no terminal.
pub(crate) fn make_raw() -> std::io::Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Ok(false);
    }
    if FOUND.get().is_none() {
        let _ = FOUND.set(tcgetattr(terminal())?.into());
        install()?;
    }
    WANTED.store(true, Ordering::SeqCst);
    enter()?;
    Ok(true)
}

fn enter() -> std::io::Result<()> {
    let Some(found) = FOUND.get() else { return Ok(()) };
    let mut raw = Termios::from(*found);
    cfmakeraw(&mut raw);
    raw.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
    raw.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
    // First the flag: whoever ends the program from here on puts right what may be wrong.
    RAW.store(true, Ordering::SeqCst);
    // Not TCSAFLUSH: what was typed ahead is for the guest.
    tcsetattr(terminal(), SetArg::TCSANOW, &raw)?;
    if SCREEN.load(Ordering::SeqCst) {
        send(ENTER_SCREEN);
        LOST.store(true, Ordering::SeqCst);
    }
    Ok(())
}

/// Writes to standard output, from a signal handler too.
fn send(bytes: &[u8]) {
    // SAFETY: as for descriptor 0.
    let _ = nix::unistd::write(unsafe { BorrowedFd::borrow_raw(1) }, bytes);
}

/// Gives the guest's screen the whole terminal, which is raw already, until [`restore_terminal`].
pub(crate) fn take_screen() -> std::io::Result<()> {
    SCREEN.store(true, Ordering::SeqCst);
    enter()
}

/// Whether all that was written to the screen is gone; asked once each time.
pub(crate) fn screen_is_lost() -> bool {
    LOST.swap(false, Ordering::SeqCst)
}

/// Columns and lines of the terminal, if it says.
pub(crate) fn size() -> Option<(usize, usize)> {
    // SAFETY: all-zero bytes are a valid winsize, which the call only fills in.
    let size = unsafe {
        let mut size: libc::winsize = std::mem::zeroed();
        (libc::ioctl(1, libc::TIOCGWINSZ, &raw mut size) == 0).then_some(size)
    }?;
    (size.ws_col > 0 && size.ws_row > 0).then(|| (size.ws_col.into(), size.ws_row.into()))
}

fn leave() {
    if RAW.swap(false, Ordering::SeqCst)
        && let Some(found) = FOUND.get()
    {
        // From the background this would stop the program, which may be about to end.
        let mut quiet = SigSet::empty();
        quiet.add(Signal::SIGTTOU);
        let old = quiet.thread_swap_mask(SigmaskHow::SIG_BLOCK);
        let _ = tcsetattr(terminal(), SetArg::TCSANOW, &Termios::from(*found));
        if SCREEN.load(Ordering::SeqCst) {
            send(LEAVE_SCREEN);
        }
        if let Ok(old) = old {
            let _ = old.thread_set_mask();
        }
    }
}

/// Puts the terminal back into the modes in which it was found, for good. May be called at any time, from a signal
/// handler too, and more than once.
pub fn restore_terminal() {
    WANTED.store(false, Ordering::SeqCst);
    leave();
    SCREEN.store(false, Ordering::SeqCst);
}

/// Whether the terminal is raw now, so that a line of text ends with CR LF.
pub fn terminal_is_raw() -> bool {
    RAW.load(Ordering::SeqCst)
}

/// Stops the program as the shell's suspend key does; the terminal is the shell's until [`resumed`].
pub(crate) fn suspend() {
    leave();
    let _ = kill(Pid::this(), Signal::SIGSTOP);
}

/// The program goes on after having been stopped. In the background the terminal stays as it is; coming to the
/// foreground is another SIGCONT.
pub(crate) fn resumed() {
    if WANTED.load(Ordering::SeqCst) && tcgetpgrp(terminal()) == Ok(getpgrp()) {
        let _ = enter();
    }
}

/// Sees to it that no end of the program leaves the terminal raw.
fn install() -> std::io::Result<()> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        restore_terminal();
        hook(info);
    }));
    // SAFETY: the function takes nothing, returns nothing and does not unwind.
    if unsafe { libc::atexit(at_exit) } != 0 {
        return Err(std::io::Error::other("atexit has no room"));
    }
    // On the alternate stack, for a stack overflow is one of the crashes.
    let flags = SaFlags::SA_ONSTACK | SaFlags::SA_SIGINFO;
    let action = SigAction::new(SigHandler::SigAction(on_crash), flags, SigSet::empty());
    for (signal, before) in CRASHES.into_iter().zip(&BEFORE) {
        // SAFETY: the handler calls only what is safe in one: atomics, tcsetattr, sigmask, sigaction and raise.
        let _ = before.set(unsafe { sigaction(signal, &action) }?);
    }
    Ok(())
}

extern "C" fn at_exit() {
    restore_terminal();
}

extern "C" fn on_crash(number: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    restore_terminal();
    // SAFETY: the kernel passes a siginfo to a handler that is installed with SA_SIGINFO.
    let code = unsafe { (*info).si_code };
    // The codes of the kernel's own faults are small; those of signals sent by somebody are 0 or less on Linux, and
    // above 0x10000 on FreeBSD.
    let fault = (1..0x10000).contains(&code);
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for (signal, before) in CRASHES.into_iter().zip(&BEFORE) {
        if signal as libc::c_int == number {
            // A fault happens again when this returns, and then meets what was there before us: Rust's own handler,
            // which knows a stack overflow. A signal that was sent would be swallowed by that.
            let then = before.get().filter(|_| fault).unwrap_or(&default);
            // SAFETY: puts back what was there at the start of the program.
            let _ = unsafe { sigaction(signal, then) };
            if !fault {
                let _ = raise(signal);
            }
        }
    }
}

#[cfg(test)]
mod tests;
