//! Instructions that lie across two pages, in the engine and by the plain interpreter.

use super::*;
use crate::Engine;
use crate::insn::{RAX, RCX};

/// Where the instruction starts, two bytes before the end of a page.
const AT: u64 = 0x6ffe;
const TABLE: u64 = 0x10_1000;

/// `again: add eax, 0x01000001; body; dec ecx; jnz again; hlt`, with the ADD across two pages, and paging on with the
/// first 4 MiB mapped to themselves.
fn looping(body: &[u8]) -> Machine {
    let mut m = Machine::protected();
    m.write32(TABLE - 0x1000, TABLE as u32 | 7);
    for n in 0..1024 {
        m.write32(TABLE + 4 * n, (n << 12 | 7) as u32);
    }
    m.cpu.cr3 = TABLE - 0x1000;
    m.cpu.cr0 |= 1 << 31;
    m.cpu.mode_changed();
    let mut code = vec![0x05, 1, 0, 0, 1];
    code.extend_from_slice(body);
    code.push(0x49);
    let back = -(code.len() as i8 + 2);
    code.extend_from_slice(&[0x75, back as u8, 0xf4]);
    m.ram.write(RamAddr(AT), &code);
    m.cpu.rip = AT;
    m.cpu.gpr[RCX as usize] = 100;
    m
}

/// Runs both ways; what the accumulator holds in the end.
fn both(body: &[u8], prepare: impl Fn(&mut Machine)) -> u32 {
    let (mut plain, mut cached) = (looping(body), looping(body));
    prepare(&mut plain);
    prepare(&mut cached);
    let mut engine = Engine::new();
    let limit = 100_000;
    let exit = plain.cpu.run_plain(limit, &plain.timers);
    assert_eq!(engine.run(&mut cached.cpu, limit, &cached.timers), exit);
    assert_eq!(format!("{:?}", cached.cpu.regs()), format!("{:?}", plain.cpu.regs()));
    for at in [AT & !0xfff, TABLE, TABLE - 0x1000, 0x8000] {
        assert_eq!(cached.read::<0x1000>(at), plain.read::<0x1000>(at), "page {at:x}");
    }
    plain.gpr(RAX) as u32
}

#[test]
fn a_loop_around_one_is_the_same_as_by_the_plain_interpreter_and_is_cached() {
    assert_eq!(both(&[], |_| {}), 100 * 0x100_0001);
    let mut m = looping(&[]);
    let mut engine = Engine::new();
    engine.run(&mut m.cpu, 30, &m.timers);
    let blocks = engine.blocks();
    engine.run(&mut m.cpu, 200, &m.timers);
    assert_eq!((engine.blocks(), blocks), (2, 2), "the ADD, and the rest");
}

#[test]
fn a_store_to_its_second_page_changes_it_and_so_does_a_device() {
    // inc byte [0x7002]: the immediate's last byte.
    let grows = both(&[0xfe, 0x05, 2, 0x70, 0, 0], |_| {});
    assert_eq!(grows, (1..=100).fold(0u32, |sum, n| sum.wrapping_add(n << 24 | 1)));
    let mut m = looping(&[]);
    let mut engine = Engine::new();
    assert_eq!(engine.run(&mut m.cpu, 150, &m.timers), Exit::Limit);
    assert_eq!(m.gpr(RAX), 50 * 0x100_0001);
    m.write(0x7000, [7]);
    assert_eq!(engine.run(&mut m.cpu, 300, &m.timers), Exit::Limit);
    assert_eq!(m.gpr(RAX), 50 * 0x100_0001 + 50 * 0x100_0701);
}

#[test]
fn another_page_mapped_behind_its_first_makes_it_another() {
    // Page 8 holds the same code with another immediate; the loop exchanges pages 7 and 8.
    let swap = [
        0x8b, 0x15, 0x1c, 0x10, 0x10, 0, // mov edx, [TABLE + 4 * 7]
        0x87, 0x15, 0x20, 0x10, 0x10, 0, // xchg edx, [TABLE + 4 * 8]
        0x89, 0x15, 0x1c, 0x10, 0x10, 0, // mov [TABLE + 4 * 7], edx
        0x0f, 0x01, 0x3d, 0, 0x70, 0, 0, // invlpg [0x7000]
    ];
    let sum = both(&swap, |m| {
        let mut other = m.read::<0x100>(0x7000);
        other[0] = 5;
        m.write(0x8000, other);
    });
    assert_eq!(sum, 50u32.wrapping_mul(0x100_0001).wrapping_add(50u32.wrapping_mul(0x100_0501)));
}

#[test]
fn one_whose_second_page_is_missing_faults_there_each_time() {
    let fault = |m: &mut Machine| {
        m.write32(TABLE + 4 * 7, 0);
        m.cpu.gpr[RCX as usize] = 1;
    };
    let mut m = looping(&[]);
    fault(&mut m);
    let mut engine = Engine::new();
    assert_eq!(engine.run(&mut m.cpu, 100, &m.timers), Exit::Halted);
    assert_eq!((m.cpu.cr2, m.cpu.rip), (0x7000, HANDLERS + 16 * 14 + 1));
    both(&[], fault);
}

#[test]
fn one_page_mapped_twice_in_a_row_can_hold_it_all() {
    // The instruction's end lies at the start of the page that its start ends.
    let both_ends = |m: &mut Machine| {
        let end = m.read::<0x40>(0x7000);
        m.write(0x6000, end);
        m.write32(TABLE + 4 * 7, 0x6007);
    };
    assert_eq!(both(&[], both_ends), 100 * 0x100_0001);
    let grows = both(&[0xfe, 0x05, 2, 0x70, 0, 0], both_ends);
    assert_eq!(grows, (1..=100).fold(0u32, |sum, n| sum.wrapping_add(n << 24 | 1)));
}
