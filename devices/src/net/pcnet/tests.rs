use emu::bench::{Bench, BenchNet, Rng, fuzz_cases};
use emu::{Backends, DeviceCell, DeviceState};

use super::*;

const IO: u16 = 0xc000;
const CARD: Mac = [0x00, 0xa0, 0x98, 1, 2, 3];
const OTHER: Mac = [0x02, 0, 0, 0, 0, 9];

/// Where the initialisation block, the rings of eight descriptors, and the buffers are.
const BLOCK: u32 = 0x800;
const RX_RING: u32 = 0x1000;
const TX_RING: u32 = 0x2000;
const IN: u32 = 0x1_0000;
const OUT: u32 = 0x2_0000;
const STEP: u32 = 0x800;
const COUNT: u32 = 8;

const OWN: u16 = 0x8000;
const STP_ENP: u16 = 0x0300;

/// How a driver sees the card.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Way {
    fast: bool,
    /// Registers four bytes apart.
    dwio: bool,
    style: u16,
}

/// lnc(4) and DOS, le(4) and pcnet32, pcn(4).
const WAYS: [Way; 4] = [
    Way { fast: false, dwio: false, style: 0 },
    Way { fast: false, dwio: false, style: 2 },
    Way { fast: true, dwio: true, style: 3 },
    Way { fast: true, dwio: true, style: 0 },
];

struct Rig {
    bench: Bench,
    net: BenchNet,
    cell: Arc<DeviceCell>,
    way: Way,
    /// Next descriptors of the driver: to send, and to look at.
    tx: u32,
    rx: u32,
}

impl Rig {
    fn new(way: Way) -> Rig {
        let (bench, net) = (Bench::new(), BenchNet::default());
        let backends = Backends { net: Some(Box::new(net.clone())), ..Backends::default() };
        let model = if way.fast { &PCNET_FAST } else { &PCNET };
        let cell = bench.plug(model, &Params::new([("mac", "00:a0:98:01:02:03")]), backends);
        bench.config_write(0x10, 4, IO.into());
        bench.config_write(0x14, 4, 0xf000_0000);
        bench.config_write(4, 2, 7);
        let mut rig = Rig { bench, net, cell, way, tx: 0, rx: 0 };
        if way.dwio {
            rig.bench.bus.pio_write(IO + 0x10, 4, 0);
        }
        rig
    }

    fn port(&mut self, n: u16, value: Option<u16>) -> u16 {
        let (step, width) = if self.way.dwio { (4, 4) } else { (2, 2) };
        match value {
            Some(value) => self.bench.bus.pio_write(IO + 0x10 + step * n, width, value.into()),
            None => return self.bench.bus.pio_read(IO + 0x10 + step * n, width) as u16,
        }
        0
    }

    fn csr(&mut self, n: u16) -> u16 {
        self.port(1, Some(n));
        self.port(0, None)
    }

    fn set_csr(&mut self, n: u16, value: u16) {
        self.port(1, Some(n));
        self.port(0, Some(value));
    }

    fn bcr(&mut self, n: u16) -> u16 {
        self.port(1, Some(n));
        self.port(3, None)
    }

    fn set_bcr(&mut self, n: u16, value: u16) {
        self.port(1, Some(n));
        self.port(3, Some(value));
    }

    fn up(way: Way) -> Rig {
        let mut r = Rig::new(way);
        r.start(0);
        r
    }

    /// Initialises the card with this mode, and starts it.
    fn start(&mut self, mode: u16) {
        self.set_bcr(20, self.way.style);
        let mut block = mode.to_le_bytes().to_vec();
        let (rings, hash) = ([RX_RING, TX_RING], [0; 8]);
        if self.way.style == 0 {
            block.extend([&CARD[..], &hash].concat());
            block.extend(rings.iter().flat_map(|at| (at | 3 << 29).to_le_bytes()));
        } else {
            block.extend([&[3 << 4, 3 << 4][..], &CARD, &[0, 0], &hash].concat());
            block.extend(rings.iter().flat_map(|at| at.to_le_bytes()));
        }
        self.dma().write(BLOCK.into(), &block);
        (self.tx, self.rx) = (0, 0);
        for n in 0..COUNT {
            self.write(TX_RING, n, OUT + STEP * n, 0, 4096);
            self.write(RX_RING, n, IN + STEP * n, OWN, 1536);
        }
        self.set_csr(1, BLOCK as u16);
        self.set_csr(2, (BLOCK >> 16) as u16);
        self.set_csr(0, csr0::INIT);
        assert_ne!(self.csr(0) & csr0::IDON, 0);
        self.set_csr(0, csr0::IDON | csr0::STRT | csr0::IENA);
        let on = csr0::INIT | csr0::STRT | csr0::TXON | csr0::RXON | csr0::IENA;
        assert_eq!(self.csr(0) | csr0::TXON | csr0::RXON, on);
    }

