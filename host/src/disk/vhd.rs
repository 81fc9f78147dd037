//! Microsoft's VHD images (Virtual Hard Disk Image Format Specification 1.0): fixed and dynamic.
//!
//! A fixed image is the disk and a footer, and can be written. A dynamic one has a table that leads to blocks, each
//! with a bitmap of the sectors that were written. Differencing images are refused.

use std::io;

use anyhow::{Context, Result, bail, ensure};

use super::file::Bytes;
use super::mapped::{Files, Map, Place, damaged};

pub(crate) const MAGIC: [u8; 8] = *b"conectix";
const DYNAMIC_MAGIC: [u8; 8] = *b"cxsparse";

const SECTOR: u64 = 512;
const ABSENT: u32 = u32::MAX;
/// 2 TiB in the smallest blocks, and more.
const TABLE_BYTES: u64 = 64 << 20;

pub(crate) struct Vhd {
    size: u64,
    blocks: Option<Blocks>,
}

struct Blocks {
    table: Vec<u8>,
    /// Bytes in a block.
    len: u64,
    /// Bytes of the bitmap before it.
    bitmap_len: u64,
    /// The bitmap that was used last, and its place.
    bitmap: (u64, Vec<u8>),
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Whether the sum over a header is what the header says.
fn sum_is_right(header: &[u8], at: usize) -> bool {
    let own: u32 = header[at..at + 4].iter().map(|byte| u32::from(*byte)).sum();
    let all: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    !(all - own) == u32_at(header, at)
}

impl Vhd {
    pub fn open(files: &mut Files) -> Result<Vhd> {
        let file = &mut *files[0];
        let end = file.len().checked_sub(SECTOR).context("vhd: it is too short")?;
        let mut footer = [0; SECTOR as usize];
        file.read(end, &mut footer)?;
        if footer[..8] != MAGIC || !sum_is_right(&footer, 64) {
            // A dynamic image has a copy at its beginning, for when the end is lost.
            file.read(0, &mut footer)?;
            ensure!(footer[..8] == MAGIC && sum_is_right(&footer, 64), "vhd: the footer is missing or damaged");
        }
        let size = u64_at(&footer, 48);
        ensure!(size <= 1 << 62 && size.is_multiple_of(SECTOR), "vhd: a disk of {size} bytes");
        match u32_at(&footer, 60) {
            2 => {
                ensure!(size <= end, "vhd: the file is shorter than the disk");
                Ok(Vhd { size, blocks: None })
            }
            3 => Ok(Vhd { size, blocks: Some(Blocks::open(file, u64_at(&footer, 16), size)?) }),
            4 => bail!("vhd: differencing images are not supported"),
            other => bail!("vhd: images of type {other} are not known"),
        }
    }
}

impl Blocks {
    fn open(file: &mut dyn Bytes, at: u64, size: u64) -> Result<Blocks> {
        let mut header = [0; 1024];
        ensure!(at.checked_add(1024).is_some_and(|end| end <= file.len()), "vhd: the header lies outside the file");
        file.read(at, &mut header)?;
        ensure!(header[..8] == DYNAMIC_MAGIC && sum_is_right(&header, 36), "vhd: the header is damaged");
        let (at, entries, len) = (u64_at(&header, 16), u64::from(u32_at(&header, 28)), u64::from(u32_at(&header, 32)));
        ensure!(len.is_power_of_two() && (SECTOR * 8..=1 << 30).contains(&len), "vhd: blocks of {len} bytes");
        ensure!(entries * 4 <= TABLE_BYTES, "vhd: a table of {entries} blocks");
        ensure!(size.div_ceil(len) <= entries, "vhd: the table is too short for {size} bytes");
        let end = at.checked_add(entries * 4);
        ensure!(end.is_some_and(|end| end <= file.len()), "vhd: the table lies outside the file");
        let mut table = vec![0; entries as usize * 4];
        file.read(at, &mut table)?;
        let bitmap_len = (len / SECTOR / 8).next_multiple_of(SECTOR);
        Ok(Blocks { table, len, bitmap_len, bitmap: (0, Vec::new()) })
    }
}

impl Map for Vhd {
    fn size(&self) -> u64 {
        self.size
    }

    fn fixed(&self) -> bool {
        self.blocks.is_none()
    }

    fn place(&mut self, files: &mut Files, offset: u64) -> io::Result<(Place, u64)> {
        let Some(blocks) = &mut self.blocks else { return Ok((Place::At(0, offset), self.size - offset)) };
        let inside = offset % blocks.len;
        let left = blocks.len - inside;
        let n = (offset / blocks.len) as usize * 4;
        let sector = blocks.table.get(n..n + 4).map_or(ABSENT, |entry| u32_at(entry, 0));
        if sector == ABSENT {
            return Ok((Place::Zero, left));
        }
        let at = u64::from(sector) * SECTOR;
        if at >= files[0].len() {
            return Err(damaged("a block lies outside the file"));
        }
        if blocks.bitmap.0 != at {
            let mut bitmap = vec![0; blocks.bitmap_len as usize];
            files[0].read(at, &mut bitmap)?;
            blocks.bitmap = (at, bitmap);
        }
        let bitmap = &blocks.bitmap.1;
        let written = |n: u64| bitmap[(n / 8) as usize] & 0x80 >> (n % 8) != 0;
        let (first, end) = (inside / SECTOR, blocks.len / SECTOR);
        let here = written(first);
        let last = (first + 1..end).find(|n| written(*n) != here).unwrap_or(end);
        let run = last * SECTOR - inside;
        Ok((if here { Place::At(0, at + blocks.bitmap_len + inside) } else { Place::Zero }, run))
    }
}
