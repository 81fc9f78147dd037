//! The few ACPI facts that the tests need, taken from the tables by hand: no interpreter, `\_S5` is found by its name.

use crate::mem::{Racy, read_le, read8};
use crate::start;

/// Processors listed in the MADT that are remembered.
const CPUS: usize = crate::entry::MAX_CPUS;

#[derive(Clone, Copy)]
pub struct Acpi {
    pub rsdp: u64,
    pub revision: u8,
    /// Tables seen, and how many of them have a wrong checksum.
    pub tables: u32,
    pub bad: u32,
    pub fadt: u64,
    pub madt: u64,
    pub hpet: u64,
    pub mcfg: u64,
    pub pm1a_evt: u16,
    /// Bytes of that block: its second half is PM1_EN.
    pub pm1_evt_len: u16,
    pub pm1a_cnt: u16,
    pub pm1b_cnt: u16,
    pub pm_tmr: u16,
    /// The PM timer has 32 bits, not 24.
    pub pm_tmr_32: bool,
    pub smi_cmd: u16,
    pub acpi_enable: u8,
    pub sci: u16,
    /// SLP_TYPa and SLP_TYPb of `\_S5`.
    pub s5: Option<(u16, u16)>,
    pub lapic: u64,
    pub apic_ids: [u32; CPUS],
    pub cpus: usize,
    pub ioapic: u64,
    pub ioapic_id: u8,
    /// GSI and MPS flags of ISA IRQ 0 to 15.
    pub gsi: [(u32, u16); 16],
}

static ACPI: Racy<Acpi> = Racy::new(Acpi {
    rsdp: 0,
    revision: 0,
    tables: 0,
    bad: 0,
    fadt: 0,
    madt: 0,
    hpet: 0,
    mcfg: 0,
    pm1a_evt: 0,
    pm1_evt_len: 0,
    pm1a_cnt: 0,
    pm1b_cnt: 0,
    pm_tmr: 0,
    pm_tmr_32: false,
    smi_cmd: 0,
    acpi_enable: 0,
    sci: 0,
    s5: None,
    lapic: 0,
    apic_ids: [0; CPUS],
    cpus: 0,
    ioapic: 0,
    ioapic_id: 0,
    gsi: [(0, 0); 16],
});

pub fn acpi() -> &'static Acpi {
    // SAFETY: written once, by `init`, before anybody reads.
    unsafe { &*ACPI.get() }
}

fn sum(address: u64, n: u64) -> u8 {
    (0..n).fold(0, |s, i| s.wrapping_add(read8(address + i)))
}

fn is_rsdp(address: u64) -> bool {
    read_le(address, 8) == u64::from_le_bytes(*b"RSD PTR ") && sum(address, 20) == 0
}

/// By start_info; else where a BIOS puts it: the first KiB of the EBDA, or E0000h to FFFFFh.
fn find_rsdp() -> u64 {
    if start::rsdp() != 0 && is_rsdp(start::rsdp()) {
        return start::rsdp();
    }
    let ebda = read_le(0x40e, 2) << 4;
    let places = [(ebda, if ebda < 0x400 { 0 } else { 0x400 }), (0xe0000, 0x20000)];
    for (base, size) in places {
        if let Some(at) = (base..base + size).step_by(16).find(|at| is_rsdp(*at)) {
            return at;
        }
    }
    0
}

/// Reads all tables; must come before anything is allocated over them.
pub fn init() {
    // SAFETY: called once by the only processor that runs.
    let a = unsafe { &mut *ACPI.get() };
    for (irq, gsi) in a.gsi.iter_mut().enumerate() {
        gsi.0 = irq as u32;
    }
    a.rsdp = find_rsdp();
    if a.rsdp == 0 {
        return;
    }
    a.revision = read8(a.rsdp + 15);
    let xsdt = if a.revision >= 2 { read_le(a.rsdp + 24, 8) } else { 0 };
    let (root, width) = if xsdt != 0 { (xsdt, 8) } else { (read_le(a.rsdp + 16, 4), 4) };
    a.check(root);
    let size = read_le(root + 4, 4).clamp(36, 0x1000);
    for at in (36..size).step_by(width as usize) {
        let table = read_le(root + at, width);
        if table == 0 || table >> 32 != 0 {
            continue;
        }
        a.check(table);
        match &(read_le(table, 4) as u32).to_le_bytes() {
            b"FACP" => a.fadt(table),
            b"APIC" => a.madt(table),
            b"HPET" => a.hpet = read_le(table + 44, 8),
            b"MCFG" => a.mcfg = read_le(table + 44, 8),
            _ => {}
        }
    }
}

