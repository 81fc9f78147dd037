//! The debug server, with Debian's GDB as its client, on the probe: breakpoints, steps, watches, registers and memory,
//! processors as threads, interrupts, and a guest that goes on to its end as if nobody had looked.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use machine_tests::{Ended, Run, Scratch, probe, program, run, skip, until};

/// The first instruction of the probe (its entry.rs) in 32-bit code without paging, where a debugger finds it.
const ENTRY: u64 = 0x20_0020;
/// The first of its 64-bit code.
const LONG: u64 = ENTRY + 0xad;
/// Where a SIPI starts the second processor, in real mode.
const TRAMPOLINE: u64 = 0x8000;

/// Whether there is GDB here; a named skip if not.
fn gdb() -> bool {
    let there = Command::new("gdb").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !there {
        skip("gdb");
    }
    there
}

/// A program over a back end; `None` after a named skip.
fn on(backend: &str) -> Option<Command> {
    let lacks = |what: &str| {
        skip(what);
        None
    };
    if backend == "kvm" && std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
        return lacks("/dev/kvm");
    }
    if let Some(kernel) = backend.strip_prefix("vmm-") {
        let sim = program().with_file_name("bhyve-rs-sim");
        if !sim.exists() {
            return lacks("bhyve-rs-sim");
        }
        let mut command = Command::new(sim);
        command.env("BHYVE_RS_SIM", kernel).args(["-o", "backend=vmm"]);
        return Some(command);
    }
    let mut command = Command::new(program());
    command.args(["-o", &format!("backend={backend}")]);
    Some(command)
}

/// The probe doing `words` under a debug server at the scratch directory's `gdb`.
fn guest(mut command: Command, dir: &Scratch, words: &str, settings: &[&str], more: &[&str]) -> Run {
    let socket = format!("debug.socket={}", dir.path("gdb"));
    let name = format!("name={}", dir.path("x").rsplit('/').nth(1).expect("a name"));
    command.args(["--kernel", &probe(), "--args", words, "--stats"]).args(more);
    let fixed = [socket.as_str(), name.as_str(), "serial.0.backend=stdio", "memory=64M"];
    for setting in fixed.iter().chain(settings) {
        command.args(["-o", setting]);
    }
    Run::of(command, 300)
}

/// A GDB that runs a script, connected to that server.
fn debugger(dir: &Scratch, script: &str) -> Run {
    let socket = dir.path("gdb");
    until("the debug server", || std::path::Path::new(&socket).exists().then_some(()));
    let head = format!("set pagination off\nset confirm off\nset width 0\ntarget remote {socket}\n");
    let mut command = Command::new("gdb");
    command.args(["-nx", "-q", "-batch", "-x", &dir.write("script", &format!("{head}{script}"))]);
    command.env("HOME", dir.path("")).env_remove("DEBUGINFOD_URLS");
    Run::of(command, 200)
}

/// The values that a script has printed, by their names.
fn printed<'a>(gdb: &'a Ended, name: &str) -> Vec<&'a str> {
    gdb.console.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('=')).collect()
}

fn assert_printed(gdb: &Ended, values: &[(&str, &str)]) {
    for (name, value) in values {
        assert_eq!(printed(gdb, name), [*value], "{name}\n{}\n{}", gdb.console, gdb.stderr);
    }
}

