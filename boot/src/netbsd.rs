//! NetBSD's own protocol: flat 32-bit mode, the arguments on the stack, a list of records.
//!
//! Source: `x86/bootinfo.h` and `i386/stand/lib/exec.c` of NetBSD.

use crate::bsd::{self, Options};
use crate::bytes::Put;
use crate::kernel::Layout;
use anyhow::{Result, ensure};

const FLAGS: [(char, u32); 9] = [
    ('a', 1),
    ('s', 2),
    ('d', 0x40),
    ('c', 0x1000),
    ('q', 0x2_0000),
    ('v', 0x4_0000),
    ('x', 0x8_0000),
    ('1', 0x1000_0000),
    ('2', 0x2000_0000),
];
/// Records.
const ROOT: u32 = 1;
const CONSOLE: u32 = 6;
const MEMORY_MAP: u32 = 9;
/// Bytes of a device's name.
const NAME: usize = 16;
const PORTS: [u32; 4] = [0x3F8, 0x2F8, 0x3E8, 0x2E8];

/// The words of the stack, and what they point to, which is at `info`.
pub(crate) fn tell(cmdline: &str, info: u32, layout: &Layout) -> Result<(Vec<u32>, Vec<u8>)> {
    let options = Options::parse(cmdline, &FLAGS)?;
    let mut records: Vec<Vec<u8>> = Vec::new();
    let mut record = |kind: u32, contents: &[u8]| {
        let mut record = Vec::new();
        record.put32(contents.len() as u32 + 8);
        record.put32(kind);
        record.extend_from_slice(contents);
        records.push(record);
    };
    let mut map = Vec::new();
    map.put32(layout.map.regions().len() as u32);
    for region in layout.map.regions() {
        map.put64(region.base);
        map.put64(region.len);
        map.put32(region.kind as u32);
    }
    record(MEMORY_MAP, &map);
    if let Some((unit, speed)) = options.serial {
        let mut console = Vec::new();
        console.put_padded("com", NAME, 0);
        console.put32(PORTS[unit as usize % PORTS.len()]);
        console.put32(speed);
        record(CONSOLE, &console);
    }
    if let Some(root) = &options.root {
        ensure!(root.len() < NAME, "-r {root}: expected a device such as wd0a or dk0");
        let mut name = Vec::new();
        name.put_padded(root, NAME, 0);
        record(ROOT, &name);
    }
    let mut told = Vec::new();
    told.put32(records.len() as u32);
    let mut at = info + 4 + 4 * records.len() as u32;
    for record in &records {
        told.put32(at);
        at += record.len() as u32;
    }
    told.extend(records.concat());
    let (conventional, extended) = bsd::memory_sizes(layout);
    Ok((vec![0, options.howto, 0, info, 0, extended, conventional], told))
}
