//! AHCI: the host bus adapter for Serial ATA, with disks and CD-ROM drives at its ports.
//!
//! Serial ATA AHCI 1.3.1, and the datasheets of the 82801FB (ICH6, 301473), 82801GB (ICH7, 307013), 82801HB (ICH8,
//! 313056) and 82801IB (ICH9, 316972). `chip` chooses whose identity the function has; the default is the one that
//! bhyve(8) shows, an ICH8 without the I/O BARs. All chips have those (0 to 4), of which only the pair of index and
//! data at the end of BAR 4 answers with something: the function is in AHCI mode and has no IDE registers.
//!
//! Modelled: 32 command slots a port, native command queuing, PIO, DMA and packet commands, COMRESET and software
//! reset, PxCMD.CLO, hot plug (a disk whose image is taken out is pulled, and plugged in when there is one again), one
//! MSI or INTA# (drivers that would like a vector a port take one). Links are up after a reset, as if firmware had spun
//! them up. Not modelled: port multipliers, command completion coalescing, enclosure management, link power states
//! beyond being asked for, interrupts by single descriptors (PxIS.DPS), DMA setup FISes in the received area.
//!
//! Guests: ahci(4) of FreeBSD, OpenBSD and DragonFly, ahcisata(4) of NetBSD, ata(4) of FreeBSD before 9, Linux,
//! SeaBIOS.

use std::sync::Arc;

use emu::{
    BarKind, Class, Device, DmaMem, Event, IrqLine, Model, Msi, Param, ParamKind, Params, PciIds, Pin, ResetKind, Slot,
    State, Unit, Widths,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ahci_port::{Port, PortState};
use super::drive::{Drive, DriveState, drive_of_tag};
use super::sata::{DEPTH, Make, name};

const KEYS: &[Param] = &[
    Param {
        name: "chip",
        kind: ParamKind::Choice(&["bhyve", "ich6", "ich7", "ich8", "ich9"]),
        default: "bhyve",
        help: "whose identity it has: bhyve's, or one of Intel's chips, of which ICH6 and ICH7 have four ports",
    },
    Param { name: "ser", kind: ParamKind::Text, default: "", help: "serial number of the first drive, 20 characters" },
    Param { name: "rev", kind: ParamKind::Text, default: "001", help: "firmware revision of the drives, 8 characters" },
    Param { name: "product", kind: ParamKind::Text, default: "", help: "model name of the drives, 40 characters" },
    Param {
        name: "nmrr",
        kind: ParamKind::Int(0, 0xfffe),
        default: "0",
        help: "rotations of the disks a minute; 1: they do not rotate",
    },
];

/// With up to 32 drives.
pub static AHCI: Model = Model {
    name: "ahci",
    summary: "AHCI controller for Serial ATA, up to 32 disks and CD-ROM drives",
    class: Class::Storage { units: 32, cds: true },
    keys: KEYS,
    create: Ahci::create,
};

/// bhyve's short form with one disk.
pub static AHCI_HD: Model = Model {
    name: "ahci-hd",
    summary: "AHCI controller with one disk",
    class: Class::Storage { units: 1, cds: false },
    keys: KEYS,
    create: Ahci::create,
};

/// bhyve's short form with one CD-ROM drive.
pub static AHCI_CD: Model = Model {
    name: "ahci-cd",
    summary: "AHCI controller with one CD-ROM drive",
    class: Class::Storage { units: 1, cds: true },
    keys: KEYS,
    create: Ahci::create,
};

/// Regions: the I/O BARs by their numbers, and the registers.
const LEGACY: [u64; 5] = [8, 4, 8, 4, 32];
const INDEX_BAR: u32 = 4;
const ABAR: u32 = 5;
/// The pair of index and data in BAR 4.
const SIDX: u64 = 0x10;
const SDATA: u64 = 0x14;

/// Generic host control, by offset.
mod reg {
    pub const CAP: u64 = 0x00;
    pub const GHC: u64 = 0x04;
    pub const IS: u64 = 0x08;
    pub const PI: u64 = 0x0c;
    pub const VS: u64 = 0x10;
}
const PORTS: u64 = 0x100;
const PORT_LEN: u64 = 0x80;

const GHC_AE: u32 = 1 << 31;
const GHC_IE: u32 = 1 << 1;
const GHC_HR: u32 = 1 << 0;

/// 64-bit addresses, queuing, staggered spin-up, an activity LED, command list override, three speeds, multiple DRQ
/// blocks, partial and slumber states, external connectors; AHCI mode alone, so that GHC.AE is always set.
const CAP: u32 = 1 << 31 | 1 << 30 | 1 << 27 | 1 << 25 | 1 << 24 | 3 << 20 | 1 << 18 | 0xe000 | 1 << 5;

/// Who the function is.
struct Chip {
    device: u16,
    revision: u8,
    version: u32,
    /// It has so many ports.
    ports: usize,
    legacy: bool,
}

impl Chip {
    fn of(name: &str) -> Chip {
        let (device, revision, version, ports) = match name {
            "ich6" => (0x2652, 0x03, 0x1_0000, 4),
            "ich7" => (0x27c1, 0x01, 0x1_0100, 4),
            "ich8" => (0x2821, 0x02, 0x1_0100, 6),
            "ich9" => (0x2922, 0x02, 0x1_0200, 6),
            _ => return Chip { device: 0x2821, revision: 0, version: 0x1_0300, ports: 32, legacy: false },
        };
        Chip { device, revision, version, ports, legacy: true }
    }
}

/// The registers that all ports share.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Hba {
    /// GHC but for AE.
    control: u32,
    is: u32,
    /// What a message was sent for and is not cleared.
    told: u32,
    /// SIDX.
    index: u32,
}

