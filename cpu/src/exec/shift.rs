//! Shifts and rotates.
//!
//! Counts are masked to 5 bits, or 6 for 64-bit operands, before anything else; a count of 0 leaves the flags alone,
//! but still writes the destination. OF is defined for a count of 1 only: beyond that it is here what the same formula
//! gives.

use super::hit::quick;
use super::{Operand, byte_regs, operand, wide, width, width_code};
use crate::flags::Flags;
use crate::insn::{Dec, Handler, Insn, RCX, Res, chains};
use crate::state::{Cpu, Int};

/// A shift or rotate by a masked count that is not 0.
trait Shift: 'static {
    fn run<T: Int>(f: &mut Flags, a: T, count: u32) -> T;
}

struct Rol;
struct Ror;
struct Rcl;
struct Rcr;
struct Shl;
struct Shr;
struct Sar;

/// The top bit of an operand.
#[inline(always)]
fn top<T: Int>(v: u64) -> bool {
    v >> (T::BITS - 1) & 1 != 0
}

impl Shift for Rol {
    #[inline(always)]
    fn run<T: Int>(f: &mut Flags, a: T, count: u32) -> T {
        let (a, n) = (a.to_u64(), count % T::BITS);
        let r = T::from_u64(if n == 0 { a } else { a << n | a >> (T::BITS - n) });
        let cf = r.to_u64() & 1 != 0;
        f.set_cf_of(cf, cf != top::<T>(r.to_u64()));
        r
    }
}

impl Shift for Ror {
    #[inline(always)]
    fn run<T: Int>(f: &mut Flags, a: T, count: u32) -> T {
        let (a, n) = (a.to_u64(), count % T::BITS);
        let r = T::from_u64(if n == 0 { a } else { a >> n | a << (T::BITS - n) });
        let cf = top::<T>(r.to_u64());
        f.set_cf_of(cf, cf != top::<T>(r.to_u64() << 1));
        r
    }
}

impl Shift for Rcl {
    #[inline(always)]
    fn run<T: Int>(f: &mut Flags, a: T, count: u32) -> T {
        let n = count % (T::BITS + 1);
        if n == 0 {
            f.set_cf_of(f.cf(), f.cf() != top::<T>(a.to_u64()));
            return a;
        }
        let (a, carry) = (a.to_u64(), u64::from(f.cf()));
        // The last n - 1 bits come in behind the carry.
        let low = carry << (n - 1) | if n > 1 { a >> (T::BITS + 1 - n) } else { 0 };
        let r = T::from_u64(a << n | low);
        let cf = a >> (T::BITS - n) & 1 != 0;
        f.set_cf_of(cf, cf != top::<T>(r.to_u64()));
        r
    }
}

impl Shift for Rcr {
    #[inline(always)]
    fn run<T: Int>(f: &mut Flags, a: T, count: u32) -> T {
        let n = count % (T::BITS + 1);
        if n == 0 {
            f.set_cf_of(f.cf(), top::<T>(a.to_u64()) != top::<T>(a.to_u64() << 1));
            return a;
        }
        let (a, carry) = (a.to_u64(), u64::from(f.cf()));
        let high = carry << (T::BITS - n) | if n > 1 { a << (T::BITS + 1 - n) } else { 0 };
        let r = T::from_u64(a >> n | high);
        let cf = a >> (n - 1) & 1 != 0;
        f.set_cf_of(cf, top::<T>(r.to_u64()) != top::<T>(r.to_u64() << 1));
        r
    }
}

impl Shift for Shl {
    #[inline(always)]
    fn run<T: Int>(f: &mut Flags, a: T, count: u32) -> T {
        let a = a.to_u64();
        let r = T::from_u64(a << count);
        let cf = if T::BITS == 64 { a >> (64 - count) & 1 != 0 } else { a << count >> T::BITS & 1 != 0 };
        f.result(r, cf, cf != top::<T>(r.to_u64()), false);
        r
    }
}

impl Shift for Shr {
    #[inline(always)]
    fn run<T: Int>(f: &mut Flags, a: T, count: u32) -> T {
        let a = a.to_u64();
        let r = T::from_u64(a >> count);
        // The sign before a shift by 1 is the second bit from the top after it.
        f.result(r, a >> (count - 1) & 1 != 0, top::<T>(r.to_u64() << 1), false);
        r
    }
}

impl Shift for Sar {
    #[inline(always)]
    fn run<T: Int>(f: &mut Flags, a: T, count: u32) -> T {
        let a = a.sext() as i64;
        let r = T::from_u64((a >> count) as u64);
        f.result(r, a >> (count - 1) & 1 != 0, false, false);
        r
    }
}

