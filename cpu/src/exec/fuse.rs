//! Comparisons with the conditional jump behind them.
//!
//! A third of all blocks end with CMP, TEST, INC or DEC and Jcc. The handlers here do the work of both: the jump
//! remains an instruction of its own, which counts and which the handler falls back on, but it costs no dispatch, and
//! most conditions are known from the operands sooner than from the flags. Only for flat segments.

use super::alu::{Alu, Dec1, Inc, Sub, Unary};
use super::hit::two;
use super::{Base, Cc, Condition, Kind, Operand, Reg, kind, wide, width, width_code};
use crate::flags::Flags;
use crate::insn::{Dec, Handler, Insn, Res, stop_at};
use crate::mem::canonical;
use crate::state::{Cpu, Int};

/// The handler for an instruction that `exec::select` has prepared and the Jcc behind it, if there is one.
pub(super) fn select(i: &Insn, d: &Dec, condition: u8) -> Option<Handler> {
    /// All conditions but overflow and parity, which nobody asks for here.
    macro_rules! ordered {
        ($f:ident($($a:expr),*)) => { one_of!($f, ($($a),*), 2 3 4 5 6 7 8 9 12 13 14 15) };
    }
    /// Those that INC and DEC, or AND, decide.
    macro_rules! signs {
        ($f:ident($($a:expr),*)) => { one_of!($f, ($($a),*), 4 5 8 9 14 15) };
    }
    macro_rules! one_of {
        ($f:ident, $args:tt, $($n:literal)*) => {
            match condition {
                $($n => one_of!(@call $f, $n, $args),)*
                _ => return None,
            }
        };
        (@call $f:ident, $n:literal, ($($a:expr),*)) => { $f::<Cc<$n>>($($a),*) };
    }
    let kind = kind(i, d);
    let w = width_code(d);
    match (d.op, kind) {
        (0x38..=0x3b, Kind::Reg) => Some(ordered!(compare_regs(w))),
        (0x38 | 0x39, Kind::Base) => Some(ordered!(compare_mem_form(w))),
        (0x3a | 0x3b, Kind::Base) => Some(ordered!(compare_with_mem(w))),
        (0x3c | 0x3d, _) => Some(ordered!(compare_reg_imm(w))),
        (0x80..=0x83, Kind::Reg) if d.ext() == 7 => Some(ordered!(compare_reg_imm(w))),
        (0x80..=0x83, Kind::Base) if d.ext() == 7 => Some(ordered!(compare_mem_imm(w))),
        (0x84 | 0x85, Kind::Reg) => Some(signs!(test_form(w))),
        (0xa8 | 0xa9, _) => Some(signs!(test_reg_imm(w))),
        (0xf6 | 0xf7, Kind::Reg) if d.ext() < 2 => Some(signs!(test_reg_imm(w))),
        (0xf6 | 0xf7, Kind::Base) if d.ext() < 2 => Some(signs!(test_mem_imm(w))),
        (0x40..=0x47, _) => Some(signs!(inc(d.osize + 1))),
        (0x48..=0x4f, _) => Some(signs!(dec(d.osize + 1))),
        (0xff, Kind::Reg) if d.ext() == 0 => Some(signs!(inc(w))),
        (0xff, Kind::Reg) if d.ext() == 1 => Some(signs!(dec(w))),
        _ => None,
    }
}

macro_rules! forms {
    ($($name:ident: $by:ident $f:ident $(, $p:ty)*;)*) => {$(
        fn $name<C: Condition>(w: u8) -> Handler {
            $by!(w, $f, C $(, $p)*)
        }
    )*};
}

forms! {
    compare_regs: width compare_reg, Reg;
    compare_with_mem: width compare_reg, Base;
    compare_mem_form: width compare_mem, Base;
    compare_reg_imm: width compare_imm, Reg;
    compare_mem_imm: width compare_imm, Base;
    test_form: width test;
    test_reg_imm: width test_imm, Reg;
    test_mem_imm: width test_imm, Base;
    inc: wide unary, Inc;
    dec: wide unary, Dec1;
}

/// Whether a condition holds after `a - b`.
#[inline(always)]
fn compared<C: Condition, T: Int>(f: Flags, a: T, b: T) -> bool {
    let (signed_a, signed_b) = (a.sext() as i64, b.sext() as i64);
    let c = match C::CODE >> 1 {
        1 => a < b,
        2 => a == b,
        3 => a <= b,
        6 => signed_a < signed_b,
        7 => signed_a <= signed_b,
        _ => return f.cond(C::CODE),
    };
    c != (C::CODE & 1 != 0)
}

/// Ends a handler with the jump behind it.
#[inline(always)]
fn jump(cpu: &mut Cpu, i: &Insn, holds: bool) -> Res {
    if holds {
        let jcc = i.following();
        let to = cpu.next_rip(jcc).wrapping_add(jcc.imm) & cpu.flat_mask;
        if !canonical(to) {
            return (jcc.exec)(cpu, jcc);
        }
        cpu.rip = to;
    }
    Ok(())
}

two! { bool, jump, stop_at,
    fn compare_reg<C: Condition, S: Operand, T: Int>[C, S::Quick, T][C, S::Slow, T](cpu, i) {
        let b = S::get::<T>(cpu, i)?;
        let a = cpu.reg::<T>(i.reg);
        Sub::run(&mut cpu.flags, a, b);
        Ok(compared::<C, T>(cpu.flags, a, b))
    }

    fn compare_mem<C: Condition, S: Operand, T: Int>[C, S::Quick, T][C, S::Slow, T](cpu, i) {
        let a = S::get::<T>(cpu, i)?;
        let b = cpu.reg::<T>(i.reg);
        Sub::run(&mut cpu.flags, a, b);
        Ok(compared::<C, T>(cpu.flags, a, b))
    }

    fn compare_imm<C: Condition, S: Operand, T: Int>[C, S::Quick, T][C, S::Slow, T](cpu, i) {
        let a = S::get::<T>(cpu, i)?;
        let b = T::from_u64(i.imm);
        Sub::run(&mut cpu.flags, a, b);
        Ok(compared::<C, T>(cpu.flags, a, b))
    }

    fn test_imm<C: Condition, S: Operand, T: Int>[C, S::Quick, T][C, S::Slow, T](cpu, i) {
        let a = S::get::<T>(cpu, i)?;
        cpu.flags.logic(T::from_u64(a.to_u64() & i.imm));
        Ok(cpu.flags.cond(C::CODE))
    }

    fn test<C: Condition, T: Int>[C, T][C, T](cpu, i) {
        let (a, b) = (cpu.reg::<T>(i.rm).to_u64(), cpu.reg::<T>(i.reg).to_u64());
        cpu.flags.logic(T::from_u64(a & b));
        Ok(cpu.flags.cond(C::CODE))
    }

    fn unary<C: Condition, O: Unary, T: Int>[C, O, T][C, O, T](cpu, i) {
        let a = cpu.reg::<T>(i.rm);
        let r = O::run(&mut cpu.flags, a);
        cpu.set_reg(i.rm, r);
        Ok(cpu.flags.cond(C::CODE))
    }
}
