//! Goes through all tables of an image: what each cluster of the file is used for, and whether that makes sense.
//!
//! An image that is to be written is opened only when it does. After that the tables in memory are known to be right,
//! and no write can land on a table or on another part of the disk.

use std::io;

use super::header::Header;
use crate::disk::file::Bytes;

/// Bits of L1 and L2 entries.
pub const COPIED: u64 = 1 << 63;
pub const PACKED: u64 = 1 << 62;
pub const ZERO: u64 = 1 << 0;
pub const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Those that must be 0 in an entry of an L1 table and in one of an L2 table.
const L1_RESERVED: u64 = !(COPIED | OFFSET);
const L2_RESERVED: u64 = !(COPIED | OFFSET | ZERO);

/// More clusters than this in a file are not managed. It bounds the memory of a check to some hundred megabytes.
pub const CLUSTERS: u64 = 1 << 28;
/// Problems that are told one by one.
const TOLD: usize = 20;

/// What a cluster is used for.
const FIXED: u8 = 1;
const L2: u8 = 2;
const DATA: u8 = 4;
const SHARED: u8 = 8;
/// In the tree that is gone through.
const HERE: u8 = 0x80;

/// What an L2 entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Nothing: the backing file, or zeros.
    Absent,
    /// Zeros, with a cluster set aside for them or 0.
    Zero(u64),
    /// At this byte of the file.
    At(u64),
    /// Compressed, from this byte on, in at most this many bytes.
    Packed(u64, u64),
}

impl Entry {
    /// Reads an entry of an L2 table; an error is why it cannot be one.
    pub fn new(raw: u64, header: &Header, len: u64) -> Result<Entry, &'static str> {
        if raw & PACKED != 0 {
            let shift = 62 - (header.cluster_bits - 8);
            let at = raw & ((1 << shift) - 1);
            let sectors = ((raw & !(COPIED | PACKED)) >> shift) + 1;
            let bytes = sectors * 512 - at % 512;
            return if at < 512 || at >= len { Err("lies outside the file") } else { Ok(Entry::Packed(at, bytes)) };
        }
        let at = raw & OFFSET;
        let zero = raw & ZERO != 0 && header.version >= 3;
        if raw & L2_RESERVED != 0 || header.version < 3 && raw & ZERO != 0 {
            Err("has reserved bits set")
        } else if !at.is_multiple_of(header.cluster()) {
            Err("points into a cluster")
        } else if at >= len.next_multiple_of(header.cluster()) {
            Err("lies outside the file")
        } else {
            Ok(match (zero, at) {
                (true, at) => Entry::Zero(at),
                (false, 0) => Entry::Absent,
                (false, at) => Entry::At(at),
            })
        }
    }
}

/// Reads a table of 64-bit words.
pub fn words(file: &mut dyn Bytes, at: u64, count: u64) -> io::Result<Vec<u64>> {
    let mut bytes = vec![0; count as usize * 8];
    file.read(at, &mut bytes)?;
    Ok(bytes.as_chunks().0.iter().map(|word| u64::from_be_bytes(*word)).collect())
}

/// Where an L1 entry's table is; 0 for none, an error when it cannot be one.
pub fn l2_place(raw: u64, header: &Header, len: u64) -> Result<u64, &'static str> {
    let at = raw & OFFSET;
    if raw & L1_RESERVED != 0 {
        Err("has reserved bits set")
    } else if !at.is_multiple_of(header.cluster()) {
        Err("points into a cluster")
    } else if at != 0 && at.saturating_add(header.cluster()) > len.next_multiple_of(header.cluster()) {
        Err("lies outside the file")
    } else {
        Ok(at)
    }
}

/// What was found.
#[derive(Default)]
pub struct Scan {
    /// How often each cluster is used.
    pub counts: Vec<u16>,
    roles: Vec<u8>,
    /// What is wrong with the tables, the first of it.
    pub problems: Vec<String>,
    /// How much is wrong that refcounts alone do not put right.
    pub wrong: u64,
    /// The places of the refcount blocks; 0 where there is none, or none that can be right.
    pub blocks: Vec<u64>,
    /// How many clusters are counted more often than they are used: lost space, no harm.
    pub leaks: u64,
    /// How many are counted less often than they are used: the next writer would overwrite them.
    pub low: u64,
    /// The sectors of the refcounts that are wrong, as [`sector_of`] numbers them.
    pub stale: Vec<u64>,
    /// Whether the blocks of refcounts are not where they can be.
    pub bad_blocks: bool,
    /// Clusters of the disk that have a place in the file, and how many of them are compressed.
    pub allocated: u64,
    pub packed: u64,
}

