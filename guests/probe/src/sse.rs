//! SSE to SSE4.2: arithmetic with MXCSR, exceptions, integer operations, lazy switching and XSAVE.

use crate::exceptions::expect;
use crate::report::Verdict;
use crate::{catch, cpu, ensure, good, skip, trap, x87};
use core::arch::{asm, global_asm};

const MXCSR_DEFAULT: u32 = 0x1f80;

/// Runs one scalar double operation under `mxcsr`: the result's bits and the flags that it raised.
macro_rules! scalar {
    ($op:literal, $mxcsr:expr, $a:expr, $b:expr) => {{
        let (result, flags): (u64, u32);
        let slots = x87::area();
        crate::mem::write32(slots, $mxcsr);
        crate::mem::write32(slots + 8, MXCSR_DEFAULT);
        // SAFETY: MXCSR is put back; the slots are scratch.
        unsafe {
            asm!("ldmxcsr [{p}]", "movq xmm0, {a}", "movq xmm1, {b}", concat!($op, " xmm0, xmm1"), "movq {r}, xmm0",
                "stmxcsr [{p} + 4]", "ldmxcsr [{p} + 8]", p = in(reg) slots,
                a = in(reg) u64::from_ne_bytes(($a).to_ne_bytes()), b = in(reg) u64::from_ne_bytes(($b).to_ne_bytes()),
                r = out(reg) result, out("xmm0") _, out("xmm1") _);
        }
        flags = crate::mem::read32(slots + 4) & 0x3f;
        (result, flags)
    }};
}

/// Results and sticky flags of scalar and packed arithmetic; rounding, DAZ, FTZ; NaN rules.
pub fn check_arithmetic() -> Verdict {
    let third = 0x3fd5_5555_5555_5555u64;
    for (mode, wanted) in [(0, third), (1, third), (2, third + 1), (3, third)] {
        let (r, f) = scalar!("divsd", MXCSR_DEFAULT | mode << 13, 1.0f64, 3.0f64);
        ensure!(r == wanted && f == 0x20, "1/3, rounding {mode}: {r:#x}, flags {f:#x}");
    }
    let cases: [(&str, (u64, u32), u64, u32); 6] = [
        ("1/0", scalar!("divsd", MXCSR_DEFAULT, 1.0f64, 0.0f64), 0x7ff0_0000_0000_0000, 0x04),
        ("0/0", scalar!("divsd", MXCSR_DEFAULT, 0.0f64, 0.0f64), 0xfff8_0000_0000_0000, 0x01),
        ("max*2", scalar!("mulsd", MXCSR_DEFAULT, f64::MAX, 2.0f64), 0x7ff0_0000_0000_0000, 0x28),
        ("sqrt 2", scalar!("sqrtsd", MXCSR_DEFAULT, 0.0f64, 2.0f64), 0x3ff6_a09e_667f_3bcd, 0x20),
        ("min/3", scalar!("divsd", MXCSR_DEFAULT, f64::MIN_POSITIVE, 3.0f64), 0x0005_5555_5555_5555, 0x30),
        ("min/2", scalar!("divsd", MXCSR_DEFAULT, f64::MIN_POSITIVE, 2.0f64), 0x0008_0000_0000_0000, 0x00),
    ];
    for (name, got, bits, flags) in cases {
        ensure!(got == (bits, flags), "{name}: {:#x}, flags {:#x}, wanted {bits:#x}, {flags:#x}", got.0, got.1);
    }
    let denormal = f64::from_bits(1);
    let got = scalar!("addsd", MXCSR_DEFAULT, denormal, 1.0f64);
    ensure!(got.0 == 1.0f64.to_bits() && got.1 & !2 == 0x20, "denormal + 1: {:#x}, flags {:#x}", got.0, got.1);
    let got = scalar!("divsd", MXCSR_DEFAULT | 0x8000, f64::MIN_POSITIVE, 2.0f64);
    ensure!(got.0 == 0, "FTZ: {:#x}", got.0);
    let got = scalar!("addsd", MXCSR_DEFAULT | 0x40, denormal, 0.0f64);
    ensure!(got == (0, 0), "DAZ: {:#x}, flags {:#x}", got.0, got.1);
    let quiet = f64::from_bits(0x7ff8_0000_0000_1234);
    let got = scalar!("addsd", MXCSR_DEFAULT, 1.0f64, quiet);
    ensure!(got == (quiet.to_bits(), 0), "1 + NaN: {:#x}, flags {:#x}", got.0, got.1);
    let got = scalar!("minsd", MXCSR_DEFAULT, quiet, 5.0f64);
    ensure!(got == (5.0f64.to_bits(), 1), "MIN(NaN, 5): {:#x}, flags {:#x}", got.0, got.1);
    let got = scalar!("minsd", MXCSR_DEFAULT, 0.0f64, -0.0f64);
    ensure!(got.0 == 1 << 63, "MIN(0, -0): {:#x}", got.0);
    let (huge, one): (u64, u64);
    // SAFETY: registers only.
    unsafe {
        asm!("movq xmm0, {a}", "cvttsd2si {h}, xmm0", "cvttsd2si {o:e}, xmm1", a = in(reg) 1e30f64.to_bits(),
            h = out(reg) huge, o = out(reg) one, inout("xmm1") 1.9f64 => _, out("xmm0") _);
    }
    ensure!(huge == 1 << 63 && one == 1, "CVTTSD2SI: {huge:#x}, {one}");
    good!("rounding, flags, DAZ, FTZ, NaN, MIN, CVTT")
}

