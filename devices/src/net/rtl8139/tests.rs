use std::sync::Arc;

use emu::bench::{Bench, BenchNet};
use emu::{Backends, DeviceCell, DeviceState, DmaMem, Params};

use super::MODEL;
use crate::net::{crc32_be, crc32_le, offload};

const BASE: u16 = 0xc000;
const MAC: [u8; 6] = [0, 0xa0, 0x98, 1, 2, 3];
/// Where a driver has its things.
const RX: u64 = 0x1_0000;
const TX: u64 = 0x4_0000;
const RINGS: [u64; 2] = [0x6_0000, 0x6_1000];
const BUFFERS: u64 = 0x7_0000;

const OWN: u32 = 1 << 31;
const EOR: u32 = 1 << 30;
const FS: u32 = 1 << 29;
const LS: u32 = 1 << 28;

/// A card, its driver, and the other end of the cable.
pub(in crate::net) struct Card {
    pub bench: Bench,
    pub net: BenchNet,
    pub cell: Arc<DeviceCell>,
    pub dma: DmaMem,
    read: u16,
    next: usize,
}

impl Card {
    fn new(keys: &[(&str, &str)]) -> Card {
        Card::of(&MODEL, keys)
    }

    pub fn of(model: &emu::Model, keys: &[(&str, &str)]) -> Card {
        let (bench, net) = (Bench::new(), BenchNet::default());
        let mut params = Params::new(keys.iter().copied());
        params.set("mac", "00:a0:98:01:02:03");
        let backends = Backends { net: Some(Box::new(net.clone())), ..Backends::default() };
        let cell = bench.plug(model, &params, backends);
        bench.machine.reset(emu::ResetKind::PowerOn);
        bench.config_write(0x10, 4, u32::from(BASE) | 1);
        bench.config_write(0x14, 4, 0xe000_0000);
        bench.config_write(4, 2, 7);
        let dma = bench.dma();
        Card { bench, net, cell, dma, read: 0, next: 0 }
    }

    pub fn out(&mut self, at: u16, width: u8, value: u32) {
        self.bench.bus.pio_write(BASE + at, width, value);
    }

    pub fn get(&mut self, at: u16, width: u8) -> u32 {
        self.bench.bus.pio_read(BASE + at, width)
    }

    /// As drivers begin in the 8139's own mode.
    fn start(&mut self, size: u32, wrap: bool) {
        self.out(0x37, 1, 0x10);
        assert_eq!(self.get(0x37, 1) & 0x10, 0, "reset is over");
        self.out(0x37, 1, 0x0c);
        self.out(0x44, 4, 0xe00e | size << 11 | u32::from(wrap) << 7 & 0x80);
        self.out(0x30, 4, RX as u32);
        self.out(0x3c, 2, 0xe07f);
        (self.read, self.next) = (0, 0);
    }

    /// As drivers of the C+ do: rings of four descriptors.
    pub fn start_rings(&mut self, command: u32) {
        self.out(0x37, 1, 0x10);
        self.out(0xe0, 2, command);
        for (n, at) in [(0x20, RINGS[0]), (0xe4, RINGS[1])] {
            self.out(n + 4, 4, 0);
            self.out(n, 4, at as u32);
        }
        self.out(0x37, 1, 0x0c);
        self.out(0x44, 4, 0xe00e);
        self.out(0x3c, 2, 0xe0ff);
        for n in 0..4 {
            self.give(n, 2048);
            self.describe(RINGS[0], n, 0, 0, 0);
        }
        (self.read, self.next) = (0, 0);
    }

    fn describe(&self, ring: u64, n: usize, flags: u32, vlan: u32, buffer: u64) {
        let end = if n == 3 { EOR } else { 0 };
        let words = [flags | end, vlan, buffer as u32, 0];
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.dma.write(ring + 16 * n as u64, &bytes);
    }

    /// Gives the chip a buffer.
    pub fn give(&self, n: usize, size: u32) {
        self.describe(RINGS[1], n, OWN | size, 0, BUFFERS + 0x1000 * n as u64);
    }

