//! Control and debug registers, and the changes of mode that they bring about (Intel SDM volume 3, 2.5, 9.8.5 and
//! 18.2).

use crate::debug::{DR6_BD, DR7_GD};
use crate::exec::Gen;
use crate::insn::{CS, Insn, Mode, Res};
use crate::mem::canonical;
use crate::msr::{EFER_LMA, EFER_LME};
use crate::seg::kind;
use crate::state::Cpu;

pub(crate) const CR0_PE: u64 = 1;
const CR0_TS: u64 = 1 << 3;
const CR0_ET: u64 = 1 << 4;
const CR0_WP: u64 = 1 << 16;
const CR0_NW: u64 = 1 << 29;
const CR0_CD: u64 = 1 << 30;
pub(crate) const CR0_PG: u64 = 1 << 31;

const CR4_PSE: u64 = 1 << 4;
pub(crate) const CR4_PAE: u64 = 1 << 5;
const CR4_PGE: u64 = 1 << 7;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;
/// A change of any of these bits makes translations wrong.
const CR4_FLUSH: u64 = CR4_PSE | CR4_PAE | CR4_PGE | CR4_SMEP | CR4_SMAP;

const DR6_FIXED: u64 = 0xffff_0ff0;
const DR7_FIXED: u64 = 1 << 10;

/// CLTS.
pub(crate) fn clts(cpu: &mut Cpu, _: &Insn) -> Res {
    cpu.privileged()?;
    cpu.cr0 &= !CR0_TS;
    Ok(())
}

/// LMSW r16.
pub(crate) fn lmsw(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.privileged()?;
    let v: u16 = cpu.reg(i.rm);
    cpu.load_msw(v)
}

/// LMSW m16.
pub(crate) fn lmsw_mem(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.privileged()?;
    let v = cpu.read_mem::<Gen, u16>(i)?;
    cpu.load_msw(v)
}

/// MOV r, CRn.
pub(crate) fn mov_from_cr(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.privileged()?;
    let v = match i.reg {
        0 => cpu.cr0,
        2 => cpu.cr2,
        3 => cpu.cr3,
        4 => cpu.cr4,
        _ => u64::from(cpu.lapic.tpr() >> 4),
    };
    let size = register_size(cpu);
    cpu.put_reg(i.rm, size, v);
    Ok(())
}

/// MOV CRn, r.
pub(crate) fn mov_to_cr(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.privileged()?;
    let v = operand(cpu, i);
    match i.reg {
        0 => cpu.write_cr0(v),
        2 => {
            cpu.cr2 = v;
            Ok(())
        }
        3 => cpu.write_cr3(v),
        4 => cpu.write_cr4(v),
        _ if v > 15 => Err(cpu.gp(0)),
        _ => {
            cpu.lapic.set_tpr((v as u8) << 4);
            Ok(())
        }
    }
}

/// The size code of moves to and from control and debug registers, which ignore prefixes.
fn register_size(cpu: &Cpu) -> u8 {
    if cpu.mode.has(Mode::LONG) { 2 } else { 1 }
}

fn operand(cpu: &Cpu, i: &Insn) -> u64 {
    let v = cpu.gpr[usize::from(i.rm & 15)];
    if cpu.mode.has(Mode::LONG) { v } else { v & 0xffff_ffff }
}

impl Cpu {
    /// LMSW cannot clear PE.
    fn load_msw(&mut self, v: u16) -> Res {
        let low = u64::from(v & 0xf) | self.cr0 & CR0_PE;
        self.write_cr0(self.cr0 & !0xf | low)
    }

