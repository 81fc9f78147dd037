//! Machines that start and stop with the host: `bhyve-rs autostart`, rc.d's script over it, and a fleet that a shell
//! script runs.

use std::fmt::Write;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use machine_tests::{Scratch, bhyve_rs, guest, probe, program, root, skip, until};

/// A host whose rc.conf names a directory of guests.
struct Host {
    dir: Scratch,
    name: &'static str,
}

impl Host {
    fn new(name: &'static str, settings: &str) -> Host {
        let dir = Scratch::new(name);
        std::fs::create_dir_all(dir.path("guests")).expect("the guests' directory");
        let script = std::fs::read_to_string(root().join("rc.d/bhyve_rs")).expect("the script");
        let subr = root().join("tests/rc.d/rc.subr");
        dir.write("bhyve_rs", &script.replace("/etc/rc.subr", &subr.display().to_string()));
        let conf = format!(
            "bhyve_rs_dir={}\nbhyve_rs_binary={}\nbhyve_rs_flags='--run-dir {}'\n{settings}\n",
            dir.path("guests"),
            program().display(),
            dir.path("run")
        );
        dir.write("rc.conf", &conf);
        Host { dir, name }
    }

    /// A machine's file. Names are this test's alone. It is stopped by the button also when it has just begun.
    fn guest(&self, name: &str, words: &str, autostart: &str) {
        let (name, kernel) = (format!("{}-{name}", self.name), probe());
        let text = format!(
            "name = '{name}'\nmemory = '16M'\nbackend = 'soft'\n[boot]\nkernel = '{kernel}'\nargs = '{words}'\n\
             [stop]\nmethod = 'acpi'\n[autostart]\n{autostart}\n"
        );
        self.dir.write(&format!("guests/{name}.toml"), &text.replace("@", &format!("{}-", self.name)));
    }

    /// `service bhyve_rs ...`
    fn service(&self, words: &[&str]) -> (i32, String) {
        let mut command = Command::new("sh");
        // Both outputs in the order in which things are said.
        command.args(["-c", "exec sh \"$0\" \"$@\" 2>&1"]).arg(self.dir.path("bhyve_rs")).args(words);
        let output = command.env("RC_CONF", self.dir.path("rc.conf")).stdin(Stdio::null()).output();
        let Output { status, stdout, .. } = output.expect("sh");
        let text = String::from_utf8_lossy(&stdout).replace(&format!("{}-", self.name), "");
        (status.code().unwrap_or(-1), text)
    }

    /// What status says of a machine.
    fn state(&self, name: &str) -> String {
        let (_, text) = self.service(&["status", &format!("{}-{name}", self.name)]);
        text.lines().last().and_then(|line| line.split_whitespace().nth(5)).unwrap_or_default().to_owned()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let (_, _) = self.service(&["forcestop"]);
    }
}

/// Twenty machines, one of which hangs: the total time, and what was said.
fn twenty(name: &'static str, timeout: u64) -> (Duration, String) {
    let host = Host::new(name, &format!("bhyve_rs_enable=NO\nbhyve_rs_timeout={timeout}"));
    for n in 0..19 {
        // A tree: each comes after the one of half its number.
        let after = if n == 0 { String::new() } else { format!("after = ['@g{:02}']", (n - 1) / 2) };
        host.guest(&format!("g{n:02}"), "button", &format!("enabled = true\norder = {}\n{after}", 100 - n));
    }
    host.guest("hangs", "loop", "enabled = true\nafter = ['@g18']");
    let (status, said) = host.service(&["start"]);
    assert!(status == 0 && said.contains("Set bhyve_rs_enable to YES"), "{said}");
    assert_eq!(host.service(&["enable"]).0, 0);
    let begun = Instant::now();
    assert_eq!(host.service(&["faststart"]), (0, String::new()));
    assert!(begun.elapsed() < Duration::from_secs(2), "start returns at once, and took {:?}", begun.elapsed());
    until("all run", || (host.service(&["status"]).0 == 0).then_some(()));
    let log = std::fs::read_to_string(host.dir.path("run/.autostart.log")).expect("a log");
    let started: Vec<&str> = log.lines().filter_map(|line| line.strip_suffix(": runs")?.split('-').nth(1)).collect();
    assert_eq!(started.len(), 20, "{log}");
    let place = |name: &str| started.iter().position(|started| *started == name).expect("started");
    for n in 1..19 {
        assert!(place(&format!("g{n:02}")) > place(&format!("g{:02}", (n - 1) / 2)), "{log}");
    }
    // The lower of two that may both start.
    assert!(place("g02") < place("g01"), "{log}");

    let begun = Instant::now();
    let (status, said) = host.service(&["stop"]);
    let took = begun.elapsed();
    assert_eq!(status, 1, "one was not stopped cleanly: {said}");
    assert_eq!(said.matches("its power was cut").count(), 1, "{said}");
    assert!(said.lines().any(|l| l.contains("hangs: it has not stopped in")), "{said}");
    assert_eq!(said.matches(": stopped in").count(), 19, "{said}");
    // Nothing is stopped before what comes after it.
    let place = |name: &str| said.find(&format!("{name}: ")).expect("stopped");
    for n in 1..19 {
        assert!(place(&format!("g{n:02}")) < place(&format!("g{:02}", (n - 1) / 2)), "{said}");
    }
    assert!(place("hangs") < place("g18"), "{said}");
    assert_eq!(host.service(&["status"]).0, 1);
    (took, said)
}

