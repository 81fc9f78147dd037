//! The command set of disks: ATA/ATAPI-6 (T13 1410D), with what older drivers still send.
//!
//! Modelled: reading, writing and verifying by PIO, in blocks (MULTIPLE) and by DMA, with CHS, 28-bit and 48-bit
//! addresses; the write cache, which SET FEATURES can turn off; power modes; SMART as far as a healthy drive has
//! something to say; READ NATIVE MAX. What drives on a serial link know beyond that is in `sata`. Not modelled, and
//! aborted: queued commands of ATA-4, security, host protected area, microcode, media cards.
//!
//! A command whose sectors do not all exist moves none and says IDNF. PIO reads fetch up to [`LOOK_AHEAD`] sectors from
//! the disk at a time; PIO writes reach it block by block, so the interrupt after a block means that the disk has it.

use emu::backend::{Completion, DiskOp};
use emu::{DmaMem, IoVec};
use serde::{Deserialize, Serialize};

use super::drive::{ABRT, Buffer, CommandSet, Drive, Job, Phase};

/// Bytes in a sector.
pub(crate) const SECTOR: u64 = 512;
/// Largest block of the MULTIPLE commands.
const MAX_MULTIPLE: u8 = 16;
/// Sectors that a PIO read fetches at once.
const LOOK_AHEAD: u32 = 16;
/// Sectors that VERIFY reads at once.
const VERIFY_STEP: u32 = 256;
/// Highest address of 28 bits, less one to be a count.
const MAX_LBA28: u64 = 0x0fff_ffff;
/// Sectors that CHS addresses reach on a drive with 16 heads.
const MAX_CHS: u64 = 16383 * 16 * 63;

/// Sector not found.
pub(crate) const IDNF: u8 = 0x10;
/// Uncorrectable data error.
pub(crate) const UNC: u8 = 0x40;

/// Device register: addresses are LBA.
const LBA: u8 = 0x40;

/// Cylinders, heads, sectors per track.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Geometry {
    cylinders: u16,
    heads: u8,
    sectors: u8,
}

impl Geometry {
    /// The one that a disk of this size is delivered with.
    fn of(size: u64) -> Geometry {
        let sectors = size.clamp(1, 63) as u8;
        let heads = (size / u64::from(sectors)).clamp(1, 16) as u8;
        Geometry::with(size, heads, sectors)
    }

    fn with(size: u64, heads: u8, sectors: u8) -> Geometry {
        let track = u64::from(heads) * u64::from(sectors);
        let limit = if heads == 16 && sectors == 63 { 16383 } else { 65535 };
        Geometry { cylinders: (size.min(MAX_CHS) / track).min(limit) as u16, heads, sectors }
    }

    fn size(self) -> u32 {
        u32::from(self.cylinders) * u32::from(self.heads) * u32::from(self.sectors)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Op {
    Read,
    Write,
    Verify,
}

/// A command that moves sectors.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Transfer {
    op: Op,
    /// The next sector.
    lba: u64,
    /// How many are still to be moved.
    left: u32,
    /// How many make a block of PIO.
    block: u32,
    /// The address has 48 bits.
    ext: bool,
    /// What was written is on stable storage before the command ends.
    fua: bool,
}

/// What the command set remembers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Ata {
    transfer: Option<Transfer>,
    geometry: Geometry,
    /// Sectors a block of the MULTIPLE commands; 0 for none.
    multiple: u8,
    pub(super) write_cache: bool,
    look_ahead: bool,
    smart: bool,
    /// Not in standby.
    spinning: bool,
    /// As SET FEATURES takes them: the multiword or Ultra DMA mode chosen last.
    dma_mode: u8,
}

impl Default for Ata {
    fn default() -> Ata {
        Ata::new(0)
    }
}

impl Ata {
    /// At power-on, on a disk of so many sectors.
    pub fn new(size: u64) -> Ata {
        Ata {
            transfer: None,
            geometry: Geometry::of(size),
            multiple: MAX_MULTIPLE,
            write_cache: true,
            look_ahead: true,
            smart: true,
            spinning: true,
            dma_mode: 0x22,
        }
    }

    /// SRST leaves the settings alone.
    pub fn soft_reset(&mut self) {
        self.transfer = None;
        self.spinning = true;
    }
}

impl Drive {
    pub(super) fn ata(&mut self) -> &mut Ata {
        match &mut self.state.set {
            CommandSet::Ata(ata) => ata,
            CommandSet::Atapi(_) => unreachable!("only drives with this command set come here"),
        }
    }

