use emu::bench::{Bench, BenchDisk};
use emu::{Backends, DeviceCell, DeviceState, Event, Params, ResetKind, Unit};
use std::sync::Arc;

use super::{AHCI, make};
use crate::storage::sata::name;
use crate::storage::tests::pattern;

/// Where firmware puts the registers.
const ABAR: u64 = 0xfebf_0000;
const INTA: u32 = 16;
const SECTORS: usize = 3000;
/// Memory of port `n` from `n << 17` on: the command list, the received area, and tables of 4 KiB.
const LIST: u64 = 0x1_0000;
const RECEIVED: u64 = 0x1_0400;
const TABLES: u64 = 0x1_1000;
/// Where data go.
const DATA: u64 = 0x8_0000;

const D2H: u64 = RECEIVED + 0x40;
const PIO_SETUP: u64 = RECEIVED + 0x20;
const DEVICE_BITS: u64 = RECEIVED + 0x58;

/// Port registers.
const IS: u64 = 0x10;
const IE: u64 = 0x14;
const CMD: u64 = 0x18;
const TFD: u64 = 0x20;
const SIG: u64 = 0x24;
const SSTS: u64 = 0x28;
const SCTL: u64 = 0x2c;
const SERR: u64 = 0x30;
const SACT: u64 = 0x34;
const CI: u64 = 0x38;

/// An adapter with a disk at port 0, a CD-ROM drive at port 1 and a disk at port 4.
struct Rig {
    bench: Bench,
    cell: Arc<DeviceCell>,
    disk: BenchDisk,
    disc: BenchDisk,
    other: BenchDisk,
}

fn rig_with(params: &[(&str, &str)]) -> Rig {
    let bench = Bench::new();
    let disk = BenchDisk::new(&bench, pattern(SECTORS * 512));
    let disc = BenchDisk::new(&bench, pattern(100 * 2048));
    let other = BenchDisk::new(&bench, vec![0; 64 * 512]);
    let disks: Vec<Option<Box<dyn emu::backend::Disk>>> =
        vec![Some(Box::new(disk.clone())), Some(Box::new(disc.clone())), None, None, Some(Box::new(other.clone()))];
    let units = vec![Unit::Disk, Unit::Cd, Unit::None, Unit::None, Unit::Disk];
    let backends = Backends { disks, units, ..Backends::default() };
    let cell = bench.plug(&AHCI, &Params::new(params.iter().copied()), backends);
    let mut rig = Rig { bench, cell, disk, disc, other };
    rig.reset();
    rig
}

fn rig() -> Rig {
    rig_with(&[])
}

/// A register frame with this command at this address.
fn command(command: u8, lba: u64, count: u16) -> [u8; 20] {
    let l = lba.to_le_bytes();
    let [low, high] = count.to_le_bytes();
    [0x27, 0x80, command, 0, l[0], l[1], l[2], 0x40, l[3], l[4], l[5], 0, low, high, 0, 0, 0, 0, 0, 0]
}

/// READ or WRITE FPDMA QUEUED.
fn queued(write: bool, tag: u8, lba: u64, count: u16) -> [u8; 20] {
    let mut fis = command(0x60 | u8::from(write), lba, u16::from(tag) << 3);
    [fis[3], fis[11]] = count.to_le_bytes();
    fis
}

impl Rig {
    /// Power-on, and what firmware and a driver's beginning do.
    fn reset(&mut self) {
        self.bench.machine.reset(ResetKind::PowerOn);
        self.bench.config_write(0x24, 4, ABAR as u32);
        self.bench.config_write(0x04, 2, 7);
        self.set(4, 1 << 31 | 2);
        for n in [0, 1, 4] {
            self.start(n);
        }
    }

    fn start(&mut self, n: u64) {
        self.pset(n, 0x00, (LIST + (n << 17)) as u32);
        self.pset(n, 0x08, (RECEIVED + (n << 17)) as u32);
        self.pset(n, CMD, 0x16);
        self.pset(n, CMD, 0x17);
        self.pset(n, SERR, u32::MAX);
        self.pset(n, IS, u32::MAX);
        self.pset(n, IE, u32::MAX);
    }

