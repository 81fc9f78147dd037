//! The physical address space and the port space: who answers where.
//!
//! Regions are declared with a base, a priority and a backing; the highest priority wins wherever two overlap, and
//! reads and writes are laid out apart, so that chipset shadowing (reads from ROM, writes to RAM) is two regions and
//! no special case. Any change makes a new immutable [`Map`] with a new generation; each vCPU and DMA engine looks
//! things up in its own snapshot and refreshes it when the generation has moved, which costs one relaxed load an
//! access. Back ends that keep page tables of their own are told before the change returns, thus before the guest
//! access that caused it completes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock, RwLock, Weak};

use crate::ram::{Ram, RamAddr, RamBlock};

/// Something that answers guest accesses: a device behind its lock, or a leaf chip with locks of its own.
pub trait Access: Send + Sync {
    /// Its name, for traces and reports.
    fn owner(&self) -> &str;
    /// Reads `width` (1, 2, 4 or 8) bytes at `offset` of the owner's region number `region`.
    fn read(&self, region: u32, offset: u64, width: u8) -> u64;
    /// Writes `width` bytes.
    fn write(&self, region: u32, offset: u64, width: u8, value: u64);
    /// Reads `buf.len() / width` times at the same offset (REP INS, data ports).
    fn read_many(&self, region: u32, offset: u64, width: u8, buf: &mut [u8]) {
        for item in buf.chunks_exact_mut(width as usize) {
            item.copy_from_slice(&self.read(region, offset, width).to_le_bytes()[..width as usize]);
        }
    }
    /// Writes `data.len() / width` times at the same offset (REP OUTS).
    fn write_many(&self, region: u32, offset: u64, width: u8, data: &[u8]) {
        for item in data.chunks_exact(width as usize) {
            let mut value = [0; 8];
            value[..item.len()].copy_from_slice(item);
            self.write(region, offset, width, u64::from_le_bytes(value));
        }
    }
}

/// The access widths, in bytes, that a region's owner wants to see; the bus splits wider accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Widths {
    /// The widest access that is passed on whole.
    pub max: u8,
}

impl Widths {
    /// A chip on an 8-bit bus: wider accesses become several.
    pub const BYTE: Widths = Widths { max: 1 };
    /// Up to 16 bits.
    pub const WORD: Widths = Widths { max: 2 };
    /// Up to 32 bits.
    pub const DWORD: Widths = Widths { max: 4 };
    /// Up to 64 bits.
    pub const QWORD: Widths = Widths { max: 8 };
}

/// What a memory region stands for.
#[derive(Clone)]
pub enum Backing {
    /// Memory of the arena.
    Ram(RamAddr),
    /// Accesses go to `Access`, as its region of this number.
    Io(Arc<dyn Access>, u32, Widths),
    /// Nobody answers, though a region of lower priority lies below.
    Nothing,
}

/// Which accesses a region takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Reads and instruction fetches only; writes fall through to what lies below.
    Read,
    /// Writes only.
    Write,
    /// Both.
    ReadWrite,
}

/// Names a region of an [`AddressSpace`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RegionId(usize);

/// A write that only tells something: it carries no data that the device must see before the vCPU goes on.
#[derive(Clone)]
pub struct Doorbell {
    /// The guest physical address or the port of the write.
    pub addr: u64,
    /// Whether it is a port.
    pub port: bool,
    /// Width in bytes; 0 for any.
    pub width: u8,
    /// Only this value rings, if any is given.
    pub value: Option<u64>,
    /// A back end may have the host's kernel take the write, and another thread ring: the processor goes on meanwhile,
    /// and the device may hear it after later accesses.
    pub handoff: bool,
    /// Called instead of the write, from any thread, without any lock held. Whatever rang before the processors' pause
    /// has been called when they are paused.
    pub ring: Arc<dyn Fn() + Send + Sync>,
}

/// A doorbell in a region, which moves with it; its `addr` is counted from the region's base.
struct RegionBell {
    region: RegionId,
    bell: Doorbell,
}

