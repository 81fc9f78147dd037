//! VM_RUN.

use std::time::{Duration, Instant};

use cpu::{Intercept, TaskSwitch};

use crate::exit::{self, Image};
use crate::regs::Paging;
use crate::version::Version;
use crate::vie;
use crate::vm::{Core, Ipi, State, VcpuState, Vm, load};
use crate::walk::{Want, translate};
use crate::wire::Res;

/// Instructions in a turn.
const SLICE: u64 = 20_000;
/// One in so many VM_RUNs ends at once for no reason that user space knows.
const BOGUS_IN: u64 = 211;

pub(crate) const HALT_EXIT: u32 = 0;
pub(crate) const MTRAP_EXIT: u32 = 1;
pub(crate) const UNRESTRICTED_GUEST: u32 = 3;
pub(crate) const BPT_EXIT: u32 = 5;
pub(crate) const IPI_EXIT: u32 = 8;
const HALT: u32 = 3;
const BREAKPOINT: u8 = 3;
const TRIPLE_FAULT: u32 = 4;

/// Blocks signals while a thread is in VM_RUN, so that those that come are seen there.
struct Signals(libc::sigset_t);

impl Signals {
    #[expect(unsafe_code, reason = "pthread_sigmask(3)")]
    fn block() -> Signals {
        // SAFETY: sets on the stack, and the mask of this thread.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut old: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&mut all);
            for fault in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGABRT] {
                libc::sigdelset(&mut all, fault);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &all, &mut old);
            Signals(old)
        }
    }

    /// A signal that this thread would take waits.
    #[expect(unsafe_code, reason = "sigpending(2)")]
    fn pending(&self) -> bool {
        // SAFETY: a set on the stack.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigpending(&mut set);
            (1..32).any(|n| libc::sigismember(&set, n) == 1 && libc::sigismember(&self.0, n) == 0)
        }
    }
}

impl Drop for Signals {
    #[expect(unsafe_code, reason = "pthread_sigmask(3)")]
    fn drop(&mut self) {
        // SAFETY: the mask that this thread had.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut()) };
    }
}

/// What is wrong with string I/O at a port of the kernel's, if its index has moved: the vCPU alone reaches the port.
fn string_undone(core: &mut Core) -> Option<String> {
    let (port, register, index) = core.string?;
    if core.debts.was_injected() {
        core.string = None;
        return None;
    }
    if core.cpu.gpr(register) == index {
        return None;
    }
    core.string = None;
    let last = core.cpu.bus().exits().last();
    let reached = last.is_some_and(|e| matches!(e.kind, "in" | "out") && e.addr == u64::from(port));
    (!reached).then(|| format!("string I/O at the kernel's port {port:#x}, which nobody has reached: it was made up"))
}

impl Vm {
    /// VM_RUN of a vCPU.
    pub(crate) fn run(&self, id: i32) -> Res<Image> {
        let n = self.index(id)?;
        {
            let w = self.world();
            if w.destroyed {
                return Err(libc::ENXIO);
            }
            if w.active >> n & 1 == 0 {
                drop(w);
                self.rules.broken(&format!("VM_RUN of vCPU {n}, which is not active"));
                return Err(libc::EINVAL);
            }
            if w.suspended >> n & 1 != 0 {
                drop(w);
                self.rules.broken(&format!("VM_RUN of vCPU {n} after it was told SUSPENDED"));
                return Err(libc::EINVAL);
            }
        }
        self.lock_vcpu(n, State::Running)?;
        let image = self.run_locked(n);
        self.unlock_vcpu(n);
        image
    }

