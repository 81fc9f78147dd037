//! ADD, OR, ADC, SBB, AND, SUB, XOR, CMP and TEST; INC, DEC, NOT and NEG; XADD, CMPXCHG and CMPXCHG8B/16B.
//!
//! LOCK changes nothing here: processors take turns on one thread.

use super::hit::quick;
use super::{Operand, Reg, byte_regs, memory, operand, wide, width, width_code};
use crate::flags::Flags;
use crate::insn::{Dec, Handler, Insn, RAX, RBX, RCX, RDX, chains};
use crate::state::Int;

/// An operation of two operands.
pub(super) trait Alu: 'static {
    fn run<T: Int>(f: &mut Flags, a: T, b: T) -> T;
}

macro_rules! alu {
    ($($name:ident: |$f:ident, $a:ident, $b:ident| $value:expr, $flags:ident;)*) => {$(
        pub(super) struct $name;
        impl Alu for $name {
            #[inline(always)]
            fn run<T: Int>($f: &mut Flags, a: T, b: T) -> T {
                let ($a, $b) = (a.to_u64(), b.to_u64());
                let r = T::from_u64($value);
                alu!(@ $flags, $f, a, b, r);
                r
            }
        }
    )*};
    (@ logic, $f:ident, $a:ident, $b:ident, $r:ident) => { $f.logic($r) };
    (@ $flags:ident, $f:ident, $a:ident, $b:ident, $r:ident) => { $f.$flags($a, $b, $r) };
}

alu! {
    Add: |f, a, b| a.wrapping_add(b), add;
    Or: |f, a, b| a | b, logic;
    Adc: |f, a, b| a.wrapping_add(b).wrapping_add(u64::from(f.cf())), add;
    Sbb: |f, a, b| a.wrapping_sub(b).wrapping_sub(u64::from(f.cf())), sub;
    And: |f, a, b| a & b, logic;
    Sub: |f, a, b| a.wrapping_sub(b), sub;
    Xor: |f, a, b| a ^ b, logic;
}

/// An operation of one operand.
pub(super) trait Unary: 'static {
    fn run<T: Int>(f: &mut Flags, a: T) -> T;
}

pub(super) struct Inc;
pub(super) struct Dec1;
struct Not;
struct Neg;

impl Unary for Inc {
    #[inline(always)]
    fn run<T: Int>(f: &mut Flags, a: T) -> T {
        let before = *f;
        let r = Add::run(f, a, T::from_u64(1));
        f.keep_cf(before);
        r
    }
}

impl Unary for Dec1 {
    #[inline(always)]
    fn run<T: Int>(f: &mut Flags, a: T) -> T {
        let before = *f;
        let r = Sub::run(f, a, T::from_u64(1));
        f.keep_cf(before);
        r
    }
}

impl Unary for Not {
    #[inline(always)]
    fn run<T: Int>(_: &mut Flags, a: T) -> T {
        T::from_u64(!a.to_u64())
    }
}

impl Unary for Neg {
    #[inline(always)]
    fn run<T: Int>(f: &mut Flags, a: T) -> T {
        Sub::run(f, T::from_u64(0), a)
    }
}

pub(super) fn select(i: &mut Insn, d: &Dec) -> Option<Handler> {
    let w = width_code(d);
    Some(match d.op {
        0x00..=0x3f => arith(i, d, (d.op >> 3) as u8 & 7, (d.op & 7) as u8),
        // The immediate is at the place of the accumulator forms' but the destination is ModRM.rm.
        0x80..=0x83 => arith(i, d, d.ext(), if d.op & 1 == 0 { 6 } else { 7 }),
        0x84 | 0x85 => {
            byte_regs(i, d, w);
            operand!(width, w, i, d, test)
        }
        0xa8 | 0xa9 => {
            i.rm = RAX;
            width!(w, test_imm, Reg)
        }
        0xf6 | 0xf7 if d.ext() < 2 => {
            byte_regs(i, d, w);
            operand!(width, w, i, d, test_imm)
        }
        0xf6 | 0xf7 => {
            byte_regs(i, d, w);
            if d.ext() == 2 { operand!(width, w, i, d, unary, Not) } else { operand!(width, w, i, d, unary, Neg) }
        }
        0x40..=0x4f => {
            i.rm = i.reg;
            let w = d.osize + 1;
            if d.op < 0x48 { wide!(w, unary, Inc, Reg) } else { wide!(w, unary, Dec1, Reg) }
        }
        0xfe | 0xff => {
            byte_regs(i, d, w);
            if d.ext() == 0 { operand!(width, w, i, d, unary, Inc) } else { operand!(width, w, i, d, unary, Dec1) }
        }
        0x0fb0 | 0x0fb1 => {
            byte_regs(i, d, w);
            if d.mem { memory!(width, w, i, d, cmpxchg) } else { width!(w, cmpxchg_reg) }
        }
        0x0fc0 | 0x0fc1 => {
            byte_regs(i, d, w);
            if d.mem { memory!(width, w, i, d, xadd) } else { width!(w, xadd_reg) }
        }
        0x0fc7 if d.ext() == 1 && d.mem => {
            if d.osize == 2 {
                cmpxchg16b
            } else {
                cmpxchg8b
            }
        }
        _ => return None,
    })
}

