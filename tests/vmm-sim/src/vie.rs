//! How the kernel decodes the instruction of an INST_EMUL exit: the forms that it knows, and not in real mode when they
//! have a ModRM byte or an address.
//!
//! Lengths of other instructions are needed for port and MSR exits only, whose length is prefixes and opcode.

use crate::regs::{LONG, REAL};

/// Bytes of a vie.
pub(crate) const SIZE: usize = 64;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Prefixes {
    count: usize,
    operand: bool,
    address: bool,
    segment: bool,
    rex: u8,
    rep: bool,
    repn: bool,
}

fn prefixes(bytes: &[u8], long: bool) -> Prefixes {
    let mut p = Prefixes::default();
    for b in bytes {
        match b {
            0x66 => p.operand = true,
            0x67 => p.address = true,
            0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 => p.segment = true,
            0xf3 => p.rep = true,
            0xf2 => p.repn = true,
            0xf0 => {}
            0x40..=0x4f if long => {
                p.rex = *b;
                p.count += 1;
                break;
            }
            _ => break,
        }
        p.count += 1;
    }
    p
}

/// Bytes of IN, OUT, INS, OUTS, RDMSR or WRMSR.
pub(crate) fn short_length(bytes: &[u8], mode: i32) -> u32 {
    let p = prefixes(bytes, mode == LONG);
    let op = bytes.get(p.count).copied().unwrap_or(0);
    let len = match op {
        0xe4..=0xe7 | 0x0f => 2,
        _ => 1,
    };
    (p.count + len) as u32
}

/// What the kernel says of INS and OUTS.
pub(crate) struct StringIo {
    pub(crate) rep: bool,
    /// Bytes of an address.
    pub(crate) address: i32,
    /// The number of the segment register of a prefix.
    pub(crate) segment: Option<i32>,
}

pub(crate) fn string(bytes: &[u8], mode: i32, d32: bool) -> StringIo {
    let p = prefixes(bytes, mode == LONG);
    let address = match (mode == LONG, d32 && mode != REAL, p.address) {
        (true, _, false) => 8,
        (true, _, true) | (false, true, false) | (false, false, true) => 4,
        _ => 2,
    };
    let segment = bytes[..p.count].iter().rev().find_map(|b| match b {
        0x26 => Some(22),
        0x2e => Some(23),
        0x36 => Some(24),
        0x3e => Some(25),
        0x64 => Some(26),
        0x65 => Some(27),
        _ => None,
    });
    StringIo { rep: p.rep || p.repn, address, segment }
}

/// Whether the kernel knows an opcode: one-byte, or two-byte behind 0F. Gives the size of its immediate: 0, 1, or 4 for
/// one of the operand's size up to 4.
fn known(op: u8, two: bool, reg: u8) -> Option<u8> {
    if two {
        return match op {
            0xb6 | 0xb7 | 0xbe | 0xae => Some(0),
            0xba if reg == 4 => Some(1),
            _ => None,
        };
    }
    match op {
        0x88..=0x8b | 0x21 | 0x23 | 0x09 | 0x0b | 0x03 | 0x2b | 0x39 | 0x3b => Some(0),
        0xc6 if reg == 0 => Some(1),
        0xc7 if reg == 0 => Some(4),
        0x80 | 0x83 if matches!(reg, 1 | 4 | 7) => Some(1),
        0x81 if matches!(reg, 1 | 4 | 7) => Some(4),
        0xf6 if reg == 0 => Some(1),
        0xf7 if reg == 0 => Some(4),
        0xff if reg == 6 => Some(0),
        0x8f if reg == 0 => Some(0),
        _ => None,
    }
}

