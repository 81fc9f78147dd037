//! What is typed, in words: text as it is, and keys by their names in angle brackets.
//!
//! ```text
//! set tty com0<enter>       text, then a key
//! <ctrl-alt-delete>         keys held together
//! <press shift>ab<release shift>
//! <wait 1.5>                seconds of guest time
//! a << b                    one <
//! ```

use super::{Press, keymap};

/// How much a single text may ask for: whoever types more has taken the wrong file.
const MOST: usize = 1 << 16;
/// The longest pause, in seconds.
const LONGEST: f64 = 3600.0;

/// What there is to press for a text.
///
/// # Errors
/// What in it is no key.
pub fn parse(text: &str) -> Result<Vec<Press>, String> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        if c != '<' {
            type_character(&mut out, c)?;
        } else if let Some(after) = rest.strip_prefix('<') {
            rest = after;
            type_character(&mut out, '<')?;
        } else {
            let (name, after) = rest.split_once('>').ok_or("a < has no >; one that is to be typed is written <<")?;
            bracket(&mut out, name)?;
            rest = after;
        }
        if out.len() > MOST {
            return Err(format!("more than {MOST} keys"));
        }
    }
    Ok(out)
}

/// Presses what gives a character on the United States' layout.
pub(super) fn type_character(out: &mut Vec<Press>, c: char) -> Result<(), String> {
    let (code, shift, ctrl) =
        keymap::of_character(c).ok_or_else(|| format!("{c:?} is on no key of a United States keyboard"))?;
    let held = [(shift, keymap::SHIFT), (ctrl, keymap::CTRL)];
    chord(out, held.into_iter().filter(|(on, _)| *on).map(|(_, code)| code).chain([code]));
    Ok(())
}

/// Presses keys one after the other and lets them go the other way round.
pub(super) fn chord(out: &mut Vec<Press>, codes: impl Iterator<Item = u16>) {
    let codes: Vec<u16> = codes.collect();
    out.extend(codes.iter().map(|code| Press::Key(*code, true)));
    out.extend(codes.iter().rev().map(|code| Press::Key(*code, false)));
}

fn bracket(out: &mut Vec<Press>, name: &str) -> Result<(), String> {
    match name.split_once(' ') {
        Some(("wait", seconds)) => {
            let seconds: f64 = seconds.trim().parse().map_err(|_| format!("<{name}>: no number of seconds"))?;
            if !(0.0..=LONGEST).contains(&seconds) {
                return Err(format!("<{name}>: more than {LONGEST} seconds, or fewer than none"));
            }
            out.push(Press::Wait((seconds * 1e9) as u64));
        }
        Some((what @ ("press" | "release"), keys)) => {
            out.extend(codes(keys.trim())?.into_iter().map(|code| Press::Key(code, what == "press")));
        }
        _ => chord(out, codes(name)?.into_iter()),
    }
    Ok(())
}

/// The keys of `ctrl-alt-delete`. A minus is a key, too.
fn codes(chord: &str) -> Result<Vec<u16>, String> {
    let (chord, minus) = match chord.strip_suffix("--") {
        Some(before) => (before, true),
        None if chord == "-" => ("minus", false),
        None => (chord, false),
    };
    let mut codes = Vec::new();
    for name in chord.split('-').chain(minus.then_some("minus")) {
        codes.push(keymap::of_name(name).ok_or_else(|| {
            format!("<{chord}>: {name:?} is no key; there are letters, digits, {}", keymap::names().join(", "))
        })?);
    }
    Ok(codes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `code+` and `code-`.
    fn shown(text: &str) -> String {
        let press = |p: Press| match p {
            Press::Key(code, down) => format!("{code:x}{}", if down { '+' } else { '-' }),
            Press::Wait(ns) => format!("wait {ns}"),
        };
        parse(text).map_or_else(|e| e, |keys| keys.into_iter().map(press).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn text_is_typed_with_the_shifts_that_it_needs() {
        assert_eq!(shown("aB"), "1e+ 1e- 2a+ 30+ 30- 2a-");
        assert_eq!(shown("a\n"), "1e+ 1e- 1c+ 1c-");
        assert_eq!(shown("<<>"), "2a+ 33+ 33- 2a- 2a+ 34+ 34- 2a-");
    }

    #[test]
    fn keys_have_names_and_chords_are_let_go_backwards() {
        assert_eq!(shown("<ctrl-alt-delete>"), "1d+ 38+ 153+ 153- 38- 1d-");
        assert_eq!(shown("<F12><Enter><kp5>"), "58+ 58- 1c+ 1c- 4c+ 4c-");
        assert_eq!(shown("<ctrl-c><ctrl--><->"), "1d+ 2e+ 2e- 1d- 1d+ c+ c- 1d- c+ c-");
        assert_eq!(shown("<press shift><wait 0.5><release shift>"), "2a+ wait 500000000 2a-");
    }

    #[test]
    fn what_is_no_key_is_named() {
        for (text, says) in [
            ("<entr>", "\"entr\" is no key"),
            ("a<b", "has no >"),
            ("é", "no key of a United States"),
            ("<wait x>", "no number"),
            ("<wait 1e9>", "3600"),
            ("<>", "is no key"),
        ] {
            assert!(shown(text).contains(says), "{text}: {}", shown(text));
        }
        assert!(shown(&"a".repeat(100_000)).contains("more than"));
    }
}
