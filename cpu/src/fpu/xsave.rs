//! FXSAVE, FXRSTOR, XSAVE and XRSTOR, and MXCSR.
//!
//! The XSAVE area is the FXSAVE image of 512 bytes and a header of 64 (SDM volume 1, 10.5 and chapter 13). State
//! components are the x87 (bit 0) and SSE (bit 1). XSAVEOPT, XSAVEC and XSAVES are not offered, so there is only the
//! standard format, and XCOMP_BV must be 0.

use super::{CR0_TS, Fpu, MXCSR_MASK};
use crate::exec::Gen;
use crate::insn::{Dec, Handler, Insn, Mode, OSIZE_SHIFT, RAX, RDX, Res};
use crate::softfloat::F80;
use crate::state::Cpu;

/// CR4: FXSAVE and SSE are supported by the system; XSAVE is.
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXSAVE: u64 = 1 << 18;

/// Components in XCR0, and bits of XSTATE_BV.
const X87: u64 = 1;
const SSE: u64 = 2;

/// Where the parts of the image start.
const MXCSR: usize = 24;
const ST: usize = 32;
const XMM: usize = 160;
const HEADER: usize = 512;
const AREA: usize = 576;

/// Picks the handler of a memory form of group 15.
pub(super) fn select(_: &Insn, d: &Dec) -> Option<Handler> {
    if !d.mem || d.p66 || d.rep != 0 {
        return None;
    }
    Some(match d.ext() {
        0 => fxsave,
        1 => fxrstor,
        2 => ldmxcsr,
        3 => stmxcsr,
        4 => xsave,
        5 => xrstor,
        _ => return None,
    })
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

fn get<const N: usize>(image: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&image[at..at + N]);
    out
}

impl Fpu {
    /// The image of FXSAVE in its 64-bit form, which KVM and debuggers use too: FIP and FDP have 64 bits, FCS and FDS
    /// have no place.
    pub(crate) fn to_fxsave(&self) -> [u8; 512] {
        self.image(true)
    }

    /// Takes over an image in the 64-bit form. What a processor would refuse is dropped.
    #[expect(clippy::wrong_self_convention, reason = "an image has no place for all that a processor keeps")]
    pub(crate) fn from_fxsave(&mut self, image: &[u8; 512]) {
        self.set_x87(image, true);
        self.mxcsr = u32::from_le_bytes(get(image, MXCSR)) & MXCSR_MASK;
        self.set_xmm(image, 16);
    }

    fn image(&self, wide: bool) -> [u8; 512] {
        let mut out = [0; 512];
        put(&mut out, 0, &self.cw.to_le_bytes());
        put(&mut out, 2, &self.status().to_le_bytes());
        out[4] = self.full;
        put(&mut out, 6, &self.fop.to_le_bytes());
        put(&mut out, 8, &self.fip.to_le_bytes());
        put(&mut out, 16, &self.fdp.to_le_bytes());
        if !wide {
            put(&mut out, 12, &u32::from(self.fcs).to_le_bytes());
            put(&mut out, 20, &u32::from(self.fds).to_le_bytes());
        }
        put(&mut out, MXCSR, &self.mxcsr.to_le_bytes());
        put(&mut out, MXCSR + 4, &MXCSR_MASK.to_le_bytes());
        for n in 0..8 {
            put(&mut out, ST + 16 * n, &self.st(n as u8).to_bytes());
        }
        for (n, xmm) in self.xmm.iter().enumerate() {
            put(&mut out, XMM + 16 * n, &xmm[0].to_le_bytes());
            put(&mut out, XMM + 16 * n + 8, &xmm[1].to_le_bytes());
        }
        out
    }

    fn set_x87(&mut self, image: &[u8; 512], wide: bool) {
        self.set_control(u16::from_le_bytes(get(image, 0)));
        self.set_status(u16::from_le_bytes(get(image, 2)));
        self.full = image[4];
        self.fop = u16::from_le_bytes(get(image, 6)) & 0x7ff;
        self.fip = u64::from_le_bytes(get(image, 8));
        self.fdp = u64::from_le_bytes(get(image, 16));
        (self.fcs, self.fds) = (0, 0);
        if !wide {
            (self.fcs, self.fds) = ((self.fip >> 32) as u16, (self.fdp >> 32) as u16);
            self.fip &= 0xffff_ffff;
            self.fdp &= 0xffff_ffff;
        }
        for n in 0..8 {
            let at = self.at(n);
            self.regs[at] = F80::from_bytes(get(image, ST + 16 * usize::from(n)));
        }
    }

    fn set_xmm(&mut self, image: &[u8; 512], count: usize) {
        for (n, xmm) in self.xmm.iter_mut().take(count).enumerate() {
            let at = XMM + 16 * n;
            *xmm = [u64::from_le_bytes(get(image, at)), u64::from_le_bytes(get(image, at + 8))];
        }
    }

    /// Which components are not in their initial state.
    fn in_use(&self) -> u64 {
        let fresh = Fpu { xmm: self.xmm, mxcsr: self.mxcsr, ferr: self.ferr, ..Fpu::default() };
        let sse = self.xmm != [[0; 2]; 16];
        (if *self == fresh { 0 } else { X87 }) | if sse { SSE } else { 0 }
    }
}

/// The number of XMM registers within reach.
fn registers(cpu: &Cpu) -> usize {
    if cpu.mode.has(Mode::LONG) { 16 } else { 8 }
}

