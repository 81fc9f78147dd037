//! A processor of vmm(4): its run loop, and what others want of it.
//!
//! `VM_RUN` returns for a kick because the processor is held (`VM_SUSPEND_CPU`), which does not depend on when it
//! comes: one that arrives while the processor is outside makes the next run return at once. Orders are left in
//! [`Mailbox`], and holding and letting go happen under its lock, so that an order and its hold are one.
//!
//! A processor that waits for a start-up IPI is held too. Its thread looks into the kernel now and then: the machine
//! can only be suspended when all active processors are in `VM_RUN`, and one that sat outside would keep the others
//! there.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, ensure};
use cpu::{Executor, Fault, Regs, Stop};
use emu::{CpuBus, Machine, Ram, SystemEvent};
use serde_json::Value;
use vmmapi_sys::exit::{IPI_INIT, IPI_STARTUP, Inout};
use vmmapi_sys::{Cap, CpuSet, Exit as Why, Reg, RunBuffer, Suspend, Vm, VmExit};

use super::chips::{KernelChips, KernelPorts};
use super::memory::GuestMemory;
use super::{BACKEND, Made, msr, state};
use crate::{Debug, Exit, Lacking, Vcpu};

/// How often a held processor looks into the kernel.
const LOOK: Duration = Duration::from_millis(10);

thread_local! {
    static CURRENT: Cell<Option<u32>> = const { Cell::new(None) };
}

/// The processor whose thread this is.
pub(super) fn current() -> Option<u32> {
    CURRENT.get()
}

/// What others want of a processor.
#[derive(Default)]
struct Orders {
    kick: bool,
    /// It waits for a start-up IPI.
    waiting: bool,
    /// It got one, and goes on here.
    started: Option<u64>,
    /// `VM_SUSPEND_CPU` is in force.
    held: bool,
    /// The kernel counts it among the processors that run.
    active: bool,
    /// Its own thread runs it.
    running: bool,
    /// The machine's suspension, of which another thread was told in its place.
    told: Option<i32>,
}

/// Where orders for a processor are left.
#[derive(Default)]
pub(super) struct Mailbox {
    orders: Mutex<Orders>,
    news: Condvar,
    /// There are orders.
    attention: AtomicBool,
    /// Where it goes on, as far as another thread may have to know.
    next_rip: AtomicU64,
}

/// What the processors of a machine have in common.
pub(super) struct Shared {
    pub(super) vm: Arc<Vm>,
    pub(super) mail: Vec<Mailbox>,
    pub(super) machine: std::sync::Weak<Machine>,
    pub(super) ram: Arc<Ram>,
    pub(super) memory: GuestMemory,
    /// Start-up IPIs are exits of the sender.
    pub(super) ipi_exits: bool,
    pub(super) unrestricted: bool,
    pub(super) intel: bool,
    /// MSRs that neither the kernel nor bhyve knows read as 0, and ignore writes.
    pub(super) ignore_msrs: bool,
    /// The processor that touched a port last: what the BIOS is called by.
    pub(super) caller: AtomicU32,
    /// The machine's end has been told.
    pub(super) ended: AtomicBool,
    /// It has been reset before.
    pub(super) started: AtomicBool,
    pub(super) ports: Arc<KernelPorts>,
    pub(super) chips: Arc<KernelChips>,
    pub(super) _made: Made,
}

