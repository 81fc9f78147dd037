//! Finite non-zero numbers in a format wide enough for every other one, and rounding from it.
//!
//! All results of the x87 and of SSE pass through `Real::round`. The last bit of the significand is sticky: it is set
//! when any lower bit of the exact result is, which is all that rounding needs to know.

use super::{OE, PE, UE};

/// Rounding mode, numbered as the RC fields of the x87 control word and MXCSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    /// To nearest, ties to even.
    Nearest,
    /// Toward minus infinity.
    Down,
    /// Toward plus infinity.
    Up,
    /// Toward zero.
    Zero,
}

impl Round {
    /// The mode a two-bit RC field stands for. Higher bits are ignored.
    #[inline]
    pub const fn from_bits(bits: u32) -> Self {
        match bits & 3 {
            0 => Self::Nearest,
            1 => Self::Down,
            2 => Self::Up,
            _ => Self::Zero,
        }
    }

    /// Whether a magnitude is to be incremented, given the discarded bits aligned to the top of `rest`.
    #[inline]
    pub(super) fn increments(self, neg: bool, odd: bool, rest: u64) -> bool {
        const HALF: u64 = 1 << 63;
        match self {
            Self::Nearest => rest > HALF || rest == HALF && odd,
            Self::Down => neg && rest != 0,
            Self::Up => !neg && rest != 0,
            Self::Zero => false,
        }
    }
}

/// The integer bit of a significand.
const INTEGER: u128 = 1 << 127;

/// A destination format.
#[derive(Clone, Copy)]
pub(super) struct Target {
    /// Bits of the significand, at most 64.
    pub(super) precision: u32,
    /// Exponent of the smallest normal number.
    pub(super) min: i32,
    /// Exponent of the largest number.
    pub(super) max: i32,
}

/// How to round, from the control register in force.
#[derive(Clone, Copy)]
pub(super) struct Mode {
    pub(super) round: Round,
    /// Exceptions that are not masked. Only OE and UE matter here.
    pub(super) unmasked: u8,
    /// Replace tiny results by zero (MXCSR.FTZ).
    pub(super) flush: bool,
}

/// A rounded result, ready to be packed.
#[derive(Clone, Copy)]
pub(super) struct Rounded {
    /// Biased exponent: 0 for zeros and denormals, the largest value for infinity.
    pub(super) exp: i32,
    /// Significand with the integer bit at the top.
    pub(super) sig: u64,
    /// Exceptions raised.
    pub(super) flags: u8,
    /// The magnitude was rounded up.
    pub(super) up: bool,
}

/// The number `sig * 2^(exp - 127)`, negated if `neg`. The top bit of `sig` is set, unless an addition cancelled to
/// zero.
#[derive(Clone, Copy, Debug)]
pub(super) struct Real {
    pub(super) neg: bool,
    pub(super) exp: i32,
    pub(super) sig: u128,
}

/// Shifts right and keeps the sticky bit. Any count is allowed.
#[inline]
pub(super) fn jam(sig: u128, count: u32) -> u128 {
    match count {
        0 => sig,
        1..128 => sig >> count | u128::from(sig << (128 - count) != 0),
        _ => u128::from(sig != 0),
    }
}

/// The full 256-bit product, high half first.
#[inline]
fn mul_full(a: u128, b: u128) -> (u128, u128) {
    const LOW: u128 = u64::MAX as u128;
    let (a1, a0, b1, b0) = (a >> 64, a & LOW, b >> 64, b & LOW);
    let low = a0 * b0;
    let mid = a1 * b0 + (low >> 64);
    let mid2 = a0 * b1 + (mid & LOW);
    (a1 * b1 + (mid >> 64) + (mid2 >> 64), mid2 << 64 | low & LOW)
}

/// The high half of a 128 by 128 bit product: multiplication of fractions.
#[inline]
pub(super) const fn mul_high(a: u128, b: u128) -> u128 {
    const LOW: u128 = u64::MAX as u128;
    let (a1, a0, b1, b0) = (a >> 64, a & LOW, b >> 64, b & LOW);
    let mid = a1 * b0 + ((a0 * b0) >> 64);
    let mid2 = a0 * b1 + (mid & LOW);
    a1 * b1 + (mid >> 64) + (mid2 >> 64)
}

