//! qcow2 images, versions 2 and 3 (QEMU's docs/interop/qcow2.txt).
//!
//! The disk is cut into clusters. An L1 table leads to L2 tables, and these to the clusters in the file; what they do
//! not mention comes from the backing file, or is zero. Refcounts say how often a cluster of the file is used. Zero
//! clusters, clusters that zlib compressed, internal snapshots (as something not to be damaged), and all sizes of
//! clusters and refcounts are known; encryption, external data files, extended L2 entries and zstd are refused.
//!
//! **What a power cut leaves.** Data, copies of old data included, and refcounts reach the disk before the tables that
//! lead to them, new L2 tables before the L1 table, and what a table no longer leads to is given to others only when
//! the table is on disk. A sync stands between each of them, and all writes to tables are made of whole 64-bit entries.
//! So the tables on disk are right at any time, and at worst a cluster is counted that nobody uses. Whoever opens the
//! image to write goes through all tables anyway (`check`), gives such clusters back, and refuses what is damaged.
//! The tables stay in memory until somebody flushes: the guest, or the disk's thread when it has nothing else to do.

mod check;
mod create;
mod header;
mod refs;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeSet, HashMap};
use std::io;

use anyhow::{Result, bail};
use emu::{IoVec, Ram};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

use super::file::Bytes;
use super::transfer::{Source, Target};
use super::{SECTOR, Store};
use check::{COPIED, Entry, ZERO, l2_place, words};
use refs::Refs;

pub(crate) use check::Scan;
pub(crate) use create::create;
pub(crate) use header::{Backing, Header, MAGIC};

/// Bytes of L2 tables that are kept.
const TABLES: u64 = 16 << 20;
/// Clusters that wait to be free.
const RELEASED: usize = 1024;

struct Table {
    at: u64,
    entries: Vec<u64>,
    /// Sectors of it that are to be written.
    dirty: BTreeSet<usize>,
    used: u64,
}

/// What is at a place of the disk.
#[derive(Clone, Copy)]
enum Place {
    At(u64),
    Zero,
    Backing,
    Packed(u64, u64),
}

pub(crate) struct Qcow2 {
    file: Box<dyn Bytes>,
    header: Header,
    l1: Vec<u64>,
    /// Sectors of the L1 table that are to be written.
    l1_dirty: BTreeSet<usize>,
    tables: HashMap<usize, Table>,
    /// Counts uses of tables, to know which was used longest ago.
    uses: u64,
    /// Of an image that can be written.
    refs: Option<Refs>,
    backing: Option<Box<dyn Store>>,
    /// The compressed cluster that was read last, by its place in the file.
    unpacked: (u64, Vec<u8>),
    /// Data was written since the last sync.
    written: bool,
}

fn damaged(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the image is damaged: {what}"))
}

impl Qcow2 {
    /// Opens an image; `backing` is what its header names. With `repair` wrong refcounts are put right whoever left
    /// them.
    pub fn open(
        mut file: Box<dyn Bytes>,
        header: Header,
        backing: Option<Box<dyn Store>>,
        read_only: bool,
        repair: bool,
    ) -> Result<Qcow2> {
        let mut image = Qcow2 {
            l1: words(&mut *file, header.l1_offset, u64::from(header.l1_size))?,
            file,
            header,
            l1_dirty: BTreeSet::new(),
            tables: HashMap::new(),
            uses: 0,
            refs: None,
            backing,
            unpacked: (0, Vec::new()),
            written: false,
        };
        if !read_only {
            image.prepare(repair)?;
        }
        Ok(image)
    }

