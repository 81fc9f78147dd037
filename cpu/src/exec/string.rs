//! MOVS, STOS, LODS, CMPS and SCAS, with and without REP.
//!
//! A repeated instruction runs a bounded piece at a time: when count remains it ends with RIP on itself, so that the
//! run loop sees interrupts between pieces, and with TF set a piece is one repetition. A fault in the middle finds RCX,
//! RSI and RDI where the architecture wants them. All but LODS go by host pointers upwards inside plain pages;
//! everything else, devices and pages that hold code among it, goes by ordinary loads and stores.

use super::addr::address_mask;
use super::{Flat, Gen, Kind, kind, width, width_code};
use crate::flags::{DF, RF, TF};
use crate::insn::{Dec, END, ES, Handler, Insn, RAX, RCX, RDI, REPNE, RSI, Res, chains};
use crate::state::{Cpu, Int, Why};

/// How implied operands are addressed.
trait Implied: 'static {
    /// The cut of RSI, RDI and RCX.
    fn mask(cpu: &Cpu, i: &Insn) -> u64;
    fn linear(cpu: &mut Cpu, seg: u8, offset: u64, len: u32, write: bool) -> Res<u64>;
}

impl Implied for Flat {
    #[inline(always)]
    fn mask(cpu: &Cpu, _: &Insn) -> u64 {
        cpu.flat_mask
    }

    #[inline(always)]
    fn linear(_: &mut Cpu, _: u8, offset: u64, _: u32, _: bool) -> Res<u64> {
        Ok(offset)
    }
}

impl Implied for Gen {
    #[inline(always)]
    fn mask(_: &Cpu, i: &Insn) -> u64 {
        address_mask(i)
    }

    #[inline(always)]
    fn linear(cpu: &mut Cpu, seg: u8, offset: u64, len: u32, write: bool) -> Res<u64> {
        cpu.lin_seg(seg, offset, len, write)
    }
}

/// One of the five.
trait StringOp: 'static {
    /// The repetition looks at ZF.
    const COMPARES: bool = false;
    /// It reads at RSI.
    const SOURCE: bool = true;
    /// It reads or writes at RDI.
    const TARGET: bool = true;

    /// One repetition, but for the count.
    fn one<A: Implied, T: Int>(cpu: &mut Cpu, i: &Insn, mask: u64) -> Res;

    /// As many as can be done at once, `most` at most; how many it did.
    fn bulk<A: Implied, T: Int>(_: &mut Cpu, _: &Insn, _mask: u64, _most: u64) -> Res<u64> {
        Ok(0)
    }
}

struct Movs;
struct Stos;
struct Lods;
struct Cmps;
struct Scas;

pub(super) fn select(i: &mut Insn, d: &Dec) -> Option<Handler> {
    Some(match d.op {
        0xa4 | 0xa5 => form::<Movs>(i, d),
        0xa6 | 0xa7 => form::<Cmps>(i, d),
        0xaa | 0xab => form::<Stos>(i, d),
        0xac | 0xad => form::<Lods>(i, d),
        0xae | 0xaf => form::<Scas>(i, d),
        _ => return None,
    })
}

fn form<O: StringOp>(i: &mut Insn, d: &Dec) -> Handler {
    let w = width_code(d);
    if d.rep != 0 {
        i.flags |= END;
    }
    match (kind(i, &Dec { mem: true, ..*d }) == Kind::Gen, d.rep != 0) {
        (false, false) => width!(w, once, O, Flat),
        (false, true) => width!(w, repeat, O, Flat),
        (true, false) => width!(w, once, O, Gen),
        (true, true) => width!(w, repeat, O, Gen),
    }
}

chains! {
    fn once<O: StringOp, A: Implied, T: Int>(cpu, i) {
        let mask = A::mask(cpu, i);
        O::one::<A, T>(cpu, i, mask)
    }
}

