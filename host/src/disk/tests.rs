use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use emu::backend::{Completion, DiskOp, DiskRequest};
use emu::bench::Bench;
use emu::{Backends, Device, DeviceCell, DeviceState, DiskPort, Event, IoVec, ResetKind, State};

use super::*;

/// A file that goes when its owner does.
struct Scratch(PathBuf);

impl Scratch {
    fn new(contents: &[u8]) -> Scratch {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("bhyve-rs-disk-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, contents).unwrap();
        Scratch(path)
    }

    fn open(&self, read_only: bool) -> Result<Image> {
        Image::open(&self.0, ImageOptions { read_only, ..ImageOptions::default() })
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.0).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A device that only listens.
struct Ear(Arc<Mutex<Vec<Completion>>>, ());

impl Device for Ear {
    fn event(&mut self, event: Event) {
        if let Event::Done(completion) = event {
            self.0.lock().unwrap().push(completion);
        }
    }
    fn reset(&mut self, _: ResetKind) {}
    fn state(&mut self) -> &mut dyn State {
        &mut self.1
    }
}

struct Rig {
    bench: Bench,
    cell: Arc<DeviceCell>,
    port: DiskPort,
    /// Another handle on the same disk.
    other: DiskPort,
    heard: Arc<Mutex<Vec<Completion>>>,
}

fn rig(image: Image) -> Rig {
    let bench = Bench::new();
    let disk = image.attach(bench.machine.space.ram()).unwrap();
    let heard = Arc::<Mutex<Vec<Completion>>>::default();
    let (mut ports, ear) = ((None, None), heard.clone());
    let backends = Backends { disks: vec![Some(disk.share()), Some(disk)], ..Backends::default() };
    let cell = bench.machine.plug_with("ear", None, backends, |slot| {
        ports = (slot.disk(0), slot.disk(1));
        Ok(Box::new(Ear(ear, ())))
    });
    Rig { bench, cell: cell.unwrap(), port: ports.0.unwrap(), other: ports.1.unwrap(), heard }
}

impl Rig {
    /// Asks, and waits for the answers.
    fn ask(&mut self, ops: Vec<(u64, DiskOp)>) -> Vec<Completion> {
        for (tag, (offset, op)) in ops.into_iter().enumerate() {
            self.port.submit(DiskRequest { tag: tag as u64, offset, op });
        }
        // Saving waits for the host.
        self.cell.save();
        self.bench.advance(0);
        std::mem::take(&mut *self.heard.lock().unwrap())
    }

    fn one(&mut self, offset: u64, op: DiskOp) -> Option<Vec<u8>> {
        let mut answers = self.ask(vec![(offset, op)]);
        assert_eq!(answers.len(), 1);
        let answer = answers.remove(0);
        answer.ok.then_some(answer.data)
    }

    /// Every second stretch of `len` bytes from `at` on.
    fn stripes(&self, at: u64, len: u64, count: u64) -> IoVec {
        let (dma, mut iov) = (self.bench.dma(), IoVec::default());
        assert!((0..count).all(|n| dma.gather(&mut iov, at + 2 * n * len, len, true)));
        iov
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|n| (n.wrapping_mul(0x9e37_79b1) >> 13) as u8).collect()
}

#[test]
fn what_is_written_in_one_way_is_read_in_all_others() {
    let scratch = Scratch::new(&vec![0; 1 << 20]);
    for image in [scratch.open(false).unwrap(), Image::memory("m", vec![0; 1 << 20])] {
        let mut r = rig(image);
        assert_eq!((r.port.size(), r.port.read_only()), (1 << 20, false));
        // More stretches than one system call takes, and one that is longer than the bounce buffer.
        let data = pattern(700 * 512);
        for (n, part) in data.chunks(512).enumerate() {
            r.bench.dma().write(n as u64 * 1024, part);
        }
        let from = r.stripes(0, 512, 700);
        assert_eq!(r.one(4096, DiskOp::Write(from)), Some(vec![]));
        assert_eq!(r.one(4096, DiskOp::ReadBytes(700 * 512)).unwrap(), data);
        assert_eq!(r.one(0, DiskOp::WriteBytes(vec![7; 1024])), Some(vec![]));
        let to = r.stripes(0x40_000, 200_000, 2);
        assert_eq!(r.one(0, DiskOp::Read(to)), Some(vec![]));
        let mut seen = vec![0; 200_000];
        r.bench.dma().read(0x40_000, &mut seen);
        assert_eq!((&seen[..1024], &seen[4096..]), (&[7; 1024][..], &data[..200_000 - 4096]));
        assert_eq!(r.one(0, DiskOp::Flush), Some(vec![]));
    }
    assert_eq!(scratch.bytes()[4096..][..700 * 512], pattern(700 * 512));
}

#[test]
fn requests_are_done_in_the_order_in_which_they_were_made() {
    let scratch = Scratch::new(&[0; 512]);
    let mut r = rig(scratch.open(false).unwrap());
    let ops = (0..50).flat_map(|n| [(0, DiskOp::WriteBytes(vec![n; 512])), (0, DiskOp::ReadBytes(512))]);
    let answers = r.ask(ops.collect());
    assert_eq!(answers.len(), 100);
    for (n, read) in answers.iter().skip(1).step_by(2).enumerate() {
        assert_eq!(read.data, [n as u8; 512]);
    }
}

#[test]
fn what_comes_from_the_disk_is_in_the_log_of_written_pages() {
    let scratch = Scratch::new(&pattern(8192));
    let mut r = rig(scratch.open(true).unwrap());
    let ram = r.bench.machine.space.ram().clone();
    ram.set_dirty_log(true);
    let to = r.stripes(0x3000, 4096, 2);
    r.one(0, DiskOp::Read(to)).unwrap();
    assert_eq!(ram.harvest_dirty(&ram.blocks()[0]), [3, 5]);
}

#[test]
fn a_file_that_ends_within_a_sector_has_that_sector() {
    let scratch = Scratch::new(&pattern(1000));
    let mut r = rig(scratch.open(false).unwrap());
    assert_eq!(r.port.size(), 1024);
    let whole = [pattern(1000), vec![0; 24]].concat();
    assert_eq!(r.one(0, DiskOp::ReadBytes(1024)).unwrap(), whole);
    r.bench.dma().write(0, &[0xee; 1024]);
    let to = r.stripes(0, 100, 10);
    assert_eq!(r.one(24, DiskOp::Read(to)), Some(vec![]));
    let mut last = [0; 100];
    r.bench.dma().read(1800, &mut last);
    assert_eq!(last, whole[924..]);
    assert_eq!(r.one(512, DiskOp::WriteBytes(vec![9; 512])), Some(vec![]));
    assert_eq!(scratch.bytes(), [&pattern(512)[..], &[9; 512]].concat());
}

#[test]
fn an_image_belongs_to_one_writer_or_to_readers() {
    let scratch = Scratch::new(&[0; 512]);
    let refused = |read_only| {
        let error = format!("{:#}", scratch.open(read_only).err().expect("it is locked"));
        assert!(error.contains(&scratch.0.display().to_string()) && error.contains("in use"), "{error}");
    };
    let writer = scratch.open(false).unwrap();
    refused(false);
    refused(true);
    drop(writer);
    let readers = [scratch.open(true).unwrap(), scratch.open(true).unwrap()];
    refused(false);
    drop(readers);
    let machine = rig(scratch.open(false).unwrap());
    refused(false);
    drop(machine);
    scratch.open(false).unwrap();
}

#[test]
fn what_is_no_image_is_refused_by_name() {
    let empty = Scratch::new(&[]);
    for path in [empty.0.clone(), std::env::temp_dir(), empty.0.with_extension("missing")] {
        let error = format!("{:#}", Image::open(&path, ImageOptions::default()).err().expect("no image"));
        assert!(error.starts_with(&format!("{}: ", path.display())), "{error}");
    }
}

#[test]
fn what_cannot_be_done_fails_and_changes_nothing() {
    let scratch = Scratch::new(&pattern(4096));
    let mut r = rig(scratch.open(true).unwrap());
    assert_eq!(r.one(0, DiskOp::WriteBytes(vec![0; 512])), None, "it is read-only");
    assert_eq!(r.one(0, DiskOp::Flush), Some(vec![]));
    for offset in [3585, 4096, u64::MAX] {
        assert_eq!(r.one(offset, DiskOp::ReadBytes(512)), None);
    }
    assert_eq!(scratch.bytes(), pattern(4096));
    // Somebody cuts the file off under the machine.
    std::fs::write(&scratch.0, pattern(1024)).unwrap();
    assert_eq!(r.one(1024, DiskOp::ReadBytes(512)), None);
    let to = r.stripes(0, 1024, 2);
    assert_eq!(r.one(0, DiskOp::Read(to)), None);
    assert_eq!(r.one(0, DiskOp::ReadBytes(512)).unwrap(), pattern(512));
}

#[test]
fn after_cancel_nothing_is_heard_and_nothing_is_written() {
    let scratch = Scratch::new(&[0; 512]);
    let mut r = rig(scratch.open(false).unwrap());
    for n in 0..200 {
        r.port.submit(DiskRequest { tag: n, offset: 0, op: DiskOp::WriteBytes(vec![n as u8; 512]) });
    }
    r.port.cancel();
    let after = scratch.bytes();
    assert_eq!(r.ask(vec![]), []);
    assert_eq!(scratch.bytes(), after);
    assert_eq!(r.one(0, DiskOp::ReadBytes(512)).unwrap(), after, "and it works on");
}

#[test]
fn handles_of_a_disk_are_served_in_turn_and_cancelled_alone() {
    let scratch = Scratch::new(&[0; 512]);
    let mut r = rig(scratch.open(false).unwrap());
    for n in 0..50 {
        r.port.submit(DiskRequest { tag: n, offset: 0, op: DiskOp::WriteBytes(vec![n as u8; 512]) });
        r.other.submit(DiskRequest { tag: 100 + n, offset: 0, op: DiskOp::ReadBytes(512) });
    }
    let reads: Vec<_> = r.ask(vec![]).into_iter().filter(|c| c.tag >= 100).collect();
    assert_eq!(reads.len(), 50);
    reads.iter().for_each(|c| assert_eq!(c.data, [(c.tag - 100) as u8; 512]));
    for n in 0..200 {
        r.port.submit(DiskRequest { tag: n, offset: 0, op: DiskOp::WriteBytes(vec![0xee; 512]) });
        r.other.submit(DiskRequest { tag: 1000 + n, offset: 0, op: DiskOp::ReadBytes(512) });
    }
    r.port.cancel();
    let heard: Vec<u64> = r.ask(vec![]).iter().map(|c| c.tag).collect();
    assert_eq!(heard, (1000..1200).collect::<Vec<_>>());
}