    /// The disk's size.
    pub fn sectors(&self) -> u64 {
        self.disk.as_ref().map_or(0, |d| d.size() / SECTOR)
    }

    pub fn ata_command(&mut self, command: u8) {
        self.ata().transfer = None;
        match command {
            // RECALIBRATE.
            0x10..=0x1f => self.finish(),
            0x20 | 0x21 => self.transfer(Op::Read, 1, false, false),
            0x24 => self.transfer(Op::Read, 1, false, true),
            0x25 => self.transfer(Op::Read, 0, true, true),
            0x27 => self.native_max(true),
            0x29 => self.transfer_multiple(Op::Read, true),
            0x30 | 0x31 => self.transfer(Op::Write, 1, false, false),
            0x34 => self.transfer(Op::Write, 1, false, true),
            0x35 => self.transfer(Op::Write, 0, true, true),
            0x3d => self.transfer_through(0, true),
            0x39 => self.transfer_multiple(Op::Write, true),
            0x40 | 0x41 => self.transfer(Op::Verify, 1, false, false),
            0x42 => self.transfer(Op::Verify, 1, false, true),
            // SEEK.
            0x70..=0x7f => match self.address(false) {
                Some(lba) if lba < self.sectors() => self.finish(),
                _ => self.fail(IDNF),
            },
            0x91 => self.set_geometry(),
            0xb0 => self.smart(),
            0xc4 => self.transfer_multiple(Op::Read, false),
            0xc5 => self.transfer_multiple(Op::Write, false),
            0xc6 => self.set_multiple(),
            0xce => {
                let block = self.ata().multiple.into();
                self.transfer_through(block, false);
            }
            0xc8 | 0xc9 => self.transfer(Op::Read, 0, true, false),
            0xca | 0xcb => self.transfer(Op::Write, 0, true, false),
            // STANDBY IMMEDIATE, STANDBY, SLEEP.
            0xe0 | 0xe2 | 0xe6 | 0x94 | 0x96 | 0x99 => {
                self.ata().spinning = false;
                self.submit(0, DiskOp::Flush);
            }
            // IDLE IMMEDIATE, IDLE.
            0xe1 | 0xe3 | 0x95 | 0x97 => {
                self.ata().spinning = true;
                self.finish();
            }
            // CHECK POWER MODE.
            0xe5 | 0x98 => {
                let mode = if self.ata().spinning { 0xff } else { 0 };
                self.state.regs.set_count(mode);
                self.finish();
            }
            // FLUSH CACHE, FLUSH CACHE EXT.
            0xe7 | 0xea => self.submit(0, DiskOp::Flush),
            0xec => {
                let words = self.identify();
                self.give(words.iter().flat_map(|w| w.to_le_bytes()).collect());
            }
            0xef => self.set_features(),
            0xf8 => self.native_max(false),
            _ if self.make.serial_link => self.sata_command(command),
            // NOP among them, which has to fail.
            _ => self.fail(ABRT),
        }
    }

    /// Data for the guest, in one block.
    pub(super) fn give(&mut self, bytes: Vec<u8>) {
        let len = bytes.len();
        self.state.buffer = Buffer { bytes, at: 0, end: 0 };
        self.let_host_read(len);
        self.state.intrq = true;
    }

    /// The address in the registers; none if they name no sector.
    pub(super) fn address(&mut self, ext: bool) -> Option<u64> {
        let r = self.state.regs;
        let [low, mid, high] = r.lba.map(|b| u64::from(b.now));
        if ext {
            let [low2, mid2, high2] = r.lba.map(|b| u64::from(b.before));
            return Some(low | mid << 8 | high << 16 | low2 << 24 | mid2 << 32 | high2 << 40);
        }
        let head = u64::from(r.device & 15);
        if r.device & LBA != 0 {
            return Some(low | mid << 8 | high << 16 | head << 24);
        }
        let g = self.ata().geometry;
        let (sector, cylinder) = (low, mid | high << 8);
        let there = (1..=u64::from(g.sectors)).contains(&sector)
            && head < u64::from(g.heads)
            && cylinder < u64::from(g.cylinders);
        there.then(|| (cylinder * u64::from(g.heads) + head) * u64::from(g.sectors) + sector - 1)
    }