    fn get(&mut self, at: u64) -> u32 {
        self.bench.bus.read(ABAR + at, 4) as u32
    }

    fn set(&mut self, at: u64, value: u32) {
        self.bench.bus.write(ABAR + at, 4, value.into());
    }

    fn pget(&mut self, port: u64, at: u64) -> u32 {
        self.get(0x100 + 0x80 * port + at)
    }

    fn pset(&mut self, port: u64, at: u64, value: u32) {
        self.set(0x100 + 0x80 * port + at, value);
    }

    /// Writes a command into a slot: its frame and its regions (address, bytes).
    fn prepare(&mut self, port: u64, slot: u64, fis: &[u8], regions: &[(u64, u32)]) {
        let base = port << 17;
        let (dma, table) = (self.bench.dma(), TABLES + base + (slot << 11));
        let at = LIST + base + 32 * slot;
        dma.write_u32(at, 5 | (regions.len() as u32) << 16);
        dma.write_u32(at + 4, 0);
        dma.write(at + 8, &table.to_le_bytes());
        dma.write(table, fis);
        for (n, (to, len)) in regions.iter().enumerate() {
            let at = table + 0x80 + 16 * n as u64;
            dma.write(at, &to.to_le_bytes());
            dma.write_u32(at + 12, len - 1);
        }
    }

    /// Issues slots and lets the disks answer.
    fn issue(&mut self, port: u64, slots: u32) {
        self.pset(port, CI, slots);
        self.bench.advance(0);
    }

    /// One command in slot 3 of port 0: what PxIS and PxTFD are afterwards. Clears the interrupt.
    fn run(&mut self, fis: &[u8], regions: &[(u64, u32)]) -> (u32, u32) {
        self.prepare(0, 3, fis, regions);
        self.issue(0, 1 << 3);
        self.taken(0)
    }

    fn taken(&mut self, port: u64) -> (u32, u32) {
        let (is, tfd) = (self.pget(port, IS), self.pget(port, TFD));
        self.pset(port, IS, is);
        self.set(8, 1 << port);
        (is, tfd)
    }

    /// Clears an error as drivers do.
    fn restart(&mut self, port: u64) {
        self.pset(port, CMD, 0x16);
        self.pset(port, IS, u32::MAX);
        self.set(8, u32::MAX);
        self.pset(port, CMD, 0x17);
    }

    fn memory(&self, at: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0; len];
        self.bench.dma().read(at, &mut buf);
        buf
    }

    /// PACKET at port 1, by DMA or PIO: interrupts, status, and how many bytes were moved.
    fn packet(&mut self, bytes: &[u8], dma: bool, regions: &[(u64, u32)]) -> (u32, u32, u32) {
        let mut fis = command(0xa0, 0, 0);
        (fis[3], fis[5], fis[6]) = (dma.into(), 0, 8);
        self.prepare(1, 0, &fis, regions);
        let table = TABLES + (1 << 17);
        self.bench.dma().write(table + 0x40, &[0; 16]);
        self.bench.dma().write(table + 0x40, bytes);
        self.issue(1, 1);
        let (is, tfd) = self.taken(1);
        (is, tfd, self.bench.dma().read_u32(LIST + (1 << 17) + 4))
    }
}

fn sectors(lba: usize, n: usize) -> Vec<u8> {
    pattern(SECTORS * 512)[lba * 512..][..n * 512].to_vec()
}

fn word(data: &[u8], n: usize) -> u16 {
    u16::from_le_bytes([data[2 * n], data[2 * n + 1]])
}

