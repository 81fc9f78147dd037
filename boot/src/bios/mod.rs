//! The built-in BIOS.
//!
//! The ROM at F0000 holds entry points, tables and the handlers of hardware interrupts ([`rom`]); the services are
//! Rust. A stub pushes the caller's registers on the caller's stack (the [`frame`]), leaves the frame's address in a
//! block of the extended BIOS data area, and writes one byte to a port. The program hears of it with the processors
//! stopped and calls [`Bios::serve`], which finds block and frame through the paging of the processor that wrote, and
//! changes the frame; the stub pops what it finds there. No register of the processor is looked at: a virtual-8086
//! monitor may trap the OUT and repeat it from where it likes, and a service is the same in real mode and under it.
//! Since the frame is the caller's stack, services may be called from interrupt handlers that interrupt others.
//!
//! Entry points for 16-bit and 32-bit protected mode, whose stack nobody can find, hand their registers over one by one
//! through a second port ([`Bios::serve_latch`]).
//!
//! No service waits. One that cannot be done yet answers [`Flow::Wait`], and the stub executes STI and HLT and asks
//! again: guest time passes, interrupts are served, and with the instruction clock every run is the same.
//!
//! Everything that old loaders look at is real: the interrupt vectors, the BIOS data area at 400, the extended one at
//! [`EBDA`], CMOS. What cannot live there is [`State`], saved with the machine.

mod apm;
mod boot;
mod data;
mod disk;
mod eltorito;
mod int10;
mod int13;
mod int15;
mod keyboard;
mod option;
mod pci;
mod pmm;
mod ports;
mod post;
mod rom;
mod serial;
mod time;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::memory::Region;
use crate::platform::Platform;

pub use disk::{Diskette, Drive, DriveKind, Place};
pub use rom::Rom;

/// Physical address of the extended BIOS data area; see [`data`].
pub(crate) const EBDA: u64 = crate::memory::EBDA;
/// The port that stubs write to.
pub const PORT: u16 = 0xb8;
/// The port through which protected-mode entries hand over registers, 32 bits at a time. A byte written one below
/// starts (0) or calls the service of that number.
pub const LATCH_PORT: u16 = 0xbc;
/// Registers that go through [`LATCH_PORT`], in this order: EAX, EBX, ECX, EDX, ESI, EDI, flags.
pub const LATCHED: usize = 7;

/// What the BIOS wants of the machine. All processors stand still while it works.
pub trait Host {
    /// Reads memory at a linear address of the caller's. What is not mapped reads as ones.
    fn read(&mut self, linear: u64, buf: &mut [u8]);
    /// Writes memory at a linear address of the caller's. What is not mapped is dropped.
    fn write(&mut self, linear: u64, data: &[u8]);
    /// For the rest of this call memory is reached as with the A20 gate open.
    fn ignore_a20(&mut self);
    /// IN of `width` bytes.
    fn inp(&mut self, port: u16, width: u8) -> u32;
    /// OUT of `width` bytes.
    fn outp(&mut self, port: u16, width: u8, value: u32);
    /// Nanoseconds of guest time.
    fn now(&self) -> u64;
    /// Starts an access to the disk of this number, [`Drive::disk`]; an interrupt follows when it is finished.
    fn submit(&mut self, disk: usize, access: Access) -> Ticket;
    /// The answer, if it is there: what was read, or that it failed. It is given once.
    fn answer(&mut self, ticket: Ticket) -> Option<Result<Vec<u8>, ()>>;
    /// Bytes of what is in the drive now, 0 for nothing, and how often it was changed since power-on.
    fn medium(&mut self, disk: usize) -> (u64, u64);
    /// What the diskette in the drive of this disk is by its size, if it can be one.
    fn diskette(&mut self, disk: usize) -> Option<Diskette>;
    /// A line for the log.
    fn log(&mut self, line: &str);
    /// A call of a service, for whoever wants to see them all.
    fn called(&mut self, call: fmt::Arguments<'_>) {
        let _ = call;
    }
}

/// Names an access that is under way.
pub type Ticket = u64;

