//! grub-bhyve: loads a kernel, or a disk's own loader, into a machine for bhyve(8).
//!
//! With a configuration of the host's (`-r host -d DIR`) its commands are read here: the kernel that they load is started
//! without firmware, from a file of the host or of an image of the device map. bhyve(8) reads it when it starts the
//! machine. With a disk or a disc for root the built-in BIOS starts what boots there, which as a rule is GRUB again;
//! only where nothing boots a `grub.cfg` in the image is read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use fsys::{Disk, Volume};
use host::disk::Format;

use super::node::{self, Loaded, Nodes};
use crate::within::{self, Place};

const FAILED: u8 = 1;
/// Largest configuration, and how many may lead to one another.
const LARGEST: u64 = 1 << 20;
const DEPTH: usize = 8;
/// Where a system has its configuration.
const DIRECTORIES: [&str; 4] = ["/boot/grub", "/grub", "/boot/grub2", "/grub2"];
const HOST: &str = "host";
/// Settings that the kernel's commands make.
const KERNEL: &str = "boot.kernel=";
const INITRD: &str = "boot.initrd=";
const ARGS: &str = "boot.args=";
/// What FreeBSD's variables are called in a configuration.
const KENV: &str = "kFreeBSD.";

/// libvirt looks here for `--cons-dev`.
pub const HELP: &str = "\
Usage: grub-bhyve [OPTION...] NAME
Load a kernel for a machine of bhyve(8).

  -c, --cons-dev=DEVICE      a tty device to use for console I/O
  -d, --directory=DIRECTORY  directory of the configuration
  -e, --env=VAR=VALUE        set a variable
  -g, --grub-cfg=FILE        name of the configuration [default: grub.cfg]
  -m, --device-map=FILE      which images are which disks
  -M, --memory=MBYTES        guest memory [default: 256]
  -n, --evga                 keep an ISA VGA from Linux
  -r, --root=DEVICE          root device: host, hdN or cdN
  -S, --wire                 wire the memory of the guest
  -v, --verbose              say more
  -h, --help                 give this help list
  -V, --version              print the version of the program
";

/// Long option, short one, whether it takes an argument.
const OPTIONS: [(&str, char, bool); 12] = [
    ("cons-dev", 'c', true),
    ("directory", 'd', true),
    ("env", 'e', true),
    ("grub-cfg", 'g', true),
    ("device-map", 'm', true),
    ("memory", 'M', true),
    ("evga", 'n', false),
    ("root", 'r', true),
    ("wire", 'S', false),
    ("verbose", 'v', false),
    ("help", 'h', false),
    ("version", 'V', false),
];

#[derive(Debug, Default)]
struct Asked {
    name: String,
    directory: Option<String>,
    config: Option<String>,
    map: Option<String>,
    root: Option<String>,
    /// What is printed instead.
    text: Option<String>,
}

/// Does what the command line says, and returns the exit status.
pub fn main(args: &[String], dir: &Path) -> u8 {
    let done = parse(args).and_then(|asked| match asked.text {
        Some(text) => {
            print!("{text}");
            Ok(())
        }
        None => load(&asked, dir),
    });
    match done {
        Ok(()) => 0,
        Err(e) => {
            eprintln!("grub-bhyve: {e:#}");
            FAILED
        }
    }
}

fn parse(args: &[String]) -> Result<Asked> {
    let mut asked = Asked::default();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        if let Some(long) = arg.strip_prefix("--").filter(|long| !long.is_empty()) {
            let (name, value) = long.split_once('=').map_or((long, None), |(n, v)| (n, Some(v.to_owned())));
            let mut fits = OPTIONS.iter().filter(|(known, ..)| known.starts_with(name));
            let &(_, letter, takes) = fits.next().with_context(|| format!("unrecognized option '--{name}'"))?;
            let value = if takes { value.or_else(|| rest.next().cloned()) } else { None };
            option(&mut asked, letter, takes, value)?;
        } else if let Some(letters) = arg.strip_prefix('-').filter(|letters| !letters.is_empty()) {
            let mut letters = letters.chars();
            while let Some(letter) = letters.next() {
                let known = OPTIONS.iter().find(|(_, known, _)| *known == letter);
                let &(_, _, takes) = known.with_context(|| format!("invalid option -- '{}'", letter.escape_debug()))?;
                if !takes {
                    option(&mut asked, letter, false, None)?;
                    continue;
                }
                let glued = Some(letters.as_str().to_owned()).filter(|glued| !glued.is_empty());
                option(&mut asked, letter, true, glued.or_else(|| rest.next().cloned()))?;
                break;
            }
        } else if asked.name.is_empty() {
            asked.name.clone_from(arg);
        } else {
            bail!("too many arguments: {arg:?}");
        }
    }
    if asked.text.is_none() && asked.name.is_empty() {
        bail!("which machine? grub-bhyve --help says more");
    }
    Ok(asked)
}

