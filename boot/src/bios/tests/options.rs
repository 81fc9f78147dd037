//! Option ROMs, and what they call.

use super::*;
use crate::bios::rom::{BOOT_FAILED, PNP, ROMS};

const NAME: &[u8] = b"Some ROM\0";
/// Where its boot entry vector and its boot connection vector lead.
const BEV: u16 = 0x150;
const BCV: u16 = 0x160;

/// A ROM for 1AF4:1000 of `units` times 512 bytes.
fn option_rom(units: u8, bev: u16, bcv: u16) -> Vec<u8> {
    let mut rom = vec![0; usize::from(units) * 512];
    let mut put = |at: usize, bytes: &[u8]| rom[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &[0x55, 0xaa, units, 0xcb]);
    put(0x18, &[0x40, 0, 0x80, 0]);
    put(0x40, b"PCIR\xf4\x1a\x00\x10\0\0\x18\0\0\0\0\x02");
    put(0x50, &[units, 0, 0, 0, 0, 0x80]);
    put(0x80, b"$PnP\x01\x02");
    put(0x90, &0x100u16.to_le_bytes());
    put(0x96, &bcv.to_le_bytes());
    put(0x9a, &bev.to_le_bytes());
    put(0x100, NAME);
    balanced(rom)
}

fn balanced(mut rom: Vec<u8>) -> Vec<u8> {
    let last = rom.len() - 1;
    rom[last] = 0;
    rom[last] = rom.iter().fold(0u8, |s, b| s.wrapping_add(*b)).wrapping_neg();
    rom
}

fn with_rom(rom: Vec<u8>) -> Rig {
    let mut rig = rig(vec![(DriveKind::Disk, vec![0; 4096])], |_| {});
    rig.host.rom = rom;
    rig
}

/// The stack behind the frame.
fn left(rig: &mut Rig, n: u64) -> u16 {
    rig.word(FRAME + frame::LEN as u64 + 2 * n)
}

fn hook(rig: &mut Rig, vector: u64, to: u32) {
    rig.host.write(4 * vector, &to.to_le_bytes());
}

#[test]
fn a_rom_is_copied_initialized_with_its_function_and_written_no_more() {
    let mut rig = with_rom(option_rom(5, BEV, 0));
    let r = rig.call(service::POST, Regs::default());
    assert_eq!((r.cs, r.ip), (data::ROM_SEGMENT, ROMS));
    let r = rig.call(service::ROMS, Regs::default());
    assert_eq!((r.cs, r.ip, r.ax(), r.bx(), r.dx()), (0xc800, 3, 0x18, 0xffff, 0xffff));
    assert_eq!((r.es, r.di(), r.flags & IF), (data::ROM_SEGMENT, PNP, IF));
    assert_eq!((left(&mut rig, 0), left(&mut rig, 1)), (ROMS, data::ROM_SEGMENT));
    assert_eq!(rig.host.memory[0xc_8000..0xc_8a00], rig.host.rom);
    assert_eq!((rig.host.rom_base & 1, rig.host.pam[&0x5b]), (0, 3), "not decoded any more, and writable");
    // It has made itself shorter.
    rig.host.memory[0xc_8002] = 2;
    let r = rig.call(service::ROMS, Regs::default());
    assert_eq!((r.cs, r.ip), (data::ROM_SEGMENT, 0xe6f2), "INT 19h");
    assert_eq!((rig.host.pam[&0x5b], rig.host.pam[&0x5f]), (1, 0), "the rest is the bus's");
}

#[test]
fn the_network_is_what_roms_can_boot() {
    let mut rig = with_rom(option_rom(5, BEV, 0));
    rig.call(service::ROMS, Regs::default());
    rig.call(service::ROMS, Regs::default());
    let r = rig.call(0x19, Regs::default());
    assert_eq!((r.cs, r.ip, r.ax()), (0xc800, BEV, 0x18), "the disk has no boot sector");
    assert_eq!((left(&mut rig, 0), left(&mut rig, 1)), (BOOT_FAILED, data::ROM_SEGMENT));
    let (mut r, mut status) = (Regs::default(), 0);
    for _ in 0..3 {
        (r, status) = rig.ask(0x18, r, status);
    }
    assert!(rig.host.typed.contains("network, Some ROM: its boot loader gave up"), "{}", rig.host.typed);
}

#[test]
fn a_rom_connects_its_drives_after_all_are_initialized() {
    let mut rig = with_rom(option_rom(5, 0, BCV));
    rig.call(service::ROMS, Regs::default());
    let r = rig.call(service::ROMS, Regs::default());
    assert_eq!((r.cs, r.ip, r.ax()), (0xc800, BCV, 0x18));
    assert_eq!(left(&mut rig, 0), ROMS);
    assert_eq!(rig.call(service::ROMS, Regs::default()).ip, 0xe6f2);
}

#[test]
fn hooks_of_old_roms_are_honoured() {
    let mut rig = with_rom(option_rom(5, 0, 0));
    rig.call(service::ROMS, Regs::default());
    hook(&mut rig, 0x19, 0xc800_0170);
    hook(&mut rig, 0x18, 0xc800_0180);
    let r = rig.call(service::ROMS, Regs::default());
    assert_eq!((r.cs, r.ip), (0xc800, 0x170));
    assert_eq!((left(&mut rig, 0), left(&mut rig, 1)), (0xe6f2, data::ROM_SEGMENT), "its IRET");
    let r = rig.call(0x19, Regs::default());
    assert_eq!((r.cs, r.ip), (0xc800, 0x180), "the network");
}

