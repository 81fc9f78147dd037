//! Display adapters.
//!
//! [`vga`] is the VGA itself, which every adapter here contains; an adapter adds its bus interface and its extensions.

mod dispi;
pub mod fbuf;
mod render;
pub mod stdvga;
#[cfg(test)]
mod tests;
mod vga;
