//! Virtio: devices that were made for virtual machines.
//!
//! Virtual I/O Device (VIRTIO) Version 1.2 (OASIS), and virtio 0.9.5 for drivers of before 2014. What a device does
//! stands in its file ([`blk`], [`console`], [`input`], [`net`], [`p9`], [`rnd`], [`scsi`]); all reach the guest by split virtqueues (`queue`) and as PCI
//! functions (`pci`).
//!
//! Each model has a key `version`. A `legacy` device has registers in the I/O space of BAR 0 and is what the first
//! drivers know: Linux 2.6.25, FreeBSD 9.0, OpenBSD 5.3, NetBSD 6.0, and bhyve's guests to this day. A `modern` one has
//! capabilities that tell where in the memory of BAR 4 its registers are, and an identity of its own. A `transitional`
//! one looks like a legacy device and has both; it is the default, as old drivers do not look at its capabilities and
//! new ones do.

pub mod blk;
pub mod console;
pub mod input;
pub mod net;
pub mod p9;
mod pci;
mod queue;
pub mod rnd;
pub mod scsi;
#[cfg(test)]
mod tests;
