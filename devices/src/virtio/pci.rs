//! Virtio over PCI: what a driver of either age finds, and what the devices behind it stand on.
//!
//! Virtio 1.2, 4.1, and virtio 0.9.5, 2. A [`Function`] is a device without its transport; [`Core`] is what it may use:
//! the queues, the negotiated features and the interrupts.
//!
//! * The legacy registers are in BAR 0 (ports), the modern ones in BAR 4 (memory), the MSI-X table in BAR 1. Without
//!   MSI-X there is INTA#, which the ISR register explains.
//! * A driver is a modern one once it has accepted VERSION_1. Before that and without it queues are served as soon as
//!   they have an address, since old drivers use a device before they say DRIVER_OK.
//! * Linux before 2.6.34 does not enable bus mastering; giving a legacy queue an address does it.
//! * A kick is a doorbell, and its work is bounded; what is left goes on by a timer.
//! * Single queues are not reset (RING_RESET): only Linux's network driver would, to change their length at run time.
//! * A driver that breaks the rules finds DEVICE_NEEDS_RESET, and nothing is done until it resets the device.

use std::sync::Arc;

use emu::{
    BarKind, Device, DmaMem, Event, IrqLine, Msi, Msix, Param, ParamKind, Params, PciFunction, PciIds, Pin, ResetKind,
    Slot, State, Timer, Widths,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::queue::{Broken, Chain, MAX_SIZE, NO_VECTOR, Queue};

/// Feature bits that belong to the transport.
const ANY_LAYOUT: u64 = 1 << 27;
const INDIRECT_DESC: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;
pub(crate) const VERSION_1: u64 = 1 << 32;

/// Device status.
pub(crate) const DRIVER_OK: u8 = 4;
pub(crate) const FEATURES_OK: u8 = 8;
pub(crate) const NEEDS_RESET: u8 = 0x40;

/// ISR status.
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// Chains taken in one go.
const BUDGET: usize = 64;

/// Regions, with the numbers of their BARs.
const LEGACY: u32 = 0;
const TABLE: u32 = 1;
const MODERN: u32 = 4;

/// Parts of the modern BAR.
const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const CONFIG: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const MODERN_LEN: u64 = 0x4000;
/// Bytes of the common registers.
const COMMON_LEN: usize = 0x38;
/// Bytes between the notification registers of two queues.
const NOTIFY_STEP: u64 = 4;

/// The legacy registers, by their offset.
mod legacy {
    pub const GUEST_FEATURES: u64 = 0x04;
    pub const QUEUE_PFN: u64 = 0x08;
    pub const QUEUE_SELECT: u64 = 0x0e;
    pub const QUEUE_NOTIFY: u64 = 0x10;
    pub const STATUS: u64 = 0x12;
    pub const ISR: u64 = 0x13;
    /// Only while MSI-X is enabled; the device's own registers follow, or are here.
    pub const CONFIG_VECTOR: u64 = 0x14;
    pub const QUEUE_VECTOR: u64 = 0x16;
    /// Bytes at most before the device's own.
    pub const HEADER: usize = 0x18;
}

/// The common registers of the modern interface, by their offset.
mod common {
    pub const FEATURE_SELECT: u64 = 0x00;
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub const DRIVER_FEATURE: u64 = 0x0c;
    pub const CONFIG_VECTOR: u64 = 0x10;
    pub const STATUS: u64 = 0x14;
    pub const QUEUE_SELECT: u64 = 0x16;
    pub const QUEUE_SIZE: u64 = 0x18;
    pub const QUEUE_VECTOR: u64 = 0x1a;
    pub const QUEUE_ENABLE: u64 = 0x1c;
    pub const QUEUE_DESC: u64 = 0x20;
    pub const QUEUE_DEVICE_END: u64 = 0x38;
}

/// A key that all models have.
pub(crate) const IOEVENTFD: Param = Param {
    name: "ioeventfd",
    kind: ParamKind::Bool,
    default: "false",
    help: "on KVM, another thread serves the queues while the processor goes on",
};

/// Another one: bhyve(8)'s `-W`.
pub(crate) const MSIX: Param = Param {
    name: "msix",
    kind: ParamKind::Bool,
    default: "true",
    help: "interrupts by MSI-X, a message for each queue; false: one MSI message for all",
};

/// Another one.
pub(crate) const VERSION: Param = Param {
    name: "version",
    kind: ParamKind::Choice(&["legacy", "transitional", "modern"]),
    default: "transitional",
    help: "which drivers it is for: of virtio 0.9, both, or of virtio 1",
};

/// Which interfaces a device has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Legacy,
    Transitional,
    Modern,
}