struct Region {
    base: u64,
    len: u64,
    priority: i32,
    rights: Rights,
    backing: Backing,
    enabled: bool,
}

struct PortRegion {
    base: u16,
    len: u32,
    priority: i32,
    access: Arc<dyn Access>,
    region: u32,
    widths: Widths,
    enabled: bool,
}

/// Where an address leads.
#[derive(Clone)]
pub enum Target {
    /// To this byte of the arena.
    Ram(RamAddr),
    /// To an owner: its region and the offset in it.
    Io(Arc<dyn Access>, u32, u64, Widths),
}

/// A stretch of the address space that leads to one place.
#[derive(Clone)]
pub struct FlatRange {
    /// First address.
    pub start: u64,
    /// The address after the last.
    pub end: u64,
    /// Where `start` leads.
    pub target: Target,
}

/// One claimed stretch of ports.
#[derive(Clone)]
pub struct PortRange {
    /// The owner's first port, at which its region's offset is 0.
    pub base: u16,
    /// Number of ports.
    pub len: u32,
    /// The owner.
    pub access: Arc<dyn Access>,
    /// The owner's number for the region.
    pub region: u32,
    /// What it wants to see.
    pub widths: Widths,
}

/// An immutable picture of who answers where.
pub struct Map {
    /// Grows with each change.
    pub generation: u64,
    /// Sorted, without overlaps: where reads and fetches lead.
    pub read: Vec<FlatRange>,
    /// Sorted, without overlaps: where writes lead.
    pub write: Vec<FlatRange>,
    /// Whether RAM writes are to be logged by page.
    pub dirty_log: bool,
    port_index: Arc<Vec<u16>>,
    port_ranges: Arc<Vec<PortRange>>,
    doorbells: Arc<Vec<Doorbell>>,
}

impl Map {
    fn empty(generation: u64) -> Map {
        Map {
            generation,
            read: Vec::new(),
            write: Vec::new(),
            dirty_log: false,
            port_index: Arc::new(vec![0; 65536]),
            port_ranges: Arc::default(),
            doorbells: Arc::default(),
        }
    }

    /// Who answers at a port.
    #[inline]
    pub fn port(&self, port: u16) -> Option<&PortRange> {
        let n = self.port_index[port as usize];
        if n == 0 { None } else { Some(&self.port_ranges[n as usize - 1]) }
    }

    /// The doorbells in force, those in memory first, sorted by address.
    pub fn doorbells(&self) -> &[Doorbell] {
        &self.doorbells
    }

    /// The doorbell that a write of `value` rings.
    #[inline]
    pub(crate) fn doorbell(&self, port: bool, addr: u64, width: u8, value: u64) -> Option<&Doorbell> {
        let first = self.doorbells.partition_point(|d| (d.port, d.addr) < (port, addr));
        let here = self.doorbells[first..].iter().take_while(|d| (d.port, d.addr) == (port, addr));
        here.into_iter().find(|d| (d.width == 0 || d.width == width) && d.value.is_none_or(|v| v == value))
    }

    /// The RAM byte that reads of `gpa` come from, and how many bytes from there on are contiguous.
    pub fn ram_for_read(&self, gpa: u64) -> Option<(RamAddr, u64)> {
        ram_at(&self.read, gpa)
    }

    /// The RAM byte that writes of `gpa` go to, and how many bytes from there on are contiguous.
    pub fn ram_for_write(&self, gpa: u64) -> Option<(RamAddr, u64)> {
        ram_at(&self.write, gpa)
    }
}

/// The index of the range that holds `addr`.
pub(crate) fn find(ranges: &[FlatRange], addr: u64) -> Option<usize> {
    let n = ranges.partition_point(|r| r.end <= addr);
    (n < ranges.len() && ranges[n].start <= addr).then_some(n)
}

fn ram_at(ranges: &[FlatRange], gpa: u64) -> Option<(RamAddr, u64)> {
    let r = &ranges[find(ranges, gpa)?];
    match r.target {
        Target::Ram(at) => Some((RamAddr(at.0 + (gpa - r.start)), r.end - gpa)),
        Target::Io(..) => None,
    }
}

