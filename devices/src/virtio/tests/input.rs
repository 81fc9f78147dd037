use std::sync::{Arc, Mutex, Weak};

use emu::backend::{Evdev, InputEvent, InputIdentity, Keys, Pointer, Pointing};
use emu::bench::Bench;
use emu::{Backends, DeviceCell, DeviceState, Event};

use super::*;
use crate::virtio::input::MODEL;

/// What people and the host were told.
type Log = Arc<Mutex<Vec<String>>>;

struct People(Log);

impl People {
    fn note(&self, what: String) {
        self.0.lock().unwrap().push(what);
    }
}

impl Keys for People {
    fn attach(&mut self, _: Weak<DeviceCell>) {}
    fn want(&mut self, ready: bool) {
        self.note(format!("ready {ready}"));
    }
    fn lights(&mut self, lights: u8) {
        self.note(format!("lights {lights}"));
    }
    fn listens(&mut self, on: bool) {
        self.note(format!("listens {on}"));
    }
}

impl Pointer for People {
    fn attach(&mut self, _: Weak<DeviceCell>) {}
    fn listens(&mut self, kind: Option<Pointing>) {
        self.note(format!("{kind:?}"));
    }
}

impl Evdev for People {
    fn identity(&self) -> InputIdentity {
        InputIdentity {
            name: "n".repeat(200),
            serial: "S1".to_owned(),
            ids: [3, 0x1234, 0x5678, 0x100],
            properties: vec![2],
            codes: vec![(4, vec![0x10])],
            axes: vec![(0x28, [1, u32::MAX, 3, 4, 5])],
        }
    }
    fn attach(&mut self, _: Weak<DeviceCell>) {}
    fn want(&mut self, ready: bool) {
        self.note(format!("ready {ready}"));
    }
    fn send(&mut self, event: InputEvent) {
        self.note(format!("{event:?}"));
    }
}

fn rig(device: &str) -> (Rig, Log) {
    let log = Log::default();
    let people = || People(log.clone());
    let backends = |_: &Bench| match device {
        "evdev" => Backends { evdev: Some(Box::new(people())), ..Backends::default() },
        _ => Backends { keys: Some(Box::new(people())), pointer: Some(Box::new(people())), ..Backends::default() },
    };
    let mut r = Rig::new(&MODEL, Via::Modern("modern"), &[("device", device)], backends);
    r.negotiate(0);
    (0..2).for_each(|n| r.queue(n));
    log.lock().unwrap().clear();
    (r, log)
}

impl Rig {
    /// What the device answers to a question.
    fn told(&mut self, select: u8, subsel: u8) -> Vec<u8> {
        self.set_config(0, 1, select.into());
        self.set_config(1, 1, subsel.into());
        let len = self.config(2, 1) as u16;
        (0..len).map(|n| self.config(8 + n, 1) as u8).collect()
    }

    /// The driver is ready.
    fn ready(&mut self) {
        self.set_status(15);
    }

    /// Buffers for `n` events.
    fn event_buffers(&mut self, n: u64) {
        for _ in 0..n {
            let at = DATA + 8 * u64::from(self.rings[0].next_desc);
            self.add(0, &[(at, 8, true)]);
        }
        self.kick(0);
    }

    /// All that comes.
    fn all_events(&mut self) -> Vec<(u16, u16, i32)> {
        let mut all = Vec::new();
        loop {
            self.event_buffers(32);
            let came = self.read_events();
            all.extend(&came);
            if came.len() < 32 {
                return all;
            }
        }
    }

    /// What came, the buffers filled one behind the other.
    fn read_events(&mut self) -> Vec<(u16, u16, i32)> {
        let used = self.used(0);
        assert!(used.iter().all(|(_, len)| *len == 8));
        let word = |bytes: &[u8]| u16::from_le_bytes([bytes[0], bytes[1]]);
        let at = |head: u16| DATA + 8 * u64::from(head);
        let bytes = used.iter().map(|(head, _)| self.memory(at(*head), 8)).collect::<Vec<_>>();
        bytes.iter().map(|b| (word(b), word(&b[2..]), i32::from_le_bytes([b[4], b[5], b[6], b[7]]))).collect()
    }
}

