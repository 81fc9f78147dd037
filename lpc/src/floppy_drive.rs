//! Floppy drives and what is in them: geometry, density, the disk-change line, and how long things take.
//!
//! An image holds sectors and nothing of the tracks around them, so its size says what the medium is: cylinders, heads
//! and sectors per track are those that give just that many bytes, and the standard ones before odd ones (82 cylinders,
//! 10, 20 or 21 sectors). An image that no geometry gives is a standard one whose end is missing: reading there fails.
//!
//! A drive reads a medium at one data rate only, by which drivers tell media apart: 250 kb/s for double density (300 in
//! a 1.2 MB drive, which turns faster), 500 for high, 1000 for extra-high density. A 1.2 MB drive has 80 narrow
//! cylinders and needs two steps for each of a 40-cylinder medium.
//!
//! Sources: IBM Personal Computer AT Technical Reference (6183355), the 82077AA's datasheet, and Linux's, FreeBSD's and
//! OpenBSD's tables of formats.

use std::collections::BTreeSet;

use emu::DiskPort;
use serde::{Deserialize, Serialize};

/// Kinds of drives; the numbers are those of CMOS byte 10h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum FloppyModel {
    /// 5.25", 360 KB.
    D360k = 1,
    /// 5.25", 1.2 MB.
    D1200k = 2,
    /// 3.5", 720 KB.
    D720k = 3,
    /// 3.5", 1.44 MB.
    D1440k = 4,
    /// 3.5", 2.88 MB.
    D2880k = 5,
}

impl FloppyModel {
    /// All of them and what configurations call them, the simplest first.
    pub const ALL: [(&'static str, FloppyModel); 5] = [
        ("360K", FloppyModel::D360k),
        ("720K", FloppyModel::D720k),
        ("1.2M", FloppyModel::D1200k),
        ("1.44M", FloppyModel::D1440k),
        ("2.88M", FloppyModel::D2880k),
    ];

    /// The simplest that an image of this size fits.
    pub fn for_image(bytes: u64) -> Option<FloppyModel> {
        let medium = Medium::of(bytes)?;
        FloppyModel::ALL.into_iter().map(|(_, model)| model).find(|model| model.rate(medium).is_some())
    }

    /// The data rate, in the coding of the data rate select register, at which it reads a medium, if it can.
    pub fn rate(self, medium: Medium) -> Option<u8> {
        use FloppyModel::{D360k, D720k, D1200k, D1440k, D2880k};
        match (self, medium.track_bytes()) {
            (D360k, ..=DOUBLE) if medium.is_40() => Some(RATE_250),
            (D1200k, ..=DOUBLE) => Some(RATE_300),
            (D1200k, ..=HIGH_525) => Some(RATE_500),
            (D720k | D1440k | D2880k, ..=DOUBLE) => Some(RATE_250),
            (D1440k | D2880k, ..=HIGH) => Some(RATE_500),
            (D2880k, _) => Some(RATE_1000),
            _ => None,
        }
    }

    /// The innermost cylinder that the head gets to.
    fn last_cylinder(self) -> u8 {
        if self == FloppyModel::D360k { 42 } else { 84 }
    }

    /// Nanoseconds of a revolution.
    fn revolution(self) -> u64 {
        60_000_000_000 / if self == FloppyModel::D1200k { 360 } else { 300 }
    }
}

const RATE_500: u8 = 0;
const RATE_300: u8 = 1;
const RATE_250: u8 = 2;
const RATE_1000: u8 = 3;

/// Bytes that a track has room for: double density, high density in a 1.2 MB drive, high density.
const DOUBLE: u32 = 11 * 512;
const HIGH_525: u32 = 17 * 512;
const HIGH: u32 = 24 * 512;
/// Sectors of 512 bytes on the fullest track there is, of extra-high density.
const MOST_SECTORS: u64 = 46;
const SECTOR: u64 = 512;

/// Cylinders that media have, the usual ones first.
const CYLINDERS: [u8; 8] = [80, 40, 82, 83, 81, 84, 41, 42];
/// Cylinders of a medium with wide ones, at most; they were only made in double density.
const MOST_40: u8 = 42;
/// Japan's format of eight sectors of 1024 bytes.
const JAPAN: Medium = Medium { cylinders: 77, heads: 2, sectors: 8, code: 3 };

/// A formatted medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Medium {
    /// Cylinders.
    pub cylinders: u8,
    /// Heads.
    pub heads: u8,
    /// Sectors of a track; the first is 1.
    pub sectors: u8,
    /// Bytes of a sector are 128 times two to this.
    pub code: u8,
}

