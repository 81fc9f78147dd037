use std::sync::Arc;

use boot::video::{self, Mode, Port};
use emu::bench::Bench;
use emu::{Backends, DeviceCell, DeviceState, Params, Picture, ResetKind, TextScreen, View};

use super::stdvga;

struct Rig {
    b: Bench,
    cell: Arc<DeviceCell>,
}

const LFB: u64 = 0xe000_0000;
const MMIO: u64 = 0xfebf_0000;

impl Rig {
    fn new() -> Rig {
        let b = Bench::new();
        let cell = b.plug(&stdvga::MODEL, &Params::default(), Backends::default());
        b.machine.reset(ResetKind::PowerOn);
        b.config_write(0x10, 4, LFB as u32);
        b.config_write(0x18, 4, MMIO as u32);
        b.config_write(4, 2, 2);
        Rig { b, cell }
    }

    fn ports(&mut self, ports: impl IntoIterator<Item = Port>) {
        for port in ports {
            match port {
                Port::In(port) => {
                    self.b.inb(port);
                }
                Port::Out(port, value) => self.b.outb(port, value),
            }
        }
    }

    /// What a BIOS does for a mode.
    fn mode(number: u8) -> Rig {
        let mut rig = Rig::new();
        rig.set(number);
        rig
    }

    fn set(&mut self, number: u8) {
        let mode = Mode::find(number).unwrap();
        self.ports(mode.registers());
        self.ports(mode.dac());
        if mode.text {
            self.ports(video::FONT_OPEN);
            for (n, byte) in (0..).zip(video::glyphs(&video::FONT_8X16)) {
                self.poke(0xa_0000 + n, &[byte]);
            }
            self.ports(video::font_close(mode.crtc_port()));
        }
        self.ports(video::screen_on(mode.crtc_port()));
    }

    fn index(&mut self, port: u16, n: u8, value: u8) {
        self.b.outb(port, n);
        self.b.outb(port + 1, value);
    }

    fn gfx(&mut self, n: u8, value: u8) {
        self.index(0x3ce, n, value);
    }

    fn poke(&mut self, at: u64, bytes: &[u8]) {
        (at..).zip(bytes).for_each(|(at, byte)| self.b.bus.write(at, 1, u64::from(*byte)));
    }

    fn peek(&mut self, at: u64) -> u8 {
        self.b.bus.read(at, 1) as u8
    }

    fn print(&mut self, at: u64, text: &str, attr: u8) {
        let cells: Vec<u8> = text.bytes().flat_map(|b| [b, attr]).collect();
        self.poke(at, &cells);
    }

    /// The four planes at an offset.
    fn planes(&mut self, at: u64) -> [u8; 4] {
        std::array::from_fn(|plane| {
            self.gfx(4, plane as u8);
            self.peek(0xa_0000 + at)
        })
    }

    fn dispi(&mut self, n: u16, value: u16) {
        self.b.bus.pio_write(0x1ce, 2, n.into());
        self.b.bus.pio_write(0x1cf, 2, value.into());
    }

    fn dispi_read(&mut self, n: u16) -> u32 {
        self.b.bus.pio_write(0x1ce, 2, n.into());
        self.b.bus.pio_read(0x1d0, 2)
    }

    fn vbe(&mut self, x: u16, y: u16, bpp: u16) {
        [(4, 0), (1, x), (2, y), (3, bpp), (4, 0x41)].into_iter().for_each(|(n, v)| self.dispi(n, v));
    }

    fn text(&self) -> Option<TextScreen> {
        self.cell.with(|d| d.display().unwrap().text()).unwrap()
    }

    fn picture(&self) -> Picture {
        self.cell.with(|d| d.display().unwrap().picture()).unwrap()
    }

    fn row(&self, y: usize) -> String {
        let text = self.text().unwrap();
        let row = &text.cells[y * text.columns..][..text.columns];
        row.iter().map(|c| char::from(c.ch)).collect::<String>().trim_end_matches(['\0', ' ']).to_owned()
    }

    /// Whether an access there is plain memory.
    fn is_ram(&self, at: u64) -> bool {
        self.b.machine.space.map().ram_for_write(at).is_some_and(|(addr, _)| addr.0 >= Bench::RAM)
    }
}

