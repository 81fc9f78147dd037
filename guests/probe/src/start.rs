//! What the loader hands over: command line, memory map, RSDP, modules (start_info version 0 and 1).
//!
//! All of it is copied at once, because loaders put it anywhere, the trampoline page included.

use crate::mem::{Racy, read_le, read8, read32, read64};

/// Type of usable memory in the map (E820 numbering).
pub const RAM: u32 = 1;

#[derive(Clone, Copy)]
pub struct Range {
    pub address: u64,
    pub size: u64,
    pub kind: u32,
}

const NO_RANGE: Range = Range { address: 0, size: 0, kind: 0 };

struct Start {
    magic: bool,
    line: [u8; 1024],
    line_len: usize,
    map: [Range; 64],
    map_len: usize,
    modules: [u64; 8],
    modules_len: usize,
    rsdp: u64,
}

static START: Racy<Start> = Racy::new(Start {
    magic: false,
    line: [0; 1024],
    line_len: 0,
    map: [NO_RANGE; 64],
    map_len: 0,
    modules: [0; 8],
    modules_len: 0,
    rsdp: 0,
});

fn start() -> &'static Start {
    // SAFETY: written once, by `take`, before anybody reads.
    unsafe { &*START.get() }
}

/// Copies the start_info block at physical address `info`.
pub fn take(info: u64) {
    // SAFETY: called once, first of all, by the only processor that runs.
    let s = unsafe { &mut *START.get() };
    if read32(info) != 0x336e_c578 {
        return;
    }
    s.magic = true;
    let line = read64(info + 0x18);
    if line != 0 {
        while s.line_len < s.line.len() && read8(line + s.line_len as u64) != 0 {
            s.line[s.line_len] = read8(line + s.line_len as u64);
            s.line_len += 1;
        }
    }
    s.rsdp = read64(info + 0x20);
    let modules = read64(info + 0x10);
    for i in 0..u64::from(read32(info + 0x0c)).min(s.modules.len() as u64) {
        s.modules[s.modules_len] = read_le(modules + i * 32, 8);
        s.modules_len += 1;
    }
    if read32(info + 4) >= 1 {
        let map = read64(info + 0x28);
        for i in 0..u64::from(read32(info + 0x30)).min(s.map.len() as u64) {
            let e = map + i * 24;
            s.map[s.map_len] =
                Range { address: read_le(e, 8), size: read_le(e + 8, 8), kind: read_le(e + 16, 4) as u32 };
            s.map_len += 1;
        }
    }
}

/// Whether the block carried its magic number.
pub fn valid() -> bool {
    start().magic
}

/// The command line, cut at 1024 bytes.
pub fn line() -> &'static str {
    core::str::from_utf8(&start().line[..start().line_len]).unwrap_or("")
}

pub fn memory() -> &'static [Range] {
    &start().map[..start().map_len]
}

/// Physical addresses of the modules.
pub fn modules() -> &'static [u64] {
    &start().modules[..start().modules_len]
}

/// Physical address of the ACPI RSDP, 0 if not told.
pub fn rsdp() -> u64 {
    start().rsdp
}

/// Value of `name=value` on the command line.
pub fn option(name: &str) -> Option<&'static str> {
    line().split_ascii_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

/// Number given as `name=value`, decimal or 0x.
pub fn number(name: &str) -> Option<u64> {
    let text = option(name)?;
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

/// Whether `word` is in the comma-separated list `name=a,b,c`, or the list is `all`.
pub fn listed(name: &str, word: &str) -> bool {
    option(name).is_some_and(|list| list.split(',').any(|w| w == word || w == "all"))
}
