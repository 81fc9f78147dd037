//! x87 arithmetic: the four operations, comparisons, and everything that works on the top of the stack.
//!
//! The order of events is the same in all: reach the operands (an empty register is a stack underflow), compute, and
//! write result and flags unless an exception that is not masked forbids it.

use std::cmp::Ordering;

use super::load::Number;
use super::{C0, C1, C2, C3, Fpu};
use crate::exec::Addr;
use crate::flags::{CF, Flags, PF, ZF};
use crate::insn::{Insn, Res};
use crate::softfloat::{Class, DE, F80, IE, X87, ZE};
use crate::state::Cpu;

/// An operation with two operands; the first one is replaced.
pub(super) trait Binary: 'static {
    fn apply(x: &mut X87, dest: F80, src: F80) -> F80;
}

macro_rules! binary {
    ($($name:ident: |$x:ident, $d:ident, $s:ident| $e:expr;)*) => {$(
        pub(super) struct $name;
        impl Binary for $name {
            #[inline(always)]
            fn apply($x: &mut X87, $d: F80, $s: F80) -> F80 {
                $e
            }
        }
    )*};
}

binary! {
    Add: |x, d, s| x.add(d, s);
    Mul: |x, d, s| x.mul(d, s);
    Sub: |x, d, s| x.sub(d, s);
    SubR: |x, d, s| x.sub(s, d);
    Div: |x, d, s| x.div(d, s);
    DivR: |x, d, s| x.div(s, d);
    Scale: |x, d, s| x.scale(d, s);
    Yl2x: |x, d, s| x.fyl2x(s, d);
    Yl2xp1: |x, d, s| x.fyl2xp1(s, d);
    Patan: |x, d, s| x.fpatan(s, d);
}

/// An operation on ST(0).
pub(super) trait Unary: 'static {
    fn apply(x: &mut X87, a: F80) -> F80;
}

macro_rules! unary {
    ($($name:ident: |$x:ident, $a:ident| $e:expr;)*) => {$(
        pub(super) struct $name;
        impl Unary for $name {
            #[inline(always)]
            fn apply($x: &mut X87, $a: F80) -> F80 {
                $e
            }
        }
    )*};
}

unary! {
    Chs: |_x, a| a.negated();
    Abs: |_x, a| a.absolute();
    Sqrt: |x, a| x.sqrt(a);
    RoundInt: |x, a| x.round_to_integer(a);
    F2xm1: |x, a| x.f2xm1(a);
}

impl Fpu {
    /// `ST(dest) = op(ST(dest), ST(src))`, then a pop if asked for.
    #[inline(always)]
    fn binary<O: Binary>(&mut self, dest: u8, src: u8, pop: bool) {
        let mut x = X87::new(self.cw);
        if self.empty(dest) || self.empty(src) {
            if !self.underflow() {
                return;
            }
            self.set_st(dest, F80::INDEFINITE);
        } else {
            let r = O::apply(&mut x, self.st(dest), self.st(src));
            self.settle(&x);
            if x.faulted() {
                return;
            }
            self.set_st(dest, r);
        }
        if pop {
            self.pop();
        }
    }

    /// Sets C3, C2 and C0 to what a comparison found; C1 is clear.
    fn set_order(&mut self, order: Option<Ordering>) {
        let bits = match order {
            None => C3 | C2 | C0,
            Some(Ordering::Less) => C0,
            Some(Ordering::Equal) => C3,
            Some(Ordering::Greater) => 0,
        };
        self.sw = self.sw & !(C3 | C2 | C1 | C0) | bits;
    }

    /// Compares ST(0) with a number, or `None` for an empty register. Says what was found, and whether the instruction
    /// may pop. The flags are set even if an exception is not masked.
    fn compare(&mut self, b: Option<F80>, quiet: bool) -> (Option<Ordering>, bool) {
        let (false, Some(b)) = (self.empty(0), b) else {
            return (None, self.underflow());
        };
        let mut x = X87::new(self.cw);
        let order = if quiet { x.compare_quiet(self.st(0), b) } else { x.compare(self.st(0), b) };
        self.settle(&x);
        (order, !x.faulted())
    }

    /// ST(n), if it is not empty.
    fn operand(&self, n: u8) -> Option<F80> {
        (!self.empty(n)).then(|| self.st(n))
    }
}

/// Computes with ST(0), `a`, and a number in memory. The exceptions that loading it alone would raise are put off: a
/// signalling NaN is to meet the other operand as it is, and a denormal counts only where nothing worse is found.
#[inline(always)]
fn with_memory<N: Number, R>(cw: u16, a: F80, raw: N::Raw, f: impl FnOnce(&mut X87, F80) -> R) -> (X87, R) {
    let mut load = X87::new(cw);
    let mut x = load;
    let mut b = N::number(&mut load, raw);
    if load.flags & IE != 0 {
        b.mant &= !(1 << 62);
    }
    let r = f(&mut x, b);
    if load.flags & DE != 0 && x.flags & (IE | ZE) == 0 && !matches!(a.class(), Class::Quiet) {
        if load.faulted() {
            x = load;
        }
        x.flags |= DE;
    }
    (x, r)
}

