//! Between bhyve's tree and ours.
//!
//! What bhyve has and this schema has a key for gets that key; the rest is kept under `bhyve.`, so that nothing is lost
//! on the way there and back, and [`lacking`] says what of it a machine cannot do without.

use std::collections::BTreeSet;

use cfg::bhyve::{Config, DEVICES, Device, Opts};
use cfg::{Address, Draft, Entry, Error, Errors, Node, Origin, Problem, Tree};
use devices::MODELS;
use emu::Class;

use crate::plan;

/// What selects the built-in BIOS where bhyve wants a boot ROM: this word, or a file that begins with [`MARKER`].
pub const BUILT_IN: &str = "bios";
/// The first line of a file that stands for the built-in BIOS where a tool insists on a file.
pub const MARKER: &str = "bhyve-rs built-in BIOS";

/// Our models beside bhyve's, as `-s` takes them.
pub fn extra_devices() -> Vec<Device> {
    let is_ours = |name: &str| DEVICES.iter().all(|device| device.name != name);
    let ours = MODELS.iter().filter(|model| !plan::is_boards(model) && is_ours(model.name));
    let opts = |class| match class {
        Class::Storage { .. } => Opts::First("path"),
        Class::Network => Opts::First("backend"),
        _ => Opts::Plain,
    };
    ours.map(|model| Device { name: model.name, device: model.name, opts: opts(model.class) }).collect()
}

/// Whether a boot ROM stands for the built-in BIOS.
pub fn is_built_in(rom: &str) -> bool {
    use std::io::Read;
    let marked = || {
        let mut begin = Vec::new();
        let file = std::fs::File::open(rom).ok()?;
        file.take(MARKER.len() as u64).read_to_end(&mut begin).ok()?;
        Some(begin == MARKER.as_bytes())
    };
    rom == BUILT_IN || marked().unwrap_or(false)
}

/// A machine's configuration in the making.
struct Out<'a> {
    from: &'a Config,
    draft: Draft,
    used: BTreeSet<String>,
    errors: Vec<Error>,
}

impl Out<'_> {
    /// The value of a key with its place, when it was written; it needs no other home then.
    fn take(&mut self, key: &str) -> Option<(String, Origin)> {
        self.used.insert(key.to_owned());
        if !self.from.is_given(key) {
            return None;
        }
        let origin = self.from.value(key)?.origin.clone();
        match self.from.text(key) {
            Ok(text) => Some((text?, origin)),
            Err(e) => {
                self.errors.push(*e);
                None
            }
        }
    }

    fn boolean(&mut self, key: &str) -> Option<(bool, Origin)> {
        let (_, origin) = self.take(key)?;
        match self.from.bool(key, false) {
            Ok(value) => Some((value, origin)),
            Err(e) => {
                self.errors.push(*e);
                None
            }
        }
    }

    fn set(&mut self, key: &str, value: &str, origin: &Origin) {
        self.draft.set(&format!("{key}={}", value.replace('%', "%%")), origin);
    }

    /// Gives the value of bhyve's key to ours.
    fn copy(&mut self, theirs: &str, ours: &str) {
        if let Some((value, origin)) = self.take(theirs) {
            self.set(ours, &value, &origin);
        }
    }

    fn copy_bool(&mut self, theirs: &str, ours: &str) {
        if let Some((value, origin)) = self.boolean(theirs) {
            self.set(ours, if value { "true" } else { "false" }, &origin);
        }
    }

    /// Keeps a key as it is beside what was made of it.
    fn keep(&mut self, key: &str) {
        self.used.remove(key);
    }

    fn wrong(&mut self, key: &str, message: impl Into<String>, allowed: &str) {
        self.errors.push(*self.from.wrong(key, message.into(), allowed));
    }
}

/// The machine that bhyve's tree describes, unchecked.
///
/// # Errors
/// Values that bhyve would refuse as well.
pub fn to_machine(from: &Config) -> Result<Draft, Errors> {
    let draft = Draft::new(Origin::named("bhyve(8)"));
    let mut out = Out { from, draft, used: BTreeSet::new(), errors: Vec::new() };
    let ours = Origin::named("bhyve(8)");
    out.set("profile", "bhyve", &ours);
    out.set("screen.model", plan::NO_SCREEN, &ours);
    out.copy("name", "name");
    out.copy("memory.size", "memory");
    out.copy("uuid", "uuid");
    out.copy_bool("memory.wired", "host.wired");
    out.copy_bool("memory.guest_in_core", "host.core");
    out.copy_bool("x86.mptable", "acpi.mptable");
    out.copy_bool("x86.strictmsr", "cpu.strictmsr");
    out.copy_bool("x86.strictio", "cpu.strictio");
    // Unlike ours, bhyve's clock shows local time if nothing is said.
    match out.boolean("rtc.use_localtime") {
        Some((local, origin)) => out.set("rtc.use_localtime", if local { "true" } else { "false" }, &origin),
        None => out.set("rtc.use_localtime", "true", &ours),
    }
    // Unlike ours, bhyve's processors have no x2APIC if nothing is said.
    let x2apic = out.boolean("x86.x2apic");
    if x2apic.as_ref().is_none_or(|(on, _)| !on) && !from.is_given("bhyve-rs.cpu.disable") {
        out.set("cpu.disable", X2APIC, &x2apic.map_or(ours.clone(), |(_, origin)| origin));
    }
    topology(&mut out);
    pins(&mut out);
    domains(&mut out);
    items(&mut out);
    for section in ["bios", "system", "board", "chassis"] {
        for name in from.names(section) {
            out.copy(&format!("{section}.{name}"), &format!("smbios.{section}.{name}"));
        }
    }
    firmware(&mut out);
    debugger(&mut out);
    (1..=4).for_each(|n| serial(&mut out, n));
    let coms = (1..=4).rev().find(|n| from.is_given(&format!("lpc.com{n}.path"))).unwrap_or(0);
    let mut counts = Counts { lines: coms, ..Counts::default() };
    for bus in from.names("pci") {
        for slot in from.names(&format!("pci.{bus}")) {
            for function in from.names(&format!("pci.{bus}.{slot}")) {
                device(&mut out, &mut counts, &format!("{bus}.{slot}.{function}"));
            }
        }
    }
    order(&mut out, &counts);
    if let Some((name, origin)) = out.take("keyboard.layout") {
        match keyboard(&name) {
            None if counts.screen => out.set("screen.keyboard_file", &format!("{LAYOUTS}{name}"), &origin),
            ours => {
                if let Some(ours) = ours.filter(|_| counts.screen) {
                    out.set("screen.keyboard", ours, &origin);
                }
                out.keep("keyboard.layout");
            }
        }
    }
    // The BIOS's own console is COM1 where there is no screen.
    if from.is_given("lpc.com1.path") && !counts.screen {
        out.set("boot.serial", "true", &ours);
    }
    for key in from.keys() {
        // What only we have.
        if let Some(own) = key.strip_prefix("bhyve-rs.") {
            out.copy(&key, own);
        }
    }
    let left = |key: &String| from.is_given(key) && !out.used.contains(key);
    for key in from.keys().into_iter().filter(left).collect::<Vec<_>>() {
        if let Some(value) = from.value(&key) {
            out.set(&format!("bhyve.{key}"), &value.text, &value.origin);
        }
    }
    if out.errors.is_empty() { Ok(out.draft) } else { Err(Errors::sorted(out.errors)) }
}

