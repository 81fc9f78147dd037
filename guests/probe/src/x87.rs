//! The x87 unit: 80-bit results, exceptions, tags, state in memory.

use crate::exceptions::expect;
use crate::mem::Racy;
use crate::report::Verdict;
use crate::trap;
use crate::{catch, ensure, good};
use core::arch::asm;

#[repr(align(64))]
struct Area(Racy<[u8; 576]>);
static AREA: Area = Area(Racy::new([0; 576]));

pub fn area() -> u64 {
    AREA.0.get() as u64
}

fn byte(i: usize) -> u8 {
    // SAFETY: only this module's assembly writes the area, and it is over.
    unsafe { AREA.0.get().cast::<u8>().add(i).read_volatile() }
}

pub fn word(i: usize) -> u16 {
    u16::from(byte(i)) | u16::from(byte(i + 1)) << 8
}

/// The 80-bit number at offset `i` of the area: mantissa, sign and exponent.
pub fn extended(i: usize) -> (u64, u16) {
    let mantissa = (0..8).fold(0, |m, k| m | u64::from(byte(i + k)) << (8 * k));
    (mantissa, word(i + 8))
}

fn status() -> u16 {
    let value: u16;
    // SAFETY: reads the status word.
    unsafe { asm!("fnstsw ax", out("ax") value, options(nomem, nostack)) };
    value
}

macro_rules! x87 {
    ($($text:literal),+ $(; $($operands:tt)*)?) => {
        // SAFETY: FNINIT first; the stack of the unit is this module's, stores go to its area.
        unsafe { asm!("fninit /* scratch at {p} */", $($text,)+ p = in(reg) area(), $($($operands)*)?) }
    };
}

/// Mantissa of pi to 64 bits, rounded to nearest, and its exponent.
const PI: (u64, u16) = (0xc90f_daa2_2168_c235, 0x4000);

/// Pi four ways: the constant, as decimal digits, by arctangent, and by Machin's formula in 80-bit arithmetic.
pub fn check_pi() -> Verdict {
    x87!("fldpi", "fstp tbyte ptr [{p}]");
    ensure!(extended(0) == PI, "FLDPI {:x?}", extended(0));
    x87!(
        "fldpi",
        "mov dword ptr [{p}], 1000000000",
        "fimul dword ptr [{p}]",
        "mov dword ptr [{p}], 100000000",
        "fimul dword ptr [{p}]",
        "fbstp tbyte ptr [{p}]"
    );
    let digits = (0..9).rev().fold(0u64, |d, i| d * 100 + u64::from(byte(i) >> 4) * 10 + u64::from(byte(i) & 15));
    ensure!(digits == 314_159_265_358_979_324, "FBSTP: digits {digits}");
    x87!("fld1", "fld1", "fpatan", "fadd st(0), st(0)", "fadd st(0), st(0)", "fstp tbyte ptr [{p}]");
    ensure!(extended(0) == PI, "4 FPATAN(1, 1): {:x?}", extended(0));
    // 16 arctan(1/5) - 4 arctan(1/239), each by its power series; the error is a few units of the 64th bit.
    let sum = machin(5, 16, 28);
    let (m, e) = {
        let other = machin(239, 4, 9);
        store_two(sum, other);
        x87!("fld tbyte ptr [{p}]", "fld tbyte ptr [{p} + 16]", "fsubp st(1), st(0)", "fstp tbyte ptr [{p} + 32]");
        extended(32)
    };
    let ulps = m.abs_diff(PI.0);
    ensure!(e == PI.1 && ulps <= 16, "Machin: {m:#x}, exponent {e:#x}, {ulps} units off");
    good!("FLDPI, 18 digits by FBSTP, FPATAN, Machin's series within {ulps} units of 2^-62")
}

fn store_two(a: (u64, u16), b: (u64, u16)) {
    for (at, v) in [(0, a), (16, b)] {
        crate::mem::write_bytes(area() + at, &v.0.to_le_bytes());
        crate::mem::write_bytes(area() + at + 8, &v.1.to_le_bytes());
    }
}

