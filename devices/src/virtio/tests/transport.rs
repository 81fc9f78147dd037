use super::*;

use emu::{DeviceState, ResetKind};

const NEEDS_RESET: u8 = 0x40;

#[test]
fn each_version_has_the_identity_and_the_registers_that_its_drivers_look_for() {
    for (via, ids, revision, subsystem) in
        [(WAYS[0], 0x1001_1af4, 0, 2), (WAYS[1], 0x1001_1af4, 0, 2), (WAYS[3], 0x1042_1af4, 1, 0x1042)]
    {
        let (r, _) = disk_rig(via, &[]);
        let b = &r.bench;
        assert_eq!((b.config_read(0, 4), b.config_read(8, 1), b.config_read(0x2e, 2)), (ids, revision, subsystem));
        assert_eq!(b.config_read(0x10, 4) & 1 != 0, via != WAYS[3], "{via:?}: ports");
        let mut parts = Vec::new();
        let mut at = b.config_read(0x34, 1) as u16;
        while at != 0 {
            if b.config_read(at, 1) == 9 {
                assert!(b.config_read(at + 3, 1) == 5 || b.config_read(at + 4, 1) == 4, "all in BAR 4");
                parts.push(b.config_read(at + 3, 1));
            }
            at = b.config_read(at + 1, 1) as u16;
        }
        parts.sort_unstable();
        assert_eq!(parts, if via == WAYS[0] { vec![] } else { vec![1, 2, 3, 4, 5] }, "{via:?}");
    }
}

#[test]
fn old_drivers_see_what_fits_32_bits_and_new_ones_version_1() {
    let (mut legacy, _) = disk_rig(WAYS[1], &[]);
    let (mut modern, _) = disk_rig(WAYS[2], &[]);
    let (old, new) = (legacy.offered(), modern.offered());
    assert_eq!(new & 0xffff_ffff, old & !(1 << 27), "ANY_LAYOUT is for old drivers");
    assert_eq!(new >> 32, 1);
    modern.put(0, 4, 2);
    assert_eq!(modern.get(4, 4), 0, "features 64 to 95");
}

#[test]
fn features_that_were_not_offered_and_a_driver_without_version_1_are_refused() {
    for features in [1 << 40 | VERSION_1, 1 << 2] {
        let (mut r, _) = disk_rig(WAYS[2], &[]);
        r.set_status(3);
        for n in 0..2 {
            r.put(8, 4, n);
            r.put(0xc, 4, features >> (32 * n) & 0xffff_ffff);
        }
        r.set_status(11);
        assert_eq!(r.status(), 3, "{features:x}");
    }
    // What was accepted stays as it is.
    let (mut r, _) = disk_rig(WAYS[2], &[]);
    r.negotiate(EVENT_IDX);
    r.put(8, 4, 0);
    r.put(0xc, 4, 0);
    assert_eq!(r.get(0xc, 4), EVENT_IDX);
}

#[test]
fn a_new_driver_is_served_from_driver_ok_on_and_an_old_one_from_the_address_of_its_queue_on() {
    for via in WAYS {
        let (mut r, _) = disk_rig(via, &[]);
        r.negotiate(0);
        r.queue(0);
        r.request(0, 0, IN, 1, &[(DATA + 0x1000, 512)]);
        r.kick(0);
        assert_eq!(r.used(0).len(), usize::from(r.legacy()), "{via:?}");
        let ok = r.status() | 4;
        r.set_status(ok);
        r.settle();
        assert_eq!(r.answer(0), 0, "{via:?}: what was there is served without another kick");
    }
}

#[test]
fn queues_with_sizes_and_places_that_cannot_be_stay_off() {
    let (mut r, _) = disk_rig(WAYS[3], &[]);
    r.negotiate(0);
    r.put(0x16, 2, 0);
    for (at, width, bad, good) in
        [(0x18, 2, 3, 64), (0x18, 2, 0, 64), (0x20, 8, 8, 0x1000), (0x28, 8, 1, 0x2000), (0x30, 8, 2, 0x3000)]
    {
        r.put(at, width, bad);
        r.put(0x1c, 2, 1);
        assert_eq!(r.get(0x1c, 2), 0, "{bad} at {at:x}");
        r.put(at, width, good);
    }
    r.put(0x18, 2, 512);
    assert_eq!(r.get(0x18, 2), 64, "more than there are");
    r.put(0x1c, 2, 1);
    r.put(0x20, 4, 0x9000);
    assert_eq!((r.get(0x1c, 2), r.get(0x20, 8)), (1, 0x1000), "a queue that is on does not move");
    r.put(0x16, 2, 99);
    r.put(0x1c, 2, 1);
    assert_eq!((r.get(0x18, 2), r.get(0x1c, 2)), (0, 0), "a queue that is not there");
}

