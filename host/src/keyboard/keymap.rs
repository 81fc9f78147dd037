//! Keys by name and by character, as codes of [`emu::Event::Key`].

pub(super) const SHIFT: u16 = 0x2a;
pub(super) const CTRL: u16 = 0x1d;
pub(super) const ALT: u16 = 0x38;

/// The keys with letters and signs: first code, without and with shift.
const ROWS: [(u16, &str, &str); 4] = [
    (0x02, "1234567890-=", "!@#$%^&*()_+"),
    (0x10, "qwertyuiop[]", "QWERTYUIOP{}"),
    (0x1e, "asdfghjkl;'`", "ASDFGHJKL:\"~"),
    (0x2b, "\\zxcvbnm,./", "|ZXCVBNM<>?"),
];

/// The others. Where there are two names the first is the usual one.
const NAMES: [(&str, u16); 80] = [
    ("enter", 0x1c),
    ("return", 0x1c),
    ("esc", 0x01),
    ("escape", 0x01),
    ("tab", 0x0f),
    ("space", 0x39),
    ("backspace", 0x0e),
    ("delete", 0x153),
    ("del", 0x153),
    ("insert", 0x152),
    ("home", 0x147),
    ("end", 0x14f),
    ("pageup", 0x149),
    ("pagedown", 0x151),
    ("up", 0x148),
    ("down", 0x150),
    ("left", 0x14b),
    ("right", 0x14d),
    ("f1", 0x3b),
    ("f2", 0x3c),
    ("f3", 0x3d),
    ("f4", 0x3e),
    ("f5", 0x3f),
    ("f6", 0x40),
    ("f7", 0x41),
    ("f8", 0x42),
    ("f9", 0x43),
    ("f10", 0x44),
    ("f11", 0x57),
    ("f12", 0x58),
    ("shift", SHIFT),
    ("lshift", SHIFT),
    ("rshift", 0x36),
    ("ctrl", CTRL),
    ("control", CTRL),
    ("lctrl", CTRL),
    ("rctrl", 0x11d),
    ("alt", ALT),
    ("lalt", ALT),
    ("ralt", 0x138),
    ("altgr", 0x138),
    ("win", 0x15b),
    ("lwin", 0x15b),
    ("rwin", 0x15c),
    ("menu", 0x15d),
    ("capslock", 0x3a),
    ("numlock", 0x45),
    ("scrolllock", 0x46),
    ("printscreen", 0x137),
    ("sysrq", 0x54),
    ("pause", 0x245),
    ("break", 0x146),
    ("minus", 0x0c),
    ("equal", 0x0d),
    ("comma", 0x33),
    ("period", 0x34),
    ("slash", 0x35),
    ("backslash", 0x2b),
    ("semicolon", 0x27),
    ("quote", 0x28),
    ("backquote", 0x29),
    ("lbracket", 0x1a),
    ("rbracket", 0x1b),
    ("less", 0x56),
    ("kp0", 0x52),
    ("kp1", 0x4f),
    ("kp2", 0x50),
    ("kp3", 0x51),
    ("kp4", 0x4b),
    ("kp5", 0x4c),
    ("kp6", 0x4d),
    ("kp7", 0x47),
    ("kp8", 0x48),
    ("kp9", 0x49),
    ("kpdot", 0x53),
    ("kpplus", 0x4e),
    ("kpminus", 0x4a),
    ("kpstar", 0x37),
    ("kpslash", 0x135),
    ("kpenter", 0x11c),
];

/// The names that keys have.
pub(super) fn names() -> Vec<&'static str> {
    NAMES.map(|(name, _)| name).into()
}

/// The key of a name, or of a single letter, digit or sign that needs no shift.
pub(super) fn of_name(name: &str) -> Option<u16> {
    let lower = name.to_ascii_lowercase();
    if let Some((_, code)) = NAMES.iter().find(|(n, _)| *n == lower) {
        return Some(*code);
    }
    let mut letters = lower.chars();
    match (letters.next(), letters.next()) {
        (Some(c), None) => of_character(c).filter(|(_, shift, ctrl)| !shift && !ctrl).map(|(code, ..)| code),
        _ => None,
    }
}

/// The key that gives a character, and whether with shift, with Ctrl.
pub(super) fn of_character(c: char) -> Option<(u16, bool, bool)> {
    let plain = |code| Some((code, false, false));
    match c {
        '\n' | '\r' => plain(0x1c),
        '\t' => plain(0x0f),
        ' ' => plain(0x39),
        '\x1b' => plain(0x01),
        '\x08' | '\x7f' => plain(0x0e),
        '\x01'..='\x1a' => of_character((c as u8 + 0x60).into()).map(|(code, ..)| (code, false, true)),
        _ => ROWS.iter().find_map(|(first, low, high)| {
            let find = |row: &str| row.chars().position(|x| x == c).map(|n| first + n as u16);
            find(low).map(|code| (code, false, false)).or_else(|| find(high).map(|code| (code, true, false)))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_printable_character_is_on_a_key_of_its_own() {
        let keys: std::collections::HashSet<_> = (' '..='~').map(|c| of_character(c).expect("a key")).collect();
        assert_eq!(keys.len(), 95);
        assert_eq!(of_character('\x03'), Some((0x2e, false, true)));
    }

    #[test]
    fn names_are_unique() {
        let names: std::collections::HashSet<_> = names().into_iter().collect();
        assert_eq!(names.len(), NAMES.len());
    }
}
