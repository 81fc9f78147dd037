//! Consoles of machines in the background: readers, a writer, the log, and the command that visits them.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use machine_tests::{Run, SOON, Scratch, bhyve_rs, guest, probe, program};

/// What the probe says when it hears what is typed.
const READY: &str = "PROBE echo (Ctrl-D ends)";

/// Starts a machine that echoes, with more of its configuration.
fn start(dir: &Scratch, name: &str, serial: &str, more: &str) -> String {
    let text = format!(
        "name = '{name}'\nmemory = '64M'\n[boot]\nkernel = '{}'\nargs = 'echo'\n[[serial]]\n{serial}\n{more}",
        probe()
    );
    let toml = dir.write(&format!("{name}.toml"), &text);
    let started = bhyve_rs(dir, &["start", "-c", &toml]);
    assert_eq!((started.status, started.stderr.as_str()), (0, ""));
    toml
}

fn connect(dir: &Scratch, name: &str) -> UnixStream {
    let stream = UnixStream::connect(dir.path(&format!("run/{name}"))).expect("a console");
    stream.set_read_timeout(Some(SOON)).expect("a timeout");
    stream
}

/// Reads until `text` came.
fn read_until(from: &mut impl Read, text: &str) -> String {
    let (mut got, mut buf) = (Vec::new(), [0; 4096]);
    let last = |got: &[u8]| String::from_utf8_lossy(&got[got.len().saturating_sub(200)..]).into_owned();
    let begun = std::time::Instant::now();
    while !got.windows(text.len()).any(|window| window == text.as_bytes()) {
        // A screen on which something moves never lets a read time out.
        assert!(begun.elapsed() < 3 * SOON, "no {text:?}, but {:?}", last(&got));
        let n = from.read(&mut buf).unwrap_or_else(|e| panic!("{e} after {:?}", last(&got)));
        assert_ne!(n, 0, "the end came after {:?}", last(&got));
        got.extend(&buf[..n]);
    }
    String::from_utf8_lossy(&got).into_owned()
}

#[test]
fn fifty_visits_while_the_guest_prints_lose_and_double_nothing() {
    let dir = Scratch::new("visits");
    start(&dir, "visits", "backend = 'stdio'", "");
    let mut writer = connect(&dir, "visits.com1");
    read_until(&mut writer, READY);
    let lines = 4000;
    let mut typing = writer.try_clone().expect("a second handle");
    let typist = std::thread::spawn(move || {
        for n in 0..lines {
            typing.write_all(format!("{n:06}\n").as_bytes()).expect("typed");
        }
    });
    let own = std::thread::spawn(move || read_until(&mut writer, &format!("{:06}", lines - 1)));
    // The numbers of whole lines in what somebody saw.
    let numbers = |text: &str| -> Vec<u32> {
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().filter_map(|line| line.trim().parse().ok()).collect()
    };
    let mut seen = 0;
    for _ in 0..50 {
        let mut visitor = connect(&dir, "visits.com1");
        let text = read_until(&mut visitor, &format!("{:06}\n", (seen + lines / 60).min(lines - 1)));
        visitor.shutdown(std::net::Shutdown::Write).expect("the way out");
        let mut rest = String::new();
        visitor.read_to_string(&mut rest).expect("what was under way");
        let all = numbers(&(text + &rest));
        assert!(all.iter().enumerate().all(|(n, number)| n as u32 == *number), "a gap, or something twice: {all:?}");
        seen = all.len() as u32 - 1;
    }
    typist.join().expect("all typed");
    assert!(own.join().expect("all seen").contains("000000"));
    let log = bhyve_rs(&dir, &["log", "visits", "com1"]);
    assert!(numbers(&(log.console + "\n")).into_iter().eq(0..lines));
    assert_eq!(bhyve_rs(&dir, &["kill", "visits"]).status, 0);
}

#[test]
fn a_visitor_takes_over_from_another_and_leaves_the_machine_running() {
    let dir = Scratch::new("visitor");
    start(&dir, "visitor", "backend = 'stdio'", "");
    let mut first = connect(&dir, "visitor.com1");
    read_until(&mut first, READY);
    let run = dir.path("run");
    let mut second = Run::start(&["--run-dir", &run, "console", "visitor", "--force"], 60);
    second.expect(READY);
    read_until(&mut first, "another client has taken over; you read on");
    second.send("by the second\n");
    second.expect("by the second");
    read_until(&mut first, "by the second");
    let mut third = Run::start(&["--run-dir", &run, "console", "visitor", "--readonly", "--new"], 60);
    let past = bhyve_rs(&dir, &["console", "visitor", "--log"]);
    assert_eq!(past.status, 0);
    assert!(past.console.contains(READY) && past.console.contains("by the second"), "{}", past.console);
    // A reset is no end.
    assert_eq!(bhyve_rs(&dir, &["reset", "visitor"]).status, 0);
    second.expect(READY);
    third.expect(READY);
    assert!(!third.text().contains("by the second"), "only what is new");
    let none = bhyve_rs(&dir, &["console", "visitor", "com2"]);
    assert_eq!(none.status, 4);
    assert!(none.stderr.contains("no console \"com2\"") && none.stderr.contains("com1, screen"), "{}", none.stderr);
    assert_eq!(bhyve_rs(&dir, &["kill", "visitor"]).status, 0);
    for visitor in [second, third] {
        let ended = visitor.wait();
        assert_eq!(ended.status, 0);
        assert!(ended.stderr.contains("visitor has ended"), "{}", ended.stderr);
    }
}

