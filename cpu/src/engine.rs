//! The engine: decoded blocks, cached by the memory they came from.
//!
//! A block is a run of instructions of one page that ends with the first that may transfer control or change what follows
//! (`END`), at the page's end, or after 32. Its key is the arena address of its first byte and the mode bits that decoding
//! and the choice of handlers depend on, so aliases share blocks and remapping needs no flush. Blocks whose end leads into
//! the same page are chained: the distance is the same wherever the page is mapped.
//!
//! Only the last instruction of a block may touch a device or overwrite decoded code; it has seen the clock and the
//! interrupt state that the plain interpreter would show it. Any other that tries is stopped before it has had an effect
//! ([`Why::Alone`]), the place is remembered, and the block is built again so that it ends there. Thus interrupts arrive at
//! the same instruction as under [`Cpu::run_plain`], which is what the lock-step test checks.
//!
//! A second tier that compiles hot blocks takes the place of [`execute`]: a block is entered at one place, in one mode,
//! with its instruction count known, and says at which instruction it stopped.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;

use emu::{PAGE_SIZE, RamAddr, Timers};

use crate::decode::decode_for;
use crate::flags::RF;
use crate::insn::{BLOCK, END, Insn, Mode, Stop};
use crate::run::Exit;
use crate::state::{Cpu, Why};

/// Most instructions in a block.
const MAX_OPS: usize = 32;
/// Decoded instructions held; all are dropped when there is no room (a Linux boot needs about 400 K).
const ARENA: usize = 512 << 10;
const TABLE: usize = 1 << 16;
const NONE: u32 = u32::MAX;

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

struct Block {
    /// Arena address of the first byte.
    start: u64,
    /// Index of the first instruction.
    first: u32,
    count: u16,
    /// Bytes.
    len: u16,
    mode: Mode,
    /// It ends with a near branch or none: nothing but the attention word, the map and stale code can have changed.
    pure: bool,
    /// Counts the uses of this place in the pool.
    stamp: u32,
    links: [Link; 2],
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
    /// Counts how often everything was dropped.
    era: u64,
    /// Counts the pages that came to hold code; processors that have not seen the last one drop their write translations.
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
    /// Not in RAM, or across two pages: one instruction by the plain interpreter.
    Single,
    /// The fetch faulted, or the map changed under it.
    Again(Option<Exit>),
}

