//! A monitor above the processor: what the machine has no answer for leaves the run, as it leaves a guest of hardware
//! virtualization.
//!
//! A processor that was given to a monitor ([`Cpu::monitored`]) does not read ones from places where nothing is.
//! An access to a port that nobody claims, to memory that is neither RAM nor a device, or to an MSR that is not there
//! unwinds its instruction like a fault, and the run ends ([`crate::Exit::Kicked`]). The monitor asks
//! [`Cpu::take_intercept`] for it, does what it likes with the registers, and runs the processor again. INS and OUTS
//! leave before their first element whoever claims the port, and so does a write to memory that is only readable.
//! Interrupts and exceptions are delivered without the monitor: their tables and stacks are memory. But where they lead
//! to a task gate, they leave as every task switch does, before it has begun: what was to be delivered is lost, and the
//! monitor's to make up for. INT3 leaves where the monitor wants it to ([`Cpu::leave_breakpoints`]).
//!
//! All that is asked is on paths that already know that an access is none to plain memory.

use crate::insn::{Res, Stop};
use crate::state::{Cpu, Why};
use crate::task::TaskSwitch;

const APIC_BASE: u32 = 0x1b;

/// An access that left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intercept {
    /// IN or OUT.
    Port {
        /// The first port.
        port: u16,
        /// 1, 2 or 4 bytes.
        width: u8,
        /// OUT.
        out: bool,
    },
    /// One or more elements of INS or OUTS.
    PortString {
        /// The port.
        port: u16,
        /// Bytes of an element.
        width: u8,
        /// OUTS.
        out: bool,
    },
    /// Memory.
    Memory {
        /// Guest physical address of the first byte that is not RAM.
        gpa: u64,
        /// Its linear address.
        linear: u64,
        /// A store, or a load before one.
        write: bool,
    },
    /// The fetch of an instruction.
    Fetch {
        /// Guest physical address.
        gpa: u64,
    },
    /// RDMSR of this register.
    ReadMsr(u32),
    /// WRMSR.
    WriteMsr(u32),
    /// A task switch.
    Task {
        /// The new TSS.
        selector: u16,
        /// What makes it.
        how: TaskSwitch,
        /// The error code that the new task finds on its stack.
        error: Option<u32>,
        /// Where the old task goes on.
        next: u64,
    },
    /// INT3, which is so long.
    Breakpoint(u8),
}

/// What a monitor decides beforehand.
#[derive(Clone, Copy)]
pub(crate) struct Monitor {
    /// What leaves although there is an answer.
    leaves: fn(Intercept) -> bool,
    /// What left, until it is taken.
    left: Option<Intercept>,
    /// INT3 leaves.
    breakpoints: bool,
    /// An interrupt or exception is being delivered.
    delivers: bool,
}

impl Cpu {
    /// Gives the processor to a monitor. What `leaves` says of ports and MSRs leaves even if there is an answer.
    pub fn monitored(&mut self, leaves: fn(Intercept) -> bool) {
        self.monitor = Some(Monitor { leaves, left: None, breakpoints: false, delivers: false });
    }

    /// Whether INT3 leaves to the monitor.
    pub fn leave_breakpoints(&mut self, on: bool) {
        if let Some(monitor) = &mut self.monitor {
            monitor.breakpoints = on;
        }
    }

    /// The monitor, when it looks at accesses.
    fn watching(&self) -> Option<&Monitor> {
        self.monitor.as_ref().filter(|monitor| !monitor.delivers)
    }

    /// The access that ended the last run, if one did. RIP is the address of its instruction.
    pub fn take_intercept(&mut self) -> Option<Intercept> {
        let left = self.monitor.as_mut()?.left.take()?;
        self.why = Why::None;
        Some(left)
    }

    /// RIP between two runs.
    pub fn rip(&self) -> u64 {
        self.rip
    }

    /// Sets RIP between two runs.
    pub fn set_rip(&mut self, rip: u64) {
        self.rip = rip;
    }

