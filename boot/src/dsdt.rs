//! The DSDT: what AML the machine offers, and why so little.
//!
//! The guests that matter most have AML interpreters of 2007 to 2012 (ACPICA in FreeBSD 7 to 9, OpenBSD's own), so
//! only ACPI 1.0 opcodes appear, every name is defined before it is used, and no method loops or waits. Contents: the
//! PCI host bridge with its windows, the interrupt link devices over the router's PIRQ registers, `_PRT` for both
//! interrupt modes (`\_PIC` chooses), the ISA devices that are present, processors, and soft off. There is no `_S3`
//! or `_S4`: with those listed a guest would sleep and find no firmware to wake it. The power button is a fixed
//! feature.
//!
//! Source: ACPI specification 1.0b chapters 5, 6 and 15, 2.0 for the `\_PIC` protocol; EISA ids from the PNP list.

use std::ops::RangeInclusive;

use crate::platform::{Pci, Platform, Pm, Root, Router};
use acpi_tables::{
    Aml, AmlSink,
    aml::{
        AddressSpace, AddressSpaceCacheable, And, Arg, Device, EISAName, Equal, Field, FieldAccessType, FieldEntry,
        FieldLockRule, FieldUpdateRule, IO, If, Local, Memory32Fixed, Method, Name, OpRegion, OpRegionSpace, Or,
        Package, PackageBuilder, Path, ResourceTemplate, Return, Scope, ShiftLeft, Store, Subtract, ZERO,
    },
};

/// The definition block's body: all AML behind the table header.
pub(crate) fn build(platform: &Platform, pm: &Pm) -> Vec<u8> {
    let mut aml = Vec::new();
    let picm = Path::new("PICM");
    Name::new(Path::new("\\PICM"), &ZERO).to_aml_bytes(&mut aml);
    let store = Store::new(&picm, &Arg(0));
    Method::new(Path::new("\\_PIC"), 1, false, vec![&store]).to_aml_bytes(&mut aml);
    let s5 = Package::new(vec![&pm.s5, &pm.s5, &ZERO, &ZERO]);
    Name::new(Path::new("\\_S5_"), &s5).to_aml_bytes(&mut aml);

    let processors = Raw::of((0u8..).zip(&platform.cpus).map(|(id, _)| Processor(id)));
    Scope::new(Path::new("\\_PR_"), vec![&processors]).to_aml_bytes(&mut aml);

    let bridge = host_bridge(platform, pm);
    let links = links(&platform.pci);
    let prt = prt(platform, 0);
    let routing = Scope::new(Path::new("PCI0"), vec![&prt]);
    let roots = Raw::of(platform.pci.roots.iter().map(|root| further_root(platform, root)));
    let hpet = platform.hpet.map(|h| {
        let resources = Memory32Fixed::new(false, h.base, 0x400);
        device("HPET", "PNP0103", &[&resources])
    });
    let hpet = Raw::of(hpet);
    // By this id Linux's driver finds it.
    let fw_cfg = Raw::of(platform.fw_cfg.then(|| device("FWCF", "QEMU0002", &[&io(0x510, 12)])));
    Scope::new(Path::new("\\_SB_"), vec![&bridge, &links, &routing, &roots, &hpet, &fw_cfg]).to_aml_bytes(&mut aml);
    aml
}

/// AML made earlier.
struct Raw(Vec<u8>);

impl Raw {
    fn of(parts: impl IntoIterator<Item = impl Aml>) -> Self {
        let mut bytes = Vec::new();
        for part in parts {
            part.to_aml_bytes(&mut bytes);
        }
        Self(bytes)
    }
}

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// ProcessorOp, which the crate lacks since ACPI 6 dropped it: the only form of a processor before ACPI 3.0.
/// The processor block (clock throttling, C2, C3) is absent.
struct Processor(u8);

impl Aml for Processor {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let hex = |digit: u8| char::from_digit(u32::from(digit), 16).map_or(b'0', |c| c.to_ascii_uppercase() as u8);
        // ExtOpPrefix, ProcessorOp, length including itself: name, id, block address, block length.
        sink.vec(&[0x5B, 0x83, 11, b'C', b'P', hex(self.0 >> 4), hex(self.0 & 15), self.0, 0, 0, 0, 0, 0]);
    }
}

