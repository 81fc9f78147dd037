use std::sync::Arc;

use emu::bench::{Bench, BenchDisk};
use emu::{Backends, DeviceCell, DeviceState, Event, Params, ResetKind};

use super::NVME;
use crate::storage::tests::pattern;

/// Where firmware puts the registers and the vectors.
const REGS: u64 = 0xfeb0_0000;
const VECTORS: u64 = 0xfeb1_0000;
const INTA: u32 = 16;
const BLOCKS: usize = 8000;

/// Where the queues are: queue `n` is at `n << 13`, its completion queue a page later.
const QUEUES: u64 = 0x1_0000;
const SIZE: u32 = 16;
/// Where data and PRP lists go.
const DATA: u64 = 0x8_0000;
const LISTS: u64 = 0x4_0000;

const CC: u64 = 0x14;
const CSTS: u64 = 0x1c;

/// A controller with two namespaces, 1 and 3.
struct Rig {
    bench: Bench,
    cell: Arc<DeviceCell>,
    disk: BenchDisk,
    other: BenchDisk,
    tails: [u32; 4],
    heads: [u32; 4],
    cid: u16,
}

/// A command but for its identifier.
#[derive(Clone, Copy, Default)]
struct Cmd([u32; 16]);

fn cmd(opcode: u32, nsid: u32) -> Cmd {
    let mut c = Cmd::default();
    (c.0[0], c.0[1]) = (opcode, nsid);
    c
}

impl Cmd {
    fn prp(mut self, first: u64, second: u64) -> Cmd {
        for (n, v) in [(6, first), (8, second)] {
            (self.0[n], self.0[n + 1]) = (v as u32, (v >> 32) as u32);
        }
        self
    }

    fn dw(mut self, n: usize, value: u32) -> Cmd {
        self.0[n] = value;
        self
    }

    fn blocks(self, lba: u64, count: u32) -> Cmd {
        self.dw(10, lba as u32).dw(11, (lba >> 32) as u32).dw(12, self.0[12] | (count - 1))
    }
}

fn rig_with(params: &[(&str, &str)]) -> Rig {
    let bench = Bench::new();
    let disk = BenchDisk::new(&bench, pattern(BLOCKS * 512));
    let other = BenchDisk::new(&bench, vec![0; 64 * 512]);
    let disks: Vec<Option<Box<dyn emu::backend::Disk>>> =
        vec![Some(Box::new(disk.clone())), None, Some(Box::new(other.clone()))];
    let backends = Backends { disks, ..Backends::default() };
    let cell = bench.plug(&NVME, &Params::new(params.iter().copied()), backends);
    let mut rig = Rig { bench, cell, disk, other, tails: [0; 4], heads: [0; 4], cid: 0 };
    rig.bench.machine.reset(ResetKind::PowerOn);
    rig.bench.config_write(0x10, 4, REGS as u32);
    rig.bench.config_write(0x20, 4, VECTORS as u32);
    rig.bench.config_write(0x04, 2, 7);
    rig.enable();
    rig
}

fn rig() -> Rig {
    rig_with(&[])
}

impl Rig {
    /// Two queues, 1 and 2, beside the administrator's.
    fn enable(&mut self) {
        (self.tails, self.heads) = ([0; 4], [0; 4]);
        self.bench.dma().write(QUEUES, &[0; 0x6000]);
        self.set(0x24, (SIZE - 1) | (SIZE - 1) << 16);
        self.bench.bus.write(REGS + 0x28, 8, QUEUES);
        self.bench.bus.write(REGS + 0x30, 8, QUEUES + 0x1000);
        self.set(CC, 0x0046_0001);
        assert_eq!(self.get(CSTS), 1);
        for n in 1..3u32 {
            let base = QUEUES + 0x2000 * u64::from(n);
            let size = n | (SIZE - 1) << 16;
            assert_eq!(self.admin(cmd(5, 0).prp(base + 0x1000, 0).dw(10, size).dw(11, 3 | n << 16)), (0, 0));
            assert_eq!(self.admin(cmd(1, 0).prp(base, 0).dw(10, size).dw(11, 1 | n << 16)), (0, 0));
        }
    }

    fn get(&mut self, at: u64) -> u32 {
        self.bench.bus.read(REGS + at, 4) as u32
    }

    fn set(&mut self, at: u64, value: u32) {
        self.bench.bus.write(REGS + at, 4, value.into());
    }

