//! The plain description of a machine from which all firmware tables are made.
//!
//! Machine assembly fills a [`Platform`] from its device tree after it has assigned PCI resources. ACPI, MP, $PIR and
//! SMBIOS tables are only views of it: one routing table ([`Pci::routes`]) becomes `_PRT`, the MP interrupt entries and
//! the $PIR slots, and [`Pci::irq`] gives the interrupt-line registers, so that they cannot disagree.
//!
//! Tables promise a state that a BIOS would have set up, and guests believe them. Without a BIOS the assembly sets it:
//! PIRQ and interrupt-line registers as in [`Pci`], ELCR level for the routed IRQs and the SCI, PMBASE enabled, the I/O
//! APIC's ID register (OpenBSD renumbers it with a complaint), LINT0 of the boot processor ExtINT and LINT1 NMI.

use anyhow::{Result, ensure};
use std::ops::{Range, RangeInclusive};

/// A machine as its firmware describes it to the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// Names and versions.
    pub identity: Identity,
    /// All processors, the boot processor first.
    pub cpus: Vec<Cpu>,
    /// NUMA domains by number; none in a machine whose memory is equally near to all processors.
    pub domains: Vec<Domain>,
    /// What processors say of themselves, for SMBIOS and MP table.
    pub processor: Processor,
    /// Physical base of every local APIC, 0xFEE00000 on any PC.
    pub lapic_base: u32,
    /// The I/O APIC. Without one there is no MADT, no MP table, and `_PRT` knows PIC mode only.
    pub ioapic: Option<IoApic>,
    /// List processors and interrupts in an MP table too.
    pub mptable: bool,
    /// A pair of 8259 is there. Without one there is no $PIR, and `_PRT` knows APIC mode only.
    pub pic: bool,
    /// ISA interrupts that do not arrive, edge-triggered and active high, at the I/O APIC pin of their own number.
    pub overrides: Vec<IsaOverride>,
    /// PCI host bridge, interrupt routing and windows.
    pub pci: Pci,
    /// ACPI tables to offer; `None` for a machine without ACPI.
    pub acpi: Option<AcpiVersion>,
    /// ACPI fixed hardware; needed if `acpi` is set.
    pub pm: Option<Pm>,
    /// High precision event timer.
    pub hpet: Option<Hpet>,
    /// QEMU's firmware configuration device at port 0x510.
    pub fw_cfg: bool,
    /// CMOS index of the century byte, 0x32 on PCs.
    pub rtc_century: Option<u8>,
    /// Serial ports, COM1 first.
    pub serial: Vec<IsaPort>,
    /// Parallel ports, LPT1 first.
    pub parallel: Vec<IsaPort>,
    /// 8042 with a PS/2 keyboard.
    pub keyboard: bool,
    /// PS/2 mouse on the 8042.
    pub mouse: bool,
    /// Floppy controller at 0x3F0.
    pub floppy: bool,
}

/// Which form the ACPI tables have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcpiVersion {
    /// RSDP revision 0, RSDT, FADT of 116 bytes, DSDT of revision 1: what a machine of the 1990s has.
    V1,
    /// RSDP revision 2, RSDT and XSDT, FADT revision 3 with reset register, DSDT of revision 2 (64-bit integers).
    V2,
}

/// A processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Local APIC id, below 255.
    pub apic_id: u8,
    /// Socket number; processors of one socket are its cores.
    pub package: u8,
}

/// Processors and the memory that is near to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Domain {
    /// Local APIC ids.
    pub cpus: Vec<u8>,
    /// Physical addresses.
    pub memory: Vec<Range<u64>>,
}

/// Identification that all processors share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Processor {
    /// Vendor, for SMBIOS.
    pub manufacturer: String,
    /// Brand string, for SMBIOS.
    pub version: String,
    /// CPUID leaf 1 EAX: family, model, stepping.
    pub signature: u32,
    /// CPUID leaf 1 EDX: feature flags.
    pub features: u32,
    /// Clock in MHz; 0 for unknown.
    pub mhz: u16,
}

