//! Exits, from the bytes that kernels write.

use vmmapi_sys::exit::{EXIT_SIZE, IPI_STARTUP, IpiMask, code};
use vmmapi_sys::{Exit, Reg, VmExit};

type Image = [u8; EXIT_SIZE];

/// An exit with these bytes at these offsets of its union; all else is 0xa5, as what a kernel leaves there may be.
fn image(code: i32, length: i32, parts: &[(usize, &[u8])]) -> Image {
    let mut image = [0xa5; EXIT_SIZE];
    image[..4].copy_from_slice(&code.to_le_bytes());
    image[4..8].copy_from_slice(&length.to_le_bytes());
    image[8..16].copy_from_slice(&0xffff_fff0_u64.to_le_bytes());
    for (offset, bytes) in parts {
        image[16 + offset..][..bytes.len()].copy_from_slice(bytes);
    }
    image
}

fn decode(image: &Image) -> VmExit {
    VmExit::decode(image, IpiMask::Buffer, &[])
}

#[test]
fn a_port_access_is_taken_apart() {
    let out = decode(&image(code::INOUT, 1, &[(0, &[0x01, 0, 0x80, 0, 0x55, 0x44, 0x33, 0x22])]));
    assert_eq!((out.code, out.rip, out.inst_length), (0, 0xffff_fff0, 1));
    let Exit::Inout(access) = out.exit else { panic!("{out:?}") };
    assert_eq!((access.port, access.bytes, access.input, access.eax), (0x80, 1, false, 0x2233_4455));
    let Exit::Inout(access) = decode(&image(code::INOUT, 2, &[(0, &[0x0c, 0, 0xfc, 0x0c])])).exit else { panic!() };
    assert_eq!((access.port, access.bytes, access.input, access.string, access.rep), (0xcfc, 4, true, false, false));
}

#[test]
fn string_io_has_its_segment_and_count() {
    let image = image(
        code::INOUT_STR,
        2,
        &[
            (0, &[0x3a, 0, 0xf0, 0x01]),
            (8, &[0; 24]),
            (48, &0x1_0000_fffe_u64.to_le_bytes()),
            (56, &256_u64.to_le_bytes()),
            (64, &2_i32.to_le_bytes()),
            (68, &22_i32.to_le_bytes()),
            (72, &0x12340_u64.to_le_bytes()),
            (80, &0xffff_u32.to_le_bytes()),
            (84, &0x93_u32.to_le_bytes()),
        ],
    );
    let Exit::InoutStr(access) = decode(&image).exit else { panic!() };
    assert_eq!((access.inout.port, access.inout.bytes, access.inout.input, access.inout.rep), (0x1f0, 2, true, true));
    assert_eq!((access.index, access.count, access.address_bytes), (0x1_0000_fffe, 256, 2));
    assert_eq!(
        (access.segment, access.desc.base, access.desc.limit, access.desc.access),
        (Reg::Es, 0x12340, 0xffff, 0x93)
    );
}

#[test]
fn a_real_mode_access_comes_undecoded() {
    let mut bytes = [0x90; 16];
    bytes[..4].copy_from_slice(&[0x26, 0x88, 0x47, 0x02]);
    bytes[15] = 15;
    let parts: &[(usize, &[u8])] = &[
        (0, &0xb8002_u64.to_le_bytes()),
        (8, &(1_u64 << 63).to_le_bytes()),
        (16, &0xf0000_u64.to_le_bytes()),
        (24, &[0; 4]),
        (32, &[0; 24]),
        (56, &bytes),
        (72, &[0]),
        (112, &[0]),
    ];
    let exit = decode(&image(code::INST_EMUL, 0, parts));
    assert_eq!(exit.inst_length, 0);
    let Exit::InstEmul(access) = exit.exit else { panic!() };
    assert_eq!((access.gpa, access.gla, access.cs_base, access.cs_d), (0xb8002, None, 0xf0000, false));
    assert_eq!((access.bytes[1], access.valid, access.decoded), (0x88, 15, false));
}

