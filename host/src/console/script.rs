//! Input from a list instead of from a person: bytes, keys and Ethernet frames at fixed moments of guest time, or when
//! the guest has printed something or shows it on its screen.
//!
//! Everything happens by the machine's own timers and by what the guest does, so that under the instruction clock two
//! runs get the same input at the same instruction. The output goes on to another console, whose input is cut off.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use emu::backend::Chardev;
use emu::{DeviceCell, DeviceState, Event, Machine, ResetKind, Saved, Timer, TimerSink};
use serde::{Deserialize, Serialize};

use crate::keyboard::{Press, Typist};
use crate::net::Wire;
use crate::part;

/// Bytes of output that are kept for a pattern that is not looked for yet.
const HEARD: usize = 64 << 10;
/// How often the screen is looked at, in nanoseconds of guest time.
const LOOK: u64 = 20_000_000;
const VERSION: u32 = 1;

/// What a step waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum When {
    /// This moment, in nanoseconds of guest time; at once if it is over.
    At(u64),
    /// The guest printed a pattern, after what the step before waited for.
    Seen {
        /// The bytes to wait for.
        pattern: Vec<u8>,
        /// Nanoseconds of guest time to wait from then on.
        after: u64,
    },
    /// A text is on the screen.
    Shown {
        /// Part of a line.
        text: String,
        /// Nanoseconds of guest time to wait from then on.
        after: u64,
    },
}

impl Default for When {
    fn default() -> When {
        When::At(0)
    }
}

/// One step of a script. It begins to wait when the step before it has sent its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// What it waits for.
    pub when: When,
    /// What it then types at the console.
    pub send: Vec<u8>,
    /// What it then types at the keyboard.
    pub keys: Vec<Press>,
    /// What then comes in, by the number of its network card and without FCS.
    pub frame: Option<(u32, Vec<u8>)>,
}

/// Where a script types keys, the adapter whose screen it looks at, and the cables that it holds.
#[derive(Clone)]
pub struct Desk {
    /// The keyboard.
    pub typist: Arc<Typist>,
    /// The screen.
    pub screen: Option<Arc<DeviceCell>>,
    /// The cables, by the number of the network card.
    pub wires: BTreeMap<u32, Arc<Wire>>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct State {
    /// The step that waits.
    next: usize,
    /// When it sends, if that is known.
    due: Option<u64>,
    /// Output that no pattern was found in yet.
    heard: Vec<u8>,
    /// Typed, and not taken by the device.
    pending: VecDeque<u8>,
    /// Bytes that the device can take.
    want: usize,
}

/// A script at work. It is saved and restored with the machine.
pub struct Script {
    name: String,
    steps: Vec<Step>,
    desk: Option<Desk>,
    timer: OnceLock<Timer>,
    cell: Mutex<Weak<DeviceCell>>,
    state: Mutex<State>,
}

impl Script {
    /// A script that runs in `machine`, under a name unique there, and the console that it makes of `output`.
    pub fn start(
        machine: &Arc<Machine>,
        name: &str,
        steps: Vec<Step>,
        output: Box<dyn Chardev>,
        desk: Option<Desk>,
    ) -> (Arc<Script>, Box<dyn Chardev>) {
        let script = Arc::new(Script {
            name: name.to_owned(),
            steps,
            desk,
            timer: OnceLock::new(),
            cell: Mutex::default(),
            state: Mutex::default(),
        });
        let sink: Weak<Script> = Arc::downgrade(&script);
        let timer = script.timer.get_or_init(|| machine.timers.add(sink, 0));
        script.go_on(&mut script.state.lock().unwrap(), timer);
        machine.add_part(script.clone());
        (script.clone(), Box::new(Console { script, output }))
    }

    /// The step that waits, counted from 0; the number of steps when all is typed.
    pub fn position(&self) -> usize {
        self.state.lock().unwrap().next
    }

    fn timer(&self) -> &Timer {
        self.timer.get().expect("set by start")
    }

    /// Does the steps that are due, and sets the timer for what comes next.
    fn go_on(&self, state: &mut State, timer: &Timer) {
        let now = timer.now();
        while let Some(step) = self.steps.get(state.next) {
            if state.due.is_none() {
                state.due = match &step.when {
                    When::At(moment) => Some(*moment),
                    When::Seen { pattern, after } => {
                        find(&mut state.heard, pattern).then(|| now.saturating_add(*after))
                    }
                    // Looking takes the adapter's lock, which only the timer can.
                    When::Shown { .. } => None,
                };
            }
            if state.due.is_none_or(|due| due > now) {
                break;
            }
            state.pending.extend(&step.send);
            if let Some(desk) = &self.desk {
                desk.typist.press(&step.keys);
                if let Some((nic, frame)) = &step.frame
                    && let Some(wire) = desk.wires.get(nic)
                {
                    wire.put(frame);
                }
            }
            state.due = None;
            state.next += 1;
        }
        let deliver = state.want > 0 && !state.pending.is_empty();
        // The device lock may be held here; the timer calls back without it, at the same moment of guest time.
        let looks = matches!(self.steps.get(state.next), Some(Step { when: When::Shown { .. }, .. }));
        let idle = if looks { now.saturating_add(LOOK) } else { u64::MAX };
        timer.set(if deliver { now } else { state.due.unwrap_or(idle) });
    }