#[test]
fn the_function_is_bhyves_and_can_be_one_of_intels() {
    let mut r = rig();
    assert_eq!((r.bench.config_read(0, 4), r.bench.config_read(8, 4) >> 8), (0x2821_8086, 0x01_0601));
    assert_eq!(r.bench.config_read(0x20, 4), 0, "no I/O BARs");
    assert_eq!((r.get(0) & 0x1f, r.get(0) >> 8 & 0x1f, r.get(0x0c), r.get(0x10)), (5, 31, 0x13, 0x1_0300));
    for (chip, id, ports) in [("ich6", 0x2652, 4), ("ich7", 0x27c1, 4), ("ich8", 0x2821, 6), ("ich9", 0x2922, 6)] {
        let mut bench = Bench::new();
        bench.plug(&AHCI, &Params::new([("chip", chip)]), Backends::default());
        bench.config_write(0x24, 4, ABAR as u32);
        bench.config_write(0x20, 4, 0xc000);
        bench.config_write(0x04, 2, 7);
        assert_eq!((bench.config_read(2, 2), bench.bus.read(ABAR, 1) & 0x1f), (id, ports - 1), "{chip}");
        bench.bus.pio_write(0xc010, 4, 0x10);
        assert_eq!(u64::from(bench.bus.pio_read(0xc014, 4)), bench.bus.read(ABAR + 0x10, 4), "index and data");
    }
    let disks = (0..5).map(|_| Some(Box::new(r.other.clone()) as Box<dyn emu::backend::Disk>)).collect();
    let backends = Backends { disks, ..Backends::default() };
    let bdf = Some(emu::Bdf::new(5, 0));
    assert!(r.bench.machine.plug(&AHCI, "full", bdf, &Params::new([("chip", "ich7")]), backends).is_err());
}

#[test]
fn every_kind_of_reset_ends_with_the_drives_signature() {
    let mut r = rig();
    for reset in 0..3 {
        r.bench.dma().write(D2H, &[0; 20]);
        match reset {
            0 => {
                r.set(4, 1);
                assert_eq!(r.get(4), 1 << 31, "done at once, interrupts off");
                r.start(0);
            }
            1 => {
                r.pset(0, SCTL, 0x301);
                assert_eq!(r.pget(0, SSTS) & 15, 0);
                r.pset(0, SCTL, 0x300);
                assert_eq!(r.pget(0, SERR), 0x0401_0000, "the link changed and came up");
                assert_eq!(r.pget(0, IS) & 0x0040_0040, 0x0040_0040);
                r.pset(0, SERR, u32::MAX);
                assert_eq!(r.pget(0, IS), 0);
            }
            _ => {
                let mut fis = command(0, 0, 0);
                (fis[1], fis[15]) = (0, 4);
                r.run(&fis, &[]);
                fis[15] = 0;
                r.run(&fis, &[]);
                assert_eq!(r.pget(0, CI), 0);
            }
        }
        assert_eq!((r.pget(0, SIG), r.pget(0, TFD), r.pget(0, SSTS)), (0x101, 0x150, 0x133), "reset {reset}");
        assert_eq!(r.memory(D2H, 8), [0x34, 0, 0x50, 1, 1, 0, 0, 0]);
    }
    assert_eq!((r.pget(1, SIG), r.pget(1, TFD)), (0xeb14_0101, 0x100));
    assert_eq!(r.pget(2, SSTS), 0, "nothing there");
    r.pset(0, SCTL, 0x311);
    r.pset(0, SCTL, 0x310);
    assert_eq!(r.pget(0, SSTS), 0x113, "the slow speed that was asked for");
    r.pset(0, SCTL, 4);
    assert_eq!((r.pget(0, SSTS), r.pget(0, TFD)), (4, 0x7f));
}

#[test]
fn a_frame_that_is_sent_before_it_can_be_received_waits() {
    let mut r = rig();
    r.pset(0, CMD, 0x06);
    r.bench.dma().write(D2H, &[0; 20]);
    r.pset(0, SCTL, 1);
    r.pset(0, SCTL, 0);
    assert_eq!(r.memory(D2H, 1), [0]);
    r.pset(0, CMD, 0x16);
    assert_eq!(r.memory(D2H, 1), [0x34]);
}

