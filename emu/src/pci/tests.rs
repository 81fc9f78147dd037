use super::*;
use crate::bench::Bench;
use crate::{Backends, Device, DeviceCell, ResetKind, Slot, State, Widths};

const IDS: PciIds =
    PciIds { vendor: 0x1234, device: 0x5678, class: 0x02_0000, revision: 3, sub_vendor: 0xaaaa, subsystem: 0xbbbb };

/// Answers with the number of the region that was read, and the offset above it.
#[derive(Default)]
struct Card {
    state: (),
    msi: Option<Arc<Msi>>,
    msix: Option<Msix>,
    told: Arc<Mutex<Vec<(u16, u8)>>>,
    asked: Arc<Mutex<Vec<(u16, u8)>>>,
}

/// The region that holds the MSI-X table.
const TABLE: u32 = 9;

impl Device for Card {
    fn read(&mut self, region: u32, offset: u64, width: u8) -> u64 {
        match &self.msix {
            Some(x) if region == TABLE => x.read(offset, width),
            _ => offset << 8 | u64::from(region),
        }
    }

    fn write(&mut self, region: u32, offset: u64, width: u8, value: u64) {
        if let (TABLE, Some(x)) = (region, &self.msix) {
            x.write(offset, width, value);
        }
    }

    fn config_write(&mut self, offset: u16, width: u8) {
        self.told.lock().unwrap().push((offset, width));
        if let Some(msi) = &self.msi {
            msi.config_written();
        }
        if let Some(msix) = &self.msix {
            msix.unmasked();
        }
    }

    fn config_read(&mut self, offset: u16, width: u8) {
        self.asked.lock().unwrap().push((offset, width));
    }

    fn reset(&mut self, _: ResetKind) {}

    fn state(&mut self) -> &mut dyn State {
        &mut self.state
    }
}

fn plug(bench: &Bench, bdf: Bdf, fill: impl FnOnce(&mut Slot) -> Card) -> Arc<DeviceCell> {
    let create = |slot: &mut Slot| {
        slot.pci(IDS)?;
        Ok(Box::new(fill(slot)) as Box<dyn Device>)
    };
    bench.machine.plug_with(&bdf.to_string(), Some(bdf), Backends::default(), create).unwrap()
}

/// A card in slot 3 with BARs: ports at 0, memory at 1, 64-bit memory of 8 GiB at 2.
fn card(bench: &Bench) -> Arc<DeviceCell> {
    plug(bench, Bdf::new(3, 0), |slot| {
        slot.bar(0, BarKind::Io, 0x20, 1, Widths::DWORD);
        slot.bar(1, BarKind::Mem32Prefetch, 0x1000, 2, Widths::DWORD);
        slot.bar(2, BarKind::Mem64, 8 << 30, 3, Widths::QWORD);
        Card::default()
    })
}

const DECODE: u32 = (CMD_IO | CMD_MEMORY) as u32;

#[test]
fn a_device_is_asked_before_reads_of_the_registers_that_it_named_and_of_no_others() {
    let b = Bench::new();
    let asked: Arc<Mutex<Vec<(u16, u8)>>> = Arc::default();
    let log = asked.clone();
    plug(&b, Bdf::new(3, 0), move |_| Card { asked: log, ..Card::default() });
    b.machine.pci.function(Bdf::new(3, 0)).unwrap().ask_before(0x48..0x4c);
    for (at, width) in [(0x44, 4), (0x46, 2), (0x48, 1), (0x4a, 2), (0x46, 4), (0x4c, 4), (0xff, 4)] {
        b.config_read(at, width);
    }
    assert_eq!(*asked.lock().unwrap(), [(0x48, 1), (0x4a, 2), (0x46, 4)]);
}

#[test]
fn all_ones_written_to_a_bar_read_back_as_its_size_and_kind() {
    let b = Bench::new();
    card(&b);
    for at in (0x10..0x28).step_by(4) {
        b.config_write(at, 4, u32::MAX);
    }
    let bars: Vec<u32> = (0x10..0x28).step_by(4).map(|at| b.config_read(at, 4)).collect();
    assert_eq!(bars, [0xffff_ffe1, 0xffff_f008, 4, 0xffff_fffe, 0, 0]);
}