#[test]
fn each_says_what_it_is() {
    let (mut r, _) = rig("keyboard");
    assert_eq!(r.bench.config_read(0, 4), 0x1052_1af4);
    assert_eq!(r.told(1, 0), b"virtio Keyboard");
    assert_eq!(r.told(3, 0), [6, 0, 0x5d, 0xfb, 2, 0, 1, 0]);
    let keys = r.told(0x11, 1);
    // Escape to the full stop of the pad, Power, and no button.
    assert_eq!((keys[0], keys[10] & 0xf, keys[14] >> 4 & 1), (0xfe, 0xf, 1));
    assert!(keys.len() <= 0x100 / 8);
    assert_eq!((r.told(0x11, 0x11), r.told(0x11, 0x14), r.told(0x11, 3)), (vec![7], vec![3], vec![]));
    let (mut r, _) = rig("tablet");
    assert_eq!((r.told(0x11, 3), r.told(0x11, 2)), (vec![3], vec![0, 1]));
    assert_eq!(r.told(0x12, 1)[..8], [0, 0, 0, 0, 0xff, 0x7f, 0, 0]);
    assert_eq!((r.told(0x12, 2).len(), r.told(0, 0).len(), r.told(1, 1).len()), (0, 0, 0));
    let (mut r, _) = rig("mouse");
    assert_eq!((r.told(0x11, 2), r.told(0x11, 1)[0x22]), (vec![3, 1], 0x1f));
    // The host's, whose name is cut off.
    let (mut r, _) = rig("evdev");
    assert_eq!((r.told(1, 0).len(), r.told(2, 0), r.told(0x10, 0)), (128, b"S1".to_vec(), vec![2]));
    assert_eq!((r.told(0x11, 4), r.told(0x12, 0x28).len()), (vec![0x10], 20));
}

#[test]
fn keys_come_one_report_each_and_no_faster_than_they_are_read() {
    let (mut r, log) = rig("keyboard");
    let said = || std::mem::take(&mut *log.lock().unwrap());
    // Nobody reads it yet.
    r.cell.event(Event::Key(0x1e, true));
    r.ready();
    r.event_buffers(3);
    assert_eq!(said(), ["listens true", "lights 0", "ready true"]);
    assert_eq!(r.read_events(), []);
    r.cell.event(Event::Key(0x11d, true));
    assert_eq!(r.read_events(), [(1, 97, 1), (0, 0, 0)]);
    r.cell.event(Event::Key(0x7f, true));
    r.cell.event(Event::Key(0x11d, false));
    assert_eq!((r.read_events(), said()), (vec![(1, 97, 0)], vec!["ready false".to_owned()]));
    r.event_buffers(1);
    assert_eq!((r.read_events(), said()), (vec![(0, 0, 0)], vec!["ready true".to_owned()]));
    // Caps Lock, and a lamp that there is not.
    for (n, lamp) in [[0x11, 0, 1, 0, 1, 0, 0, 0], [0x11, 0, 9, 0, 1, 0, 0, 0]].into_iter().enumerate() {
        let at = DATA + 0x1000 + 8 * n as u64;
        r.dma().write(at, &lamp);
        r.add(1, &[(at, 8, false)]);
    }
    r.add(1, &[(DATA, 7, false)]);
    r.kick(1);
    assert_eq!((r.used(1).len(), said()), (3, vec!["lights 4".to_owned()]));
    r.set_status(0);
    assert_eq!(said(), ["listens false", "lights 0", "ready false"]);
}

