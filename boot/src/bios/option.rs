//! Option ROMs (Plug and Play BIOS Specification 1.0A, 3; PCI Firmware Specification 3.0, 5; BIOS Boot Specification 1.01).
//!
//! After POST each ROM is initialized: first those of the ISA bus where they are, then copies of those behind PCI ROM
//! base addresses, C8000 upwards. The code of a ROM runs in the guest, so it is entered as everything is here: the
//! service puts a return address onto the fresh stack that its stub made, and returns to the ROM's entry. The RETF
//! there comes to the stub again, and the service goes on with the next ROM. Its ROMs behind it, it goes to INT 19h, by
//! its vector.
//!
//! ROMs keep what they initialize with in memory of [`pmm`].

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::post::START_FLAGS;
use super::{Call, Flow, Regs, data, linear, pci, pmm, rom};

/// Where ROMs may be, and the steps in which they are looked for.
const AREA: std::ops::Range<u64> = 0xc_8000..0xf_0000;
const STEP: u64 = 0x800;
/// Bytes of the units that ROMs count their length in.
const UNIT: usize = 512;
/// Images in a PCI ROM, and headers in one of them, that are looked at.
const MOST: usize = 16;
/// Host bridges that shadow the area, in 16 KiB each of which half a register from 5B on says what memory does.
const SHADOWING: [u32; 3] = [0x1237_8086, 0x7190_8086, 0x7192_8086];
const PAM: u16 = 0x5b;
const PAM_STEP: u64 = 0x4000;
const BUS: u8 = 0;
const READ: u8 = 1;
const READ_WRITE: u8 = 3;

/// Interrupts that ROMs of the time before the boot specification take over.
const BOOT_FAILED: u8 = 0x18;
const BOOT: u8 = 0x19;

/// A ROM that is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Rom {
    segment: u16,
    /// What it calls itself.
    name: String,
    /// The PCI function that it is of.
    function: Option<u16>,
    /// Boot entry vector.
    bev: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Job {
    /// Initialize the ROM at this address, which is that of a PCI function.
    Initialize(u64, Option<u16>),
    /// Copy it from a PCI function first.
    Copy(u16),
    /// Let the ROM in this segment hook INT 13h, by this vector.
    Connect(u16, u16, Option<u16>),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    jobs: VecDeque<Job>,
    /// What was entered and has not returned.
    running: Option<Job>,
    /// Where the next copy goes.
    next: u64,
    roms: Vec<Rom>,
}

/// Service [`super::service::ROMS`]: POST is over, or a ROM has returned.
pub(super) fn service(c: &mut Call) -> Flow {
    match c.state.options.running.take() {
        None => begin(c),
        Some(Job::Initialize(at, function)) => initialized(c, at, function),
        Some(_) => {}
    }
    while let Some(job) = c.state.options.jobs.pop_front() {
        match job {
            Job::Copy(function) => copy(c, function),
            Job::Initialize(at, function) => {
                enter(c, (at >> 4) as u16, 3, function, rom::ROMS);
                c.state.options.running = Some(job);
                return Flow::Done;
            }
            Job::Connect(segment, vector, function) => {
                enter(c, segment, vector, function, rom::ROMS);
                c.state.options.running = Some(job);
                return Flow::Done;
            }
        }
    }
    lock(c);
    pmm::stop(c);
    let (segment, offset) = vector(c, BOOT);
    interrupt(c, segment, offset, rom::BOOT);
    Flow::Done
}

/// Looks for ROMs.
fn begin(c: &mut Call) {
    let mut found = State { next: AREA.start, ..State::default() };
    // Where nothing shadows, what is there is memory, with the copies of the last start.
    shadow(c, AREA.start, AREA.end, BUS);
    let bus = shadows(c);
    let mut at = AREA.start;
    while bus && at < AREA.end {
        let len = whole(c, at, AREA.end - at).map_or(STEP, |len| len as u64);
        if len > STEP {
            found.jobs.push_back(Job::Initialize(at, None));
            found.next = (at + len).next_multiple_of(PAM_STEP);
        }
        at = (at + len).next_multiple_of(STEP);
    }
    let all = pci::functions(c);
    found.jobs.extend(all.into_iter().filter(|f| rom_size(c, *f) > 0).map(Job::Copy));
    c.state.options = found;
    pmm::start(c);
}

