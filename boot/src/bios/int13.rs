//! INT 13h: diskettes, disks and CD-ROMs.
//!
//! Disks are reached by cylinder, head and sector with a translated geometry, and by the Enhanced Disk Drive services
//! (EDD 1.1 and 3.0) with 64-bit sector numbers. CD-ROM drives are E0 and on, with sectors of 2048 bytes; a disc that
//! emulates a diskette or a disk ([`eltorito`]) takes number 00 or 80, and moves the others up.
//!
//! The geometry of a disk is what its partition table was made with, since it may come from another machine, whose
//! BIOS translated in another way; without a table that tells, it is LBA-assisted translation's. It is looked up at
//! power-on, and stays: an installer writes its table by the geometry that it was told.
//!
//! An access is made by a handle of the BIOS's own to the image, which is served in order with those of the
//! controllers.

use serde::{Deserialize, Serialize};

use super::disk::{DriveKind, Geometry};
use super::eltorito::{self, Emulation};
use super::{Access, Call, Flow, data, linear, rom};

/// Codes in AH.
pub(super) const OK: u8 = 0x00;
pub(super) const BAD_COMMAND: u8 = 0x01;
const WRITE_PROTECTED: u8 = 0x03;
const NOT_FOUND: u8 = 0x04;
const CHANGED: u8 = 0x06;
const UNKNOWN_MEDIUM: u8 = 0x0c;
pub(super) const DATA_ERROR: u8 = 0x10;
const NO_MEDIUM: u8 = 0x31;
const TIMEOUT: u8 = 0x80;
const NOT_LOCKED: u8 = 0xb0;
const NOT_REMOVABLE: u8 = 0xb2;
const LOCKED: u8 = 0xb1;
const WRITE_FAULT: u8 = 0xcc;

/// The number of the first CD-ROM drive.
pub(super) const CD: u8 = 0xe0;
/// Sectors of one transfer by packet.
const MOST: u32 = 0x1000;

/// What is known of drives beyond the data areas.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Drives {
    /// The CD-ROM drive that was booted from, and where the boot catalogue begins.
    pub disc: Option<(usize, u32)>,
    /// The image that was started there, until it is ended.
    pub image: Option<Emulation>,
    /// Disks' geometries as their partition tables have them.
    tables: Vec<Option<Geometry>>,
    /// How often each drive's medium had been changed when it was last looked at.
    seen: Vec<u64>,
    /// Locks of removable media.
    locks: Vec<u8>,
}

/// A drive that a number names.
#[derive(Clone, Copy, Debug)]
struct Target {
    /// Index in the configuration.
    drive: usize,
    kind: DriveKind,
    /// Host's number of the disk.
    disk: usize,
    /// Bytes before the first sector, and bytes of all.
    base: u64,
    bytes: u64,
    /// Bytes of a sector.
    sector: u64,
    geometry: Option<Geometry>,
    /// As INT 13h/08h tells it.
    floppy: u8,
    read_only: bool,
}

impl Target {
    fn total(&self) -> u64 {
        self.bytes.div_ceil(self.sector)
    }
}

fn count(c: &Call, kind: DriveKind) -> usize {
    c.config.drives.iter().filter(|d| d.kind == kind).count()
}

/// The emulation that is on, of diskettes (0) or disks (80).
fn emulation<'a>(c: &'a Call, class: u8) -> Option<&'a Emulation> {
    c.state.drives.image.as_ref().filter(|e| e.is_emulated() && e.number & 0x80 == class)
}

/// Diskette drives, an emulated one included.
pub(super) fn floppies(c: &Call) -> usize {
    count(c, DriveKind::Floppy) + usize::from(emulation(c, 0).is_some())
}

fn disks(c: &Call) -> usize {
    count(c, DriveKind::Disk) + usize::from(emulation(c, 0x80).is_some())
}

/// The number of drive `index` of the configuration.
pub(super) fn number(c: &Call, index: usize) -> u8 {
    let kind = c.config.drives[index].kind;
    let before = c.config.drives[..index].iter().filter(|d| d.kind == kind).count() as u8;
    match kind {
        DriveKind::Floppy => before,
        DriveKind::Disk => 0x80 + before,
        DriveKind::Cd | DriveKind::Net => CD + before,
    }
}

