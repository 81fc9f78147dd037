//! What a power cut leaves of an image.
//!
//! [`Tape`] stands for an image's file and records what reaches it. After a cut the file has everything that was
//! written before the last sync that came to its end, and of what was written later any sectors, in any combination: a
//! host and its disk may write in any order, and tear a write between sectors. What the guest flushed must be there,
//! every sector must have something that the guest once wrote there and did not replace before its last flush, and the
//! image must be sound.
//!
//! That the proof proves something is itself proved: with one kind of sync left out, or made early, it fails.

use std::io;
use std::sync::{Arc, Mutex};

use super::file::Bytes;
use super::open::Format;
use super::qcow2::tests::{Dice, Shelf};
use super::qcow2::{Backing, Header, Qcow2, Scan, create};
use super::raw::Raw;
use super::{Memory, SECTOR, Store};

#[derive(Default)]
struct Recorded {
    /// What the file has now.
    now: Vec<u8>,
    /// What it had at the last sync.
    synced: Vec<u8>,
    /// What was written since: a sector's place and bytes, in order.
    later: Vec<(u64, Vec<u8>)>,
    /// Writes and syncs so far, and after how many the power goes.
    steps: u64,
    cut: u64,
    /// Syncs so far, and which of them do nothing.
    syncs: u64,
    lazy: Option<fn(u64) -> bool>,
}

/// A file that remembers.
#[derive(Clone, Default)]
struct Tape(Arc<Mutex<Recorded>>);

impl Tape {
    fn new(bytes: Vec<u8>, cut: u64, lazy: Option<fn(u64) -> bool>) -> Tape {
        let recorded = Recorded { now: bytes.clone(), synced: bytes, cut, lazy, ..Recorded::default() };
        Tape(Arc::new(Mutex::new(recorded)))
    }

    /// What is there when the power is back.
    fn after_cut(&self, dice: &mut Dice) -> Vec<u8> {
        let tape = self.0.lock().unwrap();
        let mut bytes = tape.synced.clone();
        // Sometimes nearly nothing arrives, sometimes nearly everything.
        let share = dice.below(101);
        for (at, sector) in &tape.later {
            if dice.below(100) < share {
                put(&mut bytes, *at, sector);
            }
        }
        bytes
    }
}

fn put(bytes: &mut Vec<u8>, at: u64, data: &[u8]) {
    let end = at as usize + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[at as usize..end].copy_from_slice(data);
}

impl Recorded {
    fn step(&mut self) -> io::Result<()> {
        if self.steps >= self.cut {
            return Err(io::Error::other("the power is gone"));
        }
        self.steps += 1;
        Ok(())
    }
}

impl Bytes for Tape {
    fn len(&self) -> u64 {
        self.0.lock().unwrap().now.len() as u64
    }

    fn read(&mut self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let tape = self.0.lock().unwrap();
        let from = (at as usize).min(tape.now.len());
        let n = buf.len().min(tape.now.len() - from);
        buf[..n].copy_from_slice(&tape.now[from..from + n]);
        buf[n..].fill(0);
        Ok(())
    }

    fn write(&mut self, at: u64, data: &[u8]) -> io::Result<()> {
        let mut tape = self.0.lock().unwrap();
        let went_out = tape.step();
        // The write in which the power goes arrives in part.
        let mut done = 0;
        while done < data.len() {
            let place = at + done as u64;
            let n = ((SECTOR - place % SECTOR) as usize).min(data.len() - done);
            tape.later.push((place, data[done..done + n].to_vec()));
            done += n;
        }
        if went_out.is_ok() {
            put(&mut tape.now, at, data);
        }
        went_out
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut tape = self.0.lock().unwrap();
        tape.step()?;
        let number = tape.syncs;
        tape.syncs += 1;
        if !tape.lazy.is_some_and(|lazy| lazy(number)) {
            tape.synced = tape.now.clone();
            tape.later.clear();
        }
        Ok(())
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        let mut tape = self.0.lock().unwrap();
        tape.now.resize(len as usize, 0);
        Ok(())
    }

    fn discard(&mut self, at: u64, len: u64) -> io::Result<()> {
        // As bad as it can be: what was discarded is gone at once, or later, or not.
        self.write(at, &vec![0xdd; len as usize])
    }
}

/// What is under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Raw,
    Qcow2,
    Overlay,
}

/// What is behind an overlay: in each sector its number.
fn base(sectors: u64) -> Vec<u8> {
    (0..sectors).flat_map(|n| sector(n, 0)).collect()
}

/// A sector's contents: its place, and how manieth write it was.
fn sector(place: u64, version: u64) -> Vec<u8> {
    let words = [place ^ 0x5a5a, version];
    (0..64).flat_map(|n| words[n % 2].to_le_bytes()).collect()
}

fn open(kind: Kind, mut file: Box<dyn Bytes>, base: &[u8]) -> Result<Box<dyn Store>, String> {
    if kind == Kind::Raw {
        return Ok(Box::new(Raw::new(file, false, false)));
    }
    let backing = (kind == Kind::Overlay).then(|| Box::new(Memory(base.to_vec())) as Box<dyn Store>);
    let header = Header::read(&mut *file).map_err(|e| format!("{e:#}"))?;
    Qcow2::open(file, header, backing, false, false)
        .map(|q| Box::new(q) as Box<dyn Store>)
        .map_err(|e| format!("{e:#}"))
}

