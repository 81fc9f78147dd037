use emu::bench::BenchDisk;
use emu::{Backends, Event, Unit};

use super::*;
use crate::virtio::scsi::MODEL;

/// Where requests have their headers, answers and data.
const HEAD: u64 = DATA;
const BUF: u64 = DATA + 0x8000;
const CONTROL: usize = 0;
const EVENTS: usize = 1;
const QUEUE: usize = 2;
const OUT: bool = false;
const IN: bool = true;

/// A disk as target 0, a CD-ROM drive as target 3, and both of them in the host's hands.
fn rig(params: &[(&str, &str)]) -> (Rig, BenchDisk, BenchDisk) {
    let mut kept = None;
    let mut r = Rig::new(&MODEL, WAYS[3], params, |bench| {
        let disk = BenchDisk::new(bench, (0..200 * 512u32).map(|n| (n ^ n >> 9) as u8).collect());
        let disc = BenchDisk::new(bench, (0..50 * 2048u32).map(|n| (n ^ n >> 11) as u8).collect());
        kept = Some((disk.clone(), disc.clone()));
        let boxed = |disk: &BenchDisk| Some(Box::new(disk.clone()) as Box<dyn emu::backend::Disk>);
        Backends {
            disks: vec![boxed(&disk), None, None, boxed(&disc)],
            units: vec![Unit::Disk, Unit::None, Unit::None, Unit::Cd],
            ..Backends::default()
        }
    });
    r.start(6, 4);
    let (disk, disc) = kept.unwrap();
    (r, disk, disc)
}

/// What came of a request.
#[derive(Debug, PartialEq)]
struct Answer {
    response: u8,
    status: u8,
    residual: u32,
    /// Key, code and qualifier.
    sense: [u8; 3],
}

const GOOD: Answer = Answer { response: 0, status: 0, residual: 0, sense: [0; 3] };

fn check(sense: [u8; 3]) -> Answer {
    Answer { status: 2, sense, ..GOOD }
}

fn lun(target: u8) -> [u8; 8] {
    [1, target, 0x40, 0, 0, 0, 0, 0]
}

/// Makes request number `n` available.
fn ask(r: &mut Rig, n: u64, lun: [u8; 8], cdb: &[u8], data: (u64, u32, bool)) {
    let (at, dma) = (HEAD + 0x200 * n, r.dma());
    dma.write(at, &[0; 51]);
    dma.write(at, &lun);
    dma.write(at + 8, &n.to_le_bytes());
    dma.write(at + 19, cdb);
    dma.write(at + 0x100, &[0xee; 108]);
    let mut chain = vec![(at, 51, OUT), (at + 0x100, 108, IN)];
    if data.1 > 0 {
        chain.insert(if data.2 { 2 } else { 1 }, data);
    }
    r.add(QUEUE, &chain);
}

fn answer(r: &Rig, n: u64) -> Answer {
    let at = HEAD + 0x200 * n + 0x100;
    let bytes: [u8; 26] = r.dma().fetch(at);
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let sense = if word(0) >= 14 { [bytes[14], bytes[24], bytes[25]] } else { [0; 3] };
    Answer { response: bytes[11], status: bytes[10], residual: word(4), sense }
}

fn does(r: &mut Rig, target: u8, cdb: &[u8], data: (u64, u32, bool)) -> Answer {
    ask(r, 0, lun(target), cdb, data);
    r.kick(QUEUE);
    assert_eq!(r.used(QUEUE).len(), 1, "{cdb:x?} is not answered");
    answer(r, 0)
}

/// A command that gets data: what they are.
fn get(r: &mut Rig, target: u8, cdb: &[u8], len: u32) -> Vec<u8> {
    r.dma().write(BUF, &vec![0xee; len as usize]);
    let Answer { response, status, residual, sense } = does(r, target, cdb, (BUF, len, IN));
    assert_eq!((response, status, sense), (0, 0, [0; 3]), "{cdb:x?}");
    r.memory(BUF, (len - residual) as usize)
}

fn put(r: &mut Rig, target: u8, cdb: &[u8], bytes: &[u8]) -> Answer {
    r.dma().write(BUF, bytes);
    does(r, target, cdb, (BUF, bytes.len() as u32, OUT))
}