fn option(asked: &mut Asked, letter: char, takes: bool, value: Option<String>) -> Result<()> {
    if takes && value.is_none() {
        bail!("option requires an argument -- '{letter}'");
    }
    match letter {
        'd' => asked.directory = value,
        'g' => asked.config = value,
        'm' => asked.map = value,
        'r' => asked.root = value,
        'M' if value.as_deref().is_none_or(|m| m.trim_end_matches(['M', 'G', 'm', 'g']).parse::<u64>().is_err()) => {
            bail!("invalid memory size {:?}", value.unwrap_or_default());
        }
        'h' => asked.text = Some(HELP.to_owned()),
        'V' => asked.text = Some(format!("grub-bhyve (bhyve-rs) {}\n", env!("CARGO_PKG_VERSION"))),
        _ => {}
    }
    Ok(())
}

fn load(asked: &Asked, dir: &Path) -> Result<()> {
    node::valid(&asked.name)?;
    let images = asked.map.as_ref().map_or(Ok(BTreeMap::new()), |map| read_map(Path::new(map)))?;
    let root = asked.root.as_deref().unwrap_or(HOST);
    let root = root.trim_start_matches('(').trim_end_matches(')');
    let name = asked.config.as_deref().unwrap_or("grub.cfg");
    let mut loader = Loader { images, root: root.to_owned(), ..Loader::default() };
    let settings = if root == HOST {
        let file = Path::new(asked.directory.as_deref().unwrap_or(".")).join(name);
        let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        loader.run(&text, &file.display().to_string())?;
        loader.kernel(&file.display().to_string())?
    } else {
        let first = match root {
            cd if cd.starts_with("cd") => "cd,disk,floppy,net",
            hd if hd.starts_with("hd") => "disk,cd,floppy,net",
            _ => bail!("root {root:?}: expected host, hdN or cdN"),
        };
        match loader.own_config(asked.directory.as_deref(), name) {
            Some((file, text)) => {
                loader.run(&text, &file)?;
                loader.kernel(&file)?
            }
            None => vec![format!("boot.order={first}")],
        }
    };
    let loaded = Loaded { by: "grub-bhyve".to_owned(), settings };
    Nodes::of(dir).leave(&asked.name, &loaded)
}

/// Lines are `(hd0) path`.
fn read_map(map: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let text = std::fs::read_to_string(map).with_context(|| map.display().to_string())?;
    let mut images = BTreeMap::new();
    for (n, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let (device, path) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let device = device.strip_prefix('(').and_then(|device| device.strip_suffix(')'));
        let known = device.filter(|device| device.starts_with("hd") || device.starts_with("cd"));
        let Some(device) = known.filter(|_| !path.trim().is_empty()) else {
            bail!("{}:{n}: expected (hdN) path or (cdN) path", map.display());
        };
        // As the machine's own configuration names it.
        let path = std::path::absolute(path.trim()).with_context(|| format!("{}:{n}", map.display()))?;
        images.insert(device.to_owned(), path);
    }
    Ok(images)
}

/// A command with the number of its line.
type Command = (usize, Vec<String>);

/// What GRUB would know.
#[derive(Default)]
struct Loader {
    images: BTreeMap<String, PathBuf>,
    /// The device that paths are on: `host`, or `hd0,1`.
    root: String,
    settings: Vec<String>,
    /// FreeBSD's variables.
    kenv: Vec<String>,
    depth: usize,
}

