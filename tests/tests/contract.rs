//! What other programs rely on: the control socket and its commands, consoles, reports, exit statuses.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use machine_tests::{Run, SOON, Scratch, bhyve_rs, guest, probe, run, until};

/// What the probe says when it hears what is typed.
const READY: &str = "PROBE echo (Ctrl-D ends)";

/// A machine's file, with these words for the probe and this serial port.
fn file(dir: &Scratch, name: &str, words: &str, serial: &str) -> String {
    let kernel = probe();
    dir.write(
        &format!("{name}.toml"),
        &format!(
            "name = '{name}'\nmemory = '64M'\n[boot]\nkernel = '{kernel}'\nargs = '{words}'\n[[serial]]\n{serial}\n"
        ),
    )
}

/// Reads until `text` came.
fn read_until(from: &mut impl Read, text: &str) -> String {
    let mut got = Vec::new();
    while !String::from_utf8_lossy(&got).contains(text) {
        let mut byte = [0];
        let n = from.read(&mut byte).unwrap_or_else(|e| panic!("{e} after {:?}", String::from_utf8_lossy(&got)));
        assert_eq!(n, 1, "the end came after {:?}", String::from_utf8_lossy(&got));
        got.push(byte[0]);
    }
    String::from_utf8_lossy(&got).into_owned()
}

#[test]
fn a_machine_in_the_background_is_shown_paused_resumed_reset_and_killed() {
    let dir = Scratch::new("background");
    let toml = file(&dir, "back", "echo", "backend = 'stdio'");
    let started = bhyve_rs(&dir, &["start", "-c", &toml]);
    assert_eq!((started.status, started.stderr.as_str()), (0, ""));
    let again = bhyve_rs(&dir, &["start", "-c", &toml]);
    assert_eq!(again.status, 4);
    assert!(again.stderr.contains("back is running already"), "{}", again.stderr);

    let socket = dir.path("run/back.sock");
    assert_eq!(std::fs::metadata(&socket).expect("the control socket").permissions().mode() & 0o777, 0o600);
    let mut console = UnixStream::connect(dir.path("run/back.com1")).expect("the console");
    console.set_read_timeout(Some(SOON)).expect("a timeout");
    read_until(&mut console, READY);
    console.write_all(b"over there\n").expect("typed");
    read_until(&mut console, "over there");

    let state = |want: &str| {
        let status = bhyve_rs(&dir, &["status", "back", "--json"]);
        assert_eq!(status.status, 0, "{}", status.stderr);
        assert!(status.console.contains(&format!("\"state\":\"{want}\"")), "{}", status.console);
        let seconds = status.console.split("\"guest_seconds\":").nth(1).expect("guest time");
        seconds.split([',', '}']).next().and_then(|s| s.parse::<f64>().ok()).expect("a number")
    };
    state("running");
    assert_eq!(bhyve_rs(&dir, &["pause", "back"]).status, 0);
    let (then, now) = (state("paused"), state("paused"));
    assert_eq!(then, now, "guest time stands still");
    // What is typed now waits for the guest.
    console.write_all(b"later\n").expect("typed");
    assert_eq!(bhyve_rs(&dir, &["resume", "-c", &toml]).status, 0);
    read_until(&mut console, "later");

    // The console stays while the guest starts again.
    assert_eq!(bhyve_rs(&dir, &["reset", "back"]).status, 0);
    read_until(&mut console, READY);
    let status = bhyve_rs(&dir, &["status", "back"]);
    assert!(status.console.lines().any(|l| l.split_whitespace().eq(["resets", "1"])), "{}", status.console);

    let waiting = Run::start(&["--run-dir", &dir.path("run"), "wait", "back"], 60);
    // Its request is there when a later client's is answered on the same thread.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(bhyve_rs(&dir, &["kill", "back"]).status, 0);
    assert_eq!(waiting.wait().status, 1, "as the machine itself");
    until("the socket goes with the machine", || (!std::path::Path::new(&socket).exists()).then_some(()));
    let gone = bhyve_rs(&dir, &["status", "back"]);
    assert_eq!(gone.status, 4);
    assert!(gone.stderr.contains("no machine \"back\" is running"), "{}", gone.stderr);
}

