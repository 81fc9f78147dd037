//! A processor's counters, by the names that vmm(4) gives them where they count the same: programs look for these.

use std::sync::atomic::{AtomicU64, Ordering};

use emu::Ram;

/// The time for which a processor's thread had a host processor, in ticks of the TSC.
pub(crate) const RUNTIME: &str = "vcpu total runtime";
/// Times that HLT made the processor wait.
pub(crate) const HALTS: &str = "number of times hlt was intercepted";
/// Bytes of guest memory that the host has in its own. Of processor 0 only, since it is the machine's.
const RESIDENT: &str = "Resident memory";

/// A number that one thread counts and others read.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// By the one thread.
    #[inline]
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Nanoseconds as ticks of a TSC of `hz`.
pub(crate) fn ticks(nanoseconds: u64, hz: u64) -> u64 {
    (u128::from(nanoseconds) * u128::from(hz) / 1_000_000_000) as u64
}

/// Counters with their names, and what the machine as a whole has.
pub(crate) fn named(vcpu: u32, counters: &[(&str, u64)], ram: &Ram) -> Vec<(String, u64)> {
    let resident = (vcpu == 0).then(|| (RESIDENT, ram.resident()));
    counters.iter().copied().chain(resident).map(|(name, value)| (name.to_owned(), value)).collect()
}
