//! The guest's memory in vmm(4): which mappings there are, and what of the arena they show.
//!
//! 13 and 14 have room for 8 mappings and 4 segments. A machine needs six of the former, seven in a mode of the display
//! adapter that nobody has seen in two pieces:
//!
//! | guest | segment | rights |
//! | --- | --- | --- |
//! | 0 to A0000 | system memory | all |
//! | A0000 to C0000: what the display adapter shows there | its memory | all |
//! | C0000 to the PCI hole | system memory | all |
//! | the linear frame buffer | the adapter's memory | all |
//! | the boot ROM, up to 4 GiB | `bootrom` | read, execute |
//! | 4 GiB and up | system memory | all |
//!
//! Those of system memory are made once and stay. The others follow the address space, as long as there are segments
//! and mappings for them; what is not mapped traps and goes through the bus, as in the planar modes of a VGA.
//!
//! A write to a mapping without the right makes `VM_RUN` fail, so below 1 MiB there is none such: C0000 to FFFFF is RAM
//! whatever the chipset's PAM registers say. They keep what is written to them, and at each reset the ROMs that would
//! show there are copied in ([`GuestMemory::restart`]): to firmware that shadows itself this looks the same.
//!
//! Memory of the kernel takes the place of the arena's ([`emu::Ram`]), block by block: system memory at once, other
//! blocks when they are first mapped, with what they hold.

use std::sync::{Arc, Mutex};

use emu::{Map, MapListener, PAGE_SIZE, Ram, RamAddr, RamBlock};
use vmmapi_sys::abi::HighMemory;
use vmmapi_sys::common::vm_memmap;
use vmmapi_sys::memory::{PROT_EXEC, PROT_READ, PROT_WRITE};
use vmmapi_sys::{Plain, Vm};

use crate::{MemoryMap, PageTables, Slot};

const FOUR_GIB: u64 = 1 << 32;
/// Where option ROMs and the BIOS are.
const BIOS_AREA: std::ops::Range<u64> = 0xc_0000..0x10_0000;
/// The end of conventional memory.
const CONVENTIONAL: u64 = 0xa_0000;

/// A mapping of system memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fixed {
    gpa: u64,
    len: u64,
    /// Its place in the segment.
    segoff: u64,
    /// Its place in the arena.
    ram: RamAddr,
}

impl Fixed {
    fn holds(&self, gpa: u64, len: u64) -> bool {
        self.gpa <= gpa && gpa + len <= self.gpa + self.len
    }
}

/// Where system memory lies: the guest's addresses, and the segment's length.
fn plan(block: &RamBlock, low: u64, high: HighMemory) -> (Vec<Fixed>, u64) {
    let at = |n: u64| RamAddr(block.start.0 + n);
    let mut maps = vec![Fixed { gpa: 0, len: low.min(CONVENTIONAL), segoff: 0, ram: at(0) }];
    if low > BIOS_AREA.start {
        let gpa = BIOS_AREA.start;
        maps.push(Fixed { gpa, len: low - gpa, segoff: gpa, ram: at(gpa) });
    }
    let mut len = low;
    if block.len > low {
        let segoff = if high == HighMemory::AtItsAddress { FOUR_GIB } else { low };
        maps.push(Fixed { gpa: FOUR_GIB, len: block.len - low, segoff, ram: at(low) });
        len = segoff + (block.len - low);
    }
    (maps, len)
}

/// A block of the arena that has become a segment of device memory.
struct Device {
    segid: i32,
    block: RamBlock,
}

/// What [`MemoryMap`] drives: the mappings of device memory.
struct Tables {
    vm: Arc<Vm>,
    ram: Arc<Ram>,
    fixed: Vec<Fixed>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    devices: Vec<Device>,
    /// Those that are in the kernel.
    mapped: Vec<Slot>,
    /// What the kernel refused.
    failed: Option<String>,
    /// No more segments are made.
    settled: bool,
}

impl Tables {
    /// The segment that `slot` is a part of, made if there is room for one more.
    fn segment(&self, state: &mut State, slot: &Slot) -> Result<Option<(i32, u64)>, String> {
        let inside = |b: &RamBlock| b.start <= slot.ram && slot.ram.0 + slot.len <= b.start.0 + b.len;
        if let Some(d) = state.devices.iter().find(|d| inside(&d.block)) {
            return Ok(Some((d.segid, slot.ram.0 - d.block.start.0)));
        }
        let Some(block) = self.ram.blocks().into_iter().find(inside) else { return Ok(None) };
        if self.is_system(&block) {
            return Ok(None);
        }
        let at = slot.ram.0 - block.start.0;
        // A boot ROM ends where 32 bits do.
        let made = self.make_segment(state, block, slot.gpa + slot.len == FOUR_GIB)?;
        Ok(made.map(|segid| (segid, at)))
    }