/// What every back end can do: breakpoints in 32-bit and 64-bit code, steps, registers, memory. The guest is as it was
/// afterwards.
fn looks_around(watch: bool) -> String {
    // The loop that fills a page directory begins with a store and adds to EAX.
    let (second, fill, call) = (ENTRY + 1, ENTRY + 0x25, LONG + 0x15);
    let watched = match watch {
        // The call pushes its return address; whoever loads from there next is its RET, far away.
        true => {
            "set $slot = $rsp - 8\nwatch *(long*)$slot\ncontinue\nprintf \"PUSHED=%d\\n\", *(long*)$slot > 0x200000\n\
                 delete\n"
        }
        false => "",
    };
    format!(
        "monitor info\n\
         printf \"ENTRY=%#lx\\n\", $rip\nprintf \"CR0=%d\\n\", $cr0 & 1\n\
         printf \"FIRST=%#x\\n\", *(unsigned char*){ENTRY:#x}\n\
         stepi\nprintf \"SECOND=%d\\n\", $rip == {second:#x}\n\
         break *{fill:#x}\ncontinue\nprintf \"FILL=%d\\n\", $rip == {fill:#x}\nstepi\nstepi\nstepi\nstepi\n\
         printf \"AX=%ld\\n\", $rax\ncontinue\nprintf \"AGAIN=%d\\n\", $rip == {fill:#x}\ndelete\n\
         tbreak *{LONG:#x}\ncontinue\nprintf \"LONG=%d\\n\", $rip == {LONG:#x}\nprintf \"LMA=%d\\n\", ($efer >> 10) & 1\n\
         set $old = $rbx\nset $rbx = 0x1122334455667788\nprintf \"RBX=%#lx\\n\", $rbx\nset $rbx = $old\n\
         set $before = *(long*)0x9000\nset *(long*)0x9000 = 0x0102030405060708\nprintf \"MEMORY=%#x\\n\", *(char*)0x9001\n\
         set *(long*)0x9000 = $before\n\
         tbreak *{call:#x}\ncontinue\nprintf \"CALL=%d\\n\", $rip == {call:#x}\n{watched}\
         detach\n"
    )
}

const SEEN: &[(&str, &str)] = &[
    ("ENTRY", "0x200020"),
    ("CR0", "1"),
    ("FIRST", "0xfa"),
    ("SECOND", "1"),
    ("FILL", "1"),
    ("AX", "2097283"),
    ("AGAIN", "1"),
    ("LONG", "1"),
    ("LMA", "1"),
    ("RBX", "0x1122334455667788"),
    ("MEMORY", "0x7"),
    ("CALL", "1"),
];

/// On the software CPU by the instruction clock the run is the same to the last instruction.
fn nothing_changes(name: &str, words: &str, more: &[&str]) {
    if !gdb() {
        return;
    }
    let dir = Scratch::new(name);
    let settings = ["clock=instructions", "cpus=2"];
    let fixed = ["--kernel", &probe(), "--args", words, "--stats", "-o", "memory=64M", "-o", "cpus=2"];
    let alone = run(&[&fixed[..], &["-o", "clock=instructions", "-o", "backend=soft"], more].concat(), 300);
    let Some(command) = on("soft") else { return };
    let machine = guest(command, &dir, words, &[&settings[..], &["debug.wait=true"]].concat(), more);
    let debugger = debugger(&dir, &looks_around(true)).wait();
    let ended = machine.wait();
    assert_printed(&debugger, SEEN);
    assert_printed(&debugger, &[("PUSHED", "1")]);
    // GDB shows what it is told on its standard error.
    assert!(debugger.stderr.contains("\n0.000 s since power-on"), "it waits\n{}", debugger.stderr);
    assert!(debugger.console.contains("Old value"), "{}", debugger.console);
    assert_eq!((ended.status, ended.console.as_str()), (alone.status, alone.console.as_str()), "{}", ended.stderr);
    assert_eq!(ended.instructions(), alone.instructions());
}

#[test]
fn a_debugged_guest_runs_as_it_does_alone() {
    nothing_changes("gdb-engine", "smoke", &[]);
}

#[test]
fn a_debugged_guest_runs_as_it_does_alone_instruction_by_instruction() {
    nothing_changes("gdb-plain", "poweroff", &["--plain"]);
}

/// The same look at a guest of a hypervisor, which then powers off.
fn looks_at(backend: &str, watch: bool) {
    if !gdb() {
        return;
    }
    let dir = Scratch::new(&format!("gdb-{backend}"));
    let Some(command) = on(backend) else { return };
    let machine = guest(command, &dir, "poweroff", &["debug.wait=true"], &[]);
    let debugger = debugger(&dir, &looks_around(watch)).wait();
    let ended = machine.wait();
    assert_printed(&debugger, SEEN);
    if watch {
        assert_printed(&debugger, &[("PUSHED", "1")]);
    }
    assert_eq!(ended.status, 1, "{}\n{}", ended.console, ended.stderr);
}

#[test]
fn a_guest_of_kvm() {
    let virtualizes = |flags: String| flags.split_whitespace().any(|flag| matches!(flag, "vmx" | "svm"));
    looks_at("kvm", std::fs::read_to_string("/proc/cpuinfo").is_ok_and(virtualizes));
}

