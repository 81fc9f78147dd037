//! The engine: decoded blocks, cached by the memory they came from.
//!
//! A block is a run of instructions of one page that ends with the first that may transfer control or change what
//! follows (`END`), at the page's end, or after 32. Its key is the arena address of its first byte and the mode bits
//! that decoding and the choice of handlers depend on, so aliases share blocks and remapping needs no flush. Blocks
//! whose end leads into the same page are chained: the distance is the same wherever the page is mapped. An
//! instruction that lies across two pages is a block of its own, which remembers the second; whether that is mapped
//! there is asked each time, and no block is chained to it.
//!
//! The handler of an instruction ends by a jump to the next one's ([`crate::insn::go_on`]); the last one's returns.
//! What stands between instructions: a relay before one whose handler knows nothing of this, a gate before one that may
//! touch devices.
//!
//! Only the last instruction of a block may touch a device or overwrite decoded code, and only behind a gate; it has
//! seen the clock and the interrupt state that the plain interpreter would show it. Any other that tries is stopped
//! before it has had an effect ([`Why::Alone`]), the place is remembered, and the block is built again so that it ends
//! there, with a gate. Thus interrupts arrive at the same instruction as under [`Cpu::run_plain`], which is what the
//! lock-step test checks. Blocks without a gate, most by far, run on with no look at anything but what other threads
//! may have brought about.
//!
//! A second tier that compiles hot blocks takes the place of the first handler of a block: a block is entered at one
//! place, in one mode, with its instruction count known, and says at which instruction it stopped.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;

use emu::{PAGE_SIZE, RamAddr, Timers};

use crate::decode::{decode_for, rebase};
use crate::feature::Features;
use crate::flags::RF;
use crate::insn::{BLOCK, END, Insn, Mode, OSIZE_SHIFT, PLAIN, Stop};
use crate::run::Exit;
use crate::state::{Cpu, Why};

/// Most instructions in a block.
const MAX_OPS: usize = 32;
/// Most entries of the arena that a block takes: a relay for each instruction, a gate and the end.
const MAX_SLOTS: usize = 2 * MAX_OPS + 2;
/// Decoded instructions held; all are dropped when there is no room (a Linux boot needs about 400 K).
const ARENA: usize = 512 << 10;
const TABLE: usize = 1 << 16;
const NONE: u32 = u32::MAX;
/// No second page.
const ONE_PAGE: u64 = u64::MAX;
/// Bytes of the longest instruction.
const LONGEST: usize = 15;

/// A way from the end of a block to another one in the same page.
#[derive(Clone, Copy)]
struct Link {
    /// RIP there minus RIP at the start of this block.
    delta: u64,
    block: u32,
    /// The target's stamp when the link was made.
    stamp: u32,
}

const NO_LINK: Link = Link { delta: 0, block: NONE, stamp: 0 };

/// What the last instruction of a block may have brought about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// Nothing.
    Near,
    /// What devices can: interrupts, timers, another map, code that is out of date; but no change of mode or
    /// translation.
    Device,
    /// Anything.
    Any,
}

#[repr(align(64))]
struct Block {
    /// Arena address of the first byte.
    start: u64,
    /// Arena address of the page that the instruction reaches into, or [`ONE_PAGE`].
    second: u64,
    /// Index of the first entry in the arena.
    first: u32,
    /// Instructions.
    count: u16,
    /// Bytes.
    len: u16,
    links: [Link; 2],
    /// Counts the uses of this place in the pool.
    stamp: u32,
    mode: Mode,
    end: End,
}

impl Block {
    /// The lines of a page that it covers.
    fn covers(&self, page: u64) -> u64 {
        let (offset, len) = (self.start % PAGE_SIZE, u64::from(self.len));
        let first = if self.start / PAGE_SIZE == page { lines(offset, len) } else { 0 };
        // The bytes may have changed since it was found to reach there.
        let rest = (offset + len).saturating_sub(PAGE_SIZE);
        if self.second / PAGE_SIZE == page && rest > 0 { first | lines(0, rest) } else { first }
    }

    /// The pages that it covers.
    fn pages(&self) -> impl Iterator<Item = u64> + use<> {
        let first = self.start / PAGE_SIZE;
        // Both may be the same, mapped twice.
        let second = Some(self.second / PAGE_SIZE).filter(|page| self.second != ONE_PAGE && *page != first);
        std::iter::once(first).chain(second)
    }
}