/// Where a count comes from.
trait Count: 'static {
    fn count(cpu: &Cpu, i: &Insn) -> u8;
}

struct Imm;
struct Cl;

impl Count for Imm {
    #[inline(always)]
    fn count(_: &Cpu, i: &Insn) -> u8 {
        i.imm as u8
    }
}

impl Count for Cl {
    #[inline(always)]
    fn count(cpu: &Cpu, _: &Insn) -> u8 {
        cpu.reg(RCX)
    }
}

/// The mask of counts.
#[inline(always)]
fn masked<T: Int>(count: u8) -> u32 {
    u32::from(count) & if T::BITS == 64 { 63 } else { 31 }
}

pub(super) fn select(i: &mut Insn, d: &Dec) -> Option<Handler> {
    let w = width_code(d);
    Some(match d.op {
        0xc0 | 0xc1 => form::<Imm>(i, d, w),
        0xd0 | 0xd1 => {
            i.imm = 1;
            form::<Imm>(i, d, w)
        }
        0xd2 | 0xd3 => form::<Cl>(i, d, w),
        0x0fa4 => operand!(wide, d.osize + 1, i, d, shld, Imm),
        0x0fa5 => operand!(wide, d.osize + 1, i, d, shld, Cl),
        0x0fac => operand!(wide, d.osize + 1, i, d, shrd, Imm),
        0x0fad => operand!(wide, d.osize + 1, i, d, shrd, Cl),
        _ => return None,
    })
}

fn form<N: Count>(i: &mut Insn, d: &Dec, w: u8) -> Handler {
    byte_regs(i, d, w);
    match d.ext() {
        0 => operand!(width, w, i, d, shift, Rol, N),
        1 => operand!(width, w, i, d, shift, Ror, N),
        2 => operand!(width, w, i, d, shift, Rcl, N),
        3 => operand!(width, w, i, d, shift, Rcr, N),
        5 => operand!(width, w, i, d, shift, Shr, N),
        7 => operand!(width, w, i, d, shift, Sar, N),
        // 6 is SHL too, undocumented.
        _ => operand!(width, w, i, d, shift, Shl, N),
    }
}

quick! {
    fn shift<O: Shift, N: Count, S: Operand, T: Int>[O, N, S::Quick, T][O, N, S::Slow, T](cpu, i) {
        let count = masked::<T>(N::count(cpu, i));
        S::update(cpu, i, |f, a| if count == 0 { a } else { O::run::<T>(f, a, count) })
    }
}

/// SHLD and SHRD: `shift` gives result and carry of (destination, source, count), `overflow` looks at both.
#[inline(always)]
fn double<N: Count, S: Operand, T: Int>(
    cpu: &mut Cpu,
    i: &Insn,
    shift: impl Fn(u64, u64, u32) -> (u64, u64),
    overflow: impl Fn(T, bool) -> bool,
) -> Res {
    let count = masked::<T>(N::count(cpu, i));
    let b = cpu.reg::<T>(i.reg).to_u64();
    S::update(cpu, i, |f, a: T| {
        if count == 0 {
            return a;
        }
        let (r, carry) = shift(a.to_u64(), b, count);
        let (r, carry) = (T::from_u64(r), carry != 0);
        f.result(r, carry, overflow(r, carry), false);
        r
    })
}

chains! {
    /// 16-bit operands shifted by more than 16 rotate on through the source into the destination again.
    fn shld<N: Count, S: Operand, T: Int>(cpu, i) {
        let shift = |a: u64, b: u64, count: u32| match T::BITS {
            16 => {
                let v = (a << 32 | b << 16 | a) << count;
                (v >> 32, v >> 48 & 1)
            }
            32 => {
                let v = a << 32 | b;
                (v << count >> 32, v >> (64 - count) & 1)
            }
            _ => (a << count | b >> (64 - count), a >> (64 - count) & 1),
        };
        double::<N, S, T>(cpu, i, shift, |r, carry| top::<T>(r.to_u64()) != carry)
    }

    fn shrd<N: Count, S: Operand, T: Int>(cpu, i) {
        let shift = |a: u64, b: u64, count: u32| match T::BITS {
            16 => {
                let v = a << 32 | b << 16 | a;
                (v >> count, v >> (count - 1) & 1)
            }
            32 => {
                let v = b << 32 | a;
                (v >> count, v >> (count - 1) & 1)
            }
            _ => (a >> count | b << (64 - count), a >> (count - 1) & 1),
        };
        double::<N, S, T>(cpu, i, shift, |r, _| top::<T>(r.to_u64()) != top::<T>(r.to_u64() << 1))
    }
}