/// `factor` arctan(1/`x`) by `terms` terms of the series, in 80-bit arithmetic.
fn machin(x: u32, factor: u32, terms: u32) -> (u64, u16) {
    let square = x * x;
    // Stack in the loop: sum, power (factor / x^(2k+1)). The sign alternates through the parity of k.
    x87!(
        "mov [{p}], {x:e}",
        "mov [{p} + 4], {square:e}",
        "mov [{p} + 8], {factor:e}",
        "mov dword ptr [{p} + 12], 1",
        "fild dword ptr [{p} + 8]",
        "fidiv dword ptr [{p}]",
        "fld st(0)",
        "2:",
        "fxch st(1)",
        "fidiv dword ptr [{p} + 4]",
        "fchs",
        "add dword ptr [{p} + 12], 2",
        "fld st(0)",
        "fidiv dword ptr [{p} + 12]",
        "faddp st(2), st(0)",
        "fxch st(1)",
        "dec {terms:e}",
        "jnz 2b",
        "fstp tbyte ptr [{p} + 48]",
        "fstp st(0)";
        x = in(reg) x, square = in(reg) square, factor = in(reg) factor, terms = inout(reg) terms => _
    );
    extended(48)
}

/// Precision and rounding control, partial remainder, conversions, comparisons.
pub fn check_arithmetic() -> Verdict {
    let third = |control: u16| {
        crate::mem::write_bytes(area() + 60, &control.to_le_bytes());
        x87!("fldcw [{p} + 60]", "fld1", "mov dword ptr [{p}], 3", "fidiv dword ptr [{p}]", "fstp tbyte ptr [{p}]");
        extended(0).0
    };
    let wanted = [
        (0x037f, 0xaaaa_aaaa_aaaa_aaab),
        (0x0f7f, 0xaaaa_aaaa_aaaa_aaaa),
        (0x0b7f, 0xaaaa_aaaa_aaaa_aaab),
        (0x027f, 0xaaaa_aaaa_aaaa_a800),
        (0x007f, 0xaaaa_ab00_0000_0000),
    ];
    for (control, mantissa) in wanted {
        let got = third(control);
        ensure!(got == mantissa, "1/3 under control word {control:#x}: {got:#x}, wanted {mantissa:#x}");
    }
    // FPREM of 10^18 by 7: C2 while partial, the last quotient bits in C0, C3, C1 at the end.
    x87!("mov dword ptr [{p}], 7", "fild dword ptr [{p}]", "mov dword ptr [{p}], 1000000000", "fild dword ptr [{p}]",
        "fimul dword ptr [{p}]", "2:", "fprem", "fnstsw ax", "test ah, 4", "jnz 2b", "fistp dword ptr [{p}]";
        out("ax") _);
    let rest = (1_000_000_000u64 * 1_000_000_000 % 7) as u16;
    ensure!(word(0) == rest, "FPREM: {} for {rest}", word(0));
    x87!("fldpi", "fistp qword ptr [{p}]", "fldz", "fld1", "fcomip st(0), st(1)", "setbe byte ptr [{p} + 8]");
    ensure!(word(0) == 3 && byte(8) == 0, "FISTP of pi {}, FCOMIP 1 <= 0 {}", word(0), byte(8));
    x87!(
        "fld1",
        "fchs",
        "fxam",
        "fnstsw [{p}]",
        "fstp st(0)",
        "fxam",
        "fnstsw [{p} + 2]",
        "fldz",
        "fxam",
        "fnstsw [{p} + 4]"
    );
    let classes = [word(0) & 0x4700, word(2) & 0x4500, word(4) & 0x4700];
    ensure!(classes == [0x0600, 0x4100, 0x4000], "FXAM of -1, empty, 0: {classes:x?}");
    good!("1/3 in 5 modes, FPREM, FISTP, FCOMIP, FXAM")
}

