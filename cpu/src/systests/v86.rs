//! Virtual-8086 mode, with and without its extensions, and interrupts of real mode.

use iced_x86::code_asm::*;

use super::*;
use crate::flags::{IOPL, NT, TF, VIF, VIP, VM};
use crate::insn::RAX;

const VME: u64 = 1;
/// SS of the virtual-8086 program.
const SEG_STACK: u16 = 0x0d00;

/// A virtual-8086 program with this IOPL.
fn machine(iopl: u64) -> Machine {
    let mut m = Machine::protected();
    m.cpu.rflags |= VM | iopl << 12 | IF;
    m.cpu.cpl = 3;
    for (seg, selector) in [(CS, (CODE >> 4) as u16), (SS, SEG_STACK), (DS, 0x500), (ES, 0x600), (FS, 0), (GS, 0x700)] {
        m.cpu.seg[seg as usize] = m.cpu.real_segment(seg, selector);
    }
    m.cpu.gpr[RSP as usize] = 0x100;
    m.cpu.mode_changed();
    m
}

#[test]
fn an_interrupt_saves_all_segments_and_iret_restores_them() {
    let mut m = machine(3);
    m.code(16, |a| a.int(0x40).unwrap());
    m.set_gate(0x40, gate(sel::CODE0, HANDLERS as u32 + 0x400, 0xee00));
    assert_eq!(m.vector(), 0x40);
    let flags = (VM | IOPL | IF | 2) as u32;
    assert_eq!(m.stack32::<9>(), [2, CODE as u32 >> 4, flags, 0x100, SEG_STACK.into(), 0x600, 0x500, 0, 0x700]);
    assert_eq!((m.cpu.cpl, m.cpu.rflags & VM), (0, 0));
    for seg in [ES, DS, FS, GS] {
        assert_eq!(m.cpu.seg[seg as usize].access, Segment::UNUSABLE);
    }
    // The handler returns.
    m.cpu.halted = false;
    m.write(m.cpu.rip, [0xcf]);
    m.step();
    assert_eq!((m.cpu.cpl, m.cpu.rflags & VM, m.cpu.rip), (3, VM, 2));
    assert_eq!((m.gpr(RSP), m.cpu.seg[GS as usize].base), (0x100, 0x7000));
}

#[test]
fn the_handler_must_run_at_level_0() {
    let mut m = machine(3);
    m.set_gate(0x40, gate(sel::CODE3, HANDLERS as u32, 0xee00));
    m.code(16, |a| a.int(0x40).unwrap());
    assert_eq!(m.faults32(), (13, u32::from(sel::CODE3) & !3));
}

#[test]
fn with_iopl_below_3_sensitive_instructions_fault() {
    for bytes in [&[0xfa][..], &[0xfb], &[0x9c], &[0x9d], &[0xcf], &[0xcd, 0x30]] {
        let mut m = machine(0);
        m.code(16, |a| a.db(bytes).unwrap());
        assert_eq!(m.faults32(), (13, 0), "{bytes:x?}");
    }
    // INT3 is not sensitive.
    let mut m = machine(0);
    m.set_gate(3, gate(sel::CODE0, HANDLERS as u32 + 48, 0xee00));
    m.code(16, |a| a.int3().unwrap());
    assert_eq!(m.vector(), 3);
    // What belongs to protected mode is undefined.
    for bytes in [&[0x0f, 0x00, 0xc0][..], &[0x0f, 0x02, 0xc0], &[0x63, 0xc0]] {
        let mut m = machine(3);
        m.code(16, |a| a.db(bytes).unwrap());
        assert_eq!(m.vector(), 6, "{bytes:x?}");
    }
    let mut m = machine(3);
    m.code(16, |a| a.hlt().unwrap());
    assert_eq!(m.faults32(), (13, 0));
}

#[test]
fn with_iopl_3_flags_are_the_programs_own() {
    let mut m = machine(3);
    m.code(16, |a| {
        a.cli().unwrap();
        a.pushf().unwrap();
        a.pop(ax).unwrap();
        a.push(0x7000 | 0x200).unwrap();
        a.popf().unwrap();
    });
    for _ in 0..5 {
        m.step();
    }
    assert_eq!(m.gpr(RAX), IOPL | 2);
    assert_eq!(m.cpu.rflags & (IF | IOPL | NT | VM), IF | IOPL | NT | VM);
}

