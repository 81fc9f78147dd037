//! FreeBSD's vmm(4), of 13, 14 and 15 by one binary: which it is, [`vmmapi_sys::Vmm`] finds out.
//!
//! The kernel has the interrupt chips, timers and the RTC ([`chips`]), and runs a processor until something is wanted
//! that it does not know ([`vcpu`]): ports, device memory, MSRs. What it does not decode, `cpu` executes
//! ([`emulate`]). Memory is the kernel's own, and takes the place of the arena's ([`memory`]).
//!
//! A reset of the machine is `VM_SUSPEND` and `VM_REINIT`: every processor that the kernel knows of must enter `VM_RUN`
//! to hear that it is suspended, then all of it begins anew.

mod chips;
mod emulate;
mod memory;
mod msr;
mod outside;
mod state;
#[cfg(test)]
mod tests;
mod vcpu;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, anyhow, bail};
use emu::{IrqSink, Machine, MsiSink};
use vmmapi_sys::{AttachError, Cap, Kernel, Lifetime, Name, Version, Vm as KernelVm, Vmm as Attached};

use self::chips::{KernelChips, KernelPorts, Messages, Pins};
use self::memory::GuestMemory;
pub use self::outside::Outside;
use self::vcpu::{Mailbox, Shared, VmmVcpu};
use crate::{Ack, Caps, Chips, DebugCaps, Hypervisor, Vcpu, Vm, VmConfig};

/// The name in messages on processor state.
const BACKEND: &str = "vmm";

/// vmm(4), of a kernel.
pub struct Vmm {
    kernel: Arc<dyn Kernel>,
    name: &'static str,
}

impl Vmm {
    /// The vmm(4) of `kernel`, as a back end called `name`.
    pub fn over(kernel: Arc<dyn Kernel>, name: &'static str) -> Vmm {
        Vmm { kernel, name }
    }

    /// Destroys the machine of this name, if there is one.
    pub fn destroy(&self, name: &str) {
        if let (Ok(vmm), Ok(name)) = (self.attach(), Name::new(name)) {
            let _ = vmm.destroy(&name);
        }
    }

    fn attach(&self) -> Result<Attached> {
        Attached::attach(self.kernel.clone()).map_err(|e| match e {
            AttachError::NoModule(_) => {
                anyhow!("{e}: load it as root (kldload vmm), and for good by vmm_load=\"YES\" in /boot/loader.conf")
            }
            e => anyhow!("{e}"),
        })
    }
}

/// A machine that goes when this does.
struct Made {
    vmm: Attached,
    name: Name,
    /// Or stays, for others to destroy.
    keep: bool,
}

impl Drop for Made {
    fn drop(&mut self) {
        if !self.keep {
            // It may have gone with its descriptor, or by another's hand.
            let _ = self.vmm.destroy(&self.name);
        }
    }
}

/// The cause of a refusal and what to do about it.
fn refused(e: &io::Error, what: &str) -> anyhow::Error {
    let remedy = match e.raw_os_error() {
        Some(libc::ENXIO) => {
            "the processor has no VT-x with EPT or SVM with NPT, or the host's firmware turned it off: turn it on \
             there (dmesg says more), or use backend = \"soft\""
        }
        Some(libc::EPERM | libc::EACCES) => {
            "the rights are lacking: run as root, have root make the machine (bhyvectl --create) and give you its node \
             under /dev/vmm; in a jail, set allow.vmm"
        }
        Some(libc::ENOENT) => {
            "its node is not to be seen: in a jail, have a devfs ruleset unhide vmmctl, vmm, vmm/*, vmm.io and vmm.io/*"
        }
        Some(libc::ENOMEM) => "there is no memory for it, or there are too many machines (sysctl hw.vmm.maxvmms)",
        Some(libc::EINVAL) => "the kernel refuses its name or size",
        _ => "vmm(4) refuses it",
    };
    anyhow!("{what}: {remedy} ({e})")
}

