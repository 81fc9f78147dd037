//! What is plugged into a machine: from the sections of its configuration to models in PCI slots.
//!
//! The plan is made twice, by the same steps: without images when a configuration is checked, so that everything that
//! cannot be is said at once, and with them when the machine is built.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use anyhow::{Context, Result, anyhow};
use boot::bios::DriveKind;
use cfg::{Error, Key, Kind, Node, PciSlot, Problem};
use devices::{MODELS, usb};
use emu::backend::{Capture, Chardev, Disk, Playback};
use emu::{Backends, Bdf, Class, DeviceCell, Machine, Model, ParamKind, Params, Slot, Unit};
use host::Io;
use host::disk::{Format, Image, ImageOptions, OnError};
use host::evdev;
use host::net::{self, Nat, Tap, Wire, nat};
use host::share::Share;
use host::sound::{self, Nowhere};
use lpc::{FloppyModel, FloppyUnit, I82077aa, Medium};

use crate::board::{self, Board};
use crate::config;
use crate::media::{Drive, Media};

/// The controller that the board brings.
const IDE: &str = "ide";
/// Where CD-ROM drives go on its four units: to a cable of their own while there is room.
const IDE_CDS: [usize; 4] = [2, 3, 1, 0];

/// The serial ports that every PC has.
pub const COM: &str = "com";
/// How many there are.
const MAX_COMS: usize = 4;

/// The adapter that is none.
pub const NO_SCREEN: &str = "none";
/// The maker of bhyve(8)'s Ethernet addresses.
pub const MAKER: [u8; 3] = [0x00, 0xa0, 0x98];
/// Bytes of a share's name.
const MAX_TAG: usize = 256;
/// Bits a second that a cable can be limited to.
const RATES: RangeInclusive<u64> = 100_000..=100_000_000_000;
/// Where the adapter goes if it can.
const SCREEN_SLOT: PciSlot = PciSlot { bus: 0, slot: 2, function: 0 };

/// Whether a section can name models of a class.
fn fits(section: &str, class: Class) -> bool {
    match class {
        Class::Storage { cds, .. } => section == "disk" || section == "cd" && cds,
        Class::Network => section == "nic",
        Class::Display => section == "screen",
        Class::Lines { .. } => section == "serial",
        Class::Share => section == "share",
        Class::Usb { .. } => section == "usb" || section == "device",
        Class::Input => section == "input",
        Class::Sound => section == "sound",
        Class::Other => section == "device",
    }
}

/// The keys that models bring to the sections that name them.
static KEYS: LazyLock<BTreeMap<&str, Vec<Key>>> = LazyLock::new(|| {
    let key = |p: &emu::Param| Key {
        name: p.name,
        kind: match p.kind {
            ParamKind::Bool => Kind::Bool,
            ParamKind::Int(min, max) => Kind::Int { min, max },
            ParamKind::Text => Kind::Text,
            ParamKind::Choice(words) => Kind::Choice(words),
            ParamKind::Mac => Kind::Mac,
        },
        default: Some(p.default).filter(|d| !d.is_empty()),
        help: p.help,
    };
    MODELS.iter().map(|m| (m.name, m.keys.iter().map(key).collect())).collect()
});

/// Whether `model` is one that boards bring.
pub fn is_boards(model: &Model) -> bool {
    board::ALL.iter().any(|b| b.ide.is_some_and(|ide| ide.name == model.name))
}

/// The models that a section can name.
pub fn words(section: &str) -> Vec<&'static str> {
    if section == "usb-device" {
        return usb::DEVICES.into();
    }
    if section == "floppy" {
        return FloppyModel::ALL.map(|(name, _)| name).into();
    }
    let ours = match section {
        "disk" | "cd" => Some(IDE),
        "screen" => Some(NO_SCREEN),
        "serial" => Some(COM),
        _ => None,
    };
    ours.into_iter().chain(MODELS.iter().filter(|m| fits(section, m.class) && !is_boards(m)).map(|m| m.name)).collect()
}

/// The keys that a model brings.
pub fn keys(model: &str) -> &'static [Key] {
    KEYS.get(model).map_or(&[], Vec::as_slice)
}

/// A device that is to be plugged in.
struct Placed {
    model: &'static Model,
    bdf: Bdf,
    params: Params,
    /// Nothing is added to its units: somebody put it into this slot, or gave it keys of its own.
    closed: bool,
    units: Vec<Unit>,
    images: Vec<Option<Content>>,
    /// The sections of the configuration that it came from, by unit.
    keys: Vec<(usize, String)>,
    rom: Option<Vec<u8>>,
    /// What a network card's cable leads to.
    cable: Cable,
    /// Which of the configuration's network cards it is, and how many bits its cable carries.
    nic: Option<(u32, Option<u64>)>,
    /// The serial lines that end here, by their number in the configuration.
    lines: Vec<usize>,
    /// The directory that it shows the guest.
    share: Option<Share>,
    /// The input device of the host that it is.
    evdev: Option<evdev::Host>,
    /// Where it plays, and what it records.
    playback: Option<Box<dyn Playback>>,
    capture: Option<Box<dyn Capture>>,
}

impl Placed {
    /// A device with nothing at its units.
    fn new(model: &'static Model, bdf: Bdf, params: Params, closed: bool, units: usize) -> Placed {
        let images = (0..units).map(|_| None).collect();
        Placed {
            model,
            bdf,
            params,
            closed,
            units: vec![Unit::None; units],
            images,
            keys: Vec::new(),
            rom: None,
            cable: Cable::None,
            nic: None,
            lines: Vec::new(),
            share: None,
            evdev: None,
            playback: None,
            capture: None,
        }
    }
}

