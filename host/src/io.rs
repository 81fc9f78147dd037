//! The io thread: timers in real time, and the descriptors of the backends.
//!
//! One thread waits for everything: the guest's timers, sockets and ptys, and other threads that ring. What waits on it
//! is a [`Source`]. Descriptors are polled edge-triggered, and a source that has its turn tries all that it could do
//! until the host says that it would block, so it need not know why it was called.
//!
//! What a source has for a device goes through the [`Gate`] without waiting for it: while the machine is paused the
//! thread still serves listeners and clients, and all sources have a turn when the gate opens.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use emu::{Machine, Timers};
use mio::{Events, Poll, Registry, Token, Waker};

use crate::sys::Alarm;

/// Whether events may reach devices. Backends hold it open while they deliver; closing waits for them.
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    on_open: Mutex<Vec<Box<dyn Fn() + Send + Sync>>>,
}

struct State {
    closed: bool,
    /// Deliveries under way.
    inside: usize,
}

/// A delivery under way; over when it is dropped, be it by a panic.
struct Inside<'a>(&'a Gate);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock().unwrap();
        state.inside -= 1;
        if state.closed && state.inside == 0 {
            self.0.changed.notify_all();
        }
    }
}

impl Gate {
    /// A gate that is closed.
    pub fn new() -> Arc<Gate> {
        Arc::new(Gate {
            state: Mutex::new(State { closed: true, inside: 0 }),
            changed: Condvar::new(),
            on_open: Mutex::default(),
        })
    }

    /// Runs `f` while the gate is open; waits until it is. `f` must neither pass again nor close the gate.
    pub fn pass<T>(&self, f: impl FnOnce() -> T) -> T {
        let mut state = self.state.lock().unwrap();
        while state.closed {
            state = self.changed.wait(state).unwrap();
        }
        state.inside += 1;
        drop(state);
        let _inside = Inside(self);
        f()
    }

    /// Runs `f` if the gate is open. `f` must neither pass again nor close the gate.
    pub fn try_pass<T>(&self, f: impl FnOnce() -> T) -> Option<T> {
        let mut state = self.state.lock().unwrap();
        if state.closed {
            return None;
        }
        state.inside += 1;
        drop(state);
        let _inside = Inside(self);
        Some(f())
    }

    /// Closes the gate. On return nothing is under way.
    pub fn close(&self) {
        let mut state = self.state.lock().unwrap();
        state.closed = true;
        while state.closed && state.inside > 0 {
            state = self.changed.wait(state).unwrap();
        }
    }

    /// Opens it.
    pub fn open(&self) {
        self.state.lock().unwrap().closed = false;
        self.changed.notify_all();
        for told in self.on_open.lock().unwrap().iter() {
            told();
        }
    }

    /// Whether it is open at this moment.
    fn is_open(&self) -> bool {
        !self.state.lock().unwrap().closed
    }
}

/// Names a [`Source`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key(usize);

const WAKER: Token = Token(0);
const ALARM: Token = Token(1);
/// The first source's token.
const SOURCES: usize = 2;

impl Key {
    /// What the descriptors of the source are registered with.
    pub(crate) fn token(self) -> Token {
        Token(self.0 + SOURCES)
    }
}

/// Something that waits on the io thread.
pub(crate) trait Source: Send {
    /// Does whatever can be done now without waiting: a descriptor became ready, somebody rang, the gate opened, or the
    /// deadline is there. False ends the source.
    fn turn(&mut self, gate: &Gate) -> bool;

    /// When it wants a turn whatever happens.
    fn deadline(&self) -> Option<Instant> {
        None
    }
}

#[derive(Default)]
struct Inbox {
    stop: bool,
    /// All sources have a turn.
    all: bool,
    rung: Vec<Key>,
    new: Vec<(Key, Box<dyn Source>)>,
}

impl Inbox {
    fn is_empty(&self) -> bool {
        !self.stop && !self.all && self.rung.is_empty() && self.new.is_empty()
    }
}

/// Where backends meet the io thread. It exists before the machine does, so that backends can be opened first.
pub struct Io {
    registry: Registry,
    waker: Waker,
    /// Until the thread takes it.
    poll: Mutex<Option<Poll>>,
    inbox: Mutex<Inbox>,
    /// The thread is in the poll or about to be, so that ringing takes more than leaving word.
    sleeping: AtomicBool,
    keys: AtomicUsize,
}

