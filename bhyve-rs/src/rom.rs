//! External firmware: where its image lies, where its variables do, and what it is told of the machine.
//!
//! The image ends at 4 GiB, below it lies the flash with the variables (OVMF_CODE and OVMF_VARS), and the last 128 KiB
//! appear at E0000 too while the chipset does not shadow them. The firmware does all that a BIOS does: it assigns PCI
//! resources and lays tables into memory, which it takes from fw_cfg where the board has that.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, ensure};
use boot::platform::Platform;
use boot::{MemoryMap, loader};
use cfg::Node;
use emu::{Backends, Backing, Bdf, Machine, RamAddr, Rights};
use host::disk::{Format, Image, ImageOptions};
use lpc::{BLOCK, FwCfgItems, Pflash};

use crate::{board, firmware};

/// Firmware to start.
pub struct Firmware {
    /// What it is called in messages.
    name: String,
    code: Vec<u8>,
    vars: Option<PathBuf>,
    /// Where it shall look for a boot loader: words of `boot.order`.
    pub order: Vec<String>,
}

/// Bytes of an image at most: more would reach the local APICs.
const LARGEST: u64 = 16 << 20;
const FOUR_GIB: u64 = 1 << 32;
/// What appears below 1 MiB.
const SHADOW: u64 = 128 << 10;

/// Reads the firmware that a configuration names.
///
/// # Errors
/// When it cannot be read or is none.
pub fn open(node: &Node) -> Result<Firmware> {
    let boot = node.child("boot");
    let path = boot.path("firmware");
    let name = path.display().to_string();
    let code = std::fs::read(path).with_context(|| name.clone())?;
    check(&name, code.len() as u64)?;
    let vars = boot.is_given("vars").then(|| boot.path("vars").to_owned());
    Ok(Firmware { name, code, vars, order: boot.words("order").into_iter().map(str::to_owned).collect() })
}

fn check(name: &str, len: u64) -> Result<()> {
    ensure!(
        len.is_multiple_of(BLOCK) && (1..=LARGEST).contains(&len),
        "{name}: {len} bytes are no firmware image: they are whole 4 KiB blocks, 16 MiB at most"
    );
    Ok(())
}

/// Puts the image and the flash with its variables into the machine.
///
/// # Errors
/// When there is no memory for it, or the file with the variables cannot be had.
pub fn plug(firmware: &Firmware, machine: &Arc<Machine>, board: &board::Kind) -> Result<()> {
    let space = &machine.space;
    let len = firmware.code.len() as u64;
    let block = space.ram().alloc("firmware", len).context("no memory for the firmware")?;
    space.ram().write(block.start, &firmware.code);
    let map = |base: u64, from: u64| {
        let backing = Backing::Ram(RamAddr(block.start.0 + from));
        let id = space.add_memory(base, len - from, 0, Rights::Read, backing);
        space.enable(id, base, true);
    };
    map(FOUR_GIB - len, 0);
    if board.shadows() {
        let from = len.saturating_sub(SHADOW);
        map((1 << 20) - (len - from), from);
    }
    let Some(path) = &firmware.vars else { return Ok(()) };
    let image =
        Image::open(path, ImageOptions { format: Format::Raw, write_through: true, ..ImageOptions::default() })?;
    let contents = std::fs::read(path).with_context(|| path.display().to_string())?;
    check(&path.display().to_string(), contents.len() as u64)?;
    let base = FOUR_GIB - len - contents.len() as u64;
    let backends = Backends { disks: vec![Some(image.attach(space.ram())?)], ..Backends::default() };
    machine
        .plug_with("pflash", None, backends, |slot| Pflash::create(slot, base, &contents))
        .map_err(|e| anyhow!("{}: {e}", firmware.name))?;
    Ok(())
}

/// Adds to fw_cfg what SeaBIOS and OVMF look for there. `boot_order` has the paths of devices as they write them.
///
/// # Errors
/// When a file is there already.
pub fn files(
    items: &mut FwCfgItems,
    machine: &Arc<Machine>,
    platform: &Platform,
    map: &MemoryMap,
    boot_order: &[String],
    board: &board::Kind,
) -> Result<()> {
    let mut add = |name: &str, bytes: Vec<u8>| items.file(name, bytes).map_err(|e| anyhow!(e));
    // Sleeping states S0 to S5: there are S0 and S5.
    add("etc/system-states", vec![0x80, 0, 0, 0, 0, 0x80])?;
    if !boot_order.is_empty() {
        let text: Vec<u8> = boot_order.join("\n").bytes().chain([0]).collect();
        add("bootorder", text)?;
    }
    // Nobody may have a display: the text is on COM1 too.
    if let Some(com1) = platform.serial.first() {
        add("etc/sercon-port", u64::from(com1.port).to_le_bytes().to_vec())?;
    }
    // Our host bridge has one window, below 4 GiB.
    add("opt/ovmf/X-PciMmio64Mb", b"0".to_vec())?;
    let (anchor, structures) = loader::smbios(platform, map);
    add(loader::SMBIOS_ANCHOR, anchor)?;
    add(loader::SMBIOS_TABLES, structures)?;
    let Some(made) = loader::acpi(platform) else { return Ok(()) };
    add(loader::LOADER, made.loader)?;
    add(loader::RSDP, made.rsdp)?;
    if !platform.pci.roots.is_empty() {
        // It looks for no bus that it has not been told of.
        add("etc/extra-pci-roots", (platform.pci.roots.len() as u64).to_le_bytes().to_vec())?;
    }
    // Each firmware puts the power management block elsewhere before it reads the tables, and BARs where it likes.
    let (there, platform, pm) = (Arc::downgrade(machine), platform.clone(), Bdf::new(board.isa_bridge, 3));
    let tables = move || {
        let Some(machine) = there.upgrade() else { return Vec::new() };
        // bhyve's board has no such function, and its block stays.
        let base = machine.pci.function(pm).map_or(0, |pm| pm.read(0x40, 2) as u16 & 0xffc0);
        let mut platform = platform.clone();
        platform.pci.roots = firmware::found_roots(&machine);
        if let Some(pm) = platform.pm.as_mut().filter(|_| base != 0) {
            pm.gpe0 = pm.gpe0.map(|(port, len)| (port.wrapping_sub(pm.base).wrapping_add(base), len));
            pm.base = base;
        }
        loader::acpi(&platform).map_or(Vec::new(), |made| made.tables)
    };
    items.made_file(loader::TABLES, tables).map_err(|e| anyhow!(e))
}
