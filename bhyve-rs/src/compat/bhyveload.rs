//! bhyveload(8): what comes before bhyve(8) where no boot ROM is.
//!
//! FreeBSD's loads the guest's loader into the machine's memory and runs it there. Ours leaves word that the built-in
//! BIOS is to start the guest from the disk, as it would on a PC; bhyve(8), started next with the same name, does so.

use std::path::Path;

use anyhow::{Context, Result, bail};
use cfg::bhyve::EX_USAGE;

use super::node::{self, Loaded, Nodes};

pub const USAGE: &str = "\
usage: bhyveload [-S] [-c console] [-d disk] [-e name=value] [-h path] [-l loader] [-m size] name
";
/// Most disks that it takes.
const DISKS: usize = 32;

/// What a command line asks for.
#[derive(Debug, Default, PartialEq)]
struct Asked {
    name: String,
    disks: Vec<String>,
    environment: Vec<String>,
}

/// Does what the command line says, and returns the exit status: 0 loaded, 1 failed, 64 a bad argument.
pub fn main(args: &[String], dir: &Path) -> u8 {
    match parse(args) {
        Ok(asked) => match load(&asked, dir) {
            Ok(()) => 0,
            Err(e) => {
                eprintln!("bhyveload: {e:#}");
                1
            }
        },
        Err(why) => {
            eprint!("bhyveload: {why:#}\n{USAGE}");
            EX_USAGE
        }
    }
}

fn parse(args: &[String]) -> Result<Asked> {
    let mut asked = Asked::default();
    let mut rest = args.iter();
    let mut loaders = 0;
    while let Some(arg) = rest.next() {
        let Some(flags) = arg.strip_prefix('-').filter(|flags| !flags.is_empty()) else {
            if let Some(more) = rest.next() {
                bail!("{more:?} follows the name");
            }
            asked.name.clone_from(arg);
            break;
        };
        let mut flags = flags.chars();
        while let Some(flag) = flags.next() {
            if matches!(flag, 'C' | 'S') {
                continue;
            }
            let value = Some(flags.as_str().to_owned()).filter(|glued| !glued.is_empty());
            let value = value.or_else(|| rest.next().cloned());
            let value = value.with_context(|| format!("option requires an argument -- {flag}"))?;
            match flag {
                // It says where the loader's console is, and ours is COM1 as the guest's.
                'c' => {}
                'd' if asked.disks.len() < DISKS => asked.disks.push(value),
                'd' => bail!("more than {DISKS} disks"),
                'e' if value.contains('=') => asked.environment.push(value),
                'e' => bail!("-e {value:?}: expected name=value"),
                'h' => bail!("-h {value:?}: the built-in BIOS starts a guest from its disk, not from a directory"),
                'l' if loaders > 0 => bail!("-l can only be given once"),
                'l' => loaders += 1,
                'm' if cfg_size(&value) => {}
                'm' => bail!("-m {value:?}: invalid memory size"),
                _ => bail!("illegal option -- {}", flag.escape_debug()),
            }
            break;
        }
    }
    if asked.name.is_empty() {
        bail!("which machine?");
    }
    Ok(asked)
}

/// Whether a text is a size as `-m` takes it.
fn cfg_size(text: &str) -> bool {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit()) && text.len() - digits.len() <= 2
}

fn load(asked: &Asked, dir: &Path) -> Result<()> {
    node::valid(&asked.name)?;
    for disk in &asked.disks {
        std::fs::File::open(disk).with_context(|| disk.clone())?;
    }
    // bhyve(8) names the disks itself, in the order of its slots: the BIOS starts the first that boots.
    let loaded = Loaded { by: "bhyveload".to_owned(), settings: Vec::new() };
    Nodes::of(dir).leave(&asked.name, &loaded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(args: &[&str]) -> Result<Asked> {
        parse(&args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn the_command_lines_of_tools_are_understood() {
        let vm = asked(&[
            "-c",
            "/dev/nmdm-a.1A",
            "-S",
            "-m",
            "512M",
            "-e",
            "smbios.system.uuid=1",
            "-e",
            "autoboot_delay=3",
            "-d",
            "/a.img",
            "a",
        ]);
        assert_eq!(vm.unwrap().disks, ["/a.img"]);
        let libvirt = asked(&["-m", "214", "-d", "/tmp/freebsd.img", "bhyve"]).unwrap();
        assert_eq!((libvirt.name.as_str(), libvirt.environment.len()), ("bhyve", 0));
        assert_eq!(asked(&["-cstdio", "-m1073741824", "-d/x", "y"]).unwrap().name, "y");
    }

    #[test]
    fn bad_ones_are_refused() {
        for args in [
            &["-m", "x", "a"][..],
            &["-m"],
            &[],
            &["-e", "x", "a"],
            &["-Z", "a"],
            &["a", "b"],
            &["-l", "x", "-l", "y", "a"],
            &["-h", "/", "a"],
        ] {
            assert!(asked(args).is_err(), "{args:?}");
        }
    }
}
