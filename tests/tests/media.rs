//! What the built-in BIOS boots, and SeaBIOS, Bochs's BIOS and OVMF in its place: GRUB and isolinux, which start Linux,
//! and OpenBSD's floppy, which then puts a file system on a disk, and is emulated by a CD-ROM as well.

use std::path::Path;

use machine_tests::{Ended, Scratch, guest, run};

/// A machine that has this in its drives, by the instruction clock.
fn machine(drives: &[String], more: &[&str]) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    // Machines that run at the same time have names of their own.
    let name = format!("name=media-{}", std::process::id());
    let usual = [name.as_str(), "serial.0.backend=stdio", "memory=256M", "clock=instructions"];
    for s in usual.into_iter().chain(drives.iter().map(String::as_str)).chain(more.iter().copied()) {
        words.extend(["-o".to_owned(), s.to_owned()]);
    }
    words
}

/// A disk that GRUB starts Linux from, on a controller of this model: twice, as what the first run wrote is for the
/// second.
fn disk(model: &str, more: &[&str]) {
    boots(model, more, 2);
}

/// So many boots of it.
fn boots(model: &str, more: &[&str], times: u32) {
    let Some(image) = guest("media/grub.img") else { return };
    let scratch = Scratch::new(&format!("grub-{model}-{}", more.len()));
    let copy = scratch.path("disk.img");
    std::fs::copy(image, &copy).expect("a copy");
    let drives = [format!("disk.0.path={copy}"), format!("disk.0.model={model}")];
    for boots in 1..=times {
        let ended = run(&machine(&drives, more), 600);
        let (verdict, details) = ended.result("root");
        assert_eq!(verdict, "pass", "{}", ended.console);
        assert!(details.contains(&format!("boots={boots} ")), "{details}");
        assert_eq!(ended.status, 1, "it powers off");
    }
}

#[test]
fn a_machine_that_is_saved_in_the_bios_goes_on_where_it_was() {
    let Some(image) = guest("media/grub.img") else { return };
    let scratch = Scratch::new("bios-saved");
    let state = scratch.path("state");
    let words = |more: &[&str]| {
        let mut words = machine(&[format!("disk.0.path={image}"), "disk.0.readonly=true".to_owned()], &[]);
        words.extend(more.iter().map(|w| (*w).to_owned()));
        let ended = run(&words, 60);
        let digest = ended.stderr.lines().find_map(|line| line.strip_prefix("state ")).map(str::to_owned);
        digest.unwrap_or_else(|| panic!("no digest: {}", ended.stderr))
    };
    let whole = words(&["--until", "90000000"]);
    // While POST runs, while GRUB's first sectors come, and in its menu.
    for at in ["300000", "2000000", "40000000"] {
        assert_ne!(words(&["--until", at, "--save", &state]), whole);
        assert_eq!(words(&["--restore", &state, "--until", "90000000"]), whole, "saved at {at}");
    }
}

/// A disc whose boot loader starts Linux.
fn disc(name: &str, model: &str) {
    let Some(image) = guest(&format!("media/{name}.iso")) else { return };
    let drives = [format!("cd.0.path={image}"), format!("cd.0.model={model}")];
    let ended = run(&machine(&drives, &[]), 600);
    assert_eq!(ended.result("init").0, "pass", "{}", ended.console);
    assert_eq!(ended.status, 1, "it powers off");
}

#[test]
fn grub_starts_linux_from_an_nvme_disk() {
    disk("nvme", &[]);
}

/// The same disk under firmware from a file, with the VGA's ROM that belongs to it.
fn firmware(bios: &str, rom: &str, model: &str, more: &[&str]) {
    let (Some(bios), Some(rom)) = (guest(&format!("media/{bios}")), guest(&format!("media/{rom}"))) else { return };
    let words = [format!("boot.firmware={bios}"), format!("screen.rom={rom}")];
    disk(model, &[&[words[0].as_str(), words[1].as_str()], more].concat());
}