    /// Puts a command into a queue, without telling.
    fn put(&mut self, q: usize, mut c: Cmd) -> u16 {
        self.cid += 1;
        c.0[0] |= u32::from(self.cid) << 16;
        let at = QUEUES + 0x2000 * q as u64 + 64 * u64::from(self.tails[q]);
        self.bench.dma().write(at, c.0.map(u32::to_le_bytes).as_flattened());
        self.tails[q] = (self.tails[q] + 1) % SIZE;
        self.cid
    }

    fn ring(&mut self, q: usize) {
        self.set(0x1000 + 8 * q as u64, self.tails[q]);
        self.bench.advance(0);
    }

    /// The next entry, unless there is none: the identifier, the status, and the first double word.
    fn entry(&mut self, q: usize) -> Option<(u16, u32, u32)> {
        let at = QUEUES + 0x2000 * q as u64 + 0x1000 + 16 * u64::from(self.heads[q] % SIZE);
        let last = self.bench.dma().read_u32(at + 12);
        let phase = 1 - (self.heads[q] / SIZE & 1);
        if last >> 16 & 1 != phase {
            return None;
        }
        self.heads[q] += 1;
        self.set(0x1004 + 8 * q as u64, self.heads[q] % SIZE);
        Some((last as u16, last >> 17, self.bench.dma().read_u32(at)))
    }

    /// Runs one command: status without the bit that forbids to try again, and the first double word.
    fn run(&mut self, q: usize, c: Cmd) -> (u32, u32) {
        let cid = self.put(q, c);
        self.ring(q);
        let (of, status, dword) = self.entry(q).expect("an entry");
        assert_eq!(of, cid);
        (status & !0x4000, dword)
    }

    fn admin(&mut self, c: Cmd) -> (u32, u32) {
        self.run(0, c)
    }

    fn memory(&self, at: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0; len];
        self.bench.dma().read(at, &mut buf);
        buf
    }

    /// A page that an administrator's command gives.
    fn page(&mut self, c: Cmd) -> Vec<u8> {
        assert_eq!(self.admin(c.prp(DATA, 0)), (0, 0));
        self.memory(DATA, 4096)
    }

    fn list(&self, at: u64, entries: &[u64]) {
        for (n, e) in entries.iter().enumerate() {
            self.bench.dma().write(at + 8 * n as u64, &e.to_le_bytes());
        }
    }
}

fn blocks(lba: usize, n: usize) -> Vec<u8> {
    pattern(BLOCKS * 512)[lba * 512..][..n * 512].to_vec()
}

fn u32_at(page: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|n| page[at + n]))
}

#[test]
fn it_says_what_it_is_and_what_namespaces_there_are() {
    let mut r = rig_with(&[("ser", "S123"), ("eui64", "0123456789abcdef"), ("qsz", "100")]);
    assert_eq!((r.bench.config_read(0, 4), r.bench.config_read(8, 4) >> 8), (0x0a0a_fb5d, 0x01_0802));
    assert_eq!((r.get(0) & 0xffff, r.get(4), r.get(8)), (99, 0x20, 0x1_0400));
    assert_eq!(r.bench.bus.read(REGS, 8) >> 32, 0x20);
    let page = r.page(cmd(6, 0).dw(10, 1));
    assert_eq!((&page[4..8], page[77], u32_at(&page, 516), page[520]), (&b"S123"[..], 9, 3, 0x0c));
    let page = r.page(cmd(6, 1));
    assert_eq!((u32_at(&page, 0), page[99], page[130]), (BLOCKS as u32, 0, 9));
    assert_eq!(page[120..128], [1, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef]);
    assert_eq!(r.page(cmd(6, 2)), [0; 4096], "not active");
    assert_eq!(r.admin(cmd(6, 4).prp(DATA, 0)).0, 0x0b);
    let page = r.page(cmd(6, 0).dw(10, 2));
    assert_eq!([0, 4, 8].map(|at| u32_at(&page, at)), [1, 3, 0]);
    let page = r.page(cmd(6, 3).dw(10, 3));
    assert_eq!((&page[..4], page[11]), (&[1, 8, 0, 0][..], 0xf1));
    r.other.protect();
    assert_eq!(r.page(cmd(6, 3))[99], 1);
    assert_eq!(r.run(1, cmd(1, 3).prp(DATA, 0).blocks(0, 1)).0, 0x20);
}

