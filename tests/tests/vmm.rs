//! The vmm(4) back end over the simulated kernels, by `bhyve-rs-sim`: Debian's kernels, the GRUB disk and OpenBSD's
//! floppy, on each version, with one processor and several, to power-off and through a reboot.
//!
//! The simulator ends the program when a rule of vmm(4) is broken, so that all of these also say that none was.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use machine_tests::{Ended, Run, Scratch, guest, program, skip};

/// What ran, and what the simulator counted.
struct Ran {
    ended: Ended,
    counts: BTreeMap<String, u64>,
}

impl Ran {
    fn count(&self, name: &str) -> u64 {
        self.counts.get(name).copied().unwrap_or(0)
    }
}

/// Runs the program over a kernel; `None` after a named skip.
fn run(kernel: &str, scratch: &Scratch, words: &[String], seconds: u64) -> Option<Ran> {
    let sim = program().with_file_name("bhyve-rs-sim");
    if !sim.exists() {
        skip("bhyve-rs-sim");
        return None;
    }
    let report = scratch.path("report");
    let mut command = Command::new(sim);
    command.env("BHYVE_RS_SIM", kernel).env("BHYVE_RS_SIM_REPORT", &report);
    command.args(["--run-dir", &scratch.path("run")]).args(words);
    let ended = Run::of(command, seconds).wait();
    assert!(!ended.stderr.contains("is broken"), "{}\n{}", ended.stderr, ended.console);
    let text = std::fs::read_to_string(report).unwrap_or_default();
    let counts = text.lines().filter_map(|line| line.rsplit_once(' ')).filter_map(|(name, n)| {
        let n = n.parse().ok()?;
        Some((name.to_owned(), n))
    });
    Some(Ran { counts: counts.collect(), ended })
}

fn settings(name: &str, list: &[&str]) -> Vec<String> {
    let name = format!("name={name}");
    let all = ["backend=vmm", "serial.0.backend=stdio", name.as_str()].into_iter().chain(list.iter().copied());
    all.flat_map(|s| ["-o".to_owned(), s.to_owned()]).collect()
}

/// Debian's kernel on `cpus` processors, with a disk on a controller of this model that it works on.
fn linux(kernel: &str, arch: &str, cpus: u32, disk: &str, end: &str) {
    let name = format!("sim-{kernel}-{arch}-{cpus}-{disk}");
    let Some(image) = guest(&format!("linux-{arch}/vmlinuz")) else { return };
    let Some(initrd) = guest(&format!("initramfs-{}.cpio", if arch == "amd64" { "amd64" } else { "i386" })) else {
        return;
    };
    let scratch = Scratch::new(&name);
    let path = scratch.path("disk.img");
    std::fs::File::create(&path).and_then(|f| f.set_len(16 << 20)).expect("an image");
    let driver = match disk {
        "ide" => "ata_piix",
        "virtio-blk" => "virtio_blk",
        other => other,
    };
    let (cpus_is, path_is, model_is) = (format!("cpus={cpus}"), format!("disk.0.path={path}"), disk_model(disk));
    let mut words = settings(&name, &["memory=256M", &cpus_is, &path_is, &model_is]);
    let work = format!("test=disk disk.driver={driver} disk.mib=2 disk.blocks=4 end={end}");
    words.extend(["--kernel".to_owned(), image, "--initrd".to_owned(), initrd]);
    words.extend(["--args".to_owned(), format!("console=ttyS0 {work}")]);
    let Some(ran) = run(kernel, &scratch, &words, 600) else { return };
    let ended = &ran.ended;
    assert_eq!(ended.failures(), Vec::<&str>::new(), "{}", ended.console);
    assert_eq!(ended.result("init").0, "pass");
    assert!(ended.result("boot").1.contains(&format!("cpus={cpus} ")), "{}", ended.result("boot").1);
    assert_eq!(ended.status, i32::from(end == "poweroff"), "{}", ended.stderr);
    assert!(ran.count("exit INOUT") > 1000, "{:?}", ran.counts);
    if cpus > 1 {
        let start = if kernel == "13.1" { "exit SPINUP_AP" } else { "exit IPI" };
        assert!(ran.count(start) >= u64::from(cpus) - 1, "{:?}", ran.counts);
    }
    if disk != "ide" {
        assert!(ran.count("exit INST_EMUL") > 10, "registers in memory: {:?}", ran.counts);
    }
    assert!(!ran.counts.keys().any(|k| k.starts_with("left ")), "the VM goes with the program");
}

fn disk_model(disk: &str) -> String {
    format!("disk.0.model={disk}")
}

#[test]
fn freebsd_13_1_starts_four_processors_by_spinup() {
    linux("13.1", "amd64", 4, "virtio-blk", "poweroff");
}

#[test]
fn freebsd_13_runs_a_686_kernel_with_an_ide_disk_and_reboots() {
    linux("13", "686", 1, "ide", "reboot");
}

#[test]
fn freebsd_14_runs_four_processors_with_an_ahci_disk_and_reboots() {
    linux("14", "amd64", 4, "ahci", "reboot");
}

#[test]
fn freebsd_15_runs_four_processors_of_a_686_kernel_with_a_virtio_disk() {
    linux("15", "686-pae", 4, "virtio-blk", "poweroff");
}

