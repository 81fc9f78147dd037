//! Moves of every sort, conditional and converting ones, LEA, XCHG, BSWAP; the instructions on single flags; hints.

use super::addr::address_mask;
use super::hit::quick;
use super::{
    Addr, Base, Condition, Flat, Gen, Kind, Operand, Reg, by_condition, byte_reg, byte_regs, kind, memory, operand,
    wide, width, width_code,
};
use crate::flags::{AF, CF, DF, PF, SF, ZF};
use crate::insn::{DS, Dec, END, Handler, Insn, NEXT, RAX, RBX, RDX, Res, chains};
use crate::state::{Cpu, Int};

pub(super) fn select(i: &mut Insn, d: &Dec) -> Option<Handler> {
    let w = width_code(d);
    Some(match d.op {
        // MOVSXD: the destination may be as short as the source, and shorter.
        0x63 => match d.osize {
            0 => operand!(wide, 1, i, d, movsx, u16),
            1 => operand!(wide, 2, i, d, movsx, u32),
            _ => operand!(wide, 2, i, d, movsx, u64),
        },
        0x86 | 0x87 => {
            byte_regs(i, d, w);
            if d.mem { memory!(width, w, i, d, xchg_mem) } else { width!(w, xchg_reg) }
        }
        0x88 | 0x89 => {
            byte_regs(i, d, w);
            if d.mem {
                return Some(memory!(width, w, i, d, store));
            }
            std::mem::swap(&mut i.reg, &mut i.rm);
            width!(w, load, Reg)
        }
        0x8a | 0x8b => {
            byte_regs(i, d, w);
            operand!(width, w, i, d, load)
        }
        0x8d => return lea_form(i, d),
        0x90 if i.reg == RAX => {
            // PAUSE: the other processors may have their turn.
            if d.rep == 0xf3 {
                i.flags |= END;
                pause
            } else {
                nop
            }
        }
        0x90..=0x97 => {
            i.rm = RAX;
            wide!(d.osize + 1, xchg_reg)
        }
        0x98 => match d.osize {
            0 => widen::<u8, u16>,
            1 => widen::<u16, u32>,
            _ => widen::<u32, u64>,
        },
        0x99 => wide!(d.osize + 1, sign_to_rdx),
        0x9e => sahf,
        0x9f => lahf,
        0xa0..=0xa3 => return Some(offset_form(i, d)),
        0xb0..=0xb7 => {
            i.rm = byte_reg(i.reg, d);
            width!(0, store_imm, Reg)
        }
        0xb8..=0xbf => {
            i.rm = i.reg;
            wide!(d.osize + 1, store_imm, Reg)
        }
        0xc6 | 0xc7 if d.ext() == 0 => {
            byte_regs(i, d, w);
            operand!(width, w, i, d, store_imm)
        }
        0xd6 => salc,
        0xd7 => {
            i.base = RBX;
            match kind(i, &Dec { mem: true, ..*d }) {
                Kind::Base => xlat::<Base>,
                _ => xlat::<Gen>,
            }
        }
        0xf5 => cmc,
        0xf8 => clc,
        0xf9 => stc,
        0xfc => cld,
        0xfd => std,
        // Hints: prefetches, ENDBR, and NOPs with an operand. Nothing is read.
        0x0f0d | 0x0f18..=0x0f1f => nop,
        0x0f40..=0x0f4f => by_condition!(d.op, cmov_form(i, d)),
        0x0f90..=0x0f9f => {
            i.rm = byte_reg(i.rm, d);
            by_condition!(d.op, setcc_form(i, d))
        }
        0x0fb6 | 0x0fbe => {
            i.rm = byte_reg(i.rm, d);
            let zero = d.op == 0x0fb6;
            match d.osize {
                0 if zero => operand!(width, 0, i, d, movzx, u16),
                0 => operand!(width, 0, i, d, movsx, u16),
                1 if !zero => operand!(width, 0, i, d, movsx, u32),
                _ if zero => operand!(width, 0, i, d, movzx, u64),
                _ => operand!(width, 0, i, d, movsx, u64),
            }
        }
        0x0fb7 | 0x0fbf => {
            let zero = d.op == 0x0fb7;
            match d.osize {
                // Both are a 16-bit move.
                0 => operand!(wide, 1, i, d, movzx, u16),
                1 if !zero => operand!(wide, 1, i, d, movsx, u32),
                _ if zero => operand!(wide, 1, i, d, movzx, u64),
                _ => operand!(wide, 1, i, d, movsx, u64),
            }
        }
        // MOVNTI has no 16-bit form.
        0x0fc3 if d.mem && d.rep == 0 && !d.p66 => memory!(wide, d.osize.max(1) + 1, i, d, store),
        0x0fc8..=0x0fcf => wide!(d.osize + 1, bswap),
        _ => return None,
    })
}

