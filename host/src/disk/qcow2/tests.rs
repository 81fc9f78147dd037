//! qcow2 against a disk in memory, and against images that something is wrong with.

use std::sync::{Arc, Mutex};

use super::check::Scan;
use super::*;
use crate::disk::Memory;

/// Random numbers (xorshift64*).
pub struct Dice(pub u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// A file in memory that outlives whoever has it open.
#[derive(Clone, Default)]
pub struct Shelf(pub Arc<Mutex<Vec<u8>>>);

impl Bytes for Shelf {
    fn len(&self) -> u64 {
        self.0.lock().unwrap().len() as u64
    }
    fn read(&mut self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let bytes = self.0.lock().unwrap();
        let from = (at as usize).min(bytes.len());
        let n = buf.len().min(bytes.len() - from);
        buf[..n].copy_from_slice(&bytes[from..from + n]);
        buf[n..].fill(0);
        Ok(())
    }
    fn write(&mut self, at: u64, data: &[u8]) -> io::Result<()> {
        let mut bytes = self.0.lock().unwrap();
        let end = at as usize + data.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[at as usize..end].copy_from_slice(data);
        Ok(())
    }
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.0.lock().unwrap().resize(len as usize, 0);
        Ok(())
    }
    /// What was discarded is anybody's guess.
    fn discard(&mut self, at: u64, len: u64) -> io::Result<()> {
        let mut bytes = self.0.lock().unwrap();
        let end = ((at + len) as usize).min(bytes.len());
        bytes[(at as usize).min(end)..end].fill(0xdd);
        Ok(())
    }
}

fn backing(bytes: &[u8]) -> Option<Box<dyn Store>> {
    (!bytes.is_empty()).then(|| Box::new(Memory(bytes.to_vec())) as Box<dyn Store>)
}

fn open(shelf: &Shelf, base: &[u8]) -> Result<Qcow2> {
    let mut file = shelf.clone();
    let header = Header::read(&mut file)?;
    Qcow2::open(Box::new(file), header, backing(base), false, false)
}

fn new(size: u64, cluster_bits: u32, base: &[u8]) -> (Shelf, Qcow2) {
    let shelf = Shelf::default();
    create(&mut shelf.clone(), size, cluster_bits, None).unwrap();
    let image = open(&shelf, base).unwrap();
    (shelf, image)
}

fn scan(shelf: &Shelf) -> Scan {
    let mut file = shelf.clone();
    let header = Header::read(&mut file).unwrap();
    Scan::new(&mut file, &header).unwrap()
}

/// It is what a file system check would call clean.
fn assert_clean(shelf: &Shelf) {
    let scan = scan(shelf);
    assert_eq!((scan.wrong, scan.low, scan.leaks, scan.bad_blocks), (0, 0, 0, false), "{:?}", scan.problems);
}

#[test]
fn random_writes_discards_and_flushes_read_back_as_from_a_plain_disk() {
    for seed in 0..40 {
        let mut dice = Dice::new(seed);
        let cluster_bits = [9, 10, 12, 16][dice.below(4) as usize];
        let size = 512 * (1 + dice.below(4000));
        let base: Vec<u8> = match dice.below(2) {
            0 => Vec::new(),
            _ => (0..512 * (1 + dice.below(5000))).map(|n| (n % 251) as u8).collect(),
        };
        let (shelf, mut image) = new(size, cluster_bits, &base);
        let mut disk = vec![0; size as usize];
        let n = disk.len().min(base.len());
        disk[..n].copy_from_slice(&base[..n]);
        for _ in 0..300 {
            let at = 512 * dice.below(size / 512);
            let most = if dice.below(4) == 0 { 300 } else { 8 };
            let len = (512 * (1 + dice.below(most))).min(size - at);
            match dice.below(20) {
                0..10 => {
                    let data = vec![dice.next() as u8; len as usize];
                    image.write(at, &data).unwrap();
                    disk[at as usize..][..len as usize].copy_from_slice(&data);
                }
                10..17 => {
                    let mut got = vec![1; len as usize];
                    image.read(at, &mut got).unwrap();
                    assert!(got == disk[at as usize..][..len as usize], "seed {seed}");
                }
                17 => {
                    image.discard(at, len).unwrap();
                    // What is there now is the image's to choose, and stays so.
                    image.read(at, &mut disk[at as usize..][..len as usize]).unwrap();
                }
                18 => image.flush().unwrap(),
                _ => {
                    drop(image);
                    assert_clean(&shelf);
                    image = open(&shelf, &base).unwrap();
                }
            }
        }
        let mut at = 0;
        while at < size {
            let (run, zero) = image.extent(at).unwrap();
            assert!(run > 0);
            assert!(!zero || disk[at as usize..(at + run).min(size) as usize].iter().all(|b| *b == 0), "seed {seed}");
            at += run;
        }
        let mut got = vec![1; size as usize];
        image.read(0, &mut got).unwrap();
        assert!(got == disk, "seed {seed}");
        drop(image);
        assert_clean(&shelf);
    }
}
