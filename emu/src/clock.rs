//! Guest time: one base from which TSC, PIT, PM timer, HPET, LAPIC and RTC derive, and the timers that wait on it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Instant;

use crate::device::holds_device;

/// Where time comes from.
enum Source {
    /// The host's monotonic clock, while the machine runs.
    Running { epoch: Instant },
    /// Somebody calls [`Clock::set`]: the software CPU by executed instructions, or a test by hand.
    Set { instructions: bool },
}

/// The machine's time, in nanoseconds since power-on. It stands still while the machine is paused.
pub struct Clock {
    source: Source,
    /// `Running`: nanoseconds of host time that did not count; `Set`: the time.
    value: AtomicU64,
    /// `Running`: the time at which the machine was paused.
    frozen_at: AtomicU64,
    frozen: AtomicBool,
    /// `Running`: the host's time at which it was paused, and the sum of the pauses before.
    since: AtomicU64,
    stood: AtomicU64,
}

impl Clock {
    /// Real time. The machine starts paused at 0.
    pub fn running() -> Arc<Clock> {
        Clock::with(Source::Running { epoch: Instant::now() })
    }

    /// Time driven by executed instructions: a run is repeatable bit for bit.
    pub fn instructions() -> Arc<Clock> {
        Clock::with(Source::Set { instructions: true })
    }

    /// Time moved by hand, for tests.
    pub fn manual() -> Arc<Clock> {
        Clock::with(Source::Set { instructions: false })
    }

    fn with(source: Source) -> Arc<Clock> {
        Arc::new(Clock {
            source,
            value: AtomicU64::new(0),
            frozen_at: AtomicU64::new(0),
            frozen: AtomicBool::new(true),
            since: AtomicU64::new(0),
            stood: AtomicU64::new(0),
        })
    }

    /// Nanoseconds of guest time since power-on.
    #[inline]
    pub fn now(&self) -> u64 {
        match &self.source {
            Source::Set { .. } => self.value.load(Ordering::Relaxed),
            Source::Running { epoch } => {
                if self.frozen.load(Ordering::Acquire) {
                    self.frozen_at.load(Ordering::Relaxed)
                } else {
                    (epoch.elapsed().as_nanos() as u64).wrapping_sub(self.value.load(Ordering::Relaxed))
                }
            }
        }
    }

    /// Whether executed instructions drive the time.
    pub fn by_instructions(&self) -> bool {
        matches!(self.source, Source::Set { instructions: true })
    }

    /// Whether time follows the host's clock.
    pub fn is_real(&self) -> bool {
        matches!(self.source, Source::Running { .. })
    }

    /// Moves a clock that is not real to `ns`. It may also be called on a paused real clock, when state is loaded.
    pub fn set(&self, ns: u64) {
        match self.source {
            Source::Set { .. } => self.value.store(ns, Ordering::Relaxed),
            Source::Running { .. } => self.frozen_at.store(ns, Ordering::Relaxed),
        }
    }

    /// Whether it is a real clock that stands still.
    pub fn stands(&self) -> bool {
        self.is_real() && self.frozen.load(Ordering::Acquire)
    }

    /// Nanoseconds of the host's time in which a real clock stood still. While the machine runs that is a constant.
    pub fn stood_still(&self) -> u64 {
        let stood = self.stood.load(Ordering::Acquire);
        match &self.source {
            Source::Running { epoch } if self.frozen.load(Ordering::Acquire) => {
                stood + (epoch.elapsed().as_nanos() as u64).saturating_sub(self.since.load(Ordering::Relaxed))
            }
            _ => stood,
        }
    }

    /// Stops guest time.
    pub fn pause(&self) {
        if let Source::Running { epoch } = &self.source
            && !self.frozen.load(Ordering::Acquire)
        {
            self.since.store(epoch.elapsed().as_nanos() as u64, Ordering::Relaxed);
            self.frozen_at.store(self.now(), Ordering::Relaxed);
            self.frozen.store(true, Ordering::Release);
        }
    }

    /// Lets guest time go on from where it stood.
    pub fn resume(&self) {
        if let Source::Running { epoch } = &self.source
            && self.frozen.load(Ordering::Acquire)
        {
            self.stood.store(self.stood_still(), Ordering::Release);
            let skipped = (epoch.elapsed().as_nanos() as u64).wrapping_sub(self.frozen_at.load(Ordering::Relaxed));
            self.value.store(skipped, Ordering::Relaxed);
            self.frozen.store(false, Ordering::Release);
        }
    }
}

