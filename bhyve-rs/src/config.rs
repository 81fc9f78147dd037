//! From a configuration to a machine: the words that the schema leaves to us, and what each key means.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};
use boot::bios::DriveKind;
use cfg::schema::MACHINE;
use cfg::{Address, Catalogue, Draft, Error, Errors, Key, Node, Origin, Problem, Schema};
use emu::backend::Chardev;
use host::console::{self, ConsoleSpec, Description, LogSpec, Server};
use host::sandbox::Shares;
use host::{ConsoleCommand, Io, Listener, Place, control, vnc};

use crate::compat::translate;
use crate::vm::{Handle, Kernel, Order, Spec, Start};
use crate::{board, plan, processor, rom, within};

/// The words of this version.
struct Words;

impl Catalogue for Words {
    fn words(&self, class: &str) -> Vec<&str> {
        match class {
            "profile" => PROFILES.map(|profile| profile.name).into(),
            "board" => board::ALL.map(|kind| kind.name).into(),
            "cpu" => processor::models(),
            "cpu-feature" => processor::features(),
            section => plan::words(section),
        }
    }

    fn keys(&self, _: &str, word: &str) -> &[Key] {
        plan::keys(word)
    }
}

/// A machine to stand for.
struct Profile {
    name: &'static str,
    /// What is laid under a configuration.
    text: &'static str,
    /// The first three bytes of the Ethernet addresses that are made.
    maker: [u8; 3],
}

const PROFILES: [Profile; 5] = [
    Profile { name: "pc", text: include_str!("../profiles/pc.toml"), maker: plan::MAKER },
    Profile { name: "bhyve", text: include_str!("../profiles/bhyve.toml"), maker: plan::MAKER },
    // Microsoft's, XenSource's and VMware's, as their products make them.
    Profile {
        name: "hyper-v-2008r2",
        text: include_str!("../profiles/hyper-v-2008r2.toml"),
        maker: [0x00, 0x15, 0x5d],
    },
    Profile { name: "xenserver-5.5", text: include_str!("../profiles/xenserver-5.5.toml"), maker: [0x00, 0x16, 0x3e] },
    Profile { name: "esxi-4.0", text: include_str!("../profiles/esxi-4.0.toml"), maker: [0x00, 0x0c, 0x29] },
];

/// 1 January 2026, when nothing real may show.
const FIXED_START: i64 = 1_767_225_600;
/// A seed other than 0 starts the RTC within so many seconds after that: ten years.
const START_RANGE: u64 = 315_360_000;

/// Reads and checks a file with settings from the command line on top.
///
/// # Errors
/// All that is wrong with it.
pub fn read(file: &Path, set: &[String]) -> Result<Node, Errors> {
    let mut draft = Draft::read(file);
    add(&mut draft, set);
    check(&draft)
}

/// Checks settings from the command line alone.
///
/// # Errors
/// All that is wrong with them.
pub fn from_settings<S: AsRef<str>>(set: &[S]) -> Result<Node, Errors> {
    let mut draft = Draft::new(Origin::named("the command line"));
    add(&mut draft, set);
    check(&draft)
}

/// A tree as TOML.
pub fn to_toml(tree: &cfg::Tree) -> String {
    tree.to_toml(Schema { root: &MACHINE, catalogue: &Words })
}

/// Lays settings from the command line over a draft.
fn add<S: AsRef<str>>(draft: &mut Draft, set: &[S]) {
    draft.spell_out(&MACHINE);
    for assignment in set {
        let assignment = assignment.as_ref();
        let origin = Origin::named(format!("-o {assignment}"));
        match assignment.split_once('=') {
            Some((key, value)) => draft.set(&format!("{}={value}", MACHINE.spell_out(key)), &origin),
            None => draft.set(assignment, &origin),
        }
    }
}

/// What a key of this kind may be, for people.
pub fn allowed(kind: cfg::Kind) -> String {
    kind.allowed(&Words)
}

