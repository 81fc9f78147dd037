//! `bhyve-rs new`: a first configuration file, with comments, and its disk.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use cfg::Problem;
use clap::Args;
use host::disk::{Format, tools};

use crate::tell::say;
use crate::{SUCCESS, config, image};

/// Make the configuration file of a new machine, and its disk.
#[derive(Args)]
pub struct New {
    /// Its name.
    name: String,
    /// The system that it is for, for what that needs.
    #[arg(long, value_name = "SYSTEM", default_value = "other", value_parser = system)]
    guest: &'static System,
    /// Image of a CD or DVD to install from.
    #[arg(long, value_name = "FILE")]
    iso: Option<PathBuf>,
    /// Size of its disk.
    #[arg(long, value_name = "SIZE", default_value = "8G")]
    disk: String,
    /// Image of its disk, a new file [default: NAME.img beside the configuration file].
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Memory [default: what the system needs].
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    /// Processors.
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u32,
    /// Directory for the configuration file, NAME.toml.
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
}

/// A guest system.
#[derive(Debug)]
struct System {
    name: &'static str,
    title: &'static str,
    memory: &'static str,
    /// The disk's controller; none for the profile's.
    disk: Option<&'static str>,
    /// What its user should know.
    hint: &'static str,
}

const SYSTEMS: [System; 7] = [
    System {
        name: "openbsd",
        title: "OpenBSD",
        memory: "512M",
        disk: None,
        hint: "At the boot> prompt, \"set tty com0\" goes on at the serial port.",
    },
    System {
        name: "freebsd",
        title: "FreeBSD",
        memory: "1G",
        disk: Some("ahci"),
        hint: "In loader.conf, console=\"comconsole\" goes on at the serial port.",
    },
    System {
        name: "netbsd",
        title: "NetBSD",
        memory: "512M",
        disk: Some("ahci"),
        hint: "At the boot menu's prompt, \"consdev com0\" goes on at the serial port.",
    },
    System {
        name: "dragonfly",
        title: "DragonFly BSD",
        memory: "2G",
        // Its installer does not partition virtio disks.
        disk: Some("ahci"),
        hint: "In loader.conf, console=\"comconsole\" goes on at the serial port.",
    },
    System {
        name: "linux",
        title: "Linux",
        memory: "1G",
        disk: Some("virtio-blk"),
        hint: "console=ttyS0 on the kernel's command line goes on at the serial port.",
    },
    System {
        name: "dos",
        title: "DOS",
        memory: "32M",
        disk: None,
        hint: "It idles only with a driver that halts the processor (DOSIDLE, FDAPM).",
    },
    System { name: "other", title: "Another system", memory: "256M", disk: None, hint: "" },
];

fn system(name: &str) -> Result<&'static System, String> {
    let names = || SYSTEMS.iter().map(|system| system.name);
    SYSTEMS.iter().find(|system| system.name == name).ok_or_else(|| {
        let near = cfg::nearest(name, names()).map_or(String::new(), |near| format!("; did you mean {near}?"));
        format!("there are {}{near}", names().collect::<Vec<_>>().join(", "))
    })
}

fn quoted(path: &Path) -> Result<String> {
    let text = path.to_str().with_context(|| format!("{} is no UTF-8", path.display()))?;
    Ok(toml::Value::from(text.replace('%', "%%")).to_string())
}

impl New {
    /// Does it and returns the exit status.
    ///
    /// # Errors
    /// One line for the user.
    pub fn run(&self) -> Result<u8> {
        // What is no name, no size or no number of processors is said by the schema.
        let mut settings = vec![format!("name={}", self.name), format!("cpus={}", self.cpus)];
        settings.extend(self.memory.iter().map(|memory| format!("memory={memory}")));
        config::from_settings(&settings)?;
        let bytes = image::size(&self.disk).context("--disk")?;
        let iso = self.iso.as_ref().map(|iso| readable(iso)).transpose()?;
        let dir = std::path::absolute(&self.dir).with_context(|| self.dir.display().to_string())?;
        if !dir.is_dir() {
            bail!("{}: there is no such directory", self.dir.display());
        }
        let file = dir.join(format!("{}.toml", self.name));
        let disk = match &self.image {
            Some(image) => std::path::absolute(image).with_context(|| image.display().to_string())?,
            None => dir.join(format!("{}.img", self.name)),
        };
        if disk.symlink_metadata().is_ok() {
            bail!("{}: it exists, and is not replaced", disk.display());
        }
        let text = self.text(&dir, &disk, iso.as_deref())?;
        let mut out = OpenOptions::new().write(true).create_new(true).open(&file).map_err(|e| match e.kind() {
            ErrorKind::AlreadyExists => anyhow::anyhow!("{}: it exists, and is not replaced", file.display()),
            _ => anyhow::Error::new(e).context(file.display().to_string()),
        })?;
        let made = out
            .write_all(text.as_bytes())
            .with_context(|| file.display().to_string())
            .and_then(|()| tools::create(&disk, Format::Raw, Some(bytes), None))
            .and_then(|()| Ok(config::read(&file, &[]).map(|_| ())?));
        if let Err(e) = made {
            let _ = std::fs::remove_file(&file);
            return Err(e);
        }
        let shown = file.display();
        say(&format!("{shown} and {} are made. Next:", disk.display()));
        say(&format!("  bhyve-rs -c {shown}         its screen and keyboard on this terminal; ~. ends it"));
        say(&format!("  bhyve-rs start -c {shown}   in the background"));
        Ok(SUCCESS)
    }

