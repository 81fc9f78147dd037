//! A server with scripted clients over a UNIX socket, and an adapter that the test paints.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::{Receiver, channel};

use emu::bench::{Bench, Rng, fuzz_cases};
use emu::{Backends, Device, Display, Event, ResetKind, State, TextScreen, Tiles};
use flate2::{Decompress, FlushDecompress};

use super::format::{Converter, Format};
use super::region::Rect;
use super::*;
use crate::listen::Place;

/// An adapter that shows a picture of the test's.
struct Canvas(Arc<Mutex<Picture>>, Arc<AtomicUsize>, ());

impl Display for Canvas {
    fn text(&self) -> Option<TextScreen> {
        None
    }
    fn picture(&self) -> Picture {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.lock().unwrap().clone()
    }
}

impl Device for Canvas {
    fn display(&mut self) -> Option<&mut dyn Display> {
        Some(self)
    }
    fn reset(&mut self, _: ResetKind) {}
    fn state(&mut self) -> &mut dyn State {
        &mut self.2
    }
}

/// A keyboard whose guest reads at once.
struct Keyboard(Arc<Mutex<Vec<(u16, bool)>>>, ());

impl Device for Keyboard {
    fn event(&mut self, event: Event) {
        if let Event::Key(code, down) = event {
            self.0.lock().unwrap().push((code, down));
        }
    }
    fn reset(&mut self, _: ResetKind) {}
    fn state(&mut self) -> &mut dyn State {
        &mut self.1
    }
}

struct Rig {
    b: Bench,
    picture: Arc<Mutex<Picture>>,
    looks: Arc<AtomicUsize>,
    keys: Arc<Mutex<Vec<(u16, bool)>>>,
    moves: Receiver<(i32, i32, i32, u8)>,
    first: Receiver<()>,
    path: std::path::PathBuf,
    _server: Server,
}

fn rig(name: &str, settings: Settings) -> Rig {
    let b = Bench::new();
    let mut rng = Rng::new(5);
    // Some of it has few colours, some many.
    let pixel = |n: usize| match (n % 200, n / 200) {
        (0..70, _) => 0x12_3456,
        (70..130, y) if y < 60 => [0, 0xff_ffff, 0xaa_0000][n / 3 % 3],
        _ => rng.next() as u32 & 0xff_ffff,
    };
    let picture = Picture { width: 200, height: 100, pixels: (0..20_000).map(pixel).collect() };
    let (picture, looks) = (Arc::new(Mutex::new(picture)), Arc::default());
    let canvas = Canvas(picture.clone(), Arc::clone(&looks), ());
    let adapter = b.part(|_| Box::new(canvas));
    let (typist, mut hands) = Typist::start(&b.machine, Box::new(|| true));
    let keys: Arc<Mutex<Vec<(u16, bool)>>> = Arc::default();
    let log = keys.clone();
    let keyboard = b.machine.plug_with("keyboard", None, Backends::default(), |slot| {
        hands.attach(slot.cell());
        hands.want(true);
        hands.lights(2);
        Ok(Box::new(Keyboard(log, ())))
    });
    keyboard.unwrap();
    let path = std::env::temp_dir().join(format!("bhyve-rs-vnc-{name}-{}", std::process::id()));
    let listener = Listener::open(&Place::Unix(path.clone())).unwrap();
    let (moved, moves) = channel();
    let moves_it = move |m: Motion| _ = moved.send((m.dx, m.dy, m.wheel, m.buttons));
    let pointer = Pointer { moves: Box::new(moves_it), is_absolute: Arc::default() };
    let guest = Guest { adapter, typist, pointer, layout: Layout::default() };
    let (is_in, first) = channel();
    let server = Server::start(vec![listener], settings, guest, move || _ = is_in.send(())).unwrap();
    Rig { b, picture, looks, keys, moves, first, path, _server: server }
}

impl Rig {
    fn connect(&self) -> Viewer {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Viewer {
            stream,
            size: (0, 0),
            format: Format::OWN,
            shown: Vec::new(),
            zlib: Decompress::new(true),
            lights: None,
        }
    }

    /// A viewer that is in.
    fn viewer(&self) -> Viewer {
        let mut viewer = self.connect();
        viewer.hello(8, None).unwrap();
        viewer
    }

