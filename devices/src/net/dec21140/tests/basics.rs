use super::*;

const TX: u64 = 0x1_0000;
const RX: u64 = 0x1_4000;
const SETUP: u64 = 0x1_8000;
const DATA: u64 = 0x2_0000;

/// The interrupts that it waits for.
const MASK: u32 = 0x0801_fbff;
const PR: u32 = 1 << 6;
const PS: u32 = 1 << 18;

/// A driver with the whole list of 16 addresses set to its own, and both processes running.
fn started(is_21143: bool, srom: &str) -> Rig {
    let mut r = Rig::new(is_21143, srom, true);
    r.write(3, RX as u32);
    r.write(4, TX as u32);
    r.write(7, MASK);
    let words: Vec<u8> = (0..16).flat_map(|_| [0, 0x15, 0, 0, 0x5d, 1, 0, 0, 2, 3, 0, 0]).collect();
    r.dma().write(SETUP, &words);
    r.descriptor(TX, [OWN, SET | CHAIN | 192, SETUP as u32, TX as u32 + 0x40]);
    r.write(6, ST | SR);
    assert_eq!(r.word(TX), 0x7fff_ffff, "the setup frame is taken");
    r.write(5, u32::MAX);
    r.net.sent();
    r
}

/// A receive descriptor of its own ring.
fn room(r: &Rig, n: u64, flags: u32, sizes: u32) {
    let buffer = (DATA + 0x1000 * n) as u32;
    r.descriptor(RX + 16 * n, [OWN, flags | sizes, buffer, buffer + 0x800]);
}

#[test]
fn a_card_has_the_identity_of_its_profile() {
    let r = Rig::new(false, "fixed", false);
    assert_eq!((r.bench.config_read(0, 4), r.bench.config_read(8, 4)), (0x0009_1011, 0x0200_0020));
    assert_eq!(r.bench.config_read(0x2c, 4), 0x2114_0a00);
    let r = Rig::new(true, "mii", false);
    assert_eq!((r.bench.config_read(0, 4), r.bench.config_read(8, 4)), (0x0019_1011, 0x0200_0041));
}

#[test]
fn descriptors_are_chained_or_skipped_over_and_scattered() {
    let mut r = started(false, "fixed");
    // A chain of three: 14 bytes, 30 in two descriptors' first buffers, as dc(4) does it.
    let out = frame(BROADCAST, 90, 3);
    r.dma().write(DATA, &out);
    let at = TX as u32 + 0x40;
    r.descriptor(TX + 0x80, [OWN, CHAIN | 60 | 0x7ff << 11, DATA as u32 + 14, at + 0x80]);
    r.descriptor(TX + 0xc0, [OWN, CHAIN | LS | IC | 16, DATA as u32 + 74, at + 0xc0]);
    r.descriptor(TX + 0x40, [OWN, CHAIN | FS | 14, DATA as u32, at + 0x40]);
    r.write(1, 0);
    assert_eq!(r.net.sent(), std::slice::from_ref(&out));
    assert_eq!([0x40, 0x80, 0xc0].map(|n| r.word(TX + n)), [0; 3], "all came back");
    assert!(r.irq() && r.read(5) & (sts::TI | sts::TU | sts::NIS) == sts::TI | sts::TU | sts::NIS);

    // Five double words between descriptors, and the end of the ring.
    r.write(6, SR);
    assert_eq!(r.read(5) & sts::TPS, sts::TPS);
    r.write(0, 5 << 2);
    r.write(4, TX as u32);
    for n in 0..3 {
        let end = if n == 2 { END } else { 0 };
        r.descriptor(TX + 36 * n, [OWN, end | FS | LS | 45 | 45 << 11, DATA as u32, DATA as u32 + 45]);
    }
    r.write(6, SR | ST);
    assert_eq!(r.net.sent(), [out.clone(), out.clone(), out.clone()]);
    r.descriptor(TX, [OWN, FS | LS | 90, DATA as u32, 0]);
    r.write(1, 0);
    assert_eq!(r.net.sent(), [out], "the first follows the last");
}

#[test]
fn a_frame_is_scattered_over_buffers_and_waits_until_there_are_enough() {
    let mut r = started(false, "fixed");
    room(&r, 0, 0, 100 | 100 << 11);
    room(&r, 1, END, 100);
    let came = frame(MAC, 250, 1);
    assert!(r.net.put(&came));
    assert_eq!((r.word(RX), r.word(RX + 16)), (1 << 9, 254 << 16 | 1 << 8 | 1 << 5));
    assert_eq!([r.bytes(DATA, 100), r.bytes(DATA + 0x800, 100), r.bytes(DATA + 0x1000, 50)].concat(), came);
    r.write(5, u32::MAX);
    // One of the two descriptors is not enough.
    room(&r, 0, 0, 100 | 100 << 11);
    assert!(r.net.put(&came) && !r.net.ready());
    assert_eq!((r.word(RX) & OWN, r.read(5) & (sts::RI | sts::RU)), (OWN, sts::RU));
    room(&r, 1, END, 100);
    r.write(2, 0);
    assert_eq!((r.word(RX + 16) >> 16, r.net.ready()), (254, true));
}

