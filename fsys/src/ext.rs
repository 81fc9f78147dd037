//! ext2, ext3 and ext4, by the library `ext4-view`, which follows names and links by itself.

use anyhow::{Context, Result, anyhow, ensure};
use ext4_view::{Ext4, Ext4Error, Ext4Read, FileType};

use crate::bytes::{u16_at, u32_at};
use crate::{Kind, Node, Part, Tree};

const SUPERBLOCK: u64 = 1024;
const MAGIC: u16 = 0xEF53;
/// Its blocks count this way at least.
const SMALLEST_BLOCK: u64 = 1024;

pub(crate) struct Ext {
    fs: Ext4,
    /// What nodes stand for.
    paths: Vec<String>,
}

impl Ext4Read for Part {
    fn read(
        &mut self,
        start_byte: u64,
        dst: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
        Ok(Part::read(self, start_byte, dst)?)
    }
}

impl Ext {
    /// Reads superblock, groups and journal, if it is one of these.
    pub(crate) fn open(part: &Part) -> Result<Option<Ext>> {
        let Ok(superblock) = part.bytes(SUPERBLOCK, 1024) else { return Ok(None) };
        if u16_at(&superblock, 56) != MAGIC {
            return Ok(None);
        }
        // The library has memory for as many groups as there are said to be.
        let block = SMALLEST_BLOCK.checked_shl(u32_at(&superblock, 24)).unwrap_or(u64::MAX);
        let high = if u32_at(&superblock, 96) & 0x80 != 0 { u32_at(&superblock, 336) } else { 0 };
        let blocks = u64::from(high) << 32 | u64::from(u32_at(&superblock, 4));
        let len = blocks.saturating_mul(block);
        let groups = blocks.div_ceil(u64::from(u32_at(&superblock, 32).max(1)));
        ensure!(len <= part.len, "ext4: its {len} bytes are more than the partition has");
        ensure!(groups <= 1 << 20, "ext4: {groups} groups are too many");
        let fs = Ext4::load(Box::new(part.clone())).context("ext4")?;
        Ok(Some(Ext { fs, paths: vec![String::new()] }))
    }
}

impl Tree for Ext {
    fn root(&mut self) -> Result<Node> {
        self.paths.truncate(1);
        Ok(Node { kind: Kind::Directory, size: 0, place: 0, target: None })
    }

    fn find(&mut self, directory: &Node, name: &str) -> Result<Option<Node>> {
        let above = self.paths.get(directory.place as usize).cloned().unwrap_or_default();
        let path = format!("{above}/{name}");
        let metadata = match self.fs.symlink_metadata(&path) {
            Ok(metadata) => metadata,
            Err(Ext4Error::NotFound) => return Ok(None),
            Err(e) => return Err(anyhow!(e)),
        };
        let (kind, target) = match metadata.file_type() {
            FileType::Regular => (Kind::File, None),
            FileType::Directory => (Kind::Directory, None),
            FileType::Symlink => {
                let target = self.fs.read_link(&path)?;
                (Kind::Link, Some(target.to_str().context("a link that is no text")?.to_owned()))
            }
            _ => (Kind::Other, None),
        };
        let size = if kind == Kind::Directory { 0 } else { metadata.len() };
        self.paths.push(path);
        Ok(Some(Node { kind, size, place: self.paths.len() as u64 - 1, target }))
    }

    fn read(&mut self, file: &Node) -> Result<Vec<u8>> {
        let path = self.paths.get(file.place as usize).context("no such file")?;
        Ok(self.fs.read(path)?)
    }

    fn label(&self) -> String {
        self.fs.label().to_str().unwrap_or_default().to_owned()
    }

    fn uuid(&self) -> String {
        self.fs.uuid().to_string()
    }
}
