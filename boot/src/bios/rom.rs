//! The ROM: entry points at IBM's addresses, tables, handlers of hardware interrupts, and the stubs.
//!
//! Code that belongs to the guest is made here with an assembler, at start-up, so that there is nothing to build
//! beforehand. The lower half of the segment is free for the firmware tables ([`crate::tables::BIOS_WINDOW`]), 8000 to
//! DFFF holds our code and tables (fonts from A000 on), and above are the addresses that programs know: F000:FFF0
//! reset, F000:EC59 INT 13h for diskettes, F000:FA6E the 8x8 font and so on (IBM, Technical Reference of the AT).
//!
//! The BIOS32 service directory (`_32_`) is there, since Linux, OpenBSD and FreeBSD for i386 reach the PCI BIOS through
//! it. The Plug and Play BIOS (`$PnP`) is not. What it tells are the chips at an AT's usual ports and interrupts, which
//! Linux, FreeBSD, NetBSD and OpenBSD find there without it, by hints and probes; Linux leaves it alone beside ACPI,
//! and OpenBSD has no driver. With it they would call its 16-bit entry for each node at boot, FreeBSD would have each
//! port twice, by its node and by its hint, and a guest could ask it for resources that are not there to be moved. Option
//! ROMs, which are told where it is, find one at [`PNP`], where nobody does who scans the segment.

use anyhow::{Result, ensure};
use iced_x86::code_asm::*;
use iced_x86::{BlockEncoderOptions, IcedError};

use super::{LATCH_PORT, PORT, data, frame, int10, service};

/// Where code for real mode goes, code for protected mode, and fonts and other tables.
const CODE: u16 = 0x8000;
const PROTECTED: u16 = 0x9800;
const TABLES: u16 = 0xa000;
/// Entries of APM, where the BIOS32 service directory is announced, and the PCI BIOS's entry that it leads to.
pub(super) const APM16: u16 = 0xe048;
pub(super) const APM32: u16 = PROTECTED;
const BIOS32: u16 = 0xe080;
const PCI32: u16 = 0xe090;
/// Where option ROMs are initialized and come back to; INT 18h and INT 19h.
pub(super) const ROMS: u16 = 0xe0f0;
pub(super) const BOOT_FAILED: u16 = 0xe6e8;
pub(super) const BOOT: u16 = 0xe6f2;
/// What option ROMs find: the installation check of Plug and Play, not at a multiple of 16 where kernels would look, and
/// the POST memory manager's header; the entries of both, and one that refuses everything.
pub(super) const PNP: u16 = 0xe098;
const PMM: u16 = 0xe0c0;
const PMM_ENTRY: u16 = 0xe0e8;
const PNP_ENTRY: u16 = 0xe0ec;
const REFUSE: u16 = 0xe0f4;
/// Descriptors for flat segments, and what LGDT reads.
const GDT: u16 = 0xe0d0;
const GDTR: u16 = 0xe0e0;
/// An IRET.
pub(super) const IRET: u16 = 0xff53;

/// The entry points of INT 10h and on; [`entry`] says which.
const INTERRUPTS: [(u8, u16); 14] = [
    (0x10, 0xf065),
    (0x11, 0xf84d),
    (0x12, 0xf841),
    (0x13, 0xe3fe),
    (0x14, 0xe739),
    (0x15, 0xf859),
    (0x16, 0xe82e),
    (0x17, 0xefd2),
    (0x18, BOOT_FAILED),
    (0x19, BOOT),
    (0x1a, 0xfe6e),
    (0x40, 0xec59),
    (0x08, 0xfea5),
    (0x09, 0xe987),
];
/// Interrupts 0E (diskette), 74 (mouse), 70 (clock), 75 (coprocessor), 76 (disk), 0A (redirected IRQ 9), and the rest.
const OTHERS: [(u8, u16); 7] =
    [(0x0e, 0xef57), (0x70, 0xe010), (0x71, 0xe018), (0x74, 0xe020), (0x75, 0xe028), (0x76, 0xe030), (0x02, 0xe2c3)];
