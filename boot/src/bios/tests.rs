//! Services called as stubs call them, on a machine that is memory, a few ports and some disks.

use super::*;
use crate::memory::MemoryMap;
use crate::platform::tests::pc;
use std::collections::{BTreeMap, VecDeque};

mod boots;
mod disks;
mod keys;
mod options;
mod screen;

const MIB: u64 = 1 << 20;
/// Where the tests' frames are.
const FRAME: u64 = 0x8000;

/// A machine.
struct Fake {
    memory: Vec<u8>,
    /// What was written to ports, and what they read as when nothing was.
    ports: BTreeMap<u16, u8>,
    outs: Vec<(u16, u32)>,
    cmos: [u8; 128],
    index: u8,
    pci: u32,
    now: u64,
    disks: Vec<Vec<u8>>,
    changes: Vec<u64>,
    /// Answers that the next questions do not get yet.
    late: bool,
    answers: BTreeMap<Ticket, Result<Vec<u8>, ()>>,
    next: Ticket,
    typed: String,
    /// What comes in at COM1.
    input: VecDeque<u8>,
    a20: bool,
    /// The ROM of a network card at 0:3.0, and its base address register.
    rom: Vec<u8>,
    rom_base: u32,
    /// What the host bridge's PAM registers hold.
    pam: BTreeMap<u32, u32>,
}

impl Fake {
    fn new(disks: Vec<Vec<u8>>) -> Fake {
        Fake {
            memory: vec![0; 2 << 20],
            ports: BTreeMap::from([(0x3fd, 0x60), (0x64, 0), (0x21, 0xb8), (0x92, 2)]),
            outs: Vec::new(),
            cmos: [0; 128],
            index: 0,
            pci: 0,
            now: 0,
            changes: vec![0; disks.len()],
            disks,
            late: false,
            answers: BTreeMap::new(),
            next: 0,
            typed: String::new(),
            input: VecDeque::new(),
            a20: true,
            rom: Vec::new(),
            rom_base: 0,
            pam: BTreeMap::new(),
        }
    }
}

impl Host for Fake {
    fn read(&mut self, linear: u64, buf: &mut [u8]) {
        let base = u64::from(self.rom_base & !1);
        if self.rom_base & 1 != 0 && linear >= base && linear < base + self.rom.len() as u64 {
            let at = (linear - base) as usize;
            let n = buf.len().min(self.rom.len() - at);
            buf.fill(0xff);
            buf[..n].copy_from_slice(&self.rom[at..at + n]);
            return;
        }
        for (n, b) in (0..).zip(buf) {
            *b = self.memory.get(linear.wrapping_add(n) as usize).copied().unwrap_or(0xff);
        }
    }

    fn write(&mut self, linear: u64, data: &[u8]) {
        for (n, b) in (0..).zip(data) {
            if let Some(place) = self.memory.get_mut(linear.wrapping_add(n) as usize) {
                *place = *b;
            }
        }
    }

    fn ignore_a20(&mut self) {
        self.a20 = true;
    }