impl Hypervisor for Vmm {
    fn name(&self) -> &'static str {
        self.name
    }

    fn available(&self) -> Result<String, String> {
        let vmm = self.attach().map_err(|e| format!("{e:#}"))?;
        refuses(&vmm, &[libc::ENXIO])?;
        Ok(format!("vmm(4) of kernel {}, up to {} processors a machine", vmm.osreldate(), vmm.max_cpus()))
    }

    // Who may make no machines may still be given the node of one.
    fn worthwhile(&self) -> Result<(), String> {
        let vmm = self.attach().map_err(|e| format!("{e:#}"))?;
        refuses(&vmm, &[libc::EPERM, libc::EACCES])
    }

    fn create(&self, machine: &Arc<Machine>, config: &VmConfig) -> Result<Arc<dyn Vm>> {
        let vmm = self.attach()?;
        let name = Name::new(&config.name).map_err(|e| anyhow!("the machine's name {:?} {e}", config.name))?;
        let most = vmm.max_cpus();
        if config.cpus > most {
            bail!(
                "{} processors: this kernel gives a machine {most} at most: set cpus = {most}, or hw.vmm.maxcpu in \
                 /boot/loader.conf",
                config.cpus
            );
        }
        let what = format!("machine {:?}", config.name);
        let lifetime = if config.keep { Lifetime::Destroyed } else { Lifetime::Descriptor };
        let created = vmm.create(&name, lifetime);
        let there = created.is_err();
        let mut made = Made { vmm, name, keep: config.keep || there };
        let opened = made.vmm.open(&made.name);
        // Whoever may not make it may have been given it.
        let vm = match (created, opened) {
            (Ok(_), Err(e)) => return Err(refused(&e, &what)),
            (Err(e), Err(also)) => {
                let exists = e.raw_os_error() == Some(libc::EEXIST);
                return Err(refused(if exists { &also } else { &e }, &what));
            }
            (Err(e), Ok(_)) if !matches!(e.raw_os_error(), Some(libc::EEXIST | libc::EPERM | libc::EACCES)) => {
                return Err(refused(&e, &what));
            }
            (_, Ok(vm)) => Arc::new(vm),
        };
        if there {
            take_over(&vm).with_context(|| what.clone())?;
            made.keep = config.keep;
        }
        let vmm = &made.vmm;
        vm.limit().context("the rights of the machine's node")?;
        let intel = vmm.sysctl("vmx.initialized").is_some_and(|on| on != 0);
        tracing::debug!("vmm(4) of kernel {}, ABI of {:?}", vmm.osreldate(), vm.abi().version);
        if vm.abi().version == Version::V15 && vmm.osreldate() >= 1_700_000 {
            tracing::warn!("this kernel ({}) is newer than the vmm(4) that is known", vmm.osreldate());
        }
        assemble(machine, config, vm, made, intel)
    }
}

/// Whether the kernel refuses to have machines destroyed for one of these reasons, for which it makes none either.
fn refuses(vmm: &Attached, reasons: &[i32]) -> Result<(), String> {
    // Of this name there is none.
    let nobody = Name::new("bhyve-rs nobody").map_err(|e| format!("a name {e}"))?;
    match vmm.destroy(&nobody) {
        Err(e) if e.raw_os_error().is_some_and(|n| reasons.contains(&n)) => {
            Err(format!("{:#}", refused(&e, "vmm(4) makes no machines")))
        }
        _ => Ok(()),
    }
}

/// Uses a machine that a loader or an earlier run left.
fn take_over(vm: &KernelVm) -> Result<()> {
    vm.reinit().map_err(|e| match e.raw_os_error() {
        Some(libc::EBUSY) => anyhow!("it is running already: stop it first, or choose another name"),
        _ => anyhow!("it exists and cannot be taken over: destroy it (bhyvectl --destroy) ({e})"),
    })
}