    fn run_locked(&self, n: usize) -> Res<Image> {
        let signals = Signals::block();
        {
            let mut w = self.world();
            (w.ran, w.vcpus[n].ran) = (true, true);
        }
        // Nobody else touches a vCPU that runs.
        let mut slot = self.cores[n].lock().unwrap();
        let core = slot.as_mut().ok_or(libc::EINVAL)?;
        core.runs += 1;
        if self.rules.interrupts() && core.runs.is_multiple_of(2) && self.world().held >> n & 1 == 0 {
            core.debts.refused();
            return Err(libc::EINTR);
        }
        let (held, starts_at, capabilities) = {
            let mut w = self.world();
            let held = w.held;
            let late = |v: &VcpuState| v.starts_at.is_some_and(|(_, since)| since.elapsed() > self.rules.patience());
            let late = (0..w.vcpus.len()).find(|v| held >> v & 1 != 0 && late(&w.vcpus[*v]));
            if let Some(late) = late {
                drop(w);
                self.rules.broken(&format!("vCPU {late} was started by a SIPI and is still held"));
                w = self.world();
                w.vcpus[late].starts_at = None;
            }
            let v = &mut w.vcpus[n];
            (held, v.starts_at.take_if(|_| held >> n & 1 == 0), v.capabilities)
        };
        if let Some(undone) = core.debts.unpaid(core.cpu.gpr(1), held) {
            self.rules.broken(&undone);
        }
        if let Some(undone) = string_undone(core) {
            self.rules.broken(&undone);
        }
        if core.debts.is_new() && held >> n & 1 == 0 {
            self.check_start(n, core, capabilities);
        }
        if let Some((page, _)) = starts_at {
            self.check_sipi(n, core, page);
        }
        core.cpu.set_rip(core.next);
        core.cpu.leave_breakpoints(capabilities >> BPT_EXIT & 1 != 0);
        if let Some(fault) = core.pending.take() {
            if fault.vector == BREAKPOINT {
                // What is saved is the address behind the instruction.
                if core.entry_length == 0 {
                    self.rules.broken("an INT3 is injected without its length: the VM entry fails");
                }
                core.cpu.set_rip(core.next.wrapping_add(std::mem::take(&mut core.entry_length)));
            }
            let regs = cpu::Regs { exception: Some(fault), halted: false, ..core.cpu.regs() };
            load(&mut core.cpu, &regs);
        }
        let spurious = self.rules.bogus() && self.dice().is_multiple_of(BOGUS_IN);
        // What was injected may have met a task gate.
        let image = match core.cpu.take_intercept() {
            Some(access) => self.intercepted(core, access),
            None => self.enter(n, core, &signals, spurious),
        };
        if let Ok(image) = &image {
            core.debts.exited(image);
            let len = u32::from_le_bytes([image.bytes[4], image.bytes[5], image.bytes[6], image.bytes[7]]);
            core.next = core.cpu.rip().wrapping_add(len.into());
        } else {
            core.next = core.cpu.rip();
        }
        image
    }

    /// Real mode is the processor's own business only with this capability.
    fn check_start(&self, n: usize, core: &Core, capabilities: u32) {
        const PE_AND_PG: u64 = 1 << 31 | 1;
        if core.cpu.regs().cr0 & PE_AND_PG != PE_AND_PG && capabilities >> UNRESTRICTED_GUEST & 1 == 0 {
            self.rules.broken(&format!("vCPU {n} starts without paging, and UNRESTRICTED_GUEST is off"));
        }
    }

    /// A vCPU that a SIPI starts is in its reset state but for CS and RIP.
    fn check_sipi(&self, n: usize, core: &Core, page: u8) {
        let r = core.cpu.regs();
        let cs = (u64::from(page) << 12, u16::from(page) << 8);
        let right = (r.cs.base, r.cs.selector) == cs && core.next == 0 && r.cr0 & 1 == 0 && r.rflags & !0x40 == 2;
        if !right {
            self.rules.broken(&format!(
                "vCPU {n} was started at page {page:#x} and runs with CS {:x} at {:x}, RIP {:x}, CR0 {:x}, RFLAGS {:x}",
                r.cs.selector, r.cs.base, core.next, r.cr0, r.rflags
            ));
        }
    }

