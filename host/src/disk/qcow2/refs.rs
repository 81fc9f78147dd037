//! The clusters of an image's file: which are in use, and how that gets into the file.

use std::collections::BTreeSet;
use std::io;

use super::check::{CLUSTERS, Scan, sector_of, set_refcount};
use super::header::Header;
use crate::disk::file::Bytes;

/// What is known of an image that can be written.
pub struct Refs {
    counts: Vec<u16>,
    /// The places of the refcount blocks; 0 where there is none.
    blocks: Vec<u64>,
    /// Sectors of the refcounts that are to be written.
    dirty: BTreeSet<u64>,
    /// Entries of the refcount table that are to be written, when their blocks are.
    new_blocks: BTreeSet<usize>,
    /// Where the search for a free cluster begins: none is free below.
    next: u64,
    /// From this cluster on the file has never been written.
    virgin: u64,
    /// Clusters that are free once the tables on disk do not point there any more.
    released: Vec<u64>,
}

impl Refs {
    pub fn new(scan: Scan, file: &dyn Bytes, header: &Header) -> Refs {
        Refs {
            virgin: file.len().div_ceil(header.cluster()),
            dirty: scan.stale.into_iter().collect(),
            new_blocks: BTreeSet::new(),
            next: 0,
            released: Vec::new(),
            counts: scan.counts,
            blocks: scan.blocks,
        }
    }

    pub fn count(&self, at: u64, header: &Header) -> u16 {
        self.counts.get((at >> header.cluster_bits) as usize).copied().unwrap_or(0)
    }

    /// Whether there is something that the file does not say yet.
    pub fn dirty(&self) -> bool {
        !self.dirty.is_empty() || !self.new_blocks.is_empty()
    }

    /// How many clusters wait to be free.
    pub fn released(&self) -> usize {
        self.released.len()
    }

    /// Sectors of the refcounts that a block has.
    fn sectors(header: &Header) -> u64 {
        header.cluster() / 512
    }

    fn block_of(header: &Header, cluster: u64) -> usize {
        (sector_of(header, cluster) / Refs::sectors(header)) as usize
    }

    fn set(&mut self, header: &Header, cluster: u64, count: u16) {
        let n = cluster as usize;
        if n >= self.counts.len() {
            self.counts.resize(n + 1, 0);
        }
        self.counts[n] = count;
        self.dirty.insert(sector_of(header, cluster));
    }

    fn free(&self, cluster: u64) -> bool {
        self.counts.get(cluster as usize).is_none_or(|count| *count == 0)
    }

    /// Takes `count` clusters in a row. Returns their place, and whether they were never written.
    pub fn take(&mut self, file: &mut dyn Bytes, header: &mut Header, count: u64) -> io::Result<(u64, bool)> {
        let mut at = self.next;
        let mut run = 0;
        let first = loop {
            let cluster = at + run;
            if !self.free(cluster) {
                at = cluster + 1;
                run = 0;
                continue;
            }
            let block = Refs::block_of(header, cluster);
            if block >= self.blocks.len() {
                self.grow_table(file, header, block)?;
                (at, run) = (self.next, 0);
            } else if self.blocks[block] == 0 {
                // It takes the cluster, and counts it itself.
                self.blocks[block] = cluster << header.cluster_bits;
                self.new_blocks.insert(block);
                let from = block as u64 * Refs::sectors(header);
                self.dirty.extend(from..from + Refs::sectors(header));
                self.set(header, cluster, 1);
                (at, run) = (cluster + 1, 0);
            } else {
                run += 1;
                if run == count {
                    break at;
                }
                if cluster >= CLUSTERS {
                    return Err(io::Error::other("the image cannot grow any more"));
                }
            }
        };
        for cluster in first..first + count {
            self.set(header, cluster, 1);
        }
        if count == 1 {
            self.next = first + 1;
        }
        let untouched = first >= self.virgin;
        self.virgin = self.virgin.max(first + count);
        Ok((first << header.cluster_bits, untouched))
    }

    /// Gives back what nothing on disk points to.
    pub fn give_back(&mut self, header: &Header, at: u64, len: u64) {
        for cluster in at >> header.cluster_bits..(at + len).div_ceil(header.cluster()) {
            let count = self.counts.get(cluster as usize).copied().unwrap_or(0);
            self.set(header, cluster, count.saturating_sub(1));
            if count == 1 {
                self.next = self.next.min(cluster);
            }
        }
    }