/// The feature's name.
const X2APIC: &str = "x2apic";

/// Processors, by bhyve's rules for what is left out.
fn topology(out: &mut Out) {
    let keys = ["cpus", "sockets", "cores", "threads"];
    let taken = keys.map(|key| out.take(key));
    let numbers = keys.map(|key| match out.from.int(key, 1..=65535) {
        Ok(n) => n,
        Err(e) => {
            out.errors.push(*e);
            None
        }
    });
    let [cpus, sockets, cores, threads] = numbers;
    let (cores, threads) = (cores.unwrap_or(1), threads.unwrap_or(1));
    let sockets = sockets.unwrap_or(cpus.unwrap_or(1));
    let all = sockets * cores * threads;
    let Some((_, origin)) = taken.iter().flatten().next().cloned() else { return };
    if cpus.is_some_and(|cpus| cpus != all) {
        let cpus = cpus.unwrap_or_default();
        let message =
            format!("Topology ({sockets} sockets, {cores} cores, {threads} threads) does not match {cpus} vCPUs");
        return out.wrong("cpus", message, "");
    }
    out.set("cpus", &all.to_string(), &origin);
    // bhyve gives each processor a socket of its own.
    if all > 1 {
        for (key, n) in [("sockets", sockets), ("cores", cores), ("threads", threads)] {
            out.set(&format!("cpu.{key}"), &n.to_string(), &origin);
        }
    }
}

/// Which processors of the host run ours. bhyve takes no notice of what is said of processors that there are not.
fn pins(out: &mut Out) {
    let cpus = out.draft.tree().text("cpus").and_then(|n| n.parse().ok()).unwrap_or(1u64);
    let mut pins = Vec::new();
    let mut origin = None;
    for vcpu in out.from.names("vcpu") {
        if vcpu.parse::<u64>().is_ok_and(|n| n < cpus)
            && let Some((set, from)) = out.take(&format!("vcpu.{vcpu}.cpuset"))
        {
            pins.extend(set.split(',').map(|part| format!("{vcpu}:{part}")));
            origin = Some(from);
        }
    }
    if let Some(origin) = origin {
        out.set("cpu.pin", &pins.join(","), &origin);
    }
}

/// NUMA domains. Where bhyve is told no memory of the machine, it is that of all domains.
fn domains(out: &mut Out) {
    let numbers = out.from.names("domains");
    let mut sizes = Vec::new();
    for (n, number) in numbers.iter().enumerate() {
        let key = |name: &str| format!("domains.{number}.{name}");
        if *number != n.to_string() {
            let given = ["cpus", "size"].into_iter().map(key).find(|key| out.from.is_given(key));
            return out.wrong(&given.unwrap_or_default(), format!("there is no domain {n}"), "numbers from 0 on");
        }
        out.copy(&key("cpus"), &format!("domain.{n}.cpus"));
        if let Some((size, origin)) = out.take(&key("size")) {
            out.set(&format!("domain.{n}.size"), &size, &origin);
            sizes.extend(cfg::bytes(&size).map(|size| (size, origin)));
        }
    }
    if let Some((_, origin)) = sizes.first().filter(|_| sizes.len() == numbers.len())
        && !out.from.is_given("memory.size")
    {
        let all: u64 = sizes.iter().map(|(size, _)| size).sum();
        out.set("memory", &format!("{all}B"), &origin.clone());
    }
}

/// What is in fw_cfg.
fn items(out: &mut Out) {
    for (n, item) in out.from.names("fwcfg").iter().enumerate() {
        for name in ["name", "string", "file"] {
            out.copy(&format!("fwcfg.{item}.{name}"), &format!("fwcfg.{n}.{name}"));
        }
    }
    // Said of the device or of the bridge that has it.
    let bridges = out.from.names("pci.0").into_iter().map(|slot| format!("pci.0.{slot}.0.fwcfg"));
    for key in ["lpc.fwcfg".to_owned()].into_iter().chain(bridges) {
        if out.from.text(&key).ok().flatten().as_deref() == Some("qemu") {
            out.copy(&key, "lpc.fwcfg");
            // Where it was said is told by no key of ours.
            out.keep(&key);
        }
    }
}

fn firmware(out: &mut Out) {
    let keys = ["bootrom", "bootvars"].map(|key| match out.from.is_given(key) {
        true => key.to_owned(),
        // Where they were before.
        false => format!("lpc.{key}"),
    });
    let [rom, vars] = keys.each_ref().map(|key| out.take(key));
    let Some((rom, origin)) = rom else { return };
    if is_built_in(&rom) {
        // Which file it was is told by no key of ours.
        return keys.iter().for_each(|key| out.keep(key));
    }
    out.set("boot.firmware", &rom, &origin);
    if let Some((vars, origin)) = vars {
        out.set("boot.vars", &vars, &origin);
    }
}

/// The debug server. Port 0 is bhyve's word for none.
fn debugger(out: &mut Out) {
    let port = out.from.value("gdb.port").map(|value| value.text.clone());
    if port.is_none_or(|port| port == "0") {
        return;
    }
    let Some((port, origin)) = out.take("gdb.port") else { return };
    match out.take("gdb.address") {
        None => out.set("debug.address", &port, &origin),
        Some((address, origin)) => {
            let host = address.trim_matches(['[', ']']);
            let at = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
            out.set("debug.address", &at, &origin);
            if !is_here(host) {
                out.set("debug.remote", "true", &origin);
            }
            // As it was written.
            if address != host {
                out.keep("gdb.address");
            }
        }
    }
    out.copy_bool("gdb.wait", "debug.wait");
}

/// Whether nobody but this host reaches an address.
fn is_here(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}

/// A serial port. bhyve numbers them from 1.
fn serial(out: &mut Out, n: usize) {
    let Some((path, origin)) = out.take(&format!("lpc.com{n}.path")) else {
        // Ports are numbered without gaps.
        let later = (n + 1..=4).any(|n| out.from.is_given(&format!("lpc.com{n}.path")));
        if later {
            out.set(&format!("serial.{}.backend", n - 1), "none", &Origin::named("bhyve(8)"));
        }
        return;
    };
    line(out, &format!("serial.{}", n - 1), &path, &origin);
}

