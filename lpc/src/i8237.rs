//! Intel 8237A DMA controllers, the pair of a PC with its page registers.
//!
//! Datasheet: Intel 8237A (231466). Channels 0 to 3 move bytes within 64 KiB, 5 to 7 words within 128 KiB; channel 4 is
//! the cascade. A leaf chip with a lock of its own: the floppy controller and the Sound Blaster ask it for their
//! transfers while their own lock is held. Single, block and demand transfers are the same here, because a device says
//! how much it moves; auto-initialisation, decrement, verify, masks, software requests and the status register are as
//! on the chip. Not modelled: memory-to-memory transfers and rotating priority (nobody competes).

use std::sync::{Arc, Mutex};

use emu::{Access, DeviceState, DmaMem, Machine, ResetKind, Saved, State, Widths};
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Channel {
    base_address: u16,
    base_count: u16,
    address: u16,
    count: u16,
    page: u8,
    mode: u8,
}

impl Channel {
    fn auto_init(self) -> bool {
        self.mode & 0x10 != 0
    }

    fn down(self) -> bool {
        self.mode & 0x20 != 0
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Chip {
    channels: [Channel; 4],
    command: u8,
    status: u8,
    mask: u8,
    request: u8,
    /// The byte pointer: the high byte comes next.
    high: bool,
}

impl Chip {
    fn power_on() -> Chip {
        Chip { mask: 0x0f, ..Chip::default() }
    }

    fn read(&mut self, reg: usize) -> u8 {
        match reg {
            0..=7 => {
                let c = self.channels[reg / 2];
                let word = if reg.is_multiple_of(2) { c.address } else { c.count };
                let high = self.high;
                self.high = !high;
                if high { (word >> 8) as u8 } else { word as u8 }
            }
            8 => {
                let s = self.status | self.request << 4;
                self.status &= 0xf0;
                s
            }
            15 => self.mask | 0xf0,
            _ => 0,
        }
    }

    fn write(&mut self, reg: usize, value: u8) {
        let n = value as usize & 3;
        match reg {
            0..=7 => {
                let high = self.high;
                self.high = !high;
                let c = &mut self.channels[reg / 2];
                let (base, now) = if reg.is_multiple_of(2) {
                    (&mut c.base_address, &mut c.address)
                } else {
                    (&mut c.base_count, &mut c.count)
                };
                let v = u16::from(value);
                *base = if high { *base & 0xff | v << 8 } else { *base & 0xff00 | v };
                *now = *base;
            }
            8 => self.command = value,
            9 => self.request = self.request & !(1 << n) | (value >> 2 & 1) << n,
            10 => self.mask = self.mask & !(1 << n) | (value >> 2 & 1) << n,
            11 => self.channels[n].mode = value,
            12 => self.high = false,
            13 => {
                let channels = self.channels;
                *self = Chip { channels, ..Chip::power_on() };
            }
            14 => self.mask = 0,
            _ => self.mask = value & 0x0f,
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Regs {
    chips: [Chip; 2],
    /// The page registers that no channel has.
    spare: [u8; 16],
}

impl Default for Regs {
    fn default() -> Regs {
        Regs { chips: [Chip::power_on(), Chip::power_on()], spare: [0; 16] }
    }
}

/// The channel whose page register is at 80 + n.
const PAGES: [Option<u8>; 16] = [
    None,
    Some(2),
    Some(3),
    Some(1),
    None,
    None,
    None,
    Some(0),
    None,
    Some(6),
    Some(7),
    Some(5),
    None,
    None,
    None,
    Some(4),
];

/// The pair.
pub struct I8237 {
    regs: Mutex<Regs>,
    memory: DmaMem,
}

impl I8237 {
    /// Puts the pair at 00-0F, C0-DF and 80-8F.
    pub fn new(machine: &Machine) -> Arc<I8237> {
        let memory = DmaMem::new(machine.space.clone(), Arc::new(true.into()));
        let chip = Arc::new(I8237 { regs: Mutex::default(), memory });
        for (region, base, len) in [(0, 0x00, 0x10), (1, 0xc0, 0x20), (2, 0x80, 0x10)] {
            let id = machine.space.add_ports(base, len, 0, chip.clone(), region, Widths::BYTE);
            machine.space.enable_ports(id, base, true);
        }
        machine.add_part(chip.clone());
        chip
    }

    /// Whether a channel (0 to 7) would answer a request now.
    pub fn ready(&self, channel: usize) -> bool {
        self.left(channel) > 0
    }

    /// How many bytes a channel would move until terminal count; none while it would not answer.
    pub fn left(&self, channel: usize) -> usize {
        let r = self.regs.lock().unwrap();
        let (chip, n) = (&r.chips[channel / 4], channel % 4);
        if chip.mask >> n & 1 != 0 || chip.command & 4 != 0 {
            return 0;
        }
        (usize::from(chip.channels[n].count) + 1) << (channel / 4)
    }

    /// A device moves up to `data.len()` bytes on a channel: into guest memory, or out of it into `data`, as the
    /// channel's mode says. Returns how many bytes moved and whether that reached terminal count.
    pub fn transfer(&self, channel: usize, data: &mut [u8]) -> (usize, bool) {
        let mut r = self.regs.lock().unwrap();
        let wide = channel >= 4;
        let unit = if wide { 2 } else { 1 };
        let chip = &mut r.chips[channel / 4];
        let n = channel % 4;
        if chip.mask >> n & 1 != 0 || chip.command & 4 != 0 {
            return (0, false);
        }
        let mut moved = 0;
        while moved + unit <= data.len() {
            let c = &mut chip.channels[n];
            let address = if wide {
                u64::from(c.page & 0xfe) << 16 | u64::from(c.address) << 1
            } else {
                u64::from(c.page) << 16 | u64::from(c.address)
            };
            let item = &mut data[moved..moved + unit];
            match c.mode >> 2 & 3 {
                1 => self.memory.write(address, item),
                2 => self.memory.read(address, item),
                // Verify moves nothing.
                _ => {}
            }
            c.address = if c.down() { c.address.wrapping_sub(1) } else { c.address.wrapping_add(1) };
            moved += unit;
            let (count, done) = c.count.overflowing_sub(1);
            c.count = count;
            if done {
                chip.status |= 1 << n;
                chip.request &= !(1 << n);
                let c = &mut chip.channels[n];
                if c.auto_init() {
                    (c.address, c.count) = (c.base_address, c.base_count);
                } else {
                    chip.mask |= 1 << n;
                }
                return (moved, true);
            }
        }
        (moved, false)
    }
}

impl Access for I8237 {
    fn owner(&self) -> &str {
        self.name()
    }

    fn read(&self, region: u32, offset: u64, _width: u8) -> u64 {
        let mut r = self.regs.lock().unwrap();
        let at = offset as usize;
        u64::from(match region {
            0 => r.chips[0].read(at & 15),
            1 => r.chips[1].read(at >> 1 & 15),
            _ => match PAGES[at & 15] {
                Some(c) => r.chips[c as usize / 4].channels[c as usize % 4].page,
                None => r.spare[at & 15],
            },
        })
    }

    fn write(&self, region: u32, offset: u64, _width: u8, value: u64) {
        let mut r = self.regs.lock().unwrap();
        let (at, value) = (offset as usize, value as u8);
        match region {
            0 => r.chips[0].write(at & 15, value),
            1 => r.chips[1].write(at >> 1 & 15, value),
            _ => match PAGES[at & 15] {
                Some(c) => r.chips[c as usize / 4].channels[c as usize % 4].page = value,
                None => r.spare[at & 15] = value,
            },
        }
    }
}

impl DeviceState for I8237 {
    fn name(&self) -> &str {
        "i8237"
    }

    fn reset(&self, _: ResetKind) {
        *self.regs.lock().unwrap() = Regs::default();
    }

    fn save(&self) -> Saved {
        Saved { version: 1, state: self.regs.lock().unwrap().save(), ..Saved::default() }
    }

    fn load(&self, saved: Saved) -> Result<(), String> {
        self.regs.lock().unwrap().load(saved.state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use emu::bench::Bench;

    fn program(b: &mut Bench, mode: u8, page: u8, address: u16, count: u16) {
        b.outb(0x0c, 0);
        b.outb(0x0b, mode | 2);
        for byte in address.to_le_bytes() {
            b.outb(0x04, byte);
        }
        for byte in count.to_le_bytes() {
            b.outb(0x05, byte);
        }
        b.outb(0x81, page);
        b.outb(0x0a, 2);
    }

    #[test]
    fn a_write_transfer_ends_at_terminal_count_and_masks_the_channel() {
        let mut b = Bench::new();
        let dma = I8237::new(&b.machine);
        program(&mut b, 0x44, 0x02, 0xfffe, 2);
        let mut data = [1, 2, 3, 4];
        assert_eq!(dma.transfer(2, &mut data), (3, true));
        assert_eq!(b.dma().fetch::<2>(0x2_fffe), [1, 2]);
        assert_eq!(b.dma().fetch::<1>(0x2_0000), [3], "the address wraps inside its page");
        assert!(!dma.ready(2));
        assert_eq!(dma.transfer(2, &mut data), (0, false));
        assert_eq!(b.inb(0x08), 0x04);
        assert_eq!(b.inb(0x08), 0, "reading the status clears it");
    }

    #[test]
    fn auto_initialisation_starts_over() {
        let mut b = Bench::new();
        let dma = I8237::new(&b.machine);
        b.dma().write(0x1_0000, &[9, 8, 7, 6]);
        program(&mut b, 0x58, 0x01, 0, 1);
        let mut data = [0; 2];
        assert_eq!(dma.transfer(2, &mut data), (2, true));
        assert_eq!(dma.transfer(2, &mut data), (2, true));
        assert_eq!(data, [9, 8]);
        b.outb(0x0c, 0);
        assert_eq!(u16::from_le_bytes([b.inb(5), b.inb(5)]), 1);
    }

    #[test]
    fn sixteen_bit_channels_count_words() {
        let mut b = Bench::new();
        let dma = I8237::new(&b.machine);
        b.outb(0xd8, 0);
        b.outb(0xd6, 0x45);
        for (port, value) in [(0xc4, 0x00), (0xc4, 0x80), (0xc6, 1), (0xc6, 0), (0x8b, 0x03), (0xd4, 1)] {
            b.outb(port, value);
        }
        assert_eq!(dma.left(5), 4);
        assert_eq!(dma.transfer(5, &mut [1, 2, 3, 4]), (4, true));
        assert_eq!(b.dma().fetch::<4>(0x3_0000), [1, 2, 3, 4], "page bit 0 is the address's top bit");
    }

    #[test]
    fn master_clear_masks_everything_and_resets_the_byte_pointer() {
        let mut b = Bench::new();
        let dma = I8237::new(&b.machine);
        b.outb(0x0e, 0);
        assert!(dma.ready(1));
        b.outb(0x02, 0x34);
        b.outb(0x0d, 0);
        assert!(!dma.ready(1));
        b.outb(0x02, 0x12);
        b.outb(0x0c, 0);
        assert_eq!(b.inb(0x02), 0x12);
        assert_eq!(b.inb(0x0f), 0xff);
    }

    #[test]
    fn spare_page_registers_hold_what_is_written() {
        let mut b = Bench::new();
        I8237::new(&b.machine);
        b.outb(0x80, 0x5a);
        b.outb(0x8f, 0xa5);
        assert_eq!((b.inb(0x80), b.inb(0x8f)), (0x5a, 0xa5));
    }
}