#[test]
fn a_batch_of_requests_gives_one_interrupt() {
    for via in WAYS {
        for features in [0, EVENT_IDX] {
            let (mut r, disk) = disk_rig(via, &[]);
            r.start(features, 1);
            disk.hold();
            (0..10).for_each(|n| _ = r.request(0, n, IN, n, &[(DATA + 0x1_0000 + 512 * n, 512)]));
            r.kick(0);
            assert_eq!(r.used(0).len(), 0);
            disk.release();
            r.settle();
            assert_eq!(r.used(0).len(), 10);
            assert_eq!(r.bench.edges(INTA), 1, "{via:?} {features:x}");
            assert_eq!(r.interrupt(), 1);
            assert_eq!(r.memory(DATA + 0x1_0000, 5120), disk.bytes()[..5120]);
        }
    }
}

#[test]
fn a_driver_is_interrupted_when_it_asked_for_it() {
    for via in WAYS {
        let (mut r, _) = disk_rig(via, &[]);
        r.start(0, 1);
        let flags = r.rings[0].avail;
        r.dma().write(flags, &[1, 0]);
        r.does(FLUSH, 0, &[]);
        assert_eq!(r.interrupt(), 0, "the flag");
        r.dma().write(flags, &[0, 0]);
        r.does(FLUSH, 0, &[]);
        assert_eq!(r.interrupt(), 1);

        r.start(EVENT_IDX, 1);
        let event = r.rings[0].avail + 4 + 2 * u64::from(r.rings[0].size);
        // At the second from now on.
        r.dma().write(event, &[1, 0]);
        r.does(FLUSH, 0, &[]);
        assert_eq!(r.interrupt(), 0, "the index");
        r.does(FLUSH, 0, &[]);
        assert_eq!(r.interrupt(), 1);
        r.does(FLUSH, 0, &[]);
        assert_eq!(r.interrupt(), 0, "it is behind");
    }
}

#[test]
fn the_device_says_when_it_wants_kicks() {
    let (mut r, _) = disk_rig(WAYS[3], &[]);
    r.start(EVENT_IDX, 1);
    let event = r.rings[0].used + 4 + 8 * u64::from(r.rings[0].size);
    for n in 1..4u16 {
        r.does(FLUSH, 0, &[]);
        assert_eq!(u16::from_le_bytes(r.dma().fetch(event)), n, "for the next one");
    }
    r.start(0, 1);
    r.does(FLUSH, 0, &[]);
    assert_eq!(r.memory(r.rings[0].used, 2), [0, 0], "kicks are welcome again");
}

#[test]
fn each_queue_and_the_configuration_have_messages_of_their_own() {
    for via in WAYS {
        let (mut r, disk) = disk_rig(via, &[("queues", "2")]);
        r.use_msix(3);
        r.negotiate(1 << 12);
        // With MSI-X the device's own registers follow its vectors.
        let at = if r.legacy() { 4 } else { 0 };
        assert_eq!(r.config(at, 4), 100);
        (0..2).for_each(|n| r.queue(n));
        r.set_vectors(2, &[0, 1]);
        r.set_status(if r.legacy() { 7 } else { 15 });
        for n in 0..2 {
            r.request(n, n as u64, FLUSH, 0, &[]);
            r.kick(n);
            assert_eq!((r.messages(), r.bench.edges(INTA)), (vec![n as u32], 0), "{via:?}");
        }
        disk.set_bytes(vec![0; 200 * 512]);
        r.cell.event(emu::Event::Medium(0));
        assert_eq!((r.messages(), r.config(at, 4)), (vec![2], 200));
        r.set_status(0);
        r.use_msix(3);
        let none = if r.legacy() { r.inp(0x14, 2) as u64 } else { r.get(0x10, 2) };
        assert_eq!(none, 0xffff, "a reset forgets vectors");
        if r.legacy() {
            r.out(0x14, 2, 3)
        } else {
            r.put(0x10, 2, 3)
        }
        let none = if r.legacy() { r.inp(0x14, 2) as u64 } else { r.get(0x10, 2) };
        assert_eq!(none, 0xffff, "there is no such vector");
    }
}

