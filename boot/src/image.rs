//! A memory image and the register state that starts it: what every loader returns.

use crate::bytes::Put;
use std::ops::Range;

/// CR0.PE and CR0.ET; ET is hard-wired on every processor since the 486.
const CR0_PE_ET: u64 = 0x11;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME_LMA: u64 = 0x500;

/// Selectors of the loaders' GDT. Linux demands these two values (boot protocol, `__BOOT_CS` and `__BOOT_DS`).
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
/// Bytes of the loaders' GDT: two null descriptors, code, data.
pub(crate) const GDT_LEN: u64 = 32;

/// Bytes to put into guest memory.
#[derive(Clone, PartialEq, Eq)]
pub struct Piece {
    /// Guest-physical address of the first byte.
    pub gpa: u64,
    /// The contents.
    pub bytes: Vec<u8>,
}

impl Piece {
    /// The guest-physical range that the piece fills.
    pub fn range(&self) -> Range<u64> {
        self.gpa..self.gpa + self.bytes.len() as u64
    }
}

impl std::fmt::Debug for Piece {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Piece({:#x?})", self.range())
    }
}

/// A loaded kernel: memory contents and where the boot processor starts.
#[derive(Clone, Debug)]
pub struct Image {
    /// What was loaded and how it is entered, for the log: one line without a newline.
    pub what: String,
    /// Memory contents; no two pieces overlap and all lie in RAM.
    pub pieces: Vec<Piece>,
    /// Ranges that must read zero (BSS). Fresh RAM already does; a reset must clear them.
    pub zero: Vec<Range<u64>>,
    /// State of the boot processor; all others wait for an INIT/SIPI sequence.
    pub entry: Entry,
}

/// Processor mode that an [`Entry`] stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Real mode: no protection, no paging.
    Real,
    /// 32-bit protected mode, flat segments, paging off.
    Flat32,
    /// 64-bit mode with the identity map at CR3.
    Long64,
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Selector.
    pub selector: u16,
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes, granularity already applied.
    pub limit: u32,
    /// Access rights as VT-x and vmm(4) pack them: bits 0-7 are descriptor byte 5, 12 AVL, 13 L, 14 D/B, 15 G,
    /// 16 unusable.
    pub access: u32,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DescriptorTable {
    /// Linear base address.
    pub base: u64,
    /// Offset of the last byte.
    pub limit: u16,
}

/// General registers at entry; all that a protocol does not name are zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// RAX.
    pub rax: u64,
    /// RBX.
    pub rbx: u64,
    /// RCX.
    pub rcx: u64,
    /// RDX.
    pub rdx: u64,
    /// RSI.
    pub rsi: u64,
    /// RDI.
    pub rdi: u64,
    /// RBP.
    pub rbp: u64,
    /// RSP.
    pub rsp: u64,
}

/// The boot processor's state at the guest's first instruction. What is not named here has its power-on value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// General registers.
    pub registers: Registers,
    /// Instruction pointer, relative to the base of CS.
    pub rip: u64,
    /// Flags: only the always-set bit 1, so interrupts are off.
    pub rflags: u64,
    /// CR0.
    pub cr0: u64,
    /// CR3: guest-physical address of the top page table, zero without paging.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// GDTR.
    pub gdt: DescriptorTable,
    /// IDTR; limit zero in protected modes, so that an exception before the kernel's own IDT shuts the processor down.
    pub idt: DescriptorTable,
    /// CS.
    pub cs: Segment,
    /// DS.
    pub ds: Segment,
    /// ES.
    pub es: Segment,
    /// FS.
    pub fs: Segment,
    /// GS.
    pub gs: Segment,
    /// SS.
    pub ss: Segment,
    /// LDTR.
    pub ldt: Segment,
    /// TR.
    pub tr: Segment,
}

impl Entry {
    /// Real mode at `cs:ip`, with the other segments zero: a BIOS entry or a boot sector.
    pub fn real(cs: u16, ip: u16) -> Self {
        let data = Segment { selector: 0, base: 0, limit: 0xFFFF, access: 0x93 };
        Self {
            registers: Registers::default(),
            rip: u64::from(ip),
            rflags: 2,
            cr0: 0x10,
            cr3: 0,
            cr4: 0,
            efer: 0,
            gdt: DescriptorTable { base: 0, limit: 0xFFFF },
            idt: DescriptorTable { base: 0, limit: 0x3FF },
            cs: Segment { selector: cs, base: u64::from(cs) << 4, limit: 0xFFFF, access: 0x9B },
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            ldt: Segment { access: 0x82, ..data },
            tr: Segment { access: 0x8B, ..data },
        }
    }

    /// The architectural reset vector: CS base 0xFFFF0000, IP 0xFFF0 (Intel SDM volume 3, 10.1.4).
    pub fn reset_vector() -> Self {
        let mut entry = Self { cr0: 0x6000_0010, ..Self::real(0xF000, 0xFFF0) };
        entry.cs.base = 0xFFFF_0000;
        entry.idt.limit = 0xFFFF;
        entry
    }

    /// 32-bit protected mode at `eip`, paging off, flat segments from the GDT of [`gdt32`] at `gdt`.
    pub(crate) fn flat32(eip: u32, gdt: u64, registers: Registers) -> Self {
        Self::protected(u64::from(eip), gdt, registers, 0xC09B)
    }

    /// 64-bit mode at `rip` on the page tables at `cr3`, with the GDT of [`gdt64`] at `gdt`.
    pub(crate) fn long64(rip: u64, gdt: u64, cr3: u64, registers: Registers) -> Self {
        Self {
            cr0: CR0_PE_ET | CR0_PG,
            cr3,
            cr4: CR4_PAE,
            efer: EFER_LME_LMA,
            ..Self::protected(rip, gdt, registers, 0xA09B)
        }
    }