/// A back end that keeps page tables of its own. It is called with the space's lock held: it must not change the space.
pub trait MapListener: Send + Sync {
    /// Follow `map`. On return no processor reaches memory by the map before; the change that made it returns
    /// afterwards.
    fn changed(&self, map: &Map);

    /// Tell the arena ([`Ram::mark_dirty`]) which pages were written through the page tables since the last call.
    fn log_dirty(&self) {}
}

/// How far a processor that remembers which pages may be written has followed the map.
pub(crate) struct Follower(AtomicU64);

impl Follower {
    /// Remembers nothing, or looks at the map before it goes by what it remembers.
    const RESTS: u64 = u64::MAX;

    /// Goes by what it remembers of the map of `generation` from now on, until it looks at the present one.
    pub(crate) fn starts(&self, generation: u64) {
        self.0.store(generation, Ordering::Relaxed);
        // Before the look at the present generation: either the harvester sees this one, or we see his.
        fence(Ordering::SeqCst);
    }

    pub(crate) fn follows(&self, generation: u64) {
        // It may also look while it does not run, for a debugger.
        if self.0.load(Ordering::Relaxed) != Follower::RESTS {
            self.0.store(generation, Ordering::Release);
        }
    }

    pub(crate) fn rests(&self) {
        self.0.store(Follower::RESTS, Ordering::Release);
    }
}

#[derive(Default)]
struct Tables {
    regions: Vec<Region>,
    ports: Vec<PortRegion>,
    doorbells: Vec<RegionBell>,
    listeners: Vec<Arc<dyn MapListener>>,
    followers: Vec<Weak<Follower>>,
    /// Pages that were harvested while somebody might have written on to them: by the generation that ended it.
    late: BTreeMap<u64, u64>,
    /// Changes are collected while this is above 0.
    batch: u32,
    ports_changed: bool,
}

/// Puts something between the bus and an owner, to count or to trace its accesses.
pub type Watch = Box<dyn Fn(Arc<dyn Access>) -> Arc<dyn Access> + Send + Sync>;

/// The address space of a machine.
pub struct AddressSpace {
    ram: Arc<Ram>,
    watch: OnceLock<Watch>,
    tables: Mutex<Tables>,
    current: RwLock<Arc<Map>>,
    generation: AtomicU64,
}

impl AddressSpace {
    /// An empty space over `ram`.
    pub fn new(ram: Arc<Ram>) -> Arc<AddressSpace> {
        Arc::new(AddressSpace {
            ram,
            watch: OnceLock::new(),
            tables: Mutex::default(),
            current: RwLock::new(Arc::new(Map::empty(1))),
            generation: AtomicU64::new(1),
        })
    }

