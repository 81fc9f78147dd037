//! The driver's side.

use std::sync::Arc;

use emu::backend::Disk;
use emu::bench::{Bench, BenchDisk};
use emu::{Backends, DeviceCell, DmaMem, Model, Params, ResetKind};

/// Where firmware puts the BARs.
pub const PORTS: u16 = 0xc000;
pub const TABLE: u64 = 0xe000_0000;
pub const MODERN: u64 = 0xe001_0000;
/// The wire of INTA#.
pub const INTA: u32 = 16;

/// Where the rings are, and how far apart; and what is free for data.
pub const RINGS: u64 = 0x1_0000;
pub const RING: u64 = 0x4000;
pub const DATA: u64 = 0x4_0000;

pub const VERSION_1: u64 = 1 << 32;
pub const EVENT_IDX: u64 = 1 << 29;
pub const INDIRECT: u64 = 1 << 28;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const TABLE_OF_ITS_OWN: u16 = 4;

/// Which registers the driver uses, on a device of which version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    Legacy(&'static str),
    Modern(&'static str),
}

/// Every way to reach a device.
pub const WAYS: [Via; 4] =
    [Via::Legacy("legacy"), Via::Legacy("transitional"), Via::Modern("transitional"), Via::Modern("modern")];

/// The driver's side of a queue.
#[derive(Clone, Copy, Default)]
pub struct Ring {
    pub size: u16,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
    pub next_desc: u16,
    pub next_avail: u16,
    pub seen_used: u16,
}

pub struct Rig {
    pub bench: Bench,
    pub cell: Arc<DeviceCell>,
    pub via: Via,
    pub rings: [Ring; 8],
    pub features: u64,
}

impl Rig {
    /// A device as firmware leaves it.
    pub fn new(model: &Model, via: Via, params: &[(&str, &str)], backends: impl FnOnce(&Bench) -> Backends) -> Rig {
        let bench = Bench::new();
        let (Via::Legacy(version) | Via::Modern(version)) = via;
        let params = Params::new(params.iter().chain(&[("version", version)]).copied());
        let backends = backends(&bench);
        let cell = bench.plug(model, &params, backends);
        let rig = Rig { bench, cell, via, rings: Default::default(), features: 0 };
        rig.power_on();
        rig
    }

    pub fn power_on(&self) {
        self.bench.machine.reset(ResetKind::PowerOn);
        self.assign();
    }

    /// What firmware does.
    pub fn assign(&self) {
        self.bench.config_write(0x10, 4, PORTS.into());
        self.bench.config_write(0x14, 4, TABLE as u32);
        self.bench.config_write(0x20, 4, MODERN as u32);
        // Old drivers do not enable bus mastering.
        let master = if self.legacy() { 0 } else { 4 };
        self.bench.config_write(0x04, 2, 3 | master);
    }

    pub fn legacy(&self) -> bool {
        matches!(self.via, Via::Legacy(_))
    }

    pub fn dma(&self) -> DmaMem {
        self.bench.dma()
    }

    pub fn inp(&mut self, at: u16, width: u8) -> u32 {
        self.bench.bus.pio_read(PORTS + at, width)
    }

    pub fn out(&mut self, at: u16, width: u8, value: u32) {
        self.bench.bus.pio_write(PORTS + at, width, value);
    }

    pub fn get(&mut self, at: u64, width: u8) -> u64 {
        self.bench.bus.read(MODERN + at, width)
    }

    pub fn put(&mut self, at: u64, width: u8, value: u64) {
        self.bench.bus.write(MODERN + at, width, value);
    }

    pub fn status(&mut self) -> u8 {
        if self.legacy() { self.inp(0x12, 1) as u8 } else { self.get(0x14, 1) as u8 }
    }

    pub fn set_status(&mut self, status: u8) {
        if self.legacy() { self.out(0x12, 1, status.into()) } else { self.put(0x14, 1, status.into()) }
    }