/// Whatever a timer wakes. Called without any timer lock held.
pub trait TimerSink: Send + Sync {
    /// The timer that its owner numbers `id` is due. The owner reads the clock itself: the call may come late.
    fn fire(&self, id: u32);
}

struct Entry {
    sink: Weak<dyn TimerSink>,
    id: u32,
    deadline: Arc<AtomicU64>,
    /// Counts the settings, so that stale heap items are known.
    stamp: u64,
}

#[derive(Default)]
struct Queue {
    entries: Vec<Entry>,
    /// (deadline, entry, stamp): equal deadlines fire in the order in which the timers were made, which a restored
    /// machine has in common with the one that was saved.
    heap: BinaryHeap<Reverse<(u64, usize, u64)>>,
}

/// Runs what it is given if the machine runs, and says whether it did.
type Gate = Box<dyn Fn(&dyn Fn()) -> bool + Send + Sync>;

/// All timers of a machine.
pub struct Timers {
    clock: Arc<Clock>,
    queue: Mutex<Queue>,
    next: AtomicU64,
    earlier: OnceLock<Box<dyn Fn() + Send + Sync>>,
    gate: OnceLock<Gate>,
    /// Held by the thread that fires.
    firing: Mutex<()>,
}

impl Timers {
    /// No timers yet.
    pub fn new(clock: Arc<Clock>) -> Arc<Timers> {
        let next = AtomicU64::new(u64::MAX);
        Arc::new(Timers {
            clock,
            queue: Mutex::default(),
            next,
            earlier: OnceLock::new(),
            gate: OnceLock::new(),
            firing: Mutex::default(),
        })
    }

    /// The clock they wait on.
    pub fn clock(&self) -> &Arc<Clock> {
        &self.clock
    }

    /// Makes a timer, idle at first.
    pub fn add(self: &Arc<Timers>, sink: Weak<dyn TimerSink>, id: u32) -> Timer {
        let mut q = self.queue.lock().unwrap();
        let deadline = Arc::new(AtomicU64::new(u64::MAX));
        q.entries.push(Entry { sink, id, deadline: deadline.clone(), stamp: 0 });
        Timer { timers: self.clone(), entry: q.entries.len() - 1, deadline }
    }

    /// The earliest deadline in nanoseconds of guest time, `u64::MAX` for none. It may be early, never late.
    #[inline]
    pub fn next(&self) -> u64 {
        self.next.load(Ordering::Acquire)
    }

    /// `f` is called whenever the earliest deadline moves forward in time's direction of the present, so that whoever
    /// sleeps until [`Timers::next`] looks again. Only the first call counts.
    pub fn on_earlier(&self, f: impl Fn() + Send + Sync + 'static) {
        let _ = self.earlier.set(Box::new(f));
    }

    /// `gate` is asked by those who would rather hand something to a device at once than wake somebody up for a timer.
    /// It runs what it is given while the machine runs, and otherwise says no. Only the first call counts.
    pub fn set_gate(&self, gate: impl Fn(&dyn Fn()) -> bool + Send + Sync + 'static) {
        let _ = self.gate.set(Box::new(gate));
    }

    /// Hands something to a device on this thread, if it holds no device's lock, time is real and the machine runs.
    /// Otherwise that has to wait for a timer.
    pub(crate) fn at_once(&self, f: &dyn Fn()) -> bool {
        self.clock.is_real() && !holds_device() && self.gate.get().is_some_and(|gate| gate(f))
    }

    /// Fires everything that is due now, in the order of the deadlines. Returns how many fired: none if another thread
    /// is at it, or what two of them bring a device, such as what is typed, could come in the wrong order.
    pub fn run_due(&self) -> usize {
        let Ok(_firing) = self.firing.try_lock() else { return 0 };
        // One look at the clock: what becomes due meanwhile waits for the next call. A guest that programs a timer to
        // come faster than the host can serve it would otherwise never get its thread back.
        let now = self.clock.now();
        let mut fired = 0;
        while self.next() <= now {
            let Some((sink, id)) = self.pop(now) else { continue };
            fired += 1;
            if let Some(sink) = sink.upgrade() {
                sink.fire(id);
            }
        }
        fired
    }