/// The I/O APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApic {
    /// APIC id, different from all processors'.
    pub id: u8,
    /// Physical base, 0xFEC00000 on any PC.
    pub base: u32,
    /// Version register's low byte: 0x11 or 0x20.
    pub version: u8,
    /// Number of pins; they are global system interrupts 0 and up.
    pub pins: u8,
}

/// Active level of an interrupt; the values are those of MADT and MP table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Polarity {
    /// As the bus has it.
    Bus = 0,
    /// Active high.
    High = 1,
    /// Active low.
    Low = 3,
}

/// Trigger mode of an interrupt; the values are those of MADT and MP table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Trigger {
    /// As the bus has it.
    Bus = 0,
    /// Edge.
    Edge = 1,
    /// Level.
    Level = 3,
}

/// An ISA interrupt with its own wiring to the I/O APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IsaOverride {
    /// ISA IRQ, 0 to 15.
    pub irq: u8,
    /// I/O APIC pin. The PIT's IRQ 0 arrives at pin 2 on PCs.
    pub gsi: u8,
    /// Active level.
    pub polarity: Polarity,
    /// Trigger mode.
    pub trigger: Trigger,
}

impl IsaOverride {
    /// The flag word of MADT and MP table.
    pub(crate) fn flags(&self) -> u16 {
        self.polarity as u16 | (self.trigger as u16) << 2
    }
}

/// PCI interrupt pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Pin {
    /// INTA#.
    A = 0,
    /// INTB#.
    B = 1,
    /// INTC#.
    C = 2,
    /// INTD#.
    D = 3,
}

impl Pin {
    /// All four.
    pub const ALL: [Pin; 4] = [Pin::A, Pin::B, Pin::C, Pin::D];
}

/// PCI as the firmware set it up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pci {
    /// The router's inputs PIRQA, PIRQB and so on; at most eight.
    pub links: Vec<Link>,
    /// The ISA bridge with the routing registers.
    pub router: Option<Router>,
    /// Where each device's pins lead. Devices behind bridges follow by the standard swizzle.
    pub routes: Vec<Route>,
    /// Host bridges beside that of bus 0, by their buses.
    pub roots: Vec<Root>,
    /// Addresses below 4 GiB that the host bridge passes to PCI.
    pub window32: RangeInclusive<u32>,
    /// Addresses above RAM that the host bridge passes to PCI.
    pub window64: Option<RangeInclusive<u64>>,
}

/// A host bridge of its own for one bus above 0. What it passes to PCI, bus 0's does not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Root {
    /// Its bus.
    pub bus: u8,
    /// Ports, ascending.
    pub io: Vec<RangeInclusive<u16>>,
    /// Addresses below 4 GiB, ascending.
    pub memory: Vec<RangeInclusive<u32>>,
}

/// A PIRQ input of the interrupt router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Configuration register of the router: 0x60 to 0x63 in a PIIX. Bit 7 set is "not routed".
    pub register: u8,
    /// The ISA IRQ that the firmware has put into the register.
    pub irq: Option<u8>,
}

/// The ISA bridge that routes PIRQs to the 8259 pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Router {
    /// Device number on bus 0.
    pub device: u8,
    /// Function number.
    pub function: u8,
    /// Vendor and device id of a router that drivers know, for $PIR.
    pub compatible: (u16, u16),
    /// Bit n: the router may use IRQ n for PCI.
    pub allowed: u16,
}

/// One interrupt pin of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Bus.
    pub bus: u8,
    /// Device number.
    pub device: u8,
    /// Pin of the device.
    pub pin: Pin,
    /// Index into [`Pci::links`].
    pub link: u8,
    /// I/O APIC pin in APIC mode, 16 or above: wired past the router (PIRQA to D are pins 16 to 19 on PIIX boards),
    /// since systems that use the I/O APIC switch the router's links off. Not looked at without an I/O APIC.
    pub gsi: u8,
}

