//! QEMU's firmware configuration device (fw_cfg), on ports 510, 511 and 514.
//!
//! Source: QEMU's specification of the device (docs/specs/fw_cfg). A 16-bit selector at 510 picks an item, 511 gives its
//! bytes one after the other and zeros past its end; an eight-byte big-endian register at 514 takes the address of a
//! descriptor for transfers by DMA, the only way to write items. Items below key 20 are fixed, those above it are files, named
//! in the directory, key 19.
//!
//! A descriptor is fetched once. A transfer moves a bounded number of bytes under the guest's access; the rest follows by a
//! timer, which the specification allows for: clients poll the control word until it is clear (SeaBIOS, OVMF and Linux's
//! qemu_fw_cfg do). Where the descriptor or its buffer is not RAM, the transfer fails.

use std::collections::BTreeMap;
use std::sync::Arc;

use emu::{Device, DmaMem, Event, IoVec, ResetKind, Slot, State, Timer, Widths};
use serde::{Deserialize, Serialize};

const SIGNATURE: u16 = 0x00;
const ID: u16 = 0x01;
const UUID: u16 = 0x02;
const RAM_SIZE: u16 = 0x03;
const NO_GRAPHIC: u16 = 0x04;
const NB_CPUS: u16 = 0x05;
const BOOT_MENU: u16 = 0x0e;
const MAX_CPUS: u16 = 0x0f;
const FILE_DIR: u16 = 0x19;
const FILE_FIRST: u16 = 0x20;
/// Keys of files end before this one.
const FILE_END: u16 = 0x4000;
/// The bit of a key that once asked for writing; it names the same item.
const WRITE_CHANNEL: u16 = 0x4000;

/// The selector and data ports, and the DMA register.
const CONTROL: u32 = 0;
const DMA: u32 = 1;
/// What the DMA register reads as.
const DMA_SIGNATURE: &[u8; 8] = b"QEMU CFG";

const CTL_ERROR: u32 = 0x01;
const CTL_READ: u32 = 0x02;
const CTL_SKIP: u32 = 0x04;
const CTL_SELECT: u32 = 0x08;
const CTL_WRITE: u32 = 0x10;

/// Bytes that a transfer moves at a time.
const CHUNK: u32 = 1 << 20;
/// Nanoseconds of guest time until the next ones.
const PAUSE: u64 = 50_000;
/// Bytes of a file name with its NUL.
const NAME: usize = 56;
/// Bytes of the largest file that a guest may write.
const WRITABLE: usize = 1 << 16;

#[derive(Clone, Debug)]
struct Item {
    data: Vec<u8>,
    writable: bool,
}

/// What the device has to tell: filled by whoever assembles the machine.
#[derive(Clone, Debug, Default)]
pub struct FwCfgItems {
    keys: BTreeMap<u16, Item>,
    files: BTreeMap<String, Item>,
}

impl FwCfgItems {
    /// Signature and features only.
    pub fn new() -> FwCfgItems {
        let mut items = FwCfgItems::default();
        items.set(SIGNATURE, *b"QEMU");
        // The traditional and the DMA interface.
        items.set(ID, 3u32.to_le_bytes());
        items
    }

    /// An item by its key.
    pub fn set(&mut self, key: u16, data: impl Into<Vec<u8>>) {
        self.keys.insert(key, Item { data: data.into(), writable: false });
    }

    /// The machine's UUID.
    pub fn uuid(&mut self, uuid: [u8; 16]) {
        self.set(UUID, uuid);
    }

    /// Bytes of RAM.
    pub fn ram_size(&mut self, bytes: u64) {
        self.set(RAM_SIZE, bytes.to_le_bytes());
    }

    /// Whether there is no screen, so that SeaBIOS uses the serial port.
    pub fn no_graphic(&mut self, yes: bool) {
        self.set(NO_GRAPHIC, u16::from(yes).to_le_bytes());
    }

    /// Processors that are there, and that can be there. Firmware waits for the present ones to come up.
    pub fn cpus(&mut self, present: u16, max: u16) {
        self.set(NB_CPUS, present.to_le_bytes());
        self.set(MAX_CPUS, max.to_le_bytes());
    }

    /// Whether the firmware offers its boot menu.
    pub fn boot_menu(&mut self, yes: bool) {
        self.set(BOOT_MENU, u16::from(yes).to_le_bytes());
    }

