//! Memory as instructions see it: linear addresses, through translations kept as host pointers.
//!
//! A hit costs one subtraction, one comparison and one access. The tag of an entry is the linear address of its page,
//! so `lin - tag <= 4096 - size` holds exactly for accesses inside the page, aligned or not. An invalid entry has the
//! tag of a page that another entry would hold, and can never hit. All else lives behind the miss: devices, pages with
//! decoded code, pages that are clean or watched, accesses that cross a page. Such pages have no tag, but the entry
//! still remembers what the page tables said, so that a device register or data beside code costs no page walk.
//!
//! There are four tables, and changing between them costs one pointer: supervisor, user, supervisor while EFLAGS.AC
//! opens user pages (SMAP), and user with alignment checks (whose accesses all take the slow path). No flush is needed
//! when CPL or AC change. Entries are 4 KiB whatever the size of the guest's page. Beside them there is a table of code
//! pages, for supervisor and user.
//!
//! Flushing walks lists of the entries that were filled, so that its cost is bounded by the misses before it.
//!
//! Guest memory is written by devices at any time: it is only accessed by volatile copies, and never borrowed.

use std::sync::atomic::Ordering;

use emu::{PAGE_SIZE, Ram, RamAddr};

use crate::flags::AC;
use crate::insn::{Res, Stop};
use crate::state::{Cpu, Int, Why};
pub(crate) use crate::tlb::{Class, Tlb};
use crate::tlb::{Entry, OFFSET, info, place};
use crate::walk::Leaf;

/// What an access wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Load.
    Read,
    /// Store, or load before a store.
    Write,
    /// Instruction fetch.
    Fetch,
}

/// Whether a linear address is canonical: bits 63 to 47 are equal.
#[inline(always)]
pub(crate) fn canonical(lin: u64) -> bool {
    (lin as i64) << 16 >> 16 == lin as i64
}

/// A scalar at an address of any alignment.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Unaligned<T>(T);

/// Reads guest memory at a host address.
///
/// # Safety
/// The `T::BYTES` bytes at `host` are in the arena.
#[inline(always)]
#[expect(unsafe_code, reason = "guest memory is reached by raw pointers")]
unsafe fn peek<T: Int>(host: u64) -> T {
    let p = std::ptr::with_exposed_provenance::<Unaligned<T>>(host as usize);
    // SAFETY: the caller's; a packed value may be read at any address.
    let v = unsafe { p.read_volatile() }.0;
    if cfg!(target_endian = "big") { T::from_u64(v.to_u64().swap_bytes() >> (64 - T::BITS)) } else { v }
}

/// Writes guest memory at a host address.
///
/// # Safety
/// As [`peek`].
#[inline(always)]
#[expect(unsafe_code, reason = "guest memory is reached by raw pointers")]
unsafe fn poke<T: Int>(host: u64, v: T) {
    let v = if cfg!(target_endian = "big") { T::from_u64(v.to_u64().swap_bytes() >> (64 - T::BITS)) } else { v };
    if host & u64::from(T::BYTES - 1) == 0 {
        // SAFETY: the caller's; the address is aligned.
        unsafe { std::ptr::with_exposed_provenance_mut::<T>(host as usize).write_volatile(v) };
    } else {
        let p = std::ptr::with_exposed_provenance_mut::<Unaligned<T>>(host as usize);
        // SAFETY: the caller's; a packed value may be written at any address.
        unsafe { p.write_volatile(Unaligned(v)) };
    }
}

/// Copies out of guest memory.
///
/// # Safety
/// The `buf.len()` bytes at `host` are in the arena.
#[inline(always)]
#[expect(unsafe_code, reason = "guest memory is reached by raw pointers")]
unsafe fn peek_bytes(host: u64, buf: &mut [u8]) {
    let mut at = host;
    let mut words = buf.chunks_exact_mut(8);
    for word in &mut words {
        // SAFETY: the caller's.
        word.copy_from_slice(&unsafe { peek::<u64>(at) }.to_le_bytes());
        at += 8;
    }
    for byte in words.into_remainder() {
        // SAFETY: the caller's.
        *byte = unsafe { peek(at) };
        at += 1;
    }
}