    /// A received frame of the rings: what the descriptor says, its VLAN word, and the bytes.
    pub fn take(&mut self, length_bits: u32) -> Option<(u32, u32, Vec<u8>)> {
        let n = usize::from(self.read);
        let flags = self.dma.read_u32(RINGS[1] + 16 * n as u64);
        if flags & OWN != 0 {
            return None;
        }
        let vlan = self.dma.read_u32(RINGS[1] + 16 * n as u64 + 4);
        let mut bytes = vec![0; (flags & ((1 << length_bits) - 1)) as usize];
        self.dma.read(BUFFERS + 0x1000 * n as u64, &mut bytes);
        self.give(n, 2048);
        self.read = (self.read + 1) % 4;
        Some((flags, vlan, bytes))
    }

    /// Sends a frame in parts by the ring.
    pub fn send_ring(&mut self, poll: u16, parts: &[&[u8]], more: u32, vlan: u32) {
        let first = self.next;
        for (k, part) in parts.iter().enumerate() {
            let buffer = TX + 0x8000 * self.next as u64;
            self.dma.write(buffer, part);
            let ends = if k == 0 { FS } else { 0 } | if k + 1 == parts.len() { LS } else { 0 };
            self.describe(RINGS[0], self.next, OWN | ends | more | part.len() as u32, vlan, buffer);
            self.next = (self.next + 1) % 4;
        }
        self.out(poll, 1, 0x40);
        for k in 0..parts.len() {
            let flags = self.dma.read_u32(RINGS[0] + 16 * ((first + k) % 4) as u64);
            let ends = if k == 0 { FS } else { 0 } | if k + 1 == parts.len() { LS } else { 0 };
            assert_eq!(flags & !EOR & 0xffff_0000, ends, "done, and nothing is wrong");
        }
    }

    fn send(&mut self, frame: &[u8]) -> u32 {
        let n = self.next as u16;
        let buffer = TX + 0x800 * u64::from(n);
        self.dma.write(buffer, frame);
        self.out(0x20 + 4 * n, 4, buffer as u32);
        self.out(0x10 + 4 * n, 4, 0x3_0000 | frame.len() as u32);
        self.next = (self.next + 1) % 4;
        self.get(0x10 + 4 * n, 4)
    }

    /// Reads a frame out of the ring of bytes: status, and bytes with FCS.
    fn receive(&mut self, size: u16, past_the_end: bool) -> Option<(u16, Vec<u8>)> {
        if self.get(0x37, 1) & 1 != 0 {
            return None;
        }
        let mask = size.wrapping_sub(1);
        let header = self.dma.read_u32(RX + u64::from(self.read));
        let length = (header >> 16) as usize;
        let at = |n: usize| {
            let n = usize::from(self.read) + 4 + n;
            RX + if past_the_end { n } else { n & usize::from(mask) } as u64
        };
        let bytes = (0..length).map(|n| self.dma.fetch::<1>(at(n))[0]).collect();
        self.read = (self.read.wrapping_add(4 + length as u16 + 3) & !3) & mask;
        self.out(0x38, 2, u32::from(self.read.wrapping_sub(16)));
        Some((header as u16, bytes))
    }
}

pub(in crate::net) fn frame(to: [u8; 6], len: usize) -> Vec<u8> {
    let mut frame = [&to[..], &[2, 0, 0, 0, 0, 9, 0x88, 0xb5]].concat();
    frame.extend((frame.len()..len).map(|n| (n * 7 + len) as u8));
    frame
}

pub(in crate::net) fn fcs(frame: &[u8]) -> Vec<u8> {
    [frame, &(!crc32_le(frame)).to_le_bytes()].concat()
}