fn repeat<O: StringOp, A: Implied, T: Int>(cpu: &mut Cpu, i: &Insn) -> Res {
    let mask = A::mask(cpu, i);
    let mut left = cpu.gpr[usize::from(RCX)] & mask;
    if left == 0 {
        return Ok(());
    }
    let stepping = cpu.rflags & TF != 0;
    let mut piece = if stepping { 1 } else { left.min(piece::<O, T>(cpu, mask)) };
    // A data breakpoint ends the piece: it is taken after the repetition that met it.
    while piece > 0 && cpu.pending_db == 0 {
        let mut done = if stepping { 0 } else { O::bulk::<A, T>(cpu, i, mask, piece)? };
        if done == 0 {
            O::one::<A, T>(cpu, i, mask)?;
            done = 1;
        }
        piece -= done;
        left -= done;
        cpu.set_masked(RCX, left, mask);
        // REPE goes on while ZF is set, REPNE while it is not.
        if O::COMPARES && cpu.flags.zf() == (i.flags & REPNE != 0) {
            return Ok(());
        }
    }
    if left != 0 {
        cpu.rip = cpu.this_rip(i) & cpu.flat_mask;
        // What comes between two repetitions finds RF set: a breakpoint on the instruction is for its start only.
        cpu.rflags |= RF;
    }
    Ok(())
}

/// Repetitions in a piece: up to where a pointer crosses a multiple of 4096. It must not depend on what is cached, or
/// the instruction count would.
fn piece<O: StringOp, T: Int>(cpu: &Cpu, mask: u64) -> u64 {
    let (down, size) = (cpu.rflags & DF != 0, u64::from(T::BYTES));
    let room = |r| {
        let offset = cpu.pointer(r, mask) & 0xfff;
        if down { offset / size + 1 } else { ((0x1000 - offset) / size).max(1) }
    };
    let source = if O::SOURCE { room(RSI) } else { u64::MAX };
    let target = if O::TARGET { room(RDI) } else { u64::MAX };
    source.min(target)
}

impl Cpu {
    /// A pointer register, cut to the address size.
    #[inline(always)]
    fn pointer(&self, r: u8, mask: u64) -> u64 {
        self.gpr[usize::from(r)] & mask
    }

    /// Moves a pointer register by one element in the direction of DF.
    #[inline(always)]
    fn advance<T: Int>(&mut self, r: u8, mask: u64) {
        let step = u64::from(T::BYTES);
        let step = if self.rflags & DF != 0 { step.wrapping_neg() } else { step };
        let v = self.gpr[usize::from(r)].wrapping_add(step) & mask;
        self.set_masked(r, v, mask);
    }

    /// Reads the element at RSI, or at RDI in ES.
    #[inline(always)]
    fn element<A: Implied, T: Int>(&mut self, seg: u8, r: u8, mask: u64) -> Res<T> {
        let offset = self.pointer(r, mask);
        let lin = A::linear(self, seg, offset, u32::from(T::BYTES), false)?;
        self.load(lin)
    }

    /// Writes the element at RDI.
    #[inline(always)]
    fn put_element<A: Implied, T: Int>(&mut self, v: T, mask: u64) -> Res {
        let offset = self.pointer(RDI, mask);
        let lin = A::linear(self, ES, offset, u32::from(T::BYTES), true)?;
        self.store(lin, v)
    }

    /// The elements of size T from a pointer register upwards that lie in one plain page and inside the segment: host
    /// pointer and how many, `most` at most. `None` if there is no such.
    fn run<A: Implied, T: Int>(
        &mut self,
        seg: u8,
        r: u8,
        mask: u64,
        most: u64,
        write: bool,
    ) -> Res<Option<(*mut u8, u64)>> {
        let offset = self.pointer(r, mask);
        let size = u64::from(T::BYTES);
        let lin = A::linear(self, seg, offset, u32::from(T::BYTES), write)?;
        let Some((host, bytes)) = self.page_run(lin, write)? else { return Ok(None) };
        let n = most.min(bytes as u64 / size);
        let inside = n > 0 && offset.checked_add(n * size - 1).is_some_and(|last| last <= mask);
        if !inside {
            return Ok(None);
        }
        if A::linear(self, seg, offset, (n * size) as u32, write).is_err() {
            // The segment ends before the page does.
            self.why = Why::None;
            return Ok(None);
        }
        Ok(Some((host, n)))
    }
}

