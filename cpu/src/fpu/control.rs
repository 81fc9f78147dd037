//! x87 control instructions, and the environment and state images of FSTENV and FSAVE.
//!
//! The image has a 16-bit and a 32-bit layout, each with a form for real-address and virtual-8086 mode, which holds
//! linear addresses, and one for protected mode, which holds selectors and offsets (SDM volume 1, figures 8-9 to 8-12).
//! 64-bit code has the 32-bit protected form.

use super::{EXCEPTIONS, Fpu};
use crate::insn::{Insn, Mode, OSIZE_SHIFT, Res};
use crate::softfloat::{Class, F80};
use crate::state::Cpu;

/// The layout of an image.
#[derive(Clone, Copy)]
struct Layout {
    /// 32-bit slots.
    wide: bool,
    /// Linear addresses.
    real: bool,
}

impl Layout {
    fn of(cpu: &Cpu, i: &Insn) -> Layout {
        Layout { wide: i.flags >> OSIZE_SHIFT != 0, real: cpu.mode.has(Mode::REAL) }
    }

    fn len(self) -> usize {
        if self.wide { 28 } else { 14 }
    }
}

/// Longest image: the 32-bit environment and eight registers.
const MAX: usize = 28 + 80;

impl Fpu {
    /// The full tag word. What a register holds is looked up, as processors do since the 486.
    fn tags(&self) -> u16 {
        (0..8).fold(0, |tags, n| {
            let tag = match self.regs[n].class() {
                _ if self.full >> n & 1 == 0 => 3,
                Class::Zero => 1,
                Class::Normal => 0,
                _ => 2,
            };
            tags | tag << (2 * n)
        })
    }

    fn set_tags(&mut self, tags: u16) {
        self.full = (0..8).fold(0, |full, n| full | u8::from(tags >> (2 * n) & 3 != 3) << n);
    }

    fn environment(&self, l: Layout) -> [u8; 28] {
        let mut out = [0; 28];
        let (fip, fdp) = if l.real {
            (self.fip.wrapping_add(u64::from(self.fcs) << 4), self.fdp.wrapping_add(u64::from(self.fds) << 4))
        } else {
            (self.fip, self.fdp)
        };
        let (fip, fdp) = (fip as u32, fdp as u32);
        let (cs, ds, op) = (u32::from(self.fcs), u32::from(self.fds), u32::from(self.fop & 0x7ff));
        let tail = match (l.wide, l.real) {
            (true, false) => [fip, cs | op << 16, fdp, ds | 0xffff_0000],
            (true, true) => {
                [fip & 0xffff | 0xffff_0000, fip >> 16 << 12 | op, fdp & 0xffff | 0xffff_0000, fdp >> 16 << 12]
            }
            (false, false) => [fip, cs, fdp, ds],
            (false, true) => [fip, fip >> 16 << 12 | op, fdp, fdp >> 16 << 12],
        };
        let head = [self.cw, self.status(), self.tags()].map(|w| u32::from(w) | 0xffff_0000);
        for (n, word) in head.into_iter().chain(tail).enumerate() {
            if l.wide {
                out[4 * n..4 * n + 4].copy_from_slice(&word.to_le_bytes());
            } else {
                out[2 * n..2 * n + 2].copy_from_slice(&(word as u16).to_le_bytes());
            }
        }
        out
    }

    fn set_environment(&mut self, image: &[u8], l: Layout) {
        let word = |n: usize| -> u32 {
            if l.wide {
                u32::from_le_bytes([image[4 * n], image[4 * n + 1], image[4 * n + 2], image[4 * n + 3]])
            } else {
                u16::from_le_bytes([image[2 * n], image[2 * n + 1]]).into()
            }
        };
        self.set_control(word(0) as u16);
        self.set_status(word(1) as u16);
        self.set_tags(word(2) as u16);
        let (w3, w4, w5, w6) = (word(3), word(4), word(5), word(6));
        if l.real {
            let high = |w: u32| if l.wide { w >> 12 << 16 } else { w >> 12 << 16 & 0xf_0000 };
            self.fip = u64::from(w3 & 0xffff | high(w4));
            self.fdp = u64::from(w5 & 0xffff | high(w6));
            (self.fcs, self.fds) = (0, 0);
            self.fop = w4 as u16 & 0x7ff;
        } else {
            (self.fip, self.fdp) = (w3.into(), w5.into());
            (self.fcs, self.fds) = (w4 as u16, w6 as u16);
            // The 16-bit protected form has no opcode.
            self.fop = if l.wide { (w4 >> 16) as u16 & 0x7ff } else { 0 };
        }
    }
}