#[test]
fn drivers_tell_the_two_revisions_apart() {
    for (revision, pci, version, plus) in [("20", 0x20, 0x7480_0000, true), ("10", 0x10, 0x7400_0000, false)] {
        let mut card = Card::new(&[("revision", revision), ("subsystem", "5853:0001")]);
        assert_eq!(card.bench.config_read(0, 4), 0x8139_10ec);
        assert_eq!(card.bench.config_read(8, 4), 0x0200_0000 | pci);
        assert_eq!(card.bench.config_read(0x2c, 4), 0x0001_5853);
        card.out(0x40, 4, 0x0300_0700);
        assert_eq!(card.get(0x40, 4) & 0x7cc0_0000, version);
        // iPXE's question whether there is a C+ mode, and whether it is a gigabit chip.
        card.out(0xe0, 2, 0x000b);
        assert_eq!(card.get(0xe0, 2) == 0x000b, plus);
        card.out(0xda, 2, 0x0600);
        assert_eq!(card.get(0xda, 2), 0);
    }
    let wrong = Params::new([("subsystem", "5853")]);
    let made = Bench::new().machine.plug(&MODEL, "nic", Some(emu::Bdf::new(4, 0)), &wrong, Backends::default());
    assert!(made.is_err_and(|e| e.to_string().contains("5853")));
}

/// Reads a word of the EEPROM as drivers clock it.
pub(in crate::net) fn eeprom(card: &mut Card, address: u32) -> u16 {
    let mut clock = |bit: u32| {
        card.out(0x50, 1, 0x88 | bit << 1);
        card.out(0x50, 1, 0x8c | bit << 1);
        card.get(0x50, 1) & 1
    };
    let command = 0b110 << 6 | address;
    for n in (0..9).rev() {
        clock(command >> n & 1);
    }
    let word = (0..16).fold(0, |word, _| word << 1 | clock(0) as u16);
    card.out(0x50, 1, 0);
    word
}

#[test]
fn the_eeprom_has_the_address_and_loads_it_on_demand() {
    let mut card = Card::new(&[]);
    assert_eq!([0, 1, 2, 7, 8, 9].map(|n| eeprom(&mut card, n)), [0x8129, 0x10ec, 0x8139, 0xa000, 0x0198, 0x0302]);
    card.out(0, 4, 0x1111_1111);
    card.out(4, 4, 0x2222_2222);
    assert_eq!((card.get(0, 4), card.get(4, 2), card.get(6, 2)), (0x1111_1111, 0x2222, 0));
    card.out(0x37, 1, 0x10);
    assert_eq!(card.get(0, 4), 0x1111_1111, "a reset leaves the address alone");
    card.out(0x50, 1, 0x40);
    assert_eq!(card.get(0x50, 1), 0);
    assert_eq!((card.get(0, 4), card.get(4, 2)), (0x0198_a000, 0x0302));
}

#[test]
fn configuration_is_written_only_when_it_is_unlocked() {
    let mut card = Card::new(&[]);
    card.out(0x52, 1, 0xff);
    assert_eq!(card.get(0x52, 1), 0x0d);
    card.out(0x50, 1, 0xc0);
    card.out(0x52, 1, 0x20);
    card.out(0x59, 2, 0xffff);
    card.out(0x50, 1, 0x00);
    card.out(0x52, 1, 0xff);
    assert_eq!((card.get(0x52, 1), card.get(0x59, 2)), (0x2d, 0xf570));
}

#[test]
fn frames_go_out_of_four_descriptors_in_turn() {
    for revision in ["10", "20"] {
        let mut card = Card::new(&[("revision", revision)]);
        card.start(3, true);
        assert_eq!(card.get(0x10, 4), 0x2000, "the driver's");
        for len in [60, 61, 1514, 42, 1000, 60] {
            let sent = frame([1; 6], len);
            assert_eq!(card.send(&sent), 0x3_a000 | len as u32, "own, ok, threshold and size");
            let mut wire = card.net.sent().remove(0);
            assert_eq!(wire.len(), len.max(60));
            wire.truncate(len);
            assert_eq!(wire, sent);
            assert!(card.bench.irq(16));
            card.out(0x3e, 2, 4);
            assert!(!card.bench.irq(16));
        }
        assert_eq!(card.get(0x60, 2), 0xf00f, "all are sent, and the driver's");
        // Out of turn it waits.
        card.out(0x10 + 12, 4, 60);
        assert_eq!((card.get(0x1c, 4), card.net.sent().len()), (60, 0));
        card.out(0x18, 4, 60);
        assert_eq!((card.get(0x1c, 4) & 0x8000, card.net.sent().len()), (0x8000, 2));
        // What is longer than any frame does not go out, and the queue goes on.
        card.out(0x10, 4, 0x1fff);
        card.out(0x14, 4, 60);
        assert_eq!(card.net.sent().len(), 1);
        // Starting anew is starting with the first.
        card.out(0x37, 1, 0x08);
        card.out(0x10, 4, 60);
        assert_eq!(card.net.sent().len(), 0);
        card.out(0x37, 1, 0x0c);
        assert_eq!(card.net.sent().len(), 1);
    }
}

