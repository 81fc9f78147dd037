//! The host side: consoles, disk images, networks, displays and the event loop that drives them.
//!
//! [`IoThread`] is the machine's second kind of thread: it fires the timers of a clock that runs in real time, and it
//! is where backends wait for their descriptors. Everything that it does to a device goes through a gate that is closed
//! while the machine is paused. Backends are opened with an [`Io`] before there is a machine; [`console::open`] makes
//! what a serial port is connected to, [`disk::Image`] opens what a disk consists of, [`net`] has
//! what cables lead to.
//!
//! [`sandbox`] confines the process before the guest's first instruction; [`broker`] then opens for it what the
//! configuration allows. The rest is the program's: [`control`] is the socket by which other processes steer a machine, [`watch_signals`] and
//! [`restore_terminal`] keep the user's terminal whole.

pub mod broker;
pub mod console;
pub mod control;
pub mod disk;
mod io;
pub mod keyboard;
pub mod net;
mod part;
pub mod sandbox;
pub mod screen;
mod signals;
mod sys;
mod terminal;
mod unix;

pub use console::ConsoleCommand;
pub use io::{Gate, Io, IoThread};
pub use signals::{EndSignal, watch_signals};
pub use terminal::{restore_terminal, terminal_is_raw};

/// The processor time that this process has used, on all of its threads.
pub fn cpu_time() -> std::time::Duration {
    use nix::sys::resource::{UsageWho, getrusage};
    // It fails for wrong arguments only.
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return std::time::Duration::ZERO };
    let part = |t: nix::sys::time::TimeVal| std::time::Duration::new(t.tv_sec() as u64, t.tv_usec() as u32 * 1000);
    part(usage.user_time()) + part(usage.system_time())
}
