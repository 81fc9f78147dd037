//! Making images and changing their size.

use std::io;

use anyhow::{Result, bail, ensure};

use super::Qcow2;
use super::check::set_refcount;
use super::header::{Backing, Header};
use crate::disk::Store;
use crate::disk::file::Bytes;

/// Makes an empty image of version 3 in an empty file.
///
/// # Errors
/// When the host cannot write it, or the size is not possible.
pub(crate) fn create(file: &mut dyn Bytes, size: u64, cluster_bits: u32, backing: Option<Backing>) -> Result<Header> {
    let cluster = 1u64 << cluster_bits;
    let mut header = Header {
        version: 3,
        cluster_bits,
        size,
        l1_size: 0,
        l1_offset: 0,
        refcount_table: cluster,
        refcount_table_clusters: 1,
        snapshots: 0,
        snapshots_offset: 0,
        incompatible: 0,
        compatible: 0,
        autoclear: 0,
        refcount_order: 4,
        backing,
        bitmaps: false,
    };
    let l1_size = size.div_ceil(header.l2_reach()).max(1);
    ensure!(l1_size <= 4 << 20, "a disk of {size} bytes is too large for clusters of {cluster} bytes");
    header.l1_size = l1_size as u32;
    let l1 = (l1_size * 8).div_ceil(cluster);
    let (per_block, per_table) = (cluster / 2, cluster / 8);
    // The blocks count the table and themselves.
    let (mut table, mut blocks) = (1, 1);
    let total = loop {
        let total = 1 + table + blocks + l1;
        let need = (total.div_ceil(per_block).div_ceil(per_table), total.div_ceil(per_block));
        if (table, blocks) == need {
            break total;
        }
        (table, blocks) = need;
    };
    header.refcount_table_clusters = table as u32;
    header.l1_offset = (1 + table + blocks) << cluster_bits;
    let first_block = (1 + table) << cluster_bits;
    let places: Vec<u8> = (0..blocks).flat_map(|n| (first_block + n * cluster).to_be_bytes()).collect();
    let mut counts = vec![0; (blocks << cluster_bits) as usize];
    (0..total).for_each(|n| set_refcount(&mut counts, 4, n, 1));
    ensure!(
        header.backing.as_ref().is_none_or(|b| b.name.len() <= 1023 && b.name.len() + 128 <= cluster as usize),
        "the name of the backing file is too long"
    );
    // All tables are there, and empty.
    file.set_len(total << cluster_bits)?;
    file.write(cluster, &places)?;
    file.write(first_block, &counts)?;
    file.sync()?;
    file.write(0, &header.first_cluster())?;
    file.sync()?;
    Ok(header)
}

impl Qcow2 {
    /// Makes the disk larger or smaller; what is cut off is lost.
    ///
    /// # Errors
    /// When the image has snapshots, or the host cannot write.
    pub(crate) fn resize(&mut self, size: u64) -> Result<()> {
        if self.header.snapshots > 0 {
            bail!("the image has snapshots; one of another size cannot be made of it");
        }
        ensure!(size <= 1 << 62, "{size} bytes are too many");
        let old = self.header.size;
        if size < old {
            let cluster = self.cluster();
            // The rest of the last cluster would come back if the disk grew again.
            let edge = size.next_multiple_of(cluster).min(old.next_multiple_of(cluster));
            if edge > size {
                self.write(size, &vec![0; (edge - size) as usize])?;
            }
            if edge < old {
                self.discard(edge, old - edge)?;
            }
            self.commit()?;
        } else {
            self.lengthen_l1(size.div_ceil(self.header.l2_reach()))?;
        }
        self.header.size = size;
        self.header.update(&mut *self.file)?;
        self.file.sync()?;
        // What a longer backing file has there is not the new disk's.
        let hidden = self.backing.as_ref().map_or(0, |backing| backing.size()).min(size);
        let zeros = vec![0; self.cluster() as usize];
        let mut at = old;
        while at < hidden {
            let n = (zeros.len() as u64 - at % zeros.len() as u64).min(hidden - at);
            self.write(at, &zeros[..n as usize])?;
            at += n;
        }
        self.commit()?;
        Ok(())
    }

    fn lengthen_l1(&mut self, entries: u64) -> io::Result<()> {
        if entries <= self.l1.len() as u64 {
            return Ok(());
        }
        if entries > 4 << 20 {
            return Err(io::Error::other("the disk is too large for clusters of this size"));
        }
        self.commit()?;
        let (at, _) = self.take((entries * 8).div_ceil(self.cluster()))?;
        let old = (self.header.l1_offset, self.l1.len() as u64 * 8);
        self.l1.resize(entries as usize, 0);
        let bytes: Vec<u8> = self.l1.iter().flat_map(|word| word.to_be_bytes()).collect();
        // The refcounts and the table, then the header that leads to it.
        self.file.write(at, &bytes)?;
        self.commit()?;
        (self.header.l1_offset, self.header.l1_size) = (at, entries as u32);
        self.header.update(&mut *self.file)?;
        self.file.sync()?;
        if let Some(refs) = &mut self.refs {
            refs.give_back(&self.header, old.0, old.1.max(1));
        }
        Ok(())
    }
}
