//! Self-modifying code: what was stored is what runs next, in the same block, through another address, by REP.

use crate::mem::{self, PAGE, WINDOW, write_bytes, write8, write32};
use crate::report::Verdict;
use crate::{cpu, ensure, good, skip};
use core::arch::global_asm;

/// Calls the code at `address` with one argument.
pub fn call(address: u64, argument: u64) -> u64 {
    // SAFETY: the tests put routines of the C calling convention there.
    unsafe { core::mem::transmute::<u64, extern "C" fn(u64) -> u64>(address)(argument) }
}

unsafe extern "C" {
    safe static next_code: u8;
    safe static next_code_end: u8;
    safe static loop_code: u8;
    safe static loop_code_end: u8;
}

// Both are copied to a page that can be written.
global_asm!(
    r#"
    .section .rodata.smc, "a"
next_code:
    // Stores EDI into the operand of the very next instruction.
    mov [rip + 2f - 4], edi
    mov eax, 0x11111111
2:  ret
next_code_end:
loop_code:
    // Adds 1 to the operand of an instruction of the same loop in each of EDI rounds: 1 + 2 + ... + EDI.
    xor eax, eax
3:  inc dword ptr [rip + 4f - 4]
    .byte 0x05
    .long 0
4:  dec edi
    jnz 3b
    ret
loop_code_end:
    "#
);

fn copy(to: u64, from: *const u8, end: *const u8) {
    // SAFETY: the symbols enclose the code, the target page is ours.
    unsafe { mem::memcpy(to as *mut u8, from, end as usize - from as usize) };
}

/// A store into the next instruction, into the running loop, and into a function before each call.
pub fn check_same_page() -> Verdict {
    let Some(page) = mem::pages(1) else { skip!("no memory") };
    copy(page, &raw const next_code, &raw const next_code_end);
    for value in [0x1234, 0x5678_9abc, 7] {
        let got = call(page, value);
        ensure!(got == value, "next instruction: {got:#x}, stored {value:#x}");
    }
    copy(page, &raw const loop_code, &raw const loop_code_end);
    let sum = call(page, 100);
    ensure!(sum == 5050, "loop: {sum}, wanted 5050");
    write_bytes(page, &[0xb8, 0, 0, 0, 0, 0xc3]);
    for i in 0..1000 {
        write32(page + 1, i);
        let got = call(page, 0);
        ensure!(got == u64::from(i), "function: {got}, patched to {i}");
    }
    // Data beside the code, in the same page, must stay data.
    for i in 0..100 {
        write8(page + 64, i);
        ensure!(call(page, 0) == 999 && mem::read8(page + 64) == i, "data beside code");
    }
    good!("next instruction, loop, function, data beside code")
}

/// Stores through another virtual address of the same frame.
pub fn check_alias() -> Verdict {
    let Some(page) = mem::pages(1) else { skip!("no memory") };
    let alias = WINDOW + 0x20_0000;
    let Some(()) = mem::map(alias, page, mem::W) else { skip!("no memory") };
    write_bytes(page, &[0xb8, 0, 0, 0, 0, 0xc3]);
    for i in 0..200 {
        let (at, run) = if i & 1 == 0 { (alias, page) } else { (page, alias) };
        write32(at + 1, i);
        cpu::cpuid(0, 0);
        let got = call(run, 0);
        ensure!(got == u64::from(i), "{got}, patched to {i} at the other address");
    }
    // The frame behind an address of code changes instead of its bytes.
    let Some(other) = mem::pages(1) else { skip!("no memory") };
    write_bytes(other, &[0xb8, 0x55, 0x55, 0, 0, 0xc3]);
    for (frame, value) in [(other, 0x5555), (page, 199), (other, 0x5555)] {
        mem::map(alias, frame, mem::W);
        let got = call(alias, 0);
        ensure!(got == value, "remapped: {got:#x}, wanted {value:#x}");
    }
    good!("200 stores both ways, remapped code")
}

/// An instruction across a page boundary, of which only the second page is written; code made by REP MOVS and STOS.
pub fn check_straddle() -> Verdict {
    let Some(pages) = mem::pages(2) else { skip!("no memory") };
    let at = pages + PAGE - 3;
    write_bytes(at, &[0xb8, 0, 0, 0, 0, 0xc3]);
    for i in 0..200u64 {
        write8(pages + PAGE, i as u8);
        let got = call(at, 0);
        ensure!(got == i << 16, "second page: {got:#x}, wanted {:#x}", i << 16);
    }
    write8(pages + PAGE, 0);
    for i in 0..200u64 {
        write8(at + 1, i as u8);
        ensure!(call(at, 0) == i, "first page: {:#x}, wanted {i:#x}", call(at, 0));
    }
    let bodies: [[u8; 6]; 2] = [[0xb8, 1, 0, 0, 0, 0xc3], [0xb8, 2, 0, 0, 0, 0xc3]];
    for i in 0..50usize {
        // SAFETY: the page is ours.
        unsafe { mem::memcpy(pages as *mut u8, bodies[i & 1].as_ptr(), 6) };
        ensure!(call(pages, 0) == 1 + (i as u64 & 1), "REP MOVSB over code, round {i}");
    }
    // mov eax, edi; inc eax; inc eax; ret: and then without the increments.
    write_bytes(pages, &[0x89, 0xf8, 0xff, 0xc0, 0xff, 0xc0, 0xc3]);
    let before = call(pages, 0x77);
    // SAFETY: the page is ours; 90h is NOP.
    unsafe { mem::memset((pages + 2) as *mut u8, 0x90, 4) };
    let after = call(pages, 0x77);
    ensure!((before, after) == (0x79, 0x77), "REP STOSB over code: {before:#x}, {after:#x}");
    good!("both pages of one instruction, REP MOVSB, REP STOSB")
}