/// Hears what both drives have to tell first.
fn settled(params: &[(&str, &str)]) -> (Rig, BenchDisk, BenchDisk) {
    let (mut r, disk, disc) = rig(params);
    for target in [0, 3] {
        assert_eq!(does(&mut r, target, &[0; 6], (0, 0, IN)), check([6, 0x29, 0]));
        assert_eq!(does(&mut r, target, &[0; 6], (0, 0, IN)), GOOD);
    }
    (r, disk, disc)
}

#[test]
fn who_is_there_says_so() {
    let (mut r, ..) = rig(&[("ser", "S123"), ("queues", "2")]);
    assert_eq!((r.config(0, 4), r.config(20, 4), r.config(24, 4), r.config(30, 2)), (2, 96, 32, 3));
    let disk = get(&mut r, 0, &[0x12, 0, 0, 0, 255, 0], 255);
    assert_eq!((disk[0], disk[1], &disk[8..24], disk.len()), (0, 0, &b"BHYVE-RSHARDDISK"[..], 36));
    let cd = get(&mut r, 3, &[0x12, 0, 0, 0, 36, 0], 36);
    assert_eq!((cd[0], cd[1], &cd[16..22]), (5, 0x80, &b"CD-ROM"[..]));
    assert_eq!(get(&mut r, 0, &[0x12, 1, 0, 0, 255, 0], 255), [0, 0, 0, 6, 0, 0x80, 0x83, 0xb0, 0xb1, 0xb2]);
    assert_eq!(get(&mut r, 0, &[0x12, 1, 0x80, 0, 255, 0], 255)[4..], *b"S123");
    assert!(get(&mut r, 0, &[0x12, 1, 0x83, 0, 255, 0], 255).ends_with(b"S123"));
    assert_eq!(get(&mut r, 0, &[0x12, 1, 0xb2, 0, 255, 0], 255)[5], 0xe0);
    assert_eq!(get(&mut r, 0, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0], 16)[..8], [0, 0, 0, 8, 0, 0, 0, 0]);
    assert_eq!(does(&mut r, 1, &[0; 6], (0, 0, IN)).response, 3, "no such target");
    ask(&mut r, 0, [1, 0, 0x40, 5, 0, 0, 0, 0], &[0x12, 0, 0, 0, 36, 0], (BUF, 36, IN));
    r.kick(QUEUE);
    assert_eq!((answer(&r, 0), r.memory(BUF, 1)), (GOOD, vec![0x7f]), "no such unit");
}

#[test]
fn disks_are_read_written_and_flushed_by_commands_of_every_length() {
    let (mut r, disk, _) = settled(&[]);
    let all = disk.bytes();
    assert_eq!(get(&mut r, 0, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], 8), [0, 0, 0, 199, 0, 0, 2, 0]);
    let long = get(&mut r, 0, &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0], 32);
    assert_eq!((long[7], long[10], long[14]), (199, 2, 0x80));
    let reads: [&[u8]; 4] = [
        &[0x08, 0, 0, 7, 2, 0],
        &[0x28, 0, 0, 0, 0, 7, 0, 0, 2, 0],
        &[0xa8, 0, 0, 0, 0, 7, 0, 0, 0, 2, 0, 0],
        &[0x88, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 2, 0, 0],
    ];
    for read in reads {
        assert!(get(&mut r, 0, read, 1024) == all[7 * 512..9 * 512], "{read:x?}");
        let mut write = read.to_vec();
        write[0] += 2;
        assert_eq!(put(&mut r, 0, &write, &[read[0]; 1024]), GOOD);
        assert!(disk.bytes()[7 * 512..9 * 512] == [read[0]; 1024], "{write:x?}");
        disk.set_bytes(all.clone());
    }
    assert_eq!(disk.flushes(), 0);
    assert_eq!(does(&mut r, 0, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], (0, 0, IN)), GOOD);
    assert_eq!(disk.flushes(), 1);
    assert_eq!(put(&mut r, 0, &[0x2a, 8, 0, 0, 0, 0, 0, 0, 1, 0], &[1; 512]), GOOD);
    assert_eq!(disk.flushes(), 1, "FUA");
    // The cache is turned off: what was cached goes to the disk, and so does all from now on.
    let select = [&[0, 0, 0, 0, 0x08, 18][..], &[0; 18]].concat();
    assert_eq!(put(&mut r, 0, &[0x15, 0x10, 0, 0, 24, 0], &select), GOOD);
    assert_eq!(put(&mut r, 0, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[1; 512]), GOOD);
    assert_eq!(disk.flushes(), 2);
    assert_eq!(get(&mut r, 0, &[0x1a, 8, 8, 0, 255, 0], 255)[6], 0);
    assert_eq!(get(&mut r, 0, &[0x5a, 8, 0x48, 0, 0, 0, 0, 0, 255, 0], 255)[10], 4, "it can be changed");
    let pages = get(&mut r, 0, &[0x1a, 0, 0x3f, 0, 255, 0], 255);
    let mut at = 12;
    while at < pages.len() {
        at += 2 + usize::from(pages[at + 1]);
    }
    assert_eq!((at, usize::from(pages[0]) + 1), (pages.len(), pages.len()), "whole pages");
}

