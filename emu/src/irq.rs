//! Interrupt wires and message-signalled interrupts. Both may be driven from any thread without a device lock.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// An interrupt chip's inputs.
pub trait IrqSink: Send + Sync {
    /// Input `line` went to `level`. Only called on a change.
    fn set_irq(&self, line: u32, level: bool);

    /// Whether the last edge at input `line` still waits for a processor to take it, so that the guest would not see
    /// another one. `false` where that cannot be known.
    fn pending(&self, _line: u32) -> bool {
        false
    }
}

/// Where message-signalled interrupts go.
pub trait MsiSink: Send + Sync {
    /// A device wrote `data` to `addr`.
    fn msi(&self, addr: u64, data: u32);

    /// Whether the interrupt of such a message waits for a processor to take it: another one would merge with it.
    /// `false` where that cannot be known.
    fn pending(&self, _addr: u64, _data: u32) -> bool {
        false
    }
}

/// Nobody hears the messages.
pub struct NoMsi;

impl MsiSink for NoMsi {
    fn msi(&self, _: u64, _: u32) {}
}

/// The input and how many outputs pull it up. The lock is held across the chip's call, so that two threads that change
/// the wire cannot tell the chip in the wrong order.
struct Wire {
    sink: Arc<dyn IrqSink>,
    line: u32,
    up: Mutex<u32>,
}

/// One output on a wire. Clones of a line share the wire, each with an output of its own: the wire is high while any
/// output is (wire-OR). An output that is dropped goes low.
pub struct IrqLine {
    wire: Option<Arc<Wire>>,
    level: AtomicBool,
    masked: AtomicBool,
    /// What the wire sees; only changed under the wire's lock.
    drives: AtomicBool,
}

impl IrqLine {
    fn on(wire: Option<Arc<Wire>>) -> IrqLine {
        IrqLine { wire, level: AtomicBool::new(false), masked: AtomicBool::new(false), drives: AtomicBool::new(false) }
    }

    /// A first output on a new wire to input `line` of `sink`.
    pub fn new(sink: Arc<dyn IrqSink>, line: u32) -> IrqLine {
        IrqLine::on(Some(Arc::new(Wire { sink, line, up: Mutex::new(0) })))
    }

    /// An output that leads nowhere.
    pub fn unconnected() -> IrqLine {
        IrqLine::on(None)
    }

    /// Drives the output.
    pub fn set(&self, level: bool) {
        // Chips say their level after each access; mostly it is the same, and a load tells as much as a swap.
        if self.level.load(Ordering::Acquire) != level && self.level.swap(level, Ordering::AcqRel) != level {
            self.update();
        }
    }

    /// Disconnects the output from the wire while `masked` (PCI's INTx disable).
    pub fn mask(&self, masked: bool) {
        if self.masked.swap(masked, Ordering::AcqRel) != masked {
            self.update();
        }
    }

    fn update(&self) {
        let Some(wire) = &self.wire else { return };
        let mut up = wire.up.lock().unwrap();
        // Read under the lock: whoever comes last sees the last setting.
        let drive = self.level.load(Ordering::Acquire) && !self.masked.load(Ordering::Acquire);
        if self.drives.swap(drive, Ordering::Relaxed) == drive {
            return;
        }
        if drive {
            *up += 1;
            if *up == 1 {
                wire.sink.set_irq(wire.line, true);
            }
        } else {
            *up -= 1;
            if *up == 0 {
                wire.sink.set_irq(wire.line, false);
            }
        }
    }

    /// Low, then high, then low: an edge.
    pub fn pulse(&self) {
        self.set(false);
        self.set(true);
        self.set(false);
    }

    /// Whether the wire's last edge still waits to be taken, and another would be lost ([`IrqSink::pending`]).
    pub fn pending(&self) -> bool {
        self.wire.as_ref().is_some_and(|w| w.sink.pending(w.line))
    }

    /// What this output is set to, masked or not.
    pub fn level(&self) -> bool {
        self.level.load(Ordering::Relaxed)
    }
}

impl Clone for IrqLine {
    fn clone(&self) -> IrqLine {
        IrqLine::on(self.wire.clone())
    }
}

impl Drop for IrqLine {
    fn drop(&mut self) {
        self.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Chip(Mutex<Vec<(u32, bool)>>);
    impl IrqSink for Chip {
        fn set_irq(&self, line: u32, level: bool) {
            self.0.lock().unwrap().push((line, level));
        }
    }

    #[test]
    fn a_shared_wire_is_high_while_any_output_is_and_only_changes_are_told() {
        let chip = Arc::new(Chip(Mutex::default()));
        let a = IrqLine::new(chip.clone(), 9);
        let b = a.clone();
        a.set(true);
        a.set(true);
        b.set(true);
        a.set(false);
        assert_eq!(*chip.0.lock().unwrap(), [(9, true)]);
        drop(b);
        assert_eq!(*chip.0.lock().unwrap(), [(9, true), (9, false)]);
    }

    #[test]
    fn two_threads_never_leave_the_wire_at_the_wrong_level() {
        let chip = Arc::new(Chip(Mutex::default()));
        let a = IrqLine::new(chip.clone(), 1);
        let b = a.clone();
        std::thread::scope(|s| {
            for line in [&a, &b] {
                s.spawn(move || {
                    for n in 0..10_001 {
                        line.set(n % 2 == 0);
                    }
                });
            }
        });
        let log = chip.0.lock().unwrap();
        assert!(log.windows(2).all(|w| w[0].1 != w[1].1), "the chip was told of an unchanged level");
        assert_eq!(log.last(), Some(&(1, true)));
    }
}