/// The handler of hardware interrupts that nobody expects: primary and secondary 8259.
const SPURIOUS: u16 = 0xe038;
const SPURIOUS2: u16 = 0xe040;
/// Where POST begins.
const POST: u16 = 0xe05b;

/// The diskette parameter table of 1.44 MB drives, which INT 1Eh names.
pub(super) const DISKETTE_TABLE: u16 = 0xefc7;
/// The configuration table of INT 15h/C0h.
pub(super) const CONFIGURATION: u16 = 0xe6f5;

/// An image of the ROM.
#[derive(Clone)]
pub struct Rom(Vec<u8>);

impl Rom {
    /// Physical address, and where reset vectors find it.
    pub const BASE: u64 = 0xf_0000;
    /// Its size.
    pub const LEN: usize = 0x1_0000;

    /// Assembles it.
    ///
    /// # Errors
    /// When the parts do not fit.
    pub fn build() -> Result<Rom> {
        let mut rom = Rom(vec![0; Rom::LEN]);
        let mut a = CodeAssembler::new(16)?;
        let mut entries: Vec<(u16, CodeLabel)> = Vec::new();
        code(&mut a, &mut entries)?;
        let out = a.assemble_options(CODE.into(), BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
        ensure!(out.inner.code_buffer.len() <= usize::from(PROTECTED - CODE), "the BIOS's code does not fit");
        rom.put(CODE, &out.inner.code_buffer);
        rom.protected()?;
        for (at, label) in &entries {
            let target = out.label_ip(label)? as u16;
            rom.put(*at, &near_jump(*at, target));
        }
        rom.put(IRET, &[0xcf]);
        // Print screen.
        rom.put(0xff54, &[0xcf]);
        rom.put(0xfff0, &[0xea, POST as u8, (POST >> 8) as u8, 0x00, 0xf0]);
        rom.put(0xfff5, b"01/01/26");
        // An AT.
        rom.put(0xfffe, &[0xfc, 0x00]);
        rom.put(DISKETTE_TABLE, &[0xaf, 0x02, 0x25, 0x02, 18, 0x1b, 0xff, 0x6c, 0xf6, 0x0f, 0x08]);
        rom.put(CONFIGURATION, &configuration());
        rom.put(PNP, &installation_check());
        rom.put(PMM, &memory_manager());
        // MOV AX, 82: not supported; RETF.
        rom.put(REFUSE, &[0xb8, 0x82, 0x00, 0xcb]);
        rom.put(GDT + 8, &[0xff, 0xff, 0, 0, 0, 0x93, 0xcf, 0]);
        let gdt = (Rom::BASE as u32 + u32::from(GDT)).to_le_bytes();
        rom.put(GDTR, &[0x0f, 0, gdt[0], gdt[1], gdt[2], gdt[3]]);
        for (at, bytes) in int10::rom_tables() {
            rom.put(at, &bytes);
        }
        rom.put(0xe000, b"bhyve-rs BIOS");
        Ok(rom)
    }

    /// The entries for 32-bit protected mode. APM's is the first; the segment that others are called in is not known,
    /// so the code works at any address.
    fn protected(&mut self) -> Result<()> {
        let mut a = CodeAssembler::new(32)?;
        latched(&mut a, service::APM)?;
        let mut pci = a.create_label();
        a.set_label(&mut pci)?;
        latched(&mut a, service::PCI)?;
        // The directory: which service EAX names is where.
        let (mut directory, mut other, mut wrong) = (a.create_label(), a.create_label(), a.create_label());
        a.set_label(&mut directory)?;
        a.test(bl, bl)?;
        a.jne(wrong)?;
        a.cmp(eax, u32::from_le_bytes(*b"$PCI"))?;
        a.jne(other)?;
        a.mov(ebx, Rom::BASE as u32)?;
        a.mov(ecx, Rom::LEN as u32)?;
        a.mov(edx, u32::from(PCI32))?;
        a.mov(al, 0u32)?;
        a.retf()?;
        a.set_label(&mut other)?;
        a.mov(al, 0x80u32)?;
        a.retf()?;
        a.set_label(&mut wrong)?;
        a.mov(al, 0x81u32)?;
        a.retf()?;
        let out = a.assemble_options(PROTECTED.into(), BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
        ensure!(out.inner.code_buffer.len() <= usize::from(TABLES - PROTECTED), "the BIOS's code does not fit");
        self.put(PROTECTED, &out.inner.code_buffer);
        let pci = (out.label_ip(&pci)? as u32).wrapping_sub(u32::from(PCI32) + 5).to_le_bytes();
        self.put(PCI32, &[0xe9, pci[0], pci[1], pci[2], pci[3]]);
        let mut header = [0; 16];
        header[..4].copy_from_slice(b"_32_");
        let entry = Rom::BASE as u32 + out.label_ip(&directory)? as u32;
        header[4..8].copy_from_slice(&entry.to_le_bytes());
        header[9] = 1;
        header[10] = balance(&header);
        self.put(BIOS32, &header);
        Ok(())
    }

    /// The whole image.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn put(&mut self, at: u16, bytes: &[u8]) {
        let at = usize::from(at);
        let place = &mut self.0[at..at + bytes.len()];
        debug_assert!(place.iter().all(|b| *b == 0), "two things at {at:x} of the ROM");
        place.copy_from_slice(bytes);
    }
}

fn near_jump(at: u16, to: u16) -> [u8; 3] {
    let d = to.wrapping_sub(at + 3).to_le_bytes();
    [0xe9, d[0], d[1]]
}

/// What INT 15h/C0h points to: an AT with two 8259, a clock, INT 15h/4Fh, an extended BIOS data area.
fn configuration() -> [u8; 10] {
    [8, 0, 0xfc, 0x00, 0x01, 0x74, 0x40, 0, 0, 0]
}

/// The byte that makes all of `bytes` add up to zero.
fn balance(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |s, b| s.wrapping_add(*b)).wrapping_neg()
}

