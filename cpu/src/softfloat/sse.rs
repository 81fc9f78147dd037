//! SSE arithmetic on `f32` and `f64` bits, under MXCSR.
//!
//! Each method works on one lane. Packed instructions call it for every lane and [`Sse::finish`] once, before they
//! write the destination. The fast paths ask for less than the exact conditions where that saves a test; whatever they
//! refuse is computed in full by the cold paths, with the same result.

use std::cmp::Ordering;

use super::f80::Class;
use super::real::{Mode, Real, Round, Target};
use super::{DE, IE, PE, ZE};

/// Binary interchange formats of 32 and 64 bits.
pub(super) const BINARY32: Target = Target { precision: 24, min: -126, max: 127 };
pub(super) const BINARY64: Target = Target { precision: 53, min: -1022, max: 1023 };

/// MXCSR: denormals are zeros, tiny results are flushed to zero.
const DAZ: u32 = 1 << 6;
const FTZ: u32 = 1 << 15;
/// MXCSR: the exception masks, rounding control, the sticky precision flag.
const MASKS: u32 = 0x3f << 7;
const RC: u32 = 3 << 13;
const STICKY_PE: u32 = PE as u32;

/// MXCSR and the exceptions of the instruction in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sse {
    /// The register as the guest sees it.
    pub mxcsr: u32,
    raised: u8,
}

impl Default for Sse {
    /// The state after reset: all exceptions masked.
    fn default() -> Self {
        Self::new(0x1f80)
    }
}

/// The comparison of CMPPS and its relatives, numbered as their immediate operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Predicate {
    /// Equal.
    Eq,
    /// Less than; signals quiet NaNs, like the next one and their negations.
    Lt,
    /// Less than or equal.
    Le,
    /// Unordered: at least one operand is a NaN.
    Unordered,
    /// Not equal, or unordered.
    Neq,
    /// Not less than.
    Nlt,
    /// Not less than or equal.
    Nle,
    /// Ordered: no operand is a NaN.
    Ordered,
}

impl Predicate {
    /// The predicate of the low three bits of an immediate operand.
    #[inline]
    pub const fn from_bits(bits: u8) -> Self {
        match bits & 7 {
            0 => Self::Eq,
            1 => Self::Lt,
            2 => Self::Le,
            3 => Self::Unordered,
            4 => Self::Neq,
            5 => Self::Nlt,
            6 => Self::Nle,
            _ => Self::Ordered,
        }
    }

    #[inline]
    const fn signals(self) -> bool {
        matches!(self, Self::Lt | Self::Le | Self::Nlt | Self::Nle)
    }

    #[inline]
    fn holds(self, order: Option<Ordering>) -> bool {
        match self {
            Self::Eq => order == Some(Ordering::Equal),
            Self::Lt => order == Some(Ordering::Less),
            Self::Le => matches!(order, Some(Ordering::Less | Ordering::Equal)),
            Self::Unordered => order.is_none(),
            Self::Neq => order != Some(Ordering::Equal),
            Self::Nlt => order != Some(Ordering::Less),
            Self::Nle => !matches!(order, Some(Ordering::Less | Ordering::Equal)),
            Self::Ordered => order.is_some(),
        }
    }
}

/// The operations with two operands that share their handling of special operands.
#[derive(Clone, Copy)]
enum Op {
    Add,
    Sub,
    Mul,
    Div,
}

/// The fields of a format that is shorter than 64 bits, held in a `u64`.
impl Target {
    #[inline]
    const fn fraction_bits(self) -> u32 {
        self.precision - 1
    }

    /// The exponent of infinities and NaNs.
    #[inline]
    const fn top(self) -> u32 {
        (self.max - self.min + 2) as u32
    }

    #[inline]
    pub(super) const fn sign(self) -> u64 {
        (self.top() as u64 + 1) << self.fraction_bits()
    }

    #[inline]
    pub(super) const fn infinity(self) -> u64 {
        (self.top() as u64) << self.fraction_bits()
    }

    #[inline]
    pub(super) const fn quiet(self) -> u64 {
        1 << (self.fraction_bits() - 1)
    }

    /// The default NaN.
    #[inline]
    pub(super) const fn indefinite(self) -> u64 {
        self.sign() | self.infinity() | self.quiet()
    }

    pub(super) const fn class(self, bits: u64) -> Class {
        let magnitude = bits & (self.sign() - 1);
        match magnitude {
            0 => Class::Zero,
            _ if magnitude >> self.fraction_bits() == 0 => Class::Denormal,
            _ if magnitude < self.infinity() => Class::Normal,
            _ if magnitude == self.infinity() => Class::Infinity,
            _ if magnitude & self.quiet() != 0 => Class::Quiet,
            _ => Class::Signaling,
        }
    }

