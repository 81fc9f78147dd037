use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use emu::backend::Chardev;
use emu::bench::Bench;
use emu::{Access, Backends, Device, DeviceCell, Event, ResetKind, Slot, State};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::line::OUTPUT;
use super::*;
use crate::io::{Gate, Io, IoThread};

/// How long a test waits for what should happen at once.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Waits for something that other threads do.
#[track_caller]
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !done() {
        assert!(Instant::now() < end, "{what}: it did not happen");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// A directory that goes with the test.
pub(crate) struct Dir(pub(crate) PathBuf);

impl Dir {
    pub(crate) fn new() -> Dir {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let name = format!("bhyve-rs-host-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Dir(path)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[derive(Default)]
struct Log {
    input: Vec<u8>,
    /// The longest input at a time.
    most: usize,
    ready: usize,
}

/// A device with `room` bytes for input, which it gives back at once if it is `quick`. What is written to it goes to
/// its console; a read says how many bytes are still to go there.
struct Probe {
    console: Box<dyn Chardev>,
    log: Arc<Mutex<Log>>,
    unsent: VecDeque<u8>,
    room: usize,
    quick: bool,
}

impl Probe {
    fn drain(&mut self) {
        let n = self.console.write(self.unsent.make_contiguous());
        self.unsent.drain(..n);
    }
}

impl Device for Probe {
    fn read(&mut self, _region: u32, _offset: u64, _width: u8) -> u64 {
        self.unsent.len() as u64
    }

    /// The guest has read all its input.
    fn write(&mut self, _region: u32, _offset: u64, _width: u8, _value: u64) {
        self.console.want(self.room);
    }

    fn write_many(&mut self, _region: u32, _offset: u64, _width: u8, data: &[u8]) {
        self.unsent.extend(data);
        self.drain();
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Chars(_, bytes) => {
                let mut log = self.log.lock().unwrap();
                log.most = log.most.max(bytes.len());
                log.input.extend(bytes);
                drop(log);
                if self.quick {
                    self.console.want(self.room);
                }
            }
            Event::CharsReady(_) => {
                self.log.lock().unwrap().ready += 1;
                self.drain();
            }
            Event::CharsOpen(..) => {}
            _ => unreachable!(),
        }
    }

    fn reset(&mut self, _kind: ResetKind) {}

    fn state(&mut self) -> &mut dyn State {
        unreachable!()
    }
}

/// A machine with a probe at each console.
pub(crate) struct Rig {
    pub(crate) bench: Bench,
    pub(crate) gate: Arc<Gate>,
    io: Arc<Io>,
    thread: Option<IoThread>,
    commands: Arc<Mutex<Vec<ConsoleCommand>>>,
}

impl Rig {
    pub(crate) fn new() -> Rig {
        let (bench, gate, io) = (Bench::new(), Gate::new(), Io::new().unwrap());
        let thread = Some(IoThread::start_on(&io, &bench.machine.timers, &gate).unwrap());
        gate.open();
        Rig { bench, gate, io, thread, commands: Arc::default() }
    }

    pub(crate) fn io(&self) -> &Arc<Io> {
        &self.io
    }

    fn hook(&self) -> CommandHook {
        let commands = self.commands.clone();
        Arc::new(move |command| commands.lock().unwrap().push(command))
    }

    fn open(&self, spec: &ConsoleSpec, block: bool) -> (Plugged, Description) {
        let (console, description) = open(spec, &self.io, block, &self.hook()).unwrap();
        (self.plug(console, true), description)
    }

    pub(crate) fn plug(&self, console: Box<dyn Chardev>, quick: bool) -> Plugged {
        let log: Arc<Mutex<Log>> = Arc::default();
        let l = log.clone();
        let name = format!("probe{}", self.bench.machine.parts().len());
        let backends = Backends { chardevs: vec![Some(console)], ..Backends::default() };
        let create = move |slot: &mut Slot| {
            let mut console = slot.backends.chardevs.pop().flatten().unwrap();
            console.attach(slot.cell(), 0);
            console.want(16);
            Ok(Box::new(Probe { console, log: l, unsent: VecDeque::new(), room: 16, quick }) as Box<dyn Device>)
        };
        let cell = self.bench.machine.plug_with(&name, None, backends, create).unwrap();
        Plugged { cell, log }
    }

    fn refused(&self, spec: &ConsoleSpec) -> String {
        match open(spec, &self.io, false, &self.hook()) {
            Ok(_) => panic!("{spec:?} is accepted"),
            Err(e) => format!("{e:#}"),
        }
    }
}

pub(crate) struct Plugged {
    cell: Arc<DeviceCell>,
    log: Arc<Mutex<Log>>,
}

impl Plugged {
    pub(crate) fn print(&self, bytes: &[u8]) {
        self.cell.write_many(0, 0, 1, bytes);
    }

    /// Bytes that the console did not take yet.
    pub(crate) fn unsent(&self) -> u64 {
        self.cell.read(0, 0, 8)
    }

    pub(crate) fn take_input(&self) {
        self.cell.write(0, 0, 1, 0);
    }

    pub(crate) fn input(&self) -> Vec<u8> {
        self.log.lock().unwrap().input.clone()
    }

    #[track_caller]
    pub(crate) fn awaits(&self, input: &[u8]) {
        until(&format!("{:?}", String::from_utf8_lossy(input)), || self.input() == input);
    }
}

/// Reads some bytes that must come soon.
#[track_caller]
pub(crate) fn read(from: &mut (impl Read + AsFd)) -> Vec<u8> {
    let mut buf = [0; 65536];
    let limit = PollTimeout::try_from(SOON).unwrap();
    let n = poll(&mut [PollFd::new(from.as_fd(), PollFlags::POLLIN)], limit).unwrap();
    assert!(n > 0, "nothing came");
    let n = from.read(&mut buf).unwrap();
    assert!(n > 0, "the other side has closed");
    buf[..n].to_vec()
}

/// Reads exactly `text`.
#[track_caller]
pub(crate) fn expect(from: &mut (impl Read + AsFd), text: &[u8]) {
    let mut got = Vec::new();
    while got.len() < text.len() {
        got.extend(read(from));
    }
    assert!(got == text, "{:?} came", String::from_utf8_lossy(&got));
}

/// Reads until `tail` has come.
#[track_caller]
pub(crate) fn read_up_to(from: &mut (impl Read + AsFd), tail: &[u8]) -> Vec<u8> {
    let mut got = Vec::new();
    while !got.ends_with(tail) {
        got.extend(read(from));
    }
    got
}

pub(crate) fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

/// Bytes that tell where they belong.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64 / 8).flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect()
}

#[test]
fn a_socket_keeps_output_for_whoever_comes_and_carries_input() {
    let (rig, dir) = (Rig::new(), Dir::new());
    let path = dir.0.join("com1");
    let (com, description) = rig.open(&ConsoleSpec::Unix { path: path.clone() }, false);
    assert_eq!(description.place.as_deref(), path.to_str());
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    com.print(b"early\n");
    let mut client = connect(&path);
    expect(&mut client, b"early\n");
    client.write_all(b"more than sixteen bytes of input").unwrap();
    com.awaits(b"more than sixteen bytes of input");
    assert_eq!(com.log.lock().unwrap().most, 16);
    com.print(b"now\n");
    expect(&mut client, b"now\n");

    drop(client);
    com.print(b"late\n");
    expect(&mut connect(&path), b"late\n");
}

#[test]
fn a_socket_without_client_keeps_the_latest_output_only_and_never_refuses() {
    let (rig, dir) = (Rig::new(), Dir::new());
    let path = dir.0.join("com1");
    let (com, description) = rig.open(&ConsoleSpec::Unix { path: path.clone() }, false);
    let all = pattern(5 * OUTPUT / 2);
    for piece in all.chunks(1000) {
        com.print(piece);
        assert_eq!(com.unsent(), 0);
    }
    assert!(!description.flush(SOON), "nobody takes it");
    expect(&mut connect(&path), &all[all.len() - OUTPUT..]);
}

#[test]
fn a_second_client_takes_the_console_over_and_the_first_is_told() {
    let (rig, dir) = (Rig::new(), Dir::new());
    let path = dir.0.join("com1");
    let (com, _) = rig.open(&ConsoleSpec::Unix { path: path.clone() }, false);
    com.print(b"a");
    let mut first = connect(&path);
    expect(&mut first, b"a");
    com.print(b"b");
    expect(&mut first, b"b");
    let mut second = connect(&path);
    let mut told = String::new();
    first.read_to_string(&mut told).unwrap();
    assert!(told.contains("another client"), "{told:?}");
    com.print(b"c");
    expect(&mut second, b"c");
    second.write_all(b"x").unwrap();
    com.awaits(b"x");
}

#[test]
fn a_slow_client_gets_everything_and_the_device_waits_for_it() {
    let (rig, dir) = (Rig::new(), Dir::new());
    let path = dir.0.join("com1");
    let (com, description) = rig.open(&ConsoleSpec::Unix { path: path.clone() }, false);
    let mut client = connect(&path);
    com.print(b"!");
    expect(&mut client, b"!");
    let all = pattern(2 << 20);
    com.print(&all);
    assert!(com.unsent() > 0, "more than any buffer holds");
    expect(&mut client, &all);
    assert_eq!(com.unsent(), 0);
    assert!(com.log.lock().unwrap().ready > 0);
    assert!(description.flush(SOON));
}

#[test]
fn a_client_that_does_not_read_stops_the_device_for_a_moment_only() {
    let (rig, dir) = (Rig::new(), Dir::new());
    let path = dir.0.join("com1");
    let (com, _) = rig.open(&ConsoleSpec::Unix { path: path.clone() }, false);
    let mut client = connect(&path);
    com.print(b"!");
    expect(&mut client, b"!");
    let all = pattern(2 << 20);
    com.print(&all);
    assert!(com.unsent() > 0);
    until("the client is given up", || com.unsent() == 0);
    // What the kernel's buffer had, a gap, and the latest.
    let got = read_up_to(&mut client, &all[all.len() - 64..]);
    assert!(got.len() >= OUTPUT && got.len() < all.len());
    assert!(got.ends_with(&all[all.len() - OUTPUT..]));
    // It reads again, so nothing more is lost.
    com.print(&all);
    expect(&mut client, &all);
}

#[test]
fn under_the_instruction_clock_a_console_takes_everything_whoever_reads() {
    let (rig, dir) = (Rig::new(), Dir::new());
    let path = dir.0.join("com1");
    let (com, _) = rig.open(&ConsoleSpec::Unix { path: path.clone() }, true);
    let mut client = connect(&path);
    com.print(b"!");
    expect(&mut client, b"!");
    // The device is a thread's of its own, for here printing waits.
    let all = pattern(1 << 20);
    let sent = all.clone();
    let cell = com.cell.clone();
    let guest = std::thread::spawn(move || sent.chunks(16).for_each(|piece| cell.write_many(0, 0, 1, piece)));
    expect(&mut client, &all);
    guest.join().unwrap();
    // Nobody reads this, and it is over in the end.
    all.chunks(16).for_each(|piece| com.print(piece));
    assert_eq!((com.unsent(), com.log.lock().unwrap().ready), (0, 0));
}

#[test]
fn input_waits_while_the_machine_is_paused_and_comes_when_it_goes_on() {
    let (rig, dir) = (Rig::new(), Dir::new());
    let path = dir.0.join("com1");
    let (com, _) = rig.open(&ConsoleSpec::Unix { path: path.clone() }, false);
    rig.gate.close();
    let mut client = connect(&path);
    client.write_all(b"hello").unwrap();
    com.print(b"answer");
    // The thread has served the client, and delivered nothing.
    expect(&mut client, b"answer");
    assert_eq!(com.input(), b"");
    rig.gate.open();
    com.awaits(b"hello");
}

#[test]
fn a_stale_socket_is_replaced_and_anything_else_is_refused_by_name() {
    let (rig, dir) = (Rig::new(), Dir::new());
    let path = dir.0.join("com1");
    let spec = ConsoleSpec::Unix { path: path.clone() };
    let listener = UnixListener::bind(&path).unwrap();
    let why = rig.refused(&spec);
    assert!(why.contains("com1") && why.contains("another process"), "{why}");
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "looking made no client");
    drop(listener);
    let (com, _) = rig.open(&spec, false);
    com.print(b"new");
    expect(&mut connect(&path), b"new");

    let file = dir.0.join("file");
    std::fs::write(&file, "data").unwrap();
    let why = rig.refused(&ConsoleSpec::Unix { path: file.clone() });
    assert!(why.contains("file") && why.contains("no socket"), "{why}");
    assert_eq!(std::fs::read(&file).unwrap(), b"data");
    let why = rig.refused(&ConsoleSpec::Unix { path: dir.0.join("x".repeat(120)) });
    assert!(why.contains("too long"), "{why}");
    let why = rig.refused(&ConsoleSpec::Unix { path: dir.0.join("none/com1") });
    assert!(why.contains("none/com1"), "{why}");
}

#[test]
fn a_socket_goes_with_the_thread_that_serves_it() {
    let (mut rig, dir) = (Rig::new(), Dir::new());
    let path = dir.0.join("com1");
    let (_com, _) = rig.open(&ConsoleSpec::Unix { path: path.clone() }, false);
    assert!(path.exists());
    rig.thread = None;
    assert!(!path.exists());
}

#[test]
fn a_console_whose_device_is_gone_gives_its_socket_back() {
    let (rig, dir) = (Rig::new(), Dir::new());
    let path = dir.0.join("com1");
    let (console, _) = open(&ConsoleSpec::Unix { path: path.clone() }, &rig.io, false, &rig.hook()).unwrap();
    drop(console);
    until("the socket goes", || !path.exists());
}

#[test]
fn tcp_listens_on_loopback_and_elsewhere_only_if_asked() {
    let rig = Rig::new();
    let at = |host: &str, remote| ConsoleSpec::Tcp { host: host.to_owned(), port: 0, remote };
    let (com, description) = rig.open(&at("127.0.0.1", false), false);
    let place = description.place.unwrap();
    let mut client = TcpStream::connect(&place).unwrap();
    com.print(b"out");
    expect(&mut client, b"out");
    client.write_all(b"in").unwrap();
    com.awaits(b"in");
    let why = rig.refused(&ConsoleSpec::Tcp {
        host: "127.0.0.1".to_owned(),
        port: client.peer_addr().unwrap().port(),
        remote: false,
    });
    assert!(why.contains(&place), "{why}");

    let why = rig.refused(&at("0.0.0.0", false));
    assert!(why.contains("0.0.0.0") && why.contains("loopback"), "{why}");
    let (_com, description) = rig.open(&at("0.0.0.0", true), false);
    assert!(description.place.unwrap().starts_with("0.0.0.0:"));
}

#[test]
fn a_pty_survives_its_users_and_echoes_nothing() {
    let (rig, dir) = (Rig::new(), Dir::new());
    let link = dir.0.join("com1");
    let (com, description) = rig.open(&ConsoleSpec::Pty { link: Some(link.clone()) }, false);
    let slave = description.place.clone().unwrap();
    assert_eq!(std::fs::read_link(&link).unwrap().to_str(), Some(slave.as_str()));
    assert!(description.text.contains(&slave) && description.text.contains("com1"), "{}", description.text);
    let user = || OpenOptions::new().read(true).write(true).open(&link).unwrap();
    com.print(b"login: \r\n");
    for n in 0..3 {
        let mut slave = user();
        expect(&mut slave, b"login: \r\n");
        slave.write_all(format!("user {n}\r").as_bytes()).unwrap();
        until("input", || com.input().ends_with(format!("user {n}\r").as_bytes()));
        drop(slave);
        com.print(b"login: \r\n");
    }
    // An echo of the output would be among the input.
    com.awaits(b"user 0\ruser 1\ruser 2\r");
}

#[test]
fn a_pty_that_nobody_reads_keeps_the_latest_output_and_stops_nothing() {
    let rig = Rig::new();
    let (com, description) = rig.open(&ConsoleSpec::Pty { link: None }, false);
    let all = pattern(4 * OUTPUT);
    com.print(&all);
    until("the console goes on", || com.unsent() == 0);
    let mut slave = File::open(description.place.unwrap()).unwrap();
    let got = read_up_to(&mut slave, &all[all.len() - 64..]);
    assert!(got.ends_with(&all[all.len() - OUTPUT..]));
}

#[test]
fn what_a_pty_had_for_a_slow_reader_does_not_go_with_it() {
    let mut rig = Rig::new();
    let (com, description) = rig.open(&ConsoleSpec::Pty { link: None }, false);
    let mut slave = File::open(description.place.clone().unwrap()).unwrap();
    com.print(b"last words");
    assert!(description.flush(SOON));
    let reader = std::thread::spawn(move || {
        std::thread::park_timeout(Duration::from_millis(50));
        read(&mut slave)
    });
    rig.thread = None;
    assert_eq!(reader.join().unwrap(), b"last words");
}

#[test]
fn a_tty_is_raw_while_the_machine_has_it_and_as_it_was_afterwards() {
    use nix::sys::termios::{LocalFlags, OutputFlags, tcgetattr};
    let (mut rig, dir) = (Rig::new(), Dir::new());
    // Our end of a cable.
    let pair = nix::pty::openpty(None, None).unwrap();
    let mut far = File::from(pair.master);
    let path = nix::unistd::ttyname(&pair.slave).unwrap();
    let flags = || tcgetattr(&pair.slave).map(|t| (t.local_flags, t.output_flags)).unwrap();
    let found = flags();
    assert!(found.0.contains(LocalFlags::ICANON | LocalFlags::ECHO));
    let (com, description) = rig.open(&ConsoleSpec::Tty { path: path.clone() }, false);
    assert_eq!(description.place.as_deref(), path.to_str());
    com.print(b"login:\n");
    expect(&mut far, b"login:\n");
    far.write_all(b"a\rb\x03").unwrap();
    com.awaits(b"a\rb\x03");
    assert!(!flags().0.contains(LocalFlags::ECHO) && !flags().1.contains(OutputFlags::OPOST));
    rig.thread = None;
    assert_eq!(flags(), found);

    let file = dir.0.join("file");
    std::fs::write(&file, "").unwrap();
    let why = rig.refused(&ConsoleSpec::Tty { path: file });
    assert!(why.contains("console tty") && why.contains("/file: it is no terminal"), "{why}");
    let why = rig.refused(&ConsoleSpec::Tty { path: dir.0.join("none") });
    assert!(why.contains("/none: No such file"), "{why}");
}

#[cfg(not(target_os = "freebsd"))]
#[test]
fn the_far_end_of_a_null_modem_has_the_other_name() {
    let (rig, dir) = (Rig::new(), Dir::new());
    let (com, description) = rig.open(&ConsoleSpec::Nmdm { path: dir.0.join("nmdm-fw1.1A") }, false);
    let far = dir.0.join("nmdm-fw1.1B");
    assert_eq!(description.place.as_deref(), far.to_str());
    assert!(description.text.contains("nmdm-fw1.1A") && description.text.contains("nmdm-fw1.1B"));
    let mut user = OpenOptions::new().read(true).write(true).open(&far).unwrap();
    com.print(b"login: ");
    expect(&mut user, b"login: ");
    user.write_all(b"root\r").unwrap();
    com.awaits(b"root\r");
    let why = rig.refused(&ConsoleSpec::Nmdm { path: dir.0.join("nmdm0") });
    assert!(why.contains("console nmdm") && why.contains("ends in A or B"), "{why}");
}

#[test]
fn the_link_to_a_pty_replaces_only_a_link_and_goes_with_it() {
    let (mut rig, dir) = (Rig::new(), Dir::new());
    let link = dir.0.join("com1");
    std::fs::write(&link, "data").unwrap();
    let why = rig.refused(&ConsoleSpec::Pty { link: Some(link.clone()) });
    assert!(why.contains("com1") && why.contains("no symbolic link"), "{why}");
    assert_eq!(std::fs::read(&link).unwrap(), b"data");
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink("/dev/pts/none", &link).unwrap();
    let (_com, description) = rig.open(&ConsoleSpec::Pty { link: Some(link.clone()) }, false);
    assert_eq!(std::fs::read_link(&link).unwrap().to_str(), description.place.as_deref());
    rig.thread = None;
    assert!(link.symlink_metadata().is_err());
}

#[test]
fn a_file_is_begun_anew_or_continued() {
    let (rig, dir) = (Rig::new(), Dir::new());
    let path = dir.0.join("log");
    for (append, text) in [(true, "ab"), (true, "abab"), (false, "ab")] {
        let (com, description) = rig.open(&ConsoleSpec::File { path: path.clone(), append }, false);
        com.print(b"a");
        com.print(b"b");
        assert!(description.flush(SOON));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let why = rig.refused(&ConsoleSpec::File { path: dir.0.clone(), append: true });
    assert!(why.contains("regular file") && why.contains(dir.0.to_str().unwrap()), "{why}");
    let why = rig.refused(&ConsoleSpec::File { path: dir.0.join("none/log"), append: false });
    assert!(why.contains("none/log"), "{why}");
}

#[test]
fn no_console_takes_everything() {
    let rig = Rig::new();
    let (com, description) = rig.open(&ConsoleSpec::None, false);
    com.print(&pattern(1 << 20));
    assert_eq!(com.unsent(), 0);
    assert!(description.flush(Duration::ZERO));
}

/// A console on two pipes, and their other ends.
fn piped(rig: &Rig, quick: bool) -> (Plugged, Description, std::io::PipeReader, std::io::PipeWriter) {
    let (input, keys) = std::io::pipe().unwrap();
    let (screen, output) = std::io::pipe().unwrap();
    let line = Line::patient("pipes", false);
    let file = |fd: OwnedFd| File::from(fd);
    super::stdio::start(&line, &rig.io, file(input.into()), file(output.into()), None).unwrap();
    (rig.plug(line.port(), quick), Description::new(String::new(), None, Some(line)), screen, keys)
}

#[test]
fn pipes_have_no_commands_and_their_end_ends_nothing() {
    let rig = Rig::new();
    let (com, description, mut screen, mut keys) = piped(&rig, true);
    keys.write_all(b"~.\n~?\n").unwrap();
    com.awaits(b"~.\n~?\n");
    drop(keys);
    com.print(b"still here");
    expect(&mut screen, b"still here");
    assert!(description.flush(SOON));
    assert!(rig.commands.lock().unwrap().is_empty());
}

#[test]
fn pipes_hold_back_input_until_the_device_wants_it() {
    let rig = Rig::new();
    let (com, _, _screen, mut keys) = piped(&rig, false);
    let all = pattern(6 << 10);
    let sent = all.clone();
    let user = std::thread::spawn(move || keys.write_all(&sent).unwrap());
    let mut taken = 0;
    while taken < all.len() {
        until("some input", || com.input().len() > taken);
        // No more comes before it is asked for.
        taken = com.input().len();
        com.take_input();
    }
    user.join().unwrap();
    assert!(com.input() == all);
    assert_eq!(com.log.lock().unwrap().most, 16);
}

#[test]
fn a_pipe_that_nobody_reads_makes_the_device_wait_for_as_long_as_it_takes() {
    let rig = Rig::new();
    let (com, description, mut screen, _keys) = piped(&rig, true);
    let all = pattern(1 << 20);
    com.print(&all);
    assert!(com.unsent() > 0);
    until("all buffers are full", || !description.flush(Duration::from_millis(1)));
    expect(&mut screen, &all);
    assert_eq!(com.unsent(), 0);
    assert!(description.flush(SOON));
}

#[test]
fn a_pipe_that_is_closed_loses_output_but_stops_nothing() {
    let rig = Rig::new();
    let (com, description, screen, _keys) = piped(&rig, true);
    drop(screen);
    com.print(&pattern(4 * OUTPUT));
    until("the rest", || com.unsent() == 0);
    assert!(description.flush(SOON));
}

#[test]
fn descriptors_that_somebody_made_non_blocking_lose_nothing() {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let rig = Rig::new();
    let (mut far, near) = UnixStream::pair().unwrap();
    let near_out = near.try_clone().unwrap();
    fcntl(&near, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let line = Line::patient("non-blocking", false);
    let file = |fd: OwnedFd| File::from(fd);
    super::stdio::start(&line, &rig.io, file(near.into()), file(near_out.into()), None).unwrap();
    let other = rig.plug(line.port(), true);
    let all = pattern(1 << 20);
    other.print(&all);
    expect(&mut far, &all);
    far.write_all(b"in").unwrap();
    other.awaits(b"in");
}
