//! The software CPU as a back end: it works everywhere, brings only the local APICs, and can drive the clock.
//!
//! All processors run in turn on one thread and share one code cache. Per-processor state is `Send`, so that threads
//! can follow.

use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use cpu::{ApicBus, Cpu, Engine, ErrorPins, Fault, Lapic, LapicState, Regs};
use emu::{CpuBus, IrqSink, Machine, MsiSink, Timers};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::stats::{self, Counter};
use crate::{Ack, Caps, Debug, DebugCaps, Exit, Hypervisor, Vcpu, Vm, VmConfig};

/// The software CPU.
pub struct Soft;

impl Hypervisor for Soft {
    fn name(&self) -> &'static str {
        "soft"
    }

    fn available(&self) -> Result<String, String> {
        Ok("works everywhere".to_owned())
    }

    fn counts(&self) -> bool {
        true
    }

    fn create(&self, machine: &Arc<Machine>, config: &VmConfig) -> anyhow::Result<Arc<dyn Vm>> {
        let bus = ApicBus::new();
        let model = Arc::new(cpu::Model { cpus: config.cpus, ..config.model.clone() });
        let engine = (!config.plain).then(|| Arc::new(Mutex::new(Engine::new())));
        let mut pins = None;
        let counters: Vec<_> = (0..config.cpus).map(|_| Arc::new(Counters::default())).collect();
        let vcpus = counters
            .iter()
            .zip(0..)
            .map(|(counters, index)| {
                let lapic = Lapic::new(index, &bus, &machine.timers, model.tsc_hz);
                let cpu_bus = CpuBus::new(machine.space.clone());
                let cpu = Cpu::new(model.clone(), cpu_bus, machine.clock().clone(), lapic);
                pins.get_or_insert_with(|| cpu.error_pins().clone());
                let (engine, timers, counters) = (engine.clone(), machine.timers.clone(), counters.clone());
                let vcpu = SoftVcpu { index, cpu, engine, timers, counters };
                Box::new(vcpu) as Box<dyn Vcpu>
            })
            .collect();
        let error_pins = pins.unwrap_or_default();
        let (vcpus, machine) = (Mutex::new(vcpus), Arc::downgrade(machine));
        Ok(Arc::new(SoftVm { bus, error_pins, vcpus, counters, tsc_hz: model.tsc_hz, machine }))
    }
}

/// What a processor has done.
#[derive(Default)]
struct Counters {
    nanoseconds: Counter,
    instructions: Counter,
    halts: Counter,
}

/// INTR and NMI of processor 0.
struct Pins(Arc<Lapic>);

impl IrqSink for Pins {
    fn set_irq(&self, line: u32, level: bool) {
        if line == 0 { self.0.set_lint0(level) } else { self.0.set_lint1(level) }
    }
}

struct SoftVm {
    bus: Arc<ApicBus>,
    /// FERR# and IGNNE# of processor 0; the others' are not connected.
    error_pins: Arc<ErrorPins>,
    vcpus: Mutex<Vec<Box<dyn Vcpu>>>,
    counters: Vec<Arc<Counters>>,
    tsc_hz: u64,
    machine: Weak<Machine>,
}

impl Vm for SoftVm {
    fn caps(&self) -> Caps {
        let debug = DebugCaps { places: None, reads: true, int3: false, watches: true };
        Caps { lapic: true, a20: true, one_thread: true, instruction_clock: true, debug }
    }

    fn take_vcpus(&self) -> Vec<Box<dyn Vcpu>> {
        std::mem::take(&mut self.vcpus.lock().unwrap())
    }

    fn msi(&self) -> Arc<dyn MsiSink> {
        self.bus.clone()
    }

    fn pins(&self) -> Arc<dyn IrqSink> {
        Arc::new(Pins(self.bus.lapics()[0].clone()))
    }

    fn on_ack(&self, ack: Ack) {
        self.bus.lapics()[0].on_ack(ack);
    }

    fn on_eoi(&self, eoi: Box<dyn Fn(u8) + Send + Sync>) {
        self.bus.on_eoi(eoi);
    }

    fn on_ferr(&self, ferr: Box<dyn Fn() + Send + Sync>) {
        self.error_pins.on_ferr(ferr);
    }

