//! KVM: Linux runs the processors and their local APICs; everything else is the machine's own (KVM's *split* irqchip).
//!
//! * **Interrupts.** MSIs, and the messages of our I/O APIC, which look like them, go in by KVM_SIGNAL_MSI from any
//!   thread. The end of a level-triggered interrupt comes back as an exit, but only for vectors that KVM finds in its
//!   table of routes: [`routes`] learns it from the messages. The 8259's INTR is a level that the thread of processor 0
//!   looks at before it enters the guest ([`vcpu`]).
//! * **Memory.** A slot of KVM for each slot of [`MemoryMap`] ([`slots`]).
//! * **CPUID** is the model's as far as the kernel can keep its promises ([`model`]).
//! * **HLT** stays in the kernel, where local APICs and IPIs end it. So nobody tells us that all processors wait for
//!   what can never come; a thread looks twice a second ([`watch`]).
//! * **Time.** The TSC is the host's with an offset, and stands still with the machine ([`tsc`]); so do the TSC deadlines
//!   of local APICs, which are taken out of the kernel meanwhile. Their counters are the kernel's and go on: one that
//!   ends while the machine is paused interrupts when it is resumed, once, and the ticks of a periodic one have another
//!   phase then. Only KVM_SET_LAPIC could stop them, which would overwrite what interrupts at that moment.
//! * **Doorbells** ring on the processor's thread, where most are served at once: waking another thread for it costs more
//!   than all the rest. Where a device hands its doorbells over, the kernel takes them as ioeventfds ([`bells`]). There
//!   are no irqfds: to write to one takes the same system call as KVM_SIGNAL_MSI, and no less time in it.
//!
//! Linux 5.10 is the oldest that has what is needed; before 5.16 the TSC goes on while the machine is paused. There is no
//! FERR# and no A20 gate. After a triple fault AMD's processors have the state of an INIT, since Linux must not show what
//! SVM leaves undefined: the report has then no registers of the guest's, but its last accesses to devices.

mod bells;
mod debug;
mod emulate;
mod host;
mod model;
mod page;
mod routes;
mod seat;
mod slots;
mod state;
mod tsc;
mod vcpu;
mod watch;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use anyhow::{Context, bail};
use emu::{IrqSink, Machine, MsiSink, Ram};
use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_UNKNOWN, kvm_enable_cap, kvm_msi,
};
use kvm_ioctls::VmFd;

use crate::stats;
use crate::{Ack, Caps, Hypervisor, MemoryMap, Vcpu, Vm, VmConfig};
use bells::Bells;
use routes::Routes;
use seat::Seat;
use slots::Slots;
use vcpu::KvmVcpu;

/// Pages that KVM wants for itself on Intel's processors, where no board has anything.
const IDENTITY_MAP: u64 = 0xfeff_c000;
const TSS: usize = 0xfeff_d000;

/// Linux's hypervisor.
pub struct Kvm;

impl Hypervisor for Kvm {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn available(&self) -> Result<String, String> {
        let kvm = host::open()?;
        Ok(format!("/dev/kvm, up to {} processors", kvm.get_max_vcpus()))
    }

    fn worthwhile(&self) -> Result<(), String> {
        if host::virtualizes() {
            return Ok(());
        }
        Err("the processor shows neither VT-x nor SVM, so the kernel interprets guests, slower than soft".to_owned())
    }

