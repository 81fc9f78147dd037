//! Debian's kernels on everything that this version has: kernel x processors x interrupt mode, boards and memory sizes
//! taking turns. `tests/matrix` runs it whole; the rows that CI runs are in `linux.rs`.

use std::io::Write;
use std::process::{Command, Stdio};

use machine_tests::{Ended, Run, boot, guest, probe, run, skip, stream};

const WORK: &str = "test=hash,float,gzip,forks,threads,clock,dmesg hash.mib=1 float.terms=2000 \
                    float.digits=30 gzip.kib=128 forks.count=40 threads.scale=10 clock.seconds=2";

fn row(kernel: &str, cpus: u32, mode: &str, board: &str, memory: &str) {
    let (cpu, args) = match mode {
        "x2apic" => ("cpu.hypervisor=kvm", ""),
        "pic" => ("cpu.hypervisor=none", "noapic nolapic "),
        _ => ("cpu.hypervisor=none", ""),
    };
    let settings = [&format!("cpus={cpus}"), cpu, &format!("board={board}"), &format!("memory={memory}")];
    let Some(ended) = boot(kernel, &settings, &format!("{args}{WORK} end=poweroff"), 900) else { return };
    assert_eq!(ended.failures(), Vec::<&str>::new());
    assert_eq!(ended.result("init").0, "pass");
    assert_eq!(ended.result("dmesg").0, "pass");
    // Without APICs Linux does not start the others.
    let seen = if mode == "pic" { 1 } else { cpus };
    assert!(ended.result("boot").1.contains(&format!("cpus={seen} ")), "{}", ended.result("boot").1);
    assert_eq!(ended.console.contains("x2apic enabled"), mode == "x2apic" && kernel == "amd64");
    assert_eq!(ended.status, 1, "{}", ended.stderr);
}

macro_rules! rows {
    ($($name:ident: $kernel:literal, $cpus:literal, $mode:literal, $board:literal, $memory:literal;)*) => {
        $(
            #[test]
            #[ignore = "part of tests/matrix"]
            fn $name() {
                row($kernel, $cpus, $mode, $board, $memory);
            }
        )*
    };
}

rows! {
    amd64_1_apic: "amd64", 1, "apic", "440fx", "128M";
    amd64_4_apic: "amd64", 4, "apic", "440bx", "8G";
    amd64_1_x2apic: "amd64", 1, "x2apic", "bhyve", "3G";
    amd64_4_x2apic: "amd64", 4, "x2apic", "440fx", "5G";
    amd64_1_pic: "amd64", 1, "pic", "bhyve", "8G";
    amd64_4_pic: "amd64", 4, "pic", "440bx", "256M";
    i386_1_apic: "686", 1, "apic", "bhyve", "128M";
    i386_4_apic: "686", 4, "apic", "440fx", "3G";
    i386_1_x2apic: "686", 1, "x2apic", "440bx", "512M";
    i386_4_x2apic: "686", 4, "x2apic", "bhyve", "1G";
    i386_1_pic: "686", 1, "pic", "440fx", "256M";
    i386_4_pic: "686", 4, "pic", "440bx", "512M";
    pae_1_apic: "686-pae", 1, "apic", "440bx", "5G";
    pae_4_apic: "686-pae", 4, "apic", "bhyve", "128M";
    pae_1_x2apic: "686-pae", 1, "x2apic", "440fx", "8G";
    pae_4_x2apic: "686-pae", 4, "x2apic", "440bx", "256M";
    pae_1_pic: "686-pae", 1, "pic", "bhyve", "3G";
    pae_4_pic: "686-pae", 4, "pic", "440fx", "512M";
}

/// What the host's own program says of 32 MiB of the guest's stream.
fn digest(program: &str) -> Option<String> {
    let mut child = Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().ok()?;
    child.stdin.take()?.write_all(&stream(32 << 20)).ok()?;
    let said = String::from_utf8(child.wait_with_output().ok()?.stdout).ok()?;
    said.split_whitespace().next().map(str::to_owned)
}

/// The workloads at their full size.
fn full(kernel: &str, cpus: u32) {
    let (Some(sha256), Some(md5)) = (digest("sha256sum"), digest("md5sum")) else { return skip("sha256sum, md5sum") };
    let settings = [format!("cpus={cpus}"), "memory=512M".to_owned()];
    let args = "test=hash,float,gzip,forks,threads,threads32,clock,dmesg end=poweroff";
    let Some(ended) = boot(kernel, &settings, args, 1800) else { return };
    assert_eq!(ended.failures(), Vec::<&str>::new(), "{}", ended.console);
    let hash = ended.result("hash").1;
    assert!(hash.contains(&format!("sha256={sha256}")) && hash.contains(&format!("md5={md5}")), "{hash}");
    for name in ["float", "gzip", "forks", "threads", "clock", "dmesg"] {
        assert_eq!(ended.result(name).0, "pass", "{name}");
    }
    assert_eq!(ended.status, 1, "{}", ended.stderr);
}

