//! x87 arithmetic: the four operations, square root, remainder, comparison, and taking numbers apart.

use std::cmp::Ordering;

use super::f80::{Class, EXTENDED, F80, X87};
use super::real::{Real, Round};
use super::{IE, OE, PE, UE, ZE};

/// What FPREM or FPREM1 leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remainder {
    /// The remainder, or the partly reduced dividend.
    pub value: F80,
    /// Low three bits of the quotient, for C0 (bit 2), C3 (bit 1) and C1 (bit 0). Zero if the reduction is partial.
    pub quotient: u8,
    /// C2: the reduction is not complete, the guest has to repeat the instruction.
    pub partial: bool,
}

impl X87 {
    /// FADD: `a + b`.
    #[inline]
    pub fn add(&mut self, a: F80, b: F80) -> F80 {
        self.c1 = false;
        if self.are_normal(a, b) { self.add_finite(a, b) } else { self.add_special(a, b) }
    }

    /// FSUB: `a - b`. The caller swaps the operands for FSUBR.
    #[inline]
    pub fn sub(&mut self, a: F80, b: F80) -> F80 {
        self.c1 = false;
        if self.are_normal(a, b) {
            return self.add_finite(a, b.negated());
        }
        // The sign of a NaN operand survives.
        if b.is_nan() { self.add_special(a, b) } else { self.add_special(a, b.negated()) }
    }

    #[inline]
    fn add_finite(&mut self, a: F80, b: F80) -> F80 {
        let sum = a.real().add(b.real());
        if sum.is_zero() { self.cancelled() } else { self.finish_controlled(sum) }
    }

    /// The zero of `x - x`.
    fn cancelled(&self) -> F80 {
        F80::zero(self.round() == Round::Down)
    }

    #[cold]
    fn add_special(&mut self, a: F80, b: F80) -> F80 {
        if let Some(result) = self.special2(a, b) {
            return result;
        }
        match (a.class(), b.class()) {
            (Class::Infinity, Class::Infinity) if a != b => self.invalid(),
            (Class::Infinity, _) => a,
            (_, Class::Infinity) => b,
            (Class::Zero, Class::Zero) if a == b => a,
            (Class::Zero, Class::Zero) => self.cancelled(),
            (Class::Zero, _) => self.finish_controlled(b.real()),
            (_, Class::Zero) => self.finish_controlled(a.real()),
            _ => self.add_finite(a, b),
        }
    }

    /// FMUL: `a * b`.
    #[inline]
    pub fn mul(&mut self, a: F80, b: F80) -> F80 {
        self.c1 = false;
        if self.are_normal(a, b) {
            return self.finish_controlled(a.real().mul_narrow(b.real()));
        }
        self.mul_special(a, b)
    }

    #[cold]
    fn mul_special(&mut self, a: F80, b: F80) -> F80 {
        if let Some(result) = self.special2(a, b) {
            return result;
        }
        let neg = a.is_negative() != b.is_negative();
        match (a.class(), b.class()) {
            (Class::Infinity, Class::Zero) | (Class::Zero, Class::Infinity) => self.invalid(),
            (Class::Infinity, _) | (_, Class::Infinity) => F80::infinity(neg),
            (Class::Zero, _) | (_, Class::Zero) => F80::zero(neg),
            _ => self.finish_controlled(a.real().mul_narrow(b.real())),
        }
    }

    /// FDIV: `a / b`. The caller swaps the operands for FDIVR.
    #[inline]
    pub fn div(&mut self, a: F80, b: F80) -> F80 {
        self.c1 = false;
        if self.are_normal(a, b) {
            return self.finish_controlled(a.real().div_narrow(b.real()));
        }
        self.div_special(a, b)
    }

    #[cold]
    fn div_special(&mut self, a: F80, b: F80) -> F80 {
        let neg = a.is_negative() != b.is_negative();
        // Division by zero has priority over a denormal operand.
        if b.class() == Class::Zero && matches!(a.class(), Class::Normal | Class::Denormal) {
            self.raise(ZE);
            return F80::infinity(neg);
        }
        if let Some(result) = self.special2(a, b) {
            return result;
        }
        match (a.class(), b.class()) {
            (Class::Infinity, Class::Infinity) | (Class::Zero, Class::Zero) => self.invalid(),
            (Class::Infinity, _) => F80::infinity(neg),
            (Class::Zero, _) | (_, Class::Infinity) => F80::zero(neg),
            _ => self.finish_controlled(a.real().div_narrow(b.real())),
        }
    }