    fn create(&self, machine: &Arc<Machine>, config: &VmConfig) -> anyhow::Result<Arc<dyn Vm>> {
        let kvm = host::open().map_err(|why| anyhow::anyhow!("KVM does not work here: {why}"))?;
        host::room(config.cpus, kvm.get_max_vcpus()).map_err(anyhow::Error::msg)?;
        let fd = kvm.create_vm().context("KVM makes no virtual machine (KVM_CREATE_VM)")?;
        let shared = Shared::new(Arc::new(fd), config.cpus);
        shared.prepare()?;
        let slots = Slots::new(&shared, machine.space.ram().clone());
        machine.space.add_listener(Arc::new(MemoryMap::new(slots, machine.space.ram().clone())));
        if let Some(why) = shared.failure() {
            bail!(why);
        }
        let bells = Bells::start(shared.fd.clone()).context("no thread to hear doorbells")?;
        machine.space.add_listener(bells.clone());
        let (model, dropped) = model::fit(&kvm, &config.model, config.cpus)?;
        if !dropped.is_empty() {
            tracing::info!("kvm: the {} goes without {}, which this host lacks", model.name, dropped.join(" "));
        }
        let vcpus = KvmVcpu::all(&kvm, &shared, machine, &model)?;
        watch::start(&shared).context("no thread to watch the processors")?;
        let ram = machine.space.ram().clone();
        Ok(Arc::new(KvmVm { shared, ram, bells, vcpus: Mutex::new(vcpus) }))
    }
}

/// What all threads of a virtual machine share.
struct Shared {
    fd: Arc<VmFd>,
    seats: Vec<Seat>,
    routes: Mutex<Routes>,
    tsc: tsc::Frozen,
    tsc_hz: AtomicU64,
    ack: OnceLock<Ack>,
    eoi: OnceLock<Box<dyn Fn(u8) + Send + Sync>>,
    wake: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// Processors that nothing woke when they were last looked at, a bit each.
    dead: Vec<AtomicU64>,
    /// All were dead: they are to come out of the kernel and look once more, together.
    gathering: AtomicBool,
    failed: Mutex<Option<String>>,
}

impl Shared {
    fn new(fd: Arc<VmFd>, cpus: u32) -> Arc<Shared> {
        Arc::new(Shared {
            routes: Mutex::new(Routes::new(fd.clone())),
            fd,
            seats: (0..cpus).map(|_| Seat::default()).collect(),
            tsc: tsc::Frozen::default(),
            tsc_hz: AtomicU64::new(0),
            ack: OnceLock::new(),
            eoi: OnceLock::new(),
            wake: OnceLock::new(),
            dead: (0..cpus.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            gathering: AtomicBool::new(false),
            failed: Mutex::default(),
        })
    }

    /// What has to be there before memory and processors.
    fn prepare(&self) -> anyhow::Result<()> {
        let cap = |cap, name: &str, arg| {
            let cap = kvm_enable_cap { cap, args: [arg, 0, 0, 0], ..Default::default() };
            self.fd.enable_cap(&cap).with_context(|| format!("KVM refuses {name}"))
        };
        cap(KVM_CAP_SPLIT_IRQCHIP, "its split irqchip", routes::SLOTS as u64)?;
        cap(KVM_CAP_X86_USER_SPACE_MSR, "exits for unknown MSRs", u64::from(KVM_MSR_EXIT_REASON_UNKNOWN))?;
        self.fd.set_identity_map_address(IDENTITY_MAP).context("KVM_SET_IDENTITY_MAP_ADDR")?;
        self.fd.set_tss_address(TSS).context("KVM_SET_TSS_ADDR")?;
        Ok(())
    }

    /// Something went wrong that no caller hears of: the next runs end with it.
    fn fail(&self, why: String) {
        self.failed.lock().unwrap().get_or_insert(why);
        self.seats.iter().for_each(|s| s.alert(seat::FAILED));
    }

    fn failure(&self) -> Option<String> {
        self.failed.lock().unwrap().clone()
    }

    /// Processors that sleep outside the kernel look again.
    fn wake(&self) {
        if let Some(wake) = self.wake.get() {
            wake();
        }
    }
}

impl MsiSink for Shared {
    fn msi(&self, addr: u64, data: u32) {
        const LEVEL: u32 = 1 << 15;
        if addr >> 20 != 0xfee {
            return;
        }
        if data & LEVEL != 0
            && let Err(e) = self.routes.lock().unwrap().learn(addr as u32, data)
        {
            return self.fail(format!("KVM refuses the route of an interrupt (KVM_SET_GSI_ROUTING): {e}"));
        }
        let msi = kvm_msi { address_lo: addr as u32, data, ..Default::default() };
        // A message that no local APIC takes is lost, as on the bus.
        let _ = self.fd.signal_msi(msi);
        if self.gathering.load(Ordering::SeqCst) {
            self.wake();
        }
    }
}

/// INTR and NMI of processor 0.
impl IrqSink for Shared {
    fn set_irq(&self, line: u32, level: bool) {
        match (line, level) {
            (0, true) => self.seats[0].alert(seat::INTR),
            (0, false) => self.seats[0].calm(seat::INTR),
            (_, true) => self.seats[0].alert(seat::NMI),
            (_, false) => {}
        }
        if level && self.gathering.load(Ordering::SeqCst) {
            self.wake();
        }
    }
}

struct KvmVm {
    shared: Arc<Shared>,
    ram: Arc<Ram>,
    bells: Arc<Bells>,
    vcpus: Mutex<Vec<Box<dyn Vcpu>>>,
}

impl Vm for KvmVm {
    fn caps(&self) -> Caps {
        Caps { lapic: true, debug: debug::CAPS, ..Caps::default() }
    }