impl Medium {
    /// What an image of this size is, if it can be one of a floppy disk.
    pub fn of(bytes: u64) -> Option<Medium> {
        if bytes == JAPAN.bytes() {
            return Some(JAPAN);
        }
        let all = [2u8, 1].into_iter().flat_map(|h| CYLINDERS.into_iter().map(move |c| (h, c)));
        let exact = all.filter_map(|(heads, cylinders)| {
            let side = u64::from(heads) * u64::from(cylinders) * SECTOR;
            let sectors = bytes / side;
            let most = if cylinders <= MOST_40 { 11 } else { MOST_SECTORS };
            let fits = bytes.is_multiple_of(side) && (8..=most).contains(&sectors);
            fits.then_some(Medium { cylinders, heads, sectors: sectors as u8, code: 2 })
        });
        let cut = [(40, 9), (80, 9), (80, 15), (80, 18), (80, 36)];
        let cut = cut.map(|(cylinders, sectors)| Medium { cylinders, heads: 2, sectors, code: 2 });
        exact.chain(cut.into_iter().filter(|m| bytes > 0 && bytes < m.bytes())).next()
    }

    /// Bytes of a sector.
    pub fn sector_bytes(self) -> usize {
        128 << self.code
    }

    /// Bytes of all sectors.
    pub fn bytes(self) -> u64 {
        u64::from(self.cylinders) * u64::from(self.heads) * u64::from(self.track_bytes())
    }

    fn track_bytes(self) -> u32 {
        u32::from(self.sectors) * self.sector_bytes() as u32
    }

    fn is_40(self) -> bool {
        self.cylinders <= MOST_40
    }

    /// The number of a sector in the image.
    pub(crate) fn index(self, cylinder: u8, head: u8, sector: u8) -> u32 {
        let track = u32::from(cylinder) * u32::from(self.heads) + u32::from(head);
        track * u32::from(self.sectors) + u32::from(sector) - 1
    }
}

/// A drive as it is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DriveState {
    /// Where the head is.
    pub cylinder: u8,
    /// The disk-change latch: set while there is no medium, cleared by a step with one.
    pub changed: bool,
    /// Sectors with a deleted data address mark, which the image cannot hold.
    pub deleted: BTreeSet<u32>,
}

impl Default for DriveState {
    fn default() -> DriveState {
        DriveState { cylinder: 0, changed: true, deleted: BTreeSet::new() }
    }
}

/// A drive.
pub(crate) struct FloppyDrive {
    model: FloppyModel,
    turbo: bool,
    pub disk: Option<DiskPort>,
    pub state: DriveState,
}

/// By how much a drive is faster than a real one if it need not be as slow.
const TURBO: u64 = 1000;

impl FloppyDrive {
    pub fn new(model: FloppyModel, turbo: bool, disk: Option<DiskPort>) -> FloppyDrive {
        FloppyDrive { model, turbo, disk, state: DriveState::default() }
    }

    /// Bytes of the image, 0 for none.
    pub fn size(&self) -> u64 {
        self.disk.as_ref().map_or(0, DiskPort::size)
    }

    fn any_medium(&self) -> Option<Medium> {
        Medium::of(self.size())
    }

    /// The medium as it is read at this data rate, and the cylinder that is under the head.
    pub fn medium(&self, rate: u8) -> Option<(Medium, u8)> {
        let medium = self.any_medium().filter(|m| self.model.rate(*m) == Some(rate))?;
        let double_step = self.model == FloppyModel::D1200k && medium.is_40();
        let cylinder = if double_step { self.state.cylinder / 2 } else { self.state.cylinder };
        (cylinder < medium.cylinders).then_some((medium, cylinder))
    }

    /// The write-protect sensor: the tab, or nothing to sense.
    pub fn write_protected(&self) -> bool {
        self.disk.as_ref().is_none_or(|d| d.read_only() || d.size() == 0)
    }