#[test]
fn a_bar_answers_where_the_guest_puts_it_and_only_while_it_decodes() {
    let mut b = Bench::new();
    card(&b);
    b.config_write(0x10, 4, 0xc000);
    b.config_write(0x14, 4, 0xe000_0000);
    assert_eq!((b.bus.pio_read(0xc004, 1), b.bus.read(0xe000_0010, 4)), (0xff, 0xffff_ffff));
    b.config_write(4, 1, CMD_IO.into());
    assert_eq!((b.bus.pio_read(0xc004, 2), b.bus.read(0xe000_0010, 4)), (0x0401, 0xffff_ffff));
    b.config_write(4, 1, DECODE);
    assert_eq!(b.bus.read(0xe000_0010, 4), 0x1002);
    // Byte by byte, as some firmware does.
    b.config_write(0x11, 1, 0xd0);
    b.config_write(0x16, 2, 0xd000);
    assert_eq!((b.bus.pio_read(0xc004, 1), b.bus.read(0xe000_0010, 4)), (0xff, 0xffff_ffff));
    assert_eq!((b.bus.pio_read(0xd004, 2), b.bus.read(0xd000_0010, 4)), (0x0401, 0x1002));
    b.config_write(4, 1, 0);
    assert_eq!((b.bus.pio_read(0xd004, 1), b.bus.read(0xd000_0010, 4)), (0xff, 0xffff_ffff));
}

#[test]
fn sizing_with_decoding_on_does_not_cover_anything() {
    let mut b = Bench::new();
    card(&b);
    b.config_write(4, 1, DECODE);
    for at in (0x10..0x28).step_by(4) {
        b.config_write(at, 4, u32::MAX);
        assert!(b.machine.space.map().read.len() == 1, "only RAM answers");
        assert_eq!(b.bus.pio_read(0xffe0, 4), u32::MAX);
        b.config_write(at, 4, 0);
    }
    assert_eq!(b.bus.read(0, 8), 0, "a BAR at 0 does not hide RAM");
}

#[test]
fn a_64_bit_bar_lies_above_4_gib() {
    let mut b = Bench::new();
    card(&b);
    b.config_write(4, 1, DECODE);
    b.config_write(0x18, 4, 0xffff_ffff);
    b.config_write(0x1c, 4, 0x12);
    assert_eq!(b.machine.pci.function(Bdf::new(3, 0)).unwrap().bar_base(2), 0x12_0000_0000);
    assert_eq!(b.bus.read(0x12_0000_0000, 8), 3);
    assert_eq!(b.bus.read(0x13_ffff_fff8, 8), 0x1_ffff_fff8 << 8 | 3);
    assert_eq!(b.bus.read(0x14_0000_0000, 8), u64::MAX);
    b.config_write(0x1c, 4, u32::MAX);
    assert_eq!(b.bus.read(0x12_0000_0000, 8), u64::MAX);
    assert_eq!(b.bus.read(u64::MAX - 7, 8), u64::MAX, "a BAR that ends at 2^64 does not decode");
}

#[test]
fn of_two_bars_in_one_place_one_answers_and_the_other_when_that_is_gone() {
    let mut b = Bench::new();
    for (dev, region) in [(3, 5), (4, 6)] {
        plug(&b, Bdf::new(dev, 0), |slot| {
            slot.bar(0, BarKind::Mem32, 0x1000, region, Widths::DWORD);
            slot.bar(1, BarKind::Io, 0x10, region, Widths::BYTE);
            Card::default()
        });
        for (at, value) in [(0x10, 0xe000_0000), (0x14, 0xc000), (4, DECODE)] {
            b.machine.pci.write(Bdf::new(dev, 0), at, 4, value);
        }
    }
    let first = (b.bus.read(0xe000_0000, 4), b.bus.pio_read(0xc000, 1));
    assert!(first == (5, 5) || first == (6, 6));
    let winner = if first.0 == 5 { 3 } else { 4 };
    b.machine.pci.write(Bdf::new(winner, 0), 0x10, 4, 0xe100_0000);
    b.machine.pci.write(Bdf::new(winner, 0), 0x14, 4, 0xd000);
    assert_eq!((b.bus.read(0xe000_0000, 4), b.bus.pio_read(0xc000, 1)), (11 - first.0, 11 - first.1));
}

