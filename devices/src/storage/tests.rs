use std::sync::Arc;

use emu::bench::{Bench, BenchDisk};
use emu::{Backends, DeviceCell, DeviceState, Event, Params, ResetKind, Unit};

use super::piix_ide::{PIIX3, PIIX4};

const IRQ14: u32 = 14;
const IRQ15: u32 = 15;
/// BAR 4, when the rig has programmed it.
const BMI: u16 = 0xc000;
const TABLE: u64 = 0x8000;

/// A PIIX4 with a disk as primary master and a CD-ROM drive as secondary master.
struct Rig {
    bench: Bench,
    cell: Arc<DeviceCell>,
    disk: BenchDisk,
    disc: BenchDisk,
}

/// Bytes that tell where they come from.
pub(super) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n as u32).wrapping_mul(0x9e37_79b1).rotate_left(9) as u8 ^ (n >> 9) as u8).collect()
}

fn rig() -> Rig {
    let bench = Bench::new();
    let disk = BenchDisk::new(&bench, pattern(3000 * 512));
    let disc = BenchDisk::new(&bench, pattern(100 * 2048));
    let disks: Vec<Option<Box<dyn emu::backend::Disk>>> =
        vec![Some(Box::new(disk.clone())), None, Some(Box::new(disc.clone())), None];
    let units = vec![Unit::Disk, Unit::None, Unit::Cd];
    let cell = bench.plug(&PIIX4, &Params::default(), Backends { disks, units, ..Backends::default() });
    let mut rig = Rig { bench, cell, disk, disc };
    rig.reset();
    rig
}

impl Rig {
    /// Power-on, and what firmware does.
    fn reset(&mut self) {
        self.bench.machine.reset(ResetKind::PowerOn);
        self.bench.config_write(0x40, 4, 0x8000_8000);
        self.bench.config_write(0x20, 4, BMI.into());
        self.bench.config_write(0x04, 2, 5);
    }

    fn out(&mut self, port: u16, value: u8) {
        self.bench.outb(port, value);
    }

    fn inp(&mut self, port: u16) -> u8 {
        self.bench.inb(port)
    }

    /// Registers 2 to 6 by LBA, and a command, to the primary master. What the disk answers is heard at once.
    fn lba(&mut self, command: u8, lba: u32, count: u8) {
        let bytes = lba.to_le_bytes();
        for (n, value) in [count, bytes[0], bytes[1], bytes[2], 0xe0 | bytes[3]].into_iter().enumerate() {
            self.out(0x1f2 + n as u16, value);
        }
        self.out(0x1f7, command);
        self.bench.advance(0);
    }

    /// REP INSW.
    fn take(&mut self, port: u16, len: usize) -> Vec<u8> {
        let mut buf = vec![0; len];
        self.bench.bus.pio_read_many(port, 2, &mut buf);
        self.bench.advance(0);
        buf
    }

    /// REP OUTSW.
    fn give(&mut self, port: u16, data: &[u8]) {
        self.bench.bus.pio_write_many(port, 2, data);
        self.bench.advance(0);
    }

    /// Writes a table of (address, count, last) and starts the bus master of a channel.
    fn start_dma(&mut self, channel: u16, to_memory: bool, table: &[(u32, u16, bool)]) {
        for (n, (address, count, last)) in table.iter().enumerate() {
            let at = TABLE + 8 * n as u64;
            self.bench.dma().write_u32(at, *address);
            self.bench.dma().write_u32(at + 4, u32::from(*count) | u32::from(*last) << 31);
        }
        let base = BMI + 8 * channel;
        self.out(base + 2, 0x06);
        self.bench.bus.pio_write(base + 4, 4, TABLE as u32);
        self.out(base, u8::from(to_memory) << 3 | 1);
        self.bench.advance(0);
    }

