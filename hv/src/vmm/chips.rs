//! The chips inside vmm.ko as the machine uses them: interrupt lines, MSIs, and the ports that the kernel answers.
//!
//! The kernel counts what asserts a line, so it is told of changes alone, and again of what is high after a reset. Of
//! ports that it answers user space never hears, but for string instructions; and user space has no way to reach them
//! itself. The built-in BIOS and the set-up before a direct boot need some: the ELCR has a request of its own, for the
//! others a processor executes IN or OUT on their behalf ([`super::vcpu::Shared::port`]).

use std::sync::{Arc, Mutex, Weak};

use emu::{Access, AddressSpace, Backing, IrqSink, MsiSink, Rights, Widths};
use vmmapi_sys::{Msi, Vm};

use super::vcpu::{self, Shared};
use crate::Chips;

/// Lines of one kind, and what the kernel was told of each.
struct Lines {
    vm: Arc<Vm>,
    levels: Mutex<Vec<bool>>,
    set: fn(&Vm, u32, bool) -> std::io::Result<()>,
}

impl Lines {
    fn new(vm: &Arc<Vm>, count: u32, set: fn(&Vm, u32, bool) -> std::io::Result<()>) -> Arc<Lines> {
        Arc::new(Lines { vm: vm.clone(), levels: Mutex::new(vec![false; count as usize]), set })
    }

    /// The kernel has forgotten all.
    fn restore(&self) {
        for (n, high) in (0..).zip(self.levels.lock().unwrap().iter()) {
            if *high {
                self.tell(n, true);
            }
        }
    }

    fn tell(&self, line: u32, high: bool) {
        if let Err(e) = (self.set)(&self.vm, line, high) {
            tracing::debug!("interrupt line {line}: {e}");
        }
    }
}

impl IrqSink for Lines {
    fn set_irq(&self, line: u32, level: bool) {
        let mut levels = self.levels.lock().unwrap();
        if let Some(old) = levels.get_mut(line as usize)
            && std::mem::replace(old, level) != level
        {
            self.tell(line, level);
        }
    }
}

/// What [`crate::Vm::chips`] gives.
pub(super) struct KernelChips {
    vm: Arc<Vm>,
    isa: Arc<Lines>,
    ioapic: Arc<Lines>,
    pins: u32,
    hpet: u32,
}

impl KernelChips {
    pub(super) fn new(vm: &Arc<Vm>) -> std::io::Result<KernelChips> {
        let pins = vm.ioapic_pins()?;
        // The kernel itself takes IRQ 0 to pin 2.
        let isa = Lines::new(vm, 16, |vm, n, high| vm.set_isa_irq(n, Some(n), high));
        let ioapic = Lines::new(vm, pins, |vm, n, high| vm.set_ioapic_pin(n, high));
        Ok(KernelChips { vm: vm.clone(), isa, ioapic, pins, hpet: vm.hpet_capabilities()? })
    }

    /// After `VM_REINIT`.
    pub(super) fn restore(&self) {
        self.isa.restore();
        self.ioapic.restore();
    }
}

impl Chips for KernelChips {
    fn isa(&self) -> Arc<dyn IrqSink> {
        self.isa.clone()
    }

    fn ioapic(&self) -> Arc<dyn IrqSink> {
        self.ioapic.clone()
    }

    fn ioapic_pins(&self) -> u8 {
        u8::try_from(self.pins).unwrap_or(u8::MAX)
    }

    fn pm_timer(&self) -> u16 {
        0x408
    }

    fn hpet_id(&self) -> u32 {
        self.hpet
    }

    fn start_rtc(&self, seconds: i64, memory: &[(u8, u8)]) -> anyhow::Result<()> {
        self.vm.set_rtc_time(seconds)?;
        for (at, value) in memory {
            self.vm.rtc_write(*at, *value)?;
        }
        Ok(())
    }
}

/// Bits of an MSI's address.
const LOGICAL: u64 = 1 << 2;
const REDIRECTION_HINT: u64 = 1 << 3;

/// MSIs.
pub(super) struct Messages(pub(super) Arc<Vm>);

impl MsiSink for Messages {
    fn msi(&self, addr: u64, data: u32) {
        // The kernel takes a destination for a logical one only if the redirection hint is set as well. Processors do
        // not ask for that, and Linux, where it numbers them logically, does not set it.
        let address = if addr & LOGICAL != 0 { addr | REDIRECTION_HINT } else { addr };
        // A device may be programmed to write anywhere.
        if let Err(e) = self.0.lapic_msi(Msi { address, data: data.into() }) {
            tracing::debug!("an MSI of {data:#x} to {addr:#x}: {e}");
        }
    }
}

/// INTR of processor 0, which nobody drives here, and its NMI.
pub(super) struct Pins(pub(super) Arc<Vm>);

