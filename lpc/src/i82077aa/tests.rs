use emu::bench::{Bench, BenchDisk};
use emu::{Backends, DeviceCell, DeviceState};

use super::*;

const MOTORS: u8 = 0x30;
const BUFFER: u32 = 0x4_0000;

struct Rig {
    b: Bench,
    cell: Arc<DeviceCell>,
    disks: [BenchDisk; 2],
}

/// Bytes that say where they are.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n / 512 * 7 + n % 512) as u8).collect()
}

fn sector(lba: usize) -> Vec<u8> {
    pattern((lba + 1) * 512)[lba * 512..].to_vec()
}

impl Rig {
    /// Two 1.44 MB drives with media of these sizes, out of reset, recalibrated and at 500 kb/s.
    fn new(sizes: [usize; 2]) -> Rig {
        Rig::with(FloppyUnit { model: FloppyModel::D1440k, turbo: true }, sizes)
    }

    fn with(unit: FloppyUnit, sizes: [usize; 2]) -> Rig {
        let b = Bench::new();
        let dma = I8237::new(&b.machine);
        let disks = sizes.map(|n| BenchDisk::new(&b, pattern(n)));
        let backends = Backends {
            disks: disks.iter().map(|d| Some(Box::new(d.clone()) as Box<dyn emu::backend::Disk>)).collect(),
            ..Backends::default()
        };
        let create = |slot: &mut Slot| Ok(I82077aa::create(slot, dma, [Some(unit); 2]));
        let cell = b.machine.plug_with("fdc", None, backends, create).unwrap();
        b.machine.reset(ResetKind::PowerOn);
        let mut rig = Rig { b, cell, disks };
        rig.b.outb(0x3f2, MOTORS | 0x0c);
        rig.b.outb(0x3f7, 0);
        for n in 0..4 {
            assert_eq!(rig.ask(&[0x08]), [0xc0 | n, 0]);
        }
        rig.ask(&[0x03, 0xdf, 0x02]);
        for unit in [0, 1] {
            rig.seek(unit, 1);
            rig.ask(&[0x07, unit]);
            rig.wait();
            assert_eq!(rig.ask(&[0x08]), [0x20 | unit, 0]);
        }
        rig.b.edges(6);
        rig
    }

    fn standard() -> Rig {
        Rig::new([1440 << 10, 0])
    }

    fn wait(&self) {
        self.b.advance(10_000_000);
    }

    /// Gives a command, and takes the result if there is one at once.
    fn ask(&mut self, command: &[u8]) -> Vec<u8> {
        for byte in command {
            assert_eq!(self.b.inb(0x3f4) & 0xc0, MSR_RQM, "it does not take {command:x?}");
            self.b.outb(0x3f5, *byte);
        }
        self.result()
    }

    fn result(&mut self) -> Vec<u8> {
        let mut result = Vec::new();
        while self.b.inb(0x3f4) & 0xf0 == MSR_RQM | MSR_DIO | MSR_BUSY {
            result.push(self.b.inb(0x3f5));
        }
        result
    }

    /// Gives a command and waits for its end.
    fn run(&mut self, command: &[u8]) -> Vec<u8> {
        assert_eq!(self.ask(command), [0; 0]);
        self.wait();
        self.result()
    }

    /// A seek that is sensed.
    fn seek(&mut self, unit: u8, cylinder: u8) {
        self.ask(&[0x0f, unit, cylinder]);
        assert_eq!(self.b.inb(0x3f4), MSR_RQM | 1 << unit);
        self.wait();
        assert_eq!(self.ask(&[0x08]), [0x20 | unit, cylinder]);
    }

    /// Programs the DMA channel: 46 into memory, 4A out of it.
    fn dma(&mut self, mode: u8, bytes: usize) {
        let count = (bytes - 1) as u16;
        let writes = [
            (0x0a, 6),
            (0x0c, 0),
            (0x0b, mode),
            (0x04, BUFFER as u8),
            (0x04, (BUFFER >> 8) as u8),
            (0x81, (BUFFER >> 16) as u8),
            (0x05, count as u8),
            (0x05, (count >> 8) as u8),
            (0x0a, 2),
        ];
        for (port, value) in writes {
            self.b.outb(port, value);
        }
    }

