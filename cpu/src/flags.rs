//! The six arithmetic flags, lazily.
//!
//! An operation leaves its result, sign-extended to 64 bits, and one word from which the flags that the result does not
//! tell are a shift away. The word's top two bits are the carries out of, and into, the operand's sign bit (CF is the
//! first, OF their difference), bit 3 is the carry out of bit 3 (AF), and bits 4 and 8 to 15 correct SF and PF where
//! flags are set from outside (POPF, SAHF) to what no result has. So CF alone can be replaced (INC, rotates), without a
//! record of which operation it was.

use serde::{Deserialize, Serialize};

use crate::state::Int;

/// RFLAGS bits.
pub(crate) const CF: u64 = 1;
pub(crate) const PF: u64 = 1 << 2;
pub(crate) const AF: u64 = 1 << 4;
pub(crate) const ZF: u64 = 1 << 6;
pub(crate) const SF: u64 = 1 << 7;
pub(crate) const TF: u64 = 1 << 8;
pub(crate) const IF: u64 = 1 << 9;
pub(crate) const DF: u64 = 1 << 10;
pub(crate) const OF: u64 = 1 << 11;
pub(crate) const IOPL: u64 = 3 << 12;
pub(crate) const NT: u64 = 1 << 14;
pub(crate) const RF: u64 = 1 << 16;
pub(crate) const VM: u64 = 1 << 17;
pub(crate) const AC: u64 = 1 << 18;
pub(crate) const VIF: u64 = 1 << 19;
pub(crate) const VIP: u64 = 1 << 20;
pub(crate) const ID: u64 = 1 << 21;
/// The bits that live in [`Flags`].
pub(crate) const ARITH: u64 = CF | PF | AF | ZF | SF | OF;

const SF_FLIP: u64 = 1 << 4;

/// CF, PF, AF, ZF, SF, OF.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flags {
    res: u64,
    aux: u64,
}

/// The carry vector's bits that matter, moved to their places.
#[inline(always)]
fn aux<T: Int>(carries: u64) -> u64 {
    (carries << (64 - T::BITS)) & (3 << 62) | carries & 8
}

impl Flags {
    /// From RFLAGS bits.
    pub(crate) fn from_bits(bits: u64) -> Flags {
        // A zero result has PF and SF = 0; the corrections make of it what is asked. Any other wish starts from 1.
        let res = u64::from(bits & ZF == 0);
        let mut aux = 0;
        if bits & CF != 0 {
            aux |= 1 << 63;
        }
        if (bits & OF != 0) != (bits & CF != 0) {
            aux |= 1 << 62;
        }
        if bits & AF != 0 {
            aux |= 8;
        }
        if bits & SF != 0 {
            aux |= SF_FLIP;
        }
        if (bits & PF != 0) != (res == 0) {
            aux |= 1 << 8;
        }
        Flags { res, aux }
    }

    /// As RFLAGS bits.
    pub(crate) fn bits(self) -> u64 {
        u64::from(self.cf())
            | u64::from(self.pf()) << 2
            | u64::from(self.af()) << 4
            | u64::from(self.zf()) << 6
            | u64::from(self.sf()) << 7
            | u64::from(self.of()) << 11
    }

    #[inline(always)]
    pub(crate) fn cf(self) -> bool {
        self.aux >> 63 != 0
    }

    #[inline(always)]
    pub(crate) fn of(self) -> bool {
        (self.aux ^ self.aux << 1) >> 63 != 0
    }

    #[inline(always)]
    pub(crate) fn af(self) -> bool {
        self.aux & 8 != 0
    }

    #[inline(always)]
    pub(crate) fn zf(self) -> bool {
        self.res == 0
    }

    #[inline(always)]
    pub(crate) fn sf(self) -> bool {
        (self.res >> 63 ^ self.aux >> 4) & 1 != 0
    }

    #[inline(always)]
    pub(crate) fn pf(self) -> bool {
        ((self.res ^ self.aux >> 8) as u8).count_ones().is_multiple_of(2)
    }

    /// Condition code 0 to 15 as Jcc encodes it.
    #[inline(always)]
    pub(crate) fn cond(self, cc: u8) -> bool {
        let c = match cc >> 1 & 7 {
            0 => self.of(),
            1 => self.cf(),
            2 => self.zf(),
            3 => self.cf() || self.zf(),
            4 => self.sf(),
            5 => self.pf(),
            6 => self.sf() != self.of(),
            _ => self.zf() || self.sf() != self.of(),
        };
        c != (cc & 1 != 0)
    }

