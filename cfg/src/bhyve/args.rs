//! bhyve(8)'s flags.

use std::path::Path;

use super::slot::{self, Device};
use super::{BAD_USAGE, Config, EX_USAGE, FAILED, Refusal, number};
use crate::error::quoted;
use crate::tree::Origin;

/// What a command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// To run this.
    Run(Config),
    /// The usage.
    Usage,
    /// The names of the devices for `-s`.
    Devices,
    /// The names of the devices for `-l`.
    LpcDevices,
}

/// What `-l help` lists.
pub const LPC_DEVICES: [&str; 7] = ["bootrom", "com1", "com2", "com3", "com4", "tpm", "pc-testdev"];
/// Whether `-r` is there. It belongs to snapshots of vmm(4), and tools take them for granted where they see it.
pub const SNAPSHOTS: bool = false;

/// Flags that take an argument.
const WITH_ARGUMENT: &str = "kfopGgcsmnlKU";
/// Flags that set one key, or none any more.
const SWITCHES: [(char, Option<(&str, &str)>); 16] = [
    ('A', Some(("acpi_tables", "true"))),
    ('a', Some(("x86.x2apic", "false"))),
    ('C', Some(("memory.guest_in_core", "true"))),
    ('D', Some(("destroy_on_poweroff", "true"))),
    ('e', Some(("x86.strictio", "true"))),
    ('H', Some(("x86.vmexit_on_hlt", "true"))),
    ('I', None),
    ('M', Some(("monitor", "true"))),
    ('P', Some(("x86.vmexit_on_pause", "true"))),
    ('S', Some(("memory.wired", "true"))),
    ('u', Some(("rtc.use_localtime", "false"))),
    ('W', Some(("virtio_msix", "false"))),
    ('w', Some(("x86.strictmsr", "false"))),
    ('x', Some(("x86.x2apic", "true"))),
    ('Y', Some(("x86.mptable", "false"))),
    ('h', None),
];

/// The switches that set a key, and to what.
pub(super) fn switches() -> impl Iterator<Item = (char, &'static str, &'static str)> {
    SWITCHES.into_iter().filter_map(|(flag, sets)| sets.map(|(key, value)| (flag, key, value)))
}

/// Reads a command line, the name of the program not included. `extra` are devices beside bhyve's own.
///
/// # Errors
/// What bhyve(8) would end with.
pub fn parse(args: &[String], extra: &[Device]) -> Result<Asked, Refusal> {
    let mut config = Config::new();
    let mut rest = args.iter();
    let mut names: Vec<&String> = Vec::new();
    while let Some(arg) = rest.next() {
        if arg == "--" {
            names.extend(rest.by_ref());
            break;
        }
        // The first that is no flag ends the flags, as with getopt(3).
        let Some(flags) = arg.strip_prefix('-').filter(|flags| !flags.is_empty()) else {
            names.push(arg);
            names.extend(rest.by_ref());
            break;
        };
        let mut flags = flags.chars();
        while let Some(flag) = flags.next() {
            if WITH_ARGUMENT.contains(flag) {
                let glued = flags.as_str();
                let value = match glued {
                    "" => rest.next().map(String::as_str),
                    glued => Some(glued),
                };
                let missing = || Refusal::usage(format!("bhyve: option requires an argument -- {flag}"));
                let value = value.ok_or_else(missing)?;
                if let Some(asked) = with_argument(&mut config, flag, value, extra)? {
                    return Ok(asked);
                }
                break;
            }
            if flag == 'h' {
                return Ok(Asked::Usage);
            }
            let Some((_, sets)) = SWITCHES.into_iter().find(|(switch, _)| *switch == flag) else {
                return Err(Refusal::usage(format!("bhyve: illegal option -- {}", flag.escape_debug())));
            };
            if let Some((key, value)) = sets {
                config.set(key, value, &Origin::named(format!("-{flag}")))?;
            }
        }
    }
    match names[..] {
        [] => {}
        [name] => config.set("name", name, &Origin::named("the command line"))?,
        _ => return Err(Refusal { status: BAD_USAGE, message: String::new(), usage: true }),
    }
    if config.value("name").is_none() {
        return Err(Refusal { status: BAD_USAGE, message: String::new(), usage: true });
    }
    Ok(Asked::Run(config))
}

