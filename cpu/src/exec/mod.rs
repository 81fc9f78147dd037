//! The integer instructions.
//!
//! Handlers are small generic functions, made for each operand width ([`Int`]), operation, and kind of operand
//! ([`Operand`]: a register, or memory addressed in one of three ways ([`Addr`])), so that none of these is looked at
//! while code runs. `select` in each file picks one when an instruction is decoded, and arranges the [`Insn`] for it.
//!
//! Flags that the architecture leaves undefined are what Intel's and AMD's processors have been seen to make of them
//! where the two agree; each family of instructions says so where it matters.

mod addr;
mod alu;
mod bcd;
mod bits;
mod control;
mod fuse;
mod hit;
mod mov;
mod muldiv;
mod shift;
mod stack;
mod string;
#[cfg(test)]
mod tests;

pub(crate) use addr::{Addr, Base, Flat, Gen};

use crate::flags::Flags;
use crate::insn::{Dec, FS, Handler, Insn, Mode, Res, ZERO};
use crate::state::{Cpu, Int};

/// Picks the handler of an integer instruction.
pub(crate) fn select(i: &mut Insn, d: &Dec) -> Option<Handler> {
    match d.op {
        0x27 | 0x2f | 0x37 | 0x3f | 0xd4 | 0xd5 => bcd::select(i, d),
        0x00..=0x3f | 0x40..=0x4f | 0x80..=0x85 | 0xa8 | 0xa9 => alu::select(i, d),
        0x50..=0x61 | 0x68 | 0x6a | 0x8f | 0xc8 | 0xc9 => stack::select(i, d),
        0x62 | 0x70..=0x7f | 0xc2 | 0xc3 | 0xe0..=0xe3 | 0xe8 | 0xe9 | 0xeb | 0x0f80..=0x0f8f => control::select(i, d),
        0x69 | 0x6b | 0x0faf => muldiv::select(i, d),
        0xa4..=0xa7 | 0xaa..=0xaf => string::select(i, d),
        0xc0 | 0xc1 | 0xd0..=0xd3 | 0x0fa4 | 0x0fa5 | 0x0fac | 0x0fad => shift::select(i, d),
        0xf6 | 0xf7 if d.ext() >= 4 => muldiv::select(i, d),
        0xf6 | 0xf7 => alu::select(i, d),
        0xfe | 0xff if d.ext() < 2 => alu::select(i, d),
        0xff if d.ext() == 6 => stack::select(i, d),
        0xff => control::select(i, d),
        0x0fa3 | 0x0fab | 0x0fb3 | 0x0fbb..=0x0fbd | 0x0fb8 | 0x0fba | 0x38f0 | 0x38f1 => bits::select(i, d),
        0x0fb0 | 0x0fb1 | 0x0fc0 | 0x0fc1 | 0x0fc7 => alu::select(i, d),
        _ => mov::select(i, d),
    }
}

/// Another handler for an instruction that [`select`] has prepared: it does the work of the Jcc behind it, too.
pub(crate) fn select_fused(i: &Insn, d: &Dec, condition: u8) -> Option<Handler> {
    fuse::select(i, d, condition)
}

/// How the operand that ModRM.rm names is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A register: [`Reg`].
    Reg,
    /// [`Base`].
    Base,
    /// [`Flat`].
    Flat,
    /// [`Gen`].
    Gen,
}

/// The kind of the operand that ModRM.rm names.
pub(crate) fn kind(i: &Insn, d: &Dec) -> Kind {
    if !d.mem {
        return Kind::Reg;
    }
    let flat = if d.mode.has(Mode::LONG) {
        i.seg < FS && d.asize == 2
    } else {
        // Writing by way of CS is never allowed in protected mode, so CS keeps its checks.
        d.mode.has(Mode::FLAT) && i.seg < FS && i.seg != crate::insn::CS && d.asize == 1
    };
    match (flat, i.index == ZERO) {
        (true, true) => Kind::Base,
        (true, false) => Kind::Flat,
        (false, _) => Kind::Gen,
    }
}

/// The code of an operand width for [`width!`]: 0 for 8 bits, 1 for 16, 2 for 32, 3 for 64. Bit 0 of most opcodes
/// chooses between 8 bits and the operand size.
pub(crate) fn width_code(d: &Dec) -> u8 {
    if d.op & 1 == 0 { 0 } else { d.osize + 1 }
}