    fn protected(rip: u64, gdt: u64, registers: Registers, code_access: u32) -> Self {
        let data = Segment { selector: DATA, base: 0, limit: u32::MAX, access: 0xC093 };
        Self {
            registers,
            rip,
            rflags: 2,
            cr0: CR0_PE_ET,
            cr3: 0,
            cr4: 0,
            efer: 0,
            gdt: DescriptorTable { base: gdt, limit: GDT_LEN as u16 - 1 },
            idt: DescriptorTable::default(),
            cs: Segment { selector: CODE, access: code_access, ..data },
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            ldt: Segment { selector: 0, base: 0, limit: 0, access: 0x1_0000 },
            tr: Segment { selector: 0, base: 0, limit: 0x67, access: 0x8B },
        }
    }

    /// The mode that the control registers say.
    pub fn mode(&self) -> Mode {
        match (self.cr0 & 1 != 0, self.efer & 0x400 != 0) {
            (false, _) => Mode::Real,
            (true, false) => Mode::Flat32,
            (true, true) => Mode::Long64,
        }
    }
}

/// The GDT behind [`Entry::flat32`].
pub(crate) fn gdt32() -> Vec<u8> {
    gdt(0x00CF_9B00_0000_FFFF)
}

/// The GDT behind [`Entry::long64`].
pub(crate) fn gdt64() -> Vec<u8> {
    gdt(0x00AF_9B00_0000_FFFF)
}

fn gdt(code: u64) -> Vec<u8> {
    let mut table = Vec::with_capacity(GDT_LEN as usize);
    for descriptor in [0, 0, code, 0x00CF_9300_0000_FFFF] {
        table.put64(descriptor);
    }
    table
}

/// Bytes of [`identity_map`].
pub(crate) const IDENTITY_MAP_LEN: u64 = 6 * 0x1000;

/// Page tables at `at` (page aligned) that map the first 4 GiB to themselves: one PML4, one PDPT, four directories of
/// 2 MiB pages, which every 64-bit processor has (1 GiB pages came later).
pub(crate) fn identity_map(at: u64) -> Vec<u8> {
    const PRESENT_WRITE: u64 = 3;
    const LARGE: u64 = 0x80;
    let mut tables = vec![0; IDENTITY_MAP_LEN as usize];
    let mut entry = |index: u64, value: u64| crate::bytes::set(&mut tables, index as usize * 8, &value.to_le_bytes());
    entry(0, (at + 0x1000) | PRESENT_WRITE);
    for gib in 0..4 {
        entry(512 + gib, (at + 0x2000 + gib * 0x1000) | PRESENT_WRITE);
        for page in 0..512 {
            entry(1024 + gib * 512 + page, (gib << 30) | (page << 21) | PRESENT_WRITE | LARGE);
        }
    }
    tables
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::u64_at;

    #[test]
    fn modes_follow_the_control_registers() {
        assert_eq!(Entry::reset_vector().mode(), Mode::Real);
        assert_eq!(Entry::flat32(0x10_0000, 0x1000, Registers::default()).mode(), Mode::Flat32);
        assert_eq!(Entry::long64(0x10_0200, 0x1000, 0x2000, Registers::default()).mode(), Mode::Long64);
    }

    #[test]
    fn reset_vector_is_16_bytes_below_4_gib() {
        let entry = Entry::reset_vector();
        assert_eq!(entry.cs.base + entry.rip, 0xFFFF_FFF0);
        assert_eq!(entry.cs.selector, 0xF000);
    }

    /// Expands a descriptor as a processor does when it loads a segment register.
    fn expand(descriptor: u64) -> (u64, u32, u32) {
        let base = (descriptor >> 16 & 0xFF_FFFF) | (descriptor >> 32 & 0xFF00_0000);
        let raw = (descriptor & 0xFFFF) as u32 | (descriptor >> 32 & 0xF_0000) as u32;
        let limit = if descriptor >> 55 & 1 == 1 { raw << 12 | 0xFFF } else { raw };
        (base, limit, (descriptor >> 40 & 0xF0FF) as u32)
    }

    #[test]
    fn hidden_segments_equal_the_gdt_in_memory() {
        for (entry, gdt) in [
            (Entry::flat32(0, 0, Registers::default()), gdt32()),
            (Entry::long64(0, 0, 0, Registers::default()), gdt64()),
        ] {
            for segment in [entry.cs, entry.ds, entry.ss] {
                let descriptor = u64_at(&gdt, usize::from(segment.selector)).unwrap();
                assert_eq!(expand(descriptor), (segment.base, segment.limit, segment.access));
            }
        }
    }

    #[test]
    fn identity_map_translates_every_gib_to_itself() {
        let at = 0x9000;
        let tables = identity_map(at);
        let entry = |table: u64, index: u64| u64_at(&tables, (table - at + index * 8) as usize).unwrap();
        for address in [0, 0x1F_FFFF, 0x20_0000, 0x4012_3456, 0xBFE0_0000, 0xFFFF_FFFF_u64] {
            let pdpt = entry(at, address >> 39) & !0xFFF;
            let directory = entry(pdpt, address >> 30 & 511) & !0xFFF;
            let page = entry(directory, address >> 21 & 511);
            assert_eq!(page & 0x83, 0x83);
            assert_eq!((page & !0xFFF) | (address & 0x1F_FFFF), address);
        }
        assert_eq!(entry(at, 1), 0);
    }
}