impl Io {
    /// No sources and no thread yet.
    ///
    /// # Errors
    /// When the host has no descriptors for it.
    pub fn new() -> std::io::Result<Arc<Io>> {
        let poll = Poll::new()?;
        let registry = poll.registry().try_clone()?;
        Ok(Arc::new(Io {
            waker: Waker::new(&registry, WAKER)?,
            registry,
            poll: Mutex::new(Some(poll)),
            inbox: Mutex::default(),
            sleeping: AtomicBool::new(false),
            keys: AtomicUsize::new(0),
        }))
    }

    /// A name for a new source.
    pub(crate) fn key(&self) -> Key {
        Key(self.keys.fetch_add(1, Ordering::Relaxed))
    }

    /// Where a source registers its descriptors, with [`Key::token`].
    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Hands a source to the thread. It has a turn at once.
    pub(crate) fn add(&self, key: Key, source: Box<dyn Source>) {
        self.leave(|inbox| inbox.new.push((key, source)));
    }

    /// Gives a source a turn.
    pub(crate) fn ring(&self, key: Key) {
        self.leave(|inbox| {
            if !inbox.rung.contains(&key) {
                inbox.rung.push(key);
            }
        });
    }

    fn leave(&self, word: impl FnOnce(&mut Inbox)) {
        word(&mut self.inbox.lock().unwrap());
        self.wake();
    }

    /// Gets the thread out of the poll. Whatever it should find was stored before.
    fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.sleeping.swap(false, Ordering::SeqCst) {
            // It fails only when the kernel's counter is full, and then the thread is awake.
            let _ = self.waker.wake();
        }
    }
}

/// The thread. It ends when it is dropped, and its sources with it.
pub struct IoThread {
    io: Arc<Io>,
    thread: Option<JoinHandle<()>>,
}

impl IoThread {
    /// Starts the thread for a machine whose backends need no descriptors. The gate is the machine's.
    ///
    /// # Errors
    /// When the host has no thread or descriptors for it.
    pub fn start(machine: &Arc<Machine>, gate: &Arc<Gate>) -> std::io::Result<IoThread> {
        IoThread::start_on(&Io::new()?, &machine.timers, gate)
    }

    /// Starts the thread for a machine's timers and for the backends that were opened with `io`. The gate is the
    /// machine's.
    ///
    /// # Errors
    /// When the host has no thread or descriptors for it.
    ///
    /// # Panics
    /// When `io` has a thread already.
    pub fn start_on(io: &Arc<Io>, timers: &Arc<Timers>, gate: &Arc<Gate>) -> std::io::Result<IoThread> {
        let poll = io.poll.lock().unwrap().take().expect("one thread for an Io");
        let alarm = Alarm::new(&io.registry, ALARM)?;
        let weak: Weak<Io> = Arc::downgrade(io);
        timers.on_earlier(move || {
            if let Some(io) = weak.upgrade() {
                io.wake();
            }
        });
        let g = gate.clone();
        timers.set_gate(move |f| g.try_pass(f).is_some());
        let weak: Weak<Io> = Arc::downgrade(io);
        gate.on_open.lock().unwrap().push(Box::new(move || {
            if let Some(io) = weak.upgrade() {
                io.leave(|inbox| inbox.all = true);
            }
        }));
        let (i, t, g) = (io.clone(), timers.clone(), gate.clone());
        let thread = std::thread::Builder::new().name("io".to_owned()).spawn(move || work(&i, poll, &alarm, &t, &g))?;
        Ok(IoThread { io: io.clone(), thread: Some(thread) })
    }

    /// Where backends meet it.
    pub fn io(&self) -> &Arc<Io> {
        &self.io
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        self.io.leave(|inbox| inbox.stop = true);
        if let Some(t) = self.thread.take() {
            let _ = t.join();
        }
    }
}