#[test]
fn a_guest_of_vmm_13() {
    looks_at("vmm-13", false);
}

#[test]
fn a_guest_of_vmm_15() {
    looks_at("vmm-15", false);
}

/// Processors are threads, each with steps of its own.
fn threads(backend: &str) {
    if !gdb() {
        return;
    }
    let dir = Scratch::new(&format!("gdb-threads-{backend}"));
    let Some(command) = on(backend) else { return };
    let machine = guest(command, &dir, "smoke", &["debug.wait=true", "cpus=2", "clock=instructions"], &[]);
    let script = format!(
        "info threads\nbreak *{TRAMPOLINE:#x}\ncontinue\nprintf \"THREAD=%d\\n\", $_thread\nprintf \"CS=%#x\\n\", $cs\n\
         printf \"IP=%d\\n\", $rip\nstepi\nprintf \"NEXT=%d\\n\", $rip\nset scheduler-locking on\nstepi\n\
         printf \"AFTER=%d\\n\", $rip\nthread 1\nset $one = $rip\nthread 2\nstepi\nthread 1\n\
         printf \"STANDS=%d\\n\", $rip == $one\nset scheduler-locking off\ndelete\ndetach\n"
    );
    let debugger = debugger(&dir, &script).wait();
    let ended = machine.wait();
    assert!(debugger.console.contains("processor 0, 32 bits") && debugger.console.contains("processor 1, not started"));
    let seen = [("THREAD", "2"), ("CS", "0x800"), ("IP", "0"), ("NEXT", "1"), ("AFTER", "2"), ("STANDS", "1")];
    assert_printed(&debugger, &seen);
    let failed: Vec<&str> = ended.console.lines().filter(|l| l.contains(" FAIL")).collect();
    assert_eq!((ended.status, failed), (1, Vec::new()), "{}", ended.stderr);
}

#[test]
fn processors_are_threads() {
    threads("soft");
}

/// A guest that runs is interrupted, let go, interrupted by another debugger and reset; time stands still meanwhile.
fn comes_and_goes(backend: &str) {
    if !gdb() {
        return;
    }
    let dir = Scratch::new(&format!("gdb-comes-{backend}"));
    let Some(command) = on(backend) else { return };
    let mut machine = guest(command, &dir, "button", &[], &[]);
    machine.expect("PROBE");
    let first = debugger(&dir, "monitor info\nshell sleep 0.2\nmonitor info\ndetach\n").wait();
    let times: Vec<&str> =
        first.console.lines().chain(first.stderr.lines()).filter(|l| l.contains("power-on")).collect();
    assert!(times.len() == 2 && times[0] == times[1], "{}\n{}", first.console, first.stderr);
    let mut second = debugger(&dir, "echo HERE\\n\ncontinue\n");
    second.expect("HERE");
    // It has sent the packet when it is told, or will have soon.
    std::thread::sleep(Duration::from_millis(500));
    second.interrupt();
    let second = second.wait();
    assert!(second.console.contains("SIGINT"), "{}\n{}", second.console, second.stderr);
    // It did not say goodbye, and the guest goes on all the same.
    let third = debugger(&dir, "monitor powerdown\ncontinue\n").wait();
    let ended = machine.wait();
    assert_eq!(ended.status, 1, "{}\n{}", ended.console, ended.stderr);
    assert!(third.console.contains("exited with code 01"), "{}\n{}", third.console, third.stderr);
}

#[test]
fn a_debugger_comes_and_goes() {
    comes_and_goes("soft");
}

#[test]
fn a_debugger_comes_and_goes_on_kvm() {
    comes_and_goes("kvm");
}

/// A packet of the remote protocol.
fn packet(body: &[u8]) -> Vec<u8> {
    let sum = body.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    [b"$", body, format!("#{sum:02x}").as_bytes()].concat()
}

/// All that comes until the server has nothing more to say, or closes.
fn heard(stream: &mut UnixStream) -> Vec<u8> {
    let (mut all, mut buf) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut buf) {
            Ok(0) => return all,
            Ok(n) => all.extend(&buf[..n]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return all,
            // Closed with something unread.
            Err(_) => return all,
        }
    }
}

