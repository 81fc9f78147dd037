//! The system instructions: which handler for which opcode, and those that fit nowhere else.
//!
//! Segments, far transfers and flags are in [`crate::gates`] and [`crate::intr`], descriptor tables in
//! [`crate::tables`], control and debug registers in [`crate::control`], port I/O in [`crate::io`].

use crate::debug::Traps;
use crate::exec::{Gen, Reg};
use crate::flags::{IF, RF, VM};
use crate::insn::{CS, Dec, END, FS, GS, Handler, Insn, Mode, OSIZE_SHIFT, PLAIN, RAX, RBX, RCX, RDX, RSP, Res, SS};
use crate::mem::canonical;
use crate::state::{Cpu, Segment};
use crate::{control, gates, intr, io, tables};

/// EFER.SCE.
const EFER_SCE: u64 = 1;
/// Code and data of the fast system calls, present and accessed, without DPL.
const CODE: u32 = Segment::P | Segment::S | 0xb;
const DATA: u32 = Segment::P | Segment::S | 3 | Segment::DB;

/// The size code of the operand: 0 for 16 bits, 1 for 32, 2 for 64.
pub(crate) fn osize(i: &Insn) -> u8 {
    i.flags >> OSIZE_SHIFT
}

/// The address of the next instruction.
pub(crate) fn next(cpu: &Cpu, i: &Insn) -> u64 {
    cpu.cut_rip(cpu.next_rip(i))
}

fn set_osize(i: &mut Insn, size: u8) {
    i.flags = i.flags & !(3 << OSIZE_SHIFT) | size << OSIZE_SHIFT;
}

/// Picks the handler of a system instruction.
pub(crate) fn select(i: &mut Insn, d: &Dec) -> Option<Handler> {
    if d.lock {
        return None;
    }
    i.flags |= END | PLAIN;
    let long = d.mode.has(Mode::LONG);
    let real = d.mode.has(Mode::REAL);
    match d.op {
        // What pushes or pops has no 32-bit form in 64-bit code.
        0x06 | 0x0e | 0x16 | 0x1e | 0x07 | 0x17 | 0x1f | 0x9c | 0x9d | 0x0fa0 | 0x0fa1 | 0x0fa8 | 0x0fa9
            if long && d.osize == 1 =>
        {
            set_osize(i, 2);
        }
        _ => {}
    }
    Some(match d.op {
        0x06 | 0x0e | 0x16 | 0x1e | 0x0fa0 | 0x0fa8 => {
            i.reg = d.op as u8 >> 3 & 7;
            i.flags &= !END;
            gates::push_seg
        }
        0x07 | 0x17 | 0x1f | 0x0fa1 | 0x0fa9 => {
            i.reg = d.op as u8 >> 3 & 7;
            gates::pop_seg
        }
        0x63 if real => return None,
        0x63 if d.mem => tables::arpl::<Gen>,
        0x63 => tables::arpl::<Reg>,
        0x6c..=0x6f => io::select_string(i, d),
        0x8c => {
            if d.ext() > GS {
                return None;
            }
            i.reg = d.ext();
            i.flags &= !END;
            if d.mem { gates::mov_from_seg_mem } else { gates::mov_from_seg }
        }
        0x8e => {
            if d.ext() > GS || d.ext() == CS {
                return None;
            }
            i.reg = d.ext();
            if d.mem { gates::mov_to_seg_mem } else { gates::mov_to_seg }
        }
        0x9a => gates::call_far,
        0xea => gates::jmp_far,
        0xff if d.mem && d.ext() == 3 => gates::call_far_mem,
        0xff if d.mem && d.ext() == 5 => gates::jmp_far_mem,
        0xca | 0xcb => gates::ret_far,
        0xc4 | 0xc5 | 0x0fb2 | 0x0fb4 | 0x0fb5 => {
            if !d.mem {
                return None;
            }
            i.rm = match d.op {
                0xc4 => crate::insn::ES,
                0xc5 => crate::insn::DS,
                0x0fb2 => SS,
                0x0fb4 => FS,
                _ => GS,
            };
            gates::load_far
        }
        0x9c => {
            i.flags &= !END;
            intr::pushf
        }
        0x9d => intr::popf,
        0xcc => intr::int3,
        0xcd => intr::int,
        0xce => intr::into,
        0xcf => intr::iret,
        0xf1 => intr::int1,
        0xfa => intr::cli,
        0xfb => intr::sti,
        0xe4..=0xe7 | 0xec..=0xef => io::select(i, d),
        0xf4 => hlt,
        0x0f00 => return tables::select_0f00(i, d),
        0x0f01 => return group_7(i, d),
        0x0f02 | 0x0f03 if real => return None,
        0x0f02 if d.mem => tables::lar::<Gen>,
        0x0f02 => tables::lar::<Reg>,
        0x0f03 if d.mem => tables::lsl::<Gen>,
        0x0f03 => tables::lsl::<Reg>,
        0x0f05 => syscall,
        0x0f06 => control::clts,
        0x0f07 => sysret,
        0x0f08 | 0x0f09 => privileged_nothing,
        0x0f20 | 0x0f22 => {
            let number = d.ext() | (d.rex & 4) << 1;
            if !matches!(number, 0 | 2 | 3 | 4 | 8) {
                return None;
            }
            i.reg = number;
            if d.op == 0x0f20 { control::mov_from_cr } else { control::mov_to_cr }
        }
        0x0f21 | 0x0f23 => {
            if d.rex & 4 != 0 {
                return None;
            }
            i.reg = d.ext();
            if d.op == 0x0f21 { control::mov_from_dr } else { control::mov_to_dr }
        }
        0x0f30 => crate::msr::wrmsr,
        0x0f31 => crate::msr::rdtsc,
        0x0f32 => crate::msr::rdmsr,
        0x0f33 => crate::msr::rdpmc,
        0x0f34 => sysenter,
        0x0f35 => sysexit,
        0x0fa2 => crate::cpuid::cpuid,
        0x0fae if d.mem => {
            // CLFLUSH. With 66 it is CLFLUSHOPT, which is not offered.
            if d.ext() != 7 || d.p66 || d.rep != 0 {
                return None;
            }
            i.flags &= !END;
            clflush
        }
        0x0fae if d.rep == 0xf3 && !d.p66 => {
            if !long || d.ext() > 3 {
                return None;
            }
            fs_gs_base
        }
        0x0fae => {
            if d.ext() < 5 || d.p66 || d.rep != 0 {
                return None;
            }
            i.flags &= !END;
            fence
        }
        // UD0, UD1, UD2, RSM, GETSEC, RDRAND and what else is not offered.
        _ => return None,
    })
}