/// Where bhyve says that a serial line ends.
fn line(out: &mut Out, at: &str, path: &str, origin: &Origin) {
    let (backend, key, value) = match path.split_once('=') {
        _ if matches!(path, "stdio" | "console" | "pty" | "none") => (path, "", ""),
        Some(("tcp", address)) => ("tcp", "address", address),
        Some(("pty", link)) => ("pty", "path", link),
        Some(("unix", path)) => ("socket", "path", path),
        Some(("file", path)) => ("file", "path", path),
        _ if path.starts_with("/dev/nmdm") => ("nmdm", "path", path),
        _ => ("tty", "path", path),
    };
    out.set(&format!("{at}.backend"), backend, origin);
    if !key.is_empty() {
        out.set(&format!("{at}.{key}"), value, origin);
    }
}

/// How many there are of each so far.
#[derive(Default)]
struct Counts {
    disks: usize,
    cds: usize,
    nics: usize,
    shares: usize,
    usbs: usize,
    inputs: usize,
    sounds: usize,
    others: usize,
    lines: usize,
    screen: bool,
    /// By `bootindex`: the word of `boot.order`.
    boot: Vec<(i64, &'static str, Origin)>,
}

/// Where a section's next element is, by our name of it.
fn next(count: &mut usize, section: &str) -> String {
    *count += 1;
    format!("{section}.{}", *count - 1)
}

fn device(out: &mut Out, counts: &mut Counts, at: &str) {
    let node = format!("pci.{at}");
    let key = |name: &str| format!("{node}.{name}");
    let Some(model) = out.from.value(&key("device")).map(|value| value.text.clone()) else { return };
    let slot = at.replace('.', ":");
    let slot = slot.strip_prefix("0:").unwrap_or(&slot).to_owned();
    let place = |out: &mut Out, element: &str, model: &str| {
        if let Some((_, origin)) = out.take(&key("device")) {
            out.set(&format!("{element}.model"), model, &origin);
            out.set(&format!("{element}.slot"), &slot, &origin);
            if model.starts_with("virtio-") && out.from.bool("virtio_msix", true).is_ok_and(|msix| !msix) {
                out.set(&format!("{element}.msix"), "false", &origin);
            }
        }
    };
    let known = MODELS.iter().find(|known| known.name == model);
    match (model.as_str(), known.map(|known| known.class)) {
        ("hostbridge", _) if at == "0.0.0" => {
            out.take(&key("device"));
        }
        // It decodes the ports of the board.
        ("lpc", _) if !at.starts_with("0.") => out.wrong(&key("device"), "the LPC bridge is on bus 0", ""),
        ("lpc", _) => {
            if let Some((_, origin)) = out.take(&key("device"))
                && at != "0.31.0"
            {
                out.set("lpc.slot", slot.split(':').next().unwrap_or_default(), &origin);
            }
        }
        ("ahci", _) => {
            let ports = out.from.names(&key("port"));
            for unit in &ports {
                let port = key(&format!("port.{unit}"));
                let unit = (ports.len() > 1).then(|| out.from.value(&format!("{port}.type"))).flatten();
                let unit =
                    unit.map(|value| (port.rsplit('.').next().unwrap_or_default().to_owned(), value.origin.clone()));
                let is_cd = out.from.value(&format!("{port}.type")).is_some_and(|value| value.text == "cd");
                out.take(&format!("{port}.type"));
                let (section, count, word) = match is_cd {
                    true => ("cd", &mut counts.cds, "cd"),
                    false => ("disk", &mut counts.disks, "disk"),
                };
                let element = next(count, section);
                place(out, &element, "ahci");
                // Ports are numbered across disks and discs.
                if let Some((unit, origin)) = unit {
                    out.set(&format!("{element}.unit"), &unit, &origin);
                }
                block(out, counts, &element, &port, word);
            }
            // A controller with nothing at it.
            if out.from.names(&key("port")).is_empty() {
                place(out, &next(&mut counts.others, "device"), "ahci");
            }
        }
        // FreeBSD's CTL stays kept; see `lacking`.
        ("virtio-scsi", _) => {
            let ids = out.from.names(&key("target"));
            let named = ids.iter().map(|id| (id.clone(), key(&format!("target.{id}"))));
            // A target in the newer form is the same.
            let older = out.from.is_given(&key("dev")) && !ids.iter().any(|id| id == "0");
            let first = older.then(|| ("0".to_owned(), key("dev")));
            let of = |out: &Out, at: &str| out.from.value(at).map(|value| value.text.clone()).unwrap_or_default();
            let images: Vec<_> =
                first.into_iter().chain(named).filter(|(_, at)| !of(out, at).starts_with(CTL)).collect();
            for (id, path) in &images {
                let element = next(&mut counts.disks, "disk");
                place(out, &element, &model);
                if images.len() > 1 || id != "0" {
                    out.set(&format!("{element}.unit"), id, &Origin::named("bhyve(8)"));
                }
                for name in SHARED {
                    out.copy(&key(name), &format!("{element}.{name}"));
                }
                out.copy(path, &format!("{element}.path"));
                // As such they are told of on the way back.
                if path.ends_with(".dev") {
                    out.keep(path);
                }
                bootindex(out, counts, &node, "disk");
            }
        }
        (_, Some(Class::Storage { .. })) => {
            let element = next(&mut counts.disks, "disk");
            place(out, &element, &model);
            block(out, counts, &element, &node, "disk");
        }
        (_, Some(Class::Network)) => {
            let element = next(&mut counts.nics, "nic");
            place(out, &element, &model);
            network(out, &element, &node);
        }
        (_, Some(Class::Lines { most })) => {
            let ports: Vec<String> = match most {
                1 => vec![node.clone()],
                _ => out.from.names(&key("port")).iter().map(|n| key(&format!("port.{n}"))).collect(),
            };
            for port in &ports {
                let element = next(&mut counts.lines, "serial");
                place(out, &element, &model);
                keys_of(out, &element, &node, &model);
                out.copy(&format!("{port}.name"), &format!("{element}.port"));
                match out.take(&format!("{port}.path")) {
                    // bhyve makes a socket for each port of a console.
                    Some((path, origin)) if most > 1 => line(out, &element, &format!("unix={path}"), &origin),
                    Some((path, origin)) => line(out, &element, &path, &origin),
                    None => out.set(&format!("{element}.backend"), "none", &Origin::named("bhyve(8)")),
                }
            }
        }
        (_, Some(Class::Display)) => {
            counts.screen = true;
            place(out, "screen", &model);
            keys_of(out, "screen", &node, &model);
            if model == "fbuf" {
                viewers(out, &node);
            }
        }
        (_, Some(Class::Share)) => {
            let element = next(&mut counts.shares, "share");
            place(out, &element, &model);
            keys_of(out, &element, &node, &model);
            out.copy(&key("sharename"), &format!("{element}.name"));
            out.copy(&key("path"), &format!("{element}.path"));
            out.copy_bool(&key("ro"), &format!("{element}.readonly"));
        }
        (_, Some(Class::Usb { .. })) => {
            let slots = out.from.names(&key("slot"));
            for (unit, n) in slots.iter().enumerate() {
                let element = next(&mut counts.usbs, "usb");
                place(out, &element, &model);
                out.copy(&key(&format!("slot.{n}.device")), &format!("{element}.device"));
                // bhyve numbers them from 1.
                if *n != (unit + 1).to_string()
                    && let Some(number) = n.parse::<usize>().ok().and_then(|n| n.checked_sub(1))
                {
                    out.set(&format!("{element}.unit"), &number.to_string(), &Origin::named("bhyve(8)"));
                }
            }
            if slots.is_empty() {
                place(out, &next(&mut counts.others, "device"), &model);
            }
        }
        (_, Some(Class::Input)) => {
            let element = next(&mut counts.inputs, "input");
            place(out, &element, &model);
            keys_of(out, &element, &node, &model);
            out.set(&format!("{element}.device"), "evdev", &Origin::named("bhyve(8)"));
            out.copy(&key("path"), &format!("{element}.path"));
        }
        (_, Some(Class::Sound)) => {
            let element = next(&mut counts.sounds, "sound");
            place(out, &element, &model);
            out.copy(&key("play"), &format!("{element}.play"));
            out.copy(&key("rec"), &format!("{element}.rec"));
        }
        (_, Some(Class::Other)) => {
            let element = next(&mut counts.others, "device");
            place(out, &element, &model);
            keys_of(out, &element, &node, &model);
        }
        // Kept as it is; see `lacking`.
        (_, None) => {}
    }
}

/// Hands on what a model has keys for.
fn keys_of(out: &mut Out, element: &str, node: &str, model: &str) {
    for known in plan::keys(model) {
        if out.from.is_given(&format!("{node}.{}", known.name)) {
            out.copy(&format!("{node}.{}", known.name), &format!("{element}.{}", known.name));
        }
    }
}

/// What begins the path of a port of FreeBSD's CAM target layer.
const CTL: &str = "/dev/cam/ctl";
/// Keys of a SCSI controller, whatever is at it.
const SHARED: [&str; 3] = ["version", "ioeventfd", "queues"];

/// Takes a drive's place in the order in which they are tried. It is kept beside what is made of it.
fn bootindex(out: &mut Out, counts: &mut Counts, node: &str, word: &'static str) {
    let key = format!("{node}.bootindex");
    let Some((_, origin)) = out.take(&key) else { return };
    match out.from.int(&key, 0..=i64::from(u16::MAX)) {
        Ok(index) => counts.boot.extend(index.map(|index| (index, word, origin))),
        Err(e) => out.errors.push(*e),
    }
    out.keep(&key);
}

/// A disk or a CD-ROM: bhyve's options for all that is a block device.
fn block(out: &mut Out, counts: &mut Counts, element: &str, node: &str, word: &'static str) {
    let key = |name: &str| format!("{node}.{name}");
    let ours = |name: &str| format!("{element}.{name}");
    let model = out.draft.tree().text(&ours("model")).unwrap_or_default().to_owned();
    out.copy(&key("path"), &ours("path"));
    keys_of(out, element, node, &model);
    // AHCI's word for it is that of a controller with one name for its drives.
    if model == "ahci" {
        out.copy(&key("model"), &ours("product"));
    }
    bootindex(out, counts, node, word);
    // A disc is read-only, and nothing of it is written, whatever is said.
    if word == "cd" {
        return;
    }
    let sync = ["sync", "direct"].map(|name| out.boolean(&key(name))).into_iter().flatten().find(|(on, _)| *on);
    let direct = out.boolean(&key("nocache")).filter(|(on, _)| *on);
    let cache = match (&direct, &sync) {
        (Some((_, origin)), Some(_)) => Some(("directsync", origin.clone())),
        (Some((_, origin)), None) => Some(("none", origin.clone())),
        (None, Some((_, origin))) => Some(("writethrough", origin.clone())),
        (None, None) => None,
    };
    if let Some((cache, origin)) = cache {
        out.set(&ours("cache"), cache, &origin);
    }
    out.copy_bool(&key("ro"), &ours("readonly"));
}

/// The VNC server that bhyve's frame buffer brings. What bhyve says of its address is kept beside what is made of it.
fn viewers(out: &mut Out, node: &str) {
    let key = |name: &str| format!("{node}.{name}");
    let ours = Origin::named("bhyve(8)");
    let given = ["rfb", "tcp"].map(|name| out.take(&key(name)));
    ["rfb", "tcp"].iter().for_each(|name| out.keep(&key(name)));
    let (place, origin) = given.into_iter().flatten().next().unwrap_or(("5900".to_owned(), ours));
    if let Some(path) = place.strip_prefix("unix:") {
        out.set("screen.vnc_socket", path, &origin);
    } else {
        // Without a host, or without a port, it is the usual one.
        let at = match place.strip_prefix(':') {
            Some(port) => port.to_owned(),
            None if place.starts_with('[') && place.ends_with(']') => format!("{place}:5900"),
            None => place,
        };
        let host = at.rsplit_once(':').map(|(host, _)| host.trim_matches(['[', ']']));
        out.set("screen.vnc", &at, &origin);
        if host.is_some_and(|host| !is_here(host)) {
            out.set("screen.vnc_remote", "true", &origin);
        }
    }
    out.copy(&key("password"), "screen.vnc_password");
    out.copy_bool(&key("wait"), "screen.vnc_wait");
}

/// Where bhyve's keyboard layouts are.
const LAYOUTS: &str = "/usr/share/bhyve/kbdlayout/";

/// Our name of one of bhyve's keyboards. Whether accents are dead keys, and what is on Caps Lock, is nothing to us.
fn keyboard(name: &str) -> Option<&str> {
    let base = ["_acc", "_noacc", "_capsctrl"].into_iter().find_map(|kind| name.strip_suffix(kind)).unwrap_or(name);
    host::keyboard::Layout::named(if base == "uk" { "gb" } else { base }).map(|layout| layout.name)
}

/// The address that a guest gets from a NAT.
const GUEST: &str = "10.0.2.15";

/// A forward as we write it, of `PROTOCOL:[HOST ADDRESS]:PORT-[GUEST'S ADDRESS]:PORT`.
fn forward(theirs: &str) -> Option<String> {
    let (host, guest) = theirs.split_once('-')?;
    let (protocol, host) = host.split_once(':')?;
    let (address, port) = host.rsplit_once(':')?;
    let guest = guest.strip_prefix(GUEST).unwrap_or(guest).strip_prefix(':')?;
    let address = if address.is_empty() { "*" } else { address };
    Some(format!("{protocol}:{address}:{port}:{guest}"))
}

/// A network card: where bhyve says its cable goes.
fn network(out: &mut Out, element: &str, node: &str) {
    let key = |name: &str| format!("{node}.{name}");
    let ours = |name: &str| format!("{element}.{name}");
    let model = out.draft.tree().text(&ours("model")).unwrap_or_default().to_owned();
    keys_of(out, element, node, &model);
    out.copy(&key("mac"), &ours("mac"));
    let kind = out.take(&key("type"));
    out.keep(&key("type"));
    let Some((backend, origin)) = out.take(&key("backend")) else {
        return out.set(&ours("backend"), "none", &Origin::named("bhyve(8)"));
    };
    let kind = kind.map_or_else(|| backend.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned(), |(kind, _)| kind);
    match kind.as_str() {
        "tap" | "vmnet" => {
            out.set(&ours("backend"), "tap", &origin);
            out.set(&ours("interface"), &backend, &origin);
        }
        "none" => out.set(&ours("backend"), "none", &origin),
        "slirp" => {
            out.set(&ours("backend"), "nat", &origin);
            // Without it a guest reaches nobody, and is reached by its forwards.
            let open = out.boolean(&key("open")).is_some_and(|(open, _)| open);
            out.set(&ours("outbound"), if open { "true" } else { "false" }, &origin);
            if let Some((forwards, origin)) = out.take(&key("hostfwd")) {
                match forwards.split(';').map(forward).collect::<Option<Vec<String>>>() {
                    Some(all) => out.set(&format!("{element}.forward"), &all.join(","), &origin),
                    None => out.keep(&key("hostfwd")),
                }
                if forwards.contains(GUEST) {
                    out.keep(&key("hostfwd"));
                }
            }
        }
        // Kept as it is; see `lacking`.
        _ => {
            out.set(&ours("backend"), "none", &origin);
            out.keep(&key("backend"));
        }
    }
}

/// `bootindex` says which drive is first; the BIOS goes by kinds.
fn order(out: &mut Out, counts: &Counts) {
    let mut words: Vec<&str> = Vec::new();
    let mut given: Vec<_> = counts.boot.iter().collect();
    given.sort_by_key(|(index, ..)| *index);
    for word in given.iter().map(|(_, word, _)| *word).chain(["disk", "cd", "floppy", "net"]) {
        if !words.contains(&word) {
            words.push(word);
        }
    }
    if let Some((.., origin)) = given.first() {
        out.set("boot.order", &words.join(","), origin);
    }
}

/// What bhyve's keys ask for that a machine of this version cannot do: a line each.
pub fn lacking(tree: &Tree) -> Vec<Error> {
    let mut errors = Vec::new();
    for (key, text, origin) in leaves(tree, "bhyve") {
        let name = key.strip_prefix("bhyve.").unwrap_or(&key);
        let parts: Vec<&str> = name.split('.').collect();
        let why = match parts[..] {
            ["pci", _, _, _, "device"] => match text.as_str() {
                "hostbridge" | "lpc" => continue,
                "virtio-scsi" => format!("its targets are images here, target=[ID:]PATH; there is no way to {CTL}"),
                "passthru" => "devices of the host are not passed through to guests".to_owned(),
                device => format!("there is no {device} in this version"),
            },
            ["pci", _, _, _, "target", _] => format!("there is no way to {CTL} in this version"),
            // Of a device that there is.
            ["pci", bus, slot, function, "backend"]
                if tree.get(&format!("bhyve.pci.{bus}.{slot}.{function}.device")).is_none() =>
            {
                format!("there is no network {text:?} in this version")
            }
            ["pci", _, _, _, "hostfwd"] if text.split(';').any(|theirs| forward(theirs).is_none()) => {
                format!("allowed: PROTOCOL:[ADDRESS]:PORT-[{GUEST}]:PORT, several with semicolons between")
            }
            ["tpm", "type"] => "there is no TPM".to_owned(),
            ["gdb", "port"] if text != "0" => "the debug server's place is debug.address".to_owned(),
            _ => continue,
        };
        errors.push(Error::new(&origin, key.clone(), Problem::new(why)));
    }
    errors
}

fn collect(tree: &Tree, at: &str, keys: &mut Vec<(String, String, Origin)>) {
    match tree.get(at) {
        Some(Entry::Value(value)) => keys.push((at.to_owned(), value.text.clone(), value.origin.clone())),
        Some(Entry::List(values)) => {
            let texts: Vec<&str> = values.iter().map(|value| value.text.as_str()).collect();
            let origin = values.first().map_or_else(|| Origin::named(at), |value| value.origin.clone());
            keys.push((at.to_owned(), texts.join(","), origin));
        }
        Some(Entry::Branch(branch)) => {
            branch.names().for_each(|name| collect(tree, &format!("{at}.{name}"), keys));
        }
        _ => {}
    }
}

/// bhyve's tree for a machine, and what of its configuration bhyve cannot say.
///
/// # Errors
/// It is no machine that bhyve has.
pub fn from_machine(tree: &Tree, node: &Node) -> Result<(Config, Errors), Errors> {
    let wrong = |key: &str, why: &str, allowed: &str| {
        Errors(vec![node.error(key, Problem::new(why.to_owned()).allowed(allowed.to_owned()))])
    };
    if node.text("board") != "bhyve" {
        return Err(wrong("board", "bhyve(8) has no such board", "bhyve"));
    }
    let plan = plan::sketch(node).map_err(|e| wrong("board", &format!("{e:#}"), "bhyve"))?;
    let msix = tree.text("bhyve.virtio_msix") != Some("false");
    let mut said = Said { node, config: Config::new(), used: BTreeSet::new(), msix };
    for (ours, theirs) in SAME {
        said.copy(ours, theirs);
    }
    for (key, ..) in leaves(tree, "smbios") {
        said.copy(&key, key.strip_prefix("smbios.").unwrap_or(&key));
    }
    said.used.extend(["profile", "board"].map(str::to_owned));
    // They are always made.
    if node.child("acpi").bool("enabled") {
        said.used.insert("acpi.enabled".to_owned());
    }
    // bhyve's default is local time.
    said.used.insert("rtc.use_localtime".to_owned());
    if !node.child("rtc").bool("use_localtime") {
        said.set("rtc.use_localtime", "false");
    }
    let disabled = node.child("cpu").words("disable");
    if disabled == [X2APIC] {
        said.used.insert("cpu.disable".to_owned());
    } else if !disabled.contains(&X2APIC) {
        said.set("x86.x2apic", "true");
    }
    let bios = !node.child("boot").is_given("firmware") && !node.child("boot").is_given("kernel");
    if bios && tree.get("bhyve.bootrom").is_none() {
        said.set("bootrom", BUILT_IN);
    }
    let debug = node.child("debug");
    if let Some(at) = debug.maybe::<&Address>("address") {
        said.set("gdb.address", &at.host);
        said.set("gdb.port", &at.port.to_string());
        // An address says it by itself.
        said.used.extend(["debug.address", "debug.remote"].map(str::to_owned));
        said.copy("debug.wait", "gdb.wait");
    }
    said.set("pci.0.0.0.device", "hostbridge");
    let lpc = node.child("lpc").int("slot");
    said.used.insert("lpc.slot".to_owned());
    said.set(&format!("pci.0.{lpc}.0.device"), "lpc");
    for (n, serial) in node.children("serial").iter().filter(|serial| plan::is_com(serial)).enumerate() {
        said.serial(&format!("lpc.com{}", n + 1), serial);
    }
    for item in node.children("fwcfg") {
        for (name, value) in item.settings().filter(|(name, _)| item.is_given(name)) {
            let key = format!("fwcfg.{}.{name}", item.index());
            said.set(&key, &value.to_string());
            said.used.insert(key);
        }
    }
    if node.child("lpc").text("fwcfg") == "qemu" {
        said.set("lpc.fwcfg", "qemu");
    }
    said.used.insert("lpc.fwcfg".to_owned());
    for pin in node.child("cpu").words("pin") {
        if let Some((vcpu, cpus)) = pin.split_once(':') {
            let key = format!("vcpu.{vcpu}.cpuset");
            let before = said.config.text(&key).ok().flatten().map_or(String::new(), |before| before + ",");
            said.set(&key, &(before + cpus));
        }
    }
    said.used.insert("cpu.pin".to_owned());
    for domain in node.children("domain") {
        let (ours, theirs) = (format!("domain.{}", domain.index()), format!("domains.{}", domain.index()));
        said.set(&format!("{theirs}.cpus"), &domain.words("cpus").join(","));
        said.used.insert(format!("{ours}.cpus"));
        if let Some(size) = domain.get("size").filter(|_| domain.is_given("size")) {
            said.set(&format!("{theirs}.size"), &size.to_string());
            said.used.insert(format!("{ours}.size"));
        }
    }
    for (model, bdf, keys) in plan.places() {
        let at = format!("pci.{}.{}.{}", bdf.bus, bdf.dev, bdf.func);
        let base = if model.starts_with("ahci") { "ahci" } else { model };
        said.set(&format!("{at}.device"), base);
        keys.iter().for_each(|(unit, key)| said.device(&at, base, *unit, key));
    }
    // The conversion from bhyve says this where there is no screen, and COM1 is the console.
    if node.child("boot").bool("serial") && node.child("screen").maybe::<&str>("model") == Some(plan::NO_SCREEN) {
        said.used.insert("boot.serial".to_owned());
    }
    said.used.insert("screen.model".to_owned());
    for (key, text, _) in leaves(tree, "bhyve") {
        let theirs = key.strip_prefix("bhyve.").unwrap_or(&key);
        if theirs.ends_with(".bootindex") {
            // What it was made of.
            said.used.insert("boot.order".to_owned());
        }
        // References in it are to bhyve's own keys, and were kept from being followed here.
        said.raw(theirs, &text.replace("%%", "%"));
        said.used.insert(key);
    }
    let left = leaves(tree, "").into_iter().filter(|(key, ..)| !said.used.contains(key));
    let left = left.map(|(key, _, origin)| Error::new(&origin, key, Problem::new("bhyve(8) has no word for it")));
    Ok((said.config, Errors::sorted(left.collect())))
}

/// Keys that mean the same, ours first.
const SAME: [(&str, &str); 14] = [
    ("name", "name"),
    ("cpus", "cpus"),
    ("memory", "memory.size"),
    ("uuid", "uuid"),
    ("host.wired", "memory.wired"),
    ("host.core", "memory.guest_in_core"),
    ("acpi.mptable", "x86.mptable"),
    ("cpu.strictmsr", "x86.strictmsr"),
    ("cpu.strictio", "x86.strictio"),
    ("cpu.sockets", "sockets"),
    ("cpu.cores", "cores"),
    ("cpu.threads", "threads"),
    ("boot.firmware", "bootrom"),
    ("boot.vars", "bootvars"),
];

/// bhyve's tree in the making.
struct Said<'a> {
    node: &'a Node,
    config: Config,
    /// Keys of ours that were said.
    used: BTreeSet<String>,
    /// Whether all of virtio is to use MSI-X.
    msix: bool,
}