impl std::ops::Deref for Rig {
    type Target = Bench;
    fn deref(&self) -> &Bench {
        &self.b
    }
}

#[test]
fn text_is_plain_memory_and_reads_as_it_was_written() {
    let mut rig = Rig::mode(3);
    assert!(rig.is_ram(0xb_8000) && rig.is_ram(0xb_ffff));
    assert_eq!(rig.b.bus.read(0xb_0000, 1), 0, "RAM of the bench lies below");
    rig.print(0xb_8000, "hello", 0x1f);
    rig.print(0xb_8000 + 160 * 24 + 150, "world", 7);
    let text = rig.text().unwrap();
    assert_eq!((text.columns, text.rows, text.cursor), (80, 25, Some((0, 0))));
    assert_eq!((rig.row(0), rig.row(24).trim_start_matches('\0').to_owned()), ("hello".into(), "world".into()));
    assert_eq!(text.cells[0].attr, 0x1f);
    assert!(text.blink);
    rig.index(0x3d4, 0x0e, 0);
    rig.index(0x3d4, 0x0f, 85);
    assert_eq!(rig.text().unwrap().cursor, Some((5, 1)));
    rig.index(0x3d4, 0x0a, 0x2d);
    assert_eq!(rig.text().unwrap().cursor, None);
    // Scrolled by hardware: the screen begins at the second line, and the last one is line 24 of the rest.
    rig.index(0x3d4, 0x0d, 80);
    assert!(rig.row(23).ends_with("world"));
}

#[test]
fn a_font_that_is_loaded_does_not_cost_the_text() {
    let mut rig = Rig::mode(3);
    rig.print(0xb_8000, "abc", 7);
    rig.ports(video::FONT_OPEN);
    assert!(!rig.is_ram(0xb_8000));
    rig.poke(0xa_0000 + 32 * 0x41, &[0x81; 16]);
    assert_eq!(rig.peek(0xa_0000 + 32 * 0x41), 0x81);
    rig.ports(video::font_close(0x3d4));
    assert_eq!((rig.row(0).as_str(), rig.peek(0xb_8000), rig.peek(0xb_8001)), ("abc", b'a', 7));
    rig.print(0xb_8000, "A", 0x0f);
    let picture = rig.picture();
    let dots: Vec<bool> = picture.pixels[..9].iter().map(|p| *p != 0).collect();
    assert_eq!(dots, [true, false, false, false, false, false, false, true, false]);
}

#[test]
fn a_picture_of_text_shows_the_font_the_colours_and_the_cursor() {
    let mut rig = Rig::mode(3);
    rig.print(0xb_8000, "\u{1}", 0x1e);
    // Two line drawing characters touch.
    rig.poke(0xb_8004, &[0xc4, 7, 0xc4, 7]);
    rig.index(0x3d4, 0x0f, 1);
    let p = rig.picture();
    assert_eq!((p.width, p.height, p.pixels.len()), (720, 400, 720 * 400));
    let row = |x: usize, y: usize, n: usize| &p.pixels[y * 720 + x..][..n];
    for y in 0..16 {
        let want: Vec<u32> = (0..9)
            .map(|x| if x < 8 && video::FONT_8X16[1][y] << x & 0x80 != 0 { 0xff_ff55 } else { 0x00_00aa })
            .collect();
        assert_eq!(row(0, y, 9), want, "line {y}");
    }
    assert_eq!(row(18, 7, 18), [0xaa_aaaa; 18]);
    assert_eq!((row(9, 12, 1)[0], row(9, 13, 9)), (0, &[0; 9][..]), "the cursor has the attribute of its cell, 0");
    rig.poke(0xb_8003, &[7]);
    assert_eq!(rig.picture().pixels[720 * 13 + 9], 0xaa_aaaa);
    // A dark screen keeps its size.
    rig.b.inb(0x3da);
    rig.b.outb(0x3c0, 0);
    let dark = rig.picture();
    assert!(dark.pixels.len() == 720 * 400 && dark.pixels.iter().all(|p| *p == 0));
}

