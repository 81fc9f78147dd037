//! Threads that stay on some of the host's processors.

use std::io;
use std::os::unix::thread::{JoinHandleExt, RawPthread};
use std::thread::JoinHandle;

#[cfg(target_os = "linux")]
use libc::cpu_set_t as CpuSet;
#[cfg(target_os = "freebsd")]
use libc::cpuset_t as CpuSet;

/// Host processors have numbers below this one.
pub const CPUS: usize = libc::CPU_SETSIZE as usize;

/// Lets a thread run on these host processors alone.
///
/// # Errors
/// When the host has none of them for this process.
///
/// # Panics
/// For a number that is no processor's, [`CPUS`] or above.
#[expect(unsafe_code, reason = "pthread_setaffinity_np(3)")]
pub fn pin<T>(thread: &JoinHandle<T>, cpus: impl IntoIterator<Item = usize>) -> io::Result<()> {
    // SAFETY: a set is bits, all of which may be 0.
    let mut set: CpuSet = unsafe { std::mem::zeroed() };
    for cpu in cpus {
        assert!(cpu < CPUS, "host processor {cpu}");
        // SAFETY: the number is within the set.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    let thread: RawPthread = thread.as_pthread_t();
    // SAFETY: the handle keeps the thread's name valid, and the set is as large as is said.
    match unsafe { libc::pthread_setaffinity_np(thread as _, size_of::<CpuSet>(), &raw const set) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}