/// Copies into guest memory.
///
/// # Safety
/// As [`peek_bytes`].
#[inline(always)]
#[expect(unsafe_code, reason = "guest memory is reached by raw pointers")]
unsafe fn poke_bytes(host: u64, data: &[u8]) {
    let mut at = host;
    let words = data.chunks_exact(8);
    let rest = words.remainder();
    for word in words {
        // SAFETY: the caller's.
        unsafe { poke(at, u64::from_le_bytes(word.try_into().unwrap_or_default())) };
        at += 8;
    }
    for byte in rest {
        // SAFETY: the caller's.
        unsafe { poke(at, *byte) };
        at += 1;
    }
}

/// Where a piece of an access leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// The host address of the first byte.
    Ram(u64),
    /// A guest physical address that is not plain memory.
    Io(u64),
}

/// What is at a guest physical address.
enum Page {
    /// Reads lead to RAM at this host address, and writes to the same or not.
    Ram { host: u64, writable: bool },
    /// Something else, or RAM that does not fill the page.
    Io,
}

impl Cpu {
    /// Loads from a linear address.
    #[inline(always)]
    #[expect(unsafe_code, reason = "guest memory is reached by raw pointers")]
    pub(crate) fn load<T: Int>(&mut self, lin: u64) -> Res<T> {
        let e = self.tlb.entry(lin);
        let offset = lin.wrapping_sub(e.read);
        if offset <= PAGE_SIZE - u64::from(T::BYTES) {
            // SAFETY: a read tag means that `host` is the host address of a page in the arena.
            return Ok(unsafe { peek(e.host + offset) });
        }
        self.load_miss(lin, T::BYTES).map(T::from_u64)
    }

    /// Stores to a linear address. When it fails, nothing was stored.
    #[inline(always)]
    #[expect(unsafe_code, reason = "guest memory is reached by raw pointers")]
    pub(crate) fn store<T: Int>(&mut self, lin: u64, v: T) -> Res {
        let e = self.tlb.entry(lin);
        let offset = lin.wrapping_sub(e.write);
        if offset <= PAGE_SIZE - u64::from(T::BYTES) {
            // SAFETY: a write tag means that `host` is the host address of a page in the arena.
            unsafe { poke(e.host + offset, v) };
            return Ok(());
        }
        self.store_miss(lin, T::BYTES, v.to_u64())
    }

    /// Loads what will be stored to: faults as a store does, and a store to the same place that follows cannot fail.
    #[inline(always)]
    #[expect(unsafe_code, reason = "guest memory is reached by raw pointers")]
    pub(crate) fn load_rmw<T: Int>(&mut self, lin: u64) -> Res<T> {
        let e = self.tlb.entry(lin);
        let offset = lin.wrapping_sub(e.write);
        if offset <= PAGE_SIZE - u64::from(T::BYTES) {
            // SAFETY: a write tag means that `host` is the host address of a page in the arena.
            return Ok(unsafe { peek(e.host + offset) });
        }
        self.rmw_slow(lin, T::BYTES).map(T::from_u64)
    }

    /// Fails as a store of `len` bytes would; else such a store cannot fail.
    #[inline(always)]
    pub(crate) fn probe_write(&mut self, lin: u64, len: u32) -> Res {
        let offset = lin.wrapping_sub(self.tlb.entry(lin).write);
        if offset < PAGE_SIZE && offset + u64::from(len) <= PAGE_SIZE {
            return Ok(());
        }
        self.probe_slow(lin, len as usize, true)
    }

    /// Loads bytes.
    #[inline(always)]
    #[expect(unsafe_code, reason = "guest memory is reached by raw pointers")]
    pub(crate) fn load_bytes(&mut self, lin: u64, buf: &mut [u8]) -> Res {
        let e = self.tlb.entry(lin);
        let offset = lin.wrapping_sub(e.read);
        if offset < PAGE_SIZE && offset + buf.len() as u64 <= PAGE_SIZE {
            // SAFETY: a read tag means that `host` is the host address of a page in the arena.
            unsafe { peek_bytes(e.host + offset, buf) };
            return Ok(());
        }
        self.load_bytes_slow(lin, buf)
    }

