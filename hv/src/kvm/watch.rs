//! Finds out that nothing can wake any processor any more.
//!
//! Twice a second each processor is called out of the kernel and looks at itself. When all have found themselves dead
//! (halted with interrupts off, or waiting for a SIPI), they come out once more, together, and stay out while they
//! look: one of them may have been woken by another after its last look. If all are still dead, that is
//! [`crate::Outcome::Halted`]. The first that is not sends everybody back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Shared, seat};

const PERIOD: Duration = Duration::from_millis(500);

/// Starts the thread that calls them. It ends with the virtual machine.
pub(super) fn start(shared: &Arc<Shared>) -> std::io::Result<()> {
    let weak = Arc::downgrade(shared);
    std::thread::Builder::new().name("kvm watch".to_owned()).spawn(move || {
        loop {
            std::thread::sleep(PERIOD);
            let Some(shared) = weak.upgrade() else { return };
            shared.seats.iter().for_each(|s| s.alert(seat::LOOK));
        }
    })?;
    Ok(())
}

impl Shared {
    /// A processor has looked at itself.
    pub(super) fn found(&self, vcpu: u32, dead: bool) {
        let (word, bit) = (&self.dead[vcpu as usize / 64], 1 << (vcpu % 64));
        if dead {
            word.fetch_or(bit, Ordering::SeqCst)
        } else {
            word.fetch_and(!bit, Ordering::SeqCst)
        };
        let count: u32 = self.dead.iter().map(|w| w.load(Ordering::SeqCst).count_ones()).sum();
        if count as usize == self.seats.len() && !self.gathering.swap(true, Ordering::SeqCst) {
            self.seats.iter().for_each(|s| s.alert(seat::GATHER));
        }
    }

    /// One that lives has come out.
    pub(super) fn scatter(&self, vcpu: u32) {
        self.dead[vcpu as usize / 64].fetch_and(!(1 << (vcpu % 64)), Ordering::SeqCst);
        self.seats.iter().for_each(|s| s.calm(seat::GATHER));
        self.gathering.store(false, Ordering::SeqCst);
        self.wake();
    }
}
