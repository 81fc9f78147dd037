//! Queues of an NVMe controller, and what its commands look like: NVM Express 1.4, chapter 4.
//!
//! What lies in guest memory is fetched once. The memory of a command is named by PRP entries; each page of a list of
//! them leads on to a next one, of which there are never more than the longest transfer needs, wherever they point.

use std::sync::atomic::{Ordering, fence};

use emu::{DmaMem, IoVec};
use serde::{Deserialize, Serialize};

/// The one size of memory pages that is supported.
pub(crate) const PAGE: u64 = 4096;

/// Why a command failed, as completions have it: the code, and above it the type.
pub(crate) type Status = u16;

pub(crate) const INVALID_OPCODE: Status = 0x01;
pub(crate) const INVALID_FIELD: Status = 0x02;
pub(crate) const DATA_TRANSFER: Status = 0x04;
pub(crate) const INTERNAL: Status = 0x06;
pub(crate) const ABORT_REQUESTED: Status = 0x07;
pub(crate) const INVALID_NAMESPACE: Status = 0x0b;
pub(crate) const SEQUENCE: Status = 0x0c;
pub(crate) const PRP_OFFSET: Status = 0x13;
pub(crate) const WRITE_PROTECTED: Status = 0x20;
pub(crate) const LBA_RANGE: Status = 0x80;
pub(crate) const INVALID_CQ: Status = 0x100;
pub(crate) const INVALID_QUEUE: Status = 0x101;
pub(crate) const INVALID_QUEUE_SIZE: Status = 0x102;
pub(crate) const TOO_MANY_EVENTS: Status = 0x105;
pub(crate) const INVALID_VECTOR: Status = 0x108;
pub(crate) const INVALID_LOG: Status = 0x109;
pub(crate) const INVALID_DELETION: Status = 0x10c;
pub(crate) const NOT_SAVEABLE: Status = 0x10d;
pub(crate) const WRITE_FAULT: Status = 0x280;
pub(crate) const READ_ERROR: Status = 0x281;
/// The command would fail again.
const DO_NOT_RETRY: Status = 0x4000;

/// A submission queue.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Submission {
    pub base: u64,
    pub size: u32,
    pub head: u32,
    pub tail: u32,
    /// The completion queue.
    pub cq: u16,
    /// Its commands at which a disk works.
    pub running: u32,
    /// The command that deletes it, when it waits for these.
    pub deleted_by: Option<u16>,
}

impl Submission {
    pub fn new(base: u64, size: u32, cq: u16) -> Submission {
        Submission { base, size, head: 0, tail: 0, cq, running: 0, deleted_by: None }
    }

    /// Whether there is a command to be had.
    pub fn filled(&self) -> bool {
        self.head != self.tail && self.deleted_by.is_none()
    }

    /// Takes the next command.
    pub fn fetch(&mut self, dma: &DmaMem) -> Command {
        let bytes: [u8; 64] = dma.fetch(self.base.wrapping_add(64 * u64::from(self.head)));
        self.head = (self.head + 1) % self.size;
        Command(std::array::from_fn(|n| u32::from_le_bytes(std::array::from_fn(|k| bytes[4 * n + k]))))
    }
}

/// A completion queue.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Completion {
    pub base: u64,
    pub size: u32,
    pub head: u32,
    pub tail: u32,
    phase: bool,
    /// The interrupt, if it has one.
    pub vector: Option<u16>,
    /// Commands that were fetched and whose entries will go here. For these there is always room.
    pub promised: u32,
    /// There is something that no interrupt was sent for.
    pub news: bool,
}

impl Completion {
    pub fn new(base: u64, size: u32, vector: Option<u16>) -> Completion {
        Completion { base, size, head: 0, tail: 0, phase: true, vector, promised: 0, news: false }
    }

    /// Whether one more command can be promised an entry.
    pub fn has_room(&self) -> bool {
        (self.head + self.size - self.tail - 1) % self.size > self.promised
    }

    /// Writes an entry for a command of queue `sq`, whose head is now there.
    pub fn post(&mut self, sq: (u16, u32), cid: u16, result: Result<u32, Status>, dma: &DmaMem) {
        let status = match result {
            Ok(_) => 0,
            // The host's failures may pass.
            Err(status @ (WRITE_FAULT.. | INTERNAL)) => status,
            Err(status) => status | DO_NOT_RETRY,
        };
        let at = self.base.wrapping_add(16 * u64::from(self.tail));
        let first = [result.unwrap_or(0), 0, sq.1 | u32::from(sq.0) << 16];
        dma.write(at, first.map(u32::to_le_bytes).as_flattened());
        // A processor that sees the phase sees the rest.
        fence(Ordering::Release);
        dma.write_u32(at + 12, u32::from(cid) | u32::from(self.phase) << 16 | u32::from(status) << 17);
        self.tail = (self.tail + 1) % self.size;
        self.phase ^= self.tail == 0;
        self.news = true;
    }
}

/// A command: its sixteen double words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Command([u32; 16]);

impl Command {
    pub fn opcode(&self) -> u8 {
        self.0[0] as u8
    }

    pub fn cid(&self) -> u16 {
        (self.0[0] >> 16) as u16
    }

