//! What comparing single instructions with the host in user mode cannot show: control registers, modes and layouts,
//! pending exceptions from one instruction to the next.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use emu::{AddressSpace, Backing, Clock, CpuBus, Ram, Rights, Timers};

use super::{C0, C2, C3, CR0_EM, CR0_MP, CR0_NE, CR0_TS, CW_INIT, ES, EXCEPTIONS, Fpu, SF};
use crate::decode::decode;
use crate::insn::{BLOCK, CS, DS, Stop};
use crate::lapic::{ApicBus, Lapic};
use crate::model::Model;
use crate::softfloat::F80;
use crate::state::{Cpu, Segment, Why};

/// Where instructions pretend to be.
pub(crate) const CODE: u64 = 0x1000;
/// Memory for operands.
pub(crate) const DATA: u64 = 0x4000;

/// A processor in flat 32-bit protected mode without paging, 64 KiB of memory, everything about the FPU enabled.
pub(crate) fn rig() -> Cpu {
    let ram = Arc::new(Ram::new(0x1_0000).unwrap());
    let block = ram.alloc("ram", 0x1_0000).unwrap();
    let space = AddressSpace::new(ram);
    let id = space.add_memory(0, 0x1_0000, 0, Rights::ReadWrite, Backing::Ram(block.start));
    space.enable(id, 0, true);
    let clock = Clock::manual();
    let lapic = Lapic::new(0, &ApicBus::new(), &Timers::new(clock.clone()), 1_000_000_000);
    let mut cpu = Cpu::new(Arc::new(Model::default()), CpuBus::new(space), clock, lapic);
    cpu.cr0 = 1 | CR0_MP | CR0_NE;
    cpu.cr4 = 0x600;
    let flat = |selector, kind: u32| Segment { selector, base: 0, limit: u32::MAX, access: kind | 0xc090 };
    cpu.seg = [flat(0x10, 3); 8];
    cpu.seg[usize::from(CS)] = flat(8, 0xb);
    cpu.seg[usize::from(DS)] = flat(0x18, 3);
    cpu.mode_changed();
    cpu.may_io = true;
    cpu
}

/// Puts the processor into 64-bit code.
pub(crate) fn long(cpu: &mut Cpu) {
    cpu.msr.efer |= 0x500;
    let cs = &mut cpu.seg[usize::from(CS)];
    cs.access = cs.access & !Segment::DB | Segment::L;
    cpu.mode_changed();
}

/// Executes one instruction: the vector of the exception that it raised.
pub(crate) fn run(cpu: &mut Cpu, code: &[u8]) -> Result<(), u8> {
    let i = decode(code, cpu.mode).unwrap();
    cpu.gpr[usize::from(BLOCK)] = CODE;
    cpu.rip = CODE + u64::from(i.len);
    cpu.why = Why::None;
    i.execute(cpu).map_err(|Stop| match cpu.why {
        Why::Fault(f) => f.vector,
        why => panic!("{why:?}"),
    })
}

/// `op` with the memory operand at [`DATA`]: the bytes before ModRM, and its middle field.
pub(crate) fn at_data(op: &[u8], ext: u8) -> Vec<u8> {
    let mut code = op.to_vec();
    code.push(0x05 | ext << 3);
    code.extend((DATA as u32).to_le_bytes());
    code
}

fn all(cpu: &mut Cpu, codes: &[&[u8]]) {
    for code in codes {
        assert_eq!(run(cpu, code), Ok(()), "{code:02x?}");
    }
}

pub(crate) fn read(cpu: &mut Cpu, at: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0; len];
    cpu.load_bytes(at, &mut buf).unwrap();
    buf
}

const FLD1: &[u8] = &[0xd9, 0xe8];
const FLDZ: &[u8] = &[0xd9, 0xee];
const FDIVP: &[u8] = &[0xde, 0xf9];
const FNSTSW_AX: &[u8] = &[0xdf, 0xe0];
const FNCLEX: &[u8] = &[0xdb, 0xe2];
const FNINIT: &[u8] = &[0xdb, 0xe3];
const FWAIT: &[u8] = &[0x9b];
const PXOR_MM: &[u8] = &[0x0f, 0xef, 0xc0];