#[test]
fn what_is_given_up_or_filled_is_whole_blocks_of_the_disk() {
    let (mut r, disk, _) = settled(&[]);
    let unmap = |ranges: &[(u64, u32)]| {
        let len = 16 * ranges.len() as u16;
        let mut list = [&(len + 6).to_be_bytes()[..], &len.to_be_bytes(), &[0; 4]].concat();
        for (lba, count) in ranges {
            list.extend(lba.to_be_bytes());
            list.extend(count.to_be_bytes());
            list.extend([0; 4]);
        }
        (vec![0x42, 0, 0, 0, 0, 0, 0, 0, list.len() as u8, 0], list)
    };
    let (cdb, list) = unmap(&[(3, 5), (100, 0), (100, 100)]);
    assert_eq!(put(&mut r, 0, &cdb, &list), GOOD);
    assert_eq!(disk.discards(), [(3 * 512, 5 * 512), (100 * 512, 100 * 512)]);
    let (cdb, list) = unmap(&[(0, 1), (199, 2)]);
    assert_eq!(put(&mut r, 0, &cdb, &list).sense, [5, 0x21, 0]);
    assert_eq!(put(&mut r, 0, &[0x93, 8, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 2, 0, 0], &[0; 512]), GOOD);
    assert_eq!(disk.discards(), [(9 * 512, 2 * 512)]);
    assert_eq!(put(&mut r, 0, &[0x41, 0, 0, 0, 0, 1, 0, 0, 150, 0], &[0x77; 512]), GOOD);
    assert!(disk.bytes()[512..151 * 512].iter().all(|b| *b == 0x77) && disk.bytes()[151 * 512 + 1] != 0x77);
    assert_eq!(does(&mut r, 0, &[0x93, 1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 2, 0, 0], (0, 0, OUT)), GOOD);
    assert!(disk.bytes()[9 * 512..11 * 512] == [0; 1024]);
    let (mut r, disk, _) = settled(&[("nodelete", "true")]);
    let (cdb, list) = unmap(&[(3, 5)]);
    assert_eq!(put(&mut r, 0, &cdb, &list).sense, [5, 0x20, 0]);
    assert_eq!(put(&mut r, 0, &[0x93, 8, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 2, 0, 0], &[0; 512]).sense, [5, 0x24, 0]);
    assert_eq!((disk.discards(), get(&mut r, 0, &[0x12, 1, 0xb2, 0, 255, 0], 255)[5]), (vec![], 0));
}