    fn inp(&mut self, port: u16, width: u8) -> u32 {
        match port {
            0x3f8 if !self.input.is_empty() => self.input.pop_front().unwrap_or_default().into(),
            0x3fd if !self.input.is_empty() => 0x61,
            0x71 => self.cmos[usize::from(self.index & 0x7f)].into(),
            0xcf8 => self.pci,
            // A host bridge at 0:0.0, an IDE controller at 0:1.1, perhaps a network card at 0:3.0, nothing else.
            0xcfc..=0xcff => {
                let (bdf, register) = (self.pci >> 8 & 0xffff, self.pci & 0xfc | u32::from(port & 3));
                let value: u32 = match (bdf, register & 0xfc) {
                    (0x00, 0) => 0x1237_8086,
                    (0x00, 8) => 0x0600_0002,
                    (0x08, 0) => 0x7000_8086,
                    (0x08, 0x0c) => 0x80_0000,
                    (0x09, 0) => 0x7010_8086,
                    (0x09, 8) => 0x0101_8000,
                    (0x18, 0) if !self.rom.is_empty() => 0x1000_1af4,
                    (0x18, 8) if !self.rom.is_empty() => 0x0200_0000,
                    (0x18, 0x30) if !self.rom.is_empty() => {
                        self.rom_base & ((self.rom.len().next_power_of_two() as u32).wrapping_neg() | 1)
                    }
                    (0x00, 0x58 | 0x5c) => {
                        (0..4).map(|n| self.pam.get(&(register & 0xfc | n)).map_or(0, |v| v << (8 * n))).sum()
                    }
                    (0x18, _) if !self.rom.is_empty() => 0,
                    (0x00 | 0x08 | 0x09, _) => 0,
                    _ => u32::MAX,
                };
                (value >> (8 * (register & 3))) & (u32::MAX >> (32 - 8 * u32::from(width)))
            }
            _ => self.ports.get(&port).copied().unwrap_or(0xff).into(),
        }
    }

    fn outp(&mut self, port: u16, _width: u8, value: u32) {
        self.outs.push((port, value));
        match port {
            0x70 => self.index = value as u8,
            0x71 => self.cmos[usize::from(self.index & 0x7f)] = value as u8,
            0xcf8 => self.pci = value,
            0xcfc..=0xcff => match (self.pci >> 8 & 0xffff, self.pci & 0xfc | u32::from(port & 3)) {
                (0x18, 0x30) => self.rom_base = value,
                (0x00, register @ 0x5a..0x60) => _ = self.pam.insert(register, value & 0xff),
                _ => {}
            },
            0x3f8 => self.typed.push(value as u8 as char),
            0x92 | 0x21 | 0xa1 => _ = self.ports.insert(port, value as u8),
            _ => {}
        }
    }

    fn now(&self) -> u64 {
        self.now
    }

    fn submit(&mut self, disk: usize, access: Access) -> Ticket {
        self.next += 1;
        let bytes = &mut self.disks[disk];
        let answer = match access {
            Access::Read { offset, len } => {
                bytes.get(offset as usize..(offset + len) as usize).map(<[u8]>::to_vec).ok_or(())
            }
            Access::Write { offset, data } => bytes
                .get_mut(offset as usize..offset as usize + data.len())
                .map(|place| {
                    place.copy_from_slice(&data);
                    Vec::new()
                })
                .ok_or(()),
        };
        self.answers.insert(self.next, answer);
        self.next
    }

    fn answer(&mut self, ticket: Ticket) -> Option<Result<Vec<u8>, ()>> {
        if self.late { None } else { self.answers.remove(&ticket) }
    }

    fn medium(&mut self, disk: usize) -> (u64, u64) {
        (self.disks[disk].len() as u64, self.changes[disk])
    }

    fn diskette(&mut self, disk: usize) -> Option<Diskette> {
        let of = |cylinders, sectors, sector_bytes| Diskette { cylinders, heads: 2, sectors, sector_bytes };
        Some(match self.disks[disk].len() >> 10 {
            360 => of(40, 9, 512),
            720 => of(80, 9, 512),
            1200 => of(80, 15, 512),
            1232 => of(77, 8, 1024),
            1440 => of(80, 18, 512),
            2880 => of(80, 36, 512),
            _ => return None,
        })
    }

    fn log(&mut self, _line: &str) {}
}

/// A machine with its BIOS.
struct Rig {
    host: Fake,
    bios: Bios,
}

