//! The threads that run virtual processors: one each, or one for all where the back end asks for it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use emu::Machine;

use crate::{Exit, Vcpu, Vm};

/// Instructions that a processor runs before the next one on the same thread has its turn.
const SLICE: u64 = 20_000;

/// What a runner tells its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A processor met a triple fault; its report.
    TripleFault(String),
    /// All processors wait with interrupts off.
    Halted,
    /// The back end gave up; why.
    Failed(String),
    /// The instruction count reached the limit given to [`Runner::pause_at`].
    Limit,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Order {
    Run,
    Pause,
    Stop,
}

struct Control {
    order: Order,
    /// Threads that have parked for the present pause.
    parked: usize,
    /// Total instructions at which to pause by itself.
    limit: u64,
}

struct Shared {
    control: Mutex<Control>,
    changed: Condvar,
    /// Counts what may have woken a processor.
    wakes: AtomicU64,
    /// Threads that wait for the count to change.
    sleepers: AtomicUsize,
    groups: Vec<Mutex<Vec<Box<dyn Vcpu>>>>,
    vm: Arc<dyn Vm>,
    machine: Arc<Machine>,
    tell: Box<dyn Fn(Outcome) + Send + Sync>,
}

/// The processors of a machine and the threads that run them.
pub struct Runner {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    cpus: u32,
}

impl Runner {
    /// Takes over the processors of `vm`, paused. `tell` is called from their threads and must only pass the outcome on.
    pub fn new(
        vm: Arc<dyn Vm>,
        machine: Arc<Machine>,
        tell: impl Fn(Outcome) + Send + Sync + 'static,
    ) -> std::io::Result<Runner> {
        let vcpus = vm.take_vcpus();
        let cpus = vcpus.len() as u32;
        let groups = if vm.caps().one_thread {
            vec![Mutex::new(vcpus)]
        } else {
            vcpus.into_iter().map(|v| Mutex::new(vec![v])).collect()
        };
        let control = Control { order: Order::Pause, parked: 0, limit: u64::MAX };
        let shared = Arc::new(Shared {
            control: Mutex::new(control),
            changed: Condvar::new(),
            wakes: AtomicU64::new(0),
            sleepers: AtomicUsize::new(0),
            groups,
            vm,
            machine,
            tell: Box::new(tell),
        });
        let weak = Arc::downgrade(&shared);
        shared.vm.on_wake(Box::new(move || {
            if let Some(s) = weak.upgrade() {
                s.wakes.fetch_add(1, Ordering::SeqCst);
                // Interrupts of a processor that runs cost no system call.
                if s.sleepers.load(Ordering::SeqCst) > 0 {
                    drop(s.control.lock().unwrap());
                    s.changed.notify_all();
                }
            }
        }));
        let threads = (0..shared.groups.len())
            .map(|n| {
                let shared = shared.clone();
                std::thread::Builder::new().name(format!("vcpu {n}")).spawn(move || shared.work(n))
            })
            .collect::<Result<_, _>>()?;
        let runner = Runner { shared, threads, cpus };
        runner.pause();
        Ok(runner)
    }

    /// Stops all processors between two instructions and guest time with them. On return none runs.
    pub fn pause(&self) {
        let mut c = self.shared.control.lock().unwrap();
        if c.order == Order::Run {
            c.order = Order::Pause;
        }
        drop(c);
        (0..self.cpus).for_each(|n| self.shared.vm.kick(n));
        self.shared.changed.notify_all();
        let mut c = self.shared.control.lock().unwrap();
        while c.parked < self.threads.len() && c.order == Order::Pause {
            c = self.shared.changed.wait(c).unwrap();
        }
        self.shared.machine.clock().pause();
    }

    /// A way to order a pause from any thread, a processor's own included, without waiting for it: each processor stops
    /// after the instruction that it is at.
    pub fn pauser(&self) -> impl Fn() + Send + Sync + use<> {
        let (shared, cpus) = (Arc::downgrade(&self.shared), self.cpus);
        move || {
            let Some(shared) = shared.upgrade() else { return };
            let mut c = shared.control.lock().unwrap();
            if c.order == Order::Run {
                c.order = Order::Pause;
            }
            drop(c);
            (0..cpus).for_each(|n| shared.vm.kick(n));
            shared.changed.notify_all();
        }
    }

