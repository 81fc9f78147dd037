//! The 80-bit double extended format and the x87 control state during one instruction.
//!
//! A number has a sign, a 15-bit exponent and a 64-bit significand whose integer bit is explicit. That leaves patterns
//! no operation produces: a pseudo-denormal (exponent 0, integer bit set) is still read as a number, while unnormals,
//! pseudo-infinities and pseudo-NaNs (other exponents, integer bit clear) have been invalid operands since the 80387.

use super::real::{Mode, Real, Round, Rounded, Target};
use super::{DE, IE, OE, UE, ZE};

/// A number of the x87 register format. Any bit pattern can be loaded and stored (FLD and FSTP m80).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct F80 {
    /// Significand, the explicit integer bit on top.
    pub mant: u64,
    /// Sign in bit 15, exponent biased by 16383 below it.
    pub se: u16,
}

/// What a bit pattern stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Plus or minus zero.
    Zero,
    /// Denormal or pseudo-denormal.
    Denormal,
    /// Normal number.
    Normal,
    /// Plus or minus infinity.
    Infinity,
    /// Quiet NaN.
    Quiet,
    /// Signalling NaN.
    Signaling,
    /// Unnormal, pseudo-infinity or pseudo-NaN.
    Unsupported,
}

/// The constants that FLD1 and its relatives load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Constant {
    /// FLD1: 1.
    One,
    /// FLDL2T: the binary logarithm of 10.
    Log2Of10,
    /// FLDL2E: the binary logarithm of e.
    Log2OfE,
    /// FLDPI: pi.
    Pi,
    /// FLDLG2: the decimal logarithm of 2.
    Log10Of2,
    /// FLDLN2: the natural logarithm of 2.
    LnOf2,
    /// FLDZ: plus zero.
    Zero,
}

/// Integer bit of a significand.
pub(super) const INTEGER: u64 = 1 << 63;
/// The bit that tells a quiet NaN from a signalling one.
pub(super) const QUIET: u64 = 1 << 62;
const SIGN: u16 = 1 << 15;
const BIAS: i32 = 16383;
const MAX_EXP: u16 = 0x7fff;

/// The format with its full 64-bit significand.
pub(super) const EXTENDED: Target = Target { precision: 64, min: 1 - BIAS, max: BIAS };

impl F80 {
    /// The default NaN, the masked response to an invalid operation.
    pub const INDEFINITE: Self = Self { mant: INTEGER | QUIET, se: SIGN | MAX_EXP };
    /// Plus zero.
    pub const ZERO: Self = Self { mant: 0, se: 0 };
    /// One.
    pub const ONE: Self = Self { mant: INTEGER, se: BIAS as u16 };

    /// Zero with a sign.
    #[inline]
    pub(super) const fn zero(neg: bool) -> Self {
        Self { mant: 0, se: (neg as u16) << 15 }
    }

    /// Infinity with a sign.
    #[inline]
    pub(super) const fn infinity(neg: bool) -> Self {
        Self { mant: INTEGER, se: (neg as u16) << 15 | MAX_EXP }
    }