impl Acpi {
    fn check(&mut self, table: u64) {
        self.tables += 1;
        let size = read_le(table + 4, 4);
        if !(36..0x10_0000).contains(&size) || sum(table, size) != 0 {
            self.bad += 1;
        }
    }

    fn fadt(&mut self, t: u64) {
        self.fadt = t;
        self.sci = read_le(t + 46, 2) as u16;
        self.smi_cmd = read_le(t + 48, 2) as u16;
        self.acpi_enable = read8(t + 52);
        self.pm1a_evt = read_le(t + 56, 2) as u16;
        self.pm1_evt_len = u16::from(read8(t + 88));
        self.pm1a_cnt = read_le(t + 64, 2) as u16;
        self.pm1b_cnt = read_le(t + 68, 2) as u16;
        self.pm_tmr = read_le(t + 76, 2) as u16;
        self.pm_tmr_32 = read_le(t + 112, 4) & 1 << 8 != 0;
        let dsdt = read_le(t + 40, 4);
        if dsdt == 0 {
            return;
        }
        self.check(dsdt);
        let size = read_le(dsdt + 4, 4).clamp(36, 0x10_0000);
        let name = u64::from(u32::from_le_bytes(*b"_S5_"));
        if let Some(at) = (dsdt + 36..dsdt + size - 8).find(|at| read_le(*at, 4) == name) {
            self.s5 = package(at + 4);
        }
    }

    fn madt(&mut self, t: u64) {
        self.madt = t;
        self.lapic = read_le(t + 36, 4);
        let end = t + read_le(t + 4, 4).min(0x4000);
        let mut at = t + 44;
        while at + 2 <= end {
            let size = u64::from(read8(at + 1));
            if size < 2 {
                break;
            }
            match read8(at) {
                0 if read8(at + 4) & 1 != 0 => self.cpu(u32::from(read8(at + 3))),
                1 if self.ioapic == 0 => {
                    self.ioapic = read_le(at + 4, 4);
                    self.ioapic_id = read8(at + 2);
                }
                2 if read8(at + 3) < 16 => {
                    self.gsi[usize::from(read8(at + 3))] = (read_le(at + 4, 4) as u32, read_le(at + 8, 2) as u16);
                }
                9 if read8(at + 8) & 1 != 0 => self.cpu(read_le(at + 4, 4) as u32),
                _ => {}
            }
            at += size;
        }
    }

    fn cpu(&mut self, id: u32) {
        let known = self.apic_ids[..self.cpus].contains(&id);
        if self.cpus < CPUS && !known {
            self.apic_ids[self.cpus] = id;
            self.cpus += 1;
        }
    }
}

/// The first two integers of the AML package at `at`: PackageOp, PkgLength, NumElements, elements.
fn package(at: u64) -> Option<(u16, u16)> {
    if read8(at) != 0x12 {
        return None;
    }
    let mut at = at + 1 + 1 + u64::from(read8(at + 1) >> 6) + 1;
    let mut next = || match read8(at) {
        n @ (0 | 1) => {
            at += 1;
            Some(u16::from(n))
        }
        0x0a => {
            at += 2;
            Some(u16::from(read8(at - 1)))
        }
        0x0b => {
            at += 3;
            Some(read_le(at - 2, 2) as u16)
        }
        _ => None,
    };
    let first = next()?;
    Some((first, next().unwrap_or(first)))
}
