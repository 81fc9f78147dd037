//! Every model against what a device owes the framework: whatever a guest does, it answers, it does not panic, hang or
//! grow; reset leads to the power-on state from anywhere, and once is as good as twice; what it saves loads into a
//! fresh machine, which from there on behaves the same.
//!
//! The guest is a stream of accesses that make no sense, and for the models that have one in `GUESTS` of commands that
//! do, from a fixed seed. `BHYVE_RS_FUZZ_CASES` (default 50) says how many streams each machine gets.

use std::fmt::Debug;
use std::sync::{Arc, Weak};

use devices::MODELS;
use emu::backend::{Capture, Chardev, Disk, Frame, Listener, Net, Playback, Share};
use emu::bench::{Bench, BenchDisk, Place, Rng, fuzz_cases};
use emu::{
    Backends, BarKind, Class, DeviceCell, DeviceState, Event, Model, Params, RamAddr, ResetKind, Saved, Target, Ticket,
    Unit,
};
use serde_json::Value;

mod ahci;
mod dec21140;
mod display;
mod hda;
mod ide;
mod nvme;
mod virtio;

/// Steps of a stream before its state is taken over, and after.
const BEFORE: usize = 600;
const AFTER: usize = 300;
/// Bytes of JSON that no state may exceed: answers on their way carry what a disk has read.
const LARGEST: usize = 2 << 20;
/// Bytes of a disk.
const DISK: usize = 70_000;
/// Where firmware puts BARs.
const PORTS: u64 = 0xc000;
const MEMORY: u64 = 0xe000_0000;

/// Guests that know a model.
const GUESTS: &[(&str, Guest)] = &[
    ("piix3-ide", ide::guest),
    ("piix4-ide", ide::guest),
    ("ahci", ahci::guest),
    ("ahci-hd", ahci::guest),
    ("ahci-cd", ahci::guest),
    ("vga", display::guest),
    ("fbuf", display::guest),
    ("virtio-blk", virtio::guest),
    ("virtio-net", virtio::guest),
    ("nvme", nvme::guest),
    ("dec21140", dec21140::guest),
    ("dec21143", dec21140::guest),
    ("virtio-rnd", virtio::guest),
    ("virtio-console", virtio::guest),
    ("virtio-9p", virtio::guest),
    ("virtio-scsi", virtio::scsi),
    ("virtio-input", virtio::guest),
    ("hda", hda::guest),
];

type Guest = fn(&mut Rng) -> Vec<Op>;

/// A wire that leads nowhere.
struct Wire;

impl Net for Wire {
    fn send(&mut self, frame: &[u8]) {
        assert!(frame.len() <= 1 << 16);
    }
    fn attach(&mut self, _: Weak<dyn Listener>) {}
    fn want(&mut self, _: bool) {}
}

/// A line that leads nowhere.
struct Line;

impl Chardev for Line {
    fn write(&mut self, data: &[u8]) -> usize {
        data.len() / 2
    }
    fn attach(&mut self, _: Weak<DeviceCell>, _: usize) {}
    fn want(&mut self, bytes: usize) {
        assert!(bytes <= 4096);
    }
}

/// Ears that hear the same all the time, and a mouth.
struct Hum;

impl Playback for Hum {
    fn open(&mut self, rate: u32) {
        assert!((5000..=192_000).contains(&rate));
    }
    fn write(&mut self, frames: &[Frame]) {
        assert!(frames.len() <= 96_000);
    }
    fn close(&mut self) {}
}

impl Capture for Hum {
    fn open(&mut self, _: u32) {}
    fn read(&mut self, frames: &mut [Frame]) {
        assert!(frames.len() <= 96_000);
        frames.fill([0x1234, -0x1234]);
    }
    fn close(&mut self) {}
}

/// A share that answers with the begin of what it was asked.
struct Echo;

impl Share for Echo {
    fn submit(&mut self, mut message: Vec<u8>, room: usize, ticket: Ticket) {
        assert!(message.len() <= 512 << 10 && room <= 512 << 10);
        message.truncate(room.min(64));
        ticket.finish(true, message);
    }
    fn reset(&mut self) {}
    fn save(&self) -> Value {
        Value::Null
    }
    fn load(&mut self, saved: Value) -> Result<(), String> {
        if saved.is_null() { Ok(()) } else { Err("it saves nothing".to_owned()) }
    }
}

/// A model, and what stands at its units.
struct Subject {
    model: &'static Model,
    units: Vec<Unit>,
}

