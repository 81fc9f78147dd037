use std::sync::{Arc, Mutex, Weak};

use super::*;
use crate::net::offload::checksum_is_good;
use crate::net::offload::tests::{partial, sample};
use crate::virtio::net::MODEL;
use emu::backend::{Listener, Net, Offload};
use emu::{Backends, DeviceState, Event};

const BUF: u64 = DATA + 0x8000;
const MERGE: u64 = 1 << 15;
const STATUS: u64 = 1 << 16;
const CTRL: u64 = 0x9e << 16;
const MAC: [u8; 6] = [0x58, 0x9c, 0xfc, 1, 2, 3];

/// What a cable carried, and whether the card wants more.
#[derive(Default)]
struct Cable {
    sent: Vec<Vec<u8>>,
    partial: Option<Vec<(Vec<u8>, Offload)>>,
    want: Vec<bool>,
}

#[derive(Clone, Default)]
pub struct Wire(Arc<Mutex<Cable>>);

impl Net for Wire {
    fn send(&mut self, frame: &[u8]) {
        self.0.lock().unwrap().sent.push(frame.to_vec());
    }
    fn partial(&mut self) -> bool {
        self.0.lock().unwrap().partial.is_some()
    }
    fn send_partial(&mut self, frame: &[u8], rest: Offload) {
        self.0.lock().unwrap().partial.as_mut().unwrap().push((frame.to_vec(), rest));
    }
    fn attach(&mut self, _: Weak<dyn Listener>) {}
    fn want(&mut self, ready: bool) {
        self.0.lock().unwrap().want.push(ready);
    }
}

impl Wire {
    fn sent(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.0.lock().unwrap().sent)
    }
    fn wants(&self) -> Vec<bool> {
        std::mem::take(&mut self.0.lock().unwrap().want)
    }
}

pub fn rig(via: Via) -> (Rig, Wire) {
    rig_with(via, Wire::default(), &[])
}

/// A cable whose end takes frames with work left over.
fn partial_wire() -> Wire {
    let wire = Wire::default();
    wire.0.lock().unwrap().partial = Some(Vec::new());
    wire
}

fn rig_with(via: Via, wire: Wire, keys: &[(&str, &str)]) -> (Rig, Wire) {
    let net: Box<dyn Net> = Box::new(wire.clone());
    let params = [&[("mac", "58:9c:fc:01:02:03"), ("mtu", "9000")], keys].concat();
    let rig = Rig::new(&MODEL, via, &params, |_| Backends { net: Some(net), ..Backends::default() });
    wire.wants();
    (rig, wire)
}

fn frame(to: [u8; 6], len: usize) -> Vec<u8> {
    let rest = (6..len).map(|n| n as u8);
    to.into_iter().chain(rest).collect()
}

impl Rig {
    fn arrives(&mut self, frame: &[u8]) -> Vec<(u16, u32)> {
        self.cell.event(Event::Frame(frame.to_vec()));
        self.used(0)
    }

    /// Gives the card a buffer of `len` bytes, number `n`.
    fn room(&mut self, n: u64, len: u32) {
        self.add(0, &[(BUF + 0x1000 * n, len, true)]);
        self.kick(0);
    }

    /// A command of the control queue.
    fn command(&mut self, class: u8, command: u8, data: &[u8]) -> u8 {
        self.dma().write(DATA, &[class, command]);
        self.dma().write(DATA + 0x10, data);
        self.dma().write(DATA + 0x2000, &[0xff]);
        self.add(2, &[(DATA, 2, false), (DATA + 0x10, data.len() as u32, false), (DATA + 0x2000, 1, true)]);
        self.kick(2);
        assert_eq!(self.used(2).len(), 1);
        self.memory(DATA + 0x2000, 1)[0]
    }
}

/// Bytes of the header.
fn header(r: &Rig) -> usize {
    if r.features & (MERGE | VERSION_1) == 0 { 10 } else { 12 }
}

