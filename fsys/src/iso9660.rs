//! ISO 9660, with the names, links and kinds of Rock Ridge where a disc has them. Where not, names are compared without
//! their version and without regard to case.
//!
//! Source: ECMA-119; SUSP 1.12 and RRIP 1.12 (IEEE P1281 and P1282).

use anyhow::{Result, ensure};

use crate::bytes::{text, u32_at};
use crate::{DIRECTORY, Kind, Node, Part, Tree};

const BLOCK: u64 = 2048;
const DESCRIPTORS: u64 = 16 * BLOCK;
/// Where El Torito's boot record is.
pub(crate) const BOOT_RECORD: u64 = 17 * BLOCK;
/// Continuations of a record's system use area.
const CONTINUATIONS: usize = 16;

pub(crate) struct Iso {
    part: Part,
    root: Node,
    /// Where system use areas begin in their fields, if the disc has any.
    skip: Option<usize>,
    name: String,
    created: String,
}

/// What Rock Ridge says of a record.
#[derive(Default)]
struct Ridge {
    name: Option<String>,
    mode: Option<u32>,
    target: String,
    /// The directory is elsewhere.
    child: Option<u64>,
    link: bool,
}

impl Iso {
    /// Finds the primary volume descriptor, if there is one.
    pub(crate) fn open(part: &Part) -> Result<Option<Iso>> {
        let Ok(volume) = part.bytes(DESCRIPTORS, BLOCK as usize) else { return Ok(None) };
        if volume[..6] != *b"\x01CD001" {
            return Ok(None);
        }
        let root = record(&volume[156..190], Ridge::default());
        let digits = |range: std::ops::Range<usize>| String::from_utf8_lossy(&volume[range]).into_owned();
        // GRUB's UUID is the date of creation.
        let date = [813..817, 817..819, 819..821, 821..823, 823..825, 825..827, 827..829].map(digits);
        let mut iso =
            Iso { part: part.clone(), root, skip: None, name: text(&volume[40..72]), created: date.join("-") };
        let first = part.bytes(iso.root.place, BLOCK as usize)?;
        let own = usize::from(first[0]).min(first.len());
        let area = first.get(34..own).unwrap_or_default();
        if area.starts_with(b"SP\x07\x01\xbe\xef") {
            iso.skip = Some(usize::from(area[6]));
        }
        Ok(Some(iso))
    }

    /// Goes through a system use area and what continues it.
    fn ridge(&self, area: &[u8]) -> Result<Ridge> {
        let mut ridge = Ridge::default();
        let mut area = area.to_vec();
        let mut slash = false;
        for _ in 0..CONTINUATIONS {
            let mut next = None;
            let mut rest = &area[..];
            while rest.len() >= 4 {
                let len = usize::from(rest[2]);
                if len < 4 || len > rest.len() {
                    break;
                }
                let field = &rest[..len];
                match &field[..2] {
                    b"NM" if len > 5 && field[4] & 6 == 0 => {
                        ridge.name.get_or_insert_default().push_str(&String::from_utf8_lossy(&field[5..]));
                    }
                    b"PX" => ridge.mode = Some(u32_at(field, 4)),
                    b"SL" => {
                        ridge.link = true;
                        link_part(&field[5.min(len)..], &mut ridge.target, &mut slash);
                    }
                    b"CL" => ridge.child = Some(u64::from(u32_at(field, 4)) * BLOCK),
                    b"CE" => next = Some((u32_at(field, 4), u32_at(field, 12), u32_at(field, 20))),
                    b"ST" => break,
                    _ => {}
                }
                rest = &rest[len..];
            }
            let Some((block, offset, len)) = next else { break };
            ensure!(u64::from(len) <= BLOCK, "a system use area of {len} bytes");
            area = self.part.bytes(u64::from(block) * BLOCK + u64::from(offset), len as usize)?;
        }
        Ok(ridge)
    }
}

