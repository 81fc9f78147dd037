//! Linux.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
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
