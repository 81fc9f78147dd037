//! Whole-machine tests: the program as a user runs it, with guests that we did not write.
//!
//! [`Run`] starts `bhyve-rs` with a console on standard input and output, waits for text, types, and looks at the exit
//! status. The program is `target/release/bhyve-rs`, or `$BHYVE_RS`. Guests come from `tests/guests/fetch`; one that is
//! not there makes a test a *named skip*: [`guest`] writes its name to the file `$BHYVE_RS_SKIPS`, which `tests/run`
//! shows.

pub mod net;

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// The folder above this one.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().expect("a folder above").to_owned()
}

/// The program under test.
///
/// # Panics
/// When it has not been built.
pub fn program() -> PathBuf {
    let path = std::env::var_os("BHYVE_RS").map_or_else(|| root().join("target/release/bhyve-rs"), PathBuf::from);
    assert!(path.exists(), "{} is not there: run tests/run, or cargo build --release", path.display());
    path
}

/// A file of the guest material, or `None` after a named skip.
pub fn guest(name: &str) -> Option<String> {
    let dir = std::env::var_os("BHYVE_RS_GUEST_CACHE").map_or_else(|| root().join("target/guests"), PathBuf::from);
    let path = dir.join(name);
    if path.exists() {
        return Some(path.display().to_string());
    }
    skip(name);
    None
}

/// Notes that the test that runs on this thread is skipped for want of something.
///
/// # Panics
/// When that cannot be noted.
pub fn skip(name: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let line = format!("skipped: {test}: no {name}\n");
    eprint!("{line}");
    if let Some(file) = std::env::var_os("BHYVE_RS_SKIPS") {
        let mut file = OpenOptions::new().create(true).append(true).open(file).expect("the list of skips");
        file.write_all(line.as_bytes()).expect("the list of skips");
    }
}

/// The console of a machine that ended.
pub struct Ended {
    /// Exit status.
    pub status: i32,
    /// What came out of the console.
    pub console: String,
    /// What the program said itself.
    pub stderr: String,
}

impl Ended {
    /// The line `RESULT name ...` of a Linux guest, as (verdict, details).
    ///
    /// # Panics
    /// When there is none.
    pub fn result(&self, name: &str) -> (&str, &str) {
        let line = self.console.lines().find_map(|l| l.strip_prefix("RESULT ")?.strip_prefix(name)?.strip_prefix(' '));
        let line = line.unwrap_or_else(|| panic!("no result of {name} in\n{}", self.console));
        line.split_once(' ').unwrap_or((line, ""))
    }

    /// Results that are neither `pass` nor `skip`.
    pub fn failures(&self) -> Vec<&str> {
        let verdict = |l: &str| l.split(' ').nth(2).map(str::to_owned);
        self.console
            .lines()
            .filter(|l| l.starts_with("RESULT ") && !matches!(verdict(l).as_deref(), Some("pass" | "skip")))
            .collect()
    }

    /// The line `state ...` that `--until` prints.
    ///
    /// # Panics
    /// When there is none.
    pub fn state(&self) -> &str {
        self.stderr.lines().find(|l| l.starts_with("state ")).unwrap_or_else(|| panic!("no state in {}", self.stderr))
    }

    /// The number before `instructions` in the report of `--stats`.
    ///
    /// # Panics
    /// When there is no report.
    pub fn instructions(&self) -> u64 {
        let words: Vec<&str> = self.stderr.split_whitespace().collect();
        let at = words.iter().position(|w| *w == "instructions,").expect("a report of --stats");
        words[at - 1].parse().expect("a number of instructions")
    }
}

/// A process that does not outlive its test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A machine that runs.
pub struct Run {
    child: Process,
    output: Receiver<Vec<u8>>,
    console: Vec<u8>,
    seen: usize,
    deadline: Instant,
    errors: std::thread::JoinHandle<String>,
}

