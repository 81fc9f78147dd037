//! Port I/O: IN, OUT, INS, OUTS, and who may (Intel SDM volume 1, chapter 19).
//!
//! REP INS and REP OUTS move up to a page at a time through the bus's bulk calls, which is what disk drivers on IDE and
//! firmware on fw_cfg live on.

use emu::PAGE_SIZE;

use crate::flags::{DF, IOPL, RF, TF};
use crate::insn::{ASIZE, Dec, ES, Handler, Insn, Mode, RAX, RCX, RDI, RDX, REP, REPNE, RSI, Res};
use crate::seg::kind;
use crate::state::{Cpu, Why};

/// Picks the handler of IN and OUT.
pub(crate) fn select(i: &mut Insn, d: &Dec) -> Handler {
    i.rm = if d.op & 1 == 0 { 1 } else { 2 << d.osize.min(1) };
    match d.op {
        0xe4 | 0xe5 => in_imm,
        0xe6 | 0xe7 => out_imm,
        0xec | 0xed => in_dx,
        _ => out_dx,
    }
}

/// Picks the handler of INS and OUTS.
pub(crate) fn select_string(i: &mut Insn, d: &Dec) -> Handler {
    i.rm = if d.op & 1 == 0 { 1 } else { 2 << d.osize.min(1) };
    if d.op < 0x6e { ins } else { outs }
}

impl Cpu {
    /// #GP(0) unless the program may use `width` ports from `port` on: by IOPL, or by the bitmap of its TSS.
    fn may_use_port(&mut self, port: u16, width: u8) -> Res {
        let level = u64::from(self.cpl) <= (self.rflags & IOPL) >> 12;
        if self.cr0 & 1 == 0 || level && !self.mode.has(Mode::V86) {
            return Ok(());
        }
        if self.tr.kind() & !kind::BUSY != kind::TSS32 || self.tr.limit < 0x67 {
            return Err(self.gp(0));
        }
        let map: u16 = self.sys_load(self.table_address(self.tr.base, 0x66))?;
        // Two bytes are always read, so that the map has to end with a byte of ones.
        let at = u32::from(map) + u32::from(port / 8);
        if at + 1 > self.tr.limit {
            return Err(self.gp(0));
        }
        let bits: u16 = self.sys_load(self.table_address(self.tr.base, at.into()))?;
        if bits >> (port % 8) & ((1 << width) - 1) != 0 {
            return Err(self.gp(0));
        }
        Ok(())
    }

    fn port_in(&mut self, port: u16, width: u8) -> Res {
        self.may_use_port(port, width)?;
        self.offer_port(port, width, false)?;
        let v = self.bus.pio_read(port, width);
        self.watch_io(port, width);
        match width {
            1 => self.set_reg(RAX, v as u8),
            2 => self.set_reg(RAX, v as u16),
            _ => self.set_reg(RAX, v),
        }
        Ok(())
    }

    fn port_out(&mut self, port: u16, width: u8) -> Res {
        self.may_use_port(port, width)?;
        self.offer_port(port, width, true)?;
        let v = self.gpr[usize::from(RAX)] as u32 & (u32::MAX >> (32 - 8 * width));
        self.bus.pio_write(port, width, v);
        self.watch_io(port, width);
        Ok(())
    }

    fn dx(&self) -> u16 {
        self.gpr[usize::from(RDX)] as u16
    }
}

fn in_imm(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.port_in(i.imm as u8 as u16, i.rm)
}

fn out_imm(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.port_out(i.imm as u8 as u16, i.rm)
}

fn in_dx(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.port_in(cpu.dx(), i.rm)
}

fn out_dx(cpu: &mut Cpu, i: &Insn) -> Res {
    cpu.port_out(cpu.dx(), i.rm)
}

/// What a piece of INS or OUTS works on.
struct Piece {
    lin: u64,
    /// Elements.
    count: u64,
    bytes: usize,
}

