//! The command set of CD-ROM drives: the SCSI commands of SFF-8020i and MMC-3, whatever brings them to the drive.
//!
//! Modelled: one data track in one session, cooked reads, table of contents, the mode pages and features that drivers
//! ask for, the tray with its lock, and a change of the disc, which the next command hears of as UNIT ATTENTION. Not
//! modelled: audio, raw sectors, writing.

use emu::DiskPort;
use serde::{Deserialize, Serialize};

/// Bytes in a sector.
pub(crate) const SECTOR: u64 = 2048;
/// Discs of more sectors are DVDs.
const LARGEST_CD: u64 = 450_000;

/// How a drive is connected, as its core feature says it.
pub(crate) const SCSI: u8 = 1;
pub(crate) const ATAPI: u8 = 2;

/// Sense key, additional sense code and its qualifier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sense(pub u8, pub u8, pub u8);

pub(crate) const NOT_READY: Sense = Sense(2, 0x3a, 0);
pub(crate) const TRAY_OPEN: Sense = Sense(2, 0x3a, 2);
pub(crate) const READ_ERROR: Sense = Sense(3, 0x11, 0);
pub(crate) const UNKNOWN_COMMAND: Sense = Sense(5, 0x20, 0);
pub(crate) const OUT_OF_RANGE: Sense = Sense(5, 0x21, 0);
pub(crate) const BAD_FIELD: Sense = Sense(5, 0x24, 0);
pub(crate) const NO_SAVED_PAGES: Sense = Sense(5, 0x39, 0);
pub(crate) const LOCKED: Sense = Sense(5, 0x53, 2);
pub(crate) const BAD_MODE: Sense = Sense(5, 0x64, 0);
pub(crate) const NEW_DISC: Sense = Sense(6, 0x28, 0);
pub(crate) const POWERED_ON: Sense = Sense(6, 0x29, 0);

/// Media events of GET EVENT STATUS NOTIFICATION.
const EVENT_NEW: u8 = 2;
const EVENT_REMOVED: u8 = 3;

/// What a drive has to say of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Told {
    /// Of the command that failed last.
    pub sense: Sense,
    /// What the next command is told first.
    pub attention: Option<Sense>,
}

impl Default for Told {
    fn default() -> Told {
        Told { sense: Sense::default(), attention: Some(POWERED_ON) }
    }
}

/// A drive, without what connects it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Mmc {
    #[serde(flatten)]
    pub told: Told,
    media_event: u8,
    locked: bool,
    tray_open: bool,
}

/// How a command ends, or goes on.
pub(crate) enum Answer {
    /// Data for the guest, cut to the length that it allows.
    Data(Vec<u8>, usize),
    /// Sectors.
    Read(u64, u32),
    /// The guest is to send so many bytes.
    Parameters(usize),
    /// Nothing more.
    Done,
}

pub(crate) fn be16(b: &[u8]) -> usize {
    usize::from(u16::from_be_bytes([b[0], b[1]]))
}