    /// The memory map, as ranges of base, length and ACPI address range type.
    ///
    /// # Errors
    /// When it was given before.
    pub fn e820(&mut self, ranges: &[(u64, u64, u32)]) -> Result<(), String> {
        let mut data = Vec::with_capacity(20 * ranges.len());
        for (base, len, kind) in ranges {
            data.extend(base.to_le_bytes());
            data.extend(len.to_le_bytes());
            data.extend(kind.to_le_bytes());
        }
        self.file("etc/e820", data)
    }

    /// A file that guests can read.
    ///
    /// # Errors
    /// When the name is empty, too long, not ASCII or taken, or there is no key left.
    pub fn file(&mut self, name: &str, data: Vec<u8>) -> Result<(), String> {
        self.add_file(name, Item { data, writable: false })
    }

    /// A file of up to 64 KiB that guests can also overwrite. Reset brings `data` back.
    ///
    /// # Errors
    /// As [`FwCfgItems::file`], or when it is too large.
    pub fn writable_file(&mut self, name: &str, data: Vec<u8>) -> Result<(), String> {
        if data.len() > WRITABLE {
            return Err(format!("fw_cfg file {name:?} has {} bytes, writable ones {WRITABLE} at most", data.len()));
        }
        self.add_file(name, Item { data, writable: true })
    }

    fn add_file(&mut self, name: &str, item: Item) -> Result<(), String> {
        if name.is_empty() || name.len() >= NAME || !name.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(format!("fw_cfg file name {name:?} is not 1 to {} ASCII characters", NAME - 1));
        }
        if u32::try_from(item.data.len()).is_err() {
            return Err(format!("fw_cfg file {name:?} is larger than 4 GiB"));
        }
        if self.files.len() >= usize::from(FILE_END - FILE_FIRST) {
            return Err(format!("no key is left for the fw_cfg file {name:?}"));
        }
        match self.files.insert(name.to_owned(), item) {
            None => Ok(()),
            Some(_) => Err(format!("the fw_cfg file {name:?} is there twice")),
        }
    }

    /// All items by their keys, the directory among them.
    fn build(self) -> BTreeMap<u16, Item> {
        let mut items = self.keys;
        let mut directory = (self.files.len() as u32).to_be_bytes().to_vec();
        for ((name, item), key) in self.files.into_iter().zip(FILE_FIRST..) {
            directory.extend((item.data.len() as u32).to_be_bytes());
            directory.extend(key.to_be_bytes());
            directory.extend([0; 2]);
            directory.extend(name.bytes().chain(std::iter::repeat(0)).take(NAME));
            items.insert(key, item);
        }
        items.insert(FILE_DIR, Item { data: directory, writable: false });
        items
    }
}

/// A transfer into guest memory that goes on.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Transfer {
    /// Where its descriptor lies.
    descriptor: u64,
    /// Where the next byte goes.
    address: u64,
    left: u32,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Regs {
    key: u16,
    /// The next byte of the item; not past its end.
    offset: u32,
    /// The upper half of the next descriptor's address.
    high: u32,
    transfer: Option<Transfer>,
    /// What guests have written over files.
    written: BTreeMap<u16, Vec<u8>>,
}

/// The device.
pub struct FwCfg {
    regs: Regs,
    items: BTreeMap<u16, Item>,
    memory: DmaMem,
    more: Arc<Timer>,
}

impl FwCfg {
    /// Puts the device at 510 to 51B.
    pub fn create(slot: &mut Slot, items: FwCfgItems) -> Box<dyn Device> {
        slot.ports(CONTROL, 0x510, 2, Widths::WORD);
        slot.ports(DMA, 0x514, 8, Widths::DWORD);
        let (memory, more) = (slot.dma(), slot.timer(0));
        Box::new(FwCfg { regs: Regs::default(), items: items.build(), memory, more })
    }

    fn select(&mut self, key: u16) {
        self.regs.key = key & !WRITE_CHANNEL;
        self.regs.offset = 0;
    }

    /// The selected item's bytes from the offset on.
    fn rest(&self) -> &[u8] {
        let key = self.regs.key;
        let data = self.regs.written.get(&key).or_else(|| self.items.get(&key).map(|i| &i.data));
        data.and_then(|d| d.get(self.regs.offset as usize..)).unwrap_or_default()
    }

    /// Takes bytes of the item, and zeros past its end.
    fn take(&mut self, buf: &mut [u8]) {
        let rest = self.rest();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        buf[n..].fill(0);
        self.regs.offset += n as u32;
    }

    fn is_ram(&self, address: u64, len: u64, write: bool) -> bool {
        self.memory.gather(&mut IoVec::default(), address, len, write)
    }