#[test]
fn data_go_where_prps_say() {
    let mut r = rig();
    assert_eq!(r.run(1, cmd(2, 1).prp(DATA + 0x204, 0).blocks(3, 2)), (0, 0));
    assert_eq!(r.memory(DATA + 0x204, 1024), blocks(3, 2));
    assert_eq!(r.run(1, cmd(2, 1).prp(DATA + 0xe00, DATA + 0x3000).blocks(9, 4)), (0, 0));
    assert_eq!(r.memory(DATA + 0xe00, 512), blocks(9, 1));
    assert_eq!(r.memory(DATA + 0x3000, 1536), blocks(10, 3));
    // A list that begins at the end of a page and goes on elsewhere.
    r.list(LISTS + 0xff0, &[DATA + 0x5000, LISTS + 0x3000]);
    r.list(LISTS + 0x3000, &[DATA + 0x4000, DATA + 0x8000]);
    assert_eq!(r.run(2, cmd(2, 1).prp(DATA, LISTS + 0xff0).blocks(100, 32)), (0, 0));
    let expected = blocks(100, 32);
    for (n, at) in [DATA, DATA + 0x5000, DATA + 0x4000, DATA + 0x8000].into_iter().enumerate() {
        assert!(r.memory(at, 4096) == expected[4096 * n..][..4096], "page {n}");
    }
    // The longest transfer: the same page again and again.
    r.list(LISTS, &[DATA; 512]);
    r.list(LISTS + 0xff8, &[LISTS + 0x1000, DATA]);
    assert_eq!(r.run(1, cmd(2, 1).prp(DATA, LISTS).blocks(0, 4096)), (0, 0));
    assert_eq!(r.memory(DATA, 4096), blocks(4088, 8));
    r.bench.dma().write(DATA, &[0x5a; 1024]);
    assert_eq!(r.run(1, cmd(1, 3).prp(DATA, 0).blocks(62, 2)), (0, 0));
    assert_eq!(r.other.bytes()[62 * 512..], [0x5a; 1024]);
    assert_eq!((r.other.flushes(), r.disk.flushes()), (0, 0));
    assert_eq!(r.run(1, cmd(1, 3).prp(DATA, 0).dw(12, 1 << 30).blocks(62, 1)), (0, 0));
    assert_eq!(r.other.flushes(), 1, "forced unit access");
    assert_eq!(r.run(1, cmd(0, 1)), (0, 0));
    assert_eq!(r.disk.flushes(), 1);
}

#[test]
fn commands_that_cannot_be_are_refused_and_logged() {
    let mut r = rig();
    let read = cmd(2, 1);
    for (c, status) in [
        (read.prp(DATA, 0).blocks(BLOCKS as u64 - 1, 2), 0x80),
        (read.prp(DATA, 0).blocks(u64::MAX, 1), 0x80),
        (read.prp(DATA, LISTS).blocks(0, 4097), 0x02),
        (read.prp(DATA + 1, 0).blocks(0, 1), 0x13),
        (read.prp(DATA, DATA + 8).blocks(0, 16), 0x13),
        (read.prp(DATA, LISTS + 4).blocks(0, 32), 0x13),
        (read.prp(0xf000_0000, 0).blocks(0, 1), 0x04),
        (read.prp(!3, 0).blocks(0, 1), 0x04),
        (read.prp(DATA, !7).blocks(0, 32), 0x13),
        (read.dw(0, 0x4002).prp(DATA, 0).blocks(0, 1), 0x02),
        (cmd(2, 2).prp(DATA, 0).blocks(0, 1), 0x0b),
        (cmd(0, 0xffff_ffff), 0x0b),
        (cmd(5, 1).prp(DATA, 0).blocks(0, 1), 0x01),
    ] {
        assert_eq!(r.run(1, c).0, status, "{:x?}", c.0);
    }
    // A list whose pages lead to each other and never to data.
    r.list(LISTS + 0xff8, &[LISTS + 0xff8]);
    assert_eq!(r.run(1, read.prp(DATA, LISTS + 0xff8).blocks(0, 32)).0, 0x13);
    let log = r.page(cmd(2, 0).dw(10, 1 | 31 << 16));
    assert_eq!((u32_at(&log, 0), log[8], log[12], log[24]), (14, 1, 0x26, 1));
    r.disk.set_broken(true);
    for (c, status) in [(read.prp(DATA, 0), 0x281), (cmd(1, 1).prp(DATA, 0), 0x280), (cmd(0, 1), 0x06)] {
        let cid = r.put(1, c);
        r.ring(1);
        assert_eq!(r.entry(1), Some((cid, status, 0)), "it may be tried again");
    }
    let smart = r.page(cmd(2, 0).dw(10, 2 | 127 << 16));
    assert_eq!((u32_at(&smart, 160), u32_at(&smart, 176)), (3, 17));
    for (opcode, status) in [(0x7f, 1), (0x10, 1), (0x09, 2), (0x02, 0x109)] {
        assert_eq!(r.admin(cmd(opcode, 0).prp(DATA, 0)).0, status, "{opcode:x}");
    }
}

