//! A guest that knows a VGA, and people who look at its screen meanwhile.

use boot::video::{MODES, Port};
use emu::bench::Rng;

use super::{MEMORY, Op, Rig};

/// Sets a mode, changes registers, writes to the window and to the frame buffer.
pub fn guest(r: &mut Rng) -> Vec<Op> {
    let place = |r: &mut Rng| match r.below(4) {
        0 => MEMORY + r.below(1 << 24) as u64,
        _ => 0xa_0000 + r.below(0x2_0000) as u64 - 1,
    };
    match r.below(16) {
        0 => MODES[r.below(MODES.len())]
            .registers()
            .into_iter()
            .map(|port| match port {
                Port::In(port) => Op::In(port, 1),
                Port::Out(port, value) => Op::Out(port, 1, value.into()),
            })
            .collect(),
        1..=4 => {
            let index = r.pick(&[0x3c0, 0x3c4, 0x3ce, 0x3d4, 0x3b4]);
            // The attribute controller takes both at one port.
            let data = if index == 0x3c0 { index } else { index + 1 };
            vec![Op::Out(index, 1, r.below(26) as u32), Op::Out(data, 1, r.value() as u32)]
        }
        5..=8 => {
            let value = r.pick(&[0, 1, 4, 8, 16, 32, 0x41, 0x61, 640, 800, 0xffff]);
            vec![Op::Out(0x1ce, 2, r.below(12) as u32), Op::Out(0x1cf, 2, value), Op::In(0x1d0, 2)]
        }
        9..=11 => vec![Op::Store(place(r), r.width(8), r.value())],
        12..=14 => vec![Op::Load(place(r), r.width(8))],
        _ => vec![Op::Look],
    }
}

/// What people see agrees with itself, and looking changes nothing. A digest of it.
pub fn look(rig: &Rig) -> u64 {
    let cell = &rig.cell;
    let before = emu::DeviceState::save(&**cell);
    let seen = cell.with(|d| d.display().map(|display| (display.text(), display.picture())));
    let Some((text, picture)) = seen.flatten() else { return 0 };
    assert_eq!(picture.pixels.len(), picture.width * picture.height);
    if let Some(text) = text {
        assert_eq!(text.cells.len(), text.columns * text.rows);
        assert!(text.cursor.is_none_or(|(x, y)| x < text.columns && y < text.rows), "{text:?}");
    }
    // Large ones take too long.
    if picture.pixels.len() < 1 << 19 {
        let mut view = emu::View::default();
        cell.with(|d| d.display().map(|display| display.refresh(&mut view)));
        assert_eq!(*view.picture(), picture);
    }
    assert_eq!(emu::DeviceState::save(&**cell), before);
    picture.pixels.iter().fold(picture.width as u64, |hash, p| hash.wrapping_mul(31).wrapping_add((*p).into()))
}