/// The Plug and Play BIOS's, with entries for real mode and for 16-bit protected mode.
fn installation_check() -> [u8; 0x21] {
    let mut check = [0; 0x21];
    check[..6].copy_from_slice(b"$PnP\x10\x21");
    check[0x0d..0x0f].copy_from_slice(&PNP_ENTRY.to_le_bytes());
    check[0x0f..0x11].copy_from_slice(&data::ROM_SEGMENT.to_le_bytes());
    check[0x11..0x13].copy_from_slice(&REFUSE.to_le_bytes());
    check[0x13..0x17].copy_from_slice(&(Rom::BASE as u32).to_le_bytes());
    check[0x1b..0x1d].copy_from_slice(&data::ROM_SEGMENT.to_le_bytes());
    check[0x1d..0x21].copy_from_slice(&(Rom::BASE as u32).to_le_bytes());
    check[8] = balance(&check);
    check
}

/// The POST memory manager's header.
fn memory_manager() -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(b"$PMM");
    (header[4], header[5]) = (1, 16);
    header[7..9].copy_from_slice(&PMM_ENTRY.to_le_bytes());
    header[9..11].copy_from_slice(&data::ROM_SEGMENT.to_le_bytes());
    header[6] = balance(&header);
    header
}

/// The vectors at power-on: interrupt and offset in the BIOS's segment. As on the AT, what nobody has taken returns:
/// there are programs, such as packed device drivers, that call INT 5Dh for their own reasons. 60h to 67h are zero, for
/// users to find, and so is what is above 77h.
pub(super) fn vectors() -> impl Iterator<Item = (u8, u16)> {
    let hardware = (0x08..=0x0f).map(|n| (n, SPURIOUS)).chain((0x70..=0x77).map(|n| (n, SPURIOUS2)));
    let rest = (0..0x60).chain(0x68..0x78).map(|n| (n, IRET));
    let tables = [(0x05, 0xff54), (0x1d, 0xf0a4), (0x1e, DISKETTE_TABLE), (0x42, 0xf065)];
    rest.chain(hardware).chain(tables).chain(INTERRUPTS).chain(OTHERS)
}