/// Quotient digit and remainder of `(high : low) / d` in base 2^64, for a divisor with its top bit set and `high < d`.
fn div_digit(high: u128, low: u64, d: u128) -> (u128, u128) {
    let (d1, d0) = (d >> 64, d & u128::from(u64::MAX));
    let mut q = (high / d1).min(u128::from(u64::MAX));
    // The estimate from the leading digit is at most two too large.
    loop {
        let rest = high - q * d1;
        if rest >> 64 != 0 || q * d0 <= (rest << 64 | u128::from(low)) {
            let n = high << 64 | u128::from(low);
            return (q, n.wrapping_sub(q.wrapping_mul(d)));
        }
        q -= 1;
    }
}

impl Real {
    /// A number from a non-zero significand: `sig * 2^exp`.
    #[inline]
    pub(super) fn new(neg: bool, exp: i32, sig: u128) -> Self {
        let shift = sig.leading_zeros();
        Self { neg, exp: exp + 127 - shift as i32, sig: sig << shift }
    }

    #[inline]
    pub(super) fn is_zero(&self) -> bool {
        self.sig == 0
    }

    #[inline]
    pub(super) fn negate(self) -> Self {
        Self { neg: !self.neg, ..self }
    }

    /// The number times `2^count`.
    #[inline]
    pub(super) fn shifted(self, count: i32) -> Self {
        Self { exp: self.exp + count, ..self }
    }

    /// The number as a fraction in units of 2^-128, for magnitudes below one. Truncates.
    #[inline]
    pub(super) fn fraction(self) -> u128 {
        let count = (-1 - self.exp) as u32;
        if count < 128 { self.sig >> count } else { 0 }
    }

    /// Sum. Exact cancellation gives a zero significand, whose sign the caller must choose.
    #[inline]
    pub(super) fn add(self, other: Self) -> Self {
        let (a, b) = if (self.exp, self.sig) >= (other.exp, other.sig) { (self, other) } else { (other, self) };
        let low = jam(b.sig, (a.exp - b.exp) as u32);
        let (sig, carry) = if a.neg == b.neg { a.sig.overflowing_add(low) } else { (a.sig - low, false) };
        if carry {
            return Self { sig: sig >> 1 | sig & 1 | INTEGER, exp: a.exp + 1, ..a };
        }
        if sig == 0 { Self { sig, ..a } } else { Self::new(a.neg, a.exp - 127, sig) }
    }

    /// Product of two numbers with significands of at most 64 bits. Exact.
    #[inline]
    pub(super) fn mul_narrow(self, other: Self) -> Self {
        let sig = (self.sig >> 64) * (other.sig >> 64);
        let shift = sig.leading_zeros();
        Self { neg: self.neg != other.neg, exp: self.exp + other.exp + 1 - shift as i32, sig: sig << shift }
    }

    /// Product, with a sticky last bit.
    pub(super) fn mul(self, other: Self) -> Self {
        let (high, low) = mul_full(self.sig, other.sig);
        let shift = high.leading_zeros();
        let sig =
            if shift == 0 { high | u128::from(low != 0) } else { high << 1 | low >> 127 | u128::from(low << 1 != 0) };
        Self { neg: self.neg != other.neg, exp: self.exp + other.exp + 1 - shift as i32, sig }
    }

    /// Quotient of two numbers with significands of at most 64 bits: 64 bits or more, and a sticky last bit.
    #[inline]
    pub(super) fn div_narrow(self, other: Self) -> Self {
        let d = other.sig >> 64;
        let (q, r) = (self.sig / d, self.sig % d);
        let rest = match (r << 1).cmp(&d) {
            _ if r == 0 => 0,
            std::cmp::Ordering::Less => 1,
            std::cmp::Ordering::Equal => 1 << 62,
            std::cmp::Ordering::Greater => 1 << 62 | 1,
        };
        Self::new(self.neg != other.neg, self.exp - other.exp - 127, q << 63 | rest)
    }

    /// Quotient, with a sticky last bit.
    pub(super) fn div(self, other: Self) -> Self {
        // Halve the dividend when it would give a quotient of 129 bits.
        let (n, low, exp) = if self.sig >= other.sig {
            (self.sig >> 1, (self.sig as u64 & 1) << 63, self.exp - other.exp)
        } else {
            (self.sig, 0, self.exp - other.exp - 1)
        };
        let (q1, r) = div_digit(n, low, other.sig);
        let (q0, r) = div_digit(r, 0, other.sig);
        Self { neg: self.neg != other.neg, exp, sig: q1 << 64 | q0 | u128::from(r != 0) }
    }

