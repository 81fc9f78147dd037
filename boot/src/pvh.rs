//! PVH: the direct entry that Xen defined for ELF kernels (note XEN_ELFNOTE_PHYS32_ENTRY).
//!
//! The processor starts in flat 32-bit mode with EBX pointing at `hvm_start_info`, version 1 here, with the memory map
//! that version brought. FreeBSD from 14.0 on starts so on any hypervisor (older ones believe to be under Xen), as do
//! NetBSD from 11 and Linux with CONFIG_PVH.
//!
//! FreeBSD takes all memory behind the highest of kernel, start info and modules for its first allocations, so these
//! come directly behind the kernel and nothing goes to the top of RAM.
//!
//! Source: Xen's public headers `arch-x86/hvm/start_info.h` and `elfnote.h`, and its document `misc/pvh.pandoc`.

use crate::bytes::Put;
use crate::elf::Elf;
use crate::image::{self, Entry, Image, Registers};
use crate::kernel::Layout;
use crate::place::Placer;
use anyhow::{Context, Result, bail};

const PHYS32_ENTRY: u32 = 18;
const MAGIC: u32 = 0x336E_C578;
const START_INFO_LEN: u64 = 56;
const MODULE_LEN: u64 = 32;
const MEMMAP_ENTRY_LEN: u64 = 24;

/// The physical entry that the note gives, if there is one.
///
/// # Errors
/// The note's entry is not inside the kernel.
pub(crate) fn entry(elf: &Elf) -> Result<Option<u32>> {
    let Some(note) = elf.notes.iter().find(|n| n.owner == b"Xen" && n.kind == PHYS32_ENTRY) else {
        return Ok(None);
    };
    let address = crate::bytes::u64_at(note.desc, 0).or_else(|| crate::bytes::u32_at(note.desc, 0).map(u64::from));
    let address = address.context("damaged ELF kernel: its PVH note is too short")?;
    match u32::try_from(address) {
        Ok(entry) if elf.holds_physical(address) => Ok(Some(entry)),
        _ => bail!("damaged ELF kernel: its PVH entry 0x{address:x} is not inside what it loads"),
    }
}

/// Loads a kernel with the note; the initrd becomes module 0.
pub(crate) fn load(elf: &Elf, entry: u32, initrd: Option<&[u8]>, cmdline: &str, layout: &Layout) -> Result<Image> {
    let mut placer = Placer::new(layout.map);
    let zero = elf.place(&mut placer)?;

    let regions = layout.map.regions();
    let memmap_len = regions.len() as u64 * MEMMAP_ENTRY_LEN;
    let len = image::GDT_LEN + START_INFO_LEN + memmap_len + MODULE_LEN + cmdline.len() as u64 + 1;
    let info_at = placer.lowest(placer.end(), len, "the start info");
    let Some(gdt_at) = info_at else { bail!(elf.does_not_fit("start info", len as usize, &placer)) };
    let start_info = gdt_at + image::GDT_LEN;
    let memmap = start_info + START_INFO_LEN;
    let modules = memmap + memmap_len;
    let text = modules + MODULE_LEN;
    let module = match initrd {
        None => None,
        Some(initrd) => match placer.lowest(placer.end(), initrd.len() as u64, "the initrd") {
            None => bail!(elf.does_not_fit("initrd", initrd.len(), &placer)),
            Some(at) => {
                placer.fill(at, initrd.to_vec());
                Some((at, initrd.len() as u64))
            }
        },
    };

    let mut block = image::gdt32();
    block.put32(MAGIC);
    block.put32(1);
    block.put32(0);
    block.put32(u32::from(module.is_some()));
    block.put64(if module.is_some() { modules } else { 0 });
    block.put64(text);
    block.put64(layout.rsdp.unwrap_or(0));
    block.put64(memmap);
    block.put32(regions.len() as u32);
    block.put32(0);
    for region in regions {
        block.put64(region.base);
        block.put64(region.len);
        block.put32(region.kind as u32);
        block.put32(0);
    }
    let (at, module_len) = module.unwrap_or_default();
    for word in [at, module_len, 0, 0] {
        block.put64(word);
    }
    block.extend_from_slice(cmdline.as_bytes());
    block.put8(0);
    placer.fill(gdt_at, block);

    let registers = Registers { rbx: start_info, ..Registers::default() };
    Ok(Image {
        what: format!("{} kernel (PVH, entry 0x{entry:x})", elf.describe()),
        pieces: placer.into_pieces(),
        zero,
        entry: Entry::flat32(entry, gdt_at, registers),
    })
}

