//! Interrupts and exceptions, and the way back: delivery in real, virtual-8086, protected and long mode, IRET in all of
//! them, and what follows an exception in the delivery of another (Intel SDM volume 3, chapter 6 and 20).
//!
//! Virtual-8086 mode extensions (CR4.VME): INT n goes to the 8086 program's own vector table if the redirection bitmap
//! of the TSS says so, and VIF stands for IF where IOPL is below 3.

use crate::debug::Traps;
use crate::flags::{AC, ARITH, DF, ID, IF, IOPL, NT, RF, TF, VIF, VIP, VM};
use crate::gates::cut;
use crate::insn::{CS, DS, ES, FS, GS, Insn, Mode, Res, SS, Stop};
use crate::seg::{Descriptor, GP, NP, Stack, error_of, kind, null};
use crate::state::{Cpu, Fault, Segment, Why};
use crate::sys::{next, osize};

/// What comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// From the local APIC or the 8259.
    External,
    Nmi,
    /// INT n: the gate's DPL counts, and in virtual-8086 mode IOPL.
    Int,
    /// INT3 and INTO: the gate's DPL counts.
    Trap,
    /// INT1.
    Icebp,
    Exception,
}

/// Bits of RFLAGS that 16-bit POPF and IRET write, privilege permitting.
const WORD: u64 = ARITH | TF | IF | DF | IOPL | NT;
/// CR4.VME.
const VME: u64 = 1;

impl Cpu {
    /// Delivers an exception of the instruction at RIP (or behind it, for traps). An exception in the delivery is
    /// delivered in its place, or makes it a double fault; after a third, `why` is [`Why::Shutdown`].
    pub(crate) fn deliver(&mut self, fault: Fault) {
        self.may_io = true;
        if fault.vector != 1 {
            // The instruction did not complete, and will meet its breakpoints again.
            self.pending_db = 0;
        }
        self.delivering(|cpu| cpu.deliver_all(fault));
        self.traps = Traps::Deliver;
    }

    fn deliver_all(&mut self, fault: Fault) {
        let mut f = fault;
        self.faults.clear();
        loop {
            self.faults.push(f);
            match f.vector {
                1 => self.latch_dr6(),
                14 => self.cr2 = f.cr2,
                _ => {}
            }
            let rip = self.rip;
            if self.enter(f.vector, f.error, Kind::Exception, rip).is_ok() {
                return;
            }
            let second = match std::mem::replace(&mut self.why, Why::None) {
                Why::Fault(g) => g,
                why => {
                    self.why = why;
                    return;
                }
            };
            f = match (class(f.vector), class(second.vector)) {
                (Severity::Double, Severity::Contributory | Severity::PageFault) => {
                    self.faults.push(second);
                    self.why = Why::Shutdown;
                    return;
                }
                (Severity::Contributory, Severity::Contributory)
                | (Severity::PageFault, Severity::Contributory | Severity::PageFault) => {
                    if second.vector == 14 {
                        self.cr2 = second.cr2;
                    }
                    Fault { vector: 8, error: Some(0), cr2: 0 }
                }
                _ => second,
            };
        }
    }

    /// Delivers an interrupt from outside.
    pub(crate) fn external_interrupt(&mut self, vector: u8) {
        self.outside(vector, Kind::External);
    }

    /// Delivers a non-maskable interrupt; further ones wait for IRET.
    pub(crate) fn nmi(&mut self) {
        self.nmi_blocked = true;
        self.outside(2, Kind::Nmi);
    }

    fn outside(&mut self, vector: u8, kind: Kind) {
        self.may_io = true;
        self.delivering(|cpu| {
            if cpu.enter(vector, None, kind, cpu.rip).is_err()
                && let Why::Fault(f) = cpu.why
            {
                cpu.why = Why::None;
                cpu.deliver_all(f);
            }
        });
        self.traps = Traps::Deliver;
    }

    /// Goes to the handler of a vector. `ret`: the address that is saved.
    pub(crate) fn enter(&mut self, vector: u8, error: Option<u32>, kind: Kind, ret: u64) -> Res {
        let done = if self.cr0 & 1 == 0 {
            self.enter_real(vector, None, ret)
        } else if self.lma() {
            self.enter_long(vector, error, kind, ret)
        } else {
            self.enter_protected(vector, error, kind, ret)
        };
        if done.is_err()
            && !matches!(kind, Kind::Int | Kind::Trap)
            && let Why::Fault(Fault { vector: 10..=13, error: Some(e), .. }) = &mut self.why
        {
            // EXT: the program did not ask for it.
            *e |= 1;
        }
        done
    }

