//! Where the bytes of a request come from and go to: a buffer, or guest memory, which the host's calls reach without a
//! copy.

use std::io;

use emu::{IoVec, Ram};

use super::Store;
use super::file::Bytes;

/// What is written.
pub(crate) enum Source<'a> {
    Bytes(&'a [u8]),
    Guest(&'a Ram, &'a IoVec),
}

/// Where to what is read goes.
pub(crate) enum Target<'a> {
    Bytes(&'a mut [u8]),
    Guest(&'a Ram, &'a IoVec),
}

impl Source<'_> {
    pub fn len(&self) -> u64 {
        match self {
            Source::Bytes(data) => data.len() as u64,
            Source::Guest(_, iov) => iov.len(),
        }
    }

    /// Writes `len` bytes of it from byte `skip` on.
    pub fn write_to(&self, file: &mut dyn Bytes, at: u64, skip: u64, len: u64) -> io::Result<()> {
        match self {
            Source::Bytes(data) => file.write(at, &data[skip as usize..][..len as usize]),
            Source::Guest(ram, iov) => file.write_guest(at, ram, &iov.part(skip, len)),
        }
    }

    /// Copies a part of it.
    pub fn copy(&self, skip: u64, to: &mut [u8]) {
        match self {
            Source::Bytes(data) => to.copy_from_slice(&data[skip as usize..][..to.len()]),
            Source::Guest(ram, iov) => {
                let mut done = 0;
                for (addr, len) in iov.part(skip, to.len() as u64).parts() {
                    ram.read(*addr, &mut to[done..done + *len as usize]);
                    done += *len as usize;
                }
            }
        }
    }
}

impl Target<'_> {
    pub fn len(&self) -> u64 {
        match self {
            Target::Bytes(buf) => buf.len() as u64,
            Target::Guest(_, iov) => iov.len(),
        }
    }

    /// Fills `len` bytes of it from byte `skip` on.
    pub fn read_from(&mut self, file: &mut dyn Bytes, at: u64, skip: u64, len: u64) -> io::Result<()> {
        match self {
            Target::Bytes(buf) => file.read(at, &mut buf[skip as usize..][..len as usize]),
            Target::Guest(ram, iov) => file.read_guest(at, ram, &iov.part(skip, len)),
        }
    }

    /// The same from another image.
    pub fn read_store(&mut self, store: &mut dyn Store, at: u64, skip: u64, len: u64) -> io::Result<()> {
        match self {
            _ if len == 0 => Ok(()),
            Target::Bytes(buf) => store.read(at, &mut buf[skip as usize..][..len as usize]),
            Target::Guest(ram, iov) => store.read_guest(at, ram, &iov.part(skip, len)),
        }
    }

    pub fn zero(&mut self, skip: u64, len: u64) {
        const ZEROS: [u8; 4096] = [0; 4096];
        match self {
            Target::Bytes(buf) => buf[skip as usize..][..len as usize].fill(0),
            Target::Guest(ram, iov) => {
                for (addr, len) in iov.part(skip, len).parts() {
                    for at in (0..*len).step_by(ZEROS.len()) {
                        ram.write(emu::RamAddr(addr.0 + at), &ZEROS[..ZEROS.len().min((len - at) as usize)]);
                    }
                }
            }
        }
    }

    /// Puts bytes there.
    pub fn put(&mut self, skip: u64, bytes: &[u8]) {
        match self {
            Target::Bytes(buf) => buf[skip as usize..][..bytes.len()].copy_from_slice(bytes),
            Target::Guest(ram, iov) => {
                let mut done = 0;
                for (addr, len) in iov.part(skip, bytes.len() as u64).parts() {
                    ram.write(*addr, &bytes[done..done + *len as usize]);
                    done += *len as usize;
                }
            }
        }
    }
}