/// Emits everything that runs in the guest; `entries` are the known addresses and where they lead.
fn code(a: &mut CodeAssembler, entries: &mut Vec<(u16, CodeLabel)>) -> Result<(), IcedError> {
    // The end of every stub: the frame is complete.
    let mut common = a.create_label();
    let mut halt = a.create_label();
    let mut spin = a.create_label();
    a.set_label(&mut common)?;
    a.cli()?;
    a.mov(ax, u32::from(data::EBDA_BASE))?;
    a.mov(ds, ax)?;
    a.mov(word_ptr(u32::from(data::BLOCK_OFFSET) + 2), sp)?;
    a.mov(word_ptr(u32::from(data::BLOCK_OFFSET) + 4), ss)?;
    a.mov(word_ptr(u32::from(data::BLOCK_OFFSET)), u32::from(data::ARMED))?;
    a.out(u32::from(PORT), al)?;
    a.mov(bp, sp)?;
    a.mov(ax, word_ptr(bp + frame::STATUS))?;
    a.cmp(ax, u32::from(frame::HALT))?;
    a.je(halt)?;
    a.cmp(ax, u32::from(frame::SPIN))?;
    a.je(spin)?;
    a.add(sp, frame::GS as u32)?;
    a.pop(gs)?;
    a.pop(fs)?;
    a.pop(es)?;
    a.pop(ds)?;
    a.popad()?;
    a.iret()?;
    a.set_label(&mut halt)?;
    a.sti()?;
    a.hlt()?;
    a.jmp(common)?;
    a.set_label(&mut spin)?;
    a.sti()?;
    a.mov(cx, 2000u32)?;
    let mut around = a.create_label();
    a.set_label(&mut around)?;
    a.loop_(around)?;
    a.jmp(common)?;

    let stub = |a: &mut CodeAssembler, service: u16| -> Result<CodeLabel, IcedError> {
        let mut label = a.create_label();
        a.set_label(&mut label)?;
        a.pushad()?;
        a.push(ds)?;
        a.push(es)?;
        a.push(fs)?;
        a.push(gs)?;
        a.push(u32::from(frame::RETURN))?;
        a.push(u32::from(service))?;
        a.jmp(common)?;
        Ok(label)
    };
    for (n, at) in INTERRUPTS.into_iter().filter(|(n, _)| !matches!(n, 0x08 | 0x09 | 0x18 | 0x19)) {
        let label = stub(a, n.into())?;
        entries.push((at, if n == 0x15 { system(a, label)? } else { label }));
    }
    let (key, mouse, post) = (stub(a, service::KEY)?, stub(a, service::MOUSE)?, stub(a, service::POST)?);
    // Booting starts with a stack of its own, below the boot sector.
    for (n, at) in [(0x18, BOOT_FAILED), (0x19, BOOT)] {
        let boot = stub(a, n)?;
        let entry = fresh_stack(a, 0, 0x7c00, boot)?;
        entries.push((at, entry));
    }
    let roms = stub(a, service::ROMS)?;
    let mut entry = a.create_label();
    a.set_label(&mut entry)?;
    flat(a)?;
    fresh_stack(a, 0, 0x7c00, roms)?;
    entries.push((ROMS, entry));
    for (service, at) in [(service::PMM, PMM_ENTRY), (service::PNP, PNP_ENTRY)] {
        let far = stub(a, service)?;
        let mut entry = a.create_label();
        a.set_label(&mut entry)?;
        call(a, far)?;
        a.retf()?;
        entries.push((at, entry));
    }
    // Caches on, which reset leaves off: there are programs that toggle CR0.CD, and NW without it is #GP.
    let mut entry = a.create_label();
    a.set_label(&mut entry)?;
    a.mov(eax, cr0)?;
    a.and(eax, !0x6000_0000i32)?;
    a.mov(cr0, eax)?;
    // A reset may only have been a way back from protected mode: the memory in use stays as it is.
    fresh_stack(a, data::EBDA_BASE, data::STACK, post)?;
    entries.push((POST, entry));
    let mut apm = a.create_label();
    a.set_label(&mut apm)?;
    latched(a, service::APM)?;
    for (at, label) in [
        (APM16, apm),
        (0xfea5, timer(a)?),
        (0xe987, keyboard(a, key)?),
        (0xe020, mouse_interrupt(a, mouse)?),
        (0xe010, clock(a)?),
        (0xe018, redirect(a)?),
        (0xe028, coprocessor(a)?),
        (0xe030, disk(a)?),
        (0xef57, diskette(a)?),
        (SPURIOUS, spurious(a, false)?),
        (SPURIOUS2, spurious(a, true)?),
        (0xe2c3, nmi(a)?),
    ] {
        entries.push((at, label));
    }
    Ok(())
}