    /// Gets ready to write.
    fn prepare(&mut self, repair: bool) -> Result<()> {
        let (file, header) = (&mut *self.file, &mut self.header);
        if header.bitmaps {
            bail!("qcow2: the image has persistent bitmaps, which writing would make wrong; convert it first");
        }
        let scan = Scan::new(file, header)?;
        if scan.wrong > 0 {
            let more = if scan.wrong > 1 { format!(" and {} more", scan.wrong - 1) } else { String::new() };
            let what = scan.problems.first().map_or("", String::as_str);
            bail!("the image is damaged: {what}{more}; it can be opened with readonly = true only");
        }
        // Refcounts that are too low are expected only where a writer says that it did not get to write them.
        let marked = header.incompatible & header::CORRUPT != 0;
        let dirty = header.incompatible & header::DIRTY != 0;
        if (scan.low > 0 || scan.bad_blocks || marked) && !dirty && !repair {
            let what = if marked { "it is marked as damaged".to_owned() } else { format!("{} refcounts", scan.low) };
            bail!("the image is damaged: {what}; `bhyve-rs image check --repair` puts refcounts right");
        }
        if scan.leaks > 0 || scan.low > 0 {
            tracing::info!("qcow2: {} refcounts are put right", scan.leaks + scan.low);
        }
        let cover = scan.low > 0 || scan.bad_blocks;
        let mut refs = Refs::new(scan, file, header);
        if cover {
            refs.cover(file, header)?;
        }
        refs.write(file, header)?;
        file.sync()?;
        refs.written();
        // Bits that others must clear when they do not know what they stand for.
        if header.incompatible & (header::DIRTY | header::CORRUPT) != 0 || header.autoclear != 0 {
            header.incompatible &= !(header::DIRTY | header::CORRUPT);
            header.autoclear = 0;
            header.update(file)?;
            file.sync()?;
        }
        self.refs = Some(refs);
        Ok(())
    }

    fn cluster(&self) -> u64 {
        self.header.cluster()
    }

    /// Which L1 entry and which entry of its L2 table a place on the disk has.
    fn indices(&self, offset: u64) -> (usize, usize) {
        let cluster = offset >> self.header.cluster_bits;
        let entries = self.header.l2_entries();
        ((cluster / entries) as usize, (cluster % entries) as usize)
    }

    /// Loads an L2 table, if there is one.
    fn load(&mut self, n: usize) -> io::Result<bool> {
        self.uses += 1;
        if let Some(table) = self.tables.get_mut(&n) {
            table.used = self.uses;
            return Ok(true);
        }
        let raw = self.l1[n];
        let at = l2_place(raw, &self.header, self.file.len())
            .map_err(|why| damaged(format!("entry {n} of the L1 table {why} ({raw:#x})")))?;
        if at == 0 {
            return Ok(false);
        }
        let entries = words(&mut *self.file, at, self.header.l2_entries())?;
        self.make_room()?;
        self.tables.insert(n, Table { at, entries, dirty: BTreeSet::new(), used: self.uses });
        Ok(true)
    }

    /// Forgets the table that was used longest ago when there are too many.
    fn make_room(&mut self) -> io::Result<()> {
        if self.tables.len() as u64 * self.cluster() < TABLES {
            return Ok(());
        }
        let oldest = self.tables.iter().min_by_key(|(_, table)| table.used).map(|(n, table)| (*n, &table.dirty));
        let Some((n, dirty)) = oldest else { return Ok(()) };
        if !dirty.is_empty() || !self.l1_dirty.is_empty() {
            self.commit()?;
        }
        self.tables.remove(&n);
        Ok(())
    }

    fn entry(&mut self, offset: u64) -> io::Result<Entry> {
        let (n, m) = self.indices(offset);
        if !self.load(n)? {
            return Ok(Entry::Absent);
        }
        let raw = self.tables[&n].entries[m];
        Entry::new(raw, &self.header, self.file.len())
            .map_err(|why| damaged(format!("entry {m} of L2 table {n} {why} ({raw:#x})")))
    }

