//! Scan codes and INT 16h.

use super::*;

/// Sends scan codes through INT 09h's translation and gives what it asks for in AH.
fn type_codes(rig: &mut Rig, codes: &[u8]) -> u8 {
    codes.iter().map(|code| rig.call(service::KEY, ax((*code).into())).ah()).last().unwrap_or(0)
}

fn key(rig: &mut Rig, function: u16) -> u16 {
    rig.call(0x16, ax(function)).ax()
}

fn quiet() -> Rig {
    rig(Vec::new(), |o| o.serial = false)
}

#[test]
fn letters_signs_and_shifts_become_codes() {
    let mut rig = quiet();
    // a, Shift-a, Ctrl-a, Alt-a, Caps a, Shift-1.
    type_codes(&mut rig, &[0x1e, 0x9e, 0x2a, 0x1e, 0xaa, 0x1d, 0x1e, 0x9d, 0x38, 0x1e, 0xb8, 0x3a, 0xba, 0x1e]);
    type_codes(&mut rig, &[0x36, 0x02, 0xb6]);
    let codes: Vec<u16> = (0..6).map(|_| key(&mut rig, 0)).collect();
    assert_eq!(codes, [0x1e61, 0x1e41, 0x1e01, 0x1e00, 0x1e41, 0x0221]);
    assert_eq!(key(&mut rig, 0x0200) & 0xff, 0x40, "caps lock stays");
}

#[test]
fn the_grey_keys_are_hidden_from_the_old_functions() {
    let mut rig = quiet();
    let up = [0xe0, 0x48, 0xe0, 0xc8];
    type_codes(&mut rig, &up);
    type_codes(&mut rig, &up);
    // F12, then Enter of the keypad.
    type_codes(&mut rig, &[0x58, 0xd8, 0xe0, 0x1c, 0xe0, 0x9c]);
    assert_eq!(key(&mut rig, 0x1000), 0x48e0);
    assert_eq!(key(&mut rig, 0), 0x4800);
    assert_eq!(rig.call(0x16, ax(0x1100)).ax(), 0x8600, "F12 is there for those who know it");
    assert_eq!(key(&mut rig, 0), 0x1c0d, "and skipped for others");
    assert_eq!(rig.call(0x16, ax(0x0100)).flags & ZF, ZF);
}

#[test]
fn the_keypad_obeys_num_lock_and_makes_numbers_with_alt() {
    let mut rig = quiet();
    type_codes(&mut rig, &[0x48, 0x45, 0xc5, 0x48]);
    // Alt and 6, 5.
    type_codes(&mut rig, &[0x38, 0x4d, 0x4c, 0xb8]);
    assert_eq!([key(&mut rig, 0), key(&mut rig, 0), key(&mut rig, 0)], [0x4800, 0x4838, 0x0041]);
    assert!(rig.host.outs.contains(&(0x60, 0xed)), "the lamp");
}

#[test]
fn key_combinations_ask_for_their_interrupts() {
    let mut rig = quiet();
    assert_eq!(type_codes(&mut rig, &[0x1d, 0xe0, 0x46]), keyboard::BREAK);
    assert_eq!(rig.host.memory[0x471], 0x80);
    assert_eq!(type_codes(&mut rig, &[0xe0, 0xc6, 0x9d, 0xe0, 0x37]), keyboard::PRINT);
    assert_eq!(type_codes(&mut rig, &[0xe0, 0xb7, 0x38, 0x54]), keyboard::SYSRQ);
    rig.host.outs.clear();
    type_codes(&mut rig, &[0x1d, 0x53]);
    assert_eq!(rig.host.outs, [(0x64, 0xfe)], "Ctrl, Alt and Del");
}

#[test]
fn the_buffer_keeps_fifteen_codes_and_waits_when_empty() {
    let mut rig = quiet();
    for n in 0..15 {
        assert_eq!(rig.call(0x16, Regs { ecx: n, ..ax(0x0500) }).al(), 0);
    }
    assert_eq!(rig.call(0x16, Regs { ecx: 99, ..ax(0x0500) }).al(), 1);
    assert_eq!((0..15).map(|_| key(&mut rig, 0x1000)).collect::<Vec<_>>(), (0..15).collect::<Vec<_>>());
    assert_eq!(rig.ask(0x16, ax(0), 0).1, frame::HALT);
}

#[test]
fn what_is_typed_at_the_mirror_comes_as_keys() {
    let mut rig = rig(Vec::new(), |_| {});
    for (bytes, code) in [
        (&b"a"[..], 0x1e61),
        (b"\r", 0x1c0d),
        (b"\x03", 0x2e03),
        (b"\x7f", 0x0e08),
        (b"?", 0x353f),
        (b"\x1b", 0x011b),
        (b"\x1bOP", 0x3b00),
        (b"\x1b[15~", 0x3f00),
        (b"\x1b[24~", 0x8600),
    ] {
        rig.host.input.extend(bytes);
        assert_eq!(rig.call(0x16, ax(0x1000)).ax(), code);
        assert_eq!(rig.call(0x16, ax(0x1100)).flags & ZF, ZF, "one key");
    }
}
