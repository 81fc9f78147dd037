use super::*;
use crate::virtio::rnd::MODEL;

#[test]
fn buffers_are_filled_with_numbers_that_do_not_repeat() {
    for via in WAYS {
        let mut r = Rig::new(&MODEL, via, &[], |_| emu::Backends::default());
        r.start(EVENT_IDX, 1);
        r.add(0, &[(DATA, 64, true), (DATA + 0x1000, 64, true)]);
        r.add(0, &[(DATA + 0x2000, 64, true)]);
        r.add(0, &[(DATA + 0x3000, 0x1_0000, true)]);
        r.add(0, &[(DATA, 16, false)]);
        r.kick(0);
        assert_eq!(r.used(0), [(0, 128), (2, 64), (3, 4096), (4, 0)], "{via:?}");
        assert_eq!(r.interrupt(), 1);
        let all = [0, 0x1000, 0x2000, 0x3000, 0x3040].map(|at| r.memory(DATA + at, 64));
        for (n, one) in all.iter().enumerate() {
            assert!(one.iter().filter(|b| **b == 0).count() < 8, "{one:x?}");
            assert!(!all[n + 1..].contains(one));
        }
        assert_eq!(r.memory(DATA + 0x1040, 64), [0; 64], "no more than it was given");
    }
}