    fn memory(&self, at: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0; len];
        self.bench.dma().read(at, &mut buf);
        buf
    }

    /// PACKET to the secondary master: by DMA or in blocks of up to `limit` bytes.
    fn packet(&mut self, command: &[u8], limit: u16, dma: bool) {
        self.out(0x176, 0xa0);
        self.out(0x171, dma.into());
        self.out(0x174, limit as u8);
        self.out(0x175, (limit >> 8) as u8);
        self.out(0x177, 0xa0);
        assert_eq!((self.inp(0x177) & 0x89, self.inp(0x172) & 3), (0x08, 1), "it asks for the packet");
        let mut bytes = command.to_vec();
        bytes.resize(12, 0);
        self.give(0x170, &bytes);
    }

    /// All that a packet command answers by PIO, and its sense key.
    fn answer(&mut self, command: &[u8], limit: u16) -> (Vec<u8>, u8) {
        self.packet(command, limit, false);
        let mut all = Vec::new();
        loop {
            assert!(self.bench.irq(IRQ15), "each block and the end interrupt");
            let status = self.inp(0x177);
            let len = u16::from_le_bytes([self.inp(0x174), self.inp(0x175)]);
            if status & 8 == 0 {
                assert_eq!(self.inp(0x172) & 3, 3);
                return (all, self.inp(0x171) >> 4);
            }
            assert_eq!(self.inp(0x172) & 3, 2);
            assert!(len <= limit, "{len} bytes in a block of {limit}");
            let even = len.next_multiple_of(2).into();
            let mut block = self.take(0x170, even);
            block.truncate(len.into());
            all.extend(block);
        }
    }

    fn sense(&mut self) -> [u8; 3] {
        let (s, _) = self.answer(&[3, 0, 0, 0, 18], 512);
        [s[2], s[12], s[13]]
    }

    /// Until nothing is left to tell.
    fn ready_disc(&mut self) {
        assert_eq!(self.answer(&[0], 512).1, 6);
    }
}

fn word(data: &[u8], n: usize) -> u16 {
    u16::from_le_bytes([data[2 * n], data[2 * n + 1]])
}

#[test]
fn after_every_kind_of_reset_the_registers_tell_what_each_drive_is() {
    let mut r = rig();
    for reset in 0..3 {
        match reset {
            0 => {}
            1 => [0x3f6, 0x376].into_iter().for_each(|p| {
                r.out(p, 4);
                assert_eq!(r.inp(p) & 0x80, 0x80, "busy while SRST is set");
                r.out(p, 0);
            }),
            _ => [0x1f7, 0x177].into_iter().for_each(|p| r.out(p, 0x90)),
        }
        let disk: Vec<u8> = (0x1f1..0x1f8).map(|p| r.inp(p)).collect();
        assert_eq!(disk, [1, 1, 1, 0, 0, 0xa0, 0x50]);
        let cd: Vec<u8> = (0x171..0x178).map(|p| r.inp(p)).collect();
        assert_eq!(cd, [1, 1, 1, 0x14, 0xeb, 0xa0, 0x00]);
        assert_eq!((r.bench.edges(IRQ14), r.bench.edges(IRQ15)), if reset == 2 { (1, 1) } else { (0, 0) });
    }
}

#[test]
fn nobody_answers_for_a_missing_master_and_the_master_for_a_missing_slave() {
    let mut r = rig();
    r.out(0x1f6, 0xb0);
    r.out(0x1f7, 0xec);
    assert_eq!((0x1f1..0x1f8).map(|p| r.inp(p)).collect::<Vec<_>>(), [0; 7]);
    assert_eq!(r.inp(0x3f6), 0);
    assert_eq!(r.bench.edges(IRQ14), 0);
    r.out(0x1f7, 0x90);
    assert_eq!(r.inp(0x1f7), 0x50, "the diagnosis selects device 0");
    let bench = Bench::new();
    bench.plug(&PIIX3, &Params::default(), Backends::default());
    let mut r = Rig { disk: BenchDisk::new(&bench, vec![]), disc: r.disc, cell: r.cell, bench };
    r.reset();
    r.out(0x1f2, 0x55);
    assert_eq!((0x1f1..0x1f8).map(|p| r.inp(p)).collect::<Vec<_>>(), [0x7f; 7]);
}

