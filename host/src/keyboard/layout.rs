//! National keyboard layouts: on which key a character is, and with what it is held together.
//!
//! Sources: the layouts' standards as X's keyboard database has them. A row is the code of its first key, and the
//! characters of its keys alone, with Shift and with AltGr; a space stands for none. Keys that wait for a letter (dead
//! keys) are found by the sign that they put over it. bhyve's own files say less (bhyve(8), -K): which key has a
//! character, and not what is held with it.

use anyhow::{Context, Result, ensure};
use emu::scancode::to_set1;

use super::keymap::{ALT, CTRL, SHIFT};

/// The right Alt key.
pub(crate) const ALT_GR: u16 = 0x138;

/// First code; characters alone, with Shift, with AltGr.
type Row = (u16, &'static str, &'static str, &'static str);

/// A layout.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Its name.
    pub name: &'static str,
    rows: &'static [Row],
    /// Of a file: keys by keysym, with which the guest sees held what the client holds.
    keys: Option<Vec<(u32, u16)>>,
}

/// Longest layout file that is read.
const FILE: u64 = 1 << 16;

/// A key, and what must be held with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stroke {
    pub code: u16,
    pub shift: bool,
    pub alt_gr: bool,
}

/// All that there are.
pub const LAYOUTS: [Layout; 6] = [
    Layout {
        name: "us",
        rows: &[
            (0x29, "`", "~", ""),
            (0x02, "1234567890-=", "!@#$%^&*()_+", ""),
            (0x10, "qwertyuiop[]", "QWERTYUIOP{}", ""),
            (0x1e, "asdfghjkl;'", "ASDFGHJKL:\"", ""),
            (0x2b, "\\zxcvbnm,./", "|ZXCVBNM<>?", ""),
        ],
        keys: None,
    },
    Layout {
        name: "gb",
        rows: &[
            (0x29, "`", "¬", "¦"),
            (0x02, "1234567890-=", "!\"£$%^&*()_+", "   €"),
            (0x10, "qwertyuiop[]", "QWERTYUIOP{}", ""),
            (0x1e, "asdfghjkl;'", "ASDFGHJKL:@", ""),
            (0x2b, "#zxcvbnm,./", "~ZXCVBNM<>?", ""),
            (0x56, "\\", "|", ""),
        ],
        keys: None,
    },
    Layout {
        name: "de",
        rows: &[
            (0x29, "^", "°", ""),
            (0x02, "1234567890ß´", "!\"§$%&/()=?`", " ²³   {[]}\\"),
            (0x10, "qwertzuiopü+", "QWERTZUIOPÜ*", "@ €        ~"),
            (0x1e, "asdfghjklöä", "ASDFGHJKLÖÄ", ""),
            (0x2b, "#yxcvbnm,.-", "'YXCVBNM;:_", "       µ"),
            (0x56, "<", ">", "|"),
        ],
        keys: None,
    },
    Layout {
        name: "fr",
        rows: &[
            (0x29, "²", "", ""),
            (0x02, "&é\"'(-è_çà)=", "1234567890°+", " ~#{[|`\\^@]}"),
            (0x10, "azertyuiop^$", "AZERTYUIOP¨£", "  €        ¤"),
            (0x1e, "qsdfghjklmù", "QSDFGHJKLM%", ""),
            (0x2b, "*wxcvbn,;:!", "µWXCVBN?./§", ""),
            (0x56, "<", ">", ""),
        ],
        keys: None,
    },
    Layout {
        name: "es",
        rows: &[
            (0x29, "º", "ª", "\\"),
            (0x02, "1234567890'¡", "!\"·$%&/()=?¿", "|@#~ ¬"),
            (0x10, "qwertyuiop`+", "QWERTYUIOP^*", "  €       []"),
            (0x1e, "asdfghjklñ´", "ASDFGHJKLÑ¨", "          {"),
            (0x2b, "çzxcvbnm,.-", "ÇZXCVBNM;:_", "}"),
            (0x56, "<", ">", ""),
        ],
        keys: None,
    },
    Layout {
        name: "jp",
        rows: &[
            (0x02, "1234567890-^", "!\"#$%&'() =~", ""),
            (0x10, "qwertyuiop@[", "QWERTYUIOP`{", ""),
            (0x1e, "asdfghjkl;:", "ASDFGHJKL+*", ""),
            (0x2b, "]zxcvbnm,./", "}ZXCVBNM<>?", ""),
            (0x73, "\\", "_", ""),
            (0x7d, "¥", "|", ""),
        ],
        keys: None,
    },
];

