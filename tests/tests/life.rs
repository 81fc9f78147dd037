//! The life of machines in the background: how they are stopped, started again, listed, and tidied up after.

use std::path::Path;
use std::process::Command;

use machine_tests::{Run, Scratch, bhyve_rs, probe, until};

/// The file of a machine whose guest gets these words, with more of its configuration.
fn file(dir: &Scratch, name: &str, words: &str, more: &str) -> String {
    let text = format!(
        "name = '{name}'\nmemory = '64M'\n[boot]\nkernel = '{}'\nargs = '{words}'\n[[serial]]\nbackend = 'stdio'\n{more}",
        probe()
    );
    dir.write(&format!("{name}.toml"), &text)
}

fn start(dir: &Scratch, toml: &str) {
    let started = bhyve_rs(dir, &["start", "-c", toml]);
    assert_eq!((started.status, started.stderr.as_str()), (0, ""));
}

fn events(dir: &Scratch, name: &str) -> Run {
    Run::start(&["--run-dir", &dir.path("run"), "events", name, "--since", "0"], 60)
}

/// A number in a machine's status.
fn number(dir: &Scratch, name: &str, key: &str) -> Option<u32> {
    let status = bhyve_rs(dir, &["status", name, "--json"]);
    status.console.split(&format!("\"{key}\":")).nth(1)?.split([',', '}']).next()?.parse().ok()
}

fn kill_9(pid: u32) {
    assert!(Command::new("kill").args(["-KILL", &pid.to_string()]).status().expect("kill(1)").success());
}

#[test]
fn a_guest_that_ignores_what_it_is_asked_is_asked_again_and_cut_off() {
    let dir = Scratch::new("deaf");
    start(&dir, &file(&dir, "deaf", "loop", "[stop]\nrepeat = '500ms'\ntimeout = '1200ms'\n"));
    let mut seen = events(&dir, "deaf");
    seen.expect("started");
    let stopped = bhyve_rs(&dir, &["stop", "deaf"]);
    assert_eq!(stopped.status, 0);
    assert!(stopped.stderr.contains("has not powered off in 1.2 s; its power is cut"), "{}", stopped.stderr);
    assert_eq!(stopped.console, "deaf: powered off (status 1)\n");
    // It has not taken over ACPI.
    for _ in 0..3 {
        seen.expect("ctrl-alt-delete");
    }
    seen.expect("forced");
    seen.expect("ended");
    assert_eq!(seen.wait().status, 0);

    start(&dir, &file(&dir, "button", "button", ""));
    assert_eq!(bhyve_rs(&dir, &["wait", "button", "--for", "PROBE button awaited", "--timeout", "30"]).status, 0);
    let stopped = bhyve_rs(&dir, &["stop", "button"]);
    assert_eq!((stopped.console.as_str(), stopped.stderr.as_str()), ("button: powered off (status 1)\n", ""));

    start(&dir, &file(&dir, "deaf", "loop", ""));
    let stopped = bhyve_rs(&dir, &["stop", "deaf", "--method", "kill"]);
    assert_eq!((stopped.status, stopped.stderr.as_str()), (0, "bhyve-rs: its power is cut, as stop.method says\n"));
}

#[test]
fn triple_faults_wait_longer_from_time_to_time_and_a_stop_ends_that() {
    let dir = Scratch::new("triple");
    start(&dir, &file(&dir, "triple", "reset=triple", ""));
    let mut seen = events(&dir, "triple");
    seen.expect("reset  by triple fault");
    seen.expect("waiting  after triple fault  seconds 1");
    seen.expect("reset  by triple fault");
    seen.expect("waiting  after triple fault  seconds 2");
    // While it waits it answers.
    assert_eq!(number(&dir, "triple", "resets"), Some(2));
    let stopped = bhyve_rs(&dir, &["stop", "triple"]);
    assert_eq!((stopped.status, stopped.console.as_str()), (0, "triple: triple fault (status 3)\n"));
    seen.expect("ended");

    // Whoever wants to see to it himself gets the status.
    start(&dir, &file(&dir, "once", "loop", "[autostart]\nrestart = 'never'\n"));
    let mut seen = events(&dir, "once");
    seen.expect("started");
    assert_eq!(bhyve_rs(&dir, &["reset", "once"]).status, 0);
    seen.expect("how rebooted  status 0");
}