/// A far procedure of protected mode that hands its registers over through the latch, and takes the results from it.
/// With function 05 of APM it sleeps first.
fn latched(a: &mut CodeAssembler, service: u16) -> Result<(), IcedError> {
    let (latch, control) = (u32::from(LATCH_PORT), u32::from(LATCH_PORT) - 1);
    let mut failed = a.create_label();
    a.pushfd()?;
    if service == service::APM {
        let mut awake = a.create_label();
        a.cmp(al, 5u32)?;
        a.jne(awake)?;
        a.sti()?;
        a.hlt()?;
        a.set_label(&mut awake)?;
    }
    a.cli()?;
    a.push(eax)?;
    a.mov(al, 0u32)?;
    a.out(control, al)?;
    a.pop(eax)?;
    a.out(latch, eax)?;
    for register in [ebx, ecx, edx, esi, edi] {
        a.mov(eax, register)?;
        a.out(latch, eax)?;
    }
    a.mov(al, u32::from(service))?;
    a.out(control, al)?;
    a.in_(eax, latch)?;
    a.push(eax)?;
    for register in [ebx, ecx, edx, esi, edi] {
        a.in_(eax, latch)?;
        a.mov(register, eax)?;
    }
    a.in_(eax, latch)?;
    a.test(al, 1u32)?;
    a.jne(failed)?;
    a.pop(eax)?;
    a.popfd()?;
    a.clc()?;
    a.retf()?;
    a.set_label(&mut failed)?;
    a.pop(eax)?;
    a.popfd()?;
    a.stc()?;
    a.retf()
}

/// INT 15h: function 89h returns in protected mode, as the descriptors at ES:SI say; the others are services.
fn system(a: &mut CodeAssembler, services: CodeLabel) -> Result<CodeLabel, IcedError> {
    let (mut label, mut refuse, mut enter) = (a.create_label(), a.create_label(), a.create_label());
    a.set_label(&mut label)?;
    a.cmp(ah, 0x89u32)?;
    a.jne(services)?;
    // In virtual-8086 mode it would be the monitor's to do.
    a.push(ax)?;
    a.smsw(ax)?;
    a.test(al, 1u32)?;
    a.pop(ax)?;
    a.jne(refuse)?;
    a.cli()?;
    a.in_(al, 0x92u32)?;
    a.or(al, 2u32)?;
    a.and(al, 0xfeu32)?;
    a.out(0x92u32, al)?;
    // BH and BL are where the interrupts go; all are masked.
    for port in [0x20u32, 0xa0] {
        a.mov(al, 0x11u32)?;
        a.out(port, al)?;
        a.mov(al, if port == 0x20 { bh } else { bl })?;
        a.out(port + 1, al)?;
        for value in [if port == 0x20 { 4u32 } else { 2 }, 1, 0xff] {
            a.mov(al, value)?;
            a.out(port + 1, al)?;
        }
    }
    // The last descriptor is ours to fill in: this code.
    for (at, value) in [(0x38, 0xffffu32), (0x3a, 0), (0x3c, 0x9b0f), (0x3e, 0)] {
        a.mov(word_ptr(si + at).es(), value)?;
    }
    a.lgdt(fword_ptr(si + 8).es())?;
    a.lidt(fword_ptr(si + 0x10).es())?;
    a.pop(bp)?;
    a.add(sp, 4u32)?;
    a.smsw(ax)?;
    a.or(al, 1u32)?;
    a.lmsw(ax)?;
    a.push(0x38u32)?;
    a.call(enter)?;
    for (register, selector) in [(ds, 0x18u32), (es, 0x20), (ss, 0x28)] {
        a.mov(ax, selector)?;
        a.mov(register, ax)?;
    }
    a.push(0x30u32)?;
    a.push(bp)?;
    a.xor(ax, ax)?;
    a.set_label(&mut enter)?;
    a.retf()?;
    a.set_label(&mut refuse)?;
    a.mov(ah, 0xffu32)?;
    a.push(bp)?;
    a.mov(bp, sp)?;
    a.or(byte_ptr(bp + 6), 1u32)?;
    a.pop(bp)?;
    a.iret()?;
    Ok(label)
}