impl Placed {
    /// Gives it the directory of a share, which is only opened with `files`.
    fn show(&mut self, share: &Node, files: bool) -> Result<()> {
        let name = share.text("name");
        if !(1..=MAX_TAG).contains(&name.len()) {
            return Err(share
                .error("name", Problem::new(format!("it has {} bytes", name.len())).allowed("1 to 256"))
                .into());
        }
        self.params.set("name", name);
        let open = || Share::open(name, share.path("path"), share.bool("readonly"));
        self.share = files.then(open).transpose().with_context(|| share.key().to_owned())?;
        Ok(())
    }

    /// Makes it what `[[input]]` says; a device of the host is only opened with `files`.
    fn input(&mut self, input: &Node, files: bool) -> Result<()> {
        self.params.set("device", input.text("device"));
        let path = Some("path").filter(|path| files && input.is_given(path));
        self.evdev =
            path.map(|path| evdev::Host::open(input.path(path))).transpose().context(input.key().to_owned())?;
        Ok(())
    }

    /// Opens what `[[sound]]` names, with `files`. A card of which nothing is said goes both ways, nowhere.
    fn sound(&mut self, card: &Node, files: bool) -> Result<()> {
        if !files {
            return Ok(());
        }
        let path = |key: &str| card.is_given(key).then(|| card.path(key));
        let (play, rec) = (path("play"), path("rec"));
        if (play, rec) == (None, None) {
            self.playback = Some(Box::new(Nowhere));
            self.capture = Some(Box::new(Nowhere));
        } else {
            self.playback = play.map(sound::playback).transpose().with_context(|| card.key().to_owned())?;
            self.capture = rec.map(sound::capture).transpose().with_context(|| card.key().to_owned())?;
        }
        Ok(())
    }
}

/// What the cable of a network card leads to.
enum Cable {
    /// Nothing.
    None,
    /// A script; which of the cards it is.
    Script(u32),
    /// An interface of the host, which may be made.
    Tap(String, bool),
    /// A bridge of the host, which may be made.
    Bridge(String, bool),
    /// Another machine, or a switch.
    Socket(PathBuf, bool),
    /// A network of its own, which ends in the host's sockets.
    Nat(Box<Nat>),
}

/// The cable of a card.
fn cable(nic: &Node, images: bool) -> Result<Cable> {
    Ok(match nic.text("backend") {
        "script" => Cable::Script(nic.index()),
        "nat" => {
            let config = nat(nic)?;
            if images {
                Cable::Nat(Box::new(Nat::open(config).with_context(|| nic.key().to_owned())?))
            } else {
                Cable::None
            }
        }
        "tap" => Cable::Tap(nic.text("interface").to_owned(), nic.maybe("create").unwrap_or(false)),
        "bridge" => Cable::Bridge(nic.text("interface").to_owned(), nic.maybe("create").unwrap_or(false)),
        place @ ("socket" | "switch") => Cable::Socket(nic.path("path").to_owned(), place == "switch"),
        _ => Cable::None,
    })
}

/// Bits a second: a number with K, M or G, which here are powers of ten.
fn rate(text: &str) -> Option<u64> {
    let unit = text.chars().last().and_then(|c| Some(10u64.pow(3 * "KMG".find(c.to_ascii_uppercase())? as u32 + 3)));
    let digits = if unit.is_some() { &text[..text.len() - 1] } else { text };
    digits.parse::<u64>().ok()?.checked_mul(unit.unwrap_or(1)).filter(|bits| RATES.contains(bits))
}

/// The ROM that a card brings. It is only read with `files`.
fn boot_rom(node: &Node, files: bool) -> Result<Option<Vec<u8>>> {
    if !files || !node.is_given("rom") {
        return Ok(None);
    }
    let path = node.path("rom");
    std::fs::read(path).with_context(|| path.display().to_string()).map(Some)
}

/// What a card's section says of its NAT.
fn nat(nic: &Node) -> Result<nat::Config> {
    fn all<T>(nic: &Node, key: &str, read: impl Fn(&str) -> Result<T>) -> Result<Vec<T>> {
        let read = |text| read(text).map_err(|e| nic.error(key, Problem::new(format!("{e:#}"))).into());
        nic.words(key).into_iter().map(read).collect()
    }
    let prefixes: Vec<String> = nic.words("prefix6").into_iter().map(str::to_owned).collect();
    let network = nic.text("network");
    let at = |key| move |e: anyhow::Error| anyhow::Error::from(nic.error(key, Problem::new(format!("{e:#}"))));
    nat::Addresses::new(network, &[]).map_err(at("network"))?;
    Ok(nat::Config {
        addresses: nat::Addresses::new(network, &prefixes).map_err(at("prefix6"))?,
        resolvers: all(nic, "dns", nat::resolver)?,
        host_loopback: nic.bool("host_loopback"),
        outbound: nic.bool("outbound"),
        forwards: all(nic, "forward", nat::Forward::parse)?,
        tftp: nic.is_given("tftp").then(|| nic.path("tftp").to_owned()),
        bootfile: nic.maybe("bootfile").map(str::to_owned),
    })
}

