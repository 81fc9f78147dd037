//! The translations that [`crate::mem`] keeps: tables, places, and how they are forgotten.

use std::ptr::NonNull;

use emu::{PAGE_SIZE, RamAddr};

use crate::walk::Leaf;

/// Which of the four tables an access uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Supervisor = 0,
    User = 1,
    /// Supervisor with EFLAGS.AC set under CR4.SMAP: may touch user pages.
    SupervisorOpen = 2,
    /// User with alignment checks.
    UserAligned = 3,
}

impl Class {
    pub(crate) fn user(self) -> bool {
        matches!(self, Class::User | Class::UserAligned)
    }
}

const DATA: usize = 1024;
const CODE: usize = 512;
/// The bits of an address inside a page.
pub(crate) const OFFSET: u64 = PAGE_SIZE - 1;

/// The low bits of [`Entry::page`] and [`CodeEntry::ram`].
pub(crate) mod info {
    /// The entry is in use.
    pub(crate) const VALID: u64 = 1;
    /// The page tables allow writes, and the page is dirty.
    pub(crate) const WRITE: u64 = 1 << 1;
    pub(crate) const GLOBAL: u64 = 1 << 2;
    /// Reads lead to one page of RAM: `host` is its host address. Else it is the guest physical address.
    pub(crate) const RAM: u64 = 1 << 3;
    /// Writes lead to the same page.
    pub(crate) const RAM_WRITE: u64 = 1 << 4;
    /// The entry is in the list of local, or of global, entries.
    pub(crate) const IN_LOCAL: u64 = 1 << 5;
    pub(crate) const IN_GLOBAL: u64 = 1 << 6;
    /// The size of the guest's page, as `Leaf::size`.
    pub(crate) const SIZE_SHIFT: u32 = 8;
}

#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(crate) struct Entry {
    /// Tag for reads: the page's linear address, or one that cannot hit.
    pub(crate) read: u64,
    /// Tag for writes.
    pub(crate) write: u64,
    /// Host address of the page, or its guest physical address.
    pub(crate) host: u64,
    /// The page's linear address, and [`info`].
    pub(crate) page: u64,
}

impl Entry {
    /// An entry for place `n` that cannot hit.
    pub(crate) const fn none(n: usize) -> Entry {
        Entry { read: never(n), write: never(n), host: 0, page: 0 }
    }

    /// Forgets the translation, but not which lists the entry is in.
    fn clear(&mut self, n: usize) {
        let listed = self.page & (info::IN_LOCAL | info::IN_GLOBAL);
        *self = Entry { page: listed, ..Entry::none(n) };
    }

    pub(crate) fn covers(&self, lin: u64) -> bool {
        self.page & info::VALID != 0 && (self.page ^ lin) & !OFFSET == 0
    }
}

/// A page whose place is not `n`.
const fn never(n: usize) -> u64 {
    ((n ^ 1) as u64) << 12
}

#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(crate) struct CodeEntry {
    /// The page's linear address, or one that cannot hit.
    pub(crate) tag: u64,
    /// Place of the page in the arena, and [`info`].
    pub(crate) ram: u64,
}

struct Tables {
    data: [[Entry; DATA]; 4],
    code: [[CodeEntry; CODE]; 2],
}

/// The place of a data page: neighbours apart, and streams a power of two apart, too.
#[inline(always)]
pub(crate) fn place(lin: u64) -> usize {
    ((lin >> 12) ^ (lin >> 22)) as usize & (DATA - 1)
}

#[inline(always)]
fn code_place(lin: u64) -> usize {
    ((lin >> 12) ^ (lin >> 21)) as usize & (CODE - 1)
}

/// Translations, and what else is remembered between accesses.
pub(crate) struct Tlb {
    tables: NonNull<Tables>,
    /// The table of the present class.
    data: NonNull<Entry>,
    code: NonNull<CodeEntry>,
    class: Class,
    /// Entries filled with local translations since the last flush: class * DATA + place.
    local: Vec<u16>,
    global: Vec<u16>,
    code_used: Vec<u16>,
    /// Where translations of large pages are, in the lower and the upper half of the address space.
    large: [(u64, u64); 2],
    /// The map that the translations agree with.
    pub(crate) generation: u64,
    /// The stretch of RAM that the last page table was read from: guest physical address, length, host address.
    pub(crate) walked: (u64, u64, u64),
    /// A stretch of RAM that reads and writes lead to alike, from the last page found in it on.
    pub(crate) plain: (u64, u64, u64),
    /// Host address of the arena.
    pub(crate) arena: u64,
}