/// All that is saved.
#[derive(Serialize, Deserialize)]
struct Saved {
    hba: Hba,
    ports: Vec<PortState>,
    drives: Vec<Option<DriveState>>,
}

/// The function.
struct Ahci {
    dma: DmaMem,
    irq: Arc<IrqLine>,
    msi: Msi,
    cap: u32,
    implemented: u32,
    version: u32,
    ports: Vec<Port>,
    s: Hba,
}

impl Ahci {
    fn create(slot: &mut Slot, params: &Params) -> Result<Box<dyn Device>, String> {
        let chip = Chip::of(params.get("chip").unwrap_or("bhyve"));
        let units: Vec<Unit> = (0..32).map(|n| slot.unit(n)).collect();
        let used = units.iter().rposition(|u| *u != Unit::None).map_or(0, |n| n + 1);
        if used > chip.ports {
            return Err(format!("this AHCI controller has {} ports", chip.ports));
        }
        let ids = PciIds {
            vendor: 0x8086,
            device: chip.device,
            class: 0x01_0601,
            revision: chip.revision,
            ..PciIds::default()
        };
        let function = slot.pci(ids)?;
        let count = used.max(chip.ports.min(6));
        if chip.legacy {
            for (n, len) in LEGACY.into_iter().enumerate() {
                slot.bar(n as u8, BarKind::Io, len, n as u32, Widths::DWORD);
            }
            // MAP says AHCI mode; PCS enables the ports.
            let enabled = (1u8 << count) - 1;
            function.config(|c| {
                c.set8(0x90, 0x40);
                c.set8(0x92, enabled);
                c.writable(0x92, &[enabled]);
            });
        }
        let len = (PORTS + PORT_LEN * count as u64).next_power_of_two().max(0x1000);
        slot.bar(ABAR as u8, BarKind::Mem32, len, ABAR, Widths::DWORD);
        let irq = slot.intx(Pin::A);
        let msi = slot.msi(1);
        let dma = slot.dma();
        let bdf = function.bdf();
        let mut ports = Vec::new();
        for (n, unit) in units.iter().enumerate().take(count) {
            let disk = slot.disk(n);
            let packet = *unit == Unit::Cd;
            let drive = match unit {
                Unit::None => None,
                Unit::Disk if disk.is_none() => return Err(format!("AHCI unit {n} has no disk")),
                Unit::Disk | Unit::Cd => Some(Drive::new(n, packet, disk, make(params, n, packet, bdf.dev, bdf.func))),
            };
            ports.push(Port::new(drive, &dma));
        }
        let implemented: u32 = ports.iter().enumerate().filter(|(_, p)| p.drive.is_some()).map(|(n, _)| 1 << n).sum();
        let cap = CAP | u32::from(DEPTH - 1) << 8 | (count as u32 - 1);
        let implemented = implemented.max(1);
        Ok(Box::new(Ahci { dma, irq, msi, cap, implemented, version: chip.version, ports, s: Hba::default() }))
    }

    /// The port of a register, and the register in it.
    fn port(&mut self, offset: u64) -> Option<(&mut Port, u64)> {
        let n = offset.checked_sub(PORTS)? / PORT_LEN;
        let there = n < 32 && self.implemented >> n & 1 != 0;
        Some((self.ports.get_mut(n as usize).filter(|_| there)?, (offset - PORTS) % PORT_LEN))
    }

    fn read_register(&mut self, offset: u64) -> u32 {
        match offset {
            reg::CAP => self.cap,
            reg::GHC => GHC_AE | self.s.control,
            reg::IS => self.s.is,
            reg::PI => self.implemented,
            reg::VS => self.version,
            _ => self.port(offset).map_or(0, |(port, at)| port.read(at)),
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            reg::GHC if value & GHC_HR != 0 => self.reset_ports(),
            reg::GHC => self.s.control = value & GHC_IE,
            reg::IS => {
                self.s.is &= !value;
                // What is left, or comes again because its port still wants it, is told again.
                self.s.told = 0;
            }
            _ => {
                let dma = self.dma.clone();
                if let Some((port, at)) = self.port(offset) {
                    port.write(at, value, &dma);
                }
            }
        }
        self.update();
    }