#[test]
fn missed_frames_are_counted_and_the_count_is_taken() {
    let mut r = started(false, "fixed");
    r.descriptor(RX, [0, END | 1024, DATA as u32, 0]);
    for n in 0..4 {
        r.cell.event(Event::Frame(frame(MAC, 60, n)));
    }
    assert!(r.irq() && r.read(5) & (sts::RU | sts::AIS) == sts::RU | sts::AIS && !r.net.ready());
    assert_eq!(r.read(5) >> 17 & 7, 4, "suspended");
    assert_eq!((r.read(8), r.read(8)), (3, 0));
    r.write(5, u32::MAX);
    room(&r, 0, END, 1024);
    r.write(2, 0);
    assert_eq!(r.word(RX) & 0xffff_0000, 64 << 16);
    assert_eq!(r.bytes(DATA, 60), frame(MAC, 60, 0));
    assert_eq!(r.bytes(DATA + 60, 4), (!crate::net::crc32_le(&frame(MAC, 60, 0))).to_le_bytes(), "the FCS");
    assert!(r.net.ready() && r.read(5) & (sts::RI | sts::RU) == sts::RI);
}

#[test]
fn a_receiver_without_room_looks_again_by_itself() {
    let mut r = started(false, "fixed");
    r.descriptor(RX, [0, END | 1024, DATA as u32, 0]);
    assert!(r.net.put(&frame(MAC, 60, 7)) && !r.net.put(&frame(MAC, 60, 8)));
    r.bench.advance(1_000_000);
    assert_eq!(r.read(5) & sts::RI, 0);
    room(&r, 0, END, 1024);
    r.bench.advance(2_000_000);
    assert!(r.word(RX) & OWN == 0 && r.irq() && r.net.put(&frame(MAC, 60, 8)));
}

#[test]
fn short_and_long_frames_are_padded_marked_and_cut_off() {
    let mut r = started(false, "fixed");
    for n in 0..3 {
        room(&r, n, if n == 2 { END } else { 0 }, 0x7fc | 0x7fc << 11);
    }
    for len in [42, 1518, 4000] {
        assert!(r.net.put(&frame(MAC, len, 1)));
    }
    let status = [0, 16, 32].map(|n| r.word(RX + n));
    assert_eq!(status[0] & 0xffff_80d0, 64 << 16, "padded");
    assert_eq!(status[1] & 0xffff_8090, 1522 << 16 | 0x80, "too long is no error: a VLAN's tag");
    assert_eq!(status[2] & 0xffff_8090, 2564 << 16 | 0x8090, "the watchdog");
    assert_eq!(r.read(5) & sts::RWT, sts::RWT);
    // And one that is too long to go out.
    let buffers = |flags| [OWN, CHAIN | flags | 0x7fc, DATA as u32, TX as u32];
    for n in 0..3 {
        let next = if n == 2 { TX as u32 } else { TX as u32 + 0x50 + 0x10 * n };
        let mut words = buffers([FS, 0, LS][n as usize]);
        words[3] = next;
        r.descriptor(TX + 0x40 + 0x10 * u64::from(n), words);
    }
    r.write(1, 0);
    assert_eq!((r.word(TX + 0x60) & 0xc000, r.net.sent().len()), (0xc000, 0), "jabber");
    assert_eq!(r.read(5) & sts::TJT, sts::TJT);
}

#[test]
fn a_list_that_is_too_small_for_a_frame_ends_it_with_an_error() {
    let mut r = started(false, "fixed");
    room(&r, 0, END, 256);
    assert!(r.net.put(&frame(MAC, 600, 1)));
    assert_eq!(r.word(RX) & 0xc300, 0xc300, "DE and ES");
    assert!(r.irq() && r.read(5) & sts::RI != 0);
}