    fn dma(&self) -> DmaMem {
        self.bench.dma()
    }

    fn line(&self) -> bool {
        self.bench.irq(16)
    }

    fn write(&self, ring: u32, n: u32, buffer: u32, status: u16, len: u32) {
        let count = (4096 - len) as u16 | 0xf000;
        if self.way.style == 0 {
            let words = [buffer as u16, (buffer >> 16) as u16 | status, count, 0];
            let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            return self.dma().write(u64::from(ring + 8 * n), &bytes);
        }
        let mut doubles = [buffer, u32::from(status) << 16 | u32::from(count), 0, 0x1234_5678];
        if self.way.style == 3 {
            doubles.swap(0, 2);
        }
        let bytes: Vec<u8> = doubles.iter().flat_map(|d| d.to_le_bytes()).collect();
        self.dma().write(u64::from(ring + 16 * n), &bytes);
    }

    /// Status and the count that the card put there.
    fn look(&self, ring: u32, n: u32) -> (u16, u16) {
        if self.way.style == 0 {
            let d = self.dma().fetch::<8>(u64::from(ring + 8 * n));
            return (u16::from(d[3]) << 8, u16::from_le_bytes([d[6], d[7]]));
        }
        let d = self.dma().fetch::<16>(u64::from(ring + 16 * n));
        let at = if self.way.style == 3 { 0 } else { 8 };
        (u16::from_le_bytes([d[6], d[7]]), u16::from_le_bytes([d[at], d[at + 1]]))
    }

    fn part(&mut self, bytes: &[u8], status: u16) {
        let buffer = OUT + STEP * self.tx;
        self.dma().write(buffer.into(), bytes);
        self.write(TX_RING, self.tx, buffer, OWN | status, bytes.len() as u32);
        self.tx = (self.tx + 1) % COUNT;
    }

    fn send(&mut self, frame: &[u8]) -> Vec<Vec<u8>> {
        self.part(frame, STP_ENP);
        self.set_csr(0, csr0::TDMD | csr0::IENA);
        self.net.sent()
    }

    /// What the card has put into the next receive buffers, which it gets back.
    fn came(&mut self) -> Vec<(Vec<u8>, u16)> {
        let mut frames = Vec::new();
        let mut frame = Vec::new();
        loop {
            let (status, count) = self.look(RX_RING, self.rx);
            if status & OWN != 0 {
                return frames;
            }
            let last = status & 0x0100 != 0;
            let from = frame.len();
            frame.resize(if last { count.into() } else { from + 1536 }, 0);
            self.dma().read((IN + STEP * self.rx).into(), &mut frame[from..]);
            self.write(RX_RING, self.rx, IN + STEP * self.rx, OWN, 1536);
            self.rx = (self.rx + 1) % COUNT;
            if last {
                frames.push((std::mem::take(&mut frame), status));
            }
        }
    }

    fn takes(&mut self, frame: &[u8]) -> bool {
        assert!(self.net.put(frame));
        !self.came().is_empty()
    }
}

fn frame(to: Mac, len: usize) -> Vec<u8> {
    [&to[..], &OTHER, &[0x88, 0xb5]].concat().into_iter().chain((14..len).map(|n| n as u8)).collect()
}

fn with_fcs(frame: &[u8]) -> Vec<u8> {
    [frame, &(!crc32_le(frame)).to_le_bytes()].concat()
}

#[test]
fn a_driver_finds_out_which_chip_it_is() {
    for way in WAYS {
        let mut r = Rig::new(way);
        assert_eq!(r.bench.config_read(0, 4), 0x2000_1022);
        assert_eq!(r.bench.config_read(8, 1), if way.fast { 0x40 } else { 0x10 });
        assert_eq!((r.csr(0), r.csr(88)), (csr0::STOP, if way.fast { 0x5003 } else { 0x1003 }), "{way:?}");
        assert_eq!((r.csr(89), r.csr(12), r.csr(14)), (0x0262, 0xa000, 0x0302));
        let prom: Vec<u8> = (0..16).map(|n| r.bench.inb(IO + n)).collect();
        assert_eq!((&prom[..6], prom[9], &prom[14..]), (&CARD[..], 0x11, &[0x57; 2][..]));
        let sum: u16 = [&prom[..12], &prom[14..]].concat().iter().map(|b| u16::from(*b)).sum();
        assert_eq!(prom[12..14], sum.to_le_bytes());
        // RAP keeps what it is told, which is how Linux knows the width of the registers.
        r.port(1, Some(88));
        assert_eq!(r.port(1, None), 88);
        assert_eq!(r.bcr(18) & DWIO != 0, way.dwio);
        // The other width finds nothing.
        let wrong = if way.dwio { 2 } else { 4 };
        assert_eq!(r.bench.bus.pio_read(IO + 0x10, wrong), u32::MAX >> (32 - 8 * wrong));
    }
    // By memory, too.
    let mut r = Rig::new(WAYS[0]);
    r.bench.bus.write(0xf000_0012, 2, 88);
    assert_eq!(r.bench.bus.read(0xf000_0010, 2), 0x1003);
}

