//! Accesses that leave for a monitor.

use iced_x86::code_asm::*;

use super::*;
use crate::engine::Engine;
use crate::insn::{RAX, RBX, RCX, RDX, RSI};
use crate::monitor::Intercept;

/// Runs until something leaves, by the interpreter or by the engine.
fn leaves(m: &mut Machine, engine: &mut Option<Engine>) -> Option<Intercept> {
    let limit = m.cpu.icount() + 1000;
    let exit = match engine {
        Some(engine) => engine.run(&mut m.cpu, limit, &m.timers),
        None => m.cpu.run_plain(limit, &m.timers),
    };
    (exit == Exit::Kicked).then(|| m.cpu.take_intercept()).flatten()
}

#[test]
fn what_nothing_answers_leaves_before_it_has_had_an_effect() {
    for mut engine in [None, Some(Engine::new())] {
        let mut m = Machine::protected();
        m.cpu.monitored(|access| matches!(access, Intercept::ReadMsr(0x8b) | Intercept::Port { port: 0x110, .. }));
        m.code(32, |a| {
            a.mov(edx, 0x999).unwrap();
            a.mov(eax, 0x1234).unwrap();
            a.out(dx, ax).unwrap();
            a.mov(edx, 0x110).unwrap();
            a.in_(al, dx).unwrap();
            a.mov(edx, 0x104).unwrap();
            a.in_(al, dx).unwrap();
            a.mov(ebx, 0x50_0000).unwrap();
            a.add(dword_ptr(ebx + 8), eax).unwrap();
            a.mov(ebx, ROM as i32).unwrap();
            a.mov(eax, dword_ptr(ebx)).unwrap();
            a.mov(dword_ptr(ebx), eax).unwrap();
            a.mov(ecx, 0x8b).unwrap();
            a.rdmsr().unwrap();
            a.hlt().unwrap();
        });
        // Past an instruction that left, as long as its monitor says.
        let next = |m: &mut Machine, engine: &mut Option<Engine>, len: u64| {
            let rip = m.cpu.rip();
            m.cpu.set_rip(rip + len);
            leaves(m, engine)
        };
        let first = leaves(&mut m, &mut engine);
        assert_eq!(first, Some(Intercept::Port { port: 0x999, width: 2, out: true }));
        assert_eq!((m.cpu.rip(), m.cpu.gpr(RAX)), (CODE + 10, 0x1234));
        assert_eq!(leaves(&mut m, &mut engine), first, "again, as long as RIP stays");
        let asked = next(&mut m, &mut engine, 2);
        assert_eq!(asked, Some(Intercept::Port { port: 0x110, width: 1, out: false }), "a device's, but asked for");
        let memory = next(&mut m, &mut engine, 1);
        assert_eq!(memory, Some(Intercept::Memory { gpa: 0x50_0008, linear: 0x50_0008, write: true }));
        assert_eq!(*m.ports.reads.lock().unwrap(), [(4, 1)], "the other port is answered inside");
        let rom = next(&mut m, &mut engine, 3);
        assert_eq!(rom, Some(Intercept::Memory { gpa: ROM, linear: ROM, write: true }), "it may be read");
        assert_eq!((m.cpu.gpr(RAX), m.cpu.gpr(RBX)), (0, ROM));
        assert_eq!(next(&mut m, &mut engine, 2), Some(Intercept::ReadMsr(0x8b)));
        assert_eq!((m.cpu.gpr(RDX), m.cpu.gpr(RCX)), (0x104, 0x8b));
        assert_eq!(next(&mut m, &mut engine, 2), None, "HLT");
    }
}

#[test]
fn string_io_leaves_from_claimed_ports_and_string_moves_where_they_have_come_to() {
    for mut engine in [None, Some(Engine::new())] {
        let mut m = Machine::protected();
        m.cpu.monitored(|_| false);
        m.code(32, |a| {
            a.mov(esi, 0x3f_fffc).unwrap();
            a.mov(edi, 0x5000).unwrap();
            a.mov(ecx, 3).unwrap();
            // Behind RAM there is a device, which answers; behind that nothing.
            a.rep().movsd().unwrap();
            a.mov(edi, 0x50_0000).unwrap();
            a.mov(ecx, 2).unwrap();
            a.rep().stosd().unwrap();
            a.mov(edx, 0x104).unwrap();
            a.rep().outsb().unwrap();
        });
        let left = leaves(&mut m, &mut engine);
        assert_eq!(left, Some(Intercept::Memory { gpa: 0x50_0000, linear: 0x50_0000, write: true }));
        assert_eq!((m.cpu.gpr(RCX), m.cpu.gpr(RSI)), (2, 0x40_0008));
        let rip = m.cpu.rip();
        m.cpu.set_rip(rip + 2);
        let left = leaves(&mut m, &mut engine);
        assert_eq!(left, Some(Intercept::PortString { port: 0x104, width: 1, out: true }));
        assert_eq!((m.cpu.gpr(RCX), m.ports.writes.lock().unwrap().len()), (2, 0));
    }
}

#[test]
fn fetches_from_nowhere_leave_and_without_a_monitor_nothing_does() {
    let mut m = Machine::protected();
    m.code(32, |a| {
        a.mov(eax, dword_ptr(0x50_0000)).unwrap();
        a.hlt().unwrap();
    });
    m.runs();
    assert_eq!((m.gpr(RAX), m.cpu.take_intercept()), (0xffff_ffff, None));
    for mut engine in [None, Some(Engine::new())] {
        let mut m = Machine::protected();
        m.cpu.monitored(|_| false);
        m.code(32, |a| {
            a.mov(eax, 0x60_0000).unwrap();
            a.jmp(eax).unwrap();
        });
        assert_eq!(leaves(&mut m, &mut engine), Some(Intercept::Fetch { gpa: 0x60_0000 }));
        assert_eq!(m.cpu.rip(), 0x60_0000);
    }
}
