//! FERR# and IGNNE#: how PCs report x87 errors while CR0.NE is 0.
//!
//! The processor raises FERR#; the board makes that IRQ 13; the handler writes port F0h, upon which the board asserts
//! IGNNE#, so that the handler can use the x87 although the error is not cleared yet. Only processor 0 is wired so. DOS
//! programs need it, and kernels for the 386, which has no CR0.NE.
//!
//! IGNNE# falls with FERR#. Instead of telling the board when that happens, the processor forgets IGNNE# when it raises
//! FERR# anew.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// The pins of a processor.
#[derive(Default)]
pub struct ErrorPins {
    ferr: OnceLock<Box<dyn Fn() + Send + Sync>>,
    ignne: AtomicBool,
}

impl ErrorPins {
    /// Who hears FERR# rise, set once. Called by the processor in the middle of an instruction.
    pub fn on_ferr(&self, f: impl Fn() + Send + Sync + 'static) {
        let _ = self.ferr.set(Box::new(f));
    }

    /// Asserts IGNNE#.
    pub fn ignore(&self) {
        self.ignne.store(true, Ordering::Release);
    }

    pub(crate) fn ignored(&self) -> bool {
        self.ignne.load(Ordering::Acquire)
    }

    pub(crate) fn restore(&self, ignne: bool) {
        self.ignne.store(ignne, Ordering::Release);
    }

    /// FERR# rises.
    pub(super) fn raise(&self) {
        self.restore(false);
        if let Some(ferr) = self.ferr.get() {
            ferr();
        }
    }
}