#[test]
fn dma_goes_along_the_regions_and_tells_how_much() {
    let mut r = rig();
    // Four sectors, to places that begin and end anywhere, one of them above 64 KiB of the last.
    let regions = [(DATA, 510), (DATA + 0x1002, 600), (DATA + 0x2000, 0x40_0000)];
    assert_eq!(r.run(&command(0x25, 10, 4), &regions), (1, 0x50));
    let data = sectors(10, 4);
    assert_eq!(r.memory(DATA, 510), data[..510]);
    assert_eq!(r.memory(DATA + 0x1002, 600), data[510..1110]);
    assert_eq!(r.memory(DATA + 0x2000, 938), data[1110..]);
    assert_eq!((r.pget(0, CI), r.bench.dma().read_u32(LIST + 3 * 32 + 4)), (0, 2048));
    assert_eq!(r.memory(D2H, 4), [0x34, 0x40, 0x50, 0]);
    r.bench.dma().write(DATA, &[0xa5; 1024]);
    assert_eq!(r.run(&command(0xca, 7, 2), &[(DATA, 1024)]), (1, 0x50));
    assert_eq!(r.disk.bytes()[7 * 512..9 * 512], [0xa5; 1024]);
    assert_eq!(r.disk.flushes(), 0);
    assert_eq!(r.run(&command(0x3d, 9, 1), &[(DATA, 512)]), (1, 0x50));
    assert_eq!((r.disk.flushes(), &r.disk.bytes()[9 * 512..10 * 512]), (1, &[0xa5; 512][..]), "forced unit access");
}

#[test]
fn a_command_in_thousands_of_pieces_is_done_step_by_step() {
    let mut r = rig();
    // 2 bytes each, 8 sectors: eight steps of 256 regions.
    let regions: Vec<_> = (0..2048).map(|n| (DATA + 4 * n, 2)).collect();
    let (dma, table) = (r.bench.dma(), 0x6_0000);
    r.prepare(0, 3, &command(0x25, 20, 8), &[]);
    dma.write_u32(LIST + 3 * 32, 5 | 2048 << 16);
    dma.write_u32(LIST + 3 * 32 + 8, table);
    dma.write(table.into(), &command(0x25, 20, 8));
    for (n, (to, len)) in regions.iter().enumerate() {
        dma.write(u64::from(table) + 0x80 + 16 * n as u64, &to.to_le_bytes());
        dma.write_u32(u64::from(table) + 0x8c + 16 * n as u64, len - 1);
    }
    r.issue(0, 1 << 3);
    assert_eq!(r.taken(0), (1, 0x50));
    let got: Vec<u8> = r.memory(DATA, 8192).chunks(4).flat_map(|c| [c[0], c[1]]).collect();
    assert_eq!(got, sectors(20, 8));
    assert_eq!(dma.read_u32(LIST + 3 * 32 + 4), 4096);
}

#[test]
fn pio_data_come_with_their_frames() {
    let mut r = rig();
    assert_eq!(r.run(&command(0xec, 0, 1), &[(DATA, 512)]), (2, 0x50), "a PIO setup interrupts, and nothing else");
    assert_eq!((r.memory(PIO_SETUP, 3), r.memory(PIO_SETUP + 15, 3)), (vec![0x5f, 0x60, 0x58], vec![0x50, 0, 2]));
    let id = r.memory(DATA, 512);
    assert_eq!((word(&id, 60), word(&id, 100), word(&id, 75), word(&id, 76)), (3000, 3000, 31, 0x010e));
    assert_eq!((word(&id, 93), word(&id, 169), word(&id, 84)), (0, 1, 0x4060));
    assert_eq!(id.iter().fold(0u8, |a, b| a.wrapping_add(*b)), 0, "the checksum");
    // Twenty sectors in blocks of one, and of sixteen.
    for command_code in [0x24, 0x29] {
        r.bench.dma().write(DATA, &vec![0; 20 * 512]);
        let (is, tfd) = r.run(&command(command_code, 100, 20), &[(DATA, 5000), (DATA + 5000, 20 * 512 - 5000)]);
        assert_eq!((is, tfd, r.pget(0, CI)), (2, 0x50, 0));
        assert_eq!(r.memory(DATA, 20 * 512), sectors(100, 20));
    }
    r.bench.dma().write(DATA, &[0x3c; 1024]);
    assert_eq!(r.run(&command(0x34, 50, 2), &[(DATA, 1024)]), (3, 0x50));
    assert_eq!(r.disk.bytes()[50 * 512..52 * 512], [0x3c; 1024]);
}

