//! Boards: the parts that a machine has whatever is plugged into it, and what firmware tells of them.

use std::sync::Arc;

use anyhow::{Result, anyhow};
use boot::platform::{
    AcpiVersion, Chassis, Cpu, Hpet as HpetInfo, Identity, IoApic as IoApicInfo, IsaOverride, IsaPort, Link, Pci,
    Pin as RoutePin, Platform, Pm, Polarity, Processor, Route, Router, Smi, Trigger,
};
use cfg::Node;
use devices::storage::piix_ide;
use emu::{Backends, Backing, Bdf, DeviceCell, Event, IrqLine, IrqSink, Machine, Model, Pin, Ram, RamAddr, Rights};
use host::keyboard::{Room, Typist};
use host::pointer::Pointers;
use hv::{Chips, Vm};
use lpc::{
    AcpiPm, BhyveHostBridge, BhyveLpc, DebugPorts, FloppyModel, FwCfg, FwCfgItems, HostBridge, Hpet, I440, I8042,
    I8237, I8254, I8259, IoApic, LegacyRoute, Mc146818, Mechanism1, Piix, PiixIsa, Pirq, lpc_bhyve,
};

/// What a board is: which chips are on it, and where.
pub struct Kind {
    /// Its name in configurations.
    pub name: &'static str,
    chipset: Chipset,
    /// Device number of the bridge to the ISA bus, which routes interrupts.
    pub isa_bridge: u8,
    /// Configuration registers of the interrupt router, PIRQ A first.
    pirqs: &'static [u8],
    /// The PIRQ that a device's pin is wired to: as SeaBIOS and the chipsets' own tables expect it.
    pirq_of: fn(u8, u8) -> u8,
    /// The IDE controller, function 1 of the ISA bridge's device.
    pub ide: Option<&'static Model>,
    /// A board of 1998 has no HPET.
    hpet: bool,
    /// Firmware made for QEMU knows its machine as this board.
    pub fw_cfg: bool,
    /// The first PCI device number that is free.
    pub first_slot: u8,
}

/// What a board is built around.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Chipset {
    I440fx,
    I440bx,
    Bhyve,
}

/// How the PIIX boards wire pins.
fn swizzle(dev: u8, pin: u8) -> u8 {
    dev.wrapping_sub(1).wrapping_add(pin) & 3
}

const PIIX_PIRQS: &[u8] = &[0x60, 0x61, 0x62, 0x63];

/// 440FX and PIIX3, with the PIIX4's power management function: a plain PC.
pub static I440FX: Kind = Kind {
    name: "440fx",
    chipset: Chipset::I440fx,
    isa_bridge: 1,
    pirqs: PIIX_PIRQS,
    pirq_of: swizzle,
    ide: Some(&piix_ide::PIIX3),
    hpet: true,
    fw_cfg: true,
    first_slot: 3,
};

/// 440BX and PIIX4.
pub static I440BX: Kind = Kind {
    name: "440bx",
    chipset: Chipset::I440bx,
    isa_bridge: 7,
    ide: Some(&piix_ide::PIIX4),
    hpet: false,
    fw_cfg: false,
    first_slot: 9,
    ..I440FX
};

/// bhyve's own: host bridge and LPC bridge, for each place that the latter can have.
static BHYVE: [Kind; 32] = {
    let mut all = [const { bhyve(0) }; 32];
    let mut slot = 0;
    while slot < 32 {
        all[slot as usize] = bhyve(slot);
        slot += 1;
    }
    all
};

const fn bhyve(lpc: u8) -> Kind {
    Kind {
        name: "bhyve",
        chipset: Chipset::Bhyve,
        isa_bridge: lpc,
        pirqs: &[0x60, 0x61, 0x62, 0x63, 0x68, 0x69, 0x6a, 0x6b],
        pirq_of: lpc_bhyve::pirq_of,
        ide: None,
        hpet: true,
        fw_cfg: false,
        first_slot: 3,
    }
}

/// All boards.
pub static ALL: [&Kind; 3] = [&I440FX, &I440BX, &BHYVE[31]];

