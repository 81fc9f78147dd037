//! Booting from the network: iPXE as an option ROM under the built-in BIOS, and what it loads from the gateway of the
//! user-mode network.

use machine_tests::{Run, Scratch, guest};

/// A file that the gateway offers.
enum File {
    Text(&'static str),
    Guest(&'static str),
}
use File::{Guest, Text};

const MEMTEST: (&str, File) = ("memtest", Guest("memtest86+x64.bin"));
const GRUB: [(&str, File); 2] =
    [("grub.0", Guest("media/pxe/grub.0")), ("grub.cfg", Text("linux (pxe)/memtest console=ttyS0,115200\nboot\n"))];
const PXELINUX: [(&str, File); 3] = [
    ("pxelinux.0", Guest("media/pxe/pxelinux.0")),
    ("ldlinux.c32", Guest("media/pxe/ldlinux.c32")),
    ("pxelinux.cfg/default", Text("DEFAULT m\nLABEL m\nLINUX memtest\nAPPEND console=ttyS0,115200\n")),
];

/// Boots the first of these files by a card with a ROM. Nothing, if the test is skipped.
fn start(dir: &Scratch, model: &str, rom: &str, memory: &str, files: &[&(&str, File)], seconds: u64) -> Option<Run> {
    let rom = guest(&format!("media/pxe/{rom}"))?;
    std::fs::create_dir_all(dir.path("tftp/pxelinux.cfg")).expect("a directory");
    for (name, file) in files {
        let to = dir.path(&format!("tftp/{name}"));
        match file {
            Text(text) => std::fs::write(to, text).expect("a file"),
            Guest(name) => _ = std::fs::copy(guest(name)?, to).expect("a copy"),
        }
    }
    let settings = [
        format!("memory={memory}"),
        "boot.order=net".to_owned(),
        "boot.serial=true".to_owned(),
        format!("nic.0.model={model}"),
        format!("nic.0.rom={rom}"),
        "nic.0.backend=nat".to_owned(),
        format!("nic.0.tftp={}", dir.path("tftp")),
        format!("nic.0.bootfile={}", files[0].0),
    ];
    let words: Vec<&str> = settings.iter().flat_map(|s| ["-o", s]).collect();
    Some(Run::start(&words, seconds))
}

/// Boots, and waits for what is said then.
fn boots(name: &str, model: &str, rom: &str, files: &[&(&str, File)], said: &[&str]) {
    let dir = Scratch::new(&format!("pxe-{name}"));
    let Some(mut machine) = start(&dir, model, rom, "128M", files, 300) else { return };
    said.iter().for_each(|text| machine.expect(text));
    machine.kill();
}

#[test]
fn ipxe_on_a_virtio_card_starts_grub_that_starts_a_kernel() {
    let files: Vec<_> = GRUB.iter().chain([&MEMTEST]).collect();
    let said = ["using virtio-net on 0000:00:03.0", "grub.0... ok", "Welcome to GRUB!", "Memtest86"];
    boots("grub", "virtio-net", "pxe-virtio.rom", &files, &said);
}

#[test]
fn pxelinux_runs_on_ipxes_undi() {
    let files: Vec<_> = PXELINUX.iter().chain([&MEMTEST]).collect();
    let said = ["using 82545em", "pxelinux.0... ok", "Memtest86"];
    boots("pxelinux", "e1000", "pxe-e1000.rom", &files, &said);
}

#[test]
fn pxelinux_starts_ipxe_as_a_kernel() {
    let config = ("pxelinux.cfg/default", Text("DEFAULT ipxe\nLABEL ipxe\nLINUX ipxe.lkrn\n"));
    let files = [&PXELINUX[0], &PXELINUX[1], &config, &("ipxe.lkrn", Guest("media/pxe/ipxe.lkrn"))];
    let said = ["pxelinux.0... ok", "ipxe.lkrn", "iPXE initialising devices...ok"];
    boots("lkrn", "virtio-net", "pxe-virtio.rom", &files, &said);
}

/// Linux and its initramfs, all by TFTP.
fn linux(model: &str, rom: &str) {
    const CONFIG: &str = "serial\nlinux (pxe)/vmlinuz console=ttyS0 end=poweroff\ninitrd (pxe)/initrd\nboot\n";
    let files = [
        ("grub.0", Guest("media/pxe/grub.0")),
        ("grub.cfg", Text(CONFIG)),
        ("vmlinuz", Guest("linux-amd64/vmlinuz")),
        ("initrd", Guest("initramfs-amd64.cpio")),
    ];
    let dir = Scratch::new(&format!("pxe-linux-{model}"));
    let Some(machine) = start(&dir, model, rom, "256M", &files.iter().collect::<Vec<_>>(), 1800) else { return };
    let ended = machine.wait();
    assert_eq!(ended.result("init").0, "pass", "{}", ended.console);
}

#[test]
#[ignore = "part of tests/matrix"]
fn every_card_with_a_rom_of_ipxes_boots_linux() {
    for (model, rom) in [("virtio-net", "pxe-virtio.rom"), ("e1000", "pxe-e1000.rom")] {
        linux(model, rom);
    }
}
