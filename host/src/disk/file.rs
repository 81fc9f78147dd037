//! The files and block devices that images are made of.
//!
//! Every format reads and writes its image through [`Bytes`], so that a test can put something between them and the
//! host. [`HostFile`] is the real one. It locks what it opens: a writer alone, readers together (flock(2), which other
//! programs may disregard). A device that is to be written is claimed from the system as well, which then mounts it
//! nowhere. With `direct` it goes past the host's cache (O_DIRECT) wherever the alignment of a request allows it; what
//! is not aligned is copied, and what is no whole block goes through the cache. FreeBSD's disk devices have no cache:
//! there everything moves in whole sectors of the device, and what is less is read, changed and written.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};
use emu::{IoVec, Ram, RamAddr};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{Whence, lseek};
use serde::{Deserialize, Serialize};

use super::bounce;
use crate::broker::{self, Id};
use crate::sys;

/// Pieces of memory in one call; POSIX promises no more than 16, but all systems take these.
const PIECES: usize = 256;
/// What a direct transfer is aligned to: no host's blocks are larger.
const DIRECT: u64 = 4096;
/// The largest copy that is made to align a direct transfer.
const DIRECT_COPY: usize = 1 << 20;

/// What holds an image's bytes.
pub(crate) trait Bytes: Send {
    /// Bytes that there are.
    fn len(&self) -> u64;

