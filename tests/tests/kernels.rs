//! Kernels inside of disk images: by grub-bhyve with the files that vm-bhyve makes for it and bhyve(8) after it, and by
//! `boot.kernel`.

use std::path::Path;
use std::process::Command;

use machine_tests::{Ended, Run, Scratch, guest, program, run, skip};

/// Seconds for whatever a machine does here.
const SOON: u64 = 120;
const SECTOR: usize = 512;
/// First sector of the partition in the images of this file.
const FIRST: usize = 2048;

/// Two commands in a place of their own, and the directory that vm-bhyve has for the guest.
struct Place(Scratch);

impl Place {
    fn new(name: &str) -> Place {
        let scratch = Scratch::new(&format!("kernels-{name}"));
        for tool in ["bhyve", "grub-bhyve"] {
            std::os::unix::fs::symlink(program(), scratch.path(tool)).expect("a link");
        }
        Place(scratch)
    }

    fn start(&self, tool: &str, words: &str) -> Run {
        let mut command = Command::new(self.0.path(tool));
        command.args(words.split_whitespace());
        command.env("BHYVE_RS_RUN_DIR", self.0.path("run")).env("BHYVE_RS_VMM_DIR", self.0.path("vmm"));
        Run::of(command, SOON)
    }

    /// grub-bhyve as vm-bhyve calls it, with these lines in the entry, where `(hd0)` is this image.
    fn load(&self, image: &str, root: &str, lines: &str) -> Ended {
        self.0.write("device.map", &format!("(hd0) {image}\n"));
        self.0.write("grub.cfg", &format!("timeout=3\nmenuentry 'g (bhyve run)' {{\n    root={root}\n{lines}}}\n"));
        let directory = self.0.path("");
        self.start("grub-bhyve", &format!("-S -m {directory}/device.map -M 256M -r host -d {directory} g")).wait()
    }

    fn bhyve(&self, more: &str) -> Run {
        self.start("bhyve", &format!("-c 1 -m 256M -AHPw -u -s 0,hostbridge -s 31,lpc {more} -l com1,stdio g"))
    }

    /// What is in the directories, sorted.
    fn left(&self) -> Vec<String> {
        let names = |dir: String| std::fs::read_dir(dir).into_iter().flatten().flatten();
        let mut all: Vec<String> = names(self.0.path("run")).map(|e| e.file_name().to_string_lossy().into()).collect();
        all.sort();
        all
    }
}

fn floppy() -> Option<Vec<u8>> {
    let name = "openbsd51-i386-install-floppy.img";
    let dir = std::env::var("BHYVE_RS_GUESTS").unwrap_or_default();
    let floppy = std::fs::read(Path::new(&dir).join(name)).ok().filter(|_| !dir.is_empty());
    if floppy.is_none() {
        skip(name);
    }
    floppy
}

/// A disk with an MBR whose last slice is OpenBSD's, and in this the floppy's file system.
fn openbsd_disk(floppy: &[u8]) -> Vec<u8> {
    let mut disk = vec![0; FIRST * SECTOR];
    disk.extend_from_slice(floppy);
    let slot = &mut disk[446 + 3 * 16..][..16];
    slot[4] = 0xA6;
    slot[8..12].copy_from_slice(&(FIRST as u32).to_le_bytes());
    slot[12..].copy_from_slice(&((floppy.len() / SECTOR) as u32).to_le_bytes());
    disk[510..512].copy_from_slice(&[0x55, 0xAA]);
    // The label's partitions begin where the disk does.
    disk[(FIRST + 1) * SECTOR + 148 + 4..][..4].copy_from_slice(&(FIRST as u32).to_le_bytes());
    disk
}

#[test]
fn openbsd_starts_from_its_slice_and_again() {
    let Some(floppy) = floppy() else { return };
    let place = Place::new("openbsd");
    let image = place.0.path("disk.img");
    std::fs::write(&image, openbsd_disk(&floppy)).expect("an image");
    let refused = place.load(&image, "hd0,openbsd1", "    kopenbsd -h com0 -r sd0a /bsd.mp\n");
    assert_eq!(refused.status, 1);
    assert!(refused.stderr.contains("grub.cfg:4: (hd0,openbsd1)/bsd.mp: there is no such file"), "{}", refused.stderr);
    for _ in 0..2 {
        let loaded = place.load(&image, "hd0,openbsd1", "    kopenbsd -h com0 -r sd0a /bsd\n");
        assert_eq!(loaded.status, 0, "{}", loaded.stderr);
        let mut machine = place.bhyve(&format!("-s 4,ahci-hd,{image}"));
        machine.expect("root on rd0a");
        machine.expect("(S)hell? ");
        machine.send("S\n");
        machine.expect("# ");
        machine.send("echo the sh''ell; reboot\n");
        machine.expect("the shell");
        let ended = machine.wait();
        assert_eq!(ended.status, 0, "it resets: {}{}", ended.console, ended.stderr);
        assert!(ended.console.contains("com0: console"), "{}", ended.console);
    }
    assert!(!place.left().iter().any(|name| name.contains("loaded")), "{:?}", place.left());
}

