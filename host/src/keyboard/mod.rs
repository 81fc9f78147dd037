//! Keys that are pressed on a guest's keyboard: typed at the terminal, sent by other processes, or by a script.
//!
//! A [`Typist`] holds what is to be pressed and presses a key when the keyboard has said that the guest has read what
//! came before, and not before its buffer of keys has room, if it has one that we can see. Everything happens by the
//! machine's timers, so that with the instruction clock what a script types comes at the same instruction in every run.

mod keymap;
mod language;
pub(crate) mod layout;
mod terminal;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use emu::backend::Keys;
use emu::{DeviceCell, DeviceState, Event, Machine, ResetKind, Saved, Timer, TimerSink};
use serde::{Deserialize, Serialize};

use crate::part;

pub use language::parse;
pub use layout::{LAYOUTS, Layout};
pub(crate) use terminal::Decoder;

/// From one key to the next, in nanoseconds of guest time: nobody types faster, and old guests poll.
const PACE: u64 = 5_000_000;
/// How long a guest's buffer may stay full before the next key comes all the same: who left it full may not be who
/// reads the keyboard now.
const PATIENCE: u64 = 1_000_000_000;
/// How often a full buffer is looked at.
const LOOK: u64 = 10_000_000;
/// Keys that may wait.
const MOST: usize = 1 << 17;
const VERSION: u32 = 1;

/// Something to do at a keyboard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Press {
    /// This key ([`Event::Key`]) goes down or up.
    Key(u16, bool),
    /// Nothing for so many nanoseconds.
    Wait(u64),
}

/// A keyboard of the machine.
#[derive(Default)]
struct Keyboard {
    cell: Weak<DeviceCell>,
    /// It takes the next key.
    ready: bool,
    /// The guest has set it up. The board's is there without.
    listens: bool,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct State {
    queue: VecDeque<Press>,
    /// The board's keyboard takes the next key, as others say when they are restored.
    ready: bool,
    /// The next key comes no earlier.
    not_before: u64,
    /// Since when the guest's buffer was seen to be full.
    full_since: Option<u64>,
}

/// Says whether the guest has room for another key.
pub type Room = Box<dyn Fn() -> bool + Send + Sync>;

/// Presses keys. It is saved and restored with the machine.
pub struct Typist {
    timer: OnceLock<Timer>,
    /// The board's first.
    keyboards: Mutex<Vec<Keyboard>>,
    room: Room,
    state: Mutex<State>,
    lights: AtomicU8,
}

impl Typist {
    /// The typist of a machine, and the handle for its keyboard.
    pub fn start(machine: &Arc<Machine>, room: Room) -> (Arc<Typist>, Box<dyn Keys>) {
        let typist = Arc::new(Typist {
            timer: OnceLock::new(),
            keyboards: Mutex::new(vec![Keyboard::default()]),
            room,
            state: Mutex::default(),
            lights: AtomicU8::new(0),
        });
        let sink: Weak<Typist> = Arc::downgrade(&typist);
        typist.timer.get_or_init(|| machine.timers.add(sink, 0));
        machine.add_part(typist.clone());
        (typist.clone(), Box::new(Hands(typist, 0)))
    }

    /// The handle for a keyboard beside the board's.
    pub fn keyboard(self: &Arc<Typist>) -> Box<dyn Keys> {
        let mut keyboards = self.keyboards.lock().unwrap();
        keyboards.push(Keyboard::default());
        Box::new(Hands(self.clone(), keyboards.len() - 1))
    }

    fn timer(&self) -> &Timer {
        self.timer.get().expect("set by start")
    }

    /// Adds to what is to be pressed. False when too much waits already.
    pub fn press(&self, keys: &[Press]) -> bool {
        let mut state = self.state.lock().unwrap();
        if state.queue.len() + keys.len() > MOST {
            return false;
        }
        state.queue.extend(keys);
        self.arm(&state);
        true
    }

    /// What still waits.
    pub fn waiting(&self) -> usize {
        self.state.lock().unwrap().queue.len()
    }

