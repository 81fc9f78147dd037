//! bhyve-rs is killed in the middle of a guest's writes, again and again on the same disk: what the guest has synced is
//! there, its file system recovers, and the image is sound.
//!
//! When a machine is killed follows from a seed and from how fast the host is. `$BHYVE_RS_KILLS` says how often, and
//! `$BHYVE_RS_SEED` tries a seed again that a failure has named.

use std::process::Command;
use std::time::Duration;

use machine_tests::{Run, Scratch, guest, program, run, skip};

/// Models of disks, and Linux's drivers for them.
const DRIVERS: [(&str, &str); 4] =
    [("virtio-blk", "virtio_blk"), ("ide", "ata_piix"), ("ahci", "ahci"), ("nvme", "nvme")];
/// Bytes of the disk.
const SIZE: u64 = 24 << 20;
/// When a guest has long asked what to do.
const ASKED: &str = "6500000000";

/// Runs `bhyve-rs image` and returns its exit status and what it says.
fn image(words: &[&str]) -> (i32, String) {
    let out = Command::new(program()).arg("image").args(words).output().expect("the program starts");
    let said = [out.stdout, out.stderr].concat();
    (out.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned())
}

/// A file system in an image of this kind; `None` without mkfs.ext4.
fn make(scratch: &Scratch, kind: &str) -> Option<String> {
    let base = scratch.path("base.img");
    std::fs::File::create(&base).and_then(|file| file.set_len(SIZE)).expect("a scratch file");
    let made = Command::new("mkfs.ext4").args(["-q", "-F", "-b", "1024", &base]).status();
    if !made.is_ok_and(|status| status.success()) {
        skip("mkfs.ext4");
        return None;
    }
    let path = scratch.path("disk");
    let done = match kind {
        "raw" => image(&["convert", &base, &path, "-O", "raw"]),
        "qcow2" => image(&["convert", &base, &path, "-O", "qcow2"]),
        _ => image(&["create", "-b", "base.img", &path]),
    };
    assert_eq!(done.0, 0, "{}", done.1);
    Some(path)
}

/// The number in a variable.
fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// The last file that the guest says it synced.
fn last_synced(console: &str) -> Option<u64> {
    console.split("SYNCED ").skip(1).filter_map(|rest| rest.split_once('\n')?.0.trim_end().parse().ok()).last()
}

/// Guests that have booted and ask what to do, one for each model of disks; they have not looked at their disks yet. So
/// not every life begins with a boot.
struct Booted {
    scratch: Scratch,
    kernel: String,
    initrd: String,
    models: usize,
}

impl Booted {
    fn new(name: &str, models: usize) -> Option<Booted> {
        let (kernel, initrd) = (guest("linux-amd64/vmlinuz")?, guest("initramfs-amd64.cpio")?);
        let booted = Booted { scratch: Scratch::new(name), kernel, initrd, models };
        let blank = booted.scratch.path("blank");
        std::fs::File::create(&blank).and_then(|file| file.set_len(SIZE)).expect("a scratch file");
        for n in 0..models {
            let save = ["-o", "clock=instructions", "--until", ASKED, "--save", &booted.state(n)].map(str::to_owned);
            let ended = run(&[&booted.words(n, "boot", &blank)[..], &save].concat(), 600);
            assert!(ended.console.contains("READY"), "{}{}", ended.console, ended.stderr);
        }
        Some(booted)
    }

    fn state(&self, n: usize) -> String {
        self.scratch.path(DRIVERS[n].0)
    }

    fn words(&self, n: usize, name: &str, disk: &str) -> Vec<String> {
        let settings = [
            format!("name=crash-{name}-{}", std::process::id()),
            format!("disk.0.path={disk}"),
            format!("disk.0.model={}", DRIVERS[n].0),
        ];
        let mut words = ["--kernel", &self.kernel, "--initrd", &self.initrd].map(str::to_owned).to_vec();
        words.extend(settings.into_iter().flat_map(|s| ["-o".to_owned(), s]));
        words.extend(["--args".to_owned(), "console=ttyS0 test=crash end=poweroff".to_owned()]);
        words
    }