impl Loader {
    /// Does what the entry that GRUB would start says. An error names the file and the line.
    fn run(&mut self, text: &str, file: &str) -> Result<()> {
        let commands = entry(text).map_err(|(line, why)| anyhow!("{file}:{line}: {why}"))?;
        for (line, words) in commands {
            self.command(&words).with_context(|| format!("{file}:{line}"))?;
        }
        Ok(())
    }

    /// What is left for bhyve(8).
    fn kernel(mut self, file: &str) -> Result<Vec<String>> {
        ensure!(self.settings.iter().any(|setting| setting.starts_with(KERNEL)), "{file}: nothing loads a kernel");
        if !self.kenv.is_empty() {
            self.settings.push(format!("{ARGS}{}", escaped(&self.kenv.join(" "))));
        }
        Ok(self.settings)
    }

    fn command(&mut self, words: &[String]) -> Result<()> {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let (name, rest) = (words[0], &words[1..]);
        let what = || format!("{name} what?");
        match name.strip_suffix("16").unwrap_or(name) {
            "linux" | "multiboot" | "kernel" => {
                let (file, args) = rest.split_first().with_context(what)?;
                self.load(file, &args.join(" "))?;
            }
            "kopenbsd" | "knetbsd" => {
                let (file, options) = bsd_options(rest)?;
                self.load(file.with_context(what)?, &options)?;
            }
            "kfreebsd" => {
                let (file, args) = rest.split_first().with_context(what)?;
                self.load(file, "")?;
                ensure!(args.is_empty(), "{}: set {KENV}boot_verbose=YES and the like instead", args.join(" "));
            }
            "kfreebsd_loadenv" => self.load_kenv(rest.first().with_context(what)?)?,
            "initrd" | "module" => {
                let file = self.file(rest.first().with_context(what)?)?;
                let single = rest.len() == 1 || name == "module";
                ensure!(
                    single && !self.settings.iter().any(|s| s.starts_with(INITRD)),
                    "one {name} is all there can be"
                );
                self.settings.push(format!("{INITRD}{}", escaped(&file)));
            }
            "kfreebsd_module" | "kfreebsd_module_elf" | "knetbsd_module_elf" | "multiboot2" | "module2" => {
                bail!("{name} is not in this version: boot the guest's disk instead");
            }
            "configfile" => {
                let path = rest.first().with_context(what)?;
                ensure!(self.depth < DEPTH, "more than {DEPTH} configurations lead to one another");
                let file = self.file(path)?;
                let text = self.text(&file)?;
                self.depth += 1;
                self.run(&text, path)?;
            }
            "search" => self.search(rest)?,
            "set" | "insmod" | "terminal_input" | "terminal_output" | "terminal" | "serial" | "echo" | "boot"
            | "export" | "sleep" | "clear" => {}
            word => match assignment(word) {
                Some(("root", device)) => {
                    let device = device.trim_start_matches('(').trim_end_matches(')');
                    device.clone_into(&mut self.root);
                }
                Some((variable, value)) => {
                    let kenv = variable.strip_prefix(KENV).map(|variable| format!("{variable}={value}"));
                    self.kenv.extend(kenv);
                }
                None => bail!("the command {name:?} is not in this version"),
            },
        }
        Ok(())
    }

    /// A kernel with its command line takes the place of the one before.
    fn load(&mut self, file: &str, args: &str) -> Result<()> {
        let file = self.file(file)?;
        self.settings.clear();
        self.settings.push(format!("{KERNEL}{}", escaped(&file)));
        if !args.is_empty() {
            self.settings.push(format!("{ARGS}{}", escaped(args)));
        }
        Ok(())
    }

