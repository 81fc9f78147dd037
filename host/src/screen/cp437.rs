//! Code page 437, the character set of the PC's text screens, graphics characters of the control codes included.

/// The characters of 00 to 1F; 00 shows as a space.
const LOW: [char; 32] = [
    ' ', '☺', '☻', '♥', '♦', '♣', '♠', '•', '◘', '○', '◙', '♂', '♀', '♪', '♫', '☼', '►', '◄', '↕', '‼', '¶', '§', '▬',
    '↨', '↑', '↓', '→', '←', '∟', '↔', '▲', '▼',
];
/// The characters of 7F to FF.
const HIGH: [char; 129] = [
    '⌂', 'Ç', 'ü', 'é', 'â', 'ä', 'à', 'å', 'ç', 'ê', 'ë', 'è', 'ï', 'î', 'ì', 'Ä', 'Å', 'É', 'æ', 'Æ', 'ô', 'ö', 'ò',
    'û', 'ù', 'ÿ', 'Ö', 'Ü', '¢', '£', '¥', '₧', 'ƒ', 'á', 'í', 'ó', 'ú', 'ñ', 'Ñ', 'ª', 'º', '¿', '⌐', '¬', '½', '¼',
    '¡', '«', '»', '░', '▒', '▓', '│', '┤', '╡', '╢', '╖', '╕', '╣', '║', '╗', '╝', '╜', '╛', '┐', '└', '┴', '┬', '├',
    '─', '┼', '╞', '╟', '╚', '╔', '╩', '╦', '╠', '═', '╬', '╧', '╨', '╤', '╥', '╙', '╘', '╒', '╓', '╫', '╪', '┘', '┌',
    '█', '▄', '▌', '▐', '▀', 'α', 'ß', 'Γ', 'π', 'Σ', 'σ', 'µ', 'τ', 'Φ', 'Θ', 'Ω', 'δ', '∞', 'φ', 'ε', '∩', '≡', '±',
    '≥', '≤', '⌠', '⌡', '÷', '≈', '°', '∙', '·', '√', 'ⁿ', '²', '■', ' ',
];

/// The character of a code.
pub fn character(code: u8) -> char {
    match code {
        0..=0x1f => LOW[usize::from(code)],
        0x20..=0x7e => char::from(code),
        _ => HIGH[usize::from(code) - 0x7f],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_stand_where_the_code_page_has_them() {
        let text: String = [0x41, 0x01, 0x7f, 0x80, 0xb0, 0xc4, 0xdb, 0xe1, 0xfe].map(character).iter().collect();
        assert_eq!(text, "A☺⌂Ç░─█ß■");
        let all: std::collections::HashSet<char> =
            (0x20..=0xfe).map(character).chain((1..0x20).map(character)).collect();
        assert_eq!(all.len(), 254, "no character has two codes");
    }
}
