//! The vmm(4) back end over the simulated kernels, by `bhyve-rs-sim`: Debian's kernels, the GRUB disk and OpenBSD's
//! floppy, on each version, with one processor and several, to power-off and through a reboot.
//!
//! The simulator ends the program when a rule of vmm(4) is broken, so that all of these also say that none was.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use machine_tests::{Ended, Run, Scratch, bhyve_rs, guest, program, skip};

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
    linux_of(kernel, arch, cpus, disk, end, "256M");
}

/// With 2 GiB of its memory above 4 GiB.
fn large_linux(kernel: &str, arch: &str, cpus: u32, disk: &str, end: &str) {
    let boot = linux_of(kernel, arch, cpus, disk, end, "5G");
    let kib = boot.and_then(|boot| boot.split("memory_kib=").nth(1)?.split(' ').next()?.parse::<u64>().ok());
    assert!(kib.is_none_or(|kib| kib > 4_800_000), "{kib:?} KiB");
}

/// What it tells of its boot; `None` after a named skip.
fn linux_of(kernel: &str, arch: &str, cpus: u32, disk: &str, end: &str, memory: &str) -> Option<String> {
    let name = format!("sim-{kernel}-{arch}-{cpus}-{disk}");
    let image = guest(&format!("linux-{arch}/vmlinuz"))?;
    let initrd = guest(&format!("initramfs-{}.cpio", if arch == "amd64" { "amd64" } else { "i386" }))?;
    let scratch = Scratch::new(&name);
    let path = scratch.path("disk.img");
    std::fs::File::create(&path).and_then(|f| f.set_len(16 << 20)).expect("an image");
    let driver = match disk {
        "ide" => "ata_piix",
        "virtio-blk" => "virtio_blk",
        other => other,
    };
    let (cpus_is, path_is, model_is) = (format!("cpus={cpus}"), format!("disk.0.path={path}"), disk_model(disk));
    let memory = format!("memory={memory}");
    let mut words = settings(&name, &[&memory, &cpus_is, &path_is, &model_is]);
    let work = format!("test=disk disk.driver={driver} disk.mib=2 disk.blocks=4 end={end}");
    words.extend(["--kernel".to_owned(), image, "--initrd".to_owned(), initrd]);
    words.extend(["--args".to_owned(), format!("console=ttyS0 {work}")]);
    let ran = run(kernel, &scratch, &words, 600)?;
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
    Some(ended.result("boot").1.to_owned())
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
    grub_by(kernel, model, cpus, &["memory=256M"]);
}

/// OVMF does, whose variables are in flash.
fn ovmf(kernel: &str, model: &str) {
    let (Some(code), Some(vars)) = (guest("media/OVMF_CODE.fd"), guest("media/OVMF_VARS.fd")) else { return };
    let scratch = Scratch::new(&format!("sim-ovmf-{kernel}"));
    let mine = scratch.path("vars.fd");
    std::fs::copy(&vars, &mine).expect("a copy");
    let (firmware, flash) = (format!("boot.firmware={code}"), format!("boot.vars={mine}"));
    grub_by(kernel, model, 1, &["memory=512M", &firmware, &flash]);
    assert_ne!(std::fs::read(mine).unwrap(), std::fs::read(vars).unwrap(), "its boot options are kept");
}

