//! What is wrong is said in one line, with status 4, and nothing starts.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use machine_tests::{Ended, Run, guest, probe, program, run, skip};

fn file(name: &str, contents: &[u8]) -> String {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("refusals-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a scratch folder");
    let path = dir.join(name);
    std::fs::write(&path, contents).expect("a scratch file");
    path.display().to_string()
}

fn refused(ended: &Ended, says: &[&str]) {
    assert_eq!(ended.status, 4, "{}", ended.stderr);
    assert_eq!(ended.console, "");
    assert_eq!(ended.stderr.trim_end().lines().count(), 1, "{}", ended.stderr);
    for text in says {
        assert!(ended.stderr.contains(text), "no {text:?} in {}", ended.stderr);
    }
}

#[test]
fn files_that_are_no_kernels_are_named_for_what_they_are() {
    let text = file("notes.txt", b"buy milk\n");
    refused(&run(&["--kernel", &text], 20), &["notes.txt", "not a kernel"]);
    let gzip = file("vmlinux.gz", &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3]);
    refused(&run(&["--kernel", &gzip], 20), &["vmlinux.gz", "gzip"]);
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1];
    elf.resize(64, 0);
    (elf[16], elf[18], elf[20]) = (2, 183, 1);
    refused(&run(&["--kernel", &file("arm64.elf", &elf)], 20), &["arm64.elf"]);
    refused(&run(&["--kernel", "/nowhere/vmlinuz"], 20), &["/nowhere/vmlinuz"]);
}

#[test]
fn a_truncated_kernel_and_one_that_cannot_fit_are_refused_with_the_reason() {
    let Some(kernel) = guest("linux-amd64/vmlinuz") else { return };
    let bytes = std::fs::read(&kernel).expect("the kernel");
    refused(&run(&["--kernel", &file("half", &bytes[..bytes.len() / 2])], 20), &["half", "truncated"]);
    refused(&run(&["--kernel", &kernel, "-o", "memory=16M"], 20), &["MiB"]);
}

#[test]
fn a_64_bit_kernel_is_refused_on_a_32_bit_processor() {
    for name in ["linux-amd64/vmlinuz", "memtest86+x64.bin"] {
        let Some(kernel) = guest(name) else { return };
        let ended = run(&["--kernel", &kernel, "-o", "cpu.model=pentium3"], 20);
        refused(&ended, &[name, "64-bit kernel", "the guest's processor has no long mode"]);
    }
}

#[test]
fn a_kernel_for_newer_processors_is_refused_with_the_features_that_are_missing() {
    let Some(kernel) = guest("linux-686/vmlinuz") else { return };
    for (model, missing) in [("486", "(486) lacks: cx8 cmov"), ("pentium", "(pentium) lacks: cmov")] {
        let ended = run(&["--kernel", &kernel, "-o", &format!("cpu.model={model}")], 20);
        refused(&ended, &["linux-686/vmlinuz", missing]);
    }
    let Some(kernel) = guest("linux-686-pae/vmlinuz") else { return };
    let ended = run(&["--kernel", &kernel, "-o", "cpu.disable=pae"], 20);
    refused(&ended, &["lacks: pae"]);
}

#[test]
fn check_prints_every_fault_with_line_and_column() {
    let toml = "name = 'x'\ncpus = 0\nmemory = '12Q'\nprofil = 'pc'\n[boot]\nkernel = '/nowhere'\n";
    let path = file("guest.toml", toml.as_bytes());
    let ended = run(&["check", &path], 20);
    assert_eq!(ended.status, 4);
    let lines: Vec<&str> = ended.stderr.trim_end().lines().collect();
    assert_eq!(lines.len(), 4, "{}", ended.stderr);
    assert!(lines[0].contains("guest.toml:2:8: cpus: "), "{}", lines[0]);
    assert!(lines[1].contains("guest.toml:3:10: memory: "), "{}", lines[1]);
    assert!(lines[2].contains("did you mean \"profile\"?"), "{}", lines[2]);
    let run = run(&["-c", &path], 20);
    assert_eq!((run.status, run.stderr), (4, ended.stderr), "run refuses as check does");
}

/// Runs the probe by a program that starts others under conditions; a named skip where there is none.
fn under(starter: &str, how: &[&str], settings: &[&str]) -> Option<Ended> {
    if Command::new(starter).args(how).arg("true").status().map_or(true, |done| !done.success()) {
        skip(&format!("{starter} {}", how.join(" ")));
        return None;
    }
    let mut command = Command::new(starter);
    command.args(how).arg(program()).args(["--kernel", &probe()]);
    command.args(settings.iter().flat_map(|s| ["-o", s]));
    Some(Run::of(command, 20).wait())
}

#[test]
fn memory_that_the_host_does_not_give_is_refused_with_the_amount() {
    let Some(ended) = under("prlimit", &["--as=1500000000"], &["memory=3G"]) else { return };
    refused(&ended, &["no room for 3072 MiB of guest memory", "ulimit -v"]);
}

#[test]
fn who_may_not_open_kvm_is_told_who_may() {
    let mode = std::fs::metadata("/dev/kvm").map(|m| m.permissions().mode());
    if mode.map_or(true, |mode| mode & 0o006 == 0o006) {
        return skip("a /dev/kvm that is not everybody's");
    }
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    // It must be able to execute the program.
    let ours = program().display().to_string();
    if !Command::new("setpriv").args(nobody).args([&ours, "info"]).output().is_ok_and(|done| done.status.success()) {
        return skip("setpriv, as root");
    }
    if let Some(ended) = under("setpriv", &nobody, &["backend=kvm"]) {
        refused(&ended, &["backend: \"kvm\" does not work here: no right to open /dev/kvm: "]);
    }
}

#[test]
fn more_processors_than_there_can_be_are_refused_with_the_number() {
    refused(&run(&["--kernel", &probe(), "-o", "cpus=33"], 20), &["cpus: 33 is out of range; allowed: 1 to 32"]);
}