    /// RFLAGS as a handler finds them saved. RF is set for faults, so that a breakpoint on the instruction is not taken
    /// again.
    fn saved_flags(&self, vector: u8, kind: Kind) -> u64 {
        let rf = if kind == Kind::Exception && vector != 1 { RF } else { 0 };
        self.rflags() | rf
    }

    /// Through a vector table of real mode: the one that IDTR names, or, with the flags to be saved, the one at 0 that
    /// INT n of virtual-8086 mode is redirected to.
    fn enter_real(&mut self, vector: u8, redirected: Option<u64>, ret: u64) -> Res {
        let at = u64::from(vector) * 4;
        let entry: u32 = if redirected.is_some() {
            self.load(at)?
        } else if at + 3 > self.idtr.limit.into() {
            return Err(self.fault(GP, Some(u32::from(vector) * 8 + 2)));
        } else {
            self.sys_load(self.table_address(self.idtr.base, at))?
        };
        let flags = redirected.unwrap_or(self.rflags());
        let mut s = self.stack();
        s.class = self.class_of(self.cpl);
        self.stack_push(&mut s, 0, cut(flags, 0))?;
        self.stack_push(&mut s, 0, self.seg[CS as usize].selector.into())?;
        self.stack_push(&mut s, 0, cut(ret, 0))?;
        self.set_real_code((entry >> 16) as u16, u64::from(entry as u16))?;
        self.set_sp(&s);
        let clear = match redirected {
            None => IF | AC,
            Some(_) if self.rflags & IOPL == IOPL => IF,
            Some(_) => VIF,
        };
        self.set_rflags(0, clear | TF | RF);
        Ok(())
    }

    fn enter_protected(&mut self, vector: u8, error: Option<u32>, kind: Kind, ret: u64) -> Res {
        if self.rflags & VM != 0 && kind == Kind::Int {
            let low = self.rflags & IOPL != IOPL;
            if self.cr4 & VME != 0 && !self.redirected_to_monitor(vector)? {
                let mut flags = self.rflags();
                if low {
                    flags = flags & !IF | IOPL | if flags & VIF != 0 { IF } else { 0 };
                }
                return self.enter_real(vector, Some(flags), ret);
            }
            if low {
                return Err(self.gp(0));
            }
        }
        let (gate, gate_error) = self.gate(vector, 8, kind)?;
        if gate.kind() == kind::TASK_GATE {
            let flags = self.saved_flags(vector, kind);
            return self.task_interrupt(gate, error, flags, ret);
        }
        if !matches!(gate.kind(), kind::INT_GATE16 | kind::TRAP_GATE16 | kind::INT_GATE32 | kind::TRAP_GATE32) {
            return Err(self.gp(gate_error));
        }
        let osize = (gate.kind() >> 3) as u8;
        let rip = gate.gate_offset();
        let (cs, cpl) = self.handler_code(gate.gate_selector())?;
        self.check_target(&cs, rip)?;
        let flags = self.saved_flags(vector, kind);
        let v86 = self.rflags & VM != 0;
        let old_cs = self.seg[CS as usize].selector;
        let old = self.stack();
        let mut s = if cpl < self.cpl {
            let mut s = self.inner_stack(cpl)?;
            if v86 {
                for seg in [GS, FS, DS, ES] {
                    self.stack_push(&mut s, osize, self.seg[seg as usize].selector.into())?;
                }
            }
            self.stack_push(&mut s, osize, old.ss.selector.into())?;
            self.stack_push(&mut s, osize, cut(old.sp, osize))?;
            s
        } else {
            let mut s = old;
            s.class = self.class_of(cpl);
            s
        };
        self.stack_push(&mut s, osize, cut(flags, osize))?;
        self.stack_push(&mut s, osize, old_cs.into())?;
        self.stack_push(&mut s, osize, cut(ret, osize))?;
        if let Some(e) = error {
            self.stack_push(&mut s, osize, e.into())?;
        }
        self.set_stack(&s);
        self.clear_flags(gate.kind());
        self.set_code(cs, cpl, rip);
        if v86 {
            for seg in [GS, FS, DS, ES] {
                self.seg[seg as usize] = Segment::null(0);
            }
            self.mode_changed();
        }
        Ok(())
    }