#[test]
fn what_cannot_be_is_refused_and_told_why() {
    let (mut r, disk, _) = settled(&[]);
    let read = |lba: u8, count: u8| [0x28, 0, 0, 0, 0, lba, 0, 0, count, 0];
    assert_eq!(does(&mut r, 0, &read(199, 2), (BUF, 1024, IN)), Answer { residual: 1024, ..check([5, 0x21, 0]) });
    assert_eq!(does(&mut r, 0, &read(0, 2), (BUF, 512, IN)).response, 1, "an overrun");
    assert_eq!(does(&mut r, 0, &read(0, 1), (BUF, 1024, IN)), Answer { residual: 512, ..GOOD });
    assert_eq!(does(&mut r, 0, &read(0, 1), (0xf000_0000, 512, IN)).response, 9, "no memory");
    assert_eq!(does(&mut r, 0, &[0xc7], (0, 0, IN)), check([5, 0x20, 0]));
    disk.set_broken(true);
    assert_eq!(does(&mut r, 0, &read(0, 1), (BUF, 512, IN)).sense, [3, 0x11, 0]);
    assert_eq!(put(&mut r, 0, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[0; 512]).sense, [3, 0x0c, 2]);
    disk.set_broken(false);
    disk.protect();
    assert_eq!(put(&mut r, 0, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[0; 512]).sense, [7, 0x27, 0]);
    assert_eq!(get(&mut r, 0, &[0x1a, 8, 8, 0, 255, 0], 255)[2] & 0x80, 0x80);
    // A stopped disk is flushed, and starts again.
    assert_eq!(does(&mut r, 0, &[0x1b, 0, 0, 0, 0, 0], (0, 0, IN)), GOOD);
    assert_eq!(does(&mut r, 0, &read(0, 1), (BUF, 512, IN)).sense, [2, 4, 2]);
    assert_eq!(does(&mut r, 0, &[0x1b, 0, 0, 0, 1, 0], (0, 0, IN)), GOOD);
    assert_eq!(does(&mut r, 0, &read(0, 1), (BUF, 512, IN)), GOOD);
}

/// A function of the control queue: its response.
fn manage(r: &mut Rig, function: u32, lun: [u8; 8], id: u64) -> u8 {
    let at = HEAD + 0x7000;
    r.dma().write(at, &[&[0; 4][..], &function.to_le_bytes(), &lun, &id.to_le_bytes(), &[0xee]].concat());
    r.add(CONTROL, &[(at, 24, OUT), (at + 24, 1, IN)]);
    r.kick(CONTROL);
    assert_eq!(r.used(CONTROL).len(), 1);
    r.memory(at + 24, 1)[0]
}

#[test]
fn an_aborted_task_is_over_and_the_others_are_done() {
    let (mut r, disk, _) = settled(&[]);
    disk.hold();
    for n in 1..=3u8 {
        let at = BUF + 0x1000 * u64::from(n);
        r.dma().write(at, &[n; 512]);
        ask(&mut r, n.into(), lun(0), &[0x2a, 0, 0, 0, 0, n, 0, 0, 1, 0], (at, 512, OUT));
    }
    r.kick(QUEUE);
    assert_eq!(manage(&mut r, 6, lun(0), 2), 10, "it is there");
    assert_eq!(manage(&mut r, 0, lun(0), 2), 0);
    assert_eq!((r.used(QUEUE).len(), answer(&r, 2).response), (1, 2));
    assert_eq!((manage(&mut r, 6, lun(0), 2), manage(&mut r, 7, lun(0), 0)), (0, 10));
    disk.release();
    r.settle();
    assert_eq!((r.used(QUEUE).len(), answer(&r, 1), answer(&r, 3)), (2, GOOD, GOOD));
    assert_eq!((disk.bytes()[512], disk.bytes()[3 * 512]), (1, 3));
    // A reset ends all of them, and the next command hears of it.
    disk.hold();
    ask(&mut r, 1, lun(0), &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], (BUF, 512, IN));
    r.kick(QUEUE);
    assert_eq!(manage(&mut r, 5, lun(0), 0), 0);
    assert_eq!((r.used(QUEUE).len(), answer(&r, 1).response), (1, 4));
    disk.release();
    r.settle();
    assert!(r.used(QUEUE).is_empty());
    assert_eq!(does(&mut r, 0, &[0; 6], (0, 0, IN)), check([6, 0x29, 3]));
    assert_eq!((manage(&mut r, 5, lun(9), 0), manage(&mut r, 5, [1, 0, 0x40, 1, 0, 0, 0, 0], 0)), (3, 12));
    assert_eq!(manage(&mut r, 2, lun(0), 0), 11);
}