/// What a draft says, with its profile. A machine of this version may lack some of it.
///
/// # Errors
/// All that no machine can be.
pub fn describe(draft: &Draft) -> Result<Node, Errors> {
    let mut draft = draft.clone();
    draft.spell_out(&MACHINE);
    let profile = draft.tree().text("profile").unwrap_or(PROFILES[0].name);
    if let Some(Profile { name, text, .. }) = PROFILES.iter().find(|p| p.name == profile) {
        draft.merge_under(Draft::parse(&format!("profile {name}"), text));
    }
    draft.check(Schema { root: &MACHINE, catalogue: &Words })
}

/// The names of the profiles.
#[cfg(test)]
pub fn profiles() -> impl Iterator<Item = &'static str> {
    PROFILES.iter().map(|profile| profile.name)
}

/// Whose Ethernet addresses a machine's cards have, if nothing else is said.
pub fn maker(node: &Node) -> [u8; 3] {
    PROFILES.iter().find(|p| p.name == node.text("profile")).map_or(plan::MAKER, |p| p.maker)
}

/// Checks a draft.
///
/// # Errors
/// All that is wrong with it.
pub fn check(draft: &Draft) -> Result<Node, Errors> {
    let node = describe(draft)?;
    let mut errors: Vec<Error> = Vec::new();
    errors.extend(plan::check(&node));
    errors.extend(translate::lacking(draft.tree()));
    if screen_on_terminal(&node) {
        let screen = node.child("screen");
        if screen.maybe::<&str>("model").is_none_or(|model| model == plan::NO_SCREEN) {
            let problem = Problem::new("there is no display adapter to show").allowed("screen.model = an adapter");
            errors.push(screen.error("backend", problem));
        } else if node.children("serial").iter().any(|serial| serial.text("backend") == "stdio") {
            let problem = Problem::new("a serial port has the terminal already, as stdio");
            errors.push(screen.error("backend", problem));
        }
    }
    errors.extend(vnc_errors(&node));
    errors.extend(pins(&node).err().map(|e| *e));
    errors.extend(domains(&node).err().map(|e| *e));
    errors.extend(debug_errors(&node));
    errors.extend(processor::model(&node).err().unwrap_or_default());
    if errors.is_empty() { Ok(node) } else { Err(Errors::sorted(errors)) }
}

/// What a configuration starts: firmware or a kernel if it names one, else the built-in BIOS.
///
/// # Errors
/// When a file cannot be read.
pub fn start(node: &Node) -> Result<Start> {
    let boot = node.child("boot");
    if boot.is_given("firmware") {
        return Ok(Start::Firmware(rom::open(node)?));
    }
    if !boot.is_given("kernel") {
        return Ok(Start::Bios(bios_options(node)));
    }
    let file = |key: &str| within::read(node, boot.path(key));
    Ok(Start::Kernel(Kernel {
        name: boot.path("kernel").display().to_string(),
        bytes: file("kernel")?,
        initrd: boot.is_given("initrd").then(|| file("initrd")).transpose()?,
        args: boot.maybe::<&str>("args").unwrap_or_default().to_owned(),
    }))
}

/// What a configuration chooses of the built-in BIOS.
fn bios_options(node: &Node) -> boot::bios::Options {
    let kind = |word: &str| match word {
        "floppy" => DriveKind::Floppy,
        "cd" => DriveKind::Cd,
        "disk" => DriveKind::Disk,
        _ => DriveKind::Net,
    };
    let boot = node.child("boot");
    boot::bios::Options {
        order: boot.words("order").into_iter().map(kind).collect(),
        once: boot.maybe("once").map(kind),
        menu_ms: boot.maybe::<Duration>("menu").unwrap_or_default().as_millis() as u32,
        serial: boot.bool("serial"),
        apm: node.child("quirks").text("apm") != "off",
    }
}