    /// Takes variables from a file as loader.conf(5) and device.hints(5) are.
    fn load_kenv(&mut self, path: &str) -> Result<()> {
        let file = self.file(path)?;
        let text = self.text(&file)?;
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (name, value) = line.split_once('=').with_context(|| format!("{path}: expected NAME=VALUE: {line}"))?;
            let value = value.trim_matches('"');
            ensure!(!value.contains([' ', ',', '\t']), "{path}: {name}: PVH has no blanks and commas in values");
            self.kenv.push(format!("{name}={value}"));
        }
        Ok(())
    }

    /// What a path in a configuration leads to: a file of the host, or `(IMAGE,PARTITION)/PATH`, which is there.
    fn file(&self, path: &str) -> Result<String> {
        let (device, path) = match Place::parse(path)? {
            Some(place) => (join(&place.device, &place.partition), place.path),
            None => (self.root.clone(), path.to_owned()),
        };
        ensure!(path.starts_with('/'), "{path}: expected a whole path");
        if device == HOST {
            return Ok(path);
        }
        let (image, partition) = self.image(&device)?;
        let mut volume = self.volume(&device)?;
        ensure!(volume.holds(&path), "({device}){path}: there is no such file");
        Ok(format!("({}){path}", join(&image.display().to_string(), partition)))
    }

    /// The image of `hd0,1`, and the partition.
    fn image<'a>(&self, device: &'a str) -> Result<(&PathBuf, &'a str)> {
        let (disk, partition) = device.split_once(',').unwrap_or((device, ""));
        let image = self.images.get(disk).with_context(|| format!("{disk} is not in the device map"))?;
        Ok((image, partition))
    }

    fn disk(&self, device: &str) -> Result<Disk> {
        let (image, _) = self.image(device)?;
        within::open(image, Format::Auto, LARGEST)
    }

    fn volume(&self, device: &str) -> Result<Volume> {
        let (_, partition) = self.image(device)?;
        self.disk(device)?.volume(partition).with_context(|| device.to_owned())
    }

    /// A file that is read here already, as `file` has named it.
    fn text(&self, file: &str) -> Result<String> {
        let bytes = match Place::parse(file)? {
            Some(place) => {
                let disk = within::open(Path::new(&place.device), Format::Auto, LARGEST)?;
                disk.volume(&place.partition)?.read(&place.path)?
            }
            None => std::fs::read(file).with_context(|| file.to_owned())?,
        };
        String::from_utf8(bytes).with_context(|| file.to_owned())
    }

    /// The configuration on the root device, if there is one and a BIOS would find nothing to start.
    fn own_config(&self, directory: Option<&str>, name: &str) -> Option<(String, String)> {
        let disk = self.disk(&self.root).ok().filter(|disk| !disk.boots())?;
        let (_, partition) = self.image(&self.root).ok()?;
        let mut volume = disk.volume(partition).ok()?;
        let directories = directory.into_iter().chain(DIRECTORIES);
        let mut files = directories.map(|directory| format!("{}/{name}", directory.trim_end_matches('/')));
        let file = files.find(|file| volume.holds(file))?;
        let text = String::from_utf8(volume.read(&file).ok()?).ok()?;
        Some((format!("({}){file}", self.root), text))
    }

    /// `search --set=root --file|--label|--fs-uuid NAME`.
    fn search(&mut self, words: &[&str]) -> Result<()> {
        let (mut by, mut wanted) = ("--file", None);
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match *word {
                "--file" | "-f" => by = "--file",
                "--label" | "-l" => by = "--label",
                "--fs-uuid" | "-u" => by = "--fs-uuid",
                "--no-floppy" | "-n" | "--set=root" | "--set" => {}
                "-s" => ensure!(words.next() == Some(&"root"), "-s: only root is searched for"),
                hint if hint.starts_with("--hint") => {}
                "root" if wanted.is_none() && words.len() > 0 => {}
                option if option.starts_with('-') => bail!("{option}: expected --file, --label or --fs-uuid"),
                name => wanted = Some(name),
            }
        }
        let wanted = wanted.with_context(|| format!("{by} what?"))?;
        for device in self.images.keys() {
            let Ok(disk) = self.disk(device) else { continue };
            let names = disk.partitions().unwrap_or_default();
            for partition in names.iter().map(String::as_str).chain([""]) {
                let Ok(mut volume) = disk.volume(partition) else { continue };
                let found = match by {
                    "--label" => volume.label() == wanted,
                    "--fs-uuid" => volume.uuid().eq_ignore_ascii_case(wanted),
                    _ => volume.holds(wanted),
                };
                if found {
                    self.root = join(device, partition);
                    return Ok(());
                }
            }
        }
        bail!("{by} {wanted}: no device of the map has it")
    }
}

fn join(device: &str, partition: &str) -> String {
    if partition.is_empty() { device.to_owned() } else { format!("{device},{partition}") }
}

/// A value of a setting, in which a % would begin a reference.
fn escaped(text: &str) -> String {
    text.replace('%', "%%")
}