#[test]
fn frames_come_into_the_ring_of_bytes_whatever_its_size() {
    for (code, size) in [(0, 0x2000u32), (1, 0x4000), (2, 0x8000), (3, 0x1_0000)] {
        for wrap in [false, true] {
            let mut card = Card::new(&[("revision", "10")]);
            card.start(code, wrap);
            assert_eq!(card.get(0x37, 1), 0x0d, "empty");
            for round in 0..200 {
                let len = 60 + round * 37 % 1455;
                let sent = frame(MAC, len);
                assert!(card.net.put(&sent));
                assert!(card.bench.irq(16));
                card.out(0x3e, 2, 1);
                assert!(!card.bench.irq(16));
                let past = wrap && size < 0x1_0000;
                assert_eq!(card.receive(size as u16, past), Some((0x4001, fcs(&sent))), "{size:x} {wrap} {round}");
                assert_eq!(card.get(0x37, 1), 0x0d);
            }
        }
    }
}

#[test]
fn a_short_frame_is_received_padded() {
    let mut card = Card::new(&[]);
    card.start(0, true);
    card.net.put(&frame([0xff; 6], 42));
    let (status, bytes) = card.receive(0x2000, true).unwrap();
    assert_eq!((status, bytes.len()), (0x2001, 64));
    assert_eq!(bytes[42..60], [0; 18]);
    assert_eq!(bytes, fcs(&bytes[..60]));
}

#[test]
fn a_full_ring_holds_the_cable_back_and_nothing_is_lost() {
    for revision in ["10", "20"] {
        let mut card = Card::new(&[("revision", revision)]);
        card.start(0, true);
        let (mut put, mut got) = (0, 0);
        while put < 300 {
            while card.net.put(&frame(MAC, 100 + put * 13 % 1400)) {
                put += 1;
            }
            assert_eq!(card.get(0x4c, 4), 0, "none is missed");
            let (_, bytes) = card.receive(0x2000, true).expect("a frame");
            assert_eq!(bytes, fcs(&frame(MAC, 100 + got * 13 % 1400)));
            got += 1;
        }
        // A frame that comes all the same is missed, and counted.
        while card.net.put(&frame(MAC, 1514)) {}
        card.out(0x3e, 2, 0xffff);
        card.cell.event(emu::Event::Frame(frame(MAC, 1514)));
        card.cell.event(emu::Event::Frame(frame(MAC, 1514)));
        assert_eq!((card.get(0x4c, 4), card.get(0x3e, 2) & 0x10), (2, 0x10));
        card.out(0x4c, 4, 0);
        assert_eq!(card.get(0x4c, 4), 0);
        // Drivers stop and start the receiver then, which empties the ring.
        card.out(0x37, 1, 0x04);
        assert!(card.net.put(&frame(MAC, 60)), "lost, as nobody listens");
        card.out(0x37, 1, 0x0c);
        card.read = 0;
        assert_eq!(card.receive(0x2000, true), None);
        assert!(card.net.put(&frame(MAC, 60)));
        assert_eq!(card.receive(0x2000, true), Some((0x4001, fcs(&frame(MAC, 60)))));
    }
}

#[test]
fn a_driver_that_leaves_frames_behind_is_reminded_while_the_cable_waits() {
    let mut card = Card::new(&[("revision", "10")]);
    card.start(0, true);
    while card.net.put(&frame(MAC, 60)) {}
    card.out(0x3e, 2, 0xffff);
    assert!(!card.net.ready() && !card.bench.irq(16));
    card.bench.advance(1_000_000);
    assert!(card.bench.irq(16));
    while card.receive(0x2000, true).is_some() {}
    card.out(0x3e, 2, 0xffff);
    card.bench.advance(1_000_000_000);
    assert!(card.net.ready() && !card.bench.irq(16), "and no longer when it has caught up");
}

