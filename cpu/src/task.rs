//! Hardware tasks: JMP, CALL, interrupts and IRET that switch to a TSS of 16 or 32 bits (Intel SDM volume 3, chapter
//! 7).
//!
//! Guests: the double-fault handlers of 32-bit Linux and the BSDs, OS/2, old Minix. Long mode has none of it.
//!
//! What is checked before the switch faults in the old task. Once TR is loaded, faults belong to the new one: they are
//! delivered there, and the instruction that switched has completed.

use crate::debug::{DR6_BT, Traps};
use crate::flags::{NT, TF, VM};
use crate::insn::{CS, DS, ES, FS, GS, Res, SS};
use crate::seg::{Descriptor, GP, NP, TS, error_of, kind, null};
use crate::state::{Cpu, Segment, Why};

/// What makes the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskSwitch {
    /// JMP.
    Jump,
    /// CALL.
    Call,
    /// An interrupt or exception, INT n among them.
    Interrupt,
    /// IRET.
    Iret,
}

const CR0_TS: u64 = 1 << 3;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
/// Segment registers in the order of the TSS.
const ORDER: [u8; 6] = [ES, CS, SS, DS, FS, GS];

/// Where a TSS holds things: the offsets of (E)IP and the segments, and of the LDT selector.
#[derive(Clone, Copy)]
struct Layout {
    wide: bool,
    ip: u64,
    segments: u64,
    count: usize,
    ldt: u64,
    /// Smallest limit.
    limit: u32,
}

impl Layout {
    fn of(kind: u32) -> Layout {
        if kind & 8 != 0 {
            Layout { wide: true, ip: 0x20, segments: 0x48, count: 6, ldt: 0x60, limit: 0x67 }
        } else {
            Layout { wide: false, ip: 0x0e, segments: 0x22, count: 4, ldt: 0x2a, limit: 0x2b }
        }
    }

    fn step(self) -> u64 {
        if self.wide { 4 } else { 2 }
    }
}

/// What is loaded from a TSS.
struct Image {
    cr3: u64,
    ip: u64,
    flags: u64,
    gpr: [u64; 8],
    segments: [u16; 6],
    ldt: u16,
    trap: bool,
}

impl Cpu {
    /// JMP or CALL to a task gate.
    pub(crate) fn task_gate(&mut self, selector: u16, gate: Descriptor, how: TaskSwitch, next: u64) -> Res {
        if gate.dpl() < self.cpl.max(selector as u8 & 3) {
            return Err(self.gp(error_of(selector)));
        }
        if !gate.present() {
            return Err(self.fault(NP, Some(error_of(selector))));
        }
        let flags = self.rflags();
        self.task_through_gate(gate, how, None, flags, next)
    }

    /// An interrupt or exception through a task gate, whose rights are checked.
    pub(crate) fn task_interrupt(&mut self, gate: Descriptor, error: Option<u32>, flags: u64, ret: u64) -> Res {
        self.task_through_gate(gate, TaskSwitch::Interrupt, error, flags, ret)
    }

    fn task_through_gate(
        &mut self,
        gate: Descriptor,
        how: TaskSwitch,
        error: Option<u32>,
        flags: u64,
        next: u64,
    ) -> Res {
        self.task_named(gate.gate_selector(), how, error, flags, next)
    }

    /// The switch that another processor has left to this one, when it had found the TSS.
    pub(crate) fn task_left(&mut self, selector: u16, how: TaskSwitch, error: Option<u32>, next: u64) -> Res {
        match how {
            TaskSwitch::Iret => self.task_linked(selector, next),
            _ => self.task_named(selector, how, error, self.rflags(), next),
        }
    }

    fn task_named(&mut self, selector: u16, how: TaskSwitch, error: Option<u32>, flags: u64, next: u64) -> Res {
        if null(selector) || selector & 4 != 0 {
            return Err(self.gp(error_of(selector)));
        }
        let d = self.descriptor(selector, GP)?;
        self.available(selector, &d)?;
        self.switch_task(selector, d, how, error, flags, next)
    }

    /// JMP or CALL to a TSS.
    pub(crate) fn task_direct(&mut self, selector: u16, d: Descriptor, how: TaskSwitch, next: u64) -> Res {
        if selector & 4 != 0 || d.dpl() < self.cpl.max(selector as u8 & 3) {
            return Err(self.gp(error_of(selector)));
        }
        self.available(selector, &d)?;
        let flags = self.rflags();
        self.switch_task(selector, d, how, None, flags, next)
    }

