//! What the comparison with the host cannot reach: real mode, segments of every sort, addresses that are not canonical,
//! repeated instructions in pieces, devices.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use emu::{Access, AddressSpace, Backing, Clock, CpuBus, Ram, RamAddr, Rights, Timers, Widths};

use crate::decode::{decode, decode_for, rebase};
use crate::feature::Features;
use crate::flags::{CF, Flags, TF, ZF};
use crate::insn::{BLOCK, CS, DS, END, ES, RAX, RBP, RBX, RCX, RDI, RSI, RSP, SS};
use crate::lapic::{ApicBus, Lapic};
use crate::model::Model;
use crate::state::{Cpu, Segment, Why};

const RAM: u64 = 0x20_0000;
/// A device behind the RAM.
const DEVICE: u64 = 0x30_0000;
/// Page tables of 64-bit code; they map the first gigabyte where it is, and again from here on.
const TABLES: u64 = 0x10_0000;
const HIGH: u64 = 0xffff_8000_0000_0000;

/// Answers with how often it was asked.
#[derive(Default)]
struct Counter(AtomicU64);

impl Access for Counter {
    fn owner(&self) -> &str {
        "counter"
    }

    fn read(&self, _: u32, _: u64, _: u8) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }

    fn write(&self, _: u32, _: u64, _: u8, _: u64) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

struct Rig {
    cpu: Cpu,
    counter: Arc<Counter>,
}

/// What an instruction did: nothing special, or raised an exception with an error code.
type Done = Result<(), (u8, Option<u32>)>;

impl Rig {
    /// In real mode, all segments at 0.
    fn real() -> Rig {
        let ram = Arc::new(Ram::new(RAM).unwrap());
        let block = ram.alloc("ram", RAM).unwrap();
        let space = AddressSpace::new(ram);
        let counter = Arc::new(Counter::default());
        let id = space.add_memory(0, RAM, 0, Rights::ReadWrite, Backing::Ram(block.start));
        space.enable(id, 0, true);
        let io = Backing::Io(counter.clone(), 0, Widths::QWORD);
        let id = space.add_memory(DEVICE, 0x1000, 0, Rights::ReadWrite, io);
        space.enable(id, DEVICE, true);
        let clock = Clock::manual();
        let lapic = Lapic::new(0, &ApicBus::new(), &Timers::new(clock.clone()), 1_000_000_000);
        let mut cpu = Cpu::new(Arc::new(Model::default()), CpuBus::new(space), clock, lapic);
        cpu.seg[usize::from(CS)] = Segment { selector: 0, base: 0, limit: 0xffff, access: 0x9b };
        cpu.rip = 0x1000;
        cpu.mode_changed();
        Rig { cpu, counter }
    }

    /// In flat 32-bit protected mode at CPL 0.
    fn flat() -> Rig {
        let mut rig = Rig::real();
        rig.cpu.cr0 |= 1;
        let data = Segment { selector: 0x10, base: 0, limit: u32::MAX, access: 0xc093 };
        rig.cpu.seg = [data; 8];
        rig.cpu.seg[usize::from(CS)] = Segment { selector: 8, access: 0xc09b, ..data };
        rig.cpu.mode_changed();
        rig
    }

    /// In 64-bit code at CPL 0.
    fn long() -> Rig {
        let mut rig = Rig::flat();
        let gigabyte = 0x83u64;
        for (at, entry) in
            [(TABLES, TABLES + 0x1003), (TABLES + 8 * 256, TABLES + 0x1003), (TABLES + 0x1000, TABLES + 0x2003)]
        {
            rig.write(at, &entry.to_le_bytes());
        }
        for n in 0..512 {
            rig.write(TABLES + 0x2000 + 8 * n, &(n << 21 | gigabyte).to_le_bytes());
        }
        rig.cpu.cr3 = TABLES;
        rig.cpu.cr4 = 0x20;
        rig.cpu.cr0 |= 1 << 31;
        rig.cpu.msr.efer = 0x500;
        rig.cpu.seg[usize::from(CS)].access = 0xa09b;
        rig.cpu.mode_changed();
        rig
    }

    fn write(&self, at: u64, data: &[u8]) {
        self.cpu.bus.ram().write(RamAddr(at), data);
    }

    fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut out = [0; N];
        self.cpu.bus.ram().read(RamAddr(at), &mut out);
        out
    }

    fn set(&mut self, r: u8, v: u64) {
        self.cpu.gpr[usize::from(r)] = v;
    }

    fn get(&self, r: u8) -> u64 {
        self.cpu.gpr[usize::from(r)]
    }

    /// Executes one instruction at RIP, once: a repeated one may leave RIP on itself.
    fn run(&mut self, code: &[u8]) -> Done {
        let cpu = &mut self.cpu;
        let start = cpu.rip;
        let insn = decode(code, cpu.mode).unwrap();
        assert_eq!(usize::from(insn.len), code.len());
        cpu.why = Why::None;
        cpu.may_io = true;
        cpu.gpr[usize::from(BLOCK)] = start;
        cpu.rip = start + code.len() as u64;
        if insn.execute(cpu).is_ok() {
            return Ok(());
        }
        cpu.rip = start;
        match cpu.why {
            Why::Fault(f) => Err((f.vector, f.error)),
            why => panic!("{why:?}"),
        }
    }
}

const GP: Done = Err((13, Some(0)));
const STACK_FAULT: Done = Err((12, Some(0)));

#[test]
fn a_word_at_the_end_of_a_real_mode_segment_faults_and_a_byte_does_not() {
    let mut m = Rig::real();
    m.write(0xffff, &[0x5a]);
    m.set(RBX, 0xffff);
    m.set(RBP, 0xffff);
    assert_eq!(m.run(&[0x8a, 0x07]), Ok(()));
    assert_eq!(m.get(RAX) & 0xff, 0x5a);
    assert_eq!(m.run(&[0x8b, 0x07]), GP);
    assert_eq!(m.run(&[0x8b, 0x46, 0x00]), STACK_FAULT);
    assert_eq!(m.run(&[0x3e, 0x8b, 0x46, 0x00]), GP, "a segment prefix decides");
}

#[test]
fn sixteen_bit_addresses_wrap_inside_the_segment() {
    let mut m = Rig::real();
    m.write(0x2_0012, &[0x77]);
    m.cpu.seg[usize::from(DS)].base = 0x2_0000;
    m.set(RBX, 0xabcd_fff0);
    m.set(RSI, 0x20);
    // mov al, [bx + si + 2]
    assert_eq!(m.run(&[0x8a, 0x40, 0x02]), Ok(()));
    assert_eq!(m.get(RAX) & 0xff, 0x77);
}

#[test]
fn real_mode_code_segments_can_be_written_and_protected_ones_cannot() {
    let mut m = Rig::real();
    m.set(RBX, 0x2000);
    m.set(RAX, 0x99);
    assert_eq!(m.run(&[0x2e, 0x88, 0x07]), Ok(()));
    assert_eq!(m.read(0x2000), [0x99]);
    let mut m = Rig::flat();
    m.set(RBX, 0x2000);
    assert_eq!(m.run(&[0x2e, 0x8a, 0x03]), Ok(()));
    assert_eq!(m.run(&[0x2e, 0x88, 0x03]), GP);
}

#[test]
fn a_null_segment_and_a_read_only_one_and_one_that_grows_down_have_their_limits() {
    let mut m = Rig::flat();
    m.set(RBX, 0x2000);
    m.cpu.seg[usize::from(DS)].access |= Segment::UNUSABLE;
    m.cpu.mode_changed();
    assert_eq!(m.run(&[0x8b, 0x03]), GP);
    assert_eq!(m.run(&[0x26, 0x8b, 0x03]), Ok(()));
    m.cpu.seg[usize::from(DS)].access = 0xc091;
    m.cpu.mode_changed();
    assert_eq!(m.run(&[0x8b, 0x03]), Ok(()));
    assert_eq!(m.run(&[0x89, 0x03]), GP);
    // Growing down from 4 GiB, or from 64 KiB if not big: offsets up to the limit are outside.
    m.cpu.seg[usize::from(DS)] = Segment { selector: 0x18, base: 0, limit: 0x1fff, access: 0x4097 };
    m.cpu.mode_changed();
    assert_eq!(m.run(&[0x89, 0x03]), Ok(()));
    m.set(RBX, 0x1fff);
    assert_eq!(m.run(&[0x89, 0x03]), GP);
    m.set(RBX, 0xfffd);
    assert_eq!(m.run(&[0x89, 0x03]), Ok(()));
    m.cpu.seg[usize::from(DS)].access = 0x0097;
    assert_eq!(m.run(&[0x89, 0x03]), GP);
}