    /// Reads all of `buf`. What lies past the end reads as zeros.
    fn read(&mut self, at: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Writes all of `data`, past the end if need be.
    fn write(&mut self, at: u64, data: &[u8]) -> io::Result<()>;

    /// Puts on stable storage what was written.
    fn sync(&mut self) -> io::Result<()>;

    /// Cuts off, or adds zeros.
    fn set_len(&mut self, len: u64) -> io::Result<()>;

    /// What was there is no longer needed; what is read there then is anybody's guess.
    fn discard(&mut self, at: u64, len: u64) -> io::Result<()> {
        let _ = (at, len);
        Ok(())
    }

    /// The next stretch from `at` on that is not known to be a hole: its begin and its end.
    fn data(&mut self, at: u64) -> io::Result<Option<(u64, u64)>> {
        Ok((at < self.len()).then(|| (at, self.len())))
    }

    /// Reads into guest memory.
    fn read_guest(&mut self, at: u64, ram: &Ram, to: &IoVec) -> io::Result<()> {
        bounce(at, to, |at, addr, buf| {
            self.read(at, buf)?;
            ram.write(addr, buf);
            Ok(())
        })
    }

    /// Writes from guest memory.
    fn write_guest(&mut self, at: u64, ram: &Ram, from: &IoVec) -> io::Result<()> {
        bounce(at, from, |at, addr, buf| {
            ram.read(addr, buf);
            self.write(at, buf)
        })
    }
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Access {
    pub write: bool,
    pub direct: bool,
}

/// What it takes to use an image's file, in the order in which it is got from the host. The lock is the file's: it ends
/// with the last descriptor.
pub(crate) struct Opened {
    /// Locked.
    pub file: File,
    /// The same file past the host's cache, if that was asked for.
    pub direct: Option<File>,
    /// Keeps the system and others from using the device.
    pub claim: Option<File>,
}

/// A file or a disk device of the host.
pub(crate) struct HostFile {
    file: File,
    /// The same file past the host's cache.
    direct: Option<File>,
    /// Keeps the system and others from using the device.
    _claim: Option<File>,
    len: u64,
    is_file: bool,
    /// Transfers begin and end at multiples of this.
    grain: u64,
    /// The host said that it cannot discard.
    keeps: bool,
    /// A sync failed, and what it was for may be gone.
    lost: bool,
}

/// What images can be in. Whoever opens a named pipe, to look what it is, waits for its other end.
fn usable(path: &Path) -> Result<()> {
    let kind = std::fs::metadata(path)?.file_type();
    match () {
        () if kind.is_file() || kind.is_block_device() || kind.is_char_device() => Ok(()),
        () if kind.is_dir() => bail!("it is a directory"),
        () if kind.is_fifo() => bail!("it is a named pipe"),
        () => bail!("it is neither a file nor a disk device"),
    }
}

impl Opened {
    /// Opens, locks and claims the file at `path`, which must be none of `chain`.
    pub fn at(path: &Path, access: Access, chain: &[Id]) -> Result<Opened> {
        usable(path)?;
        let mut options = OpenOptions::new();
        options.read(true).write(access.write);
        let file = match options.open(path) {
            Ok(file) => file,
            Err(e)
                if access.write
                    && matches!(e.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) =>
            {
                return Err(e).context("it cannot be written; use it with readonly = true");
            }
            Err(e) => return Err(e.into()),
        };
        if chain.contains(&id(&file)?) {
            bail!("the image is behind itself");
        }
        lock(&file, access)?;
        let claim = if access.write && !file.metadata()?.is_file() { sys::claim(path)? } else { None };
        let direct = access.direct.then(|| options.custom_flags(libc::O_DIRECT).open(path)).transpose();
        let direct = direct.context("its file system cannot go past the host's cache; use cache = \"writeback\"")?;
        for file in [Some(&file), direct.as_ref()].into_iter().flatten() {
            sys::limit(file, access.write).context("its descriptor cannot be limited")?;
        }
        Ok(Opened { file, direct, claim })
    }
}

fn lock(file: &File, access: Access) -> Result<()> {
    match if access.write { file.try_lock() } else { file.try_lock_shared() } {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => bail!("it is in use: {}", holder(file)),
        Err(TryLockError::Error(e)) => Err(e).context("it cannot be locked"),
    }
}

/// Opens an image's file for another process to use, to be written if that can be.
///
/// # Errors
/// When it is nothing that images can be in, or cannot be read.
pub fn lend(path: &Path, write: bool) -> Result<File> {
    usable(path)?;
    match OpenOptions::new().read(true).write(write).open(path) {
        Err(e) if write && matches!(e.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => {
            Ok(File::open(path)?)
        }
        opened => Ok(opened?),
    }
}

/// Device and inode.
fn id(file: &File) -> io::Result<Id> {
    file.metadata().map(|about| (about.dev(), about.ino()))
}

impl HostFile {
    /// Opens and locks.
    pub fn open(path: &Path, access: Access) -> Result<HostFile> {
        HostFile::link(path, access, &[])
    }

    /// Opens and locks what must be none of `chain`.
    pub fn link(path: &Path, access: Access, chain: &[Id]) -> Result<HostFile> {
        let Opened { file, direct, claim } = broker::open(path, access, chain)?;
        Ok(HostFile { direct, _claim: claim, ..HostFile::of(file)? })
    }

    /// Locks a file that somebody else has opened for us.
    pub fn lent(file: File, access: Access) -> Result<HostFile> {
        let about = file.metadata()?;
        if !about.is_file() && (access.write || !about.file_type().is_block_device()) {
            bail!("it is no file, and a device that is lent cannot be claimed");
        }
        let mode = OFlag::from_bits_truncate(fcntl(&file, FcntlArg::F_GETFL)?) & OFlag::O_ACCMODE;
        if access.write && mode != OFlag::O_RDWR {
            bail!("it cannot be written; use it with readonly = true");
        }
        lock(&file, access)?;
        HostFile::of(file)
    }

    /// Device and inode.
    pub fn id(&self) -> io::Result<Id> {
        id(&self.file)
    }

    /// Opens to look, whoever has it.
    pub fn look(path: &Path) -> Result<HostFile> {
        usable(path)?;
        HostFile::of(File::open(path)?)
    }

    /// Takes a file that nobody else can know.
    pub fn own(file: File) -> Result<HostFile> {
        file.try_lock().context("lock")?;
        HostFile::of(file)
    }

    fn of(file: File) -> Result<HostFile> {
        let about = file.metadata()?;
        let is_file = about.is_file();
        let (len, grain) = match is_file {
            true => (about.len(), 1),
            false => {
                let (len, sector) = sys::disk_device(&file).context("it is a device, but not a disk")?;
                (len, if sys::WHOLE_SECTORS { sector } else { 1 })
            }
        };
        Ok(HostFile { file, direct: None, _claim: None, len, is_file, grain, keeps: false, lost: false })
    }

    /// Bytes in a sector of the device; `None` of a file.
    pub fn sector(&self) -> Option<u64> {
        sys::disk_device(&self.file).ok().filter(|_| !self.is_file).map(|(_, sector)| sector)
    }

    /// Treats it as a device that takes no less than so many bytes.
    #[cfg(test)]
    pub fn coarse(self, grain: u64) -> HostFile {
        HostFile { grain, ..self }
    }

    /// Whether the host takes a transfer as it is.
    fn whole(&self, at: u64, len: u64) -> bool {
        (at | len).is_multiple_of(self.grain)
    }

    /// Whether it takes one between these places in memory.
    fn whole_parts(&self, at: u64, iov: &IoVec) -> bool {
        self.grain == 1 || at.is_multiple_of(self.grain) && iov.parts().iter().all(|(_, len)| self.whole(0, *len))
    }

    /// The grains that hold a stretch.
    fn around(&self, at: u64, len: usize) -> (u64, Vec<u8>, std::ops::Range<usize>) {
        let begin = at - at % self.grain;
        let skip = (at - begin) as usize;
        (begin, vec![0; (skip + len).next_multiple_of(self.grain as usize)], skip..skip + len)
    }

    /// Whether all of a transfer can be done directly, and by whom.
    fn direct_for(&self, at: u64, ram: &Ram, iov: &IoVec) -> Option<&File> {
        let aligned = |(addr, len): &(RamAddr, u64)| (ram.host(*addr) as u64 | len).is_multiple_of(DIRECT);
        self.direct.as_ref().filter(|_| at.is_multiple_of(DIRECT) && iov.parts().iter().all(aligned))
    }

    /// Moves the bytes of `iov` with one of the vectored system calls, and says how many: less than all at the end of
    /// the file.
    fn vectored(&self, at: u64, ram: &Ram, iov: &IoVec, call: Vectored) -> io::Result<u64> {
        let fd = self.direct_for(at, ram, iov).unwrap_or(&self.file).as_raw_fd();
        let mut parts = iov.parts().iter().copied();
        let (mut pieces, mut done) = (Vec::<libc::iovec>::with_capacity(PIECES.min(iov.parts().len())), 0);
        loop {
            pieces.extend(parts.by_ref().take(PIECES - pieces.len()).map(|(at, len)| piece(ram, at, len)));
            if pieces.is_empty() {
                return Ok(done);
            }
            // SAFETY: each piece was checked to lie in the arena, which `ram` keeps alive. It is memory of which no
            // Rust reference exists, so that the kernel and the guest may write it at any time.
            #[expect(unsafe_code, reason = "preadv(2) and pwritev(2) from and to guest memory")]
            let n = unsafe { call(fd, pieces.as_ptr(), pieces.len() as libc::c_int, (at + done) as libc::off_t) };
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

    /// Reads `buf`, all of which is there.
    fn read_there(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        if !self.whole(at, buf.len() as u64) {
            let (begin, mut copy, part) = self.around(at, buf.len());
            self.read_there(begin, &mut copy)?;
            buf.copy_from_slice(&copy[part]);
            return Ok(());
        }
        let whole = (at | buf.len() as u64).is_multiple_of(DIRECT);
        let Some(direct) = self.direct.as_ref().filter(|_| whole) else {
            return self.file.read_exact_at(buf, at).map_err(cut_short);
        };
        let mut copy = Aligned::new(buf.len().min(DIRECT_COPY));
        for (n, part) in buf.chunks_mut(DIRECT_COPY).enumerate() {
            let copy = &mut copy.get()[..part.len()];
            direct.read_exact_at(copy, at + (n * DIRECT_COPY) as u64).map_err(cut_short)?;
            part.copy_from_slice(copy);
        }
        Ok(())
    }
}

/// Says what it means that there is less than there was.
fn cut_short(e: io::Error) -> io::Error {
    match e.kind() {
        io::ErrorKind::UnexpectedEof => io::Error::new(e.kind(), "the file has become shorter"),
        _ => e,
    }
}

/// A buffer that direct transfers take.
struct Aligned(Vec<u8>, usize);

impl Aligned {
    fn new(len: usize) -> Aligned {
        Aligned(vec![0; len + DIRECT as usize], len)
    }

    fn get(&mut self) -> &mut [u8] {
        let skip = self.0.as_ptr().align_offset(DIRECT as usize);
        &mut self.0[skip..skip + self.1]
    }
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

/// Who has the file, for a message.
pub(crate) fn holder(file: &File) -> String {
    match sys::lock_holder(file) {
        Some((pid, _)) if pid == std::process::id() => "this process has it open already".to_owned(),
        Some((pid, what)) => format!("process {pid} ({what}) has it open"),
        None => "another machine has it open".to_owned(),
    }
}

impl Bytes for HostFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn read(&mut self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let there = self.len.saturating_sub(at).min(buf.len() as u64) as usize;
        let (there, past) = buf.split_at_mut(there);
        self.read_there(at, there)?;
        past.fill(0);
        Ok(())
    }

    fn write(&mut self, at: u64, data: &[u8]) -> io::Result<()> {
        if !self.whole(at, data.len() as u64) {
            let (begin, mut copy, part) = self.around(at, data.len());
            self.read(begin, &mut copy)?;
            copy[part].copy_from_slice(data);
            return self.write(begin, &copy);
        }
        match self.direct.as_ref().filter(|_| (at | data.len() as u64).is_multiple_of(DIRECT)) {
            None => self.file.write_all_at(data, at)?,
            Some(direct) => {
                let mut copy = Aligned::new(data.len().min(DIRECT_COPY));
                for (n, part) in data.chunks(DIRECT_COPY).enumerate() {
                    let copy = &mut copy.get()[..part.len()];
                    copy.copy_from_slice(part);
                    direct.write_all_at(copy, at + (n * DIRECT_COPY) as u64)?;
                }
            }
        }
        self.len = self.len.max(at + data.len() as u64);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.lost {
            return Err(io::Error::other("an earlier flush has failed, and what was written before it may be lost"));
        }
        let done = if self.is_file { self.file.sync_data() } else { sys::sync_device(&self.file) };
        // The next one would find nothing to do, and succeed.
        self.lost = done.is_err() && sys::SYNC_FORGETS && self.direct.is_none();
        done
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        if self.is_file {
            self.file.set_len(len)?;
            self.len = len;
        }
        Ok(())
    }

    fn discard(&mut self, at: u64, len: u64) -> io::Result<()> {
        if !self.keeps && len > 0 {
            match sys::discard(&self.file, self.is_file, at, len) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // It is a wish, which not every host can fulfil.
                Err(_) => self.keeps = true,
            }
        }
        Ok(())
    }

    fn data(&mut self, at: u64) -> io::Result<Option<(u64, u64)>> {
        if at >= self.len {
            return Ok(None);
        }
        let seek = |at: u64, whence| lseek(self.file.as_fd(), at as libc::off_t, whence).map(|found| found as u64);
        match seek(at, Whence::SeekData) {
            Ok(begin) => Ok(Some((begin, seek(begin, Whence::SeekHole).unwrap_or(self.len).min(self.len)))),
            Err(Errno::ENXIO) => Ok(None),
            Err(_) => Ok(Some((at, self.len))),
        }
    }

    fn read_guest(&mut self, at: u64, ram: &Ram, to: &IoVec) -> io::Result<()> {
        if !self.whole_parts(at, to) {
            return bounce(at, to, |at, addr, buf| {
                self.read(at, buf)?;
                ram.write(addr, buf);
                Ok(())
            });
        }
        let there = self.len.saturating_sub(at).min(to.len());
        let result = self.vectored(at, ram, &to.part(0, there), libc::preadv);
        // Whatever came in was written behind the back of the memory's owner.
        to.parts().iter().for_each(|(addr, len)| ram.wrote(*addr, *len));
        if result? < there {
            return Err(cut_short(io::ErrorKind::UnexpectedEof.into()));
        }
        for (addr, len) in to.part(there, to.len() - there).parts() {
            ram.write(*addr, &vec![0; *len as usize]);
        }
        Ok(())
    }

    fn write_guest(&mut self, at: u64, ram: &Ram, from: &IoVec) -> io::Result<()> {
        if !self.whole_parts(at, from) {
            return bounce(at, from, |at, addr, buf| {
                ram.read(addr, buf);
                self.write(at, buf)
            });
        }
        if self.vectored(at, ram, from, libc::pwritev)? < from.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.len = self.len.max(at + from.len());
        Ok(())
    }
}