#[test]
fn write_mode_0_rotates_sets_and_masks() {
    let mut rig = Rig::mode(0x12);
    assert!(!rig.is_ram(0xa_0000));
    rig.poke(0xa_0000, &[0xf0]);
    assert_eq!(rig.planes(0), [0xf0; 4]);
    rig.gfx(3, 2);
    rig.poke(0xa_0001, &[0x81]);
    assert_eq!(rig.planes(1), [0x60; 4]);
    // Planes 0 and 1 from set/reset (0 and ones), the others from the processor; only the upper bits change.
    rig.gfx(3, 0);
    rig.gfx(1, 3);
    rig.gfx(0, 2);
    rig.gfx(8, 0xf0);
    rig.poke(0xa_0002, &[0x33]);
    rig.peek(0xa_0000);
    rig.poke(0xa_0002, &[0x33]);
    assert_eq!(rig.planes(2), [0x00, 0xf0, 0x30, 0x30]);
    // The map mask keeps planes out.
    rig.gfx(1, 0);
    rig.gfx(8, 0xff);
    rig.index(0x3c4, 2, 0x08);
    rig.poke(0xa_0000, &[0xaa]);
    assert_eq!(rig.planes(0), [0xf0, 0xf0, 0xf0, 0xaa]);
}

#[test]
fn functions_combine_with_the_latches() {
    for (function, want) in [(0x08, 0x30), (0x10, 0xf3), (0x18, 0xc3)] {
        let mut rig = Rig::mode(0x12);
        rig.poke(0xa_0000, &[0xf0]);
        rig.gfx(3, function);
        rig.peek(0xa_0000);
        rig.poke(0xa_0001, &[0x33]);
        assert_eq!(rig.planes(1), [want; 4], "{function:x}");
    }
}

#[test]
fn write_mode_1_copies_the_latches() {
    let mut rig = Rig::mode(0x12);
    for plane in 0..4 {
        rig.index(0x3c4, 2, 1 << plane);
        rig.poke(0xa_0000, &[0x11 << plane]);
    }
    rig.index(0x3c4, 2, 0x0f);
    rig.gfx(5, 1);
    rig.peek(0xa_0000);
    rig.poke(0xa_0100, &[0xee]);
    assert_eq!(rig.planes(0x100), [0x11, 0x22, 0x44, 0x88]);
}

#[test]
fn write_mode_2_paints_a_colour_under_the_mask() {
    let mut rig = Rig::mode(0x12);
    rig.gfx(5, 2);
    rig.gfx(8, 0x18);
    rig.peek(0xa_0000);
    rig.poke(0xa_0000, &[0x05]);
    assert_eq!(rig.planes(0), [0x18, 0, 0x18, 0]);
    let picture = rig.picture();
    assert_eq!((picture.width, picture.height), (640, 480));
    assert_eq!(picture.pixels[2..6], [0, 0xaa_00aa, 0xaa_00aa, 0]);
}

#[test]
fn write_mode_3_masks_with_the_data() {
    let mut rig = Rig::mode(0x12);
    rig.gfx(5, 3);
    rig.gfx(0, 0x09);
    rig.gfx(8, 0x3c);
    rig.gfx(3, 1);
    rig.peek(0xa_0000);
    rig.poke(0xa_0000, &[0xff]);
    rig.poke(0xa_0001, &[0x20]);
    assert_eq!(rig.planes(0), [0x3c, 0, 0, 0x3c]);
    assert_eq!(rig.planes(1), [0x10, 0, 0, 0x10]);
}

#[test]
fn read_mode_1_finds_a_colour() {
    let mut rig = Rig::mode(0x12);
    rig.gfx(5, 2);
    rig.gfx(8, 0xf0);
    rig.peek(0xa_0000);
    rig.poke(0xa_0000, &[0x0b]);
    rig.gfx(5, 8);
    rig.gfx(2, 0x0b);
    rig.gfx(7, 0x0f);
    assert_eq!(rig.peek(0xa_0000), 0xf0);
    // Plane 3 does not count: 3 is found too, and so is what is not 3 nowhere else.
    rig.gfx(7, 0x07);
    rig.gfx(2, 0x03);
    assert_eq!(rig.peek(0xa_0000), 0xf0);
    rig.gfx(7, 0);
    assert_eq!(rig.peek(0xa_0000), 0xff);
}

