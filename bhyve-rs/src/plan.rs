//! What is plugged into a machine: from the sections of its configuration to models in PCI slots.
//!
//! The plan is made twice, by the same steps: without images when a configuration is checked, so that everything that
//! cannot be is said at once, and with them when the machine is built.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, LazyLock};

use anyhow::{Context, Result, anyhow};
use boot::bios::DriveKind;
use cfg::{Error, Key, Kind, Node, PciSlot, Problem};
use devices::MODELS;
use emu::backend::Disk;
use emu::{Backends, Bdf, Class, DeviceCell, Machine, Model, ParamKind, Params, Slot, Unit};
use host::disk::{Format, Image, ImageOptions, OnError};
use host::net::Wire;
use lpc::{FloppyModel, FloppyUnit, I82077aa, Medium};

use crate::board::{self, Board};
use crate::config;
use crate::media::{Drive, Media};

/// The controller that the board brings.
const IDE: &str = "ide";
/// Where CD-ROM drives go on its four units: to a cable of their own while there is room.
const IDE_CDS: [usize; 4] = [2, 3, 1, 0];

/// The adapter that is none.
pub const NO_SCREEN: &str = "none";
/// Where the adapter goes if it can.
const SCREEN_SLOT: PciSlot = PciSlot { bus: 0, slot: 2, function: 0 };