impl Cpu {
    /// The next piece of a string instruction, or `None` if the count is 0. More than one element only if all of them
    /// lie in one page and inside the segment, upwards, and nothing single-steps or watches.
    fn piece(&mut self, i: &Insn, seg: u8, pointer: u8, write: bool) -> Res<Option<Piece>> {
        let (mask, width) = (address_mask(i), u64::from(i.rm));
        let total = if i.flags & (REP | REPNE) != 0 { self.gpr[usize::from(RCX)] & mask } else { 1 };
        if total == 0 {
            return Ok(None);
        }
        let offset = self.gpr[usize::from(pointer)] & mask;
        let lin = self.lin_seg(seg, offset, width as u32, write)?;
        let single = Piece { lin, count: 1, bytes: width as usize };
        if self.rflags & (DF | TF) != 0 || self.dr[7] & 0xff != 0 {
            return Ok(Some(single));
        }
        let room = (PAGE_SIZE - lin % PAGE_SIZE).min((mask - offset).saturating_add(1)) / width;
        let count = total.min(room);
        if count < 2 {
            return Ok(Some(single));
        }
        let bytes = (count * width) as usize;
        if self.lin_seg(seg, offset, bytes as u32, write).is_err() {
            self.why = Why::None;
            return Ok(Some(single));
        }
        Ok(Some(Piece { lin, count, bytes }))
    }

    /// Moves pointer and count on, and RIP back to the instruction if count remains.
    fn piece_done(&mut self, i: &Insn, pointer: u8, piece: &Piece) {
        let mask = address_mask(i);
        let step = piece.bytes as u64;
        let step = if self.rflags & DF != 0 { step.wrapping_neg() } else { step };
        let at = self.gpr[usize::from(pointer)].wrapping_add(step) & mask;
        self.set_masked(pointer, at, mask);
        if i.flags & (REP | REPNE) != 0 {
            let left = (self.gpr[usize::from(RCX)] & mask) - piece.count;
            self.set_masked(RCX, left, mask);
            if left != 0 {
                self.rip = self.cut_rip(self.this_rip(i));
                // A breakpoint on the instruction is for its start only.
                self.rflags |= RF;
            }
        }
    }
}

fn address_mask(i: &Insn) -> u64 {
    [0xffff, 0xffff_ffff, u64::MAX, u64::MAX][usize::from(i.flags & ASIZE)]
}

/// INS and REP INS: all that can fault is looked at before the device is read.
fn ins(cpu: &mut Cpu, i: &Insn) -> Res {
    let (port, width) = (cpu.dx(), i.rm);
    cpu.may_use_port(port, width)?;
    cpu.offer_port_string(port, width, false)?;
    let Some(piece) = cpu.piece(i, ES, RDI, true)? else { return Ok(()) };
    cpu.probe_write(piece.lin, piece.bytes as u32)?;
    let mut buf = [0; PAGE_SIZE as usize];
    let buf = &mut buf[..piece.bytes];
    cpu.bus.pio_read_many(port, width, buf);
    cpu.watch_io(port, width);
    cpu.store_bytes(piece.lin, buf)?;
    cpu.piece_done(i, RDI, &piece);
    Ok(())
}

/// OUTS and REP OUTS.
fn outs(cpu: &mut Cpu, i: &Insn) -> Res {
    let (port, width) = (cpu.dx(), i.rm);
    cpu.may_use_port(port, width)?;
    cpu.offer_port_string(port, width, true)?;
    let Some(piece) = cpu.piece(i, i.seg, RSI, false)? else { return Ok(()) };
    let mut buf = [0; PAGE_SIZE as usize];
    let buf = &mut buf[..piece.bytes];
    cpu.load_bytes(piece.lin, buf)?;
    cpu.bus.pio_write_many(port, width, buf);
    cpu.watch_io(port, width);
    cpu.piece_done(i, RSI, &piece);
    Ok(())
}