impl Shared {
    fn orders(&self, cpu: u32) -> MutexGuard<'_, Orders> {
        self.mail[cpu as usize].orders.lock().unwrap()
    }

    /// Leaves an order, and gets the processor out of `VM_RUN` for it.
    fn post(&self, cpu: u32, order: impl FnOnce(&mut Orders)) {
        let Some(mail) = self.mail.get(cpu as usize) else { return };
        let mut orders = mail.orders.lock().unwrap();
        order(&mut orders);
        mail.attention.store(true, Ordering::Release);
        if orders.active && !orders.held {
            orders.held = self.vm.suspend_cpu(Some(cpu)).is_ok();
        }
        mail.news.notify_all();
    }

    /// As [`crate::Vm::kick`].
    pub(super) fn kick(self: &Arc<Self>, cpu: u32) {
        let mut again = false;
        self.post(cpu, |o| again = std::mem::replace(&mut o.kick, true));
        // It may wait in the kernel, after a triple fault, for one that has been paused.
        if again && self.vm.suspended_cpus().is_ok_and(|told| !told.is_empty()) {
            self.gather();
        }
    }

    /// INIT and start-up IPIs. The processors are where they belong before the sender goes on.
    fn ipi(&self, mode: u32, vector: u8, cpus: &CpuSet) -> Result<(), String> {
        let mut here = cpus.iter().filter(|cpu| (*cpu as usize) < self.mail.len());
        match mode {
            IPI_INIT => here.for_each(|cpu| self.init(cpu)),
            IPI_STARTUP => {
                here.try_for_each(|cpu| self.sipi(cpu, vector)).map_err(|e| format!("a start-up IPI: {e}"))?
            }
            _ => return Err(format!("an IPI of delivery mode {mode:#x}")),
        }
        Ok(())
    }

    fn init(&self, cpu: u32) {
        self.post(cpu, |o| o.waiting = true);
    }

    fn sipi(&self, cpu: u32, vector: u8) -> std::io::Result<()> {
        let mail = &self.mail[cpu as usize];
        let mut orders = mail.orders.lock().unwrap();
        if !orders.waiting {
            return Ok(());
        }
        let regs = state::start_up(vector);
        state::set(&self.vm, cpu, &regs)?;
        (orders.waiting, orders.started) = (false, Some(regs.rip));
        // For a kick it stays out.
        if orders.held && !orders.kick {
            self.vm.resume_cpu(Some(cpu))?;
            orders.held = false;
        }
        mail.attention.store(true, Ordering::Release);
        mail.news.notify_all();
        Ok(())
    }

    /// Brings a processor to its power-on state, the machine having been made or `VM_REINIT`.
    pub(super) fn power_on(&self, cpu: u32) -> anyhow::Result<()> {
        let vm = &self.vm;
        vm.set_capability(cpu, Cap::HaltExit, true).context("the processor does not tell the kernel of HLT")?;
        // It would start in that mode, which no BIOS knows, and could not leave it.
        vm.set_x2apic(cpu, false)?;
        // Some hosts cannot.
        let _ = vm.set_capability(cpu, Cap::EnableInvpcid, true);
        if self.unrestricted {
            vm.set_capability(cpu, Cap::UnrestrictedGuest, true).context("unrestricted guest")?;
        }
        if self.ipi_exits {
            vm.set_capability(cpu, Cap::IpiExit, true).context("exits for start-up IPIs")?;
        }
        state::set(vm, cpu, &state::reset()).context("the registers at reset")?;
        self.mail[cpu as usize].next_rip.store(state::reset().rip, Ordering::Relaxed);
        let mut orders = self.orders(cpu);
        *orders = Orders { kick: orders.kick, waiting: cpu > 0, ..Orders::default() };
        // Where start-up IPIs are no exits, the first one activates a processor.
        if cpu == 0 || self.ipi_exits {
            vm.activate_cpu(cpu).context("VM_ACTIVATE_CPU")?;
            orders.active = true;
        }
        if cpu > 0 && orders.active {
            vm.suspend_cpu(Some(cpu)).context("VM_SUSPEND_CPU")?;
            orders.held = true;
        }
        Ok(())
    }

    /// A reset of the machine, none of whose processors runs.
    pub(super) fn reset(self: &Arc<Self>) -> anyhow::Result<()> {
        let Some(machine) = self.machine.upgrade() else { return Ok(()) };
        let again = self.started.swap(true, Ordering::SeqCst);
        if again {
            self.vm.suspend(Suspend::Reset)?;
            for entered in self.gather() {
                let _ = entered.join();
            }
            self.vm.reinit().context("VM_REINIT")?;
            self.chips.restore();
            self.ports.reset();
        }
        self.memory.restart(&machine.space.map(), again).map_err(anyhow::Error::msg)?;
        self.ended.store(false, Ordering::SeqCst);
        (0..self.mail.len() as u32).try_for_each(|cpu| self.power_on(cpu))
    }

    /// Takes the active processors that nobody runs into `VM_RUN`, each on a thread, to be told of the machine's
    /// suspension.
    fn gather(self: &Arc<Self>) -> Vec<JoinHandle<()>> {
        let told = self.vm.suspended_cpus().unwrap_or_default();
        let absent = |cpu: &u32| {
            let mut orders = self.orders(*cpu);
            let absent = orders.active && !orders.running && !told.contains(*cpu);
            orders.running |= absent;
            absent
        };
        let enter = |cpu| {
            let shared = self.clone();
            std::thread::spawn(move || {
                let mut buffer = RunBuffer::default();
                let told = loop {
                    match shared.vm.run(cpu, &mut buffer) {
                        Ok(VmExit { exit: Why::Suspended { how }, .. }) => break Some(how),
                        Err(e) if e.kind() != std::io::ErrorKind::Interrupted => break None,
                        _ => {}
                    }
                };
                let mut orders = shared.orders(cpu);
                (orders.running, orders.told) = (false, told);
                shared.mail[cpu as usize].news.notify_all();
            })
        };
        (0..self.mail.len() as u32).filter(absent).map(enter).collect()
    }

    /// Reads or writes a byte at a port that the kernel answers, by the only way there is: a processor, the one that
    /// called or processor 0, executes IN or OUT in real mode, and then an OUT that comes here. It must not be in
    /// `VM_RUN`. All ones, if that fails.
    pub(super) fn port(&self, port: u16, value: Option<u8>) -> u8 {
        let cpu = current().unwrap_or_else(|| self.caller.load(Ordering::Relaxed));
        self.try_port(cpu, port, value).unwrap_or_else(|e| {
            tracing::debug!("port {port:#x} of the kernel: {e}");
            0xff
        })
    }

    fn try_port(&self, cpu: u32, port: u16, value: Option<u8>) -> std::io::Result<u8> {
        /// Where the code is put for the moment: all other processors stand still.
        const PLACE: u64 = 0x1000;
        const PORT: [Reg; 7] = [Reg::Rax, Reg::Rdx, Reg::Rflags, Reg::Cr0, Reg::Efer, Reg::Rip, Reg::IntrShadow];
        let place = self.memory.conventional(PLACE);
        let code = [if value.is_some() { 0xee } else { 0xec }, 0xe6, 0x80];
        let mut under = [0; 3];
        self.ram.read(place, &mut under);
        let mut saved = [0; PORT.len()];
        self.vm.registers(cpu, &PORT, &mut saved)?;
        // The shadow of STI has ended.
        saved[6] = 0;
        saved[5] = self.mail[cpu as usize].next_rip.load(Ordering::Relaxed);
        let segments = [Reg::Cs, Reg::Ss].map(|reg| state::segment(&self.vm, cpu, reg));
        let [cs, ss] = segments;
        let (cs, ss) = (cs?, ss?);
        let real = cpu::Segment { selector: 0, base: 0, limit: 0xffff, access: 0x93 };
        self.ram.write(place, &code);
        let ran = (|| {
            let values = [value.unwrap_or(0).into(), port.into(), 2, 0x20, 0, PLACE, 0];
            self.vm.set_registers(cpu, &PORT, &values)?;
            state::set_segment(&self.vm, cpu, Reg::Cs, &real)?;
            state::set_segment(&self.vm, cpu, Reg::Ss, &real)?;
            let mut orders = self.orders(cpu);
            if std::mem::take(&mut orders.held) {
                self.vm.resume_cpu(Some(cpu))?;
            }
            let mut buffer = RunBuffer::default();
            loop {
                let exit = match self.vm.run(cpu, &mut buffer) {
                    Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                    exit => exit?,
                };
                match exit.exit {
                    Why::Inout(Inout { input: false, port: 0x80, eax, .. }) => return Ok(eax as u8),
                    Why::Bogus | Why::ReqIdle => {}
                    other => return Err(std::io::Error::other(format!("{other:?}"))),
                }
            }
        })();
        self.ram.write(place, &under);
        self.vm.set_registers(cpu, &PORT, &saved)?;
        state::set_segment(&self.vm, cpu, Reg::Cs, &cs)?;
        state::set_segment(&self.vm, cpu, Reg::Ss, &ss)?;
        ran
    }
}