#[test]
fn mode_13h_is_plain_memory_of_a_byte_a_pixel() {
    let mut rig = Rig::mode(0x13);
    assert!(rig.is_ram(0xa_0000) && rig.is_ram(0xa_ffff) && !rig.is_ram(0xb_8000));
    rig.poke(0xa_0000 + 320 * 199 + 319, &[40]);
    rig.poke(0xa_0000, &[15, 4]);
    let p = rig.picture();
    assert_eq!((p.width, p.height), (320, 200));
    assert_eq!((p.pixels[0], p.pixels[1], p.pixels[320 * 200 - 1]), (0xff_ffff, 0xaa_0000, 0xff_0000));
    assert!(rig.text().is_none());
    // Unchained, the same pixels lie in four planes.
    rig.index(0x3c4, 4, 6);
    assert!(!rig.is_ram(0xa_0000));
    assert_eq!(rig.planes(0), [15, 4, 0, 0]);
}

#[test]
fn cga_modes_interleave_lines_and_pixels() {
    let mut rig = Rig::mode(4);
    // Four pixels: 3, 2, 1, 0; then the second line, which lies 8 KiB further.
    rig.poke(0xb_8000, &[0xe4, 0x1b]);
    rig.poke(0xb_a000, &[0xff]);
    let p = rig.picture();
    assert_eq!((p.width, p.height), (320, 200));
    let colours = [0, 0x55_ffff, 0xff_55ff, 0xff_ffff];
    let want = [3, 2, 1, 0, 0, 1, 2, 3].map(|n: usize| colours[n]);
    assert_eq!(p.pixels[..8], want);
    assert_eq!(p.pixels[320..325], [0xff_ffff, 0xff_ffff, 0xff_ffff, 0xff_ffff, 0]);
    let mut rig = Rig::mode(6);
    rig.poke(0xb_8000, &[0x80]);
    rig.poke(0xb_a000, &[0x40]);
    let p = rig.picture();
    assert_eq!((p.width, p.height), (640, 200));
    assert_eq!((p.pixels[0], p.pixels[1], p.pixels[641]), (0xff_ffff, 0, 0xff_ffff));
}

#[test]
fn every_standard_mode_shows_a_picture_of_its_size() {
    let sizes = [
        (0, 360, 400),
        (1, 360, 400),
        (2, 720, 400),
        (3, 720, 400),
        (5, 320, 200),
        (7, 720, 400),
        (0x0d, 320, 200),
        (0x0e, 640, 200),
        (0x0f, 640, 350),
        (0x10, 640, 350),
        (0x11, 640, 480),
        (0x12, 640, 480),
    ];
    let mut rig = Rig::new();
    assert_eq!(rig.picture(), Picture::default());
    for (mode, width, height) in sizes {
        rig.set(mode);
        let p = rig.picture();
        assert_eq!((p.width, p.height, p.pixels.len()), (width, height, width * height), "mode {mode:x}");
        assert_eq!(rig.text().is_some(), Mode::find(mode).unwrap().text);
    }
}

#[test]
fn retrace_follows_guest_time() {
    let mut rig = Rig::mode(3);
    let (mut retraces, mut was, mut shown) = (0, false, 0);
    // 100 ms in steps of 10 us: 70 pictures a second.
    for _ in 0..10_000 {
        rig.b.advance(10_000);
        let status = rig.b.inb(0x3da);
        let now = status & 8 != 0;
        assert!(!now || status & 1 != 0, "nothing is shown in the retrace");
        retraces += usize::from(now && !was);
        shown += usize::from(status & 1 == 0);
        was = now;
    }
    assert_eq!(retraces, 7);
    assert!((6500..8000).contains(&shown), "{shown}");
    // 40% of the registers zero: no division by it.
    let mut rig = Rig::new();
    rig.b.outb(0x3c2, 1);
    for _ in 0..100 {
        rig.b.inb(0x3da);
    }
}

#[test]
fn the_crt_controller_moves_with_the_colour_bit_and_protects_its_timing() {
    let mut rig = Rig::mode(3);
    rig.index(0x3d4, 0, 0x11);
    rig.b.outb(0x3d4, 0);
    assert_eq!((rig.b.inb(0x3d5), rig.b.inb(0x3b5)), (0x5f, 0xff));
    rig.index(0x3d4, 7, 0xef);
    assert_eq!(rig.b.inb(0x3d5), 0x0f, "the line compare bit alone changes");
    let mut rig = Rig::mode(7);
    rig.b.outb(0x3b4, 0x12);
    assert_eq!((rig.b.inb(0x3b5), rig.b.inb(0x3d5)), (0x8f, 0xff));
    assert!(rig.is_ram(0xb_0000) && !rig.is_ram(0xb_8000));
}