    /// The keys that were pressed, when there are so many.
    fn keys(&self, n: usize) -> Vec<(u16, bool)> {
        let end = Instant::now() + Duration::from_secs(20);
        while self.keys.lock().unwrap().len() < n {
            assert!(Instant::now() < end, "{:?}", self.keys.lock().unwrap());
            std::thread::yield_now();
            self.b.advance(5_000_000);
        }
        std::mem::take(&mut self.keys.lock().unwrap())
    }
}

/// A client that decodes what it is sent.
struct Viewer {
    stream: UnixStream,
    size: (usize, usize),
    format: Format,
    /// Values in its format.
    shown: Vec<u32>,
    zlib: Decompress,
    lights: Option<u8>,
}

impl Viewer {
    fn read<const N: usize>(&mut self) -> [u8; N] {
        let mut buf = [0; N];
        self.stream.read_exact(&mut buf).unwrap();
        buf
    }

    fn read_vec(&mut self, len: usize) -> Vec<u8> {
        let mut buf = vec![0; len];
        self.stream.read_exact(&mut buf).unwrap();
        buf
    }

    fn long(&mut self) -> u32 {
        u32::from_be_bytes(self.read())
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The handshake of a minor version, up to the server's name, or the reason why not.
    fn hello(&mut self, minor: u8, password: Option<&str>) -> Result<String, String> {
        assert_eq!(&self.read(), b"RFB 003.008\n");
        self.send(format!("RFB 003.00{minor}\n").as_bytes());
        let kind = if minor == 3 {
            self.long() as u8
        } else {
            let [1, kind] = self.read() else { panic!("one kind") };
            self.send(&[kind]);
            kind
        };
        if kind == VNC {
            let challenge = self.read();
            self.send(&auth::answer(password.unwrap_or_default(), &challenge));
        }
        if (kind == VNC || minor == 8) && self.long() != 0 {
            let len = if minor == 8 { self.long() as usize } else { 0 };
            return Err(String::from_utf8(self.read_vec(len)).unwrap());
        }
        self.send(&[0]);
        let [w1, w0, h1, h0] = self.read();
        self.resize(usize::from(u16::from_be_bytes([w1, w0])), usize::from(u16::from_be_bytes([h1, h0])));
        assert_eq!(self.read(), Format::OWN.bytes());
        let len = self.long() as usize;
        Ok(String::from_utf8(self.read_vec(len)).unwrap())
    }

    fn resize(&mut self, width: usize, height: usize) {
        self.size = (width, height);
        self.shown = vec![0; width * height];
    }

    fn encodings(&mut self, list: &[i32]) {
        let mut message = vec![2, 0];
        message.extend((list.len() as u16).to_be_bytes());
        message.extend(list.iter().flat_map(|n| n.to_be_bytes()));
        self.send(&message);
    }

    fn set_format(&mut self, format: Format) {
        self.send(&[&[0, 0, 0, 0][..], &format.bytes()].concat());
        self.format = format;
    }

    fn ask(&mut self, incremental: bool) {
        self.send(&[&[3, u8::from(incremental)][..], &Rect::whole(self.size).bytes()].concat());
    }

    /// Asks for the whole screen and waits for it.
    fn take(&mut self) -> Vec<i32> {
        self.ask(false);
        self.update()
    }

    fn pixel(&mut self, compressed: bool) -> u32 {
        let len = if compressed { Converter::new(self.format).compressed_len() } else { self.format.bits as usize / 8 };
        let bytes = self.read_vec(len);
        value(self.format, &bytes)
    }

    fn fill(&mut self, rect: Rect, value: u32) {
        for y in rect.y..rect.y + rect.height {
            self.shown[y * self.size.0 + rect.x..][..rect.width].fill(value);
        }
    }

    /// The next update; the encodings that were in it.
    fn update(&mut self) -> Vec<i32> {
        loop {
            match self.read::<1>()[0] {
                0 => break,
                1 => {
                    assert_eq!(self.read(), [0, 0, 0, 1, 0]);
                    self.read_vec(6 * 256);
                }
                other => panic!("message {other}"),
            }
        }
        let [0, n1, n0] = self.read() else { panic!("padding") };
        (0..u16::from_be_bytes([n1, n0])).map(|_| self.rect()).collect()
    }

    fn rect(&mut self) -> i32 {
        let rect = Rect::read(&self.read());
        let kind = i32::from_be_bytes(self.read());
        match kind {
            0 => {
                let size = usize::from(self.format.bits / 8);
                let bytes = self.read_vec(rect.width * rect.height * size);
                let values: Vec<u32> = bytes.chunks(size).map(|bytes| value(self.format, bytes)).collect();
                for (n, line) in values.chunks(rect.width).enumerate() {
                    self.shown[(rect.y + n) * self.size.0 + rect.x..][..rect.width].copy_from_slice(line);
                }
            }
            5 => self.hextile(rect),
            16 => self.zrle(rect),
            -223 => self.resize(rect.width, rect.height),
            -308 => {
                let [1, ..] = self.read::<20>() else { panic!("one screen") };
                if rect.x == 0 && (rect.width, rect.height) != self.size {
                    self.resize(rect.width, rect.height);
                }
            }
            -261 => self.lights = Some(self.read::<1>()[0]),
            -257 | -258 => {}
            other => panic!("encoding {other}"),
        }
        kind
    }

    fn hextile(&mut self, rect: Rect) {
        let (mut back, mut fore) = (0, 0);
        for y in (rect.y..rect.y + rect.height).step_by(16) {
            for x in (rect.x..rect.x + rect.width).step_by(16) {
                let tile = Rect { x, y, width: 16, height: 16 }.common(rect);
                let flags = self.read::<1>()[0];
                if flags & 1 != 0 {
                    for at in 0..tile.width * tile.height {
                        let (dx, dy) = (at % tile.width, at / tile.width);
                        self.shown[(y + dy) * self.size.0 + x + dx] = self.pixel(false);
                    }
                    continue;
                }
                if flags & 2 != 0 {
                    back = self.pixel(false);
                }
                if flags & 4 != 0 {
                    fore = self.pixel(false);
                }
                self.fill(tile, back);
                let count = if flags & 8 != 0 { self.read::<1>()[0] } else { 0 };
                for _ in 0..count {
                    let colour = if flags & 16 != 0 { self.pixel(false) } else { fore };
                    let [at, size] = self.read().map(usize::from);
                    let part =
                        Rect { x: x + (at >> 4), y: y + (at & 15), width: (size >> 4) + 1, height: (size & 15) + 1 };
                    assert_eq!(part.common(tile), part);
                    self.fill(part, colour);
                }
            }
        }
    }

    fn zrle(&mut self, rect: Rect) {
        let len = self.long() as usize;
        let packed = self.read_vec(len);
        let mut plain = Vec::with_capacity(1 << 20);
        let before = self.zlib.total_in();
        self.zlib.decompress_vec(&packed, &mut plain, FlushDecompress::Sync).unwrap();
        assert_eq!(self.zlib.total_in() - before, len as u64);
        let mut at = 0;
        let size = Converter::new(self.format).compressed_len();
        let format = self.format;
        let byte = |n: &mut usize| {
            *n += 1;
            plain[*n - 1]
        };
        for y in (rect.y..rect.y + rect.height).step_by(64) {
            for x in (rect.x..rect.x + rect.width).step_by(64) {
                let tile = Rect { x, y, width: 64, height: 64 }.common(rect);
                let pixel = |at: &mut usize| {
                    let bytes: Vec<u8> = (0..size).map(|_| byte(at)).collect();
                    value(format, &bytes)
                };
                let kind = { *plain.get(at).unwrap() };
                at += 1;
                let colours: Vec<u32> = match kind {
                    0 | 128 => Vec::new(),
                    n => (0..n & 127).map(|_| pixel(&mut at)).collect(),
                };
                let total = tile.width * tile.height;
                let mut values = Vec::new();
                while values.len() < total {
                    match kind {
                        0 => values.push(pixel(&mut at)),
                        1 => values.push(colours[0]),
                        2..=16 => {
                            let bits = if kind == 2 {
                                1
                            } else if kind <= 4 {
                                2
                            } else {
                                4
                            };
                            let x = values.len() % tile.width;
                            if (x * bits).is_multiple_of(8) {
                                at += 1;
                            }
                            let shift = 8 - bits - x * bits % 8;
                            values.push(colours[usize::from(plain[at - 1] >> shift) & ((1 << bits) - 1)]);
                        }
                        _ => {
                            let (colour, runs) = if kind == 128 {
                                (pixel(&mut at), true)
                            } else {
                                at += 1;
                                (colours[usize::from(plain[at - 1] & 127)], plain[at - 1] & 128 != 0)
                            };
                            let mut len = 1;
                            if runs {
                                loop {
                                    at += 1;
                                    len += usize::from(plain[at - 1]);
                                    if plain[at - 1] != 255 {
                                        break;
                                    }
                                }
                            }
                            values.extend(std::iter::repeat_n(colour, len));
                        }
                    }
                }
                assert_eq!(values.len(), total);
                for (n, line) in values.chunks(tile.width).enumerate() {
                    self.shown[(y + n) * self.size.0 + x..][..tile.width].copy_from_slice(line);
                }
            }
        }
        assert_eq!(at, plain.len());
    }

    /// Whether it shows a picture, in its format.
    fn shows(&self, picture: &Picture) -> bool {
        let converter = Converter::new(self.format);
        (picture.width, picture.height) == self.size
            && picture.pixels.iter().map(|p| converter.value(*p)).eq(self.shown.iter().copied())
    }

    /// Whether the server has ended the connection.
    fn is_out(&mut self) -> bool {
        let mut buf = [0; 4096];
        loop {
            match self.stream.read(&mut buf) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(e) => return e.kind() == ErrorKind::ConnectionReset,
            }
        }
    }
}

