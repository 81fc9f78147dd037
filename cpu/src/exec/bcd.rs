//! DAA, DAS, AAA, AAS, AAM and AAD.

use crate::insn::{Dec, Handler, Insn, RAX, Res, chains};
use crate::state::Cpu;

const AH: u8 = 0x80 | RAX;

pub(super) fn select(_: &mut Insn, d: &Dec) -> Option<Handler> {
    Some(match d.op {
        0x27 => daa,
        0x2f => das,
        0x37 => aaa,
        0x3f => aas,
        0xd4 => aam,
        0xd5 => aad,
        _ => return None,
    })
}

/// DAA and DAS differ in the direction. OF, undefined, is 0.
fn adjust_packed(cpu: &mut Cpu, adjust: fn(u8, u8) -> u8, borrow: bool) -> Res {
    let (al, cf, af) = (cpu.reg::<u8>(RAX), cpu.flags.cf(), cpu.flags.af());
    let low = al & 15 > 9 || af;
    let high = al > 0x99 || cf;
    let mut r = al;
    if low {
        r = adjust(r, 6);
    }
    if high {
        r = adjust(r, 0x60);
    }
    // A borrow out of the lower step counts, even when the upper one does not happen; the carry of DAA then cannot be.
    let cf = high || borrow && low && al < 6;
    cpu.set_reg(RAX, r);
    cpu.flags.result(r, cf, false, low);
    Ok(())
}

chains! {
    fn daa(cpu, _) {
        adjust_packed(cpu, u8::wrapping_add, false)
    }

    fn das(cpu, _) {
        adjust_packed(cpu, u8::wrapping_sub, true)
    }
}

/// AAA and AAS work on AX as a whole. OF, SF, ZF and PF, undefined, follow AL.
fn adjust_unpacked(cpu: &mut Cpu, adjust: fn(u16, u16) -> u16) -> Res {
    let ax = cpu.reg::<u16>(RAX);
    let carry = ax & 15 > 9 || cpu.flags.af();
    let r = if carry { adjust(ax, 0x106) } else { ax } & 0xff0f;
    cpu.set_reg(RAX, r);
    cpu.flags.result(r as u8, carry, false, carry);
    Ok(())
}

chains! {
    fn aaa(cpu, _) {
        adjust_unpacked(cpu, u16::wrapping_add)
    }

    fn aas(cpu, _) {
        adjust_unpacked(cpu, u16::wrapping_sub)
    }

    fn aam(cpu, i) {
        let (al, base) = (cpu.reg::<u8>(RAX), i.imm as u8);
        if base == 0 {
            return Err(cpu.fault(0, None));
        }
        cpu.set_reg(AH, al / base);
        cpu.set_reg(RAX, al % base);
        cpu.flags.result(al % base, false, false, false);
        Ok(())
    }

    fn aad(cpu, i) {
        let (al, ah) = (cpu.reg::<u8>(RAX), cpu.reg::<u8>(AH));
        let r = al.wrapping_add(ah.wrapping_mul(i.imm as u8));
        cpu.set_reg(RAX, u16::from(r));
        cpu.flags.result(r, false, false, false);
        Ok(())
    }
}
