//! Single step and breakpoints.

use iced_x86::code_asm::*;

use super::*;
use crate::flags::{RF, TF};
use crate::insn::{RAX, RBX, RCX, RDI};

const BS: u64 = 1 << 14;

#[test]
fn single_step_traps_after_each_instruction() {
    let mut m = Machine::protected();
    m.code(32, |a| {
        a.push(0x102).unwrap();
        a.popfd().unwrap();
        a.inc(eax).unwrap();
        a.inc(eax).unwrap();
    });
    assert_eq!(m.vector(), 1);
    assert_eq!(m.gpr(RAX), 1, "not after the POPF that sets TF");
    assert_eq!(m.stack32::<3>(), [CODE as u32 + 7, sel::CODE0.into(), 0x102]);
    assert_eq!((m.cpu.dr[6] & 0xe00f, m.cpu.rflags & TF), (BS, 0));
}

#[test]
fn mov_ss_is_not_trapped_but_what_follows_it_is() {
    let mut m = Machine::protected();
    m.cpu.rflags |= TF;
    m.cpu.gpr[RAX as usize] = sel::DATA0.into();
    m.code(32, |a| {
        a.mov(ss, eax).unwrap();
        a.inc(ebx).unwrap();
        a.inc(ebx).unwrap();
    });
    assert_eq!(m.vector(), 1);
    assert_eq!(m.gpr(RBX), 1);
}

#[test]
fn a_data_breakpoint_on_the_operand_of_mov_ss_waits_for_one_more_instruction() {
    let mut m = Machine::protected();
    m.write16(0x5000, sel::DATA0);
    m.cpu.dr[0] = 0x5000;
    m.cpu.write_dr7(0x1 | 0x7 << 16);
    m.code(32, |a| {
        a.mov(ss, word_ptr(0x5000)).unwrap();
        a.inc(ebx).unwrap();
        a.inc(ebx).unwrap();
    });
    assert_eq!(m.vector(), 1);
    assert_eq!((m.gpr(RBX), m.cpu.dr[6] & 0xe00f), (1, 1));
}

#[test]
fn a_software_interrupt_is_not_single_stepped() {
    let mut m = Machine::protected();
    m.cpu.rflags |= TF;
    m.code(32, |a| a.int(0x40).unwrap());
    assert_eq!(m.vector(), 0x40);
    assert_eq!(m.cpu.dr[6] & BS, 0);
    // A fault is delivered without a trap, too.
    let mut m = Machine::protected();
    m.cpu.rflags |= TF;
    m.code(32, |a| a.ud2().unwrap());
    assert_eq!(m.vector(), 6);
}

#[test]
fn single_step_stops_after_each_repetition() {
    let mut m = Machine::protected();
    m.cpu.rflags |= TF;
    m.cpu.gpr[RCX as usize] = 5;
    m.cpu.gpr[RDI as usize] = 0x5000;
    m.code(32, |a| a.rep().stosd().unwrap());
    assert_eq!(m.vector(), 1);
    assert_eq!((m.gpr(RCX), m.gpr(RDI), m.stack32::<1>()[0]), (4, 0x5004, CODE as u32));
}

#[test]
fn an_instruction_breakpoint_faults_before_it_and_rf_passes_it() {
    let mut m = Machine::protected();
    m.code(32, |a| {
        a.nop().unwrap();
        a.inc(ebx).unwrap();
        a.hlt().unwrap();
    });
    m.cpu.dr[2] = CODE + 1;
    m.cpu.write_dr7(1 << 5);
    assert_eq!(m.vector(), 1);
    assert_eq!((m.cpu.dr[6] & 0xe00f, m.gpr(RBX)), (4, 0));
    assert_eq!(m.stack32::<3>(), [CODE as u32 + 1, sel::CODE0.into(), 2]);
    // Return with RF.
    m.write32(STACK - 4, 2 | RF as u32);
    m.write(m.cpu.rip, [0xcf]);
    m.cpu.halted = false;
    m.runs();
    assert_eq!((m.gpr(RBX), m.cpu.rflags & RF), (1, 0));
}

#[test]
fn data_breakpoints_tell_reads_from_writes_and_overlap() {
    for (kind, len, at, write, hit) in [
        (1, 3, 0x5000, true, true),
        (1, 3, 0x5000, false, false),
        (3, 3, 0x5000, false, true),
        // A dword at 4FFD reaches the first byte.
        (1, 0, 0x4ffd, true, true),
        (1, 0, 0x4ffc, true, false),
        (1, 3, 0x5003, true, true),
        (1, 3, 0x5004, true, false),
        // Eight bytes.
        (1, 2, 0x5004, true, true),
    ] {
        let mut m = Machine::protected();
        m.cpu.dr[1] = 0x5000;
        m.cpu.write_dr7(1 << 3 | kind << 20 | len << 22);
        m.code(32, |a| {
            if write {
                a.mov(dword_ptr(at), eax).unwrap();
            } else {
                a.mov(eax, dword_ptr(at)).unwrap();
            }
            a.hlt().unwrap();
        });
        // The translation must not be there before the breakpoint is.
        assert_eq!(m.run(), Exit::Halted);
        assert_eq!(m.cpu.rip == HANDLERS + 17, hit, "{kind} {len} {at:x} {write}");
        assert_eq!(m.cpu.dr[6] & 0xf, if hit { 2 } else { 0 });
    }
}

