//! Where the second operand of an MMX or SSE instruction is.
//!
//! Memory in a flat segment is reached in two ways. [`Hit`] is for the translations that the TLB has: it calls nothing,
//! and gives up without having done anything. The handler then runs again with [`Gen`], which is right in every case.

use std::marker::PhantomData;

use emu::PAGE_SIZE;

use crate::exec::{Addr, Gen};
use crate::insn::{Insn, Res, Stop};
use crate::state::{Cpu, Int};

/// The contents of an XMM register, low half first.
pub(super) type Xmm = [u64; 2];

/// The operand that ModRM.rm names: a register, or memory addressed in some way.
pub(super) trait Place: 'static {
    /// Whether it may give up where [`Gen`] would not.
    const QUICK: bool;
    /// An MMX register or 8 bytes.
    fn mm(cpu: &mut Cpu, i: &Insn) -> Res<u64>;
    /// An XMM register or 16 bytes, which must be aligned: #GP(0).
    fn xmm(cpu: &mut Cpu, i: &Insn) -> Res<Xmm>;
    /// An XMM register or 16 bytes anywhere.
    fn xmm_any(cpu: &mut Cpu, i: &Insn) -> Res<Xmm>;
    /// The low part of an XMM register, or so many bytes.
    fn low<T: Int>(cpu: &mut Cpu, i: &Insn) -> Res<T>;
}

/// A destination in memory.
pub(super) trait Target: Place {
    /// Writes 16 bytes, which must be aligned if so told.
    fn put_xmm(cpu: &mut Cpu, i: &Insn, v: Xmm, aligned: bool) -> Res;
    /// Writes fewer.
    fn put<T: Int>(cpu: &mut Cpu, i: &Insn, v: T) -> Res;
}

/// The register [`Insn::rm`].
pub(super) struct Reg;

/// Memory that the TLB has a translation for.
pub(super) struct Hit<A>(PhantomData<A>);

impl Place for Reg {
    const QUICK: bool = false;

    #[inline(always)]
    fn mm(cpu: &mut Cpu, i: &Insn) -> Res<u64> {
        Ok(cpu.fpu.mm(i.rm))
    }

    #[inline(always)]
    fn xmm(cpu: &mut Cpu, i: &Insn) -> Res<Xmm> {
        Ok(cpu.fpu.xmm[usize::from(i.rm & 15)])
    }

    #[inline(always)]
    fn xmm_any(cpu: &mut Cpu, i: &Insn) -> Res<Xmm> {
        Ok(cpu.fpu.xmm[usize::from(i.rm & 15)])
    }

    #[inline(always)]
    fn low<T: Int>(cpu: &mut Cpu, i: &Insn) -> Res<T> {
        Ok(T::from_u64(cpu.fpu.xmm[usize::from(i.rm & 15)][0]))
    }
}

/// The linear address of 16 bytes.
#[inline(always)]
fn lin16(cpu: &mut Cpu, i: &Insn, write: bool, aligned: bool) -> Res<u64> {
    let lin = cpu.lin::<Gen>(i, 16, write)?;
    if aligned && lin & 15 != 0 { Err(cpu.gp(0)) } else { Ok(lin) }
}

fn load16(cpu: &mut Cpu, i: &Insn, aligned: bool) -> Res<Xmm> {
    let lin = lin16(cpu, i, false, aligned)?;
    let Ok(low) = cpu.load(lin) else { return Err(cpu.operand_fault(i)) };
    let Ok(high) = cpu.load(lin.wrapping_add(8) & cpu.flat_mask) else { return Err(cpu.operand_fault(i)) };
    Ok([low, high])
}

impl Place for Gen {
    const QUICK: bool = false;

    fn mm(cpu: &mut Cpu, i: &Insn) -> Res<u64> {
        cpu.read_mem::<Gen, u64>(i)
    }

    fn xmm(cpu: &mut Cpu, i: &Insn) -> Res<Xmm> {
        load16(cpu, i, true)
    }

    fn xmm_any(cpu: &mut Cpu, i: &Insn) -> Res<Xmm> {
        load16(cpu, i, false)
    }

    fn low<T: Int>(cpu: &mut Cpu, i: &Insn) -> Res<T> {
        cpu.read_mem::<Gen, T>(i)
    }
}

impl Target for Gen {
    /// Inside a page the second store succeeds if the first one does, or stops for a reason that makes the instruction
    /// run again from its start.
    fn put_xmm(cpu: &mut Cpu, i: &Insn, v: Xmm, aligned: bool) -> Res {
        let lin = lin16(cpu, i, true, aligned)?;
        let stored = if lin & (PAGE_SIZE - 1) <= PAGE_SIZE - 16 {
            cpu.store(lin, v[0]).and_then(|()| cpu.store(lin + 8, v[1]))
        } else {
            cpu.store_bytes(lin, &super::int::bytes(v))
        };
        stored.map_err(|_| cpu.operand_fault(i))
    }

    fn put<T: Int>(cpu: &mut Cpu, i: &Insn, v: T) -> Res {
        cpu.write_mem::<Gen, T>(i, v)
    }
}

/// A value at an address of any alignment.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Unaligned<T>(T);