impl Said<'_> {
    fn raw(&mut self, key: &str, text: &str) {
        // Every key is one of bhyve's, and none is a node and a leaf.
        let _ = self.config.set(key, text, &Origin::named("bhyve-rs"));
    }

    fn set(&mut self, key: &str, text: &str) {
        self.raw(key, &text.replace('%', "%%"));
    }

    /// Hands on the value of a key that was given, with what it refers to.
    fn copy(&mut self, ours: &str, theirs: &str) {
        let mut names = ours.split('.').peekable();
        let mut node = self.node;
        while let Some(name) = names.next() {
            if names.peek().is_some() {
                node = node.child(name);
            } else if node.is_given(name)
                && let Some(text) = node.get(name).map(ToString::to_string)
            {
                self.set(theirs, &text);
                self.used.insert(ours.to_owned());
            }
        }
    }

    /// Where a serial line ends.
    fn serial(&mut self, at: &str, serial: &Node) {
        let path =
            || serial.maybe::<&std::path::Path>("path").map(|path| path.display().to_string()).unwrap_or_default();
        let text = match serial.text("backend") {
            "none" => None,
            "tcp" => serial.get("address").map(|address| format!("tcp={address}")),
            // Which is what bhyve makes of a port of a console.
            "socket" if serial.maybe("model") == Some("virtio-console") => Some(path()),
            "socket" => Some(format!("unix={}", path())),
            "file" => Some(format!("file={}", path())),
            "pty" if serial.is_given("path") => Some(format!("pty={}", path())),
            "tty" | "nmdm" => Some(path()),
            other => Some(other.to_owned()),
        };
        if let Some(text) = text {
            self.set(&format!("{at}.path"), &text);
        }
        let section = format!("serial.{}", serial.index());
        self.used.extend(["model", "backend", "path", "address"].map(|key| format!("{section}.{key}")));
    }

    /// A target of a SCSI controller. There is no word for a disc, nor for most else.
    fn target(&mut self, at: &str, unit: usize, section: &str, element: &Node) {
        let theirs = |name: &str| match name {
            "path" if section.starts_with("disk") => Some(format!("{at}.target.{unit}")),
            name => SHARED.contains(&name).then(|| format!("{at}.{name}")),
        };
        for (name, value) in element.settings().filter(|(name, _)| element.is_given(name)) {
            if let Some(theirs) = theirs(name) {
                self.set(&theirs, &value.to_string());
                self.used.insert(format!("{section}.{name}"));
            }
        }
    }

    /// What a section says of a device at `at`.
    fn device(&mut self, at: &str, model: &str, unit: usize, section: &str) {
        let (kind, index) = section.split_once('.').unwrap_or((section, "0"));
        let element = match kind {
            "screen" => Some(self.node.child(kind).clone()),
            _ => self.node.children(kind).iter().find(|element| element.index().to_string() == index).cloned(),
        };
        let Some(element) = element else { return };
        let at = match model {
            "ahci" | "virtio-console" => format!("{at}.port.{unit}"),
            _ => at.to_owned(),
        };
        if kind == "serial" {
            self.serial(&at, &element);
        }
        if kind == "usb" {
            self.set(&format!("{at}.slot.{}.device", unit + 1), element.text("device"));
        }
        self.used.extend(["model", "slot", "unit"].map(|key| format!("{section}.{key}")));
        if model == "virtio-scsi" {
            return self.target(&at, unit, section, &element);
        }
        if model == "ahci" {
            self.set(&format!("{at}.type"), if kind == "cd" { "cd" } else { "hd" });
        }
        let given: Vec<(&str, String)> = element
            .settings()
            .filter(|(name, _)| element.is_given(name))
            .map(|(name, value)| (name, value.to_string()))
            .chain(
                (kind == "nic" && !element.is_given("backend"))
                    .then(|| ("backend", element.text("backend").to_owned())),
            )
            .collect();
        for (name, value) in given {
            let theirs: &[(&str, &str)] = match (kind, name, value.as_str()) {
                // It is said of all at once, and kept as it was said.
                (_, "msix", "false") if !self.msix => &[],
                (_, "model" | "slot" | "unit", _) | ("serial", "backend" | "path" | "address", _) => continue,
                ("usb", "device", _) | ("input", "device", "evdev") => &[],
                ("serial", "port", _) => &[("name", &value)],
                ("disk" | "share", "readonly", _) => &[("ro", &value)],
                ("share", "name", _) => &[("sharename", &value)],
                ("disk", "cache", "none") => &[("nocache", "true")],
                ("disk", "cache", "writethrough") => &[("direct", "true")],
                ("disk", "cache", "directsync") => &[("nocache", "true"), ("direct", "true")],
                ("disk", "cache", "writeback") | ("disk", "format", "auto" | "raw") => &[],
                ("disk", "format" | "snapshot" | "on_error", _) => continue,
                (_, "product", _) if model == "ahci" => &[("model", &value)],
                ("nic", "backend", "tap") => &[],
                ("nic", "backend", "nat") if element.bool("outbound") => &[("backend", "slirp"), ("open", "true")],
                ("nic", "backend", "nat") => &[("backend", "slirp")],
                ("nic", "outbound", _) => &[],
                ("nic", "network" | "prefix6" | "dns" | "host_loopback" | "tftp" | "bootfile", _) => continue,
                ("nic", "backend", "none") => &[],
                ("nic", "interface", _) => &[("backend", &value)],
                ("nic", "forward", _) => {
                    // The last part is the guest's port. Of an address left out there stand for us the loopback, and
                    // for bhyve all.
                    let theirs = |forward: &str| {
                        let (protocol, rest) = forward.split_once(':')?;
                        let (host, guest) = rest.rsplit_once(':')?;
                        let (address, port) = host.rsplit_once(':').unwrap_or(("127.0.0.1", host));
                        let address = if address == "*" { "" } else { address };
                        Some(format!("{protocol}:{address}:{port}-:{guest}"))
                    };
                    let all: Vec<String> = element.words("forward").into_iter().filter_map(theirs).collect();
                    self.set(&format!("{at}.hostfwd"), &all.join(";"));
                    &[]
                }
                ("nic", "backend" | "path", _) => continue,
                ("screen", "vnc", _) if model == "fbuf" => &[("rfb", &value)],
                // It has one place.
                ("screen", "vnc_socket", _) if element.is_given("vnc") => continue,
                ("screen", "backend", "vnc") if model == "fbuf" => &[],
                ("screen", "vnc_socket", _) if model == "fbuf" => &[("rfb", &format!("unix:{value}"))],
                // An address says it by itself.
                ("screen", "vnc_remote", _) if model == "fbuf" => &[],
                ("screen", "vnc_password", _) if model == "fbuf" => &[("password", &value)],
                ("screen", "vnc_wait", _) if model == "fbuf" => &[("wait", &value)],
                ("screen", "w" | "h" | "vga", _) => &[(name, &value)],
                ("screen", "keyboard", _) => {
                    self.set("keyboard.layout", if value == "gb" { "uk" } else { &value });
                    &[]
                }
                ("screen", "keyboard_file", _) if value.starts_with(LAYOUTS) => {
                    self.set("keyboard.layout", &value[LAYOUTS.len()..]);
                    &[]
                }
                ("screen", ..) => continue,
                ("disk" | "cd" | "share" | "input", "path", _) | ("nic", "mac", _) | ("sound", ..) => &[(name, &value)],
                _ if element
                    .maybe("model")
                    .is_some_and(|model| plan::keys(model).iter().any(|key| key.name == name)) =>
                {
                    &[(name, &value)]
                }
                _ => continue,
            };
            self.used.insert(format!("{section}.{name}"));
            for (key, text) in theirs {
                self.set(&format!("{at}.{key}"), text);
            }
        }
    }
}