// SAFETY: the tables belong to this value alone; `data` and `code` point into them.
#[expect(unsafe_code, reason = "pointers to the value's own tables")]
unsafe impl Send for Tlb {}

impl Default for Tlb {
    fn default() -> Tlb {
        let mut tables =
            Box::new(Tables { data: [[Entry::none(0); DATA]; 4], code: [[CodeEntry { tag: 0, ram: 0 }; CODE]; 2] });
        for table in &mut tables.data {
            table.iter_mut().enumerate().for_each(|(n, e)| *e = Entry::none(n));
        }
        for table in &mut tables.code {
            table.iter_mut().enumerate().for_each(|(n, e)| e.tag = never(n));
        }
        let tables = NonNull::from(Box::leak(tables));
        Tlb {
            tables,
            data: tables.cast(),
            code: tables.cast(),
            class: Class::Supervisor,
            local: Vec::new(),
            global: Vec::new(),
            code_used: Vec::new(),
            large: [(u64::MAX, 0); 2],
            generation: 0,
            walked: (0, 0, 0),
            plain: (0, 0, 0),
            arena: 0,
        }
        .at(Class::Supervisor)
    }
}

impl Drop for Tlb {
    #[expect(unsafe_code, reason = "frees the tables")]
    fn drop(&mut self) {
        // SAFETY: they were leaked from a box when the value was made, and nothing else refers to them.
        drop(unsafe { Box::from_raw(self.tables.as_ptr()) });
    }
}

impl Tlb {
    #[expect(unsafe_code, reason = "access to the value's own tables")]
    fn tables(&mut self) -> &mut Tables {
        // SAFETY: `tables` is valid while the value lives, and the borrow of `self` makes this the only reference.
        unsafe { self.tables.as_mut() }
    }

    fn at(mut self, class: Class) -> Tlb {
        self.select(class);
        self
    }

    /// The present class.
    pub(crate) fn class(&self) -> Class {
        self.class
    }

    /// Makes `class` the present one.
    #[inline]
    pub(crate) fn select(&mut self, class: Class) {
        self.class = class;
        let tables = self.tables();
        let data = NonNull::from(&mut tables.data[class as usize]).cast();
        let code = NonNull::from(&mut tables.code[usize::from(class.user())]).cast();
        (self.data, self.code) = (data, code);
    }

    /// The present class's entry for a page.
    #[inline(always)]
    #[expect(unsafe_code, reason = "the hottest access of all, without a bounds check")]
    pub(crate) fn entry(&self, lin: u64) -> &Entry {
        // SAFETY: `data` points to DATA entries in the tables, and `place` is below DATA.
        unsafe { self.data.add(place(lin)).as_ref() }
    }

    #[inline(always)]
    #[expect(unsafe_code, reason = "on the path of every block")]
    pub(crate) fn code_entry(&self, lin: u64) -> &CodeEntry {
        // SAFETY: `code` points to CODE entries in the tables, and `code_place` is below CODE.
        unsafe { self.code.add(code_place(lin)).as_ref() }
    }

    #[inline(always)]
    pub(crate) fn entry_of(&mut self, class: Class, lin: u64) -> &mut Entry {
        &mut self.tables().data[class as usize][place(lin)]
    }

    pub(crate) fn flush(&mut self, keep_global: bool) {
        let mut local = std::mem::take(&mut self.local);
        let mut global = std::mem::take(&mut self.global);
        let mut code_used = std::mem::take(&mut self.code_used);
        let tables = self.tables();
        for id in local.drain(..).map(usize::from) {
            let e = &mut tables.data[id / DATA][id % DATA];
            e.page &= !info::IN_LOCAL;
            if e.page & info::GLOBAL == 0 {
                e.clear(id % DATA);
            }
        }
        if !keep_global {
            for id in global.drain(..).map(usize::from) {
                let e = &mut tables.data[id / DATA][id % DATA];
                e.page = 0;
                e.clear(id % DATA);
            }
        }
        code_used.retain(|id| {
            let id = usize::from(*id);
            let e = &mut tables.code[id / CODE][id % CODE];
            let keep = keep_global && e.ram & info::GLOBAL != 0;
            if !keep {
                *e = CodeEntry { tag: never(id % CODE), ram: 0 };
            }
            keep
        });
        (self.local, self.global, self.code_used) = (local, global, code_used);
        if !keep_global {
            self.large = [(u64::MAX, 0); 2];
        }
    }