/// GRUB draws by the VGA's planes, where nothing is mapped: each access leaves.
fn planes(kernel: &str) {
    let Some(disc) = guest("media/grub-video.iso") else { return };
    let sim = program().with_file_name("bhyve-rs-sim");
    if !sim.exists() {
        return skip("bhyve-rs-sim");
    }
    let dir = Scratch::new("sim-planes");
    let script = dir.write("script.toml", "[[step]]\nshown = 'bochs'\nkeys = '<enter>'\n");
    let mut command = Command::new(sim);
    command.env("BHYVE_RS_SIM", kernel).args(["--run-dir", &dir.path("run")]);
    let disc = format!("cd.0.path={disc}");
    command.args(settings("planes", &["memory=64M", "boot.order=cd", &disc])).args(["--script", &script]);
    let _machine = Run::of(command, 400);
    let end = Instant::now() + Duration::from_secs(300);
    // The second line of text is green.
    loop {
        let taken = bhyve_rs(&dir, &["screenshot", "planes", "-o", &dir.path("screen.png")]);
        let text = bhyve_rs(&dir, &["screenshot", "planes", "--text"]);
        let graphics = taken.status == 0 && text.stderr.contains("the screen shows graphics");
        if graphics && green(&dir.path("screen.png")) > 300 {
            break;
        }
        assert!(Instant::now() < end, "no picture came");
        std::thread::sleep(Duration::from_millis(200));
    }
    let stats = bhyve_rs(&dir, &["stats", "planes", "--json"]);
    assert!(stats.console.contains("total number of vm exits"), "the kernel's counters: {}", stats.console);
}

/// Green pixels of a picture.
fn green(path: &str) -> usize {
    let Ok(file) = std::fs::File::open(path) else { return 0 };
    let Ok(mut reader) = png::Decoder::new(std::io::BufReader::new(file)).read_info() else { return 0 };
    let mut bytes = vec![0; reader.output_buffer_size().unwrap_or(0)];
    let _ = reader.next_frame(&mut bytes);
    bytes.as_chunks::<3>().0.iter().filter(|p| p[0] < 0x80 && p[1] > 0xf0).count()
}

fn grub_by(kernel: &str, model: &str, cpus: u32, more: &[&str]) {
    let Some(image) = guest("media/grub.img") else { return };
    let name = format!("sim-grub-{kernel}-{model}-{}", more.len());
    let scratch = Scratch::new(&name);
    let copy = scratch.path("disk.img");
    std::fs::copy(image, &copy).expect("a copy");
    let (path, cpus) = (format!("disk.0.path={copy}"), format!("cpus={cpus}"));
    let model = disk_model(model);
    let words = settings(&name, &[&[path.as_str(), &model, &cpus], more].concat());
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
        ("14,no-root", "bhyvectl --create"),
        ("14,not-loaded,no-root", "kldload vmm"),
        ("13,jail", "allow.vmm"),
        ("15,jail", "allow.vmm"),
        ("13,no-nodes", "devfs ruleset"),
    ] {
        let scratch = Scratch::new("sim-refused");
        let mut words = settings("sim-refused", &[]);
        words.extend(["--kernel".to_owned(), image.clone()]);
        let Some(ran) = run(kernel, &scratch, &words, 60) else { return };
        assert!(ran.ended.stderr.contains(says), "{kernel}: {}", ran.ended.stderr);
        assert_eq!(ran.ended.status, 4, "{kernel}: {}", ran.ended.stderr);
    }
}

/// Root makes a machine and gives its node away.
#[test]
fn whoever_is_given_a_machines_node_runs_it_without_being_root() {
    for kernel in ["13", "14", "15"] {
        let scratch = Scratch::new("sim-given");
        let mut words = settings("sim-given", &["memory=64M"]);
        words.extend(["--kernel".to_owned(), machine_tests::probe(), "--args".to_owned(), "demo".to_owned()]);
        let Some(ran) = run(&format!("{kernel},given=sim-given,no-root"), &scratch, &words, 60) else { return };
        assert_eq!(ran.ended.status, 1, "{kernel}: {}{}", ran.ended.console, ran.ended.stderr);
        assert_eq!(ran.count("request VM_REINIT"), 1, "{kernel}: it is taken over");
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
    v14_grub_ovmf_ahci: ovmf("14", "ahci");
    v13_grub_planes: planes("13");
    v15_grub_planes: planes("15");
    v13_amd64_2_ahci_5g: large_linux("13", "amd64", 2, "ahci", "poweroff");
    v15_pae_1_virtio_5g: large_linux("15", "686-pae", 1, "virtio-blk", "poweroff");
    v13_openbsd: openbsd("13", &[]);
    v14_openbsd: openbsd("14", &["board=440bx"]);
    v15_openbsd: openbsd("15", &[]);
}
