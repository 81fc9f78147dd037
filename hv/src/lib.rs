//! Hypervisor back ends behind one set of traits: the software CPU anywhere, vmm(4) on FreeBSD, KVM on Linux.
//!
//! A [`Hypervisor`] makes a [`Vm`] for a machine that is already there: memory, ports and chips belong to the
//! [`emu::Machine`], and the back end follows its address space. [`Vm::caps`] says which chips the back end brings
//! itself ([`Vm::chips`]); the board builds the rest. A [`Vcpu`] runs until its thread has something to act on; port and memory
//! accesses call the bus inside and never come out. [`Runner`] is the threads: start, pause with a barrier, resume,
//! stop.
//!
//! There is no call to map memory. A back end with page tables of its own listens to the address space
//! ([`emu::MapListener`], [`MemoryMap`] does the work) and has followed every change before the access that caused it
//! completes: shadow RAM, video planes and BARs need nothing else. The log of written pages is the address space's too:
//! [`emu::AddressSpace::harvest_dirty`] asks the listeners for what they know.
//!
//! Calls on a [`Vcpu`] are made by the thread that runs it, or by another while the processors are paused
//! ([`Runner::with_vcpus`]); those on a [`Vm`] from any thread at any time. All that the kernels of vmm(4) and KVM want
//! of a processor that is not running therefore belongs to the former. Neither kind of call is made from within a bus
//! access.
//!
//! [`cpu::Regs`] is the state of a processor in every back end's terms. What a back end cannot reach of it, it says by
//! the name of the field ([`Vcpu::lacks`]).

mod affinity;
#[cfg(test)]
mod conformance;
#[cfg(target_os = "linux")]
mod kvm;
mod lacking;
mod memory;
#[cfg(test)]
mod mock;
mod run;
mod soft;
mod stats;
mod vmm;

use std::sync::Arc;

use emu::{IrqSink, Machine, MsiSink};
use serde_json::Value;

pub use affinity::CPUS as HOST_CPUS;
#[cfg(target_os = "linux")]
pub use kvm::Kvm;
pub use lacking::Lacking;
pub use memory::{MemoryMap, PageTables, Slot};
pub use run::{Outcome, Runner, Turn};
pub use soft::Soft;
pub use vmm::{Outside, Vmm};

/// What a back end brings, and what it cannot do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Caps {
    /// Local APICs.
    pub lapic: bool,
    /// The A20 gate masks address bit 20.
    pub a20: bool,
    /// All vCPUs run on one thread, in turn.
    pub one_thread: bool,
    /// Executed instructions can drive the clock.
    pub instruction_clock: bool,
    /// What a debugger can have.
    pub debug: DebugCaps,
}

/// What a debugger can have of a back end.
#[derive(Clone, Copy, Debug, Default)]
pub struct DebugCaps {
    /// Most breakpoints among [`cpu::Wants::breakpoints`] and watches together, of up to eight aligned bytes each; `None`
    /// for as many as there are.
    pub places: Option<usize>,
    /// Whether loads and stores are told apart.
    pub reads: bool,
    /// An INT3 in guest memory is a breakpoint ([`Vcpu::debug`]), and there are as many as that makes.
    pub int3: bool,
    /// There are watches.
    pub watches: bool,
}

/// What [`Vcpu::debug`] is told.
#[derive(Clone, Debug, Default)]
pub struct Debug {
    /// What every back end is told.
    pub wants: cpu::Wants,
    /// Linear addresses of the INT3s that the debugger has put into guest memory; others are the guest's own.
    pub int3s: Vec<u64>,
}

/// What a virtual machine is made of, beside its devices.
#[derive(Clone, Debug)]
pub struct VmConfig {
    /// The machine's name: that of a node in the file system, where the kernel has one.
    pub name: String,
    /// Number of processors.
    pub cpus: u32,
    /// What they claim to be.
    pub model: cpu::Model,
    /// Decode and execute one instruction at a time (the oracle) instead of the cached engine. Software CPU only.
    pub plain: bool,
    /// What the kernel has of it stays when it is dropped, until somebody destroys it.
    pub keep: bool,
}

/// A back end.
pub trait Hypervisor: Send + Sync {
    /// `soft`, `kvm` or `vmm`.
    fn name(&self) -> &'static str;