/// 16 bytes as the host moves them in one piece, if it does. What is written to a register in two pieces and read in
/// one soon after, as copying memory does, costs hosts a dozen cycles.
#[cfg(target_arch = "x86_64")]
type Chunk = std::arch::x86_64::__m128i;
#[cfg(not(target_arch = "x86_64"))]
type Chunk = Xmm;

/// The host address of `len` bytes that the TLB lets be read.
#[inline(always)]
fn readable(cpu: &Cpu, lin: u64, len: u64) -> Res<usize> {
    let e = cpu.tlb.entry(lin);
    let offset = lin.wrapping_sub(e.read);
    if offset <= PAGE_SIZE - len { Ok(e.host.wrapping_add(offset) as usize) } else { Err(Stop) }
}

/// The same for writing.
#[inline(always)]
fn writable(cpu: &Cpu, lin: u64, len: u64) -> Res<usize> {
    let e = cpu.tlb.entry(lin);
    let offset = lin.wrapping_sub(e.write);
    if offset <= PAGE_SIZE - len { Ok(e.host.wrapping_add(offset) as usize) } else { Err(Stop) }
}

#[expect(unsafe_code, reason = "guest memory is reached by raw pointers, never borrowed")]
impl<A: Addr> Hit<A> {
    #[inline(always)]
    fn read<T: Copy>(cpu: &mut Cpu, i: &Insn, aligned: bool) -> Res<T> {
        let len = size_of::<T>() as u32;
        let lin = cpu.lin::<A>(i, len, false)?;
        if aligned && lin & u64::from(len - 1) != 0 {
            return Err(Stop);
        }
        let host = readable(cpu, lin, len.into())?;
        // SAFETY: a TLB entry with a tag has the host address of a page in the arena, and the access lies in the page.
        // Any bits are a T.
        Ok(unsafe { std::ptr::with_exposed_provenance::<Unaligned<T>>(host).read_volatile() }.0)
    }

    #[inline(always)]
    fn write<T: Copy>(cpu: &mut Cpu, i: &Insn, v: T, aligned: bool) -> Res {
        let len = size_of::<T>() as u32;
        let lin = cpu.lin::<A>(i, len, true)?;
        if aligned && lin & u64::from(len - 1) != 0 {
            return Err(Stop);
        }
        let host = writable(cpu, lin, len.into())?;
        // SAFETY: as in `read`.
        unsafe { std::ptr::with_exposed_provenance_mut::<Unaligned<T>>(host).write_volatile(Unaligned(v)) };
        Ok(())
    }

    #[inline(always)]
    fn read16(cpu: &mut Cpu, i: &Insn, aligned: bool) -> Res<Xmm> {
        let chunk = Hit::<A>::read::<Chunk>(cpu, i, aligned)?;
        // SAFETY: both are 16 bytes of any value.
        let words = unsafe { std::mem::transmute::<Chunk, Xmm>(chunk) };
        Ok(words.map(u64::from_le))
    }
}

impl<A: Addr> Place for Hit<A> {
    const QUICK: bool = true;

    #[inline(always)]
    fn mm(cpu: &mut Cpu, i: &Insn) -> Res<u64> {
        Hit::<A>::read::<u64>(cpu, i, false).map(u64::from_le)
    }

    #[inline(always)]
    fn xmm(cpu: &mut Cpu, i: &Insn) -> Res<Xmm> {
        Hit::<A>::read16(cpu, i, true)
    }

    #[inline(always)]
    fn xmm_any(cpu: &mut Cpu, i: &Insn) -> Res<Xmm> {
        Hit::<A>::read16(cpu, i, false)
    }

    #[inline(always)]
    fn low<T: Int>(cpu: &mut Cpu, i: &Insn) -> Res<T> {
        let v = Hit::<A>::read::<T>(cpu, i, false)?;
        Ok(if cfg!(target_endian = "big") { T::from_u64(v.to_u64().swap_bytes() >> (64 - T::BITS)) } else { v })
    }
}

impl<A: Addr> Target for Hit<A> {
    #[inline(always)]
    #[expect(unsafe_code, reason = "a change of type")]
    fn put_xmm(cpu: &mut Cpu, i: &Insn, v: Xmm, aligned: bool) -> Res {
        // SAFETY: both are 16 bytes of any value.
        let chunk = unsafe { std::mem::transmute::<Xmm, Chunk>(v.map(u64::to_le)) };
        Hit::<A>::write(cpu, i, chunk, aligned)
    }

    #[inline(always)]
    fn put<T: Int>(cpu: &mut Cpu, i: &Insn, v: T) -> Res {
        let v = if cfg!(target_endian = "big") { T::from_u64(v.to_u64().swap_bytes() >> (64 - T::BITS)) } else { v };
        Hit::<A>::write(cpu, i, v, false)
    }
}

impl Cpu {
    #[inline(always)]
    pub(super) fn xmm_reg(&self, i: &Insn) -> Xmm {
        self.fpu.xmm[usize::from(i.reg & 15)]
    }

    #[inline(always)]
    pub(super) fn set_xmm_reg(&mut self, i: &Insn, v: Xmm) {
        self.fpu.xmm[usize::from(i.reg & 15)] = v;
    }
}