    /// A general register, numbered as instructions do.
    pub fn gpr(&self, n: u8) -> u64 {
        self.gpr[usize::from(n & 15)]
    }

    /// Sets a general register.
    pub fn set_gpr(&mut self, n: u8, value: u64) {
        self.gpr[usize::from(n & 15)] = value;
    }

    /// The TSC counts from the machine's power-on again, to the tick as every other processor's.
    pub fn align_tsc(&mut self) {
        self.tsc_offset = 0;
        self.lapic.set_tsc_offset(0);
    }

    #[cold]
    fn leave(&mut self, what: Intercept) -> Stop {
        if let Some(monitor) = &mut self.monitor {
            monitor.left = Some(what);
        }
        self.why = Why::Left;
        Stop
    }

    /// Stops an access to a port that nobody claims.
    #[inline]
    pub(crate) fn offer_port(&mut self, port: u16, width: u8, out: bool) -> Res {
        if let Some(monitor) = self.watching() {
            let access = Intercept::Port { port, width, out };
            if (monitor.leaves)(access) || self.bus.map().port(port).is_none() {
                return Err(self.leave(access));
            }
        }
        Ok(())
    }

    /// Stops INS and OUTS.
    #[inline]
    pub(crate) fn offer_port_string(&mut self, port: u16, width: u8, out: bool) -> Res {
        if self.watching().is_some() {
            return Err(self.leave(Intercept::PortString { port, width, out }));
        }
        Ok(())
    }

    /// Stops an access to memory that is not plain RAM, unless a device is there.
    #[inline]
    pub(crate) fn offer_memory(&mut self, gpa: u64, linear: u64, write: bool) -> Res {
        if self.watching().is_some() && self.apic_offset(gpa).is_none() && !self.bus.answers(gpa, write) {
            return Err(self.leave(Intercept::Memory { gpa, linear, write }));
        }
        Ok(())
    }

    /// Stops the fetch of an instruction from where nothing is.
    pub(crate) fn offer_fetch(&mut self, gpa: u64) -> Res {
        if self.watching().is_some() && !self.bus.answers(gpa, false) {
            return Err(self.leave(Intercept::Fetch { gpa }));
        }
        Ok(())
    }

    /// Stops RDMSR or WRMSR.
    pub(crate) fn offer_msr(&mut self, msr: u32, write: bool) -> Res {
        if self.watching().is_some() && write && msr == APIC_BASE && self.edx_eax() != self.lapic.apic_base() {
            // The monitor has said which of the APIC's modes it is.
            return Err(self.gp(0));
        }
        if let Some(monitor) = self.watching() {
            let access = if write { Intercept::WriteMsr(msr) } else { Intercept::ReadMsr(msr) };
            if (monitor.leaves)(access) || !self.model.has_msr(msr) {
                return Err(self.leave(access));
            }
        }
        Ok(())
    }

    /// Stops a task switch.
    pub(crate) fn offer_task(&mut self, selector: u16, how: TaskSwitch, error: Option<u32>, next: u64) -> Res {
        if self.monitor.is_some() {
            return Err(self.leave(Intercept::Task { selector, how, error, next }));
        }
        Ok(())
    }

    /// Stops INT3.
    pub(crate) fn offer_breakpoint(&mut self, len: u8) -> Res {
        if self.monitor.is_some_and(|monitor| monitor.breakpoints) {
            return Err(self.leave(Intercept::Breakpoint(len)));
        }
        Ok(())
    }

    /// Delivers something, whose accesses do not leave.
    pub(crate) fn delivering(&mut self, f: impl FnOnce(&mut Cpu)) {
        let set = |cpu: &mut Cpu, delivers| {
            if let Some(monitor) = &mut cpu.monitor {
                monitor.delivers = delivers;
            }
        };
        set(self, true);
        f(self);
        set(self, false);
    }
}