/// Drives of these kinds with these contents, and COM1 as the mirror of the screen.
fn rig(drives: Vec<(DriveKind, Vec<u8>)>, change: impl FnOnce(&mut Options)) -> Rig {
    let mut options = Options {
        order: vec![DriveKind::Disk, DriveKind::Cd, DriveKind::Floppy, DriveKind::Net],
        serial: true,
        apm: true,
        ..Options::default()
    };
    change(&mut options);
    let memory = MemoryMap::new(64 * MIB, 0xc000_0000).unwrap().regions().to_vec();
    let named = |(disk, (kind, _)): (usize, &(DriveKind, Vec<u8>))| Drive {
        kind: *kind,
        disk,
        name: format!("{kind:?} {disk}"),
        read_only: *kind == DriveKind::Cd,
        floppy: if *kind == DriveKind::Floppy { 4 } else { 0 },
        place: None,
    };
    let config = Config { platform: pc(), memory, drives: drives.iter().enumerate().map(named).collect(), options };
    let mut rig = Rig { host: Fake::new(drives.into_iter().map(|d| d.1).collect()), bios: Bios::new(config) };
    rig.call(service::POST, Regs::default());
    rig.host.typed.clear();
    rig
}

impl Rig {
    /// Leaves a frame as a stub does and serves it once; gives the registers and what the stub is to do.
    fn ask(&mut self, service: u16, r: Regs, status: u16) -> (Regs, u16) {
        let mut f = [0; frame::LEN];
        r.put(&mut f);
        f[frame::SERVICE..frame::SERVICE + 2].copy_from_slice(&service.to_le_bytes());
        f[frame::STATUS..frame::STATUS + 2].copy_from_slice(&status.to_le_bytes());
        self.host.write(FRAME, &f);
        self.host.write(data::BLOCK, &[0x05, 0xb1, 0x00, 0x00, 0x00, 0x08]);
        self.bios.serve(&mut self.host);
        let mut f = [0; frame::LEN];
        self.host.read(FRAME, &mut f);
        (Regs::of_frame(&f), u16::from_le_bytes([f[frame::STATUS], f[frame::STATUS + 1]]))
    }

    /// Calls until the service is done, as the stub does.
    fn call(&mut self, service: u16, mut r: Regs) -> Regs {
        let mut status = frame::RETURN;
        for _ in 0..5000 {
            (r, status) = self.ask(service, r, status);
            if status == frame::RETURN {
                return r;
            }
            self.host.now += 1_000_000;
        }
        panic!("service {service:x} is never done");
    }

    fn word(&mut self, at: u64) -> u16 {
        let mut b = [0; 2];
        self.host.read(at, &mut b);
        u16::from_le_bytes(b)
    }
}

fn carry(r: &Regs) -> bool {
    r.flags & CF != 0
}

fn ax(ax: u16) -> Regs {
    Regs { eax: ax.into(), ..Regs::default() }
}

#[test]
fn the_rom_has_what_programs_look_for_and_vectors_lead_to_code() {
    let rom = Rom::build().unwrap();
    let rom = rom.bytes();
    assert_eq!(rom[0xfff0..0xfff5], [0xea, 0x5b, 0xe0, 0x00, 0xf0]);
    assert_eq!((rom[0xfffe], &rom[0xfff5..0xfffd]), (0xfc, &b"01/01/26"[..]));
    for (n, at) in rom::vectors().filter(|(n, _)| !matches!(n, 0x1d..=0x1f | 0x43)) {
        let code = rom[usize::from(at)];
        assert!(code == 0xe9 || code == 0xcf, "INT {n:x} leads to {code:x}");
        if code == 0xe9 {
            let by = i16::from_le_bytes([rom[usize::from(at) + 1], rom[usize::from(at) + 2]]);
            let to = at.wrapping_add(3).wrapping_add_signed(by);
            assert!((0x8000..0xa000).contains(&to) && rom[usize::from(to)] != 0, "INT {n:x} jumps to {to:x}");
        }
    }
    let header = rom.windows(4).step_by(16).position(|w| w == b"_32_").unwrap() * 16;
    assert_eq!(rom[header..header + 16].iter().fold(0u8, |s, b| s.wrapping_add(*b)), 0);
}