#[test]
fn the_processors_of_a_machine_are_shown_by_counters_and_registers() {
    let dir = Scratch::new("inspect");
    let toml = file(&dir, "seen", "echo", "backend = 'stdio'");
    assert_eq!(bhyve_rs(&dir, &["start", "-c", &toml]).status, 0);
    read_until(&mut UnixStream::connect(dir.path("run/seen.com1")).expect("the console"), READY);

    let stats = bhyve_rs(&dir, &["stats", "seen"]);
    assert_eq!((stats.status, stats.console.lines().next()), (0, Some("vcpu0 stats:")), "{}", stats.stderr);
    let value = |name: &str| {
        let line = stats.console.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("{}", stats.console));
        line.split('\t').nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or_else(|| panic!("{line:?}"))
    };
    assert!(value("vcpu total runtime") > 0 && value("instructions executed") > 0, "{}", stats.console);
    // What the kernel and its data take, of more memory.
    assert!((1 << 16..64 << 20).contains(&value("Resident memory")), "{}", stats.console);
    let json = bhyve_rs(&dir, &["stats", "seen", "--cpu", "0", "--json"]);
    assert!(json.console.contains("[\"vcpu total runtime\","), "{}", json.console);

    // The machine is not paused by a look at it.
    for _ in 0..2 {
        let registers = bhyve_rs(&dir, &["registers", "seen"]);
        assert!(registers.console.starts_with("vcpu0 registers:\nrax "), "{}", registers.console);
    }
    assert!(bhyve_rs(&dir, &["status", "seen"]).console.contains("running"));
    assert_eq!(bhyve_rs(&dir, &["pause", "seen"]).status, 0);
    let [first, second] = [(); 2].map(|()| bhyve_rs(&dir, &["registers", "seen", "--json"]).console);
    assert!(first.contains("\"rip\":") && first == second, "{first}\n{second}");
    assert!(bhyve_rs(&dir, &["status", "seen"]).console.contains("paused"));
    let none = bhyve_rs(&dir, &["nmi", "seen", "--cpu", "7"]);
    assert_eq!((none.status, none.stderr.contains("there is no processor 7")), (4, true), "{}", none.stderr);
    assert_eq!(bhyve_rs(&dir, &["kill", "seen"]).status, 0);
}

#[test]
fn a_guest_that_hears_the_power_button_stops_and_one_that_does_not_is_cut_off() {
    let dir = Scratch::new("stop");
    let toml = file(&dir, "deaf", "loop", "backend = 'stdio'");
    assert_eq!(bhyve_rs(&dir, &["start", "-c", &toml]).status, 0);
    let stopped = bhyve_rs(&dir, &["stop", "deaf", "--timeout", "1"]);
    assert_eq!(stopped.status, 0, "{}", stopped.stderr);
    assert!(stopped.stderr.contains("its power is cut"), "{}", stopped.stderr);

    let (Some(kernel), Some(initrd)) = (guest("linux-amd64/vmlinuz"), guest("initramfs-amd64.cpio")) else { return };
    let toml = dir.write(
        "linux.toml",
        &format!(
            "name = 'linux'\nprofile = 'bhyve'\n[boot]\nkernel = '{kernel}'\ninitrd = '{initrd}'\n\
             args = 'console=ttyS0 end=button'\n[[serial]]\nbackend = 'stdio'\n"
        ),
    );
    assert_eq!(bhyve_rs(&dir, &["start", "-c", &toml]).status, 0);
    let mut console = UnixStream::connect(dir.path("run/linux.com1")).expect("the console");
    console.set_read_timeout(Some(10 * SOON)).expect("a timeout");
    read_until(&mut console, "RESULT button");
    let stopped = bhyve_rs(&dir, &["stop", "linux", "--timeout", "50"]);
    assert_eq!((stopped.status, stopped.stderr.as_str()), (0, ""));
}

#[test]
fn the_control_socket_speaks_json_and_refuses_by_name() {
    let dir = Scratch::new("json");
    let toml = file(&dir, "json", "loop", "backend = 'none'");
    assert_eq!(bhyve_rs(&dir, &["start", "-c", &toml]).status, 0);
    let mut socket = UnixStream::connect(dir.path("run/json.sock")).expect("the control socket");
    socket.set_read_timeout(Some(SOON)).expect("a timeout");
    let mut lines = BufReader::new(socket.try_clone().expect("a second handle"));
    let mut ask = |text: &str| {
        socket.write_all(text.as_bytes()).expect("asked");
        let mut line = String::new();
        lines.read_line(&mut line).expect("answered");
        line
    };
    assert_eq!(ask("{\"id\":1,\"verb\":\"fly\"}\n").trim(), "{\"version\":1}");
    assert!(ask("not json\n").contains("unknown verb \\\"fly\\\""));
    assert!(ask("{\"id\":3,\"verb\":\"stop\",\"hard\":true}\n").contains("this is not JSON"));
    assert!(ask("{\"id\":4,\"verb\":\"kill\"}\n").contains("no argument \\\"hard\\\""));
    assert_eq!(ask("").trim(), "{\"id\":4,\"ok\":true}");
}