/// Small IRQ descriptor. PCI links say level, active low, shared; ISA devices leave the flags out: edge, high,
/// exclusive.
struct Irq {
    mask: u16,
    pci: bool,
}

impl Irq {
    fn isa(irq: u8) -> Self {
        Self { mask: 1 << (irq & 15), pci: false }
    }
}

impl Aml for Irq {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(if self.pci { 0x23 } else { 0x22 });
        sink.word(self.mask);
        if self.pci {
            sink.byte(0x18);
        }
    }
}

/// DMA descriptor: one 8-bit channel, compatible timing. Channel 4 is the cascade and counts as bus master, 8 and 16
/// bit.
struct Dma(u8);

impl Aml for Dma {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&[0x2A, 1 << self.0, if self.0 == 4 { 5 } else { 0 }]);
    }
}

/// `CreateWordField (buffer, 1, name)`: the mask of a small IRQ descriptor at the start of a resource buffer.
struct IrqMaskField<'a>(&'a dyn Aml);

const IRQ_MASK: &str = "IRQM";

impl Aml for IrqMaskField<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0x8B);
        self.0.to_aml_bytes(sink);
        1u8.to_aml_bytes(sink);
        Path::new(IRQ_MASK).to_aml_bytes(sink);
    }
}

/// `FindSetRightBit (value, target)`: counts from 1, gives 0 for none.
struct FindSetRightBit<'a>(&'a dyn Aml, &'a dyn Aml);

impl Aml for FindSetRightBit<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0x82);
        self.0.to_aml_bytes(sink);
        self.1.to_aml_bytes(sink);
    }
}

fn io(base: u16, len: u8) -> IO {
    IO::new(base, base, 1, len)
}

/// A device with a plug-and-play id and fixed resources.
fn device(name: &str, id: &str, resources: &[&dyn Aml]) -> Raw {
    // PNP ids of seven characters have a short form; ACPI ids of eight are text.
    let (pnp, text);
    let id: &dyn Aml = if id.len() == 7 {
        pnp = EISAName::new(id);
        &pnp
    } else {
        text = id.to_owned();
        &text
    };
    let hid = Name::new(Path::new("_HID"), id);
    let crs = Name::new(Path::new("_CRS"), &ResourceTemplate::new(resources.to_vec()));
    Raw::of([Device::new(Path::new(name), vec![&hid, &crs])])
}

/// As [`device`] for the `index`th of several: they differ in `_UID`.
fn numbered_device(name: &str, id: &str, index: usize, resources: &[&dyn Aml]) -> Raw {
    let hid = Name::new(Path::new("_HID"), &EISAName::new(id));
    let uid = Name::new(Path::new("_UID"), &(index as u8 + 1));
    let crs = Name::new(Path::new("_CRS"), &ResourceTemplate::new(resources.to_vec()));
    Raw::of([Device::new(Path::new(name), vec![&hid, &uid, &crs])])
}

/// `\_SB.PCI0` with its windows and, in the ISA bridge, the PIRQ registers and legacy devices.
fn host_bridge(platform: &Platform, pm: &Pm) -> Raw {
    use AddressSpaceCacheable::{Cacheable, NotCacheable};
    let pci = &platform.pci;
    let buses = AddressSpace::new_bus_number(0u16, 0);
    let config = io(0xCF8, 8);
    let io_low = AddressSpace::new_io(0u16, 0xCF7, None);
    let roots = || pci.roots.iter();
    let io_high = without(0xD00..=0xFFFF, roots().flat_map(|root| &root.io).map(|r| (*r.start(), *r.end())));
    let io_high =
        Raw::of(io_high.into_iter().map(|(first, last)| AddressSpace::new_io(first as u16, last as u16, None)));
    let vga = AddressSpace::new_memory(Cacheable, true, 0xA_0000u32, 0xB_FFFF, None);
    let window32 = u64::from(*pci.window32.start())..=u64::from(*pci.window32.end());
    let low = without(window32, roots().flat_map(|root| &root.memory).map(|r| (*r.start(), *r.end())));
    let low = Raw::of(
        low.into_iter()
            .map(|(first, last)| AddressSpace::new_memory(NotCacheable, true, first as u32, last as u32, None)),
    );
    let high = pci.window64.as_ref();
    let high = high.map(|w| AddressSpace::new_memory(NotCacheable, true, *w.start(), *w.end(), None));
    let high = Raw::of(high);
    let windows = ResourceTemplate::new(vec![&buses, &config, &io_low, &io_high, &vga, &low, &high]);

    let hid = Name::new(Path::new("_HID"), &EISAName::new("PNP0A03"));
    let adr = Name::new(Path::new("_ADR"), &ZERO);
    let crs = Name::new(Path::new("_CRS"), &windows);
    let devices = isa_devices(platform, pm);
    let isa = match pci.router {
        Some(router) => isa_bridge(pci, &router, &devices),
        None => devices,
    };
    Raw::of([Device::new(Path::new("PCI0"), vec![&hid, &adr, &crs, &isa])])
}

