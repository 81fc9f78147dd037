//! 8237A pair with its page registers.

use crate::cpu::{inb, outb};
use crate::report::Verdict;
use crate::{ensure, good, skip};

/// Address and count of every channel read back through the flip-flop; page registers; mask by the all-mask write.
pub fn check_dma() -> Verdict {
    // The flip-flop clears on a write to port 0Ch (D8h for the second chip).
    let chips = [(0x00u16, 1u16, 0x0cu16), (0xc0, 2, 0xd8)];
    outb(0x0c, 0);
    outb(0x00, 0x34);
    outb(0x00, 0x12);
    outb(0x0c, 0);
    if inb(0x00) == 0xff && inb(0x00) == 0xff {
        skip!("port 0 reads ff");
    }
    for (base, step, clear) in chips {
        for channel in 0..4u16 {
            if base == 0xc0 && channel == 0 {
                continue;
            }
            for register in 0..2 {
                let port = base + (2 * channel + register) * step;
                let value = 0x1234u16 + channel * 0x1111 + register;
                outb(clear, 0);
                outb(port, value as u8);
                outb(port, (value >> 8) as u8);
                outb(clear, 0);
                let got = u16::from(inb(port)) | u16::from(inb(port)) << 8;
                ensure!(got == value, "port {port:#x}: wrote {value:#x}, read {got:#x}");
            }
        }
    }
    outb(0x0c, 0);
    let (low, _) = (inb(0x00), inb(0x00));
    inb(0x00);
    outb(0x0c, 0);
    ensure!(inb(0x00) == low, "port 0Ch does not clear the flip-flop");
    for port in [0x81u16, 0x82, 0x83, 0x87, 0x89, 0x8a, 0x8b] {
        let old = inb(port);
        outb(port, 0x5a);
        let got = inb(port);
        outb(port, old);
        ensure!(got == 0x5a, "page register {port:#x}: {got:#x}");
    }
    outb(0x0d, 0);
    outb(0xda, 0);
    outb(0xd6, 0xc0);
    outb(0xd4, 0x00);
    good!("7 channels, 7 page registers")
}