fn assemble(
    machine: &Arc<Machine>,
    config: &VmConfig,
    vm: Arc<KernelVm>,
    made: Made,
    intel: bool,
) -> Result<Arc<dyn Vm>> {
    let cpus = config.cpus;
    let (cores, threads) = (config.model.cores.max(1), config.model.threads.max(1));
    let sockets = (cpus / (cores * threads)).max(1);
    vm.set_topology(sockets as u16, cores as u16, threads as u16)
        .with_context(|| format!("a topology of {cpus} processors"))?;
    let unrestricted = vm.capability(0, Cap::UnrestrictedGuest).is_ok();
    if !unrestricted {
        tracing::warn!("this processor cannot run real mode in a guest (no unrestricted guest): no BIOS will work");
        if cpus > 1 {
            bail!("without unrestricted guest mode, which this processor lacks, there can be but one: set cpus = 1");
        }
    }
    let ipi_exits = vm.set_capability(0, Cap::IpiExit, true).is_ok();
    let ram = machine.space.ram().clone();
    let bytes = ram.blocks().first().map_or(0, |b| b.len);
    // RAM from 1 MiB on ends at the PCI hole.
    let low = machine.space.map().ram_for_read(1 << 20).map_or(bytes.min(1 << 20), |(_, len)| (1 << 20) + len);
    let memory = GuestMemory::create(&vm, &ram, low).map_err(|e| match e.raw_os_error() {
        Some(libc::ENOMEM) => {
            anyhow!("the host has no {} MiB of memory for the guest: set a smaller memory ({e})", bytes >> 20)
        }
        Some(libc::EEXIST | libc::EINVAL) => {
            anyhow!("the machine that exists has other memory: destroy it (bhyvectl --destroy) and start again ({e})")
        }
        _ => anyhow!("guest memory: {e}"),
    })?;
    let chips = Arc::new(KernelChips::new(&vm).context("the chips of vmm(4)")?);
    let listener = memory.listener();
    let shared = Arc::new_cyclic(|weak| Shared {
        mail: (0..cpus).map(|_| Mailbox::default()).collect(),
        machine: Arc::downgrade(machine),
        ports: KernelPorts::new(weak.clone()),
        chips: chips.clone(),
        vm,
        ram,
        memory,
        ipi_exits,
        unrestricted,
        intel,
        ignore_msrs: config.model.ignore_unknown_msrs,
        caller: AtomicU32::new(0),
        ended: AtomicBool::new(false),
        started: AtomicBool::new(false),
        _made: made,
    });
    KernelPorts::add(&machine.space, &shared);
    machine.space.add_listener(listener);
    let vcpus = (0..cpus).map(|n| Box::new(VmmVcpu::new(n, &shared, machine)) as Box<dyn Vcpu>).collect();
    Ok(Arc::new(VmmVm { shared, chips, vcpus: Mutex::new(vcpus), names: Mutex::default() }))
}

struct VmmVm {
    shared: Arc<Shared>,
    chips: Arc<KernelChips>,
    vcpus: Mutex<Vec<Box<dyn Vcpu>>>,
    /// What the kernel's counters count, as far as anybody has asked.
    names: Mutex<Vec<String>>,
}

impl Vm for VmmVm {
    fn caps(&self) -> Caps {
        let debug = DebugCaps { places: Some(0), reads: false, int3: true, watches: false };
        Caps { lapic: true, debug, ..Caps::default() }
    }

    fn chips(&self) -> Option<Arc<dyn Chips>> {
        Some(self.chips.clone())
    }

    fn take_vcpus(&self) -> Vec<Box<dyn Vcpu>> {
        std::mem::take(&mut self.vcpus.lock().unwrap())
    }

    fn msi(&self) -> Arc<dyn MsiSink> {
        Arc::new(Messages(self.shared.vm.clone()))
    }

    fn pins(&self) -> Arc<dyn IrqSink> {
        Arc::new(Pins(self.shared.vm.clone()))
    }

    // The 8259 and the I/O APIC are the kernel's.
    fn on_ack(&self, _: Ack) {}

    fn on_eoi(&self, _: Box<dyn Fn(u8) + Send + Sync>) {}

    // There is no gate: bit 20 is never masked.
    fn set_a20(&self, _: bool) {}

    fn stats(&self, vcpu: u32) -> Result<Vec<(String, u64)>> {
        let values = self.shared.vm.stats(vcpu).context("VM_STATS")?;
        let mut names = self.names.lock().unwrap();
        // They stay as they are as long as the kernel runs.
        while let Some(index) = (names.len() < values.len()).then_some(names.len()) {
            let name = self.shared.vm.stat_description(index as u32).context("VM_STAT_DESC")?;
            names.push(name.unwrap_or_else(|| format!("counter {index}")));
        }
        Ok(names.iter().cloned().zip(values).collect())
    }

    fn kick(&self, vcpu: u32) {
        self.shared.kick(vcpu);
    }

    // Processors sleep in the kernel.
    fn on_wake(&self, _: Box<dyn Fn() + Send + Sync>) {}
}