/// The value that bytes of a pixel, or of a compressed one, stand for.
fn value(format: Format, bytes: &[u8]) -> u32 {
    let mut four = [0; 4];
    let high = bytes.len() == 3 && format.parts.iter().all(|(_, shift)| *shift >= 8);
    match format.big_endian {
        true => {
            let at = if high { 0 } else { 4 - bytes.len() };
            four[at..at + bytes.len()].copy_from_slice(bytes);
            u32::from_be_bytes(four)
        }
        false => {
            four[usize::from(high)..][..bytes.len()].copy_from_slice(bytes);
            u32::from_le_bytes(four)
        }
    }
}

fn formats() -> [Format; 7] {
    let own = Format::OWN;
    let parts = |r, g, b| [(255, r), (255, g), (255, b)];
    let r565 = Format { bits: 16, depth: 16, parts: [(31, 11), (63, 5), (31, 0)], ..own };
    [
        own,
        Format { big_endian: true, ..own },
        Format { parts: parts(24, 16, 8), ..own },
        Format { parts: parts(0, 8, 16), big_endian: true, depth: 32, ..own },
        r565,
        Format { big_endian: true, ..r565 },
        Format { bits: 8, depth: 8, parts: [(7, 0), (7, 3), (3, 6)], ..own },
    ]
}

