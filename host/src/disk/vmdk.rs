//! VMware images (Virtual Disk Format 5.0): a text that describes the disk, and its extents.
//!
//! An extent is flat, or sparse: a grain directory leads to grain tables, and these to grains, which deflate may have
//! packed (streamOptimized, what OVF exports have). Flat ones can be written. Images with a parent, and the sparse
//! extents of ESX (COWD), are refused.

use std::io;

use anyhow::{Context, Result, bail, ensure};

use super::file::Bytes;
use super::mapped::{Files, Map, Place, damaged, unpack};

pub(crate) const MAGIC: [u8; 4] = *b"KDMV";
pub(crate) const DESCRIPTOR: &[u8] = b"# Disk DescriptorFile";

const SECTOR: u64 = 512;
/// A descriptor is some lines.
const DESCRIPTOR_BYTES: u64 = 64 << 10;
const EXTENTS: usize = 1024;
/// The directory of an extent: this describes more than 2 TiB, which is the most that one can have.
const DIRECTORY_BYTES: u64 = 8 << 20;
const AT_END: u64 = u64::MAX;

const ZERO_GRAINS: u32 = 1 << 2;
const PACKED: u32 = 1 << 16;
const MARKERS: u32 = 1 << 17;

enum Kind {
    Zero,
    Flat { file: usize, at: u64 },
    Sparse(Sparse),
}

struct Extent {
    begin: u64,
    len: u64,
    kind: Kind,
}

struct Sparse {
    file: usize,
    flags: u32,
    /// Bytes in a grain.
    grain: u64,
    /// Entries in a grain table.
    entries: u64,
    directory: Vec<u8>,
    /// The grain table that was used last, and its number.
    table: (usize, Vec<u8>),
    capacity: u64,
}

pub(crate) struct Vmdk {
    extents: Vec<Extent>,
    size: u64,
    /// The grain that was unpacked last, and the byte of its file.
    grain: (usize, u64, Vec<u8>),
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

impl Sparse {
    fn open(files: &mut Files, file: usize) -> Result<Sparse> {
        let bytes = &mut *files[file];
        let mut header = [0; SECTOR as usize];
        bytes.read(0, &mut header)?;
        if u64_at(&header, 56) == AT_END {
            // Written as a stream: what was known last is at the end.
            let at = bytes.len().checked_sub(2 * SECTOR).context("vmdk: the end of the stream is missing")?;
            bytes.read(at, &mut header)?;
            ensure!(u64_at(&header, 56) != AT_END, "vmdk: the end of the stream is missing");
        }
        ensure!(header[..4] == MAGIC, "vmdk: an extent has no header");
        let (version, flags) = (u32_at(&header, 4), u32_at(&header, 8));
        ensure!((1..=3).contains(&version), "vmdk version {version} is not known");
        ensure!(
            flags & PACKED == 0 || flags & MARKERS != 0 && u16::from_le_bytes([header[77], header[78]]) == 1,
            "vmdk: the way in which the image is compressed is not known"
        );
        let (capacity, grain, entries) = (u64_at(&header, 12), u64_at(&header, 20), u64::from(u32_at(&header, 44)));
        ensure!(capacity <= 1 << 53, "vmdk: an extent of {capacity} sectors");
        ensure!(grain.is_power_of_two() && (8..=128 << 10).contains(&grain), "vmdk: grains of {grain} sectors");
        ensure!(entries.is_power_of_two() && entries <= 4096, "vmdk: grain tables of {entries} entries");
        let tables = capacity.div_ceil(grain * entries);
        ensure!(tables * 4 <= DIRECTORY_BYTES, "vmdk: a grain directory of {tables} entries");
        let at = u64_at(&header, 56).checked_mul(SECTOR).filter(|at| at + tables * 4 <= bytes.len());
        let mut directory = vec![0; (tables * 4) as usize];
        bytes.read(at.context("vmdk: the grain directory lies outside the file")?, &mut directory)?;
        Ok(Sparse {
            file,
            flags,
            grain: grain * SECTOR,
            entries,
            directory,
            table: (usize::MAX, Vec::new()),
            capacity: capacity * SECTOR,
        })
    }

    /// Where the grain of a place in the extent is; 0 for nowhere.
    fn find(&mut self, file: &mut dyn Bytes, offset: u64) -> io::Result<u64> {
        let grain = offset / self.grain;
        let (n, m) = ((grain / self.entries) as usize, (grain % self.entries) as usize);
        if self.table.0 != n {
            let at = self.directory.get(n * 4..n * 4 + 4).map_or(0, |e| u64::from(u32_at(e, 0)) * SECTOR);
            let mut table = vec![0; self.entries as usize * 4];
            if at != 0 {
                if at >= file.len() {
                    return Err(damaged("a grain table lies outside the file"));
                }
                file.read(at, &mut table)?;
            }
            self.table = (n, table);
        }
        let sector = u32_at(&self.table.1, m * 4);
        let at = u64::from(sector) * SECTOR;
        if sector == 0 || sector == 1 && self.flags & ZERO_GRAINS != 0 {
            Ok(0)
        } else if at >= file.len() {
            Err(damaged("a grain lies outside the file"))
        } else {
            Ok(at)
        }
    }
}

/// A line of a descriptor that describes an extent.
struct Line<'a> {
    sectors: u64,
    kind: &'a str,
    name: &'a str,
    offset: u64,
}

fn line(text: &str) -> Option<Line<'_>> {
    let mut words = text.splitn(4, ' ');
    let access = words.next()?;
    if !matches!(access, "RW" | "RDONLY" | "NOACCESS") {
        return None;
    }
    let (sectors, kind) = (words.next()?.parse().ok()?, words.next()?);
    let rest = words.next().unwrap_or_default();
    let mut parts = rest.split('"').skip(1);
    let (name, offset) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default().trim());
    Some(Line { sectors, kind, name, offset: offset.parse().unwrap_or(0) })
}