/// The machine that a checked configuration describes, which starts so.
///
/// # Errors
/// What the configuration asks for and this version cannot do.
pub fn spec(node: &Node, start: Start, plain: bool) -> Result<Spec> {
    let instruction_clock = node.text("clock") == "instructions";
    let seed = seed(node);
    let later = if seed == 0 { 0 } else { emu::derive(seed, "rtc") % START_RANGE };
    let board = board::kind(node);
    Ok(Spec {
        name: node.text("name").to_owned(),
        cpus: node.int("cpus") as u32,
        memory: node.size("memory").next_multiple_of(4096),
        board,
        model: processor::model(node).map_err(Errors)?,
        plain,
        instruction_clock,
        seed,
        rtc_start: match (instruction_clock, node.child("rtc").bool("use_localtime")) {
            (true, _) => FIXED_START + later as i64,
            (false, false) => now(),
            (false, true) => now() + host::utc_offset(now()),
        },
        uuid: node.maybe::<[u8; 16]>("uuid").unwrap_or_else(|| name_uuid(&identity(node))),
        strings: board::strings(node),
        domains: domains(node).map_err(|e| Errors(vec![*e]))?,
        acpi: node.child("acpi").bool("enabled"),
        mptable: node.child("acpi").bool("mptable"),
        wired: node.child("host").bool("wired"),
        core: node.child("host").bool("core"),
        stay: false,
        back_off: false,
        keep: false,
        pins: pins(node).map_err(|e| Errors(vec![*e]))?,
        strictio: node.child("cpu").bool("strictio"),
        fw_cfg: fw_cfg(node, board)?,
        start,
    })
}

/// The pairs of `cpu.pin`, ranges taken apart.
fn pins(node: &Node) -> Result<Vec<(u32, usize)>, Box<Error>> {
    let cpu = node.child("cpu");
    let parse = |pin: &str| {
        let (vcpu, host) = pin.split_once(':')?;
        let (first, last) = host.split_once('-').unwrap_or((host, host));
        let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        let vcpu: u32 = vcpu.trim().parse().ok()?;
        let good = i64::from(vcpu) < node.int("cpus") && first <= last && last < hv::HOST_CPUS;
        good.then(|| (first..=last).map(move |host| (vcpu, host)))
    };
    let mut pairs = Vec::new();
    for pin in cpu.words("pin") {
        let allowed = || {
            let (last, hosts) = (node.int("cpus") - 1, hv::HOST_CPUS - 1);
            format!("VCPU:HOST or VCPU:FIRST-LAST, with VCPU from 0 to {last} and host processors up to {hosts}")
        };
        let wrong = || Box::new(cpu.error("pin", Problem::new(format!("{pin:?} pins nothing")).allowed(allowed())));
        pairs.extend(parse(pin).ok_or_else(wrong)?);
    }
    Ok(pairs)
}

/// A NUMA domain.
pub struct Domain {
    /// Its processors.
    pub cpus: Vec<u8>,
    /// Bytes of its memory.
    pub size: u64,
}

/// The NUMA domains. Together they are the machine.
fn domains(node: &Node) -> Result<Vec<Domain>, Box<Error>> {
    let (given, cpus, memory) = (node.children("domain"), node.int("cpus"), node.size("memory"));
    let wrong = |domain: &Node, key: &str, message: String, allowed: String| {
        Err(Box::new(domain.error(key, Problem::new(message).allowed(allowed))))
    };
    let mut domains: Vec<Domain> = Vec::new();
    for domain in given {
        let mut own = Vec::new();
        for part in domain.words("cpus") {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let range = first.trim().parse().ok().zip(last.trim().parse().ok());
            let range = range.filter(|(first, last): &(i64, i64)| *first >= 0 && first <= last && *last < cpus);
            let Some((first, last)) = range else {
                return wrong(
                    domain,
                    "cpus",
                    format!("{part:?} is none of the processors"),
                    format!("0 to {}", cpus - 1),
                );
            };
            own.extend((first..=last).map(|cpu| cpu as u8));
        }
        let taken = |cpu: &&u8| domains.iter().any(|other| other.cpus.contains(cpu));
        if let Some(cpu) = own.iter().find(taken) {
            return wrong(
                domain,
                "cpus",
                format!("processor {cpu} is in another domain, too"),
                "one domain".to_owned(),
            );
        }
        own.sort_unstable();
        own.dedup();
        let share = memory / given.len() as u64 & !0xf_ffff;
        // The first has what an equal share leaves.
        let rest = if domains.is_empty() { memory - share * given.len() as u64 } else { 0 };
        domains.push(Domain { cpus: own, size: domain.maybe("size").unwrap_or(share + rest) });
    }
    let Some(last) = given.last() else { return Ok(domains) };
    let sized = given.iter().filter(|domain| domain.is_given("size")).count();
    if sized > 0 && sized < given.len() {
        return wrong(
            last,
            "size",
            "some domains have a size, and some have none".to_owned(),
            "all or none".to_owned(),
        );
    }
    let all: u64 = domains.iter().map(|domain| domain.size).sum();
    if all != memory {
        let message = format!("the domains have {} MiB together, and the machine {} MiB", all >> 20, memory >> 20);
        return wrong(last, "size", message, "sizes whose sum is memory".to_owned());
    }
    let placed: usize = domains.iter().map(|domain| domain.cpus.len()).sum();
    if placed as i64 != cpus {
        let message = format!("{placed} of {cpus} processors are in a domain");
        return wrong(last, "cpus", message, "each processor in one domain".to_owned());
    }
    Ok(domains)
}

