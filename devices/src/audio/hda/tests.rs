use std::sync::{Arc, Mutex};

use emu::backend::{Capture, Frame, Playback};
use emu::bench::Bench;
use emu::{Backends, DeviceCell, DeviceState, DmaMem, Params, ResetKind};

use super::{GAINS, MODEL, STEPS, TICK};

const BASE: u64 = 0xe000_0000;
/// Where the driver has its things.
const CORB: u64 = 0x1_0000;
const RIRB: u64 = 0x1_1000;
const POSITIONS: u64 = 0x1_2000;
const LIST: u64 = 0x1_3000;
const BUFFERS: u64 = 0x2_0000;
/// Bytes of each of the two.
const BUFFER: u64 = 960;
/// Descriptors of the first streams in and out.
const IN: u64 = 0x80;
const OUT: u64 = 0x100;
/// 48 kHz, 16 bits, two channels.
const DAT: u16 = 0x11;

/// What the host was told, and what it says.
#[derive(Clone, Default)]
struct Host(Arc<Mutex<Said>>);

#[derive(Default)]
struct Said {
    calls: Vec<String>,
    heard: Vec<Frame>,
    next: i16,
}

impl Host {
    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().calls)
    }
    fn heard(&self) -> Vec<Frame> {
        std::mem::take(&mut self.0.lock().unwrap().heard)
    }
}

impl Playback for Host {
    fn open(&mut self, rate: u32) {
        self.0.lock().unwrap().calls.push(format!("play {rate}"));
    }
    fn write(&mut self, frames: &[Frame]) {
        self.0.lock().unwrap().heard.extend(frames);
    }
    fn close(&mut self) {
        self.0.lock().unwrap().calls.push("played".to_owned());
    }
}

impl Capture for Host {
    fn open(&mut self, rate: u32) {
        self.0.lock().unwrap().calls.push(format!("record {rate}"));
    }
    fn read(&mut self, frames: &mut [Frame]) {
        let next = &mut self.0.lock().unwrap().next;
        for frame in frames {
            *next = next.wrapping_add(1);
            *frame = [*next, next.wrapping_neg()];
        }
    }
    fn close(&mut self) {
        self.0.lock().unwrap().calls.push("recorded".to_owned());
    }
}

struct Card {
    bench: Bench,
    cell: Arc<DeviceCell>,
    dma: DmaMem,
    host: Host,
    read: u8,
}

impl Card {
    fn new(out: bool, line_in: bool) -> Card {
        let (bench, host) = (Bench::new(), Host::default());
        let backends = Backends {
            playback: out.then(|| Box::new(host.clone()) as Box<dyn Playback>),
            capture: line_in.then(|| Box::new(host.clone()) as Box<dyn Capture>),
            ..Backends::default()
        };
        let cell = bench.plug(&MODEL, &Params::default(), backends);
        bench.machine.reset(ResetKind::PowerOn);
        bench.config_write(0x10, 4, BASE as u32);
        bench.config_write(4, 2, 6);
        let dma = bench.dma();
        Card { bench, cell, dma, host, read: 0 }
    }

    fn set(&mut self, at: u64, width: u8, value: u32) {
        self.bench.bus.write(BASE + at, width, value.into());
    }

    fn get(&mut self, at: u64, width: u8) -> u32 {
        self.bench.bus.read(BASE + at, width) as u32
    }

    /// Out of reset, with rings, positions and all interrupts.
    fn start(&mut self) {
        self.set(0x08, 4, 1);
        self.set(0x40, 4, CORB as u32);
        self.set(0x50, 4, RIRB as u32);
        self.set(0x70, 4, POSITIONS as u32 | 1);
        self.set(0x5a, 2, 1);
        self.set(0x5c, 1, 3);
        self.set(0x4c, 1, 2);
        self.set(0x20, 4, 0xc000_00ff);
        self.read = self.get(0x48, 1) as u8;
    }

    /// A command for a node, and the response that came into the ring.
    fn verb(&mut self, node: u32, verb: u32) -> u32 {
        self.read = self.read.wrapping_add(1);
        self.dma.write_u32(CORB + 4 * u64::from(self.read), node << 20 | verb);
        self.set(0x48, 2, self.read.into());
        assert_eq!(self.get(0x4a, 2), u32::from(self.read), "CORBRP");
        assert!(self.get(0x5d, 1) & 1 != 0 && self.get(0x24, 4) & 0x4000_0000 != 0 && self.bench.irq(16));
        self.set(0x5d, 1, 1);
        assert_eq!(self.get(0x24, 4) != 0, self.bench.irq(16));
        let at = RIRB + 8 * u64::from(self.get(0x58, 2));
        assert_eq!(self.dma.read_u32(at + 4), 0, "codec 0, asked for");
        self.dma.read_u32(at)
    }

