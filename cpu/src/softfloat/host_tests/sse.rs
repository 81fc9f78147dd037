//! SSE against the host's.

use std::arch::asm;
use std::cmp::Ordering;

use super::{Report, Rng, cases};
use crate::softfloat::{Predicate, Sse};

/// A random number of a format with `exponent` and `fraction` bits.
fn bits(rng: &mut Rng, exponent: u32, fraction: u32) -> u64 {
    let top = (1 << exponent) - 1;
    let sign = (rng.next() & 1) << (exponent + fraction);
    let mask = (1 << fraction) - 1;
    let significand = rng.significand(fraction + 1) & mask;
    let bias = top >> 1;
    let exp = match rng.below(16) {
        0 => 0,
        1 => return sign | rng.below(top) << fraction & !mask,
        2 => top,
        3 => return sign | if rng.below(2) == 0 { 0 } else { top << fraction },
        4 => return sign | rng.below(4),
        5 => rng.below(3),
        6 => top - rng.below(3),
        7 => rng.below(top),
        8 => return sign | bias << fraction,
        9 => (bias as i64 + i64::from(rng.signed(2))) as u64,
        10 => bias + 31 + rng.below(3),
        11 => (bias + 63 + rng.below(3)).min(top),
        12 => (bias + u64::from(fraction)).saturating_sub(2) + rng.below(4),
        _ => (bias as i64 + i64::from(rng.signed(70))).clamp(0, top as i64) as u64,
    };
    sign | exp << fraction | significand
}

pub(super) fn operand32(rng: &mut Rng) -> u32 {
    bits(rng, 8, 23) as u32
}

pub(super) fn operand64(rng: &mut Rng) -> u64 {
    bits(rng, 11, 52)
}

/// A function that runs an instruction of the host with operands in XMM0 and XMM1, and gives XMM0 and MXCSR.
macro_rules! host {
    ($($insn:expr),+) => {{
        #[expect(unsafe_code, reason = "the host's SSE unit is the reference of these tests")]
        fn run(mut mxcsr: u32, a: u64, b: u64) -> (u64, u32) {
            let default = 0x1f80_u32;
            let result;
            // SAFETY: touches the named registers only. MXCSR is back at its default in the end, and as all exceptions
            // are masked in between, none is raised.
            unsafe {
                asm!(
                    "movq xmm0, {a}",
                    "movq xmm1, {b}",
                    "ldmxcsr [{m}]",
                    $($insn,)+
                    "stmxcsr [{m}]",
                    "ldmxcsr [{d}]",
                    "movq {r}, xmm0",
                    a = in(reg) a,
                    b = in(reg) b,
                    m = in(reg) &mut mxcsr,
                    d = in(reg) &default,
                    r = lateout(reg) result,
                    out("rax") _,
                    out("xmm0") _,
                    out("xmm1") _,
                );
            }
            (result, mxcsr)
        }
        run as Host
    }};
}

type Host = fn(u32, u64, u64) -> (u64, u32);

/// All exceptions masked; in half of the cases what the fast paths want.
fn mxcsr(rng: &mut Rng) -> u32 {
    let random = rng.next() as u32;
    match rng.below(4) {
        0 => 0x1fa0,
        1 => 0x1fa0 | random & 0x801f,
        2 => 0x1f80 | random & 0xe040,
        _ => 0x1f80 | random & 0xe07f,
    }
}

/// Runs random cases on the host and compares result and MXCSR. `soft` gets both operands' bits.
fn compare(
    name: &'static str,
    host: Host,
    operands: impl Fn(&mut Rng) -> (u64, u64),
    soft: impl Fn(&mut Sse, u64, u64) -> u64,
) {
    let mut rng = Rng::new(name.bytes().map(u64::from).sum());
    let mut report = Report::new(name);
    for _ in 0..cases() {
        let mxcsr = mxcsr(&mut rng);
        let (a, b) = operands(&mut rng);
        let (expected, flags) = host(mxcsr, a, b);
        let mut sse = Sse::new(mxcsr);
        let result = soft(&mut sse, a, b);
        let faulted = sse.finish();
        report.check((result, sse.mxcsr, faulted) == (expected, flags, false), || {
            format!("mxcsr {mxcsr:04x} {a:x} {b:x}: {result:x} {:04x}, host {expected:x} {flags:04x}", sse.mxcsr)
        });
    }
    report.finish();
}

fn compare32(name: &'static str, host: Host, soft: impl Fn(&mut Sse, u32, u32) -> u32) {
    let operands = |rng: &mut Rng| {
        let a = operand32(rng);
        let near = a ^ (rng.next() >> 62) as u32 ^ (rng.next() as u32) << 31;
        (a.into(), if rng.below(4) == 0 { near } else { operand32(rng) }.into())
    };
    compare(name, host, operands, |sse, a, b| soft(sse, a as u32, b as u32).into());
}

