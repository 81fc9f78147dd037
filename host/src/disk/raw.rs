//! Raw images: files and block devices.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use emu::{IoVec, Ram, RamAddr};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::{SECTOR, Store};

/// Pieces of memory in one call; POSIX promises no more than 16, but all systems take these.
const PIECES: usize = 256;

pub(super) struct Raw {
    file: Flock<File>,
    size: u64,
    read_only: bool,
}

impl Raw {
    pub fn open(path: &Path, read_only: bool) -> Result<Raw> {
        let mut file = match OpenOptions::new().read(true).write(!read_only).open(path) {
            Ok(file) => file,
            Err(e)
                if !read_only
                    && matches!(e.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) =>
            {
                return Err(e).context("it cannot be written; use it with readonly = true");
            }
            Err(e) => return Err(e.into()),
        };
        // Block devices say their size only so.
        let end = file.seek(SeekFrom::End(0))?;
        if end == 0 {
            bail!("it is empty");
        }
        let lock = if read_only { FlockArg::LockSharedNonblock } else { FlockArg::LockExclusiveNonblock };
        let file = match Flock::lock(file, lock) {
            Ok(file) => file,
            Err((_, Errno::EWOULDBLOCK)) => bail!("it is in use: another machine has it open"),
            Err((_, e)) => return Err(e).context("it cannot be locked"),
        };
        Ok(Raw { file, size: end.next_multiple_of(SECTOR), read_only })
    }

    /// Moves the bytes of `iov` with one of the vectored system calls, and says how many: less than all at the end of
    /// the file.
    fn vectored(&self, offset: u64, ram: &Ram, iov: &IoVec, call: Vectored) -> io::Result<u64> {
        let mut parts = iov.parts().iter().copied();
        let (mut pieces, mut done) = (Vec::<libc::iovec>::with_capacity(PIECES.min(iov.parts().len())), 0);
        loop {
            pieces.extend(parts.by_ref().take(PIECES - pieces.len()).map(|(at, len)| piece(ram, at, len)));
            if pieces.is_empty() {
                return Ok(done);
            }
            let fd = self.file.as_raw_fd();
            // SAFETY: each piece was checked to lie in the arena, which `ram` keeps alive. It is memory of which no
            // Rust reference exists, so that the kernel and the guest may write it at any time.
            #[expect(unsafe_code, reason = "preadv(2) and pwritev(2) from and to guest memory")]
            let n = unsafe { call(fd, pieces.as_ptr(), pieces.len() as libc::c_int, (offset + done) as libc::off_t) };
            match n {
                -1 => {
                    let e = io::Error::last_os_error();
                    if e.kind() != io::ErrorKind::Interrupted {
                        return Err(e);
                    }
                }
                0 => return Ok(done),
                n => {
                    done += n as u64;
                    advance(&mut pieces, n as usize);
                }
            }
        }
    }
}

/// The file ended so many bytes early, which is right for the end of a last sector.
fn missing_tail(len: usize) -> io::Result<()> {
    if len < SECTOR as usize { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

type Vectored = unsafe extern "C" fn(libc::c_int, *const libc::iovec, libc::c_int, libc::off_t) -> libc::ssize_t;

fn piece(ram: &Ram, at: RamAddr, len: u64) -> libc::iovec {
    // Both ends are looked up, which fails for memory that is not in the arena.
    let (first, last) = (ram.host(at), ram.host(RamAddr(at.0 + len - 1)));
    debug_assert_eq!(last as usize - first as usize, len as usize - 1);
    libc::iovec { iov_base: first.cast(), iov_len: len as usize }
}

/// Takes off what was moved.
fn advance(pieces: &mut Vec<libc::iovec>, mut n: usize) {
    let whole = pieces.iter().take_while(|p| {
        let over = p.iov_len <= n;
        n -= if over { p.iov_len } else { 0 };
        over
    });
    let whole = whole.count();
    pieces.drain(..whole);
    if let Some(first) = pieces.first_mut() {
        first.iov_base = first.iov_base.cast::<u8>().wrapping_add(n).cast();
        first.iov_len -= n;
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
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => return missing_tail(buf.len() - done).map(|()| buf[done..].fill(0)),
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.read_only { Ok(()) } else { self.file.sync_data() }
    }

    fn read_guest(&mut self, offset: u64, ram: &Ram, to: &IoVec) -> io::Result<()> {
        let result = self.vectored(offset, ram, to, libc::preadv);
        // Whatever came in was written behind the back of the memory's owner.
        to.parts().iter().for_each(|(at, len)| ram.wrote(*at, *len));
        let mut done = result?;
        missing_tail((to.len() - done) as usize)?;
        for (at, len) in to.parts() {
            let skip = done.min(*len);
            done -= skip;
            ram.write(RamAddr(at.0 + skip), &[0; SECTOR as usize][..(len - skip) as usize]);
        }
        Ok(())
    }

    fn write_guest(&mut self, offset: u64, ram: &Ram, from: &IoVec) -> io::Result<()> {
        match self.vectored(offset, ram, from, libc::pwritev)? {
            n if n == from.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }
}