#[test]
fn identify_tells_size_geometry_modes_and_name() {
    let mut r = rig();
    r.lba(0xec, 0, 0);
    assert_eq!((r.bench.edges(IRQ14), r.inp(0x1f7)), (1, 0x58));
    assert!(!r.bench.irq(IRQ14), "reading the status takes the interrupt back");
    let id = r.take(0x1f0, 512);
    assert_eq!(r.inp(0x1f7), 0x50);
    assert_eq!([1, 3, 6].map(|n| word(&id, n)), [2, 16, 63]);
    assert_eq!((word(&id, 60), word(&id, 100)), (3000, 3000));
    assert_eq!(word(&id, 47) & 0xff, 16);
    let name: Vec<u8> = id[54..94].chunks(2).flat_map(|c| [c[1], c[0]]).collect();
    assert_eq!(String::from_utf8_lossy(&name).trim(), "bhyve-rs HARDDISK");
    assert_eq!(id.iter().fold(0u8, |a, b| a.wrapping_add(*b)), 0, "the checksum");
    r.out(0x1f1, 3);
    r.lba(0xef, 0, 0x21);
    r.lba(0xec, 0, 0);
    let id = r.take(0x1f0, 512);
    assert_eq!((word(&id, 63), word(&id, 88) >> 8), (0x0207, 0), "multiword DMA 1 is chosen");
}

#[test]
fn each_sector_of_a_pio_read_is_announced_and_comes_from_its_place() {
    let mut r = rig();
    r.lba(0x20, 100, 40);
    for n in 0..40 {
        assert_eq!(r.bench.edges(IRQ14), 1, "sector {n}");
        assert_eq!(r.inp(0x1f7), 0x58);
        assert_eq!(r.take(0x1f0, 512), pattern(3000 * 512)[(100 + n) * 512..][..512]);
    }
    assert_eq!((r.bench.edges(IRQ14), r.inp(0x1f7)), (0, 0x50), "the last sector's interrupt was its announcement");
    r.lba(0x20, 7, 1);
    let bytes: Vec<u8> = (0..512).map(|_| r.inp(0x1f0)).collect();
    assert_eq!(bytes, pattern(3000 * 512)[7 * 512..][..512], "byte by byte");
}

#[test]
fn blocks_of_a_multiple_write_reach_the_disk_before_their_interrupts() {
    let mut r = rig();
    r.lba(0xc6, 0, 8);
    assert_eq!(r.bench.edges(IRQ14), 1);
    let data: Vec<u8> = pattern(20 * 512).iter().map(|b| !b).collect();
    r.lba(0xc5, 50, 20);
    assert_eq!((r.bench.edges(IRQ14), r.inp(0x1f7)), (0, 0x58), "the first block is asked for without one");
    for (n, block) in data.chunks(8 * 512).enumerate() {
        r.give(0x1f0, block);
        assert_eq!(r.bench.edges(IRQ14), 1);
        assert_eq!(r.disk.bytes()[50 * 512 + n * 4096..][..block.len()], *block);
        r.inp(0x1f7);
    }
    assert_eq!(r.inp(0x1f7), 0x50);
    r.lba(0xc6, 0, 3);
    assert_eq!((r.inp(0x1f7), r.inp(0x1f1)), (0x51, 4), "blocks are powers of two");
}

#[test]
fn geometry_is_what_initialize_device_parameters_says() {
    let mut r = rig();
    for (port, value) in [(0x1f2, 17), (0x1f6, 0xa3), (0x1f7, 0x91)] {
        r.out(port, value);
    }
    // Cylinder 3, head 2, sector 5 of 4 heads and 17 sectors.
    for (port, value) in [(0x1f2, 1), (0x1f3, 5), (0x1f4, 3), (0x1f5, 0), (0x1f6, 0xa2), (0x1f7, 0x20)] {
        r.out(port, value);
    }
    r.bench.advance(0);
    let lba = (3 * 4 + 2) * 17 + 4;
    assert_eq!(r.take(0x1f0, 512), pattern(3000 * 512)[lba * 512..][..512]);
    for (sector, head) in [(0, 0), (18, 0), (1, 4)] {
        for (port, value) in [(0x1f2, 1), (0x1f3, sector), (0x1f6, 0xa0 | head), (0x1f7, 0x20)] {
            r.out(port, value);
        }
        assert_eq!((r.inp(0x1f7), r.inp(0x1f1)), (0x51, 0x10), "sector {sector}, head {head}");
    }
}

