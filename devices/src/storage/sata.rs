//! What drives on a Serial ATA link know beyond ATA-6: ATA8-ACS (T13 1699D) and Serial ATA 2.6.
//!
//! Modelled: native command queuing (READ and WRITE FPDMA QUEUED) with its error log, general purpose logs by READ LOG
//! EXT, TRIM by DATA SET MANAGEMENT, and writes with forced unit access. Not modelled: queued commands without data,
//! streaming, priorities.
//!
//! A queue holds up to 32 commands. Each asks the controller for the memory of its tag as soon as it comes, and again
//! where that did not suffice; the disk works at all of them, and they end in any order. A command that fails takes all
//! others with it, and the drive refuses everything until the guest has read why, or resets it.

use emu::backend::DiskOp;
use emu::{DmaMem, IoVec};
use serde::{Deserialize, Serialize};

use super::ata::{IDNF, SECTOR, UNC};
use super::drive::{ABRT, DRDY, DSC, Drive, ERR, Phase, gather};

/// Commands in the queue.
pub(crate) const DEPTH: u8 = 32;
/// Sectors of ranges that one TRIM can have.
const MAX_TRIM_SECTORS: u16 = 8;
/// The log of what ended the queue.
const LOG_QUEUE_ERROR: u8 = 0x10;
/// Device register: forced unit access.
const FUA: u8 = 0x80;

/// How a drive is connected, and what it calls itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Make {
    /// Serial ATA.
    pub serial_link: bool,
    pub serial: String,
    pub revision: String,
    pub model: String,
    /// Rotations a minute; 1 for none at all, 0 for what is not told.
    pub rotation: u16,
}

impl Make {
    /// Drive `n` of an IDE controller.
    pub fn parallel(n: usize, packet: bool) -> Make {
        Make {
            serial_link: false,
            serial: format!("BRS{:05}", n + 1),
            revision: env!("CARGO_PKG_VERSION").to_owned(),
            model: if packet { "bhyve-rs CD-ROM" } else { "bhyve-rs HARDDISK" }.to_owned(),
            rotation: 0,
        }
    }
}

/// A queued command.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Queued {
    tag: u8,
    write: bool,
    /// What was written is on stable storage before the command ends.
    fua: bool,
    /// The next sector, and how many are left.
    lba: u64,
    left: u32,
    /// The disk works at the request of this tag, for so many sectors; 0 is a flush.
    request: Option<(u64, u32)>,
}

/// Why the queue ended: the tag, unless it was a command that is not queued, and the registers.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct QueueError {
    tag: Option<u8>,
    error: u8,
    lba: u64,
    count: u16,
}

/// Native command queuing.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct CommandQueue {
    commands: Vec<Queued>,
    /// What has ended and was not told.
    finished: u32,
    /// That a command failed was not told.
    failed: bool,
    /// Nothing but READ LOG EXT is taken.
    error: Option<QueueError>,
    /// Stretches that a TRIM has still to give up: sector and count.
    trim: Vec<(u64, u32)>,
}

impl CommandQueue {
    pub fn is_empty(&self) -> bool {
        self.commands.is_empty() && self.finished == 0 && !self.failed && self.error.is_none() && self.trim.is_empty()
    }

    /// Whether the disk works at a queued command.
    pub fn under_way(&self) -> bool {
        !self.commands.is_empty()
    }

    /// Gives up all commands. Why the last queue ended can still be read.
    pub fn forget(&mut self) {
        *self = CommandQueue { error: self.error.take(), ..CommandQueue::default() };
    }

    /// What there is to tell: the tags that have ended, and whether one has failed.
    pub fn take_news(&mut self) -> Option<(u32, bool)> {
        let news = (std::mem::take(&mut self.finished), std::mem::take(&mut self.failed));
        (news != (0, false)).then_some(news)
    }
}

impl Drive {
    pub fn sata_command(&mut self, command: u8) {
        match command {
            0x06 => self.data_set_management(),
            0x2f => self.read_log(),
            _ => self.fail(ABRT),
        }
    }

    /// Takes a queued command, or refuses one because of the queue. False: the command is none of the queue's business.
    pub fn queued_command(&mut self, command: u8) -> bool {
        if !self.make.serial_link || self.packet() {
            return false;
        }
        let queued = matches!(command, 0x60 | 0x61);
        let log = command == 0x2f && self.state.regs.lba[0].now == LOG_QUEUE_ERROR;
        if self.state.queue.error.is_some() && !log {
            self.state.intrq = false;
            self.fail(ABRT);
        } else if queued {
            self.enqueue(command == 0x61);
        } else if self.state.queue.under_way() {
            self.queue_failed(None, ABRT);
            self.state.queue.failed = false;
            self.fail(ABRT);
        } else {
            return false;
        }
        true
    }

