//! The built-in BIOS as a guest calls it.

mod guest;
mod linux;

use std::path::PathBuf;

use guest::{BUFFER, Call, DATA, SUMMED};
use machine_tests::{Scratch, guest as material, run};

/// A call by interrupt and AX; the rest is zero.
fn call(int: u8, ax: u16) -> Call {
    Call { int, eax: ax.into(), es: BUFFER, ds: DATA, ..Call::default() }
}

/// What comes out of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Answer {
    eax: u32,
    ebx: u32,
    ecx: u32,
    edx: u32,
    carry: bool,
    sum: u32,
}

/// The sum that the guest makes of its buffer when it begins with these bytes.
fn sum(bytes: &[u8]) -> u32 {
    let all = bytes.iter().copied().chain(std::iter::repeat(0)).take(SUMMED);
    all.fold(0u32, |sum, b| sum.rotate_left(5).wrapping_add(b.into()))
}

/// Data that calls point to, at these offsets in [`DATA`]: packets for reading and writing, a table for moving memory.
const READ: u32 = 0;
const WRITE: u32 = 0x10;
const PARAMETERS: u32 = 0x20;
const MOVE: u32 = 0x80;
const IMAGE: u32 = 0xc0;
const SHORT: u32 = 0xe0;

fn data() -> Vec<u8> {
    let mut data = vec![0; 0x200];
    let [low, high] = BUFFER.to_le_bytes();
    data[0..16].copy_from_slice(&[16, 0, 2, 0, 0, 0, low, high, 120, 0, 0, 0, 0, 0, 0, 0]);
    // 64 bytes from the data's own segment, and what follows.
    let [low, high] = DATA.to_le_bytes();
    data[16..32].copy_from_slice(&[16, 0, 1, 0, 0, 0, low, high, 150, 0, 0, 0, 0, 0, 0, 0]);
    data[0x20] = 0x1a;
    // From the data to the buffer, as the caller sees memory.
    data[0x90..0x96].copy_from_slice(&[0xff, 0xff, 0x00, 0x80, 0x03, 0x93]);
    data[0x98..0x9e].copy_from_slice(&[0xff, 0xff, 0x00, 0x00, 0x03, 0x93]);
    // The diskette at sector 20 of the disc in the secondary channel's master.
    (data[0xc0], data[0xc1], data[0xc3], data[0xc4]) = (0x13, 2, 1, 20);
    // As that of the move, but too short.
    data.copy_within(0x80..0xa0, 0xe0);
    data[0xf8..0xfa].copy_from_slice(&[30, 0]);
    data
}

/// A disc with nothing to boot, and a diskette's image at sector 20.
fn disc() -> Vec<u8> {
    let mut disc = vec![0; 20 * 2048 + (1440 << 10)];
    disc[20 * 2048..].chunks_mut(512).zip(0x1000u32..).for_each(|(s, n)| s[..4].copy_from_slice(&n.to_le_bytes()));
    disc
}

