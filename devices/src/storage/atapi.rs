//! The command set of CD-ROM drives: PACKET of ATA/ATAPI-6, and the SCSI commands of SFF-8020i and MMC-3 in it.
//!
//! Modelled: one data track in one session, cooked reads by PIO and DMA, table of contents, the mode pages and
//! features that drivers ask for, the tray with its lock, and a change of the disc, which the next command hears of as
//! UNIT ATTENTION. Not modelled: audio, raw sectors, writing.

use emu::backend::{Completion, DiskOp};
use emu::{DmaMem, IoVec};
use serde::{Deserialize, Serialize};

use super::ata::{cable_word, dma_words, seal};
use super::drive::{ABRT, Buffer, CommandSet, DRDY, Drive, DriveState, Job, Phase};
use super::sata::serial_words;

/// Bytes in a sector.
const SECTOR: u64 = 2048;
/// Sectors that a PIO read fetches at once.
const LOOK_AHEAD: u32 = 8;
/// Discs of more sectors are DVDs.
const LARGEST_CD: u64 = 450_000;
/// The longest list of parameters that is taken.
const MAX_PARAMETERS: usize = 256;

/// The interrupt reason, in the sector count register: a packet is wanted, data go to the host, the command is over.
const REASON_PACKET: u8 = 1;
const REASON_TO_HOST: u8 = 2;
const REASON_OVER: u8 = 3;

/// Sense key, additional sense code and its qualifier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Sense(u8, u8, u8);

const NOT_READY: Sense = Sense(2, 0x3a, 0);
const TRAY_OPEN: Sense = Sense(2, 0x3a, 2);
const READ_ERROR: Sense = Sense(3, 0x11, 0);
const UNKNOWN_COMMAND: Sense = Sense(5, 0x20, 0);
const OUT_OF_RANGE: Sense = Sense(5, 0x21, 0);
const BAD_FIELD: Sense = Sense(5, 0x24, 0);
const NO_SAVED_PAGES: Sense = Sense(5, 0x39, 0);
const LOCKED: Sense = Sense(5, 0x53, 2);
const BAD_MODE: Sense = Sense(5, 0x64, 0);
const NEW_DISC: Sense = Sense(6, 0x28, 0);
const POWERED_ON: Sense = Sense(6, 0x29, 0);

/// Media events of GET EVENT STATUS NOTIFICATION.
const EVENT_NEW: u8 = 2;
const EVENT_REMOVED: u8 = 3;

/// The packet command under way.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Packet {
    /// Data move by DMA.
    dma: bool,
    /// The most bytes that the guest takes in one block of PIO.
    limit: usize,
    /// The twelve bytes are here, and what follows is parameters.
    known: bool,
    /// Sectors to read: where, and how many are left.
    lba: u64,
    left: u32,
}

/// What the command set remembers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Atapi {
    packet: Packet,
    sense: Sense,
    /// What the next command is told first.
    attention: Option<Sense>,
    media_event: u8,
    locked: bool,
    tray_open: bool,
    dma_mode: u8,
}

impl Default for Atapi {
    fn default() -> Atapi {
        Atapi {
            packet: Packet::default(),
            sense: Sense::default(),
            attention: Some(POWERED_ON),
            media_event: 0,
            locked: false,
            tray_open: false,
            dma_mode: 0x22,
        }
    }
}

impl Atapi {
    /// SRST and DEVICE RESET leave the tray and what is to be told alone.
    pub fn soft_reset(&mut self) {
        self.packet = Packet::default();
    }

    /// DMA goes by whole units: sectors of the disc, or bytes of an answer.
    pub fn dma_unit(&self) -> u64 {
        if self.packet.left > 0 { SECTOR } else { 1 }
    }
}

/// How the command in a packet ends, or goes on.
enum Answer {
    /// Data for the guest, cut to the length that it allows.
    Data(Vec<u8>, usize),
    /// Sectors.
    Read(u64, u32),
    /// The guest is to send so many bytes.
    Parameters(usize),
    /// Nothing more.
    Done,
}

fn be16(b: &[u8]) -> usize {
    usize::from(u16::from_be_bytes([b[0], b[1]]))
}

