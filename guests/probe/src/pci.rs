//! PCI by configuration mechanism 1.

use crate::cpu::{inb, inl, outb, outl};
use crate::report::{Text, Verdict};
use crate::{ensure, good, skip};
use core::fmt::Write;

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;

/// A function by bus, device and function number.
#[derive(Clone, Copy)]
pub struct Function {
    pub bus: u8,
    pub device: u8,
    pub function: u8,
}

impl core::fmt::Display for Function {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus, self.device, self.function)
    }
}

/// A base address register after sizing.
#[derive(Clone, Copy)]
pub struct Bar {
    pub io: bool,
    pub wide: bool,
    pub prefetch: bool,
    pub base: u64,
    pub size: u64,
}

impl Function {
    fn select(self, register: u8) {
        let at = u32::from(self.bus) << 16 | u32::from(self.device) << 11 | u32::from(self.function) << 8;
        outl(ADDRESS, 1 << 31 | at | u32::from(register & 0xfc));
    }

    pub fn read(self, register: u8) -> u32 {
        self.select(register);
        inl(DATA)
    }

    fn write(self, register: u8, value: u32) {
        self.select(register);
        outl(DATA, value);
    }

    /// Lets the function reach memory.
    pub fn enable_bus_master(self) {
        let command = self.read(4) & 0xffff;
        self.write(4, command | 4);
    }

    /// Vendor in the lower half, device in the upper.
    pub fn ids(self) -> u32 {
        self.read(0)
    }

    /// Base class, subclass and interface, 24 bits.
    pub fn class(self) -> u32 {
        self.read(8) >> 8
    }

    fn header(self) -> u8 {
        (self.read(0x0c) >> 16) as u8
    }

    /// Number of base address registers by header type.
    fn bars(self) -> u8 {
        match self.header() & 0x7f {
            0 => 6,
            1 => 2,
            _ => 0,
        }
    }

    /// Sizes BAR `n` with decoding off and restores it; `None` if it is not implemented.
    pub fn bar(self, n: u8) -> Option<Bar> {
        let register = 0x10 + 4 * n;
        let command = self.read(4) & 0xffff;
        self.write(4, command & !3);
        let old = self.read(register);
        self.write(register, 0xffff_ffff);
        let mask = self.read(register);
        self.write(register, old);
        let result = if mask == 0 || mask == 0xffff_ffff && old == 0xffff_ffff {
            None
        } else if mask & 1 != 0 {
            // A BAR of 16 address lines may leave the upper half zero.
            let size = (!(mask & !3)).wrapping_add(1) & 0xffff;
            Some(Bar { io: true, wide: false, prefetch: false, base: u64::from(old & !3), size: u64::from(size) })
        } else {
            let wide = mask >> 1 & 3 == 2;
            let mut all = u64::from(mask & !15) | 0xffff_ffff << 32;
            let mut base = u64::from(old & !15);
            if wide {
                let upper = self.read(register + 4);
                self.write(register + 4, 0xffff_ffff);
                all = u64::from(mask & !15) | u64::from(self.read(register + 4)) << 32;
                self.write(register + 4, upper);
                base |= u64::from(upper) << 32;
            }
            Some(Bar { io: false, wide, prefetch: mask & 8 != 0, base, size: (!all).wrapping_add(1) })
        };
        self.write(4, command);
        result
    }

    /// All base address registers that are implemented.
    pub fn each_bar(self, mut f: impl FnMut(u8, Bar)) {
        let mut n = 0;
        while n < self.bars() {
            let bar = self.bar(n);
            if let Some(bar) = bar {
                f(n, bar);
            }
            n += if bar.is_some_and(|b| b.wide) { 2 } else { 1 };
        }
    }

    /// Interrupt pin (1 = INTA) and line.
    pub fn interrupt(self) -> (u8, u8) {
        let word = self.read(0x3c);
        ((word >> 8) as u8, word as u8)
    }
}

/// What the class code says, for people.
pub fn class_name(class: u32) -> &'static str {
    match class >> 8 {
        0x0100 => "SCSI controller",
        0x0101 => "IDE controller",
        0x0102 => "floppy controller",
        0x0106 => "AHCI controller",
        0x0108 => "NVMe controller",
        0x0200 => "Ethernet controller",
        0x0300 => "VGA display",
        0x0401 => "audio device",
        0x0403 => "HD Audio controller",
        0x0600 => "host bridge",
        0x0601 => "ISA bridge",
        0x0604 => "PCI bridge",
        0x0680 => "bridge",
        0x0700 => "serial port",
        0x0c03 => match class & 0xff {
            0x00 => "UHCI USB controller",
            0x10 => "OHCI USB controller",
            0x20 => "EHCI USB controller",
            0x30 => "xHCI USB controller",
            _ => "USB controller",
        },
        0x0c05 => "SMBus controller",
        0x0880 => "system peripheral",
        0x00ff => "unclassified device",
        other => match other >> 8 {
            1 => "storage controller",
            2 => "network controller",
            3 => "display",
            _ => "device",
        },
    }
}

