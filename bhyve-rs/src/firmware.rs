//! What a BIOS does before the guest's first instruction: PCI addresses and interrupt lines, chipset registers.
//!
//! Done in direct boot and by the built-in BIOS alike, again after every reset, and never when external firmware is
//! set.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use anyhow::{Result, bail};
use boot::platform::{Pin, Platform, Root};
use boot::video::{self, Mode, Port};
use emu::{Bar, BarKind, Bdf, CpuBus, Machine, PAGE_SIZE, PciFunction};

/// First port for BARs.
const IO_BASE: u64 = 0xc000;

/// Host bridges that have memory below the BIOS area.
const SHADOWING: [u32; 3] = [0x1237_8086, 0x7190_8086, 0x7192_8086];

/// Whether the machine's host bridge is one of them.
pub fn shadows(machine: &Machine) -> bool {
    SHADOWING.contains(&machine.pci.read(Bdf::new(0, 0), 0, 4))
}

/// A BAR and its address.
struct Place {
    function: Arc<PciFunction>,
    index: u8,
    bar: Bar,
    base: u64,
}

impl Place {
    /// The last address. Pages of memory are of one bus.
    fn last(&self) -> u64 {
        match self.bar.kind {
            BarKind::Io => self.base + self.bar.len - 1,
            _ => (self.base + self.bar.len - 1) | (PAGE_SIZE - 1),
        }
    }
}

/// Gives each BAR an address: one bus after the other, and the largest first, so that alignment wastes nothing.
fn lay_out(machine: &Machine, window32: &RangeInclusive<u32>) -> Result<Vec<Place>> {
    let (mut io, mut mem) = (IO_BASE, u64::from(*window32.start()));
    let end = u64::from(*window32.end()) + 1;
    let bars = |function: &Arc<PciFunction>| {
        let function = function.clone();
        function.bars().into_iter().map(move |(index, bar)| Place { function: function.clone(), index, bar, base: 0 })
    };
    let mut places: Vec<Place> = machine.pci.functions().iter().flat_map(bars).collect();
    let key = |p: &Place| (p.function.bdf().bus, Reverse(p.bar.len), p.function.bdf(), p.index);
    places.sort_by_key(key);
    let mut bus = 0;
    for place in &mut places {
        let (len, bdf) = (place.bar.len, place.function.bdf());
        if bdf.bus != bus {
            (bus, mem) = (bdf.bus, mem.next_multiple_of(PAGE_SIZE));
        }
        let ports = place.bar.kind == BarKind::Io;
        let (next, limit) = if ports { (&mut io, 0x1_0000) } else { (&mut mem, end) };
        place.base = next.next_multiple_of(len);
        if place.base + len > limit {
            bail!("no room for BAR {} ({len} bytes) of PCI device {bdf}", place.index);
        }
        *next = place.base + len;
    }
    Ok(places)
}

/// Host bridges for the buses above 0. Each has what lies between its first and its last BAR, unless another bus has
/// one there.
fn further_roots(machine: &Machine, mut places: Vec<Place>) -> Vec<Root> {
    let mut roots: BTreeMap<u8, Root> = BTreeMap::new();
    for bus in machine.pci.functions().iter().map(|f| f.bdf().bus).filter(|bus| *bus > 0) {
        roots.entry(bus).or_insert(Root { bus, ..Root::default() });
    }
    places.sort_by_key(|p| p.base);
    let (io, memory): (Vec<Place>, Vec<Place>) = places.into_iter().partition(|p| p.bar.kind == BarKind::Io);
    for run in io.chunk_by(|a, b| a.function.bdf().bus == b.function.bdf().bus) {
        if let Some(root) = roots.get_mut(&run[0].function.bdf().bus) {
            root.io.push(run[0].base as u16..=run[run.len() - 1].last() as u16);
        }
    }
    for run in memory.chunk_by(|a, b| a.function.bdf().bus == b.function.bdf().bus) {
        if let Some(root) = roots.get_mut(&run[0].function.bdf().bus) {
            root.memory.push(run[0].base as u32..=run[run.len() - 1].last() as u32);
        }
    }
    roots.into_values().collect()
}

/// The host bridges of buses above 0 with the windows that [`assign`] makes use of.
///
/// # Errors
/// When the windows are too small for the BARs.
pub fn planned_roots(machine: &Machine, platform: &Platform) -> Result<Vec<Root>> {
    Ok(further_roots(machine, lay_out(machine, &platform.pci.window32)?))
}