impl Layout {
    /// The layout of a name.
    pub fn named(name: &str) -> Option<Layout> {
        LAYOUTS.into_iter().find(|layout| layout.name == name)
    }

    /// The layout that a file of `/usr/share/bhyve/kbdlayout` describes. Its lines are `'CHARACTER',CODE;` and
    /// `KEYSYM,CODE[,1];`, the numbers hexadecimal and the code set 2's, of a key with prefix E0 where there is a 1. All
    /// others are remarks, and what is not named is as in the United States.
    ///
    /// # Errors
    /// It cannot be read, or has no such line.
    pub fn read(path: &str) -> Result<Layout> {
        use std::io::Read;
        let mut bytes = Vec::new();
        std::fs::File::open(path).and_then(|file| file.take(FILE).read_to_end(&mut bytes)).context("cannot be read")?;
        let keys: Vec<_> = String::from_utf8_lossy(&bytes).lines().filter_map(entry).collect();
        ensure!(!keys.is_empty(), "no line of it is a key");
        Ok(Layout { keys: Some(keys), ..Layout::default() })
    }

    /// The key of a keysym, whatever is held with it, if that is not for the layout to say.
    pub(crate) fn key(&self, keysym: u32) -> Option<u16> {
        let keys = self.keys.as_ref()?;
        let ours = || match meaning(keysym)? {
            Meaning::Key(code) => Some(code),
            Meaning::Character(c) => self.find(c).map(|stroke| stroke.code),
        };
        keys.iter().find(|(k, _)| *k == keysym).map(|(_, code)| *code).or_else(ours)
    }

    /// How a character is typed.
    pub(crate) fn find(&self, c: char) -> Option<Stroke> {
        let at = |row: &str| row.chars().position(|x| x == c && x != ' ');
        self.rows.iter().find_map(|(first, alone, shift, alt_gr)| {
            let found = [(*alone, false, false), (*shift, true, false), (*alt_gr, false, true)];
            found
                .into_iter()
                .find_map(|(row, shift, alt_gr)| at(row).map(|n| Stroke { code: first + n as u16, shift, alt_gr }))
        })
    }
}

impl Default for Layout {
    /// The United States'.
    fn default() -> Layout {
        let [us, ..] = LAYOUTS;
        us
    }
}

/// A line of a layout file: keysym and key.
fn entry(line: &str) -> Option<(u32, u16)> {
    let number = |text: &str| {
        let text = text.trim();
        u32::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()
    };
    let (keysym, rest) = match line.strip_prefix('\'') {
        Some(line) => {
            let c = line.chars().next().filter(char::is_ascii)?;
            (u32::from(c), line.get(1..)?.strip_prefix("',")?)
        }
        None => {
            let (keysym, rest) = line.split_once(',')?;
            (number(keysym)?, rest)
        }
    };
    let (codes, _) = rest.split_once(';')?;
    let (code, prefix) = codes.split_once(',').unwrap_or((codes, "0"));
    let code = u16::from(to_set1(u8::try_from(number(code)?).ok()?));
    Some((keysym, if number(prefix)? == 0 { code } else { 0x100 | code }))
}