#[test]
fn nothing_hangs_on_a_hostile_list() {
    for at in [0x10_0000u32, 0xfff0_0000, 0xffff_fffc] {
        let mut r = started(false, "fixed");
        r.write(6, 0);
        r.write(3, at);
        r.write(4, at);
        r.write(5, u32::MAX);
        r.write(6, ST | SR | PR);
        assert_eq!(r.read(5) & (sts::FBE | 7 << 23), sts::FBE | 2 << 23, "nobody is at {at:#x}");
        assert_eq!((r.read(6) & (ST | SR), r.read(5) >> 17 & 0x3f), (0, 0), "both stop");
        r.write(6, SR | PR);
        r.net.put(&frame(MAC, 60, 0));
        assert_eq!(r.read(5) & sts::FBE, sts::FBE);
    }
    // A descriptor that is its own successor, and comes back each time: some of it at once, the rest in time.
    let mut r = started(false, "fixed");
    let at = TX as u32 + 0x40;
    r.descriptor(at.into(), [OWN, CHAIN | SET | 192, at, at]);
    r.write(1, 0);
    assert_eq!(r.word(at.into()) & OWN, 0);
    // Receive descriptors without buffers, in a circle.
    r.write(6, ST | SR | PR);
    for n in 0..4 {
        r.descriptor(RX + 16 * n, [OWN, if n == 3 { END } else { 0 }, 0, 0]);
    }
    r.net.put(&frame(MAC, 60, 0));
    assert_eq!(r.word(RX + 48) & 0xc100, 0xc100);
}

#[test]
fn a_long_list_is_sent_in_parts() {
    let mut r = started(false, "fixed");
    r.dma().write(DATA, &frame(BROADCAST, 60, 1));
    for n in 0..300 {
        let end = if n == 299 { END } else { 0 };
        r.descriptor(TX + 0x40 + 16 * n, [OWN, end | FS | LS | 60, DATA as u32, 0]);
    }
    r.write(1, 0);
    let first = r.net.sent().len();
    assert!(first < 300);
    r.bench.advance(10_000);
    assert_eq!(first + r.net.sent().len(), 300);
}

#[test]
fn loopbacks_bring_frames_back_and_nothing_else() {
    let mut r = started(false, "mii");
    for (mode, how) in [(1 << 10, 1), (2 << 10, 2)] {
        r.write(6, SR);
        r.write(4, TX as u32);
        r.write(6, ST | SR | mode);
        room(&r, 0, END, 1024);
        let out = frame(MAC, 80, how as u8);
        r.dma().write(DATA + 0x800, &out);
        r.descriptor(TX, [OWN, END | FS | LS | 80, DATA as u32 + 0x800, 0]);
        r.write(1, 0);
        assert_eq!((r.word(RX) >> 12 & 3, r.bytes(DATA, 80), r.net.sent().len()), (how, out, 0));
        room(&r, 0, END, 1024);
        r.net.put(&frame(MAC, 60, 9));
        assert_ne!(r.word(RX) & OWN, 0, "the cable is not heard");
        r.write(6, 0);
        r.write(3, RX as u32);
    }
}

#[test]
fn without_a_carrier_half_duplex_fails_and_nothing_comes_in() {
    let mut r = started(false, "fixed");
    r.net.link(false);
    for (mode, status) in [(0, 0x8c00), (1 << 9, 0)] {
        r.write(6, 0);
        r.write(4, TX as u32);
        r.descriptor(TX, [OWN, END | FS | LS | 60, DATA as u32, 0]);
        r.write(6, ST | SR | mode);
        assert_eq!((r.word(TX), r.net.sent().len()), (status, 0));
    }
    room(&r, 0, END, 1024);
    r.net.put(&frame(MAC, 60, 0));
    assert_ne!(r.word(RX) & OWN, 0);
    assert_eq!(r.read(12) & 0xc0, 0x80, "the pins of the link");
    r.net.link(true);
    assert_eq!(r.read(12) & 0xc0, 0xc0);
    r.net.put(&frame(MAC, 60, 0));
    assert_eq!(r.word(RX) & OWN, 0);
}

#[test]
fn pins_are_outputs_or_inputs() {
    let mut r = Rig::new(false, "auto", false);
    r.write(12, 0x11f);
    r.write(12, 0x0a);
    assert_eq!(r.read(12) & 0xff, 0xca);
}

#[test]
fn a_list_is_polled_without_a_demand_if_the_driver_wants_that() {
    let mut r = started(true, "mii");
    r.write(6, SR);
    r.write(0, 1 << 17);
    r.write(4, TX as u32);
    r.descriptor(TX, [0, 0, 0, 0]);
    r.write(6, ST | SR);
    r.write(5, u32::MAX);
    r.bench.advance(100_000_000);
    assert_eq!(r.read(5) & sts::TU, 0, "it says once that there is nothing");
    r.dma().write(DATA, &frame(BROADCAST, 60, 1));
    r.descriptor(TX, [OWN, END | FS | LS | 60, DATA as u32, 0]);
    r.bench.advance(2_000_000);
    assert_eq!(r.net.sent().len(), 1);
}