impl Subject {
    /// A model with nothing, with disks, and with disks and CD-ROM drives.
    fn all(model: &'static Model) -> Vec<Subject> {
        let Class::Storage { units, cds } = model.class else {
            return vec![Subject { model, units: Vec::new() }];
        };
        let mut mixes = vec![vec![Unit::Disk; units]];
        if units > 1 {
            mixes.push(vec![Unit::None; units]);
        }
        if cds {
            let kinds = [Unit::Cd, Unit::Disk, Unit::None, Unit::Disk, Unit::Cd, Unit::None];
            mixes.push((0..units).map(|n| kinds[n % kinds.len()]).collect());
            mixes.push((0..units).map(|n| kinds[(n + 1) % kinds.len()]).collect());
        }
        mixes.into_iter().map(|units| Subject { model, units }).collect()
    }
}

struct Rig {
    bench: Bench,
    cell: Arc<DeviceCell>,
    disks: Vec<BenchDisk>,
    /// The ports that somebody has claimed, by the map's generation.
    claimed: (u64, Vec<u16>),
}

impl Rig {
    fn new(subject: &Subject) -> Rig {
        let bench = Bench::new();
        let disks: Vec<BenchDisk> =
            (0..subject.units.len()).map(|n| BenchDisk::new(&bench, vec![n as u8; DISK])).collect();
        let lines = if let Class::Lines { most } = subject.model.class { most } else { 0 };
        let handle = |(disk, unit): (&BenchDisk, &Unit)| (*unit != Unit::None).then(|| disk.share());
        let backends = Backends {
            disks: disks.iter().zip(&subject.units).map(handle).collect(),
            units: subject.units.clone(),
            chardevs: (0..lines).map(|_| Some(Box::new(Line) as Box<dyn Chardev>)).collect(),
            share: (subject.model.class == Class::Share).then(|| Box::new(Echo) as Box<dyn Share>),
            playback: (subject.model.class == Class::Sound).then(|| Box::new(Hum) as Box<dyn Playback>),
            capture: (subject.model.class == Class::Sound).then(|| Box::new(Hum) as Box<dyn Capture>),
            net: (subject.model.class == Class::Network).then(|| Box::new(Wire) as Box<dyn Net>),
            ..Backends::default()
        };
        let cell = bench.plug(subject.model, &defaults(subject.model), backends);
        let rig = Rig { bench, cell, disks, claimed: (0, Vec::new()) };
        rig.reset(ResetKind::PowerOn);
        rig
    }

    /// A reset, and what firmware does.
    fn reset(&self, kind: ResetKind) {
        self.bench.machine.reset(kind);
        let (mut ports, mut memory) = (PORTS, MEMORY);
        for function in self.bench.machine.pci.functions() {
            for (n, bar) in function.bars() {
                let next = if bar.kind == BarKind::Io { &mut ports } else { &mut memory };
                *next = next.next_multiple_of(bar.len);
                function.write(0x10 + 4 * u16::from(n), 4, *next as u32);
                *next += bar.len;
            }
            function.write(0x04, 2, 7);
            // The IDE functions decode their channels.
            function.write(0x40, 4, 0x8000_8000);
        }
    }

    /// Another machine that takes over all that this one is.
    fn twin(&self, subject: &Subject, saved: Saved) -> Rig {
        let twin = Rig::new(subject);
        twin.bench.machine.clock().set(self.bench.machine.clock().now());
        let (from, to) = (self.bench.machine.space.ram(), twin.bench.machine.space.ram());
        for block in from.blocks() {
            let mut memory = vec![0; block.len as usize];
            from.read(block.start, &mut memory);
            to.write(block.start, &memory);
        }
        for (mine, its) in self.disks.iter().zip(&twin.disks) {
            its.set_bytes(mine.bytes());
        }
        let random = self.bench.machine.random().save();
        twin.bench.machine.random().load(random).expect("a generator");
        twin.cell.load(saved).expect("it loads what it saved");
        twin.observe();
        twin
    }

    /// What a guest notices without asking.
    fn observe(&self) -> impl PartialEq + Debug {
        let wires: Vec<_> = (0..20).map(|n| (self.bench.irq(n), self.bench.edges(n))).collect();
        (wires, self.bench.messages())
    }

    fn memory(&self) -> Vec<u8> {
        let mut memory = vec![0; Bench::RAM as usize];
        self.bench.machine.space.ram().read(RamAddr(0), &mut memory);
        memory
    }

    /// A port that answers, and now and then one beside it.
    fn port(&mut self, r: &mut Rng) -> u16 {
        let map = self.bench.machine.space.map();
        if self.claimed.0 != map.generation {
            self.claimed = (map.generation, (0..=u16::MAX).filter(|p| map.port(*p).is_some()).collect());
        }
        let claimed = &self.claimed.1;
        let port = claimed.get(r.below(claimed.len())).map_or(0x80, |p| *p);
        if r.one_in(8) { port.wrapping_sub(r.below(4) as u16) } else { port }
    }