#[test]
fn a_bar_over_ram_hides_it_and_uncovers_it_unharmed() {
    let mut b = Bench::new();
    card(&b);
    b.bus.write(0x8_0000, 4, 0x1234_5678);
    b.config_write(0x14, 4, 0x8_0000);
    b.config_write(4, 1, DECODE);
    assert_eq!(b.bus.read(0x8_0000, 4), 2);
    b.bus.write(0x8_0000, 4, 0);
    b.config_write(0x14, 4, 0xe000_0000);
    assert_eq!(b.bus.read(0x8_0000, 4), 0x1234_5678);
}

#[test]
#[should_panic(expected = "config.writable")]
fn a_64_bit_bar_takes_two_registers() {
    plug(&Bench::new(), Bdf::new(3, 0), |slot| {
        slot.bar(0, BarKind::Mem64, 0x1000, 0, Widths::DWORD);
        slot.bar(1, BarKind::Mem32, 0x1000, 1, Widths::DWORD);
        Card::default()
    });
}

#[test]
fn identity_is_read_only_and_status_bits_clear_by_ones() {
    let b = Bench::new();
    card(&b);
    let f = b.machine.pci.function(Bdf::new(3, 0)).unwrap();
    f.config(|c| c.set16(STATUS, 0xf9 << 8));
    for at in [0, 8, 0x2c] {
        b.config_write(at, 4, u32::MAX);
    }
    let ids = [b.config_read(0, 4), b.config_read(8, 4), b.config_read(0x2c, 4)];
    assert_eq!(ids, [0x5678_1234, 0x0200_0003, 0xbbbb_aaaa]);
    b.config_write(6, 2, 0x8000);
    assert_eq!(b.config_read(6, 2), 0x7900);
    b.config_write(0xfe, 4, u32::MAX);
    assert_eq!(b.config_read(0xfe, 4), 0xffff_0000, "past the end nobody answers");
    assert_eq!(b.machine.pci.read(Bdf::new(3, 1), 0, 4), u32::MAX);
}

#[test]
fn function_0_shows_that_it_is_one_of_several() {
    let b = Bench::new();
    card(&b);
    assert_eq!(b.config_read(0x0e, 1), 0);
    plug(&b, Bdf::new(3, 2), |_| Card::default());
    assert_eq!(b.config_read(0x0e, 1), 0x80);
    assert_eq!(b.machine.pci.read(Bdf::new(3, 2), 0x0e, 1), 0);
}

#[test]
fn the_device_hears_of_each_write_after_it_is_done() {
    let b = Bench::new();
    let told = Arc::default();
    plug(&b, Bdf::new(3, 0), |_| Card { told: Arc::clone(&told), ..Card::default() });
    b.config_write(0x3c, 1, 7);
    b.config_write(4, 2, 7);
    assert_eq!(*told.lock().unwrap(), [(0x3c, 1), (4, 2)]);
}

#[test]
fn reset_brings_back_the_power_on_registers_and_takes_the_bars_away() {
    let mut b = Bench::new();
    let cell = card(&b);
    let before: Vec<u32> = (0..256).step_by(4).map(|at| b.config_read(at, 4)).collect();
    for (at, value) in [(0x10, 0xc000), (0x14, 0xe000_0000), (0x3c, 11), (4, 0x407)] {
        b.config_write(at, 4, value);
    }
    let master = b.machine.pci.function(Bdf::new(3, 0)).unwrap().bus_master();
    assert!(master.load(Ordering::Relaxed));
    crate::DeviceState::reset(&*cell, ResetKind::System);
    let after: Vec<u32> = (0..256).step_by(4).map(|at| b.config_read(at, 4)).collect();
    assert_eq!(before, after);
    assert_eq!((b.bus.pio_read(0xc000, 1), b.bus.read(0xe000_0000, 4)), (0xff, 0xffff_ffff));
    assert!(!master.load(Ordering::Relaxed));
}