/// Bit of CPUID.1:EDX.
const HTT: u32 = 1 << 28;
/// Where the firmware puts a PIIX4's power management block.
const PM_BASE: u16 = 0xb000;
/// The timer in that block.
const PM_TIMER: u16 = 8;
/// The last address of the 32-bit PCI window; the I/O APIC follows.
const WINDOW32_END: u32 = 0xfebf_ffff;
const IOAPIC_BASE: u32 = 0xfec0_0000;
const LAPIC_BASE: u32 = 0xfee0_0000;
/// ISA interrupts that the firmware gives the PIRQs, in turn.
const PIRQ_IRQS: [u8; 2] = [10, 11];
/// I/O APIC pin of PIRQ A.
const PIRQ_GSI: u8 = 16;
/// Option ROMs and BIOS.
const BIOS_AREA: std::ops::Range<u64> = 0xc_0000..0x10_0000;
/// Pins of the I/O APIC; what PIRQs leave is for the HPET's comparators.
const IOAPIC_PINS: u8 = 24;

/// What a board is built from.
pub struct Parts {
    /// Which board.
    pub kind: &'static Kind,
    /// Arena address of guest RAM.
    pub ram: RamAddr,
    /// Bytes of guest RAM.
    pub memory: u64,
    /// Bytes of it below the PCI hole.
    pub low_memory: u64,
    /// Seconds since 1970 at power-on.
    pub rtc_start: i64,
    /// Number of processors.
    pub cpus: u32,
    /// SMBIOS UUID.
    pub uuid: [u8; 16],
    /// Floppy drives, for CMOS.
    pub floppies: Vec<FloppyModel>,
}

/// A board in a machine.
pub struct Board {
    /// The power button is an event to this cell.
    pub pm: Arc<DeviceCell>,
    /// Who types at the keyboard.
    pub typist: Arc<Typist>,
    /// What a pointer can be moved with.
    pub pointers: Arc<Pointers>,
    /// What ISA devices ask for their transfers.
    pub dma: Arc<I8237>,
}

/// One ISA interrupt wire leads to the 8259 pair and to the I/O APIC, where IRQ 0 arrives at pin 2. Guests listen to
/// one of the two: at the other each edge waits for ever.
struct IsaWires {
    pic: Arc<I8259>,
    ioapic: Arc<IoApic>,
}

impl IsaWires {
    fn pin(line: u32) -> u32 {
        if line == 0 { 2 } else { line }
    }
}

impl IrqSink for IsaWires {
    fn set_irq(&self, line: u32, level: bool) {
        self.pic.set_irq(line, level);
        self.ioapic.set_irq(IsaWires::pin(line), level);
    }

    fn pending(&self, line: u32) -> bool {
        self.pic.pending(line) && self.ioapic.pending(IsaWires::pin(line))
    }
}

/// The board that a configuration asks for.
pub fn kind(node: &Node) -> &'static Kind {
    let name = node.maybe("board");
    match ALL.into_iter().find(|kind| Some(kind.name) == name).unwrap_or(&I440FX) {
        kind if kind.chipset == Chipset::Bhyve => &BHYVE[node.child("lpc").int("slot") as usize],
        kind => kind,
    }
}

/// Whether there is room for a key in the BIOS's buffer, while INT 09h leads to the BIOS. Other systems' drivers have
/// buffers of their own, and larger ones.
fn key_room(memory: Arc<Ram>, base: RamAddr) -> Room {
    const INT_09_SEGMENT: u64 = 4 * 9 + 2;
    const HEAD: u64 = 0x41a;
    const TAIL: u64 = 0x41c;
    /// Keys that may wait there; it holds 15.
    const MOST: u16 = 8;
    Box::new(move || {
        let word = |at: u64| {
            let mut bytes = [0; 2];
            memory.read(RamAddr(base.0 + at), &mut bytes);
            u16::from_le_bytes(bytes)
        };
        word(INT_09_SEGMENT) != 0xf000 || (word(TAIL).wrapping_sub(word(HEAD)) & 31) / 2 < MOST
    })
}

