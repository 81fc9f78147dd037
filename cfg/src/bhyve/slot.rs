//! `-s slot,device,options`: where a device goes, and what its options set.

use super::{Config, FAILED, Refusal, or_near};
use crate::error::quoted;
use crate::tree::Origin;

/// How the options of a device are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opts {
    /// `name=value`, or a name alone for true.
    Plain,
    /// The first is the value of this key, the others as above.
    First(&'static str),
    /// The path of one target, or `target=[id:]path` for each; the others as above.
    Targets,
    /// `hd:path,options,cd:path,...`: a port each.
    Ports,
    /// The path and the options of port 0, which is of this type.
    Port(&'static str),
    /// `name=path`: a share, or `ro`.
    Share,
    /// `name=path,...`: a port each.
    Named,
    /// Names of devices in slots from 1.
    Slots,
    /// A path, or `ram=size`.
    PathOrRam,
    /// `bus/slot/function`, `pciB:S:F` or `pptN`.
    Host,
    /// `tcp=` is another word for `rfb=`.
    Screen,
    /// Nothing of its own; these ids.
    Ids(&'static [(&'static str, &'static str)]),
}

/// A device as `-s` knows it.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    /// Its name.
    pub name: &'static str,
    /// What it is called in the tree.
    pub device: &'static str,
    /// How its options are written.
    pub opts: Opts,
}

const fn device(name: &'static str, opts: Opts) -> Device {
    Device { name, device: name, opts }
}

const AMD: Opts = Opts::Ids(&[("pcireg.vendor", "0x1022"), ("pcireg.device", "0x7432")]);

/// bhyve's own, as `-s help` lists them.
pub const DEVICES: &[Device] = &[
    device("ahci", Opts::Ports),
    Device { name: "ahci-hd", device: "ahci", opts: Opts::Port("hd") },
    Device { name: "ahci-cd", device: "ahci", opts: Opts::Port("cd") },
    device("e1000", Opts::First("backend")),
    device("dummy", Opts::Plain),
    device("fbuf", Opts::Screen),
    device("hda", Opts::Plain),
    Device { name: "amd_hostbridge", device: "hostbridge", opts: AMD },
    device("hostbridge", Opts::Plain),
    device("lpc", Opts::Plain),
    device("nvme", Opts::PathOrRam),
    device("passthru", Opts::Host),
    device("uart", Opts::First("path")),
    device("virtio-9p", Opts::Share),
    device("virtio-blk", Opts::First("path")),
    device("virtio-console", Opts::Named),
    device("virtio-input", Opts::First("path")),
    device("virtio-net", Opts::First("backend")),
    device("virtio-rnd", Opts::Plain),
    device("virtio-scsi", Opts::Targets),
    device("xhci", Opts::Slots),
];

/// Sets what a slot option says. `extra` are devices beside bhyve's.
pub(super) fn set(config: &mut Config, opt: &str, extra: &[Device], origin: &Origin) -> Result<(), Refusal> {
    let refuse = |message: String| Refusal { status: FAILED, message, usage: false };
    let invalid = || refuse(format!("Invalid PCI slot info field \"{}\"", opt.escape_debug()));
    let (place, rest) = opt.split_once(',').ok_or_else(invalid)?;
    let (bus, slot, function) = place_of(place).ok_or_else(invalid)?;
    let (name, options) = rest.split_once(',').map_or((rest, None), |(name, options)| (name, Some(options)));
    let at = format!("pci slot {bus}:{slot}:{function}");
    let mut known = DEVICES.iter().chain(extra);
    let Some(device) = known.find(|device| device.name == name) else {
        let near = or_near(name, DEVICES.iter().chain(extra).map(|device| device.name));
        return Err(refuse(format!("{at}: unknown device \"{}\"{near}", name.escape_debug())));
    };
    let node = format!("pci.{bus}.{slot}.{function}");
    if config.has_node(&node) {
        return Err(refuse(format!("{at} already occupied!")));
    }
    config.set(&format!("{node}.device"), device.device, origin)?;
    let mut set = |key: &str, value: &str| config.set(&format!("{node}.{key}"), value, origin);
    if let Opts::Ids(ids) = device.opts {
        ids.iter().try_for_each(|(key, value)| set(key, value))?;
    }
    let Some(options) = options else {
        return match device.opts {
            // A drive without a disk.
            Opts::Port(kind) => set("port.0.type", kind),
            _ => Ok(()),
        };
    };
    let bad = |why: &str| refuse(format!("{at}: Invalid {name} emulation \"{}\": {why}", options.escape_debug()));
    let mut words = options.split(',');
    match device.opts {
        Opts::Plain | Opts::Ids(_) => words.try_for_each(|word| option(&mut set, word)),
        Opts::First(key) => {
            let first = words.next().unwrap_or_default();
            if !first.is_empty() {
                set(key, first)?;
            }
            words.try_for_each(|word| option(&mut set, word))
        }
        Opts::Targets => {
            let mut words = words.peekable();
            let mut last = None;
            if let Some(path) = words.next_if(|word| !word.contains('=')).filter(|path| !path.is_empty()) {
                set("dev", path)?;
                last = Some(0);
            }
            let mut taken = Vec::new();
            words.try_for_each(|word| {
                let Some(target) = word.strip_prefix("target=") else { return option(&mut set, word) };
                let (id, path) = match target.split_once(':').filter(|_| !target.starts_with('/')) {
                    Some((id, path)) => (id.parse().ok(), path),
                    None => (last.map_or(Some(0), |last: u8| last.checked_add(1)), target),
                };
                let id = id.filter(|_| !path.is_empty()).ok_or_else(|| bad("it is target=[id:]path, id 0 to 255"))?;
                if taken.contains(&id) {
                    return Err(bad("two targets have one id"));
                }
                taken.push(id);
                last = last.max(Some(id));
                set(&format!("target.{id}"), path)
            })
        }
        Opts::Port(kind) => {
            set("port.0.type", kind)?;
            let first = words.next().unwrap_or_default();
            if !first.is_empty() {
                set("port.0.path", first)?;
            }
            words.try_for_each(|word| option(&mut |key: &str, value: &str| set(&format!("port.0.{key}"), value), word))
        }
        Opts::Ports => {
            let mut port: Option<u32> = None;
            for word in words {
                if let Some((kind @ ("hd" | "cd"), path)) = word.split_once(':') {
                    let n = port.map_or(0, |n| n + 1);
                    port = Some(n);
                    set(&format!("port.{n}.type"), kind)?;
                    if !path.is_empty() {
                        set(&format!("port.{n}.path"), path)?;
                    }
                } else {
                    let n = port.ok_or_else(|| bad("the first is hd:path or cd:path"))?;
                    option(&mut |key: &str, value: &str| set(&format!("port.{n}.{key}"), value), word)?;
                }
            }
            Ok(())
        }
        Opts::Share => words.try_for_each(|word| match word.split_once('=') {
            Some((share, path)) if !share.is_empty() && !path.is_empty() => {
                set("sharename", share)?;
                set("path", path)
            }
            None if word == "ro" => set("ro", "true"),
            _ => Err(bad("it is name=path")),
        }),
        Opts::Named => (0..).zip(words).try_for_each(|(n, word)| match word.split_once('=') {
            Some((port, path)) if !port.is_empty() && !path.is_empty() => {
                set(&format!("port.{n}.name"), port)?;
                set(&format!("port.{n}.path"), path)
            }
            _ => Err(bad("it is name=path")),
        }),
        Opts::Slots => (1..).zip(words).try_for_each(|(n, word)| match word {
            "" => Err(bad("an empty name")),
            word => set(&format!("slot.{n}.device"), word),
        }),
        Opts::PathOrRam => {
            let first = words.next().unwrap_or_default();
            match first.strip_prefix("ram=") {
                Some(size) => set("ram", size)?,
                None if first.is_empty() => {}
                None => set("path", first)?,
            }
            words.try_for_each(|word| option(&mut set, word))
        }
        Opts::Screen => words.try_for_each(|word| match word.split_once('=') {
            Some(("tcp", address)) => set("rfb", address),
            // Older bhyves know no other way to say that there is none.
            Some(("password", "")) => Ok(()),
            _ => option(&mut set, word),
        }),
        Opts::Host => {
            let first = words.next().unwrap_or_default();
            let numbers = |text: &str, separator: char| -> Option<Vec<String>> {
                let numbers: Vec<String> = text.split(separator).map(str::to_owned).collect();
                let good = numbers.iter().all(|n| n.parse::<u8>().is_ok());
                (good && numbers.len() == 3).then_some(numbers)
            };
            let place = first.strip_prefix("pci").map_or_else(|| numbers(first, '/'), |place| numbers(place, ':'));
            match place {
                Some(place) => {
                    ["bus", "slot", "func"].iter().zip(place).try_for_each(|(key, value)| set(key, &value))?;
                }
                None if first.starts_with("ppt") => set("pptdev", first)?,
                None => return Err(bad("it is bus/slot/function, pciB:S:F or pptN")),
            }
            words.try_for_each(|word| option(&mut set, word))
        }
    }
}

/// `name=value`, or a name alone, which stands for true.
fn option(set: &mut dyn FnMut(&str, &str) -> Result<(), Refusal>, word: &str) -> Result<(), Refusal> {
    match word.split_once('=') {
        None if word.is_empty() => Ok(()),
        None => set(word, "true"),
        Some((key, "")) => Err(Refusal::new(FAILED, format!("the option {} has no value", quoted(key)))),
        Some((key, value)) => set(key, value),
    }
}

/// `S`, `S:F` or `B:S:F`.
fn place_of(text: &str) -> Option<(u8, u8, u8)> {
    let numbers: Vec<u8> = text.split(':').map(decimal).collect::<Option<_>>()?;
    let (bus, slot, function) = match numbers[..] {
        [slot] => (0, slot, 0),
        [slot, function] => (0, slot, function),
        [bus, slot, function] => (bus, slot, function),
        _ => return None,
    };
    (slot < 32 && function < 8).then_some((bus, slot, function))
}

fn decimal(text: &str) -> Option<u8> {
    if text.chars().all(|c| c.is_ascii_digit()) { text.parse().ok() } else { None }
}
