//! A network of a test's own on the host: a namespace that goes with it, which needs root and no more.
#![cfg(target_os = "linux")]

use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};

use crate::skip;

/// Whether ip(8) did what these words say.
pub fn ip(words: &str) -> bool {
    let mut ip = Command::new("ip");
    let done = ip.args(words.split_whitespace()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    done.is_ok_and(|status| status.success())
}

/// Runs `test` in a network namespace of its own, or skips it by name. What it starts is there, too.
///
/// # Panics
/// When `test` does, and in that way.
pub fn alone(test: impl FnOnce() + Send) {
    // A namespace that a thread has made is that of what it starts, and goes with the last of it.
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    std::thread::scope(|threads| {
        let inside = std::thread::Builder::new().name(name);
        let inside = inside.spawn_scoped(threads, || match unshare(CloneFlags::CLONE_NEWNET) {
            Ok(()) => test(),
            Err(_) => skip("network namespaces"),
        });
        if let Err(panic) = inside.expect("a thread").join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// The same with an interface tap0 for a machine, where the host has 10.9.0.1/24.
///
/// # Panics
/// As `alone` does.
pub fn with_tap(test: impl FnOnce() + Send) {
    alone(|| {
        if !ip("tuntap add tap0 mode tap") {
            return skip("tap interfaces");
        }
        for words in ["link set lo up", "addr add 10.9.0.1/24 dev tap0", "link set tap0 up"] {
            assert!(ip(words), "ip {words}");
        }
        test();
    });
}
