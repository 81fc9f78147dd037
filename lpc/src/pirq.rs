//! The PCI interrupt router of PIIX and ICH: four inputs (PIRQ A to D), each led to one ISA interrupt, or to none, and to an
//! I/O APIC pin of its own.
//!
//! A leaf chip: interrupt wires are driven from any thread. The registers live in the ISA bridge's configuration space; the
//! bridge calls [`Pirq::route`] when they change, and a wire that is up moves with its route at once.

use std::sync::{Arc, Mutex};

use emu::{IrqLine, IrqSink, Machine};

struct Inner {
    levels: [bool; 4],
    routes: [Option<u8>; 4],
}

/// The router.
pub struct Pirq {
    inner: Mutex<Inner>,
    /// For each input an output on each ISA wire.
    isa: Vec<Vec<IrqLine>>,
    /// For each input its I/O APIC pin.
    apic: Vec<IrqLine>,
}

impl Pirq {
    /// A router on the machine's ISA wires; `apic` are outputs on the I/O APIC's pins for PIRQ A to D, unconnected where
    /// there is none.
    pub fn new(machine: &Machine, apic: [IrqLine; 4]) -> Arc<Pirq> {
        let isa = (0..4).map(|_| (0..16).map(|n| machine.isa_irq(n)).collect()).collect();
        let inner = Mutex::new(Inner { levels: [false; 4], routes: [None; 4] });
        Arc::new(Pirq { inner, isa, apic: apic.into() })
    }

    /// Leads PIRQ `n` to ISA interrupt `irq`.
    pub fn route(&self, n: usize, irq: Option<u8>) {
        let mut inner = self.inner.lock().unwrap();
        let irq = irq.filter(|irq| *irq < 16);
        let old = std::mem::replace(&mut inner.routes[n], irq);
        if old == irq {
            return;
        }
        if let Some(old) = old {
            self.isa[n][old as usize].set(false);
        }
        if let Some(irq) = irq {
            self.isa[n][irq as usize].set(inner.levels[n]);
        }
    }
}

impl IrqSink for Pirq {
    fn set_irq(&self, line: u32, level: bool) {
        let n = line as usize & 3;
        let mut inner = self.inner.lock().unwrap();
        inner.levels[n] = level;
        if let Some(irq) = inner.routes[n] {
            self.isa[n][irq as usize].set(level);
        }
        self.apic[n].set(level);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use emu::bench::Bench;

    #[test]
    fn a_wire_that_is_up_moves_with_its_route() {
        let bench = Bench::new();
        let pirq = Pirq::new(&bench.machine, std::array::from_fn(|_| IrqLine::unconnected()));
        pirq.set_irq(1, true);
        pirq.route(1, Some(11));
        assert!(bench.irq(11));
        pirq.route(1, Some(10));
        assert!(bench.irq(10) && !bench.irq(11));
        pirq.route(1, None);
        assert!(!bench.irq(10));
        pirq.route(1, Some(200));
        pirq.route(1, Some(10));
        pirq.set_irq(1, false);
        assert!(!bench.irq(10));
    }

    #[test]
    fn two_inputs_share_an_interrupt() {
        let bench = Bench::new();
        let pirq = Pirq::new(&bench.machine, std::array::from_fn(|_| IrqLine::unconnected()));
        pirq.route(0, Some(11));
        pirq.route(3, Some(11));
        pirq.set_irq(0, true);
        pirq.set_irq(3, true);
        pirq.set_irq(0, false);
        assert!(bench.irq(11));
        pirq.set_irq(3, false);
        assert!(!bench.irq(11));
    }
}