#[test]
fn seabios_starts_the_same_disk_by_virtio() {
    firmware("bios-256k.bin", "vgabios-stdvga.bin", "virtio-blk", &[]);
}

/// The same disk under OVMF, which finds GRUB in the EFI system partition.
fn ovmf(model: &str, more: &[&str], times: u32) {
    let (Some(code), Some(vars)) = (guest("media/OVMF_CODE.fd"), guest("media/OVMF_VARS.fd")) else { return };
    let scratch = Scratch::new(&format!("ovmf-{model}"));
    let mine = scratch.path("vars.fd");
    std::fs::copy(&vars, &mine).expect("a copy");
    let words = [format!("boot.firmware={code}"), format!("boot.vars={mine}")];
    // GRUB for UEFI finds no room for the initrd in less.
    boots(model, &[&[words[0].as_str(), words[1].as_str(), "memory=512M"], more].concat(), times);
    assert_ne!(std::fs::read(mine).unwrap(), std::fs::read(vars).unwrap(), "its boot options are kept");
}

#[test]
fn ovmf_starts_the_same_disk_by_ahci() {
    ovmf("ahci", &[], 1);
}

#[test]
#[ignore = "part of tests/matrix"]
fn ovmf_starts_the_same_disk_on_every_controller() {
    for model in ["ide", "ahci", "nvme", "virtio-blk"] {
        ovmf(model, &[], 2);
    }
}

#[test]
#[ignore = "part of tests/matrix"]
fn seabios_and_bochs_bios_start_the_same_disk_on_every_controller() {
    for model in ["ide", "ahci", "nvme"] {
        firmware("bios-256k.bin", "vgabios-stdvga.bin", model, &[]);
    }
    firmware("bochsbios.bin", "vgabios.bin", "ide", &["board=440bx"]);
}

#[test]
fn isolinux_starts_linux_from_an_ahci_drive() {
    disc("isolinux", "ahci");
}

#[test]
#[ignore = "part of tests/matrix"]
fn grub_starts_linux_from_disks_on_every_controller_and_board() {
    for model in ["ide", "ahci", "virtio-blk"] {
        disk(model, &[]);
    }
    disk("ide", &["board=440bx"]);
    disk("virtio-blk", &["profile=bhyve"]);
}

#[test]
#[ignore = "part of tests/matrix"]
fn grub_and_isolinux_start_linux_from_either_cd_drive() {
    for (name, model) in [("grub", "ide"), ("grub", "ahci"), ("isolinux", "ide")] {
        disc(name, model);
    }
}

/// Runs until a script's last step has ended the machine.
fn scripted(scratch: &Scratch, drives: &[String], more: &[&str], script: &str) -> Ended {
    let script = scratch.write("script.toml", script);
    let mut words = machine(drives, more);
    words.extend(["--script".to_owned(), script]);
    run(&words, 900)
}

