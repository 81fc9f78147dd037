//! Loads and stores: pages, devices, code, the map.

use std::sync::atomic::Ordering;

use iced_x86::code_asm::*;

use super::*;
use crate::flags::AC;
use crate::insn::{RAX, RBX, Stop};
use crate::state::{Fault, Why};

const ROOT: u64 = 0x10_0000;
const ABSENT: u64 = 0x21_0000;

/// 32-bit paging; everything is mapped to itself but for [`ABSENT`].
fn paged() -> Machine {
    let mut m = Machine::protected();
    for k in 0..2 {
        m.write32(ROOT + 4 * k, (ROOT + 0x1000 * (k + 1)) as u32 | 7);
        for n in 0..1024 {
            m.write32(ROOT + 0x1000 * (k + 1) + 4 * n, ((1024 * k + n) << 12) as u32 | 7);
        }
    }
    m.write32(ROOT + 0x1000 + (ABSENT >> 12) * 4, 0);
    m.cpu.cr3 = ROOT;
    m.cpu.cr0 |= 1 << 31;
    m
}

fn fault(m: &mut Machine) -> Option<Fault> {
    match std::mem::replace(&mut m.cpu.why, Why::None) {
        Why::Fault(f) => Some(f),
        _ => None,
    }
}

#[test]
fn every_width_at_every_offset_around_a_page_end() {
    let mut m = paged();
    for at in 0x4ff0..0x5008u64 {
        m.cpu.store::<u64>(at, 0x8877_6655_4433_2211).unwrap();
        assert_eq!(m.read64(at), 0x8877_6655_4433_2211);
        assert_eq!(m.cpu.load::<u64>(at), Ok(0x8877_6655_4433_2211));
        assert_eq!(m.cpu.load::<u32>(at + 2), Ok(0x6655_4433));
        assert_eq!(m.cpu.load::<u16>(at + 5), Ok(0x7766));
        assert_eq!(m.cpu.load::<u8>(at + 7), Ok(0x88));
        m.cpu.store::<u16>(at + 1, 0xbbaa).unwrap();
        assert_eq!(m.cpu.load_rmw::<u32>(at), Ok(0x44bb_aa11));
        assert_eq!(m.cpu.sys_load::<u32>(at), Ok(0x44bb_aa11));
        let mut bytes = [0; 16];
        m.cpu.store_bytes(at, &[at as u8; 16]).unwrap();
        m.cpu.load_bytes(at, &mut bytes).unwrap();
        assert_eq!(bytes, [at as u8; 16]);
    }
}

#[test]
fn a_store_that_faults_in_the_second_page_stores_nothing() {
    let mut m = paged();
    let at = ABSENT - 3;
    m.write(at, [9; 3]);
    assert_eq!(m.cpu.store::<u32>(at, 0), Err(Stop));
    assert_eq!(fault(&mut m), Some(Fault { vector: 14, error: Some(2), cr2: ABSENT }));
    assert_eq!(m.cpu.store_bytes(at, &[0; 100]), Err(Stop));
    assert_eq!(fault(&mut m).map(|f| f.cr2), Some(ABSENT));
    assert_eq!(m.cpu.load_rmw::<u64>(at), Err(Stop));
    assert_eq!(fault(&mut m).and_then(|f| f.error), Some(2));
    assert_eq!(m.cpu.probe_write(at, 4), Err(Stop));
    assert_eq!(m.cpu.probe_write(at, 3), Ok(()));
    assert_eq!(m.read::<3>(at), [9; 3]);
    // From the other side.
    m.code(32, |a| a.mov(dword_ptr(ABSENT + 0xffe), eax).unwrap());
    assert_eq!(m.faults32(), (14, 2));
    assert_eq!(m.cpu.cr2, ABSENT + 0xffe);
}

#[test]
fn addresses_wrap_at_4_gib_outside_long_mode() {
    let mut m = Machine::protected();
    // The top of the address space is unclaimed: ones.
    m.write(0, [0x12, 0x34, 0x56]);
    assert_eq!(m.cpu.load::<u32>(0xffff_ffff), Ok(0x5634_12ff));
}

#[test]
fn devices_are_touched_alone_only() {
    let mut m = Machine::protected();
    m.cpu.may_io = false;
    assert_eq!(m.cpu.load::<u32>(DEVICE), Err(Stop));
    assert_eq!(m.cpu.why, Why::Alone);
    assert_eq!(m.cpu.store::<u32>(DEVICE, 0), Err(Stop));
    assert_eq!(m.cpu.load_rmw::<u32>(DEVICE), Err(Stop));
    assert_eq!(m.cpu.store_bytes(DEVICE - 4, &[0; 8]), Err(Stop));
    assert!(m.device.reads.lock().unwrap().is_empty() && m.device.writes.lock().unwrap().is_empty());
    m.cpu.may_io = true;
    assert_eq!(m.cpu.load::<u32>(DEVICE + 8), Ok(0x1101));
    m.cpu.store::<u16>(DEVICE + 2, 0xabcd).unwrap();
    m.cpu.store::<u32>(DEVICE - 2, 0x4433_2211).unwrap();
    assert_eq!(*m.device.reads.lock().unwrap(), [(8, 4)]);
    assert_eq!(*m.device.writes.lock().unwrap(), [(2, 2, 0xabcd), (0, 2, 0x4433)], "RAM takes the first half");
    assert_eq!(m.read16(RAM_LEN - 2), 0x2211);
}