/// Whether an exit is for an instruction that has been executed when it has been handled.
fn is_done_here(exit: &Why) -> bool {
    matches!(
        exit,
        Why::Inout(_)
            | Why::InoutStr(_)
            | Why::InstEmul(_)
            | Why::ReadMsr { .. }
            | Why::WriteMsr { .. }
            | Why::TaskSwitch(_)
    )
}

/// What becomes of an exit.
pub(super) enum Then {
    /// On.
    Run,
    /// Out.
    Leave(Exit),
}

/// A processor.
pub(super) struct VmmVcpu {
    pub(super) index: u32,
    pub(super) shared: Arc<Shared>,
    pub(super) bus: CpuBus,
    pub(super) executor: Executor,
    buffer: RunBuffer,
    /// It waits for a start-up IPI.
    waiting: bool,
    /// The machine's suspension that it was told of.
    over: Option<i32>,
    /// What reset could not do.
    broken: Option<String>,
    /// Runs in a row that the kernel refused at one instruction.
    refused: (u64, u32),
    /// Where it goes on.
    pub(super) next: u64,
    /// What a debugger wants.
    debug: Option<Debug>,
}

impl VmmVcpu {
    pub(super) fn new(index: u32, shared: &Arc<Shared>, machine: &Arc<Machine>) -> VmmVcpu {
        let bus = || CpuBus::new(machine.space.clone());
        VmmVcpu {
            index,
            shared: shared.clone(),
            bus: bus(),
            executor: Executor::new(bus(), &machine.timers, machine.clock()),
            buffer: RunBuffer::default(),
            waiting: index > 0,
            over: None,
            broken: None,
            refused: (0, 0),
            next: 0xfff0,
            debug: None,
        }
    }

