//! INT 15h: memory sizes and moves, waiting, A20, configuration, the mouse. Function 89h, the switch to protected mode,
//! is code of the ROM's ([`rom`]), and APM is in [`apm`].

use serde::{Deserialize, Serialize};

use super::{Call, Flow, apm, data, linear, rom};
use crate::memory::Kind;

const SMAP: u32 = 0x534d_4150;
const MIB: u64 = 1 << 20;
/// A period of the clock at 1024 Hz, as INT 70h counts it.
const RTC_B: u8 = 0x0b;
const PIE: u8 = 0x40;
/// Of a descriptor's access rights: a segment of code or data that is in memory.
const PRESENT: u8 = 0x90;
/// It is of code; data may be written, and code read.
const CODE: u8 = 8;
const USABLE: u8 = 2;

/// A wait of function 86h.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Wait {
    until: Option<u64>,
}

/// INT 15h.
pub(super) fn service(c: &mut Call) -> Flow {
    let ax = c.r.ax();
    match c.r.ah() {
        0x24 => return a20(c),
        // Keyboard intercept: the scan code is to be used.
        0x4f => {
            c.r.set_carry(true);
            return Flow::Done;
        }
        0x53 => return apm::service(c),
        // Open, close, end of program, SysRq, device busy, device done: for multitasking programs that hook them.
        0x80..=0x82 | 0x85 | 0x90 | 0x91 => c.r.set_ah(0),
        0x83 => return event_wait(c),
        0x86 => return wait(c),
        0x87 => return block_move(c),
        0x88 => {
            let kib = (above_1m(c) >> 10).min(0xfc00);
            c.r.set_ax(kib as u16);
        }
        0x8a => {
            let kib = above_1m(c) >> 10;
            c.r.set_ax(kib as u16);
            c.r.set_dx((kib >> 16) as u16);
        }
        0xc0 => {
            c.r.es = data::ROM_SEGMENT;
            c.r.set_bx(rom::CONFIGURATION);
            c.r.set_ah(0);
        }
        0xc1 => c.r.es = c.word(data::EBDA_SEGMENT),
        // The processor as EDX has it after a reset: family, then model and stepping.
        0xc9 if c.r.al() == 0x10 => {
            let signature = c.config.platform.processor.signature;
            c.r.set_cx(signature as u16);
            c.r.set_ah(0);
        }
        0xc2 => return mouse(c),
        0xe8 => match ax {
            0xe801 | 0xe881 => {
                let above = above_1m(c);
                let (low, high) = ((above >> 10).min(0x3c00) as u32, (above.saturating_sub(15 * MIB) >> 16) as u32);
                if ax == 0xe881 {
                    (c.r.eax, c.r.ebx, c.r.ecx, c.r.edx) = (low, high, low, high);
                } else {
                    c.r.set_ax(low as u16);
                    c.r.set_bx(high as u16);
                    c.r.set_cx(low as u16);
                    c.r.set_dx(high as u16);
                }
            }
            0xe820 => return e820(c),
            _ => return c.unsupported(),
        },
        _ => return c.unsupported(),
    }
    c.r.set_carry(false);
    Flow::Done
}

/// Bytes of RAM from 1 MiB on without a gap.
fn above_1m(c: &Call) -> u64 {
    c.config.memory.iter().find(|r| r.base == MIB && r.kind == Kind::Ram).map_or(0, |r| r.len)
}

fn e820(c: &mut Call) -> Flow {
    let n = c.r.ebx as usize;
    let (Some(region), SMAP, 20..) = (c.config.memory.get(n).copied(), c.r.edx, c.r.ecx) else {
        return c.unsupported();
    };
    // With the attributes of ACPI 3.0 where there is room: in use.
    let mut entry = Vec::new();
    entry.extend(region.base.to_le_bytes());
    entry.extend(region.len.to_le_bytes());
    entry.extend((region.kind as u32).to_le_bytes());
    entry.extend(1u32.to_le_bytes());
    entry.truncate(if c.r.ecx >= 24 { 24 } else { 20 });
    c.host.write(linear(c.r.es, c.r.di()), &entry);
    (c.r.eax, c.r.ecx) = (SMAP, entry.len() as u32);
    c.r.ebx = if n + 1 < c.config.memory.len() { n as u32 + 1 } else { 0 };
    c.r.set_carry(false);
    Flow::Done
}

fn a20(c: &mut Call) -> Flow {
    let port = c.inb(0x92) & !1;
    c.r.set_carry(false);
    c.r.set_ah(0);
    match c.r.al() {
        0 => c.outb(0x92, port & !2),
        1 => c.outb(0x92, port | 2),
        2 => c.r.set_al(port >> 1 & 1),
        // By the keyboard controller and by port 92.
        3 => c.r.set_bx(3),
        _ => return c.unsupported(),
    }
    Flow::Done
}

