//! INT 18h and 19h: finding something to boot.
//!
//! Kinds of drives are tried in the user's order, and each drive of a kind. What a drive lacked is kept, for the screen
//! that says so when nothing is left; a key press starts over. INT 18h, by which a boot sector gives up, goes on behind
//! the drive that it came from.

use serde::{Deserialize, Serialize};

use super::disk::{DriveKind, Geometry};
use super::int13::{self, Emulation};
use super::post::START_FLAGS;
use super::{Call, Flow, data, keyboard, linear, serial};

/// Where boot sectors go.
const SECTOR_AT: u16 = 0x7c00;
/// Milliseconds of guest time.
const MS: u64 = 1_000_000;
/// The boot menu's key: F12.
const MENU_KEY: u16 = 0x8600;
/// Sectors of a CD-ROM.
const CD_SECTOR: u64 = 2048;
/// Of an image without emulation no more is loaded than conventional memory has room for, in sectors of 512 bytes.
const MOST: u16 = 1024;

/// How far the search is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Progress {
    /// Drives to try, by index; `None` for the network.
    list: Vec<Option<usize>>,
    next: usize,
    step: Step,
    /// What was wrong with those before.
    failed: Vec<String>,
    /// The user chose the next one for this start only.
    once: Option<DriveKind>,
    /// The drive that was booted.
    catalogue: u32,
}

