//! Multiboot 1: the protocol of GRUB legacy. NetBSD/i386 kernels (4.0 and later) and many hobby kernels have its
//! header.
//!
//! The kernel is ELF, or any file when header flag 16 gives load addresses. It starts in flat 32-bit mode with EAX
//! 0x2BADB002 and EBX pointing at the information structure: memory sizes, memory map, command line, one module for the
//! initrd, loader name. As GRUB legacy does, the command line begins with a word for the kernel's name, which NetBSD
//! skips. Not given: symbol tables, drives, APM and video tables; a video mode request (flag 2) is not honoured, the
//! screen stays in text mode. Source: Multiboot Specification 0.6.96.

use crate::bsd;
use crate::bytes::{Put, set, u32_at};
use crate::elf::Elf;
use crate::image::{self, Entry, Image, Registers};
use crate::kernel::Layout;
use crate::place::Placer;
use anyhow::{Context, Result, ensure};
use std::ops::Range;

const HEADER_MAGIC: u32 = 0x1BAD_B002;
const ENTRY_MAGIC: u64 = 0x2BAD_B002;
/// The header lies inside this many first bytes of the file.
const SEARCH: usize = 8192;
/// Page-align modules, memory information, video mode: the required features of the specification.
const KNOWN_REQUIRED: u32 = 7;
const HAS_ADDRESSES: u32 = 1 << 16;
const INFO_LEN: u64 = 0x78;
const MODULE_LEN: u64 = 16;
const LOADER_NAME: &[u8] = b"bhyve-rs\0";

/// A multiboot header found in a file.
#[derive(Debug)]
pub(crate) struct Header {
    offset: usize,
    flags: u32,
}

impl Header {
    /// Looks for a header with a valid checksum.
    ///
    /// # Errors
    /// There is one, but it requires a feature that the specification does not have.
    pub(crate) fn find(file: &[u8]) -> Result<Option<Self>> {
        let end = file.len().min(SEARCH);
        for offset in (0..end.saturating_sub(11)).step_by(4) {
            if u32_at(file, offset) != Some(HEADER_MAGIC) {
                continue;
            }
            let (Some(flags), Some(checksum)) = (u32_at(file, offset + 4), u32_at(file, offset + 8)) else { break };
            if HEADER_MAGIC.wrapping_add(flags).wrapping_add(checksum) == 0 {
                let unknown = flags & 0xFFFF & !KNOWN_REQUIRED;
                ensure!(unknown == 0, "multiboot kernel that requires unknown features (header flags 0x{unknown:x})");
                return Ok(Some(Self { offset, flags }));
            }
        }
        Ok(None)
    }
}

/// Loads a kernel with a multiboot header; `elf` is its parsed form when it is ELF.
pub(crate) fn load(
    file: &[u8],
    header: &Header,
    elf: Option<&Elf>,
    initrd: Option<&[u8]>,
    cmdline: &str,
    layout: &Layout,
) -> Result<Image> {
    let mut placer = Placer::new(layout.map);
    let (entry, zero) = if header.flags & HAS_ADDRESSES != 0 {
        place_by_addresses(file, header, &mut placer)?
    } else {
        let elf = elf.context("multiboot kernel that is neither ELF nor gives load addresses in its header")?;
        let entry = u32::try_from(elf.entry).ok().filter(|_| elf.holds_physical(elf.entry));
        let entry = entry.with_context(|| {
            format!("multiboot ELF kernel whose entry 0x{:x} is no physical address that it loads", elf.entry)
        })?;
        (entry, elf.place(&mut placer)?)
    };

    let mut text = b"kernel ".to_vec();
    text.extend_from_slice(cmdline.as_bytes());
    text.push(0);
    let mmap = memory_map(layout);
    let len = image::GDT_LEN + INFO_LEN + MODULE_LEN + (mmap.len() + LOADER_NAME.len() + text.len()) as u64;
    let no_room = |what: &str, len: u64, placer: &Placer| {
        format!(
            "does not fit: the kernel ends at 0x{:x} + {what} {len} bytes, the guest has {}",
            placer.end(),
            placer.describe_ram()
        )
    };
    let gdt_at = placer.lowest(placer.end(), len, "the multiboot information");
    let gdt_at = gdt_at.with_context(|| no_room("information", len, &placer))?;
    let info_at = gdt_at + image::GDT_LEN;
    let module_at = info_at + INFO_LEN;
    let mmap_at = module_at + MODULE_LEN;
    let name_at = mmap_at + mmap.len() as u64;
    let text_at = name_at + LOADER_NAME.len() as u64;

    let mut info = vec![0; INFO_LEN as usize];
    let mut field = |at: usize, value: u64| set(&mut info, at, &(value as u32).to_le_bytes());
    let mut module = [0; MODULE_LEN as usize];
    let (mem_lower, mem_upper) = bsd::memory_sizes(layout);
    field(0x00, if initrd.is_some() { 0x24D } else { 0x245 });
    field(0x04, mem_lower.into());
    field(0x08, mem_upper.into());
    field(0x10, text_at);
    if let Some(initrd) = initrd {
        let at = placer.lowest(placer.end(), initrd.len() as u64, "the initrd");
        let at = at.with_context(|| no_room("initrd", initrd.len() as u64, &placer))?;
        set(&mut module, 0, &(at as u32).to_le_bytes());
        set(&mut module, 4, &((at + initrd.len() as u64) as u32).to_le_bytes());
        placer.fill(at, initrd.to_vec());
        field(0x14, 1);
        field(0x18, module_at);
    }
    field(0x2C, mmap.len() as u64);
    field(0x30, mmap_at);
    field(0x40, name_at);
    placer.fill(gdt_at, [&image::gdt32(), &info, &module[..], &mmap, LOADER_NAME, &text].concat());

    let registers = Registers { rax: ENTRY_MAGIC, rbx: info_at, ..Registers::default() };
    Ok(Image {
        what: format!("multiboot kernel (entry 0x{entry:x})"),
        pieces: placer.into_pieces(),
        zero,
        entry: Entry::flat32(entry, gdt_at, registers),
    })
}