/// OpenBSD 5.1's install floppy, if somebody has it: see BHYVE_RS_GUESTS in the README.
fn openbsd(name: &str, more: &[&str]) {
    let Some(floppy) = openbsd_floppy() else { return };
    let scratch = Scratch::new(name);
    let (copy, disk) = (scratch.path("floppy.img"), scratch.path("disk.img"));
    std::fs::copy(&floppy, &copy).expect("a copy");
    std::fs::File::create(&disk).and_then(|f| f.set_len(64 << 20)).expect("an image");
    let drives = [format!("floppy.0.path={copy}"), format!("disk.0.path={disk}"), "boot.order=floppy".to_owned()];
    let steps = [
        ("# ", "fdisk -iy wd0; disklabel -E wd0"),
        ("\n> ", "a a"),
        ("offset: ", ""),
        ("size: ", ""),
        ("FS type: ", ""),
        ("\n> ", "w"),
        ("\n> ", "q"),
        (
            "# ",
            "newfs -q wd0a && mount /dev/wd0a /mnt && dd if=/dev/rfd0c of=/mnt/f bs=18k && cp /bin/* /mnt; umount /mnt",
        ),
        ("# ", "fsck -f /dev/rwd0a; mount /dev/wd0a /mnt; dd if=/mnt/f of=/dev/rfd0c bs=18k; ls -l /mnt; umount /mnt"),
        ("# ", "dmesg; halt -p"),
    ];
    let mut script = String::from(
        "[[step]]\nshown = 'boot>'\nkeys = 'set tty com0<enter>'\n\
         [[step]]\nseen = 'boot>'\nafter = 0.3\nsend = \"boot\\r\"\n\
         [[step]]\nseen = '(S)hell? '\nsend = \"S\\n\"\n",
    );
    for (seen, send) in steps {
        script += &format!("[[step]]\nseen = {seen:?}\nafter = 0.2\nsend = \"{send}\\n\"\n");
    }
    let ended = scripted(&scratch, &drives, more, &script);
    let console = &ended.console;
    for found in
        ["wd0 at pciide0 channel 0 drive 0", "fd0 at fdc0 drive 0: 1.44MB 80 cyl, 2 head, 18 sec", "80+0 records out"]
    {
        assert!(console.contains(found), "{found}: {console}");
    }
    for complaint in ["timeout", "lost interrupt", "DMA error", "hard error", "UNEXPECTED", "INCONSISTEN"] {
        assert!(!console.contains(complaint), "{complaint}: {console}");
    }
    assert_eq!(ended.status, 1, "it powers off through APM: {console}");
    assert!(std::fs::read(&copy).unwrap() == std::fs::read(&floppy).unwrap(), "the floppy is what it was");
}

fn openbsd_floppy() -> Option<String> {
    let name = "openbsd51-i386-install-floppy.img";
    let dir = std::env::var("BHYVE_RS_GUESTS").unwrap_or_default();
    let path = Path::new(&dir).join(name);
    if dir.is_empty() || !path.exists() {
        machine_tests::skip(name);
        return None;
    }
    Some(path.display().to_string())
}

#[test]
fn openbsd_boots_from_its_floppy_and_makes_a_file_system() {
    openbsd("openbsd", &["acpi.enabled=false"]);
}

#[test]
#[ignore = "part of tests/matrix"]
fn openbsd_boots_on_the_440bx_board() {
    openbsd("openbsd-440bx", &["acpi.enabled=false", "board=440bx"]);
}

