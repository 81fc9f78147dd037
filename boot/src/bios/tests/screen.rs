//! INT 10h in text modes, without an adapter: what it does to memory and to the mirror.

use super::*;

const SCREEN: u64 = 0xb_8000;

fn screen() -> Rig {
    let mut rig = rig(Vec::new(), |_| {});
    rig.call(0x10, ax(0x0003));
    rig.host.typed.clear();
    rig
}

fn put_cursor(rig: &mut Rig, x: u8, y: u8) {
    rig.call(0x10, Regs { edx: u32::from(y) << 8 | u32::from(x), ..ax(0x0200) });
}

fn cursor(rig: &mut Rig) -> (u8, u8) {
    let r = rig.call(0x10, ax(0x0300));
    (r.dl(), r.dh())
}

fn teletype(rig: &mut Rig, text: &str) {
    text.bytes().for_each(|b| _ = rig.call(0x10, ax(0x0e00 | u16::from(b))));
}

/// Characters from a place on.
fn row(rig: &Rig, x: u64, y: u64, len: usize) -> String {
    let at = (SCREEN + 160 * y + 2 * x) as usize;
    rig.host.memory[at..at + 2 * len].chunks(2).map(|c| char::from(c[0])).collect()
}

#[test]
fn a_terminal_wraps_scrolls_and_obeys_control_codes() {
    let mut rig = screen();
    teletype(&mut rig, "one\r\ntwo\x08\x08W");
    assert_eq!((row(&rig, 0, 0, 3), row(&rig, 0, 1, 3), cursor(&mut rig)), ("one".into(), "tWo".into(), (2, 1)));
    put_cursor(&mut rig, 79, 24);
    teletype(&mut rig, "xy");
    assert_eq!((row(&rig, 0, 0, 3), row(&rig, 79, 23, 1), row(&rig, 0, 24, 1)), ("tWo".into(), "x".into(), "y".into()));
    assert_eq!(cursor(&mut rig), (1, 24));
}

#[test]
fn characters_are_written_read_and_repeated_at_the_cursor() {
    let mut rig = screen();
    put_cursor(&mut rig, 78, 2);
    rig.call(0x10, Regs { ebx: 0x1e, ecx: 4, ..ax(0x0900 | 0x2a) });
    assert_eq!((row(&rig, 78, 2, 4), cursor(&mut rig)), ("****".into(), (78, 2)));
    let r = rig.call(0x10, ax(0x0800));
    assert_eq!((r.al(), r.ah()), (b'*', 0x1e));
    // Without an attribute that of the cell stays.
    rig.call(0x10, Regs { ebx: 0x44, ecx: 1, ..ax(0x0a00 | 0x2b) });
    assert_eq!(rig.call(0x10, ax(0x0800)).ax(), 0x1e2b);
    // No more than the screen holds.
    rig.call(0x10, Regs { ebx: 7, ecx: 0xffff, ..ax(0x0900 | 0x2e) });
    assert_eq!(row(&rig, 0, 24, 80), ".".repeat(80));
    assert_eq!(rig.host.memory[(SCREEN + 4000) as usize], 0);
}

#[test]
fn windows_scroll_within_their_edges() {
    let mut rig = screen();
    for (y, line) in ["aaaa", "bbbb", "cccc"].into_iter().enumerate() {
        put_cursor(&mut rig, 0, y as u8);
        teletype(&mut rig, line);
    }
    let window = Regs { ebx: 0x7000, ecx: 0x0001, edx: 0x0202, ..Regs::default() };
    rig.call(0x10, Regs { eax: 0x0601, ..window });
    assert_eq!([0, 1, 2].map(|y| row(&rig, 0, y, 4)), ["abba", "bccb", "c  c"]);
    assert_eq!(rig.host.memory[(SCREEN + 2 * 160 + 3) as usize], 0x70);
    rig.call(0x10, Regs { eax: 0x0702, ..window });
    assert_eq!([0, 1, 2].map(|y| row(&rig, 0, y, 4)), ["a  a", "b  b", "cbbc"]);
    // Windows that are none, and more lines than there are.
    rig.call(0x10, Regs { eax: 0x0601, ecx: 0x0505, edx: 0x0101, ..window });
    rig.call(0x10, Regs { eax: 0x06ff, ecx: 0, edx: 0xffff, ..window });
    assert_eq!(row(&rig, 0, 24, 80), " ".repeat(80));
}

#[test]
fn strings_bring_their_attributes_or_take_one() {
    let mut rig = screen();
    rig.host.write(0x1_0000, b"A\x1fB\x2e");
    let at = Regs { es: 0x1000, ecx: 2, edx: 0x0305, ebx: 0x70, ..Regs::default() };
    rig.call(0x10, Regs { eax: 0x1303, ..at });
    let place = (SCREEN + 160 * 3 + 10) as usize;
    assert_eq!(rig.host.memory[place..place + 4], *b"A\x1fB\x2e");
    assert_eq!(cursor(&mut rig), (7, 3));
    rig.host.write(0x1_0000, b"xy");
    rig.call(0x10, Regs { eax: 0x1300, ..at });
    assert_eq!(rig.host.memory[place..place + 4], *b"x\x70y\x70");
    assert_eq!(cursor(&mut rig), (7, 3), "it stays");
}