fn group_7(i: &mut Insn, d: &Dec) -> Option<Handler> {
    if d.mem {
        return Some(match d.ext() {
            0 | 1 => tables::store_table,
            2 | 3 => tables::load_table,
            4 => tables::smsw_mem,
            6 => control::lmsw_mem,
            7 => invlpg,
            _ => return None,
        });
    }
    Some(match d.modrm {
        0xca if d.rep == 0 && !d.p66 => clac,
        0xcb if d.rep == 0 && !d.p66 => stac,
        0xd0 if d.rep == 0 && !d.p66 => xgetbv,
        0xd1 if d.rep == 0 && !d.p66 => xsetbv,
        0xe0..=0xe7 => tables::smsw,
        0xf0..=0xf7 => control::lmsw,
        0xf8 if d.mode.has(Mode::LONG) => swapgs,
        0xf9 => crate::msr::rdtscp,
        _ => return None,
    })
    .inspect(|_| {
        // SMSW may name R8 to R15.
        i.rm = d.modrm & 7 | (d.rex & 1) << 3;
    })
}

impl Cpu {
    /// Writes a general register at an operand size: 32 bits clear the upper half, 16 leave the rest.
    pub(crate) fn put_reg(&mut self, r: u8, size: u8, v: u64) {
        let slot = &mut self.gpr[usize::from(r & 15)];
        *slot = match size {
            0 => *slot & !0xffff | v & 0xffff,
            1 => v & 0xffff_ffff,
            _ => v,
        };
    }

    /// EDX:EAX.
    pub(crate) fn edx_eax(&self) -> u64 {
        self.gpr[usize::from(RAX)] & 0xffff_ffff | self.gpr[usize::from(RDX)] << 32
    }

    /// Writes EDX:EAX.
    pub(crate) fn set_edx_eax(&mut self, v: u64) {
        self.gpr[usize::from(RAX)] = v & 0xffff_ffff;
        self.gpr[usize::from(RDX)] = v >> 32;
    }

    /// #GP(0) unless CPL is 0.
    pub(crate) fn privileged(&mut self) -> Res {
        if self.cpl == 0 { Ok(()) } else { Err(self.gp(0)) }
    }

    /// Reads a far pointer of the operand's size from memory.
    pub(crate) fn far_pointer(&mut self, i: &Insn) -> Res<(u16, u64)> {
        let size = 2 << osize(i);
        let lin = self.lin_gen(i, size + 2, false)?;
        let mut bytes = [0; 10];
        self.load_bytes(lin, &mut bytes[..size as usize + 2]).map_err(|_| self.operand_fault(i))?;
        let (offset, selector) = bytes.split_at(size as usize);
        let mut wide = [0; 8];
        wide[..offset.len()].copy_from_slice(offset);
        Ok((u16::from_le_bytes([selector[0], selector[1]]), u64::from_le_bytes(wide)))
    }

