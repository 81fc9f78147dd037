//! All parts of this crate, each alone and as whole boards, against what every part owes the framework:
//!
//! * it answers (or leaves alone) every port and address that it claims at every width, whatever the guest does;
//! * reset leads to the power-on state from anywhere, and a second one changes nothing; nothing asks for attention
//!   then;
//! * what it saves loads into a fresh instance, which saves the same again and from there on behaves the same;
//! * its state does not grow without bound.
//!
//! The guest is a stream of random accesses, events and pauses from a fixed seed. `BHYVE_RS_FUZZ_CASES` (default 50)
//! says how many streams each subject gets.

use std::fmt::Debug;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use emu::backend::{Chardev, Disk};
use emu::bench::{Bench, BenchDisk, Messages, Place, Rng, fuzz_cases};
use emu::{
    Backends, Bdf, Device, DeviceCell, Event, IrqLine, IrqSink, Machine, PciIds, Pin, ResetKind, Saved, Slot,
    SystemEvent, Target,
};
use lpc::{
    AcpiPm, BhyveHostBridge, BhyveLpc, DebugPorts, FloppyModel, FloppyUnit, FwCfg, FwCfgItems, HostBridge, Hpet, I440,
    I8042, I8237, I8254, I8259, I82077aa, IoApic, LegacyRoute, Mc146818, Mechanism1, Ns16550, Piix, PiixIsa, Pirq,
    lpc_bhyve,
};

/// Steps of a stream before its state is taken over, and after.
const BEFORE: usize = 1200;
const AFTER: usize = 600;
/// Bytes of JSON that no part's state may exceed.
const LARGEST: usize = 32 << 10;

/// A terminal that takes as many bytes a call as it is told to.
struct Terminal(Arc<AtomicUsize>);

impl Chardev for Terminal {
    fn write(&mut self, data: &[u8]) -> usize {
        data.len().min(self.0.load(Ordering::Relaxed))
    }
    fn attach(&mut self, _: Weak<DeviceCell>, _: usize) {}
    fn want(&mut self, _: usize) {}
}

/// A bench with the subject in it, and whatever moves the subject.
struct Rig {
    bench: Bench,
    cells: Vec<Arc<DeviceCell>>,
    /// Outputs of nobody in particular on the inputs of interrupt chips.
    wires: Vec<IrqLine>,
    pic: Option<Arc<I8259>>,
    ioapic: Option<Arc<IoApic>>,
    dma: Option<Arc<I8237>>,
    room: Arc<AtomicUsize>,
    lines: Arc<Mutex<Vec<String>>>,
    interrupts: Arc<Messages>,
    /// The ports that somebody has claimed, by the map's generation.
    claimed: (u64, Vec<u16>),
}

type Create = Box<dyn FnOnce(&mut Slot) -> Result<Box<dyn Device>, String>>;

/// Where the 8259's INTR ends.
#[derive(Default)]
struct Processor(Mutex<bool>);

impl IrqSink for Processor {
    fn set_irq(&self, _: u32, level: bool) {
        *self.0.lock().unwrap() = level;
    }
}

impl Rig {
    fn new(subject: &Subject) -> Rig {
        let mut rig = Rig {
            bench: Bench::new(),
            cells: Vec::new(),
            wires: Vec::new(),
            pic: None,
            ioapic: None,
            dma: None,
            room: Arc::new(AtomicUsize::new(usize::MAX)),
            lines: Arc::default(),
            interrupts: Arc::default(),
            claimed: (0, Vec::new()),
        };
        (subject.build)(&mut rig);
        rig.reset(ResetKind::PowerOn);
        rig
    }

    /// A reset, and what firmware does about the power management function.
    fn reset(&self, kind: ResetKind) {
        self.bench.machine.reset(kind);
        let pci = &self.bench.machine.pci;
        for f in pci.functions().iter().filter(|f| f.read(0, 4) == 0x7113_8086) {
            f.write(0x40, 4, 0xb001);
            f.write(0x80, 1, 1);
        }
    }

    fn machine(&self) -> Arc<Machine> {
        self.bench.machine.clone()
    }

    fn plug(&mut self, name: &str, bdf: Option<Bdf>, create: Create) {
        let backends = Backends { chardevs: vec![Some(Box::new(Terminal(self.room.clone())))], ..Backends::default() };
        self.cells.push(self.bench.machine.plug_with(name, bdf, backends, create).unwrap());
    }

