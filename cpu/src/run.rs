//! The run loop: what happens between instructions, and the plain interpreter.
//!
//! The order at an instruction boundary is the architecture's (SDM volume 3, 6.9): traps of the instruction before,
//! INIT, NMI, interrupts. STI, MOV SS and POP SS hold the last two back for one instruction.

use std::sync::Arc;

use emu::{Clock, CpuBus, Timers};

use crate::decode::{DecodeError, decode_for};
use crate::flags::{IF, RF, TF};
use crate::fpu::ErrorPins;
use crate::insn::{BLOCK, Insn, Res};
use crate::lapic::Lapic;
use crate::model::Model;
use crate::state::{Cpu, Why};

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The instruction count reached the limit.
    Limit,
    /// [`Lapic::kick`] was called, an access left to the monitor ([`Cpu::take_intercept`]), or a debugger wants to look
    /// ([`Cpu::take_stop`]).
    Kicked,
    /// The processor waits: HLT, or for a SIPI.
    Halted,
    /// Triple fault.
    Shutdown,
}

/// Nanoseconds of guest time for an instruction when instructions drive the clock.
pub const NS_PER_INSN: u64 = 4;

/// DR7's enable bits.
const DR7_ARMED: u64 = 0xff;

impl Cpu {
    /// Instructions executed since power-on.
    pub fn icount(&self) -> u64 {
        self.icount
    }

    /// The local APIC.
    pub fn lapic(&self) -> &Arc<Lapic> {
        &self.lapic
    }

    /// Whether the processor sleeps until something wakes it.
    pub fn asleep(&self) -> bool {
        (self.halted || self.wait_sipi) && !self.attention() && !self.nmi_pending
    }

    /// Tells the processor that it runs now: instructions continue the clock from where it stands.
    pub(crate) fn begin_slice(&mut self) {
        self.bus.starts(self.tlb.generation);
        self.clock_bias = self.clock.now().wrapping_sub(self.icount.wrapping_mul(NS_PER_INSN));
        self.clock_follows = self.clock.by_instructions();
    }

    /// Tells the processor that it does not run.
    pub(crate) fn end_slice(&self) {
        self.bus.rests();
    }

    /// Moves an instruction-driven clock to the present instruction.
    #[inline(always)]
    pub(crate) fn publish_clock(&self) {
        if self.clock_follows {
            self.clock.set(self.icount.wrapping_mul(NS_PER_INSN).wrapping_add(self.clock_bias));
        }
    }

    /// The instruction count at which the next timer is due, when instructions drive the clock.
    #[inline(always)]
    pub(crate) fn next_timer(&self, timers: &Timers) -> u64 {
        if !self.clock_follows {
            return u64::MAX;
        }
        // The clock may lag behind the instructions, and the bias be negative.
        let now = self.icount.wrapping_mul(NS_PER_INSN).wrapping_add(self.clock_bias);
        let wait = timers.next().saturating_sub(now).div_ceil(NS_PER_INSN);
        self.icount.saturating_add(wait)
    }

    /// Whether the local APIC has something that the processor would take now.
    #[inline(always)]
    pub(crate) fn attention(&self) -> bool {
        self.lapic.attention(self.rflags & IF != 0)
    }

    /// Whether something has to be looked at before the next instruction that only instructions themselves bring about.
    #[inline(always)]
    pub(crate) fn has_work(&self) -> bool {
        self.shadow | self.halted | self.wait_sipi | self.nmi_pending
            || self.pending_db != 0
            || self.rflags & TF != 0
            || self.dr[7] & DR7_ARMED != 0
            || !self.smc.is_empty()
    }

    /// What waits at an instruction boundary. `Some`: leave the loop.
    pub(crate) fn boundary(&mut self) -> Option<Exit> {
        let shadow = std::mem::take(&mut self.shadow);
        if self.attention() {
            let s = self.lapic.signals();
            if self.a20_mask != self.lapic.a20_mask() {
                self.a20_mask = self.lapic.a20_mask();
                self.flush_tlb(false);
            }
            if s.init {
                self.init();
                self.lapic.init();
            }
            if let Some(vector) = s.sipi
                && self.wait_sipi
            {
                self.start_at(vector);
            }
            self.nmi_pending |= s.nmi;
            if s.kick {
                self.shadow = shadow;
                return Some(Exit::Kicked);
            }
        }
        if self.wait_sipi {
            return Some(Exit::Halted);
        }
        if self.pending_db != 0 {
            self.halted = false;
            self.debug_trap();
            return self.shut_down();
        }
        if !shadow {
            if self.nmi_pending && !self.nmi_blocked {
                self.nmi_pending = false;
                self.halted = false;
                self.nmi();
                return self.shut_down();
            }
            if self.rflags & IF != 0
                && let Some(vector) = self.lapic.take_interrupt()
            {
                self.halted = false;
                self.external_interrupt(vector);
                return self.shut_down();
            }
        }
        if self.halted { Some(Exit::Halted) } else { None }
    }

