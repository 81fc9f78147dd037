//! A drive on an IDE cable or a Serial ATA link: its registers, its interrupt, and the protocols by which data move.
//!
//! ATA/ATAPI-6 (T13 1410D), chapters 5 to 9. A drive is always in one [`Phase`], from which the BSY and DRQ bits
//! follow. What a command means is the business of the command sets (`ata`, `atapi`, and `sata` for what came with the
//! serial link); they start a phase and hear of its end. A host adapter of Serial ATA moves the same registers in
//! frames.
//!
//! A command that needs no medium is done when the register write returns. One that does asks the disk, and the drive
//! is busy until the answer comes.

use emu::backend::{Completion, DiskOp, DiskRequest};
use emu::{DiskPort, DmaMem, IoVec};
use serde::{Deserialize, Serialize};

use super::ata::{self, Ata};
use super::atapi::Atapi;
use super::sata::{CommandQueue, Make};

pub(crate) const BSY: u8 = 0x80;
pub(crate) const DRDY: u8 = 0x40;
/// Seek complete; packet devices have SERV in its place, which overlapped commands would use.
pub(crate) const DSC: u8 = 0x10;
pub(crate) const DRQ: u8 = 0x08;
pub(crate) const ERR: u8 = 0x01;

/// Command aborted.
pub(crate) const ABRT: u8 = 0x04;

/// The device register's bits that always read as ones, and the one that selects device 1.
const DEVICE_ONES: u8 = 0xa0;
pub(crate) const DEV: u8 = 0x10;

/// The command block registers, by their offset.
pub(crate) mod reg {
    pub const DATA: u64 = 0;
    /// Features when written.
    pub const ERROR: u64 = 1;
    pub const COUNT: u64 = 2;
    pub const LBA_LOW: u64 = 3;
    pub const LBA_HIGH: u64 = 5;
    pub const DEVICE: u64 = 6;
    /// Command when written.
    pub const STATUS: u64 = 7;
}

/// A register of two bytes, which 48-bit commands need: the last byte written and the one before.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Deep {
    pub now: u8,
    pub before: u8,
}

impl Deep {
    fn push(&mut self, value: u8) {
        *self = Deep { now: value, before: self.now };
    }

    /// Both bytes.
    pub fn word(self) -> u16 {
        u16::from_le_bytes([self.now, self.before])
    }

    fn get(self, before: bool) -> u8 {
        if before { self.before } else { self.now }
    }
}

/// The registers of a drive.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Registers {
    pub features: Deep,
    pub error: u8,
    /// Sector count; for packet commands the interrupt reason.
    pub count: Deep,
    /// LBA low, mid and high; sector, cylinder low and high; of packet commands the last two are the byte count.
    pub lba: [Deep; 3],
    pub device: u8,
    /// Without BSY and DRQ, which follow from the phase.
    pub status: u8,
}

impl Registers {
    /// What tells the two kinds of drives apart after a reset.
    pub fn sign(&mut self, packet: bool) {
        let (mid, high) = if packet { (0x14, 0xeb) } else { (0, 0) };
        self.set_count(1);
        self.lba = [1, mid, high].map(|now| Deep { now, before: 0 });
        self.device &= DEV;
    }

    pub fn set_count(&mut self, count: u8) {
        self.count = Deep { now: count, before: 0 };
    }
}

/// Bytes on their way through the data port.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct Buffer {
    #[serde(with = "hex")]
    pub bytes: Vec<u8>,
    /// The next byte.
    pub at: usize,
    /// Where the block ends that DRQ announces.
    pub end: usize,
}

impl Buffer {
    /// Bytes that are not yet announced.
    pub fn rest(&self) -> usize {
        self.bytes.len() - self.end
    }
}

/// What a drive is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    /// Waiting for a command.
    #[default]
    Idle,
    /// The guest holds SRST.
    Reset,
    /// The guest reads a block of the buffer from the data port.
    HostReads,
    /// The guest writes one.
    HostWrites,
    /// It asks the controller for DMA: so many bytes, to memory or from it.
    BusMaster { to_memory: bool, bytes: u64 },
    /// The disk is working, at the request of this tag.
    Disk(u64, Job),
}

/// What a disk is asked for, without what only it needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Job {
    /// To move so many bytes from or to guest memory.
    Dma(u64),
    /// To move so many bytes from or to the buffer.
    Pio(u64),
    /// To put on stable storage what was written.
    Flush,
}

