use emu::bench::{Bench, BenchNet, Rng, fuzz_cases};
use emu::{Backends, DeviceCell, DeviceState, ResetKind};

use super::*;
use crate::net::offload::{checksum, sum};
use crate::net::{BROADCAST, crc32_le};

const BASE: u64 = 0xf000_0000;
const IO: u16 = 0xc000;
const CARD: Mac = [0x00, 0xa0, 0x98, 1, 2, 3];
const OTHER: Mac = [0x02, 0, 0, 0, 0, 9];

/// Where the rings and buffers are; a ring has eight descriptors, a buffer 2 KB of its 16 KB.
const TX: u64 = 0x1000;
const RX: u64 = 0x2000;
const OUT: u64 = 0x1_0000;
const IN: u64 = 0x4_0000;
const STEP: u64 = 0x4000;
const COUNT: u32 = 8;

const EOP_IFCS_RS: u32 = 0x0b << 24;
const DEXT: u32 = 1 << 29;
const DATA: u32 = 1 << 20;
const TSE: u32 = 1 << 26;

struct Rig {
    bench: Bench,
    net: BenchNet,
    cell: Arc<DeviceCell>,
    tail: u32,
}

impl Rig {
    fn new(model: &Model) -> Rig {
        let (bench, net) = (Bench::new(), BenchNet::default());
        let backends = Backends { net: Some(Box::new(net.clone())), ..Backends::default() };
        let cell = bench.plug(model, &Params::new([("mac", "00:a0:98:01:02:03")]), backends);
        bench.config_write(0x10, 4, BASE as u32);
        bench.config_write(0x18, 4, IO.into());
        bench.config_write(4, 2, 7);
        Rig { bench, net, cell, tail: 0 }
    }

    /// As a driver leaves it: link up, both rings, all interrupts, long frames not taken.
    fn up(model: &Model) -> Rig {
        let mut r = Rig::new(model);
        r.start();
        r.w(IMS, icr::ALL);
        assert_eq!(r.r(ICR), icr::LSC, "the link came up");
        r
    }

    fn start(&mut self) {
        self.w(CTRL, ctrl::SLU);
        for (at, base) in [(RDBAL, RX), (TDBAL, TX)] {
            self.w(at, base as u32);
            self.w(at + 4, 0);
            self.w(at + 8, 16 * COUNT);
            self.w(at + 0x10, 0);
        }
        for n in 0..COUNT.into() {
            self.dma().write(RX + 16 * n, &(IN + STEP * n).to_le_bytes());
        }
        self.tail = 0;
        self.w(TDT, 0);
        self.w(TCTL, TCTL_EN);
        self.w(RCTL, rctl::EN | rctl::BAM | rctl::SECRC);
        self.w(RDT, COUNT - 1);
    }

    fn dma(&self) -> DmaMem {
        self.bench.dma()
    }

    fn r(&mut self, at: u32) -> u32 {
        self.bench.bus.read(BASE + u64::from(at), 4) as u32
    }

    fn w(&mut self, at: u32, value: u32) {
        self.bench.bus.write(BASE + u64::from(at), 4, value.into());
    }

    fn line(&self) -> bool {
        self.bench.irq(16)
    }

    /// Puts a descriptor into the ring, of which the card is told later.
    fn put(&mut self, words: [u32; 4]) {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.dma().write(TX + 16 * u64::from(self.tail), &bytes);
        self.tail = (self.tail + 1) % COUNT;
    }

    fn kick(&mut self) {
        self.w(TDT, self.tail);
    }

    /// Puts a part of a frame, in a buffer of its own.
    fn part(&mut self, bytes: &[u8], command: u32, high: u32) {
        let buffer = OUT + 0x2_0000 * u64::from(self.tail % 2) / 2;
        self.dma().write(buffer, bytes);
        self.put([buffer as u32, 0, bytes.len() as u32 | command, high]);
    }

    /// Sends a frame by a legacy descriptor.
    fn send(&mut self, frame: &[u8]) -> Vec<Vec<u8>> {
        self.part(frame, EOP_IFCS_RS, 0);
        self.kick();
        self.net.sent()
    }

    /// A descriptor that the card gave back: data, status, errors, checksum, special.
    fn came(&self, n: u64) -> (Vec<u8>, u8, u8, u16, u16) {
        let d = self.dma().fetch::<16>(RX + 16 * n);
        let word = |at: usize| u16::from_le_bytes([d[at], d[at + 1]]);
        let mut data = vec![0; word(8).into()];
        self.dma().read(u64::from_le_bytes(d[..8].try_into().unwrap()), &mut data);
        (data, d[12], d[13], word(10), word(14))
    }

    /// Puts a frame on the wire; whether the driver gets it. Makes room again.
    fn takes(&mut self, frame: &[u8]) -> bool {
        let head = self.r(RDBAL + 0x10);
        assert!(self.net.put(frame));
        let now = self.r(RDBAL + 0x10);
        self.w(RDT, (now + COUNT - 1) % COUNT);
        now != head
    }
}

/// The ones' complement sum.
fn sum16(bytes: &[u8]) -> u16 {
    !checksum(sum(bytes))
}

fn frame(to: Mac, len: usize) -> Vec<u8> {
    [&to[..], &OTHER, &[0x88, 0xb5]].concat().into_iter().chain((14..len).map(|n| n as u8)).collect()
}

