//! The header of a qcow2 image, versions 2 and 3.

use std::io;

use anyhow::{Context, Result, bail, ensure};

use crate::disk::file::Bytes;

pub const MAGIC: u32 = u32::from_be_bytes(*b"QFI\xfb");

/// Incompatible features. Whoever does not know one must not touch the image.
pub const DIRTY: u64 = 1 << 0;
pub const CORRUPT: u64 = 1 << 1;
const EXTERNAL: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

const EXT_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXT_BITMAPS: u32 = 0x2385_2875;

/// The largest tables that are loaded: they describe more than any host can store.
const L1_BYTES: u64 = 32 << 20;
const REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
const SNAPSHOTS: u32 = 65536;
const NAME: u32 = 1023;

/// What is behind an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    pub name: String,
    /// Its format, where the image says it.
    pub format: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub version: u32,
    pub cluster_bits: u32,
    pub size: u64,
    pub l1_size: u32,
    pub l1_offset: u64,
    pub refcount_table: u64,
    pub refcount_table_clusters: u32,
    pub snapshots: u32,
    pub snapshots_offset: u64,
    pub incompatible: u64,
    pub compatible: u64,
    pub autoclear: u64,
    pub refcount_order: u32,
    pub backing: Option<Backing>,
    /// Has bitmaps that somebody keeps of what changes.
    pub bitmaps: bool,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

impl Header {
    pub fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Entries of an L2 table.
    pub fn l2_entries(&self) -> u64 {
        self.cluster() / 8
    }

    /// Bytes of the disk that an L2 table maps.
    pub fn l2_reach(&self) -> u64 {
        self.l2_entries() << self.cluster_bits
    }

    /// Reads and checks it.
    pub fn read(file: &mut dyn Bytes) -> Result<Header> {
        let mut fixed = [0; 112];
        file.read(0, &mut fixed)?;
        ensure!(u32_at(&fixed, 0) == MAGIC, "it is no qcow2 image");
        let version = u32_at(&fixed, 4);
        ensure!(matches!(version, 2 | 3), "qcow2 version {version} is not known; there are 2 and 3");
        let v3 = version == 3;
        let field = |at: usize| if v3 { u64_at(&fixed, at) } else { 0 };
        let cluster_bits = u32_at(&fixed, 20);
        ensure!((9..=21).contains(&cluster_bits), "qcow2: clusters of 2^{cluster_bits} bytes are not possible");
        let mut header = Header {
            version,
            cluster_bits,
            size: u64_at(&fixed, 24),
            l1_size: u32_at(&fixed, 36),
            l1_offset: u64_at(&fixed, 40),
            refcount_table: u64_at(&fixed, 48),
            refcount_table_clusters: u32_at(&fixed, 56),
            snapshots: u32_at(&fixed, 60),
            snapshots_offset: u64_at(&fixed, 64),
            incompatible: field(72),
            compatible: field(80),
            autoclear: field(88),
            refcount_order: if v3 { u32_at(&fixed, 96) } else { 4 },
            backing: None,
            bitmaps: false,
        };
        header.features(&fixed)?;
        header.places(file.len())?;
        let len = if v3 { u32_at(&fixed, 100) } else { 72 };
        ensure!(
            len >= if v3 { 104 } else { 72 } && u64::from(len) <= header.cluster(),
            "qcow2: a header of {len} bytes"
        );
        let mut first = vec![0; header.cluster() as usize];
        file.read(0, &mut first)?;
        let format = header.extensions(&first, len as usize)?;
        let (at, len) = (u64_at(&first, 8), u32_at(&first, 16));
        if at != 0 {
            ensure!(len <= NAME, "qcow2: the name of the backing file has {len} bytes");
            let name = usize::try_from(at).ok().and_then(|at| first.get(at..at.checked_add(len as usize)?));
            let name = name.context("qcow2: the name of the backing file lies outside the first cluster")?;
            let name = std::str::from_utf8(name).context("qcow2: the name of the backing file is not UTF-8")?;
            ensure!(!name.is_empty() && !name.contains('\0'), "qcow2: the name of the backing file is {name:?}");
            header.backing = Some(Backing { name: name.to_owned(), format });
        }
        Ok(header)
    }

    /// What we cannot do.
    fn features(&self, fixed: &[u8]) -> Result<()> {
        ensure!(u32_at(fixed, 32) == 0, "qcow2: the image is encrypted, which is not supported");
        ensure!(self.incompatible & EXTERNAL == 0, "qcow2: an external data file is not supported");
        ensure!(self.incompatible & EXTENDED_L2 == 0, "qcow2: extended L2 entries are not supported");
        let kind = if self.incompatible & COMPRESSION != 0 { fixed[104] } else { 0 };
        ensure!(kind == 0, "qcow2: compression type {kind} is not supported; there is zlib only");
        let unknown = self.incompatible & !(DIRTY | CORRUPT | COMPRESSION);
        ensure!(unknown == 0, "qcow2: the image has unknown features (bits {unknown:#x})");
        ensure!(self.refcount_order <= 6, "qcow2: refcounts of 2^{} bits", self.refcount_order);
        Ok(())
    }