/// An access to a disk, by bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read `len` bytes.
    Read {
        /// Where.
        offset: u64,
        /// How many.
        len: u64,
    },
    /// Write.
    Write {
        /// Where.
        offset: u64,
        /// What.
        data: Vec<u8>,
    },
}

/// Whether a service is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// It is; the caller goes on.
    Done,
    /// Not yet; the stub asks again after the next interrupt, and [`Call::again`] is set.
    Wait,
}

/// The caller's registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "their names say it")]
pub struct Regs {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
    pub esi: u32,
    pub edi: u32,
    pub ebp: u32,
    pub ds: u16,
    pub es: u16,
    pub fs: u16,
    pub gs: u16,
    /// Where the stub returns to.
    pub ip: u16,
    pub cs: u16,
    pub flags: u16,
}

const CF: u16 = 1;
const ZF: u16 = 0x40;
const IF: u16 = 0x200;

impl Regs {
    /// What a stub has put into its frame.
    fn of_frame(f: &[u8; frame::LEN]) -> Regs {
        let word = |n: usize| u16::from_le_bytes([f[n], f[n + 1]]);
        let dword = |n: usize| u32::from(word(n)) | u32::from(word(n + 2)) << 16;
        Regs {
            eax: dword(frame::EAX),
            ebx: dword(frame::EBX),
            ecx: dword(frame::ECX),
            edx: dword(frame::EDX),
            esi: dword(frame::ESI),
            edi: dword(frame::EDI),
            ebp: dword(frame::EBP),
            ds: word(frame::DS),
            es: word(frame::ES),
            fs: word(frame::FS),
            gs: word(frame::GS),
            ip: word(frame::IP),
            cs: word(frame::CS),
            flags: word(frame::FLAGS),
        }
    }

    /// Puts them where the stub takes them from.
    fn put(&self, f: &mut [u8; frame::LEN]) {
        let mut put = |n: usize, bytes: &[u8]| f[n..n + bytes.len()].copy_from_slice(bytes);
        for (n, v) in [
            (frame::EAX, self.eax),
            (frame::EBX, self.ebx),
            (frame::ECX, self.ecx),
            (frame::EDX, self.edx),
            (frame::ESI, self.esi),
            (frame::EDI, self.edi),
            (frame::EBP, self.ebp),
        ] {
            put(n, &v.to_le_bytes());
        }
        for (n, v) in [
            (frame::DS, self.ds),
            (frame::ES, self.es),
            (frame::FS, self.fs),
            (frame::GS, self.gs),
            (frame::IP, self.ip),
            (frame::CS, self.cs),
            (frame::FLAGS, self.flags),
        ] {
            put(n, &v.to_le_bytes());
        }
    }
}

impl fmt::Display for Regs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in [("AX", self.eax), ("BX", self.ebx), ("CX", self.ecx), ("DX", self.edx)] {
            write!(f, "{name}={value:04x} ")?;
        }
        let (si, di, bp) = (self.esi, self.edi, self.ebp);
        write!(f, "SI={si:04x} DI={di:04x} BP={bp:04x} DS={:04x} ES={:04x} ", self.ds, self.es)?;
        write!(f, "flags={:04x} at {:04x}:{:04x}", self.flags, self.cs, self.ip)
    }
}

macro_rules! parts {
    ($($e:ident: $x:ident $set_x:ident, $h:ident $set_h:ident, $l:ident $set_l:ident;)*) => {
        #[expect(missing_docs, reason = "their names say it")]
        #[allow(dead_code, reason = "all registers alike")]
        impl Regs {$(
            pub fn $x(&self) -> u16 { self.$e as u16 }
            pub fn $set_x(&mut self, v: u16) { self.$e = self.$e & 0xffff_0000 | u32::from(v); }
            pub fn $h(&self) -> u8 { (self.$e >> 8) as u8 }
            pub fn $set_h(&mut self, v: u8) { self.$e = self.$e & 0xffff_00ff | u32::from(v) << 8; }
            pub fn $l(&self) -> u8 { self.$e as u8 }
            pub fn $set_l(&mut self, v: u8) { self.$e = self.$e & 0xffff_ff00 | u32::from(v); }
        )*}
    };
}

