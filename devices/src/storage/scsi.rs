//! SCSI logical units: a disk and a CD-ROM drive, without what connects them.
//!
//! SPC-3, SBC-3 and, for the CD, `mmc`. A controller hands a command block to [`LogicalUnit::command`] and is told what
//! comes [`Next`]: bytes to send, parameters to fetch, blocks to move between the medium and guest memory, in as many
//! pieces as it likes, or [`Work`] that needs no more of the guest. What it asks of the medium goes through
//! [`LogicalUnit::submit`], one step at a time; [`Work::rest`] is what follows a step.
//!
//! A unit has one initiator, so that reservations always succeed. Modelled: the commands of disks up to 16 bytes, the
//! pages that drivers read, a write cache that can be turned off, provisioning (UNMAP, WRITE SAME), UNIT ATTENTION after
//! a reset and a change of the medium. Not modelled: comparing (VERIFY with BYTCHK), protection information, formatting,
//! persistent reservations, logs.

use emu::backend::{DiskOp, DiskRequest};
use emu::{DiskPort, DmaMem, IoVec};
use serde::{Deserialize, Serialize};

use super::mmc::{
    self, Answer, BAD_FIELD, Mmc, NO_SAVED_PAGES, NOT_READY, OUT_OF_RANGE, POWERED_ON, READ_ERROR, Sense, Told,
    UNKNOWN_COMMAND, be16, be32,
};

const STOPPED: Sense = Sense(2, 0x04, 2);
const WRITE_ERROR: Sense = Sense(3, 0x0c, 2);
const BAD_LENGTH: Sense = Sense(5, 0x1a, 0);
const NO_SUCH_LUN: Sense = Sense(5, 0x25, 0);
const BAD_PARAMETER: Sense = Sense(5, 0x26, 0);
const NEW_CAPACITY: Sense = Sense(6, 0x2a, 9);
/// What the first command after a reset of the unit, or of all that the initiator had there, is told.
pub(crate) const UNIT_RESET: Sense = Sense(6, 0x29, 3);
pub(crate) const NEXUS_LOST: Sense = Sense(6, 0x29, 7);
const WRITE_PROTECTED: Sense = Sense(7, 0x27, 0);

/// Status bytes.
pub(crate) const GOOD: u8 = 0x00;
pub(crate) const CHECK_CONDITION: u8 = 0x02;

/// The longest command block that is looked at.
pub(crate) const CDB: usize = 16;
/// Bytes that one command moves at most.
pub(crate) const MAX_BYTES: u64 = 256 << 20;
/// The longest list of parameters that is taken, but for a block.
const MAX_PARAMETERS: usize = 8 + 16 * MAX_RANGES;
/// Ranges of one UNMAP.
const MAX_RANGES: usize = 256;
/// Bytes that one command unmaps or fills at most, and that are filled at a time.
const MAX_UNMAP: u64 = 2 << 30;
const MAX_FILL: u64 = 16 << 20;
const FILL: u64 = 64 << 10;

/// What follows a command, or its parameters.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing: GOOD.
    Good,
    /// These bytes go to the initiator.
    In(Vec<u8>),
    /// The initiator sends so many bytes, for [`LogicalUnit::parameters`].
    Out(usize),
    /// So many bytes of the medium, from this one on, go to the initiator.
    Read(u64, u64),
    /// So many come from it; with `true` they are to be on stable storage at the end.
    Write(u64, u64, bool),
    /// The unit works by itself.
    Work(Work),
}

/// Stretches of guest memory, validated by nobody yet: address and length.
pub(crate) type Places = Vec<(u64, u64)>;

/// What the medium is asked to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Work {
    /// Bytes from this one on, to memory.
    Read(u64, Places),
    /// From memory; and whether a flush is to follow.
    Write(u64, Places, bool),
    Flush,
    /// These ranges of bytes, place and length; the last comes first.
    Discard(Vec<(u64, u64)>),
    /// From a byte on, and so many, a block again and again; and whether a flush is to follow.
    Fill(u64, u64, Vec<u8>, bool),
}

