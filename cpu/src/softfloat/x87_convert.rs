//! Conversions of the x87: to and from integers, the shorter formats and packed decimal, and the constants.

use super::f80::{Class, Constant, F80, INTEGER, X87};
use super::real::{Round, Target};
use super::sse::{BINARY32, BINARY64};
use super::x87_arith::integral;
use super::{DE, IE, PE};

/// FBSTP's response to an invalid operation.
const BCD_INDEFINITE: [u8; 10] = [0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff];
const BCD_LIMIT: u64 = 1_000_000_000_000_000_000;

#[allow(clippy::wrong_self_convention, reason = "the converted number is the argument, `self` the control word")]
impl X87 {
    /// FILD: an integer of any size, which is always exact. No exceptions.
    pub fn from_integer(value: i64) -> F80 {
        if value == 0 {
            return F80::ZERO;
        }
        let magnitude = value.unsigned_abs();
        let shift = magnitude.leading_zeros();
        F80 { mant: magnitude << shift, se: u16::from(value < 0) << 15 | (16383 + 63 - shift as u16) }
    }

    /// FIST, FISTP m16: rounds as rounding control says. Out of range is invalid and gives 8000h.
    pub fn to_i16(&mut self, a: F80) -> i16 {
        self.to_integer(a, self.round(), i16::MIN.into()) as i16
    }

    /// FIST, FISTP m32.
    pub fn to_i32(&mut self, a: F80) -> i32 {
        self.to_integer(a, self.round(), i32::MIN.into()) as i32
    }

    /// FISTP m64.
    pub fn to_i64(&mut self, a: F80) -> i64 {
        self.to_integer(a, self.round(), i64::MIN)
    }

    /// FISTTP m16: truncates.
    pub fn to_i16_truncated(&mut self, a: F80) -> i16 {
        self.to_integer(a, Round::Zero, i16::MIN.into()) as i16
    }

    /// FISTTP m32.
    pub fn to_i32_truncated(&mut self, a: F80) -> i32 {
        self.to_integer(a, Round::Zero, i32::MIN.into()) as i32
    }

    /// FISTTP m64.
    pub fn to_i64_truncated(&mut self, a: F80) -> i64 {
        self.to_integer(a, Round::Zero, i64::MIN)
    }

    /// The integer, or `min`, the smallest number and indefinite value of the type.
    fn to_integer(&mut self, a: F80, round: Round, min: i64) -> i64 {
        let limit = min.unsigned_abs() - u64::from(!a.is_negative());
        match self.magnitude(a, round, limit) {
            Some(int) if a.is_negative() => (int as i64).wrapping_neg(),
            Some(int) => int as i64,
            None => min,
        }
    }

    /// The magnitude rounded to an integer, or None and IE if it is above `limit`.
    fn magnitude(&mut self, a: F80, round: Round, limit: u64) -> Option<u64> {
        self.c1 = false;
        let (int, inexact, up) = match a.class() {
            Class::Zero => return Some(0),
            Class::Normal | Class::Denormal => integral(a.real(), round),
            _ => (None, false, false),
        };
        let Some(int) = int.filter(|&int| int <= limit) else {
            self.raise(IE);
            return None;
        };
        if inexact {
            self.raise(PE);
        }
        self.c1 = up;
        Some(int)
    }

    /// FLD m32: the bits of an `f32`. Signalling NaNs and denormals raise IE and DE. A denormal is loaded even if DE is
    /// not masked, so that only [`X87::load_faulted`] prevents the push.
    pub fn from_f32(&mut self, bits: u32) -> F80 {
        let value = self.operand_f32(bits);
        self.load(value)
    }

    /// FLD m64: the bits of an `f64`.
    pub fn from_f64(&mut self, bits: u64) -> F80 {
        let value = self.operand_f64(bits);
        self.load(value)
    }

    fn load(&mut self, value: F80) -> F80 {
        self.c1 = false;
        if self.denormal_source {
            self.denormal_source = false;
            self.raise(DE);
        }
        self.nan1(value).unwrap_or(value)
    }

    /// The memory operand of FADD m32 and its relatives, for the one operation that follows. That finds the exceptions,
    /// in their order of priority: a signalling NaN stays one here, and that the number was a denormal is remembered.
    pub fn operand_f32(&mut self, bits: u32) -> F80 {
        self.widen(bits >> 31 != 0, bits >> 23 & 0xff, u64::from(bits) << 41 >> 1, BINARY32)
    }

    /// The memory operand of FADD m64 and its relatives, as [`Self::operand_f32`].
    pub fn operand_f64(&mut self, bits: u64) -> F80 {
        self.widen(bits >> 63 != 0, (bits >> 52) as u32 & 0x7ff, bits << 12 >> 1, BINARY64)
    }

