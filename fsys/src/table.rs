//! Partition tables: MBR with extended partitions, GPT, and the BSDs' disklabels, with the names that GRUB 2 has for
//! what is in them.
//!
//! A disklabel stands in the second sector: of a slice, or of the whole disk. OpenBSD's and NetBSD's count from the
//! beginning of the disk, FreeBSD's from that of its partition `c`. Partition `a` is number 1.
//!
//! Sources: UEFI specification, chapter 5; `sys/disklabel.h` of the BSDs.

use anyhow::{Context, Result, bail, ensure};

use crate::bytes::{u16_at, u32_at, u64_at};
use crate::{Part, SECTOR};

/// Kinds of MBR partitions.
const EXTENDED: [u8; 3] = [0x05, 0x0F, 0x85];
const PROTECTIVE: u8 = 0xEE;
const FREEBSD: u8 = 0xA5;
const OPENBSD: u8 = 0xA6;
const NETBSD: u8 = 0xA9;
/// Most logical partitions.
const LOGICAL: u32 = 128;

const GPT_MAGIC: &[u8] = b"EFI PART";
/// Most bytes of a GPT's entries.
const GPT_ENTRIES: u64 = 1 << 20;

const LABEL_MAGIC: u32 = 0x8256_4557;
/// Of a disklabel: the second magic, how many partitions, and the first of them.
const LABEL_MAGIC2: usize = 132;
const LABEL_COUNT: usize = 138;
const LABEL_PARTITIONS: usize = 148;
const LABEL_MOST: u16 = 22;
/// Index of the partition that stands for the whole.
const RAW: usize = 2;

/// A partition.
pub(crate) struct Found {
    /// Its names are those of the tables that it is in.
    pub name: String,
    /// Its number in its table.
    number: u32,
    part: Part,
}

impl Found {
    fn kind(&self) -> &str {
        self.name.trim_end_matches(|c: char| c.is_ascii_digit())
    }
}

/// The part of a disk that has this name.
pub(crate) fn find(disk: &Part, name: &str) -> Result<Part> {
    let mut part = disk.clone();
    let mut above = String::new();
    for name in name.split(',').filter(|name| !name.is_empty()) {
        let found = if above.is_empty() { all(&part)? } else { label(&part, 0, "bsd")? };
        let digits = name.trim_start_matches(|c: char| c.is_ascii_alphabetic());
        let kind = &name[..name.len() - digits.len()];
        // FreeBSD's own word, and GRUB's for any disklabel.
        let kind = if kind == "freebsd" { "bsd" } else { kind };
        let number: Option<u32> = digits.parse().ok();
        let hit =
            found.iter().find(|f| Some(f.number) == number && (kind.is_empty() || kind == f.kind())).or_else(|| {
                // Within a slice all kinds of labels are one, and so are they without any slices.
                found.iter().find(|f| Some(f.number) == number && kind.ends_with("bsd") && f.kind() == "bsd")
            });
        part = match hit {
            Some(hit) => hit.part.clone(),
            None if found.is_empty() => bail!("there is no partition {name}: no partition table"),
            None => {
                let names: Vec<&str> = found.iter().map(|f| f.name.as_str()).collect();
                bail!("there is no partition {name}: there are {}", names.join(", "))
            }
        };
        above = name.to_owned();
    }
    Ok(part)
}

/// All partitions of a disk: those of its main table come first.
pub(crate) fn all(disk: &Part) -> Result<Vec<Found>> {
    let Ok(first) = disk.bytes(0, SECTOR as usize) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    let slots = || first[446..510].chunks(16);
    let is_mbr = u16_at(&first, 510) == 0xAA55;
    if is_mbr && slots().any(|slot| slot[4] == PROTECTIVE) {
        return gpt(disk);
    }
    // A boot sector has code where a table would be: its first bytes are flags that a table does not have.
    if is_mbr && slots().all(|slot| slot[0] & 0x7F == 0) {
        for (number, slot) in (1..).zip(slots()).filter(|(_, slot)| slot[4] != 0) {
            if EXTENDED.contains(&slot[4]) {
                found.extend(logical(disk, sectors(slot, 8))?);
                continue;
            }
            found.push(slice(disk, number, 0, slot));
        }
        found.sort_by_key(|f| f.number);
        for slot in slots() {
            let (of, at, name) = match slot[4] {
                OPENBSD => (disk.clone(), sectors(slot, 8), "openbsd"),
                NETBSD => (disk.clone(), sectors(slot, 8), "netbsd"),
                FREEBSD => (slice(disk, 0, 0, slot).part, 0, "bsd"),
                _ => continue,
            };
            found.extend(label(&of, at, name)?);
        }
    }
    if !found.iter().any(|f| f.name.contains("bsd")) {
        found.extend(label(disk, 0, "bsd")?);
    }
    Ok(found)
}