    fn take_vcpus(&self) -> Vec<Box<dyn Vcpu>> {
        std::mem::take(&mut self.vcpus.lock().unwrap())
    }

    fn msi(&self) -> Arc<dyn MsiSink> {
        self.shared.clone()
    }

    fn pins(&self) -> Arc<dyn IrqSink> {
        self.shared.clone()
    }

    fn on_ack(&self, ack: Ack) {
        let _ = self.shared.ack.set(ack);
    }

    fn on_eoi(&self, eoi: Box<dyn Fn(u8) + Send + Sync>) {
        let _ = self.shared.eoi.set(eoi);
    }

    // Guest addresses are translated by the processor, which has no such pin.
    fn set_a20(&self, _: bool) {}

    fn stats(&self, vcpu: u32) -> anyhow::Result<Vec<(String, u64)>> {
        let Some(seat) = self.shared.seats.get(vcpu as usize) else { return Ok(Vec::new()) };
        let c = &seat.counters;
        let counters = [
            ("number of times in/out was intercepted", c.ports.get()),
            ("vm exits for instruction emulation", c.memory.get()),
            ("vm exits due to interrupt window opening", c.windows.get()),
            ("number of vm exits handled in userspace", c.all.get()),
            (stats::RUNTIME, stats::ticks(seat.ran(), self.shared.tsc_hz.load(Ordering::Relaxed))),
        ];
        Ok(stats::named(vcpu, &counters, &self.ram))
    }

    fn kick(&self, vcpu: u32) {
        if let Some(seat) = self.shared.seats.get(vcpu as usize) {
            seat.alert(seat::KICK);
        }
    }

    fn hear(&self) {
        self.bells.hear();
    }

    fn on_wake(&self, wake: Box<dyn Fn() + Send + Sync>) {
        let _ = self.shared.wake.set(wake);
    }
}

#[cfg(test)]
mod conformance {
    use super::{Kvm, host};
    use crate::Hypervisor;

    /// Kernels that interpret guests do not look at the IDT's limit in real mode.
    const NO_LIMIT: &str = "an_exception_that_cannot_be_delivered_is_a_triple_fault";

    fn skip(test: &str) -> Option<String> {
        match Kvm.available() {
            Ok(_) if !host::virtualizes() && test == NO_LIMIT => Kvm.worthwhile().err(),
            Ok(_) => None,
            Err(why) => Some(why),
        }
    }

    crate::conformance::suite!(|_: &crate::conformance::listing::Listing| Box::new(Kvm), skip);
}