    fn isa(&self) -> Vec<IrqLine> {
        (0..16).map(|n| self.bench.machine.isa_irq(n)).collect()
    }

    fn save(&self) -> Vec<(String, Saved)> {
        self.bench.machine.parts().iter().map(|p| (p.name().to_owned(), p.save())).collect()
    }

    /// The last part first, as a machine is restored: devices drive their wires, then the interrupt chips, which came
    /// before them, forget the edges.
    fn load(&self, saved: &[(String, Saved)]) {
        for (part, (name, state)) in self.bench.machine.parts().iter().zip(saved).rev() {
            part.load(state.clone()).unwrap_or_else(|e| panic!("{name} does not load what it saved: {e}"));
        }
    }

    /// Another machine of the same kind that takes over all that this one is.
    fn twin(&self, subject: &Subject) -> Rig {
        let twin = Rig::new(subject);
        twin.bench.machine.clock().set(self.bench.machine.clock().now());
        let (from, to) = (self.bench.machine.space.ram(), twin.bench.machine.space.ram());
        let mut page = [0; 4096];
        for block in from.blocks() {
            for at in (0..block.len).step_by(page.len()) {
                let at = emu::RamAddr(block.start.0 + at);
                from.read(at, &mut page);
                if page != [0; 4096] {
                    to.write(at, &page);
                }
            }
        }
        twin.room.store(self.room.load(Ordering::Relaxed), Ordering::Relaxed);
        for (mine, its) in self.wires.iter().zip(&twin.wires) {
            its.set(mine.level());
        }
        twin.load(&self.save());
        twin.observe();
        twin
    }

    /// Everything that came out since the last call.
    fn observe(&self) -> impl PartialEq + Debug {
        let wires: u32 = (0..20).map(|n| u32::from(self.bench.irq(n)) << n).sum();
        let messages = (self.bench.messages(), self.interrupts.take());
        (wires, messages, self.bench.system_events(), std::mem::take(&mut *self.lines.lock().unwrap()))
    }
}

/// What is tried out.
struct Subject {
    name: &'static str,
    build: fn(&mut Rig),
}

/// A table of subjects, and a test for each: no panic, no growth, nothing lost, whatever a guest does.
macro_rules! subjects {
    ($table:ident, $tests:ident, $($name:ident: $build:expr,)*) => {
        const $table: &[Subject] = &[$(Subject { name: stringify!($name), build: $build }),*];

        mod $tests {
            $(
                #[test]
                fn $name() {
                    super::fuzz(super::$table.iter().find(|s| s.name == stringify!($name)).unwrap());
                }
            )*
        }
    };
}

subjects! {
    PARTS, a_guest_does_not_harm_part,
    i8259: i8259,
    ioapic: ioapic,
    i8254: i8254,
    mc146818: mc146818,
    i8237: i8237,
    i82077aa: i82077aa,
    i8042: i8042,
    ns16550: ns16550,
    hpet: hpet,
    fw_cfg: fw_cfg,
    debug_ports: debug_ports,
    mechanism1: mechanism1,
    i440fx: |r| host_bridge(r, HostBridge::I440fx),
    i440bx: |r| host_bridge(r, HostBridge::I440bx),
    piix3_isa: |r| piix_isa(r, Piix::Piix3, 1),
    piix4_isa: |r| piix_isa(r, Piix::Piix4, 7),
    piix4_pm: |r| piix4_pm(r, 7),
    bhyve_host_bridge: bhyve_host_bridge,
    bhyve_lpc: bhyve_lpc,
    bhyve_pm: bhyve_pm,
}

subjects! {
    BOARDS, a_guest_does_not_harm_board,
    pc: pc_board,
    bhyve: bhyve_board,
}

fn i8259(r: &mut Rig) {
    let pic = I8259::new(&r.machine(), IrqLine::new(Arc::new(Processor::default()), 0));
    r.wires.extend((0..16).map(|n| IrqLine::new(pic.clone(), n)));
    r.pic = Some(pic);
}

fn ioapic(r: &mut Rig) {
    let chip = IoApic::new(&r.machine(), 0xfec0_0000, r.interrupts.clone());
    r.wires.extend((0..24).map(|n| IrqLine::new(chip.clone(), n)));
    r.ioapic = Some(chip);
}