fn cmov_form<C: Condition>(i: &mut Insn, d: &Dec) -> Handler {
    operand!(wide, d.osize + 1, i, d, cmov, C)
}

fn setcc_form<C: Condition>(i: &mut Insn, d: &Dec) -> Handler {
    operand!(width, 0, i, d, setcc, C)
}

fn pause(_: &mut Cpu, _: &Insn) -> Res {
    Ok(())
}

fn lea_form(i: &mut Insn, d: &Dec) -> Option<Handler> {
    // The segment does not matter, so that FS and GS are no reason to be slow.
    Some(match kind(&Insn { seg: DS, ..*i }, d) {
        Kind::Reg => return None,
        Kind::Base => wide!(d.osize + 1, lea, Base),
        Kind::Flat => wide!(d.osize + 1, lea, Flat),
        Kind::Gen => wide!(d.osize + 1, lea, Gen),
    })
}

/// MOV between the accumulator and an absolute address.
fn offset_form(i: &mut Insn, d: &Dec) -> Handler {
    i.reg = RAX;
    let w = width_code(d);
    match (i.base == NEXT, d.op < 0xa2) {
        (false, true) => memory!(width, w, i, d, load),
        (false, false) => memory!(width, w, i, d, store),
        (true, true) => width!(w, load_far),
        (true, false) => width!(w, store_far),
    }
}

quick! {
    fn load<S: Operand, T: Int>[S::Quick, T][S::Slow, T](cpu, i) {
        let v = S::get::<T>(cpu, i)?;
        cpu.set_reg(i.reg, v);
        Ok(())
    }

    fn store<S: Operand, T: Int>[S::Quick, T][S::Slow, T](cpu, i) {
        let v = cpu.reg::<T>(i.reg);
        S::put(cpu, i, v)
    }

    fn store_imm<S: Operand, T: Int>[S::Quick, T][S::Slow, T](cpu, i) {
        S::put(cpu, i, T::from_u64(i.imm))
    }

    /// `D` is the destination, `T` the source.
    fn movzx<D: Int, S: Operand, T: Int>[D, S::Quick, T][D, S::Slow, T](cpu, i) {
        let v = S::get::<T>(cpu, i)?;
        cpu.set_reg(i.reg, D::from_u64(v.to_u64()));
        Ok(())
    }

    fn movsx<D: Int, S: Operand, T: Int>[D, S::Quick, T][D, S::Slow, T](cpu, i) {
        let v = S::get::<T>(cpu, i)?;
        cpu.set_reg(i.reg, D::from_u64(v.sext()));
        Ok(())
    }

    /// The source is read, and a 32-bit destination widened, whatever the condition.
    fn cmov<C: Condition, S: Operand, T: Int>[C, S::Quick, T][C, S::Slow, T](cpu, i) {
        let v = S::get::<T>(cpu, i)?;
        let v = if cpu.flags.cond(C::CODE) { v } else { cpu.reg(i.reg) };
        cpu.set_reg(i.reg, v);
        Ok(())
    }

    fn setcc<C: Condition, S: Operand, T: Int>[C, S::Quick, T][C, S::Slow, T](cpu, i) {
        let v = T::from_u64(u64::from(cpu.flags.cond(C::CODE)));
        S::put(cpu, i, v)
    }

    fn xchg_mem<S: Operand, T: Int>[S::Quick, T][S::Slow, T](cpu, i) {
        let new = cpu.reg::<T>(i.reg);
        let mut old = new;
        S::update(cpu, i, |_, a| {
            old = a;
            new
        })?;
        cpu.set_reg(i.reg, old);
        Ok(())
    }
}

