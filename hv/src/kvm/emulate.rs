//! Instructions that the kernel gives back because it does not emulate them: those with SSE operands in device memory,
//! some on kernels that interpret guests. The software CPU executes them, one at a time, on the processor's whole
//! state, and delivers what they raise.

use std::sync::Arc;

use cpu::{ApicBus, Cpu, Exit, Feature, Lapic, Model, Regs};
use emu::{Clock, CpuBus, Timers};

/// The software CPU. Its local APIC, which is not the guest's, is taken out.
pub(super) struct Emulator {
    cpu: Cpu,
    timers: Arc<Timers>,
}

impl Emulator {
    pub(super) fn new(model: &Model, bus: CpuBus, clock: &Arc<Clock>) -> Emulator {
        let model = Model { features: model.features.bereft_of(Feature::Apic), ..model.clone() };
        let timers = Timers::new(clock.clone());
        let lapic = Lapic::new(0, &ApicBus::new(), &timers, model.tsc_hz);
        Emulator { cpu: Cpu::new(Arc::new(model), bus, clock.clone(), lapic), timers }
    }

    /// The state after one instruction. `Err`: a triple fault, with its report.
    pub(super) fn step(&mut self, old: &Regs) -> Result<Regs, String> {
        self.cpu.set_regs(&Regs { icount: 0, ..old.clone() });
        if self.cpu.run_plain(1, &self.timers) == Exit::Shutdown {
            return Err(self.cpu.report());
        }
        let mut new = Regs { tsc: old.tsc, ..self.cpu.regs() };
        // The mask of MXCSR is the processor's own.
        new.fx[28..32].copy_from_slice(&old.fx[28..32]);
        Ok(new)
    }
}