fn i8254(r: &mut Rig) {
    r.plug("i8254", None, Box::new(|s| Ok(I8254::create(s))));
}

fn mc146818(r: &mut Rig) {
    r.plug("rtc", None, Box::new(|s| Ok(Mc146818::create(s, 1_262_303_998, vec![(0x14, 6), (0x5b, 1)]))));
}

fn i8237(r: &mut Rig) {
    r.dma = Some(I8237::new(&r.machine()));
}

/// With media in both drives, of which one is write-protected and lacks its end.
fn i82077aa(r: &mut Rig) {
    i8237(r);
    let disks = [1440 << 10, 700 << 10].map(|n| BenchDisk::new(&r.bench, vec![0x5a; n]));
    disks[1].protect();
    let disks = disks.into_iter().map(|d| Some(Box::new(d) as Box<dyn Disk>)).collect();
    let backends = Backends { disks, ..Backends::default() };
    let dma = r.dma.clone().unwrap();
    let units = [FloppyModel::D1440k, FloppyModel::D720k].map(|model| Some(FloppyUnit { model, turbo: true }));
    let create = |s: &mut Slot| Ok(I82077aa::create(s, dma, units));
    r.cells.push(r.bench.machine.plug_with("fdc", None, backends, create).unwrap());
}

fn i8042(r: &mut Rig) {
    r.plug("i8042", None, Box::new(|s| Ok(I8042::create(s))));
}

fn ns16550(r: &mut Rig) {
    r.plug("com1", None, Box::new(|s| Ok(Ns16550::create(s, 0x3f8, 4))));
}

fn hpet(r: &mut Rig) {
    let mut isa = r.isa();
    let pins = (20..24).zip(isa[3..7].iter().cloned()).collect();
    let route = LegacyRoute::new(&r.machine(), &mut isa);
    r.wires.extend([isa[0].clone(), isa[8].clone()]);
    r.bench.machine.set_isa_irqs(isa);
    r.plug("hpet", None, Box::new(|s| Ok(Hpet::create(s, Hpet::BASE, route, pins))));
}

fn fw_cfg(r: &mut Rig) {
    let mut items = FwCfgItems::new();
    items.cpus(2, 4);
    items.ram_size(Bench::RAM);
    items.uuid([7; 16]);
    items.boot_menu(true);
    items.no_graphic(true);
    items.e820(&[(0, Bench::RAM, 1)]).unwrap();
    items.file("opt/org.example/long", vec![0x5a; 10_000]).unwrap();
    items.writable_file("etc/notes", vec![1; 100]).unwrap();
    r.plug("fw-cfg", None, Box::new(|s| Ok(FwCfg::create(s, items))));
}

fn debug_ports(r: &mut Rig) {
    let lines = r.lines.clone();
    let sink = Box::new(move |line: &str| lines.lock().unwrap().push(line.to_owned()));
    r.plug("debug-ports", None, Box::new(|s| Ok(DebugPorts::create(s, sink))));
}

/// A function with every kind of BAR, for configuration accesses to have something to move.
struct Card(());

impl Device for Card {
    fn reset(&mut self, _: ResetKind) {}
    fn state(&mut self) -> &mut dyn emu::State {
        &mut self.0
    }
}

fn mechanism1(r: &mut Rig) {
    use emu::BarKind::{Io, Mem32, Mem64Prefetch};
    Mechanism1::new(&r.machine());
    let create = |s: &mut Slot| -> Result<Box<dyn Device>, String> {
        s.pci(PciIds { vendor: 0x1234, device: 1, class: 0xff_0000, ..PciIds::default() })?;
        for (n, kind, len) in [(0, Io, 0x20), (1, Mem32, 0x1000), (2, Mem64Prefetch, 1 << 20)] {
            s.bar(n, kind, len, u32::from(n), emu::Widths::QWORD);
        }
        s.intx(Pin::A);
        s.msi(8);
        Ok(Box::new(Card(())))
    };
    r.plug("card", Some(Bdf::new(3, 0)), Box::new(create));
}

fn host_bridge(r: &mut Rig, kind: HostBridge) {
    let space = &r.bench.machine.space;
    let ram = space.ram().blocks()[0].start;
    // Below the shadow nobody answers.
    let hole = space.add_memory(0, 0x4_0000, 1, emu::Rights::ReadWrite, emu::Backing::Nothing);
    space.enable(hole, 0xc_0000, true);
    r.plug("host-bridge", Some(Bdf::new(0, 0)), Box::new(move |s| I440::create(s, kind, ram)));
}