    fn enter_long(&mut self, vector: u8, error: Option<u32>, kind: Kind, ret: u64) -> Res {
        let (gate, gate_error) = self.gate(vector, 16, kind)?;
        if !matches!(gate.kind(), kind::INT_GATE32 | kind::TRAP_GATE32) {
            return Err(self.gp(gate_error));
        }
        let high: u32 = self.sys_load(gate.at.wrapping_add(8))?;
        let rip = gate.gate_offset() | u64::from(high) << 32;
        let (cs, cpl) = self.handler_code(gate.gate_selector())?;
        if !cs.is_long() {
            return Err(self.gp(error_of(gate.gate_selector())));
        }
        self.check_target(&cs, rip)?;
        let flags = self.saved_flags(vector, kind);
        let (ss, sp) = (self.seg[SS as usize], self.stack().sp);
        let ist = u64::from(gate.hi & 7);
        let inner = cpl < self.cpl;
        let mut s = if ist != 0 {
            let top = self.tss_pointer(0x1c + 8 * ist)?;
            self.long_stack(if inner { Segment::null(cpl.into()) } else { ss }, top, cpl)
        } else if inner {
            self.inner_stack(cpl)?
        } else {
            self.long_stack(ss, sp, cpl)
        };
        s.sp &= !15;
        self.stack_push(&mut s, 2, ss.selector.into())?;
        self.stack_push(&mut s, 2, sp)?;
        self.stack_push(&mut s, 2, flags)?;
        self.stack_push(&mut s, 2, self.seg[CS as usize].selector.into())?;
        self.stack_push(&mut s, 2, ret)?;
        if let Some(e) = error {
            self.stack_push(&mut s, 2, e.into())?;
        }
        self.set_stack(&s);
        self.clear_flags(gate.kind());
        self.set_code(cs, cpl, rip);
        Ok(())
    }

    /// Reads the gate of a vector. Returns it with the error code of faults that concern it.
    fn gate(&mut self, vector: u8, size: u64, kind: Kind) -> Res<(Descriptor, u32)> {
        let error = u32::from(vector) * 8 + 2;
        let offset = u64::from(vector) * size;
        if offset + size - 1 > self.idtr.limit.into() {
            return Err(self.gp(error));
        }
        let at = self.table_address(self.idtr.base, offset);
        let gate = Descriptor::new(self.sys_load(at)?, at);
        let valid = !gate.is_segment()
            && matches!(
                gate.kind(),
                kind::TASK_GATE | kind::INT_GATE16 | kind::TRAP_GATE16 | kind::INT_GATE32 | kind::TRAP_GATE32
            );
        if !valid || matches!(kind, Kind::Int | Kind::Trap) && gate.dpl() < self.cpl {
            return Err(self.gp(error));
        }
        if !gate.present() {
            return Err(self.fault(NP, Some(error)));
        }
        Ok((gate, error))
    }

    /// Checks the code segment of a handler. Returns it with the privilege level that it runs at.
    fn handler_code(&mut self, selector: u16) -> Res<(Segment, u8)> {
        if null(selector) {
            return Err(self.gp(0));
        }
        let mut d = self.descriptor(selector, GP)?;
        if !d.is_code() || d.dpl() > self.cpl {
            return Err(self.gp(error_of(selector)));
        }
        let cpl = if d.conforming() { self.cpl } else { d.dpl() };
        if self.rflags & VM != 0 && cpl != 0 {
            return Err(self.gp(error_of(selector)));
        }
        Ok((self.code_segment(selector, &mut d)?, cpl))
    }

    fn clear_flags(&mut self, gate: u32) {
        let interrupt = matches!(gate, kind::INT_GATE16 | kind::INT_GATE32);
        self.set_rflags(0, TF | NT | RF | VM | if interrupt { IF } else { 0 });
    }

    /// Whether INT n of virtual-8086 mode goes to the monitor: the vector's bit in the map that ends where the I/O
    /// bitmap of the TSS begins.
    fn redirected_to_monitor(&mut self, vector: u8) -> Res<bool> {
        if self.tr.limit < 0x67 {
            return Err(self.gp(0));
        }
        let iomap: u16 = self.sys_load(self.table_address(self.tr.base, 0x66))?;
        let at = u32::from(iomap).wrapping_sub(32).wrapping_add(u32::from(vector / 8));
        if at > self.tr.limit {
            return Err(self.gp(0));
        }
        let byte: u8 = self.sys_load(self.table_address(self.tr.base, at.into()))?;
        Ok(byte >> (vector % 8) & 1 != 0)
    }

    /// IRET, IRETD and IRETQ.
    pub(crate) fn iret(&mut self, osize: u8, next: u64) -> Res {
        let done = if self.mode.has(Mode::V86) {
            self.iret_v86(osize)
        } else if self.mode.has(Mode::REAL) {
            self.iret_real(osize)
        } else {
            self.iret_protected(osize, next)
        };
        // Even an IRET that faults lets NMIs in again.
        self.nmi_blocked = false;
        done
    }

