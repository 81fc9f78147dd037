//! A debugger outside of the guest: both ways of running stop at the same places.

use iced_x86::code_asm::*;

use super::*;
use crate::engine::Engine;
use crate::insn::{RAX, RBX, RCX};
use crate::{Stop, Wants, Watch};

/// Runs a machine by the engine, or by the plain interpreter.
struct Runner(Option<Engine>);

impl Runner {
    fn both() -> [Runner; 2] {
        [Runner(Some(Engine::new())), Runner(None)]
    }

    fn run(&mut self, m: &mut Machine) -> (Exit, Option<Stop>) {
        let limit = m.cpu.icount + 10_000;
        let exit = match &mut self.0 {
            Some(engine) => engine.run(&mut m.cpu, limit, &m.timers),
            None => m.cpu.run_plain(limit, &m.timers),
        };
        (exit, m.cpu.take_stop())
    }
}

/// Counts to 100 in ECX, with three instructions a round; EBX goes along in memory.
fn counts(m: &mut Machine) -> (u64, u64) {
    m.code(32, |a| {
        let mut top = a.create_label();
        a.xor(ecx, ecx).unwrap();
        a.set_label(&mut top).unwrap();
        a.inc(ecx).unwrap();
        a.mov(dword_ptr(0x5000), ecx).unwrap();
        a.cmp(ecx, 100).unwrap();
        a.jne(top).unwrap();
        a.hlt().unwrap();
    });
    // INC, and the store behind it.
    (CODE + 2, CODE + 3)
}

#[test]
fn a_breakpoint_stops_before_its_instruction_each_time() {
    for mut by in Runner::both() {
        let mut m = Machine::protected();
        let (inc, store) = counts(&mut m);
        assert_eq!(by.run(&mut m), (Exit::Halted, None), "blocks are there");
        m.cpu.rip = CODE;
        m.cpu.halted = false;
        let began = m.cpu.icount;
        // Another in the same page, which is never reached, and one in another page.
        let breakpoints = vec![inc, store, CODE + 0x800, 0x7003];
        let mut past = None;
        for round in 0..100 {
            for place in [inc, store] {
                m.cpu.debug(Some(&Wants { breakpoints: breakpoints.clone(), past, ..Wants::default() }));
                assert_eq!(by.run(&mut m), (Exit::Kicked, Some(Stop::Breakpoint)));
                assert_eq!((m.cpu.rip, m.gpr(RCX)), (place, round + u64::from(place == store)));
                past = Some(place);
            }
        }
        m.cpu.debug(Some(&Wants { breakpoints, past, ..Wants::default() }));
        assert_eq!(by.run(&mut m), (Exit::Halted, None));
        assert_eq!((m.gpr(RCX), m.cpu.icount - began), (100, 2 + 4 * 100), "as if nobody had looked");
        m.cpu.debug(None);
        (m.cpu.rip, m.cpu.halted) = (CODE, false);
        assert_eq!(by.run(&mut m), (Exit::Halted, None), "and it is gone with the debugger");
    }
}

#[test]
fn one_that_has_been_told_of_stops_again_where_it_is_met_again() {
    for mut by in Runner::both() {
        let mut m = Machine::protected();
        let (inc, _) = counts(&mut m);
        let wants = |past| Wants { breakpoints: vec![inc], past, ..Wants::default() };
        // Of another place nothing is passed.
        m.cpu.debug(Some(&wants(Some(CODE))));
        assert_eq!(by.run(&mut m).1, Some(Stop::Breakpoint));
        m.cpu.debug(Some(&wants(Some(inc))));
        assert_eq!(by.run(&mut m).1, Some(Stop::Breakpoint));
        assert_eq!(m.gpr(RCX), 1);
        assert_eq!(by.run(&mut m).1, Some(Stop::Breakpoint));
        assert_eq!(m.gpr(RCX), 1, "it is past it once");
    }
}

#[test]
fn a_breakpoint_is_a_linear_address() {
    for mut by in Runner::both() {
        let mut m = Machine::real();
        m.code(16, |a| {
            a.nop().unwrap();
            a.inc(ax).unwrap();
            a.hlt().unwrap();
        });
        m.cpu.debug(Some(&Wants { breakpoints: vec![1, CODE + 1], ..Wants::default() }));
        assert_eq!(by.run(&mut m), (Exit::Kicked, Some(Stop::Breakpoint)));
        assert_eq!((m.cpu.rip, m.gpr(RAX)), (1, 0));
    }
}

