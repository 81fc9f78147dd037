//! A cable with a script at its other end: frames come when the script puts them on it, and nobody hears what the guest
//! sends.
//!
//! Frames wait until the card has room, and come by the machine's timers, so that under the instruction clock they come
//! at the same instruction in every run.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use emu::backend::{Listener, Net};
use emu::{DeviceState, Event, Machine, ResetKind, Saved, Timer, TimerSink};
use serde::{Deserialize, Serialize};

use crate::part;

const VERSION: u32 = 1;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct State {
    queue: VecDeque<Vec<u8>>,
    /// The card has no room.
    full: bool,
}

/// The script's end of a cable. It is saved and restored with the machine.
pub struct Wire {
    name: String,
    timer: OnceLock<Timer>,
    cell: Mutex<Option<Weak<dyn Listener>>>,
    state: Mutex<State>,
}

impl Wire {
    /// A cable in `machine`, under a name unique there, and the end that goes into the card.
    pub fn start(machine: &Arc<Machine>, name: &str) -> (Arc<Wire>, Box<dyn Net>) {
        let wire = Arc::new(Wire {
            name: name.to_owned(),
            timer: OnceLock::new(),
            cell: Mutex::default(),
            state: Mutex::default(),
        });
        let sink: Weak<Wire> = Arc::downgrade(&wire);
        wire.timer.get_or_init(|| machine.timers.add(sink, 0));
        machine.add_part(wire.clone());
        (wire.clone(), Box::new(Plug(wire)))
    }

    /// Puts a frame (without FCS) on the cable.
    pub fn put(&self, frame: &[u8]) {
        let mut state = self.state.lock().unwrap();
        state.queue.push_back(frame.to_vec());
        self.arm(&state);
    }

    fn timer(&self) -> &Timer {
        self.timer.get().expect("set by start")
    }

    /// The card's lock may be held here; the timer calls without it, at the same moment of guest time.
    fn arm(&self, state: &State) {
        let due = !state.full && !state.queue.is_empty();
        self.timer().set(if due { self.timer().now() } else { u64::MAX });
    }
}

impl TimerSink for Wire {
    fn fire(&self, _: u32) {
        let frame = {
            let mut state = self.state.lock().unwrap();
            if state.full { None } else { state.queue.pop_front() }
        };
        let cell = self.cell.lock().unwrap().as_ref().and_then(Weak::upgrade);
        if let Some((frame, cell)) = frame.zip(cell) {
            cell.event(Event::Frame(frame));
        }
        self.arm(&self.state.lock().unwrap());
    }
}

impl DeviceState for Wire {
    fn name(&self) -> &str {
        &self.name
    }

    /// Nothing: the script goes on when the machine was reset.
    fn reset(&self, _: ResetKind) {}

    fn save(&self) -> Saved {
        part::save(VERSION, &*self.state.lock().unwrap(), self.timer())
    }

    fn load(&self, saved: Saved) -> Result<(), String> {
        *self.state.lock().unwrap() = part::load(VERSION, saved, self.timer())?;
        Ok(())
    }
}

/// The cable as the card knows it.
struct Plug(Arc<Wire>);

impl Net for Plug {
    fn send(&mut self, _frame: &[u8]) {}

    fn attach(&mut self, to: Weak<dyn Listener>) {
        *self.0.cell.lock().unwrap() = Some(to);
    }

    fn want(&mut self, ready: bool) {
        let mut state = self.0.state.lock().unwrap();
        state.full = !ready;
        self.0.arm(&state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use emu::bench::Bench;
    use emu::{Backends, Device};

    /// A card with room for one frame, which a read of its register makes again.
    struct Card(Box<dyn Net>, Arc<Mutex<Vec<Vec<u8>>>>, ());

    impl Device for Card {
        fn read(&mut self, _: u32, _: u64, _: u8) -> u64 {
            self.0.want(true);
            0
        }
        fn event(&mut self, event: Event) {
            if let Event::Frame(frame) = event {
                self.1.lock().unwrap().push(frame);
                self.0.want(false);
            }
        }
        fn reset(&mut self, _: ResetKind) {}
        fn state(&mut self) -> &mut dyn emu::State {
            &mut self.2
        }
    }

    type Got = Arc<Mutex<Vec<Vec<u8>>>>;

    fn plug() -> (Bench, Arc<Wire>, Got) {
        let bench = Bench::new();
        let (wire, mut net) = Wire::start(&bench.machine, "wire0");
        let got = Got::default();
        let seen = got.clone();
        let card = |slot: &mut emu::Slot| {
            slot.ports(0, 0x300, 1, emu::Widths::BYTE);
            net.attach(slot.cell());
            Ok(Box::new(Card(net, seen, ())) as Box<dyn Device>)
        };
        bench.machine.plug_with("card", None, Backends::default(), card).unwrap();
        (bench, wire, got)
    }

    #[test]
    fn frames_come_in_order_and_none_while_the_card_is_full() {
        let (mut bench, wire, got) = plug();
        for n in 1..=3 {
            wire.put(&[n; 60]);
        }
        bench.advance(0);
        assert_eq!(*got.lock().unwrap(), [[1; 60]]);
        bench.advance(1_000_000);
        assert_eq!(got.lock().unwrap().len(), 1);
        for n in 2..=3 {
            bench.inb(0x300);
            bench.advance(0);
            assert_eq!(got.lock().unwrap()[n - 1], [n as u8; 60]);
        }
    }

    #[test]
    fn frames_that_wait_are_saved() {
        let (bench, wire, _) = plug();
        wire.put(b"first");
        wire.put(b"second");
        bench.advance(0);
        let saved = wire.save();
        let (mut bench, wire, got) = plug();
        wire.load(saved).unwrap();
        bench.advance(0);
        assert!(got.lock().unwrap().is_empty());
        bench.inb(0x300);
        bench.advance(0);
        assert_eq!(*got.lock().unwrap(), [b"second"]);
    }
}