    fn write_cr0(&mut self, v: u64) -> Res {
        if v >> 32 != 0 || v & CR0_PG != 0 && v & CR0_PE == 0 || v & CR0_NW != 0 && v & CR0_CD == 0 {
            return Err(self.gp(0));
        }
        let old = self.cr0;
        let new = v & self.model.cr0_mask() | CR0_ET;
        let changed = old ^ new;
        if changed & CR0_PG != 0 && self.msr.efer & EFER_LME != 0 {
            let cs = &self.seg[usize::from(CS)];
            if new & CR0_PG != 0 {
                let tss16 = self.tr.usable() && self.tr.kind() & !kind::BUSY == kind::TSS16;
                if self.cr4 & CR4_PAE == 0 || cs.is_long() || tss16 {
                    return Err(self.gp(0));
                }
            } else if self.mode.has(Mode::LONG) {
                return Err(self.gp(0));
            }
        }
        let long = new & CR0_PG != 0 && self.msr.efer & EFER_LME != 0;
        let reload = changed & (CR0_PG | CR0_CD | CR0_NW) != 0 && new & CR0_PG != 0 && self.cr4 & CR4_PAE != 0;
        if reload && !long && !self.load_pdptes(self.cr3) {
            return Err(self.gp(0));
        }
        self.cr0 = new;
        self.msr.efer = self.msr.efer & !EFER_LMA | if long { EFER_LMA } else { 0 };
        if changed & (CR0_PG | CR0_WP) != 0 {
            self.flush_tlb(false);
        }
        if changed & CR0_PE != 0 && new & CR0_PE == 0 {
            self.cpl = 0;
        }
        self.mode_changed();
        Ok(())
    }

    fn write_cr3(&mut self, v: u64) -> Res {
        if self.lma() {
            if v >> self.model.phys_bits != 0 {
                return Err(self.gp(0));
            }
        } else if self.cr0 & CR0_PG != 0 && self.cr4 & CR4_PAE != 0 && !self.load_pdptes(v) {
            return Err(self.gp(0));
        }
        self.cr3 = v;
        self.flush_tlb(true);
        Ok(())
    }

    fn write_cr4(&mut self, v: u64) -> Res {
        let old = self.cr4;
        if v & !self.model.cr4_mask() != 0 || v & CR4_PAE == 0 && self.lma() {
            return Err(self.gp(0));
        }
        let changed = old ^ v;
        let reload = changed & (CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP) != 0
            && v & CR4_PAE != 0
            && self.cr0 & CR0_PG != 0
            && !self.lma();
        if reload && !self.load_pdptes(self.cr3) {
            return Err(self.gp(0));
        }
        self.cr4 = v;
        if changed & CR4_FLUSH != 0 {
            self.flush_tlb(false);
        }
        self.select_class();
        Ok(())
    }

    /// The number of the debug register that an instruction means: 4 and 5 are 6 and 7 unless CR4.DE forbids it.
    fn debug_register(&mut self, n: u8) -> Res<usize> {
        const CR4_DE: u64 = 1 << 3;
        let alias = matches!(n, 4 | 5);
        if alias && self.cr4 & CR4_DE != 0 {
            return Err(self.ud());
        }
        self.privileged()?;
        if self.dr[7] & DR7_GD != 0 {
            self.pending_db |= DR6_BD;
            return Err(self.fault(1, None));
        }
        Ok(usize::from(if alias { n + 2 } else { n & 7 }))
    }

    /// Writes DR7. Pages with data breakpoints must not be in the TLB.
    pub(crate) fn write_dr7(&mut self, v: u64) {
        let new = v & 0xffff_23ff | DR7_FIXED;
        if self.dr[7] != new {
            self.dr[7] = new;
            self.flush_tlb(false);
        }
    }
}

/// MOV r, DRn.
pub(crate) fn mov_from_dr(cpu: &mut Cpu, i: &Insn) -> Res {
    let n = cpu.debug_register(i.reg)?;
    let v = cpu.dr[n];
    let size = register_size(cpu);
    cpu.put_reg(i.rm, size, v);
    Ok(())
}

/// MOV DRn, r.
pub(crate) fn mov_to_dr(cpu: &mut Cpu, i: &Insn) -> Res {
    let n = cpu.debug_register(i.reg)?;
    let v = operand(cpu, i);
    match n {
        0..=3 => {
            if !canonical(v) && cpu.mode.has(Mode::LONG) {
                return Err(cpu.gp(0));
            }
            cpu.dr[n] = v;
            cpu.flush_tlb(false);
        }
        _ if v >> 32 != 0 => return Err(cpu.gp(0)),
        6 => cpu.dr[6] = v & 0xe00f | DR6_FIXED,
        _ => cpu.write_dr7(v),
    }
    Ok(())
}