#[test]
fn colours_are_written_and_read_in_threes() {
    let mut rig = Rig::new();
    [(0x3c8, 255), (0x3c9, 0xff), (0x3c9, 2), (0x3c9, 3), (0x3c9, 4)].into_iter().for_each(|(p, v)| rig.b.outb(p, v));
    rig.b.outb(0x3c7, 255);
    let read: [u8; 4] = std::array::from_fn(|_| rig.b.inb(0x3c9));
    assert_eq!(read, [0x3f, 2, 3, 0], "six bits, and a colour that is not complete is none");
    assert_eq!(rig.b.inb(0x3c8), 0);
}

#[test]
fn dispi_sets_modes_pans_and_banks() {
    let mut rig = Rig::mode(3);
    assert_eq!((rig.dispi_read(0), rig.dispi_read(10)), (0xb0c5, 256));
    rig.vbe(640, 480, 8);
    assert_eq!((rig.dispi_read(6), rig.dispi_read(7)), (640, 26214));
    assert!(rig.is_ram(0xa_0000));
    rig.dispi(5, 1);
    rig.poke(0xa_0000, &[5]);
    assert_eq!(rig.peek(LFB + 0x1_0000), 5);
    rig.dispi(6, 1024);
    rig.dispi(8, 8);
    rig.dispi(9, 64);
    let p = rig.picture();
    assert_eq!((p.width, p.height), (640, 480));
    rig.poke(LFB + 1024 * 64 + 8, &[7]);
    assert_eq!(rig.picture().pixels[0], 0xaa_aaaa);
    // A bank behind the end of memory wraps, as the chip's address lines do.
    rig.dispi(5, 257);
    assert_eq!(rig.peek(0xa_0000), 5);
    rig.dispi(4, 0);
    assert!(rig.is_ram(0xb_8000) && rig.text().is_some());
}

#[test]
fn dispi_shows_every_depth() {
    for (bpp, bytes, want) in [
        (15, &[0x1f, 0x7c][..], 0xff_00ff),
        (16, &[0xe0, 0x07], 0x00_ff00),
        (24, &[1, 2, 3], 0x03_0201),
        (32, &[1, 2, 3, 0xff], 0x03_0201),
    ] {
        let mut rig = Rig::mode(3);
        rig.vbe(320, 200, bpp);
        rig.poke(LFB, bytes);
        let p = rig.picture();
        assert_eq!((p.pixels[0], p.pixels[1]), (want, 0), "{bpp}");
    }
    let mut rig = Rig::mode(0x12);
    rig.vbe(800, 600, 4);
    rig.poke(0xa_0000, &[0x80]);
    assert_eq!((rig.picture().width, rig.picture().pixels[0], rig.picture().pixels[1]), (800, 0xff_ffff, 0));
}

#[test]
fn impossible_modes_become_possible_ones() {
    let mut rig = Rig::mode(3);
    for (x, y, bpp) in [(0, 0, 0), (0xffff, 0xffff, 32), (4096, 4096, 24), (1, 1, 99), (7, 1, 4)] {
        rig.vbe(x, y, bpp);
        [(6, 0xffff), (8, 0xffff), (9, 0xffff), (5, 0xffff)].into_iter().for_each(|(n, v)| rig.dispi(n, v));
        let p = rig.picture();
        assert_eq!(p.pixels.len(), p.width * p.height);
        rig.peek(0xa_fff0);
    }
}