#[test]
#[ignore = "part of tests/matrix"]
fn amd64_does_the_whole_workload() {
    full("amd64", 1);
}

#[test]
#[ignore = "part of tests/matrix"]
fn amd64_on_four_processors_does_the_whole_workload() {
    full("amd64", 4);
}

#[test]
#[ignore = "part of tests/matrix"]
fn i386_does_the_whole_workload() {
    full("686", 1);
}

/// The boot that is saved and restored, and the words that start it.
fn whole() -> Option<(Vec<String>, Ended)> {
    let (kernel, initrd) = (guest("linux-amd64/vmlinuz")?, guest("initramfs-amd64.cpio")?);
    let words = ["--kernel", &kernel, "--initrd", &initrd, "--args", "console=ttyS0 end=poweroff", "--stats"];
    let settings = ["-o", "clock=instructions", "-o", "cpus=2", "-o", "memory=256M"];
    let words: Vec<String> = words.iter().chain(&settings).map(|s| (*s).to_owned()).collect();
    let ended = run(&words, 900);
    assert_eq!(ended.status, 1, "{}", ended.stderr);
    Some((words, ended))
}

#[test]
#[ignore = "part of tests/matrix"]
fn a_linux_boot_by_the_plain_interpreter_is_the_same_in_every_byte() {
    let Some((words, whole)) = whole() else { return };
    let again =
        |more: &[&str]| run(&[&words[..], &more.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()].concat(), 3600);
    let until = (whole.instructions() / 4 * 3).to_string();
    assert_eq!(again(&["--plain", "--until", &until]).state(), again(&["--until", &until]).state());
    let ended = again(&["--plain"]);
    assert_eq!(ended.console, whole.console);
    assert_eq!(ended.instructions(), whole.instructions());
}

/// Saves the boot after `until` instructions, and finishes it in a new process.
fn resumed(words: &[String], whole: &Ended, until: u64) {
    let file = format!("{}/boot-{until}-{}", env!("CARGO_TARGET_TMPDIR"), std::process::id());
    let with = |more: &[&str]| [words, &more.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()].concat();
    let first = run(&with(&["--until", &until.to_string(), "--save", &file]), 900);
    let rest = run(&with(&["--restore", &file]), 900);
    std::fs::remove_file(&file).expect("the state was saved");
    assert_eq!(first.console + &rest.console, whole.console, "saved after {until} instructions");
    assert_eq!(rest.instructions(), whole.instructions(), "saved after {until} instructions");
}

#[test]
fn a_linux_boot_saved_in_the_middle_goes_on_as_if_it_had_not_been() {
    let Some((words, whole)) = whole() else { return };
    resumed(&words, &whole, whole.instructions() / 2 + 12_345);
}

#[test]
#[ignore = "part of tests/matrix"]
fn a_linux_boot_saved_at_twenty_random_counts_goes_on_as_if_it_had_not_been() {
    let Some((words, whole)) = whole() else { return };
    // Knuth's MMIX generator, seeded by the day, so that each run of the matrix tries others; a failure names the
    // count.
    let day = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a date").as_secs() / 86_400;
    let mut state = day;
    for _ in 0..20 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        resumed(&words, &whole, (state >> 20) % whole.instructions());
    }
}

#[test]
#[ignore = "part of tests/matrix"]
fn a_hundred_seconds_by_the_counters_of_a_guest_are_a_hundred_outside_under_load() {
    let stop = std::sync::atomic::AtomicBool::new(false);
    let words = ["--kernel", &probe(), "--args", "clock n=100"];
    std::thread::scope(|threads| {
        for _ in 0..4 {
            threads.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let mut machine = Run::start(&words, 200);
        machine.expect("PROBE clock start");
        let begun = std::time::Instant::now();
        machine.expect("PROBE clock end");
        let outside = begun.elapsed().as_nanos() as f64;
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        machine.expect("hpet_ns");
        let ended = machine.wait();
        let line = ended.console.lines().find(|l| l.starts_with("PROBE clock end")).expect("the result");
        let words: Vec<&str> = line.split_whitespace().collect();
        for clock in ["tsc_ns", "pit_ns", "pm_ns", "hpet_ns"] {
            let at = words.iter().position(|w| *w == clock).expect("a clock");
            let inside: f64 = words[at + 1].parse().expect("nanoseconds");
            assert!((inside / outside - 1.0).abs() < 0.001, "{clock}: {inside} of {outside}: {line}");
        }
    });
}
