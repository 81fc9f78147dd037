//! SSE conversions between formats and integers, rounding to integral values, and the reciprocal approximations.

use super::f80::Class;
use super::real::{Real, Round, Target};
use super::sse::{BINARY32, BINARY64, Sse};
use super::x87_arith::integral;
use super::{DE, PE};

#[allow(clippy::wrong_self_convention, reason = "the converted number is the argument, `self` is MXCSR")]
impl Sse {
    /// CVTSS2SD, CVTPS2PD.
    #[inline]
    pub fn f32_to_f64(&mut self, a: u32) -> u64 {
        let x = f32::from_bits(a);
        if x.is_normal() || x == 0.0 {
            return f64::from(x).to_bits();
        }
        self.convert(BINARY32, BINARY64, a.into())
    }

    /// CVTSD2SS, CVTPD2PS.
    #[inline]
    pub fn f64_to_f32(&mut self, a: u64) -> u32 {
        let r = f64::from_bits(a) as f32;
        if self.is_settled() && r.is_normal() && r.abs() > f32::MIN_POSITIVE || a << 1 == 0 {
            return r.to_bits();
        }
        self.convert(BINARY64, BINARY32, a) as u32
    }

    #[cold]
    fn convert(&mut self, from: Target, to: Target, a: u64) -> u64 {
        let a = self.operand(from, a);
        let sign = if a & from.sign() != 0 { to.sign() } else { 0 };
        if let Some(nan) = self.nan(from, a, a) {
            let payload = nan & (from.quiet() - 1);
            let payload = if to.precision > from.precision {
                payload << (to.precision - from.precision)
            } else {
                payload >> (from.precision - to.precision)
            };
            return sign | to.infinity() | to.quiet() | payload;
        }
        match from.class(a) {
            Class::Zero => sign,
            Class::Infinity => sign | to.infinity(),
            class => {
                if class == Class::Denormal {
                    self.raise(DE);
                }
                self.pack(to, from.real(a))
            }
        }
    }

    /// CVTSI2SS, CVTDQ2PS.
    #[inline]
    pub fn i32_to_f32(&mut self, a: i32) -> u32 {
        self.i64_to_f32(a.into())
    }

    /// CVTSI2SS with a 64-bit operand.
    #[inline]
    pub fn i64_to_f32(&mut self, a: i64) -> u32 {
        if self.is_settled() { (a as f32).to_bits() } else { self.integer(BINARY32, a) as u32 }
    }

    /// CVTSI2SD, CVTDQ2PD: always exact.
    #[inline]
    pub fn i32_to_f64(a: i32) -> u64 {
        f64::from(a).to_bits()
    }

    /// CVTSI2SD with a 64-bit operand.
    #[inline]
    pub fn i64_to_f64(&mut self, a: i64) -> u64 {
        if self.is_settled() { (a as f64).to_bits() } else { self.integer(BINARY64, a) }
    }

    #[cold]
    fn integer(&mut self, format: Target, a: i64) -> u64 {
        if a == 0 { 0 } else { self.pack(format, Real::new(a < 0, 0, a.unsigned_abs().into())) }
    }

    /// CVTSS2SI, CVTPS2DQ: rounds as MXCSR says. Out of range is invalid and gives 8000_0000h.
    #[inline]
    pub fn f32_to_i32(&mut self, a: u32) -> i32 {
        match self.rounded(f32::from_bits(a).into()).map(i32::try_from) {
            Some(Ok(int)) => int,
            _ => self.to_integer(BINARY32, a.into(), self.round(), i32::MIN.into()) as i32,
        }
    }

    /// CVTSS2SI with a 64-bit destination.
    #[inline]
    pub fn f32_to_i64(&mut self, a: u32) -> i64 {
        let fast = self.rounded(f32::from_bits(a).into());
        fast.unwrap_or_else(|| self.to_integer(BINARY32, a.into(), self.round(), i64::MIN))
    }

    /// CVTTSS2SI, CVTTPS2DQ: truncates.
    #[inline]
    pub fn f32_to_i32_truncated(&mut self, a: u32) -> i32 {
        match self.truncated(f32::from_bits(a).into()).map(i32::try_from) {
            Some(Ok(int)) => int,
            _ => self.to_integer(BINARY32, a.into(), Round::Zero, i32::MIN.into()) as i32,
        }
    }

    /// CVTTSS2SI with a 64-bit destination.
    #[inline]
    pub fn f32_to_i64_truncated(&mut self, a: u32) -> i64 {
        let fast = self.truncated(f32::from_bits(a).into());
        fast.unwrap_or_else(|| self.to_integer(BINARY32, a.into(), Round::Zero, i64::MIN))
    }

    /// CVTSD2SI, CVTPD2DQ.
    #[inline]
    pub fn f64_to_i32(&mut self, a: u64) -> i32 {
        match self.rounded(f64::from_bits(a)).map(i32::try_from) {
            Some(Ok(int)) => int,
            _ => self.to_integer(BINARY64, a, self.round(), i32::MIN.into()) as i32,
        }
    }

