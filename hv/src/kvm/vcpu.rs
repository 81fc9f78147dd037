//! A processor: KVM_RUN, what it ends for, and what its thread looks at before.
//!
//! The kernel completes an instruction that came out as an exit only when it is entered again. So before a processor
//! is left to others, it is entered once more with `immediate_exit` set.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, ensure};
use cpu::{Fault, Feature, Model, Regs};
use emu::{Clock, CpuBus, Machine};
use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED, kvm_mp_state,
};
use kvm_ioctls::Kvm;
use serde_json::Value;

use super::emulate::Emulator;
use super::page::{Page, Stop};
use super::seat::{self, Seat};
use super::state::{PowerOn, Saved};
use super::tsc::Tsc;
use super::{Shared, model};
use crate::{Debug, Exit, Lacking, Vcpu};

/// Parts of [`Regs`] that KVM has not: the page directory pointers outside of PAE paging, what the x87 left out of its
/// image, pins, and traps between two instructions. Around them what depends on the processor and the kernel.
const LACKS: &[&str] = &["xcr0", "pdpte", "fcs_fds", "ferr_ignne", "debug_traps", "tsc"];

const IF: u64 = 1 << 9;

/// A processor of KVM.
pub(super) struct KvmVcpu {
    pub(super) index: u32,
    pub(super) page: Page,
    pub(super) shared: Arc<Shared>,
    pub(super) model: Arc<Model>,
    pub(super) power_on: PowerOn,
    pub(super) tsc: Tsc,
    clock: Arc<Clock>,
    bus: CpuBus,
    /// The deadline of its local APIC's timer in ticks of its TSC, while it is left to others; 0 for none.
    pub(super) deadline: u64,
    /// The last exit is for an instruction that the kernel has not completed.
    incomplete: bool,
    /// Made when it is needed.
    emulator: Option<Box<Emulator>>,
    /// It found itself dead when all came out to look.
    dead: bool,
    /// What a debugger wants.
    pub(super) debug: Option<Debug>,
}

impl KvmVcpu {
    /// All processors, at power-on.
    pub(super) fn all(
        kvm: &Kvm,
        shared: &Arc<Shared>,
        machine: &Arc<Machine>,
        model: &Model,
    ) -> anyhow::Result<Vec<Box<dyn Vcpu>>> {
        let len = kvm.get_vcpu_mmap_size().context("KVM_GET_VCPU_MMAP_SIZE")?;
        let mut vcpus = Vec::<Box<dyn Vcpu>>::new();
        let mut model = model.clone();
        for index in 0..shared.seats.len() as u32 {
            let fd = shared.fd.create_vcpu(index.into());
            let fd = fd.with_context(|| format!("KVM makes no processor {index} (KVM_CREATE_VCPU)"))?;
            let khz = fd.get_tsc_khz().context("KVM_GET_TSC_KHZ")?;
            model.tsc_hz = u64::from(khz) * 1000;
            shared.tsc_hz.store(model.tsc_hz, Ordering::Relaxed);
            fd.set_cpuid2(&model::cpuid(&model, index))
                .context("KVM refuses the processor's model (KVM_SET_CPUID2)")?;
            let tsc = Tsc::of(&fd, machine.clock().clone(), khz);
            let mut vcpu = KvmVcpu {
                index,
                power_on: PowerOn::of(&fd)?,
                page: Page::new(fd, len),
                shared: shared.clone(),
                model: Arc::new(model.clone()),
                tsc,
                clock: machine.clock().clone(),
                bus: CpuBus::new(machine.space.clone()),
                deadline: 0,
                incomplete: false,
                emulator: None,
                dead: false,
                debug: None,
            };
            vcpu.power_on.regs = vcpu.read()?;
            vcpu.power_up()?;
            vcpus.push(Box::new(vcpu));
        }
        Ok(vcpus)
    }

    fn seat(&self) -> &Seat {
        &self.shared.seats[self.index as usize]
    }