#[test]
fn intx_shows_in_status_and_the_disable_bit_keeps_it_off_the_wire() {
    let b = Bench::new();
    let mut line = None;
    plug(&b, Bdf::new(3, 0), |slot| {
        line = Some(slot.intx(Pin::B));
        Card::default()
    });
    let line = line.unwrap();
    assert_eq!(b.config_read(0x3d, 1), 2);
    line.set(true);
    assert!(b.irq(17));
    assert_eq!(b.config_read(6, 1) & 8, 8);
    b.config_write(4, 2, CMD_INTX_DISABLE.into());
    assert!(!b.irq(17));
    assert_eq!(b.config_read(6, 1) & 8, 8, "the status bit does not care");
    b.config_write(4, 2, 0);
    assert!(b.irq(17));
    line.set(false);
    assert_eq!(b.config_read(6, 1) & 8, 0);
}

/// A card with MSI of four messages and INTA#; the capability's offset.
fn msi_card(b: &Bench) -> (Arc<Msi>, Arc<IrqLine>, u16) {
    let mut made = None;
    plug(b, Bdf::new(3, 0), |slot| {
        let (msi, line) = (Arc::new(slot.msi(4)), slot.intx(Pin::A));
        made = Some((msi.clone(), line));
        Card { msi: Some(msi), ..Card::default() }
    });
    let (msi, line) = made.unwrap();
    let at = b.config_read(0x34, 1) as u16;
    for (offset, value) in [(4, 0xfee0_1000), (8, 1), (0xc, 0x4fd3)] {
        b.config_write(at + offset, 4, value);
    }
    b.config_write(4, 2, CMD_MASTER.into());
    (msi, line, at)
}

const MSI_ADDR: u64 = 0x1_fee0_1000;

#[test]
fn msi_messages_carry_their_number_in_the_granted_low_bits() {
    let b = Bench::new();
    let (msi, _, at) = msi_card(&b);
    msi.send(0);
    assert!(b.messages().is_empty(), "not enabled");
    assert_eq!(b.config_read(at + 2, 2), 0x184, "64 bits, masks, four messages");
    b.config_write(at + 2, 2, 1);
    msi.send(2);
    assert_eq!(b.messages(), [(MSI_ADDR, 0x4fd3)], "with one message granted all are that one");
    b.config_write(at + 2, 2, 1 << 4 | 1);
    msi.send(3);
    msi.send(2);
    assert_eq!(b.messages(), [(MSI_ADDR, 0x4fd3), (MSI_ADDR, 0x4fd2)]);
    b.config_write(at + 2, 2, 7 << 4 | 1);
    msi.send(1);
    assert_eq!(b.messages(), [(MSI_ADDR, 0x4fd1)], "more than was asked for is not used");
    b.config_write(4, 2, 0);
    msi.send(0);
    assert!(b.messages().is_empty(), "a message is a bus master's write");
}

#[test]
fn a_masked_msi_message_stays_pending_until_it_can_go() {
    let b = Bench::new();
    let (msi, _, at) = msi_card(&b);
    b.config_write(at + 2, 2, 2 << 4 | 1);
    b.config_write(at + 0x10, 4, u32::MAX);
    assert_eq!(b.config_read(at + 0x10, 4), 0xf, "a mask for each message");
    msi.send(2);
    msi.send(2);
    assert_eq!((b.messages().len(), b.config_read(at + 0x14, 4)), (0, 4));
    b.config_write(at + 2, 2, 0);
    b.config_write(at + 0x10, 4, 0);
    assert_eq!((b.messages().len(), b.config_read(at + 0x14, 4)), (0, 4));
    b.config_write(at + 2, 2, 2 << 4 | 1);
    assert_eq!(b.messages(), [(MSI_ADDR, 0x4fd2)]);
    assert_eq!(b.config_read(at + 0x14, 4), 0);
    b.config_write(at + 0x14, 4, u32::MAX);
    assert_eq!(b.config_read(at + 0x14, 4), 0, "pending bits are read only");
}