#[cfg(test)]
mod tests {
    use crate::bytes::{u32_at, u64_at};
    use crate::elf::tests::{elf64, note, pvh_note};
    use crate::image::Mode;
    use crate::linux::tests::{MIB, layout, memory};
    use crate::memory::MemoryMap;

    #[test]
    fn start_info_describes_memory_module_and_command_line() {
        let map = MemoryMap::new(64 * MIB, 0xC000_0000).unwrap();
        let file = elf64(&[pvh_note(0x10_0010)]);
        let image = crate::load(&file, Some(b"module"), "boot -v", &layout(&map)).unwrap();
        assert_eq!((image.entry.mode(), image.entry.rip), (Mode::Flat32, 0x10_0010));
        assert_eq!((image.entry.cr0 & !0x10, image.entry.cr4, image.entry.tr.limit), (1, 0, 0x67));

        let info_at = image.entry.registers.rbx;
        assert!(info_at >= 0x10_2000, "behind the kernel's BSS");
        let info = memory(&image, info_at, 56).to_vec();
        assert_eq!((u32_at(&info, 0), u32_at(&info, 4)), (Some(0x336E_C578), Some(1)));
        assert_eq!(u64_at(&info, 0x20), Some(0xF_0000));
        let text = u64_at(&info, 0x18).unwrap();
        assert_eq!(memory(&image, text, 8), b"boot -v\0");

        assert_eq!(u32_at(&info, 0x0C), Some(1));
        let module = memory(&image, u64_at(&info, 0x10).unwrap(), 32);
        let (at, len) = (u64_at(module, 0).unwrap(), u64_at(module, 8).unwrap());
        assert_eq!(memory(&image, at, len as usize), b"module");
        assert!(at > text && at.is_multiple_of(0x1000));

        let count = u32_at(&info, 0x30).unwrap() as usize;
        let memmap = memory(&image, u64_at(&info, 0x28).unwrap(), count * 24);
        let listed: Vec<_> =
            (0..count).map(|i| (u64_at(memmap, i * 24).unwrap(), u64_at(memmap, i * 24 + 8).unwrap())).collect();
        let expected: Vec<_> = map.regions().iter().map(|r| (r.base, r.len)).collect();
        assert_eq!(listed, expected);
    }

    #[test]
    fn without_initrd_there_is_no_module() {
        let map = MemoryMap::new(64 * MIB, 0xC000_0000).unwrap();
        let image = crate::load(&elf64(&[pvh_note(0x10_0000)]), None, "", &layout(&map)).unwrap();
        let info = memory(&image, image.entry.registers.rbx, 56);
        assert_eq!((u32_at(info, 0x0C), u64_at(info, 0x10)), (Some(0), Some(0)));
    }

    #[test]
    fn notes_of_32_bits_and_damaged_notes_are_told_apart() {
        let map = MemoryMap::new(64 * MIB, 0xC000_0000).unwrap();
        let load = |note: Vec<u8>| crate::load(&elf64(&[note]), None, "", &layout(&map));
        assert_eq!(load(note(b"Xen", 18, &0x10_0004u32.to_le_bytes())).unwrap().entry.rip, 0x10_0004);
        assert!(load(note(b"Xen", 18, &[0, 0])).unwrap_err().to_string().contains("too short"));
        assert!(load(pvh_note(0x20_0000)).unwrap_err().to_string().contains("not inside"));
        assert!(load(pvh_note(u64::MAX)).unwrap_err().to_string().contains("not inside"));
    }

    #[test]
    fn initrd_too_large_is_refused_with_the_sum() {
        let map = MemoryMap::new(2 * MIB, 0xC000_0000).unwrap();
        let initrd = vec![0; 2 << 20];
        let error = crate::load(&elf64(&[pvh_note(0x10_0000)]), Some(&initrd), "", &layout(&map)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "does not fit: the kernel takes 0x100000-0x102000 + initrd 2097152 bytes = 4 MiB, \
             the guest has 2 MiB of RAM"
        );
    }
}