#[test]
fn names_and_rotation_are_as_configured() {
    let mut r = rig_with(&[("ser", "S123"), ("rev", "7.5"), ("product", "A DISK"), ("nmrr", "1")]);
    let text = |id: &[u8], at: usize, n: usize| -> String {
        let bytes: Vec<u8> = id[2 * at..2 * (at + n)].chunks(2).flat_map(|c| [c[1], c[0]]).collect();
        String::from_utf8_lossy(&bytes).trim_end().to_owned()
    };
    r.run(&command(0xec, 0, 1), &[(DATA, 512)]);
    let id = r.memory(DATA, 512);
    assert_eq!(
        (text(&id, 10, 10), text(&id, 23, 4), text(&id, 27, 20)),
        ("S123".into(), "7.5".into(), "A DISK".into())
    );
    assert_eq!(word(&id, 217), 1);
}

#[test]
fn queued_commands_end_in_the_order_in_which_the_disk_does_them() {
    let mut r = rig();
    r.disk.hold();
    for tag in 0..32u8 {
        let (write, lba) = (tag % 3 == 0, 10 * u64::from(tag));
        let to = DATA + 0x1000 * u64::from(tag);
        r.bench.dma().write(to, &[tag; 1024]);
        r.prepare(0, tag.into(), &queued(write, tag, lba, 2), &[(to, 512), (to + 512, 512)]);
    }
    r.pset(0, SACT, u32::MAX);
    r.issue(0, u32::MAX);
    assert_eq!((r.pget(0, CI), r.pget(0, SACT), r.pget(0, TFD)), (0, u32::MAX, 0x50), "all are in the queue");
    assert!(!r.bench.irq(INTA));
    r.disk.release();
    r.bench.advance(0);
    assert_eq!((r.pget(0, SACT), r.pget(0, IS)), (0, 8));
    assert!(r.bench.irq(INTA));
    assert_eq!(r.memory(DEVICE_BITS, 4), [0xa1, 0x40, 0x50, 0]);
    for tag in 0..32usize {
        let on_disk = &r.disk.bytes()[10 * tag * 512..][..1024];
        let in_memory = r.memory(DATA + 0x1000 * tag as u64, 1024);
        let expected = if tag % 3 == 0 { vec![tag as u8; 1024] } else { sectors(10 * tag, 2) };
        assert!(on_disk == expected && in_memory == expected, "tag {tag}");
    }
}

#[test]
fn a_queued_command_that_fails_ends_the_queue_and_the_log_says_why() {
    let mut r = rig();
    r.disk.hold();
    for tag in [4, 9] {
        r.prepare(0, tag, &queued(false, tag as u8, 0x123, 1), &[(DATA, 512)]);
    }
    r.pset(0, SACT, 1 << 4 | 1 << 9);
    r.issue(0, 1 << 4 | 1 << 9);
    r.disk.set_broken(true);
    r.disk.release();
    r.bench.advance(0);
    assert_eq!((r.pget(0, IS), r.pget(0, TFD)), (1 << 30 | 8, 0x4051));
    assert_eq!((r.pget(0, CI), r.pget(0, SACT)), (0, 1 << 4 | 1 << 9), "what has not ended stays");
    r.disk.set_broken(false);
    r.restart(0);
    assert_eq!((r.pget(0, SACT), r.pget(0, CMD) & 0xc01f), (0, 0xc017));
    assert_eq!(r.run(&command(0x25, 0, 1), &[(DATA, 512)]), (1 << 30 | 1, 0x0451), "first the log");
    r.restart(0);
    assert_eq!(r.run(&command(0x2f, 0x10, 1), &[(DATA, 512)]), (2, 0x50));
    let log = r.memory(DATA, 512);
    assert_eq!((&log[..8], log[12]), (&[4, 0, 0x51, 0x40, 0x23, 1, 0, 0x40][..], 1));
    assert_eq!(log.iter().fold(0u8, |a, b| a.wrapping_add(*b)), 0);
    assert_eq!(r.run(&command(0x25, 0, 1), &[(DATA, 512)]), (1, 0x50), "and it works again");
    r.run(&command(0x2f, 0, 1), &[(DATA, 512)]);
    assert_eq!((word(&r.memory(DATA, 512), 0), word(&r.memory(DATA, 512), 0x10)), (1, 1), "the directory");
    // Sectors that are not there, a tag that is taken, and a command that is not queued in between.
    for n in 0..3 {
        r.disk.hold();
        let second = [queued(false, 2, 2999, 2), queued(true, 1, 0, 1), command(0x25, 0, 1)][n];
        r.prepare(0, 1, &queued(false, 1, 0, 1), &[(DATA, 512)]);
        r.prepare(0, 2, &second, &[(DATA, 512)]);
        r.pset(0, SACT, 6);
        r.issue(0, 6);
        assert_eq!(r.pget(0, TFD), [0x1051, 0x0451, 0x0451][n]);
        assert_eq!((r.pget(0, CI), r.pget(0, CMD) >> 8 & 31), (4, 2), "the slot that failed");
        r.disk.release();
        r.restart(0);
        r.run(&command(0x2f, 0x10, 1), &[(DATA, 512)]);
        assert_eq!(r.memory(DATA, 1), [[2], [1], [0x80]][n]);
    }
}