    /// The ten bytes in memory order.
    pub fn to_bytes(self) -> [u8; 10] {
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&self.mant.to_le_bytes());
        bytes[8..].copy_from_slice(&self.se.to_le_bytes());
        bytes
    }

    /// From ten bytes in memory order.
    pub fn from_bytes(bytes: [u8; 10]) -> Self {
        let [m @ .., s0, s1] = bytes;
        Self { mant: u64::from_le_bytes(m), se: u16::from_le_bytes([s0, s1]) }
    }

    /// The sign bit.
    #[inline]
    pub const fn is_negative(self) -> bool {
        self.se & SIGN != 0
    }

    /// FCHS: the number with its sign inverted. Raises nothing for any pattern.
    #[inline]
    pub const fn negated(self) -> Self {
        Self { se: self.se ^ SIGN, ..self }
    }

    /// FABS: the number with its sign cleared. Raises nothing for any pattern.
    #[inline]
    pub const fn absolute(self) -> Self {
        Self { se: self.se & !SIGN, ..self }
    }

    /// What the pattern stands for.
    #[inline]
    pub const fn class(self) -> Class {
        match self.se & MAX_EXP {
            0 if self.mant == 0 => Class::Zero,
            0 => Class::Denormal,
            _ if self.mant & INTEGER == 0 => Class::Unsupported,
            MAX_EXP if self.mant == INTEGER => Class::Infinity,
            MAX_EXP if self.mant & QUIET != 0 => Class::Quiet,
            MAX_EXP => Class::Signaling,
            _ => Class::Normal,
        }
    }

    /// FXAM of a register that is not empty: the condition codes C3, C2, C1 (sign) and C0 at their places in the
    /// status word.
    pub const fn examine(self) -> u16 {
        const C0: u16 = 1 << 8;
        const C2: u16 = 1 << 10;
        const C3: u16 = 1 << 14;
        let class = match self.class() {
            Class::Unsupported => 0,
            Class::Quiet | Class::Signaling => C0,
            Class::Normal => C2,
            Class::Infinity => C2 | C0,
            Class::Zero => C3,
            Class::Denormal => C3 | C2,
        };
        class | (self.is_negative() as u16) << 9
    }

    #[inline]
    pub(super) const fn is_normal(self) -> bool {
        (self.se & MAX_EXP).wrapping_sub(1) < MAX_EXP - 1 && self.mant & INTEGER != 0
    }

    #[inline]
    pub(super) const fn is_nan(self) -> bool {
        matches!(self.class(), Class::Quiet | Class::Signaling)
    }

    /// A NaN made quiet.
    #[inline]
    pub(super) const fn quieted(self) -> Self {
        Self { mant: self.mant | QUIET, ..self }
    }

    /// The value of a normal or denormal number.
    #[inline]
    pub(super) fn real(self) -> Real {
        let exp = i32::from(self.se & MAX_EXP).max(1) - BIAS;
        let shift = self.mant.leading_zeros();
        Real { neg: self.is_negative(), exp: exp - shift as i32, sig: u128::from(self.mant << shift) << 64 }
    }

    /// Packs a rounded result.
    #[inline]
    pub(super) fn pack(neg: bool, r: Rounded) -> Self {
        Self { mant: r.sig, se: u16::from(neg) << 15 | r.exp as u16 }
    }
}

/// The x87 control word in force and the status an operation leaves.
///
/// The methods accumulate into `flags`; `c1` is set anew by each operation that rounds. When [`Self::faulted`] says so
/// the result is meaningless and must not be written: the x87 then leaves its operands and the stack as they were.
/// Unmasked OE, UE and PE do not stop the write to a register, whose result has its exponent wrapped, but OE and UE
/// stop a store to memory: see [`Self::store_faulted`].
#[derive(Clone, Copy, Debug)]
pub struct X87 {
    /// Control word: exception masks in bits 5-0, precision control in 9-8, rounding control in 11-10.
    pub control: u16,
    /// Exceptions raised, in the layout of the status word.
    pub flags: u8,
    /// Condition code C1: the last result was rounded up in magnitude.
    pub c1: bool,
    /// An operand came from memory, where it was a denormal: see [`Self::operand_f32`].
    pub(super) denormal_source: bool,
}

impl X87 {
    /// No exceptions yet, with the given control word.
    #[inline]
    pub const fn new(control: u16) -> Self {
        Self { control, flags: 0, c1: false, denormal_source: false }
    }

    /// The exceptions raised that the control word does not mask. Non-zero means that ES is to be set.
    #[inline]
    pub const fn unmasked(&self) -> u8 {
        self.flags & !self.control as u8 & 0x3f
    }

    /// An unmasked exception was found before computing: do not write a register result, do not pop.
    #[inline]
    pub const fn faulted(&self) -> bool {
        self.unmasked() & (IE | DE | ZE) != 0
    }

    /// An unmasked exception forbids writing the result to memory: as [`Self::faulted`], and OE and UE as well.
    #[inline]
    pub const fn store_faulted(&self) -> bool {
        self.unmasked() & (IE | DE | ZE | OE | UE) != 0
    }

    /// An unmasked exception forbids the push of a load from memory: unlike other operations, loads only stop for IE.
    #[inline]
    pub const fn load_faulted(&self) -> bool {
        self.unmasked() & IE != 0
    }