    fn available(&mut self, selector: u16, d: &Descriptor) -> Res {
        if !d.is_system(kind::TSS16) && !d.is_system(kind::TSS32) {
            return Err(self.gp(error_of(selector)));
        }
        if !d.present() {
            return Err(self.fault(NP, Some(error_of(selector))));
        }
        Ok(())
    }

    /// IRET with NT set: back to the task that the link field names.
    pub(crate) fn task_return(&mut self, next: u64) -> Res {
        let selector: u16 = self.sys_load(self.tr.base)?;
        self.task_linked(selector, next)
    }

    fn task_linked(&mut self, selector: u16, next: u64) -> Res {
        if null(selector) || selector & 4 != 0 {
            return Err(self.fault(TS, Some(error_of(selector))));
        }
        let d = self.descriptor(selector, TS)?;
        if !d.is_system(kind::TSS16 | kind::BUSY) && !d.is_system(kind::TSS32 | kind::BUSY) {
            return Err(self.fault(TS, Some(error_of(selector))));
        }
        if !d.present() {
            return Err(self.fault(NP, Some(error_of(selector))));
        }
        let flags = self.rflags() & !NT;
        self.switch_task(selector, d, TaskSwitch::Iret, None, flags, next)
    }

    fn switch_task(
        &mut self,
        selector: u16,
        d: Descriptor,
        how: TaskSwitch,
        error: Option<u32>,
        flags: u64,
        next: u64,
    ) -> Res {
        self.offer_task(selector, how, error, next)?;
        let layout = Layout::of(d.kind());
        if d.limit() < layout.limit {
            return Err(self.fault(TS, Some(error_of(selector))));
        }
        let mut tr = d.segment(selector);
        let image = self.read_tss(tr.base, layout)?;
        let old = Layout::of(self.tr.kind());
        self.write_tss(self.tr.base, old, flags, next)?;
        if matches!(how, TaskSwitch::Jump | TaskSwitch::Iret) {
            let at = self.table_address(self.gdtr.base, u64::from(self.tr.selector & 0xfff8) + 5);
            let access: u8 = self.sys_load(at)?;
            self.sys_store(at, access & !(kind::BUSY as u8))?;
        } else {
            self.sys_store(tr.base, self.tr.selector)?;
        }
        if how != TaskSwitch::Iret {
            self.sys_store(d.at.wrapping_add(5), (d.hi >> 8) as u8 | kind::BUSY as u8)?;
        }

        // From here on it is the new task that runs.
        tr.access |= kind::BUSY;
        self.tr = tr;
        self.cr0 |= CR0_TS;
        // The local breakpoints and LE belong to the old task.
        self.write_dr7(self.dr[7] & !0x155);
        let stepping = flags & TF != 0;
        if let Err(stop) = self.load_task(layout, &image, how, error) {
            let Why::Fault(f) = std::mem::replace(&mut self.why, Why::None) else { return Err(stop) };
            self.deliver(f);
        }
        if stepping {
            self.traps = Traps::NoStep;
        }
        Ok(())
    }

    fn read_tss(&mut self, base: u64, l: Layout) -> Res<Image> {
        let step = l.step();
        let mut image = Image { cr3: 0, ip: 0, flags: 0, gpr: [0; 8], segments: [0; 6], ldt: 0, trap: false };
        image.ip = self.tss_load(base, l.ip, l.wide)?;
        image.flags = self.tss_load(base, l.ip + step, l.wide)?;
        for (n, r) in image.gpr.iter_mut().enumerate() {
            *r = self.tss_load(base, l.ip + step * (2 + n as u64), l.wide)?;
            if !l.wide {
                // The upper halves are undefined; processors leave ones.
                *r |= 0xffff_0000;
            }
        }
        for (n, s) in image.segments[..l.count].iter_mut().enumerate() {
            *s = self.tss_load(base, l.segments + step * n as u64, false)? as u16;
        }
        image.ldt = self.tss_load(base, l.ldt, false)? as u16;
        if l.wide {
            image.cr3 = self.tss_load(base, 0x1c, true)?;
            image.trap = self.tss_load(base, 0x64, false)? & 1 != 0;
        }
        Ok(image)
    }

    fn tss_load(&mut self, base: u64, offset: u64, wide: bool) -> Res<u64> {
        let at = self.table_address(base, offset);
        if wide { self.sys_load::<u32>(at).map(u64::from) } else { self.sys_load::<u16>(at).map(u64::from) }
    }

    fn tss_store(&mut self, base: u64, offset: u64, wide: bool, v: u64) -> Res {
        let at = self.table_address(base, offset);
        if wide { self.sys_store(at, v as u32) } else { self.sys_store(at, v as u16) }
    }