#[test]
fn frames_go_out_and_come_in() {
    for via in WAYS {
        for features in [STATUS, STATUS | MERGE] {
            let (mut r, wire) = rig(via);
            r.start(features, 2);
            assert_eq!((0..6).map(|n| r.config(n, 1) as u8).collect::<Vec<_>>(), MAC, "{via:?}");
            assert_eq!((r.config(6, 2), r.config(10, 2)), (1, 9000));
            let skip = header(&r);
            let out = frame([0xff; 6], 100);
            r.dma().write(BUF, &[&vec![0; skip][..], &out].concat());
            r.add(1, &[(BUF, skip as u32, false), (BUF + skip as u64, 60, false), (BUF + skip as u64 + 60, 40, false)]);
            r.kick(1);
            assert_eq!((wire.sent(), r.used(1)), (vec![out], vec![(0, 0)]), "{via:?} {features:x}");

            r.dma().write(BUF, &[0xee; 200]);
            r.room(0, 1600);
            let came = frame(MAC, 90);
            assert_eq!(r.arrives(&came), [(0, (skip + 90) as u32)]);
            assert_eq!(r.memory(BUF + skip as u64, 90), came);
            let count = if skip == 12 { vec![1, 0] } else { vec![] };
            assert_eq!(r.memory(BUF, skip), [vec![0; 10], count].concat());
            assert_eq!(r.interrupt(), 1);
        }
    }
}

#[test]
fn a_frame_is_scattered_over_buffers_if_the_driver_knows_how() {
    let (mut r, wire) = rig(WAYS[3]);
    r.start(MERGE, 2);
    (0..3).for_each(|n| r.room(n, 100));
    let came = frame(MAC, 250);
    assert_eq!(r.arrives(&came), [(0, 100), (1, 100), (2, 62)]);
    assert_eq!(r.memory(BUF + 10, 2), [3, 0]);
    let parts = [r.memory(BUF + 12, 88), r.memory(BUF + 0x1000, 100), r.memory(BUF + 0x2000, 62)];
    assert_eq!(parts.concat(), came);
    // Two are not enough for the next: it waits for a third.
    (0..2).for_each(|n| r.room(n, 100));
    wire.wants();
    assert_eq!(r.arrives(&came), []);
    assert_eq!(wire.wants(), [false], "no room");
    r.room(2, 100);
    assert_eq!(wire.wants(), [true]);
    assert_eq!(r.used(0).len(), 3);
    assert_eq!(r.memory(BUF + 12, 88), came[..88]);
    (0..3).for_each(|n| r.room(n, 100));
    assert_eq!(r.arrives(&came).len(), 3);

    r.start(0, 2);
    r.room(0, 100);
    r.room(1, 2000);
    assert_eq!(r.arrives(&came), [], "too short for it");
    assert_eq!(r.arrives(&frame(MAC, 80)), [(0, 92)]);
}

#[test]
fn what_is_no_frame_is_not_sent_and_its_buffer_comes_back() {
    let (mut r, wire) = rig(WAYS[1]);
    r.start(0, 2);
    for len in [0, 9, 10, 23, 10 + 65551] {
        r.add(1, &[(BUF, len, false)]);
        r.kick(1);
        assert_eq!((r.used(1).len(), wire.sent().len()), (1, 0), "{len}");
    }
    r.room(0, 100);
    for len in [0, 5, 13] {
        assert_eq!(r.arrives(&vec![0xff; len]), [], "{len}");
    }
}

#[test]
fn without_a_cable_the_link_is_down() {
    let mut r = Rig::new(&MODEL, WAYS[2], &[], |_| Backends::default());
    r.start(STATUS, 2);
    assert_eq!(r.config(6, 2), 0);
    assert_eq!(r.config(0, 4) & 0xff_ffff, 0x98_a000, "an address of its own");
    r.dma().write(BUF, &[0; 100]);
    r.add(1, &[(BUF, 100, false)]);
    r.kick(1);
    assert_eq!(r.used(1), [(0, 0)]);

    let (mut r, wire) = rig(WAYS[2]);
    r.start(STATUS, 2);
    r.cell.event(Event::Link(false));
    assert_eq!((r.interrupt(), r.config(6, 2)), (2, 0));
    r.room(0, 1600);
    assert_eq!(r.arrives(&frame(MAC, 90)), []);
    r.add(1, &[(BUF, 100, false)]);
    r.kick(1);
    assert_eq!(wire.sent().len(), 0);
    r.cell.event(Event::Link(true));
    assert_eq!((r.interrupt(), r.config(6, 2)), (3, 1));
    assert_eq!(r.arrives(&frame(MAC, 90)).len(), 1);
}