    /// After `a + b (+ carry) = r`.
    #[inline(always)]
    pub(crate) fn add<T: Int>(&mut self, a: T, b: T, r: T) {
        let (a, b, r) = (a.to_u64(), b.to_u64(), r);
        *self = Flags { res: r.sext(), aux: aux::<T>((a & b) | ((a | b) & !r.to_u64())) };
    }

    /// After `a - b (- borrow) = r`.
    #[inline(always)]
    pub(crate) fn sub<T: Int>(&mut self, a: T, b: T, r: T) {
        let (a, b) = (a.to_u64(), b.to_u64());
        *self = Flags { res: r.sext(), aux: aux::<T>((!a & b) | ((!a | b) & r.to_u64())) };
    }

    /// After AND, OR, XOR, TEST: CF, OF and AF are 0.
    #[inline(always)]
    pub(crate) fn logic<T: Int>(&mut self, r: T) {
        *self = Flags { res: r.sext(), aux: 0 };
    }

    /// Sets SF, ZF and PF from a result and the others as told.
    #[inline(always)]
    pub(crate) fn result<T: Int>(&mut self, r: T, cf: bool, of: bool, af: bool) {
        let aux = u64::from(cf) << 63 | u64::from(cf != of) << 62 | u64::from(af) << 3;
        *self = Flags { res: r.sext(), aux };
    }

    /// Replaces CF, keeping OF.
    #[inline(always)]
    pub(crate) fn set_cf(&mut self, cf: bool) {
        self.set_cf_of(cf, self.of());
    }

    /// Takes CF back from `before`, keeping OF.
    #[inline(always)]
    pub(crate) fn keep_cf(&mut self, before: Flags) {
        let carry = (self.aux ^ before.aux) & 1 << 63;
        self.aux ^= carry | carry >> 1;
    }

    /// Replaces CF and OF.
    #[inline(always)]
    pub(crate) fn set_cf_of(&mut self, cf: bool, of: bool) {
        self.aux = self.aux & !(3 << 62) | u64::from(cf) << 63 | u64::from(cf != of) << 62;
    }

    /// Replaces ZF alone.
    pub(crate) fn set_zf(&mut self, zf: bool) {
        *self = Flags::from_bits(self.bits() & !ZF | if zf { ZF } else { 0 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_of_bits_comes_back() {
        for n in 0..64u64 {
            let bits =
                [CF, PF, AF, ZF, SF, OF].iter().enumerate().map(|(k, f)| if n >> k & 1 != 0 { *f } else { 0 }).sum();
            assert_eq!(Flags::from_bits(bits).bits(), bits);
            for cf in [false, true] {
                let mut f = Flags::from_bits(bits);
                f.set_cf(cf);
                assert_eq!(f.bits(), bits & !CF | u64::from(cf));
            }
        }
    }

    /// A model that adds bit by bit.
    fn serial_add(a: u8, b: u8, carry: bool) -> (u8, u64) {
        let (mut c, mut r, mut before, mut af) = (u8::from(carry), 0u8, 0, false);
        for bit in 0..8 {
            let sum = (a >> bit & 1) + (b >> bit & 1) + c;
            r |= (sum & 1) << bit;
            before = c;
            c = sum >> 1;
            if bit == 3 {
                af = c != 0;
            }
        }
        let flags = u64::from(c)
            | if r.count_ones().is_multiple_of(2) { PF } else { 0 }
            | if af { AF } else { 0 }
            | if r == 0 { ZF } else { 0 }
            | if r & 0x80 != 0 { SF } else { 0 }
            | if before != c { OF } else { 0 };
        (r, flags)
    }

    #[test]
    fn eight_bit_sums_and_differences_have_the_flags_of_a_bit_serial_adder() {
        for a in 0..=255u8 {
            for b in 0..=255u8 {
                for carry in [false, true] {
                    let (r, want) = serial_add(a, b, carry);
                    let mut f = Flags::default();
                    f.add(a, b, r);
                    assert_eq!(f.bits(), want, "{a} + {b} + {carry}");
                    // a - b - borrow is a + !b + !borrow, with the carries inverted.
                    let (r, sum) = serial_add(a, !b, !carry);
                    f.sub(a, b, r);
                    assert_eq!(f.bits(), sum ^ (CF | AF), "{a} - {b} - {carry}");
                }
            }
        }
    }
}
