//! Drives as the BIOS sees them: numbers, sizes, geometries, and accesses under way.

use serde::{Deserialize, Serialize};

use super::{Access, Call, Ticket};

/// Kinds of drives, and what the boot order can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DriveKind {
    /// Diskette drives, numbers 00 and on.
    Floppy,
    /// CD-ROM drives; one that was booted from has number E0.
    Cd,
    /// Disks, numbers 80 and on.
    Disk,
    /// The network; no drive is of this kind.
    Net,
}

/// Where a disk is, for EDD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// PCI bus, device, function.
    pub pci: (u8, u8, u8),
    /// `ATA`, `SCSI` and the like.
    pub interface: &'static str,
    /// Channel of the controller, unit on the channel.
    pub unit: (u8, u8),
    /// Command and control port and interrupt of an IDE channel.
    pub ide: Option<(u16, u16, u8)>,
}

/// A drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drive {
    /// Its kind.
    pub kind: DriveKind,
    /// Its number at [`super::Host::submit`].
    pub disk: usize,
    /// What to call it on the screen.
    pub name: String,
    /// Writes are refused.
    pub read_only: bool,
    /// A diskette drive's type as CMOS and INT 13h/08h number it: 1 for 360 KB, 2 for 1.2 MB, 3 for 720 KB, 4 for
    /// 1.44 MB, 5 for 2.88 MB.
    pub floppy: u8,
    /// Where it is.
    pub place: Option<Place>,
}

/// What a diskette's image makes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Diskette {
    /// Cylinders.
    pub cylinders: u8,
    /// Heads.
    pub heads: u8,
    /// Sectors of a track.
    pub sectors: u8,
    /// Bytes of a sector.
    pub sector_bytes: u16,
}

/// Cylinders, heads, sectors of a track.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Geometry {
    pub cylinders: u32,
    pub heads: u32,
    pub sectors: u32,
}

impl Geometry {
    /// Of a disk, as LBA-assisted translation has it: as few heads as make at most 1024 cylinders.
    pub fn of_disk(sectors: u64) -> Geometry {
        let heads = [16, 32, 64, 128].into_iter().find(|h| sectors <= h * 63 * 1024).unwrap_or(255);
        Geometry { cylinders: (sectors / (63 * heads)).clamp(1, 1024) as u32, heads: heads as u32, sectors: 63 }
    }

    /// Of a disk that was made on another machine, as its partition table has it: loaders in boot sectors go by the
    /// cylinders, heads and sectors that it states. Nothing, if no geometry agrees with all of them.
    pub fn of_table(sector: &[u8], total: u64) -> Option<Geometry> {
        if sector.get(510..512)? != [0x55, 0xaa] {
            return None;
        }
        let entries: Vec<Entry> = sector[446..510].chunks(16).filter_map(Entry::of).collect();
        let usual = Geometry::of_disk(total);
        let ends = entries.iter().map(|e| (u32::from(e.last.head) + 1, u32::from(e.last.sector)));
        let known = [255, 240, 128, 64, 32, 16].into_iter().flat_map(|heads| [(heads, 63), (heads, 32)]);
        let mut all = std::iter::once((usual.heads, usual.sectors)).chain(ends).chain(known);
        let fits = |(heads, sectors): &(u32, u32)| {
            (1..=255).contains(heads)
                && (1..=63).contains(sectors)
                && entries.iter().all(|e| e.agrees(*heads, *sectors))
                && entries.iter().any(|e| e.tells(*heads, *sectors))
        };
        let (heads, sectors) = all.find(fits)?;
        let cylinders = (total / u64::from(heads * sectors)).clamp(1, 1024) as u32;
        Some(Geometry { cylinders, heads, sectors })
    }

    /// Of the image of a disk by the end of its first partition, and the sectors that it has.
    pub fn of_first_partition(sector: &[u8]) -> Option<(Geometry, u64)> {
        let first = Entry::of(sector.get(446..462)?)?;
        let (heads, sectors) = (u32::from(first.last.head) + 1, u32::from(first.last.sector));
        let total = first.last.lba + 1;
        if sectors == 0 {
            return None;
        }
        let cylinders = total.div_ceil(u64::from(heads * sectors)).clamp(1, 1024) as u32;
        Some((Geometry { cylinders, heads, sectors }, total))
    }