    /// Shows a sector's address in the registers, in the form in which the command had it.
    pub(super) fn set_address(&mut self, lba: u64, ext: bool) {
        let g = self.ata().geometry;
        let r = &mut self.state.regs;
        let bytes = lba.to_le_bytes();
        if ext || r.device & LBA != 0 {
            for n in 0..3 {
                r.lba[n].now = bytes[n];
                r.lba[n].before = if ext { bytes[n + 3] } else { 0 };
            }
            if !ext {
                r.device = r.device & 0xf0 | bytes[3] & 15;
            }
        } else if g.sectors > 0 && g.heads > 0 {
            let (track, sector) = (lba / u64::from(g.sectors), lba % u64::from(g.sectors) + 1);
            let (cylinder, head) = (track / u64::from(g.heads), track % u64::from(g.heads));
            for (n, byte) in [sector, cylinder, cylinder >> 8].into_iter().enumerate() {
                r.lba[n].now = byte as u8;
            }
            r.device = r.device & 0xf0 | head as u8;
        }
    }

    /// WRITE DMA FUA EXT and WRITE MULTIPLE FUA EXT.
    fn transfer_through(&mut self, block: u32, dma: bool) {
        if !self.make.serial_link || !dma && block == 0 {
            return self.fail(ABRT);
        }
        self.transfer(Op::Write, block, dma, true);
        if let Some(t) = &mut self.ata().transfer {
            t.fua = true;
        }
    }

    fn transfer_multiple(&mut self, op: Op, ext: bool) {
        match self.ata().multiple {
            0 => self.fail(ABRT),
            n => self.transfer(op, u32::from(n), false, ext),
        }
    }

    /// Starts a command that moves sectors, `block` of them at a time, or by DMA.
    fn transfer(&mut self, op: Op, block: u32, dma: bool, ext: bool) {
        let left = match (ext, self.state.regs.count) {
            (false, c) if c.now == 0 => 256,
            (false, c) => u32::from(c.now),
            (true, c) if c.word() == 0 => 65536,
            (true, c) => u32::from(c.word()),
        };
        if op == Op::Write && self.disk.as_ref().is_none_or(|d| d.read_only()) {
            return self.fail(ABRT);
        }
        let Some(lba) = self.address(ext) else { return self.fail(IDNF) };
        let size = self.sectors();
        if lba + u64::from(left) > size {
            self.set_address(lba.max(size), ext);
            return self.fail(IDNF);
        }
        self.ata().spinning = true;
        self.ata().transfer = Some(Transfer { op, lba, left, block, ext, fua: false });
        match op {
            _ if dma => self.ata_ask_for_dma(),
            Op::Write => self.ask_for_block(),
            Op::Read | Op::Verify => self.fetch(),
        }
    }

    fn current(&mut self) -> Option<Transfer> {
        self.ata().transfer
    }

    /// Reads on from the disk, for the data port or to verify.
    fn fetch(&mut self) {
        let Some(t) = self.current() else { return };
        let step = if t.op == Op::Verify { VERIFY_STEP } else { t.block.max(LOOK_AHEAD) };
        self.submit(t.lba * SECTOR, DiskOp::ReadBytes(u64::from(t.left.min(step)) * SECTOR));
    }

    fn ask_for_block(&mut self) {
        let Some(t) = self.current() else { return };
        self.let_host_write(t.left.min(t.block) as usize * SECTOR as usize);
    }

    pub fn ata_ask_for_dma(&mut self) {
        let Some(t) = self.current() else { return };
        self.state.phase = Phase::BusMaster { to_memory: t.op == Op::Read, bytes: u64::from(t.left) * SECTOR };
    }

    pub fn ata_bus_master(&mut self, iov: IoVec, to_memory: bool, parts: &[(u64, u32)], dma: &DmaMem) {
        let Some(t) = self.current() else { return self.trim_list(iov.len(), parts, dma) };
        self.submit(t.lba * SECTOR, if to_memory { DiskOp::Read(iov) } else { DiskOp::Write(iov) });
    }

    /// The guest has read a block.
    pub fn ata_block_read(&mut self) {
        let Some(t) = self.current() else {
            self.state.phase = Phase::Idle;
            return;
        };
        if self.state.buffer.rest() > 0 {
            self.announce(t);
        } else if t.left > 0 {
            self.fetch();
        } else {
            // The last block was announced by the last interrupt.
            self.ata().transfer = None;
            self.state.phase = Phase::Idle;
            self.state.buffer = Buffer::default();
        }
    }

    /// Shows the next block of the buffer.
    fn announce(&mut self, t: Transfer) {
        self.let_host_read(t.block as usize * SECTOR as usize);
        self.state.intrq = true;
    }

    /// The guest has written a block.
    pub fn ata_block_written(&mut self) {
        let Some(t) = self.current() else { return self.finish() };
        let bytes = std::mem::take(&mut self.state.buffer).bytes;
        self.submit(t.lba * SECTOR, DiskOp::WriteBytes(bytes));
    }