impl StringOp for Movs {
    #[inline(always)]
    fn one<A: Implied, T: Int>(cpu: &mut Cpu, i: &Insn, mask: u64) -> Res {
        let v = cpu.element::<A, T>(i.seg, RSI, mask)?;
        cpu.put_element::<A, T>(v, mask)?;
        cpu.advance::<T>(RSI, mask);
        cpu.advance::<T>(RDI, mask);
        Ok(())
    }

    fn bulk<A: Implied, T: Int>(cpu: &mut Cpu, i: &Insn, mask: u64, most: u64) -> Res<u64> {
        if cpu.rflags & DF != 0 {
            return Ok(0);
        }
        let Some((from, most)) = cpu.run::<A, T>(i.seg, RSI, mask, most, false)? else { return Ok(0) };
        let Some((to, n)) = cpu.run::<A, T>(ES, RDI, mask, most, true)? else { return Ok(0) };
        let bytes = n * u64::from(T::BYTES);
        copy::<T>(from, to, bytes as usize);
        for r in [RSI, RDI] {
            let v = cpu.pointer(r, mask).wrapping_add(bytes) & mask;
            cpu.set_masked(r, v, mask);
        }
        Ok(n)
    }
}

impl StringOp for Stos {
    const SOURCE: bool = false;

    #[inline(always)]
    fn one<A: Implied, T: Int>(cpu: &mut Cpu, _: &Insn, mask: u64) -> Res {
        let v = cpu.reg::<T>(RAX);
        cpu.put_element::<A, T>(v, mask)?;
        cpu.advance::<T>(RDI, mask);
        Ok(())
    }

    fn bulk<A: Implied, T: Int>(cpu: &mut Cpu, _: &Insn, mask: u64, most: u64) -> Res<u64> {
        if cpu.rflags & DF != 0 {
            return Ok(0);
        }
        let Some((to, n)) = cpu.run::<A, T>(ES, RDI, mask, most, true)? else { return Ok(0) };
        let bytes = n * u64::from(T::BYTES);
        fill(to, cpu.reg::<T>(RAX), bytes as usize);
        let v = cpu.pointer(RDI, mask).wrapping_add(bytes) & mask;
        cpu.set_masked(RDI, v, mask);
        Ok(n)
    }
}

impl StringOp for Lods {
    const TARGET: bool = false;

    #[inline(always)]
    fn one<A: Implied, T: Int>(cpu: &mut Cpu, i: &Insn, mask: u64) -> Res {
        let v = cpu.element::<A, T>(i.seg, RSI, mask)?;
        cpu.set_reg(RAX, v);
        cpu.advance::<T>(RSI, mask);
        Ok(())
    }
}

impl StringOp for Cmps {
    const COMPARES: bool = true;

    #[inline(always)]
    fn one<A: Implied, T: Int>(cpu: &mut Cpu, i: &Insn, mask: u64) -> Res {
        let a = cpu.element::<A, T>(i.seg, RSI, mask)?;
        let b = cpu.element::<A, T>(ES, RDI, mask)?;
        cpu.flags.sub(a, b, T::from_u64(a.to_u64().wrapping_sub(b.to_u64())));
        cpu.advance::<T>(RSI, mask);
        cpu.advance::<T>(RDI, mask);
        Ok(())
    }

    fn bulk<A: Implied, T: Int>(cpu: &mut Cpu, i: &Insn, mask: u64, most: u64) -> Res<u64> {
        if cpu.rflags & DF != 0 {
            return Ok(0);
        }
        let Some((one, most)) = cpu.run::<A, T>(i.seg, RSI, mask, most, false)? else { return Ok(0) };
        let Some((two, n)) = cpu.run::<A, T>(ES, RDI, mask, most, false)? else { return Ok(0) };
        let n = compare::<T>(cpu, i, n, |k| (peek::<T>(one, k), peek::<T>(two, k)));
        for r in [RSI, RDI] {
            let v = cpu.pointer(r, mask).wrapping_add(n * u64::from(T::BYTES)) & mask;
            cpu.set_masked(r, v, mask);
        }
        Ok(n)
    }
}

impl StringOp for Scas {
    const COMPARES: bool = true;
    const SOURCE: bool = false;

    #[inline(always)]
    fn one<A: Implied, T: Int>(cpu: &mut Cpu, _: &Insn, mask: u64) -> Res {
        let a = cpu.reg::<T>(RAX);
        let b = cpu.element::<A, T>(ES, RDI, mask)?;
        cpu.flags.sub(a, b, T::from_u64(a.to_u64().wrapping_sub(b.to_u64())));
        cpu.advance::<T>(RDI, mask);
        Ok(())
    }

