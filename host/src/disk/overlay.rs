//! A layer that takes a machine's writes and is forgotten with it (`snapshot = true`).
//!
//! What is written goes to the same place in a sparse file that has no name any more, and a bit for each sector says
//! so. Nothing is copied, and the bits of a stretch of 2 MiB take 512 bytes of memory once the guest has written there.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use emu::{IoVec, Ram};

use super::file::{Bytes, HostFile};
use super::transfer::{Source, Target};
use super::{SECTOR, Store};
use crate::broker;

/// Sectors that have their bits together.
const STRETCH: u64 = 4096;

pub(crate) struct Overlay {
    base: Box<dyn Store>,
    file: Box<dyn Bytes>,
    written: HashMap<u64, Box<[u64; STRETCH as usize / 64]>>,
}

/// Where layers are: `$TMPDIR`, or else /var/tmp, has to have room for what is written.
pub(crate) fn folder() -> PathBuf {
    std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

/// A file there that has no name any more.
pub(crate) fn temporary() -> Result<File> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = format!(".bhyve-rs-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let path = folder().join(name);
    let what = || format!("temporary file {}", path.display());
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
    let file = file.with_context(what)?;
    std::fs::remove_file(&path).with_context(what)?;
    Ok(file)
}

impl Overlay {
    /// Puts one over `base`.
    pub fn new(base: Box<dyn Store>) -> Result<Overlay> {
        Ok(Overlay { base, file: Box::new(HostFile::own(broker::nameless()?)?), written: HashMap::new() })
    }

    /// Whether the sector at `offset` was written, and how far that goes on.
    fn run(&self, offset: u64, len: u64) -> (bool, u64) {
        let has = |sector: u64| {
            let bits = self.written.get(&(sector / STRETCH));
            bits.is_some_and(|bits| bits[(sector % STRETCH / 64) as usize] >> (sector % 64) & 1 != 0)
        };
        let (first, end) = (offset / SECTOR, (offset + len).div_ceil(SECTOR));
        let here = has(first);
        let mut sector = first + 1;
        while sector < end {
            if !here && sector.is_multiple_of(STRETCH) && !self.written.contains_key(&(sector / STRETCH)) {
                sector = (sector + STRETCH).min(end);
            } else if has(sector) == here {
                sector += 1;
            } else {
                break;
            }
        }
        (here, (sector * SECTOR - offset).min(len))
    }

    fn mark(&mut self, offset: u64, len: u64) {
        for sector in offset / SECTOR..(offset + len) / SECTOR {
            let bits = self.written.entry(sector / STRETCH).or_insert_with(|| Box::new([0; STRETCH as usize / 64]));
            bits[(sector % STRETCH / 64) as usize] |= 1 << (sector % 64);
        }
    }

    fn read_into(&mut self, offset: u64, to: &mut Target) -> io::Result<()> {
        let mut done = 0;
        while done < to.len() {
            let here = offset + done;
            let (written, run) = self.run(here, to.len() - done);
            match written {
                true => to.read_from(&mut *self.file, here, done, run)?,
                false => to.read_store(&mut *self.base, here, done, run)?,
            }
            done += run;
        }
        Ok(())
    }

    fn write_from(&mut self, offset: u64, from: &Source) -> io::Result<()> {
        // Whole sectors take no copy; others, which devices do not write, are filled up first.
        let len = from.len();
        let (begin, end) = (offset / SECTOR * SECTOR, (offset + len).next_multiple_of(SECTOR));
        if (begin, end) == (offset, offset + len) {
            from.write_to(&mut *self.file, offset, 0, len)?;
        } else {
            let mut whole = vec![0; (end - begin) as usize];
            self.read_into(begin, &mut Target::Bytes(&mut whole))?;
            from.copy(0, &mut whole[(offset - begin) as usize..][..len as usize]);
            self.file.write(begin, &whole)?;
        }
        self.mark(begin, end - begin);
        Ok(())
    }
}

impl Store for Overlay {
    fn size(&self) -> u64 {
        self.base.size()
    }

    fn read_only(&self) -> bool {
        false
    }

    fn read(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read_into(offset, &mut Target::Bytes(buf))
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_from(offset, &Source::Bytes(data))
    }

    /// It does not outlive anything that a flush is against.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.file.discard(offset, len)
    }

    fn extent(&mut self, offset: u64) -> io::Result<(u64, bool)> {
        match self.run(offset, self.size() - offset) {
            (true, run) => Ok((run, false)),
            (false, run) => self.base.extent(offset).map(|(there, zero)| (there.min(run), zero)),
        }
    }

    fn read_guest(&mut self, offset: u64, ram: &Ram, to: &IoVec) -> io::Result<()> {
        self.read_into(offset, &mut Target::Guest(ram, to))
    }

    fn write_guest(&mut self, offset: u64, ram: &Ram, from: &IoVec) -> io::Result<()> {
        self.write_from(offset, &Source::Guest(ram, from))
    }
}