/// Prepares what POST leaves of drives. Their partition tables are read one after the other.
pub(super) fn start(c: &mut Call) -> Flow {
    loop {
        let n = c.state.drives.tables.len();
        let Some(drive) = c.config.drives.get(n) else { break };
        let disk = drive.disk;
        let bytes = if drive.kind == DriveKind::Disk { c.host.medium(disk).0 } else { 0 };
        let mut geometry = None;
        if bytes >= 512 {
            match c.read_disk(disk, 0, 512) {
                None => return Flow::Wait,
                Some(first) => geometry = first.ok().and_then(|s| Geometry::of_table(&s, bytes / 512)),
            }
        }
        c.state.drives.tables.push(geometry);
    }
    let disks: Vec<usize> = c.config.drives.iter().map(|d| d.disk).collect();
    c.state.drives.seen = disks.iter().map(|d| c.host.medium(*d).1).collect();
    c.state.drives.locks = vec![0; disks.len()];
    announce(c);
    let floppies = c.config.drives.iter().filter(|d| d.kind == DriveKind::Floppy).map(|d| d.floppy);
    for (n, model) in (0..2).zip(floppies.collect::<Vec<_>>()) {
        // Bits of the drive: 80 tracks, several rates, determined; then the data rate and kind of what it is made for.
        let (drive, media) =
            [(4, 0x93), (7, 0x15), (5, 0x97), (7, 0x17), (7, 0xd7)][usize::from(model.clamp(1, 5)) - 1];
        let history = c.byte(data::FLOPPY_HISTORY);
        c.set_byte(data::FLOPPY_HISTORY, history | drive << (4 * n));
        c.set_byte(data::FLOPPY_MEDIA + n, media);
    }
    Flow::Done
}

/// Tells the data areas of the drives that there are: numbers, parameter tables and their vectors.
pub(super) fn announce(c: &mut Call) {
    let (floppies, disks) = (floppies(c).min(4) as u16, disks(c));
    let equipment = c.word(data::EQUIPMENT) & !0xc1;
    c.set_word(data::EQUIPMENT, equipment | if floppies == 0 { 0 } else { 1 | (floppies - 1) << 6 });
    c.set_byte(data::DISK_COUNT, disks as u8);
    for n in 0..disks.min(2) {
        let Ok(Target { geometry: Some(g), .. }) = target(c, 0x80 + n as u8) else { continue };
        let mut table = [0; 16];
        table[..2].copy_from_slice(&(g.cylinders as u16).to_le_bytes());
        table[2] = g.heads as u8;
        table[5..7].copy_from_slice(&0xffffu16.to_le_bytes());
        table[8] = if g.heads > 8 { 0xc8 } else { 0xc0 };
        table[12..14].copy_from_slice(&(g.cylinders as u16).to_le_bytes());
        table[14] = g.sectors as u8;
        let at = data::DISK_TABLES + 16 * n as u64;
        c.host.write(at, &table);
        let vector = if n == 0 { 0x41 } else { 0x46 };
        c.set_dword(4 * vector, u32::from(data::EBDA_BASE) << 16 | (at - super::EBDA) as u32);
    }
}

/// What a number names, or why nothing.
fn target(c: &mut Call, number: u8) -> Result<Target, u8> {
    let (kind, first) = match number {
        ..0x80 => (DriveKind::Floppy, 0),
        0x80..CD => (DriveKind::Disk, 0x80),
        CD.. => (DriveKind::Cd, CD),
    };
    let mut n = usize::from(number - first);
    if let Some(e) = emulation(c, first) {
        if number == e.number {
            return Ok(Target {
                drive: e.drive,
                kind,
                disk: c.config.drives[e.drive].disk,
                base: e.base(),
                bytes: e.bytes,
                sector: 512,
                geometry: e.geometry,
                floppy: e.floppy(),
                read_only: true,
            });
        }
        n -= usize::from(number > e.number);
    }
    let (drive, d) = c.config.drives.iter().enumerate().filter(|(_, d)| d.kind == kind).nth(n).ok_or(BAD_COMMAND)?;
    let (disk, read_only, floppy) = (d.disk, d.read_only, d.floppy);
    let bytes = c.host.medium(disk).0;
    let (sector, geometry) = match kind {
        DriveKind::Floppy => c.host.diskette(disk).map_or((512, None), |d| {
            let g = Geometry { cylinders: d.cylinders.into(), heads: d.heads.into(), sectors: d.sectors.into() };
            (u64::from(d.sector_bytes), Some(g))
        }),
        DriveKind::Disk => {
            let table = c.state.drives.tables.get(drive).copied().flatten();
            (512, Some(table.unwrap_or_else(|| Geometry::of_disk(bytes / 512))))
        }
        _ => (2048, None),
    };
    Ok(Target { drive, kind, disk, base: 0, bytes, sector, geometry, floppy, read_only })
}