    /// Makes a block of the arena a segment, if there is one left.
    fn make_segment(&self, state: &mut State, block: RamBlock, rom: bool) -> Result<Option<i32>, String> {
        let ids = self.vm.abi().segments;
        // The adapter's memory and what it shows in text modes are blocks of their own.
        let all = [(ids.bootrom, "bootrom"), (ids.framebuffer, "framebuffer"), (ids.option_rom, "text")];
        let free = |id: i32| !state.settled && !state.devices.iter().any(|d| d.segid == id);
        let mine = if rom { &all[..1] } else { &all[1..] };
        let Some(&(segid, name)) = mine.iter().find(|(id, _)| free(*id)) else { return Ok(None) };
        self.move_block(&block, segid, name).map_err(|e| format!("memory segment {name}: {e}"))?;
        state.devices.push(Device { segid, block });
        Ok(Some(segid))
    }

    /// Makes the memory of devices segments, mapped or not: once the process is confined, no more nodes can be opened.
    fn settle(&self, state: &mut State) -> Result<(), String> {
        for block in self.ram.blocks() {
            let known = state.devices.iter().any(|d| d.block.start == block.start) || self.is_system(&block);
            let rom = ["rom", "bios", "firmware", "flash"].iter().any(|what| block.name.ends_with(what));
            if !known && !rom {
                self.make_segment(state, block, false)?;
            }
        }
        state.settled = true;
        Ok(())
    }

    fn is_system(&self, block: &RamBlock) -> bool {
        self.fixed.iter().any(|f| f.ram.0 >= block.start.0 && f.ram.0 < block.start.0 + block.len)
    }

    /// Puts a segment in the place of a block of the arena.
    #[expect(unsafe_code, reason = "memory of the kernel takes the place of the arena's")]
    fn move_block(&self, block: &RamBlock, segid: i32, name: &str) -> std::io::Result<()> {
        allocate(&self.vm, segid, block.len, Some(name))?;
        let node = self.vm.devmem(name)?;
        let mut contents = vec![0; block.len as usize];
        self.ram.read(block.start, &mut contents);
        // SAFETY: the block is a part of the arena's mapping, of which there are no references.
        unsafe { node.map(self.ram.host(block.start), block.len as usize, 0) }?;
        self.ram.write(block.start, &contents);
        Ok(())
    }

    fn try_map(&self, state: &mut State, slot: &Slot) -> Result<(), String> {
        let room = self.vm.abi().segments.max_maps;
        if self.fixed.len() + state.mapped.len() >= room {
            return Ok(());
        }
        let Some((segid, at)) = self.segment(state, slot)? else { return Ok(()) };
        self.insert(slot, segid, at)?;
        state.mapped.push(*slot);
        Ok(())
    }

    fn insert(&self, slot: &Slot, segid: i32, at: u64) -> Result<(), String> {
        let prot = PROT_READ | PROT_EXEC | if slot.writable { PROT_WRITE } else { 0 };
        let (gpa, len) = (slot.gpa, slot.len);
        let map = vm_memmap { gpa, segid, segoff: at as i64, len, prot, ..Plain::ZERO };
        self.vm.mmap_memseg(&map).map_err(|e| format!("mapping {len:#x} bytes of segment {segid} at {gpa:#x}: {e}"))
    }

    /// Whether the kernel is to know of the slot.
    fn is_ours(&self, slot: &Slot) -> bool {
        // Of what is read-only, only the boot ROM is executed; flash that is programmed traps either way.
        let rom = !slot.writable && slot.gpa + slot.len != FOUR_GIB;
        !rom && !self.fixed.iter().any(|f| f.holds(slot.gpa, slot.len))
    }

    fn note(&self, state: &mut State, done: Result<(), String>) {
        if let Err(e) = done {
            state.failed.get_or_insert(e);
        }
    }
}

impl PageTables for Tables {
    fn map(&self, slot: &Slot) {
        if !self.is_ours(slot) {
            return;
        }
        let mut state = self.state.lock().unwrap();
        let done = self.try_map(&mut state, slot);
        self.note(&mut state, done);
    }

    fn unmap(&self, slot: &Slot) {
        let mut state = self.state.lock().unwrap();
        let Some(n) = state.mapped.iter().position(|s| (s.gpa, s.len, s.ram) == (slot.gpa, slot.len, slot.ram)) else {
            return;
        };
        state.mapped.remove(n);
        let done = self.vm.munmap_memseg(slot.gpa, slot.len).map_err(|e| format!("unmapping {:#x}: {e}", slot.gpa));
        self.note(&mut state, done);
    }

    /// The kernel does not log: every page that can be written may have been.
    fn log(&self, slot: &Slot, ram: &Ram) {
        (slot.ram.page()..slot.ram.page() + slot.len / PAGE_SIZE).for_each(|page| ram.mark_dirty(page));
    }
}

/// Makes a segment, or finds the one that an earlier run left.
fn allocate(vm: &Vm, segid: i32, len: u64, name: Option<&str>) -> std::io::Result<()> {
    match vm.alloc_memseg(segid, len, name) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        done => done,
    }
}

/// The memory of a machine.
pub(super) struct GuestMemory {
    map: Arc<MemoryMap<Tables>>,
    ram: Arc<Ram>,
    bios: Option<RamAddr>,
}