/// Keys by X's names of what is on them (keysyms), where it is no character.
const KEYSYMS: [(u32, u16); 98] = [
    (0x20, 0x39),
    (0xa0, 0x39),
    (0xff08, 0x0e), // BackSpace
    (0xff09, 0x0f),
    (0xfe20, 0x0f), // ISO_Left_Tab
    (0xff0a, 0x1c),
    (0xff0d, 0x1c),
    (0xff13, 0x245), // Pause
    (0xff14, 0x46),  // Scroll_Lock
    (0xff15, 0x54),  // Sys_Req
    (0xff1b, 0x01),
    (0xff50, 0x147), // Home, arrows, Prior, Next, End
    (0xff51, 0x14b),
    (0xff52, 0x148),
    (0xff53, 0x14d),
    (0xff54, 0x150),
    (0xff55, 0x149),
    (0xff56, 0x151),
    (0xff57, 0x14f),
    (0xff61, 0x137), // Print
    (0xff63, 0x152),
    (0xff67, 0x15d),
    (0xff6b, 0x146), // Break
    (0xff7f, 0x45),
    (0xff8d, 0x11c), // The keypad, without its numbers and with them
    (0xff95, 0x47),
    (0xff96, 0x4b),
    (0xff97, 0x48),
    (0xff98, 0x4d),
    (0xff99, 0x50),
    (0xff9a, 0x49),
    (0xff9b, 0x51),
    (0xff9c, 0x4f),
    (0xff9d, 0x4c),
    (0xff9e, 0x52),
    (0xff9f, 0x53),
    (0xffaa, 0x37),
    (0xffab, 0x4e),
    (0xffac, 0x53),
    (0xffad, 0x4a),
    (0xffae, 0x53),
    (0xffaf, 0x135),
    (0xffb0, 0x52),
    (0xffb1, 0x4f),
    (0xffb2, 0x50),
    (0xffb3, 0x51),
    (0xffb4, 0x4b),
    (0xffb5, 0x4c),
    (0xffb6, 0x4d),
    (0xffb7, 0x47),
    (0xffb8, 0x48),
    (0xffb9, 0x49),
    (0xffbd, 0x59), // KP_Equal
    (0xffbe, 0x3b), // F1
    (0xffbf, 0x3c),
    (0xffc0, 0x3d),
    (0xffc1, 0x3e),
    (0xffc2, 0x3f),
    (0xffc3, 0x40),
    (0xffc4, 0x41),
    (0xffc5, 0x42),
    (0xffc6, 0x43),
    (0xffc7, 0x44),
    (0xffc8, 0x57),
    (0xffc9, 0x58),
    (0xffe1, SHIFT),
    (0xffe2, 0x36),
    (0xffe3, CTRL),
    (0xffe4, 0x11d),
    (0xffe5, 0x3a),
    (0xffe7, 0x15b), // Meta
    (0xffe8, 0x15c),
    (0xffe9, ALT),
    (0xffea, ALT_GR),
    (0xffeb, 0x15b), // Super
    (0xffec, 0x15c),
    (0xfe03, ALT_GR), // ISO_Level3_Shift
    (0xff7e, ALT_GR), // Mode_switch
    (0xffff, 0x153),
    (0xff21, 0x29),  // Kanji
    (0xff22, 0x7b),  // Muhenkan
    (0xff23, 0x79),  // Henkan_Mode
    (0xff24, 0x70),  // Romaji
    (0xff25, 0x70),  // Hiragana
    (0xff26, 0x70),  // Katakana
    (0xff27, 0x70),  // Hiragana_Katakana
    (0xff28, 0x29),  // Zenkaku
    (0xff29, 0x29),  // Hankaku
    (0xff2a, 0x29),  // Zenkaku_Hankaku
    (0xff2d, 0x70),  // Kana_Lock
    (0xff2e, 0x70),  // Kana_Shift
    (0xff30, 0x3a),  // Eisu_toggle
    (0xff31, 0x1f2), // Hangul, Hangul_Hanja
    (0xff34, 0x1f1),
    (0x1008ff11, 0x12e), // Volume down, mute, volume up
    (0x1008ff12, 0x120),
    (0x1008ff13, 0x130),
    (0x1008ff2f, 0x15f), // Sleep
];
/// The signs of dead keys.
const DEAD: [(u32, char); 7] =
    [(0xfe50, '`'), (0xfe51, '´'), (0xfe52, '^'), (0xfe53, '~'), (0xfe57, '¨'), (0xfe5b, '¸'), (0xfe58, '°')];

/// What a keysym stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// A key, whatever is held with it.
    Key(u16),
    /// A character.
    Character(char),
}