    /// Two buffers, an interrupt after each, for stream 1 in this format.
    fn list(&mut self, descriptor: u64, format: u16) {
        for n in 0..2 {
            self.dma.write(LIST + 16 * n, &(BUFFERS + BUFFER * n).to_le_bytes());
            self.dma.write(LIST + 16 * n + 8, &(BUFFER | 1 << 32).to_le_bytes());
        }
        self.set(descriptor, 1, 1);
        self.set(descriptor, 1, 0);
        self.set(descriptor + 0x08, 4, 2 * BUFFER as u32);
        self.set(descriptor + 0x0c, 2, 1);
        self.set(descriptor + 0x12, 2, format.into());
        self.set(descriptor + 0x18, 4, LIST as u32);
        self.set(descriptor + 2, 1, 0x10);
    }

    fn run(&mut self, descriptor: u64) {
        self.set(descriptor, 1, 6);
    }
}

#[test]
fn a_codec_tells_what_it_is_by_ring_and_at_once() {
    let mut card = Card::new(true, true);
    assert_eq!((card.bench.config_read(0, 4), card.bench.config_read(8, 4) >> 8), (0x27d8_8086, 0x04_0300));
    assert_eq!((card.get(0x00, 2), card.get(0x02, 2)), (0x4401, 0x0100));
    card.set(0x20, 4, u32::MAX);
    assert_eq!((card.get(0x08, 4), card.get(0x0e, 2), card.get(0x20, 4)), (0, 0, 0), "in reset");
    card.start();
    assert_eq!(card.get(0x0e, 2), 1, "there is a codec");
    card.set(0x0e, 2, 1);
    assert_eq!(card.get(0x0e, 2), 0);
    for (node, verb, response) in [
        (0, 0xf0000, 0x8086),
        (0, 0xf0004, 0x1_0001),
        (1, 0xf0004, 0x2_0004),
        (1, 0xf0005, 1),
        (2, 0xf0009, 0x1d),
        (2, 0xf0012, 0x8003_4a4a),
        (3, 0xf0200, 2),
        (3, 0xf1c00, 0x1010),
        (4, 0xf000e, 1),
        (4, 0xf0200, 5),
        (5, 0xf0900, 0x8000_0000),
        // Converters and their amplifiers: muted until somebody says more.
        (2, 0xb8000, 0xca),
        (2, 0x3b030, 0),
        (2, 0xba000, 0x30),
        (2, 0xb2000, 0),
        (4, 0x37020, 0),
        (4, 0xb0000, 0x20),
        (2, 0x24011, 0),
        (2, 0xa0000, 0x4011),
        (2, 0x70652, 0),
        (2, 0xf0600, 0x52),
        (1, 0x70503, 0),
        (1, 0xf0500, 0x33),
        (3, 0x70700, 0),
        (3, 0xf0700, 0),
        (1, 0x7ff00, 0),
        (3, 0xf0700, 0x40),
        // Nodes and verbs that are not there.
        (9, 0xf0000, 0),
        (0x7f, 0x70640, 0),
        (1, 0x12345, 0),
    ] {
        assert_eq!(card.verb(node, verb), response, "{node} {verb:x}");
    }
    // The immediate way, and another codec.
    card.set(0x60, 4, 0xf0000);
    card.set(0x68, 2, 1);
    assert_eq!((card.get(0x68, 2), card.get(0x64, 4)), (2, 0x8086));
    card.set(0x60, 4, 0x1037_0700);
    card.set(0x68, 2, 3);
    assert_eq!(card.get(0x68, 2), 0);
    assert_eq!(card.verb(3, 0xf0700), 0x40, "not its command");
    // The rings' pointers begin anew.
    card.set(0x4c, 1, 0);
    card.set(0x4a, 2, 0x8000);
    assert_eq!(card.get(0x4a, 2), 0x8000);
    card.set(0x4a, 2, 0);
    card.set(0x58, 2, 0x8000);
    assert_eq!((card.get(0x4a, 2), card.get(0x58, 2)), (0, 0));
    // 24 MHz.
    let before = card.get(0x30, 4);
    card.bench.advance(1_000_000);
    assert_eq!(card.get(0x2030, 4) - before, 24_000);
}

