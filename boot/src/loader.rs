//! Firmware tables as files for external firmware: ACPI tables with the script that says where they refer to each
//! other, and SMBIOS.
//!
//! SeaBIOS and OVMF take them from fw_cfg. The script, `etc/table-loader`, consists of commands of 128 bytes: allocate
//! a file, add a file's address to a pointer, make a checksum. Pointers hold offsets in the file that they point into,
//! and checksums are zero until the firmware has made them. OVMF copies what the pointers lead to and makes root tables
//! of its own.
//!
//! Source: QEMU's interface to firmware as SeaBIOS (romfile_loader) and OVMF (QemuLoader) read it.

use crate::acpi;
use crate::bytes::{Put, round_up, set, u32_at};
use crate::memory::MemoryMap;
use crate::platform::Platform;
use crate::smbios;

/// Names of the files.
pub const LOADER: &str = "etc/table-loader";
/// All tables but the root pointer.
pub const TABLES: &str = "etc/acpi/tables";
/// The root pointer.
pub const RSDP: &str = "etc/acpi/rsdp";
/// SMBIOS entry point.
pub const SMBIOS_ANCHOR: &str = "etc/smbios/smbios-anchor";
/// SMBIOS structures.
pub const SMBIOS_TABLES: &str = "etc/smbios/smbios-tables";

const COMMAND: usize = 128;
const FILE_NAME: usize = 56;
/// Where a file is allocated.
const HIGH: u8 = 1;
const BIOS_SEGMENT: u8 = 2;

/// The ACPI tables and what has to be done with them.
pub struct AcpiFiles {
    /// [`LOADER`].
    pub loader: Vec<u8>,
    /// [`TABLES`].
    pub tables: Vec<u8>,
    /// [`RSDP`].
    pub rsdp: Vec<u8>,
}

/// A script under construction.
#[derive(Default)]
struct Script(Vec<u8>);

impl Script {
    fn command(&mut self, number: u32, body: impl FnOnce(&mut Vec<u8>)) {
        let start = self.0.len();
        self.0.put32(number);
        body(&mut self.0);
        self.0.resize(start + COMMAND, 0);
    }

    fn allocate(&mut self, file: &str, align: u32, zone: u8) {
        self.command(1, |c| {
            c.put_padded(file, FILE_NAME, 0);
            c.put32(align);
            c.put8(zone);
        });
    }

    fn add_pointer(&mut self, file: &str, at: usize, size: u8) {
        self.command(2, |c| {
            c.put_padded(file, FILE_NAME, 0);
            c.put_padded(TABLES, FILE_NAME, 0);
            c.put32(at as u32);
            c.put8(size);
        });
    }

    fn add_checksum(&mut self, file: &str, at: usize, start: usize, len: usize) {
        self.command(3, |c| {
            c.put_padded(file, FILE_NAME, 0);
            for n in [at, start, len] {
                c.put32(n as u32);
            }
        });
    }
}

/// The ACPI tables of `platform`, if it has any. The lengths do not depend on where the power management block is.
pub fn acpi(platform: &Platform) -> Option<AcpiFiles> {
    let (version, pm) = platform.acpi.zip(platform.pm)?;
    let facs = round_up(acpi::build(platform, version, &pm, 0, 0).tables.len() as u64, acpi::FACS_LEN);
    let made = acpi::build(platform, version, &pm, 0, facs as u32);
    let (mut tables, mut rsdp) = (made.tables, made.rsdp);
    let length = |tables: &[u8], at: usize| u32_at(tables, at + 4).map_or(0, |n| n as usize);
    let xsdt = u32_at(&rsdp, 24).filter(|_| rsdp.len() > 24).map(|at| at as usize);
    let rsdt_len = length(&tables, 0);

    let mut script = Script::default();
    script.allocate(TABLES, acpi::FACS_LEN as u32, HIGH);
    script.allocate(RSDP, 16, BIOS_SEGMENT);
    let mut all = vec![0];
    for at in (36..rsdt_len).step_by(4) {
        script.add_pointer(TABLES, at, 4);
        all.extend(u32_at(&tables, at).map(|table| table as usize));
    }
    if let Some(xsdt) = xsdt {
        all.push(xsdt);
        for at in (36..length(&tables, xsdt)).step_by(8) {
            script.add_pointer(TABLES, xsdt + at, 8);
        }
    }
    let fadt = all.iter().copied().find(|at| tables[*at..].starts_with(b"FACP"))?;
    all.push(u32_at(&tables, fadt + 40)? as usize);
    for (at, size) in [(36, 4), (40, 4), (132, 8), (140, 8)] {
        if at < length(&tables, fadt) {
            script.add_pointer(TABLES, fadt + at, size);
        }
    }
    script.add_pointer(RSDP, 16, 4);
    if xsdt.is_some() {
        script.add_pointer(RSDP, 24, 8);
    }
    for at in all {
        set(&mut tables, at + 9, &[0]);
        script.add_checksum(TABLES, at + 9, at, length(&tables, at));
    }
    set(&mut rsdp, 8, &[0]);
    script.add_checksum(RSDP, 8, 0, 20);
    if xsdt.is_some() {
        set(&mut rsdp, 32, &[0]);
        script.add_checksum(RSDP, 32, 0, 36);
    }
    tables.resize(facs as usize, 0);
    tables.extend(made.facs);
    Some(AcpiFiles { loader: script.0, tables, rsdp })
}