/// A file of fw_cfg: its name, and what is in it.
pub type Item = (String, Vec<u8>);

/// The files that fw_cfg has beside the machine's own, if the machine has it.
fn fw_cfg(node: &Node, board: &board::Kind) -> Result<Option<Vec<Item>>> {
    let given = node.children("fwcfg");
    let asked = node.child("lpc").text("fwcfg") == "qemu" || !given.is_empty();
    if !board.fw_cfg && !asked {
        return Ok(None);
    }
    let mut items = Vec::new();
    // bhyve's firmware looks for it; the boards that QEMU has as well have QEMU's items alone.
    if !board.fw_cfg {
        items.push(("opt/bhyve/hw.ncpu".to_owned(), (node.int("cpus") as u32).to_le_bytes().to_vec()));
    }
    for item in given {
        let data = match item.is_given("file") {
            true => std::fs::read(item.path("file")).with_context(|| item.path("file").display().to_string())?,
            false => item.maybe::<&str>("string").unwrap_or_default().as_bytes().to_vec(),
        };
        items.push((item.text("name").to_owned(), data));
    }
    Ok(Some(items))
}

/// The directories that images may be inserted from.
pub fn media_directories(node: &Node) -> Vec<PathBuf> {
    let drives = ["disk", "cd", "floppy"].into_iter().flat_map(|section| node.children(section));
    let images = drives.filter(|drive| drive.is_given("path")).filter_map(|drive| {
        let image = drive.path("path").canonicalize().ok()?;
        image.parent().map(Path::to_owned)
    });
    let mut dirs: Vec<PathBuf> = node.child("sandbox").paths("media").into_iter().map(Path::to_owned).collect();
    dirs.extend(images);
    dirs.sort();
    dirs.dedup();
    dirs
}

/// The host's time of day in seconds since 1970.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(FIXED_START, |d| d.as_secs() as i64)
}

/// How long the last output of a guest may take to go out.
const LAST_OUTPUT: Duration = Duration::from_secs(10);

/// The other ends of the serial ports.
pub struct Consoles {
    /// By port, COM1 first.
    pub devices: Vec<Option<Box<dyn Chardev>>>,
    /// Of each port that is connected: its name, and what the user should know of its other end.
    pub descriptions: Vec<(String, Description)>,
    /// Who serves those that can be visited, if the machine can be reached.
    pub server: Option<Server>,
}

/// Where a machine is reached.
#[derive(Clone, Copy)]
pub struct Reachable<'a> {
    /// The directory of its sockets; without one it cannot be.
    pub dir: Option<&'a Path>,
    /// It has no terminal.
    pub background: bool,
}

impl Consoles {
    /// Waits until what the guest wrote is out.
    pub fn flush(&self) {
        for (port, description) in &self.descriptions {
            if !description.flush(LAST_OUTPUT) {
                tracing::warn!("{port}: nobody takes the last output");
            }
        }
    }
}

/// What the commands do that are typed at the terminal; a break is sent to serial port `port`.
pub fn commands(orders: &Handle, port: usize) -> console::CommandHook {
    let handle = orders.clone();
    Arc::new(move |command| {
        handle.send(match command {
            ConsoleCommand::Quit => Order::Kill,
            ConsoleCommand::Break => Order::Break(port),
            ConsoleCommand::Reset => Order::Reset,
            ConsoleCommand::PowerButton => Order::PowerButton,
            // Who is at the terminal that the machine was started from writes.
            ConsoleCommand::TakeOver => return,
        });
    })
}

