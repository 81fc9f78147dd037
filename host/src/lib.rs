//! The host side: consoles, disk images, networks, displays and the event loop that drives them.
//!
//! [`IoThread`] is the machine's second kind of thread: it fires the timers of a clock that runs in real time, and it
//! is where backends wait for their descriptors. Everything that it does to a device goes through a gate that is closed
//! while the machine is paused. Backends are opened with an [`Io`] before there is a machine; [`console::open`] makes
//! what a serial port is connected to.
//!
//! The rest is the program's: [`control`] is the socket by which other processes steer a machine, [`watch_signals`] and
//! [`restore_terminal`] keep the user's terminal whole.

pub mod console;
pub mod control;
mod io;
mod signals;
mod sys;
mod terminal;
mod unix;

pub use console::{ConsoleCommand, Stdio};
pub use io::{Gate, Io, IoThread};
pub use signals::{EndSignal, watch_signals};
pub use terminal::restore_terminal;