    /// Pops RIP, CS and flags.
    fn pop_frame(&mut self, s: &mut Stack, osize: u8) -> Res<(u64, u16, u64)> {
        let rip = self.stack_pop(s, osize)?;
        let cs = self.stack_pop(s, osize)? as u16;
        Ok((rip, cs, self.stack_pop(s, osize)?))
    }

    fn iret_real(&mut self, osize: u8) -> Res {
        let mut s = self.stack();
        let (ip, cs, flags) = self.pop_frame(&mut s, osize)?;
        self.set_real_code(cs, ip)?;
        self.set_sp(&s);
        self.set_rflags(flags, if osize == 0 { WORD } else { WORD | RF | AC | ID });
        Ok(())
    }

    fn iret_v86(&mut self, osize: u8) -> Res {
        let low = self.rflags & IOPL != IOPL;
        if low && (self.cr4 & VME == 0 || osize != 0) {
            return Err(self.gp(0));
        }
        let mut s = self.stack();
        let (ip, cs, flags) = self.pop_frame(&mut s, osize)?;
        if low {
            self.check_virtual_if(flags)?;
        }
        self.set_real_code(cs, ip)?;
        self.set_sp(&s);
        if low {
            self.set_virtual_flags(flags);
        } else {
            self.set_rflags(flags, if osize == 0 { WORD } else { WORD | RF | AC | ID } & !IOPL);
        }
        Ok(())
    }

    /// #GP if flags that POPF or IRET load in virtual-8086 mode would let a waiting interrupt in, or set TF.
    pub(crate) fn check_virtual_if(&mut self, flags: u64) -> Res {
        if flags & TF != 0 || flags & IF != 0 && self.rflags & VIP != 0 {
            return Err(self.gp(0));
        }
        Ok(())
    }

    /// Loads FLAGS with VIF in the place of IF.
    pub(crate) fn set_virtual_flags(&mut self, flags: u64) {
        self.set_rflags(flags, WORD & !(IF | IOPL));
        self.set_rflags(if flags & IF != 0 { VIF } else { 0 }, VIF);
    }

    fn iret_protected(&mut self, osize: u8, next: u64) -> Res {
        if self.rflags & NT != 0 {
            return if self.lma() { Err(self.gp(0)) } else { self.task_return(next) };
        }
        let mut s = self.stack();
        let (rip, selector, flags) = self.pop_frame(&mut s, osize)?;
        if flags & VM != 0 && osize == 1 && self.cpl == 0 && !self.lma() {
            return self.iret_to_v86(s, rip, selector, flags);
        }
        let cs = self.return_code(selector)?;
        let rpl = selector as u8 & 3;
        let outer = rpl > self.cpl;
        if outer || self.mode.has(Mode::LONG) {
            let sp = self.stack_pop(&mut s, osize)?;
            let ss = self.stack_pop(&mut s, osize)? as u16;
            s = self.return_stack(ss, &cs, sp)?;
        }
        self.check_target(&cs, rip)?;
        // What may be changed depends on the level that is left.
        let mut mask = ARITH | TF | DF | NT;
        if osize != 0 {
            mask |= RF | AC | ID;
        }
        if u64::from(self.cpl) <= (self.rflags & IOPL) >> 12 {
            mask |= IF;
        }
        if self.cpl == 0 {
            mask |= IOPL | if osize != 0 { VIF | VIP } else { 0 };
        }
        self.set_stack(&s);
        self.set_rflags(flags, mask);
        self.set_code(cs, rpl, rip);
        if outer {
            self.drop_inner_segments();
            self.mode_changed();
        }
        Ok(())
    }

    fn iret_to_v86(&mut self, mut s: Stack, rip: u64, cs: u16, flags: u64) -> Res {
        let mut words = [0; 6];
        for w in &mut words {
            *w = self.stack_pop(&mut s, 1)?;
        }
        if rip > 0xffff {
            return Err(self.gp(0));
        }
        self.set_rflags(flags, WORD | RF | VM | AC | VIF | VIP | ID);
        self.cpl = 3;
        self.rip = rip;
        self.gpr[crate::insn::RSP as usize] = words[0];
        for (seg, selector) in [CS, SS, ES, DS, FS, GS].into_iter().zip([u64::from(cs)].iter().chain(&words[1..])) {
            self.seg[seg as usize] = self.real_segment(seg, *selector as u16);
        }
        self.mode_changed();
        Ok(())
    }
}

/// Classes of exceptions, for the double fault.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Severity {
    Benign,
    Contributory,
    PageFault,
    Double,
}