impl IrqSink for Pins {
    fn set_irq(&self, line: u32, level: bool) {
        if line == 1
            && level
            && let Err(e) = self.0.inject_nmi(0)
        {
            tracing::debug!("NMI: {e}");
        }
    }
}

/// Regions of [`KernelPorts`].
const PORTS: u32 = 0;
const ELCR: u32 = 1;

/// Stretches of ports that the kernel answers: the first, how many, and the region that they belong to.
const KERNELS: [(u16, u32, u32); 6] =
    [(0x20, 2, PORTS), (0xa0, 2, PORTS), (0x40, 4, PORTS), (0x61, 1, PORTS), (0x70, 2, PORTS), (0x4d0, 2, ELCR)];

/// Whether a processor has to reach a port on behalf of others.
pub(super) fn is_kernels(port: u16) -> bool {
    let inside = |base: u16, len: u32| u32::from(port.wrapping_sub(base)) < len;
    KERNELS.iter().any(|(base, len, region)| *region == PORTS && inside(*base, *len))
}

/// The ports and registers that the kernel answers, for whoever reaches them by the bus.
pub(super) struct KernelPorts {
    shared: Weak<Shared>,
    elcr: Mutex<[u8; 2]>,
}

impl KernelPorts {
    pub(super) fn new(shared: Weak<Shared>) -> Arc<KernelPorts> {
        Arc::new(KernelPorts { shared, elcr: Mutex::default() })
    }

    /// Puts them into the space.
    pub(super) fn add(space: &AddressSpace, shared: &Arc<Shared>) {
        for (base, len, region) in KERNELS {
            let at = Arc::new(At { base, region, ports: shared.ports.clone() });
            let id = space.add_ports(base, len, 0, at, region, Widths::BYTE);
            space.enable_ports(id, base, true);
        }
        for (base, len) in [(0xfee0_0000, 0x1000), (0xfec0_0000, 0x1000), (0xfed0_0000, 0x400)] {
            let backing = Backing::Io(Arc::new(Registers { base, shared: Arc::downgrade(shared) }), 0, Widths::QWORD);
            let id = space.add_memory(base, len, 2, Rights::ReadWrite, backing);
            space.enable(id, base, true);
        }
    }

    /// After `VM_REINIT`.
    pub(super) fn reset(&self) {
        *self.elcr.lock().unwrap() = [0; 2];
    }

    fn set_trigger(&self, vm: &Vm, n: usize, value: u8) {
        let old = std::mem::replace(&mut self.elcr.lock().unwrap()[n], value);
        for bit in (0..8).filter(|bit| (old ^ value) >> bit & 1 != 0) {
            let irq = 8 * n as u32 + bit;
            // IRQs 0, 1, 2, 8 and 13 are edges on every board.
            if let Err(e) = vm.set_isa_trigger(irq, value >> bit & 1 != 0) {
                tracing::debug!("the trigger of IRQ {irq}: {e}");
            }
        }
    }
}

/// One stretch of ports.
struct At {
    base: u16,
    region: u32,
    ports: Arc<KernelPorts>,
}

impl Access for At {
    fn owner(&self) -> &str {
        "vmm"
    }

    fn read(&self, _: u32, offset: u64, _: u8) -> u64 {
        let Some(shared) = self.ports.shared.upgrade() else { return 0xff };
        match self.region {
            ELCR => self.ports.elcr.lock().unwrap()[offset as usize & 1].into(),
            _ => shared.port(self.base + offset as u16, None).into(),
        }
    }

    fn write(&self, _: u32, offset: u64, _: u8, value: u64) {
        let Some(shared) = self.ports.shared.upgrade() else { return };
        match self.region {
            ELCR => self.ports.set_trigger(&shared.vm, offset as usize & 1, value as u8),
            _ => _ = shared.port(self.base + offset as u16, Some(value as u8)),
        }
    }
}

/// The registers of the local APICs, the I/O APIC or the HPET: an instruction meets them here when the kernel could not
/// decode it, or by its other operand.
struct Registers {
    base: u64,
    shared: Weak<Shared>,
}

impl Access for Registers {
    fn owner(&self) -> &str {
        "vmm"
    }

    fn read(&self, _: u32, offset: u64, width: u8) -> u64 {
        let Some(shared) = self.shared.upgrade() else { return u64::MAX };
        let cpu = vcpu::current().unwrap_or(0);
        shared.vm.kernemu_read(cpu, self.base + offset, width).unwrap_or(u64::MAX)
    }

    fn write(&self, _: u32, offset: u64, width: u8, value: u64) {
        let Some(shared) = self.shared.upgrade() else { return };
        let cpu = vcpu::current().unwrap_or(0);
        if let Err(e) = shared.vm.kernemu_write(cpu, self.base + offset, width, value) {
            tracing::debug!("a write of {width} bytes to {:#x}: {e}", self.base + offset);
        }
    }
}
