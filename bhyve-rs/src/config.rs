//! From a configuration to a machine: the words that the schema leaves to us, and what each key means.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};
use boot::bios::DriveKind;
use cfg::schema::MACHINE;
use cfg::{Address, Catalogue, Draft, Error, Errors, Key, Node, Origin, Problem, Schema};
use emu::backend::Chardev;
use host::console::{self, ConsoleSpec, Description};
use host::{ConsoleCommand, Io};

use crate::vm::{Handle, Kernel, Order, Spec, Start};
use crate::{board, plan, processor, rom};

/// The words of this version.
struct Words;

impl Catalogue for Words {
    fn words(&self, class: &str) -> Vec<&str> {
        match class {
            "profile" => PROFILES.map(|(name, _)| name).into(),
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

/// Machines to stand for: what is laid under a configuration.
const PROFILES: [(&str, &str); 2] =
    [("pc", include_str!("../profiles/pc.toml")), ("bhyve", include_str!("../profiles/bhyve.toml"))];

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

/// Checks a draft.
///
/// # Errors
/// All that is wrong with it.
pub fn check(draft: &Draft) -> Result<Node, Errors> {
    let mut draft = draft.clone();
    draft.spell_out(&MACHINE);
    let profile = draft.tree().text("profile").unwrap_or(PROFILES[0].0);
    if let Some((name, text)) = PROFILES.into_iter().find(|(name, _)| *name == profile) {
        draft.merge_under(Draft::parse(&format!("profile {name}"), text));
    }
    let node = draft.check(Schema { root: &MACHINE, catalogue: &Words })?;
    let mut errors: Vec<Error> = Vec::new();
    errors.extend(plan::check(&node));
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
    let file = |key: &str| -> Result<Vec<u8>> {
        let path = boot.path(key);
        std::fs::read(path).with_context(|| path.display().to_string())
    };
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
    Ok(Spec {
        name: node.text("name").to_owned(),
        cpus: node.int("cpus") as u32,
        memory: node.size("memory").next_multiple_of(4096),
        board: board::kind(node),
        model: processor::model(node).map_err(Errors)?,
        plain,
        instruction_clock,
        seed,
        rtc_start: if instruction_clock { FIXED_START + later as i64 } else { now() },
        uuid: node.maybe::<[u8; 16]>("uuid").unwrap_or_else(|| name_uuid(&identity(node))),
        acpi: node.child("acpi").bool("enabled"),
        stay: false,
        start,
    })
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
        });
    })
}

/// Whether the screen is shown on the terminal.
pub fn screen_on_terminal(node: &Node) -> bool {
    node.child("screen").text("backend") == "terminal"
}

/// Opens the other ends of the serial ports; commands that are typed there become orders. In the background, with a
/// directory, there is no terminal: a UNIX socket in it stands for that.
///
/// # Errors
/// When one cannot be opened.
pub fn consoles(
    node: &Node,
    io: &Arc<Io>,
    block: bool,
    orders: &Handle,
    background: Option<&Path>,
) -> Result<Consoles> {
    let mut consoles = Consoles { devices: Vec::new(), descriptions: Vec::new() };
    for (n, serial) in node.children("serial").iter().enumerate() {
        let port = format!("com{}", n + 1);
        let path = || serial.path("path").to_owned();
        let spec = match (serial.text("backend"), background) {
            ("none", _) => {
                consoles.devices.push(None);
                continue;
            }
            ("stdio", Some(dir)) => ConsoleSpec::Unix { path: dir.join(format!("{}.{port}", node.text("name"))) },
            ("stdio", None) => ConsoleSpec::Stdio,
            ("file", _) => ConsoleSpec::File { path: path(), append: true },
            ("pty", _) => ConsoleSpec::Pty { link: serial.is_given("path").then(path) },
            ("socket", _) => ConsoleSpec::Unix { path: path() },
            ("tcp", _) => {
                let address = serial.maybe::<&Address>("address").context("no address")?;
                ConsoleSpec::Tcp { host: address.host.clone(), port: address.port, remote: false }
            }
            (other, _) => return Err(anyhow!("serial.{n}.backend: {other:?} is not in this version yet")),
        };
        let hook = commands(orders, n);
        let (device, description) =
            console::open(&spec, io, block, &hook).with_context(|| format!("serial.{n} ({port})"))?;
        consoles.devices.push(Some(device));
        consoles.descriptions.push((port, description));
    }
    Ok(consoles)
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
        let text = "name = 'x'\n[[nic]]\nbackend = 'nat'\nmodel = 'virtio-net'\n";
        let errors = check(&Draft::parse("t.toml", text)).unwrap_err();
        let lines: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].starts_with("t.toml:3:11: nic.0.backend: "), "{}", lines[0]);
    }
}
