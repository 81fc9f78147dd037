use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use emu::bench::Bench;
use emu::{Backends, Device, ResetKind};

use super::*;
use crate::io::IoThread;

/// A device that tells what it hears.
struct Ear(Sender<InputEvent>, ());

impl Device for Ear {
    fn event(&mut self, event: Event) {
        if let Event::Input(events) = event {
            events.into_iter().for_each(|event| self.0.send(event).unwrap());
        }
    }
    fn reset(&mut self, _: ResetKind) {}
    fn state(&mut self) -> &mut dyn emu::State {
        &mut self.1
    }
}

struct Rig {
    _bench: Bench,
    far: UnixStream,
    plug: Box<dyn Evdev>,
    heard: Receiver<InputEvent>,
    gate: Arc<Gate>,
    _io: IoThread,
}

fn rig() -> Rig {
    let (bench, gate) = (Bench::new(), Gate::new());
    let io = IoThread::start(&bench.machine, &gate).unwrap();
    let (far, near) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    let identity = InputIdentity { name: "a keyboard".to_owned(), ..InputIdentity::default() };
    let send = near.try_clone().unwrap();
    let mut plug = Plug::between(near, send, identity, "a keyboard".to_owned(), io.io()).unwrap();
    let (tx, heard) = channel();
    let cell = bench.machine.plug_with("ear", None, Backends::default(), |_| Ok(Box::new(Ear(tx, ())))).unwrap();
    plug.attach(Arc::downgrade(&cell));
    gate.open();
    Rig { _bench: bench, far, plug, heard, gate, _io: io }
}

fn event(kind: u16, code: u16, value: u32) -> InputEvent {
    InputEvent { kind, code, value }
}

/// As the kernel hands it out.
fn bytes(events: &[InputEvent]) -> Vec<u8> {
    let one = |e: &InputEvent| {
        let [kind, code] = [e.kind, e.code].map(u16::to_ne_bytes);
        [&[0x77; TIME][..], &kind, &code, &e.value.to_ne_bytes()].concat()
    };
    events.iter().flat_map(one).collect()
}

impl Rig {
    fn says(&mut self, events: &[InputEvent]) {
        self.far.write_all(&bytes(events)).unwrap();
    }

    fn hears(&self, events: &[InputEvent]) {
        for event in events {
            assert_eq!(self.heard.recv_timeout(Duration::from_secs(20)).as_ref(), Ok(event));
        }
        assert!(self.heard.try_recv().is_err());
    }
}

const REPORT: InputEvent = InputEvent { kind: SYN, code: 0, value: 0 };

#[test]
fn events_pass_both_ways() {
    let mut r = rig();
    assert_eq!(r.plug.identity().name, "a keyboard");
    let typed = [event(4, 4, 30), event(KEY, 30, 1), REPORT, event(KEY, 30, 2), REPORT, event(2, 8, u32::MAX), REPORT];
    r.says(&typed);
    r.hears(&typed);
    r.plug.send(event(0x11, 1, 1));
    let mut lamp = [0; EVENT];
    r.far.read_exact(&mut lamp).unwrap();
    assert_eq!(lamp[TIME..], [0x11, 0, 1, 0, 1, 0, 0, 0]);
}

#[test]
fn what_comes_while_the_machine_is_paused_or_full_waits() {
    let mut r = rig();
    r.gate.close();
    r.says(&[event(KEY, 30, 1), REPORT]);
    assert!(r.heard.recv_timeout(Duration::from_millis(50)).is_err());
    r.plug.want(false);
    r.gate.open();
    // It may have been read before the device was full.
    let first: Vec<_> = r.heard.recv_timeout(Duration::from_millis(50)).into_iter().chain(r.heard.try_recv()).collect();
    r.says(&[event(KEY, 30, 0), REPORT]);
    assert!(r.heard.recv_timeout(Duration::from_millis(50)).is_err());
    r.plug.want(true);
    if first.is_empty() {
        r.hears(&[event(KEY, 30, 1), REPORT, event(KEY, 30, 0), REPORT]);
    } else {
        r.hears(&[event(KEY, 30, 0), REPORT]);
    }
}

#[test]
fn no_key_stays_down_when_events_are_lost_or_the_device_goes() {
    let mut r = rig();
    r.says(&[event(KEY, 30, 1), event(KEY, 48, 1), REPORT, event(KEY, 30, 0), REPORT]);
    r.hears(&[event(KEY, 30, 1), event(KEY, 48, 1), REPORT, event(KEY, 30, 0), REPORT]);
    // What is left of a report says nothing.
    r.says(&[event(SYN, DROPPED, 0), event(KEY, 46, 1), REPORT, event(KEY, 32, 1), REPORT]);
    r.hears(&[event(KEY, 48, 0), REPORT, event(KEY, 32, 1), REPORT]);
    let (_, other) = UnixStream::pair().unwrap();
    drop(std::mem::replace(&mut r.far, other));
    r.hears(&[event(KEY, 32, 0), REPORT]);
}

#[test]
fn what_is_no_input_device_is_refused() {
    let error = |path: &str| format!("{:#}", Host::open(Path::new(path)).unwrap_err());
    assert_eq!(error("/dev/null"), "/dev/null: it is no input device");
    assert!(error("/nowhere/event0").contains("No such file"), "{}", error("/nowhere/event0"));
}