    /// The disk has answered.
    pub fn ata_done(&mut self, job: Job, completion: Completion) {
        let Some(t) = self.current() else {
            // A flush that stands alone, or one stretch of a TRIM.
            return if completion.ok { self.trim_on() } else { self.fail(ABRT) };
        };
        if !completion.ok {
            self.ata().transfer = None;
            self.set_address(t.lba, t.ext);
            return self.fail(if t.op == Op::Write { ABRT } else { UNC });
        }
        let moved = match job {
            Job::Dma(n) | Job::Pio(n) => n / SECTOR,
            Job::Flush => 0,
        };
        let t = Transfer { lba: t.lba + moved, left: t.left.saturating_sub(moved as u32), ..t };
        self.ata().transfer = Some(t);
        match (job, t.op) {
            (Job::Pio(_), Op::Read) => {
                self.state.buffer = Buffer { bytes: completion.data, at: 0, end: 0 };
                self.announce(t);
            }
            (Job::Dma(_), _) if t.left > 0 => self.ata_ask_for_dma(),
            (Job::Pio(_), Op::Write) if t.left > 0 => {
                self.ask_for_block();
                self.state.intrq = true;
            }
            (Job::Pio(_), Op::Verify) if t.left > 0 => self.fetch(),
            (Job::Dma(_) | Job::Pio(_), Op::Write) if t.fua || !self.ata().write_cache => self.submit(0, DiskOp::Flush),
            _ => {
                self.ata().transfer = None;
                self.finish();
            }
        }
    }

    /// READ NATIVE MAX ADDRESS.
    fn native_max(&mut self, ext: bool) {
        let last = self.sectors().saturating_sub(1);
        self.state.regs.device |= LBA;
        self.set_address(if ext { last } else { last.min(MAX_LBA28 - 1) }, ext);
        self.finish();
    }

    /// INITIALIZE DEVICE PARAMETERS.
    fn set_geometry(&mut self) {
        let (sectors, heads) = (self.state.regs.count.now, (self.state.regs.device & 15) + 1);
        if sectors == 0 {
            return self.fail(ABRT);
        }
        self.ata().geometry = Geometry::with(self.sectors(), heads, sectors);
        self.finish();
    }

    fn set_multiple(&mut self) {
        match self.state.regs.count.now {
            n if n == 0 || n <= MAX_MULTIPLE && n.is_power_of_two() => {
                self.ata().multiple = n;
                self.finish();
            }
            _ => self.fail(ABRT),
        }
    }

    fn set_features(&mut self) {
        let (feature, value) = (self.state.regs.features.now, self.state.regs.count.now);
        let ata = self.ata();
        match feature {
            0x02 => ata.write_cache = true,
            // What is in the cache goes to the disk first.
            0x82 => {
                ata.write_cache = false;
                return self.submit(0, DiskOp::Flush);
            }
            0x03 => match (value >> 3, value & 7) {
                // PIO: the timing is the controller's.
                (0, 0 | 1) | (1, 0..=4) => {}
                (4, 0..=2) | (8, 0..=5) => ata.dma_mode = value,
                (8, 6) if self.make.serial_link => self.ata().dma_mode = value,
                _ => return self.fail(ABRT),
            },
            0xaa => ata.look_ahead = true,
            0x55 => ata.look_ahead = false,
            // Keep settings over a soft reset, or do not: they are kept.
            0x66 | 0xcc => {}
            _ => return self.fail(ABRT),
        }
        self.finish();
    }

    fn smart(&mut self) {
        let r = self.state.regs;
        let on = self.ata().smart;
        if (r.lba[1].now, r.lba[2].now) != (0x4f, 0xc2) || !on && r.features.now != 0xd8 {
            return self.fail(ABRT);
        }
        match r.features.now {
            // READ DATA: no attributes, nothing done off line.
            0xd0 => self.give(smart_page(|page| {
                page[0] = 0x10;
                // Seconds of an off-line collection, and minutes of the self-tests that are not offered.
                page[364] = 1;
                page[368] = 0x02;
            })),
            // READ THRESHOLDS: none.
            0xd1 => self.give(smart_page(|page| page[0] = 0x10)),
            // Attribute autosave.
            0xd2 => self.finish(),
            0xd8 | 0xd9 => {
                self.ata().smart = r.features.now == 0xd8;
                self.finish();
            }
            // RETURN STATUS: the registers stay as they are, all is well.
            0xda => self.finish(),
            _ => self.fail(ABRT),
        }
    }