#[test]
fn zeroes_are_written_and_blocks_discarded() {
    let mut r = rig();
    assert_eq!(r.run(1, cmd(8, 1).blocks(5, 3000)), (0, 0));
    let bytes = r.disk.bytes();
    assert!(bytes[..5 * 512] == blocks(0, 5) && bytes[3005 * 512..] == blocks(3005, BLOCKS - 3005));
    assert!(bytes[5 * 512..3005 * 512].iter().all(|b| *b == 0));
    let range = |lba: u64, n: u32| [&[0; 4][..], &n.to_le_bytes(), &lba.to_le_bytes()].concat();
    r.bench.dma().write(DATA, &[range(8, 16), range(0, 0), range(100, 1)].concat());
    assert_eq!(r.run(1, cmd(9, 1).prp(DATA, 0).dw(10, 2).dw(11, 4)), (0, 0));
    assert_eq!(r.disk.discards(), [(8 * 512, 16 * 512), (100 * 512, 512)]);
    assert_eq!(r.run(1, cmd(9, 1).prp(DATA, 0).dw(10, 2).dw(11, 1)), (0, 0));
    r.bench.dma().write(DATA + 32, &range(BLOCKS as u64, 1));
    assert_eq!(r.run(1, cmd(9, 1).prp(DATA, 0).dw(10, 2).dw(11, 4)).0, 0x80);
    assert!(r.disk.discards().is_empty());
}

#[test]
fn queues_are_created_and_deleted_by_the_rules() {
    let mut r = rig();
    let (create_cq, create_sq) = (cmd(5, 0).prp(0x3_0000, 0), cmd(1, 0).prp(0x3_1000, 0));
    for (c, status) in [
        (create_cq.dw(10, 15 << 16).dw(11, 3), 0x101),
        (create_cq.dw(10, 17 | 15 << 16).dw(11, 3), 0x101),
        (create_cq.dw(10, 1 | 15 << 16).dw(11, 3), 0x101),
        (create_cq.dw(10, 3).dw(11, 3), 0x102),
        (create_cq.dw(10, 3 | 2048 << 16).dw(11, 3), 0x102),
        (create_cq.dw(10, 3 | 15 << 16).dw(11, 3 | 17 << 16), 0x108),
        (create_cq.dw(10, 3 | 15 << 16).dw(11, 2), 0x02),
        (create_sq.dw(10, 3 | 15 << 16).dw(11, 1), 0x100),
        (create_sq.dw(10, 3 | 15 << 16).dw(11, 1 | 4 << 16), 0x100),
        (cmd(4, 0).dw(10, 1), 0x10c),
        (cmd(0, 0).dw(10, 3), 0x101),
        (cmd(9, 0).dw(10, 7), 0x0c),
    ] {
        assert_eq!(r.admin(c).0, status, "{:x?}", c.0);
    }
    assert_eq!(r.admin(cmd(0x0a, 0).dw(10, 7)), (0, 0x000f_000f));
    // A queue with commands under way goes when they are done.
    r.disk.hold();
    let read = r.put(1, cmd(2, 1).prp(DATA, 0));
    r.ring(1);
    let delete = r.put(0, cmd(0, 0).dw(10, 1));
    r.ring(0);
    assert_eq!(r.entry(0), None);
    r.disk.release();
    r.bench.advance(0);
    assert_eq!(r.entry(0), Some((delete, 0, 0)));
    assert_eq!(r.entry(1), Some((read, 0, 0)));
    assert_eq!(r.admin(cmd(4, 0).dw(10, 1)), (0, 0));
}

