//! Instructions that the kernel hands out: accesses to device memory, and string I/O.
//!
//! The kernel says what it decoded, but in numbers of its own, so the bytes are decoded here. A plain move takes one
//! system call beside `VM_RUN`: a store fetches its register, a load sets it. All else is executed with the state that
//! [`cpu::Executor::decode`] asks for, of which only what changed is set; segment loads and the like with all state.
//! There is no request for x87, MMX, SSE and AVX registers, so what moves these to or from a device ends in a report.
//! Task switches are the same work: the kernel hands them out before they have begun.

use std::io;

use cpu::{CodeSize, Context, Done, Executor, Fault, Regs, Segment, TaskSwitch, Transfer};
use emu::PAGE_SIZE;
use vmmapi_sys::exit::{InoutStr, InstEmul, vm_task_switch};
use vmmapi_sys::ids::CpuMode;
use vmmapi_sys::{Exit as Why, Reg, VmExit};

use super::chips;
use super::state::{self, GPRS, SEGMENTS};
use super::vcpu::{Then, VmmVcpu};
use crate::Exit;

/// What an instruction works on beside the general registers.
const CONTROL: [Reg; 6] = [Reg::Rflags, Reg::Cr0, Reg::Cr3, Reg::Cr4, Reg::Efer, Reg::Rip];
const ALL: usize = GPRS.len() + CONTROL.len();

impl VmmVcpu {
    /// An access to an address that nothing is mapped at.
    pub(super) fn emulate(&mut self, exit: &VmExit, emul: &InstEmul) -> Then {
        let size = code_size(emul.paging.cpu_mode, emul.cs_d);
        let bytes = &emul.bytes[..emul.valid.into()];
        if let Some(decoded) = Executor::decode(bytes, size)
            && let Some(transfer) = decoded.transfer
            && emul.gpa % PAGE_SIZE + u64::from(transfer.width()) <= PAGE_SIZE
        {
            let done = self.transfer(exit, emul.gpa, &transfer, decoded.len, size);
            return self.checked(done, "a move to or from a device");
        }
        let code = Some((emul.cs_base, size));
        match self.instruction(exit.rip, bytes, code, Some(emul.paging.cpl)) {
            Ok((_, _, Done::Unsupported)) => self.whole(exit, bytes),
            Ok(context) => self.finish(exit, context),
            Err(e) => Then::Leave(self.failed(&format!("registers: {e}"))),
        }
    }

    /// An instruction that the kernel did not hand out, but failed at.
    pub(super) fn execute_here(&mut self, rip: u64) -> Then {
        let exit = VmExit { code: 0, rip, inst_length: 0, exit: Why::Bogus };
        match self.instruction(rip, &[], None, None) {
            Ok((_, _, Done::Unsupported)) => self.whole(&exit, &[]),
            Ok(context) => self.finish(&exit, context),
            Err(e) => Then::Leave(self.failed(&format!("registers: {e}"))),
        }
    }

    /// An instruction that takes all of the processor's state, as segment loads do. They are rare on devices.
    fn whole(&mut self, exit: &VmExit, bytes: &[u8]) -> Then {
        let mut regs = match state::get(self.vm(), self.index, exit.rip) {
            Ok(regs) => regs,
            Err(e) => return Then::Leave(self.failed(&format!("registers: {e}"))),
        };
        let done = self.executor.execute_whole(&mut regs, bytes);
        self.finish_whole(exit, &regs, done)
    }

    /// A task switch, of which the processor has done no more than to find the new task.
    pub(super) fn task_switch(&mut self, exit: &VmExit, switch: &vm_task_switch) -> Then {
        let how = match switch.reason {
            0 => TaskSwitch::Call,
            1 => TaskSwitch::Iret,
            2 => TaskSwitch::Jump,
            3 => TaskSwitch::Interrupt,
            other => return Then::Leave(self.failed(&format!("a task switch for the unknown reason {other}"))),
        };
        let mut regs = match state::get(self.vm(), self.index, exit.rip) {
            Ok(regs) => regs,
            Err(e) => return Then::Leave(self.failed(&format!("registers: {e}"))),
        };
        let error = (switch.errcode_valid != 0).then_some(switch.errcode);
        let next = exit.rip.wrapping_add(exit.inst_length.into());
        let mut done = self.executor.switch_task(&mut regs, switch.tsssel, how, error, next);
        if let Done::Fault(Fault { error: Some(error), vector: 10..=13, .. }) = &mut done {
            *error |= u32::from(switch.ext != 0);
        }
        // The interrupt has arrived, and is not to come again.
        if done == Done::Yes
            && how == TaskSwitch::Interrupt
            && let Err(e) = self.vm().set_intinfo(self.index, 0)
        {
            return Then::Leave(self.failed(&format!("VM_SET_INTINFO: {e}")));
        }
        self.finish_whole(exit, &regs, done)
    }