    /// The arena behind the space.
    pub fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }

    /// Whatever is declared from now on is reached through what `watch` makes of it. Set once.
    pub fn watch(&self, watch: Watch) {
        let _ = self.watch.set(watch);
    }

    fn watched(&self, access: Arc<dyn Access>) -> Arc<dyn Access> {
        match self.watch.get() {
            Some(watch) => watch(access),
            None => access,
        }
    }

    fn watched_backing(&self, backing: Backing) -> Backing {
        match backing {
            Backing::Io(access, region, widths) => Backing::Io(self.watched(access), region, widths),
            other => other,
        }
    }

    /// The picture in force.
    pub fn map(&self) -> Arc<Map> {
        self.current.read().unwrap().clone()
    }

    /// The generation of the picture in force; one relaxed load.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Declares memory. It answers once [`AddressSpace::enable`] is called.
    pub fn add_memory(&self, base: u64, len: u64, priority: i32, rights: Rights, backing: Backing) -> RegionId {
        let backing = self.watched_backing(backing);
        let mut t = self.tables.lock().unwrap();
        t.regions.push(Region { base, len, priority, rights, backing, enabled: false });
        RegionId(t.regions.len() - 1)
    }

    /// Declares ports. They answer once [`AddressSpace::enable_ports`] is called.
    pub fn add_ports(
        &self,
        base: u16,
        len: u32,
        priority: i32,
        access: Arc<dyn Access>,
        region: u32,
        widths: Widths,
    ) -> RegionId {
        let access = self.watched(access);
        let mut t = self.tables.lock().unwrap();
        t.ports.push(PortRegion { base, len, priority, access, region, widths, enabled: false });
        RegionId(t.ports.len() - 1)
    }

    /// Puts a memory region at `base` and makes it answer, or not.
    pub fn enable(&self, id: RegionId, base: u64, on: bool) {
        self.change(|t| {
            let r = &mut t.regions[id.0];
            let changed = r.enabled != on || on && r.base != base;
            (r.base, r.enabled) = (base, on);
            changed
        });
    }

    /// Puts a port region at `base` and makes it answer, or not.
    pub fn enable_ports(&self, id: RegionId, base: u16, on: bool) {
        self.change(|t| {
            let r = &mut t.ports[id.0];
            let changed = r.enabled != on || on && r.base != base;
            (r.base, r.enabled) = (base, on);
            t.ports_changed |= changed;
            changed
        });
    }

    /// Changes what a memory region stands for and which accesses it takes (shadowing, planar video memory, banks).
    pub fn set_backing(&self, id: RegionId, rights: Rights, backing: Backing) {
        let backing = self.watched_backing(backing);
        self.change(|t| {
            let r = &mut t.regions[id.0];
            (r.rights, r.backing) = (rights, backing);
            r.enabled
        });
    }

    /// Declares a doorbell in a region. It is there while the region answers, wherever the guest moves it.
    pub fn add_doorbell(&self, region: RegionId, bell: Doorbell) {
        self.change(|t| {
            t.doorbells.push(RegionBell { region, bell });
            true
        });
    }

    /// Forgets everybody who answers. The ids of regions are good for nothing afterwards.
    pub(crate) fn clear(&self) {
        let mut t = self.tables.lock().unwrap();
        let old = self.map();
        *t = Tables::default();
        *self.current.write().unwrap() = Arc::new(Map::empty(old.generation + 1));
        self.generation.store(old.generation + 1, Ordering::Release);
    }

    /// Starts or stops the log of written RAM pages.
    pub fn set_dirty_log(&self, on: bool) {
        self.ram.set_dirty_log(on);
        self.change(|t| {
            t.late.clear();
            true
        });
    }

    /// The pages of `block` written since the last call, as offsets in pages from its start; empty while the log is
    /// off. Nothing that was written before the call is missing. A processor that runs may write on to a page that it
    /// wrote just before, by what it remembers, until it looks at the map: such a page is among those of later calls
    /// again, until one that comes after that.
    pub fn harvest_dirty(&self, block: &RamBlock) -> Vec<u64> {
        let first = block.start.page();
        let range = first..first + block.len / crate::ram::PAGE_SIZE;
        let mut t = self.tables.lock().unwrap();
        for listener in &t.listeners {
            listener.log_dirty();
        }
        let followed = t.followed();
        let mut pages: BTreeSet<u64> = t.late.range(range.clone()).map(|(page, _)| *page).collect();
        t.late.retain(|page, until| !range.contains(page) || *until > followed);
        drop(t);
        let written = self.ram.harvest_dirty(block);
        pages.extend(written.iter().map(|page| first + page));
        if !written.is_empty() {
            let until = self.generation() + 1;
            // Processors that remember that a page may be written without further ado look again.
            self.change(|_| true);
            let mut t = self.tables.lock().unwrap();
            if t.followed() < until {
                t.late.extend(written.iter().map(|page| (first + page, until)));
            }
        }
        pages.into_iter().map(|page| page - first).collect()
    }

    pub(crate) fn follow(&self) -> Arc<Follower> {
        let follower = Arc::new(Follower(AtomicU64::new(Follower::RESTS)));
        self.tables.lock().unwrap().followers.push(Arc::downgrade(&follower));
        follower
    }

    /// Adds a back end that keeps page tables of its own; it is told of the present map at once.
    pub fn add_listener(&self, listener: Arc<dyn MapListener>) {
        listener.changed(&self.map());
        self.tables.lock().unwrap().listeners.push(listener);
    }

    /// Makes the changes done by `f` visible as one.
    pub fn batch<T>(&self, f: impl FnOnce() -> T) -> T {
        self.tables.lock().unwrap().batch += 1;
        let result = f();
        self.change(|t| {
            t.batch -= 1;
            true
        });
        result
    }

    fn change(&self, f: impl FnOnce(&mut Tables) -> bool) {
        let mut t = self.tables.lock().unwrap();
        if !f(&mut t) || t.batch > 0 {
            return;
        }
        let old = self.map();
        let (port_index, port_ranges) = if std::mem::take(&mut t.ports_changed) {
            let (index, ranges) = flatten_ports(&t.ports);
            (Arc::new(index), Arc::new(ranges))
        } else {
            (old.port_index.clone(), old.port_ranges.clone())
        };
        let map = Arc::new(Map {
            generation: old.generation + 1,
            read: flatten(&t.regions, |r| r != Rights::Write),
            write: flatten(&t.regions, |r| r != Rights::Read),
            dirty_log: self.ram.dirty_log(),
            port_index,
            port_ranges,
            doorbells: Arc::new(t.placed_doorbells()),
        });
        *self.current.write().unwrap() = map.clone();
        self.generation.store(map.generation, Ordering::Release);
        for listener in &t.listeners {
            listener.changed(&map);
        }
    }
}