    fn memory(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.b.dma().read(BUFFER.into(), &mut bytes);
        bytes
    }

    fn fill(&self, bytes: &[u8]) {
        self.b.dma().write(BUFFER.into(), bytes);
    }

    /// Reads by DMA from drive 0, which is at `cylinder`.
    fn read(&mut self, cylinder: u8, head: u8, sector: u8, bytes: usize) -> Vec<u8> {
        self.dma(0x46, bytes);
        self.run(&[0xe6, head << 2, cylinder, head, sector, 2, 18, 27, 0xff])
    }
}

#[test]
fn dma_reads_until_terminal_count_and_the_result_names_the_next_sector() {
    let mut r = Rig::standard();
    r.fill(&[0xaa; 2048]);
    assert_eq!(r.read(0, 0, 3, 1024), [0, 0, 0, 0, 0, 5, 2]);
    assert_eq!(r.memory(1025), [pattern(2048)[1024..].to_vec(), vec![0xaa]].concat());
    assert_eq!((r.b.edges(6), r.b.irq(6)), (1, false));
}

#[test]
fn a_multi_track_read_goes_on_at_the_other_head_and_ends_at_the_next_cylinder() {
    let mut r = Rig::standard();
    r.seek(0, 2);
    assert_eq!(
        r.read(2, 0, 1, 18 * 1024),
        [4, 0, 0, 3, 0, 1, 2],
        "the head it ended at, C, H and R of the next sector"
    );
    assert_eq!(r.memory(18 * 1024), pattern(1440 << 10)[72 * 512..108 * 512]);
    assert_eq!(r.read(2, 0, 18, 512), [4, 0, 0, 2, 1, 1, 2], "the next sector is the other head's first");
}

#[test]
fn without_terminal_count_the_end_of_the_cylinder_is_an_error() {
    let mut r = Rig::standard();
    r.dma(0x46, 4096);
    assert_eq!(r.run(&[0x46, 0, 0, 0, 17, 2, 18, 27, 0xff]), [0x40, 0x80, 0, 1, 0, 1, 2]);
    assert_eq!(r.memory(1024), pattern(1440 << 10)[16 * 512..18 * 512]);
    r.dma(0x46, 8192);
    assert_eq!(r.run(&[0x46, 0, 0, 0, 17, 2, 20, 27, 0xff]), [0x40, 4, 0, 0, 0, 19, 2], "there is no sector 19");
}

#[test]
fn what_is_not_on_the_track_is_not_found() {
    let mut r = Rig::standard();
    let mut bad = |c: u8, h: u8, s: u8, n: u8| {
        r.dma(0x46, 512);
        let result = r.run(&[0x46, 0, c, h, s, n, 18, 27, 0xff]);
        (result[0], result[1], result[2])
    };
    assert_eq!(bad(1, 0, 1, 2), (0x40, 4, 0x10), "wrong cylinder");
    assert_eq!(bad(0, 1, 1, 2), (0x40, 4, 0));
    assert_eq!(bad(0, 0, 19, 2), (0x40, 4, 0));
    assert_eq!(bad(0, 0, 0, 2), (0x40, 4, 0));
    assert_eq!(bad(0, 0, 1, 3), (0x40, 4, 0));
    assert_eq!(bad(0, 0, 1, 0xff), (0x40, 4, 0));
}

#[test]
fn no_address_mark_without_medium_motor_mfm_or_the_right_data_rate() {
    let mut r = Rig::standard();
    assert_eq!(r.run(&[0x4a, 1]), [0x41, 1, 0, 0, 0, 0, 0], "drive 1 is empty");
    assert_eq!(r.run(&[0x0a, 0])[..3], [0x40, 1, 0], "FM");
    r.b.outb(0x3f7, 2);
    assert_eq!(r.run(&[0x4a, 0])[..3], [0x40, 1, 0]);
    r.b.outb(0x3f4, 0);
    assert_eq!(r.run(&[0x4a, 0])[..3], [0, 0, 0], "DSR and CCR share the rate");
    r.b.outb(0x3f2, 0x2c);
    assert_eq!(r.run(&[0x4a, 0])[..3], [0x40, 1, 0], "motor 0 is off");
    assert_eq!(r.run(&[0x4a, 2])[..3], [0x42, 1, 0], "there is no drive 2");
}