    /// FSQRT.
    pub fn sqrt(&mut self, a: F80) -> F80 {
        self.c1 = false;
        if let Some(nan) = self.nan1(a) {
            return nan;
        }
        match a.class() {
            Class::Zero => a,
            _ if a.is_negative() => self.invalid(),
            Class::Infinity => a,
            Class::Denormal if self.denormal() => a,
            _ => self.finish_controlled(a.real().sqrt_narrow()),
        }
    }

    /// FCOM, FCOMI, FTST: compares, any NaN is invalid. None means unordered. C1 is left clear. With IE unmasked and
    /// raised, Intel leaves the other condition codes (or EFLAGS) as they were, AMD sets them to unordered.
    pub fn compare(&mut self, a: F80, b: F80) -> Option<Ordering> {
        self.ordering(a, b, true)
    }

    /// FUCOM, FUCOMI: compares, only signalling NaNs and unsupported operands are invalid. None means unordered.
    pub fn compare_quiet(&mut self, a: F80, b: F80) -> Option<Ordering> {
        self.ordering(a, b, false)
    }

    fn ordering(&mut self, a: F80, b: F80, signal: bool) -> Option<Ordering> {
        self.c1 = false;
        if !self.are_normal(a, b) {
            if self.nan2(a, b).is_some() {
                if signal {
                    self.raise(IE);
                }
                return None;
            }
            self.denormals(a, b);
        }
        // As numbers, which makes the zeros equal, and a pseudo-denormal the normal number with exponent 1.
        let key = |x: F80| {
            let exp = (x.se & 0x7fff).max(u16::from(x.mant >> 63 != 0));
            let magnitude = i128::from(exp) << 64 | i128::from(x.mant);
            if x.is_negative() { -magnitude } else { magnitude }
        };
        Some(key(a).cmp(&key(b)))
    }

    /// FRNDINT: rounds to an integer.
    pub fn round_to_integer(&mut self, a: F80) -> F80 {
        self.c1 = false;
        if let Some(nan) = self.nan1(a) {
            return nan;
        }
        match a.class() {
            Class::Zero | Class::Infinity => return a,
            Class::Denormal if self.denormal() => return a,
            _ => {}
        }
        let (int, inexact, up) = integral(a.real(), self.round());
        self.c1 = up;
        if inexact {
            self.raise(PE);
        }
        match int {
            // Numbers from 2^64 on are integers.
            None => a,
            Some(0) => F80::zero(a.is_negative()),
            Some(int) => {
                let r = Real::new(a.is_negative(), 0, int.into()).round(EXTENDED, self.mode());
                F80::pack(a.is_negative(), r)
            }
        }
    }

    /// FSCALE: `a * 2^trunc(b)`.
    pub fn scale(&mut self, a: F80, b: F80) -> F80 {
        self.c1 = false;
        if let Some(result) = self.special2(a, b) {
            return result;
        }
        match (a.class(), b.class()) {
            (Class::Zero, Class::Infinity) if !b.is_negative() => self.invalid(),
            (Class::Infinity, Class::Infinity) if b.is_negative() => self.invalid(),
            (Class::Zero | Class::Infinity, _) => a,
            (_, Class::Infinity) if b.is_negative() => F80::zero(a.is_negative()),
            (_, Class::Infinity) => F80::infinity(a.is_negative()),
            (_, Class::Zero) => self.finish(a.real()),
            _ => {
                // Any count beyond the exponent range gives the same result as this limit.
                let count = integral(b.real(), Round::Zero).0.unwrap_or(u64::MAX).min(1 << 20) as i32;
                self.scale_finite(a.real().shifted(if b.is_negative() { -count } else { count }))
            }
        }
    }

