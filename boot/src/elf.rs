//! ELF kernel files: the segments to load, the notes, and refusal of everything that is ELF but no PC kernel.
//!
//! Segments go to their physical address (`p_paddr`). Loaders whose kernels are linked otherwise (the BSDs' native
//! protocols) have rules of their own. Source: System V ABI, chapters 4 and 5.

use crate::bytes::{u16_at, u32_at, u64_at};
use crate::kernel::mib_up;
use crate::place::Placer;
use anyhow::{Context, Result, bail, ensure};
use std::ops::Range;

const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;

/// Far more than any kernel has: bounds the work on a crafted file.
const MAX_HEADERS: u64 = 128;
const MAX_NOTES: usize = 1024;

const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;

/// A PT_LOAD segment.
#[derive(Debug)]
pub(crate) struct Load<'a> {
    pub(crate) paddr: u64,
    pub(crate) data: &'a [u8],
    /// At least the length of `data`; the rest is zero.
    pub(crate) memsz: u64,
}

/// One note of a PT_NOTE segment.
#[derive(Debug)]
pub(crate) struct Note<'a> {
    /// Owner without the closing NUL.
    pub(crate) owner: &'a [u8],
    pub(crate) kind: u32,
    pub(crate) desc: &'a [u8],
}

/// A parsed x86 ELF executable.
#[derive(Debug)]
pub(crate) struct Elf<'a> {
    /// ELF64.
    pub(crate) wide: bool,
    machine: u16,
    pub(crate) entry: u64,
    pub(crate) loads: Vec<Load<'a>>,
    pub(crate) notes: Vec<Note<'a>>,
    has_interpreter: bool,
}

impl<'a> Elf<'a> {
    /// Parses `file`; `None` when it is not ELF at all.
    ///
    /// # Errors
    /// Truncated or damaged, for another machine, or not an executable.
    pub(crate) fn parse(file: &'a [u8]) -> Result<Option<Self>> {
        if !file.starts_with(b"\x7fELF") {
            return Ok(None);
        }
        let truncated = "truncated ELF file: it ends inside its header";
        let wide = match file.get(4).context(truncated)? {
            1 => false,
            2 => true,
            class => bail!("damaged ELF file: class {class}"),
        };
        let swapped = *file.get(5).context(truncated)? == 2;
        let kind = u16_at(file, 16).context(truncated)?;
        let machine = u16_at(file, 18).context(truncated)?;
        let machine = if swapped { machine.swap_bytes() } else { machine };
        if swapped || !matches!(machine, EM_386 | EM_X86_64) {
            let order = if swapped { ", big-endian" } else { "" };
            bail!("ELF file for another machine: {}{order}", machine_name(machine));
        }
        match kind {
            ET_EXEC | ET_DYN => {}
            1 => bail!("ELF object file or kernel module, not a kernel"),
            4 => bail!("ELF core dump, not a kernel"),
            other => bail!("ELF file of type {other}, not an executable"),
        }
        let word = |at32: usize, at64: usize| {
            if wide { u64_at(file, at64) } else { u32_at(file, at32).map(u64::from) }.context(truncated)
        };
        let (entry, table) = (word(24, 24)?, word(28, 32)?);
        let half = |at32: usize, at64: usize| u16_at(file, if wide { at64 } else { at32 }).context(truncated);
        let (entry_size, count) = (u64::from(half(42, 54)?), u64::from(half(44, 56)?));
        ensure!(
            entry_size >= if wide { 56 } else { 32 } && (1..=MAX_HEADERS).contains(&count),
            "damaged ELF file: {count} program headers of {entry_size} bytes"
        );

        let mut elf = Self { wide, machine, entry, loads: Vec::new(), notes: Vec::new(), has_interpreter: false };
        for index in 0..count {
            let header = table
                .checked_add(index * entry_size)
                .and_then(|at| file.get(usize::try_from(at).ok()?..))
                .and_then(|rest| rest.get(..entry_size as usize))
                .with_context(|| {
                    format!("truncated ELF file: program header {index} lies behind its end at {} bytes", file.len())
                })?;
            elf.program_header(file, index, header)?;
        }
        ensure!(!elf.loads.is_empty(), "ELF file without anything to load");
        Ok(Some(elf))
    }