    fn pop(&self, now: u64) -> Option<(Weak<dyn TimerSink>, u32)> {
        let mut q = self.queue.lock().unwrap();
        let mut due = None;
        while let Some(&Reverse((deadline, entry, stamp))) = q.heap.peek() {
            if q.entries[entry].stamp != stamp {
                q.heap.pop();
            } else if deadline <= now && due.is_none() {
                q.heap.pop();
                let e = &mut q.entries[entry];
                e.deadline.store(u64::MAX, Ordering::Release);
                e.stamp += 1;
                due = Some((e.sink.clone(), e.id));
            } else {
                break;
            }
        }
        self.next.store(q.heap.peek().map_or(u64::MAX, |Reverse((d, ..))| *d), Ordering::Release);
        due
    }
}

/// One timer of its owner.
pub struct Timer {
    timers: Arc<Timers>,
    entry: usize,
    /// Only changed under the queue's lock.
    deadline: Arc<AtomicU64>,
}

impl Timer {
    /// Guest time now, in nanoseconds.
    pub fn now(&self) -> u64 {
        self.timers.clock.now()
    }

    /// As [`Timers::at_once`].
    pub(crate) fn at_once(&self, f: &dyn Fn()) -> bool {
        self.timers.at_once(f)
    }

    /// Fires once at `deadline` nanoseconds of guest time, replacing an earlier setting.
    pub fn set(&self, deadline: u64) {
        // Devices set their timers after each access, mostly to what they are set to. Whoever it fires at takes the lock
        // that the caller has, so the two cannot miss each other.
        if self.deadline.load(Ordering::Acquire) == deadline {
            return;
        }
        let mut q = self.timers.queue.lock().unwrap();
        let e = &mut q.entries[self.entry];
        e.deadline.store(deadline, Ordering::Release);
        e.stamp += 1;
        let item = (deadline, self.entry, e.stamp);
        if deadline == u64::MAX {
            return;
        }
        q.heap.push(Reverse(item));
        // A timer that is set again and again before it fires must not grow the heap.
        if q.heap.len() > 4 * q.entries.len() + 64 {
            let heap = std::mem::take(&mut q.heap);
            q.heap = heap.into_iter().filter(|Reverse((_, e, s))| q.entries[*e].stamp == *s).collect();
        }
        let earlier = deadline < self.timers.next();
        if earlier {
            self.timers.next.store(deadline, Ordering::Release);
        }
        drop(q);
        if earlier && let Some(f) = self.timers.earlier.get() {
            f();
        }
    }

    /// Makes the timer idle.
    pub fn cancel(&self) {
        self.set(u64::MAX);
    }

