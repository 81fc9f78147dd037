//! Far transfers, call gates, interrupts and returns in protected mode.

use iced_x86::code_asm::*;

use super::*;
use crate::flags::{AC, ID, IOPL, NT, RF, TF};
use crate::insn::{RAX, RBX, RCX};

const SEL: u16 = sel::FREE;

/// JMP ptr16:32.
fn jmp_far(a: &mut CodeAssembler, selector: u16, offset: u32) {
    let mut bytes = vec![0xea];
    bytes.extend(offset.to_le_bytes());
    bytes.extend(selector.to_le_bytes());
    a.db(&bytes).unwrap();
}

/// CALL ptr16:32.
fn call_far(a: &mut CodeAssembler, selector: u16, offset: u32) {
    let mut bytes = vec![0x9a];
    bytes.extend(offset.to_le_bytes());
    bytes.extend(selector.to_le_bytes());
    a.db(&bytes).unwrap();
}

#[test]
fn far_jumps_check_the_code_segment() {
    let target = 0x1_8000;
    for (flags, selector, want) in [
        (flags::CODE | flags::BIG, SEL, None),
        (flags::CODE | flags::BIG, SEL | 3, Some((13, SEL.into()))),
        (flags::CODE | flags::BIG | flags::DPL3, SEL, Some((13, SEL.into()))),
        // Conforming code of an outer level cannot be reached either.
        (0xfe00 | flags::BIG, SEL, Some((13, SEL.into()))),
        (0x9e00 | flags::BIG, SEL | 3, None),
        (flags::DATA | flags::BIG, SEL, Some((13, SEL.into()))),
        (0x1a00 | flags::BIG, SEL, Some((11, SEL.into()))),
        (0, 0, Some((13, 0))),
        // The offset is beyond the limit of 64 KiB.
        (flags::CODE, SEL, Some((13, 0))),
    ] {
        let mut m = Machine::protected();
        m.set_descriptor(SEL, descriptor(0, 0xffff, flags));
        m.write(target, [0xf4]);
        m.code(32, |a| jmp_far(a, selector, target as u32));
        match want {
            None => {
                m.runs();
                assert_eq!((m.cpu.rip, m.cpu.seg[CS as usize].selector), (target + 1, SEL), "{flags:x}");
            }
            Some(want) => assert_eq!(m.faults32(), want, "{flags:x} {selector:x}"),
        }
    }
}

#[test]
fn a_far_call_and_return_in_one_level() {
    let mut m = Machine::protected();
    m.set_descriptor(SEL, descriptor(0x1_0000, 0xffff, flags::CODE | 0x40_0000));
    m.code(32, |a| {
        call_far(a, SEL, 0x100);
        a.hlt().unwrap();
    });
    // MOV EAX, [ESP + 4]; RETF 8
    m.write(CODE + 0x100, [0x8b, 0x44, 0x24, 0x04, 0xca, 0x08, 0x00]);
    m.runs();
    assert_eq!(m.cpu.rip, CODE + 8);
    assert_eq!((m.gpr(RAX), m.gpr(RSP)), (sel::CODE0.into(), STACK + 8));
}

/// User code calls through a gate with two parameters; the target returns with RETF 8.
fn call_through_gate(kind: u32, count: u32) -> Machine {
    let mut m = Machine::protected();
    // A 16-bit gate has 16 bits of offset.
    let target = 0x5000;
    m.set_descriptor(SEL, gate(sel::CODE0, target, kind | count));
    m.write(target.into(), [0xf4]);
    m.level(3);
    m.code(32, |a| {
        a.push(0x1111).unwrap();
        a.push(0x2222).unwrap();
        call_far(a, SEL | 3, 0xdead_beef);
    });
    m.runs();
    m
}

#[test]
fn a_call_gate_switches_stacks_and_copies_parameters() {
    let m = call_through_gate(0xec00, 2);
    assert_eq!((m.cpu.cpl, m.gpr(RSP)), (0, STACK0 - 24));
    let ret = CODE as u32 + 17;
    assert_eq!(m.stack32::<6>(), [ret, sel::CODE3.into(), 0x2222, 0x1111, STACK3 as u32 - 8, sel::DATA3.into()]);
    assert_eq!(m.cpu.seg[SS as usize].selector, sel::DATA0);
    let m = call_through_gate(0xe400, 3);
    assert_eq!(m.gpr(RSP), STACK0 - 14);
    assert_eq!(
        m.stack16::<7>(),
        [ret as u16, sel::CODE3, 0x2222, 0, 0x1111, STACK3 as u16 - 8, sel::DATA3],
        "a 16-bit gate copies words"
    );
}