/// Whether an argument asks for help: any leading part of the word will do.
fn wants_help(value: &str) -> bool {
    !value.is_empty() && "help".starts_with(value)
}

fn with_argument(config: &mut Config, flag: char, value: &str, extra: &[Device]) -> Result<Option<Asked>, Refusal> {
    let origin = Origin::named(format!("-{flag} {value}"));
    let invalid = |what: &str| Refusal::new(EX_USAGE, format!("invalid {what} '{}'", value.escape_debug()));
    match flag {
        's' | 'l' if wants_help(value) => {
            return Ok(Some(if flag == 's' { Asked::Devices } else { Asked::LpcDevices }));
        }
        's' => slot::set(config, value, extra, &origin)?,
        'l' => lpc(config, value, &origin)?,
        'k' => config.read(Path::new(value))?,
        'm' => config.set("memory.size", value, &origin)?,
        'U' => config.set("uuid", value, &origin)?,
        'K' => config.set("keyboard.layout", value, &origin)?,
        'o' => match value.split_once('=') {
            Some((key, text)) if !text.is_empty() && !key.is_empty() => config.set(key, text, &origin)?,
            _ => return Err(invalid("configuration option")),
        },
        'c' => topology(config, value, &origin)?,
        'p' => pin(config, value, &origin)?,
        'G' => gdb(config, value, &origin)?,
        'n' => domain(config, value, &origin)?,
        'f' => fwcfg(config, value, &origin)?,
        // The debugger port of long ago; scripts of that time turn it off.
        'g' if value == "0" => {}
        _ => return Err(Refusal::new(EX_USAGE, "-g is gone: use -G")),
    }
    Ok(None)
}

fn topology(config: &mut Config, value: &str, origin: &Origin) -> Result<(), Refusal> {
    if value.is_empty() {
        return ["cpus", "sockets", "cores", "threads"].iter().try_for_each(|key| config.set(key, "1", origin));
    }
    for part in value.split(',') {
        match part.split_once('=') {
            None => config.set("cpus", part, origin)?,
            Some((key @ ("cpus" | "sockets" | "cores" | "threads"), n)) => config.set(key, n, origin)?,
            Some(_) => {
                return Err(Refusal::new(EX_USAGE, format!("invalid cpu topology '{}'", value.escape_debug())));
            }
        }
    }
    Ok(())
}

/// Host processors that there can be.
const HOST_CPUS: i64 = 1024;

fn pin(config: &mut Config, value: &str, origin: &Origin) -> Result<(), Refusal> {
    let invalid = || Refusal::new(EX_USAGE, format!("invalid vcpu pinning configuration '{}'", value.escape_debug()));
    let (vcpu, host) = value.split_once(':').ok_or_else(invalid)?;
    let vcpu = number(vcpu).filter(|n| (0..=65535).contains(n)).ok_or_else(invalid)?;
    let host = number(host).filter(|n| (0..HOST_CPUS).contains(n)).ok_or_else(invalid)?;
    let key = format!("vcpu.{vcpu}.cpuset");
    let before = config.value(&key).map_or(String::new(), |value| format!("{},", value.text));
    config.set(&key, &format!("{before}{host}"), origin)
}

fn gdb(config: &mut Config, value: &str, origin: &Origin) -> Result<(), Refusal> {
    let (wait, place) = value.strip_prefix('w').map_or((false, value), |place| (true, place));
    let (address, port) = place.rsplit_once(':').map_or((None, place), |(address, port)| (Some(address), port));
    if number(port).is_none_or(|n| !(0..=65535).contains(&n)) {
        return Err(Refusal::new(FAILED, format!("invalid GDB port '{}'", value.escape_debug())));
    }
    if wait {
        config.set("gdb.wait", "true", origin)?;
    }
    if let Some(address) = address.filter(|address| !address.is_empty()) {
        config.set("gdb.address", address, origin)?;
    }
    config.set("gdb.port", port, origin)
}

