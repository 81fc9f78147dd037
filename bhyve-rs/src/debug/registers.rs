//! Registers as GDB numbers them, of an i386 or x86-64 processor: the core, x87 and SSE in GDB's own order, then what
//! only a machine has. GDB learns the rest from `target.xml`, which is made of the same table.

use std::fmt::Write;

use cpu::{Regs, Segment};

/// A register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// By the processor's number.
    Gpr(usize),
    Rip,
    Rflags,
    /// CS, SS, DS, ES, FS, GS.
    Selector(usize),
    St(usize),
    /// A word of the FXSAVE image.
    Word(usize),
    /// The whole tag word, of which the image has half.
    Tags,
    Opcode,
    /// Half of the last x87 instruction's or operand's place in the image, or zero.
    Offset(usize),
    Selectors(bool),
    Xmm(usize),
    Mxcsr,
    FsBase,
    GsBase,
    KernelGsBase,
    Cr(u8),
    Efer,
}

struct Register {
    name: String,
    bits: usize,
    kind: &'static str,
    what: What,
}

/// The registers of a machine, by GDB's numbers.
pub struct Layout {
    wide: bool,
    registers: Vec<Register>,
}

const FX: usize = 512;
const ST: usize = 32;
const XMM: usize = 160;
const MXCSR: usize = 24;

/// The flags that exist, and the one that is always set.
const RFLAGS: u64 = 0x3f_7fd5;
const RFLAGS_SET: u64 = 2;

