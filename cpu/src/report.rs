//! The processor's state as text, for the report of a triple fault.

use std::fmt::Write;

use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};

use crate::flags::IF;
use crate::regs::Regs;
use crate::state::{Cpu, Segment};

const NAMES: [&str; 16] =
    ["RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8 ", "R9 ", "R10", "R11", "R12", "R13", "R14", "R15"];

/// Bytes before RIP in which the disassembly looks for a beginning, and after it.
const BEFORE: u64 = 32;
const AFTER: u64 = 32;
/// Instructions shown before RIP.
const SHOWN_BEFORE: usize = 4;

/// Where in the bytes before RIP to begin, so that what is decoded leads up to RIP: instructions have no marks, but a
/// wrong beginning soon falls into step with the right one, so the one that has the longest way to RIP is taken.
fn back(before: &[u8], bits: u32, rip: u64) -> usize {
    let mut starts = (0..before.len()).filter_map(|start| {
        let ip = rip.wrapping_sub((before.len() - start) as u64);
        let mut decoder = Decoder::with_ip(bits, &before[start..], ip, DecoderOptions::NONE);
        let mut places = Vec::new();
        while decoder.can_decode() {
            places.push(start + decoder.position());
            if decoder.decode().is_invalid() {
                return None;
            }
        }
        Some(places)
    });
    let Some(places) = starts.next() else { return before.len() };
    places[places.len().saturating_sub(SHOWN_BEFORE)]
}

/// A fault in words.
fn describe(f: crate::state::Fault) -> String {
    const NAMES: [&str; 20] = [
        "#DE",
        "#DB",
        "NMI",
        "#BP",
        "#OF",
        "#BR",
        "#UD",
        "#NM",
        "#DF",
        "coprocessor overrun",
        "#TS",
        "#NP",
        "#SS",
        "#GP",
        "#PF",
        "vector 15",
        "#MF",
        "#AC",
        "#MC",
        "#XM",
    ];
    let mut text = NAMES.get(f.vector as usize).map_or_else(|| format!("vector {}", f.vector), |n| (*n).to_owned());
    if let Some(error) = f.error {
        let _ = write!(text, "({error:x})");
    }
    if f.vector == 14 {
        let _ = write!(text, " at {:x}", f.cr2);
    }
    text
}

impl Regs {
    /// As several lines of text.
    pub fn report(&self) -> String {
        let mut out = String::new();
        let r = self;
        for (n, (name, value)) in NAMES.iter().zip(r.gpr).enumerate() {
            let _ = write!(out, "{name}={value:016x}{}", if n % 4 == 3 { '\n' } else { ' ' });
        }
        let _ = writeln!(out, "RIP={:016x} RFLAGS={:08x} CPL={} icount={}", r.rip, r.rflags, r.cpl, r.icount);
        let _ = writeln!(
            out,
            "CR0={:08x} CR2={:016x} CR3={:016x} CR4={:08x} EFER={:x}",
            r.cr0, r.cr2, r.cr3, r.cr4, r.msrs.efer
        );
        for (name, s) in [("ES", r.es), ("CS", r.cs), ("SS", r.ss), ("DS", r.ds), ("FS", r.fs), ("GS", r.gs)] {
            let _ = writeln!(
                out,
                "{name}={:04x} base={:016x} limit={:08x} access={:05x}",
                s.selector, s.base, s.limit, s.access
            );
        }
        let _ = writeln!(
            out,
            "GDT={:016x}/{:04x} IDT={:016x}/{:04x}",
            r.gdtr.base, r.gdtr.limit, r.idtr.base, r.idtr.limit
        );
        out
    }

    /// The size of the code at CS:RIP: 16, 32 or 64 bits.
    pub fn code_bits(&self) -> u32 {
        const LMA: u64 = 1 << 10;
        match self.cs.access {
            access if access & Segment::L != 0 && self.msrs.efer & LMA != 0 => 64,
            access if access & Segment::DB != 0 => 32,
            _ => 16,
        }
    }
}

/// Lines about the last accesses to devices, if there are any.
pub fn last_exits(exits: impl Iterator<Item = emu::Exit>) -> String {
    let mut out = String::new();
    for e in exits {
        if out.is_empty() {
            out.push_str("last exits:\n");
        }
        let to = if matches!(e.kind, "in" | "read") { "=" } else { "<-" };
        let _ = writeln!(out, "  {:<5} {:x}/{} {to} {:x}", e.kind, e.addr, e.width, e.value);
    }
    out
}

/// Disassembles around RIP. `peek` gives as many of the bytes from an offset in the code segment on as are mapped.
pub fn code(bits: u32, rip: u64, mut peek: impl FnMut(u64, u64) -> Vec<u8>) -> String {
    let after = peek(rip, AFTER);
    let before = peek(rip.wrapping_sub(BEFORE), BEFORE);
    if after.is_empty() {
        return format!("code ({bits}-bit): nothing is mapped there\n");
    }
    let mut out = format!("code ({bits}-bit):\n");
    let start = if before.len() as u64 == BEFORE { back(&before, bits, rip) } else { before.len() };
    let bytes = [&before[start..], &after].concat();
    let first = rip.wrapping_sub((before.len() - start) as u64);
    let mut decoder = Decoder::with_ip(bits, &bytes, first, DecoderOptions::NONE);
    let mut formatter = IntelFormatter::new();
    while decoder.can_decode() {
        let place = decoder.position();
        let insn = decoder.decode();
        // Past RIP the bytes may end within an instruction.
        if insn.is_invalid() && insn.ip() != rip && insn.ip().wrapping_sub(rip) < AFTER {
            break;
        }
        let mut text = String::new();
        formatter.format(&insn, &mut text);
        let hex: String = bytes[place..place + insn.len()].iter().map(|b| format!("{b:02x}")).collect();
        let mark = if insn.ip() == rip { "=>" } else { "  " };
        let _ = writeln!(out, "{mark} {:016x} {hex:<20} {text}", insn.ip());
    }
    out
}

impl Cpu {
    /// Registers, what was delivered last, the last accesses to devices and the code around RIP, several lines.
    pub fn report(&mut self) -> String {
        let r = self.regs();
        let mut out = r.report();
        if !self.faults.is_empty() {
            let faults: Vec<String> = self.faults.iter().map(|f| describe(*f)).collect();
            let _ = writeln!(out, "faults: {}", faults.join(", then "));
        }
        out.push_str(&last_exits(self.bus.exits()));
        let (bits, rip) = (r.code_bits(), self.rip);
        match self.fetch_address(rip) {
            Ok(at) => out.push_str(&code(bits, rip, |ip, len| self.peek(at.wrapping_add(ip.wrapping_sub(rip)), len))),
            Err(_) => {
                let _ = writeln!(out, "code ({bits}-bit): RIP is no address");
            }
        }
        self.why = crate::state::Why::None;
        out
    }

    /// As many of the bytes from `lin` on as are mapped.
    fn peek(&mut self, lin: u64, len: u64) -> Vec<u8> {
        let mut out = Vec::new();
        while (out.len() as u64) < len {
            let mut buf = [0; 16];
            let Ok(n) = self.fetch(lin.wrapping_add(out.len() as u64), &mut buf) else { break };
            out.extend(&buf[..n.min((len - out.len() as u64) as usize)]);
        }
        out
    }

    /// Only an NMI, INIT or SIPI can wake the processor.
    pub fn dead(&self) -> bool {
        self.wait_sipi || self.halted && self.rflags & IF == 0
    }
}
