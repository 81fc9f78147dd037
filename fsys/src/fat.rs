//! FAT12, FAT16 and FAT32, with long names.
//!
//! Source: Microsoft's FAT specification of 2005.

use anyhow::{Result, bail, ensure};

use crate::bytes::{text, u16_at, u32_at};
use crate::{DIRECTORY, Kind, Node, Part, Tree};

const ENTRY: usize = 32;
const LONG_NAME: u8 = 0x0F;
const VOLUME: u8 = 0x08;
const SUBDIRECTORY: u8 = 0x10;
/// Of an entry's name: nothing from here on; nothing here.
const LAST: u8 = 0;
const DELETED: u8 = 0xE5;

pub(crate) struct Fat {
    part: Part,
    /// Bits of an entry of the table.
    bits: u32,
    table: u64,
    /// The root directory of FAT12 and FAT16.
    root: (u64, u64),
    root_cluster: u32,
    data: u64,
    cluster: u64,
    clusters: u64,
    serial: u32,
    name: String,
}

impl Fat {
    /// Takes the first sector apart, if it is one of FAT.
    pub(crate) fn open(part: &Part) -> Result<Option<Fat>> {
        let Ok(boot) = part.bytes(0, 512) else { return Ok(None) };
        let half = |at| u64::from(u16_at(&boot, at));
        let either = |at, wide| if half(at) == 0 { u64::from(u32_at(&boot, wide)) } else { half(at) };
        let (sector, per_cluster, tables) = (half(11), u64::from(boot[13]), u64::from(boot[16]));
        let sane = matches!(sector, 512 | 1024 | 2048 | 4096) && per_cluster.is_power_of_two() && tables != 0;
        let (total, table_len) = (either(19, 32), either(22, 36));
        let jump = matches!(boot[0], 0xEB | 0xE9);
        if u16_at(&boot, 510) != 0xAA55 || !jump || !sane || total == 0 || table_len == 0 {
            return Ok(None);
        }
        let table = half(14);
        let root = table + tables * table_len;
        let root_len = (half(17) * ENTRY as u64).div_ceil(sector);
        let data = root + root_len;
        let Some(rest) = total.checked_sub(data) else { bail!("FAT is damaged: it has no room for files") };
        let clusters = rest / per_cluster;
        let wide = half(17) == 0;
        let bits = match clusters {
            _ if wide => 32,
            0..4085 => 12,
            _ => 16,
        };
        let extended = if wide { 66 } else { 38 };
        let described = boot[extended] == 0x29;
        Ok(Some(Fat {
            part: part.clone(),
            bits,
            table: table * sector,
            root: (root * sector, half(17) * ENTRY as u64),
            root_cluster: if wide { u32_at(&boot, 44) } else { 0 },
            data: data * sector,
            cluster: per_cluster * sector,
            clusters,
            serial: if described { u32_at(&boot, extended + 1) } else { 0 },
            name: if described { text(&boot[extended + 5..extended + 16]) } else { String::new() },
        }))
    }

    /// The cluster after another, if there is one.
    fn next(&self, cluster: u32) -> Result<Option<u32>> {
        let at = u64::from(cluster) * u64::from(self.bits) / 8;
        let mut entry = [0; 4];
        self.part.read(self.table + at, &mut entry[..self.bits.div_ceil(8) as usize])?;
        let entry = u32::from_le_bytes(entry);
        let (value, last) = match self.bits {
            12 if cluster % 2 == 1 => (entry >> 4, 0xFF7),
            12 => (entry & 0xFFF, 0xFF7),
            16 => (entry, 0xFFF7),
            _ => (entry & 0x0FFF_FFFF, 0x0FFF_FFF7),
        };
        Ok((value < last).then_some(value))
    }

    /// So many bytes of a chain, or fewer where it ends.
    fn chain(&self, first: u64, len: u64) -> Result<Vec<u8>> {
        let mut contents = Vec::new();
        let mut at = u32::try_from(first).ok();
        while let Some(cluster) = at.filter(|_| (contents.len() as u64) < len) {
            ensure!((2..self.clusters + 2).contains(&u64::from(cluster)), "FAT is damaged: cluster {cluster}");
            let done = contents.len();
            let step = self.cluster.min(len - done as u64) as usize;
            contents.resize(done + step, 0);
            self.part.read(self.data + (u64::from(cluster) - 2) * self.cluster, &mut contents[done..])?;
            at = self.next(cluster)?;
        }
        Ok(contents)
    }
}

impl Tree for Fat {
    fn root(&mut self) -> Result<Node> {
        Ok(Node { kind: Kind::Directory, size: 0, place: self.root_cluster.into(), target: None })
    }

    fn find(&mut self, directory: &Node, name: &str) -> Result<Option<Node>> {
        let contents = match directory.place {
            0 => self.part.bytes(self.root.0, self.root.1 as usize)?,
            first => self.chain(first, DIRECTORY)?,
        };
        let mut long: Vec<u16> = Vec::new();
        for entry in contents.chunks_exact(ENTRY) {
            if entry[0] == LAST {
                break;
            }
            if entry[0] == DELETED {
                long.clear();
                continue;
            }
            if entry[11] & 0x3F == LONG_NAME {
                // The last part of the name comes first, and says that it is.
                if entry[0] & 0x40 != 0 {
                    long.clear();
                }
                let part = [&entry[1..11], &entry[14..26], &entry[28..32]].concat();
                let mut units: Vec<u16> = part.chunks_exact(2).map(|unit| u16_at(unit, 0)).collect();
                units.append(&mut long);
                long = units;
                ensure!(long.len() <= 260, "FAT is damaged: a name of {} characters", long.len());
                continue;
            }
            let end = long.iter().position(|unit| *unit == 0).unwrap_or(long.len());
            let found = String::from_utf16_lossy(&long[..end]);
            long.clear();
            let (base, extension) = (String::from_utf8_lossy(&entry[..8]), String::from_utf8_lossy(&entry[8..11]));
            let short = format!("{}.{}", base.trim_end(), extension.trim_end());
            let same = |own: &str| own.eq_ignore_ascii_case(name);
            if entry[11] & VOLUME != 0 || !(same(&found) || same(short.trim_end_matches('.'))) {
                continue;
            }
            let first = u64::from(u16_at(entry, 26));
            let first = if self.bits == 32 { first | u64::from(u16_at(entry, 20)) << 16 } else { first };
            let kind = if entry[11] & SUBDIRECTORY != 0 { Kind::Directory } else { Kind::File };
            return Ok(Some(Node { kind, size: u32_at(entry, 28).into(), place: first, target: None }));
        }
        Ok(None)
    }

    fn read(&mut self, file: &Node) -> Result<Vec<u8>> {
        let contents = if file.size == 0 { Vec::new() } else { self.chain(file.place, file.size)? };
        ensure!(contents.len() as u64 == file.size, "FAT is damaged: it has {} bytes", contents.len());
        Ok(contents)
    }

    fn label(&self) -> String {
        self.name.clone()
    }

    fn uuid(&self) -> String {
        if self.serial == 0 { String::new() } else { format!("{:04X}-{:04X}", self.serial >> 16, self.serial & 0xFFFF) }
    }
}