/// All of a drive that is saved.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct DriveState {
    pub regs: Registers,
    /// The drive wants attention; whether the wire shows it is the channel's business.
    pub intrq: bool,
    pub phase: Phase,
    pub buffer: Buffer,
    /// Requests so far, which number them.
    requests: u64,
    /// Queued commands, which only drives on a serial link have.
    #[serde(default, skip_serializing_if = "CommandQueue::is_empty")]
    pub queue: CommandQueue,
    pub set: CommandSet,
}

/// What the command set remembers.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) enum CommandSet {
    Ata(Ata),
    Atapi(Atapi),
}

impl Default for CommandSet {
    fn default() -> CommandSet {
        CommandSet::Ata(Ata::default())
    }
}

/// A drive.
pub(crate) struct Drive {
    /// A CD-ROM drive has none while its tray is empty.
    pub disk: Option<DiskPort>,
    /// Which of the controller's drives; the low bits of its tags.
    index: u64,
    /// How it is connected, and its names.
    pub make: Make,
    pub state: DriveState,
}

/// The number of the drive that a request's tag belongs to.
pub(crate) fn drive_of_tag(tag: u64) -> usize {
    (tag & (MOST_DRIVES - 1)) as usize
}

/// Drives that a controller can have.
pub(crate) const MOST_DRIVES: u64 = 32;

impl Drive {
    /// Drive `index` of a controller, with its power-on state.
    pub fn new(index: usize, packet: bool, disk: Option<DiskPort>, make: Make) -> Drive {
        let set = if packet { CommandSet::Atapi(Atapi::default()) } else { CommandSet::Ata(Ata::default()) };
        let state = DriveState { set, ..DriveState::default() };
        let mut drive = Drive { disk, index: index as u64, make, state };
        drive.power_on();
        drive
    }

    /// Whether it takes packet commands.
    pub fn packet(&self) -> bool {
        self.state.packet()
    }

    /// Whether it is the cable's device 1.
    pub fn slave(&self) -> bool {
        !self.make.serial_link && self.index & 1 != 0
    }

    /// Everything as at power-on.
    pub fn power_on(&mut self) {
        self.cancel();
        self.disk.iter_mut().for_each(|disk| disk.lock(false));
        let set = match self.state.set {
            CommandSet::Ata(_) => CommandSet::Ata(Ata::new(self.sectors())),
            CommandSet::Atapi(_) => CommandSet::Atapi(Atapi::default()),
        };
        self.state = DriveState { set, ..DriveState::default() };
        self.diagnosed();
    }

    /// SRST went up.
    pub fn hold_reset(&mut self) {
        self.cancel();
        self.state.queue = CommandQueue::default();
        self.state.intrq = false;
        self.state.phase = Phase::Reset;
    }

    /// A reset or a diagnosis is over: signature and result code, no interrupt.
    pub fn diagnosed(&mut self) {
        let packet = self.packet();
        self.stop();
        let s = &mut self.state;
        s.queue = CommandQueue::default();
        s.intrq = false;
        s.regs.sign(packet);
        s.regs.device = 0;
        s.regs.error = 1;
        s.regs.status = if packet { 0 } else { DRDY | DSC };
        match &mut s.set {
            CommandSet::Ata(ata) => ata.soft_reset(),
            CommandSet::Atapi(atapi) => atapi.soft_reset(),
        }
    }

    pub fn cancel(&mut self) {
        if let Some(disk) = &mut self.disk {
            disk.cancel();
        }
    }

    /// Gives up whatever is going on.
    pub fn stop(&mut self) {
        if matches!(self.state.phase, Phase::Disk(..)) || self.state.queue.under_way() {
            self.cancel();
        }
        self.state.queue.forget();
        self.state.phase = Phase::Idle;
        self.state.buffer = Buffer::default();
    }

    /// What it asks the controller for: whether to memory, and how many bytes.
    pub fn wants_bus_master(&self) -> Option<(bool, u64)> {
        match self.state.phase {
            Phase::BusMaster { to_memory, bytes } => Some((to_memory, bytes)),
            _ => None,
        }
    }

    /// Whether the guest has to wait for it.
    pub fn busy(&self) -> bool {
        matches!(self.state.phase, Phase::Disk(..) | Phase::Reset)
    }