    fn mail(&self) -> &Mailbox {
        &self.shared.mail[self.index as usize]
    }

    pub(super) fn vm(&self) -> &Vm {
        &self.shared.vm
    }

    /// Follows the orders that there are. `Some`: out. With none, waits for some, but not long.
    fn attend(&mut self, wait: bool) -> std::io::Result<Option<Exit>> {
        let shared = self.shared.clone();
        let mail = &shared.mail[self.index as usize];
        let mut orders = mail.orders.lock().unwrap();
        if wait && !orders.kick && orders.started.is_none() {
            orders = mail.news.wait_timeout(orders, LOOK).unwrap().0;
        }
        mail.attention.store(false, Ordering::Release);
        self.waiting = orders.waiting;
        self.next = orders.started.take().unwrap_or(self.next);
        if !self.waiting && std::mem::take(&mut orders.held) {
            shared.vm.resume_cpu(Some(self.index))?;
        }
        if self.waiting && orders.active && !orders.held {
            shared.vm.suspend_cpu(Some(self.index))?;
            orders.held = true;
        }
        Ok(std::mem::take(&mut orders.kick).then_some(Exit::Kicked))
    }

    /// The loop.
    fn go(&mut self) -> Exit {
        loop {
            if self.mail().attention.load(Ordering::Acquire) {
                match self.attend(false) {
                    Ok(None) => {}
                    Ok(Some(exit)) => return exit,
                    Err(e) => return self.failed(&format!("VM_RESUME_CPU: {e}")),
                }
            }
            if self.waiting && !self.mail().orders.lock().unwrap().active {
                match self.attend(true) {
                    Ok(None) => continue,
                    Ok(Some(exit)) => return exit,
                    Err(e) => return self.failed(&format!("VM_SUSPEND_CPU: {e}")),
                }
            }
            let exit = match self.shared.vm.run(self.index, &mut self.buffer) {
                Ok(exit) => exit,
                Err(e) => match self.refused(&e) {
                    Then::Run => continue,
                    Then::Leave(exit) => return exit,
                },
            };
            self.next = exit.rip.wrapping_add(exit.inst_length.into());
            match self.handle(&exit) {
                // The kernel's trap comes after the next instruction, and this one was done here.
                Then::Run if self.steps() && is_done_here(&exit.exit) => return Exit::Debug(Stop::Step),
                Then::Run => {}
                Then::Leave(exit) => return exit,
            }
        }
    }