#[test]
fn frames_go_out_and_come_in_by_every_style() {
    for way in WAYS {
        let mut r = Rig::up(way);
        for n in 0..20 {
            let out = frame(OTHER, 60 + 50 * n);
            assert_eq!(r.send(&out), [out], "{way:?}");
            assert_eq!(r.look(TX_RING, (r.tx + COUNT - 1) % COUNT), (STP_ENP, 0));
            assert!(r.line());
            assert_eq!(r.csr(0) & 0xff00, csr0::TINT);
            r.set_csr(0, csr0::TINT | csr0::IENA);
            assert!(!r.line());

            let came = frame(CARD, 60 + 50 * n);
            assert!(r.net.put(&came) && r.line());
            let how = if way.style == 0 { 0 } else { status::PAM };
            assert_eq!(r.came(), [(with_fcs(&came), STP_ENP | how)]);
            r.set_csr(0, csr0::RINT | csr0::IENA);
            assert!(!r.line());
        }
        // Both short ones are padded.
        let short = frame(CARD, 42);
        let padded = [&short[..], &[0; 18]].concat();
        assert_eq!(r.send(&short), std::slice::from_ref(&padded));
        assert!(r.net.put(&short));
        assert_eq!(r.came()[0].0, with_fcs(&padded));
    }
}

#[test]
fn a_frame_in_parts_waits_for_its_end_and_ends_elsewhere_do_not_count() {
    for way in WAYS {
        let mut r = Rig::up(way);
        let out = frame(OTHER, 1514);
        r.part(&out[..100], 0x0200);
        r.part(&out[100..700], 0);
        r.set_csr(0, csr0::TDMD | csr0::IENA);
        assert!(r.net.sent().is_empty());
        r.part(&out[700..], 0x0100);
        r.set_csr(0, csr0::TDMD | csr0::IENA);
        assert_eq!(r.net.sent(), std::slice::from_ref(&out));
        assert_eq!(r.csr(0) & csr0::TINT, csr0::TINT);
        // One that starts nowhere is given back, and what follows is sent.
        r.part(&out[..100], 0x0100);
        assert_eq!(r.send(&out), std::slice::from_ref(&out));
        // Long ones come into several buffers.
        let long = frame(CARD, 4000);
        assert!(r.net.put(&long));
        assert_eq!(r.look(RX_RING, 0).0, 0x0200);
        assert_eq!(r.look(RX_RING, 1).0, 0);
        assert_eq!(r.came()[0].0, with_fcs(&long));
    }
}

#[test]
fn addresses_are_filtered_exactly() {
    let mut r = Rig::up(WAYS[1]);
    let near: Mac = [0x00, 0xa0, 0x98, 1, 2, 2];
    let group: Mac = [1, 0, 0x5e, 0, 0, 1];
    let takes = |r: &mut Rig| [CARD, near, BROADCAST, group].map(|to| r.takes(&frame(to, 60)));
    assert_eq!(takes(&mut r), [true, false, true, false]);
    for (bits, wanted) in [
        (mode::DRCVBC, [true, false, false, false]),
        (mode::DRCVPA, [false, false, true, false]),
        (mode::PROM, [true, true, true, true]),
        (mode::DRX, [false; 4]),
    ] {
        r.set_csr(0, csr0::STOP);
        r.start(bits);
        assert_eq!(takes(&mut r), wanted, "{bits:#x}");
    }
    r.set_csr(0, csr0::STOP);
    r.start(0);
    // Of 224.0.0.1 the CRC's high six bits are 54.
    for n in 0..64 {
        (0..4).for_each(|n| r.set_csr(8 + n, 0));
        r.set_csr(8 + n / 16, 1 << (n % 16));
        assert!(r.net.put(&frame(group, 60)));
        let came = r.came();
        assert_eq!(came.len(), usize::from(n == 54), "bit {n}");
        assert!(came.iter().all(|(_, status)| status & 0x70 == status::LAFM));
    }
}