/// Sets SS:SP and goes to `to` as INT would from here.
fn fresh_stack(a: &mut CodeAssembler, segment: u16, top: u16, to: CodeLabel) -> Result<CodeLabel, IcedError> {
    let mut label = a.create_label();
    a.set_label(&mut label)?;
    a.cli()?;
    a.cld()?;
    a.mov(ax, u32::from(segment))?;
    a.mov(ss, ax)?;
    a.mov(sp, u32::from(top))?;
    a.pushf()?;
    a.push(cs)?;
    a.push(0u32)?;
    a.jmp(to)?;
    Ok(label)
}

/// Gives DS, ES, FS and GS limits of 4 GiB, which stay when real mode loads them: option ROMs reach what the POST memory
/// manager gives them by 32-bit addresses.
fn flat(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.cli()?;
    a.lgdt(fword_ptr(u32::from(GDTR)).cs())?;
    a.mov(eax, cr0)?;
    a.or(al, 1u32)?;
    a.mov(cr0, eax)?;
    a.mov(bx, 8u32)?;
    for register in [ds, es, fs, gs] {
        a.mov(register, bx)?;
    }
    a.and(al, 0xfeu32)?;
    a.mov(cr0, eax)?;
    a.xor(bx, bx)?;
    for register in [ds, es, fs, gs] {
        a.mov(register, bx)?;
    }
    Ok(())
}

/// Calls a stub as INT would.
fn call(a: &mut CodeAssembler, stub: CodeLabel) -> Result<(), IcedError> {
    a.pushf()?;
    a.push(cs)?;
    a.call(stub)
}

/// Ends an interrupt of the primary or the secondary 8259. Changes AL.
fn end_of_interrupt(a: &mut CodeAssembler, secondary: bool) -> Result<(), IcedError> {
    a.mov(al, 0x20u32)?;
    if secondary {
        a.out(0xa0u32, al)?;
    }
    a.out(0x20u32, al)
}

/// Begins a handler that uses AX and the BIOS data area.
fn begin(a: &mut CodeAssembler) -> Result<CodeLabel, IcedError> {
    let mut label = a.create_label();
    a.set_label(&mut label)?;
    a.push(ax)?;
    a.push(ds)?;
    a.mov(ax, 0x40u32)?;
    a.mov(ds, ax)?;
    Ok(label)
}

/// Ends such a handler.
fn end(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.pop(ds)?;
    a.pop(ax)?;
    a.iret()
}

/// INT 08h: counts ticks, turns the diskette motors off, calls INT 1Ch.
fn timer(a: &mut CodeAssembler) -> Result<CodeLabel, IcedError> {
    let label = begin(a)?;
    let (mut day, mut motor) = (a.create_label(), a.create_label());
    a.inc(dword_ptr(0x6c))?;
    a.cmp(dword_ptr(0x6c), 0x18_00b0u32)?;
    a.jb(day)?;
    a.mov(dword_ptr(0x6c), 0u32)?;
    a.mov(byte_ptr(0x70), 1u32)?;
    a.set_label(&mut day)?;
    a.cmp(byte_ptr(0x40), 0u32)?;
    a.je(motor)?;
    a.dec(byte_ptr(0x40))?;
    a.jne(motor)?;
    a.and(byte_ptr(0x3f), 0xf0u32)?;
    a.push(dx)?;
    a.mov(dx, 0x3f2u32)?;
    a.mov(al, 0x0cu32)?;
    a.out(dx, al)?;
    a.pop(dx)?;
    a.set_label(&mut motor)?;
    // Hooks of 1Ch may change what they like.
    a.push(dx)?;
    a.int(0x1cu32)?;
    a.pop(dx)?;
    a.cli()?;
    end_of_interrupt(a, false)?;
    end(a)?;
    Ok(label)
}

