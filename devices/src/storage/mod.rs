//! Disks and drives, and the controllers that they hang on.
//!
//! A drive is what understands commands (`drive`, with the command sets `ata` and `atapi`); a controller is how a guest
//! reaches its registers and how it reaches memory ([`piix_ide`]).

mod ata;
mod atapi;
mod bus_master;
mod drive;
pub mod piix_ide;
#[cfg(test)]
mod tests;
