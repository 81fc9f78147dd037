//! Finds out what a kernel file is and hands it to the loader for its protocol.

use crate::elf::Elf;
use crate::image::Image;
use crate::memory::MemoryMap;
use crate::{bsd, gzip, identify, linux, multiboot, pvh};
use anyhow::{Result, bail, ensure};

/// What the loaders need to know about the machine.
#[derive(Clone, Copy, Debug)]
pub struct Layout<'a> {
    /// The finished map: firmware tables are already reserved in it.
    pub map: &'a MemoryMap,
    /// Guest-physical address of the ACPI RSDP, if there is one.
    pub rsdp: Option<u64>,
    /// A VGA adapter is there and stands in text mode 3, 80 by 25.
    pub vga_text: bool,
    /// The processor has long mode. `false` makes 64-bit kernels start by their 32-bit entry.
    pub long_mode: bool,
}

/// Loads `kernel` with an optional initrd (a module for PVH and multiboot) and a command line.
///
/// Taken are Linux bzImage files, ELF kernels with a PVH note, ELF or raw kernels with a multiboot 1 header, OpenBSD's
/// and NetBSD's kernels by their own protocols, and plain ELF kernels for the Linux boot protocol whose entry is a
/// physical address, tried in that order. OpenBSD and NetBSD come first where the command line begins with an option
/// of GRUB's kopenbsd and knetbsd, as `-h com0`. A gzip file is what is in it.
///
/// # Errors
/// One line that says what the file is, or which part does not fit and by what sum. Nothing of the path: the caller
/// knows it.
pub fn load(kernel: &[u8], initrd: Option<&[u8]>, cmdline: &str, layout: &Layout) -> Result<Image> {
    ensure!(!cmdline.contains('\0'), "the command line holds a NUL byte");
    ensure!(initrd.is_none_or(|i| !i.is_empty()), "the initrd is an empty file");
    let unpacked = gzip::unpack(kernel, layout.map.ram())?;
    let kernel = unpacked.as_deref().unwrap_or(kernel);
    if linux::is_bzimage(kernel) {
        return linux::load(kernel, initrd, cmdline, layout);
    }
    if let Some(elf) = Elf::parse(kernel)? {
        let options = cmdline.trim_start().starts_with('-');
        if options && let Some(system) = bsd::system(kernel) {
            return bsd::load(system, elf, initrd, cmdline, layout);
        }
        if let Some(entry) = pvh::entry(&elf)? {
            return pvh::load(&elf, entry, initrd, cmdline, layout);
        }
        if let Some(header) = multiboot::Header::find(kernel)? {
            return multiboot::load(kernel, &header, Some(&elf), initrd, cmdline, layout);
        }
        if let Some(system) = bsd::system(kernel) {
            return bsd::load(system, elf, initrd, cmdline, layout);
        }
        return load_plain_elf(&elf, initrd, cmdline, layout);
    }
    if let Some(header) = multiboot::Header::find(kernel)? {
        return multiboot::load(kernel, &header, None, initrd, cmdline, layout);
    }
    bail!("not a kernel that can be booted: {}", identify::describe(kernel));
}