    /// Looks at the screen if that is what the present step waits for.
    fn look(&self) {
        let next = self.state.lock().unwrap().next;
        let Some(Step { when: When::Shown { text, after }, .. }) = self.steps.get(next) else { return };
        let screen = self.desk.as_ref().and_then(|desk| desk.screen.as_ref());
        let shown = screen.and_then(|cell| cell.with(|d| d.display().and_then(|display| display.text())).flatten());
        if shown.is_some_and(|shown| crate::screen::plain(&shown).contains(text)) {
            let mut state = self.state.lock().unwrap();
            if state.due.is_none() {
                state.due = Some(self.timer().now().saturating_add(*after));
            }
        }
    }

    fn hear(&self, bytes: &[u8]) {
        let mut state = self.state.lock().unwrap();
        if !self.steps[state.next.min(self.steps.len())..].iter().any(|s| matches!(s.when, When::Seen { .. })) {
            return;
        }
        state.heard.extend(bytes);
        if state.heard.len() > 2 * HEARD {
            let old = state.heard.len() - HEARD;
            state.heard.drain(..old);
        }
        if state.due.is_none() {
            self.go_on(&mut state, self.timer());
        }
    }
}

/// Looks for a pattern and removes all up to its end. Without success all is removed in which it cannot begin any more.
fn find(heard: &mut Vec<u8>, pattern: &[u8]) -> bool {
    if pattern.is_empty() {
        return true;
    }
    match heard.windows(pattern.len()).position(|w| w == pattern) {
        Some(at) => {
            heard.drain(..at + pattern.len());
            true
        }
        None => {
            let old = heard.len().saturating_sub(pattern.len() - 1);
            heard.drain(..old);
            false
        }
    }
}

impl TimerSink for Script {
    fn fire(&self, _id: u32) {
        self.look();
        let bytes: Vec<u8> = {
            let mut state = self.state.lock().unwrap();
            self.go_on(&mut state, self.timer());
            let n = state.want.min(state.pending.len());
            state.want -= n;
            state.pending.drain(..n).collect()
        };
        let cell = self.cell.lock().unwrap().clone();
        if !bytes.is_empty()
            && let Some(cell) = cell.upgrade()
        {
            cell.event(Event::Chars(0, bytes));
        }
        self.go_on(&mut self.state.lock().unwrap(), self.timer());
    }
}

impl DeviceState for Script {
    fn name(&self) -> &str {
        &self.name
    }

    /// Nothing: whoever types does not forget because the machine was reset.
    fn reset(&self, _kind: ResetKind) {}

    fn save(&self) -> Saved {
        part::save(VERSION, &*self.state.lock().unwrap(), self.timer())
    }

    fn load(&self, saved: Saved) -> Result<(), String> {
        let state: State = part::load(VERSION, saved, self.timer())?;
        if state.next > self.steps.len() {
            return Err("it was saved with another script".to_owned());
        }
        *self.state.lock().unwrap() = state;
        Ok(())
    }
}

/// The console that a script makes of another.
struct Console {
    script: Arc<Script>,
    output: Box<dyn Chardev>,
}

impl Chardev for Console {
    fn write(&mut self, data: &[u8]) -> usize {
        let n = self.output.write(data);
        self.script.hear(&data[..n]);
        n
    }

    /// The output learns of the device too, which it has to tell when there is room; as nothing is ever wanted of it,
    /// it brings no input.
    fn attach(&mut self, to: Weak<DeviceCell>, number: usize) {
        self.output.attach(to.clone(), number);
        *self.script.cell.lock().unwrap() = to;
    }