/// The code cache of a machine, shared by the processors that one thread runs in turn.
pub struct Engine {
    ops: Vec<Insn>,
    blocks: Vec<Block>,
    table: Vec<u32>,
    pages: HashMap<u64, Vec<u32>>,
    free: Vec<u32>,
    /// Instructions that must end their block.
    alone: HashSet<u64>,
    /// A debugger's, for which there are no blocks.
    breakpoints: Vec<u64>,
    /// Counts how often everything was dropped.
    era: u64,
    /// Counts the pages that came to hold code; processors that have not seen the last one drop their write
    /// translations.
    epoch: u64,
}

impl Default for Engine {
    fn default() -> Engine {
        Engine::new()
    }
}

/// What comes next.
enum Found {
    Block(u32),
    /// Not in RAM: one instruction by the plain interpreter.
    Single,
    /// The fetch faulted, or the map changed under it.
    Again(Option<Exit>),
}

fn slot(start: u64, mode: Mode) -> usize {
    let h = (start ^ u64::from(mode.0) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (h >> 48) as usize & (TABLE - 1)
}

fn end_of(last: &Insn) -> End {
    match last.op {
        _ if last.flags & END == 0 => End::Near,
        0x70..=0x7f | 0x0f80..=0x0f8f | 0xe0..=0xe3 | 0xe8 | 0xe9 | 0xeb | 0xc2 | 0xc3 => End::Near,
        0xff if matches!(last.reg & 7, 2 | 4) => End::Near,
        // REP, IN and OUT, RDTSC.
        0x6c..=0x6f | 0xa4..=0xa7 | 0xaa..=0xaf | 0xe4..=0xe7 | 0xec..=0xef | 0x0f31 => End::Device,
        _ => End::Any,
    }
}

/// The condition of a Jcc in flat code.
fn fusible(i: &Insn, mode: Mode) -> Option<u8> {
    let flat = mode.has(Mode::LONG) || mode.has(Mode::FLAT) && mode.has(Mode::STACK32) && i.flags >> OSIZE_SHIFT != 0;
    (flat && matches!(i.op, 0x70..=0x7f | 0x0f80..=0x0f8f)).then_some(i.op as u8 & 15)
}

impl Engine {
    /// An empty cache.
    pub fn new() -> Engine {
        Engine {
            ops: Vec::with_capacity(ARENA),
            blocks: Vec::new(),
            table: vec![NONE; TABLE],
            pages: HashMap::new(),
            free: Vec::new(),
            alone: HashSet::new(),
            breakpoints: Vec::new(),
            era: 0,
            epoch: 0,
        }
    }

    /// Blocks that are held.
    #[cfg(test)]
    pub(crate) fn blocks(&self) -> usize {
        self.blocks.len() - self.free.len()
    }

    /// Runs `cpu` until the instruction count is `limit`, or a timer is due on a clock that instructions drive, or
    /// something else ends the run.
    pub fn run(&mut self, cpu: &mut Cpu, limit: u64, timers: &Timers) -> Exit {
        cpu.begin_slice();
        if cpu.breakpoints() != self.breakpoints {
            self.breakpoints = cpu.breakpoints().to_vec();
            // Some end elsewhere now.
            self.drop_all(cpu);
        }
        let exit = match cpu.is_debugged_closely() {
            true => self.work_closely(cpu, limit, timers),
            false => self.work(cpu, limit, timers),
        };
        cpu.end_slice();
        exit
    }

    fn work(&mut self, cpu: &mut Cpu, limit: u64, timers: &Timers) -> Exit {
        loop {
            cpu.publish_clock();
            let stop_at = limit.min(cpu.next_timer(timers));
            if cpu.icount >= stop_at {
                return Exit::Limit;
            }
            cpu.sync_map();
            self.sync_code(cpu);
            let mut single = false;
            if cpu.attention() || cpu.has_work() {
                single = cpu.shadow;
                if let Some(exit) = cpu.boundary() {
                    return exit;
                }
                if cpu.pending_db != 0 {
                    continue;
                }
                single |= cpu.has_work();
            }
            let found = if single { Found::Single } else { self.find(cpu) };
            let exit = match found {
                Found::Block(b) => self.run_blocks(cpu, b, stop_at, timers),
                Found::Single => cpu.execute_one(),
                Found::Again(exit) => exit,
            };
            if let Some(exit) = exit {
                return exit;
            }
        }
    }

    /// As [`Self::work`], for a debugger that looks at every instruction.
    #[cold]
    fn work_closely(&mut self, cpu: &mut Cpu, limit: u64, timers: &Timers) -> Exit {
        loop {
            cpu.publish_clock();
            if cpu.icount >= limit.min(cpu.next_timer(timers)) {
                return Exit::Limit;
            }
            cpu.sync_map();
            self.sync_code(cpu);
            if let Some(exit) = cpu.debugged() {
                self.sync_code(cpu);
                return exit;
            }
        }
    }

    /// Whether a debugger may have a breakpoint at an arena address: linear addresses end in the same bits.
    fn may_break(&self, at: u64) -> bool {
        self.breakpoints.iter().any(|address| (address ^ at).is_multiple_of(PAGE_SIZE))
    }

    /// Runs block `b` and what it is chained to, until the loop above has something to look at.
    fn run_blocks(&mut self, cpu: &mut Cpu, mut b: u32, stop_at: u64, timers: &Timers) -> Option<Exit> {
        let next_timer = timers.next();
        self.ops.as_ptr().expose_provenance();
        cpu.rflags &= !RF;
        cpu.may_io = false;
        loop {
            let block = &self.blocks[b as usize];
            let count = u64::from(block.count);
            if cpu.icount + count > stop_at {
                return if cpu.icount < stop_at { cpu.execute_one() } else { None };
            }
            let start = cpu.rip;
            cpu.gpr[BLOCK as usize] = start;
            cpu.rip = cpu.cut_rip(start.wrapping_add(u64::from(block.len)));
            cpu.icount += count;
            let first = &self.ops[block.first as usize];
            if (first.exec)(cpu, first).is_err() {
                return self.unwind(cpu, b, start);
            }
            if cpu.attention() || cpu.bus.ram().stale() {
                return None;
            }
            let delta = cpu.rip.wrapping_sub(start);
            let mut linked = self.linked(b, delta);
            if block.end != End::Near {
                if cpu.map_moved() || timers.next() != next_timer || cpu.has_work() {
                    return None;
                }
                cpu.rflags &= !RF;
                cpu.may_io = false;
                if block.end == End::Any {
                    linked = None;
                }
            }
            match linked {
                Some(next) => b = next,
                None if cpu.icount >= stop_at => return None,
                None => match self.find_from(cpu, b, delta) {
                    Found::Block(next) => {
                        b = next;
                    }
                    Found::Single => return cpu.execute_one(),
                    Found::Again(exit) => return exit,
                },
            }
        }
    }

    #[inline(always)]
    fn linked(&self, from: u32, delta: u64) -> Option<u32> {
        let links = &self.blocks[from as usize].links;
        let link = if links[0].delta == delta { &links[0] } else { &links[1] };
        (link.delta == delta && link.block != NONE && self.blocks[link.block as usize].stamp == link.stamp)
            .then_some(link.block)
    }

    /// The block at RIP, chained to the one that led there if it can be.
    fn find_from(&mut self, cpu: &mut Cpu, from: u32, delta: u64) -> Found {
        let era = self.era;
        let found = self.find(cpu);
        if let Found::Block(next) = found
            && self.era == era
        {
            self.link(from, delta, next);
        }
        found
    }

    /// Chains two blocks if the second is in the first one's page, by place and by address.
    fn link(&mut self, from: u32, delta: u64, to: u32) {
        let target = &self.blocks[to as usize];
        let source = &self.blocks[from as usize];
        let near = target.start.wrapping_sub(source.start) == delta && target.mode == source.mode;
        let near = near && source.end != End::Any && target.second == ONE_PAGE;
        if !near || target.start / PAGE_SIZE != source.start / PAGE_SIZE {
            return;
        }
        let link = Link { delta, block: to, stamp: target.stamp };
        let links = &mut self.blocks[from as usize].links;
        links[1] = links[0];
        links[0] = link;
    }

    /// An instruction of block `b`, which started at RIP `start`, stopped.
    #[cold]
    fn unwind(&mut self, cpu: &mut Cpu, b: u32, start: u64) -> Option<Exit> {
        let block = &self.blocks[b as usize];
        let mut ops = self.ops[block.first as usize..].iter().filter(|i| i.is_real()).enumerate();
        let (stopped, last) = (std::mem::take(&mut cpu.stopped), usize::from(block.count) - 1);
        // The last one does not say that it was it.
        let (at, op) = ops.find(|(n, i)| std::ptr::from_ref(*i).addr() == stopped || *n == last)?;
        let offset = u64::from(op.next) - u64::from(op.len);
        cpu.icount -= u64::from(block.count) - at as u64;
        if cpu.why == Why::Alone {
            let place = block.start + offset;
            self.alone.insert(place);
            self.drop_block(b);
        } else {
            cpu.icount += 1;
        }
        let rip = cpu.cut_rip(start.wrapping_add(offset));
        cpu.stopped(rip)
    }

    /// The block at RIP, made if need be.
    fn find(&mut self, cpu: &mut Cpu) -> Found {
        let start = cpu.rip;
        let place = cpu.fetch_address(start).and_then(|lin| Ok((lin, cpu.code_page(lin)?)));
        let (lin, page) = match place {
            Ok((lin, Some(page))) => (lin, page),
            Ok((_, None)) => return Found::Single,
            Err(Stop) => {
                cpu.icount += 1;
                return Found::Again(cpu.stopped(start));
            }
        };
        let at = page.0 + lin % PAGE_SIZE;
        let mode = cpu.mode;
        let n = self.table[slot(at, mode)];
        let known = n != NONE && self.blocks[n as usize].start == at && self.blocks[n as usize].mode == mode;
        let block = if known && self.blocks[n as usize].second == ONE_PAGE {
            n
        } else {
            let found = if known { self.across(cpu, at, Some(n)) } else { self.build(cpu, at, mode, ONE_PAGE) };
            match found.or_else(|| self.across(cpu, at, None)) {
                Some(n) => n,
                None => return Found::Single,
            }
        };
        // Outside flat segments every byte must lie inside the limit.
        if !mode.has(Mode::FLAT) {
            let last = start.wrapping_add(u64::from(self.blocks[block as usize].len) - 1);
            if cpu.cut_rip(last) != last || cpu.fetch_address(last).is_err() {
                cpu.why = Why::None;
                return Found::Single;
            }
        }
        Found::Block(block)
    }

    /// The block of the instruction at RIP and arena address `at`, which lies across two pages: `known`, if the second
    /// page is still the same. `None` where the plain interpreter has to see to it.
    #[inline(never)]
    fn across(&mut self, cpu: &mut Cpu, at: u64, known: Option<u32>) -> Option<u32> {
        let room = PAGE_SIZE - at % PAGE_SIZE;
        if room >= LONGEST as u64 || self.may_break(at) {
            return None;
        }
        let lin = cpu.fetch_address(cpu.rip.wrapping_add(room));
        let Ok(Some(page)) = lin.and_then(|lin| cpu.code_page(lin)) else {
            cpu.why = Why::None;
            return None;
        };
        if known.is_some_and(|n| self.blocks[n as usize].second == page.0) {
            return known;
        }
        if let Some(n) = known {
            self.drop_block(n);
        }
        self.build(cpu, at, cpu.mode, page.0)
    }

    /// Decodes the block at arena address `at`, or with a `second` page the instruction there alone. `None` when it
    /// does not lie in one page, or in the two.
    #[cold]
    fn build(&mut self, cpu: &mut Cpu, at: u64, mode: Mode, second: u64) -> Option<u32> {
        if self.ops.len() + MAX_SLOTS > ARENA {
            self.drop_all(cpu);
        }
        let mut bytes = [0; MAX_OPS * LONGEST];
        let mut room = ((PAGE_SIZE - at % PAGE_SIZE) as usize).min(bytes.len());
        cpu.bus.ram().read(RamAddr(at), &mut bytes[..room]);
        let most = if second == ONE_PAGE { MAX_OPS } else { 1 };
        if second != ONE_PAGE {
            cpu.bus.ram().read(RamAddr(second), &mut bytes[room..LONGEST]);
            room = LONGEST;
        }
        let first = self.ops.len();
        let (mut count, mut len, mut end) = (0, 0, End::Near);
        let (mut open, features) = (true, cpu.model.features);
        while open && count < most && len < room && !self.may_break(at + len as u64) {
            let room = room.min(len + LONGEST);
            let Ok(mut insn) = decode_for(&bytes[len..room], mode, features, None) else { break };
            if !rebase(&mut insn, len as u16) {
                break;
            }
            end = end_of(&insn);
            if self.alone.contains(&(at + len as u64)) && end == End::Near {
                end = End::Device;
            }
            open = insn.flags & END == 0 && end == End::Near;
            if end != End::Near {
                self.ops.push(Insn::GATE);
            } else if insn.flags & (END | PLAIN) == PLAIN {
                self.ops.push(Insn::RELAY);
            }
            if let Some(condition) = fusible(&insn, mode)
                && count > 0
            {
                self.fuse(&bytes[..len], mode, features, condition);
            }
            self.ops.push(insn);
            count += 1;
            len += insn.len as usize;
        }
        if count == 0 {
            return None;
        }
        if self.ops[self.ops.len() - 1].flags & END == 0 {
            self.ops.push(Insn::DONE);
        }
        let block = Block {
            start: at,
            second,
            first: first as u32,
            count: count as u16,
            len: len as u16,
            links: [NO_LINK; 2],
            stamp: 0,
            mode,
            end,
        };
        let n = match self.free.pop() {
            Some(n) => {
                let stamp = self.blocks[n as usize].stamp;
                self.blocks[n as usize] = Block { stamp, ..block };
                n
            }
            None => {
                self.blocks.push(block);
                self.blocks.len() as u32 - 1
            }
        };
        self.table[slot(at, mode)] = n;
        for page in self.blocks[n as usize].pages() {
            self.pages.entry(page).or_default().push(n);
            let lines = self.blocks[n as usize].covers(page);
            if cpu.bus.ram().code_lines(page).fetch_or(lines, Ordering::AcqRel) == 0 {
                self.epoch += 1;
                cpu.code_epoch = self.epoch;
                cpu.drop_write_tags(page);
            }
        }
        Some(n)
    }

    /// Gives the instruction before a Jcc, the last in the arena and in `bytes`, a handler that does the work of both.
    fn fuse(&mut self, bytes: &[u8], mode: Mode, features: Features, condition: u8) {
        let Some(before) = self.ops.last_mut() else { return };
        let offset = before.next - u16::from(before.len);
        if let Ok(mut both) = decode_for(&bytes[usize::from(offset)..], mode, features, Some(condition))
            && rebase(&mut both, offset)
        {
            *before = both;
        }
    }

    /// Brings processor and cache in agreement about code that was written, and about pages that hold code.
    fn sync_code(&mut self, cpu: &mut Cpu) {
        if cpu.code_epoch != self.epoch {
            cpu.code_epoch = self.epoch;
            cpu.flush_tlb(false);
        }
        while let Some((at, len)) = cpu.smc.pop() {
            let (first, last) = (at.page(), RamAddr(at.0 + u64::from(len) - 1).page());
            let hit = lines(at.0 % PAGE_SIZE, u64::from(len).min(PAGE_SIZE - at.0 % PAGE_SIZE));
            self.drop_lines(cpu, first, hit);
            if last != first {
                let rest = (at.0 + u64::from(len)) % PAGE_SIZE;
                self.drop_lines(cpu, last, lines(0, rest.max(1)));
            }
        }
        if cpu.bus.ram().stale() {
            for page in cpu.bus.ram().take_stale() {
                self.drop_lines(cpu, page, u64::MAX);
            }
        }
    }

    /// Drops the blocks of a page that lie in any of the lines.
    fn drop_lines(&mut self, cpu: &mut Cpu, page: u64, hit: u64) {
        let Some(list) = self.pages.remove(&page) else { return };
        let mut left = 0;
        let mut kept = Vec::with_capacity(list.len());
        for n in list {
            let covered = self.blocks[n as usize].covers(page);
            if covered & hit == 0 {
                left |= covered;
                kept.push(n);
            } else {
                self.drop_block(n);
            }
        }
        if !kept.is_empty() {
            self.pages.insert(page, kept);
        }
        cpu.bus.ram().code_lines(page).store(left, Ordering::Release);
    }

    fn drop_block(&mut self, n: u32) {
        for page in self.blocks[n as usize].pages() {
            if let Some(list) = self.pages.get_mut(&page) {
                list.retain(|m| *m != n);
            }
        }
        let block = &mut self.blocks[n as usize];
        let entry = &mut self.table[slot(block.start, block.mode)];
        if *entry == n {
            *entry = NONE;
        }
        block.stamp += 1;
        block.start = u64::MAX;
        self.free.push(n);
    }

    #[cold]
    fn drop_all(&mut self, cpu: &mut Cpu) {
        for page in self.pages.keys() {
            cpu.bus.ram().code_lines(*page).store(0, Ordering::Release);
        }
        self.era += 1;
        self.pages.clear();
        self.ops.clear();
        self.blocks.clear();
        self.free.clear();
        self.table.fill(NONE);
        self.alone.clear();
    }
}

/// The lines of a page that `len` bytes from `offset` touch.
fn lines(offset: u64, len: u64) -> u64 {
    let (first, last) = (offset / 64, (offset + len - 1) / 64);
    u64::MAX << first & u64::MAX >> (63 - last.min(63))
}
