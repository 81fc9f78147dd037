//! Floating point arithmetic and comparisons on XMM registers.

use std::cmp::Ordering;

use super::lanes::unpack32;
use super::operand::{Place, Xmm};
use crate::fpu::order_flags;
use crate::insn::{Insn, Res};
use crate::softfloat::{Predicate, Sse};
use crate::state::Cpu;

/// An operation that comes in four forms: packed and scalar, single and double.
pub(super) trait Arith: 'static {
    fn single(s: &mut Sse, a: u32, b: u32, imm: u8) -> u32;
    fn double(s: &mut Sse, a: u64, b: u64, imm: u8) -> u64;
}

macro_rules! arith {
    ($($name:ident: |$s:ident, $a:ident, $b:ident, $n:ident| $single:expr, $double:expr;)*) => {$(
        pub(super) struct $name;
        impl Arith for $name {
            #[inline(always)]
            fn single($s: &mut Sse, $a: u32, $b: u32, $n: u8) -> u32 {
                $single
            }
            #[inline(always)]
            fn double($s: &mut Sse, $a: u64, $b: u64, $n: u8) -> u64 {
                $double
            }
        }
    )*};
}

arith! {
    Add: |s, a, b, _n| s.add32(a, b), s.add64(a, b);
    Sub: |s, a, b, _n| s.sub32(a, b), s.sub64(a, b);
    Mul: |s, a, b, _n| s.mul32(a, b), s.mul64(a, b);
    Div: |s, a, b, _n| s.div32(a, b), s.div64(a, b);
    Min: |s, a, b, _n| s.min32(a, b), s.min64(a, b);
    Max: |s, a, b, _n| s.max32(a, b), s.max64(a, b);
    Sqrt: |s, _a, b, _n| s.sqrt32(b), s.sqrt64(b);
    Cmp: |s, a, b, n| s.cmp32(Predicate::from_bits(n), a, b), s.cmp64(Predicate::from_bits(n), a, b);
    Round: |s, _a, b, n| s.round32(b, n), s.round64(b, n);
}

/// Applies a function to the four singles of two registers.
#[inline(always)]
pub(super) fn singles(a: Xmm, b: Xmm, mut f: impl FnMut(u32, u32) -> u32) -> Xmm {
    let mut pair = |a: u64, b: u64| {
        let low = f(a as u32, b as u32);
        unpack32(low, f((a >> 32) as u32, (b >> 32) as u32))
    };
    [pair(a[0], b[0]), pair(a[1], b[1])]
}

handlers! {
    /// The form with PS in its name.
    fn ps<O: Arith, @ P: Place>(cpu, i) {
        let b = P::xmm(cpu, i)?;
        let mut s = Sse::new(cpu.fpu.mxcsr);
        let r = singles(cpu.xmm_reg(i), b, |a, b| O::single(&mut s, a, b, i.imm as u8));
        cpu.settle(s)?;
        cpu.set_xmm_reg(i, r);
        Ok(())
    }

    /// The form with PD in its name.
    fn pd<O: Arith, @ P: Place>(cpu, i) {
        let b = P::xmm(cpu, i)?;
        let a = cpu.xmm_reg(i);
        let mut s = Sse::new(cpu.fpu.mxcsr);
        let r = [O::double(&mut s, a[0], b[0], i.imm as u8), O::double(&mut s, a[1], b[1], i.imm as u8)];
        cpu.settle(s)?;
        cpu.set_xmm_reg(i, r);
        Ok(())
    }

    /// The form with SS in its name.
    fn ss<O: Arith, @ P: Place>(cpu, i) {
        let b = P::low::<u32>(cpu, i)?;
        let a = cpu.xmm_reg(i)[0];
        let mut s = Sse::new(cpu.fpu.mxcsr);
        let r = O::single(&mut s, a as u32, b, i.imm as u8);
        cpu.settle(s)?;
        cpu.fpu.xmm[usize::from(i.reg & 15)][0] = a & !0xffff_ffff | u64::from(r);
        Ok(())
    }

    /// The form with SD in its name.
    fn sd<O: Arith, @ P: Place>(cpu, i) {
        let b = P::low::<u64>(cpu, i)?;
        let a = cpu.xmm_reg(i)[0];
        let mut s = Sse::new(cpu.fpu.mxcsr);
        let r = O::double(&mut s, a, b, i.imm as u8);
        cpu.settle(s)?;
        cpu.fpu.xmm[usize::from(i.reg & 15)][0] = r;
        Ok(())
    }
}

/// RCPPS and RSQRTPS: no exceptions.
pub(super) fn approximate_ps<P: Place, const ROOT: bool>(cpu: &mut Cpu, i: &Insn) -> Res {
    enter!(cpu);
    let b = P::xmm(cpu, i)?;
    let r = singles(b, b, |a, _| approximate::<ROOT>(a));
    cpu.set_xmm_reg(i, r);
    Ok(())
}

/// RCPSS and RSQRTSS.
pub(super) fn approximate_ss<P: Place, const ROOT: bool>(cpu: &mut Cpu, i: &Insn) -> Res {
    enter!(cpu);
    let b = P::low::<u32>(cpu, i)?;
    let r = &mut cpu.fpu.xmm[usize::from(i.reg & 15)][0];
    *r = *r & !0xffff_ffff | u64::from(approximate::<ROOT>(b));
    Ok(())
}