    /// Lets them go on.
    pub fn resume(&self) {
        self.shared.machine.clock().resume();
        let mut c = self.shared.control.lock().unwrap();
        if c.order == Order::Pause {
            c.order = Order::Run;
        }
        self.shared.changed.notify_all();
    }

    /// The machine pauses by itself, with [`Outcome::Limit`], when its processors have executed `total` instructions.
    /// Exact where one thread runs them all.
    pub fn pause_at(&self, total: u64) {
        self.shared.control.lock().unwrap().limit = total;
    }

    /// Runs `f` on all processors, in order. They must be paused.
    pub fn with_vcpus<T>(&self, mut f: impl FnMut(&mut dyn Vcpu) -> T) -> Vec<T> {
        let mut out = Vec::new();
        for group in &self.shared.groups {
            for vcpu in group.lock().unwrap().iter_mut() {
                out.push(f(vcpu.as_mut()));
            }
        }
        out
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.shared.control.lock().unwrap().order = Order::Stop;
        (0..self.cpus).for_each(|n| self.shared.vm.kick(n));
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// A thread's life: run, park, stop.
    fn work(&self, n: usize) {
        loop {
            let mut c = self.control.lock().unwrap();
            if c.order == Order::Pause {
                c.parked += 1;
                self.changed.notify_all();
                while c.order == Order::Pause {
                    c = self.changed.wait(c).unwrap();
                }
                c.parked -= 1;
            }
            if c.order == Order::Stop {
                return;
            }
            let limit = c.limit;
            drop(c);
            let mut vcpus = self.groups[n].lock().unwrap();
            let outcome = self.run(&mut vcpus, limit);
            drop(vcpus);
            if let Some(outcome) = outcome {
                // Nothing runs on until the owner says so.
                let mut c = self.control.lock().unwrap();
                if c.order == Order::Run {
                    c.order = Order::Pause;
                }
                c.limit = u64::MAX;
                drop(c);
                (self.tell)(outcome);
            }
        }
    }

    /// Runs a group of processors until there is an order or an outcome.
    fn run(&self, vcpus: &mut [Box<dyn Vcpu>], limit: u64) -> Option<Outcome> {
        let by_instructions = self.machine.clock().by_instructions();
        loop {
            if self.control.lock().unwrap().order != Order::Run {
                return None;
            }
            let wakes = self.wakes.load(Ordering::SeqCst);
            let mut idle = true;
            for n in 0..vcpus.len() {
                let left = match limit {
                    u64::MAX => SLICE,
                    _ => limit.saturating_sub(vcpus.iter().filter_map(|v| v.icount()).sum()).min(SLICE),
                };
                if left == 0 {
                    return Some(Outcome::Limit);
                }
                match vcpus[n].run(left) {
                    Exit::Slice => idle = false,
                    // The order is looked at above.
                    Exit::Kicked => idle = false,
                    Exit::Halted => {}
                    Exit::TripleFault(report) => return Some(Outcome::TripleFault(report)),
                    Exit::Failed(why) => return Some(Outcome::Failed(why)),
                }
                if by_instructions && self.machine.timers.run_due() > 0 {
                    idle = false;
                }
            }
            if !idle {
                continue;
            }
            if vcpus.iter().all(|v| v.dead()) && self.groups.len() == 1 {
                return Some(Outcome::Halted);
            }
            let next = self.machine.timers.next();
            if by_instructions && next != u64::MAX {
                self.machine.clock().set(next.max(self.machine.clock().now()));
                self.machine.timers.run_due();
                continue;
            }
            let mut c = self.control.lock().unwrap();
            self.sleepers.fetch_add(1, Ordering::SeqCst);
            while c.order == Order::Run && self.wakes.load(Ordering::SeqCst) == wakes {
                c = self.changed.wait(c).unwrap();
            }
            self.sleepers.fetch_sub(1, Ordering::SeqCst);
        }
    }
}
