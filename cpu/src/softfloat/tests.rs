//! Checks that need no particular host: known values, and the fast paths against the full ones.

use super::{Constant, F80, IE, OE, PE, Predicate, Sse, UE, X87, ZE};

const MASKED: u16 = 0x37f;

fn int(value: i64) -> F80 {
    X87::from_integer(value)
}

#[test]
fn division_is_not_that_of_the_first_pentium() {
    let mut x87 = X87::new(MASKED);
    let (x, y) = (int(4_195_835), int(3_145_727));
    let quotient = x87.div(x, y);
    let product = x87.mul(quotient, y);
    assert_eq!(x87.sub(x, product), F80::ZERO);
    assert_eq!(x87.flags, PE);
}

#[test]
fn precision_control_limits_the_significand() {
    let third = |control| X87::new(control).div(F80::ONE, int(3)).mant;
    assert_eq!(third(0x37f), 0xaaaa_aaaa_aaaa_aaab);
    assert_eq!(third(0x27f), 0xaaaa_aaaa_aaaa_a800);
    assert_eq!(third(0x07f), 0xaaaa_ab00_0000_0000);
}

#[test]
fn unmasked_overflow_wraps_the_exponent() {
    let huge = F80 { mant: 1 << 63, se: 0x7ffe };
    let mut x87 = X87::new(MASKED & !u16::from(OE));
    assert_eq!(x87.mul(huge, huge), F80 { mant: 1 << 63, se: 0x3fff + 2 * 0x3fff - 0x6000 });
    assert_eq!((x87.flags, x87.unmasked(), x87.faulted(), x87.store_faulted()), (OE, OE, false, true));
}

#[test]
fn unmasked_division_by_zero_is_a_fault() {
    let mut x87 = X87::new(MASKED & !u16::from(ZE));
    x87.div(F80::ONE, F80::ZERO);
    assert!(x87.faulted());
    let mut x87 = X87::new(MASKED);
    assert_eq!(x87.div(F80::ONE, F80::ZERO.negated()), F80 { mant: 1 << 63, se: 0xffff });
    assert!(!x87.faulted());
}

#[test]
fn packed_decimal_survives_the_round_trip() {
    let bytes = [0x78, 0x56, 0x34, 0x12, 0x90, 0x78, 0x56, 0x34, 0x12, 0x80];
    let value = X87::from_bcd(bytes);
    assert_eq!(value, int(-123_456_789_012_345_678));
    let mut x87 = X87::new(MASKED);
    assert_eq!(x87.to_bcd(value), bytes);
    assert_eq!(x87.to_bcd(int(1_000_000_000_000_000_000)), [0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff]);
    assert_eq!(x87.flags, IE);
}

#[test]
fn partial_remainders_converge() {
    // An even power of two is 1 modulo 3.
    let mut x87 = X87::new(MASKED);
    let mut x = F80 { mant: 1 << 63, se: 0x3fff + 1000 };
    let mut rounds = 0;
    loop {
        let r = x87.remainder(x, int(3));
        x = r.value;
        rounds += 1;
        if !r.partial {
            break;
        }
    }
    assert_eq!(x, F80::ONE);
    assert!((16..=32).contains(&rounds), "{rounds} rounds reduce by 32 to 63 bits each");
    assert_eq!(x87.flags, 0);
}

#[test]
fn transcendental_functions_have_known_values() {
    let mut x87 = X87::new(MASKED);
    let pi = x87.constant(Constant::Pi);
    let half = F80 { mant: 1 << 63, se: 0x3ffe };
    assert_eq!(x87.fpatan(int(-1), F80::ZERO), pi);
    // The sine of the rounded pi is what the 66-bit pi leaves of it, not what the real one does.
    assert_eq!(x87.fsin(pi), Some(F80 { mant: 1 << 63, se: 0xbfbf }));
    assert_eq!(x87.fsin(int(1)), Some(F80 { mant: 0xd76a_a478_4867_7021, se: 0x3ffe }));
    assert_eq!(x87.fcos(int(1)), Some(F80 { mant: 0x8a51_407d_a834_5c92, se: 0x3ffe }));
    assert_eq!(x87.f2xm1(half), F80 { mant: 0xd413_cccf_e779_9211, se: 0x3ffd });
    assert_eq!(x87.fyl2x(int(10), F80::ONE), x87.constant(Constant::Log2Of10));
    assert_eq!(x87.fyl2x(int(1024), int(3)), int(30));
    assert_eq!(x87.fsin(F80 { mant: 1 << 63, se: 0x3fff + 63 }), None);
}

