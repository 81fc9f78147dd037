//! Near jumps, calls and returns; Jcc, LOOP and JCXZ; BOUND.

use super::addr::address_mask;
use super::hit::last;
use super::stack::{Stack, Stack32, Stack64, StackSeg, flat_stack};
use super::{Addr, Condition, Operand, by_condition, memory, operand, wide};
use crate::insn::{CS, Dec, END, Handler, Insn, Mode, RCX, Res, Stop, chains};
use crate::mem::canonical;
use crate::state::{Cpu, Int};

/// A sort of near transfer.
trait Near: 'static {
    /// The same, but it gives up on anything but a TLB hit and a plain target.
    type Quick: Near;
    /// What calls push and indirect jumps read.
    type Ip: Int;
    /// Where calls push it.
    type Stack: Stack;
    /// RIP for a target, if the code segment has it.
    fn plain(cpu: &Cpu, to: u64) -> Res<u64>;

    /// The same; #GP(0) if not.
    #[inline(always)]
    fn target(cpu: &mut Cpu, to: u64) -> Res<u64> {
        match Self::plain(cpu, to) {
            Ok(to) => Ok(to),
            Err(_) => Err(cpu.gp(0)),
        }
    }
}

/// 64-bit code.
struct Near64;

/// 32-bit operands in flat segments.
struct Near32;

/// Any other: operands of type T, and a limit.
struct NearSeg<T>(std::marker::PhantomData<T>);

impl Near for Near64 {
    type Quick = QuickNear<Near64>;
    type Ip = u64;
    type Stack = Stack64;

    #[inline(always)]
    fn plain(_: &Cpu, to: u64) -> Res<u64> {
        if canonical(to) { Ok(to) } else { Err(Stop) }
    }
}

impl Near for Near32 {
    type Quick = QuickNear<Near32>;
    type Ip = u32;
    type Stack = Stack32;

    #[inline(always)]
    fn plain(_: &Cpu, to: u64) -> Res<u64> {
        Ok(to & 0xffff_ffff)
    }
}

impl<T: Int> Near for NearSeg<T> {
    type Quick = QuickNear<NearSeg<T>>;
    type Ip = T;
    type Stack = StackSeg;

    #[inline(always)]
    fn plain(cpu: &Cpu, to: u64) -> Res<u64> {
        let to = T::from_u64(to).to_u64();
        if to <= u64::from(cpu.seg[usize::from(CS)].limit) { Ok(to) } else { Err(Stop) }
    }
}

/// A near transfer by a stack that the TLB knows.
struct QuickNear<N>(std::marker::PhantomData<N>);

impl<N: Near> Near for QuickNear<N> {
    type Quick = QuickNear<N>;
    type Ip = N::Ip;
    type Stack = <N::Stack as Stack>::Quick;

    #[inline(always)]
    fn plain(cpu: &Cpu, to: u64) -> Res<u64> {
        N::plain(cpu, to)
    }

    #[inline(always)]
    fn target(cpu: &mut Cpu, to: u64) -> Res<u64> {
        N::plain(cpu, to)
    }
}

/// `f::<P.., N>` with the sort of near transfer. 64-bit code ignores the operand size.
macro_rules! near {
    ($d:expr, $f:ident $(, $p:ty)*) => {
        match ($d.osize, flat_stack($d), $d.mode.has(Mode::LONG)) {
            (_, _, true) => $f::<$($p,)* Near64> as Handler,
            (1, true, _) => $f::<$($p,)* Near32>,
            (0, _, _) => $f::<$($p,)* NearSeg<u16>>,
            _ => $f::<$($p,)* NearSeg<u32>>,
        }
    };
}

pub(super) fn select(i: &mut Insn, d: &Dec) -> Option<Handler> {
    if d.op == 0x62 {
        return Some(memory!(wide, d.osize + 1, i, d, bound));
    }
    i.flags |= END;
    Some(match d.op {
        0x70..=0x7f | 0x0f80..=0x0f8f => by_condition!(d.op, jcc_form(d)),
        0xc2 => near!(d, ret_imm),
        0xc3 => near!(d, ret),
        0xe0 => near!(d, loop_while, NotZero),
        0xe1 => near!(d, loop_while, Zero),
        0xe2 => near!(d, loop_while, Always),
        0xe3 => near!(d, jcxz),
        0xe8 => near!(d, call),
        0xe9 | 0xeb => near!(d, jmp),
        0xff if d.ext() == 2 => operand!(near, d, i, d, call_to),
        0xff if d.ext() == 4 => operand!(near, d, i, d, jmp_to),
        _ => return None,
    })
}

