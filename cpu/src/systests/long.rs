//! Long mode: entering and leaving it, 64-bit interrupts, system calls, canonical addresses.

use iced_x86::code_asm::*;

use super::*;
use crate::flags::{AC, NT, RF, TF};
use crate::insn::{Mode, RAX, RBX, RCX, RDX};

const ROOT: u64 = 0x10_0000;
/// A selector for whatever a test needs; with 16 bytes, the next one, too.
const SEL: u16 = sel::FREE;
const HIGH: u64 = 0x8000_0000_0000;

/// 16-byte interrupt gates to all handlers, in 64-bit code.
pub(super) fn interrupt_gates(m: &mut Machine) {
    for v in 0..256u64 {
        set_gate(m, v as u8, sel::CODE64, HANDLERS + 16 * v, 0x8e00);
    }
    m.cpu.idtr = Table { base: IDT, limit: 0xfff };
}

/// `kind` holds the IST in its low bits.
fn set_gate(m: &Machine, vector: u8, selector: u16, offset: u64, kind: u32) {
    m.write64(IDT + 16 * u64::from(vector), gate(selector, offset as u32, kind));
    m.write64(IDT + 16 * u64::from(vector) + 8, offset >> 32);
}

/// 64-bit mode at CPL 0 or 3; the first GiB is mapped to itself for everybody.
fn machine(cpl: u8) -> Machine {
    machine_with(Model::default(), cpl)
}

pub(super) fn machine_with(model: Model, cpl: u8) -> Machine {
    let mut m = Machine::protected_with(model);
    m.write64(ROOT, ROOT + 0x1000 | 7);
    m.write64(ROOT + 0x1000, 0x87);
    interrupt_gates(&mut m);
    set_gate(&m, 0x30, sel::CODE64, HANDLERS + 16 * 0x30, 0xee00);
    m.write64(TSS + 4, STACK0);
    m.write64(TSS + 0x24, IST1);
    m.cpu.cr4 = 0x20;
    m.cpu.cr3 = ROOT;
    m.cpu.cr0 |= 0x8000_0000;
    m.cpu.msr.efer = 0xd01;
    m.level(cpl);
    m.cpu.seg[CS as usize] =
        Segment::flat(if cpl == 0 { sel::CODE64 } else { sel::CODE64_3 }, 0x209b | u32::from(cpl) << 5);
    m.cpu.mode_changed();
    m
}

/// Takes an exception with an error code in 64-bit mode.
fn faults(m: &mut Machine) -> (u8, u64) {
    let v = m.vector();
    (v, m.stack64::<1>()[0])
}

#[test]
fn the_way_into_long_mode_and_back() {
    let mut m = Machine::protected();
    m.write64(ROOT, ROOT + 0x1000 | 7);
    m.write64(ROOT + 0x1000, 0x87);
    m.cpu.idtr.limit = 0;
    m.code(32, |a| {
        a.mov(eax, cr4).unwrap();
        a.or(eax, 0x20).unwrap();
        a.mov(cr4, eax).unwrap();
        a.mov(eax, ROOT as u32).unwrap();
        a.mov(cr3, eax).unwrap();
        a.mov(ecx, 0xc000_0080u32).unwrap();
        a.rdmsr().unwrap();
        a.or(eax, 0x100).unwrap();
        a.wrmsr().unwrap();
        a.mov(eax, cr0).unwrap();
        a.or(eax, 0x8000_0000u32 as i32).unwrap();
        a.mov(cr0, eax).unwrap();
        // Compatibility mode now.
        a.rdmsr().unwrap();
        a.mov(ebx, eax).unwrap();
        a.db(&[0xea, 0, 0x80, 1, 0, sel::CODE64 as u8, 0]).unwrap();
    });
    let mut a = CodeAssembler::new(64).unwrap();
    a.mov(rdx, 0x1234_5678_9abc_def0u64).unwrap();
    // To 32-bit code, and out of long mode.
    a.push(u32::from(sel::CODE0) as i32).unwrap();
    a.push(0x1_9000).unwrap();
    a.db(&[0x48, 0xcb]).unwrap();
    m.ram.write(RamAddr(0x1_8000), &a.assemble(0x1_8000).unwrap());
    let mut a = CodeAssembler::new(32).unwrap();
    a.mov(eax, cr0).unwrap();
    a.and(eax, 0x7fff_ffff).unwrap();
    a.mov(cr0, eax).unwrap();
    a.rdmsr().unwrap();
    a.hlt().unwrap();
    m.ram.write(RamAddr(0x1_9000), &a.assemble(0x1_9000).unwrap());
    m.runs();
    assert_eq!(m.gpr(RBX) & 0x500, 0x500, "LMA follows PG");
    assert_eq!(m.gpr(RAX) & 0x500, 0x100);
    assert!(!m.cpu.mode.has(Mode::LONG));
    assert_eq!(m.cpu.cr0, 0x11);
}