    /// What is at `offset`, and for how many bytes, `len` at most, that goes on.
    fn place(&mut self, offset: u64, len: u64) -> io::Result<(Place, u64)> {
        let (cluster, inside) = (self.cluster(), offset % self.cluster());
        let place = match self.entry(offset)? {
            Entry::Absent => Place::Backing,
            Entry::Zero(_) => Place::Zero,
            Entry::At(at) => Place::At(at + inside),
            Entry::Packed(at, bytes) => Place::Packed(at, bytes),
        };
        let mut run = (cluster - inside).min(len);
        while run < len {
            let goes_on = match (place, self.entry(offset + run)?) {
                (Place::Backing, Entry::Absent) | (Place::Zero, Entry::Zero(_)) => true,
                (Place::At(at), Entry::At(next)) => at + run == next,
                _ => false,
            };
            if !goes_on {
                break;
            }
            run = (run + cluster).min(len);
        }
        Ok((place, run))
    }

    /// Makes the compressed cluster at byte `at` the one in memory.
    fn unpack(&mut self, at: u64, bytes: u64) -> io::Result<()> {
        if self.unpacked.0 != at {
            // What lies behind the end of the file is padding that nobody wrote.
            let mut packed = vec![0; bytes as usize];
            self.file.read(at, &mut packed)?;
            let mut out = vec![0; self.cluster() as usize];
            let flags = TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
            let (status, _, got) = decompress(&mut DecompressorOxide::new(), &packed, &mut out, 0, flags);
            let whole = got == out.len() && matches!(status, TINFLStatus::Done | TINFLStatus::HasMoreOutput);
            if !whole {
                return Err(damaged(format!("the compressed cluster at byte {at} cannot be unpacked")));
            }
            self.unpacked = (at, out);
        }
        Ok(())
    }

    fn read_into(&mut self, offset: u64, to: &mut Target) -> io::Result<()> {
        let mut done = 0;
        while done < to.len() {
            let here = offset + done;
            let (place, run) = self.place(here, to.len() - done)?;
            match place {
                Place::At(at) => to.read_from(&mut *self.file, at, done, run)?,
                Place::Zero => to.zero(done, run),
                Place::Backing => match &mut self.backing {
                    None => to.zero(done, run),
                    Some(backing) => {
                        let there = backing.size().saturating_sub(here).min(run);
                        to.read_store(&mut **backing, here, done, there)?;
                        to.zero(done + there, run - there);
                    }
                },
                Place::Packed(at, bytes) => {
                    self.unpack(at, bytes)?;
                    let inside = (here % self.cluster()) as usize;
                    to.put(done, &self.unpacked.1[inside..inside + run as usize]);
                }
            }
            done += run;
        }
        Ok(())
    }

    fn write_from(&mut self, offset: u64, from: &Source) -> io::Result<()> {
        let mut done = 0;
        while done < from.len() {
            let (here, left) = (offset + done, from.len() - done);
            let (place, run) = self.place(here, left)?;
            let run = match place {
                Place::At(at) if self.ours(at, run) => {
                    from.write_to(&mut *self.file, at, done, run)?;
                    run
                }
                _ => {
                    let run = (self.cluster() - here % self.cluster()).min(left);
                    self.write_new(here, from, done, run)?;
                    run
                }
            };
            self.written = true;
            done += run;
            self.bound_released()?;
        }
        Ok(())
    }

    /// Whether nobody else uses the clusters of a stretch.
    fn ours(&self, at: u64, len: u64) -> bool {
        let Some(refs) = &self.refs else { return false };
        let first = at & !(self.cluster() - 1);
        (first..at + len).step_by(self.cluster() as usize).all(|at| refs.count(at, &self.header) == 1)
    }

    /// Takes clusters in a row; see [`Refs::take`].
    fn take(&mut self, count: u64) -> io::Result<(u64, bool)> {
        let refs = self.refs.as_mut().ok_or(io::ErrorKind::ReadOnlyFilesystem)?;
        refs.take(&mut *self.file, &mut self.header, count)
    }

