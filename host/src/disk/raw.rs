//! Raw images: byte `n` of the disk is byte `n` of a file or a block device.
//!
//! When nobody said that an image is raw and it only looked like that, its guest could write the header of another
//! format into its first sector, for instance one that names any file of the host as its backing file, and have it read
//! as that the next time. So such writes fail while the format is a guess.

use std::io;

use emu::{IoVec, Ram};

use super::file::Bytes;
use super::open::{HEADER, looks_like};
use super::{SECTOR, Store};

pub(crate) struct Raw {
    file: Box<dyn Bytes>,
    size: u64,
    read_only: bool,
    guessed: bool,
}

impl Raw {
    /// `guessed`: nobody said that it is raw.
    pub fn new(file: Box<dyn Bytes>, read_only: bool, guessed: bool) -> Raw {
        Raw { size: file.len().next_multiple_of(SECTOR), file, read_only, guessed }
    }

    /// Whether a write leaves the image what it is: `part` copies bytes that will stand at its beginning.
    fn allow(&mut self, offset: u64, len: u64, part: impl FnOnce(&mut [u8])) -> io::Result<()> {
        if !self.guessed || offset >= HEADER as u64 {
            return Ok(());
        }
        let mut head = [0; HEADER];
        self.file.read(0, &mut head)?;
        let end = (offset + len).min(HEADER as u64) as usize;
        part(&mut head[offset as usize..end]);
        match looks_like(&head) {
            None => Ok(()),
            Some(format) => Err(io::Error::other(format!(
                "it would turn the image into {format}; say format = \"raw\" to allow that"
            ))),
        }
    }
}

impl Store for Raw {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, buf)
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.allow(offset, data.len() as u64, |head| head.copy_from_slice(&data[..head.len()]))?;
        self.file.write(offset, data)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.read_only { Ok(()) } else { self.file.sync() }
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.file.discard(offset, len)
    }

    fn extent(&mut self, offset: u64) -> io::Result<(u64, bool)> {
        Ok(match self.file.data(offset)? {
            None => (self.size - offset, true),
            Some((begin, _)) if begin > offset => (begin - offset, true),
            // The last sector may have bytes that the file has not.
            Some((_, end)) => (end.next_multiple_of(SECTOR) - offset, false),
        })
    }

    fn read_guest(&mut self, offset: u64, ram: &Ram, to: &IoVec) -> io::Result<()> {
        self.file.read_guest(offset, ram, to)
    }

    fn write_guest(&mut self, offset: u64, ram: &Ram, from: &IoVec) -> io::Result<()> {
        if self.guessed && offset < HEADER as u64 {
            // Seen once, and written as seen: the guest may change it in the meantime.
            let first = from.len().min(HEADER as u64);
            let mut head = vec![0; first as usize];
            let mut at = 0;
            for (addr, len) in from.part(0, first).parts() {
                ram.read(*addr, &mut head[at..at + *len as usize]);
                at += *len as usize;
            }
            self.write(offset, &head)?;
            let rest = from.part(first, from.len() - first);
            return self.file.write_guest(offset + first, ram, &rest);
        }
        self.file.write_guest(offset, ram, from)
    }
}