    /// `VM_RUN` failed.
    fn refused(&mut self, e: &std::io::Error) -> Then {
        const TRIES: u32 = 2;
        match e.raw_os_error() {
            Some(libc::EINTR) => return Then::Run,
            Some(libc::EFAULT) => {
                // The guest wrote to ROM: the bus knows what becomes of it. What is not that comes again.
                if let Ok(rip) = self.vm().register(self.index, Reg::Rip) {
                    self.refused = if self.refused.0 == rip { (rip, self.refused.1 + 1) } else { (rip, 1) };
                    self.next = rip;
                    if self.refused.1 <= TRIES {
                        return self.execute_here(rip);
                    }
                }
            }
            _ => {}
        }
        if let Some(why) = self.shared.memory.failed() {
            return Then::Leave(self.failed(&why));
        }
        Then::Leave(self.failed(&format!("VM_RUN: {e}")))
    }

    /// Acts on an exit.
    pub(super) fn handle(&mut self, exit: &VmExit) -> Then {
        match &exit.exit {
            Why::Inout(io) if !io.string => return self.port(io),
            Why::InstEmul(emul) => return self.emulate(exit, emul),
            Why::InoutStr(io) => return self.string(exit, io),
            Why::ReadMsr { msr } => return self.read_msr(*msr),
            Why::WriteMsr { msr, .. } => return self.write_msr(*msr),
            // The kernel itself waits for interrupts; if it does not, the guest goes round its idle loop.
            Why::Bogus | Why::ReqIdle | Why::Halt { .. } => {}
            Why::Mtrap | Why::DebugException(_) if self.steps() => return Then::Leave(Exit::Debug(Stop::Step)),
            Why::Mtrap => {}
            Why::Breakpoint { .. } if self.is_debuggers_int3() => {
                let set = self.vm().set_register(self.index, Reg::Rip, self.next);
                return match self.checked(set, "RIP") {
                    Then::Run => Then::Leave(Exit::Debug(Stop::Breakpoint)),
                    leave => leave,
                };
            }
            Why::Pause => std::thread::yield_now(),
            Why::Debug => match self.attend(true) {
                Ok(None) => {}
                Ok(Some(exit)) => return Then::Leave(exit),
                Err(e) => return Then::Leave(self.failed(&format!("VM_RESUME_CPU: {e}"))),
            },
            Why::Ipi { mode, vector, cpus } => {
                if let Err(what) = self.shared.ipi(*mode, *vector, cpus) {
                    return Then::Leave(self.failed(&what));
                }
            }
            Why::SpinupAp { vcpu, rip } => return self.spin_up(*vcpu, *rip),
            Why::Suspended { how } => {
                self.over = Some(*how);
                return Then::Leave(self.end(*how));
            }
            Why::TaskSwitch(switch) => return self.task_switch(exit, switch),
            // The guest's own.
            Why::Breakpoint { inst_length } => {
                let length = self.vm().set_register(self.index, Reg::EntryInstLength, *inst_length as u64);
                let done = length.and_then(|()| self.vm().inject_exception(self.index, 3, None, false));
                return self.checked(done, "INT3");
            }
            Why::DebugException(_) => {
                let done = self.vm().inject_exception(self.index, 1, None, false);
                return self.checked(done, "a debug exception");
            }
            Why::Vmx(v) => {
                let what = format!(
                    "VT-x: status {}, exit reason {}, qualification {:#x}, instruction {} error {}",
                    v.status, v.exit_reason, v.exit_qualification, v.inst_type, v.inst_error
                );
                return Then::Leave(self.failed(&what));
            }
            Why::Svm(v) => {
                let what = format!("SVM: exit code {:#x}, {:#x}, {:#x}", v.exitcode, v.exitinfo1, v.exitinfo2);
                return Then::Leave(self.failed(&what));
            }
            Why::Unknown => {
                let what =
                    format!("vmm(4) gave an exit of the unknown code {}; this kernel is newer than known", exit.code);
                return Then::Leave(self.failed(&what));
            }
            other => {
                let what = format!("vmm(4) gave an exit that it should keep to itself: {other:?}");
                return Then::Leave(self.failed(&what));
            }
        }
        Then::Run
    }

