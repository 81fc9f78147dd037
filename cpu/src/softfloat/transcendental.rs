//! The transcendental instructions of the x87: their operand classes, exceptions and special results.
//!
//! Values come from `elementary.rs` and are rounded once, as rounding control says, to 64 bits; precision control
//! has no effect. Intel gives its own results to within one unit in the last place (SDM volume 1 section 8.3.10), so
//! now and then a part differs from these in the last bit. Sine, cosine and tangent reduce their argument with a 66-bit
//! pi, as Intel documents it; AMD parts do the same.

use super::elementary::{atan2, exp2_minus_1, log2, log2_plus_1, quarters_of_pi, sin_cos, tan};
use super::f80::{Class, F80, X87};
use super::real::Real;
use super::{PE, UE, ZE};

impl X87 {
    /// F2XM1: `2^a - 1` for `a` from -1 to +1. The result for other operands is undefined; they are returned as they
    /// are, but for infinities.
    pub fn f2xm1(&mut self, a: F80) -> F80 {
        self.c1 = false;
        if let Some(nan) = self.nan1(a) {
            return nan;
        }
        match a.class() {
            Class::Zero => return a,
            Class::Infinity if a.is_negative() => return F80::ONE.negated(),
            Class::Infinity => return a,
            Class::Denormal if self.denormal() => return a,
            _ => {}
        }
        let x = a.real();
        match (x.exp, x.neg) {
            (0.., neg) => {
                self.raise(PE);
                if neg && x.exp == 0 && a.mant == F80::ONE.mant { F80 { se: a.se - 1, ..a } } else { a }
            }
            _ => self.finish(exp2_minus_1(x)),
        }
    }

    /// FYL2X: `y * log2(x)`, for x in ST(0) and y in ST(1).
    pub fn fyl2x(&mut self, x: F80, y: F80) -> F80 {
        self.c1 = false;
        if let Some(nan) = self.nan2(x, y) {
            return nan;
        }
        let (cx, cy) = (x.class(), y.class());
        let neg = y.is_negative();
        if x.is_negative() && cx != Class::Zero {
            return self.invalid();
        }
        match (cx, cy) {
            (Class::Zero | Class::Infinity, Class::Zero) => return self.invalid(),
            (Class::Zero, Class::Normal | Class::Denormal) => {
                self.raise(ZE);
                return F80::infinity(!neg);
            }
            _ if self.denormals(x, y) => return x,
            (Class::Zero, _) => return F80::infinity(!neg),
            (Class::Infinity, _) => return F80::infinity(neg),
            _ => {}
        }
        self.times_logarithm(log2(x.real()), y)
    }

    /// FYL2XP1: `y * log2(x + 1)`, for x in ST(0) and y in ST(1). Meant for x of magnitude up to `1 - sqrt(1/2)`.
    pub fn fyl2xp1(&mut self, x: F80, y: F80) -> F80 {
        self.c1 = false;
        if let Some(nan) = self.nan2(x, y) {
            return nan;
        }
        let neg = x.is_negative() != y.is_negative();
        match (x.class(), y.class()) {
            (Class::Zero, Class::Infinity) | (Class::Infinity, Class::Zero) => self.invalid(),
            (Class::Infinity, _) if x.is_negative() => self.invalid(),
            _ if self.denormals(x, y) => x,
            (Class::Zero, _) => F80::zero(neg),
            (Class::Infinity, _) => F80::infinity(neg),
            // From -1 down the instruction is undefined. The sign goes by that of x, as for small operands.
            (_, Class::Zero) if x.is_negative() => F80::zero(neg),
            (_, Class::Infinity) if x.is_negative() => F80::infinity(neg),
            _ if x.is_negative() && x.real().exp >= 0 => {
                self.raise(PE);
                x
            }
            _ => self.times_logarithm(log2_plus_1(x.real()), y),
        }
    }

    /// `y * log`, None being the logarithm of one.
    fn times_logarithm(&mut self, log: Option<Real>, y: F80) -> F80 {
        match (log, y.class()) {
            (None, Class::Infinity) => self.invalid(),
            (None, _) => F80::zero(y.is_negative()),
            (Some(log), Class::Infinity) => F80::infinity(log.neg != y.is_negative()),
            (Some(log), Class::Zero) => F80::zero(log.neg != y.is_negative()),
            (Some(log), _) => {
                // The hardware does not notice that the logarithm of a power of two is exact.
                let result = self.finish(log.mul(y.real()));
                let tiny = matches!(result.class(), Class::Denormal | Class::Zero);
                self.raise(if tiny { UE | PE } else { PE });
                result
            }
        }
    }

    /// FPATAN: the angle of the vector (x, y), for x in ST(0) and y in ST(1).
    pub fn fpatan(&mut self, x: F80, y: F80) -> F80 {
        self.c1 = false;
        if let Some(result) = self.special2(x, y) {
            return result;
        }
        let neg = y.is_negative();
        let quarters = match (x.class(), y.class()) {
            (Class::Infinity, Class::Infinity) => {
                if x.is_negative() {
                    3
                } else {
                    1
                }
            }
            (_, Class::Zero) | (Class::Infinity, _) => {
                if x.is_negative() {
                    4
                } else {
                    return F80::zero(neg);
                }
            }
            (Class::Zero, _) | (_, Class::Infinity) => 2,
            _ => return self.finish(atan2(y.real(), x.real())),
        };
        self.finish(quarters_of_pi(neg, quarters))
    }

    /// FSIN. None sets C2: the operand is too large (2^63 and above) and stays as it is.
    pub fn fsin(&mut self, a: F80) -> Option<F80> {
        self.trigonometric(a, a, |x| sin_cos(x).0)
    }

    /// FCOS. None sets C2.
    pub fn fcos(&mut self, a: F80) -> Option<F80> {
        self.trigonometric(a, F80::ONE, |x| sin_cos(x).1)
    }

    /// FSINCOS: the sine (which replaces the operand) and the cosine (pushed). None sets C2.
    pub fn fsincos(&mut self, a: F80) -> Option<(F80, F80)> {
        // C1 is that of the sine, so it comes last.
        let cos = self.fcos(a)?;
        let sin = self.fsin(a)?;
        Some((sin, cos))
    }

    /// FPTAN: the tangent, which replaces the operand; 1 is then pushed, or a NaN result once more. None sets C2.
    pub fn fptan(&mut self, a: F80) -> Option<F80> {
        self.trigonometric(a, a, tan)
    }

    fn trigonometric(&mut self, a: F80, at_zero: F80, f: impl Fn(Real) -> Real) -> Option<F80> {
        self.c1 = false;
        if let Some(nan) = self.nan1(a) {
            return Some(nan);
        }
        match a.class() {
            Class::Zero => return Some(at_zero),
            Class::Infinity => return Some(self.invalid()),
            Class::Denormal if self.denormal() => return Some(a),
            _ => {}
        }
        let x = a.real();
        if x.exp >= 63 {
            return None;
        }
        Some(self.finish(f(x)))
    }
}
