//! Guest memory as KVM's slots.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};

use emu::{PAGE_SIZE, Ram, RamAddr};
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_userspace_memory_region};

use super::Shared;
use crate::{PageTables, Slot};

/// The slots that are there, with their numbers, by guest address.
#[derive(Default)]
struct Numbers {
    used: BTreeMap<u64, (u32, Slot)>,
    free: Vec<u32>,
}

/// KVM's side of [`crate::MemoryMap`].
pub(super) struct Slots {
    shared: Weak<Shared>,
    ram: Arc<Ram>,
    numbers: Mutex<Numbers>,
}

impl Slots {
    pub(super) fn new(shared: &Arc<Shared>, ram: Arc<Ram>) -> Slots {
        Slots { shared: Arc::downgrade(shared), ram, numbers: Mutex::default() }
    }

    /// Tells the kernel of a slot of `len` bytes, 0 to take it away.
    #[expect(unsafe_code, reason = "KVM_SET_USER_MEMORY_REGION")]
    fn set(&self, number: u32, slot: &Slot, len: u64) {
        let Some(shared) = self.shared.upgrade() else { return };
        let mut flags = 0;
        if !slot.writable {
            flags |= KVM_MEM_READONLY;
        }
        if slot.log {
            flags |= KVM_MEM_LOG_DIRTY_PAGES;
        }
        let region = kvm_userspace_memory_region {
            slot: number,
            flags,
            guest_phys_addr: slot.gpa,
            memory_size: len,
            userspace_addr: self.ram.host(slot.ram).addr() as u64,
        };
        // SAFETY: the memory is the arena's, which lives as long as the address space that this listens to, and guests
        // may write all of it at any time.
        if let Err(e) = unsafe { shared.fd.set_user_memory_region(region) } {
            let (mib, gpa) = (slot.len as f64 / f64::from(1 << 20), slot.gpa);
            let e = std::io::Error::from_raw_os_error(e.errno());
            shared.fail(format!("KVM refuses {mib} MiB of guest memory at {gpa:#x}: {e}"));
        }
    }
}

impl PageTables for Slots {
    fn map(&self, slot: &Slot) {
        let mut n = self.numbers.lock().unwrap();
        let number = n.free.pop().unwrap_or(n.used.len() as u32);
        n.used.insert(slot.gpa, (number, *slot));
        self.set(number, slot, slot.len);
    }

    fn unmap(&self, slot: &Slot) {
        let mut n = self.numbers.lock().unwrap();
        let Some((number, old)) = n.used.remove(&slot.gpa) else { return };
        n.free.push(number);
        self.set(number, &old, 0);
        // The slot's log goes with it, and what processors write until it is gone is in no copy taken before.
        if old.log {
            let first = old.ram.page();
            (first..first + old.len / PAGE_SIZE).for_each(|page| self.ram.mark_dirty(page));
        }
    }

    fn protect(&self, slot: &Slot) {
        let mut n = self.numbers.lock().unwrap();
        if let Some((number, old)) = n.used.get_mut(&slot.gpa).filter(|(_, old)| old.writable == slot.writable) {
            *old = *slot;
            return self.set(*number, slot, slot.len);
        }
        drop(n);
        // A slot stays read-only, or not, for life.
        self.unmap(slot);
        self.map(slot);
    }

    fn log(&self, slot: &Slot, ram: &Ram) {
        let Some(shared) = self.shared.upgrade() else { return };
        let Some((number, old)) = self.numbers.lock().unwrap().used.get(&slot.gpa).copied() else { return };
        if !old.log {
            return;
        }
        let words = match shared.fd.get_dirty_log(number, slot.len as usize) {
            Ok(words) => words,
            Err(e) => return shared.fail(format!("KVM gives no log of written pages (KVM_GET_DIRTY_LOG): {e}")),
        };
        for (n, word) in (0..).zip(words) {
            let first = RamAddr(slot.ram.0 + n * 64 * PAGE_SIZE).page();
            (0..64).filter(|bit| word >> bit & 1 != 0).for_each(|bit| ram.mark_dirty(first + bit));
        }
    }
}