    /// Writes within one cluster of the disk, to a cluster of the file that is new to it.
    fn write_new(&mut self, offset: u64, from: &Source, skip: u64, len: u64) -> io::Result<()> {
        let (cluster, inside) = (self.cluster(), offset % self.cluster());
        self.own_table(self.indices(offset).0)?;
        let old = self.entry(offset)?;
        let (at, untouched) = match old {
            Entry::Zero(at) if at != 0 && self.ours(at, cluster) => (at, false),
            _ => self.take(1)?,
        };
        let zeros = match old {
            Entry::Zero(_) => true,
            Entry::Absent => self.backing.as_ref().is_none_or(|backing| backing.size() <= offset - inside),
            _ => false,
        };
        let result = if len == cluster || zeros && untouched {
            from.write_to(&mut *self.file, at + inside, skip, len)
        } else {
            let mut whole = vec![0; cluster as usize];
            if !zeros {
                self.read_into(offset - inside, &mut Target::Bytes(&mut whole))?;
            }
            from.copy(skip, &mut whole[inside as usize..][..len as usize]);
            self.file.write(at, &whole)
        };
        let header = &self.header;
        let refs = self.refs.as_mut().ok_or(io::ErrorKind::ReadOnlyFilesystem)?;
        let kept = old == Entry::Zero(at);
        if let Err(e) = result {
            if !kept {
                refs.give_back(header, at, cluster);
            }
            return Err(e);
        }
        match old {
            Entry::Zero(old) | Entry::At(old) if old != 0 && !kept => refs.release(header, old, cluster),
            Entry::Packed(old, bytes) => refs.release(header, old, bytes),
            _ => {}
        }
        self.set_entry(offset, at | COPIED);
        Ok(())
    }

    fn set_entry(&mut self, offset: u64, raw: u64) {
        let (n, m) = self.indices(offset);
        if let Some(table) = self.tables.get_mut(&n) {
            table.entries[m] = raw;
            table.dirty.insert(m * 8 / SECTOR as usize);
        }
    }

    /// Makes sure that there is an L2 table, loaded and used by nobody else.
    fn own_table(&mut self, n: usize) -> io::Result<()> {
        let cluster = self.cluster();
        let there = self.load(n)?;
        let old = self.tables.get(&n).map(|table| table.at);
        if there && old.is_some_and(|at| self.ours(at, cluster)) {
            return Ok(());
        }
        self.make_room()?;
        let (at, _) = self.take(1)?;
        let entries = self.tables.remove(&n).map(|table| table.entries);
        let entries = entries.unwrap_or_else(|| vec![0; self.header.l2_entries() as usize]);
        let dirty = (0..(cluster / SECTOR) as usize).collect();
        self.tables.insert(n, Table { at, entries, dirty, used: self.uses });
        self.l1[n] = at | COPIED;
        self.l1_dirty.insert(n * 8 / SECTOR as usize);
        if let Some(old) = old {
            // A snapshot keeps the old one. The clusters that both lead to were counted for both before.
            if let Some(refs) = &mut self.refs {
                refs.release(&self.header, old, cluster);
            }
        }
        Ok(())
    }

    /// Keeps a guest that never flushes from using more and more of the file.
    fn bound_released(&mut self) -> io::Result<()> {
        match &self.refs {
            Some(refs) if refs.released() >= RELEASED => self.commit(),
            _ => Ok(()),
        }
    }

    /// Puts everything on disk: what was written, and the tables that lead there.
    fn commit(&mut self) -> io::Result<()> {
        let (file, header) = (&mut *self.file, &self.header);
        let Some(refs) = &mut self.refs else { return Ok(()) };
        let tables = self.tables.values().any(|table| !table.dirty.is_empty()) || !self.l1_dirty.is_empty();
        if !(self.written || tables || refs.dirty()) {
            return Ok(());
        }
        refs.write(file, header)?;
        file.sync()?;
        refs.written();
        self.written = false;
        if !tables {
            return Ok(());
        }
        for table in self.tables.values().filter(|table| !table.dirty.is_empty()) {
            write_words(file, table.at, &table.entries, &table.dirty)?;
        }
        if !self.l1_dirty.is_empty() {
            file.sync()?;
            write_words(file, header.l1_offset, &self.l1, &self.l1_dirty)?;
        }
        file.sync()?;
        self.tables.values_mut().for_each(|table| table.dirty.clear());
        self.l1_dirty.clear();
        refs.settle_released(file, header)
    }
}