/// Integer operations of SSE2 and, where offered, SSSE3, SSE4.1, SSE4.2 and POPCNT.
pub fn check_integer() -> Verdict {
    let f = cpu::cpuid(1, 0).ecx;
    let (low, high): (u64, u64);
    // SAFETY: registers only.
    unsafe {
        asm!("movq xmm0, {a}", "movq xmm1, {b}", "paddusb xmm0, xmm1", "pmaddwd xmm1, xmm1", "punpcklbw xmm0, xmm0",
            "pshufd xmm0, xmm0, 0x4e", "movq {l}, xmm0", "movq {h}, xmm1", a = in(reg) 0x0102_0304_f0f0_f0f0u64,
            b = in(reg) 0x0001_0002_2020_0003u64, l = out(reg) low, h = out(reg) high, out("xmm0") _, out("xmm1") _);
    }
    ensure!(low == 0x0101_0303_0303_0606, "PADDUSB, PUNPCKLBW, PSHUFD: {low:#x}");
    ensure!(high == 0x0000_0005_0408_0409, "PMADDWD: {high:#x}");
    let mut names = ["", "", "", ""];
    let value: u64;
    if f & 1 << 9 != 0 {
        // SAFETY: offered; registers only.
        unsafe {
            asm!("movq xmm0, {a}", "movq xmm1, {m}", "pshufb xmm0, xmm1", "movq {r}, xmm0",
                a = in(reg) 0x0706_0504_0302_0100u64, m = in(reg) 0x0001_0203_8005_0607u64,
                r = out(reg) value, out("xmm0") _, out("xmm1") _);
        }
        ensure!(value == 0x0001_0203_0005_0607, "PSHUFB: {value:#x}");
        names[0] = " SSSE3";
    }
    if f & 1 << 19 != 0 {
        let (v, z): (u64, u8);
        // SAFETY: offered; registers only.
        unsafe {
            asm!("movq xmm0, {a}", "pmovzxbw xmm1, xmm0", "movq {r}, xmm1", "ptest xmm0, xmm0", "setz {z}",
                "pextrd {a:e}, xmm0, 1", a = inout(reg) 0x1122_3344_5566_7788u64 => _, r = out(reg) v,
                z = out(reg_byte) z, out("xmm0") _, out("xmm1") _);
        }
        ensure!(v == 0x0055_0066_0077_0088 && z == 0, "PMOVZXBW: {v:#x}, PTEST {z}");
        names[1] = " SSE4.1";
    }
    if f & 1 << 20 != 0 {
        let mut crc = 0xffff_ffffu64;
        for b in *b"123456789" {
            // SAFETY: offered; registers only.
            unsafe { asm!("crc32 {c:e}, {b}", c = inout(reg) crc, b = in(reg_byte) b) };
        }
        ensure!(!crc as u32 == 0xe306_9283, "CRC32: {:#x}", !crc as u32);
        let index: u64;
        let text = *b"find the needle.";
        let word = *b"needle\0\0\0\0\0\0\0\0\0\0";
        // SAFETY: offered; both operands are 16 bytes long.
        unsafe {
            asm!("movdqu xmm0, [{w}]", "movdqu xmm1, [{t}]", "pcmpistri xmm0, xmm1, 0x0c", w = in(reg) word.as_ptr(),
                t = in(reg) text.as_ptr(), out("rcx") index, out("xmm0") _, out("xmm1") _);
        }
        ensure!(index == 9, "PCMPISTRI finds the word at {index}, wanted 9");
        names[2] = " SSE4.2";
    }
    if f & 1 << 23 != 0 {
        let n: u64;
        // SAFETY: offered; registers only.
        unsafe { asm!("popcnt {n}, {a}", n = out(reg) n, a = in(reg) 0xf0f0_0000_0000_0001u64) };
        ensure!(n == 9, "POPCNT: {n}");
        names[3] = " POPCNT";
    }
    good!("SSE2{}{}{}{}", names[0], names[1], names[2], names[3])
}