    /// Whether it works on this host, with the reason in a few words either way.
    fn available(&self) -> Result<String, String>;

    /// Whether `auto` should take it where it is available, or why not: a kernel that interprets what no processor
    /// virtualizes is slower than the software CPU.
    fn worthwhile(&self) -> Result<(), String> {
        Ok(())
    }

    /// Whether instructions are counted, and can drive the clock.
    fn counts(&self) -> bool {
        false
    }

    /// Makes a virtual machine for `machine`.
    ///
    /// # Errors
    /// What the host refuses, by name.
    fn create(&self, machine: &Arc<Machine>, config: &VmConfig) -> anyhow::Result<Arc<dyn Vm>>;
}

/// The back ends of this system, in the order in which `auto` prefers them.
pub fn all() -> Vec<Box<dyn Hypervisor>> {
    vec![
        #[cfg(target_os = "linux")]
        Box::new(Kvm),
        #[cfg(target_os = "freebsd")]
        Box::new(Vmm::over(Arc::new(vmmapi_sys::System), "vmm")),
        Box::new(Soft),
    ]
}

/// Destroys a machine of this system's kernel that its process has left, if there is one.
pub fn destroy(name: &str) {
    #[cfg(target_os = "freebsd")]
    Vmm::over(Arc::new(vmmapi_sys::System), "vmm").destroy(name);
    let _ = name;
}

/// The machine of this name of this system's kernel, whoever runs it; none if there is none.
///
/// # Errors
/// What keeps us from looking.
pub fn outside(name: &str) -> anyhow::Result<Option<Outside>> {
    #[cfg(target_os = "freebsd")]
    if std::path::Path::new("/dev/vmm").join(name).exists() {
        return Outside::open(Arc::new(vmmapi_sys::System), name);
    }
    let _ = name;
    Ok(None)
}

/// Acknowledges an external interrupt: the 8259's INTA cycle.
pub type Ack = Box<dyn Fn() -> u8 + Send + Sync>;

/// Chips that a back end has inside: the 8259 pair with the ELCR, the I/O APIC, the 8254 with port 61, the RTC, the HPET
/// and the ACPI PM timer.
pub trait Chips: Send + Sync {
    /// ISA interrupts, as they reach the 8259 pair and the I/O APIC.
    fn isa(&self) -> Arc<dyn IrqSink>;

    /// The pins of the I/O APIC.
    fn ioapic(&self) -> Arc<dyn IrqSink>;

    /// How many it has.
    fn ioapic_pins(&self) -> u8;

    /// The port of the PM timer.
    fn pm_timer(&self) -> u16;

    /// The low half of the HPET's capability register.
    fn hpet_id(&self) -> u32;

    /// Sets the RTC, in seconds since 1970, and bytes of its memory.
    ///
    /// # Errors
    /// What the host refuses.
    fn start_rtc(&self, seconds: i64, memory: &[(u8, u8)]) -> anyhow::Result<()>;
}

/// A virtual machine.
pub trait Vm: Send + Sync {
    /// What the back end brings.
    fn caps(&self) -> Caps;

    /// The chips that the back end brings; the board builds them otherwise.
    fn chips(&self) -> Option<Arc<dyn Chips>> {
        None
    }

    /// The processors, each to be run by one thread. They can be taken once.
    fn take_vcpus(&self) -> Vec<Box<dyn Vcpu>>;

    /// Where MSIs and the I/O APIC's messages go.
    fn msi(&self) -> Arc<dyn MsiSink>;

    /// Processor pins: line 0 is INTR of processor 0 (LINT0), line 1 its NMI (LINT1).
    fn pins(&self) -> Arc<dyn IrqSink>;

    /// How an ExtINT is acknowledged, when the 8259 is not the back end's: called by processor 0's thread at the moment
    /// at which it takes the interrupt, with no lock held, for the vector. Set once.
    fn on_ack(&self, ack: Ack);

    /// Who hears the end of level-triggered interrupts, when the I/O APIC is not the back end's. Set once.
    fn on_eoi(&self, eoi: Box<dyn Fn(u8) + Send + Sync>);