#[test]
fn movements_become_one_while_nobody_reads_them() {
    let (mut r, log) = rig("tablet");
    r.ready();
    r.event_buffers(4);
    assert_eq!(*log.lock().unwrap(), ["Some(At)"]);
    r.cell.event(Event::PointerAt(5, 7, 0, 1));
    assert_eq!(r.read_events(), [(1, 0x110, 1), (3, 0, 5), (3, 1, 7), (0, 0, 0)]);
    r.cell.event(Event::PointerAt(5, 7, 0, 1));
    for x in 0..30_000 {
        r.cell.event(Event::PointerAt(x, 7, i32::from(x % 2 == 0), 4));
    }
    let came = r.all_events();
    assert!((60..=100).contains(&came.len()), "{}", came.len());
    let last = |kind, code| came.iter().rfind(|e| (e.0, e.1) == (kind, code)).map(|e| e.2);
    assert_eq!((last(3, 0), last(1, 0x110), last(1, 0x112)), (Some(29_999), Some(0), Some(1)));
    let wheel: i32 = came.iter().filter(|e| (e.0, e.1) == (2, 8)).map(|e| e.2).sum();
    assert_eq!(wheel, 15_000);
    // A mouse's add up, and up is down there.
    let (mut r, _) = rig("mouse");
    r.ready();
    r.event_buffers(64);
    (0..1000).for_each(|_| r.cell.event(Event::Pointer(2, 1, -1, 0)));
    let came = [r.read_events(), r.all_events()].concat();
    let sum = |code| came.iter().filter(|e| (e.0, e.1) == (2, code)).map(|e| e.2).sum::<i32>();
    assert_eq!((sum(0), sum(1), sum(8)), (2000, -1000, -1000));
}

#[test]
fn the_hosts_events_pass_as_they_are_and_the_host_waits_when_there_are_too_many() {
    let (mut r, log) = rig("evdev");
    let event = |n: u32| InputEvent { kind: 4, code: 4, value: n };
    r.cell.event(Event::Input(vec![event(9)]));
    r.ready();
    r.event_buffers(2);
    r.cell.event(Event::Input((0..100).map(event).collect()));
    assert_eq!(r.read_events(), [(4, 4, 0), (4, 4, 1)]);
    assert_eq!(*log.lock().unwrap(), ["ready false"]);
    (0..100).for_each(|_| r.cell.event(Event::Input((0..100).map(event).collect())));
    assert_eq!(r.all_events().len(), 1024, "no more wait");
    assert_eq!(log.lock().unwrap().last().map(String::as_str), Some("ready true"));
    r.dma().write(DATA + 0x1000, &[0x11, 0, 1, 0, 1, 0, 0, 0]);
    r.add(1, &[(DATA + 0x1000, 8, false)]);
    r.kick(1);
    let lamp = InputEvent { kind: 0x11, code: 1, value: 1 };
    assert_eq!(log.lock().unwrap().last(), Some(&format!("{lamp:?}")));
}

#[test]
fn buffers_without_room_come_back_empty() {
    let (mut r, _) = rig("keyboard");
    r.ready();
    r.cell.event(Event::Key(0x1e, true));
    r.add(0, &[(DATA, 7, true)]);
    r.add(0, &[(DATA, 4, false)]);
    r.add(0, &[(DATA, 4, true), (DATA + 0x100, 4, true)]);
    r.kick(0);
    assert_eq!(r.used(0), [(0, 0), (1, 0), (2, 8)]);
    assert_eq!((r.memory(DATA, 4), r.memory(DATA + 0x100, 4)), (vec![1, 0, 30, 0], vec![1, 0, 0, 0]));
}

#[test]
fn a_device_that_is_saved_has_told_nothing_twice() {
    let (mut r, _) = rig("tablet");
    r.ready();
    r.event_buffers(1);
    r.cell.event(Event::PointerAt(5, 7, 0, 0));
    assert_eq!(r.read_events(), [(3, 0, 5)]);
    let saved = r.cell.save();
    let (twin, log) = rig("tablet");
    twin.cell.load(saved.clone()).unwrap();
    assert_eq!((twin.cell.save(), log.lock().unwrap().last().map(String::as_str)), (saved, Some("Some(At)")));
}