/// An IPv4 or IPv6 frame with this protocol and payload, its checksums right.
fn packet(v6: bool, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut ip = match v6 {
        true => {
            let len = (payload.len() as u16).to_be_bytes();
            [&[0x60, 0, 0, 0, len[0], len[1], protocol, 64][..], &[0xfd; 16], &[0xfe; 16]].concat()
        }
        false => {
            let len = (20 + payload.len() as u16).to_be_bytes();
            vec![0x45, 0, len[0], len[1], 0x12, 0x34, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]
        }
    };
    if !v6 {
        context::insert(&mut ip, 0, 0, 10);
    }
    let addresses = if v6 { &ip[8..40] } else { &ip[12..20] };
    let mut payload = payload.to_vec();
    let at = if protocol == 6 { 16 } else { 6 };
    let pseudo = [addresses, &[0, protocol], &(payload.len() as u16).to_be_bytes()].concat();
    payload[at..at + 2].copy_from_slice(&[0, 0]);
    let sum = (!sum16(&[&pseudo[..], &payload].concat())).to_be_bytes();
    payload[at..at + 2].copy_from_slice(&sum);
    let kind = if v6 { [0x86, 0xdd] } else { [8, 0] };
    [&CARD[..], &OTHER, &kind, &ip, &payload].concat()
}

/// A TCP segment or a UDP datagram without a checksum, with data that differs from byte to byte.
fn payload(protocol: u8, len: usize) -> Vec<u8> {
    let data = (0..len).map(|n| (n * 7 ^ n >> 8) as u8);
    let header = match protocol {
        6 => vec![1, 2, 3, 4, 0xff, 0xff, 0xff, 0, 0, 0, 0, 1, 0x50, 0x19, 0x20, 0, 0, 0, 0, 0],
        _ => vec![1, 2, 3, 4, ((8 + len) >> 8) as u8, (8 + len) as u8, 0, 0],
    };
    header.into_iter().chain(data).collect()
}

#[test]
fn the_subsystem_is_in_the_eeprom_as_well() {
    let bench = Bench::new();
    let params = Params::new([("subsystem", "15ad:0750")]);
    bench.plug(&E1000_82545EM, &params, Backends::default());
    assert_eq!(bench.config_read(0x2c, 4), 0x0750_15ad);
    assert_eq!(eeprom(&I82545EM, CARD, (0x15ad, 0x0750))[0x0b..0x0d], [0x0750, 0x15ad]);
}

#[test]
fn identity_and_bars_are_those_of_the_chips() {
    for (model, id, ports) in
        [(&E1000_82545EM, 0x100f_8086, true), (&E1000_82540EM, 0x100e_8086, true), (&E1000_82543GC, 0x1004_8086, false)]
    {
        let mut r = Rig::new(model);
        assert_eq!(r.bench.config_read(0, 4), id);
        r.bench.config_write(0x10, 4, !0);
        r.bench.config_write(0x18, 4, !0);
        assert_eq!(r.bench.config_read(0x10, 4), 0xfffe_0000);
        assert_eq!(r.bench.config_read(0x18, 4), if ports { 0xffff_ffc1 } else { 0 });
        r.bench.config_write(0x10, 4, BASE as u32);
        assert_eq!((r.r(RAL), r.r(RAH)), (0x0198_a000, 0x8000_0302));
    }
}

/// EEPROM words as Linux and OpenBSD clock them.
fn eeprom_by_bits(r: &mut Rig, word: u32) -> u16 {
    let clock = |r: &mut Rig, value: u32| {
        r.w(EECD, eecd::REQ | eecd::CS | value);
        r.w(EECD, eecd::REQ | eecd::CS | value | eecd::SK);
        let bit = r.r(EECD) & eecd::DO != 0;
        r.w(EECD, eecd::REQ | eecd::CS | value);
        bit
    };
    r.w(EECD, eecd::REQ);
    assert_eq!(r.r(EECD) & (eecd::GNT | eecd::PRES), eecd::GNT | eecd::PRES);
    for n in (0..9).rev() {
        clock(r, if (6 << 6 | word) >> n & 1 != 0 { eecd::DI } else { 0 });
    }
    let value = (0..16).fold(0, |value, _| value << 1 | u16::from(clock(r, 0)));
    r.w(EECD, eecd::REQ);
    r.w(EECD, 0);
    value
}

#[test]
fn the_eeprom_adds_up_whichever_way_it_is_read() {
    for model in [&E1000_82545EM, &E1000_82543GC] {
        let mut r = Rig::new(model);
        let words: Vec<u16> = (0..64).map(|n| eeprom_by_bits(&mut r, n)).collect();
        assert_eq!(words.iter().fold(0u16, |sum, word| sum.wrapping_add(*word)), EEPROM_SUM);
        assert_eq!(words[..3], [0xa000, 0x0198, 0x0302]);
        r.w(EERD, 2 << 8 | 1);
        let there = !model.name.ends_with("43gc");
        assert_eq!(r.r(EERD), if there { 0x0302_0210 } else { 0 }, "{}", model.name);
    }
}

#[test]
fn the_phy_answers_through_mdic_at_address_1() {
    let mut r = Rig::new(&E1000_82540EM);
    let read = |r: &mut Rig, address: u32, register: u32| {
        r.w(MDIC, mdic::READ << 26 | address << 21 | register << 16);
        let value = r.r(MDIC);
        assert_ne!(value & mdic::READY, 0);
        (value & mdic::ERROR == 0).then_some(value as u16)
    };
    assert_eq!((read(&mut r, 1, 2), read(&mut r, 1, 3), read(&mut r, 2, 2)), (Some(0x0141), Some(0x0c20), None));
    assert_eq!(read(&mut r, 1, 1).unwrap() & 0x24, 0x24);
    assert_eq!(read(&mut r, 1, 17), Some(0xac00), "1000 Mbit/s, full duplex, resolved, link");
    // A negotiation ends with LSC, if somebody uses the link.
    r.w(MDIC, mdic::WRITE << 26 | 1 << 21 | 0x1200);
    assert_eq!(r.r(ICR), 0);
    r.w(CTRL, ctrl::SLU);
    assert_eq!(r.r(ICR), icr::LSC);
    r.w(MDIC, mdic::WRITE << 26 | 1 << 21 | mdic::INTERRUPT | 0x1200);
    assert_eq!(r.r(ICR), icr::LSC | icr::MDAC);
    r.w(CTRL, ctrl::SLU | ctrl::PHY_RST);
    assert_eq!(r.r(ICR), icr::LSC);
    // 100 Mbit/s half duplex.
    r.w(MDIC, mdic::WRITE << 26 | 1 << 21 | 0x2000);
    assert_eq!(r.r(STATUS), 0x0142);
}

