//! The in-tree guest: a smoke test of timers, interrupts, processors and memory, and the ways a machine ends.

use std::fs;
use std::path::PathBuf;

use machine_tests::{Ended, root, run};

/// The probe as it was built into the program.
fn probe() -> String {
    let builds = root().join("target/release/build");
    let found = fs::read_dir(&builds).expect("a release build").filter_map(|e| {
        let path: PathBuf = e.ok()?.path().join("out/probe.elf");
        Some((fs::metadata(&path).ok()?.modified().ok()?, path))
    });
    found.max().map(|(_, p)| p.display().to_string()).expect("the probe was built with the program")
}

fn start(words: &str, settings: &[&str]) -> Ended {
    let mut args = vec!["--kernel".to_owned(), probe(), "--args".to_owned(), words.to_owned(), "--stats".to_owned()];
    for s in settings {
        args.extend(["-o".to_owned(), (*s).to_owned()]);
    }
    run(&args, 300)
}

fn smoke(settings: &[&str]) {
    let ended = start("smoke", settings);
    let failed: Vec<&str> = ended.console.lines().filter(|l| l.contains(" FAIL")).collect();
    assert_eq!(failed, Vec::<&str>::new());
    let done = ended.console.lines().find_map(|l| l.strip_prefix("PROBE done ")).expect("the smoke test finishes");
    let passed: u32 = done.split(' ').next().and_then(|n| n.parse().ok()).expect("a count");
    assert!(passed >= 60, "{done}");
    assert_eq!(ended.status, 1, "{}", ended.stderr);
}

#[test]
fn smoke_test_on_one_processor() {
    smoke(&[]);
}

#[test]
fn smoke_test_on_four_processors_of_the_440bx_board() {
    smoke(&["cpus=4", "board=440bx"]);
}

#[test]
fn two_runs_by_the_instruction_clock_are_the_same_to_the_last_instruction() {
    let settings = ["cpus=4", "clock=instructions"];
    let (a, b) = (start("smoke", &settings), start("smoke", &settings));
    assert_eq!(a.console, b.console);
    assert_eq!(a.instructions(), b.instructions());
    assert!(a.instructions() > 10_000_000);
}

#[test]
fn the_engine_and_the_plain_interpreter_agree_to_the_last_instruction() {
    let settings = ["-o", "clock=instructions", "-o", "cpus=2"];
    let words = ["--kernel", &probe(), "--args", "smoke", "--stats"];
    let engine = run(&[&words[..], &settings].concat(), 300);
    let plain = run(&[&words[..], &settings, &["--plain"]].concat(), 300);
    assert_eq!(engine.console, plain.console);
    assert_eq!(engine.instructions(), plain.instructions());
}

#[test]
fn each_way_to_reset_ends_with_status_0() {
    for way in ["kbd", "cf9"] {
        assert_eq!(start(&format!("reset={way}"), &[]).status, 0, "{way}");
    }
}

#[test]
fn a_triple_fault_reports_the_registers_and_ends_with_status_3() {
    let ended = start("reset=triple", &[]);
    assert_eq!(ended.status, 3);
    assert!(ended.stderr.contains("RIP=") && ended.stderr.contains("CR3=") && ended.stderr.contains("code (64-bit):"));
}

#[test]
fn a_halt_with_interrupts_off_ends_with_status_2() {
    assert_eq!(start("halt", &[]).status, 2);
}

#[test]
fn the_demo_finds_its_machine_and_succeeds() {
    let ended = run(&["demo"], 60);
    assert!(ended.console.contains("All is well."), "{}", ended.console);
    assert!(ended.console.contains("8086:1237"), "{}", ended.console);
    assert_eq!(ended.status, 0);
}