fn be32(b: &[u8]) -> u32 {
    u32::from_be_bytes([b[0], b[1], b[2], b[3]])
}

/// A place on the disc, as a number or as minute, second and frame.
fn place(lba: u32, msf: bool) -> [u8; 4] {
    if !msf {
        return lba.to_be_bytes();
    }
    let frames = lba + 150;
    [0, (frames / 4500).min(255) as u8, (frames / 75 % 60) as u8, (frames % 75) as u8]
}

impl DriveState {
    /// Whether it is one of a drive with packet commands.
    pub fn packet(&self) -> bool {
        matches!(self.set, CommandSet::Atapi(_))
    }
}

impl Drive {
    fn atapi(&mut self) -> &mut Atapi {
        match &mut self.state.set {
            CommandSet::Atapi(atapi) => atapi,
            CommandSet::Ata(_) => unreachable!("only drives with this command set come here"),
        }
    }

    /// Whether the block that it asks for is a packet.
    pub fn wants_packet(&self) -> bool {
        self.state.phase == Phase::HostWrites && matches!(&self.state.set, CommandSet::Atapi(a) if !a.packet.known)
    }

    pub fn atapi_command(&mut self, command: u8) {
        self.state.regs.status = DRDY;
        match command {
            0xa0 => {
                let r = self.state.regs;
                // Overlapped commands.
                if r.features.now & 2 != 0 {
                    return self.fail(ABRT);
                }
                let limit = match usize::from(u16::from_le_bytes([r.lba[1].now, r.lba[2].now])) {
                    0 | 0xffff => 0xfffe,
                    n => n,
                };
                self.atapi().packet = Packet { dma: r.features.now & 1 != 0, limit, ..Packet::default() };
                self.state.regs.set_count(REASON_PACKET);
                self.let_host_write(12);
            }
            0xa1 => {
                let bytes: Vec<u8> = self.identify_packet().iter().flat_map(|w| w.to_le_bytes()).collect();
                self.atapi().packet = Packet::default();
                self.state.buffer = Buffer { bytes, at: 0, end: 0 };
                self.let_host_read(512);
                self.state.intrq = true;
            }
            // The power modes are all alike.
            0xe0..=0xe3 | 0xe6 => self.over(),
            0xe5 => {
                self.over();
                self.state.regs.set_count(0xff);
            }
            0xef => {
                let value = self.state.regs.count.now;
                match (self.state.regs.features.now, value >> 3, value & 7) {
                    (0x03, 0, 0 | 1) | (0x03, 1, 0..=4) | (0x66 | 0xcc, ..) => {}
                    (0x03, 4, 0..=2) | (0x03, 8, 0..=5) => self.atapi().dma_mode = value,
                    _ => return self.fail(ABRT),
                }
                self.over();
            }
            // What disks take is refused in a way that tells what this is.
            0x20 | 0xec => {
                self.state.regs.sign(true);
                self.fail(ABRT);
            }
            _ => self.fail(ABRT),
        }
    }

    /// The command is over and went well.
    fn over(&mut self) {
        self.finish();
        self.state.regs.status = DRDY;
    }

    /// The packet's command is over.
    fn packet_over(&mut self) {
        self.atapi().packet = Packet::default();
        self.over();
        self.state.regs.set_count(REASON_OVER);
    }

    /// CHECK CONDITION.
    fn check(&mut self, sense: Sense) {
        let atapi = self.atapi();
        atapi.packet = Packet::default();
        atapi.sense = sense;
        self.fail(sense.0 << 4 | if sense.0 == 5 { ABRT } else { 0 });
        self.state.regs.set_count(REASON_OVER);
    }