#[test]
fn the_destinations_of_an_ipi_are_where_the_kernel_puts_them() {
    let image = image(code::IPI, 0, &[(0, &[0, 6, 0, 0, 0x9a]), (8, &[0x0a; 32])]);
    let buffer = [0xf0; 128];
    let cpus = |mask| match VmExit::decode(&image, mask, &buffer).exit {
        Exit::Ipi { mode: IPI_STARTUP, vector: 0x9a, cpus } => cpus.iter().take(4).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(cpus(IpiMask::Exit), [1, 3, 9, 11]);
    assert_eq!(cpus(IpiMask::Buffer), [4, 5, 6, 7]);
}

#[test]
fn the_other_payloads_lie_where_they_should() {
    let msr: &[(usize, &[u8])] = &[(0, &0x8b_u32.to_le_bytes()), (8, &7_u64.to_le_bytes())];
    assert_eq!(decode(&image(code::RDMSR, 2, msr)).exit, Exit::ReadMsr { msr: 0x8b });
    assert_eq!(decode(&image(code::WRMSR, 2, msr)).exit, Exit::WriteMsr { msr: 0x8b, value: 7 });
    let suspended = image(code::SUSPENDED, 0, &[(0, &3_i32.to_le_bytes())]);
    assert_eq!(decode(&suspended).exit, Exit::Suspended { how: 3 });
    let spinup = image(code::SPINUP_AP, 0, &[(0, &1_i32.to_le_bytes()), (8, &0x9a000_u64.to_le_bytes())]);
    assert_eq!(decode(&spinup).exit, Exit::SpinupAp { vcpu: 1, rip: 0x9a000 });
    let vmx = image(code::VMX, 0, &[(0, &0_i32.to_le_bytes()), (4, &33_u32.to_le_bytes()), (8, &[1; 8])]);
    let Exit::Vmx(vmx) = decode(&vmx).exit else { panic!() };
    assert_eq!((vmx.status, vmx.exit_reason, vmx.exit_qualification), (0, 33, 0x0101_0101_0101_0101));
    let task = image(code::TASK_SWITCH, 0, &[(0, &[0x28, 0]), (16, &2_i32.to_le_bytes())]);
    let Exit::TaskSwitch(task) = decode(&task).exit else { panic!() };
    assert_eq!((task.tsssel, task.reason), (0x28, 2));
}

#[test]
fn codes_and_payloads_that_no_kernel_sends_are_unknown() {
    for code in [-1, 11, 26, 27, i32::MIN, i32::MAX] {
        let exit = decode(&image(code, 3, &[]));
        assert_eq!((exit.code, exit.exit), (code, Exit::Unknown));
    }
    for width in [0, 3, 5, 6, 7] {
        assert_eq!(decode(&image(code::INOUT, 1, &[(0, &[width])])).exit, Exit::Unknown);
    }
    assert_eq!(decode(&image(code::INOUT_STR, 1, &[(0, &[1])])).exit, Exit::Unknown);
    assert_eq!(decode(&image(code::BOGUS, -1, &[])).inst_length, 0);
}

#[test]
fn arbitrary_bytes_decode_to_something_without_a_panic() {
    // xorshift: the same bytes each time.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut known = 0;
    for round in 0..200_000 {
        let mut image: Image = std::array::from_fn(|_| 0);
        for chunk in image.chunks_mut(8) {
            chunk.copy_from_slice(&next().to_le_bytes());
        }
        if round % 8 != 0 {
            image[..4].copy_from_slice(&((next() % 28) as i32).to_le_bytes());
        }
        let cpus = &image[..next() as usize % EXIT_SIZE];
        for mask in [IpiMask::Exit, IpiMask::Buffer] {
            let exit = VmExit::decode(&image, mask, cpus);
            known += usize::from(exit.exit != Exit::Unknown);
            match exit.exit {
                Exit::InstEmul(access) => assert!(access.valid <= 15),
                Exit::Inout(access) => assert!([1, 2, 4].contains(&access.bytes)),
                Exit::InoutStr(access) => assert!([2, 4, 8].contains(&access.address_bytes)),
                _ => {}
            }
        }
    }
    assert!(known > 200_000, "{known}");
}