    /// An address where a device answers, oftener where its registers begin.
    fn address(&self, r: &mut Rng) -> u64 {
        let map = self.bench.machine.space.map();
        let io: Vec<_> = map.read.iter().filter(|range| matches!(range.target, Target::Io(..))).collect();
        let Some(range) = io.get(r.below(io.len())) else { return r.next() % Bench::RAM };
        let len = range.end - range.start;
        let window = r.pick(&[64, 0x200, 0x1100, len]).min(len);
        let at = range.start + r.next() % window;
        if r.one_in(8) { at } else { at & !3 }
    }

    /// Something that makes no sense.
    fn nonsense(&mut self, r: &mut Rng) -> Op {
        // Often an address of memory.
        let value = if r.one_in(4) { (r.below(0xff0) as u64) << 8 } else { r.value() };
        let width = r.width(8);
        match r.below(40) {
            0..6 => Op::Out(self.port(r), width.min(4), value as u32),
            6..10 => Op::In(self.port(r), width.min(4)),
            10 => Op::OutMany(self.port(r), width.min(4), 1 + r.below(600)),
            11 => Op::InMany(self.port(r), width.min(4), 1 + r.below(600)),
            12..22 => Op::Store(self.address(r), width, value),
            22..28 => Op::Load(self.address(r), width),
            28..31 => Op::Poke(r.next() % Bench::RAM & !7, (0..1 + r.below(8)).map(|_| r.value()).collect()),
            31 => Op::Config(r.below(0x100) as u16 & !3, r.pick(&[1, 2, 4]), value as u32),
            32 => Op::Broken(r.below(self.disks.len()), r.one_in(3)),
            33 => Op::Medium(r.below(self.disks.len()), r.pick(&[0, 4096, DISK])),
            34 => Op::Frame((0..r.pick(&[0, 14, 60, 1514, 9000])).map(|n| n as u8).collect()),
            35 if r.one_in(20) => Op::Reset(r.pick(&[ResetKind::System, ResetKind::PowerOn])),
            _ => Op::Advance(r.pick(&[0, 0, 1000, 1_000_000])),
        }
    }
}

/// Each key's own value.
fn defaults(model: &Model) -> Params {
    Params::new(model.keys.iter().map(|k| (k.name, k.default)))
}

/// One thing that happens.
#[derive(Clone, Debug)]
enum Op {
    /// Port, width, value.
    Out(u16, u8, u32),
    In(u16, u8),
    /// Port, width, count.
    OutMany(u16, u8, usize),
    InMany(u16, u8, usize),
    /// These bytes to a port of two bytes.
    OutBytes(u16, Vec<u8>),
    /// Address, width, value.
    Store(u64, u8, u64),
    Load(u64, u8),
    /// Words of memory.
    Poke(u64, Vec<u64>),
    Config(u16, u8, u32),
    Advance(u64),
    Broken(usize, bool),
    /// Another medium of so many bytes.
    Medium(usize, usize),
    Frame(Vec<u8>),
    /// At the screen.
    Look,
    Reset(ResetKind),
}

impl Op {
    /// Does it, and says what a guest saw of it.
    fn run(&self, rig: &mut Rig) -> Vec<u8> {
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
            Op::OutBytes(port, bytes) => bus.pio_write_many(*port, 2, bytes),
            Op::Store(at, width, value) => bus.write(*at, *width, *value),
            Op::Load(at, width) => seen.extend(bus.read(*at, *width).to_le_bytes()),
            Op::Poke(at, words) => {
                let dma = rig.bench.dma();
                for (n, word) in words.iter().enumerate() {
                    dma.write(at + 8 * n as u64, &word.to_le_bytes());
                }
            }
            Op::Config(at, width, value) => rig.bench.config_write(*at, *width, *value),
            Op::Advance(ns) => rig.bench.advance(*ns),
            Op::Broken(n, broken) => rig.disks.iter().skip(*n).take(1).for_each(|d| d.set_broken(*broken)),
            Op::Medium(n, len) => {
                if let Some(disk) = rig.disks.get(*n) {
                    disk.set_bytes(vec![*n as u8; *len]);
                    rig.cell.event(Event::Medium(*n));
                }
            }
            Op::Frame(frame) => rig.cell.event(Event::Frame(frame.clone())),
            Op::Look => seen.extend(display::look(rig).to_le_bytes()),
            Op::Reset(kind) => rig.reset(*kind),
        }
        seen
    }
}