    pub(crate) fn drop_page(&mut self, lin: u64) {
        let large = self.large[half(lin)];
        let tables = self.tables();
        let n = place(lin);
        for table in &mut tables.data {
            if table[n].covers(lin) {
                table[n].clear(n);
            }
        }
        let n = code_place(lin);
        for table in &mut tables.code {
            if (table[n].tag ^ lin) & !OFFSET == 0 {
                table[n].tag = never(n);
            }
        }
        if !(large.0..=large.1).contains(&lin) {
            return;
        }
        // A piece of the same large page may be in any place.
        let same = |page: u64, info: u64| {
            let size = (info >> info::SIZE_SHIFT & 3) as u8;
            size != 0 && (page ^ lin) >> Leaf::shift(size) == 0
        };
        let lists = (std::mem::take(&mut self.local), std::mem::take(&mut self.global));
        let tables = self.tables();
        for id in lists.0.iter().chain(&lists.1).copied().map(usize::from) {
            let e = &mut tables.data[id / DATA][id % DATA];
            if same(e.page, e.page) {
                e.clear(id % DATA);
            }
        }
        (self.local, self.global) = lists;
        let code_used = std::mem::take(&mut self.code_used);
        let tables = self.tables();
        for id in code_used.iter().copied().map(usize::from) {
            let e = &mut tables.code[id / CODE][id % CODE];
            if same(e.tag, e.ram) {
                e.tag = never(id % CODE);
            }
        }
        self.code_used = code_used;
    }

    /// Puts an entry in its place and list.
    pub(crate) fn install(&mut self, class: Class, lin: u64, mut e: Entry) {
        let slot = self.entry_of(class, lin);
        e.page |= slot.page & (info::IN_LOCAL | info::IN_GLOBAL);
        let global = e.page & info::GLOBAL != 0;
        let listed = if global { info::IN_GLOBAL } else { info::IN_LOCAL };
        let new = e.page & listed == 0;
        e.page |= listed;
        *slot = e;
        if new {
            let id = (class as usize * DATA + place(lin)) as u16;
            if global { &mut self.global } else { &mut self.local }.push(id);
        }
        self.note_large(lin, e.page);
    }

    pub(crate) fn install_code(&mut self, user: bool, lin: u64, ram: RamAddr, bits: u64) {
        let n = code_place(lin);
        let slot = &mut self.tables().code[usize::from(user)][n];
        let new = slot.ram & info::VALID == 0;
        *slot = CodeEntry { tag: lin & !OFFSET, ram: ram.0 & !OFFSET | bits | info::VALID };
        if new {
            self.code_used.push((usize::from(user) * CODE + n) as u16);
        }
        self.note_large(lin, bits);
    }

    fn note_large(&mut self, lin: u64, bits: u64) {
        if bits >> info::SIZE_SHIFT & 3 != 0 {
            let range = &mut self.large[half(lin)];
            let size = 1 << Leaf::shift((bits >> info::SIZE_SHIFT & 3) as u8);
            *range = (range.0.min(lin & !(size - 1)), range.1.max(lin | (size - 1)));
        }
    }

    /// Makes every store to a page of the arena miss.
    pub(crate) fn drop_write_tags(&mut self, page: u64) {
        let host = self.arena + page * PAGE_SIZE;
        let lists = (std::mem::take(&mut self.local), std::mem::take(&mut self.global));
        let tables = self.tables();
        for id in lists.0.iter().chain(&lists.1).copied().map(usize::from) {
            let e = &mut tables.data[id / DATA][id % DATA];
            if e.host == host && e.page & info::RAM != 0 {
                e.write = never(id % DATA);
            }
        }
        (self.local, self.global) = lists;
    }

    /// The place in the arena of a host address of guest memory.
    pub(crate) fn ram_addr(&self, host: u64) -> RamAddr {
        RamAddr(host - self.arena)
    }
}

/// Which half of the address space an address is in.
fn half(lin: u64) -> usize {
    (if lin >> 32 == 0 { lin >> 31 } else { lin >> 63 }) as usize
}
