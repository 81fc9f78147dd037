//! bhyve-rs is killed in the middle of a guest's writes: what the guest has synced is there, its file system recovers,
//! and the image is sound.

use std::process::Command;
use std::time::Duration;

use machine_tests::{Run, Scratch, guest, program, run, skip};

/// Runs `bhyve-rs image` and returns its exit status and what it says.
fn image(words: &[&str]) -> (i32, String) {
    let out = Command::new(program()).arg("image").args(words).output().expect("the program starts");
    (out.status.code().unwrap_or(-1), String::from_utf8_lossy(&out.stdout).into_owned())
}

/// A file system in an image of this kind; `None` without mkfs.ext4.
fn make(scratch: &Scratch, kind: &str) -> Option<String> {
    let base = scratch.path("base.img");
    std::fs::File::create(&base).and_then(|file| file.set_len(24 << 20)).expect("a scratch file");
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

fn words(kernel: &str, initrd: &str, disk: &str, args: &str) -> Vec<String> {
    let args = format!("console=ttyS0 test=crash {args} end=poweroff");
    let disk = format!("disk.0.path={disk}");
    ["--kernel", kernel, "--initrd", initrd, "-o", &disk, "--args", &args].map(str::to_owned).into()
}

/// One life and one death; `delay` is how long the guest writes after its third file.
fn dies(kind: &str, delay: Duration) {
    let scratch = Scratch::new(&format!("crash-{kind}-{}", delay.as_millis()));
    let (Some(kernel), Some(initrd)) = (guest("linux-amd64/vmlinuz"), guest("initramfs-amd64.cpio")) else { return };
    let Some(disk) = make(&scratch, kind) else { return };
    let mut machine = Run::start(&words(&kernel, &initrd, &disk, ""), 600);
    machine.expect("SYNCED 3");
    std::thread::sleep(delay);
    let console = machine.kill();
    let synced = console.split("SYNCED ").skip(1).filter_map(|rest| rest.split_once('\n')?.0.parse::<u64>().ok());
    let last = synced.last().expect("files");
    eprintln!("{kind}: killed after file {last}");
    let (status, said) = image(&["check", &disk]);
    assert!(matches!(status, 0 | 3), "{kind} after file {last}: {said}");
    let ended = run(&words(&kernel, &initrd, &disk, &format!("crash.have={last}")), 600);
    assert_eq!(ended.result("crash").0, "pass", "{kind} after file {last}: {}", ended.console);
    assert_eq!(image(&["check", &disk]).0, 0, "{kind} after file {last}");
    let plain = scratch.path("plain");
    assert_eq!(image(&["convert", &disk, &plain, "-O", "raw"]).0, 0);
    if let Ok(out) = Command::new("e2fsck").args(["-f", "-n", &plain]).output() {
        assert!(out.status.success(), "{kind} after file {last}: {}", String::from_utf8_lossy(&out.stdout));
    }
}

#[test]
fn what_a_guest_synced_to_an_overlay_is_there_after_kill_9() {
    dies("overlay", Duration::from_millis(700));
}

#[test]
#[ignore = "part of tests/matrix"]
fn fifty_machines_are_killed() {
    // The moment is as random as the host is busy.
    for n in 0..50u64 {
        let kind = ["raw", "qcow2", "overlay"][n as usize % 3];
        dies(kind, Duration::from_millis(n * 7919 % 3000));
    }
}
