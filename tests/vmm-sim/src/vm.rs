//! A virtual machine of the simulated kernel: who is active, held, halted and idle.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use cpu::{ApicBus, Cpu, Engine, Fault, Feature, Intercept, Lapic, Model};
use emu::{CpuBus, Ram, RamAddr};

use crate::Rules;
use crate::chips::{Chips, port_width};
use crate::debts::Debts;
use crate::memory::Memory;
use crate::version::Version;
use crate::wire::Res;

const TSC_HZ: u64 = 1_000_000_000;

/// What a vCPU's lock says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum State {
    #[default]
    Idle,
    /// In VM_RUN.
    Running,
    /// A request works on it.
    Frozen,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct VcpuState {
    pub(crate) state: State,
    /// Requests that wait for it to be idle.
    pub(crate) wanted: u32,
    /// Capabilities that are on, as bits.
    pub(crate) capabilities: u32,
    pub(crate) x2apic: bool,
    /// INIT came; it waits for a SIPI.
    pub(crate) waits_for_sipi: bool,
    /// It has run.
    pub(crate) ran: bool,
    /// The page at which a SIPI has it start, and when that came.
    pub(crate) starts_at: Option<(u8, Instant)>,
}

/// What the VM's requests share.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) vcpus: Vec<VcpuState>,
    pub(crate) active: u64,
    pub(crate) suspended: u64,
    pub(crate) held: u64,
    pub(crate) halted: u64,
    pub(crate) suspend: Option<u32>,
    pub(crate) topology: [u16; 3],
    pub(crate) destroyed: bool,
    /// Some vCPU has run since creation: probes are over.
    pub(crate) ran: bool,
}

/// A processor, and what the kernel remembers of it between two runs.
pub(crate) struct Core {
    pub(crate) cpu: Cpu,
    /// Where the next VM_RUN enters.
    pub(crate) next: u64,
    /// An exception that waits to be delivered.
    pub(crate) pending: Option<Fault>,
    /// The length of the INT3 that is injected.
    pub(crate) entry_length: u64,
    /// String I/O at a port of the kernel's: the port, and the index register and what it was.
    pub(crate) string: Option<(u16, u8, u64)>,
    /// VM_RUNs, for the exits that come by themselves.
    pub(crate) runs: u64,
    pub(crate) debts: Debts,
}

/// An INIT or SIPI that its sender must tell of.
#[derive(Clone, Copy)]
pub(crate) struct Ipi {
    pub(crate) startup: bool,
    pub(crate) vector: u8,
    pub(crate) cpus: u64,
}

/// Processors run one after the other: they share a code cache.
#[derive(Default)]
struct Turn {
    queue: Mutex<(u64, u64)>,
    changed: Condvar,
}

/// A mapping of guest memory in user space, by host address: length and place in the kernel's arena.
pub(crate) type UserMaps = BTreeMap<usize, (usize, RamAddr)>;

pub(crate) struct Vm {
    pub(crate) version: Version,
    pub(crate) rules: Arc<Rules>,
    pub(crate) chips: Chips,
    pub(crate) memory: Mutex<Memory>,
    pub(crate) world: Mutex<World>,
    pub(crate) changed: Condvar,
    pub(crate) cores: Vec<Mutex<Option<Core>>>,
    pub(crate) ipis: Arc<Mutex<BTreeMap<u32, Ipi>>>,
    engine: Mutex<Engine>,
    turn: Turn,
    /// Counts what may have woken a processor that sleeps in HLT.
    wakes: Arc<(Mutex<u64>, Condvar)>,
    pub(crate) user_maps: Mutex<UserMaps>,
    /// The arena of the user space, whose writes the code cache must hear of.
    pub(crate) arena: Mutex<Option<Arc<Ram>>>,
    pub(crate) seed: AtomicU64,
}

/// Sets registers. The TSC is no part of them: the host's processors agree on it.
pub(crate) fn load(cpu: &mut Cpu, regs: &cpu::Regs) {
    cpu.set_regs(regs);
    cpu.align_tsc();
}

/// What goes to user space although the processor has an answer.
fn leaves(access: Intercept) -> bool {
    match access {
        Intercept::Port { port, width, .. } => port_width(port) != Some(width),
        Intercept::ReadMsr(msr) | Intercept::WriteMsr(msr) => matches!(
            msr,
            0x17 | 0x3a | 0x3b | 0x79 | 0x8b | 0xc1..=0xc8 | 0xce | 0x140 | 0x186..=0x18d | 0x6e0 | 0xc001_0000..
        ),
        _ => false,
    }
}