parts! {
    eax: ax set_ax, ah set_ah, al set_al;
    ebx: bx set_bx, bh set_bh, bl set_bl;
    ecx: cx set_cx, ch set_ch, cl set_cl;
    edx: dx set_dx, dh set_dh, dl set_dl;
}

impl Regs {
    /// Low half of ESI.
    pub fn si(&self) -> u16 {
        self.esi as u16
    }

    /// Low half of EDI.
    pub fn di(&self) -> u16 {
        self.edi as u16
    }

    /// Low half of EBP.
    pub fn bp(&self) -> u16 {
        self.ebp as u16
    }

    fn set_low(reg: &mut u32, v: u16) {
        *reg = *reg & 0xffff_0000 | u32::from(v);
    }

    /// Sets the low half of EDI.
    pub fn set_di(&mut self, v: u16) {
        Regs::set_low(&mut self.edi, v);
    }

    /// Sets the low half of ESI.
    pub fn set_si(&mut self, v: u16) {
        Regs::set_low(&mut self.esi, v);
    }

    /// Sets the low half of EBP.
    pub fn set_bp(&mut self, v: u16) {
        Regs::set_low(&mut self.ebp, v);
    }

    /// Sets or clears CF.
    pub fn set_carry(&mut self, on: bool) {
        self.flags = if on { self.flags | CF } else { self.flags & !CF };
    }

    /// Sets or clears ZF.
    pub fn set_zero(&mut self, on: bool) {
        self.flags = if on { self.flags | ZF } else { self.flags & !ZF };
    }
}

/// What a user can choose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Kinds of drives to boot from, in this order.
    pub order: Vec<DriveKind>,
    /// The kind to try first at the first start.
    pub once: Option<DriveKind>,
    /// How long the prompt for the boot menu stays, in milliseconds.
    pub menu_ms: u32,
    /// Mirror the text console to COM1.
    pub serial: bool,
    /// Offer APM.
    pub apm: bool,
}

/// What the BIOS knows of its machine.
#[derive(Clone, Debug)]
pub struct Config {
    /// The board.
    pub platform: Platform,
    /// The memory map for E820.
    pub memory: Vec<Region>,
    /// All drives, floppies first, as they are numbered.
    pub drives: Vec<Drive>,
    /// What the user chose.
    pub options: Options,
}

/// What has no place in the data areas.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// POST has run before.
    started: bool,
    boot: boot::Progress,
    disks: disk::Transfers,
    drives: int13::Drives,
    keyboard: keyboard::State,
    mirror: serial::Mirror,
    wait: int15::Wait,
    apm: apm::State,
    options: option::State,
    pmm: pmm::State,
    /// When the call that waits for a line gives up.
    deadline: u64,
}

/// The BIOS of a machine.
pub struct Bios {
    config: Config,
    state: State,
}

/// What stubs and interrupt handlers ask for. Interrupt services have their interrupt's number.
mod service {
    /// The PCI BIOS and APM, from protected mode.
    pub(super) const PCI: u16 = 1;
    pub(super) const APM: u16 = 2;
    /// Power-on and reset.
    pub(super) const POST: u16 = 0x100;
    /// A key's scan code is in AL.
    pub(super) const KEY: u16 = 0x101;
    /// A byte of the mouse is in AL.
    pub(super) const MOUSE: u16 = 0x102;
    /// Option ROMs are to be initialized; or one has returned.
    pub(super) const ROMS: u16 = 0x103;
    /// Far procedures that option ROMs call: the POST memory manager, and Plug and Play.
    pub(super) const PMM: u16 = 0x104;
    pub(super) const PNP: u16 = 0x105;
}