/// An absolute address of 64 bits.
fn load_far<T: Int>(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.gpr[usize::from(NEXT)] = i.imm;
    load::<Gen, T>(cpu, i)
}

fn store_far<T: Int>(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.gpr[usize::from(NEXT)] = i.imm;
    store::<Gen, T>(cpu, i)
}

chains! {
    fn lea<A: Addr, T: Int>(cpu, i) {
        let v = A::offset(cpu, i) & address_mask(i);
        cpu.set_reg(i.reg, T::from_u64(v));
        Ok(())
    }

    fn xchg_reg<T: Int>(cpu, i) {
        let (a, b) = (cpu.reg::<T>(i.reg), cpu.reg::<T>(i.rm));
        cpu.set_reg(i.reg, b);
        cpu.set_reg(i.rm, a);
        Ok(())
    }

    /// Of 16 bits it makes zero, as every processor does.
    fn bswap<T: Int>(cpu, i) {
        let v = cpu.reg::<T>(i.reg).to_u64();
        let v = if T::BITS == 16 { 0 } else { v.swap_bytes() >> (64 - T::BITS) };
        cpu.set_reg(i.reg, T::from_u64(v));
        Ok(())
    }

    /// CBW, CWDE, CDQE.
    fn widen<S: Int, D: Int>(cpu, _) {
        let v = cpu.reg::<S>(RAX).sext();
        cpu.set_reg(RAX, D::from_u64(v));
        Ok(())
    }

    /// CWD, CDQ, CQO.
    fn sign_to_rdx<T: Int>(cpu, _) {
        let sign = (cpu.reg::<T>(RAX).sext() as i64 >> 63) as u64;
        cpu.set_reg(RDX, T::from_u64(sign));
        Ok(())
    }

    fn xlat<A: Addr>(cpu, i) {
        let al = u64::from(cpu.reg::<u8>(RAX));
        let lin = A::linear(cpu, i, al, 1, false)?;
        let v = cpu.load::<u8>(lin)?;
        cpu.set_reg(RAX, v);
        Ok(())
    }

    fn nop(_, _) {
        Ok(())
    }

    fn sahf(cpu, _) {
        const FROM_AH: u64 = CF | PF | AF | ZF | SF;
        let ah = cpu.gpr[usize::from(RAX)] >> 8;
        cpu.flags = crate::flags::Flags::from_bits(cpu.flags.bits() & !FROM_AH | ah & FROM_AH);
        Ok(())
    }

    fn lahf(cpu, _) {
        let v = cpu.flags.bits() as u8 | 2;
        cpu.set_reg(0x80 | RAX, v);
        Ok(())
    }

    /// Undocumented by Intel until late: AL becomes FF if CF is set, else 0.
    fn salc(cpu, _) {
        let v = 0u8.wrapping_sub(u8::from(cpu.flags.cf()));
        cpu.set_reg(RAX, v);
        Ok(())
    }

    fn cmc(cpu, _) {
        cpu.flags.set_cf(!cpu.flags.cf());
        Ok(())
    }

    fn clc(cpu, _) {
        cpu.flags.set_cf(false);
        Ok(())
    }

    fn stc(cpu, _) {
        cpu.flags.set_cf(true);
        Ok(())
    }

    fn cld(cpu, _) {
        cpu.rflags &= !DF;
        Ok(())
    }

    fn std(cpu, _) {
        cpu.rflags |= DF;
        Ok(())
    }
}