/// INT 13h, and INT 40h: diskettes only.
pub(super) fn service(c: &mut Call, floppies_only: bool) -> Flow {
    let number = c.r.dl();
    let function = c.r.ah();
    if floppies_only && number >= 0x80 {
        return finish(c, number, BAD_COMMAND);
    }
    match function {
        0x4a..=0x4d => return eltorito::service(c),
        0x01 => {
            let status = c.byte(status_at(number));
            c.r.set_ah(status);
            c.r.set_carry(status != 0);
            return Flow::Done;
        }
        // The reset of all drives works without one.
        0x00 if number < 0x80 => return finish(c, number, OK),
        0x08 if number < 0x80 && floppies(c) <= usize::from(number) => return no_floppy(c),
        0x15 if target(c, number).is_err() => {
            c.r.set_ah(0);
            c.r.set_carry(false);
            return Flow::Done;
        }
        _ => {}
    }
    let t = match target(c, number) {
        Ok(t) => t,
        // A drive that does not answer.
        Err(_) if number < 0x80 => return finish(c, number, TIMEOUT),
        Err(status) => return finish(c, number, status),
    };
    let status = match function {
        0x02..=0x05 => match sectors(c, &t, function) {
            Some(status) => status,
            None => return Flow::Wait,
        },
        0x08 => return parameters(c, &t, number),
        // Initialise, seek, reset, test, recalibrate, diagnose.
        0x00 | 0x09 | 0x0c | 0x0d | 0x10 | 0x11 | 0x14 => OK,
        0x15 => return drive_type(c, &t),
        // Without a diskette the line stays active.
        0x16 if t.kind == DriveKind::Floppy && t.bytes == 0 => CHANGED,
        0x16 if t.kind == DriveKind::Floppy => changed(c, &t),
        0x17 | 0x18 if t.kind == DriveKind::Floppy => return media_type(c, &t, number),
        0x41 if t.kind != DriveKind::Floppy && c.r.bx() == 0x55aa => {
            c.r.set_bx(0xaa55);
            c.r.set_ax(0x3000);
            // Packets, locking and ejecting for what has a tray, and the drive's extended parameters.
            c.r.set_cx(if t.kind == DriveKind::Cd { 7 } else { 5 });
            c.r.set_carry(false);
            return Flow::Done;
        }
        0x42..=0x44 | 0x47 if t.kind != DriveKind::Floppy => match packet(c, &t, function) {
            Some(status) => status,
            None => return Flow::Wait,
        },
        0x45 | 0x46 | 0x49 if t.kind == DriveKind::Cd => removable(c, &t, function),
        0x45 | 0x46 if t.kind == DriveKind::Disk => NOT_REMOVABLE,
        0x48 if t.kind != DriveKind::Floppy => extended_parameters(c, &t, number),
        // Fixed: never changed.
        0x49 if t.kind == DriveKind::Disk => OK,
        // Modes of transfer are the controller's own affair.
        0x4e if t.kind == DriveKind::Disk && matches!(c.r.al(), 0 | 2 | 3 | 5) => {
            c.r.set_al(0);
            OK
        }
        _ => BAD_COMMAND,
    };
    finish(c, number, status)
}

fn status_at(number: u8) -> u64 {
    if number < 0x80 { data::FLOPPY_STATUS } else { data::DISK_STATUS }
}

pub(super) fn finish(c: &mut Call, number: u8, status: u8) -> Flow {
    c.set_byte(status_at(number), status);
    c.r.set_ah(status);
    c.r.set_carry(status != OK);
    Flow::Done
}

/// Whether the medium was changed since the drive was last asked.
fn changed(c: &mut Call, t: &Target) -> u8 {
    let now = c.host.medium(t.disk).1;
    match c.state.drives.seen.get_mut(t.drive) {
        Some(seen) if *seen != now => {
            *seen = now;
            CHANGED
        }
        _ => OK,
    }
}