    /// Stores bytes. When it fails, nothing was stored.
    #[inline(always)]
    #[expect(unsafe_code, reason = "guest memory is reached by raw pointers")]
    pub(crate) fn store_bytes(&mut self, lin: u64, data: &[u8]) -> Res {
        let e = self.tlb.entry(lin);
        let offset = lin.wrapping_sub(e.write);
        if offset < PAGE_SIZE && offset + data.len() as u64 <= PAGE_SIZE {
            // SAFETY: a write tag means that `host` is the host address of a page in the arena.
            unsafe { poke_bytes(e.host + offset, data) };
            return Ok(());
        }
        self.store_bytes_slow(lin, data)
    }

    /// Loads from a descriptor table or a TSS: with the supervisor's rights, whatever CPL is.
    #[inline]
    pub(crate) fn sys_load<T: Int>(&mut self, lin: u64) -> Res<T> {
        self.load_as(Class::Supervisor, lin, T::BYTES).map(T::from_u64)
    }

    /// Stores to a descriptor table or a TSS.
    #[inline]
    pub(crate) fn sys_store<T: Int>(&mut self, lin: u64, v: T) -> Res {
        self.store_as(Class::Supervisor, lin, T::BYTES, v.to_u64())
    }

    /// Loads `size` (1, 2, 4 or 8) bytes as `class` would.
    #[expect(unsafe_code, reason = "guest memory is reached by raw pointers")]
    pub(crate) fn load_as(&mut self, class: Class, lin: u64, size: u8) -> Res<u64> {
        let e = self.tlb.entry_of(class, lin);
        let offset = lin.wrapping_sub(e.read);
        if offset <= PAGE_SIZE - u64::from(size) {
            let mut buf = [0; 8];
            // SAFETY: a read tag means that `host` is the host address of a page in the arena.
            unsafe { peek_bytes(e.host + offset, &mut buf[..usize::from(size)]) };
            return Ok(u64::from_le_bytes(buf));
        }
        self.load_slow(class, lin, size)
    }

    /// Stores `size` bytes as `class` would.
    #[expect(unsafe_code, reason = "guest memory is reached by raw pointers")]
    pub(crate) fn store_as(&mut self, class: Class, lin: u64, size: u8, value: u64) -> Res {
        let e = self.tlb.entry_of(class, lin);
        let offset = lin.wrapping_sub(e.write);
        if offset <= PAGE_SIZE - u64::from(size) {
            // SAFETY: a write tag means that `host` is the host address of a page in the arena.
            unsafe { poke_bytes(e.host + offset, &value.to_le_bytes()[..usize::from(size)]) };
            return Ok(());
        }
        self.store_slow(class, lin, size, value)
    }

    /// The class of explicit accesses at a privilege level. Alignment is the business of [`Cpu::select_class`].
    pub(crate) fn class_of(&self, cpl: u8) -> Class {
        const SMAP: u64 = 1 << 21;
        if cpl == 3 {
            Class::User
        } else if self.cr4 & SMAP != 0 && self.rflags & AC != 0 {
            Class::SupervisorOpen
        } else {
            Class::Supervisor
        }
    }

    /// Must follow every change of CPL, EFLAGS.AC, CR0.AM and CR4.SMAP.
    #[inline]
    pub(crate) fn select_class(&mut self) {
        const AM: u64 = 1 << 18;
        let class = match self.class_of(self.cpl) {
            Class::User if self.cr0 & AM != 0 && self.rflags & AC != 0 => Class::UserAligned,
            class => class,
        };
        self.tlb.select(class);
    }

    /// Reads the bytes of an instruction, up to the end of the page. Returns how many.
    pub(crate) fn fetch(&mut self, lin: u64, buf: &mut [u8; 16]) -> Res<usize> {
        let n = (PAGE_SIZE - (lin & OFFSET)).min(16) as usize;
        if let Some(page) = self.code_page(lin)? {
            self.bus.ram().read(RamAddr(page.0 + (lin & OFFSET)), &mut buf[..n]);
        } else {
            let gpa = self.translate(lin, Access::Fetch, self.cpl == 3)?;
            self.offer_fetch(gpa)?;
            for (k, byte) in buf[..n].iter_mut().enumerate() {
                *byte = self.bus.read(gpa + k as u64, 1) as u8;
            }
        }
        Ok(n)
    }

