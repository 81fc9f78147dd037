use super::*;

const BUF: u64 = DATA + 0x4000;

/// Feature bits.
const RO: u64 = 1 << 5;
const F_FLUSH: u64 = 1 << 9;
const WCE: u64 = 1 << 11;
const F_DISCARD: u64 = 1 << 13;
const F_ZEROES: u64 = 1 << 14;

#[test]
fn drivers_of_either_age_read_write_and_flush() {
    for via in WAYS {
        let (mut r, disk) = disk_rig(via, &[]);
        r.start(F_FLUSH, 1);
        assert_eq!(r.config(0, 4), 100, "{via:?}");
        assert_eq!(r.does(IN, 7, &[(BUF, 512), (BUF + 0x1000, 1024)]), (0, 1537), "{via:?}");
        assert_eq!(r.memory(BUF, 512), disk.bytes()[7 * 512..8 * 512]);
        assert_eq!(r.memory(BUF + 0x1000, 1024), disk.bytes()[8 * 512..10 * 512]);
        r.dma().write(BUF, &[0x5a; 1024]);
        assert_eq!(r.does(OUT, 98, &[(BUF, 1024)]), (0, 1));
        assert_eq!((&disk.bytes()[98 * 512..], disk.flushes()), (&[0x5a; 1024][..], 0));
        assert_eq!(r.does(FLUSH, 0, &[]), (0, 1));
        assert_eq!(disk.flushes(), 1);
        assert_eq!(r.interrupt(), 1);
    }
}

#[test]
fn header_data_and_status_may_lie_in_any_pieces() {
    let (mut r, disk) = disk_rig(WAYS[3], &[]);
    r.start(F_FLUSH, 1);
    let mut header = vec![0; 16];
    (header[0], header[8]) = (1, 2);
    r.dma().write(BUF, &[&header[..], &[0x77; 512]].concat());
    r.add(
        0,
        &[
            (BUF, 3, false),
            (BUF + 3, 20, false),
            (BUF + 23, 505, false),
            (BUF + 0x800, 0, true),
            (BUF + 0x800, 1, true),
        ],
    );
    r.kick(0);
    assert_eq!(disk.bytes()[1024..1536], [0x77; 512]);
    assert_eq!(r.memory(BUF + 0x800, 1), [0]);
    header[0] = 0;
    r.dma().write(BUF, &header);
    r.add(0, &[(BUF, 16, false), (BUF + 0x1000, 500, true), (BUF + 0x2000, 13, true)]);
    r.kick(0);
    assert_eq!(r.memory(BUF + 0x1000, 500), [0x77; 500]);
    assert_eq!(r.memory(BUF + 0x2000, 14), [&[0x77; 12][..], &[0, 0]].concat());
}

#[test]
fn what_is_not_on_the_disk_or_no_whole_sectors_or_no_memory_is_refused() {
    let (mut r, disk) = disk_rig(WAYS[1], &[]);
    r.start(F_FLUSH, 1);
    let before = disk.bytes();
    for kind in [IN, OUT] {
        for (sector, at, len) in [
            (100, BUF, 512),
            (99, BUF, 1024),
            (u64::MAX, BUF, 512),
            (1 << 55, BUF, 512),
            (0, BUF, 511),
            (0, BUF, 513),
            (0, 0xe000_0000, 512),
            (0, emu::bench::Bench::RAM - 256, 512),
            (0, u64::MAX - 100, 512),
            (0, 0, 0xffff_fe00),
        ] {
            assert_eq!(r.does(kind, sector, &[(at, len)]), (1, 1), "{kind} {sector} {at:x} {len}");
        }
        assert_eq!(r.does(kind, 5, &[]).0, 0, "nothing");
    }
    assert_eq!(disk.bytes(), before);
    for kind in [2, 3, 10, DISCARD, 14, u32::MAX] {
        assert_eq!(r.does(kind, 0, &[(BUF, 512)]).0, 2, "{kind}");
    }
}