/// Whether there is something in a drive that it can be taken out of, and it is what was there before.
fn ready(c: &mut Call, t: &Target) -> Result<(), u8> {
    if t.kind == DriveKind::Disk || t.base != 0 {
        return Ok(());
    }
    if t.bytes == 0 {
        changed(c, t);
        return Err(if t.kind == DriveKind::Floppy { TIMEOUT } else { NO_MEDIUM });
    }
    match changed(c, t) {
        CHANGED => Err(CHANGED),
        _ => Ok(()),
    }
}

/// 02h to 05h: read, write, verify, format a track.
fn sectors(c: &mut Call, t: &Target, function: u8) -> Option<u8> {
    let (count, cx, head) = (u32::from(c.r.al()), c.r.cx(), u32::from(c.r.dh()));
    let buffer = linear(c.r.es, c.r.bx());
    if !c.again
        && let Err(status) = ready(c, t)
    {
        c.r.set_al(0);
        return Some(status);
    }
    let Some(g) = t.geometry else {
        c.r.set_al(0);
        return Some(if t.kind == DriveKind::Floppy { UNKNOWN_MEDIUM } else { BAD_COMMAND });
    };
    let cylinder = u32::from(cx >> 8) | u32::from(cx & 0xc0) << 2;
    let (sector, count) = if function == 5 { (1, g.sectors) } else { (u32::from(cx & 0x3f), count) };
    if count == 0 || count > 128 {
        c.r.set_al(0);
        return Some(BAD_COMMAND);
    }
    let Some(lba) = g.lba(cylinder, head, sector) else {
        c.r.set_al(0);
        return Some(if t.kind == DriveKind::Disk { BAD_COMMAND } else { NOT_FOUND });
    };
    let status = transfer(c, t, lba, count, buffer, function)?;
    // AL says how many: all, or none.
    if status != OK {
        c.r.set_al(0);
    }
    Some(status)
}

/// Moves sectors: function 2 reads to `buffer`, 3 writes from it, 4 looks, 5 formats.
fn transfer(c: &mut Call, t: &Target, lba: u64, count: u32, buffer: u64, function: u8) -> Option<u8> {
    if lba.saturating_add(count.into()) > t.total() && (t.kind != DriveKind::Floppy || lba >= t.total()) {
        return Some(NOT_FOUND);
    }
    let writes = matches!(function, 3 | 5);
    if writes && t.read_only {
        return Some(WRITE_PROTECTED);
    }
    let (offset, len) = (t.base + lba * t.sector, u64::from(count) * t.sector);
    // An image that was not copied to its end ends before the diskette does.
    let there = len.min((t.base + t.bytes).saturating_sub(offset));
    let answer = c.access(t.disk, |c| {
        if !writes {
            return Access::Read { offset, len: there };
        }
        let mut data = vec![0xf6; there as usize];
        if function == 3 {
            c.host.read(buffer, &mut data);
        }
        Access::Write { offset, data }
    })?;
    Some(match answer {
        Ok(mut bytes) => {
            if function == 2 {
                bytes.resize(len as usize, 0);
                c.host.write(buffer, &bytes);
            }
            OK
        }
        Err(()) if writes => WRITE_FAULT,
        Err(()) => DATA_ERROR,
    })
}

/// 08h.
fn parameters(c: &mut Call, t: &Target, number: u8) -> Flow {
    let drives = if number < 0x80 { floppies(c) } else { disks(c) };
    // A drive without a diskette has the one that it is made for.
    let (cylinders, sectors) = [(40, 9), (80, 15), (80, 9), (80, 18), (80, 36)][usize::from(t.floppy.clamp(1, 5)) - 1];
    let default = Geometry { cylinders, heads: 2, sectors };
    let g = match (t.geometry, t.kind) {
        (Some(g), _) => g,
        (None, DriveKind::Floppy) => default,
        (None, _) => return finish(c, number, BAD_COMMAND),
    };
    let last = g.cylinders - 1;
    c.r.set_cx((last as u16 & 0xff) << 8 | (last as u16 >> 2) & 0xc0 | g.sectors as u16);
    c.r.set_dx(((g.heads - 1) as u16) << 8 | drives as u16);
    if number < 0x80 {
        c.r.set_bx(t.floppy.into());
        c.r.es = data::ROM_SEGMENT;
        c.r.set_di(rom::DISKETTE_TABLE);
    }
    c.r.set_al(0);
    finish(c, number, OK)
}

