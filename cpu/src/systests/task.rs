//! Hardware task switches.

use iced_x86::code_asm::*;

use super::*;
use crate::flags::{NT, VM};
use crate::insn::{RAX, RBX, RCX};

const OTHER: u16 = sel::FREE;
const GATE: u16 = sel::FREE + 8;
/// Where the other TSS and its stack are.
const OTHER_TSS: u64 = 0x3200;
const OTHER_STACK: u64 = 0xd000;
const OTHER_CODE: u64 = 0x1_8000;

/// A machine with a second 32-bit task that halts at once, and a task gate to it.
fn machine() -> Machine {
    let m = Machine::protected();
    m.set_descriptor(OTHER, descriptor(OTHER_TSS as u32, 0x67, flags::TSS32));
    m.set_descriptor(GATE, gate(OTHER, 0, 0xe500));
    for (at, v) in [
        (0x1c, 0),
        (0x20, OTHER_CODE as u32),
        (0x24, 0x403),
        (0x28, 0xaaaa_0000),
        (0x2c, 0xcccc_0000),
        (0x38, OTHER_STACK as u32),
        (0x48, sel::DATA0.into()),
        (0x4c, sel::CODE0.into()),
        (0x50, sel::DATA0.into()),
        (0x54, sel::DATA0.into()),
        (0x58, 0),
        (0x5c, sel::DATA0.into()),
        (0x60, 0),
        (0x64, 0xffff_0000),
    ] {
        m.write32(OTHER_TSS + at, v);
    }
    m.write(OTHER_CODE, [0xf4]);
    m
}

fn far(a: &mut CodeAssembler, opcode: u8, selector: u16) {
    a.db(&[opcode, 0, 0, 0, 0, selector as u8, 0]).unwrap();
}

#[test]
fn a_jump_saves_one_task_and_loads_the_other() {
    for target in [OTHER, GATE] {
        let mut m = machine();
        m.cpu.gpr[RAX as usize] = 0x1111;
        m.cpu.dr[7] = 0x455;
        m.cpu.dr[0] = 0xffff_0000;
        m.code(32, |a| far(a, 0xea, target));
        m.runs();
        assert_eq!(m.cpu.rip, OTHER_CODE + 1);
        assert_eq!((m.gpr(RAX), m.gpr(RCX), m.gpr(RSP)), (0xaaaa_0000, 0xcccc_0000, OTHER_STACK));
        assert_eq!(m.cpu.rflags() & 0x7fff, 0x403);
        assert_eq!((m.cpu.tr.selector, m.cpu.tr.base, m.cpu.cr0 & 8), (OTHER, OTHER_TSS, 8));
        assert_eq!(m.cpu.dr[7], 0x400, "local breakpoints end");
        // The old task: address of the next instruction, registers, not busy.
        assert_eq!((m.read32(TSS + 0x20), m.read32(TSS + 0x28)), (CODE as u32 + 7, 0x1111));
        assert_eq!((m.read16(TSS + 0x4c), m.read32(TSS + 0x38)), (sel::CODE0, STACK as u32));
        assert_eq!((m.access_byte(sel::TSS), m.access_byte(OTHER)), (0x89, 0x8b));
    }
}

#[test]
fn a_call_nests_and_iret_returns() {
    let mut m = machine();
    m.write(OTHER_CODE, [0xcf]);
    m.code(32, |a| {
        far(a, 0x9a, OTHER);
        a.hlt().unwrap();
    });
    m.step();
    assert_eq!(m.cpu.rflags & NT, NT);
    assert_eq!(m.read16(OTHER_TSS), sel::TSS, "the link to the caller");
    assert_eq!((m.access_byte(sel::TSS), m.access_byte(OTHER)), (0x8b, 0x8b));
    m.runs();
    assert_eq!((m.cpu.rip, m.cpu.tr.selector), (CODE + 8, sel::TSS));
    assert_eq!((m.access_byte(sel::TSS), m.access_byte(OTHER)), (0x8b, 0x89));
    assert_eq!(m.read32(OTHER_TSS + 0x24) as u64 & NT, 0, "NT is clear in what IRET saves");
    assert_eq!(m.read32(OTHER_TSS + 0x20), OTHER_CODE as u32 + 1);
}