/// FNINIT.
pub(super) fn fninit(cpu: &mut Cpu, _: &Insn) -> Res {
    cpu.x87_present()?;
    cpu.fpu.init();
    Ok(())
}

/// FNCLEX.
pub(super) fn fnclex(cpu: &mut Cpu, _: &Insn) -> Res {
    cpu.x87_present()?;
    cpu.fpu.sw &= !(EXCEPTIONS | super::SF);
    cpu.fpu.summarize();
    Ok(())
}

/// FNENI, FNDISI and FNSETPM, which did something to an 8087 or an 80287.
pub(super) fn nothing(cpu: &mut Cpu, _: &Insn) -> Res {
    cpu.x87_present()
}

/// FNSTSW AX.
pub(super) fn fnstsw_ax(cpu: &mut Cpu, _: &Insn) -> Res {
    cpu.x87_present()?;
    cpu.gpr[0] = cpu.gpr[0] & !0xffff | u64::from(cpu.fpu.status());
    Ok(())
}

fn store_word(cpu: &mut Cpu, i: &Insn, word: u16) -> Res {
    cpu.write_mem::<crate::exec::Gen, u16>(i, word)
}

/// FNSTSW m16.
pub(super) fn fnstsw(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.x87_present()?;
    store_word(cpu, i, cpu.fpu.status())
}

/// FNSTCW.
pub(super) fn fnstcw(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.x87_present()?;
    store_word(cpu, i, cpu.fpu.cw)
}

/// FLDCW.
pub(super) fn fldcw(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.x87(i)?;
    let cw = cpu.read_mem::<crate::exec::Gen, u16>(i)?;
    cpu.fpu.set_control(cw);
    Ok(())
}

/// Reads a memory operand of any size.
fn read(cpu: &mut Cpu, i: &Insn, buf: &mut [u8]) -> Res {
    let lin = cpu.lin_gen(i, buf.len() as u32, false)?;
    match cpu.load_bytes(lin, buf) {
        Ok(()) => Ok(()),
        Err(_) => Err(cpu.operand_fault(i)),
    }
}

/// Writes a memory operand of any size.
fn write(cpu: &mut Cpu, i: &Insn, data: &[u8]) -> Res {
    let lin = cpu.lin_gen(i, data.len() as u32, true)?;
    match cpu.store_bytes(lin, data) {
        Ok(()) => Ok(()),
        Err(_) => Err(cpu.operand_fault(i)),
    }
}

/// FNSTENV. All exceptions are masked afterwards.
pub(super) fn fnstenv(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.x87_present()?;
    let l = Layout::of(cpu, i);
    write(cpu, i, &cpu.fpu.environment(l)[..l.len()])?;
    cpu.fpu.set_control(cpu.fpu.cw | EXCEPTIONS);
    Ok(())
}

/// FLDENV.
pub(super) fn fldenv(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.x87(i)?;
    let l = Layout::of(cpu, i);
    let mut buf = [0; 28];
    read(cpu, i, &mut buf[..l.len()])?;
    cpu.fpu.set_environment(&buf, l);
    Ok(())
}

/// FNSAVE: the environment and ST(0) to ST(7), then FNINIT.
pub(super) fn fnsave(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.x87_present()?;
    let l = Layout::of(cpu, i);
    let mut buf = [0; MAX];
    buf[..28].copy_from_slice(&cpu.fpu.environment(l));
    for n in 0..8 {
        let at = l.len() + 10 * n;
        buf[at..at + 10].copy_from_slice(&cpu.fpu.st(n as u8).to_bytes());
    }
    write(cpu, i, &buf[..l.len() + 80])?;
    cpu.fpu.init();
    Ok(())
}

/// FRSTOR.
pub(super) fn frstor(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.x87(i)?;
    let l = Layout::of(cpu, i);
    let mut buf = [0; MAX];
    read(cpu, i, &mut buf[..l.len() + 80])?;
    let f = &mut cpu.fpu;
    f.set_environment(&buf, l);
    for (n, bytes) in buf[l.len()..].as_chunks().0.iter().take(8).enumerate() {
        let at = f.at(n as u8);
        f.regs[at] = F80::from_bytes(*bytes);
    }
    Ok(())
}

/// EMMS: all registers are empty.
pub(super) fn emms(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.mmx(i)?;
    cpu.fpu.top = 0;
    cpu.fpu.full = 0;
    Ok(())
}
