//! FreeBSD, and whatever else has kqueue.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use mio::{Registry, Token};

/// Ends a poll in time. kevent takes its time-out in nanoseconds, so nothing more is needed.
pub(crate) struct Alarm;

impl Alarm {
    /// An alarm for the poll of `registry`.
    pub(crate) fn new(_registry: &Registry, _token: Token) -> io::Result<Alarm> {
        Ok(Alarm)
    }

    /// Sets the alarm, or turns it off. Returns the time-out to poll with.
    pub(crate) fn set(&self, wait: Option<Duration>) -> io::Result<Option<Duration>> {
        Ok(wait)
    }
}

/// Who holds a flock(2) on the file: the kernel does not say.
pub(crate) fn lock_holder(_file: &File) -> Option<(u32, String)> {
    None
}

/// Disk devices are read and written past any cache.
pub(crate) const WHOLE_SECTORS: bool = true;

/// What a sync could not write, the next one tries again.
pub(crate) const SYNC_FORGETS: bool = false;

nix::ioctl_read!(
    /// DIOCGMEDIASIZE: the bytes of a device.
    diocgmediasize,
    b'd',
    129,
    libc::off_t
);
nix::ioctl_read!(
    /// DIOCGSECTORSIZE: the bytes of its sectors.
    diocgsectorsize,
    b'd',
    128,
    libc::c_uint
);
nix::ioctl_none!(
    /// DIOCGFLUSH: what a device has in its cache goes to stable storage.
    diocgflush,
    b'd',
    135
);

/// The bytes of a disk device, and of a sector of it.
pub(crate) fn disk_device(file: &File) -> io::Result<(u64, u64)> {
    let (mut size, mut sector) = (0, 0);
    // SAFETY: the descriptor is open and each request fills in the number that it is given.
    #[expect(unsafe_code, reason = "ioctl(2)")]
    unsafe {
        diocgmediasize(file.as_raw_fd(), &raw mut size)?;
        diocgsectorsize(file.as_raw_fd(), &raw mut sector)?;
    }
    Ok((size.unsigned_abs(), u64::from(sector)))
}

/// Makes a disk device ours: GEOM has refused to open what is mounted, and mounts nothing that is open for writing.
pub(crate) fn claim(_path: &Path) -> Result<Option<File>> {
    Ok(None)
}

/// Leaves a descriptor the rights that an image needs: rights(4).
pub(crate) fn limit(file: &File, write: bool) -> io::Result<()> {
    /// DIOCGSECTORSIZE, DIOCGMEDIASIZE, DIOCGFLUSH, DIOCGDELETE.
    const REQUESTS: [libc::c_ulong; 4] = [0x4004_6480, 0x4008_6481, 0x2000_6487, 0x8010_6488];
    const READ: u64 = libc::CAP_PREAD | libc::CAP_FSTAT | libc::CAP_FLOCK | libc::CAP_FCNTL;
    const WRITE: u64 = libc::CAP_PWRITE | libc::CAP_FSYNC | libc::CAP_FTRUNCATE;
    let more = if write { WRITE } else { 0 };
    // SAFETY: a set of rights is numbers alone; the list of those to put in ends with 0; the descriptor is open.
    #[expect(unsafe_code, reason = "cap_rights_limit(2), cap_ioctls_limit(2)")]
    let done = unsafe {
        let mut rights: libc::cap_rights_t = std::mem::zeroed();
        libc::__cap_rights_init(libc::CAP_RIGHTS_VERSION, &raw mut rights, READ | more, libc::CAP_IOCTL, 0u64);
        match libc::cap_rights_limit(file.as_raw_fd(), &raw const rights) {
            0 => libc::cap_ioctls_limit(file.as_raw_fd(), REQUESTS.as_ptr(), REQUESTS.len()),
            failed => failed,
        }
    };
    match done {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            // A kernel without capsicum(4).
            e if e.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
            e => Err(e),
        },
    }
}

