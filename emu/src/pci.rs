//! PCI functions: configuration space as data, BARs that the guest can move, MSI and MSI-X.
//!
//! The core owns sizing, command-bit gating, bus mastering, INTx disable and the moving of BARs; a device hears of a
//! configuration write afterwards, and only needs to for registers with side effects. (PCI Local Bus Specification
//! 3.0.)

pub(crate) mod option;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::device::{DeviceCell, Machine};
use crate::irq::IrqLine;
use crate::space::{AddressSpace, RegionId};

/// Bus, device and function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Bdf {
    /// Bus.
    pub bus: u8,
    /// Device (slot), 0 to 31.
    pub dev: u8,
    /// Function, 0 to 7.
    pub func: u8,
}

impl Bdf {
    /// On bus 0.
    pub const fn new(dev: u8, func: u8) -> Bdf {
        Bdf { bus: 0, dev, func }
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}:{}:{}", self.bus, self.dev, self.func)
    }
}

/// An interrupt pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pin {
    /// INTA#
    A,
    /// INTB#
    B,
    /// INTC#
    C,
    /// INTD#
    D,
}

/// The identity of a function.
#[derive(Clone, Copy, Debug, Default)]
pub struct PciIds {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Class, subclass and programming interface, as 0xCCSSPP.
    pub class: u32,
    /// Revision.
    pub revision: u8,
    /// Subsystem vendor.
    pub sub_vendor: u16,
    /// Subsystem.
    pub subsystem: u16,
}

/// What a BAR decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// Ports.
    Io,
    /// Memory below 4 GiB.
    Mem32,
    /// Memory below 4 GiB, prefetchable.
    Mem32Prefetch,
    /// Memory anywhere; takes two registers.
    Mem64,
    /// Memory anywhere, prefetchable.
    Mem64Prefetch,
}

/// A base address register.
#[derive(Clone, Copy, Debug)]
pub struct Bar {
    /// What it decodes.
    pub kind: BarKind,
    /// Bytes; a power of two.
    pub len: u64,
    /// The region that moves with it.
    pub region: RegionId,
}

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR0: usize = 0x10;
const ROM: usize = 0x30;
const CAP_PTR: usize = 0x34;
const INT_LINE: usize = 0x3c;
const INT_PIN: usize = 0x3d;

const CMD_IO: u16 = 1;
const CMD_MEMORY: u16 = 2;
const CMD_MASTER: u16 = 4;
const CMD_INTX_DISABLE: u16 = 1 << 10;
/// The expansion ROM decodes.
const ROM_ENABLE: u32 = 1;
const STATUS_INTX: u8 = 1 << 3;
const STATUS_CAPS: u8 = 1 << 4;

/// 256 bytes of configuration space with their write masks.
#[derive(Clone)]
pub struct PciConfig {
    bytes: [u8; 256],
    /// Bits that the guest can write.
    writable: [u8; 256],
    /// Bits that a written 1 clears.
    clears: [u8; 256],
}

impl PciConfig {
    fn new(ids: PciIds) -> PciConfig {
        let mut c = PciConfig { bytes: [0; 256], writable: [0; 256], clears: [0; 256] };
        c.set16(0x00, ids.vendor);
        c.set16(0x02, ids.device);
        c.bytes[0x08] = ids.revision;
        c.bytes[0x09..0x0c].copy_from_slice(&ids.class.to_le_bytes()[..3]);
        c.set16(0x2c, ids.sub_vendor);
        c.set16(0x2e, ids.subsystem);
        c.writable[0x0c] = 0xff;
        c.writable[0x0d] = 0xff;
        c.writable[INT_LINE] = 0xff;
        // Memory, I/O, bus master, parity, SERR, INTx disable.
        c.writable[COMMAND] = 0x47;
        c.writable[COMMAND + 1] = 0x05;
        c.clears[STATUS + 1] = 0xf9;
        c
    }