#[test]
fn a_return_to_the_outer_level_releases_parameters_on_both_stacks_and_drops_inner_segments() {
    let mut m = Machine::protected();
    let target = 0x1_8000;
    m.set_descriptor(SEL, gate(sel::CODE0, target, 0xec02));
    m.level(3);
    m.code(32, |a| {
        a.push(0x1111).unwrap();
        a.push(0x2222).unwrap();
        call_far(a, SEL | 3, 0);
        a.mov(eax, fs).unwrap();
        a.mov(ebx, gs).unwrap();
        a.int(0x30).unwrap();
    });
    let mut a = CodeAssembler::new(32).unwrap();
    a.mov(eax, u32::from(sel::DATA0)).unwrap();
    a.mov(fs, eax).unwrap();
    a.db(&[0xca, 8, 0]).unwrap();
    m.ram.write(RamAddr(target.into()), &a.assemble(target.into()).unwrap());
    assert_eq!(m.vector(), 0x30);
    assert_eq!((m.gpr(RAX), m.gpr(RBX)), (0, sel::DATA3.into()));
    assert_eq!(m.stack32::<4>()[3], STACK3 as u32, "the outer ESP is where it was before the parameters");
}

#[test]
fn gates_check_privilege_presence_and_target() {
    for (gate_kind, target_flags, rpl, want) in [
        (0x8c00, flags::CODE, 3, (13, SEL)),
        (0x6c00, flags::CODE, 3, (11, SEL)),
        (0xec00, flags::DATA, 3, (13, SEL + 8)),
        (0xec00, flags::CODE & !0x8000, 3, (11, SEL + 8)),
    ] {
        let mut m = Machine::protected();
        m.set_descriptor(SEL, gate(SEL + 8, 0x1_8000, gate_kind));
        m.set_descriptor(SEL + 8, descriptor(0, 0xf_ffff, target_flags | flags::BIG));
        m.level(3);
        m.code(32, |a| call_far(a, SEL | rpl, 0));
        assert_eq!(m.faults32(), (want.0, want.1.into()), "{gate_kind:x} {target_flags:x}");
    }
    // A jump through a gate cannot go to an inner level.
    let mut m = Machine::protected();
    m.set_descriptor(SEL, gate(sel::CODE0, 0x1_8000, 0xec00));
    m.level(3);
    m.code(32, |a| jmp_far(a, SEL | 3, 0));
    assert_eq!(m.faults32(), (13, sel::CODE0.into()));
}

#[test]
fn a_bad_inner_stack_is_an_invalid_tss() {
    for (selector, limit, want) in [
        (0, 0x67, (10, 0)),
        (sel::DATA3, 0x67, (10, u32::from(sel::DATA3) & !3)),
        (0x100, 0x67, (10, 0x100)),
        (sel::DATA0, 8, (10, sel::TSS.into())),
    ] {
        let mut m = Machine::protected();
        // #TS itself must find a stack: it is taken by a conforming handler at level 3.
        m.set_descriptor(SEL + 8, descriptor(0, 0xf_ffff, 0x9e00 | flags::BIG));
        m.set_gate(10, gate(SEL + 8, HANDLERS as u32 + 160, 0x8e00));
        m.write(HANDLERS + 160, [0xeb, 0xfe]);
        m.write16(TSS + 8, selector);
        m.cpu.tr.limit = limit;
        m.level(3);
        m.code(32, |a| a.int(0x30).unwrap());
        m.step();
        assert_eq!(m.cpu.rip, HANDLERS + 160);
        assert_eq!((10, m.stack32::<1>()[0]), want, "{selector:x}");
        assert_eq!(m.stack32::<2>()[1], CODE as u32, "the fault is the INT instruction's");
    }
}

#[test]
fn interrupt_and_trap_gates_differ_in_if_only() {
    for (kind, on) in [(0x8e00, false), (0x8f00, true), (0x8600, false), (0x8700, true)] {
        let mut m = Machine::protected();
        // A 16-bit gate has 16 bits of offset.
        m.write(0x5000, [0xf4]);
        m.set_gate(0x40, gate(sel::CODE0, 0x5000, kind));
        m.interrupts_on();
        m.cpu.rflags |= NT | AC;
        m.code(32, |a| a.int(0x40).unwrap());
        m.runs();
        assert_eq!(m.cpu.rflags & IF != 0, on, "{kind:x}");
        assert_eq!(m.cpu.rflags & (NT | AC), AC);
        let flags = (2 | IF | NT | AC) as u32;
        if kind & 0x800 != 0 {
            assert_eq!(m.stack32::<3>(), [CODE as u32 + 2, sel::CODE0.into(), flags]);
        } else {
            assert_eq!(m.stack16::<3>(), [CODE as u16 + 2, sel::CODE0, flags as u16]);
        }
    }
}