    /// The head arrives at a cylinder. Steps with a medium reset the change latch.
    pub fn step_to(&mut self, cylinder: u8) {
        let cylinder = cylinder.min(self.model.last_cylinder());
        if cylinder != self.state.cylinder && self.size() > 0 {
            self.state.changed = false;
        }
        self.state.cylinder = cylinder;
    }

    /// Somebody changed the medium or took it out.
    pub fn medium_changed(&mut self) {
        self.state.changed = true;
        self.state.deleted.clear();
    }

    /// Real nanoseconds as they are waited for here.
    pub fn wait(&self, ns: u64) -> u64 {
        if self.turbo { ns / TURBO } else { ns }
    }

    /// Nanoseconds in which this many sectors pass.
    pub fn passing(&self, sectors: u64) -> u64 {
        let all = self.any_medium().map_or(18, |m| u64::from(m.sectors));
        self.wait(self.model.revolution() * sectors / all)
    }

    /// Nanoseconds until the sector at `place`, the first being 0, comes by.
    pub fn until(&self, now: u64, place: u8) -> u64 {
        let (at, turn) = (self.passing(u64::from(place)), self.wait(self.model.revolution()));
        (at + turn - now % turn) % turn
    }

    /// The number of the sector that comes by next.
    pub fn next_sector(&self, now: u64, medium: Medium) -> u8 {
        let turn = self.wait(self.model.revolution());
        (now % turn * u64::from(medium.sectors) / turn) as u8 + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(kib: u64) -> (u8, u8, u8, Option<FloppyModel>) {
        let m = Medium::of(kib << 10).unwrap();
        (m.cylinders, m.heads, m.sectors, FloppyModel::for_image(kib << 10))
    }

    #[test]
    fn sizes_tell_the_formats_of_the_trade() {
        use FloppyModel::*;
        assert_eq!(shape(160), (40, 1, 8, Some(D360k)));
        assert_eq!(shape(180), (40, 1, 9, Some(D360k)));
        assert_eq!(shape(320), (40, 2, 8, Some(D360k)));
        assert_eq!(shape(360), (40, 2, 9, Some(D360k)));
        assert_eq!(shape(720), (80, 2, 9, Some(D720k)));
        assert_eq!(shape(800), (80, 2, 10, Some(D720k)));
        assert_eq!(shape(820), (82, 2, 10, Some(D720k)));
        assert_eq!(shape(1200), (80, 2, 15, Some(D1200k)));
        assert_eq!(shape(1440), (80, 2, 18, Some(D1440k)));
        assert_eq!(shape(1476), (82, 2, 18, Some(D1440k)));
        assert_eq!(shape(1680), (80, 2, 21, Some(D1440k)));
        assert_eq!(shape(1722), (82, 2, 21, Some(D1440k)));
        assert_eq!(shape(2880), (80, 2, 36, Some(D2880k)));
        assert_eq!(Medium::of(77 * 2 * 8 * 1024).map(|m| (m.sectors, m.sector_bytes())), Some((8, 1024)));
    }

    #[test]
    fn an_image_with_its_end_missing_is_the_next_standard_size_and_a_disk_is_none() {
        assert_eq!(Medium::of(1_474_559), Medium::of(1440 << 10));
        assert_eq!(Medium::of(1), Medium::of(360 << 10));
        assert_eq!(Medium::of(0), None);
        assert_eq!(Medium::of(40 << 20), None);
        assert_eq!(FloppyModel::for_image(u64::MAX), None);
    }

    #[test]
    fn every_model_reads_what_it_did_and_at_one_rate() {
        let rates = |kib: u64| FloppyModel::ALL.map(|(_, model)| model.rate(Medium::of(kib << 10).unwrap()));
        assert_eq!(rates(360), [Some(2), Some(2), Some(1), Some(2), Some(2)]);
        assert_eq!(rates(720), [None, Some(2), Some(1), Some(2), Some(2)]);
        assert_eq!(rates(1200), [None, None, Some(0), Some(0), Some(0)]);
        assert_eq!(rates(1440), [None, None, None, Some(0), Some(0)]);
        assert_eq!(rates(2880), [None, None, None, None, Some(3)]);
    }
}
