use std::sync::Arc;

use emu::bench::{Bench, BenchNet};
use emu::{Backends, DeviceCell, DeviceState, Params};

use super::{ISA, PCI};
use crate::net::crc32_be;
use crate::net::rtl8139::tests::{fcs, frame};

const MAC: [u8; 6] = [0, 0xa0, 0x98, 1, 2, 3];
/// Pages, as most drivers lay them out: six to send from, the rest for the ring.
const TX: u8 = 0x40;
const START: u8 = 0x46;
const STOP: u8 = 0x80;

struct Card {
    bench: Bench,
    net: BenchNet,
    cell: Arc<DeviceCell>,
    base: u16,
    irq: u32,
    next: u8,
}

impl Card {
    fn new(model: &emu::Model) -> Card {
        let (bench, net) = (Bench::new(), BenchNet::default());
        let params = Params::new([("mac", "00:a0:98:01:02:03")]);
        let cell = bench.plug(model, &params, Backends { net: Some(Box::new(net.clone())), ..Backends::default() });
        bench.machine.reset(emu::ResetKind::PowerOn);
        let pci = model.name == PCI.name;
        if pci {
            bench.config_write(0x10, 4, 0xc001);
            bench.config_write(4, 2, 5);
        }
        let (base, irq) = if pci { (0xc000, 16) } else { (0x300, 10) };
        Card { bench, net, cell, base, irq, next: START + 1 }
    }

    fn both() -> [Card; 2] {
        [&PCI, &ISA].map(Card::new)
    }

    fn out(&mut self, at: u16, value: u8) {
        self.bench.bus.pio_write(self.base + at, 1, value.into());
    }

    fn get(&mut self, at: u16) -> u8 {
        self.bench.bus.pio_read(self.base + at, 1) as u8
    }

    fn page1(&mut self, at: u16, value: Option<u8>) -> u8 {
        self.out(0, 0x62);
        value.into_iter().for_each(|value| self.out(at, value));
        let read = self.get(at);
        self.out(0, 0x22);
        read
    }

    /// As drivers begin: words, broadcasts and groups.
    fn start(&mut self, dcr: u8) {
        self.get(0x1f);
        assert_eq!(self.get(7) & 0x80, 0x80, "reset");
        self.out(0, 0x21);
        for (at, value) in
            [(14, dcr), (10, 0), (11, 0), (12, 0x20), (13, 2), (4, TX), (1, START), (3, START), (2, STOP)]
        {
            self.out(at, value);
        }
        self.out(7, 0xff);
        self.out(15, 0x3f);
        for (n, byte) in MAC.into_iter().enumerate() {
            self.page1(1 + n as u16, Some(byte));
        }
        self.page1(7, Some(START + 1));
        self.out(0, 0x22);
        assert_eq!(self.get(7) & 0x80, 0, "it runs");
        self.out(13, 0);
        self.out(12, 0x0c);
        self.next = START + 1;
    }

    fn remote(&mut self, at: u16, len: u16, command: u8) {
        let [[at_low, at_high], [low, high]] = [at, len].map(u16::to_le_bytes);
        for (register, value) in [(8, at_low), (9, at_high), (10, low), (11, high), (0, command)] {
            self.out(register, value);
        }
    }

    fn read(&mut self, at: u16, len: usize, width: u8) -> Vec<u8> {
        self.remote(at, len as u16, 0x0a);
        let mut bytes = vec![0; len.next_multiple_of(width.into())];
        self.bench.bus.pio_read_many(self.base + 0x10, width, &mut bytes);
        assert_eq!(self.get(7) & 0x40, 0x40, "over");
        self.out(7, 0x40);
        bytes.truncate(len);
        bytes
    }

    fn send(&mut self, frame: &[u8], width: u8) {
        let mut bytes = frame.to_vec();
        bytes.resize(frame.len().next_multiple_of(width.into()), 0);
        self.remote(u16::from(TX) << 8, bytes.len() as u16, 0x12);
        self.bench.bus.pio_write_many(self.base + 0x10, width, &bytes);
        assert_eq!(self.get(7) & 0x40, 0x40);
        self.out(7, 0x40);
        let [low, high] = (frame.len() as u16).to_le_bytes();
        for (at, value) in [(4, TX), (5, low), (6, high), (0, 0x26)] {
            self.out(at, value);
        }
    }