#[test]
fn without_msi_x_one_message_is_for_all() {
    for via in WAYS {
        let (mut r, disk) = disk_rig(via, &[("queues", "2"), ("msix", "false")]);
        assert_eq!(r.capability(0x11), None);
        r.start(1 << 12, 2);
        r.request(1, 1, FLUSH, 0, &[]);
        r.kick(1);
        assert_eq!((r.interrupt(), r.messages()), (1, vec![]), "until there is a message, the wire");
        let at = r.capability(5).expect("MSI");
        r.bench.config_write(4, 2, 7);
        r.bench.config_write(at + 4, 4, 0xfee0_0000);
        r.bench.config_write(at + 12, 2, 77);
        r.bench.config_write(at + 2, 2, 1);
        assert_eq!(r.config(0, 4), 100, "the legacy registers stay where they are");
        for n in 0..2 {
            r.request(n, n as u64, FLUSH, 0, &[]);
            r.kick(n);
            assert_eq!((r.messages(), r.isr()), (vec![77], 1), "{via:?}");
        }
        disk.set_bytes(vec![0; 200 * 512]);
        r.cell.event(emu::Event::Medium(0));
        assert_eq!((r.messages(), r.isr(), r.bench.irq(INTA)), (vec![77], 3 - 1, false));
    }
}

#[test]
fn tables_of_descriptors_are_as_good_as_chains() {
    for via in WAYS {
        let (mut r, disk) = disk_rig(via, &[]);
        r.start(INDIRECT, 1);
        let pieces: Vec<(u64, u32)> = (0..100).map(|n| (DATA + 0x1_0000 + 1024 * n, 512)).collect();
        let buffers = r.buffers(0, IN, 0, &pieces);
        r.add_table(0, DATA + 0x8000, &buffers);
        r.kick(0);
        assert_eq!((r.answer(0), r.used(0)), (0, vec![(0, 51201)]));
        for n in 0..100u64 {
            assert_eq!(r.memory(DATA + 0x1_0000 + 1024 * n, 512), disk.bytes()[512 * n as usize..][..512]);
        }
    }
}