/// The built-in BIOS starts GRUB in real mode, and GRUB Linux; it powers off.
fn grub(kernel: &str, model: &str, cpus: u32) {
    let Some(image) = guest("media/grub.img") else { return };
    let name = format!("sim-grub-{kernel}-{model}");
    let scratch = Scratch::new(&name);
    let copy = scratch.path("disk.img");
    std::fs::copy(image, &copy).expect("a copy");
    let (path, cpus) = (format!("disk.0.path={copy}"), format!("cpus={cpus}"));
    let words = settings(&name, &["memory=256M", &path, &disk_model(model), &cpus]);
    let Some(ran) = run(kernel, &scratch, &words, 600) else { return };
    let (verdict, details) = ran.ended.result("root");
    assert_eq!(verdict, "pass", "{}", ran.ended.console);
    assert!(details.contains("boots=1 "), "{details}");
    assert_eq!(ran.ended.status, 1, "{}", ran.ended.stderr);
}

#[test]
fn freebsd_15_boots_a_disk_by_the_built_in_bios() {
    grub("15", "ide", 1);
}

/// OpenBSD 5.1's install floppy, if somebody has it: a file system on an IDE disk, filled and read, and `halt -p`, which
/// goes through the BIOS's 32-bit APM.
fn openbsd(kernel: &str, more: &[&str]) {
    const NAME: &str = "openbsd51-i386-install-floppy.img";
    let floppy = std::env::var_os("BHYVE_RS_GUESTS").map(|dir| Path::new(&dir).join(NAME)).filter(|path| path.exists());
    let Some(floppy) = floppy else { return skip(NAME) };
    let scratch = Scratch::new(&format!("sim-openbsd-{kernel}"));
    let (copy, disk) = (scratch.path("floppy.img"), scratch.path("disk.img"));
    std::fs::copy(floppy, &copy).expect("a copy");
    std::fs::File::create(&disk).and_then(|f| f.set_len(32 << 20)).expect("an image");
    let work =
        "newfs -q wd0c && mount /dev/wd0c /mnt && dd if=/dev/rfd0c of=/mnt/f bs=18k; umount /mnt; fsck -f /dev/rwd0c";
    let mut script = String::from("[[step]]\nshown = 'boot>'\nkeys = 'set tty com0<enter>'\n");
    for (seen, send) in [("boot>", "boot\r"), ("(S)hell? ", "S\n"), ("# ", work), ("# ", "dmesg; halt -p\n")] {
        let send = if send == work { format!("{work}\n") } else { send.to_owned() };
        script += &format!("[[step]]\nseen = {seen:?}\nafter = 0.5\nsend = {send:?}\n");
    }
    let (floppy, disk) = (format!("floppy.0.path={copy}"), format!("disk.0.path={disk}"));
    let list = ["memory=64M", "acpi.enabled=false", "boot.order=floppy", &floppy, &disk];
    let mut words = settings("sim-openbsd", &[&list, more].concat());
    words.extend(["--script".to_owned(), scratch.write("keys.toml", &script)]);
    let Some(ran) = run(kernel, &scratch, &words, 900) else { return };
    let console = &ran.ended.console;
    for there in
        ["wd0 at pciide0 channel 0 drive 0", "fd0 at fdc0 drive 0: 1.44MB 80 cyl, 2 head, 18 sec", "80+0 records out"]
    {
        assert!(console.contains(there), "{there}: {console}");
    }
    for complaint in ["timeout", "lost interrupt", "DMA error", "hard error", "UNEXPECTED", "INCONSISTEN"] {
        assert!(!console.contains(complaint), "{complaint}: {console}");
    }
    assert_eq!(ran.ended.status, 1, "it powers off through APM: {console}{}", ran.ended.stderr);
}

#[test]
fn a_host_that_cannot_is_told_apart_and_what_to_do_is_said() {
    let Some(image) = guest("linux-amd64/vmlinuz") else { return };
    for (kernel, says) in [
        ("14,no-module", "kldload vmm"),
        ("14,no-vt", "VT-x"),
        ("15,no-rights", "rights are lacking"),
        ("13,jail", "allow.vmm"),
    ] {
        let scratch = Scratch::new("sim-refused");
        let mut words = settings("sim-refused", &[]);
        words.extend(["--kernel".to_owned(), image.clone()]);
        let Some(ran) = run(kernel, &scratch, &words, 60) else { return };
        assert!(ran.ended.stderr.contains(says), "{kernel}: {}", ran.ended.stderr);
        assert_eq!(ran.ended.status, 4, "{kernel}: {}", ran.ended.stderr);
    }
}

macro_rules! rows {
    ($($name:ident: $call:ident($($arg:expr),*);)*) => {
        $(
            #[test]
            #[ignore = "part of tests/matrix"]
            fn $name() {
                $call($($arg),*);
            }
        )*
    };
}

rows! {
    v13_1_amd64_1_ide_reboot: linux("13.1", "amd64", 1, "ide", "reboot");
    v13_1_i386_4_ahci_poweroff: linux("13.1", "686-pae", 4, "ahci", "poweroff");
    v13_amd64_4_virtio_reboot: linux("13", "amd64", 4, "virtio-blk", "reboot");
    v13_i386_1_ahci_poweroff: linux("13", "686", 1, "ahci", "poweroff");
    v14_amd64_1_virtio_poweroff: linux("14", "amd64", 1, "virtio-blk", "poweroff");
    v14_i386_4_ide_reboot: linux("14", "686-pae", 4, "ide", "reboot");
    v15_amd64_4_ide_poweroff: linux("15", "amd64", 4, "ide", "poweroff");
    v15_amd64_1_ahci_reboot: linux("15", "amd64", 1, "ahci", "reboot");
    v15_i386_1_virtio_poweroff: linux("15", "686", 1, "virtio-blk", "poweroff");
    v13_grub_ahci: grub("13", "ahci", 4);
    v14_grub_ide: grub("14", "ide", 4);
    v15_grub_virtio: grub("15", "virtio-blk", 1);
    v13_openbsd: openbsd("13", &[]);
    v14_openbsd: openbsd("14", &["board=440bx"]);
    v15_openbsd: openbsd("15", &[]);
}
