//! Makes instructions with operands in the data window.

use super::{Bits, CODE, DATA_LEN, ENTRY, ES_SKEW, Fx, Rng, State};

/// A memory operand that was encoded but has no address yet.
#[derive(Clone, Copy, Default)]
pub(crate) struct Memory {
    base: Option<u8>,
    index: Option<u8>,
    scale: u32,
    /// Place and size in the encoding; size 0: none.
    disp_at: usize,
    disp_size: usize,
    disp: i64,
    rip_relative: bool,
}

/// An instruction in the making.
pub(crate) struct Builder<'a> {
    pub(crate) rng: &'a mut Rng,
    pub(crate) bits: Bits,
    pub(crate) bytes: Vec<u8>,
    pub(crate) state: State,
    /// 66 was given.
    pub(crate) p66: bool,
    pub(crate) p67: bool,
    pub(crate) rex: u8,
    segment: Option<u8>,
    pub(crate) memory: Option<Memory>,
    /// ModRM, once there is one.
    pub(crate) modrm: u8,
}

impl<'a> Builder<'a> {
    /// Random registers, and RSP in the middle of the data window.
    pub(crate) fn new(rng: &'a mut Rng, bits: Bits) -> Builder<'a> {
        let mut gpr = [0; 16];
        gpr.iter_mut().for_each(|r| *r = rng.value());
        gpr[4] = bits.data() + DATA_LEN as u64 / 2 + rng.below(64);
        if bits != Bits::B64 {
            gpr[..8].iter_mut().for_each(|r| *r &= 0xffff_ffff);
            gpr[8..].fill(0);
        }
        // CF, PF, AF, ZF, SF, DF and OF; IF is always set, bit 1 too.
        let flags = rng.next() & 0xcd5 | 0x202;
        let state = State { gpr, rip: bits.entry(), flags, fx: Fx([0; 512]) };
        Builder {
            rng,
            bits,
            bytes: Vec::new(),
            state,
            p66: false,
            p67: false,
            rex: 0,
            segment: None,
            memory: None,
            modrm: 0,
        }
    }

    /// 0 for 16 bits, 1 for 32, 2 for 64.
    pub(crate) fn osize(&self) -> u8 {
        match self.bits {
            _ if self.rex & 8 != 0 => 2,
            Bits::B16 => u8::from(self.p66),
            _ => u8::from(!self.p66),
        }
    }

    /// As `osize`.
    pub(crate) fn asize(&self) -> u8 {
        match self.bits {
            Bits::B16 => u8::from(self.p67),
            Bits::B32 => u8::from(!self.p67),
            Bits::B64 => 2 - u8::from(self.p67),
        }
    }

    pub(crate) fn byte(&mut self, b: u8) {
        self.bytes.push(b);
        match b {
            0x66 => self.p66 = true,
            0x67 => self.p67 = true,
            _ => {}
        }
    }

    /// A segment prefix that can be honoured: ES, SS or DS; ignored in 64-bit code.
    pub(crate) fn segment(&mut self) {
        let b = self.rng.pick(&[0x26, 0x36, 0x3e]);
        self.bytes.push(b);
        self.segment = Some(b >> 3 & 3);
    }

    pub(crate) fn rex(&mut self, b: u8) {
        if self.bits == Bits::B64 {
            self.rex = b;
            self.bytes.push(b);
        }
    }

    /// `n` random bytes, as operands go.
    pub(crate) fn imm(&mut self, n: usize) -> u64 {
        let v = self.rng.value();
        self.bytes.extend_from_slice(&v.to_le_bytes()[..n]);
        v
    }

    /// ModRM with an opcode extension or a register, and what it asks for.
    pub(crate) fn modrm(&mut self, reg: Option<u8>) {
        let reg = reg.unwrap_or(self.rng.below(8) as u8);
        let memory = self.rng.one_in(2);
        let rm = self.rng.below(8) as u8;
        let mode = if memory { self.rng.below(3) as u8 } else { 3 };
        self.modrm = mode << 6 | reg << 3 | rm;
        self.bytes.push(self.modrm);
        if memory {
            let m = if self.asize() == 0 { self.memory16(mode, rm) } else { self.memory32(mode, rm) };
            self.memory = Some(m);
        }
    }

    fn memory16(&mut self, mode: u8, rm: u8) -> Memory {
        const WAYS: [(Option<u8>, Option<u8>); 8] = [
            (Some(3), Some(6)),
            (Some(3), Some(7)),
            (Some(5), Some(6)),
            (Some(5), Some(7)),
            (Some(6), None),
            (Some(7), None),
            (Some(5), None),
            (Some(3), None),
        ];
        let (mut base, index) = WAYS[usize::from(rm)];
        let mut size = usize::from(mode);
        if mode == 0 && rm == 6 {
            (base, size) = (None, 2);
        }
        let m = Memory { base, index, ..Memory::default() };
        self.displacement(m, size)
    }

    fn memory32(&mut self, mode: u8, rm: u8) -> Memory {
        let mut m = Memory::default();
        let mut base = rm;
        let mut size = [0, 1, 4][usize::from(mode)];
        if rm == 4 {
            let sib = self.rng.next() as u8;
            self.bytes.push(sib);
            base = sib & 7;
            let index = sib >> 3 & 7 | (self.rex & 2) << 2;
            if index != 4 {
                m.index = Some(index);
                m.scale = u32::from(sib >> 6);
            }
        }
        if base == 5 && mode == 0 {
            size = 4;
            m.rip_relative = rm == 5 && self.bits == Bits::B64;
        } else {
            m.base = Some(base | (self.rex & 1) << 3);
        }
        self.displacement(m, size)
    }

    fn displacement(&mut self, m: Memory, size: usize) -> Memory {
        let disp_at = self.bytes.len();
        let v = if self.rng.one_in(4) { self.rng.value() } else { self.rng.below(256).wrapping_sub(128) };
        self.bytes.extend_from_slice(&v.to_le_bytes()[..size]);
        let disp = match size {
            0 => 0,
            1 => i64::from(v as i8),
            2 => i64::from(v as i16),
            _ => i64::from(v as i32),
        };
        Memory { disp_at, disp_size: size, disp, ..m }
    }

    /// A place in the data window for an operand of `size` bytes: mostly anywhere, sometimes across the two pages,
    /// seldom across the end.
    pub(crate) fn target(&mut self, size: usize, align: u64) -> u64 {
        let len = DATA_LEN as u64;
        let size = size as u64;
        let at = match self.rng.below(32) {
            0 => len - self.rng.below(size + 1),
            1..=4 => len / 2 - self.rng.below(size + 1),
            _ => 512 + self.rng.below(len - 1024 - size),
        };
        at & !(align - 1)
    }

    /// Chooses registers and displacement so that the memory operand, if there is one, is at `at` in the data window.
    /// Call it when the encoding is complete. `None` if it cannot be done.
    pub(crate) fn place(&mut self, at: u64) -> Option<u64> {
        let Some(m) = self.memory else { return Some(at) };
        let mask = [0xffff, 0xffff_ffff, u64::MAX][usize::from(self.asize())];
        let extra = self.bits == Bits::B16 && self.segment == Some(0);
        let at = if extra { at.max(ES_SKEW) } else { at };
        let offset = self.bits.data() + at - if extra { ES_SKEW } else { 0 };
        let value = |s: &State, r: u8| s.gpr[usize::from(r)];
        let mut disp = None;
        match (m.base, m.index) {
            (None, None) => {
                let from = if m.rip_relative { CODE + ENTRY + self.bytes.len() as u64 } else { 0 };
                disp = Some(offset.wrapping_sub(from));
            }
            (Some(b), Some(x)) if b == x => {
                let times = 1 + (1 << m.scale);
                let need = offset.wrapping_sub(m.disp as u64) & mask;
                if !need.is_multiple_of(times) {
                    return None;
                }
                self.set(b, need / times, mask);
            }
            (Some(b), x) => {
                let index = x.map_or(0, |x| value(&self.state, x) << m.scale);
                let need = offset.wrapping_sub(m.disp as u64).wrapping_sub(index);
                self.set(b, need, mask);
            }
            (None, Some(x)) => {
                let small = self.rng.below(0x100_0000);
                self.set(x, small, mask);
                disp = Some(offset.wrapping_sub(small << m.scale));
            }
        }
        if let Some(v) = disp {
            self.bytes[m.disp_at..m.disp_at + m.disp_size].copy_from_slice(&v.to_le_bytes()[..m.disp_size]);
        }
        Some(at)
    }

    /// Sets a register, or as much of it as an address of this size uses.
    pub(crate) fn set(&mut self, r: u8, v: u64, mask: u64) {
        let slot = &mut self.state.gpr[usize::from(r)];
        *slot = *slot & !mask | v & mask;
        if self.bits != Bits::B64 {
            *slot &= 0xffff_ffff;
        }
    }

    /// The mask of the address size.
    pub(crate) fn address_mask(&self) -> u64 {
        [0xffff, 0xffff_ffff, u64::MAX][usize::from(self.asize())]
    }
}
