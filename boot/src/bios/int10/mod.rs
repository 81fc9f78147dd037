//! INT 10h: the screen.
//!
//! Sources: IBM PS/2 and PC BIOS Interface Technical Reference (video), and for function 4F VESA's VBE core functions
//! 2.0. Text in all modes; dots, palettes and fonts in [`graphics`], [`palette`] and [`font`]; VBE on adapters that
//! have DISPI in [`vbe`]. The state is in the data area, where programs look for it. Without an adapter only the mirror
//! on COM1 shows what is written ([`super::serial`]).
//!
//! Not there: 1Ch (saving the adapter's state), and the light pen.

mod font;
mod graphics;
mod palette;
mod vbe;

use super::{Call, Flow, data, linear, serial};
use crate::video::{self, Colours, Mode, Port};

/// What lies in the ROM for it: offset in the BIOS's segment and bytes.
pub(super) fn rom_tables() -> Vec<(u16, Vec<u8>)> {
    let mut tables = font::rom_tables();
    tables.extend([
        (PARAMETERS, parameters()),
        (POINTERS, pointers()),
        (STATIC, STATIC_FUNCTIONS.to_vec()),
        (vbe::STRING, b"bhyve-rs VBE\0".to_vec()),
    ]);
    tables
}

/// The video parameter table, the pointers that lead to it, the table of what there is.
const PARAMETERS: u16 = 0xc800;
const POINTERS: u16 = 0xd000;
const STATIC: u16 = 0xd020;

/// All modes; 200, 350 and 400 scan lines; two fonts at a time; everything but a light pen and saved states.
const STATIC_FUNCTIONS: [u8; 16] = [0xff, 0xe0, 0x0f, 0, 0, 0, 0, 0x07, 2, 8, 0xe7, 0x0c, 0, 0, 0, 0];

/// The modes of the table's 29 entries. Where an entry is for fewer lines, the mode of 400 lines stands.
fn parameters() -> Vec<u8> {
    const MODES: [u8; 29] = [
        0, 1, 2, 3, 4, 5, 6, 7, 0, 0, 0, 0, 0, 0x0d, 0x0e, 0x0f, 0x10, 0x0f, 0x10, 0, 1, 2, 3, 1, 3, 7, 0x11, 0x12,
        0x13,
    ];
    MODES.iter().filter_map(|n| Mode::find(*n)).flat_map(|mode| mode.parameters()).collect()
}

fn pointers() -> Vec<u8> {
    let mut table = vec![0; 28];
    table[..2].copy_from_slice(&PARAMETERS.to_le_bytes());
    table[2..4].copy_from_slice(&data::ROM_SEGMENT.to_le_bytes());
    table
}

/// Display combinations: VGA with a colour, with a monochrome screen.
const VGA_COLOUR: u8 = 8;
const VGA_MONO: u8 = 7;

/// Whether a VGA answers.
fn adapter(c: &mut Call) -> bool {
    c.outb(0x3ce, 8);
    c.inb(0x3ce) == 8
}

/// Sets up the adapter at power-on.
pub(super) fn start(c: &mut Call) {
    serial::start(c);
    c.set_byte(data::VIDEO_CONTROL, 0x60);
    c.set_byte(data::VIDEO_SWITCHES, 0xf9);
    c.set_byte(data::VIDEO_OPTIONS, 0x11);
    c.set_byte(data::DISPLAY, 0x0b);
    c.set_dword(data::VIDEO_POINTERS, far(data::ROM_SEGMENT, POINTERS));
    c.set_dword(4 * 0x1f, far(data::ROM_SEGMENT, font::HIGH_8X8));
    set_mode(c, 3);
}

/// A far pointer as a double word.
fn far(segment: u16, offset: u16) -> u32 {
    u32::from(segment) << 16 | u32::from(offset)
}

impl Call<'_> {
    fn ports(&mut self, ports: &[Port]) {
        for port in ports {
            match *port {
                Port::In(port) => {
                    self.inb(port);
                }
                Port::Out(port, value) => self.outb(port, value),
            }
        }
    }

    /// An indexed register.
    fn set_indexed(&mut self, port: u16, n: u8, value: u8) {
        self.outb(port, n);
        self.outb(port + 1, value);
    }

    fn indexed(&mut self, port: u16, n: u8) -> u8 {
        self.outb(port, n);
        self.inb(port + 1)
    }

    fn crtc(&mut self) -> u16 {
        match self.word(data::CRTC) {
            0x3b4 => 0x3b4,
            _ => 0x3d4,
        }
    }
}