/// Whether mechanism 1 answers.
pub fn present() -> bool {
    let old = inl(ADDRESS);
    outl(ADDRESS, 1 << 31);
    let works = inl(ADDRESS) == 1 << 31;
    outl(ADDRESS, old);
    works
}

/// Calls `f` for every function of every bus that can be reached.
pub fn walk(mut f: impl FnMut(Function)) {
    let mut buses = [0u8; 32];
    let (mut known, mut next) = (1, 0);
    while next < known {
        let bus = buses[next];
        next += 1;
        for device in 0..32 {
            for function in 0..8 {
                let here = Function { bus, device, function };
                if here.ids() & 0xffff == 0xffff {
                    if function == 0 {
                        break;
                    }
                    continue;
                }
                f(here);
                if here.header() & 0x7f == 1 {
                    let behind = (here.read(0x18) >> 8) as u8;
                    if known < buses.len() && behind != 0 && !buses[..known].contains(&behind) {
                        buses[known] = behind;
                        known += 1;
                    }
                }
                if function == 0 && here.header() & 0x80 == 0 {
                    break;
                }
            }
        }
    }
}

/// Mechanism 1 is there, mechanism 2 is not, and byte and word accesses do not disturb the address register.
pub fn check_mechanism() -> Verdict {
    // The usual order of a probe for mechanism 2: it must not answer, and must not leave anything behind.
    outb(0xcfb, 0);
    outb(0xcf8, 0);
    outb(0xcfa, 0);
    let second = inb(0xcf8) == 0 && inb(0xcfa) == 0;
    if !present() {
        skip!("port CF8h does not read back");
    }
    ensure!(!second, "a probe for mechanism 2 finds it");
    let at = 1 << 31 | 0x40;
    outl(ADDRESS, at);
    outb(0xcf8, 0);
    outb(0xcfa, 0xff);
    outb(0xcfb, 0x01);
    crate::cpu::outw(0xcf8, 0x1234);
    ensure!(inl(ADDRESS) == at, "byte and word writes change CF8h to {:#x}", inl(ADDRESS));
    inb(0xcf8);
    crate::cpu::inw(0xcfa);
    ensure!(inl(ADDRESS) == at, "byte and word reads change CF8h to {:#x}", inl(ADDRESS));
    outl(ADDRESS, 1 << 31);
    let whole = inl(DATA);
    let bytes = (0..4).fold(0, |v, i| v | u32::from(inb(DATA + i)) << (8 * i));
    ensure!(whole == bytes, "ids as a word {whole:#x}, as bytes {bytes:#x}");
    outl(ADDRESS, 0);
    ensure!(inl(DATA) == 0xffff_ffff, "with the enable bit clear CFCh reads {:#x}", inl(DATA));
    good!("mechanism 1, and not 2")
}

/// Every function has sane ids, and BARs whose sizes are powers of two and whose addresses are aligned to them.
pub fn check_walk() -> Verdict {
    if !present() {
        skip!("no PCI");
    }
    let (mut functions, mut bars, mut pins) = (0, 0, 0);
    let mut bad: Option<Text> = None;
    walk(|f| {
        functions += 1;
        let mut complain = |text: Text| {
            bad.get_or_insert(text);
        };
        let before = [f.read(4) & 0xffff, f.read(0x10), f.read(0x14), f.read(0x18), f.read(0x20)];
        if f.ids() >> 16 == 0xffff || f.ids() & 0xffff == 0 {
            complain(crate::text!("{f}: ids {:08x}", f.ids()));
        }
        f.each_bar(|n, bar| {
            bars += 1;
            let least = if bar.io { 4 } else { 16 };
            if !bar.size.is_power_of_two() || bar.size < least || bar.base & (bar.size - 1) != 0 {
                complain(crate::text!("{f} BAR {n}: {:#x} at {:#x}", bar.size, bar.base));
            }
        });
        let (pin, line) = f.interrupt();
        if f.header() & 0x7f == 0 && pin != 0 {
            pins += 1;
            if pin > 4 || line != 0xff && line != 0 && line > 15 {
                complain(crate::text!("{f}: interrupt pin {pin}, line {line}"));
            }
        }
        let after = [f.read(4) & 0xffff, f.read(0x10), f.read(0x14), f.read(0x18), f.read(0x20)];
        if before != after {
            complain(crate::text!("{f}: command and BARs {before:x?} became {after:x?}"));
        }
    });
    if let Some(text) = bad {
        return Err(crate::report::Bad::Fail(text));
    }
    let host = Function { bus: 0, device: 0, function: 0 };
    ensure!(host.ids() != 0xffff_ffff, "nothing at 00:00.0");
    ensure!(host.class() >> 8 == 0x0600, "00:00.0 is of class {:06x}", host.class());
    let mut text = crate::text!("{functions} functions, {bars} BARs, {pins} interrupt pins;");
    let mut room = 8;
    walk(|f| {
        if room > 0 {
            let _ = write!(text, " {}={:04x}:{:04x}", f, f.ids() & 0xffff, f.ids() >> 16);
            room -= 1;
        }
    });
    Ok(text)
}
