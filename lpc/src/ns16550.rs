//! National Semiconductor NS16550A universal asynchronous receiver/transmitter.
//!
//! Datasheet: PC16550D (DS008652). Registers, both FIFOs with trigger levels and the receive time-out, loopback, modem
//! lines, the interrupt identification in order of priority. Bytes go to the backend as they are written; the
//! transmitter then counts as busy for the time that the programmed rate asks for only while nobody could take the
//! bytes, so a guest never waits for a line that is not there. Breaks come in, by which kernels drop into their
//! debuggers; parity and framing errors do not.
//!
//! What drivers rely on: writing IER with THRE set and the transmitter empty interrupts at once (FreeBSD sio and uart,
//! Linux's THRE test); reading IIR clears a THRE cause that it shows; FreeBSD 7's sio and OpenBSD's com measure
//! interrupts and FIFO depth in loopback; the scratch register holds its value.

use std::collections::VecDeque;
use std::sync::Arc;

use bitflags::bitflags;
use emu::backend::Chardev;
use emu::{BarKind, Class, Device, Event, IrqLine, Model, PciIds, Pin, ResetKind, Slot, State, Timer, Widths};
use serde::{Deserialize, Serialize};

bitflags! {
    /// Interrupt enable.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
    struct Ier: u8 {
        const RDA = 1;
        const THRE = 2;
        const LINE = 4;
        const MODEM = 8;
    }

    /// Line status.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
    struct Lsr: u8 {
        const DR = 1;
        const OE = 2;
        const PE = 4;
        const FE = 8;
        const BI = 0x10;
        const THRE = 0x20;
        const TEMT = 0x40;
        const FIFO_ERROR = 0x80;
    }

    /// Modem control.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
    struct Mcr: u8 {
        const DTR = 1;
        const RTS = 2;
        const OUT1 = 4;
        const OUT2 = 8;
        const LOOP = 0x10;
    }

    /// Modem status.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
    struct Msr: u8 {
        const DCTS = 1;
        const DDSR = 2;
        const TERI = 4;
        const DDCD = 8;
        const CTS = 0x10;
        const DSR = 0x20;
        const RI = 0x40;
        const DCD = 0x80;
    }
}

/// FIFO depth.
const DEPTH: usize = 16;
const LCR_DLAB: u8 = 0x80;
const FCR_ENABLE: u8 = 1;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Regs {
    ier: Ier,
    lcr: u8,
    mcr: Mcr,
    lsr: Lsr,
    msr: Msr,
    scratch: u8,
    divisor: u16,
    fcr: u8,
    /// Received and not yet read.
    rx: VecDeque<u8>,
    /// Which of them is the zero that stands for a break.
    break_at: Option<usize>,
    /// Written and not yet taken by the backend.
    tx: VecDeque<u8>,
    /// The transmitter became empty and nobody has been told.
    thre: bool,
    /// The receiver has held bytes below the trigger level for four character times.
    timeout: bool,
}

impl Default for Regs {
    fn default() -> Regs {
        Regs {
            ier: Ier::empty(),
            lcr: 0,
            mcr: Mcr::empty(),
            lsr: Lsr::THRE | Lsr::TEMT,
            msr: Msr::CTS | Msr::DSR | Msr::DCD,
            scratch: 0,
            divisor: 12,
            fcr: 0,
            rx: VecDeque::new(),
            break_at: None,
            tx: VecDeque::new(),
            thre: false,
            timeout: false,
        }
    }
}

impl Regs {
    fn fifo(&self) -> bool {
        self.fcr & FCR_ENABLE != 0
    }

    /// Bytes that the receiver can hold.
    fn room(&self) -> usize {
        let depth = if self.fifo() { DEPTH } else { 1 };
        depth.saturating_sub(self.rx.len())
    }

    fn trigger(&self) -> usize {
        if self.fifo() { [1, 4, 8, 14][(self.fcr >> 6) as usize] } else { 1 }
    }

    /// IIR without the FIFO bits: the cause of highest priority.
    fn cause(&self) -> u8 {
        if self.ier.contains(Ier::LINE) && self.lsr.intersects(Lsr::OE | Lsr::PE | Lsr::FE | Lsr::BI) {
            6
        } else if self.ier.contains(Ier::RDA) && self.rx.len() >= self.trigger() {
            4
        } else if self.ier.contains(Ier::RDA) && self.timeout && self.fifo() {
            0xc
        } else if self.ier.contains(Ier::THRE) && self.thre {
            2
        } else if self.ier.contains(Ier::MODEM) && self.msr.intersects(Msr::DCTS | Msr::DDSR | Msr::TERI | Msr::DDCD) {
            0
        } else {
            1
        }
    }

