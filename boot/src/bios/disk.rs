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
    /// Where it is.
    pub place: Option<Place>,
}

/// Cylinders, heads, sectors of a track.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

    /// Of a diskette by its size in bytes, with the type that INT 13h/08h gives the drive.
    pub fn of_floppy(bytes: u64) -> Option<(Geometry, u8)> {
        let of = |cylinders, heads, sectors| Geometry { cylinders, heads, sectors };
        let known = [
            (160, of(40, 1, 8), 1),
            (180, of(40, 1, 9), 1),
            (320, of(40, 2, 8), 1),
            (360, of(40, 2, 9), 1),
            (640, of(80, 2, 8), 3),
            (720, of(80, 2, 9), 3),
            (1200, of(80, 2, 15), 2),
            (1440, of(80, 2, 18), 4),
            (1600, of(80, 2, 20), 4),
            (1680, of(80, 2, 21), 4),
            (1722, of(82, 2, 21), 4),
            (1743, of(83, 2, 21), 4),
            (1760, of(80, 2, 22), 4),
            (1840, of(80, 2, 23), 4),
            (1920, of(80, 2, 24), 4),
            (2880, of(80, 2, 36), 6),
        ];
        if bytes == 0 {
            return None;
        }
        let exact = known.iter().find(|(kib, ..)| kib * 1024 == bytes);
        // An odd size is a diskette of the next larger format that was not copied to its end.
        let (_, geometry, kind) = exact.or_else(|| known.iter().find(|(kib, ..)| kib * 1024 >= bytes))?;
        Some((*geometry, *kind))
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