/// The length of the ROM at `at`, if one is there and its bytes add up to zero.
fn whole(c: &mut Call, at: u64, room: u64) -> Option<usize> {
    let mut head = [0; 3];
    c.host.read(at, &mut head);
    let len = usize::from(head[2]) * UNIT;
    if head[..2] != [0x55, 0xaa] || len == 0 || len as u64 > room {
        return None;
    }
    let mut bytes = vec![0; len];
    c.host.read(at, &mut bytes);
    adds_up(&bytes).then_some(len)
}

fn adds_up(bytes: &[u8]) -> bool {
    bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)) == 0
}

fn shadows(c: &mut Call) -> bool {
    SHADOWING.contains(&pci::read(c, 0, 0, 4))
}

/// Says what the memory from `from` to `to` does.
fn shadow(c: &mut Call, from: u64, to: u64, rights: u8) {
    if !shadows(c) {
        return;
    }
    let part = |at: u64| ((at - AREA.start) / PAM_STEP) as u16;
    for n in part(from)..part(to.next_multiple_of(PAM_STEP)) {
        let (register, shift) = (PAM + n / 2, 4 * (n % 2));
        let others = pci::read(c, 0, register, 1) & !(0xf << shift);
        pci::write(c, 0, register, 1, others | u32::from(rights) << shift);
    }
}

/// What is in use can no more be written, as a ROM's memory is after POST.
fn lock(c: &mut Call) {
    let end = c.state.options.next;
    let roms = c.state.options.roms.iter();
    if let Some(first) = roms.filter(|r| r.function.is_some()).map(|r| u64::from(r.segment) << 4).min() {
        shadow(c, first & !(PAM_STEP - 1), end, READ);
        shadow(c, end.next_multiple_of(PAM_STEP), AREA.end, BUS);
    } else {
        // All of them have taken themselves away.
        shadow(c, AREA.start, AREA.end, BUS);
    }
}

/// Bytes of a function's expansion ROM. Display adapters do without theirs, as INT 10h is ours.
fn rom_size(c: &mut Call, function: u16) -> u32 {
    const DISPLAY: u32 = 3;
    if pci::read(c, function, 0x0e, 1) & 0x7f != 0 || pci::read(c, function, 0x0b, 1) == DISPLAY {
        return 0;
    }
    let old = pci::read(c, function, 0x30, 4);
    pci::write(c, function, 0x30, 4, 0xffff_f800);
    let mask = pci::read(c, function, 0x30, 4) & 0xffff_f800;
    pci::write(c, function, 0x30, 4, old);
    mask.wrapping_neg()
}

/// Copies the ROM of a function into the area, to be initialized next.
fn copy(c: &mut Call, function: u16) {
    let name = format!("{:02x}:{:02x}.{}", function >> 8, function >> 3 & 31, function & 7);
    let image = match mapped(c, function) {
        Ok(image) => image,
        Err(why) => return complain(c, &format!("option ROM of {name}: {why}")),
    };
    let at = c.state.options.next;
    let end = (at + image.len() as u64).next_multiple_of(STEP);
    if end > AREA.end {
        return complain(c, &format!("option ROM of {name}: no room for {} KiB", image.len() >> 10));
    }
    shadow(c, at, end, READ_WRITE);
    c.host.write(at, &image);
    c.host.write(at + image.len() as u64, &vec![0; (end - at) as usize - image.len()]);
    c.state.options.jobs.push_front(Job::Initialize(at, Some(function)));
}

fn complain(c: &mut Call, line: &str) {
    c.host.log(line);
    c.print(&format!("{line}\n"));
}