    /// Nanoseconds for four characters.
    fn four_characters(&self) -> u64 {
        let bits = 2 + u64::from(self.lcr & 3) + 5 + u64::from(self.lcr >> 2 & 1) + u64::from(self.lcr >> 3 & 1);
        let divisor = u64::from(self.divisor.max(1));
        4 * bits * divisor * 1_000_000_000 / 115_200
    }

    /// The modem status that the lines give: those of the other side, or our own in loopback.
    fn lines(&self) -> Msr {
        if !self.mcr.contains(Mcr::LOOP) {
            return Msr::CTS | Msr::DSR | Msr::DCD;
        }
        let pairs = [(Mcr::RTS, Msr::CTS), (Mcr::DTR, Msr::DSR), (Mcr::OUT1, Msr::RI), (Mcr::OUT2, Msr::DCD)];
        pairs.into_iter().filter(|(out, _)| self.mcr.contains(*out)).map(|(_, line)| line).collect()
    }

    fn update_modem(&mut self) {
        let (old, new) = (self.msr & (Msr::CTS | Msr::DSR | Msr::RI | Msr::DCD), self.lines());
        let changed = old ^ new;
        self.msr = self.msr & (Msr::DCTS | Msr::DDSR | Msr::TERI | Msr::DDCD) | new;
        self.msr.set(Msr::DCTS, self.msr.contains(Msr::DCTS) || changed.contains(Msr::CTS));
        self.msr.set(Msr::DDSR, self.msr.contains(Msr::DDSR) || changed.contains(Msr::DSR));
        self.msr.set(Msr::DDCD, self.msr.contains(Msr::DDCD) || changed.contains(Msr::DCD));
        // The trailing edge of the ring indicator.
        self.msr.set(Msr::TERI, self.msr.contains(Msr::TERI) || old.contains(Msr::RI) && !new.contains(Msr::RI));
    }

    fn receive(&mut self, byte: u8) {
        if self.room() == 0 {
            self.lsr.insert(Lsr::OE);
            if self.fifo() {
                return;
            }
            self.rx.clear();
        }
        self.rx.push_back(byte);
        self.lsr.insert(Lsr::DR);
        self.timeout = false;
    }

    fn receive_break(&mut self) {
        // One that comes while another is in the FIFO is the same long break.
        if self.break_at.is_none() && self.room() > 0 {
            self.receive(0);
            self.break_at = Some(self.rx.len() - 1);
            self.lsr.insert(Lsr::FIFO_ERROR);
            self.show_break();
        }
    }

    /// The break shows when its character is the next to be read.
    fn show_break(&mut self) {
        if self.break_at == Some(0) {
            self.lsr.insert(Lsr::BI);
        }
    }

    fn pop(&mut self) -> u8 {
        let byte = self.rx.pop_front().unwrap_or(0);
        self.lsr.set(Lsr::DR, !self.rx.is_empty());
        self.timeout = false;
        self.break_at = self.break_at.and_then(|at| at.checked_sub(1));
        self.show_break();
        byte
    }

    fn clear_rx(&mut self) {
        self.rx.clear();
        self.break_at = None;
        self.lsr.remove(Lsr::DR);
    }
}

/// One UART.
pub struct Ns16550 {
    regs: Regs,
    irq: Arc<IrqLine>,
    rx_timeout: Arc<Timer>,
    backend: Option<Box<dyn Chardev>>,
}

/// A UART on the PCI bus: bhyve's `uart`, with the identity of a SIIG CyberSerial of one port, 131F:2000, as which Linux's
/// 8250_pci and FreeBSD's uart(4) know it.
pub static UART: Model = Model {
    name: "uart",
    summary: "PCI serial port (16550)",
    class: Class::Lines { most: 1 },
    keys: &[],
    create: |slot, _| {
        slot.pci(PciIds { vendor: 0x131f, device: 0x2000, class: 0x07_0000, ..PciIds::default() })?;
        slot.bar(0, BarKind::Io, 8, 0, Widths::BYTE);
        let irq = slot.intx(Pin::A);
        Ok(Ns16550::with(slot, irq))
    },
};

