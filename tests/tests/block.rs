//! Block devices of the host as disks, with loop devices in their place.

use std::process::Command;

use machine_tests::{Ended, Run, Scratch, probe, run, skip};

const MIB: usize = 1 << 20;

fn output(command: &str, words: &[&str]) -> Option<String> {
    let out = Command::new(command).args(words).output().ok().filter(|out| out.status.success())?;
    Some(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

/// A loop device.
struct Loop(String);

impl Loop {
    /// `None` after a named skip.
    fn new(file: &str, sector: usize) -> Option<Loop> {
        let device = output("losetup", &["--show", "-f", "-b", &sector.to_string(), file]).map(Loop);
        if device.is_none() {
            skip("loop device");
        }
        device
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

fn image(words: &[&str]) -> Ended {
    run(&[&["image"], words].concat(), 60)
}

fn refused(ended: &Ended, says: &[&str]) {
    assert_eq!((ended.status, ended.stderr.trim_end().lines().count()), (4, 1), "{}", ended.stderr);
    for text in says {
        assert!(ended.stderr.contains(text), "no {text:?} in {}", ended.stderr);
    }
}

#[test]
fn a_block_device_has_one_user_who_is_named_and_is_read_written_and_described() {
    let scratch = Scratch::new("block");
    let pattern: Vec<u8> = (0..2 * MIB as u32).map(|n| (n.wrapping_mul(0x9e37_79b1) >> 13) as u8).collect();
    let plain = scratch.path("plain");
    std::fs::write(&plain, &pattern).expect("a scratch file");
    for sector in [512, 4096] {
        let file = scratch.path("file");
        std::fs::write(&file, vec![0xee; 4 * MIB]).expect("a scratch file");
        let Some(device) = Loop::new(&file, sector) else { return };
        let info = image(&["info", &device.0]).console;
        assert!(info.contains("raw, 4.0 MiB (4194304 bytes)"), "{info}");
        assert!(info.contains(&format!("device with sectors of: {sector} bytes")), "{info}");

        refused(&image(&["create", &device.0, "1M"]), &[&device.0, "exists"]);
        refused(&image(&["resize", &device.0, "8M"]), &[&device.0, "it is a device"]);
        refused(&image(&["convert", "-O", "qcow2", &plain, &device.0]), &[&device.0, "raw only"]);
        let copied = image(&["convert", "-O", "raw", &plain, &device.0]);
        assert_eq!(copied.status, 0, "{}", copied.stderr);
        let bytes = std::fs::read(&device.0).expect("the device");
        assert!(bytes[..2 * MIB] == pattern && bytes[2 * MIB..].iter().all(|byte| *byte == 0xee));

        // A machine has it, whatever it does, and readers share it.
        let (kernel, disk) = (probe(), format!("disk.0.path={}", device.0));
        let words = |name: &str, args: &str| {
            ["-o", &format!("name={name}"), "--kernel", &kernel, "--args", args, "-o", "memory=64M", "-o", &disk]
                .map(str::to_owned)
        };
        let mut machine = Run::start(&words("block-one", "loop"), 60);
        machine.expect("PROBE loop");
        let second = run(&words("block-two", "loop"), 60);
        refused(&second, &[&device.0, "in use", "process "]);
        if cfg!(target_os = "linux") {
            assert!(second.stderr.contains("name=block-one"), "{}", second.stderr);
        }
        refused(&image(&["convert", "-O", "raw", &plain, &device.0]), &[&device.0, "in use"]);
        assert_eq!(image(&["info", &device.0]).status, 0);
        machine.kill();
        let both = [&words("block-one", "poweroff")[..], &["-o", "disk.0.readonly=true"].map(str::to_owned)].concat();
        assert_eq!(run(&both, 60).status, 1);

        // The host uses it itself.
        let mount = scratch.path("mount");
        std::fs::create_dir_all(&mount).expect("a scratch directory");
        if output("mkfs.ext4", &["-q", "-F", &device.0]).is_none() || output("mount", &[&device.0, &mount]).is_none() {
            return skip("mkfs.ext4, or mount(8)");
        }
        let refusal = run(&words("block-one", "loop"), 60);
        output("umount", &[&mount]).expect("umount(8)");
        refused(&refusal, &[&device.0, "in use", &format!("mounted on {mount}")]);
    }
}
