//! Images that the file systems' own tools make, and what damage does to them. A tool that is not there is a skip.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

/// Made, and found again: a file that needs indirect blocks, one in a directory of a long name, an empty one.
const LARGE: u64 = 3_000_001;
const LIMIT: u64 = 8 << 20;

/// A disk in memory.
struct Memory(Rc<Vec<u8>>);

impl Source for Memory {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        assert!(offset.is_multiple_of(SECTOR) && (buf.len() as u64).is_multiple_of(SECTOR));
        let bytes = self.0.get(offset as usize..).and_then(|rest| rest.get(..buf.len()));
        bytes.map(|bytes| buf.copy_from_slice(bytes)).ok_or_else(|| io::Error::other("past the end"))
    }
}

fn disk(mut bytes: Vec<u8>) -> Disk {
    bytes.resize(bytes.len().next_multiple_of(SECTOR as usize), 0);
    Disk::new(Box::new(Memory(Rc::new(bytes))), LIMIT)
}

/// A directory that goes with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("fsys-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).expect("a directory");
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn large() -> Vec<u8> {
    (0..LARGE as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// What is in each image.
fn fill(root: &Path, links: bool) {
    let boot = root.join("boot/Grub of many letters");
    std::fs::create_dir_all(&boot).expect("directories");
    std::fs::write(root.join("boot/kernel"), large()).expect("a file");
    std::fs::write(boot.join("grub.cfg"), "boot\n").expect("a file");
    std::fs::write(root.join("empty"), "").expect("a file");
    for n in 0..300 {
        std::fs::write(root.join(format!("boot/file-{n:03}")), n.to_string()).expect("a file");
    }
    if links {
        let link = |to: &str, from: &str| std::os::unix::fs::symlink(to, root.join(from)).expect("a link");
        link("boot/kernel", "bsd");
        link("/boot/../boot/./kernel", "absolute");
        link(&format!("boot/{}kernel", "../boot/".repeat(20)), "long");
        link("loop", "loop");
    }
}

fn look(volume: &mut Volume, links: bool) {
    assert!(volume.read("/boot/kernel").unwrap() == large());
    assert_eq!(volume.read("//boot/./Grub of many letters/../Grub of many letters/grub.cfg").unwrap(), b"boot\n");
    assert_eq!((volume.read("/empty").unwrap(), volume.read("/boot/file-299").unwrap()), (vec![], b"299".to_vec()));
    for path in ["/boot", "/boot/kernel/x", "/nothing", "/boot/file-300", "/", ""] {
        assert!(!volume.holds(path) && volume.read(path).is_err(), "{path}");
    }
    if links {
        for path in ["/bsd", "/absolute", "/long"] {
            assert!(volume.read(path).unwrap() == large(), "{path}");
        }
        assert!(volume.read("/loop").unwrap_err().to_string().contains("symbolic links"));
    }
}

/// Runs a tool, if it is in the path or among the packages of tests/guests/fetch.
fn tool(name: &str, args: &[&str]) -> bool {
    let cache = std::env::var_os("BHYVE_RS_GUEST_CACHE")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guests"), PathBuf::from);
    let packages = std::fs::read_dir(cache.join("packages")).into_iter().flatten().flatten();
    let inside = packages.flat_map(|p| ["usr/bin", "usr/sbin", "sbin"].map(|dir| p.path().join(dir)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/sbin", "/usr/sbin"].map(PathBuf::from);
    let found = std::env::split_paths(&path).chain(system).chain(inside).map(|dir| dir.join(name)).find(|p| p.exists());
    let Some(found) = found else {
        println!("SKIP {name} is not there");
        return false;
    };
    let run = Command::new(&found).args(args).env("MTOOLS_SKIP_CHECK", "1").stdin(Stdio::null()).output();
    let output = run.expect("it runs");
    assert!(output.status.success(), "{name} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    true
}

/// An image that a tool made of a tree, with `{tree}` and `{image}` in its arguments.
fn made(links: bool, size: u64, commands: &[(&str, &[&str])]) -> Option<Vec<u8>> {
    let scratch = Scratch::new();
    let (tree, image) = (scratch.0.join("tree"), scratch.0.join("image"));
    std::fs::create_dir(&tree).expect("a directory");
    fill(&tree, links);
    if size != 0 {
        std::fs::File::create(&image).and_then(|file| file.set_len(size)).expect("an image");
    }
    for (name, args) in commands {
        let place = |arg: &&str| {
            arg.replace("{tree}", tree.to_str().unwrap_or_default())
                .replace("{image}", image.to_str().unwrap_or_default())
        };
        let args: Vec<String> = args.iter().map(place).collect();
        if !tool(name, &args.iter().map(String::as_str).collect::<Vec<_>>()) {
            return None;
        }
    }
    Some(std::fs::read(image).expect("an image"))
}

fn ffs(version: &str) -> Option<Vec<u8>> {
    let options = format!("version={version}");
    made(true, 0, &[("makefs", &["-t", "ffs", "-s", "16m", "-o", &options, "{image}", "{tree}"])])
}

fn fat(bits: &str, size: u64) -> Option<Vec<u8>> {
    let make: &[&str] = &["-F", bits, "-n", "HELLO", "-i", "12ab34cd", "{image}"];
    let paths = ["{tree}/boot", "{tree}/empty"];
    made(false, size, &[("mkfs.fat", make), ("mcopy", &["-s", "-i", "{image}", paths[0], paths[1], "::"])])
}

fn ext(kind: &str) -> Option<Vec<u8>> {
    let make: &[&str] =
        &["-q", "-t", kind, "-L", "hello", "-U", "c0ffee00-1234-5678-9abc-def012345678", "-d", "{tree}", "{image}"];
    made(true, 24 << 20, &[("mke2fs", make)])
}

fn iso(options: &[&str]) -> Option<Vec<u8>> {
    let args = [&["-quiet", "-V", "HELLO", "-o", "{image}"], options, &["{tree}"]].concat();
    made(options.contains(&"-R"), 0, &[("genisoimage", &args)])
}

#[test]
fn ufs1_and_ufs2_of_makefs() {
    for version in ["1", "2"] {
        let Some(image) = ffs(version) else { return };
        look(&mut disk(image).volume("").unwrap(), true);
    }
}

#[test]
fn ext2_to_ext4_of_mke2fs() {
    for kind in ["ext2", "ext3", "ext4"] {
        let Some(image) = ext(kind) else { return };
        let mut volume = disk(image).volume("").unwrap();
        look(&mut volume, true);
        assert_eq!((&*volume.label(), &*volume.uuid()), ("hello", "c0ffee00-1234-5678-9abc-def012345678"));
    }
}

#[test]
fn fat_of_every_width() {
    for (bits, size) in [("12", 4 << 20), ("16", 24 << 20), ("32", 40 << 20)] {
        let Some(image) = fat(bits, size) else { return };
        let mut volume = disk(image).volume("").unwrap();
        look(&mut volume, false);
        assert_eq!((&*volume.label(), &*volume.uuid()), ("HELLO", "12AB-34CD"));
        assert!(volume.holds("/BOOT/KERNEL"), "case does not count");
    }
}

#[test]
fn discs_with_rock_ridge_and_without() {
    let Some(image) = iso(&["-R"]) else { return };
    let mut volume = disk(image).volume("").unwrap();
    look(&mut volume, true);
    assert_eq!(volume.label(), "HELLO");
    let Some(image) = iso(&["-l", "-relaxed-filenames", "-allow-lowercase"]) else { return };
    look(&mut disk(image).volume("").unwrap(), false);
    let Some(image) = iso(&[]) else { return };
    let mut volume = disk(image).volume("").unwrap();
    assert!(volume.read("/boot/kernel").unwrap() == large());
}

/// OpenBSD's own, if somebody has it: see BHYVE_RS_GUESTS in the README.
#[test]
fn the_kernel_of_openbsds_floppy() {
    let dir = std::env::var_os("BHYVE_RS_GUESTS").unwrap_or_default();
    let Ok(image) = std::fs::read(Path::new(&dir).join("openbsd51-i386-install-floppy.img")) else {
        println!("SKIP OpenBSD's floppy");
        return;
    };
    let floppy = disk(image);
    assert!(floppy.boots());
    assert_eq!(floppy.partitions().unwrap(), ["bsd1", "bsd2", "bsd3"]);
    for name in ["", "bsd1", "openbsd1", "1"] {
        let kernel = floppy.volume(name).unwrap().read("/bsd").unwrap();
        // The last four bytes of a gzip file are the length of what is in it, an ELF file.
        assert_eq!(kernel[..3], [0x1F, 0x8B, 8], "{name}");
        assert!((3 << 20..8 << 20).contains(&u32_at(&kernel, kernel.len() - 4)));
    }
}

/// A disk of these sectors: where, and what.
fn sectors(count: usize, parts: &[(usize, &[u8])]) -> Vec<u8> {
    let mut disk = vec![0; count * 512];
    for (at, bytes) in parts {
        disk[at * 512..][..bytes.len()].copy_from_slice(bytes);
    }
    disk
}

/// An MBR, or a link of an extended partition: kind, first sector, sectors.
fn mbr(slots: &[(u8, u32, u32)]) -> Vec<u8> {
    let mut sector = vec![0; 512];
    for (n, (kind, first, count)) in slots.iter().enumerate() {
        let slot = &mut sector[446 + 16 * n..][..16];
        slot[4] = *kind;
        slot[8..12].copy_from_slice(&first.to_le_bytes());
        slot[12..].copy_from_slice(&count.to_le_bytes());
    }
    sector[510..].copy_from_slice(&[0x55, 0xAA]);
    sector
}

/// A disklabel: sectors and first sector of each partition.
fn label(partitions: &[(u32, u32)]) -> Vec<u8> {
    let mut sector = vec![0; 512];
    for at in [0, 132] {
        sector[at..at + 4].copy_from_slice(&0x8256_4557_u32.to_le_bytes());
    }
    sector[138] = partitions.len() as u8;
    for (n, (count, first)) in partitions.iter().enumerate() {
        sector[148 + 16 * n..][..4].copy_from_slice(&count.to_le_bytes());
        sector[152 + 16 * n..][..4].copy_from_slice(&first.to_le_bytes());
    }
    sector
}

/// Where a partition begins and how long it is, in sectors.
fn place(disk: &Disk, name: &str) -> Result<(u64, u64), String> {
    table::find(&disk.whole, name).map(|p| (p.start / 512, p.len / 512)).map_err(|e| e.to_string())
}

#[test]
fn slices_logical_partitions_and_labels_have_grubs_names() {
    let disk = disk(sectors(
        400,
        &[
            (0, &mbr(&[(0x83, 10, 20), (0xA5, 40, 50), (0x0F, 200, 100), (0xA6, 100, 90)])),
            (41, &label(&[(10, 56), (0, 0), (50, 40)])),
            (101, &label(&[(30, 110), (20, 140), (400, 0)])),
            (200, &mbr(&[(0x83, 1, 9), (5, 50, 20)])),
            (250, &mbr(&[(0x82, 2, 8), (5, 50, 20)])),
        ],
    ));
    let names = disk.partitions().unwrap();
    let expected = "msdos1 msdos2 msdos4 msdos5 msdos6 bsd1 bsd3 openbsd1 openbsd2 openbsd3";
    assert_eq!(names.join(" "), expected);
    for (name, expected) in [
        ("msdos1", (10, 20)),
        ("1", (10, 20)),
        ("msdos5", (201, 9)),
        ("6", (252, 8)),
        ("bsd1", (56, 10)),
        ("freebsd1", (56, 10)),
        ("msdos2,bsd1", (56, 10)),
        ("2,1", (56, 10)),
        ("openbsd1", (110, 30)),
        ("openbsd2", (140, 20)),
        ("openbsd3", (0, 400)),
    ] {
        assert_eq!(place(&disk, name), Ok(expected), "{name}");
    }
    for name in ["msdos3", "gpt1", "bsd4", "7", "x", "msdos1,bsd1", "msdos", "1x", "4294967297"] {
        assert!(place(&disk, name).is_err(), "{name}");
    }
    let error = place(&disk, "gpt1").unwrap_err();
    assert!(error.starts_with("there is no partition gpt1: there are msdos1, msdos2,"), "{error}");
}

fn gpt() -> Vec<u8> {
    let mut header = b"EFI PART".to_vec();
    header.resize(512, 0);
    header[72] = 2;
    header[80] = 128;
    header[84] = 128;
    let mut entries = vec![0; 512];
    for (n, first) in [(0, 40_u64), (2, 60)] {
        let entry = &mut entries[128 * n..][..128];
        entry[0] = 1;
        entry[32..40].copy_from_slice(&first.to_le_bytes());
        entry[40..48].copy_from_slice(&(first + 9).to_le_bytes());
    }
    sectors(100, &[(0, &mbr(&[(0xEE, 1, 99)])), (1, &header), (2, &entries)])
}

#[test]
fn gpt_counts_its_entries() {
    let disk = disk(gpt());
    assert_eq!(disk.partitions().unwrap(), ["gpt1", "gpt3"]);
    assert_eq!((place(&disk, "gpt1"), place(&disk, "3")), (Ok((40, 10)), Ok((60, 10))));
    assert!(place(&disk, "msdos1").is_err() && !disk.boots());
}

#[test]
fn what_cannot_be_read_is_named() {
    let mut image = vec![0; 1 << 20];
    let error = |image: &[u8]| disk(image.to_vec()).volume("").err().expect("no file system").to_string();
    assert!(error(&image).starts_with("no file system that is known"));
    image[0x2_1000..0x2_1004].copy_from_slice(&UBERBLOCK_MAGIC.to_le_bytes());
    assert!(error(&image).starts_with("ZFS cannot be read"));
    image[..4].copy_from_slice(b"XFSB");
    assert!(error(&image).starts_with("XFS cannot be read"));
    assert!(error(&[0; 512]).starts_with("no file system"));
    assert_eq!(
        disk(vec![]).volume("1").err().map(|e| e.to_string()).as_deref(),
        Some("there is no partition 1: no partition table")
    );
}

#[test]
fn a_file_larger_than_the_limit_is_refused() {
    let Some(image) = ext("ext4") else { return };
    let disk = Disk::new(Box::new(Memory(Rc::new(image))), LARGE - 1);
    let error = disk.volume("").unwrap().read("/bsd").unwrap_err().to_string();
    assert_eq!(error, format!("/bsd has {LARGE} bytes, and {} are the most that fit", LARGE - 1));
}

/// xorshift64: the same damage in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

/// Damages what a file system's structures are likely to be in, and looks for the same files.
#[test]
fn damage_ends_in_an_answer() {
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let images = [ffs("1"), ffs("2"), ext("ext4"), ext("ext2"), fat("12", 4 << 20), fat("32", 40 << 20), iso(&["-R"])];
    let images = images.into_iter().flatten().chain([gpt()]);
    let (mut found, mut refused) = (0, 0);
    for mut image in images {
        // What was looked at is what matters: bytes of blocks that are not all zeros, and early ones above all.
        let used: Vec<usize> =
            image.chunks(512).enumerate().filter(|(_, b)| b.iter().any(|b| *b != 0)).map(|(n, _)| n * 512).collect();
        let early = used.len().min(300);
        for _ in 0..40 {
            let old: Vec<(usize, u8)> = (0..1 + random.below(6))
                .map(|_| {
                    let among = if random.below(4) == 0 { used.len() } else { early };
                    let at = used[random.below(among)] + random.below(512);
                    let old = image[at];
                    image[at] = [0, 1, 0x7F, 0x80, 0xFF, random.below(256) as u8][random.below(6)];
                    (at, old)
                })
                .collect();
            let damaged = disk(image.clone());
            let _ = damaged.partitions();
            for path in ["/boot/kernel", "/long", "/boot/file-299", "/loop"] {
                let bytes = damaged.volume("").and_then(|mut volume| volume.read(path));
                let found_it = bytes.is_ok_and(|bytes| bytes.len() as u64 <= LIMIT);
                *(if found_it { &mut found } else { &mut refused }) += 1;
            }
            old.into_iter().rev().for_each(|(at, byte)| image[at] = byte);
        }
    }
    assert!(refused > 100, "{found} found, {refused} refused");
}
