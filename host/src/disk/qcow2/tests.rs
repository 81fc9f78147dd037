//! qcow2 against a disk in memory, and against images that something is wrong with.

use std::sync::{Arc, Mutex};

use super::check::{COPIED, PACKED, Scan};
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

impl Shelf {
    pub fn contents(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

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

/// A clean image with something in it, small clusters, and no backing file.
fn sample() -> Vec<u8> {
    let (shelf, mut image) = new(300 << 10, 9, &[]);
    for n in 0..40 {
        image.write(n * 7 * 512, &[n as u8; 512]).unwrap();
    }
    drop(image);
    shelf.contents()
}

fn shelf(bytes: Vec<u8>) -> Shelf {
    Shelf(Arc::new(Mutex::new(bytes)))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// The sample with a 64-bit word changed, and the byte where that is.
fn with(place: impl Fn(&[u8]) -> usize, value: impl Fn(u64) -> u64) -> Shelf {
    let mut bytes = sample();
    let at = place(&bytes);
    let new = value(u64_at(&bytes, at));
    bytes[at..at + 8].copy_from_slice(&new.to_be_bytes());
    shelf(bytes)
}

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

fn l1(bytes: &[u8]) -> usize {
    u64_at(bytes, 40) as usize
}

fn l2(bytes: &[u8]) -> usize {
    (u64_at(bytes, l1(bytes)) & OFFSET) as usize
}

#[test]
fn a_damaged_table_is_refused_by_writers_told_to_readers_and_never_written() {
    let second = |bytes: &[u8]| u64_at(bytes, l2(bytes) + 7 * 8);
    let cases: [(&str, Shelf); 8] = [
        ("reserved bits", with(l1, |old| old + 512 * 3 / 2)),
        ("outside the file", with(l1, |_| COPIED | 1 << 40)),
        ("reserved bits", with(l1, |old| old | 1 << 60)),
        ("outside the file", with(l2, |_| COPIED | 1 << 40)),
        ("reserved bits", with(l2, |old| old | 2)),
        // An entry that leads to the L1 table, one that leads to its own table, and two that lead to one cluster.
        ("where something else is", with(l2, |_| COPIED | l1(&sample()) as u64)),
        ("where something else is", with(l2, |_| COPIED | l2(&sample()) as u64)),
        ("where something else is", with(l2, |_| second(&sample()))),
    ];
    for (what, shelf) in cases {
        let before = shelf.contents();
        let error = format!("{:#}", open(&shelf, &[]).err().expect(what));
        assert!(error.contains("damaged") && error.contains(what), "{what}: {error}");
        // A reader gets what is there, or an error.
        let header = Header::read(&mut shelf.clone()).unwrap();
        let mut image = Qcow2::open(Box::new(shelf.clone()), header, None, true, false).unwrap();
        let mut buf = [0; 512];
        let read = image.read(0, &mut buf);
        assert!(read.is_ok() || read.unwrap_err().to_string().contains("damaged"));
        assert!(image.write(0, &buf).is_err());
        drop(image);
        assert!(shelf.contents() == before, "{what}: it was written");
    }
}

#[test]
fn wrong_refcounts_are_put_right_when_asked_or_when_the_image_says_so() {
    let block = |bytes: &[u8]| u64_at(bytes, u64_at(bytes, 48) as usize) as usize;
    for case in 0..3 {
        let mut bytes = sample();
        let at = block(&bytes);
        match case {
            0 => bytes[at..at + 64].fill(0),
            // No refcount block at all.
            1 => {
                let table = u64_at(&bytes, 48) as usize;
                bytes[table..table + 512].fill(0);
            }
            _ => bytes[at..at + 64].fill(0x11),
        }
        let shelf = shelf(bytes);
        let found = scan(&shelf);
        assert_eq!((found.low > 0, found.leaks > 0, found.wrong), (case < 2, case == 2, 0));
        if case < 2 {
            let error = format!("{:#}", open(&shelf, &[]).err().expect("they are too low"));
            assert!(error.contains("check --repair"), "{error}");
            let mut file = shelf.clone();
            let mut header = Header::read(&mut file).unwrap();
            match case {
                0 => drop(Qcow2::open(Box::new(file), header, None, false, true).unwrap()),
                _ => {
                    header.incompatible |= header::DIRTY;
                    header.update(&mut file).unwrap();
                    drop(open(&shelf, &[]).unwrap());
                }
            }
        } else {
            drop(open(&shelf, &[]).unwrap());
        }
        assert_clean(&shelf);
        assert_eq!(Header::read(&mut shelf.clone()).unwrap().incompatible, 0);
        let mut image = open(&shelf, &[]).unwrap();
        let mut got = [0; 512];
        for n in 0..40 {
            image.read(n * 7 * 512, &mut got).unwrap();
            assert_eq!(got, [n as u8; 512]);
        }
    }
}

#[test]
fn an_image_grows_and_shrinks_and_what_was_cut_off_does_not_come_back() {
    let base = vec![7; 400 << 10];
    let (shelf, mut image) = new(100 << 10, 9, &base);
    image.write(99 << 10, &[1; 1024]).unwrap();
    image.resize(300 << 10).unwrap();
    let mut got = vec![9; 200 << 10];
    image.read(100 << 10, &mut got).unwrap();
    assert!(got.iter().all(|byte| *byte == 0), "the backing file is behind the old disk only");
    image.write(299 << 10, &[2; 1024]).unwrap();
    image.resize((99 << 10) + 512).unwrap();
    image.resize(64 << 20).unwrap();
    image.read(99 << 10, &mut got[..1024]).unwrap();
    assert_eq!((&got[..512], &got[512..1024]), (&[1; 512][..], &[0; 512][..]));
    image.write((64 << 20) - 512, &[3; 512]).unwrap();
    drop(image);
    assert_clean(&shelf);
    assert_eq!(Header::read(&mut shelf.clone()).unwrap().size, 64 << 20);
}

#[test]
fn a_guest_that_never_flushes_does_not_make_the_file_grow_without_end() {
    let (shelf, mut image) = new(64 << 10, 9, &[]);
    for n in 0..20_000 {
        image.write(n % 8 * 512, &[n as u8; 512]).unwrap();
        image.discard(n % 8 * 512, 512).unwrap();
    }
    drop(image);
    assert!(shelf.len() < 2 << 20, "{} bytes", shelf.len());
    assert_clean(&shelf);
}

#[test]
fn a_host_without_room_fails_the_write_and_nothing_else() {
    /// Has no room behind this byte.
    struct Small(Shelf, u64);
    impl Bytes for Small {
        fn len(&self) -> u64 {
            self.0.len()
        }
        fn read(&mut self, at: u64, buf: &mut [u8]) -> io::Result<()> {
            self.0.read(at, buf)
        }
        fn write(&mut self, at: u64, data: &[u8]) -> io::Result<()> {
            if at + data.len() as u64 > self.1 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.0.write(at, data)
        }
        fn sync(&mut self) -> io::Result<()> {
            Ok(())
        }
        fn set_len(&mut self, len: u64) -> io::Result<()> {
            self.0.set_len(len)
        }
    }
    let (shelf, image) = new(512 << 10, 9, &[]);
    drop(image);
    let mut file = shelf.clone();
    let header = Header::read(&mut file).unwrap();
    let mut image = Qcow2::open(Box::new(Small(file, 100 << 10)), header, None, false, false).unwrap();
    let done: Vec<bool> = (0..512).map(|n| image.write(n * 1024, &[n as u8; 1024]).is_ok()).collect();
    assert!(done[0] && !done[511]);
    let _ = image.flush();
    let mut got = [0; 1024];
    for n in 0..512 {
        image.read(n * 1024, &mut got).unwrap();
        assert!(got == [n as u8; 1024] || !done[n as usize], "write {n} is lost");
    }
    drop(image);
    let scan = scan(&shelf);
    assert_eq!((scan.wrong, scan.low), (0, 0), "{:?}", scan.problems);
}

#[test]
fn whatever_bytes_an_image_has_nothing_panics_and_damage_does_not_spread() {
    let good = sample();
    for seed in 0..3000 {
        let mut dice = Dice::new(seed);
        let mut bytes = good.clone();
        for _ in 0..1 + dice.below(6) {
            // Mostly where the tables are.
            let range = if dice.below(3) == 0 { bytes.len() } else { 4096.min(bytes.len()) };
            let at = dice.below(range as u64) as usize;
            match dice.below(4) {
                0 => bytes[at] = dice.next() as u8,
                1 => bytes[at] ^= 1 << dice.below(8),
                2 => bytes.truncate(at.max(1)),
                _ => {
                    let at = at & !7;
                    let value =
                        [0, u64::MAX, 512 * dice.below(300), COPIED | (512 * dice.below(300)), PACKED | dice.next()];
                    let value = value[dice.below(5) as usize];
                    if at + 8 <= bytes.len() {
                        bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
                    }
                }
            }
        }
        let shelf = shelf(bytes);
        let Ok(header) = Header::read(&mut shelf.clone()) else { continue };
        let _ = Scan::new(&mut shelf.clone(), &header);
        for read_only in [true, false] {
            let opened = Qcow2::open(Box::new(shelf.clone()), header.clone(), None, read_only, false);
            let Ok(mut image) = opened else { continue };
            let size = image.size().min(1 << 20);
            let mut buf = vec![0; 4096];
            for _ in 0..20 {
                let at = 512 * dice.below((size / 512).max(1));
                let len = (size - at.min(size)).min(4096) as usize;
                let _ = image.read(at, &mut buf[..len]);
                if len > 0 {
                    let _ = image.extent(at);
                }
                if !read_only {
                    image.write(at, &buf[..len]).unwrap();
                }
            }
            drop(image);
            if !read_only {
                assert_clean(&shelf);
            }
        }
    }
}
