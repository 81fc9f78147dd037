//! Segments, descriptors, the stack, and what follows from them: the processor's mode.
//!
//! Source: Intel SDM volume 3, chapters 3 and 5. In real mode a load of a segment register changes its selector and its
//! base only; limit and attributes stay, which is "unreal" mode after a trip to protected mode (SeaBIOS, GRUB, DOS
//! extenders).

use crate::flags::{AC, ARITH, Flags, VM};
use crate::insn::{CS, DS, ES, FS, GS, Mode, RSP, Res, SS};
use crate::mem::{Class, canonical};
use crate::state::{Cpu, Segment};

/// Type field of system descriptors.
pub(crate) mod kind {
    pub(crate) const TSS16: u32 = 1;
    pub(crate) const LDT: u32 = 2;
    pub(crate) const CALL_GATE16: u32 = 4;
    pub(crate) const TASK_GATE: u32 = 5;
    pub(crate) const INT_GATE16: u32 = 6;
    pub(crate) const TRAP_GATE16: u32 = 7;
    /// Also the TSS of long mode.
    pub(crate) const TSS32: u32 = 9;
    /// Also the call gate of long mode.
    pub(crate) const CALL_GATE32: u32 = 12;
    pub(crate) const INT_GATE32: u32 = 14;
    pub(crate) const TRAP_GATE32: u32 = 15;
    /// Bit of a TSS type.
    pub(crate) const BUSY: u32 = 2;
}

/// Vectors that concern segments.
pub(crate) const TS: u8 = 10;
pub(crate) const NP: u8 = 11;
pub(crate) const SS_FAULT: u8 = 12;
pub(crate) const GP: u8 = 13;

/// The bits of RFLAGS that are not fixed.
const DEFINED: u64 = 0x3f_7fd5;

/// A selector as error codes show it.
pub(crate) fn error_of(selector: u16) -> u32 {
    u32::from(selector & 0xfffc)
}

pub(crate) fn null(selector: u16) -> bool {
    selector & 0xfffc == 0
}

impl Segment {
    /// The four bits of the type field.
    pub(crate) fn kind(&self) -> u32 {
        self.access & 0xf
    }

    pub(crate) fn dpl(&self) -> u8 {
        (self.access >> 5 & 3) as u8
    }

    pub(crate) fn usable(&self) -> bool {
        self.access & Segment::UNUSABLE == 0
    }

    fn is_code(&self) -> bool {
        self.access & (Segment::S | 8) == Segment::S | 8
    }

    fn conforming(&self) -> bool {
        self.is_code() && self.access & 4 != 0
    }

    fn readable(&self) -> bool {
        !self.is_code() || self.access & 2 != 0
    }

    fn expand_down(&self) -> bool {
        self.access & (Segment::S | 8 | 4) == Segment::S | 4
    }

    pub(crate) fn is_long(&self) -> bool {
        self.access & Segment::L != 0
    }

    pub(crate) fn is_32(&self) -> bool {
        self.access & Segment::DB != 0
    }

    /// Whether `len` bytes at an offset lie inside the limit.
    pub(crate) fn holds(&self, offset: u64, len: u64) -> bool {
        let last = offset.saturating_add(len - 1);
        if self.expand_down() {
            let top = if self.is_32() { 0xffff_ffff } else { 0xffff };
            offset > u64::from(self.limit) && last <= top
        } else {
            last <= u64::from(self.limit)
        }
    }

    /// A data segment register that holds a null selector.
    pub(crate) fn null(selector: u16) -> Segment {
        Segment { selector, base: 0, limit: 0, access: Segment::UNUSABLE }
    }

    /// As the fast system calls load them: base 0, limit 4 GiB.
    pub(crate) fn flat(selector: u16, access: u32) -> Segment {
        Segment { selector, base: 0, limit: u32::MAX, access: access | 0x8000 }
    }

    /// Base 0, limit 4 GiB, readable and writable.
    fn is_flat(&self) -> bool {
        const WANT: u32 = Segment::P | Segment::S | 2;
        self.base == 0
            && self.limit == u32::MAX
            && self.access & (Segment::UNUSABLE | Segment::P | Segment::S | 8 | 4 | 2) == WANT
    }
}

/// A descriptor as it stands in its table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    pub(crate) lo: u32,
    pub(crate) hi: u32,
    /// Its linear address.
    pub(crate) at: u64,
    /// How many bytes of the table there are from it to the limit.
    room: u32,
}

impl Descriptor {
    /// From its eight bytes.
    pub(crate) fn new(raw: u64, at: u64) -> Descriptor {
        Descriptor { lo: raw as u32, hi: (raw >> 32) as u32, at, room: u32::MAX }
    }

