//! Looks into disk images: partition tables, and files in the file systems of the BSDs, of Linux and of CDs.
//!
//! [`Disk::volume`] finds a partition by the name that GRUB has for it, and what file system is there; [`Volume::read`]
//! follows a path to a file's contents. Nothing is ever written. Where the bytes are is a [`Source`] of the caller's.
//!
//! Images are as hostile as guests: whatever stands in one, an answer comes, memory stays below [`Disk`]'s limit and a
//! little more, and reads end with a budget that no chain of blocks, however it is tied up, goes past.

mod bytes;
mod ext;
mod fat;
mod ffs;
mod iso9660;
mod table;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use anyhow::{Context, Result, bail, ensure};
use bytes::u32_at;

/// Bytes of a sector, as partition tables count.
const SECTOR: u64 = 512;
/// Bytes that may be read to find a file, besides its contents, and what each read counts at least.
const BUDGET: u64 = 1 << 30;
const LEAST: u64 = 2048;
/// Longest directory, in bytes.
const DIRECTORY: u64 = 16 << 20;
/// Symbolic links on the way to a file, and names.
const LINKS: usize = 32;
const NAMES: usize = 1024;

/// Where a disk's bytes are.
pub trait Source {
    /// Bytes, whole sectors of 512.
    fn size(&self) -> u64;

    /// Reads whole sectors, at a multiple of a sector.
    ///
    /// # Errors
    /// When they cannot be had.
    fn read(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
}

struct Shared {
    source: Box<dyn Source>,
    /// Bytes that may still be read.
    budget: u64,
}

/// Part of a disk: bytes from `start` on.
#[derive(Clone)]
struct Part {
    disk: Rc<RefCell<Shared>>,
    start: u64,
    len: u64,
}

impl Part {
    /// A part of the part, cut off where that ends; empty if it lies outside.
    fn part(&self, start: u64, len: u64) -> Part {
        let start = start.min(self.len);
        Part { disk: self.disk.clone(), start: self.start + start, len: len.min(self.len - start) }
    }

    /// Something new is looked for.
    fn renew(&self, budget: u64) {
        self.disk.borrow_mut().budget = budget;
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let len = buf.len() as u64;
        if at.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(io::Error::other(format!("byte {at} is behind the end")));
        }
        let mut disk = self.disk.borrow_mut();
        let spent = disk.budget.checked_sub(len.max(LEAST));
        disk.budget = spent.ok_or_else(|| io::Error::other("the way to a file's contents has no end"))?;
        let from = self.start + at;
        if from.is_multiple_of(SECTOR) && len.is_multiple_of(SECTOR) {
            return disk.source.read(from, buf);
        }
        let skip = from % SECTOR;
        let mut sectors = vec![0; (skip + len).next_multiple_of(SECTOR) as usize];
        disk.source.read(from - skip, &mut sectors)?;
        buf.copy_from_slice(&sectors[skip as usize..][..buf.len()]);
        Ok(())
    }

    /// So many bytes, which are few.
    fn bytes(&self, at: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut buf = vec![0; len];
        self.read(at, &mut buf)?;
        Ok(buf)
    }
}

/// An image to look into.
pub struct Disk {
    whole: Part,
    limit: u64,
}

impl Disk {
    /// A disk whose files are read up to `limit` bytes each.
    pub fn new(source: Box<dyn Source>, limit: u64) -> Disk {
        let len = source.size();
        let shared = Shared { source, budget: BUDGET };
        Disk { whole: Part { disk: Rc::new(RefCell::new(shared)), start: 0, len }, limit }
    }

    /// What is in a partition, by its name: `gpt2`, `msdos1`, `openbsd1`, `netbsd1`, `bsd1`, or its number alone, and
    /// one within the other behind a comma. No name is the whole disk.
    ///
    /// # Errors
    /// When there is no such partition, with those that there are, or no file system that is known.
    pub fn volume(&self, name: &str) -> Result<Volume> {
        self.whole.renew(BUDGET);
        let part = table::find(&self.whole, name)?;
        Ok(Volume { tree: recognise(&part)?, part, limit: self.limit })
    }

    /// The names of all partitions.
    ///
    /// # Errors
    /// When the tables cannot be read.
    pub fn partitions(&self) -> Result<Vec<String>> {
        self.whole.renew(BUDGET);
        Ok(table::all(&self.whole)?.into_iter().map(|found| found.name).collect())
    }

    /// Whether a BIOS finds code to start: in the first sector, or by El Torito's boot record.
    pub fn boots(&self) -> bool {
        let sector = |at| self.whole.bytes(at, SECTOR as usize).unwrap_or_default();
        let (first, record) = (sector(0), sector(iso9660::BOOT_RECORD));
        let code = first.get(510..) == Some(&[0x55, 0xAA]) && first[..440].iter().any(|byte| *byte != 0);
        code || record.get(..6) == Some(b"\0CD001") && record[7..].starts_with(b"EL TORITO SPECIFICATION")
    }
}

/// A file system in a partition, or on the disk.
pub struct Volume {
    tree: Box<dyn Tree>,
    part: Part,
    limit: u64,
}

impl Volume {
    /// The contents of the file that an absolute path leads to. Symbolic links are followed within the file system.
    ///
    /// # Errors
    /// When there is none, or it is no plain file, or larger than the limit.
    pub fn read(&mut self, path: &str) -> Result<Vec<u8>> {
        self.part.renew(BUDGET);
        let node = self.walk(path)?;
        ensure!(node.kind == Kind::File, "{path} is no file");
        let limit = self.limit;
        ensure!(node.size <= limit, "{path} has {} bytes, and {limit} are the most that fit", node.size);
        self.part.renew(BUDGET.saturating_add(node.size.saturating_mul(2)));
        self.tree.read(&node).with_context(|| path.to_owned())
    }