/// A router with as many inputs, the first four of them the PCI pins.
fn router(r: &mut Rig, inputs: usize) -> Arc<Pirq> {
    let pirq = Pirq::with_inputs(&r.machine(), (0..inputs).map(|_| IrqLine::unconnected()).collect());
    r.wires.extend((0..inputs as u32).map(|n| IrqLine::new(pirq.clone(), n)));
    pirq
}

fn piix_isa(r: &mut Rig, kind: Piix, dev: u8) {
    let pirq = router(r, 4);
    r.plug("isa-bridge", Some(Bdf::new(dev, 0)), Box::new(move |s| PiixIsa::create(s, kind, pirq)));
}

fn piix4_pm(r: &mut Rig, dev: u8) {
    r.plug("pm", Some(Bdf::new(dev, 3)), Box::new(|s| AcpiPm::create(s, 0xb000, true)));
}

fn bhyve_host_bridge(r: &mut Rig) {
    let ids = lpc_bhyve::HOST_BRIDGE;
    r.plug("hostbridge", Some(Bdf::new(0, 0)), Box::new(move |s| BhyveHostBridge::create(s, ids)));
}

fn bhyve_lpc(r: &mut Rig) {
    let pirq = router(r, lpc_bhyve::PIRQS);
    r.plug("lpc", Some(Bdf::new(31, 0)), Box::new(|s| BhyveLpc::create(s, lpc_bhyve::LPC_BRIDGE, pirq)));
}

fn bhyve_pm(r: &mut Rig) {
    r.plug("pm", None, Box::new(|s| Ok(AcpiPm::create_bhyve(s))));
}

/// ISA wires lead to the 8259 pair and to the I/O APIC.
struct Both(Arc<I8259>, Arc<IoApic>);

impl IrqSink for Both {
    fn set_irq(&self, line: u32, level: bool) {
        self.0.set_irq(line, level);
        self.1.set_irq(if line == 0 { 2 } else { line }, level);
    }
}

/// Interrupt chips, and their inputs as the board's wires.
fn interrupt_chips(r: &mut Rig) {
    let pic = I8259::new(&r.machine(), IrqLine::new(Arc::new(Processor::default()), 0));
    let chip = IoApic::new(&r.machine(), 0xfec0_0000, r.interrupts.clone());
    let both = Arc::new(Both(pic.clone(), chip.clone()));
    let isa: Vec<IrqLine> = (0..16).map(|n| IrqLine::new(both.clone(), n)).collect();
    r.bench.machine.set_isa_irqs(isa);
    (r.pic, r.ioapic) = (Some(pic), Some(chip));
}

fn common(r: &mut Rig) {
    i8254(r);
    mc146818(r);
    i82077aa(r);
    i8042(r);
    for (name, base, irq) in [("com1", 0x3f8, 4), ("com2", 0x2f8, 3), ("com3", 0x3e8, 4), ("com4", 0x2e8, 3)] {
        r.plug(name, None, Box::new(move |s| Ok(Ns16550::create(s, base, irq))));
    }
    fw_cfg(r);
    debug_ports(r);
    mechanism1(r);
}

fn pc_board(r: &mut Rig) {
    interrupt_chips(r);
    hpet(r);
    host_bridge(r, HostBridge::I440fx);
    piix_isa(r, Piix::Piix3, 1);
    piix4_pm(r, 1);
    common(r);
}

fn bhyve_board(r: &mut Rig) {
    interrupt_chips(r);
    hpet(r);
    bhyve_host_bridge(r);
    bhyve_lpc(r);
    bhyve_pm(r);
    common(r);
}