    /// A debugger wants one instruction.
    fn steps(&self) -> bool {
        self.debug.as_ref().is_some_and(|debug| debug.wants.step)
    }

    /// Whether the INT3 at hand is one that a debugger has put there.
    fn is_debuggers_int3(&self) -> bool {
        const VM86: u64 = 1 << 17;
        let Some(debug) = self.debug.as_ref().filter(|debug| !debug.int3s.is_empty()) else { return false };
        let long = self.vm().register(self.index, Reg::Efer).is_ok_and(|efer| efer & 1 << 10 != 0);
        let old = self.vm().register(self.index, Reg::Rflags).is_ok_and(|rflags| rflags & VM86 != 0);
        match state::segment(self.vm(), self.index, Reg::Cs) {
            Ok(cs) if long && !old && cs.access & cpu::Segment::L != 0 => debug.int3s.contains(&self.next),
            Ok(cs) => debug.int3s.contains(&(cs.base.wrapping_add(self.next) & 0xffff_ffff)),
            Err(_) => false,
        }
    }

    /// Has the kernel stop after each instruction, or not: VT-x has a trap for that, and SVM goes by EFLAGS.TF with
    /// interrupts masked.
    fn set_step(&self, on: bool) -> std::io::Result<()> {
        let set = |cap| self.vm().set_capability(self.index, cap, on);
        set(Cap::MtrapExit).or_else(|e| {
            set(Cap::RflagsTf).map_err(|_| e)?;
            let _ = set(Cap::MaskHwintr);
            Ok(())
        })
    }

    /// IN and OUT. Only a 32-bit EAX is known of IN, so bits 63 to 32 of RAX are cleared, as bhyve does.
    fn port(&mut self, io: &Inout) -> Then {
        self.goes_on_at(self.next);
        self.shared.caller.store(self.index, Ordering::Relaxed);
        let mask = u32::MAX >> (32 - 8 * u32::from(io.bytes));
        if !io.input {
            self.bus.pio_write(io.port, io.bytes, io.eax & mask);
            return Then::Run;
        }
        let value = io.eax & !mask | self.bus.pio_read(io.port, io.bytes) & mask;
        let set = self.vm().set_register(self.index, Reg::Rax, value.into());
        self.checked(set, "RAX")
    }

    /// Where it goes on after having reached ports for others.
    pub(super) fn goes_on_at(&self, rip: u64) {
        self.mail().next_rip.store(rip, Ordering::Relaxed);
    }

    pub(super) fn checked(&mut self, done: std::io::Result<()>, what: &str) -> Then {
        match done {
            Ok(()) => Then::Run,
            Err(e) => Then::Leave(self.failed(&format!("{what}: {e}"))),
        }
    }