    /// Square root of the magnitude of a number with a significand of at most 64 bits.
    pub(super) fn sqrt_narrow(self) -> Self {
        // An even exponent keeps two integer bits, so the root of the 128-bit integer has exactly 64 bits.
        let n = if self.exp & 1 == 0 { self.sig >> 1 } else { self.sig };
        let root = n.isqrt();
        let rest = n - root * root;
        // (root + 1/2)^2 lies between root^2 + root and the next integer, so half is never hit exactly.
        let half = u128::from(rest > root) << 63;
        Self { neg: false, exp: self.exp >> 1, sig: root << 64 | half | u128::from(rest != 0) }
    }

    /// Rounds to `target`, with the response to overflow and underflow that `mode` asks for. An unmasked overflow or
    /// underflow gives the number with its exponent wrapped into the range by 3/4 of the exponent range. Where
    /// that is not enough the result is of no use, as it is for SSE and for stores, which do not write it.
    #[inline]
    pub(super) fn round(self, target: Target, mode: Mode) -> Rounded {
        let (sig, carry, up, inexact) = cut(self.sig, target.precision, self.neg, mode.round);
        let exp = self.exp + i32::from(carry);
        let flags = if inexact { PE } else { 0 };
        if exp < target.min || exp > target.max {
            return self.out_of_range(Rounded { exp, sig, flags, up }, target, mode);
        }
        Rounded { exp: exp - target.min + 1, sig, flags, up }
    }

    /// The rest of [`Self::round`], for the number already rounded as if exponents were unbounded.
    #[cold]
    fn out_of_range(self, unbounded: Rounded, target: Target, mode: Mode) -> Rounded {
        let top = target.max - target.min + 2;
        let wrap = (target.max + 1) / 2 * 3;
        if unbounded.exp > target.max {
            let wrapped = unbounded.exp - target.min + 1 - wrap;
            if mode.unmasked & OE != 0 {
                return Rounded { exp: wrapped, flags: unbounded.flags | OE, ..unbounded };
            }
            let to_infinity = match mode.round {
                Round::Nearest => true,
                Round::Down => self.neg,
                Round::Up => !self.neg,
                Round::Zero => false,
            };
            let flags = OE | PE;
            return if to_infinity {
                Rounded { exp: top, sig: 1 << 63, flags, up: true }
            } else {
                Rounded { exp: top - 1, sig: u64::MAX << (64 - target.precision), flags, up: false }
            };
        }
        if mode.unmasked & UE != 0 {
            let wrapped = unbounded.exp - target.min + 1 + wrap;
            return Rounded { exp: wrapped, flags: unbounded.flags | UE, ..unbounded };
        }
        if mode.flush {
            return Rounded { exp: 0, sig: 0, flags: UE | PE, up: false };
        }
        let denormal = jam(self.sig, target.min.saturating_sub(self.exp) as u32);
        let (sig, _, up, inexact) = cut(denormal, target.precision, self.neg, mode.round);
        let flags = if inexact { UE | PE } else { 0 };
        Rounded { exp: (sig >> 63) as i32, sig, flags, up }
    }
}

/// Cuts a significand to its top `precision` bits: the bits, a carry out of the top, rounded up, inexact.
#[inline]
fn cut(sig: u128, precision: u32, neg: bool, round: Round) -> (u64, bool, bool, bool) {
    let (high, low) = ((sig >> 64) as u64, sig as u64);
    let (kept, rest) =
        if precision == 64 { (high, low) } else { (high >> (64 - precision), high << precision | u64::from(low != 0)) };
    let up = round.increments(neg, kept & 1 != 0, rest);
    let kept = kept.wrapping_add(u64::from(up));
    // A carry leaves only zeros below it: in 64-bit precision the sum wraps to zero, else one bit pops out.
    let carry = up && kept << (64 - precision) == 0;
    let aligned = if carry { 1 << 63 } else { kept << (64 - precision) };
    (aligned, carry, up, rest != 0)
}