#[test]
fn the_82543_is_asked_for_its_phy_bit_by_bit() {
    let mut r = Rig::new(&E1000_82543GC);
    let out = ctrl::MDIO_OUT | 1 << 25;
    let clock = |r: &mut Rig, value: u32| {
        r.w(CTRL, value);
        r.w(CTRL, value | ctrl::MDC);
        let bit = r.r(CTRL) & ctrl::MDIO != 0;
        r.w(CTRL, value);
        bit
    };
    let send = |r: &mut Rig, value: u32, bits: u32| {
        for n in (0..bits).rev() {
            clock(r, out | if value >> n & 1 != 0 { ctrl::MDIO } else { 0 });
        }
    };
    send(&mut r, !0, 32);
    send(&mut r, 1 << 12 | 2 << 10 | 1 << 5 | 2, 14);
    clock(&mut r, 1 << 25);
    let id = (0..16).fold(0, |value, _| value << 1 | u16::from(clock(&mut r, 1 << 25)));
    clock(&mut r, 1 << 25);
    assert_eq!(id, 0x0141);
    send(&mut r, !0, 32);
    send(&mut r, 1 << 30 | 1 << 28 | 1 << 23 | 2 << 16 | 0x0100, 32);
    assert_eq!(r.r(STATUS) & 0xc1, 0x01, "10 Mbit/s, full duplex");
    r.w(CTRL_EXT, ctrl_ext::SDP4_OUT);
    assert_eq!(r.r(STATUS) & 0xc1, 0x81, "the reset pin");
    r.w(MDIC, mdic::READ << 26 | 1 << 21 | 2 << 16);
    assert_eq!(r.r(MDIC), 0);
}

#[test]
fn a_reset_is_over_at_once_also_by_the_ports() {
    let mut r = Rig::up(&E1000_82545EM);
    r.w(RAH, 0x8000_ffff);
    r.bench.bus.pio_write(IO, 4, CTRL);
    r.bench.bus.pio_write(IO + 4, 4, ctrl::RST | ctrl::SLU);
    assert_eq!(r.bench.bus.pio_read(IO + 4, 4), ctrl::FD | ctrl::SPEED_1000);
    assert_eq!((r.r(RAH), r.r(RCTL), r.r(IMS), r.r(TDBAL), r.r(PBA)), (0x8000_0302, 0, 0, 0, 0x0010_0030));
    assert_eq!(r.r(STATUS) & 2, 0, "no link before SLU");
    r.start();
    assert_eq!(r.r(STATUS), 0x0283);
    assert_eq!(r.r(ICR), icr::LSC);
}

/// The registers of ethtool's self-test (Linux), with the bits that it expects to find again.
#[test]
fn registers_keep_the_bits_that_exist() {
    let mut r = Rig::new(&E1000_82540EM);
    let status = r.r(STATUS);
    r.w(STATUS, !0);
    assert_eq!(r.r(STATUS), status);
    let rings = [(RDBAL, 0xffff_fff0), (TDBAL, 0xffff_fff0), (RDBAL + 4, !0), (TDBAL + 4, !0), (RDBAL + 8, 0xf_ff80)];
    let more = [
        (TDBAL + 8, 0xf_ff80),
        (RDBAL + 0x10, 0xffff),
        (RDT, 0xffff),
        (FCAL, !0),
        (FCAH, 0xffff),
        (FCT, 0xffff),
        (VET, 0xffff),
        (RDTR, 0xffff),
        (FCRTH, 0xfff8),
        (FCTTV, 0xffff),
        (TIPG, 0x3fff_ffff),
        (TIDV, 0xffff),
        (RCTL, 0x07ff_ffff),
    ];
    let addresses = (0..16).flat_map(|n| [(RAL + 8 * n, !0), (RAH + 8 * n, 0x8003_ffff)]);
    let tables = (0..128).flat_map(|n| [(MTA + 4 * n, !0), (VFTA + 4 * n, !0)]);
    for (at, mask) in rings.into_iter().chain(more).chain(addresses).chain(tables) {
        for pattern in [0x5a5a_5a5a, 0xa5a5_a5a5, 0, !0] {
            r.w(at, pattern);
            assert_eq!(r.r(at), pattern & mask, "{at:#x}");
        }
    }
    for n in 0..17 {
        r.w(IMC, !0);
        r.r(ICR);
        r.w(ICS, 1 << n);
        assert!(!r.line());
        r.w(IMS, 1 << n);
        assert!(r.line(), "cause {n}");
        r.w(IMC, 1 << n);
        assert!(!r.line());
    }
}

#[test]
fn the_line_is_causes_and_mask_at_any_time_and_reading_clears() {
    let mut r = Rig::up(&E1000_82545EM);
    assert!(!r.line());
    r.send(&frame(OTHER, 100));
    assert!(r.line());
    r.w(IMC, icr::TXDW);
    assert!(r.line(), "the ring is empty");
    r.w(ICR, icr::TXQE);
    assert!(!r.line());
    r.w(IMS, icr::TXDW);
    assert!(r.line());
    assert_eq!((r.r(ICR), r.line(), r.r(ICR)), (icr::TXDW, false, 0));
}

