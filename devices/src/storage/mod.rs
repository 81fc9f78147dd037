//! Disks and drives, and the controllers that they hang on.
//!
//! A drive is what understands commands (`drive`, with the command sets `ata`, `sata` and `atapi`; `scsi`); a controller is how
//! a guest reaches its registers and how it reaches memory ([`piix_ide`], [`ahci`]). [`nvme`] is both in one, and
//! virtio-scsi stands with the other virtio devices.

pub mod ahci;
mod ahci_port;
mod ata;
mod atapi;
mod bus_master;
mod drive;
mod mmc;
pub mod nvme;
mod nvme_admin;
mod nvme_queue;
pub mod piix_ide;
mod sata;
pub(crate) mod scsi;
#[cfg(test)]
mod tests;