impl Version {
    fn of(params: &Params) -> Version {
        match params.get("version") {
            Some("legacy") => Version::Legacy,
            Some("modern") => Version::Modern,
            _ => Version::Transitional,
        }
    }
}

/// What identifies a kind of device.
pub(crate) struct Kind {
    /// Virtio's number for it (virtio 1.2, 5).
    pub id: u16,
    /// The PCI device of its legacy form.
    pub legacy_device: u16,
    /// PCI class.
    pub class: u32,
    /// Bytes of its own registers.
    pub config: usize,
}

/// A device behind the transport.
pub(crate) trait Function: Send + 'static {
    /// What is saved of it.
    type Saved: Serialize + DeserializeOwned;

    /// Feature bits that it offers, the transport's left out.
    fn features(&self) -> u64;

    /// Its own registers; `image` has as many bytes as its [`Kind`] says.
    fn config(&self, core: &Core, image: &mut [u8]);

    /// A write to them, of 1 to 8 bytes within their bounds.
    fn config_write(&mut self, _core: &mut Core, _at: usize, _data: &[u8]) {}

    /// Something may have come into queue `n`.
    fn kick(&mut self, core: &mut Core, n: usize);

    /// A disk, the wire or anything else but doorbells and the transport's timer.
    fn event(&mut self, core: &mut Core, event: Event);

    /// The power-on state: nothing under way touches guest memory any more.
    fn reset(&mut self);

    fn save(&self) -> Self::Saved;

    /// Takes over a state that another machine saved.
    fn load(&mut self, saved: Self::Saved) -> Result<(), String>;
}

/// The registers.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Registers {
    status: u8,
    isr: u8,
    config_vector: u16,
    generation: u8,
    feature_select: u32,
    driver_feature_select: u32,
    /// What the driver wrote, good or not.
    driver_features: u64,
    queue_select: u16,
    queues: Vec<Queue>,
    /// Queues whose work goes on by the timer, a bit each.
    unfinished: u64,
}

impl Registers {
    fn new(queues: usize) -> Registers {
        Registers {
            status: 0,
            isr: 0,
            config_vector: NO_VECTOR,
            generation: 0,
            feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            queue_select: 0,
            queues: vec![Queue::default(); queues],
            unfinished: 0,
        }
    }
}

/// How a driver may have its interrupts but by INTx.
enum Messages {
    Msix(Msix),
    Msi(Msi),
}

impl Messages {
    /// The table of MSI-X, if that is what there is.
    fn msix(&self) -> Option<&Msix> {
        match self {
            Messages::Msix(msix) => Some(msix),
            Messages::Msi(_) => None,
        }
    }
}

/// What a [`Function`] may use.
pub(crate) struct Core {
    r: Registers,
    offered: u64,
    dma: DmaMem,
    pci: Arc<PciFunction>,
    messages: Messages,
    intx: Arc<IrqLine>,
    timer: Arc<Timer>,
    chain: Chain,
}

impl Core {
    /// Guest memory.
    pub fn dma(&self) -> &DmaMem {
        &self.dma
    }

    /// Whether both sides have these feature bits.
    pub fn has(&self, features: u64) -> bool {
        self.features() & features == features
    }

    fn features(&self) -> u64 {
        self.r.driver_features & self.offered
    }

    /// Whether queue `n` is to be served.
    pub fn runs(&self, n: usize) -> bool {
        self.r.status & NEEDS_RESET == 0
            && self.r.queues.get(n).is_some_and(|q| q.enabled)
            && (!self.has(VERSION_1) || self.r.status & DRIVER_OK != 0)
            && self.dma.enabled()
    }

    /// Takes the next chain of queue `n` into `chain`. When there is none the driver will kick for the next.
    pub fn pop(&mut self, n: usize, chain: &mut Chain) -> bool {
        if !self.runs(n) {
            return false;
        }
        let event_idx = self.has(EVENT_IDX);
        let q = &mut self.r.queues[n];
        loop {
            match q.pop(&self.dma, chain) {
                Ok(true) => return true,
                Ok(false) => match q.listen(&self.dma, event_idx) {
                    Ok(true) => q.leave_alone(&self.dma, event_idx),
                    Ok(false) => return false,
                    Err(Broken) => break,
                },
                Err(Broken) => break,
            }
        }
        self.broken();
        false
    }

