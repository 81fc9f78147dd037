//! A simulated vmm.ko, for tests: the kernel's side of vmm(4) on amd64, with its numbers, layouts and rules.
//!
//! [`Sim`] is a kernel of FreeBSD 13.1, 13.2, 14.1 or 15.0. It takes requests as bytes at the boundary that `vmmapi-sys`
//! names ([`Kernel`], [`Node`]) and shares no structure and no number with it: what one of the two has wrong, the other
//! finds. Guests run on the software processor, with the chips that the kernel owns.
//!
//! It is strict. What a kernel would answer with a hang, a leak or a subtly wrong machine is a broken rule here, and
//! ends the process with a message, unless the test wants to look at it ([`Sim::record`]). And it does what kernels do
//! only now and then: VM_RUN ends for no reason, what is not set holds garbage, numbers that are private are nonsense.
//!
//! What it does not have: passthrough, snapshots, the debugger exits of AMD's processors, PAUSE exits.

mod chips;
mod codes;
mod debts;
mod exit;
mod ioapic;
mod memory;
mod node;
mod regs;
mod requests;
mod rules;
mod run;
mod version;
mod vie;
mod vm;
mod walk;
mod wire;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use emu::Ram;
use vmmapi_sys::{Access, Kernel, Node};

pub(crate) use rules::Rules;
pub use version::Version;

use vm::Vm;

/// What is wrong with the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// vmm.ko is not loaded, but can be.
    Loaded,
    /// vmm.ko is not loaded and cannot be.
    Module,
    /// The processor does not virtualize.
    Virtualization,
    /// It cannot run real mode in a guest.
    UnrestrictedGuest,
    /// The user may not open the nodes.
    Rights,
    /// The user is not root, but has the nodes of VMs that there are.
    Root,
    /// The user is in a jail without allow.vmm.
    Jail,
    /// The user is in a jail whose devfs hides the nodes.
    Nodes,
    /// VMs are not destroyed with the descriptor that made them.
    DestroyOnClose,
}

/// The kernel.
pub struct Sim {
    /// Nodes hold on to the kernel.
    me: Weak<Sim>,
    version: Version,
    lacks: Mutex<Vec<Lack>>,
    loaded: AtomicBool,
    rules: Arc<Rules>,
    vms: Mutex<BTreeMap<String, Arc<Vm>>>,
    arena: Mutex<Option<Arc<Ram>>>,
}

fn errno(n: i32) -> io::Error {
    io::Error::from_raw_os_error(n)
}

/// The longest name of a VM.
const LONGEST_NAME: usize = 229;

impl Sim {
    /// A kernel with vmm.ko loaded, on a host that can do everything.
    pub fn new(version: Version) -> Arc<Sim> {
        Arc::new_cyclic(|me| Sim {
            me: me.clone(),
            version,
            lacks: Mutex::default(),
            loaded: AtomicBool::new(true),
            rules: Arc::default(),
            vms: Mutex::default(),
            arena: Mutex::default(),
        })
    }

    /// Takes something away from the host.
    pub fn lack(&self, what: Lack) {
        self.lacks.lock().unwrap().push(what);
        match what {
            Lack::Loaded | Lack::Module => self.loaded.store(false, Ordering::Relaxed),
            Lack::UnrestrictedGuest => self.rules.set_restricted(),
            _ => {}
        }
    }

    fn lacks(&self, what: Lack) -> bool {
        self.lacks.lock().unwrap().contains(&what)
    }

    /// Root makes a VM, before the user comes.
    ///
    /// # Panics
    /// When that cannot be.
    pub fn made_by_root(&self, name: &str) {
        self.create(name).expect("a VM");
    }

    /// Broken rules are written down instead of ending the process.
    pub fn record(&self) {
        self.rules.set_record();
    }

    /// The rules that were broken.
    pub fn violations(&self) -> Vec<String> {
        self.rules.violations()
    }

    /// Tells on standard error what is legal and seldom meant: EFAULT, EIO, triple faults.
    pub fn verbose(&self) {
        self.rules.set_verbose();
    }

    /// VM_RUN does not end without a reason.
    pub fn no_bogus(&self) {
        self.rules.set_no_bogus();
    }

    /// Every other VM_RUN fails with EINTR.
    pub fn interrupts(&self) {
        self.rules.set_interrupts();
    }

    /// How long VM_SUSPEND waits for the last vCPU before that is a broken rule.
    pub fn patience(&self, most: Duration) {
        self.rules.set_patience(most);
    }

    /// The arena of the machine in user space: what is written to it, guests' decoded code is checked against. Without
    /// it no code is cached, which is slow.
    pub fn coherent(&self, arena: &Arc<Ram>) {
        *self.arena.lock().unwrap() = Some(arena.clone());
        for vm in self.vms.lock().unwrap().values() {
            *vm.arena.lock().unwrap() = Some(arena.clone());
        }
    }

