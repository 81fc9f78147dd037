//! Disks: images opened for one machine, and the thread that does a disk's work.
//!
//! An [`Image`] is opened, and locked, before there is a machine; [`Image::attach`] makes a back end of it once guest
//! memory exists. Each disk has a worker of its own that takes its requests one after the other, so a flush comes
//! after all that was written before it.
//!
//! What the thread works on is a [`Store`]: an image of some format (`raw`, `qcow2`, `vmdk`, `vhd`, `vhdx`), a layer
//! over one that is forgotten with the machine (`overlay`), or memory. Formats reach their files through `file::Bytes`.
//!
//! A disk consists of sectors of 512 bytes. A raw file that ends within one is a disk with that sector, whose missing
//! bytes read as zeros; the file grows to the whole sector when the guest writes it.
//!
//! Two machines never write one image: a writer locks it alone, readers lock it together, and so do those who have it
//! as backing file. When the host fails a request the guest sees a device error and the log says why.

mod file;
#[cfg(test)]
mod fuzz;
mod mapped;
mod open;
mod overlay;
#[cfg(test)]
mod powercut;
mod qcow2;
mod raw;
#[cfg(test)]
mod tests;
pub mod tools;
mod transfer;
mod vhd;
mod vhdx;
mod vmdk;
mod worker;

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use emu::backend::Disk;
use emu::{IoVec, Ram};

pub use file::lend;
pub(crate) use file::{Access, Opened};
pub use open::Format;
use open::How;
pub(crate) use overlay::temporary;
use worker::Worker;
pub use worker::{DiskControl, OnError};

/// Bytes in a sector.
const SECTOR: u64 = 512;
/// Bytes that are copied at a time where guest memory cannot be read into.
const BOUNCE: u64 = 64 << 10;

/// Where a disk's bytes are.
trait Store: Send {
    /// Bytes, whole sectors.
    fn size(&self) -> u64;

    fn read_only(&self) -> bool;

    /// Reads all of `buf`.
    fn read(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Writes all of `data`.
    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Puts on stable storage what was written.
    fn flush(&mut self) -> io::Result<()>;

    /// Whether something that was written is lost when this process ends now.
    fn unsettled(&self) -> bool {
        false
    }

    /// The contents are no longer needed; they may stay.
    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let _ = (offset, len);
        Ok(())
    }

    /// How far from `offset` on, which is within the disk, its bytes are known to be zeros, or are not known to be.
    fn extent(&mut self, offset: u64) -> io::Result<(u64, bool)> {
        Ok((self.size() - offset, false))
    }

    /// Reads into guest memory.
    fn read_guest(&mut self, offset: u64, ram: &Ram, to: &IoVec) -> io::Result<()> {
        bounce(offset, to, |at, addr, buf| {
            self.read(at, buf)?;
            ram.write(addr, buf);
            Ok(())
        })
    }

    /// Writes from guest memory.
    fn write_guest(&mut self, offset: u64, ram: &Ram, from: &IoVec) -> io::Result<()> {
        bounce(offset, from, |at, addr, buf| {
            ram.read(addr, buf);
            self.write(at, buf)
        })
    }
}

/// Goes through a request's memory in steps: place on the disk, place in memory, and a buffer for the bytes.
fn bounce(
    offset: u64,
    iov: &IoVec,
    mut f: impl FnMut(u64, emu::RamAddr, &mut [u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut buf = vec![0; BOUNCE.min(iov.len()) as usize];
    let mut at = offset;
    for (addr, len) in iov.parts() {
        let mut done = 0;
        while done < *len {
            let n = BOUNCE.min(len - done);
            f(at, emu::RamAddr(addr.0 + done), &mut buf[..n as usize])?;
            at += n;
            done += n;
        }
    }
    Ok(())
}

/// A disk that is forgotten with the machine.
struct Memory(Vec<u8>);

impl Memory {
    fn range(&mut self, offset: u64, len: usize) -> io::Result<&mut [u8]> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let to = from.saturating_add(len);
        self.0.get_mut(from..to).ok_or_else(|| io::Error::other("past the end of the disk"))
    }
}

impl Store for Memory {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_only(&self) -> bool {
        false
    }

    fn read(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        buf.copy_from_slice(self.range(offset, buf.len())?);
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.range(offset, data.len())?.copy_from_slice(data);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How an image is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImageOptions {
    /// What it is.
    pub format: Format,
    /// Refuse writes.
    pub read_only: bool,
    /// Each write is on stable storage before the guest hears of its end.
    pub write_through: bool,
    /// Go past the host's cache.
    pub direct: bool,
    /// Forget with the machine what it writes.
    pub snapshot: bool,
    /// What happens when the host fails.
    pub on_error: OnError,
}

/// A disk image that belongs to this process until it is dropped.
pub struct Image {
    name: String,
    store: Box<dyn Store>,
    write_through: bool,
    on_error: OnError,
}

impl Image {
    /// Opens and locks an image, a file or a block device, and what is behind it.
    ///
    /// # Errors
    /// When it cannot be opened as `options` say, or another process has it; the message names the file.
    pub fn open(path: &Path, options: ImageOptions) -> Result<Image> {
        Image::lent(path, None, options)
    }

    /// Opens a disk whose file, or the first of them, somebody else may have opened for us.
    ///
    /// # Errors
    /// As [`Image::open`].
    pub fn lent(path: &Path, file: Option<File>, options: ImageOptions) -> Result<Image> {
        let name = path.display().to_string();
        let ImageOptions { format, read_only, write_through, direct, snapshot, on_error } = options;
        let how = How { format, read_only, direct, snapshot, repair: false };
        let store = open::open_lent(path, file, how).with_context(|| name.clone())?;
        let temporary = snapshot && !read_only;
        // It is not the image's file system that gets full.
        let name = if temporary { format!("{name}, kept in {}", overlay::folder().display()) } else { name };
        Ok(Image { name, store, write_through, on_error })
    }

    /// A disk in memory with these contents, filled up to a whole sector.
    pub fn memory(name: &str, mut bytes: Vec<u8>) -> Image {
        bytes.resize(bytes.len().next_multiple_of(SECTOR as usize), 0);
        let store = Box::new(Memory(bytes));
        Image { name: name.to_owned(), store, write_through: false, on_error: OnError::Report }
    }

    /// No medium at all, for a drive that can get one later.
    pub fn empty(name: &str) -> Image {
        Image::memory(name, Vec::new())
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.store.size()
    }

    /// Reads whole sectors, before there is a machine.
    ///
    /// # Errors
    /// When the host cannot, or they are behind the end.
    pub fn read(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        match offset.checked_add(buf.len() as u64).is_some_and(|end| end <= self.size()) {
            true => self.store.read(offset, buf),
            false => Err(io::Error::other("past the end of the disk")),
        }
    }

    /// Makes it a back end that moves data from and to `ram`.
    ///
    /// # Errors
    /// When the host has no thread for it.
    pub fn attach(self, ram: &Arc<Ram>) -> Result<Box<dyn Disk>> {
        self.attach_with_control(ram).map(|(disk, _)| disk)
    }

    /// As [`Image::attach`], with the means to work on it from outside the machine.
    ///
    /// # Errors
    /// When the host has no thread for it.
    pub fn attach_with_control(self, ram: &Arc<Ram>) -> Result<(Box<dyn Disk>, DiskControl)> {
        let name = self.name.clone();
        let worker = Worker::start(self, ram.clone()).with_context(|| name)?;
        let control = worker.control();
        Ok((Box::new(worker), control))
    }
}