/// Places the part of the file that header flag 16 describes. Returns entry and BSS.
fn place_by_addresses(file: &[u8], header: &Header, placer: &mut Placer) -> Result<(u32, Vec<Range<u64>>)> {
    let field = |index: usize| {
        u32_at(file, header.offset + 12 + index * 4).context("truncated multiboot kernel: it ends inside the header")
    };
    let (header_addr, load_addr, load_end) = (field(0)?, field(1)?, field(2)?);
    let (bss_end, entry) = (field(3)?, field(4)?);
    let damaged = || {
        format!(
            "damaged multiboot kernel: header at 0x{header_addr:x}, load 0x{load_addr:x}-0x{load_end:x}, \
             BSS to 0x{bss_end:x}"
        )
    };
    let start = header_addr
        .checked_sub(load_addr)
        .and_then(|ahead| header.offset.checked_sub(ahead as usize))
        .with_context(damaged)?;
    let len = match load_end {
        0 => file.len() - start,
        end => end.checked_sub(load_addr).with_context(damaged)? as usize,
    };
    let data = file.get(start..).and_then(|rest| rest.get(..len)).with_context(|| {
        format!("truncated multiboot kernel: {len} bytes from offset {start}, the file has {}", file.len())
    })?;
    let data_end = u64::from(load_addr) + len as u64;
    let end = data_end.max(u64::from(bss_end));
    placer.claim(u64::from(load_addr), end - u64::from(load_addr), "the kernel")?;
    ensure!(
        (u64::from(load_addr)..end).contains(&u64::from(entry)),
        "damaged multiboot kernel: entry 0x{entry:x} is outside 0x{load_addr:x}-0x{end:x}"
    );
    placer.fill(u64::from(load_addr), data.to_vec());
    let bss = data_end..end;
    Ok((entry, if bss.is_empty() { Vec::new() } else { vec![bss] }))
}