/// What drivers write to byte-wide ports: random values alone seldom get a chip going.
const HABITS: &[(u16, &[u8])] = &[
    (0x20, &[0x11, 0x20, 0x0a, 0x0b, 0x0c, 0x68]),
    (0x21, &[0x08, 0x04, 0x01, 0x03, 0x00]),
    (0xa0, &[0x11, 0x20]),
    (0x40, &[0x00, 0x04, 0xa9]),
    (0x42, &[0x00, 0x02, 0x80]),
    (0x43, &[0x30, 0x32, 0x34, 0x36, 0x00, 0xb0, 0xb2, 0xb6, 0xba, 0xc2, 0xe8]),
    (0x60, &[0xf4, 0xff, 0xf0, 0x02, 0xf2, 0xfe, 0x47, 0x07]),
    (0x61, &[0x00, 0x01, 0x03]),
    (0x64, &[0x60, 0xd4, 0xd2, 0xae, 0xa8, 0xad, 0xaa]),
    (0x70, &[0x00, 0x0a, 0x0b, 0x0c]),
    (0x71, &[0x26, 0x2d, 0x42, 0x52, 0x72, 0x82, 0x02]),
    (0x0a, &[0x02, 0x02, 0x06]),
    (0x0b, &[0x46, 0x4a, 0x42]),
    (0x0c, &[0x00]),
    (0x3f2, &[0x3c, 0x3d, 0x34, 0x1c, 0x38]),
    (0x3f4, &[0x00, 0x80]),
    (0x3f5, &[0x00, 0x00, 0x01, 0x02, 0x12, 0x03, 0x07, 0x08, 0x0f, 0x13, 0x45, 0x46, 0x4a, 0x4d, 0x51, 0xe6, 0xd6]),
    (0x3f7, &[0x00, 0x02]),
    (0xe9, b"debug\n"),
    (0x402, b"debug\n"),
    (0x3f8, b"AT"),
    (0x3f9, &[0x01, 0x05, 0x0f]),
    (0x3fa, &[0x01, 0x07, 0xc1, 0x00]),
    (0x3fb, &[0x03, 0x03, 0x83]),
    (0x3fc, &[0x0b, 0x0b, 0x1b]),
];

/// And to the HPET's registers.
const HPET_HABITS: &[(u64, &[u64])] = &[
    (0x10, &[0, 1, 1, 3]),
    (0x20, &[1, 7]),
    (0xf0, &[0, u64::MAX - 1000]),
    (0x100, &[0x0104, 0x014c, 0x000c, 0x2806, 0x294c, 0x0004]),
    (0x120, &[0x2904, 0x2a4c, 0x014c]),
    (0x140, &[0x2804, 0x284c, 0x2c06]),
    (0x108, &[10, 500, 8_000]),
    (0x128, &[10, 500, 8_000]),
    (0x148, &[10, 500, 8_000]),
];

/// One thing that happens to the machine.
#[derive(Clone, Debug)]
enum Op {
    Pio(u16, u8, Option<u32>),
    PioMany(u16, u8, usize, bool),
    Memory(u64, u8, Option<u64>),
    Config(Bdf, u16, u8, Option<u32>),
    FwCfg(u32, u32, u64),
    Advance(u64),
    Chars(usize, Vec<u8>),
    Ready(usize),
    Key(usize, u16, bool),
    Pointer(usize, i32, i32, i32, u8),
    PowerButton(usize),
    Wire(usize, bool),
    Acknowledge,
    Eoi(u8),
    Transfer(usize, usize),
    Room(usize),
    Reset(ResetKind),
}