/// 08h for a diskette drive that is not there: zeros, and how many there are.
fn no_floppy(c: &mut Call) -> Flow {
    let drives = floppies(c) as u16;
    c.r.set_ax(0);
    c.r.set_bx(0);
    c.r.set_cx(0);
    c.r.set_dx(drives);
    c.r.es = 0;
    c.r.set_di(0);
    // With a drive at all the AT answers without an error.
    let status = if drives > 0 { OK } else { BAD_COMMAND };
    finish(c, 0, status)
}

/// 15h: what kind of drive.
fn drive_type(c: &mut Call, t: &Target) -> Flow {
    match t.kind {
        // With a change line, which drives of 360 KB are without.
        DriveKind::Floppy => c.r.set_ah(if t.floppy == 1 { 1 } else { 2 }),
        DriveKind::Disk => {
            let sectors = t.total().min(u64::from(u32::MAX)) as u32;
            c.r.set_ah(3);
            c.r.set_cx((sectors >> 16) as u16);
            c.r.set_dx(sectors as u16);
        }
        _ => c.r.set_ah(0),
    }
    c.r.set_carry(false);
    Flow::Done
}

/// 17h and 18h: what is about to be formatted. The image has the format that it has.
fn media_type(c: &mut Call, t: &Target, number: u8) -> Flow {
    let Some(g) = t.geometry else { return finish(c, number, TIMEOUT) };
    if c.r.ah() == 0x18 {
        let tracks = u32::from(c.r.ch()) | u32::from(c.r.cl() & 0xc0) << 2;
        if (tracks + 1, u32::from(c.r.cl() & 0x3f)) != (g.cylinders, g.sectors) {
            return finish(c, number, UNKNOWN_MEDIUM);
        }
        c.r.es = data::ROM_SEGMENT;
        c.r.set_di(rom::DISKETTE_TABLE);
    }
    finish(c, number, OK)
}

/// 42h to 44h and 47h: as the packet at DS:SI says.
fn packet(c: &mut Call, t: &Target, function: u8) -> Option<u8> {
    let at = linear(c.r.ds, c.r.si());
    let mut packet = [0; 24];
    c.host.read(at, &mut packet[..16]);
    if packet[0] < 16 {
        return Some(BAD_COMMAND);
    }
    if packet[0] >= 24 {
        c.host.read(at + 16, &mut packet[16..]);
    }
    let dword = |n: usize| u32::from_le_bytes([packet[n], packet[n + 1], packet[n + 2], packet[n + 3]]);
    let short = u32::from(u16::from_le_bytes([packet[2], packet[3]]));
    let lba = u64::from(dword(8)) | u64::from(dword(12)) << 32;
    // EDD 3.0: a flat address in place of FFFF:FFFF, and a long count in place of FF.
    let flat = packet[0] >= 24 && dword(4) == u32::MAX;
    let long = packet[0] >= 24 && packet[2] == 0xff && dword(20) != 0;
    let count = if long { dword(20) } else { short };
    let buffer = if flat {
        u64::from(dword(16)) | u64::from(dword(20)) << 32
    } else {
        linear((dword(4) >> 16) as u16, dword(4) as u16)
    };
    if !c.again {
        if let Err(status) = ready(c, t) {
            c.set_word(at + 2, 0);
            return Some(status);
        }
        if lba.saturating_add(count.into()) > t.total() {
            c.set_word(at + 2, 0);
            return Some(NOT_FOUND);
        }
    }
    if count == 0 || function == 0x47 {
        return Some(OK);
    }
    if count > MOST {
        c.set_word(at + 2, 0);
        return Some(BAD_COMMAND);
    }
    let status = transfer(c, t, lba, count, buffer, function & 7)?;
    if status != OK {
        c.set_word(at + 2, 0);
    }
    Some(status)
}

/// 45h, 46h, 49h: lock, eject, change of a CD-ROM.
fn removable(c: &mut Call, t: &Target, function: u8) -> u8 {
    if function == 0x49 {
        return changed(c, t);
    }
    let action = c.r.al();
    let Some(lock) = c.state.drives.locks.get_mut(t.drive) else { return BAD_COMMAND };
    match (function, action) {
        (0x45, 0) if *lock == 0xff => 0xb4,
        (0x45, 0) => {
            *lock += 1;
            OK
        }
        (0x45, 1) if *lock == 0 => NOT_LOCKED,
        (0x45, 1) => {
            *lock -= 1;
            let locked = u8::from(*lock > 0);
            c.r.set_al(locked);
            OK
        }
        (0x45, 2) => {
            let locked = u8::from(*lock > 0);
            c.r.set_al(locked);
            OK
        }
        (0x46, 0) if *lock > 0 => LOCKED,
        // Ejecting is the user's to do.
        (0x46, 0) => 0xb5,
        _ => BAD_COMMAND,
    }
}