#[test]
fn sectors_past_the_end_are_not_found_and_none_is_moved() {
    let mut r = rig();
    r.lba(0x20, 2999, 2);
    assert_eq!((r.inp(0x1f7), r.inp(0x1f1)), (0x51, 0x10));
    assert_eq!([0x1f3, 0x1f4].map(|p| r.inp(p)), [0xb8, 0x0b], "sector 3000 is the first that is missing");
    assert_eq!(r.take(0x1f0, 2), [0, 0]);
    // READ SECTORS EXT of sector 2^40, whose low 32 bits are those of sector 0.
    for (port, values) in [(0x1f2, [0, 1]), (0x1f3, [0, 0]), (0x1f4, [0, 0]), (0x1f5, [1, 0])] {
        values.into_iter().for_each(|v| r.out(port, v));
    }
    r.out(0x1f6, 0x40);
    r.out(0x3f6, 0x80);
    assert_eq!((r.inp(0x1f5), r.inp(0x1f2)), (1, 0), "HOB shows the bytes before");
    r.out(0x3f6, 0);
    r.out(0x1f7, 0x24);
    assert_eq!((r.inp(0x1f7), r.inp(0x1f1)), (0x51, 0x10));
    r.lba(0xf8, 0, 0);
    assert_eq!([0x1f3, 0x1f4, 0x1f5].map(|p| r.inp(p)), [0xb7, 0x0b, 0], "the native maximum");
}

#[test]
fn what_disks_do_not_know_is_aborted() {
    let mut r = rig();
    for command in [0x00, 0x08, 0xa0, 0xa1, 0xb1, 0xc7, 0xf1, 0xff] {
        r.lba(command, 0, 1);
        assert_eq!((r.inp(0x1f7), r.inp(0x1f1)), (0x51, 0x04), "command {command:x}");
    }
    r.disk.protect();
    r.lba(0x30, 0, 1);
    assert_eq!((r.inp(0x1f7), r.inp(0x1f1)), (0x51, 0x04), "a write to a disk that takes none");
}

#[test]
fn nien_keeps_the_interrupt_back_until_it_is_cleared() {
    let mut r = rig();
    r.out(0x3f6, 2);
    r.lba(0xe7, 0, 0);
    assert_eq!((r.bench.irq(IRQ14), r.disk.flushes()), (false, 1));
    r.out(0x3f6, 0);
    assert!(r.bench.irq(IRQ14));
}

#[test]
fn dma_goes_where_the_table_says() {
    let mut r = rig();
    // Four sectors: the second region goes over a 64 KiB boundary, as OVMF's do, the third is longer than what is left.
    r.lba(0xc8, 10, 4);
    assert_eq!((r.inp(0x1f7) & 8, r.bench.edges(IRQ14)), (8, 0));
    r.start_dma(0, true, &[(0x2_0000, 512, false), (0x3_ff00, 512, false), (0x5_0001, 1025, true)]);
    assert_eq!((r.bench.edges(IRQ14), r.inp(BMI + 2)), (1, 4), "interrupt, and no longer active");
    let all = pattern(3000 * 512)[10 * 512..][..2048].to_vec();
    assert_eq!(r.memory(0x2_0000, 512), all[..512]);
    assert_eq!(r.memory(0x3_ff00, 512), all[512..1024]);
    assert_eq!(r.memory(0x5_0000, 1024), all[1024..]);
    r.out(BMI, 0);
    // And back, from a table that is longer than the command.
    r.lba(0xca, 500, 2);
    r.start_dma(0, false, &[(0x2_0000, 512, false), (0x5_0000, 0, true)]);
    assert_eq!((r.bench.edges(IRQ14), r.inp(BMI + 2)), (1, 5), "still active");
    assert_eq!(r.disk.bytes()[500 * 512..][..1024], [&all[..512], &all[1024..1536]].concat());
    r.out(BMI, 0);
    assert_eq!(r.inp(BMI + 2), 4);
    r.out(BMI + 2, 4);
    assert_eq!(r.inp(BMI + 2), 0);
}

