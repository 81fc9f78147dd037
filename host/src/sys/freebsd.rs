//! FreeBSD, and whatever else has kqueue.

use std::io;
use std::time::Duration;

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