#[test]
fn pages_have_cursors_and_memory_of_their_own() {
    let mut rig = screen();
    rig.call(0x10, Regs { ebx: 0x0100, edx: 0x0203, ..ax(0x0200) });
    rig.call(0x10, Regs { ebx: 0x0107, ecx: 1, ..ax(0x0958) });
    assert_eq!(rig.host.memory[(SCREEN + 0x1000 + 2 * 160 + 6) as usize], b'X');
    assert_eq!(cursor(&mut rig), (0, 0));
    rig.call(0x10, ax(0x0501));
    let r = rig.call(0x10, ax(0x0f00));
    assert_eq!((r.al(), r.ah(), r.bh(), rig.word(0x44e)), (3, 80, 1, 0x1000));
}

#[test]
fn the_data_area_tells_the_mode() {
    let mut rig = screen();
    assert_eq!((rig.word(0x44a), rig.word(0x44c), rig.word(0x463), rig.word(0x484)), (80, 0x1000, 0x3d4, 0x1018));
    rig.call(0x10, ax(0x0087));
    assert_eq!((rig.word(0x449) as u8, rig.word(0x463), rig.word(0x410) & 0x30), (7, 0x3b4, 0x30));
    assert_eq!(rig.call(0x10, ax(0x0f00)).al(), 0x87, "it was set without clearing");
    rig.call(0x10, ax(0x0013));
    assert_eq!((rig.word(0x449) as u8, rig.word(0x44a), rig.word(0x485)), (0x13, 40, 8));
    rig.call(0x10, ax(0x0055));
    assert_eq!(rig.word(0x449) as u8, 0x13, "there is no mode 55");
}

#[test]
fn fonts_and_tables_are_where_the_services_say() {
    let mut rig = screen();
    let rom = Rom::build().unwrap();
    let r = rig.call(0x10, Regs { ebx: 0x0600, ..ax(0x1130) });
    let at = usize::from(r.bp()) + 16 * usize::from(b'A');
    assert_eq!((r.es, &rom.bytes()[at..at + 16]), (0xf000, &crate::video::FONT_8X16[65][..]));
    assert_eq!((r.cx(), r.dl()), (16, 24));
    // F000:FA6E, which programs know.
    assert_eq!(rom.bytes()[0xfa6e + 8 * 65..][..8], crate::video::FONT_8X8[65]);
    let pointers = usize::from(rig.word(0x4a8));
    let table = usize::from(u16::from_le_bytes([rom.bytes()[pointers], rom.bytes()[pointers + 1]]));
    assert_eq!(rom.bytes()[table + 64 * 0x1c..][..3], [40, 24, 8], "mode 13h");
}

#[test]
fn the_mirror_follows_the_cursor() {
    let mut rig = screen();
    put_cursor(&mut rig, 4, 2);
    teletype(&mut rig, "a\u{0}");
    assert_eq!(rig.host.typed, "\x1b[3;5Ha ");
    rig.host.typed.clear();
    rig.call(0x10, Regs { edx: 0x184f, ..ax(0x0600) });
    assert_eq!(rig.host.typed, "\x1b[2J");
}

/// As FreeBSD's loader writes: cursor, character, cursor, and lines scrolled by hand.
#[test]
fn text_that_is_placed_by_the_character_is_text_on_the_mirror() {
    let mut rig = screen();
    for (n, ch) in (0..).zip(*b"OK") {
        put_cursor(&mut rig, n, 0);
        rig.call(0x10, Regs { ebx: 7, ecx: 1, ..ax(0x0900 | u16::from(ch)) });
        put_cursor(&mut rig, n + 1, 0);
        rig.call(0x16, ax(0x0100));
    }
    assert_eq!(rig.host.typed, "OK");
    put_cursor(&mut rig, 0, 1);
    teletype(&mut rig, "next");
    put_cursor(&mut rig, 2, 1);
    rig.call(0x16, ax(0x0100));
    assert_eq!(rig.host.typed, "OK\r\nnext\x1b[2D", "the cursor shows when a key is asked for");
    put_cursor(&mut rig, 3, 24);
    teletype(&mut rig, "!");
    rig.host.typed.clear();
    rig.call(0x10, Regs { edx: 0x184f, ..ax(0x0601) });
    put_cursor(&mut rig, 2, 24);
    teletype(&mut rig, ">");
    assert_eq!(rig.host.typed, "\n\x1b[2D>", "a line goes up");
    rig.host.typed.clear();
    rig.call(0x10, Regs { ecx: 0x1702, edx: 0x1804, ..ax(0x0601) });
    assert_eq!(rig.host.typed, "\x1b[24;3H>  \x1b[25;3H   ", "a window is shown anew");
}

#[test]
fn whatever_is_asked_of_it_it_does_not_fall_over() {
    let mut rig = screen();
    let mut seed = 1u32;
    let mut next = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        seed >> 8
    };
    for n in 0..400u32 {
        let r = Regs {
            eax: (n % 0x20) << 8 | next() & 0xff,
            ebx: next() & if n % 3 == 0 { 0xff0f } else { 0xffff },
            ecx: next() & 0xffff,
            edx: next() & 0xffff,
            ebp: next() & 0xffff,
            edi: next() & 0xffff,
            // Away from the frame.
            es: 0x1000 + (next() & 0x7ff) as u16,
            ..Regs::default()
        };
        rig.call(0x10, r);
        // A guest writes into the data area what it likes.
        if n % 16 == 0 {
            let at = 0x449 + u64::from(next() % 0x60);
            rig.host.write(at, &[next() as u8]);
        }
    }
}
