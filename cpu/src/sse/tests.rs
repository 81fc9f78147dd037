//! Faults of MMX and SSE instructions that user mode cannot bring about, and the selection of instructions.

use crate::fpu::tests::{CODE, DATA, at_data, long, rig, run};
use crate::insn::DS;

#[test]
fn unmasked_exceptions_are_xm_or_ud_and_leave_the_destination() {
    let mut cpu = rig();
    cpu.fpu.mxcsr = 0x1f80 & !(1 << 9);
    cpu.fpu.xmm[0] = [0x3f80_0000, 0];
    // DIVSS XMM0, XMM1.
    let divss = [0xf3, 0x0f, 0x5e, 0xc1];
    assert_eq!(run(&mut cpu, &divss), Err(19));
    assert_eq!((cpu.fpu.xmm[0], cpu.fpu.mxcsr & 0x3f), ([0x3f80_0000, 0], 4));
    cpu.cr4 &= !0x400;
    assert_eq!(run(&mut cpu, &divss), Err(6), "a system that does not know #XM");
}

#[test]
fn operands_of_16_bytes_must_be_aligned_but_for_some() {
    let mut cpu = rig();
    cpu.gpr[3] = DATA + 8;
    let aligned: [&[u8]; 8] = [
        &[0x0f, 0x28, 0x03],
        &[0x0f, 0x29, 0x03],
        &[0x66, 0x0f, 0x6f, 0x03],
        &[0x66, 0x0f, 0x7f, 0x03],
        &[0x66, 0x0f, 0xe7, 0x03],
        &[0x0f, 0x58, 0x03],
        &[0x66, 0x0f, 0x38, 0x00, 0x03],
        &[0x66, 0x0f, 0x38, 0x2a, 0x03],
    ];
    for code in aligned {
        assert_eq!(run(&mut cpu, code), Err(13), "{code:02x?}");
    }
    let anywhere: [&[u8]; 6] = [
        &[0x0f, 0x10, 0x03],
        &[0x0f, 0x11, 0x03],
        &[0xf3, 0x0f, 0x6f, 0x03],
        &[0xf2, 0x0f, 0xf0, 0x03],
        &[0x66, 0x0f, 0x3a, 0x63, 0x03, 0],
        &[0x0f, 0xef, 0x03],
    ];
    for code in anywhere {
        assert_eq!(run(&mut cpu, code), Ok(()), "{code:02x?}");
    }
}

#[test]
fn a_load_across_the_end_of_a_segment_leaves_the_register() {
    let mut cpu = rig();
    cpu.seg[usize::from(DS)].limit = DATA as u32 + 7;
    cpu.mode_changed();
    cpu.fpu.xmm[1] = [3, 4];
    for code in [at_data(&[0x0f, 0x10], 1), at_data(&[0x0f, 0x28], 1), at_data(&[0x66, 0x0f, 0xef], 1)] {
        assert_eq!(run(&mut cpu, &code), Err(13), "{code:02x?}");
        assert_eq!(cpu.fpu.xmm[1], [3, 4]);
    }
    // Eight bytes are there.
    assert_eq!(run(&mut cpu, &at_data(&[0x66, 0x0f, 0x12], 1)), Ok(()));
    assert_eq!(cpu.fpu.xmm[1], [0, 4]);
}

#[test]
fn a_store_across_two_pages_is_whole() {
    let mut cpu = rig();
    cpu.fpu.xmm[2] = [0x0807_0605_0403_0201, 0x100f_0e0d_0c0b_0a09];
    for at in [DATA + 0xff1, DATA + 0xff8, DATA + 0xfff, DATA + 0xff0] {
        cpu.gpr[3] = at;
        assert_eq!(run(&mut cpu, &[0x0f, 0x11, 0x13]), Ok(()));
        let want: Vec<u8> = (1..=16).collect();
        assert_eq!(crate::fpu::tests::read(&mut cpu, at, 16), want);
    }
}

#[test]
fn maskmov_stores_at_di_in_the_segment_of_the_prefix() {
    let mut cpu = rig();
    cpu.gpr[7] = DATA;
    cpu.seg[0].base = 0x100;
    cpu.mode_changed();
    cpu.fpu.xmm[0] = [0x0807_0605_0403_0201, 0];
    cpu.fpu.xmm[1] = [0x8000_0000_0000_8000, 0];
    // ES: MASKMOVDQU XMM0, XMM1.
    assert_eq!(run(&mut cpu, &[0x26, 0x66, 0x0f, 0xf7, 0xc1]), Ok(()));
    assert_eq!(crate::fpu::tests::read(&mut cpu, DATA + 0x100, 9), [0, 2, 0, 0, 0, 0, 0, 8, 0]);
}

#[test]
fn what_is_not_offered_is_undefined() {
    let mut cpu = rig();
    long(&mut cpu);
    let codes: [&[u8]; 14] = [
        // SSE4a: EXTRQ, INSERTQ, MOVNTSD. AES, PCLMULQDQ, SHA.
        &[0x66, 0x0f, 0x79, 0xc1],
        &[0xf2, 0x0f, 0x79, 0xc1],
        &[0xf2, 0x0f, 0x2b, 0x03],
        &[0x66, 0x0f, 0x38, 0xdc, 0xc1],
        &[0x66, 0x0f, 0x3a, 0xdf, 0xc1, 0],
        &[0x66, 0x0f, 0x3a, 0x44, 0xc1, 0],
        &[0x0f, 0x38, 0xc8, 0xc1],
        // XSAVEOPT.
        &[0x0f, 0xae, 0x33],
        // Prefixes and forms that name nothing.
        &[0xf3, 0x0f, 0xfe, 0xc1],
        &[0xf3, 0x0f, 0x28, 0xc1],
        &[0x0f, 0x13, 0xc1],
        &[0x66, 0x0f, 0x50, 0x03],
        &[0x0f, 0x38, 0x10, 0xc1],
        &[0xf0, 0x66, 0x0f, 0xef, 0x03],
    ];
    for code in codes {
        assert_eq!(run(&mut cpu, code), Err(6), "{code:02x?}");
    }
}

#[test]
fn the_upper_registers_and_64_bit_moves_take_rex() {
    let mut cpu = rig();
    long(&mut cpu);
    cpu.gpr[9] = 0x1122_3344_5566_7788;
    // MOVQ XMM12, R9; MOVDQA XMM1, XMM12; PEXTRQ RAX, XMM1, 0; MOVD ECX, XMM1.
    assert_eq!(run(&mut cpu, &[0x66, 0x4d, 0x0f, 0x6e, 0xe1]), Ok(()));
    assert_eq!(run(&mut cpu, &[0x66, 0x41, 0x0f, 0x6f, 0xcc]), Ok(()));
    assert_eq!(run(&mut cpu, &[0x66, 0x48, 0x0f, 0x3a, 0x16, 0xc8, 0]), Ok(()));
    assert_eq!(run(&mut cpu, &[0x66, 0x0f, 0x7e, 0xc9]), Ok(()));
    assert_eq!((cpu.gpr[0], cpu.gpr[1]), (0x1122_3344_5566_7788, 0x5566_7788));
    assert_eq!(cpu.fpu.fip, 0, "x87 pointers stay: the last instruction was at {CODE:x}");
}