    pub(super) fn real(self, bits: u64) -> Real {
        let exp = (bits >> self.fraction_bits()) as u32 & self.top();
        let fraction = bits & ((1 << self.fraction_bits()) - 1);
        let sig = fraction | u64::from(exp != 0) << self.fraction_bits();
        let exp = self.min + exp.max(1) as i32 - 1 - self.fraction_bits() as i32;
        Real::new(bits & self.sign() != 0, exp, sig.into())
    }
}

impl Sse {
    /// A register value with no instruction in progress.
    #[inline]
    pub const fn new(mxcsr: u32) -> Self {
        Self { mxcsr, raised: 0 }
    }

    /// Ends an instruction: its exceptions become sticky flags. True if one of them is unmasked: the destination must
    /// not be written, and the caller raises #XM (or #UD, without CR4.OSXMMEXCPT).
    #[inline]
    #[must_use]
    pub fn finish(&mut self) -> bool {
        self.raised != 0 && self.settle()
    }

    #[cold]
    fn settle(&mut self) -> bool {
        const BEFORE: u8 = IE | DE | ZE;
        let unmasked = self.raised & self.unmasked();
        // Exceptions found before computing prevent those of the results, in all lanes.
        self.mxcsr |= u32::from(if unmasked & BEFORE != 0 { self.raised & BEFORE } else { self.raised });
        self.raised = 0;
        unmasked != 0
    }

    #[inline]
    const fn unmasked(&self) -> u8 {
        !(self.mxcsr >> 7) as u8 & 0x3f
    }

    /// Nothing that host arithmetic on normal numbers does can change MXCSR.
    #[inline]
    pub(super) const fn is_settled(&self) -> bool {
        self.mxcsr & (MASKS | RC | STICKY_PE) == MASKS | STICKY_PE
    }

    /// Rounding control.
    #[inline]
    pub(super) const fn round(&self) -> Round {
        Round::from_bits(self.mxcsr >> 13)
    }

    #[inline]
    pub(super) fn raise(&mut self, flags: u8) {
        self.raised |= flags;
    }

    /// Raises invalid operation and gives its masked response.
    pub(super) fn invalid(&mut self, format: Target) -> u64 {
        self.raise(IE);
        format.indefinite()
    }

    /// Applies DAZ to an operand.
    #[inline]
    pub(super) fn operand(&self, format: Target, bits: u64) -> u64 {
        if self.mxcsr & DAZ != 0 && format.class(bits) == Class::Denormal { bits & format.sign() } else { bits }
    }

    /// Raises denormal operand if one is. True when that exception is unmasked, so that the lane must stop here.
    fn denormals(&mut self, format: Target, a: u64, b: u64) -> bool {
        if format.class(a) != Class::Denormal && format.class(b) != Class::Denormal {
            return false;
        }
        self.raise(DE);
        self.unmasked() & DE != 0
    }

    /// The response to a NaN operand, if there is one. The first operand wins, whichever kind it is.
    pub(super) fn nan(&mut self, format: Target, a: u64, b: u64) -> Option<u64> {
        let (ca, cb) = (format.class(a), format.class(b));
        if ca == Class::Signaling || cb == Class::Signaling {
            self.raise(IE);
        }
        match (ca, cb) {
            (Class::Quiet | Class::Signaling, _) => Some(a | format.quiet()),
            (_, Class::Quiet | Class::Signaling) => Some(b | format.quiet()),
            _ => None,
        }
    }

    /// Rounds and packs a number.
    pub(super) fn pack(&mut self, format: Target, value: Real) -> u64 {
        let mode = Mode { round: self.round(), unmasked: self.unmasked(), flush: self.mxcsr & FTZ != 0 };
        let r = value.round(format, mode);
        self.raise(r.flags);
        let sign = if value.neg { format.sign() } else { 0 };
        sign | (r.exp as u64) << format.fraction_bits() | r.sig << 1 >> (65 - format.precision)
    }

