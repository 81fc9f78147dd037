//! Memory as the page tables of a back end want it: slots of guest physical memory with one host address each.
//!
//! An address space says of reads and of writes separately where they lead. A slot is a stretch of pages that reads
//! take from one place of the arena; it is writable if writes go to the same place. All else traps and goes through the
//! bus, which knows better: writes to a ROM, writes to the RAM below a ROM that shadows it, odd bytes of RAM beside a
//! device.

use std::sync::{Arc, Mutex};

use emu::{FlatRange, Map, MapListener, PAGE_SIZE, Ram, RamAddr, Target};

/// A piece of guest physical memory that needs no exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Guest physical address.
    pub gpa: u64,
    /// Bytes; whole pages.
    pub len: u64,
    /// Where it lies in the arena.
    pub ram: RamAddr,
    /// Whether writes need no exit either.
    pub writable: bool,
    /// Whether the pages that are written are to be logged.
    pub log: bool,
}

impl Slot {
    fn place(&self) -> (u64, u64, RamAddr) {
        (self.gpa, self.len, self.ram)
    }
}

/// What a back end does with slots. A call that the host refuses ends the machine: the next runs of the processors are
/// [`crate::Exit::Failed`].
pub trait PageTables: Send + Sync {
    /// Makes `slot` appear. It overlaps none that is there.
    fn map(&self, slot: &Slot);
    /// Takes `slot` away, which was mapped exactly so.
    fn unmap(&self, slot: &Slot);
    /// Changes [`Slot::writable`] and [`Slot::log`] of a slot to those given.
    fn protect(&self, slot: &Slot) {
        self.unmap(slot);
        self.map(slot);
    }
    /// Calls [`Ram::mark_dirty`] for the pages of the slot that were written since the last call.
    fn log(&self, slot: &Slot, ram: &Ram);
}

/// Keeps the page tables of a back end as the address space wants them. To be added to the address space as a listener.
pub struct MemoryMap<P> {
    tables: P,
    ram: Arc<Ram>,
    slots: Mutex<Vec<Slot>>,
}

impl<P: PageTables> MemoryMap<P> {
    /// Nothing is mapped yet.
    pub fn new(tables: P, ram: Arc<Ram>) -> MemoryMap<P> {
        MemoryMap { tables, ram, slots: Mutex::default() }
    }

    /// The back end's side.
    pub fn tables(&self) -> &P {
        &self.tables
    }
}

impl<P: PageTables> MapListener for MemoryMap<P> {
    fn changed(&self, map: &Map) {
        let mut old = self.slots.lock().unwrap();
        let new = slots(map);
        let stays = |s: &Slot, others: &[Slot]| others.iter().any(|o| o.place() == s.place());
        old.iter().filter(|s| !stays(s, &new)).for_each(|s| self.tables.unmap(s));
        for slot in &new {
            match old.iter().find(|o| o.place() == slot.place()) {
                None => self.tables.map(slot),
                Some(o) if o != slot => self.tables.protect(slot),
                Some(_) => {}
            }
        }
        *old = new;
    }

    fn log_dirty(&self) {
        self.slots.lock().unwrap().iter().filter(|s| s.log).for_each(|s| self.tables.log(s, &self.ram));
    }
}

/// The slots of a map, by address.
fn slots(map: &Map) -> Vec<Slot> {
    let mut out: Vec<Slot> = Vec::new();
    for r in &map.read {
        let Target::Ram(first) = r.target else { continue };
        let mut at = r.start;
        while at < r.end {
            let ram = RamAddr(first.0 + (at - r.start));
            let (writable, end) = writes(&map.write, at, ram, r.end);
            match out.last_mut() {
                Some(s) if s.writable == writable && s.gpa + s.len == at && s.ram.0 + s.len == ram.0 => {
                    s.len += end - at;
                }
                _ => out.push(Slot { gpa: at, len: end - at, ram, writable, log: map.dirty_log && writable }),
            }
            at = end;
        }
    }
    out.into_iter().filter_map(whole_pages).collect()
}

/// Whether writes at `at` go to `ram`, and up to which address, `end` at most, that is so.
fn writes(ranges: &[FlatRange], at: u64, ram: RamAddr, end: u64) -> (bool, u64) {
    match ranges.iter().find(|w| w.end > at) {
        Some(w) if w.start <= at => {
            let same = matches!(w.target, Target::Ram(first) if first.0 + (at - w.start) == ram.0);
            (same, end.min(w.end))
        }
        Some(w) => (false, end.min(w.start)),
        None => (false, end),
    }
}

/// The whole pages of a slot, at a page of the arena.
fn whole_pages(s: Slot) -> Option<Slot> {
    let gpa = s.gpa.next_multiple_of(PAGE_SIZE);
    let end = (s.gpa + s.len) / PAGE_SIZE * PAGE_SIZE;
    let ram = RamAddr(s.ram.0 + (gpa - s.gpa));
    (gpa < end && ram.0.is_multiple_of(PAGE_SIZE)).then(|| Slot { gpa, len: end - gpa, ram, ..s })
}