/// Leaves the descriptor of a directory, and all that is opened through it, the rights that a share needs.
pub(crate) fn limit_directory(directory: &OwnedFd, write: bool) -> io::Result<()> {
    const READ: u64 = libc::CAP_LOOKUP
        | libc::CAP_PREAD
        | libc::CAP_FSTAT
        | libc::CAP_FSTATAT
        | libc::CAP_FSTATFS
        | libc::CAP_FPATHCONF
        | libc::CAP_FCNTL;
    const WRITE: u64 = libc::CAP_PWRITE
        | libc::CAP_CREATE
        | libc::CAP_FSYNC
        | libc::CAP_FTRUNCATE
        | libc::CAP_FCHMODAT
        | libc::CAP_FCHOWNAT
        | libc::CAP_FUTIMESAT
        | libc::CAP_LINKAT_SOURCE
        | libc::CAP_LINKAT_TARGET
        | libc::CAP_RENAMEAT_SOURCE
        | libc::CAP_RENAMEAT_TARGET
        | libc::CAP_UNLINKAT
        | libc::CAP_MKDIRAT
        | libc::CAP_MKFIFOAT
        | libc::CAP_MKNODAT
        | libc::CAP_SYMLINKAT;
    let wanted = if write { READ | WRITE } else { READ };
    // SAFETY: a set of rights is numbers alone; the list of those to put in ends with 0; the descriptor is open.
    #[expect(unsafe_code, reason = "cap_rights_limit(2)")]
    let done = unsafe {
        let mut rights: libc::cap_rights_t = std::mem::zeroed();
        libc::__cap_rights_init(libc::CAP_RIGHTS_VERSION, &raw mut rights, wanted, 0u64);
        libc::cap_rights_limit(directory.as_raw_fd(), &raw const rights)
    };
    match done {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            // A kernel without capsicum(4).
            e if e.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
            e => Err(e),
        },
    }
}

/// Puts on stable storage what was written to a device, for which fsync(2) does nothing.
pub(crate) fn sync_device(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open and the request takes nothing.
    #[expect(unsafe_code, reason = "ioctl(2)")]
    let done = unsafe { diocgflush(file.as_raw_fd()) };
    match done {
        // It has no cache.
        Err(nix::errno::Errno::EOPNOTSUPP | nix::errno::Errno::ENOTTY) | Ok(_) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// A stretch of a file, as fspacectl(2) and DIOCGDELETE take it.
#[repr(C)]
struct Stretch {
    at: libc::off_t,
    len: libc::off_t,
}

nix::ioctl_write_ptr!(
    /// DIOCGDELETE: a device forgets a begin and a length.
    diocgdelete,
    b'd',
    136,
    Stretch
);

type Fspacectl =
    unsafe extern "C" fn(libc::c_int, libc::c_int, *const Stretch, libc::c_int, *mut Stretch) -> libc::c_int;
const SPACECTL_DEALLOC: libc::c_int = 1;

/// Gives back what a part of a file or a device takes.
pub(crate) fn discard(file: &File, is_file: bool, at: u64, len: u64) -> io::Result<()> {
    let stretch = Stretch { at: at as libc::off_t, len: len as libc::off_t };
    if !is_file {
        // SAFETY: the descriptor is open and the two numbers are what this request takes.
        #[expect(unsafe_code, reason = "ioctl(2)")]
        unsafe {
            diocgdelete(file.as_raw_fd(), &stretch)?;
        }
        return Ok(());
    }
    // FreeBSD has it since 14.0; the system call's number would kill the process on an older one.
    // SAFETY: the name ends with a zero, and the function has had this type since it exists.
    #[expect(unsafe_code, reason = "dlsym(3) and fspacectl(2)")]
    let done = unsafe {
        let found = libc::dlsym(libc::RTLD_DEFAULT, c"fspacectl".as_ptr());
        if found.is_null() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let call = std::mem::transmute::<*mut libc::c_void, Fspacectl>(found);
        call(file.as_raw_fd(), SPACECTL_DEALLOC, &stretch, 0, std::ptr::null_mut())
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