#[test]
fn an_interrupt_from_user_code_and_iret_go_round() {
    let mut m = Machine::protected();
    m.level(3);
    m.interrupts_on();
    m.set_gate(0x31, gate(sel::CODE0, 0x5000, 0xee00));
    m.write(0x5000, [0xcf]);
    m.code(32, |a| {
        a.int(0x31).unwrap();
        a.mov(eax, cs).unwrap();
        a.int(0x30).unwrap();
    });
    assert_eq!(m.vector(), 0x30);
    assert_eq!(m.gpr(RAX), u64::from(sel::CODE3));
    let frame = m.stack32::<5>();
    assert_eq!(frame[2] & IF as u32, IF as u32);
    assert_eq!(frame, [CODE as u32 + 6, sel::CODE3.into(), frame[2], STACK3 as u32, sel::DATA3.into()]);
}

#[test]
fn software_interrupts_need_the_right_to_the_gate() {
    let mut m = Machine::protected();
    m.level(3);
    m.code(32, |a| a.int(0x41).unwrap());
    assert_eq!(m.faults32(), (13, 0x41 * 8 + 2));
    let mut m = Machine::protected();
    m.level(3);
    m.code(32, |a| a.int3().unwrap());
    assert_eq!(m.faults32(), (13, 3 * 8 + 2), "INT3 as well");
    let mut m = Machine::protected();
    m.level(3);
    m.code(32, |a| a.int1().unwrap());
    assert_eq!(m.vector(), 1, "INT1 not");
    let mut m = Machine::protected();
    m.set_gate(0x41, 0);
    m.code(32, |a| a.int(0x41).unwrap());
    assert_eq!(m.faults32(), (13, 0x41 * 8 + 2), "no gate");
    let mut m = Machine::protected();
    m.set_gate(0x41, gate(sel::CODE0, 0, 0x0e00));
    m.code(32, |a| a.int(0x41).unwrap());
    assert_eq!(m.faults32(), (11, 0x41 * 8 + 2), "not present");
    let mut m = Machine::protected();
    m.cpu.idtr.limit = 0x1ff;
    m.code(32, |a| a.int(0x41).unwrap());
    assert_eq!(m.faults32(), (13, 0x41 * 8 + 2), "beyond the table");
}

#[test]
fn a_fault_in_an_external_interrupt_has_the_ext_bit() {
    let mut m = Machine::protected();
    m.set_gate(0x41, 0);
    m.cpu.external_interrupt(0x41);
    assert_eq!(m.cpu.rip, HANDLERS + 13 * 16);
    assert_eq!(m.stack32::<1>()[0], 0x41 * 8 + 3);
}

#[test]
fn faults_save_rf_and_traps_do_not() {
    let mut m = Machine::protected();
    m.code(32, |a| a.ud2().unwrap());
    assert_eq!(m.vector(), 6);
    assert_eq!(m.stack32::<3>(), [CODE as u32, sel::CODE0.into(), 2 | RF as u32]);
    let mut m = Machine::protected();
    m.code(32, |a| a.int3().unwrap());
    assert_eq!(m.vector(), 3);
    assert_eq!(m.stack32::<3>(), [CODE as u32 + 1, sel::CODE0.into(), 2]);
}

#[test]
fn a_contributory_fault_in_a_fault_is_a_double_fault_and_a_third_shuts_down() {
    // #NP in the delivery of #GP.
    let mut m = Machine::protected();
    m.set_gate(13, gate(sel::CODE0, 0, 0x0e00));
    m.code(32, |a| a.int(0x41).unwrap());
    m.set_gate(0x41, 0);
    assert_eq!(m.faults32(), (8, 0));
    assert_eq!(m.read32(STACK - 12), CODE as u32);
    // #NP in the delivery of #UD is delivered by itself.
    let mut m = Machine::protected();
    m.set_gate(6, gate(sel::CODE0, 0, 0x0e00));
    m.code(32, |a| a.ud2().unwrap());
    assert_eq!(m.faults32(), (11, 6 * 8 + 3));
    let mut m = Machine::protected();
    m.set_gate(13, 0);
    m.set_gate(8, 0);
    m.code(32, |a| a.int(0x41).unwrap());
    m.set_gate(0x41, 0);
    assert_eq!(m.run(), Exit::Shutdown);
    // The usual way to reset a PC.
    let mut m = Machine::protected();
    m.write16(0x5000, 0);
    m.code(32, |a| {
        a.lidt(fword_ptr(0x5000)).unwrap();
        a.int3().unwrap();
    });
    assert_eq!(m.run(), Exit::Shutdown);
}

