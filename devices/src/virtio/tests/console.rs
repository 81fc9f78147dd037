use std::sync::{Arc, Mutex, Weak};

use emu::backend::Chardev;
use emu::{Backends, DeviceCell, DeviceState, Event};

use super::*;
use crate::virtio::console::MODEL;

/// The host's end of a port.
#[derive(Clone, Default)]
struct End(Arc<Mutex<EndState>>);

#[derive(Default)]
struct EndState {
    heard: Vec<u8>,
    room: usize,
    wanted: usize,
}

impl Chardev for End {
    fn write(&mut self, data: &[u8]) -> usize {
        let mut s = self.0.lock().unwrap();
        let n = data.len().min(s.room);
        s.room -= n;
        s.heard.extend(&data[..n]);
        n
    }

    fn attach(&mut self, _: Weak<DeviceCell>, _: usize) {}

    fn want(&mut self, bytes: usize) {
        self.0.lock().unwrap().wanted = bytes;
    }
}

impl End {
    fn heard(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap().heard)
    }

    fn wanted(&self) -> usize {
        self.0.lock().unwrap().wanted
    }
}

const MULTIPORT: u64 = 2;
const TO_GUEST: usize = 2;
const TO_HOST: usize = 3;

/// A device with two ports, "agent" and one without a name, and a driver that has said that it is ready.
fn rig(via: Via) -> (Rig, [End; 2]) {
    let ends = [End::default(), End::default()];
    let boxed = |end: &End| Some(Box::new(end.clone()) as Box<dyn Chardev>);
    let chardevs = ends.iter().map(boxed).collect();
    let mut r = Rig::new(&MODEL, via, &[("0.port", "org.x.agent")], |_| Backends { chardevs, ..Backends::default() });
    ends.iter().for_each(|end| end.0.lock().unwrap().room = usize::MAX);
    ready(&mut r);
    (r, ends)
}

fn ready(r: &mut Rig) {
    r.start(MULTIPORT, 6);
    assert_eq!(r.config(4, 4), 16);
    for n in 0..16 {
        r.add(TO_GUEST, &[(DATA + 0x100 * n, 64, true)]);
    }
    tell(r, 0, 0, 1);
}

/// A control message of the driver's.
fn tell(r: &mut Rig, port: u32, event: u16, value: u16) {
    let message = u64::from(port) | u64::from(event) << 32 | u64::from(value) << 48;
    r.dma().write(DATA + 0x8000, &message.to_le_bytes());
    r.add(TO_HOST, &[(DATA + 0x8000, 8, false)]);
    r.kick(TO_HOST);
}

/// The control messages since the last call: port, event, value, and the name that follows.
fn told(r: &mut Rig) -> Vec<(u32, u16, u16, String)> {
    let used = r.used(TO_GUEST);
    let message = |(head, len): (u16, u32)| {
        let bytes = r.memory(DATA + 0x100 * u64::from(head), len as usize);
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        (half(0).into(), half(4), half(6), String::from_utf8(bytes[8..].to_vec()).unwrap())
    };
    used.into_iter().map(message).collect()
}

fn plain(port: u32, event: u16, value: u16) -> (u32, u16, u16, String) {
    (port, event, value, String::new())
}

