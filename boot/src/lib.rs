//! What a machine needs before the guest's first instruction: firmware tables and kernel loaders.
//!
//! Everything here is a pure function from descriptions to memory images. Nothing in this crate sees a device, a file
//! or a hypervisor: [`load`] turns a kernel file into [`Image`] (pieces of memory and the first vCPU's registers), and
//! [`tables::build`] turns a [`platform::Platform`] into ACPI, MP, SMBIOS and $PIR tables. The caller writes the pieces
//! into guest RAM, again after every reset, and sets the registers.
//!
//! The usual order: make a [`MemoryMap`] from the RAM size, let [`tables::build`] reserve its area in it, then [`load`]
//! the kernel with the finished map, since the kernel is given that map as its E820 table.
//!
//! Kernel files are untrusted as guests are: a truncated or crafted one is an error of one line, never a panic, and
//! never costs more memory than the file and the guest's RAM together.

mod acpi;
pub mod bios;
mod bsd;
mod bytes;
mod dsdt;
mod elf;
mod gzip;
mod identify;
mod image;
mod kernel;
mod linux;
pub mod loader;
mod memory;
mod mp;
mod multiboot;
mod netbsd;
mod openbsd;
mod pir;
mod place;
pub mod platform;
mod pvh;
mod smbios;
pub mod tables;
pub mod video;

pub use image::{DescriptorTable, Entry, Image, Mode, Piece, Registers, Segment};
pub use kernel::{Layout, load};
pub use linux::required_features;
pub use memory::{Kind, MemoryMap, Region};