fn compare64(name: &'static str, host: Host, soft: impl Fn(&mut Sse, u64, u64) -> u64) {
    let operands = |rng: &mut Rng| {
        let a = operand64(rng);
        let near = a ^ rng.next() >> 62 ^ rng.next() << 63;
        (a, if rng.below(4) == 0 { near } else { operand64(rng) })
    };
    compare(name, host, operands, soft);
}

#[test]
fn arithmetic_matches_host() {
    compare32("addss", host!("addss xmm0, xmm1"), Sse::add32);
    compare32("subss", host!("subss xmm0, xmm1"), Sse::sub32);
    compare32("mulss", host!("mulss xmm0, xmm1"), Sse::mul32);
    compare32("divss", host!("divss xmm0, xmm1"), Sse::div32);
    compare32("sqrtss", host!("sqrtss xmm0, xmm0"), |sse, a, _| sse.sqrt32(a));
    compare64("addsd", host!("addsd xmm0, xmm1"), Sse::add64);
    compare64("subsd", host!("subsd xmm0, xmm1"), Sse::sub64);
    compare64("mulsd", host!("mulsd xmm0, xmm1"), Sse::mul64);
    compare64("divsd", host!("divsd xmm0, xmm1"), Sse::div64);
    compare64("sqrtsd", host!("sqrtsd xmm0, xmm0"), |sse, a, _| sse.sqrt64(a));
}

#[test]
fn comparisons_match_host() {
    compare32("minss", host!("minss xmm0, xmm1"), Sse::min32);
    compare32("maxss", host!("maxss xmm0, xmm1"), Sse::max32);
    compare64("minsd", host!("minsd xmm0, xmm1"), Sse::min64);
    compare64("maxsd", host!("maxsd xmm0, xmm1"), Sse::max64);
    /// ZF, PF and CF of EFLAGS.
    fn flags(order: Option<Ordering>) -> u64 {
        match order {
            None => 0x45,
            Some(Ordering::Less) => 1,
            Some(Ordering::Equal) => 0x40,
            Some(Ordering::Greater) => 0,
        }
    }
    macro_rules! host_flags {
        ($insn:literal) => {
            host!($insn, "lahf", "movzx eax, ah", "and eax, 0x45", "movd xmm0, eax")
        };
    }
    compare32("comiss", host_flags!("comiss xmm0, xmm1"), |sse, a, b| flags(sse.comis32(a, b)) as u32);
    compare32("ucomiss", host_flags!("ucomiss xmm0, xmm1"), |sse, a, b| flags(sse.ucomis32(a, b)) as u32);
    compare64("comisd", host_flags!("comisd xmm0, xmm1"), |sse, a, b| flags(sse.comis64(a, b)));
    compare64("ucomisd", host_flags!("ucomisd xmm0, xmm1"), |sse, a, b| flags(sse.ucomis64(a, b)));
}

/// Calls a macro with every number from 0 up.
macro_rules! for_each {
    ($do:ident $($imm:literal)+) => {
        $($do!($imm);)+
    };
}

#[test]
fn predicates_match_host() {
    macro_rules! check {
        ($imm:literal) => {
            let predicate = Predicate::from_bits($imm);
            compare32("cmpss", host!(concat!("cmpss xmm0, xmm1, ", $imm)), |sse, a, b| sse.cmp32(predicate, a, b));
            compare64("cmpsd", host!(concat!("cmpsd xmm0, xmm1, ", $imm)), |sse, a, b| sse.cmp64(predicate, a, b));
        };
    }
    for_each!(check 0 1 2 3 4 5 6 7);
}