/// What bhyve's keys ask for that has no effect on a machine of this version, and that it can do without: a line each.
pub fn without_effect(tree: &Tree) -> Vec<String> {
    let mut lines = Vec::new();
    for (key, text, origin) in leaves(tree, "bhyve") {
        let name = key.strip_prefix("bhyve.").unwrap_or(&key);
        let parts: Vec<&str> = name.split('.').collect();
        let tells = match parts[..] {
            // A disc is read-only, and a network's kind is told by its name.
            ["pci", _, _, _, .., "device" | "bootindex" | "dev" | "ro" | "type" | "rfb" | "tcp"] => false,
            // There is a screen that has it, or none.
            ["keyboard", "layout"] => false,
            ["pci", _, _, _, "fwcfg"] => false,
            ["domains", _, "domain_policy"] => true,
            ["pci", _, _, _, ..] | ["keyboard", ..] => true,
            ["monitor"] | ["lpc", "pc-testdev"] => text == "true",
            _ => false,
        };
        if tells {
            lines.push(format!("{origin}: {name} has no effect in this version"));
        }
    }
    lines
}

/// All values below a key, with their places.
fn leaves(tree: &Tree, at: &str) -> Vec<(String, String, Origin)> {
    let mut keys = Vec::new();
    if at.is_empty() {
        tree.root().names().for_each(|name| collect(tree, &name, &mut keys));
    } else {
        collect(tree, at, &mut keys);
    }
    keys
}