impl Ns16550 {
    /// Puts a UART at eight ports from `base`, on an ISA interrupt wire.
    pub fn create(slot: &mut Slot, base: u16, irq: u32) -> Box<dyn Device> {
        slot.ports(0, base, 8, Widths::BYTE);
        let irq = slot.isa_irq(irq);
        Ns16550::with(slot, irq)
    }

    fn with(slot: &mut Slot, irq: Arc<IrqLine>) -> Box<dyn Device> {
        let mut backend = slot.backends.chardevs.pop().flatten();
        if let Some(b) = &mut backend {
            b.attach(slot.cell(), 0);
            b.want(DEPTH);
        }
        Box::new(Ns16550 { regs: Regs::default(), irq, rx_timeout: slot.timer(0), backend })
    }

    fn update(&mut self) {
        // OUT2 gates the interrupt on a PC, and loopback cuts it off.
        let gated = self.regs.mcr.contains(Mcr::OUT2) || self.regs.mcr.contains(Mcr::LOOP);
        self.irq.set(gated && self.regs.cause() != 1);
    }

    fn ask_for_more(&mut self) {
        let room = self.regs.room();
        if let Some(b) = &mut self.backend {
            b.want(room);
        }
    }

    /// Starts the receive time-out if bytes wait below the trigger level.
    fn watch_rx(&mut self) {
        if self.regs.fifo() && !self.regs.rx.is_empty() {
            self.rx_timeout.set(self.rx_timeout.now() + self.regs.four_characters());
        } else {
            self.rx_timeout.cancel();
            self.regs.timeout = false;
        }
    }

    fn transmit(&mut self, byte: u8) {
        if self.regs.mcr.contains(Mcr::LOOP) {
            self.regs.receive(byte);
            self.watch_rx();
            self.regs.thre = true;
            return;
        }
        // Overrunning the transmitter loses the byte, as on the chip.
        if self.regs.tx.len() < DEPTH {
            self.regs.tx.push_back(byte);
        }
        self.drain();
    }

    /// Hands the backend what it takes.
    fn drain(&mut self) {
        match &mut self.backend {
            Some(b) => {
                let taken = b.write(self.regs.tx.make_contiguous());
                self.regs.tx.drain(..taken);
            }
            None => self.regs.tx.clear(),
        }
        let empty = self.regs.tx.is_empty();
        self.regs.lsr.set(Lsr::THRE | Lsr::TEMT, empty);
        self.regs.thre = empty;
    }

    fn read_register(&mut self, offset: u64) -> u8 {
        let dlab = self.regs.lcr & LCR_DLAB != 0;
        match offset {
            0 if dlab => self.regs.divisor as u8,
            1 if dlab => (self.regs.divisor >> 8) as u8,
            0 => {
                let byte = self.regs.pop();
                self.watch_rx();
                self.ask_for_more();
                byte
            }
            1 => self.regs.ier.bits(),
            2 => {
                let cause = self.regs.cause();
                if cause == 2 {
                    self.regs.thre = false;
                }
                cause | if self.regs.fifo() { 0xc0 } else { 0 }
            }
            3 => self.regs.lcr,
            4 => self.regs.mcr.bits(),
            5 => {
                let lsr = self.regs.lsr;
                self.regs.lsr.remove(Lsr::OE | Lsr::PE | Lsr::FE | Lsr::BI);
                self.regs.lsr.set(Lsr::FIFO_ERROR, self.regs.break_at.is_some_and(|at| at > 0));
                lsr.bits()
            }
            6 => {
                let msr = self.regs.msr;
                self.regs.msr.remove(Msr::DCTS | Msr::DDSR | Msr::TERI | Msr::DDCD);
                msr.bits()
            }
            _ => self.regs.scratch,
        }
    }

