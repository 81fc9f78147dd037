//! What stands between a card and what its cable leads to: people pull the plug, look at the frames, and the
//! configuration limits how many bits pass in a second.
//!
//! With a limit, frames wait in a queue for each way. A card that sends faster loses what does not fit; what comes to the
//! card is held back where it comes from, as by a card without room. Frames pass in order, and multicast as any other.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use emu::backend::{Listener, Net, Offload};
use emu::{Event, when_unlocked};

use super::pcap::Capture;
use crate::io::{Gate, Io, Key, Source};

/// Bytes that wait in one direction.
const QUEUE: usize = 256 << 10;
/// How far a rate may be ahead of itself.
const BURST: Duration = Duration::from_millis(10);

/// People's handle on a cable.
#[derive(Clone)]
pub struct Cable(Arc<Shared>);

struct Shared {
    io: Arc<Io>,
    key: Key,
    limited: bool,
    state: Mutex<State>,
    /// What the cable leads to; nothing when the card is gone. Taken after `state`, if both are.
    net: Mutex<Option<Box<dyn Net>>>,
}

struct State {
    card: Option<Weak<dyn Listener>>,
    /// Somebody has pulled the plug.
    pulled: bool,
    /// The other end says that there is a link.
    lit: bool,
    /// What the card was told.
    told: bool,
    /// The card has no room.
    full: bool,
    /// The other end was asked to wait.
    held: bool,
    capture: Option<Capture>,
    out: Lane,
    into: Lane,
}

/// One direction, with a limit.
struct Lane {
    /// Bits in a second; any number if there is no limit.
    bits: Option<u64>,
    /// When all that has passed is paid for.
    paid: Instant,
    queue: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl Lane {
    fn new(bits: Option<u64>) -> Lane {
        Lane { bits, paid: Instant::now(), queue: VecDeque::new(), bytes: 0 }
    }

    /// Lets a frame wait, if there is room.
    fn push(&mut self, frame: Vec<u8>) {
        if self.bytes + frame.len() <= QUEUE {
            self.bytes += frame.len();
            self.queue.push_back(frame);
        }
    }

    /// The next frame, if it may pass by now.
    fn pop(&mut self, now: Instant) -> Option<Vec<u8>> {
        if self.due()? > now {
            return None;
        }
        let frame = self.queue.pop_front()?;
        self.bytes -= frame.len();
        self.paid = self.paid.max(now) + self.cost(&frame);
        Some(frame)
    }

    /// A frame that was taken could not pass after all.
    fn put_back(&mut self, frame: Vec<u8>) {
        self.paid = self.paid.checked_sub(self.cost(&frame)).unwrap_or(self.paid);
        self.bytes += frame.len();
        self.queue.push_front(frame);
    }

    fn cost(&self, frame: &[u8]) -> Duration {
        let nanoseconds = |bits: u64| frame.len() as u64 * 8_000_000_000 / bits.max(1);
        Duration::from_nanos(self.bits.map_or(0, nanoseconds))
    }

    /// When the next frame may pass.
    fn due(&self) -> Option<Instant> {
        (!self.queue.is_empty()).then(|| self.paid.checked_sub(BURST).unwrap_or(self.paid))
    }

    fn clear(&mut self) {
        self.queue.clear();
        self.bytes = 0;
    }
}

impl Cable {
    /// Puts a cable between a card and what it is to lead to, with so many bits a second each way, or any number.
    /// What comes back goes into the card.
    pub fn lay(io: &Arc<Io>, net: Box<dyn Net>, bits: Option<u64>) -> (Cable, Box<dyn Net>) {
        let shared = Arc::new(Shared {
            io: io.clone(),
            key: io.key(),
            limited: bits.is_some(),
            state: Mutex::new(State {
                card: None,
                pulled: false,
                lit: true,
                told: true,
                full: true,
                held: true,
                capture: None,
                out: Lane::new(bits),
                into: Lane::new(bits),
            }),
            net: Mutex::new(Some(net)),
        });
        io.add(shared.key, Box::new(Pump { shared: shared.clone(), paused: false }));
        (Cable(shared.clone()), Box::new(Plug(shared)))
    }

    /// Pulls the plug, or puts it in again. The guest hears of it while the machine runs.
    pub fn plug(&self, into: bool) {
        let mut state = self.0.state();
        state.pulled = !into;
        if !into {
            state.out.clear();
            state.into.clear();
        }
        drop(state);
        self.0.io.ring(self.0.key);
    }

    /// Whether the plug is in.
    pub fn plugged(&self) -> bool {
        !self.0.state().pulled
    }