#[test]
fn rounding_matches_host() {
    if !is_x86_feature_detected!("sse4.1") {
        return;
    }
    macro_rules! check {
        ($imm:literal) => {
            compare32("roundss", host!(concat!("roundss xmm0, xmm0, ", $imm)), |sse, a, _| sse.round32(a, $imm));
            compare64("roundsd", host!(concat!("roundsd xmm0, xmm0, ", $imm)), |sse, a, _| sse.round64(a, $imm));
        };
    }
    for_each!(check 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
}

#[test]
fn conversions_to_integers_match_host() {
    macro_rules! host_int {
        ($insn:literal) => {
            host!(concat!($insn, " eax, xmm0"), "movd xmm0, eax")
        };
    }
    compare32("cvtss2si", host_int!("cvtss2si"), |sse, a, _| sse.f32_to_i32(a) as u32);
    compare32("cvttss2si", host_int!("cvttss2si"), |sse, a, _| sse.f32_to_i32_truncated(a) as u32);
    compare64("cvtsd2si", host_int!("cvtsd2si"), |sse, a, _| sse.f64_to_i32(a) as u32 as u64);
    compare64("cvttsd2si", host_int!("cvttsd2si"), |sse, a, _| sse.f64_to_i32_truncated(a) as u32 as u64);
    macro_rules! host_long {
        ($insn:literal) => {
            host!(concat!($insn, " rax, xmm0"), "movq xmm0, rax")
        };
    }
    let single = |rng: &mut Rng| (operand32(rng).into(), 0);
    compare("cvtss2si r64", host_long!("cvtss2si"), single, |sse, a, _| sse.f32_to_i64(a as u32) as u64);
    compare("cvttss2si r64", host_long!("cvttss2si"), single, |sse, a, _| sse.f32_to_i64_truncated(a as u32) as u64);
    compare64("cvtsd2si r64", host_long!("cvtsd2si"), |sse, a, _| sse.f64_to_i64(a) as u64);
    compare64("cvttsd2si r64", host_long!("cvttsd2si"), |sse, a, _| sse.f64_to_i64_truncated(a) as u64);
}

#[test]
fn conversions_of_integers_match_host() {
    macro_rules! host_int {
        ($insn:literal) => {
            host!("movq rax, xmm0", "pxor xmm0, xmm0", $insn)
        };
    }
    let integer = |rng: &mut Rng| {
        let int = rng.significand(64) >> rng.below(64);
        (if rng.below(2) == 0 { int } else { int.wrapping_neg() }, 0)
    };
    compare("cvtsi2ss", host_int!("cvtsi2ss xmm0, eax"), integer, |sse, a, _| sse.i32_to_f32(a as i32).into());
    compare("cvtsi2ss r64", host_int!("cvtsi2ss xmm0, rax"), integer, |sse, a, _| sse.i64_to_f32(a as i64).into());
    compare("cvtsi2sd", host_int!("cvtsi2sd xmm0, eax"), integer, |_, a, _| Sse::i32_to_f64(a as i32));
    compare("cvtsi2sd r64", host_int!("cvtsi2sd xmm0, rax"), integer, |sse, a, _| sse.i64_to_f64(a as i64));
}

#[test]
fn conversions_between_formats_match_host() {
    let single = |rng: &mut Rng| (operand32(rng).into(), 0);
    compare("cvtss2sd", host!("cvtss2sd xmm0, xmm0"), single, |sse, a, _| sse.f32_to_f64(a as u32));
    let double = |rng: &mut Rng| {
        // Half of them close to the ends of the range of `f32`.
        let end = [-126, -150, 127, 128][rng.below(4) as usize] + rng.signed(3) + 1023;
        let near = (end as u64) << 52 | rng.significand(53) & ((1 << 52) - 1) | rng.next() << 63;
        (if rng.below(2) == 0 { near } else { operand64(rng) }, 0)
    };
    let host = host!("cvtsd2ss xmm1, xmm0", "movd eax, xmm1", "movd xmm0, eax");
    compare("cvtsd2ss", host, double, |sse, a, _| sse.f64_to_f32(a).into());
}

/// Checks an approximation. The tables differ from one processor to the next, but not by more than Intel allows
/// (relative error up to 1.5/4096), and all agree on the results that are not normal numbers.
fn compare_approximation(name: &'static str, host: Host, soft: fn(u32) -> u32) {
    let mut rng = Rng::new(1);
    let mut report = Report::new(name);
    for _ in 0..cases() {
        let a = operand32(&mut rng);
        let (expected, flags) = host(0x1f80, a.into(), 0);
        let (soft, expected) = (soft(a), expected as u32);
        let error = f32::from_bits(soft) / f32::from_bits(expected) - 1.0;
        // Where the reciprocal gets tiny there is some freedom to flush it.
        let free = name == "rcpss" && (0x7e00_0c00..0x7e80_0000).contains(&(a & !(1 << 31)));
        let same = soft == expected || error.abs() <= 3.0 / 4096.0 || free;
        report.check(same && flags == 0x1f80, || format!("{a:x}: {soft:x}, host {expected:x}"));
    }
    report.finish();
}

#[test]
fn approximations_are_close_to_host() {
    compare_approximation("rcpss", host!("rcpss xmm0, xmm0"), Sse::reciprocal32);
    compare_approximation("rsqrtss", host!("rsqrtss xmm0, xmm0"), Sse::reciprocal_sqrt32);
}