/// A drive, for the BIOS.
pub struct Plugged {
    /// What it is.
    pub kind: DriveKind,
    /// Its controller, where that is, and the unit's number there. A diskette drive is at the board's own.
    pub place: Option<(&'static Model, Bdf, usize)>,
    /// Which diskette drive it is.
    pub floppy: Option<FloppyModel>,
    /// A handle on what is in it.
    pub disk: Option<Box<dyn Disk>>,
}

/// What others want to know of what was plugged in.
#[derive(Default)]
pub struct Peripherals {
    /// The drives, each with a further handle on its disk.
    pub drives: Vec<Plugged>,
    /// What can be put into the drives and taken out.
    pub media: Media,
    /// The display adapter.
    pub screen: Option<Arc<DeviceCell>>,
    /// The cables that a script holds, by the number of the network card.
    pub wires: BTreeMap<u32, Arc<Wire>>,
    /// All cables, by that number.
    pub cables: BTreeMap<u32, net::Cable>,
}

/// What is in a drive, and for which drive of the configuration.
struct Content {
    name: String,
    options: ImageOptions,
    image: Image,
}

/// A floppy drive.
struct Floppy {
    unit: FloppyUnit,
    content: Content,
}

/// Everything that is plugged into a board.
pub struct Plan {
    board: &'static board::Kind,
    placed: Vec<Placed>,
    floppies: Vec<Floppy>,
}

/// What a drive or a card wants of the plan.
#[derive(Default)]
struct Want<'a> {
    /// The word for its model.
    model: &'a str,
    slot: Option<PciSlot>,
    params: Params,
    closed: bool,
    /// The place at its controller.
    unit: Option<usize>,
    /// The section that says so.
    key: &'a str,
}

impl<'a> Want<'a> {
    fn new(node: &'a Node) -> Result<Want<'a>, Problem> {
        let section = node.key().split('.').next().unwrap_or_default();
        let problem = || Problem::new("the profile does not say which").allowed(words(section).join(", "));
        let model = node.maybe("model").ok_or_else(problem)?;
        let own = keys(model);
        let given = |key: &&Key| node.get(key.name).is_some();
        let params =
            own.iter().filter(given).map(|k| (k.name, node.get(k.name).map_or(String::new(), ToString::to_string)));
        let slot = node.maybe("slot");
        let unit =
            if is_drive(node) || section == "usb" { node.maybe::<i64>("unit") } else { None }.map(|unit| unit as usize);
        let closed = slot.is_some() || own.iter().any(|k| node.is_given(k.name));
        Ok(Want { model, slot, params: Params::new(params), closed, unit, key: node.key() })
    }
}

impl Plan {
    /// An empty board.
    pub fn new(board: &'static board::Kind) -> Plan {
        let ide = board
            .ide
            .map(|model| Placed::new(model, Bdf::new(board.isa_bridge, 1), Params::default(), false, IDE_CDS.len()));
        Plan { board, placed: ide.into_iter().collect(), floppies: Vec::new() }
    }

    /// Puts in what a configuration says; `images` opens and locks what is in the drives.
    fn of(node: &Node, images: bool) -> Result<Plan, Vec<anyhow::Error>> {
        let mut plan = Plan::new(board::kind(node));
        let mut errors: Vec<anyhow::Error> = Vec::new();
        let sections = [("disk", Unit::Disk), ("cd", Unit::Cd)];
        // Whoever names a slot comes before those that take what is free.
        for has_slot in [true, false] {
            let screen = node.child("screen");
            if screen.is_given("slot") == has_slot && screen.maybe("model").is_some_and(|m: &str| m != NO_SCREEN) {
                errors.extend(plan.screen(screen, images).err());
            }
            for (name, unit) in sections {
                for drive in node.children(name).iter().filter(|d| d.is_given("slot") == has_slot) {
                    let image = images.then(|| content(drive, name)).transpose();
                    let mut put = |image| Want::new(drive).and_then(|want| plan.drive(want, unit, image));
                    errors.extend(image.and_then(|image| put(image).map_err(|p| at_key(drive, p).into())).err());
                }
            }
            for nic in node.children("nic").iter().filter(|d| d.is_given("slot") == has_slot) {
                let put = Want::new(nic).and_then(|want| plan.card(want, &config::identity(node), config::maker(node)));
                let put = put.map_err(|p| at_key(nic, p).into()).and_then(|card| {
                    card.cable = cable(nic, images)?;
                    card.nic = Some((nic.index(), nic.maybe("rate").and_then(rate)));
                    card.rom = boot_rom(nic, images)?;
                    Ok(())
                });
                errors.extend(put.err());
            }
            for line in node.children("serial").iter().filter(|d| d.is_given("slot") == has_slot && !is_com(d)) {
                let put = Want::new(line).and_then(|want| plan.line(want, line));
                errors.extend(put.err().map(|p| at_key(line, p).into()));
            }
            for share in node.children("share").iter().filter(|d| d.is_given("slot") == has_slot) {
                let put = Want::new(share).and_then(|want| plan.put(want)).map_err(|p| at_key(share, p).into());
                errors.extend(put.and_then(|placed| placed.show(share, images)).err());
            }
            for device in node.children("usb").iter().filter(|d| d.is_given("slot") == has_slot) {
                let put = Want::new(device).and_then(|want| plan.usb(want, device.text("device")));
                errors.extend(put.err().map(|p| at_key(device, p).into()));
            }
            for input in node.children("input").iter().filter(|d| d.is_given("slot") == has_slot) {
                let put = Want::new(input).and_then(|want| plan.put(want)).map_err(|p| at_key(input, p).into());
                errors.extend(put.and_then(|placed| placed.input(input, images)).err());
            }
            for card in node.children("sound").iter().filter(|d| d.is_given("slot") == has_slot) {
                let put = Want::new(card).and_then(|want| plan.put(want)).map_err(|p| at_key(card, p).into());
                errors.extend(put.and_then(|placed| placed.sound(card, images)).err());
            }
            for other in node.children("device").iter().filter(|d| d.is_given("slot") == has_slot) {
                let put = Want::new(other).and_then(|want| plan.put(want).map(|_| ()));
                errors.extend(put.err().map(|p| at_key(other, p).into()));
            }
        }
        let whole = |p: &&Placed| p.bdf.func == 0 || plan.placed.iter().any(|q| q.bdf == Bdf { func: 0, ..p.bdf });
        let whole = |p: &&Placed| (p.bdf.bus, p.bdf.dev) == (0, plan.board.isa_bridge) || whole(p);
        errors.extend(plan.placed.iter().filter(|p| !whole(p)).map(|p| {
            anyhow!("{} at {}: a guest finds it only with a device at function 0", p.model.name, bdf_text(p.bdf))
        }));
        for drive in node.children("floppy").iter().filter(|_| images) {
            match floppy(drive) {
                Ok(floppy) => plan.floppies.push(floppy),
                Err(e) => errors.push(e),
            }
        }
        if errors.is_empty() { Ok(plan) } else { Err(errors) }
    }

