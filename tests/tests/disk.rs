//! Disks and CD-ROM drives under Linux's drivers. What the guest says it wrote, the host looks for in the images.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::process::Command;

use machine_tests::{Ended, guest, probe, run, stream};

const MIB: usize = 1 << 20;

/// An image that goes with the test.
struct Image(PathBuf);

impl Image {
    fn new(name: &str) -> Image {
        Image(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}.img", std::process::id())))
    }

    /// An empty disk.
    fn empty(name: &str, len: usize) -> Image {
        let image = Image::new(name);
        File::create(&image.0).and_then(|f| f.set_len(len as u64)).expect("a scratch file");
        image
    }

    fn with(name: &str, bytes: &[u8]) -> Image {
        let image = Image::new(name);
        std::fs::write(&image.0, bytes).expect("a scratch file");
        image
    }

    fn path(&self) -> String {
        self.0.display().to_string()
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.0).expect("the image")
    }

    /// Whether it starts with so many bytes of the stream.
    fn has_stream(&self, len: usize) -> bool {
        let mut start = vec![0; len];
        File::open(&self.0).and_then(|mut f| f.read_exact(&mut start)).expect("the image");
        start == stream(len)
    }

    /// What e2fsck(8) says against it; nothing where there is none.
    fn fsck(&self) -> String {
        match Command::new("e2fsck").args(["-f", "-n", &self.path()]).output() {
            Ok(out) if out.status.success() => String::new(),
            Ok(out) => String::from_utf8_lossy(&out.stdout).into_owned(),
            Err(_) => String::new(),
        }
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Linux with these settings, by the instruction clock.
fn boot(kernel: &str, settings: &[String], args: &str) -> Option<Ended> {
    let arch = if kernel == "amd64" { "amd64" } else { "i386" };
    let (kernel, initrd) = (guest(&format!("linux-{kernel}/vmlinuz"))?, guest(&format!("initramfs-{arch}.cpio"))?);
    let mut words = vec!["--kernel".to_owned(), kernel, "--initrd".to_owned(), initrd, "--stats".to_owned()];
    for s in settings.iter().map(String::as_str).chain(["clock=instructions"]) {
        words.extend(["-o".to_owned(), s.to_owned()]);
    }
    words.extend(["--args".to_owned(), format!("console=ttyS0 {args} end=poweroff")]);
    let ended = run(&words, 900);
    assert_eq!(ended.failures(), Vec::<&str>::new(), "{}", ended.console);
    assert_eq!((ended.result("init").0, ended.result("dmesg").0), ("pass", "pass"), "{}", ended.console);
    Some(ended)
}

/// A disc with one file, STREAM.BIN (ECMA-119).
fn iso(file: &[u8]) -> Vec<u8> {
    const ROOT: u32 = 20;
    let both16 = |n: u16| [n.to_le_bytes(), n.to_be_bytes()].concat();
    let both32 = |n: u32| [n.to_le_bytes(), n.to_be_bytes()].concat();
    let record = |extent: u32, len: u32, directory: bool, name: &[u8]| {
        let mut r = vec![0, 0];
        r.extend(both32(extent));
        r.extend(both32(len));
        r.extend([126, 1, 1, 0, 0, 0, 0, u8::from(directory) << 1, 0, 0]);
        r.extend(both16(1));
        r.push(name.len() as u8);
        r.extend(name);
        r.resize(r.len().next_multiple_of(2), 0);
        r[0] = r.len() as u8;
        r
    };
    let blocks = ROOT + 1 + file.len().div_ceil(2048) as u32;
    let mut disc = vec![0; blocks as usize * 2048];
    let mut put = |at: usize, bytes: &[u8]| disc[at..at + bytes.len()].copy_from_slice(bytes);
    let volume = 16 * 2048;
    put(volume, b"\x01CD001\x01");
    put(volume + 8, &[b' '; 64]);
    put(volume + 80, &both32(blocks));
    for (at, n) in [(120, 1), (124, 1), (128, 2048)] {
        put(volume + at, &both16(n));
    }
    put(volume + 132, &both32(10));
    put(volume + 140, &18u32.to_le_bytes());
    put(volume + 148, &19u32.to_be_bytes());
    put(volume + 156, &record(ROOT, 2048, true, &[0]));
    put(volume + 190, &[b' '; 623]);
    put(volume + 881, &[1]);
    put(17 * 2048, b"\xffCD001\x01");
    put(18 * 2048, &[&[1, 0][..], &ROOT.to_le_bytes(), &[1, 0, 0, 0]].concat());
    put(19 * 2048, &[&[1, 0][..], &ROOT.to_be_bytes(), &[0, 1, 0, 0]].concat());
    let entries = [
        record(ROOT, 2048, true, &[0]),
        record(ROOT, 2048, true, &[1]),
        record(ROOT + 1, file.len() as u32, false, b"STREAM.BIN;1"),
    ];
    put(ROOT as usize * 2048, &entries.concat());
    put((ROOT as usize + 1) * 2048, file);
    disc
}

#[test]
fn four_processors_fill_disks_by_dma_twice_in_the_same_way() {
    let mut runs = Vec::new();
    for n in 0..2 {
        let (raw, files) = (Image::empty(&format!("dma-{n}"), 8 * MIB), Image::empty(&format!("files-{n}"), 24 * MIB));
        let settings =
            ["cpus=4".to_owned(), format!("disk.0.path={}", raw.path()), format!("disk.1.path={}", files.path())];
        let Some(ended) = boot("amd64", &settings, "test=disk,dmesg disk.mib=4 disk.blocks=8 disk.files=1") else {
            return;
        };
        assert!(ended.result("disk").1.contains("sectors=16384 mode=XFER_MW_DMA_2"), "{}", ended.result("disk").1);
        assert!(raw.has_stream(4 * MIB), "the image is not what the guest wrote");
        assert_eq!(files.fsck(), "");
        runs.push((ended.instructions(), ended.console, raw.bytes(), files.bytes()));
    }
    assert_eq!(runs[0].0, runs[1].0, "instructions");
    assert_eq!(runs[0].1, runs[1].1);
    assert!(runs[0].2 == runs[1].2 && runs[0].3 == runs[1].3, "the images differ");
}

#[test]
fn linux_fills_a_disk_by_pio() {
    let raw = Image::empty("pio", 3 * MIB);
    let settings = [format!("disk.0.path={}", raw.path())];
    let args = "test=disk,dmesg disk.mib=3 disk.blocks=4 disk.dma=0";
    let Some(ended) = boot("amd64", &settings, args) else { return };
    assert!(ended.result("disk").1.contains("mode=XFER_PIO_4"), "{}", ended.result("disk").1);
    assert!(raw.has_stream(3 * MIB), "the image is not what the guest wrote");
}

#[test]
fn on_the_440bx_board_a_disk_does_ultra_dma_beside_a_cd() {
    // Not a whole number of sectors.
    let disc = Image::with("disc", &iso(&stream(MIB + 1000)));
    let raw = Image::empty("udma", 2 * MIB + 100);
    let settings =
        ["board=440bx".to_owned(), format!("disk.0.path={}", raw.path()), format!("cd.0.path={}", disc.path())];
    let args = "test=cd,disk,dmesg disk.mib=2 disk.blocks=4";
    let Some(ended) = boot("686-pae", &settings, args) else { return };
    assert!(ended.result("disk").1.contains("sectors=4097 mode=XFER_UDMA_2"), "{}", ended.result("disk").1);
    assert!(raw.has_stream(2 * MIB), "the image is not what the guest wrote");
    assert!(ended.result("cd").1.contains("bytes=1049576 "), "{}", ended.result("cd").1);
    assert!(ended.result("cd").1.contains("model=CD-ROM"), "{}", ended.result("cd").1);
}

#[test]
fn a_cd_is_read_by_pio() {
    let disc = Image::with("disc-pio", &iso(&stream(300_000)));
    let settings = [format!("cd.0.path={}", disc.path())];
    let Some(ended) = boot("686", &settings, "test=cd,dmesg disk.dma=0") else { return };
    assert!(ended.result("cd").1.contains("bytes=300000 "), "{}", ended.result("cd").1);
}

/// Linux's driver of this name on disks of a controller of the same name; what it said of the first.
fn controller(name: &str, disks: &[&Image], more: &[String], args: &str) -> Option<(Ended, String)> {
    let mut settings = more.to_vec();
    for (n, disk) in disks.iter().enumerate() {
        settings.push(format!("disk.{n}.path={}", disk.path()));
        settings.push(format!("disk.{n}.model={name}"));
    }
    let args = format!("test=disk,dmesg disk.driver={name} disk.mib=4 disk.blocks=4 {args}");
    let ended = boot("amd64", &settings, &args)?;
    assert!(disks[0].has_stream(4 * MIB), "the image is not what the guest wrote");
    let said = ended.result("disk").1.to_owned();
    Some((ended, said))
}

#[test]
fn queued_commands_fill_ahci_disks_that_another_boot_reads_beside_a_cd() {
    let (raw, files) = (Image::empty("ahci", 8 * MIB), Image::empty("ahci-files", 24 * MIB));
    let disc = Image::with("ahci-disc", &iso(&stream(300_000)));
    let Some((_, said)) = controller("ahci", &[&raw, &files], &["cpus=4".to_owned()], "disk.files=1") else { return };
    assert!(said.contains("sectors=16384 mode=XFER_UDMA_6 depth=32 ") && said.contains("PCI-MSI"), "{said}");
    assert_eq!(files.fsck(), "");
    let cd = [format!("cd.0.path={}", disc.path()), "cd.0.model=ahci".to_owned()];
    let (ended, said) = controller("ahci", &[&raw], &cd, "test=cd disk.keep=1 pci=nomsi").expect("the guest is there");
    assert!(said.contains("sectors=16384 kept"), "{said}");
    assert!(ended.result("cd").1.contains("bytes=300000 "), "{}", ended.result("cd").1);
}

#[test]
fn many_queues_fill_nvme_namespaces_that_another_boot_reads() {
    let (raw, files) = (Image::empty("nvme", 8 * MIB), Image::empty("nvme-files", 24 * MIB));
    let Some((_, said)) = controller("nvme", &[&raw, &files], &["cpus=4".to_owned()], "disk.files=1") else { return };
    assert!(said.contains("sectors=16384 queues=5 ") && said.contains("PCI-MSI"), "{said}");
    assert_eq!(files.fsck(), "");
    let (_, said) = controller("nvme", &[&raw], &[], "disk.keep=1 pci=nomsi").expect("the guest is there");
    assert!(said.contains("sectors=16384 kept"), "{said}");
}

#[test]
fn scsi_disks_are_filled_through_resets_and_another_boot_reads_them_beside_a_cd() {
    let (raw, files) = (Image::empty("scsi", 8 * MIB), Image::empty("scsi-files", 24 * MIB));
    let disc = Image::with("scsi-disc", &iso(&stream(300_000)));
    let mut settings = vec!["cpus=4".to_owned()];
    for (n, disk) in [&raw, &files].iter().enumerate() {
        settings.push(format!("disk.{n}.path={}", disk.path()));
        settings.push(format!("disk.{n}.model=virtio-scsi"));
    }
    let args = "test=disk,dmesg disk.driver=virtio_scsi disk.mib=4 disk.blocks=4";
    let Some(ended) = boot("amd64", &settings, &format!("{args} disk.files=1")) else { return };
    let said = ended.result("disk").1;
    assert!(said.contains("sectors=16384 queues=4 resets=1 cache=writeback unmap=2147483648 model=HARDDISK"), "{said}");
    assert!(said.contains("PCI-MSI"), "{said}");
    assert!(raw.has_stream(4 * MIB), "the image is not what the guest wrote");
    assert_eq!(files.fsck(), "");
    let cd = ["cpus=1".to_owned(), format!("cd.0.path={}", disc.path()), "cd.0.model=virtio-scsi".to_owned()];
    let settings = [&settings[1..3], &cd].concat();
    let args = format!("{args} test=cd disk.keep=1 pci=nomsi");
    let ended = boot("amd64", &settings, &args).expect("the guest is there");
    assert!(ended.result("disk").1.contains("sectors=16384 kept"), "{}", ended.console);
    assert!(ended.result("cd").1.contains("bytes=300000 ") && ended.result("cd").1.contains("model=CD-ROM"));
}

#[test]
#[ignore = "part of tests/matrix"]
fn four_processors_fill_ahci_and_nvme_disks_twice_in_the_same_way() {
    for name in ["ahci", "nvme"] {
        let runs = [0, 1].map(|n| {
            let raw = Image::empty(&format!("{name}-twice-{n}"), 8 * MIB);
            let (ended, _) = controller(name, &[&raw], &["cpus=4".to_owned()], "")?;
            Some((ended.instructions(), ended.console, raw.bytes()))
        });
        let [Some(one), Some(two)] = runs else { return };
        assert_eq!((one.0, &one.1), (two.0, &two.1));
        assert!(one.2 == two.2, "the images differ");
    }
}

/// Linux's drivers on virtio devices of this version: disks, a network card, random numbers. What they said of the
/// disk.
fn virtio(version: &str, disks: &[&Image], more: &[&str], args: &str) -> Option<(Ended, String)> {
    let mut settings: Vec<String> = more.iter().map(|s| (*s).to_owned()).collect();
    for (n, disk) in disks.iter().enumerate() {
        settings.push(format!("disk.{n}.path={}", disk.path()));
        settings.push(format!("disk.{n}.model=virtio-blk"));
        settings.push(format!("disk.{n}.version={version}"));
    }
    for (key, value) in [("model", "virtio-net"), ("version", version), ("backend", "none")] {
        settings.push(format!("nic.0.{key}={value}"));
    }
    settings.extend(["device.0.model=virtio-rnd".to_owned(), format!("device.0.version={version}")]);
    let args = format!("test=disk,net,rnd,dmesg disk.driver=virtio_blk disk.mib=4 disk.blocks=4 {args}");
    let ended = boot("amd64", &settings, &args)?;
    assert!(ended.result("net").1.contains(" mac=00:a0:98:"), "{}", ended.console);
    assert!(ended.result("net").1.contains(" carrier=0 "), "{}", ended.console);
    assert!(ended.result("rnd").1.contains(" source=virtio_rng.0 "), "{}", ended.console);
    assert!(disks[0].has_stream(4 * MIB), "the image is not what the guest wrote");
    let said = ended.result("disk").1.to_owned();
    Some((ended, said))
}

#[test]
fn what_an_old_virtio_driver_has_written_a_new_one_reads() {
    let (raw, files) = (Image::empty("virtio", 8 * MIB), Image::empty("virtio-files", 24 * MIB));
    let Some((_, said)) = virtio("legacy", &[&raw, &files], &[], "disk.files=1 pci=nomsi") else { return };
    assert!(said.contains("sectors=16384 queues=1 modern=0 ") && said.contains("IO-APIC"), "{said}");
    assert_eq!(files.fsck(), "");
    let (_, said) = virtio("modern", &[&raw], &["cpus=4"], "disk.keep=1").expect("the guest is there");
    assert!(said.contains("sectors=16384 kept"), "{said}");
}

#[test]
#[ignore = "part of tests/matrix"]
fn virtio_disks_of_every_version_with_and_without_messages() {
    for version in ["legacy", "transitional", "modern"] {
        for (args, wire) in [("", "PCI-MSI"), ("pci=nomsi", "IO-APIC")] {
            for cpus in [1, 4] {
                let (raw, files) = (Image::empty("virtio-all", 8 * MIB), Image::empty("virtio-all-files", 24 * MIB));
                let settings = [format!("cpus={cpus}")];
                let args = format!("disk.files=1 {args}");
                let run = virtio(version, &[&raw, &files], &settings.each_ref().map(String::as_str), &args);
                let Some((_, said)) = run else { return };
                let modern = u8::from(version != "legacy");
                assert!(said.contains(&format!("queues={cpus} modern={modern} ")), "{said}");
                assert!(said.contains(wire), "{said}");
                assert_eq!(files.fsck(), "");
            }
        }
    }
}

#[test]
#[ignore = "part of tests/matrix"]
fn four_processors_fill_virtio_disks_twice_in_the_same_way() {
    let runs = [0, 1].map(|n| {
        let raw = Image::empty(&format!("virtio-twice-{n}"), 8 * MIB);
        let (ended, _) = virtio("modern", &[&raw], &["cpus=4"], "")?;
        Some((ended.instructions(), ended.console, raw.bytes()))
    });
    let [Some(one), Some(two)] = runs else { return };
    assert_eq!((one.0, &one.1), (two.0, &two.1));
    assert!(one.2 == two.2, "the images differ");
}

#[test]
fn a_machine_that_is_saved_while_its_disk_works_goes_on_where_it_was() {
    let (probe, raw) = (probe(), Image::with("saved", &stream(MIB)));
    let disk = format!("disk.0.path={}", raw.path());
    let settings = ["--stats", "-o", "clock=instructions", "-o", "memory=64M", "-o", &disk];
    let words = [&["--kernel", &probe, "--args", "smoke only=ide need=ide"][..], &settings].concat();
    let whole = run(&words, 300);
    assert!(whole.console.contains("2048 sectors 49405b3f by PIO and DMA"), "{}", whole.console);
    let file = Image::new("state");
    // The drive is what the guest comes to last: requests are under way at some of these places.
    for n in 1..20 {
        let until = (whole.instructions() - 30_000 * n).to_string();
        let first = run(&[&words[..], &["--until", &until, "--save", &file.path()]].concat(), 300);
        let rest = run(&[&words[..], &["--restore", &file.path()]].concat(), 300);
        assert_eq!(first.console + &rest.console, whole.console, "saved after {until} instructions");
        assert_eq!(rest.instructions(), whole.instructions(), "saved after {until} instructions");
    }
}

#[test]
fn one_image_is_not_given_to_two_machines() {
    let raw = Image::empty("shared", MIB);
    let disk = format!("disk.0.path={}", raw.path());
    let Some(kernel) = guest("linux-amd64/vmlinuz") else { return };
    let twice = run(&["--kernel", &kernel, "-o", &disk, "-o", &disk.replace("disk.0", "disk.1")], 60);
    assert_eq!(twice.status, 4);
    assert!(twice.stderr.contains(&raw.path()) && twice.stderr.contains("in use"), "{}", twice.stderr);
}