impl Pci {
    /// The ISA IRQ that `pin` of `device` on `bus` raises through the router: its interrupt-line register.
    pub fn irq(&self, bus: u8, device: u8, pin: Pin) -> Option<u8> {
        let route = self.routes.iter().find(|r| (r.bus, r.device, r.pin) == (bus, device, pin))?;
        self.links.get(usize::from(route.link))?.irq
    }

    /// All buses, ascending.
    pub(crate) fn buses(&self) -> impl Iterator<Item = u8> + use<> {
        let roots: Vec<u8> = self.roots.iter().map(|root| root.bus).collect();
        [0].into_iter().chain(roots)
    }

    /// Buses and numbers of the devices that have routes, ascending.
    pub(crate) fn devices(&self) -> Vec<(u8, u8)> {
        let mut devices: Vec<(u8, u8)> = self.routes.iter().map(|r| (r.bus, r.device)).collect();
        devices.sort_unstable();
        devices.dedup();
        devices
    }
}

/// ACPI fixed hardware: PM1 event and control block, timer, and what goes with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pm {
    /// PMBASE. PM1 status is there, PM1 control at +4, the timer at +8.
    pub base: u16,
    /// Ports that the block takes: 64 in a PIIX4.
    pub len: u8,
    /// ISA IRQ of the system control interrupt.
    pub sci: u8,
    /// How ACPI mode is switched on; `None` when it always is.
    pub smi: Option<Smi>,
    /// General-purpose event block 0: port and length in bytes (status and enable together).
    pub gpe0: Option<(u16, u8)>,
    /// The timer counts 32 bits instead of 24.
    pub timer_32bit: bool,
    /// Port 0xCF9 resets the machine.
    pub reset_port: bool,
    /// SLP_TYP value of soft off, 0 to 7: 0 in a PIIX4.
    pub s5: u8,
}

/// The SMI command port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Smi {
    /// I/O port, 0xB2 on Intel chipsets.
    pub port: u8,
    /// Value that sets SCI_EN.
    pub enable: u8,
    /// Value that clears SCI_EN.
    pub disable: u8,
}

/// High precision event timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hpet {
    /// Physical base, 0xFED00000 on most PCs.
    pub base: u32,
    /// Low half of its capabilities register: vendor, legacy routing, counter size, comparators, revision.
    pub id: u32,
    /// Least ticks for which periodic mode loses none.
    pub min_tick: u16,
}

/// An ISA serial or parallel port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IsaPort {
    /// First I/O port.
    pub port: u16,
    /// ISA IRQ.
    pub irq: u8,
}

/// Names that the guest sees. Old guests decide by them (FreeBSD's vm_guest by BIOS vendor and product).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// BIOS vendor.
    pub bios_vendor: String,
    /// BIOS version.
    pub bios_version: String,
    /// BIOS date, MM/DD/YYYY.
    pub bios_date: String,
    /// System manufacturer.
    pub manufacturer: String,
    /// System product name.
    pub product: String,
    /// System version.
    pub version: String,
    /// System serial number.
    pub serial: String,
    /// System SKU.
    pub sku: String,
    /// System family.
    pub family: String,
    /// System UUID in RFC 9562 (network) byte order.
    pub uuid: [u8; 16],
    /// Mainboard, if it is to be listed.
    pub board: Option<Board>,
    /// Chassis.
    pub chassis: Chassis,
    /// ACPI OEM id, six characters.
    pub oem_id: String,
    /// ACPI OEM table id, eight characters.
    pub oem_table_id: String,
    /// ACPI creator id, four characters.
    pub creator_id: String,
}

/// SMBIOS strings of the mainboard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Board {
    /// Manufacturer.
    pub manufacturer: String,
    /// Product name.
    pub product: String,
    /// Version.
    pub version: String,
    /// Serial number.
    pub serial: String,
    /// Asset tag.
    pub asset_tag: String,
    /// Location in the chassis.
    pub location: String,
}

/// SMBIOS strings of the chassis.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chassis {
    /// Manufacturer.
    pub manufacturer: String,
    /// Version.
    pub version: String,
    /// Serial number.
    pub serial: String,
    /// Asset tag.
    pub asset_tag: String,
    /// SKU.
    pub sku: String,
}