#[test]
fn rom_reads_and_ignores_writes() {
    let mut m = Machine::protected();
    m.ram.write(RamAddr(RAM_LEN), &[1, 2, 3, 4]);
    assert_eq!(m.cpu.load::<u32>(ROM), Ok(0x0403_0201));
    m.cpu.store::<u32>(ROM, 0).unwrap();
    m.cpu.store::<u32>(ROM, 0).unwrap();
    assert_eq!(m.cpu.load::<u32>(ROM), Ok(0x0403_0201));
    assert_eq!(m.cpu.code_page(ROM), Ok(Some(RamAddr(RAM_LEN))));
    assert_eq!(m.cpu.code_page(DEVICE), Ok(None));
    let mut bytes = [0; 16];
    assert_eq!(m.cpu.fetch(ROM + 0xffd, &mut bytes), Ok(3));
}

#[test]
fn stores_to_decoded_code_are_reported_and_done_alone() {
    let mut m = Machine::protected();
    m.cpu.store::<u32>(0x5000, 1).unwrap();
    m.ram.code_lines(5).store(0b100, Ordering::Relaxed);
    m.cpu.drop_write_tags(5);
    m.cpu.may_io = false;
    // Other lines of the page are free.
    m.cpu.store::<u32>(0x5000, 2).unwrap();
    assert!(m.cpu.smc.is_empty());
    assert_eq!(m.cpu.store::<u8>(0x5080, 3), Err(Stop));
    assert_eq!(m.cpu.why, Why::Alone);
    assert_eq!(m.cpu.store::<u32>(0x507e, 3), Err(Stop), "reaches into the line");
    assert_eq!(m.cpu.load_rmw::<u32>(0x5080), Err(Stop));
    assert_eq!(m.read32(0x507e), 0);
    m.cpu.may_io = true;
    m.cpu.store::<u32>(0x507e, 0x4433_2211).unwrap();
    assert_eq!(m.cpu.smc, [(RamAddr(0x507e), 4)]);
    assert_eq!(m.read32(0x507e), 0x4433_2211);
    // Once the code is gone, stores are fast again.
    m.ram.code_lines(5).store(0, Ordering::Relaxed);
    assert_eq!(m.cpu.page_run(0x5000, true).unwrap().map(|r| r.1), Some(4096));
}

#[test]
fn string_runs_are_given_for_plain_pages_only() {
    let mut m = paged();
    let (host, len) = m.cpu.page_run(0x5123, true).unwrap().unwrap();
    assert_eq!((host, len), (m.ram.host(RamAddr(0x5123)), 0x1000 - 0x123));
    assert_eq!(m.cpu.page_run(DEVICE, false), Ok(None));
    assert_eq!(m.cpu.page_run(ROM, true), Ok(None));
    m.cpu.page_run(ABSENT, true).unwrap_err();
    m.ram.code_lines(6).store(1, Ordering::Relaxed);
    assert_eq!(m.cpu.page_run(0x6000, true), Ok(None));
    assert!(m.cpu.page_run(0x6000, false).unwrap().is_some());
    m.cpu.dr[0] = 0x7000;
    m.cpu.write_dr7(0x1_0001);
    assert_eq!(m.cpu.page_run(0x7000, true), Ok(None));
}

#[test]
fn a_change_of_the_map_ends_translations() {
    let mut m = Machine::protected();
    m.write32(0x5000, 5);
    assert_eq!(m.cpu.load::<u32>(0x5000), Ok(5));
    let id = m.space.add_memory(0x5000, 0x1000, 1, Rights::ReadWrite, Backing::Io(m.device.clone(), 0, Widths::DWORD));
    m.space.enable(id, 0x5000, true);
    m.cpu.sync_map();
    assert_eq!(m.cpu.load::<u32>(0x5000), Ok(0x1101));
    m.space.enable(id, 0x5000, false);
    m.cpu.sync_map();
    assert_eq!(m.cpu.load::<u32>(0x5000), Ok(5));
    m.space.enable(m.region, 0, false);
    m.cpu.sync_map();
    assert_eq!(m.cpu.load::<u32>(0x5000), Ok(u32::MAX));
}

#[test]
fn with_the_dirty_log_on_each_page_is_logged_once() {
    let mut m = Machine::protected();
    let block = m.ram.blocks()[0].clone();
    m.cpu.store::<u32>(0x5000, 1).unwrap();
    m.space.set_dirty_log(true);
    m.cpu.sync_map();
    m.cpu.load::<u32>(0x5000).unwrap();
    m.cpu.store::<u32>(0x5000, 2).unwrap();
    m.cpu.store::<u32>(0x5004, 2).unwrap();
    assert_eq!(m.ram.harvest_dirty(&block), [5]);
    // The harvester has the write translations dropped.
    m.cpu.drop_write_tags(5);
    m.cpu.store::<u32>(0x5008, 2).unwrap();
    assert_eq!(m.ram.harvest_dirty(&block), [5]);
}