    /// The keyboard's lights: bit 0 Scroll Lock, 1 Num Lock, 2 Caps Lock.
    pub fn lights(&self) -> u8 {
        self.lights.load(Ordering::Relaxed)
    }

    /// Sets the timer for the next key.
    fn arm(&self, state: &State) {
        let due = match state.queue.front() {
            Some(Press::Wait(_)) => true,
            Some(Press::Key(..)) => self.reader(state).is_some(),
            None => false,
        };
        // The keyboard's lock may be held here; the timer calls without it, at the same moment of guest time.
        self.timer().set(if due { state.not_before.max(self.timer().now()) } else { u64::MAX });
    }

    /// The keyboard that the guest reads, and whether it is the board's: of those that it has set up the last; if it
    /// can take a key.
    fn reader(&self, state: &State) -> Option<(Weak<DeviceCell>, bool)> {
        let keyboards = self.keyboards.lock().unwrap();
        match keyboards.iter().rfind(|k| k.listens) {
            Some(other) => other.ready.then(|| (other.cell.clone(), false)),
            None => state.ready.then(|| (keyboards[0].cell.clone(), true)),
        }
    }

    /// The key that is due, and the keyboard for it.
    fn next(&self) -> Option<(Weak<DeviceCell>, u16, bool)> {
        let mut state = self.state.lock().unwrap();
        let now = self.timer().now();
        if now >= state.not_before {
            match state.queue.front().copied() {
                Some(Press::Wait(ns)) => {
                    state.queue.pop_front();
                    state.not_before = now + ns;
                }
                Some(Press::Key(code, down)) if let Some((cell, boards)) = self.reader(&state) => {
                    let since = *state.full_since.get_or_insert(now);
                    // Letting go of a key fills nobody's buffer.
                    if !down || !boards || (self.room)() || now >= since + PATIENCE {
                        state.queue.pop_front();
                        state.full_since = None;
                        state.not_before = now + PACE;
                        self.arm(&state);
                        return Some((cell, code, down));
                    }
                    state.not_before = now + LOOK;
                }
                _ => {}
            }
        }
        self.arm(&state);
        None
    }
}

impl TimerSink for Typist {
    fn fire(&self, _: u32) {
        let Some((cell, code, down)) = self.next() else { return };
        if let Some(cell) = cell.upgrade() {
            cell.event(Event::Key(code, down));
        }
    }
}

impl DeviceState for Typist {
    fn name(&self) -> &str {
        "typist"
    }

    /// Nothing: whoever types does not forget because the machine was reset.
    fn reset(&self, _: ResetKind) {}

    fn save(&self) -> Saved {
        part::save(VERSION, &*self.state.lock().unwrap(), self.timer())
    }

    fn load(&self, saved: Saved) -> Result<(), String> {
        *self.state.lock().unwrap() = part::load(VERSION, saved, self.timer())?;
        Ok(())
    }
}

/// The typist as a keyboard knows it; which one it is.
struct Hands(Arc<Typist>, usize);

impl Keys for Hands {
    fn attach(&mut self, to: Weak<DeviceCell>) {
        self.0.keyboards.lock().unwrap()[self.1].cell = to;
    }

    fn want(&mut self, ready: bool) {
        let mut state = self.0.state.lock().unwrap();
        match self.1 {
            0 => state.ready = ready,
            n => self.0.keyboards.lock().unwrap()[n].ready = ready,
        }
        self.0.arm(&state);
    }

    fn lights(&mut self, lights: u8) {
        self.0.lights.store(lights, Ordering::Relaxed);
    }