/// Leaves an unmasked division by zero pending.
fn divide_by_zero(cpu: &mut Cpu) {
    cpu.fpu.set_control(CW_INIT & !4);
    all(cpu, &[FLD1, FLDZ, FDIVP]);
}

#[test]
fn after_reset_the_registers_are_as_fninit_leaves_them() {
    let f = Fpu::default();
    assert_eq!((f.cw, f.status(), f.full, f.mxcsr), (0x37f, 0, 0, 0x1f80));
}

#[test]
fn a_pending_exception_is_reported_by_the_next_waiting_instruction_only() {
    let mut cpu = rig();
    divide_by_zero(&mut cpu);
    assert_eq!(cpu.fpu.status() & (ES | 4), ES | 4);
    all(&mut cpu, &[FNSTSW_AX]);
    assert_eq!(cpu.gpr[0] as u16, cpu.fpu.status());
    for waiting in [FWAIT, FLD1, PXOR_MM] {
        assert_eq!(run(&mut cpu, waiting), Err(16), "{waiting:02x?}");
    }
    assert_eq!(cpu.fpu.st(0), F80::ZERO, "the division left its operands");
    all(&mut cpu, &[FNCLEX, FWAIT]);
    assert_eq!(cpu.fpu.status() & (ES | EXCEPTIONS), 0);
}

#[test]
fn unmasking_by_fldcw_makes_an_old_exception_pending() {
    let mut cpu = rig();
    all(&mut cpu, &[FLD1, FLDZ, FDIVP, FWAIT]);
    cpu.store(DATA, CW_INIT & !4).unwrap();
    all(&mut cpu, &[&at_data(&[0xd9], 5)]);
    assert_eq!(run(&mut cpu, FWAIT), Err(16));
}

#[test]
fn without_numeric_error_mode_the_processor_waits_for_irq_13() {
    let mut cpu = rig();
    cpu.cr0 &= !CR0_NE;
    divide_by_zero(&mut cpu);
    assert!(!cpu.fpu.ferr);
    let i = decode(FWAIT, cpu.mode).unwrap();
    cpu.gpr[usize::from(BLOCK)] = CODE;
    cpu.rip = CODE + 1;
    // In the middle of a block the run loop cannot take the interrupt.
    cpu.may_io = false;
    assert_eq!(i.execute(&mut cpu), Err(Stop));
    assert_eq!((cpu.why, cpu.fpu.ferr), (Why::Alone, false));
    (cpu.may_io, cpu.why) = (true, Why::None);
    let rises = Arc::new(AtomicUsize::new(0));
    let count = rises.clone();
    cpu.error_pins.on_ferr(move || {
        count.fetch_add(1, Ordering::Relaxed);
    });
    for _ in 0..2 {
        assert_eq!(i.execute(&mut cpu), Err(Stop));
        assert_eq!((cpu.why, cpu.rip, rises.load(Ordering::Relaxed)), (Why::None, CODE, 1));
    }
    // The handler of IRQ 13 writes port F0h, and may use the x87 then.
    cpu.error_pins.ignore();
    all(&mut cpu, &[FWAIT, FLD1, FNCLEX]);
    assert!(!cpu.fpu.ferr);
    // It was asserted for that error only.
    divide_by_zero(&mut cpu);
    assert_eq!(i.execute(&mut cpu), Err(Stop));
    assert_eq!((cpu.error_pins.ignored(), rises.load(Ordering::Relaxed)), (false, 2));
}