/// 48h.
fn extended_parameters(c: &mut Call, t: &Target, number: u8) -> u8 {
    let at = linear(c.r.ds, c.r.si());
    let room = usize::from(c.word(at));
    if room < 0x1a {
        return BAD_COMMAND;
    }
    let cd = t.kind == DriveKind::Cd;
    let mut out = [0; 0x42];
    let mut put = |n: usize, bytes: &[u8]| out[n..n + bytes.len()].copy_from_slice(bytes);
    // DMA boundaries are handled; the geometry is valid where it covers the disk; for a CD-ROM what it can do.
    let covered = t.geometry.filter(|g| g.cylinders < 1024 || g.total() >= t.total());
    let flags = if cd { 0x74 } else { u16::from(covered.is_some()) << 1 } | 1;
    put(2, &flags.to_le_bytes());
    let (cylinders, heads, sectors) = match t.geometry {
        Some(g) if !cd => ((t.total() / u64::from(g.heads * g.sectors)).min(0xffff_ffff) as u32, g.heads, g.sectors),
        _ => (u32::MAX, u32::MAX, u32::MAX),
    };
    put(4, &cylinders.to_le_bytes());
    put(8, &heads.to_le_bytes());
    put(12, &sectors.to_le_bytes());
    let total = if cd && t.bytes == 0 { u64::MAX } else { t.total() };
    put(16, &total.to_le_bytes());
    put(24, &(t.sector as u16).to_le_bytes());
    put(0x1a, &u32::MAX.to_le_bytes());
    let mut len = 0x1a;
    if room >= 0x1e {
        len = 0x1e;
        if let Some(pointer) = parameter_extension(c, t, number) {
            put(0x1a, &pointer.to_le_bytes());
        }
    }
    if room >= 0x42
        && let Some(place) = c.config.drives[t.drive].place
    {
        len = 0x42;
        put(0x1e, &0xbeddu16.to_le_bytes());
        put(0x20, &[0x24]);
        put(0x24, b"PCI ");
        let mut interface = [b' '; 8];
        interface[..place.interface.len().min(8)]
            .copy_from_slice(&place.interface.as_bytes()[..place.interface.len().min(8)]);
        put(0x28, &interface);
        let (bus, device, function) = place.pci;
        put(0x30, &[bus, device, function, place.unit.0, 0, 0, 0, 0]);
        put(0x38, &[place.unit.1]);
        let sum = out[0x1e..0x41].iter().fold(0u8, |s, b| s.wrapping_add(*b));
        out[0x41] = sum.wrapping_neg();
    }
    out[..2].copy_from_slice(&(len as u16).to_le_bytes());
    c.host.write(at, &out[..len]);
    OK
}

/// The device parameter table extension of an IDE drive, made where there is room for it: a far pointer.
fn parameter_extension(c: &mut Call, t: &Target, number: u8) -> Option<u32> {
    let place = c.config.drives[t.drive].place?;
    let (command, control, irq) = place.ide?;
    let n = usize::from(number & 0x7f) % data::DPTES;
    let mut table = [0; 16];
    table[..2].copy_from_slice(&command.to_le_bytes());
    table[2..4].copy_from_slice(&control.to_le_bytes());
    let atapi = t.kind == DriveKind::Cd;
    table[4] = 0xe0 | place.unit.1 << 4;
    table[5] = 0xcb;
    table[6] = irq;
    table[7] = 1;
    table[8] = 0;
    table[9] = 0;
    let translated = t.geometry.is_some_and(|g| g.heads > 16 || g.cylinders >= 1024);
    let flags: u16 = if atapi { 0x60 } else { 0x10 | if translated { 0x08 } else { 0 } } | 0x80;
    table[10..12].copy_from_slice(&flags.to_le_bytes());
    table[14] = 0x11;
    let sum = table[..15].iter().fold(0u8, |s, b| s.wrapping_add(*b));
    table[15] = sum.wrapping_neg();
    let at = data::DPTE + 16 * n as u64;
    c.host.write(at, &table);
    Some(u32::from(data::EBDA_BASE) << 16 | (at - super::EBDA) as u32)
}