    fn reset_ports(&mut self) {
        self.s = Hba::default();
        for port in &mut self.ports {
            port.reset(&self.dma);
        }
    }

    /// Collects what the ports want and interrupts.
    fn update(&mut self) {
        for (n, port) in self.ports.iter().enumerate() {
            self.s.is |= u32::from(port.interrupts() != 0) << n;
        }
        let wanted = if self.s.control & GHC_IE != 0 { self.s.is } else { 0 };
        self.irq.set(wanted != 0);
        if wanted & !self.s.told != 0 && self.msi.enabled() {
            self.msi.send(0);
        }
        self.s.told = wanted;
    }
}

/// What drive `n` calls itself.
fn make(params: &Params, n: usize, packet: bool, dev: u8, func: u8) -> Make {
    let usual = if packet { "bhyve-rs CD-ROM" } else { "bhyve-rs HARDDISK" };
    let own = |key: &str| params.of_unit(n, key);
    // One for all would be the same for two.
    let serial = own("ser").or(params.get("ser").filter(|_| n == 0));
    let serial = serial.filter(|ser| !ser.is_empty()).map_or_else(|| format!("BRS{dev:02}{func}{n:02}"), str::to_owned);
    Make {
        serial_link: true,
        serial: name(&serial, 20),
        revision: name(own("rev").or(params.get("rev")).unwrap_or("001"), 8),
        model: name(own("product").or(params.get("product")).filter(|name| !name.is_empty()).unwrap_or(usual), 40),
        rotation: own("nmrr")
            .or(params.get("nmrr"))
            .and_then(|rate| rate.parse().ok())
            .unwrap_or(0_i64)
            .clamp(0, 0xfffe) as u16,
    }
}

impl Device for Ahci {
    fn read(&mut self, region: u32, offset: u64, width: u8) -> u64 {
        let register = match (region, offset & !3) {
            (ABAR, at) => self.read_register(at),
            (INDEX_BAR, SIDX) => self.s.index,
            (INDEX_BAR, SDATA) => self.read_register(self.s.index.into()),
            _ => u32::MAX,
        };
        u64::from(register >> (8 * (offset & 3))) & (u64::MAX >> (64 - 8 * u32::from(width)))
    }

    /// Registers are written as a whole: most have bits that a 1 clears.
    fn write(&mut self, region: u32, offset: u64, width: u8, value: u64) {
        if width != 4 {
            return;
        }
        match (region, offset) {
            (ABAR, at) => self.write_register(at, value as u32),
            (INDEX_BAR, SIDX) => self.s.index = value as u32 & 0x1ffc,
            (INDEX_BAR, SDATA) => self.write_register(self.s.index.into(), value as u32),
            _ => {}
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Done(completion) => {
                let port = self.ports.get_mut(drive_of_tag(completion.tag));
                if let Some(drive) = port.and_then(|p| p.drive.as_mut()) {
                    drive.done(completion);
                }
                return;
            }
            // One frame tells of all queued commands that ended.
            Event::AllDone => self.ports.iter_mut().for_each(|port| port.run(&self.dma)),
            Event::Medium(n) => {
                if let Some(port) = self.ports.get_mut(n) {
                    port.medium_changed(&self.dma);
                }
            }
            _ => {}
        }
        self.update();
    }

    fn config_write(&mut self, _: u16, _: u8) {
        self.msi.config_written();
    }

    fn reset(&mut self, _: ResetKind) {
        self.ports.iter_mut().filter_map(|p| p.drive.as_mut()).for_each(Drive::power_on);
        self.reset_ports();
        self.irq.set(false);
    }

    fn state(&mut self) -> &mut dyn State {
        self
    }
}

/// By hand: the drives hold their disks beside their state.
impl State for Ahci {
    fn save(&self) -> Value {
        let drives = self.ports.iter().map(|p| p.drive.as_ref().map(|d| d.state.clone())).collect();
        Saved { hba: self.s.clone(), ports: self.ports.iter().map(|p| p.s.clone()).collect(), drives }.save()
    }

    fn load(&mut self, value: Value) -> Result<(), String> {
        let saved: Saved = serde_json::from_value(value).map_err(|e| e.to_string())?;
        if saved.ports.len() != self.ports.len() || saved.drives.len() != self.ports.len() {
            return Err("it has other ports".to_owned());
        }
        for ((port, state), drive) in self.ports.iter_mut().zip(saved.ports).zip(saved.drives) {
            port.load(state, drive)?;
        }
        self.s = saved.hba;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