    pub fn isr(&mut self) -> u8 {
        if self.legacy() { self.inp(0x13, 1) as u8 } else { self.get(0x1000, 1) as u8 }
    }

    /// What the device offers.
    pub fn offered(&mut self) -> u64 {
        if self.legacy() {
            return self.inp(0, 4).into();
        }
        let mut half = |n: u64| {
            self.put(0, 4, n);
            self.get(4, 4)
        };
        half(0) | half(1) << 32
    }

    /// The first steps of a driver that wants these features where they are offered.
    pub fn negotiate(&mut self, wanted: u64) {
        self.set_status(0);
        self.set_status(1);
        self.set_status(3);
        self.features = self.offered() & (wanted | VERSION_1);
        self.rings = Default::default();
        if self.legacy() {
            return self.out(4, 4, self.features as u32);
        }
        for n in 0..2 {
            self.put(8, 4, n);
            self.put(0xc, 4, self.features >> (32 * n) & 0xffff_ffff);
        }
        self.set_status(11);
        assert_eq!(self.status(), 11, "the features are not accepted");
    }

    /// Gives the device a queue.
    pub fn queue(&mut self, n: u16) {
        let desc = RINGS + RING * u64::from(n);
        self.dma().write(desc, &[0; RING as usize]);
        let mut ring = Ring { desc, ..Ring::default() };
        if self.legacy() {
            self.out(0xe, 2, n.into());
            ring.size = self.inp(0xc, 2) as u16;
            ring.avail = desc + 16 * u64::from(ring.size);
            ring.used = (ring.avail + 6 + 2 * u64::from(ring.size)).next_multiple_of(4096);
            self.out(8, 4, (desc >> 12) as u32);
        } else {
            self.put(0x16, 2, n.into());
            // Smaller than it could be, and with holes.
            ring.size = 64;
            (ring.avail, ring.used) = (desc + 0x1800, desc + 0x2800);
            assert!(self.get(0x18, 2) >= 64);
            self.put(0x18, 2, 64);
            for (at, value) in [(0x20, ring.desc), (0x28, ring.avail), (0x30, ring.used)] {
                self.put(at, 4, value & 0xffff_ffff);
                self.put(at + 4, 4, value >> 32);
            }
            self.put(0x1c, 2, 1);
            assert_eq!(self.get(0x1c, 2), 1, "the queue is refused");
        }
        assert!(ring.used + 6 + 8 * u64::from(ring.size) <= desc + RING);
        self.rings[usize::from(n)] = ring;
    }

    /// A driver that is ready, with these queues.
    pub fn start(&mut self, wanted: u64, queues: u16) {
        self.negotiate(wanted);
        (0..queues).for_each(|n| self.queue(n));
        let ok = if self.legacy() { 7 } else { 15 };
        self.set_status(ok);
    }

    pub fn write_desc(&mut self, at: u64, addr: u64, len: u32, flags: u16, next: u16) {
        let dma = self.dma();
        dma.write(at, &addr.to_le_bytes());
        dma.write_u32(at + 8, len);
        dma.write_u32(at + 12, u32::from(flags) | u32::from(next) << 16);
    }

    /// Makes a chain available without a kick; its head. Each buffer is address, length, and whether the device writes.
    pub fn add(&mut self, n: usize, buffers: &[(u64, u32, bool)]) -> u16 {
        let ring = self.rings[n];
        let mut entry = ring.next_desc;
        let head = entry;
        for (k, &(addr, len, write)) in buffers.iter().enumerate() {
            let next = (entry + 1) % ring.size;
            let more = if k + 1 < buffers.len() { NEXT } else { 0 };
            let flags = more | if write { WRITE } else { 0 };
            self.write_desc(ring.desc + 16 * u64::from(entry), addr, len, flags, next);
            entry = next;
        }
        self.rings[n].next_desc = entry;
        self.offer(n, head);
        head
    }