    /// The status register; the interrupt stays as it is.
    pub fn status(&self) -> u8 {
        let status = self.state.regs.status;
        match self.state.phase {
            Phase::Idle => status,
            Phase::Reset | Phase::Disk(..) => status & !DRQ | BSY,
            Phase::HostReads | Phase::HostWrites | Phase::BusMaster { .. } => status | DRQ,
        }
    }

    /// A register other than the data port. `before` asks for the byte written before the last (HOB).
    pub fn read(&mut self, offset: u64, before: bool) -> u8 {
        let r = &self.state.regs;
        match offset {
            reg::ERROR => r.error,
            reg::COUNT => r.count.get(before),
            reg::LBA_LOW..=reg::LBA_HIGH => r.lba[(offset - reg::LBA_LOW) as usize].get(before),
            reg::DEVICE => r.device | DEVICE_ONES,
            _ => {
                self.state.intrq = false;
                self.status()
            }
        }
    }

    /// A register other than the data and command ports. A busy drive does not look at its registers.
    pub fn write(&mut self, offset: u64, value: u8) {
        if self.busy() {
            return;
        }
        let r = &mut self.state.regs;
        match offset {
            reg::ERROR => r.features.push(value),
            reg::COUNT => r.count.push(value),
            reg::LBA_LOW..=reg::LBA_HIGH => r.lba[(offset - reg::LBA_LOW) as usize].push(value),
            reg::DEVICE => r.device = value,
            _ => {}
        }
    }

    /// A command, which ends what an earlier one was at unless the drive is busy with it.
    pub fn command(&mut self, command: u8) {
        // DEVICE RESET is the one command that a busy drive takes, and only packet devices know it.
        let reset = command == 0x08 && self.packet();
        if self.busy() && !(reset && self.state.phase != Phase::Reset) {
            return;
        }
        if self.queued_command(command) {
            return;
        }
        self.stop();
        self.state.intrq = false;
        if reset {
            return self.diagnosed();
        }
        self.state.regs.error = 0;
        self.state.regs.status = DRDY | DSC;
        match self.state.set {
            CommandSet::Ata(_) => self.ata_command(command),
            CommandSet::Atapi(_) => self.atapi_command(command),
        }
    }

    /// Bytes that are left of the block that goes through the data port.
    pub fn block(&self) -> usize {
        self.state.buffer.end.saturating_sub(self.state.buffer.at)
    }

    /// Reads of the data port. It gives zeros when there is nothing to read.
    pub fn data_read(&mut self, buf: &mut [u8]) {
        let mut done = 0;
        while done < buf.len() && self.state.phase == Phase::HostReads {
            let b = &mut self.state.buffer;
            let n = (b.end - b.at).min(buf.len() - done);
            buf[done..done + n].copy_from_slice(&b.bytes[b.at..b.at + n]);
            b.at += n;
            done += n;
            self.block_over();
        }
        buf[done..].fill(0);
    }

    /// Writes of the data port.
    pub fn data_write(&mut self, data: &[u8]) {
        let mut done = 0;
        while done < data.len() && self.state.phase == Phase::HostWrites {
            let b = &mut self.state.buffer;
            let n = (b.end - b.at).min(data.len() - done);
            b.bytes[b.at..b.at + n].copy_from_slice(&data[done..done + n]);
            b.at += n;
            done += n;
            self.block_over();
        }
    }

    fn block_over(&mut self) {
        if self.state.buffer.at < self.state.buffer.end {
            return;
        }
        match (&self.state.set, self.state.phase == Phase::HostReads) {
            (CommandSet::Ata(_), true) => self.ata_block_read(),
            (CommandSet::Ata(_), false) => self.ata_block_written(),
            (CommandSet::Atapi(_), true) => self.atapi_block_read(),
            (CommandSet::Atapi(_), false) => self.atapi_block_written(),
        }
    }

    /// Offers the next `len` bytes of the buffer to the guest.
    pub fn let_host_read(&mut self, len: usize) {
        let b = &mut self.state.buffer;
        b.end = (b.at + len).min(b.bytes.len());
        self.state.phase = Phase::HostReads;
    }

    /// Asks the guest for `len` bytes.
    pub fn let_host_write(&mut self, len: usize) {
        self.state.buffer = Buffer { bytes: vec![0; len], at: 0, end: len };
        self.state.phase = Phase::HostWrites;
    }

    /// The command is done.
    pub fn finish(&mut self) {
        self.state.phase = Phase::Idle;
        self.state.buffer = Buffer::default();
        self.state.regs.status = DRDY | DSC;
        self.state.intrq = true;
    }