    fn shut_down(&mut self) -> Option<Exit> {
        match self.why {
            Why::Shutdown => Some(Exit::Shutdown),
            // A task switch in the delivery.
            Why::Left => {
                self.why = Why::None;
                Some(Exit::Kicked)
            }
            _ => None,
        }
    }

    /// Decodes the instruction at RIP. Faults of the fetch are recorded as for execution.
    pub(crate) fn fetch_decode(&mut self) -> Res<Insn> {
        let lin = self.fetch_address(self.rip)?;
        let mut buf = [0; 16];
        let have = self.fetch(lin, &mut buf)?;
        match decode_for(&buf[..have.min(15)], self.mode, self.model.features, None) {
            Ok(insn) => self.check_fetch(insn),
            Err(DecodeError::TooLong) => Err(self.gp(0)),
            Err(DecodeError::NeedMore) if have >= 15 => Err(self.gp(0)),
            Err(DecodeError::NeedMore) => {
                let next = self.fetch_address(self.rip.wrapping_add(have as u64))?;
                let mut more = [0; 16];
                let got = self.fetch(next, &mut more)?;
                let n = got.min(15 - have);
                buf[have..have + n].copy_from_slice(&more[..n]);
                match decode_for(&buf[..have + n], self.mode, self.model.features, None) {
                    Ok(insn) => self.check_fetch(insn),
                    Err(_) => Err(self.gp(0)),
                }
            }
        }
    }

    /// The last byte, too, must lie inside the code segment.
    fn check_fetch(&mut self, insn: Insn) -> Res<Insn> {
        self.fetch_address(self.rip.wrapping_add(u64::from(insn.len) - 1))?;
        Ok(insn)
    }

    /// Executes the instruction at RIP, which may touch devices, and delivers what faults.
    pub(crate) fn execute_one(&mut self) -> Option<Exit> {
        if self.debugger.is_some()
            && let Some(exit) = self.meets_breakpoint()
        {
            return Some(exit);
        }
        let start = self.rip;
        self.icount += 1;
        self.publish_clock();
        self.may_io = true;
        let tf = self.rflags & TF != 0;
        let armed = self.dr[7] & DR7_ARMED != 0;
        let done = if armed && self.rflags & RF == 0 && self.code_breakpoint() {
            Err(crate::insn::Stop)
        } else {
            self.fetch_decode().and_then(|insn| {
                self.gpr[BLOCK as usize] = start;
                self.rip = self.cut_rip(start.wrapping_add(u64::from(insn.len)));
                self.rflags &= !RF;
                insn.execute(self)
            })
        };
        match done {
            Ok(()) => {
                self.after_insn(tf);
                self.shut_down()
            }
            Err(_) => self.stopped(start),
        }
    }

    /// An instruction at `start` did not complete: deliver why.
    pub(crate) fn stopped(&mut self, start: u64) -> Option<Exit> {
        self.rip = start;
        match std::mem::replace(&mut self.why, Why::None) {
            Why::Fault(f) => {
                self.deliver(f);
                self.shut_down()
            }
            Why::Shutdown => {
                self.why = Why::Shutdown;
                Some(Exit::Shutdown)
            }
            Why::Left => Some(Exit::Kicked),
            // Run again by the loop, alone.
            Why::Alone | Why::None => None,
        }
    }

    /// The plain interpreter: decodes and executes one instruction at a time until the instruction count is `limit`, or
    /// something else ends the run. The oracle for the engine.
    pub fn run_plain(&mut self, limit: u64, timers: &Timers) -> Exit {
        self.begin_slice();
        let exit = self.interpret(limit, timers);
        self.end_slice();
        exit
    }

    fn interpret(&mut self, limit: u64, timers: &Timers) -> Exit {
        loop {
            // Before the boundary: what it takes must not be forgotten between two runs.
            if self.icount >= limit.min(self.next_timer(timers)) {
                return Exit::Limit;
            }
            if self.is_debugged_closely() {
                self.smc.clear();
                self.sync_map();
                if let Some(exit) = self.debugged() {
                    return exit;
                }
                continue;
            }
            if self.attention() || self.has_work() {
                self.smc.clear();
                if let Some(exit) = self.boundary() {
                    return exit;
                }
                if self.pending_db != 0 {
                    continue;
                }
            }
            self.sync_map();
            if let Some(exit) = self.execute_one() {
                return exit;
            }
        }
    }

    /// FERR# and IGNNE#.
    pub fn error_pins(&self) -> &Arc<ErrorPins> {
        &self.error_pins
    }

    /// The processor's model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Its clock.
    pub fn clock(&self) -> &Arc<Clock> {
        &self.clock
    }

    /// Its bus.
    pub fn bus(&mut self) -> &mut CpuBus {
        &mut self.bus
    }
}