    /// A shorter number from its biased exponent and its fraction, aligned below the integer bit.
    fn widen(&mut self, neg: bool, exp: u32, fraction: u64, format: Target) -> F80 {
        let top = (format.max - format.min + 2) as u32;
        let sign = u16::from(neg) << 15;
        self.denormal_source = exp == 0 && fraction != 0;
        match exp {
            0 if fraction == 0 => F80::zero(neg),
            0 => {
                // The exponent of the smallest normal number, and no integer bit.
                let shift = fraction.leading_zeros();
                F80 { mant: fraction << shift, se: sign | (format.min + 16383 - shift as i32) as u16 }
            }
            _ if exp == top => F80 { mant: INTEGER | fraction, se: sign | 0x7fff },
            _ => F80 { mant: INTEGER | fraction, se: sign | (format.min + exp as i32 - 1 + 16383) as u16 },
        }
    }

    /// FST, FSTP m32: the bits of the nearest `f32`. See [`X87::store_faulted`].
    pub fn to_f32(&mut self, a: F80) -> u32 {
        let (neg, exp, sig) = self.narrow(a, BINARY32);
        u32::from(neg) << 31 | exp << 23 | (sig << 1 >> 41) as u32
    }

    /// FST, FSTP m64: the bits of the nearest `f64`. See [`X87::store_faulted`].
    pub fn to_f64(&mut self, a: F80) -> u64 {
        let (neg, exp, sig) = self.narrow(a, BINARY64);
        u64::from(neg) << 63 | u64::from(exp) << 52 | sig << 1 >> 12
    }

    /// The sign, the biased exponent and the significand (integer bit on top) in a shorter format.
    fn narrow(&mut self, a: F80, format: Target) -> (bool, u32, u64) {
        self.c1 = false;
        let top = (format.max - format.min + 2) as u32;
        if let Some(nan) = self.nan1(a) {
            return (nan.is_negative(), top, nan.mant);
        }
        let neg = a.is_negative();
        match a.class() {
            Class::Zero => (neg, 0, 0),
            Class::Infinity => (neg, top, INTEGER),
            _ => {
                let r = a.real().round(format, self.mode());
                self.raise(r.flags);
                self.c1 = r.up;
                if self.store_faulted() {
                    // Nothing is stored, so nothing was rounded (SDM volume 1 section 8.5.6).
                    self.flags &= !PE;
                    self.c1 = false;
                }
                (neg, r.exp as u32, r.sig)
            }
        }
    }

    /// FBLD: eighteen decimal digits, two a byte, and a sign bit on top. No exceptions; digits above nine count as they
    /// are.
    pub fn from_bcd(bytes: [u8; 10]) -> F80 {
        let [digits @ .., sign] = bytes;
        let value = digits.iter().rev().fold(0, |sum: i64, &b| sum * 100 + i64::from(b >> 4) * 10 + i64::from(b & 15));
        let value = Self::from_integer(value);
        if sign & 0x80 != 0 { value.negated() } else { value }
    }

    /// FBSTP: rounds to an integer and stores it as packed decimal. 10^18 and above is invalid.
    pub fn to_bcd(&mut self, a: F80) -> [u8; 10] {
        let Some(mut rest) = self.magnitude(a, self.round(), BCD_LIMIT - 1) else {
            return BCD_INDEFINITE;
        };
        let mut bytes = [0; 10];
        for byte in &mut bytes[..9] {
            *byte = ((rest / 10 % 10) << 4 | (rest % 10)) as u8;
            rest /= 100;
        }
        bytes[9] = u8::from(a.is_negative()) << 7;
        bytes
    }

    /// FLD1, FLDL2T, FLDL2E, FLDPI, FLDLG2, FLDLN2, FLDZ: the constant rounded as rounding control says.
    pub fn constant(&self, constant: Constant) -> F80 {
        // Truncated significands; all continue with other bits than zeros, and `nearest_up` tells the next one.
        let (mant, se, nearest_up) = match constant {
            Constant::One => return F80::ONE,
            Constant::Zero => return F80::ZERO,
            Constant::Log2Of10 => (0xd49a_784b_cd1b_8afe, 0x4000, false),
            Constant::Log2OfE => (0xb8aa_3b29_5c17_f0bb, 0x3fff, true),
            Constant::Pi => (0xc90f_daa2_2168_c234, 0x4000, true),
            Constant::Log10Of2 => (0x9a20_9a84_fbcf_f798, 0x3ffd, true),
            Constant::LnOf2 => (0xb172_17f7_d1cf_79ab, 0x3ffe, true),
        };
        let up = match self.round() {
            Round::Nearest => nearest_up,
            Round::Up => true,
            Round::Down | Round::Zero => false,
        };
        F80 { mant: mant + u64::from(up), se }
    }
}