#[test]
fn twenty_machines_stop_in_time_though_one_hangs_and_all_others_cleanly() {
    let (took, said) = twenty("twenty", 12);
    assert!(took < Duration::from_secs(12), "{took:?}: {said}");
}

/// The defaults of the script: 75 s, of which rc.shutdown's watchdog gives 90.
#[test]
#[ignore = "takes as long as the machine that hangs may"]
fn twenty_machines_stop_before_the_hosts_watchdog_bites() {
    let (took, said) = twenty("watchdog", 75);
    println!("{said}\nall down after {took:?}");
    assert!(took < Duration::from_secs(75), "{took:?}");
}

#[test]
fn what_is_wrong_with_one_machine_is_that_machines_alone() {
    let host = Host::new("faults", "bhyve_rs_enable=YES\nbhyve_rs_timeout=10");
    host.guest("good", "button", "enabled = true\norder = 50");
    host.guest("later", "button", "enabled = true\nafter = ['@vmm']");
    host.guest("a", "button", "enabled = true\nafter = ['@b']");
    host.guest("b", "button", "enabled = true\nafter = ['@a']");
    host.guest("lost", "button", "enabled = true\nafter = ['@nobody']");
    host.guest("off", "button", "enabled = false");
    host.dir.write("guests/broken.toml", "name = 'broken'\ncolour = 'red'\n");
    // Asks for a module that is not there.
    let text =
        format!("name = 'faults-vmm'\nbackend = 'vmm'\n[boot]\nkernel = '{}'\n[autostart]\nenabled = true", probe());
    host.dir.write("guests/vmm.toml", &text);
    let (status, said) = host.service(&["start"]);
    assert_eq!(status, 1, "{said}");
    for line in [
        "a: autostart.after goes in a circle: a after b after a",
        "b: autostart.after goes in a circle: b after a after b",
        "lost: autostart.after names \"nobody\", and there is no such machine",
        "broken.toml:2:1: colour: unknown key",
    ] {
        assert!(said.contains(line), "no {line:?} in {said}");
    }
    let last = until("all have had their turn", || {
        let (_, text) = host.service(&["status"]);
        (host.state("good") == "running" && text.contains("it comes after vmm, which did not start")).then_some(text)
    });
    let vmm = last.lines().find(|line| line.starts_with("vmm")).expect("a line");
    assert!(vmm.contains("vmm did not start"), "{vmm}");
    assert_eq!(host.state("off"), "stopped");

    // One that does not start with the host can be had by name.
    let (status, said) = host.service(&["start", "faults-off"]);
    assert_eq!(status, 0, "start: {said}");
    assert_eq!(host.state("off"), "running");
    let (status, said) = host.service(&["restart", "faults-off"]);
    assert_eq!(status, 0, "restart: {said}");
    let (status, said) = host.service(&["stop", "faults-off"]);
    assert_eq!(status, 0, "stop: {said}");
    assert_eq!((host.state("off"), host.state("good")), ("stopped".to_owned(), "running".to_owned()));
    let (status, said) = host.service(&["start", "nobody"]);
    assert!(status == 1 && said.contains("nobody: there is no such machine"), "{said}");
    assert_eq!(host.service(&["quietstop"]), (0, String::new()));
}

