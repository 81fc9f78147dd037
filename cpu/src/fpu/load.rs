//! x87 loads, stores, exchanges and constants.

use super::Fpu;
use crate::exec::Addr;
use crate::insn::{Insn, Res};
use crate::softfloat::{Constant, F80, X87};
use crate::state::{Cpu, Int};

/// A format of numbers in memory.
pub(super) trait Number: 'static {
    /// Its bits.
    type Raw: Int;
    /// Into a register.
    fn number(x: &mut X87, raw: Self::Raw) -> F80;
    /// From a register.
    fn raw(x: &mut X87, value: F80) -> Self::Raw;
}

pub(super) struct F32;
pub(super) struct F64;
pub(super) struct I16;
pub(super) struct I32;
pub(super) struct I64;
/// The integers as FISTTP stores them.
pub(super) struct Trunc<N>(std::marker::PhantomData<N>);

macro_rules! number {
    ($($name:ty, $raw:ty: |$r:ident| $from:expr, |$x:ident, $v:ident| $to:expr;)*) => {$(
        impl Number for $name {
            type Raw = $raw;
            #[inline(always)]
            fn number($x: &mut X87, $r: $raw) -> F80 {
                $from
            }
            #[inline(always)]
            fn raw($x: &mut X87, $v: F80) -> $raw {
                $to
            }
        }
    )*};
}

number! {
    F32, u32: |r| x.from_f32(r), |x, v| x.to_f32(v);
    F64, u64: |r| x.from_f64(r), |x, v| x.to_f64(v);
    I16, u16: |r| X87::from_integer((r as i16).into()), |_x, v| _x.to_i16(v) as u16;
    I32, u32: |r| X87::from_integer((r as i32).into()), |_x, v| _x.to_i32(v) as u32;
    I64, u64: |r| X87::from_integer(r as i64), |_x, v| _x.to_i64(v) as u64;
    Trunc<I16>, u16: |r| X87::from_integer((r as i16).into()), |_x, v| _x.to_i16_truncated(v) as u16;
    Trunc<I32>, u32: |r| X87::from_integer((r as i32).into()), |_x, v| _x.to_i32_truncated(v) as u32;
    Trunc<I64>, u64: |r| X87::from_integer(r as i64), |_x, v| _x.to_i64_truncated(v) as u64;
}

impl Fpu {
    /// Pushes a number that raised nothing on its way, or what an overflow makes of it.
    fn push_checked(&mut self, value: F80) {
        if self.no_room() {
            if self.overflow() {
                self.push(F80::INDEFINITE);
            }
        } else {
            self.set_c1(false);
            self.push(value);
        }
    }
}

/// FLD m32, FLD m64, FILD.
pub(super) fn load<N: Number, A: Addr>(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.x87(i)?;
    let raw = cpu.read_mem::<A, N::Raw>(i)?;
    cpu.x87_record_mem(i);
    let f = &mut cpu.fpu;
    if f.no_room() {
        if f.overflow() {
            f.push(F80::INDEFINITE);
        }
        return Ok(());
    }
    let mut x = X87::new(f.cw);
    let value = N::number(&mut x, raw);
    f.settle(&x);
    if !x.load_faulted() {
        f.push(value);
    }
    Ok(())
}

/// FST, FIST, FISTTP and their popping forms.
pub(super) fn store<N: Number, A: Addr, const POP: bool>(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.x87(i)?;
    let mut x = X87::new(cpu.fpu.cw);
    let empty = cpu.fpu.empty(0);
    let value = if empty { F80::INDEFINITE } else { cpu.fpu.st(0) };
    let raw = N::raw(&mut x, value);
    let stop = if empty { !cpu.fpu.masks_invalid() } else { x.store_faulted() };
    if stop {
        probe(cpu, i, N::Raw::BYTES.into())?;
    } else {
        cpu.write_mem::<A, N::Raw>(i, raw)?;
    }
    stored::<POP>(cpu, i, empty, stop, &x);
    Ok(())
}

/// A store that an exception forbids faults all the same if it could not be done.
fn probe(cpu: &mut Cpu, i: &Insn, len: u32) -> Res {
    let lin = cpu.lin_gen(i, len, true)?;
    cpu.probe_write(lin, len).map_err(|_| cpu.operand_fault(i))
}

/// What follows the write of a store.
fn stored<const POP: bool>(cpu: &mut Cpu, i: &Insn, empty: bool, stop: bool, x: &X87) {
    cpu.x87_record_mem(i);
    let f = &mut cpu.fpu;
    if empty {
        f.underflow();
    } else {
        f.settle(x);
    }
    if POP && !stop {
        f.pop();
    }
}

impl Fpu {
    fn masks_invalid(&self) -> bool {
        self.cw & 1 != 0
    }
}

/// The ten bytes of a memory operand.
fn read_ten(cpu: &mut Cpu, i: &Insn) -> Res<[u8; 10]> {
    let lin = cpu.lin_gen(i, 10, false)?;
    let mut bytes = [0; 10];
    match cpu.load_bytes(lin, &mut bytes) {
        Ok(()) => Ok(bytes),
        Err(_) => Err(cpu.operand_fault(i)),
    }
}

fn write_ten(cpu: &mut Cpu, i: &Insn, bytes: [u8; 10]) -> Res {
    let lin = cpu.lin_gen(i, 10, true)?;
    match cpu.store_bytes(lin, &bytes) {
        Ok(()) => Ok(()),
        Err(_) => Err(cpu.operand_fault(i)),
    }
}