#[test]
fn post_leaves_vectors_data_areas_and_a_jump_to_the_option_roms() {
    let mut rig = rig(vec![(DriveKind::Disk, vec![0; 1 << 20])], |_| {});
    let r = rig.call(service::POST, Regs::default());
    assert_eq!((r.cs, r.ip, r.flags), (0xf000, rom::ROMS, 2));
    assert_eq!((rig.word(0x40e), rig.word(0x413), rig.word(0x475) as u8), (0x9fc0, 639, 1));
    assert_eq!((rig.word(0x4c), rig.word(0x4e)), (0xe3fe, 0xf000), "INT 13h");
    assert_eq!((rig.word(4 * 0x5d), rig.word(4 * 0x5d + 2)), (0xff53, 0xf000), "what nobody has taken returns");
    assert_eq!((rig.word(4 * 0x60), rig.word(4 * 0x67 + 2)), (0, 0), "these are for users");
    assert_eq!((rig.word(0x104), rig.word(0x106)), (0x3d, 0x9fc0), "INT 41h: the first disk's table");
    assert_eq!(rig.word(0x410), 0x4426, "no diskette drive, coprocessor, mouse, 80 columns, COM1 and COM2, LPT1");
}

#[test]
fn a_reset_with_shutdown_code_goes_on_where_the_program_said() {
    let mut rig = rig(Vec::new(), |_| {});
    rig.host.cmos[0x0f] = 0x05;
    rig.host.write(0x467, &[0x34, 0x12, 0x78, 0x56]);
    rig.host.write(0x4c, &[0xaa; 4]);
    let (r, _) = rig.ask(service::POST, Regs::default(), 0);
    assert_eq!((r.cs, r.ip), (0x5678, 0x1234));
    assert_eq!((rig.host.cmos[0x0f], rig.word(0x4c)), (0, 0xaaaa), "the vectors stay the program's");
}

#[test]
fn a_write_to_the_port_without_a_frame_does_nothing() {
    let mut rig = rig(Vec::new(), |_| {});
    let before = rig.host.memory.clone();
    rig.bios.serve(&mut rig.host);
    assert!(before == rig.host.memory);
}

#[test]
fn e820_tells_the_whole_map_and_the_older_calls_agree() {
    let mut rig = rig(Vec::new(), |_| {});
    let (mut next, mut seen) = (0, Vec::new());
    loop {
        let r = Regs { ebx: next, ecx: 20, edx: 0x534d_4150, es: 0x1000, edi: 0x10, ..ax(0) };
        let r = rig.call(0x15, Regs { eax: 0xe820, ..r });
        assert!(!carry(&r) && r.eax == 0x534d_4150 && r.ecx == 20);
        seen.extend_from_slice(&rig.host.memory[0x1_0010..0x1_0024]);
        next = r.ebx;
        if next == 0 {
            break;
        }
    }
    assert_eq!(seen, MemoryMap::new(64 * MIB, 0xc000_0000).unwrap().e820());
    assert!(carry(&rig.call(0x15, Regs { eax: 0xe820, ecx: 20, edx: 0, ..ax(0) })), "without the signature");
    let r = rig.call(0x15, ax(0xe801));
    assert_eq!((r.ax(), r.bx(), r.cx(), r.dx()), (0x3c00, 0x300, 0x3c00, 0x300));
    assert_eq!(rig.call(0x15, ax(0x8800)).ax(), 63 << 10);
    assert_eq!(rig.call(0x12, ax(0)).ax(), 639);
}

#[test]
fn block_move_copies_words_between_descriptors() {
    let mut rig = rig(Vec::new(), |_| {});
    rig.host.write(0x1_0000, b"twelve bytes");
    let mut table = [0; 0x30];
    table[0x10..0x16].copy_from_slice(&[0xff, 0xff, 0x00, 0x00, 0x01, 0x93]);
    table[0x18..0x1e].copy_from_slice(&[11, 0, 0x00, 0x00, 0x11, 0x93]);
    let ask = |rig: &mut Rig, table: &[u8]| {
        rig.host.write(0x2_0000, table);
        let r = rig.call(0x15, Regs { ecx: 6, es: 0x2000, ..ax(0x8700) });
        (carry(&r), r.ah())
    };
    rig.host.a20 = false;
    for (at, wrong) in [(0x18, 10), (0x15, 0x13), (0x15, 0x99), (0x1d, 0x91), (0x1d, 0x9b)] {
        let mut table = table;
        table[at] = wrong;
        assert_eq!(ask(&mut rig, &table), (true, 2), "{at:x} {wrong:x}");
    }
    assert_eq!(rig.host.memory[0x11_0000..0x11_000c], [0; 12]);
    assert_eq!(ask(&mut rig, &table), (false, 0));
    assert!(rig.host.a20);
    assert_eq!(&rig.host.memory[0x11_0000..0x11_000c], b"twelve bytes");
}