#[test]
fn interrupts_keep_apart_as_itr_says_and_none_is_lost() {
    let mut r = Rig::up(&E1000_82545EM);
    r.w(ITR, 100);
    assert!(r.takes(&frame(CARD, 60)) && r.line(), "the first comes at once");
    r.r(ICR);
    assert!(r.takes(&frame(CARD, 60)) && !r.line());
    r.bench.advance(25_599);
    assert!(!r.line());
    r.bench.advance(1);
    assert!(r.line());
    r.bench.edges(16);
    for _ in 0..1000 {
        r.r(ICR);
        assert!(r.takes(&frame(CARD, 60)));
        r.bench.advance(256);
    }
    assert!((10..=11).contains(&r.bench.edges(16)));
    // A shorter interval holds for the one that is under way, too.
    r.r(ICR);
    r.bench.advance(30_000);
    assert!(r.takes(&frame(CARD, 60)) && r.line());
    r.r(ICR);
    assert!(r.takes(&frame(CARD, 60)) && !r.line());
    r.w(ITR, 0);
    assert!(r.line());
}

#[test]
fn delayed_interrupts_come_when_nothing_follows_or_it_has_lasted() {
    let mut r = Rig::up(&E1000_82540EM);
    r.w(RDTR, 10);
    r.w(RADV, 25);
    assert!(r.takes(&frame(CARD, 60)));
    r.bench.advance(10 * 1024 - 1);
    assert_eq!(r.r(ICR) & icr::RXT0, 0);
    r.bench.advance(1);
    assert_eq!(r.r(ICR), icr::RXT0);
    // Frames that follow each other closely put it off, but not for ever.
    for n in 0..5 {
        assert!(r.takes(&frame(CARD, 60)));
        assert_eq!(r.r(ICR), if n * 6 >= 25 { icr::RXT0 } else { 0 });
        r.bench.advance(6 * 1024);
    }
    assert!(r.takes(&frame(CARD, 60)));
    r.w(RDTR, RDTR_FPD | 10);
    assert_eq!(r.r(ICR), icr::RXT0);
    r.w(RSRPD, 64);
    assert!(r.takes(&frame(CARD, 60)));
    assert_eq!(r.r(ICR), icr::SRPD);
    r.bench.advance(1 << 20);
    r.r(ICR);
    // Of what is sent only descriptors with IDE wait.
    r.w(TIDV, 10);
    r.part(&frame(OTHER, 60), EOP_IFCS_RS | 1 << 31, 0);
    r.kick();
    assert_eq!(r.r(ICR), icr::TXQE);
    r.bench.advance(10 * 1024);
    assert_eq!(r.r(ICR), icr::TXDW);
    r.send(&frame(OTHER, 60));
    assert_eq!(r.r(ICR), icr::TXDW | icr::TXQE);
}

#[test]
fn frames_go_out_of_legacy_descriptors() {
    let mut r = Rig::up(&E1000_82545EM);
    let out = frame(OTHER, 1514);
    for _ in 0..20 {
        assert_eq!(r.send(&out), std::slice::from_ref(&out));
        let at = (r.tail + COUNT - 1) % COUNT;
        assert_eq!(r.dma().fetch::<1>(TX + 16 * u64::from(at) + 12), [1], "DD");
        assert_eq!(r.r(TDBAL + 0x10), r.tail);
    }
    // In parts, of which only the last is reported; then a short one.
    r.part(&out[..700], 0, 0);
    r.part(&out[700..], EOP_IFCS_RS, 0);
    r.kick();
    assert_eq!(r.net.sent(), std::slice::from_ref(&out));
    let first = (r.tail + COUNT - 2) % COUNT;
    assert_eq!(r.dma().fetch::<1>(TX + 16 * u64::from(first) + 12), [0]);
    let short = frame(OTHER, 20);
    assert_eq!(r.send(&short), [[&short[..], &[0; 40]].concat()]);
    // One to whose end the driver put the FCS.
    r.part(&[&out[..], &[1, 2, 3, 4]].concat(), 0x09 << 24, 0);
    r.kick();
    assert_eq!(r.net.sent(), [out]);
    // The transmitter is off: nothing goes until it is on.
    r.w(TCTL, 0);
    assert!(r.send(&short).is_empty());
    r.w(TCTL, TCTL_EN);
    assert_eq!(r.net.sent().len(), 1);
}

#[test]
fn a_legacy_descriptor_can_have_one_checksum() {
    let mut r = Rig::up(&E1000_82545EM);
    let right = packet(false, 1, &[8, 0, 0, 0, 1, 2, 3, 4]);
    let mut without = right.clone();
    without[24..26].fill(0);
    // Only the header of 20 bytes is there, so that the end of the frame is its end.
    r.part(&without[..34], EOP_IFCS_RS | 1 << 26 | 24 << 16, 14 << 8);
    r.kick();
    assert_eq!(r.net.sent()[0][..34], right[..34]);
}

/// Puts a context of IPv4 or IPv6, TCP or UDP.
fn describe(r: &mut Rig, v6: bool, tcp: bool, cut: Option<(usize, u32)>) {
    let l4 = if v6 { 54 } else { 34 };
    let at = l4 + if tcp { 16 } else { 6 };
    let command = u32::from(tcp) | u32::from(!v6) << 1 | if cut.is_some() { 4 } else { 0 };
    let (header, mss) = cut.unwrap_or((0, 0));
    let ip = if v6 { 0 } else { 14 | 24 << 8 | 33 << 16 };
    r.put([ip | 14, l4 | at << 8, DEXT | command << 24, (header as u32) << 8 | mss << 16]);
}