    /// The guest has written a block: the packet, or its parameters.
    pub fn atapi_block_written(&mut self) {
        let bytes = std::mem::take(&mut self.state.buffer).bytes;
        let atapi = self.atapi();
        if atapi.packet.known {
            return self.packet_over();
        }
        atapi.packet.known = true;
        match self.execute(&bytes) {
            Ok(Answer::Done) => self.packet_over(),
            Ok(Answer::Data(mut bytes, allowed)) => {
                bytes.truncate(allowed);
                self.answer(bytes);
            }
            Ok(Answer::Read(lba, count)) => {
                let packet = &mut self.atapi().packet;
                (packet.lba, packet.left) = (lba, count);
                match packet.dma {
                    true if count > 0 => self.atapi_ask_for_dma(),
                    _ => self.more(),
                }
            }
            Ok(Answer::Parameters(len)) => {
                if len == 0 {
                    return self.packet_over();
                }
                let packet = &self.atapi().packet;
                if len > MAX_PARAMETERS || len > packet.limit || packet.dma {
                    return self.check(BAD_FIELD);
                }
                self.let_host_write(len);
                self.announce_packet(0, len);
            }
            Err(sense) => self.check(sense),
        }
    }

    /// Sends a command's answer.
    fn answer(&mut self, bytes: Vec<u8>) {
        if bytes.is_empty() {
            return self.packet_over();
        }
        self.state.buffer = Buffer { bytes, at: 0, end: 0 };
        if self.atapi().packet.dma {
            self.atapi_ask_for_dma();
        } else {
            self.show_block();
        }
    }

    /// Interrupts for a block of PIO.
    fn announce_packet(&mut self, reason: u8, len: usize) {
        let r = &mut self.state.regs;
        r.set_count(reason);
        (r.lba[1].now, r.lba[2].now) = (len as u8, (len >> 8) as u8);
        self.state.intrq = true;
    }

    fn show_block(&mut self) {
        let (rest, limit) = (self.state.buffer.rest(), self.atapi().packet.limit);
        // Only a last block may be odd.
        let len = if rest <= limit { rest } else { (limit & !1).max(2) };
        self.let_host_read(len);
        self.announce_packet(REASON_TO_HOST, len);
    }

    /// The guest has read a block.
    pub fn atapi_block_read(&mut self) {
        if !self.atapi().packet.known {
            // IDENTIFY PACKET DEVICE.
            self.state.phase = Phase::Idle;
            self.state.buffer = Buffer::default();
        } else if self.state.buffer.rest() > 0 {
            self.show_block();
        } else {
            self.more();
        }
    }

    /// Reads on from the disc, or ends the command.
    fn more(&mut self) {
        let (lba, left) = (self.atapi().packet.lba, self.atapi().packet.left);
        match left.min(LOOK_AHEAD) {
            0 => self.packet_over(),
            n => self.submit(lba * SECTOR, DiskOp::ReadBytes(u64::from(n) * SECTOR)),
        }
    }

    pub fn atapi_ask_for_dma(&mut self) {
        let left = u64::from(self.atapi().packet.left) * SECTOR;
        let bytes = if left > 0 { left } else { (self.state.buffer.bytes.len() - self.state.buffer.at) as u64 };
        self.state.regs.set_count(REASON_TO_HOST);
        self.state.phase = Phase::BusMaster { to_memory: true, bytes };
    }

    pub fn atapi_bus_master(&mut self, iov: IoVec, parts: &[(u64, u32)], dma: &DmaMem) {
        let (lba, left) = (self.atapi().packet.lba, self.atapi().packet.left);
        if left > 0 {
            return self.submit(lba * SECTOR, DiskOp::Read(iov));
        }
        let b = &mut self.state.buffer;
        for (at, len) in parts {
            let n = (*len as usize).min(b.bytes.len() - b.at);
            dma.write(*at, &b.bytes[b.at..b.at + n]);
            b.at += n;
        }
        if b.at == b.bytes.len() { self.packet_over() } else { self.atapi_ask_for_dma() }
    }

    /// The disc has answered.
    pub fn atapi_done(&mut self, job: Job, completion: Completion) {
        if !completion.ok {
            return self.check(READ_ERROR);
        }
        let moved = match job {
            Job::Dma(n) | Job::Pio(n) => n / SECTOR,
            Job::Flush => 0,
        };
        let packet = &mut self.atapi().packet;
        packet.lba += moved;
        packet.left = packet.left.saturating_sub(moved as u32);
        match (packet.left, job) {
            (0, Job::Dma(_)) => self.packet_over(),
            (_, Job::Dma(_)) => self.atapi_ask_for_dma(),
            _ => {
                self.state.buffer = Buffer { bytes: completion.data, at: 0, end: 0 };
                self.show_block();
            }
        }
    }

