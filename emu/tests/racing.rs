//! Devices that walk descriptor chains while the guest rewrites them, and the memory map under them.
//!
//! The ring walker here is how a device should do it: each descriptor is fetched once into host memory and judged
//! there, the work of one kick is bounded and goes on with the next. What it then uses must follow from the bytes that
//! it fetched, whatever the memory holds by now; a walker that looks twice is caught by the same check. The map changes
//! as well, so that what was RAM when a request was made is none when it is carried out.
//!
//! The guest is a stream of random writes from a fixed seed, on threads of its own. `BHYVE_RS_FUZZ_CASES` (default 50)
//! says how many hundreds of kicks each walker gets.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use emu::bench::{Bench, Nobody, Rng, fuzz_cases};
use emu::{Backing, Device, DmaMem, Event, IoVec, Ram, RamAddr, ResetKind, Rights, Slot, State, Widths};

/// Descriptors in a table.
const ENTRIES: u64 = 64;
/// Bytes of a descriptor: address, length, flags, next.
const SIZE: u64 = 16;
const TABLE: u64 = 0x1000;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// Most descriptors that one kick looks at.
const BUDGET: usize = 40;
/// Most bytes that a request has.
const MAX: u64 = 0x8000;
/// What comes and goes in guest memory: a device's registers in the midst of what descriptors point to.
const HOLE: u64 = 0x9000;

/// A descriptor as it was fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Descriptor([u8; 16]);

impl Descriptor {
    fn new(addr: u64, len: u32, flags: u16, next: u16) -> Descriptor {
        let mut d = [0; 16];
        d[..8].copy_from_slice(&addr.to_le_bytes());
        d[8..12].copy_from_slice(&len.to_le_bytes());
        d[12..14].copy_from_slice(&flags.to_le_bytes());
        d[14..].copy_from_slice(&next.to_le_bytes());
        Descriptor(d)
    }
    fn addr(self) -> u64 {
        u64::from_le_bytes(self.0[..8].try_into().unwrap())
    }
    fn len(self) -> u64 {
        u32::from_le_bytes(self.0[8..12].try_into().unwrap()).into()
    }
    fn flags(self) -> u16 {
        u16::from_le_bytes([self.0[12], self.0[13]])
    }
    fn next(self) -> u64 {
        u64::from(u16::from_le_bytes([self.0[14], self.0[15]])) % ENTRIES
    }
}

/// A piece of a request: what was fetched, and what became of it.
struct Piece {
    fetched: Descriptor,
    memory: IoVec,
}

/// Walks the chain that starts at entry 0, a bounded number of descriptors a kick.
struct Walker {
    dma: DmaMem,
    ram: Arc<Ram>,
    /// Where the walk goes on.
    at: u64,
    chain: Vec<Piece>,
    /// Descriptors fetched by the present kick.
    fetched: usize,
    done: Arc<Mutex<Tally>>,
    /// Called before a piece is used; a guest that is quick enough gets in here.
    meanwhile: Box<dyn FnMut() + Send>,
    /// Does it wrong, by looking at the descriptor again when it comes to use it.
    looks_twice: bool,
}

#[derive(Default)]
struct Tally {
    requests: u64,
    bytes: u64,
    refused: u64,
}

impl Tally {
    /// Whether there were good requests and bad ones, `n` of each.
    fn both(&self, n: u64) -> bool {
        self.requests >= n && self.refused >= n && self.bytes > 0
    }
}

/// What a chain of pieces must obey. Only what was fetched may decide.
fn check(piece: &Piece) {
    let d = piece.fetched;
    assert_eq!(piece.memory.len(), d.len(), "the length is not the one that was judged");
    assert!(d.len() <= MAX);
    let mut at = d.addr();
    for (ram, len) in piece.memory.parts() {
        // RAM lies at 0, in the arena as in the machine.
        assert_eq!(ram.0, at, "the address is not the one that was judged");
        assert!(ram.0 + len <= Bench::RAM, "outside guest memory");
        at += len;
    }
}