impl Run {
    /// Starts the program with these arguments. All that is waited for must come within `seconds`.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start<S: AsRef<std::ffi::OsStr>>(args: &[S], seconds: u64) -> Run {
        let mut command = Command::new(program());
        command.args(args);
        Run::of(command, seconds)
    }

    /// Starts a program; as [`Run::start`].
    ///
    /// # Panics
    /// When it does not start.
    pub fn of(mut command: Command, seconds: u64) -> Run {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let (tx, output) = channel();
        let mut out = child.stdout.take().expect("piped");
        std::thread::spawn(move || {
            let mut buf = [0; 4096];
            while let Ok(n @ 1..) = out.read(&mut buf) {
                if tx.send(buf[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        let mut err = child.stderr.take().expect("piped");
        let errors = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = err.read_to_string(&mut text);
            text
        });
        let deadline = Instant::now() + Duration::from_secs(seconds);
        Run { child: Process(child), output, console: Vec::new(), seen: 0, deadline, errors }
    }

    /// Waits until `text` comes after what was waited for before.
    ///
    /// # Panics
    /// When it does not come in time, or the program ends.
    pub fn expect(&mut self, text: &str) {
        loop {
            let new = String::from_utf8_lossy(&self.console[self.seen..]).into_owned();
            if let Some(at) = new.find(text) {
                self.seen += at + text.len();
                return;
            }
            if !self.more() {
                panic!("no {text:?} in\n{}", self.text());
            }
        }
    }

    /// Types.
    ///
    /// # Panics
    /// When the program does not read.
    pub fn send(&mut self, text: &str) {
        let stdin = self.child.0.stdin.as_mut().expect("piped");
        stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush()).expect("the program reads its input");
    }

    /// Closes the program's standard input.
    pub fn close_input(&mut self) {
        self.child.0.stdin = None;
    }

    /// Ends the program at once (SIGKILL) and returns what came out of the console.
    pub fn kill(mut self) -> String {
        let _ = self.child.0.kill();
        while self.more() {}
        self.text()
    }

    /// The number of its process.
    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// Sends SIGTERM.
    ///
    /// # Panics
    /// When there is no kill(1).
    pub fn terminate(&self) {
        self.signal("-TERM");
    }

    /// Sends SIGINT.
    ///
    /// # Panics
    /// When there is no kill(1).
    pub fn interrupt(&self) {
        self.signal("-INT");
    }

    fn signal(&self, signal: &str) {
        let pid = self.pid().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status().expect("kill(1)");
        assert!(sent.success());
    }

    /// Waits for the end.
    ///
    /// # Panics
    /// When it does not come in time.
    pub fn wait(mut self) -> Ended {
        while self.more() {}
        let status = self.child.0.wait().expect("the program can be waited for");
        Ended {
            status: status.code().unwrap_or(-1),
            console: self.text(),
            stderr: self.errors.join().expect("standard error"),
        }
    }

    /// What came out of the console so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.console).replace('\r', "")
    }

    /// Takes more output; `false` at its end.
    fn more(&mut self) -> bool {
        match self.output.recv_timeout(self.deadline.saturating_duration_since(Instant::now())) {
            Ok(bytes) => {
                self.console.extend(bytes);
                true
            }
            Err(RecvTimeoutError::Disconnected) => false,
            Err(RecvTimeoutError::Timeout) => {
                panic!("not finished in time; the console so far:\n{}", self.text());
            }
        }
    }
}

/// Runs to the end.
pub fn run<S: AsRef<std::ffi::OsStr>>(args: &[S], seconds: u64) -> Ended {
    Run::start(args, seconds).wait()
}

/// The probe as it was built into the program.
///
/// # Panics
/// When the program was not built here.
pub fn probe() -> String {
    let builds = program().parent().expect("a folder").join("build");
    let found = std::fs::read_dir(&builds).expect("a build").filter_map(|e| {
        let path: PathBuf = e.ok()?.path().join("out/probe.elf");
        Some((std::fs::metadata(&path).ok()?.modified().ok()?, path))
    });
    found.max().map(|(_, p)| p.display().to_string()).expect("the probe was built with the program")
}

/// A directory of a test's own, removed when it is dropped.
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes it; the name must be unique among tests.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("bhyve-rs-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a scratch directory");
        Scratch(path)
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    /// Writes a file into it and returns its path.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.0.join(name), text).expect("a scratch file");
        self.path(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// How long what comes at once may take on a busy host.
pub const SOON: Duration = Duration::from_secs(30);

/// Runs the program to its end, with the control sockets in this directory.
pub fn bhyve_rs(dir: &Scratch, words: &[&str]) -> Ended {
    let run_dir = dir.path("run");
    run(&[&["--run-dir", run_dir.as_str()], words].concat(), 60)
}

/// Tries until it works.
///
/// # Panics
/// When it does not in time.
pub fn until<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + SOON;
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Boots a Debian kernel (`amd64`, `686` or `686-pae`) with the initramfs of the tests, to its end; `None` after a
/// named skip. Guest time does not depend on how busy the host is.
pub fn boot<S: AsRef<str>>(kernel: &str, settings: &[S], args: &str, seconds: u64) -> Option<Ended> {
    let mut words = boot_words(kernel, args)?;
    words.extend(settings.iter().flat_map(|s| ["-o".to_owned(), s.as_ref().to_owned()]));
    Some(run(&words, seconds))
}

/// The arguments that start such a kernel, for more of them to follow; `None` after a named skip.
pub fn boot_words(kernel: &str, args: &str) -> Option<Vec<String>> {
    let image = guest(&format!("linux-{kernel}/vmlinuz"))?;
    let arch = if kernel == "amd64" { "amd64" } else { "i386" };
    let initrd = guest(&format!("initramfs-{arch}.cpio"))?;
    let mut words = vec!["--kernel".to_owned(), image, "--initrd".to_owned(), initrd, "--stats".to_owned()];
    words.extend(["-o".to_owned(), "clock=instructions".to_owned()]);
    words.extend(["--args".to_owned(), format!("console=ttyS0 {args}")]);
    Some(words)
}

/// What tests/guests/src/stream.c makes, by eight bytes.
pub fn numbers() -> impl Iterator<Item = [u8; 8]> {
    let mut x = 88_172_645_463_325_252u64;
    std::iter::repeat_with(move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()
    })
}

/// The first bytes of [`numbers`].
pub fn stream(len: usize) -> Vec<u8> {
    numbers().flatten().take(len).collect()
}
