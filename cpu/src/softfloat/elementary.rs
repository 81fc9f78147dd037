//! Elementary functions on [`Real`] numbers, good to about 120 bits.
//!
//! The arguments are reduced until a power series of a few dozen terms does; the series run in fixed point, as
//! fractions of 2^128, with their coefficients computed at compile time. The errors are some 2^50 times smaller than a
//! unit in the last place of the x87 format, so its results are correctly rounded but for about one argument in 2^50.

use super::real::{Real, mul_high};

/// Pi/2, pi and the binary logarithm of e, to 128 bits.
const PI: Real = Real { neg: false, exp: 1, sig: 0xc90f_daa2_2168_c234_c4c6_628b_80dc_1cd1 };
const HALF_PI: Real = Real { exp: 0, ..PI };
const LOG2_E: Real = Real { neg: false, exp: 0, sig: 0xb8aa_3b29_5c17_f0bb_be87_fed0_691d_3e89 };
const LN_2: Real = Real { neg: false, exp: -1, sig: 0xb172_17f7_d1cf_79ab_c9e3_b398_03f2_f6af };
const ONE: Real = Real { neg: false, exp: 0, sig: 1 << 127 };

/// Pi as the trigonometric instructions know it: 66 bits, in units of 2^-64 (SDM volume 1 section 8.3.8).
const PI_66: u128 = 0x3_243f_6a88_85a3_08d3;

/// `1/n!` in units of 2^-128, from 2 on.
const INVERSE_FACTORIAL: [u128; 37] = {
    let mut table = [0; 37];
    table[2] = 1 << 127;
    let mut n = 3;
    while n < table.len() {
        table[n] = table[n - 1] / n as u128;
        n += 1;
    }
    table
};

/// `1/(2k + 1)` in units of 2^-128, from k = 1 on.
const INVERSE_ODD: [u128; 26] = {
    let mut table = [0; 26];
    let mut k = 1;
    while k < table.len() {
        table[k] = u128::MAX / (2 * k as u128 + 1);
        k += 1;
    }
    table
};

/// `atan(k/16)` in units of 2^-128, by Euler's series `sum of 4^n n!^2 / (2n + 1)! * x^(2n + 1) / (1 + x^2)^(n + 1)`.
const ATAN: [u128; 17] = {
    /// `a / b` in units of 2^-128, for `a < b < 2^64`.
    const fn ratio(a: u128, b: u128) -> u128 {
        let high = (a << 64) / b;
        let low = (((a << 64) % b) << 64) / b;
        high << 64 | low
    }
    let mut table = [0; 17];
    let mut k = 1;
    while k < table.len() as u128 {
        let (square, denominator) = (k * k, 256 + k * k);
        let mut term = ratio(16 * k, denominator);
        let mut n = 0;
        while term != 0 {
            table[k as usize] += term;
            term = mul_high(term, ratio(square * (2 * n + 2), denominator * (2 * n + 3)));
            n += 1;
        }
        k += 1;
    }
    table
};

/// `1 - q/2^128`, strictly below one.
fn one_minus(q: u128) -> Real {
    Real::new(false, -128, q.max(1).wrapping_neg())
}

/// `1 + p/2^128`.
fn one_plus(p: u128) -> Real {
    Real { sig: 1 << 127 | p >> 1 | p & 1, ..ONE }
}

/// Marks a number as inexact.
fn inexact(x: Real) -> Real {
    Real { sig: x.sig | 1, ..x }
}

/// Sine and cosine of a magnitude up to pi/4.
fn sin_cos_reduced(r: Real) -> (Real, Real) {
    let f = r.fraction();
    let z = mul_high(f, f);
    let (mut s, mut c) = (0, 0);
    for k in (1..18).rev() {
        s = INVERSE_FACTORIAL[2 * k + 1] - mul_high(z, s);
        c = INVERSE_FACTORIAL[2 * k] - mul_high(z, c);
    }
    (inexact(r.mul(one_minus(mul_high(z, s)))), inexact(Real { neg: false, ..one_minus(mul_high(z, c)) }))
}

/// Sine and cosine for magnitudes below 2^63, reduced with the 66-bit pi of the hardware.
pub(super) fn sin_cos(x: Real) -> (Real, Real) {
    let neg = x.neg;
    let mut r = Real { neg: false, ..x };
    let mut quadrant = 0;
    if r.exp >= -1 {
        // In units of 2^-65 the argument is an integer, of at most 128 bits, and PI_66 is pi/2.
        let n = r.sig >> (62 - r.exp);
        let rest = n % PI_66;
        quadrant = (n / PI_66) as u32;
        if rest > PI_66 / 2 {
            quadrant = quadrant.wrapping_add(1);
            r = Real::new(true, -65, PI_66 - rest);
        } else {
            r = Real::new(false, -65, rest);
        }
    }
    let (s, c) = sin_cos_reduced(r);
    let (s, c) = match quadrant & 3 {
        0 => (s, c),
        1 => (c, s.negate()),
        2 => (s.negate(), c.negate()),
        _ => (c.negate(), s),
    };
    (Real { neg: s.neg != neg, ..s }, c)
}