impl Work {
    /// What is left to do when the first step is done.
    pub fn rest(self) -> Option<Work> {
        match self {
            Work::Write(_, _, true) => Some(Work::Flush),
            Work::Discard(mut ranges) => {
                ranges.pop();
                (!ranges.is_empty()).then_some(Work::Discard(ranges))
            }
            Work::Fill(at, left, block, stable) => {
                let n = left.min(FILL);
                match left - n {
                    0 => stable.then_some(Work::Flush),
                    left => Some(Work::Fill(at.wrapping_add(n), left, block, stable)),
                }
            }
            Work::Read(..) | Work::Write(..) | Work::Flush => None,
        }
    }

    /// What it means that it failed.
    fn failure(&self) -> Sense {
        if matches!(self, Work::Read(..)) { READ_ERROR } else { WRITE_ERROR }
    }

    /// The first step: a place on the medium, and what to do there. `None`: a stretch is not memory.
    fn step(&self, dma: &DmaMem) -> Option<(u64, DiskOp)> {
        let memory = |places: &Places, write| {
            let mut iov = IoVec::default();
            places.iter().all(|(at, len)| dma.gather(&mut iov, *at, *len, write)).then_some(iov)
        };
        Some(match self {
            Work::Read(at, places) => (*at, DiskOp::Read(memory(places, true)?)),
            Work::Write(at, places, _) => (*at, DiskOp::Write(memory(places, false)?)),
            Work::Flush => (0, DiskOp::Flush),
            Work::Discard(ranges) => ranges.last().map(|(at, len)| (*at, DiskOp::Discard(*len)))?,
            Work::Fill(at, left, block, _) => {
                let n = (*left).min(FILL) as usize;
                (*at, DiskOp::WriteBytes(block.iter().copied().cycle().take(n).collect()))
            }
        })
    }
}

/// How a unit calls itself, and what it is made of.
#[derive(Clone, Debug)]
pub(crate) struct Make {
    /// Up to 16 characters.
    pub product: String,
    pub serial: String,
    /// Bytes of a disk's logical and physical blocks.
    pub logical: u64,
    pub physical: u64,
    /// Whether a disk takes news of contents that are no longer needed.
    pub delete: bool,
}

/// What a disk remembers.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Disk {
    #[serde(flatten)]
    told: Told,
    writeback: bool,
    stopped: bool,
    /// Bytes.
    size: u64,
}

impl Disk {
    fn new(size: u64) -> Disk {
        Disk { told: Told::default(), writeback: true, stopped: false, size }
    }
}

/// All of a unit that is saved.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct UnitState(Set);

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Set {
    Disk(Disk),
    Cd(Mmc),
}

/// What happened to a medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It is another one, or has another size: what the next command is told.
    Parameters(Sense),
    /// The unit is gone with it.
    Gone,
    /// It is there again.
    Back,
}

/// A logical unit.
pub(crate) struct LogicalUnit {
    disk: Option<DiskPort>,
    make: Make,
    s: Set,
}

impl LogicalUnit {
    /// With its power-on state. Only a CD-ROM drive can do without a disk.
    pub fn new(disk: Option<DiskPort>, cd: bool, make: Make) -> LogicalUnit {
        let size = disk.as_ref().map_or(0, DiskPort::size);
        let s = if cd { Set::Cd(Mmc::default()) } else { Set::Disk(Disk::new(size)) };
        LogicalUnit { disk, make, s }
    }

    fn size(&self) -> u64 {
        self.disk.as_ref().map_or(0, DiskPort::size)
    }

    /// Whether it answers: a disk without its image does not.
    pub fn is_there(&self) -> bool {
        matches!(self.s, Set::Cd(_)) || self.size() > 0
    }