    /// Tells the driver that it need not kick for queue `n` until [`Core::pop`] finds nothing there.
    pub fn leave_alone(&mut self, n: usize) {
        let event_idx = self.has(EVENT_IDX);
        self.r.queues[n].leave_alone(&self.dma, event_idx);
    }

    /// Leaves the chain that was taken last from queue `n` for the next time.
    pub fn put_back(&mut self, n: usize) {
        self.r.queues[n].put_back();
    }

    /// Calls `f` with the chains of queue `n`, and publishes what it pushed. It does some and leaves the rest to the
    /// timer: a driver that makes chains as fast as they are served does not keep the thread.
    pub fn drain(&mut self, n: usize, mut f: impl FnMut(&mut Core, &Chain)) {
        if !self.runs(n) {
            return;
        }
        self.leave_alone(n);
        let mut chain = std::mem::take(&mut self.chain);
        let mut left = BUDGET;
        while self.pop(n, &mut chain) {
            f(self, &chain);
            left -= 1;
            if left == 0 {
                self.again(n);
                break;
            }
        }
        self.chain = chain;
        self.publish(n);
    }

    /// Has queue `n` kicked once more, by the timer.
    pub fn again(&mut self, n: usize) {
        self.r.unfinished |= 1 << n;
        // Not at once, which would be in the same round of timers.
        self.timer.set(self.timer.now() + 1);
    }

    /// Gives a chain of queue `n` back, of which `len` bytes were written. [`Core::publish`] must follow.
    pub fn push(&mut self, n: usize, head: u16, len: u32) {
        self.r.queues[n].push(&self.dma, head, len);
    }

    /// Lets the driver see what was pushed, with one interrupt if it wants one.
    pub fn publish(&mut self, n: usize) {
        let event_idx = self.has(EVENT_IDX);
        let q = &mut self.r.queues[n];
        if q.enabled && q.publish(&self.dma, event_idx) {
            let vector = q.vector;
            self.interrupt(ISR_QUEUE, vector);
        }
    }

    /// The driver does not follow the rules.
    pub fn broken(&mut self) {
        self.r.status |= NEEDS_RESET;
        self.interrupt(ISR_CONFIG, self.r.config_vector);
    }

    /// The device's own registers show something else.
    pub fn config_changed(&mut self) {
        self.r.generation = self.r.generation.wrapping_add(1);
        if self.r.status & DRIVER_OK != 0 {
            self.interrupt(ISR_CONFIG, self.r.config_vector);
        }
    }

    fn interrupt(&mut self, cause: u8, vector: u16) {
        match &self.messages {
            Messages::Msix(msix) if msix.enabled() => {
                if vector != NO_VECTOR {
                    msix.send(vector);
                }
                return;
            }
            Messages::Msi(msi) if msi.enabled() => msi.send(0),
            _ => self.intx.set(true),
        }
        self.r.isr |= cause;
    }

    fn take_isr(&mut self) -> u8 {
        self.intx.set(false);
        std::mem::take(&mut self.r.isr)
    }

    fn selected(&mut self) -> Option<&mut Queue> {
        self.r.queues.get_mut(usize::from(self.r.queue_select))
    }

    /// A vector that there is, or none.
    fn vector(&self, value: u64) -> u16 {
        if value <= self.r.queues.len() as u64 { value as u16 } else { NO_VECTOR }
    }
}

/// A device on the PCI bus.
pub(crate) struct VirtioPci<F: Function> {
    core: Core,
    function: F,
    config: usize,
    /// The capability through which configuration space leads into the modern BAR.
    window: Option<usize>,
}