/// The present mode; mode 3 if the data area holds none that there is.
fn mode(c: &mut Call) -> &'static Mode {
    let n = c.byte(data::VIDEO_MODE) & 0x7f;
    Mode::find(n).or(Mode::find(3)).expect("mode 3 is a standard mode")
}

fn columns(c: &mut Call) -> u16 {
    c.word(data::COLUMNS).clamp(1, 256)
}

fn rows(c: &mut Call) -> u16 {
    (u16::from(c.byte(data::ROWS)) + 1).min(100)
}

fn height(c: &mut Call) -> u8 {
    (c.word(data::CHAR_HEIGHT) as u8).clamp(1, 32)
}

fn shown(c: &mut Call) -> u8 {
    c.byte(data::PAGE) & 7
}

/// Column and row of the cursor of a page.
fn cursor(c: &mut Call, page: u8) -> (u16, u16) {
    let at = c.word(data::CURSORS + 2 * u64::from(page & 7));
    (at & 0xff, at >> 8)
}

/// The address of a cell of a text page.
fn cell(c: &mut Call, page: u8, x: u16, y: u16) -> u64 {
    let size = u64::from(c.word(data::PAGE_SIZE));
    let offset = (u64::from(page & 7) * size + 2 * (u64::from(y) * u64::from(columns(c)) + u64::from(x))) & 0x7fff;
    linear(mode(c).segment, 0) + offset
}

/// Function 00: sets a mode. Bit 7 keeps what is in memory.
fn set_mode(c: &mut Call, number: u8) {
    let keep = number & 0x80 != 0;
    let Some(mode) = Mode::find(number & 0x7f) else { return };
    if adapter(c) {
        vbe::leave(c);
        c.ports(&mode.registers());
        // Bit 3: who has loaded a palette of its own keeps it.
        if c.byte(data::VIDEO_OPTIONS) & 8 == 0 {
            c.ports(&mode.dac());
        }
        if mode.text {
            font::load(c, &video::glyphs(&video::FONT_8X16), 0, 0, 256);
        }
        if !keep {
            clear(c, mode);
        }
        c.ports(&video::screen_on(mode.crtc_port()));
    }
    c.set_byte(data::VIDEO_MODE, mode.number);
    c.set_word(data::COLUMNS, mode.columns.into());
    c.set_word(data::PAGE_SIZE, mode.page);
    c.set_word(data::PAGE_START, 0);
    c.host.write(data::CURSORS, &[0; 16]);
    let (first, last) = mode.cursor();
    c.set_word(data::CURSOR_SHAPE, u16::from_le_bytes(if mode.text { [last, first] } else { [0, 0] }));
    c.set_byte(data::PAGE, 0);
    c.set_word(data::CRTC, mode.crtc_port());
    const CGA: [u8; 8] = [0x2c, 0x28, 0x2d, 0x29, 0x2a, 0x2e, 0x1e, 0x29];
    c.set_byte(data::CGA_MODE, CGA.get(usize::from(mode.number)).copied().unwrap_or(0x29));
    c.set_byte(data::CGA_COLOURS, if mode.number == 6 { 0x3f } else { 0x30 });
    c.set_byte(data::ROWS, mode.rows - 1);
    c.set_word(data::CHAR_HEIGHT, mode.height.into());
    let control = c.byte(data::VIDEO_CONTROL) & 0x7f;
    c.set_byte(data::VIDEO_CONTROL, control | number & 0x80);
    let equipment = c.word(data::EQUIPMENT) & !0x30 | if mode.colours == Colours::Mono { 0x30 } else { 0x20 };
    c.set_word(data::EQUIPMENT, equipment);
    c.set_dword(4 * 0x43, far(data::ROM_SEGMENT, font::of_height(mode.height)));
    serial::reset(c);
}