    fn want(&mut self, bytes: usize) {
        let mut state = self.script.state.lock().unwrap();
        state.want = bytes;
        self.script.go_on(&mut state, self.script.timer());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::tests::{Plugged, Rig};

    /// Keeps what is written.
    #[derive(Clone, Default)]
    struct Capture(Arc<Mutex<Vec<u8>>>, Option<usize>);

    impl Chardev for Capture {
        fn write(&mut self, data: &[u8]) -> usize {
            let n = data.len().min(self.1.unwrap_or(usize::MAX));
            self.0.lock().unwrap().extend(&data[..n]);
            n
        }

        fn attach(&mut self, _to: Weak<DeviceCell>, _: usize) {}

        fn want(&mut self, _bytes: usize) {
            panic!("a script's output brings no input");
        }
    }

    fn at(moment: u64, send: &[u8]) -> Step {
        Step { when: When::At(moment), send: send.to_vec(), ..Step::default() }
    }

    fn seen(pattern: &[u8], after: u64, send: &[u8]) -> Step {
        Step { when: When::Seen { pattern: pattern.to_vec(), after }, send: send.to_vec(), ..Step::default() }
    }

    fn start(steps: &[Step], quick: bool) -> (Rig, Arc<Script>, Plugged, Capture) {
        let rig = Rig::new();
        let capture = Capture::default();
        let (script, console) =
            Script::start(&rig.bench.machine, "script", steps.to_vec(), Box::new(capture.clone()), None);
        let com = rig.plug(console, quick);
        (rig, script, com, capture)
    }

    #[test]
    fn bytes_come_at_their_moments_and_not_before() {
        let (rig, script, com, _) = start(&[at(100, b"a"), at(200, b"b"), at(150, b"c")], true);
        rig.bench.advance(99);
        assert_eq!(com.input(), b"");
        rig.bench.advance(1);
        assert_eq!((com.input(), script.position()), (b"a".to_vec(), 1));
        rig.bench.advance(99);
        assert_eq!(com.input(), b"a");
        // A moment that is over when its turn comes is now.
        rig.bench.advance(1);
        assert_eq!((com.input(), script.position()), (b"abc".to_vec(), 3));
    }

    #[test]
    fn a_device_gets_no_more_than_it_wants() {
        let text: Vec<u8> = (0..40).collect();
        let (rig, _, com, _) = start(&[at(10, &text)], false);
        rig.bench.advance(10);
        assert_eq!(com.input(), text[..16]);
        rig.bench.advance(1_000_000);
        assert_eq!(com.input().len(), 16);
        com.take_input();
        // Not under the guest's access, which holds the device, but at the same moment.
        assert_eq!(com.input().len(), 16);
        rig.bench.advance(0);
        assert_eq!(com.input(), text[..32]);
        com.take_input();
        rig.bench.advance(0);
        assert_eq!(com.input(), text);
    }

    #[test]
    fn a_pattern_is_found_across_writes_and_answered_later() {
        let (rig, _, com, capture) = start(&[seen(b"login: ", 50, b"root\r"), seen(b"# ", 0, b"ls\r")], true);
        com.print(b"# log log");
        com.print(b"in");
        rig.bench.advance(1000);
        assert_eq!(com.input(), b"");
        com.print(b": ");
        rig.bench.advance(49);
        assert_eq!(com.input(), b"");
        // It comes before the answer to the first is sent, and counts.
        com.print(b"# ");
        rig.bench.advance(1);
        assert_eq!(com.input(), b"root\rls\r");
        assert_eq!(*capture.0.lock().unwrap(), b"# log login: # ");
    }

    #[test]
    fn what_one_step_has_found_the_next_does_not_find_again() {
        let (rig, script, com, _) = start(&[seen(b"aa", 0, b"1"), seen(b"aa", 0, b"2")], true);
        com.print(b"aaa");
        rig.bench.advance(1);
        assert_eq!((com.input(), script.position()), (b"1".to_vec(), 1));
        com.print(b"a");
        rig.bench.advance(1);
        assert_eq!(com.input(), b"12");
    }

    #[test]
    fn output_that_was_refused_is_not_seen() {
        let rig = Rig::new();
        let (script, mut console) = Script::start(
            &rig.bench.machine,
            "script",
            vec![seen(b"ab", 0, b"")],
            Box::new(Capture(Arc::default(), Some(1))),
            None,
        );
        assert_eq!(console.write(b"ab"), 1);
        assert_eq!(script.position(), 0);
        assert_eq!(console.write(b"b"), 1);
        assert_eq!(script.position(), 1);
    }

    #[test]
    fn a_guest_that_prints_without_end_fills_no_memory() {
        let (rig, script, com, _) = start(&[at(10, b""), seen(b"never", 0, b"")], true);
        for _ in 0..100 {
            com.print(&[b'n'; 4096]);
        }
        assert!(script.state.lock().unwrap().heard.len() <= 2 * HEARD);
        rig.bench.advance(10);
        com.print(b"x");
        assert!(script.state.lock().unwrap().heard.len() < 5);
    }

    #[test]
    fn a_restored_script_goes_on_where_the_saved_one_was() {
        let text: Vec<u8> = (0..20).collect();
        let steps = [at(10, &text), seen(b"go", 100, b"x")];
        let (rig, script, com, _) = start(&steps, false);
        rig.bench.advance(10);
        com.print(b"g");
        let saved = script.save();

        let (other, restored, com, _) = start(&steps, false);
        other.bench.machine.clock().set(10);
        restored.load(saved).unwrap();
        com.take_input();
        other.bench.advance(0);
        assert_eq!(com.input(), text[16..]);
        com.print(b"o");
        let armed = restored.save();
        assert_eq!(armed.timers, [Some(110)]);

        let (other, restored, com, _) = start(&steps, false);
        other.bench.machine.clock().set(10);
        restored.load(armed).unwrap();
        com.take_input();
        other.bench.advance(99);
        assert_eq!(com.input(), b"");
        other.bench.advance(1);
        assert_eq!(com.input(), b"x");

        let (_rig, short, _, _) = start(&steps[..1], false);
        assert!(short.load(restored.save()).is_err());
    }
}