#[test]
fn a_stack_of_16_bits_wraps_and_keeps_the_upper_half() {
    let mut m = Rig::real();
    m.cpu.seg[usize::from(SS)].base = 0x4_0000;
    m.set(RSP, 0x1234_0000);
    m.set(RAX, 0xbeef);
    assert_eq!(m.run(&[0x50]), Ok(()));
    assert_eq!(m.get(RSP), 0x1234_fffe);
    assert_eq!(m.read(0x4_fffe), [0xef, 0xbe]);
    assert_eq!(m.run(&[0x5b]), Ok(()));
    assert_eq!((m.get(RSP), m.get(RBX) & 0xffff), (0x1234_0000, 0xbeef));
    m.set(RSP, 1);
    assert_eq!(m.run(&[0x50]), STACK_FAULT, "a word at FFFF");
    // PUSHA that does not fit changes nothing.
    m.set(RSP, 7);
    assert_eq!(m.run(&[0x60]), STACK_FAULT);
    assert_eq!(m.get(RSP), 7);
}

#[test]
fn jumps_wrap_in_16_bit_code_and_fault_beyond_the_limit() {
    let mut m = Rig::real();
    m.cpu.rip = 0xfff0;
    assert_eq!(m.run(&[0xeb, 0x20]), Ok(()));
    assert_eq!(m.cpu.rip, 0x12);
    m.cpu.rip = 0xfff0;
    assert_eq!(m.run(&[0x66, 0xe9, 0x20, 0, 0, 0]), GP);
    assert_eq!(m.cpu.rip, 0xfff0);
    // CALL checks the target before it pushes, RET before it pops.
    m.set(RSP, 0x8000);
    assert_eq!(m.run(&[0x66, 0xe8, 0x20, 0, 0, 0]), GP);
    assert_eq!(m.get(RSP), 0x8000);
    m.write(0x8000, &0x1_0000u32.to_le_bytes());
    assert_eq!(m.run(&[0x66, 0xc3]), GP);
    assert_eq!(m.get(RSP), 0x8000);
    // LOOP does not count when its target faults.
    m.set(RCX, 5);
    m.cpu.rip = 0xfff0;
    assert_eq!(m.run(&[0x66, 0xe2, 0x20]), GP);
    assert_eq!(m.get(RCX), 5);
}

#[test]
fn loop_counts_with_the_register_of_the_address_size() {
    let mut m = Rig::real();
    m.set(RCX, 0x1_0001);
    assert_eq!(m.run(&[0xe2, 0x10]), Ok(()));
    assert_eq!((m.get(RCX), m.cpu.rip), (0x1_0000, 0x1002), "CX reached 0");
    assert_eq!(m.run(&[0x67, 0xe2, 0x10]), Ok(()));
    assert_eq!((m.get(RCX), m.cpu.rip), (0xffff, 0x1015));
    m.set(RCX, 0x1_0000);
    assert_eq!(m.run(&[0xe3, 0x10]), Ok(()));
    assert_eq!(m.cpu.rip, 0x1027);
}

#[test]
fn branches_to_addresses_that_are_not_canonical_fault_before_they_happen() {
    let mut m = Rig::long();
    m.set(RSP, 0x8000);
    for bad in [0x8000_0000_0000, 0xffff_7fff_ffff_ffff, 1 << 63] {
        m.set(RAX, bad);
        m.write(0x8000, &bad.to_le_bytes());
        assert_eq!(m.run(&[0xff, 0xe0]), GP);
        assert_eq!(m.run(&[0xff, 0xd0]), GP);
        assert_eq!(m.run(&[0xc3]), GP);
        assert_eq!(m.run(&[0xc2, 8, 0]), GP);
        assert_eq!((m.get(RSP), m.cpu.rip), (0x8000, 0x1000));
    }
    m.set(RAX, HIGH);
    assert_eq!(m.run(&[0xff, 0xe0]), Ok(()));
    assert_eq!(m.cpu.rip, HIGH);
}