/// All services but those that never return. Those whose answers move with time come with `false`.
fn calls() -> Vec<(Call, bool)> {
    let key = Call { ecx: 0x1e61, ..call(0x16, 0x0500) };
    let disk = |ax: u16| Call { edx: 0x80, ..call(0x13, ax) };
    let chs = |ax: u16, sector: u32| Call { ecx: sector, edx: 0x0180, ..call(0x13, ax) };
    let packet = |ax: u16, at: u32| Call { esi: at, ..disk(ax) };
    let image = |ax: u16| Call { edx: 0x7f, esi: IMAGE, ..call(0x13, ax) };
    let apm = |function: u16, ebx: u32, ecx: u32| Call { ebx, ecx, ..call(0x15, 0x5300 | function) };
    vec![
        (call(0x11, 0), true),
        (call(0x12, 0), true),
        (Call { ebx: 7, ..call(0x10, 0x0e00 | u16::from(b'.')) }, true),
        (call(0x10, 0x0f00), true),
        (disk(0x0000), true),
        (chs(0x0202, 8), true),
        (chs(0x0401, 8), true),
        (disk(0x0800), true),
        (disk(0x1000), true),
        (disk(0x1500), true),
        (Call { ebx: 0x55aa, ..disk(0x4100) }, true),
        (packet(0x4200, READ), true),
        (packet(0x4300, WRITE), true),
        (packet(0x4400, READ), true),
        (packet(0x4700, READ), true),
        (packet(0x4800, PARAMETERS), true),
        (call(0x13, 0x0800), true),
        (call(0x13, 0x0000), true),
        (Call { ecx: 3, ..call(0x13, 0x0201) }, true),
        (Call { ecx: 3, ..call(0x13, 0x0401) }, true),
        (call(0x40, 0x0100), true),
        (call(0x13, 0x1500), true),
        (call(0x13, 0x1600), true),
        (Call { ecx: 0x4f12, ..call(0x13, 0x1800) }, true),
        (image(0x4b01), true),
        (image(0x4d00), true),
        (image(0x4a00), true),
        (Call { ecx: 5, ..call(0x13, 0x0202) }, true),
        (Call { edx: 1, ecx: 3, ..call(0x13, 0x0201) }, true),
        (Call { edx: 0x7f, ds: BUFFER, ..call(0x13, 0x4b00) }, true),
        (Call { esi: PARAMETERS, edx: 0xe0, ..call(0x13, 0x4800) }, true),
        (disk(0x0100), true),
        (Call { edx: 3, ..call(0x14, 0x0300) }, true),
        (call(0x14, 0x0300), true),
        (Call { edx: 0x534d_4150, ecx: 20, ..call(0x15, 0xe820) }, true),
        (call(0x15, 0xe801), true),
        (call(0x15, 0x8800), true),
        (call(0x15, 0x2403), true),
        (call(0x15, 0x2400), true),
        (call(0x15, 0x2402), true),
        (Call { ecx: 16, esi: MOVE, es: DATA, ..call(0x15, 0x8700) }, true),
        (call(0x15, 0x2402), true),
        (Call { ecx: 16, esi: SHORT, es: DATA, ..call(0x15, 0x8700) }, true),
        (Call { not_real: true, esi: MOVE, es: DATA, ..call(0x15, 0x8900) }, false),
        (call(0x15, 0x2401), true),
        (Call { ebx: 0x100, edx: 3000, ..call(0x15, 0x8300) }, true),
        (call(0x15, 0x8301), true),
        (call(0x15, 0x8a00), true),
        (call(0x15, 0x9000), true),
        (call(0x15, 0x9100), true),
        (Call { ecx: 0, edx: 3000, ..call(0x15, 0x8600) }, true),
        (call(0x15, 0x4f1e), true),
        (call(0x15, 0xc000), true),
        (call(0x15, 0xc100), true),
        (call(0x15, 0xc910), true),
        (call(0x15, 0xc300), true),
        // What the mode before has connected is let go.
        (apm(4, 0, 0), false),
        (apm(0, 0, 0), true),
        (apm(1, 0, 0), true),
        (apm(1, 0, 0), true),
        (apm(5, 0, 0), true),
        (apm(6, 0, 0), true),
        (apm(7, 1, 1), true),
        (apm(8, 1, 1), true),
        (apm(9, 1, 0), true),
        (apm(0x0a, 1, 0), true),
        (apm(0x0b, 0, 0), true),
        (apm(0x0c, 1, 0), true),
        (apm(0x0d, 1, 1), true),
        (apm(0x0e, 0, 0x0102), true),
        (apm(0x0f, 1, 1), true),
        (apm(0x10, 0, 0), true),
        (apm(0x11, 0, 0), true),
        (apm(4, 0, 0), true),
        (apm(2, 0, 0), true),
        (apm(4, 0, 0), true),
        (call(0x15, 0x1234), true),
        (key, true),
        (call(0x16, 0x0100), true),
        (call(0x16, 0x0000), true),
        (call(0x16, 0x1100), true),
        (call(0x16, 0x0200), true),
        (call(0x16, 0x1200), true),
        (call(0x17, 0x0200), true),
        (call(0x1a, 0x0000), false),
        (call(0x1a, 0x0200), false),
        (call(0x1a, 0x0400), true),
        (call(0x1a, 0xb101), true),
        (Call { ecx: 0x7010, edx: 0x8086, ..call(0x1a, 0xb102) }, true),
        (Call { ebx: 8, edi: 0, ..call(0x1a, 0xb10a) }, true),
    ]
}

