//! The bus master of one IDE channel.
//!
//! Programming Interface for Bus Master IDE Controller, revision 1.0, and the 82371SB and 82371AB datasheets: a command
//! register, a status register, and a pointer to a table of physical region descriptors in memory. Each descriptor is
//! read once, when the engine gets there. The table lies in one 64 KiB piece of memory, where its address counter wraps.
//! A region is to lie in one as well, but this one's counter has 32 bits: OVMF makes regions that cross the boundary.

use emu::DmaMem;
use serde::{Deserialize, Serialize};

/// The registers of a channel, by their offset.
const BMICX: u64 = 0;
const BMISX: u64 = 2;
const BMIDTPX: u64 = 4;

const START: u8 = 0x01;
const TO_MEMORY: u8 = 0x08;

const ACTIVE: u8 = 0x01;
const ERROR: u8 = 0x02;
const INTERRUPT: u8 = 0x04;
/// The drives' DMA capable bits, which only software reads and writes.
const DRIVES: u8 = 0x60;

/// Descriptors in 64 KiB. One that is read after all of them is the first once more.
const MAX_ENTRIES: u32 = 8192;

/// A bus master.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct BusMaster {
    command: u8,
    status: u8,
    table: u32,
    /// Where the next descriptor lies.
    next: u32,
    /// Descriptors read since the start.
    entries: u32,
    /// What is left of the present region.
    address: u32,
    left: u32,
    /// It is the table's last.
    last: bool,
}

/// What a write asks of the channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    Unchanged,
    Started,
    Stopped,
}

impl BusMaster {
    pub fn read(&self, offset: u64) -> u8 {
        match offset {
            BMICX => self.command,
            BMISX => self.status,
            BMIDTPX..8 => self.table.to_le_bytes()[(offset - BMIDTPX) as usize],
            _ => 0,
        }
    }

    pub fn write(&mut self, offset: u64, value: u8) -> Engine {
        match offset {
            BMICX => {
                let old = std::mem::replace(&mut self.command, value & (START | TO_MEMORY));
                match (old & START != 0, value & START != 0) {
                    (false, true) => {
                        self.status |= ACTIVE;
                        (self.next, self.entries, self.left, self.last) = (self.table, 0, 0, false);
                        return Engine::Started;
                    }
                    (true, false) => {
                        self.status &= !ACTIVE;
                        return Engine::Stopped;
                    }
                    _ => {}
                }
            }
            BMISX => {
                self.status &= !(value & (ERROR | INTERRUPT));
                self.status = self.status & !DRIVES | value & DRIVES;
            }
            BMIDTPX..8 => {
                let mut bytes = self.table.to_le_bytes();
                bytes[(offset - BMIDTPX) as usize] = value;
                self.table = u32::from_le_bytes(bytes) & !3;
            }
            _ => {}
        }
        Engine::Unchanged
    }

    /// Whether it moves data in this direction.
    pub fn ready(&self, to_memory: bool) -> bool {
        self.status & ACTIVE != 0 && (self.command & TO_MEMORY != 0) == to_memory
    }

    /// The drive's interrupt came in.
    pub fn interrupt(&mut self) {
        self.status |= INTERRUPT;
    }

    /// Memory did not answer.
    pub fn fault(&mut self) {
        self.status = self.status & !ACTIVE | ERROR;
    }

    /// A piece was moved. The engine is done when the table is; one that is longer than what the drive had leaves it
    /// active until software stops it.
    pub fn moved(&mut self) {
        if self.last && self.left == 0 {
            self.status &= !ACTIVE;
        }
    }

    /// The next `want` bytes of memory by the table, or as many as it has. `None` if it does not end within 64 KiB.
    pub fn take(&mut self, mut want: u64, dma: &DmaMem) -> Option<Vec<(u64, u32)>> {
        let mut parts = Vec::new();
        while want > 0 {
            if self.left == 0 {
                if self.last {
                    break;
                }
                if self.entries == MAX_ENTRIES {
                    return None;
                }
                let d: [u8; 8] = dma.fetch(u64::from(self.next));
                self.next = self.next & 0xffff_0000 | self.next.wrapping_add(8) & 0xffff;
                self.entries += 1;
                self.address = u32::from_le_bytes([d[0] & 0xfe, d[1], d[2], d[3]]);
                let count = u16::from_le_bytes([d[4] & 0xfe, d[5]]);
                self.left = if count == 0 { 0x1_0000 } else { count.into() };
                self.last = d[7] & 0x80 != 0;
            }
            let run = u64::from(self.left).min(want) as u32;
            parts.push((self.address.into(), run));
            self.address = self.address.wrapping_add(run);
            self.left -= run;
            want -= u64::from(run);
        }
        Some(parts)
    }
}