#[test]
fn in_long_mode_pae_stays_and_lme_cannot_change() {
    let mut m = machine(0);
    m.code(64, |a| {
        a.mov(rax, cr4).unwrap();
        a.and(eax, !0x20).unwrap();
        a.mov(cr4, rax).unwrap();
    });
    assert_eq!(faults(&mut m), (13, 0));
    let mut m = machine(0);
    m.code(64, |a| {
        a.mov(ecx, 0xc000_0080u32).unwrap();
        a.rdmsr().unwrap();
        a.and(eax, !0x100).unwrap();
        a.wrmsr().unwrap();
    });
    assert_eq!(faults(&mut m), (13, 0));
    let mut m = machine(0);
    m.code(64, |a| {
        a.mov(rax, cr0).unwrap();
        a.btr(rax, 31).unwrap();
        a.mov(cr0, rax).unwrap();
    });
    assert_eq!(faults(&mut m), (13, 0), "PG cannot be cleared in 64-bit code");
    let mut m = machine(0);
    m.code(64, |a| {
        a.mov(rax, 1u64 << 40 | ROOT).unwrap();
        a.mov(cr3, rax).unwrap();
    });
    assert_eq!(faults(&mut m), (13, 0), "CR3 has 40 bits");
}

#[test]
fn an_interrupt_aligns_the_stack_and_always_saves_it() {
    let mut m = machine(0);
    m.cpu.gpr[RSP as usize] = STACK - 3;
    m.cpu.rflags |= AC | NT;
    m.code(64, |a| a.int(0x40).unwrap());
    assert_eq!(m.vector(), 0x40);
    let flags = 2 | AC | NT;
    assert_eq!(m.gpr(RSP), STACK - 16 - 40);
    assert_eq!(m.stack64::<5>(), [CODE + 2, sel::CODE64.into(), flags, STACK - 3, sel::DATA0.into()]);
    assert_eq!(m.cpu.seg[SS as usize].selector, sel::DATA0, "SS stays in the same level");
}

#[test]
fn an_interrupt_from_user_code_takes_rsp0_and_a_null_ss() {
    let mut m = machine(3);
    m.code(64, |a| a.ud2().unwrap());
    assert_eq!(m.vector(), 6);
    assert_eq!(m.gpr(RSP), STACK0 - 40);
    assert_eq!(m.stack64::<5>(), [CODE, sel::CODE64_3.into(), 2 | RF, STACK3, sel::DATA3.into()]);
    assert_eq!((m.cpu.seg[SS as usize].selector, m.cpu.cpl), (0, 0));
}

#[test]
fn the_ist_is_used_whatever_the_level() {
    for cpl in [0, 3] {
        let mut m = machine(cpl);
        set_gate(&m, 6, sel::CODE64, HANDLERS + 96, 0x8e01);
        m.code(64, |a| a.ud2().unwrap());
        assert_eq!(m.vector(), 6);
        assert_eq!(m.gpr(RSP), IST1 - 40);
    }
}

#[test]
fn gates_of_64_bit_mode_lead_to_64_bit_code() {
    let mut m = machine(0);
    set_gate(&m, 0x40, sel::CODE0, HANDLERS, 0x8e00);
    m.code(64, |a| a.int(0x40).unwrap());
    assert_eq!(faults(&mut m), (13, sel::CODE0.into()));
    let mut m = machine(0);
    set_gate(&m, 0x40, sel::CODE64, HIGH, 0x8e00);
    m.code(64, |a| a.int(0x40).unwrap());
    assert_eq!(faults(&mut m), (13, 0));
    // Task gates and 16-bit gates are gone.
    for kind in [0x8500, 0x8600] {
        let mut m = machine(0);
        set_gate(&m, 0x40, sel::CODE64, HANDLERS, kind);
        m.code(64, |a| a.int(0x40).unwrap());
        assert_eq!(faults(&mut m), (13, 0x202));
    }
}