#[test]
fn sectors_can_be_larger() {
    let (mut r, _) = disk_rig(WAYS[3], &[("sectorsize", "1024/4096")]);
    r.start(F_FLUSH, 1);
    assert_eq!((r.config(0, 8), r.config(0x14, 4)), (100, 1024));
    assert_eq!((r.config(0x18, 1), r.config(0x1a, 2)), (2, 4), "physical sectors of four");
    assert_eq!(r.does(IN, 1, &[(BUF, 1024)]).0, 1);
    assert_eq!(r.does(IN, 2, &[(BUF, 512)]).0, 1);
    assert_eq!(r.does(IN, 2, &[(BUF, 1024)]).0, 0);
    let bench = emu::bench::Bench::new();
    for bad in ["0", "513", "512/", "4096/512", "x", "131072"] {
        let disk = emu::bench::BenchDisk::new(&bench, vec![0; 512]);
        let backends = emu::Backends { disks: vec![Some(Box::new(disk))], ..Default::default() };
        let params = emu::Params::new([("sectorsize", bad)]);
        let made = bench.machine.plug(&crate::virtio::blk::MODEL, bad, Some(emu::Bdf::new(3, 0)), &params, backends);
        assert!(made.is_err_and(|e| e.contains("sectorsize")), "{bad}");
    }
}