#[test]
fn a_failed_command_stops_the_list_until_it_is_restarted() {
    let mut r = rig();
    r.prepare(0, 5, &command(0x25, 2999, 2), &[(DATA, 1024)]);
    r.prepare(0, 6, &command(0x25, 0, 1), &[(DATA, 512)]);
    r.issue(0, 3 << 5);
    assert_eq!((r.pget(0, IS), r.pget(0, TFD), r.pget(0, CI)), (1 << 30 | 1, 0x1051, 3 << 5));
    assert_eq!((r.pget(0, CMD) >> 8 & 31, r.memory(D2H + 2, 2)), (5, vec![0x51, 0x10]));
    r.restart(0);
    assert_eq!((r.pget(0, CI), r.pget(0, CMD) >> 8 & 31), (0, 0));
    r.disk.set_broken(true);
    assert_eq!(r.run(&command(0x25, 3, 1), &[(DATA, 512)]), (1 << 30 | 1, 0x4051));
    r.restart(0);
    assert_eq!(r.run(&command(0xea, 0, 0), &[]), (1 << 30 | 1, 0x0451));
    r.disk.set_broken(false);
    r.restart(0);
    r.disk.protect();
    assert_eq!(r.run(&command(0x35, 3, 1), &[(DATA, 512)]), (1 << 30 | 1, 0x0451));
    r.restart(0);
    assert_eq!(r.run(&command(0xb1, 0, 0), &[]), (1 << 30 | 1, 0x0451));
}

#[test]
fn memory_that_is_none_and_frames_that_are_none_stop_the_list() {
    let mut r = rig();
    assert_eq!(r.run(&command(0x25, 0, 2), &[(DATA, 512), (0xf000_0000, 512)]).0, 1 << 29);
    assert_eq!(r.memory(DATA, 512), [0; 512], "nothing was moved");
    r.restart(0);
    r.pset(0, SACT, 1 << 3);
    assert_eq!(r.run(&queued(true, 3, 0, 1), &[(u64::MAX - 1, 512)]).0, 1 << 29);
    r.restart(0);
    let mut fis = command(0xec, 0, 1);
    assert_eq!(r.run(&fis, &[(0xf000_0000, 512)]).0, 1 << 29);
    r.restart(0);
    fis[0] = 0x34;
    assert_eq!(r.run(&fis, &[(DATA, 512)]).0, 1 << 27);
    // Regions that end early: the drive waits, and a reset brings it back.
    r.restart(0);
    assert_eq!(r.run(&command(0x25, 0, 4), &[(DATA, 1024)]), (1 << 24, 0x80));
    r.restart(0);
    r.disk.flushes();
    assert_eq!(r.run(&command(0x34, 0, 2), &[(DATA, 512)]).1, 0x80);
    r.restart(0);
    assert_eq!(r.run(&command(0x25, 0, 1), &[(DATA, 512)]), (1, 0x50));
}