/// Lets the clock interrupt 1024 times a second, or no more.
fn periodic(c: &mut Call, on: bool) {
    let b = c.cmos(RTC_B);
    c.set_cmos(RTC_B, if on { b | PIE } else { b & !PIE });
    if on {
        let mask = c.inb(0xa1);
        c.outb(0xa1, mask & !1);
    }
}

fn microseconds(c: &Call) -> u32 {
    u32::from(c.r.cx()) << 16 | u32::from(c.r.dx())
}

/// 83h: a flag in memory is set after a time.
fn event_wait(c: &mut Call) -> Flow {
    match c.r.al() {
        0 if c.byte(data::WAIT_ACTIVE) & 1 != 0 => {
            c.r.set_ah(0);
            c.r.set_carry(true);
            return Flow::Done;
        }
        0 => {
            let (flag, time) = (u32::from(c.r.es) << 16 | u32::from(c.r.bx()), microseconds(c));
            c.set_dword(data::WAIT_FLAG_PTR, flag);
            c.set_dword(data::WAIT_COUNT, time);
            c.set_byte(data::WAIT_ACTIVE, 1);
            periodic(c, true);
        }
        1 => {
            periodic(c, false);
            c.set_byte(data::WAIT_ACTIVE, 0);
        }
        _ => return c.unsupported(),
    }
    c.r.set_ah(0);
    c.r.set_carry(false);
    Flow::Done
}

/// 86h: waits. Guest time says when it is over; the clock's interrupt is there to end HLT.
fn wait(c: &mut Call) -> Flow {
    let now = c.host.now();
    if !c.again {
        if c.byte(data::WAIT_ACTIVE) & 1 != 0 {
            c.r.set_ah(0x83);
            c.r.set_carry(true);
            return Flow::Done;
        }
        let time = microseconds(c);
        c.state.wait.until = Some(now + u64::from(time) * 1000);
        c.set_dword(data::WAIT_FLAG_PTR, data::WAIT_ACTIVE as u32 - 0x400 | 0x40 << 16);
        // Until we say so: INT 70h would end it by ticks.
        c.set_dword(data::WAIT_COUNT, time.saturating_add(100_000));
        c.set_byte(data::WAIT_ACTIVE, 1);
        periodic(c, true);
    }
    if c.state.wait.until.is_some_and(|until| now < until) {
        return Flow::Wait;
    }
    c.state.wait.until = None;
    periodic(c, false);
    c.set_byte(data::WAIT_ACTIVE, 0);
    c.r.set_ah(0);
    c.r.set_carry(false);
    Flow::Done
}

/// 87h: moves CX words as the descriptors at ES:SI say. What the processor would refuse is refused: segments that are
/// too short, not there, or not for this use.
fn block_move(c: &mut Call) -> Flow {
    let table = linear(c.r.es, c.r.si());
    let mut descriptors = [0; 0x20];
    c.host.read(table, &mut descriptors);
    let len = usize::from(c.r.cx()) * 2;
    let segment = |n: usize, rights: fn(u8) -> bool| {
        let [l0, l1, b0, b1, b2, access, l2, b3] = std::array::from_fn(|i| descriptors[n + i]);
        let limit = u64::from(u32::from_le_bytes([l0, l1, l2 & 0x0f, 0]));
        let limit = if l2 & 0x80 != 0 { limit << 12 | 0xfff } else { limit };
        // Offsets have 16 bits.
        let fits = len as u64 <= limit.min(0xffff) + 1 && access & PRESENT == PRESENT && rights(access);
        (fits || len == 0).then(|| u64::from(u32::from_le_bytes([b0, b1, b2, b3])))
    };
    let from = segment(0x10, |access| access & CODE == 0 || access & USABLE != 0);
    let to = segment(0x18, |access| access & CODE == 0 && access & USABLE != 0);
    let moved = from.zip(to);
    if let Some((from, to)) = moved {
        let mut bytes = vec![0; len];
        c.host.ignore_a20();
        c.host.read(from, &mut bytes);
        c.host.write(to, &bytes);
    }
    // 2: an exception.
    c.r.set_ah(if moved.is_some() { 0 } else { 2 });
    c.r.set_carry(moved.is_none());
    c.r.set_zero(moved.is_some());
    Flow::Done
}