#[test]
fn the_card_takes_in_what_the_control_queue_says() {
    for via in WAYS {
        let (mut r, _) = rig(via);
        r.start(CTRL | STATUS, 3);
        (0..40).for_each(|n| r.room(n % 16, 1600));
        let other = [2, 0, 0, 0, 0, 9];
        let group = [1, 0, 0x5e, 0, 0, 1];
        let takes = |r: &mut Rig, to| r.arrives(&frame(to, 64)).len() == 1;
        assert!(takes(&mut r, other), "all before somebody says something");
        assert_eq!(r.command(0, 0, &[0]), 0);
        let seen = [MAC, other, group, [0xff; 6]].map(|to| takes(&mut r, to));
        assert_eq!(seen, [true, false, false, true], "{via:?}");
        let table = |list: &[[u8; 6]]| [&(list.len() as u32).to_le_bytes()[..], &list.concat()].concat();
        assert_eq!(r.command(1, 0, &[table(&[other]), table(&[group])].concat()), 0);
        assert!(takes(&mut r, other) && takes(&mut r, group));
        assert_eq!(r.command(1, 0, &[table(&[]), table(&[[3; 6]; 65])].concat()), 0);
        assert!(!takes(&mut r, other) && takes(&mut r, group), "a table that is too long takes all");
        assert_eq!(r.command(0, 3, &[1]), 0);
        assert_eq!(r.command(0, 5, &[1]), 0);
        assert!(!takes(&mut r, group) && !takes(&mut r, [0xff; 6]), "no multicast, no broadcast");
        assert_eq!(r.command(1, 1, &other), 0);
        assert!(takes(&mut r, other) && !takes(&mut r, MAC), "another address");
        for (class, command, data) in [
            (0, 0, &[][..]),
            (0, 6, &[1]),
            (1, 0, &[1, 0, 0, 0]),
            (1, 0, &[0xff; 4]),
            (1, 0, &[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]),
            (1, 1, &[1; 5]),
            (2, 0, &[0, 0x10]),
            (2, 1, &[1, 0]),
            (4, 0, &[2, 0]),
            (255, 255, &[0]),
        ] {
            assert_eq!(r.command(class, command, data), 1, "{class} {command} {data:x?}");
        }
        assert_eq!(r.command(1, 0, &[0; 4095]), 1, "too long");
        r.start(STATUS, 3);
        assert_eq!(r.config(0, 1), 0x58, "a reset gives it its address back");
    }
}

#[test]
fn vlans_are_let_in_one_by_one() {
    let (mut r, _) = rig(WAYS[3]);
    r.start(CTRL, 3);
    (0..10).for_each(|n| r.room(n, 1600));
    r.command(0, 0, &[0]);
    let tagged = |vlan: u16| {
        let mut f = frame(MAC, 64);
        f[12..14].copy_from_slice(&[0x81, 0]);
        f[14..16].copy_from_slice(&(0x2000 | vlan).to_be_bytes());
        f
    };
    assert_eq!(r.arrives(&tagged(5)).len(), 0);
    assert_eq!(r.command(2, 0, &[5, 0]), 0);
    assert_eq!(r.command(2, 0, &[5, 0]), 0, "twice");
    assert_eq!((r.arrives(&tagged(5)).len(), r.arrives(&tagged(6)).len()), (1, 0));
    assert_eq!(r.command(2, 1, &[5, 0]), 0);
    assert_eq!((r.arrives(&tagged(5)).len(), r.arrives(&frame(MAC, 64)).len()), (0, 1));
}