#[test]
fn stopping_the_list_takes_back_what_the_disk_has_not_done() {
    let mut r = rig();
    for reset in 0..4 {
        r.disk.hold();
        match reset {
            0 | 1 => r.prepare(0, 0, &command(0x25, 3, 1), &[(DATA, 512)]),
            _ => r.prepare(0, 0, &queued(false, 0, 3, 1), &[(DATA, 512)]),
        }
        r.pset(0, SACT, u32::from(reset > 1));
        r.issue(0, 1);
        if reset & 1 == 0 {
            r.pset(0, CMD, 0x16);
        } else {
            r.pset(0, SCTL, 1);
            r.pset(0, SCTL, 0);
        }
        r.disk.release();
        r.bench.advance(0);
        assert_eq!((r.memory(DATA, 512), r.pget(0, SACT), r.pget(0, CI)), (vec![0; 512], 0, 0));
        r.restart(0);
        assert_eq!(r.run(&command(0x24, 4, 1), &[(DATA + 0x1000, 512)]).1, 0x50);
        assert_eq!(r.memory(DATA + 0x1000, 512), sectors(4, 1));
    }
}

#[test]
fn trim_gives_up_what_its_list_names() {
    let mut r = rig();
    let entry = |lba: u64, n: u64| (lba | n << 48).to_le_bytes();
    let list = [entry(8, 16), entry(0, 0), entry(100, 1)].concat();
    r.bench.dma().write(DATA, &list);
    let mut fis = command(0x06, 0, 1);
    fis[3] = 1;
    assert_eq!(r.run(&fis, &[(DATA, 512)]), (1, 0x50));
    let mut given_up = r.disk.discards();
    given_up.sort_unstable();
    assert_eq!(given_up, [(8 * 512, 16 * 512), (100 * 512, 512)]);
    r.bench.dma().write(DATA, &entry(2990, 11));
    assert_eq!(r.run(&fis, &[(DATA, 512)]), (1 << 30 | 1, 0x1051));
    assert!(r.disk.discards().is_empty());
    r.restart(0);
    r.disk.protect();
    assert_eq!(r.run(&fis, &[(DATA, 512)]), (1 << 30 | 1, 0x0451));
}

#[test]
fn a_cd_takes_packets_by_dma_and_pio() {
    let mut r = rig();
    let regions = [(DATA, 8192)];
    assert_eq!(r.packet(&[0], false, &regions).1, 0x6051, "power on");
    r.restart(1);
    assert_eq!(r.packet(&[0x25], true, &regions), (1, 0x40, 8));
    assert_eq!(r.memory(DATA, 8), [0, 0, 0, 99, 0, 0, 8, 0]);
    for dma in [true, false] {
        r.bench.dma().write(DATA, &[0; 8192]);
        let (is, tfd, moved) = r.packet(&[0x28, 0, 0, 0, 0, 7, 0, 0, 4], dma, &regions);
        assert_eq!((is & 1, tfd, moved), (1, 0x40, 8192));
        assert!(r.memory(DATA, 8192) == pattern(100 * 2048)[7 * 2048..11 * 2048]);
    }
    assert_eq!(r.packet(&[0x2a], false, &regions).1 & 0xf0ff, 0x5051);
    r.restart(1);
    r.packet(&[0x03, 0, 0, 0, 18], false, &regions);
    assert_eq!(r.memory(DATA + 12, 1), [0x20]);
    // Another disc.
    r.disc.set_bytes(vec![0x55; 5 * 2048]);
    r.cell.event(Event::Medium(1));
    assert_eq!(r.packet(&[0], false, &regions).1 >> 12, 6);
}

#[test]
fn a_disk_is_pulled_and_plugged_in() {
    let mut r = rig();
    r.disk.hold();
    r.prepare(0, 0, &command(0x25, 3, 1), &[(DATA, 512)]);
    r.issue(0, 1);
    let bytes = r.disk.bytes();
    r.disk.set_bytes(vec![]);
    r.cell.event(Event::Medium(0));
    assert_eq!((r.pget(0, SSTS), r.pget(0, TFD), r.pget(0, CMD) >> 16 & 1), (0, 0x7f, 0));
    assert_eq!(r.pget(0, IS), 1 << 22);
    assert!(r.bench.irq(INTA));
    r.disk.release();
    r.bench.advance(0);
    assert_eq!(r.memory(DATA, 512), [0; 512]);
    r.pset(0, SERR, u32::MAX);
    r.restart(0);
    assert!(!r.bench.irq(INTA));
    r.disk.set_bytes(bytes);
    r.cell.event(Event::Medium(0));
    assert_eq!((r.pget(0, SSTS), r.pget(0, SIG), r.pget(0, CMD) >> 16 & 1), (0x133, 0x101, 1));
    assert_eq!(r.pget(0, IS), 1 << 22 | 1 << 6);
    r.pset(0, SERR, u32::MAX);
    assert_eq!(r.run(&command(0x25, 3, 1), &[(DATA, 512)]).1, 0x50);
}