    fn access(&self) -> u32 {
        self.hi >> 8 & 0xf0ff
    }

    /// Code or data.
    pub(crate) fn is_segment(&self) -> bool {
        self.hi & 1 << 12 != 0
    }

    /// The type of a system descriptor.
    pub(crate) fn kind(&self) -> u32 {
        self.hi >> 8 & 0xf
    }

    pub(crate) fn is_system(&self, kind: u32) -> bool {
        !self.is_segment() && self.kind() == kind
    }

    pub(crate) fn dpl(&self) -> u8 {
        (self.hi >> 13 & 3) as u8
    }

    pub(crate) fn present(&self) -> bool {
        self.hi & 1 << 15 != 0
    }

    pub(crate) fn is_code(&self) -> bool {
        self.hi & 0x1800 == 0x1800
    }

    pub(crate) fn conforming(&self) -> bool {
        self.is_code() && self.hi & 1 << 10 != 0
    }

    pub(crate) fn readable(&self) -> bool {
        self.is_segment() && (!self.is_code() || self.hi & 1 << 9 != 0)
    }

    pub(crate) fn writable(&self) -> bool {
        self.hi & 0x1a00 == 0x1200
    }

    pub(crate) fn is_long(&self) -> bool {
        self.hi & 1 << 21 != 0
    }

    pub(crate) fn is_32(&self) -> bool {
        self.hi & 1 << 22 != 0
    }

    pub(crate) fn limit(&self) -> u32 {
        let limit = self.lo & 0xffff | self.hi & 0xf_0000;
        if self.hi & 1 << 23 != 0 { limit << 12 | 0xfff } else { limit }
    }

    /// What a segment register holds after loading it.
    pub(crate) fn segment(&self, selector: u16) -> Segment {
        let base = self.lo >> 16 | (self.hi & 0xff) << 16 | self.hi & 0xff00_0000;
        Segment { selector, base: base.into(), limit: self.limit(), access: self.access() }
    }

    /// The selector in a gate.
    pub(crate) fn gate_selector(&self) -> u16 {
        (self.lo >> 16) as u16
    }

    /// The offset in a gate, bits 15:0 only in 16-bit ones.
    pub(crate) fn gate_offset(&self) -> u64 {
        let high = if self.kind() & 8 != 0 { self.hi & 0xffff_0000 } else { 0 };
        u64::from(self.lo & 0xffff | high)
    }
}

/// A stack on which something is pushed or popped before the registers change.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stack {
    pub(crate) ss: Segment,
    pub(crate) sp: u64,
    pub(crate) class: Class,
    /// Error code of #SS.
    pub(crate) error: u32,
    mask: u64,
}

impl Stack {
    /// Moves the stack pointer.
    pub(crate) fn skip(&mut self, bytes: u64) {
        self.sp = self.sp & !self.mask | self.sp.wrapping_add(bytes) & self.mask;
    }
}

impl Cpu {
    /// Recomputes what depends on CR0, EFER, CPL, EFLAGS.VM and the segments.
    pub(crate) fn mode_changed(&mut self) {
        let mut mode = 0;
        if self.cpl == 3 {
            mode |= Mode::USER;
        }
        let v86 = self.rflags & VM != 0;
        if self.cr0 & 1 == 0 || v86 {
            mode |= Mode::REAL;
        }
        if v86 {
            mode |= Mode::V86;
        }
        if self.lma() && self.seg[CS as usize].is_long() {
            mode |= Mode::LONG | Mode::STACK32 | Mode::FLAT;
            self.flat_mask = u64::MAX;
        } else {
            self.flat_mask = 0xffff_ffff;
            if self.seg[CS as usize].is_32() {
                mode |= Mode::D32;
            }
            if self.seg[SS as usize].is_32() {
                mode |= Mode::STACK32;
            }
            let cs = &self.seg[CS as usize];
            let flat_code = cs.base == 0 && cs.limit == u32::MAX && cs.readable();
            if flat_code && [ES, SS, DS].iter().all(|s| self.seg[*s as usize].is_flat()) {
                mode |= Mode::FLAT;
            }
        }
        self.mode = Mode(mode);
        self.select_class();
    }

    /// RFLAGS, all bits.
    pub(crate) fn rflags(&self) -> u64 {
        self.rflags | self.flags.bits() | 2
    }

    /// Replaces the bits in `mask`, as far as the model has them. A change of VM needs [`Cpu::mode_changed`] after it.
    pub(crate) fn set_rflags(&mut self, bits: u64, mask: u64) {
        if mask & ARITH != 0 {
            self.flags = Flags::from_bits(bits & mask | self.flags.bits() & !mask);
        }
        let mask = mask & !ARITH & self.model.flags_mask() & DEFINED;
        let old = self.rflags;
        self.rflags = old & !mask | bits & mask;
        if (old ^ self.rflags) & AC != 0 {
            self.select_class();
        }
    }

