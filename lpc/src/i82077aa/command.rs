//! The 82077AA's commands, and one that is under way.

use serde::{Deserialize, Serialize};

use super::{ST2_SH, ST2_SN};

/// Bits of the first byte of a command: multi-track, MFM, skip; for RELATIVE SEEK inwards; for LOCK to do it.
pub(super) const MT: u8 = 0x80;
pub(super) const MFM: u8 = 0x40;
pub(super) const SK: u8 = 0x20;
pub(super) const INWARDS: u8 = 0x40;
pub(super) const LOCK: u8 = 0x80;
/// VERIFY, second byte: the last byte counts the sectors.
pub(super) const EC: u8 = 0x80;

/// Commands that move the medium past the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Op {
    ReadTrack,
    Write,
    Read,
    WriteDeleted,
    ReadId,
    ReadDeleted,
    Format,
    Verify,
    ScanEqual,
    ScanLow,
    ScanHigh,
}

impl Op {
    pub(super) fn writes(self) -> bool {
        matches!(self, Op::Write | Op::WriteDeleted | Op::Format)
    }

    pub(super) fn scans(self) -> bool {
        matches!(self, Op::ScanEqual | Op::ScanLow | Op::ScanHigh)
    }

    /// Whether the processor's bytes go to the controller.
    pub(super) fn takes_bytes(self) -> bool {
        self.writes() || self.scans()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Transfer(Op),
    Specify,
    SenseDrive,
    Recalibrate,
    SenseInterrupt,
    DumpReg,
    Seek,
    Version,
    Perpendicular,
    Configure,
    Lock,
    RelativeSeek,
    Invalid,
}

impl Command {
    /// What the first byte says, and how many follow it. Of the transfers' option bits those that a command does not
    /// have are ignored: Linux's READ ID sets all of them.
    pub(super) fn decode(byte: u8) -> (Command, usize) {
        match byte {
            0x03 => (Command::Specify, 2),
            0x04 => (Command::SenseDrive, 1),
            0x07 => (Command::Recalibrate, 1),
            0x08 => (Command::SenseInterrupt, 0),
            0x0e => (Command::DumpReg, 0),
            0x0f => (Command::Seek, 2),
            0x10 => (Command::Version, 0),
            0x12 => (Command::Perpendicular, 1),
            0x13 => (Command::Configure, 3),
            0x14 | 0x94 => (Command::Lock, 0),
            0x8f | 0xcf => (Command::RelativeSeek, 2),
            _ => match byte & 0x1f {
                0x02 => (Command::Transfer(Op::ReadTrack), 8),
                0x05 => (Command::Transfer(Op::Write), 8),
                0x06 => (Command::Transfer(Op::Read), 8),
                0x09 => (Command::Transfer(Op::WriteDeleted), 8),
                0x0a => (Command::Transfer(Op::ReadId), 1),
                0x0c => (Command::Transfer(Op::ReadDeleted), 8),
                0x0d => (Command::Transfer(Op::Format), 5),
                0x11 => (Command::Transfer(Op::ScanEqual), 8),
                0x16 => (Command::Transfer(Op::Verify), 8),
                0x19 => (Command::Transfer(Op::ScanLow), 8),
                0x1d => (Command::Transfer(Op::ScanHigh), 8),
                _ => (Command::Invalid, 0),
            },
        }
    }
}

/// What a command under way waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Stage {
    /// The head and the first sector.
    Positioning,
    /// The image.
    Disk,
    /// The sectors to pass.
    Passing,
    /// The processor, to move bytes by programmed I/O.
    Host,
}

/// A command in its execution phase.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Transfer {
    pub(super) op: Op,
    pub(super) stage: Stage,
    pub(super) unit: u8,
    /// The head that is used.
    pub(super) side: u8,
    pub(super) mt: bool,
    pub(super) mfm: bool,
    pub(super) sk: bool,
    /// The sector that is looked for: cylinder, head, number, size.
    pub(super) c: u8,
    pub(super) h: u8,
    pub(super) r: u8,
    pub(super) n: u8,
    /// The last sector of a track; for FORMAT TRACK how many.
    pub(super) eot: u8,
    /// From which sector to the next, for the SCAN commands; what FORMAT TRACK fills sectors with.
    pub(super) last: u8,
    /// For VERIFY, sectors to go if they are counted.
    pub(super) left: Option<u8>,
    /// The last sector is done.
    pub(super) ended: bool,
    /// Terminal count came.
    pub(super) tc: bool,
    pub(super) st2: u8,
    /// Whole sectors from or for the image, or FORMAT TRACK's identifiers; how far we are.
    pub(super) data: Vec<u8>,
    pub(super) at: usize,
    /// What the processor has given of a sector to compare.
    pub(super) host: Vec<u8>,
    /// Bytes until the next interrupt by programmed I/O.
    pub(super) service: u8,
}

impl Transfer {
    pub(super) fn new(op: Op, b: &[u8]) -> Transfer {
        let arg = |n: usize| b.get(n).copied().unwrap_or_default();
        // The size of FORMAT TRACK's sectors comes first.
        let (n, eot, last) = if op == Op::Format { (arg(2), arg(3), arg(5)) } else { (arg(5), arg(6), arg(8)) };
        Transfer {
            op,
            stage: Stage::Positioning,
            unit: arg(1) & 3,
            side: arg(1) >> 2 & 1,
            mt: b[0] & MT != 0,
            mfm: b[0] & MFM != 0,
            sk: b[0] & SK != 0 && op != Op::ReadTrack,
            c: arg(2),
            h: arg(3),
            r: if op == Op::ReadTrack { 1 } else { arg(4) },
            n,
            eot,
            last,
            left: (op == Op::Verify && arg(1) & EC != 0).then_some(last),
            ended: false,
            tc: false,
            st2: 0,
            data: Vec::new(),
            at: 0,
            host: Vec::new(),
            service: 0,
        }
    }

    pub(super) fn sector_bytes(&self) -> usize {
        128 << self.n.min(7)
    }

    /// Goes on to the next sector as the table of result bytes has it.
    pub(super) fn next(&mut self) {
        let step = if self.op.scans() && self.last == 2 { 2 } else { 1 };
        let past = self.r >= self.eot.saturating_sub(step - 1);
        if self.r > self.eot || !past {
            self.r = self.r.wrapping_add(step);
            return;
        }
        self.r = 1;
        if self.mt {
            self.h ^= 1;
        }
        if self.mt && self.side == 0 {
            self.side = 1;
        } else {
            self.c = self.c.wrapping_add(1);
            self.ended = true;
        }
    }

    /// Compares a sector with the processor's, as numbers of that many digits in which FF is any digit. Gives what
    /// status register 2 says and whether that ends the command.
    pub(super) fn compare(&self, disk: &[u8], host: &[u8]) -> (u8, bool) {
        let differ = disk.iter().zip(host).find(|(d, h)| d != h && **d != 0xff && **h != 0xff);
        match differ {
            None => (ST2_SH, true),
            Some((d, h)) if self.op == Op::ScanLow && d < h || self.op == Op::ScanHigh && d > h => (0, true),
            Some(_) => (ST2_SN, false),
        }
    }
}