#[test]
fn a_breakpoint_on_a_page_that_is_in_the_tlb_hits() {
    let mut m = Machine::protected();
    m.cpu.store::<u32>(0x5000, 1).unwrap();
    m.code(32, |a| {
        a.mov(eax, 0x5000).unwrap();
        a.mov(dr0, eax).unwrap();
        a.mov(eax, 0xd_0001).unwrap();
        a.mov(dr7, eax).unwrap();
        a.mov(dword_ptr(0x5000), eax).unwrap();
        a.nop().unwrap();
    });
    assert_eq!(m.vector(), 1);
    assert_eq!(m.read32(0x5000), 0xd_0001, "a trap, after the write");
    assert_eq!(m.stack32::<1>()[0], CODE as u32 + 21);
}

#[test]
fn io_breakpoints_need_cr4_de() {
    for de in [false, true] {
        let mut m = Machine::protected();
        m.cpu.cr4 = if de { 8 } else { 0 };
        m.cpu.dr[3] = 0x102;
        m.cpu.write_dr7(1 << 6 | 2 << 28);
        m.code(32, |a| {
            a.mov(edx, 0x100).unwrap();
            a.in_(eax, dx).unwrap();
            a.hlt().unwrap();
        });
        assert_eq!(m.run(), Exit::Halted);
        assert_eq!(m.cpu.rip == HANDLERS + 17, de);
    }
}

#[test]
fn general_detect_guards_the_debug_registers() {
    let mut m = Machine::protected();
    m.cpu.write_dr7(1 << 13);
    m.code(32, |a| a.mov(eax, dr0).unwrap());
    assert_eq!(m.vector(), 1);
    assert_eq!((m.cpu.dr[6] & 0xe00f, m.cpu.dr[7]), (1 << 13, 0x400), "and is off in the handler");
    assert_eq!(m.stack32::<1>()[0], CODE as u32);
}

#[test]
fn dr4_and_dr5_are_aliases_unless_cr4_de() {
    let mut m = Machine::protected();
    m.code(32, |a| {
        a.mov(eax, u32::MAX).unwrap();
        a.db(&[0x0f, 0x23, 0xe0]).unwrap();
        a.mov(ebx, dr6).unwrap();
        a.db(&[0x0f, 0x21, 0xe9]).unwrap();
        a.hlt().unwrap();
    });
    m.runs();
    assert_eq!((m.gpr(RBX), m.gpr(RCX)), (0xffff_efff, 0x400));
    let mut m = Machine::protected();
    m.cpu.cr4 = 8;
    m.code(32, |a| a.db(&[0x0f, 0x21, 0xe1]).unwrap());
    assert_eq!(m.vector(), 6);
    let mut m = Machine::protected();
    m.level(3);
    m.code(32, |a| a.mov(eax, dr7).unwrap());
    assert_eq!(m.faults32(), (13, 0));
}

#[test]
fn an_instruction_breakpoint_on_a_string_instruction_of_several_pieces_hits_once() {
    let mut m = Machine::protected();
    m.cpu.gpr[RCX as usize] = 0x900;
    m.cpu.gpr[RDI as usize] = 0x5800;
    m.code(32, |a| {
        a.rep().stosb().unwrap();
        a.hlt().unwrap();
    });
    m.cpu.dr[0] = CODE;
    m.cpu.write_dr7(1);
    m.cpu.rflags |= RF;
    m.runs();
    assert_eq!((m.gpr(RCX), m.gpr(RDI), m.cpu.rflags & RF), (0, 0x6100, 0));
}

#[test]
fn a_data_breakpoint_is_taken_after_the_repetition_that_meets_it() {
    let mut m = Machine::protected();
    m.cpu.gpr[RCX as usize] = 10;
    m.cpu.gpr[RDI as usize] = 0x5000;
    m.cpu.dr[1] = 0x5003;
    m.cpu.write_dr7(1 << 3 | 1 << 20);
    m.code(32, |a| a.rep().stosb().unwrap());
    assert_eq!(m.vector(), 1);
    assert_eq!((m.gpr(RCX), m.gpr(RDI), m.cpu.dr[6] & 0xf), (6, 0x5004, 2));
    assert_eq!(m.stack32::<3>(), [CODE as u32, sel::CODE0.into(), 2 | RF as u32]);
}

#[test]
fn an_instruction_breakpoint_on_a_repeated_instruction_hits_once() {
    let mut m = Machine::protected();
    m.cpu.gpr[RCX as usize] = 5;
    m.cpu.gpr[RDI as usize] = 0x5000;
    m.code(32, |a| {
        a.rep().insb().unwrap();
        a.hlt().unwrap();
    });
    m.cpu.dr[0] = CODE;
    m.cpu.write_dr7(1);
    m.cpu.rflags |= RF;
    m.runs();
    assert_eq!((m.gpr(RCX), m.cpu.rflags & RF), (0, 0));
}