#[test]
fn without_descriptors_a_frame_waits_and_the_wire_with_it() {
    for way in WAYS {
        let mut r = Rig::up(way);
        for n in 0..COUNT as usize {
            assert!(r.net.put(&frame(CARD, 100 + n)));
        }
        assert!(r.net.ready() && r.net.put(&frame(CARD, 300)));
        assert!(!r.net.ready());
        let twin = Rig::new(way);
        twin.cell.load(r.cell.save()).unwrap();
        assert!(!twin.net.ready());
        assert_eq!(r.came().len(), 8);
        r.bench.advance(2 * LOOK_AGAIN);
        assert!(r.net.ready());
        assert_eq!(r.came(), [(with_fcs(&frame(CARD, 300)), STP_ENP | if way.style == 0 { 0 } else { 0x40 })]);
        assert_eq!(r.csr(0) & csr0::MISS, 0);
        // One that nobody makes room for is missed, in the end.
        for n in 0..=COUNT as usize {
            assert!(r.net.put(&frame(CARD, 100 + n)));
        }
        r.bench.advance(u64::from(LOOKS) * LOOK_AGAIN);
        assert!(r.net.ready());
        assert_eq!(r.csr(0) & (csr0::MISS | csr0::ERR), csr0::MISS | csr0::ERR);
        assert_eq!(r.csr(112), 1);
    }
}

#[test]
fn causes_have_masks_of_their_own() {
    let mut r = Rig::up(WAYS[2]);
    r.set_csr(3, csr0::TINT);
    r.set_csr(4, 0x0115 | 1 << 2);
    r.send(&frame(OTHER, 60));
    assert!(!r.line());
    assert_eq!(r.csr(0) & (csr0::INTR | csr0::TINT), csr0::TINT);
    r.set_csr(3, 0);
    assert!(r.line() && r.csr(0) & csr0::INTR != 0);
    r.set_csr(0, csr0::TINT);
    assert!(!r.line(), "also without IENA");
    r.set_csr(0, csr0::IENA);
    r.set_csr(4, 0x0111);
    assert!(r.line(), "TXSTRT");
    r.set_csr(4, 0x0111 | csr4::TXSTRT);
    assert!(!r.line());
    r.set_csr(4, 0x0115 | csr4::UINTCMD);
    assert!(r.line());
    r.set_csr(4, 0x0115 | csr4::UINT);
    assert!(!r.line());
    // No TINT for good, or only where a descriptor asks for it.
    for (bits, status, wanted) in [(csr5::TOKINTD, 0, 0), (csr5::LTINTEN, 0, 0), (csr5::LTINTEN, 0x1000, csr0::TINT)] {
        r.set_csr(5, bits);
        r.part(&frame(OTHER, 60), STP_ENP | status);
        r.set_csr(0, csr0::TDMD | csr0::IENA);
        assert_eq!((r.net.sent().len(), r.csr(0) & csr0::TINT), (1, wanted));
    }
}

#[test]
fn stop_suspend_and_reset() {
    let mut r = Rig::up(WAYS[2]);
    r.set_csr(5, csr5::SPND);
    assert_eq!(r.csr(5), csr5::SPND);
    assert!(r.send(&frame(OTHER, 60)).is_empty());
    assert!(r.net.put(&frame(CARD, 60)) && r.came().is_empty());
    r.set_csr(5, 0);
    assert_eq!((r.net.sent().len(), r.came().len()), (1, 1), "nothing was lost");
    r.set_csr(0, csr0::STOP | csr0::STRT | csr0::IENA);
    assert_eq!((r.csr(0), r.line()), (csr0::STOP, false));
    assert!(r.send(&frame(OTHER, 60)).is_empty() && !r.takes(&frame(CARD, 60)));
    // Where it stopped it goes on, if nobody initialises it.
    r.set_csr(0, csr0::STRT | csr0::IENA);
    assert_eq!(r.net.sent().len(), 1);
    assert!(r.takes(&frame(CARD, 60)));
    r.port(2, None);
    assert_eq!((r.csr(0), r.bcr(20), r.csr(58)), (csr0::STOP, 0x0303, 0x0303));
    r.cell.reset(ResetKind::System);
    r.bench.config_write(0x10, 4, IO.into());
    r.bench.config_write(4, 2, 7);
    r.way = WAYS[1];
    assert_eq!((r.csr(0), r.bcr(20)), (csr0::STOP, 0x0200));
    r.start(0);
    assert!(r.takes(&frame(CARD, 60)));
}

