//! grub-bhyve: loads a kernel, or a disk's own loader, into a machine for bhyve(8).
//!
//! With a configuration of the host's (`-r host -d DIR`) its commands are read here: the kernel that they load is started
//! without firmware. With a disk or a disc for root there is none to read, and the built-in BIOS starts what boots there,
//! which as a rule is GRUB again.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};

use super::node::{self, Loaded, Nodes};

const FAILED: u8 = 1;

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
    if let Some(map) = &asked.map {
        check_map(Path::new(map))?;
    }
    let root = asked.root.as_deref().unwrap_or("host");
    let settings = if root == "host" {
        let directory = Path::new(asked.directory.as_deref().unwrap_or("."));
        let file = directory.join(asked.config.as_deref().unwrap_or("grub.cfg"));
        let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        entry(&text).map_err(|(line, why)| anyhow!("{}:{line}: {why}", file.display()))?
    } else {
        let first = match root.trim_start_matches('(') {
            cd if cd.starts_with("cd") => "cd,disk,floppy,net",
            hd if hd.starts_with("hd") => "disk,cd,floppy,net",
            _ => bail!("root {root:?}: expected host, hdN or cdN"),
        };
        vec![format!("boot.order={first}")]
    };
    let loaded = Loaded { by: "grub-bhyve".to_owned(), settings };
    Nodes::of(dir).leave(&asked.name, &loaded)
}

/// Lines are `(hd0) path`. bhyve(8) names the disks again, so that only what is no map is refused.
fn check_map(map: &Path) -> Result<()> {
    let text = std::fs::read_to_string(map).with_context(|| map.display().to_string())?;
    for (n, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let (device, path) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let device = device.strip_prefix('(').and_then(|device| device.strip_suffix(')'));
        let known = device.is_some_and(|device| device.starts_with("hd") || device.starts_with("cd"));
        if !known || path.trim().is_empty() {
            bail!("{}:{n}: expected (hdN) path or (cdN) path", map.display());
        }
    }
    Ok(())
}

/// What the entry that GRUB would start sets, or a line's number and what is wrong with it.
fn entry(text: &str) -> Result<Vec<String>, (usize, String)> {
    // What is outside of entries comes before each of them.
    let mut common: Vec<(usize, Vec<String>)> = Vec::new();
    let mut entries: Vec<Vec<(usize, Vec<String>)>> = Vec::new();
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
            if let Some((variable, value)) = assignment(&words[0]) {
                if variable == "default" {
                    default = value.parse().map_err(|_| (n, format!("default={value:?} is no number")))?;
                }
                continue;
            }
            if let Some(plain) = words[0].strip_suffix("16").map(str::to_owned) {
                words[0] = plain;
            }
            match entries.last_mut().filter(|_| inside) {
                Some(entry) => entry.push((n, words)),
                None => common.push((n, words)),
            }
        }
    }
    let chosen = if entries.is_empty() {
        Vec::new()
    } else {
        let count = entries.len();
        let last = text.lines().count();
        if default >= count {
            return Err((last, format!("there is no entry {default}: there are {count}, from 0")));
        }
        entries.swap_remove(default)
    };
    let mut settings: Vec<String> = Vec::new();
    for (n, words) in common.into_iter().chain(chosen) {
        let operands = || words.get(1).map(String::as_str).ok_or_else(|| (n, format!("{} what?", words[0])));
        match words[0].as_str() {
            "linux" | "multiboot" | "kernel" => {
                settings.retain(|setting| !setting.starts_with("boot."));
                settings.push(format!("boot.kernel={}", host_file(operands()?).map_err(|why| (n, why))?.display()));
                let args = words[2..].join(" ");
                if !args.is_empty() {
                    settings.push(format!("boot.args={}", args.replace('%', "%%")));
                }
            }
            "initrd" => {
                settings.push(format!("boot.initrd={}", host_file(operands()?).map_err(|why| (n, why))?.display()));
            }
            "kfreebsd" | "kopenbsd" | "knetbsd" | "knetbsd_module_elf" | "multiboot2" | "module" | "module2" => {
                return Err((n, format!("{} is not in this version: boot the guest's disk instead", words[0])));
            }
            "set" | "insmod" | "terminal_input" | "terminal_output" | "serial" | "echo" | "boot" | "export" => {}
            other => return Err((n, format!("the command {other:?} is not in this version"))),
        }
    }
    match settings.iter().any(|setting| setting.starts_with("boot.kernel=")) {
        true => Ok(settings),
        false => Err((text.lines().count(), "nothing loads a kernel".to_owned())),
    }
}

/// What is assigned to what, if a word does that.
fn assignment(word: &str) -> Option<(&str, &str)> {
    let (variable, value) = word.split_once('=')?;
    let named = !variable.is_empty() && variable.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    named.then_some((variable, value))
}

/// A file of the host's.
fn host_file(path: &str) -> Result<PathBuf, String> {
    let path = path.strip_prefix("(host)").unwrap_or(path);
    if path.starts_with('(') {
        return Err(format!("{path}: files inside of images are not read in this version"));
    }
    let path = Path::new(path);
    path.is_absolute().then(|| path.to_owned()).ok_or_else(|| format!("{}: expected a whole path", path.display()))
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

    #[test]
    fn the_default_entry_is_what_starts() {
        let text = "timeout=0\nset default=1\nmenuentry 'a' {\n root=hd0,1\n linux /a\n}\n\
                    menuentry \"b b\" { linux (host)/boot/vmlinuz root=/dev/vda1 'x=1 2'; initrd /i # the disk\n}\n";
        assert_eq!(
            entry(text).unwrap(),
            ["boot.kernel=/boot/vmlinuz", "boot.args=root=/dev/vda1 x=1 2", "boot.initrd=/i"]
        );
    }

    #[test]
    fn commands_alone_are_an_entry() {
        assert_eq!(entry("linux16 /k quiet\nboot\n").unwrap(), ["boot.kernel=/k", "boot.args=quiet"]);
    }

    #[test]
    fn what_is_not_there_is_refused_by_its_line() {
        for (text, line) in [
            ("set x=1\nkopenbsd -h com0 /bsd\n", 2),
            ("linux (hd0,1)/vmlinuz\n", 1),
            ("\n\nchainloader +1\n", 3),
            ("linux /a 'b\n", 1),
            ("linux\n", 1),
            ("set timeout=1\n", 1),
            ("set default=3\nmenuentry a {\nlinux /a\n}\n", 4),
        ] {
            assert_eq!(entry(text).map_err(|(line, _)| line), Err(line), "{text:?}");
        }
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