#[test]
fn read_id_shows_the_sectors_as_they_pass() {
    let mut r = Rig::standard();
    r.seek(0, 5);
    let mut seen = std::collections::BTreeSet::new();
    for n in 0..100 {
        let id = r.run(&[0xea, 4]);
        assert_eq!((&id[..5], id[6]), (&[4, 0, 0, 5, 1][..], 2));
        seen.insert(id[5]);
        r.b.advance(n * 1_771);
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), (1..=18).collect::<Vec<_>>());
}

#[test]
fn dma_writes_reach_the_image_and_a_cut_sector_is_filled_with_zeros() {
    let mut r = Rig::standard();
    r.fill(&[0x5a; 1024]);
    r.dma(0x4a, 600);
    assert_eq!(r.run(&[0x45, 4, 0, 1, 2, 2, 18, 27, 0xff]), [4, 0, 0, 0, 1, 4, 2]);
    let expected = [vec![0x5a; 600], vec![0; 424]].concat();
    assert_eq!(r.disks[0].bytes()[19 * 512..21 * 512], expected);
    assert_eq!(r.disks[0].bytes()[21 * 512..], pattern(1440 << 10)[21 * 512..]);
}

#[test]
fn a_whole_cylinder_is_written_in_one_command() {
    let mut r = Rig::standard();
    r.seek(0, 79);
    let data: Vec<u8> = pattern(36 * 512).iter().map(|b| !b).collect();
    r.fill(&data);
    r.dma(0x4a, data.len());
    assert_eq!(r.run(&[0xc5, 0, 79, 0, 1, 2, 18, 27, 0xff])[..3], [4, 0, 0]);
    assert_eq!(r.disks[0].bytes()[79 * 36 * 512..], data);
}

#[test]
fn write_protection_and_host_errors_are_told_apart() {
    let mut r = Rig::standard();
    r.disks[0].set_broken(true);
    assert_eq!(r.read(0, 0, 1, 512)[..3], [0x40, 0x20, 0x20], "a sector that cannot be read has a bad CRC");
    r.dma(0x4a, 512);
    assert_eq!(r.run(&[0x45, 0, 0, 0, 1, 2, 18, 27, 0xff])[..3], [0x50, 0, 0]);
    r.disks[0].set_broken(false);
    r.disks[0].protect();
    assert_eq!(r.run(&[0x45, 0, 0, 0, 1, 2, 18, 27, 0xff])[..3], [0x40, 2, 0]);
    assert_eq!(r.run(&[0x4d, 0, 2, 18, 27, 0xf6])[..3], [0x40, 2, 0]);
    assert_eq!(r.ask(&[0x04, 0]), [0x78]);
    assert_eq!(r.disks[0].bytes(), pattern(1440 << 10));
    assert_eq!(r.read(0, 0, 1, 512)[..3], [0, 0, 0]);
}

#[test]
fn a_masked_channel_or_closed_gate_is_an_overrun() {
    let mut r = Rig::standard();
    r.dma(0x46, 512);
    r.b.outb(0x0a, 6);
    assert_eq!(r.run(&[0x46, 0, 0, 0, 1, 2, 18, 27, 0xff])[..3], [0x40, 0x10, 0]);
    assert_eq!(r.run(&[0x45, 0, 0, 0, 1, 2, 18, 27, 0xff])[..3], [0x40, 0x10, 0]);
    r.b.outb(0x0a, 2);
    r.b.outb(0x3f2, MOTORS | DOR_RESET);
    assert_eq!(r.run(&[0x45, 0, 0, 0, 1, 2, 18, 27, 0xff])[..3], [0x40, 0x10, 0]);
    assert_eq!(r.disks[0].bytes(), pattern(1440 << 10));
}

