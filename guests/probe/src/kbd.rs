//! 8042 and what hangs on it: keyboard, mouse, the A20 gate.

use crate::cpu::{self, inb, outb};
use crate::mem::{read32, write32};
use crate::report::{Bad, Verdict};
use crate::{ensure, good, pic, skip, text, time, trap};

const DATA: u16 = 0x60;
const CONTROL: u16 = 0x64;
const FULL: u8 = 1;
const BUSY: u8 = 2;
const FROM_MOUSE: u8 = 0x20;

fn idle() -> bool {
    time::spin_until(200, || inb(CONTROL) & BUSY == 0)
}

fn command(byte: u8) {
    idle();
    outb(CONTROL, byte);
}

fn data(byte: u8) {
    idle();
    outb(DATA, byte);
}

/// Next byte from the output buffer.
fn answer(ms: u64) -> Option<u8> {
    time::spin_until(ms, || inb(CONTROL) & FULL != 0).then(|| inb(DATA))
}

fn flush() {
    for _ in 0..64 {
        if inb(CONTROL) & FULL == 0 {
            break;
        }
        inb(DATA);
        time::delay(50);
    }
}

fn wanted(what: &str, got: Option<u8>, want: u8) -> Result<(), Bad> {
    match got {
        Some(byte) if byte == want => Ok(()),
        Some(byte) => Err(Bad::Fail(text!("{what}: answer {byte:#x}, wanted {want:#x}"))),
        None => Err(Bad::Fail(text!("{what}: no answer, wanted {want:#x}"))),
    }
}

fn present() -> bool {
    inb(CONTROL) != 0xff
}

fn command_byte() -> Option<u8> {
    command(0x20);
    answer(200)
}

fn set_command_byte(byte: u8) {
    command(0x60);
    data(byte);
    idle();
}

/// Self-test, interface test, command byte, output port.
pub fn check_controller() -> Verdict {
    if !present() {
        skip!("port 64h reads ff");
    }
    command(0xad);
    command(0xa7);
    flush();
    command(0xaa);
    wanted("self-test AA", answer(1000), 0x55)?;
    command(0xab);
    wanted("interface test AB", answer(200), 0x00)?;
    for byte in [0x70u8, 0x44] {
        set_command_byte(byte);
        let got = command_byte();
        wanted("command byte", got, byte)?;
    }
    command(0xd0);
    let Some(port) = answer(200) else { crate::fail!("output port D0: no answer") };
    ensure!(port & 1 == 1, "output port {port:#x}: the processor is held in reset");
    set_command_byte(0x74);
    command(0xae);
    ensure!(command_byte().is_some_and(|b| b & 0x10 == 0), "AE does not enable the keyboard");
    command(0xad);
    ensure!(command_byte().is_some_and(|b| b & 0x10 != 0), "AD does not disable the keyboard");
    good!("AA, AB, 20, 60, D0, AD, AE; output port {port:#x}")
}

/// Echo, identify, reset, defaults and lights of the keyboard.
pub fn check_keyboard() -> Verdict {
    if !present() {
        skip!("no controller");
    }
    set_command_byte(0x64);
    command(0xae);
    flush();
    data(0xee);
    wanted("echo EE", answer(300), 0xee)?;
    data(0xff);
    wanted("reset FF", answer(300), 0xfa)?;
    wanted("reset FF, self-test", answer(2000), 0xaa)?;
    data(0xf5);
    wanted("F5", answer(300), 0xfa)?;
    data(0xf2);
    wanted("identify F2", answer(300), 0xfa)?;
    let (first, second) = (answer(300), answer(300));
    ensure!(first == Some(0xab), "identify F2: {first:x?}, {second:x?}");
    // Set 2's 83h is 41h behind the translation of set 2 to set 1.
    ensure!(matches!(second, Some(0x83 | 0x41)), "identify F2: {first:x?}, {second:x?}");
    data(0xed);
    wanted("ED", answer(300), 0xfa)?;
    data(0x02);
    wanted("ED 02", answer(300), 0xfa)?;
    data(0xf4);
    wanted("F4", answer(300), 0xfa)?;

    let vector = pic::vector(1);
    fn take() {
        inb(DATA);
    }
    trap::clear(vector, trap::EOI_PIC, Some(take));
    set_command_byte(0x65);
    pic::open(2);
    data(0xee);
    let came = time::spin_until(300, || {
        cpu::interrupts_for_a_while();
        trap::count(vector) != 0
    });
    pic::open(0);
    set_command_byte(0x64);
    flush();
    ensure!(came, "no IRQ 1 for an echo");
    good!("EE, FF, F2 (ab {:x}), ED, F4, F5, IRQ 1", second.unwrap_or(0))
}

/// Reset and identify of the mouse.
pub fn check_mouse() -> Verdict {
    if !present() {
        skip!("no controller");
    }
    command(0xad);
    command(0xa8);
    if command_byte().is_none_or(|b| b & 0x20 != 0) {
        skip!("A8 does not enable a second port");
    }
    flush();
    command(0xa9);
    wanted("interface test A9", answer(200), 0)?;
    let to_mouse = |byte| {
        command(0xd4);
        data(byte);
    };
    to_mouse(0xff);
    let Some(first) = answer(500) else { skip!("no mouse answers") };
    if first == 0xfe {
        skip!("no mouse");
    }
    wanted("reset FF", Some(first), 0xfa)?;
    wanted("reset FF, self-test", answer(2000), 0xaa)?;
    let from = time::spin_until(300, || inb(CONTROL) & FULL != 0) && inb(CONTROL) & FROM_MOUSE != 0;
    ensure!(from, "status {:#x} does not tell the mouse's byte", inb(CONTROL));
    wanted("reset FF, id", answer(300), 0x00)?;
    to_mouse(0xf2);
    wanted("identify F2", answer(300), 0xfa)?;
    let id = answer(300);
    ensure!(matches!(id, Some(0 | 3 | 4)), "identify F2: {id:x?}");
    command(0xa7);
    good!("reset, id {}", id.unwrap_or(0))
}

/// Bit 1 of port 92h gates address line 20. The program lies in an even MiB and does not see it close.
pub fn check_a20() -> Verdict {
    const LOW: u64 = 0xa000;
    const HIGH: u64 = LOW | 1 << 20;
    let old = inb(0x92);
    if old == 0xff {
        skip!("no port 92h");
    }
    let kept = (read32(LOW), read32(HIGH));
    outb(0x92, old & !1 | 2);
    write32(LOW, 0x1111_1111);
    write32(HIGH, 0x2222_2222);
    let open = read32(LOW);
    outb(0x92, old & !3);
    cpu::flush_tlb();
    let closed = read32(HIGH);
    let state = inb(0x92);
    outb(0x92, old & !1 | 2);
    cpu::flush_tlb();
    let again = read32(HIGH);
    write32(LOW, kept.0);
    write32(HIGH, kept.1);
    ensure!(open == 0x1111_1111 && again == 0x2222_2222, "open: reads {open:#x} and {again:#x}");
    ensure!(state & 2 == 0, "port 92h keeps bit 1: {state:#x}");
    if closed == 0x2222_2222 {
        skip!("the gate does not close");
    }
    ensure!(closed == 0x1111_1111, "closed: reads {closed:#x}");
    good!("closed and open by port 92h")
}