/// The image for this machine in the ROM of a function, which decodes its address only meanwhile.
fn mapped(c: &mut Call, function: u16) -> Result<Vec<u8>, String> {
    let size = rom_size(c, function);
    if !size.is_power_of_two() {
        return Err("it is not there".to_owned());
    }
    // Addresses are given out from the other end.
    let end = *c.config.platform.pci.window32.end();
    let at = end.saturating_sub(size - 1) & !(size - 1);
    let (old, command) = (pci::read(c, function, 0x30, 4), pci::read(c, function, 0x04, 2));
    pci::write(c, function, 0x30, 4, at | 1);
    pci::write(c, function, 0x04, 2, command | 2);
    let image = image(c, function, at.into(), size.into());
    pci::write(c, function, 0x04, 2, command);
    pci::write(c, function, 0x30, 4, old);
    image
}

/// The image for the PC/AT, for this device, in the ROM at `base`.
fn image(c: &mut Call, function: u16, base: u64, size: u64) -> Result<Vec<u8>, String> {
    let ids = pci::read(c, function, 0, 4);
    let mut at = 0;
    let mut why = "no image for a PC".to_owned();
    for _ in 0..MOST {
        let mut head = [0; 0x1a];
        c.host.read(base + at, &mut head);
        let place = at + u64::from(u16::from_le_bytes([head[0x18], head[0x19]]));
        let mut pcir = [0; 0x18];
        c.host.read(base + place, &mut pcir);
        if head[..2] != [0x55, 0xaa] || pcir[..4] != *b"PCIR" {
            break;
        }
        let word = |n: usize| u16::from_le_bytes([pcir[n], pcir[n + 1]]);
        let len = u64::from(head[2]) * UNIT as u64;
        if pcir[0x14] == 0 {
            if !is_for(c, ids, base + place, word(4), word(6), word(8), pcir[0x0c]) {
                let (vendor, device) = (ids as u16, ids >> 16);
                why = format!("it is for {:04x}:{:04x}, not {vendor:04x}:{device:04x}", word(4), word(6));
            } else if len == 0 || at + len > size {
                why = "its length is wrong".to_owned();
            } else {
                let mut bytes = vec![0; len as usize];
                c.host.read(base + at, &mut bytes);
                if adds_up(&bytes) {
                    return Ok(bytes);
                }
                why = "its checksum is wrong".to_owned();
            }
        }
        at += u64::from(word(0x10)) * UNIT as u64;
        if pcir[0x15] & 0x80 != 0 || word(0x10) == 0 || at >= size {
            break;
        }
    }
    Err(why)
}

/// Whether an image names a device, also in the list of further ones that revision 3 has.
fn is_for(c: &mut Call, ids: u32, pcir: u64, vendor: u16, device: u16, list: u16, revision: u8) -> bool {
    let wanted = (ids >> 16) as u16;
    let listed = |c: &mut Call| {
        let others = (0..64).map(|n| c.word(pcir + u64::from(list) + 2 * n));
        others.take_while(|id| *id != 0).any(|id| id == wanted)
    };
    ids as u16 == vendor && (device == wanted || revision >= 3 && list != 0 && listed(c))
}

/// Enters a ROM's code, whose RETF leads to `back` in ours.
fn enter(c: &mut Call, segment: u16, offset: u16, function: Option<u16>, back: u16) {
    c.leave(&[back, data::ROM_SEGMENT]);
    c.r = Regs {
        eax: function.unwrap_or(0).into(),
        ebx: 0xffff,
        edx: 0xffff,
        es: data::ROM_SEGMENT,
        edi: rom::PNP.into(),
        cs: segment,
        ip: offset,
        flags: START_FLAGS,
        ..Regs::default()
    };
}

/// Enters an interrupt's handler, whose IRET leads to `back` in ours.
fn interrupt(c: &mut Call, segment: u16, offset: u16, back: u16) {
    c.leave(&[back, data::ROM_SEGMENT, START_FLAGS]);
    c.r = Regs { cs: segment, ip: offset, flags: 2, ..Regs::default() };
}

/// Segment and offset of an interrupt's handler.
fn vector(c: &mut Call, n: u8) -> (u16, u16) {
    let at = 4 * u64::from(n);
    (c.word(at + 2), c.word(at))
}