    /// Whether an absolute path leads to a file.
    pub fn holds(&mut self, path: &str) -> bool {
        self.part.renew(BUDGET);
        self.walk(path).is_ok_and(|node| node.kind == Kind::File)
    }

    /// The file system's label; empty if it has none.
    pub fn label(&self) -> String {
        self.tree.label()
    }

    /// The file system's UUID or serial number as GRUB writes it; empty if it has none.
    pub fn uuid(&self) -> String {
        self.tree.uuid()
    }

    fn walk(&mut self, path: &str) -> Result<Node> {
        // Names that are still to be gone through, the next one last.
        let mut names: Vec<String> = Vec::new();
        let push = |names: &mut Vec<String>, path: &str| {
            names.extend(path.split('/').rev().filter(|name| !matches!(*name, "" | ".")).map(str::to_owned));
            ensure!(names.len() <= NAMES, "more than {NAMES} names");
            Ok(())
        };
        push(&mut names, path)?;
        let mut way = vec![self.tree.root().with_context(|| path.to_owned())?];
        let mut links = 0;
        while let Some(name) = names.pop() {
            if name == ".." {
                way.truncate(way.len().saturating_sub(1).max(1));
                continue;
            }
            let Some(here) = way.last() else { bail!("{path}: no root") };
            ensure!(here.kind == Kind::Directory, "{path}: what {name} would be in is no directory");
            ensure!(here.size <= DIRECTORY, "{path}: a directory of {} bytes", here.size);
            let found = self.tree.find(here, &name).with_context(|| path.to_owned())?;
            let node = found.with_context(|| format!("{path}: there is no {name}"))?;
            if node.kind != Kind::Link {
                way.push(node);
                continue;
            }
            links += 1;
            ensure!(links <= LINKS, "{path}: more than {LINKS} symbolic links");
            let target = self.tree.target(&node).with_context(|| path.to_owned())?;
            if target.starts_with('/') {
                way.truncate(1);
            }
            push(&mut names, &target)?;
        }
        way.pop().context("no root")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    File,
    Directory,
    Link,
    Other,
}

/// A file, a directory or whatever has a name.
#[derive(Clone, Debug)]
struct Node {
    kind: Kind,
    /// Bytes.
    size: u64,
    /// What the file system finds it by.
    place: u64,
    /// Of a link, if it was there on the way.
    target: Option<String>,
}

/// A kind of file system.
trait Tree {
    fn root(&mut self) -> Result<Node>;

    /// What a directory, of a size that was looked at, has under a name.
    fn find(&mut self, directory: &Node, name: &str) -> Result<Option<Node>>;

    /// All of a file, whose size was looked at.
    fn read(&mut self, file: &Node) -> Result<Vec<u8>>;

    /// Where a symbolic link leads.
    fn target(&mut self, link: &Node) -> Result<String> {
        link.target.clone().context("a symbolic link that leads nowhere")
    }

    fn label(&self) -> String;

    fn uuid(&self) -> String;
}

/// Kinds of contents that are told by their magic numbers and not read.
const OTHERS: [(u64, &[u8], &str); 9] = [
    (0, b"XFSB", "XFS"),
    (3, b"NTFS    ", "NTFS"),
    (3, b"EXFAT   ", "exFAT"),
    (0x1_0040, b"_BHRfS_M", "btrfs"),
    (512, b"LABELONE", "an LVM physical volume"),
    (0, b"LUKS\xba\xbe", "a LUKS container"),
    (0x400, b"\x10\x20\xf5\xf2", "F2FS"),
    (0, b"hsqs", "squashfs"),
    (0, &[0xc8, b'U', b'N', b'R', 0, b'5', b'A', b'C'], "HAMMER"),
];
/// ZFS's uberblocks: a ring behind the label's first 128 KiB.
const UBERBLOCKS: std::ops::Range<u64> = 0x2_0000..0x4_0000;
const UBERBLOCK_MAGIC: u32 = 0x00BA_B10C;

fn recognise(part: &Part) -> Result<Box<dyn Tree>> {
    if let Some(tree) = iso9660::Iso::open(part)? {
        return Ok(Box::new(tree));
    }
    if let Some(tree) = ext::Ext::open(part)? {
        return Ok(Box::new(tree));
    }
    if let Some(tree) = ffs::Ffs::open(part)? {
        return Ok(Box::new(tree));
    }
    let is = |(at, magic, _): &&(u64, &[u8], &str)| part.bytes(*at, magic.len()).is_ok_and(|found| found == *magic);
    if let Some((.., name)) = OTHERS.iter().find(is) {
        bail!("{name} cannot be read: FFS, ext2 to ext4, FAT and ISO 9660 can");
    }
    if let Some(tree) = fat::Fat::open(part)? {
        return Ok(Box::new(tree));
    }
    let uberblock = |at| part.bytes(at, 4).is_ok_and(|magic| u32_at(&magic, 0) == UBERBLOCK_MAGIC);
    if UBERBLOCKS.step_by(1024).any(uberblock) {
        bail!("ZFS cannot be read: boot the disk by its own loader, or keep the kernel on FFS, ext2 to ext4 or FAT");
    }
    bail!("no file system that is known: FFS, ext2 to ext4, FAT and ISO 9660 are")
}