    /// MOV SS and POP SS: interrupts and debug traps wait until the next instruction has been executed.
    pub(crate) fn stack_shadow(&mut self) {
        self.shadow = true;
        self.set_traps(Traps::Hold);
    }
}

fn hlt(cpu: &mut Cpu, _: &Insn) -> Res {
    cpu.privileged()?;
    cpu.halted = true;
    Ok(())
}

/// INVD and WBINVD: there is no cache.
fn privileged_nothing(cpu: &mut Cpu, _: &Insn) -> Res {
    cpu.privileged()
}

fn fence(_: &mut Cpu, _: &Insn) -> Res {
    Ok(())
}

/// CLFLUSH is checked as a load of one byte.
fn clflush(cpu: &mut Cpu, i: &Insn) -> Res {
    let lin = cpu.lin_gen(i, 1, false)?;
    match cpu.page_run(lin, false) {
        Ok(_) => Ok(()),
        Err(_) => Err(cpu.operand_fault(i)),
    }
}

fn invlpg(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.privileged()?;
    let mask = [0xffff, 0xffff_ffff, u64::MAX, u64::MAX][usize::from(i.flags & crate::insn::ASIZE)];
    let offset = cpu.ea(i) & mask;
    let long = cpu.mode.has(Mode::LONG);
    let base = if long && i.seg < FS { 0 } else { cpu.seg[usize::from(i.seg & 7)].base };
    let lin = base.wrapping_add(offset) & cpu.flat_mask;
    if canonical(lin) {
        cpu.invlpg(lin);
    }
    Ok(())
}

fn clac(cpu: &mut Cpu, _: &Insn) -> Res {
    access_flag(cpu, 0)
}

fn stac(cpu: &mut Cpu, _: &Insn) -> Res {
    access_flag(cpu, crate::flags::AC)
}

fn access_flag(cpu: &mut Cpu, ac: u64) -> Res {
    if cpu.cpl != 0 {
        return Err(cpu.ud());
    }
    cpu.set_rflags(ac, crate::flags::AC);
    Ok(())
}

/// CR4.OSXSAVE.
const CR4_OSXSAVE: u64 = 1 << 18;

fn xgetbv(cpu: &mut Cpu, _: &Insn) -> Res {
    if cpu.cr4 & CR4_OSXSAVE == 0 {
        return Err(cpu.ud());
    }
    if cpu.gpr[usize::from(RCX)] as u32 != 0 {
        return Err(cpu.gp(0));
    }
    cpu.set_edx_eax(cpu.xcr0);
    Ok(())
}

/// x87 state must stay on; SSE state is the only other there is.
fn xsetbv(cpu: &mut Cpu, _: &Insn) -> Res {
    if cpu.cr4 & CR4_OSXSAVE == 0 {
        return Err(cpu.ud());
    }
    cpu.privileged()?;
    let v = cpu.edx_eax();
    if cpu.gpr[usize::from(RCX)] as u32 != 0 || v & 1 == 0 || v & !crate::cpuid::XCR0_ALL != 0 {
        return Err(cpu.gp(0));
    }
    cpu.xcr0 = v;
    Ok(())
}

fn swapgs(cpu: &mut Cpu, _: &Insn) -> Res {
    cpu.privileged()?;
    std::mem::swap(&mut cpu.seg[usize::from(GS)].base, &mut cpu.msr.kernel_gs_base);
    Ok(())
}

/// RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE.
fn fs_gs_base(cpu: &mut Cpu, i: &Insn) -> Res {
    const FSGSBASE: u64 = 1 << 16;
    if cpu.cr4 & FSGSBASE == 0 {
        return Err(cpu.ud());
    }
    let seg = usize::from(FS + (i.reg & 1));
    if i.reg & 2 == 0 {
        let base = cpu.seg[seg].base;
        cpu.put_reg(i.rm, osize(i).max(1), base);
    } else {
        let v = cpu.gpr[usize::from(i.rm & 15)];
        let v = if osize(i) == 2 { v } else { v & 0xffff_ffff };
        if !canonical(v) {
            return Err(cpu.gp(0));
        }
        cpu.seg[seg].base = v;
    }
    Ok(())
}

impl Cpu {
    /// CS and SS of the fast system calls: flat, without a look at the descriptor tables.
    fn set_flat_code(&mut self, cs: u16, ss: u16, cpl: u8, long: bool, rip: u64) {
        let dpl = u32::from(cpl) << 5;
        let width = if long { Segment::L } else { Segment::DB };
        self.seg[usize::from(SS)] = Segment::flat(ss & !3 | u16::from(cpl), DATA | dpl);
        self.set_code(Segment::flat(cs, CODE | dpl | width), cpl, rip);
    }
}