fn slot(start: u64, mode: Mode) -> usize {
    let h = (start ^ u64::from(mode.0) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (h >> 48) as usize & (TABLE - 1)
}

/// Near branches: they change nothing but RIP, RSP and memory.
fn is_pure(last: &Insn) -> bool {
    last.flags & END == 0
        || matches!(last.op, 0x70..=0x7f | 0x0f80..=0x0f8f | 0xe0..=0xe3 | 0xe8 | 0xe9 | 0xeb | 0xc2 | 0xc3)
        || last.op == 0xff && matches!(last.reg & 7, 2 | 4)
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
            era: 0,
            epoch: 0,
        }
    }

    /// Runs `cpu` until the instruction count is `limit`, or a timer is due on a clock that instructions drive, or
    /// something else ends the run.
    pub fn run(&mut self, cpu: &mut Cpu, limit: u64, timers: &Timers) -> Exit {
        cpu.begin_slice();
        loop {
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

    /// Runs block `b` and what it is chained to, until the loop above has something to look at.
    fn run_blocks(&mut self, cpu: &mut Cpu, mut b: u32, stop_at: u64, timers: &Timers) -> Option<Exit> {
        let next_timer = timers.next();
        loop {
            let block = &self.blocks[b as usize];
            let count = u64::from(block.count);
            if cpu.icount + count > stop_at {
                return cpu.execute_one();
            }
            let start = cpu.rip;
            cpu.gpr[BLOCK as usize] = start;
            cpu.rip = cpu.cut_rip(start.wrapping_add(u64::from(block.len)));
            cpu.rflags &= !RF;
            cpu.icount += count;
            let ops = &self.ops[block.first as usize..][..block.count as usize];
            if let Err(at) = execute(cpu, ops) {
                return self.unwind(cpu, b, start, at);
            }
            // A last instruction that touched a device may have brought any of these about, whatever instruction it was.
            let moved = cpu.map_moved() || timers.next() != next_timer || !cpu.smc.is_empty();
            if !block.pure || moved || cpu.attention() || cpu.bus.ram().stale() || cpu.icount >= stop_at {
                return None;
            }
            let delta = cpu.rip.wrapping_sub(start);
            match self.linked(b, delta) {
                Some(next) => b = next,
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
        if !near || target.start / PAGE_SIZE != source.start / PAGE_SIZE {
            return;
        }
        let link = Link { delta, block: to, stamp: target.stamp };
        let links = &mut self.blocks[from as usize].links;
        links[1] = links[0];
        links[0] = link;
    }

    /// Instruction `at` of block `b`, which started at RIP `start`, stopped.
    #[cold]
    fn unwind(&mut self, cpu: &mut Cpu, b: u32, start: u64, at: usize) -> Option<Exit> {
        let block = &self.blocks[b as usize];
        let op = &self.ops[block.first as usize + at];
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
        let block = if n != NONE && self.blocks[n as usize].start == at && self.blocks[n as usize].mode == mode {
            n
        } else {
            match self.build(cpu, at, mode) {
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

    /// Decodes the block at arena address `at`. `None` when its first instruction does not lie in one page.
    #[cold]
    fn build(&mut self, cpu: &mut Cpu, at: u64, mode: Mode) -> Option<u32> {
        if self.ops.len() + MAX_OPS > ARENA {
            self.drop_all(cpu);
        }
        let mut bytes = [0; MAX_OPS * 15];
        let room = ((PAGE_SIZE - at % PAGE_SIZE) as usize).min(bytes.len());
        cpu.bus.ram().read(RamAddr(at), &mut bytes[..room]);
        let first = self.ops.len();
        let mut len = 0;
        while self.ops.len() - first < MAX_OPS && len < room {
            let end = room.min(len + 15);
            let Ok(mut insn) = decode_for(&bytes[len..end], mode, cpu.model.features) else { break };
            if !crate::decode::rebase(&mut insn, len as u16) {
                break;
            }
            let place = at + len as u64;
            len += insn.len as usize;
            self.ops.push(insn);
            if insn.flags & END != 0 || self.alone.contains(&place) {
                break;
            }
        }
        if self.ops.len() == first {
            return None;
        }
        let block = Block {
            start: at,
            first: first as u32,
            count: (self.ops.len() - first) as u16,
            len: len as u16,
            mode,
            pure: is_pure(&self.ops[self.ops.len() - 1]),
            stamp: 0,
            links: [NO_LINK; 2],
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
        let page = at / PAGE_SIZE;
        self.pages.entry(page).or_default().push(n);
        let lines = lines(at % PAGE_SIZE, len as u64);
        if cpu.bus.ram().code_lines(page).fetch_or(lines, Ordering::AcqRel) == 0 {
            self.epoch += 1;
            cpu.code_epoch = self.epoch;
            cpu.drop_write_tags(page);
        }
        Some(n)
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
            let block = &self.blocks[n as usize];
            let covered = lines(block.start % PAGE_SIZE, u64::from(block.len));
            if covered & hit == 0 {
                left |= covered;
                kept.push(n);
            } else {
                self.release(n);
            }
        }
        if !kept.is_empty() {
            self.pages.insert(page, kept);
        }
        cpu.bus.ram().code_lines(page).store(left, Ordering::Release);
    }

    fn drop_block(&mut self, n: u32) {
        let page = self.blocks[n as usize].start / PAGE_SIZE;
        if let Some(list) = self.pages.get_mut(&page) {
            list.retain(|m| *m != n);
        }
        self.release(n);
    }

    fn release(&mut self, n: u32) {
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

/// Executes instructions; `Err` with the index of the one that stopped.
#[inline(always)]
fn execute(cpu: &mut Cpu, ops: &[Insn]) -> Result<(), usize> {
    let last = ops.len() - 1;
    cpu.may_io = false;
    for (n, op) in ops[..last].iter().enumerate() {
        if (op.exec)(cpu, op).is_err() {
            return Err(n);
        }
    }
    cpu.may_io = true;
    cpu.publish_clock();
    (ops[last].exec)(cpu, &ops[last]).map_err(|_| last)
}