/// The number of an 8-bit register as [`Insn`] wants it: without REX, 4 to 7 are AH, CH, DH and BH.
pub(crate) fn byte_reg(r: u8, d: &Dec) -> u8 {
    if d.rex == 0 && r & 0x1c == 4 { 0x80 | (r & 3) } else { r }
}

/// Makes the register numbers those of 8-bit registers if the width code says so.
fn byte_regs(i: &mut Insn, d: &Dec, width: u8) {
    if width == 0 {
        i.reg = byte_reg(i.reg, d);
        i.rm = byte_reg(i.rm, d);
    }
}

/// `f::<P.., T>` with the integer type of a width code.
macro_rules! width {
    ($w:expr, $f:ident $(, $p:ty)*) => {
        match $w {
            0 => $f::<$($p,)* u8> as $crate::insn::Handler,
            1 => $f::<$($p,)* u16>,
            2 => $f::<$($p,)* u32>,
            _ => $f::<$($p,)* u64>,
        }
    };
}

/// As [`width!`], for instructions without an 8-bit form.
macro_rules! wide {
    ($w:expr, $f:ident $(, $p:ty)*) => {
        match $w {
            0 | 1 => $f::<$($p,)* u16> as $crate::insn::Handler,
            2 => $f::<$($p,)* u32>,
            _ => $f::<$($p,)* u64>,
        }
    };
}

/// `f::<P.., S, T>` with the kind of the operand that ModRM.rm names and, by `width` or `wide`, an integer type.
macro_rules! operand {
    ($by:ident, $w:expr, $i:expr, $d:expr, $f:ident $(, $p:ty)*) => {
        match $crate::exec::kind($i, $d) {
            $crate::exec::Kind::Reg => $by!($w, $f $(, $p)*, $crate::exec::Reg),
            $crate::exec::Kind::Base => $by!($w, $f $(, $p)*, $crate::exec::Base),
            $crate::exec::Kind::Flat => $by!($w, $f $(, $p)*, $crate::exec::Flat),
            $crate::exec::Kind::Gen => $by!($w, $f $(, $p)*, $crate::exec::Gen),
        }
    };
}

/// As [`operand!`] for an operand that is known to be memory, thus a type that is [`Addr`].
macro_rules! memory {
    ($by:ident, $w:expr, $i:expr, $d:expr, $f:ident $(, $p:ty)*) => {
        match $crate::exec::kind($i, $d) {
            $crate::exec::Kind::Base => $by!($w, $f $(, $p)*, $crate::exec::Base),
            $crate::exec::Kind::Flat => $by!($w, $f $(, $p)*, $crate::exec::Flat),
            _ => $by!($w, $f $(, $p)*, $crate::exec::Gen),
        }
    };
}

/// `f::<Cc<N>>(..)` with the condition code that the low four bits of an opcode are.
macro_rules! by_condition {
    ($op:expr, $f:ident($($a:expr),*)) => {
        by_condition!(@ $op, $f, ($($a),*), 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14)
    };
    (@ $op:expr, $f:ident, $args:tt, $($n:literal)*) => {
        match $op & 15 {
            $($n => by_condition!(@call $f, $n, $args),)*
            _ => by_condition!(@call $f, 15, $args),
        }
    };
    (@call $f:ident, $n:literal, ($($a:expr),*)) => { $f::<$crate::exec::Cc<$n>>($($a),*) };
}

use by_condition;
pub(crate) use {memory, operand, wide, width};

/// A condition code as a type.
trait Condition: 'static {
    const CODE: u8;
}

/// Condition code N, 0 to 15 as Jcc encodes it.
struct Cc<const N: u8>;

impl<const N: u8> Condition for Cc<N> {
    const CODE: u8 = N;
}

/// The operand that ModRM.rm names.
pub(crate) trait Operand: 'static {
    /// The same, but it gives up on anything but a TLB hit, without a word in [`Cpu::why`]; see [`hit`].
    type Quick: Operand;
    /// The same, when it does not matter how long it takes.
    type Slow: Operand;

    /// Reads it.
    fn get<T: Int>(cpu: &mut Cpu, i: &Insn) -> Res<T>;
    /// Writes it.
    fn put<T: Int>(cpu: &mut Cpu, i: &Insn, v: T) -> Res;
    /// Reads it, and writes what `f` makes of it; `f` also makes the flags.
    fn update<T: Int>(cpu: &mut Cpu, i: &Insn, f: impl FnOnce(&mut Flags, T) -> T) -> Res;
}