    /// The command failed for the reason in the error register.
    pub fn fail(&mut self, error: u8) {
        self.finish();
        self.state.regs.status |= ERR;
        self.state.regs.error = error;
    }

    /// Asks the disk. A drive without one has found out before.
    pub fn submit(&mut self, offset: u64, op: DiskOp) {
        let job = match &op {
            DiskOp::Read(iov) | DiskOp::Write(iov) => Job::Dma(iov.len()),
            DiskOp::ReadBytes(n) => Job::Pio(*n),
            DiskOp::WriteBytes(bytes) => Job::Pio(bytes.len() as u64),
            DiskOp::Flush | DiskOp::Discard(_) => Job::Flush,
        };
        self.state.phase = Phase::Disk(self.ask(offset, op), job);
    }

    /// Makes a request, and says by which tag its answer will be known.
    pub fn ask(&mut self, offset: u64, op: DiskOp) -> u64 {
        self.state.requests += 1;
        let tag = self.state.requests * MOST_DRIVES | self.index;
        if let Some(disk) = &mut self.disk {
            disk.submit(DiskRequest { tag, offset, op });
        }
        tag
    }

    /// The disk's answer.
    pub fn done(&mut self, completion: Completion) {
        let job = match self.state.phase {
            Phase::Disk(tag, job) if tag == completion.tag => job,
            _ => return self.queue_done(completion.tag, completion.ok),
        };
        self.state.phase = Phase::Idle;
        match self.state.set {
            CommandSet::Ata(_) => self.ata_done(job, completion),
            CommandSet::Atapi(_) => self.atapi_done(job, completion),
        }
    }

    /// The controller moves data: `parts` are stretches of guest memory, validated by nobody yet. How many bytes it
    /// took or gave; `None`: one of the stretches is not memory, and nothing was moved.
    ///
    /// Where the stretches are too short for the whole command, the drive takes or gives the whole sectors that fit and
    /// asks for DMA again.
    pub fn bus_master(&mut self, parts: &[(u64, u32)], dma: &DmaMem) -> Option<u64> {
        let Phase::BusMaster { to_memory, bytes } = self.state.phase else { return Some(0) };
        let unit = match &self.state.set {
            CommandSet::Ata(_) => ata::SECTOR,
            CommandSet::Atapi(atapi) => atapi.dma_unit(),
        };
        let iov = gather(parts, bytes, unit, to_memory, dma)?;
        let moved = iov.len();
        if moved > 0 {
            match self.state.set {
                CommandSet::Ata(_) => self.ata_bus_master(iov, to_memory, parts, dma),
                CommandSet::Atapi(_) => self.atapi_bus_master(iov, parts, dma),
            }
        }
        Some(moved)
    }

    /// The controller was told to stop in the middle: nothing goes to memory any more, and the drive asks again.
    pub fn bus_master_stopped(&mut self) {
        let Phase::Disk(_, Job::Dma(_)) = self.state.phase else { return };
        self.cancel();
        match self.state.set {
            CommandSet::Ata(_) => self.ata_ask_for_dma(),
            CommandSet::Atapi(_) => self.atapi_ask_for_dma(),
        }
    }
}

/// The memory of `parts`, `most` bytes of it and whole units; `None` when some of it is none.
pub(crate) fn gather(parts: &[(u64, u32)], most: u64, unit: u64, to_memory: bool, dma: &DmaMem) -> Option<IoVec> {
    let there: u64 = parts.iter().map(|p| u64::from(p.1)).sum();
    let mut left = there.min(most) / unit * unit;
    let mut iov = IoVec::default();
    for (at, len) in parts {
        let n = left.min(u64::from(*len));
        left -= n;
        if !dma.gather(&mut iov, *at, n, to_memory) {
            return None;
        }
    }
    Some(iov)
}

/// Bytes as a string of digits in saved state, where a list of numbers would be several times as long.
mod hex {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{}", Hex(bytes)))
    }

    struct Hex<'a>(&'a [u8]);

    impl std::fmt::Display for Hex<'_> {
        fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
            self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        let digit = |c: u8| (c as char).to_digit(16).map(|d| d as u8).ok_or_else(|| D::Error::custom("no hex digit"));
        text.as_bytes().chunks(2).map(|c| Ok(digit(c[0])? << 4 | digit(*c.last().unwrap_or(&b'-'))?)).collect()
    }
}