/// A disc whose boot catalogue has this image of a 1.44 MB diskette.
fn disc_of(floppy: &[u8]) -> Vec<u8> {
    let mut disc = vec![0; 20 * 2048];
    let mut put = |sector: usize, at: usize, bytes: &[u8]| {
        let at = 2048 * sector + at;
        disc[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(16, 0, b"\x01CD001\x01");
    put(17, 0, b"\0CD001\x01EL TORITO SPECIFICATION");
    put(17, 0x47, &[19]);
    put(18, 0, b"\xffCD001\x01");
    // The validation entry, whose words add up to nothing, and the default one.
    put(19, 0, &[1]);
    put(19, 28, &[0xaa, 0x55, 0x55, 0xaa]);
    put(19, 32, &[0x88, 2, 0, 0, 0, 0, 1, 0, 20]);
    disc.extend_from_slice(floppy);
    disc.resize(disc.len().next_multiple_of(2048), 0);
    disc
}

/// OpenBSD's floppy on a CD-ROM, with two floppy drives and two disks beside it, up to the shell; then these steps.
/// Of its loader's list of drives the emulated one is the first, and the kernel finds the real ones where they are.
fn openbsd_disc(name: &str, more: &[&str], loader: &[(&str, &str)], shell: &[(&str, &str)]) -> Option<Ended> {
    let floppy = std::fs::read(openbsd_floppy()?).expect("the floppy");
    let scratch = Scratch::new(name);
    let path = |name: &str, bytes: &[u8]| {
        let path = scratch.path(name);
        std::fs::write(&path, bytes).expect("an image");
        path
    };
    let drives = [
        format!("cd.0.path={}", path("cd.iso", &disc_of(&floppy))),
        format!("floppy.0.path={}", path("a.img", &vec![0; 1440 << 10])),
        format!("floppy.1.path={}", path("b.img", &vec![0; 720 << 10])),
        format!("disk.0.path={}", path("0.img", &vec![0; 8 << 20])),
        format!("disk.1.path={}", path("1.img", &vec![0; 16 << 20])),
    ];
    let mut script = String::from("[[step]]\nshown = 'boot>'\nkeys = 'set tty com0<enter>'\n");
    let first = [("boot>", "machine diskinfo\r")];
    for (seen, send) in first.iter().chain(loader).chain(&[("(S)hell? ", "S\n")]).chain(shell) {
        script += &format!("[[step]]\nseen = {seen:?}\nafter = 0.3\nsend = {send:?}\n");
    }
    let ended = scripted(&scratch, &drives, &[&["boot.order=cd", "memory=64M"], more].concat(), &script);
    let listed: Vec<Vec<&str>> = ended.console.lines().map(|l| l.split_whitespace().collect()).collect();
    for drive in [
        ["fd0", "0x0", "label", "80", "2", "18", "0x2", "0x0"],
        ["fd1", "0x1", "*none*", "80", "2", "18", "0x4", "0x0"],
        ["fd2", "0x2", "*none*", "80", "2", "9", "0x4", "0x0"],
        ["hd0", "0x80", "label", "16", "16", "63", "0x0", "0x0"],
        ["hd1", "0x81", "label", "32", "16", "63", "0x0", "0x0"],
    ] {
        assert!(listed.contains(&drive.to_vec()), "{drive:?}: {}", ended.console);
    }
    for found in ["fd0 at fdc0 drive 0: 1.44MB", "fd1 at fdc0 drive 1: 720KB 80 cyl, 2 head, 9 sec"] {
        assert!(ended.console.contains(found), "{found}: {}", ended.console);
    }
    Some(ended)
}

const BOOT: [(&str, &str); 1] = [("boot>", "boot\r")];

#[test]
fn openbsd_boots_from_a_disc_that_emulates_its_floppy() {
    let shell = [("# ", "dd if=/dev/rcd0c of=/dev/null bs=2k count=20; halt -p\n")];
    let more = ["board=440bx", "acpi.enabled=false"];
    let Some(ended) = openbsd_disc("openbsd-cd", &more, &BOOT, &shell) else { return };
    for found in ["wd0 at pciide0 channel 0 drive 0", "wd1 at pciide0 channel 0 drive 1", "20+0 records in"] {
        assert!(ended.console.contains(found), "{found}: {}", ended.console);
    }
    assert_eq!(ended.status, 1, "it powers off through APM");
}

#[test]
#[ignore = "part of tests/matrix"]
fn openbsd_reboots_from_the_disc_on_every_board() {
    for more in [&["board=440fx"][..], &["board=440bx", "acpi.enabled=false"], &["profile=bhyve"]] {
        let Some(ended) = openbsd_disc("openbsd-reboot", more, &BOOT, &[("# ", "reboot\n")]) else { return };
        assert_eq!(ended.status, 0, "{}", ended.console);
    }
}

#[test]
#[ignore = "part of tests/matrix"]
fn openbsd_with_acpi_halts_and_a_key_reboots_it() {
    // Its kernels for floppies drive ACPI, which keeps APM away, but are built without the part that switches off.
    let shell = [("# ", "halt -p\n"), ("press any key to reboot", " ")];
    let Some(ended) = openbsd_disc("openbsd-halt", &[], &BOOT, &shell) else { return };
    assert!(ended.console.contains("acpi0 at bios0: rev 2"), "{}", ended.console);
    assert_eq!(ended.status, 0, "{}", ended.console);
}