#[test]
fn cr0_decides_between_nm_and_ud() {
    let movaps: &[u8] = &[0x0f, 0x28, 0xc1];
    let emms: &[u8] = &[0x0f, 0x77];
    let fxsave = at_data(&[0x0f, 0xae], 0);
    let stmxcsr = at_data(&[0x0f, 0xae], 3);
    // Of x87, FWAIT, MMX and SSE: the exception with each combination of MP, EM and TS.
    let table = [
        (0, [Ok(()), Ok(()), Ok(()), Ok(())]),
        (CR0_TS, [Err(7), Ok(()), Err(7), Err(7)]),
        (CR0_MP | CR0_TS, [Err(7), Err(7), Err(7), Err(7)]),
        (CR0_EM, [Err(7), Ok(()), Err(6), Err(6)]),
        (CR0_EM | CR0_TS, [Err(7), Ok(()), Err(6), Err(6)]),
    ];
    for (bits, want) in table {
        let mut cpu = rig();
        cpu.cr0 = cpu.cr0 & !CR0_MP | bits;
        for x87 in [FLD1, FNINIT, FNCLEX, FNSTSW_AX, &fxsave] {
            assert_eq!(run(&mut cpu, x87), want[0], "{x87:02x?} {bits:x}");
        }
        assert_eq!(run(&mut cpu, FWAIT), want[1], "{bits:x}");
        for mmx in [PXOR_MM, emms] {
            assert_eq!(run(&mut cpu, mmx), want[2], "{mmx:02x?} {bits:x}");
        }
        for sse in [movaps, &stmxcsr] {
            assert_eq!(run(&mut cpu, sse), want[3], "{sse:02x?} {bits:x}");
        }
        cpu.cr4 &= !0x200;
        assert_eq!(run(&mut cpu, movaps), Err(6), "a system without FXSAVE has no SSE either");
    }
}

#[test]
fn the_pointers_name_the_last_instruction_and_operand() {
    let mut cpu = rig();
    cpu.gpr[3] = DATA - 4;
    // FADD m64 with an operand size prefix, at [EBX + 4].
    all(&mut cpu, &[&[0x66, 0xdc, 0x43, 0x04]]);
    let f = &cpu.fpu;
    assert_eq!((f.fip, f.fcs, f.fop), (CODE, 8, 0x443));
    assert_eq!((f.fdp, f.fds), (DATA, 0x18));
    // Instructions without operand leave FDP, control instructions leave all.
    all(&mut cpu, &[FLD1, FNCLEX]);
    assert_eq!((cpu.fpu.fop, cpu.fpu.fdp), (0x1e8, DATA));
}

#[test]
fn the_environment_has_four_layouts() {
    let words = |bytes: &[u8]| -> Vec<u16> { bytes.chunks(2).map(|c| u16::from_le_bytes([c[0], c[1]])).collect() };
    let dwords = |bytes: &[u8]| -> Vec<u32> { bytes.as_chunks().0.iter().map(|c| u32::from_le_bytes(*c)).collect() };
    let mut cpu = rig();
    all(&mut cpu, &[FLD1, FLDZ]);
    let f = &mut cpu.fpu;
    (f.fip, f.fcs, f.fop, f.fdp, f.fds) = (0x1234, 0x2000, 0x7a5, 0x5678, 0x3000);
    let tags = 0b0001_1111_1111_1111;
    let wide = at_data(&[0xd9], 6);
    let short = at_data(&[0x66, 0xd9], 6);
    all(&mut cpu, &[&wide]);
    let fixed = [0xffff_037f, 0xffff_3000, 0xffff_0000 | tags];
    let want = [fixed[0], fixed[1], fixed[2], 0x1234, 0x07a5_2000, 0x5678, 0xffff_3000];
    assert_eq!(dwords(&read(&mut cpu, DATA, 28)), want);
    all(&mut cpu, &[&short]);
    let want = [0x37f, 0x3000, tags as u16, 0x1234, 0x2000, 0x5678, 0x3000];
    assert_eq!(words(&read(&mut cpu, DATA, 14)), want);
    // Real mode: 20-bit linear addresses, and the opcode.
    cpu.cr0 &= !1;
    cpu.mode_changed();
    all(&mut cpu, &[&wide]);
    let want = [fixed[0], fixed[1], fixed[2], 0xffff_1234, 0x27a5, 0xffff_5678, 0x3000];
    assert_eq!(dwords(&read(&mut cpu, DATA, 28)), want);
    all(&mut cpu, &[&short]);
    assert_eq!(words(&read(&mut cpu, DATA, 14)), [0x37f, 0x3000, tags as u16, 0x1234, 0x27a5, 0x5678, 0x3000]);
}