#[test]
fn the_processor_is_told_as_a_reset_leaves_it() {
    let mut rig = rig(Vec::new(), |_| {});
    let r = rig.call(0x15, ax(0xc910));
    assert_eq!((carry(&r), r.ah(), r.cx()), (false, 0, 0x06f2));
    for function in [0xc300, 0xc400, 0xc500, 0xc600, 0xc700, 0xc800, 0xc900] {
        let r = rig.call(0x15, ax(function));
        assert_eq!((carry(&r), r.ah()), (true, 0x86), "{function:x}: a PS/2's");
    }
}

#[test]
fn waiting_takes_guest_time_and_the_stub_sleeps_only_if_the_timer_wakes_it() {
    let mut rig = rig(Vec::new(), |_| {});
    let r = Regs { ecx: 0, edx: 5000, ..ax(0x8600) };
    let (r, status) = rig.ask(0x15, r, 0);
    assert_eq!(status, frame::HALT);
    rig.host.ports.insert(0x21, 0xff);
    rig.host.now = 4_999_999;
    let (r, status) = rig.ask(0x15, r, status);
    assert_eq!(status, frame::SPIN);
    rig.host.now = 5_000_000;
    let (r, status) = rig.ask(0x15, r, status);
    assert!(status == frame::RETURN && !carry(&r));
}

#[test]
fn ticks_are_read_set_and_midnight_is_told_once() {
    let mut rig = rig(Vec::new(), |_| {});
    rig.call(0x1a, Regs { ecx: 0x12, edx: 0x3456, ..ax(0x0100) });
    rig.host.write(0x470, &[1]);
    let r = rig.call(0x1a, ax(0));
    assert_eq!((r.cx(), r.dx(), r.al()), (0x12, 0x3456, 1));
    assert_eq!(rig.call(0x1a, ax(0)).al(), 0);
}

#[test]
fn pci_functions_are_found_and_registers_read_and_the_address_stays() {
    let mut rig = rig(Vec::new(), |_| {});
    rig.host.pci = 0x8000_1234;
    let r = rig.call(0x1a, ax(0xb101));
    assert_eq!((r.edx, r.ah(), r.bx(), carry(&r)), (0x2049_4350, 0, 0x0210, false));
    let r = rig.call(0x1a, Regs { ecx: 0x7010, edx: 0x8086, ..ax(0xb102) });
    assert_eq!((r.bx(), r.ah()), (0x0009, 0));
    let r = rig.call(0x1a, Regs { ecx: 0x06_0000, ..ax(0xb103) });
    assert_eq!((r.bx(), r.ah()), (0, 0));
    assert_eq!(rig.call(0x1a, Regs { ecx: 1, edx: 1, ..ax(0xb102) }).ah(), 0x86);
    assert_eq!(rig.call(0x1a, Regs { edx: 0xffff, ..ax(0xb102) }).ah(), 0x83);
    let r = rig.call(0x1a, Regs { ebx: 9, edi: 2, ..ax(0xb109) });
    assert_eq!((r.cx(), r.ah()), (0x7010, 0));
    assert_eq!(rig.call(0x1a, Regs { ebx: 9, edi: 3, ..ax(0xb109) }).ah(), 0x87, "not aligned");
    assert_eq!(rig.host.pci, 0x8000_1234);
}