#[test]
fn each_kind_of_console_carries_both_ways() {
    let dir = Scratch::new("consoles");
    let toml = file(&dir, "socket", "echo", &format!("backend = 'socket'\npath = '{}'", dir.path("c")));
    let machine = Run::start(&["-c", &toml, "--run-dir", &dir.path("run")], 60);
    let mut console = until("a socket", || UnixStream::connect(dir.path("c")).ok());
    console.set_read_timeout(Some(SOON)).expect("a timeout");
    read_until(&mut console, READY);
    console.write_all(b"by socket\n").expect("typed");
    read_until(&mut console, "by socket");
    console.write_all(b"\x04").expect("typed");
    assert_eq!(machine.wait().status, 1);

    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
    let toml = file(&dir, "tcp", "echo", &format!("backend = 'tcp'\naddress = '127.0.0.1:{port}'"));
    let machine = Run::start(&["-c", &toml, "--run-dir", &dir.path("run")], 60);
    let mut console = until("a port", || TcpStream::connect(("127.0.0.1", port)).ok());
    console.set_read_timeout(Some(SOON)).expect("a timeout");
    read_until(&mut console, READY);
    console.write_all(b"by tcp\n").expect("typed");
    read_until(&mut console, "by tcp");
    console.write_all(b"\x04").expect("typed");
    assert_eq!(machine.wait().status, 1);

    let toml = file(&dir, "pty", "echo", &format!("backend = 'pty'\npath = '{}'", dir.path("tty")));
    let machine = Run::start(&["-c", &toml, "--run-dir", &dir.path("run")], 60);
    let mut console = until("a pty", || std::fs::File::options().read(true).write(true).open(dir.path("tty")).ok());
    read_until(&mut console, READY);
    console.write_all(b"by pty\n").expect("typed");
    read_until(&mut console, "by pty");
    console.write_all(b"\x04").expect("typed");
    assert_eq!(machine.wait().status, 1);

    let toml = file(&dir, "file", "poweroff", &format!("backend = 'file'\npath = '{}'", dir.path("log")));
    assert_eq!(bhyve_rs(&dir, &["-c", &toml]).status, 1);
    let log = std::fs::read_to_string(dir.path("log")).expect("the file");
    assert!(log.contains("PROBE poweroff"), "{log}");

    let toml = file(&dir, "remote", "echo", "backend = 'tcp'\naddress = '0.0.0.0:9'");
    let refused = bhyve_rs(&dir, &["-c", &toml]);
    assert_eq!(refused.status, 4);
    assert!(refused.stderr.contains("0.0.0.0:9") && refused.stderr.contains("loopback"), "{}", refused.stderr);
}

#[test]
fn the_end_of_standard_input_does_not_end_a_machine() {
    let dir = Scratch::new("eof");
    let toml = file(&dir, "eof", "loop", "backend = 'stdio'");
    let mut machine = Run::start(&["--run-dir", &dir.path("run"), "-c", &toml], 60);
    machine.close_input();
    machine.expect("PROBE loop");
    until("a control socket", || (bhyve_rs(&dir, &["status", "eof"]).status == 0).then_some(()));
    assert_eq!(bhyve_rs(&dir, &["kill", "eof"]).status, 0);
    assert_eq!(machine.wait().status, 1);
}

#[test]
fn the_run_report_counts_by_device_and_a_trace_shows_each_access() {
    let probe = probe();
    let words = ["--kernel", &probe, "--args", "poweroff", "-o", "clock=instructions", "--stats"];
    let ended = run(&[&words[..], &["--trace", "com1"]].concat(), 60);
    let row = ended.stderr.lines().find(|l| l.starts_with("com1 ")).expect("a row for com1");
    let counts: Vec<usize> = row.split_whitespace().skip(1).map(|n| n.parse().expect("a count")).collect();
    let traced = |what: &str| ended.stderr.lines().filter(|l| l.contains(&format!(" com1 {what} "))).count();
    assert_eq!([traced("read"), traced("write")].as_slice(), counts);
    // The transmit register gets the text.
    let sent: String = ended
        .stderr
        .lines()
        .filter_map(|l| l.split(" com1 write 0:0/1 ").nth(1))
        .filter_map(|hex| u8::from_str_radix(hex.trim(), 16).ok().map(char::from))
        .collect();
    assert!(sent.contains("PROBE poweroff"), "{sent}");

    let refused = run(&[&words[..], &["--trace", "con1"]].concat(), 60);
    assert_eq!(refused.status, 4);
    assert!(refused.stderr.contains("--trace con1") && refused.stderr.contains("\"com1\""), "{}", refused.stderr);
}