fn jcc_form<C: Condition>(d: &Dec) -> Handler {
    near!(d, jcc, C)
}

last! {
    fn jcc<C: Condition, N: Near>[C, N::Quick][C, N](cpu, i) {
        if cpu.flags.cond(C::CODE) {
            cpu.rip = N::target(cpu, cpu.next_rip(i).wrapping_add(i.imm))?;
        }
        Ok(())
    }

    fn jmp<N: Near>[N::Quick][N](cpu, i) {
        cpu.rip = N::target(cpu, cpu.next_rip(i).wrapping_add(i.imm))?;
        Ok(())
    }

    fn jmp_to<S: Operand, N: Near>[S::Quick, N::Quick][S::Slow, N](cpu, i) {
        let to = S::get::<N::Ip>(cpu, i)?.to_u64();
        cpu.rip = N::target(cpu, to)?;
        Ok(())
    }

    fn call<N: Near>[N::Quick][N](cpu, i) {
        let next = cpu.next_rip(i);
        let to = N::target(cpu, next.wrapping_add(i.imm))?;
        N::Stack::push(cpu, N::Ip::from_u64(next))?;
        cpu.rip = to;
        Ok(())
    }

    fn call_to<S: Operand, N: Near>[S::Quick, N::Quick][S::Slow, N](cpu, i) {
        let to = S::get::<N::Ip>(cpu, i)?.to_u64();
        let to = N::target(cpu, to)?;
        let next = cpu.next_rip(i);
        N::Stack::push(cpu, N::Ip::from_u64(next))?;
        cpu.rip = to;
        Ok(())
    }

    fn ret<N: Near>[N::Quick][N](cpu, _i) {
        let to = N::Stack::peek::<N::Ip>(cpu, 0)?.to_u64();
        cpu.rip = N::target(cpu, to)?;
        N::Stack::discard(cpu, u64::from(N::Ip::BYTES));
        Ok(())
    }
}

fn ret_imm<N: Near>(cpu: &mut Cpu, i: &Insn) -> Res {
    ret::<N>(cpu, i)?;
    N::Stack::discard(cpu, i.imm);
    Ok(())
}

/// What LOOP asks beside the count.
trait While: 'static {
    fn holds(cpu: &Cpu) -> bool;
}

struct Always;
struct Zero;
struct NotZero;

impl While for Always {
    #[inline(always)]
    fn holds(_: &Cpu) -> bool {
        true
    }
}

impl While for Zero {
    #[inline(always)]
    fn holds(cpu: &Cpu) -> bool {
        cpu.flags.zf()
    }
}

impl While for NotZero {
    #[inline(always)]
    fn holds(cpu: &Cpu) -> bool {
        !cpu.flags.zf()
    }
}

/// The address size chooses CX, ECX or RCX.
fn loop_while<W: While, N: Near>(cpu: &mut Cpu, i: &Insn) -> Res {
    let mask = address_mask(i);
    let count = cpu.gpr[usize::from(RCX)].wrapping_sub(1) & mask;
    if count != 0 && W::holds(cpu) {
        cpu.rip = N::target(cpu, cpu.next_rip(i).wrapping_add(i.imm))?;
    }
    cpu.set_masked(RCX, count, mask);
    Ok(())
}

fn jcxz<N: Near>(cpu: &mut Cpu, i: &Insn) -> Res {
    if cpu.gpr[usize::from(RCX)] & address_mask(i) == 0 {
        cpu.rip = N::target(cpu, cpu.next_rip(i).wrapping_add(i.imm))?;
    }
    Ok(())
}

chains! {
    /// #BR outside the two signed bounds in memory.
    fn bound<A: Addr, T: Int>(cpu, i) {
        let size = u32::from(T::BYTES);
        let lin = A::linear(cpu, i, 0, 2 * size, false)?;
        let lower = cpu.load::<T>(lin)?.sext() as i64;
        let upper = cpu.load::<T>(lin.wrapping_add(u64::from(size)) & cpu.flat_mask)?.sext() as i64;
        let index = cpu.reg::<T>(i.reg).sext() as i64;
        if index < lower || index > upper { Err(cpu.fault(5, None)) } else { Ok(()) }
    }
}
