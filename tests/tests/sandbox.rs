//! What a machine's process may do while its guest runs, and what the broker does for it.
#![cfg(target_os = "linux")]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use machine_tests::{Ended, Scratch, run};

fn bhyve_rs(dir: &Scratch, words: &[&str]) -> Ended {
    run(&[&["--run-dir", &dir.path("run")], words].concat(), 60)
}

/// Sends a line to a machine's control socket and returns the answer.
fn ask(dir: &Scratch, machine: &str, line: &str) -> String {
    let stream = UnixStream::connect(dir.path(&format!("run/{machine}.sock"))).expect("the control socket");
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
    assert_eq!(lines.next().as_deref(), Some(r#"{"version":1}"#));
    writeln!(&stream, "{line}").unwrap();
    lines.next().expect("an answer")
}

/// The process of a machine, as its status tells.
fn pid(dir: &Scratch, machine: &str) -> String {
    let status = bhyve_rs(dir, &["status", machine, "--json"]).console;
    let (_, rest) = status.split_once("\"pid\":").expect("a pid");
    rest.chars().take_while(char::is_ascii_digit).collect()
}

/// Starts a machine whose BIOS waits for a medium, with these lines in its configuration.
fn start(dir: &Scratch, name: &str, lines: &str) {
    let text = format!("name = '{name}'\nmemory = '32M'\n{lines}\n[boot]\norder = ['cd']\n[[cd]]\n[[floppy]]\n");
    let toml = dir.write(&format!("{name}.toml"), &text);
    let started = bhyve_rs(dir, &["start", "-c", &toml]);
    assert_eq!((started.status, started.stderr.as_str()), (0, ""));
}

#[test]
fn each_thread_of_a_machine_is_confined_and_a_kill_leaves_no_socket() {
    let dir = Scratch::new("sandbox-threads");
    start(&dir, "confined", "");
    let pid = pid(&dir, "confined");
    let threads: Vec<_> = std::fs::read_dir(format!("/proc/{pid}/task")).expect("its threads").collect();
    assert!(threads.len() >= 4, "{} threads", threads.len());
    for thread in threads {
        let status = std::fs::read_to_string(thread.unwrap().path().join("status")).expect("a thread's status");
        let value = |key: &str| status.lines().find_map(|l| l.strip_prefix(key)).map(str::trim).map(str::to_owned);
        assert_eq!(value("Seccomp:").as_deref(), Some("2"), "{status}");
        assert_eq!(value("NoNewPrivs:").as_deref(), Some("1"), "{status}");
    }
    let socket = dir.path("run/confined.sock");
    assert!(std::path::Path::new(&socket).exists());
    assert!(std::process::Command::new("kill").args(["-KILL", &pid]).status().unwrap().success());
    let end = Instant::now() + Duration::from_secs(20);
    while std::path::Path::new(&socket).exists() {
        assert!(Instant::now() < end, "the broker has left {socket}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn images_are_opened_by_who_asks_or_where_the_configuration_allows_it() {
    let dir = Scratch::new("sandbox-media");
    for (place, name) in [("allowed", "disc"), ("elsewhere", "disc"), ("elsewhere", "secret")] {
        std::fs::create_dir_all(dir.path(place)).unwrap();
        std::fs::write(dir.path(&format!("{place}/{name}")), vec![0x5a; 64 << 10]).unwrap();
    }
    std::os::unix::fs::symlink(dir.path("elsewhere/secret"), dir.path("allowed/link")).unwrap();
    let backed = dir.path("elsewhere/backed");
    let made = run(&["image", "create", "-f", "qcow2", "-b", &dir.path("elsewhere/secret"), &backed], 20);
    assert_eq!(made.status, 0, "{}", made.stderr);
    start(&dir, "media", &format!("[sandbox]\nmedia = ['{}']", dir.path("allowed")));

    // By path alone, as a program that was taken over could ask.
    let insert = |image: &str| {
        let line = format!(r#"{{"id":1,"verb":"insert","drive":"cd0","image":"{}"}}"#, dir.path(image));
        ask(&dir, "media", &line)
    };
    assert_eq!(insert("allowed/disc"), r#"{"id":1,"ok":true}"#);
    for outside in ["elsewhere/secret", "allowed/link", "allowed/../elsewhere/secret"] {
        let said = insert(outside);
        assert!(said.contains(r#""ok":false"#) && said.contains("sandbox.media"), "{outside}: {said}");
    }
    // Who may open a file may lend it, but not what stands behind it.
    assert_eq!(bhyve_rs(&dir, &["insert", "media", "-i", &dir.path("elsewhere/disc")]).status, 0);
    let refused = bhyve_rs(&dir, &["insert", "media", "-i", &backed]);
    assert_eq!(refused.status, 4);
    assert!(refused.stderr.contains("backing file") && refused.stderr.contains("sandbox.media"), "{}", refused.stderr);
    // What is in a drive is locked, whoever has opened it.
    let twice = bhyve_rs(&dir, &["insert", "media", "-d", "floppy0", "-i", &dir.path("elsewhere/disc")]);
    assert_eq!(twice.status, 4);
    assert!(twice.stderr.contains("it is in use"), "{}", twice.stderr);
    assert_eq!(bhyve_rs(&dir, &["kill", "media"]).status, 0);
}

#[test]
fn a_guest_runs_without_the_sandbox_when_asked_to() {
    let words = ["-o", "clock=instructions", "-o", "memory=32M", "--until", "100000"];
    let (confined, free) = (run(&words, 60), run(&[&words[..], &["--no-sandbox"]].concat(), 60));
    assert_eq!((confined.status, free.status), (0, 0), "{}{}", confined.stderr, free.stderr);
    assert_eq!(confined.state(), free.state());
}
