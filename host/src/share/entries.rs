//! The entries of a directory, from any place in it on.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

/// An entry.
pub struct Entry<'a> {
    pub ino: u64,
    /// Where the next one is.
    pub next: u64,
    /// As `d_type`, which is the same everywhere.
    pub kind: u8,
    pub name: &'a [u8],
}

/// Bytes of an entry before its name.
#[cfg(target_os = "linux")]
const NAME: usize = 19;
#[cfg(not(target_os = "linux"))]
const NAME: usize = 24;

/// Bytes that the longest entry needs.
pub const LONGEST: usize = 512;

/// Fills `buf` with entries from `offset` on, which is 0 or an entry's `next`; how many bytes.
pub fn fill(dir: BorrowedFd, offset: u64, buf: &mut [u8]) -> Result<usize, Errno> {
    lseek(dir, offset as libc::off_t, Whence::SeekSet)?;
    #[cfg(target_os = "linux")]
    // SAFETY: the kernel writes into the buffer, whose length it is told.
    #[expect(unsafe_code, reason = "getdents64(2)")]
    let n = unsafe { libc::syscall(libc::SYS_getdents64, dir.as_raw_fd(), buf.as_mut_ptr(), buf.len()) };
    #[cfg(not(target_os = "linux"))]
    // SAFETY: the kernel writes into the buffer, whose length it is told, and wants no place for its base.
    #[expect(unsafe_code, reason = "getdirentries(2)")]
    let n = unsafe { getdirentries(dir.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len(), std::ptr::null_mut()) };
    Errno::result(n).map(|n| n as usize)
}

#[cfg(not(target_os = "linux"))]
#[expect(unsafe_code, reason = "the libc crate does not have it")]
unsafe extern "C" {
    /// With the entries of FreeBSD 12 and later.
    fn getdirentries(
        fd: libc::c_int,
        buf: *mut libc::c_char,
        len: libc::size_t,
        base: *mut libc::off_t,
    ) -> libc::ssize_t;
}

/// Takes the first entry from what [`fill`] has filled.
pub fn next<'a>(bytes: &mut &'a [u8]) -> Option<Entry<'a>> {
    let number = |at: usize| bytes.get(at..at + 8).map(|b| u64::from_ne_bytes(b.try_into().expect("eight bytes")));
    let len = u16::from_ne_bytes([*bytes.get(16)?, *bytes.get(17)?]);
    let (entry, rest) = bytes.split_at_checked(len.into())?;
    let name = entry.get(NAME..)?.split(|b| *b == 0).next()?;
    let entry = Entry { ino: number(0)?, next: number(8)?, kind: *entry.get(18)?, name };
    *bytes = rest;
    Some(entry)
}