impl<F: Function> VirtioPci<F> {
    /// Takes what the transport needs from the slot. `function` makes the device; `queues` is how many it has.
    pub fn create(
        slot: &mut Slot,
        params: &Params,
        kind: &Kind,
        queues: usize,
        function: F,
    ) -> Result<Box<dyn Device>, String> {
        let version = Version::of(params);
        let handoff = params.flag(IOEVENTFD.name);
        let modern_device = 0x1040 + kind.id;
        let ids = PciIds { vendor: 0x1af4, class: kind.class, sub_vendor: 0x1af4, ..PciIds::default() };
        // Drivers of 0.9 look at revision and subsystem, those of 1.x at the device alone.
        let pci = slot.pci(match version {
            Version::Modern => PciIds { device: modern_device, subsystem: modern_device, revision: 1, ..ids },
            _ => PciIds { device: kind.legacy_device, subsystem: kind.id, ..ids },
        })?;
        slot.rom()?;
        let intx = slot.intx(Pin::A);
        let timer = slot.timer(0);
        let dma = slot.dma();
        let messages = if params.get(MSIX.name).is_none() || params.flag(MSIX.name) {
            slot.bar(1, BarKind::Mem32, 0x1000, TABLE, Widths::QWORD);
            Messages::Msix(slot.msix(queues as u16 + 1, 1, 0))
        } else {
            Messages::Msi(slot.msi(1))
        };
        let mut offered = INDIRECT_DESC | EVENT_IDX | function.features();
        if version != Version::Modern {
            let len = (legacy::HEADER + kind.config).next_power_of_two() as u64;
            slot.bar(0, BarKind::Io, len, LEGACY, Widths::DWORD);
            slot.doorbell(LEGACY, legacy::QUEUE_NOTIFY, 2, None, handoff);
            offered |= ANY_LAYOUT;
        }
        let mut window = None;
        if version != Version::Legacy {
            slot.bar(4, BarKind::Mem32, MODERN_LEN, MODERN, Widths::QWORD);
            for n in 0..queues as u64 {
                slot.doorbell(MODERN, NOTIFY + NOTIFY_STEP * n, 2, None, handoff);
            }
            window = Some(capabilities(&pci, kind, queues));
            offered |= VERSION_1;
        }
        let core =
            Core { r: Registers::new(queues), offered, dma, pci, messages, intx, timer, chain: Chain::default() };
        Ok(Box::new(VirtioPci { core, function, config: kind.config, window }))
    }

    /// A reset that the driver asks for, which leaves what belongs to PCI.
    fn reset_device(&mut self) {
        self.function.reset();
        self.core.r = Registers::new(self.core.r.queues.len());
        self.core.timer.cancel();
        self.core.intx.set(false);
    }

    fn kick(&mut self, n: usize) {
        if self.core.runs(n) {
            self.function.kick(&mut self.core, n);
        }
    }

    fn kick_all(&mut self) {
        (0..self.core.r.queues.len()).for_each(|n| self.kick(n));
    }

    /// `modern`: by the modern interface.
    fn set_status(&mut self, value: u8, modern: bool) {
        if value == 0 {
            return self.reset_device();
        }
        let core = &mut self.core;
        let before = core.r.status;
        let mut status = value | before & NEEDS_RESET;
        let refused = core.r.driver_features & !core.offered != 0 || !core.has(VERSION_1);
        if modern && before & FEATURES_OK == 0 && refused {
            status &= !FEATURES_OK;
        }
        core.r.status = status;
        if status & !before & DRIVER_OK != 0 {
            // What is in the queues already may have come without a kick.
            self.kick_all();
        }
    }

    fn own_config(&self) -> Vec<u8> {
        let mut image = vec![0; self.config];
        self.function.config(&self.core, &mut image);
        image
    }

    fn own_config_write(&mut self, at: u64, width: u8, value: u64) {
        let end = at.saturating_add(width.into());
        if end <= self.config as u64 {
            self.function.config_write(&mut self.core, at as usize, &value.to_le_bytes()[..width as usize]);
        }
    }

    /// Where the device's own registers start among the legacy ones.
    fn legacy_header(&self) -> u64 {
        if self.core.messages.msix().is_some_and(Msix::enabled) { legacy::HEADER as u64 } else { legacy::CONFIG_VECTOR }
    }