#[test]
fn the_second_bar_has_the_registers_of_both() {
    let mut rig = Rig::mode(3);
    assert_eq!(rig.b.bus.read(MMIO + 0x500, 2), 0xb0c5);
    assert_eq!(rig.b.bus.read(MMIO + 0x40c, 1), 0x67, "miscellaneous output");
    assert_eq!((rig.b.bus.read(MMIO + 0x600, 4), rig.b.bus.read(MMIO + 0x604, 4)), (8, 0x1e1e_1e1e));
    rig.b.bus.write(MMIO + 0x502, 2, 800);
    rig.b.bus.write(MMIO + 0x504, 2, 600);
    rig.b.bus.write(MMIO + 0x506, 2, 32);
    rig.b.bus.write(MMIO + 0x508, 2, 0x41);
    assert_eq!((rig.picture().width, rig.picture().height), (800, 600));
    assert_eq!((rig.config_read(0, 4), rig.config_read(8, 4)), (0x1111_1234, 0x0300_0002));
}

#[test]
fn written_pages_of_plain_modes_are_logged() {
    let mut rig = Rig::mode(0x13);
    rig.machine.space.set_dirty_log(true);
    let block = rig.machine.space.ram().blocks().into_iter().find(|b| b.name.ends_with("vram")).unwrap();
    rig.machine.space.harvest_dirty(&block);
    rig.poke(0xa_0000 + 4096 * 3 + 5, &[1]);
    assert_eq!(rig.machine.space.harvest_dirty(&block), [3]);
}

#[test]
fn a_saved_screen_comes_back_in_text_and_in_dispi_modes() {
    let copy = |from: &Rig, to: &Rig| {
        let (a, b) = (from.machine.space.ram(), to.machine.space.ram());
        let mut page = [0; 4096];
        for block in a.blocks() {
            for at in (0..block.len).step_by(4096) {
                let at = emu::RamAddr(block.start.0 + at);
                a.read(at, &mut page);
                b.write(at, &page);
            }
        }
        to.cell.load(from.cell.save()).unwrap();
        assert_eq!(to.cell.save(), from.cell.save());
    };
    let mut rig = Rig::mode(3);
    rig.print(0xb_8000, "here", 7);
    let mut twin = Rig::new();
    copy(&rig, &twin);
    assert_eq!((twin.row(0).as_str(), twin.picture()), ("here", rig.picture()));
    twin.print(0xb_8008, "!", 7);
    assert_eq!(twin.row(0), "here!");
    rig.vbe(640, 480, 16);
    rig.poke(LFB, &[0xff, 0xff]);
    let twin = Rig::new();
    copy(&rig, &twin);
    assert_eq!(twin.picture(), rig.picture());
}

#[test]
fn a_viewers_copy_is_the_picture_in_every_mode_and_hears_of_nothing_else() {
    let mut rig = Rig::mode(3);
    let mut view = View::default();
    let mut rng = emu::bench::Rng::new(7);
    let mut look = |rig: &Rig, what: &str| {
        rig.cell.with(|d| d.display().unwrap().refresh(&mut view)).unwrap();
        assert!(*view.picture() == rig.picture(), "{what}");
        !view.take_changes().is_empty()
    };
    look(&rig, "text");
    rig.print(0xb_8000, "changed", 7);
    assert!(look(&rig, "text") && !look(&rig, "text"));
    for mode in [0x0d, 0x12, 0x13, 0x04, 0x03] {
        rig.set(mode);
        look(&rig, "a mode");
        for _ in 0..50 {
            rig.poke(0xa_0000 + rng.below(0x2_0000) as u64, &[rng.next() as u8]);
        }
        look(&rig, "a mode's memory");
        rig.ports(video::FONT_OPEN);
        look(&rig, "the font is open");
        let port = if rig.b.inb(0x3cc) & 1 != 0 { 0x3d4 } else { 0x3b4 };
        rig.ports(video::font_close(port));
        look(&rig, "the font is closed");
        assert!(!look(&rig, "the same again"));
    }
    for bpp in [8, 15, 16, 24, 32, 4] {
        rig.vbe(320, 200, bpp);
        look(&rig, "linear");
        for _ in 0..20 {
            rig.poke(LFB + rng.below(320 * 200) as u64, &[rng.next() as u8 | 1]);
        }
        assert!(look(&rig, "linear") && !look(&rig, "linear"), "{bpp}");
        rig.dispi(9, 3);
        look(&rig, "panned");
        rig.b.inb(0x3da);
        rig.b.outb(0x3c0, 0);
        look(&rig, "blank");
        rig.b.inb(0x3da);
        rig.b.outb(0x3c0, 0x20);
        look(&rig, "on again");
    }
}