/// Empties the mode's memory.
fn clear(c: &mut Call, mode: &Mode) {
    let (word, len) = match mode.segment {
        0xa000 => ([0, 0], 0x1_0000),
        _ if mode.text => ([b' ', 7], 0x8000),
        _ => ([0, 0], 0x8000),
    };
    // Planes are written through a mask that the mode's registers leave open.
    let bytes: Vec<u8> = word.into_iter().cycle().take(len).collect();
    c.host.write(linear(mode.segment, 0), &bytes);
}

/// Function 01: the lines of the cursor. Shapes for characters of 8 lines are stretched, unless somebody forbade it.
fn set_shape(c: &mut Call, first: u8, last: u8) {
    c.set_word(data::CURSOR_SHAPE, u16::from_le_bytes([last, first]));
    let height = height(c);
    let (mut top, mut bottom) = (first & 0x1f, last & 0x1f);
    if c.byte(data::VIDEO_CONTROL) & 1 == 0 && first & 0x20 == 0 && height > 8 && bottom < 8 && top <= bottom {
        let stretch = |line: u8| (u16::from(line) * u16::from(height) / 8) as u8;
        if bottom - top <= 1 && bottom >= 5 {
            // An underline stays thin, above the last line.
            (top, bottom) = (stretch(bottom + 1) - 2 - (bottom - top), stretch(bottom + 1) - 2);
        } else {
            (top, bottom) = (stretch(top), stretch(bottom + 1) - 1);
        }
    }
    let port = c.crtc();
    c.set_indexed(port, 0x0a, top | first & 0x60);
    c.set_indexed(port, 0x0b, bottom);
}

/// Puts the cursor of a page somewhere.
fn set_cursor(c: &mut Call, page: u8, x: u16, y: u16) {
    let page = page & 7;
    c.set_word(data::CURSORS + 2 * u64::from(page), x & 0xff | y << 8);
    if page == shown(c) {
        let at = (c.word(data::PAGE_START) / 2).wrapping_add(y.wrapping_mul(columns(c))).wrapping_add(x);
        let port = c.crtc();
        c.set_indexed(port, 0x0e, (at >> 8) as u8);
        c.set_indexed(port, 0x0f, at as u8);
    }
}

/// Where the cursor is that is seen, if it is on the screen.
pub(super) fn visible_cursor(c: &mut Call) -> Option<(u16, u16)> {
    let page = shown(c);
    let (x, y) = cursor(c, page);
    (x < columns(c) && y < rows(c)).then_some((x, y))
}

/// Shows what is in a window on the mirror.
fn mirror_window(c: &mut Call, page: u8, w: Window) {
    if !serial::is_on(c) || page != shown(c) || !mode(c).text {
        return;
    }
    for y in w.top..=w.bottom {
        let at = cell(c, page, w.left, y);
        let mut row = vec![0; 2 * usize::from(w.right - w.left + 1)];
        c.host.read(at, &mut row);
        let text: Vec<u8> = row.chunks(2).map(|cell| mirrored(cell[0])).collect();
        serial::text(c, w.left, y, &text);
    }
}

/// Function 05: shows a page.
fn show_page(c: &mut Call, page: u8) {
    let page = page & 7;
    let start = c.word(data::PAGE_SIZE).wrapping_mul(page.into());
    c.set_byte(data::PAGE, page);
    c.set_word(data::PAGE_START, start);
    let mode = mode(c);
    // In text modes an address is a word.
    let at = if mode.text { start / 2 } else { start };
    let port = c.crtc();
    c.set_indexed(port, 0x0c, (at >> 8) as u8);
    c.set_indexed(port, 0x0d, at as u8);
    let (x, y) = cursor(c, page);
    set_cursor(c, page, x, y);
}

/// A window of characters, inclusive.
#[derive(Clone, Copy)]
struct Window {
    left: u16,
    top: u16,
    right: u16,
    bottom: u16,
}