/// SMBIOS entry point, whose address and checksums the firmware makes, and structures.
pub fn smbios(platform: &Platform, map: &MemoryMap) -> (Vec<u8>, Vec<u8>) {
    let mut anchor = smbios::build(platform, map, 0);
    let mut tables = anchor.split_off(smbios::TABLE_AT);
    anchor.truncate(smbios::ENTRY_LEN);
    tables.shrink_to_fit();
    (anchor, tables)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::{sum, u64_at};
    use crate::platform::AcpiVersion;
    use crate::platform::tests::pc;

    /// Does what firmware does with the files at these addresses.
    fn load(files: &AcpiFiles, tables_at: u64, rsdp_at: u64) -> (Vec<u8>, Vec<u8>) {
        let (mut tables, mut rsdp) = (files.tables.clone(), files.rsdp.clone());
        let text = |c: &[u8]| String::from_utf8_lossy(&c[..FILE_NAME]).trim_end_matches('\0').to_owned();
        let mut known = Vec::new();
        for c in files.loader.chunks_exact(COMMAND) {
            let file = text(&c[4..]);
            let of = |name: &str| if name == TABLES { tables_at } else { rsdp_at };
            let bytes = if file == TABLES { &mut tables } else { &mut rsdp };
            match u32_at(c, 0).unwrap() {
                1 => {
                    assert_eq!(of(&file) % u64::from(u32_at(c, 60).unwrap()), 0);
                    known.push(file);
                }
                2 => {
                    assert!(known.contains(&file) && known.contains(&text(&c[60..])));
                    let (at, size) = (u32_at(c, 116).unwrap() as usize, usize::from(c[120]));
                    let mut value = [0; 8];
                    value[..size].copy_from_slice(&bytes[at..at + size]);
                    let value = (u64::from_le_bytes(value) + of(&text(&c[60..]))).to_le_bytes();
                    bytes[at..at + size].copy_from_slice(&value[..size]);
                }
                3 => {
                    let [at, start, len] = [60, 64, 68].map(|n| u32_at(c, n).unwrap() as usize);
                    bytes[at] = bytes[at].wrapping_sub(sum(&bytes[start..start + len]));
                }
                n => panic!("command {n}"),
            }
        }
        (tables, rsdp)
    }

    #[test]
    fn loaded_files_are_what_tables_made_for_their_address_are() {
        for version in [AcpiVersion::V1, AcpiVersion::V2] {
            let platform = Platform { acpi: Some(version), ..pc() };
            let files = acpi(&platform).unwrap();
            let (base, facs) = (0x0ffe_0000, 0x0ffe_0000 + files.tables.len() as u32 - 64);
            let (tables, rsdp) = load(&files, base.into(), 0xf_5000);
            let made = acpi::build(&platform, version, &platform.pm.unwrap(), base, facs);
            assert!(tables[..made.tables.len()] == made.tables);
            assert_eq!(rsdp, made.rsdp);
            assert!(tables.ends_with(&made.facs) && facs.is_multiple_of(64));
        }
    }

    #[test]
    fn checksums_are_zero_in_the_files_since_firmware_may_count_them() {
        let files = acpi(&pc()).unwrap();
        for c in files.loader.chunks_exact(COMMAND).filter(|c| c[0] == 3) {
            let file = if c[4..].starts_with(TABLES.as_bytes()) { &files.tables } else { &files.rsdp };
            assert_eq!(file[u32_at(c, 60).unwrap() as usize], 0);
        }
    }

    #[test]
    fn another_power_management_base_changes_no_length() {
        let mut moved = pc();
        let pm = moved.pm.as_mut().unwrap();
        pm.gpe0 = pm.gpe0.map(|(port, len)| (port - pm.base + 0xb000, len));
        pm.base = 0xb000;
        let (a, b) = (acpi(&pc()).unwrap(), acpi(&moved).unwrap());
        assert_eq!((a.tables.len(), a.loader), (b.tables.len(), b.loader));
        assert!(a.tables != b.tables);
    }

    #[test]
    fn smbios_is_split_behind_its_entry_point() {
        let map = MemoryMap::new(64 << 20, 0xc000_0000).unwrap();
        let (anchor, tables) = smbios(&pc(), &map);
        assert_eq!((anchor.len(), &anchor[..4], sum(&anchor)), (31, &b"_SM_"[..], 0));
        assert_eq!(usize::from(u16::from_le_bytes([anchor[22], anchor[23]])), tables.len());
        assert_eq!(u64_at(&tables, 0).map(|t| t as u8), Some(0));
    }
}