/// One machine's life until the power goes, and what is found afterwards. An error is what was lost.
fn live(seed: u64, kind: Kind, lazy: Option<fn(u64) -> bool>) -> Result<(), String> {
    let mut dice = Dice::new(seed);
    let sectors = 64 + dice.below(1500);
    let base = base(if kind == Kind::Overlay { sectors } else { 0 });
    let mut bytes = vec![0; (sectors * SECTOR) as usize];
    if kind != Kind::Raw {
        let shelf = Shelf::default();
        // Small clusters bring refcount blocks and tables that grow.
        let bits = [9, 9, 10, 12][dice.below(4) as usize];
        let backing = Backing { name: "base".to_owned(), format: Some(Format::Raw.to_string()) };
        let backing = (kind == Kind::Overlay).then_some(backing);
        create(&mut shelf.clone(), sectors * SECTOR, bits, backing).map_err(|e| format!("{e:#}"))?;
        bytes = shelf.contents();
    }
    let cut = 20 + dice.below(1500);
    let tape = Tape::new(bytes, cut, lazy);
    let mut store = open(kind, Box::new(tape.clone()), &base)?;
    // Of each sector: the version that was flushed last, and the oldest that may be found. 0: never written.
    let mut newest = vec![0; sectors as usize];
    let mut flushed = newest.clone();
    let mut loose = vec![None; sectors as usize];
    let mut version = 0;
    loop {
        let at = dice.below(sectors);
        let len = (1 + dice.below(if seed.is_multiple_of(3) { 40 } else { 6 })).min(sectors - at);
        let range = at as usize..(at + len) as usize;
        let done = match dice.below(100) {
            0..70 => {
                version += 1;
                let data: Vec<u8> = (at..at + len).flat_map(|n| sector(n, version)).collect();
                newest[range].fill(version);
                store.write(at * SECTOR, &data)
            }
            70..80 => {
                // From now on anything may be there, until it is written and flushed.
                loose[range].fill(Some(version));
                store.discard(at * SECTOR, len * SECTOR)
            }
            80..98 => store.flush().map(|()| {
                flushed.clone_from(&newest);
                let written = |(loose, newest): (&mut Option<u64>, &u64)| *loose = loose.filter(|v| newest <= v);
                loose.iter_mut().zip(&newest).for_each(written);
            }),
            _ => {
                // The machine is shut down and started again: closing writes the tables, and says no error.
                drop(store);
                match open(kind, Box::new(tape.clone()), &base) {
                    Ok(again) => {
                        store = again;
                        Ok(())
                    }
                    Err(_) if tape.0.lock().unwrap().steps >= cut => break,
                    Err(e) => return Err(format!("it did not open: {e}")),
                }
            }
        };
        if done.is_err() {
            break;
        }
    }
    if tape.0.lock().unwrap().steps < cut {
        return Err("the power was not cut".to_owned());
    }
    let found = Shelf(Arc::new(Mutex::new(tape.after_cut(&mut dice))));
    if kind != Kind::Raw {
        let header = Header::read(&mut found.clone()).map_err(|e| format!("{e:#}"))?;
        let scan = Scan::new(&mut found.clone(), &header).map_err(|e| e.to_string())?;
        if scan.wrong > 0 || scan.low > 0 || scan.bad_blocks {
            return Err(format!("{} too low, {:?}", scan.low, scan.problems));
        }
    }
    let mut store = open(kind, Box::new(found.clone()), &base)?;
    for n in 0..sectors {
        let mut got = vec![0; SECTOR as usize];
        store.read(n * SECTOR, &mut got).map_err(|e| e.to_string())?;
        if loose[n as usize].is_some() {
            continue;
        }
        let (old, new) = (flushed[n as usize], newest[n as usize]);
        let untouched = || if kind == Kind::Overlay { sector(n, 0) } else { vec![0; SECTOR as usize] };
        let fits = (old..=new).any(|v| got == if v == 0 { untouched() } else { sector(n, v) });
        if !fits {
            return Err(format!("sector {n} has {:02x?}, and had version {old} when it was flushed", &got[..16]));
        }
    }
    // Whoever opens it to write leaves nothing to complain about.
    drop(store);
    if kind != Kind::Raw {
        let header = Header::read(&mut found.clone()).map_err(|e| format!("{e:#}"))?;
        let scan = Scan::new(&mut found.clone(), &header).map_err(|e| e.to_string())?;
        if scan.leaks > 0 || scan.wrong > 0 || scan.low > 0 {
            return Err(format!("after it was opened: {} leaks, {:?}", scan.leaks, scan.problems));
        }
    }
    Ok(())
}

/// Seeds for each format: a few, or as many as `$BHYVE_RS_POWER_CUTS` says.
fn seeds() -> u64 {
    std::env::var("BHYVE_RS_POWER_CUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(20)
}

#[test]
fn what_was_flushed_survives_a_power_cut_and_the_image_is_sound() {
    for kind in [Kind::Raw, Kind::Qcow2, Kind::Overlay] {
        for seed in 0..seeds() {
            if let Err(why) = live(seed, kind, None) {
                panic!("{kind:?}, seed {seed}: {why}");
            }
        }
    }
}

#[test]
fn with_a_sync_left_out_it_does_not() {
    let lost = |kind, lazy| (0..60).filter(|seed| live(*seed, kind, Some(lazy)).is_err()).count();
    for kind in [Kind::Raw, Kind::Qcow2, Kind::Overlay] {
        assert!(lost(kind, |_| true) > 6, "{kind:?} without any sync");
        assert!(lost(kind, |n| n % 3 == 1) > 0, "{kind:?} without every third");
    }
}
