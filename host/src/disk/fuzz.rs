//! Images of every format with bytes changed at random, through all that `bhyve-rs image` and a machine do with images.
//! Nothing may panic, run without end, or take memory without bound. Checksums are made right again, or nothing behind
//! them would be looked at.

use std::path::{Path, PathBuf};

use super::qcow2::tests::Dice;
use super::{Format, Image, ImageOptions, tools, vhdx};

/// A valid image, and what follows from its other bytes.
struct Seed {
    name: &'static str,
    bytes: Vec<u8>,
    /// Stretches that say where things are.
    tables: Vec<std::ops::Range<usize>>,
    sums: fn(&mut [u8]),
}

fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&value);
}

/// What a guest has written.
fn sector(n: u64) -> [u8; 512] {
    [n as u8 | 1; 512]
}

fn qcow2(path: &Path) -> Seed {
    let _ = std::fs::remove_file(path);
    tools::create(path, Format::Qcow2, Some(1 << 20), None).unwrap();
    let mut image = Image::open(path, ImageOptions::default()).unwrap();
    (0..8).for_each(|n| image.store.write(n * 70_000 / 512 * 512, &sector(n)).unwrap());
    image.store.flush().unwrap();
    drop(image);
    let bytes = std::fs::read(path).unwrap();
    // The header, the refcounts with their table, and the tables of both levels.
    let tables = (0..6).map(|n| n << 16..(n << 16) + 256).collect();
    Seed { name: "qcow2", bytes, tables, sums: |_| {} }
}

fn vmdk() -> Seed {
    let mut bytes = vec![0; 64 << 10];
    bytes[..4].copy_from_slice(&super::vmdk::MAGIC);
    for (at, value) in [(4, 1u32), (8, 3), (12, 512), (20, 8), (44, 512), (56, 2)] {
        put(&mut bytes, at, value.to_le_bytes());
    }
    // The directory is in sector 2, the table in sectors 4 to 7, and grains follow.
    put(&mut bytes, 1024, 4u32.to_le_bytes());
    for n in 0..10 {
        put(&mut bytes, 2048 + n * 4, (8 + n as u32 * 8).to_le_bytes());
        put(&mut bytes, (8 + n * 8) * 512, sector(n as u64));
    }
    Seed { name: "vmdk", bytes, tables: vec![0..80, 1024..1028, 2048..2088], sums: |_| {} }
}

fn descriptor() -> Seed {
    let text = "# Disk DescriptorFile\nparentCID=ffffffff\nRW 64 ZERO\nRW 128 ZERO\nRW 9 SPARSE \"x\"\n";
    Seed { name: "descriptor", bytes: text.as_bytes().to_vec(), tables: vec![21..40, 40..text.len()], sums: |_| {} }
}

/// The complement of the sum over a VHD's header.
fn vhd_sum(bytes: &mut [u8], at: usize) {
    put(bytes, at, [0; 4]);
    let sum: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
    put(bytes, at, (!sum).to_be_bytes());
}

fn vhd() -> Seed {
    // Footer, header, table, three blocks of 64 KiB with bitmaps, footer.
    let mut bytes = vec![0; 2048 + 3 * (512 + (64 << 10)) + 512];
    let mut footer = [0; 512];
    footer[..8].copy_from_slice(&super::vhd::MAGIC);
    put(&mut footer, 16, 512u64.to_be_bytes());
    put(&mut footer, 48, (512u64 << 10).to_be_bytes());
    put(&mut footer, 60, 3u32.to_be_bytes());
    put(&mut bytes, 0, footer);
    bytes[512..520].copy_from_slice(b"cxsparse");
    put(&mut bytes, 512 + 16, 1536u64.to_be_bytes());
    put(&mut bytes, 512 + 28, 8u32.to_be_bytes());
    put(&mut bytes, 512 + 32, (64u32 << 10).to_be_bytes());
    bytes[1536..2048].fill(0xff);
    for n in 0..3 {
        let at = 2048 + n * (512 + (64 << 10));
        put(&mut bytes, 1536 + n * 8, (at as u32 / 512).to_be_bytes());
        bytes[at..at + 16].fill(0xa5);
        put(&mut bytes, at + 512, sector(n as u64));
    }
    let sums = |bytes: &mut [u8]| {
        vhd_sum(&mut bytes[..512], 64);
        vhd_sum(&mut bytes[512..1536], 36);
        let (first, end) = bytes.split_at_mut(512);
        let at = end.len() - 512;
        end[at..].copy_from_slice(first);
    };
    Seed { name: "vhd", bytes, tables: vec![0..80, 512..600, 1536..1568, 2048..2064], sums }
}