/// What a keysym stands for.
pub(crate) fn meaning(keysym: u32) -> Option<Meaning> {
    if let Some((_, code)) = KEYSYMS.iter().find(|(k, _)| *k == keysym) {
        return Some(Meaning::Key(*code));
    }
    if let Some((_, sign)) = DEAD.iter().find(|(k, _)| *k == keysym) {
        return Some(Meaning::Character(*sign));
    }
    let c = match keysym {
        0x21..=0x7e | 0xa1..=0xff => char::from_u32(keysym),
        0x20ac => Some('€'),
        0x0100_0000..=0x0110_ffff => char::from_u32(keysym - 0x0100_0000).filter(|c| !c.is_control()),
        _ => None,
    };
    c.map(Meaning::Character)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stroke(layout: &str, c: char) -> Option<(u16, bool, bool)> {
        Layout::named(layout).unwrap().find(c).map(|s| (s.code, s.shift, s.alt_gr))
    }

    #[test]
    fn a_line_of_a_file_is_a_key_or_a_remark() {
        for (line, key) in [
            ("'\"',0x1e;\t\"  (0x22)", Some((0x22, 0x03))),
            ("''',0x5d;", Some((0x27, 0x2b))),
            ("';',41;", Some((0x3b, 0x33))),
            ("',',0x1d;", Some((0x2c, 0x11))),
            ("0xff2a,0x0e;\tHankaku", Some((0xff2a, 0x29))),
            ("0xff51, 0x6b, 1;", Some((0xff51, 0x14b))),
            ("# bhyve", None),
            ("0xa7,0x126;", None),
            ("'ä',0x26;", None),
            ("'", None),
            ("a,", None),
            (",;", None),
            ("", None),
        ] {
            assert_eq!(entry(line), key, "{line}");
        }
    }

    #[test]
    fn every_layout_types_ascii_and_its_own_letters() {
        for layout in LAYOUTS {
            let missing: String = ('!'..='~').filter(|c| layout.find(*c).is_none()).collect();
            assert_eq!(missing, "", "{}", layout.name);
        }
        for (layout, letters) in
            [("de", "äöüÄÖÜß§€µ"), ("fr", "éèçàù²£§€"), ("es", "ñÑçÇ¿¡ºª€"), ("gb", "£€¬"), ("jp", "¥")]
        {
            assert!(letters.chars().all(|c| stroke(layout, c).is_some()), "{layout}");
        }
    }

    #[test]
    fn characters_are_where_the_keyboards_have_them() {
        assert_eq!(stroke("us", '?'), Some((0x35, true, false)));
        assert_eq!(stroke("de", 'z'), Some((0x15, false, false)));
        assert_eq!(stroke("de", '{'), Some((0x08, false, true)));
        assert_eq!(stroke("de", '_'), Some((0x35, true, false)));
        assert_eq!(stroke("de", '\''), Some((0x2b, true, false)));
        assert_eq!(stroke("fr", 'a'), Some((0x10, false, false)));
        assert_eq!(stroke("fr", '1'), Some((0x02, true, false)));
        assert_eq!(stroke("fr", '@'), Some((0x0b, false, true)));
        assert_eq!(stroke("fr", 'm'), Some((0x27, false, false)));
        assert_eq!(stroke("es", 'ñ'), Some((0x27, false, false)));
        assert_eq!(stroke("es", ']'), Some((0x1b, false, true)));
        assert_eq!(stroke("jp", '@'), Some((0x1a, false, false)));
        assert_eq!(stroke("jp", '_'), Some((0x73, true, false)));
        assert_eq!(stroke("jp", '|'), Some((0x7d, true, false)));
        assert_eq!(stroke("us", 'é'), None);
    }

    #[test]
    fn keysyms_are_keys_or_characters_and_none_is_there_twice() {
        assert_eq!(meaning(0xff0d), Some(Meaning::Key(0x1c)));
        assert_eq!(meaning(0x41), Some(Meaning::Character('A')));
        assert_eq!(meaning(0x0100_20ac), Some(Meaning::Character('€')));
        assert_eq!(meaning(0xfe52), Some(Meaning::Character('^')));
        assert_eq!((meaning(0), meaning(u32::MAX), meaning(0x0100_d800)), (None, None, None));
        let all: std::collections::HashSet<_> = KEYSYMS.iter().map(|(keysym, _)| keysym).collect();
        assert_eq!(all.len(), KEYSYMS.len());
    }
}