/// INT 09h: offers the scan code to INT 15h/4Fh, translates it, does what key combinations ask for.
fn keyboard(a: &mut CodeAssembler, key: CodeLabel) -> Result<CodeLabel, IcedError> {
    let label = begin(a)?;
    let (mut over, mut not_break, mut not_print, mut sysrq) =
        (a.create_label(), a.create_label(), a.create_label(), a.create_label());
    a.in_(al, 0x60u32)?;
    a.mov(ah, 0x4fu32)?;
    a.stc()?;
    a.int(0x15u32)?;
    let mut ignored = a.create_label();
    a.jae(ignored)?;
    call(a, key)?;
    a.jmp(over)?;
    a.set_label(&mut ignored)?;
    a.xor(ax, ax)?;
    a.set_label(&mut over)?;
    a.cli()?;
    a.push(ax)?;
    end_of_interrupt(a, false)?;
    a.pop(ax)?;
    a.cmp(ah, u32::from(super::keyboard::BREAK))?;
    a.jne(not_break)?;
    a.int(0x1bu32)?;
    a.set_label(&mut not_break)?;
    a.cmp(ah, u32::from(super::keyboard::PRINT))?;
    a.jne(not_print)?;
    a.int(0x05u32)?;
    a.set_label(&mut not_print)?;
    a.cmp(ah, u32::from(super::keyboard::SYSRQ))?;
    a.jne(sysrq)?;
    // AL says whether it was pressed or released.
    a.mov(ah, 0x85u32)?;
    a.int(0x15u32)?;
    a.set_label(&mut sysrq)?;
    end(a)?;
    Ok(label)
}

/// INT 74h: collects the mouse's bytes and calls its handler with a whole packet.
fn mouse_interrupt(a: &mut CodeAssembler, mouse: CodeLabel) -> Result<CodeLabel, IcedError> {
    let mut label = a.create_label();
    let mut no_packet = a.create_label();
    a.set_label(&mut label)?;
    a.pushad()?;
    a.push(ds)?;
    a.push(es)?;
    a.in_(al, 0x60u32)?;
    call(a, mouse)?;
    // EAX: status and X; EBX: Y and Z; ECX: the handler, 0 for none or no whole packet.
    a.test(ecx, ecx)?;
    a.je(no_packet)?;
    a.push(ax)?;
    a.shr(eax, 16u32)?;
    a.push(ax)?;
    a.push(bx)?;
    a.shr(ebx, 16u32)?;
    a.push(bx)?;
    // A far call to CX's upper half: its lower half.
    a.push(cs)?;
    let mut back = a.create_label();
    let mut go = a.create_label();
    a.call(go)?;
    a.set_label(&mut back)?;
    a.add(sp, 8u32)?;
    a.set_label(&mut no_packet)?;
    a.cli()?;
    end_of_interrupt(a, true)?;
    a.pop(es)?;
    a.pop(ds)?;
    a.popad()?;
    a.iret()?;
    a.set_label(&mut go)?;
    a.push(ecx)?;
    a.sti()?;
    a.retf()?;
    Ok(label)
}

