//! Small guests, run by raw requests on each kernel.

mod raw;

use raw::{Guest, RAX, RBX, RIP, arg};
use vmm_sim::Version;

#[test]
fn ports_leave_with_their_length_and_the_next_run_goes_on_behind_them() {
    for version in Version::ALL {
        let g = Guest::new(version);
        // mov al,5A; out E9,al; mov dx,3F8; in ax,dx; out 80,al
        g.put(0x1000, &[0xb0, 0x5a, 0xe6, 0xe9, 0xba, 0xf8, 0x03, 0xed, 0xe6, 0x80]);
        let e = g.run(0).unwrap();
        assert_eq!((e.code(), e.len(), e.rip()), (0, 2, 0x1002), "{version:?}");
        assert_eq!((e.u16(16), e.u16(18), e.u32(20) as u8), (1, 0xe9, 0x5a));
        assert_eq!(g.get(0, RIP), 0x1002, "RIP is still the exiting instruction's");
        let e = g.run(0).unwrap();
        assert_eq!((e.code(), e.len(), e.rip()), (0, 1, 0x1007));
        assert_eq!((e.u16(16), e.u16(18)), (2 | 8, 0x3f8));
        g.set(0, RAX, 0x1234);
        let e = g.run(0).unwrap();
        assert_eq!((e.u16(18), e.u32(20) as u16), (0x80, 0x1234));
    }
}

#[test]
fn restart_executes_the_instruction_again_and_a_new_rip_is_where_it_goes_on() {
    let g = Guest::new(Version::V14);
    g.put(0x1000, &[0xe6, 0x80, 0xe6, 0x81]);
    g.put(0x1100, &[0xe6, 0x82]);
    assert_eq!(g.run(0).unwrap().u16(18), 0x80);
    g.ioctl(0x8004_7627, arg().i32(0)).unwrap();
    assert_eq!(g.run(0).unwrap().u16(18), 0x80);
    assert_eq!(g.run(0).unwrap().u16(18), 0x81);
    g.set(0, RIP, 0x1100);
    assert_eq!(g.run(0).unwrap().u16(18), 0x82);
}

#[test]
fn memory_that_is_not_there_leaves_undecoded_in_real_mode_and_writes_to_rom_fail() {
    let g = Guest::new(Version::V13);
    g.put(0x1000, &[0x67, 0xa1, 0, 0, 0x40, 0]);
    // DS reaches above 2 MiB, as firmware has it after a visit to protected mode.
    g.ioctl(raw::SET_SEGMENT, arg().i32(0).i32(25).u64(0).i32(-1).i32(0xc093)).unwrap();
    let e = g.run(0).unwrap();
    assert_eq!((e.code(), e.len(), e.rip()), (9, 0, 0x1000));
    assert_eq!((e.u64(16), e.u64(24)), (0x40_0000, 0x40_0000));
    let vie = &e.0[16 + 56..];
    assert_eq!((&vie[..6], vie[15], vie[56]), (&[0x67, 0xa1, 0, 0, 0x40, 0][..], 15, 0));
    g.new_segment(1, 0x1000, "bootrom").unwrap();
    g.map(0x40_0000, 1, 0, 0x1000, 5).unwrap();
    g.put(0x1000, &[0x67, 0xa2, 0, 0, 0x40, 0]);
    g.set(0, RIP, 0x1000);
    assert_eq!(g.run(0).unwrap_err(), libc::EFAULT);
}

#[test]
fn memory_that_is_not_there_leaves_decoded_in_protected_mode() {
    for version in Version::ALL {
        let g = Guest::new(version);
        for segment in [23, 24, 25] {
            let access = if segment == 23 { 0xc09b } else { 0xc093 };
            g.ioctl(raw::SET_SEGMENT, arg().i32(0).i32(segment).u64(0).i32(-1).i32(access)).unwrap();
        }
        g.set(0, 15, 0x31);
        g.set(0, RBX, 0xe000_0000);
        // mov [ebx+10],eax; out 80,al
        g.put(0x1000, &[0x89, 0x43, 0x10, 0xe6, 0x80]);
        let e = g.run(0).unwrap();
        assert_eq!((e.code(), e.len(), e.u64(16)), (9, 3, 0xe000_0010), "{version:?}");
        assert_eq!((e.u32(16 + 24), e.u32(16 + 32 + 12)), (1, 1), "32-bit code, protected mode");
        assert_eq!((e.0[16 + 56 + 16], e.0[16 + 56 + 56]), (3, 1));
        assert_eq!(g.run(0).unwrap().code(), 0, "the instruction was user space's to do");
    }
}

#[test]
fn halting_with_interrupts_off_is_the_end_and_is_told_once() {
    for version in Version::ALL {
        let g = Guest::new(version);
        g.ioctl(raw::SET_CAPABILITY, arg().i32(0).i32(0).i32(1).i32(0)).unwrap();
        g.put(0x1000, &[0xfa, 0xf4]);
        let e = g.run(0).unwrap();
        assert_eq!((e.code(), e.u32(16), e.rip()), (14, 3, 0x1002), "{version:?}");
        g.sim.record();
        assert_eq!(g.run(0).unwrap_err(), libc::EINVAL);
        assert!(g.broken().contains("after it was told SUSPENDED"), "{}", g.broken());
        g.ioctl(0x2000_7605, arg()).unwrap();
    }
}

#[test]
fn string_io_leaves_from_the_kernels_ports_too() {
    let g = Guest::new(Version::V15);
    // mov dx,20; mov cx,3; rep outsb
    g.put(0x1000, &[0xba, 0x20, 0, 0xb9, 3, 0, 0xf3, 0x6e]);
    let e = g.run(0).unwrap();
    assert_eq!((e.code(), e.len(), e.u16(16), e.u16(18)), (15, 2, 1 | 0x30, 0x20));
    assert_eq!((e.u64(16 + 56), e.u32(16 + 64), e.u32(16 + 68)), (3, 2, 25));
}

#[test]
fn the_kernels_chips_answer_without_an_exit() {
    let g = Guest::new(Version::V14);
    g.ioctl(0x8008_7665, arg().i32(0x34).i32(0x77)).unwrap();
    // mov al,34; out 70,al; in al,71; out 80,al
    g.put(0x1000, &[0xb0, 0x34, 0xe6, 0x70, 0xe4, 0x71, 0xe6, 0x80, 0xe7, 0x40]);
    let e = g.run(0).unwrap();
    assert_eq!((e.u16(18), e.u32(20) as u8), (0x80, 0x77));
    assert_eq!(g.run(0).unwrap_err(), libc::EIO, "two bytes at a port of the 8254");
}