#[test]
fn the_filter_lets_in_what_it_is_told_to_and_nothing_else() {
    let other = [0, 0xa0, 0x98, 1, 2, 4];
    let group = [0x33, 0x33, 0xff, 0x12, 0x34, 0x56];
    for rings in [false, true] {
        for rcr in 0..16u32 {
            let mut card = Card::new(&[]);
            if rings {
                card.start_rings(3);
            } else {
                card.start(0, true);
            }
            card.out(0x44, 4, 0xe080 | rcr);
            let bit = crc32_be(&group) >> 26;
            card.out(8 + bit as u16 / 32 * 4, 4, 1 << (bit % 32));
            let (aap, apm, am, ab) = (rcr & 1 != 0, rcr & 2 != 0, rcr & 4 != 0, rcr & 8 != 0);
            let cases = [(MAC, apm || aap, 0x4000), (other, aap, 0), (group, am, 0x8000), ([0xff; 6], ab, 0x2000)];
            for (to, taken, why) in cases.into_iter().chain([([1, 0, 0x5e, 0, 0, 1], false, 0)]) {
                card.net.put(&frame(to, 60));
                let got = if rings {
                    card.take(13).map(|(flags, ..)| (flags >> 11 & 0xe000) as u16)
                } else {
                    card.receive(0x2000, true).map(|(status, _)| status & 0xe000)
                };
                assert_eq!(got, taken.then_some(why), "{rings} {rcr:x} {to:x?}");
            }
        }
    }
}

#[test]
fn each_group_of_64_has_a_bit_of_its_own() {
    let mut card = Card::new(&[]);
    card.start(3, true);
    for n in 0..=255u8 {
        let group = [0x33, 0x33, 0xff, 0, n, n ^ 0x5a];
        let bit = crc32_be(&group) >> 26;
        for (mar, taken) in [(1u64 << bit, true), (!(1u64 << bit), false)] {
            card.out(8, 4, mar as u32);
            card.out(12, 4, (mar >> 32) as u32);
            card.net.put(&frame(group, 60));
            assert_eq!(card.receive(0, false).is_some(), taken, "{n}");
        }
    }
}

#[test]
fn the_wire_follows_every_write_of_mask_and_status() {
    let mut card = Card::new(&[]);
    card.start(3, true);
    card.out(0x3c, 2, 0);
    card.net.put(&frame(MAC, 60));
    assert!(!card.bench.irq(16));
    card.out(0x3c, 2, 1);
    assert!(card.bench.irq(16));
    card.out(0x3c, 2, 4);
    assert!(!card.bench.irq(16));
    card.send(&frame(MAC, 60));
    assert!(card.bench.irq(16));
    // Mask and status in one access; zeros leave the status alone.
    card.out(0x3c, 4, 0x0001_0001);
    assert!(!card.bench.irq(16));
    assert_eq!(card.get(0x3e, 2), 4);
    card.out(0x3c, 2, 0xffff);
    assert!(card.bench.irq(16));
    card.out(0x37, 1, 0x10);
    assert!(!card.bench.irq(16));
    assert_eq!(card.get(0x3c, 4), 0);
}

#[test]
fn the_timer_interrupts_once_after_each_start() {
    let mut card = Card::new(&[]);
    card.start_rings(3);
    card.out(0x54, 4, 0x400);
    card.out(0x48, 4, 1);
    card.bench.advance(30 * 0x3ff);
    assert_eq!((card.get(0x48, 4), card.bench.irq(16)), (0x3ff, false));
    card.bench.advance(30);
    assert!(card.bench.irq(16));
    assert_eq!(card.get(0x3e, 2), 0x4000);
    card.out(0x3e, 2, 0x4000);
    card.bench.advance(1_000_000_000);
    assert!(!card.bench.irq(16), "until the counter comes round");
    card.out(0x48, 4, 1);
    card.bench.advance(30 * 0x400);
    assert!(card.bench.irq(16));
    card.out(0x3e, 2, 0x4000);
    card.out(0x48, 4, 1);
    card.out(0x54, 4, 0);
    card.bench.advance(200_000_000_000);
    assert!(!card.bench.irq(16), "0 is never");
}