    fn text(&self, dir: &Path, disk: &Path, iso: Option<&Path>) -> Result<String> {
        let System { title, hint, .. } = self.guest;
        let memory = self.memory.as_deref().unwrap_or(self.guest.memory);
        let memory =
            if memory.bytes().all(|b| b.is_ascii_digit()) { memory.to_owned() } else { format!("\"{memory}\"") };
        let beside = if disk.parent() == Some(dir) { disk.file_name().map_or(disk, Path::new) } else { disk };
        let mut out = format!(
            "# {title}. bhyve-rs.toml(5) has all keys; `bhyve-rs check` tells what is wrong with a file.\n\
             name = \"{}\"\nmemory = {memory}\ncpus = {}\n\n\
             [boot]\n\
             # A disk that nothing is installed on yet is passed over.\n\
             order = [\"disk\", \"cd\"]\n\n\
             [[disk]]\npath = {}\n",
            self.name,
            self.cpus,
            quoted(beside)?
        );
        if let Some(model) = self.guest.disk {
            let _ = writeln!(out, "model = \"{model}\"");
        }
        out += "\n# Without a path the tray is empty: `bhyve-rs insert` and `eject` change what is in it.\n[[cd]]\n";
        if let Some(iso) = iso {
            let _ = writeln!(out, "path = {}", quoted(iso)?);
        }
        out += "\n# The text screen and the keyboard, where the machine is started by hand.\n\
                [screen]\nbackend = \"terminal\"\n\n";
        if !hint.is_empty() {
            let _ = writeln!(out, "# {hint}");
        }
        let _ = write!(
            out,
            "# `bhyve-rs console {}` is its other end.\n[[serial]]\nbackend = \"console\"\n\n\
             # With the host: see bhyve-rs-autostart(8).\n[autostart]\nenabled = false\n",
            self.name
        );
        Ok(out)
    }
}

/// The absolute path of a file that can be read.
fn readable(path: &Path) -> Result<PathBuf> {
    let wrong = |why: String| Problem::new(format!("--iso: {}: {why}", path.display())).message;
    let whole = path.canonicalize().map_err(|e| anyhow::anyhow!(wrong(e.to_string())))?;
    if whole.is_dir() {
        bail!(wrong("it is a directory".to_owned()));
    }
    std::fs::File::open(&whole).map_err(|e| anyhow::anyhow!(wrong(e.to_string())))?;
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_passes_the_check_for_every_system() {
        let dir = std::env::temp_dir().join(format!("bhyve-rs-new-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let iso = dir.join("100% \"free\".iso");
        std::fs::write(&iso, "x").unwrap();
        for system in &SYSTEMS {
            let new = New {
                name: system.name.to_owned(),
                guest: system,
                iso: Some(iso.clone()),
                disk: "1M".to_owned(),
                image: None,
                memory: None,
                cpus: 2,
                dir: dir.clone(),
            };
            assert_eq!(new.run().unwrap(), SUCCESS, "{}", system.name);
            let node = config::read(&dir.join(format!("{}.toml", system.name)), &[]).unwrap();
            assert_eq!(node.children("cd")[0].path("path"), iso.canonicalize().unwrap());
            let again = new.run().unwrap_err().to_string();
            assert!(again.ends_with("it exists, and is not replaced"), "{again}");
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_system_that_nobody_knows_is_refused_with_those_that_there_are() {
        let said = system("openbds").unwrap_err();
        assert!(said.contains("freebsd") && said.ends_with("did you mean openbsd?"), "{said}");
    }
}
