//! bhyve(8).
//!
//! The process stays in the foreground, is called `bhyve: NAME` once its devices are up, ends with the status that says
//! how the guest ended, and leaves the machine's node behind. SIGTERM presses the power button.

use std::path::Path;

use anyhow::{Result, anyhow};
use cfg::bhyve::{Asked, BAD_USAGE, Config, DEVICES, FAILED, LPC_DEVICES, Refusal, parse};
use cfg::{Errors, Origin};
use devices::MODELS;

use super::node::{self, Nodes};
use super::translate::{extra_devices, to_machine, without_effect};
use crate::backend::Backends;
use crate::vm::Ended;
use crate::{RunOptions, config, plan};

/// libvirt looks here for `-u:`, `-n:`, `-A:`, and for `-c vcpus`, which bhyves without a topology said.
pub const USAGE: &str = "\
usage: bhyve [-AaCDeHhIMPSuWwxY] [-c [[cpus=]n][,sockets=n][,cores=n][,threads=n]]
             [-f name,string|file=value] [-G [w][addr:]port] [-K layout] [-k file]
             [-l lpcdev] [-m size] [-n id=n,size=size,cpus=set] [-o key=value]
             [-p vcpu:hostcpu] [-s slot,device[,options]] [-U uuid] name
       -A: make ACPI tables (always made)
       -a: local APICs in xAPIC mode (deprecated)
       -C: guest memory is part of core files
       -c: number of processors, or their topology
       -D: destroy the machine when the guest powers off
       -e: exit on access to a port that nothing answers
       -f: add an item to fw_cfg
       -G: debug server
       -H: leave the processor to the host on HLT
       -h: this help
       -I: no effect
       -K: layout of the keyboard
       -k: read keys from a file, one key=value a line
       -l: device of the LPC bridge: bootrom,FILE[,VARS], com1,stdio ...; -l help lists them
           -l bootrom,bios is the built-in BIOS
       -M: monitor mode
       -m: memory, in MB or with K, M, G or T
       -n: NUMA domain
       -o: set a key
       -P: leave the processor to the host on PAUSE
       -p: keep a processor on one of the host's
       -S: keep guest memory from being swapped out
       -s: PCI device; -s help lists them
       -U: UUID
       -u: the RTC keeps UTC
       -W: virtio devices use MSI instead of MSI-X
       -w: unknown MSRs are ignored
       -x: local APICs in x2APIC mode
       -Y: make no MP table
";

/// Does what the command line says, and returns the exit status.
pub fn main(args: &[String], dir: &Path, backends: &Backends) -> u8 {
    match parse(args, &extra_devices()) {
        Ok(Asked::Usage) => {
            eprint!("{USAGE}");
            0
        }
        Ok(Asked::Devices) => {
            devices().iter().for_each(|name| println!("{name}"));
            0
        }
        Ok(Asked::LpcDevices) => {
            LPC_DEVICES.iter().for_each(|name| println!("{name}"));
            0
        }
        Ok(Asked::Run(config)) => run(&config, dir, backends),
        Err(Refusal { status, message, usage }) => {
            if !message.is_empty() {
                eprintln!("{message}");
            }
            if usage {
                eprint!("{USAGE}");
            }
            status
        }
    }
}

/// The devices of this version: bhyve's, then ours.
fn devices() -> Vec<&'static str> {
    let here = |name: &str| matches!(name, "hostbridge" | "lpc") || MODELS.iter().any(|model| model.name == name);
    let bhyves = DEVICES.iter().filter(|device| here(device.device)).map(|device| device.name);
    bhyves.chain(extra_devices().iter().map(|device| device.name)).collect()
}

fn run(config: &Config, dir: &Path, backends: &Backends) -> u8 {
    match config.bool("config.dump", false) {
        Ok(false) => {}
        Ok(true) => {
            print!("{}", config.dump(true));
            return BAD_USAGE;
        }
        Err(e) => {
            eprintln!("bhyve: {e}");
            return FAILED;
        }
    }
    match machine(config, dir, backends) {
        Ok(ended) => ended as u8,
        Err(e) => {
            host::restore_terminal();
            match e.downcast_ref::<Errors>() {
                Some(Errors(errors)) => errors.iter().for_each(|e| eprintln!("bhyve: {e}")),
                None => eprintln!("bhyve: {e:#}"),
            }
            FAILED
        }
    }
}

/// Runs the machine to its end.
fn machine(config: &Config, dir: &Path, backends: &Backends) -> Result<Ended> {
    let name = config.text("name").map_err(|e| anyhow!(e))?.unwrap_or_default();
    node::valid(&name)?;
    let nodes = Nodes::of(dir);
    let mut draft = to_machine(config)?;
    for missing in config.missing() {
        eprintln!("bhyve: %({missing}) refers to a key that is not set: it is empty");
    }
    if ["bootrom", "lpc.bootrom"].iter().all(|key| config.value(key).is_none()) {
        let Some(loaded) = nodes.take(&name) else {
            anyhow::bail!("virtual machine cannot be booted: no bootrom was configured, and no loader was there");
        };
        let origin = Origin::named(format!("what {} left", loaded.by));
        loaded.settings.iter().for_each(|setting| draft.set(setting, &origin));
    }
    let node = config::check(&draft)?;
    without_effect(draft.tree()).iter().for_each(|line| eprintln!("bhyve: {line}"));
    let mut spec = config::spec(&node, config::start(&node)?, false)?;
    spec.keep = true;
    let plan = plan::open(&node)?;
    nodes.create(&name)?;
    let mut options = RunOptions { title: Some(format!("bhyve: {name}")), ..RunOptions::default() };
    if config.bool("destroy_on_poweroff", false).map_err(|e| anyhow!(e))? {
        options.leaves = nodes.files(&name);
    }
    Ok(crate::start(&spec, &node, plan, &options, Some(dir), backends)?.unwrap_or(Ended::Error))
}