#[test]
fn a_table_that_is_too_short_ends_without_an_interrupt_and_a_second_one_goes_on() {
    let mut r = rig();
    r.lba(0xc8, 10, 4);
    r.start_dma(0, true, &[(0x2_0000, 1024, true)]);
    assert_eq!((r.bench.edges(IRQ14), r.inp(BMI + 2)), (0, 0));
    assert_eq!(r.memory(0x2_0000, 1024), pattern(3000 * 512)[10 * 512..][..1024]);
    r.out(BMI, 0);
    r.start_dma(0, true, &[(0x3_0000, 1024, true)]);
    assert_eq!((r.bench.edges(IRQ14), r.inp(BMI + 2)), (1, 4));
    assert_eq!(r.memory(0x3_0000, 1024), pattern(3000 * 512)[12 * 512..][..1024]);
}

#[test]
fn a_region_that_is_no_memory_is_an_error_and_moves_nothing() {
    let mut r = rig();
    r.lba(0xc8, 0, 2);
    r.start_dma(0, true, &[(0x2_0000, 512, false), (0xf000_0000, 512, true)]);
    assert_eq!((r.bench.edges(IRQ14), r.inp(BMI + 2)), (0, 2));
    assert_eq!(r.memory(0x2_0000, 512), [0; 512]);
    // A table that never ends, of regions of two bytes.
    r.out(BMI, 0);
    for n in 0..8192 {
        r.bench.dma().write_u32(0x1_0000 + 8 * n, 0x2_0000);
        r.bench.dma().write_u32(0x1_0004 + 8 * n, 2);
    }
    r.lba(0xc8, 0, 0);
    r.out(BMI + 2, 2);
    r.bench.bus.pio_write(BMI + 4, 4, 0x1_0000);
    r.out(BMI, 9);
    assert_eq!(r.inp(BMI + 2), 2);
}

#[test]
fn a_bus_master_in_the_wrong_direction_waits() {
    let mut r = rig();
    r.lba(0xc8, 0, 1);
    r.start_dma(0, false, &[(0x2_0000, 512, true)]);
    assert_eq!((r.bench.edges(IRQ14), r.inp(BMI + 2)), (0, 1));
    assert_eq!(r.disk.bytes(), pattern(3000 * 512));
}

#[test]
fn stopping_the_bus_master_or_a_reset_takes_back_what_the_disk_has_not_done() {
    let mut r = rig();
    for reset in [false, true] {
        r.disk.hold();
        r.lba(0xc8, 3, 1);
        r.start_dma(0, true, &[(0x2_0000, 512, true)]);
        assert_eq!((r.inp(0x3f6) & 0x80, r.inp(BMI + 2)), (0x80, 1));
        if reset {
            r.out(0x3f6, 4);
            r.out(0x3f6, 0);
        }
        r.out(BMI, 0);
        r.disk.release();
        r.bench.advance(0);
        assert_eq!((r.bench.edges(IRQ14), r.inp(BMI + 2)), (0, 0));
        assert_eq!(r.memory(0x2_0000, 512), [0; 512]);
        assert_eq!(r.inp(0x3f6), if reset { 0x50 } else { 0x58 });
    }
    r.lba(0x20, 3, 1);
    assert_eq!(r.take(0x1f0, 512), pattern(3000 * 512)[3 * 512..][..512]);
}

#[test]
fn a_disk_that_fails_is_an_error_of_the_device() {
    let mut r = rig();
    r.disk.set_broken(true);
    r.lba(0x20, 5, 1);
    assert_eq!((r.bench.edges(IRQ14), r.inp(0x1f7), r.inp(0x1f1), r.inp(0x1f3)), (1, 0x51, 0x40, 5));
    r.lba(0xc8, 5, 1);
    r.start_dma(0, true, &[(0x2_0000, 512, true)]);
    assert_eq!((r.bench.edges(IRQ14), r.inp(0x1f7), r.inp(0x1f1)), (1, 0x51, 0x40));
    r.lba(0xe7, 0, 0);
    assert_eq!((r.inp(0x1f7), r.inp(0x1f1)), (0x51, 0x04));
    r.disk.set_broken(false);
    r.lba(0x20, 7, 4);
    r.disk.set_broken(true);
    r.lba(0xe7, 9, 0);
    assert_eq!((r.inp(0x1f7), r.inp(0x1f1), r.inp(0x1f3)), (0x51, 0x04, 9), "not the read that was given up");
    r.disk.set_broken(false);
    r.lba(0x40, 0, 0);
    assert_eq!((r.inp(0x1f7), r.inp(0x1f1)), (0x50, 0), "all is well again, says VERIFY");
}