    fn told(&mut self) -> &mut Told {
        match &mut self.s {
            Set::Disk(disk) => &mut disk.told,
            Set::Cd(cd) => &mut cd.told,
        }
    }

    /// The power-on state.
    pub fn power_on(&mut self) {
        self.cancel();
        self.disk.iter_mut().for_each(|disk| disk.lock(false));
        self.s = match self.s {
            Set::Disk(_) => Set::Disk(Disk::new(self.size())),
            Set::Cd(_) => Set::Cd(Mmc::default()),
        };
    }

    /// A reset by the initiator, which the next command is told.
    pub fn reset(&mut self, why: Sense) {
        self.power_on();
        self.told().attention = Some(why);
    }

    /// Forgets what the medium was asked.
    pub fn cancel(&mut self) {
        self.disk.iter_mut().for_each(DiskPort::cancel);
    }

    pub fn save(&self) -> UnitState {
        UnitState(self.s.clone())
    }

    /// # Errors
    /// It is of another kind.
    pub fn load(&mut self, saved: UnitState) -> Result<(), String> {
        if std::mem::discriminant(&saved.0) != std::mem::discriminant(&self.s) {
            return Err("it has other units".to_owned());
        }
        self.s = saved.0;
        Ok(())
    }

    /// Somebody outside may have changed the medium.
    pub fn medium_changed(&mut self) -> Option<Change> {
        let size = self.size();
        match &mut self.s {
            Set::Cd(cd) => {
                cd.medium_changed(&self.disk);
                Some(Change::Parameters(mmc::NEW_DISC))
            }
            Set::Disk(disk) => match (std::mem::replace(&mut disk.size, size), size) {
                (before, now) if before == now => None,
                (_, 0) => Some(Change::Gone),
                (0, _) => {
                    disk.told.attention = Some(POWERED_ON);
                    Some(Change::Back)
                }
                _ => {
                    disk.told.attention = Some(NEW_CAPACITY);
                    Some(Change::Parameters(NEW_CAPACITY))
                }
            },
        }
    }

    /// Asks the medium for a step of work. False, and nothing was asked, if a stretch is not memory.
    pub fn submit(&mut self, tag: u64, work: &Work, dma: &DmaMem) -> bool {
        let Some((offset, op)) = work.step(dma) else { return false };
        if let Some(disk) = &mut self.disk {
            disk.submit(DiskRequest { tag, offset, op });
        }
        true
    }

    /// The command failed because its work did.
    pub fn failed(&mut self, work: &Work) {
        self.told().sense = work.failure();
    }

    /// Hands over the sense data of the command that failed last, as controllers with automatic sense do.
    pub fn take_sense(&mut self) -> [u8; 18] {
        sense_data(std::mem::take(&mut self.told().sense))
    }

    /// Takes a command. On CHECK CONDITION (`None`) there is sense data.
    pub fn command(&mut self, block: &[u8]) -> Option<Next> {
        let c = padded(block);
        let next = match (c[0], matches!(self.s, Set::Cd(_))) {
            (0x12, cd) => self.inquiry(&c, cd),
            (0xa0, _) => report_luns(&c),
            (_, true) => self.cd(&c),
            _ => self.disk_command(&c),
        };
        next.map_err(|sense| self.told().sense = sense).ok()
    }

    /// Takes the parameters that a command asked for.
    pub fn parameters(&mut self, block: &[u8], bytes: &[u8]) -> Option<Next> {
        let c = padded(block);
        let next = match (&self.s, c[0]) {
            (Set::Cd(_), _) => Ok(Next::Good),
            (_, 0x15 | 0x55) => self.mode_select(c[0] == 0x55, bytes),
            (_, 0x42) => self.unmap(bytes),
            _ => self.write_same(&c, bytes),
        };
        next.map_err(|sense| self.told().sense = sense).ok()
    }