/// The length of an instruction, if the kernel decodes it.
pub(crate) fn decode(bytes: &[u8], mode: i32, d32: bool) -> Option<usize> {
    let long = mode == LONG;
    let p = prefixes(bytes, long);
    let mut at = p.count;
    let mut op = *bytes.get(at)?;
    at += 1;
    let wide_address = if long { true } else { d32 != p.address };
    match op {
        // MOVS and STOS have no ModRM byte.
        0xa4 | 0xa5 | 0xaa | 0xab => return Some(at),
        0xa1 | 0xa3 if mode == REAL => return None,
        0xa1 | 0xa3 => {
            let offset = if long && !p.address {
                8
            } else if wide_address {
                4
            } else {
                2
            };
            return (bytes.len() >= at + offset).then_some(at + offset);
        }
        _ => {}
    }
    if mode == REAL {
        return None;
    }
    let two = op == 0x0f;
    if two {
        op = *bytes.get(at)?;
        at += 1;
    }
    let modrm = *bytes.get(at)?;
    at += 1;
    let (md, reg, rm) = (modrm >> 6, modrm >> 3 & 7, modrm & 7);
    let imm = known(op, two, reg)?;
    // The kernel knows no 16-bit addresses.
    if md == 3 || !wide_address {
        return None;
    }
    if rm == 4 {
        let sib = *bytes.get(at)?;
        at += 1;
        if md == 0 && sib & 7 == 5 {
            at += 4;
        }
    } else if md == 0 && rm == 5 {
        at += 4;
    }
    at += [0, 1, 4, 0][usize::from(md)];
    let operand16 = if long { p.operand && p.rex & 8 == 0 } else { d32 == p.operand };
    at += match imm {
        4 if operand16 => 2,
        n => usize::from(n),
    };
    (at <= bytes.len()).then_some(at)
}

/// The general register that MOV and MOVZX load from memory.
pub(crate) fn loads(bytes: &[u8], long: bool) -> Option<u8> {
    let p = prefixes(bytes, long);
    let (op, modrm) = match bytes[p.count..] {
        [0x0f, op @ (0xb6 | 0xb7), modrm, ..] => (op, modrm),
        [op @ (0x8a | 0x8b), modrm, ..] => (op, modrm),
        _ => return None,
    };
    let reg = modrm >> 3 & 7 | (p.rex & 4) << 1;
    // AH, CH, DH and BH.
    Some(if op == 0x8a && p.rex == 0 { reg & 3 } else { reg })
}

/// The vie of an exit: the bytes, how many the kernel decoded, and fields with numbers of its own.
pub(crate) fn image(bytes: &[u8], decoded: Option<usize>, last_register: i32) -> [u8; SIZE] {
    // The numbering of what was decoded is the kernel's and differs by build: here it means nothing.
    let mut vie = [0xc3; SIZE];
    vie[..15].fill(0);
    vie[..bytes.len()].copy_from_slice(bytes);
    vie[15] = bytes.len() as u8;
    vie[16] = decoded.unwrap_or(0) as u8;
    for at in [28, 32, 36] {
        vie[at..at + 4].copy_from_slice(&last_register.to_le_bytes());
    }
    vie[56] = u8::from(decoded.is_some());
    vie
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::regs::PROTECTED;

    #[test]
    fn lengths_are_those_of_the_instructions() {
        for (bytes, mode, d32, len) in [
            (&[0x89, 0x05, 1, 2, 3, 4, 0x90][..], LONG, false, Some(6)),
            (&[0x8b, 0x40, 0x10, 0x90], PROTECTED, true, Some(3)),
            (&[0x8b, 0x04, 0x25, 0, 0, 0, 1, 0x90], LONG, false, Some(7)),
            (&[0x66, 0xc7, 0x00, 1, 2, 0x90], PROTECTED, true, Some(5)),
            (&[0xc7, 0x80, 0, 0, 0, 0, 1, 2, 3, 4], PROTECTED, true, Some(10)),
            (&[0x48, 0xa3, 0, 0, 0, 0, 0, 0, 0, 0], LONG, false, Some(10)),
            (&[0x0f, 0xb6, 0x02, 0x90], LONG, false, Some(3)),
            (&[0xf3, 0xa4, 0x90], REAL, false, Some(2)),
            (&[0x8a, 0x07, 0x90], REAL, false, None),
            (&[0xa1, 0x00, 0x00], REAL, false, None),
            (&[0x87, 0x00, 0x90], PROTECTED, true, None),
        ] {
            assert_eq!(decode(bytes, mode, d32), len, "{bytes:x?}");
        }
        assert_eq!(short_length(&[0x66, 0xef], PROTECTED), 2);
        assert_eq!(short_length(&[0xec], REAL), 1);
        assert_eq!(short_length(&[0xe6, 0x80], REAL), 2);
    }
}
