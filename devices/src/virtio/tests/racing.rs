//! A guest whose other processors rewrite the rings while the device works, and one that does everything at random.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::net::offload::tests::sample;
use emu::backend::Offload;
use emu::bench::{Bench, Rng, fuzz_cases};
use emu::{DeviceState, Event};

/// A descriptor, or something that looks like one.
fn descriptor(rng: &mut Rng) -> [u8; 16] {
    let addr = match rng.below(8) {
        0 => rng.next(),
        1 => Bench::RAM - rng.below(64) as u64,
        2 => u64::MAX - rng.below(64) as u64,
        3 => 0xe000_0000 + rng.below(0x1_2000) as u64,
        _ => RINGS + rng.below(0x6_0000) as u64,
    };
    let len = if rng.one_in(8) { rng.next() as u32 } else { rng.pick(&[0, 1, 15, 16, 17, 512, 1024, 4096]) };
    let words = [len, u32::from(rng.next() as u16 & 7) | u32::from(rng.below(80) as u16) << 16];
    let mut d = [0; 16];
    d[..8].copy_from_slice(&addr.to_le_bytes());
    d[8..12].copy_from_slice(&words[0].to_le_bytes());
    d[12..].copy_from_slice(&words[1].to_le_bytes());
    d
}

#[test]
fn a_guest_that_rewrites_what_the_device_reads_harms_only_itself() {
    for via in [WAYS[0], WAYS[3]] {
        let (mut r, disk) = disk_rig(via, &[]);
        let over = AtomicBool::new(false);
        let dma = r.dma();
        std::thread::scope(|s| {
            for seed in 1..3 {
                let (dma, over) = (dma.clone(), &over);
                s.spawn(move || {
                    let mut rng = Rng::new(seed);
                    while !over.load(Ordering::Relaxed) {
                        match rng.below(4) {
                            0 => dma.write(RINGS + rng.below(0x4000) as u64, &rng.next().to_le_bytes()[..2]),
                            1 => dma.write(DATA + 8 * rng.below(0x400) as u64, &rng.value().to_le_bytes()),
                            _ => dma.write(RINGS + 16 * rng.below(64) as u64, &descriptor(&mut rng)),
                        }
                    }
                });
            }
            let mut rng = Rng::new(9);
            let mut answers = 0;
            for n in 0..40 * fuzz_cases() {
                if n % 16 == 0 || r.status() & 0x40 != 0 {
                    answers += r.used(0).len();
                    r.start(EVENT_IDX | INDIRECT | 0x7e00, 1);
                }
                r.request(0, rng.below(8) as u64, rng.pick(&[IN, OUT, FLUSH, ZEROES]), 3, &[(DATA + 0x4000, 512)]);
                r.notify(0);
                if rng.one_in(4) {
                    r.settle();
                }
            }
            over.store(true, Ordering::Relaxed);
            assert!(answers > 0, "nothing came of it");
        });
        assert_eq!(disk.bytes().len(), 51200);
        r.start(0, 1);
        assert_eq!(r.does(FLUSH, 0, &[]), (0, 1), "{via:?}: afterwards it works");
    }
}

