//! The PCI interrupt router of PIIX (four inputs, PIRQ A to D) and ICH (eight): each is led to one ISA interrupt, or
//! to none, and to an I/O APIC pin of its own. The interrupts of the board's own chips are reserved and route nowhere.
//!
//! A leaf chip: interrupt wires are driven from any thread. The registers live in the ISA bridge's configuration
//! space; the bridge calls [`Pirq::route`] when they change, and a wire that is up moves with its route at once.

use std::sync::{Arc, Mutex};

use emu::{IrqLine, IrqSink, Machine};

/// ISA interrupts that an input may be led to: all but 0, 1, 2, 8 and 13 (82371SB 2.2.8, ICH10 13.1.12).
const ALLOWED: u16 = 0xdef8;

struct Inner {
    levels: Vec<bool>,
    routes: Vec<Option<u8>>,
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
    /// A router on the machine's ISA wires; `apic` are outputs on the I/O APIC's pins for PIRQ A to D, unconnected
    /// where there is none.
    pub fn new(machine: &Machine, apic: [IrqLine; 4]) -> Arc<Pirq> {
        Pirq::with_inputs(machine, apic.into())
    }

    /// As [`Pirq::new`], with as many inputs as there are pins in `apic`.
    pub fn with_inputs(machine: &Machine, apic: Vec<IrqLine>) -> Arc<Pirq> {
        let isa = apic.iter().map(|_| (0..16).map(|n| machine.isa_irq(n)).collect()).collect();
        let inner = Mutex::new(Inner { levels: vec![false; apic.len()], routes: vec![None; apic.len()] });
        Arc::new(Pirq { inner, isa, apic })
    }

    /// Leads PIRQ `n` to ISA interrupt `irq`; a reserved one is none.
    ///
    /// # Panics
    /// When there is no such input.
    pub fn route(&self, n: usize, irq: Option<u8>) {
        let mut inner = self.inner.lock().unwrap();
        let irq = irq.filter(|irq| *irq < 16 && ALLOWED >> irq & 1 != 0);
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
        let n = line as usize;
        if n >= self.apic.len() {
            return;
        }
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
        for reserved in [0, 1, 2, 8, 13] {
            pirq.route(1, Some(reserved));
            assert!(!bench.irq(u32::from(reserved)));
        }
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
