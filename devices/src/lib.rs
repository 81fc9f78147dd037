//! Everything optional that can be put into a machine, one file a device.
//!
//! A device is a type that implements `emu::Device` and a static `emu::Model` that names it, declares its
//! configuration keys and constructs it. Folders follow the kind of device: `net/`, `storage/`, `video/`, `audio/`,
//! `usb/`, `virtio/`. Nothing in this crate can reach a hypervisor, a file or a socket: disks, networks, consoles and
//! screens come in as the backend traits of `emu`.

pub mod storage;
pub mod video;
pub mod virtio;

use emu::Model;

/// All of them.
pub static MODELS: &[&Model] = &[
    &storage::piix_ide::PIIX3,
    &storage::piix_ide::PIIX4,
    &storage::ahci::AHCI,
    &storage::ahci::AHCI_HD,
    &storage::ahci::AHCI_CD,
    &video::stdvga::MODEL,
    &virtio::blk::MODEL,
    &virtio::net::MODEL,
    &storage::nvme::NVME,
    &virtio::rnd::MODEL,
];
