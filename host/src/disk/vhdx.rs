//! Microsoft's VHDX images ([MS-VHDX]), to read: fixed and dynamic.
//!
//! A region table leads to a metadata table, which describes the disk, and to a table of blocks (BAT). An image whose
//! log was not replayed after a crash, and differencing images, are refused.

use std::io;

use anyhow::{Context, Result, bail, ensure};

use super::file::Bytes;
use super::mapped::{Files, Map, Place, damaged};

pub(crate) const MAGIC: [u8; 8] = *b"vhdxfile";

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// 64 TiB in the smallest blocks.
const BAT_BYTES: u64 = 520 * MIB;

pub(crate) const BAT: [u8; 16] = guid(0x2dc2_7766, 0xf623, 0x4200, 0x9d64_115e_9bfd_4a08);
pub(crate) const METADATA: [u8; 16] = guid(0x8b7c_a206, 0x4790, 0x4b9a, 0xb8fe_575f_050f_886e);
pub(crate) const PARAMETERS: [u8; 16] = guid(0xcaa1_6737, 0xfa36, 0x4d43, 0xb3b6_33f0_aa44_e76b);
pub(crate) const DISK_SIZE: [u8; 16] = guid(0x2fa5_4224, 0xcd1b, 0x4876, 0xb211_5dbe_d83b_f4b8);
pub(crate) const SECTOR_SIZE: [u8; 16] = guid(0x8141_bf1d, 0xa96f, 0x4709, 0xba47_f233_a8fa_ab5f);

/// A GUID as it is stored.
const fn guid(a: u32, b: u16, c: u16, d: u64) -> [u8; 16] {
    let (a, b, c, d) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes(), d.to_be_bytes());
    [a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]]
}

pub(crate) struct Vhdx {
    size: u64,
    block: u64,
    /// Blocks of data before each entry that stands for a bitmap.
    chunk: u64,
    bat: Vec<u8>,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// CRC-32C, bit by bit: it is needed for a few hundred kilobytes.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ if crc & 1 != 0 { 0x82f6_3b78 } else { 0 })
    })
}

/// Reads a structure, if its signature and its checksum (at byte 4) are right.
fn checked(file: &mut dyn Bytes, at: u64, len: u64, signature: &[u8; 4]) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = vec![0; len as usize];
    file.read(at, &mut bytes)?;
    let sum = u32_at(&bytes, 4);
    bytes[4..8].fill(0);
    Ok((bytes[..4] == *signature && crc32c(&bytes) == sum).then_some(bytes))
}

impl Vhdx {
    pub fn open(files: &mut Files) -> Result<Vhdx> {
        let file = &mut *files[0];
        let mut header: Option<Vec<u8>> = None;
        for at in [64 * KIB, 128 * KIB] {
            let found = checked(file, at, 4096, b"head")?;
            let newer = |new: &Vec<u8>| header.as_ref().is_none_or(|old| u64_at(new, 8) > u64_at(old, 8));
            header = found.filter(newer).or(header);
        }
        let header = header.context("vhdx: both headers are damaged")?;
        ensure!(u16::from_le_bytes([header[66], header[67]]) == 1, "vhdx: its version is not known");
        if header[48..64] != [0; 16] {
            bail!("vhdx: it was not closed properly, and its log has to be replayed first");
        }
        let mut regions = None;
        for at in [192 * KIB, 256 * KIB] {
            regions = regions.or(checked(file, at, 64 * KIB, b"regi")?);
        }
        let regions = regions.context("vhdx: both region tables are damaged")?;
        let region = |id: [u8; 16]| {
            let count = u32_at(&regions, 8).min(2047) as usize;
            let entry = (0..count).map(|n| &regions[16 + n * 32..48 + n * 32]).find(|entry| entry[..16] == id)?;
            Some((u64_at(entry, 16), u64::from(u32_at(entry, 24))))
        };
        let len = file.len();
        let within = move |(at, bytes): (u64, u64)| at.checked_add(bytes).is_some_and(|end| end <= len);
        let metadata = region(METADATA).filter(|r| within(*r) && r.1 >= 64 * KIB);
        let (metadata_at, metadata_len) = metadata.context("vhdx: the metadata lie outside the file")?;
        let mut table = vec![0; 64 * KIB as usize];
        file.read(metadata_at, &mut table)?;
        ensure!(table[..8] == *b"metadata", "vhdx: the metadata are damaged");
        let count = usize::from(u16::from_le_bytes([table[10], table[11]])).min(2047);
        let mut item = |id: [u8; 16]| -> Result<u64> {
            let entry = (0..count).map(|n| &table[32 + n * 32..64 + n * 32]).find(|entry| entry[..16] == id);
            let at = entry.map(|entry| u64::from(u32_at(entry, 16))).filter(|at| at + 8 <= metadata_len);
            let mut value = [0; 8];
            file.read(metadata_at + at.context("vhdx: the metadata are not complete")?, &mut value)?;
            Ok(u64::from_le_bytes(value))
        };
        let (parameters, size, sector) = (item(PARAMETERS)?, item(DISK_SIZE)?, item(SECTOR_SIZE)? & 0xffff_ffff);
        let (block, parent) = (parameters & 0xffff_ffff, parameters >> 32 & 2 != 0);
        ensure!(!parent, "vhdx: differencing images are not supported");
        ensure!(block.is_power_of_two() && (MIB..=256 * MIB).contains(&block), "vhdx: blocks of {block} bytes");
        ensure!(matches!(sector, 512 | 4096), "vhdx: sectors of {sector} bytes");
        ensure!(size <= 64 << 40 && size.is_multiple_of(512), "vhdx: a disk of {size} bytes");
        let chunk = (sector << 23) / block;
        let blocks = size.div_ceil(block);
        let entries = blocks + blocks.saturating_sub(1) / chunk;
        let (bat_at, bat_len) = region(BAT).filter(|r| within(*r)).context("vhdx: the BAT lies outside the file")?;
        ensure!(entries * 8 <= bat_len.min(BAT_BYTES), "vhdx: the BAT is too short for {size} bytes");
        let mut bat = vec![0; entries as usize * 8];
        file.read(bat_at, &mut bat)?;
        Ok(Vhdx { size, block, chunk, bat })
    }
}

impl Map for Vhdx {
    fn size(&self) -> u64 {
        self.size
    }

    fn place(&mut self, files: &mut Files, offset: u64) -> io::Result<(Place, u64)> {
        let (n, inside) = (offset / self.block, offset % self.block);
        let left = self.block - inside;
        let entry = u64_at(&self.bat, (n + n / self.chunk) as usize * 8);
        match entry & 7 {
            0..=3 => Ok((Place::Zero, left)),
            6 => {
                let at = entry >> 20 << 20;
                if at < MIB || at >= files[0].len() {
                    return Err(damaged("a block lies outside the file"));
                }
                Ok((Place::At(0, at + inside), left))
            }
            _ => Err(damaged("a block is in a state that is not known")),
        }
    }
}