    fn enter(&self, n: usize, core: &mut Core, signals: &Signals, mut spurious: bool) -> Res<Image> {
        loop {
            let wakes = self.wakes();
            let rip = core.cpu.rip();
            let (capabilities, held) = {
                let w = self.world();
                if w.suspend.is_some() {
                    drop(w);
                    let how = self.barrier(n);
                    return Ok(Image::new(exit::SUSPENDED, rip, 0).with(0, &how.to_le_bytes()));
                }
                if w.destroyed {
                    return Err(libc::ENXIO);
                }
                if w.vcpus[n].wanted > 0 {
                    return Ok(Image::new(exit::REQIDLE, rip, 0));
                }
                (w.vcpus[n].capabilities, w.held >> n & 1 != 0)
            };
            if std::mem::take(&mut spurious) || signals.pending() {
                return Ok(Image::new(exit::BOGUS, rip, 0));
            }
            if held {
                return Ok(Image::new(exit::DEBUG, rip, 0));
            }
            let step = capabilities >> MTRAP_EXIT & 1 != 0;
            let ended = self.run_slice(core, if step { 1 } else { SLICE });
            if let Some(access) = core.cpu.take_intercept() {
                return self.intercepted(core, access);
            }
            let ipi = self.ipis.lock().unwrap().remove(&(n as u32));
            if let Some(ipi) = ipi
                && let Some(image) = self.ipi(n, core, ipi, capabilities)
            {
                return Ok(image);
            }
            match ended {
                cpu::Exit::Limit if step => return Ok(Image::new(exit::MTRAP, core.cpu.rip(), 0)),
                cpu::Exit::Limit | cpu::Exit::Kicked => {}
                cpu::Exit::Shutdown => {
                    self.rules.note(&core.cpu.report());
                    let _ = self.suspend(TRIPLE_FAULT);
                }
                cpu::Exit::Halted => self.halted(n, core, capabilities, wakes),
            }
        }
    }

    /// HLT: the kernel sleeps, and looks again after a second at most. Without HALT_EXIT the processor idles in the
    /// guest, where signals reach it at once.
    fn halted(&self, n: usize, core: &mut Core, capabilities: u32, seen: u64) {
        let exits = capabilities >> HALT_EXIT & 1 != 0;
        if core.cpu.dead() && exits {
            let mut w = self.world();
            w.halted |= 1 << n;
            let all = w.halted & w.active == w.active;
            drop(w);
            if all {
                let _ = self.suspend(HALT);
            }
        }
        if core.cpu.asleep() {
            self.sleep(seen, if exits { Duration::from_secs(1) } else { Duration::from_millis(5) });
        }
        self.world().halted &= !(1 << n);
    }

    /// INIT and SIPI that the vCPU has sent.
    fn ipi(&self, n: usize, core: &mut Core, ipi: Ipi, capabilities: u32) -> Option<Image> {
        let rip = core.cpu.rip();
        let exits = capabilities >> IPI_EXIT & 1 != 0;
        let mut w = self.world();
        if !exits && (n != 0 || ipi.cpus & 1 != 0) {
            return None;
        }
        let dests: Vec<usize> = (0..w.vcpus.len()).filter(|v| ipi.cpus >> v & 1 != 0).collect();
        let dests: Vec<usize> = dests.into_iter().filter(|v| !exits || w.active >> v & 1 != 0).collect();
        if !ipi.startup {
            for v in &dests {
                w.vcpus[*v].waits_for_sipi = true;
            }
            drop(w);
            for v in dests.iter().filter(|v| **v != n) {
                self.reset_lapic(*v);
            }
            let set = dests.iter().fold(0, |set, v| set | 1u64 << v);
            return exits.then(|| self.ipi_image(rip, 0x500, ipi.vector, set));
        }
        let waiting: Vec<usize> = dests.into_iter().filter(|v| w.vcpus[*v].waits_for_sipi).collect();
        for v in &waiting {
            w.vcpus[*v].waits_for_sipi = false;
            w.vcpus[*v].starts_at = Some((ipi.vector, Instant::now()));
        }
        drop(w);
        let first = *waiting.first()?;
        if exits {
            let set = waiting.iter().fold(0, |set, v| set | 1u64 << v);
            return Some(self.ipi_image(rip, 0x600, ipi.vector, set));
        }
        let image = Image::new(exit::SPINUP_AP, rip, 0).with(0, &(first as u32).to_le_bytes());
        Some(image.with(8, &(u64::from(ipi.vector) << 12).to_le_bytes()))
    }