    /// Finishes FSCALE, the only instruction whose result can be out of range even with its exponent wrapped (SDM
    /// volume 1 sections 8.5.4 and 8.5.5).
    fn scale_finite(&mut self, value: Real) -> F80 {
        const REACH: i32 = 16384 + 24576;
        let unmasked = !self.control as u8;
        if value.exp >= REACH && unmasked & OE != 0 {
            self.raise(OE | PE);
            self.c1 = true;
            F80::infinity(value.neg)
        } else if value.exp < 2 - REACH && unmasked & UE != 0 {
            self.raise(UE | PE);
            F80::zero(value.neg)
        } else {
            self.finish(value)
        }
    }

    /// FXTRACT: the exponent as a number (which goes to the old ST(0)) and the significand (pushed).
    pub fn extract(&mut self, a: F80) -> (F80, F80) {
        self.c1 = false;
        if let Some(nan) = self.nan1(a) {
            return (nan, nan);
        }
        match a.class() {
            Class::Infinity => return (a.absolute(), a),
            Class::Zero => {
                self.raise(ZE);
                return (F80::infinity(true), a);
            }
            Class::Denormal if self.denormal() => return (a, a),
            _ => {}
        }
        let value = a.real();
        let exponent = Self::from_integer(i64::from(value.exp));
        (exponent, F80 { mant: (value.sig >> 64) as u64, se: a.se & 0x8000 | F80::ONE.se })
    }

    /// FPREM: remainder of `a / b` with the quotient truncated.
    ///
    /// When the exponents differ by 64 or more the dividend is only partly reduced. How far is left to the
    /// implementation; the exponent is reduced as Intel parts do it.
    pub fn remainder(&mut self, a: F80, b: F80) -> Remainder {
        self.reduce(a, b, Round::Zero)
    }

    /// FPREM1: remainder of `a / b` with the quotient rounded to nearest even (IEEE 754).
    pub fn remainder_nearest(&mut self, a: F80, b: F80) -> Remainder {
        self.reduce(a, b, Round::Nearest)
    }

    fn reduce(&mut self, a: F80, b: F80, round: Round) -> Remainder {
        self.c1 = false;
        let done = |value| Remainder { value, quotient: 0, partial: false };
        if let Some(nan) = self.nan2(a, b) {
            return done(nan);
        }
        if a.class() == Class::Infinity || b.class() == Class::Zero {
            return done(self.invalid());
        }
        if self.denormals(a, b) {
            return done(a);
        }
        match (a.class(), b.class()) {
            (Class::Zero, _) => return done(a),
            (_, Class::Infinity) => return done(self.finish(a.real())),
            _ => {}
        }
        let (x, y) = (a.real(), b.real());
        let difference = x.exp - y.exp;
        if difference < -1 {
            return done(self.finish(x));
        }
        let partial = difference >= 64;
        let steps = if partial { difference & 0x1f | 0x20 } else { difference };
        // Count in halves of the divisor's last place: then a dividend with the next lower exponent is whole too.
        let (dividend, divisor) = (x.sig >> 64 << (steps + 1), y.sig >> 63);
        let (mut quotient, mut rest, mut neg) = (dividend / divisor, dividend % divisor, x.neg);
        let half = (rest << 1).cmp(&divisor);
        let above = half == Ordering::Greater || half == Ordering::Equal && quotient & 1 != 0;
        if round == Round::Nearest && above && !partial {
            quotient += 1;
            rest = divisor - rest;
            neg = !neg;
        }
        let value = if rest == 0 {
            F80::zero(x.neg)
        } else {
            self.finish(Real::new(neg, y.exp - 64 + difference - steps, rest))
        };
        let quotient = if partial { 0 } else { quotient as u8 & 7 };
        Remainder { value, quotient, partial }
    }
}

/// The magnitude rounded to an integer if it is below 2^64 (else None), whether that changed it, and whether it grew.
pub(super) fn integral(value: Real, round: Round) -> (Option<u64>, bool, bool) {
    if value.exp > 63 {
        return (None, false, false);
    }
    let (int, rest) = match value.exp {
        -1 => (0, value.sig),
        i32::MIN..-1 => (0, 1),
        exp => ((value.sig >> (127 - exp)) as u64, value.sig << (exp + 1)),
    };
    let rest = (rest >> 64) as u64 | u64::from(rest as u64 != 0);
    let up = round.increments(value.neg, int & 1 != 0, rest);
    (int.checked_add(u64::from(up)), rest != 0, up)
}
