//! A client: the protocol's states and messages (RFC 6143 and the community's extensions to it).

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use emu::{Picture, Tiles};

use super::auth;
use super::format::{self, Converter, Format};
use super::hextile;
use super::keys::Hands;
use super::region::{Rect, take};
use super::zrle::Zrle;
use super::{Guest, Settings, Stream};
use crate::pointer::Motion;

/// How long it may take until a client is in.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a client may take nothing of what is sent to it.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a client with a wrong password waits for its answer.
const PENALTY: Duration = Duration::from_secs(1);
/// The longest message that is kept; cut text is skipped.
const MESSAGE: usize = 8 << 10;
/// Encodings in a list.
const ENCODINGS: usize = 1024;
/// Bytes of cut text that are skipped patiently.
const CUT_TEXT: u32 = 256 << 10;
/// Bytes that are read in one turn.
const TURN: usize = 64 << 10;
/// Bytes that wait to be sent before the next rectangle is made.
const WAITING: usize = 64 << 10;
/// Pixels of a rectangle.
const PIXELS: usize = 64 << 10;
/// Bytes of other messages that may wait for the end of an update.
const LATER: usize = 16 << 10;
/// Level of zlib if the client does not say.
const LEVEL: u32 = 1;

const RAW: i32 = 0;
const HEXTILE: i32 = 5;
const ZRLE: i32 = 16;
const DESKTOP_SIZE: i32 = -223;
const LEVELS: std::ops::RangeInclusive<i32> = -256..=-247;
const POINTER_MOTION: i32 = -257;
const EXTENDED_KEYS: i32 = -258;
const LED_STATE: i32 = -261;
const EXTENDED_DESKTOP_SIZE: i32 = -308;
const FENCE: i32 = -312;
const CONTINUOUS_UPDATES: i32 = -313;

/// The answer to a client that wants another size.
const REFUSAL: i32 = 1;

/// A fence's flags: what it is a barrier for, and that it is no answer.
const FENCE_KINDS: u32 = 7;
const FENCE_REQUEST: u32 = 1 << 31;

/// Why a client has to go.
#[derive(Debug)]
pub(super) struct Gone(pub String);

impl From<io::Error> for Gone {
    fn from(e: io::Error) -> Gone {
        Gone(e.to_string())
    }
}

fn gone<T>(why: &str) -> Result<T, Gone> {
    Err(Gone(why.to_owned()))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Version,
    /// Which kind of security it wants.
    Security,
    Challenge([u8; auth::LEN]),
    /// Its password was wrong; it hears of it then.
    Denied(Instant),
    Init,
    /// It waits to be told of the screen.
    Hello,
    Ready,
}

/// What the client understands.
#[derive(Clone, Copy, Debug, Default)]
struct Extras {
    desktop_size: bool,
    extended_desktop_size: bool,
    lights: bool,
    relative: bool,
    fence: bool,
    continuous: bool,
}

pub(super) struct Client {
    stream: Box<dyn Stream>,
    pub readable: bool,
    pub writable: bool,
    stage: Stage,
    /// The protocol's minor version: 3, 7 or 8.
    minor: u8,
    since: Instant,
    /// It may only look.
    looks_only: bool,
    input: Vec<u8>,
    /// Bytes of cut text that are still to come.
    skip: usize,
    out: Vec<u8>,
    sent: usize,
    /// When it took something last.
    took: Instant,
    /// Messages that wait for the end of an update.
    later: Vec<u8>,
    /// Rectangles of an update that has begun.
    rects: VecDeque<Rect>,
    converter: Converter,
    /// From the next update on.
    next_format: Option<Format>,
    encoding: i32,
    extras: Extras,
    zrle: Option<Zrle>,
    level: u32,
    /// It asked for all that there is, and is to see it as it is now.
    needs_look: bool,
    /// Of which part an update was asked for, and of which it is sent without being asked for.
    wanted: Option<Rect>,
    continuous: Option<Rect>,
    dirty: Tiles,
    /// The size of the screen that the client knows.
    size: (usize, usize),
    /// Pseudo rectangles for the next update.
    announce: Vec<i32>,
    lights: Option<u8>,
    /// What it was told of the pointer.
    absolute: Option<bool>,
    values: Vec<u32>,
    hands: Hands,
    moved: Option<Motion>,
}