/// Entries of 24 bytes: size of the rest (20), base, length, E820 type.
fn memory_map(layout: &Layout) -> Vec<u8> {
    let mut table = Vec::new();
    for region in layout.map.regions() {
        table.put32(20);
        table.put64(region.base);
        table.put64(region.len);
        table.put32(region.kind as u32);
    }
    table
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::bytes::u64_at;
    use crate::elf::tests::elf32;
    use crate::image::Mode;
    use crate::linux::tests::{MIB, layout, memory};
    use crate::memory::MemoryMap;

    /// A header with these flags.
    pub(crate) fn header(flags: u32) -> Vec<u8> {
        let mut header = Vec::new();
        for word in [HEADER_MAGIC, flags, 0u32.wrapping_sub(HEADER_MAGIC).wrapping_sub(flags)] {
            header.put32(word);
        }
        header
    }

    /// A kernel that is not ELF: 16 bytes of something else, then what is loaded at 1 MiB + 0x40, header first.
    pub(crate) fn raw() -> Vec<u8> {
        let mut file = vec![0xEE; 16];
        file.extend(header(HAS_ADDRESSES | 3));
        for address in [0x10_0040, 0x10_0040, 0x10_0080, 0x10_0100, 0x10_0060] {
            file.put32(address);
        }
        file.resize(16 + 0x40, 0xF4);
        file
    }

    fn map() -> MemoryMap {
        MemoryMap::new(64 * MIB, 0xC000_0000).unwrap()
    }

    fn load(file: &[u8]) -> Result<Image> {
        crate::load(file, None, "", &layout(&map()))
    }

    #[test]
    fn elf_kernel_gets_information_map_and_module() {
        let map = map();
        let image = crate::load(&elf32(&header(3)), Some(b"mod"), "root=wd0a", &layout(&map)).unwrap();
        let entry = image.entry;
        assert_eq!((entry.mode(), entry.rip, entry.registers.rax), (Mode::Flat32, 0x10_0000, 0x2BAD_B002));
        let info = memory(&image, entry.registers.rbx, INFO_LEN as usize).to_vec();
        let field = |at: usize| u32_at(&info, at).unwrap();
        assert_eq!((field(0), field(4), field(8)), (0x24D, 639, 63 * 1024));
        assert_eq!(memory(&image, field(0x10).into(), 17), b"kernel root=wd0a\0");
        assert_eq!(memory(&image, field(0x40).into(), 9), b"bhyve-rs\0");

        assert_eq!(field(0x14), 1);
        let module = memory(&image, field(0x18).into(), 16);
        let (start, end) = (u32_at(module, 0).unwrap(), u32_at(module, 4).unwrap());
        assert_eq!(memory(&image, start.into(), (end - start) as usize), b"mod");
        assert!(start.is_multiple_of(4096));

        let mmap = memory(&image, field(0x30).into(), field(0x2C) as usize);
        let entries: Vec<_> = mmap
            .chunks(24)
            .map(|e| (u32_at(e, 0).unwrap(), u64_at(e, 4).unwrap(), u64_at(e, 12).unwrap(), u32_at(e, 20).unwrap()))
            .collect();
        let expected: Vec<_> = map.regions().iter().map(|r| (20, r.base, r.len, r.kind as u32)).collect();
        assert_eq!(entries, expected);
    }

    #[test]
    fn addresses_in_the_header_place_a_raw_kernel() {
        let image = load(&raw()).unwrap();
        assert_eq!(image.entry.rip, 0x10_0060);
        assert_eq!(memory(&image, 0x10_0040, 4), HEADER_MAGIC.to_le_bytes());
        assert_eq!(memory(&image, 0x10_007F, 1), [0xF4]);
        assert_eq!((image.zero.len(), &image.zero[0]), (1, &(0x10_0080..0x10_0100)));
    }

    #[test]
    fn damaged_headers_are_refused() {
        let with = |index: usize, value: u32| {
            let mut file = raw();
            set(&mut file, 16 + 12 + index * 4, &value.to_le_bytes());
            load(&file).unwrap_err().to_string()
        };
        assert!(with(0, 0).starts_with("damaged multiboot kernel"));
        assert!(with(0, 0x10_0080).starts_with("damaged multiboot kernel"), "the load would start before the file");
        assert!(with(2, 0x20_0000).starts_with("truncated multiboot kernel"));
        assert!(with(4, 0x10_0100).starts_with("damaged multiboot kernel: entry"));
        assert!(with(3, 0xFFFF_FFFF).contains("which is not RAM"));
        assert!(load(&[&header(3)[..], &[0; 64]].concat()).unwrap_err().to_string().contains("neither ELF"));
        let strange = load(&elf32(&header(0x10))).unwrap_err().to_string();
        assert_eq!(strange, "multiboot kernel that requires unknown features (header flags 0x10)");
    }

    #[test]
    fn header_is_found_only_aligned_early_and_with_its_checksum() {
        let find = |file: &[u8]| Header::find(file).unwrap().map(|h| h.offset);
        let at = |offset: usize| [vec![0; offset], header(3)].concat();
        assert_eq!(find(&at(0)), Some(0));
        assert_eq!(find(&at(8180)), Some(8180));
        assert_eq!(find(&at(8184)), None);
        assert_eq!(find(&at(2)), None);
        let mut wrong = at(8);
        wrong[12] ^= 4;
        assert_eq!(find(&wrong), None);
    }

    #[test]
    fn truncation_of_a_raw_kernel_never_panics() {
        for len in 0..raw().len() {
            assert!(load(&raw()[..len]).is_err());
        }
    }
}