#[cfg(test)]
mod tests {
    use cfg::bhyve::{Asked, parse};

    use super::*;
    use crate::config;

    /// Flags of one machine each; D is a directory with the files that they name.
    const LINES: &[&str] = &[
        "-l bootrom,bios",
        "-c 4 -m 512M -AHPw -u -S -C -Y -U 11111111-2222-3333-4444-555555555555",
        "-c 8,sockets=2,cores=2,threads=2 -x -W -e -D -M -K us",
        "-G 1234 -c 2",
        "-G 0.0.0.0:4000",
        "-G w[::1]:4000 -o gdb.wait=false",
        "-o gdb.port=0 -o gdb.address=localhost",
        "-p 0:1 -p 0:2 -p 1:3 -G w127.0.0.1:1234 -f opt/a,string=x -l fwcfg,qemu -l pc-testdev",
        "-c 3 -n id=0,cpus=0-1 -n id=1,cpus=2,domain_policy=prefer:0 -m 1G",
        "-c 4 -n id=0,size=1G,cpus=0-2 -n id=1,size=512M,cpus=3",
        "-n id=0,size=256M,cpus=0 -l tpm,swtpm,/t.sock,version=2.0 -l bootrom,D/rom,D/vars",
        "-o lpc.bootrom=bios -o own.key=1 -o system.sku=%(own.key) -o board.asset_tag=50%% -o chassis.version=2",
        "-s 0,hostbridge -s 31,lpc -l com1,stdio -l com3,tcp=127.0.0.1:4000 -l com4,unix=D/u",
        "-s 0,amd_hostbridge -s 1,lpc,fwcfg=qemu,pcireg.vendor=host -l com2,/dev/nmdm-x.2A",
        "-s 4:0,virtio-blk,D/a,nocache,direct,ro,ser=AB,nodelete,bootindex=3 -s 4:1,virtio-blk,D/b,direct",
        "-s 4,nvme,D/a,maxq=4,qsz=256,ser=N -s 5,virtio-rnd",
        "-s 5,ahci,hd:D/a,ser=S0,nmrr=5400,model=M,cd:D/b,ro,bootindex=1,hd:D/c,ser=S2,nocache -s 6,ahci-cd,D/b,nocache",
        "-s 7,ahci-cd -s 8:0,ahci-hd,D/c,sectorsize=512/4096",
        "-s 5,virtio-net,tap0,mac=58:9c:fc:00:11:22,mtu=9000 -s 6,virtio-net,vmnet3,type=tap -s 7,virtio-net",
        "-s 5,virtio-net,slirp,open,hostfwd=tcp:127.0.0.1:2222-:22;udp::53-:53 -s 6,virtio-net,slirp,hostfwd=tcp::1-10.0.2.15:1",
        "-s 5,virtio-net,netgraph,path=sw:,peerhook=link1 -s 6,virtio-net,vale0:a,mac=00:a0:98:00:00:01",
        "-s 5,e1000,tap1,mac=00:a0:98:00:00:01 -s 6,fbuf,tcp=0.0.0.0:5900,w=800,h=600,wait -s 7,xhci,tablet",
        "-s 5,fbuf,rfb=unix:D/vnc,password=100%,vga=off -K de_noacc",
        "-s 29,fbuf -K none",
        "-s 29,fbuf -K us_dvorak -x",
        "-s 4,hda -s 5,hda,play=/dev/dsp0 -s 9,hda,play=D/p.wav,rec=/dev/dsp1 -s 6,virtio-9p,share=D/,ro -s 7,virtio-console,a=/s -s 8,uart,/dev/ttyu1",
        "-s 5,virtio-9p,a=/ -s 6:1,virtio-9p,b=D/ -s 6:0,virtio-rnd",
        "-s 4,virtio-scsi,target=D/a,target=9:D/b,queues=2,bootindex=1 -s 5,virtio-scsi,D/c,iid=3 -s 6,virtio-scsi",
        "-s 7,xhci -s 8,xhci,tablet,keyboard,mouse -s 9:0,xhci,mouse -s 10,virtio-input,/dev/null",
        "-s 5,passthru,1/2/3 -s 6,virtio-scsi,/dev/cam/ctl1.1,iid=2 -s 7,virtio-input,/dev/input/event0 -s 2:3:0,virtio-rnd -Y",
        "-s 1:0:0,virtio-blk,D/a -s 5:31:0,virtio-net,tap0 -s 255:4:0,ahci,hd:D/b,cd:D/c -s 0:5:0,virtio-net -Y",
    ];

