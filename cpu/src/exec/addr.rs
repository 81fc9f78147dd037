//! From a memory operand to a linear address.
//!
//! In 64-bit code, and in 32-bit code whose segments are flat, an address is the sum of registers and displacement, and
//! nothing needs to be checked: what is not canonical misses the TLB and faults in its slow path. [`Base`] and [`Flat`]
//! are made for these. [`Gen`] is for everything else: other address sizes, FS and GS, and segments with bases, limits
//! and rights.

use crate::insn::{ASIZE, FS, Insn, Mode, Res, SS, Stop};
use crate::mem::canonical;
use crate::state::{Cpu, Int, Segment, Why};

/// A way of addressing.
pub(crate) trait Addr: 'static {
    /// The offset of the operand in its segment, not cut to the address size.
    fn offset(cpu: &Cpu, i: &Insn) -> u64;
    /// The linear address of the `len` bytes that are `extra` bytes on from the operand, if they may be accessed.
    fn linear(cpu: &mut Cpu, i: &Insn, extra: u64, len: u32, write: bool) -> Res<u64>;
    /// The same for the operand itself, but it may give up where it is not plain that it may be accessed. Whether the
    /// address is canonical is left to the TLB.
    fn quick(cpu: &Cpu, i: &Insn, len: u32, write: bool) -> Res<u64>;
}

/// Flat segment, native address size, no index.
pub(crate) struct Base;

/// Flat segment, native address size.
pub(crate) struct Flat;

/// Any segment and address size.
pub(crate) struct Gen;

impl Addr for Base {
    #[inline(always)]
    fn offset(cpu: &Cpu, i: &Insn) -> u64 {
        cpu.gpr[usize::from(i.base & 31)].wrapping_add(i.disp as u64)
    }

    #[inline(always)]
    fn linear(cpu: &mut Cpu, i: &Insn, extra: u64, _len: u32, _write: bool) -> Res<u64> {
        Ok(Base::offset(cpu, i).wrapping_add(extra) & cpu.flat_mask)
    }

    #[inline(always)]
    fn quick(cpu: &Cpu, i: &Insn, _len: u32, _write: bool) -> Res<u64> {
        Ok(Base::offset(cpu, i) & cpu.flat_mask)
    }
}

impl Addr for Flat {
    #[inline(always)]
    fn offset(cpu: &Cpu, i: &Insn) -> u64 {
        let index = cpu.gpr[usize::from(i.index & 31)] << (i.scale & 3);
        Base::offset(cpu, i).wrapping_add(index)
    }

    #[inline(always)]
    fn linear(cpu: &mut Cpu, i: &Insn, extra: u64, _len: u32, _write: bool) -> Res<u64> {
        Ok(Flat::offset(cpu, i).wrapping_add(extra) & cpu.flat_mask)
    }

    #[inline(always)]
    fn quick(cpu: &Cpu, i: &Insn, _len: u32, _write: bool) -> Res<u64> {
        Ok(Flat::offset(cpu, i) & cpu.flat_mask)
    }
}

impl Addr for Gen {
    #[inline(always)]
    fn offset(cpu: &Cpu, i: &Insn) -> u64 {
        Flat::offset(cpu, i)
    }

    #[inline]
    fn linear(cpu: &mut Cpu, i: &Insn, extra: u64, len: u32, write: bool) -> Res<u64> {
        let offset = Flat::offset(cpu, i).wrapping_add(extra) & address_mask(i);
        cpu.lin_seg(i.seg, offset, len, write)
    }

    #[inline(always)]
    fn quick(cpu: &Cpu, i: &Insn, len: u32, write: bool) -> Res<u64> {
        cpu.quick_seg(i.seg, Flat::offset(cpu, i) & address_mask(i), len, write)
    }
}

/// The cut of an address or a count to the instruction's address size.
#[inline(always)]
pub(super) fn address_mask(i: &Insn) -> u64 {
    const MASKS: [u64; 4] = [0xffff, 0xffff_ffff, u64::MAX, u64::MAX];
    MASKS[usize::from(i.flags & ASIZE)]
}

impl Cpu {
    /// The effective address of a memory operand: its offset in the segment, not cut to the address size.
    #[inline(always)]
    pub(crate) fn ea(&self, i: &Insn) -> u64 {
        Flat::offset(self, i)
    }

    /// The linear address of a memory operand of `len` bytes, if it may be accessed.
    #[inline(always)]
    pub(crate) fn lin<A: Addr>(&mut self, i: &Insn, len: u32, write: bool) -> Res<u64> {
        A::linear(self, i, 0, len, write)
    }

    /// [`Cpu::lin`] for instructions that are not worth a handler for each way of addressing: right in all of them.
    pub(crate) fn lin_gen(&mut self, i: &Insn, len: u32, write: bool) -> Res<u64> {
        Gen::linear(self, i, 0, len, write)
    }