/// The forms of the eight operations by the low three bits of the opcode.
fn arith(i: &mut Insn, d: &Dec, operation: u8, form: u8) -> Handler {
    match operation {
        0 => arith_form::<Add>(i, d, form),
        1 => arith_form::<Or>(i, d, form),
        2 => arith_form::<Adc>(i, d, form),
        3 => arith_form::<Sbb>(i, d, form),
        4 => arith_form::<And>(i, d, form),
        5 => arith_form::<Sub>(i, d, form),
        6 => arith_form::<Xor>(i, d, form),
        _ => compare_form(i, d, form),
    }
}

fn arith_form<O: Alu>(i: &mut Insn, d: &Dec, form: u8) -> Handler {
    let w = width_code(d);
    match form {
        0..=3 => {
            byte_regs(i, d, w);
            if !d.mem {
                if form < 2 {
                    // Between registers the destination is always `reg`.
                    std::mem::swap(&mut i.reg, &mut i.rm);
                }
                // The usual way to make a zero depends on nothing.
                if i.reg == i.rm && w >= 2 && matches!(d.op, 0x29 | 0x2b | 0x31 | 0x33) {
                    return wide!(w, zero);
                }
                width!(w, into_reg, O, Reg)
            } else if form < 2 {
                memory!(width, w, i, d, into_mem, O)
            } else {
                operand!(width, w, i, d, into_reg, O)
            }
        }
        4 | 5 => {
            i.rm = RAX;
            width!(w, immediate, O, Reg)
        }
        _ => {
            byte_regs(i, d, w);
            operand!(width, w, i, d, immediate, O)
        }
    }
}

fn compare_form(i: &mut Insn, d: &Dec, form: u8) -> Handler {
    let w = width_code(d);
    match form {
        4 | 5 => {
            i.rm = RAX;
            return width!(w, compare_imm, Reg);
        }
        6 | 7 => {
            byte_regs(i, d, w);
            return operand!(width, w, i, d, compare_imm);
        }
        _ => byte_regs(i, d, w),
    }
    if !d.mem {
        if form < 2 {
            std::mem::swap(&mut i.reg, &mut i.rm);
        }
        width!(w, compare_reg, Reg)
    } else if form < 2 {
        memory!(width, w, i, d, compare_mem)
    } else {
        operand!(width, w, i, d, compare_reg)
    }
}