impl Layout {
    /// That of an x86-64 processor, or of an i386.
    pub fn new(wide: bool) -> Layout {
        let mut registers = Vec::new();
        let mut add = |name: &str, bits: usize, kind: &'static str, what: What| {
            registers.push(Register { name: name.to_owned(), bits, kind, what });
        };
        let word = if wide { 64 } else { 32 };
        let int = if wide { "int64" } else { "int32" };
        const NAMES: [&str; 8] = ["ax", "cx", "dx", "bx", "sp", "bp", "si", "di"];
        let order = if wide { [0, 3, 1, 2, 6, 7, 5, 4] } else { [0, 1, 2, 3, 4, 5, 6, 7] };
        for n in order {
            let kind = if matches!(n, 4 | 5) { "data_ptr" } else { int };
            add(&format!("{}{}", if wide { 'r' } else { 'e' }, NAMES[n]), word, kind, What::Gpr(n));
        }
        for n in (8..16).filter(|_| wide) {
            add(&format!("r{n}"), 64, "int64", What::Gpr(n));
        }
        add(if wide { "rip" } else { "eip" }, word, "code_ptr", What::Rip);
        add("eflags", 32, "i386_eflags", What::Rflags);
        for (n, name) in ["cs", "ss", "ds", "es", "fs", "gs"].into_iter().enumerate() {
            add(name, 32, "int32", What::Selector(n));
        }
        for n in 0..8 {
            add(&format!("st{n}"), 80, "i387_ext", What::St(n));
        }
        let x87 = [
            ("fctrl", What::Word(0)),
            ("fstat", What::Word(2)),
            ("ftag", What::Tags),
            ("fiseg", What::Selectors(false)),
            ("fioff", What::Offset(8)),
            ("foseg", What::Selectors(true)),
            ("fooff", What::Offset(16)),
            ("fop", What::Opcode),
        ];
        x87.into_iter().for_each(|(name, what)| add(name, 32, "int", what));
        for n in 0..if wide { 16 } else { 8 } {
            add(&format!("xmm{n}"), 128, "vec128", What::Xmm(n));
        }
        add("mxcsr", 32, "int32", What::Mxcsr);
        if wide {
            add("fs_base", 64, "int64", What::FsBase);
            add("gs_base", 64, "int64", What::GsBase);
            add("k_gs_base", 64, "int64", What::KernelGsBase);
        }
        for n in [0, 2, 3, 4] {
            add(&format!("cr{n}"), word, int, What::Cr(n));
        }
        add("efer", word, int, What::Efer);
        Layout { wide, registers }
    }

    /// `target.xml`.
    pub fn xml(&self) -> String {
        let machine = if self.wide { "i386:x86-64" } else { "i386" };
        let mut out = format!(
            "<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\"><target>\
             <architecture>{machine}</architecture>"
        );
        let mut feature = "";
        for register in &self.registers {
            let next = match register.what {
                What::Xmm(_) | What::Mxcsr => "org.gnu.gdb.i386.sse",
                What::FsBase | What::GsBase => "org.gnu.gdb.i386.segments",
                What::KernelGsBase | What::Cr(_) | What::Efer => "org.bhyve-rs.system",
                _ => "org.gnu.gdb.i386.core",
            };
            if next != feature {
                out.push_str(if feature.is_empty() { "" } else { "</feature>" });
                let _ = write!(out, "<feature name=\"{next}\">");
                out.push_str(match next {
                    "org.gnu.gdb.i386.core" => &FLAGS,
                    "org.gnu.gdb.i386.sse" => VECTORS,
                    _ => "",
                });
                feature = next;
            }
            let group = match register.what {
                What::Word(_) | What::Tags | What::Selectors(_) | What::Offset(_) | What::Opcode => " group=\"float\"",
                What::Mxcsr => " group=\"vector\"",
                What::KernelGsBase | What::Cr(_) | What::Efer => " group=\"system\"",
                _ => "",
            };
            let Register { name, bits, kind, .. } = register;
            let _ = write!(out, "<reg name=\"{name}\" bitsize=\"{bits}\" type=\"{kind}\"{group}/>");
        }
        out.push_str("</feature></target>");
        out
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.registers.len()
    }

    /// Bytes of a register.
    pub fn bytes(&self, n: usize) -> Option<usize> {
        Some(self.registers.get(n)?.bits / 8)
    }

    /// A register's value, least significant byte first; `None` if the back end lacks it.
    pub fn get(&self, n: usize, regs: &Regs, lacks: &[&str]) -> Option<Vec<u8>> {
        let register = self.registers.get(n)?;
        let fx = |at: usize, len: usize| regs.fx.get(at..at + len).map(<[u8]>::to_vec);
        let word = |at: usize, len: usize| {
            fx(at, len).map(|bytes| bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
        };
        let value = match register.what {
            What::St(_) | What::Xmm(_) | What::Word(_) | What::Tags | What::Opcode | What::Offset(_) | What::Mxcsr
                if lacks.contains(&"fx") =>
            {
                return None;
            }
            What::St(n) => return fx(ST + 16 * n, 10),
            What::Xmm(n) => return fx(XMM + 16 * n, 16),
            What::Word(at) => word(at, 2)?,
            What::Tags => {
                let valid = word(4, 1)?;
                // 0 is valid, 3 is empty.
                (0..8).map(|n| if valid >> n & 1 == 0 { 3 << (2 * n) } else { 0 }).sum()
            }
            What::Opcode => word(6, 2)?,
            What::Offset(at) => word(at, 4)?,
            What::Selectors(_) if lacks.contains(&"fcs_fds") => return None,
            What::Selectors(data) => if data { regs.fcs_fds.1 } else { regs.fcs_fds.0 }.into(),
            What::Mxcsr => word(MXCSR, 4)?,
            What::Gpr(n) => regs.gpr[n],
            What::Rip => regs.rip,
            What::Rflags => regs.rflags,
            What::Selector(n) => selectors(regs)[n].selector.into(),
            What::FsBase => regs.fs.base,
            What::GsBase => regs.gs.base,
            What::KernelGsBase if lacks.contains(&"msrs") => return None,
            What::KernelGsBase => regs.msrs.kernel_gs_base,
            What::Cr(0) => regs.cr0,
            What::Cr(2) => regs.cr2,
            What::Cr(3) => regs.cr3,
            What::Cr(_) => regs.cr4,
            What::Efer => regs.msrs.efer,
        };
        Some(value.to_le_bytes()[..register.bits / 8].to_vec())
    }

    /// Sets a register. `false`: it cannot be set so.
    pub fn set(&self, n: usize, bytes: &[u8], regs: &mut Regs, lacks: &[&str]) -> bool {
        let Some(old) = self.get(n, regs, lacks) else { return false };
        let Some(register) = self.registers.get(n).filter(|register| register.bits == 8 * bytes.len()) else {
            return false;
        };
        if old == bytes {
            return true;
        }
        let value = bytes.iter().take(8).rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        // Where there are 32 bits of a register, it has no more.
        let place = match register.what {
            What::St(n) => return store(regs, ST + 16 * n, bytes),
            What::Xmm(n) => return store(regs, XMM + 16 * n, bytes),
            What::Word(at) => return store(regs, at, &bytes[..2]),
            What::Mxcsr => return value >> 16 == 0 && store(regs, MXCSR, bytes),
            What::Tags => {
                let valid = (0..8).filter(|n| value >> (2 * n) & 3 != 3).fold(0, |bits, n| bits | 1 << n);
                return store(regs, 4, &[valid]);
            }
            What::Opcode | What::Offset(_) | What::Selectors(_) => return false,
            What::Rflags => {
                regs.rflags = value & RFLAGS | RFLAGS_SET;
                return true;
            }
            What::Selector(n) => return set_selector(regs, n, value as u16),
            What::Rip if (value as i64) << 16 >> 16 != value as i64 => return false,
            What::Rip => &mut regs.rip,
            What::Gpr(n) => &mut regs.gpr[n],
            What::FsBase | What::GsBase | What::KernelGsBase if (value as i64) << 16 >> 16 != value as i64 => {
                return false;
            }
            What::FsBase => &mut regs.fs.base,
            What::GsBase => &mut regs.gs.base,
            What::KernelGsBase => &mut regs.msrs.kernel_gs_base,
            What::Cr(2) => &mut regs.cr2,
            What::Cr(3) => &mut regs.cr3,
            // Modes are changed by instructions.
            What::Cr(_) | What::Efer => return false,
        };
        *place = value;
        true
    }
}