    /// Who hears FERR# of processor 0 rise: an x87 error with CR0.NE clear. Set once; never called by a back end whose
    /// processors have no such pin.
    fn on_ferr(&self, _ferr: Box<dyn Fn() + Send + Sync>) {}

    /// Asserts IGNNE# of processor 0.
    fn ignne(&self) {}

    /// Opens or closes the A20 gate.
    fn set_a20(&self, open: bool);

    /// A processor's counters and what they count: vmm(4)'s own there, elsewhere what the back end knows, by vmm(4)'s
    /// names where the meaning is the same.
    ///
    /// # Errors
    /// What the host refuses.
    fn stats(&self, _vcpu: u32) -> anyhow::Result<Vec<(String, u64)>> {
        Ok(Vec::new())
    }

    /// Makes a processor leave [`Vcpu::run`] soon. Never lost: if it is not running, its next run ends at once. Several
    /// kicks may end one run.
    fn kick(&self, vcpu: u32);

    /// Rings the doorbells that the host's kernel took and nobody has heard yet. The processors are paused, and no
    /// device's lock is held.
    fn hear(&self) {}

    /// Called whenever a sleeping processor may have something to do. Set once.
    fn on_wake(&self, wake: Box<dyn Fn() + Send + Sync>);
}

/// Why a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Its time is up.
    Slice,
    /// [`Vm::kick`].
    Kicked,
    /// It waits for an interrupt.
    Halted,
    /// A debugger wants to look ([`Vcpu::debug`]).
    Debug(cpu::Stop),
    /// Triple fault, with a report of several lines.
    TripleFault(String),
    /// The back end cannot go on, with the reason.
    Failed(String),
}

/// A virtual processor.
pub trait Vcpu: Send {
    /// Its number.
    fn index(&self) -> u32;

    /// Runs until something must be acted on, but no longer than about `insns` instructions where they are counted.
    fn run(&mut self, insns: u64) -> Exit;

    /// Nothing can wake it but an NMI, INIT or SIPI: HLT with interrupts off, or waiting for a SIPI.
    fn dead(&self) -> bool;

    /// Names the fields of [`cpu::Regs`] that the back end cannot reach. `icount` need not be among them: it is ignored
    /// where instructions are not counted.
    fn lacks(&self) -> &'static [&'static str] {
        &[]
    }

    /// The architectural state. Fields that the back end lacks have their power-on values.
    ///
    /// # Errors
    /// What the host refuses, by name.
    fn regs(&self) -> anyhow::Result<cpu::Regs>;

    /// Sets the architectural state.
    ///
    /// # Errors
    /// [`Lacking`] when a field that the back end lacks has another value than [`Vcpu::regs`] gives; nothing is set
    /// then.
    fn set_regs(&mut self, regs: &cpu::Regs) -> anyhow::Result<()>;

    /// Power-on state.
    fn reset(&mut self);

    /// Makes the processor take an exception before its next instruction, as if the instruction at RIP had raised it:
    /// with the error code, if it has one here, and CR2 set for a page fault. It ends HLT.
    ///
    /// # Errors
    /// What the back end cannot inject (vmm(4) no double fault), or that another exception waits.
    fn inject(&mut self, exception: cpu::Fault) -> anyhow::Result<()>;

    /// An NMI.
    fn nmi(&mut self);

    /// INIT, as the 8042 or port 92 can give it to processor 0, or an IPI to any.
    fn init(&mut self);

    /// A SIPI: a processor that waits for it starts at page `vector`; others ignore it.
    fn sipi(&mut self, vector: u8);

    /// Gives the processor to a debugger, or takes it back: its runs end for what is wanted ([`Exit::Debug`]).
    ///
    /// # Errors
    /// What the back end cannot do ([`Caps::debug`]), or the host refuses.
    fn debug(&mut self, debug: Option<&Debug>) -> anyhow::Result<()>;

    /// Instructions executed, where they are counted.
    fn icount(&self) -> Option<u64>;

    /// All of its state, the local APIC's included.
    ///
    /// # Errors
    /// [`Lacking`] when there are fields that the back end cannot give.
    fn save(&self) -> anyhow::Result<Value>;

    /// Takes over a saved state.
    ///
    /// # Errors
    /// When it does not fit.
    fn load(&mut self, state: Value) -> anyhow::Result<()>;
}
