//! PUSH, POP, PUSHA, POPA, ENTER and LEAVE, and the three sorts of stack that they and near calls use.
//!
//! RSP changes only when all accesses have succeeded.

use super::hit::quick;
use super::{Operand, Reg, operand};
use crate::insn::{Dec, Handler, Insn, Mode, RAX, RBP, RSP, Res, SS, chains};
use crate::state::{Cpu, Int};

/// A sort of stack.
pub(super) trait Stack: 'static {
    /// The same, but it gives up on anything but a TLB hit.
    type Quick: Stack;

    /// The bits of RSP that count.
    fn mask(cpu: &Cpu) -> u64;
    /// Writes the bits of RSP that count.
    fn set(cpu: &mut Cpu, sp: u64);
    /// The linear address of `len` bytes at an offset in the segment.
    fn linear(cpu: &mut Cpu, offset: u64, len: u8, write: bool) -> Res<u64>;
    /// The same, if it is plain; see [`super::Addr::quick`].
    fn quick(cpu: &Cpu, offset: u64, len: u8, write: bool) -> Res<u64>;

    /// Reads at an offset in the segment.
    #[inline(always)]
    fn read<T: Int>(cpu: &mut Cpu, offset: u64) -> Res<T> {
        let lin = Self::linear(cpu, offset, T::BYTES, false)?;
        match cpu.load(lin) {
            Ok(v) => Ok(v),
            Err(_) => Err(cpu.stack_fault()),
        }
    }

    /// Writes at an offset in the segment.
    #[inline(always)]
    fn write<T: Int>(cpu: &mut Cpu, offset: u64, v: T) -> Res {
        let lin = Self::linear(cpu, offset, T::BYTES, true)?;
        match cpu.store(lin, v) {
            Ok(()) => Ok(()),
            Err(_) => Err(cpu.stack_fault()),
        }
    }

    /// Reads what is `skip` bytes above the top.
    #[inline(always)]
    fn peek<T: Int>(cpu: &mut Cpu, skip: u64) -> Res<T> {
        let sp = cpu.gpr[usize::from(RSP)].wrapping_add(skip) & Self::mask(cpu);
        Self::read(cpu, sp)
    }

    /// Moves the top up by `bytes`.
    #[inline(always)]
    fn discard(cpu: &mut Cpu, bytes: u64) {
        let sp = cpu.gpr[usize::from(RSP)].wrapping_add(bytes) & Self::mask(cpu);
        Self::set(cpu, sp);
    }

    #[inline(always)]
    fn pop<T: Int>(cpu: &mut Cpu) -> Res<T> {
        let v = Self::peek(cpu, 0)?;
        Self::discard(cpu, u64::from(T::BYTES));
        Ok(v)
    }

    #[inline(always)]
    fn push<T: Int>(cpu: &mut Cpu, v: T) -> Res {
        let sp = cpu.gpr[usize::from(RSP)].wrapping_sub(u64::from(T::BYTES)) & Self::mask(cpu);
        Self::write(cpu, sp, v)?;
        Self::set(cpu, sp);
        Ok(())
    }
}

/// RSP in 64-bit code.
pub(super) struct Stack64;

/// ESP in a flat segment.
pub(super) struct Stack32;

/// SP or ESP in any segment.
pub(super) struct StackSeg;

macro_rules! flat {
    ($name:ident, $mask:expr) => {
        impl Stack for $name {
            type Quick = QuickStack<$name>;

            #[inline(always)]
            fn mask(_: &Cpu) -> u64 {
                $mask
            }

            #[inline(always)]
            fn set(cpu: &mut Cpu, sp: u64) {
                cpu.gpr[usize::from(RSP)] = sp;
            }

            #[inline(always)]
            fn linear(_: &mut Cpu, offset: u64, _: u8, _: bool) -> Res<u64> {
                Ok(offset)
            }

            #[inline(always)]
            fn quick(_: &Cpu, offset: u64, _: u8, _: bool) -> Res<u64> {
                Ok(offset)
            }
        }
    };
}