    fn program_header(&mut self, file: &'a [u8], index: u64, header: &[u8]) -> Result<()> {
        let word = |at32: usize, at64: usize| {
            // The caller made sure of the header's length.
            if self.wide { u64_at(header, at64) } else { u32_at(header, at32).map(u64::from) }.unwrap_or(0)
        };
        let kind = u32_at(header, 0).unwrap_or(0);
        let (offset, paddr) = (word(4, 8), word(12, 24));
        let (filesz, memsz) = (word(16, 32), word(20, 40));
        match kind {
            PT_LOAD | PT_NOTE => {}
            PT_INTERP => {
                self.has_interpreter = true;
                return Ok(());
            }
            _ => return Ok(()),
        }
        let end = offset.checked_add(filesz).filter(|end| *end <= file.len() as u64);
        let Some(end) = end else {
            bail!(
                "truncated ELF file: segment {index} is 0x{filesz:x} bytes at 0x{offset:x}, the file has 0x{:x}",
                file.len()
            );
        };
        let data = &file[offset as usize..end as usize];
        if kind == PT_NOTE {
            let room = MAX_NOTES - self.notes.len();
            self.notes.extend(notes(data).take(room));
        } else if memsz > 0 {
            ensure!(
                filesz <= memsz && paddr.checked_add(memsz).is_some(),
                "damaged ELF file: segment {index} has 0x{filesz:x} bytes for 0x{memsz:x} of memory at 0x{paddr:x}"
            );
            self.loads.push(Load { paddr, data, memsz });
        }
        Ok(())
    }

    /// `"64-bit x86-64 ELF"`.
    pub(crate) fn describe(&self) -> String {
        format!("{}-bit {} ELF", if self.wide { 64 } else { 32 }, machine_name(self.machine))
    }

    /// Whether `address` lies in a segment by physical address.
    pub(crate) fn holds_physical(&self, address: u64) -> bool {
        self.loads.iter().any(|l| (l.paddr..l.paddr + l.memsz).contains(&address))
    }

    /// An error for programs that an operating system runs: they parse as well as a kernel does.
    pub(crate) fn refuse_programs(&self) -> Result<()> {
        ensure!(!self.has_interpreter, "a dynamically linked program, not a kernel");
        let abi_tag = self.notes.iter().any(|n| n.owner == b"GNU" && n.kind == 1);
        ensure!(!abi_tag, "a program that runs under an operating system (GNU ABI note), not a kernel");
        Ok(())
    }

    /// Takes addresses for those of kernels that are linked behind a base.
    pub(crate) fn mask(&mut self, physical: u64) {
        self.entry &= physical;
        self.loads.iter_mut().for_each(|load| load.paddr &= physical);
    }

    /// Places all segments; returns the ranges that must be zero.
    pub(crate) fn place(&self, placer: &mut Placer) -> Result<Vec<Range<u64>>> {
        let mut zero = Vec::new();
        for load in &self.loads {
            placer.claim(load.paddr, load.memsz, "an ELF segment of the kernel")?;
            placer.fill(load.paddr, load.data.to_vec());
            let bss = load.paddr + load.data.len() as u64..load.paddr + load.memsz;
            if !bss.is_empty() {
                zero.push(bss);
            }
        }
        Ok(zero)
    }

    /// The sum that shows why `len` bytes of `what` have no room beside the kernel.
    pub(crate) fn does_not_fit(&self, what: &str, len: usize, placer: &Placer) -> String {
        let start = self.loads.iter().map(|l| l.paddr).min().unwrap_or(0);
        let end = self.loads.iter().map(|l| l.paddr + l.memsz).max().unwrap_or(0);
        format!(
            "does not fit: the kernel takes 0x{start:x}-0x{end:x} + {what} {len} bytes = {} MiB, the guest has {}",
            mib_up(end.saturating_add(len as u64)),
            placer.describe_ram()
        )
    }
}

/// The notes of a segment, up to the first damaged one. Kernels align them to four bytes in both classes.
fn notes(mut data: &[u8]) -> impl Iterator<Item = Note<'_>> {
    std::iter::from_fn(move || {
        let (name_len, desc_len) = (u32_at(data, 0)? as usize, u32_at(data, 4)? as usize);
        let desc_at = name_len.checked_next_multiple_of(4)?.checked_add(12)?;
        let end = desc_at.checked_add(desc_len)?;
        let name = data.get(12..12usize.checked_add(name_len)?)?;
        let note = Note {
            owner: name.strip_suffix(b"\0").unwrap_or(name),
            kind: u32_at(data, 8)?,
            desc: data.get(desc_at..end)?,
        };
        data = data.get(end.checked_next_multiple_of(4)?..).unwrap_or(&[]);
        Some(note)
    })
}