#[test]
fn media_that_change_are_told_by_events_and_to_the_next_command() {
    let (mut r, disk, disc) = settled(&[]);
    let toc = get(&mut r, 3, &[0x43, 0, 0, 0, 0, 0, 0, 0, 20, 0], 20);
    assert_eq!((toc[3], toc[14], toc[19]), (1, 0xaa, 50));
    assert_eq!(get(&mut r, 3, &[0x28, 0, 0, 0, 0, 49, 0, 0, 1, 0], 2048), disc.bytes()[49 * 2048..]);
    assert_eq!(get(&mut r, 3, &[0x08, 0, 0, 1, 1, 0], 2048), disc.bytes()[2048..4096]);
    let event = |r: &mut Rig| {
        assert_eq!(r.used(EVENTS).len(), 1);
        (r.dma().read_u32(BUF + 0x5000), r.memory(BUF + 0x5005, 1)[0], r.dma().read_u32(BUF + 0x500c))
    };
    disc.set_bytes(vec![9; 2048]);
    r.cell.event(Event::Medium(3));
    assert!(r.used(EVENTS).is_empty(), "it has no buffer yet");
    r.add(EVENTS, &[(BUF + 0x5000, 16, IN)]);
    r.kick(EVENTS);
    assert_eq!(event(&mut r).0, 1 << 31, "an event was missed");
    assert_eq!(does(&mut r, 3, &[0; 6], (0, 0, IN)), check([6, 0x28, 0]));
    assert_eq!(get(&mut r, 3, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], 8)[..4], [0; 4]);
    for (bytes, seen) in [(4096, (3, 0, 0x092a)), (0, (1, 0, 2)), (102_400, (1, 0, 1))] {
        r.add(EVENTS, &[(BUF + 0x5000, 16, IN)]);
        r.kick(EVENTS);
        disk.set_bytes(vec![0; bytes]);
        r.cell.event(Event::Medium(0));
        assert_eq!(event(&mut r), seen);
        let response = if bytes == 0 { 3 } else { 0 };
        assert_eq!(does(&mut r, 0, &[0; 6], (0, 0, IN)).response, response);
    }
    // The tray opens unless it is locked.
    assert_eq!(does(&mut r, 3, &[0x1e, 0, 0, 0, 1, 0], (0, 0, IN)), GOOD);
    assert_eq!(does(&mut r, 3, &[0x1b, 0, 0, 0, 2, 0], (0, 0, IN)), check([5, 0x53, 2]));
    assert_eq!(does(&mut r, 3, &[0x1e, 0, 0, 0, 0, 0], (0, 0, IN)), GOOD);
    assert_eq!(does(&mut r, 3, &[0x1b, 0, 0, 0, 2, 0], (0, 0, IN)), GOOD);
    assert_eq!(does(&mut r, 3, &[0; 6], (0, 0, IN)), check([2, 0x3a, 2]));
}

#[test]
fn no_command_block_does_harm() {
    let mut dice = emu::bench::Rng::new(7);
    for case in 0..emu::bench::fuzz_cases() {
        let (mut r, ..) = rig(&[]);
        for _ in 0..40 {
            let mut cdb: Vec<u8> = (0..16).map(|_| dice.pick(&[0, 0, 0, 1, 8, 0xff, dice.0 as u8])).collect();
            const CODES: [u8; 24] = [
                0x00, 0x03, 0x08, 0x0a, 0x12, 0x15, 0x1a, 0x1b, 0x25, 0x28, 0x2a, 0x35, 0x41, 0x42, 0x43, 0x46, 0x4a,
                0x55, 0x5a, 0x88, 0x8a, 0x93, 0x9e, 0xa0,
            ];
            cdb[0] = if dice.one_in(4) { dice.next() as u8 } else { dice.pick(&CODES) };
            let len = dice.pick(&[0, 1, 8, 24, 512, 4096]);
            let target = dice.pick(&[0, 3, 3, 1]);
            ask(&mut r, 0, lun(target), &cdb, (BUF, len, dice.one_in(2)));
            r.kick(QUEUE);
            assert_eq!(r.used(QUEUE).len(), 1, "{case}: {cdb:x?}");
            let a = answer(&r, 0);
            assert!(a.response <= 3 && matches!(a.status, 0 | 2), "{case}: {cdb:x?}: {a:?}");
            assert!(a.status == 0 || a.sense[0] >= 2, "{case}: {cdb:x?}: {a:?}");
        }
    }
}