/// The frame that a stub leaves on the caller's stack, the lowest address first.
mod frame {
    pub(super) const SERVICE: usize = 0;
    /// 0 when the service is asked for, and what the stub has to do when it was.
    pub(super) const STATUS: usize = 2;
    pub(super) const GS: usize = 4;
    pub(super) const FS: usize = 6;
    pub(super) const ES: usize = 8;
    pub(super) const DS: usize = 10;
    /// As PUSHAD leaves them.
    pub(super) const EDI: usize = 12;
    pub(super) const ESI: usize = 16;
    pub(super) const EBP: usize = 20;
    pub(super) const EBX: usize = 28;
    pub(super) const EDX: usize = 32;
    pub(super) const ECX: usize = 36;
    pub(super) const EAX: usize = 40;
    pub(super) const IP: usize = 44;
    pub(super) const CS: usize = 46;
    pub(super) const FLAGS: usize = 48;
    pub(super) const LEN: usize = 50;

    /// [`STATUS`]: return to the caller.
    pub(super) const RETURN: u16 = 0;
    /// [`STATUS`]: HLT, then ask again.
    pub(super) const HALT: u16 = 1;
    /// [`STATUS`]: pass some time, then ask again, since no interrupt would end HLT.
    pub(super) const SPIN: u16 = 2;
}

/// A call of a service under way.
pub(crate) struct Call<'a> {
    pub host: &'a mut dyn Host,
    pub config: &'a Config,
    pub state: &'a mut State,
    /// The caller's registers; what is changed here the caller gets.
    pub r: Regs,
    /// The service answered [`Flow::Wait`] to this call before.
    pub again: bool,
    /// Names the call among those that wait.
    pub id: u64,
}

/// [`Call::id`] of calls that came through the latch.
const LATCHED_ID: u64 = u64::MAX;

/// The linear address of a segment and an offset.
pub(crate) fn linear(segment: u16, offset: u16) -> u64 {
    u64::from(segment) * 16 + u64::from(offset)
}

impl Call<'_> {
    pub fn byte(&mut self, at: u64) -> u8 {
        let mut b = [0];
        self.host.read(at, &mut b);
        b[0]
    }

    pub fn word(&mut self, at: u64) -> u16 {
        let mut b = [0; 2];
        self.host.read(at, &mut b);
        u16::from_le_bytes(b)
    }

    pub fn dword(&mut self, at: u64) -> u32 {
        let mut b = [0; 4];
        self.host.read(at, &mut b);
        u32::from_le_bytes(b)
    }

    pub fn set_byte(&mut self, at: u64, v: u8) {
        self.host.write(at, &[v]);
    }

    pub fn set_word(&mut self, at: u64, v: u16) {
        self.host.write(at, &v.to_le_bytes());
    }

    pub fn set_dword(&mut self, at: u64, v: u32) {
        self.host.write(at, &v.to_le_bytes());
    }

    pub fn inb(&mut self, port: u16) -> u8 {
        self.host.inp(port, 1) as u8
    }

    pub fn outb(&mut self, port: u16, v: u8) {
        self.host.outp(port, 1, v.into());
    }

    /// The call came from protected mode, through the latch: nobody can look up its segments.
    pub fn is_latched(&self) -> bool {
        self.id == LATCHED_ID
    }

    /// Whether this call has waited so many nanoseconds, asked each time before it waits.
    pub fn waited(&mut self, ns: u64) -> bool {
        let now = self.host.now();
        if !self.again {
            self.state.deadline = now + ns;
        }
        now >= self.state.deadline
    }

    /// Leaves words where the fresh stack of this call's stub begins, for what it returns to.
    pub fn leave(&mut self, words: &[u16]) {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.host.write(self.id + frame::LEN as u64, &bytes);
    }

    /// Word `n` of what was pushed for a far procedure, the last pushed first.
    pub fn argument(&mut self, n: u64) -> u16 {
        self.word(self.id + frame::LEN as u64 + 4 + 2 * n)
    }

    /// A register of the CMOS RAM. NMI stays enabled.
    pub fn cmos(&mut self, n: u8) -> u8 {
        self.outb(0x70, n);
        self.inb(0x71)
    }

    pub fn set_cmos(&mut self, n: u8, v: u8) {
        self.outb(0x70, n);
        self.outb(0x71, v);
    }

    /// Writes text where the user sees it.
    pub fn print(&mut self, text: &str) {
        for byte in text.bytes() {
            if byte == b'\n' {
                int10::teletype(self, b'\r');
            }
            int10::teletype(self, byte);
        }
    }

    /// AH and CF for a function that is not there, as the AT's BIOS answers.
    pub fn unsupported(&mut self) -> Flow {
        self.r.set_ah(0x86);
        self.r.set_carry(true);
        Flow::Done
    }

    fn dispatch(&mut self, service: u16) -> Flow {
        match service {
            service::POST => post::run(self),
            service::KEY => keyboard::key(self),
            service::MOUSE => int15::mouse_byte(self),
            service::ROMS => option::service(self),
            service::PMM => pmm::service(self),
            service::PNP => option::plug_and_play(self),
            service::PCI => pci::service(self),
            service::APM => apm::service(self),
            0x10 => int10::service(self),
            0x11 => {
                let equipment = self.word(data::EQUIPMENT);
                self.r.set_ax(equipment);
                Flow::Done
            }
            0x12 => {
                let kib = self.word(data::BASE_MEMORY);
                self.r.set_ax(kib);
                Flow::Done
            }
            0x13 | 0x40 => int13::service(self, service == 0x40),
            0x14 => ports::serial(self),
            0x15 => int15::service(self),
            0x16 => keyboard::service(self),
            0x17 => ports::parallel(self),
            0x18 | 0x19 => boot::service(self, service == 0x18),
            0x1a => time::service(self),
            _ => Flow::Done,
        }
    }
}