    /// Writes all frames, from now on, to a file, for tcpdump(1).
    ///
    /// # Errors
    /// When a capture is under way, or the file cannot be written.
    pub fn capture(&self, file: File) -> io::Result<()> {
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a capture goes into a file"));
        }
        if self.0.state().capture.is_some() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "its frames are captured already"));
        }
        // Cards do not wait for the file; orders, which come one at a time, do.
        let capture = Capture::start(file)?;
        self.0.state().capture = Some(capture);
        Ok(())
    }

    /// Ends the capture, if there is one: how many frames were written, and how many were lost.
    ///
    /// # Errors
    /// What kept the file from being written.
    pub fn end_capture(&self) -> io::Result<Option<(u64, u64)>> {
        // The last frames are written with nothing locked.
        let capture = self.0.state().capture.take();
        capture.map(Capture::stop).transpose()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn net<T>(&self, f: impl FnOnce(&mut Box<dyn Net>) -> T) -> Option<T> {
        self.net.lock().unwrap().as_mut().map(f)
    }

    /// Has the other end wait, or go on.
    fn ask(&self, state: &mut State) {
        let wait = if self.limited { state.into.bytes >= QUEUE / 2 } else { state.full };
        if wait != state.held {
            state.held = wait;
            self.net(|net| net.want(!wait));
        }
    }
}

impl Listener for Shared {
    fn event(&self, event: Event) {
        let mut state = self.state();
        match event {
            Event::Frame(_) | Event::Partial(..) if state.pulled => {}
            Event::Frame(ref frame) | Event::Partial(ref frame, _) => {
                if let Some(capture) = &state.capture {
                    capture.take(frame);
                }
                if self.limited {
                    state.into.push(frame.clone());
                    self.ask(&mut state);
                    return self.io.ring(self.key);
                }
                let card = state.card.as_ref().and_then(Weak::upgrade);
                drop(state);
                if let Some(card) = card {
                    card.event(event);
                }
            }
            Event::Link(lit) => {
                state.lit = lit;
                self.io.ring(self.key);
            }
            _ => {}
        }
    }
}

/// The cable as the card knows it.
struct Plug(Arc<Shared>);

impl Net for Plug {
    fn send(&mut self, frame: &[u8]) {
        let shared = &self.0;
        let mut state = shared.state();
        if state.pulled {
            return;
        }
        if let Some(capture) = &state.capture {
            capture.take(frame);
        }
        if shared.limited {
            state.out.push(frame.to_vec());
            let shared = shared.clone();
            return when_unlocked(move || shared.io.ring(shared.key));
        }
        drop(state);
        shared.net(|net| net.send(frame));
    }

    /// A limit is one of frames on a wire.
    fn partial(&mut self) -> bool {
        !self.0.limited && self.0.net(|net| net.partial()).unwrap_or(false)
    }

    fn send_partial(&mut self, frame: &[u8], rest: Offload) {
        let state = self.0.state();
        if state.pulled {
            return;
        }
        if let Some(capture) = &state.capture {
            capture.take(frame);
        }
        drop(state);
        self.0.net(|net| net.send_partial(frame, rest));
    }

    fn attach(&mut self, to: Weak<dyn Listener>) {
        self.0.state().card = Some(to);
        let ours: Weak<Shared> = Arc::downgrade(&self.0);
        self.0.net(|net| net.attach(ours));
    }

    fn want(&mut self, ready: bool) {
        let shared = &self.0;
        let mut state = shared.state();
        state.full = !ready;
        shared.ask(&mut state);
        if shared.limited && ready {
            let shared = shared.clone();
            when_unlocked(move || shared.io.ring(shared.key));
        }
    }
}

impl Drop for Plug {
    fn drop(&mut self) {
        *self.0.net.lock().unwrap() = None;
        self.0.io.ring(self.0.key);
    }
}

/// What of a cable waits on the io thread: queues, and news of the link.
struct Pump {
    shared: Arc<Shared>,
    /// The machine is paused. There is a turn when it goes on.
    paused: bool,
}

impl Pump {
    /// Has the card hear of the link, if that has changed. False while the machine is paused.
    fn tell(&self, gate: &Gate) -> bool {
        let state = self.shared.state();
        let up = state.lit && !state.pulled;
        let Some(card) = state.card.as_ref().and_then(Weak::upgrade).filter(|_| up != state.told) else { return true };
        drop(state);
        let passed = gate.try_pass(|| card.event(Event::Link(up))).is_some();
        if passed {
            self.shared.state().told = up;
        }
        passed
    }

    /// Gives the card what may pass by now. False while the machine is paused.
    fn receive(&self, gate: &Gate, now: Instant) -> bool {
        loop {
            let mut state = self.shared.state();
            let Some(card) = state.card.as_ref().and_then(Weak::upgrade).filter(|_| !state.full) else { return true };
            let mut frame = state.into.pop(now);
            self.shared.ask(&mut state);
            drop(state);
            if frame.is_none() {
                return true;
            }
            let passed = gate.try_pass(|| frame.take().into_iter().for_each(|f| card.event(Event::Frame(f))));
            if let (None, Some(frame)) = (passed, frame) {
                self.shared.state().into.put_back(frame);
                return false;
            }
        }
    }
}

impl Source for Pump {
    fn turn(&mut self, gate: &Gate) -> bool {
        if self.shared.net.lock().unwrap().is_none() {
            return false;
        }
        self.paused = !self.tell(gate);
        if !self.paused && self.shared.limited {
            let now = Instant::now();
            self.paused = !self.receive(gate, now);
            let mut state = self.shared.state();
            while let Some(frame) = state.out.pop(now) {
                self.shared.net(|net| net.send(&frame));
            }
        }
        true
    }