/// A ROM's initialization is over: it may have become shorter, or have removed itself.
fn initialized(c: &mut Call, at: u64, function: Option<u16>) {
    let mut head = [0; 0x1c];
    c.host.read(at, &mut head);
    let len = u64::from(head[2]) * UNIT as u64;
    if head[..2] != [0x55, 0xaa] || len == 0 || at + len > AREA.end {
        return;
    }
    if function.is_some() {
        c.state.options.next = (at + len).next_multiple_of(STEP);
    }
    let segment = (at >> 4) as u16;
    let mut rom = Rom { segment, name: "option ROM".to_owned(), function, bev: None };
    let mut header = u16::from_le_bytes([head[0x1a], head[0x1b]]);
    for _ in 0..MOST {
        let mut pnp = [0; 0x20];
        c.host.read(linear(segment, header), &mut pnp);
        if header == 0 || pnp[..4] != *b"$PnP" {
            break;
        }
        let word = |n: usize| u16::from_le_bytes([pnp[n], pnp[n + 1]]);
        let (next, product, bcv, bev) = (word(0x06), word(0x10), word(0x16), word(0x1a));
        if bcv != 0 {
            c.state.options.jobs.push_back(Job::Connect(segment, bcv, function));
        }
        if bev != 0 && rom.bev.is_none() {
            rom.bev = Some(bev);
            rom.name = product_name(c, segment, product).unwrap_or(rom.name);
        }
        header = next;
    }
    c.host.log(&format!("option ROM at {at:05x}, {} KiB: {}", len >> 10, rom.name));
    c.state.options.roms.push(rom);
}

/// What a ROM calls itself, as far as it can be shown.
fn product_name(c: &mut Call, segment: u16, offset: u16) -> Option<String> {
    let mut text = [0; 48];
    c.host.read(linear(segment, offset), &mut text);
    let printable = text.iter().take_while(|b| (0x20..0x7f).contains(*b)).map(|b| char::from(*b));
    let name = printable.collect::<String>();
    (offset != 0 && !name.is_empty()).then_some(name)
}

/// ROMs that can boot by themselves.
pub(super) fn bootable(c: &Call) -> Vec<usize> {
    let roms = c.state.options.roms.iter().enumerate();
    roms.filter(|(_, rom)| rom.bev.is_some()).map(|(n, _)| n).collect()
}

/// What such a ROM calls itself.
pub(super) fn name(c: &Call, rom: usize) -> String {
    c.state.options.roms.get(rom).map_or_else(|| "option ROM".to_owned(), |rom| rom.name.clone())
}

/// Boots from such a ROM. When it returns, the next in order follows.
pub(super) fn boot(c: &mut Call, rom: usize) {
    let rom = c.state.options.roms.get(rom).cloned();
    if let Some((rom, bev)) = rom.and_then(|rom| rom.bev.map(|bev| (rom, bev))) {
        enter(c, rom.segment, bev, rom.function, rom::BOOT_FAILED);
    }
}

/// Whether a ROM has taken INT 18h, which is how ROMs of the time before the boot specification boot.
pub(super) fn is_hooked(c: &mut Call) -> bool {
    vector(c, BOOT_FAILED) != (data::ROM_SEGMENT, rom::BOOT_FAILED)
}

/// Boots by that.
pub(super) fn boot_hook(c: &mut Call) {
    let (segment, offset) = vector(c, BOOT_FAILED);
    interrupt(c, segment, offset, rom::BOOT_FAILED);
}

/// Service [`super::service::PNP`], the entry of the installation check that ROMs are given: there is the version of the
/// boot specification, and nothing else.
pub(super) fn plug_and_play(c: &mut Call) -> Flow {
    const VERSION: u16 = 0x60;
    const UNSUPPORTED: u16 = 0x82;
    let asked = c.argument(0);
    if asked == VERSION {
        let to = linear(c.argument(2), c.argument(1));
        c.set_word(to, 0x0101);
    }
    c.r.set_ax(if asked == VERSION { 0 } else { UNSUPPORTED });
    Flow::Done
}