fn approximate<const ROOT: bool>(a: u32) -> u32 {
    if ROOT { Sse::reciprocal_sqrt32(a) } else { Sse::reciprocal32(a) }
}

handlers! {
    /// COMISS and UCOMISS.
    fn comiss<@ P: Place; const QUIET: bool>(cpu, i) {
        let b = P::low::<u32>(cpu, i)?;
        let a = cpu.xmm_reg(i)[0] as u32;
        let mut s = Sse::new(cpu.fpu.mxcsr);
        let order = if QUIET { s.ucomis32(a, b) } else { s.comis32(a, b) };
        finish_comis(cpu, s, order)
    }

    /// COMISD and UCOMISD.
    fn comisd<@ P: Place; const QUIET: bool>(cpu, i) {
        let b = P::low::<u64>(cpu, i)?;
        let a = cpu.xmm_reg(i)[0];
        let mut s = Sse::new(cpu.fpu.mxcsr);
        let order = if QUIET { s.ucomis64(a, b) } else { s.comis64(a, b) };
        finish_comis(cpu, s, order)
    }
}

#[inline(always)]
fn finish_comis(cpu: &mut Cpu, s: Sse, order: Option<Ordering>) -> Res {
    cpu.settle(s)?;
    cpu.flags = order_flags(order);
    Ok(())
}

/// Operations on two registers that combine lanes in more than one way.
pub(super) trait Combine: 'static {
    /// `None`: an exception that is not masked stopped it half way.
    fn combine(s: &mut Sse, a: Xmm, b: Xmm, imm: u8) -> Option<Xmm>;
}

macro_rules! combine {
    ($($name:ident: |$s:ident, $a:ident, $b:ident, $n:ident| $e:expr;)*) => {$(
        pub(super) struct $name;
        impl Combine for $name {
            fn combine($s: &mut Sse, $a: Xmm, $b: Xmm, $n: u8) -> Option<Xmm> {
                let r = $e;
                (!$s.finish()).then_some(r)
            }
        }
    )*};
}

/// Low single of a word, and the high one.
fn lo(x: u64) -> u32 {
    x as u32
}

fn hi(x: u64) -> u32 {
    (x >> 32) as u32
}

combine! {
    Haddps: |s, a, b, _n| {
        let mut pair = |x: u64, y: u64| {
            let low = s.add32(lo(x), hi(x));
            unpack32(low, s.add32(lo(y), hi(y)))
        };
        [pair(a[0], a[1]), pair(b[0], b[1])]
    };
    Hsubps: |s, a, b, _n| {
        let mut pair = |x: u64, y: u64| {
            let low = s.sub32(lo(x), hi(x));
            unpack32(low, s.sub32(lo(y), hi(y)))
        };
        [pair(a[0], a[1]), pair(b[0], b[1])]
    };
    Haddpd: |s, a, b, _n| [s.add64(a[0], a[1]), s.add64(b[0], b[1])];
    Hsubpd: |s, a, b, _n| [s.sub64(a[0], a[1]), s.sub64(b[0], b[1])];
    Addsubps: |s, a, b, _n| [0, 1].map(|k| {
        let low = s.sub32(lo(a[k]), lo(b[k]));
        unpack32(low, s.add32(hi(a[k]), hi(b[k])))
    });
    Addsubpd: |s, a, b, _n| [s.sub64(a[0], b[0]), s.add64(a[1], b[1])];
    Dpps: |s, a, b, n| {
        let mut product = |k: u32, x: u64, y: u64, high: bool| match n >> (4 + k) & 1 {
            0 => 0,
            _ if high => s.mul32(hi(x), hi(y)),
            _ => s.mul32(lo(x), lo(y)),
        };
        let p = [
            product(0, a[0], b[0], false), product(1, a[0], b[0], true),
            product(2, a[1], b[1], false), product(3, a[1], b[1], true),
        ];
        if s.finish() {
            return None;
        }
        let (low, high) = (s.add32(p[0], p[1]), s.add32(p[2], p[3]));
        if s.finish() {
            return None;
        }
        let sum = s.add32(low, high);
        let lane = |k: u32| if n >> k & 1 != 0 { sum } else { 0 };
        [unpack32(lane(0), lane(1)), unpack32(lane(2), lane(3))]
    };
    Dppd: |s, a, b, n| {
        let mut product = |k: usize| if n >> (4 + k) & 1 != 0 { s.mul64(a[k], b[k]) } else { 0 };
        let (low, high) = (product(0), product(1));
        if s.finish() {
            return None;
        }
        let sum = s.add64(low, high);
        [0, 1].map(|k| if n >> k & 1 != 0 { sum } else { 0 })
    };
}

/// `xmm = op(xmm, xmm/m128, imm8)` for [`Combine`].
pub(super) fn combine<O: Combine, P: Place>(cpu: &mut Cpu, i: &Insn) -> Res {
    enter!(cpu);
    let b = P::xmm(cpu, i)?;
    let mut s = Sse::new(cpu.fpu.mxcsr);
    let r = O::combine(&mut s, cpu.xmm_reg(i), b, i.imm as u8);
    cpu.fpu.mxcsr = s.mxcsr;
    match r {
        Some(r) => cpu.set_xmm_reg(i, r),
        None => return Err(cpu.xm()),
    }
    Ok(())
}