pub(crate) fn be32(b: &[u8]) -> u32 {
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

impl Mmc {
    /// The disc's size in sectors, if there is one and the tray is closed.
    fn disc(&self, disk: &Option<DiskPort>) -> Result<u64, Sense> {
        if self.tray_open {
            return Err(TRAY_OPEN);
        }
        let size = disk.as_ref().map_or(0, |d| d.size()).div_ceil(SECTOR);
        if size > 0 { Ok(size.min(u32::MAX.into())) } else { Err(NOT_READY) }
    }

    /// Somebody outside put another disc in, or took it out, and closed the tray.
    pub fn medium_changed(&mut self, disk: &Option<DiskPort>) {
        self.tray_open = false;
        self.tray_moved(disk);
    }

    /// Tells whether there is a disc now.
    fn tray_moved(&mut self, disk: &Option<DiskPort>) {
        let there = self.disc(disk).is_ok();
        self.media_event = if there { EVENT_NEW } else { EVENT_REMOVED };
        self.told.attention = there.then_some(NEW_DISC).or(self.told.attention);
    }

    /// Does what a command of twelve bytes says. `interface` is how the drive is connected.
    pub fn execute(&mut self, c: &[u8], disk: &mut Option<DiskPort>, interface: u8) -> Result<Answer, Sense> {
        // REQUEST SENSE, INQUIRY, GET CONFIGURATION and GET EVENT STATUS NOTIFICATION work whatever there is to tell.
        if !matches!(c[0], 0x03 | 0x12 | 0x46 | 0x4a)
            && let Some(sense) = self.told.attention.take()
        {
            return Err(sense);
        }
        let sense = std::mem::take(&mut self.told.sense);
        let disc = self.disc(disk);
        match c[0] {
            // TEST UNIT READY.
            0x00 => disc.map(|_| Answer::Done),
            0x03 => {
                let sense = if sense == Sense::default() { self.told.attention.take().unwrap_or(sense) } else { sense };
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
            0x1a | 0x5a => self.mode_sense(c, disc),
            0x1b => self.start_stop(c[4], disk),
            0x1e => {
                let locked = c[4] & 1 != 0;
                self.locked = locked;
                disk.iter_mut().for_each(|disk| disk.lock(locked));
                Ok(Answer::Done)
            }
            0x25 => {
                let last = (disc? - 1) as u32;
                Ok(Answer::Data([last.to_be_bytes(), (SECTOR as u32).to_be_bytes()].concat(), 8))
            }
            0x28 => read_sectors(disc, be32(&c[2..]), be16(&c[7..]) as u32),
            0xa8 => read_sectors(disc, be32(&c[2..]), be32(&c[6..])),
            // READ CD: what is asked for of a sector must be its user data, or nothing.
            0xbe => match c[9] & 0xf8 {
                0x10 => read_sectors(disc, be32(&c[2..]), be32(&[0, c[6], c[7], c[8]])),
                0x00 => disc.map(|_| Answer::Done),
                _ => Err(BAD_MODE),
            },
            // SEEK.
            0x2b => match disc? > be32(&c[2..]).into() {
                true => Ok(Answer::Done),
                false => Err(OUT_OF_RANGE),
            },
            0x43 => read_toc(c, disc),
            0x46 => Ok(configuration(c, disc, interface)),
            0x4a => self.event_status(c, disc.is_ok()),
            // READ DISC INFORMATION: complete, one session with one track.
            0x51 => {
                disc?;
                let mut bytes = vec![0; 34];
                bytes[..8].copy_from_slice(&[0, 32, 0x0e, 1, 1, 1, 1, 0x20]);
                bytes[16..24].fill(0xff);
                Ok(Answer::Data(bytes, be16(&c[7..])))
            }
            // SET CD SPEED.
            0xbb => Ok(Answer::Done),
            // MECHANISM STATUS.
            0xbd => {
                let open = u8::from(self.tray_open) << 4;
                Ok(Answer::Data(vec![0, open, 0, 0, 0, 0, 0, 0], be16(&c[8..])))
            }
            _ => Err(UNKNOWN_COMMAND),
        }
    }

    fn start_stop(&mut self, what: u8, disk: &Option<DiskPort>) -> Result<Answer, Sense> {
        match what & 3 {
            // Start and stop without moving the tray.
            0 => {}
            1 => drop(self.disc(disk)?),
            2 if self.locked => return Err(LOCKED),
            eject => {
                let open = eject == 2;
                if std::mem::replace(&mut self.tray_open, open) != open {
                    self.tray_moved(disk);
                }
            }
        }
        Ok(Answer::Done)
    }

    fn mode_sense(&self, c: &[u8], disc: Result<u64, Sense>) -> Result<Answer, Sense> {
        let (control, wanted) = (c[2] >> 6, c[2] & 0x3f);
        if control == 3 {
            return Err(NO_SAVED_PAGES);
        }
        let medium = match disc {
            Ok(_) => 0x01,
            Err(TRAY_OPEN) => 0x71,
            Err(_) => 0x70,
        };
        let locked = u8::from(self.locked) << 1;
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

    fn event_status(&mut self, c: &[u8], there: bool) -> Result<Answer, Sense> {
        // Only by polling.
        if c[1] & 1 == 0 {
            return Err(BAD_FIELD);
        }
        let allowed = be16(&c[7..]);
        if c[4] & 0x10 == 0 {
            return Ok(Answer::Data(vec![0, 2, 0x80, 0x10], allowed));
        }
        let event = std::mem::take(&mut self.media_event);
        let status = u8::from(self.tray_open) | u8::from(there) << 1;
        Ok(Answer::Data(vec![0, 6, 0x04, 0x10, event, status, 0, 0], allowed))
    }
}

fn read_sectors(disc: Result<u64, Sense>, lba: u32, count: u32) -> Result<Answer, Sense> {
    if u64::from(lba) + u64::from(count) > disc? {
        return Err(OUT_OF_RANGE);
    }
    Ok(Answer::Read(lba.into(), count))
}

fn read_toc(c: &[u8], disc: Result<u64, Sense>) -> Result<Answer, Sense> {
    let end = disc? as u32;
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

fn configuration(c: &[u8], disc: Result<u64, Sense>, interface: u8) -> Answer {
    let profile = match disc {
        Ok(size) if size > LARGEST_CD => 0x10,
        Ok(_) => 0x08,
        Err(_) => 0x00,
    };
    let current = |p: u8| u8::from(p == profile);
    let features: [&[u8]; 6] = [
        // Profiles: DVD-ROM, CD-ROM.
        &[0, 0x00, 0x03, 8, 0, 0x10, current(0x10), 0, 0, 0x08, current(0x08), 0],
        // Core.
        &[0, 0x01, 0x0b, 8, 0, 0, 0, interface, 1, 0, 0, 0],
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