#[test]
fn the_timer_interrupts_once_or_again_and_again() {
    let mut r = started(false, "fixed");
    r.write(6, ST | SR | PS);
    r.write(11, 10);
    r.bench.advance(819_000);
    assert_eq!((r.read(5) & sts::GTE, r.read(11)), (0, 1));
    r.bench.advance(1000);
    assert!(r.read(5) & sts::GTE != 0 && r.irq());
    r.write(5, sts::GTE);
    r.bench.advance(10_000_000);
    assert_eq!(r.read(5) & sts::GTE, 0);
    r.write(11, 1 << 16 | 1);
    for _ in 0..3 {
        r.bench.advance(82_000);
        assert_ne!(r.read(5) & sts::GTE, 0);
        r.write(5, sts::GTE);
    }
}

#[test]
fn the_serial_interface_negotiates_and_tells_of_the_link() {
    let mut r = started(true, "auto");
    assert_eq!(r.read(12) & 0xffff_0006, 2, "10BASE-T by itself");
    r.write(13, 1);
    r.write(14, 0x3_ffff);
    r.write(12, 0x1301);
    r.write(5, u32::MAX);
    assert_ne!(r.read(12) >> 12 & 7, 5);
    r.bench.advance(150_000_000);
    assert!(r.irq() && r.read(5) & (sts::ANC | sts::LC) == sts::ANC | sts::LC);
    assert_eq!(r.read(12), 0x41e1_d004, "100BASE-TX, full duplex");
    r.write(5, u32::MAX);
    r.net.link(false);
    assert!(r.irq() && r.read(5) & (sts::LNF | sts::LC) == sts::LNF | sts::LC);
    assert_eq!(r.read(12) & 6, 6);
    r.net.link(true);
    r.write(5, u32::MAX);
    r.bench.advance(150_000_000);
    assert_ne!(r.read(5) & sts::ANC, 0, "again");
    // 16 bits of a register, as Linux writes CSR15.
    r.write(15, 0x1234_5678);
    r.bench.bus.write(MEMORY + 15 * 8, 2, 8);
    assert_eq!(r.read(15), 0x1234_0008);
}

#[test]
fn a_software_reset_leaves_the_port_and_what_is_configured() {
    let mut r = started(false, "fixed");
    r.write(6, 0x0184_2002);
    r.write(0, 1);
    assert_eq!(r.read(0) & 1, 0);
    assert_eq!((r.read(6), r.read(7) & 0x1_ffff, r.read(5)), (0x3384_0040, 0, 0xfc00_0000));
    assert_eq!((r.read(3), r.read(4), r.bench.config_read(4, 2)), (0, 0, 7));
}

#[test]
fn it_goes_on_elsewhere_in_the_middle_of_a_frame() {
    let mut r = started(false, "fixed");
    r.descriptor(RX, [0, END | 1024, DATA as u32, 0]);
    assert!(r.net.put(&frame(MAC, 60, 7)));
    let out = frame(BROADCAST, 100, 1);
    r.dma().write(DATA + 0x800, &out);
    r.descriptor(TX + 0x40, [OWN, FS | 50, DATA as u32 + 0x800, 0]);
    r.write(1, 0);
    let twin = Rig::new(false, "fixed", true);
    twin.dma().write(0, &r.bytes(0, Bench::RAM as usize));
    twin.cell.load(r.cell.save()).expect("its state");
    let mut r = twin;
    assert!(r.irq() && !r.net.ready());
    r.descriptor(TX + 0x50, [OWN, LS | 50, DATA as u32 + 0x832, 0]);
    r.write(1, 0);
    assert_eq!(r.net.sent(), [out]);
    room(&r, 0, END, 1024);
    r.bench.advance(2_000_000);
    assert_eq!(r.bytes(DATA, 60), frame(MAC, 60, 7));
    assert!(r.net.ready());
}

#[test]
fn de_reads_a_transceiver_and_finds_the_link_up() {
    let mut r = Rig::new(false, "mii", true);
    let clock = |r: &mut Rig, bits: u32| [bits, bits | 1 << 16, bits].into_iter().for_each(|value| r.write(9, value));
    let mut register = |address: u32, number: u32| {
        for n in (0..32 + 14).rev() {
            let bit = (0xffff_ffffu64 << 14 | u64::from(0b0110 << 10 | address << 5 | number)) >> n & 1;
            clock(&mut r, (bit as u32) << 17);
        }
        clock(&mut r, 1 << 18);
        (0..16).fold(0, |word, _| {
            r.write(9, 1 << 18 | 1 << 16);
            let bit = r.read(9) >> 19 & 1;
            r.write(9, 1 << 18);
            word << 1 | bit
        })
    };
    assert_eq!([register(1, 1), register(1, 2), register(1, 4), register(2, 1)], [0x786d, 0x0282, 0x01e1, 0xffff]);
}
