//! INT 14h and INT 17h: serial and parallel ports.
//!
//! Whoever sends to a line that does not go on gets a timeout; while it runs the call waits as others do.

use super::{Call, Flow, data};

const TIMEOUT: u8 = 0x80;
/// Nanoseconds of a unit of the timeouts in the data area.
const UNIT: u64 = 1_000_000_000;

/// A register of the 16550.
const LINE_CONTROL: u16 = 3;
const MODEM_CONTROL: u16 = 4;
const LINE_STATUS: u16 = 5;
const MODEM_STATUS: u16 = 6;
const DATA_READY: u8 = 0x01;
const THR_EMPTY: u8 = 0x20;
/// DTR and RTS.
const READY: u8 = 0x03;

/// Divisors of function 00h's speeds: 110 to 9600 bits a second; function 04h goes on to 19200.
const DIVISORS: [u16; 9] = [1047, 768, 384, 192, 96, 48, 24, 12, 6];

/// INT 14h.
pub(super) fn serial(c: &mut Call) -> Flow {
    let n = u64::from(c.r.dx());
    let port = if n < 4 { c.word(data::SERIAL_PORTS + 2 * n) } else { 0 };
    if port == 0 {
        // As the AT answers for a port that is not there: it timed out.
        c.r.set_ah(TIMEOUT);
        return Flow::Done;
    }
    match c.r.ah() {
        0x00 => {
            let al = c.r.al();
            set_line(c, port, DIVISORS[usize::from(al >> 5)], al & 0x1f);
            status(c, port);
        }
        0x01 => {
            c.outb(port + MODEM_CONTROL, READY);
            if c.inb(port + LINE_STATUS) & THR_EMPTY == 0 {
                return wait(c, data::SERIAL_TIMEOUT + n, port);
            }
            let byte = c.r.al();
            c.outb(port, byte);
            let line = c.inb(port + LINE_STATUS);
            c.r.set_ah(line & 0x7f);
        }
        0x02 => {
            c.outb(port + MODEM_CONTROL, READY);
            let line = c.inb(port + LINE_STATUS);
            if line & DATA_READY == 0 {
                return wait(c, data::SERIAL_TIMEOUT + n, port);
            }
            let byte = c.inb(port);
            c.r.set_ax(u16::from(line & 0x1e) << 8 | u16::from(byte));
        }
        0x03 => status(c, port),
        0x04 => {
            // BH parity, BL stop bits, CH data bits, CL speed.
            let (parity, stop, bits, speed) = (c.r.bh(), c.r.bl(), c.r.ch(), usize::from(c.r.cl()));
            let parity = [0x00, 0x08, 0x18, 0x28, 0x38].get(usize::from(parity)).copied().unwrap_or(0);
            let line = bits & 3 | stop << 2 & 4 | parity;
            let divisor = DIVISORS.get(speed).copied().unwrap_or(12);
            set_line(c, port, divisor, line);
            status(c, port);
        }
        0x05 => {
            if c.r.al() == 1 {
                let bl = c.r.bl();
                c.outb(port + MODEM_CONTROL, bl & 0x1f);
            }
            let bl = c.inb(port + MODEM_CONTROL);
            c.r.set_bl(bl);
            status(c, port);
        }
        _ => c.r.set_ah(TIMEOUT),
    }
    Flow::Done
}

fn set_line(c: &mut Call, port: u16, divisor: u16, line: u8) {
    c.outb(port + LINE_CONTROL, line | 0x80);
    c.outb(port, divisor as u8);
    c.outb(port + 1, (divisor >> 8) as u8);
    c.outb(port + LINE_CONTROL, line);
    c.outb(port + 1, 0);
}

fn status(c: &mut Call, port: u16) {
    let (line, modem) = (c.inb(port + LINE_STATUS), c.inb(port + MODEM_STATUS));
    c.r.set_ax(u16::from(line) << 8 | u16::from(modem));
}

/// Not yet, or not in the time that the byte at `limit` gives.
fn wait(c: &mut Call, limit: u64, port: u16) -> Flow {
    let units = c.byte(limit).max(1);
    if !c.waited(u64::from(units) * UNIT) {
        return Flow::Wait;
    }
    let line = c.inb(port + LINE_STATUS);
    c.r.set_ah(line | TIMEOUT);
    Flow::Done
}

/// INT 17h: status bits are those of the port, two of them turned over.
pub(super) fn parallel(c: &mut Call) -> Flow {
    const BUSY: u8 = 0x80;
    const TIMED_OUT: u8 = 0x01;
    let n = u64::from(c.r.dx());
    let port = if n < 3 { c.word(data::PARALLEL_PORTS + 2 * n) } else { 0 };
    if port == 0 {
        c.r.set_ah(TIMED_OUT);
        return Flow::Done;
    }
    let mut result = 0;
    match c.r.ah() {
        0x00 => {
            if c.inb(port + 1) & BUSY == 0 {
                let units = c.byte(data::PARALLEL_TIMEOUT + n).max(1);
                if !c.waited(u64::from(units) * UNIT) {
                    return Flow::Wait;
                }
                result = TIMED_OUT;
            } else {
                let byte = c.r.al();
                c.outb(port, byte);
                // A strobe.
                c.outb(port + 2, 0x0d);
                c.outb(port + 2, 0x0c);
            }
        }
        0x01 => {
            c.outb(port + 2, 0x08);
            c.outb(port + 2, 0x0c);
        }
        _ => {}
    }
    let status = c.inb(port + 1);
    c.r.set_ah((status ^ 0x48) & 0xf8 | result);
    Flow::Done
}