/// Moves a window, which is on the screen, up or down by `n` lines (0: all) and fills what becomes free.
fn scroll(c: &mut Call, page: u8, n: u16, attr: u8, w: Window, up: bool) {
    let lines = w.bottom - w.top + 1;
    let n = if n == 0 || n > lines { lines } else { n };
    if !mode(c).text {
        return graphics::scroll(c, page, n, attr, w, up);
    }
    let width = 2 * usize::from(w.right - w.left + 1);
    let blank: Vec<u8> = [b' ', attr].into_iter().cycle().take(width).collect();
    for step in 0..lines {
        let y = if up { w.top + step } else { w.bottom - step };
        let to = cell(c, page, w.left, y);
        if step + n < lines {
            let from = cell(c, page, w.left, if up { y + n } else { y - n });
            let mut row = vec![0; width];
            c.host.read(from, &mut row);
            c.host.write(to, &row);
        } else {
            c.host.write(to, &blank);
        }
    }
}

/// Functions 06 and 07: the same with what of a window is on the screen, and on the mirror.
fn scroll_window(c: &mut Call, page: u8, n: u16, attr: u8, mut w: Window, up: bool) {
    let (columns, rows) = (columns(c), rows(c));
    (w.right, w.bottom) = (w.right.min(columns - 1), w.bottom.min(rows - 1));
    if w.left > w.right || w.top > w.bottom {
        return;
    }
    scroll(c, page, n, attr, w, up);
    let whole = (w.left, w.top, w.right, w.bottom) == (0, 0, columns - 1, rows - 1);
    if whole && (n == 0 || n >= rows) {
        serial::clear(c);
    } else if whole && up {
        serial::scrolled(c, n, rows - 1);
    } else {
        mirror_window(c, page, w);
    }
}

/// The character and attribute at the cursor.
fn read_cell(c: &mut Call, page: u8) -> [u8; 2] {
    let (x, y) = cursor(c, page);
    if !mode(c).text {
        return [graphics::read_character(c, page, x, y), 0];
    }
    let at = cell(c, page, x, y);
    c.word(at).to_le_bytes()
}

/// Writes a character at a place, with an attribute or the one that is there.
fn put(c: &mut Call, page: u8, x: u16, y: u16, ch: u8, attr: Option<u8>) {
    if !mode(c).text {
        return graphics::draw_character(c, page, x, y, ch, attr.unwrap_or(7));
    }
    let at = cell(c, page, x, y);
    c.set_byte(at, ch);
    if let Some(attr) = attr {
        c.set_byte(at + 1, attr);
    }
}

/// Functions 09 and 0A: a character several times, from the cursor on, which stays.
fn write_times(c: &mut Call, page: u8, ch: u8, attr: Option<u8>, times: u16) {
    let (x, y) = cursor(c, page);
    let (columns, rows) = (columns(c), rows(c));
    let start = u32::from(y) * u32::from(columns) + u32::from(x);
    let end = u32::from(columns) * u32::from(rows);
    for at in start..(start + u32::from(times)).min(end) {
        let (x, y) = ((at % u32::from(columns)) as u16, (at / u32::from(columns)) as u16);
        put(c, page, x, y, ch, attr);
    }
    if page & 7 == shown(c) && times > 0 {
        let text = vec![mirrored(ch); usize::from(times.min(columns.saturating_sub(x)))];
        serial::text(c, x, y, &text);
    }
}

/// What the mirror shows for a character of code page 437.
fn mirrored(ch: u8) -> u8 {
    match ch {
        0x20..=0x7e => ch,
        0x00 | 0xff => b' ',
        0xb3 | 0xba => b'|',
        0xc4 | 0xcd => b'-',
        0xb0..=0xb2 | 0xdb..=0xdf | 0xfe => b'#',
        0xb4..=0xda => b'+',
        _ => b'?',
    }
}

/// Writes a character at the cursor as a terminal does.
pub(super) fn teletype(c: &mut Call, byte: u8) {
    let page = shown(c);
    write(c, page, byte, None);
}