    /// Any operation on any operands.
    #[cold]
    #[inline(never)]
    fn arithmetic(&mut self, format: Target, op: Op, a: u64, b: u64) -> u64 {
        let (a, mut b) = (self.operand(format, a), self.operand(format, b));
        if let Some(nan) = self.nan(format, a, b) {
            return nan;
        }
        if matches!(op, Op::Sub) {
            b ^= format.sign();
        }
        let sign = (a ^ b) & format.sign();
        let invalid = match (op, format.class(a), format.class(b)) {
            (Op::Add | Op::Sub, Class::Infinity, Class::Infinity) => sign != 0,
            (Op::Mul, Class::Zero, Class::Infinity) | (Op::Mul, Class::Infinity, Class::Zero) => true,
            (Op::Div, Class::Zero, Class::Zero) | (Op::Div, Class::Infinity, Class::Infinity) => true,
            _ => false,
        };
        if invalid {
            return self.invalid(format);
        }
        // Division by zero has priority over a denormal operand.
        if let (Op::Div, Class::Normal | Class::Denormal, Class::Zero) = (op, format.class(a), format.class(b)) {
            self.raise(ZE);
            return sign | format.infinity();
        }
        if self.denormals(format, a, b) {
            return a;
        }
        let value = match (op, format.class(a), format.class(b)) {
            (Op::Add | Op::Sub, Class::Infinity, _) => return a,
            (Op::Add | Op::Sub, _, Class::Infinity) => return b,
            (Op::Add | Op::Sub, Class::Zero, Class::Zero) if sign == 0 => return a,
            (Op::Add | Op::Sub, Class::Zero, Class::Zero) => return self.cancelled(format),
            (Op::Add | Op::Sub, Class::Zero, _) => format.real(b),
            (Op::Add | Op::Sub, _, Class::Zero) => format.real(a),
            (Op::Add | Op::Sub, _, _) => {
                let sum = format.real(a).add(format.real(b));
                if sum.is_zero() {
                    return self.cancelled(format);
                }
                sum
            }
            (Op::Mul, Class::Infinity, _) | (Op::Mul, _, Class::Infinity) => {
                return sign | format.infinity();
            }
            (Op::Mul, Class::Zero, _) | (Op::Mul, _, Class::Zero) => return sign,
            (Op::Mul, _, _) => format.real(a).mul_narrow(format.real(b)),
            (Op::Div, Class::Infinity, _) => return sign | format.infinity(),
            (Op::Div, Class::Zero, _) | (Op::Div, _, Class::Infinity) => return sign,
            (Op::Div, _, _) => format.real(a).div_narrow(format.real(b)),
        };
        self.pack(format, value)
    }

    /// The zero of `x - x`.
    fn cancelled(&self, format: Target) -> u64 {
        if self.round() == Round::Down { format.sign() } else { 0 }
    }

    #[cold]
    #[inline(never)]
    fn square_root(&mut self, format: Target, a: u64) -> u64 {
        let a = self.operand(format, a);
        if let Some(nan) = self.nan(format, a, a) {
            return nan;
        }
        match format.class(a) {
            Class::Zero => a,
            _ if a & format.sign() != 0 => self.invalid(format),
            Class::Infinity => a,
            _ if self.denormals(format, a, a) => a,
            _ => self.pack(format, format.real(a).sqrt_narrow()),
        }
    }

    /// Compares; a NaN of the kinds in question is invalid. None means unordered.
    #[cold]
    #[inline(never)]
    fn compare(&mut self, format: Target, a: u64, b: u64, signal: bool) -> Option<Ordering> {
        let (a, b) = (self.operand(format, a), self.operand(format, b));
        if self.nan(format, a, b).is_some() {
            if signal {
                self.raise(IE);
            }
            return None;
        }
        self.denormals(format, a, b);
        // In sign and magnitude, both zeros are equal.
        let key = |bits: u64| {
            let magnitude = (bits & (format.sign() - 1)) as i64;
            if bits & format.sign() != 0 { -magnitude } else { magnitude }
        };
        Some(key(a).cmp(&key(b)))
    }
}