    /// The page of memory that the instruction at `lin` is in; `None` if that is not memory.
    #[inline(always)]
    pub(crate) fn code_page(&mut self, lin: u64) -> Res<Option<RamAddr>> {
        let e = self.tlb.code_entry(lin);
        if e.tag == lin & !OFFSET {
            return Ok(Some(RamAddr(e.ram & !OFFSET)));
        }
        self.code_page_slow(lin)
    }

    #[cold]
    #[inline(never)]
    fn code_page_slow(&mut self, lin: u64) -> Res<Option<RamAddr>> {
        self.sync_map();
        let user = self.cpl == 3;
        let leaf = self.walk(lin, Access::Fetch, user, false)?;
        let page = leaf.gpa & !OFFSET;
        let Some((ram, PAGE_SIZE..)) = self.bus.map().ram_for_read(page) else { return Ok(None) };
        if !ram.0.is_multiple_of(PAGE_SIZE) {
            return Ok(None);
        }
        let bits = u64::from(leaf.size) << info::SIZE_SHIFT | if leaf.global { info::GLOBAL } else { 0 };
        self.tlb.install_code(user, lin, ram, bits);
        Ok(Some(ram))
    }

    /// The guest physical address of a linear one, with the A20 gate applied.
    pub(crate) fn translate(&mut self, lin: u64, access: Access, user: bool) -> Res<u64> {
        let open = !user && self.class_of(0) == Class::SupervisorOpen;
        Ok(self.walk(lin, access, user, open)?.gpa)
    }

    /// For string instructions: the host address of `lin` and the number of bytes from there to the end of its page, if
    /// they are plain memory that needs no care.
    #[inline(always)]
    pub(crate) fn page_run(&mut self, lin: u64, write: bool) -> Res<Option<(*mut u8, usize)>> {
        if let Some(run) = self.tagged_run(lin, write) {
            return Ok(Some(run));
        }
        self.resolve(self.tlb.class(), lin, write)?;
        Ok(self.tagged_run(lin, write))
    }

    #[inline(always)]
    fn tagged_run(&self, lin: u64, write: bool) -> Option<(*mut u8, usize)> {
        let e = self.tlb.entry(lin);
        let offset = lin.wrapping_sub(if write { e.write } else { e.read });
        let host = std::ptr::with_exposed_provenance_mut((e.host.wrapping_add(offset)) as usize);
        (offset < PAGE_SIZE).then(|| (host, (PAGE_SIZE - offset) as usize))
    }

    /// Forgets translations; those of global pages stay if `keep_global`.
    pub(crate) fn flush_tlb(&mut self, keep_global: bool) {
        self.tlb.flush(keep_global);
    }

    /// Forgets the translation of one page, whatever its size.
    pub(crate) fn invlpg(&mut self, lin: u64) {
        self.tlb.drop_page(lin);
    }

    /// Makes every store to a page of the arena take the slow path, because code was decoded from it or because the log
    /// of written pages was harvested.
    pub(crate) fn drop_write_tags(&mut self, page: u64) {
        self.tlb.drop_write_tags(page);
    }

    /// Whether the machine's map has changed since [`Cpu::sync_map`] last looked.
    #[inline(always)]
    pub(crate) fn map_moved(&self) -> bool {
        self.tlb.generation != self.bus.generation()
    }

    /// Follows changes of the machine's map.
    #[inline]
    pub(crate) fn sync_map(&mut self) {
        if self.map_moved() {
            self.follow_map();
        }
    }

    #[cold]
    fn follow_map(&mut self) {
        self.tlb.generation = self.bus.generation();
        self.tlb.walked = (0, 0, 0);
        self.tlb.plain = (0, 0, 0);
        self.tlb.flush(false);
        self.bus.follows(self.tlb.generation);
    }

    /// The linear address `n` bytes on.
    fn onward(&self, lin: u64, n: u64) -> u64 {
        let next = lin.wrapping_add(n);
        if self.lma() { next } else { next & 0xffff_ffff }
    }