#[test]
fn addresses_that_are_not_canonical_are_stack_faults_with_rsp_or_rbp() {
    let mut m = Rig::long();
    for r in [RAX, RBP, RSP] {
        m.set(r, 0x8000_0000_0010);
    }
    assert_eq!(m.run(&[0x48, 0x8b, 0x08]), GP);
    assert_eq!(m.run(&[0x48, 0x8b, 0x4d, 0]), STACK_FAULT);
    assert_eq!(m.run(&[0x48, 0x83, 0x45, 0, 1]), STACK_FAULT);
    assert_eq!(m.run(&[0x50]), STACK_FAULT);
    assert_eq!(m.run(&[0x58]), STACK_FAULT);
    assert_eq!(m.run(&[0xc3]), STACK_FAULT);
    assert_eq!(m.run(&[0xc9]), STACK_FAULT);
    assert_eq!(m.get(RSP), 0x8000_0000_0010);
}

#[test]
fn an_offset_of_64_bits_reaches_the_upper_half() {
    let mut m = Rig::long();
    m.write(0x3000, &[0xa5]);
    let mut code = vec![0xa0];
    code.extend_from_slice(&(HIGH + 0x3000).to_le_bytes());
    assert_eq!(m.run(&code), Ok(()));
    assert_eq!(m.get(RAX) & 0xff, 0xa5);
    m.set(RAX, 0x1122);
    code[0] = 0xa3;
    code.insert(0, 0x66);
    assert_eq!(m.run(&code), Ok(()));
    assert_eq!(m.read(0x3000), [0x22, 0x11]);
}

#[test]
fn an_operand_nearly_two_gigabytes_ahead_of_rip_is_found() {
    let mut m = Rig::long();
    m.cpu.rip = 0x1000;
    let mut lea = vec![0x48, 0x8d, 0x05];
    lea.extend_from_slice(&i32::MAX.to_le_bytes());
    assert_eq!(m.run(&lea), Ok(()));
    assert_eq!(m.get(RAX), 0x1007 + 0x7fff_ffff);
}

#[test]
fn a_repeated_move_goes_in_pieces_and_ends_where_one_by_one_would() {
    let mut m = Rig::flat();
    let pattern: Vec<u8> = (0..0x4000u32).map(|n| ((n * 7) >> 3) as u8).collect();
    m.write(0x1_0000, &pattern);
    m.set(RSI, 0x1_0000 + 3);
    m.set(RDI, 0x2_0000 + 0xffe);
    m.set(RCX, 0x2800);
    let mut pieces = 0;
    while pieces == 0 || m.cpu.rip == 0x1000 {
        let before = m.get(RCX);
        assert_eq!(m.run(&[0xf3, 0xa4]), Ok(()));
        let moved = before - m.get(RCX);
        assert!(moved > 0 && moved <= 4096, "a piece is bounded");
        pieces += 1;
    }
    assert!(pieces > 2);
    assert_eq!((m.get(RCX), m.get(RSI), m.get(RDI)), (0, 0x1_2803, 0x2_37fe));
    let copy: [u8; 0x2802] = m.read(0x2_0ffd);
    assert_eq!(copy[0], 0);
    assert_eq!(copy[1..0x2801], pattern[3..0x2803]);
    assert_eq!(copy[0x2801], 0);
}

#[test]
fn a_repeated_comparison_ends_at_the_same_element_as_one_by_one() {
    // REPE and REPNE, CMPS and SCAS, of all widths; a device's page makes it go one by one.
    for (prefix, op, width) in
        [0xf3, 0xf2].into_iter().flat_map(|p| [(p, 0xa6, 1), (p, 0xa7, 4), (p, 0xae, 1), (p, 0xaf, 4)])
    {
        for odd in [0, 1, 5, 16, 17, 99] {
            let mut m = Rig::flat();
            let (same, other) = if prefix == 0xf3 { (7, 9) } else { (9, 7) };
            let mut two = vec![same; 100 * width];
            two[odd * width + width - 1] = other;
            if width == 4 && prefix == 0xf2 {
                two[odd * 4..odd * 4 + 4].fill(7);
            }
            m.write(0x5000, &vec![7; 400]);
            m.write(0x6000, &two);
            m.set(RAX, 0x0707_0707);
            m.set(RSI, 0x5000);
            m.set(RDI, 0x6000);
            m.set(RCX, 90);
            assert_eq!(m.run(&[prefix, op]), Ok(()));
            let done = (odd + 1).min(90);
            let at = 0x6000 + (done * width) as u64;
            assert_eq!((m.get(RCX), m.get(RDI)), (90 - done as u64, at), "{prefix:x} {op:x} {odd}");
            assert_eq!(m.get(RSI), if op < 0xa8 { at - 0x1000 } else { 0x5000 });
            let (a, b) = (0x0707_0707u32, two[(done - 1) * width..][..width].to_vec());
            let (a, b) = match b[..] {
                [b] => (7, u32::from(b)),
                _ => (a, u32::from_le_bytes(b.try_into().unwrap())),
            };
            assert_eq!((m.cpu.flags.zf(), m.cpu.flags.cf()), (a == b, a < b), "{prefix:x} {op:x} {odd}");
        }
    }
}

