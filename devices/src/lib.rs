//! Everything optional that can be put into a machine, one file a device.
//!
//! A device is a type that implements `emu::Device` and a static `emu::Model` that names it, declares its
//! configuration keys and constructs it. Folders follow the kind of device: `net/`, `storage/`, `video/`, `audio/`,
//! `usb/`, `virtio/`. Nothing in this crate can reach a hypervisor, a file or a socket: disks, networks, consoles and
//! screens come in as the backend traits of `emu`.

pub mod audio;
mod motion;
pub mod net;
pub mod storage;
pub mod usb;
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
    &video::fbuf::MODEL,
    &virtio::blk::MODEL,
    &virtio::net::MODEL,
    &net::e1000::E1000_82545EM,
    &net::e1000::E1000_82540EM,
    &net::e1000::E1000_82543GC,
    &net::dec21140::DEC21140,
    &net::dec21140::DEC21143,
    &net::pcnet::PCNET,
    &net::pcnet::PCNET_FAST,
    &net::rtl8139::MODEL,
    &net::rtl8169::MODEL,
    &net::ne2000::PCI,
    &net::ne2000::ISA,
    &storage::nvme::NVME,
    &virtio::rnd::MODEL,
    &virtio::console::MODEL,
    &virtio::p9::MODEL,
    &virtio::scsi::MODEL,
    &virtio::input::MODEL,
    &audio::hda::MODEL,
    &usb::xhci::MODEL,
    &lpc::UART,
];