/// A spread of operands: all exponents' neighbourhoods, signs, and significands of few and of many bits.
fn operands() -> impl Iterator<Item = u64> {
    let exponents = [0, 1, 2, 0x3e0, 0x3fe, 0x3ff, 0x400, 0x41e, 0x43e, 0x7fd, 0x7fe, 0x7ff];
    let fractions = [0, 1, 1 << 51, 1 << 29, 0x5_5555_5555_5555, 0xf_ffff_ffff_ffff];
    let signs = [0, 1 << 63];
    exponents.into_iter().flat_map(move |exp: u64| {
        fractions.into_iter().flat_map(move |fraction: u64| signs.map(|sign: u64| sign | exp << 52 | fraction))
    })
}

#[test]
fn fast_paths_agree_with_the_full_ones() {
    let check = |a: u64, b: u64, f: fn(&mut Sse, u64, u64) -> u64| {
        let (mut fast, mut full) = (Sse::new(0x1fa0), Sse::new(0x1f80));
        let results = (f(&mut fast, a, b), f(&mut full, a, b));
        assert_eq!(results.0, results.1, "{a:x} {b:x}");
        assert!(!fast.finish() && !full.finish());
        assert_eq!(fast.mxcsr, full.mxcsr | 0x20, "{a:x} {b:x}");
    };
    for a in operands() {
        check(a, 0, |sse, a, _| sse.sqrt64(a));
        check(a, 0, |sse, a, _| sse.f64_to_f32(a).into());
        check(a, 0, |sse, a, _| sse.f64_to_i32(a) as u64);
        check(a, 0, |sse, a, _| sse.f64_to_i64_truncated(a) as u64);
        check(a, 0, |sse, a, _| sse.i64_to_f32(a as i64).into());
        check(a, 0, |sse, a, _| sse.i64_to_f64(a as i64));
        for b in operands() {
            check(a, b, Sse::add64);
            check(a, b, Sse::sub64);
            check(a, b, Sse::mul64);
            check(a, b, Sse::div64);
        }
    }
}

#[test]
fn unmasked_sse_exceptions_are_reported_once() {
    let mut sse = Sse::new(0x1f80 & !(u32::from(OE) << 7));
    let huge = f64::MAX.to_bits();
    sse.mul64(huge, huge);
    assert!(sse.finish());
    // The flag is sticky, but the next instruction is innocent.
    assert_ne!(sse.mxcsr & u32::from(OE), 0);
    sse.add64(0, 0);
    assert!(!sse.finish());
}

#[test]
fn unmasked_invalid_lane_hides_the_results_of_the_others() {
    let mut sse = Sse::new(0x1f80 & !(u32::from(IE) << 7));
    let (one, three) = (1_f64.to_bits(), 3_f64.to_bits());
    sse.div64(one, three);
    sse.div64(0, 0);
    assert!(sse.finish());
    assert_eq!(sse.mxcsr & 0x3f, u32::from(IE));
}

#[test]
fn flush_to_zero_reports_underflow() {
    let tiny = f64::MIN_POSITIVE.to_bits();
    let mut sse = Sse::new(0x9f80);
    assert_eq!(sse.mul64(tiny | 1 << 63, 0.5_f64.to_bits()), 1 << 63);
    assert!(!sse.finish());
    assert_eq!(sse.mxcsr & 0x3f, u32::from(UE | PE));
}

#[test]
fn predicates_treat_nans_as_unordered() {
    let nan = f32::NAN.to_bits();
    let holds: Vec<u8> =
        (0..8).filter(|&i| Sse::default().cmp32(Predicate::from_bits(i), nan, nan) == u32::MAX).collect();
    assert_eq!(holds, [3, 4, 5, 6]);
}