    /// Adds the display adapter; with `files` it gets its ROM.
    fn screen(&mut self, node: &Node, files: bool) -> Result<()> {
        let usual = Some(SCREEN_SLOT).filter(|at| self.is_free(at.slot));
        let put = Want::new(node).and_then(|want| self.put(Want { slot: want.slot.or(usual), ..want }));
        let placed = put.map_err(|p| at_key(node, p))?;
        placed.rom = boot_rom(node, files)?;
        Ok(())
    }

    /// Adds a disk of the machine's usual kind.
    pub fn disk(&mut self, model: &str, image: Image) -> Result<()> {
        let content = Content { name: "disk0".to_owned(), options: ImageOptions::default(), image };
        self.drive(Want { model, ..Want::default() }, Unit::Disk, Some(content)).map_err(|p| anyhow!("{}", p.message))
    }

    /// Adds a network card to a machine of this name. Nothing is connected to it.
    pub fn nic(&mut self, model: &str, machine: &str) -> Result<()> {
        self.card(Want { model, ..Want::default() }, machine, MAKER).map(|_| ()).map_err(|p| anyhow!("{}", p.message))
    }

    fn card(&mut self, want: Want, machine: &str, maker: [u8; 3]) -> Result<&mut Placed, Problem> {
        let taken = self.addresses();
        let card = self.put(want)?;
        if card.params.get("mac").is_none() {
            let Bdf { bus, dev, func } = card.bdf;
            let usual = mac(&format!("{dev}-{func}-{machine}"), maker);
            // bhyve(8) leaves the bus out, and two cards would have one address.
            let own = if taken.contains(&usual) { mac(&format!("{bus}-{dev}-{func}-{machine}"), maker) } else { usual };
            card.params.set("mac", &own);
        }
        Ok(card)
    }

    /// Adds a serial line's end: to a device that has room, unless each is to have its own.
    fn line(&mut self, want: Want, node: &Node) -> Result<(), Problem> {
        let bdf = want.slot.map(bdf);
        let room = |p: &Placed| {
            let Class::Lines { most } = p.model.class else { return false };
            p.model.name == want.model && p.lines.len() < most && bdf.is_none_or(|bdf| p.bdf == bdf)
        };
        let key = (0, want.key.to_owned());
        let placed = match self.placed.iter().position(room) {
            Some(at) => &mut self.placed[at],
            None => self.put(want)?,
        };
        let unit = placed.lines.len();
        if unit > 0 {
            placed.keys.push((unit, key.1));
        }
        if let Some(name) = node.maybe::<&str>("port") {
            placed.params.set(&format!("{unit}.port"), name);
        }
        placed.lines.push(node.index() as usize);
        Ok(())
    }

    /// Plugs a device into a USB port: at a controller that has room.
    fn usb(&mut self, want: Want, device: &str) -> Result<(), Problem> {
        let bdf = want.slot.map(bdf);
        let (key, asked, model) = (want.key.to_owned(), want.unit, want.model.to_owned());
        let free = |p: &Placed, port: usize| {
            let Class::Usb { ports } = p.model.class else { return false };
            port < ports && p.params.of_unit(port, usb::DEVICE).is_none()
        };
        let room = |p: &Placed| {
            let here = p.model.name == model && bdf.is_none_or(|bdf| p.bdf == bdf);
            here && asked.map_or_else(|| (0..16).any(|port| free(p, port)), |port| free(p, port))
        };
        let placed = match self.placed.iter().position(room) {
            Some(at) => &mut self.placed[at],
            None => {
                let placed = self.put(want)?;
                // Its sections are those of its ports.
                placed.keys.clear();
                placed
            }
        };
        let port = asked.or_else(|| (0..16).find(|port| free(placed, *port))).filter(|port| free(placed, *port));
        let port = port.ok_or_else(|| Problem::new(format!("{model} has no such unit")).allowed("0 to 3"))?;
        placed.params.set(&format!("{port}.{}", usb::DEVICE), device);
        placed.keys.push((port, key));
        Ok(())
    }

    /// Which of a machine's serial lines, of which there are `lines`, end at COM1 to COM4.
    pub fn coms(&self, lines: usize) -> Vec<usize> {
        (0..lines).filter(|line| self.placed.iter().all(|p| !p.lines.contains(line))).take(MAX_COMS).collect()
    }

