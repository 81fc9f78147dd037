//! Far jumps, calls and returns: direct, through call gates, and to tasks (Intel SDM volume 2, JMP, CALL, RET; volume
//! 3, 5.8).
//!
//! Everything is checked, and everything is pushed, before a register changes.

use crate::insn::{CS, Insn, Mode, RSP, Res, SS};
use crate::seg::{Descriptor, GP, NP, Stack, TS, error_of, kind, null};
use crate::state::{Cpu, Segment};
use crate::sys::{next, osize};
use crate::task::TaskSwitch;

/// Cuts a value to a size code.
pub(crate) fn cut(v: u64, osize: u8) -> u64 {
    v & (u64::MAX >> (64 - (16 << osize)))
}

impl Cpu {
    /// Commits a code segment, the privilege level that goes with it, and RIP.
    pub(crate) fn set_code(&mut self, cs: Segment, cpl: u8, rip: u64) {
        self.seg[CS as usize] = cs;
        self.seg[CS as usize].selector = cs.selector & !3 | u16::from(cpl);
        self.cpl = cpl;
        self.rip = rip;
        self.mode_changed();
    }

    /// A far transfer in real or virtual-8086 mode.
    pub(crate) fn set_real_code(&mut self, selector: u16, ip: u64) -> Res {
        let cs = self.real_segment(CS, selector);
        if ip > cs.limit.into() {
            return Err(self.gp(0));
        }
        self.seg[CS as usize] = cs;
        self.rip = ip;
        self.mode_changed();
        Ok(())
    }

    /// Checks the descriptor of a code segment that is gone to directly.
    fn direct_code(&mut self, selector: u16, mut d: Descriptor) -> Res<Segment> {
        let cpl = self.cpl;
        let allowed = if d.conforming() { d.dpl() <= cpl } else { d.dpl() == cpl && selector as u8 & 3 <= cpl };
        if !d.is_code() || !allowed {
            return Err(self.gp(error_of(selector)));
        }
        self.code_segment(selector, &mut d)
    }

    /// What all loads of CS check last.
    pub(crate) fn code_segment(&mut self, selector: u16, d: &mut Descriptor) -> Res<Segment> {
        if self.lma() && d.is_long() && d.is_32() {
            return Err(self.gp(error_of(selector)));
        }
        if !d.present() {
            return Err(self.fault(NP, Some(error_of(selector))));
        }
        self.set_accessed(d)?;
        let mut cs = d.segment(selector);
        if !self.lma() {
            // L means nothing outside long mode.
            cs.access &= !Segment::L;
        }
        Ok(cs)
    }

    /// JMP far.
    pub(crate) fn far_jump(&mut self, selector: u16, offset: u64, osize: u8, next: u64) -> Res {
        let offset = cut(offset, osize);
        if self.mode.has(Mode::REAL) {
            return self.set_real_code(selector, offset);
        }
        if null(selector) {
            return Err(self.gp(0));
        }
        let d = self.descriptor(selector, GP)?;
        if d.is_segment() {
            let cs = self.direct_code(selector, d)?;
            self.check_target(&cs, offset)?;
            let cpl = self.cpl;
            self.set_code(cs, cpl, offset);
            return Ok(());
        }
        match d.kind() {
            kind::CALL_GATE32 => self.call_gate(selector, d, None),
            kind::CALL_GATE16 if !self.lma() => self.call_gate(selector, d, None),
            kind::TASK_GATE if !self.lma() => self.task_gate(selector, d, TaskSwitch::Jump, next),
            kind::TSS16 | kind::TSS32 if !self.lma() => self.task_direct(selector, d, TaskSwitch::Jump, next),
            _ => Err(self.gp(error_of(selector))),
        }
    }