#[test]
fn an_old_driver_sets_the_address_byte_by_byte() {
    let (mut r, _) = rig(WAYS[0]);
    r.negotiate(0);
    r.set_config(5, 1, 0x77);
    assert_eq!(r.config(5, 1), 0x77);
    let (mut r, _) = rig(WAYS[3]);
    r.negotiate(0);
    r.set_config(5, 1, 0x77);
    assert_eq!(r.config(5, 1), 3, "a new one has a command for that");
}

#[test]
fn a_saved_card_goes_on_in_a_machine_with_another_cable() {
    let (mut r, _) = rig(WAYS[3]);
    r.start(CTRL | STATUS | MERGE, 3);
    r.command(0, 0, &[0]);
    r.room(0, 1600);
    let saved = r.cell.save();
    let (mut twin, _) = rig(WAYS[3]);
    twin.dma().write(0, &r.memory(0, 0x8_0000));
    twin.cell.load(saved.clone()).unwrap();
    assert_eq!(twin.cell.save(), saved);
    twin.rings = r.rings;
    assert_eq!(twin.arrives(&frame([2; 6], 64)).len(), 0, "not for it");
    assert_eq!(twin.arrives(&frame(MAC, 64)).len(), 1);
    let mut none = Rig::new(&MODEL, WAYS[3], &[], |_| Backends::default());
    none.cell.load(saved).unwrap();
    assert_eq!(none.config(6, 2), 0, "there the cable is out");
}

const CSUM: u64 = 1 << 0;
const GUEST_CSUM: u64 = 1 << 1;
const GUEST_OFFLOADS: u64 = 1 << 2;
const GUEST_TSO4: u64 = 1 << 7;
const GUEST_TSO6: u64 = 1 << 8;
const GUEST_ECN: u64 = 1 << 9;
const HOST_TSO: u64 = 7 << 11;
const MQ: u64 = 1 << 22;

/// A driver's header.
fn about(flags: u8, kind: u8, mss: u16, (from, at): (u16, u16)) -> Vec<u8> {
    let words = [0, mss, from, at].map(u16::to_le_bytes).concat();
    [vec![flags, kind], words].concat()
}

impl Rig {
    /// Sends `frame` behind the header that `about` starts.
    fn sends(&mut self, n: usize, about: &[u8], frame: &[u8]) {
        let mut bytes = about.to_vec();
        bytes.resize(header(self), 0);
        bytes.extend(frame);
        self.dma().write(BUF, &bytes);
        self.add(n, &[(BUF, bytes.len() as u32, false)]);
        self.kick(n);
        assert_eq!(self.used(n).len(), 1);
    }
}

#[test]
fn the_card_completes_checksums_and_cuts_segments() {
    for via in WAYS {
        let (mut r, wire) = rig(via);
        r.start(CSUM | HOST_TSO | MERGE, 2);
        for (v6, tcp) in [(false, false), (false, true), (true, false), (true, true)] {
            let mut f = sample(v6, tcp, 0, 1001);
            let place = partial(&mut f);
            r.sends(1, &about(1, 0, 0, place), &f);
            let [sent] = wire.sent().try_into().unwrap();
            assert_eq!((checksum_is_good(&sent), sent.len()), (Some(true), f.len()), "{via:?} {v6} {tcp}");
        }
        for (v6, kind) in [(false, 1), (true, 4), (false, 0x81)] {
            let mut f = sample(v6, true, 1, 9000);
            let place = partial(&mut f);
            r.sends(1, &about(1, kind, 1400, place), &f);
            let sent = wire.sent();
            assert_eq!(sent.len(), 7, "{via:?}");
            assert!(sent.iter().all(|f| checksum_is_good(f) == Some(true)));
        }
    }
}