/// Adds the components of an SL field to a target.
fn link_part(mut field: &[u8], target: &mut String, slash: &mut bool) {
    while let [flags, len, rest @ ..] = field {
        let len = usize::from(*len).min(rest.len());
        if std::mem::take(slash) {
            target.push('/');
        }
        match flags & 0x0E {
            2 => target.push('.'),
            4 => target.push_str(".."),
            8 => target.push('/'),
            _ => target.push_str(&String::from_utf8_lossy(&rest[..len])),
        }
        // A component that goes on, and the root, have no slash behind them.
        *slash = flags & 9 == 0;
        field = &rest[len..];
    }
}

/// What a directory record says, whose 33 fixed bytes are there.
fn record(record: &[u8], ridge: Ridge) -> Node {
    let own = if record[25] & 2 != 0 { Kind::Directory } else { Kind::File };
    let kind = match ridge.mode.map(|mode| mode & 0o170_000) {
        _ if ridge.link || ridge.mode.is_some_and(|mode| mode & 0o170_000 == 0o120_000) => Kind::Link,
        _ if ridge.child.is_some() => Kind::Directory,
        None | Some(0o100_000 | 0o040_000) => own,
        _ => Kind::Other,
    };
    let begin = u64::from(u32_at(record, 2)) + u64::from(record[1]);
    let size = u64::from(u32_at(record, 10));
    Node { kind, size, place: ridge.child.unwrap_or(begin * BLOCK), target: Some(ridge.target) }
}

impl Tree for Iso {
    fn root(&mut self) -> Result<Node> {
        Ok(self.root.clone())
    }

    fn find(&mut self, directory: &Node, name: &str) -> Result<Option<Node>> {
        let contents = self.part.bytes(directory.place, directory.size.min(DIRECTORY) as usize)?;
        // No record goes across the end of a block.
        for block in contents.chunks(BLOCK as usize) {
            let mut rest = block;
            while let Some(len) = rest.first().map(|len| usize::from(*len)).filter(|len| *len != 0) {
                ensure!((34..=rest.len()).contains(&len), "ISO 9660 is damaged: a record of {len} bytes");
                let (found, behind) = rest.split_at(len);
                rest = behind;
                let own_len = usize::from(found[32]);
                let Some(own) = found.get(33..33 + own_len) else { continue };
                // The directory itself and the one above are names of one byte.
                if matches!(own, [0 | 1]) {
                    continue;
                }
                // A name of an even length has a byte behind it.
                let area = (33 + own_len).next_multiple_of(2) + self.skip.unwrap_or(0);
                let ridge = match self.skip {
                    Some(_) => self.ridge(found.get(area..).unwrap_or_default())?,
                    None => Ridge::default(),
                };
                let same = match &ridge.name {
                    Some(long) => long == name,
                    None => {
                        let own = String::from_utf8_lossy(own);
                        let plain = own.split(';').next().unwrap_or_default().trim_end_matches('.');
                        plain.eq_ignore_ascii_case(name)
                    }
                };
                if !same {
                    continue;
                }
                ensure!(found[25] & 0x80 == 0, "{name} consists of several extents");
                ensure!(found[26] == 0, "{name} is interleaved");
                let mut node = record(found, ridge);
                if node.kind == Kind::Directory && found[25] & 2 == 0 {
                    // Moved elsewhere: its own first record has its length.
                    node.size = u32_at(&self.part.bytes(node.place, 34)?, 10).into();
                }
                return Ok(Some(node));
            }
        }
        Ok(None)
    }

    fn read(&mut self, file: &Node) -> Result<Vec<u8>> {
        let mut contents = vec![0; usize::try_from(file.size)?];
        self.part.read(file.place, &mut contents)?;
        Ok(contents)
    }

    fn label(&self) -> String {
        self.name.clone()
    }

    fn uuid(&self) -> String {
        self.created.clone()
    }
}
