//! The fast file system of the BSDs: UFS1, which is 4.2BSD's, and UFS2.
//!
//! Numbers of blocks count fragments. A file's map is 12 blocks, then one that holds numbers of blocks, one that holds
//! such ones, and one more level. A block number of 0 is a hole.
//!
//! Source: `ufs/ffs/fs.h`, `ufs/ufs/dinode.h` and `ufs/ufs/dir.h` of the BSDs.

use anyhow::{Result, bail, ensure};

use crate::bytes::{text, u16_at, u32_at, u64_at};
use crate::{Kind, Node, Part, Tree};

/// Where the superblock may be, in the order of the BSDs.
const SUPERBLOCKS: [u64; 4] = [64 << 10, 8 << 10, 0, 256 << 10];
const SUPERBLOCK_LEN: usize = 1376;
const MAGIC_AT: usize = 1372;
const UFS1: u32 = 0x01_1954;
const UFS2: u32 = 0x1954_0119;
/// UFS2 with extended attributes, NetBSD's.
const UFS2_EA: u32 = 0x1901_2038;
/// Where a UFS2 superblock says that it is: others are copies.
const OWN_PLACE: usize = 1000;

const ROOT: u64 = 2;
const DIRECT: usize = 12;
const INDIRECT: usize = 3;

pub(crate) struct Ffs {
    part: Part,
    wide: bool,
    block: u64,
    fragment: u64,
    groups: u64,
    /// Inodes and fragments of a cylinder group, and where in it the inodes are.
    group_inodes: u64,
    group_fragments: u64,
    inodes_at: u64,
    /// How UFS1 shifts the groups' contents.
    offset: u64,
    mask: u64,
    /// Shorter links are in the inode.
    short_link: u64,
    id: [u32; 2],
    name: String,
}

/// An inode, as far as it matters here.
struct Inode {
    kind: Kind,
    size: u64,
    direct: Vec<u64>,
    indirect: Vec<u64>,
    /// The place of the block numbers, which short links take.
    inside: Vec<u8>,
}

impl Ffs {
    /// Finds the superblock, if there is one.
    pub(crate) fn open(part: &Part) -> Result<Option<Ffs>> {
        for at in SUPERBLOCKS {
            let Ok(sb) = part.bytes(at, SUPERBLOCK_LEN) else { continue };
            let wide = match u32_at(&sb, MAGIC_AT) {
                UFS1 => false,
                UFS2 | UFS2_EA if u64_at(&sb, OWN_PLACE) == at => true,
                magic if at == SUPERBLOCKS[0] && [UFS1, UFS2].contains(&magic.swap_bytes()) => {
                    bail!("FFS of a big-endian machine cannot be read")
                }
                _ => continue,
            };
            let word = |at| u64::from(u32_at(&sb, at));
            let ffs = Ffs {
                part: part.clone(),
                wide,
                block: word(48),
                fragment: word(52),
                groups: word(44),
                group_inodes: word(184),
                group_fragments: word(188),
                inodes_at: word(16),
                offset: word(24),
                mask: word(28),
                short_link: word(1320),
                id: [u32_at(&sb, 144), u32_at(&sb, 148)],
                name: text(&sb[680..712]),
            };
            let powers = ffs.block.is_power_of_two() && ffs.fragment.is_power_of_two();
            let sizes = (4096..=65536).contains(&ffs.block) && ffs.fragment >= 512 && ffs.block / 8 <= ffs.fragment;
            ensure!(powers && sizes, "FFS is damaged: blocks of {} and {} bytes", ffs.block, ffs.fragment);
            ensure!(ffs.group_inodes > 0 && ffs.group_fragments > 0, "FFS is damaged: empty groups");
            return Ok(Some(ffs));
        }
        Ok(None)
    }