    fn legacy_read(&mut self, offset: u64, width: u8) -> u64 {
        let header = self.legacy_header();
        if offset >= header {
            return slice(&self.own_config(), offset - header, width);
        }
        let isr = offset <= legacy::ISR && legacy::ISR < offset + u64::from(width);
        let isr = if isr { self.core.take_isr() } else { 0 };
        let core = &mut self.core;
        let offered = (core.offered as u32).to_le_bytes();
        let accepted = (core.features() as u32).to_le_bytes();
        let (mut pfn, mut size, mut vector) = (0, 0, NO_VECTOR);
        if let Some(q) = core.selected() {
            // Its driver takes the queue as large as it is.
            (pfn, size, vector) = (if q.enabled { (q.desc >> 12) as u32 } else { 0 }, q.size, q.vector);
        }
        let mut image = [0; legacy::HEADER];
        image[..4].copy_from_slice(&offered);
        image[4..8].copy_from_slice(&accepted);
        image[8..0xc].copy_from_slice(&pfn.to_le_bytes());
        image[0xc..0xe].copy_from_slice(&size.to_le_bytes());
        image[0xe..0x10].copy_from_slice(&core.r.queue_select.to_le_bytes());
        image[0x12] = core.r.status;
        image[0x13] = isr;
        image[0x14..0x16].copy_from_slice(&core.r.config_vector.to_le_bytes());
        image[0x16..0x18].copy_from_slice(&vector.to_le_bytes());
        slice(&image, offset, width)
    }

    fn legacy_write(&mut self, offset: u64, width: u8, value: u64) {
        let header = self.legacy_header();
        if offset >= header {
            return self.own_config_write(offset - header, width, value);
        }
        let core = &mut self.core;
        match (offset, width) {
            (legacy::GUEST_FEATURES, 4) if core.r.status & DRIVER_OK == 0 => {
                core.r.driver_features = value & core.offered & 0xffff_ffff;
            }
            (legacy::QUEUE_PFN, 4) => self.set_legacy_queue(value as u32),
            (legacy::QUEUE_SELECT, 2) => core.r.queue_select = value as u16,
            (legacy::QUEUE_NOTIFY, _) => self.kick(value as usize),
            (legacy::STATUS, 1) => self.set_status(value as u8, false),
            (legacy::CONFIG_VECTOR, 2) => core.r.config_vector = core.vector(value),
            (legacy::QUEUE_VECTOR, 2) => {
                let vector = core.vector(value);
                if let Some(q) = core.selected() {
                    q.vector = vector;
                }
            }
            _ => {}
        }
    }

    fn set_legacy_queue(&mut self, pfn: u32) {
        let core = &mut self.core;
        // A driver that takes its memory back has reset the device before, unless it is in trouble.
        if pfn == 0 && core.r.queues.iter().any(Queue::busy) {
            return self.reset_device();
        }
        let Some(q) = core.selected() else { return };
        if pfn == 0 {
            q.reset();
        } else if !q.enabled {
            q.set_legacy(u64::from(pfn) << 12);
            core.pci.config(|c| c.set16(0x04, c.get16(0x04) | 4));
            core.pci.bus_master().store(true, std::sync::atomic::Ordering::Relaxed);
        }
    }

