//! Controllers and drives against what every device owes the framework: whatever a guest does, they answer, they do not
//! panic, hang or grow; reset leads to the power-on state from anywhere, and once is as good as twice; what they save
//! loads into a fresh machine, which from there on behaves the same.
//!
//! The guest is a stream of commands that make sense, and of accesses that do not, from a fixed seed.
//! `BHYVE_RS_FUZZ_CASES` (default 50) says how many streams each machine gets.

use std::sync::Arc;

use devices::storage::piix_ide::{PIIX3, PIIX4};
use emu::backend::Disk;
use emu::bench::{Bench, BenchDisk, Place, Rng, fuzz_cases};
use emu::{Backends, DeviceCell, DeviceState, Model, Params, RamAddr, ResetKind, Saved, Unit};

/// Steps of a stream before its state is taken over, and after.
const BEFORE: usize = 600;
const AFTER: usize = 300;
/// Bytes of JSON that no state may exceed: answers on their way carry what a disk has read.
const LARGEST: usize = 1 << 20;
/// Where firmware puts the bus master.
const BMI: u16 = 0xc000;

/// What hangs on the channels.
#[derive(Clone, Copy)]
struct Subject {
    name: &'static str,
    model: &'static Model,
    units: [Unit; 4],
}

const SUBJECTS: [Subject; 3] = [
    Subject { name: "disk, disk; CD", model: &PIIX4, units: [Unit::Disk, Unit::Disk, Unit::Cd, Unit::None] },
    Subject {
        name: "CD, disk; a disk alone as slave",
        model: &PIIX3,
        units: [Unit::Cd, Unit::Disk, Unit::None, Unit::Disk],
    },
    Subject { name: "nothing", model: &PIIX3, units: [Unit::None; 4] },
];

struct Rig {
    bench: Bench,
    cell: Arc<DeviceCell>,
    disks: Vec<BenchDisk>,
}

impl Rig {
    fn new(subject: &Subject) -> Rig {
        let bench = Bench::new();
        let disks: Vec<BenchDisk> = (0..4).map(|n| BenchDisk::new(&bench, vec![n; 70_000])).collect();
        let backend = |n: usize| -> Option<Box<dyn Disk>> { Some(Box::new(disks[n].clone())) };
        let given = |n: &usize| subject.units[*n] != Unit::None;
        let given = (0..4).map(|n| backend(n).filter(|_| given(&n))).collect();
        let backends = Backends { disks: given, units: subject.units.to_vec(), ..Backends::default() };
        let cell = bench.plug(subject.model, &Params::default(), backends);
        let rig = Rig { bench, cell, disks };
        rig.reset(ResetKind::PowerOn);
        rig
    }

    /// A reset, and what firmware does.
    fn reset(&self, kind: ResetKind) {
        self.bench.machine.reset(kind);
        self.bench.config_write(0x40, 4, 0x8000_8000);
        self.bench.config_write(0x20, 4, BMI.into());
        self.bench.config_write(0x04, 2, 5);
    }

    /// Another machine that takes over all that this one is.
    fn twin(&self, subject: &Subject, saved: Saved) -> Rig {
        let twin = Rig::new(subject);
        twin.bench.machine.clock().set(self.bench.machine.clock().now());
        let mut memory = vec![0; Bench::RAM as usize];
        self.bench.machine.space.ram().read(RamAddr(0), &mut memory);
        twin.bench.machine.space.ram().write(RamAddr(0), &memory);
        for (mine, its) in self.disks.iter().zip(&twin.disks) {
            its.set_bytes(mine.bytes());
        }
        twin.cell.load(saved).expect("it loads what it saved");
        twin.observe();
        twin
    }

    /// What a guest notices without asking.
    fn observe(&self) -> [(bool, usize); 2] {
        [14, 15].map(|n| (self.bench.irq(n), self.bench.edges(n)))
    }

    fn memory(&self) -> Vec<u8> {
        let mut memory = vec![0; Bench::RAM as usize];
        self.bench.machine.space.ram().read(RamAddr(0), &mut memory);
        memory
    }
}

/// One thing that happens.
#[derive(Clone, Debug)]
enum Op {
    Out(u16, u8, u32),
    In(u16, u8),
    OutMany(u16, u8, usize),
    InMany(u16, u8, usize),
    /// Registers 2 to 7 of a channel.
    Command(u16, [u8; 6]),
    /// PACKET with these twelve bytes, by DMA or not, and the byte count.
    Packet(u16, [u8; 12], bool, u16),
    /// A table of descriptors, and a start.
    Dma(u16, Vec<(u32, u32)>, u8),
    Config(u16, u8, u32),
    Advance(u64),
    Broken(usize, bool),
    Reset(ResetKind),
}

