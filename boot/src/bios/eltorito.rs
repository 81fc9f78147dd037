//! El Torito: the boot catalogue of a CD-ROM, and its images that stand for a diskette or a disk (Phoenix and IBM,
//! "El Torito" Bootable CD-ROM Format Specification, version 1.0).
//!
//! A catalogue's first entry is the default one; behind it come sections, each for a kind of machine. What is booted is
//! the first bootable entry for ours. An image is one at a time: INT 13h/4Ah and 4Ch put another one in its place,
//! 4Bh ends it, and 4Dh gives loaders with a menu of their own the catalogue.

use serde::{Deserialize, Serialize};

use super::disk::{DriveKind, Geometry};
use super::int13::{self, BAD_COMMAND, DATA_ERROR, OK};
use super::{Call, Flow, linear};

/// Bytes of a disc's sector.
const SECTOR: u64 = 2048;
/// Sectors of the catalogue that are looked at: room for 512 entries.
const CATALOGUE: u64 = 8;
const ENTRY: usize = 32;
/// First bytes of entries: section headers with and without more behind them, a bootable entry, an extension of one.
const MORE: u8 = 0x90;
const LAST: u8 = 0x91;
const BOOTABLE: u8 = 0x88;
/// Of an entry's media type: an extension follows.
const EXTENDED: u8 = 0x20;
/// The kind of machine that this is.
const X86: u8 = 0;
/// Media types: no emulation, and a disk. Between them are the diskettes.
const NONE: u8 = 0;
const DISK: u8 = 4;
/// The segment that a load segment of 0 means.
const SEGMENT: u16 = 0x7c0;
/// Of an image without emulation no more is loaded than conventional memory has room for, in sectors of 512 bytes.
const MOST: u16 = 1024;
/// The specification packet.
const PACKET: usize = 0x13;

/// An image on a disc that is, or is to be, in its place among the drives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Emulation {
    /// By which INT 13h knows it: 00 or 80, or the CD-ROM drive's own number without emulation.
    pub number: u8,
    /// As in the catalogue.
    media: u8,
    /// Index of the drive that the disc is in.
    pub drive: usize,
    /// First sector of 2048 bytes of the image.
    start: u32,
    /// Where it is loaded, and how many sectors of 512 bytes.
    pub segment: u16,
    count: u16,
    /// A disk's follows from its partition table.
    pub geometry: Option<Geometry>,
    /// Bytes of the image.
    pub bytes: u64,
}

impl Emulation {
    /// It stands for something else than the disc that it is.
    pub fn is_emulated(&self) -> bool {
        self.media != NONE
    }

    /// Where its first byte is on the disc.
    pub fn base(&self) -> u64 {
        u64::from(self.start) * SECTOR
    }

    /// As INT 13h/08h tells the type of a diskette drive.
    pub fn floppy(&self) -> u8 {
        [0, 2, 4, 5, 0].get(usize::from(self.media)).copied().unwrap_or(0)
    }

    fn new(c: &mut Call, drive: usize, media: u8, start: u32, load: (u16, u16)) -> Result<Emulation, String> {
        let geometry = |sectors| Some(Geometry { cylinders: 80, heads: 2, sectors });
        let geometry = match media {
            NONE | DISK => None,
            1 => geometry(15),
            2 => geometry(18),
            3 => geometry(36),
            _ => return Err(format!("emulation of kind {media} is unknown")),
        };
        let size = c.host.medium(c.config.drives[drive].disk).0;
        let left = size.saturating_sub(u64::from(start) * SECTOR);
        if left == 0 {
            return Err("its boot image is not on the disc".to_owned());
        }
        Ok(Emulation {
            number: match media {
                NONE => int13::number(c, drive),
                DISK => 0x80,
                _ => 0,
            },
            media,
            drive,
            start,
            segment: if load.0 == 0 { SEGMENT } else { load.0 },
            count: load.1.clamp(1, MOST),
            geometry,
            bytes: geometry.map_or(left, |g| left.min(g.total() * 512)),
        })
    }
}

/// The catalogue's first sector, from the boot record at sector 17.
pub(super) fn catalogue_of(c: &mut Call, drive: usize) -> Option<Result<u32, String>> {
    let disk = c.config.drives[drive].disk;
    let size = c.host.medium(disk).0;
    if size == 0 {
        return Some(Err("no medium".to_owned()));
    }
    if size < 18 * SECTOR {
        return Some(Err("too small for a file system".to_owned()));
    }
    let sector = match c.read_disk(disk, 17 * SECTOR, SECTOR)? {
        Ok(sector) => sector,
        Err(()) => return Some(Err("the boot record cannot be read".to_owned())),
    };
    if &sector[..6] != b"\0CD001" || !sector[7..].starts_with(b"EL TORITO SPECIFICATION") {
        return Some(Err("no El Torito boot record".to_owned()));
    }
    let lba = u32::from_le_bytes([sector[0x47], sector[0x48], sector[0x49], sector[0x4a]]);
    if (u64::from(lba) + 1) * SECTOR > size {
        return Some(Err("its boot catalogue is not on the disc".to_owned()));
    }
    Some(Ok(lba))
}