/// Masked and unmasked exceptions; #MF comes at the next waiting instruction.
pub fn check_exceptions() -> Verdict {
    x87!("fld1", "fldz", "fdivp st(1), st(0)", "fstp tbyte ptr [{p}]");
    ensure!(
        extended(0) == (1 << 63, 0x7fff) && status() & 0x3f == 4,
        "1/0: {:x?}, status {:#x}",
        extended(0),
        status()
    );
    x87!("fldz", "fldz", "fdivp st(1), st(0)", "fstp tbyte ptr [{p}]");
    ensure!(
        extended(0) == (3 << 62, 0xffff) && status() & 0x3f == 1,
        "0/0: {:x?}, status {:#x}",
        extended(0),
        status()
    );

    // ZM clear: the divide itself does not fault, the next waiting instruction does.
    let at: u64;
    let c = catch!("fninit", "mov word ptr [{p}], 0x037b", "fldcw [{p}]", "fld1", "fldz", "fdivp st(1), st(0)",
        "fnstsw [{p}]", "lea {at}, [rip + 78f]", "78: fwait"; p = in(reg) area(), at = out(reg) at);
    let c = expect("FWAIT behind an unmasked 1/0", c, trap::MF, 0)?;
    ensure!(c.rip == at, "reported at {:#x}, wanted {at:#x}", c.rip);
    ensure!(word(0) & 0x8084 == 0x8084, "status {:#x}, wanted ES, B, ZE", word(0));
    let c = catch!("fnclex", "fld1", "fninit";);
    ensure!(c.is_none(), "FNCLEX does not clear the exception");
    good!("ZE, IE, #MF at the next instruction")
}

/// FNSAVE, FRSTOR, FNSTENV, FXSAVE and FXRSTOR keep registers, tags and control.
pub fn check_state() -> Verdict {
    x87!("fldpi", "fldl2e", "fldz", "fnsave [{p}]");
    ensure!(word(0) == 0x037f && word(4) & 0x3800 == 0x2800, "FNSAVE: control {:#x}, status {:#x}", word(0), word(4));
    ensure!(word(8) == 0x07ff, "FNSAVE: tags {:#x}, wanted valid, valid, zero in 7, 6, 5", word(8));
    ensure!(extended(28 + 20) == PI && extended(28).0 == 0, "FNSAVE: ST(2) {:x?}", extended(48));
    let (control, free): (u16, u16);
    // SAFETY: FNSAVE left an initialised unit; FRSTOR takes the image back.
    unsafe {
        asm!("fnstenv [{p} + 128]", "frstor [{p}]", "fnstcw [{p} + 160]", "fstp st(0)", "fstp st(0)",
            "fstp tbyte ptr [{p} + 176]", "fnstsw ax", p = in(reg) area(), out("ax") free);
    }
    control = word(160);
    ensure!(word(128 + 8) == 0xffff, "FNSAVE leaves tags {:#x}", word(136));
    ensure!(
        control == 0x037f && extended(176) == PI && free & 0x3800 == 0,
        "FRSTOR: {:x?}, status {free:#x}",
        extended(176)
    );

    x87!(
        "fldpi",
        "fld1",
        "fxsave64 [{p}]",
        "fninit",
        "fxrstor64 [{p}]",
        "fstp tbyte ptr [{p} + 512]",
        "fstp tbyte ptr [{p} + 528]"
    );
    ensure!(word(4) == 0xc0, "FXSAVE: abridged tags {:#x}, wanted c0", word(4));
    ensure!(extended(32 + 16) == PI, "FXSAVE: ST(1) {:x?}", extended(48));
    ensure!(extended(512) == (1 << 63, 0x3fff) && extended(528) == PI, "FXRSTOR: {:x?}", extended(528));
    let mask = u32::from(word(28)) | u32::from(word(30)) << 16;
    ensure!(mask == 0 || mask & 0xffbf == 0xffbf, "MXCSR_MASK {mask:#x}");

    // MMX lies over the mantissas, sets TOP to 0 and all tags to valid.
    x87!("mov rax, 0x0123456789abcdef", "movq mm3, rax", "paddb mm3, mm3", "fnsave [{p}]", "fninit"; out("rax") _);
    let m = extended(28 + 30).0;
    ensure!(m == 0x0246_8ace_1256_9ade, "MM3 as ST(3): {m:#x}");
    ensure!(word(4) & 0x3800 == 0 && word(8) != 0xffff, "MMX: top of stack {:#x}, tags {:#x}", word(4), word(8));
    x87!("movq mm0, mm1", "emms", "fnstenv [{p}]");
    ensure!(word(8) == 0xffff, "EMMS: tags {:#x}", word(8));
    x87!("fninit");
    good!("FNSAVE, FRSTOR, FNSTENV, FXSAVE, FXRSTOR, MMX, EMMS")
}