#[test]
fn programmed_io_interrupts_for_every_byte_and_ends_with_the_track() {
    let mut r = Rig::standard();
    r.ask(&[0x03, 0xdf, 0x03]);
    r.ask(&[0x46, 0, 0, 0, 17, 2, 18, 27, 0xff]);
    let mut data = Vec::new();
    while data.len() < 1024 {
        r.b.advance(250_000);
        assert_eq!((r.b.inb(0x3f4), r.b.irq(6), r.b.edges(6)), (0xf0, true, 1));
        data.push(r.b.inb(0x3f5));
    }
    r.wait();
    assert_eq!(data, pattern(1440 << 10)[16 * 512..18 * 512]);
    assert_eq!(r.result(), [0x40, 0x80, 0, 1, 0, 1, 2]);
}

#[test]
fn programmed_io_writes_by_the_fifo_and_a_lazy_processor_overruns() {
    let mut r = Rig::standard();
    r.ask(&[0x03, 0xdf, 0x03]);
    r.ask(&[0x13, 0, 0x07, 0]);
    r.ask(&[0x45, 0, 0, 0, 18, 2, 18, 27, 0xff]);
    r.wait();
    r.b.edges(6);
    for n in 0..512 {
        assert_eq!(r.b.inb(0x3f4), 0xb0);
        r.b.outb(0x3f5, n as u8 ^ 0xff);
    }
    assert_eq!(r.b.edges(6), 63, "eight bytes an interrupt");
    r.wait();
    assert_eq!(r.result()[..3], [0x40, 0x80, 0]);
    assert!(r.disks[0].bytes()[17 * 512..18 * 512].iter().enumerate().all(|(n, b)| *b == n as u8 ^ 0xff));
    r.ask(&[0x45, 0, 0, 0, 1, 2, 18, 27, 0xff]);
    r.wait();
    r.b.outb(0x3f5, 1);
    r.b.advance(2 * PATIENCE);
    assert_eq!(r.result()[..3], [0x40, 0x10, 0]);
    assert_eq!(r.disks[0].bytes()[..512], sector(0), "half a sector is none");
}

#[test]
fn formatting_fills_the_track_and_only_as_the_image_can_hold_it() {
    let mut r = Rig::standard();
    r.seek(0, 3);
    let ids = |c: u8, last: u8| (1..=last).flat_map(|s| [c, 1, s, 2]).collect::<Vec<u8>>();
    r.fill(&ids(3, 18));
    r.dma(0x4a, 72);
    assert_eq!(r.run(&[0x4d, 4, 2, 18, 0x6c, 0xf6])[..3], [4, 0, 0]);
    let track = 3 * 36 + 18;
    let mut expected = pattern(1440 << 10);
    expected[track * 512..(track + 18) * 512].fill(0xf6);
    assert_eq!(r.disks[0].bytes(), expected);
    for (ids, sectors) in [(ids(3, 9), 9), (ids(4, 18), 18)] {
        r.fill(&ids);
        r.dma(0x4a, ids.len());
        assert_eq!(r.run(&[0x4d, 4, 2, sectors, 0x6c, 0x11])[..3], [0x54, 0, 0]);
    }
    r.dma(0x4a, 8);
    assert_eq!(r.run(&[0x4d, 4, 2, 18, 0x6c, 0x11])[..3], [0x44, 0x10, 0], "too few identifiers");
    assert_eq!(r.disks[0].bytes(), expected);
}