#[test]
fn intx_is_silent_while_messages_are_enabled() {
    let b = Bench::new();
    let (_, line, at) = msi_card(&b);
    line.set(true);
    assert!(b.irq(16));
    b.config_write(at + 2, 2, 1);
    assert!(!b.irq(16));
    b.config_write(at + 2, 2, 0);
    assert!(b.irq(16));
}

/// A card with three MSI-X messages, its table in BAR 1 at E0000000, bus mastering on; the capability's offset.
fn msix_card(b: &Bench) -> (Msix, u16) {
    let mut made = None;
    plug(b, Bdf::new(3, 0), |slot| {
        slot.bar(1, BarKind::Mem32, 0x2000, TABLE, Widths::QWORD);
        let msix = slot.msix(3, 1, 0x1000);
        made = Some(msix.clone());
        Card { msix: Some(msix), ..Card::default() }
    });
    b.config_write(0x14, 4, 0xe000_0000);
    b.config_write(4, 2, (CMD_MASTER | CMD_MEMORY).into());
    (made.unwrap(), b.config_read(0x34, 1) as u16)
}

/// The card hands all of its BAR to the table.
const ENTRIES: u64 = 0xe000_0000;

fn entry(b: &mut Bench, n: u64, data: u64, masked: u64) {
    let at = ENTRIES + 16 * n;
    b.bus.write(at, 8, 0xfee0_0000 + 0x1000 * n);
    b.bus.write(at + 8, 4, data);
    b.bus.write(at + 12, 4, masked);
}

#[test]
fn msix_says_where_its_table_is_and_starts_masked() {
    let mut b = Bench::new();
    let (msix, at) = msix_card(&b);
    assert_eq!(b.config_read(at, 4) & 0xffff_00ff, 0x0002_0011, "three entries");
    assert_eq!((b.config_read(at + 4, 4), b.config_read(at + 8, 4)), (0x1001, 0x1801));
    assert_eq!(b.bus.read(ENTRIES + 12, 4), 1);
    b.config_write(at + 2, 2, 0x8000);
    msix.send(0);
    msix.send(3);
    assert!(b.messages().is_empty());
    assert_eq!(b.bus.read(ENTRIES + PBA, 8), 1);
    entry(&mut b, 0, 0x41, 0);
    assert_eq!(b.messages(), [(0xfee0_0000, 0x41)]);
    assert_eq!(b.bus.read(ENTRIES + PBA, 8), 0);
    msix.send(0);
    assert_eq!(b.messages().len(), 1);
}

#[test]
fn the_function_mask_holds_all_messages_and_lets_each_go_once() {
    let mut b = Bench::new();
    let (msix, at) = msix_card(&b);
    for n in 0..3 {
        entry(&mut b, n, 0x50 + n, 0);
    }
    b.config_write(at + 2, 2, 0xc000);
    [2, 0, 2].into_iter().for_each(|n| msix.send(n));
    assert!(b.messages().is_empty());
    assert_eq!(b.bus.read(ENTRIES + PBA, 4), 5);
    b.config_write(4, 2, CMD_MEMORY.into());
    b.config_write(at + 2, 2, 0x8000);
    assert!(b.messages().is_empty(), "not a bus master");
    assert_eq!(b.bus.read(ENTRIES + PBA, 4), 5);
    b.config_write(4, 2, (CMD_MASTER | CMD_MEMORY).into());
    assert_eq!(b.messages(), [(0xfee0_0000, 0x50), (0xfee0_2000, 0x52)]);
    b.config_write(at + 2, 2, 0);
    msix.send(1);
    assert!(b.messages().is_empty());
}