    /// When it fires, if it is set.
    pub fn deadline(&self) -> Option<u64> {
        // Under the lock: whoever finds it set may rely on what was written before being seen when it fires.
        let q = self.timers.queue.lock().unwrap();
        let d = q.entries[self.entry].deadline.load(Ordering::Relaxed);
        (d != u64::MAX).then_some(d)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    struct Log(Mutex<Vec<u32>>);
    impl TimerSink for Log {
        fn fire(&self, id: u32) {
            self.0.lock().unwrap().push(id);
        }
    }

    fn rig() -> (Arc<Clock>, Arc<Timers>, Arc<Log>) {
        let clock = Clock::manual();
        (clock.clone(), Timers::new(clock), Arc::new(Log(Mutex::default())))
    }

    fn sink(log: &Arc<Log>) -> Weak<dyn TimerSink> {
        let weak: Weak<Log> = Arc::downgrade(log);
        weak
    }

    #[test]
    fn timers_fire_once_in_the_order_of_their_deadlines() {
        let (clock, timers, log) = rig();
        let (a, b, c) = (timers.add(sink(&log), 1), timers.add(sink(&log), 2), timers.add(sink(&log), 3));
        a.set(30);
        c.set(10);
        b.set(10);
        assert_eq!(timers.next(), 10);
        clock.set(9);
        assert_eq!(timers.run_due(), 0);
        clock.set(30);
        timers.run_due();
        assert_eq!(*log.0.lock().unwrap(), [2, 3, 1]);
        assert_eq!(timers.next(), u64::MAX);
        timers.run_due();
        assert_eq!(log.0.lock().unwrap().len(), 3);
    }

    #[test]
    fn a_timer_that_is_always_due_does_not_keep_the_thread() {
        struct Again(OnceLock<Timer>);
        impl TimerSink for Again {
            fn fire(&self, _: u32) {
                let t = self.0.get().unwrap();
                // As if serving it had taken longer than its period.
                t.timers.clock.set(t.now() + 10);
                t.set(t.now() - 5);
            }
        }
        let (clock, timers, _log) = rig();
        let again = Arc::new(Again(OnceLock::new()));
        let weak: Weak<Again> = Arc::downgrade(&again);
        assert!(again.0.set(timers.add(weak, 0)).is_ok());
        again.0.get().unwrap().set(5);
        clock.set(5);
        assert_eq!(timers.run_due(), 1);
        assert_eq!(timers.run_due(), 1);
    }

    #[test]
    fn one_thread_fires_at_a_time() {
        struct Slow(Mutex<mpsc::Receiver<()>>, Mutex<mpsc::Sender<()>>);
        impl TimerSink for Slow {
            fn fire(&self, _: u32) {
                self.1.lock().unwrap().send(()).unwrap();
                self.0.lock().unwrap().recv().unwrap();
            }
        }
        let (clock, timers, log) = rig();
        let (go, wait) = mpsc::channel();
        let (begun, begins) = mpsc::channel();
        let slow = Arc::new(Slow(Mutex::new(wait), Mutex::new(begun)));
        let weak: Weak<Slow> = Arc::downgrade(&slow);
        let (a, b) = (timers.add(weak, 0), timers.add(sink(&log), 1));
        a.set(5);
        clock.set(5);
        let other = timers.clone();
        let thread = std::thread::spawn(move || other.run_due());
        begins.recv().unwrap();
        b.set(5);
        assert_eq!((timers.run_due(), log.0.lock().unwrap().len()), (0, 0), "the other thread is not through");
        go.send(()).unwrap();
        assert!(thread.join().unwrap() > 0);
        timers.run_due();
        assert_eq!(*log.0.lock().unwrap(), [1]);
    }

    #[test]
    fn a_timer_set_again_or_cancelled_forgets_its_first_deadline() {
        let (clock, timers, log) = rig();
        let (a, b) = (timers.add(sink(&log), 1), timers.add(sink(&log), 2));
        a.set(10);
        a.set(50);
        b.set(20);
        b.cancel();
        clock.set(40);
        timers.run_due();
        assert!(log.0.lock().unwrap().is_empty());
        assert_eq!((a.deadline(), b.deadline()), (Some(50), None));
        clock.set(50);
        timers.run_due();
        assert_eq!(*log.0.lock().unwrap(), [1]);
    }

    #[test]
    fn setting_a_timer_for_ever_does_not_grow_the_queue() {
        let (_clock, timers, log) = rig();
        let a = timers.add(sink(&log), 1);
        for n in 0..10_000 {
            a.set(1_000_000 - n);
        }
        assert!(timers.queue.lock().unwrap().heap.len() < 100);
    }

    #[test]
    fn the_sleeper_is_told_only_of_earlier_deadlines() {
        let (_clock, timers, log) = rig();
        let told = Arc::new(AtomicU64::new(0));
        let t = told.clone();
        timers.on_earlier(move || {
            t.fetch_add(1, Ordering::Relaxed);
        });
        let (a, b) = (timers.add(sink(&log), 1), timers.add(sink(&log), 2));
        a.set(100);
        b.set(200);
        assert_eq!(told.load(Ordering::Relaxed), 1);
        b.set(50);
        assert_eq!(told.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_real_clock_stands_still_while_paused() {
        let clock = Clock::running();
        assert_eq!(clock.now(), 0);
        clock.resume();
        let a = clock.now();
        clock.pause();
        let b = clock.now();
        assert!(b >= a);
        assert_eq!(clock.now(), b);
        let stood = clock.stood_still();
        while clock.stood_still() < stood + 1000 {}
        clock.resume();
        let stood = clock.stood_still();
        assert!(stood >= 1000);
        clock.pause();
        clock.resume();
        assert!(clock.stood_still() >= stood);
        clock.pause();
        clock.set(5_000_000_000);
        clock.resume();
        assert!(clock.now() >= 5_000_000_000 && clock.now() < 15_000_000_000);
    }
}