impl Default for Identity {
    fn default() -> Self {
        let text = str::to_string;
        Self {
            bios_vendor: text("bhyve-rs"),
            bios_version: text(env!("CARGO_PKG_VERSION")),
            bios_date: text("01/01/2026"),
            manufacturer: text("bhyve-rs"),
            product: text("PC"),
            version: text("1.0"),
            serial: String::new(),
            sku: String::new(),
            family: String::new(),
            uuid: [0; 16],
            board: None,
            chassis: Chassis { manufacturer: text("bhyve-rs"), ..Chassis::default() },
            oem_id: text("BHYVRS"),
            oem_table_id: text("BHYVRSPC"),
            creator_id: text("BHRS"),
        }
    }
}

impl Platform {
    /// Checks what the tables rely on.
    ///
    /// # Errors
    /// One line naming the first contradiction.
    pub fn check(&self) -> Result<()> {
        ensure!((1..=254).contains(&self.cpus.len()), "{} processors: need 1 to 254", self.cpus.len());
        let mut ids = [false; 256];
        for id in self.cpus.iter().map(|c| c.apic_id).chain(self.ioapic.map(|i| i.id)) {
            ensure!(id < 255 && !ids[usize::from(id)], "APIC id {id} is used twice or is the broadcast id");
            ids[usize::from(id)] = true;
        }
        ensure!(self.pic || self.ioapic.is_some(), "neither an 8259 pair nor an I/O APIC");
        ensure!(self.acpi.is_none() || self.pm.is_some(), "ACPI tables need a PM block");
        if let Some(pm) = self.pm {
            ensure!(pm.s5 < 8 && pm.sci < 16, "PM block: soft off type {} or SCI {} out of range", pm.s5, pm.sci);
        }
        let pins = self.ioapic.map_or(u8::MAX, |i| i.pins);
        for (index, o) in self.overrides.iter().enumerate() {
            ensure!(o.irq < 16 && o.gsi < pins, "ISA IRQ {} to pin {} is out of range", o.irq, o.gsi);
            let twice = self.overrides[..index].iter().any(|p| p.irq == o.irq || p.gsi == o.gsi);
            ensure!(!twice, "ISA IRQ {} or its pin {} is overridden twice", o.irq, o.gsi);
        }
        self.check_pci(pins)
    }