impl Op {
    fn random(rng: &mut Rng, rig: &mut Rig) -> Op {
        let (map, value) = (rig.bench.machine.space.map(), rng.value());
        let write = rng.one_in(2);
        let cell = rng.below(rig.cells.len());
        match rng.below(if rig.cells.is_empty() { 70 } else { 90 }) {
            0..12 => {
                let ports: Vec<_> = HABITS.iter().filter(|(p, _)| map.port(*p).is_some()).collect();
                let hpet = map.read.iter().any(|r| r.start == Hpet::BASE);
                let n = rng.below(ports.len() + if hpet { HPET_HABITS.len() } else { 0 });
                if let Some((port, values)) = ports.get(n) {
                    return Op::Pio(*port, 1, Some(values[rng.below(values.len())].into()));
                }
                let Some((at, values)) = HPET_HABITS.get(n - ports.len()).filter(|_| hpet) else {
                    return Op::Advance(value % 1000);
                };
                Op::Memory(Hpet::BASE + at, 4, Some(values[rng.below(values.len())]))
            }
            12..32 => {
                if rig.claimed.0 != map.generation {
                    let ports = (0..=u16::MAX).filter(|p| map.port(*p).is_some());
                    rig.claimed = (map.generation, ports.collect());
                }
                let claimed = &rig.claimed.1;
                let port = claimed.get(rng.below(claimed.len())).map_or(0x80, |p| *p);
                // Now and then over an edge.
                let port = if rng.one_in(8) { port.wrapping_sub(rng.below(4) as u16) } else { port };
                match rng.below(12) {
                    0 => Op::PioMany(port, rng.width(4), 1 + rng.below(20), write),
                    _ => Op::Pio(port, rng.width(4), write.then_some(value as u32)),
                }
            }
            32..48 => {
                let io: Vec<_> = map.read.iter().filter(|r| matches!(r.target, Target::Io(..))).collect();
                let Some(range) = io.get(rng.below(io.len())) else {
                    let at = if rng.one_in(2) { 0xc_0000 + rng.next() % 0x4_0000 } else { value % Bench::RAM };
                    return Op::Memory(at, 1, write.then_some(rng.next()));
                };
                let len = range.end - range.start;
                let within = match rng.below(4) {
                    0 => rng.next() % len,
                    1 => (rng.next() % 0x160).min(len - 1),
                    // Where the registers of the I/O APIC and of the HPET are.
                    _ if len == 0x1000 => 0x10 * rng.below(2) as u64,
                    _ => [0x10, 0x20, 0xf0, 0x100, 0x108, 0x120, 0x128, 0x140, 0x148][rng.below(9)],
                };
                let at = if rng.one_in(8) { within } else { within & !3 };
                let width = if rng.one_in(2) { 4 } else { rng.width(8) };
                Op::Memory(range.start + at, width, write.then_some(value))
            }
            48..56 => {
                let functions = rig.bench.machine.pci.functions();
                let Some(f) = functions.get(rng.below(functions.len())) else { return Op::Advance(value % 1000) };
                // Header, PAM and routing, or anywhere.
                let offset = [rng.below(0x48), 0x58 + rng.below(0x18), rng.below(256)][rng.below(3)] as u16;
                Op::Config(f.bdf(), offset, rng.width(4), write.then_some(value as u32))
            }
            56..58 if map.port(0x518).is_some() => {
                let control = (rng.below(0x24) as u32) << 16 | rng.below(32) as u32;
                Op::FwCfg(control, [value as u32, value as u32 % 300][rng.below(2)], rng.next() % (Bench::RAM + 50_000))
            }
            58..66 => Op::Advance(match rng.below(30) {
                0 | 1 => rng.next() % 20_000_000,
                2..10 => rng.next() % 1_000_000,
                _ => rng.next() % 10_000,
            }),
            66 => Op::Wire(rng.below(rig.wires.len()), write),
            67 => [Op::Acknowledge, Op::Eoi(value as u8), Op::Room(value as usize % 4)][rng.below(3)].clone(),
            68 => Op::Transfer(rng.below(8), rng.below(300)),
            69 if rng.one_in(10) => Op::Reset([ResetKind::System, ResetKind::PowerOn][rng.below(2)]),
            70..76 => Op::Chars(cell, (0..rng.below(20)).map(|_| rng.next() as u8).collect()),
            76..80 => Op::Ready(cell),
            80..84 => Op::Key(cell, rng.below(0x200) as u16, write),
            84..88 => Op::Pointer(cell, value as i32, rng.next() as i32, rng.value() as i32, rng.next() as u8),
            88 => Op::PowerButton(cell),
            _ => Op::Wire(rng.below(rig.wires.len()), write),
        }
    }