const COMMANDS: &[u8] = &[
    0x00, 0x08, 0x10, 0x20, 0x24, 0x25, 0x27, 0x29, 0x30, 0x34, 0x35, 0x39, 0x40, 0x42, 0x70, 0x90, 0x91, 0xa1, 0xb0,
    0xc4, 0xc5, 0xc6, 0xc8, 0xc8, 0xca, 0xca, 0xe0, 0xe1, 0xe5, 0xe7, 0xea, 0xec, 0xef, 0xf8,
];
const PACKETS: &[u8] = &[
    0x00, 0x00, 0x03, 0x12, 0x15, 0x1a, 0x1b, 0x1e, 0x25, 0x28, 0x28, 0x28, 0x2b, 0x43, 0x46, 0x4a, 0x51, 0x55, 0x5a,
    0xa8, 0xbb, 0xbd, 0xbe,
];

impl Op {
    fn random(r: &mut Rng) -> Op {
        let base = r.pick(&[0x1f0, 0x170]);
        let port = match r.below(4) {
            0 => BMI + r.below(16) as u16,
            1 => base + 0x206,
            _ => base + r.below(8) as u16,
        };
        let value = r.pick(&[0, 1, 2, 4, 8, 9, 0x80, 0xa0, 0xb0, 0xe0, 0xff, r.0 as u32]);
        match r.below(40) {
            0..5 => Op::Out(port, r.pick(&[1, 1, 1, 2, 4]), value),
            5..9 => Op::In(port, r.pick(&[1, 1, 1, 2, 4])),
            9..13 => Op::OutMany(base, r.pick(&[1, 2, 4]), 1 + r.below(600)),
            13..18 => Op::InMany(base, r.pick(&[1, 2, 4]), 1 + r.below(600)),
            18..26 => {
                let device = r.pick(&[0xe0, 0xe0, 0xf0, 0xa0, 0xa3]);
                // Often where there is something.
                let low = r.below(160) as u8;
                let high = if r.below(8) == 0 { r.next() as u8 } else { 0 };
                let count = r.pick(&[0, 1, 2, 8, 17, 40]);
                Op::Command(base, [count, low, high, 0, device, r.pick(COMMANDS)])
            }
            26..31 => {
                let mut bytes: [u8; 12] = std::array::from_fn(|_| r.pick(&[0, 0, 0, 0, 1, 2, 8, 0x10, 0x3f, 0xff]));
                bytes[0] = r.pick(PACKETS);
                if r.below(2) == 0 {
                    bytes[2..5].fill(0);
                }
                Op::Packet(base, bytes, r.below(2) == 0, r.pick(&[0, 1, 2, 7, 2048, 5000, 0xffff]))
            }
            31..35 => {
                let entry = |r: &mut Rng, last: bool| {
                    let at = if r.below(12) == 0 { r.next() as u32 } else { r.below(0xe_0000) as u32 };
                    let len = r.pick(&[0, 2, 3, 100, 512, 2048, 4096, 0xfffe]);
                    (at, len | u32::from(last) << 31)
                };
                let n = 1 + r.below(5);
                let table = (0..n).map(|k| entry(r, k == n - 1 && !r.0.is_multiple_of(16))).collect();
                Op::Dma(BMI + r.pick(&[0, 8]), table, r.pick(&[1, 9, 9]))
            }
            35 => Op::Config(r.below(0x50) as u16, r.pick(&[1, 2, 4]), value),
            36 => Op::Broken(r.below(4), r.below(3) == 0),
            37 if r.below(20) == 0 => Op::Reset(r.pick(&[ResetKind::System, ResetKind::PowerOn])),
            _ => Op::Advance(r.pick(&[0, 0, 1000, 1_000_000])),
        }
    }