    pub fn total(self) -> u64 {
        u64::from(self.cylinders) * u64::from(self.heads) * u64::from(self.sectors)
    }

    /// The sector's number on the disk.
    pub fn lba(self, cylinder: u32, head: u32, sector: u32) -> Option<u64> {
        let on_disk = cylinder < self.cylinders && head < self.heads && (1..=self.sectors).contains(&sector);
        let track = u64::from(cylinder) * u64::from(self.heads) + u64::from(head);
        on_disk.then(|| track * u64::from(self.sectors) + u64::from(sector) - 1)
    }
}

/// A sector that a partition table names twice: by its number and by cylinder, head and sector.
struct Named {
    cylinder: u32,
    head: u8,
    sector: u8,
    lba: u64,
}

/// An entry of a partition table: the first and the last sector.
struct Entry {
    first: Named,
    last: Named,
}

/// The last cylinder that a table can name, which stands for all behind it as well.
const LAST_CYLINDER: u32 = 1023;

impl Entry {
    fn of(entry: &[u8]) -> Option<Entry> {
        let dword = |n: usize| u64::from(u32::from_le_bytes([entry[n], entry[n + 1], entry[n + 2], entry[n + 3]]));
        let (start, len) = (dword(8), dword(12));
        let place = |n: usize, lba: u64| Named {
            cylinder: u32::from(entry[n + 2]) | u32::from(entry[n + 1] & 0xc0) << 2,
            head: entry[n],
            sector: entry[n + 1] & 0x3f,
            lba,
        };
        (entry[4] != 0 && len != 0).then(|| Entry { first: place(1, start), last: place(5, start + len - 1) })
    }

    /// With so many heads and sectors of a track both sectors are where it says, as far as it can say.
    fn agrees(&self, heads: u32, sectors: u32) -> bool {
        [&self.first, &self.last].into_iter().all(|p| {
            let cylinder = p.lba / u64::from(heads * sectors);
            if cylinder >= LAST_CYLINDER.into() && p.cylinder == LAST_CYLINDER {
                return true;
            }
            let track = u64::from(p.cylinder) * u64::from(heads) + u64::from(p.head);
            p.sector != 0 && u32::from(p.head) < heads && track * u64::from(sectors) + u64::from(p.sector) - 1 == p.lba
        })
    }

    /// It would not, with others: a place beyond the first cylinder, or the very last of what can be named.
    fn tells(&self, heads: u32, sectors: u32) -> bool {
        let last = &self.last;
        last.cylinder > 0
            && (last.cylinder < LAST_CYLINDER || (u32::from(last.head) + 1, u32::from(last.sector)) == (heads, sectors))
    }
}

/// Accesses under way, by the calls that wait for them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Transfers(Vec<(u64, Ticket)>);

/// Calls that wait at the same time: one in each level of interrupt handlers. More are left over from programs that are
/// gone.
const WAITING: usize = 8;

impl Call<'_> {
    /// What the access gives, or `None` while it is under way: then the service waits, and comes here again.
    pub(super) fn access(
        &mut self,
        disk: usize,
        make: impl FnOnce(&mut Call) -> Access,
    ) -> Option<Result<Vec<u8>, ()>> {
        let id = self.id;
        if !self.again {
            self.state.disks.0.retain(|(of, _)| *of != id);
        }
        let Some(at) = self.state.disks.0.iter().position(|(of, _)| *of == id) else {
            if self.state.disks.0.len() >= WAITING {
                self.state.disks.0.remove(0);
            }
            let access = make(self);
            let ticket = self.host.submit(disk, access);
            self.state.disks.0.push((id, ticket));
            // Later steps of the same call find their own.
            self.again = true;
            return None;
        };
        let answer = self.host.answer(self.state.disks.0[at].1)?;
        self.state.disks.0.remove(at);
        Some(answer)
    }

    /// Reads from a disk, as [`Call::access`].
    pub(super) fn read_disk(&mut self, disk: usize, offset: u64, len: u64) -> Option<Result<Vec<u8>, ()>> {
        self.access(disk, |_| Access::Read { offset, len })
    }
}