/// Builds the board into `machine`.
///
/// # Errors
/// When a part cannot be made.
pub fn build(machine: &Arc<Machine>, vm: &Arc<dyn Vm>, parts: &Parts) -> Result<Board> {
    let kind = parts.kind;
    machine.set_msi(vm.msi());
    let chips = vm.chips();
    let (isa, ioapic) = match &chips {
        Some(chips) => (chips.isa(), chips.ioapic()),
        None => interrupt_chips(machine, vm),
    };
    let apic_pin = |n: u8| IrqLine::new(ioapic.clone(), u32::from(n));
    let mut isa_wires: Vec<IrqLine> = (0..16).map(|n| IrqLine::new(isa.clone(), n)).collect();
    let legacy = (kind.hpet && chips.is_none()).then(|| LegacyRoute::new(machine, &mut isa_wires));
    machine.set_isa_irqs(isa_wires);

    let inputs = kind.pirqs.len() as u8;
    let pirq = Pirq::with_inputs(machine, (0..inputs).map(|n| apic_pin(PIRQ_GSI + n)).collect());
    let pirq_wires: Vec<IrqLine> = (0..u32::from(inputs)).map(|n| IrqLine::new(pirq.clone(), n)).collect();
    machine.pci.set_routing(Box::new(move |bdf: Bdf, pin: Pin| {
        pirq_wires[usize::from((kind.pirq_of)(bdf.dev, pin as u8))].clone()
    }));

    Mechanism1::new(machine);
    let part = |name: &str, bdf: Option<Bdf>, create: Create| -> Result<Arc<DeviceCell>> {
        machine.plug_with(name, bdf, Backends::default(), create).map_err(|e| anyhow!(e))
    };
    let (host, isa) = (Some(Bdf::new(0, 0)), Some(Bdf::new(kind.isa_bridge, 0)));
    let power = Some(Bdf::new(kind.isa_bridge, 3));
    let pm_base = pm_base(chips.as_deref());
    let ram = parts.ram;
    let (isa_bridge, pm) = match kind.chipset {
        Chipset::I440fx | Chipset::I440bx => {
            let (bridge, piix) = match kind.chipset {
                Chipset::I440fx => (HostBridge::I440fx, Piix::Piix3),
                _ => (HostBridge::I440bx, Piix::Piix4),
            };
            part("host-bridge", host, Box::new(move |s| I440::create(s, bridge, ram)))?;
            let isa_bridge = part("isa-bridge", isa, Box::new(move |s| PiixIsa::create(s, piix, pirq)))?;
            (isa_bridge, part("pm", power, Box::new(move |s| AcpiPm::create(s, pm_base, true)))?)
        }
        Chipset::Bhyve => {
            // Nothing shadows the BIOS area: it is RAM.
            let backing = Backing::Ram(RamAddr(ram.0 + BIOS_AREA.start));
            let len = BIOS_AREA.end - BIOS_AREA.start;
            let area = machine.space.add_memory(BIOS_AREA.start, len, 0, Rights::ReadWrite, backing);
            machine.space.enable(area, BIOS_AREA.start, true);
            part("hostbridge", host, Box::new(|s| BhyveHostBridge::create(s, lpc_bhyve::HOST_BRIDGE)))?;
            let lpc = part("lpc", isa, Box::new(move |s| BhyveLpc::create(s, lpc_bhyve::LPC_BRIDGE, pirq)))?;
            (lpc, part("pm", None, Box::new(|s| Ok(AcpiPm::create_bhyve(s))))?)
        }
    };
    vm.on_ferr(Box::new(move || isa_bridge.event(Event::Ferr)));
    let dma = I8237::new(machine);
    let (typist, keys) = Typist::start(machine, key_room(machine.space.ram().clone(), ram));
    let backends = Backends { keys: Some(keys), ..Backends::default() };
    let i8042 = machine.plug_with("i8042", None, backends, |s| Ok(I8042::create(s))).map_err(|e| anyhow!(e))?;
    let (start, cmos) = (parts.rtc_start, cmos(parts));
    if let Some(chips) = &chips {
        chips.start_rtc(start, &cmos)?;
    } else {
        part("i8254", None, Box::new(|s| Ok(I8254::create(s))))?;
        part("rtc", None, Box::new(move |s| Ok(Mc146818::create(s, start, cmos))))?;
    }
    if let Some(route) = legacy {
        let pins = (PIRQ_GSI + inputs..IOAPIC_PINS).map(|n| (n, apic_pin(n))).collect();
        part("hpet", None, Box::new(move |s| Ok(Hpet::create(s, Hpet::BASE, route, pins))))?;
    }
    // What firmware says there is part of the log, for whoever asks for it.
    let log = Box::new(|line: &str| tracing::debug!(target: "firmware", "{line}"));
    part("debug-ports", None, Box::new(|s| Ok(DebugPorts::create(s, log))))?;
    Ok(Board { pm, typist, pointers: Pointers::new(Arc::downgrade(&i8042)), dma })
}