impl Client {
    pub fn new(stream: Box<dyn Stream>, looks_only: bool) -> Client {
        let now = Instant::now();
        Client {
            stream,
            readable: true,
            writable: true,
            stage: Stage::Version,
            minor: 8,
            since: now,
            looks_only,
            input: Vec::new(),
            skip: 0,
            out: b"RFB 003.008\n".to_vec(),
            sent: 0,
            took: now,
            later: Vec::new(),
            rects: VecDeque::new(),
            converter: Converter::new(Format::OWN),
            next_format: None,
            encoding: RAW,
            extras: Extras::default(),
            zrle: None,
            level: LEVEL,
            needs_look: false,
            wanted: None,
            continuous: None,
            dirty: Tiles::default(),
            size: (0, 0),
            announce: Vec::new(),
            lights: None,
            absolute: None,
            values: Vec::new(),
            hands: Hands::default(),
            moved: None,
        }
    }

    pub fn stream(&mut self) -> &mut dyn Stream {
        &mut *self.stream
    }

    /// Since when somebody has been at the door who is not in.
    pub fn waits_since(&self) -> Option<Instant> {
        (!self.is_in()).then_some(self.since)
    }

    pub fn is_in(&self) -> bool {
        matches!(self.stage, Stage::Hello | Stage::Ready)
    }

    /// It waits to be told of the screen.
    pub fn needs_hello(&self) -> bool {
        self.stage == Stage::Hello
    }

    /// It could be sent an update now, if there is something new.
    pub fn wants_update(&self) -> bool {
        self.stage == Stage::Ready && !self.is_sending() && (self.wanted.is_some() || self.continuous.is_some())
    }

    fn is_sending(&self) -> bool {
        self.sent < self.out.len() || !self.rects.is_empty()
    }

    /// When it has to be looked after whatever it does.
    pub fn deadline(&self) -> Option<Instant> {
        match self.stage {
            Stage::Denied(until) => Some(until),
            Stage::Hello | Stage::Ready => self.is_sending().then(|| self.took + PATIENCE),
            _ => Some(self.since + HANDSHAKE),
        }
    }

    /// It has too much waiting to be heard, or has not used what it was read.
    pub fn is_busy(&self) -> bool {
        self.readable && self.has_room() || self.writable && self.is_sending()
    }

    fn has_room(&self) -> bool {
        self.later.len() < LATER && self.out.len() - self.sent < 4 * WAITING + 4 * PIXELS
    }

    /// Bytes for a message that is no part of an update.
    fn message(&mut self) -> &mut Vec<u8> {
        if self.rects.is_empty() { &mut self.out } else { &mut self.later }
    }