impl Bios {
    /// The BIOS of a machine that has not been started.
    pub fn new(config: Config) -> Bios {
        Bios { config, state: State::default() }
    }

    /// What is saved with the machine.
    pub fn state(&mut self) -> &mut State {
        &mut self.state
    }

    /// Whether the block at the linear address where stubs leave it names a frame, as `host` sees memory.
    pub fn is_called(host: &mut dyn Host) -> bool {
        let mut block = [0; 2];
        host.read(data::BLOCK, &mut block);
        block == data::ARMED.to_le_bytes()
    }

    /// Serves a call by the latch; `latch` holds the registers and takes the results.
    pub fn serve_latch(&mut self, host: &mut dyn Host, service: u8, latch: &mut [u32; LATCHED]) {
        let [eax, ebx, ecx, edx, esi, edi, flags] = *latch;
        let r = Regs { eax, ebx, ecx, edx, esi, edi, flags: flags as u16, ..Regs::default() };
        let mut call = Call { host, config: &self.config, state: &mut self.state, r, again: false, id: LATCHED_ID };
        call.dispatch(service.into());
        let r = call.r;
        *latch = [r.eax, r.ebx, r.ecx, r.edx, r.esi, r.edi, r.flags.into()];
    }

    /// Serves the call whose frame the block names. A write to the port that no stub made does nothing.
    pub fn serve(&mut self, host: &mut dyn Host) {
        let mut block = [0; 6];
        host.read(data::BLOCK, &mut block);
        let word = |n: usize| u16::from_le_bytes([block[n], block[n + 1]]);
        if word(0) != data::ARMED {
            return;
        }
        host.write(data::BLOCK, &[0; 2]);
        let at = linear(word(4), word(2));
        let mut f = [0; frame::LEN];
        host.read(at, &mut f);
        let word = |n: usize| u16::from_le_bytes([f[n], f[n + 1]]);
        let r = Regs::of_frame(&f);
        let (service, again) = (word(frame::SERVICE), word(frame::STATUS) != frame::RETURN);
        let before = r;
        let mut call = Call { host, config: &self.config, state: &mut self.state, r, again, id: at };
        let status = match call.dispatch(service) {
            Flow::Done => frame::RETURN,
            // HLT would not end with the timer's interrupt masked.
            Flow::Wait if call.inb(0x21) & 1 == 0 => frame::HALT,
            Flow::Wait => frame::SPIN,
        };
        let after = call.r;
        if status == frame::RETURN {
            call.host.called(format_args!("INT {service:02x}h {before} -> {after}"));
        }
        after.put(&mut f);
        f[frame::STATUS..frame::STATUS + 2].copy_from_slice(&status.to_le_bytes());
        host.write(at, &f);
    }
}

#[cfg(test)]
mod tests;
