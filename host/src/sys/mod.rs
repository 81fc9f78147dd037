//! What differs between the operating systems.

#[cfg(not(target_os = "linux"))]
mod freebsd;
#[cfg(target_os = "linux")]
mod linux;

#[cfg(not(target_os = "linux"))]
pub(crate) use freebsd::{Alarm, discard, lock_holder};
#[cfg(target_os = "linux")]
pub(crate) use linux::{Alarm, discard, lock_holder};