    /// Hears what the client says. Says whether it did something that the guest may answer on the screen.
    pub fn hear(&mut self, settings: &Settings, guest: &Guest) -> Result<bool, Gone> {
        let now = Instant::now();
        match self.stage {
            Stage::Denied(until) if now >= until => {
                self.out.extend(1u32.to_be_bytes());
                if self.minor >= 8 {
                    self.reason("the password is wrong");
                }
                self.write()?;
                return gone("the password was wrong");
            }
            _ if self.deadline().is_some_and(|end| now >= end) => {
                return gone(if self.is_in() { "it takes nothing" } else { "it does not come in" });
            }
            _ => {}
        }
        if !self.is_sending() {
            self.took = now;
        }
        let (mut acted, mut read) = (false, 0);
        while self.readable && self.has_room() && read < TURN {
            let mut buf = [0; MESSAGE];
            match self.stream.read(&mut buf) {
                Ok(0) => return gone("it has gone"),
                Ok(n) => {
                    read += n;
                    self.input.extend(&buf[..n]);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.readable = false,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
            let input = std::mem::take(&mut self.input);
            let mut used = 0;
            loop {
                let skipped = self.skip.min(input.len() - used);
                (used, self.skip) = (used + skipped, self.skip - skipped);
                match self.step(&input[used..], settings, guest, &mut acted)? {
                    Some(len) => used += len,
                    None => break,
                }
            }
            self.input = input[used..].to_vec();
            if self.input.len() > 2 * MESSAGE {
                return gone("it talks out of turn");
            }
        }
        self.push(guest);
        Ok(acted)
    }

    /// Lets the guest know of the pointer.
    fn push(&mut self, guest: &Guest) {
        if let Some(m) = self.moved.take() {
            (guest.pointer.moves)(m);
        }
    }

    /// The client is gone; the guest's keys are not to stay down.
    pub fn leave(&mut self, guest: &Guest) {
        let keys = self.hands.release();
        if !keys.is_empty() {
            guest.typist.press(&keys);
        }
        if self.hands.drags() {
            (guest.pointer.moves)(self.hands.pointer(0, 0, 0, None));
        }
    }

    /// Takes the next message, and says how long it was; nothing if it is not complete.
    fn step(
        &mut self,
        input: &[u8],
        settings: &Settings,
        guest: &Guest,
        acted: &mut bool,
    ) -> Result<Option<usize>, Gone> {
        match self.stage {
            Stage::Version => {
                let Some(text) = input.first_chunk::<12>() else { return Ok(None) };
                self.version(text, settings)?;
                Ok(Some(12))
            }
            Stage::Security => {
                let Some(kind) = input.first() else { return Ok(None) };
                if *kind != settings.security() {
                    self.out.extend(1u32.to_be_bytes());
                    if self.minor >= 8 {
                        self.reason("there is no such kind of security");
                    }
                    self.write()?;
                    return gone("it wants a kind of security that there is not");
                }
                self.secure(settings)?;
                Ok(Some(1))
            }
            Stage::Challenge(challenge) => {
                let Some(answer) = input.first_chunk() else { return Ok(None) };
                let is = |password: &Option<String>| {
                    password.as_ref().is_some_and(|p| auth::same(&auth::answer(p, &challenge), answer))
                };
                let (full, look) = (is(&settings.password), is(&settings.view_password));
                if full || look {
                    self.looks_only |= !full;
                    self.out.extend(0u32.to_be_bytes());
                    self.stage = Stage::Init;
                } else {
                    self.stage = Stage::Denied(Instant::now() + PENALTY);
                }
                Ok(Some(auth::LEN))
            }
            // It is over with this one.
            Stage::Denied(_) => Ok(None),
            // Whether it wants to be alone is not asked: there are viewers who do not know of the others.
            Stage::Init if !input.is_empty() => {
                self.stage = Stage::Hello;
                Ok(Some(1))
            }
            Stage::Init | Stage::Hello => Ok(None),
            Stage::Ready => self.order(input, guest, acted),
        }
    }

    fn version(&mut self, text: &[u8; 12], settings: &Settings) -> Result<(), Gone> {
        let number = |at: usize| std::str::from_utf8(&text[at..at + 3]).ok()?.parse::<u16>().ok();
        if !text.starts_with(b"RFB ") || text[7] != b'.' || text[11] != b'\n' {
            return gone("it does not speak RFB");
        }
        self.minor = match (number(4), number(8)) {
            (Some(3), Some(0..7)) => 3,
            (Some(3), Some(7)) => 7,
            (Some(3..), Some(_)) => 8,
            _ => return gone("it speaks an RFB that there never was"),
        };
        if self.minor == 3 {
            self.out.extend(u32::from(settings.security()).to_be_bytes());
            return self.secure(settings);
        }
        self.out.extend([1, settings.security()]);
        self.stage = Stage::Security;
        Ok(())
    }

    /// Begins what the kind of security asks for.
    fn secure(&mut self, settings: &Settings) -> Result<(), Gone> {
        if settings.security() == super::NONE {
            if self.minor >= 8 {
                self.out.extend(0u32.to_be_bytes());
            }
            self.stage = Stage::Init;
            return Ok(());
        }
        let mut challenge = [0; auth::LEN];
        emu::Random::host()?.fill(&mut challenge);
        self.out.extend(challenge);
        self.stage = Stage::Challenge(challenge);
        Ok(())
    }

    fn reason(&mut self, text: &str) {
        self.out.extend((text.len() as u32).to_be_bytes());
        self.out.extend(text.as_bytes());
    }

    /// Tells the client of the screen.
    pub fn hello(&mut self, picture: &Picture, name: &str) {
        self.size = (picture.width, picture.height);
        self.dirty = Tiles::new(picture.width, picture.height, true);
        self.out.extend(&Rect::whole(self.size).bytes()[4..]);
        self.out.extend(Format::OWN.bytes());
        self.reason(name);
        self.stage = Stage::Ready;
    }

    /// A message of a client that is in.
    fn order(&mut self, input: &[u8], guest: &Guest, acted: &mut bool) -> Result<Option<usize>, Gone> {
        let Some(kind) = input.first() else { return Ok(None) };
        let word = |at: usize| u16::from_be_bytes([input[at], input[at + 1]]);
        let long = |at: usize| u32::from_be_bytes([input[at], input[at + 1], input[at + 2], input[at + 3]]);
        let rect = |at: usize| input[at..].first_chunk().map(Rect::read).unwrap_or_default();
        let len = match kind {
            0 => 20,
            2 if input.len() < 4 => return Ok(None),
            2 if usize::from(word(2)) > ENCODINGS => return gone("its list of encodings is too long"),
            2 => 4 + 4 * usize::from(word(2)),
            3 => 10,
            4 => 8,
            5 => 6,
            6 => 8,
            150 => 10,
            248 if input.len() < 9 => return Ok(None),
            248 if input[8] > 64 => return gone("its fence is too long"),
            248 => 9 + usize::from(input[8]),
            251 if input.len() < 8 => return Ok(None),
            251 => 8 + 16 * usize::from(input[6]),
            255 if input.len() < 2 => return Ok(None),
            255 if input[1] == 0 => 12,
            _ => return gone("it sends a message that there is not"),
        };
        if input.len() < len {
            return Ok(None);
        }
        match kind {
            0 => {
                let bytes: &[u8; format::LEN] = input[4..].first_chunk().expect("20 bytes are there");
                let Some(format) = Format::read(bytes) else { return gone("no pixel can look as it wants them") };
                self.next_format = Some(format);
            }
            2 => {
                let list = input[4..len].as_chunks().0.iter().map(|four| i32::from_be_bytes(*four)).collect::<Vec<_>>();
                self.encodings(&list);
            }
            3 => {
                let area = rect(2);
                if input[1] == 0 {
                    area.common(Rect::whole(self.size)).mark(&mut self.dirty);
                    self.needs_look = true;
                }
                self.wanted = Some(self.wanted.unwrap_or_default().joined(area));
            }
            4 => self
                .key(guest, acted, |hands| hands.keysym(long(4), input[1] != 0, &guest.layout, guest.typist.lights())),
            5 if !self.looks_only => {
                let (x, y) = (i32::from(word(2)), i32::from(word(4)));
                let m = match self.extras.relative && self.absolute != Some(true) {
                    true => self.hands.pointer(x - 0x7fff, y - 0x7fff, input[1], None),
                    false => self.hands.pointer(x, y, input[1], Some(self.size)),
                };
                match &mut self.moved {
                    // Movements with the same buttons are one.
                    Some(before) if (before.buttons, before.wheel, m.wheel) == (m.buttons, 0, 0) => {
                        (before.dx, before.dy, before.at) = (before.dx + m.dx, before.dy + m.dy, m.at);
                    }
                    _ => {
                        self.push(guest);
                        self.moved = Some(m);
                    }
                }
                *acted = true;
            }
            5 => {}
            6 => {
                let text = long(4);
                if text > CUT_TEXT {
                    return gone("its cut text is too long");
                }
                self.skip = text as usize;
            }
            150 => {
                self.continuous = (input[1] != 0).then(|| rect(2));
                if input[1] == 0 && self.extras.continuous {
                    self.message().push(150);
                }
            }
            248 => {
                let flags = long(4);
                if flags & FENCE_REQUEST != 0 {
                    let payload = input[8..len].to_vec();
                    self.fence(flags & FENCE_KINDS, &payload);
                }
            }
            // The guest decides on the size of its screen.
            251 if !self.announce.contains(&REFUSAL) => self.announce.push(REFUSAL),
            251 => {}
            _ => self.key(guest, acted, |hands| hands.scan_code(long(8), word(2) != 0)),
        }
        Ok(Some(len))
    }

    fn key(&mut self, guest: &Guest, acted: &mut bool, keys: impl FnOnce(&mut Hands) -> Vec<crate::keyboard::Press>) {
        if !self.looks_only {
            // Who types on while the guest does not read loses what is too much.
            guest.typist.press(&keys(&mut self.hands));
            *acted = true;
        }
    }

    /// A fence: flags, and a payload with its length before it.
    fn fence(&mut self, flags: u32, payload: &[u8]) {
        let message = self.message();
        message.extend([248, 0, 0, 0]);
        message.extend(flags.to_be_bytes());
        message.extend(payload);
    }

    fn encodings(&mut self, list: &[i32]) {
        let has = |n: i32| list.contains(&n);
        self.encoding = list.iter().copied().find(|n| [RAW, HEXTILE, ZRLE].contains(n)).unwrap_or(RAW);
        let before = self.extras;
        self.extras = Extras {
            desktop_size: has(DESKTOP_SIZE),
            extended_desktop_size: has(EXTENDED_DESKTOP_SIZE),
            lights: has(LED_STATE),
            relative: has(POINTER_MOTION),
            fence: has(FENCE),
            continuous: has(CONTINUOUS_UPDATES),
        };
        if let Some(level) = list.iter().find(|n| LEVELS.contains(n)) {
            // The stream of a connection keeps the level with which it began.
            self.level = (level - LEVELS.start()) as u32;
        }
        self.announce = [EXTENDED_DESKTOP_SIZE, EXTENDED_KEYS].into_iter().filter(|n| has(*n)).collect();
        (self.lights, self.absolute) = (None, None);
        if self.extras.fence && !before.fence {
            self.fence(FENCE_REQUEST, &[0]);
        }
        if self.extras.continuous && !before.continuous {
            self.message().push(150);
        }
    }

    /// Whether it waits for a look at all of the screen.
    pub fn needs_look(&self) -> bool {
        self.needs_look && self.wants_update()
    }

    /// The screen was looked at; what has changed.
    pub fn changed(&mut self, tiles: &Tiles) {
        self.needs_look = false;
        self.dirty.add(tiles);
    }

    /// The screen has another size.
    pub fn changed_all(&mut self) {
        self.dirty = Tiles::new(self.size.0, self.size.1, true);
    }

    /// Begins an update, if there is something new in what the client wants.
    pub fn update(&mut self, picture: &Picture, lights: u8, absolute: bool) {
        if !self.wants_update() || self.needs_look {
            return;
        }
        let area = self.wanted.unwrap_or_default().joined(self.continuous.unwrap_or_default());
        let size = (picture.width, picture.height);
        let mut specials: Vec<Vec<u8>> = Vec::new();
        let special = |at: [u16; 2], size: (usize, usize), kind: i32, more: &[u8]| {
            let rect = Rect { x: at[0].into(), y: at[1].into(), width: size.0, height: size.1 };
            [&rect.bytes()[..], &kind.to_be_bytes(), more].concat()
        };
        let screens =
            |size: (usize, usize)| [&[1, 0, 0, 0, 0, 0, 0, 0][..], &Rect::whole(size).bytes(), &[0; 4]].concat();
        let resizes = self.extras.desktop_size || self.extras.extended_desktop_size;
        if resizes && self.size != size {
            self.size = size;
            self.dirty = Tiles::new(size.0, size.1, true);
            specials.push(match self.extras.extended_desktop_size {
                true => special([0, 0], size, EXTENDED_DESKTOP_SIZE, &screens(size)),
                false => special([0, 0], size, DESKTOP_SIZE, &[]),
            });
        } else {
            for kind in std::mem::take(&mut self.announce) {
                specials.push(match kind {
                    EXTENDED_DESKTOP_SIZE => special([0, 0], self.size, kind, &screens(self.size)),
                    EXTENDED_KEYS => special([0, 0], (0, 0), kind, &[]),
                    // Reason: this client; status: prohibited.
                    _ => special([1, 1], self.size, EXTENDED_DESKTOP_SIZE, &screens(self.size)),
                });
            }
            if self.extras.relative && self.absolute != Some(absolute) {
                self.absolute = Some(absolute);
                specials.push(special([absolute.into(), 0], self.size, POINTER_MOTION, &[]));
            }
            if self.extras.lights && self.lights != Some(lights) {
                self.lights = Some(lights);
                specials.push(special([0, 0], (0, 0), LED_STATE, &[lights]));
            }
            // A client that understands nothing of sizes shows what it has room for.
            self.rects = take(&mut self.dirty, area, self.size, PIXELS).into();
        }
        let count = specials.len() + self.rects.len();
        if count == 0 {
            return;
        }
        if let Some(format) = self.next_format.take() {
            self.converter = Converter::new(format);
            if format.mapped {
                self.out.extend([1, 0, 0, 0, 1, 0]);
                self.out.extend(format.colours().flatten().flat_map(u16::to_be_bytes));
            }
        }
        self.wanted = None;
        self.took = Instant::now();
        self.out.extend([0, 0]);
        self.out.extend((count as u16).to_be_bytes());
        specials.iter().for_each(|special| self.out.extend(special));
    }

    /// Makes the next rectangles and sends what the client takes.
    pub fn send(&mut self, picture: &Picture) -> Result<(), Gone> {
        while self.out.len() - self.sent < WAITING
            && let Some(rect) = self.rects.pop_front()
        {
            let out = &mut self.out;
            out.extend(rect.bytes());
            out.extend(self.encoding.to_be_bytes());
            match self.encoding {
                HEXTILE => hextile::hextile(picture, rect, &self.converter, &mut self.values, out),
                ZRLE => {
                    let zrle = self.zrle.get_or_insert_with(|| Zrle::new(self.level));
                    zrle.encode(picture, rect, &self.converter, &mut self.values, out);
                }
                _ => hextile::raw(picture, rect, &self.converter, &mut self.values, out),
            }
            if self.rects.is_empty() {
                out.append(&mut self.later);
            }
        }
        self.write()
    }

    fn write(&mut self) -> Result<(), Gone> {
        while self.writable && self.sent < self.out.len() {
            match self.stream.write(&self.out[self.sent..]) {
                Ok(0) => return gone("it takes nothing more"),
                Ok(n) => {
                    self.sent += n;
                    self.took = Instant::now();
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.writable = false,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
        } else if self.sent > WAITING {
            self.out.drain(..self.sent);
            self.sent = 0;
        }
        Ok(())
    }
}