/// SYSCALL. With an Intel signature it exists in 64-bit code only, with AMD's everywhere.
fn syscall(cpu: &mut Cpu, i: &Insn) -> Res {
    let long = cpu.mode.has(Mode::LONG);
    if cpu.msr.efer & EFER_SCE == 0 || !long && !cpu.model.is_amd() || cpu.cr0 & 1 == 0 {
        return Err(cpu.ud());
    }
    let selector = (cpu.msr.star >> 32) as u16 & !3;
    let ret = next(cpu, i);
    cpu.gpr[usize::from(RCX)] = ret;
    if cpu.lma() {
        cpu.gpr[11] = cpu.rflags() & !RF;
        let mask = cpu.msr.fmask & 0xffff_ffff | RF;
        if mask & crate::flags::TF != 0 {
            cpu.set_traps(Traps::NoStep);
        }
        cpu.set_rflags(0, mask);
        let target = if long { cpu.msr.lstar } else { cpu.msr.cstar };
        cpu.set_flat_code(selector, selector.wrapping_add(8), 0, true, target);
    } else {
        cpu.set_rflags(0, VM | IF | RF);
        let target = cpu.msr.star & 0xffff_ffff;
        cpu.set_flat_code(selector, selector.wrapping_add(8), 0, false, target);
    }
    Ok(())
}

/// SYSRET. An address that is not canonical faults before the privilege level changes, as on Intel's processors.
fn sysret(cpu: &mut Cpu, i: &Insn) -> Res {
    let long = cpu.mode.has(Mode::LONG);
    if cpu.msr.efer & EFER_SCE == 0 || !long && !cpu.model.is_amd() || cpu.cr0 & 1 == 0 {
        return Err(cpu.ud());
    }
    cpu.privileged()?;
    let rip = cpu.gpr[usize::from(RCX)];
    let base = (cpu.msr.star >> 48) as u16;
    let wide = long && osize(i) == 2;
    if wide && !canonical(rip) {
        return Err(cpu.gp(0));
    }
    if cpu.lma() {
        let flags = cpu.gpr[11];
        cpu.set_rflags(flags & !RF, 0x3c_7fd7 | RF);
    } else {
        cpu.set_rflags(IF, IF);
    }
    let (cs, rip) = if wide { (base.wrapping_add(16), rip) } else { (base, rip & 0xffff_ffff) };
    let ss = base.wrapping_add(8);
    cpu.set_flat_code(cs, ss, 3, wide, rip);
    Ok(())
}

/// SYSENTER. AMD's processors do not have it in long mode.
fn sysenter(cpu: &mut Cpu, _: &Insn) -> Res {
    if cpu.model.is_amd() && cpu.lma() {
        return Err(cpu.ud());
    }
    let selector = cpu.msr.sysenter_cs as u16 & !3;
    if cpu.cr0 & 1 == 0 || selector == 0 {
        return Err(cpu.gp(0));
    }
    let long = cpu.lma();
    let cut = if long { u64::MAX } else { 0xffff_ffff };
    cpu.set_rflags(0, VM | IF | RF);
    cpu.gpr[usize::from(RSP)] = cpu.msr.sysenter_esp & cut;
    let target = cpu.msr.sysenter_eip & cut;
    cpu.set_flat_code(selector, selector.wrapping_add(8), 0, long, target);
    Ok(())
}

fn sysexit(cpu: &mut Cpu, i: &Insn) -> Res {
    if cpu.model.is_amd() && cpu.lma() {
        return Err(cpu.ud());
    }
    let base = cpu.msr.sysenter_cs as u16 & !3;
    if cpu.cr0 & 1 == 0 || base == 0 {
        return Err(cpu.gp(0));
    }
    cpu.privileged()?;
    let (rip, rsp) = (cpu.gpr[usize::from(RDX)], cpu.gpr[usize::from(RCX)]);
    let wide = osize(i) == 2;
    if wide && !(canonical(rip) && canonical(rsp)) {
        return Err(cpu.gp(0));
    }
    let (cs, cut) = if wide { (base.wrapping_add(32), u64::MAX) } else { (base.wrapping_add(16), 0xffff_ffff) };
    cpu.gpr[usize::from(RSP)] = rsp & cut;
    cpu.set_flat_code(cs, cs.wrapping_add(8), 3, wide, rip & cut);
    Ok(())
}

/// What CPUID leaves behind: EAX, EBX, ECX and EDX with their upper halves cleared.
pub(crate) fn put_cpuid(cpu: &mut Cpu, r: [u32; 4]) {
    for (n, v) in [RAX, RBX, RCX, RDX].into_iter().zip(r) {
        cpu.gpr[usize::from(n)] = v.into();
    }
}