#[test]
fn ports_are_announced_by_name_and_both_sides_hear_who_opens_them() {
    for via in WAYS {
        let (mut r, ends) = rig(via);
        assert_eq!(told(&mut r), [plain(0, 1, 1), plain(1, 1, 1)], "{via:?}");
        r.cell.event(Event::CharsOpen(0, true));
        assert_eq!(told(&mut r), [plain(0, 6, 1)]);
        tell(&mut r, 0, 3, 1);
        assert_eq!(told(&mut r), [(0, 7, 1, "org.x.agent".to_owned()), plain(0, 6, 1)]);
        tell(&mut r, 1, 3, 1);
        assert_eq!(told(&mut r), [(1, 7, 1, "port1".to_owned())]);
        // What comes before a program listens stays with the host.
        assert_eq!((ends[0].wanted(), ends[1].wanted()), (0, 0));
        tell(&mut r, 0, 6, 1);
        assert_eq!((ends[0].wanted(), ends[1].wanted()), (4096, 0));
        tell(&mut r, 0, 6, 0);
        assert_eq!(ends[0].wanted(), 0);
        r.cell.event(Event::CharsOpen(0, false));
        assert_eq!(told(&mut r), [plain(0, 6, 0)]);
        // Ports that are none, and messages that say nothing.
        tell(&mut r, 2, 3, 1);
        tell(&mut r, u32::MAX, 6, 1);
        tell(&mut r, 0, 99, 1);
        assert_eq!(told(&mut r), []);
    }
}

#[test]
fn bytes_pass_both_ways_and_wait_for_room() {
    let (mut r, ends) = rig(WAYS[3]);
    // Nobody is there: it is lost, and the buffer comes back.
    let (data, out) = (DATA + 0x9000, DATA + 0xa000);
    r.dma().write(data, b"lost");
    r.add(5, &[(data, 4, false)]);
    r.kick(5);
    assert_eq!((r.used(5).len(), ends[1].heard()), (1, Vec::new()));
    r.cell.event(Event::CharsOpen(1, true));
    ends[1].0.lock().unwrap().room = 6;
    for _ in 0..3 {
        r.dma().write(data, b"data");
        r.add(5, &[(data, 2, false), (data + 2, 2, false)]);
        r.kick(5);
    }
    assert_eq!((r.used(5).len(), ends[1].heard()), (2, b"datada".to_vec()), "the third waits in the ring");
    ends[1].0.lock().unwrap().room = 100;
    r.cell.event(Event::CharsReady(1));
    assert_eq!((r.used(5).len(), ends[1].heard()), (1, b"tadata".to_vec()));
    tell(&mut r, 1, 6, 1);
    r.cell.event(Event::Chars(1, b"hello".to_vec()));
    assert_eq!(ends[1].wanted(), 4096 - 5, "no buffer yet");
    r.add(4, &[(out, 3, true)]);
    r.add(4, &[(out + 3, 3, true)]);
    r.kick(4);
    assert_eq!(r.used(4), [(0, 3), (1, 2)]);
    assert_eq!((r.memory(out, 5), ends[1].wanted()), (b"hello".to_vec(), 4096));
    // A buffer without end is one of 64 KiB.
    r.add(5, &[(data, u32::MAX, false)]);
    ends[1].0.lock().unwrap().room = usize::MAX;
    r.kick(5);
    assert_eq!((r.used(5).len(), ends[1].heard().len()), (1, 64 << 10));
}

#[test]
fn what_waits_is_saved_and_a_reset_forgets_it() {
    let (mut r, ends) = rig(WAYS[3]);
    tell(&mut r, 0, 6, 1);
    r.cell.event(Event::Chars(0, b"wait".to_vec()));
    let saved = r.cell.save();
    let (mut other, others) = rig(WAYS[3]);
    let rings = r.memory(RINGS, 6 * RING as usize);
    other.dma().write(RINGS, &rings);
    other.cell.load(saved).unwrap();
    other.rings = r.rings;
    assert_eq!(others[0].wanted(), 4092);
    other.add(0, &[(DATA + 0xa000, 8, true)]);
    other.kick(0);
    assert_eq!((other.used(0), other.memory(DATA + 0xa000, 4)), (vec![(0, 4)], b"wait".to_vec()));
    r.set_status(0);
    assert_eq!(ends[0].wanted(), 0);
    ready(&mut r);
    assert_eq!(told(&mut r).len(), 2, "announced again");
    r.add(0, &[(DATA + 0xa000, 8, true)]);
    r.kick(0);
    assert_eq!(r.used(0), []);
}