/// C2h: the PS/2 mouse.
fn mouse(c: &mut Call) -> Flow {
    let result = match (c.r.al(), c.r.bh()) {
        (0, 0) => mouse_command(c, &[0xf5]).map(|_| set_mouse(c, false)),
        (0, 1) if c.byte(data::MOUSE_FLAGS) & 0x80 == 0 => Err(5),
        (0, 1) => {
            set_mouse(c, true);
            mouse_command(c, &[0xf4]).map(|_| ())
        }
        (1, _) => {
            set_mouse(c, true);
            mouse_command(c, &[0xff]).map(|answer| {
                c.r.set_bx(u16::from_le_bytes([
                    answer.first().copied().unwrap_or(0xaa),
                    answer.get(1).copied().unwrap_or(0),
                ]));
            })
        }
        (2, rate @ 0..=6) => {
            let rate = [10, 20, 40, 60, 80, 100, 200][usize::from(rate)];
            mouse_command(c, &[0xf3, rate]).map(|_| ())
        }
        (3, resolution @ 0..=3) => mouse_command(c, &[0xe8, resolution]).map(|_| ()),
        (4, _) => mouse_command(c, &[0xf2]).map(|answer| c.r.set_bh(answer.first().copied().unwrap_or(0))),
        (5, size @ 1..=8) => {
            let flags = c.byte(data::MOUSE_FLAGS);
            c.set_byte(data::MOUSE_FLAGS, flags & 0x80 | (size - 1));
            c.set_byte(data::MOUSE_INDEX, 0);
            set_mouse(c, true);
            mouse_command(c, &[0xff]).map(|_| ())
        }
        (6, 0) => mouse_command(c, &[0xe9]).map(|answer| {
            let at = |n: usize| answer.get(n).copied().unwrap_or(0);
            (c.r.ebx, c.r.ecx, c.r.edx) = (at(0).into(), at(1).into(), at(2).into());
        }),
        (6, scaling @ 1..=2) => mouse_command(c, &[0xe5 + scaling]).map(|_| ()),
        (7, _) => {
            let handler = u32::from(c.r.es) << 16 | u32::from(c.r.bx());
            c.set_dword(data::MOUSE_HANDLER, handler);
            let flags = c.byte(data::MOUSE_FLAGS) & 0x7f;
            c.set_byte(data::MOUSE_FLAGS, if handler == 0 { flags } else { flags | 0x80 });
            Ok(())
        }
        _ => Err(1),
    };
    c.r.set_ah(result.err().unwrap_or(0));
    c.r.set_carry(result.is_err());
    Flow::Done
}

/// Opens the auxiliary port and its interrupt, or closes the interrupt.
fn set_mouse(c: &mut Call, on: bool) {
    c.outb(0x64, if on { 0xa8 } else { 0xa7 });
    c.outb(0x64, 0x60);
    c.outb(0x60, if on { 0x47 } else { 0x65 });
    let mask = c.inb(0xa1);
    c.outb(0xa1, if on { mask & !0x10 } else { mask | 0x10 });
    c.set_byte(data::MOUSE_INDEX, 0);
}

/// Sends bytes to the mouse and takes what it answers behind the acknowledgement.
fn mouse_command(c: &mut Call, bytes: &[u8]) -> Result<Vec<u8>, u8> {
    if !c.config.platform.mouse {
        return Err(3);
    }
    let mut answer = Vec::new();
    for byte in bytes {
        c.outb(0x64, 0xd4);
        c.outb(0x60, *byte);
        // The chip's queues are short.
        for _ in 0..16 {
            match c.inb(0x64) & 0x21 {
                0x21 => answer.push(c.inb(0x60)),
                _ => break,
            }
        }
    }
    match answer.iter().rposition(|b| *b == 0xfa) {
        Some(acknowledged) => Ok(answer.split_off(acknowledged + 1)),
        None => Err(3),
    }
}

/// A byte of the mouse came. With a whole packet: EAX gets X and status, EBX Z and Y, ECX the handler, or 0.
pub(super) fn mouse_byte(c: &mut Call) -> Flow {
    let (byte, flags, index) = (c.r.al(), c.byte(data::MOUSE_FLAGS), c.byte(data::MOUSE_INDEX) & 7);
    c.r.ecx = 0;
    if flags & 0x80 == 0 {
        return Flow::Done;
    }
    c.set_byte(data::MOUSE_PACKET + u64::from(index), byte);
    if index < flags & 7 {
        c.set_byte(data::MOUSE_INDEX, index + 1);
        return Flow::Done;
    }
    c.set_byte(data::MOUSE_INDEX, 0);
    let mut packet = [0; 4];
    c.host.read(data::MOUSE_PACKET, &mut packet[..usize::from(flags & 7).min(3) + 1]);
    let [status, x, y, z] = packet.map(u32::from);
    (c.r.eax, c.r.ebx) = (status | x << 16, y | z << 16);
    c.r.ecx = c.dword(data::MOUSE_HANDLER);
    Flow::Done
}