/// Tangent for magnitudes below 2^63.
pub(super) fn tan(x: Real) -> Real {
    if x.exp < -40 {
        // The quotient could not tell on which side of such an argument its tangent lies.
        let f = x.fraction();
        return inexact(x.mul(one_plus(mul_high(mul_high(f, f), INVERSE_ODD[1]))));
    }
    let (sin, cos) = sin_cos(x);
    inexact(sin.div(cos))
}

/// `2^x - 1` for magnitudes up to one.
pub(super) fn exp2_minus_1(x: Real) -> Real {
    let t = Real { neg: false, ..x }.mul(LN_2);
    let f = t.fraction();
    let mut p = 0;
    for k in (2..INVERSE_FACTORIAL.len()).rev() {
        p = INVERSE_FACTORIAL[k] + mul_high(f, p);
    }
    let e = t.mul(one_plus(mul_high(f, p)));
    // 2^-x - 1 = -(2^x - 1) / 2^x keeps the precision of small arguments.
    inexact(if x.neg { e.div(ONE.add(e)).negate() } else { e })
}

/// `log2((1 + s) / (1 - s))` for magnitudes of `s` below 0.18.
fn log2_ratio(s: Real) -> Real {
    let f = s.fraction();
    let z = mul_high(f, f);
    let mut p = 0;
    for k in (1..INVERSE_ODD.len()).rev() {
        p = INVERSE_ODD[k] + mul_high(z, p);
    }
    inexact(s.mul(one_plus(mul_high(z, p))).mul(LOG2_E).shifted(1))
}

/// Binary logarithm of a positive number. None is the zero of `log2(1)`; the logarithms of powers of two are exact.
pub(super) fn log2(x: Real) -> Option<Real> {
    // The significand of the square root of two.
    const SQRT_2: u128 = 0xb504_f333_f9de_6484_597d_89b3_754a_be9f;
    let up = i32::from(x.sig > SQRT_2);
    let exp = x.exp + up;
    let m = Real { exp: -up, ..x };
    let whole = (exp != 0).then(|| Real::new(exp < 0, 0, exp.unsigned_abs().into()));
    let low = m.add(ONE.negate());
    if low.is_zero() {
        return whole;
    }
    let log = log2_ratio(low.div(m.add(ONE)));
    Some(match whole {
        Some(whole) => inexact(whole.add(log)),
        None => log,
    })
}

/// `log2(1 + x)` for `x` above -1.
pub(super) fn log2_plus_1(x: Real) -> Option<Real> {
    if x.exp < -2 {
        return Some(log2_ratio(x.div(x.add(ONE.shifted(1)))));
    }
    log2(x.add(ONE))
}

/// Angle of the vector (x, y), in the range of plus or minus pi.
pub(super) fn atan2(y: Real, x: Real) -> Real {
    let steep = (y.exp, y.sig) > (x.exp, x.sig);
    let t = if steep { x.div(y) } else { y.div(x) };
    let a = atan(Real { neg: false, ..t });
    let angle = match (x.neg, steep) {
        (false, false) => a,
        (false, true) => HALF_PI.add(a.negate()),
        (true, true) => HALF_PI.add(a),
        (true, false) => PI.add(a.negate()),
    };
    Real { neg: y.neg, ..inexact(angle) }
}

/// Arc tangent of a number from 0 to 1.
fn atan(t: Real) -> Real {
    let k = if t.exp == 0 { 16 } else { ((t.fraction() >> 123) + 1) >> 1 };
    if k == 0 {
        return atan_series(t);
    }
    let node = Real::new(false, 0, k);
    let base = Real::new(false, -128, ATAN[k as usize]);
    let low = t.shifted(4).add(node.negate());
    if low.is_zero() {
        return base;
    }
    base.add(atan_series(low.div(ONE.shifted(4).add(node.mul(t)))))
}

/// Arc tangent of a magnitude up to 1/32.
fn atan_series(u: Real) -> Real {
    let f = u.fraction();
    let z = mul_high(f, f);
    let mut p = 0;
    for k in (1..14).rev() {
        p = INVERSE_ODD[k] - mul_high(z, p);
    }
    u.mul(one_minus(mul_high(z, p)))
}

/// Multiples of pi/4 for the arc tangents of infinities and zeros.
pub(super) fn quarters_of_pi(neg: bool, count: u32) -> Real {
    Real { neg, ..PI.shifted(-2).mul(Real::new(false, 0, count.into())) }
}