    /// Rounding control.
    #[inline]
    pub const fn round(&self) -> Round {
        Round::from_bits(self.control as u32 >> 10)
    }

    #[inline]
    pub(super) const fn mode(&self) -> Mode {
        Mode { round: self.round(), unmasked: !self.control as u8, flush: false }
    }

    /// The destination format that precision control selects. The reserved setting 1 acts as 64 bits.
    #[inline]
    const fn controlled(&self) -> Target {
        let precision = match self.control >> 8 & 3 {
            0 => 24,
            2 => 53,
            _ => 64,
        };
        Target { precision, ..EXTENDED }
    }

    /// Raises exceptions.
    #[inline]
    pub(super) fn raise(&mut self, flags: u8) {
        self.flags |= flags;
    }

    /// Raises invalid operation and gives its masked response.
    #[cold]
    pub(super) fn invalid(&mut self) -> F80 {
        self.flags |= IE;
        F80::INDEFINITE
    }

    /// Raises denormal operand. True when that exception is unmasked, so that the operation must stop here.
    #[inline]
    pub(super) fn denormal(&mut self) -> bool {
        self.flags |= DE;
        self.control & u16::from(DE) == 0
    }

    /// Rounds to the precision that precision control selects: add, subtract, multiply, divide, square root.
    #[inline]
    pub(super) fn finish_controlled(&mut self, value: Real) -> F80 {
        self.finish_to(value, self.controlled())
    }

    /// Rounds to 64 bits whatever precision control says: all other operations.
    #[inline]
    pub(super) fn finish(&mut self, value: Real) -> F80 {
        self.finish_to(value, EXTENDED)
    }

    #[inline]
    fn finish_to(&mut self, value: Real, target: Target) -> F80 {
        let r = value.round(target, self.mode());
        self.flags |= r.flags;
        self.c1 = r.up;
        F80::pack(value.neg, r)
    }

    /// The response to a NaN or unsupported operand, if there is one, for operations with one operand.
    #[inline]
    pub(super) fn nan1(&mut self, a: F80) -> Option<F80> {
        if a.is_normal() {
            return None;
        }
        match a.class() {
            Class::Quiet => Some(a),
            Class::Signaling => {
                self.raise(IE);
                Some(a.quieted())
            }
            Class::Unsupported => Some(self.invalid()),
            _ => None,
        }
    }

    /// The response to NaN or unsupported operands, if there is one, for operations with two: an unsupported operand is
    /// invalid; a quiet NaN wins over a signalling one; of two alike the larger significand wins, then the positive
    /// one (SDM volume 1 table 4-7).
    pub(super) fn nan2(&mut self, a: F80, b: F80) -> Option<F80> {
        use Class::{Quiet, Signaling, Unsupported};
        let (ca, cb) = (a.class(), b.class());
        if ca == Unsupported || cb == Unsupported {
            return Some(self.invalid());
        }
        if ca == Signaling || cb == Signaling {
            self.raise(IE);
        }
        let chosen = match (ca, cb) {
            (Quiet, Signaling) => a,
            (Signaling, Quiet) => b,
            (Quiet | Signaling, Quiet | Signaling) => {
                if (a.mant, !a.is_negative()) >= (b.mant, !b.is_negative()) {
                    a
                } else {
                    b
                }
            }
            (Quiet | Signaling, _) => a,
            (_, Quiet | Signaling) => b,
            _ => return None,
        };
        Some(chosen.quieted())
    }

    /// Starts an operation on two operands. Some(result) if it ends here: NaN, unsupported, or unmasked denormal.
    pub(super) fn special2(&mut self, a: F80, b: F80) -> Option<F80> {
        if let Some(nan) = self.nan2(a, b) {
            return Some(nan);
        }
        self.denormals(a, b).then_some(a)
    }

    /// As [`Self::denormal`], if one of two operands is.
    pub(super) fn denormals(&mut self, a: F80, b: F80) -> bool {
        let either = a.class() == Class::Denormal || b.class() == Class::Denormal || self.denormal_source;
        either && self.denormal()
    }

    /// Both operands are normal numbers, and there is nothing to be said about them.
    #[inline]
    pub(super) fn are_normal(&self, a: F80, b: F80) -> bool {
        a.is_normal() && b.is_normal() && !self.denormal_source
    }
}