flat!(Stack64, u64::MAX);
flat!(Stack32, 0xffff_ffff);

impl Stack for StackSeg {
    type Quick = QuickStack<StackSeg>;

    #[inline(always)]
    fn mask(cpu: &Cpu) -> u64 {
        if cpu.mode.has(Mode::STACK32) { 0xffff_ffff } else { 0xffff }
    }

    #[inline(always)]
    fn set(cpu: &mut Cpu, sp: u64) {
        let mask = Self::mask(cpu);
        let rsp = &mut cpu.gpr[usize::from(RSP)];
        *rsp = *rsp & !mask & 0xffff_ffff | sp;
    }

    #[inline(always)]
    fn linear(cpu: &mut Cpu, offset: u64, len: u8, write: bool) -> Res<u64> {
        cpu.lin_seg(SS, offset, u32::from(len), write)
    }

    #[inline(always)]
    fn quick(cpu: &Cpu, offset: u64, len: u8, write: bool) -> Res<u64> {
        cpu.quick_seg(SS, offset, u32::from(len), write)
    }
}

/// A stack that the TLB knows.
pub(super) struct QuickStack<K>(std::marker::PhantomData<K>);

impl<K: Stack> Stack for QuickStack<K> {
    type Quick = QuickStack<K>;

    #[inline(always)]
    fn mask(cpu: &Cpu) -> u64 {
        K::mask(cpu)
    }

    #[inline(always)]
    fn set(cpu: &mut Cpu, sp: u64) {
        K::set(cpu, sp);
    }

    #[inline(always)]
    fn linear(cpu: &mut Cpu, offset: u64, len: u8, write: bool) -> Res<u64> {
        K::quick(cpu, offset, len, write)
    }

    #[inline(always)]
    fn quick(cpu: &Cpu, offset: u64, len: u8, write: bool) -> Res<u64> {
        K::quick(cpu, offset, len, write)
    }

    #[inline(always)]
    fn read<T: Int>(cpu: &mut Cpu, offset: u64) -> Res<T> {
        let lin = K::quick(cpu, offset, T::BYTES, false)?;
        Ok(cpu.read_hit::<T>(lin)?.get())
    }

    #[inline(always)]
    fn write<T: Int>(cpu: &mut Cpu, offset: u64, v: T) -> Res {
        let lin = K::quick(cpu, offset, T::BYTES, true)?;
        cpu.write_hit::<T>(lin)?.set(v);
        Ok(())
    }
}

/// Whether the instruction's mode has a stack of the flat sorts.
pub(super) fn flat_stack(d: &Dec) -> bool {
    d.mode.has(Mode::LONG) || d.mode.has(Mode::FLAT) && d.mode.has(Mode::STACK32)
}

/// `f::<P.., K, T>` with the sort of stack and the width of what is pushed: in 64-bit code 64 bits, or 16 with a
/// prefix.
macro_rules! stack {
    ($d:expr, $f:ident $(, $p:ty)*) => {
        match ($d.osize, flat_stack($d), $d.mode.has(Mode::LONG)) {
            (0, _, true) => $f::<$($p,)* Stack64, u16> as Handler,
            (_, _, true) => $f::<$($p,)* Stack64, u64>,
            (0, true, _) => $f::<$($p,)* Stack32, u16>,
            (_, true, _) => $f::<$($p,)* Stack32, u32>,
            (0, _, _) => $f::<$($p,)* StackSeg, u16>,
            _ => $f::<$($p,)* StackSeg, u32>,
        }
    };
}

pub(super) fn select(i: &mut Insn, d: &Dec) -> Option<Handler> {
    Some(match d.op {
        0x50..=0x57 => {
            i.rm = i.reg;
            stack!(d, push, Reg)
        }
        0x58..=0x5f => {
            i.rm = i.reg;
            stack!(d, pop, Reg)
        }
        0x60 => stack!(d, pusha),
        0x61 => stack!(d, popa),
        0x68 | 0x6a => stack!(d, push_imm),
        0x8f if d.ext() == 0 => operand!(stack, d, i, d, pop),
        0xff => operand!(stack, d, i, d, push),
        0xc8 => stack!(d, enter),
        0xc9 => stack!(d, leave),
        _ => return None,
    })
}