    /// A frame of the ring: its status, and its bytes with FCS.
    fn receive(&mut self, width: u8) -> Option<(u8, Vec<u8>)> {
        if self.page1(7, None) == self.next {
            return None;
        }
        let at = u16::from(self.next) << 8;
        let header = self.read(at, 4, width);
        let len = u16::from_le_bytes([header[2], header[3]]);
        let bytes = self.read(at + 4, usize::from(len), width);
        self.next = header[1];
        self.out(3, if self.next == START { STOP - 1 } else { self.next - 1 });
        Some((header[0], bytes))
    }
}

#[test]
fn the_prom_has_the_address_twice_for_bytes_and_once_for_words() {
    for mut card in Card::both() {
        card.start(0x48);
        let doubled: Vec<u8> = MAC.iter().flat_map(|b| [*b, *b]).collect();
        let prom = card.read(0, 32, 1);
        assert_eq!((&prom[..12], &prom[28..]), (&doubled[..], &[0x57; 4][..]));
        // ne2k-pci reads bytes of words.
        card.out(14, 0x49);
        card.remote(0, 32, 0x0a);
        assert_eq!(std::array::from_fn(|_| card.get(0x10)), MAC);
    }
}

#[test]
fn the_8029_has_its_name_and_its_own_page() {
    let [mut pci, mut isa] = Card::both();
    assert_eq!((pci.bench.config_read(0, 4), pci.bench.config_read(10, 2)), (0x8029_10ec, 0x0200));
    pci.out(0, 0x21);
    isa.out(0, 0x21);
    assert_eq!((pci.get(10), pci.get(11), isa.get(10)), (b'P', b'C', 0));
    pci.out(0, 0xe1);
    assert_eq!((pci.get(14), pci.get(15)), (0x29, 0x80));
    pci.out(6, 0x40);
    assert_eq!(pci.get(6), 0, "locked");
    pci.out(1, 0xc0);
    pci.out(6, 0x40);
    pci.out(1, 0);
    assert_eq!(pci.get(6), 0x40);
}

#[test]
fn memory_is_where_drivers_look_for_it_and_only_there() {
    for mut card in Card::both() {
        card.start(0x48);
        for (at, there) in [(0x2000, false), (0x4000, true), (0x7fe0, true), (0x8000, false), (0xffe0, false)] {
            card.remote(at, 8, 0x12);
            card.bench.bus.pio_write_many(card.base + 0x10, 1, b"pattern!");
            assert_eq!(card.read(at, 8, 1) == b"pattern!", there, "{at:x}");
        }
    }
}

#[test]
fn frames_go_out_by_bytes_words_and_double_words() {
    for (mut card, widths) in Card::both().into_iter().zip([&[1, 2, 4][..], &[1, 2]]) {
        for width in widths {
            card.start(if *width == 1 { 0x48 } else { 0x49 });
            for len in [60, 61, 1514, 42] {
                let sent = frame([1; 6], len);
                card.send(&sent, *width);
                assert_eq!((card.get(4), card.get(7), card.get(0) & 4), (1, 2, 0));
                assert!(card.bench.irq(card.irq));
                card.out(7, 2);
                assert!(!card.bench.irq(card.irq));
                let wire = card.net.sent().remove(0);
                assert_eq!((&wire[..len], wire.len()), (&sent[..], len.max(60)));
            }
        }
    }
}

#[test]
fn frames_come_into_the_ring_round_after_round() {
    for (mut card, width) in Card::both().into_iter().zip([2, 1]) {
        card.start(if width == 1 { 0x48 } else { 0x49 });
        for round in 0..200 {
            let sent = frame(MAC, 60 + round * 37 % 1455);
            assert!(card.net.put(&sent));
            assert!(card.bench.irq(card.irq));
            card.out(7, 1);
            let (status, bytes) = card.receive(width).unwrap();
            // The length that the header tells leaves the FCS out, which lies behind it.
            assert_eq!((status, &bytes[..sent.len()]), (1, &sent[..]), "{round}");
            assert_eq!(bytes[sent.len()..], fcs(&sent)[sent.len()..]);
        }
        assert_eq!(card.receive(width), None);
    }
}

#[test]
fn a_command_that_neither_starts_nor_stops_leaves_the_chip_as_it_is() {
    let mut card = Card::new(&PCI);
    card.start(0x49);
    card.out(0, 0x20);
    assert_eq!((card.get(0), card.net.put(&frame(MAC, 60))), (0x22, true));
    assert!(card.receive(2).is_some());
    card.out(0, 0x21);
    card.out(0, 0x20);
    card.net.put(&frame(MAC, 60));
    assert_eq!((card.get(7) & 0x80, card.receive(2)), (0x80, None));
}