    fn ignne(&self) {
        self.error_pins.ignore();
    }

    fn set_a20(&self, open: bool) {
        self.bus.set_a20(open);
    }

    fn stats(&self, vcpu: u32) -> anyhow::Result<Vec<(String, u64)>> {
        let (Some(c), Some(machine)) = (self.counters.get(vcpu as usize), self.machine.upgrade()) else {
            return Ok(Vec::new());
        };
        let counters = [
            ("instructions executed", c.instructions.get()),
            (stats::HALTS, c.halts.get()),
            (stats::RUNTIME, stats::ticks(c.nanoseconds.get(), self.tsc_hz)),
        ];
        Ok(stats::named(vcpu, &counters, machine.space.ram()))
    }

    fn kick(&self, vcpu: u32) {
        if let Some(lapic) = self.bus.lapics().get(vcpu as usize) {
            lapic.kick();
        }
    }

    fn on_wake(&self, wake: Box<dyn Fn() + Send + Sync>) {
        let wake = Arc::new(wake);
        for lapic in self.bus.lapics() {
            let wake = wake.clone();
            lapic.on_wake(move || wake());
        }
    }
}

struct SoftVcpu {
    index: u32,
    cpu: Cpu,
    engine: Option<Arc<Mutex<Engine>>>,
    timers: Arc<Timers>,
    counters: Arc<Counters>,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    regs: Regs,
    lapic: LapicState,
    deadline: Option<u64>,
}

impl Vcpu for SoftVcpu {
    fn index(&self) -> u32 {
        self.index
    }

    fn run(&mut self, insns: u64) -> Exit {
        let (began, before) = (Instant::now(), self.cpu.icount());
        let limit = before.saturating_add(insns);
        let exit = match &self.engine {
            Some(engine) => engine.lock().unwrap().run(&mut self.cpu, limit, &self.timers),
            None => self.cpu.run_plain(limit, &self.timers),
        };
        self.counters.nanoseconds.add(began.elapsed().as_nanos() as u64);
        self.counters.instructions.add(self.cpu.icount() - before);
        self.counters.halts.add((exit == cpu::Exit::Halted).into());
        match exit {
            cpu::Exit::Limit => Exit::Slice,
            cpu::Exit::Kicked => self.cpu.take_stop().map_or(Exit::Kicked, Exit::Debug),
            cpu::Exit::Halted => Exit::Halted,
            cpu::Exit::Shutdown => Exit::TripleFault(self.cpu.report()),
        }
    }

    fn dead(&self) -> bool {
        self.cpu.dead()
    }

    fn regs(&self) -> anyhow::Result<Regs> {
        Ok(self.cpu.regs())
    }

    fn set_regs(&mut self, regs: &Regs) -> anyhow::Result<()> {
        self.cpu.set_regs(regs);
        Ok(())
    }

    fn reset(&mut self) {
        self.cpu.reset();
        self.cpu.lapic().reset();
    }

    fn inject(&mut self, exception: Fault) -> anyhow::Result<()> {
        self.cpu.set_regs(&Regs { exception: Some(exception), halted: false, ..self.cpu.regs() });
        Ok(())
    }

    fn nmi(&mut self) {
        self.cpu.lapic().nmi();
    }

    fn init(&mut self) {
        self.cpu.lapic().request_init();
    }

    fn sipi(&mut self, vector: u8) {
        self.cpu.lapic().request_sipi(vector);
    }

    fn debug(&mut self, debug: Option<&Debug>) -> anyhow::Result<()> {
        self.cpu.debug(debug.map(|debug| &debug.wants));
        Ok(())
    }

    fn icount(&self) -> Option<u64> {
        Some(self.cpu.icount())
    }

    fn save(&self) -> anyhow::Result<Value> {
        let (lapic, deadline) = self.cpu.lapic().save();
        let saved = Saved { regs: self.cpu.regs(), lapic, deadline };
        Ok(serde_json::to_value(saved)?)
    }

    fn load(&mut self, state: Value) -> anyhow::Result<()> {
        let saved: Saved = serde_json::from_value(state)?;
        self.cpu.set_regs(&saved.regs);
        self.cpu.lapic().load(saved.lapic, saved.deadline);
        Ok(())
    }
}