    fn reset_lapic(&self, n: usize) {
        let x2apic = self.world().vcpus[n].x2apic;
        if let Some(lapic) = self.lapic_of(n) {
            lapic.reset();
            if x2apic {
                lapic.set_apic_base(lapic.apic_base() | 1 << 10);
            }
        }
    }

    fn ipi_image(&self, rip: u64, mode: u32, vector: u8, set: u64) -> Image {
        let mut image = Image::new(exit::IPI, rip, 0).with(0, &mode.to_le_bytes()).with(4, &[vector]);
        if self.version < Version::V14 {
            let mut mask = [0; 32];
            mask[..8].copy_from_slice(&set.to_le_bytes());
            image = image.with(8, &mask);
        }
        image.cpus = set;
        image
    }

    fn intercepted(&self, core: &mut Core, access: Intercept) -> Res<Image> {
        let mut regs = core.cpu.regs();
        let (rip, rax) = (regs.rip, regs.gpr[0] as u32);
        let paging = Paging::of(&regs);
        match access {
            Intercept::Port { port, width, out } => {
                if crate::chips::port_width(port).is_some() {
                    self.rules.note(&format!("{width} bytes at the kernel's port {port:#x}: EIO"));
                    return Err(libc::EIO);
                }
                let len = vie::short_length(&self.fetch(&regs, &paging), paging.cpu_mode);
                let flags = u16::from(width) | u16::from(!out) << 3;
                Ok(Image::new(exit::INOUT, rip, len)
                    .with(0, &flags.to_le_bytes())
                    .with(2, &port.to_le_bytes())
                    .with(4, &rax.to_le_bytes()))
            }
            Intercept::PortString { port, width, out } => {
                let bytes = self.fetch(&regs, &paging);
                let len = vie::short_length(&bytes, paging.cpu_mode);
                let p = vie::string(&bytes, paging.cpu_mode, regs.cs.access & cpu::Segment::DB != 0);
                let flags = u16::from(width) | u16::from(!out) << 3 | 1 << 4 | u16::from(p.rep) << 5;
                let segment = if out { p.segment.unwrap_or(25) } else { 22 };
                let (base, limit, access) = crate::regs::get_descriptor(&mut regs, segment).ok_or(libc::EINVAL)?;
                let number = if out { 6 } else { 7 };
                let index = regs.gpr[usize::from(number)];
                if crate::chips::port_width(port).is_some() {
                    core.string = Some((port, number, index));
                }
                let count = if p.rep { regs.gpr[1] } else { 1 };
                Ok(Image::new(exit::INOUT_STR, rip, len)
                    .with(0, &flags.to_le_bytes())
                    .with(2, &port.to_le_bytes())
                    .with(4, &rax.to_le_bytes())
                    .with(8, &paging.bytes())
                    .with(32, &regs.rflags.to_le_bytes())
                    .with(40, &regs.cr0.to_le_bytes())
                    .with(48, &index.to_le_bytes())
                    .with(56, &count.to_le_bytes())
                    .with(64, &p.address.to_le_bytes())
                    .with(68, &segment.to_le_bytes())
                    .with(72, &base.to_le_bytes())
                    .with(80, &limit.to_le_bytes())
                    .with(84, &access.to_le_bytes()))
            }
            Intercept::ReadMsr(msr) | Intercept::WriteMsr(msr) => {
                let write = matches!(access, Intercept::WriteMsr(_));
                let len = vie::short_length(&self.fetch(&regs, &paging), paging.cpu_mode);
                let value = u64::from(rax) | regs.gpr[2] << 32;
                let code = if write { exit::WRMSR } else { exit::RDMSR };
                let image = Image::new(code, rip, len).with(0, &msr.to_le_bytes());
                Ok(if write { image.with(8, &value.to_le_bytes()) } else { image })
            }
            Intercept::Task { selector, how, error, next } => {
                let len = next.wrapping_sub(rip) as u32;
                let reason = match how {
                    TaskSwitch::Call => 0,
                    TaskSwitch::Iret => 1,
                    TaskSwitch::Jump => 2,
                    TaskSwitch::Interrupt => 3,
                };
                // An interrupt or exception, not INT n.
                let outside = reason == 3 && len == 0;
                Ok(Image::new(exit::TASK_SWITCH, rip, len)
                    .with(0, &selector.to_le_bytes())
                    .with(4, &i32::from(outside).to_le_bytes())
                    .with(8, &error.unwrap_or(0).to_le_bytes())
                    .with(12, &i32::from(error.is_some()).to_le_bytes())
                    .with(16, &i32::to_le_bytes(reason))
                    .with(24, &paging.bytes()))
            }
            Intercept::Breakpoint(len) => Ok(Image::new(exit::BPT, rip, 0).with(0, &i32::from(len).to_le_bytes())),
            Intercept::Fetch { gpa } => {
                const EPT_VIOLATION: u32 = 48;
                let image = Image::new(exit::VMX, rip, 0).with(0, &[0; 24]);
                let image = image.with(4, &EPT_VIOLATION.to_le_bytes()).with(8, &4u64.to_le_bytes());
                self.rules.note(&format!("an instruction fetch from {gpa:#x}, where nothing is mapped"));
                Ok(image)
            }
            Intercept::Memory { gpa, linear, write } => {
                if self.memory.lock().unwrap().readable(gpa) {
                    let what = if write { "write to" } else { "read of" };
                    self.rules.note(&format!("a {what} {gpa:#x}, which is mapped without that right: EFAULT"));
                    return Err(libc::EFAULT);
                }
                let bytes = self.fetch(&regs, &paging);
                let d32 = regs.cs.access & cpu::Segment::DB != 0;
                let decoded = vie::decode(&bytes, paging.cpu_mode, d32);
                self.rules.emulated(&bytes, decoded.unwrap_or(0));
                Ok(Image::new(exit::INST_EMUL, rip, decoded.unwrap_or(0) as u32)
                    .with(0, &gpa.to_le_bytes())
                    .with(8, &linear.to_le_bytes())
                    .with(16, &regs.cs.base.to_le_bytes())
                    .with(24, &i32::from(d32).to_le_bytes())
                    .with(28, &[0; 4])
                    .with(32, &paging.bytes())
                    .with(56, &vie::image(&bytes, decoded, self.version.registers())))
            }
        }
    }

    /// The bytes at RIP, as far as they can be read.
    fn fetch(&self, regs: &cpu::Regs, paging: &Paging) -> Vec<u8> {
        let cut = if paging.cpu_mode == crate::regs::LONG { u64::MAX } else { 0xffff_ffff };
        let base = if paging.cpu_mode == crate::regs::LONG { 0 } else { regs.cs.base };
        let start = base.wrapping_add(regs.rip) & cut;
        let want = Want { write: false, fetch: true, user: false, mark: false };
        let mut out = Vec::with_capacity(15);
        while out.len() < 15 {
            let lin = start.wrapping_add(out.len() as u64) & cut;
            let Ok(gpa) = translate(&self.chips, paging, lin, want) else { break };
            if !self.chips.is_memory(gpa) {
                break;
            }
            let room = (emu::PAGE_SIZE - gpa % emu::PAGE_SIZE).min(15 - out.len() as u64) as usize;
            let mut buf = [0; 15];
            self.chips.read_memory(gpa, &mut buf[..room]);
            out.extend_from_slice(&buf[..room]);
        }
        out
    }
}