/// FADD and its five relatives with a number in memory.
pub(super) fn arith_mem<O: Binary, N: Number, A: Addr>(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.x87(i)?;
    let raw = cpu.read_mem::<A, N::Raw>(i)?;
    cpu.x87_record_mem(i);
    let f = &mut cpu.fpu;
    if f.empty(0) {
        if f.underflow() {
            f.set_st(0, F80::INDEFINITE);
        }
        return Ok(());
    }
    let a = f.st(0);
    let (x, r) = with_memory::<N, F80>(f.cw, a, raw, |x, b| O::apply(x, a, b));
    f.settle(&x);
    if !x.faulted() {
        f.set_st(0, r);
    }
    Ok(())
}

/// FCOM, FCOMP, FICOM and FICOMP with a number in memory.
pub(super) fn compare_mem<N: Number, A: Addr, const POP: bool>(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.x87(i)?;
    let raw = cpu.read_mem::<A, N::Raw>(i)?;
    cpu.x87_record_mem(i);
    let f = &mut cpu.fpu;
    let (order, pop) = if f.empty(0) {
        (None, f.underflow())
    } else {
        let a = f.st(0);
        let (x, order) = with_memory::<N, _>(f.cw, a, raw, |x, b| x.compare(a, b));
        f.settle(&x);
        (order, !x.faulted())
    };
    f.set_order(order);
    if POP && pop {
        f.pop();
    }
    Ok(())
}

/// The D8 forms: `ST(0) = op(ST(0), ST(i))`.
pub(super) fn arith_st0<O: Binary>(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.x87(i)?;
    cpu.x87_record(i);
    cpu.fpu.binary::<O>(0, i.rm, false);
    Ok(())
}

/// The DC and DE forms: `ST(i) = op(ST(i), ST(0))`.
pub(super) fn arith_sti<O: Binary, const POP: bool>(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.x87(i)?;
    cpu.x87_record(i);
    cpu.fpu.binary::<O>(i.rm, 0, POP);
    Ok(())
}

/// FSCALE: `ST(0) = op(ST(0), ST(1))`.
pub(super) fn on_st0_st1<O: Binary>(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.x87(i)?;
    cpu.x87_record(i);
    cpu.fpu.binary::<O>(0, 1, false);
    Ok(())
}

/// FYL2X, FYL2XP1, FPATAN: `ST(1) = op(ST(1), ST(0))`, and a pop.
pub(super) fn into_st1<O: Binary>(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.x87(i)?;
    cpu.x87_record(i);
    cpu.fpu.binary::<O>(1, 0, true);
    Ok(())
}

/// Operations on ST(0) alone.
pub(super) fn unary<O: Unary>(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.x87(i)?;
    cpu.x87_record(i);
    let f = &mut cpu.fpu;
    if f.empty(0) {
        if f.underflow() {
            f.set_st(0, F80::INDEFINITE);
        }
        return Ok(());
    }
    let mut x = X87::new(f.cw);
    let r = O::apply(&mut x, f.st(0));
    f.settle(&x);
    if !x.faulted() {
        f.set_st(0, r);
    }
    Ok(())
}

/// FCOM, FUCOM and their popping forms: `POPS` registers are popped.
pub(super) fn compare<const QUIET: bool, const POPS: u8>(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.x87(i)?;
    cpu.x87_record(i);
    let f = &mut cpu.fpu;
    let (order, pop) = f.compare(f.operand(i.rm), QUIET);
    f.set_order(order);
    if pop {
        for _ in 0..POPS {
            f.pop();
        }
    }
    Ok(())
}

/// FCOMI, FUCOMI and their popping forms. OF, SF and AF are cleared, as Intel's parts do.
pub(super) fn compare_flags<const QUIET: bool, const POP: bool>(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.x87(i)?;
    cpu.x87_record(i);
    let f = &mut cpu.fpu;
    let (order, pop) = f.compare(f.operand(i.rm), QUIET);
    f.set_c1(false);
    if POP && pop {
        f.pop();
    }
    cpu.flags = order_flags(order);
    Ok(())
}

/// RFLAGS after FCOMI, COMISS and their relatives.
pub(crate) fn order_flags(order: Option<Ordering>) -> Flags {
    Flags::from_bits(match order {
        None => ZF | PF | CF,
        Some(Ordering::Less) => CF,
        Some(Ordering::Equal) => ZF,
        Some(Ordering::Greater) => 0,
    })
}