#[test]
fn odd_accesses_to_the_msix_table_do_nothing() {
    let mut b = Bench::new();
    let (msix, _) = msix_card(&b);
    entry(&mut b, 1, 0x1234, 0);
    let before = msix.save();
    for (at, width) in [(16, 1), (18, 2), (17, 4), (20, 8), (16 * 3, 8), (PBA, 8), (0xffc, 8)] {
        b.bus.write(ENTRIES + at, width, u64::MAX);
        b.bus.read(ENTRIES + at, width);
    }
    assert_eq!(msix.save(), before);
    msix.reset();
    assert_eq!(msix.save(), (vec![[0, 0, 0, 1]; 3], vec![false; 3]));
    msix.load(&before.0, &before.1);
    assert_eq!(msix.save(), before);
}

#[test]
fn capabilities_form_a_list() {
    let b = Bench::new();
    plug(&b, Bdf::new(3, 0), |slot| {
        let f = slot.machine().pci.function(Bdf::new(3, 0)).unwrap();
        f.add_capability(9, 7);
        f.add_capability(1, 8);
        Card::default()
    });
    assert_eq!(b.config_read(6, 1) & 0x10, 0x10);
    let first = b.config_read(0x34, 1) as u16;
    let second = b.config_read(first + 1, 1) as u16;
    assert_eq!((b.config_read(first, 1), b.config_read(second, 2)), (1, 9));
    assert_eq!((first % 4, second % 4), (0, 0));
}

#[test]
fn a_loaded_configuration_puts_everything_where_it_was() {
    let b = Bench::new();
    card(&b);
    for (at, value) in [(0x10, 0xc000), (0x18, 0), (0x1c, 2), (4, 0x407)] {
        b.config_write(at, 4, value);
    }
    let saved = b.machine.pci.function(Bdf::new(3, 0)).unwrap().save();
    let mut other = Bench::new();
    card(&other);
    let f = other.machine.pci.function(Bdf::new(3, 0)).unwrap();
    f.load(saved.clone()).unwrap();
    assert_eq!(f.save(), saved);
    assert_eq!((other.bus.pio_read(0xc001, 1), other.bus.read(0x2_0000_0000, 1)), (1, 3));
    assert!(f.bus_master().load(Ordering::Relaxed));
    f.reset();
    assert_eq!(other.config_read(0x10, 4), 1, "power-on values are the fresh machine's");
    assert!(f.load(Value::from("00")).is_err());
    let mut text = saved.as_str().unwrap().to_owned();
    text.replace_range(0..2, "ff");
    assert!(f.load(Value::from(text)).unwrap_err().contains("identity"));
}

#[test]
fn an_expansion_rom_is_sized_decoded_and_never_written() {
    let mut b = Bench::new();
    let image: Vec<u8> = (0..9 << 10).map(|n: u32| n as u8 ^ 0x55).collect();
    let backends = Backends { rom: Some(image), ..Backends::default() };
    let create = |slot: &mut Slot| {
        slot.pci(IDS)?;
        slot.rom()?;
        Ok(Box::new(Card::default()) as Box<dyn Device>)
    };
    b.machine.plug_with("rom", Some(Bdf::new(3, 0)), backends, create).unwrap();
    b.config_write(0x30, 4, u32::MAX);
    assert_eq!(b.config_read(0x30, 4), 0xffff_c001, "16 KiB");
    b.config_write(0x30, 4, 0xf000_0000);
    b.config_write(4, 2, 2);
    assert_eq!(b.bus.read(0xf000_0000, 4), 0xffff_ffff, "not enabled");
    b.config_write(0x30, 4, 0xf000_0001);
    b.bus.write(0xf000_0000, 4, 0);
    assert_eq!(b.bus.read(0xf000_0000, 4), 0x5657_5455);
    assert_eq!(b.bus.read(0xf000_2400, 4), 0, "behind the image");
    b.config_write(4, 2, 0);
    assert_eq!(b.bus.read(0xf000_0000, 4), 0xffff_ffff, "memory space is off");
    b.config_write(4, 2, 2);
    b.machine.pci.function(Bdf::new(3, 0)).unwrap().reset();
    assert_eq!((b.config_read(0x30, 4), b.bus.read(0xf000_0000, 4)), (0, 0xffff_ffff));
}