    /// Notes that a table in memory points there no more.
    pub fn release(&mut self, header: &Header, at: u64, len: u64) {
        self.released.extend(at >> header.cluster_bits..(at + len).div_ceil(header.cluster()));
    }

    /// The tables on disk point no more to what was released: it is free.
    pub fn settle_released(&mut self, file: &mut dyn Bytes, header: &Header) -> io::Result<()> {
        for cluster in std::mem::take(&mut self.released) {
            let at = cluster << header.cluster_bits;
            self.give_back(header, at, header.cluster());
            if self.free(cluster) {
                file.discard(at, header.cluster())?;
            }
        }
        Ok(())
    }

    /// Writes the refcounts, and what leads to them; on disk they are after the next sync.
    pub fn write(&mut self, file: &mut dyn Bytes, header: &Header) -> io::Result<()> {
        let sectors = Refs::sectors(header);
        for &sector in &self.dirty {
            let Some(&block) = self.blocks.get((sector / sectors) as usize) else { continue };
            if block == 0 {
                continue;
            }
            let mut bytes = [0; 512];
            let per_sector = 4096 >> header.refcount_order;
            for n in 0..per_sector {
                let count = self.counts.get((sector * per_sector + n) as usize).copied().unwrap_or(0);
                set_refcount(&mut bytes, header.refcount_order, n, u64::from(count));
            }
            file.write(block + sector % sectors * 512, &bytes)?;
        }
        if !self.new_blocks.is_empty() {
            file.sync()?;
            for &n in &self.new_blocks {
                file.write(header.refcount_table + n as u64 * 8, &self.blocks[n].to_be_bytes())?;
            }
        }
        Ok(())
    }

    /// What was written is on disk.
    pub fn written(&mut self) {
        self.dirty.clear();
        self.new_blocks.clear();
    }

    /// Makes the refcount table so long that it has an entry for block `block`, and puts it on disk.
    fn grow_table(&mut self, file: &mut dyn Bytes, header: &mut Header, block: usize) -> io::Result<()> {
        let old = (header.refcount_table, u64::from(header.refcount_table_clusters));
        let entries = header.cluster() / 8;
        // Half as much again, and room for the blocks that count the table itself.
        let clusters = (old.1 + old.1 / 2 + 1).max((block as u64 + 2).div_ceil(entries) + 2);
        if clusters << header.cluster_bits > 8 << 20 {
            return Err(io::Error::other("the image cannot grow any more"));
        }
        let (blocks, counts) = (self.blocks.len(), self.counts.len());
        self.blocks.resize((clusters * entries) as usize, 0);
        // Behind everything, so that there is a row of free clusters for sure.
        self.next = counts as u64;
        let moved = self.take(file, header, clusters).and_then(|(at, _)| {
            let bytes: Vec<u8> = self.blocks.iter().flat_map(|block| block.to_be_bytes()).collect();
            header.refcount_table = at;
            header.refcount_table_clusters = clusters as u32;
            // The blocks, then the table, then the header that leads to it.
            self.write(file, header)?;
            file.write(at, &bytes)?;
            file.sync()?;
            header.update(file)?;
            file.sync()
        });
        self.next = 0;
        if let Err(e) = moved {
            (header.refcount_table, header.refcount_table_clusters) = (old.0, old.1 as u32);
            self.blocks.truncate(blocks);
            self.counts.truncate(counts);
            self.new_blocks.retain(|block| *block < blocks);
            return Err(e);
        }
        self.written();
        self.give_back(header, old.0, old.1 << header.cluster_bits);
        Ok(())
    }

    /// Gives every cluster in use a block that counts it.
    pub fn cover(&mut self, file: &mut dyn Bytes, header: &mut Header) -> io::Result<()> {
        let per_block = ((header.cluster() * 8) >> header.refcount_order) as usize;
        let mut block = 0;
        while block * per_block < self.counts.len() {
            if block >= self.blocks.len() {
                self.grow_table(file, header, block)?;
            }
            if self.blocks[block] == 0 && self.counts[block * per_block..].iter().take(per_block).any(|n| *n > 0) {
                let (at, _) = self.take(file, header, 1)?;
                // Taking it can have made the block.
                if self.blocks[block] != 0 {
                    self.give_back(header, at, header.cluster());
                } else {
                    self.blocks[block] = at;
                    self.new_blocks.insert(block);
                    let from = block as u64 * Refs::sectors(header);
                    self.dirty.extend(from..from + Refs::sectors(header));
                }
            }
            block += 1;
        }
        Ok(())
    }
}