/// FTST.
pub(super) fn ftst(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.x87(i)?;
    cpu.x87_record(i);
    let f = &mut cpu.fpu;
    let (order, _) = f.compare(Some(F80::ZERO), false);
    f.set_order(order);
    Ok(())
}

/// FXAM. C1 is the sign, of an empty register too.
pub(super) fn fxam(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.x87(i)?;
    cpu.x87_record(i);
    let f = &mut cpu.fpu;
    let class = if f.empty(0) { C3 | C0 | if f.st(0).is_negative() { C1 } else { 0 } } else { f.st(0).examine() };
    f.sw = f.sw & !(C3 | C2 | C1 | C0) | class;
    Ok(())
}

/// FPREM and FPREM1.
pub(super) fn fprem<const NEAREST: bool>(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.x87(i)?;
    cpu.x87_record(i);
    let f = &mut cpu.fpu;
    if f.empty(0) || f.empty(1) {
        f.sw &= !C2;
        if f.underflow() {
            f.set_st(0, F80::INDEFINITE);
        }
        return Ok(());
    }
    let mut x = X87::new(f.cw);
    let (a, b) = (f.st(0), f.st(1));
    let r = if NEAREST { x.remainder_nearest(a, b) } else { x.remainder(a, b) };
    f.settle(&x);
    if x.faulted() {
        f.sw &= !C2;
    } else if r.value.se & 0x7fff == 0x7fff {
        // There is no quotient.
        f.set_st(0, r.value);
        f.sw &= !(C2 | C1);
    } else {
        f.set_st(0, r.value);
        let quotient = [(4, C0), (2, C3), (1, C1)].map(|(bit, cc)| if r.quotient & bit != 0 { cc } else { 0 });
        let partial = if r.partial { C2 } else { 0 };
        f.sw = f.sw & !(C3 | C2 | C1 | C0) | quotient[0] | quotient[1] | quotient[2] | partial;
    }
    Ok(())
}

/// FSIN and FCOS. An operand too large sets C2 and stays.
pub(super) fn fsin<const COS: bool>(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.x87(i)?;
    cpu.x87_record(i);
    let f = &mut cpu.fpu;
    f.sw &= !C2;
    if f.empty(0) {
        if f.underflow() {
            f.set_st(0, F80::INDEFINITE);
        }
        return Ok(());
    }
    let mut x = X87::new(f.cw);
    let r = if COS { x.fcos(f.st(0)) } else { x.fsin(f.st(0)) };
    f.settle(&x);
    if !x.faulted() {
        match r {
            Some(r) => f.set_st(0, r),
            None => f.sw |= C2,
        }
    }
    Ok(())
}

/// What FPTAN, FSINCOS and FXTRACT do: two results, the second one pushed. `None` sets C2.
pub(super) trait Split: 'static {
    fn apply(x: &mut X87, a: F80) -> Option<(F80, F80)>;
    /// Whether C2 is an output.
    const RANGE: bool;
}

pub(super) struct Tan;
pub(super) struct SinCos;
pub(super) struct Extract;

impl Split for Tan {
    const RANGE: bool = true;
    fn apply(x: &mut X87, a: F80) -> Option<(F80, F80)> {
        // A NaN is pushed instead of 1.
        x.fptan(a).map(|t| (t, if t.se & 0x7fff == 0x7fff { t } else { F80::ONE }))
    }
}

impl Split for SinCos {
    const RANGE: bool = true;
    fn apply(x: &mut X87, a: F80) -> Option<(F80, F80)> {
        x.fsincos(a)
    }
}

impl Split for Extract {
    const RANGE: bool = false;
    fn apply(x: &mut X87, a: F80) -> Option<(F80, F80)> {
        Some(x.extract(a))
    }
}

/// FPTAN, FSINCOS, FXTRACT.
pub(super) fn split<O: Split>(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.x87(i)?;
    cpu.x87_record(i);
    let f = &mut cpu.fpu;
    if O::RANGE {
        f.sw &= !C2;
    }
    let fault = if f.empty(0) { Some(false) } else { f.no_room().then_some(true) };
    if let Some(overflow) = fault {
        if f.stack_fault(overflow) {
            f.set_st(0, F80::INDEFINITE);
            f.push(F80::INDEFINITE);
        }
        return Ok(());
    }
    let mut x = X87::new(f.cw);
    let r = O::apply(&mut x, f.st(0));
    f.settle(&x);
    if x.faulted() {
        return Ok(());
    }
    match r {
        Some((replaced, pushed)) => {
            f.set_st(0, replaced);
            f.push(pushed);
        }
        None => f.sw |= C2,
    }
    Ok(())
}