    /// Neither fused, nor with scatter gather lists.
    pub fn plain(&self) -> bool {
        self.0[0] & 0xc300 == 0
    }

    pub fn nsid(&self) -> u32 {
        self.0[1]
    }

    pub fn prp1(&self) -> u64 {
        self.wide(6)
    }

    pub fn prp2(&self) -> u64 {
        self.wide(8)
    }

    /// Double word `n`.
    pub fn dword(&self, n: usize) -> u32 {
        self.0[n]
    }

    /// Double words `n` and `n + 1`.
    pub fn wide(&self, n: usize) -> u64 {
        u64::from(self.0[n]) | u64::from(self.0[n + 1]) << 32
    }

    /// The pages of memory that hold `len` bytes.
    fn pages(&self, len: u64, dma: &DmaMem) -> Result<Vec<(u64, u64)>, Status> {
        let (first, mut list) = (self.prp1(), self.prp2());
        if first & 3 != 0 {
            return Err(PRP_OFFSET);
        }
        let in_first = len.min(PAGE - first % PAGE);
        let mut pages = vec![(first, in_first)];
        let mut left = len - in_first;
        if (1..=PAGE).contains(&left) {
            pages.push((list, left));
            return if list.is_multiple_of(PAGE) { Ok(pages) } else { Err(PRP_OFFSET) };
        }
        if left > 0 && list & 7 != 0 {
            return Err(PRP_OFFSET);
        }
        while left > 0 {
            let (room, needed) = ((PAGE - list % PAGE) / 8, left.div_ceil(PAGE));
            let mut bytes = [0; PAGE as usize];
            let bytes = &mut bytes[..8 * room.min(needed) as usize];
            dma.read(list, bytes);
            let mut entries = bytes.chunks_exact(8).map(|e| u64::from_le_bytes(std::array::from_fn(|n| e[n])));
            // When they are not enough, the last one leads to the next page of the list.
            for entry in entries.by_ref().take(if needed > room { room - 1 } else { needed } as usize) {
                let n = left.min(PAGE);
                if !entry.is_multiple_of(PAGE) {
                    return Err(PRP_OFFSET);
                }
                pages.push((entry, n));
                left -= n;
            }
            if let Some(next) = entries.next() {
                if !next.is_multiple_of(PAGE) {
                    return Err(PRP_OFFSET);
                }
                list = next;
            }
        }
        Ok(pages)
    }

    /// The same, validated.
    pub fn memory(&self, len: u64, to_memory: bool, dma: &DmaMem) -> Result<IoVec, Status> {
        reach(&self.pages(len, dma)?, to_memory, dma)
    }

    /// Puts data into the command's memory.
    pub fn give(&self, data: &[u8], dma: &DmaMem) -> Result<(), Status> {
        let pages = self.pages(data.len() as u64, dma)?;
        reach(&pages, true, dma)?;
        let mut rest = data;
        for (to, n) in pages {
            let (now, later) = rest.split_at(n as usize);
            dma.write(to, now);
            rest = later;
        }
        Ok(())
    }

    /// Takes data out of it.
    pub fn take(&self, len: usize, dma: &DmaMem) -> Result<Vec<u8>, Status> {
        let pages = self.pages(len as u64, dma)?;
        reach(&pages, false, dma)?;
        let mut data = vec![0; len];
        let mut rest = &mut data[..];
        for (from, n) in pages {
            let (now, later) = rest.split_at_mut(n as usize);
            dma.read(from, now);
            rest = later;
        }
        Ok(data)
    }
}

fn reach(pages: &[(u64, u64)], to_memory: bool, dma: &DmaMem) -> Result<IoVec, Status> {
    let mut iov = IoVec::default();
    let all = pages.iter().all(|(at, n)| dma.gather(&mut iov, *at, *n, to_memory));
    if all { Ok(iov) } else { Err(DATA_TRANSFER) }
}

/// Shadow doorbells, and the values at which the guest is to ring the real ones.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Shadows {
    doorbells: u64,
    events: u64,
}

impl Shadows {
    pub fn new(doorbells: u64, events: u64) -> Shadows {
        Shadows { doorbells, events }
    }

    /// The tail of submission queue `q`.
    pub fn tail(&self, q: usize, dma: &DmaMem) -> u32 {
        dma.read_u32(self.doorbells + 8 * q as u64) & 0xffff
    }

    /// The head of completion queue `q`.
    pub fn head(&self, q: usize, dma: &DmaMem) -> u32 {
        dma.read_u32(self.doorbells + 8 * q as u64 + 4) & 0xffff
    }

    /// Asks for a ring as soon as the tail is not `tail`. What came before that was seen must be looked for again.
    pub fn want_tail(&self, q: usize, tail: u32, dma: &DmaMem) {
        dma.write_u32(self.events + 8 * q as u64, tail);
        fence(Ordering::SeqCst);
    }

    /// The same for a head.
    pub fn want_head(&self, q: usize, head: u32, dma: &DmaMem) {
        dma.write_u32(self.events + 8 * q as u64 + 4, head);
        fence(Ordering::SeqCst);
    }
}