#[test]
fn an_exception_by_task_gate_pushes_its_error_code_on_the_new_stack() {
    let mut m = machine();
    m.set_gate(13, gate(OTHER, 0, 0x8500));
    m.level(3);
    m.code(32, |a| a.int(0x41).unwrap());
    m.runs();
    assert_eq!((m.cpu.rip, m.cpu.cpl), (OTHER_CODE + 1, 0));
    assert_eq!((m.gpr(RSP), m.stack32::<1>()[0]), (OTHER_STACK - 4, 0x41 * 8 + 2));
    assert_eq!(m.read32(TSS + 0x20), CODE as u32, "the saved EIP is that of the fault");
    assert_eq!(m.read32(TSS + 0x24) & 0x1_0000, 0x1_0000, "with RF");
    assert_eq!(m.read16(TSS + 0x4c), sel::CODE3);
}

#[test]
fn a_double_fault_by_task_gate_survives_a_broken_stack() {
    let mut m = machine();
    m.set_gate(8, gate(OTHER, 0, 0x8500));
    m.cpu.gpr[RSP as usize] = 0;
    m.cpu.seg[SS as usize].limit = 0xfff;
    m.cpu.mode_changed();
    m.code(32, |a| a.push(eax).unwrap());
    m.runs();
    assert_eq!((m.cpu.rip, m.stack32::<1>()[0]), (OTHER_CODE + 1, 0));
}

#[test]
fn a_16_bit_tss_keeps_words() {
    let mut m = machine();
    m.set_descriptor(OTHER, descriptor(OTHER_TSS as u32, 0x2b, flags::TSS16));
    m.ram.write(RamAddr(OTHER_TSS), &[0; 0x2c]);
    m.write(0x5000, [0xf4]);
    for (at, v) in [
        (0x0e, 0x5000),
        (0x10, 2),
        (0x12, 0x1234),
        (0x1a, 0x7000),
        (0x22, 0),
        (0x24, sel::CODE0),
        (0x26, sel::DATA0),
        (0x28, sel::DATA0),
    ] {
        m.write16(OTHER_TSS + at, v);
    }
    m.code(32, |a| far(a, 0x9a, OTHER));
    m.runs();
    assert_eq!((m.cpu.rip, m.gpr(RAX) & 0xffff, m.gpr(RSP) & 0xffff), (0x5001, 0x1234, 0x7000));
    assert_eq!(m.cpu.seg[FS as usize].access, Segment::UNUSABLE);
    assert_eq!(m.read16(OTHER_TSS), sel::TSS);
    // And back: 16-bit registers are saved.
    m.cpu.gpr[RBX as usize] = 0x5678_9abc;
    m.code(32, |a| a.iretd().unwrap());
    m.step();
    assert_eq!(m.cpu.tr.selector, sel::TSS);
    assert_eq!(m.read16(OTHER_TSS + 0x18), 0x9abc);
    assert_eq!(m.read16(OTHER_TSS + 0x1a), 0x7000);
}

#[test]
fn what_can_be_checked_before_the_switch_faults_in_the_old_task() {
    type Setup = fn(&mut Machine);
    for (setup, target, want) in [
        ((|m| m.write(GDT + 0x35, [0x8b])) as Setup, OTHER, (13, OTHER)),
        (|m| m.write(GDT + 0x35, [0x09]), OTHER, (11, OTHER)),
        (|m| m.write(GDT + 0x30, [0x66]), OTHER, (10, OTHER)),
        (|m| m.set_descriptor(GATE, gate(sel::DATA0, 0, 0xe500)), GATE, (13, sel::DATA0)),
        (|m| m.set_descriptor(GATE, gate(OTHER | 4, 0, 0xe500)), GATE, (13, OTHER | 4)),
        (|m| m.set_descriptor(GATE, gate(OTHER, 0, 0x6500)), GATE, (11, GATE)),
    ] {
        let mut m = machine();
        setup(&mut m);
        m.code(32, |a| far(a, 0xea, target));
        assert_eq!(m.faults32(), (want.0, want.1.into()));
        assert_eq!(m.cpu.tr.selector, sel::TSS);
        assert_eq!(m.read32(STACK - 12), CODE as u32);
    }
    let mut m = machine();
    m.level(3);
    m.code(32, |a| far(a, 0xea, OTHER));
    assert_eq!(m.faults32(), (13, OTHER.into()), "DPL 0");
    // IRET to a task that is not busy.
    let mut m = machine();
    m.write16(TSS, OTHER);
    m.cpu.rflags |= NT;
    m.code(32, |a| a.iretd().unwrap());
    assert_eq!(m.faults32(), (10, OTHER.into()));
}

