//! Linux.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

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

/// Who holds a flock(2) on the file: a process and its name.
pub(crate) fn lock_holder(file: &File) -> Option<(u32, String)> {
    let about = file.metadata().ok()?;
    let id = format!("{:02x}:{:02x}:{}", libc::major(about.dev()), libc::minor(about.dev()), about.ino());
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    // A line: number, FLOCK, ADVISORY, WRITE or READ, process, file, from, to.
    let holder = locks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let holder = holder.filter(|w| w.len() == 8 && w[1] == "FLOCK" && w[5] == id).find_map(|w| w[4].parse().ok())?;
    let name = std::fs::read_to_string(format!("/proc/{holder}/comm")).unwrap_or_default();
    Some((holder, name.trim_end().to_owned()))
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
