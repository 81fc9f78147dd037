//! INT 1Ah: ticks since midnight, the real-time clock. PCI functions are in [`super::pci`].

use super::{Call, Flow, data, pci};

/// Ticks of a day, as INT 08h counts them.
const DAY: u32 = 0x18_00b0;
/// Registers of the MC146818.
const SECONDS: u8 = 0;
const MINUTES: u8 = 2;
const HOURS: u8 = 4;
const ALARM: [u8; 3] = [5, 3, 1];
const DAY_OF_MONTH: u8 = 7;
const MONTH: u8 = 8;
const YEAR: u8 = 9;
const CENTURY: u8 = 0x32;
const A: u8 = 0x0a;
const B: u8 = 0x0b;
/// Bits of B: set, alarm, summer time.
const SET: u8 = 0x80;
const AIE: u8 = 0x20;
const DSE: u8 = 0x01;

fn number(bcd: u8) -> u32 {
    u32::from(bcd >> 4) * 10 + u32::from(bcd & 15)
}

/// Sets the ticks by the clock.
pub(super) fn start(c: &mut Call) {
    let [s, m, h] = [SECONDS, MINUTES, HOURS].map(|n| number(c.cmos(n)));
    let seconds = (h * 60 + m) * 60 + s;
    // 1193182 Hz by 65536.
    let ticks = u64::from(seconds) * 1_193_182 / 65_536;
    c.set_dword(data::TICKS, (ticks as u32).min(DAY - 1));
}

/// INT 1Ah.
pub(super) fn service(c: &mut Call) -> Flow {
    let function = c.r.ah();
    if matches!(function, 2 | 4) && c.cmos(A) & 0x80 != 0 {
        return Flow::Wait;
    }
    c.r.set_carry(false);
    match function {
        0 => {
            let (ticks, midnight) = (c.dword(data::TICKS), c.byte(data::MIDNIGHT));
            c.set_byte(data::MIDNIGHT, 0);
            c.r.set_cx((ticks >> 16) as u16);
            c.r.set_dx(ticks as u16);
            c.r.set_al(midnight);
        }
        1 => {
            let ticks = u32::from(c.r.cx()) << 16 | u32::from(c.r.dx());
            c.set_dword(data::TICKS, ticks);
            c.set_byte(data::MIDNIGHT, 0);
        }
        2 => {
            let [s, m, h, b] = [SECONDS, MINUTES, HOURS, B].map(|n| c.cmos(n));
            c.r.set_cx(u16::from_be_bytes([h, m]));
            c.r.set_dx(u16::from_be_bytes([s, b & DSE]));
        }
        3 => {
            let b = c.cmos(B);
            c.set_cmos(B, b | SET);
            let ([h, m], [s, dst]) = (c.r.cx().to_be_bytes(), c.r.dx().to_be_bytes());
            [(HOURS, h), (MINUTES, m), (SECONDS, s)].into_iter().for_each(|(n, v)| c.set_cmos(n, v));
            c.set_cmos(B, b & !(SET | DSE) | dst & DSE);
        }
        4 => {
            let [d, m, y, century] = [DAY_OF_MONTH, MONTH, YEAR, CENTURY].map(|n| c.cmos(n));
            c.r.set_cx(u16::from_be_bytes([century, y]));
            c.r.set_dx(u16::from_be_bytes([m, d]));
        }
        5 => {
            let b = c.cmos(B);
            c.set_cmos(B, b | SET);
            let ([century, y], [m, d]) = (c.r.cx().to_be_bytes(), c.r.dx().to_be_bytes());
            [(DAY_OF_MONTH, d), (MONTH, m), (YEAR, y), (CENTURY, century)]
                .into_iter()
                .for_each(|(n, v)| c.set_cmos(n, v));
            c.set_cmos(B, b & !SET);
        }
        6 => {
            let b = c.cmos(B);
            if b & AIE != 0 {
                c.r.set_carry(true);
                return Flow::Done;
            }
            let ([h, m], [s, _]) = (c.r.cx().to_be_bytes(), c.r.dx().to_be_bytes());
            ALARM.into_iter().zip([h, m, s]).for_each(|(n, v)| c.set_cmos(n, v));
            c.set_cmos(B, b & !SET | AIE);
            let mask = c.inb(0xa1);
            c.outb(0xa1, mask & !1);
        }
        7 => {
            let b = c.cmos(B);
            c.set_cmos(B, b & !AIE);
        }
        0xb1 => return pci::service(c),
        _ => c.r.set_carry(true),
    }
    Flow::Done
}