impl Scan {
    /// Goes through the image.
    ///
    /// # Errors
    /// When the host cannot read it, or it is too large for us.
    pub fn new(file: &mut dyn Bytes, header: &Header) -> io::Result<Scan> {
        let clusters = file.len().div_ceil(header.cluster());
        if clusters > CLUSTERS {
            return Err(io::Error::other(format!("an image of {clusters} clusters is too large for this version")));
        }
        let mut scan =
            Scan { counts: vec![0; clusters as usize], roles: vec![0; clusters as usize], ..Scan::default() };
        let cluster = header.cluster();
        scan.mark(header, 0, cluster, FIXED, || "the header".to_owned());
        let table = u64::from(header.refcount_table_clusters) << header.cluster_bits;
        scan.mark(header, header.refcount_table, table, FIXED, || "the refcount table".to_owned());
        scan.blocks = words(file, header.refcount_table, table / 8)?;
        for n in 0..scan.blocks.len() {
            let at = scan.blocks[n];
            if at == 0 {
                continue;
            }
            let there = at.is_multiple_of(cluster) && at < clusters << header.cluster_bits;
            if !there || scan.roles[(at >> header.cluster_bits) as usize] != 0 {
                // It can be made anew.
                scan.blocks[n] = 0;
                scan.bad_blocks = true;
                if scan.problems.len() < TOLD {
                    scan.problems.push(format!("refcount block {n} cannot be at byte {at}"));
                }
            } else {
                scan.mark(header, at, cluster, FIXED, || format!("refcount block {n}"));
            }
        }
        scan.tree(file, header, header.l1_offset, header.l1_size, "")?;
        scan.snapshots(file, header)?;
        scan.compare(file, header)?;
        Ok(scan)
    }

    fn wrong(&mut self, what: impl FnOnce() -> String) {
        if self.problems.len() < TOLD {
            self.problems.push(what());
        }
        self.wrong += 1;
    }

    /// Counts a use of the clusters of a stretch.
    fn mark(&mut self, header: &Header, at: u64, len: u64, role: u8, what: impl Fn() -> String) -> bool {
        let end = (at + len).min((self.counts.len() as u64) << header.cluster_bits);
        let mut good = true;
        for n in at >> header.cluster_bits..end.div_ceil(header.cluster()) {
            let n = n as usize;
            let before = self.roles[n];
            let other = before & !HERE;
            if role == SHARED {
                good &= other & !SHARED == 0;
            } else {
                good &= before & HERE == 0 && (other == 0 || other == role && role != FIXED);
            }
            self.roles[n] |= role | if role == FIXED { 0 } else { HERE };
            match self.counts[n].checked_add(1) {
                Some(count) => self.counts[n] = count,
                None => good = false,
            }
        }
        if !good {
            self.wrong(|| format!("{} is where something else is, at byte {at}", what()));
        }
        good
    }

    /// Goes through what an L1 table leads to.
    fn tree(&mut self, file: &mut dyn Bytes, header: &Header, at: u64, size: u32, whose: &str) -> io::Result<()> {
        if size == 0 {
            return Ok(());
        }
        self.mark(header, at, u64::from(size) * 8, FIXED, || format!("the L1 table{whose}"));
        let active = whose.is_empty();
        let len = file.len();
        for (n, raw) in words(file, at, u64::from(size))?.into_iter().enumerate() {
            let table = match l2_place(raw, header, len) {
                Ok(0) => continue,
                Ok(table) => table,
                Err(why) => {
                    self.wrong(|| format!("entry {n} of the L1 table{whose} {why} ({raw:#x})"));
                    continue;
                }
            };
            // A table that is used twice is not followed twice, or a few could keep us for ever.
            if !self.mark(header, table, header.cluster(), L2, || format!("L2 table {n}{whose}")) {
                continue;
            }
            for (m, raw) in words(file, table, header.l2_entries())?.into_iter().enumerate() {
                let name = || format!("entry {m} of L2 table {n}{whose}");
                match Entry::new(raw, header, len) {
                    Ok(Entry::Absent | Entry::Zero(0)) => continue,
                    Ok(Entry::Zero(at) | Entry::At(at)) => {
                        self.mark(header, at, header.cluster(), DATA, name);
                    }
                    Ok(Entry::Packed(at, bytes)) => {
                        self.mark(header, at, bytes, SHARED, name);
                        self.packed += u64::from(active);
                    }
                    Err(why) => self.wrong(|| format!("{} {why} ({raw:#x})", name())),
                }
                self.allocated += u64::from(active);
            }
        }
        Ok(())
    }

