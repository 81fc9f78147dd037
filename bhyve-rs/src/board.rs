//! Boards: the parts that a machine has whatever is plugged into it, and what firmware tells of them.

use std::sync::Arc;

use anyhow::Result;
use boot::platform::{
    AcpiVersion, Chassis, Cpu, Identity, IoApic as IoApicInfo, IsaOverride, IsaPort, Link, Pci, Pin as RoutePin,
    Platform, Pm, Polarity, Processor, Route, Router, Smi, Trigger,
};
use emu::{Backends, Bdf, DeviceCell, IrqLine, IrqSink, Machine, Pin, RamAddr};
use hv::Vm;
use lpc::{AcpiPm, HostBridge, I440, I8042, I8237, I8254, I8259, IoApic, Mc146818, Mechanism1, Piix, PiixIsa, Pirq};

/// Which board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 440FX and PIIX3, with the PIIX4's power management function: a plain PC.
    Pc,
    /// 440BX and PIIX4.
    I440bx,
}

/// Where the firmware puts the power management block.
const PM_BASE: u16 = 0xb000;
/// The last address of the 32-bit PCI window; the I/O APIC follows.
const WINDOW32_END: u32 = 0xfebf_ffff;
const IOAPIC_BASE: u32 = 0xfec0_0000;
const LAPIC_BASE: u32 = 0xfee0_0000;
/// ISA interrupts that the firmware gives PIRQ A to D.
const PIRQ_IRQS: [u8; 4] = [10, 11, 10, 11];
/// I/O APIC pin of PIRQ A.
const PIRQ_GSI: u8 = 16;

/// What a board is built from.
pub struct Parts {
    /// Which board.
    pub kind: Kind,
    /// Arena address of guest RAM.
    pub ram: RamAddr,
    /// Bytes of guest RAM.
    pub memory: u64,
    /// Bytes of it below the PCI hole.
    pub low_memory: u64,
    /// Seconds since 1970 at power-on.
    pub rtc_start: i64,
}

/// A board in a machine.
pub struct Board {
    /// The power button is an event to this cell.
    pub pm: Arc<DeviceCell>,
}

/// One ISA interrupt wire leads to the 8259 pair and to the I/O APIC, where IRQ 0 arrives at pin 2.
struct IsaWires {
    pic: Arc<I8259>,
    ioapic: Arc<IoApic>,
}

impl IrqSink for IsaWires {
    fn set_irq(&self, line: u32, level: bool) {
        self.pic.set_irq(line, level);
        self.ioapic.set_irq(if line == 0 { 2 } else { line }, level);
    }
}

/// The PIRQ that a device's pin is wired to: as SeaBIOS and the chipsets' own tables expect it.
fn pirq_of(dev: u8, pin: u8) -> u8 {
    dev.wrapping_sub(1).wrapping_add(pin) & 3
}

/// Builds the board into `machine`.
///
/// # Errors
/// When a part cannot be made.
pub fn build(machine: &Arc<Machine>, vm: &Arc<dyn Vm>, parts: &Parts) -> Result<Board> {
    let err = |e: String| anyhow::anyhow!(e);
    let intr = IrqLine::new(vm.pins(), 0);
    let pic = I8259::new(machine, intr);
    let ioapic = IoApic::new(machine, u64::from(IOAPIC_BASE), vm.msi());
    machine.set_msi(vm.msi());
    let acked = pic.clone();
    vm.on_ack(Box::new(move || acked.acknowledge()));
    let ended = ioapic.clone();
    vm.on_eoi(Box::new(move |vector| ended.eoi(vector)));
    let wires = Arc::new(IsaWires { pic, ioapic: ioapic.clone() });
    machine.set_isa_irqs((0..16).map(|n| IrqLine::new(wires.clone(), n)).collect());

    let apic_pins = std::array::from_fn(|n| IrqLine::new(ioapic.clone(), u32::from(PIRQ_GSI) + n as u32));
    let pirq = Pirq::new(machine, apic_pins);
    let pirq_wires: Vec<IrqLine> = (0..4).map(|n| IrqLine::new(pirq.clone(), n)).collect();
    machine
        .pci
        .set_routing(Box::new(move |bdf: Bdf, pin: Pin| pirq_wires[pirq_of(bdf.dev, pin as u8) as usize].clone()));

    Mechanism1::new(machine);
    let part = |name: &str, bdf: Option<Bdf>, create: Create| -> Result<Arc<DeviceCell>> {
        machine.plug_with(name, bdf, Backends::default(), create).map_err(err)
    };
    let (bridge, isa, south) = match parts.kind {
        Kind::Pc => (HostBridge::I440fx, Piix::Piix3, 1),
        Kind::I440bx => (HostBridge::I440bx, Piix::Piix4, 7),
    };
    let ram = parts.ram;
    part("host-bridge", Some(Bdf::new(0, 0)), Box::new(move |s| I440::create(s, bridge, ram)))?;
    part("isa-bridge", Some(Bdf::new(south, 0)), Box::new(move |s| PiixIsa::create(s, isa, pirq)))?;
    let pm = part("pm", Some(Bdf::new(south, 3)), Box::new(|s| AcpiPm::create(s, PM_BASE, true)))?;
    I8237::new(machine);
    part("i8042", None, Box::new(|s| Ok(I8042::create(s))))?;
    part("i8254", None, Box::new(|s| Ok(I8254::create(s))))?;
    let (start, cmos) = (parts.rtc_start, cmos(parts));
    part("rtc", None, Box::new(move |s| Ok(Mc146818::create(s, start, cmos))))?;
    Ok(Board { pm })
}

