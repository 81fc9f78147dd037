//! Loads of segment registers, limits and rights, unreal mode.

use iced_x86::code_asm::*;

use super::*;
use crate::insn::{RAX, RBX, RCX};

const SEL: u16 = sel::FREE;

/// Loads DS with a selector of CPL 0 and reports what happened: vector and error code, or none.
fn load_ds(m: &mut Machine, selector: u16) -> Option<(u8, u32)> {
    m.level(0);
    m.code(32, |a| {
        a.mov(eax, u32::from(selector)).unwrap();
        a.mov(ds, eax).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(m.run(), Exit::Halted);
    if m.cpu.rip < HANDLERS { None } else { Some((((m.cpu.rip - HANDLERS) / 16) as u8, m.stack32::<1>()[0])) }
}

#[test]
fn data_segments_are_checked_in_the_order_of_the_manual() {
    let mut m = Machine::protected();
    let set = |m: &Machine, flags: u32| m.set_descriptor(SEL, descriptor(0, 0xfffff, flags));
    set(&m, flags::DATA);
    assert_eq!(load_ds(&mut m, SEL), None);
    assert_eq!(m.access_byte(SEL), 0x93, "the accessed bit is written back");
    set(&m, flags::DATA & !0x8000);
    assert_eq!(load_ds(&mut m, SEL), Some((11, SEL.into())), "not present");
    set(&m, 0x9800);
    assert_eq!(load_ds(&mut m, SEL), Some((13, SEL.into())), "code that cannot be read");
    set(&m, 0x9a00);
    assert_eq!(load_ds(&mut m, SEL), None, "readable code");
    assert_eq!(load_ds(&mut m, SEL | 3), Some((13, SEL.into())), "RPL 3 for DPL 0");
    set(&m, 0x9e00);
    assert_eq!(load_ds(&mut m, SEL | 3), None, "conforming code");
    set(&m, flags::TSS32);
    assert_eq!(load_ds(&mut m, SEL), Some((13, SEL.into())), "a system segment");
    assert_eq!(load_ds(&mut m, 0x108), Some((13, 0x108)), "beyond the table");
    assert_eq!(load_ds(&mut m, SEL | 4), Some((13, u32::from(SEL) | 4)), "no local table");
    assert_eq!(load_ds(&mut m, 3), None, "null");
}

#[test]
fn a_null_segment_faults_when_it_is_used() {
    let mut m = Machine::protected();
    m.code(32, |a| {
        a.xor(eax, eax).unwrap();
        a.mov(ds, eax).unwrap();
        a.mov(ebx, dword_ptr(0x5000)).unwrap();
    });
    assert_eq!(m.faults32(), (13, 0));
}

#[test]
fn the_stack_segment_must_be_writable_and_of_the_present_level() {
    for (flags, selector, want) in [
        (0x9000, SEL, (13, SEL.into())),
        (flags::DATA | flags::DPL3, SEL, (13, SEL.into())),
        (flags::DATA, SEL | 1, (13, SEL.into())),
        (flags::DATA & !0x8000, SEL, (12, SEL.into())),
        (flags::DATA, 0, (13, 0)),
    ] {
        let mut m = Machine::protected();
        m.set_descriptor(SEL, descriptor(0, 0xfffff, flags));
        m.code(32, |a| {
            a.mov(eax, u32::from(selector)).unwrap();
            a.mov(ss, eax).unwrap();
        });
        assert_eq!(m.faults32(), want, "{flags:x} {selector:x}");
    }
}

#[test]
fn limits_hold_for_the_last_byte_and_expand_down_is_the_complement() {
    for (flags, limit, offset, faults) in [
        (flags::DATA, 0xfff, 0xffc, false),
        (flags::DATA, 0xfff, 0xffd, true),
        // Expand down, 16 bits: 1000 to FFFF.
        (0x9600, 0xfff, 0xfff, true),
        (0x9600, 0xfff, 0x1000, false),
        (0x9600, 0xfff, 0xfffc, false),
        (0x9600, 0xfff, 0xfffd, true),
        // 32 bits: up to FFFFFFFF.
        (0x40_9600, 0xfff, 0x1_0000, false),
    ] {
        let mut m = Machine::protected();
        m.set_descriptor(SEL, descriptor(0, limit, flags));
        m.code(32, |a| {
            a.mov(eax, u32::from(SEL)).unwrap();
            a.mov(es, eax).unwrap();
            a.mov(eax, dword_ptr(offset).es()).unwrap();
            a.hlt().unwrap();
        });
        if faults {
            assert_eq!(m.faults32(), (13, 0), "{flags:x} {offset:x}");
        } else {
            m.runs();
        }
    }
}

#[test]
fn a_write_to_a_read_only_segment_faults() {
    let mut m = Machine::protected();
    m.set_descriptor(SEL, descriptor(0, 0xfffff, 0x9000));
    m.code(32, |a| {
        a.mov(eax, u32::from(SEL)).unwrap();
        a.mov(es, eax).unwrap();
        a.mov(ebx, dword_ptr(0x5000).es()).unwrap();
        a.mov(dword_ptr(0x5000).es(), ebx).unwrap();
    });
    assert_eq!(m.faults32(), (13, 0));
    assert_eq!(m.read32(STACK - 12), CODE as u32 + 14, "EIP of the write");
}

#[test]
fn leaving_protected_mode_keeps_the_limits() {
    let mut m = Machine::real();
    m.set_descriptor(SEL, descriptor(0, 0xf_ffff, flags::DATA | flags::BIG));
    m.cpu.gdtr = Table { base: GDT, limit: 0xff };
    m.write32(0x20_0000, 0x1234_5678);
    m.code(16, |a| {
        a.mov(eax, cr0).unwrap();
        a.or(al, 1).unwrap();
        a.mov(cr0, eax).unwrap();
        a.mov(bx, u32::from(SEL)).unwrap();
        a.mov(ds, bx).unwrap();
        a.and(al, 0xfe).unwrap();
        a.mov(cr0, eax).unwrap();
        a.xor(bx, bx).unwrap();
        a.mov(ds, bx).unwrap();
        a.mov(ebx, 0x20_0000).unwrap();
        a.mov(ecx, dword_ptr(ebx)).unwrap();
        a.hlt().unwrap();
    });
    m.runs();
    assert_eq!(m.gpr(RCX), 0x1234_5678);
    let data = m.cpu.seg[DS as usize];
    assert_eq!((data.selector, data.base, data.limit), (0, 0, u32::MAX));
    // ES was never loaded: its limit is 64 KiB.
    m.code(16, |a| {
        a.mov(ebx, 0x20_0000).unwrap();
        a.mov(ecx, dword_ptr(ebx).es()).unwrap();
    });
    assert_eq!(m.vector(), 13);
}

#[test]
fn a_word_at_ffff_faults_in_real_mode_and_sp_wraps() {
    let mut m = Machine::real();
    m.code(16, |a| {
        a.mov(bx, word_ptr(0xffff)).unwrap();
    });
    assert_eq!(m.vector(), 13);
    let mut m = Machine::real();
    m.cpu.gpr[RSP as usize] = 0;
    m.code(16, |a| {
        a.mov(ax, 0xabcd).unwrap();
        a.push(ax).unwrap();
        a.hlt().unwrap();
    });
    m.runs();
    assert_eq!((m.gpr(RSP), m.read16(0xfffe)), (0xfffe, 0xabcd));
    // With SP = 1 a push would straddle the end of the segment, and so does the push of the exception for that.
    let mut m = Machine::real();
    m.cpu.gpr[RSP as usize] = 1;
    m.code(16, |a| {
        a.push(ax).unwrap();
    });
    assert_eq!(m.run(), Exit::Shutdown);
}

#[test]
fn pop_ss_and_lss_load_both_halves() {
    let mut m = Machine::protected();
    m.write32(0x5000, 0x8800);
    m.write16(0x5004, sel::DATA0);
    m.code(32, |a| {
        a.lss(esp, dword_ptr(0x5000)).unwrap();
        a.push(ss).unwrap();
        a.pop(es).unwrap();
        a.mov(eax, ss).unwrap();
        a.hlt().unwrap();
    });
    m.cpu.gpr[RAX as usize] = u64::MAX;
    m.runs();
    assert_eq!((m.gpr(RSP), m.gpr(RAX)), (0x8800, sel::DATA0.into()));
}

#[test]
fn lar_lsl_verr_and_verw_answer_by_zf() {
    let mut m = Machine::protected();
    m.set_descriptor(SEL, descriptor(0, 0x12345, flags::DATA));
    m.set_descriptor(SEL + 8, descriptor(0, 0x12, flags::CODE | flags::BIG));
    m.code(32, |a| {
        a.mov(ecx, u32::from(SEL)).unwrap();
        a.lar(eax, ecx).unwrap();
        a.setz(byte_ptr(0x5000)).unwrap();
        a.lsl(ebx, ecx).unwrap();
        a.setz(byte_ptr(0x5001)).unwrap();
        a.verr(cx).unwrap();
        a.setz(byte_ptr(0x5002)).unwrap();
        a.verw(cx).unwrap();
        a.setz(byte_ptr(0x5003)).unwrap();
        a.add(ecx, 8).unwrap();
        a.lsl(edx, ecx).unwrap();
        a.verw(cx).unwrap();
        a.setz(byte_ptr(0x5004)).unwrap();
        a.mov(ecx, 0x1000).unwrap();
        a.mov(esi, 77).unwrap();
        a.lar(esi, ecx).unwrap();
        a.setz(byte_ptr(0x5005)).unwrap();
        a.hlt().unwrap();
    });
    m.runs();
    assert_eq!(m.read::<6>(0x5000), [1, 1, 1, 1, 0, 0]);
    assert_eq!((m.gpr(RAX), m.gpr(RBX)), (0x1_9200, 0x12345));
    assert_eq!(m.gpr(crate::insn::RDX), 0x12fff);
    assert_eq!(m.gpr(crate::insn::RSI), 77, "LAR leaves its destination alone when it fails");
}

#[test]
fn arpl_raises_the_requested_level() {
    let mut m = Machine::protected();
    m.code(32, |a| {
        a.mov(eax, 0x20).unwrap();
        a.mov(ebx, 3).unwrap();
        a.arpl(ax, bx).unwrap();
        a.setz(cl).unwrap();
        a.arpl(ax, bx).unwrap();
        a.setz(ch).unwrap();
        a.hlt().unwrap();
    });
    m.runs();
    assert_eq!((m.gpr(RAX), m.gpr(RCX)), (0x23, 1));
}

#[test]
fn descriptor_tables_and_system_segments_load_and_store() {
    let mut m = Machine::protected();
    m.set_descriptor(SEL, descriptor(LDT as u32, 0xf, 0x8200));
    m.set_descriptor(SEL + 8, descriptor(0x4000, 0x67, flags::TSS32));
    m.write16(0x5000, 0x7f);
    m.write32(0x5002, 0xff12_3456);
    m.code(32, |a| {
        a.lidt(fword_ptr(0x5000)).unwrap();
        a.sidt(fword_ptr(0x5010)).unwrap();
        a.mov(eax, u32::from(SEL)).unwrap();
        a.lldt(ax).unwrap();
        a.add(eax, 8).unwrap();
        a.ltr(ax).unwrap();
        a.sldt(ebx).unwrap();
        a.str(word_ptr(0x5020)).unwrap();
        a.smsw(edx).unwrap();
        a.hlt().unwrap();
    });
    m.runs();
    assert_eq!(m.cpu.idtr, Table { base: 0xff12_3456, limit: 0x7f });
    assert_eq!(m.read::<6>(0x5010), m.read::<6>(0x5000));
    assert_eq!((m.cpu.ldtr.base, m.cpu.tr.base, m.gpr(RBX)), (LDT, 0x4000, SEL.into()));
    assert_eq!(m.read16(0x5020), SEL + 8);
    assert_eq!(m.access_byte(SEL + 8), 0x8b, "LTR makes the TSS busy");
    assert_eq!(m.gpr(crate::insn::RDX), 0x11);
    // A busy TSS cannot be loaded again.
    let mut m = Machine::protected();
    m.code(32, |a| {
        a.mov(eax, u32::from(sel::TSS)).unwrap();
        a.ltr(ax).unwrap();
    });
    assert_eq!(m.faults32(), (13, sel::TSS.into()));
}

#[test]
fn a_local_table_is_used_and_its_limit_holds() {
    let mut m = Machine::protected();
    m.write64(LDT + 8, descriptor(0x5000, 0xfff, flags::DATA));
    m.cpu.ldtr = Segment { selector: 0x30, base: LDT, limit: 0xf, access: 0x82 };
    m.write32(0x5010, 0xcafe);
    m.code(32, |a| {
        a.mov(eax, 0x0c).unwrap();
        a.mov(gs, eax).unwrap();
        a.mov(ebx, dword_ptr(0x10).gs()).unwrap();
        a.mov(eax, 0x14).unwrap();
        a.mov(gs, eax).unwrap();
    });
    assert_eq!(m.faults32(), (13, 0x14));
    assert_eq!(m.gpr(RBX), 0xcafe);
}