quick! {
    fn push<S: Operand, K: Stack, T: Int>[S::Quick, K::Quick, T][S::Slow, K, T](cpu, i) {
        let v = S::get::<T>(cpu, i)?;
        K::push(cpu, v)
    }

    fn push_imm<K: Stack, T: Int>[K::Quick, T][K, T](cpu, i) {
        K::push(cpu, T::from_u64(i.imm))
    }

    /// A destination that is addressed by RSP is addressed by what RSP is after the POP.
    fn pop<S: Operand, K: Stack, T: Int>[S::Quick, K::Quick, T][S::Slow, K, T](cpu, i) {
        let before = cpu.gpr[usize::from(RSP)];
        let v = K::pop::<T>(cpu)?;
        let done = S::put(cpu, i, v);
        if done.is_err() {
            cpu.gpr[usize::from(RSP)] = before;
        }
        done
    }

    fn leave<K: Stack, T: Int>[K::Quick, T][K, T](cpu, _i) {
        let top = cpu.gpr[usize::from(RBP)] & K::mask(cpu);
        let v = K::read::<T>(cpu, top)?;
        K::set(cpu, top.wrapping_add(u64::from(T::BYTES)) & K::mask(cpu));
        cpu.set_reg(RBP, v);
        Ok(())
    }
}

chains! {
    fn pusha<K: Stack, T: Int>(cpu, _) {
        let before = cpu.gpr[usize::from(RSP)];
        for r in RAX..RAX + 8 {
            let v = if r == RSP { T::from_u64(before) } else { cpu.reg(r) };
            if let Err(stop) = K::push::<T>(cpu, v) {
                cpu.gpr[usize::from(RSP)] = before;
                return Err(stop);
            }
        }
        Ok(())
    }

    fn popa<K: Stack, T: Int>(cpu, _) {
        let mut values = [T::default(); 8];
        for (n, v) in values.iter_mut().enumerate() {
            *v = K::peek(cpu, n as u64 * u64::from(T::BYTES))?;
        }
        for (r, v) in (0..8).rev().zip(values) {
            if r != RSP {
                cpu.set_reg(r, v);
            }
        }
        K::discard(cpu, 8 * u64::from(T::BYTES));
        Ok(())
    }

    fn enter<K: Stack, T: Int>(cpu, i) {
        let before = cpu.gpr[usize::from(RSP)];
        let done = enter_frame::<K, T>(cpu, i);
        if done.is_err() {
            cpu.gpr[usize::from(RSP)] = before;
        }
        done
    }
}

/// Leaves RSP anywhere if it fails.
fn enter_frame<K: Stack, T: Int>(cpu: &mut Cpu, i: &Insn) -> Res {
    let (size, level) = (i.imm & 0xffff, i.imm >> 16 & 31);
    let mut rbp = cpu.gpr[usize::from(RBP)];
    K::push(cpu, T::from_u64(rbp))?;
    let frame = cpu.gpr[usize::from(RSP)];
    for _ in 1..level {
        rbp = rbp.wrapping_sub(u64::from(T::BYTES)) & K::mask(cpu);
        let outer = K::read::<T>(cpu, rbp)?;
        K::push(cpu, outer)?;
    }
    if level > 0 {
        K::push(cpu, T::from_u64(frame))?;
    }
    // The new top must be writable, although nothing is written there.
    let top = cpu.gpr[usize::from(RSP)].wrapping_sub(size) & K::mask(cpu);
    let lin = K::linear(cpu, top, T::BYTES, true)?;
    if cpu.probe_write(lin, u32::from(T::BYTES)).is_err() {
        return Err(cpu.stack_fault());
    }
    K::set(cpu, top);
    cpu.set_reg(RBP, T::from_u64(frame));
    Ok(())
}