    fn check_pci(&self, pins: u8) -> Result<()> {
        let pci = &self.pci;
        ensure!(!pci.window32.is_empty(), "PCI without memory window");
        ensure!(self.pci.buses().is_sorted_by(|a, b| a < b), "PCI buses are not in order");
        ensure!(pci.links.len() <= 8, "{} PIRQ links: at most 8", pci.links.len());
        for (index, link) in pci.links.iter().enumerate() {
            let twice = pci.links[..index].iter().any(|l| l.register == link.register);
            ensure!(!twice || pci.router.is_none(), "two PIRQ links at register 0x{:x}", link.register);
            let allowed = pci.router.map_or(u16::MAX, |r| r.allowed);
            let good = link.irq.is_none_or(|irq| irq < 16 && allowed >> irq & 1 == 1);
            ensure!(good, "PIRQ link {index} is set to an IRQ that the router does not allow");
        }
        for (index, route) in pci.routes.iter().enumerate() {
            let good_pin = self.ioapic.is_none() || (16..pins).contains(&route.gsi);
            ensure!(
                route.device < 32 && usize::from(route.link) < pci.links.len() && good_pin,
                "PCI device {} pin {:?}: link {} or interrupt {} out of range",
                route.device,
                route.pin,
                route.link,
                route.gsi
            );
            let twice =
                pci.routes[..index].iter().any(|r| (r.bus, r.device, r.pin) == (route.bus, route.device, route.pin));
            ensure!(!twice, "PCI device {} pin {:?} is routed twice", route.device, route.pin);
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A 440FX and PIIX3 machine with PM function, two processors and everything on board.
    pub(crate) fn pc() -> Platform {
        let links = [11, 10, 11, 10].into_iter().zip(0x60..);
        let links = links.map(|(irq, register)| Link { register, irq: Some(irq) }).collect();
        let mut routes = Vec::new();
        for device in 1..32u8 {
            for pin in Pin::ALL {
                let link = (device + 3 + pin as u8) & 3;
                routes.push(Route { bus: 0, device, pin, link, gsi: 16 + link });
            }
        }
        Platform {
            identity: Identity::default(),
            cpus: vec![Cpu { apic_id: 0, package: 0 }, Cpu { apic_id: 1, package: 1 }],
            domains: Vec::new(),
            processor: Processor { signature: 0x6F2, features: 0x78B_FBFF, mhz: 1000, ..Processor::default() },
            lapic_base: 0xFEE0_0000,
            ioapic: Some(IoApic { id: 2, base: 0xFEC0_0000, version: 0x11, pins: 24 }),
            mptable: true,
            pic: true,
            overrides: vec![
                IsaOverride { irq: 0, gsi: 2, polarity: Polarity::Bus, trigger: Trigger::Bus },
                IsaOverride { irq: 9, gsi: 9, polarity: Polarity::Low, trigger: Trigger::Level },
            ],
            pci: Pci {
                links,
                router: Some(Router { device: 1, function: 0, compatible: (0x8086, 0x7000), allowed: 0x0C20 }),
                routes,
                roots: Vec::new(),
                window32: 0xC000_0000..=0xFEBF_FFFF,
                window64: Some(0x80_0000_0000..=0xFF_FFFF_FFFF),
            },
            acpi: Some(AcpiVersion::V2),
            pm: Some(Pm {
                base: 0x600,
                len: 64,
                sci: 9,
                smi: Some(Smi { port: 0xB2, enable: 0xF1, disable: 0xF0 }),
                gpe0: Some((0x60C, 4)),
                timer_32bit: false,
                reset_port: true,
                s5: 0,
            }),
            hpet: Some(Hpet { base: 0xFED0_0000, id: 0x8086_A201, min_tick: 100 }),
            fw_cfg: true,
            rtc_century: Some(0x32),
            serial: vec![IsaPort { port: 0x3F8, irq: 4 }, IsaPort { port: 0x2F8, irq: 3 }],
            parallel: vec![IsaPort { port: 0x378, irq: 7 }],
            keyboard: true,
            mouse: true,
            floppy: true,
        }
    }

    #[test]
    fn interrupt_line_follows_route_and_link() {
        let pci = pc().pci;
        assert_eq!(pci.irq(0, 1, Pin::D), Some(10), "PIIX3 USB: device 1 INTD is PIRQD");
        assert_eq!(pci.irq(0, 3, Pin::A), Some(11), "device 3 INTA is PIRQC");
        assert_eq!(pci.irq(0, 0, Pin::A), None);
    }

    #[test]
    fn contradictions_are_refused() {
        type Change = fn(&mut Platform);
        let cases: [(&str, Change); 12] = [
            ("processors", |p| p.cpus.clear()),
            ("APIC id", |p| p.cpus[1].apic_id = 0),
            ("APIC id", |p| p.ioapic.as_mut().unwrap().id = 1),
            ("APIC id", |p| p.cpus[1].apic_id = 255),
            ("PM block", |p| p.pm = None),
            ("neither", |p| (p.pic, p.ioapic) = (false, None)),
            ("overridden twice", |p| p.overrides[1].gsi = 2),
            ("does not allow", |p| p.pci.links[0].irq = Some(9)),
            ("routed twice", |p| p.pci.routes[1] = p.pci.routes[0]),
            ("out of range", |p| p.pci.routes[0].gsi = 24),
            ("out of range", |p| p.pci.routes[0].gsi = 11),
            ("two PIRQ links", |p| p.pci.links[1].register = 0x60),
        ];
        assert!(pc().check().is_ok());
        for (expected, change) in cases {
            let mut platform = pc();
            change(&mut platform);
            let error = platform.check().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