/// What of `all` is in none of `taken`.
fn without<T: Into<u64>>(all: RangeInclusive<u64>, taken: impl Iterator<Item = (T, T)>) -> Vec<(u64, u64)> {
    let mut taken: Vec<(u64, u64)> = taken.map(|(first, last)| (first.into(), last.into())).collect();
    taken.sort_unstable();
    let (mut left, mut next) = (Vec::new(), *all.start());
    for (first, last) in taken {
        if next < first {
            left.push((next, first - 1));
        }
        next = last + 1;
    }
    if next <= *all.end() {
        left.push((next, *all.end()));
    }
    left
}

/// The host bridge of a bus above 0, by the name that bhyve(8) gives it.
fn further_root(platform: &Platform, root: &Root) -> Raw {
    let buses = AddressSpace::new_bus_number(u16::from(root.bus), root.bus.into());
    let io = Raw::of(root.io.iter().map(|r| AddressSpace::new_io(*r.start(), *r.end(), None)));
    let memory = root.memory.iter();
    let memory = Raw::of(
        memory.map(|r| AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, *r.start(), *r.end(), None)),
    );
    let hid = Name::new(Path::new("_HID"), &EISAName::new("PNP0A03"));
    let uid = Name::new(Path::new("_UID"), &root.bus);
    let bbn = Name::new(Path::new("_BBN"), &root.bus);
    let crs = Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&buses, &io, &memory]));
    let prt = prt(platform, root.bus);
    Raw::of([Device::new(Path::new(&format!("PC{:02X}", root.bus)), vec![&hid, &uid, &bbn, &crs, &prt])])
}

/// Field over the router's register for link `index`.
fn pirq_register(index: usize) -> [u8; 4] {
    [b'P', b'R', b'Q', b'A' + index as u8]
}

fn link_name(index: usize) -> String {
    format!("LNK{}", char::from(b'A' + index as u8))
}

fn isa_bridge(pci: &Pci, router: &Router, devices: &Raw) -> Raw {
    let adr = u32::from(router.device) << 16 | u32::from(router.function);
    let adr = Name::new(Path::new("_ADR"), &adr);
    let mut registers: Vec<(u8, usize)> = pci.links.iter().map(|l| l.register).zip(0..).collect();
    registers.sort_unstable();
    let Some((first, last)) = registers.first().map(|r| r.0).zip(registers.last().map(|r| r.0)) else {
        return Raw::of([Device::new(Path::new("ISA_"), vec![&adr, devices])]);
    };
    let mut fields = Vec::new();
    let mut at = first;
    for (register, index) in registers {
        if register > at {
            fields.push(FieldEntry::Reserved(usize::from(register - at) * 8));
        }
        fields.push(FieldEntry::Named(pirq_register(index), 8));
        at = register.saturating_add(1);
    }
    let len = last - first + 1;
    let region = OpRegion::new(Path::new("PIRQ"), OpRegionSpace::PCIConfig, &first, &len);
    let field =
        Field::new(Path::new("PIRQ"), FieldAccessType::Byte, FieldLockRule::NoLock, FieldUpdateRule::Preserve, fields);
    Raw::of([Device::new(Path::new("ISA_"), vec![&adr, &region, &field, devices])])
}

