//! Descriptor table registers, and the instructions that look at descriptors: SGDT, SIDT, LGDT, LIDT, SLDT, STR, LLDT,
//! LTR, VERR, VERW, LAR, LSL, ARPL, SMSW.
//!
//! UMIP is not offered: the stores work at any privilege level.

use crate::exec::{Gen, Operand, Reg};
use crate::insn::{Dec, Handler, Insn, Mode, Res};
use crate::seg::{Descriptor, GP, NP, error_of, kind, null};
use crate::state::{Cpu, Segment, Table};
use crate::sys::osize;

/// Picks the handler of group 6: SLDT, STR, LLDT, LTR, VERR, VERW.
pub(crate) fn select_0f00(i: &mut Insn, d: &Dec) -> Option<Handler> {
    if d.mode.has(Mode::REAL) {
        return None;
    }
    i.reg = d.ext();
    Some(match (d.ext(), d.mem) {
        (0 | 1, true) => store_selector_mem,
        (0 | 1, false) => store_selector,
        (2 | 3, true) => load_selector::<Gen>,
        (2 | 3, false) => load_selector::<Reg>,
        (4 | 5, true) => verify::<Gen>,
        (4 | 5, false) => verify::<Reg>,
        _ => return None,
    })
}

/// SGDT and SIDT.
pub(crate) fn store_table(cpu: &mut Cpu, i: &Insn) -> Res {
    let t = if i.reg & 1 == 0 { cpu.gdtr } else { cpu.idtr };
    let len = if cpu.mode.has(Mode::LONG) { 10 } else { 6 };
    let lin = cpu.lin_gen(i, len, true)?;
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&t.limit.to_le_bytes());
    bytes[2..].copy_from_slice(&t.base.to_le_bytes());
    cpu.store_bytes(lin, &bytes[..len as usize]).map_err(|_| cpu.operand_fault(i))
}

/// LGDT and LIDT. A 16-bit operand size gives a base of 24 bits.
pub(crate) fn load_table(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.privileged()?;
    let long = cpu.mode.has(Mode::LONG);
    let len = if long { 10 } else { 6 };
    let lin = cpu.lin_gen(i, len, false)?;
    let mut bytes = [0; 10];
    cpu.load_bytes(lin, &mut bytes[..len as usize]).map_err(|_| cpu.operand_fault(i))?;
    let limit = u16::from_le_bytes([bytes[0], bytes[1]]);
    let mut base = 0;
    for byte in bytes[2..].iter().rev() {
        base = base << 8 | u64::from(*byte);
    }
    if !long && osize(i) == 0 {
        base &= 0xff_ffff;
    }
    if long && !crate::mem::canonical(base) {
        return Err(cpu.gp(0));
    }
    let t = Table { base, limit };
    if i.reg & 1 == 0 {
        cpu.gdtr = t;
    } else {
        cpu.idtr = t;
    }
    Ok(())
}

/// SMSW to a register: as wide as the operand.
pub(crate) fn smsw(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.put_reg(i.rm, osize(i), cpu.cr0);
    Ok(())
}

/// SMSW to memory: always 16 bits.
pub(crate) fn smsw_mem(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.write_mem::<Gen, u16>(i, cpu.cr0 as u16)
}

fn stored(cpu: &Cpu, i: &Insn) -> u16 {
    if i.reg == 0 { cpu.ldtr.selector } else { cpu.tr.selector }
}

fn store_selector(cpu: &mut Cpu, i: &Insn) -> Res {
    let selector = stored(cpu, i);
    cpu.put_reg(i.rm, osize(i), selector.into());
    Ok(())
}

fn store_selector_mem(cpu: &mut Cpu, i: &Insn) -> Res {
    let selector = stored(cpu, i);
    cpu.write_mem::<Gen, u16>(i, selector)
}

fn load_selector<S: Operand>(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.privileged()?;
    let selector = S::get::<u16>(cpu, i)?;
    if i.reg == 2 { cpu.lldt(selector) } else { cpu.ltr(selector) }
}

impl Cpu {
    fn lldt(&mut self, selector: u16) -> Res {
        if null(selector) {
            self.ldtr = Segment::null(selector);
            return Ok(());
        }
        self.ldtr = self.system_segment(selector, kind::LDT, kind::LDT)?.1;
        Ok(())
    }