/// What the catalogue at this sector has to boot.
pub(super) fn image_of(c: &mut Call, drive: usize, catalogue: u32) -> Option<Result<Emulation, String>> {
    let disk = c.config.drives[drive].disk;
    let at = u64::from(catalogue) * SECTOR;
    let len = c.host.medium(disk).0.saturating_sub(at).min(CATALOGUE * SECTOR);
    let bytes = match c.read_disk(disk, at, len)? {
        Ok(bytes) => bytes,
        Err(()) => return Some(Err("the boot catalogue cannot be read".to_owned())),
    };
    Some(choose(&bytes).and_then(|entry| {
        let word = |n: usize| u16::from_le_bytes([entry[n], entry[n + 1]]);
        let start = u32::from(word(8)) | u32::from(word(10)) << 16;
        Emulation::new(c, drive, entry[1] & 0x0f, start, (word(2), word(6)))
    }))
}

/// The first bootable entry for our kind of machine.
fn choose(catalogue: &[u8]) -> Result<&[u8], String> {
    let mut entries = catalogue.chunks_exact(ENTRY);
    let validation = entries.next().filter(|v| {
        let sum = v.chunks(2).fold(0u16, |s, w| s.wrapping_add(u16::from_le_bytes([w[0], w[1]])));
        v[0] == 1 && v[30..32] == [0x55, 0xaa] && sum == 0
    });
    let Some(validation) = validation else { return Err("the boot catalogue is damaged".to_owned()) };
    let mut others: Vec<u8> = Vec::new();
    let mut look = |platform: u8, entry: &[u8]| {
        if entry[0] == BOOTABLE && platform != X86 && !others.contains(&platform) {
            others.push(platform);
        }
        entry[0] == BOOTABLE && platform == X86
    };
    if let Some(entry) = entries.next().filter(|e| look(validation[1], e)) {
        return Ok(entry);
    }
    while let Some(header) = entries.next().filter(|h| matches!(h[0], MORE | LAST)) {
        for _ in 0..u16::from_le_bytes([header[2], header[3]]) {
            let Some(entry) = entries.next() else { break };
            if look(header[1], entry) {
                return Ok(entry);
            }
            let mut extended = entry[1] & EXTENDED != 0;
            while extended {
                extended = entries.next().is_some_and(|e| e[1] & EXTENDED != 0);
            }
        }
        if header[0] == LAST {
            break;
        }
    }
    if others.is_empty() {
        return Err("its boot catalogue has nothing to boot".to_owned());
    }
    let names = others.iter().map(|platform| match platform {
        1 => "PowerPC".to_owned(),
        2 => "Macintosh".to_owned(),
        0xef => "UEFI".to_owned(),
        other => format!("{other:02X}h"),
    });
    let names = names.collect::<Vec<_>>().join(" and ");
    Err(format!("bootable on other machines only: {names}"))
}

/// Puts the image in its place, and gives the sectors that are to be loaded.
pub(super) fn start(c: &mut Call, image: &Emulation) -> Option<Result<Vec<u8>, String>> {
    let disk = c.config.drives[image.drive].disk;
    // A diskette or disk has one boot sector, whatever the catalogue says.
    let sectors = if image.is_emulated() { 1 } else { image.count };
    let len = (u64::from(sectors) * 512).min(image.bytes);
    let bytes = match c.read_disk(disk, image.base(), len)? {
        Ok(bytes) => bytes,
        Err(()) => return Some(Err("the boot image cannot be read".to_owned())),
    };
    let mut image = image.clone();
    if image.media == DISK && image.geometry.is_none() {
        let Some((geometry, sectors)) = Geometry::of_first_partition(&bytes) else {
            return Some(Err("its image of a disk has no partition".to_owned()));
        };
        image.geometry = Some(geometry);
        image.bytes = image.bytes.min(sectors * 512);
    }
    c.state.drives.image = Some(image);
    int13::announce(c);
    Some(Ok(bytes))
}

/// Ends what is emulated, if anything is.
pub(super) fn stop(c: &mut Call) {
    c.state.drives.image = None;
    int13::announce(c);
}

/// Where a drive is, as a packet says it: the controller's index, and which drive of it.
fn place(c: &Call, drive: usize) -> (u8, u16) {
    c.config.drives[drive].place.map_or((0, 0), |p| (p.unit.0, p.unit.1.into()))
}

/// INT 13h/4Ah to 4Dh.
pub(super) fn service(c: &mut Call) -> Flow {
    let (function, number) = (c.r.ah(), c.r.dl());
    let done = match (function, c.r.al()) {
        (0x4a | 0x4c, 0) => initiate(c, function == 0x4c),
        (0x4b, end @ (0 | 1)) => Some(status(c, number, end == 0)),
        (0x4d, 0) => read_catalogue(c),
        _ => Some(BAD_COMMAND),
    };
    match done {
        None => Flow::Wait,
        // What was booted has registers of its own.
        Some(OK) if function == 0x4c => Flow::Done,
        Some(status) => int13::finish(c, number, status),
    }
}