/// The interrupt chips of a back end that has none: where ISA interrupts and the I/O APIC's pins lead.
fn interrupt_chips(machine: &Arc<Machine>, vm: &Arc<dyn Vm>) -> (Arc<dyn IrqSink>, Arc<dyn IrqSink>) {
    let pic = I8259::new(machine, IrqLine::new(vm.pins(), 0));
    let ioapic = IoApic::new(machine, u64::from(IOAPIC_BASE), vm.msi());
    let acked = pic.clone();
    vm.on_ack(Box::new(move || acked.acknowledge()));
    let ended = ioapic.clone();
    vm.on_eoi(Box::new(move |vector| ended.eoi(vector)));
    (Arc::new(IsaWires { pic, ioapic: ioapic.clone() }), ioapic)
}

/// Where the firmware puts the power management block of a PIIX4: its timer must lie where the back end has one.
fn pm_base(chips: Option<&dyn Chips>) -> u16 {
    chips.map_or(PM_BASE, |chips| chips.pm_timer() - PM_TIMER)
}

impl Kind {
    /// Where the pins of a device lead.
    pub fn routes(&self, bus: u8, device: u8) -> impl Iterator<Item = Route> {
        RoutePin::ALL.into_iter().map(move |pin| {
            let link = (self.pirq_of)(device, pin as u8);
            Route { bus, device, pin, link, gsi: PIRQ_GSI + link }
        })
    }

    /// Whether RAM covers the BIOS below 1 MiB at the firmware's will.
    pub fn shadows(&self) -> bool {
        self.chipset != Chipset::Bhyve
    }
}

/// Puts fw_cfg in.
///
/// # Errors
/// When it cannot be made.
pub fn fw_cfg(machine: &Arc<Machine>, items: FwCfgItems) -> Result<()> {
    machine.plug_with("fw-cfg", None, Backends::default(), |s| Ok(FwCfg::create(s, items))).map_err(|e| anyhow!(e))?;
    Ok(())
}

/// What firmware made for QEMU's machine of this kind looks for.
///
/// # Errors
/// When something is there twice.
pub fn fw_cfg_items(parts: &Parts) -> Result<FwCfgItems> {
    let mut items = FwCfgItems::new();
    items.uuid(parts.uuid);
    items.ram_size(parts.memory);
    items.cpus(parts.cpus as u16, parts.cpus as u16);
    items.no_graphic(true);
    let high = (1 << 32, parts.memory - parts.low_memory, 1);
    let ranges: Vec<_> = [(0, parts.low_memory, 1), high].into_iter().filter(|r| r.1 > 0).collect();
    items.e820(&ranges).map_err(|e| anyhow!(e))?;
    Ok(items)
}

type Create = Box<dyn FnOnce(&mut emu::Slot) -> Result<Box<dyn emu::Device>, String>>;