#[test]
fn interrupts_are_shared_and_cleared_as_levels() {
    let mut r = rig();
    r.pset(0, IE, 1);
    r.pset(4, IE, 1);
    r.prepare(0, 0, &command(0xea, 0, 0), &[]);
    r.prepare(4, 0, &command(0xea, 0, 0), &[]);
    r.issue(0, 1);
    r.issue(4, 1);
    assert_eq!((r.get(8), r.bench.irq(INTA)), (0x11, true));
    r.set(8, 0x11);
    assert_eq!(r.get(8), 0x11, "the ports still want it");
    r.pset(0, IS, 1);
    r.pset(4, IS, 1);
    r.set(8, 1);
    assert_eq!((r.get(8), r.bench.irq(INTA)), (0x10, true));
    r.set(4, 1 << 31);
    assert!(!r.bench.irq(INTA));
    r.set(4, 1 << 31 | 2);
    assert!(r.bench.irq(INTA));
    r.set(8, 0x10);
    assert!(!r.bench.irq(INTA));
    r.pset(0, IE, 0);
    r.issue(0, 1);
    assert_eq!((r.get(8), r.bench.irq(INTA)), (0, false));
}

#[test]
fn a_message_is_sent_for_what_is_new_and_for_what_is_left() {
    let mut r = rig();
    r.bench.config_write(0x44, 4, 0xfee0_0000);
    r.bench.config_write(0x4c, 2, 0x41);
    r.bench.config_write(0x42, 2, 1);
    for port in [0, 4] {
        r.prepare(port, 0, &command(0xea, 0, 0), &[]);
        r.issue(port, 1);
        assert_eq!(r.bench.messages(), [(0xfee0_0000, 0x41)]);
    }
    assert!(!r.bench.irq(INTA));
    r.pset(0, IS, 1);
    r.set(8, 1);
    assert_eq!(r.bench.messages().len(), 1, "port 4 is left");
    r.pset(4, IS, 1);
    r.set(8, 0x10);
    assert_eq!(r.bench.messages(), []);
}

#[test]
fn a_saved_queue_goes_on_in_another_machine() {
    let mut r = rig();
    r.disk.hold();
    for tag in 0..3u8 {
        r.prepare(0, tag.into(), &queued(false, tag, u64::from(tag), 1), &[(DATA + 0x1000 * u64::from(tag), 512)]);
    }
    r.pset(0, SACT, 7);
    r.pset(0, CI, 7);
    r.disk.release();
    let saved = r.cell.save();
    let mut twin = rig();
    twin.cell.load(saved.clone()).unwrap();
    assert_eq!(twin.cell.save(), saved);
    assert_eq!(twin.pget(0, SACT), 7);
    twin.bench.advance(0);
    assert_eq!((twin.pget(0, SACT), twin.pget(0, IS)), (0, 8));
    let bench = Bench::new();
    let cell = bench.plug(&AHCI, &Params::default(), Backends::default());
    assert!(cell.load(saved).is_err(), "a machine with other drives is another machine");
}

#[test]
fn drives_that_share_a_controller_have_names_of_their_own() {
    let of_all = Params::new([("ser", "A"), ("product", "M"), ("nmrr", "7200")]);
    let usual = |n: usize| make(&of_all, n, false, 5, 0);
    assert_eq!((usual(0).serial, usual(0).model), (name("A", 20), name("M", 40)));
    assert_eq!((usual(2).serial, usual(2).model), (name("BRS05002", 20), name("M", 40)), "one serial number for one");
    let mut each = of_all.clone();
    [("2.ser", "C"), ("2.product", ""), ("2.nmrr", "1")].iter().for_each(|(key, value)| each.set(key, value));
    let third = make(&each, 2, false, 5, 0);
    assert_eq!((third.serial, third.rotation), (name("C", 20), 1));
    assert_eq!(third.model, name("bhyve-rs HARDDISK", 40), "what is said of the first is not of it");
}