fn isa_devices(platform: &Platform, pm: &Pm) -> Raw {
    let mut devices = Vec::new();
    if platform.pic {
        devices.push(device("PIC_", "PNP0000", &[&io(0x20, 2), &io(0xA0, 2), &Irq::isa(2)]));
    }
    devices.push(device("TIMR", "PNP0100", &[&io(0x40, 4), &Irq::isa(0)]));
    devices.push(device("DMAC", "PNP0200", &[&io(0x00, 16), &io(0x81, 15), &io(0xC0, 32), &Dma(4)]));
    devices.push(device("RTC_", "PNP0B00", &[&io(0x70, 2), &Irq::isa(8)]));
    devices.push(device("SPKR", "PNP0800", &[&io(0x61, 1)]));
    devices.push(device("FPU_", "PNP0C04", &[&io(0xF0, 16), &Irq::isa(13)]));
    if platform.keyboard {
        devices.push(device("KBD_", "PNP0303", &[&io(0x60, 1), &io(0x64, 1), &Irq::isa(1)]));
    }
    if platform.mouse {
        devices.push(device("MOU_", "PNP0F13", &[&Irq::isa(12)]));
    }
    for (index, port) in platform.serial.iter().enumerate().take(9) {
        let name = format!("COM{}", index + 1);
        devices.push(numbered_device(&name, "PNP0501", index, &[&io(port.port, 8), &Irq::isa(port.irq)]));
    }
    for (index, port) in platform.parallel.iter().enumerate().take(9) {
        let name = format!("LPT{}", index + 1);
        devices.push(numbered_device(&name, "PNP0400", index, &[&io(port.port, 8), &Irq::isa(port.irq)]));
    }
    if platform.floppy {
        devices.push(device("FDC0", "PNP0700", &[&io(0x3F2, 4), &io(0x3F7, 1), &Irq::isa(6), &Dma(2)]));
    }
    devices.push(motherboard(platform, pm));
    Raw::of(devices)
}

/// What is decoded on the board and belongs to no device: keeps the guest from giving these addresses to PCI devices.
fn motherboard(platform: &Platform, pm: &Pm) -> Raw {
    let mut resources = vec![Raw::of([io(0x80, 1), io(0x92, 1)]), Raw::of([io(pm.base, pm.len)])];
    if platform.pic {
        resources.push(Raw::of([io(0x4D0, 2)]));
    }
    if let Some(smi) = pm.smi {
        resources.push(Raw::of([io(u16::from(smi.port), 2)]));
    }
    let inside = |port: u16| port.wrapping_sub(pm.base) < u16::from(pm.len);
    if let Some((port, len)) = pm.gpe0.filter(|(port, _)| !inside(*port)) {
        resources.push(Raw::of([io(port, len)]));
    }
    if let Some(ioapic) = platform.ioapic {
        let lapic = Memory32Fixed::new(true, platform.lapic_base, 0x1000);
        resources.push(Raw::of([Memory32Fixed::new(true, ioapic.base, 0x1000), lapic]));
    }
    device("MBRD", "PNP0C02", &[&Raw::of(resources)])
}

/// `\_SB.LNKA` and so on: the operating system may read, change and switch off each PIRQ's routing to the 8259 pair.
fn links(pci: &Pci) -> Raw {
    let Some(router) = pci.router else { return Raw(Vec::new()) };
    Raw::of(pci.links.iter().enumerate().map(|(index, _)| link(index, router.allowed)))
}