#[test]
fn the_mii_and_the_leds_tell_of_the_link() {
    let mut r = Rig::new(WAYS[2]);
    let mii = |r: &mut Rig, address: u16, register: u16| {
        r.set_bcr(33, address << 5 | register);
        r.bcr(34)
    };
    assert_eq!((mii(&mut r, 30, 2), mii(&mut r, 30, 3), mii(&mut r, 1, 2)), (0, 0x6b60, 0xffff));
    assert_eq!((mii(&mut r, 30, 1) & 0x24, r.bcr(4)), (0x24, 0x80c0));
    r.net.link(false);
    assert_eq!((mii(&mut r, 30, 1) & 4, r.bcr(4)), (0, 0x00c0));
    r.start(0);
    assert!(r.send(&frame(OTHER, 60)).is_empty() && !r.takes(&frame(CARD, 60)));
    r.net.link(true);
    assert!(r.send(&frame(OTHER, 60)).len() == 1 && r.takes(&frame(CARD, 60)));
    let mut old = Rig::new(WAYS[0]);
    assert_eq!((mii(&mut old, 30, 2), old.bcr(4)), (0xffff, 0x80c0));
}

#[test]
fn what_loops_comes_back_and_the_driver_may_bring_its_fcs() {
    let mut r = Rig::new(WAYS[1]);
    r.start(mode::LOOP);
    assert!(r.send(&frame(CARD, 100)).is_empty());
    assert_eq!(r.came()[0].0, with_fcs(&frame(CARD, 100)));
    r.set_csr(0, csr0::STOP);
    r.start(mode::DXMTFCS);
    assert_eq!(r.send(&with_fcs(&frame(OTHER, 100))), [frame(OTHER, 100)]);
    r.part(&frame(OTHER, 100), STP_ENP | status::ADD_FCS);
    r.set_csr(0, csr0::TDMD);
    assert_eq!(r.net.sent(), [frame(OTHER, 100)]);
    // Pads of frames with a length go, with their FCS.
    r.set_csr(4, 0x0115 | csr4::ASTRP_RCV);
    let llc = [&CARD[..], &OTHER, &[0, 3, 0xaa, 0xbb, 0xcc], &[0; 43]].concat();
    assert!(r.net.put(&llc));
    assert_eq!(r.came()[0].0, llc[..17]);
    assert!(r.net.put(&frame(CARD, 60)));
    assert_eq!(r.came()[0].0.len(), 64);
}

#[test]
fn the_software_timer_comes_again_and_again() {
    let mut r = Rig::up(WAYS[2]);
    r.set_csr(7, STINT >> 1);
    r.set_bcr(31, 100);
    for _ in 0..3 {
        r.bench.advance(100 * SOFTWARE_UNIT - 1);
        assert!(!r.line());
        r.bench.advance(1);
        assert!(r.line());
        r.set_csr(7, STINT >> 1 | STINT);
        assert!(!r.line());
    }
}

#[test]
fn rings_of_a_hostile_driver_do_no_harm() {
    for way in WAYS {
        let mut r = Rig::up(way);
        // All descriptors are ours and no frame ends.
        (0..COUNT).for_each(|n| r.write(TX_RING, n, OUT, OWN | 0x0200, 4096));
        r.set_csr(0, csr0::TDMD);
        (0..COUNT).for_each(|n| r.write(RX_RING, n, IN, OWN, 1));
        r.cell.event(Event::Frame(frame(CARD, 1514)));
        assert_eq!(r.csr(0) & csr0::MISS, csr0::MISS, "{way:?}");
        // Rings where nothing is, which read as ones.
        r.set_csr(25, 0xfff0);
        r.set_csr(31, 0xfff0);
        r.cell.event(Event::Frame(frame(CARD, 60)));
        r.set_csr(0, csr0::TDMD);
        assert_eq!(r.csr(0) & (csr0::MERR | csr0::TXON | csr0::RXON), csr0::MERR);
        let mut rng = Rng::new(7);
        for _ in 0..fuzz_cases() * 40 {
            let n = rng.pick(&[0, 0, 0, 1, 2, 3, 4, 5, 15, 24, 25, 30, 31, 58, 76, 78]);
            r.set_csr(n, rng.value() as u16);
            r.dma().write(u64::from(BLOCK) + rng.below(0x2000) as u64, &rng.next().to_le_bytes());
            r.cell.event(Event::Frame((0..rng.below(3000)).map(|_| rng.next() as u8).collect()));
            r.bench.advance(10_000);
            r.net.sent();
        }
    }
}
