use emu::DeviceState;

use super::MODEL;
use crate::net::rtl8139::tests::{Card, eeprom, fcs, frame};

const MAC: [u8; 6] = [0, 0xa0, 0x98, 1, 2, 3];
const TPPOLL: u16 = 0x38;
/// The bits of a received descriptor's length.
const LENGTH: u32 = 14;

fn card() -> Card {
    Card::of(&MODEL, &[])
}

fn phy(card: &mut Card, register: u32) -> u32 {
    card.out(0x60, 4, register << 16);
    let answer = card.get(0x60, 4);
    assert_eq!(answer >> 16, 0x8000 | register, "the flag rises");
    answer & 0xffff
}

fn set_phy(card: &mut Card, register: u32, value: u32) {
    card.out(0x60, 4, 1 << 31 | register << 16 | value);
    assert_eq!(card.get(0x60, 4) >> 31, 0, "the flag falls");
}

#[test]
fn drivers_take_it_for_an_8169s() {
    let mut card = card();
    assert_eq!((card.bench.config_read(0, 4), card.bench.config_read(8, 4)), (0x8169_10ec, 0x0200_0010));
    assert_eq!(card.get(0x40, 4) & 0xfc80_0000, 0x0400_0000);
    assert_eq!([0, 2, 7, 8, 9].map(|n| eeprom(&mut card, n)), [0x8129, 0x8169, 0xa000, 0x0198, 0x0302]);
    // iPXE's question whether it is a gigabit chip.
    card.out(0xda, 2, 0x0600);
    assert_eq!(card.get(0xda, 2), 0x0600);
    // The PHY's driver knows it by its identifier.
    assert_eq!((phy(&mut card, 2), phy(&mut card, 3)), (0x001c, 0xc910));
}

#[test]
fn the_phy_has_pages_and_only_the_first_is_the_standards() {
    let mut card = card();
    assert_eq!(phy(&mut card, 1) & 0x24, 0x24);
    // As r8169 does for this chip: registers 0 and 4 of page 1 are not BMCR and ANAR.
    set_phy(&mut card, 31, 1);
    set_phy(&mut card, 0, 0x9000);
    set_phy(&mut card, 4, 0x0800);
    assert_eq!((phy(&mut card, 0), phy(&mut card, 4), phy(&mut card, 31)), (0x9000, 0x0800, 1));
    set_phy(&mut card, 31, 0);
    assert_eq!((phy(&mut card, 0), phy(&mut card, 4)), (0x1140, 0x01e1));
    set_phy(&mut card, 0x17, 0x2108);
    assert_eq!(phy(&mut card, 0x17), 0x2108);
    card.out(0x37, 1, 0x10);
    assert_eq!(phy(&mut card, 0x17), 0x2108, "the chip's reset is not the PHY's");
}

#[test]
fn speed_and_link_show_in_phy_status() {
    let mut card = card();
    card.start_rings(0);
    assert_eq!(card.get(0x6c, 1), 0x13, "gigabit, full duplex");
    set_phy(&mut card, 9, 0);
    set_phy(&mut card, 0, 0x1200);
    assert_eq!((card.get(0x6c, 1), card.get(0x3e, 2)), (0x0b, 0x20), "100 Mbit/s, and a change");
    card.out(0x3e, 2, 0xffff);
    set_phy(&mut card, 0, 0x0000);
    assert_eq!(card.get(0x6c, 1), 0x06, "10 Mbit/s, half duplex");
    card.net.link(false);
    assert!(card.bench.irq(16));
    assert_eq!((card.get(0x6c, 1), phy(&mut card, 1) & 4), (0, 0));
}

#[test]
fn rings_work_without_the_enable_bits_of_the_8139() {
    let mut card = card();
    card.start_rings(0x0008);
    for len in [60, 1514, 42, 700] {
        let sent = frame([4; 6], len);
        card.send_ring(TPPOLL, &[&sent], 0, 0);
        assert_eq!(card.net.sent()[0][..len], sent);
        assert!(card.net.put(&frame(MAC, len.max(60))));
        let (flags, _, bytes) = card.take(LENGTH).unwrap();
        assert_eq!(flags & 0x3fff_c000, 3 << 28 | 1 << 26, "whole, to this card");
        assert_eq!(bytes, fcs(&frame(MAC, len.max(60))));
    }
    card.out(TPPOLL, 1, 1);
    assert_eq!(card.get(0x3e, 2) & 0x100, 0x100, "an interrupt by software");
}

#[test]
fn large_frames_are_taken_as_far_as_rms_allows() {
    let mut card = card();
    card.start_rings(0);
    card.out(0xda, 2, 0x4000);
    card.net.put(&frame(MAC, 5000));
    let dma = card.bench.dma();
    let flags = |n: u64| dma.read_u32(0x6_1000 + 16 * n) & 0xb000_3fff;
    assert_eq!([flags(0), flags(1), flags(2)], [1 << 29 | 2048, 2048, 1 << 28 | 5004]);
    card.start_rings(0);
    card.out(0xda, 2, 1518);
    card.net.put(&frame(MAC, 1515));
    assert_eq!((card.take(LENGTH), card.get(0x4c, 4)), (None, 0));
    card.net.put(&frame(MAC, 1514));
    assert!(card.take(LENGTH).is_some());
}

#[test]
fn the_diagnosis_of_re_passes() {
    let mut card = card();
    card.start_rings(0x006b);
    card.out(0x40, 4, 0x0302_0700);
    card.out(0x3c, 2, 0);
    card.out(0x58, 4, 0x800);
    set_phy(&mut card, 0, 0x8000);
    set_phy(&mut card, 0, 0x4000);
    card.out(0x44, 4, 0xe00f);
    let sent = frame(*b"hello\0", 60);
    card.send_ring(TPPOLL, &[&sent], 0, 0);
    card.out(0x48, 4, 1);
    card.bench.advance(100_000_000);
    assert_eq!(card.get(0x3e, 2) & 0x4001, 0x4001);
    assert_eq!(card.take(LENGTH).map(|(.., bytes)| bytes), Some(fcs(&sent)));
    assert!(card.net.sent().is_empty());
}

#[test]
fn statistics_have_a_register_of_their_own() {
    let mut card = card();
    card.start_rings(0);
    card.send_ring(TPPOLL, &[&frame([9; 6], 60)], 0, 0);
    card.out(0x14, 4, 0);
    card.out(0x10, 4, 0x9_0040 | 8);
    assert_eq!(card.get(0x10, 4), 0x9_0040);
    assert_eq!(card.dma.fetch::<8>(0x9_0040), [1, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_card_that_is_saved_goes_on_elsewhere() {
    let mut card = card();
    card.start_rings(0);
    set_phy(&mut card, 31, 2);
    set_phy(&mut card, 5, 0x1234);
    card.net.put(&frame(MAC, 60));
    let saved = card.cell.save();
    let mut twin = Card::of(&MODEL, &[]);
    twin.cell.load(saved.clone()).unwrap();
    assert_eq!(twin.cell.save(), saved);
    assert!(twin.bench.irq(16));
    assert_eq!(phy(&mut twin, 5), 0x1234);
    // The next frame goes into the second descriptor.
    (0..4).for_each(|n| twin.give(n, 2048));
    twin.net.put(&frame(MAC, 60));
    let dma = twin.bench.dma();
    assert_eq!([0, 1].map(|n| dma.read_u32(0x6_1000 + 16 * n) >> 31), [1, 0]);
}