#[test]
fn the_link_shows_in_msr_and_bmsr_and_a_change_interrupts() {
    let mut card = Card::new(&[]);
    card.start(0, true);
    assert_eq!((card.get(0x58, 1), card.get(0x64, 2) & 0x24), (0, 0x24));
    card.net.link(false);
    assert!(card.bench.irq(16));
    assert_eq!((card.get(0x3e, 2), card.get(0x58, 1) & 4), (0x20, 4));
    assert_eq!(card.send(&frame(MAC, 60)) & 0x8000_8000, 0x8000_8000, "sent, without a carrier");
    assert_eq!(card.net.sent().len(), 0);
    card.out(0x3e, 2, 0xffff);
    card.net.link(true);
    assert!(card.bench.irq(16));
    // The high half beside BMSR does not count as reading it.
    card.get(0x66, 2);
    assert_eq!([card.get(0x64, 2) & 4, card.get(0x64, 2) & 4], [0, 4], "the loss shows once");
    card.send(&frame(MAC, 60));
    assert_eq!(card.net.sent().len(), 1);
    card.out(0x62, 2, 0x0000);
    assert_eq!(card.get(0x58, 1) & 8, 8, "10 Mbit/s");
}

#[test]
fn what_is_sent_in_loopback_comes_back_and_goes_nowhere_else() {
    let mut card = Card::new(&[]);
    card.start(0, true);
    card.net.link(false);
    card.out(0x40, 4, 0x0306_0700);
    let sent = frame(MAC, 60);
    card.send(&sent);
    assert_eq!(card.receive(0x2000, true), Some((0x4001, fcs(&sent))));
    card.send(&frame([2; 6], 60));
    assert_eq!(card.receive(0x2000, true), None, "the filter counts");
    // The same in C+ mode.
    card.start_rings(3);
    card.send_ring(0xd9, &[&sent], 0, 0);
    assert_eq!(card.take(13).map(|(_, _, bytes)| bytes), Some(fcs(&sent)));
    assert!(card.net.sent().is_empty());
}

#[test]
fn rings_send_and_receive() {
    let mut card = Card::new(&[]);
    card.start_rings(3);
    for len in [60, 1514, 42, 700, 61, 90] {
        let sent = frame([4; 6], len);
        let (a, b) = sent.split_at(14);
        card.send_ring(0xd9, &[a, b], 0, 0);
        let wire = card.net.sent().remove(0);
        assert_eq!((&wire[..len], wire.len()), (&sent[..], len.max(60)));
        assert_eq!(card.get(0x3e, 2), 0x84, "sent, and no more descriptors");
        assert_eq!(card.get(0xd9, 1), 0);
        card.out(0x3e, 2, 0x84);
        assert!(!card.bench.irq(16));
        let came = frame(MAC, len);
        assert!(card.net.put(&came));
        assert!(card.bench.irq(16));
        let (flags, vlan, bytes) = card.take(13).unwrap();
        assert_eq!((flags & 0x3fff_e000, vlan), (FS | LS | 1 << 25, 0));
        let mut padded = came;
        padded.resize(len.max(60), 0);
        assert_eq!(bytes, fcs(&padded));
        card.out(0x3e, 2, 0xffff);
    }
}

#[test]
fn a_frame_is_spread_over_descriptors_and_the_last_has_its_length() {
    let mut card = Card::new(&[]);
    card.start_rings(3);
    (0..4).for_each(|n| card.give(n, 256));
    let sent = frame(MAC, 600);
    assert!(card.net.put(&sent));
    let dma = card.bench.dma();
    let flags = |n: u64| dma.read_u32(RINGS[1] + 16 * n) & 0xf000_1fff;
    assert_eq!([flags(0), flags(1), flags(2), flags(3)], [FS | 256, 256, LS | 604, OWN | EOR | 256]);
    let mut bytes = vec![0; 604];
    for (n, part) in bytes.chunks_mut(256).enumerate() {
        card.dma.read(BUFFERS + 0x1000 * n as u64, part);
    }
    assert_eq!(bytes, fcs(&sent));
    // One descriptor is not enough for the next.
    card.net.put(&sent);
    assert_eq!((card.get(0x4c, 4), card.get(0x3e, 2) & 0x10), (1, 0x10));
    assert_eq!(flags(3), OWN | EOR | 256, "untouched");
}