    fn finish_whole(&mut self, exit: &VmExit, regs: &Regs, done: Done) -> Then {
        self.next = exit.rip;
        match done {
            Done::Yes => {
                let set = state::set(self.vm(), self.index, regs);
                self.next = regs.rip;
                self.checked(set, "registers")
            }
            Done::Fault(fault) => self.raise(fault),
            Done::Shutdown => Then::Leave(Exit::TripleFault(self.report())),
            Done::Unsupported => {
                let what = match exit.exit {
                    Why::InstEmul(e) => {
                        format!("the instruction {:02x?} accesses {:#x}", &e.bytes[..e.valid.into()], e.gpa)
                    }
                    _ => format!("the instruction at {:#x} accesses memory that is read-only", exit.rip),
                };
                let why = "vmm(4) does not show the registers that it uses (x87, MMX, SSE or AVX)";
                Then::Leave(self.failed(&format!("{what}, where it cannot be executed: {why}")))
            }
        }
    }

    /// The kernel goes on after as many bytes as it found the instruction to have: 0, if it did not decode it.
    fn transfer(&mut self, exit: &VmExit, gpa: u64, t: &Transfer, len: u8, size: CodeSize) -> io::Result<()> {
        let register = t.register().map(|(n, _)| GPRS[usize::from(n)]);
        let old = match (register, t.register()) {
            (Some(reg), Some((_, true))) => self.vm().register(self.index, reg)?,
            _ => 0,
        };
        let next = advance(exit.rip, len, size);
        let moved = exit.inst_length != len;
        match t.stored(old) {
            Some(value) => {
                self.bus.write(gpa, t.width(), value);
                if moved {
                    self.vm().set_register(self.index, Reg::Rip, next)?;
                }
            }
            None => {
                let value = t.loaded(old, self.bus.read(gpa, t.width()));
                let regs = [register.unwrap_or(Reg::Rax), Reg::Rip];
                if moved {
                    self.vm().set_registers(self.index, &regs, &[value, next])?;
                } else {
                    self.vm().set_register(self.index, regs[0], value)?;
                }
            }
        }
        self.next = next;
        Ok(())
    }

    /// Fetches the state that the instruction at `rip` works on, and executes it: the state before and after.
    fn instruction(
        &mut self,
        rip: u64,
        bytes: &[u8],
        code: Option<(u64, CodeSize)>,
        cpl: Option<i32>,
    ) -> io::Result<(Context, Context, Done)> {
        let mut regs = [Reg::Rax; ALL];
        regs[..GPRS.len()].copy_from_slice(&GPRS);
        regs[GPRS.len()..].copy_from_slice(&CONTROL);
        let mut values = [0; ALL];
        self.vm().registers(self.index, &regs, &mut values)?;
        let mut context = Context { rip, ..Context::default() };
        context.gpr.copy_from_slice(&values[..GPRS.len()]);
        let control = &values[GPRS.len()..];
        (context.rflags, context.cr0, context.cr3) = (control[0], control[1], control[2]);
        (context.cr4, context.efer) = (control[3], control[4]);
        let (size, cpl) = match (code, cpl) {
            (Some((base, size)), Some(cpl)) => {
                context.set_code(base, size);
                (size, cpl as u8)
            }
            _ => {
                let cs = state::segment(self.vm(), self.index, Reg::Cs)?;
                context.seg[1] = cs;
                let ss = self.vm().segment(self.index, Reg::Ss)?;
                (size_of_code(&context, &cs), (ss.access >> 5 & 3) as u8)
            }
        };
        context.cpl = if context.cr0 & 1 == 0 { 0 } else { cpl };
        let wanted = match Executor::decode(bytes, size) {
            Some(decoded) => decoded.segments,
            None if size == CodeSize::Bits64 => 0x30,
            None => 0x3d,
        };
        for n in (0..6).filter(|n| wanted >> n & 1 != 0 && *n != 1) {
            let d = self.vm().segment(self.index, SEGMENTS[n])?;
            context.seg[n] = Segment { selector: 0, base: d.base, limit: d.limit, access: d.access };
        }
        let before = context.clone();
        let done = self.executor.execute(&mut context, bytes);
        Ok((before, context, done))
    }

    /// Sets what the instruction has changed.
    fn finish(&mut self, exit: &VmExit, (before, after, done): (Context, Context, Done)) -> Then {
        let (mut regs, mut values, mut count) = ([Reg::Rax; GPRS.len() + 2], [0; GPRS.len() + 2], 0);
        let mut set = |reg, value| {
            (regs[count], values[count]) = (reg, value);
            count += 1;
        };
        for (n, reg) in GPRS.into_iter().enumerate().filter(|(n, _)| before.gpr[*n] != after.gpr[*n]) {
            set(reg, after.gpr[n]);
        }
        if let Done::Yes = done {
            // RF was set between two repetitions, for instruction breakpoints that are the kernel's business.
            const RF: u64 = 1 << 16;
            if (before.rflags ^ after.rflags) & !RF != 0 {
                set(Reg::Rflags, after.rflags & !RF | before.rflags & RF);
            }
        }
        let stays = done == Done::Yes && after.rip == exit.rip;
        if done == Done::Yes && !stays && after.rip != exit.rip.wrapping_add(exit.inst_length.into()) {
            set(Reg::Rip, after.rip);
        }
        if count > 0
            && let Err(e) = self.vm().set_registers(self.index, &regs[..count], &values[..count])
        {
            return Then::Leave(self.failed(&format!("VM_SET_REGISTER_SET: {e}")));
        }
        self.next = exit.rip;
        match done {
            Done::Fault(fault) => return self.raise(fault),
            _ if stays && exit.inst_length > 0 => {
                let done = self.vm().restart_instruction(self.index);
                return self.checked(done, "VM_RESTART_INSTRUCTION");
            }
            _ => self.next = after.rip,
        }
        Then::Run
    }