/// FLD m80. Any pattern is loaded as it is.
pub(super) fn load80(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.x87(i)?;
    let value = F80::from_bytes(read_ten(cpu, i)?);
    cpu.x87_record_mem(i);
    cpu.fpu.push_checked(value);
    Ok(())
}

/// FBLD.
pub(super) fn load_bcd(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.x87(i)?;
    let value = X87::from_bcd(read_ten(cpu, i)?);
    cpu.x87_record_mem(i);
    cpu.fpu.push_checked(value);
    Ok(())
}

/// FSTP m80.
pub(super) fn store80(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.x87(i)?;
    let empty = cpu.fpu.empty(0);
    let stop = empty && !cpu.fpu.masks_invalid();
    if stop {
        probe(cpu, i, 10)?;
    } else {
        let value = if empty { F80::INDEFINITE } else { cpu.fpu.st(0) };
        write_ten(cpu, i, value.to_bytes())?;
    }
    stored::<true>(cpu, i, empty, stop, &X87::new(cpu.fpu.cw));
    Ok(())
}

/// FBSTP.
pub(super) fn store_bcd(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.x87(i)?;
    let mut x = X87::new(cpu.fpu.cw);
    let empty = cpu.fpu.empty(0);
    let value = if empty { F80::INDEFINITE } else { cpu.fpu.st(0) };
    let bytes = x.to_bcd(value);
    let stop = if empty { !cpu.fpu.masks_invalid() } else { x.store_faulted() };
    if stop {
        probe(cpu, i, 10)?;
    } else {
        write_ten(cpu, i, bytes)?;
    }
    stored::<true>(cpu, i, empty, stop, &x);
    Ok(())
}

/// FLD ST(i).
pub(super) fn load_st(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.x87(i)?;
    cpu.x87_record(i);
    let f = &mut cpu.fpu;
    if f.empty(i.rm) {
        if f.underflow() {
            f.push(F80::INDEFINITE);
        }
    } else {
        f.push_checked(f.st(i.rm));
    }
    Ok(())
}

/// FST ST(i), FSTP ST(i).
pub(super) fn store_st<const POP: bool>(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.x87(i)?;
    cpu.x87_record(i);
    let f = &mut cpu.fpu;
    if f.empty(0) {
        if !f.underflow() {
            return Ok(());
        }
        f.set_st(i.rm, F80::INDEFINITE);
    } else {
        f.set_c1(false);
        f.set_st(i.rm, f.st(0));
    }
    if POP {
        f.pop();
    }
    Ok(())
}

/// FSTPNCE, which FSTP's alias D9 D8 is called: an empty ST(0) is no error, and not copied.
pub(super) fn fstpnce(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.x87(i)?;
    cpu.x87_record(i);
    let f = &mut cpu.fpu;
    if !f.empty(0) {
        f.set_st(i.rm, f.st(0));
    }
    f.set_c1(false);
    f.pop();
    Ok(())
}

/// FXCH.
pub(super) fn fxch(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.x87(i)?;
    cpu.x87_record(i);
    let f = &mut cpu.fpu;
    let value = |f: &Fpu, n| if f.empty(n) { F80::INDEFINITE } else { f.st(n) };
    let (a, b) = (value(f, 0), value(f, i.rm));
    if f.empty(0) || f.empty(i.rm) {
        if !f.underflow() {
            return Ok(());
        }
    } else {
        f.set_c1(false);
    }
    f.set_st(0, b);
    f.set_st(i.rm, a);
    Ok(())
}

/// FCMOVcc: bits 3 and 4 of the opcode choose among B, E, BE and U, the first byte negates.
pub(super) fn fcmov<const CC: u8>(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.x87(i)?;
    cpu.x87_record(i);
    let wanted = cpu.flags.cond(CC);
    let f = &mut cpu.fpu;
    if f.empty(0) || f.empty(i.rm) {
        if f.underflow() {
            f.set_st(0, F80::INDEFINITE);
        }
    } else if wanted {
        f.set_st(0, f.st(i.rm));
    }
    Ok(())
}

/// The constants, by ModRM.rm.
pub(super) fn constant(cpu: &mut Cpu, i: &Insn) -> Res {
    const CONSTANTS: [Constant; 8] = [
        Constant::One,
        Constant::Log2Of10,
        Constant::Log2OfE,
        Constant::Pi,
        Constant::Log10Of2,
        Constant::LnOf2,
        Constant::Zero,
        Constant::Zero,
    ];
    cpu.x87(i)?;
    cpu.x87_record(i);
    let f = &mut cpu.fpu;
    let value = X87::new(f.cw).constant(CONSTANTS[usize::from(i.rm & 7)]);
    f.push_checked(value);
    Ok(())
}

/// FFREE, and FFREEP, which also pops.
pub(super) fn ffree<const POP: bool>(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.x87(i)?;
    cpu.x87_record(i);
    cpu.fpu.free(i.rm);
    cpu.fpu.set_c1(false);
    if POP {
        cpu.fpu.pop();
    }
    Ok(())
}

/// FINCSTP (1) and FDECSTP (7).
pub(super) fn turn<const BY: u8>(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.x87(i)?;
    cpu.x87_record(i);
    let f = &mut cpu.fpu;
    f.top = f.top.wrapping_add(BY) & 7;
    f.set_c1(false);
    Ok(())
}

/// FNOP.
pub(super) fn fnop(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.x87(i)?;
    cpu.x87_record(i);
    Ok(())
}
