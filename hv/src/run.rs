//! The threads that run virtual processors: one each, or one for all where the back end asks for it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use emu::Machine;
use serde::{Deserialize, Serialize};

use crate::{Exit, Vcpu, Vm, affinity};

/// Instructions that a processor runs before the next one on the same thread has its turn.
const SLICE: u64 = 20_000;

/// Nanoseconds for which a thread with nothing to run waits awake for a timer: to sleep and to be woken would take
/// longer, on a busy host much longer, and ticks that are caught up come in such haste.
const NAP: u64 = 100_000;

/// How long a pause waits for the processors before it kicks them again.
const AGAIN: Duration = Duration::from_millis(200);

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
    /// A debugger wants to look at the processor of this number.
    Debug(u32, cpu::Stop),
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
    /// Threads that sleep with processors that nothing wakes, since the count of wakes was the second number: whoever
    /// slept before has woken or is about to, and looks again.
    dead: (usize, u64),
    /// Total instructions at which to pause by itself.
    limit: u64,
}

/// The processors of one thread, and whose turn it is.
struct Group {
    vcpus: Vec<Box<dyn Vcpu>>,
    turn: Turn,
}

impl Group {
    fn new(vcpus: Vec<Box<dyn Vcpu>>) -> Mutex<Group> {
        Mutex::new(Group { vcpus, turn: Turn { vcpu: 0, left: SLICE } })
    }
}

/// Which processor of a thread runs, and for how many more instructions. Part of the machine's state: where the next
/// interrupt meets the others depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    vcpu: usize,
    left: u64,
}