fn selectors(regs: &Regs) -> [&Segment; 6] {
    [&regs.cs, &regs.ss, &regs.ds, &regs.es, &regs.fs, &regs.gs]
}

/// A selector in real mode. In protected mode it would have to be loaded from a table.
fn set_selector(regs: &mut Regs, n: usize, selector: u16) -> bool {
    const VM: u64 = 1 << 17;
    let real = regs.cr0 & 1 == 0 || regs.rflags & VM != 0;
    let segment = [&mut regs.cs, &mut regs.ss, &mut regs.ds, &mut regs.es, &mut regs.fs, &mut regs.gs];
    if let Some(segment) = segment.into_iter().nth(n).filter(|_| real) {
        (segment.selector, segment.base) = (selector, u64::from(selector) << 4);
        return true;
    }
    false
}

fn store(regs: &mut Regs, at: usize, bytes: &[u8]) -> bool {
    regs.fx.resize(FX, 0);
    regs.fx[at..at + bytes.len()].copy_from_slice(bytes);
    true
}

/// The flags' names, by their bits.
static FLAGS: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
    let names = [
        ("CF", 0),
        ("PF", 2),
        ("AF", 4),
        ("ZF", 6),
        ("SF", 7),
        ("TF", 8),
        ("IF", 9),
        ("DF", 10),
        ("OF", 11),
        ("NT", 14),
        ("RF", 16),
        ("VM", 17),
        ("AC", 18),
        ("VIF", 19),
        ("VIP", 20),
        ("ID", 21),
    ];
    let fields: String =
        names.map(|(name, bit)| format!("<field name=\"{name}\" start=\"{bit}\" end=\"{bit}\"/>")).concat();
    format!("<flags id=\"i386_eflags\" size=\"4\">{fields}</flags>")
});

/// What an SSE register can hold.
const VECTORS: &str = "<vector id=\"v4f\" type=\"ieee_single\" count=\"4\"/>\
    <vector id=\"v2d\" type=\"ieee_double\" count=\"2\"/><vector id=\"v16i8\" type=\"int8\" count=\"16\"/>\
    <vector id=\"v8i16\" type=\"int16\" count=\"8\"/><vector id=\"v4i32\" type=\"int32\" count=\"4\"/>\
    <vector id=\"v2i64\" type=\"int64\" count=\"2\"/><union id=\"vec128\"><field name=\"v4_float\" type=\"v4f\"/>\
    <field name=\"v2_double\" type=\"v2d\"/><field name=\"v16_int8\" type=\"v16i8\"/>\
    <field name=\"v8_int16\" type=\"v8i16\"/><field name=\"v4_int32\" type=\"v4i32\"/>\
    <field name=\"v2_int64\" type=\"v2i64\"/><field name=\"uint128\" type=\"uint128\"/></union>";

#[cfg(test)]
mod tests {
    use super::*;

    fn regs() -> Regs {
        let mut fx = vec![0; FX];
        fx[0..2].copy_from_slice(&[0x7f, 0x03]);
        Regs { fx, cr0: 0x8000_0011, ..Regs::default() }
    }

    #[test]
    fn what_is_set_is_what_is_got_and_nothing_else_changes() {
        for wide in [false, true] {
            let layout = Layout::new(wide);
            for n in 0..layout.len() {
                let (mut regs, len) = (regs(), layout.bytes(n).unwrap());
                let others = |regs: &Regs| -> Vec<_> {
                    (0..layout.len()).filter(|other| *other != n).map(|other| layout.get(other, regs, &[])).collect()
                };
                let before = others(&regs);
                let bytes: Vec<u8> = (0..len).map(|at| if at == 0 { 0x41 } else { 0 }).collect();
                if layout.set(n, &bytes, &mut regs, &[]) {
                    let mut got = layout.get(n, &regs, &[]).unwrap();
                    // Of the flags one is always set, and of the tags there are two kinds.
                    match layout.registers[n].what {
                        What::Rflags => got[0] &= !2,
                        What::Tags => got.clone_from(&bytes),
                        _ => {}
                    }
                    assert_eq!(got, bytes, "{}", layout.registers[n].name);
                }
                assert_eq!(others(&regs), before, "{}", layout.registers[n].name);
                assert!(!layout.set(n, &vec![0; len + 1], &mut regs, &[]));
            }
            assert!(!layout.set(layout.len(), &[0], &mut regs(), &[]));
        }
    }

    #[test]
    fn the_core_is_where_gdb_has_it() {
        let at = |layout: &Layout, name: &str| layout.registers.iter().position(|r| r.name == name).unwrap();
        let wide = Layout::new(true);
        assert_eq!(
            ["rsp", "r15", "rip", "eflags", "gs", "st0", "fop", "xmm0", "mxcsr"].map(|n| at(&wide, n)),
            [7, 15, 16, 17, 23, 24, 39, 40, 56]
        );
        let narrow = Layout::new(false);
        assert_eq!(
            ["esp", "eip", "gs", "st0", "fop", "xmm0", "mxcsr"].map(|n| at(&narrow, n)),
            [4, 8, 15, 16, 31, 32, 40]
        );
    }
}
