//! The host side: consoles, disk images, networks, displays and the event loop that drives them.
//!
//! [`IoThread`] is the machine's second kind of thread: it fires the timers of a clock that runs in real time, and it
//! is where backends wait for their descriptors. Everything that it does to a device goes through a gate that is closed
//! while the machine is paused. Backends are opened with an [`Io`] before there is a machine; [`console::open`] makes
//! what a serial port is connected to, [`disk::Image`] opens what a disk consists of, [`net`] has
//! what cables lead to, [`share::Share`] serves a directory.
//!
//! [`sandbox`] confines the process before the guest's first instruction; [`broker`] then opens for it what the
//! configuration allows. The rest is the program's: [`control`] is the socket by which other processes steer a machine, [`watch_signals`] and
//! [`restore_terminal`] keep the user's terminal whole.

pub mod broker;
pub mod console;
pub mod control;
pub mod disk;
mod door;
pub mod evdev;
mod io;
pub mod keyboard;
mod listen;
pub mod net;
mod part;
pub mod pointer;
pub mod process;
pub mod sandbox;
pub mod screen;
pub mod share;
mod signals;
pub mod sound;
mod sys;
mod terminal;
mod title;
mod unix;
pub mod vnc;

pub use console::ConsoleCommand;
pub use door::{Bell, Door, Heard};
pub use io::{Gate, Io, IoThread};
pub use listen::{Listener, Place};
pub use signals::{EndSignal, watch_signals};
pub use terminal::{restore_terminal, terminal_is_raw};
pub use title::set_title;

/// The processor time that this process has used, on all of its threads.
pub fn cpu_time() -> std::time::Duration {
    use nix::sys::resource::{UsageWho, getrusage};
    // It fails for wrong arguments only.
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return std::time::Duration::ZERO };
    let part = |t: nix::sys::time::TimeVal| std::time::Duration::new(t.tv_sec() as u64, t.tv_usec() as u32 * 1000);
    part(usage.user_time()) + part(usage.system_time())
}

/// What local time is ahead of UTC, in seconds, at a time in seconds since 1970.
#[expect(unsafe_code, reason = "localtime_r(3) is the only one who knows")]
pub fn utc_offset(at: i64) -> i64 {
    let at = at as libc::time_t;
    // SAFETY: all-zero bytes are a valid tm, and the call reads and fills in what it is given.
    let tm = unsafe {
        let mut tm: libc::tm = std::mem::zeroed();
        libc::localtime_r(&raw const at, &raw mut tm);
        tm
    };
    tm.tm_gmtoff
}

/// The bytes that the file system of a path has for this user.
///
/// # Errors
/// When there is no such path.
pub fn free_space(path: &std::path::Path) -> std::io::Result<u64> {
    let said = nix::sys::statvfs::statvfs(path)?;
    Ok(said.blocks_available().saturating_mul(said.fragment_size()))
}