#[test]
fn a_codec_has_the_nodes_that_the_host_has_something_for() {
    for (out, line_in, nodes) in [(true, false, 0x2_0002), (false, true, 0x4_0002)] {
        let mut card = Card::new(out, line_in);
        card.start();
        assert_eq!(card.verb(1, 0xf0004), nodes);
        assert_eq!((card.verb(2, 0xf0009) != 0, card.verb(4, 0xf0009) != 0), (out, line_in));
    }
    let mut card = Card::new(false, false);
    card.start();
    assert_eq!(card.get(0x0e, 2), 0);
}

#[test]
fn a_stream_is_played_by_the_guests_clock_with_its_volume() {
    let mut card = Card::new(true, true);
    card.start();
    let sound = |n: usize| [n as i16 + 1, -3 * n as i16];
    for n in 0..480 {
        let [left, right] = sound(n).map(i16::to_le_bytes);
        card.dma.write(BUFFERS + 4 * n as u64, &[left, right].concat());
    }
    card.verb(2, 0x70610);
    card.verb(2, 0x3b04a);
    card.list(OUT, DAT);
    assert_eq!(card.host.calls(), [""; 0]);
    card.run(OUT);
    assert_eq!(card.host.calls(), ["play 48000"]);
    assert!(card.get(OUT, 4) & 1 << 29 != 0, "FIFORDY");
    for ms in 1..=10 {
        card.bench.advance(TICK);
        let lpib = 192 * ms % 1920;
        assert_eq!((card.get(OUT + 4, 4), card.get(0x2104, 4)), (lpib, lpib));
        assert_eq!(card.dma.read_u32(POSITIONS + 32), lpib);
        assert_eq!(card.bench.irq(16), ms >= 5);
    }
    assert_eq!(card.host.heard(), (0..480).map(sound).collect::<Vec<_>>());
    assert_eq!(card.get(0x24, 4), 0x8000_0010);
    card.set(OUT + 3, 1, 0x1c);
    assert!(!card.bench.irq(16));
    // Held, let go, paused, and on from there.
    card.set(0x34, 4, 0x10);
    card.bench.advance(5 * TICK);
    card.set(0x34, 4, 0);
    card.set(OUT, 1, 4);
    card.bench.advance(5 * TICK);
    card.run(OUT);
    assert_eq!(card.host.calls(), ["played", "play 48000", "played", "play 48000"]);
    // Six decibels less at the left, nothing at the right.
    card.verb(2, 0x3a044);
    card.verb(2, 0x390ca);
    card.bench.advance(TICK);
    let gain = GAINS[usize::from(STEPS) - 6];
    assert!((16_000..17_000).contains(&gain), "{gain}");
    let quiet = |n: usize| [(i32::from(sound(n)[0]) * gain >> 15) as i16, 0];
    assert_eq!(card.host.heard(), (0..48).map(quiet).collect::<Vec<_>>());
    // So late that nobody wants to hear it all.
    card.verb(2, 0x3b04a);
    card.bench.machine.clock().set(card.bench.machine.clock().now() + 3_000_000_000);
    card.bench.machine.timers.run_due();
    assert_eq!(card.host.heard().len(), 24000);
    card.bench.advance(TICK);
    assert_eq!(card.host.heard().len(), 48);
    // A late tick is seen by nobody.
    card.bench.machine.clock().set(card.bench.machine.clock().now() + TICK / 2);
    let before = card.get(OUT + 4, 4);
    card.bench.machine.clock().set(card.bench.machine.clock().now() + 2 * TICK);
    let after = card.get(OUT + 4, 4);
    assert_eq!((after + 1920 - before) % 1920, 384);
    assert_eq!((card.dma.read_u32(POSITIONS + 32), card.host.heard().len()), (after, 120));
    card.bench.advance(TICK);
    card.host.heard();
    // Another converter's stream, and a reset.
    card.verb(2, 0x70620);
    assert_eq!(card.host.calls(), ["played"]);
    card.bench.advance(TICK);
    assert_eq!(card.host.heard().len(), 0);
    card.verb(2, 0x70610);
    card.bench.machine.reset(ResetKind::System);
    assert_eq!(card.host.calls(), ["play 48000", "played"]);
    assert_eq!(card.cell.save().timers, [None]);
}