/// The file among the words of `kopenbsd` or `knetbsd`, and the options, which their loader reads.
fn bsd_options<'a>(words: &[&'a str]) -> Result<(Option<&'a str>, String)> {
    let (mut file, mut options) = (None, Vec::new());
    let mut words = words.iter().copied().peekable();
    while let Some(word) = words.next() {
        match word {
            "-h" => {
                options.push(word);
                options.extend(words.next_if(|word| word.starts_with("com")));
            }
            "-r" => options.extend([word, words.next().context("-r: which device?")?]),
            option if option.starts_with('-') => options.push(option),
            name => {
                ensure!(file.is_none(), "{name}: too many files");
                file = Some(name);
            }
        }
    }
    Ok((file, options.join(" ")))
}

/// The commands of the entry that GRUB would start, or a line's number and what is wrong with it.
fn entry(text: &str) -> Result<Vec<Command>, (usize, String)> {
    // What is outside of entries comes before each of them.
    let mut common: Vec<Command> = Vec::new();
    let mut entries: Vec<Vec<Command>> = Vec::new();
    let mut inside = false;
    let mut default = 0;
    for (n, line) in (1..).zip(text.lines()) {
        for mut words in commands(line).map_err(|why| (n, why))? {
            if words[0] == "menuentry" {
                entries.push(Vec::new());
                inside = true;
                continue;
            }
            if words[0] == "}" && inside {
                inside = false;
                continue;
            }
            if words[0] == "set" && words.len() > 1 {
                words.remove(0);
            }
            if let Some(("default", value)) = assignment(&words[0]) {
                default = value.parse().map_err(|_| (n, format!("default={value:?} is no number")))?;
                continue;
            }
            match entries.last_mut().filter(|_| inside) {
                Some(entry) => entry.push((n, words)),
                None => common.push((n, words)),
            }
        }
    }
    if !entries.is_empty() {
        let count = entries.len();
        if default >= count {
            let last = text.lines().count();
            return Err((last, format!("there is no entry {default}: there are {count}, from 0")));
        }
        common.append(&mut entries[default]);
    }
    Ok(common)
}

/// What is assigned to what, if a word does that.
fn assignment(word: &str) -> Option<(&str, &str)> {
    let (variable, value) = word.split_once('=')?;
    let named = !variable.is_empty() && variable.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.'));
    named.then_some((variable, value))
}