/// INT 70h: the periodic interrupt counts down what INT 15h/83h and 86h wait for, the alarm calls INT 4Ah.
fn clock(a: &mut CodeAssembler) -> Result<CodeLabel, IcedError> {
    let label = begin(a)?;
    let (mut no_period, mut no_alarm) = (a.create_label(), a.create_label());
    a.push(bx)?;
    a.mov(al, 0x0cu32)?;
    a.out(0x70u32, al)?;
    a.in_(al, 0x71u32)?;
    a.mov(bl, al)?;
    a.test(bl, 0x40u32)?;
    a.je(no_period)?;
    a.sub(dword_ptr(0x9c), 976u32)?;
    a.jae(no_period)?;
    // Over: no more periodic interrupts, and the flag that was named is set.
    a.mov(dword_ptr(0x9c), 0u32)?;
    a.mov(al, 0x0bu32)?;
    a.out(0x70u32, al)?;
    a.in_(al, 0x71u32)?;
    a.and(al, 0xbfu32)?;
    a.mov(ah, al)?;
    a.mov(al, 0x0bu32)?;
    a.out(0x70u32, al)?;
    a.mov(al, ah)?;
    a.out(0x71u32, al)?;
    a.test(byte_ptr(0xa0), 1u32)?;
    a.je(no_period)?;
    a.mov(byte_ptr(0xa0), 0u32)?;
    a.push(ds)?;
    a.push(si)?;
    a.lds(si, dword_ptr(0x98))?;
    a.or(byte_ptr(si), 0x80u32)?;
    a.pop(si)?;
    a.pop(ds)?;
    a.set_label(&mut no_period)?;
    a.test(bl, 0x20u32)?;
    a.je(no_alarm)?;
    a.int(0x4au32)?;
    a.set_label(&mut no_alarm)?;
    a.cli()?;
    end_of_interrupt(a, true)?;
    a.pop(bx)?;
    end(a)?;
    Ok(label)
}

/// INT 71h: IRQ 9 is what used to be IRQ 2.
fn redirect(a: &mut CodeAssembler) -> Result<CodeLabel, IcedError> {
    let mut label = a.create_label();
    a.set_label(&mut label)?;
    a.push(ax)?;
    a.mov(al, 0x20u32)?;
    a.out(0xa0u32, al)?;
    a.pop(ax)?;
    a.int(0x0au32)?;
    a.iret()?;
    Ok(label)
}

/// INT 75h: clears FERR#'s latch and calls the NMI's handler, where programs expect it.
fn coprocessor(a: &mut CodeAssembler) -> Result<CodeLabel, IcedError> {
    let mut label = a.create_label();
    a.set_label(&mut label)?;
    a.push(ax)?;
    a.xor(al, al)?;
    a.out(0xf0u32, al)?;
    end_of_interrupt(a, true)?;
    a.pop(ax)?;
    a.int(0x02u32)?;
    a.iret()?;
    Ok(label)
}

/// INT 76h: a disk is done.
fn disk(a: &mut CodeAssembler) -> Result<CodeLabel, IcedError> {
    let label = begin(a)?;
    a.mov(byte_ptr(0x8e), 0xffu32)?;
    end_of_interrupt(a, true)?;
    end(a)?;
    Ok(label)
}

/// INT 0Eh: a diskette drive is done.
fn diskette(a: &mut CodeAssembler) -> Result<CodeLabel, IcedError> {
    let label = begin(a)?;
    a.or(byte_ptr(0x3e), 0x80u32)?;
    end_of_interrupt(a, false)?;
    end(a)?;
    Ok(label)
}

/// Hardware interrupts that nobody expects: ends them if they are real.
fn spurious(a: &mut CodeAssembler, secondary: bool) -> Result<CodeLabel, IcedError> {
    let mut label = a.create_label();
    let mut none = a.create_label();
    a.set_label(&mut label)?;
    a.push(ax)?;
    let base = if secondary { 0xa0u32 } else { 0x20 };
    a.mov(al, 0x0bu32)?;
    a.out(base, al)?;
    a.in_(al, base)?;
    a.test(al, al)?;
    if secondary {
        let mut real = a.create_label();
        a.jne(real)?;
        // The primary has seen a real interrupt on its input 2.
        a.mov(al, 0x20u32)?;
        a.out(0x20u32, al)?;
        a.jmp(none)?;
        a.set_label(&mut real)?;
    } else {
        a.je(none)?;
    }
    end_of_interrupt(a, secondary)?;
    a.set_label(&mut none)?;
    a.pop(ax)?;
    a.iret()?;
    Ok(label)
}

/// INT 02h.
fn nmi(a: &mut CodeAssembler) -> Result<CodeLabel, IcedError> {
    let mut label = a.create_label();
    a.set_label(&mut label)?;
    a.iret()?;
    Ok(label)
}