    fn inode(&self, number: u64) -> Result<Inode> {
        let (group, index) = (number / self.group_inodes, number % self.group_inodes);
        ensure!(group < self.groups, "FFS is damaged: inode {number}");
        let shift = if self.wide { 0 } else { self.offset.saturating_mul(group & !self.mask & 0xFFFF_FFFF) };
        let fragment = (group * self.group_fragments).saturating_add(shift).saturating_add(self.inodes_at);
        let len = if self.wide { 256 } else { 128 };
        let at = fragment.saturating_mul(self.fragment).saturating_add(index * len);
        let inode = self.part.bytes(at, len as usize)?;
        let kind = match u16_at(&inode, 0) & 0o170_000 {
            0o100_000 => Kind::File,
            0o040_000 => Kind::Directory,
            0o120_000 => Kind::Link,
            _ => Kind::Other,
        };
        let (size, blocks, numbers) = if self.wide { (16, 112, 8) } else { (8, 40, 4) };
        let inside = inode[blocks..][..(DIRECT + INDIRECT) * numbers].to_vec();
        let mut direct = self.numbers(&inside);
        let indirect = direct.split_off(DIRECT);
        Ok(Inode { kind, size: u64_at(&inode, size), direct, indirect, inside })
    }

    fn numbers(&self, block: &[u8]) -> Vec<u64> {
        match self.wide {
            true => block.chunks_exact(8).map(|n| u64_at(n, 0)).collect(),
            false => block.chunks_exact(4).map(|n| u32_at(n, 0).into()).collect(),
        }
    }

    /// All of what an inode has. Its size was looked at.
    fn contents(&self, inode: &Inode) -> Result<Vec<u8>> {
        let mut contents = vec![0; usize::try_from(inode.size)?];
        let mut rest = &mut contents[..];
        for number in &inode.direct {
            self.fill(*number, 0, &mut rest)?;
        }
        for (level, number) in (1..).zip(&inode.indirect) {
            self.fill(*number, level, &mut rest)?;
        }
        ensure!(rest.is_empty(), "FFS is damaged: a file of {} bytes", inode.size);
        Ok(contents)
    }

    /// Fills the first of `rest` with a block, or with all blocks that so many levels below it lead to.
    fn fill(&self, number: u64, level: u32, rest: &mut &mut [u8]) -> Result<()> {
        if rest.is_empty() {
            return Ok(());
        }
        let at = number.saturating_mul(self.fragment);
        if number != 0 && level > 0 {
            let block = self.part.bytes(at, self.block as usize)?;
            return self.numbers(&block).into_iter().try_for_each(|number| self.fill(number, level - 1, rest));
        }
        let each = self.block / if self.wide { 8 } else { 4 };
        let len = self.block.saturating_mul(each.saturating_pow(level)).min(rest.len() as u64);
        let (block, behind) = std::mem::take(rest).split_at_mut(len as usize);
        *rest = behind;
        if number != 0 {
            self.part.read(at, block)?;
        }
        Ok(())
    }

    fn node(&self, number: u64) -> Result<Node> {
        let inode = self.inode(number)?;
        Ok(Node { kind: inode.kind, size: inode.size, place: number, target: None })
    }
}

impl Tree for Ffs {
    fn root(&mut self) -> Result<Node> {
        self.node(ROOT)
    }

    fn find(&mut self, directory: &Node, name: &str) -> Result<Option<Node>> {
        let contents = self.contents(&self.inode(directory.place)?)?;
        let mut rest = &contents[..];
        while rest.len() >= 8 {
            let (number, len) = (u32_at(rest, 0), usize::from(u16_at(rest, 4)));
            ensure!(len >= 8 && len <= rest.len(), "FFS is damaged: an entry of {len} bytes");
            // Before 4.4BSD the length took the place of the type as well.
            let name_len = usize::from(if rest[7] == 0 { rest[6] } else { rest[7] });
            if number != 0 && rest[8..len].get(..name_len) == Some(name.as_bytes()) {
                return self.node(number.into()).map(Some);
            }
            rest = &rest[len..];
        }
        Ok(None)
    }

    fn read(&mut self, file: &Node) -> Result<Vec<u8>> {
        self.contents(&self.inode(file.place)?)
    }

    fn target(&mut self, link: &Node) -> Result<String> {
        let inode = self.inode(link.place)?;
        ensure!(inode.size <= 4096, "a symbolic link of {} bytes", inode.size);
        let target = match inode.inside.get(..inode.size as usize) {
            Some(inside) if inode.size < self.short_link => inside.to_vec(),
            _ => self.contents(&inode)?,
        };
        Ok(String::from_utf8(target)?)
    }

    fn label(&self) -> String {
        self.name.clone()
    }

    fn uuid(&self) -> String {
        let [first, second] = self.id;
        if self.id == [0, 0] { String::new() } else { format!("{first:08x}{second:08x}") }
    }
}
