use std::sync::{Arc, Mutex, Weak};

use super::*;
use crate::virtio::net::MODEL;
use emu::backend::Net;
use emu::{Backends, DeviceCell, DeviceState, Event};

const BUF: u64 = DATA + 0x8000;
const MERGE: u64 = 1 << 15;
const STATUS: u64 = 1 << 16;
const CTRL: u64 = 0x9e << 16;
const MAC: [u8; 6] = [0x58, 0x9c, 0xfc, 1, 2, 3];

/// What a cable carried, and whether the card wants more.
#[derive(Default)]
struct Cable {
    sent: Vec<Vec<u8>>,
    want: Vec<bool>,
}

#[derive(Clone, Default)]
pub struct Wire(Arc<Mutex<Cable>>);

impl Net for Wire {
    fn send(&mut self, frame: &[u8]) {
        self.0.lock().unwrap().sent.push(frame.to_vec());
    }
    fn attach(&mut self, _: Weak<DeviceCell>) {}
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
    let wire = Wire::default();
    let net: Box<dyn Net> = Box::new(wire.clone());
    let params = [("mac", "58:9c:fc:01:02:03"), ("mtu", "9000")];
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
    // Two are not enough for the next, which is lost; they are there for the one after it.
    (0..2).for_each(|n| r.room(n, 100));
    wire.wants();
    assert_eq!(r.arrives(&came), []);
    assert_eq!(wire.wants(), [false], "no room");
    r.room(2, 100);
    assert_eq!(wire.wants(), [true]);
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