impl Tables {
    fn placed_doorbells(&self) -> Vec<Doorbell> {
        let mut placed: Vec<Doorbell> = self.doorbells.iter().filter_map(|b| b.placed(self)).collect();
        placed.sort_by_key(|d| (d.port, d.addr));
        placed
    }

    /// The last generation that nobody goes by an older one of.
    fn followed(&mut self) -> u64 {
        fence(Ordering::SeqCst);
        self.followers.retain(|f| f.strong_count() > 0);
        let at = self.followers.iter().filter_map(Weak::upgrade).map(|f| f.0.load(Ordering::Acquire));
        at.min().unwrap_or(Follower::RESTS)
    }
}

impl RegionBell {
    /// The doorbell at its present address.
    fn placed(&self, t: &Tables) -> Option<Doorbell> {
        let (base, enabled) = if self.bell.port {
            let r = &t.ports[self.region.0];
            (u64::from(r.base), r.enabled)
        } else {
            let r = &t.regions[self.region.0];
            (r.base, r.enabled)
        };
        enabled.then(|| Doorbell { addr: base.wrapping_add(self.bell.addr), ..self.bell.clone() })
    }
}

/// Lays the regions out: the later and the higher in priority paint over the others.
fn flatten(regions: &[Region], takes: impl Fn(Rights) -> bool) -> Vec<FlatRange> {
    let mut order: Vec<&Region> = regions.iter().filter(|r| r.enabled && r.len > 0 && takes(r.rights)).collect();
    order.sort_by_key(|r| r.priority);
    let mut out: Vec<(u64, u64, Option<FlatRange>)> = Vec::new();
    for r in order {
        let (start, end) = (r.base, r.base.saturating_add(r.len));
        let mut next = Vec::with_capacity(out.len() + 2);
        for (s, e, range) in out {
            if s < start {
                next.push((s, e.min(start), range.clone()));
            }
            if e > end {
                next.push((s.max(end), e, range));
            }
        }
        let target = match &r.backing {
            Backing::Ram(at) => Some(Target::Ram(*at)),
            Backing::Io(access, n, widths) => Some(Target::Io(access.clone(), *n, 0, *widths)),
            Backing::Nothing => None,
        };
        next.push((start, end, target.map(|target| FlatRange { start, end, target })));
        out = next;
    }
    let mut flat: Vec<FlatRange> = out
        .into_iter()
        .filter(|(s, e, _)| s < e)
        .filter_map(|(s, e, range)| {
            let range = range?;
            let skip = s - range.start;
            let target = match range.target {
                Target::Ram(at) => Target::Ram(RamAddr(at.0 + skip)),
                Target::Io(access, n, offset, widths) => Target::Io(access, n, offset + skip, widths),
            };
            Some(FlatRange { start: s, end: e, target })
        })
        .collect();
    flat.sort_by_key(|r| r.start);
    flat
}