#[test]
fn a_full_completion_queue_holds_its_own_commands_and_no_others() {
    let mut r = rig();
    // Two rounds of fifteen into queue 1, whose entries nobody takes.
    for n in 0..30 {
        r.put(1, cmd(2, 1).prp(DATA, 0));
        if n % 15 == 14 {
            r.ring(1);
        }
    }
    assert_eq!(r.run(2, cmd(0, 3)), (0, 0));
    for n in 0..30 {
        r.bench.advance(0);
        assert!(r.entry(1).is_some(), "entry {n}");
    }
    assert_eq!(r.entry(1), None);
}

#[test]
fn more_commands_than_are_served_at_once_are_all_served() {
    let mut r = rig_with(&[("ioslots", "2")]);
    r.disk.hold();
    for n in 0..12 {
        r.put(1, cmd(2, 1).prp(DATA + 0x1000 * n, 0).blocks(n, 1));
    }
    r.ring(1);
    assert_eq!(r.entry(1), None);
    r.disk.release();
    r.bench.advance(0);
    for n in 0..12 {
        assert!(r.entry(1).is_some());
        assert_eq!(r.memory(DATA + 0x1000 * n as u64, 512), blocks(n, 1));
    }
}

#[test]
fn interrupts_come_by_vector_message_and_wire() {
    let mut r = rig();
    assert!(!r.bench.irq(INTA), "every entry was taken");
    let cid = r.put(1, cmd(0, 1));
    r.ring(1);
    assert!(r.bench.irq(INTA));
    r.set(0x0c, 2);
    assert!(!r.bench.irq(INTA), "masked");
    r.set(0x10, 2);
    assert!(r.bench.irq(INTA));
    assert_eq!(r.entry(1), Some((cid, 0, 0)));
    assert!(!r.bench.irq(INTA));
    // One vector for each queue.
    for n in 0..3 {
        r.bench.bus.write(VECTORS + 16 * n, 8, 0xfee0_0000);
        r.bench.bus.write(VECTORS + 16 * n + 8, 4, 0x40 + n);
        r.bench.bus.write(VECTORS + 16 * n + 12, 4, 0);
    }
    let msix = (0x40..0x100).step_by(4).find(|at| r.bench.config_read(*at, 1) == 0x11).unwrap();
    r.bench.config_write(msix + 2, 2, 0x8000);
    r.run(1, cmd(0, 1));
    r.run(2, cmd(0, 1));
    r.admin(cmd(0x0a, 0).dw(10, 7));
    let messages = r.bench.messages();
    assert_eq!(messages.iter().map(|m| m.1).collect::<Vec<_>>(), [0x41, 0x42, 0x40]);
    // All that is finished together is told once.
    r.disk.hold();
    for _ in 0..4 {
        r.put(1, cmd(0, 1));
    }
    r.ring(1);
    r.disk.release();
    r.bench.advance(0);
    assert_eq!(r.bench.messages().len(), 1);
}

#[test]
fn shadow_doorbells_are_looked_at_and_events_asked_for() {
    let mut r = rig();
    let (shadows, events) = (0x6_0000, 0x6_1000);
    assert_eq!(r.admin(cmd(0x7c, 0).prp(shadows, events)), (0, 0));
    // Queue 1 is rung once, and what was put behind it is seen without.
    let first = r.put(1, cmd(0, 1));
    r.bench.dma().write_u32(shadows + 8, r.tails[1]);
    r.ring(1);
    assert_eq!(r.bench.dma().read_u32(events + 8), 1, "the next one is to be rung for");
    r.disk.hold();
    r.bench.dma().write_u32(shadows + 12, 1);
    r.heads[1] = 1;
    let second = r.put(1, cmd(0, 1));
    r.bench.dma().write_u32(shadows + 8, r.tails[1]);
    r.ring(1);
    let third = r.put(1, cmd(0, 1));
    r.bench.dma().write_u32(shadows + 8, r.tails[1]);
    r.disk.release();
    r.bench.advance(0);
    assert_eq!([r.entry(1), r.entry(1)], [Some((second, 0, 0)), Some((third, 0, 0))]);
    assert!(first < second);
    // Nonsense there is not taken over.
    r.bench.dma().write_u32(shadows + 8, 0xffff);
    r.bench.dma().write_u32(shadows + 16, 1);
    assert_eq!(r.run(2, cmd(0, 1)), (0, 0));
    assert_eq!(r.entry(1), None);
}