    fn bulk<A: Implied, T: Int>(cpu: &mut Cpu, i: &Insn, mask: u64, most: u64) -> Res<u64> {
        if cpu.rflags & DF != 0 {
            return Ok(0);
        }
        let Some((at, n)) = cpu.run::<A, T>(ES, RDI, mask, most, false)? else { return Ok(0) };
        let a = cpu.reg::<T>(RAX);
        let n = compare::<T>(cpu, i, n, |k| (a, peek::<T>(at, k)));
        let v = cpu.pointer(RDI, mask).wrapping_add(n * u64::from(T::BYTES)) & mask;
        cpu.set_masked(RDI, v, mask);
        Ok(n)
    }
}

/// Compares `n` pairs at most, one at least, up to the one that ends the repetition, which the flags are of. How many
/// it were.
#[inline(always)]
fn compare<T: Int>(cpu: &mut Cpu, i: &Insn, n: u64, pair: impl Fn(usize) -> (T, T)) -> u64 {
    let ends = i.flags & REPNE != 0;
    let mut k = 0;
    let (a, b) = loop {
        let (a, b) = pair(k);
        k += 1;
        if (a.to_u64() == b.to_u64()) == ends || k as u64 == n {
            break (a, b);
        }
    };
    cpu.flags.sub(a, b, T::from_u64(a.to_u64().wrapping_sub(b.to_u64())));
    k as u64
}

/// Element `k` of guest memory at a host address from [`Cpu::run`], of which it is one.
#[inline(always)]
#[expect(unsafe_code, reason = "guest memory is reached by raw pointers, never borrowed")]
fn peek<T: Int>(at: *const u8, k: usize) -> T {
    // SAFETY: the caller's; volatile, because devices may write the same memory.
    unsafe { at.cast::<Unaligned<T>>().add(k).read_volatile() }.0
}

/// A value at an address of any alignment.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Unaligned<T>(T);

/// Copies upwards, element by element as the guest would see it when the two overlap. `bytes` is a multiple of T's
/// size.
#[expect(unsafe_code, reason = "guest memory is reached by raw pointers, never borrowed")]
fn copy<T: Int>(from: *const u8, to: *mut u8, bytes: usize) {
    let distance = (to as usize).wrapping_sub(from as usize);
    // Where the target starts inside the first eight bytes of the source, each element copied is one that is read
    // later.
    let words = if distance < 8 && distance > 0 { 0 } else { bytes / 8 };
    // SAFETY: the caller has both ranges from `page_run`; volatile, because devices may write the same memory.
    unsafe {
        for n in 0..words {
            let v = from.cast::<Unaligned<u64>>().add(n).read_volatile();
            to.cast::<Unaligned<u64>>().add(n).write_volatile(v);
        }
        for n in words * 8 / usize::from(T::BYTES)..bytes / usize::from(T::BYTES) {
            let v = from.cast::<Unaligned<T>>().add(n).read_volatile();
            to.cast::<Unaligned<T>>().add(n).write_volatile(v);
        }
    }
}

/// Fills with `v`. `bytes` is a multiple of T's size.
#[expect(unsafe_code, reason = "guest memory is reached by raw pointers, never borrowed")]
fn fill<T: Int>(to: *mut u8, v: T, bytes: usize) {
    let v = if cfg!(target_endian = "big") { v.to_u64().swap_bytes() >> (64 - T::BITS) } else { v.to_u64() };
    // The value in every place of eight bytes.
    let word = v.wrapping_mul(u64::MAX / (u64::MAX >> (64 - T::BITS)));
    let words = bytes / 8;
    // SAFETY: the caller has the range from `page_run`.
    unsafe {
        for n in 0..words {
            to.cast::<Unaligned<u64>>().add(n).write_volatile(Unaligned(word));
        }
        for n in words * 8 / usize::from(T::BYTES)..bytes / usize::from(T::BYTES) {
            to.cast::<Unaligned<T>>().add(n).write_volatile(Unaligned(T::from_u64(v)));
        }
    }
}