/// Whether the screen is shown on the terminal.
pub fn screen_on_terminal(node: &Node) -> bool {
    node.child("screen").text("backend") == "terminal"
}

/// Where the VNC server listens, if there is one.
fn vnc_places(screen: &Node) -> Vec<Place> {
    let remote = screen.bool("vnc_remote")
        || ["vnc_password", "vnc_password_file", "vnc_view_password_file"].into_iter().any(|key| screen.is_given(key));
    let tcp = |host: &str, port| Place::Tcp { host: host.to_owned(), port, remote };
    let mut places: Vec<Place> = screen.maybe::<&Address>("vnc").map(|at| tcp(&at.host, at.port)).into_iter().collect();
    places.extend(screen.is_given("vnc_socket").then(|| Place::Unix(screen.path("vnc_socket").to_owned())));
    if places.is_empty() && screen.text("backend") == "vnc" {
        places.push(tcp("127.0.0.1", 5900));
    }
    places
}

/// Opens the sockets of the VNC server, and says who may come.
///
/// # Errors
/// When one cannot be opened, or a password not be read.
pub fn vnc(node: &Node) -> Result<(Vec<Listener>, vnc::Settings)> {
    let screen = node.child("screen");
    let password = |key: &str| {
        let read = || -> Result<String> {
            let path = screen.path(key);
            let text = std::fs::read_to_string(path).with_context(|| format!("screen.{key}: {}", path.display()))?;
            match text.lines().next().unwrap_or_default() {
                "" => Err(anyhow!("screen.{key}: {}: its first line is empty", path.display())),
                first => Ok(first.to_owned()),
            }
        };
        screen.is_given(key).then(read).transpose()
    };
    let given = screen.maybe::<&str>("vnc_password").map(str::to_owned);
    let settings = vnc::Settings {
        name: node.text("name").to_owned(),
        password: given.map_or_else(|| password("vnc_password_file"), |password| Ok(Some(password)))?,
        view_password: password("vnc_view_password_file")?,
        looks_only: screen.bool("vnc_readonly"),
    };
    let open = |place: &Place| {
        Listener::open(place).with_context(|| match place {
            Place::Tcp { host, port, .. } => format!("screen.vnc: {host}:{port}"),
            Place::Unix(path) => format!("screen.vnc_socket: {}", path.display()),
        })
    };
    Ok((vnc_places(screen).iter().map(open).collect::<Result<_>>()?, settings))
}

/// Opens the socket of the debug server, if there is one.
///
/// # Errors
/// When it cannot be opened.
pub fn debugger(node: &Node) -> Result<Option<Listener>> {
    let debug = node.child("debug");
    let place = match (debug.maybe::<&Address>("address"), debug.is_given("socket")) {
        (Some(at), _) => Place::Tcp { host: at.host.clone(), port: at.port, remote: debug.bool("remote") },
        (None, true) => Place::Unix(debug.path("socket").to_owned()),
        (None, false) => return Ok(None),
    };
    let what = || match &place {
        Place::Tcp { host, port, .. } => format!("debug.address: {host}:{port}"),
        Place::Unix(path) => format!("debug.socket: {}", path.display()),
    };
    Listener::open(&place).with_context(what).map(Some)
}

/// What is said of a debug server that cannot be.
fn debug_errors(node: &Node) -> Vec<Error> {
    let debug = node.child("debug");
    if ["address", "socket"].iter().any(|key| debug.is_given(key)) {
        return Vec::new();
    }
    let problem = || Problem::new("there is no debug server").allowed("one, by debug.address or debug.socket");
    ["remote", "wait"].into_iter().filter(|key| debug.is_given(key)).map(|key| debug.error(key, problem())).collect()
}

/// What is said of a VNC server that cannot be.
fn vnc_errors(node: &Node) -> Vec<Error> {
    let screen = node.child("screen");
    if vnc_places(screen).is_empty() {
        let keys = ["password", "password_file", "view_password_file", "readonly", "wait", "remote"];
        let said = keys.map(|key| format!("vnc_{key}")).into_iter().filter(|key| screen.is_given(key));
        let problem = || Problem::new("there is no VNC server").allowed("one, by screen.vnc or screen.vnc_socket");
        return said.map(|key| screen.error(&key, problem())).collect();
    }
    let key = ["vnc", "vnc_socket"].into_iter().find(|key| screen.is_given(key)).unwrap_or("backend");
    if screen.maybe::<&str>("model").is_none_or(|model| model == plan::NO_SCREEN) {
        let problem = Problem::new("there is no display adapter to show").allowed("screen.model = an adapter");
        return vec![screen.error(key, problem)];
    }
    Vec::new()
}