    fn drive(&mut self, want: Want, unit: Unit, image: Option<Content>) -> Result<(), Problem> {
        let fits = |p: &Placed| !want.closed && !p.closed && p.units.contains(&Unit::None);
        let free = match want.model {
            IDE => {
                let ide = self.board.ide.ok_or_else(|| Problem::new("this board has no IDE controller"))?;
                if want.slot.is_some() {
                    return Err(Problem::new("the board's IDE controller has its own place"));
                }
                let ours = self.placed.iter_mut().find(|p| p.model.name == ide.name && fits(p));
                Some(ours.ok_or_else(|| {
                    Problem::new("the IDE controller is full").allowed("four disks and CD-ROM drives together")
                })?)
            }
            model => {
                let bdf = want.slot.map(bdf);
                // Drives that name one slot are at one controller.
                let same = |p: &Placed| Some(p.bdf) == bdf && p.units.contains(&Unit::None);
                self.placed.iter_mut().find(|p| p.model.name == model && (fits(p) || same(p)))
            }
        };
        let (model, params, key, asked) = (want.model, want.params.clone(), want.key.to_owned(), want.unit);
        let place = match free {
            Some(place) => place,
            None => self.put(want)?,
        };
        let order: Vec<usize> = match (asked, unit) {
            (Some(at), _) if place.units.get(at) == Some(&Unit::None) => vec![at],
            (Some(at), _) => {
                let why = format!("unit {at} of {model} is taken, or not there");
                return Err(Problem::new(why).allowed(format!("one of {} that is free", place.units.len())));
            }
            (None, Unit::Cd) if place.bdf.func == 1 => IDE_CDS.into(),
            _ => (0..place.units.len()).collect(),
        };
        if let Some(at) = order.into_iter().find(|at| place.units[*at] == Unit::None) {
            (place.units[at], place.images[at]) = (unit, image);
            if !place.keys.iter().any(|(_, own)| *own == key) {
                place.keys.push((at, key));
            }
            // What is said of one drive is not of the others there.
            for Key { name, .. } in keys(model) {
                place.params.set(&format!("{at}.{name}"), params.get(name).unwrap_or_default());
            }
        }
        Ok(())
    }

    /// Puts a new device into its slot.
    fn put(&mut self, want: Want) -> Result<&mut Placed, Problem> {
        let model = MODELS.iter().find(|m| m.name == want.model).expect("the schema lets known models through");
        let bdf = match want.slot {
            Some(slot) if slot.bus > 0 || self.is_open(slot.slot) => {
                let bdf = bdf(slot);
                if let Some(taken) = self.placed.iter().find(|p| p.bdf == bdf) {
                    return Err(Problem::new(format!("slot {} is taken by {}", bdf_text(bdf), taken.model.name)));
                }
                bdf
            }
            Some(slot) => {
                let taken = format!("slot {slot} cannot be had");
                return Err(Problem::new(taken).allowed("a device that is not the board's"));
            }
            None => {
                let free = (self.board.first_slot..32).find(|slot| self.is_free(*slot));
                Bdf::new(free.ok_or_else(|| Problem::new("all PCI slots are taken"))?, 0)
            }
        };
        let units = if let Class::Storage { units, .. } = model.class { units } else { 0 };
        let mut placed = Placed::new(model, bdf, want.params, want.closed, units);
        if units == 0 {
            placed.keys.push((0, want.key.to_owned()));
        }
        self.placed.push(placed);
        Ok(self.placed.last_mut().expect("just put in"))
    }

    fn is_free(&self, slot: u8) -> bool {
        self.is_open(slot) && self.placed.iter().all(|p| (p.bdf.bus, p.bdf.dev) != (0, slot))
    }

    /// Whether a device number on bus 0 is not the board's.
    fn is_open(&self, slot: u8) -> bool {
        slot > 0 && slot < 32 && slot != self.board.isa_bridge
    }

    /// What is where: each device's model, place and sections of the configuration, by unit.
    pub fn places(&self) -> impl Iterator<Item = (&'static str, Bdf, &[(usize, String)])> {
        self.placed.iter().map(|p| (p.model.name, p.bdf, p.keys.as_slice()))
    }

    /// The addresses of its network cards.
    pub fn addresses(&self) -> Vec<String> {
        let cards = self.placed.iter().filter(|p| p.model.class == Class::Network);
        cards.filter_map(|p| p.params.get("mac")).map(str::to_ascii_lowercase).collect()
    }

    /// The kinds of floppy drives, the first is A.
    pub fn floppies(&self) -> Vec<FloppyModel> {
        self.floppies.iter().map(|f| f.unit.model).collect()
    }