#[test]
fn apm_connects_once_and_switches_off() {
    let mut rig = rig(Vec::new(), |_| {});
    let r = rig.call(0x15, ax(0x5300));
    assert_eq!((r.ax(), r.bx(), r.cx(), carry(&r)), (0x0102, 0x504d, 3, false));
    assert_eq!(rig.call(0x15, Regs { ebx: 1, ecx: 3, ..ax(0x5307) }).ah(), 3, "nobody is connected");
    let r = rig.call(0x15, ax(0x5303));
    assert_eq!((r.ax(), r.ebx, r.cx(), r.dx()), (0xf000, 0x9800, 0xf000, 0xf000));
    assert_eq!(rig.call(0x15, ax(0x5301)).ah(), 7);
    assert_eq!(rig.call(0x15, Regs { ecx: 0x0102, ..ax(0x530e) }).ax(), 0x0102);
    let mut latch = [0x5307, 1, 3, 0, 0, 0, 0];
    rig.bios.serve_latch(&mut rig.host, 2, &mut latch);
    let pm = rig.bios.config.platform.pm.unwrap();
    assert_eq!(rig.host.outs.last().unwrap().0, pm.base + 4);
    assert_eq!(rig.host.outs.last().unwrap().1 >> 10 & 0xf, u32::from(pm.s5) | 8);
    rig.bios.config.options.apm = false;
    let r = rig.call(0x15, ax(0x5300));
    assert!(carry(&r) && r.ah() == 0x86);
}

#[test]
fn a_serial_port_that_does_not_go_on_times_out() {
    let mut rig = rig(Vec::new(), |o| o.serial = false);
    assert_eq!(rig.call(0x14, Regs { edx: 0, ..ax(0x0141) }).ah() & 0x80, 0);
    assert_eq!(rig.host.typed, "A");
    rig.host.ports.insert(0x3fd, 0);
    let before = rig.host.now;
    assert_eq!(rig.call(0x14, Regs { edx: 0, ..ax(0x0142) }).ah() & 0x80, 0x80);
    assert!(rig.host.now - before >= 100_000_000 && rig.host.typed == "A");
    assert_eq!(rig.call(0x14, Regs { edx: 3, ..ax(0x0142) }).ah(), 0x80, "no COM4");
}

#[test]
fn nothing_that_a_guest_asks_makes_us_panic() {
    let image = (0..2880 * 512).map(|n| n as u8).collect::<Vec<u8>>();
    let mut rig =
        rig(vec![(DriveKind::Floppy, image.clone()), (DriveKind::Disk, image.clone()), (DriveKind::Cd, image)], |_| {});
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let services =
        [0x10, 0x11, 0x12, 0x13, 0x13, 0x13, 0x14, 0x15, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x40, 0x101, 0x102];
    for n in 0..60_000 {
        let service = services[random() as usize % services.len()];
        let mut r = Regs {
            eax: random() as u32,
            ebx: random() as u32,
            ecx: random() as u32,
            edx: random() as u32,
            esi: random() as u32,
            edi: random() as u32,
            ebp: random() as u32,
            ds: random() as u16,
            es: random() as u16,
            ..Regs::default()
        };
        if n % 2 == 0 {
            // More often what means something.
            r.set_dl([0, 1, 0x80, 0x81, 0xe0][random() as usize % 5]);
            (r.ds, r.es) = (0x3000, 0x3000);
            let packet = [16 + (random() as u8 & 8), 0, random() as u8 & 3, 0, 0, 0, 0, 0x40, random() as u8, 0, 0, 0];
            rig.host.write(0x3_0000 + u64::from(r.si()), &packet);
        }
        if n % 16 == 0 {
            let at = [0x400, data::MOUSE_HANDLER][random() as usize % 2] + random() % 0x100;
            rig.host.write(at, &random().to_le_bytes());
        }
        rig.host.late = n % 5 == 0;
        let (_, status) = rig.ask(service, r, (random() % 3) as u16);
        assert!(status <= frame::SPIN);
    }
}