    #[test]
    fn nothing_is_lost_on_the_way_to_toml_and_back() {
        let dir = std::env::temp_dir().join(format!("bhyve-rs-translate-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        for file in ["a", "b", "c", "rom", "vars"] {
            std::fs::write(dir.join(file), b"some bytes").unwrap();
        }
        for line in LINES {
            let line = line.replace("D/", &format!("{}/", dir.display()));
            let args: Vec<String> = line.split_whitespace().chain(["vm"]).map(str::to_owned).collect();
            let Ok(Asked::Run(theirs)) = parse(&args, &extra_devices()) else { panic!("{line}") };
            let toml = config::to_toml(to_machine(&theirs).unwrap().tree());
            let draft = Draft::parse("t.toml", &toml);
            let node = config::describe(&draft).unwrap_or_else(|e| panic!("{line}: {e}\n{toml}"));
            let (back, left) = from_machine(draft.tree(), &node).unwrap_or_else(|e| panic!("{line}: {e}\n{toml}"));
            assert_eq!(left.0, [], "{line}\n{toml}");
            for key in theirs.keys().into_iter().filter(|key| theirs.is_given(key)) {
                // What was moved to a newer name means the same.
                let now = key.strip_prefix("lpc.boot").map_or(key.clone(), |rest| format!("boot{rest}"));
                let there = back.text(&key).unwrap().or_else(|| back.text(&now).unwrap());
                assert_eq!(there, theirs.text(&key).unwrap(), "{line}: {key}\n{toml}");
            }
        }
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_bhyve_cannot_say_is_told_by_key() {
        let text = "name = 'x'\nprofile = 'bhyve'\nclock = 'instructions'\n[acpi]\nenabled = false\n[boot]\norder = ['cd']\n\
                    [vars]\nn = '7'\n[smbios.system]\nsku = 'S%(vars.n)'\n[screen]\nmodel = 'none'\n";
        let draft = Draft::parse("t.toml", text);
        let (back, left) = from_machine(draft.tree(), &config::describe(&draft).unwrap()).unwrap();
        let keys: Vec<&str> = left.0.iter().map(|e| e.key.as_str()).collect();
        assert_eq!(keys, ["clock", "acpi.enabled", "boot.order", "vars.n"]);
        assert_eq!(back.text("system.sku").unwrap().as_deref(), Some("S7"), "what it refers to is not bhyve's");
        let pc = Draft::parse("t.toml", "name = 'x'\n");
        assert!(from_machine(pc.tree(), &config::describe(&pc).unwrap()).is_err());
    }
}
