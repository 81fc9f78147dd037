//! The built-in BIOS as a guest calls it.

mod guest;

use std::path::PathBuf;

use guest::{BUFFER, Call, DATA, SUMMED};
use machine_tests::{Scratch, run};

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

fn data() -> Vec<u8> {
    let mut data = vec![0; 0x200];
    let [low, high] = BUFFER.to_le_bytes();
    data[0..16].copy_from_slice(&[16, 0, 2, 0, 0, 0, low, high, 120, 0, 0, 0, 0, 0, 0, 0]);
    // 64 bytes from the data's own segment, and what follows.
    let [low, high] = DATA.to_le_bytes();
    data[16..32].copy_from_slice(&[16, 0, 1, 0, 0, 0, low, high, 150, 0, 0, 0, 0, 0, 0, 0]);
    data[0x20] = 0x1a;
    // From the data to the buffer, as the caller sees memory.
    data[0x92..0x95].copy_from_slice(&[0x00, 0x80, 0x03]);
    data[0x9a..0x9d].copy_from_slice(&[0x00, 0x00, 0x03]);
    data
}

/// All services but those that never return. Those whose answers move with time come with `false`.
fn calls() -> Vec<(Call, bool)> {
    let key = Call { ecx: 0x1e61, ..call(0x16, 0x0500) };
    let disk = |ax: u16| Call { edx: 0x80, ..call(0x13, ax) };
    let chs = |ax: u16, sector: u32| Call { ecx: sector, edx: 0x0180, ..call(0x13, ax) };
    let packet = |ax: u16, at: u32| Call { esi: at, ..disk(ax) };
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
        (call(0x15, 0x2401), true),
        (Call { ecx: 0, edx: 3000, ..call(0x15, 0x8600) }, true),
        (call(0x15, 0x4f1e), true),
        (call(0x15, 0xc000), true),
        (call(0x15, 0xc100), true),
        (call(0x15, 0x5300), true),
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
fn every_service_answers_alike_in_real_mode_in_v86_mode_and_under_a_monitor() {
    let scratch = Scratch::new("bios");
    let mut calls = calls();
    // Each mode lets go of what the mode before it connected; the last is for the protected-mode entries.
    calls.extend([(call(0x15, 0x5304), false), (call(0x15, 0x5303), true)]);
    let list: Vec<Call> = calls.iter().map(|c| c.0).collect();
    let image = guest::disk(&list, &data(), 8 << 20);
    let path: PathBuf = scratch.path("disk.img").into();
    std::fs::write(&path, &image).unwrap();
    let disk = format!("disk.0.path={}", path.display());
    let ended = run(&["-o", "clock=instructions", "-o", &disk], 120);
    let [real, v86, trapped] = ['r', 'v', 't'].map(|mode| answers(&ended.console, mode));
    assert_eq!(real.len(), list.len(), "{}\n{}", ended.console, ended.stderr);
    for (n, (c, steady)) in calls.iter().enumerate() {
        for (mode, other) in [("v86", &v86), ("trapped", &trapped)] {
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
    assert_eq!(ended.status, 1, "APM's 32-bit entry switched off");
}