#[test]
fn what_the_driver_may_not_ask_for_is_not_sent() {
    let (mut r, wire) = rig(WAYS[3]);
    let mut v4 = sample(false, true, 0, 3000);
    let place = partial(&mut v4);
    for (features, about) in [
        (CSUM, about(1, 1, 1400, place)),
        (CSUM | HOST_TSO, about(1, 4, 1400, place)),
        (CSUM | HOST_TSO, about(1, 3, 1400, place)),
        (CSUM | HOST_TSO, about(1, 1, 0, place)),
        (CSUM | HOST_TSO, about(0, 1, 1400, place)),
        (CSUM | HOST_TSO, about(1, 1, 1, place)),
        (CSUM, about(1, 0, 0, (v4.len() as u16, 0))),
        (CSUM, about(1, 0, 0, (0xffff, 0xffff))),
    ] {
        r.start(features, 2);
        r.sends(1, &about, &v4);
        assert_eq!(wire.sent().len(), 0, "{about:x?}");
    }
    r.start(0, 2);
    r.sends(1, &about(1, 1, 1400, place), &v4);
    assert_eq!(wire.sent(), [v4], "without the feature the header says nothing");
    let (mut r, _) = rig_with(WAYS[3], partial_wire(), &[("offload", "false")]);
    r.negotiate(u64::MAX);
    assert_eq!(r.features & (CSUM | GUEST_CSUM | HOST_TSO | GUEST_TSO4 | GUEST_OFFLOADS), 0);
}

#[test]
fn the_driver_hears_which_checksums_are_good() {
    for via in WAYS {
        let (mut r, wire) = rig(via);
        r.start(GUEST_CSUM | CTRL | GUEST_OFFLOADS, 3);
        (0..5).for_each(|n| r.room(n, 1600));
        let mut f = sample(false, true, 0, 500);
        let place = partial(&mut f);
        r.start(GUEST_CSUM | CSUM | CTRL | GUEST_OFFLOADS, 3);
        r.sends(1, &about(1, 0, 0, place), &f);
        let good = wire.sent().remove(0);
        let mut bad = good.clone();
        bad[80] ^= 1;
        let mut flags = |f: &[u8]| {
            r.room(0, 1600);
            assert_eq!(r.arrives(f).len(), 1);
            r.memory(BUF, 1)[0]
        };
        assert_eq!((flags(&good), flags(&bad), flags(&frame(MAC, 90))), (2, 0, 0), "{via:?}");
        assert_eq!(r.command(5, 0, &(1u64 << 1).to_le_bytes()), 0);
        for wrong in [1u64 << 7, 1, u64::MAX] {
            assert_eq!(r.command(5, 0, &wrong.to_le_bytes()), 1);
        }
        assert_eq!(r.command(5, 0, &[0; 8]), 0);
        r.room(1, 1600);
        assert_eq!(r.arrives(&good).len(), 1);
        assert_eq!(r.memory(BUF + 0x1000, 1), [0], "the driver does not want to know any more");
    }
}

#[test]
fn large_frames_pass_a_cable_that_takes_them() {
    let all = CSUM | HOST_TSO | GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | MERGE;
    for via in WAYS {
        let (mut r, wire) = rig_with(via, partial_wire(), &[]);
        r.start(all, 2);
        assert_eq!(r.features & all, all);
        for (v6, kind) in [(false, 0x81), (true, 0x84)] {
            let mut f = sample(v6, true, 0, 5000);
            let place = partial(&mut f);
            r.sends(1, &about(1, kind, 1400, place), &f);
            let rest = Offload { checksum: Some(place), mss: 1400 };
            let sent = std::mem::take(wire.0.lock().unwrap().partial.as_mut().unwrap());
            assert_eq!(sent, [(f.clone(), rest)]);
            assert_eq!(wire.sent().len(), 0);

            (0..4).for_each(|n| r.room(n, 2000));
            r.cell.event(Event::Partial(f.clone(), rest));
            assert_eq!(r.used(0).len(), 3);
            let head = r.memory(BUF, 10);
            let headers = f.len() as u16 - 5000;
            let expected = about(1, kind, 1400, place);
            assert_eq!((&head[..2], &head[4..10]), (&expected[..2], &expected[4..10]), "{via:?}");
            assert_eq!(head[2..4], headers.to_le_bytes());
            r.start(all, 2);
        }
        // A driver that cannot take large frames gets segments, and their checksums are good.
        r.start(GUEST_CSUM, 2);
        (0..5).for_each(|n| r.room(n, 1600));
        let mut f = sample(false, true, 0, 5000);
        let place = partial(&mut f);
        r.cell.event(Event::Partial(f.clone(), Offload { checksum: Some(place), mss: 1400 }));
        assert_eq!(r.used(0).len(), 4, "{via:?}");
        let skip = header(&r);
        assert_eq!(r.memory(BUF, 1), [2]);
        assert_eq!(checksum_is_good(&r.memory(BUF + skip as u64, f.len() - 3600)), Some(true));
        // One that knows nothing gets a checksum.
        r.start(0, 2);
        r.room(0, 1600);
        let mut f = sample(true, false, 0, 700);
        let place = partial(&mut f);
        r.cell.event(Event::Partial(f.clone(), Offload { checksum: Some(place), mss: 0 }));
        assert_eq!(r.used(0).len(), 1);
        let skip = header(&r);
        assert_eq!(r.memory(BUF, 1), [0]);
        assert_eq!(checksum_is_good(&r.memory(BUF + skip as u64, f.len())), Some(true));
    }
}