impl GuestMemory {
    /// Makes system memory of the arena's first block, which has `low` bytes below the PCI hole.
    ///
    /// # Errors
    /// What the kernel refused.
    pub(super) fn create(vm: &Arc<Vm>, ram: &Arc<Ram>, low: u64) -> Result<GuestMemory, std::io::Error> {
        let Some(block) = ram.blocks().into_iter().next() else {
            return Err(std::io::Error::other("the machine has no RAM"));
        };
        let (fixed, len) = plan(&block, low, vm.abi().high_memory);
        assert!(fixed.len() + 3 <= vm.abi().segments.max_maps, "the plan of memory needs too many mappings");
        allocate(vm, 0, len, None)?;
        for f in &fixed {
            GuestMemory::make(vm, ram, f)?;
        }
        let bios = (block.len >= BIOS_AREA.end).then_some(RamAddr(block.start.0 + BIOS_AREA.start));
        let tables = Tables { vm: vm.clone(), ram: ram.clone(), fixed, state: Mutex::default() };
        let map = Arc::new(MemoryMap::new(tables, ram.clone()));
        Ok(GuestMemory { map, ram: ram.clone(), bios })
    }

    /// Maps a piece of system memory into the guest and into the arena. One that an earlier run left may stay.
    #[expect(unsafe_code, reason = "memory of the kernel takes the place of the arena's")]
    fn make(vm: &Vm, ram: &Ram, f: &Fixed) -> Result<(), std::io::Error> {
        let prot = PROT_READ | PROT_WRITE | PROT_EXEC;
        let there = vm.next_mapping(f.gpa)?;
        let same = |m: &vm_memmap| (m.gpa, m.len, m.segid, m.segoff as u64) == (f.gpa, f.len, 0, f.segoff);
        match there {
            Some(m) if same(&m) => {}
            Some(m) if m.gpa < f.gpa + f.len => return Err(std::io::Error::from_raw_os_error(libc::EEXIST)),
            _ => vm.mmap_memseg(&vm_memmap { gpa: f.gpa, segoff: f.segoff as i64, len: f.len, prot, ..Plain::ZERO })?,
        }
        // SAFETY: the range is a part of the arena's first block, of whose bytes there are no references.
        unsafe { vm.map_memory(ram.host(f.ram), f.len as usize, f.gpa) }
    }

    /// Who follows the address space.
    pub(super) fn listener(&self) -> Arc<dyn MapListener> {
        self.map.clone()
    }

    /// At a reset: makes the mappings of device memory again after `VM_REINIT`, and copies ROMs into the RAM below
    /// 1 MiB.
    pub(super) fn restart(&self, map: &Map, again: bool) -> Result<(), String> {
        let tables = self.map.tables();
        let mut state = tables.state.lock().unwrap();
        for slot in if again { state.mapped.clone() } else { Vec::new() } {
            if let Some((segid, at)) = tables.segment(&mut state, &slot)? {
                tables.insert(&slot, segid, at)?;
            }
        }
        if !state.settled {
            tables.settle(&mut state)?;
        }
        drop(state);
        self.copy_roms(map);
        Ok(())
    }

    fn copy_roms(&self, map: &Map) {
        let Some(bios) = self.bios else { return };
        for page in BIOS_AREA.step_by(PAGE_SIZE as usize) {
            let own = RamAddr(bios.0 + (page - BIOS_AREA.start));
            let mut buf = [0; PAGE_SIZE as usize];
            match map.ram_for_read(page) {
                Some((at, _)) if at == own => continue,
                Some((at, len)) if len >= PAGE_SIZE => self.ram.read(at, &mut buf),
                _ => continue,
            }
            self.ram.write(own, &buf);
        }
    }

    /// What the kernel refused since the machine was made.
    pub(super) fn failed(&self) -> Option<String> {
        self.map.tables().state.lock().unwrap().failed.clone()
    }

    /// The byte of RAM at an address below 640 KiB.
    pub(super) fn conventional(&self, gpa: u64) -> RamAddr {
        RamAddr(self.map.tables().fixed[0].ram.0 + gpa)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(len: u64) -> RamBlock {
        RamBlock { name: "ram".to_owned(), start: RamAddr(0), len }
    }

    #[test]
    fn high_memory_lies_where_the_kernel_has_it() {
        const GIB: u64 = 1 << 30;
        let (maps, len) = plan(&block(4 * GIB), 3 * GIB, HighMemory::AtItsAddress);
        assert_eq!(len, 5 * GIB);
        assert_eq!(maps[2], Fixed { gpa: 4 * GIB, len: GIB, segoff: 4 * GIB, ram: RamAddr(3 * GIB) });
        let (maps, len) = plan(&block(4 * GIB), 3 * GIB, HighMemory::AfterLow);
        assert_eq!((len, maps[2].segoff), (4 * GIB, 3 * GIB));
        assert!(maps[1].holds(0xf_0000, 0x1_0000) && !maps[1].holds(0xa_0000, 0x1000));
    }

    #[test]
    fn little_memory_is_one_mapping() {
        let (maps, len) = plan(&block(512 << 10), 512 << 10, HighMemory::AfterLow);
        assert_eq!((maps.len(), maps[0].len, len), (1, 512 << 10, 512 << 10));
    }
}