quick! {
    fn into_reg<O: Alu, S: Operand, T: Int>[O, S::Quick, T][O, S::Slow, T](cpu, i) {
        let b = S::get::<T>(cpu, i)?;
        let a = cpu.reg::<T>(i.reg);
        let r = O::run(&mut cpu.flags, a, b);
        cpu.set_reg(i.reg, r);
        Ok(())
    }

    fn into_mem<O: Alu, S: Operand, T: Int>[O, S::Quick, T][O, S::Slow, T](cpu, i) {
        let b = cpu.reg::<T>(i.reg);
        S::update(cpu, i, |f, a| O::run(f, a, b))
    }

    fn immediate<O: Alu, S: Operand, T: Int>[O, S::Quick, T][O, S::Slow, T](cpu, i) {
        let b = T::from_u64(i.imm);
        S::update(cpu, i, |f, a| O::run(f, a, b))
    }

    fn compare_reg<S: Operand, T: Int>[S::Quick, T][S::Slow, T](cpu, i) {
        let b = S::get::<T>(cpu, i)?;
        let a = cpu.reg::<T>(i.reg);
        Sub::run(&mut cpu.flags, a, b);
        Ok(())
    }

    fn compare_mem<S: Operand, T: Int>[S::Quick, T][S::Slow, T](cpu, i) {
        let a = S::get::<T>(cpu, i)?;
        let b = cpu.reg::<T>(i.reg);
        Sub::run(&mut cpu.flags, a, b);
        Ok(())
    }

    fn compare_imm<S: Operand, T: Int>[S::Quick, T][S::Slow, T](cpu, i) {
        let a = S::get::<T>(cpu, i)?;
        Sub::run(&mut cpu.flags, a, T::from_u64(i.imm));
        Ok(())
    }

    fn test<S: Operand, T: Int>[S::Quick, T][S::Slow, T](cpu, i) {
        let a = S::get::<T>(cpu, i)?;
        let b = cpu.reg::<T>(i.reg);
        And::run(&mut cpu.flags, a, b);
        Ok(())
    }

    fn test_imm<S: Operand, T: Int>[S::Quick, T][S::Slow, T](cpu, i) {
        let a = S::get::<T>(cpu, i)?;
        And::run(&mut cpu.flags, a, T::from_u64(i.imm));
        Ok(())
    }

    fn unary<O: Unary, S: Operand, T: Int>[O, S::Quick, T][O, S::Slow, T](cpu, i) {
        S::update(cpu, i, O::run::<T>)
    }

    /// The destination is always written, if only with what it held.
    fn cmpxchg<S: Operand, T: Int>[S::Quick, T][S::Slow, T](cpu, i) {
        let (accumulator, new) = (cpu.reg::<T>(RAX), cpu.reg::<T>(i.reg));
        let mut old = accumulator;
        S::update(cpu, i, |f, a| {
            old = a;
            Sub::run(f, accumulator, a);
            if a == accumulator { new } else { a }
        })?;
        if old != accumulator {
            cpu.set_reg(RAX, old);
        }
        Ok(())
    }

    fn xadd<S: Operand, T: Int>[S::Quick, T][S::Slow, T](cpu, i) {
        let b = cpu.reg::<T>(i.reg);
        let mut old = b;
        S::update(cpu, i, |f, a| {
            old = a;
            Add::run(f, a, b)
        })?;
        cpu.set_reg(i.reg, old);
        Ok(())
    }
}

chains! {
    fn zero<T: Int>(cpu, i) {
        cpu.set_reg(i.reg, T::from_u64(0));
        cpu.flags.logic(T::from_u64(0));
        Ok(())
    }

    /// Only one of the two registers is written, so that only of one 32 bits clear the upper half.
    fn cmpxchg_reg<T: Int>(cpu, i) {
        let (accumulator, a) = (cpu.reg::<T>(RAX), cpu.reg::<T>(i.rm));
        Sub::run(&mut cpu.flags, accumulator, a);
        if a == accumulator {
            let new = cpu.reg::<T>(i.reg);
            cpu.set_reg(i.rm, new);
        } else {
            cpu.set_reg(RAX, a);
        }
        Ok(())
    }

    /// The source is written first: XADD of a register with itself leaves the sum.
    fn xadd_reg<T: Int>(cpu, i) {
        let (a, b) = (cpu.reg::<T>(i.rm), cpu.reg::<T>(i.reg));
        let sum = Add::run(&mut cpu.flags, a, b);
        cpu.set_reg(i.reg, a);
        cpu.set_reg(i.rm, sum);
        Ok(())
    }

    fn cmpxchg8b(cpu, i) {
        let lin = cpu.lin_gen(i, 8, true)?;
        let old = cpu.load_rmw::<u64>(lin)?;
        let [a, b, c, d] = [RAX, RBX, RCX, RDX].map(|r| u64::from(cpu.reg::<u32>(r)));
        let equal = old == d << 32 | a;
        cpu.store(lin, if equal { c << 32 | b } else { old })?;
        cpu.flags.set_zf(equal);
        if !equal {
            cpu.set_reg(RAX, old as u32);
            cpu.set_reg(RDX, (old >> 32) as u32);
        }
        Ok(())
    }

    fn cmpxchg16b(cpu, i) {
        let lin = cpu.lin_gen(i, 16, true)?;
        if lin & 15 != 0 {
            return Err(cpu.gp(0));
        }
        // Both halves are in one page: what the first access may do, the others may.
        let old = (cpu.load_rmw::<u64>(lin)?, cpu.load_rmw::<u64>(lin + 8)?);
        let [a, b, c, d] = [RAX, RBX, RCX, RDX].map(|r| cpu.reg::<u64>(r));
        let equal = old == (a, d);
        let new = if equal { (b, c) } else { old };
        cpu.store(lin, new.0)?;
        cpu.store(lin + 8, new.1)?;
        cpu.flags.set_zf(equal);
        if !equal {
            cpu.set_reg(RAX, old.0);
            cpu.set_reg(RDX, old.1);
        }
        Ok(())
    }
}
