//! Power-on: chips, interrupt vectors and data areas as a BIOS leaves them.
//!
//! PCI resources are assigned by the program before the first instruction. What is here happens again after every
//! reset, also after one of the processor alone, which programs for the 80286 use to leave protected mode: then the
//! shutdown code in CMOS says where to go on.

use super::{Call, EBDA, Flow, IF, boot, data, int10, int13, rom, time};

/// CMOS register of the shutdown code.
const SHUTDOWN: u8 = 0x0f;
/// Timeouts of ports, in units of the old BIOSes.
const PARALLEL_TIMEOUT: u8 = 0x14;
const SERIAL_TIMEOUT: u8 = 0x01;

/// Service [`super::service::POST`].
pub(super) fn run(c: &mut Call) -> Flow {
    if !c.again && !begin(c) {
        return Flow::Done;
    }
    if int13::start(c) == Flow::Wait {
        return Flow::Wait;
    }
    let equipment = c.byte(data::EQUIPMENT);
    c.set_cmos(0x14, equipment);
    (c.r.ip, c.r.cs, c.r.flags) = (rom::ROMS, data::ROM_SEGMENT, 2);
    Flow::Done
}

/// Sets up everything but the disks, unless the reset was a way back from protected mode: then the program goes on.
fn begin(c: &mut Call) -> bool {
    let code = c.cmos(SHUTDOWN);
    if c.state.started && matches!(code, 0x05 | 0x0a) {
        c.set_cmos(SHUTDOWN, 0);
        if code == 0x05 {
            c.outb(0xa0, 0x20);
            c.outb(0x20, 0x20);
        }
        let to = c.dword(data::RESTART);
        (c.r.ip, c.r.cs, c.r.flags) = (to as u16, (to >> 16) as u16, 2);
        return false;
    }
    c.set_cmos(SHUTDOWN, 0);
    let first = !std::mem::take(&mut *c.state).started;
    c.state.started = true;
    chips(c);
    vectors(c);
    areas(c);
    time::start(c);
    int10::start(c);
    boot::start(c, first);
    true
}

fn chips(c: &mut Call) {
    // A20 open.
    let fast = c.inb(0x92);
    c.outb(0x92, (fast | 2) & !1);
    // 8259: IRQ 0 at 08, IRQ 8 at 70. Open: timer, keyboard, cascade, diskette; clock, coprocessor, disks.
    for (port, values) in [(0x20, [0x11, 0x08, 0x04, 0x01, 0xb8]), (0xa0, [0x11, 0x70, 0x02, 0x01, 0x1e])] {
        c.outb(port, values[0]);
        values[1..].iter().for_each(|v| c.outb(port + 1, *v));
    }
    // 8254: 18.2 Hz, refresh, a speaker that is ready.
    for (port, value) in
        [(0x43, 0x36), (0x40, 0), (0x40, 0), (0x43, 0x54), (0x41, 0x12), (0x43, 0xb6), (0x42, 0x33), (0x42, 5)]
    {
        c.outb(port, value);
    }
    let speaker = c.inb(0x61);
    c.outb(0x61, speaker & 0xfc);
    // 8237: cleared, the primary cascaded through channel 4.
    for (port, value) in [(0x0d, 0), (0xda, 0), (0xd6, 0xc0), (0xd4, 0)] {
        c.outb(port, value);
    }
    // 8042: what is left over goes, translation and the keyboard's interrupt come.
    for _ in 0..32 {
        if c.inb(0x64) & 1 == 0 {
            break;
        }
        c.inb(0x60);
    }
    c.outb(0x64, 0x60);
    c.outb(0x60, 0x65);
    c.outb(0x64, 0xae);
    // MC146818: 32 kHz, 1024 Hz, 24 hours, nothing pending.
    c.set_cmos(0x0a, 0x26);
    c.set_cmos(0x0b, 0x02);
    c.cmos(0x0c);
    // The I/O APIC has the number that the tables give it.
    if let Some(apic) = c.config.platform.ioapic {
        c.set_dword(apic.base.into(), 0);
        c.set_dword(u64::from(apic.base) + 0x10, u32::from(apic.id) << 24);
    }
}

fn vectors(c: &mut Call) {
    let mut table = [0; 0x400];
    for (n, offset) in rom::vectors() {
        let at = usize::from(n) * 4;
        table[at..at + 2].copy_from_slice(&offset.to_le_bytes());
        table[at + 2..at + 4].copy_from_slice(&data::ROM_SEGMENT.to_le_bytes());
    }
    c.host.write(0, &table);
}

fn areas(c: &mut Call) {
    let reset_flag = c.word(data::RESET_FLAG);
    c.host.write(0x400, &[0; 0x100]);
    // The frame of this call is in there, and is written again at its end.
    c.host.write(EBDA, &[0; 0x400]);
    c.set_word(data::RESET_FLAG, reset_flag);
    let p = &c.config.platform;
    let serial: Vec<u16> = p.serial.iter().take(4).map(|s| s.port).collect();
    let parallel: Vec<u16> = p.parallel.iter().take(3).map(|s| s.port).collect();
    let mouse = u16::from(p.mouse);
    for (n, port) in (0..).zip(&serial) {
        c.set_word(data::SERIAL_PORTS + 2 * n, *port);
        c.set_byte(data::SERIAL_TIMEOUT + n, SERIAL_TIMEOUT);
    }
    for (n, port) in (0..).zip(&parallel) {
        c.set_word(data::PARALLEL_PORTS + 2 * n, *port);
        c.set_byte(data::PARALLEL_TIMEOUT + n, PARALLEL_TIMEOUT);
    }
    c.set_word(data::EBDA_SEGMENT, data::EBDA_BASE);
    c.set_word(data::BASE_MEMORY, (EBDA >> 10) as u16);
    // Coprocessor, mouse, 80 columns of colour, ports. Diskette drives come later.
    let equipment = 0x22 | mouse << 2 | (serial.len() as u16) << 9 | (parallel.len() as u16) << 14;
    c.set_word(data::EQUIPMENT, equipment);
    let (start, end) = (data::KEY_BUFFER, data::KEY_BUFFER_END);
    c.set_word(data::KEY_HEAD, start);
    c.set_word(data::KEY_TAIL, start);
    c.set_word(data::KEY_BUFFER_START_PTR, start);
    c.set_word(data::KEY_BUFFER_END_PTR, end);
    c.set_byte(data::KEYBOARD, 0x10);
    // The area begins with its own size in KiB.
    c.set_byte(EBDA, 1);
}

/// Flags with which the boot sector starts.
pub(super) const START_FLAGS: u16 = IF | 2;