#[test]
fn formats_are_those_of_the_stream() {
    for (format, rate, bytes, frame) in [
        (0x0000u16, 48000, &[0x80u8, 0xff][..], [[0, 0], [0x7f00, 0x7f00]]),
        (0x4011, 44100, &[1, 0, 2, 0, 3, 0, 4, 0], [[1, 2], [3, 4]]),
        (0x0131, 24000, &[9, 9, 1, 0, 9, 9, 2, 0, 9, 9, 3, 0, 9, 9, 4, 0], [[1, 2], [3, 4]]),
        (0x1812, 192_000, &[1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6, 0], [[1, 2], [4, 5]]),
    ] {
        let mut card = Card::new(true, false);
        card.start();
        card.dma.write(BUFFERS, bytes);
        card.verb(2, 0x70610);
        card.verb(2, 0x3b04a);
        card.list(OUT, format);
        card.run(OUT);
        assert_eq!(card.host.calls(), [format!("play {rate}")]);
        card.bench.advance(10 * TICK);
        let heard = card.host.heard();
        assert_eq!((heard.len(), &heard[..2]), (rate as usize / 100, &frame[..]), "{format:x}");
    }
    // Reserved ones do not move.
    for format in [0x8011, 0x0051, 0x2011, 0x3811] {
        let mut card = Card::new(true, false);
        card.start();
        card.list(OUT, format);
        card.run(OUT);
        card.bench.advance(10 * TICK);
        assert_eq!((card.host.calls().len(), card.get(OUT + 4, 4)), (0, 0));
    }
}

#[test]
fn a_stream_is_recorded_and_goes_on_in_another_machine() {
    let mut card = Card::new(true, true);
    card.start();
    card.verb(4, 0x70610);
    card.verb(4, 0x3704a);
    card.list(IN, DAT);
    card.run(IN);
    assert_eq!(card.host.calls(), ["record 48000"]);
    card.bench.advance(7 * TICK);
    let frames = |card: &Card| -> Vec<Frame> {
        let words = (0..480).map(|n| card.dma.read_u32(BUFFERS + 4 * n));
        words.map(|word| [word as i16, (word >> 16) as i16]).collect()
    };
    let expected: Vec<Frame> = (0..480).map(|n| if n < 336 { [n + 1, -(n + 1)] } else { [0; 2] }).collect();
    assert_eq!(frames(&card), expected);
    assert_eq!((card.dma.read_u32(POSITIONS), card.get(0x24, 4)), (1344, 0x8000_0001));

    let mut other = Card::new(true, true);
    other.bench.machine.clock().set(card.bench.machine.clock().now());
    other.dma.write(LIST, &card.dma.fetch::<32>(LIST));
    other.cell.load(card.cell.save()).unwrap();
    assert_eq!(other.host.calls(), ["record 48000"]);
    assert_eq!(other.cell.save(), card.cell.save());
    other.bench.advance(TICK);
    assert_eq!(other.get(IN + 4, 4), 1536);
    assert_eq!(frames(&other)[335..338], [[0; 2], [1, -1], [2, -2]]);
}

#[test]
fn lists_that_lead_nowhere_cost_little() {
    for (length, address) in [(0u64, BUFFERS), (1, BUFFERS), (0xffff_ffff, u64::MAX - 5), (4096, 1 << 40)] {
        for (descriptor, cbl) in [(IN, 1), (OUT, 0xffff_ffff), (OUT, 0)] {
            let mut card = Card::new(true, true);
            card.start();
            card.verb(2, 0x70610);
            card.verb(4, 0x70610);
            card.list(descriptor, 0x184f);
            for n in 0..256 {
                card.dma.write(LIST + 16 * n, &address.to_le_bytes());
                card.dma.write(LIST + 16 * n + 8, &(length | 1 << 32).to_le_bytes());
            }
            card.set(descriptor + 8, 4, cbl);
            card.set(descriptor + 12, 2, 0xffff);
            card.run(descriptor);
            card.bench.advance(200 * TICK);
            assert!(card.get(descriptor + 4, 4) < cbl.max(1));
            // Where there is no memory.
            card.set(descriptor + 0x1c, 4, u32::MAX);
            card.set(0x44, 4, u32::MAX);
            card.set(0x54, 4, u32::MAX);
            card.set(0x74, 4, u32::MAX);
            card.set(0x48, 2, 0x77);
            card.bench.advance(200 * TICK);
        }
    }
}

#[test]
fn it_interrupts_by_message() {
    let mut card = Card::new(true, true);
    card.start();
    let at = (0x40..0x100).step_by(4).find(|at| card.bench.config_read(*at, 1) == 5).expect("a capability");
    card.bench.config_write(at + 4, 4, 0xfee0_0000);
    card.bench.config_write(at + 12, 2, 0x41);
    card.bench.config_write(at + 2, 2, 1);
    card.dma.write_u32(CORB + 4, 0xf0000);
    card.set(0x48, 2, 1);
    assert_eq!(card.bench.messages(), [(0xfee0_0000, 0x41)]);
    card.set(0x5d, 1, 1);
    card.dma.write_u32(CORB + 8, 0xf0000);
    card.set(0x48, 2, 2);
    assert_eq!(card.bench.messages(), [(0xfee0_0000, 0x41)]);
}