    fn listens(&mut self, on: bool) {
        let state = self.0.state.lock().unwrap();
        self.0.keyboards.lock().unwrap()[self.1].listens = on;
        self.0.arm(&state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use emu::bench::Bench;
    use emu::{Backends, Device};
    use std::sync::atomic::AtomicBool;

    /// A keyboard whose guest reads when it is told to.
    struct Keyboard(Box<dyn Keys>, Arc<Mutex<Vec<(u16, bool)>>>, ());

    impl Device for Keyboard {
        fn read(&mut self, _: u32, _: u64, _: u8) -> u64 {
            self.0.want(true);
            0
        }
        fn event(&mut self, event: Event) {
            if let Event::Key(code, down) = event {
                self.1.lock().unwrap().push((code, down));
                self.0.want(false);
            }
        }
        fn reset(&mut self, _: ResetKind) {}
        fn state(&mut self) -> &mut dyn emu::State {
            &mut self.2
        }
    }

    struct Rig {
        b: Bench,
        typist: Arc<Typist>,
        seen: Arc<Mutex<Vec<(u16, bool)>>>,
        full: Arc<AtomicBool>,
    }

    fn rig() -> Rig {
        let b = Bench::new();
        let full = Arc::new(AtomicBool::new(false));
        let seen: Arc<Mutex<Vec<(u16, bool)>>> = Arc::default();
        let is_full = full.clone();
        let (typist, mut keys) = Typist::start(&b.machine, Box::new(move || !is_full.load(Ordering::Relaxed)));
        let log = seen.clone();
        b.machine
            .plug_with("keyboard", None, Backends::default(), |slot| {
                slot.ports(0, 0x60, 1, emu::Widths::BYTE);
                keys.attach(slot.cell());
                Ok(Box::new(Keyboard(keys, log, ())))
            })
            .unwrap();
        Rig { b, typist, seen, full }
    }

    impl Rig {
        fn seen(&self) -> Vec<(u16, bool)> {
            std::mem::take(&mut self.seen.lock().unwrap())
        }
    }

    #[test]
    fn keys_wait_for_the_guest_and_for_one_another() {
        let mut rig = rig();
        assert!(rig.typist.press(&parse("ab").unwrap()));
        rig.b.advance(SECOND);
        assert_eq!(rig.seen(), [], "the keyboard is not ready");
        rig.b.inb(0x60);
        rig.b.advance(0);
        assert_eq!(rig.seen(), [(0x1e, true)]);
        rig.b.inb(0x60);
        rig.b.advance(PACE - 1);
        assert_eq!(rig.seen(), []);
        rig.b.advance(1);
        assert_eq!(rig.seen(), [(0x1e, false)]);
        assert_eq!(rig.typist.waiting(), 2);
    }

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_full_buffer_is_waited_for_but_not_for_ever() {
        let mut rig = rig();
        rig.full.store(true, Ordering::Relaxed);
        rig.b.inb(0x60);
        rig.typist.press(&parse("a").unwrap());
        rig.b.advance(PATIENCE / 2);
        assert_eq!(rig.seen(), []);
        rig.b.advance(PATIENCE);
        assert_eq!(rig.seen(), [(0x1e, true)]);
    }

    #[test]
    fn pauses_are_guest_time() {
        let mut rig = rig();
        rig.b.inb(0x60);
        rig.typist.press(&parse("<wait 2>a").unwrap());
        rig.b.advance(2 * SECOND - 1);
        assert_eq!(rig.seen(), []);
        rig.b.advance(1);
        assert_eq!(rig.seen(), [(0x1e, true)]);
    }

    #[test]
    fn who_types_without_end_is_refused() {
        let rig = rig();
        let keys = vec![Press::Key(0x1e, true); MOST];
        assert!(rig.typist.press(&keys));
        assert!(!rig.typist.press(&keys[..1]));
    }

    #[test]
    fn a_restored_typist_goes_on() {
        let mut rig = rig();
        rig.b.inb(0x60);
        rig.typist.press(&parse("<wait 1>ab").unwrap());
        rig.b.advance(SECOND / 2);
        let saved = rig.typist.save();
        let other = self::rig();
        other.b.machine.clock().set(SECOND / 2);
        other.typist.load(saved.clone()).unwrap();
        assert_eq!(other.typist.save(), saved);
        other.b.advance(SECOND / 2);
        assert_eq!(other.seen(), [(0x1e, true)]);
    }
}