#[test]
fn an_overlapping_repeated_move_spreads_its_first_elements() {
    for (code, step) in [(&[0xf3u8, 0xa4][..], 1u64), (&[0xf3, 0xa5], 4)] {
        for distance in 1..12 {
            let mut m = Rig::flat();
            let mut want: Vec<u8> = (1..=100).collect();
            m.write(0x5000, &want);
            m.set(RSI, 0x5000);
            m.set(RDI, 0x5000 + distance);
            m.set(RCX, 64 / step);
            assert_eq!(m.run(code), Ok(()));
            for n in (0..64).step_by(step as usize) {
                let element = want[n..n + step as usize].to_vec();
                let to = n + distance as usize;
                want[to..to + step as usize].copy_from_slice(&element);
            }
            assert_eq!(m.read::<100>(0x5000)[..], want[..], "{step} bytes, {distance} apart");
        }
    }
}

#[test]
fn single_stepping_repeats_once_at_a_time() {
    let mut m = Rig::flat();
    m.cpu.rflags |= TF;
    m.set(RDI, 0x5000);
    m.set(RCX, 3);
    m.set(RAX, 0x42);
    assert_eq!(m.run(&[0xf3, 0xaa]), Ok(()));
    assert_eq!((m.get(RCX), m.get(RDI), m.cpu.rip), (2, 0x5001, 0x1000));
}

#[test]
fn a_repeated_store_stops_at_the_end_of_its_segment() {
    let mut m = Rig::real();
    m.cpu.seg[usize::from(ES)] = Segment { selector: 0, base: 0x5_0000, limit: 0x2ff, access: 0x93 };
    m.set(RDI, 0x2f0);
    m.set(RCX, 100);
    m.set(RAX, 0x42);
    let mut done = Ok(());
    while done.is_ok() {
        done = m.run(&[0xf3, 0xaa]);
    }
    assert_eq!(done, GP);
    assert_eq!((m.get(RCX), m.get(RDI)), (84, 0x300));
    assert_eq!(m.read(0x5_02ff), [0x42, 0]);
}

#[test]
fn sixteen_bit_pointers_wrap_in_the_middle_of_a_repeated_move() {
    let mut m = Rig::real();
    m.write(0xfffe, &[1, 2]);
    m.write(0, &[3, 4]);
    m.set(RSI, 0xabcd_fffe);
    m.set(RDI, 0x5000);
    m.set(RCX, 0x9_0004);
    while m.get(RCX) & 0xffff != 0 {
        assert_eq!(m.run(&[0xf3, 0xa4]), Ok(()));
        m.cpu.rip = 0x1000;
    }
    assert_eq!(m.read(0x5000), [1, 2, 3, 4, 0]);
    assert_eq!((m.get(RSI), m.get(RCX)), (0xabcd_0002, 0x9_0000));
}

#[test]
fn a_device_is_not_touched_before_the_instruction_runs_alone() {
    let mut m = Rig::flat();
    m.set(RBX, DEVICE);
    m.set(RAX, 5);
    m.cpu.flags = Flags::from_bits(CF);
    let add = decode(&[0x01, 0x03], m.cpu.mode).unwrap();
    m.cpu.may_io = false;
    assert!(add.execute(&mut m.cpu).is_err());
    assert_eq!(m.cpu.why, Why::Alone);
    assert_eq!((m.counter.0.load(Ordering::Relaxed), m.cpu.flags.bits()), (0, CF));
    assert_eq!(m.run(&[0x01, 0x03]), Ok(()));
    assert_eq!(m.counter.0.load(Ordering::Relaxed), 2, "one read and one write");
    assert_eq!(m.cpu.flags.bits() & (CF | ZF), 0);
}