#[test]
fn a_stop_breaks_a_start_off_that_waits() {
    let host = Host::new("late", "bhyve_rs_enable=YES\nbhyve_rs_timeout=10");
    host.guest("now", "button", "enabled = true");
    host.guest("then", "button", "enabled = true\norder = 200\ndelay = '1h'");
    assert_eq!(host.service(&["start"]).0, 0);
    until("the first runs and the second waits", || {
        let (_, text) = host.service(&["status"]);
        text.contains("starts in 35").then_some(())
    });
    let again = bhyve_rs(&host.dir, &["autostart", "start", "--wait", "--dir", &host.dir.path("guests")]);
    assert!(again.status == 1 && again.stderr.contains("are being started already"), "{}", again.stderr);
    assert_eq!(host.service(&["stop"]).0, 0);
    assert_eq!((host.state("now"), host.state("then")), ("stopped".to_owned(), "stopped".to_owned()));
    // What runs goes down with the host though rc.conf does not have it.
    let mut conf = std::fs::read_to_string(host.dir.path("rc.conf")).expect("rc.conf");
    writeln!(conf, "bhyve_rs_enable=NO").expect("a text");
    host.dir.write("rc.conf", &conf);
    assert_eq!(host.service(&["onestart", "late-now"]).0, 0);
    assert_eq!(host.service(&["faststop"]), (0, String::new()));
    assert_eq!(host.state("now"), "stopped");
}

#[test]
fn a_machine_of_another_user_has_that_users_rights() {
    // Only root gives rights away, and only to somebody who may read what is needed.
    let may = |words: &[&str]| Command::new(words[0]).args(&words[1..]).output().is_ok_and(|o| o.status.success());
    let (program, kernel) = (program().display().to_string(), probe());
    let reads = format!("test -x {program} && test -r {kernel}");
    if !may(&["sh", "-c", "test $(id -u) = 0"]) || !may(&["su", "-s", "/bin/sh", "nobody", "-c", &reads]) {
        skip("user whose machine root can start");
        return;
    }
    let host = Host::new("rights", "bhyve_rs_enable=YES\nbhyve_rs_timeout=10");
    host.guest("theirs", "button", "enabled = true\nuser = 'nobody'");
    host.guest("ghost", "button", "enabled = true\nuser = 'no-such-user'");
    let (status, said) = host.service(&["start", "rights-theirs", "rights-ghost"]);
    assert!(status == 1 && said.contains("ghost: autostart.user: there is no user \"no-such-user\""), "{said}");
    assert_eq!(host.state("theirs"), "running");
    let number = Command::new("id").args(["-u", "nobody"]).output().expect("id(1)").stdout;
    let number: u32 = String::from_utf8_lossy(&number).trim().parse().expect("a number");
    let socket = host.dir.path(&format!("run-{number}/rights-theirs.sock"));
    assert_eq!(std::fs::metadata(socket).expect("a socket").uid(), number);
    assert_eq!(host.service(&["stop", "rights-theirs"]).0, 0);
    assert_eq!(host.state("theirs"), "stopped");
}

#[test]
fn a_shell_script_runs_a_fleet_by_commands_and_exit_statuses() {
    let Some(iso) = guest("media/ipxe.iso") else { return };
    let dir = Scratch::new("fleet");
    let mut script = Command::new("sh");
    script.arg(root().join("examples/fleet.sh")).args([&dir.path(""), "2", &iso, "iPXE"]);
    script.env("BHYVE_RS", program()).env("BHYVE_RS_RUN_DIR", dir.path("run"));
    let out = script.stdin(Stdio::null()).output().expect("sh");
    let (said, errors) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{said}\n{errors}");
    for line in ["fleet1: is up", "fleet2: is up", "fleet1: ran on a snapshot", "fleet1: gone", "fleet2: gone"] {
        assert!(said.lines().any(|l| l == line), "no {line:?} in {said}\n{errors}");
    }
    let left: Vec<_> =
        std::fs::read_dir(dir.path("")).expect("the folder").map(|e| e.expect("an entry").path()).collect();
    assert_eq!(left.len(), 1, "only the run directory is left: {left:?}");
}