    /// INS and OUTS: the exit has all of the state but the paging's, and not the bytes, which are made up.
    pub(super) fn string(&mut self, exit: &VmExit, io: &InoutStr) -> Then {
        const WANTED: [Reg; 4] = [Reg::Cr4, Reg::Efer, Reg::Rsi, Reg::Rdi];
        let (mut values, mut rcx) = ([0; WANTED.len()], 0);
        let mut fetch = || {
            self.vm().registers(self.index, &WANTED, &mut values)?;
            rcx = if io.inout.rep { self.vm().register(self.index, Reg::Rcx)? } else { 0 };
            Ok::<(), io::Error>(())
        };
        if let Err(e) = fetch() {
            return Then::Leave(self.failed(&format!("VM_GET_REGISTER_SET: {e}")));
        }
        let [cr4, efer, rsi, rdi] = values;
        let mut context =
            Context { rip: exit.rip, rflags: io.rflags, cr0: io.cr0, cr3: io.paging.cr3, ..Context::default() };
        (context.cr4, context.efer, context.cpl) = (cr4, efer, io.paging.cpl as u8);
        (context.gpr[1], context.gpr[2], context.gpr[6], context.gpr[7]) = (rcx, io.inout.port.into(), rsi, rdi);
        let long = io.paging.cpu_mode == CpuMode::Long as i32;
        let size = match (long, io.address_bytes) {
            (true, _) => CodeSize::Bits64,
            (_, 2) => CodeSize::Bits16,
            _ => CodeSize::Bits32,
        };
        context.set_code(0, size);
        let segment = SEGMENTS.into_iter().position(|reg| reg == io.segment).unwrap_or(3);
        let d = io.desc;
        context.seg[segment] = Segment { selector: 0, base: d.base, limit: d.limit, access: d.access };
        // Whether it may touch the port, the processor has looked at before the exit.
        const IOPL: u64 = 3 << 12;
        const VM86: u64 = 1 << 17;
        context.rflags = context.rflags & !VM86 | IOPL;
        let before = context.clone();
        let mut bytes = [0; 6];
        let mut len = 0;
        let mut put = |byte| {
            bytes[len] = byte;
            len += 1;
        };
        if io.inout.rep {
            put(0xf3);
        }
        if long && io.address_bytes == 4 {
            put(0x67);
        }
        if (io.inout.bytes == 2) != (size == CodeSize::Bits16) && io.inout.bytes != 1 {
            put(0x66);
        }
        if !io.inout.input {
            put([0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65][segment]);
        }
        put(if io.inout.input { 0x6c } else { 0x6e } | u8::from(io.inout.bytes > 1));
        // A port of the kernel's is reached by this very processor, which is back at the instruction then.
        let kernels = chips::is_kernels(io.inout.port);
        if kernels {
            self.goes_on_at(exit.rip);
        }
        let done = self.executor.execute(&mut context, &bytes[..len]);
        context.rflags = before.rflags;
        // Its own length is not the original's.
        if done == Done::Yes && context.rip != exit.rip {
            context.rip = exit.rip.wrapping_add(exit.inst_length.into());
        }
        let went_on = if kernels { 0 } else { exit.inst_length };
        self.finish(&VmExit { inst_length: went_on, ..*exit }, (before, context, done))
    }
}

fn code_size(mode: i32, cs_d: bool) -> CodeSize {
    match (mode == CpuMode::Long as i32, cs_d) {
        (true, _) => CodeSize::Bits64,
        (_, true) => CodeSize::Bits32,
        _ => CodeSize::Bits16,
    }
}

fn size_of_code(c: &Context, cs: &Segment) -> CodeSize {
    const LMA: u64 = 1 << 10;
    match (c.efer & LMA != 0 && cs.access & Segment::L != 0, cs.access & Segment::DB != 0) {
        (true, _) => CodeSize::Bits64,
        (_, true) => CodeSize::Bits32,
        _ => CodeSize::Bits16,
    }
}

fn advance(rip: u64, len: u8, size: CodeSize) -> u64 {
    let next = rip.wrapping_add(len.into());
    if size == CodeSize::Bits64 { next } else { next & 0xffff_ffff }
}