#[test]
fn a_step_is_one_instruction_and_no_interrupt_comes_before_it() {
    for mut by in Runner::both() {
        let mut m = Machine::protected();
        m.cpu.rflags |= IF;
        m.cpu.lapic.nmi();
        m.code(32, |a| {
            a.inc(eax).unwrap();
            a.inc(ebx).unwrap();
            a.hlt().unwrap();
        });
        m.cpu.debug(Some(&Wants { step: true, ..Wants::default() }));
        for (n, regs) in [(1, (1, 0)), (2, (1, 1))] {
            assert_eq!(by.run(&mut m), (Exit::Kicked, Some(Stop::Step)));
            assert_eq!((m.cpu.rip, (m.gpr(RAX), m.gpr(RBX))), (CODE + n, regs));
        }
        m.cpu.debug(None);
        by.run(&mut m);
        assert_eq!(m.vector(), 2, "the NMI has waited");
    }
}

#[test]
fn a_step_over_a_fault_ends_in_its_handler() {
    for mut by in Runner::both() {
        let mut m = Machine::protected();
        m.code(32, |a| a.ud2().unwrap());
        m.cpu.debug(Some(&Wants { step: true, ..Wants::default() }));
        assert_eq!(by.run(&mut m), (Exit::Kicked, Some(Stop::Step)));
        assert_eq!(m.cpu.rip, HANDLERS + 16 * 6);
    }
}

#[test]
fn a_watch_stops_after_the_access_and_tells_loads_from_stores() {
    for mut by in Runner::both() {
        let mut m = Machine::protected();
        m.code(32, |a| {
            a.mov(dword_ptr(0x5004), eax).unwrap();
            a.mov(eax, dword_ptr(0x5000)).unwrap();
            a.mov(byte_ptr(0x5003), al).unwrap();
            a.movsd().unwrap();
            a.hlt().unwrap();
        });
        (m.cpu.gpr[6], m.cpu.gpr[7]) = (0x5000, 0x6000);
        let watch = |reads, writes| Watch { address: 0x5000, len: 4, reads, writes };
        let mut run = |m: &mut Machine, reads, writes| {
            m.cpu.debug(Some(&Wants { watches: vec![watch(reads, writes)], ..Wants::default() }));
            let ran = by.run(m);
            (ran, m.cpu.rip - CODE)
        };
        let hit = |reads, writes| (Exit::Kicked, Some(Stop::Watch(watch(reads, writes))));
        assert_eq!(run(&mut m, false, true), (hit(false, true), 15), "the store to its last byte");
        assert_eq!(run(&mut m, true, false), (hit(true, false), 16), "a string instruction loads");
        assert_eq!(run(&mut m, true, true).0, (Exit::Halted, None));
        m.cpu.rip = CODE;
        m.cpu.halted = false;
        assert_eq!(run(&mut m, true, false), (hit(true, false), 10));
        // Nothing is left of it.
        m.cpu.debug(None);
        assert_eq!(by.run(&mut m), (Exit::Halted, None));
    }
}

#[test]
fn code_that_writes_itself_is_seen_by_the_blocks_after_a_step() {
    let mut by = Runner(Some(Engine::new()));
    let mut m = Machine::protected();
    // INC EBX becomes INC EAX (0x43, 0x40).
    m.code(32, |a| {
        a.mov(byte_ptr(CODE + 7), 0x40).unwrap();
        a.inc(ebx).unwrap();
        a.hlt().unwrap();
    });
    // Blocks of what is there before, entered behind the store.
    m.cpu.rip = CODE + 7;
    assert_eq!(by.run(&mut m).0, Exit::Halted);
    (m.cpu.rip, m.cpu.halted) = (CODE, false);
    m.cpu.debug(Some(&Wants { step: true, ..Wants::default() }));
    assert_eq!(by.run(&mut m).1, Some(Stop::Step));
    m.cpu.debug(None);
    assert_eq!(by.run(&mut m).0, Exit::Halted);
    assert_eq!((m.gpr(RAX), m.gpr(RBX)), (1, 1));
}
