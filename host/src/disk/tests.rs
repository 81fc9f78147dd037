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
    rig_with_control(image).0
}

fn rig_with_control(image: Image) -> (Rig, DiskControl) {
    let bench = Bench::new();
    let (disk, control) = image.attach_with_control(bench.machine.space.ram()).unwrap();
    let heard = Arc::<Mutex<Vec<Completion>>>::default();
    let (mut ports, ear) = ((None, None), heard.clone());
    let backends = Backends { disks: vec![Some(disk.share()), Some(disk)], ..Backends::default() };
    let cell = bench.machine.plug_with("ear", None, backends, |slot| {
        ports = (slot.disk(0), slot.disk(1));
        Ok(Box::new(Ear(ear, ())))
    });
    (Rig { bench, cell: cell.unwrap(), port: ports.0.unwrap(), other: ports.1.unwrap(), heard }, control)
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

fn refused(path: &std::path::Path, options: ImageOptions) -> String {
    let error = format!("{:#}", Image::open(path, options).err().expect("it cannot be opened"));
    assert!(error.starts_with(&format!("{}: ", path.display())), "{error}");
    error
}

#[test]
fn who_has_an_image_is_named() {
    let scratch = Scratch::new(&[0; 512]);
    let image = scratch.open(false).unwrap();
    let error = refused(&scratch.0, ImageOptions::default());
    assert!(error.contains("in use") && error.contains("open already"), "{error}");
    drop(image);
    // Another process, and only one (-F): what it starts would keep the lock.
    let mut other = match std::process::Command::new("flock").arg("-F").arg(&scratch.0).args(["sleep", "60"]).spawn() {
        Ok(other) => other,
        Err(_) => return eprintln!("skipped: no flock(1)"),
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while scratch.open(false).is_ok() && std::time::Instant::now() < deadline {}
    let error = refused(&scratch.0, ImageOptions::default());
    let _ = other.kill().and_then(|()| other.wait());
    if cfg!(target_os = "linux") {
        assert!(error.contains("process ") && error.contains("has it open"), "{error}");
    }
}

/// Two images that an overlay and its base are.
fn overlay(base: &[u8]) -> (Scratch, Scratch) {
    let base = Scratch::new(base);
    let top = Scratch::new(&[]);
    std::fs::remove_file(&top.0).unwrap();
    let name = base.0.file_name().unwrap().to_str().unwrap();
    tools::create(&top.0, Format::Qcow2, None, Some((name, Format::Auto))).unwrap();
    (base, top)
}

#[test]
fn an_overlay_keeps_its_backing_file_as_it_was_and_from_being_written_by_others() {
    let (base, top) = overlay(&pattern(300_000 / 512 * 512));
    let second = Scratch::new(&[]);
    std::fs::copy(&top.0, &second.0).unwrap();
    let mut r = rig(Image::open(&top.0, ImageOptions::default()).unwrap());
    let other = Image::open(&second.0, ImageOptions::default()).unwrap();
    assert!(refused(&base.0, ImageOptions::default()).contains("in use"));
    drop(other);
    assert_eq!(r.one(512, DiskOp::WriteBytes(vec![1; 512])), Some(vec![]));
    assert_eq!(
        r.one(0, DiskOp::ReadBytes(1536)).unwrap(),
        [&pattern(512)[..], &[1; 512], &pattern(1536)[1024..]].concat()
    );
    // Guest memory, too, is read and written in pieces of both.
    r.bench.dma().write(0, &[2; 100_000]);
    let from = r.stripes(0, 51_200, 2);
    assert_eq!(r.one(100 * 512, DiskOp::Write(from)), Some(vec![]));
    let to = r.stripes(0x4_0000, 76_800, 2);
    assert_eq!(r.one(0, DiskOp::Read(to)), Some(vec![]));
    let mut seen = vec![0; 76_800];
    r.bench.dma().read(0x4_0000, &mut seen);
    assert!(seen[1024..51_200] == pattern(51_200)[1024..] && seen[51_200..] == [2; 25_600]);
    assert_eq!(r.one(0, DiskOp::Flush), Some(vec![]));
    drop(r);
    assert_eq!(base.bytes(), pattern(300_000 / 512 * 512));
    assert_eq!(tools::check(&top.0, Format::Auto, false, &mut |_, _| true).unwrap().errors, 0);
}

#[test]
fn what_a_guest_writes_to_a_snapshot_is_forgotten() {
    let scratch = Scratch::new(&pattern(100_000 / 512 * 512));
    let options = ImageOptions { snapshot: true, ..ImageOptions::default() };
    let mut r = rig(Image::open(&scratch.0, options).unwrap());
    assert!(!r.port.read_only());
    r.bench.dma().write(0, &[5; 8192]);
    let from = r.stripes(0, 1024, 4);
    assert_eq!(r.one(1024, DiskOp::Write(from)), Some(vec![]));
    let seen = r.one(0, DiskOp::ReadBytes(8192)).unwrap();
    assert_eq!(seen, [&pattern(1024)[..], &[5; 4096], &pattern(8192)[5120..]].concat());
    let to = r.stripes(0x8000, 8192, 1);
    assert_eq!(r.one(0, DiskOp::Read(to)), Some(vec![]));
    let mut memory = vec![0; 8192];
    r.bench.dma().read(0x8000, &mut memory);
    assert_eq!(memory, seen);
    assert_eq!(scratch.bytes(), pattern(100_000 / 512 * 512));
}

#[test]
fn a_guest_cannot_make_another_format_of_a_disk_that_only_looked_raw() {
    let header = [&b"QFI\xfb\0\0\0\x03"[..], &[0; 504]].concat();
    for (format, allowed) in [(Format::Auto, false), (Format::Raw, true)] {
        let scratch = Scratch::new(&[0; 4096]);
        let mut r = rig(Image::open(&scratch.0, ImageOptions { format, ..ImageOptions::default() }).unwrap());
        assert_eq!(r.one(0, DiskOp::WriteBytes(header.clone())).is_some(), allowed);
        r.bench.dma().write(0, &header);
        let from = r.stripes(0, 512, 1);
        assert_eq!(r.one(0, DiskOp::Write(from)).is_some(), allowed);
        assert_eq!(r.one(512, DiskOp::WriteBytes(header.clone())), Some(vec![]));
        assert_eq!(r.one(0, DiskOp::WriteBytes(vec![0x55; 1024])), Some(vec![]));
    }
}

#[test]
fn backing_files_that_are_missing_or_circular_are_named() {
    let (base, top) = overlay(&pattern(4096));
    let name = base.0.display().to_string();
    std::fs::remove_file(&base.0).unwrap();
    let error = refused(&top.0, ImageOptions::default());
    assert!(error.contains(&format!("backing file {name}: ")) && error.contains("No such file"), "{error}");
    std::os::unix::fs::symlink(&top.0, &base.0).unwrap();
    let error = refused(&top.0, ImageOptions { read_only: true, ..ImageOptions::default() });
    assert!(error.contains("backing file"), "{error}");
    // Its backing file was said to be raw; two that are qcow2 go round.
    std::fs::remove_file(&base.0).unwrap();
    let back = top.0.file_name().unwrap().to_str().unwrap();
    std::fs::write(&base.0, pattern(4096)).unwrap();
    let middle = Scratch::new(&[]);
    std::fs::remove_file(&middle.0).unwrap();
    tools::create(&middle.0, Format::Qcow2, None, Some((back, Format::Qcow2))).unwrap();
    std::fs::remove_file(&top.0).unwrap();
    std::fs::hard_link(&middle.0, &top.0).unwrap();
    let error = refused(&middle.0, ImageOptions::default());
    assert!(error.contains("behind itself"), "{error}");
}

#[test]
fn images_that_are_cut_short_or_of_another_kind_are_refused() {
    let (_base, top) = overlay(&pattern(64 << 10));
    let whole = top.bytes();
    for len in [1, 4, 72, 104, 600, 65_536, 3 * 65_536 + 4] {
        std::fs::write(&top.0, &whole[..len]).unwrap();
        refused(&top.0, ImageOptions { format: Format::Qcow2, ..ImageOptions::default() });
    }
    let junk = Scratch::new(&pattern(9000));
    for format in [Format::Qcow2, Format::Vmdk, Format::Vhd, Format::Vhdx] {
        refused(&junk.0, ImageOptions { format, ..ImageOptions::default() });
    }
}

#[test]
fn whatever_bytes_a_foreign_image_has_nothing_panics() {
    let mut vhd = vec![0; 512];
    vhd[..8].copy_from_slice(b"conectix");
    let descriptor =
        "# Disk DescriptorFile\nparentCID=ffffffff\nRW 8 ZERO\nRW 16 FLAT \"x\" 0\nRW 9 SPARSE \"/etc/passwd\"\n";
    let mut sparse = vec![0; 4096];
    sparse[..4].copy_from_slice(b"KDMV");
    for (at, value) in [(4, 1), (8, 3), (12, 64), (20, 8), (44, 512), (56, 2)] {
        sparse[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
    }
    let mut vhdx = vec![0; 1 << 20];
    vhdx[..8].copy_from_slice(b"vhdxfile");
    let seeds = [vhd, descriptor.as_bytes().to_vec(), sparse, vhdx];
    for n in 0..1200 {
        let mut dice = qcow2::tests::Dice::new(n);
        let mut bytes = seeds[n as usize % 4].clone();
        for _ in 0..dice.below(8) {
            let at = dice.below(bytes.len().min(1024) as u64) as usize;
            bytes[at] = dice.next() as u8;
        }
        let scratch = Scratch::new(&bytes);
        let options = ImageOptions { read_only: true, ..ImageOptions::default() };
        if let Ok(mut image) = Image::open(&scratch.0, options) {
            let mut buf = [0; 4096];
            let size = image.size();
            for _ in 0..10 {
                let at = 512 * dice.below((size / 512).max(1));
                let len = (size - at.min(size)).min(4096) as usize;
                let _ = image.store.read(at, &mut buf[..len]);
            }
        }
    }
}

#[test]
fn a_medium_is_changed_behind_all_handles() {
    let (first, second) = (Scratch::new(&[1; 1024]), Scratch::new(&[2; 2048]));
    let bench = Bench::new();
    let (mut disk, control) = first.open(false).unwrap().attach_with_control(bench.machine.space.ram()).unwrap();
    let other = disk.share();
    assert!(!control.locked());
    disk.lock(true);
    assert!(control.locked());
    control.change(second.open(true).unwrap()).unwrap();
    assert_eq!((disk.size(), other.size(), other.read_only()), (2048, 2048, true));
    first.open(false).expect("it is free again");
    control.change(Image::empty("cd0")).unwrap();
    assert_eq!(other.size(), 0);
    drop((disk, other));
    assert!(control.change(Image::empty("cd0")).is_err());
}

/// A disk that fails as long as it is told to.
struct Moody(Arc<std::sync::atomic::AtomicBool>);

impl Store for Moody {
    fn size(&self) -> u64 {
        512
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read(&mut self, _: u64, buf: &mut [u8]) -> io::Result<()> {
        buf.fill(3);
        if self.0.load(Ordering::Relaxed) { Err(io::Error::from_raw_os_error(libc::ENOSPC)) } else { Ok(()) }
    }
    fn write(&mut self, _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_request_that_the_host_fails_is_told_or_waits_until_it_is_tried_again() {
    for (on_error, ends) in [(OnError::Report, "told"), (OnError::Pause, "retried"), (OnError::Pause, "cancelled")] {
        let fails = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let store = Box::new(Moody(fails.clone()));
        let image = Image { name: "moody".to_owned(), store, write_through: false, on_error };
        let (mut r, control) = rig_with_control(image);
        let (tell, stalled) = std::sync::mpsc::channel();
        control.on_stall(move || tell.send(()).unwrap());
        r.port.submit(DiskRequest { tag: 0, offset: 0, op: DiskOp::ReadBytes(512) });
        if on_error == OnError::Pause {
            stalled.recv().unwrap();
            control.retry();
            stalled.recv().expect("it fails again");
            fails.store(false, Ordering::Relaxed);
            match ends {
                "retried" => control.retry(),
                _ => r.port.cancel(),
            }
        }
        let answers: Vec<_> = r.ask(vec![]).into_iter().map(|answer| (answer.ok, answer.data.len())).collect();
        let expected: &[(bool, usize)] = match ends {
            "told" => &[(false, 0)],
            "retried" => &[(true, 512)],
            _ => &[],
        };
        assert_eq!(answers, expected, "{ends}");
        fails.store(false, Ordering::Relaxed);
        assert_eq!(r.one(0, DiskOp::ReadBytes(512)).unwrap(), [3; 512]);
    }
}

#[test]
fn past_the_cache_every_request_finds_its_way() {
    let scratch = Scratch::new(&pattern(1 << 20));
    let options = ImageOptions { direct: true, ..ImageOptions::default() };
    let mut r = match Image::open(&scratch.0, options) {
        Ok(image) => rig(image),
        // A memory file system.
        Err(e) => return assert!(format!("{e:#}").contains("cache"), "{e:#}"),
    };
    let mut disk = pattern(1 << 20);
    for (at, len) in [(0, 4096), (512, 512), (4096, 1 << 16), (8192 - 512, 1024), (65_536, 300_032)] {
        let data = vec![(at / 512) as u8 ^ 0x5a; len];
        assert_eq!(r.one(at as u64, DiskOp::WriteBytes(data.clone())), Some(vec![]));
        disk[at..at + len].copy_from_slice(&data);
    }
    // Aligned in memory and on disk, and not.
    for (at, memory) in [(4096, 0x1000), (4096, 0x1200), (512, 0x3000)] {
        let to = r.stripes(memory, 8192, 2);
        assert_eq!(r.one(at, DiskOp::Read(to)), Some(vec![]));
        let mut seen = vec![0; 8192];
        r.bench.dma().read(memory + 16_384, &mut seen);
        assert!(seen == disk[at as usize + 8192..][..8192], "{at}");
    }
    let from = r.stripes(0x1000, 8192, 1);
    let mut data = vec![0; 8192];
    r.bench.dma().read(0x1000, &mut data);
    assert_eq!(r.one(16_384, DiskOp::Write(from)), Some(vec![]));
    disk[16_384..24_576].copy_from_slice(&data);
    assert_eq!(r.one(0, DiskOp::Flush), Some(vec![]));
    assert!(r.one(0, DiskOp::ReadBytes(1 << 20)).unwrap() == disk);
    drop(r);
    assert!(scratch.bytes() == disk);
}

#[test]
fn copies_keep_holes_and_are_whole_or_not_there() {
    let scratch = Scratch::new(&[]);
    let file = std::fs::OpenOptions::new().write(true).open(&scratch.0).unwrap();
    file.set_len(64 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &pattern(100_000), 5 << 20).unwrap();
    let target = |ending: &str| scratch.0.with_extension(ending);
    let mut shown = 0;
    for (ending, format) in [("raw", Format::Raw), ("qcow2", Format::Qcow2)] {
        let path = target(ending);
        let from = (scratch.0.as_path(), Format::Auto);
        tools::convert(from, (&path, format), false, &mut |done, all| {
            shown = done * 100 / all;
            true
        })
        .unwrap();
        assert_eq!(shown, 100);
        let info = tools::info(&path, Format::Auto).unwrap();
        assert_eq!((info.format, info.size), (format, 64 << 20));
        assert!(info.used < 2 << 20, "{ending} takes {}", info.used);
        let back = target("back");
        tools::convert((&path, Format::Auto), (&back, Format::Raw), false, &mut |_, _| true).unwrap();
        assert!(std::fs::read(&back).unwrap() == scratch.bytes());
        let again = tools::convert(from, (&path, format), false, &mut |_, _| true);
        assert!(format!("{:#}", again.unwrap_err()).contains("exists"));
        assert_eq!(tools::resize(&path, Format::Auto, |old| Some(old * 2), false).unwrap().1, 128 << 20);
        let smaller = tools::resize(&path, Format::Auto, |_| Some(512), false);
        assert!(format!("{:#}", smaller.unwrap_err()).contains("--shrink"));
        let _ = (std::fs::remove_file(&path), std::fs::remove_file(&back));
    }
    // Whoever stops it finds nothing new, and what was to be replaced as it was.
    let (kept, from) = (target("kept"), (scratch.0.as_path(), Format::Auto));
    std::fs::write(&kept, b"kept").unwrap();
    for (path, replace) in [(target("out"), false), (kept.clone(), true)] {
        let stopped = tools::convert(from, (&path, Format::Raw), replace, &mut |done, _| done < 1 << 20);
        assert!(format!("{:#}", stopped.unwrap_err()).contains("interrupted"));
    }
    assert!(!target("out").exists() && std::fs::read(&kept).unwrap() == b"kept");
    let machine = Image::open(&kept, ImageOptions { format: Format::Raw, ..ImageOptions::default() }).unwrap();
    let in_use = tools::convert(from, (&kept, Format::Raw), true, &mut |_, _| true);
    assert!(format!("{:#}", in_use.unwrap_err()).contains("in use"));
    drop(machine);
    std::fs::set_permissions(&kept, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
    tools::convert(from, (&kept, Format::Raw), true, &mut |_, _| true).unwrap();
    assert!(std::fs::read(&kept).unwrap() == scratch.bytes());
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&kept).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o640, "as it was");
    std::fs::remove_file(&kept).unwrap();
    let bad = tools::convert((&target("none"), Format::Auto), (&target("out"), Format::Raw), false, &mut |_, _| true);
    assert!(bad.is_err() && !target("out").exists());
}

#[test]
fn a_device_that_takes_whole_sectors_only_gets_them_and_keeps_what_is_beside() {
    let scratch = Scratch::new(&pattern(64 << 10));
    let file = file::HostFile::open(&scratch.0, file::Access { write: true, direct: false }).unwrap().coarse(4096);
    let store = Box::new(raw::Raw::new(Box::new(file), false, false));
    let image = Image { name: "coarse".to_owned(), store, write_through: false, on_error: OnError::Report };
    let mut r = rig(image);
    let mut disk = pattern(64 << 10);
    for (at, len) in [(512, 512), (4096 - 512, 1024), (8192, 4096), (12_288 + 512, 12_288), (0, 512)] {
        let data = vec![(at / 512) as u8 ^ 0x5a; len];
        assert_eq!(r.one(at as u64, DiskOp::WriteBytes(data.clone())), Some(vec![]));
        disk[at..at + len].copy_from_slice(&data);
        assert!(r.one(0, DiskOp::ReadBytes(64 << 10)).unwrap() == disk, "{at}");
    }
    // Pieces of memory that are no whole sectors, and a place that is none.
    for (at, piece) in [(4096, 1024), (1536, 512), (0, 8192)] {
        let to = r.stripes(0x1000, piece, 4);
        assert_eq!(r.one(at, DiskOp::Read(to)), Some(vec![]));
        let from = r.stripes(0x1000, piece, 4);
        assert_eq!(r.one(32 << 10, DiskOp::Write(from)), Some(vec![]));
        disk.copy_within(at as usize..at as usize + 4 * piece as usize, 32 << 10);
    }
    assert_eq!(r.one(0, DiskOp::Flush), Some(vec![]));
    drop(r);
    assert!(scratch.bytes() == disk);
}

#[test]
fn what_no_image_can_be_in_is_refused_without_waiting_for_it() {
    let scratch = Scratch::new(&[]);
    let pipe = scratch.0.with_extension("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let cases = [(pipe.clone(), "named pipe"), (std::env::temp_dir(), "directory"), ("/dev/null".into(), "not a disk")];
    for (path, why) in cases {
        for read_only in [false, true] {
            let options = ImageOptions { read_only, ..ImageOptions::default() };
            assert!(refused(&path, options).contains(why));
        }
        let said = format!("{:#}", tools::info(&path, Format::Auto).unwrap_err());
        assert!(said.starts_with(&format!("{}: ", path.display())) && said.contains(why), "{said}");
    }
    std::fs::remove_file(&pipe).unwrap();
}

#[test]
fn a_block_device_gives_back_what_is_discarded() {
    let scratch = Scratch::new(&pattern(4 << 20));
    let losetup = |words: &[&str]| {
        let out = std::process::Command::new("losetup").args(words).output().ok().filter(|out| out.status.success());
        out.map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned())
    };
    let path = scratch.0.display().to_string();
    let Some(device) = losetup(&["--show", "-f", "-b", "4096", &path]) else {
        return eprintln!("skipped: no loop device");
    };
    let used = || std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&scratch.0).unwrap()) * 512;
    let before = used();
    let mut r = rig(Image::open(device.as_ref(), ImageOptions::default()).unwrap());
    let answers = [
        r.one(1 << 20, DiskOp::Discard(2 << 20)),
        r.one(512, DiskOp::WriteBytes(vec![7; 1024])),
        r.one(0, DiskOp::Flush),
        r.one(0, DiskOp::ReadBytes(8192)),
    ];
    drop(r);
    losetup(&["-d", &device]).unwrap();
    let mut start = pattern(8192);
    start[512..1536].fill(7);
    assert!(answers[..3].iter().all(|answer| *answer == Some(vec![])) && answers[3].as_ref() == Some(&start));
    assert!(used() + (1 << 20) < before, "{} of {before} are used", used());
    assert!(scratch.bytes()[..8192] == start);
}