    /// The disc's size in sectors, if there is one and the tray is closed.
    fn disc(&mut self) -> Result<u64, Sense> {
        if self.atapi().tray_open {
            return Err(TRAY_OPEN);
        }
        let size = self.disk.as_ref().map_or(0, |d| d.size()).div_ceil(SECTOR);
        if size > 0 { Ok(size.min(u32::MAX.into())) } else { Err(NOT_READY) }
    }

    /// Somebody outside put another disc in, or took it out, and closed the tray.
    pub fn medium_changed(&mut self) {
        if self.packet() {
            self.atapi().tray_open = false;
            self.tray_moved();
        }
    }

    /// Tells whether there is a disc now.
    fn tray_moved(&mut self) {
        let there = self.disc().is_ok();
        let atapi = self.atapi();
        atapi.media_event = if there { EVENT_NEW } else { EVENT_REMOVED };
        atapi.attention = there.then_some(NEW_DISC).or(atapi.attention);
    }

    /// Does what a packet says.
    fn execute(&mut self, c: &[u8]) -> Result<Answer, Sense> {
        let atapi = self.atapi();
        // REQUEST SENSE, INQUIRY, GET CONFIGURATION and GET EVENT STATUS NOTIFICATION work whatever there is to tell.
        if !matches!(c[0], 0x03 | 0x12 | 0x46 | 0x4a)
            && let Some(sense) = atapi.attention.take()
        {
            return Err(sense);
        }
        let sense = std::mem::take(&mut atapi.sense);
        match c[0] {
            // TEST UNIT READY.
            0x00 => self.disc().map(|_| Answer::Done),
            0x03 => {
                let sense = if sense == Sense::default() { atapi.attention.take().unwrap_or(sense) } else { sense };
                let mut bytes = vec![0; 18];
                (bytes[0], bytes[2], bytes[7], bytes[12], bytes[13]) = (0x70, sense.0, 10, sense.1, sense.2);
                Ok(Answer::Data(bytes, c[4].into()))
            }
            0x12 if c[1] & 3 != 0 => Err(BAD_FIELD),
            0x12 => {
                let mut bytes = vec![0x05, 0x80, 0x00, 0x21, 31, 0, 0, 0];
                bytes.extend(format!("{:8}{:16}{:4.4}", "BHYVE-RS", "CD-ROM", env!("CARGO_PKG_VERSION")).bytes());
                Ok(Answer::Data(bytes, c[4].into()))
            }
            // MODE SELECT: what can be set makes no difference.
            0x15 => Ok(Answer::Parameters(c[4].into())),
            0x55 => Ok(Answer::Parameters(be16(&c[7..]))),
            0x1a | 0x5a => self.mode_sense(c),
            0x1b => self.start_stop(c[4]),
            0x1e => {
                let locked = c[4] & 1 != 0;
                atapi.locked = locked;
                self.disk.iter_mut().for_each(|disk| disk.lock(locked));
                Ok(Answer::Done)
            }
            0x25 => {
                let last = (self.disc()? - 1) as u32;
                Ok(Answer::Data([last.to_be_bytes(), (SECTOR as u32).to_be_bytes()].concat(), 8))
            }
            0x28 => self.read_sectors(be32(&c[2..]), be16(&c[7..]) as u32),
            0xa8 => self.read_sectors(be32(&c[2..]), be32(&c[6..])),
            // READ CD: what is asked for of a sector must be its user data, or nothing.
            0xbe => match c[9] & 0xf8 {
                0x10 => self.read_sectors(be32(&c[2..]), be32(&[0, c[6], c[7], c[8]])),
                0x00 => self.disc().map(|_| Answer::Done),
                _ => Err(BAD_MODE),
            },
            // SEEK.
            0x2b => match self.disc()? > be32(&c[2..]).into() {
                true => Ok(Answer::Done),
                false => Err(OUT_OF_RANGE),
            },
            0x43 => self.read_toc(c),
            0x46 => Ok(self.configuration(c)),
            0x4a => self.event_status(c),
            // READ DISC INFORMATION: complete, one session with one track.
            0x51 => {
                self.disc()?;
                let mut bytes = vec![0; 34];
                bytes[..8].copy_from_slice(&[0, 32, 0x0e, 1, 1, 1, 1, 0x20]);
                bytes[16..24].fill(0xff);
                Ok(Answer::Data(bytes, be16(&c[7..])))
            }
            // SET CD SPEED.
            0xbb => Ok(Answer::Done),
            // MECHANISM STATUS.
            0xbd => {
                let open = u8::from(atapi.tray_open) << 4;
                Ok(Answer::Data(vec![0, open, 0, 0, 0, 0, 0, 0], be16(&c[8..])))
            }
            _ => Err(UNKNOWN_COMMAND),
        }
    }