    fn write_register(&mut self, offset: u64, value: u8) {
        let dlab = self.regs.lcr & LCR_DLAB != 0;
        match offset {
            0 if dlab => self.regs.divisor = self.regs.divisor & 0xff00 | u16::from(value),
            1 if dlab => self.regs.divisor = self.regs.divisor & 0xff | u16::from(value) << 8,
            0 => {
                self.regs.thre = false;
                self.transmit(value);
            }
            1 => {
                let old = self.regs.ier;
                self.regs.ier = Ier::from_bits_truncate(value);
                if self.regs.ier.contains(Ier::THRE) && !old.contains(Ier::THRE) && self.regs.lsr.contains(Lsr::THRE) {
                    self.regs.thre = true;
                }
            }
            2 => {
                let switched = (value ^ self.regs.fcr) & FCR_ENABLE != 0;
                if switched || value & 2 != 0 {
                    self.regs.clear_rx();
                    self.watch_rx();
                }
                if switched || value & 4 != 0 {
                    self.regs.tx.clear();
                    self.regs.lsr.insert(Lsr::THRE | Lsr::TEMT);
                }
                self.regs.fcr = if value & FCR_ENABLE != 0 { value & 0xc9 } else { 0 };
                self.ask_for_more();
            }
            3 => self.regs.lcr = value,
            4 => {
                self.regs.mcr = Mcr::from_bits_truncate(value);
                self.regs.update_modem();
            }
            // LSR and MSR are for factory tests only.
            5 | 6 => {}
            _ => self.regs.scratch = value,
        }
    }
}

impl Device for Ns16550 {
    fn read(&mut self, _region: u32, offset: u64, _width: u8) -> u64 {
        let value = self.read_register(offset);
        self.update();
        u64::from(value)
    }

