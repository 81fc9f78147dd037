//! Disks of a host that has no more room, or loses what it had: the guest sees errors of its disk, or does not when the
//! machine waits for the host; the user sees a line; and what was written is there.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use machine_tests::{Run, Scratch, guest, program, skip, stream};

const MIB: u64 = 1 << 20;
/// Models of disks, Linux's drivers, and the kinds of images of two disks each.
const DISKS: [(&str, &str, [&str; 2]); 4] = [
    ("ide", "ata_piix", ["raw", "qcow2"]),
    ("ahci", "ahci", ["qcow2", "overlay"]),
    ("nvme", "nvme", ["overlay", "raw"]),
    ("virtio-blk", "virtio_blk", ["raw", "qcow2"]),
];

/// Whether a command works.
fn works(command: &str, words: &[&str]) -> bool {
    Command::new(command).args(words).output().is_ok_and(|out| out.status.success())
}

/// Runs the program to its end and returns its exit status and what it says.
fn bhyve_rs(words: &[&str]) -> (i32, String) {
    let out = Command::new(program()).args(words).output().expect("the program starts");
    (out.status.code().unwrap_or(-1), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
}

/// A file system in memory that has little room.
struct Small(PathBuf);

impl Small {
    /// `None` where there can be none.
    fn new(path: &str, bytes: u64) -> Option<Small> {
        std::fs::create_dir_all(path).expect("a scratch directory");
        let mounted = works("mount", &["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs", path]);
        mounted.then(|| Small(path.into()))
    }

    fn resize(&self, bytes: u64) {
        let place = self.0.display().to_string();
        assert!(works("mount", &["-o", &format!("remount,size={bytes}"), &place]));
    }

    /// An image of this kind that the guest can fill, and the file system cannot hold.
    fn image(&self, kind: &str) -> String {
        let file = |name: &str| self.0.join(name).display().to_string();
        let (disk, base) = (file("disk"), file("base"));
        let made = match kind {
            "overlay" => {
                let base_made = bhyve_rs(&["image", "create", &base, "8M"]);
                assert_eq!(base_made.0, 0, "{}", base_made.1);
                bhyve_rs(&["image", "create", "-b", "base", &disk])
            }
            kind => bhyve_rs(&["image", "create", "-f", kind, &disk, "8M"]),
        };
        assert_eq!(made.0, 0, "{}", made.1);
        disk
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Whether the disk in an image begins with the stream.
fn holds_stream(scratch: &Scratch, disk: &str) -> bool {
    let plain = scratch.path("plain");
    let made = bhyve_rs(&["image", "convert", "--replace", "-O", "raw", disk, &plain]);
    assert_eq!(made.0, 0, "{}", made.1);
    std::fs::read(Path::new(&plain)).expect("the copy")[..4 * MIB as usize] == stream(4 * MIB as usize)
}

#[test]
fn a_host_without_room_is_an_error_of_the_disk_or_stops_the_machine_until_there_is_some() {
    let (Some(kernel), Some(initrd)) = (guest("linux-amd64/vmlinuz"), guest("initramfs-amd64.cpio")) else { return };
    let scratch = Scratch::new("failing");
    let (mut words, mut hosts) = (Vec::new(), Vec::new());
    // The first disk of each kind reports, the second waits.
    for on_error in ["report", "pause"] {
        for (model, _, kinds) in DISKS {
            let n = hosts.len();
            let Some(small) = Small::new(&scratch.path(&format!("host{n}")), 2 * MIB) else { return skip("tmpfs(5)") };
            let disk = small.image(kinds[n / DISKS.len()]);
            for (key, value) in [("path", disk.as_str()), ("model", model), ("on_error", on_error)] {
                words.extend(["-o".to_owned(), format!("disk.{n}.{key}={value}")]);
            }
            hosts.push((small, disk));
        }
    }
    let run_dir = scratch.path("run");
    let order = |verb: &str| bhyve_rs(&["--run-dir", &run_dir, verb, "failing"]);
    let args = "console=ttyS0 test=errors end=poweroff";
    let first = ["--run-dir", &run_dir, "-o", "name=failing", "--kernel", &kernel, "--initrd", &initrd, "--args", args];
    let words = [&first.map(str::to_owned)[..], &words].concat();
    let mut machine = Run::start(&words, 900);
    machine.expect("READY");

    machine.send("write 0\n");
    DISKS.iter().for_each(|(_, driver, _)| machine.expect(&format!("write 0 {driver} failed")));
    hosts[..4].iter().for_each(|(small, _)| small.resize(16 * MIB));
    machine.send("write 0\nread 0\n");
    DISKS.iter().for_each(|(_, driver, _)| machine.expect(&format!("write 0 {driver} ok")));
    DISKS.iter().for_each(|(_, driver, _)| machine.expect(&format!("read 0 {driver} ok")));

    machine.send("write 1\n");
    let paused = || {
        let end = Instant::now() + Duration::from_secs(300);
        while !order("status").1.contains("paused") {
            assert!(Instant::now() < end, "it is not paused: {}", order("status").1);
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    for (n, (_, driver, _)) in DISKS.iter().enumerate() {
        paused();
        if n == 0 {
            // There still is no room.
            assert_eq!(order("resume").0, 0);
            paused();
        }
        hosts[4 + n].0.resize(16 * MIB);
        assert_eq!(order("resume").0, 0);
        machine.expect(&format!("write 1 {driver} ok"));
    }
    machine.send("read 1\n");
    DISKS.iter().for_each(|(_, driver, _)| machine.expect(&format!("read 1 {driver} ok")));

    // The end of a raw image goes.
    let file = std::fs::File::options().write(true).open(&hosts[3].1).expect("the image");
    file.set_len(MIB).expect("a shorter file");
    machine.send("read 0\n");
    machine.expect("read 0 nvme ok");
    machine.expect("read 0 virtio_blk failed");
    machine.send("end\n");
    let ended = machine.wait();
    assert_eq!((ended.result("errors").0, ended.status), ("pass", 1), "{}", ended.console);
    for (n, (_, disk)) in hosts.iter().enumerate() {
        let said: Vec<&str> = ended.stderr.lines().filter(|line| line.contains(disk)).collect();
        // Writing, and the tables when the guest leaves the disk a moment, or reading what was cut off; or each time
        // that it waited.
        let most = if matches!(n, 1..=4) { 2 } else { 1 };
        assert!((1..=most).contains(&said.len()), "{disk}: {}", ended.stderr);
        let so = if n < 4 { "the guest sees an error" } else { "the machine is paused" };
        assert!(said[0].contains("No space left on device") && said[0].contains(so), "{}", said[0]);
        if n != 3 {
            assert_eq!(bhyve_rs(&["image", "check", disk]).0, 0, "{disk}");
            assert!(holds_stream(&scratch, disk), "{disk} is not what the guest wrote");
        }
    }
}