/// Everything that a guest can do, at random.
fn step(r: &mut Rig, rng: &mut Rng) -> u64 {
    let dma = r.dma();
    let width = rng.width(4);
    match rng.below(16) {
        0..3 => r.out(rng.below(0x60) as u16, width, rng.value() as u32),
        3 => return r.inp(rng.below(0x60) as u16, width).into(),
        4..6 => r.put(rng.below(0x40) as u64, rng.width(8), rng.value()),
        6 => {
            let at = rng.pick(&[0, 0x1000, 0x2000, 0x3000]) + rng.below(0x40) as u64;
            return r.get(at, rng.width(8));
        }
        7 => r.put(0x2000 + rng.below(0x40) as u64, width, rng.value()),
        8 => r.put(0x3000 + 4 * rng.below(5) as u64, 2, 0),
        9 => r.bench.config_write(rng.below(0x100) as u16 & 0xfc, 4, rng.value() as u32),
        10 => return r.bench.config_read(rng.below(0x100) as u16 & 0xfc, 4).into(),
        11 => dma.write(RINGS + 16 * rng.below(64) as u64, &descriptor(rng)),
        12 => dma.write(RINGS + rng.below(0x4000) as u64, &rng.value().to_le_bytes()),
        13 => {
            let kind = rng.pick(&[IN, OUT, FLUSH, GET_ID, DISCARD, ZEROES]);
            if r.rings[0].size > 0 {
                r.request(0, rng.below(16) as u64, kind, rng.below(110) as u64, &[(DATA + 0x4000, 512)]);
            }
        }
        14 if rng.one_in(2) => r.cell.event(Event::Frame(vec![0xff; rng.below(3000)])),
        14 if rng.one_in(2) => {
            let checksum = rng.one_in(2).then(|| (rng.value() as u16, rng.value() as u16));
            let rest = Offload { checksum, mss: rng.value() as u16 };
            r.cell.event(Event::Partial(sample(rng.one_in(2), true, 0, rng.below(3000)), rest));
        }
        14 => r.settle(),
        _ => {
            if rng.one_in(4) {
                r.bench.machine.reset(emu::ResetKind::System);
                r.power_on();
            }
            r.assign();
            r.negotiate(rng.pick(&[0, EVENT_IDX, INDIRECT, 0x7e00 | EVENT_IDX | INDIRECT, u64::MAX]));
            (0..rng.below(4) as u16).for_each(|n| r.queue(n));
            r.set_status(15);
        }
    }
    0
}

fn memory(r: &Rig) -> Vec<u8> {
    r.memory(0, Bench::RAM as usize)
}

/// A rig of its own for each stream; its twin takes over in the middle.
fn stream(via: Via, make: fn(Via) -> Rig, seed: u64) {
    let mut rng = Rng::new(seed);
    let mut r = make(via);
    for _ in 0..400 {
        step(&mut r, &mut rng);
    }
    // As after a pause: nothing is on its way.
    let saved = r.cell.save();
    assert!(saved.state.to_string().len() < 1 << 20, "the state has grown");
    let mut twin = make(via);
    twin.bench.machine.clock().set(r.bench.machine.clock().now());
    twin.dma().write(0, &memory(&r));
    twin.cell.load(saved.clone()).unwrap();
    assert_eq!(twin.cell.save(), saved, "{via:?} {seed}: saved, loaded and saved again");
    (twin.rings, twin.features) = (r.rings, r.features);
    let mut again = Rng(rng.0);
    for n in 0..200 {
        assert_eq!(step(&mut r, &mut rng), step(&mut twin, &mut again), "{via:?} {seed}: step {n} after loading");
        assert_eq!(r.bench.irq(INTA), twin.bench.irq(INTA), "{via:?} {seed}: the wire after step {n}");
    }
    assert_eq!(r.cell.save(), twin.cell.save(), "{via:?} {seed}: the twin went another way");
    assert!(memory(&r) == memory(&twin), "{via:?} {seed}: memory");
    r.bench.machine.reset(emu::ResetKind::System);
    r.power_on();
    let once = r.cell.save();
    r.bench.machine.reset(emu::ResetKind::System);
    r.power_on();
    assert_eq!(r.cell.save(), once, "{via:?} {seed}: reset once and twice");
    assert!(!r.bench.irq(INTA));
    r.cell.event(Event::Doorbell(0, 0x10));
    assert_eq!(r.cell.save(), once, "{via:?} {seed}: a kick after a reset");
}

#[test]
fn whatever_a_guest_does_to_a_disk_it_is_saved_and_reset() {
    for case in 0..fuzz_cases() {
        stream(WAYS[case as usize % 4], |via| disk_rig(via, &[]).0, case + 1);
    }
}

#[test]
fn whatever_a_guest_does_to_a_network_card_it_is_saved_and_reset() {
    for case in 0..fuzz_cases() {
        stream(WAYS[case as usize % 4], |via| net::rig(via).0, case + 1);
    }
}