    /// The linear address of the instruction at `rip`.
    pub(crate) fn fetch_address(&mut self, rip: u64) -> Res<u64> {
        if self.mode.has(Mode::LONG) {
            return if canonical(rip) { Ok(rip) } else { Err(self.gp(0)) };
        }
        let cs = &self.seg[CS as usize];
        if rip > cs.limit.into() {
            return Err(self.gp(0));
        }
        Ok(cs.base.wrapping_add(rip) & 0xffff_ffff)
    }

    /// RIP as wide as it is: 64 bits in 64-bit code, else 32.
    #[inline(always)]
    pub(crate) fn cut_rip(&self, rip: u64) -> u64 {
        rip & self.flat_mask
    }

    /// #GP unless `rip` can be gone to in a code segment.
    pub(crate) fn check_target(&mut self, cs: &Segment, rip: u64) -> Res {
        let inside = if self.lma() && cs.is_long() { canonical(rip) } else { rip <= cs.limit.into() };
        if inside { Ok(()) } else { Err(self.gp(0)) }
    }

    /// Reads a descriptor. Beyond the table's limit: fault `vector`.
    pub(crate) fn descriptor(&mut self, selector: u16, vector: u8) -> Res<Descriptor> {
        let offset = u32::from(selector & 0xfff8);
        let (base, limit) = if selector & 4 == 0 {
            (self.gdtr.base, u32::from(self.gdtr.limit))
        } else if self.ldtr.usable() {
            (self.ldtr.base, self.ldtr.limit)
        } else {
            return Err(self.fault(vector, Some(error_of(selector))));
        };
        let Some(room) = limit.checked_sub(offset).filter(|room| *room >= 7) else {
            return Err(self.fault(vector, Some(error_of(selector))));
        };
        let at = self.table_address(base, offset.into());
        Ok(Descriptor { room, ..Descriptor::new(self.sys_load(at)?, at) })
    }

    /// The second half of a 16-byte descriptor of long mode: bits 63:32 of the address. Its type must be 0.
    pub(crate) fn descriptor_high(&mut self, d: &Descriptor, selector: u16, vector: u8) -> Res<u64> {
        if d.room < 15 {
            return Err(self.fault(vector, Some(error_of(selector))));
        }
        let raw: u64 = self.sys_load(d.at.wrapping_add(8))?;
        if raw >> 40 & 0x1f != 0 {
            return Err(self.fault(vector, Some(error_of(selector))));
        }
        Ok(raw << 32)
    }

    /// The linear address of a byte in a descriptor table or TSS.
    pub(crate) fn table_address(&self, base: u64, offset: u64) -> u64 {
        let lin = base.wrapping_add(offset);
        if self.lma() { lin } else { lin & 0xffff_ffff }
    }

    /// Sets the accessed bit of a code or data segment.
    pub(crate) fn set_accessed(&mut self, d: &mut Descriptor) -> Res {
        if d.hi & 1 << 8 == 0 {
            d.hi |= 1 << 8;
            let at = d.at.wrapping_add(5);
            self.sys_store(at, (d.hi >> 8) as u8)?;
        }
        Ok(())
    }

    /// What a segment register holds after a load in real or virtual-8086 mode.
    pub(crate) fn real_segment(&self, seg: u8, selector: u16) -> Segment {
        let base = u64::from(selector) << 4;
        if self.rflags & VM != 0 {
            Segment { selector, base, limit: 0xffff, access: 0xf3 }
        } else {
            Segment { selector, base, ..self.seg[seg as usize] }
        }
    }

    /// Loads a data or stack segment register: MOV, POP, LDS and their like.
    pub(crate) fn load_seg(&mut self, seg: u8, selector: u16) -> Res {
        let new = if self.mode.has(Mode::REAL) {
            self.real_segment(seg, selector)
        } else if seg == SS {
            self.stack_segment(selector)?
        } else {
            self.data_segment(selector)?
        };
        self.seg[seg as usize] = new;
        if !matches!(seg, FS | GS) {
            self.mode_changed();
        }
        Ok(())
    }

    fn stack_segment(&mut self, selector: u16) -> Res<Segment> {
        let cpl = self.cpl;
        if null(selector) {
            if self.mode.has(Mode::LONG) && cpl != 3 && selector as u8 & 3 == cpl {
                return Ok(Segment::null(selector));
            }
            return Err(self.gp(0));
        }
        self.checked_stack(selector, cpl, GP)
    }