    /// The same as a table of its own at `table`.
    pub fn add_table(&mut self, n: usize, table: u64, buffers: &[(u64, u32, bool)]) -> u16 {
        let ring = self.rings[n];
        for (k, &(addr, len, write)) in buffers.iter().enumerate() {
            let more = if k + 1 < buffers.len() { NEXT } else { 0 };
            let flags = more | if write { WRITE } else { 0 };
            self.write_desc(table + 16 * k as u64, addr, len, flags, k as u16 + 1);
        }
        let head = ring.next_desc;
        let bytes = 16 * buffers.len() as u32;
        self.write_desc(ring.desc + 16 * u64::from(head), table, bytes, TABLE_OF_ITS_OWN, 0);
        self.rings[n].next_desc = (head + 1) % ring.size;
        self.offer(n, head);
        head
    }

    /// Puts a head into the available ring.
    pub fn offer(&mut self, n: usize, head: u16) {
        let ring = &mut self.rings[n];
        let at = ring.avail + 4 + 2 * u64::from(ring.next_avail % ring.size);
        ring.next_avail = ring.next_avail.wrapping_add(1);
        let (index, next) = (ring.avail + 2, ring.next_avail);
        self.dma().write(at, &head.to_le_bytes());
        self.dma().write(index, &next.to_le_bytes());
    }

    pub fn notify(&mut self, n: usize) {
        if self.legacy() {
            self.out(0x10, 2, n as u32);
        } else {
            self.put(0x3000 + 4 * n as u64, 2, n as u64);
        }
    }

    /// Kicks, and lets all be done that can be.
    pub fn kick(&mut self, n: usize) {
        self.notify(n);
        self.settle();
    }

    pub fn settle(&self) {
        (0..100).for_each(|_| self.bench.advance(1));
    }

    /// What came back since the last call: head and length.
    pub fn used(&mut self, n: usize) -> Vec<(u16, u32)> {
        let dma = self.dma();
        let ring = &mut self.rings[n];
        let index = u16::from_le_bytes(dma.fetch(ring.used + 2));
        let mut all = Vec::new();
        while ring.seen_used != index {
            let at = ring.used + 4 + 8 * u64::from(ring.seen_used % ring.size);
            all.push((dma.read_u32(at) as u16, dma.read_u32(at + 4)));
            ring.seen_used = ring.seen_used.wrapping_add(1);
        }
        all
    }

    /// The device's own registers.
    pub fn config(&mut self, at: u16, width: u8) -> u64 {
        if self.legacy() { self.inp(0x14 + at, width).into() } else { self.get(0x2000 + u64::from(at), width) }
    }

    pub fn set_config(&mut self, at: u16, width: u8, value: u64) {
        if self.legacy() {
            self.out(0x14 + at, width, value as u32);
        } else {
            self.put(0x2000 + u64::from(at), width, value);
        }
    }

    /// The driver's interrupt handler: what the ISR register says.
    pub fn interrupt(&mut self) -> u8 {
        let level = self.bench.irq(INTA);
        let isr = self.isr();
        assert_eq!(level, isr != 0, "the wire and the ISR register");
        assert!(!self.bench.irq(INTA), "reading the register lets the wire go");
        isr
    }

    /// Where a capability is, if there is one.
    pub fn capability(&mut self, id: u32) -> Option<u16> {
        let mut at = self.bench.config_read(0x34, 1) as u16;
        while at != 0 && self.bench.config_read(at, 1) != id {
            at = self.bench.config_read(at + 1, 1) as u16;
        }
        (at != 0).then_some(at)
    }

    /// Turns MSI-X on, vector `n` of all sending data `n`.
    pub fn use_msix(&mut self, vectors: u16) {
        let at = self.capability(0x11).expect("MSI-X");
        assert_eq!(self.bench.config_read(at + 2, 2) as u16 & 0x7ff, vectors - 1);
        for n in 0..u64::from(vectors) {
            for (k, value) in [0xfee0_0000, 0, n, 0].into_iter().enumerate() {
                self.bench.bus.write(TABLE + 16 * n + 4 * k as u64, 4, value);
            }
        }
        self.bench.config_write(at + 2, 2, 0x8000);
    }