/// Executes IRETD at level `cpl` on this frame; what happened.
fn iret(cpl: u8, setup: impl Fn(&mut Machine), frame: &[u32]) -> (Machine, Option<(u8, u32)>) {
    let mut m = Machine::protected();
    m.level(cpl);
    setup(&mut m);
    let top = m.gpr(RSP) - 4 * frame.len() as u64;
    for (n, w) in frame.iter().enumerate() {
        m.write32(top + 4 * n as u64, *w);
    }
    m.cpu.gpr[RSP as usize] = top;
    m.code(32, |a| a.iretd().unwrap());
    m.step();
    let fault = (HANDLERS..HANDLERS + 0x1000).contains(&m.cpu.rip);
    let fault = fault.then(|| (((m.cpu.rip - HANDLERS) / 16) as u8, m.stack32::<1>()[0]));
    (m, fault)
}

#[test]
fn iret_checks_what_it_returns_to() {
    let code3 = u32::from(sel::CODE3);
    let data3 = u32::from(sel::DATA3);
    let none = |_: &mut Machine| {};
    let (m, fault) = iret(0, none, &[0x5000, code3, 0x202, 0x7000, data3]);
    assert_eq!((fault, m.cpu.cpl, m.cpu.rip, m.gpr(RSP)), (None, 3, 0x5000, 0x7000));
    assert_eq!(m.cpu.rflags & IF, IF);
    for (frame, want) in [
        ([0x5000, 0, 2, 0x7000, data3], (13, 0)),
        ([0x5000, 0x100, 2, 0x7000, data3], (13, 0x100)),
        ([0x5000, data3, 2, 0x7000, data3], (13, data3 & !3)),
        ([0x5000, code3, 2, 0x7000, 0], (13, 0)),
        ([0x5000, code3, 2, 0x7000, sel::DATA0.into()], (13, sel::DATA0.into())),
        ([0x5000, code3 & !3, 2, 0x7000, data3], (13, code3 & !3)),
    ] {
        assert_eq!(iret(0, none, &frame).1, Some(want), "{frame:x?}");
    }
    let (_, fault) = iret(3, none, &[0x5000, sel::CODE0.into(), 2]);
    assert_eq!(fault, Some((13, sel::CODE0.into())), "not to an inner level");
    let narrow = |m: &mut Machine| m.set_descriptor(sel::CODE3, descriptor(0, 0x4fff, 0xfa00));
    assert_eq!(iret(0, narrow, &[0x5000, code3, 2, 0x7000, data3]).1, Some((13, 0)), "beyond the limit");
}

#[test]
fn iret_changes_only_the_flags_that_its_level_may() {
    let all = (IF | IOPL | NT | RF | AC | ID | TF) as u32 | 0xad5;
    // IF and IOPL stay at level 3; RF is loaded.
    let (m, fault) = iret(3, |_| {}, &[0x5000, sel::CODE3.into(), all & !(TF as u32)]);
    assert_eq!(fault, None);
    let want = u64::from(all) & !(IF | IOPL | TF) & !0x200;
    assert_eq!(m.cpu.rflags() & !2, want & !2);
    let (m, _) = iret(0, |_| {}, &[0x5000, sel::CODE0.into(), all & !(TF as u32)]);
    assert_eq!(m.cpu.rflags() & (IF | IOPL), IF | IOPL);
    // With IOPL 3, level 3 may change IF.
    let (m, _) = iret(3, |m| m.cpu.rflags |= IOPL, &[0x5000, sel::CODE3.into(), 0x202]);
    assert_eq!(m.cpu.rflags & (IF | IOPL), IF | IOPL);
}