#[test]
fn events_wait_for_requests_and_requests_for_events() {
    let mut r = rig();
    let waiting: Vec<u16> = (0..4).map(|_| r.put(0, cmd(0x0c, 0))).collect();
    let too_many = r.put(0, cmd(0x0c, 0));
    r.ring(0);
    assert_eq!(r.entry(0), Some((too_many, 0x4105, 0)));
    assert_eq!(r.admin(cmd(9, 0).dw(10, 0x0b).dw(11, 0x100)), (0, 0));
    r.other.set_bytes(vec![0; 32 * 512]);
    r.cell.event(Event::Medium(2));
    assert_eq!(r.entry(0), Some((waiting[0], 0, 0x0004_0002)));
    r.cell.event(Event::Medium(2));
    assert_eq!(r.entry(0), None, "not before the log was read");
    let log = r.page(cmd(2, 0).dw(10, 4 | 1023 << 16));
    assert_eq!((u32_at(&log, 0), u32_at(&log, 4)), (3, 0));
    assert_eq!(r.run(1, cmd(2, 3).prp(DATA, 0).blocks(32, 1)).0, 0x80);
    // A doorbell beside the queue.
    r.set(0x1008, SIZE);
    assert_eq!(r.entry(0), Some((waiting[1], 0, 0x0001_0100)));
    let abort = r.put(0, cmd(8, 0).dw(10, u32::from(waiting[3]) << 16));
    r.ring(0);
    assert_eq!([r.entry(0), r.entry(0)], [Some((waiting[3], 0x4007, 0)), Some((abort, 0, 0))]);
    assert_eq!(r.admin(cmd(8, 0).dw(10, 1)), (0, 1), "nothing to abort");
}

#[test]
fn a_reset_takes_back_what_the_disk_has_not_done() {
    let mut r = rig();
    r.disk.hold();
    r.put(1, cmd(2, 1).prp(DATA, 0));
    r.ring(1);
    r.set(CC, 0x0046_0000);
    assert_eq!((r.get(CSTS), r.get(0x24), r.get(0x28)), (0, 0x000f_000f, QUEUES as u32));
    r.disk.release();
    r.bench.advance(0);
    assert_eq!(r.memory(DATA, 512), [0; 512]);
    r.ring(1);
    r.enable();
    assert_eq!(r.run(1, cmd(2, 1).prp(DATA, 0)), (0, 0));
    // What is not supported is a fatal status.
    r.set(CC, 0);
    r.set(CC, 0x0046_0081);
    assert_eq!(r.get(CSTS), 2);
}

#[test]
fn a_shutdown_is_complete_when_everything_is_on_stable_storage() {
    let mut r = rig();
    r.other.hold();
    r.set(CC, 0x0046_4001);
    r.bench.advance(0);
    assert_eq!((r.get(CSTS), r.disk.flushes()), (1 | 1 << 2, 1));
    r.other.release();
    r.bench.advance(0);
    assert_eq!((r.get(CSTS), r.other.flushes()), (1 | 2 << 2, 1));
    r.set(CC, 0);
    assert_eq!(r.get(CSTS), 0);
}

#[test]
fn without_the_write_cache_writes_are_flushed() {
    let mut r = rig();
    assert_eq!(r.admin(cmd(9, 0).dw(10, 6)), (0, 0));
    assert_eq!(r.admin(cmd(0x0a, 0).dw(10, 6)), (0, 0));
    r.run(1, cmd(1, 1).prp(DATA, 0));
    r.run(1, cmd(8, 1).blocks(0, 1));
    assert_eq!(r.disk.flushes(), 2);
}

#[test]
fn saved_commands_go_on_in_another_machine() {
    let mut r = rig();
    r.disk.hold();
    let cids: Vec<u16> = (0..3).map(|n| r.put(1, cmd(8, 1).blocks(n, 1000))).collect();
    r.ring(1);
    r.disk.release();
    let saved = r.cell.save();
    let mut twin = rig();
    twin.cell.load(saved.clone()).unwrap();
    assert_eq!(twin.cell.save(), saved);
    twin.bench.advance(0);
    let done: Vec<_> = (0..3).map(|_| twin.entry(1).unwrap().0).collect();
    assert_eq!(done, cids);
    let bench = Bench::new();
    let cell = bench.plug(&NVME, &Params::new([("maxq", "2")]), Backends::default());
    assert!(cell.load(saved).is_err(), "a controller with other queues is another controller");
}
