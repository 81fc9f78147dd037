//! What differs between the operating systems.

#[cfg(not(target_os = "linux"))]
mod freebsd;
#[cfg(target_os = "linux")]
mod linux;

#[cfg(not(target_os = "linux"))]
pub(crate) use freebsd::{
    Alarm, SYNC_FORGETS, WHOLE_SECTORS, claim, discard, disk_device, limit, limit_directory, lock_holder, sync_device,
};
#[cfg(target_os = "linux")]
pub(crate) use linux::{
    Alarm, SYNC_FORGETS, WHOLE_SECTORS, claim, discard, disk_device, limit, limit_directory, lock_holder, sync_device,
};