    fn read_sectors(&mut self, lba: u32, count: u32) -> Result<Answer, Sense> {
        if u64::from(lba) + u64::from(count) > self.disc()? {
            return Err(OUT_OF_RANGE);
        }
        Ok(Answer::Read(lba.into(), count))
    }

    fn start_stop(&mut self, what: u8) -> Result<Answer, Sense> {
        match what & 3 {
            // Start and stop without moving the tray.
            0 => {}
            1 => drop(self.disc()?),
            2 if self.atapi().locked => return Err(LOCKED),
            eject => {
                let open = eject == 2;
                if std::mem::replace(&mut self.atapi().tray_open, open) != open {
                    self.tray_moved();
                }
            }
        }
        Ok(Answer::Done)
    }

    fn mode_sense(&mut self, c: &[u8]) -> Result<Answer, Sense> {
        let (control, wanted) = (c[2] >> 6, c[2] & 0x3f);
        if control == 3 {
            return Err(NO_SAVED_PAGES);
        }
        let medium = match self.disc() {
            Ok(_) => 0x01,
            Err(TRAY_OPEN) => 0x71,
            Err(_) => 0x70,
        };
        let locked = u8::from(self.atapi().locked) << 1;
        let pages: [&[u8]; 3] = [
            // Error recovery.
            &[0x01, 6, 0, 5, 0, 0, 0, 0],
            // Audio control.
            &[0x0e, 14, 4, 0, 0, 0, 0, 75, 1, 255, 2, 255, 0, 0, 0, 0],
            // Capabilities: reads CD-R, CD-RW and DVD; multi-session, modes 2; tray, lock and eject; 16 times the
            // speed of an audio disc, a buffer of 512 KiB.
            &[0x2a, 18, 0x0b, 0, 0x70, 0, 0x29 | locked, 0, 0x0b, 0, 0, 2, 2, 0, 0x0b, 0, 0, 0, 0, 0],
        ];
        let mut body = Vec::new();
        for page in pages.iter().filter(|p| wanted == 0x3f || p[0] == wanted) {
            let at = body.len();
            body.extend(*page);
            if control == 1 {
                // Nothing can be changed.
                body[at + 2..].fill(0);
            }
        }
        if body.is_empty() {
            return Err(BAD_FIELD);
        }
        if c[0] == 0x1a {
            let head = vec![body.len() as u8 + 3, medium, 0, 0];
            return Ok(Answer::Data([head, body].concat(), c[4].into()));
        }
        let head = vec![0, body.len() as u8 + 6, medium, 0, 0, 0, 0, 0];
        Ok(Answer::Data([head, body].concat(), be16(&c[7..])))
    }