    /// The paths, as Open Firmware's, of what boots in the order of these words of `boot.order`.
    pub fn boot_order(&self, order: &[String]) -> Vec<String> {
        let mut paths = Vec::new();
        let buses: BTreeSet<u8> = self.placed.iter().map(|p| p.bdf.bus).filter(|bus| *bus > 0).collect();
        for word in order {
            if word == "floppy" {
                let isa = self.board.isa_bridge;
                paths.extend((0..self.floppies.len()).map(|n| format!("/pci@i0cf8/isa@{isa:x}/fdc@03f0/floppy@{n}")));
            }
            let units = self.placed.iter().flat_map(|p| p.units.iter().enumerate().map(move |(n, unit)| (p, n, *unit)));
            for (placed, n, _) in units.filter(|(_, _, u)| match word.as_str() {
                "disk" => *u == Unit::Disk,
                "cd" => *u == Unit::Cd,
                _ => false,
            }) {
                let Bdf { bus, dev, func } = placed.bdf;
                // Roots are counted, whatever their buses' numbers.
                let root = buses.iter().position(|b| *b == bus).map(|n| format!("/pci-root@{:x}", n + 1));
                let root = root.unwrap_or_default();
                let at = if func == 0 { format!("{dev:x}") } else { format!("{dev:x},{func:x}") };
                paths.push(match placed.model.name {
                    "virtio-scsi" => format!("{root}/pci@i0cf8/scsi@{at}/channel@0/disk@{n:x},0"),
                    name if name.starts_with("virtio") => format!("{root}/pci@i0cf8/scsi@{at}/disk@0,0"),
                    "nvme" => format!("{root}/pci@i0cf8/pci8086,5845@{at}/namespace@{},0", n + 1),
                    name if name.starts_with("ahci") => format!("{root}/pci@i0cf8/pci8086,2922@{at}/drive@{n}/disk@0"),
                    _ => format!("{root}/pci@i0cf8/ide@{at}/drive@{}/disk@{}", n / 2, n % 2),
                });
            }
        }
        paths
    }

    /// Plugs everything in. Of `lines` it takes those that end at what it plugs in.
    ///
    /// # Errors
    /// What a device says, or the host has no threads for the disks.
    pub fn plug(
        self,
        machine: &Arc<Machine>,
        io: &Arc<Io>,
        board: &Board,
        lines: &mut [Option<Box<dyn Chardev>>],
    ) -> Result<Peripherals> {
        let ram = machine.space.ram();
        let mut plugged = Peripherals::default();
        let units = [0, 1].map(|n| self.floppies.get(n).map(|f| f.unit));
        let (mut disks, mut drives) = (Vec::new(), Vec::new());
        for floppy in self.floppies {
            let Content { name, options, image } = floppy.content;
            let (disk, control) = image.attach_with_control(ram)?;
            plugged.drives.push(Plugged {
                kind: DriveKind::Floppy,
                place: None,
                floppy: Some(floppy.unit.model),
                disk: Some(disk.share()),
            });
            disks.push(Some(disk));
            drives.push((name, options, control));
        }
        if !disks.is_empty() {
            let backends = Backends { disks, ..Backends::default() };
            let create = |slot: &mut Slot| Ok(I82077aa::create(slot, board.dma.clone(), units));
            let cell = machine.plug_with("floppy", None, backends, create).map_err(|e| anyhow!(e))?;
            let with = |(unit, (name, options, control))| Drive {
                name,
                options,
                control,
                listeners: vec![(cell.clone(), unit)],
            };
            plugged.media.0.extend(drives.into_iter().enumerate().map(with));
        }
        for p in self.placed {
            let mut disks: Vec<Option<Box<dyn Disk>>> = Vec::new();
            let mut here = Vec::new();
            for (unit, content) in p.images.into_iter().enumerate() {
                disks.push(match content {
                    None => None,
                    Some(Content { name, options, image }) => {
                        let (disk, control) = image.attach_with_control(ram)?;
                        here.push((unit, Drive { name, options, control, listeners: Vec::new() }));
                        Some(disk)
                    }
                });
            }
            let units = p.units.iter().zip(&disks).enumerate().filter(|(_, (kind, _))| **kind != Unit::None);
            plugged.drives.extend(units.map(|(unit, (kind, disk))| Plugged {
                kind: if *kind == Unit::Cd { DriveKind::Cd } else { DriveKind::Disk },
                place: Some((p.model, p.bdf, unit)),
                floppy: None,
                disk: disk.as_ref().map(|d| d.share()),
            }));
            let name = format!("{}@{}", p.model.name, p.bdf);
            let net = match p.cable {
                Cable::None => None,
                Cable::Script(nic) => {
                    let (wire, net) = Wire::start(machine, &format!("wire{nic}"));
                    plugged.wires.insert(nic, wire);
                    Some(net)
                }
                Cable::Nat(nat) => Some(nat.plug(io)?),
                Cable::Tap(name, create) => Some(Tap::open(&name, create)?.plug(io)?),
                Cable::Bridge(name, create) => Some(Tap::bridged(&name, create)?.plug(io)?),
                Cable::Socket(path, switch) => Some(net::socket(io, &path, switch)?),
            };
            let net = net.map(|net| {
                let Some((number, rate)) = p.nic else { return net };
                let (cable, net) = net::Cable::lay(io, net, rate);
                plugged.cables.insert(number, cable);
                net
            });
            let chardevs = p.lines.iter().map(|line| lines.get_mut(*line).and_then(Option::take)).collect();
            let hands = matches!(p.model.class, Class::Usb { .. } | Class::Input);
            let keys = hands.then(|| board.typist.keyboard());
            let pointer = hands.then(|| board.pointers.add());
            let share = p.share.map(Share::serve).transpose()?;
            let evdev = p.evdev.map(|host| host.plug(io)).transpose()?;
            let backends = Backends {
                disks,
                units: p.units,
                rom: p.rom,
                net,
                chardevs,
                keys,
                pointer,
                share,
                evdev,
                playback: p.playback,
                capture: p.capture,
            };
            let cell = machine.plug(p.model, &name, Some(p.bdf), &p.params, backends);
            let cell = cell.map_err(|e| anyhow!("{name}: {e}"))?;
            let with = |(unit, d)| Drive { listeners: vec![(cell.clone(), unit)], ..d };
            plugged.media.0.extend(here.into_iter().map(with));
            if p.model.class == Class::Display {
                plugged.screen = Some(cell);
            }
        }
        Ok(plugged)
    }
}

/// What is where and how large what is in it, in a line.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for p in &self.placed {
            write!(f, "[{} {}", p.model.name, p.bdf)?;
            for (unit, image) in p.units.iter().zip(&p.images) {
                match image {
                    Some(content) => write!(f, " {unit:?} {}", content.image.size())?,
                    None => write!(f, " {unit:?}")?,
                }
            }
            f.write_str("]")?;
        }
        for floppy in &self.floppies {
            write!(f, "[{:?} {}]", floppy.unit, floppy.content.image.size())?;
        }
        Ok(())
    }
}

