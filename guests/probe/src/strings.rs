//! String instructions, above all those that a fault stops in the middle: the registers must tell how far they came,
//! and the same instruction must go on from there.

use crate::exceptions::expect;
use crate::mem::{self, PAGE, Racy, WINDOW, read8, read64, write8};
use crate::report::Verdict;
use crate::trap::{self, Frame};
use crate::{catch, cpu, ensure, good, skip};
use core::arch::asm;

/// Window layout: two pages mapped, then one that is not.
const BASE: u64 = WINDOW + 0x10_0000;
const EDGE: u64 = BASE + 2 * PAGE;

fn prepare() -> Option<u64> {
    let frames = mem::pages(3)?;
    mem::map(BASE, frames, mem::W)?;
    mem::map(BASE + PAGE, frames + PAGE, mem::W)?;
    for i in 0..2 * PAGE {
        write8(BASE + i, (i % 251) as u8);
    }
    Some(frames)
}

/// REP MOVS, STOS, LODS, SCAS, CMPS and INS that run into an absent page.
pub fn check_faults() -> Verdict {
    let Some(_) = prepare() else { skip!("no memory") };
    let (mut rcx, mut rsi, mut rdi): (u64, u64, u64);

    let c = catch!("rep movsb"; inout("rcx") 64u64 => rcx, inout("rsi") BASE => rsi, inout("rdi") EDGE - 40 => rdi);
    let c = expect("REP MOVSB, target", c, trap::PF, 2)?;
    ensure!(c.cr2 == EDGE, "REP MOVSB: CR2 {:#x}", c.cr2);
    ensure!(
        (rcx, rsi, rdi) == (24, BASE + 40, EDGE),
        "REP MOVSB: RCX {rcx}, RSI +{}, RDI {:+}",
        rsi - BASE,
        rdi as i64 - EDGE as i64
    );
    ensure!((0..40).all(|i| read8(EDGE - 40 + i) == i as u8), "REP MOVSB: wrong bytes before the fault");

    let c = catch!("rep movsq"; inout("rcx") 8u64 => rcx, inout("rsi") EDGE - 24 => rsi, inout("rdi") BASE => rdi);
    expect("REP MOVSQ, source", c, trap::PF, 0)?;
    ensure!((rcx, rsi, rdi) == (5, EDGE, BASE + 24), "REP MOVSQ: RCX {rcx}, RSI {:+}", rsi as i64 - EDGE as i64);

    // An element across the edge: nothing of it is stored, and CR2 is the first byte that is missing.
    let before = read64(EDGE - 8);
    let c = catch!("rep stosq"; inout("rcx") 4u64 => rcx, inout("rdi") EDGE - 12 => rdi, in("rax") u64::MAX);
    let c = expect("REP STOSQ across the edge", c, trap::PF, 2)?;
    ensure!((rcx, rdi) == (3, EDGE - 4), "REP STOSQ: RCX {rcx}, RDI {:+}", rdi as i64 - EDGE as i64);
    ensure!(c.cr2 == EDGE, "REP STOSQ: CR2 {:#x}, wanted {EDGE:#x}", c.cr2);
    ensure!(read64(EDGE - 8) >> 32 == before >> 32, "REP STOSQ: half an element was stored");

    let c = catch!("std", "rep movsb", "cld"; inout("rcx") 64u64 => rcx, inout("rsi") BASE + 100 => rsi,
        inout("rdi") BASE + 20 => rdi);
    // SAFETY: a fault skips the CLD of the text.
    unsafe { asm!("cld") };
    expect("REP MOVSB down", c, trap::PF, 2)?;
    ensure!((rcx, rsi, rdi) == (43, BASE + 79, BASE - 1), "REP MOVSB down: RCX {rcx}, RSI +{}", rsi - BASE);

    let c =
        catch!("repe cmpsb"; inout("rcx") 100u64 => rcx, inout("rsi") EDGE - 16 => rsi, inout("rdi") EDGE - 16 => rdi);
    expect("REPE CMPSB", c, trap::PF, 0)?;
    ensure!((rcx, rsi, rdi) == (84, EDGE, EDGE), "REPE CMPSB: RCX {rcx}");

    let c = catch!("rep insb"; inout("rcx") 8u64 => rcx, inout("rdi") EDGE - 4 => rdi, in("dx") 0x61u16);
    expect("REP INSB", c, trap::PF, 2)?;
    ensure!((rcx, rdi) == (4, EDGE), "REP INSB: RCX {rcx}, RDI {:+}", rdi as i64 - EDGE as i64);

    let c = catch!("rep movsb", "rep stosb", "repe cmpsb"; inout("rcx") 0u64 => rcx,
        inout("rsi") EDGE => rsi, inout("rdi") EDGE => rdi);
    ensure!(c.is_none() && (rcx, rsi, rdi) == (0, EDGE, EDGE), "a count of 0 touches memory");
    good!("MOVSB up and down, MOVSQ, STOSQ, CMPSB, INSB; count 0")
}