#[test]
fn iretq_returns_to_all_sorts_of_code() {
    // To user code of 64 bits, and of 32.
    for (code, stack, long) in [(sel::CODE64_3, sel::DATA3, true), (sel::CODE3, sel::DATA3, false)] {
        let mut m = machine(0);
        m.code(64, |a| {
            a.push(i32::from(stack)).unwrap();
            a.push(STACK3 as i32).unwrap();
            a.push(0x202).unwrap();
            a.push(i32::from(code)).unwrap();
            a.push(0x1_8000).unwrap();
            a.iretq().unwrap();
        });
        for _ in 0..6 {
            m.step();
        }
        assert_eq!((m.cpu.rip, m.cpu.cpl, m.gpr(RSP)), (0x1_8000, 3, STACK3));
        assert_eq!(m.cpu.mode.has(Mode::LONG), long);
        assert_eq!(m.cpu.seg[SS as usize].selector, stack);
    }
    for (code, stack, rip, want) in [
        // A null SS is for levels 0 to 2 of 64-bit code.
        (sel::CODE64_3, 3, 0x1_8000, (13, 0)),
        (sel::CODE3, 0, 0x1_8000, (13, 0)),
        (sel::CODE64_3, sel::DATA3, HIGH, (13, 0)),
        (sel::CODE64_3, sel::DATA0, 0x1_8000, (13, sel::DATA0.into())),
    ] {
        let mut m = machine(0);
        m.code(64, |a| {
            a.push(i32::from(stack)).unwrap();
            a.push(STACK3 as i32).unwrap();
            a.push(0x202).unwrap();
            a.push(i32::from(code)).unwrap();
            a.mov(rax, rip).unwrap();
            a.push(rax).unwrap();
            a.iretq().unwrap();
        });
        assert_eq!(faults(&mut m), want, "{code:x} {stack:x} {rip:x}");
    }
    let mut m = machine(0);
    m.code(64, |a| {
        a.push(0).unwrap();
        a.push(0x7000).unwrap();
        a.push(2).unwrap();
        a.push(i32::from(sel::CODE64)).unwrap();
        a.push(0x1_8000).unwrap();
        a.iretq().unwrap();
    });
    m.write(0x1_8000, [0xf4]);
    m.runs();
    assert_eq!((m.gpr(RSP), m.cpu.seg[SS as usize].selector), (0x7000, 0));
    let mut m = machine(0);
    m.cpu.rflags |= NT;
    m.code(64, |a| a.iretq().unwrap());
    assert_eq!(faults(&mut m), (13, 0), "there are no tasks to return to");
}