fn write(c: &mut Call, page: u8, byte: u8, attr: Option<u8>) {
    let (mut x, mut y) = cursor(c, page);
    let (columns, rows) = (columns(c), rows(c));
    let old = (x, y);
    match byte {
        7 => {}
        8 => x = x.saturating_sub(1),
        b'\n' => y += 1,
        b'\r' => x = 0,
        _ => {
            put(c, page, x, y, byte, attr);
            x += 1;
        }
    }
    if page & 7 == shown(c) {
        match byte {
            7 | 8 | b'\n' | b'\r' => {
                serial::follow(c, old.0, old.1);
                serial::control(c, &[byte], x, y.min(rows - 1));
            }
            _ => serial::text(c, old.0, old.1, &[mirrored(byte)]),
        }
        if x >= columns {
            serial::control(c, b"\r\n", 0, (y + 1).min(rows - 1));
        }
    }
    if x >= columns {
        (x, y) = (0, y + 1);
    }
    if y >= rows {
        y = rows - 1;
        // The new line has the attribute of where the cursor was.
        let fill = if mode(c).text {
            let at = cell(c, page, x, y);
            c.byte(at + 1)
        } else {
            0
        };
        let all = Window { left: 0, top: 0, right: columns - 1, bottom: y };
        scroll(c, page, 1, fill, all, true);
    }
    set_cursor(c, page, x, y);
}

/// Characters of a string that are drawn at most in a graphics mode.
const MOST_DRAWN: u16 = 512;

/// Function 13: a string at ES:BP, with attributes of its own or one for all.
fn write_string(c: &mut Call) {
    let (how, page, attr) = (c.r.al(), c.r.bh(), c.r.bl());
    let old = cursor(c, page);
    let (x, y) = (u16::from(c.r.dl()), u16::from(c.r.dh()));
    set_cursor(c, page, x, y);
    let (segment, mut offset) = (c.r.es, c.r.bp());
    // Scrolling dots takes its time, and the processors stand still meanwhile.
    let most = if mode(c).text { u16::MAX } else { MOST_DRAWN };
    for _ in 0..c.r.cx().min(most) {
        let ch = c.byte(linear(segment, offset));
        offset = offset.wrapping_add(1);
        let mut with = attr;
        if how & 2 != 0 {
            with = c.byte(linear(segment, offset));
            offset = offset.wrapping_add(1);
        }
        write(c, page, ch, Some(with));
    }
    if how & 1 == 0 {
        set_cursor(c, page, old.0, old.1);
    }
}

/// Function 12h: what the adapter is and small choices.
fn alternate(c: &mut Call) {
    match c.r.bl() {
        0x10 => {
            let mono = u8::from(c.crtc() == 0x3b4);
            c.r.set_bx(u16::from_le_bytes([3, mono]));
            let switches = c.byte(data::VIDEO_SWITCHES);
            c.r.set_cx(u16::from_le_bytes([switches & 15, switches >> 4]));
            return;
        }
        // Scan lines of text modes, default palettes, grey shades, cursor shapes: remembered where programs look.
        0x30 => {
            let lines = [0x80, 0x00, 0x10].get(usize::from(c.r.al())).copied();
            let options = c.byte(data::VIDEO_OPTIONS);
            c.set_byte(data::VIDEO_OPTIONS, lines.map_or(options, |bits| options & !0x90 | bits));
        }
        0x31 => flip(c, data::VIDEO_OPTIONS, 8),
        // Whether the processor reaches the adapter.
        0x32 => {
            let misc = c.inb(0x3cc) & !2;
            let on = u8::from(c.r.al() == 0) << 1;
            c.outb(0x3c2, misc | on);
        }
        0x33 => {
            let on = u8::from(c.r.al() == 0) << 1;
            let options = c.byte(data::VIDEO_OPTIONS) & !2;
            c.set_byte(data::VIDEO_OPTIONS, options | on);
        }
        0x34 => flip(c, data::VIDEO_CONTROL, 1),
        0x36 => {
            let off = if c.r.al() == 0 { 0 } else { 0x20 };
            let clocking = c.indexed(0x3c4, 1) & !0x20;
            c.set_indexed(0x3c4, 1, clocking | off);
        }
        _ => return,
    }
    c.r.set_al(0x12);
}

/// Sets a bit when AL is 1, clears it when it is 0.
fn flip(c: &mut Call, at: u64, bit: u8) {
    let old = c.byte(at) & !bit;
    let on = if c.r.al() == 1 { bit } else { 0 };
    c.set_byte(at, old | on);
}