#[test]
fn with_vme_vif_stands_for_if() {
    let mut m = machine(0);
    m.cpu.cr4 |= VME;
    m.code(16, |a| {
        a.sti().unwrap();
        a.pushf().unwrap();
        a.pop(ax).unwrap();
        a.cli().unwrap();
        a.push(0x200).unwrap();
        a.popf().unwrap();
        a.pushfd().unwrap();
    });
    for _ in 0..3 {
        m.step();
    }
    assert_eq!(m.gpr(RAX), IOPL | IF | 2, "IOPL reads as 3");
    m.step();
    assert_eq!(m.cpu.rflags & (VIF | IF), IF);
    m.step();
    m.step();
    assert_eq!(m.cpu.rflags & (VIF | IF | IOPL), VIF | IF);
    assert_eq!(m.faults32(), (13, 0), "the 32-bit form still faults");
    // A waiting interrupt: STI and POPF with IF fault.
    for bytes in [&[0xfb][..], &[0x68, 0x00, 0x02, 0x9d], &[0x68, 0x00, 0x01, 0x9d]] {
        let mut m = machine(0);
        m.cpu.cr4 |= VME;
        m.cpu.rflags |= VIP;
        m.code(16, |a| a.db(bytes).unwrap());
        assert_eq!(m.faults32(), (13, 0), "{bytes:x?}");
    }
}

/// INT 21h with VME; `monitor` is its bit in the redirection map.
fn int21(iopl: u64, monitor: bool) -> Machine {
    let mut m = machine(iopl);
    m.cpu.cr4 |= VME;
    m.cpu.rflags |= VIF | TF;
    m.cpu.tr.limit = 0x167;
    m.write16(TSS + 0x66, 0x88);
    m.write(TSS + 0x68 + 4, [if monitor { 2 } else { 0 }]);
    m.write32(4 * 0x21, 0x1800_0010);
    m.set_gate(0x21, gate(sel::CODE0, HANDLERS as u32 + 0x210, 0xee00));
    m.write(0x1_8010, [0xeb, 0xfe]);
    m.code(16, |a| a.int(0x21).unwrap());
    m.step();
    m
}

#[test]
fn the_redirection_map_sends_int_to_the_program_or_to_the_monitor() {
    let m = int21(0, false);
    assert_eq!((m.cpu.seg[CS as usize].selector, m.cpu.rip), (0x1800, 0x10));
    assert_eq!(m.stack16::<3>(), [2, (CODE >> 4) as u16, (IOPL | IF | TF | 2) as u16]);
    assert_eq!(m.cpu.rflags & (VIF | IF | TF | VM), IF | VM);
    let m = int21(3, false);
    assert_eq!(m.cpu.rip, 0x10);
    assert_eq!(m.cpu.rflags & (VIF | IF | VM), VIF | VM, "with IOPL 3 it is IF itself");
    let m = int21(3, true);
    assert_eq!((m.cpu.rip, m.cpu.cpl), (HANDLERS + 0x210, 0));
    let m = int21(0, true);
    assert_eq!((m.cpu.rip, m.cpu.cpl), (HANDLERS + 13 * 16, 0));
}

#[test]
fn iret_to_virtual_8086_mode_needs_level_0_and_checks_eip() {
    let mut m = Machine::protected();
    m.code(32, |a| {
        for v in [0x700, 0x0, 0x500, 0x600, 0xd00, 0x100, (VM | IOPL | 2) as i32, 0x1000, 0x1_0000] {
            a.push(v).unwrap();
        }
        a.iretd().unwrap();
    });
    assert_eq!(m.faults32(), (13, 0));
}

#[test]
fn the_io_bitmap_always_counts() {
    let mut m = machine(3);
    m.code(16, |a| a.in_(al, 0x80).unwrap());
    assert_eq!(m.faults32(), (13, 0));
    let mut m = machine(0);
    m.cpu.tr.limit = 0x100;
    m.write16(TSS + 0x66, 0x68);
    m.code(16, |a| {
        a.in_(al, 0x80).unwrap();
        a.ud2().unwrap();
    });
    assert_eq!(m.vector(), 6);
}

#[test]
fn real_mode_interrupts_use_the_vector_table() {
    let mut m = Machine::real();
    m.cpu.rflags |= IF | TF;
    m.write(HANDLERS + 0x210, [0xcf]);
    m.code(16, |a| {
        a.int(0x21).unwrap();
        a.hlt().unwrap();
    });
    m.step();
    assert_eq!((m.cpu.rip, m.cpu.seg[CS as usize].selector), (0x210, (HANDLERS >> 4) as u16));
    assert_eq!(m.stack16::<3>(), [2, (CODE >> 4) as u16, (IF | TF | 2) as u16]);
    assert_eq!(m.cpu.rflags & (IF | TF), 0);
    m.step();
    assert_eq!((m.cpu.rip, m.cpu.rflags & (IF | TF)), (2, IF | TF));
    assert_eq!(m.gpr(RSP), STACK);
    // A vector beyond the table is #GP, which has no error code here; with no room for that either, the end.
    let mut m = Machine::real();
    m.cpu.idtr.limit = 0x83;
    m.code(16, |a| a.int(0x21).unwrap());
    assert_eq!(m.vector(), 13);
    assert_eq!(m.stack16::<2>(), [0, (CODE >> 4) as u16]);
    let mut m = Machine::real();
    m.cpu.idtr.limit = 0;
    m.code(16, |a| a.int(0x21).unwrap());
    assert_eq!(m.run(), Exit::Shutdown);
}