#[test]
fn syscall_and_sysret() {
    let mut m = machine(3);
    m.cpu.msr.star = u64::from(sel::CODE64 - 16) << 48 | u64::from(sel::CODE64) << 32;
    m.cpu.msr.lstar = 0x1_8000;
    m.cpu.msr.fmask = IF | 0x400;
    m.cpu.rflags |= IF | 0x400;
    m.code(64, |a| a.syscall().unwrap());
    m.step();
    assert_eq!((m.cpu.rip, m.cpu.cpl, m.gpr(RCX)), (0x1_8000, 0, CODE + 2));
    assert_eq!((m.gpr(11), m.cpu.rflags()), (2 | IF | 0x400, 2));
    assert_eq!(m.cpu.seg[CS as usize].selector, sel::CODE64);
    assert_eq!(m.cpu.seg[SS as usize].selector, sel::CODE64 + 8);
    assert_eq!(m.gpr(RSP), STACK3);
    m.write(0x1_8000, [0x48, 0x0f, 0x07]);
    m.step();
    assert_eq!((m.cpu.rip, m.cpu.cpl, m.cpu.rflags()), (CODE + 2, 3, 2 | IF | 0x400));
    assert_eq!(m.cpu.seg[CS as usize].selector, sel::CODE64 | 3);
    assert_eq!(m.cpu.seg[SS as usize].selector, (sel::CODE64 - 8) | 3);
    assert!(m.cpu.mode.has(Mode::LONG));

    // Without REX.W it returns to 32-bit code.
    let mut m = machine(0);
    m.cpu.msr.star = u64::from(sel::CODE3) << 48;
    m.cpu.gpr[RCX as usize] = 0xffff_ffff_0001_8000;
    m.code(64, |a| a.db(&[0x0f, 0x07]).unwrap());
    m.step();
    assert_eq!((m.cpu.rip, m.cpu.cpl, m.cpu.mode.has(Mode::LONG)), (0x1_8000, 3, false));

    let mut m = machine(0);
    m.cpu.gpr[RCX as usize] = HIGH;
    m.code(64, |a| a.sysretq().unwrap());
    assert_eq!(faults(&mut m), (13, 0));
    assert_eq!(m.cpu.cpl, 0, "in level 0, as on Intel's processors");
    for setup in [(|m: &mut Machine| m.cpu.msr.efer &= !1) as fn(&mut Machine), |m| {
        m.cpu.seg[CS as usize] = Segment::flat(sel::CODE0, 0x409b);
        m.cpu.mode_changed();
    }] {
        let mut m = machine(0);
        setup(&mut m);
        m.code(64, |a| a.db(&[0x0f, 5]).unwrap());
        assert_eq!(m.vector(), 6, "no SCE; not in compatibility mode");
    }
}

#[test]
fn addresses_that_are_not_canonical_fault() {
    for (code, want) in [
        ((|a| a.mov(eax, dword_ptr(rbx)).unwrap()) as fn(&mut CodeAssembler), (13, 0)),
        (|a| a.mov(dword_ptr(rbp), eax).unwrap(), (12, 0)),
        (|a| a.jmp(rbx).unwrap(), (13, 0)),
        (|a| a.call(rbx).unwrap(), (13, 0)),
        (
            |a| {
                a.mov(rsp, rbx).unwrap();
                a.push(rax).unwrap();
            },
            (12, 0),
        ),
        (|a| a.lidt(ptr(rbx)).unwrap(), (13, 0)),
        (|a| a.mov(dword_ptr(rbx).gs(), eax).unwrap(), (13, 0)),
    ] {
        let mut m = machine(3);
        // So that the stack of the handler is good.
        m.cpu.gpr[RBX as usize] = HIGH + 0x1000;
        m.cpu.gpr[crate::insn::RBP as usize] = HIGH;
        m.code(64, code);
        assert_eq!(faults(&mut m), want);
    }
    let mut m = machine(0);
    m.code(64, |a| {
        a.mov(ecx, 0xc000_0100u32).unwrap();
        a.mov(edx, 0x8000).unwrap();
        a.wrmsr().unwrap();
    });
    assert_eq!(faults(&mut m), (13, 0));
    // INVLPG of such an address does nothing.
    let mut m = machine(0);
    m.cpu.gpr[RBX as usize] = HIGH + 0x1000;
    m.code(64, |a| {
        a.invlpg(ptr(rbx)).unwrap();
        a.hlt().unwrap();
    });
    m.runs();
}

#[test]
fn segment_bases_count_for_fs_and_gs_only() {
    let mut m = machine(0);
    m.cpu.seg[DS as usize].base = 0x1000;
    m.cpu.cr4 |= 1 << 16;
    m.write32(0x5000, 1);
    m.write32(0x6000, 2);
    m.write32(0x7000, 3);
    m.code(64, |a| {
        a.mov(ebx, 0x1000).unwrap();
        a.wrfsbase(rbx).unwrap();
        a.mov(ecx, 0xc000_0102u32).unwrap();
        a.mov(eax, 0x2000).unwrap();
        a.xor(edx, edx).unwrap();
        a.wrmsr().unwrap();
        a.swapgs().unwrap();
        a.mov(eax, dword_ptr(0x5000)).unwrap();
        a.mov(ecx, dword_ptr(0x5000).fs()).unwrap();
        a.mov(edx, dword_ptr(0x5000).gs()).unwrap();
        a.rdgsbase(rbx).unwrap();
        a.hlt().unwrap();
    });
    m.runs();
    assert_eq!((m.gpr(RAX), m.gpr(RCX), m.gpr(RDX), m.gpr(RBX)), (1, 2, 3, 0x2000));
    assert_eq!(m.cpu.msr.kernel_gs_base, 0);
    // A null selector clears the base, as on Intel's processors.
    m.code(64, |a| {
        a.xor(eax, eax).unwrap();
        a.mov(gs, eax).unwrap();
        a.rdgsbase(rbx).unwrap();
        a.hlt().unwrap();
    });
    m.runs();
    assert_eq!(m.gpr(RBX), 0);
    let mut m = machine(0);
    m.code(64, |a| a.rdfsbase(rax).unwrap());
    assert_eq!(m.vector(), 6, "CR4.FSGSBASE");
}

