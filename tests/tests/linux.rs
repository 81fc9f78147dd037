//! Debian's kernels, unmodified, with a busybox initramfs.

use machine_tests::{Ended, Run, guest, run};

/// A quick pass over all workloads.
const WORK: &str = "test=hash,float,gzip,forks,threads,threads32,clock,dmesg hash.mib=1 float.terms=2000 \
                    float.digits=30 gzip.kib=128 forks.count=40 threads.scale=10 clock.seconds=2";

/// Digests of the first MiB of the stream that the guest makes (tests/guests/src/stream.c), computed by an independent
/// implementation.
const SHA256_1MIB: &str = "237e5f2a";

struct Row {
    kernel: &'static str,
    settings: &'static [&'static str],
    args: String,
    seconds: u64,
}

fn boot(row: &Row) -> Option<Ended> {
    machine_tests::boot(row.kernel, row.settings, &row.args, row.seconds)
}

fn works(row: &Row, status: i32) {
    let Some(ended) = boot(row) else { return };
    assert_eq!(ended.failures(), Vec::<&str>::new());
    assert_eq!(ended.result("init").0, "pass");
    assert_eq!(ended.result("dmesg").0, "pass");
    assert!(ended.result("hash").1.contains(SHA256_1MIB), "{}", ended.result("hash").1);
    assert_eq!(ended.status, status, "{}", ended.stderr);
}

#[test]
fn amd64_on_one_processor_does_all_its_work_and_powers_off() {
    works(&Row { kernel: "amd64", settings: &[], args: format!("{WORK} end=poweroff"), seconds: 400 }, 1);
}

#[test]
fn i386_pae_on_four_processors_does_all_its_work_and_reboots() {
    let row = Row { kernel: "686-pae", settings: &["cpus=4"], args: format!("{WORK} end=reboot"), seconds: 600 };
    works(&row, 0);
}

#[test]
fn i386_on_a_pentium_pro_and_the_440bx_board_with_the_8259_halts() {
    let args = "noapic nolapic test=float float.terms=200 float.digits=10 end=halt".to_owned();
    let settings = &["board=440bx", "cpu.model=pentium-pro"];
    let Some(ended) = boot(&Row { kernel: "686", settings, args, seconds: 400 }) else { return };
    assert_eq!((ended.result("init").0, ended.result("float").0), ("pass", "pass"));
    assert!(ended.console.contains("x87 FPU will use FSAVE"), "{}", ended.console);
    assert_eq!(ended.status, 2, "{}", ended.stderr);
}

#[test]
fn amd64_on_an_opteron_powers_off() {
    let args = "test=float,dmesg float.terms=200 float.digits=10 end=poweroff".to_owned();
    let row = Row { kernel: "amd64", settings: &["cpu.model=opteron"], args, seconds: 400 };
    let Some(ended) = boot(&row) else { return };
    assert_eq!(ended.failures(), Vec::<&str>::new());
    assert!(ended.console.contains("AMD Opteron(tm) Processor 246"), "{}", ended.console);
    assert_eq!(ended.status, 1, "{}", ended.stderr);
}

#[test]
fn x2apic_on_four_processors_is_taken_and_a_panic_reboots() {
    let settings = &["cpus=4", "cpu.hypervisor=kvm", "memory=1G"];
    let args = "end=panic panic=1".to_owned();
    let Some(ended) = boot(&Row { kernel: "amd64", settings, args, seconds: 600 }) else { return };
    assert!(ended.console.contains("x2apic enabled"), "{}", ended.console);
    assert!(ended.result("boot").1.contains("cpus=4"), "{}", ended.result("boot").1);
    assert!(ended.console.contains("Kernel panic"), "{}", ended.console);
    assert_eq!(ended.status, 0, "{}", ended.stderr);
}

#[test]
fn fw_cfg_tells_its_driver_the_memory_map() {
    let args = "test=fwcfg end=poweroff".to_owned();
    let Some(ended) = boot(&Row { kernel: "amd64", settings: &[], args, seconds: 400 }) else { return };
    assert_eq!(ended.failures(), Vec::<&str>::new(), "{}", ended.console);
    // One range: from 0, 256 MiB, usable.
    let map = "e820=0000000000000000000000100000000001000000";
    assert!(ended.result("fwcfg").1.contains(map), "{}", ended.result("fwcfg").1);
}

#[test]
fn the_shell_is_interactive() {
    let (Some(kernel), Some(initrd)) = (guest("linux-amd64/vmlinuz"), guest("initramfs-amd64.cpio")) else { return };
    let mut m = Run::start(&["--kernel", &kernel, "--initrd", &initrd, "--args", "console=ttyS0"], 400);
    m.expect("guest# ");
    m.send("echo $((6 * 7)) is the answer\n");
    m.expect("\n42 is the answer");
    m.expect("guest# ");
    m.send("exit\n");
    assert_eq!(m.wait().status, 1);
}

#[test]
fn the_engine_and_the_plain_interpreter_agree_over_the_start_of_a_kernel() {
    let Some(kernel) = guest("linux-amd64/vmlinuz") else { return };
    let words = ["--kernel", &kernel, "--args", "console=ttyS0", "-o", "clock=instructions", "--until", "300000000"];
    let engine = run(&words, 300);
    let plain = run(&[&words[..], &["--plain"]].concat(), 600);
    assert!(engine.stderr.contains("state "), "{}", engine.stderr);
    assert_eq!(engine.stderr, plain.stderr);
}

#[test]
fn the_power_button_turns_a_kernel_off() {
    let (Some(kernel), Some(initrd)) = (guest("linux-amd64/vmlinuz"), guest("initramfs-amd64.cpio")) else { return };
    let mut m = Run::start(&["--kernel", &kernel, "--initrd", &initrd, "--args", "console=ttyS0 end=button"], 400);
    m.expect("RESULT button");
    m.terminate();
    assert_eq!(m.wait().status, 1);
}