#[test]
fn what_may_leave_the_block_ends_it() {
    let mode = Rig::long().cpu.mode;
    let ends = |code: &[u8]| decode(code, mode).unwrap().flags & END != 0;
    for code in [&[0xc3][..], &[0xeb, 0], &[0x74, 0], &[0xf3, 0xa4], &[0xff, 0xe0], &[0xe2, 0], &[0xf3, 0x90]] {
        assert!(ends(code), "{code:x?}");
    }
    for code in [&[0x90][..], &[0xa4], &[0xff, 0xc0], &[0xff, 0xf0], &[0x0f, 0x44, 0xc0], &[0x9c + 2]] {
        assert!(!ends(code), "{code:x?}");
    }
}

#[test]
fn a_comparison_fused_with_a_jump_does_what_both_do() {
    // RAX and [RBX] with ECX or an immediate: every width of CMP, TEST, INC and DEC.
    const CODES: [&[u8]; 25] = [
        &[0x38, 0xc8],
        &[0x66, 0x39, 0xc8],
        &[0x39, 0xc8],
        &[0x48, 0x3b, 0xc1],
        &[0x38, 0x0b],
        &[0x48, 0x39, 0x0b],
        &[0x3a, 0x0b],
        &[0x3b, 0x0b],
        &[0x3c, 0x80],
        &[0x48, 0x3d, 0xff, 0xff, 0xff, 0x7f],
        &[0x83, 0xf8, 0xff],
        &[0x80, 0x3b, 0x7f],
        &[0x48, 0x83, 0x3b, 0x00],
        &[0x80, 0xfc, 0x7f],
        &[0x84, 0xc8],
        &[0x48, 0x85, 0xc0],
        &[0xa8, 0x80],
        &[0xa9, 0x00, 0x00, 0x00, 0x80],
        &[0xf6, 0xc4, 0x80],
        &[0xf7, 0x03, 0xff, 0x00, 0x00, 0x00],
        &[0x66, 0xff, 0xc0],
        &[0xff, 0xc0],
        &[0x48, 0xff, 0xc8],
        &[0xff, 0xc8],
        &[0xfe, 0xc8],
    ];
    const VALUES: [u64; 8] = [0, 1, 0x7f, 0x80, 0x8000_0000, 0x7fff_ffff, u64::MAX, 1 << 63];
    let mut fused = 0;
    for code in CODES {
        let mut rig = Rig::long();
        let start = rig.cpu.rip;
        for condition in 0..16 {
            let jcc = [0x70 | condition, 0x10];
            for (a, b) in VALUES.iter().flat_map(|a| VALUES.map(|b| (*a, b))) {
                rig.write(0x8000, &a.to_le_bytes());
                rig.cpu.rip = start;
                for (r, v) in [(RAX, a), (RBX, 0x8000), (RCX, b)] {
                    rig.set(r, v);
                }
                rig.cpu.flags = Flags::from_bits(CF | ZF);
                rig.run(code).unwrap();
                rig.run(&jcc).unwrap();
                let apart = (rig.cpu.rip, rig.cpu.gpr[..16].to_vec(), rig.cpu.flags.bits());

                for (r, v) in [(RAX, a), (RBX, 0x8000), (RCX, b)] {
                    rig.set(r, v);
                }
                rig.cpu.flags = Flags::from_bits(CF | ZF);
                let mode = rig.cpu.mode;
                let both = decode_for(code, mode, Features::ALL, Some(condition)).unwrap();
                let mut jump = decode(&jcc, mode).unwrap();
                rebase(&mut jump, code.len() as u16);
                fused += u32::from(both.exec as usize != decode(code, mode).unwrap().exec as usize);
                rig.cpu.gpr[usize::from(BLOCK)] = start;
                rig.cpu.rip = start + code.len() as u64 + 2;
                let run = [both, jump];
                run.as_ptr().expose_provenance();
                assert_eq!((run[0].exec)(&mut rig.cpu, &run[0]), Ok(()));
                let together = (rig.cpu.rip, rig.cpu.gpr[..16].to_vec(), rig.cpu.flags.bits());
                assert_eq!(together, apart, "{code:x?} {condition:x} {a:x} {b:x}");
            }
        }
    }
    assert!(fused > 24 * 6 * 64, "only {fused} were fused at all");
}