#[test]
fn every_layout_of_fnsave_is_undone_by_frstor() {
    for real in [false, true] {
        for prefix in [&[][..], &[0x66]] {
            let mut cpu = rig();
            if real {
                cpu.cr0 &= !1;
                cpu.mode_changed();
            }
            all(&mut cpu, &[FLD1, FLDZ, FDIVP, FLDZ, &[0xdd, 0xc1]]);
            (cpu.fpu.fip, cpu.fpu.fcs, cpu.fpu.fop, cpu.fpu.fdp, cpu.fpu.fds) = (0xabcd, 0, 0, 0xef01, 0);
            let before = cpu.fpu.clone();
            let op = [prefix, &[0xdd]].concat();
            all(&mut cpu, &[&at_data(&op, 6)]);
            assert_eq!((cpu.fpu.cw, cpu.fpu.status(), cpu.fpu.full), (0x37f, 0, 0), "it ends with FNINIT");
            cpu.fpu.regs = [F80::ONE; 8];
            all(&mut cpu, &[&at_data(&op, 4)]);
            assert_eq!(cpu.fpu, before, "{real} {prefix:x?}");
        }
    }
}

#[test]
fn a_store_that_faults_changes_nothing() {
    let mut cpu = rig();
    all(&mut cpu, &[FLD1]);
    cpu.seg[usize::from(DS)].limit = DATA as u32 + 2;
    cpu.mode_changed();
    let before = cpu.fpu.clone();
    // FSTP m32, m64, m80, FISTP m16 where only three bytes are left; an unmasked stack fault comes second.
    for (op, ext) in [(0xd9, 3), (0xdd, 3), (0xdb, 7), (0xdb, 3), (0xdd, 6), (0xd9, 6)] {
        assert_eq!(run(&mut cpu, &at_data(&[op], ext)), Err(13), "{op:x}/{ext}");
        assert_eq!(cpu.fpu, before, "{op:x}/{ext}");
    }
    cpu.fpu = Fpu::default();
    cpu.fpu.set_control(CW_INIT & !1);
    assert_eq!(run(&mut cpu, &at_data(&[0xd9], 3)), Err(13));
    assert_eq!(cpu.fpu.status(), 0);
}

#[test]
fn a_masked_underflow_compares_as_unordered() {
    let mut cpu = rig();
    all(&mut cpu, &[&[0xd8, 0xd1]]);
    assert_eq!(cpu.fpu.status(), C3 | C2 | C0 | SF | 1);
}

#[test]
fn fxsave_outside_64_bit_mode_leaves_the_upper_registers_bytes_alone() {
    let mut cpu = rig();
    cpu.fpu.xmm = [[0x1111_1111_1111_1111; 2]; 16];
    all(&mut cpu, &[FLD1]);
    cpu.store_bytes(DATA, &[0xee; 512]).unwrap();
    all(&mut cpu, &[&at_data(&[0x0f, 0xae], 0)]);
    let image = read(&mut cpu, DATA, 512);
    assert_eq!((image[160..288].to_vec(), image[288..].to_vec()), (vec![0x11; 128], vec![0xee; 224]));
    // FIP, FCS.
    assert_eq!(image[8..16], [0, 0x10, 0, 0, 8, 0, 0, 0]);
    // MXCSR and its mask; ST(0).
    assert_eq!(image[24..32], [0x80, 0x1f, 0, 0, 0xff, 0xff, 0, 0]);
    assert_eq!(image[32..42], F80::ONE.to_bytes());
    assert_eq!(image[4], 0x80);

    let mut other = rig();
    other.store_bytes(DATA, &image).unwrap();
    all(&mut other, &[&at_data(&[0x0f, 0xae], 1)]);
    let fresh = other.fpu.xmm[8..].to_vec();
    other.fpu.xmm[8..].copy_from_slice(&cpu.fpu.xmm[8..]);
    assert_eq!((other.fpu, fresh), (cpu.fpu, vec![[0; 2]; 8]));
}