    fn read_msr(&mut self, number: u32) -> Then {
        let value = msr::read(number, self.shared.intel).or(self.shared.ignore_msrs.then_some(0));
        let Some(value) = value else { return self.unknown_msr("RDMSR", number) };
        let values = [value & 0xffff_ffff, value >> 32];
        let done = self.vm().set_registers(self.index, &[Reg::Rax, Reg::Rdx], &values);
        self.checked(done, "RDMSR")
    }

    fn write_msr(&mut self, number: u32) -> Then {
        if msr::write(number, self.shared.intel) || self.shared.ignore_msrs {
            Then::Run
        } else {
            self.unknown_msr("WRMSR", number)
        }
    }

    fn unknown_msr(&mut self, what: &str, number: u32) -> Then {
        tracing::debug!("{what} of the unknown MSR {number:#x}");
        self.raise(Fault { vector: 13, error: Some(0), cr2: 0 })
    }

    /// Makes the guest take a fault at the instruction that exited.
    pub(super) fn raise(&mut self, fault: Fault) -> Then {
        let done = self.deliver(fault);
        self.checked(done, "VM_INJECT_EXCEPTION")
    }

    fn deliver(&mut self, fault: Fault) -> std::io::Result<()> {
        if fault.vector == 14 {
            self.vm().set_register(self.index, Reg::Cr2, fault.cr2)?;
        }
        self.vm().inject_exception(self.index, fault.vector, fault.error, true)
    }

    /// A start-up IPI, where they are no exits of the sender's: the kernel has found out that the processor is new.
    fn spin_up(&mut self, vcpu: i32, rip: u64) -> Then {
        let Some(cpu) = u32::try_from(vcpu).ok().filter(|n| (*n as usize) < self.shared.mail.len()) else {
            return Then::Leave(self.failed(&format!("vmm(4) starts processor {vcpu}, which there is not")));
        };
        let mut orders = self.shared.orders(cpu);
        // Here, so that the machine is not suspended without it.
        let done = if orders.active { Ok(()) } else { self.shared.vm.activate_cpu(cpu) };
        orders.active = true;
        drop(orders);
        let done = done.and_then(|()| self.shared.sipi(cpu, (rip >> 12) as u8));
        self.checked(done, "a start-up IPI")
    }

    /// The machine was suspended. The first processor to hear of it tells.
    fn end(&mut self, how: i32) -> Exit {
        let first = !self.shared.ended.swap(true, Ordering::SeqCst);
        let request = |event| {
            if first && let Some(machine) = self.shared.machine.upgrade() {
                machine.request(event);
            }
            Exit::Halted
        };
        match Suspend::from_id(how) {
            Some(Suspend::Reset) => request(SystemEvent::Reset),
            Some(Suspend::PowerOff) => request(SystemEvent::PowerOff),
            Some(Suspend::Halt) => Exit::Halted,
            Some(Suspend::TripleFault) if first => Exit::TripleFault(self.report()),
            Some(Suspend::TripleFault) => Exit::Halted,
            Some(Suspend::Destroy) => Exit::Failed("another program destroyed the machine".to_owned()),
            None => Exit::Failed(format!("vmm(4) suspended the machine for the unknown reason {how}")),
        }
    }

    /// The processor cannot go on; with everything that there is to say of it.
    pub(super) fn failed(&mut self, what: &str) -> Exit {
        let report = self.report();
        Exit::Failed(format!("processor {}: {what}\n{report}", self.index))
    }

    pub(super) fn report(&mut self) -> String {
        match state::get(&self.shared.vm, self.index, self.next) {
            Ok(regs) => self.executor.report(&regs),
            Err(e) => format!("its registers cannot be read: {e}"),
        }
    }
}

impl Vcpu for VmmVcpu {
    fn index(&self) -> u32 {
        self.index
    }