fn class(vector: u8) -> Severity {
    match vector {
        0 | 10..=13 => Severity::Contributory,
        14 => Severity::PageFault,
        8 => Severity::Double,
        _ => Severity::Benign,
    }
}

/// Goes to a handler for an instruction that asks for it.
fn software(cpu: &mut Cpu, i: &Insn, vector: u8, kind: Kind) -> Res {
    let ret = next(cpu, i);
    let stepping = cpu.rflags & TF != 0;
    cpu.enter(vector, None, kind, ret)?;
    if stepping {
        cpu.traps = Traps::NoStep;
    }
    Ok(())
}

/// INT n.
pub(crate) fn int(cpu: &mut Cpu, i: &Insn) -> Res {
    software(cpu, i, i.imm as u8, Kind::Int)
}

/// INT3.
pub(crate) fn int3(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.offer_breakpoint(i.len)?;
    software(cpu, i, 3, Kind::Trap)
}

/// INTO.
pub(crate) fn into(cpu: &mut Cpu, i: &Insn) -> Res {
    if cpu.flags.of() { software(cpu, i, 4, Kind::Trap) } else { Ok(()) }
}

/// INT1.
pub(crate) fn int1(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.dr[7] &= !crate::debug::DR7_GD;
    software(cpu, i, 1, Kind::Icebp)
}

/// IRET.
pub(crate) fn iret(cpu: &mut Cpu, i: &Insn) -> Res {
    let next = next(cpu, i);
    cpu.iret(osize(i), next)
}

/// PUSHF.
pub(crate) fn pushf(cpu: &mut Cpu, i: &Insn) -> Res {
    let mut flags = cpu.rflags() & !(RF | VM);
    let size = osize(i);
    if cpu.mode.has(Mode::V86) && cpu.rflags & IOPL != IOPL {
        if cpu.cr4 & VME == 0 || size != 0 {
            return Err(cpu.gp(0));
        }
        flags = flags & !IF | IOPL | if flags & VIF != 0 { IF } else { 0 };
    }
    cpu.push(size, cut(flags, size))
}

/// POPF.
pub(crate) fn popf(cpu: &mut Cpu, i: &Insn) -> Res {
    let size = osize(i);
    let low = cpu.rflags & IOPL != IOPL;
    let v86 = cpu.mode.has(Mode::V86);
    if v86 && low && (cpu.cr4 & VME == 0 || size != 0) {
        return Err(cpu.gp(0));
    }
    let mut s = cpu.stack();
    let flags = cpu.stack_pop(&mut s, size)?;
    if v86 && low {
        cpu.check_virtual_if(flags)?;
        cpu.set_sp(&s);
        cpu.set_virtual_flags(flags);
        return Ok(());
    }
    cpu.set_sp(&s);
    let mut mask = ARITH | TF | DF | NT;
    if size != 0 {
        mask |= AC | ID | RF;
    }
    if cpu.cpl == 0 {
        mask |= IOPL;
    }
    if u64::from(cpu.cpl) <= (cpu.rflags & IOPL) >> 12 {
        mask |= IF;
    }
    cpu.set_rflags(flags & !RF, mask);
    Ok(())
}

/// CLI.
pub(crate) fn cli(cpu: &mut Cpu, _: &Insn) -> Res {
    match cpu.virtual_if() {
        Ok(true) => cpu.rflags &= !VIF,
        Ok(false) => cpu.rflags &= !IF,
        Err(stop) => return Err(stop),
    }
    Ok(())
}

/// STI.
pub(crate) fn sti(cpu: &mut Cpu, _: &Insn) -> Res {
    if cpu.virtual_if()? {
        if cpu.rflags & VIP != 0 {
            return Err(cpu.gp(0));
        }
        cpu.rflags |= VIF;
    } else {
        if cpu.rflags & IF == 0 {
            cpu.shadow = true;
        }
        cpu.rflags |= IF;
    }
    Ok(())
}

impl Cpu {
    /// Whether CLI and STI act on VIF (VME, and CR4.PVI in protected mode) rather than IF. #GP if on neither.
    fn virtual_if(&mut self) -> Result<bool, Stop> {
        const PVI: u64 = 2;
        if self.cr0 & 1 == 0 || u64::from(self.cpl) <= (self.rflags & IOPL) >> 12 {
            return Ok(false);
        }
        let v86 = self.mode.has(Mode::V86);
        if v86 && self.cr4 & VME != 0 || !v86 && self.cpl == 3 && self.cr4 & PVI != 0 {
            return Ok(true);
        }
        Err(self.gp(0))
    }
}