type Create = Box<dyn FnOnce(&mut emu::Slot) -> Result<Box<dyn emu::Device>, String>>;

/// What a BIOS writes into CMOS: equipment and memory sizes.
fn cmos(parts: &Parts) -> Vec<(u8, u8)> {
    let kib = |bytes: u64, max: u64| (bytes >> 10).min(max) as u16;
    let extended = kib(parts.low_memory.saturating_sub(1 << 20), 0xfc00);
    let above_16m = (parts.low_memory.saturating_sub(16 << 20) >> 16).min(0xffff) as u16;
    let above_4g = (parts.memory - parts.low_memory) >> 16;
    let words = [(0x15, 640), (0x17, extended), (0x30, extended), (0x34, above_16m)];
    let mut out = vec![(0x14, 0x06)];
    for (at, word) in words {
        out.extend([(at, word as u8), (at + 1, (word >> 8) as u8)]);
    }
    out.extend([(0x5b, above_4g as u8), (0x5c, (above_4g >> 8) as u8), (0x5d, (above_4g >> 16) as u8)]);
    out
}

/// The firmware's view of the board.
pub fn platform(
    kind: Kind,
    cpus: u32,
    model: &cpu::Model,
    low_memory: u64,
    serial: Vec<IsaPort>,
    uuid: [u8; 16],
) -> Platform {
    let south = if kind == Kind::Pc { 1 } else { 7 };
    let links = (0..4).map(|n| Link { register: 0x60 + n, irq: Some(PIRQ_IRQS[n as usize]) }).collect();
    let routes = (1..32)
        .flat_map(|device| {
            RoutePin::ALL.into_iter().map(move |pin| {
                let link = pirq_of(device, pin as u8);
                Route { device, pin, link, gsi: PIRQ_GSI + link }
            })
        })
        .collect();
    let level = |irq| IsaOverride { irq, gsi: irq, polarity: Polarity::High, trigger: Trigger::Level };
    Platform {
        identity: Identity {
            bios_vendor: "bhyve-rs".into(),
            bios_version: env!("CARGO_PKG_VERSION").into(),
            bios_date: "01/01/2026".into(),
            manufacturer: "bhyve-rs".into(),
            product: if kind == Kind::Pc { "PC (440FX, PIIX3)" } else { "PC (440BX, PIIX4)" }.into(),
            version: "1.0".into(),
            serial: "None".into(),
            sku: String::new(),
            family: String::new(),
            uuid,
            board: None,
            chassis: Chassis::default(),
            oem_id: "BHYVE ".into(),
            oem_table_id: "BHYVERS ".into(),
            creator_id: "BHRS".into(),
        },
        cpus: (0..cpus as u8).map(|n| Cpu { apic_id: n, package: n }).collect(),
        processor: Processor {
            manufacturer: String::from_utf8_lossy(&model.vendor).into_owned(),
            version: model.brand.clone(),
            signature: model.signature,
            features: model.edx1,
            mhz: (model.tsc_hz / 1_000_000) as u16,
        },
        lapic_base: LAPIC_BASE,
        // The id follows the processors'.
        ioapic: Some(IoApicInfo { id: cpus as u8, base: IOAPIC_BASE, version: 0x11, pins: 24 }),
        pic: true,
        overrides: vec![IsaOverride { irq: 0, gsi: 2, polarity: Polarity::Bus, trigger: Trigger::Bus }, level(9)],
        pci: Pci {
            links,
            router: Some(Router { device: south, function: 0, compatible: (0x8086, 0x122e), allowed: 0x0e20 }),
            routes,
            buses: 1,
            window32: (low_memory.max(0xc000_0000) as u32)..=WINDOW32_END,
            window64: None,
        },
        acpi: Some(AcpiVersion::V2),
        pm: Some(Pm {
            base: PM_BASE,
            len: 0x40,
            sci: 9,
            smi: Some(Smi { port: 0xb2, enable: lpc::ACPI_ENABLE, disable: lpc::ACPI_DISABLE }),
            gpe0: Some((PM_BASE + 0xc, 4)),
            timer_32bit: false,
            reset_port: true,
            s5: 0,
        }),
        hpet: None,
        rtc_century: Some(0x32),
        serial,
        parallel: Vec::new(),
        keyboard: true,
        mouse: true,
        floppy: false,
    }
}