    /// IDENTIFY DEVICE.
    fn identify(&mut self) -> [u16; 256] {
        let (size, slave) = (self.sectors(), self.slave());
        let (natural, ata) = (Geometry::of(size), self.ata().clone());
        let mut w = [0; 256];
        w[0] = 0x0040;
        w[1] = natural.cylinders;
        // No need of SET FEATURES to spin up.
        w[2] = 0xc837;
        w[3] = natural.heads.into();
        // Unformatted bytes of a track and of a sector, long retired: Bochs's BIOS moves as many for a sector.
        (w[4], w[5]) = (512 * u16::from(natural.sectors), 512);
        w[6] = natural.sectors.into();
        self.names(&mut w);
        // A buffer of 256 KiB with look-ahead; 4 more bytes on LONG transfers.
        w[20] = 3;
        w[21] = 512;
        w[22] = 4;
        w[47] = 0x8000 | u16::from(MAX_MULTIPLE);
        // 32-bit access to the data port.
        w[48] = 1;
        // Standby timer, IORDY, LBA, DMA.
        w[49] = 0x2f00;
        w[50] = 0x4000;
        w[51] = 0x0200;
        w[52] = 0x0200;
        w[53] = 0x0007;
        let g = ata.geometry;
        (w[54], w[55], w[56]) = (g.cylinders, g.heads.into(), g.sectors.into());
        put(&mut w, 57, 2, g.size().into());
        w[59] = if ata.multiple > 0 { 0x0100 | u16::from(ata.multiple) } else { 0 };
        put(&mut w, 60, 2, size.min(MAX_LBA28));
        dma_words(&mut w, ata.dma_mode);
        // ATA-1 to ATA-6.
        w[80] = 0x007e;
        // NOP, look-ahead, write cache, power management, SMART; FLUSH CACHE (EXT), 48-bit addresses.
        w[82] = 0x4069;
        w[83] = 0x7400;
        w[84] = 0x4000;
        w[85] = 0x4008 | u16::from(ata.look_ahead) << 6 | u16::from(ata.write_cache) << 5 | u16::from(ata.smart);
        w[86] = 0x3400;
        w[87] = 0x4000;
        w[93] = cable_word(slave);
        put(&mut w, 100, 4, size);
        if self.make.serial_link {
            self.sata_words(&mut w);
        }
        seal(&mut w);
        w
    }

    /// Serial number, firmware revision and model, as IDENTIFY shows them.
    pub fn names(&self, w: &mut [u16; 256]) {
        text(w, 10..20, &self.make.serial);
        text(w, 23..27, &self.make.revision);
        text(w, 27..47, &self.make.model);
    }
}

/// Characters, two to a word, the first in the high byte, filled up with blanks.
fn text(w: &mut [u16; 256], at: std::ops::Range<usize>, text: &str) {
    let mut bytes = text.bytes().chain(std::iter::repeat(b' '));
    for word in &mut w[at] {
        *word = u16::from_be_bytes([bytes.next().unwrap_or(b' '), bytes.next().unwrap_or(b' ')]);
    }
}

/// A number of `n` words, the low one first.
fn put(w: &mut [u16; 256], at: usize, n: usize, value: u64) {
    for k in 0..n {
        w[at + k] = (value >> (16 * k)) as u16;
    }
}

/// What IDENTIFY says of transfer modes: PIO 4, multiword DMA 2, Ultra DMA 5, and which of them is chosen.
pub(crate) fn dma_words(w: &mut [u16; 256], chosen: u8) {
    let bit = |kind: u8| if chosen >> 3 == kind { 0x100 << (chosen & 7) } else { 0 };
    w[63] = 0x0007 | bit(4);
    w[64] = 0x0003;
    w[65..69].fill(120);
    w[88] = 0x003f | bit(8);
}

/// Word 93: an 80-wire cable, on which modes above Ultra DMA 2 may be used.
pub(crate) fn cable_word(slave: bool) -> u16 {
    if slave { 0x6b00 } else { 0x600b }
}

/// Signature and checksum, which make all bytes add up to 0.
pub(crate) fn seal(w: &mut [u16; 256]) {
    w[255] = 0x00a5;
    let sum = w.iter().flat_map(|w| w.to_le_bytes()).fold(0u8, u8::wrapping_add);
    w[255] |= u16::from(sum.wrapping_neg()) << 8;
}

fn smart_page(fill: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut page = vec![0; SECTOR as usize];
    fill(&mut page);
    page[511] = page.iter().fold(0u8, |a, b| a.wrapping_add(*b)).wrapping_neg();
    page
}