#[test]
fn the_page_before_the_ring_is_its_last() {
    let mut card = Card::new(&PCI);
    card.start(0x49);
    card.page1(7, Some(START));
    card.out(3, START - 1);
    card.next = START;
    let mut put = 0;
    while card.net.put(&frame(MAC, 1000)) {
        put += 1;
    }
    assert_eq!((put, card.get(15)), (13, 0), "57 of 58 pages, in fours, while a longest frame fits");
    assert_eq!(card.receive(2).map(|(status, _)| status), Some(1));
}

#[test]
fn a_full_ring_holds_the_cable_back_and_nothing_is_lost() {
    let mut card = Card::new(&PCI);
    card.start(0x49);
    let (mut put, mut got) = (0, 0);
    while put < 200 {
        while card.net.put(&frame(MAC, 100 + put * 13 % 1400)) {
            put += 1;
        }
        assert_eq!(card.get(15), 0, "none is missed");
        let (_, bytes) = card.receive(2).expect("a frame");
        let sent = frame(MAC, 100 + got * 13 % 1400);
        assert_eq!(bytes[..sent.len()], sent);
        got += 1;
    }
    // What comes all the same is missed, until the driver has stopped, read and started again.
    while card.net.put(&frame(MAC, 1514)) {}
    for _ in 0..3 {
        card.cell.event(emu::Event::Frame(frame(MAC, 1514)));
    }
    assert_eq!((card.get(7) & 0x10, card.get(15), card.get(15)), (0x10, 3, 0));
    card.out(0, 0x21);
    assert!(card.net.ready());
    assert_eq!(card.get(7) & 0x80, 0x80);
    card.out(13, 2);
    card.out(0, 0x22);
    while card.receive(2).is_some() {}
    card.out(7, 0x10);
    card.out(13, 0);
    assert!(card.net.put(&frame(MAC, 60)));
    assert!(card.receive(2).is_some());
}

#[test]
fn a_driver_that_leaves_frames_behind_is_told_again_and_one_that_does_not_is_not() {
    for (mut card, irq) in Card::both().into_iter().zip([16, 10]) {
        card.start(0x49);
        for left in [0, 1, 3] {
            (0..10).for_each(|_| assert!(card.net.put(&frame(MAC, 60))));
            (left..10).for_each(|_| assert!(card.receive(2).is_some()));
            card.out(7, 0x3f);
            card.bench.advance(900_000);
            assert!(!card.bench.irq(irq), "{left}");
            card.bench.advance(100_000);
            assert_eq!(card.bench.irq(irq), left != 0, "{left}");
            while card.receive(2).is_some() {}
            card.out(7, 0x3f);
            card.bench.advance(10_000_000);
            assert!(!card.bench.irq(irq), "{left}");
        }
        // Nor is one that has stopped, or that has a ring of one page.
        (0..2).for_each(|_| assert!(card.net.put(&frame(MAC, 60))));
        card.out(7, 0x3f);
        card.out(0, 0x21);
        card.bench.advance(1_000_000);
        assert_eq!(card.get(7), 0x80);
        for (at, value) in [(1, 0x7f), (2, 0x80), (3, 0x7f)] {
            card.out(at, value);
        }
        card.page1(7, Some(0x7f));
        card.out(7, 0x3f);
    }
}

#[test]
fn the_filter_lets_in_what_it_is_told_to_and_nothing_else() {
    let (other, group) = ([0, 0xa0, 0x98, 1, 2, 4], [0x33, 0x33, 0xff, 0x12, 0x34, 0x56]);
    for mode in 0..8u8 {
        let mut card = Card::new(&PCI);
        card.start(0x49);
        card.out(12, mode << 2);
        let bit = crc32_be(&group) >> 26;
        card.page1(8 + bit as u16 / 8, Some(1 << (bit % 8)));
        let (ab, am, pro) = (mode & 1 != 0, mode & 2 != 0, mode & 4 != 0);
        let cases = [(MAC, true, 1), (other, pro, 1), (group, am, 0x21), ([0xff; 6], ab, 0x21)];
        for (to, taken, status) in cases.into_iter().chain([([1, 0, 0x5e, 0, 0, 1], false, 0)]) {
            card.net.put(&frame(to, 60));
            assert_eq!(card.receive(2).map(|(status, _)| status), taken.then_some(status), "{mode} {to:x?}");
        }
        card.out(12, 0x20 | mode << 2);
        card.net.put(&frame(MAC, 60));
        assert_eq!((card.receive(2), card.get(15)), (None, 1), "a monitor only counts");
    }
}