    /// The linear address of the `len` bytes (at least 1) at an offset in a segment, if they may be accessed: #SS(0)
    /// for the stack segment or #GP(0) for what lies outside, or may not be read or written.
    #[inline]
    pub(crate) fn lin_seg(&mut self, seg: u8, offset: u64, len: u32, write: bool) -> Res<u64> {
        let s = &self.seg[usize::from(seg & 7)];
        if self.mode.has(Mode::LONG) {
            let lin = if seg >= FS { s.base.wrapping_add(offset) } else { offset };
            if canonical(lin) && canonical(lin.wrapping_add(u64::from(len) - 1)) {
                return Ok(lin);
            }
        } else {
            // A plain data segment, writable and growing up, has the type bits 001x.
            let last = offset.saturating_add(u64::from(len) - 1);
            let plain = s.access & (Segment::UNUSABLE | 0xe) == 2 && last <= u64::from(s.limit);
            if plain || self.allowed(s, offset, last, write) {
                return Ok(s.base.wrapping_add(offset) & 0xffff_ffff);
            }
        }
        Err(self.fault(if seg == SS { 12 } else { 13 }, Some(0)))
    }

    /// [`Cpu::lin_seg`] for what is plain: 64-bit mode, and reading or writing inside the limit of a segment that grows
    /// up. It gives up on all else.
    #[inline(always)]
    pub(super) fn quick_seg(&self, seg: u8, offset: u64, len: u32, write: bool) -> Res<u64> {
        let s = &self.seg[usize::from(seg & 7)];
        if self.mode.has(Mode::LONG) {
            return Ok(if seg >= FS { s.base.wrapping_add(offset) } else { offset });
        }
        // Type 001x is data and writable; 101x is code and readable.
        let types = if write { 0xe } else { 6 };
        let last = offset.wrapping_add(u64::from(len) - 1);
        if s.access & (Segment::UNUSABLE | types) == 2 && last <= u64::from(s.limit) {
            return Ok(s.base.wrapping_add(offset) & 0xffff_ffff);
        }
        Err(Stop)
    }

    /// Whether a segment outside 64-bit mode lets the bytes from `offset` to `last` be accessed.
    fn allowed(&self, s: &Segment, offset: u64, last: u64, write: bool) -> bool {
        let (code, two) = (s.access & 8 != 0, s.access & 2 != 0);
        // Real mode has no rights; whatever type the segment had before, only its limit counts.
        if self.protected() {
            let right = match (code, write) {
                (false, true) | (true, false) => two,
                (false, false) => true,
                (true, true) => false,
            };
            if s.access & Segment::UNUSABLE != 0 || !right {
                return false;
            }
        }
        let limit = u64::from(s.limit);
        if !code && s.access & 4 != 0 {
            let top = if s.access & Segment::DB != 0 { 0xffff_ffff } else { 0xffff };
            offset > limit && last <= top
        } else {
            last <= limit
        }
    }

    /// Reads a memory operand.
    #[inline(always)]
    pub(crate) fn read_mem<A: Addr, T: Int>(&mut self, i: &Insn) -> Res<T> {
        let lin = self.lin::<A>(i, u32::from(T::BYTES), false)?;
        match self.load(lin) {
            Ok(v) => Ok(v),
            Err(_) => Err(self.operand_fault(i)),
        }
    }

    /// Writes a memory operand.
    #[inline(always)]
    pub(crate) fn write_mem<A: Addr, T: Int>(&mut self, i: &Insn, v: T) -> Res {
        let lin = self.lin::<A>(i, u32::from(T::BYTES), true)?;
        match self.store(lin, v) {
            Ok(()) => Ok(()),
            Err(_) => Err(self.operand_fault(i)),
        }
    }

    /// Reads a memory operand that is about to be written. Gives its linear address, to which a store of the same width
    /// now succeeds.
    #[inline(always)]
    pub(crate) fn read_modify<A: Addr, T: Int>(&mut self, i: &Insn) -> Res<(u64, T)> {
        let lin = self.lin::<A>(i, u32::from(T::BYTES), true)?;
        match self.load_rmw(lin) {
            Ok(v) => Ok((lin, v)),
            Err(_) => Err(self.operand_fault(i)),
        }
    }

    /// A memory access faulted: an address that is not canonical is #SS, not #GP, if it is formed with RSP or RBP.
    #[cold]
    pub(crate) fn operand_fault(&mut self, i: &Insn) -> Stop {
        if i.seg == SS { self.stack_fault() } else { Stop }
    }

    /// An access to the stack faulted: #GP, which only addresses that are not canonical give, becomes #SS.
    #[cold]
    pub(super) fn stack_fault(&mut self) -> Stop {
        if let Why::Fault(f) = &mut self.why
            && f.vector == 13
        {
            f.vector = 12;
        }
        Stop
    }
}