    fn cd(&mut self, c: &[u8; CDB]) -> Result<Next, Sense> {
        let Set::Cd(cd) = &mut self.s else { return Err(UNKNOWN_COMMAND) };
        // MMC has no READ (6), which old drivers use nevertheless, and shares the others.
        let mut c = *c;
        if c[0] == 0x08 {
            let count = if c[4] == 0 { 256 } else { u16::from(c[4]) };
            c = padded(&[&[0x28, 0, 0, c[1] & 0x1f, c[2], c[3], 0][..], &count.to_be_bytes()].concat());
        }
        Ok(match cd.execute(&c, &mut self.disk, mmc::SCSI)? {
            Answer::Done | Answer::Read(_, 0) | Answer::Parameters(0) => Next::Good,
            Answer::Data(mut bytes, allowed) => {
                bytes.truncate(allowed);
                Next::In(bytes)
            }
            Answer::Read(lba, count) => Next::Read(lba * mmc::SECTOR, u64::from(count) * mmc::SECTOR),
            Answer::Parameters(len) if len > MAX_PARAMETERS => return Err(BAD_FIELD),
            Answer::Parameters(len) => Next::Out(len),
        })
    }

    fn disk_command(&mut self, c: &[u8; CDB]) -> Result<Next, Sense> {
        let Set::Disk(disk) = &mut self.s else { return Err(UNKNOWN_COMMAND) };
        if c[0] != 0x03
            && let Some(sense) = disk.told.attention.take()
        {
            return Err(sense);
        }
        let sense = std::mem::take(&mut disk.told.sense);
        match c[0] {
            0x00 => self.ready().map(|_| Next::Good),
            0x03 => {
                let told = self.told();
                let sense = if sense == Sense::default() { told.attention.take().unwrap_or(sense) } else { sense };
                Ok(data(sense_data(sense).to_vec(), c[4].into()))
            }
            // READ, WRITE, WRITE AND VERIFY.
            0x08 | 0x28 | 0xa8 | 0x88 => self.read(c),
            0x0a | 0x2a | 0xaa | 0x8a | 0x2e | 0xae | 0x8e => self.write(c),
            // SEEK, PRE-FETCH.
            0x0b | 0x2b | 0x34 | 0x90 => self.range(c).map(|_| Next::Good),
            // VERIFY: what is there can be read.
            0x2f | 0xaf | 0x8f if c[1] & 0x06 != 0 => Err(BAD_FIELD),
            0x2f | 0xaf | 0x8f => self.range(c).map(|_| Next::Good),
            // SYNCHRONIZE CACHE.
            0x35 | 0x91 => self.range(c).map(|_| Next::Work(Work::Flush)),
            0x15 | 0x55 => {
                // Nothing is saved, and pages are as the standard has them.
                let len = if c[0] == 0x15 { c[4].into() } else { be16(&c[7..]) };
                match len {
                    _ if c[1] & 0x01 != 0 || len > MAX_PARAMETERS => Err(BAD_FIELD),
                    0 => Ok(Next::Good),
                    len => Ok(Next::Out(len)),
                }
            }
            0x1a | 0x5a => self.mode_sense(c),
            // RESERVE, RELEASE, PREVENT ALLOW MEDIUM REMOVAL, the self-test of SEND DIAGNOSTIC.
            0x16 | 0x17 | 0x56 | 0x57 | 0x1e => Ok(Next::Good),
            0x1d if c[1] & 0x04 != 0 && be16(&c[3..]) == 0 => Ok(Next::Good),
            0x1b => self.start_stop(c[4]),
            // READ CAPACITY.
            0x25 => {
                let last = (self.ready()? - 1).min(u32::MAX.into()) as u32;
                Ok(Next::In([last.to_be_bytes(), (self.make.logical as u32).to_be_bytes()].concat()))
            }
            0x9e if c[1] & 0x1f == 0x10 => self.read_capacity_16(c),
            0x42 | 0x41 | 0x93 => self.provision(c),
            _ => Err(UNKNOWN_COMMAND),
        }
    }