#[test]
fn the_serial_number_is_the_one_that_was_given() {
    let (mut r, _) = disk_rig(WAYS[0], &[("ser", "BHYVE-1234-5678-9ABC-DEF")]);
    r.start(0, 1);
    r.dma().write(BUF, &[0xee; 40]);
    assert_eq!(r.does(GET_ID, 0, &[(BUF, 20)]), (0, 21));
    assert_eq!(r.memory(BUF, 21), b"BHYVE-1234-5678-9ABC\xee");
    assert_eq!(r.does(GET_ID, 0, &[(BUF, 5)]), (0, 6));
    let (mut r, _) = disk_rig(WAYS[0], &[]);
    r.start(0, 1);
    r.does(GET_ID, 0, &[(BUF, 20)]);
    assert_eq!(r.memory(BUF, 20), b"virtio-blk\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn a_disk_that_fails_gives_errors_and_the_next_request_works() {
    let (mut r, disk) = disk_rig(WAYS[3], &[]);
    r.start(F_FLUSH, 1);
    disk.set_broken(true);
    for kind in [IN, OUT] {
        assert_eq!(r.does(kind, 0, &[(BUF, 512)]), (1, 1));
    }
    assert_eq!(r.does(FLUSH, 0, &[]), (1, 1));
    disk.set_broken(false);
    assert_eq!(r.does(IN, 0, &[(BUF, 512)]), (0, 513));
}

#[test]
fn a_write_protected_disk_says_so_and_is_not_written() {
    let bench_disk = |bench: &emu::bench::Bench| {
        let disk = emu::bench::BenchDisk::new(bench, vec![1; 5120]);
        disk.protect();
        emu::Backends { disks: vec![Some(Box::new(disk))], ..Default::default() }
    };
    let mut r = Rig::new(&crate::virtio::blk::MODEL, WAYS[3], &[], bench_disk);
    assert_eq!(r.offered() & (RO | WCE | F_DISCARD | F_ZEROES), RO);
    r.start(u64::MAX, 1);
    assert_eq!(r.does(OUT, 0, &[(BUF, 512)]).0, 1);
    assert_eq!(r.does(IN, 0, &[(BUF, 512)]).0, 0);
    assert_eq!(r.does(FLUSH, 0, &[]).0, 0);
}

#[test]
fn writes_are_on_the_disk_when_the_driver_cannot_flush_or_has_turned_the_cache_off() {
    for via in WAYS {
        let (mut r, disk) = disk_rig(via, &[]);
        r.start(0, 1);
        assert_eq!(r.does(OUT, 0, &[(BUF, 512)]), (0, 1));
        assert_eq!(disk.flushes(), 1, "{via:?}: it cannot");
        assert_eq!(r.does(IN, 0, &[(BUF, 512)]).0, 0);
        assert_eq!(disk.flushes(), 0, "a read");

        r.start(F_FLUSH | WCE, 1);
        assert_eq!(r.config(0x20, 1), 1);
        r.does(OUT, 0, &[(BUF, 512)]);
        assert_eq!(disk.flushes(), 0, "{via:?}: the cache is on");
        r.set_config(0x20, 1, 0);
        assert_eq!((r.config(0x20, 1), disk.flushes()), (0, 1), "what was in it is flushed");
        r.does(OUT, 0, &[(BUF, 512)]);
        assert_eq!(disk.flushes(), 1, "{via:?}: the cache is off");
        r.set_status(0);
        assert_eq!(r.config(0x20, 1), 1, "a reset turns it on");

        // The answer waits for the flush.
        r.start(0, 1);
        disk.hold();
        r.request(0, 0, OUT, 0, &[(BUF, 512)]);
        r.kick(0);
        disk.release();
        disk.hold();
        r.settle();
        assert_eq!(r.answer(0), 0xff);
        disk.release();
        r.settle();
        assert_eq!(r.answer(0), 0);
    }
}

/// The segment of a discard or of writing zeroes.
fn segment(r: &Rig, sector: u64, count: u32, flags: u32) {
    r.dma().write(BUF, &sector.to_le_bytes());
    r.dma().write_u32(BUF + 8, count);
    r.dma().write_u32(BUF + 12, flags);
}

#[test]
fn sectors_are_discarded_and_filled_with_zeroes() {
    for via in WAYS {
        let (mut r, disk) = disk_rig(via, &[]);
        r.start(F_FLUSH | F_DISCARD | F_ZEROES, 1);
        segment(&r, 10, 80, 0);
        assert_eq!(r.does(DISCARD, 0, &[(BUF, 16)]), (0, 1));
        let before = disk.bytes();
        assert_eq!(r.does(ZEROES, 0, &[(BUF, 16)]), (0, 1));
        assert_eq!(disk.bytes()[10 * 512..90 * 512], vec![0; 80 * 512]);
        assert_eq!(disk.bytes()[..10 * 512], before[..10 * 512]);
        assert_eq!(disk.bytes()[90 * 512..], before[90 * 512..]);
        segment(&r, 0, 1, 1);
        assert_eq!(r.does(ZEROES, 0, &[(BUF, 16)]).0, 0, "zeroes may be unmapped");
        assert_eq!(r.does(DISCARD, 0, &[(BUF, 16)]).0, 2, "a discard has no flag");
        segment(&r, 0, 1, 2);
        assert_eq!(r.does(ZEROES, 0, &[(BUF, 16)]).0, 2);
        for (sector, count) in [(99, 2), (0, u32::MAX), (u64::MAX, 1), (u64::MAX / 512, 8)] {
            segment(&r, sector, count, 0);
            for kind in [DISCARD, ZEROES] {
                assert_eq!(r.does(kind, 0, &[(BUF, 16)]).0, 1, "{sector} {count}");
            }
        }
        for len in [0, 15, 17, 32] {
            assert_eq!(r.does(DISCARD, 0, &[(BUF, len)]).0, 1, "a segment of {len} bytes");
        }
    }
    let (mut r, _) = disk_rig(WAYS[3], &[("nodelete", "true")]);
    assert_eq!(r.offered() & (F_DISCARD | F_ZEROES), F_ZEROES);
}

#[test]
fn zeroes_are_written_step_by_step_and_a_step_that_fails_ends_it() {
    let (mut r, disk) = disk_rig(WAYS[3], &[]);
    r.start(F_FLUSH | F_ZEROES, 1);
    segment(&r, 0, 100, 0);
    disk.hold();
    r.request(0, 0, ZEROES, 0, &[(BUF, 16)]);
    r.kick(0);
    let before = disk.bytes();
    disk.release();
    disk.set_broken(true);
    r.settle();
    assert_eq!(r.answer(0), 1);
    assert_eq!(disk.bytes()[..16 << 10], vec![0; 16 << 10]);
    assert_eq!(disk.bytes()[16 << 10..], before[16 << 10..]);
}

#[test]
fn a_disk_that_grows_tells_its_driver() {
    for via in WAYS {
        let (mut r, disk) = disk_rig(via, &[]);
        r.start(F_FLUSH, 1);
        let generation = if r.legacy() { 0 } else { r.get(0x15, 1) };
        r.cell.event(emu::Event::Medium(0));
        assert_eq!(r.interrupt(), 0, "it is as large as it was");
        disk.set_bytes(vec![9; 300 * 512 + 100]);
        r.cell.event(emu::Event::Medium(0));
        assert_eq!((r.interrupt(), r.config(0, 4)), (2, 300), "{via:?}");
        assert!(r.legacy() || r.get(0x15, 1) != generation);
        assert_eq!(r.does(IN, 299, &[(BUF, 512)]).0, 0);
    }
}

#[test]
fn several_queues_work_side_by_side() {
    for via in WAYS {
        let (mut r, disk) = disk_rig(via, &[]);
        r.start(F_FLUSH | 1 << 12, 4);
        assert_eq!(r.config(0x22, 2), 4);
        disk.hold();
        for n in 0..4 {
            r.request(n, n as u64, IN, n as u64, &[(BUF + 512 * n as u64, 512)]);
            r.notify(n);
        }
        r.settle();
        disk.release();
        r.settle();
        for n in 0..4 {
            assert_eq!((r.used(n), r.answer(n as u64)), (vec![(0, 513)], 0), "{via:?} {n}");
        }
        assert_eq!(r.memory(BUF, 2048), disk.bytes()[..2048]);
    }
}