fn stream(subject: &Subject, guest: Option<Guest>, case: u64) {
    let mut r = Rng::new(case + 1);
    let mut rig = Rig::new(subject);
    let about = format!("{} with {:?}, case {case}", subject.model.name, subject.units);
    let mut place = Place(String::new());
    let mut waiting: Vec<Op> = Vec::new();
    let mut next = |rig: &mut Rig, r: &mut Rng| {
        if waiting.is_empty() {
            waiting = match guest {
                Some(guest) if !r.one_in(4) => guest(r),
                _ => vec![rig.nonsense(r)],
            };
            waiting.reverse();
        }
        waiting.pop().unwrap_or(Op::Advance(0))
    };
    for step in 0..BEFORE {
        let op = next(&mut rig, &mut r);
        place.0 = format!("{about}, step {step}: {op:x?}");
        op.run(&mut rig);
    }
    rig.disks.iter().for_each(|d| d.set_broken(false));
    rig.observe();

    place.0 = format!("{about}, taken over");
    let saved = rig.cell.save();
    let size = serde_json::to_string(&saved).unwrap().len();
    assert!(size < LARGEST, "the state has grown to {size} bytes");
    let mut twin = rig.twin(subject, saved.clone());
    assert_eq!(twin.cell.save(), saved, "saved, loaded into a fresh machine and saved again");
    for step in 0..AFTER {
        let op = next(&mut rig, &mut r);
        place.0 = format!("{about}, step {step} after taking over: {op:x?}");
        assert_eq!(op.run(&mut twin), op.run(&mut rig), "the twin gives the guest something else");
        assert_eq!(twin.observe(), rig.observe(), "something else comes out of the twin");
    }
    place.0 = format!("{about}, at the end");
    assert_eq!(twin.cell.save(), rig.cell.save(), "the twin has gone another way");
    assert!(twin.memory() == rig.memory(), "the twin's memory is another");
    assert!(twin.disks.iter().zip(&rig.disks).all(|(a, b)| a.bytes() == b.bytes()), "the twin's disks are others");

    rig.disks.iter().enumerate().for_each(|(n, d)| d.set_bytes(vec![n as u8; DISK]));
    rig.reset(ResetKind::System);
    let once = rig.cell.save();
    rig.reset(ResetKind::System);
    assert_eq!(rig.cell.save(), once, "reset twice and reset once");
    rig.reset(ResetKind::PowerOn);
    let fresh = Rig::new(subject);
    fresh.bench.machine.clock().set(rig.bench.machine.clock().now());
    fresh.reset(ResetKind::PowerOn);
    assert_eq!(rig.cell.save(), fresh.cell.save(), "power-on after use and when new");
    assert!((0..20).all(|n| !rig.bench.irq(n)), "it interrupts after a reset");
}

fn fuzz(name: &str) {
    let model = MODELS.iter().find(|m| m.name == name).expect("in the table");
    let guest = GUESTS.iter().find(|(of, _)| *of == name).map(|(_, guest)| *guest);
    for subject in Subject::all(model) {
        (0..fuzz_cases()).for_each(|case| stream(&subject, guest, case));
    }
}

/// A test for each model.
macro_rules! models {
    ($($test:ident: $name:literal,)*) => {
        const TESTED: &[&str] = &[$($name),*];

        mod a_guest_does_not_harm {
            $(
                #[test]
                fn $test() {
                    super::fuzz($name);
                }
            )*
        }
    };
}

models! {
    piix3_ide: "piix3-ide",
    piix4_ide: "piix4-ide",
    ahci: "ahci",
    ahci_hd: "ahci-hd",
    ahci_cd: "ahci-cd",
    vga: "vga",
    fbuf: "fbuf",
    virtio_blk: "virtio-blk",
    virtio_net: "virtio-net",
    e1000: "e1000",
    e1000_82540em: "e1000-82540em",
    e1000_82543gc: "e1000-82543gc",
    dec21140: "dec21140",
    dec21143: "dec21143",
    pcnet: "pcnet",
    pcnet_fast: "pcnet-fast",
    rtl8139: "rtl8139",
    rtl8169: "rtl8169",
    ne2k_pci: "ne2k-pci",
    ne2k_isa: "ne2k-isa",
    nvme: "nvme",
    virtio_rnd: "virtio-rnd",
    virtio_console: "virtio-console",
    virtio_9p: "virtio-9p",
    virtio_scsi: "virtio-scsi",
    virtio_input: "virtio-input",
    hda: "hda",
    xhci: "xhci",
    uart: "uart",
}

#[test]
fn every_model_is_tried_and_explained() {
    let names: Vec<&str> = MODELS.iter().map(|m| m.name).collect();
    assert_eq!(names, TESTED);
    for model in MODELS {
        assert!(!model.summary.is_empty());
        assert!(model.keys.iter().all(|k| !k.help.is_empty()), "{}", model.name);
        assert!(names.iter().filter(|n| **n == model.name).count() == 1);
    }
}