#[test]
fn a_process_that_crashes_is_started_again_and_a_stop_in_between_is_honoured() {
    let dir = Scratch::new("keeper");
    start(&dir, &file(&dir, "kept", "loop", "[autostart]\nrestart = 'failure'\n"));
    let (keeper, first) = (number(&dir, "kept", "keeper"), number(&dir, "kept", "pid").expect("a process"));
    assert!(keeper.is_some());
    let waiting = Run::start(&["--run-dir", &dir.path("run"), "wait", "kept"], 60);
    // Whoever comes while the keeper answers waits as well, and so it does not matter when its request is there.
    kill_9(first);
    let second = until("another process", || number(&dir, "kept", "pid").filter(|pid| *pid != first));
    assert_eq!(number(&dir, "kept", "keeper"), keeper);
    // The second time there is a wait, in which the keeper answers.
    kill_9(second);
    until("the wait", || bhyve_rs(&dir, &["status", "kept"]).console.contains("waiting").then_some(()));
    let refused = bhyve_rs(&dir, &["sendkeys", "kept", "x"]);
    assert_eq!(refused.status, 4);
    let stopped = bhyve_rs(&dir, &["stop", "kept"]);
    assert_eq!(stopped.status, 0, "{}", stopped.stderr);
    assert_eq!(waiting.wait().status, 4, "it waits over restarts");
    until("nothing runs", || (bhyve_rs(&dir, &["status", "kept"]).status == 4).then_some(()));
    let log = bhyve_rs(&dir, &["log", "kept"]);
    assert!(log.console.contains("its process crashed; it starts again in 1 s"), "{}", log.console);

    // What is asked for is no failure, whatever the policy.
    start(&dir, &file(&dir, "always", "loop", "[autostart]\nrestart = 'always'\n"));
    assert_eq!(bhyve_rs(&dir, &["kill", "always"]).status, 0);
    until("it is gone", || (bhyve_rs(&dir, &["status", "always"]).status == 4).then_some(()));
    let broken = file(&dir, "broken", "loop", "[[disk]]\npath = 'none'\n[autostart]\nrestart = 'always'\n");
    assert_eq!(bhyve_rs(&dir, &["start", "-c", &broken]).status, 4);
}

#[test]
fn of_two_starts_at_once_one_wins_and_the_other_says_so() {
    let dir = Scratch::new("twice");
    let toml = file(&dir, "twice", "loop", "");
    let run = dir.path("run");
    let both: Vec<Run> = (0..3).map(|_| Run::start(&["--run-dir", &run, "start", "-c", &toml], 60)).collect();
    let mut ends: Vec<_> = both.into_iter().map(Run::wait).collect();
    ends.sort_by_key(|end| end.status);
    assert_eq!(ends.iter().map(|end| end.status).collect::<Vec<_>>(), [0, 4, 4]);
    assert!(ends[1..].iter().all(|end| end.stderr == "bhyve-rs: twice is running already\n"), "{}", ends[1].stderr);
    assert_eq!(bhyve_rs(&dir, &["kill", "twice"]).status, 0);
}

#[test]
fn machines_are_listed_and_what_a_cut_leaves_is_tidied_up() {
    let dir = Scratch::new("list");
    assert_eq!(bhyve_rs(&dir, &["list", "--json"]).console, "[]\n");
    let (one, two) = (file(&dir, "one", "loop", ""), file(&dir, "two", "loop", ""));
    start(&dir, &one);
    start(&dir, &two);
    let list = bhyve_rs(&dir, &["list"]).console;
    let rows: Vec<Vec<&str>> = list.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "STATE", "PID", "CPUS", "MEMORY", "BACKEND", "UP"]);
    assert_eq!((rows[1][0], rows[1][1], rows[1][4], rows[2][0]), ("one", "running", "64M", "two"), "{list}");
    kill_9(number(&dir, "one", "pid").expect("a process"));
    // As a host leaves it that was cut off as well.
    drop(std::os::unix::net::UnixListener::bind(dir.path("run/gone.sock")).expect("a socket"));
    drop(std::os::unix::net::UnixListener::bind(dir.path("run/gone.com1")).expect("a socket"));
    let list = bhyve_rs(&dir, &["list", "--json"]).console;
    assert!(list.starts_with("[{") && list.contains("\"two\"") && !list.contains("\"gone\""), "{list}");
    assert!(!Path::new(&dir.path("run/gone.com1")).exists());
    start(&dir, &one);
    for name in ["one", "two"] {
        assert_eq!(bhyve_rs(&dir, &["kill", name]).status, 0);
    }
    for name in ["a/b", "a b", ".x", "\u{7}", &"x".repeat(300)] {
        let refused = bhyve_rs(&dir, &["status", name]);
        assert_eq!(refused.status, 4, "{name:?}");
        assert!(refused.stderr.contains("name of a machine"), "{}", refused.stderr);
    }
}