/// A place as `-s` and `slot` have it.
fn bdf_text(bdf: Bdf) -> String {
    if bdf.bus == 0 { format!("{}:{}", bdf.dev, bdf.func) } else { bdf.to_string() }
}

/// The place that a slot is.
fn bdf(slot: PciSlot) -> Bdf {
    Bdf { bus: slot.bus, dev: slot.slot, func: slot.function }
}

/// Whether a section is one of the drives at controllers.
fn is_drive(node: &Node) -> bool {
    matches!(node.key().split('.').next(), Some("disk" | "cd"))
}

/// Whether a serial port is one of the board's.
pub fn is_com(serial: &Node) -> bool {
    serial.maybe("model").is_none_or(|model: &str| model == COM)
}

/// A problem with where something goes, at the key that decides it.
fn at_key(node: &Node, problem: Problem) -> Error {
    let key = match () {
        () if node.is_given("unit") => "unit",
        () if node.is_given("slot") => "slot",
        () => "model",
    };
    node.error(key, problem)
}

/// An Ethernet address that stays with the slot and a machine's name: bhyve(8)'s, so that a machine that moves here keeps
/// its addresses, or another maker's.
fn mac(place: &str, maker: [u8; 3]) -> String {
    let mut text = place.as_bytes().to_vec();
    // It has room for so many.
    text.truncate(79);
    let [a, b, c, ..] = md5::compute(text).0;
    let [x, y, z] = maker;
    format!("{x:02x}:{y:02x}:{z:02x}:{a:02x}:{b:02x}:{c:02x}")
}

/// What is in a drive.
fn content(drive: &Node, section: &str) -> Result<Content> {
    let options = match section {
        "cd" => ImageOptions { read_only: true, ..ImageOptions::default() },
        // Nothing stands between such a drive and its medium that a guest could flush.
        "floppy" => ImageOptions { read_only: drive.bool("readonly"), write_through: true, ..ImageOptions::default() },
        _ => ImageOptions {
            format: Format::named(drive.text("format")).unwrap_or_default(),
            read_only: drive.bool("readonly"),
            write_through: matches!(drive.text("cache"), "writethrough" | "directsync"),
            direct: matches!(drive.text("cache"), "none" | "directsync"),
            snapshot: drive.bool("snapshot"),
            on_error: if drive.text("on_error") == "pause" { OnError::Pause } else { OnError::Report },
        },
    };
    let name = format!("{section}{}", drive.index());
    let image = match drive.is_given("path") {
        true => Image::open(drive.path("path"), options)?,
        false => Image::empty(&name),
    };
    Ok(Content { name, options, image })
}

/// A floppy drive and what is in it.
fn floppy(drive: &Node) -> Result<Floppy> {
    let content = content(drive, "floppy")?;
    let given = drive.maybe::<&str>("model");
    let given = given.and_then(|name| FloppyModel::ALL.into_iter().find(|(n, _)| *n == name)).map(|(_, model)| model);
    let mut model = given.unwrap_or(FloppyModel::D1440k);
    let size = content.image.size();
    if size > 0 {
        let say = |message: String| anyhow::Error::from(drive.error("path", Problem::new(message)));
        let Some((medium, simplest)) = Medium::of(size).zip(FloppyModel::for_image(size)) else {
            return Err(say(format!("no floppy disk has {size} bytes")));
        };
        model = given.unwrap_or(simplest);
        if model.rate(medium).is_none() {
            return Err(say(format!("a drive of that model does not take a disk of {size} bytes")));
        }
    }
    Ok(Floppy { unit: FloppyUnit { model, turbo: drive.bool("turbo") }, content })
}

