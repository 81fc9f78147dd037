//! QEMU's firmware configuration device (fw_cfg), on ports 510, 511 and 514.
//!
//! Source: QEMU's specification of the device (docs/specs/fw_cfg). A 16-bit selector at 510 picks an item, 511 gives
//! its bytes one after the other and zeros past its end; an eight-byte big-endian register at 514 takes the address of
//! a descriptor for transfers by DMA, the only way to write items. Items below key 20 are fixed, those above it are
//! files, named in the directory, key 19.
//!
//! A descriptor is fetched once. A transfer moves a bounded number of bytes under the guest's access; the rest follows
//! by a timer, which the specification allows for: clients poll the control word until it is clear (SeaBIOS, OVMF and
//! Linux's qemu_fw_cfg do). Where the descriptor or its buffer is not RAM, the transfer fails.

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

/// Makes an item's bytes, always the same number.
type Make = Arc<dyn Fn() -> Vec<u8> + Send + Sync>;

#[derive(Clone)]
struct Item {
    data: Vec<u8>,
    writable: bool,
    /// Asked for the bytes whenever a guest selects the item.
    make: Option<Make>,
}

impl Item {
    fn fixed(data: Vec<u8>) -> Item {
        Item { data, writable: false, make: None }
    }
}

/// What the device has to tell: filled by whoever assembles the machine.
#[derive(Clone, Default)]
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
        self.keys.insert(key, Item::fixed(data.into()));
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
        self.add_file(name, Item::fixed(data))
    }

    /// A file that is made anew, with the same length, whenever a guest selects it: of tables that tell of registers
    /// which the firmware programs before it reads them.
    ///
    /// # Errors
    /// As [`FwCfgItems::file`].
    pub fn made_file(&mut self, name: &str, make: impl Fn() -> Vec<u8> + Send + Sync + 'static) -> Result<(), String> {
        self.add_file(name, Item { data: make(), writable: false, make: Some(Arc::new(make)) })
    }

    /// A file of up to 64 KiB that guests can also overwrite. Reset brings `data` back.
    ///
    /// # Errors
    /// As [`FwCfgItems::file`], or when it is too large.
    pub fn writable_file(&mut self, name: &str, data: Vec<u8>) -> Result<(), String> {
        if data.len() > WRITABLE {
            return Err(format!("fw_cfg file {name:?} has {} bytes, writable ones {WRITABLE} at most", data.len()));
        }
        self.add_file(name, Item { data, writable: true, make: None })
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
        items.insert(FILE_DIR, Item::fixed(directory));
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
        self.make();
    }

    /// Makes the selected item's bytes, if it is one of those.
    fn make(&mut self) {
        if let Some(item) = self.items.get_mut(&self.regs.key)
            && let Some(make) = &item.make
        {
            let len = item.data.len();
            item.data = make();
            item.data.resize(len, 0);
        }
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
        self.make();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use emu::bench::Bench;

    const DESCRIPTOR: u64 = 0x1000;
    const BUFFER: u64 = 0x2000;

    fn rig(fill: impl FnOnce(&mut FwCfgItems)) -> Bench {
        let bench = Bench::new();
        let mut items = FwCfgItems::new();
        fill(&mut items);
        bench.part(|s| FwCfg::create(s, items));
        bench
    }

    fn read(b: &mut Bench, key: u16, len: usize) -> Vec<u8> {
        b.bus.pio_write(0x510, 2, u32::from(key));
        let mut buf = vec![0; len];
        b.bus.pio_read_many(0x511, 1, &mut buf);
        buf
    }

    /// The key and size of a file, as a guest finds it.
    fn find(b: &mut Bench, name: &str) -> Option<(u16, u32)> {
        let count = u32::from_be_bytes(read(b, FILE_DIR, 4).try_into().unwrap());
        (0..count).find_map(|_| {
            let mut e = [0; 64];
            b.bus.pio_read_many(0x511, 1, &mut e);
            let text = std::str::from_utf8(&e[8..]).unwrap().trim_end_matches('\0');
            let size = u32::from_be_bytes(e[..4].try_into().unwrap());
            (text == name).then_some((u16::from_be_bytes([e[4], e[5]]), size))
        })
    }

    /// Starts a transfer and gives its control word.
    fn dma(b: &mut Bench, control: u32, len: u32, address: u64) -> u32 {
        let d = u128::from(control) << 96 | u128::from(len) << 64 | u128::from(address);
        b.dma().write(DESCRIPTOR, &d.to_be_bytes());
        b.bus.pio_write(0x518, 4, (DESCRIPTOR as u32).swap_bytes());
        control_word(b)
    }

    fn control_word(b: &Bench) -> u32 {
        u32::from_be_bytes(b.dma().fetch(DESCRIPTOR))
    }

    #[test]
    fn the_signatures_tell_of_both_interfaces() {
        let mut b = rig(|_| {});
        assert_eq!(read(&mut b, 0, 6), b"QEMU\0\0");
        assert_eq!(read(&mut b, 1, 4), [3, 0, 0, 0]);
        assert_eq!(b.bus.pio_read(0x514, 4).to_le_bytes(), *b"QEMU");
        assert_eq!(b.bus.pio_read(0x518, 4).to_le_bytes(), *b" CFG");
        assert_eq!(b.inb(0x51b), b'G');
        assert_eq!(find(&mut b, "etc/e820"), None);
        assert_eq!(read(&mut b, 0x3fff, 3), [0; 3], "an item that is not there");
    }

    #[test]
    fn bytes_come_one_after_the_other_and_a_selection_starts_over() {
        let mut b = rig(|i| {
            i.cpus(4, 8);
            i.ram_size(0x1234_5678);
        });
        assert_eq!(read(&mut b, 5, 2), [4, 0]);
        assert_eq!(read(&mut b, 0xf, 2), [8, 0]);
        assert_eq!(read(&mut b, RAM_SIZE | WRITE_CHANNEL, 1), [0x78]);
        assert_eq!([b.inb(0x511), b.inb(0x511)], [0x56, 0x34]);
        b.outb(0x511, 0xff);
        assert_eq!(read(&mut b, 3, 8), 0x1234_5678u64.to_le_bytes(), "the data port does not write");
    }

    #[test]
    fn files_are_found_in_the_directory() {
        let mut b = rig(|i| {
            i.file("opt/org.example/a", vec![1, 2, 3]).unwrap();
            i.e820(&[(0, 0x9_f000, 1), (0xf_0000, 0x1_0000, 2)]).unwrap();
            i.file("bootorder", Vec::new()).unwrap();
        });
        let (key, size) = find(&mut b, "etc/e820").unwrap();
        assert_eq!(size, 40);
        let map = read(&mut b, key, 40);
        assert_eq!(map[8..20], [0, 0xf0, 9, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
        let (key, size) = find(&mut b, "opt/org.example/a").unwrap();
        assert_eq!((read(&mut b, key, 4), size), (vec![1, 2, 3, 0], 3));
        assert_eq!(find(&mut b, "bootorder").unwrap().1, 0);
    }

    #[test]
    fn made_files_are_made_when_they_are_selected_and_keep_their_length() {
        let count = Arc::new(std::sync::atomic::AtomicU8::new(0));
        let counter = count.clone();
        let mut b = rig(|i| {
            let make = move || vec![counter.load(std::sync::atomic::Ordering::Relaxed); 3];
            i.made_file("etc/made", make).unwrap();
        });
        let (key, size) = find(&mut b, "etc/made").unwrap();
        count.store(7, std::sync::atomic::Ordering::Relaxed);
        assert_eq!((size, read(&mut b, key, 4)), (3, vec![7, 7, 7, 0]));
    }

    #[test]
    fn bad_files_are_refused_by_name() {
        let mut i = FwCfgItems::new();
        i.file("a", Vec::new()).unwrap();
        assert!(i.file("a", Vec::new()).unwrap_err().contains("twice"));
        assert!(i.file(&"n".repeat(56), Vec::new()).unwrap_err().contains("55"));
        assert!(i.file("", Vec::new()).is_err());
        assert!(i.file("\u{e9}", Vec::new()).is_err());
        assert!(i.writable_file("big", vec![0; WRITABLE + 1]).unwrap_err().contains("65536"));
    }

    #[test]
    fn dma_reads_skips_and_pads_with_zeros() {
        let mut b = rig(|i| i.set(7, (0..100).collect::<Vec<u8>>()));
        b.dma().write(BUFFER, &[0xee; 200]);
        assert_eq!(dma(&mut b, 7 << 16 | CTL_SELECT | CTL_SKIP, 90, 0), 0);
        assert_eq!(dma(&mut b, CTL_READ, 20, BUFFER), 0);
        let mut got = [0; 21];
        b.dma().read(BUFFER, &mut got);
        assert_eq!(got[..10], [90, 91, 92, 93, 94, 95, 96, 97, 98, 99]);
        assert_eq!(got[10..], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xee]);
        assert_eq!(b.inb(0x511), 0, "both interfaces share the offset");
        assert_eq!(dma(&mut b, CTL_SKIP, u32::MAX, 0), 0);
    }

    #[test]
    fn the_upper_half_of_the_address_counts_once() {
        let mut b = rig(|_| {});
        b.bus.pio_write(0x514, 4, 1u32.swap_bytes());
        assert_eq!(dma(&mut b, CTL_READ | CTL_SELECT, 4, BUFFER), CTL_READ | CTL_SELECT, "no RAM at 4 GiB: no answer");
        assert_eq!(dma(&mut b, CTL_READ | CTL_SELECT, 4, BUFFER), 0);
        assert_eq!(b.dma().fetch(BUFFER), *b"QEMU");
    }

    #[test]
    fn only_writable_files_are_written_and_only_whole() {
        let mut b = rig(|i| {
            i.file("fixed", vec![1; 8]).unwrap();
            i.writable_file("notes", vec![2; 8]).unwrap();
        });
        b.dma().write(BUFFER, &[9; 16]);
        let (fixed, notes) = (find(&mut b, "fixed").unwrap().0, find(&mut b, "notes").unwrap().0);
        let write = |b: &mut Bench, key: u16, len| dma(b, u32::from(key) << 16 | CTL_SELECT | CTL_WRITE, len, BUFFER);
        assert_eq!(write(&mut b, fixed, 8), CTL_ERROR);
        assert_eq!(write(&mut b, notes, 9), CTL_ERROR);
        assert_eq!(read(&mut b, notes, 8), [2; 8]);
        assert_eq!(write(&mut b, notes, 3), 0);
        assert_eq!(dma(&mut b, CTL_WRITE, 3, BUFFER), 0);
        assert_eq!(dma(&mut b, CTL_WRITE, 3, BUFFER), CTL_ERROR, "two bytes are left");
        assert_eq!(read(&mut b, notes, 8), [9, 9, 9, 9, 9, 9, 2, 2]);
        b.machine.reset(ResetKind::System);
        assert_eq!(read(&mut b, notes, 8), [2; 8]);
    }

    #[test]
    fn a_large_transfer_goes_on_in_pieces_until_it_is_done() {
        let mut b = rig(|i| i.set(0x11, vec![0x5a; 3 * CHUNK as usize]));
        let ram = b.machine.space.ram().alloc("more", 4 << 20).unwrap();
        let high = 1 << 32;
        let id = b.machine.space.add_memory(high, 4 << 20, 0, emu::Rights::ReadWrite, emu::Backing::Ram(ram.start));
        b.machine.space.enable(id, high, true);
        let control = 0x11 << 16 | CTL_SELECT | CTL_READ;
        assert_eq!(dma(&mut b, control, 3 * CHUNK + 5, high), control, "still in progress");
        assert_eq!(b.dma().fetch::<1>(high + u64::from(CHUNK) - 1), [0x5a]);
        assert_eq!(b.dma().fetch::<1>(high + u64::from(CHUNK)), [0]);
        b.advance(PAUSE);
        b.advance(PAUSE);
        assert_eq!(control_word(&b), control);
        b.advance(PAUSE);
        assert_eq!(control_word(&b), 0);
        assert_eq!(b.dma().fetch::<2>(high + u64::from(3 * CHUNK) - 1), [0x5a, 0]);
    }

    #[test]
    fn transfers_to_where_no_ram_is_fail_at_once() {
        let mut b = rig(|_| {});
        assert_eq!(dma(&mut b, CTL_SELECT | CTL_READ, u32::MAX, BUFFER), CTL_ERROR);
        assert_eq!(dma(&mut b, CTL_SELECT | CTL_READ, 4, Bench::RAM - 2), CTL_ERROR);
        assert_eq!(dma(&mut b, CTL_SELECT | CTL_READ, 4, u64::MAX - 1), CTL_ERROR);
    }
}