    /// The disk's blocks, if it can be used.
    fn ready(&self) -> Result<u64, Sense> {
        let stopped = matches!(&self.s, Set::Disk(Disk { stopped: true, .. }));
        match self.size() / self.make.logical {
            0 => Err(NOT_READY),
            _ if stopped => Err(STOPPED),
            blocks => Ok(blocks),
        }
    }

    /// Place and length, in bytes, of what a command names; nothing else of it is looked at.
    fn range(&self, c: &[u8; CDB]) -> Result<(u64, u64), Sense> {
        let (lba, count) = match c[0] >> 5 {
            0 => (u64::from(be32(&[0, c[1] & 0x1f, c[2], c[3]])), if c[4] == 0 { 256 } else { c[4].into() }),
            1 | 2 => (be32(&c[2..]).into(), be16(&c[7..]) as u64),
            5 => (be32(&c[2..]).into(), be32(&c[6..]).into()),
            _ => (u64::from(be32(&c[2..])) << 32 | u64::from(be32(&c[6..])), be32(&c[10..]).into()),
        };
        let blocks = self.ready()?;
        match lba.checked_add(count) {
            Some(end) if end <= blocks => Ok((lba * self.make.logical, count * self.make.logical)),
            _ => Err(OUT_OF_RANGE),
        }
    }

    /// The range of a command that moves its data, none of which is protected.
    fn transfer(&self, c: &[u8; CDB]) -> Result<(u64, u64), Sense> {
        let (at, bytes) = self.range(c)?;
        let protect = c[0] >= 0x20 && c[1] & 0xe0 != 0;
        if protect || bytes > MAX_BYTES { Err(BAD_FIELD) } else { Ok((at, bytes)) }
    }

    fn read(&self, c: &[u8; CDB]) -> Result<Next, Sense> {
        let (at, bytes) = self.transfer(c)?;
        Ok(if bytes == 0 { Next::Good } else { Next::Read(at, bytes) })
    }

    fn write(&self, c: &[u8; CDB]) -> Result<Next, Sense> {
        let (at, bytes) = self.transfer(c)?;
        self.writable()?;
        let verify = matches!(c[0], 0x2e | 0xae | 0x8e);
        if verify && c[1] & 0x06 != 0 {
            return Err(BAD_FIELD);
        }
        // Force unit access.
        let forced = c[0] >= 0x20 && c[1] & 0x08 != 0;
        Ok(if bytes == 0 { Next::Good } else { Next::Write(at, bytes, forced || verify || !self.cached()) })
    }

    fn cached(&self) -> bool {
        matches!(&self.s, Set::Disk(disk) if disk.writeback)
    }

    fn read_only(&self) -> bool {
        self.disk.as_ref().is_some_and(DiskPort::read_only)
    }

    fn writable(&self) -> Result<(), Sense> {
        if self.read_only() { Err(WRITE_PROTECTED) } else { Ok(()) }
    }

    fn start_stop(&mut self, what: u8) -> Result<Next, Sense> {
        let Set::Disk(disk) = &mut self.s else { return Err(UNKNOWN_COMMAND) };
        // There is nothing to load or eject, and the power conditions are all alike.
        if what & 2 != 0 {
            return Err(BAD_FIELD);
        }
        if what >> 4 == 0 {
            disk.stopped = what & 1 == 0;
        }
        Ok(if disk.stopped { Next::Work(Work::Flush) } else { Next::Good })
    }

    fn read_capacity_16(&self, c: &[u8; CDB]) -> Result<Next, Sense> {
        let mut bytes = vec![0; 32];
        bytes[..8].copy_from_slice(&(self.ready()? - 1).to_be_bytes());
        bytes[8..12].copy_from_slice(&(self.make.logical as u32).to_be_bytes());
        bytes[13] = (self.make.physical / self.make.logical).trailing_zeros() as u8;
        // Blocks can be given up; what they read as then is not told.
        bytes[14] = u8::from(self.make.delete) << 7;
        Ok(data(bytes, be32(&c[10..]) as usize))
    }