/// Opens the other ends of the serial ports; commands that are typed there become orders. In the background there is no
/// terminal: what is on it else can be visited.
///
/// # Errors
/// When one cannot be opened.
pub fn consoles(node: &Node, io: &Arc<Io>, block: bool, orders: &Handle, reachable: Reachable) -> Result<Consoles> {
    let name = node.text("name");
    if let Some(dir) = reachable.dir {
        control::make_run_dir(dir)?;
    }
    let server = reachable.dir.map(|_| Server::start()).transpose()?;
    let mut consoles = Consoles { devices: Vec::new(), descriptions: Vec::new(), server };
    for (n, (serial, port)) in node.children("serial").iter().zip(port_names(node)).enumerate() {
        let path = || serial.path("path").to_owned();
        let spec = match serial.text("backend") {
            "none" => {
                consoles.devices.push(None);
                continue;
            }
            "console" | "stdio" if reachable.background || serial.text("backend") == "console" => {
                let what = || format!("serial.{n} ({port})");
                let (Some(server), Some(dir)) = (&consoles.server, reachable.dir) else {
                    return Err(anyhow!("a machine that has no name of its own cannot be reached")).with_context(what);
                };
                let socket = match serial.is_given("path") {
                    true => path(),
                    false => control::console_path(dir, name, &port),
                };
                let log = console_log(serial, reachable, name, &port)?;
                let (device, description) =
                    server.serial(io, &port, Some(&socket), log.as_ref(), block).with_context(what)?;
                consoles.devices.push(Some(device));
                consoles.descriptions.push((port, description));
                continue;
            }
            "stdio" => ConsoleSpec::Stdio,
            "file" => ConsoleSpec::File { path: path(), append: true },
            "pty" => ConsoleSpec::Pty { link: serial.is_given("path").then(path) },
            "tty" => ConsoleSpec::Tty { path: path() },
            "nmdm" => ConsoleSpec::Nmdm { path: path() },
            "socket" => ConsoleSpec::Unix { path: path() },
            "tcp" => {
                let address = serial.maybe::<&Address>("address").context("no address")?;
                ConsoleSpec::Tcp { host: address.host.clone(), port: address.port, remote: false }
            }
            other => return Err(anyhow!("serial.{n}.backend: {other:?} is not in this version yet")),
        };
        let hook = commands(orders, n);
        let (device, description) =
            console::open(&spec, io, block, &hook).with_context(|| format!("serial.{n} ({port})"))?;
        consoles.devices.push(Some(device));
        consoles.descriptions.push((port, description));
    }
    Ok(consoles)
}

/// What the sandbox has to allow for the directories that are shared.
pub fn shares(node: &Node) -> Shares {
    let kind = |share: &Node| if share.bool("readonly") { Shares::Read } else { Shares::Write };
    node.children("share").iter().map(kind).max().unwrap_or_default()
}

/// What serial ports are called, in paths and by `console`: com1, com2 and so on, uart0 and so on, and the ports of consoles by their names.
pub fn port_names(node: &Node) -> Vec<String> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let name = |serial: &Node| {
        let model = serial.maybe("model").unwrap_or(plan::COM);
        let count = counts.entry(model.to_owned()).or_default();
        *count += 1;
        match (plan::is_com(serial), serial.maybe::<&str>("port")) {
            (true, _) => format!("com{count}"),
            // It becomes a part of paths.
            (_, Some(port)) => port.replace(|c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c)), "_"),
            _ => format!("{model}{}", *count - 1),
        }
    };
    node.children("serial").iter().map(name).collect()
}