#[test]
fn a_log_is_put_aside_when_it_is_full_by_the_confined_process_too() {
    let dir = Scratch::new("rotate");
    let log = dir.path("out");
    start(&dir, "rotate", &format!("backend = 'console'\nlog = '{log}'\nlog_size = '4K'\nlog_keep = 2"), "");
    let mut console = connect(&dir, "rotate.com1");
    read_until(&mut console, READY);
    for n in 0..2000 {
        console.write_all(format!("line {n:06}\n").as_bytes()).expect("typed");
        read_until(&mut console, &format!("{n:06}\n"));
    }
    assert_eq!(bhyve_rs(&dir, &["kill", "rotate"]).status, 0);
    machine_tests::until("the end", || (!Path::new(&dir.path("run/rotate.com1")).exists()).then_some(()));
    let read = |name: &str| std::fs::read_to_string(dir.path(name)).expect("a log");
    assert!(!Path::new(&dir.path("out.2")).exists());
    let kept = read("out.1") + &read("out.0") + &read("out");
    let numbers: Vec<u32> = kept.lines().filter_map(|line| line.strip_prefix("line ")?.trim().parse().ok()).collect();
    assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]) && numbers.last() == Some(&1999), "{numbers:?}");
    assert!(read("out.0").len() >= 4096 && read("out.0").len() < 4200 && numbers.len() > 600, "{}", numbers.len());
}

#[test]
fn scripts_wait_for_a_text_of_a_console_and_learn_when_it_does_not_come() {
    let dir = Scratch::new("waits");
    start(&dir, "waits", "backend = 'stdio'", "");
    assert_eq!(bhyve_rs(&dir, &["wait", "waits", "--for", READY, "--timeout", "30"]).status, 0);
    assert_eq!(bhyve_rs(&dir, &["wait", "waits", "--for", READY, "--new", "--timeout", "1"]).status, 124);
    assert_eq!(bhyve_rs(&dir, &["wait", "waits", "--timeout", "1"]).status, 124);
    let run = dir.path("run");
    let waiting = Run::start(&["--run-dir", &run, "wait", "waits", "--for", "never", "--timeout", "60"], 60);
    let events = bhyve_rs_until(&dir, "waits", "console-attached");
    assert!(events.contains("port com1"), "{events}");
    assert_eq!(bhyve_rs(&dir, &["kill", "waits"]).status, 0);
    let ended = waiting.wait();
    assert_eq!(ended.status, 4);
    assert!(ended.stderr.contains("has ended before \"never\" came out of com1"), "{}", ended.stderr);
}

/// The machine's events up to the first of a kind.
fn bhyve_rs_until(dir: &Scratch, name: &str, event: &str) -> String {
    let mut events = Run::start(&["--run-dir", &dir.path("run"), "events", name, "--since", "0"], 60);
    events.expect(event);
    events.expect("\n");
    events.text()
}

#[test]
fn the_text_screen_is_a_console_too() {
    let Some(disc) = guest("media/memtest86+x64.iso") else { return };
    let dir = Scratch::new("textscreen");
    let toml = dir.write(
        "text.toml",
        &format!("name = 'text'\nmemory = '32M'\n[boot]\norder = ['cd']\n[[cd]]\npath = '{disc}'\n"),
    );
    assert_eq!(bhyve_rs(&dir, &["start", "-c", &toml]).status, 0);
    // Not with the plus sign: the program gives it another colour when it has started.
    let found = bhyve_rs(&dir, &["wait", "text", "--for", "Memtest86", "--console", "screen", "--timeout", "50"]);
    assert_eq!(found.status, 0, "{}", found.stderr);
    // Who comes later is shown all of it.
    let mut screen = connect(&dir, "text.screen");
    read_until(&mut screen, "Memtest86");
    assert_eq!(bhyve_rs(&dir, &["kill", "text"]).status, 0);
}

#[test]
fn at_a_terminal_commands_work_and_the_terminal_is_as_it_was() {
    let Ok(script) = Command::new("script").arg("--version").output() else {
        machine_tests::skip("script(1)");
        return;
    };
    if !script.status.success() {
        machine_tests::skip("script(1) of util-linux");
        return;
    }
    let dir = Scratch::new("terminal");
    start(&dir, "terminal", "backend = 'stdio'", "");
    let mut command = Command::new("script");
    let visit = format!(
        "{} --run-dir {} console terminal -e ^A; echo status $?; stty -a",
        program().display(),
        dir.path("run")
    );
    command.args(["-qec", &visit, "/dev/null"]);
    let mut terminal = Run::of(command, 60);
    terminal.expect(READY);
    terminal.send("typed\r\x01?");
    terminal.expect("leave the console");
    terminal.send("\x01r");
    terminal.expect(READY);
    terminal.send("\x01.");
    terminal.expect("[left com1 of terminal]");
    terminal.expect("status 0");
    let ended = terminal.wait();
    assert!(ended.console.contains(" icanon") && ended.console.contains(" echo "), "{}", ended.console);
    assert_eq!(bhyve_rs(&dir, &["status", "terminal"]).status, 0, "the machine goes on");
    assert_eq!(bhyve_rs(&dir, &["kill", "terminal"]).status, 0);
}
