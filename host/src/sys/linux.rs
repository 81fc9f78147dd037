//! Linux.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

/// Ends a poll in time. epoll counts its time-out in whole milliseconds, which is a whole tick of a guest with HZ=1000,
/// so the wait ends by a timerfd.
pub(crate) struct Alarm(TimerFd);

impl Alarm {
    /// An alarm for the poll of `registry`; `token` is what it shows up as there.
    pub(crate) fn new(registry: &Registry, token: Token) -> io::Result<Alarm> {
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        registry.register(&mut SourceFd(&timer.as_fd().as_raw_fd()), token, Interest::READABLE)?;
        Ok(Alarm(timer))
    }

    /// Sets the alarm, or turns it off. Returns the time-out to poll with.
    pub(crate) fn set(&self, wait: Option<Duration>) -> io::Result<Option<Duration>> {
        match wait {
            None => self.0.unset()?,
            // Zero would turn it off.
            Some(wait) => {
                let wait = TimeSpec::from_duration(wait.max(Duration::from_nanos(1)));
                self.0.set(Expiration::OneShot(wait), TimerSetTimeFlags::empty())?;
            }
        }
        Ok(None)
    }
}

/// Bytes of a command line that a message shows.
const SHOWN: usize = 120;

/// Who holds a flock(2) on the file: a process and its command line.
pub(crate) fn lock_holder(file: &File) -> Option<(u32, String)> {
    let about = file.metadata().ok()?;
    let id = format!("{:02x}:{:02x}:{}", libc::major(about.dev()), libc::minor(about.dev()), about.ino());
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    // A line: number, FLOCK, ADVISORY, WRITE or READ, process, file, from, to.
    let holder = locks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let holder = holder.filter(|w| w.len() == 8 && w[1] == "FLOCK" && w[5] == id).find_map(|w| w[4].parse().ok())?;
    let words = std::fs::read(format!("/proc/{holder}/cmdline")).unwrap_or_default();
    let words = String::from_utf8_lossy(&words).trim_end_matches('\0').replace(|c: char| c.is_control(), " ");
    // Where the program is does not matter.
    let program = words.split(' ').next().unwrap_or_default();
    let words = &words[program.rfind('/').map_or(0, |at| at + 1)..];
    let mut shown: String = words.chars().take(SHOWN).collect();
    if shown.len() < words.len() {
        shown += "...";
    }
    Some((holder, shown))
}

/// The cache of a device's contents lets transfers begin and end anywhere.
pub(crate) const WHOLE_SECTORS: bool = false;

/// Pages that cannot be written count as clean after the sync that has told so.
pub(crate) const SYNC_FORGETS: bool = true;

nix::ioctl_read_bad!(
    /// BLKGETSIZE64: the bytes of a device.
    blkgetsize64,
    0x8008_1272,
    u64
);
nix::ioctl_read_bad!(
    /// BLKSSZGET: the bytes of its logical sectors.
    blksszget,
    0x1268,
    libc::c_int
);

/// The bytes of a disk device, and of a sector of it.
pub(crate) fn disk_device(file: &File) -> io::Result<(u64, u64)> {
    let (mut size, mut sector) = (0, 0);
    // SAFETY: the descriptor is open and each request fills in the number that it is given.
    #[expect(unsafe_code, reason = "ioctl(2)")]
    unsafe {
        blkgetsize64(file.as_raw_fd(), &raw mut size)?;
        blksszget(file.as_raw_fd(), &raw mut sector)?;
    }
    Ok((size, u64::from(sector.unsigned_abs())))
}

/// Makes a disk device ours, until what comes back is closed: nobody mounts it, or makes it a part of another device.
pub(crate) fn claim(path: &Path) -> Result<Option<File>> {
    match OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => match mounted(path) {
            Some(place) => bail!("it is in use: it is mounted on {place}"),
            None => bail!("it is in use: the system has it, or a part of it is mounted"),
        },
        Err(e) => Err(e).context("it cannot be claimed"),
    }
}

/// Leaves a descriptor the rights that an image needs: here it has no others.
pub(crate) fn limit(_file: &File, _write: bool) -> io::Result<()> {
    Ok(())
}

/// The same for a directory that is shared with a guest: see [`crate::sandbox`].
pub(crate) fn limit_directory(_directory: &OwnedFd, _write: bool) -> io::Result<()> {
    Ok(())
}

/// Where a device is mounted.
fn mounted(path: &Path) -> Option<String> {
    let device = std::fs::metadata(path).ok()?.rdev();
    let id = format!("{}:{}", libc::major(device), libc::minor(device));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    // A line: number, parent, device, root, place ...
    let mut words = mounts.lines().map(|line| line.split(' ').skip(2));
    words.find_map(|mut words| if words.next()? == id { words.nth(1).map(str::to_owned) } else { None })
}

/// Puts on stable storage what was written to a device.
pub(crate) fn sync_device(file: &File) -> io::Result<()> {
    file.sync_data()
}

nix::ioctl_write_ptr_bad!(
    /// BLKDISCARD: a device forgets a begin and a length.
    blkdiscard,
    0x1277,
    [u64; 2]
);

/// Gives back what a part of a file or a device takes.
pub(crate) fn discard(file: &File, is_file: bool, at: u64, len: u64) -> io::Result<()> {
    if is_file {
        let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        return Ok(fallocate(file, how, at as libc::off_t, len as libc::off_t)?);
    }
    // SAFETY: the descriptor is open and the two numbers are what this request takes.
    #[expect(unsafe_code, reason = "ioctl(2)")]
    unsafe {
        blkdiscard(file.as_raw_fd(), &[at, len])?;
    }
    Ok(())
}