/// The commands of a line, as words without their quotes.
fn commands(line: &str) -> Result<Vec<Vec<String>>, String> {
    let mut all: Vec<Vec<String>> = Vec::new();
    let mut words: Vec<String> = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '\'' | '"' => {
                let text = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some(end) if end == c => break,
                        Some('\\') if c == '"' => text.extend(chars.next()),
                        Some(inner) => text.push(inner),
                        None => return Err("a quote is not closed".to_owned()),
                    }
                }
            }
            '\\' => word.get_or_insert_default().extend(chars.next()),
            '#' if word.is_none() => break,
            c if c.is_whitespace() => words.extend(word.take()),
            ';' | '{' => {
                words.extend(word.take());
                all.extend(Some(std::mem::take(&mut words)).filter(|words| !words.is_empty()));
            }
            '}' if word.is_none() => {
                all.extend(Some(std::mem::take(&mut words)).filter(|words| !words.is_empty()));
                all.push(vec!["}".to_owned()]);
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    all.extend(Some(words).filter(|words| !words.is_empty()));
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a configuration of the host's leaves, or what is wrong, with the line.
    fn left(text: &str) -> Result<Vec<String>, String> {
        let mut loader = Loader { root: HOST.to_owned(), ..Loader::default() };
        let done = loader.run(text, "f").and_then(|()| loader.kernel("f"));
        done.map_err(|e| format!("{e:#}"))
    }

    #[test]
    fn the_default_entry_is_what_starts() {
        let text = "timeout=0\nset default=1\nmenuentry 'a' {\n root=hd0,1\n linux /a\n}\n\
                    menuentry \"b b\" { linux (host)/boot/vmlinuz root=/dev/vda1 'x=1 2%'; initrd /i # the disk\n}\n";
        assert_eq!(
            left(text).unwrap(),
            ["boot.kernel=/boot/vmlinuz", "boot.args=root=/dev/vda1 x=1 2%%", "boot.initrd=/i"]
        );
    }

    #[test]
    fn commands_alone_are_an_entry() {
        assert_eq!(left("linux16 /k quiet\nboot\n").unwrap(), ["boot.kernel=/k", "boot.args=quiet"]);
    }

    #[test]
    fn the_systems_have_commands_of_their_own() {
        for (command, args) in [
            ("kopenbsd -h com0 -r sd0d /bsd", Some("-h com0 -r sd0d")),
            ("knetbsd -h -r dk0 /bsd", Some("-h -r dk0")),
            ("knetbsd /bsd", None),
            (
                "set kFreeBSD.vfs.root.mountfrom=ufs:/dev/ada0p2\nkfreebsd /bsd",
                Some("vfs.root.mountfrom=ufs:/dev/ada0p2"),
            ),
            ("kfreebsd /bsd", None),
            ("multiboot /bsd", None),
        ] {
            let expected = [Some("boot.kernel=/bsd".to_owned()), args.map(|args| format!("boot.args={args}"))];
            assert_eq!(left(command).unwrap(), expected.into_iter().flatten().collect::<Vec<_>>(), "{command}");
        }
    }

    #[test]
    fn what_is_not_there_is_refused_by_its_line() {
        for (text, why) in [
            ("set x=1\nkopenbsd -h com0\n", "f:2: kopenbsd what?"),
            ("linux (hd0,1)/vmlinuz\n", "f:1: hd0 is not in the device map"),
            ("root=hd0,1\nlinux /vmlinuz\n", "f:2: hd0 is not in the device map"),
            ("\n\nchainloader +1\n", "f:3: the command \"chainloader\" is not in this version"),
            ("\nif true; then\n", "f:2: the command \"if\" is not in this version"),
            ("linux /a 'b\n", "f:1: a quote is not closed"),
            ("linux\n", "f:1: linux what?"),
            ("linux vmlinuz\n", "f:1: vmlinuz: expected a whole path"),
            ("linux (hd0/vmlinuz\n", "f:1: (hd0/vmlinuz: expected (DEVICE,PARTITION)/PATH"),
            ("search --set=root --file /x\n", "f:1: --file /x: no device of the map has it"),
            ("search --set=root\n", "f:1: --file what?"),
            ("linux /a\ninitrd /b\ninitrd /c\n", "f:3: one initrd is all there can be"),
            (
                "kfreebsd_module /x type=mfs_root\n",
                "f:1: kfreebsd_module is not in this version: boot the guest's disk instead",
            ),
            ("set timeout=1\n", "f: nothing loads a kernel"),
            ("set default=3\nmenuentry a {\nlinux /a\n}\n", "f:4: there is no entry 3: there are 1, from 0"),
        ] {
            assert_eq!(left(text), Err(why.to_owned()), "{text:?}");
        }
    }

    #[test]
    fn a_configuration_that_leads_to_itself_ends() {
        let path = std::env::temp_dir().join(format!("grub-bhyve-{}.cfg", std::process::id()));
        let text = format!("configfile {}\n", path.display());
        std::fs::write(&path, &text).unwrap();
        let error = left(&text).unwrap_err();
        std::fs::remove_file(&path).unwrap();
        assert!(error.contains("lead to one another"), "{error}");
    }

    #[test]
    fn the_command_lines_of_tools_are_understood() {
        let asked = |args: &[&str]| parse(&args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>()).unwrap();
        let libvirt = asked(&[
            "--root",
            "hd0,msdos1",
            "--device-map",
            "/m",
            "--memory",
            "214",
            "--cons-dev",
            "/dev/nmdm0A",
            "bhyve",
        ]);
        assert_eq!((libvirt.name.as_str(), libvirt.root.as_deref()), ("bhyve", Some("hd0,msdos1")));
        let vm = asked(&["-c", "/dev/nmdm-a.1A", "-S", "-m", "/m", "-M512M", "-r", "host", "-d", "/d", "a"]);
        assert_eq!((vm.directory.as_deref(), vm.map.as_deref()), (Some("/d"), Some("/m")));
        assert!(asked(&["--help"]).text.unwrap().contains("--cons-dev"));
    }
}