    /// Does it, and says what a guest saw of it.
    fn run(&self, rig: &mut Rig) -> Vec<u8> {
        let bus = &mut rig.bench.bus;
        let mut seen = Vec::new();
        match self {
            Op::Pio(port, width, None) => {
                let value = bus.pio_read(*port, *width);
                assert!(*width == 4 || value >> (8 * width) == 0, "a read of {width} bytes gave {value:x}");
                seen.extend(value.to_le_bytes());
            }
            Op::Pio(port, width, Some(value)) => bus.pio_write(*port, *width, *value),
            Op::PioMany(port, width, n, false) => {
                seen.resize(n * *width as usize, 0);
                bus.pio_read_many(*port, *width, &mut seen);
            }
            Op::PioMany(port, width, n, true) => {
                let data: Vec<u8> = (0..n * *width as usize).map(|k| (k * 37 + n) as u8).collect();
                bus.pio_write_many(*port, *width, &data);
            }
            // The bus's users split what crosses a page.
            Op::Memory(at, width, _) if at % 4096 + u64::from(*width) > 4096 => {}
            Op::Memory(at, width, None) => {
                let value = bus.read(*at, *width);
                assert!(*width == 8 || value >> (8 * width) == 0, "a read of {width} bytes gave {value:x}");
                seen.extend(value.to_le_bytes());
            }
            Op::Memory(at, width, Some(value)) => bus.write(*at, *width, *value),
            Op::Config(bdf, at, width, None) => {
                seen.extend(rig.bench.machine.pci.read(*bdf, *at, *width).to_le_bytes());
            }
            Op::Config(bdf, at, width, Some(value)) => rig.bench.machine.pci.write(*bdf, *at, *width, *value),
            Op::FwCfg(control, len, address) => {
                let d = u128::from(*control) << 96 | u128::from(*len) << 64 | u128::from(*address);
                rig.bench.dma().write(0x1000, &d.to_be_bytes());
                rig.bench.bus.pio_write(0x518, 4, 0x1000u32.swap_bytes());
                seen.extend(rig.bench.dma().fetch::<16>(0x1000));
            }
            Op::Advance(ns) => rig.bench.advance(*ns),
            Op::Chars(cell, bytes) => rig.cells[*cell].event(Event::Chars(0, bytes.clone())),
            Op::Ready(cell) => rig.cells[*cell].event(Event::CharsReady(0)),
            Op::Key(cell, code, down) => rig.cells[*cell].event(Event::Key(*code, *down)),
            Op::Pointer(cell, x, y, z, buttons) => rig.cells[*cell].event(Event::Pointer(*x, *y, *z, *buttons)),
            Op::PowerButton(cell) => rig.cells[*cell].event(Event::PowerButton),
            Op::Wire(n, level) => {
                if let Some(wire) = rig.wires.get(*n) {
                    wire.set(*level);
                }
            }
            Op::Acknowledge => seen.extend(rig.pic.as_ref().map(|p| p.acknowledge())),
            Op::Eoi(vector) => {
                if let Some(chip) = &rig.ioapic {
                    chip.eoi(*vector);
                }
            }
            Op::Transfer(channel, len) => {
                if let Some(dma) = &rig.dma {
                    seen.resize(*len, 0x33);
                    dma.transfer(*channel, &mut seen);
                }
            }
            Op::Room(n) => rig.room.store(*n, Ordering::Relaxed),
            Op::Reset(kind) => rig.reset(*kind),
        }
        seen
    }
}

/// After a reset nothing asks for attention, but for the 8254, which runs by itself.
fn assert_quiet(rig: &Rig) {
    for (name, saved) in rig.save().iter().filter(|(name, _)| name != "i8254") {
        assert!(saved.irqs.iter().all(|level| !level), "{name} interrupts after a reset");
        assert!(saved.timers.iter().all(Option::is_none), "{name} waits for a timer after a reset");
    }
}

fn assert_same(a: &[(String, Saved)], b: &[(String, Saved)], what: &str) {
    for ((name, a), (_, b)) in a.iter().zip(b) {
        assert_eq!(a, b, "{what}: {name}");
    }
}

fn assert_small(rig: &Rig) {
    for (name, saved) in rig.save() {
        let size = saved.state.to_string().len();
        assert!(size < LARGEST, "the state of {name} has grown to {size} bytes");
    }
}

/// As many streams as are asked for, each from a seed of its own.
fn fuzz(subject: &Subject) {
    let name = subject.name.bytes().fold(0, |h: u64, b| h.wrapping_mul(31).wrapping_add(b.into()));
    (0..fuzz_cases()).for_each(|case| stream(subject, case, name << 32 | case));
}

