//! The in-tree guest: a smoke test of timers, interrupts, processors and memory, and the ways a machine ends.

use machine_tests::{Ended, probe, run};

fn start(words: &str, settings: &[&str]) -> Ended {
    let mut args = vec!["--kernel".to_owned(), probe(), "--args".to_owned(), words.to_owned(), "--stats".to_owned()];
    for s in settings {
        args.extend(["-o".to_owned(), (*s).to_owned()]);
    }
    run(&args, 300)
}

/// By the instruction clock: the checks compare clocks, and a busy host comes between any two readings.
fn smoke(settings: &[&str]) {
    let ended = start("smoke", &[settings, &["clock=instructions"]].concat());
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
fn smoke_test_on_two_processors_of_bhyves_board() {
    smoke(&["cpus=2", "profile=bhyve"]);
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
fn the_engine_and_the_plain_interpreter_agree_in_every_byte_of_the_machine() {
    let probe = probe();
    let words = ["--kernel", &probe, "--args", "smoke", "--stats", "-o", "clock=instructions", "-o", "cpus=2"];
    for until in ["123457", "20000003", "60000001"] {
        let engine = run(&[&words[..], &["--until", until]].concat(), 300);
        let plain = run(&[&words[..], &["--until", until, "--plain"]].concat(), 300);
        assert_eq!(engine.instructions().to_string(), until);
        assert_eq!(engine.state(), plain.state(), "after {until} instructions");
    }
}

#[test]
fn a_machine_that_is_saved_and_loaded_goes_on_as_if_it_had_not_been() {
    let probe = probe();
    let words = ["--kernel", &probe, "--args", "smoke", "--stats", "-o", "clock=instructions", "-o", "cpus=4"];
    let whole = run(&words, 300);
    for until in ["1000001", "37123457", "90000001", "130000007"] {
        let file = format!("{}/state-{until}-{}", env!("CARGO_TARGET_TMPDIR"), std::process::id());
        let first = run(&[&words[..], &["--until", until, "--save", &file]].concat(), 300);
        let rest = run(&[&words[..], &["--restore", &file]].concat(), 300);
        std::fs::remove_file(&file).expect("the state was saved");
        assert_eq!(first.console + &rest.console, whole.console, "saved after {until} instructions");
        assert_eq!(rest.instructions(), whole.instructions(), "saved after {until} instructions");
    }
}

#[test]
fn a_state_of_another_machine_or_a_damaged_one_is_refused() {
    let probe = probe();
    let words = ["--kernel", &probe, "--args", "smoke", "-o", "clock=instructions"];
    let file = format!("{}/refused-{}", env!("CARGO_TARGET_TMPDIR"), std::process::id());
    let saved = run(&[&words[..], &["--until", "1000", "--save", &file]].concat(), 60);
    assert_eq!(saved.status, 0, "{}", saved.stderr);
    let other = run(&[&words[..], &["-o", "cpus=2", "--restore", &file]].concat(), 60);
    assert_eq!(other.status, 4);
    assert!(other.stderr.contains("another machine"), "{}", other.stderr);
    let bytes = std::fs::read(&file).expect("the state");
    for cut in [0, 10, 30, 1000, bytes.len() - 1] {
        std::fs::write(&file, &bytes[..cut]).expect("a scratch file");
        let ended = run(&[&words[..], &["--restore", &file]].concat(), 60);
        assert_eq!((ended.status, ended.console.as_str()), (4, ""), "cut to {cut} bytes: {}", ended.stderr);
    }
    std::fs::remove_file(&file).expect("the scratch file");
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
    assert!(ended.stderr.contains("RIP=") && ended.stderr.contains("CR3="), "{}", ended.stderr);
    // The probe loads an empty IDT and executes UD2; its last words went to COM1.
    assert!(ended.stderr.contains("faults: #UD, then #GP(33), then #DF(0), then #GP(43)"), "{}", ended.stderr);
    assert!(ended.stderr.contains("  out   3f8/1 <- "), "{}", ended.stderr);
    let lines: Vec<&str> = ended.stderr.lines().collect();
    let at = lines.iter().position(|l| l.starts_with("=> ")).expect("the instruction at RIP");
    assert!(lines[at].ends_with("ud2") && lines[at - 1].contains("lidt"), "{}", ended.stderr);
}

#[test]
fn a_guest_that_stays_is_reset_by_a_triple_fault_as_on_a_pc() {
    let probe = probe();
    let words = ["--kernel", &probe, "--args", "reset=triple", "--stay", "--stats", "-o", "serial.0.backend=stdio"];
    let ended = run(&[&words[..], &["-o", "clock=instructions", "--until", "40000000"]].concat(), 60);
    assert_eq!(ended.instructions(), 40_000_000, "{}", ended.stderr);
    assert!(ended.console.matches("PROBE").count() > 2, "it starts again: {}", ended.console);
    assert_eq!(ended.stderr.matches("RIP=").count(), 1, "it is reported once: {}", ended.stderr);
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
    assert!(ended.console.contains("4 MiB, has a boot sector, read by PIO and DMA"), "{}", ended.console);
    assert_eq!(ended.status, 0);
}