/// What a BIOS writes into CMOS: equipment, floppy drives and memory sizes.
fn cmos(parts: &Parts) -> Vec<(u8, u8)> {
    let kib = |bytes: u64, max: u64| (bytes >> 10).min(max) as u16;
    let extended = kib(parts.low_memory.saturating_sub(1 << 20), 0xfc00);
    let above_16m = (parts.low_memory.saturating_sub(16 << 20) >> 16).min(0xffff) as u16;
    let above_4g = (parts.memory - parts.low_memory) >> 16;
    let words = [(0x15, 640), (0x17, extended), (0x30, extended), (0x34, above_16m)];
    let drive = |n: usize| parts.floppies.get(n).map_or(0, |model| *model as u8);
    let floppies = match parts.floppies.len() {
        0 => 0,
        n => 1 | (n as u8 - 1) << 6,
    };
    let mut out = vec![(0x10, drive(0) << 4 | drive(1)), (0x14, 0x06 | floppies)];
    for (at, word) in words {
        out.extend([(at, word as u8), (at + 1, (word >> 8) as u8)]);
    }
    // Boot order CD, disk, floppy, and LBA translation of all disks: for Bochs's BIOS and SeaBIOS.
    out.extend([(0x3d, 0x23), (0x38, 0x10), (0x39, 0x55), (0x3a, 0x55), (0x5f, parts.cpus as u8 - 1)]);
    out.extend([(0x5b, above_4g as u8), (0x5c, (above_4g >> 8) as u8), (0x5d, (above_4g >> 16) as u8)]);
    out
}

/// The firmware's view of the board.
pub fn platform(
    kind: &Kind,
    chips: Option<&dyn Chips>,
    cpus: u32,
    model: &cpu::Model,
    low_memory: u64,
    serial: Vec<IsaPort>,
    uuid: [u8; 16],
) -> Platform {
    let pm_base = pm_base(chips);
    let links = kind
        .pirqs
        .iter()
        .zip(PIRQ_IRQS.into_iter().cycle())
        .map(|(&register, irq)| Link { register, irq: Some(irq) })
        .collect();
    let routes = (1..32).flat_map(|device| kind.routes(0, device)).collect();
    let level = |irq| IsaOverride { irq, gsi: irq, polarity: Polarity::High, trigger: Trigger::Level };
    let pm = match kind.chipset {
        Chipset::I440fx | Chipset::I440bx => Pm {
            base: pm_base,
            len: 0x40,
            sci: 9,
            smi: Some(Smi { port: 0xb2, enable: lpc::ACPI_ENABLE, disable: lpc::ACPI_DISABLE }),
            gpe0: Some((pm_base + 0xc, 4)),
            timer_32bit: false,
            reset_port: true,
            s5: 0,
        },
        Chipset::Bhyve => Pm {
            base: lpc_bhyve::PM_BASE,
            len: 0x10,
            sci: 9,
            smi: Some(Smi { port: 0xb2, enable: lpc_bhyve::ACPI_ENABLE, disable: lpc_bhyve::ACPI_DISABLE }),
            gpe0: Some((lpc_bhyve::PM_BASE + 0xc, 2)),
            timer_32bit: true,
            reset_port: true,
            s5: lpc_bhyve::PM_S5 as u8,
        },
    };
    Platform {
        identity: identity(kind, uuid),
        cpus: (0..cpus as u8).map(|n| Cpu { apic_id: n, package: n }).collect(),
        domains: Vec::new(),
        processor: Processor {
            manufacturer: String::from_utf8_lossy(&model.vendor).into_owned(),
            version: if model.brand.is_empty() { model.name.to_owned() } else { model.brand.trim().to_owned() },
            signature: model.signature,
            // As CPUID shows it to one processor: OpenBSD/i386 counts two, and leaves APM, where HTT is set.
            features: model.feature_flags() & !HTT,
            mhz: (model.tsc_hz / 1_000_000) as u16,
        },
        lapic_base: LAPIC_BASE,
        // The id follows the processors'. Without a local APIC nothing can be told to use it.
        ioapic: (chips.is_some() || model.has(cpu::Feature::Apic)).then_some(IoApicInfo {
            id: cpus as u8,
            base: IOAPIC_BASE,
            version: 0x11,
            pins: chips.map_or(IOAPIC_PINS, Chips::ioapic_pins),
        }),
        mptable: true,
        pic: true,
        overrides: vec![IsaOverride { irq: 0, gsi: 2, polarity: Polarity::Bus, trigger: Trigger::Bus }, level(9)],
        pci: Pci {
            links,
            // An MPIIX or PIIX is what drivers know as a router whose registers $PIR names.
            router: Some(Router {
                device: kind.isa_bridge,
                function: 0,
                compatible: (0x8086, 0x122e),
                allowed: 0x0e20,
            }),
            routes,
            roots: Vec::new(),
            window32: (low_memory.max(0xc000_0000) as u32)..=WINDOW32_END,
            window64: None,
        },
        acpi: Some(AcpiVersion::V2),
        pm: Some(pm),
        hpet: kind.hpet.then_some(HpetInfo {
            base: Hpet::BASE as u32,
            id: chips.map_or(Hpet::ID, Chips::hpet_id),
            min_tick: 100,
        }),
        fw_cfg: kind.fw_cfg,
        rtc_century: Some(0x32),
        serial,
        parallel: Vec::new(),
        keyboard: true,
        mouse: true,
        floppy: false,
    }
}