    fn run(&mut self, _insns: u64) -> Exit {
        if let Some(why) = self.broken.take().or_else(|| self.shared.memory.failed()) {
            return Exit::Failed(why);
        }
        let shared = self.shared.clone();
        let mail = &shared.mail[self.index as usize];
        let mut orders = mail.orders.lock().unwrap();
        while orders.running {
            orders = mail.news.wait(orders).unwrap();
        }
        self.over = self.over.or(orders.told.take());
        if self.over.is_some() {
            orders.kick = false;
            return Exit::Halted;
        }
        orders.running = true;
        drop(orders);
        CURRENT.set(Some(self.index));
        let exit = self.go();
        CURRENT.set(None);
        self.shared.orders(self.index).running = false;
        self.goes_on_at(self.next);
        exit
    }

    fn dead(&self) -> bool {
        self.over == Some(Suspend::Halt as i32)
    }

    fn lacks(&self) -> &'static [&'static str] {
        state::LACKS
    }

    fn regs(&self) -> anyhow::Result<Regs> {
        Ok(state::get(self.vm(), self.index, self.next)?)
    }

    fn set_regs(&mut self, regs: &Regs) -> anyhow::Result<()> {
        let mut old = self.regs()?;
        old.msrs.efer = regs.msrs.efer;
        Lacking::check(BACKEND, state::LACKS, &old, regs)?;
        state::set(self.vm(), self.index, regs)?;
        self.next = regs.rip;
        self.goes_on_at(self.next);
        Ok(())
    }

    /// Processor 0 resets the machine and with it all processors, so it comes first.
    fn reset(&mut self) {
        (self.over, self.waiting, self.next) = (None, self.index > 0, 0xfff0);
        self.broken = match self.index {
            0 => self.shared.reset().err().map(|e| format!("resetting the machine: {e:#}")),
            _ => None,
        };
        // The kernel has forgotten it.
        if let Some(debug) = self.debug.take()
            && let Err(e) = self.debug(Some(&debug))
        {
            self.broken.get_or_insert(format!("debugging: {e:#}"));
        }
    }

    fn inject(&mut self, exception: Fault) -> anyhow::Result<()> {
        self.deliver(exception)?;
        Ok(())
    }

    fn nmi(&mut self) {
        if let Err(e) = self.vm().inject_nmi(self.index) {
            tracing::warn!("NMI: {e}");
        }
    }

    fn init(&mut self) {
        if self.index > 0 {
            return self.shared.init(self.index);
        }
        let regs = state::reset();
        if let Err(e) = state::set(self.vm(), 0, &regs) {
            self.broken = Some(format!("INIT: {e}"));
        }
        self.next = regs.rip;
    }

    fn sipi(&mut self, vector: u8) {
        if let Err(e) = self.shared.sipi(self.index, vector) {
            self.broken = Some(format!("a start-up IPI: {e}"));
        }
    }

    fn debug(&mut self, debug: Option<&Debug>) -> anyhow::Result<()> {
        let traps = debug.is_some_and(|debug| !debug.int3s.is_empty());
        let step = debug.is_some_and(|debug| debug.wants.step);
        if let Some(debug) = debug {
            let places = debug.wants.breakpoints.len() + debug.wants.watches.len();
            ensure!(places == 0, "vmm(4) gives debuggers no debug registers");
        }
        if traps != self.debug.as_ref().is_some_and(|debug| !debug.int3s.is_empty()) {
            let set = self.vm().set_capability(self.index, Cap::BptExit, traps);
            set.context("the kernel has no exits for INT3 (VM_CAP_BPT_EXIT)")?;
        }
        if step != self.steps() {
            self.set_step(step).context("the kernel cannot stop after one instruction (VM_CAP_MTRAP_EXIT)")?;
        }
        self.debug = debug.cloned();
        Ok(())
    }

    fn icount(&self) -> Option<u64> {
        None
    }

    fn save(&self) -> anyhow::Result<Value> {
        Err(Lacking { backend: BACKEND, fields: state::LACKS.to_vec() }.into())
    }

    fn load(&mut self, _: Value) -> anyhow::Result<()> {
        Err(Lacking { backend: BACKEND, fields: state::LACKS.to_vec() }.into())
    }
}