/// What cannot be plugged in.
pub fn check(node: &Node) -> Vec<Error> {
    let say = |message: &str, allowed: &str| Problem::new(message).allowed(allowed);
    let by_instructions = node.text("clock") == "instructions";
    let waits = |disk: &&Node| by_instructions && disk.text("on_error") == "pause";
    let waits = node.children("disk").iter().filter(waits);
    let waits =
        waits.map(|d| d.error("on_error", say("guest time that follows instructions waits for no host", "report")));
    let rates = node.children("nic").iter().filter_map(|nic| {
        let text: &str = nic.maybe("rate")?;
        let problem = match rate(text) {
            None => say(&format!("{text:?} is no number of bits a second"), "100K to 100G"),
            Some(_) if by_instructions => say("guest time that follows instructions waits for no host", "no rate"),
            Some(_) => return None,
        };
        Some(nic.error("rate", problem))
    });
    let names = config::port_names(node);
    let taken = |n: usize, name: &String| {
        let reserved = ["screen", "sock", "mac", "pid"].contains(&name.as_str());
        reserved || names.iter().enumerate().any(|(m, other)| m != n && other == name)
    };
    let ports = names.iter().zip(node.children("serial")).enumerate();
    let ports: Vec<Error> = ports
        .filter(|(n, (name, serial))| serial.is_given("port") && taken(*n, name))
        .map(|(_, (name, serial))| {
            serial.error("port", say(&format!("something else is called {name}"), "a name of its own"))
        })
        .collect();
    let coms = node.children("serial").iter().filter(|serial| is_com(serial)).skip(MAX_COMS);
    let coms = coms.map(|serial| serial.error("model", say("there are four such ports", "uart, virtio-console")));
    let planned = Plan::of(node, false);
    let acpi = node.child("acpi");
    let beyond = planned.as_ref().is_ok_and(|plan| plan.placed.iter().any(|p| p.bdf.bus > 0));
    let beyond = (beyond && acpi.bool("mptable")).then(|| {
        acpi.error("mptable", say("the MP table knows no PCI bus but 0", "false (-Y of bhyve) with devices on others"))
    });
    let planned = planned.err().unwrap_or_default();
    planned
        .into_iter()
        .filter_map(|e| e.downcast::<Error>().ok())
        .chain(waits)
        .chain(rates)
        .chain(coms)
        .chain(ports)
        .chain(beyond)
        .collect()
}

/// What goes where, without the images of a checked configuration.
///
/// # Errors
/// What cannot be.
pub fn sketch(node: &Node) -> Result<Plan> {
    Plan::of(node, false).map_err(|errors| errors.into_iter().next().unwrap_or_else(|| anyhow!("no reason")))
}

/// Opens and locks the images, and says what goes where.
///
/// # Errors
/// When one cannot be had; the message names it.
pub fn open(node: &Node) -> Result<Plan> {
    Plan::of(node, true).map_err(|errors| errors.into_iter().next().unwrap_or_else(|| anyhow!("no reason")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn macs(words: &[&str]) -> Vec<String> {
        let nics = ["name=x", "nic.0.backend=none", "nic.1.backend=none"];
        let node = config::from_settings(&[&nics[..], words].concat()).unwrap();
        let plan = Plan::of(&node, false).map_err(|e| e.len()).unwrap();
        plan.placed.iter().filter_map(|p| p.params.get("mac")).map(str::to_owned).collect()
    }

    #[test]
    fn addresses_are_bhyves_or_those_of_the_maker_that_a_profile_stands_for() {
        // The MD5 of "5-0-vm0" begins so.
        let digest = md5::compute("5-0-vm0").0;
        let of = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":");
        assert_eq!(mac("5-0-vm0", MAKER), of(&[0, 0xa0, 0x98, digest[0], digest[1], digest[2]]));
        assert!(mac("5-0-vm0", [0, 0x15, 0x5d]).starts_with("00:15:5d:"));
        let long = "n".repeat(100);
        assert_eq!(mac(&long, MAKER), mac(&long[..79], MAKER), "bhyve cuts it off");
        assert_ne!(mac("5-1-vm0", MAKER), mac("5-0-vm0", MAKER));
    }

    /// Makers whose cards de(4) takes for boards with media of their own.
    const STRANGE: [[u8; 3]; 10] = [
        [0x08, 0x00, 0x2b],
        [0x00, 0x00, 0xf8],
        [0x00, 0x00, 0xc0],
        [0x00, 0xe0, 0x29],
        [0x00, 0xc0, 0x95],
        [0x00, 0x00, 0x92],
        [0x00, 0x00, 0xd1],
        [0x00, 0x00, 0x94],
        [0x00, 0x00, 0xe8],
        [0x00, 0x80, 0x48],
    ];

    #[test]
    fn each_profile_is_a_machine_whose_cards_are_of_its_maker() {
        for profile in config::profiles() {
            let settings = ["name=x".to_owned(), format!("profile={profile}")];
            config::from_settings(&settings).unwrap_or_else(|e| panic!("{profile}: {e}"));
            let card = [&settings[..], &["nic.0.backend=none".to_owned()]].concat();
            let node = config::from_settings(&card).unwrap_or_else(|e| panic!("{profile}: {e}"));
            let maker = config::maker(&node);
            assert!(!STRANGE.contains(&maker) && maker[0] & 3 == 0, "{profile}");
            let plan = Plan::of(&node, false).map_err(|e| e.len()).unwrap();
            let prefix = maker.map(|b| format!("{b:02x}:")).concat();
            assert!(plan.addresses().iter().all(|mac| mac.starts_with(&prefix)), "{profile}");
        }
    }

    #[test]
    fn rates_are_bits_in_powers_of_ten() {
        assert_eq!(rate("10M"), Some(10_000_000));
        assert_eq!(rate("1g"), Some(1_000_000_000));
        assert_eq!(rate("128000"), Some(128_000));
        for wrong in ["", "M", "10T", "1K", "-5M", "1.5M", "18446744073709551615G"] {
            assert_eq!(rate(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn each_card_of_each_seed_has_an_address_of_its_own() {
        let plain = macs(&[]);
        assert!(plain.len() == 2 && plain[0] != plain[1] && plain.iter().all(|m| m.starts_with("00:a0:98:")));
        assert_eq!(macs(&["seed=7"]), plain, "a real clock knows no seed");
        assert_eq!(macs(&["seed=0", "clock=instructions"]), plain);
        let seeded = macs(&["seed=7", "clock=instructions"]);
        assert!(seeded.iter().all(|m| !plain.contains(m)), "{seeded:?}");
        assert_eq!(macs(&["seed=7", "clock=instructions"]), seeded);
    }
}