#[test]
fn every_encoding_shows_the_picture_in_every_format() {
    let rig = rig("encodings", Settings::default());
    let picture = rig.picture.lock().unwrap().clone();
    let mut viewer = rig.viewer();
    for encoding in [0, 5, 16] {
        viewer.encodings(&[encoding]);
        for format in formats() {
            viewer.set_format(format);
            viewer.shown.fill(1);
            assert!(viewer.take().iter().all(|kind| *kind == encoding));
            assert!(viewer.shows(&picture), "encoding {encoding}, {format:?}");
        }
    }
}

#[test]
fn only_what_has_changed_is_sent_and_nobody_looks_for_nobody() {
    let rig = rig("changes", Settings { name: "fw1".to_owned(), ..Settings::default() });
    let mut viewer = rig.connect();
    assert_eq!(viewer.hello(8, None).as_deref(), Ok("fw1"));
    rig.first.recv().unwrap();
    viewer.take();
    let looks = rig.looks.load(Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(rig.looks.load(Ordering::Relaxed), looks, "no update was asked for");
    viewer.ask(true);
    rig.picture.lock().unwrap().pixels[50 * 200 + 33] ^= 1;
    assert_eq!(viewer.update(), [0], "one rectangle");
    assert!(viewer.shows(&rig.picture.lock().unwrap()));
}

#[test]
fn old_clients_come_in_and_each_needs_a_password_if_there_is_one() {
    let plain = rig("versions", Settings::default());
    for minor in [3, 7, 8, 5] {
        assert!(plain.connect().hello(if minor == 5 { 3 } else { minor }, None).is_ok());
    }
    let settings = Settings {
        password: Some("open sesame".to_owned()),
        view_password: Some("look".to_owned()),
        ..Settings::default()
    };
    let closed = rig("passwords", settings);
    assert_eq!(closed.connect().hello(8, Some("wrong")), Err("the password is wrong".to_owned()));
    assert!(closed.connect().hello(3, Some("wrong")).is_err());
    for minor in [3, 7, 8] {
        assert!(closed.connect().hello(minor, Some("open ses")).is_ok());
    }
    let mut looker = closed.connect();
    looker.hello(8, Some("look")).unwrap();
    looker.send(&[4, 1, 0, 0, 0, 0, 0, 0x61]);
    looker.send(&[5, 1, 0, 9, 0, 9]);
    looker.take();
    assert!(looker.shows(&closed.picture.lock().unwrap()));
    assert!(closed.moves.try_recv().is_err());
    let mut typing = closed.connect();
    typing.hello(8, Some("open sesame")).unwrap();
    typing.send(&[4, 1, 0, 0, 0, 0, 0, 0x62]);
    assert_eq!(closed.keys(1), [(0x30, true)]);
}

#[test]
fn keys_and_movements_reach_the_guest_and_are_let_go_at_the_end() {
    let rig = rig("keys", Settings::default());
    let mut viewer = rig.viewer();
    viewer.send(&[4, 1, 0, 0, 0, 0, 0, 0x61]);
    viewer.send(&[255, 0, 0, 1, 0, 0, 0xff, 0x52, 0, 0, 0, 0xc8]);
    assert_eq!(rig.keys(2), [(0x1e, true), (0x148, true)]);
    viewer.send(&[5, 0, 0, 100, 0, 50]);
    assert_eq!(rig.moves.recv().unwrap(), (0, 0, 0, 0));
    viewer.send(&[5, 4, 0, 110, 0, 45]);
    assert_eq!(rig.moves.recv().unwrap(), (10, 5, 0, 2));
    drop(viewer);
    assert_eq!(rig.keys(2), [(0x148, false), (0x1e, false)]);
    assert_eq!(rig.moves.recv().unwrap(), (0, 0, 0, 0), "the button is up");
}

#[test]
fn the_extensions_answer() {
    let rig = rig("extensions", Settings::default());
    let mut viewer = rig.viewer();
    viewer.encodings(&[16, -223, -308, -258, -261, -257, -312, -313]);
    // A fence that asks, and the end of continuous updates: the server has both.
    assert_eq!(viewer.read(), [248, 0, 0, 0, 0x80, 0, 0, 0, 0, 150]);
    assert_eq!(viewer.take()[..4], [-308, -258, -257, -261]);
    assert_eq!(viewer.lights, Some(2));
    viewer.send(&[248, 0, 0, 0, 0x80, 0, 0, 0x0b, 2, 7, 8]);
    assert_eq!(viewer.read(), [248, 0, 0, 0, 0, 0, 0, 3, 2, 7, 8]);
    // Who wants another size hears that it cannot be.
    viewer.send(&[251, 0, 3, 32, 2, 88, 1, 0]);
    viewer.send(&[0; 16]);
    viewer.ask(true);
    assert_eq!((viewer.update(), viewer.size), (vec![-308], (200, 100)));
    // The screen grows.
    *rig.picture.lock().unwrap() = Picture { width: 320, height: 200, pixels: vec![5; 64_000] };
    viewer.ask(true);
    assert_eq!((viewer.update(), viewer.size), (vec![-308], (320, 200)));
    // From now on nothing is asked for.
    viewer.send(&[150, 1, 0, 0, 0, 0, 255, 255, 255, 255]);
    viewer.update();
    assert!(viewer.shows(&rig.picture.lock().unwrap()));
    for n in 0..3 {
        rig.picture.lock().unwrap().pixels[n] = 9;
        viewer.update();
        assert!(viewer.shows(&rig.picture.lock().unwrap()));
    }
    viewer.send(&[150, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(viewer.read(), [150]);
}

#[test]
fn a_client_that_knows_no_other_size_sees_what_it_has_room_for() {
    let rig = rig("sizes", Settings::default());
    let mut viewer = rig.viewer();
    viewer.take();
    *rig.picture.lock().unwrap() = Picture { width: 100, height: 300, pixels: vec![5; 30_000] };
    viewer.ask(true);
    viewer.update();
    let want: Vec<u32> = (0..20_000).map(|n| if n % 200 < 100 { 5 } else { 0 }).collect();
    assert!(viewer.shown == want);
    *rig.picture.lock().unwrap() = Picture::default();
    viewer.ask(true);
    viewer.update();
    assert!(viewer.shown.iter().all(|value| *value == 0), "the adapter is not set up");
}

#[test]
fn a_slow_client_keeps_no_other_waiting_and_costs_no_memory() {
    let rig = rig("slow", Settings::default());
    let big = Picture { width: 2048, height: 1024, pixels: vec![3; 2 << 20] };
    *rig.picture.lock().unwrap() = big.clone();
    let mut slow: Vec<Viewer> = (0..4).map(|_| rig.viewer()).collect();
    slow.iter_mut().for_each(|viewer| viewer.ask(false));
    let mut viewer = rig.viewer();
    for n in 0..3 {
        rig.picture.lock().unwrap().pixels[n] = 4;
        viewer.encodings(&[16]);
        viewer.take();
    }
    assert!(viewer.shows(&rig.picture.lock().unwrap()));
    // It gets all of it when it takes it, and then what has changed meanwhile.
    slow[0].update();
    slow[0].ask(true);
    slow[0].update();
    assert!(slow[0].shows(&rig.picture.lock().unwrap()));
}

#[test]
fn who_sends_nonsense_is_dismissed_and_nobody_else() {
    let rig = rig("nonsense", Settings::default());
    let mut good = rig.viewer();
    let mut text = vec![6, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
    text.extend([0; 100]);
    let mut absurd = [&[0, 0, 0, 0][..], &Format::OWN.bytes()].concat();
    absurd[4] = 13;
    let nonsense: [&[u8]; 6] =
        [&text, &absurd, &[99], &[2, 0, 0xff, 0xff], &[255, 1, 0, 0], &[248, 0, 0, 0, 0, 0, 0, 0, 65]];
    for bytes in nonsense {
        let mut bad = rig.viewer();
        bad.send(bytes);
        assert!(bad.is_out(), "{bytes:?}");
    }
    for greeting in [&b"GET / HTTP/1.1\r\n"[..], b"RFB 002.000\n", b"RFB 0x3.008\n"] {
        let mut bad = rig.connect();
        bad.send(greeting);
        assert!(bad.is_out());
    }
    let mut patient = rig.viewer();
    // A text of a size that people copy is skipped.
    let mut text = vec![6, 0, 0, 0, 0, 2, 0, 0];
    text.resize(8 + 0x2_0000, 3);
    patient.send(&text);
    patient.take();
    good.take();
    assert!(good.shows(&rig.picture.lock().unwrap()) && patient.shows(&rig.picture.lock().unwrap()));
}

#[test]
fn hundreds_who_stand_at_the_door_keep_nobody_out() {
    let rig = rig("door", Settings::default());
    let mut inside = rig.viewer();
    let mut crowd: Vec<Viewer> = Vec::new();
    for _ in 0..200 {
        crowd.push(rig.connect());
    }
    let mut late = rig.viewer();
    late.take();
    inside.take();
    assert!(late.shows(&rig.picture.lock().unwrap()) && inside.shows(&rig.picture.lock().unwrap()));
    assert!(crowd[0].is_out());
}

#[test]
fn no_bytes_of_a_client_do_harm() {
    let rig = rig("fuzz", Settings::default());
    let mut rng = Rng::new(11);
    for _ in 0..fuzz_cases().clamp(20, 2000) {
        let mut bad = rig.connect();
        let mut bytes = Vec::new();
        if !rng.one_in(4) {
            bytes.extend(b"RFB 003.008\n\x01\x01");
        }
        for _ in 0..rng.below(30) {
            let kind = rng.pick(&[0u8, 2, 3, 4, 5, 6, 150, 248, 251, 255, 77]);
            let len = match kind {
                0 => 20,
                2 => 4 + 4 * rng.below(6),
                3 | 150 => 10,
                4 | 6 => 8,
                5 => 6,
                248 => 9 + rng.below(8),
                251 => 8 + 16 * rng.below(3),
                255 => 12,
                _ => 1,
            };
            let start = bytes.len();
            bytes.push(kind);
            bytes.extend((1..len).map(|_| rng.value() as u8));
            match kind {
                2 => (bytes[start + 2], bytes[start + 3]) = (0, ((len - 4) / 4) as u8),
                0 if !rng.one_in(4) => bytes[start + 4..].copy_from_slice(&rng.pick(&formats()).bytes()),
                6 => bytes[start + 4..start + 7].fill(0),
                248 => bytes[start + 8] = (len - 9) as u8,
                251 => bytes[start + 6] = ((len - 8) / 16) as u8,
                _ => {}
            }
        }
        // It may be out before it has said everything.
        let _ = bad.stream.write_all(&bytes);
        let _ = bad.stream.set_nonblocking(true);
        let _ = bad.stream.read(&mut [0; 4096]);
    }
    let mut good = rig.viewer();
    good.take();
    assert!(good.shows(&rig.picture.lock().unwrap()));
}

#[test]
fn tiles_of_another_size_are_added_as_far_as_they_go() {
    let mut small = Tiles::new(40, 40, false);
    small.add(&Tiles::new(400, 20, true));
    assert!(small.has(2, 1) && !small.has(0, 2));
}