    fn write(&mut self, _region: u32, offset: u64, _width: u8, value: u64) {
        self.write_register(offset, value as u8);
        self.update();
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Timer(_) => self.regs.timeout = !self.regs.rx.is_empty(),
            Event::Chars(_, bytes) => {
                // In loopback the line is cut.
                if !self.regs.mcr.contains(Mcr::LOOP) {
                    bytes.into_iter().for_each(|b| self.regs.receive(b));
                    self.watch_rx();
                }
                self.ask_for_more();
            }
            Event::CharsReady(_) => self.drain(),
            Event::Break if !self.regs.mcr.contains(Mcr::LOOP) => {
                self.regs.receive_break();
                self.watch_rx();
            }
            _ => {}
        }
        self.update();
    }

    fn reset(&mut self, _: ResetKind) {
        self.regs = Regs::default();
        self.rx_timeout.cancel();
        self.update();
        self.ask_for_more();
    }

    fn state(&mut self) -> &mut dyn State {
        &mut self.regs
    }

    fn restored(&mut self) {
        self.ask_for_more();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use emu::bench::Bench;
    use emu::{Backends, DeviceCell};
    use std::sync::{Mutex, Weak};

    #[derive(Clone, Default)]
    struct Line(Arc<Mutex<(Vec<u8>, usize, usize)>>);

    impl Chardev for Line {
        fn write(&mut self, data: &[u8]) -> usize {
            let mut l = self.0.lock().unwrap();
            let n = data.len().min(l.1);
            l.0.extend(&data[..n]);
            l.1 -= n;
            n
        }
        fn attach(&mut self, _: Weak<DeviceCell>, _: usize) {}
        fn want(&mut self, bytes: usize) {
            self.0.lock().unwrap().2 = bytes;
        }
    }

    struct Rig {
        bench: Bench,
        cell: Arc<DeviceCell>,
        line: Line,
    }

    fn rig() -> Rig {
        let bench = Bench::new();
        let line = Line::default();
        line.0.lock().unwrap().1 = usize::MAX;
        let backends = Backends { chardevs: vec![Some(Box::new(line.clone()))], ..Backends::default() };
        let cell = bench.machine.plug_with("com1", None, backends, |slot| Ok(Ns16550::create(slot, 0x3f8, 4))).unwrap();
        Rig { bench, cell, line }
    }

    impl Rig {
        fn out(&mut self, r: u16, v: u8) {
            self.bench.outb(0x3f8 + r, v);
        }
        fn inp(&mut self, r: u16) -> u8 {
            self.bench.inb(0x3f8 + r)
        }
        fn send(&self, bytes: &[u8]) {
            self.cell.event(Event::Chars(0, bytes.to_vec()));
        }
    }

    #[test]
    fn enabling_the_thre_interrupt_on_an_empty_transmitter_interrupts_and_iir_clears_it() {
        let mut r = rig();
        r.out(4, 8);
        r.out(1, 2);
        assert!(r.bench.irq(4));
        assert_eq!(r.inp(2), 2);
        assert!(!r.bench.irq(4));
        assert_eq!(r.inp(2), 1);
        r.out(0, b'x');
        assert!(r.bench.irq(4));
        assert_eq!(r.line.0.lock().unwrap().0, b"x");
    }

    #[test]
    fn without_out2_nothing_interrupts() {
        let mut r = rig();
        r.out(1, 2);
        assert!(!r.bench.irq(4));
        assert_eq!(r.inp(2), 2);
    }

    #[test]
    fn the_receive_fifo_interrupts_at_its_trigger_level_or_after_four_characters() {
        let mut r = rig();
        r.out(4, 8);
        r.out(2, 0x81);
        r.out(1, 1);
        r.send(b"1234567");
        assert!(!r.bench.irq(4));
        r.send(b"8");
        assert_eq!(r.inp(2), 0xc4);
        for want in b"12345678" {
            assert_eq!(r.inp(0), *want);
        }
        assert!(!r.bench.irq(4));
        r.send(b"9");
        r.bench.advance(5_000_000);
        assert_eq!(r.inp(2), 0xcc);
        assert_eq!(r.inp(0), b'9');
        assert!(!r.bench.irq(4));
        assert_eq!(r.inp(5) & 1, 0);
    }

    #[test]
    fn an_overrun_shows_in_lsr_once_and_keeps_the_fifo() {
        let mut r = rig();
        r.out(2, 1);
        r.send(b"0123456789abcdefX");
        assert_eq!(r.inp(5) & 3, 3);
        assert_eq!(r.inp(5) & 3, 1);
        assert_eq!(r.inp(0), b'0');
        assert_eq!(r.line.0.lock().unwrap().2, 1, "the stream is asked for as much as there is room");
    }

    #[test]
    fn a_break_is_a_zero_that_shows_in_lsr_when_it_is_next_to_be_read() {
        let mut r = rig();
        r.out(2, 1);
        r.out(4, 8);
        r.out(1, 4);
        r.send(b"ab");
        r.cell.event(Event::Break);
        r.send(b"c");
        assert_eq!(r.inp(5) & 0x91, 0x81, "there is one in the FIFO");
        assert_eq!((r.inp(0), r.bench.irq(4)), (b'a', false));
        assert_eq!((r.inp(0), r.bench.irq(4)), (b'b', true));
        assert_eq!(r.inp(5) & 0x91, 0x91);
        assert!(!r.bench.irq(4));
        assert_eq!((r.inp(0), r.inp(0)), (0, b'c'));
        assert_eq!(r.inp(5) & 0x91, 0);
    }

    #[test]
    fn loopback_turns_data_and_modem_lines_round_and_sends_nothing() {
        let mut r = rig();
        r.inp(6);
        r.out(4, 0x1a);
        assert_eq!(r.inp(6) & 0xf0, 0x90);
        r.out(0, 0x5a);
        assert_eq!(r.inp(0), 0x5a);
        assert!(r.line.0.lock().unwrap().0.is_empty());
        r.out(4, 0x10);
        assert_eq!(r.inp(6) & 0x0f, 0x09, "CTS and DCD changed");
    }

    #[test]
    fn sixteen_bytes_fit_a_fifo_in_loopback() {
        let mut r = rig();
        r.out(2, 7);
        r.out(4, 0x10);
        (0..20).for_each(|n| r.out(0, n));
        let mut got = 0;
        while r.inp(5) & 1 != 0 {
            r.inp(0);
            got += 1;
        }
        assert_eq!(got, 16);
    }

    #[test]
    fn a_backend_that_is_full_holds_the_transmitter_until_it_has_room() {
        let mut r = rig();
        r.line.0.lock().unwrap().1 = 1;
        r.out(2, 1);
        r.out(4, 8);
        r.out(1, 2);
        r.inp(2);
        r.out(0, b'a');
        r.out(0, b'b');
        assert_eq!(r.inp(5) & 0x60, 0);
        r.inp(2);
        assert!(!r.bench.irq(4));
        r.line.0.lock().unwrap().1 = 10;
        r.cell.event(Event::CharsReady(0));
        assert!(r.bench.irq(4));
        assert_eq!(r.line.0.lock().unwrap().0, b"ab");
    }

    #[test]
    fn the_divisor_and_the_scratch_register_hold_their_values() {
        let mut r = rig();
        r.out(3, 0x83);
        r.out(0, 0x01);
        r.out(1, 0x02);
        r.out(7, 0xa5);
        assert_eq!((r.inp(0), r.inp(1), r.inp(7)), (1, 2, 0xa5));
        r.out(3, 3);
        assert_eq!(r.inp(1), 0);
    }
}