    /// CVTSD2SI with a 64-bit destination.
    #[inline]
    pub fn f64_to_i64(&mut self, a: u64) -> i64 {
        let fast = self.rounded(f64::from_bits(a));
        fast.unwrap_or_else(|| self.to_integer(BINARY64, a, self.round(), i64::MIN))
    }

    /// CVTTSD2SI, CVTTPD2DQ.
    #[inline]
    pub fn f64_to_i32_truncated(&mut self, a: u64) -> i32 {
        match self.truncated(f64::from_bits(a)).map(i32::try_from) {
            Some(Ok(int)) => int,
            _ => self.to_integer(BINARY64, a, Round::Zero, i32::MIN.into()) as i32,
        }
    }

    /// CVTTSD2SI with a 64-bit destination.
    #[inline]
    pub fn f64_to_i64_truncated(&mut self, a: u64) -> i64 {
        let fast = self.truncated(f64::from_bits(a));
        fast.unwrap_or_else(|| self.to_integer(BINARY64, a, Round::Zero, i64::MIN))
    }

    /// The fast path of the rounding conversions.
    #[inline]
    fn rounded(&self, x: f64) -> Option<i64> {
        self.whole(x, x.round_ties_even())
    }

    /// The fast path of the truncating conversions.
    #[inline]
    fn truncated(&self, x: f64) -> Option<i64> {
        self.whole(x, x.trunc())
    }

    /// The integer `int` if it is within range and if it is `x` itself, or PE is no news.
    #[inline]
    fn whole(&self, x: f64, int: f64) -> Option<i64> {
        const LIMIT: f64 = (1_u64 << 63) as f64;
        (int.abs() < LIMIT && (int == x || self.is_settled())).then_some(int as i64)
    }

    /// The integer, or `min`, the smallest number and indefinite value of the type.
    #[cold]
    fn to_integer(&mut self, format: Target, a: u64, round: Round, min: i64) -> i64 {
        let a = self.operand(format, a);
        let neg = a & format.sign() != 0;
        let (int, inexact, _) = match format.class(a) {
            Class::Zero => return 0,
            Class::Normal | Class::Denormal => integral(format.real(a), round),
            _ => (None, false, false),
        };
        match int {
            Some(int) if int <= min.unsigned_abs() - u64::from(!neg) => {
                if inexact {
                    self.raise(PE);
                }
                if neg { (int as i64).wrapping_neg() } else { int as i64 }
            }
            _ => {
                self.invalid(format);
                min
            }
        }
    }

    /// ROUNDSS, ROUNDPS: rounds to an integral value. `imm` bits 1-0 give the mode unless bit 2 selects that of MXCSR;
    /// bit 3 suppresses PE.
    pub fn round32(&mut self, a: u32, imm: u8) -> u32 {
        self.round_integral(BINARY32, a.into(), imm) as u32
    }

    /// ROUNDSD, ROUNDPD.
    pub fn round64(&mut self, a: u64, imm: u8) -> u64 {
        self.round_integral(BINARY64, a, imm)
    }

    fn round_integral(&mut self, format: Target, a: u64, imm: u8) -> u64 {
        let a = self.operand(format, a);
        if let Some(nan) = self.nan(format, a, a) {
            return nan;
        }
        if matches!(format.class(a), Class::Zero | Class::Infinity) {
            return a;
        }
        let round = if imm & 4 != 0 { self.round() } else { Round::from_bits(imm.into()) };
        let (int, inexact, _) = integral(format.real(a), round);
        if inexact && imm & 8 == 0 {
            self.raise(PE);
        }
        match int {
            None => a,
            Some(0) => a & format.sign(),
            // An integer below 2^64 that came from this format fits it.
            Some(int) => self.pack(format, Real::new(a & format.sign() != 0, 0, int.into())),
        }
    }

    /// RCPSS, RCPPS: the reciprocal, rounded to 12 bits. Denormals count as zeros. No exceptions.
    pub fn reciprocal32(a: u32) -> u32 {
        /// From here on results are flushed to zero (SDM volume 2, RCPPS).
        const TINY: u32 = 0x7e7f_e800;
        if (TINY..=f32::INFINITY.to_bits()).contains(&(a & !SIGN)) {
            return a & SIGN;
        }
        approximate(a, |x| 1.0 / x)
    }

    /// RSQRTSS, RSQRTPS: the reciprocal of the square root, rounded to 12 bits. Denormals count as zeros. No
    /// exceptions.
    pub fn reciprocal_sqrt32(a: u32) -> u32 {
        approximate(a, |x| 1.0 / x.sqrt())
    }
}

const SIGN: u32 = 1 << 31;

/// A function whose results are never denormal, of a number with denormals taken as zeros, rounded to 12 bits.
fn approximate(a: u32, f: impl Fn(f64) -> f64) -> u32 {
    const DROPPED: u32 = 24 - 12;
    let a = match BINARY32.class(a.into()) {
        Class::Denormal => a & SIGN,
        Class::Quiet | Class::Signaling => return a | BINARY32.quiet() as u32,
        _ => a,
    };
    let r = f(f64::from(f32::from_bits(a)));
    if r.is_nan() {
        return BINARY32.indefinite() as u32;
    }
    ((r as f32).to_bits() + (1 << (DROPPED - 1))) & !((1 << DROPPED) - 1)
}