    /// READ and WRITE FPDMA QUEUED.
    fn enqueue(&mut self, write: bool) {
        let r = self.state.regs;
        let tag = r.count.now >> 3;
        let left = if r.features.word() == 0 { 65536 } else { r.features.word().into() };
        let lba = self.address(true).unwrap_or(u64::MAX);
        let queue = &self.state.queue;
        let twice = queue.commands.iter().any(|c| c.tag == tag) || queue.finished >> tag & 1 != 0;
        let error = if twice || write && self.disk.as_ref().is_none_or(|d| d.read_only()) {
            ABRT
        } else if lba.saturating_add(left.into()) > self.sectors() {
            IDNF
        } else {
            let fua = write && (r.device & FUA != 0 || !self.ata().write_cache);
            self.state.queue.commands.push(Queued { tag, write, fua, lba, left, request: None });
            // Released: the drive takes the next command, and does not interrupt.
            self.state.regs.status = DRDY | DSC;
            self.state.regs.error = 0;
            self.state.phase = Phase::Idle;
            self.state.intrq = false;
            return;
        };
        self.queue_failed(Some((tag, lba, left)), error);
        self.state.queue.failed = false;
        self.fail(error);
    }

    /// Ends the queue. Who is told how, depends on when it happens.
    fn queue_failed(&mut self, command: Option<(u8, u64, u32)>, error: u8) {
        if self.state.queue.under_way() {
            self.cancel();
        }
        let (lba, count) = command.map_or((0, 0), |(_, lba, left)| (lba, left as u16));
        let queue = &mut self.state.queue;
        queue.commands.clear();
        queue.failed = true;
        queue.error = Some(QueueError { tag: command.map(|c| c.0), error, lba, count });
        self.state.regs.status = DRDY | DSC | ERR;
        self.state.regs.error = error;
    }

    /// The next queued command that wants memory, those of the tags `but` aside: its tag, and how many bytes.
    pub fn queue_wants(&self, but: u32) -> Option<(u8, u64)> {
        let c = self.state.queue.commands.iter().find(|c| c.request.is_none() && but >> c.tag & 1 == 0)?;
        Some((c.tag, u64::from(c.left) * SECTOR))
    }

    /// [`Drive::bus_master`] for the queued command of this tag.
    pub fn queue_bus_master(&mut self, tag: u8, parts: &[(u64, u32)], dma: &DmaMem) -> Option<u64> {
        let Some(n) = self.state.queue.commands.iter().position(|c| c.tag == tag) else { return Some(0) };
        let c = self.state.queue.commands[n].clone();
        let iov: IoVec = gather(parts, u64::from(c.left) * SECTOR, SECTOR, !c.write, dma)?;
        let moved = iov.len();
        if moved > 0 {
            let op = if c.write { DiskOp::Write(iov) } else { DiskOp::Read(iov) };
            self.queue_ask(n, c.lba * SECTOR, op, (moved / SECTOR) as u32);
        }
        Some(moved)
    }

    fn queue_ask(&mut self, n: usize, offset: u64, op: DiskOp, sectors: u32) {
        let request = self.ask(offset, op);
        self.state.queue.commands[n].request = Some((request, sectors));
    }

    /// The disk's answer to a request of the queue.
    pub fn queue_done(&mut self, request: u64, ok: bool) {
        let mine = |c: &Queued| c.request.is_some_and(|(at, _)| at == request);
        let Some(n) = self.state.queue.commands.iter().position(mine) else { return };
        let c = &mut self.state.queue.commands[n];
        let (_, sectors) = c.request.take().unwrap_or_default();
        if !ok {
            let (command, error) = ((c.tag, c.lba, c.left), if c.write { ABRT } else { UNC });
            return self.queue_failed(Some(command), error);
        }
        c.lba += u64::from(sectors);
        c.left = c.left.saturating_sub(sectors);
        if c.left > 0 {
            return;
        }
        if std::mem::take(&mut c.fua) {
            return self.queue_ask(n, 0, DiskOp::Flush, 0);
        }
        let queue = &mut self.state.queue;
        queue.finished |= 1 << queue.commands.remove(n).tag;
    }