/// SMBIOS strings that a configuration gives in place of the board's, by their keys.
pub type Strings = Vec<(String, String)>;

/// Those of a configuration.
pub fn strings(node: &Node) -> Strings {
    let sections = ["bios", "system", "board", "chassis"].map(|name| node.child("smbios").child(name));
    let given = |section: &Node| -> Strings {
        section.settings().map(|(name, text)| (format!("{}.{name}", section.key()), text.to_string())).collect()
    };
    sections.into_iter().flat_map(given).collect()
}

/// Puts given strings in the place of the board's.
pub fn rename(identity: &mut Identity, strings: &Strings) {
    for (key, text) in strings {
        let Identity { board, chassis, .. } = identity;
        let place = match key.strip_prefix("smbios.").unwrap_or(key) {
            "bios.vendor" => &mut identity.bios_vendor,
            "bios.version" => &mut identity.bios_version,
            "bios.release_date" => &mut identity.bios_date,
            "system.manufacturer" => &mut identity.manufacturer,
            "system.product_name" => &mut identity.product,
            "system.version" => &mut identity.version,
            "system.serial_number" => &mut identity.serial,
            "system.sku" => &mut identity.sku,
            "system.family_name" => &mut identity.family,
            "board.manufacturer" => &mut board.get_or_insert_default().manufacturer,
            "board.product_name" => &mut board.get_or_insert_default().product,
            "board.version" => &mut board.get_or_insert_default().version,
            "board.serial_number" => &mut board.get_or_insert_default().serial,
            "board.asset_tag" => &mut board.get_or_insert_default().asset_tag,
            "board.location" => &mut board.get_or_insert_default().location,
            "chassis.manufacturer" => &mut chassis.manufacturer,
            "chassis.version" => &mut chassis.version,
            "chassis.serial_number" => &mut chassis.serial,
            "chassis.asset_tag" => &mut chassis.asset_tag,
            "chassis.sku" => &mut chassis.sku,
            _ => continue,
        };
        place.clone_from(text);
    }
}

/// Names in SMBIOS and ACPI. FreeBSD and others know bhyve by them.
fn identity(kind: &Kind, uuid: [u8; 16]) -> Identity {
    let ours = Identity {
        bios_vendor: "bhyve-rs".into(),
        bios_version: env!("CARGO_PKG_VERSION").into(),
        bios_date: "01/01/2026".into(),
        manufacturer: "bhyve-rs".into(),
        product: String::new(),
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
    };
    match kind.chipset {
        Chipset::I440fx => Identity { product: "PC (440FX, PIIX3)".into(), ..ours },
        Chipset::I440bx => Identity { product: "PC (440BX, PIIX4)".into(), ..ours },
        Chipset::Bhyve => Identity {
            bios_vendor: "BHYVE".into(),
            bios_version: "14.0".into(),
            bios_date: "10/17/2021".into(),
            manufacturer: "FreeBSD".into(),
            product: "BHYVE".into(),
            sku: "None".into(),
            family: "Virtual Machine".into(),
            ..ours
        },
    }
}