/// An uncompressed Linux (or anything that wants the same): entered at e_entry with `boot_params`, in 64-bit mode for
/// ELF64 and flat 32-bit mode for ELF32.
fn load_plain_elf(elf: &Elf, initrd: Option<&[u8]>, cmdline: &str, layout: &Layout) -> Result<Image> {
    elf.refuse_programs()?;
    ensure!(
        elf.holds_physical(elf.entry),
        "{} kernel without PVH note or multiboot header, entry 0x{:x} is no physical address: no known way to start it",
        elf.describe(),
        elf.entry
    );
    ensure!(layout.long_mode || !elf.wide, "64-bit ELF kernel, but the guest's processor has no long mode");
    let mut placer = crate::place::Placer::new(layout.map);
    let zero = elf.place(&mut placer)?;
    let initrd_at = match initrd {
        None => 0,
        Some(initrd) => {
            let at = placer.highest(0x8000_0000, initrd.len() as u64, "the initrd");
            let Some(at) = at else { bail!(elf.does_not_fit("initrd", initrd.len(), &placer)) };
            placer.fill(at, initrd.to_vec());
            at
        }
    };
    let mut params = linux::boot_params(layout);
    // A header like that of a bzImage with protocol 2.15: the kernel itself reads these back.
    crate::bytes::set(&mut params, 0x1FE, &[0x55, 0xAA]);
    crate::bytes::set(&mut params, 0x202, b"HdrS");
    crate::bytes::set(&mut params, 0x206, &0x20Fu16.to_le_bytes());
    params[0x211] = 1;
    crate::bytes::set(&mut params, 0x230, &0x100_0000u32.to_le_bytes());
    let start = if elf.wide { linux::Start::Long(elf.entry) } else { linux::Start::Flat(elf.entry) };
    let initrd = (initrd_at, initrd.map_or(0, |i| i.len() as u64));
    let entry = linux::finish(&mut placer, params, cmdline, initrd, start)?;
    let what = format!("{} kernel (Linux protocol, entry 0x{:x})", elf.describe(), elf.entry);
    Ok(Image { what, pieces: placer.into_pieces(), zero, entry })
}

/// `bytes` in MiB, rounded up: a sum in an error must not look smaller than it is.
pub(crate) fn mib_up(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Mode;
    use crate::linux::tests::{MIB, bzimage, layout, memory};

    fn map() -> MemoryMap {
        MemoryMap::new(256 * MIB, 0xC000_0000).unwrap()
    }

    #[test]
    fn every_known_format_is_recognised() {
        let map = map();
        for (file, start) in [
            (bzimage(64), "Linux 6.1.0-test"),
            (crate::elf::tests::elf64(&[crate::elf::tests::pvh_note(0x10_0000)]), "64-bit x86-64 ELF kernel (PVH"),
            (crate::elf::tests::elf64(&[]), "64-bit x86-64 ELF kernel (Linux protocol"),
            (crate::multiboot::tests::raw(), "multiboot kernel"),
        ] {
            let image = load(&file, None, "", &layout(&map)).unwrap();
            assert!(image.what.starts_with(start), "{}", image.what);
        }
    }

    #[test]
    fn plain_elf_gets_boot_params_in_long_mode() {
        let map = map();
        let image = load(&crate::elf::tests::elf64(&[]), Some(b"ramdisk"), "root=x", &layout(&map)).unwrap();
        assert_eq!((image.entry.mode(), image.entry.rip), (Mode::Long64, 0x10_0000));
        let params = memory(&image, image.entry.registers.rsi, 4096);
        assert_eq!(&params[0x202..0x206], b"HdrS");
        let at = crate::bytes::u32_at(params, 0x218).unwrap();
        assert_eq!(memory(&image, at.into(), 7), b"ramdisk");
        assert_eq!((image.zero.len(), &image.zero[0]), (1, &(0x10_0040..0x10_2000)));
        let short = Layout { long_mode: false, ..layout(&map) };
        assert!(load(&crate::elf::tests::elf64(&[]), None, "", &short).unwrap_err().to_string().contains("long mode"));
    }

    #[test]
    fn other_files_are_refused_by_what_they_are() {
        let map = map();
        let error = |file: &[u8]| load(file, None, "", &layout(&map)).unwrap_err().to_string();
        assert_eq!(error(b""), "not a kernel that can be booted: an empty file");
        assert!(error(&[0x1F, 0x8B, 8, 0, 0, 0]).contains("gzip"));
        assert!(error(b"BZh9").contains("bzip2"));
        assert!(load(&bzimage(64), Some(b""), "", &layout(&map)).unwrap_err().to_string().contains("initrd"));
        assert!(load(&bzimage(64), None, "a\0b", &layout(&map)).unwrap_err().to_string().contains("NUL"));
    }
}