    /// Whether the tables can be where it says.
    fn places(&self, len: u64) -> Result<()> {
        let within = |what: &str, at: u64, bytes: u64| -> Result<()> {
            ensure!(at.is_multiple_of(self.cluster()), "qcow2: the {what} begins within a cluster, at byte {at}");
            ensure!(at.checked_add(bytes).is_some_and(|end| end <= len), "qcow2: the {what} lies outside the file");
            Ok(())
        };
        let l1_bytes = u64::from(self.l1_size) * 8;
        ensure!(l1_bytes <= L1_BYTES, "qcow2: an L1 table of {l1_bytes} bytes");
        ensure!(self.size <= 1 << 62, "qcow2: a disk of {} bytes", self.size);
        let needed = self.size.div_ceil(self.l2_reach());
        ensure!(needed <= u64::from(self.l1_size), "qcow2: the L1 table is too short for {} bytes", self.size);
        if self.l1_size > 0 {
            within("L1 table", self.l1_offset, l1_bytes)?;
        }
        let bytes = u64::from(self.refcount_table_clusters) << self.cluster_bits;
        ensure!((1..=REFCOUNT_TABLE_BYTES).contains(&bytes), "qcow2: a refcount table of {bytes} bytes");
        within("refcount table", self.refcount_table, bytes)?;
        ensure!(self.snapshots <= SNAPSHOTS, "qcow2: {} snapshots", self.snapshots);
        if self.snapshots > 0 {
            within("snapshot table", self.snapshots_offset, u64::from(self.snapshots) * 40)?;
        }
        Ok(())
    }

    /// Reads the extensions and returns the backing file's format.
    fn extensions(&mut self, first: &[u8], mut at: usize) -> Result<Option<String>> {
        let mut format = None;
        while at + 8 <= first.len() {
            let (kind, len) = (u32_at(first, at), u32_at(first, at + 4) as usize);
            if kind == 0 {
                break;
            }
            let Some(data) = first.get(at + 8..(at + 8).saturating_add(len)) else {
                bail!("qcow2: a header extension lies outside the first cluster");
            };
            match kind {
                EXT_BACKING_FORMAT => format = Some(String::from_utf8_lossy(data).into_owned()),
                EXT_BITMAPS => self.bitmaps = true,
                _ => {}
            }
            at += 8 + len.next_multiple_of(8);
        }
        Ok(format)
    }

    /// The first cluster of an image of version 3 with this header.
    pub fn first_cluster(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.cluster() as usize);
        out.extend(MAGIC.to_be_bytes());
        out.extend(3u32.to_be_bytes());
        // The backing file's name, filled in below.
        out.extend([0; 12]);
        out.extend(self.cluster_bits.to_be_bytes());
        out.extend(self.size.to_be_bytes());
        out.extend(0u32.to_be_bytes());
        out.extend(self.l1_size.to_be_bytes());
        out.extend(self.l1_offset.to_be_bytes());
        out.extend(self.refcount_table.to_be_bytes());
        out.extend(self.refcount_table_clusters.to_be_bytes());
        out.extend([0; 12]);
        for features in [self.incompatible, self.compatible, self.autoclear] {
            out.extend(features.to_be_bytes());
        }
        out.extend(self.refcount_order.to_be_bytes());
        out.extend(104u32.to_be_bytes());
        if let Some(Backing { name, format }) = &self.backing {
            if let Some(format) = format {
                out.extend(EXT_BACKING_FORMAT.to_be_bytes());
                out.extend((format.len() as u32).to_be_bytes());
                out.extend(format.as_bytes());
                out.resize(out.len().next_multiple_of(8), 0);
            }
            out.extend([0; 8]);
            let at = out.len() as u64;
            out[8..16].copy_from_slice(&at.to_be_bytes());
            out[16..20].copy_from_slice(&(name.len() as u32).to_be_bytes());
            out.extend(name.as_bytes());
        }
        out.resize(self.cluster() as usize, 0);
        out
    }

    /// Writes the fields that change in an image's life. They are in one sector, which a power cut does not tear.
    pub fn update(&self, file: &mut dyn Bytes) -> io::Result<()> {
        let mut sector = [0; 104];
        file.read(0, &mut sector)?;
        sector[24..32].copy_from_slice(&self.size.to_be_bytes());
        sector[36..40].copy_from_slice(&self.l1_size.to_be_bytes());
        sector[40..48].copy_from_slice(&self.l1_offset.to_be_bytes());
        sector[48..56].copy_from_slice(&self.refcount_table.to_be_bytes());
        sector[56..60].copy_from_slice(&self.refcount_table_clusters.to_be_bytes());
        let end = if self.version == 3 {
            sector[72..80].copy_from_slice(&self.incompatible.to_be_bytes());
            sector[88..96].copy_from_slice(&self.autoclear.to_be_bytes());
            96
        } else {
            60
        };
        file.write(0, &sector[..end])
    }
}