#[test]
fn a_ring_without_descriptors_holds_the_cable_back_until_there_are_some() {
    let mut card = Card::new(&[]);
    card.start_rings(3);
    let mut put = 0;
    while card.net.put(&frame(MAC, 60 + put)) {
        put += 1;
    }
    assert_eq!((put, card.get(0x4c, 4)), (4, 0));
    card.bench.advance(1_000_000);
    assert!(!card.net.ready());
    // The driver gives them back, and then enables interrupts.
    (0..4).for_each(|n| assert_eq!(card.take(13).unwrap().2, fcs(&frame(MAC, 60 + n))));
    card.out(0x3c, 2, 0xe0ff);
    assert!(card.net.ready());
    // Or does not touch a register: the ring is looked at all the same.
    while card.net.put(&frame(MAC, 60)) {}
    (0..4).for_each(|_| drop(card.take(13).unwrap()));
    assert!(!card.net.ready());
    card.bench.advance(20_000_000);
    assert!(card.net.ready());
}

#[test]
fn the_chip_cuts_sums_up_and_tags() {
    let mut card = Card::new(&[]);
    card.start_rings(3);
    let (ip, udp, tcp) = (1 << 18, 1 << 17, 1 << 16);
    for (is_tcp, flags) in [(true, ip | tcp), (false, ip | udp)] {
        card.send_ring(0xd9, &[&offload::tests::sample(false, is_tcp, 0, 1000)], flags, 0);
        let sent = card.net.sent().remove(0);
        assert_eq!(offload::checksum_is_good(&sent), Some(true));
    }
    let plain = offload::tests::sample(false, true, 0, 1000);
    card.send_ring(0xd9, &[&plain], 0, 0);
    assert_eq!(card.net.sent(), [plain], "unasked nothing is touched");
    // Large send, in two parts, with a tag.
    let large = offload::tests::sample(false, true, 0, 9000);
    let (a, b) = large.split_at(66);
    card.send_ring(0xd9, &[a, b], 1 << 27 | 1400 << 16, 1 << 17 | 0x0520);
    let sent = card.net.sent();
    assert_eq!(sent.len(), 7);
    for part in &sent {
        assert_eq!(part[12..18], [0x81, 0x00, 0x20, 0x05, 0x08, 0x00]);
        assert_eq!(offload::checksum_is_good(part), Some(true));
    }
}

#[test]
fn checksums_and_tags_of_received_frames_are_told() {
    let mut card = Card::new(&[]);
    card.start_rings(0x63);
    let good = |tcp: bool| {
        let mut frame = offload::tests::sample(false, tcp, 0, 100);
        offload::sum_up(&mut frame, true, true, true);
        frame[..6].copy_from_slice(&MAC);
        frame
    };
    let mut seen = |frame: &[u8]| {
        card.net.put(frame);
        let (flags, vlan, bytes) = card.take(13).unwrap();
        (flags >> 13 & 0x1f, vlan, bytes.len())
    };
    let len = good(true).len() + 4;
    assert_eq!(seen(&good(true)), (1 << 3, 0, len));
    assert_eq!(seen(&good(false)).0, 2 << 3);
    let broken = |tcp: bool, at: usize| {
        let mut frame = good(tcp);
        frame[at] ^= 1;
        frame
    };
    assert_eq!(seen(&broken(true, 22)).0, 1 << 3 | 4, "the header's");
    assert_eq!(seen(&broken(true, 80)).0, 1 << 3 | 1, "TCP's");
    assert_eq!(seen(&broken(false, 80)).0, 2 << 3 | 2, "UDP's");
    assert_eq!(seen(&frame(MAC, 60)).0, 0, "no IP");
    let mut tagged = good(true);
    drop(tagged.splice(12..12, [0x81, 0x00, 0x20, 0x05]));
    assert_eq!(seen(&tagged), (1 << 3, 1 << 16 | 0x0520, len), "the tag is taken out");
    card.start_rings(0x23);
    card.net.put(&tagged);
    assert_eq!(card.take(13).map(|(_, vlan, bytes)| (vlan, bytes)), Some((0, fcs(&tagged))));
}