#[test]
fn what_is_no_rom_for_this_device_is_said_and_left_alone() {
    for (at, value, why) in [
        (0x46, 1, "it is for 1af4:1001, not 1af4:1000"),
        (0x200, 1, "checksum"),
        (0x54, 1, "no image"),
        (2, 99, "length"),
    ] {
        let mut rom = option_rom(5, BEV, 0);
        rom[at] = value;
        let mut rig = with_rom(rom);
        assert_eq!(rig.call(service::ROMS, Regs::default()).ip, 0xe6f2, "{why}");
        assert!(rig.host.typed.contains(why), "{why}: {}", rig.host.typed);
        assert_eq!(rig.host.memory[0xc_8000], 0);
    }
}

#[test]
fn a_rom_of_the_isa_bus_is_initialized_where_it_is() {
    let mut rig = with_rom(Vec::new());
    let rom = option_rom(8, BEV, 0);
    rig.host.memory[0xd_0000..0xd_1000].copy_from_slice(&rom);
    let r = rig.call(service::ROMS, Regs::default());
    assert_eq!((r.cs, r.ip, r.ax()), (0xd000, 3, 0));
    assert_eq!(rig.call(service::ROMS, Regs::default()).ip, 0xe6f2);
    assert_eq!(rig.call(0x19, Regs::default()).ip, BEV);
}

/// Calls a far procedure with these words on the stack, the first at the top; DX:AX.
fn far(rig: &mut Rig, service: u16, words: &[u16]) -> u32 {
    for (n, word) in (0..).zip(words) {
        rig.host.write(FRAME + frame::LEN as u64 + 4 + 2 * n, &word.to_le_bytes());
    }
    let r = rig.call(service, Regs::default());
    u32::from(r.ax()) | u32::from(r.dx()) << 16
}

#[test]
fn roms_get_memory_until_they_boot() {
    let mut rig = with_rom(option_rom(5, BEV, 0));
    rig.call(service::ROMS, Regs::default());
    let allocate = |rig: &mut Rig, paragraphs: u32, handle: u16, flags: u16| {
        far(rig, service::PMM, &[0, paragraphs as u16, (paragraphs >> 16) as u16, handle, 0x18, flags])
    };
    let find = |rig: &mut Rig, handle: u16| far(rig, service::PMM, &[1, handle, 0x18]);
    let first = allocate(&mut rig, 0x2_0000, 1, 2);
    assert_eq!(u64::from(first) + 0x20_0000, end(&rig), "from the end of memory");
    let second = allocate(&mut rig, 0x101, 2, 6);
    assert!(second < first && second % 16 == 0);
    let aligned = allocate(&mut rig, 0x1000, 3, 6);
    assert_eq!(aligned % 0x1_0000, 0);
    assert_eq!((find(&mut rig, 1), find(&mut rig, 2), find(&mut rig, 9)), (first, second, 0));
    assert_eq!(allocate(&mut rig, 16, 1, 2), 0, "the handle is taken");
    let low = allocate(&mut rig, 0x100, 4, 1);
    assert_eq!(low, 0x7_f000);
    assert_eq!(allocate(&mut rig, 0, 0, 1), 0x5f00, "what is left of conventional memory");
    assert_eq!(allocate(&mut rig, 0x1000_0000, 5, 3), 0);
    assert_eq!(allocate(&mut rig, u32::MAX, 5, 7), 0);
    assert_eq!(far(&mut rig, service::PMM, &[2, first as u16, (first >> 16) as u16]) & 0xffff, 0);
    assert_ne!(far(&mut rig, service::PMM, &[2, first as u16, (first >> 16) as u16]) & 0xffff, 0, "it is gone");
    assert_eq!(allocate(&mut rig, 0x2_0000, 1, 2), first, "and free");
    assert_eq!(far(&mut rig, service::PMM, &[3]), u32::MAX);
    rig.call(service::ROMS, Regs::default());
    assert_eq!(find(&mut rig, 1), u32::MAX, "POST is over");
}

fn end(rig: &Rig) -> u64 {
    let region = rig.bios.config.memory.iter().find(|r| r.base == MIB).unwrap();
    region.base + region.len
}

#[test]
fn plug_and_play_has_the_boot_specification_and_nothing_else() {
    let mut rig = with_rom(Vec::new());
    assert_eq!(far(&mut rig, service::PNP, &[0x60, 0x10, 0x4000, 0]) as u16, 0);
    assert_eq!(rig.word(0x4_0010), 0x101);
    assert_eq!(far(&mut rig, service::PNP, &[0, 0x10, 0x4000, 0]) as u16, 0x82);
    let rom = Rom::build().unwrap();
    let adds_up = |at: u16, len: usize| {
        let bytes = &rom.bytes()[usize::from(at)..][..len];
        bytes.iter().fold(0u8, |s, b| s.wrapping_add(*b)) == 0
    };
    assert!(rom.bytes()[usize::from(PNP)..].starts_with(b"$PnP") && adds_up(PNP, 0x21));
    let found = |what: &[u8]| rom.bytes().chunks(16).position(|line| line.starts_with(what));
    assert!(found(b"$PMM").is_some_and(|line| adds_up(16 * line as u16, 16)));
    assert_eq!(found(b"$PnP"), None, "kernels do not find it");
}
