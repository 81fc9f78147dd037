//! What a BIOS does before the guest's first instruction: PCI addresses and interrupt lines, chipset registers.
//!
//! Done in direct boot and by the built-in BIOS alike, again after every reset, and never when external firmware is
//! set.

use std::sync::Arc;

use anyhow::{Result, bail};
use boot::platform::{Pin, Platform};
use boot::video::{self, Mode, Port};
use emu::{BarKind, Bdf, CpuBus, Machine};

/// First port for BARs.
const IO_BASE: u64 = 0xc000;

/// Host bridges that have memory below the BIOS area.
const SHADOWING: [u32; 3] = [0x1237_8086, 0x7190_8086, 0x7192_8086];

/// Whether the machine's host bridge is one of them.
pub fn shadows(machine: &Machine) -> bool {
    SHADOWING.contains(&machine.pci.read(Bdf::new(0, 0), 0, 4))
}

/// Programs BARs, interrupt lines, command registers and the interrupt router as `platform` says.
///
/// # Errors
/// When the windows are too small for the BARs.
pub fn assign(machine: &Arc<Machine>, platform: &Platform) -> Result<()> {
    let (mut io, mut mem) = (IO_BASE, u64::from(*platform.pci.window32.start()));
    let end = u64::from(*platform.pci.window32.end()) + 1;
    let functions = machine.pci.functions();
    // The largest first, so that alignment wastes nothing.
    let mut bars: Vec<_> =
        functions.iter().flat_map(|f| f.bars().into_iter().map(move |(n, bar)| (f, n, bar))).collect();
    bars.sort_by_key(|(f, n, bar)| (std::cmp::Reverse(bar.len), f.bdf(), *n));
    for (f, n, bar) in bars {
        let next = if bar.kind == BarKind::Io { &mut io } else { &mut mem };
        let base = next.next_multiple_of(bar.len);
        let limit = if bar.kind == BarKind::Io { 0x1_0000 } else { end };
        if base + bar.len > limit {
            bail!("no room for BAR {n} ({} bytes) of PCI device {}", bar.len, f.bdf());
        }
        *next = base + bar.len;
        f.write(0x10 + 4 * u16::from(n), 4, base as u32);
        if matches!(bar.kind, BarKind::Mem64 | BarKind::Mem64Prefetch) {
            f.write(0x14 + 4 * u16::from(n), 4, 0);
        }
    }
    if let Some(router) = platform.pci.router {
        let bdf = Bdf::new(router.device, router.function);
        for link in &platform.pci.links {
            machine.pci.write(bdf, u16::from(link.register), 1, u32::from(link.irq.unwrap_or(0x80)));
        }
    }
    for f in &functions {
        let pin = f.read(0x3d, 1);
        if (1..=4).contains(&pin) {
            let irq = platform.pci.irq(f.bdf().dev, Pin::ALL[pin as usize - 1]).unwrap_or(0xff);
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