/// Writes the sectors of a table that are to be written.
fn write_words(file: &mut dyn Bytes, at: u64, words: &[u64], dirty: &BTreeSet<usize>) -> io::Result<()> {
    let mut sectors = dirty.iter().copied().peekable();
    while let Some(first) = sectors.next() {
        let mut end = first + 1;
        while sectors.next_if_eq(&end).is_some() {
            end += 1;
        }
        let part = &words[first * 64..(end * 64).min(words.len())];
        let bytes: Vec<u8> = part.iter().flat_map(|word| word.to_be_bytes()).collect();
        file.write(at + first as u64 * SECTOR, &bytes)?;
    }
    Ok(())
}

impl Store for Qcow2 {
    fn size(&self) -> u64 {
        self.header.size.next_multiple_of(SECTOR)
    }

    fn read_only(&self) -> bool {
        self.refs.is_none()
    }

    fn read(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read_into(offset, &mut Target::Bytes(buf))
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_from(offset, &Source::Bytes(data))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.commit()
    }

    fn unsettled(&self) -> bool {
        let tables = || self.tables.values().any(|table| !table.dirty.is_empty());
        self.refs.as_ref().is_some_and(Refs::dirty) || tables()
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let cluster = self.cluster();
        // The last cluster of the disk counts as whole.
        let end = if offset + len >= self.size() { (offset + len).next_multiple_of(cluster) } else { offset + len };
        let mut at = offset.next_multiple_of(cluster);
        while at + cluster <= end {
            let (n, _) = self.indices(at);
            if self.l1[n] == 0 {
                at = (at / self.header.l2_reach() + 1) * self.header.l2_reach();
                continue;
            }
            let old = self.entry(at)?;
            let raw = match self.header.version {
                _ if self.backing.is_none() => Some(0),
                3 => Some(ZERO),
                // It would show the backing file's contents again; they may stay.
                _ => None,
            };
            if let (Some(raw), Entry::At(_) | Entry::Packed(..) | Entry::Zero(1..)) = (raw, old) {
                self.own_table(n)?;
                let header = &self.header;
                let refs = self.refs.as_mut().ok_or(io::ErrorKind::ReadOnlyFilesystem)?;
                match old {
                    Entry::At(old) | Entry::Zero(old) => refs.release(header, old, cluster),
                    Entry::Packed(old, bytes) => refs.release(header, old, bytes),
                    Entry::Absent => {}
                }
                self.set_entry(at, raw);
                self.bound_released()?;
            }
            at += cluster;
        }
        Ok(())
    }

    fn extent(&mut self, offset: u64) -> io::Result<(u64, bool)> {
        // Not more than an L2 table's reach at a time.
        let len = (self.size() - offset).min(self.header.l2_reach());
        let (place, run) = self.place(offset, len)?;
        match (place, &mut self.backing) {
            (Place::Zero, _) | (Place::Backing, None) => Ok((run, true)),
            (Place::Backing, Some(backing)) if backing.size() <= offset => Ok((run, true)),
            (Place::Backing, Some(backing)) => backing.extent(offset).map(|(there, zero)| (there.min(run), zero)),
            _ => Ok((run, false)),
        }
    }

    fn read_guest(&mut self, offset: u64, ram: &Ram, to: &IoVec) -> io::Result<()> {
        self.read_into(offset, &mut Target::Guest(ram, to))
    }

    fn write_guest(&mut self, offset: u64, ram: &Ram, from: &IoVec) -> io::Result<()> {
        self.write_from(offset, &Source::Guest(ram, from))
    }
}

impl Drop for Qcow2 {
    /// Whoever has it flushes first, and hears of errors. The second time writes what the first gave back.
    fn drop(&mut self) {
        let _ = self.commit().and_then(|()| self.commit());
    }
}