    /// Does what the bits ask for. `Some`: the run is over.
    #[cold]
    fn attend(&mut self, bits: u32) -> anyhow::Result<Option<Exit>> {
        if bits & seat::FAILED != 0 {
            let why = self.shared.failure().unwrap_or_default();
            return Ok(Some(Exit::Failed(why)));
        }
        if bits & (seat::KICK | seat::GATHER) != 0
            && self.incomplete
            && let Some(exit) = self.complete()
        {
            return Ok(Some(exit));
        }
        if bits & seat::KICK != 0 {
            self.seat().calm(seat::KICK);
            self.hold_deadline()?;
            return Ok(Some(Exit::Kicked));
        }
        if bits & seat::GATHER != 0 {
            if self.lost()? {
                self.dead = true;
                return Ok(Some(Exit::Halted));
            }
            self.shared.scatter(self.index);
        }
        if bits & seat::LOOK != 0 {
            self.seat().calm(seat::LOOK);
            self.shared.found(self.index, self.lost()?);
        }
        if bits & seat::NMI != 0 {
            self.seat().calm(seat::NMI);
            if self.lint1_is_nmi()? {
                self.page.fd.nmi().context("KVM_NMI")?;
            }
        }
        if bits & seat::INTR != 0 && self.page.ready() {
            self.take_external()?;
        }
        Ok(None)
    }

    /// Acknowledges an external interrupt and has the processor take it. It is made an event under way, which
    /// [`Vcpu::save`] sees; of what KVM_INTERRUPT queues nobody can find out whether it was delivered.
    fn take_external(&mut self) -> anyhow::Result<()> {
        let mut events = self.events()?;
        let busy = events.interrupt.injected | events.exception.injected | events.nmi.injected;
        // `ready` was said before the kernel completed the instruction, or before the last one was taken.
        if self.incomplete || busy != 0 {
            return Ok(());
        }
        let Some(ack) = self.shared.ack.get() else { return Ok(()) };
        (events.interrupt.injected, events.interrupt.nr, events.interrupt.soft) = (1, ack(), 0);
        self.set_events(&events)?;
        if self.mp_state()? == KVM_MP_STATE_HALTED {
            self.set_mp_state(KVM_MP_STATE_RUNNABLE)?;
        }
        Ok(())
    }

    /// Lets the kernel complete an instruction, and go no further. `Some`: that failed.
    fn complete(&mut self) -> Option<Exit> {
        while self.incomplete {
            self.page.set_immediate_exit(true);
            let stop = self.page.enter();
            if let Some(exit) = self.serve(stop) {
                return Some(exit);
            }
        }
        None
    }

    /// Serves an exit. `Some`: the run is over.
    #[inline]
    fn serve(&mut self, stop: Stop) -> Option<Exit> {
        self.incomplete = false;
        self.count(&stop);
        match stop {
            Stop::Io { port, width, count, input } => {
                self.incomplete = true;
                self.port(port, width, count as usize, input);
            }
            Stop::Mmio { gpa, width, write, value } => {
                self.incomplete = true;
                if write {
                    self.bus.write(gpa, width, value);
                } else {
                    let value = self.bus.read(gpa, width);
                    self.page.answer_mmio(value);
                }
            }
            Stop::Msr { index, write } => {
                self.incomplete = true;
                // What the model has and KVM does not know holds nothing.
                let known = self.model.has_msr(index) || self.model.ignore_unknown_msrs;
                self.page.answer_msr(known.then_some(write.unwrap_or(0)));
            }
            Stop::Eoi(vector) => {
                if let Some(eoi) = self.shared.eoi.get() {
                    eoi(vector);
                }
            }
            Stop::Interrupted => self.page.set_immediate_exit(false),
            Stop::Window => {}
            Stop::Halt => {
                self.dead = false;
                return Some(Exit::Halted);
            }
            Stop::Emulate => return self.emulate().unwrap_or_else(|e| Some(Exit::Failed(format!("kvm: {e:#}")))),
            Stop::Debug { exception, pc, dr6 } => {
                let done = self.debug_exit(exception, pc, dr6);
                return done.unwrap_or_else(|e| Some(Exit::Failed(format!("kvm: {e:#}"))));
            }
            Stop::Shutdown => return Some(Exit::TripleFault(self.report())),
            Stop::Failed(why) => return Some(Exit::Failed(format!("kvm: {why}\n{}", self.report()))),
        }
        None
    }

