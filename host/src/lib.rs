//! The host side: consoles, disk images, networks, displays and the event loop that drives them.
//!
//! [`IoThread`] is the machine's second kind of thread: it fires the timers of a clock that runs in real time, and it is where
//! backends wait for their descriptors. Everything that it does to a device goes through a gate that is closed while the
//! machine is paused.

mod console;
mod io;

pub use console::Stdio;
pub use io::{Gate, IoThread};