#[test]
fn statistics_are_dumped_where_the_driver_wants_them() {
    let mut card = Card::new(&[]);
    card.start_rings(3);
    card.send_ring(0xd9, &[&frame([9; 6], 60)], 0, 0);
    card.out(0x44, 4, 0xe00e);
    card.out(8, 4, !0);
    card.out(12, 4, !0);
    for to in [MAC, MAC, [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
        card.net.put(&frame(to, 60));
    }
    card.cell.event(emu::Event::Frame(frame(MAC, 60)));
    card.out(0x14, 4, 0);
    card.out(0x10, 4, 0x9_0000 | 8);
    assert_eq!(card.get(0x10, 4), 0x9_0000, "done");
    let dump: [u8; 64] = card.dma.fetch(0x9_0000);
    let long = |at: usize| u64::from_le_bytes(*dump[at..].first_chunk().unwrap());
    assert_eq!([long(0), long(8), long(40), long(48), long(56)], [1, 4, 2, 1, 1]);
    assert_eq!(u16::from_le_bytes([dump[28], dump[29]]), 1, "missed");
}

#[test]
fn a_ring_that_is_none_costs_no_more_than_a_round() {
    let mut card = Card::new(&[]);
    // Never an end of frame; all descriptors the chip's.
    card.start_rings(3);
    (0..4).for_each(|n| card.describe(RINGS[0], n, OWN | 0xffff, 0, 0));
    card.out(0xd9, 1, 0x40);
    // Outside RAM everything reads as ones, and stays so.
    card.out(0x20, 4, 0xf000_0000);
    card.out(0xd9, 1, 0xc0);
    card.out(0xe4, 4, 0xf000_0000);
    card.net.put(&frame(MAC, 1514));
    card.bench.advance(1_000_000);
    // No bus mastering.
    card.bench.config_write(4, 2, 3);
    card.out(0xd9, 1, 0xc0);
    card.bench.advance(1_000_000);
    card.bench.config_write(4, 2, 7);
    card.start_rings(3);
    assert!(card.net.sent().iter().all(|f| f.len() <= 0x1_1004));
    card.send_ring(0xd9, &[&frame(MAC, 60)], 0, 0);
    assert_eq!(card.net.sent(), [frame(MAC, 60)], "and it works again");
}

#[test]
fn a_card_that_is_saved_in_the_middle_goes_on_elsewhere() {
    let mut card = Card::new(&[("revision", "10")]);
    card.start(0, true);
    while card.net.put(&frame(MAC, 1000)) {}
    card.send(&frame(MAC, 60));
    card.out(0x54, 4, 5000);
    let saved = card.cell.save();
    let mut twin = Card::new(&[("revision", "10")]);
    let mut memory = vec![0; 0x1_0000];
    card.dma.read(RX, &mut memory);
    twin.dma.write(RX, &memory);
    twin.cell.load(saved.clone()).unwrap();
    assert_eq!(twin.cell.save(), saved);
    assert!(twin.bench.irq(16) && !twin.net.ready());
    twin.next = 1;
    assert_eq!(twin.receive(0x2000, true), Some((0x4001, fcs(&frame(MAC, 1000)))));
    assert!(twin.net.ready());
    twin.send(&frame(MAC, 61));
    assert_eq!(twin.net.sent().len(), 1);
    twin.bench.advance(5000 * 30);
    assert_eq!(twin.get(0x3e, 2) & 0x4000, 0x4000);
}

#[test]
fn without_a_cable_the_link_is_down() {
    let bench = Bench::new();
    bench.plug(&MODEL, &Params::default(), Backends::default());
    bench.config_write(0x10, 4, u32::from(BASE) | 1);
    bench.config_write(4, 2, 7);
    let mut bus = bench.bus;
    assert_eq!((bus.pio_read(BASE + 0x58, 1) & 4, bus.pio_read(BASE + 0x64, 2) & 4), (4, 0));
}