fn stream(subject: &Subject, case: u64, seed: u64) {
    let mut rng = Rng::new(seed);
    let mut rig = Rig::new(subject);
    let mut place = Place(String::new());
    for step in 0..BEFORE {
        let op = Op::random(&mut rng, &mut rig);
        place.0 = format!("{}, case {case}, step {step}: {op:x?}", subject.name);
        op.run(&mut rig);
    }
    rig.observe();
    assert_small(&rig);

    place.0 = format!("{}, case {case}, taken over", subject.name);
    let saved = rig.save();
    let mut twin = rig.twin(subject);
    assert_same(&twin.save(), &saved, "saved, loaded into a fresh machine and saved again");
    twin.load(&saved);
    assert_same(&twin.save(), &saved, "loaded a second time and saved again");
    twin.observe();
    for step in 0..AFTER {
        let op = Op::random(&mut rng, &mut rig);
        place.0 = format!("{}, case {case}, step {step} after taking over: {op:x?}", subject.name);
        assert_eq!(op.run(&mut twin), op.run(&mut rig), "the twin gives the guest something else");
        assert_eq!(twin.observe(), rig.observe(), "something else comes out of the twin");
    }
    place.0 = format!("{}, case {case}, at the end", subject.name);
    assert_same(&twin.save(), &rig.save(), "the twin has gone another way");

    rig.reset(ResetKind::System);
    let once = rig.save();
    rig.reset(ResetKind::System);
    assert_same(&rig.save(), &once, "reset twice and reset once");
    assert_quiet(&rig);
    rig.wires.iter().for_each(|w| w.set(false));
    rig.reset(ResetKind::PowerOn);
    let fresh = Rig::new(subject);
    fresh.bench.machine.clock().set(rig.bench.machine.clock().now());
    fresh.reset(ResetKind::PowerOn);
    assert_same(&rig.save(), &fresh.save(), "power-on after use and when new");
    assert_quiet(&rig);
}

#[test]
fn every_register_answers_at_every_width_and_over_every_edge() {
    for subject in PARTS {
        let mut rig = Rig::new(subject);
        let mut place = Place(String::new());
        let before = rig.save();
        let map = rig.bench.machine.space.map();
        let near = |p: u16| (0..4).any(|d| map.port(p.wrapping_add(d)).is_some());
        for port in (0..=u16::MAX).filter(|p| near(*p)) {
            for width in [1, 2, 4] {
                place.0 = format!("{}, port {port:x}, width {width}", subject.name);
                let value = rig.bench.bus.pio_read(port, width);
                for n in (0..u16::from(width)).filter(|n| map.port(port.wrapping_add(*n)).is_none()) {
                    assert_eq!(value >> (8 * n) as u8 & 0xff, 0xff, "nobody is at port {port:x}+{n}");
                }
                for value in [u32::MAX, 0, 0x5555_5555] {
                    rig.bench.bus.pio_write(port, width, value);
                    rig.bench.bus.pio_read(port, width);
                }
            }
        }
        for range in map.read.iter().filter(|r| matches!(r.target, Target::Io(..))) {
            for at in range.start - 7..range.end {
                for width in [1, 2, 4, 8].into_iter().filter(|w| at % 4096 + u64::from(*w) <= 4096) {
                    place.0 = format!("{}, address {at:x}, width {width}", subject.name);
                    let value = rig.bench.bus.read(at, width);
                    for n in (0..u64::from(width)).filter(|n| at + n < range.start || at + n >= range.end) {
                        assert_eq!(value >> (8 * n) & 0xff, 0xff, "nobody is at {at:x}+{n}");
                    }
                    for value in [u64::MAX, 0] {
                        rig.bench.bus.write(at, width, value);
                        rig.bench.bus.read(at, width);
                    }
                }
            }
        }
        assert_small(&rig);
        rig.reset(ResetKind::PowerOn);
        assert_same(&rig.save(), &before, "power-on after use and when new");
    }
}

#[test]
fn a_guest_that_only_writes_does_not_fill_memory() {
    for subject in PARTS {
        let mut rig = Rig::new(subject);
        let mut place = Place(String::new());
        let map = rig.bench.machine.space.map();
        for port in (0..=u16::MAX).filter(|p| map.port(*p).is_some()) {
            for value in 0..=255 {
                place.0 = format!("{}, {value:x} to port {port:x}", subject.name);
                (0..100).for_each(|_| rig.bench.outb(port, value));
                rig.bench.system_events();
            }
            rig.observe();
        }
        assert_small(&rig);
    }
}

#[test]
fn a_new_board_is_quiet_and_asks_for_nothing() {
    for subject in PARTS.iter().chain(BOARDS) {
        let rig = Rig::new(subject);
        assert_quiet(&rig);
        let asked: Vec<SystemEvent> = rig.bench.system_events();
        assert!(asked.is_empty(), "{}: {asked:?}", subject.name);
    }
}