impl Vm {
    pub(crate) fn new(version: Version, rules: Arc<Rules>) -> std::io::Result<Arc<Vm>> {
        let chips = Chips::new()?;
        let ipis: Arc<Mutex<BTreeMap<u32, Ipi>>> = Arc::default();
        let (told, bus): (_, Weak<ApicBus>) = (ipis.clone(), Arc::downgrade(&chips.bus));
        chips.bus.on_start(move |from, startup, vector, dests| {
            let cpus = dests.iter().fold(0, |set, n| set | 1 << n);
            told.lock().unwrap().insert(from, Ipi { startup, vector, cpus });
            // The sender leaves behind the instruction.
            let lapics = bus.upgrade().map(|b| b.lapics()).unwrap_or_default();
            lapics.iter().filter(|l| l.index() == from).for_each(|l| l.kick());
        });
        let memory = Memory::new(version, chips.machine.space.clone());
        let max = version.max_cpus() as usize;
        let vm = Arc::new(Vm {
            version,
            rules,
            memory: Mutex::new(memory),
            world: Mutex::new(World { vcpus: vec![VcpuState::default(); max], topology: [1; 3], ..World::default() }),
            changed: Condvar::new(),
            cores: (0..max).map(|_| Mutex::new(None)).collect(),
            ipis,
            engine: Mutex::new(Engine::new()),
            turn: Turn::default(),
            wakes: Arc::default(),
            user_maps: Mutex::default(),
            arena: Mutex::default(),
            seed: AtomicU64::new(1),
            chips,
        });
        // The processor that the 8259 interrupts is always there; before 13.2 all are.
        let first = if version == Version::V13_1 { max } else { 1 };
        (0..first).for_each(|n| vm.make(n));
        Ok(vm)
    }

    fn model(x2apic: bool, cpus: u32) -> Model {
        let mut model = Model { hypervisor: Some(Model::BHYVE), tsc_hz: TSC_HZ, cpus, ..Model::default() };
        let mut hidden = vec![Feature::TscDeadline, Feature::TscAdjust];
        if !x2apic {
            hidden.push(Feature::X2apic);
        }
        model.set_features(model.features.without(&hidden));
        model
    }

    /// Makes vCPU `n` if it is not there yet.
    fn make(&self, n: usize) {
        let mut slot = self.cores[n].lock().unwrap();
        if slot.is_some() {
            return;
        }
        let machine = &self.chips.machine;
        let lapic = Lapic::new(n as u32, &self.chips.bus, &machine.timers, TSC_HZ);
        if n == 0 {
            let pic = self.chips.pic.clone();
            lapic.on_ack(move || pic.acknowledge());
        }
        let wakes = self.wakes.clone();
        lapic.on_wake(move || {
            *wakes.0.lock().unwrap() += 1;
            wakes.1.notify_all();
        });
        *slot = Some(self.core(lapic, false));
    }

    fn core(&self, lapic: Arc<Lapic>, x2apic: bool) -> Core {
        let machine = &self.chips.machine;
        let topology = self.world.lock().unwrap().topology;
        let cpus = topology.iter().map(|n| u32::from(*n)).product();
        let bus = CpuBus::new(machine.space.clone());
        let mut cpu = Cpu::new(Arc::new(Vm::model(x2apic, cpus)), bus, machine.clock().clone(), lapic);
        cpu.monitored(leaves);
        // vCPUs start where user space says, not at a SIPI.
        let regs = cpu::Regs { wait_sipi: false, ..cpu.regs() };
        load(&mut cpu, &regs);
        let next = cpu.rip();
        Core { cpu, next, pending: None, entry_length: 0, string: None, runs: 0, debts: Debts::default() }
    }

    /// Does something with a vCPU that is locked.
    pub(crate) fn with<T>(&self, n: usize, f: impl FnOnce(&mut Core) -> T) -> T {
        self.make(n);
        let mut core = self.cores[n].lock().unwrap();
        f(core.as_mut().expect("made above"))
    }

