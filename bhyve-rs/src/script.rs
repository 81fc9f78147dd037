//! `--script FILE`: what is typed at COM1 and at the keyboard and what comes in at network cards, and when, so that a
//! run with input is repeatable.
//!
//! ```toml
//! [[step]]
//! seen = "guest# "      # wait until the guest has printed this ...
//! after = 0.5           # ... and then half a second of guest time
//! send = "uname -a\n"
//!
//! [[step]]
//! at = 20               # seconds of guest time since power-on
//! send = "poweroff\n"
//!
//! [[step]]
//! shown = "boot>"       # wait until a line of the screen has this (and then "after" as above)
//! keys = "set tty com0<enter>"  # typed at the keyboard; keys have names in angle brackets (host::keyboard)
//!
//! [[step]]
//! at = 30
//! nic = 0               # the first card, whose backend has to be "script"
//! frame = "ffffffffffff 020000000001 0806 ..."  # what comes in: the whole frame but its checksum
//! ```

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use host::console::{Step, When};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    step: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    seen: Option<String>,
    after: Option<f64>,
    shown: Option<String>,
    at: Option<f64>,
    send: Option<String>,
    keys: Option<String>,
    frame: Option<String>,
    nic: Option<u32>,
}

/// Reads the steps.
///
/// # Errors
/// What is wrong with the file, and where.
pub fn read(path: &Path) -> Result<Vec<Step>> {
    let what = || format!("script {}", path.display());
    let text = std::fs::read_to_string(path).with_context(what)?;
    parse(&text).with_context(what)
}

fn parse(text: &str) -> Result<Vec<Step>> {
    let file: File = toml::from_str(text)?;
    file.step.into_iter().enumerate().map(|(n, e)| step(e).with_context(|| format!("step {}", n + 1))).collect()
}

fn step(entry: Entry) -> Result<Step> {
    let after = nanoseconds(entry.after.unwrap_or(0.0))?;
    let when = match (entry.seen, entry.shown, entry.at) {
        (Some(pattern), None, None) if !pattern.is_empty() => When::Seen { pattern: pattern.into_bytes(), after },
        (None, Some(text), None) if !text.is_empty() => When::Shown { text, after },
        (None, None, Some(at)) if entry.after.is_none() => When::At(nanoseconds(at)?),
        (None, None, Some(_)) => bail!("\"after\" goes with \"seen\" and \"shown\", not with \"at\""),
        _ => bail!("it needs one of \"seen\" and \"shown\", a text, and \"at\", a number of seconds"),
    };
    if entry.send.is_none() && entry.keys.is_none() && entry.frame.is_none() {
        bail!("it needs \"send\" or \"keys\", what is to be typed, or \"frame\", what comes in");
    }
    if entry.nic.is_some() && entry.frame.is_none() {
        bail!("\"nic\" goes with \"frame\"");
    }
    let frame =
        entry.frame.map(|digits| Ok::<_, anyhow::Error>((entry.nic.unwrap_or(0), bytes(&digits)?))).transpose()?;
    let keys = host::keyboard::parse(&entry.keys.unwrap_or_default()).map_err(|e| anyhow!("keys: {e}"))?;
    Ok(Step { when, send: entry.send.unwrap_or_default().into_bytes(), keys, frame })
}

/// The frame that these digits are.
fn bytes(digits: &str) -> Result<Vec<u8>> {
    const LONGEST: usize = 65_550;
    let wrong = || anyhow!("frame: it needs pairs of hexadecimal digits, spaces between bytes are allowed");
    let digits: Vec<char> = digits.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    let nibbles: Option<Vec<u8>> = digits.iter().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
    let (pairs, []) = nibbles.as_deref().ok_or_else(wrong)?.as_chunks::<2>() else { return Err(wrong()) };
    if !(14..=LONGEST).contains(&pairs.len()) {
        bail!("frame: an Ethernet frame has 14 to {LONGEST} bytes, not {}", pairs.len());
    }
    Ok(pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

fn nanoseconds(seconds: f64) -> Result<u64> {
    const MOST: f64 = 1e9;
    if !(0.0..=MOST).contains(&seconds) {
        bail!("{seconds} is no number of seconds from 0 to {MOST}");
    }
    Ok((seconds * 1e9).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_wait_for_a_text_or_for_a_moment() {
        let steps =
            parse("[[step]]\nseen = '# '\nafter = 0.5\nsend = \"a\\n\"\n[[step]]\nat = 20\nsend = 'b'").unwrap();
        let seen = When::Seen { pattern: b"# ".to_vec(), after: 500_000_000 };
        assert_eq!(steps[0], Step { when: seen, send: b"a\n".to_vec(), ..Step::default() });
        assert_eq!(steps[1], Step { when: When::At(20_000_000_000), send: b"b".to_vec(), ..Step::default() });
        let keys = &parse("[[step]]\nshown = 'boot>'\nkeys = 'a<enter>'").unwrap()[0];
        assert_eq!(keys.when, When::Shown { text: "boot>".to_owned(), after: 0 });
        assert_eq!(keys.keys, host::keyboard::parse("a\n").unwrap());
    }

    #[test]
    fn what_is_no_step_is_refused_by_its_number() {
        for (text, says) in [
            ("[[step]]\nsend = 'a'", "step 1"),
            ("[[step]]\nat = 1\nsend = 'a'\n[[step]]\nat = -1\nsend = 'b'", "step 2"),
            ("[[step]]\nat = 1\nafter = 1\nsend = 'a'", "\"after\" goes with"),
            ("[[step]]\nseen = ''\nsend = 'a'", "needs one of"),
            ("[[step]]\nat = 1", "what is to be typed"),
            ("[[step]]\nat = 1\nframe = '00 1'", "pairs of hexadecimal digits"),
            ("[[step]]\nat = 1\nframe = '0011'", "has 14 to 65550 bytes, not 2"),
            ("[[step]]\nat = 1\nsend = 'a'\nnic = 1", "\"nic\" goes with"),
            ("[[step]]\nat = 1\nkeys = '<entre>'", "\"entre\" is no key"),
            ("[[step]]\nat = 1\nsend = 'a'\nwait = 3", "unknown field `wait`"),
        ] {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(says), "{error}");
        }
    }
}