#[test]
fn popf_hides_what_its_level_must_not_touch_and_never_sets_rf() {
    let mut m = Machine::protected();
    m.level(3);
    m.code(32, |a| {
        a.push(0x3f_7ed5).unwrap();
        a.popfd().unwrap();
        a.pushfd().unwrap();
        a.pop(eax).unwrap();
        a.int(0x30).unwrap();
    });
    assert_eq!(m.vector(), 0x30);
    assert_eq!(m.gpr(RAX), (AC | ID | NT | 0xcd7));
    assert_eq!(m.gpr(RCX), 0);
}

#[test]
fn cli_sti_and_hlt_are_privileged() {
    for bytes in [[0xfa], [0xfb], [0xf4]] {
        let mut m = Machine::protected();
        m.level(3);
        m.code(32, |a| a.db(&bytes).unwrap());
        assert_eq!(m.faults32(), (13, 0), "{bytes:x?}");
    }
    let mut m = Machine::protected();
    m.level(3);
    m.cpu.rflags |= IOPL;
    m.code(32, |a| {
        a.sti().unwrap();
        a.cli().unwrap();
        a.int(0x30).unwrap();
    });
    assert_eq!(m.vector(), 0x30);
    // CR4.PVI: CLI and STI act on VIF.
    let mut m = Machine::protected();
    m.level(3);
    m.cpu.cr4 = 2;
    m.code(32, |a| {
        a.sti().unwrap();
        a.int(0x30).unwrap();
    });
    assert_eq!(m.vector(), 0x30);
    assert_eq!(m.stack32::<3>()[2] & (1 << 19 | 1 << 9), 1 << 19);
}

#[test]
fn sti_and_mov_ss_hold_interrupts_back_for_one_instruction() {
    let mut m = Machine::protected();
    m.code(32, |a| {
        a.sti().unwrap();
        a.inc(eax).unwrap();
        a.inc(eax).unwrap();
        a.hlt().unwrap();
    });
    m.step();
    assert!(m.cpu.shadow);
    m.step();
    assert!(!m.cpu.shadow);
    m.code(32, |a| {
        a.mov(ebx, ss).unwrap();
        a.mov(ss, ebx).unwrap();
        a.nop().unwrap();
    });
    m.step();
    m.step();
    assert!(m.cpu.shadow);
    // STI with IF already set does not hold anything.
    m.code(32, |a| a.sti().unwrap());
    m.step();
    m.cpu.rip = CODE;
    m.step();
    assert!(!m.cpu.shadow);
}

#[test]
fn an_nmi_waits_for_iret_even_one_that_faults() {
    let mut m = Machine::protected();
    m.cpu.nmi_pending = true;
    m.write(HANDLERS + 32, [0xeb, 0xfe]);
    m.code(32, |a| a.nop().unwrap());
    m.step();
    assert_eq!(m.cpu.rip, HANDLERS + 32);
    m.cpu.nmi_pending = true;
    m.step();
    m.step();
    assert_eq!(m.gpr(RSP), STACK - 12, "the second one waits");
    m.write32(STACK - 8, 0);
    m.code(32, |a| a.iretd().unwrap());
    m.cpu.nmi_pending = false;
    m.step();
    assert_eq!(m.cpu.rip, HANDLERS + 13 * 16);
    assert!(!m.cpu.nmi_blocked);
}

#[test]
fn sysenter_and_sysexit_make_flat_segments() {
    let mut m = Machine::protected();
    m.cpu.msr.sysenter_cs = sel::CODE0.into();
    m.cpu.msr.sysenter_esp = STACK0;
    m.cpu.msr.sysenter_eip = 0x1_8000;
    m.write(0x1_8000, [0x0f, 0x35]);
    m.level(3);
    m.interrupts_on();
    m.code(32, |a| a.sysenter().unwrap());
    m.step();
    assert_eq!((m.cpu.cpl, m.cpu.rip, m.gpr(RSP)), (0, 0x1_8000, STACK0));
    assert_eq!((m.cpu.seg[CS as usize].selector, m.cpu.seg[SS as usize].selector), (sel::CODE0, sel::DATA0));
    assert_eq!(m.cpu.rflags & IF, 0);
    m.cpu.gpr[usize::from(crate::insn::RDX)] = CODE;
    m.cpu.gpr[RCX as usize] = STACK3;
    m.step();
    assert_eq!((m.cpu.cpl, m.cpu.rip, m.gpr(RSP)), (3, CODE, STACK3));
    assert_eq!((m.cpu.seg[CS as usize].selector, m.cpu.seg[SS as usize].selector), (sel::CODE3, sel::DATA3));
    m.cpu.msr.sysenter_cs = 0;
    assert_eq!(m.faults32(), (13, 0));
}