impl Walker {
    fn fetch(&mut self, n: u64) -> Descriptor {
        Descriptor(self.dma.fetch(TABLE + SIZE * n))
    }

    /// Does what a kick asks for. `true` when the chain is not at its end.
    fn kick(&mut self) -> bool {
        self.fetched = 0;
        while self.fetched < BUDGET {
            let n = self.at;
            let mut d = self.fetch(n);
            self.fetched += 1;
            let total: u64 = self.chain.iter().map(|p| p.memory.len()).sum();
            let judged = d;
            let mut memory = IoVec::default();
            let fits = total + d.len() <= MAX && (self.chain.len() as u64) < ENTRIES;
            (self.meanwhile)();
            if self.looks_twice {
                d = self.fetch(n);
            }
            if !fits || !self.dma.gather(&mut memory, d.addr(), d.len(), d.flags() & WRITE != 0) {
                self.chain.clear();
                self.at = 0;
                self.done.lock().unwrap().refused += 1;
                return false;
            }
            let piece = Piece { fetched: judged, memory };
            check(&piece);
            self.chain.push(piece);
            self.at = d.next();
            if d.flags() & NEXT == 0 {
                self.complete();
                return false;
            }
        }
        true
    }

    /// Carries the request out, as a disk would, on memory that may be something else by now.
    fn complete(&mut self) {
        let mut buf = vec![0; MAX as usize];
        let mut tally = self.done.lock().unwrap();
        for piece in self.chain.drain(..) {
            for (at, len) in piece.memory.parts() {
                let part = &mut buf[..*len as usize];
                if piece.fetched.flags() & WRITE != 0 {
                    self.ram.write(*at, part)
                } else {
                    self.ram.read(*at, part)
                }
                tally.bytes += len;
            }
        }
        tally.requests += 1;
        self.at = 0;
    }
}

impl Device for Walker {
    fn event(&mut self, _: Event) {
        self.kick();
    }
    fn reset(&mut self, _: ResetKind) {}
    fn state(&mut self) -> &mut dyn State {
        &mut self.at
    }
}

fn walker(slot: &mut Slot, tally: &Arc<Mutex<Tally>>) -> Walker {
    Walker {
        dma: slot.dma(),
        ram: slot.machine().space.ram().clone(),
        at: 0,
        chain: Vec::new(),
        fetched: 0,
        done: tally.clone(),
        meanwhile: Box::new(|| ()),
        looks_twice: false,
    }
}

/// A descriptor that may be good, may be just past some edge, and may be anything.
fn descriptor(rng: &mut Rng) -> Descriptor {
    let addr = match rng.below(8) {
        0 => rng.next(),
        1 => Bench::RAM - rng.below(0x20) as u64,
        2 => HOLE - rng.below(0x1000) as u64,
        3 => u64::MAX - rng.below(0x20) as u64,
        _ => 0x4000 + rng.below(0x2_0000) as u64,
    };
    let len = if rng.below(8) == 0 { rng.next() as u32 } else { rng.below(0x1800) as u32 };
    Descriptor::new(addr, len, rng.below(4) as u16, rng.next() as u16)
}