#[test]
fn a_page_that_a_running_processor_may_write_on_to_is_harvested_until_it_cannot() {
    let mut m = Machine::protected();
    let block = m.ram.blocks()[0].clone();
    let harvest = |m: &Machine| m.space.harvest_dirty(&block);
    m.space.set_dirty_log(true);
    m.cpu.begin_slice();
    m.cpu.sync_map();
    m.cpu.store::<u32>(0x5000, 1).unwrap();
    assert_eq!(harvest(&m), [5]);
    m.cpu.store::<u32>(0x5000, 2).unwrap();
    assert_eq!(harvest(&m), [5], "the store went by what the processor remembered");
    assert_eq!(harvest(&m), [5], "it may come again");
    m.cpu.sync_map();
    assert_eq!(harvest(&m), [5], "what was stored between the last harvest and the look");
    assert!(harvest(&m).is_empty());
    m.cpu.store::<u32>(0x5000, 3).unwrap();
    m.cpu.end_slice();
    assert_eq!(harvest(&m), [5]);
    assert!(harvest(&m).is_empty(), "a processor that does not run looks before it goes on");
    m.cpu.begin_slice();
    m.cpu.sync_map();
    m.cpu.store::<u32>(0x5000, 4).unwrap();
    assert_eq!(harvest(&m), [5]);
}

#[test]
fn the_a20_gate_masks_physical_addresses() {
    let mut m = Machine::protected();
    m.write32(0x5000, 5);
    m.write32(0x10_5000, 6);
    m.cpu.a20_mask = !(1 << 20);
    m.cpu.flush_tlb(false);
    assert_eq!(m.cpu.load::<u32>(0x10_5000), Ok(5));
    assert_eq!(m.cpu.code_page(0x30_5000), Ok(Some(RamAddr(0x20_5000))));
}

#[test]
fn the_local_apic_is_where_its_base_says() {
    let mut m = Machine::protected();
    let version = m.cpu.load::<u32>(0xfee0_0030).unwrap();
    assert_eq!(version & 0xff, 0x14);
    m.cpu.store::<u32>(0xfee0_0080, 0x30).unwrap();
    assert_eq!((m.cpu.lapic.tpr(), m.cpu.load::<u8>(0xfee0_0080)), (0x30, Ok(0x30)));
    m.cpu.load::<u32>(0x5030).unwrap();
    assert!(m.cpu.write_msr(0x1b, 0x5000 | 1 << 11));
    assert_eq!(m.cpu.load::<u32>(0x5030), Ok(version), "over RAM, too");
    assert!(m.cpu.write_msr(0x1b, 0x5000));
    assert_eq!(m.cpu.load::<u32>(0x5030), Ok(0));
}

#[test]
fn alignment_is_checked_for_users_who_ask() {
    for (am, ac, cpl, want) in [(1, 1, 3, true), (0, 1, 3, false), (1, 0, 3, false), (1, 1, 0, false)] {
        let mut m = Machine::protected();
        m.cpu.cr0 |= am << 18;
        m.level(cpl);
        m.cpu.set_rflags(ac << 18, AC);
        m.code(32, |a| {
            a.mov(al, byte_ptr(0x5001)).unwrap();
            a.mov(eax, dword_ptr(0x5004)).unwrap();
            a.mov(ebx, dword_ptr(0x5002)).unwrap();
            a.int(0x30).unwrap();
        });
        m.write32(0x5002, 7);
        let v = m.vector();
        assert_eq!(v == 17, want, "{am} {ac} {cpl}");
        assert_eq!(m.gpr(RBX), if want { 0 } else { 7 });
        assert_eq!(m.gpr(RAX), 0);
    }
}

#[test]
fn page_tables_beside_code_and_in_other_tables_work() {
    // Accessed bits are writes: code decoded from the line is reported to the engine.
    let mut m = paged();
    m.ram.code_lines((ROOT + 0x1000) >> 12).store(1, Ordering::Relaxed);
    m.cpu.load::<u32>(0x5000).unwrap();
    assert!(m.ram.stale());
}

#[test]
fn more_pages_than_the_tlb_has_places() {
    let mut m = paged();
    for round in 0..3u32 {
        for n in 0..1024u64 {
            if n << 12 != ABSENT && !(ROOT >> 12..(ROOT >> 12) + 3).contains(&n) && n != 1 {
                m.cpu.store::<u32>(n << 12 | 0x800, round << 16 | n as u32).unwrap();
            }
        }
        m.cpu.flush_tlb(round == 1);
        for n in 0..1024u64 {
            if n << 12 != ABSENT && !(ROOT >> 12..(ROOT >> 12) + 3).contains(&n) && n != 1 {
                assert_eq!(m.cpu.load::<u32>(n << 12 | 0x800), Ok(round << 16 | n as u32));
            }
        }
    }
}