    /// CALL far.
    pub(crate) fn far_call(&mut self, selector: u16, offset: u64, osize: u8, next: u64) -> Res {
        let offset = cut(offset, osize);
        let old = self.seg[CS as usize].selector;
        if self.mode.has(Mode::REAL) {
            let mut s = self.stack();
            self.stack_push(&mut s, osize, old.into())?;
            self.stack_push(&mut s, osize, cut(next, osize))?;
            self.set_real_code(selector, offset)?;
            self.set_sp(&s);
            return Ok(());
        }
        if null(selector) {
            return Err(self.gp(0));
        }
        let d = self.descriptor(selector, GP)?;
        if d.is_segment() {
            let cs = self.direct_code(selector, d)?;
            let mut s = self.stack();
            self.stack_push(&mut s, osize, old.into())?;
            self.stack_push(&mut s, osize, cut(next, osize))?;
            self.check_target(&cs, offset)?;
            self.set_sp(&s);
            let cpl = self.cpl;
            self.set_code(cs, cpl, offset);
            return Ok(());
        }
        match d.kind() {
            kind::CALL_GATE32 => self.call_gate(selector, d, Some(next)),
            kind::CALL_GATE16 if !self.lma() => self.call_gate(selector, d, Some(next)),
            kind::TASK_GATE if !self.lma() => self.task_gate(selector, d, TaskSwitch::Call, next),
            kind::TSS16 | kind::TSS32 if !self.lma() => self.task_direct(selector, d, TaskSwitch::Call, next),
            _ => Err(self.gp(error_of(selector))),
        }
    }

    /// JMP, or CALL that returns to `call`, through a call gate.
    fn call_gate(&mut self, selector: u16, gate: Descriptor, call: Option<u64>) -> Res {
        if gate.dpl() < self.cpl.max(selector as u8 & 3) {
            return Err(self.gp(error_of(selector)));
        }
        if !gate.present() {
            return Err(self.fault(NP, Some(error_of(selector))));
        }
        let long = self.lma();
        let mut rip = gate.gate_offset();
        if long {
            rip |= self.descriptor_high(&gate, selector, GP)?;
        }
        let target = gate.gate_selector();
        if null(target) {
            return Err(self.gp(0));
        }
        let mut d = self.descriptor(target, GP)?;
        let cpl = self.cpl;
        let level = d.conforming() || d.dpl() == cpl;
        if !d.is_code() || d.dpl() > cpl || call.is_none() && !level || long && (!d.is_long() || d.is_32()) {
            return Err(self.gp(error_of(target)));
        }
        let cs = self.code_segment(target, &mut d)?;
        let Some(next) = call else {
            self.check_target(&cs, rip)?;
            self.set_code(cs, cpl, rip);
            return Ok(());
        };
        let osize = if long { 2 } else { (gate.kind() >> 3) as u8 };
        let old_cs = self.seg[CS as usize].selector;
        if level {
            let mut s = self.stack();
            if long {
                s = self.long_stack(s.ss, s.sp, cpl);
            }
            self.stack_push(&mut s, osize, old_cs.into())?;
            self.stack_push(&mut s, osize, cut(next, osize))?;
            self.check_target(&cs, rip)?;
            self.set_sp(&s);
            self.set_code(cs, cpl, rip);
            return Ok(());
        }
        let mut old = self.stack();
        let mut s = self.inner_stack(d.dpl())?;
        self.stack_push(&mut s, osize, old.ss.selector.into())?;
        self.stack_push(&mut s, osize, cut(old.sp, osize))?;
        if !long {
            let count = usize::from(gate.hi as u8 & 31);
            let mut parameters = [0; 31];
            for p in &mut parameters[..count] {
                *p = self.stack_pop(&mut old, osize)?;
            }
            for p in parameters[..count].iter().rev() {
                self.stack_push(&mut s, osize, *p)?;
            }
        }
        self.stack_push(&mut s, osize, old_cs.into())?;
        self.stack_push(&mut s, osize, cut(next, osize))?;
        self.check_target(&cs, rip)?;
        self.set_stack(&s);
        self.set_code(cs, d.dpl(), rip);
        Ok(())
    }