    #[inline]
    fn count(&self, stop: &Stop) {
        let counters = &self.seat().counters;
        counters.all.add(1);
        match stop {
            Stop::Io { .. } => counters.ports.add(1),
            Stop::Mmio { .. } | Stop::Emulate => counters.memory.add(1),
            Stop::Window => counters.windows.add(1),
            _ => {}
        }
    }

    #[inline]
    fn port(&mut self, port: u16, width: u8, count: usize, input: bool) {
        let data = self.page.data(count * usize::from(width));
        match (input, count) {
            (false, 1) => {
                let mut value = [0; 4];
                value[..data.len()].copy_from_slice(data);
                self.bus.pio_write(port, width, u32::from_le_bytes(value));
            }
            (true, 1) => {
                let value = self.bus.pio_read(port, width).to_le_bytes();
                data.copy_from_slice(&value[..data.len()]);
            }
            (false, _) => self.bus.pio_write_many(port, width, data),
            (true, _) => self.bus.pio_read_many(port, width, data),
        }
    }

    /// Executes an instruction in the kernel's place.
    #[cold]
    fn emulate(&mut self) -> anyhow::Result<Option<Exit>> {
        let old = self.read()?;
        let emulator = self.emulator.get_or_insert_with(|| {
            let bus = CpuBus::new(self.bus.space().clone());
            Box::new(Emulator::new(&self.model, bus, &self.clock))
        });
        match emulator.step(&old) {
            Ok(new) => {
                self.write(&old, &new)?;
                let step = self.debug.as_ref().is_some_and(|debug| debug.wants.step);
                Ok(step.then_some(Exit::Debug(cpu::Stop::Step)))
            }
            Err(report) => Ok(Some(Exit::TripleFault(report))),
        }
    }

    /// Whether nothing can wake it but what others do.
    fn lost(&self) -> anyhow::Result<bool> {
        Ok(match self.mp_state()? {
            KVM_MP_STATE_HALTED => {
                let events = self.events()?;
                let nmi = events.nmi.pending != 0 || events.nmi.injected != 0;
                !nmi && self.page.fd.get_regs().context("KVM_GET_REGS")?.rflags & IF == 0
            }
            KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED => true,
            _ => false,
        })
    }

    pub(super) fn mp_state(&self) -> anyhow::Result<u32> {
        Ok(self.page.fd.get_mp_state().context("KVM_GET_MP_STATE")?.mp_state)
    }

    pub(super) fn set_mp_state(&self, mp_state: u32) -> anyhow::Result<()> {
        self.page.fd.set_mp_state(kvm_mp_state { mp_state }).context("KVM_SET_MP_STATE")
    }

    /// Registers, the last accesses to devices, and the code around RIP.
    fn report(&self) -> String {
        let regs = match self.read() {
            Ok(regs) => regs,
            Err(e) => return format!("the registers cannot be had: {e:#}"),
        };
        let mut out = format!("processor {}\n{}", self.index, regs.report());
        out.push_str(&cpu::last_exits(self.bus.exits()));
        let (bits, rip) = (regs.code_bits(), regs.rip);
        out.push_str(&cpu::code(bits, rip, |ip, len| self.peek(regs.cs.base.wrapping_add(ip), len)));
        if regs.rip == 0xfff0 && regs.cs.base == 0xffff_0000 {
            let _ = writeln!(out, "this is the state after an INIT: AMD's processors forget what was before");
        }
        out
    }

