//! PCI BIOS 2.1: INT 1Ah/B1h, and the same functions at the 32-bit entry that the BIOS32 service directory names.

use super::{Call, Flow};

const SUCCESSFUL: u8 = 0x00;
const NOT_SUPPORTED: u8 = 0x81;
const BAD_VENDOR: u8 = 0x83;
const NOT_FOUND: u8 = 0x86;
const BAD_REGISTER: u8 = 0x87;
const BUFFER_TOO_SMALL: u8 = 0x89;

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;

/// "PCI " in EDX of the installation check.
const SIGNATURE: u32 = 0x2049_4350;

/// A configuration register of a function (bus and device and function as BX has them). The caller's address register
/// stays as it was.
fn access(c: &mut Call, bdf: u16, register: u16, f: impl FnOnce(&mut Call, u16) -> u32) -> u32 {
    let old = c.host.inp(ADDRESS, 4);
    c.host.outp(ADDRESS, 4, 0x8000_0000 | u32::from(bdf) << 8 | u32::from(register & 0xfc));
    let value = f(c, DATA + (register & 3));
    c.host.outp(ADDRESS, 4, old);
    value
}

pub(super) fn read(c: &mut Call, bdf: u16, register: u16, width: u8) -> u32 {
    access(c, bdf, register, |c, port| c.host.inp(port, width))
}

pub(super) fn write(c: &mut Call, bdf: u16, register: u16, width: u8, value: u32) {
    access(c, bdf, register, |c, port| {
        c.host.outp(port, width, value);
        0
    });
}

/// All functions of all buses, by number.
pub(super) fn functions(c: &mut Call) -> Vec<u16> {
    let mut found = Vec::new();
    for bus in c.config.platform.pci.buses() {
        for device in 0..32u16 {
            let first = u16::from(bus) << 8 | device << 3;
            if read(c, first, 0, 2) as u16 == 0xffff {
                continue;
            }
            let last = if read(c, first, 0x0e, 1) & 0x80 != 0 { 7 } else { 0 };
            found.extend((first..=first + last).filter(|f| read(c, *f, 0, 2) as u16 != 0xffff));
        }
    }
    found
}

/// INT 1Ah/B1h with the function in AL; bit 7 of it is the 32-bit form's, which does the same.
pub(super) fn service(c: &mut Call) -> Flow {
    let function = c.r.al() & 0x7f;
    let status = match function {
        0x01 => {
            c.r.edx = SIGNATURE;
            // Configuration mechanism 1; version 2.10; the last bus.
            c.r.set_al(0x01);
            c.r.set_bx(0x0210);
            c.r.set_cl(c.config.platform.pci.buses().last().unwrap_or(0));
            SUCCESSFUL
        }
        0x02 if c.r.dx() == 0xffff => BAD_VENDOR,
        0x02 | 0x03 => {
            let (wanted, n) = if function == 2 {
                (u32::from(c.r.cx()) << 16 | u32::from(c.r.dx()), c.r.si())
            } else {
                (c.r.ecx & 0xff_ffff, c.r.si())
            };
            let all = functions(c);
            let matching = |f: &&u16| match function {
                2 => read(c, **f, 0, 4) == wanted,
                _ => read(c, **f, 8, 4) >> 8 == wanted,
            };
            match all.iter().filter(matching).nth(n.into()).copied() {
                Some(bdf) => {
                    c.r.set_bx(bdf);
                    SUCCESSFUL
                }
                None => NOT_FOUND,
            }
        }
        // Special cycles reach nothing here.
        0x06 => SUCCESSFUL,
        0x08..=0x0d => {
            let width = 1 << ((function - 8) % 3);
            let (register, bdf) = (c.r.di(), c.r.bx());
            if register > 0xff || register & (u16::from(width) - 1) != 0 {
                BAD_REGISTER
            } else if function <= 0x0a {
                let value = read(c, bdf, register, width);
                match width {
                    1 => c.r.set_cl(value as u8),
                    2 => c.r.set_cx(value as u16),
                    _ => c.r.ecx = value,
                }
                SUCCESSFUL
            } else {
                let value = c.r.ecx;
                write(c, bdf, register, width, value);
                SUCCESSFUL
            }
        }
        0x0e => routing(c),
        _ => NOT_SUPPORTED,
    };
    c.r.set_ah(status);
    c.r.set_carry(status != SUCCESSFUL);
    Flow::Done
}

/// Get IRQ routing options: the slots of the $PIR table, to where the header at ES:DI says. From
/// protected mode it is refused: kernels read $PIR itself.
fn routing(c: &mut Call) -> u8 {
    let Some(table) = crate::pir::build(&c.config.platform) else { return NOT_SUPPORTED };
    let slots = table.get(32..).unwrap_or_default();
    if c.is_latched() {
        return NOT_SUPPORTED;
    }
    // A word with the length, and a far pointer.
    let header = super::linear(c.r.es, c.r.di());
    let room = c.word(header);
    c.set_word(header, slots.len() as u16);
    if usize::from(room) < slots.len() {
        return BUFFER_TOO_SMALL;
    }
    let (offset, segment) = (c.word(header + 2), c.word(header + 4));
    c.host.write(super::linear(segment, offset), slots);
    // IRQs that only PCI uses.
    let used = c.config.platform.pci.links.iter().filter_map(|l| l.irq).fold(0u16, |mask, irq| mask | 1 << irq);
    c.r.set_bx(used);
    SUCCESSFUL
}
