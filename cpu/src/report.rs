//! The processor's state as text, for the report of a triple fault.

use std::fmt::Write;

use crate::flags::IF;
use crate::insn::{CS, DS, ES, FS, GS, Mode, SS};
use crate::state::Cpu;

const NAMES: [&str; 16] =
    ["RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8 ", "R9 ", "R10", "R11", "R12", "R13", "R14", "R15"];

impl Cpu {
    /// Registers and the bytes at RIP, several lines.
    pub fn report(&mut self) -> String {
        let mut out = String::new();
        let r = self.regs();
        for (n, (name, value)) in NAMES.iter().zip(r.gpr).enumerate() {
            let _ = write!(out, "{name}={value:016x}{}", if n % 4 == 3 { '\n' } else { ' ' });
        }
        let _ = writeln!(out, "RIP={:016x} RFLAGS={:08x} CPL={} icount={}", r.rip, r.rflags, r.cpl, r.icount);
        let _ = writeln!(
            out,
            "CR0={:08x} CR2={:016x} CR3={:016x} CR4={:08x} EFER={:x}",
            r.cr0, r.cr2, r.cr3, r.cr4, r.msrs.efer
        );
        for (name, n) in [("ES", ES), ("CS", CS), ("SS", SS), ("DS", DS), ("FS", FS), ("GS", GS)] {
            let s = self.seg[n as usize];
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
        let mut code = [0; 16];
        let have = self.fetch_address(r.rip).and_then(|lin| self.fetch(lin, &mut code)).unwrap_or(0);
        self.why = crate::state::Why::None;
        let bits = match self.mode {
            m if m.has(Mode::LONG) => 64,
            m if m.has(Mode::D32) => 32,
            _ => 16,
        };
        let bytes: Vec<String> = code[..have.min(16)].iter().map(|b| format!("{b:02x}")).collect();
        let _ = write!(out, "code ({bits}-bit): {}", bytes.join(" "));
        out
    }

    /// Only an NMI, INIT or SIPI can wake the processor.
    pub fn dead(&self) -> bool {
        self.wait_sipi || self.halted && self.rflags & IF == 0
    }
}