    /// As many of the bytes at a linear address as are mapped.
    fn peek(&self, linear: u64, len: u64) -> Vec<u8> {
        let byte = |at: u64| {
            let to = self.page.fd.translate_gva(at).ok().filter(|t| t.valid != 0)?;
            let (ram, _) = self.bus.space().map().ram_for_read(to.physical_address)?;
            let mut byte = [0];
            self.bus.ram().read(ram, &mut byte);
            Some(byte[0])
        };
        (0..len).map_while(|n| byte(linear.wrapping_add(n))).collect()
    }

    fn failed(&self, doing: &str, result: anyhow::Result<()>) {
        if let Err(e) = result {
            self.shared.fail(format!("kvm: {doing} of processor {}: {e:#}", self.index));
        }
    }

    fn go(&mut self) -> anyhow::Result<Exit> {
        self.tsc.catch_up(&self.page.fd, &self.shared.tsc).context("the TSC's offset")?;
        self.release_deadline()?;
        self.dead = false;
        loop {
            let mut bits = self.seat().go_in();
            if bits != 0 {
                self.seat().out();
                if let Some(exit) = self.attend(bits)? {
                    return Ok(exit);
                }
                bits = self.seat().go_in();
                // Only INTR may have to wait.
                if bits & !seat::INTR != 0 {
                    self.seat().out();
                    continue;
                }
            }
            self.page.want_window(bits != 0);
            let stop = self.page.enter();
            self.seat().out();
            if let Some(exit) = self.serve(stop) {
                return Ok(exit);
            }
        }
    }
}

impl Drop for KvmVcpu {
    fn drop(&mut self) {
        self.seat().leave();
    }
}

impl Vcpu for KvmVcpu {
    fn index(&self) -> u32 {
        self.index
    }

    fn run(&mut self, _: u64) -> Exit {
        self.seat().sit(self.page.immediate_exit());
        let exit = self.go().unwrap_or_else(|e| Exit::Failed(format!("kvm: processor {}: {e:#}", self.index)));
        self.seat().out();
        exit
    }

    fn dead(&self) -> bool {
        self.dead
    }

    fn lacks(&self) -> &'static [&'static str] {
        let (xsave, tsc) = (self.model.has(Feature::Xsave), self.tsc.is_set());
        &LACKS[usize::from(xsave)..LACKS.len() - usize::from(tsc)]
    }

    fn regs(&self) -> anyhow::Result<Regs> {
        self.read()
    }

    fn set_regs(&mut self, regs: &Regs) -> anyhow::Result<()> {
        let old = self.read()?;
        Lacking::check("kvm", self.lacks(), &old, regs)?;
        self.write(&old, regs)
    }

    fn reset(&mut self) {
        let done = self.power_up();
        self.failed("reset", done);
    }

    fn inject(&mut self, exception: Fault) -> anyhow::Result<()> {
        let regs = self.read()?;
        ensure!(regs.exception.is_none(), "an exception waits");
        self.write(&regs, &Regs { exception: Some(exception), halted: false, ..regs.clone() })
    }

    fn nmi(&mut self) {
        let done = self.page.fd.nmi().context("KVM_NMI");
        self.failed("NMI", done);
    }

    fn init(&mut self) {
        let done = self.init_state();
        self.failed("INIT", done);
    }

    fn sipi(&mut self, vector: u8) {
        let done = self.start_at(vector);
        self.failed("SIPI", done);
    }

    fn debug(&mut self, debug: Option<&Debug>) -> anyhow::Result<()> {
        self.set_debug(debug)
    }

    fn icount(&self) -> Option<u64> {
        None
    }

    fn save(&self) -> anyhow::Result<Value> {
        Ok(serde_json::to_value(self.saved()?)?)
    }

    fn load(&mut self, state: Value) -> anyhow::Result<()> {
        let saved: Saved = serde_json::from_value(state)?;
        self.restore(&saved)
    }
}