#[test]
fn without_the_write_cache_a_write_is_flushed_before_it_is_done() {
    let mut r = rig();
    r.lba(0x30, 0, 1);
    r.give(0x1f0, &[0; 512]);
    assert_eq!(r.disk.flushes(), 0);
    r.out(0x1f1, 0x82);
    r.lba(0xef, 0, 0);
    assert_eq!(r.disk.flushes(), 1);
    r.lba(0x30, 0, 1);
    r.give(0x1f0, &[0; 512]);
    assert_eq!((r.disk.flushes(), r.inp(0x1f7)), (1, 0x50));
}

#[test]
fn channels_answer_while_idetim_and_the_command_register_let_them() {
    let mut r = rig();
    r.bench.config_write(0x42, 2, 0);
    assert_eq!((r.inp(0x1f7), r.inp(0x177)), (0x50, 0xff));
    r.bench.config_write(0x04, 2, 0);
    assert_eq!((r.inp(0x1f7), r.inp(0x3f6)), (0xff, 0xff));
}

#[test]
fn a_saved_transfer_goes_on_in_another_machine() {
    let mut r = rig();
    r.lba(0xc4, 100, 32);
    r.take(0x1f0, 3000);
    let saved = r.cell.save();
    let mut twin = rig();
    twin.cell.load(saved.clone()).unwrap();
    assert_eq!(twin.cell.save(), saved);
    let rest = 16 * 512 - 3000;
    assert_eq!(twin.take(0x1f0, rest), pattern(3000 * 512)[100 * 512 + 3000..][..rest]);
    assert_eq!(twin.take(0x1f0, 8192), pattern(3000 * 512)[116 * 512..][..8192]);
    assert_eq!(twin.inp(0x1f7), 0x50);
    // A machine with other drives is another machine.
    let bench = Bench::new();
    let cell = bench.plug(&PIIX4, &Params::default(), Backends::default());
    assert!(cell.load(saved).is_err());
}

#[test]
fn a_cd_tells_of_its_power_on_once_and_then_reads() {
    let mut r = rig();
    assert_eq!(r.answer(&[0], 512).1, 6);
    assert_eq!(r.sense(), [6, 0x29, 0]);
    assert_eq!((r.answer(&[0], 512).1, r.sense()), (0, [0, 0, 0]));
    assert_eq!(r.answer(&[0x25], 512).0, [0, 0, 0, 99, 0, 0, 8, 0]);
    // READ (10) of 20 sectors in blocks of 3000 bytes.
    let read = [0x28, 0, 0, 0, 0, 7, 0, 0, 20];
    assert_eq!(r.answer(&read, 3000), (pattern(100 * 2048)[7 * 2048..][..20 * 2048].to_vec(), 0));
    assert_eq!(r.answer(&[0x28, 0, 0, 0, 0, 99, 0, 0, 2], 2048), (vec![], 5));
    assert_eq!(r.sense(), [5, 0x21, 0]);
    assert_eq!(r.answer(&[0x2a], 2048), (vec![], 5));
    assert_eq!(r.sense(), [5, 0x20, 0], "it writes nothing");
}