fn vhdx() -> Seed {
    // Headers and region tables in the first MiB, metadata and BAT in the second, two blocks.
    const KIB: usize = 1 << 10;
    const MIB: usize = 1 << 20;
    let mut bytes = vec![0; 4 * MIB];
    bytes[..8].copy_from_slice(&super::vhdx::MAGIC);
    for (n, at) in [64 * KIB, 128 * KIB].into_iter().enumerate() {
        bytes[at..at + 4].copy_from_slice(b"head");
        put(&mut bytes, at + 8, (n as u64).to_le_bytes());
        put(&mut bytes, at + 66, 1u16.to_le_bytes());
    }
    for at in [192 * KIB, 256 * KIB] {
        bytes[at..at + 4].copy_from_slice(b"regi");
        put(&mut bytes, at + 8, 2u32.to_le_bytes());
        for (n, (id, place)) in
            [(super::vhdx::METADATA, MIB), (super::vhdx::BAT, MIB + 128 * KIB)].into_iter().enumerate()
        {
            put(&mut bytes, at + 16 + n * 32, id);
            put(&mut bytes, at + 32 + n * 32, (place as u64).to_le_bytes());
            put(&mut bytes, at + 40 + n * 32, (128 * KIB as u32).to_le_bytes());
        }
    }
    bytes[MIB..MIB + 8].copy_from_slice(b"metadata");
    put(&mut bytes, MIB + 10, 3u16.to_le_bytes());
    let items = [(vhdx::PARAMETERS, MIB as u64), (vhdx::DISK_SIZE, 8 * MIB as u64), (vhdx::SECTOR_SIZE, 512)];
    for (n, (id, value)) in items.into_iter().enumerate() {
        put(&mut bytes, MIB + 32 + n * 32, id);
        put(&mut bytes, MIB + 48 + n * 32, ((64 * KIB + n * 8) as u32).to_le_bytes());
        put(&mut bytes, MIB + 64 * KIB + n * 8, value.to_le_bytes());
    }
    for n in 0..2 {
        put(&mut bytes, MIB + 128 * KIB + n * 24, (((2 + n as u64) << 20) | 6).to_le_bytes());
        put(&mut bytes, (2 + n) * MIB, sector(n as u64));
    }
    let sums = |bytes: &mut [u8]| {
        for (at, len) in [(64 * KIB, 4096), (128 * KIB, 4096), (192 * KIB, 64 * KIB), (256 * KIB, 64 * KIB)] {
            put(bytes, at + 4, [0; 4]);
            let sum = vhdx::crc32c(&bytes[at..at + len]);
            put(bytes, at + 4, sum.to_le_bytes());
        }
    };
    let tables = [(64, 80), (192, 80), (1024, 128), (1024 + 64, 24), (1024 + 128, 64)];
    let tables = tables.map(|(kib, len)| kib * KIB..kib * KIB + len).to_vec();
    Seed { name: "vhdx", bytes, tables, sums }
}

impl Seed {
    fn changed(&self, dice: &mut Dice) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        for _ in 0..dice.below(5) {
            let table = self.tables[dice.below(self.tables.len() as u64) as usize].clone();
            let at = table.start + dice.below(table.len() as u64) as usize;
            let value = dice.next();
            match dice.below(4) {
                0 => bytes[at] = value as u8,
                1 => bytes[at] ^= 1 << (value % 8),
                2 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][value as usize % 5],
                _ => bytes[at..(at + 8).min(table.end)].fill([0, 0xff][value as usize % 2]),
            }
        }
        if dice.below(3) > 0 && bytes.len() > 600 {
            (self.sums)(&mut bytes);
        }
        if dice.below(10) == 0 {
            bytes.truncate(dice.below(bytes.len() as u64) as usize);
        }
        bytes
    }
}

/// All that can be done with an image; `false` when a machine cannot have it.
fn use_it(path: &Path, copy: &Path, dice: &mut Dice) -> bool {
    let mut steps = 0;
    let mut some = |_, _| {
        steps += 1;
        steps % 64 > 0
    };
    let _ = tools::info(path, Format::Auto);
    let _ = tools::check(path, Format::Auto, false, &mut some);
    for format in [Format::Raw, Format::Qcow2] {
        let _ = tools::convert((path, Format::Auto), (copy, format), true, &mut some);
    }
    let read_only = dice.below(2) == 0;
    let Ok(mut image) = Image::open(path, ImageOptions { read_only, ..ImageOptions::default() }) else { return false };
    let (mut buf, size) = (vec![0; 70_000], image.size());
    for _ in 0..20 {
        let at = 512 * dice.below((size / 512).clamp(1, 1 << 20));
        let len = 512 * (1 + dice.below(130)).min((size - at.min(size)) / 512) as usize;
        let _ = match dice.below(4) {
            0 if !read_only => image.store.write(at, &buf[..len]),
            1 if !read_only => image.store.discard(at, len as u64),
            2 if !read_only => image.store.flush(),
            _ => image.store.read(at, &mut buf[..len]),
        };
    }
    drop(image);
    let _ = tools::check(path, Format::Auto, true, &mut some);
    let _ = tools::resize(path, Format::Auto, |old| old.checked_add(512), false);
    true
}

#[test]
fn whatever_an_image_has_in_its_tables_nothing_panics_and_all_ends() {
    let folder = std::env::temp_dir().join(format!("bhyve-rs-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (path, copy): (PathBuf, PathBuf) = (folder.join("image"), folder.join("copy"));
    let rounds = std::env::var("BHYVE_RS_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    for seed in [qcow2(&path), vmdk(), descriptor(), vhd(), vhdx()] {
        let mut good = seed.bytes.clone();
        (seed.sums)(&mut good);
        std::fs::write(&path, &good).unwrap();
        if seed.name != "descriptor" {
            let mut image = Image::open(&path, ImageOptions { read_only: true, ..ImageOptions::default() }).unwrap();
            let mut first = [0; 512];
            image.store.read(0, &mut first).unwrap();
            assert_eq!(first, sector(0), "{}: the seed is a good image", seed.name);
        }
        let mut usable = 0;
        for n in 0..rounds {
            let mut dice = Dice::new(n);
            std::fs::write(&path, seed.changed(&mut dice)).unwrap();
            usable += u64::from(use_it(&path, &copy, &mut dice));
        }
        assert!(usable > 0 && usable < rounds, "{}: {usable} of {rounds} can be used", seed.name);
    }
    std::fs::remove_dir_all(&folder).unwrap();
}