struct Shared {
    control: Mutex<Control>,
    changed: Condvar,
    /// Counts what may have woken a processor.
    wakes: AtomicU64,
    /// Threads that wait for the count to change.
    sleepers: AtomicUsize,
    /// Processors that a debugger keeps from running, a bit each.
    frozen: AtomicU64,
    groups: Vec<Mutex<Group>>,
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
    /// Takes over the processors of `vm`, paused. `tell` is called from their threads and must only pass the outcome
    /// on.
    pub fn new(
        vm: Arc<dyn Vm>,
        machine: Arc<Machine>,
        tell: impl Fn(Outcome) + Send + Sync + 'static,
    ) -> std::io::Result<Runner> {
        let vcpus = vm.take_vcpus();
        let cpus = vcpus.len() as u32;
        let groups = if vm.caps().one_thread {
            vec![Group::new(vcpus)]
        } else {
            vcpus.into_iter().map(|v| Group::new(vec![v])).collect()
        };
        let control = Control { order: Order::Pause, parked: 0, dead: (0, 0), limit: u64::MAX };
        let shared = Arc::new(Shared {
            control: Mutex::new(control),
            changed: Condvar::new(),
            wakes: AtomicU64::new(0),
            sleepers: AtomicUsize::new(0),
            frozen: AtomicU64::new(0),
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

    /// Stops all processors between two instructions and guest time with them. On return none runs, and the doorbells
    /// that they rang have rung.
    pub fn pause(&self) {
        let mut c = self.shared.control.lock().unwrap();
        if c.order == Order::Run {
            c.order = Order::Pause;
        }
        drop(c);
        let parked = |c: &Control| c.parked >= self.threads.len() || c.order != Order::Pause;
        loop {
            (0..self.cpus).for_each(|n| self.shared.vm.kick(n));
            self.shared.changed.notify_all();
            let c = self.shared.control.lock().unwrap();
            // One that does not come may wait in the host's kernel for others: kicks tell the back end.
            let (c, waited) = self.shared.changed.wait_timeout_while(c, AGAIN, |c| !parked(c)).unwrap();
            if !waited.timed_out() || parked(&c) {
                break;
            }
        }
        self.shared.machine.clock().pause();
        self.shared.vm.hear();
    }

    /// Keeps the threads of processors on host processors: pairs of ours and theirs, below [`crate::HOST_CPUS`]. A
    /// thread that runs several goes by what is said of any of them.
    ///
    /// # Errors
    /// When this process may use none of them.
    pub fn pin(&self, pins: &[(u32, usize)]) -> std::io::Result<()> {
        let alone = self.threads.len() == self.cpus as usize;
        for (n, thread) in self.threads.iter().enumerate() {
            let of_thread = |&&(vcpu, _): &&(u32, usize)| !alone || vcpu as usize == n;
            let mut cpus = pins.iter().filter(of_thread).map(|(_, cpu)| *cpu).peekable();
            if cpus.peek().is_some() {
                affinity::pin(thread, cpus)?;
            }
        }
        Ok(())
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
            for vcpu in &mut group.lock().unwrap().vcpus {
                out.push(f(vcpu.as_mut()));
            }
        }
        out
    }

    /// Keeps processors from running, bit n for processor n, also when the others go on. They must be paused.
    pub fn freeze(&self, which: u64) {
        self.shared.frozen.store(which, Ordering::SeqCst);
    }

    /// Each processor's counters, as [`Vm::stats`].
    ///
    /// # Errors
    /// What the host refuses.
    pub fn stats(&self) -> anyhow::Result<Vec<Vec<(String, u64)>>> {
        (0..self.cpus).map(|n| self.shared.vm.stats(n)).collect()
    }

    /// Whose turn it is on each thread. The processors must be paused.
    pub fn turns(&self) -> Vec<Turn> {
        self.shared.groups.iter().map(|g| g.lock().unwrap().turn).collect()
    }

    /// Sets whose turn it is. `false` when that does not fit these threads.
    pub fn set_turns(&self, turns: &[Turn]) -> bool {
        let fits = |(g, t): (&Mutex<Group>, &Turn)| t.vcpu < g.lock().unwrap().vcpus.len() && t.left <= SLICE;
        if turns.len() != self.shared.groups.len() || !self.shared.groups.iter().zip(turns).all(fits) {
            return false;
        }
        self.shared.groups.iter().zip(turns).for_each(|(g, t)| g.lock().unwrap().turn = *t);
        true
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
                c.dead = (0, 0);
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
            let mut group = self.groups[n].lock().unwrap();
            let outcome = self.run(&mut group, limit);
            drop(group);
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
    fn run(&self, group: &mut Group, limit: u64) -> Option<Outcome> {
        let by_instructions = self.machine.clock().by_instructions();
        // It does not change while they run.
        let mask = self.frozen.load(Ordering::SeqCst);
        let frozen = |vcpu: u32| mask >> vcpu & 1 != 0;
        let count = |vcpus: &[Box<dyn Vcpu>]| vcpus.iter().filter_map(|v| v.icount()).sum::<u64>();
        // Processors in a row that had nothing to do.
        let mut idle = 0;
        let mut wakes = self.wakes.load(Ordering::SeqCst);
        loop {
            if self.control.lock().unwrap().order != Order::Run {
                return None;
            }
            let Group { vcpus, turn } = &mut *group;
            let mut left = turn.left;
            if limit != u64::MAX {
                left = left.min(limit.saturating_sub(count(vcpus)));
                if left == 0 {
                    return Some(Outcome::Limit);
                }
            }
            let before = vcpus[turn.vcpu].icount();
            let exit = if frozen(vcpus[turn.vcpu].index()) { Exit::Halted } else { vcpus[turn.vcpu].run(left) };
            let ran = before.zip(vcpus[turn.vcpu].icount()).map(|(a, b)| b - a);
            turn.left = turn.left.saturating_sub(ran.unwrap_or(left));
            // Where nobody counts, one that halts has not done anything that its neighbours were not woken for.
            idle = if ran.map_or(exit == Exit::Slice, |n| n > 0) { 0 } else { idle };
            match exit {
                // With time left it stopped for a timer.
                Exit::Slice => {}
                // The order is looked at above.
                Exit::Kicked => idle = 0,
                Exit::Halted => {
                    idle += 1;
                    turn.left = 0;
                }
                Exit::TripleFault(report) => return Some(Outcome::TripleFault(report)),
                Exit::Failed(why) => return Some(Outcome::Failed(why)),
                Exit::Debug(stop) => return Some(Outcome::Debug(vcpus[turn.vcpu].index(), stop)),
            }
            if turn.left == 0 {
                *turn = Turn { vcpu: (turn.vcpu + 1) % vcpus.len(), left: SLICE };
            }
            if by_instructions && self.machine.timers.run_due() > 0 {
                idle = 0;
            }
            if idle < vcpus.len() {
                if idle == 0 {
                    wakes = self.wakes.load(Ordering::SeqCst);
                }
                continue;
            }
            idle = 0;
            let dead = vcpus.iter().all(|v| v.dead() && !frozen(v.index()));
            let clock = self.machine.clock();
            if !dead && clock.is_real() && self.machine.timers.next() < clock.now().saturating_add(NAP) {
                self.machine.timers.run_due();
                continue;
            }
            let mut c = self.control.lock().unwrap();
            if dead && self.wakes.load(Ordering::SeqCst) == wakes {
                let others = if c.dead.1 == wakes { c.dead.0 } else { 0 };
                c.dead = (others + 1, wakes);
                if c.dead.0 == self.groups.len() {
                    return Some(Outcome::Halted);
                }
            }
            let next = self.machine.timers.next();
            if by_instructions && next != u64::MAX {
                drop(c);
                self.machine.clock().set(next.max(self.machine.clock().now()));
                self.machine.timers.run_due();
                continue;
            }
            self.sleepers.fetch_add(1, Ordering::SeqCst);
            while c.order == Order::Run && self.wakes.load(Ordering::SeqCst) == wakes {
                c = self.changed.wait(c).unwrap();
            }
            self.sleepers.fetch_sub(1, Ordering::SeqCst);
            wakes = self.wakes.load(Ordering::SeqCst);
        }
    }
}