    fn write_tss(&mut self, base: u64, l: Layout, flags: u64, next: u64) -> Res {
        let step = l.step();
        self.tss_store(base, l.ip, l.wide, next)?;
        self.tss_store(base, l.ip + step, l.wide, flags)?;
        for n in 0..8 {
            self.tss_store(base, l.ip + step * (2 + n), l.wide, self.gpr[n as usize])?;
        }
        for (n, seg) in ORDER[..l.count].iter().enumerate() {
            self.tss_store(base, l.segments + step * n as u64, false, self.seg[usize::from(*seg)].selector.into())?;
        }
        Ok(())
    }

    /// Loads the registers of the task that TR names now.
    fn load_task(&mut self, l: Layout, image: &Image, how: TaskSwitch, error: Option<u32>) -> Res {
        let cr3_ok = !l.wide || self.cr0 & CR0_PG == 0 || self.load_task_cr3(image.cr3);
        let linked = if matches!(how, TaskSwitch::Call | TaskSwitch::Interrupt) { NT } else { 0 };
        self.set_rflags(image.flags | linked, !0x802a);
        self.gpr[..8].copy_from_slice(&image.gpr);
        self.rip = image.ip;
        for (seg, selector) in ORDER.into_iter().zip(image.segments) {
            self.seg[usize::from(seg)] = Segment::null(selector);
        }
        self.ldtr = Segment::null(image.ldt);
        let v86 = self.rflags & VM != 0;
        self.cpl = if v86 { 3 } else { image.segments[1] as u8 & 3 };
        if v86 {
            for (seg, selector) in ORDER.into_iter().zip(image.segments) {
                self.seg[usize::from(seg)] = self.real_segment(seg, selector);
            }
        }
        self.mode_changed();
        if image.trap {
            self.pending_db |= DR6_BT;
        }
        if !cr3_ok {
            return Err(self.fault(TS, Some(error_of(self.tr.selector))));
        }
        self.load_task_ldt(image.ldt)?;
        if !v86 {
            self.load_task_segments(image)?;
        }
        let cs = self.seg[CS as usize];
        if let Some(e) = error {
            let mut s = self.stack();
            s.class = self.class_of(self.cpl);
            self.stack_push(&mut s, u8::from(l.wide), e.into())?;
            self.set_sp(&s);
        }
        self.check_target(&cs, image.ip)
    }

    fn load_task_cr3(&mut self, cr3: u64) -> bool {
        let ok = self.cr4 & CR4_PAE == 0 || self.load_pdptes(cr3);
        if ok {
            self.cr3 = cr3;
            self.flush_tlb(true);
        }
        ok
    }

    fn load_task_ldt(&mut self, selector: u16) -> Res {
        if null(selector) {
            return Ok(());
        }
        let error = error_of(selector);
        if selector & 4 != 0 {
            return Err(self.fault(TS, Some(error)));
        }
        let d = self.descriptor(selector, TS)?;
        if !d.is_system(kind::LDT) || !d.present() {
            return Err(self.fault(TS, Some(error)));
        }
        self.ldtr = d.segment(selector);
        Ok(())
    }

    fn load_task_segments(&mut self, image: &Image) -> Res {
        let cpl = self.cpl;
        let selector = image.segments[1];
        let error = Some(error_of(selector));
        if null(selector) {
            return Err(self.fault(TS, error));
        }
        let mut d = self.descriptor(selector, TS)?;
        if !d.is_code() || if d.conforming() { d.dpl() > cpl } else { d.dpl() != cpl } {
            return Err(self.fault(TS, error));
        }
        self.seg[CS as usize] = self.code_segment(selector, &mut d)?;
        self.seg[SS as usize] = self.checked_stack(image.segments[2], cpl, TS)?;
        self.mode_changed();
        for (seg, selector) in ORDER.into_iter().zip(image.segments).filter(|(seg, _)| !matches!(*seg, CS | SS)) {
            self.load_task_data(seg, selector)?;
        }
        self.mode_changed();
        Ok(())
    }

    fn load_task_data(&mut self, seg: u8, selector: u16) -> Res {
        if null(selector) {
            return Ok(());
        }
        let error = Some(error_of(selector));
        let mut d = self.descriptor(selector, TS)?;
        if !d.readable() || !d.conforming() && d.dpl() < self.cpl.max(selector as u8 & 3) {
            return Err(self.fault(TS, error));
        }
        if !d.present() {
            return Err(self.fault(NP, error));
        }
        self.set_accessed(&mut d)?;
        self.seg[usize::from(seg)] = d.segment(selector);
        Ok(())
    }
}