type Wrong = (&'static str, fn(&mut Rig));

/// What a driver can get wrong.
fn wrongs() -> Vec<Wrong> {
    fn desc(r: &mut Rig, flags: u16, next: u16, len: u32) {
        let at = r.rings[0].desc;
        r.write_desc(at, DATA, len, flags, next);
        r.offer(0, 0);
    }
    vec![
        ("a head outside", |r| r.offer(0, 9999)),
        ("a chain that leads outside", |r| desc(r, NEXT, 9999, 16)),
        ("a loop", |r| desc(r, NEXT, 0, 16)),
        ("read after written", |r| {
            r.add(0, &[(DATA, 16, true), (DATA, 16, false)]);
        }),
        ("a table of no whole entries", |r| desc(r, TABLE_OF_ITS_OWN, 0, 17)),
        ("an empty table", |r| desc(r, TABLE_OF_ITS_OWN, 0, 0)),
        ("a huge table", |r| desc(r, TABLE_OF_ITS_OWN, 0, 0x8000_0000)),
        ("a table and a chain", |r| desc(r, TABLE_OF_ITS_OWN | NEXT, 1, 32)),
        ("a table in a table", |r| {
            r.write_desc(DATA, DATA, 16, TABLE_OF_ITS_OWN, 0);
            desc(r, TABLE_OF_ITS_OWN, 0, 16);
        }),
        ("a loop in a table", |r| {
            r.write_desc(DATA, DATA, 16, NEXT, 0);
            desc(r, TABLE_OF_ITS_OWN, 0, 16);
        }),
        ("a table that leads outside", |r| {
            r.write_desc(DATA, DATA, 16, NEXT, 7);
            desc(r, TABLE_OF_ITS_OWN, 0, 16);
        }),
        ("an index that has jumped", |r| {
            let at = r.rings[0].avail + 2;
            r.dma().write(at, &[0xff, 0x7f]);
        }),
        ("no place for the answer", |r| {
            r.add(0, &[(DATA, 16, false)]);
        }),
        ("a short header", |r| {
            r.add(0, &[(DATA, 15, false), (DATA, 1, true)]);
        }),
    ]
}

#[test]
fn a_driver_that_breaks_the_rules_is_told_and_gets_nothing_until_it_resets() {
    for via in WAYS {
        for (name, wrong) in wrongs() {
            let (mut r, _) = disk_rig(via, &[]);
            r.start(INDIRECT, 1);
            wrong(&mut r);
            r.kick(0);
            assert_eq!(r.status() & NEEDS_RESET, NEEDS_RESET, "{via:?}: {name}");
            assert_eq!(r.interrupt(), 2, "{via:?}: {name}");
            r.request(0, 0, FLUSH, 0, &[]);
            r.kick(0);
            assert_eq!(r.answer(0), 0xff, "{via:?}: {name}");
            r.start(0, 1);
            assert_eq!(r.does(FLUSH, 0, &[]).0, 0, "{via:?}: after {name}");
        }
    }
}

#[test]
fn more_requests_than_descriptors_are_not_taken() {
    let (mut r, disk) = disk_rig(WAYS[3], &[]);
    r.start(0, 1);
    disk.hold();
    let head = r.request(0, 0, FLUSH, 0, &[]);
    for _ in 0..200 {
        (0..10).for_each(|_| r.offer(0, head));
        r.kick(0);
    }
    assert_eq!(r.status() & NEEDS_RESET, NEEDS_RESET);
    disk.release();
    r.settle();
    assert!(r.cell.save().state.to_string().len() < 20_000);
}

#[test]
fn a_kick_does_a_bounded_piece_of_work_and_the_rest_follows() {
    let (mut r, _) = disk_rig(WAYS[0], &[]);
    r.start(0, 1);
    let buffers = r.buffers(0, GET_ID, 0, &[(DATA + 0x4000, 20)]);
    let head = r.add(0, &buffers);
    (1..200).for_each(|_| r.offer(0, head));
    r.notify(0);
    assert_eq!(r.used(0).len(), 0, "the processor that kicks goes on");
    r.bench.machine.timers.run_due();
    assert_eq!(r.used(0).len(), 64);
    r.settle();
    assert_eq!(r.used(0).len(), 136);
}

#[test]
fn a_reset_forgets_what_is_under_way() {
    for via in WAYS {
        for hard in [false, true] {
            let (mut r, disk) = disk_rig(via, &[]);
            r.start(0, 1);
            disk.hold();
            r.request(0, 0, IN, 0, &[(DATA + 0x4000, 512)]);
            r.kick(0);
            if hard {
                r.bench.machine.reset(ResetKind::System)
            } else {
                r.set_status(0)
            }
            disk.release();
            r.settle();
            assert_eq!(r.memory(DATA + 0x4000, 512), [0; 512], "{via:?}");
            assert_eq!(r.answer(0), 0xff);
            if hard {
                r.power_on();
            }
            assert_eq!(r.status(), 0);
            r.start(0, 1);
            assert_eq!(r.does(IN, 3, &[(DATA + 0x4000, 512)]), (0, 513));
        }
    }
}

#[test]
fn a_queue_that_an_old_driver_takes_back_is_off() {
    let (mut r, disk) = disk_rig(WAYS[0], &[]);
    r.start(0, 1);
    r.out(8, 4, 0);
    assert_eq!(r.inp(8, 4), 0);
    r.request(0, 0, FLUSH, 0, &[]);
    r.kick(0);
    assert_eq!(r.answer(0), 0xff);
    r.queue(0);
    assert_eq!(r.does(FLUSH, 0, &[]).0, 0);
    // With something under way there.
    disk.hold();
    r.request(0, 0, IN, 0, &[(DATA + 0x4000, 512)]);
    r.kick(0);
    r.out(8, 4, 0);
    disk.release();
    r.settle();
    assert_eq!((r.status(), r.memory(DATA + 0x4000, 512)), (0, vec![0; 512]));
}

#[test]
fn configuration_space_leads_to_the_registers() {
    let (mut r, _) = disk_rig(WAYS[3], &[]);
    let mut at = r.bench.config_read(0x34, 1) as u16;
    while (r.bench.config_read(at, 1), r.bench.config_read(at + 3, 1)) != (9, 5) {
        at = r.bench.config_read(at + 1, 1) as u16;
    }
    let select = |r: &Rig, offset: u32, width: u32| {
        r.bench.config_write(at + 4, 1, 4);
        r.bench.config_write(at + 8, 4, offset);
        r.bench.config_write(at + 12, 4, width);
    };
    // Without memory decoding, as firmware does it.
    r.bench.config_write(4, 2, 4);
    select(&r, 0x14, 1);
    r.bench.config_write(at + 16, 1, 3);
    assert_eq!(r.bench.config_read(at + 16, 1), 3);
    r.bench.config_write(at + 16, 1, 0);
    assert_eq!(r.bench.config_read(at + 16, 4), 0);
    select(&r, 0x2000, 4);
    assert_eq!(r.bench.config_read(at + 16, 4), 100, "the capacity");
    for (offset, width) in [(0x14, 3), (0x15, 4), (0x4000, 1), (0xffff_fffc, 4)] {
        select(&r, offset, width);
        r.bench.config_write(at + 16, 4, 0x5555_5555);
        assert_eq!(r.bench.config_read(at + 16, 4), 0x5555_5555, "{offset:x} {width}: nothing happens");
    }
    r.bench.config_write(4, 2, 6);
    assert_eq!(r.status(), 0);
}

#[test]
fn requests_under_way_are_saved_and_answered_in_another_machine() {
    for via in WAYS {
        let (mut r, disk) = disk_rig(via, &[]);
        r.use_msix(5);
        r.negotiate(EVENT_IDX);
        r.queue(0);
        r.set_vectors(4, &[1]);
        r.set_status(if r.legacy() { 7 } else { 15 });
        (0..3).for_each(|n| _ = r.request(0, n, IN, n, &[(DATA + 0x4000 + 512 * n, 512)]));
        // The answers are there, and not told.
        let (region, offset) = if r.legacy() { (0, 0x10) } else { (4, 0x3000) };
        r.cell.event(emu::Event::Doorbell(region, offset));
        assert_eq!(r.used(0).len(), 0);
        let saved = r.cell.save();
        let (mut twin, _) = disk_rig(via, &[]);
        twin.bench.machine.clock().set(r.bench.machine.clock().now());
        let ram = r.bench.machine.space.ram();
        let mut memory = vec![0; emu::bench::Bench::RAM as usize];
        ram.read(emu::RamAddr(0), &mut memory);
        twin.bench.machine.space.ram().write(emu::RamAddr(0), &memory);
        twin.cell.load(saved.clone()).unwrap();
        assert_eq!(twin.cell.save(), saved);
        twin.rings = r.rings;
        twin.settle();
        assert_eq!(twin.used(0).len(), 3, "{via:?}");
        assert_eq!((0..3).map(|n| twin.answer(n)).collect::<Vec<_>>(), [0; 3]);
        assert_eq!(twin.messages(), [1]);
        assert_eq!(twin.memory(DATA + 0x4000, 1536), disk.bytes()[..1536]);
        assert_eq!(twin.does(FLUSH, 0, &[]).0, 0, "and goes on");
    }
    let (other, _) = disk_rig(WAYS[0], &[("queues", "1")]);
    let (four, _) = disk_rig(WAYS[0], &[]);
    assert!(other.cell.load(four.cell.save()).is_err());
}

#[test]
fn a_device_hands_its_doorbells_over_when_it_is_told_to() {
    for via in WAYS {
        for (settings, handed) in [(&[][..], false), (&[("ioeventfd", "true")], true)] {
            let (mut r, _) = disk_rig(via, settings);
            r.negotiate(EVENT_IDX);
            let map = r.bench.machine.space.map();
            assert!(!map.doorbells().is_empty());
            assert!(map.doorbells().iter().all(|d| d.handoff == handed), "{via:?}");
        }
    }
}
