//! Guest programs of the suite, in 16-bit code. Each instruction is put down once and is there twice: as bytes for back
//! ends that have a processor, and as an [`Op`] for the one that only plays a script.

use std::collections::BTreeMap;

/// What an instruction of a guest program does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// MOV r16, imm16.
    Mov(usize, u16),
    /// MOV DS, AX.
    SetDs,
    /// MOV AL or AX, from DS:offset.
    Load(u16, u8),
    /// MOV to DS:offset, AL or AX.
    Store(u16, u8),
    /// INC byte at DS:offset.
    Inc(u16),
    /// IN of 1, 2 or 4 bytes from DX.
    In(u8),
    /// OUT to DX.
    Out(u8),
    /// REP INSB.
    RepIn,
    /// REP OUTSB.
    RepOut,
    /// CLI or STI.
    If(bool),
    /// HLT.
    Hlt,
    /// JMP to this address.
    Jump(u16),
    /// IRET.
    Iret,
}

pub(crate) const AX: usize = 0;
pub(crate) const CX: usize = 1;
pub(crate) const DX: usize = 2;
pub(crate) const SP: usize = 4;
pub(crate) const SI: usize = 6;
pub(crate) const DI: usize = 7;

/// Programs in guest memory.
#[derive(Clone, Default)]
pub(crate) struct Listing {
    /// Where the next instruction goes, from physical address 0.
    at: u32,
    /// Bytes by address.
    pub(crate) code: Vec<(u32, Vec<u8>)>,
    /// Instructions and their lengths by address.
    pub(crate) ops: BTreeMap<u32, (Op, u8)>,
}

impl Listing {
    /// Goes on at `at`.
    pub(crate) fn org(&mut self, at: u32) -> &mut Listing {
        self.at = at;
        self
    }

    /// The address of the next instruction, in segment 0.
    pub(crate) fn here(&self) -> u16 {
        self.at as u16
    }

    pub(crate) fn op(&mut self, op: Op) -> &mut Listing {
        let [low, high] = match op {
            Op::Mov(_, n) | Op::Load(n, _) | Op::Store(n, _) | Op::Inc(n) => n.to_le_bytes(),
            _ => [0; 2],
        };
        let bytes = match op {
            Op::Mov(r, _) => vec![0xb8 + r as u8, low, high],
            Op::SetDs => vec![0x8e, 0xd8],
            Op::Load(_, width) => vec![0xa0 + (width - 1), low, high],
            Op::Store(_, width) => vec![0xa2 + (width - 1), low, high],
            Op::Inc(_) => vec![0xfe, 0x06, low, high],
            Op::In(1) => vec![0xec],
            Op::In(2) => vec![0xed],
            Op::In(_) => vec![0x66, 0xed],
            Op::Out(1) => vec![0xee],
            Op::Out(2) => vec![0xef],
            Op::Out(_) => vec![0x66, 0xef],
            Op::RepIn => vec![0xf3, 0x6c],
            Op::RepOut => vec![0xf3, 0x6e],
            Op::If(on) => vec![0xfa + u8::from(on)],
            Op::Hlt => vec![0xf4],
            Op::Jump(to) => {
                let distance = i32::from(to) - (self.at as u16 as i32 + 2);
                vec![0xeb, i8::try_from(distance).expect("a short jump") as u8]
            }
            Op::Iret => vec![0xcf],
        };
        self.ops.insert(self.at, (op, bytes.len() as u8));
        let len = bytes.len() as u32;
        self.code.push((self.at, bytes));
        self.at += len;
        self
    }

    pub(crate) fn mov(&mut self, reg: usize, value: u16) -> &mut Listing {
        self.op(Op::Mov(reg, value))
    }

    /// Data segment `paragraph`; destroys AX.
    pub(crate) fn ds(&mut self, paragraph: u16) -> &mut Listing {
        self.mov(AX, paragraph).op(Op::SetDs)
    }

    /// OUT of a byte; destroys AX and DX.
    pub(crate) fn out(&mut self, port: u16, value: u8) -> &mut Listing {
        self.mov(DX, port).mov(AX, u16::from(value)).op(Op::Out(1))
    }

    /// STI, then HLT for ever.
    pub(crate) fn wait(&mut self) -> &mut Listing {
        let again = self.op(Op::If(true)).here();
        self.op(Op::Hlt).op(Op::Jump(again))
    }
}