    fn ltr(&mut self, selector: u16) -> Res {
        if null(selector) {
            return Err(self.gp(0));
        }
        let narrow = if self.lma() { kind::TSS32 } else { kind::TSS16 };
        let (d, mut tr) = self.system_segment(selector, narrow, kind::TSS32)?;
        let busy = (d.hi >> 8) as u8 | kind::BUSY as u8;
        self.sys_store(d.at.wrapping_add(5), busy)?;
        tr.access |= kind::BUSY;
        self.tr = tr;
        Ok(())
    }

    /// A present system segment of the GDT of one of two types; in long mode its base has 64 bits.
    fn system_segment(&mut self, selector: u16, one: u32, other: u32) -> Res<(Descriptor, Segment)> {
        let error = error_of(selector);
        if selector & 4 != 0 {
            return Err(self.gp(error));
        }
        let d = self.descriptor(selector, GP)?;
        if !d.is_system(one) && !d.is_system(other) {
            return Err(self.gp(error));
        }
        if !d.present() {
            return Err(self.fault(NP, Some(error)));
        }
        let mut s = d.segment(selector);
        if self.lma() {
            s.base |= self.descriptor_high(&d, selector, GP)?;
            if !crate::mem::canonical(s.base) {
                return Err(self.gp(error));
            }
        }
        Ok((d, s))
    }

    /// The descriptor that LAR, LSL, VERR and VERW ask about, if it is there. Only page faults are faults.
    fn asked_descriptor(&mut self, selector: u16) -> Res<Option<Descriptor>> {
        let (limit, usable) =
            if selector & 4 == 0 { (self.gdtr.limit.into(), true) } else { (self.ldtr.limit, self.ldtr.usable()) };
        if null(selector) || !usable || u32::from(selector & 0xfff8) + 7 > limit {
            return Ok(None);
        }
        self.descriptor(selector, GP).map(Some)
    }

    /// Whether a segment may be seen from the present privilege level through a selector.
    fn visible(&self, selector: u16, d: &Descriptor) -> bool {
        d.conforming() || d.dpl() >= self.cpl.max(selector as u8 & 3)
    }
}

/// VERR and VERW.
fn verify<S: Operand>(cpu: &mut Cpu, i: &Insn) -> Res {
    let selector = S::get::<u16>(cpu, i)?;
    let d = cpu.asked_descriptor(selector)?;
    let ok = d.is_some_and(|d| {
        d.is_segment() && cpu.visible(selector, &d) && if i.reg == 4 { d.readable() } else { d.writable() }
    });
    cpu.flags.set_zf(ok);
    Ok(())
}

/// LAR.
pub(crate) fn lar<S: Operand>(cpu: &mut Cpu, i: &Insn) -> Res {
    let selector = S::get::<u16>(cpu, i)?;
    let d = cpu.asked_descriptor(selector)?.filter(|d| {
        let known = match d.kind() {
            _ if d.is_segment() => true,
            1 | 3 | 4 | 5 => !cpu.lma(),
            2 | 9 | 11 | 12 => true,
            _ => false,
        };
        known && cpu.visible(selector, d)
    });
    cpu.flags.set_zf(d.is_some());
    if let Some(d) = d {
        cpu.put_reg(i.reg, osize(i), u64::from(d.hi & 0x00ff_ff00));
    }
    Ok(())
}

/// LSL.
pub(crate) fn lsl<S: Operand>(cpu: &mut Cpu, i: &Insn) -> Res {
    let selector = S::get::<u16>(cpu, i)?;
    let d = cpu.asked_descriptor(selector)?.filter(|d| {
        let known = match d.kind() {
            _ if d.is_segment() => true,
            1 | 3 => !cpu.lma(),
            2 | 9 | 11 => true,
            _ => false,
        };
        known && cpu.visible(selector, d)
    });
    cpu.flags.set_zf(d.is_some());
    if let Some(d) = d {
        cpu.put_reg(i.reg, osize(i), d.limit().into());
    }
    Ok(())
}

/// ARPL.
pub(crate) fn arpl<S: Operand>(cpu: &mut Cpu, i: &Insn) -> Res {
    let b: u16 = cpu.reg(i.reg);
    let mut raise = false;
    S::update::<u16>(cpu, i, |_, a| {
        raise = a & 3 < b & 3;
        if raise { a & !3 | b & 3 } else { a }
    })?;
    cpu.flags.set_zf(raise);
    Ok(())
}