    fn snapshots(&mut self, file: &mut dyn Bytes, header: &Header) -> io::Result<()> {
        let mut at = header.snapshots_offset;
        for n in 0..header.snapshots {
            let mut fixed = [0; 40];
            file.read(at, &mut fixed)?;
            let half = |at: usize| u64::from(u16::from_be_bytes([fixed[at], fixed[at + 1]]));
            let word = |at: usize| u32::from_be_bytes(fixed[at..at + 4].try_into().expect("four bytes"));
            let l1 = u64::from_be_bytes(fixed[..8].try_into().expect("eight bytes"));
            let (size, extra) = (word(8), u64::from(word(36)));
            let end = l1.checked_add(u64::from(size) * 8);
            if !l1.is_multiple_of(header.cluster()) || size > 1 << 22 || end.is_none_or(|end| end > file.len()) {
                self.wrong(|| format!("the L1 table of snapshot {n} cannot be at byte {l1}"));
            } else {
                self.roles.iter_mut().for_each(|role| *role &= !HERE);
                self.tree(file, header, l1, size, &format!(" of snapshot {n}"))?;
            }
            at += (40 + extra + half(12) + half(14)).next_multiple_of(8);
        }
        if header.snapshots > 0 {
            let bytes = at - header.snapshots_offset;
            self.mark(header, header.snapshots_offset, bytes, FIXED, || "the snapshot table".to_owned());
        }
        Ok(())
    }

    /// Compares with what the image says of the use of its clusters.
    fn compare(&mut self, file: &mut dyn Bytes, header: &Header) -> io::Result<()> {
        let per_block = (header.cluster() * 8) >> header.refcount_order;
        let mut block = vec![0; header.cluster() as usize];
        let blocks = self.blocks.len().max(self.counts.len().div_ceil(per_block as usize));
        for n in 0..blocks {
            match self.blocks.get(n) {
                None | Some(0) if n as u64 * per_block >= self.counts.len() as u64 => continue,
                None | Some(0) => block.fill(0),
                Some(at) => file.read(*at, &mut block)?,
            }
            for m in 0..per_block {
                let (cluster, said) = (n as u64 * per_block + m, refcount(&block, header.refcount_order, m));
                let used = u64::from(self.counts.get(cluster as usize).copied().unwrap_or(0));
                if said != used {
                    *(if said > used { &mut self.leaks } else { &mut self.low }) += 1;
                    let sector = sector_of(header, cluster);
                    if self.stale.last() != Some(&sector) {
                        self.stale.push(sector);
                    }
                }
            }
        }
        Ok(())
    }
}

/// The sector of 512 bytes that a cluster's refcount is in, if those of all blocks are numbered one after the other.
pub fn sector_of(header: &Header, cluster: u64) -> u64 {
    (cluster << header.refcount_order) / 4096
}

/// A refcount in a block of them.
pub fn refcount(block: &[u8], order: u32, n: u64) -> u64 {
    let bits = 1u64 << order;
    match order {
        0..=2 => {
            let bit = n * bits;
            u64::from(block[(bit / 8) as usize]) >> (bit % 8) & ((1 << bits) - 1)
        }
        _ => {
            let bytes = (bits / 8) as usize;
            block[n as usize * bytes..][..bytes].iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
        }
    }
}

/// Sets a refcount in a block of them.
pub fn set_refcount(block: &mut [u8], order: u32, n: u64, value: u64) {
    let bits = 1u64 << order;
    match order {
        0..=2 => {
            let (bit, mask) = (n * bits, (1u8 << bits) - 1);
            let byte = &mut block[(bit / 8) as usize];
            *byte = *byte & !(mask << (bit % 8)) | (value as u8 & mask) << (bit % 8);
        }
        _ => {
            let bytes = (bits / 8) as usize;
            block[n as usize * bytes..][..bytes].copy_from_slice(&value.to_be_bytes()[8 - bytes..]);
        }
    }
}