/// Whether a section can name models of a class.
fn fits(section: &str, class: Class) -> bool {
    match class {
        Class::Storage { cds, .. } => section == "disk" || section == "cd" && cds,
        Class::Network => section == "nic",
        Class::Display => section == "screen",
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
fn is_boards(model: &Model) -> bool {
    board::ALL.iter().any(|b| b.ide.is_some_and(|ide| ide.name == model.name))
}

/// The models that a section can name.
pub fn words(section: &str) -> Vec<&'static str> {
    if section == "floppy" {
        return FloppyModel::ALL.map(|(name, _)| name).into();
    }
    let ours = match section {
        "disk" | "cd" => Some(IDE),
        "screen" => Some(NO_SCREEN),
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
    rom: Option<Vec<u8>>,
    /// Which of the network cards it is, if a script has its cable.
    scripted: Option<u32>,
}

impl Placed {
    /// A device with nothing at its units.
    fn new(model: &'static Model, bdf: Bdf, params: Params, closed: bool, units: usize) -> Placed {
        let images = (0..units).map(|_| None).collect();
        Placed { model, bdf, params, closed, units: vec![Unit::None; units], images, rom: None, scripted: None }
    }
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
        let closed = slot.is_some() || own.iter().any(|k| node.is_given(k.name));
        Ok(Want { model, slot, params: Params::new(params), closed })
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
                let put = Want::new(nic).and_then(|want| plan.card(want, &config::identity(node)));
                let scripted = Some(nic.index()).filter(|_| nic.text("backend") == "script");
                errors.extend(put.map(|card| card.scripted = scripted).err().map(|p| at_key(nic, p).into()));
            }
            for other in node.children("device").iter().filter(|d| d.is_given("slot") == has_slot) {
                let put = Want::new(other).and_then(|want| plan.put(want).map(|_| ()));
                errors.extend(put.err().map(|p| at_key(other, p).into()));
            }
        }
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
        if files && node.is_given("rom") {
            let path = node.path("rom");
            placed.rom = Some(std::fs::read(path).with_context(|| path.display().to_string())?);
        }
        Ok(())
    }

    /// Adds a disk of the machine's usual kind.
    pub fn disk(&mut self, model: &str, image: Image) -> Result<()> {
        let content = Content { name: "disk0".to_owned(), options: ImageOptions::default(), image };
        self.drive(Want { model, ..Want::default() }, Unit::Disk, Some(content)).map_err(|p| anyhow!("{}", p.message))
    }

    /// Adds a network card to a machine of this name. Nothing is connected to it.
    pub fn nic(&mut self, model: &str, machine: &str) -> Result<()> {
        self.card(Want { model, ..Want::default() }, machine).map(|_| ()).map_err(|p| anyhow!("{}", p.message))
    }

    fn card(&mut self, want: Want, machine: &str) -> Result<&mut Placed, Problem> {
        let card = self.put(want)?;
        if card.params.get("mac").is_none() {
            card.params.set("mac", &mac(machine, card.bdf));
        }
        Ok(card)
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
            model => self.placed.iter_mut().find(|p| p.model.name == model && fits(p)),
        };
        let place = match free {
            Some(place) => place,
            None => self.put(want)?,
        };
        let order: Vec<usize> = match unit {
            Unit::Cd if place.bdf.func == 1 => IDE_CDS.into(),
            _ => (0..place.units.len()).collect(),
        };
        if let Some(at) = order.into_iter().find(|at| place.units[*at] == Unit::None) {
            (place.units[at], place.images[at]) = (unit, image);
        }
        Ok(())
    }

    /// Puts a new device into its slot.
    fn put(&mut self, want: Want) -> Result<&mut Placed, Problem> {
        let model = MODELS.iter().find(|m| m.name == want.model).expect("the schema lets known models through");
        let bdf = match want.slot {
            Some(PciSlot { bus: 0, slot, function: 0 }) if self.is_free(slot) => Bdf::new(slot, 0),
            Some(slot) => {
                let taken = format!("slot {slot} cannot be had");
                return Err(Problem::new(taken).allowed("function 0 of a device on bus 0 that is not the board's"));
            }
            None => {
                let free = (self.board.first_slot..32).find(|slot| self.is_free(*slot));
                Bdf::new(free.ok_or_else(|| Problem::new("all PCI slots are taken"))?, 0)
            }
        };
        let units = if let Class::Storage { units, .. } = model.class { units } else { 0 };
        self.placed.push(Placed::new(model, bdf, want.params, want.closed, units));
        Ok(self.placed.last_mut().expect("just put in"))
    }

    fn is_free(&self, slot: u8) -> bool {
        slot > 0 && slot < 32 && slot != self.board.isa_bridge && self.placed.iter().all(|p| p.bdf.dev != slot)
    }

    /// The kinds of floppy drives, the first is A.
    pub fn floppies(&self) -> Vec<FloppyModel> {
        self.floppies.iter().map(|f| f.unit.model).collect()
    }

    /// The paths, as Open Firmware's, of what boots in the order of these words of `boot.order`.
    pub fn boot_order(&self, order: &[String]) -> Vec<String> {
        let mut paths = Vec::new();
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
                let Bdf { dev, func, .. } = placed.bdf;
                let at = if func == 0 { format!("{dev:x}") } else { format!("{dev:x},{func:x}") };
                paths.push(match placed.model.name {
                    name if name.starts_with("virtio") => format!("/pci@i0cf8/scsi@{at}/disk@0,0"),
                    "nvme" => format!("/pci@i0cf8/pci8086,5845@{at}/namespace@{},0", n + 1),
                    name if name.starts_with("ahci") => format!("/pci@i0cf8/pci8086,2922@{at}/drive@{n}/disk@0"),
                    _ => format!("/pci@i0cf8/ide@{at}/drive@{}/disk@{}", n / 2, n % 2),
                });
            }
        }
        paths
    }

    /// Plugs everything in.
    ///
    /// # Errors
    /// What a device says, or the host has no threads for the disks.
    pub fn plug(self, machine: &Arc<Machine>, board: &Board) -> Result<Peripherals> {
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
            let net = p.scripted.map(|nic| {
                let (wire, net) = Wire::start(machine, &format!("wire{nic}"));
                plugged.wires.insert(nic, wire);
                net
            });
            let backends = Backends { disks, units: p.units, rom: p.rom, net, ..Backends::default() };
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

/// A problem with where something goes, at the key that decides it.
fn at_key(node: &Node, problem: Problem) -> Error {
    node.error(if node.is_given("slot") { "slot" } else { "model" }, problem)
}

/// An Ethernet address that stays with a machine's name and the slot: bhyve's prefix and FNV-1a over both.
fn mac(machine: &str, bdf: Bdf) -> String {
    let place = bdf.to_string();
    let hash = |h: u32, b: u8| (h ^ u32::from(b)).wrapping_mul(0x0100_0193);
    let [_, a, b, c] = machine.bytes().chain([0]).chain(place.bytes()).fold(0x811c_9dc5, hash).to_be_bytes();
    format!("00:a0:98:{a:02x}:{b:02x}:{c:02x}")
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
            write_through: drive.text("cache") == "writethrough",
            direct: drive.text("cache") == "none",
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
    let cables = node.children("nic").iter().filter(|nic| !matches!(nic.text("backend"), "none" | "script"));
    let cables = cables.map(|nic| nic.error("backend", say("this version has no networks", "none, script")));
    let planned = Plan::of(node, false).err().unwrap_or_default();
    planned.into_iter().filter_map(|e| e.downcast::<Error>().ok()).chain(waits).chain(cables).collect()
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
