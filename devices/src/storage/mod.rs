//! Disks and drives, and the controllers that they hang on.
//!
//! A drive is what understands commands (`drive`, with the command sets `ata` and `atapi`); a controller is how a guest
//! reaches its registers and how it reaches memory ([`PiixIde`]).

mod ata;
mod atapi;
mod bus_master;
mod drive;
mod piix_ide;
#[cfg(test)]
mod tests;

pub use piix_ide::{IdeUnit, PiixIde, PiixIdeKind};