#[test]
fn a_cd_reads_and_answers_by_dma() {
    let mut r = rig();
    r.ready_disc();
    r.bench.edges(IRQ15);
    r.packet(&[0xa8, 0, 0, 0, 0, 3, 0, 0, 0, 2], 0, true);
    assert_eq!(r.bench.edges(IRQ15), 0);
    r.start_dma(1, true, &[(0x2_0000, 4096, true)]);
    assert_eq!((r.bench.edges(IRQ15), r.inp(BMI + 10), r.inp(0x172) & 3), (1, 4, 3));
    assert_eq!(r.memory(0x2_0000, 4096), pattern(100 * 2048)[3 * 2048..][..4096]);
    r.out(BMI + 8, 0);
    r.packet(&[0x12, 0, 0, 0, 36], 0, true);
    r.start_dma(1, true, &[(0x3_0000, 20, false), (0x3_1000, 100, true)]);
    assert_eq!((r.bench.edges(IRQ15), r.inp(0x177)), (1, 0x40));
    assert_eq!(r.memory(0x3_0000, 1), [5]);
    assert_eq!(r.memory(0x3_1000, 2), *b"OM");
}

#[test]
fn the_tray_can_be_locked_and_opened_and_a_new_disc_is_told_of() {
    let mut r = rig();
    r.ready_disc();
    r.answer(&[0x1e, 0, 0, 0, 1], 512);
    assert_eq!(r.answer(&[0x1b, 0, 0, 0, 2], 512).1, 5);
    assert_eq!(r.sense(), [5, 0x53, 2]);
    r.answer(&[0x1e, 0, 0, 0, 0], 512);
    assert_eq!(r.answer(&[0x1b, 0, 0, 0, 2], 512).1, 0);
    assert_eq!((r.answer(&[0], 512).1, r.sense()), (2, [2, 0x3a, 2]));
    assert_eq!(r.answer(&[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8], 512).0[4..6], [3, 1], "removed, open");
    assert_eq!(r.answer(&[0x1b, 0, 0, 0, 3], 512).1, 0);
    assert_eq!(r.answer(&[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8], 512).0[4..6], [2, 2], "new, there");
    assert_eq!((r.answer(&[0], 512).1, r.sense()), (6, [6, 0x28, 0]));
    // From outside: nothing in it, then another disc.
    r.disc.set_bytes(vec![]);
    r.cell.event(Event::Medium(2));
    assert_eq!((r.answer(&[0], 512).1, r.sense()), (2, [2, 0x3a, 0]));
    assert_eq!(r.answer(&[0x28, 0, 0, 0, 0, 0, 0, 0, 1], 2048).1, 2);
    r.disc.set_bytes(vec![0x55; 5 * 2048]);
    r.cell.event(Event::Medium(2));
    assert_eq!((r.answer(&[0], 512).1, r.sense()), (6, [6, 0x28, 0]));
    assert_eq!(r.answer(&[0x25], 512).0[..4], [0, 0, 0, 4]);
}

#[test]
fn a_cd_describes_itself_and_its_disc() {
    let mut r = rig();
    r.ready_disc();
    r.out(0x177, 0xec);
    assert_eq!(
        [0x171, 0x174, 0x175].map(|p| r.inp(p)),
        [4, 0x14, 0xeb],
        "IDENTIFY DEVICE is refused with the signature"
    );
    r.out(0x177, 0xa1);
    let id = r.take(0x170, 512);
    assert_eq!((word(&id, 0), word(&id, 82)), (0x85c0, 0x4218));
    let toc = r.answer(&[0x43, 2, 0, 0, 0, 0, 0, 0, 100], 512).0;
    assert_eq!(toc[..4], [0, 18, 1, 1]);
    assert_eq!(toc[8..12], [0, 0, 2, 0], "track 1 starts after two seconds");
    assert_eq!(toc[14], 0xaa);
    assert_eq!(toc[16..20], [0, 0, 3, 25], "100 frames later");
    let page = r.answer(&[0x5a, 0, 0x2a, 0, 0, 0, 0, 0, 100], 512).0;
    assert_eq!((usize::from(page[1]) + 2, page[8], page.len()), (28, 0x2a, 28));
    assert_eq!(r.answer(&[0x5a, 0, 0xea, 0, 0, 0, 0, 0, 100], 512).1, 5, "no saved pages");
    let features = r.answer(&[0x46, 0, 0, 0, 0, 0, 0, 1, 0], 512).0;
    assert_eq!(usize::from(features[3]) + 4, features.len());
    assert_eq!(features[7], 8, "a CD-ROM");
}
