//! The routes by which KVM knows whose end of interrupt we want to hear of.
//!
//! With the I/O APIC outside the kernel, a local APIC's EOI becomes an exit if the vector is that of a level-triggered
//! message to this processor in KVM's routing table. Other programs copy the I/O APIC's redirection table there at each
//! change; here a message that is about to be sent is looked up first and put in place of the one that was not sent for
//! longest. Guests change entries far more often than messages come for the first time, and no chip has to tell.

use std::sync::Arc;

use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_msi,
};
use kvm_ioctls::VmFd;

/// Messages that are known at a time. There are 24 inputs; an interrupt may still be in service at a processor when
/// another message has taken its input.
pub(super) const SLOTS: usize = 64;

/// See above.
pub(super) struct Routes {
    fd: Arc<VmFd>,
    /// Address and data, the one that was sent last first.
    known: Vec<(u32, u32)>,
}

impl Routes {
    pub(super) fn new(fd: Arc<VmFd>) -> Routes {
        Routes { fd, known: Vec::new() }
    }

    /// A level-triggered message is about to be sent.
    pub(super) fn learn(&mut self, addr: u32, data: u32) -> Result<(), kvm_ioctls::Error> {
        if let Some(n) = self.known.iter().position(|known| *known == (addr, data)) {
            self.known[..=n].rotate_right(1);
            return Ok(());
        }
        self.known.truncate(SLOTS - 1);
        self.known.insert(0, (addr, data));
        let entries: Vec<kvm_irq_routing_entry> = (0..)
            .zip(&self.known)
            .map(|(gsi, &(address_lo, data))| {
                let msi = kvm_irq_routing_msi { address_lo, data, ..Default::default() };
                let u = kvm_irq_routing_entry__bindgen_ty_1 { msi };
                kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, u, ..Default::default() }
            })
            .collect();
        let table = KvmIrqRouting::from_entries(&entries).expect("fewer than the kernel takes");
        self.fd.set_gsi_routing(&table)
    }
}