    /// READ LOG EXT: the directory, and what ended the queue. Each has one page.
    fn read_log(&mut self) {
        let r = self.state.regs;
        if r.count.word() != 1 || r.lba[1].word() != 0 {
            return self.fail(ABRT);
        }
        let mut page = vec![0; SECTOR as usize];
        match r.lba[0].now {
            0 => (page[0], page[2 * usize::from(LOG_QUEUE_ERROR)]) = (1, 1),
            LOG_QUEUE_ERROR => {
                // Nothing went wrong: no tag.
                page[0] = 0x80;
                if let Some(e) = self.state.queue.error.take() {
                    let lba = e.lba.to_le_bytes();
                    page[0] = e.tag.unwrap_or(0x80);
                    (page[2], page[3], page[7]) = (DRDY | DSC | ERR, e.error, 0x40);
                    page[4..7].copy_from_slice(&lba[..3]);
                    page[8..11].copy_from_slice(&lba[3..6]);
                    page[12..14].copy_from_slice(&e.count.to_le_bytes());
                }
                page[511] = page.iter().fold(0u8, |a, b| a.wrapping_add(*b)).wrapping_neg();
            }
            _ => return self.fail(ABRT),
        }
        self.give(page);
    }

    /// DATA SET MANAGEMENT, of which there is TRIM.
    fn data_set_management(&mut self) {
        let r = self.state.regs;
        let sectors = r.count.word();
        if r.features.now != 1 || !(1..=MAX_TRIM_SECTORS).contains(&sectors) || self.read_only() {
            return self.fail(ABRT);
        }
        self.state.phase = Phase::BusMaster { to_memory: false, bytes: u64::from(sectors) * SECTOR };
    }

    fn read_only(&self) -> bool {
        self.disk.as_ref().is_none_or(|d| d.read_only())
    }

    /// A piece of TRIM's list came in, `len` bytes at the start of `parts`.
    pub fn trim_list(&mut self, len: u64, parts: &[(u64, u32)], dma: &DmaMem) {
        let Phase::BusMaster { bytes, .. } = self.state.phase else { return };
        let mut list = vec![0; len as usize];
        let mut at = 0;
        for (from, n) in parts {
            let n = (*n as usize).min(list.len() - at);
            dma.read(*from, &mut list[at..at + n]);
            at += n;
        }
        let size = self.sectors();
        for entry in list.chunks_exact(8) {
            let entry = u64::from_le_bytes(std::array::from_fn(|n| entry[n]));
            let (lba, count) = (entry & 0xffff_ffff_ffff, (entry >> 48) as u32);
            if lba + u64::from(count) > size {
                self.state.queue.trim.clear();
                return self.fail(IDNF);
            }
            if count > 0 {
                self.state.queue.trim.push((lba, count));
            }
        }
        match bytes - len {
            0 => self.trim_on(),
            bytes => self.state.phase = Phase::BusMaster { to_memory: false, bytes },
        }
    }

    /// Gives up the next stretch of a TRIM; the command ends when there is none.
    pub fn trim_on(&mut self) {
        match self.state.queue.trim.pop() {
            Some((lba, count)) => self.submit(lba * SECTOR, DiskOp::Discard(u64::from(count) * SECTOR)),
            None => self.finish(),
        }
    }

    /// What IDENTIFY DEVICE says of a disk on a serial link.
    pub fn sata_words(&self, w: &mut [u16; 256]) {
        serial_words(w);
        // Native command queuing.
        w[75] = u16::from(DEPTH) - 1;
        w[76] |= 0x0100;
        // General purpose logs and forced unit access.
        w[84] |= 0x0060;
        w[87] |= 0x0060;
        // TRIM.
        w[105] = MAX_TRIM_SECTORS;
        w[169] = 1;
        w[217] = self.make.rotation;
    }
}

/// What IDENTIFY says of any drive on a serial link: three speeds, Ultra DMA 6 for what that is worth, ATA8-ACS.
pub(crate) fn serial_words(w: &mut [u16; 256]) {
    w[76] = 0x000e;
    w[80] = 0x01f0;
    w[88] |= 0x0040;
    w[93] = 0;
    w[222] = 0x103f;
}

/// A name as it is given: what IDENTIFY has room for, in printable ASCII.
pub(crate) fn name(text: &str, most: usize) -> String {
    text.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(most).collect()
}