#[test]
fn answers_come_on_the_pair_that_their_connection_uses() {
    for via in WAYS {
        let (mut r, wire) = rig_with(via, Wire::default(), &[("queues", "3")]);
        r.start(MQ | CTRL | MERGE, 7);
        assert_eq!(r.config(8, 2), 3);
        let mut f = sample(false, true, 0, 100);
        f[..6].copy_from_slice(&MAC);
        let command = |r: &mut Rig, class, command, data: &[u8]| {
            r.rings.swap(2, 6);
            r.dma().write(DATA, &[class, command]);
            r.dma().write(DATA + 0x10, data);
            r.dma().write(DATA + 0x2000, &[0xff]);
            r.add(2, &[(DATA, 2, false), (DATA + 0x10, data.len() as u32, false), (DATA + 0x2000, 1, true)]);
            r.rings.swap(2, 6);
            r.kick(6);
            assert_eq!(r.used(6).len(), 1);
            r.memory(DATA + 0x2000, 1)[0]
        };
        for pair in 0..3 {
            r.add(2 * pair, &[(BUF + 0x8000, 1600, true)]);
            r.kick(2 * pair);
        }
        r.sends(5, &[], &f);
        r.cell.event(Event::Frame(f.clone()));
        assert_eq!((r.used(0).len(), r.used(4).len()), (1, 0), "{via:?}: one pair before more are wanted");
        for wrong in [0u16, 4, 0xffff] {
            assert_eq!(command(&mut r, 4, 0, &wrong.to_le_bytes()), 1);
        }
        assert_eq!(command(&mut r, 4, 0, &[3, 0]), 0);
        r.sends(5, &[], &f);
        r.sends(3, &[], &frame(MAC, 60));
        r.cell.event(Event::Frame(f.clone()));
        assert_eq!((r.used(2).len(), r.used(4).len()), (0, 1), "{via:?}");
        // The pair is out of room, and the whole cable waits; until nobody uses it any more.
        wire.wants();
        r.cell.event(Event::Frame(f.clone()));
        assert_eq!(wire.wants(), [false]);
        assert_eq!(command(&mut r, 4, 0, &[2, 0]), 0);
        assert_eq!(wire.wants().last(), Some(&true));
        r.cell.event(Event::Frame(f.clone()));
        assert_eq!([0, 2, 4].map(|n| r.used(n).len()).iter().sum::<usize>(), 0, "2 % 2 is a pair without room");
        r.add(0, &[(BUF + 0x8000, 1600, true)]);
        r.kick(0);
        r.cell.event(Event::Frame(f.clone()));
        assert_eq!(r.used(0).len(), 1);
        let saved = r.cell.save();
        let (twin, _) = rig_with(via, Wire::default(), &[("queues", "3")]);
        twin.cell.load(saved.clone()).unwrap();
        assert_eq!(twin.cell.save(), saved);
        let (fewer, _) = rig_with(via, Wire::default(), &[]);
        assert!(fewer.cell.load(saved).is_err());
        // A driver that knows of one pair has its control queue behind that.
        r.start(CTRL, 3);
        assert_eq!(r.command(0, 0, &[0]), 0);
    }
}