#[test]
fn deleted_sectors_end_a_read_or_are_skipped() {
    let mut r = Rig::standard();
    r.fill(&[0x77; 512]);
    r.dma(0x4a, 512);
    assert_eq!(r.run(&[0x49, 0, 0, 0, 2, 2, 18, 27, 0xff])[..3], [0, 0, 0]);
    r.dma(0x46, 2048);
    assert_eq!(r.run(&[0x46, 0, 0, 0, 1, 2, 18, 27, 0xff]), [0, 0, 0x40, 0, 0, 3, 2], "it ends behind it");
    assert_eq!(r.memory(1024), [sector(0), vec![0x77; 512]].concat());
    assert_eq!(r.read(0, 0, 1, 1024), [0, 0, 0x40, 0, 0, 4, 2]);
    assert_eq!(r.memory(1024), [sector(0), sector(2)].concat(), "skipped");
    r.dma(0x46, 512);
    assert_eq!(r.run(&[0x4c, 0, 0, 0, 2, 2, 18, 27, 0xff])[..3], [0, 0, 0]);
    r.dma(0x4a, 512);
    r.run(&[0x45, 0, 0, 0, 2, 2, 18, 27, 0xff]);
    r.dma(0x46, 1024);
    assert_eq!(r.run(&[0x46, 0, 0, 0, 1, 2, 18, 27, 0xff])[..3], [0, 0, 0], "written as data it is data");
}

#[test]
fn verify_reads_without_moving_anything() {
    let mut r = Rig::standard();
    assert_eq!(r.run(&[0xd6, 0, 0, 0, 1, 2, 18, 27, 0xff])[..3], [4, 0, 0]);
    assert_eq!(r.run(&[0x56, 0x80, 0, 0, 5, 2, 18, 27, 4]), [0, 0, 0, 0, 0, 9, 2]);
    assert_eq!(r.run(&[0x56, 0x80, 0, 0, 5, 2, 18, 27, 20])[..3], [0x40, 0x80, 0]);
    assert_eq!(r.run(&[0x56, 0, 0, 0, 5, 2, 21, 27, 0xff])[..3], [0x40, 4, 0]);
    r.disks[0].set_broken(true);
    assert_eq!(r.run(&[0x56, 0, 0, 0, 1, 2, 1, 27, 0xff])[..3], [0x40, 0x20, 0x20]);
}

#[test]
fn scans_find_equal_lower_and_higher_sectors() {
    let mut r = Rig::standard();
    let mut wanted = sector(6);
    wanted[9] = 0xff;
    let mut host = vec![0xff; 4 * 512];
    host[3 * 512..].copy_from_slice(&wanted);
    for n in 0..3 {
        host[n * 512] = 0xee;
    }
    r.fill(&host);
    let mut scan = |op: u8, first: u8, step: u8| {
        r.dma(0x4a, 2048);
        let result = r.run(&[op, 0, 0, 0, first, 2, 18, 27, step]);
        (result[2], result[5])
    };
    assert_eq!(scan(0x51, 4, 1), (0x08, 8), "FF is any byte; it stops behind the hit");
    assert_eq!(scan(0x51, 1, 2), (0x08, 9), "every other sector");
    assert_eq!(scan(0x51, 5, 1), (0x04, 9), "terminal count before a hit");
    assert_eq!(scan(0x59, 4, 1), (0x00, 5), "lower than EE");
    assert_eq!(scan(0x5d, 4, 1), (0x08, 8), "none is higher before the one that is equal");
}

#[test]
fn a_drive_that_is_not_there_never_finds_track_0() {
    let mut r = Rig::standard();
    r.ask(&[0x07, 2]);
    r.wait();
    assert_eq!(r.ask(&[0x08]), [0x72, 0]);
    assert_eq!(r.ask(&[0x04, 2]), [0x2a]);
    assert_eq!(r.ask(&[0x04, 1]), [0x79], "no medium, no light at the write-protect sensor");
}