#[test]
fn openbsd_starts_by_a_key_of_the_configuration() {
    let Some(floppy) = floppy() else { return };
    let scratch = Scratch::new("kernels-toml");
    std::fs::write(scratch.path("floppy.img"), floppy).expect("an image");
    let toml = |kernel: &str| {
        let text = format!(
            "name = 'kernels'\nmemory = '64M'\n[boot]\nkernel = '{kernel}'\nargs = '-h com0'\n[[serial]]\nbackend = 'stdio'\n\
             [[floppy]]\npath = 'floppy.img'\n"
        );
        scratch.write("machine.toml", &text)
    };
    for (kernel, why) in [
        ("(floppy0)/bsd.mp", "(floppy0)/bsd.mp: /bsd.mp: there is no bsd.mp"),
        ("(floppy0,9)/bsd", "(floppy0,9)/bsd: there is no partition 9: there are bsd1, bsd2, bsd3"),
        ("(disk0)/bsd", "(disk0)/bsd: there is no disk0: the machine has 0 of that kind"),
    ] {
        let ended = run(&["-c", &toml(kernel)], SOON);
        assert!(ended.status != 0 && ended.stderr.contains(why), "{}", ended.stderr);
    }
    let mut machine = Run::start(&["-c", &toml("(floppy0,openbsd1)/bsd"), "--stay"], SOON);
    machine.expect("(S)hell? ");
    machine.send("S\n");
    machine.expect("# ");
    // The kernel is there again after a reset within the process.
    machine.send("reboot\n");
    machine.expect("(S)hell? ");
    machine.kill();
}

/// CRC-32, as a GPT has it.
fn crc(bytes: &[u8]) -> [u8; 4] {
    let step = |crc: u32, _| (crc >> 1) ^ (0xEDB8_8320 & 0_u32.wrapping_sub(crc & 1));
    let crc = bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step));
    (!crc).to_le_bytes()
}

/// A disk with a GPT whose second entry is this partition.
fn gpt_disk(partition: &[u8]) -> Vec<u8> {
    let last = FIRST + partition.len() / SECTOR - 1;
    let mut disk = vec![0; FIRST * SECTOR];
    disk.extend_from_slice(partition);
    disk.resize((last + 34) * SECTOR, 0);
    let word = |disk: &mut [u8], at: usize, value: u64, len: usize| {
        disk[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
    };
    let sectors = disk.len() / SECTOR;
    disk[446 + 4] = 0xEE;
    word(&mut disk, 446 + 8, 1, 4);
    word(&mut disk, 446 + 12, sectors as u64 - 1, 4);
    disk[510..512].copy_from_slice(&[0x55, 0xAA]);
    let entry = 2 * SECTOR + 128;
    disk[entry..entry + 32].copy_from_slice(&[0x5A; 32]);
    word(&mut disk, entry + 32, FIRST as u64, 8);
    word(&mut disk, entry + 40, last as u64, 8);
    let entries = crc(&disk[2 * SECTOR..34 * SECTOR]);
    disk[SECTOR..SECTOR + 8].copy_from_slice(b"EFI PART");
    for (at, value, len) in [
        (8, 0x1_0000, 4),
        (12, 92, 4),
        (24, 1, 8),
        (32, sectors as u64 - 1, 8),
        (40, 34, 8),
        (48, last as u64, 8),
        (56, 7, 8),
        (72, 2, 8),
        (80, 128, 4),
        (84, 128, 4),
    ] {
        word(&mut disk, SECTOR + at, value, len);
    }
    disk[SECTOR + 88..SECTOR + 92].copy_from_slice(&entries);
    let header = crc(&disk[SECTOR..SECTOR + 92]);
    disk[SECTOR + 16..SECTOR + 20].copy_from_slice(&header);
    disk
}

/// Linux and its initrd from ext4 in a GPT, whose workload mounts that file system, reads the kernel there and counts its
/// boots.
#[test]
fn linux_starts_from_ext4_and_again() {
    let Some(media) = guest("media/grub.img") else { return };
    let media = std::fs::read(media).expect("an image");
    let number = |at: usize| u32::from_le_bytes(media[at..at + 4].try_into().expect("four")) as usize * SECTOR;
    let (first, len) = (number(446 + 8), number(446 + 12));
    let place = Place::new("linux");
    let image = place.0.path("disk.img");
    std::fs::write(&image, gpt_disk(&media[first..first + len])).expect("an image");
    let linux = "linux /boot/vmlinuz console=ttyS0 test=root end=reboot\n    initrd /boot/initrd.gz\n";
    for (n, lines) in [format!("    {linux}"), format!("    search --no-floppy --set=root --label guest\n    {linux}")]
        .iter()
        .enumerate()
    {
        let root = ["hd0,gpt2", "hd0"][n];
        let loaded = place.load(&image, root, lines);
        assert_eq!(loaded.status, 0, "{}", loaded.stderr);
        let ended = place.bhyve(&format!("-s 4,virtio-blk,{image}")).wait();
        assert_eq!(ended.status, 0, "it resets: {}{}", ended.console, ended.stderr);
        let (verdict, details) = ended.result("root");
        assert_eq!(verdict, "pass", "{}", ended.console);
        assert!(details.contains(&format!("boots={} ", n + 1)), "{details}");
    }
    // Nothing that a BIOS would start, so the configuration in the image counts, which has commands of GRUB's alone.
    let map = place.0.path("device.map");
    let own = place.start("grub-bhyve", &format!("-m {map} -M 256M -r hd0,2 g")).wait();
    assert_eq!(own.status, 0, "{}", own.stderr);
    let ended = place.bhyve(&format!("-s 4,virtio-blk,{image}")).wait();
    assert_eq!(ended.status, 1, "it powers off: {}{}", ended.console, ended.stderr);
    assert!(ended.result("root").1.contains("boots=3 "), "{}", ended.console);
}