/// What a descriptor says against reading the image.
fn refuse(text: &str) -> Result<()> {
    let parents = text.lines().filter_map(|line| line.split_once('=')).filter(|(key, _)| key.trim() == "parentCID");
    if parents.map(|(_, value)| value.trim()).any(|id| !id.eq_ignore_ascii_case("ffffffff")) {
        bail!("vmdk: the image has a parent, which is not supported");
    }
    Ok(())
}

impl Vmdk {
    /// Opens an image whose first file is in `files`. `more` opens another one of the same folder by its name.
    pub fn open(files: &mut Files, mut more: impl FnMut(&str) -> Result<Box<dyn Bytes>>) -> Result<Vmdk> {
        let mut head = [0; SECTOR as usize];
        files[0].read(0, &mut head)?;
        let mut extents = Vec::new();
        let mut size = 0u64;
        if head[..4] == MAGIC {
            let (at, len) = (u64_at(&head, 28).saturating_mul(SECTOR), u64_at(&head, 36).saturating_mul(SECTOR));
            if at != 0 && at < files[0].len() {
                let mut text = vec![0; len.min(DESCRIPTOR_BYTES) as usize];
                files[0].read(at, &mut text)?;
                refuse(&String::from_utf8_lossy(&text))?;
            }
            let sparse = Sparse::open(files, 0)?;
            size = sparse.capacity;
            extents.push(Extent { begin: 0, len: size, kind: Kind::Sparse(sparse) });
        } else {
            let mut text = vec![0; files[0].len().min(DESCRIPTOR_BYTES) as usize];
            files[0].read(0, &mut text)?;
            let text = String::from_utf8_lossy(&text);
            refuse(&text)?;
            for Line { sectors, kind, name, offset } in text.lines().filter_map(line) {
                ensure!(extents.len() < EXTENTS, "vmdk: more than {EXTENTS} extents");
                ensure!(sectors <= 1 << 53, "vmdk: an extent of {sectors} sectors");
                let mut file = || -> Result<usize> {
                    ensure!(
                        !name.is_empty() && !name.contains(['/', '\0']) && name != "..",
                        "vmdk: the extent {name:?} is not in the folder of the image"
                    );
                    files.push(more(name)?);
                    Ok(files.len() - 1)
                };
                let kind = match kind {
                    "ZERO" => Kind::Zero,
                    "FLAT" | "VMFS" => {
                        let (file, at) = (file()?, offset.checked_mul(SECTOR).context("vmdk: an extent's offset")?);
                        let end = at.checked_add(sectors * SECTOR);
                        ensure!(
                            end.is_some_and(|end| end <= files[file].len()),
                            "vmdk: the extent {name:?} is too short"
                        );
                        Kind::Flat { file, at }
                    }
                    "SPARSE" => {
                        let file = file()?;
                        Kind::Sparse(Sparse::open(files, file)?)
                    }
                    other => bail!("vmdk: extents of the kind {other} are not supported"),
                };
                let len = sectors * SECTOR;
                extents.push(Extent { begin: size, len, kind });
                size = size.checked_add(len).filter(|size| *size <= 1 << 62).context("vmdk: the disk is too large")?;
            }
            ensure!(!extents.is_empty(), "vmdk: the descriptor has no extents");
        }
        Ok(Vmdk { extents, size, grain: (0, 0, Vec::new()) })
    }
}

impl Map for Vmdk {
    fn size(&self) -> u64 {
        self.size
    }

    fn fixed(&self) -> bool {
        self.extents.iter().all(|extent| matches!(extent.kind, Kind::Flat { .. }))
    }

    fn place(&mut self, files: &mut Files, offset: u64) -> io::Result<(Place, u64)> {
        let n = self.extents.partition_point(|extent| extent.begin + extent.len <= offset);
        let Some(extent) = self.extents.get_mut(n) else { return Err(damaged("past the last extent")) };
        let inside = offset - extent.begin;
        let left = extent.len - inside;
        let sparse = match &mut extent.kind {
            Kind::Zero => return Ok((Place::Zero, left)),
            Kind::Flat { file, at } => return Ok((Place::At(*file, *at + inside), left)),
            Kind::Sparse(sparse) => sparse,
        };
        let file = &mut *files[sparse.file];
        let skip = inside % sparse.grain;
        let run = (sparse.grain - skip).min(left);
        match sparse.find(file, inside)? {
            0 => Ok((Place::Zero, run)),
            at if sparse.flags & PACKED == 0 => Ok((Place::At(sparse.file, at + skip), run)),
            at => {
                if (self.grain.0, self.grain.1) != (sparse.file, at) {
                    // A marker: the grain's place on the disk, and the bytes that follow.
                    let mut marker = [0; 12];
                    file.read(at, &mut marker)?;
                    let len = u64::from(u32_at(&marker, 8));
                    if len > 2 * sparse.grain + SECTOR {
                        return Err(damaged("a compressed grain is too long"));
                    }
                    let mut packed = vec![0; len as usize];
                    file.read(at + 12, &mut packed)?;
                    let grain = unpack(&packed, sparse.grain as usize, true);
                    let grain = grain.ok_or_else(|| damaged("a grain cannot be unpacked"))?;
                    self.grain = (sparse.file, at, grain);
                }
                Ok((Place::Memory(skip as usize), run))
            }
        }
    }

    fn memory(&self) -> &[u8] {
        &self.grain.2
    }
}