    /// Lets one go on: it has `have` files, and writes more or does not.
    fn live(&self, n: usize, name: &str, disk: &str, have: u64, more: bool) -> Run {
        let restore = ["--restore".to_owned(), self.state(n)];
        let mut machine = Run::start(&[&self.words(n, name, disk)[..], &restore].concat(), 900);
        machine.send(&format!("{} {have} {}\n", DRIVERS[n].1, u8::from(more)));
        machine
    }
}

/// So many lives and violent deaths of machines on one disk, and one more life.
fn lives(booted: &Booted, kind: &str, kills: u64) {
    let seed = variable("BHYVE_RS_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.expect("a date").as_secs() / 86_400
    });
    let scratch = Scratch::new(&format!("crash-{kind}"));
    let Some(disk) = make(&scratch, kind) else { return };
    let base = std::fs::read(scratch.path("base.img")).expect("the base");
    let (mut have, mut wasted) = (0, 0);
    // Knuth's MMIX generator.
    let mut state = seed.wrapping_add(kind.len() as u64);
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for n in 0..kills {
        let model = random(booted.models as u64) as usize;
        // One in eight dies while the file system recovers.
        let (files, delay) = (if random(8) == 0 { 0 } else { random(40) + 1 }, Duration::from_millis(random(60)));
        let mut machine = booted.live(model, kind, &disk, have, true);
        machine.expect("RECOVERS");
        if files > 0 {
            machine.expect(&format!("SYNCED {}\r", have + files));
        }
        std::thread::sleep(delay);
        let console = machine.kill();
        have = last_synced(&console).unwrap_or(have);
        let when = format!("{kind}, seed {seed}, kill {n} ({}) after file {have}", DRIVERS[model].0);
        assert!(!console.contains("RESULT crash"), "{when}: {console}");
        let (status, said) = image(&["check", &disk]);
        eprintln!("{when}: {}", said.trim_end().lines().last().unwrap_or_default());
        // Space that nobody uses is what a kill may leave; the next machine gives it back.
        assert!(matches!(status, 0 | 3), "{when}: {said}");
        wasted += u64::from(status == 3);
    }
    let when = format!("{kind}, seed {seed}, after {kills} kills");
    eprintln!("{when}: {have} files, the image wasted space {wasted} times");
    let ended = booted.live(random(booted.models as u64) as usize, kind, &disk, have, false).wait();
    assert_eq!(ended.result("crash").0, "pass", "{when}: {}", ended.console);
    assert_eq!(image(&["check", &disk]).0, 0, "{when}");
    assert!(std::fs::read(scratch.path("base.img")).expect("the base") == base, "{when}: the backing file was written");
    let plain = scratch.path("plain");
    assert_eq!(image(&["convert", &disk, &plain, "-O", "raw"]).0, 0, "{when}");
    if let Ok(out) = Command::new("e2fsck").args(["-f", "-n", &plain]).output() {
        assert!(out.status.success(), "{when}: {}", String::from_utf8_lossy(&out.stdout));
    }
}

/// An image of each kind, at the same time.
fn all_kinds(name: &str, models: usize, kills: u64) {
    let Some(booted) = Booted::new(name, models) else { return };
    std::thread::scope(|threads| {
        for kind in ["raw", "qcow2", "overlay"] {
            let booted = &booted;
            threads.spawn(move || lives(booted, kind, kills));
        }
    });
}

#[test]
fn what_a_guest_synced_is_there_after_kill_9() {
    all_kinds("crash", 1, 1);
}

#[test]
#[ignore = "part of tests/matrix"]
fn fifty_machines_on_an_image_of_each_kind_are_killed() {
    all_kinds("crash-fifty", DRIVERS.len(), variable("BHYVE_RS_KILLS").unwrap_or(50));
}
