//! OpenBSD's own protocol: flat 32-bit mode, the arguments on the stack, a vector of records.
//!
//! A record is type, length of all of it, a word for the loader, and its contents. Random numbers for the kernel's
//! segment of them are not given, and RB_GOODRANDOM says so by its absence.
//!
//! Source: `stand/boot` and `machine/biosvar.h` of OpenBSD.

use crate::bsd::{self, Options};
use crate::bytes::Put;
use crate::kernel::Layout;
use anyhow::{Context, Result};

const FLAGS: [(char, u32); 5] = [('a', 1), ('s', 2), ('d', 0x40), ('c', 0x400), ('v', 0)];
/// Of the arguments: a vector, the environment, the memory map.
const API: u32 = 0xE;
const MEMORY_MAP: u32 = 0;
const CONSOLE: u32 = 5;
const END: u32 = u32::MAX;
/// com(4)'s major number.
const COM: u32 = 8 << 8;
/// A boot device: its magic, and the major numbers.
const DEVICE: u32 = 0xA000_0000;
const MAJORS: [(&str, u32); 6] = [("wd", 0), ("fd", 2), ("sd", 4), ("cd", 6), ("vnd", 14), ("rd", 17)];

/// The words of the stack, and what they point to, which is at `info`. `wide` is the console's record of OpenBSD/amd64
/// from 7.3 on.
pub(crate) fn tell(cmdline: &str, info: u32, wide: bool, layout: &Layout) -> Result<(Vec<u32>, Vec<u8>)> {
    let options = Options::parse(cmdline, &FLAGS)?;
    let device = options.root.as_deref().map_or(Ok(DEVICE), device)?;
    let mut args = Vec::new();
    let mut record = |kind: u32, contents: &[u8]| {
        args.put32(kind);
        args.put32(contents.len() as u32 + 12);
        args.put32(0);
        args.extend_from_slice(contents);
    };
    let mut map = Vec::new();
    for region in layout.map.regions() {
        map.put64(region.base);
        map.put64(region.len);
        map.put32(region.kind as u32);
    }
    map.extend([0; 20]);
    record(MEMORY_MAP, &map);
    if let Some((unit, speed)) = options.serial {
        // Device and speed; -1 is the usual address of it, and a frequency of 0 the usual one.
        let mut console = Vec::new();
        console.put32(COM | unit);
        console.put32(speed);
        match wide {
            true => {
                console.put64(u64::MAX);
                console.extend([0; 16]);
            }
            false => {
                console.put32(u32::MAX);
                console.put32(0);
            }
        }
        record(CONSOLE, &console);
    }
    record(END, &[]);
    let (conventional, extended) = bsd::memory_sizes(layout);
    let words = vec![0, options.howto, device, API, 0, extended, conventional, args.len() as u32, info];
    Ok((words, args))
}

/// `sd0a` as a boot device.
fn device(name: &str) -> Result<u32> {
    let parse = || {
        let kind =
            name.trim_end_matches(|c: char| c.is_ascii_lowercase()).trim_end_matches(|c: char| c.is_ascii_digit());
        let (unit, partition) = name[kind.len()..].split_at(name.len() - kind.len() - 1);
        let (_, major) = MAJORS.iter().find(|(known, _)| *known == kind)?;
        let unit: u32 = unit.parse().ok().filter(|unit| *unit < 16)?;
        let partition = partition.bytes().next().filter(|letter| (b'a'..=b'p').contains(letter))? - b'a';
        Some(DEVICE | unit << 16 | u32::from(partition) << 8 | major)
    };
    let valid = name.is_ascii() && name.len() >= 4;
    valid.then(parse).flatten().with_context(|| format!("-r {name}: expected a device such as sd0a or wd0a"))
}
