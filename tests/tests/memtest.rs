//! memtest86+ (Debian's, unmodified), started directly: processors, caches of the engine and memory, hard at work.

use machine_tests::{Run, guest};

/// All its tests but the last, which waits for bits to fade.
fn passes(image: &str) {
    let Some(image) = guest(image) else { return };
    let words = ["--kernel", &image, "-o", "clock=instructions", "-o", "memory=8M", "--args", "console=ttyS0,115200"];
    let mut machine = Run::start(&words, 600);
    machine.expect("#9 ");
    machine.expect("#10 ");
    let screen = machine.text();
    let counts: Vec<&str> = screen.split("Errors: ").skip(1).filter_map(|s| s.split_whitespace().next()).collect();
    assert!(counts.len() > 5, "{} counts", counts.len());
    assert!(counts.iter().all(|n| *n == "0"), "{counts:?}");
}

#[test]
fn memtest86_plus_finds_no_error() {
    passes("memtest86+x64.bin");
}

#[test]
#[ignore = "part of tests/matrix"]
fn memtest86_plus_in_32_bits_finds_no_error() {
    passes("memtest86+ia32.bin");
}