#[test]
fn seeks_overlap_and_each_is_sensed() {
    let mut r = Rig::standard();
    r.ask(&[0x0f, 0, 10]);
    r.ask(&[0x0f, 1, 20]);
    assert_eq!(r.b.inb(0x3f4), 0x83);
    r.wait();
    assert_eq!(r.ask(&[0x08]), [0x20, 10]);
    assert!(r.b.irq(6), "the other one");
    assert_eq!(r.ask(&[0x08]), [0x21, 20]);
    assert!(!r.b.irq(6));
    assert_eq!(r.ask(&[0x08]), [0x80], "nothing to sense");
    assert_eq!(r.ask(&[0xcf, 0, 3]), [0; 0]);
    r.wait();
    assert_eq!(r.ask(&[0x08]), [0x20, 13]);
    r.ask(&[0x8f, 0, 1]);
    r.wait();
    assert_eq!(r.ask(&[0x08]), [0x20, 12]);
    assert_eq!(r.run(&[0x4a, 0])[3], 12);
}

#[test]
fn an_implied_seek_needs_no_seek_command() {
    let mut r = Rig::standard();
    r.ask(&[0x13, 0, 0x60, 0]);
    assert_eq!(r.read(40, 1, 1, 512)[..3], [4, 0, 0]);
    assert_eq!(r.memory(512), sector(40 * 36 + 18));
    assert_eq!(r.ask(&[0x0e])[0], 40);
}

#[test]
fn registers_are_dumped_locked_and_reset() {
    let mut r = Rig::standard();
    assert_eq!(r.ask(&[0x10]), [0x90]);
    assert_eq!(r.ask(&[0x18]), [0x80], "PART ID is the 82078's");
    r.ask(&[0x13, 0, 0x57, 0x21]);
    r.ask(&[0x12, 0x8b]);
    assert_eq!(r.ask(&[0x94]), [0x10]);
    r.read(0, 0, 1, 512);
    assert_eq!(r.ask(&[0x0e]), [0, 0, 0, 0, 0xdf, 0x02, 18, 0x8b, 0x57, 0x21]);
    r.b.outb(0x3f4, 0x80);
    assert!(r.b.irq(6));
    assert_eq!(r.ask(&[0x0e])[7..], [0x88, 0x07, 0x21], "FIFO and precompensation were locked");
    assert_eq!(r.ask(&[0x14]), [0]);
    r.b.outb(0x3f4, 0x80);
    assert_eq!(r.ask(&[0x0e])[7..], [0x08, 0x20, 0]);
    r.ask(&[0x12, 0x03]);
    assert_eq!(r.ask(&[0x0e])[7], 0x0b, "without OW the drives' bits stay");
    assert_eq!(r.ask(&[0x08]), [0xc0, 0]);
}

#[test]
fn reset_stops_a_command_and_is_deaf_until_it_ends() {
    let mut r = Rig::standard();
    r.disks[0].hold();
    r.dma(0x46, 512);
    r.ask(&[0x46, 0, 0, 0, 1, 2, 18, 27, 0xff]);
    r.wait();
    assert_eq!(r.b.inb(0x3f4), MSR_BUSY);
    r.b.outb(0x3f2, MOTORS | DOR_GATE);
    assert_eq!(r.b.inb(0x3f4), 0);
    r.b.outb(0x3f5, 0x10);
    r.disks[0].release();
    r.b.outb(0x3f2, MOTORS | DOR_GATE | DOR_RESET);
    r.wait();
    assert_eq!((r.b.inb(0x3f4), r.b.edges(6)), (MSR_RQM, 1));
    assert_eq!(r.memory(512), [0; 512]);
    assert_eq!(r.ask(&[0x08]), [0xc0, 0]);
    assert!(!r.b.irq(6), "a driver that asks once has no interrupt left");
    r.seek(0, 4);
}

#[test]
fn the_change_line_stays_until_a_step_with_a_medium() {
    let mut r = Rig::standard();
    assert_eq!(r.b.inb(0x3f7), 0);
    r.disks[0].set_bytes(Vec::new());
    r.cell.event(Event::Medium(0));
    r.seek(0, 7);
    assert_eq!(r.b.inb(0x3f7), 0x80, "empty");
    assert_eq!(r.run(&[0x4a, 0])[..2], [0x40, 1]);
    r.disks[0].set_bytes(pattern(720 << 10));
    r.cell.event(Event::Medium(0));
    r.seek(0, 7);
    assert_eq!(r.b.inb(0x3f7), 0x80, "no step");
    r.b.outb(0x3f2, 0x2c);
    assert_eq!(r.b.inb(0x3f7), 0, "the motor selects the drive");
    r.b.outb(0x3f2, MOTORS | 0x0c);
    r.seek(0, 8);
    assert_eq!(r.b.inb(0x3f7), 0);
    r.b.outb(0x3f7, 2);
    assert_eq!(r.run(&[0x4a, 0])[..2], [0, 0], "the new one is of double density");
    r.b.outb(0x3f2, MOTORS | 0x0d);
    assert_eq!(r.b.inb(0x3f7), 0x80, "drive 1 is empty");
}