/// 4Bh: tells what is emulated, and ends it.
fn status(c: &mut Call, number: u8, end: bool) -> u8 {
    let Some(image) = c.state.drives.image.clone() else { return BAD_COMMAND };
    if ![0x7f, image.number, int13::number(c, image.drive)].contains(&number) {
        return BAD_COMMAND;
    }
    let (controller, device) = place(c, image.drive);
    let mut packet = [0; PACKET];
    packet[..4].copy_from_slice(&[PACKET as u8, image.media, image.number, controller]);
    packet[4..8].copy_from_slice(&image.start.to_le_bytes());
    packet[8..10].copy_from_slice(&device.to_le_bytes());
    packet[12..14].copy_from_slice(&image.segment.to_le_bytes());
    packet[14..16].copy_from_slice(&image.count.to_le_bytes());
    if let Some(g) = image.geometry {
        let last = g.cylinders - 1;
        packet[16..].copy_from_slice(&[last as u8, (last >> 2) as u8 & 0xc0 | g.sectors as u8, (g.heads - 1) as u8]);
    }
    let at = linear(c.r.ds, c.r.si());
    c.host.write(at, &packet);
    if end && image.is_emulated() {
        stop(c);
    }
    OK
}

/// 4Ah and 4Ch: emulates the image that the packet at DS:SI names, and boots it.
fn initiate(c: &mut Call, boot: bool) -> Option<u8> {
    let at = linear(c.r.ds, c.r.si());
    let mut packet = [0; PACKET];
    c.host.read(at, &mut packet);
    let Some(image) = wanted(c, &packet) else { return Some(BAD_COMMAND) };
    let Ok(bytes) = start(c, &image)? else { return Some(DATA_ERROR) };
    if boot {
        load(c, &bytes);
    }
    Some(OK)
}

/// What a specification packet asks for.
fn wanted(c: &mut Call, packet: &[u8; PACKET]) -> Option<Emulation> {
    let word = |n: usize| u16::from_le_bytes([packet[n], packet[n + 1]]);
    let (media, number, start) = (packet[1] & 0x0f, packet[2], u32::from(word(4)) | u32::from(word(6)) << 16);
    // The drive that is in use, if it may be that one: controllers of several kinds have the same numbers.
    let used = c.state.drives.image.as_ref().map(|i| i.drive).into_iter();
    let mut drives = used.chain(0..c.config.drives.len());
    let drive = drives.find(|d| c.config.drives[*d].kind == DriveKind::Cd && place(c, *d) == (packet[3], word(8)))?;
    let mut image = Emulation::new(c, drive, media, start, (word(12), word(14))).ok()?;
    let fits = match media {
        NONE => true,
        DISK => (0x80..int13::CD).contains(&number),
        _ => number < 0x80,
    };
    if usize::from(packet[0]) < PACKET || !fits {
        return None;
    }
    if image.is_emulated() {
        // Behind the last one at most.
        let others = if media == DISK { DriveKind::Disk } else { DriveKind::Floppy };
        let last = c.config.drives.iter().filter(|d| d.kind == others).count();
        image.number = number & 0x80 | (number & 0x7f).min(last as u8);
    }
    let (heads, sectors) = (u32::from(packet[18]) + 1, u32::from(packet[17] & 0x3f));
    if media == DISK && sectors != 0 {
        let g = Geometry { cylinders: (u32::from(packet[17] & 0xc0) << 2 | u32::from(packet[16])) + 1, heads, sectors };
        image.geometry = Some(g);
        image.bytes = image.bytes.min(g.total() * 512);
    }
    Some(image)
}

/// Enters the image that was started last.
pub(super) fn load(c: &mut Call, bytes: &[u8]) {
    let Some(Emulation { number, segment, .. }) = c.state.drives.image else { return };
    c.host.write(linear(segment, 0), bytes);
    // Boot sectors expect to be at 0:7C00, not at 7C0:0.
    let (segment, offset) = if segment == SEGMENT { (0, SEGMENT << 4) } else { (segment, 0) };
    super::boot::enter(c, number, segment, offset);
}

/// 4Dh: sectors of the boot catalogue to a buffer, as the packet at DS:SI says.
fn read_catalogue(c: &mut Call) -> Option<u8> {
    let at = linear(c.r.ds, c.r.si());
    let mut packet = [0; 8];
    c.host.read(at, &mut packet);
    let [size, count, o0, o1, s0, s1, f0, f1] = packet;
    let Some((drive, catalogue)) = c.state.drives.disc.filter(|_| size >= 8 && count > 0) else {
        return Some(BAD_COMMAND);
    };
    let first = u64::from(catalogue) + u64::from(u16::from_le_bytes([f0, f1]));
    let disk = c.config.drives[drive].disk;
    Some(match c.read_disk(disk, first * SECTOR, u64::from(count) * SECTOR)? {
        Ok(bytes) => {
            c.host.write(linear(u16::from_le_bytes([s0, s1]), u16::from_le_bytes([o0, o1])), &bytes);
            OK
        }
        Err(()) => DATA_ERROR,
    })
}
