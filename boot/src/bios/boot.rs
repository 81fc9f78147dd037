//! INT 18h and 19h: finding something to boot.
//!
//! Kinds of drives are tried in the user's order, and each drive of a kind; the network is what option ROMs can boot. What a drive lacked is kept, for the screen
//! that says so when nothing is left; a key press starts over. INT 18h, by which a boot sector gives up, goes on behind
//! the drive that it came from. The menu has all drives, also those that the order leaves out.

use serde::{Deserialize, Serialize};

use super::disk::DriveKind;
use super::eltorito::{self, Emulation};
use super::int13;
use super::post::START_FLAGS;
use super::{Call, Flow, keyboard, linear, option, serial};

/// Where boot sectors go.
const SECTOR_AT: u16 = 0x7c00;
/// Milliseconds of guest time.
const MS: u64 = 1_000_000;
/// The boot menu's key: F12.
const MENU_KEY: u16 = 0x8600;
/// What it can offer, by digits.
const MENU: usize = 9;

/// What can be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Candidate {
    /// The drive of this index.
    Drive(usize),
    /// The option ROM of this index.
    Rom(usize),
    /// The network, by INT 18h if a ROM has taken that.
    Network,
}

/// How far the search is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Progress {
    list: Vec<Candidate>,
    next: usize,
    /// What the menu offers.
    menu: Vec<Candidate>,
    step: Step,
    /// What was wrong with those before.
    failed: Vec<String>,
    /// The user chose the next one for this start only.
    once: Option<DriveKind>,
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
    /// El Torito: the catalogue of a drive's disc is asked for.
    Catalogue(usize, u32),
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
                eltorito::stop(c);
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
                let chosen = p.menu.get(n).filter(|_| n < MENU).copied();
                if let Some(chosen) = chosen {
                    p.list.retain(|other| *other != chosen);
                    p.list.insert(0, chosen);
                }
                if chosen.is_some() || key as u8 == 0x1b {
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
                    Candidate::Drive(drive) if c.config.drives[drive].kind == DriveKind::Cd => disc(c, drive),
                    Candidate::Drive(drive) => boot_sector(c, drive),
                    Candidate::Rom(rom) => {
                        booting(c);
                        option::boot(c, rom);
                        Some(Ok(true))
                    }
                    Candidate::Network if option::is_hooked(c) => {
                        booting(c);
                        option::boot_hook(c);
                        Some(Ok(true))
                    }
                    Candidate::Network => Some(Err("no network card has a boot ROM".to_owned())),
                };
                match tried {
                    None => return Flow::Wait,
                    Some(Ok(true)) => return Flow::Done,
                    Some(Ok(false)) => {}
                    Some(Err(why)) => next(c, &why),
                }
            }
            Step::Catalogue(drive, lba) => match eltorito::image_of(c, drive, lba) {
                None => return Flow::Wait,
                Some(Ok(image)) => {
                    c.state.drives.disc = Some((drive, lba));
                    c.state.boot.step = Step::Image(image);
                }
                Some(Err(why)) => next(c, &why),
            },
            Step::Image(image) => match eltorito::start(c, &image) {
                None => return Flow::Wait,
                Some(Ok(bytes)) => {
                    booting(c);
                    eltorito::load(c, &bytes);
                    return Flow::Done;
                }
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
fn candidates(c: &mut Call) -> Vec<Candidate> {
    let once = c.state.boot.once.take();
    let order = once.into_iter().chain(c.config.options.order.iter().copied().filter(|k| Some(*k) != once));
    let mut list = Vec::new();
    for kind in order {
        let drives = (0..c.config.drives.len()).filter(|d| c.config.drives[*d].kind == kind);
        list.extend(drives.map(Candidate::Drive));
        if kind == DriveKind::Net {
            let roms = option::bootable(c);
            if roms.is_empty() {
                list.push(Candidate::Network);
            }
            list.extend(roms.into_iter().map(Candidate::Rom));
        }
    }
    list
}

fn name(c: &Call, candidate: Candidate) -> String {
    match candidate {
        Candidate::Drive(drive) => c.config.drives[drive].name.clone(),
        Candidate::Rom(rom) => format!("network, {}", option::name(c, rom)),
        Candidate::Network => "network".to_owned(),
    }
}

/// Notes what was wrong with candidate `index`.
fn say(c: &mut Call, index: usize, why: &str) {
    let Some(candidate) = c.state.boot.list.get(index).copied() else { return };
    let line = format!("{}: {why}", name(c, candidate));
    c.host.log(&line);
    c.state.boot.failed.push(line);
}

/// The present one will not do.
fn next(c: &mut Call, why: &str) {
    let index = c.state.boot.next;
    say(c, index, why);
    c.state.drives.disc = None;
    c.state.boot.next += 1;
    c.state.boot.step = Step::Try;
}

fn menu(c: &mut Call) {
    let mut all = c.state.boot.list.clone();
    let drives = (0..c.config.drives.len()).map(Candidate::Drive);
    let roms = option::bootable(c).into_iter().map(Candidate::Rom);
    let others = drives.chain(roms).filter(|d| !all.contains(d)).collect::<Vec<_>>();
    all.extend(others);
    c.print("\nBoot from:\n");
    for (n, candidate) in (1..=MENU).zip(&all) {
        let text = format!("  {n}  {}\n", name(c, *candidate));
        c.print(&text);
    }
    c.state.boot.menu = all;
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

/// The present one is what is booted.
fn booting(c: &mut Call) {
    if let Some(candidate) = c.state.boot.list.get(c.state.boot.next).copied() {
        let line = format!("booting {}", name(c, candidate));
        c.host.log(&line);
    }
    c.state.boot.next += 1;
}

/// Enters what was loaded, as drive `number`.
pub(super) fn enter(c: &mut Call, number: u8, segment: u16, offset: u16) {
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
    booting(c);
    enter(c, number, 0, SECTOR_AT);
    Some(Ok(true))
}

/// A disc's boot record: `false`, go on with the catalogue that it names.
fn disc(c: &mut Call, drive: usize) -> Option<Result<bool, String>> {
    let lba = eltorito::catalogue_of(c, drive)?;
    Some(lba.map(|lba| {
        c.state.boot.step = Step::Catalogue(drive, lba);
        false
    }))
}