/// The general register [`Insn::rm`].
pub(crate) struct Reg;

impl Operand for Reg {
    type Quick = Reg;
    type Slow = Reg;

    #[inline(always)]
    fn get<T: Int>(cpu: &mut Cpu, i: &Insn) -> Res<T> {
        Ok(cpu.reg(i.rm))
    }

    #[inline(always)]
    fn put<T: Int>(cpu: &mut Cpu, i: &Insn, v: T) -> Res {
        cpu.set_reg(i.rm, v);
        Ok(())
    }

    #[inline(always)]
    fn update<T: Int>(cpu: &mut Cpu, i: &Insn, f: impl FnOnce(&mut Flags, T) -> T) -> Res {
        let a = cpu.reg(i.rm);
        let r = f(&mut cpu.flags, a);
        cpu.set_reg(i.rm, r);
        Ok(())
    }
}

impl<A: Addr> Operand for A {
    type Quick = Quick<A>;
    type Slow = Gen;

    #[inline(always)]
    fn get<T: Int>(cpu: &mut Cpu, i: &Insn) -> Res<T> {
        cpu.read_mem::<A, T>(i)
    }

    #[inline(always)]
    fn put<T: Int>(cpu: &mut Cpu, i: &Insn, v: T) -> Res {
        cpu.write_mem::<A, T>(i, v)
    }

    #[inline(always)]
    fn update<T: Int>(cpu: &mut Cpu, i: &Insn, f: impl FnOnce(&mut Flags, T) -> T) -> Res {
        let (lin, a) = cpu.read_modify::<A, T>(i)?;
        // Flags are kept only if the write succeeds.
        let mut flags = cpu.flags;
        let r = f(&mut flags, a);
        cpu.store(lin, r)?;
        cpu.flags = flags;
        Ok(())
    }
}

/// Memory that the TLB knows.
pub(crate) struct Quick<A>(std::marker::PhantomData<A>);

impl<A: Addr> Operand for Quick<A> {
    type Quick = Quick<A>;
    type Slow = Gen;

    #[inline(always)]
    fn get<T: Int>(cpu: &mut Cpu, i: &Insn) -> Res<T> {
        let lin = A::quick(cpu, i, u32::from(T::BYTES), false)?;
        Ok(cpu.read_hit::<T>(lin)?.get())
    }

    #[inline(always)]
    fn put<T: Int>(cpu: &mut Cpu, i: &Insn, v: T) -> Res {
        let lin = A::quick(cpu, i, u32::from(T::BYTES), true)?;
        cpu.write_hit::<T>(lin)?.set(v);
        Ok(())
    }

    #[inline(always)]
    fn update<T: Int>(cpu: &mut Cpu, i: &Insn, f: impl FnOnce(&mut Flags, T) -> T) -> Res {
        let lin = A::quick(cpu, i, u32::from(T::BYTES), true)?;
        let hit = cpu.write_hit::<T>(lin)?;
        let r = f(&mut cpu.flags, hit.get());
        hit.set(r);
        Ok(())
    }
}

impl Cpu {
    /// A general register, or for 8 bits the upper half of one.
    #[inline(always)]
    pub(crate) fn reg<T: Int>(&self, r: u8) -> T {
        let v = self.gpr[usize::from(r & 31)];
        T::from_u64(if T::BITS == 8 { v >> (r >> 4 & 8) } else { v })
    }

    /// Writes a general register: 32 bits clear the upper half, 8 and 16 bits leave the rest as it is.
    #[inline(always)]
    pub(crate) fn set_reg<T: Int>(&mut self, r: u8, v: T) {
        let slot = &mut self.gpr[usize::from(r & 31)];
        match T::BITS {
            8 => {
                let shift = r >> 4 & 8;
                *slot = *slot & !(0xff << shift) | v.to_u64() << shift;
            }
            16 => *slot = *slot & !0xffff | v.to_u64(),
            _ => *slot = v.to_u64(),
        }
    }

    /// Writes a register that counts or points by address size: as [`Cpu::set_reg`].
    #[inline(always)]
    pub(crate) fn set_masked(&mut self, r: u8, v: u64, mask: u64) {
        let slot = &mut self.gpr[usize::from(r & 31)];
        *slot = if mask == 0xffff { *slot & !mask | v } else { v };
    }
}