/// A field of a table that counts sectors, in bytes.
fn sectors(entry: &[u8], at: usize) -> u64 {
    u64::from(u32_at(entry, at)) * SECTOR
}

fn slice(disk: &Part, number: u32, base: u64, slot: &[u8]) -> Found {
    let part = disk.part(base + sectors(slot, 8), sectors(slot, 12));
    Found { name: format!("msdos{number}"), number, part }
}

/// The chain of an extended partition. Each link has a partition, from where the link is, and the next link, from where
/// the chain begins.
fn logical(disk: &Part, begin: u64) -> Result<Vec<Found>> {
    let (mut found, mut at) = (Vec::new(), begin);
    for _ in 0..LOGICAL {
        let Ok(link) = disk.bytes(at, SECTOR as usize) else { break };
        if u16_at(&link, 510) != 0xAA55 {
            break;
        }
        let mut next = None;
        for slot in link[446..510].chunks(16) {
            if EXTENDED.contains(&slot[4]) {
                next = next.or(Some(begin + sectors(slot, 8)));
            } else if slot[4] != 0 && sectors(slot, 12) != 0 {
                found.push(slice(disk, 5 + found.len() as u32, at, slot));
            }
        }
        match next {
            Some(next) if next != at => at = next,
            _ => break,
        }
    }
    Ok(found)
}

fn gpt(disk: &Part) -> Result<Vec<Found>> {
    let header = disk.bytes(SECTOR, SECTOR as usize).context("GPT")?;
    ensure!(header.starts_with(GPT_MAGIC), "the partition table is damaged: its MBR says GPT, and there is none");
    let (table, count, size) = (u64_at(&header, 72), u32_at(&header, 80), u32_at(&header, 84));
    let len = u64::from(count) * u64::from(size);
    ensure!(size >= 128 && len <= GPT_ENTRIES, "the GPT is damaged: {count} entries of {size} bytes");
    let at = table.checked_mul(SECTOR).context("the GPT is damaged")?;
    let entries = disk.bytes(at, len as usize).context("the GPT is damaged")?;
    let mut found = Vec::new();
    for (number, entry) in (1..).zip(entries.chunks(size as usize)) {
        let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
        let count = last.checked_sub(first).and_then(|len| len.checked_add(1));
        let place = first.checked_mul(SECTOR).zip(count.and_then(|count| count.checked_mul(SECTOR)));
        if let Some((start, len)) = place.filter(|_| entry[..16].iter().any(|byte| *byte != 0)) {
            found.push(Found { name: format!("gpt{number}"), number, part: disk.part(start, len) });
        }
    }
    Ok(found)
}

/// The partitions of a disklabel in the sector behind `at`.
fn label(part: &Part, at: u64, name: &str) -> Result<Vec<Found>> {
    let Ok(label) = part.bytes(at + SECTOR, SECTOR as usize) else { return Ok(Vec::new()) };
    let count = u16_at(&label, LABEL_COUNT);
    if u32_at(&label, 0) != LABEL_MAGIC || u32_at(&label, LABEL_MAGIC2) != LABEL_MAGIC {
        return Ok(Vec::new());
    }
    ensure!(count <= LABEL_MOST, "the disklabel is damaged: {count} partitions");
    let entry = |n: usize| &label[LABEL_PARTITIONS + 16 * n..][..16];
    // What is a slice begins with itself; on a whole disk this is zero, or was before the label was moved.
    let own = match part.start {
        0 => 0,
        _ => sectors(entry(RAW), 4),
    };
    let used = (0..usize::from(count)).filter(|n| sectors(entry(*n), 0) != 0);
    let found = used.map(|n| {
        let start = sectors(entry(n), 4);
        let part = part.part(start.checked_sub(own).unwrap_or(start), sectors(entry(n), 0));
        Found { name: format!("{name}{}", n + 1), number: n as u32 + 1, part }
    });
    Ok(found.collect())
}