/// The same with the windows that the BARs are in now, wherever a firmware has put them below 4 GiB.
pub fn found_roots(machine: &Machine) -> Vec<Root> {
    let place = |function: &Arc<PciFunction>, (index, bar): (u8, Bar)| Place {
        base: function.bar_base(index),
        function: function.clone(),
        index,
        bar,
    };
    let functions = machine.pci.functions();
    let places = functions.iter().flat_map(|f| f.bars().into_iter().map(move |bar| place(f, bar)));
    let reached = |p: &Place| match p.bar.kind {
        BarKind::Io => p.base != 0 && p.base + p.bar.len <= 1 << 16,
        _ => p.base != 0 && p.base.checked_add(p.bar.len).is_some_and(|end| end <= 1 << 32),
    };
    further_roots(machine, places.filter(reached).collect())
}

/// Programs BARs, interrupt lines, command registers and the interrupt router as `platform` says.
///
/// # Errors
/// When the windows are too small for the BARs.
pub fn assign(machine: &Arc<Machine>, platform: &Platform) -> Result<()> {
    for Place { function, index, bar, base } in lay_out(machine, &platform.pci.window32)? {
        function.write(0x10 + 4 * u16::from(index), 4, base as u32);
        if matches!(bar.kind, BarKind::Mem64 | BarKind::Mem64Prefetch) {
            function.write(0x14 + 4 * u16::from(index), 4, 0);
        }
    }
    let functions = machine.pci.functions();
    if let Some(router) = platform.pci.router {
        let bdf = Bdf::new(router.device, router.function);
        for link in &platform.pci.links {
            machine.pci.write(bdf, u16::from(link.register), 1, u32::from(link.irq.unwrap_or(0x80)));
        }
    }
    for f in &functions {
        let pin = f.read(0x3d, 1);
        if (1..=4).contains(&pin) {
            let irq = platform.pci.irq(f.bdf().bus, f.bdf().dev, Pin::ALL[pin as usize - 1]).unwrap_or(0xff);
            f.write(0x3c, 1, u32::from(irq));
        }
        let kinds: Vec<_> = f.bars().into_iter().map(|(_, b)| b.kind == BarKind::Io).collect();
        let command = u32::from(kinds.contains(&true)) | u32::from(kinds.contains(&false)) << 1;
        f.write(0x04, 2, f.read(0x04, 2) | command);
        match f.read(0, 4) {
            // Power management: base and enable.
            0x7113_8086 => {
                if let Some(pm) = platform.pm {
                    f.write(0x3c, 1, u32::from(pm.sci));
                    f.write(0x40, 4, u32::from(pm.base) | 1);
                    f.write(0x80, 1, 1);
                }
            }
            // IDE: both channels decode their ports.
            0x7010_8086 | 0x7111_8086 => {
                f.write(0x40, 4, 0x8000_8000);
                f.write(0x04, 2, f.read(0x04, 2) | 4);
            }
            // Host bridges: the BIOS area is shadowed and write protected.
            id if SHADOWING.contains(&id) => f.write(0x59, 1, 0x10),
            _ => {}
        }
    }
    // PCI interrupts and the SCI are level triggered.
    let level: u16 = platform
        .pci
        .links
        .iter()
        .filter_map(|l| l.irq)
        .chain(platform.pm.map(|p| p.sci))
        .map(|i| 1 << i)
        .fold(0, |a, b| a | b);
    let mut bus = CpuBus::new(machine.space.clone());
    bus.pio_write(0x4d0, 1, u32::from(level & 0xff));
    bus.pio_write(0x4d1, 1, u32::from(level >> 8));
    Ok(())
}

/// Sets the VGA to mode 3 with an empty screen, as a kernel expects that is started without firmware.
pub fn text_mode(machine: &Arc<Machine>) {
    const BLANK: u64 = 0x0720_0720;
    let mode = Mode::find(3).expect("a standard mode");
    let mut bus = CpuBus::new(machine.space.clone());
    ports(&mut bus, &mode.registers());
    ports(&mut bus, &mode.dac());
    ports(&mut bus, &video::FONT_OPEN);
    for (n, dots) in video::glyphs(&video::FONT_8X16).chunks_exact(4).enumerate() {
        bus.write(0xa_0000 + 4 * n as u64, 4, u32::from_le_bytes(dots.try_into().expect("4 bytes")).into());
    }
    ports(&mut bus, &video::font_close(mode.crtc_port()));
    (0xb_8000..0xc_0000).step_by(4).for_each(|at| bus.write(at, 4, BLANK));
    ports(&mut bus, &video::screen_on(mode.crtc_port()));
}

fn ports(bus: &mut CpuBus, ports: &[Port]) {
    for port in ports {
        match *port {
            Port::In(port) => {
                bus.pio_read(port, 1);
            }
            Port::Out(port, value) => bus.pio_write(port, 1, value.into()),
        }
    }
}