    /// The stack that the TSS holds for an inner level.
    pub(crate) fn inner_stack(&mut self, dpl: u8) -> Res<Stack> {
        if self.lma() {
            let sp = self.tss_pointer(4 + 8 * u64::from(dpl))?;
            return Ok(self.long_stack(Segment::null(dpl.into()), sp, dpl));
        }
        let wide = self.tr.kind() & 8 != 0;
        let (at, last) = if wide { (4 + 8 * u32::from(dpl), 5) } else { (2 + 4 * u32::from(dpl), 3) };
        if !self.tr.usable() || at + last > self.tr.limit {
            return Err(self.fault(TS, Some(error_of(self.tr.selector))));
        }
        let lin = self.table_address(self.tr.base, at.into());
        let (sp, selector) = if wide {
            let sp: u32 = self.sys_load(lin)?;
            (u64::from(sp), self.sys_load::<u16>(self.table_address(lin, 4))?)
        } else {
            let sp: u16 = self.sys_load(lin)?;
            (u64::from(sp), self.sys_load::<u16>(self.table_address(lin, 2))?)
        };
        let ss = self.checked_stack(selector, dpl, TS)?;
        Ok(self.legacy_stack(ss, sp, dpl))
    }

    /// A stack pointer in a TSS of long mode.
    pub(crate) fn tss_pointer(&mut self, at: u64) -> Res<u64> {
        if !self.tr.usable() || at + 7 > self.tr.limit.into() {
            return Err(self.fault(TS, Some(error_of(self.tr.selector))));
        }
        self.sys_load(self.tr.base.wrapping_add(at))
    }

    /// RETF. `release`: bytes to take off the stack after the return address, and off the outer stack, too.
    pub(crate) fn far_ret(&mut self, osize: u8, release: u16) -> Res {
        let mut s = self.stack();
        let rip = self.stack_pop(&mut s, osize)?;
        let selector = self.stack_pop(&mut s, osize)? as u16;
        if self.mode.has(Mode::REAL) {
            self.set_real_code(selector, rip)?;
            s.skip(release.into());
            self.set_sp(&s);
            return Ok(());
        }
        let cs = self.return_code(selector)?;
        s.skip(release.into());
        let rpl = selector as u8 & 3;
        if rpl == self.cpl {
            self.check_target(&cs, rip)?;
            self.set_sp(&s);
            self.set_code(cs, rpl, rip);
            return Ok(());
        }
        let sp = self.stack_pop(&mut s, osize)?;
        let ss = self.stack_pop(&mut s, osize)? as u16;
        let mut outer = self.return_stack(ss, &cs, sp)?;
        self.check_target(&cs, rip)?;
        outer.skip(release.into());
        self.set_stack(&outer);
        self.set_code(cs, rpl, rip);
        self.drop_inner_segments();
        self.mode_changed();
        Ok(())
    }

    /// Checks the code segment that RETF or IRET goes back to.
    pub(crate) fn return_code(&mut self, selector: u16) -> Res<Segment> {
        if null(selector) {
            return Err(self.gp(0));
        }
        let mut d = self.descriptor(selector, GP)?;
        let rpl = selector as u8 & 3;
        let allowed = if d.conforming() { d.dpl() <= rpl } else { d.dpl() == rpl };
        if !d.is_code() || rpl < self.cpl || !allowed {
            return Err(self.gp(error_of(selector)));
        }
        self.code_segment(selector, &mut d)
    }

    /// The stack that RETF or IRET goes back to with `cs`.
    pub(crate) fn return_stack(&mut self, selector: u16, cs: &Segment, sp: u64) -> Res<Stack> {
        let rpl = cs.selector as u8 & 3;
        let long = self.lma() && cs.is_long();
        if null(selector) {
            if !long || rpl == 3 || selector as u8 & 3 != rpl {
                return Err(self.gp(0));
            }
            return Ok(self.long_stack(Segment::null(selector), sp, rpl));
        }
        let ss = self.checked_stack(selector, rpl, GP)?;
        if long {
            return Ok(self.long_stack(ss, sp, rpl));
        }
        // With a 16-bit stack, the upper half of ESP stays what it was on the inner one.
        let sp = if ss.is_32() { sp } else { self.gpr[RSP as usize] & !0xffff | sp & 0xffff };
        Ok(self.legacy_stack(ss, sp, rpl))
    }
}