/// Common names of e_machine values.
fn machine_name(machine: u16) -> String {
    let name = match machine {
        2 | 18 | 43 => "SPARC",
        EM_386 => "i386",
        4 => "68000",
        8 => "MIPS",
        15 => "PA-RISC",
        20 => "PowerPC",
        21 => "64-bit PowerPC",
        22 => "S/390",
        40 => "ARM",
        42 => "SuperH",
        50 => "Itanium",
        EM_X86_64 => "x86-64",
        75 => "VAX",
        183 => "ARM64",
        243 => "RISC-V",
        258 => "LoongArch",
        0x9026 => "Alpha",
        other => return format!("machine number {other}"),
    };
    name.to_string()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::bytes::Put;
    use crate::linux::tests::{MIB, layout};
    use crate::memory::MemoryMap;

    /// A note with owner, type and contents.
    pub(crate) fn note(owner: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
        let mut note = Vec::new();
        note.put32(owner.len() as u32 + 1);
        note.put32(desc.len() as u32);
        note.put32(kind);
        note.extend_from_slice(owner);
        note.resize((note.len() + 1).next_multiple_of(4), 0);
        note.extend_from_slice(desc);
        note.resize(note.len().next_multiple_of(4), 0);
        note
    }

    /// XEN_ELFNOTE_PHYS32_ENTRY.
    pub(crate) fn pvh_note(entry: u64) -> Vec<u8> {
        note(b"Xen", 18, &entry.to_le_bytes())
    }

    /// An ELF64 kernel: one segment of 0x40 bytes of F4 at 1 MiB with 0x2000 bytes of memory, entry at its start,
    /// and a note segment.
    pub(crate) fn elf64(notes: &[Vec<u8>]) -> Vec<u8> {
        let notes = notes.concat();
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        for half in [ET_EXEC, EM_X86_64, 1, 0] {
            file.put16(half);
        }
        for word in [0x10_0000, 64, 0] {
            file.put64(word);
        }
        file.put32(0);
        for half in [64, 56, 2, 0, 0, 0] {
            file.put16(half);
        }
        for (kind, offset, paddr, filesz, memsz) in
            [(PT_LOAD, 0x100, 0x10_0000, 0x40, 0x2000), (PT_NOTE, 0x140, 0, notes.len() as u64, notes.len() as u64)]
        {
            file.put32(kind);
            file.put32(5);
            for word in [offset, 0xFFFF_FFFF_8000_0000 + paddr, paddr, filesz, memsz, 4] {
                file.put64(word);
            }
        }
        file.resize(0x100, 0);
        file.resize(0x140, 0xF4);
        file.extend_from_slice(&notes);
        file
    }

    /// An ELF32 kernel with the same segment and `tail` appended inside it.
    pub(crate) fn elf32(tail: &[u8]) -> Vec<u8> {
        let mut file = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        for half in [ET_EXEC, EM_386, 1, 0] {
            file.put16(half);
        }
        for word in [0x10_0000, 52, 0, 0] {
            file.put32(word);
        }
        for half in [52, 32, 1, 0, 0, 0] {
            file.put16(half);
        }
        let filesz = 0x40 + tail.len() as u32;
        for word in [PT_LOAD, 0x100, 0xC010_0000, 0x10_0000, filesz, 0x2000, 7, 4096] {
            file.put32(word);
        }
        file.resize(0x100, 0);
        file.resize(0x140, 0xF4);
        file.extend_from_slice(tail);
        file
    }

    #[test]
    fn both_classes_load_by_physical_address() {
        let map = MemoryMap::new(64 * MIB, 0xC000_0000).unwrap();
        for (file, wide) in [(elf64(&[]), true), (elf32(&[]), false)] {
            let elf = Elf::parse(&file).unwrap().unwrap();
            assert_eq!((elf.wide, elf.entry), (wide, 0x10_0000));
            let mut placer = Placer::new(&map);
            let zero = elf.place(&mut placer).unwrap();
            assert_eq!((zero.len(), &zero[0]), (1, &(0x10_0040..0x10_2000)));
            let pieces = placer.into_pieces();
            assert_eq!((pieces[0].gpa, &pieces[0].bytes[..]), (0x10_0000, &[0xF4; 0x40][..]));
        }
    }

    #[test]
    fn notes_are_found_behind_others() {
        let file = elf64(&[note(b"Linux", 257, b"abcde"), pvh_note(0x1234)]);
        let elf = Elf::parse(&file).unwrap().unwrap();
        let found: Vec<_> = elf.notes.iter().map(|n| (n.owner, n.kind, n.desc.len())).collect();
        assert_eq!(found, [(&b"Linux"[..], 257, 5), (&b"Xen"[..], 18, 8)]);
    }

    #[test]
    fn wrong_machines_and_types_are_named() {
        let error = |at: usize, value: u8| {
            let mut file = elf64(&[]);
            file[at] = value;
            Elf::parse(&file).unwrap_err().to_string()
        };
        assert_eq!(error(18, 183), "ELF file for another machine: ARM64");
        assert_eq!(error(16, 1), "ELF object file or kernel module, not a kernel");
        let mut big = elf64(&[]);
        big[5] = 2;
        big[18..20].copy_from_slice(&[0, 43]);
        assert_eq!(Elf::parse(&big).unwrap_err().to_string(), "ELF file for another machine: SPARC, big-endian");
    }

    #[test]
    fn programs_are_no_kernels() {
        let map = MemoryMap::new(64 * MIB, 0xC000_0000).unwrap();
        let with_tag = elf64(&[note(b"GNU", 1, &[0; 16])]);
        let error = crate::load(&with_tag, None, "", &layout(&map)).unwrap_err().to_string();
        assert!(error.contains("not a kernel"), "{error}");
        let mut dynamic = elf64(&[]);
        dynamic[64 + 56] = PT_INTERP as u8;
        let error = crate::load(&dynamic, None, "", &layout(&map)).unwrap_err().to_string();
        assert!(error.contains("dynamically linked"), "{error}");
    }

    #[test]
    fn virtual_entry_without_protocol_is_refused() {
        let map = MemoryMap::new(64 * MIB, 0xC000_0000).unwrap();
        let mut file = elf64(&[]);
        file[28..32].fill(0xFF);
        let error = crate::load(&file, None, "", &layout(&map)).unwrap_err().to_string();
        assert!(error.contains("no known way to start it"), "{error}");
    }

    #[test]
    fn truncation_anywhere_is_an_error() {
        let map = MemoryMap::new(64 * MIB, 0xC000_0000).unwrap();
        for whole in [elf64(&[pvh_note(0x10_0000)]), elf32(&[])] {
            for len in 0..whole.len() {
                let error = crate::load(&whole[..len], None, "", &layout(&map)).unwrap_err().to_string();
                assert!(!error.contains('\n'), "{error}");
            }
            assert!(crate::load(&whole, None, "", &layout(&map)).is_ok());
        }
    }

    #[test]
    fn segment_outside_ram_is_refused_without_allocating() {
        let map = MemoryMap::new(64 * MIB, 0xC000_0000).unwrap();
        let mut file = elf64(&[]);
        // p_memsz of the first segment: 16 EiB less a bit, then 1 TiB.
        for memsz in [u64::MAX, 1 << 40] {
            file[64 + 40..64 + 48].copy_from_slice(&memsz.to_le_bytes());
            assert!(crate::load(&file, None, "", &layout(&map)).is_err());
        }
    }

    /// xorshift64: the same mutations in every run.
    struct Random(u64);
    impl Random {
        fn next(&mut self, below: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % below as u64) as usize
        }
    }

    #[test]
    fn random_damage_never_panics_and_never_leaves_ram() {
        let map = MemoryMap::new(64 * MIB, 0xC000_0000).unwrap();
        let mut random = Random(0x9E37_79B9_7F4A_7C15);
        let seeds = [elf64(&[pvh_note(0x10_0000)]), elf64(&[]), elf32(&[]), elf32(&crate::multiboot::tests::header(3))];
        let (mut loaded, mut refused) = (0, 0);
        for round in 0..40_000 {
            let mut file = seeds[round % seeds.len()].clone();
            for _ in 0..1 + random.next(4) {
                let at = random.next(file.len());
                file[at] = [0, 1, 0x7F, 0x80, 0xFF, random.next(256) as u8][random.next(6)];
            }
            match crate::load(&file, Some(&[1, 2, 3]), "x", &layout(&map)) {
                Ok(image) => {
                    loaded += 1;
                    assert!(image.pieces.iter().all(|p| p.range().end <= 64 * MIB), "{:?}", image.pieces);
                }
                Err(_) => refused += 1,
            }
        }
        assert!(loaded > 1000 && refused > 1000, "{loaded} loaded, {refused} refused");
    }
}