/// Function 1B: 64 bytes at ES:DI that say all.
fn state(c: &mut Call) {
    let to = linear(c.r.es, c.r.di());
    let mut info = [0; 64];
    info[..4].copy_from_slice(&far(data::ROM_SEGMENT, STATIC).to_le_bytes());
    c.host.read(data::VIDEO_MODE, &mut info[4..34]);
    info[34] = c.byte(data::ROWS) + 1;
    c.host.read(data::CHAR_HEIGHT, &mut info[35..37]);
    info[37] = if c.crtc() == 0x3b4 { VGA_MONO } else { VGA_COLOUR };
    let mode = mode(c);
    let colours: u16 = match (mode.number, mode.colours) {
        (0x13, _) => 256,
        (4 | 5, _) => 4,
        (6 | 0x11, _) => 2,
        (_, Colours::Mono) => 0,
        _ => 16,
    };
    info[39..41].copy_from_slice(&colours.to_le_bytes());
    info[41] = if mode.text { (0x8000 / mode.page.max(1)) as u8 } else { 1 };
    info[42] = match u16::from(mode.rows) * u16::from(mode.height) {
        200 => 0,
        350 => 1,
        400 => 2,
        _ => 3,
    };
    info[45] = 0x01;
    // 256 KiB.
    info[49] = 3;
    c.host.write(to, &info);
}

/// INT 10h.
pub(super) fn service(c: &mut Call) -> Flow {
    let page = c.r.bh();
    let (al, bl, cx) = (c.r.al(), c.r.bl(), c.r.cx());
    match c.r.ah() {
        0x00 => {
            set_mode(c, al);
            let answer = match al & 0x7f {
                6 => 0x3f,
                n if n > 7 => 0x20,
                _ => 0x30,
            };
            c.r.set_al(answer);
        }
        0x01 => set_shape(c, c.r.ch(), c.r.cl()),
        0x02 => {
            let (x, y) = (u16::from(c.r.dl()), u16::from(c.r.dh()));
            set_cursor(c, page, x, y);
        }
        0x03 => {
            let (x, y) = cursor(c, page);
            let shape = c.word(data::CURSOR_SHAPE);
            c.r.set_dx(x | y << 8);
            c.r.set_cx(shape);
            c.r.set_ax(0);
        }
        // No light pen.
        0x04 => c.r.set_ah(0),
        0x05 => show_page(c, al),
        0x06 | 0x07 => {
            let window =
                Window { left: c.r.cl().into(), top: c.r.ch().into(), right: c.r.dl().into(), bottom: c.r.dh().into() };
            let (attr, page) = (c.r.bh(), shown(c));
            scroll_window(c, page, al.into(), attr, window, c.r.ah() == 6);
        }
        0x08 => {
            let cell = read_cell(c, page);
            c.r.set_ax(u16::from_le_bytes(cell));
        }
        0x09 => write_times(c, page, al, Some(bl), cx),
        0x0a => {
            let attr = if mode(c).text { None } else { Some(bl) };
            write_times(c, page, al, attr, cx);
        }
        0x0b => palette::cga(c),
        0x0c => graphics::write_dot(c, page, cx, c.r.dx(), al),
        0x0d => {
            let dot = graphics::read_dot(c, page, cx, c.r.dx());
            c.r.set_al(dot);
        }
        0x0e => {
            // In text modes the attribute stays.
            let attr = if mode(c).text { None } else { Some(bl) };
            let page = shown(c);
            write(c, page, al, attr);
        }
        0x0f => {
            let keep = c.byte(data::VIDEO_CONTROL) & 0x80;
            let number = c.byte(data::VIDEO_MODE);
            let page = shown(c);
            let columns = columns(c) as u8;
            c.r.set_ax(u16::from_le_bytes([number | keep, columns]));
            c.r.set_bh(page);
        }
        0x10 => palette::service(c),
        0x11 => font::service(c),
        0x12 => alternate(c),
        0x13 => write_string(c),
        0x1a if adapter(c) => {
            if al == 0 {
                let display = if c.crtc() == 0x3b4 { VGA_MONO } else { VGA_COLOUR };
                c.r.set_bx(display.into());
            }
            c.r.set_al(0x1a);
        }
        0x1b if bl == 0 && c.r.bh() == 0 && adapter(c) => {
            state(c);
            c.r.set_al(0x1b);
        }
        0x4f => vbe::service(c),
        _ => {}
    }
    Flow::Done
}