fn link(index: usize, allowed: u16) -> Raw {
    let register = pirq_register(index);
    let register = Path::new(&format!("\\_SB_.PCI0.ISA_.{}", String::from_utf8_lossy(&register)));
    let (disabled, mask, local) = (0x80u8, Path::new(IRQ_MASK), Local(0));
    let hid = Name::new(Path::new("_HID"), &EISAName::new("PNP0C0F"));
    let uid = Name::new(Path::new("_UID"), &(index as u8 + 1));
    let possible = Irq { mask: allowed, pci: true };
    let prs = Name::new(Path::new("_PRS"), &ResourceTemplate::new(vec![&possible]));

    let is_off = And::new(&ZERO, &register, &disabled);
    // Present and decoding; without "enabled" when bit 7 is set.
    let (return_off, on) = (Return::new(&0x09u8), Return::new(&0x0Bu8));
    let off = If::new(&is_off, vec![&return_off]);
    let sta = Method::new(Path::new("_STA"), 0, false, vec![&off, &on]);

    let set_off = Or::new(&register, &register, &disabled);
    let dis = Method::new(Path::new("_DIS"), 0, false, vec![&set_off]);

    let none = Irq { mask: 0, pci: true };
    let buffer = ResourceTemplate::new(vec![&none]);
    let to_local = Store::new(&local, &buffer);
    let field = IrqMaskField(&local);
    let is_on = Equal::new(&is_off, &ZERO);
    let number = And::new(&ZERO, &register, &0x0Fu8);
    let shift = ShiftLeft::new(&mask, &1u8, &number);
    let current = If::new(&is_on, vec![&shift]);
    let result = Return::new(&local);
    // Serialised: CreateWordField makes a named object, which must not be made twice at once.
    let crs = Method::new(Path::new("_CRS"), 0, true, vec![&to_local, &field, &current, &result]);

    let argument = Arg(0);
    let wanted = IrqMaskField(&argument);
    let lowest = FindSetRightBit(&mask, &local);
    let less_one = Subtract::new(&register, &local, &1u8);
    let route = If::new(&local, vec![&less_one]);
    let srs = Method::new(Path::new("_SRS"), 1, true, vec![&wanted, &lowest, &route]);
    Raw::of([Device::new(Path::new(&link_name(index)), vec![&hid, &uid, &prs, &sta, &dis, &crs, &srs])])
}

/// Names that a decoder looks for: routes in PIC mode and in APIC mode.
pub(crate) const PIC_ROUTES: &str = "PRTP";
pub(crate) const APIC_ROUTES: &str = "PRTA";

/// `_PRT` of a bus and its tables.
fn prt(platform: &Platform, bus: u8) -> Raw {
    let pci = &platform.pci;
    let routes = || pci.routes.iter().filter(|route| route.bus == bus);
    let mut parts = Vec::new();
    if platform.pic {
        let mut table = PackageBuilder::new();
        for route in routes() {
            let (address, pin) = (address(route.device), route.pin as u8);
            if pci.router.is_some() {
                let link = Path::new(&format!("\\_SB_.{}", link_name(usize::from(route.link))));
                table.add_element(&Package::new(vec![&address, &pin, &link, &ZERO]));
            } else if let Some(irq) = pci.irq(bus, route.device, route.pin) {
                table.add_element(&Package::new(vec![&address, &pin, &ZERO, &irq]));
            }
        }
        parts.push(Raw::of([Name::new(Path::new(PIC_ROUTES), &table)]));
    }
    if platform.ioapic.is_some() {
        let mut table = PackageBuilder::new();
        for route in routes() {
            let (address, pin) = (address(route.device), route.pin as u8);
            table.add_element(&Package::new(vec![&address, &pin, &ZERO, &route.gsi]));
        }
        parts.push(Raw::of([Name::new(Path::new(APIC_ROUTES), &table)]));
    }
    let (pic, apic) = (Path::new(PIC_ROUTES), Path::new(APIC_ROUTES));
    let (return_pic, return_apic) = (Return::new(&pic), Return::new(&apic));
    let picm = Path::new("\\PICM");
    let if_apic = If::new(&picm, vec![&return_apic]);
    let body: Vec<&dyn Aml> = match (platform.pic, platform.ioapic.is_some()) {
        (true, true) => vec![&if_apic, &return_pic],
        (true, false) => vec![&return_pic],
        _ => vec![&return_apic],
    };
    parts.push(Raw::of([Method::new(Path::new("_PRT"), 0, false, body)]));
    Raw::of(parts)
}

/// All functions of a device, as `_PRT` wants it.
fn address(device: u8) -> u32 {
    u32::from(device) << 16 | 0xFFFF
}