/// JMP ptr16:16 and ptr16:32.
pub(crate) fn jmp_far(cpu: &mut Cpu, i: &Insn) -> Res {
    let next = next(cpu, i);
    cpu.far_jump((i.imm >> 32) as u16, i.imm & 0xffff_ffff, osize(i), next)
}

/// CALL ptr16:16 and ptr16:32.
pub(crate) fn call_far(cpu: &mut Cpu, i: &Insn) -> Res {
    let next = next(cpu, i);
    cpu.far_call((i.imm >> 32) as u16, i.imm & 0xffff_ffff, osize(i), next)
}

/// JMP m16:16, m16:32, m16:64.
pub(crate) fn jmp_far_mem(cpu: &mut Cpu, i: &Insn) -> Res {
    let (selector, offset) = cpu.far_pointer(i)?;
    let next = next(cpu, i);
    cpu.far_jump(selector, offset, osize(i), next)
}

/// CALL m16:16, m16:32, m16:64.
pub(crate) fn call_far_mem(cpu: &mut Cpu, i: &Insn) -> Res {
    let (selector, offset) = cpu.far_pointer(i)?;
    let next = next(cpu, i);
    cpu.far_call(selector, offset, osize(i), next)
}

/// RETF and RETF imm16.
pub(crate) fn ret_far(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.far_ret(osize(i), i.imm as u16)
}

/// LES, LDS, LSS, LFS, LGS: the segment is in `Insn::rm`.
pub(crate) fn load_far(cpu: &mut Cpu, i: &Insn) -> Res {
    let (selector, offset) = cpu.far_pointer(i)?;
    cpu.load_seg(i.rm, selector)?;
    cpu.put_reg(i.reg, osize(i), offset);
    Ok(())
}

/// PUSH of a segment register, whose number is in `Insn::reg`.
pub(crate) fn push_seg(cpu: &mut Cpu, i: &Insn) -> Res {
    let selector = cpu.seg[usize::from(i.reg & 7)].selector;
    cpu.push(osize(i), selector.into())
}

/// POP of a segment register.
pub(crate) fn pop_seg(cpu: &mut Cpu, i: &Insn) -> Res {
    let mut s = cpu.stack();
    let selector = cpu.stack_pop(&mut s, osize(i))? as u16;
    cpu.load_seg(i.reg, selector)?;
    // The new SS may be wider or narrower, but what was popped came off the old one.
    cpu.set_sp(&s);
    if i.reg == SS {
        cpu.stack_shadow();
    }
    Ok(())
}

/// MOV Sreg, r/m16.
pub(crate) fn mov_to_seg(cpu: &mut Cpu, i: &Insn) -> Res {
    let selector = cpu.gpr[usize::from(i.rm & 31)] as u16;
    load_moved(cpu, i.reg, selector)
}

/// MOV Sreg, m16.
pub(crate) fn mov_to_seg_mem(cpu: &mut Cpu, i: &Insn) -> Res {
    let lin = cpu.lin_gen(i, 2, false)?;
    let selector = cpu.load(lin)?;
    load_moved(cpu, i.reg, selector)
}

fn load_moved(cpu: &mut Cpu, seg: u8, selector: u16) -> Res {
    cpu.load_seg(seg, selector)?;
    if seg == SS {
        cpu.stack_shadow();
    }
    Ok(())
}

/// MOV r, Sreg.
pub(crate) fn mov_from_seg(cpu: &mut Cpu, i: &Insn) -> Res {
    let selector = cpu.seg[usize::from(i.reg & 7)].selector;
    cpu.put_reg(i.rm, osize(i), selector.into());
    Ok(())
}

/// MOV m16, Sreg.
pub(crate) fn mov_from_seg_mem(cpu: &mut Cpu, i: &Insn) -> Res {
    let lin = cpu.lin_gen(i, 2, true)?;
    cpu.store(lin, cpu.seg[usize::from(i.reg & 7)].selector)
}