#[test]
fn hostile_clients_do_no_harm() {
    let dir = Scratch::new("gdb-hostile");
    let Some(command) = on("soft") else { return };
    let mut machine = guest(command, &dir, "button", &[], &[]);
    machine.expect("PROBE");
    let connect = || {
        let stream = until("the debug server", || UnixStream::connect(dir.path("gdb")).ok());
        stream.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
        stream
    };
    let mut says: Vec<Vec<u8>> = [
        "m0,ffffffffffffffff",
        "mffffffffffffffff,10",
        "mffffffffffffff00,1000",
        "m7fffffffffffffff,8",
        "m,",
        "m-1,1",
        "M0,4:00",
        "Mffffffffffffffff,2:0000",
        "X0,ffffffffffffffff:",
        "Xffffffffffffffff,1:a",
        "G",
        "G00",
        "p",
        "pffff",
        "p40",
        "P10=00",
        "Pffffffffffffffff=0",
        "vCont;",
        "vCont;s",
        "vCont;s:999;c:p1.-1",
        "vCont;r0,0:1",
        "vCont;t",
        "Z0,ffffffffffffffff,1",
        "Z9,0,1",
        "Z2,0,ffffffffffffffff",
        "Z2,ffffffffffffffff,2",
        "Z2,0,0",
        "z0,0,0",
        "Hg999",
        "Hc0",
        "T999",
        "qRcmd,",
        "qRcmd,zz",
        "qXfer:features:read:target.xml:ffffffffffffffff,ffffffffffffffff",
        "qXfer:features:read:../etc/passwd:0,fff",
        "qThreadExtraInfo,999",
        "qSupported:",
        "vKill;",
        "vRun",
        "R",
        "!",
        "",
        "QStartNoAckMode",
        "bc",
        "k0",
        "D;999",
        "vMustReplyEmpty",
        "s0",
        "c0",
    ]
    .map(|body| packet(body.as_bytes()))
    .into();
    says.push(vec![b'$'; 100_000]);
    says.push([b"$".to_vec(), vec![b'm'; 1 << 20]].concat());
    says.push(b"$m0,4#00$m0,4#zz\x03\x03\x03---+++".to_vec());
    says.push((0..=255).cycle().take(20_000).collect());
    // Pseudo-random bytes, and packets of them.
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..60 {
        let body: Vec<u8> = (0..random() % 200).map(|_| random() as u8).collect();
        let kinds = b"mMXGpPZzvqQHTcsD?";
        let kind = kinds[random() as usize % kinds.len()];
        let hex: Vec<u8> = body.iter().map(|byte| b"0123456789abcdef,;:="[usize::from(byte % 20)]).collect();
        says.push(body.clone());
        says.push(packet(&[&[kind][..], &hex].concat()));
    }
    for say in says {
        // A guest that was killed would be gone for the next one.
        if say.starts_with(b"$vKill") || say.starts_with(b"$k") {
            continue;
        }
        let mut stream = connect();
        // It may be sent away before it has said all.
        let _ = stream.write_all(&say);
        heard(&mut stream);
    }
    // Half open, one byte at a time, and a second one at the same time.
    let mut first = connect();
    first.write_all(b"$m0").expect("the server hears");
    let mut second = connect();
    assert_eq!(heard(&mut second), b"", "there is one client at a time");
    assert!(matches!(second.read(&mut [0]), Ok(0) | Err(_)));
    first.write_all(b",4#fd").expect("the server hears");
    let answer = heard(&mut first);
    assert!(answer.starts_with(b"+$") && answer.len() > 5, "{answer:?}");
    // What they wrote may have been the end of the guest, but not of the machine.
    machine.kill();
}

#[test]
fn a_port_in_use_is_an_error_like_bhyves() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let dir = Scratch::new("gdb-port");
    let place = format!("w127.0.0.1:{port}");
    let mut command = Command::new(program());
    let run_dir = dir.path("run");
    command.args(["--run-dir", &run_dir, "bhyve", "-l", "bootrom,bios", "-m", "64", "-G", &place, "gdb-port"]);
    let ended = Run::of(command, 60).wait();
    let line = format!("debug.address: 127.0.0.1:{port}: ");
    assert!(ended.status == 4 && ended.stderr.contains(&line), "{} {}", ended.status, ended.stderr);
}