#[test]
fn what_a_device_uses_is_what_it_judged_whatever_the_guest_writes_meanwhile() {
    let bench = Bench::new();
    let tally: Arc<Mutex<Tally>> = Arc::default();
    let cells: Vec<_> = (0..2).map(|_| bench.part(|slot| Box::new(walker(slot, &tally)))).collect();
    let space = bench.machine.space.clone();
    let registers = Backing::Io(Arc::new(Nobody), 0, Widths::BYTE);
    let hole = space.add_memory(HOLE, 0x1000, 1, Rights::ReadWrite, registers);
    let (over, written) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|s| {
        for seed in 1..3 {
            let (dma, over, written) = (bench.dma(), &over, &written);
            s.spawn(move || {
                let mut rng = Rng(seed);
                while !over.load(Ordering::Relaxed) {
                    let d = descriptor(&mut rng);
                    let at = TABLE + SIZE * rng.below(ENTRIES as usize) as u64;
                    // Whole or in halves, as guests do.
                    if rng.below(2) == 0 {
                        dma.write(at, &d.0);
                    } else {
                        dma.write(at + 8, &d.0[8..]);
                        dma.write(at, &d.0[..8]);
                    }
                    written.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let (map, stop) = (&space, &over);
        s.spawn(move || {
            let mut rng = Rng(9);
            while !stop.load(Ordering::Relaxed) {
                map.enable(hole, HOLE, rng.below(2) == 0);
                std::thread::yield_now();
            }
        });
        let kickers: Vec<_> = cells
            .iter()
            .map(|cell| {
                let (written, tally) = (&written, &tally);
                s.spawn(move || {
                    let n = 100 * fuzz_cases();
                    let mut kicks = 0;
                    // The host may run the guest's threads in long turns.
                    while kicks < n || written.load(Ordering::Relaxed) < n || !tally.lock().unwrap().both(n / 100) {
                        cell.event(Event::Doorbell(0, 0));
                        kicks += 1;
                    }
                })
            })
            .collect();
        let ended: Vec<_> = kickers.into_iter().map(|k| k.join()).collect();
        over.store(true, Ordering::Relaxed);
        assert!(ended.iter().all(Result::is_ok), "a walker did what the guest wrote afterwards");
    });
}

#[test]
fn a_chain_that_leads_back_to_itself_ends_and_costs_no_more_than_its_budget_a_kick() {
    let bench = Bench::new();
    let mut kicked = None;
    bench.part(|slot| {
        kicked = Some(walker(slot, &Arc::default()));
        Box::new(walker(slot, &Arc::default()))
    });
    let mut w = kicked.unwrap();
    bench.dma().write(TABLE, &Descriptor::new(0x5000, 1, NEXT, 0).0);
    assert!(w.kick(), "there is more, for the next time");
    assert_eq!((w.fetched, w.chain.len()), (BUDGET, BUDGET));
    assert!(!w.kick(), "longer than the table is refused");
    assert_eq!(w.fetched + BUDGET, ENTRIES as usize + 1);
    assert_eq!(w.done.lock().unwrap().refused, 1);
}

/// A guest that always gets between the look at a descriptor and its use.
fn raced(looks_twice: bool) -> std::thread::Result<u64> {
    let bench = Bench::new();
    let tally: Arc<Mutex<Tally>> = Arc::default();
    let dma = bench.dma();
    dma.write(TABLE, &Descriptor::new(0x5000, 0x10, 0, 0).0);
    let racer = dma.clone();
    let cell = bench.part(|slot| {
        let mut w = walker(slot, &tally);
        w.looks_twice = looks_twice;
        w.meanwhile = Box::new(move || racer.write(TABLE, &Descriptor::new(0x6000, 0x7fff_ffff, 0, 0).0));
        Box::new(w)
    });
    // Far more RAM than the descriptor was judged to reach, so that the second look is believed.
    let space = &bench.machine.space;
    let more = space.add_memory(Bench::RAM, 1 << 31, 0, Rights::ReadWrite, Backing::Ram(RamAddr(0)));
    space.enable(more, Bench::RAM, true);
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        cell.event(Event::Doorbell(0, 0));
        tally.lock().unwrap().bytes
    }))
}

#[test]
fn a_walker_that_looks_twice_would_be_caught() {
    assert_eq!(raced(false).unwrap(), 0x10);
    let why = raced(true).unwrap_err();
    let text = why.downcast_ref::<String>().expect("an assertion");
    assert!(text.contains("not the one that was judged"), "{text}");
}