#[test]
fn what_is_checked_later_faults_in_the_new_task() {
    for (at, v, want) in [
        (0x4c, sel::DATA0, sel::DATA0),
        (0x4c, 0, 0),
        (0x50, 0, 0),
        (0x54, 0x100, 0x100),
        (0x60, sel::DATA0, sel::DATA0),
        (0x5c, 0x48, 0x48),
    ] {
        let mut m = machine();
        m.set_descriptor(0x48, descriptor(0, 0xfffff, flags::DATA & !0x8000));
        // The handlers must be good for level 0 of a task without a stack, too: a task of their own.
        m.set_descriptor(0x50, descriptor(0x3400, 0x67, flags::TSS32));
        let words: [u8; 0x68] = m.read(OTHER_TSS);
        m.write(0x3400, words);
        for v in [10, 11] {
            m.set_gate(v, gate(0x50, 0, 0x8500));
        }
        m.write16(OTHER_TSS + at, v);
        m.code(32, |a| far(a, 0xea, OTHER));
        m.runs();
        assert_eq!(m.cpu.tr.selector, 0x50);
        assert_eq!(m.read16(0x3400), OTHER, "{at:x}: the fault came from the new task");
        assert_eq!(m.stack32::<1>()[0], u32::from(want), "{at:x}");
        assert_eq!(m.read32(OTHER_TSS + 0x20), OTHER_CODE as u32);
    }
}

#[test]
fn the_t_bit_traps_after_the_switch() {
    let mut m = machine();
    m.write16(OTHER_TSS + 0x64, 1);
    m.code(32, |a| far(a, 0xea, OTHER));
    assert_eq!(m.vector(), 1);
    assert_eq!((m.cpu.dr[6] & 0xe00f, m.stack32::<1>()[0]), (0x8000, OTHER_CODE as u32));
}

#[test]
fn a_task_can_be_a_virtual_8086_one() {
    let mut m = machine();
    m.write32(OTHER_TSS + 0x24, 0x2_3002);
    m.write32(OTHER_TSS + 0x20, 0x10);
    m.write16(OTHER_TSS + 0x4c, 0x1800);
    m.write16(OTHER_TSS + 0x50, 0x0d00);
    m.write32(OTHER_TSS + 0x38, 0x100);
    m.write(0x1_8010, [0x06, 0xf4]);
    m.code(32, |a| far(a, 0xea, OTHER));
    m.step();
    assert_eq!(m.cpu.rflags & VM, VM);
    assert_eq!((m.cpu.cpl, m.cpu.seg[CS as usize].base), (3, 0x1_8000));
    m.step();
    assert_eq!(m.read16(0xd0fe), sel::DATA0);
}

#[test]
fn a_switch_loads_cr3_and_the_ldt() {
    let mut m = machine();
    let root = 0x10_0000u64;
    for table in [root, root + 0x2000] {
        m.write32(table, (root as u32 + 0x1000) | 7);
    }
    for n in 0..1024 {
        m.write32(root + 0x1000 + 4 * n, (n as u32) << 12 | 7);
    }
    m.cpu.cr3 = root;
    m.cpu.cr0 |= 1 << 31;
    m.set_descriptor(0x48, descriptor(LDT as u32, 0xf, 0x8200));
    m.write64(LDT + 8, descriptor(0x5000, 0xfff, flags::DATA));
    m.write32(OTHER_TSS + 0x1c, root as u32 + 0x2000);
    m.write16(OTHER_TSS + 0x60, 0x48);
    m.write16(OTHER_TSS + 0x48, 0xc);
    m.code(32, |a| far(a, 0xea, OTHER));
    m.runs();
    assert_eq!(m.cpu.cr3, root + 0x2000);
    assert_eq!((m.cpu.ldtr.base, m.cpu.seg[ES as usize].base), (LDT, 0x5000));
}