    fn deadline(&self) -> Option<Instant> {
        if !self.shared.limited || self.paused {
            return None;
        }
        let state = self.shared.state();
        let into = state.into.due().filter(|_| !state.full);
        state.out.due().into_iter().chain(into).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::IoThread;
    use emu::bench::{Bench, BenchNet};
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// A card that tells what it hears.
    struct Card(Mutex<Sender<Event>>);

    impl Listener for Card {
        fn event(&self, event: Event) {
            let _ = self.0.lock().unwrap().send(event);
        }
    }

    struct Rig {
        cable: Cable,
        plug: Box<dyn Net>,
        far: BenchNet,
        heard: Receiver<Event>,
        gate: Arc<Gate>,
        _card: Arc<Card>,
        _io: IoThread,
    }

    fn rig(bits: Option<u64>) -> Rig {
        let (bench, gate, far) = (Bench::new(), Gate::new(), BenchNet::default());
        let io = IoThread::start(&bench.machine, &gate).unwrap();
        let (cable, mut plug) = Cable::lay(io.io(), Box::new(far.clone()), bits);
        let (tx, heard) = channel();
        let card = Arc::new(Card(Mutex::new(tx)));
        let weak: Weak<Card> = Arc::downgrade(&card);
        plug.attach(weak);
        plug.want(true);
        gate.open();
        Rig { cable, plug, far, heard, gate, _card: card, _io: io }
    }

    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn frames_pass_and_a_pulled_plug_stops_them_and_says_so() {
        let mut r = rig(None);
        r.plug.send(&[1; 60]);
        assert_eq!(r.far.sent(), [[1; 60]]);
        assert!(r.far.put(&[0xff; 60]));
        assert!(matches!(r.heard.recv_timeout(SOON), Ok(Event::Frame(f)) if f == [0xff; 60]));
        r.cable.plug(false);
        assert!(matches!(r.heard.recv_timeout(SOON), Ok(Event::Link(false))));
        r.plug.send(&[2; 60]);
        r.far.put(&[2; 60]);
        assert!(r.far.sent().is_empty() && r.heard.try_recv().is_err() && !r.cable.plugged());
        r.cable.plug(true);
        assert!(matches!(r.heard.recv_timeout(SOON), Ok(Event::Link(true))));
        r.far.put(&[3; 60]);
        assert!(matches!(r.heard.recv_timeout(SOON), Ok(Event::Frame(f)) if f == [3; 60]));
    }

    #[test]
    fn a_paused_machine_hears_of_the_link_when_it_goes_on() {
        let r = rig(None);
        r.gate.close();
        r.cable.plug(false);
        assert!(r.heard.recv_timeout(Duration::from_millis(20)).is_err());
        r.gate.open();
        assert!(matches!(r.heard.recv_timeout(SOON), Ok(Event::Link(false))));
    }

    #[test]
    fn a_card_without_room_reaches_the_other_end() {
        let mut r = rig(None);
        r.plug.want(false);
        assert!(!r.far.ready());
        r.plug.want(true);
        assert!(r.far.ready());
    }

    #[test]
    fn a_limit_holds_both_ways_keeps_the_order_and_loses_only_what_a_card_sends_too_fast() {
        // 100 frames of 1000 bytes are 100 ms each way.
        let mut r = rig(Some(8_000_000));
        let begun = Instant::now();
        for n in 0..100u8 {
            r.plug.send(&[n; 1000]);
            assert!(r.far.put(&[n; 1000]), "the queue has room for these");
        }
        for n in 0..100u8 {
            assert!(matches!(r.heard.recv_timeout(SOON), Ok(Event::Frame(f)) if f == [n; 1000]));
        }
        let mut sent = r.far.sent();
        while sent.len() < 100 {
            assert!(begun.elapsed() < SOON);
            sent.extend(r.far.sent());
        }
        assert!(sent.iter().enumerate().all(|(n, frame)| frame[0] == n as u8));
        assert!(begun.elapsed() >= Duration::from_millis(85), "{:?}", begun.elapsed());
        let put = (0..1000).take_while(|_| r.far.put(&[0; 1000])).count();
        assert!((QUEUE / 2000..=QUEUE / 1000 + 100).contains(&put), "the other end waits after {put} frames");
        (0..1000).for_each(|_| r.plug.send(&[0; 1000]));
        assert!(r.cable.0.state().out.bytes <= QUEUE);
    }

    #[test]
    fn both_directions_are_captured_until_the_capture_ends() {
        let mut r = rig(None);
        let file = crate::disk::temporary().unwrap();
        r.cable.capture(file.try_clone().unwrap()).unwrap();
        assert!(r.cable.capture(file.try_clone().unwrap()).is_err());
        r.plug.send(&[1; 60]);
        r.far.put(&[2; 100]);
        assert_eq!(r.cable.end_capture().unwrap(), Some((2, 0)));
        r.plug.send(&[3; 60]);
        assert_eq!(r.cable.end_capture().unwrap(), None);
        assert_eq!(file.metadata().unwrap().len(), 24 + 16 + 60 + 16 + 100);
    }
}