impl Progress {
    /// The sector of the boot catalogue, if a CD-ROM was booted.
    pub(super) fn catalogue(&self) -> u32 {
        self.catalogue
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Step {
    /// The prompt for the menu stands until this time.
    #[default]
    Start,
    Prompt(u64),
    Menu,
    /// The next drive.
    Try,
    /// El Torito: its catalogue is asked for.
    Catalogue(u32),
    /// The image is asked for.
    Image(Emulation),
    /// Nothing left.
    Failed,
}

/// At power-on: what is to be done differently this once.
pub(super) fn start(c: &mut Call, first: bool) {
    serial::start(c);
    c.state.boot.once = c.config.options.once.filter(|_| first);
    let text = format!("bhyve-rs BIOS {}\n", env!("CARGO_PKG_VERSION"));
    c.print(&text);
}

/// INT 19h, and INT 18h.
pub(super) fn service(c: &mut Call, gave_up: bool) -> Flow {
    if !c.again {
        let p = &mut c.state.boot;
        if gave_up && p.next > 0 {
            p.step = Step::Try;
            let index = p.next - 1;
            say(c, index, "its boot loader gave up");
        } else {
            p.step = Step::Start;
        }
    }
    loop {
        match c.state.boot.step.clone() {
            Step::Start => {
                let list = candidates(c);
                let ms = c.config.options.menu_ms;
                let until = c.host.now() + u64::from(ms) * MS;
                c.state.drives.cd = None;
                let p = &mut c.state.boot;
                (p.list, p.next, p.step) = (list, 0, Step::Try);
                p.failed.clear();
                if ms > 0 {
                    c.state.boot.step = Step::Prompt(until);
                    c.print("Press F12 for the boot menu\n");
                }
            }
            Step::Prompt(until) => {
                serial::poll(c);
                if keyboard::peek(c, true) == Some(MENU_KEY) {
                    keyboard::take(c);
                    menu(c);
                } else if c.host.now() < until {
                    return Flow::Wait;
                } else {
                    c.state.boot.step = Step::Try;
                }
            }
            Step::Menu => {
                serial::poll(c);
                let Some(key) = keyboard::peek(c, true) else { return Flow::Wait };
                keyboard::take(c);
                let n = usize::from((key as u8).wrapping_sub(b'1'));
                let p = &mut c.state.boot;
                if n < p.list.len() {
                    let chosen = p.list.remove(n);
                    p.list.insert(0, chosen);
                    p.step = Step::Try;
                } else if key as u8 == 0x1b {
                    p.step = Step::Try;
                }
            }
            Step::Try => {
                let p = &c.state.boot;
                let Some(candidate) = p.list.get(p.next).copied() else {
                    failed(c);
                    continue;
                };
                let tried = match candidate {
                    None => Some(Err("this version has no network boot".to_owned())),
                    Some(drive) if c.config.drives[drive].kind == DriveKind::Cd => descriptor(c, drive),
                    Some(drive) => boot_sector(c, drive),
                };
                match tried {
                    None => return Flow::Wait,
                    Some(Ok(true)) => return Flow::Done,
                    Some(Ok(false)) => {}
                    Some(Err(why)) => next(c, &why),
                }
            }
            Step::Catalogue(lba) => match catalogue(c, lba) {
                None => return Flow::Wait,
                Some(Ok(e)) => c.state.boot.step = Step::Image(e),
                Some(Err(why)) => next(c, &why),
            },
            Step::Image(e) => match image(c, &e) {
                None => return Flow::Wait,
                Some(Ok(())) => return Flow::Done,
                Some(Err(why)) => next(c, &why),
            },
            Step::Failed => {
                serial::poll(c);
                if keyboard::peek(c, true).is_none() {
                    return Flow::Wait;
                }
                keyboard::take(c);
                c.state.boot.step = Step::Start;
            }
        }
    }
}

/// What to try, in order.
fn candidates(c: &mut Call) -> Vec<Option<usize>> {
    let once = c.state.boot.once.take();
    let order = once.into_iter().chain(c.config.options.order.iter().copied().filter(|k| Some(*k) != once));
    let mut list = Vec::new();
    for kind in order {
        if kind == DriveKind::Net {
            list.push(None);
        }
        list.extend((0..c.config.drives.len()).filter(|d| c.config.drives[*d].kind == kind).map(Some));
    }
    list
}

fn name(c: &Call, candidate: Option<usize>) -> String {
    candidate.map_or_else(|| "network".to_owned(), |d| c.config.drives[d].name.clone())
}

/// Notes what was wrong with candidate `index`.
fn say(c: &mut Call, index: usize, why: &str) {
    let candidate = c.state.boot.list.get(index).copied().flatten();
    let line = format!("{}: {why}", name(c, candidate));
    c.host.log(&line);
    c.state.boot.failed.push(line);
}

/// The present one will not do.
fn next(c: &mut Call, why: &str) {
    let index = c.state.boot.next;
    say(c, index, why);
    c.state.drives.cd = None;
    c.state.boot.next += 1;
    c.state.boot.step = Step::Try;
}

fn menu(c: &mut Call) {
    c.print("\nBoot from:\n");
    for n in 0..c.state.boot.list.len().min(9) {
        let text = format!("  {}  {}\n", n + 1, name(c, c.state.boot.list[n]));
        c.print(&text);
    }
    c.print("Esc  the usual order\n");
    c.state.boot.step = Step::Menu;
}

fn failed(c: &mut Call) {
    let lines = c.state.boot.failed.clone();
    c.print("\nNothing to boot:\n");
    for line in &lines {
        c.print(&format!("  {line}\n"));
    }
    if lines.is_empty() {
        c.print("  this machine has no drive that boot.order names\n");
    }
    c.print("Press a key to try again.\n");
    c.state.boot.step = Step::Failed;
}

/// Enters what was loaded, as drive `number`.
fn enter(c: &mut Call, number: u8, segment: u16, offset: u16) {
    let line = format!("booting {}", name(c, c.state.boot.list.get(c.state.boot.next).copied().flatten()));
    c.host.log(&line);
    c.state.boot.next += 1;
    c.r = super::Regs {
        eax: 0xaa55,
        edx: number.into(),
        cs: segment,
        ip: offset,
        flags: START_FLAGS,
        ..super::Regs::default()
    };
}

/// A disk's or a diskette's first sector: `true` when it was entered.
fn boot_sector(c: &mut Call, drive: usize) -> Option<Result<bool, String>> {
    let disk = c.config.drives[drive].disk;
    let floppy = c.config.drives[drive].kind == DriveKind::Floppy;
    let size = c.host.medium(disk).0;
    if size < 512 {
        return Some(Err(if size == 0 { "no medium" } else { "smaller than a sector" }.to_owned()));
    }
    let sector = match c.read_disk(disk, 0, 512)? {
        Ok(sector) => sector,
        Err(()) => return Some(Err("the first sector cannot be read".to_owned())),
    };
    if sector[510..512] != [0x55, 0xaa] {
        // Diskettes of the first PCs have no signature, but code at once.
        if !floppy || sector.iter().all(|b| *b == sector[0]) {
            return Some(Err("no boot signature in the first sector".to_owned()));
        }
    }
    c.host.write(linear(0, SECTOR_AT), &sector);
    let number = int13::number(c, drive);
    enter(c, number, 0, SECTOR_AT);
    Some(Ok(true))
}

/// El Torito: the boot record at sector 17 names the catalogue. `false`: go on with it.
fn descriptor(c: &mut Call, drive: usize) -> Option<Result<bool, String>> {
    let disk = c.config.drives[drive].disk;
    let size = c.host.medium(disk).0;
    if size == 0 {
        return Some(Err("no medium".to_owned()));
    }
    if size < 18 * CD_SECTOR {
        return Some(Err("too small for a file system".to_owned()));
    }
    let sector = match c.read_disk(disk, 17 * CD_SECTOR, CD_SECTOR)? {
        Ok(sector) => sector,
        Err(()) => return Some(Err("the boot record cannot be read".to_owned())),
    };
    if &sector[..6] != b"\0CD001" || !sector[7..].starts_with(b"EL TORITO SPECIFICATION") {
        return Some(Err("no El Torito boot record".to_owned()));
    }
    let lba = u32::from_le_bytes([sector[0x47], sector[0x48], sector[0x49], sector[0x4a]]);
    if (u64::from(lba) + 1) * CD_SECTOR > size {
        return Some(Err("the boot catalogue lies behind the end of the disc".to_owned()));
    }
    c.state.boot.step = Step::Catalogue(lba);
    Some(Ok(false))
}

/// The default entry of the catalogue.
fn catalogue(c: &mut Call, lba: u32) -> Option<Result<Emulation, String>> {
    let drive = c.state.boot.list[c.state.boot.next].unwrap_or_default();
    let disk = c.config.drives[drive].disk;
    let sector = match c.read_disk(disk, u64::from(lba) * CD_SECTOR, CD_SECTOR)? {
        Ok(sector) => sector,
        Err(()) => return Some(Err("the boot catalogue cannot be read".to_owned())),
    };
    let sum = sector[..32].chunks(2).fold(0u16, |s, w| s.wrapping_add(u16::from_le_bytes([w[0], w[1]])));
    if sector[0] != 1 || sector[30..32] != [0x55, 0xaa] || sum != 0 {
        return Some(Err("the boot catalogue is damaged".to_owned()));
    }
    let entry = &sector[32..64];
    if entry[0] != 0x88 {
        return Some(Err("its boot catalogue has nothing to boot".to_owned()));
    }
    if sector[1] != 0 {
        return Some(Err("its boot catalogue is for another kind of machine".to_owned()));
    }
    let word = |n: usize| u16::from_le_bytes([entry[n], entry[n + 1]]);
    let start = u32::from(word(8)) | u32::from(word(10)) << 16;
    let media = entry[1] & 0x0f;
    if media > 4 {
        return Some(Err(format!("emulation of kind {media} is unknown")));
    }
    let size = c.host.medium(disk).0;
    let left = size.saturating_sub(u64::from(start) * CD_SECTOR);
    if left == 0 {
        return Some(Err("its boot image lies behind the end of the disc".to_owned()));
    }
    let geometry = match media {
        1 => (80, 2, 15),
        2 => (80, 2, 18),
        3 => (80, 2, 36),
        // A disk's follows from its partition table.
        _ => (0, 0, 0),
    };
    let bytes = match media {
        0 | 4 => left,
        _ => left.min(u64::from(geometry.0 * geometry.1 * geometry.2) * 512),
    };
    c.state.boot.catalogue = lba;
    Some(Ok(Emulation {
        number: match media {
            0 => int13::CD,
            4 => 0x80,
            _ => 0,
        },
        media,
        drive,
        start,
        segment: if word(2) == 0 { SECTOR_AT >> 4 } else { word(2) },
        count: word(6).clamp(1, MOST),
        geometry,
        bytes,
        off: false,
    }))
}

/// Loads the image, or of an emulated medium the first sectors.
fn image(c: &mut Call, e: &Emulation) -> Option<Result<(), String>> {
    let disk = c.config.drives[e.drive].disk;
    // A diskette or disk has one boot sector, whatever the catalogue says.
    let sectors = if e.media == 0 { e.count } else { 1 };
    let len = (u64::from(sectors) * 512).min(e.bytes);
    let bytes = match c.read_disk(disk, u64::from(e.start) * CD_SECTOR, len)? {
        Ok(bytes) => bytes,
        Err(()) => return Some(Err("the boot image cannot be read".to_owned())),
    };
    let mut e = e.clone();
    if e.media == 4 {
        let Some((geometry, sectors)) = partition_geometry(&bytes) else {
            return Some(Err("its image of a disk has no partition".to_owned()));
        };
        e.geometry = geometry;
        e.bytes = e.bytes.min(sectors * 512);
    }
    c.host.write(linear(e.segment, 0), &bytes);
    let (number, segment) = (e.number, e.segment);
    c.state.drives.cd = Some(e);
    int13::tables(c);
    let floppies = int13::floppies(c).clamp(0, 4) as u16;
    let equipment = c.word(data::EQUIPMENT) & !0xc1;
    c.set_word(data::EQUIPMENT, equipment | if floppies == 0 { 0 } else { 1 | (floppies - 1) << 6 });
    // Boot sectors expect to be at 0:7C00, not at 7C0:0.
    let (segment, offset) = if segment == SECTOR_AT >> 4 { (0, SECTOR_AT) } else { (segment, 0) };
    enter(c, number, segment, offset);
    Some(Ok(()))
}

/// The geometry of a disk image by the end of its first partition, and its sectors.
fn partition_geometry(sector: &[u8]) -> Option<((u32, u32, u32), u64)> {
    let p = sector.get(446..462)?;
    let (heads, sectors) = (u32::from(p[5]) + 1, u32::from(p[6] & 0x3f));
    let dword = |n: usize| u32::from_le_bytes([p[n], p[n + 1], p[n + 2], p[n + 3]]);
    let total = u64::from(dword(8)) + u64::from(dword(12));
    if p[4] == 0 || sectors == 0 || total == 0 {
        return None;
    }
    let cylinders = (total.div_ceil(u64::from(heads * sectors))).clamp(1, 1024) as u32;
    let g = Geometry { cylinders, heads, sectors };
    Some(((g.cylinders, g.heads, g.sectors), total))
}
