//! BT, BTS, BTR, BTC; BSF, BSR; POPCNT and CRC32.
//!
//! BSF and BSR of zero leave the destination as it is, all 64 bits of it: AMD says so, Intel's do it, and the C
//! libraries of some guests rely on it. Their undefined flags are those of a logical operation that gives the source.
//! LZCNT and TZCNT are not offered, so that their encodings are BSR and BSF.

use super::hit::quick;
use super::{Addr, Operand, Reg, byte_reg, memory, operand, wide, width};
use crate::insn::{Dec, Handler, Insn, Res, chains};
use crate::state::{Cpu, Int};

/// What becomes of the bit that was copied to CF.
trait Bit: 'static {
    /// BT writes nothing.
    const WRITES: bool;
    fn run(v: u64, bit: u64) -> u64;
}

struct Bt;
struct Bts;
struct Btr;
struct Btc;

impl Bit for Bt {
    const WRITES: bool = false;
    #[inline(always)]
    fn run(v: u64, _: u64) -> u64 {
        v
    }
}

impl Bit for Bts {
    const WRITES: bool = true;
    #[inline(always)]
    fn run(v: u64, bit: u64) -> u64 {
        v | bit
    }
}

impl Bit for Btr {
    const WRITES: bool = true;
    #[inline(always)]
    fn run(v: u64, bit: u64) -> u64 {
        v & !bit
    }
}

impl Bit for Btc {
    const WRITES: bool = true;
    #[inline(always)]
    fn run(v: u64, bit: u64) -> u64 {
        v ^ bit
    }
}

pub(super) fn select(i: &mut Insn, d: &Dec) -> Option<Handler> {
    let w = d.osize + 1;
    Some(match d.op {
        0x0fa3 => by_register::<Bt>(i, d),
        0x0fab => by_register::<Bts>(i, d),
        0x0fb3 => by_register::<Btr>(i, d),
        0x0fbb => by_register::<Btc>(i, d),
        0x0fba => match d.ext() {
            4 => operand!(wide, w, i, d, bit_imm, Bt),
            5 => operand!(wide, w, i, d, bit_imm, Bts),
            6 => operand!(wide, w, i, d, bit_imm, Btr),
            7 => operand!(wide, w, i, d, bit_imm, Btc),
            _ => return None,
        },
        0x0fbc => operand!(wide, w, i, d, bsf),
        0x0fbd => operand!(wide, w, i, d, bsr),
        0x0fb8 if d.rep == 0xf3 => operand!(wide, w, i, d, popcnt),
        0x38f0 if d.rep == 0xf2 => {
            i.rm = byte_reg(i.rm, d);
            operand!(width, 0, i, d, crc32)
        }
        0x38f1 if d.rep == 0xf2 => operand!(wide, w, i, d, crc32),
        _ => return None,
    })
}

fn by_register<O: Bit>(i: &mut Insn, d: &Dec) -> Handler {
    let w = d.osize + 1;
    if d.mem { memory!(wide, w, i, d, bit_string, O) } else { wide!(w, bit_reg, O) }
}

/// CF is the bit; the other flags stay.
#[inline(always)]
fn bit<O: Bit, S: Operand, T: Int>(cpu: &mut Cpu, i: &Insn, number: u64) -> Res {
    let number = number % u64::from(T::BITS);
    if O::WRITES {
        S::update(cpu, i, |f, a: T| {
            f.set_cf(a.to_u64() >> number & 1 != 0);
            T::from_u64(O::run(a.to_u64(), 1 << number))
        })
    } else {
        let a = S::get::<T>(cpu, i)?;
        cpu.flags.set_cf(a.to_u64() >> number & 1 != 0);
        Ok(())
    }
}

quick! {
    fn bit_imm<O: Bit, S: Operand, T: Int>[O, S::Quick, T][O, S::Slow, T](cpu, i) {
        bit::<O, S, T>(cpu, i, i.imm)
    }
}

chains! {
    fn bit_reg<O: Bit, T: Int>(cpu, i) {
        let number = cpu.reg::<T>(i.reg).to_u64();
        bit::<O, Reg, T>(cpu, i, number)
    }

    /// A bit of a string of bits: the register counts, signed, from the memory operand on.
    fn bit_string<O: Bit, A: Addr, T: Int>(cpu, i) {
        let number = cpu.reg::<T>(i.reg).sext();
        let extra = ((number as i64 >> T::BITS.trailing_zeros()) as u64).wrapping_mul(u64::from(T::BYTES));
        let mask = 1 << (number % u64::from(T::BITS));
        let lin = A::linear(cpu, i, extra, u32::from(T::BYTES), O::WRITES)?;
        let v = if O::WRITES { cpu.load_rmw::<T>(lin) } else { cpu.load::<T>(lin) };
        let Ok(v) = v else { return Err(cpu.operand_fault(i)) };
        if O::WRITES {
            cpu.store(lin, T::from_u64(O::run(v.to_u64(), mask)))?;
        }
        cpu.flags.set_cf(v.to_u64() & mask != 0);
        Ok(())
    }

    fn bsf<S: Operand, T: Int>(cpu, i) {
        let v = S::get::<T>(cpu, i)?.to_u64();
        if v != 0 {
            cpu.set_reg(i.reg, T::from_u64(u64::from(v.trailing_zeros())));
        }
        cpu.flags.logic(T::from_u64(v));
        Ok(())
    }

    fn bsr<S: Operand, T: Int>(cpu, i) {
        let v = S::get::<T>(cpu, i)?.to_u64();
        if v != 0 {
            cpu.set_reg(i.reg, T::from_u64(u64::from(63 - v.leading_zeros())));
        }
        cpu.flags.logic(T::from_u64(v));
        Ok(())
    }

    fn popcnt<S: Operand, T: Int>(cpu, i) {
        let v = S::get::<T>(cpu, i)?;
        let count = u64::from(v.to_u64().count_ones());
        cpu.set_reg(i.reg, T::from_u64(count));
        // ZF is set by the source, the rest is 0: SF and PF too, which a count might set.
        cpu.flags = crate::flags::Flags::from_bits(if count == 0 { crate::flags::ZF } else { 0 });
        Ok(())
    }
}

/// The reflected polynomial of CRC-32C, 11EDC6F41.
const CRC32C: [u32; 256] = {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let mut c = n as u32;
        let mut k = 0;
        while k < 8 {
            c = c >> 1 ^ if c & 1 != 0 { 0x82f6_3b78 } else { 0 };
            k += 1;
        }
        table[n] = c;
        n += 1;
    }
    table
};

chains! {
    /// The destination is 32 bits, and clears the upper half, even with REX.W.
    fn crc32<S: Operand, T: Int>(cpu, i) {
        let v = S::get::<T>(cpu, i)?.to_u64();
        let mut crc = cpu.reg::<u32>(i.reg);
        for byte in &v.to_le_bytes()[..usize::from(T::BYTES)] {
            crc = crc >> 8 ^ CRC32C[usize::from(crc as u8 ^ byte)];
        }
        cpu.set_reg(i.reg, crc);
        Ok(())
    }
}