    /// UNMAP and WRITE SAME, whose parameters are to come.
    fn provision(&self, c: &[u8; CDB]) -> Result<Next, Sense> {
        self.ready()?;
        self.writable()?;
        if c[0] == 0x42 {
            return match be16(&c[7..]) {
                _ if !self.make.delete => Err(UNKNOWN_COMMAND),
                len if c[1] & 1 != 0 || len > MAX_PARAMETERS => Err(BAD_FIELD),
                0 => Ok(Next::Good),
                len => Ok(Next::Out(len)),
            };
        }
        let (_, bytes) = self.range(c)?;
        let unmap = c[1] & 0x08 != 0;
        let most = if unmap { MAX_UNMAP } else { MAX_FILL };
        // Protection, anchors and numbered blocks there are none; to say nothing of how many is too many.
        if c[1] & 0xf6 != 0 || bytes == 0 || bytes > most || unmap && !self.make.delete {
            return Err(BAD_FIELD);
        }
        match c[1] & 1 {
            0 => Ok(Next::Out(self.make.logical as usize)),
            // Without a block it is of zeros, which only the long form knows.
            _ if c[0] == 0x93 => self.write_same(c, &vec![0; self.make.logical as usize]),
            _ => Err(BAD_FIELD),
        }
    }

    fn write_same(&self, c: &[u8; CDB], block: &[u8]) -> Result<Next, Sense> {
        let (at, bytes) = self.range(c)?;
        Ok(Next::Work(match c[1] & 0x08 {
            0 => Work::Fill(at, bytes, block.to_vec(), !self.cached()),
            _ => Work::Discard(vec![(at, bytes)]),
        }))
    }

    fn unmap(&self, list: &[u8]) -> Result<Next, Sense> {
        if list.len() < 8 {
            return Err(BAD_LENGTH);
        }
        let len = be16(&list[2..]).min(list.len() - 8);
        let (blocks, mut total, mut ranges) = (self.ready()?, 0, Vec::new());
        for d in list[8..8 + len / 16 * 16].chunks(16) {
            let (lba, count) = (u64::from(be32(d)) << 32 | u64::from(be32(&d[4..])), u64::from(be32(&d[8..])));
            if lba.checked_add(count).is_none_or(|end| end > blocks) {
                return Err(OUT_OF_RANGE);
            }
            total += count * self.make.logical;
            if count > 0 {
                ranges.push((lba * self.make.logical, count * self.make.logical));
            }
        }
        ranges.reverse();
        match ranges.len() {
            0 => Ok(Next::Good),
            n if n > MAX_RANGES || total > MAX_UNMAP => Err(BAD_PARAMETER),
            _ => Ok(Next::Work(Work::Discard(ranges))),
        }
    }