#[test]
fn a_64_bit_call_gate_has_16_bytes_and_copies_nothing() {
    let mut m = machine(3);
    m.set_descriptor(SEL, gate(sel::CODE64, 0x1_8000, 0xec1f));
    m.set_descriptor(SEL + 8, 0);
    m.write(0x1_8000, [0xf4]);
    m.write32(0x5000, 0);
    m.write16(0x5004, SEL | 3);
    m.code(64, |a| a.db(&[0xff, 0x1c, 0x25, 0, 0x50, 0, 0]).unwrap());
    m.runs();
    assert_eq!(m.gpr(RSP), STACK0 - 32);
    assert_eq!(m.stack64::<4>(), [CODE + 7, sel::CODE64_3.into(), STACK3, sel::DATA3.into()]);
    assert_eq!((m.cpu.cpl, m.cpu.seg[SS as usize].selector), (0, 0));
    // The type of the second half must be 0.
    let mut m = machine(3);
    m.set_descriptor(SEL, gate(sel::CODE64, 0x1_8000, 0xec00));
    m.set_descriptor(SEL + 8, 0x1f00 << 32);
    m.write16(0x5004, SEL | 3);
    m.code(64, |a| a.db(&[0xff, 0x1c, 0x25, 0, 0x50, 0, 0]).unwrap());
    assert_eq!(faults(&mut m), (13, SEL.into()));
}

#[test]
fn ltr_loads_a_base_of_64_bits_and_far_jumps_know_no_tasks() {
    let mut m = machine(0);
    m.set_descriptor(SEL, descriptor(0x4000, 0x67, flags::TSS32));
    m.set_descriptor(SEL + 8, 0xffff_8000);
    m.code(64, |a| {
        a.mov(eax, u32::from(SEL)).unwrap();
        a.ltr(ax).unwrap();
        a.hlt().unwrap();
    });
    m.runs();
    assert_eq!(m.cpu.tr.base, 0xffff_8000_0000_4000);
    let mut m = machine(0);
    m.set_descriptor(SEL, descriptor(0x4000, 0x67, flags::TSS32));
    m.write16(0x5004, SEL);
    m.code(64, |a| a.db(&[0xff, 0x2c, 0x25, 0, 0x50, 0, 0]).unwrap());
    assert_eq!(faults(&mut m), (13, SEL.into()));
}

#[test]
fn cr8_is_the_task_priority() {
    let mut m = machine(0);
    m.code(64, |a| {
        a.mov(eax, 5).unwrap();
        a.mov(cr8, rax).unwrap();
        a.mov(rbx, cr8).unwrap();
        a.mov(eax, 16).unwrap();
        a.mov(cr8, rax).unwrap();
    });
    assert_eq!(faults(&mut m), (13, 0));
    assert_eq!((m.gpr(RBX), m.cpu.lapic.tpr()), (5, 0x50));
}

#[test]
fn syscall_with_tf_in_its_mask_is_not_trapped() {
    for (mask, trapped) in [(0, true), (TF, false)] {
        let mut m = machine(3);
        m.cpu.msr.star = u64::from(sel::CODE64) << 32;
        m.cpu.msr.lstar = 0x1_8000;
        m.cpu.msr.fmask = mask;
        m.write(0x1_8000, [0xf4]);
        m.cpu.rflags |= TF;
        m.code(64, |a| a.syscall().unwrap());
        assert_eq!(m.run(), Exit::Halted);
        assert_eq!(m.cpu.rip == 0x1_8001, !trapped);
    }
}