    /// A segment that can be the stack of privilege level `cpl`. `vector`: #GP, or #TS if the selector comes from a
    /// TSS.
    pub(crate) fn checked_stack(&mut self, selector: u16, cpl: u8, vector: u8) -> Res<Segment> {
        if null(selector) {
            return Err(self.fault(vector, Some(error_of(selector))));
        }
        let mut d = self.descriptor(selector, vector)?;
        if selector as u8 & 3 != cpl || d.dpl() != cpl || !d.writable() {
            return Err(self.fault(vector, Some(error_of(selector))));
        }
        if !d.present() {
            return Err(self.fault(SS_FAULT, Some(error_of(selector))));
        }
        self.set_accessed(&mut d)?;
        Ok(d.segment(selector))
    }

    /// The segment for DS, ES, FS or GS.
    fn data_segment(&mut self, selector: u16) -> Res<Segment> {
        if null(selector) {
            return Ok(Segment::null(selector));
        }
        let mut d = self.descriptor(selector, GP)?;
        let rpl = selector as u8 & 3;
        if !d.readable() || !d.conforming() && d.dpl() < self.cpl.max(rpl) {
            return Err(self.gp(error_of(selector)));
        }
        if !d.present() {
            return Err(self.fault(NP, Some(error_of(selector))));
        }
        self.set_accessed(&mut d)?;
        Ok(d.segment(selector))
    }

    /// After a return to an outer level: data segments that it must not see become null.
    pub(crate) fn drop_inner_segments(&mut self) {
        for seg in [ES, DS, FS, GS] {
            let s = &mut self.seg[seg as usize];
            if s.usable() && !s.conforming() && s.dpl() < self.cpl {
                *s = Segment::null(0);
            }
        }
    }

    /// The present stack.
    pub(crate) fn stack(&self) -> Stack {
        let (ss, sp) = (self.seg[SS as usize], self.gpr[RSP as usize]);
        let s = if self.mode.has(Mode::LONG) {
            self.long_stack(ss, sp, self.cpl)
        } else {
            self.legacy_stack(ss, sp, self.cpl)
        };
        Stack { error: 0, class: self.tlb.class(), ..s }
    }

    /// A stack of real, protected or compatibility mode.
    pub(crate) fn legacy_stack(&self, ss: Segment, sp: u64, cpl: u8) -> Stack {
        let mask = if ss.is_32() { 0xffff_ffff } else { 0xffff };
        let class = self.class_of(cpl);
        Stack { ss, sp: sp & 0xffff_ffff, class, error: error_of(ss.selector), mask }
    }

    /// A stack of 64-bit mode.
    pub(crate) fn long_stack(&self, ss: Segment, sp: u64, cpl: u8) -> Stack {
        Stack { ss, sp, class: self.class_of(cpl), error: 0, mask: u64::MAX }
    }

    fn stack_lin(&mut self, s: &Stack, offset: u64, len: u64) -> Res<u64> {
        let inside = if s.mask == u64::MAX { canonical(offset) } else { s.ss.holds(offset, len) };
        if !inside {
            return Err(self.fault(SS_FAULT, Some(s.error)));
        }
        Ok(if s.mask == u64::MAX { offset } else { s.ss.base.wrapping_add(offset) & 0xffff_ffff })
    }

    /// Pushes 2, 4 or 8 bytes for a size code of 0, 1 or 2.
    pub(crate) fn stack_push(&mut self, s: &mut Stack, osize: u8, value: u64) -> Res {
        let n = 2 << osize;
        let mut next = *s;
        next.skip(0u64.wrapping_sub(n));
        let lin = self.stack_lin(&next, next.sp & next.mask, n)?;
        self.store_as(next.class, lin, n as u8, value)?;
        *s = next;
        Ok(())
    }

    /// Pops 2, 4 or 8 bytes.
    pub(crate) fn stack_pop(&mut self, s: &mut Stack, osize: u8) -> Res<u64> {
        let n = 2 << osize;
        let lin = self.stack_lin(s, s.sp & s.mask, n)?;
        let value = self.load_as(s.class, lin, n as u8)?;
        s.skip(n);
        Ok(value)
    }

    /// Makes a stack the present one, or its pointer the stack pointer.
    pub(crate) fn set_stack(&mut self, s: &Stack) {
        self.seg[SS as usize] = s.ss;
        self.set_sp(s);
    }

    /// Takes over the stack pointer.
    pub(crate) fn set_sp(&mut self, s: &Stack) {
        self.gpr[RSP as usize] = s.sp;
    }

    /// Pushes on the present stack; RSP changes only if that succeeded.
    pub(crate) fn push(&mut self, osize: u8, v: u64) -> Res {
        let mut s = self.stack();
        self.stack_push(&mut s, osize, v)?;
        self.set_sp(&s);
        Ok(())
    }
}