    pub fn set_vectors(&mut self, config: u16, queues: &[u16]) {
        for (n, vector) in queues.iter().enumerate() {
            if self.legacy() {
                self.out(0xe, 2, n as u32);
                self.out(0x16, 2, (*vector).into());
                assert_eq!(self.inp(0x16, 2), u32::from(*vector));
            } else {
                self.put(0x16, 2, n as u64);
                self.put(0x1a, 2, (*vector).into());
                assert_eq!(self.get(0x1a, 2), u64::from(*vector));
            }
        }
        if self.legacy() { self.out(0x14, 2, config.into()) } else { self.put(0x10, 2, config.into()) }
    }

    /// The messages since the last call.
    pub fn messages(&self) -> Vec<u32> {
        self.bench.messages().into_iter().map(|(_, data)| data).collect()
    }
}

/// Types of disk requests.
pub const IN: u32 = 0;
pub const OUT: u32 = 1;
pub const FLUSH: u32 = 4;
pub const GET_ID: u32 = 8;
pub const DISCARD: u32 = 11;
pub const ZEROES: u32 = 13;

/// A rig with a disk.
pub fn disk_rig(via: Via, params: &[(&str, &str)]) -> (Rig, BenchDisk) {
    let mut kept = None;
    let rig = Rig::new(&crate::virtio::blk::MODEL, via, params, |bench| {
        let disk = BenchDisk::new(bench, (0..100 * 512u32).map(|n| (n ^ n >> 9) as u8).collect());
        kept = Some(disk.clone());
        let disk: Box<dyn Disk> = Box::new(disk);
        Backends { disks: vec![Some(disk)], ..Backends::default() }
    });
    (rig, kept.unwrap())
}

/// Where request number `n` has its header and its status.
pub fn header_of(n: u64) -> u64 {
    DATA + 0x100 * n
}

pub fn status_of(n: u64) -> u64 {
    header_of(n) + 0x80
}

impl Rig {
    /// Makes disk request `n` available on queue `q`, its data in `data`.
    pub fn request(&mut self, q: usize, n: u64, kind: u32, sector: u64, data: &[(u64, u32)]) -> u16 {
        let buffers = self.buffers(n, kind, sector, data);
        self.add(q, &buffers)
    }

    /// Header, data and status of request `n`.
    pub fn buffers(&mut self, n: u64, kind: u32, sector: u64, data: &[(u64, u32)]) -> Vec<(u64, u32, bool)> {
        let (header, status) = (header_of(n), status_of(n));
        let dma = self.dma();
        dma.write_u32(header, kind);
        dma.write_u32(header + 4, 0);
        dma.write(header + 8, &sector.to_le_bytes());
        dma.write(status, &[0xff]);
        let writes = matches!(kind, IN | GET_ID);
        let data = data.iter().map(|(at, len)| (*at, *len, writes));
        [(header, 16, false)].into_iter().chain(data).chain([(status, 1, true)]).collect()
    }

    pub fn answer(&self, n: u64) -> u8 {
        let [status] = self.dma().fetch(status_of(n));
        status
    }

    /// Does one request on queue 0; its status and how many bytes are said to be written.
    pub fn does(&mut self, kind: u32, sector: u64, data: &[(u64, u32)]) -> (u8, u32) {
        let head = self.request(0, 0, kind, sector, data);
        self.kick(0);
        let used = self.used(0);
        assert_eq!(used.len(), 1, "{kind} is not answered");
        assert_eq!(used[0].0, head);
        (self.answer(0), used[0].1)
    }

    pub fn memory(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.dma().read(at, &mut bytes);
        bytes
    }
}