#[test]
fn the_tally_interrupts_when_it_is_half_full() {
    let mut card = Card::new(&ISA);
    card.start(0x49);
    card.out(12, 0x20);
    for n in 0..300 {
        assert_eq!(card.bench.irq(10), n >= 128);
        card.net.put(&frame(MAC, 60));
    }
    assert_eq!(card.get(15), 192);
    card.out(7, 0x20);
    assert!(!card.bench.irq(10));
}

#[test]
fn the_wire_follows_every_write_of_mask_and_status() {
    let mut card = Card::new(&ISA);
    card.start(0x49);
    card.out(15, 0);
    card.net.put(&frame(MAC, 60));
    card.send(&frame([1; 6], 60), 2);
    assert!(!card.bench.irq(10));
    card.out(15, 1);
    assert!(card.bench.irq(10));
    card.out(7, 1);
    assert!(!card.bench.irq(10));
    card.out(15, 2);
    assert!(card.bench.irq(10));
    card.out(0, 0x21);
    card.out(7, 0xff);
    assert_eq!((card.get(7), card.bench.irq(10)), (0x80, false), "RST is no interrupt");
}

#[test]
fn nothing_goes_out_in_loopback_or_without_a_cable() {
    let mut card = Card::new(&PCI);
    card.start(0x49);
    card.out(13, 2);
    card.send(&frame([1; 6], 60), 2);
    assert_eq!((card.get(7) & 2, card.net.sent().len()), (2, 0));
    card.net.put(&frame(MAC, 60));
    card.out(13, 0);
    assert_eq!(card.receive(2), None);
    card.net.link(false);
    card.send(&frame([1; 6], 60), 2);
    assert_eq!((card.get(4), card.net.sent().len()), (0x11, 0));
    card.net.link(true);
    card.send(&frame([1; 6], 60), 2);
    assert_eq!((card.get(4), card.net.sent().len()), (1, 1));
}

#[test]
fn rings_and_frames_that_are_none_do_no_harm() {
    let mut card = Card::new(&PCI);
    for (start, stop, current, boundary) in [
        (0, 0, 0, 0),
        (0x46, 0x40, 0x46, 0x46),
        (0x46, 0xff, 0x50, 0x46),
        (0x46, 0x80, 0x90, 0x46),
        (0x7f, 0x80, 0x7f, 0x7f),
    ] {
        card.start(0x49);
        card.page1(7, Some(current));
        for (at, value) in [(1, start), (2, stop), (3, boundary)] {
            card.out(at, value);
        }
        card.net.put(&frame(MAC, 1514));
        card.net.put(&frame(MAC, 60));
    }
    for (page, low, high) in [(0, 60, 0), (0x7f, 0xff, 0xff), (0x40, 0, 0), (0xff, 60, 0)] {
        card.start(0x49);
        for (at, value) in [(4, page), (5, low), (6, high), (0, 0x26)] {
            card.out(at, value);
        }
        assert_eq!(card.get(7) & 0x0a, 8, "not sent");
    }
    assert!(card.net.sent().is_empty());
}

#[test]
fn a_card_that_is_saved_in_the_middle_goes_on_elsewhere() {
    let mut card = Card::new(&ISA);
    card.start(0x49);
    while card.net.put(&frame(MAC, 1000)) {}
    card.remote(u16::from(START + 1) << 8, 8, 0x0a);
    card.get(0x10);
    let saved = card.cell.save();
    let mut twin = Card::new(&ISA);
    twin.cell.load(saved.clone()).unwrap();
    assert_eq!(twin.cell.save(), saved);
    assert!(twin.bench.irq(10) && !twin.net.ready());
    assert_eq!(twin.bench.bus.pio_read(0x310, 2), 1004, "the header's length");
    assert_eq!(twin.receive(2).unwrap().1[..1000], frame(MAC, 1000));
    (0..3).for_each(|_| drop(twin.receive(2)));
    assert!(twin.net.ready());
}