#[test]
fn checksums_are_put_in_by_context() {
    for v6 in [false, true] {
        for protocol in [6, 17] {
            let mut r = Rig::up(&E1000_82540EM);
            let right = packet(v6, protocol, &payload(protocol, 333));
            let (mut out, l4) = (right.clone(), if v6 { 54 } else { 34 });
            let at = l4 + if protocol == 6 { 16 } else { 6 };
            // The driver leaves the pseudo-header's sum there.
            let addresses = if v6 { right[22..54].to_vec() } else { right[26..34].to_vec() };
            let len = ((right.len() - l4) as u16).to_be_bytes();
            let pseudo = sum16(&[&addresses[..], &[0, protocol], &len].concat());
            out[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
            if !v6 {
                out[24..26].fill(0);
            }
            describe(&mut r, v6, protocol == 6, None);
            r.part(&out[..l4], DEXT | DATA, if v6 { 2 } else { 3 } << 8);
            r.part(&out[l4..], DEXT | DATA | EOP_IFCS_RS, 0);
            r.kick();
            assert_eq!(r.net.sent(), [right], "v6 {v6}, protocol {protocol}");
        }
    }
}

/// What a sender that cuts by itself would have sent.
fn segments(v6: bool, tcp: bool, data: &[u8], mss: usize) -> Vec<Vec<u8>> {
    let last = data.len().div_ceil(mss) - 1;
    let parts = data.chunks(mss).enumerate().map(|(n, part)| {
        let mut segment = [&payload(if tcp { 6 } else { 17 }, 0)[..], part].concat();
        if tcp {
            segment[4..8].copy_from_slice(&0xffff_ff00_u32.wrapping_add((n * mss) as u32).to_be_bytes());
            segment[13] = if n == last { 0x19 } else { 0x10 };
        } else {
            let len = segment.len() as u16;
            segment[4..6].copy_from_slice(&len.to_be_bytes());
        }
        let mut frame = packet(v6, if tcp { 6 } else { 17 }, &segment);
        if !v6 {
            let id = 0x1234 + n as u16;
            frame[18..20].copy_from_slice(&id.to_be_bytes());
            frame[24..26].fill(0);
            context::insert(&mut frame, 14, 33, 24);
        }
        frame
    });
    parts.collect()
}

#[test]
fn a_long_frame_becomes_segments_that_one_would_have_sent_oneself() {
    for (v6, tcp) in [(false, true), (true, true), (false, false), (true, false)] {
        let mut r = Rig::up(&E1000_82545EM);
        let protocol = if tcp { 6 } else { 17 };
        let data: Vec<u8> = payload(protocol, 14_000).split_off(if tcp { 20 } else { 8 });
        let mut whole = packet(v6, protocol, &payload(protocol, 14_000));
        let l4 = if v6 { 54 } else { 34 };
        let (at, header) = (l4 + if tcp { 16 } else { 6 }, l4 + if tcp { 20 } else { 8 });
        let addresses = if v6 { whole[22..54].to_vec() } else { whole[26..34].to_vec() };
        let pseudo = sum16(&[&addresses[..], &[0, protocol]].concat());
        whole[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
        if !v6 {
            whole[24..26].fill(0);
            whole[16..18].fill(0);
        }
        describe(&mut r, v6, tcp, Some((header, 1448)));
        let (command, options) = (DEXT | DATA | TSE, if v6 { 2 } else { 3 } << 8);
        r.part(&whole[..100], command, options);
        r.part(&whole[100..], command | EOP_IFCS_RS, options);
        r.kick();
        let sent = r.net.sent();
        let wanted = segments(v6, tcp, &data, 1448);
        assert_eq!(sent.len(), wanted.len());
        for (n, (sent, wanted)) in sent.iter().zip(&wanted).enumerate() {
            assert_eq!(sent, wanted, "v6 {v6}, tcp {tcp}, segment {n}");
        }
        assert_eq!((r.r(stat::TSCTC), r.r(stat::GPTC)), (1, 10));
    }
}

#[test]
fn segments_that_cannot_be_are_not_sent_and_endless_ones_take_turns() {
    let mut r = Rig::up(&E1000_82545EM);
    let whole = packet(false, 6, &payload(6, 3000));
    for (header, mss) in [(54, 0), (0, 1448), (255, 1448)] {
        describe(&mut r, false, true, Some((header, mss)));
        r.part(&whole[..200], DEXT | DATA | TSE | EOP_IFCS_RS, 3 << 8);
        r.kick();
        assert!(r.net.sent().is_empty(), "header {header}, MSS {mss}");
    }
    assert_eq!(r.r(stat::TSCTFC), 3);
    describe(&mut r, false, true, Some((54, 1)));
    r.part(&whole, DEXT | DATA | TSE | EOP_IFCS_RS, 3 << 8);
    r.kick();
    let first = r.net.sent().len();
    assert!((200..=256).contains(&first));
    // What is under way is saved.
    let saved = r.cell.save();
    let twin = Rig::new(&E1000_82545EM);
    twin.cell.load(saved.clone()).unwrap();
    assert_eq!(twin.cell.save(), saved);
    for rig in [&r, &twin] {
        (0..20).for_each(|_| rig.bench.advance(1));
        let rest: Vec<_> = rig.net.sent();
        assert_eq!(first + rest.len(), 3000);
        assert_eq!(rest.last().unwrap()[54], *whole.last().unwrap());
    }
    // More than any frame has: it is dropped as a whole, and the next one is sent.
    for _ in 0..6 {
        r.put([OUT as u32, 0, 0xf_ffff | DEXT | DATA | TSE, 0]);
    }
    r.put([OUT as u32, 0, 0xf_ffff | DEXT | DATA | TSE | EOP_IFCS_RS, 0]);
    r.kick();
    assert!(r.net.sent().is_empty());
    assert_eq!(r.send(&whole[..100]), [whole[..100].to_vec()]);
}

#[test]
fn tags_are_put_in_taken_out_and_filtered() {
    let mut r = Rig::up(&E1000_82540EM);
    let plain = frame(CARD, 100);
    let tagged = |tag: u16| [&plain[..12], &[0x81, 0], &tag.to_be_bytes(), &plain[12..]].concat();
    r.part(&plain, EOP_IFCS_RS | 1 << 30, 0x6005 << 16);
    r.kick();
    assert_eq!(r.net.sent(), std::slice::from_ref(&plain), "VLANs are off");
    assert!(r.takes(&tagged(5)));
    assert_eq!(r.came(0).0, tagged(5));
    r.w(CTRL, ctrl::SLU | ctrl::VME);
    r.part(&plain, EOP_IFCS_RS | 1 << 30, 0x6005 << 16);
    r.kick();
    assert_eq!(r.net.sent(), [tagged(0x6005)]);
    assert!(r.takes(&tagged(0x6005)));
    let (data, status, _, _, special) = r.came(1);
    assert_eq!((data, status, special), (plain.clone(), 0x0f, 0x6005));
    let control = r.r(RCTL);
    r.w(RCTL, control | rctl::VFE);
    r.w(VFTA + 4 * (0x123 >> 5), 1 << (0x123 & 31));
    let tags = [0x123, 0x122, 0x323, 0xe123, 0xf123, 0];
    assert_eq!(tags.map(|tag| r.takes(&tagged(tag))), [true, false, false, true, true, false]);
    assert!(r.takes(&plain), "no tag, no filter");
    r.w(RCTL, control | rctl::VFE | rctl::CFIEN);
    assert_eq!(tags.map(|tag| r.takes(&tagged(tag))), [true, false, false, true, false, false]);
}

#[test]
fn frames_come_into_buffers_of_every_size() {
    let mut r = Rig::up(&E1000_82545EM);
    let jumbo = frame(CARD, 9014);
    assert!(!r.takes(&jumbo));
    assert_eq!(r.r(stat::ROC), 1);
    for (control, size) in [
        (0, 2048),
        (1 << 16, 1024),
        (2 << 16, 512),
        (3 << 16, 256),
        (1 << 16 | rctl::BSEX, 16384),
        (2 << 16 | rctl::BSEX, 8192),
        (3 << 16 | rctl::BSEX, 4096),
    ] {
        r.w(RCTL, 0);
        r.w(RDBAL + 0x10, 0);
        r.w(RDT, COUNT - 1);
        r.w(RCTL, rctl::EN | rctl::LPE | control);
        let came = frame(CARD, if size < 2048 { 1514 } else { 9014 });
        assert!(r.net.put(&came));
        let needed = (came.len() + 4).div_ceil(size);
        assert_eq!(r.r(RDBAL + 0x10), needed as u32);
        let parts: Vec<_> = (0..needed as u64).map(|n| r.came(n)).collect();
        let bytes = parts.iter().flat_map(|part| part.0.clone()).collect::<Vec<u8>>();
        assert_eq!(bytes, [&came[..], &(!crc32_le(&came)).to_le_bytes()].concat(), "with FCS, {size}");
        for (n, part) in parts.iter().enumerate() {
            assert_eq!(part.1, if n + 1 == needed { 7 } else { 1 });
        }
    }
    let small = frame(CARD, 42);
    r.w(RCTL, rctl::EN | rctl::SECRC);
    let at = r.r(RDBAL + 0x10);
    assert!(r.net.put(&small));
    assert_eq!(r.came(at.into()).0, [&small[..], &[0; 18]].concat());
}

#[test]
fn a_full_ring_keeps_one_frame_and_stops_the_wire() {
    let mut r = Rig::up(&E1000_82545EM);
    r.r(ICR);
    let frames: Vec<Vec<u8>> = (0..9).map(|n| frame(CARD, 100 + n)).collect();
    for (n, frame) in frames[..7].iter().enumerate() {
        assert!(r.net.ready() && r.net.put(frame));
        assert_eq!(r.r(ICR), icr::RXT0 | if n == 3 - 1 { icr::RXDMT0 } else { 0 }, "frame {n}");
    }
    assert!(!r.net.ready());
    // What was on its way already is kept, the second one is lost.
    r.cell.event(Event::Frame(frames[7].clone()));
    assert_eq!((r.r(ICR), r.r(stat::RNBC)), (0, 1));
    r.cell.event(Event::Frame(frames[8].clone()));
    assert_eq!((r.r(ICR), r.r(stat::MPC)), (icr::RXO, 1));
    let twin = Rig::new(&E1000_82545EM);
    twin.cell.load(r.cell.save()).unwrap();
    assert!(!twin.net.ready());
    r.w(RDT, 0);
    assert_eq!(r.r(ICR), icr::RXT0);
    assert_eq!(r.came(7).0, frames[7]);
    assert!(!r.net.ready());
    r.w(RDT, 6);
    assert!(r.net.ready() && r.net.put(&frames[0]));
    // A receiver that is off loses what comes, and nobody waits for it.
    r.w(RDT, 1);
    assert!(!r.net.ready());
    r.w(RCTL, 0);
    assert!(r.net.ready() && r.net.put(&frames[0]));
    assert_eq!(r.r(ICR), icr::RXT0);
}

#[test]
fn address_filters_are_exact() {
    let mut r = Rig::up(&E1000_82540EM);
    let near: Mac = [0x00, 0xa0, 0x98, 1, 2, 4];
    let group: Mac = [1, 0, 0x5e, 0, 0, 1];
    let status = |r: &mut Rig| {
        let head = r.r(RDBAL + 0x10);
        r.came(((head + COUNT - 1) % COUNT).into()).1
    };
    let takes = |r: &mut Rig| [CARD, near, BROADCAST, group].map(|to| r.takes(&frame(to, 60)));
    assert_eq!(takes(&mut r), [true, false, true, false]);
    for (bits, wanted) in [
        (0, [true, false, false, false]),
        (rctl::UPE, [true, true, false, false]),
        (rctl::MPE, [true, false, true, true]),
        (rctl::BAM, [true, false, true, false]),
    ] {
        r.w(RCTL, rctl::EN | bits);
        assert_eq!(takes(&mut r), wanted, "{bits:#x}");
    }
    // All sixteen addresses count, if they are valid.
    r.w(RAL + 8 * 15, u32::from_le_bytes([near[0], near[1], near[2], near[3]]));
    r.w(RAH + 8 * 15, 0x0402);
    assert!(!r.takes(&frame(near, 60)));
    r.w(RAH + 8 * 15, 0x0402 | RAH_AV);
    assert!(r.takes(&frame(near, 60)));
    assert_eq!(status(&mut r) & 0x80, 0);
    // By the source.
    r.w(RAL + 8 * 15, u32::from_le_bytes([OTHER[0], OTHER[1], OTHER[2], OTHER[3]]));
    r.w(RAH + 8 * 15, 0x0900 | 1 << 16 | RAH_AV);
    assert!(r.takes(&frame(near, 60)));
    r.w(RAH + 8 * 15, 0);
    // One bit of the table is for one of 4096 values; which bits of the address these are, RCTL.MO says.
    let group: Mac = [1, 0, 0x5e, 0x7f, 0xab, 0xcd];
    for (offset, hash) in [(0, 0xcda), (1, 0x9b5), (2, 0x36a), (3, 0xdab)] {
        r.w(RCTL, rctl::EN | offset << 12);
        r.w(MTA + 4 * (hash >> 5), 1 << (hash & 31));
        assert!(r.takes(&frame(group, 60)), "MO {offset}");
        assert_eq!(status(&mut r) & 0x80, 0x80, "it passed inexactly");
        for bit in 0..12 {
            r.w(MTA + 4 * (hash >> 5), 0);
            r.w(MTA + 4 * ((hash ^ 1 << bit) >> 5), 1 << ((hash ^ 1 << bit) & 31));
            assert!(!r.takes(&frame(group, 60)));
            r.w(MTA + 4 * ((hash ^ 1 << bit) >> 5), 0);
        }
    }
}

#[test]
fn checksums_of_what_comes_are_checked_if_the_driver_asks() {
    let mut r = Rig::up(&E1000_82545EM);
    let wanted = |r: &mut Rig, frame: &[u8]| {
        let at = r.r(RDBAL + 0x10);
        assert!(r.takes(frame));
        let (_, status, errors, sum, _) = r.came(at.into());
        (status & 0x64, errors, sum)
    };
    let good = [packet(false, 6, &payload(6, 77)), packet(false, 17, &payload(17, 78))];
    let six = [packet(true, 6, &payload(6, 77)), packet(true, 17, &payload(17, 1))];
    assert_eq!(wanted(&mut r, &good[0]).0, 0x04, "nobody asked");
    r.w(RXCSUM, 0x300 | 14);
    for frame in &good {
        let sum = sum16(&frame[14..]);
        assert_eq!(wanted(&mut r, frame), (0x60, 0, !sum));
        let mut bad = frame.clone();
        *bad.last_mut().unwrap() ^= 1;
        assert_eq!((wanted(&mut r, &bad).0, wanted(&mut r, &bad).1), (0x60, 0x20));
        let mut bad = frame.clone();
        bad[22] ^= 1;
        assert_eq!(wanted(&mut r, &bad).1, 0x40);
        let mut fragment = frame.clone();
        fragment[20] = 0x20;
        assert_eq!(wanted(&mut r, &fragment).0, 0x40);
    }
    for frame in &six {
        assert_eq!((wanted(&mut r, frame).0, wanted(&mut r, frame).1), (0x20, 0));
        let mut bad = frame.clone();
        bad[30] ^= 1;
        assert_eq!(wanted(&mut r, &bad).1, 0x20);
    }
    let mut none = good[1].clone();
    none[40..42].fill(0);
    assert_eq!(wanted(&mut r, &none).0, 0x40, "UDP without a checksum");
    assert_eq!(wanted(&mut r, &frame(CARD, 60)).0, 0x04);
    // Frames that say they are longer than they are.
    for cut in 15..good[0].len() {
        wanted(&mut r, &good[0][..cut]);
        wanted(&mut r, &six[0][..cut]);
    }
}

#[test]
fn statistics_count_once_and_are_cleared_by_reading() {
    let mut r = Rig::up(&E1000_82545EM);
    for (to, len) in [(CARD, 60), (BROADCAST, 100), (CARD, 1514), (OTHER, 60)] {
        r.takes(&frame(to, len));
    }
    let octets = 64 + 104 + 1518;
    assert_eq!((r.r(stat::TPR), r.r(stat::GPRC), r.r(stat::BPRC), r.r(stat::MPRC)), (4, 3, 1, 0));
    assert_eq!((r.r(stat::GORC), r.r(stat::GORC), r.r(stat::GORC + 4)), (octets, octets, 0));
    assert_eq!((r.r(stat::GORC), r.r(stat::GPRC)), (0, 0));
    assert_eq!((0..6).map(|n| r.r(stat::PRC64 + 4 * n)).collect::<Vec<_>>(), [1, 1, 0, 0, 0, 1]);
    r.send(&frame(BROADCAST, 600));
    assert_eq!((r.r(stat::GPTC), r.r(stat::BPTC), r.r(stat::PTC64 + 16), r.r(stat::TOT)), (1, 1, 1, 604));
    // MAC control is counted and not passed on.
    r.w(FCAL, 0x00c2_8001);
    r.w(FCAH, 0x0100);
    let control = r.r(RCTL);
    r.w(RCTL, control | rctl::MPE);
    let pause = [&[1, 0x80, 0xc2, 0, 0, 1][..], &OTHER, &[0x88, 0x08, 0, 1, 0xff, 0xff]].concat();
    assert!(!r.takes(&pause));
    assert_eq!(r.r(stat::FCRUC), 1);
    r.w(CTRL, ctrl::SLU | ctrl::RFCE);
    assert!(!r.takes(&pause));
    assert_eq!(r.r(stat::XOFFRXC), 1);
}

#[test]
fn the_link_comes_and_goes() {
    let mut r = Rig::up(&E1000_82540EM);
    for _ in 0..3 {
        r.net.link(false);
        assert!(r.line());
        assert_eq!((r.r(ICR), r.r(STATUS) & 2), (icr::LSC, 0));
        assert!(!r.takes(&frame(CARD, 60)) && r.send(&frame(OTHER, 60)).is_empty());
        assert_eq!(r.r(ICR) & icr::TXDW, icr::TXDW, "what is sent is done with");
        r.net.link(true);
        assert_eq!((r.r(ICR), r.r(STATUS) & 2), (icr::LSC, 2));
        assert!(r.takes(&frame(CARD, 60)) && r.send(&frame(OTHER, 60)).len() == 1);
        r.r(ICR);
    }
    let bench = Bench::new();
    let alone = bench.plug(&E1000_82540EM, &Params::default(), Backends::default());
    alone.load(r.cell.save()).unwrap();
    alone.event(Event::Frame(frame(CARD, 60)));
    assert!(bench.irq(16), "LSC: no cable here");
}

#[test]
fn both_loopbacks_bring_back_what_is_sent() {
    let mut r = Rig::up(&E1000_82545EM);
    let control = r.r(RCTL);
    let test = frame(BROADCAST, 1024);
    r.w(RCTL, control | 1 << 6);
    assert!(r.send(&test).is_empty());
    assert_eq!(r.came(0).0, test);
    r.w(RCTL, control);
    r.w(MDIC, mdic::WRITE << 26 | 1 << 21 | 0x4140);
    r.net.link(false);
    assert!(r.send(&test).is_empty());
    assert_eq!(r.came(1).0, test);
    // More than there is room for.
    for _ in 0..20 {
        r.send(&test);
    }
    assert_eq!(r.r(RDBAL + 0x10), COUNT - 1);
}

#[test]
fn a_reset_forgets_what_was_under_way() {
    let mut r = Rig::up(&E1000_82545EM);
    for _ in 0..8 {
        r.cell.event(Event::Frame(frame(CARD, 60)));
    }
    r.part(&frame(OTHER, 60), 0, 0);
    r.kick();
    assert!(!r.net.ready() && r.line());
    r.cell.reset(ResetKind::System);
    assert!(r.net.ready() && !r.line());
    r.bench.config_write(0x10, 4, BASE as u32);
    r.bench.config_write(4, 2, 7);
    r.start();
    r.w(IMS, icr::ALL);
    assert_eq!(r.r(ICR), icr::LSC);
    assert_eq!(r.send(&frame(OTHER, 61)), [frame(OTHER, 61)]);
    assert!(r.takes(&frame(CARD, 60)));
}

#[test]
fn rings_of_a_hostile_driver_do_no_harm() {
    let mut r = Rig::up(&E1000_82545EM);
    let out = frame(OTHER, 60);
    // Tail and head beyond the ring, a ring of nothing, a ring that is nowhere.
    for (at, value) in [(TDT, 8), (TDT, 0xffff), (TDBAL + 0x10, 9), (TDBAL + 8, 0)] {
        r.w(at, value);
        r.w(TDT, 3);
        r.bench.advance(1000);
    }
    r.net.sent();
    r.w(TDBAL + 8, 0xf_ff80);
    r.w(TDBAL + 4, !0);
    r.w(TDBAL, !0);
    r.w(TDBAL + 0x10, 0);
    r.w(TDT, 0xffff);
    assert_eq!(r.r(TDBAL + 0x10), 0, "not in the ring");
    r.w(TDT, 0xfff0);
    assert_eq!(r.r(TDBAL + 0x10), 256, "not all of it at once");
    r.bench.advance(1);
    assert_eq!(r.r(TDBAL + 0x10), 512, "a turn of the timers is one of the ring");
    (0..300).for_each(|_| r.bench.advance(1));
    assert_eq!(r.r(TDBAL + 0x10), 0xfff0);
    for (at, value) in [(RDBAL + 8, 0), (RDBAL + 8, 128), (RDBAL + 0x10, 0xffff), (RDT, 0xffff), (RDBAL + 4, !0)] {
        r.w(at, value);
        r.cell.event(Event::Frame(out.clone()));
        r.w(RDT, 0);
    }
    let mut rng = Rng::new(6);
    for _ in 0..fuzz_cases() * 100 {
        let at = rng.pick(&[CTRL, RCTL, TCTL, RDBAL, RDBAL + 8, RDBAL + 16, RDT, TDBAL, TDBAL + 8, TDT, RXCSUM, ITR]);
        r.w(at, rng.value() as u32);
        r.dma().write(TX + rng.below(256) as u64, &rng.next().to_le_bytes());
        r.cell.event(Event::Frame((0..rng.below(3000)).map(|_| rng.next() as u8).collect()));
        r.bench.advance(1000);
        r.net.sent();
    }
}