fn domain(config: &mut Config, value: &str, origin: &Origin) -> Result<(), Refusal> {
    let invalid = || Refusal::new(EX_USAGE, format!("invalid NUMA configuration '{}'", value.escape_debug()));
    let parts: Vec<(&str, &str)> =
        value.split(',').map(|part| part.split_once('=')).collect::<Option<_>>().unwrap_or_default();
    let id = parts.iter().find(|(key, _)| *key == "id").and_then(|(_, id)| number(id)).filter(|id| (0..8).contains(id));
    let id = id.ok_or_else(invalid)?;
    for (key, text) in parts {
        match key {
            "id" => {}
            "size" | "cpus" | "domain_policy" if !text.is_empty() => {
                config.set(&format!("domains.{id}.{key}"), text, origin)?;
            }
            _ => return Err(invalid()),
        }
    }
    Ok(())
}

fn fwcfg(config: &mut Config, value: &str, origin: &Origin) -> Result<(), Refusal> {
    let invalid = || Refusal::new(EX_USAGE, format!("invalid fwcfg item '{}'", value.escape_debug()));
    let (name, what) = value.split_once(',').ok_or_else(invalid)?;
    let name = name.strip_prefix("name=").unwrap_or(name);
    let (kind, text) = what.split_once('=').ok_or_else(invalid)?;
    if name.is_empty() || name.len() > 55 || !matches!(kind, "string" | "file") || text.is_empty() {
        return Err(invalid());
    }
    let n = config.names("fwcfg").len();
    config.set(&format!("fwcfg.{n}.name"), name, origin)?;
    config.set(&format!("fwcfg.{n}.{kind}"), text, origin)
}

fn lpc(config: &mut Config, value: &str, origin: &Origin) -> Result<(), Refusal> {
    let invalid = || Refusal::new(EX_USAGE, format!("invalid lpc device configuration '{}'", value.escape_debug()));
    let (name, rest) = value.split_once(',').map_or((value, None), |(name, rest)| (name, Some(rest)));
    let rest = rest.filter(|rest| !rest.is_empty());
    match name.to_ascii_lowercase().as_str() {
        "bootrom" => {
            // libvirt takes bhyve for one without UEFI if it says that the device is invalid.
            let rest = rest.ok_or_else(|| Refusal::new(FAILED, format!("invalid bootrom option {}", quoted(value))))?;
            let mut words = rest.split(',').peekable();
            config.set("bootrom", words.next().unwrap_or_default(), origin)?;
            if let Some(vars) = words.next_if(|word| !word.contains('=')).filter(|vars| !vars.is_empty()) {
                config.set("bootvars", vars, origin)?;
            }
            for word in words.filter(|word| !word.is_empty()) {
                let (key, text) = word.split_once('=').unwrap_or((word, "true"));
                config.set(&format!("lpc.{key}"), text, origin)?;
            }
            Ok(())
        }
        com @ ("com1" | "com2" | "com3" | "com4") => {
            let path = rest.ok_or_else(invalid)?;
            config.set(&format!("lpc.{com}.path"), path, origin)
        }
        "fwcfg" => match rest {
            Some(kind @ ("bhyve" | "qemu")) => config.set("lpc.fwcfg", kind, origin),
            _ => Err(invalid()),
        },
        "pc-testdev" if rest.is_none() => config.set("lpc.pc-testdev", "true", origin),
        "tpm" => {
            let mut words = rest.ok_or_else(invalid)?.split(',');
            let (kind, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            if kind.is_empty() || path.is_empty() {
                return Err(invalid());
            }
            config.set("tpm.type", kind, origin)?;
            config.set("tpm.path", path, origin)?;
            words.try_for_each(|word| match word.split_once('=') {
                Some((key, text)) if !text.is_empty() => config.set(&format!("tpm.{key}"), text, origin),
                _ => Err(invalid()),
            })
        }
        _ => Err(invalid()),
    }
}