#[test]
fn a_wide_cylinder_is_two_steps_of_a_high_density_drive() {
    let mut r = Rig::with(FloppyUnit { model: FloppyModel::D1200k, turbo: true }, [360 << 10, 1200 << 10]);
    r.seek(0, 20);
    r.b.outb(0x3f7, 1);
    assert_eq!(r.run(&[0x4a, 0])[3], 10);
    r.dma(0x46, 512);
    assert_eq!(r.run(&[0x46, 0, 10, 0, 1, 2, 9, 27, 0xff])[..3], [0, 0, 0]);
    assert_eq!(r.memory(512), sector(180));
    r.seek(1, 20);
    r.b.outb(0x3f7, 0);
    assert_eq!(r.run(&[0x4a, 1])[3], 20);
}

#[test]
fn the_missing_end_of_an_image_cannot_be_read() {
    let mut r = Rig::new([1_474_000, 0]);
    r.seek(0, 79);
    assert_eq!(r.read(79, 1, 16, 1536), [0x44, 0x20, 0x20, 79, 1, 17, 2]);
    assert_eq!(r.memory(512), sector(79 * 36 + 18 + 15));
    r.dma(0x4a, 512);
    assert_eq!(r.run(&[0x45, 4, 79, 1, 18, 2, 18, 27, 0xff])[..3], [0x44, 0x20, 0x20]);
}

#[test]
fn a_drive_can_be_as_slow_as_a_real_one() {
    let mut r = Rig::with(FloppyUnit { model: FloppyModel::D1440k, turbo: false }, [1440 << 10, 0]);
    r.b.advance(1_000_000_000);
    r.result();
    r.ask(&[0x08]);
    r.ask(&[0x08]);
    r.ask(&[0x0f, 0, 41]);
    r.b.advance(119_000_000);
    assert_eq!(r.b.inb(0x3f4), 0x81, "40 or 41 steps of 3 ms");
    r.b.advance(10_000_000);
    assert_eq!(r.ask(&[0x08]), [0x20, 41]);
    r.dma(0x46, 18 * 512);
    r.ask(&[0x46, 0, 41, 0, 1, 2, 18, 27, 0xff]);
    r.b.advance(199_000_000);
    assert_eq!(r.b.inb(0x3f4), MSR_BUSY);
    r.b.advance(202_000_000);
    assert_eq!(r.result()[..3], [0, 0, 0], "two revolutions at most");
}

#[test]
fn a_command_under_way_goes_on_after_loading() {
    let mut r = Rig::standard();
    r.dma(0x46, 36 * 512);
    r.ask(&[0xc6, 0, 0, 0, 1, 2, 18, 27, 0xff]);
    r.b.advance(LEAST + 250_000);
    let (saved, dma) = (r.cell.save(), r.b.machine.parts()[0].save());
    let mut other = Rig::standard();
    other.b.machine.clock().set(r.b.machine.clock().now());
    other.b.machine.parts()[0].load(dma).unwrap();
    other.b.dma().write(BUFFER.into(), &r.memory(36 * 512));
    other.cell.load(saved.clone()).unwrap();
    assert_eq!(other.cell.save(), saved);
    for r in [&mut r, &mut other] {
        r.wait();
        assert_eq!(r.result(), [4, 0, 0, 1, 0, 1, 2]);
        assert_eq!(r.memory(36 * 512), pattern(36 * 512));
    }
}