    fn read_toc(&mut self, c: &[u8]) -> Result<Answer, Sense> {
        let end = self.disc()? as u32;
        let (msf, allowed) = (c[1] & 2 != 0, be16(&c[7..]));
        // SFF-8020i had the format in the last byte.
        let format = if c[2] & 15 != 0 { c[2] & 15 } else { c[9] >> 6 };
        let mut bytes = vec![0, 0, 1, 1];
        match format {
            0 => {
                if c[6] > 1 && c[6] != 0xaa {
                    return Err(BAD_FIELD);
                }
                if c[6] <= 1 {
                    bytes.extend([0, 0x14, 1, 0]);
                    bytes.extend(place(0, msf));
                }
                bytes.extend([0, 0x14, 0xaa, 0]);
                bytes.extend(place(end, msf));
            }
            // Where the last session starts.
            1 => {
                bytes.extend([0, 0x14, 1, 0]);
                bytes.extend(place(0, msf));
            }
            // The lead-in as it is recorded: first and last track, the lead-out, and the track.
            2 => {
                let (start, out) = (place(0, true), place(end, true));
                for (point, p) in [(0xa0, [0, 1, 0, 0]), (0xa1, [0, 1, 0, 0]), (0xa2, out), (1, start)] {
                    bytes.extend([1, 0x14, 0, point, 0, 0, 0, 0, p[1], p[2], p[3]]);
                }
            }
            _ => return Err(BAD_FIELD),
        }
        bytes[1] = bytes.len() as u8 - 2;
        Ok(Answer::Data(bytes, allowed))
    }

    fn configuration(&mut self, c: &[u8]) -> Answer {
        let profile = match self.disc() {
            Ok(size) if size > LARGEST_CD => 0x10,
            Ok(_) => 0x08,
            Err(_) => 0x00,
        };
        let current = |p: u8| u8::from(p == profile);
        let features: [&[u8]; 6] = [
            // Profiles: DVD-ROM, CD-ROM.
            &[0, 0x00, 0x03, 8, 0, 0x10, current(0x10), 0, 0, 0x08, current(0x08), 0],
            // Core: an ATAPI device.
            &[0, 0x01, 0x0b, 8, 0, 0, 0, 2, 1, 0, 0, 0],
            // Morphing: events of the medium are told when asked for.
            &[0, 0x02, 0x07, 4, 0x02, 0, 0, 0],
            // A tray with eject and lock.
            &[0, 0x03, 0x03, 4, 0x29, 0, 0, 0],
            // Random reads of 2048 bytes.
            &[0, 0x10, u8::from(profile != 0), 8, 0, 0, 8, 0, 0, 1, 0, 0],
            // CD read.
            &[0, 0x1e, 0x08 | current(0x08), 4, 0, 0, 0, 0],
        ];
        let (which, from) = (c[1] & 3, be16(&c[2..]));
        let mut bytes = vec![0, 0, 0, 0, 0, 0, 0, profile];
        for f in features {
            let number = usize::from(f[1]);
            let wanted = match which {
                0 => number >= from,
                1 => number >= from && f[2] & 1 != 0,
                _ => number == from,
            };
            if wanted {
                bytes.extend(f);
            }
        }
        bytes[3] = bytes.len() as u8 - 4;
        Answer::Data(bytes, be16(&c[7..]))
    }

    fn event_status(&mut self, c: &[u8]) -> Result<Answer, Sense> {
        // Only by polling.
        if c[1] & 1 == 0 {
            return Err(BAD_FIELD);
        }
        let allowed = be16(&c[7..]);
        if c[4] & 0x10 == 0 {
            return Ok(Answer::Data(vec![0, 2, 0x80, 0x10], allowed));
        }
        let there = self.disc().is_ok();
        let atapi = self.atapi();
        let event = std::mem::take(&mut atapi.media_event);
        let status = u8::from(atapi.tray_open) | u8::from(there) << 1;
        Ok(Answer::Data(vec![0, 6, 0x04, 0x10, event, status, 0, 0], allowed))
    }

    /// IDENTIFY PACKET DEVICE.
    fn identify_packet(&mut self) -> [u16; 256] {
        let mut w = [0; 256];
        // CD-ROM, removable, DRQ soon after PACKET, packets of 12 bytes.
        w[0] = 0x85c0;
        self.names(&mut w);
        // IORDY, LBA, DMA.
        w[49] = 0x0f00;
        w[50] = 0x4000;
        w[53] = 0x0006;
        dma_words(&mut w, self.atapi().dma_mode);
        w[80] = 0x007e;
        // NOP, DEVICE RESET, PACKET, power management.
        w[82] = 0x4218;
        w[83] = 0x4000;
        w[84] = 0x4000;
        w[85] = 0x4218;
        w[87] = 0x4000;
        w[93] = cable_word(self.slave());
        if self.make.serial_link {
            serial_words(&mut w);
        }
        seal(&mut w);
        w
    }
}