    /// Carries out the descriptor at `at`.
    fn start(&mut self, at: u64) {
        // One transfer at a time; and a descriptor that cannot be answered is none.
        if self.regs.transfer.is_some() || !self.is_ram(at, 16, true) {
            return;
        }
        let d = u128::from_be_bytes(self.memory.fetch(at));
        let (control, len, address) = ((d >> 96) as u32, (d >> 64) as u32, d as u64);
        if control & CTL_SELECT != 0 {
            self.select((control >> 16) as u16);
        }
        if control & CTL_READ != 0 {
            self.regs.transfer = Some(Transfer { descriptor: at, address, left: len });
            self.go_on();
        } else if control & CTL_WRITE != 0 {
            let ok = self.overwrite(address, len);
            self.finish(at, ok);
        } else {
            if control & CTL_SKIP != 0 {
                self.regs.offset += self.rest().len().min(len as usize) as u32;
            }
            self.finish(at, true);
        }
    }

    fn finish(&self, descriptor: u64, ok: bool) {
        let control = if ok { 0 } else { CTL_ERROR };
        self.memory.write(descriptor, &control.to_be_bytes());
    }

    /// Moves the next bytes of the transfer.
    fn go_on(&mut self) {
        let Some(mut t) = self.regs.transfer.take() else { return };
        let n = t.left.min(CHUNK);
        if !self.is_ram(t.address, u64::from(n), true) {
            return self.finish(t.descriptor, false);
        }
        let rest = self.rest();
        let copied = rest.len().min(n as usize);
        self.memory.write(t.address, &rest[..copied]);
        let mut at = copied as u32;
        while at < n {
            const ZEROS: [u8; 4096] = [0; 4096];
            let some = (n - at).min(ZEROS.len() as u32);
            self.memory.write(t.address + u64::from(at), &ZEROS[..some as usize]);
            at += some;
        }
        self.regs.offset += copied as u32;
        t.left -= n;
        t.address += u64::from(n);
        if t.left == 0 {
            return self.finish(t.descriptor, true);
        }
        self.regs.transfer = Some(t);
        self.more.set(self.more.now() + PAUSE);
    }

    /// Writes all of `len` bytes over the selected item, or nothing.
    fn overwrite(&mut self, address: u64, len: u32) -> bool {
        let key = self.regs.key;
        let Some(item) = self.items.get(&key).filter(|i| i.writable) else { return false };
        if len as usize > self.rest().len() || !self.is_ram(address, u64::from(len), false) {
            return false;
        }
        let data = self.regs.written.entry(key).or_insert_with(|| item.data.clone());
        let from = self.regs.offset as usize;
        self.memory.read(address, &mut data[from..from + len as usize]);
        self.regs.offset += len;
        true
    }
}

impl Device for FwCfg {
    fn read(&mut self, region: u32, offset: u64, width: u8) -> u64 {
        if region == DMA {
            let mut value = [0; 8];
            let from = offset as usize & 7;
            let n = (width as usize).min(8 - from);
            value[..n].copy_from_slice(&DMA_SIGNATURE[from..from + n]);
            return u64::from_le_bytes(value);
        }
        // The selector cannot be read.
        if offset != 1 || width != 1 {
            return u64::MAX;
        }
        let mut byte = [0];
        self.take(&mut byte);
        u64::from(byte[0])
    }

    fn read_many(&mut self, region: u32, offset: u64, width: u8, buf: &mut [u8]) {
        if (region, offset, width) == (CONTROL, 1, 1) {
            return self.take(buf);
        }
        for item in buf.chunks_exact_mut(width as usize) {
            item.copy_from_slice(&self.read(region, offset, width).to_le_bytes()[..width as usize]);
        }
    }

    fn write(&mut self, region: u32, offset: u64, width: u8, value: u64) {
        match (region, offset, width) {
            (CONTROL, 0, 2) => self.select(value as u16),
            (DMA, 0, 4) => self.regs.high = (value as u32).swap_bytes(),
            (DMA, 4, 4) => {
                let high = std::mem::take(&mut self.regs.high);
                self.start(u64::from(high) << 32 | u64::from((value as u32).swap_bytes()));
            }
            // Bytes written to the data port have been ignored since QEMU 2.4.
            _ => {}
        }
    }

    fn event(&mut self, event: Event) {
        if let Event::Timer(_) = event {
            self.go_on();
        }
    }

    fn reset(&mut self, _: ResetKind) {
        self.regs = Regs::default();
        self.more.cancel();
    }

    fn state(&mut self) -> &mut dyn State {
        &mut self.regs
    }

    fn restored(&mut self) {
        // The machine may have been built with other files.
        self.regs.offset = self.regs.offset.min(u32::MAX / 2);
    }
}
