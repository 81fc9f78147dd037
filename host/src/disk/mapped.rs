//! Images of other programs, which are read by a map from places on the disk to places in files.
//!
//! Only those whose map never changes (flat VMDK extents, fixed VHD) can be written in place; for the others there are
//! overlays (`snapshot = true`, `image create -b`) and `image convert`.

use std::io;

use emu::{IoVec, Ram};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::{
    TINFL_FLAG_PARSE_ZLIB_HEADER, TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF,
};
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

use super::file::Bytes;
use super::transfer::{Source, Target};
use super::{SECTOR, Store};

/// The files of an image.
pub(crate) type Files = Vec<Box<dyn Bytes>>;

/// What is at a place of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Zero,
    /// In this file, from this byte on.
    At(usize, u64),
    /// In [`Map::memory`], from this byte on.
    Memory(usize),
}

/// A format.
pub(crate) trait Map: Send {
    fn size(&self) -> u64;

    /// Whether every place on the disk has one in a file, so that it can be written.
    fn fixed(&self) -> bool {
        false
    }

    /// What is at `offset`, and how many bytes it goes on for.
    fn place(&mut self, files: &mut Files, offset: u64) -> io::Result<(Place, u64)>;

    fn memory(&self) -> &[u8] {
        &[]
    }
}

pub(crate) struct Mapped<M> {
    pub files: Files,
    pub map: M,
    pub read_only: bool,
}

/// Says what is wrong with an image.
pub(crate) fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the image is damaged: {what}"))
}

/// Unpacks what zlib packed (`header`), or deflate alone, into exactly `len` bytes.
pub(crate) fn unpack(packed: &[u8], len: usize, header: bool) -> Option<Vec<u8>> {
    let mut out = vec![0; len];
    let flags = TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF | if header { TINFL_FLAG_PARSE_ZLIB_HEADER } else { 0 };
    let (status, _, got) = decompress(&mut DecompressorOxide::new(), packed, &mut out, 0, flags);
    (got == len && matches!(status, TINFLStatus::Done | TINFLStatus::HasMoreOutput)).then_some(out)
}

impl<M: Map> Mapped<M> {
    fn read_into(&mut self, offset: u64, to: &mut Target) -> io::Result<()> {
        let mut done = 0;
        while done < to.len() {
            let (place, run) = self.map.place(&mut self.files, offset + done)?;
            let run = run.min(to.len() - done);
            match place {
                Place::Zero => to.zero(done, run),
                Place::At(file, at) => to.read_from(&mut *self.files[file], at, done, run)?,
                Place::Memory(at) => to.put(done, &self.map.memory()[at..at + run as usize]),
            }
            done += run;
        }
        Ok(())
    }

    fn write_from(&mut self, offset: u64, from: &Source) -> io::Result<()> {
        let mut done = 0;
        while done < from.len() {
            let (place, run) = self.map.place(&mut self.files, offset + done)?;
            let run = run.min(from.len() - done);
            let Place::At(file, at) = place else { return Err(io::ErrorKind::ReadOnlyFilesystem.into()) };
            from.write_to(&mut *self.files[file], at, done, run)?;
            done += run;
        }
        Ok(())
    }
}

impl<M: Map> Store for Mapped<M> {
    fn size(&self) -> u64 {
        self.map.size().next_multiple_of(SECTOR)
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read_into(offset, &mut Target::Bytes(buf))
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_from(offset, &Source::Bytes(data))
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.read_only { Ok(()) } else { self.files.iter_mut().try_for_each(|file| file.sync()) }
    }

    fn extent(&mut self, offset: u64) -> io::Result<(u64, bool)> {
        let left = self.size() - offset;
        let (place, run) = self.map.place(&mut self.files, offset)?;
        let run = run.min(left);
        Ok(match place {
            Place::At(file, at) => match self.files[file].data(at)? {
                None => (run, true),
                Some((begin, _)) if begin > at => (run.min(begin - at), true),
                Some((_, end)) => (run.min((end - at).next_multiple_of(SECTOR)), false),
            },
            place => (run, place == Place::Zero),
        })
    }

    fn read_guest(&mut self, offset: u64, ram: &Ram, to: &IoVec) -> io::Result<()> {
        self.read_into(offset, &mut Target::Guest(ram, to))
    }

    fn write_guest(&mut self, offset: u64, ram: &Ram, from: &IoVec) -> io::Result<()> {
        self.write_from(offset, &Source::Guest(ram, from))
    }
}
