//! MUL, IMUL, DIV and IDIV.
//!
//! A product's SF and PF are those of its lower half, ZF and AF are 0; a division leaves all flags as they were.

use super::hit::quick;
use super::{Operand, byte_regs, operand, wide, width, width_code};
use crate::insn::{Dec, Handler, Insn, RAX, RDX, Stop, chains};
use crate::state::{Cpu, Int};

pub(super) fn select(i: &mut Insn, d: &Dec) -> Option<Handler> {
    Some(match d.op {
        0x69 | 0x6b => operand!(wide, d.osize + 1, i, d, imul_imm),
        0x0faf => operand!(wide, d.osize + 1, i, d, imul_reg),
        _ => {
            let w = width_code(d);
            byte_regs(i, d, w);
            match d.ext() {
                4 => operand!(width, w, i, d, mul),
                5 => operand!(width, w, i, d, imul),
                6 => operand!(width, w, i, d, div),
                _ => operand!(width, w, i, d, idiv),
            }
        }
    })
}

impl Cpu {
    /// The pair that holds products and dividends: AH:AL, else rDX:rAX. Upper half, lower half.
    #[inline(always)]
    fn pair<T: Int>(&self) -> (T, T) {
        (self.reg(if T::BITS == 8 { 0x80 | RAX } else { RDX }), self.reg(RAX))
    }

    #[inline(always)]
    fn set_pair<T: Int>(&mut self, high: T, low: T) {
        self.set_reg(RAX, low);
        self.set_reg(if T::BITS == 8 { 0x80 | RAX } else { RDX }, high);
    }

    #[inline(always)]
    fn product_flags<T: Int>(&mut self, low: T, overflow: bool) {
        self.flags.result(low, overflow, overflow, false);
    }

    #[cold]
    fn divide_error(&mut self) -> Stop {
        self.fault(0, None)
    }
}

/// Upper and lower half of an unsigned product.
#[inline(always)]
fn wide_mul<T: Int>(a: T, b: T) -> (T, T) {
    if T::BITS == 64 {
        let p = u128::from(a.to_u64()) * u128::from(b.to_u64());
        (T::from_u64((p >> 64) as u64), T::from_u64(p as u64))
    } else {
        let p = a.to_u64() * b.to_u64();
        (T::from_u64(p >> T::BITS), T::from_u64(p))
    }
}

/// Upper and lower half of a signed product, and whether the lower half alone is not all of it.
#[inline(always)]
fn wide_imul<T: Int>(a: T, b: T) -> (T, T, bool) {
    let (a, b) = (a.sext() as i64, b.sext() as i64);
    if T::BITS == 64 {
        let p = i128::from(a) * i128::from(b);
        (T::from_u64((p >> 64) as u64), T::from_u64(p as u64), p != i128::from(p as i64))
    } else {
        let p = (a * b) as u64;
        let low = T::from_u64(p);
        (T::from_u64(p >> T::BITS), low, low.sext() != p)
    }
}

chains! {
    fn mul<S: Operand, T: Int>(cpu, i) {
        let b = S::get::<T>(cpu, i)?;
        let (high, low) = wide_mul(cpu.reg::<T>(RAX), b);
        cpu.set_pair(high, low);
        cpu.product_flags(low, high != T::from_u64(0));
        Ok(())
    }

    fn imul<S: Operand, T: Int>(cpu, i) {
        let b = S::get::<T>(cpu, i)?;
        let (high, low, overflow) = wide_imul(cpu.reg::<T>(RAX), b);
        cpu.set_pair(high, low);
        cpu.product_flags(low, overflow);
        Ok(())
    }
}

quick! {
    fn imul_reg<S: Operand, T: Int>[S::Quick, T][S::Slow, T](cpu, i) {
        let b = S::get::<T>(cpu, i)?;
        let (_, low, overflow) = wide_imul(cpu.reg::<T>(i.reg), b);
        cpu.set_reg(i.reg, low);
        cpu.product_flags(low, overflow);
        Ok(())
    }

    fn imul_imm<S: Operand, T: Int>[S::Quick, T][S::Slow, T](cpu, i) {
        let b = S::get::<T>(cpu, i)?;
        let (_, low, overflow) = wide_imul(b, T::from_u64(i.imm));
        cpu.set_reg(i.reg, low);
        cpu.product_flags(low, overflow);
        Ok(())
    }
}

/// Quotient and remainder, or nothing if the quotient does not fit.
#[inline(always)]
fn divide<T: Int>(high: T, low: T, by: T) -> Option<(T, T)> {
    // Covers division by zero.
    if high >= by {
        return None;
    }
    let d = by.to_u64();
    let (q, r) = if T::BITS == 64 {
        if high.to_u64() == 0 {
            (low.to_u64() / d, low.to_u64() % d)
        } else {
            let n = u128::from(high.to_u64()) << 64 | u128::from(low.to_u64());
            ((n / u128::from(d)) as u64, (n % u128::from(d)) as u64)
        }
    } else {
        let n = high.to_u64() << T::BITS | low.to_u64();
        (n / d, n % d)
    };
    Some((T::from_u64(q), T::from_u64(r)))
}

chains! {
    fn div<S: Operand, T: Int>(cpu, i) {
        let by = S::get::<T>(cpu, i)?;
        let (high, low) = cpu.pair::<T>();
        let Some((q, r)) = divide(high, low, by) else { return Err(cpu.divide_error()) };
        cpu.set_pair(r, q);
        Ok(())
    }

    /// Divides magnitudes and sets the signs: the quotient is cut towards zero, the remainder has the dividend's sign.
    fn idiv<S: Operand, T: Int>(cpu, i) {
        let by = S::get::<T>(cpu, i)?;
        let (high, low) = cpu.pair::<T>();
        let negative = |v: T| v.sext() >> 63 != 0;
        let magnitude = |v: T| if negative(v) { T::from_u64(v.to_u64().wrapping_neg()) } else { v };
        let (mut h, mut l) = (high, low);
        if negative(high) {
            let zero = T::from_u64(0);
            l = T::from_u64(low.to_u64().wrapping_neg());
            h = T::from_u64((!high.to_u64()).wrapping_add(u64::from(low == zero)));
        }
        let Some((q, r)) = divide(h, l, magnitude(by)) else { return Err(cpu.divide_error()) };
        let q_negative = negative(high) != negative(by);
        // The largest magnitude is 2^(n-1) for a negative quotient and one less for a positive one.
        if negative(q) && !(q_negative && q.to_u64() == 1 << (T::BITS - 1)) {
            return Err(cpu.divide_error());
        }
        let q = if q_negative { T::from_u64(q.to_u64().wrapping_neg()) } else { q };
        let r = if negative(high) { T::from_u64(r.to_u64().wrapping_neg()) } else { r };
        cpu.set_pair(r, q);
        Ok(())
    }
}