global_asm!(
    r#"
    .text
    .globl nm_handler
nm_handler:
    clts
    inc dword ptr [rip + nm_count]
    iretq
    .section .bss.nm, "aw", @nobits
    .balign 4
    .globl nm_count
nm_count: .skip 4
    "#
);

/// CR0.TS makes the next x87 or SSE instruction #NM, once; the instruction then runs (lazy switching).
pub fn check_lazy() -> Verdict {
    unsafe extern "C" {
        safe static nm_handler: u8;
        safe static nm_count: u32;
    }
    let count = || crate::mem::read32((&raw const nm_count) as u64);
    let start = count();
    trap::set_gate(7, (&raw const nm_handler) as u64, 2, 0);
    let cr0 = cpu::cr0();
    let mut result = 0u64;
    for sse in [false, true] {
        // SAFETY: the handler clears TS and returns to the same instruction.
        unsafe {
            if sse {
                asm!("mov cr0, {t}", "movq xmm0, {v}", "movq {r}, xmm0", t = in(reg) cr0 | 8, v = in(reg) 77u64,
                    r = out(reg) result, out("xmm0") _);
            } else {
                asm!("mov cr0, {t}", "fninit", t = in(reg) cr0 | 8);
            }
        }
    }
    cpu::set_cr0(cr0);
    trap::reset_gate(7);
    ensure!(count() == start + 2, "{} #NM, wanted 2", count() - start);
    ensure!(result == 77, "the instruction behind #NM gave {result}");
    good!("x87 and SSE")
}

/// XSAVE of x87 and SSE state: size in CPUID, XCR0 rules, header.
pub fn check_xsave() -> Verdict {
    if cpu::cpuid(1, 0).ecx & 1 << 26 == 0 {
        skip!("not offered");
    }
    let cr4 = cpu::cr4();
    expect("XGETBV with CR4.OSXSAVE off", catch!("xgetbv"; in("ecx") 0, out("eax") _, out("edx") _), trap::UD, 0)?;
    cpu::set_cr4(cr4 | 1 << 18);
    let result = xsave_inside();
    cpu::set_cr4(cr4);
    ensure!(cpu::cpuid(1, 0).ecx & 1 << 27 == 0, "OSXSAVE in CPUID does not follow CR4");
    result
}

fn set_xcr0(value: u64) -> Option<trap::Caught> {
    catch!("xsetbv"; in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32)
}

fn xsave_inside() -> Verdict {
    ensure!(cpu::cpuid(1, 0).ecx & 1 << 27 != 0, "OSXSAVE in CPUID does not follow CR4");
    let offered = cpu::cpuid(0xd, 0);
    ensure!(offered.eax & 3 == 3, "XCR0 can be {:#x}", offered.eax);
    expect("XCR0 = 0", set_xcr0(0), trap::GP, 0)?;
    ensure!(set_xcr0(3).is_none(), "XCR0 = 3 refused");
    let size = cpu::cpuid(0xd, 0).ebx;
    ensure!(size == 576, "size {size} for x87 and SSE, wanted 576");
    let p = x87::area();
    // SAFETY: the area has 576 bytes and is aligned to 64.
    unsafe { core::ptr::write_bytes(p as *mut u8, 0, 576) };
    let back: u64;
    // SAFETY: as above; XMM0 is scratch.
    unsafe {
        asm!("fninit", "movq xmm0, {v}", "xsave64 [{p}]", "xorps xmm0, xmm0", "xrstor64 [{p}]", "movq {b}, xmm0",
            p = in(reg) p, v = in(reg) 0x55aau64, b = out(reg) back, in("eax") 3, in("edx") 0, out("xmm0") _);
    }
    ensure!(back == 0x55aa, "XRSTOR gives {back:#x}");
    ensure!(x87::word(512) & 2 != 0, "XSTATE_BV {:#x}", x87::word(512));
    crate::mem::write8(p + 519, 0x40);
    let c = catch!("xrstor64 [{p}]"; p = in(reg) p, in("eax") 3, in("edx") 0);
    expect("XRSTOR with a bad header", c, trap::GP, 0)?;
    good!("576 bytes, XCR0 up to {:#x}", offered.eax)
}