    /// A byte.
    pub fn get8(&self, offset: usize) -> u8 {
        self.bytes[offset & 255]
    }

    /// A word.
    pub fn get16(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.get8(offset), self.get8(offset + 1)])
    }

    /// A double word.
    pub fn get32(&self, offset: usize) -> u32 {
        u32::from(self.get16(offset)) | u32::from(self.get16(offset + 2)) << 16
    }

    /// Sets a byte, whatever its mask.
    pub fn set8(&mut self, offset: usize, value: u8) {
        self.bytes[offset & 255] = value;
    }

    /// Sets a word, whatever its mask.
    pub fn set16(&mut self, offset: usize, value: u16) {
        self.bytes[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
    }

    /// Sets a double word, whatever its mask.
    pub fn set32(&mut self, offset: usize, value: u32) {
        self.bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// Makes bits writable.
    pub fn writable(&mut self, offset: usize, mask: &[u8]) {
        self.writable[offset..offset + mask.len()].copy_from_slice(mask);
    }

    /// Makes bits cleared by writing ones.
    pub fn clears(&mut self, offset: usize, mask: &[u8]) {
        self.clears[offset..offset + mask.len()].copy_from_slice(mask);
    }

    fn write8(&mut self, offset: usize, value: u8) {
        let (w, c) = (self.writable[offset], self.clears[offset]);
        self.bytes[offset] = self.bytes[offset] & !w & !(c & value) | value & w;
    }
}

struct Inner {
    config: PciConfig,
    /// The configuration after reset, set when the function is first reset or written.
    power_on: Option<[u8; 256]>,
    bars: [Option<Bar>; 6],
    /// Length of the expansion ROM, and the regions that move with it.
    rom: Option<(u64, [RegionId; 2])>,
    /// Where the next capability goes.
    next_cap: u8,
    /// The registers and bits that enable MSI and MSI-X.
    messages: Vec<(usize, u16)>,
}

impl Inner {
    /// INTx is silent while the command register disables it, and while messages are enabled (PCI 3.0, 6.8.3.3).
    fn intx_masked(&self) -> bool {
        self.config.get16(COMMAND) & CMD_INTX_DISABLE != 0
            || self.messages.iter().any(|(at, bit)| self.config.get16(*at) & bit != 0)
    }
}

/// A PCI function.
pub struct PciFunction {
    bdf: Bdf,
    space: Arc<AddressSpace>,
    cell: Weak<DeviceCell>,
    inner: Mutex<Inner>,
    master: Arc<AtomicBool>,
    intx: OnceLock<Arc<IrqLine>>,
    multi: AtomicBool,
    asked: OnceLock<Range<u16>>,
}

impl PciFunction {
    /// Its place.
    pub fn bdf(&self) -> Bdf {
        self.bdf
    }

    /// Bus-master enable, for DMA windows.
    pub fn bus_master(&self) -> Arc<AtomicBool> {
        self.master.clone()
    }

    /// Reads or prepares the configuration space. A leaf lock: `f` must not call out.
    pub fn config<T>(&self, f: impl FnOnce(&mut PciConfig) -> T) -> T {
        f(&mut self.inner.lock().unwrap().config)
    }

    /// The base address programmed into a BAR, flags cut off.
    pub fn bar_base(&self, index: u8) -> u64 {
        let inner = self.inner.lock().unwrap();
        inner.bars[index as usize].map_or(0, |bar| bar_base(&inner.config, index as usize, bar))
    }

    /// The BARs, for whoever assigns addresses.
    pub fn bars(&self) -> Vec<(u8, Bar)> {
        let inner = self.inner.lock().unwrap();
        inner.bars.iter().enumerate().filter_map(|(n, b)| Some((n as u8, (*b)?))).collect()
    }

    /// Adds a BAR.
    ///
    /// # Panics
    /// When the index is out of range or taken, or the length is no power of two of at least 4 (ports) or 16 (memory)
    /// bytes.
    pub fn add_bar(&self, index: u8, bar: Bar) {
        let least = if bar.kind == BarKind::Io { 4 } else { 16 };
        assert!(bar.len.is_power_of_two() && bar.len >= least, "BAR of {} bytes", bar.len);
        let mut inner = self.inner.lock().unwrap();
        let index = index as usize;
        let at = BAR0 + 4 * index;
        let (flags, wide) = match bar.kind {
            BarKind::Io => (1, false),
            BarKind::Mem32 => (0, false),
            BarKind::Mem32Prefetch => (8, false),
            BarKind::Mem64 => (4, true),
            BarKind::Mem64Prefetch => (12, true),
        };
        let last = index + usize::from(wide);
        assert!(last < 6 && inner.config.writable[at..BAR0 + 4 * (last + 1)] == [0; 8][..4 * (last + 1 - index)]);
        let mask = !(bar.len - 1);
        inner.config.set32(at, flags);
        // Of I/O addresses, too, all 32 bits: SeaBIOS takes a size from them.
        inner.config.writable(at, &(mask as u32).to_le_bytes());
        if wide {
            inner.config.writable(at + 4, &((mask >> 32) as u32).to_le_bytes());
        }
        inner.bars[index] = Some(bar);
    }

    /// Adds the expansion ROM's base address register for a ROM of `len` bytes, a power of two.
    pub(crate) fn set_rom(&self, len: u64, regions: [RegionId; 2]) {
        let mut inner = self.inner.lock().unwrap();
        let mask = !(len as u32 - 1) & !0x7ff | ROM_ENABLE;
        inner.config.writable(ROM, &mask.to_le_bytes());
        inner.rom = Some((len, regions));
    }

    /// Adds a capability of `len` bytes and returns its offset. The caller fills in what follows the first two bytes.
    ///
    /// # Panics
    /// When configuration space is full.
    pub fn add_capability(&self, id: u8, len: u8) -> u8 {
        let mut inner = self.inner.lock().unwrap();
        let at = inner.next_cap;
        assert!(u32::from(at) + u32::from(len) <= 256, "no room for a capability");
        inner.next_cap = (at + len + 3) & !3;
        let old = inner.config.get8(CAP_PTR);
        let c = &mut inner.config;
        c.set8(at as usize, id);
        c.set8(at as usize + 1, old);
        c.set8(CAP_PTR, at);
        c.bytes[STATUS] |= STATUS_CAPS;
        at
    }

    pub(crate) fn set_pin(&self, pin: Pin) {
        self.config(|c| c.set8(INT_PIN, pin as u8 + 1));
    }

    /// INTx is silent while `bit` of the register at `at` is set.
    fn silences_intx(&self, at: usize, bit: u16) {
        self.inner.lock().unwrap().messages.push((at, bit));
    }

    pub(crate) fn set_intx(&self, line: Arc<IrqLine>) {
        let _ = self.intx.set(line);
    }

    /// Has [`crate::Device::config_read`] called before the guest reads any of `registers`. Set once.
    pub fn ask_before(&self, registers: Range<u16>) {
        let _ = self.asked.set(registers);
    }

    /// Marks function 0 of a slot as one of several.
    pub fn set_multifunction(&self) {
        self.multi.store(true, Ordering::Relaxed);
    }

    /// Reads 1, 2 or 4 bytes.
    pub fn read(&self, offset: u16, width: u8) -> u32 {
        if let Some(asked) = self.asked.get()
            && asked.start < offset.saturating_add(width.into())
            && offset < asked.end
            && let Some(cell) = self.cell.upgrade()
        {
            cell.with(|d| d.config_read(offset, width));
        }
        let inner = self.inner.lock().unwrap();
        let mut value = 0;
        for n in 0..width {
            let at = offset as usize + n as usize;
            let mut byte = if at < 256 { inner.config.bytes[at] } else { 0xff };
            if at == STATUS && self.intx.get().is_some_and(|l| l.level()) {
                byte |= STATUS_INTX;
            }
            if at == 0x0e && self.multi.load(Ordering::Relaxed) {
                byte |= 0x80;
            }
            value |= u32::from(byte) << (8 * n);
        }
        value
    }

    /// Writes 1, 2 or 4 bytes and tells the device.
    pub fn write(&self, offset: u16, width: u8, value: u32) {
        {
            let mut inner = self.inner.lock().unwrap();
            if inner.power_on.is_none() {
                inner.power_on = Some(inner.config.bytes);
            }
            for n in 0..width {
                let at = offset as usize + n as usize;
                if at < 256 {
                    inner.config.write8(at, (value >> (8 * n)) as u8);
                }
            }
            self.apply(&inner);
        }
        if let Some(cell) = self.cell.upgrade() {
            cell.with(|d| d.config_write(offset, width));
        }
    }

    /// Puts regions, bus mastering and INTx where the registers say.
    fn apply(&self, inner: &Inner) {
        let command = inner.config.get16(COMMAND);
        self.master.store(command & CMD_MASTER != 0, Ordering::Relaxed);
        if let Some(line) = self.intx.get() {
            line.mask(inner.intx_masked());
        }
        for (n, bar) in inner.bars.iter().enumerate() {
            let Some(bar) = bar else { continue };
            let base = bar_base(&inner.config, n, *bar);
            if bar.kind == BarKind::Io {
                // Address 0 and all-ones sizing patterns never decode.
                let on = command & CMD_IO != 0 && base != 0 && base + bar.len < 0x10000;
                self.space.enable_ports(bar.region, base as u16, on);
            } else {
                let end = base.checked_add(bar.len);
                let sizing = matches!(base | (bar.len - 1), u64::MAX | 0xffff_ffff);
                let on = command & CMD_MEMORY != 0 && base != 0 && end.is_some() && !sizing;
                self.space.enable(bar.region, base, on);
            }
        }
        if let Some((len, regions)) = inner.rom {
            let register = inner.config.get32(ROM);
            let base = u64::from(register & !ROM_ENABLE);
            let sizing = base | (len - 1) == 0xffff_ffff;
            let on = command & CMD_MEMORY != 0 && register & ROM_ENABLE != 0 && base != 0 && !sizing;
            regions.iter().for_each(|region| self.space.enable(*region, base, on));
        }
    }

    /// Power-on configuration.
    pub fn reset(&self) {
        let mut inner = self.inner.lock().unwrap();
        match inner.power_on {
            Some(bytes) => inner.config.bytes = bytes,
            None => inner.power_on = Some(inner.config.bytes),
        }
        self.apply(&inner);
    }

    pub(crate) fn save(&self) -> Value {
        Value::from(hex(&self.inner.lock().unwrap().config.bytes))
    }

    pub(crate) fn load(&self, value: Value) -> Result<(), String> {
        let bytes = value.as_str().and_then(unhex).ok_or("no PCI configuration of 256 bytes")?;
        let mut inner = self.inner.lock().unwrap();
        if inner.power_on.is_none() {
            inner.power_on = Some(inner.config.bytes);
        }
        if bytes[..4] != inner.config.bytes[..4] {
            return Err("the PCI identity differs".to_owned());
        }
        inner.config.bytes = bytes;
        self.apply(&inner);
        Ok(())
    }
}

fn bar_base(config: &PciConfig, index: usize, bar: Bar) -> u64 {
    let at = BAR0 + 4 * index;
    let low = u64::from(config.get32(at));
    match bar.kind {
        BarKind::Io => low & !3,
        BarKind::Mem32 | BarKind::Mem32Prefetch => low & !0xf,
        BarKind::Mem64 | BarKind::Mem64Prefetch => low & !0xf | u64::from(config.get32(at + 4)) << 32,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 256]> {
    let mut bytes = [0; 256];
    if text.len() != 512 || !text.is_ascii() {
        return None;
    }
    for (n, b) in bytes.iter_mut().enumerate() {
        *b = u8::from_str_radix(&text[2 * n..2 * n + 2], 16).ok()?;
    }
    Some(bytes)
}

/// Which wire the board leads a slot's pin to.
pub type Routing = Box<dyn Fn(Bdf, Pin) -> IrqLine + Send + Sync>;

/// The functions of a machine.
pub struct PciBus {
    space: Arc<AddressSpace>,
    functions: Mutex<BTreeMap<Bdf, Arc<PciFunction>>>,
    routing: OnceLock<Routing>,
}

impl PciBus {
    pub(crate) fn new(space: Arc<AddressSpace>) -> Arc<PciBus> {
        Arc::new(PciBus { space, functions: Mutex::default(), routing: OnceLock::new() })
    }

    /// Sets how interrupt pins are wired; the board does it once, before devices are plugged.
    pub fn set_routing(&self, routing: Routing) {
        let _ = self.routing.set(routing);
    }

    pub(crate) fn intx(&self, bdf: Bdf, pin: Pin) -> IrqLine {
        self.routing.get().map_or_else(IrqLine::unconnected, |r| r(bdf, pin))
    }

    pub(crate) fn add(&self, bdf: Bdf, ids: PciIds, cell: Weak<DeviceCell>) -> Result<Arc<PciFunction>, String> {
        let mut functions = self.functions.lock().unwrap();
        if functions.contains_key(&bdf) {
            return Err(format!("PCI slot {bdf} is taken"));
        }
        let config = PciConfig::new(ids);
        let inner = Inner { config, power_on: None, bars: [None; 6], rom: None, next_cap: 0x40, messages: Vec::new() };
        let function = Arc::new(PciFunction {
            bdf,
            space: self.space.clone(),
            cell,
            inner: Mutex::new(inner),
            master: Arc::new(AtomicBool::new(false)),
            intx: OnceLock::new(),
            multi: AtomicBool::new(false),
            asked: OnceLock::new(),
        });
        functions.insert(bdf, function.clone());
        let zero = Bdf { func: 0, ..bdf };
        if functions.range(zero..=Bdf { func: 7, ..bdf }).count() > 1
            && let Some(first) = functions.get(&zero)
        {
            first.set_multifunction();
        }
        Ok(function)
    }

    /// All functions, by place.
    pub fn functions(&self) -> Vec<Arc<PciFunction>> {
        self.functions.lock().unwrap().values().cloned().collect()
    }

    /// The function at a place.
    pub fn function(&self, bdf: Bdf) -> Option<Arc<PciFunction>> {
        self.functions.lock().unwrap().get(&bdf).cloned()
    }

    /// A configuration read of 1, 2 or 4 bytes; ones where there is no function.
    pub fn read(&self, bdf: Bdf, offset: u16, width: u8) -> u32 {
        self.function(bdf).map_or(u32::MAX, |f| f.read(offset, width))
    }

    /// A configuration write.
    pub fn write(&self, bdf: Bdf, offset: u16, width: u8, value: u32) {
        if let Some(f) = self.function(bdf) {
            f.write(offset, width, value);
        }
    }
}

/// A function's MSI capability (64-bit addresses, per-vector masks).
pub struct Msi {
    function: Arc<PciFunction>,
    machine: Weak<Machine>,
    at: usize,
}

impl Msi {
    pub(crate) fn new(function: Arc<PciFunction>, vectors: u8, machine: &Arc<Machine>) -> Msi {
        let at = function.add_capability(0x05, 0x18) as usize;
        let vectors = vectors.clamp(1, 32).next_power_of_two();
        function.config(|c| {
            c.set16(at + 2, 1 << 8 | 1 << 7 | (vectors.trailing_zeros() as u16) << 1);
            c.writable(at + 2, &[0x71]);
            c.writable(at + 4, &[0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
            c.writable(at + 0x10, &(u32::MAX >> (32 - u32::from(vectors))).to_le_bytes());
        });
        function.silences_intx(at + 2, 1);
        Msi { function, machine: Arc::downgrade(machine), at }
    }

    /// Whether the guest has enabled it; INTx is silent then.
    pub fn enabled(&self) -> bool {
        self.function.config(|c| c.get16(self.at + 2) & 1 != 0)
    }

    /// Sends message `vector`, or marks it pending while it is masked. Works from any thread.
    pub fn send(&self, vector: u8) {
        let message = self.function.config(|c| {
            let control = c.get16(self.at + 2);
            if control & 1 == 0 || c.get16(COMMAND) & CMD_MASTER == 0 {
                return None;
            }
            // A guest may grant more than was asked for.
            let granted = 1u32 << (control >> 4 & 7).min(control >> 1 & 7);
            let n = u32::from(vector) & (granted - 1);
            if c.get32(self.at + 0x10) >> n & 1 != 0 {
                let pending = c.get32(self.at + 0x14) | 1 << n;
                c.set32(self.at + 0x14, pending);
                return None;
            }
            let data = u32::from(c.get16(self.at + 0x0c)) & !(granted - 1) | n;
            Some((u64::from(c.get32(self.at + 4)) | u64::from(c.get32(self.at + 8)) << 32, data))
        });
        if let (Some((addr, data)), Some(machine)) = (message, self.machine.upgrade()) {
            machine.msi().msi(addr, data);
        }
    }

    /// Must be called from [`crate::Device::config_write`]: sends what was pending and is not masked any more.
    pub fn config_written(&self) {
        let pending = self.function.config(|c| {
            // What cannot be sent stays pending.
            if c.get16(self.at + 2) & 1 == 0 || c.get16(COMMAND) & CMD_MASTER == 0 {
                return 0;
            }
            let ready = c.get32(self.at + 0x14) & !c.get32(self.at + 0x10);
            c.set32(self.at + 0x14, c.get32(self.at + 0x14) & !ready);
            ready
        });
        (0..32).filter(|n| pending >> n & 1 != 0).for_each(|n| self.send(n));
    }
}

#[derive(Default)]
struct MsixTable {
    /// Address low, address high, data, vector control.
    entries: Vec<[u32; 4]>,
    pending: Vec<bool>,
}

/// A function's MSI-X capability. Table and pending bits are a leaf chip in the BAR: messages work from any thread.
#[derive(Clone)]
pub struct Msix {
    function: Arc<PciFunction>,
    machine: Weak<Machine>,
    at: usize,
    table: Arc<Mutex<MsixTable>>,
}

/// Where the pending bits lie, counted from the table's start.
const PBA: u64 = 0x800;

impl Msix {
    /// `bar` must already exist and be at least `offset + 4096` bytes long; device accesses to those 4 KiB come here
    /// first.
    pub(crate) fn new(function: Arc<PciFunction>, vectors: u16, bar: u8, offset: u32, machine: &Arc<Machine>) -> Msix {
        assert!((1..=128).contains(&vectors) && offset.is_multiple_of(8));
        let at = function.add_capability(0x11, 12) as usize;
        function.config(|c| {
            c.set16(at + 2, vectors - 1);
            c.writable(at + 3, &[0xc0]);
            c.set32(at + 4, offset | u32::from(bar));
            c.set32(at + 8, (offset + PBA as u32) | u32::from(bar));
        });
        function.silences_intx(at + 2, 0x8000);
        let table = MsixTable { entries: vec![[0, 0, 0, 1]; vectors as usize], pending: vec![false; vectors as usize] };
        Msix { function, machine: Arc::downgrade(machine), at, table: Arc::new(Mutex::new(table)) }
    }

    fn control(&self) -> u16 {
        self.function.config(|c| c.get16(self.at + 2))
    }

    /// Whether the guest has enabled it; INTx and MSI are silent then.
    pub fn enabled(&self) -> bool {
        self.control() & 0x8000 != 0
    }

    /// Sends message `vector`, or marks it pending while it or the function is masked.
    pub fn send(&self, vector: u16) {
        let control = self.control();
        let master = self.function.master.load(Ordering::Relaxed);
        let mut t = self.table.lock().unwrap();
        let Some(&[low, high, data, ctl]) = t.entries.get(vector as usize) else { return };
        if control & 0x8000 == 0 || !master {
            return;
        }
        if control & 0x4000 != 0 || ctl & 1 != 0 {
            t.pending[vector as usize] = true;
            return;
        }
        drop(t);
        if let Some(machine) = self.machine.upgrade() {
            machine.msi().msi(u64::from(low) | u64::from(high) << 32, data);
        }
    }

    /// Must be called from [`crate::Device::config_write`] and after table writes: sends what is no longer masked.
    pub fn unmasked(&self) {
        if self.control() & 0xc000 != 0x8000 || !self.function.master.load(Ordering::Relaxed) {
            return;
        }
        let ready: Vec<u16> = {
            let mut t = self.table.lock().unwrap();
            (0..t.entries.len())
                .filter(|&n| t.entries[n][3] & 1 == 0 && std::mem::take(&mut t.pending[n]))
                .map(|n| n as u16)
                .collect()
        };
        ready.into_iter().for_each(|n| self.send(n));
    }

    /// A read of the table's 4 KiB.
    pub fn read(&self, offset: u64, width: u8) -> u64 {
        let t = self.table.lock().unwrap();
        let word = |o: u64| -> u32 {
            if o >= PBA {
                let first = (o - PBA) as usize * 8;
                return (0..32).filter(|n| t.pending.get(first + n) == Some(&true)).map(|n| 1 << n).sum();
            }
            t.entries.get(o as usize / 16).map_or(0, |e| e[o as usize / 4 % 4])
        };
        let low = word(offset & !3) >> (8 * (offset & 3));
        if width == 8 { u64::from(low) | u64::from(word((offset & !3) + 4)) << 32 } else { u64::from(low) }
    }

    /// A write of the table's 4 KiB; only aligned 4- and 8-byte writes count (PCI 3.0, 6.8.2).
    pub fn write(&self, offset: u64, width: u8, value: u64) {
        if offset >= PBA || width < 4 || !offset.is_multiple_of(u64::from(width)) {
            return;
        }
        {
            let mut t = self.table.lock().unwrap();
            for n in 0..u64::from(width) / 4 {
                let o = offset as usize + 4 * n as usize;
                if let Some(e) = t.entries.get_mut(o / 16) {
                    e[o / 4 % 4] = (value >> (32 * n)) as u32;
                }
            }
        }
        self.unmasked();
    }

    /// For the owner's saved state.
    pub fn save(&self) -> (Vec<[u32; 4]>, Vec<bool>) {
        let t = self.table.lock().unwrap();
        (t.entries.clone(), t.pending.clone())
    }

    /// From a saved state; what does not fit is left out.
    pub fn load(&self, entries: &[[u32; 4]], pending: &[bool]) {
        let mut t = self.table.lock().unwrap();
        t.entries.iter_mut().zip(entries).for_each(|(a, b)| *a = *b);
        t.pending.iter_mut().zip(pending).for_each(|(a, b)| *a = *b);
    }

    /// All entries masked, nothing pending.
    pub fn reset(&self) {
        let mut t = self.table.lock().unwrap();
        t.entries.fill([0, 0, 0, 1]);
        t.pending.fill(false);
    }
}

#[cfg(test)]
mod tests;