    fn common_image(&mut self) -> [u8; COMMON_LEN] {
        let core = &mut self.core;
        let half = |features: u64, select: u32| match select {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        };
        // ANY_LAYOUT is a word of old drivers.
        let offered = half(core.offered & !ANY_LAYOUT, core.r.feature_select);
        let accepted = half(core.r.driver_features, core.r.driver_feature_select);
        let (queues, select) = (core.r.queues.len() as u16, core.r.queue_select);
        let q = core.selected().cloned();
        let r = &core.r;
        let mut image = [0; COMMON_LEN];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x00, &r.feature_select.to_le_bytes());
        put(0x04, &offered.to_le_bytes());
        put(0x08, &r.driver_feature_select.to_le_bytes());
        put(0x0c, &accepted.to_le_bytes());
        put(0x10, &r.config_vector.to_le_bytes());
        put(0x12, &queues.to_le_bytes());
        put(0x14, &[r.status, r.generation]);
        put(0x16, &select.to_le_bytes());
        if let Some(q) = q {
            put(0x18, &q.size.to_le_bytes());
            put(0x1a, &q.vector.to_le_bytes());
            put(0x1c, &u16::from(q.enabled).to_le_bytes());
            put(0x1e, &select.to_le_bytes());
            put(0x20, &q.desc.to_le_bytes());
            put(0x28, &q.avail.to_le_bytes());
            put(0x30, &q.used.to_le_bytes());
        } else {
            put(0x1a, &NO_VECTOR.to_le_bytes());
        }
        image
    }

    fn common_write(&mut self, offset: u64, width: u8, value: u64) {
        let core = &mut self.core;
        let vector = core.vector(value);
        let word = value as u32;
        match (offset, width) {
            (common::FEATURE_SELECT, 4) => core.r.feature_select = word,
            (common::DRIVER_FEATURE_SELECT, 4) => core.r.driver_feature_select = word,
            (common::DRIVER_FEATURE, 4) if core.r.status & FEATURES_OK == 0 => {
                let features = &mut core.r.driver_features;
                match core.r.driver_feature_select {
                    0 => *features = *features & !0xffff_ffff | u64::from(word),
                    1 => *features = *features & 0xffff_ffff | u64::from(word) << 32,
                    _ => {}
                }
            }
            (common::CONFIG_VECTOR, 2) => core.r.config_vector = vector,
            (common::STATUS, 1) => self.set_status(value as u8, true),
            (common::QUEUE_SELECT, 2) => core.r.queue_select = value as u16,
            (common::QUEUE_VECTOR, 2) => {
                if let Some(q) = core.selected() {
                    q.vector = vector;
                }
            }
            (common::QUEUE_SIZE..common::QUEUE_DEVICE_END, _) => {
                let Some(q) = core.selected().filter(|q| !q.enabled) else { return };
                match (offset, width) {
                    (common::QUEUE_SIZE, 2) if word <= MAX_SIZE.into() => q.size = value as u16,
                    (common::QUEUE_ENABLE, 2) => q.enabled = value == 1 && q.well_formed(),
                    (common::QUEUE_DESC..common::QUEUE_DEVICE_END, 4 | 8) if offset.is_multiple_of(4) => {
                        let at = [&mut q.desc, &mut q.avail, &mut q.used];
                        let mut at = at.into_iter().skip(((offset - common::QUEUE_DESC) / 8) as usize);
                        let Some(at) = at.next() else { return };
                        *at = match (offset % 8, width) {
                            (0, 8) => value,
                            (0, _) => *at & !0xffff_ffff | value & 0xffff_ffff,
                            (_, 4) => *at & 0xffff_ffff | value << 32,
                            _ => *at,
                        };
                    }
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn modern_read(&mut self, offset: u64, width: u8) -> u64 {
        match offset {
            COMMON..ISR => slice(&self.common_image(), offset, width),
            ISR => self.core.take_isr().into(),
            CONFIG..NOTIFY => slice(&self.own_config(), offset - CONFIG, width),
            _ => 0,
        }
    }

    fn modern_write(&mut self, offset: u64, width: u8, value: u64) {
        match offset {
            COMMON..ISR => self.common_write(offset, width, value),
            CONFIG..NOTIFY => self.own_config_write(offset - CONFIG, width, value),
            NOTIFY..MODERN_LEN => self.kick(((offset - NOTIFY) / NOTIFY_STEP) as usize),
            _ => {}
        }
    }

    /// The access that the capability asks for: offset and width.
    fn window_access(&self) -> Option<(u64, u8)> {
        let at = self.window?;
        let (bar, offset, width) = self.core.pci.config(|c| (c.get8(at + 4), c.get32(at + 8), c.get32(at + 12)));
        let fits = bar == MODERN as u8 && matches!(width, 1 | 2 | 4) && offset.is_multiple_of(width);
        (fits && u64::from(offset) < MODERN_LEN).then_some((offset.into(), width as u8))
    }
}

/// `width` bytes of a list of registers; zeros behind its end.
fn slice(image: &[u8], offset: u64, width: u8) -> u64 {
    let byte = |n: u64| image.get(usize::try_from(offset + n).unwrap_or(usize::MAX)).copied().unwrap_or(0);
    (0..u64::from(width)).fold(0, |value, n| value | u64::from(byte(n)) << (8 * n))
}

/// Tells where the modern registers are. Returns the offset of the last capability, the window from configuration
/// space.
fn capabilities(pci: &PciFunction, kind: &Kind, queues: usize) -> usize {
    let notify = NOTIFY_STEP * queues as u64;
    let parts = [
        (1, COMMON, COMMON_LEN as u64, 16),
        (2, NOTIFY, notify, 20),
        (3, ISR, 1, 16),
        (4, CONFIG, kind.config as u64, 16),
        (5, 0, 0, 20),
    ];
    let mut last = 0;
    // Drivers do not like registers of no length.
    for (part, offset, len, bytes) in parts.into_iter().filter(|(part, _, len, _)| *part != 4 || *len > 0) {
        let at = pci.add_capability(0x09, bytes) as usize;
        pci.config(|c| {
            c.set8(at + 2, bytes);
            c.set8(at + 3, part);
            c.set8(at + 4, MODERN as u8);
            c.set32(at + 8, offset as u32);
            c.set32(at + 12, len as u32);
            if part == 2 {
                c.set32(at + 16, NOTIFY_STEP as u32);
            }
        });
        last = at;
    }
    pci.config(|c| {
        c.writable(last + 4, &[0xff]);
        c.writable(last + 8, &[0xff; 12]);
    });
    let data = last as u16 + 16;
    pci.ask_before(data..data + 4);
    last
}

impl<F: Function> Device for VirtioPci<F> {
    fn read(&mut self, region: u32, offset: u64, width: u8) -> u64 {
        match region {
            LEGACY => self.legacy_read(offset, width),
            TABLE => self.core.messages.msix().map_or(u64::MAX, |msix| msix.read(offset, width)),
            _ => self.modern_read(offset, width),
        }
    }

    fn write(&mut self, region: u32, offset: u64, width: u8, value: u64) {
        match region {
            LEGACY => self.legacy_write(offset, width, value),
            TABLE => _ = self.core.messages.msix().map(|msix| msix.write(offset, width, value)),
            _ => self.modern_write(offset, width, value),
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            // One doorbell for all queues.
            Event::Doorbell(LEGACY, _) => self.kick_all(),
            Event::Doorbell(_, offset) => self.kick((offset.saturating_sub(NOTIFY) / NOTIFY_STEP) as usize),
            Event::Timer(_) => {
                let unfinished = std::mem::take(&mut self.core.r.unfinished);
                (0..self.core.r.queues.len()).filter(|n| unfinished >> n & 1 != 0).for_each(|n| self.kick(n));
            }
            event => self.function.event(&mut self.core, event),
        }
    }

    fn config_read(&mut self, _: u16, _: u8) {
        if let (Some(at), Some((offset, width))) = (self.window, self.window_access()) {
            let value = self.modern_read(offset, width);
            self.core.pci.config(|c| c.set32(at + 16, value as u32));
        }
    }

    fn config_write(&mut self, offset: u16, width: u8) {
        match &self.core.messages {
            Messages::Msix(msix) => msix.unmasked(),
            Messages::Msi(msi) => msi.config_written(),
        }
        let (from, to) = (usize::from(offset), usize::from(offset) + usize::from(width));
        if let (Some(at), Some((offset, width))) = (self.window, self.window_access())
            && from < at + 20
            && to > at + 16
        {
            let value = self.core.pci.config(|c| c.get32(at + 16)) & (u32::MAX >> (32 - 8 * u32::from(width)));
            self.modern_write(offset, width, value.into());
        }
    }

    fn reset(&mut self, _: ResetKind) {
        self.reset_device();
        if let Some(msix) = self.core.messages.msix() {
            msix.reset();
        }
    }

    fn state(&mut self) -> &mut dyn State {
        self
    }
}

#[derive(Serialize, Deserialize)]
struct Saved<S> {
    registers: Registers,
    table: Vec<[u32; 4]>,
    pending: Vec<bool>,
    function: S,
}

/// By hand: MSI-X has locks of its own, and the device behind it holds its back end beside its state.
impl<F: Function> State for VirtioPci<F> {
    fn save(&self) -> Value {
        let (table, pending) = self.core.messages.msix().map(Msix::save).unwrap_or_default();
        Saved { registers: self.core.r.clone(), table, pending, function: self.function.save() }.save()
    }

    fn load(&mut self, value: Value) -> Result<(), String> {
        let saved: Saved<F::Saved> = serde_json::from_value(value).map_err(|e| e.to_string())?;
        let queues = &saved.registers.queues;
        if queues.len() != self.core.r.queues.len() || queues.iter().any(|q| q.enabled && !q.well_formed()) {
            return Err("it has other queues".to_owned());
        }
        self.function.load(saved.function)?;
        if let Some(msix) = self.core.messages.msix() {
            msix.load(&saved.table, &saved.pending);
        }
        self.core.r = saved.registers;
        Ok(())
    }
}