    /// #AC for an access that is not aligned to its size.
    fn check_alignment(&mut self, class: Class, lin: u64, size: u8) -> Res {
        if class == Class::UserAligned && lin & u64::from(size - 1) != 0 {
            return Err(self.fault(17, Some(0)));
        }
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn load_miss(&mut self, lin: u64, size: u8) -> Res<u64> {
        self.load_slow(self.tlb.class(), lin, size)
    }

    #[cold]
    #[inline(never)]
    fn store_miss(&mut self, lin: u64, size: u8, value: u64) -> Res {
        self.store_slow(self.tlb.class(), lin, size, value)
    }

    fn load_slow(&mut self, class: Class, lin: u64, size: u8) -> Res<u64> {
        self.check_alignment(class, lin, size)?;
        let first = (PAGE_SIZE - (lin & OFFSET)).min(u64::from(size)) as u8;
        let a = self.reach(class, lin, first.into(), false)?;
        let value = if first == size {
            self.get(a, size)
        } else {
            let b = self.reach(class, self.onward(lin, first.into()), (size - first).into(), false)?;
            self.get(a, first) | self.get(b, size - first) << (8 * first)
        };
        self.watch_data(lin, size.into(), false);
        Ok(value)
    }

    fn store_slow(&mut self, class: Class, lin: u64, size: u8, value: u64) -> Res {
        self.check_alignment(class, lin, size)?;
        let first = (PAGE_SIZE - (lin & OFFSET)).min(u64::from(size)) as u8;
        let a = self.reach(class, lin, first.into(), true)?;
        if first == size {
            self.put(a, size, value);
        } else {
            let b = self.reach(class, self.onward(lin, first.into()), (size - first).into(), true)?;
            self.put(a, first, value);
            self.put(b, size - first, value >> (8 * first));
        }
        self.watch_data(lin, size.into(), true);
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn rmw_slow(&mut self, lin: u64, size: u8) -> Res<u64> {
        let class = self.tlb.class();
        self.check_alignment(class, lin, size)?;
        let first = (PAGE_SIZE - (lin & OFFSET)).min(u64::from(size)) as u8;
        let a = self.reach(class, lin, first.into(), true)?;
        let value = if first == size {
            self.get(a, size)
        } else {
            let b = self.reach(class, self.onward(lin, first.into()), (size - first).into(), true)?;
            self.get(a, first) | self.get(b, size - first) << (8 * first)
        };
        self.watch_data(lin, size.into(), false);
        Ok(value)
    }

    /// Calls `f` with the pieces of `lin..lin + len` that lie in one page each: linear address, offset and length.
    fn pieces(&mut self, lin: u64, len: usize, mut f: impl FnMut(&mut Cpu, u64, usize, usize) -> Res) -> Res {
        let mut at = 0;
        while at < len {
            let piece = self.onward(lin, at as u64);
            let n = ((PAGE_SIZE - (piece & OFFSET)) as usize).min(len - at);
            f(self, piece, at, n)?;
            at += n;
        }
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn probe_slow(&mut self, lin: u64, len: usize, write: bool) -> Res {
        let class = self.tlb.class();
        self.pieces(lin, len, |cpu, piece, _, n| cpu.reach(class, piece, n, write).map(drop))
    }

    #[cold]
    #[inline(never)]
    #[expect(unsafe_code, reason = "guest memory is reached by raw pointers")]
    fn load_bytes_slow(&mut self, lin: u64, buf: &mut [u8]) -> Res {
        let (class, len) = (self.tlb.class(), buf.len());
        // A device must not be read if a later page faults.
        self.probe_slow(lin, len, false)?;
        self.pieces(lin, len, |cpu, piece, at, n| {
            match cpu.reach(class, piece, n, false)? {
                // SAFETY: `reach` found `n` bytes of the arena there.
                Place::Ram(host) => unsafe { peek_bytes(host, &mut buf[at..at + n]) },
                Place::Io(gpa) => {
                    for (k, part) in buf[at..at + n].chunks_mut(8).enumerate() {
                        let value = cpu.get(Place::Io(gpa + 8 * k as u64), part.len() as u8);
                        part.copy_from_slice(&value.to_le_bytes()[..part.len()]);
                    }
                }
            }
            Ok(())
        })?;
        self.watch_data(lin, len as u64, false);
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn store_bytes_slow(&mut self, lin: u64, data: &[u8]) -> Res {
        let class = self.tlb.class();
        self.probe_slow(lin, data.len(), true)?;
        self.pieces(lin, data.len(), |cpu, piece, at, n| {
            match cpu.reach(class, piece, n, true)? {
                Place::Ram(host) => cpu.put_ram(host, &data[at..at + n]),
                Place::Io(gpa) => {
                    for (k, part) in data[at..at + n].chunks(8).enumerate() {
                        let mut value = [0; 8];
                        value[..part.len()].copy_from_slice(part);
                        cpu.put(Place::Io(gpa + 8 * k as u64), part.len() as u8, u64::from_le_bytes(value));
                    }
                }
            }
            Ok(())
        })?;
        self.watch_data(lin, data.len() as u64, true);
        Ok(())
    }

    /// Translates a piece that lies in one page, and stops before the first effect of what must be done alone.
    fn reach(&mut self, class: Class, lin: u64, len: usize, write: bool) -> Res<Place> {
        let place = self.resolve(class, lin, write)?;
        let alone = match place {
            Place::Io(_) => true,
            Place::Ram(host) => write && self.hits_code(host, len),
        };
        if alone && !self.may_io {
            self.why = Why::Alone;
            return Err(Stop);
        }
        if let Place::Io(gpa) = place {
            self.offer_memory(gpa, lin, write)?;
        }
        Ok(place)
    }

    /// Where an access leads; fills the entry.
    fn resolve(&mut self, class: Class, lin: u64, write: bool) -> Res<Place> {
        self.sync_map();
        let offset = lin & OFFSET;
        let e = *self.tlb.entry_of(class, lin);
        if e.covers(lin) && (!write || e.page & info::WRITE != 0) {
            if e.page & info::RAM == 0 {
                return Ok(Place::Io(e.host + offset));
            }
            if !write {
                return Ok(Place::Ram(e.host + offset));
            }
            if e.page & info::RAM_WRITE != 0 {
                let tag = self.write_tag(class, lin, e.host, true);
                if tag {
                    self.tlb.entry_of(class, lin).write = lin & !OFFSET;
                }
                return Ok(Place::Ram(e.host + offset));
            }
        }
        let access = if write { Access::Write } else { Access::Read };
        let leaf = self.walk(lin, access, class.user(), class == Class::SupervisorOpen)?;
        Ok(self.fill(class, lin, &leaf, write))
    }

    /// What is at a page of guest physical memory.
    fn page_at(&mut self, gpa: u64) -> Page {
        let (start, len, host) = self.tlb.plain;
        if gpa.wrapping_sub(start) < len {
            return Page::Ram { host: host + (gpa - start), writable: true };
        }
        let whole = |found: Option<(RamAddr, u64)>| {
            found.filter(|(at, len)| *len >= PAGE_SIZE && at.0.is_multiple_of(PAGE_SIZE))
        };
        let map = self.bus.map();
        let (read, write) = (whole(map.ram_for_read(gpa)), whole(map.ram_for_write(gpa)));
        let Some((at, to_end)) = read else { return Page::Io };
        let ram = self.bus.ram();
        let host = host_of(ram, at);
        self.tlb.arena = host_of(ram, RamAddr(0));
        match write {
            Some((same, n)) if same == at => {
                self.tlb.plain = (gpa, to_end.min(n) & !OFFSET, host);
                Page::Ram { host, writable: true }
            }
            _ => Page::Ram { host, writable: false },
        }
    }

    fn fill(&mut self, class: Class, lin: u64, leaf: &Leaf, write: bool) -> Place {
        const ENABLE: u64 = 1 << 11;
        let gpa = leaf.gpa & !OFFSET;
        let apic = self.lapic.apic_base();
        let page = if apic & ENABLE != 0 && apic & !OFFSET == gpa { Page::Io } else { self.page_at(gpa) };
        let mut e = Entry::none(place(lin));
        e.page = lin & !OFFSET | info::VALID | u64::from(leaf.size) << info::SIZE_SHIFT;
        e.host = gpa;
        if leaf.global {
            e.page |= info::GLOBAL;
        }
        if leaf.write && (leaf.dirty || write) {
            e.page |= info::WRITE;
        }
        if let Page::Ram { host, writable } = page {
            e.host = host;
            e.page |= info::RAM;
            if class != Class::UserAligned && !self.data_watched(lin) {
                e.read = lin & !OFFSET;
            }
            if writable {
                e.page |= info::RAM_WRITE;
                if e.page & info::WRITE != 0 && self.write_tag(class, lin, e.host, write) {
                    e.write = lin & !OFFSET;
                }
            }
        }
        self.tlb.install(class, lin, e);
        if e.page & info::RAM != 0 && (!write || e.page & info::RAM_WRITE != 0) {
            Place::Ram(e.host + (lin & OFFSET))
        } else {
            Place::Io(leaf.gpa)
        }
    }

    /// Whether stores to a page of RAM need no care. With the log of written pages on, the first store does.
    fn write_tag(&mut self, class: Class, lin: u64, host: u64, write: bool) -> bool {
        let page = self.tlb.ram_addr(host).page();
        let ram = self.bus.ram();
        if write {
            // The store that is under way may find the tag and go by it.
            ram.mark_dirty(page);
        }
        class != Class::UserAligned
            && ram.code_lines(page).load(Ordering::Relaxed) == 0
            && (write || !ram.dirty_log())
            && !self.data_watched(lin)
    }

    /// Whether bytes of memory belong to lines with decoded code.
    fn hits_code(&self, host: u64, len: usize) -> bool {
        let at = self.tlb.ram_addr(host);
        let lines = self.bus.ram().code_lines(at.page()).load(Ordering::Relaxed);
        if lines == 0 {
            return false;
        }
        let first = (at.0 & OFFSET) / 64;
        let last = ((at.0 & OFFSET) + len as u64 - 1) / 64;
        lines >> first & (u64::MAX >> (63 - (last - first))) != 0
    }

    /// Reads `size` (1 to 8) bytes.
    #[expect(unsafe_code, reason = "guest memory is reached by raw pointers")]
    fn get(&mut self, place: Place, size: u8) -> u64 {
        match place {
            Place::Ram(host) => {
                let mut buf = [0; 8];
                // SAFETY: `reach` found `size` bytes of the arena there.
                unsafe { peek_bytes(host, &mut buf[..usize::from(size)]) };
                u64::from_le_bytes(buf)
            }
            Place::Io(gpa) => match self.apic_offset(gpa) {
                Some(offset) => {
                    let low = u64::from(self.lapic.read(offset & !3));
                    let high = if offset & 3 == 0 && size <= 4 { 0 } else { self.lapic.read((offset & !3) + 4) };
                    (low | u64::from(high) << 32) >> (8 * (offset & 3))
                }
                None => self.bus.read(gpa, size),
            },
        }
    }

    /// Writes `size` (1 to 8) bytes.
    fn put(&mut self, place: Place, size: u8, value: u64) {
        match place {
            Place::Ram(host) => self.put_ram(host, &value.to_le_bytes()[..usize::from(size)]),
            Place::Io(gpa) => match self.apic_offset(gpa) {
                // Anything but 32 aligned bits is undefined.
                Some(offset) if offset & 3 == 0 && size >= 4 => self.lapic.write(offset, value as u32),
                Some(_) => {}
                None => self.bus.write(gpa, size, value),
            },
        }
    }

    #[expect(unsafe_code, reason = "guest memory is reached by raw pointers")]
    fn put_ram(&mut self, host: u64, data: &[u8]) {
        // SAFETY: `reach` found `data.len()` bytes of the arena there.
        unsafe { poke_bytes(host, data) };
        let at = self.tlb.ram_addr(host);
        self.bus.ram().mark_dirty(at.page());
        if self.hits_code(host, data.len()) {
            self.smc.push((at, data.len() as u32));
        }
    }

    /// The register of the local APIC at a guest physical address.
    pub(crate) fn apic_offset(&self, gpa: u64) -> Option<u32> {
        const ENABLE: u64 = 1 << 11;
        let base = self.lapic.apic_base();
        (base & ENABLE != 0 && base & !OFFSET == gpa & !OFFSET).then_some((gpa & OFFSET) as u32)
    }
}

fn host_of(ram: &Ram, at: RamAddr) -> u64 {
    ram.host(at).expose_provenance() as u64
}