    fn mode_sense(&self, c: &[u8; CDB]) -> Result<Next, Sense> {
        let long = c[0] == 0x5a;
        let (control, wanted) = (c[2] >> 6, c[2] & 0x3f);
        if control == 3 {
            return Err(NO_SAVED_PAGES);
        }
        if !matches!(c[3], 0 | 0xff) {
            return Err(BAD_FIELD);
        }
        let (size, block) = (self.size(), self.make.logical);
        let cylinders = (size / 512 / (255 * 63)).clamp(1, 0xff_ffff) as u32;
        let [_, high, mid, low] = cylinders.to_be_bytes();
        let [_, _, block_high, block_low] = (block as u32).to_be_bytes();
        let caching = if control == 1 || control == 2 || self.cached() { 0x04 } else { 0 };
        let pages: [(&[u8], usize); 6] = [
            // Error recovery: automatic reallocation.
            (&[0x01, 10, 0xc0, 8, 0, 0, 0, 0, 8, 0, 0xff, 0xff], 12),
            // Format: 63 sectors a track.
            (&[0x03, 22, 0, 0, 0, 0, 0, 0, 0, 0, 0, 63, block_high, block_low, 0, 1, 0, 0, 0, 0, 0x40], 24),
            // Geometry: 255 heads, 7200 rotations a minute.
            (&[0x04, 22, high, mid, low, 255, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x1c, 0x20], 24),
            (&[0x08, 18, caching], 20),
            // Control: requests are reordered without limits.
            (&[0x0a, 10, 0x02, 0x10], 12),
            // Informational exceptions: none.
            (&[0x1c, 10, 0x08], 12),
        ];
        let mut body = Vec::new();
        if c[1] & 0x08 == 0 {
            // Medium: blocks and their length.
            let blocks = (size / block).min(if long { u32::MAX.into() } else { 0xff_ffff }) as u32;
            body.extend(blocks.to_be_bytes());
            body.extend((block as u32).to_be_bytes());
        }
        let medium = body.len();
        for (page, len) in pages.iter().filter(|(p, _)| wanted == 0x3f || p[0] == wanted) {
            let at = body.len();
            body.extend(*page);
            body.resize(at + len, 0);
            if control == 1 {
                // What can be changed is the cache.
                body[at + 2..].fill(0);
                body[at + 2] = if page[0] == 0x08 { caching } else { 0 };
            }
        }
        if body.len() == medium {
            return Err(BAD_FIELD);
        }
        // Write protection, and that DPO and FUA are known.
        let device = u8::from(self.read_only()) << 7 | 0x10;
        Ok(if long {
            let [high, low] = (body.len() as u16 + 6).to_be_bytes();
            data([&[high, low, 0, device, 0, 0, 0, medium as u8][..], &body].concat(), be16(&c[7..]))
        } else {
            data([&[body.len() as u8 + 3, 0, device, medium as u8][..], &body].concat(), c[4].into())
        })
    }

    fn mode_select(&mut self, long: bool, list: &[u8]) -> Result<Next, Sense> {
        let head = if long { 8 } else { 4 };
        if list.len() < head {
            return Err(BAD_LENGTH);
        }
        let medium = if long { be16(&list[6..]) } else { list[3].into() };
        let mut pages = list.get(head + medium..).ok_or(BAD_LENGTH)?;
        let mut writeback = self.cached();
        while let [code, len, page @ ..] = pages {
            let len = usize::from(*len);
            let page = page.get(..len).ok_or(BAD_LENGTH)?;
            match (code & 0x7f, len) {
                (0x08, 18) => writeback = page[0] & 0x04 != 0,
                (0x01 | 0x0a | 0x1c, 10) | (0x03 | 0x04, 22) => {}
                _ => return Err(BAD_PARAMETER),
            }
            pages = &pages[2 + len..];
        }
        let Set::Disk(disk) = &mut self.s else { return Err(UNKNOWN_COMMAND) };
        let before = std::mem::replace(&mut disk.writeback, writeback);
        // What was cached so far goes to the disk, too.
        Ok(if before && !writeback { Next::Work(Work::Flush) } else { Next::Good })
    }