static FRAME: Racy<u64> = Racy::new(0);

/// Maps the page that is missing and lets the instruction go on.
fn supply(f: &mut Frame) -> bool {
    if f.vector != trap::PF || cpu::cr2() & !(PAGE - 1) != EDGE {
        return false;
    }
    // SAFETY: set before the hook was.
    let frame = unsafe { FRAME.get().read() };
    mem::map(EDGE, frame, mem::W).is_some()
}

/// A page is supplied in the fault handler and the instruction resumes.
pub fn check_resume() -> Verdict {
    let Some(frames) = prepare() else { skip!("no memory") };
    // SAFETY: the hook is not set yet.
    unsafe { FRAME.get().write(frames + 2 * PAGE) };
    let (mut rcx, mut rdi): (u64, u64);
    trap::set_hook(Some(supply));
    let c = catch!("rep movsb"; inout("rcx") 3000u64 => rcx, inout("rsi") BASE => _, inout("rdi") EDGE - 1500 => rdi);
    trap::set_hook(None);
    ensure!(trap::RESUME.load(core::sync::atomic::Ordering::Relaxed) == 0, "the fault was not resumed");
    ensure!(c.is_some_and(|c| c.vector == trap::PF), "no fault");
    ensure!((rcx, rdi) == (0, EDGE + 1500), "RCX {rcx}, RDI {:+}", rdi as i64 - EDGE as i64);
    let wrong = (0..3000).find(|i| read8(EDGE - 1500 + i) != (i % 251) as u8);
    ensure!(wrong.is_none(), "byte {} is wrong", wrong.unwrap_or(0));
    good!("REP MOVSB over a page that came in its middle")
}

/// What REP must do element by element: overlapping moves, the flags of SCAS and CMPS, both directions.
pub fn check_plain() -> Verdict {
    let Some(frames) = mem::pages(2) else { skip!("no memory") };
    let fill = |n: u64| (0..n).for_each(|i| write8(frames + i, i as u8));
    let (mut rcx, mut rdi, mut flags): (u64, u64, u64);

    fill(64);
    // SAFETY: all addresses are in the frames.
    unsafe { asm!("rep movsb", inout("rcx") 63u64 => _, inout("rsi") frames => _, inout("rdi") frames + 1 => _) };
    ensure!((0..64).all(|i| read8(frames + i) == 0), "MOVSB onto the next byte does not spread it");
    fill(64);
    // SAFETY: as above.
    unsafe { asm!("rep movsq", inout("rcx") 6u64 => _, inout("rsi") frames => _, inout("rdi") frames + 3 => _) };
    ensure!((3..8).all(|i| read8(frames + i) == (i - 3) as u8), "MOVSQ overlapping by 5: first element");
    let second = [11, 12, 13, 14].map(|i| read8(frames + i));
    ensure!(second == [5, 6, 7, 11], "MOVSQ overlapping by 5: second element starts {second:?}");
    fill(64);
    // SAFETY: as above; the direction flag is put back.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") 32u64 => _, inout("rsi") frames + 31 => _,
            inout("rdi") frames + 35 => _);
    }
    ensure!((0..32).all(|i| read8(frames + 4 + i) == i as u8), "MOVSB down with overlap");

    fill(64);
    // SAFETY: as above.
    unsafe {
        asm!("repne scasb", "pushfq", "pop {f}", f = out(reg) flags, inout("rcx") 64u64 => rcx,
            inout("rdi") frames => rdi, in("al") 40u8);
    }
    ensure!((rcx, rdi - frames) == (23, 41) && flags & 0x40 != 0, "REPNE SCASB: RCX {rcx}, RDI +{}", rdi - frames);
    // SAFETY: as above.
    unsafe {
        asm!("repe cmpsb", "pushfq", "pop {f}", f = out(reg) flags, inout("rcx") 8u64 => rcx,
            inout("rsi") frames + 2 => _, inout("rdi") frames + 10 => rdi);
    }
    ensure!(rcx == 7 && flags & 0x41 == 1, "REPE CMPSB of unequal bytes: RCX {rcx}, flags {flags:#x}");
    // The address-size prefix makes the count ECX; its upper half and that of RDI fall away or must not count.
    // SAFETY: the frames lie below 4 GiB.
    unsafe {
        asm!(".byte 0x67", "rep stosb", inout("rcx") 0xffff_ffff_0000_0004u64 => rcx,
            inout("rdi") frames | 0xffff_ffff << 32 => rdi, in("al") 0xeeu8);
    }
    ensure!(rcx as u32 == 0 && rdi == frames + 4, "address size 32: RCX {rcx:#x}, RDI {rdi:#x}");
    ensure!(read8(frames + 3) == 0xee && read8(frames + 4) == 4, "address size 32: wrong bytes stored");
    good!("overlap, both directions, SCAS, CMPS, address size")
}