/// Index of a call in the list.
fn index(calls: &[(Call, bool)], int: u8, ax: u32) -> usize {
    calls.iter().position(|(c, _)| (c.int, c.eax) == (int, ax)).expect("a call of the list")
}

fn answers(console: &str, mode: char) -> Vec<Answer> {
    let numbers = |line: &str| line.split(' ').map(|w| u32::from_str_radix(w, 16).unwrap_or(!0)).collect::<Vec<u32>>();
    let lines = console.lines().filter_map(|l| Some(&l[l.find(&format!("R{mode} "))? + 3..]));
    let mut list = Vec::new();
    for n in lines.map(numbers) {
        assert_eq!((n.len(), n[0] as usize), (9, list.len()), "a whole line in order");
        list.push(Answer { eax: n[1], ebx: n[2], ecx: n[3], edx: n[4], carry: n[7] & 1 != 0, sum: n[8] });
    }
    list
}

#[test]
fn every_service_answers_alike_in_real_mode_in_v86_mode_under_a_monitor_and_from_an_emulator() {
    let scratch = Scratch::new("bios");
    let mut calls = calls();
    // For the protected-mode entries.
    calls.push((call(0x15, 0x5303), true));
    let list: Vec<Call> = calls.iter().map(|c| c.0).collect();
    let image = guest::disk(&list, &data(), 8 << 20);
    let path: PathBuf = scratch.path("disk.img").into();
    std::fs::write(&path, &image).unwrap();
    let disk = format!("disk.0.path={}", path.display());
    let floppy: Vec<u8> = (0..2880u32).flat_map(|n| [n.to_le_bytes(); 128].concat()).collect();
    let others = [("floppy.0", &floppy), ("cd.0", &disc())].map(|(drive, bytes)| {
        let path = scratch.path(drive);
        std::fs::write(&path, bytes).unwrap();
        format!("{drive}.path={path}")
    });
    let words = ["-o", "clock=instructions", "-o", &disk, "-o", &others[0], "-o", &others[1]];
    let ended = run(&words, 120);
    let [real, v86, trapped, emulator] = ['r', 'v', 't', 'e'].map(|mode| answers(&ended.console, mode));
    assert_eq!(real.len(), list.len(), "{}\n{}", ended.console, ended.stderr);
    for (n, (c, steady)) in calls.iter().enumerate() {
        for (mode, other) in [("v86", &v86), ("trapped", &trapped), ("emulator", &emulator)] {
            let other = other.get(n).unwrap_or_else(|| panic!("{mode} ends at {c:x?}\n{}", ended.console));
            assert!(!steady || real[n] == *other, "{mode}: {c:x?}: {:x?}, not {other:x?}", real[n]);
        }
    }
    // What some of them must say.
    let of = |int: u8, ax: u32| &trapped[index(&calls, int, ax)];
    assert_eq!(of(0x12, 0).eax & 0xffff, 639);
    assert_eq!(of(0x13, 0x0202).sum, sum(&image[(63 + 7) * 512..(63 + 9) * 512]), "read by CHS");
    assert_eq!(of(0x13, 0x4200).sum, sum(&image[120 * 512..122 * 512]), "read by packet");
    assert_eq!(std::fs::read(&path).unwrap()[150 * 512..150 * 512 + 0x80], data()[..0x80], "written by packet");
    assert_eq!(of(0x15, 0x8700).sum, sum(&data()[..32]), "moved through the caller's paging");
    let short = &trapped[index(&calls, 0x15, 0x8700) + 2];
    assert_eq!((short.carry, short.eax >> 8 & 0xff, short.sum), (true, 2, 0), "refused, as the processor would");
    for answers in [&v86, &trapped, &emulator] {
        let switch = &answers[index(&calls, 0x15, 0x8900)];
        assert!(switch.carry && switch.eax & 0xff00 == 0xff00, "{switch:x?}: a monitor's business");
    }
    let floppy_at = index(&calls, 0x13, 0x0201);
    assert_eq!(trapped[floppy_at].sum, sum(&floppy[1024..1536]), "a floppy's sector");
    let emulated = index(&calls, 0x13, 0x4a00);
    assert!(!trapped[emulated].carry, "{:x?}", trapped[emulated]);
    let image = &disc()[20 * 2048..];
    assert_eq!(trapped[emulated + 1].sum, sum(&image[2048..3072]), "the disc's, in its place");
    assert_eq!(trapped[emulated + 2].sum, sum(&floppy[1024..1536]), "the real one has moved up");
    assert_eq!(of(0x13, 0x4d00).eax >> 8 & 0xff, 1, "no disc was booted");
    assert_eq!((of(0x15, 0x530a).ebx & 0xffff, of(0x15, 0x530e).eax & 0xffff), (0x01ff, 0x0102));
    assert_eq!(of(0x15, 0xc910).ecx >> 8 & 0xf, 6, "the processor's family");
    assert_eq!((of(0x15, 0x2402).eax & 0xff, of(0x15, 0x2403).ebx & 3), (0, 3));
    assert_eq!(of(0x16, 0).eax & 0xffff, 0x1e61);
    assert_eq!(of(0x1a, 0xb10a).ecx, 0x7000_8086);
    let apm = &trapped[calls.len() - 1];
    assert_eq!((apm.carry, apm.eax & 0xffff), (false, 0xf000));
    let protected = ended.console.lines().find_map(|l| l.strip_prefix("P ")).expect("the protected-mode entries");
    let numbers: Vec<u32> = protected.split(' ').map(|w| u32::from_str_radix(w, 16).unwrap()).collect();
    assert_eq!((numbers[0], numbers[1]), (0, 0x7000_8086), "BIOS32 and the PCI BIOS");
    assert!(numbers[2] as usize >= list.len(), "the monitor trapped each call");
    assert_eq!(numbers[3] & 0xffff, 0x01ff, "APM's 16-bit entry");
    assert_eq!(numbers[4] & 0x6000_0000, 0, "CR0: the caches are on");
    assert_eq!(ended.status, 1, "APM's 32-bit entry switched off");
}

#[test]
#[ignore = "part of tests/matrix"]
fn linux_starts_from_real_mode_and_configures_pci_through_bios32() {
    let files = [material("linux-686/vmlinuz"), material("initramfs-i386.cpio")];
    let [Some(kernel), Some(initrd)] = files.map(|f| Some(std::fs::read(f?).expect("a file"))) else { return };
    let scratch = Scratch::new("bios-linux");
    let disk = linux::disk(&kernel, &initrd, "console=ttyS0 pci=bios acpi=off test=dmesg end=reboot");
    let path = scratch.path("disk.img");
    std::fs::write(&path, disk).expect("an image");
    let disk = format!("disk.0.path={path}");
    let ended = run(&["-o", "clock=instructions", "-o", "memory=128M", "-o", &disk, "-o", "disk.0.readonly=true"], 300);
    let console = &ended.console;
    for said in
        ["PCI BIOS revision 2.10 entry at 0xfe090, last bus=0", "PCI: Probing PCI hardware", "[8086:7010] type 00"]
    {
        assert!(console.contains(said), "{said}: {console}");
    }
    assert_eq!(ended.result("init").0, "pass", "{console}");
    assert_eq!(ended.status, 0, "it reboots");
}