fn flatten_ports(ports: &[PortRegion]) -> (Vec<u16>, Vec<PortRange>) {
    let mut order: Vec<&PortRegion> = ports.iter().filter(|p| p.enabled).collect();
    order.sort_by_key(|p| p.priority);
    let mut index = vec![0u16; 65536];
    let mut ranges = Vec::with_capacity(order.len());
    for p in order {
        ranges.push(PortRange {
            base: p.base,
            len: p.len,
            access: p.access.clone(),
            region: p.region,
            widths: p.widths,
        });
        let first = p.base as usize;
        let last = (first + p.len as usize).min(65536);
        index[first..last].fill(ranges.len() as u16);
    }
    (index, ranges)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Nobody;

    fn space() -> (Arc<AddressSpace>, RegionId) {
        let ram = Arc::new(Ram::new(1 << 20).unwrap());
        let block = ram.alloc("ram", 1 << 20).unwrap();
        let space = AddressSpace::new(ram);
        let id = space.add_memory(0, 1 << 20, 0, Rights::ReadWrite, Backing::Ram(block.start));
        space.enable(id, 0, true);
        (space, id)
    }

    #[test]
    fn an_overlay_splits_what_lies_below_and_uncovers_it_again() {
        let (space, _) = space();
        let io = space.add_memory(0, 0x1000, 1, Rights::ReadWrite, Backing::Io(Arc::new(Nobody), 7, Widths::DWORD));
        space.enable(io, 0x8000, true);
        let map = space.map();
        assert_eq!(map.ram_for_read(0x7fff), Some((RamAddr(0x7fff), 1)));
        assert!(map.ram_for_read(0x8000).is_none());
        assert_eq!(map.ram_for_write(0x9000), Some((RamAddr(0x9000), 0xf7000)));
        space.enable(io, 0x8000, false);
        assert_eq!(space.map().ram_for_read(0x8000), Some((RamAddr(0x8000), 0xf8000)));
        assert!(space.generation() > map.generation);
    }

    #[test]
    fn shadowing_sends_reads_and_writes_to_different_memory() {
        let (space, _) = space();
        let rom = space.add_memory(0, 0x1000, 1, Rights::Read, Backing::Ram(RamAddr(0xff000)));
        space.enable(rom, 0x4000, true);
        let map = space.map();
        assert_eq!(map.ram_for_read(0x4010).unwrap().0, RamAddr(0xff010));
        assert_eq!(map.ram_for_write(0x4010).unwrap().0, RamAddr(0x4010));
        space.set_backing(rom, Rights::ReadWrite, Backing::Nothing);
        assert!(space.map().ram_for_read(0x4010).is_none());
        assert!(space.map().ram_for_write(0x4010).is_none());
    }

    #[test]
    fn a_batch_shows_all_its_changes_as_one_generation() {
        let (space, ram) = space();
        let before = space.generation();
        space.batch(|| {
            space.enable(ram, 0x100000, true);
            assert!(space.map().ram_for_read(0).is_some());
            space.enable(ram, 0x200000, true);
        });
        assert_eq!(space.generation(), before + 1);
        assert_eq!(space.map().ram_for_read(0x200000).unwrap().0, RamAddr(0));
    }

    #[test]
    fn ports_of_higher_priority_win_and_fall_back() {
        let (space, _) = space();
        let low = space.add_ports(0, 0x10, 0, Arc::new(Nobody), 1, Widths::BYTE);
        let high = space.add_ports(0, 2, 1, Arc::new(Nobody), 2, Widths::BYTE);
        space.enable_ports(low, 0x60, true);
        space.enable_ports(high, 0x64, true);
        assert_eq!(space.map().port(0x64).unwrap().region, 2);
        assert_eq!(space.map().port(0x66).unwrap().region, 1);
        assert!(space.map().port(0x70).is_none());
        space.enable_ports(high, 0x64, false);
        assert_eq!(space.map().port(0x64).unwrap().region, 1);
    }
}