/// Whether the instruction has REX.W, and so the 64-bit form of the pointers.
fn wide(i: &Insn) -> bool {
    i.flags >> OSIZE_SHIFT == 2
}

/// The linear address of an operand with an alignment that it must have.
fn aligned(cpu: &mut Cpu, i: &Insn, len: usize, align: u64, write: bool) -> Res<u64> {
    let lin = cpu.lin_gen(i, len as u32, write)?;
    if lin & (align - 1) != 0 {
        return Err(cpu.gp(0));
    }
    Ok(lin)
}

/// FXSAVE. Bytes 416 to 511 are the program's own, as are XMM8 to XMM15's outside 64-bit mode.
fn fxsave(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.x87_present()?;
    let lin = aligned(cpu, i, 512, 16, true)?;
    if cpu.probe_write(lin, 512).is_err() {
        return Err(cpu.operand_fault(i));
    }
    let image = cpu.fpu.image(wide(i));
    let end = match cpu.cr4 & CR4_OSFXSR {
        0 => XMM,
        _ => XMM + 16 * registers(cpu),
    };
    cpu.store_bytes(lin, &image[..end])
}

/// FXRSTOR.
fn fxrstor(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.x87_present()?;
    let lin = aligned(cpu, i, 512, 16, false)?;
    let mut image = [0; 512];
    let sse = cpu.cr4 & CR4_OSFXSR != 0;
    cpu.load_bytes(lin, &mut image).map_err(|_| cpu.operand_fault(i))?;
    let mxcsr = u32::from_le_bytes(get(&image, MXCSR));
    if sse && mxcsr & !MXCSR_MASK != 0 {
        return Err(cpu.gp(0));
    }
    let count = registers(cpu);
    cpu.fpu.set_x87(&image, wide(i));
    if sse {
        cpu.fpu.mxcsr = mxcsr;
        cpu.fpu.set_xmm(&image, count);
    }
    Ok(())
}

/// LDMXCSR.
fn ldmxcsr(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.sse()?;
    let mxcsr = cpu.read_mem::<Gen, u32>(i)?;
    if mxcsr & !MXCSR_MASK != 0 {
        return Err(cpu.gp(0));
    }
    cpu.fpu.mxcsr = mxcsr;
    Ok(())
}

/// STMXCSR.
fn stmxcsr(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.sse()?;
    cpu.write_mem::<Gen, u32>(i, cpu.fpu.mxcsr)
}

/// What XSAVE and XRSTOR check, and the requested components that XCR0 enables.
fn components(cpu: &mut Cpu) -> Res<u64> {
    if cpu.cr4 & CR4_OSXSAVE == 0 {
        return Err(cpu.ud());
    }
    if cpu.cr0 & CR0_TS != 0 {
        return Err(cpu.nm());
    }
    let asked = cpu.gpr[usize::from(RAX)] & 0xffff_ffff | cpu.gpr[usize::from(RDX)] << 32;
    Ok(asked & cpu.xcr0)
}

/// XSAVE. Only the parts asked for are written; XSTATE_BV's other bits stay.
fn xsave(cpu: &mut Cpu, i: &Insn) -> Res {
    let want = components(cpu)?;
    let lin = aligned(cpu, i, AREA, 64, true)?;
    if cpu.probe_write(lin, AREA as u32).is_err() {
        return Err(cpu.operand_fault(i));
    }
    let image = cpu.fpu.image(wide(i));
    let present = cpu.load::<u64>(lin.wrapping_add(HEADER as u64))?;
    let store =
        |cpu: &mut Cpu, from: usize, to: usize| cpu.store_bytes(lin.wrapping_add(from as u64), &image[from..to]);
    if want & X87 != 0 {
        store(cpu, 0, MXCSR)?;
        store(cpu, ST, XMM)?;
    }
    if want & SSE != 0 {
        store(cpu, MXCSR, ST)?;
        let end = XMM + 16 * registers(cpu);
        store(cpu, XMM, end)?;
    }
    let present = present & !want | cpu.fpu.in_use() & want;
    cpu.store(lin.wrapping_add(HEADER as u64), present)
}

/// XRSTOR. Components that the header calls absent get their initial values; MXCSR comes from the image all the same.
fn xrstor(cpu: &mut Cpu, i: &Insn) -> Res {
    let want = components(cpu)?;
    let lin = aligned(cpu, i, AREA, 64, false)?;
    let mut area = [0; AREA];
    cpu.load_bytes(lin, &mut area).map_err(|_| cpu.operand_fault(i))?;
    let present = u64::from_le_bytes(get(&area, HEADER));
    let rest: [u8; 16] = get(&area, HEADER + 8);
    let image: [u8; 512] = get(&area, 0);
    let mxcsr = u32::from_le_bytes(get(&image, MXCSR));
    if present & !cpu.xcr0 != 0 || rest != [0; 16] || want & SSE != 0 && mxcsr & !MXCSR_MASK != 0 {
        return Err(cpu.gp(0));
    }
    let count = registers(cpu);
    let f = &mut cpu.fpu;
    match (want & X87 != 0, present & X87 != 0) {
        (true, true) => f.set_x87(&image, wide(i)),
        (true, false) => {
            f.init();
            f.regs = [F80::ZERO; 8];
        }
        _ => {}
    }
    if want & SSE != 0 {
        f.mxcsr = mxcsr;
        if present & SSE != 0 {
            f.set_xmm(&image, count);
        } else {
            f.xmm[..count].fill([0; 2]);
        }
    }
    Ok(())
}