/// The methods for one format.
macro_rules! lane {
    (
        $float:ident, $bits:ident, $format:ident, $add:ident, $sub:ident, $mul:ident, $div:ident, $sqrt:ident,
        $min:ident, $max:ident, $cmp:ident, $comis:ident, $ucomis:ident, $order:ident,
        $is_plain:ident, $is_normal:ident
    ) => {
        /// Zero, normal, infinity or NaN: not a denormal.
        #[inline]
        const fn $is_plain(bits: $bits) -> bool {
            const MIN: $bits = $float::MIN_POSITIVE.to_bits();
            (bits << 1 >> 1).wrapping_sub(1) >= MIN - 1
        }

        /// Normal, and not the smallest one, which may be the rounded form of a tiny number.
        #[inline]
        const fn $is_normal(bits: $bits) -> bool {
            const MIN: $bits = $float::MIN_POSITIVE.to_bits();
            const INFINITY: $bits = $float::INFINITY.to_bits();
            (bits << 1 >> 1).wrapping_sub(MIN + 1) < INFINITY - MIN - 1
        }

        impl Sse {
            /// `a + b`.
            #[inline]
            pub fn $add(&mut self, a: $bits, b: $bits) -> $bits {
                let r = ($float::from_bits(a) + $float::from_bits(b)).to_bits();
                if self.is_settled() && $is_plain(a) && $is_plain(b) && ($is_normal(r) || r == 0) {
                    return r;
                }
                self.arithmetic($format, Op::Add, a.into(), b.into()) as $bits
            }

            /// `a - b`.
            #[inline]
            pub fn $sub(&mut self, a: $bits, b: $bits) -> $bits {
                let r = ($float::from_bits(a) - $float::from_bits(b)).to_bits();
                if self.is_settled() && $is_plain(a) && $is_plain(b) && ($is_normal(r) || r == 0) {
                    return r;
                }
                self.arithmetic($format, Op::Sub, a.into(), b.into()) as $bits
            }

            /// `a * b`.
            #[inline]
            pub fn $mul(&mut self, a: $bits, b: $bits) -> $bits {
                let r = ($float::from_bits(a) * $float::from_bits(b)).to_bits();
                let is_zero = r << 1 == 0 && (a << 1 == 0 || b << 1 == 0);
                if self.is_settled() && $is_plain(a) && $is_plain(b) && ($is_normal(r) || is_zero) {
                    return r;
                }
                self.arithmetic($format, Op::Mul, a.into(), b.into()) as $bits
            }

            /// `a / b`.
            #[inline]
            pub fn $div(&mut self, a: $bits, b: $bits) -> $bits {
                let r = ($float::from_bits(a) / $float::from_bits(b)).to_bits();
                let is_zero = r << 1 == 0 && a << 1 == 0;
                if self.is_settled() && $is_plain(a) && $is_plain(b) && ($is_normal(r) || is_zero) {
                    return r;
                }
                self.arithmetic($format, Op::Div, a.into(), b.into()) as $bits
            }

            /// Square root.
            #[inline]
            pub fn $sqrt(&mut self, a: $bits) -> $bits {
                // Normal and positive: the unsigned test is false for negative numbers.
                if self.is_settled() && $is_normal(a) && a < $float::INFINITY.to_bits() {
                    return $float::from_bits(a).sqrt().to_bits();
                }
                self.square_root($format, a.into()) as $bits
            }

            /// MIN: the lesser one; `b` if one is a NaN or both are zeros. Any NaN is invalid.
            #[inline]
            pub fn $min(&mut self, a: $bits, b: $bits) -> $bits {
                let less = self.$order(a, b, true) == Some(Ordering::Less);
                self.operand($format, if less { a } else { b }.into()) as $bits
            }

            /// MAX: the greater one; `b` if one is a NaN or both are zeros. Any NaN is invalid.
            #[inline]
            pub fn $max(&mut self, a: $bits, b: $bits) -> $bits {
                let greater = self.$order(a, b, true) == Some(Ordering::Greater);
                self.operand($format, if greater { a } else { b }.into()) as $bits
            }

            /// CMPPS, CMPPD and the scalar forms: all ones if the predicate holds, else zero.
            #[inline]
            pub fn $cmp(&mut self, predicate: Predicate, a: $bits, b: $bits) -> $bits {
                $bits::from(predicate.holds(self.$order(a, b, predicate.signals()))).wrapping_neg()
            }

            /// COMIS: compares, any NaN is invalid. None means unordered.
            #[inline]
            pub fn $comis(&mut self, a: $bits, b: $bits) -> Option<Ordering> {
                self.$order(a, b, true)
            }

            /// UCOMIS: compares, only signalling NaNs are invalid. None means unordered.
            #[inline]
            pub fn $ucomis(&mut self, a: $bits, b: $bits) -> Option<Ordering> {
                self.$order(a, b, false)
            }

            #[inline]
            fn $order(&mut self, a: $bits, b: $bits, signal: bool) -> Option<Ordering> {
                let order = $float::from_bits(a).partial_cmp(&$float::from_bits(b));
                if order.is_some() && $is_plain(a) && $is_plain(b) {
                    return order;
                }
                self.compare($format, a.into(), b.into(), signal)
            }
        }
    };
}

lane!(
    f32,
    u32,
    BINARY32,
    add32,
    sub32,
    mul32,
    div32,
    sqrt32,
    min32,
    max32,
    cmp32,
    comis32,
    ucomis32,
    order32,
    is_plain32,
    is_normal32
);
lane!(
    f64,
    u64,
    BINARY64,
    add64,
    sub64,
    mul64,
    div64,
    sqrt64,
    min64,
    max64,
    cmp64,
    comis64,
    ucomis64,
    order64,
    is_plain64,
    is_normal64
);