#[test]
fn wrong_usage_exits_with_4() {
    for words in [&["--nonsense"][..], &["run", "--until", "x"], &["-c", "x.toml", "check", "y.toml"], &["stop"]] {
        let ended = run(words, 20);
        assert_eq!((ended.status, ended.console.as_str()), (4, ""), "{words:?}");
        assert!(!ended.stderr.is_empty(), "{words:?}");
    }
    assert_eq!(run(&["--help"], 20).status, 0);
}

#[test]
fn a_script_types_at_the_same_instruction_in_every_run() {
    let dir = Scratch::new("script");
    let script = dir.write(
        "script.toml",
        "[[step]]\nseen = 'Ctrl-D ends'\nafter = 0.001\nsend = \"typed\\n\"\n[[step]]\nat = 0.5\nsend = \"\\u0004\"\n",
    );
    let probe = probe();
    let words = ["--kernel", &probe, "--args", "echo", "-o", "clock=instructions", "--stats", "--script", &script];
    let (a, b) = (run(&words, 60), run(&words, 60));
    assert!(a.console.contains("typed") && a.console.contains("PROBE echo end"), "{}", a.console);
    assert_eq!(a.status, 1, "{}", a.stderr);
    assert_eq!((&a.console, a.instructions()), (&b.console, b.instructions()));
    let halves = run(&[&words[..], &["--until", "2000000", "--save", &dir.path("state")]].concat(), 60);
    let rest = run(&[&words[..], &["--restore", &dir.path("state")]].concat(), 60);
    assert_eq!(halves.console + &rest.console, a.console);

    let frame = dir.write("frame.toml", "[[step]]\nat = 1\nframe = '00000000000000000000000000000000'\n");
    let refused = run(&["--kernel", &probe, "--script", &frame, "-o", "nic.0.backend=none"], 20);
    assert_eq!((refused.status, refused.console.as_str()), (4, ""));
    assert!(
        refused.stderr.contains("step 1: there is no network card 0 with backend = \"script\""),
        "{}",
        refused.stderr
    );
}

#[test]
fn a_disc_is_put_in_while_the_bios_waits_and_boots() {
    let Some(disc) = guest("media/memtest86+x64.iso") else { return };
    let dir = Scratch::new("media");
    let text = "name = 'disc'\nmemory = '32M'\n[boot]\norder = ['cd']\n[[cd]]\n[[floppy]]\n";
    let toml = dir.write("disc.toml", text);
    assert_eq!(bhyve_rs(&dir, &["start", "-c", &toml]).status, 0);
    let shown = |text: &str| {
        until(text, || {
            let screen = bhyve_rs(&dir, &["screenshot", "disc", "--text"]);
            screen.console.contains(text).then_some(screen.console)
        })
    };
    assert!(shown("Press a key to try again").contains("CD-ROM drive, IDE secondary master: no medium"));
    let refused = bhyve_rs(&dir, &["insert", "disc", "-d", "disk0", "-i", &disc]);
    assert_eq!(refused.status, 4);
    assert!(refused.stderr.contains("no drive \"disk0\"; there are: floppy0, cd0"), "{}", refused.stderr);
    assert_eq!(bhyve_rs(&dir, &["insert", "disc", "-i", &disc]).status, 0);
    assert_eq!(bhyve_rs(&dir, &["sendkeys", "disc", "<enter>"]).status, 0);
    assert!(shown("Testing").contains("Memtest86+ v6"));
    let png = dir.path("disc.png");
    assert_eq!(bhyve_rs(&dir, &["screenshot", "disc", "-o", &png]).status, 0);
    assert_eq!(std::fs::read(&png).unwrap()[..8], *b"\x89PNG\r\n\x1a\n");
    assert_eq!(bhyve_rs(&dir, &["kill", "disc"]).status, 0);
}