fn work(io: &Io, mut poll: Poll, alarm: &Alarm, timers: &Timers, gate: &Gate) {
    let clock = timers.clock();
    let mut events = Events::with_capacity(64);
    let mut sources: BTreeMap<Key, Box<dyn Source>> = BTreeMap::new();
    let mut before = u64::MAX;
    loop {
        // From here on whoever leaves word also rings, and what was left before is found below.
        io.sleeping.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let wait = if io.inbox.lock().unwrap().is_empty() {
            let mut wait = None;
            // A clock that is not real is served by whoever moves it.
            if clock.is_real() && gate.is_open() && timers.next() != u64::MAX {
                let now = clock.now();
                let left = Duration::from_nanos(timers.next().saturating_sub(now));
                // Time stands still between the processors' pause and the gate's closing; no need to run in circles.
                let least = if now == before { Duration::from_millis(1) } else { Duration::ZERO };
                wait = Some(left.max(least));
                before = now;
            }
            if let Some(deadline) = sources.values().filter_map(|s| s.deadline()).min() {
                let left = deadline.saturating_duration_since(Instant::now());
                wait = Some(wait.map_or(left, |w| w.min(left)));
            }
            wait
        } else {
            Some(Duration::ZERO)
        };
        let polled = match wait {
            Some(Duration::ZERO) => poll.poll(&mut events, wait),
            _ => alarm.set(wait).and_then(|timeout| poll.poll(&mut events, timeout)),
        };
        io.sleeping.store(false, Ordering::SeqCst);
        if let Err(e) = polled
            && e.kind() != std::io::ErrorKind::Interrupted
        {
            panic!("the io thread cannot wait: {e}");
        }

        if clock.is_real() && timers.next() <= clock.now() {
            gate.try_pass(|| timers.run_due());
        }
        let inbox = std::mem::take(&mut *io.inbox.lock().unwrap());
        if inbox.stop {
            return;
        }
        let mut turns: BTreeSet<Key> = inbox.rung.into_iter().collect();
        turns.extend(events.iter().filter_map(|e| e.token().0.checked_sub(SOURCES).map(Key)));
        turns.extend(inbox.new.iter().map(|(key, _)| *key));
        sources.extend(inbox.new);
        let now = Instant::now();
        turns.extend(
            sources.iter().filter(|(_, s)| inbox.all || s.deadline().is_some_and(|d| d <= now)).map(|(k, _)| *k),
        );
        for key in turns {
            if let Some(source) = sources.get_mut(&key)
                && !source.turn(gate)
            {
                sources.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use emu::{AddressSpace, Clock, Ram, Timer, TimerSink};
    use std::sync::mpsc::{Receiver, Sender, channel};

    const SOON: Duration = Duration::from_secs(20);

    /// Sends the time of each call.
    struct Times(Arc<Clock>, Mutex<Sender<u64>>);

    impl TimerSink for Times {
        fn fire(&self, _id: u32) {
            let _ = self.1.lock().unwrap().send(self.0.now());
        }
    }

    struct Rig {
        gate: Arc<Gate>,
        clock: Arc<Clock>,
        timer: Timer,
        fired: Receiver<u64>,
        thread: IoThread,
        _sink: Arc<Times>,
    }

    fn rig(clock: Arc<Clock>) -> Rig {
        let space = AddressSpace::new(Arc::new(Ram::new(1 << 20).unwrap()));
        let machine = Machine::new(space, clock.clone());
        let (gate, (tx, fired)) = (Gate::new(), channel());
        let sink = Arc::new(Times(clock.clone(), Mutex::new(tx)));
        let weak: Weak<Times> = Arc::downgrade(&sink);
        let timer = machine.timers.add(weak, 0);
        let thread = IoThread::start(&machine, &gate).unwrap();
        Rig { gate, clock, timer, fired, thread, _sink: sink }
    }

    #[test]
    fn timers_are_not_rounded_to_milliseconds() {
        let r = rig(Clock::running());
        r.gate.open();
        r.clock.resume();
        // A busy host makes some of them late; rounding would make each late by 0.7 ms.
        let late = (0..200).map(|_| {
            let deadline = r.clock.now() + 300_000;
            r.timer.set(deadline);
            let at = r.fired.recv_timeout(SOON).unwrap();
            assert!(at >= deadline, "early");
            at - deadline
        });
        assert!(late.min().unwrap() < 300_000);
    }

    #[test]
    fn a_timer_fires_only_while_the_gate_is_open() {
        let r = rig(Clock::running());
        r.clock.resume();
        r.timer.set(r.clock.now());
        assert!(r.fired.recv_timeout(Duration::from_millis(20)).is_err());
        r.gate.open();
        r.fired.recv_timeout(SOON).unwrap();
    }

    #[test]
    fn a_timer_set_while_the_thread_sleeps_gets_it_up() {
        let r = rig(Clock::running());
        r.gate.open();
        r.clock.resume();
        r.timer.set(r.clock.now() + 3_600_000_000_000);
        r.timer.set(r.clock.now() + 1_000_000);
        r.fired.recv_timeout(SOON).unwrap();
    }

    #[test]
    fn a_clock_that_is_not_real_is_left_to_whoever_moves_it() {
        let r = rig(Clock::instructions());
        r.gate.open();
        r.timer.set(5);
        r.clock.set(10);
        // The thread has looked at its timers when it has given this source its turn.
        r.thread.io().meet();
        assert!(r.fired.try_recv().is_err());
    }

    /// Tells of each turn, and ends with the second.
    struct Turns(Sender<bool>, usize);

    impl Source for Turns {
        fn turn(&mut self, gate: &Gate) -> bool {
            self.0.send(gate.try_pass(|| ()).is_some()).unwrap();
            self.1 -= 1;
            self.1 > 0
        }
    }

    impl Io {
        /// Returns when the thread has been round once.
        fn meet(&self) {
            let (tx, rx) = channel();
            self.add(self.key(), Box::new(Turns(tx, 1)));
            rx.recv_timeout(SOON).unwrap();
        }
    }

    #[test]
    fn sources_have_turns_when_added_when_rung_and_when_the_gate_opens() {
        let r = rig(Clock::manual());
        let io = r.thread.io();
        let (tx, rx) = channel();
        let key = io.key();
        io.add(key, Box::new(Turns(tx, 3)));
        assert!(!rx.recv_timeout(SOON).unwrap());
        io.ring(key);
        assert!(!rx.recv_timeout(SOON).unwrap());
        r.gate.open();
        assert!(rx.recv_timeout(SOON).unwrap());
        // It has ended, and its sender with it.
        io.ring(key);
        assert!(rx.recv().is_err());
    }

    /// Has one turn by its deadline.
    struct Late(Instant, Sender<Instant>);

    impl Source for Late {
        fn turn(&mut self, _gate: &Gate) -> bool {
            let now = Instant::now();
            self.1.send(now).unwrap();
            now < self.0
        }

        fn deadline(&self) -> Option<Instant> {
            Some(self.0)
        }
    }

    #[test]
    fn a_deadline_gives_a_turn_that_nobody_rings_for() {
        let r = rig(Clock::manual());
        let (tx, rx) = channel();
        let deadline = Instant::now() + Duration::from_millis(5);
        r.thread.io().add(r.thread.io().key(), Box::new(Late(deadline, tx)));
        // The first is that of its coming.
        assert!(rx.iter().last().unwrap() >= deadline);
    }

    #[test]
    fn closing_the_gate_waits_for_a_delivery_under_way_and_lets_no_other_begin() {
        let gate = Gate::new();
        gate.open();
        let (inside, is_inside) = channel();
        let (go, going) = channel::<()>();
        let over = Arc::new(AtomicBool::new(false));
        let (g, o) = (gate.clone(), over.clone());
        let delivery = std::thread::spawn(move || {
            g.pass(|| {
                inside.send(()).unwrap();
                going.recv().unwrap();
                o.store(true, Ordering::SeqCst);
            });
        });
        is_inside.recv().unwrap();
        let (g, o) = (gate.clone(), over.clone());
        let closer = std::thread::spawn(move || {
            g.close();
            o.load(Ordering::SeqCst)
        });
        while gate.is_open() {
            std::thread::yield_now();
        }
        assert_eq!(gate.try_pass(|| ()), None);
        assert!(!closer.is_finished());
        go.send(()).unwrap();
        assert!(closer.join().unwrap(), "the gate was closed before the delivery was over");
        delivery.join().unwrap();

        let g = gate.clone();
        let waiting = std::thread::spawn(move || g.pass(|| 5));
        gate.open();
        assert_eq!(waiting.join().unwrap(), 5);
    }

    #[test]
    fn a_delivery_that_panics_does_not_keep_the_gate_from_closing() {
        let gate = Gate::new();
        gate.open();
        let g = gate.clone();
        assert!(std::thread::spawn(move || g.pass(|| panic!("as planned"))).join().is_err());
        gate.close();
        assert!(!gate.is_open());
    }
}