    /// Does it, and says what a guest saw of it.
    fn run(&self, rig: &mut Rig) -> Vec<u8> {
        let dma = rig.bench.dma();
        let bus = &mut rig.bench.bus;
        let mut seen = Vec::new();
        match self {
            Op::Out(port, width, value) => bus.pio_write(*port, *width, *value),
            Op::In(port, width) => seen.extend(bus.pio_read(*port, *width).to_le_bytes()),
            Op::OutMany(port, width, n) => {
                let data: Vec<u8> = (0..n * usize::from(*width)).map(|k| (k * 37 + n) as u8).collect();
                bus.pio_write_many(*port, *width, &data);
            }
            Op::InMany(port, width, n) => {
                seen.resize(n * usize::from(*width), 0);
                bus.pio_read_many(*port, *width, &mut seen);
            }
            Op::Command(base, registers) => {
                for (n, value) in registers.iter().enumerate() {
                    bus.pio_write(base + 2 + n as u16, 1, (*value).into());
                }
            }
            Op::Packet(base, bytes, by_dma, count) => {
                for (n, value) in
                    [(1, u32::from(*by_dma)), (4, u32::from(count & 255)), (5, u32::from(count >> 8)), (7, 0xa0)]
                {
                    bus.pio_write(base + n, 1, value);
                }
                bus.pio_write_many(*base, 2, bytes);
            }
            Op::Dma(base, table, start) => {
                for (n, (at, len)) in table.iter().enumerate() {
                    let to = 0xf_0000 + 8 * n as u64;
                    dma.write_u32(to, *at);
                    dma.write_u32(to + 4, *len);
                }
                bus.pio_write(*base, 1, 0);
                bus.pio_write(base + 4, 4, 0xf_0000);
                bus.pio_write(*base, 1, (*start).into());
            }
            Op::Config(at, width, value) => rig.bench.config_write(*at, *width, *value),
            Op::Advance(ns) => rig.bench.advance(*ns),
            Op::Broken(n, broken) => rig.disks[*n].set_broken(*broken),
            Op::Reset(kind) => rig.reset(*kind),
        }
        seen
    }
}

fn stream(subject: &Subject, case: u64) {
    let mut r = Rng::new(case + 1);
    let mut rig = Rig::new(subject);
    let mut place = Place(String::new());
    for step in 0..BEFORE {
        let op = Op::random(&mut r);
        place.0 = format!("{}, case {case}, step {step}: {op:x?}", subject.name);
        op.run(&mut rig);
    }
    rig.disks.iter().for_each(|d| d.set_broken(false));
    rig.observe();

    place.0 = format!("{}, case {case}, taken over", subject.name);
    let saved = rig.cell.save();
    let size = serde_json::to_string(&saved).unwrap().len();
    assert!(size < LARGEST, "the state has grown to {size} bytes");
    let mut twin = rig.twin(subject, saved.clone());
    assert_eq!(twin.cell.save(), saved, "saved, loaded into a fresh machine and saved again");
    for step in 0..AFTER {
        let op = Op::random(&mut r);
        place.0 = format!("{}, case {case}, step {step} after taking over: {op:x?}", subject.name);
        assert_eq!(op.run(&mut twin), op.run(&mut rig), "the twin gives the guest something else");
        assert_eq!(twin.observe(), rig.observe(), "something else comes out of the twin");
    }
    place.0 = format!("{}, case {case}, at the end", subject.name);
    assert_eq!(twin.cell.save(), rig.cell.save(), "the twin has gone another way");
    assert!(twin.memory() == rig.memory(), "the twin's memory is another");
    assert!(twin.disks.iter().zip(&rig.disks).all(|(a, b)| a.bytes() == b.bytes()), "the twin's disks are others");

    rig.reset(ResetKind::System);
    let once = rig.cell.save();
    rig.reset(ResetKind::System);
    assert_eq!(rig.cell.save(), once, "reset twice and reset once");
    rig.reset(ResetKind::PowerOn);
    let fresh = rig_at(subject, rig.bench.machine.clock().now());
    assert_eq!(rig.cell.save(), fresh.cell.save(), "power-on after use and when new");
    assert!([14, 15].iter().all(|n| !rig.bench.irq(*n)), "it interrupts after a reset");
}

fn rig_at(subject: &Subject, now: u64) -> Rig {
    let rig = Rig::new(subject);
    rig.bench.machine.clock().set(now);
    rig
}

fn fuzz(subject: &Subject) {
    (0..fuzz_cases()).for_each(|case| stream(subject, case));
}

#[test]
fn a_guest_does_not_harm_two_disks_and_a_cd() {
    fuzz(&SUBJECTS[0]);
}

#[test]
fn a_guest_does_not_harm_a_cd_beside_a_disk_and_a_slave_alone() {
    fuzz(&SUBJECTS[1]);
}

#[test]
fn a_guest_does_not_harm_empty_cables() {
    fuzz(&SUBJECTS[2]);
}