#[test]
fn bad_state_images_are_general_protection_faults() {
    let mut cpu = rig();
    cpu.store_bytes(DATA, &cpu.fpu.to_fxsave()).unwrap();
    cpu.gpr[3] = DATA + 8;
    assert_eq!(run(&mut cpu, &[0x0f, 0xae, 0x03]), Err(13), "FXSAVE at 8 modulo 16");
    assert_eq!(run(&mut cpu, &[0x0f, 0xae, 0x0b]), Err(13), "FXRSTOR at 8 modulo 16");
    cpu.store(DATA + 24, 0x1_1f80u32).unwrap();
    assert_eq!(run(&mut cpu, &at_data(&[0x0f, 0xae], 1)), Err(13), "a reserved bit of MXCSR");
    assert_eq!(run(&mut cpu, &[0x0f, 0xae, 0x53, 0x10]), Err(13), "LDMXCSR of the same");
    assert_eq!(cpu.fpu, Fpu::default());
}

#[test]
fn xsave_needs_its_control_bit_and_saves_what_is_asked_for() {
    let mut cpu = rig();
    let (xsave, xrstor) = (at_data(&[0x0f, 0xae], 4), at_data(&[0x0f, 0xae], 5));
    assert_eq!(run(&mut cpu, &xsave), Err(6));
    cpu.cr4 |= 1 << 18;
    cpu.xcr0 = 3;
    all(&mut cpu, &[FLD1]);
    cpu.fpu.xmm[0] = [7, 8];
    let saved = cpu.fpu.clone();
    // All components, of which there are two; nothing is in its initial state.
    (cpu.gpr[0], cpu.gpr[2]) = (u64::MAX, u64::MAX);
    all(&mut cpu, &[&xsave]);
    assert_eq!(cpu.load::<u64>(DATA + 512), Ok(3));
    cpu.fpu = Fpu::default();
    cpu.fpu.xmm[0] = [9, 9];
    cpu.gpr[0] = 1;
    all(&mut cpu, &[&xrstor]);
    assert_eq!((cpu.fpu.xmm[0], cpu.fpu.st(0)), ([9, 9], F80::ONE));
    cpu.gpr[0] = 3;
    all(&mut cpu, &[&xrstor]);
    assert_eq!(cpu.fpu, saved);
    // Components marked absent come back in their initial state; the compacted format is refused.
    cpu.store(DATA + 512, 0u64).unwrap();
    all(&mut cpu, &[&xrstor]);
    assert_eq!(cpu.fpu, Fpu::default());
    cpu.store(DATA + 520, 1u64 << 63).unwrap();
    assert_eq!(run(&mut cpu, &xrstor), Err(13));
}

#[test]
fn the_64_bit_image_carries_everything_but_the_segments() {
    let mut cpu = rig();
    long(&mut cpu);
    divide_by_zero(&mut cpu);
    cpu.fpu.xmm[15] = [1, 2];
    let mut back = Fpu::default();
    back.from_fxsave(&cpu.fpu.to_fxsave());
    (back.fcs, back.fds) = (cpu.fpu.fcs, cpu.fpu.fds);
    assert_eq!(back, cpu.fpu);
    let mut garbage = Fpu::default();
    garbage.from_fxsave(&[0xff; 512]);
    assert_eq!((garbage.mxcsr, garbage.cw), (0xffff, 0x1f7f), "what no register can hold is dropped");
}

#[test]
fn mmx_aliases_the_significands_at_their_physical_places() {
    let mut cpu = rig();
    all(&mut cpu, &[FLD1]);
    assert_eq!(cpu.fpu.top, 7);
    // MOVD MM7, EAX; then EMMS.
    cpu.gpr[0] = 0x1234_5678;
    all(&mut cpu, &[&[0x0f, 0x6e, 0xf8]]);
    assert_eq!((cpu.fpu.top, cpu.fpu.full), (0, 0xff));
    assert_eq!(cpu.fpu.regs[7], F80 { mant: 0x1234_5678, se: 0xffff });
    all(&mut cpu, &[&[0x0f, 0x77], FLD1]);
    assert_eq!((cpu.fpu.top, cpu.fpu.full), (7, 0x80));
}