    /// How often each request was made.
    pub fn requests(&self) -> BTreeMap<&'static str, u64> {
        self.rules.requests()
    }

    /// How often VM_RUN ended by each exit.
    pub fn exits(&self) -> BTreeMap<&'static str, u64> {
        self.rules.exits()
    }

    /// The instructions of INST_EMUL exits, by their first bytes.
    pub fn emulated(&self) -> BTreeMap<String, u64> {
        self.rules.forms()
    }

    /// The VMs that exist.
    pub fn vms(&self) -> Vec<String> {
        self.vms.lock().unwrap().keys().cloned().collect()
    }

    /// The I/O APIC pins of a VM that are asserted.
    pub fn asserted(&self, name: &str) -> Vec<usize> {
        self.vms.lock().unwrap().get(name).map(|vm| vm.chips.ioapic.asserted()).unwrap_or_default()
    }

    fn create(&self, name: &str) -> Result<Arc<Vm>, i32> {
        if self.lacks(Lack::Jail) {
            return Err(libc::EPERM);
        }
        if self.lacks(Lack::Virtualization) {
            return Err(libc::ENXIO);
        }
        if name.is_empty() || name.len() > LONGEST_NAME {
            return Err(libc::EINVAL);
        }
        let mut vms = self.vms.lock().unwrap();
        if vms.contains_key(name) {
            return Err(libc::EEXIST);
        }
        let vm = Vm::new(self.version, self.rules.clone()).map_err(|_| libc::ENOMEM)?;
        *vm.arena.lock().unwrap() = self.arena.lock().unwrap().clone();
        vms.insert(name.to_owned(), vm.clone());
        Ok(vm)
    }

    fn destroy(&self, name: &str) -> Result<(), i32> {
        let vm = self.vms.lock().unwrap().remove(name).ok_or(libc::EINVAL)?;
        vm.destroy();
        Ok(())
    }
}

impl Kernel for Sim {
    fn sysctl(&self, name: &str) -> io::Result<i64> {
        if name == "kern.osreldate" {
            return Ok(self.version.osreldate());
        }
        if !self.loaded.load(Ordering::Relaxed) {
            return Err(errno(libc::ENOENT));
        }
        let works = i64::from(!self.lacks(Lack::Virtualization));
        Ok(match name {
            "hw.vmm.maxcpu" if self.version > Version::V13_1 => i64::from(self.version.max_cpus()),
            "hw.vmm.halt_detection" | "hw.vmm.topology.cpuid_leaf_b" => 1,
            "hw.vmm.ipinum" => 0xf4,
            "hw.vmm.vmx.initialized" => works,
            "hw.vmm.vmx.cap.unrestricted_guest" => i64::from(!self.lacks(Lack::UnrestrictedGuest)) & works,
            "hw.vmm.vmx.cap.halt_exit" | "hw.vmm.vmx.cap.pause_exit" | "hw.vmm.vmx.cap.monitor_trap" => works,
            "hw.vmm.vmx.cap.invpcid" | "hw.vmm.vmx.cap.rdpid" | "hw.vmm.vmx.cap.rdtscp" => 0,
            _ => return Err(errno(libc::ENOENT)),
        })
    }

    fn set_sysctl(&self, name: &str, value: &[u8]) -> io::Result<()> {
        if !self.loaded.load(Ordering::Relaxed) {
            return Err(errno(libc::ENOENT));
        }
        if self.lacks(Lack::Rights) || self.lacks(Lack::Root) {
            return Err(errno(libc::EPERM));
        }
        let vm = std::str::from_utf8(value).map_err(|_| errno(libc::EINVAL))?;
        if self.version == Version::V15 && name.starts_with("hw.vmm.") {
            self.rules.broken(&format!("{name} although there is /dev/vmmctl"));
        }
        match name {
            "hw.vmm.create" => self.create(vm).map(drop).map_err(errno),
            "hw.vmm.destroy" => self.destroy(vm).map_err(errno),
            _ => Err(errno(libc::ENOENT)),
        }
    }

    fn module(&self, name: &str) -> bool {
        name == "vmm" && self.loaded.load(Ordering::Relaxed)
    }

    fn load_module(&self, name: &str) -> io::Result<()> {
        if name != "vmm" || self.lacks(Lack::Module) {
            return Err(errno(libc::ENOENT));
        }
        if self.lacks(Lack::Rights) || self.lacks(Lack::Root) {
            return Err(errno(libc::EPERM));
        }
        self.loaded.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn open(&self, path: &str, access: Access) -> io::Result<Box<dyn Node>> {
        if !self.loaded.load(Ordering::Relaxed) {
            return Err(errno(libc::ENOENT));
        }
        let me = self.me.upgrade().ok_or_else(|| errno(libc::ENXIO))?;
        node::open(&me, path, access).map_err(errno)
    }
}