#[cfg(test)]
mod tests {
    use super::*;
    use emu::bench::Nobody;
    use emu::{AddressSpace, Backing, RegionId, Rights, Widths};

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Call {
        Map(Slot),
        Unmap(Slot),
        Protect(Slot),
    }

    #[derive(Default)]
    struct Recorder(Mutex<Vec<Call>>);

    impl PageTables for Recorder {
        fn map(&self, slot: &Slot) {
            self.0.lock().unwrap().push(Call::Map(*slot));
        }
        fn unmap(&self, slot: &Slot) {
            self.0.lock().unwrap().push(Call::Unmap(*slot));
        }
        fn protect(&self, slot: &Slot) {
            self.0.lock().unwrap().push(Call::Protect(*slot));
        }
        fn log(&self, slot: &Slot, ram: &Ram) {
            ram.mark_dirty(slot.ram.page() + 3);
        }
    }

    struct Rig {
        space: Arc<AddressSpace>,
        map: Arc<MemoryMap<Recorder>>,
    }

    impl Rig {
        /// 64 KiB of RAM at 0.
        fn new() -> Rig {
            let ram = Arc::new(Ram::new(1 << 20).unwrap());
            let block = ram.alloc("ram", 1 << 17).unwrap();
            let space = AddressSpace::new(ram.clone());
            let id = space.add_memory(0, 1 << 16, 0, Rights::ReadWrite, Backing::Ram(block.start));
            space.enable(id, 0, true);
            let map = Arc::new(MemoryMap::new(Recorder::default(), ram));
            space.add_listener(map.clone());
            Rig { space, map }
        }

        fn calls(&self) -> Vec<Call> {
            std::mem::take(&mut self.map.tables().0.lock().unwrap())
        }

        fn add(&self, base: u64, len: u64, rights: Rights, backing: Backing) -> RegionId {
            let id = self.space.add_memory(base, len, 1, rights, backing);
            self.space.enable(id, base, true);
            id
        }
    }

    fn slot(gpa: u64, len: u64, ram: u64, writable: bool) -> Slot {
        Slot { gpa, len, ram: RamAddr(ram), writable, log: false }
    }

    #[test]
    fn what_is_there_already_is_mapped_when_the_listener_comes() {
        assert_eq!(Rig::new().calls(), [Call::Map(slot(0, 0x1_0000, 0, true))]);
    }

    #[test]
    fn a_device_in_the_middle_splits_the_memory_and_gives_it_back() {
        let r = Rig::new();
        r.calls();
        let device = r.add(0x3000, 0x1000, Rights::ReadWrite, Backing::Io(Arc::new(Nobody), 0, Widths::BYTE));
        let (low, high) = (slot(0, 0x3000, 0, true), slot(0x4000, 0xc000, 0x4000, true));
        let whole = slot(0, 0x1_0000, 0, true);
        assert_eq!(r.calls(), [Call::Unmap(whole), Call::Map(low), Call::Map(high)]);
        r.space.enable(device, 0x3000, false);
        assert_eq!(r.calls(), [Call::Unmap(low), Call::Unmap(high), Call::Map(whole)]);
    }

    #[test]
    fn memory_that_is_shadowed_is_not_writable_though_writes_lead_to_ram() {
        let r = Rig::new();
        r.calls();
        // Reads from 1_0000 on, writes to what lies below.
        let rom = r.add(0x2000, 0x2000, Rights::Read, Backing::Ram(RamAddr(0x1_0000)));
        assert!(r.calls().contains(&Call::Map(slot(0x2000, 0x2000, 0x1_0000, false))));
        r.space.set_backing(rom, Rights::ReadWrite, Backing::Ram(RamAddr(0x1_0000)));
        assert_eq!(r.calls(), [Call::Protect(slot(0x2000, 0x2000, 0x1_0000, true))]);
    }

    #[test]
    fn a_read_only_view_of_the_same_bytes_is_no_reason_to_split() {
        let r = Rig::new();
        r.calls();
        r.add(0x2000, 0x1000, Rights::Read, Backing::Ram(RamAddr(0x2000)));
        assert_eq!(r.calls(), []);
    }

    #[test]
    fn only_whole_pages_are_mapped() {
        let r = Rig::new();
        r.calls();
        r.add(0x3800, 0x400, Rights::ReadWrite, Backing::Nothing);
        let mapped: Vec<_> = r.calls().into_iter().filter(|c| matches!(c, Call::Map(_))).collect();
        assert_eq!(mapped, [Call::Map(slot(0, 0x3000, 0, true)), Call::Map(slot(0x4000, 0xc000, 0x4000, true))]);
    }

    #[test]
    fn the_log_is_switched_on_in_place_and_harvested_from_the_back_end() {
        let r = Rig::new();
        r.calls();
        r.space.set_dirty_log(true);
        assert_eq!(r.calls(), [Call::Protect(Slot { log: true, ..slot(0, 0x1_0000, 0, true) })]);
        let block = r.space.ram().blocks()[0].clone();
        r.space.ram().write(RamAddr(0x1000), &[1]);
        assert_eq!(r.space.harvest_dirty(&block), [1, 3], "ours and the back end's");
        assert_eq!(r.calls(), []);
    }
}