    fn inquiry(&self, c: &[u8; CDB], cd: bool) -> Result<Next, Sense> {
        let (kind, allowed) = (if cd { 0x05 } else { 0x00 }, be16(&c[3..]));
        let (vendor, Make { product, serial, .. }) = ("BHYVE-RS", &self.make);
        if c[1] & 1 == 0 {
            if c[2] != 0 {
                return Err(BAD_FIELD);
            }
            // SPC-3; commands can be queued.
            let mut bytes = vec![kind, u8::from(cd) << 7, 0x05, 0x12, 31, 0, 0, 0x02];
            bytes.extend(format!("{vendor:8}{product:16.16}{:4.4}", env!("CARGO_PKG_VERSION")).bytes());
            return Ok(data(bytes, allowed));
        }
        let page: Vec<u8> = match c[2] {
            0x00 if cd => vec![0x00, 0x80, 0x83],
            0x00 => vec![0x00, 0x80, 0x83, 0xb0, 0xb1, 0xb2],
            0x80 => serial.bytes().collect(),
            0x83 => {
                // A name in ASCII that begins with the vendor's.
                let name = format!("{vendor:8}{product:16.16}{serial}");
                [&[0x02, 0x01, 0, name.len() as u8], name.as_bytes()].concat()
            }
            0xb0 if !cd => self.block_limits(),
            // It does not rotate.
            0xb1 if !cd => {
                let mut page = vec![0; 60];
                page[1] = 1;
                page
            }
            // By UNMAP and WRITE SAME of 16 and 10 bytes; thin.
            0xb2 if !cd && self.make.delete => vec![0, 0xe0, 0x02, 0],
            0xb2 if !cd => vec![0; 4],
            _ => return Err(BAD_FIELD),
        };
        let [high, low] = (page.len() as u16).to_be_bytes();
        Ok(data([&[kind, c[2], high, low][..], &page].concat(), allowed))
    }

    fn block_limits(&self) -> Vec<u8> {
        let mut page = vec![0; 60];
        let blocks = |bytes: u64| (bytes / self.make.logical) as u32;
        let mut put = |at: usize, value: u32| page[at - 4..at].copy_from_slice(&value.to_be_bytes());
        put(8, blocks(MAX_BYTES));
        put(12, blocks(1 << 20));
        if self.make.delete {
            put(20, blocks(MAX_UNMAP));
            put(24, MAX_RANGES as u32);
            put(28, (self.make.physical / self.make.logical) as u32);
        }
        put(40, blocks(MAX_FILL));
        // WRITE SAME of no blocks is refused.
        page[0] = 1;
        page
    }
}

fn padded(block: &[u8]) -> [u8; CDB] {
    let mut c = [0; CDB];
    let n = block.len().min(CDB);
    c[..n].copy_from_slice(&block[..n]);
    c
}

fn data(mut bytes: Vec<u8>, allowed: usize) -> Next {
    bytes.truncate(allowed);
    Next::In(bytes)
}

/// Sense data in the fixed format.
fn sense_data(sense: Sense) -> [u8; 18] {
    let mut bytes = [0; 18];
    (bytes[0], bytes[2], bytes[7], bytes[12], bytes[13]) = (0x70, sense.0, 10, sense.1, sense.2);
    bytes
}

/// What a target whose unit 0 is there, or is not, answers for a number that no unit has: INQUIRY, REPORT LUNS and
/// REQUEST SENSE work there.
pub(crate) fn no_unit(block: &[u8]) -> Result<Vec<u8>, [u8; 18]> {
    let c = padded(block);
    match c[0] {
        0x12 if c[1] & 1 == 0 => {
            let mut bytes = vec![0; 36];
            (bytes[0], bytes[2], bytes[3], bytes[4]) = (0x7f, 0x05, 0x02, 31);
            bytes.truncate(be16(&c[3..]));
            Ok(bytes)
        }
        0xa0 => match report_luns(&c) {
            Ok(Next::In(bytes)) => Ok(bytes),
            _ => Err(sense_data(BAD_FIELD)),
        },
        0x03 => Ok(sense_data(NO_SUCH_LUN)[..usize::from(c[4]).min(18)].to_vec()),
        _ => Err(sense_data(NO_SUCH_LUN)),
    }
}

/// There is unit 0, alone; well-known units there are none.
fn report_luns(c: &[u8; CDB]) -> Result<Next, Sense> {
    let bytes = match c[2] {
        0 | 2 => vec![0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        1 => vec![0; 8],
        _ => return Err(BAD_FIELD),
    };
    Ok(data(bytes, be32(&c[6..]) as usize))
}