/// The log of a console: where the configuration says, and in the background in any case.
fn console_log(serial: &Node, reachable: Reachable, name: &str, port: &str) -> Result<Option<LogSpec>> {
    let path = match reachable.dir {
        _ if serial.is_given("log") => serial.path("log").to_owned(),
        Some(dir) if reachable.background => control::console_log(&control::make_log_dir(dir)?, name, port),
        _ => return Ok(None),
    };
    Ok(Some(LogSpec { path, size: serial.size("log_size"), keep: serial.int("log_keep") as u32 }))
}

/// What everything random starts from: 0, like any other machine of its name, unless instructions drive the clock.
fn seed(node: &Node) -> u64 {
    if node.text("clock") == "instructions" { node.int("seed") as u64 } else { 0 }
}

/// What UUID and Ethernet addresses are made of when they are not given: the name, and the seed.
pub fn identity(node: &Node) -> String {
    let name = node.text("name");
    match seed(node) {
        0 => name.to_owned(),
        seed => format!("{name}\0{seed}"),
    }
}

/// A UUID that stays with an identity: FNV-1a over it, twice, in the form of a version 8 UUID (RFC 9562).
fn name_uuid(identity: &str) -> [u8; 16] {
    let hash = |basis: u64| {
        let step = |h: u64, b: u8| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3);
        identity.bytes().fold(basis, step).to_be_bytes()
    };
    let (a, b) = (hash(0xcbf2_9ce4_8422_2325), hash(0x6c62_272e_07bb_0142));
    let mut uuid = [0; 16];
    uuid[..8].copy_from_slice(&a);
    uuid[8..].copy_from_slice(&b);
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_uuid_and_another_name_has_another() {
        assert_eq!(name_uuid("fw1"), name_uuid("fw1"));
        assert_ne!(name_uuid("fw1"), name_uuid("fw2"));
        assert_eq!(name_uuid("x")[6] >> 4, 8);
    }

    #[test]
    fn a_seed_makes_another_machine_when_instructions_drive_the_clock_and_only_then() {
        let spec = |words: &[&str]| {
            let node = from_settings(words).unwrap();
            let spec = spec(&node, Start::Bios(bios_options(&node)), false).unwrap();
            (spec.seed, spec.rtc_start, spec.uuid)
        };
        let (plain, zero) = (spec(&["name=x"]), spec(&["name=x", "clock=instructions"]));
        assert_eq!((zero.0, zero.1, zero.2), (0, FIXED_START, plain.2));
        let one = spec(&["name=x", "clock=instructions", "seed=1"]);
        assert_eq!(one, spec(&["name=x", "clock=instructions", "seed=1"]));
        let two = spec(&["name=x", "clock=instructions", "seed=2"]);
        assert!(one.1 != two.1 && one.2 != two.2 && one.1 != zero.1 && one.2 != zero.2);
        let real = spec(&["name=x", "seed=1"]);
        assert_eq!((real.0, real.2), (0, plain.2));
        assert_eq!(
            spec(&["name=x", "clock=instructions", "seed=1", "uuid=00000000-0000-0000-0000-000000000007"]).2[15],
            7
        );
    }

    #[test]
    fn a_screen_can_be_said_in_one_word() {
        let node = check(&Draft::parse("t.toml", "name = 'x'\nscreen = 'terminal'\n")).unwrap();
        assert_eq!((node.child("screen").text("backend"), node.child("screen").text("model")), ("terminal", "vga"));
        let mut draft = Draft::parse("t.toml", "name = 'x'\n[screen]\nvnc = '5900'\n");
        add(&mut draft, &["screen=terminal"]);
        let node = check(&draft).unwrap();
        let screen = node.child("screen");
        assert!(screen.is_given("vnc") && screen.text("backend") == "terminal", "the file's own keys stay");
        let errors = check(&Draft::parse("t.toml", "name = 'x'\nscreen = 'terminl'\n")).unwrap_err();
        let line = errors.0[0].to_string();
        assert!(line.starts_with("t.toml:2:10: screen.backend: ") && line.contains("\"terminal\""), "{line}");
    }

    #[test]
    fn what_this_version_lacks_is_refused_by_key() {
        let text = "name = 'x'\n[bhyve.tpm]\ntype = 'swtpm'\n";
        let errors = check(&Draft::parse("t.toml", text)).unwrap_err();
        let lines: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].starts_with("t.toml:3:8: bhyve.tpm.type: "), "{}", lines[0]);
    }
}