    pub(crate) fn lapic(&self, n: usize) -> Arc<Lapic> {
        self.with(n, |core| core.cpu.lapic().clone())
    }

    /// A lapic that is there, without waiting for its processor.
    pub(crate) fn lapic_of(&self, n: usize) -> Option<Arc<Lapic>> {
        self.chips.bus.lapics().into_iter().find(|l| l.index() as usize == n)
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// The processors' number in a request, if there can be such a one.
    pub(crate) fn index(&self, id: i32) -> Res<usize> {
        usize::try_from(id).ok().filter(|n| *n < self.cores.len()).ok_or(libc::EINVAL)
    }

    /// Waits until a vCPU is idle and takes it. One that runs leaves with REQIDLE.
    pub(crate) fn lock_vcpu(&self, n: usize, to: State) -> Res {
        let mut w = self.world();
        if w.vcpus[n].state != State::Idle || to == State::Running && w.vcpus[n].wanted > 0 {
            if to == State::Frozen {
                w.vcpus[n].wanted += 1;
            }
            while w.vcpus[n].state != State::Idle || to == State::Running && w.vcpus[n].wanted > 0 {
                if to == State::Frozen && w.vcpus[n].state == State::Running {
                    drop(w);
                    self.nudge(n);
                    w = self.world();
                }
                w = self.changed.wait_timeout(w, Duration::from_millis(20)).unwrap().0;
            }
            if to == State::Frozen {
                w.vcpus[n].wanted -= 1;
            }
        }
        if w.destroyed {
            self.changed.notify_all();
            return Err(libc::ENXIO);
        }
        w.vcpus[n].state = to;
        Ok(())
    }

    pub(crate) fn unlock_vcpu(&self, n: usize) {
        self.world().vcpus[n].state = State::Idle;
        self.changed.notify_all();
    }

    /// Makes a vCPU look at the world.
    pub(crate) fn nudge(&self, n: usize) {
        if let Some(lapic) = self.lapic_of(n) {
            lapic.kick();
        }
        self.wake();
    }

    /// Wakes all that sleep in HLT.
    pub(crate) fn wake(&self) {
        *self.wakes.0.lock().unwrap() += 1;
        self.wakes.1.notify_all();
    }

    pub(crate) fn wakes(&self) -> u64 {
        *self.wakes.0.lock().unwrap()
    }

    /// Sleeps until something may have woken a processor since the count was `seen`.
    pub(crate) fn sleep(&self, seen: u64, most: Duration) {
        let count = self.wakes.0.lock().unwrap();
        let _ = self.wakes.1.wait_timeout_while(count, most, |c| *c == seen).unwrap();
    }

    /// Runs a processor for a while, when its turn comes.
    pub(crate) fn run_slice(&self, core: &mut Core, insns: u64) -> cpu::Exit {
        let mut q = self.turn.queue.lock().unwrap();
        let mine = q.0;
        q.0 += 1;
        while q.1 != mine {
            q = self.turn.changed.wait(q).unwrap();
        }
        drop(q);
        let limit = core.cpu.icount().saturating_add(insns);
        let timers = &self.chips.machine.timers;
        let exit = if self.coherent() {
            self.engine.lock().unwrap().run(&mut core.cpu, limit, timers)
        } else {
            core.cpu.run_plain(limit, timers)
        };
        self.turn.queue.lock().unwrap().1 += 1;
        self.turn.changed.notify_all();
        exit
    }

    /// Has the user space's arena tell of all that is written to a mapping.
    pub(crate) fn watch(&self, at: usize, len: usize) {
        let arena = self.arena.lock().unwrap();
        let Some(arena) = arena.as_ref() else { return };
        let base = arena.host(RamAddr(0)) as usize;
        let used = arena.blocks().iter().map(|b| b.start.0 + b.len).max().unwrap_or(0) as usize;
        if at < base || at + len > base + used {
            return;
        }
        for page in (at - base) as u64 / emu::PAGE_SIZE..(at - base + len) as u64 / emu::PAGE_SIZE {
            arena.code_lines(page).store(u64::MAX, Ordering::Release);
        }
    }

    /// Tells the code cache what user space has written. Without the user space's arena there is none.
    fn coherent(&self) -> bool {
        let arena = self.arena.lock().unwrap();
        let Some(arena) = arena.as_ref() else { return false };
        if arena.stale() {
            let base = arena.host(RamAddr(0)) as usize;
            let ours = self.chips.machine.space.ram();
            let maps = self.user_maps.lock().unwrap();
            for page in arena.take_stale() {
                let host = base + (page * emu::PAGE_SIZE) as usize;
                if let Some((at, (len, ram))) = maps.range(..=host).next_back()
                    && host - at < *len
                {
                    ours.wrote(RamAddr(ram.0 + (host - at) as u64), emu::PAGE_SIZE);
                }
            }
        }
        true
    }

    /// The barrier of VM_SUSPEND: returns when every active vCPU has come.
    pub(crate) fn barrier(&self, n: usize) -> u32 {
        let start = Instant::now();
        let mut w = self.world();
        w.suspended |= 1 << n;
        self.changed.notify_all();
        while w.suspended & w.active != w.active {
            w = self.changed.wait_timeout(w, Duration::from_millis(100)).unwrap().0;
            if start.elapsed() > self.rules.patience() {
                let missing = w.active & !w.suspended;
                drop(w);
                self.rules.broken(&format!("VM_SUSPEND: vCPUs {missing:#x} are active and do not come into VM_RUN"));
                w = self.world();
                break;
            }
        }
        w.suspend.unwrap_or(0)
    }

    /// VM_SUSPEND.
    pub(crate) fn suspend(&self, how: u32) -> Res {
        let mut w = self.world();
        if how == 0 || how > self.version.last_suspend() {
            return Err(libc::EINVAL);
        }
        if w.suspend.is_some() {
            return Err(libc::EALREADY);
        }
        w.suspend = Some(how);
        drop(w);
        self.changed.notify_all();
        (0..self.cores.len()).for_each(|n| self.nudge(n));
        Ok(())
    }

    /// VM_SET_X2APIC_STATE: another processor, with the other mode from its reset on.
    pub(crate) fn set_x2apic(&self, n: usize, on: bool) {
        self.make(n);
        self.world().vcpus[n].x2apic = on;
        let mut slot = self.cores[n].lock().unwrap();
        let Some(old) = slot.take() else { return };
        let lapic = old.cpu.lapic().clone();
        let regs = old.cpu.regs();
        lapic.reset();
        if on {
            lapic.set_apic_base(lapic.apic_base() | 1 << 10);
        }
        let mut new = self.core(lapic, on);
        load(&mut new.cpu, &regs);
        *slot = Some(Core { next: old.next, pending: old.pending, runs: old.runs, ..new });
    }

    /// VM_REINIT.
    pub(crate) fn reinit(&self) -> Res {
        {
            let w = self.world();
            if w.suspended & w.active != w.active {
                return Err(libc::EBUSY);
            }
        }
        self.memory.lock().unwrap().reinit();
        self.chips.reinit();
        self.ipis.lock().unwrap().clear();
        for (n, slot) in self.cores.iter().enumerate() {
            let mut slot = slot.lock().unwrap();
            if let Some(old) = slot.take() {
                let lapic = old.cpu.lapic().clone();
                self.world().vcpus[n].x2apic = false;
                lapic.reset();
                *slot = Some(self.core(lapic, false));
            }
        }
        let mut w = self.world();
        for v in &mut w.vcpus {
            *v = VcpuState { state: v.state, wanted: v.wanted, ..VcpuState::default() };
        }
        (w.active, w.suspended, w.held, w.halted, w.suspend) = (0, 0, 0, 0, None);
        Ok(())
    }

    /// Destroys it: whatever comes after is ENXIO.
    pub(crate) fn destroy(&self) {
        let running = {
            let w = self.world();
            (0..w.vcpus.len()).filter(|n| w.vcpus[*n].state == State::Running).count()
        };
        if running > 0 {
            if self.version == Version::V15 {
                let _ = self.suspend(5);
            } else {
                self.rules.broken("the VM is destroyed while vCPUs are in VM_RUN, which nothing kicks before 15");
            }
        }
        self.world().destroyed = true;
        (0..self.cores.len()).for_each(|n| self.nudge(n));
        self.changed.notify_all();
    }

    /// Pseudo-random numbers for what the kernel does now and then.
    pub(crate) fn dice(&self) -> u64 {
        let x = self.seed.load(Ordering::Relaxed);
        let x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.seed.store(x, Ordering::Relaxed);
        x >> 33
    }
}
