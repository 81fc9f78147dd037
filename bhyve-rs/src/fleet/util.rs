//! Small things that several commands need.

use std::fs::File;
use std::io::{BufRead, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};

/// Tells the user of something that does not end the command.
pub fn warn(text: impl std::fmt::Display) {
    eprintln!("vm: WARNING: {text}");
}

/// Options by their letters, and what is behind them.
type Options<'a> = (Vec<(char, &'a str)>, &'a [String]);

/// Options and what is behind them, as getopt(3) has it: letters can be bundled, and values glued to their letter.
///
/// # Errors
/// When a letter is not one of `letters` (those with a value have a colon behind them), or lacks its value.
pub fn getopt<'a>(args: &'a [String], letters: &str) -> Result<Options<'a>> {
    let mut options = Vec::new();
    let mut rest = args;
    while let Some((first, behind)) = rest.split_first() {
        let Some(mut cluster) = first.strip_prefix('-').filter(|c| !c.is_empty()) else { break };
        rest = behind;
        if cluster == "-" {
            break;
        }
        while let Some(letter) = cluster.chars().next() {
            cluster = &cluster[letter.len_utf8()..];
            let at = letters.find(letter).filter(|_| letter != ':');
            let at = at.ok_or_else(|| anyhow!("there is no option -{letter}"))?;
            if !letters[at + 1..].starts_with(':') {
                options.push((letter, ""));
                continue;
            }
            let value = if cluster.is_empty() {
                let (value, behind) = rest.split_first().ok_or_else(|| anyhow!("-{letter} needs a value"))?;
                rest = behind;
                value.as_str()
            } else {
                cluster
            };
            options.push((letter, value));
            break;
        }
    }
    Ok((options, rest))
}

/// The only one of `names` that `word` begins, or is.
///
/// # Errors
/// When there are several, or there is none.
pub fn unique<'a>(word: &str, names: &[&'a str]) -> Result<&'a str> {
    if let Some(name) = names.iter().find(|name| **name == word) {
        return Ok(name);
    }
    let begins = |name: &&&str| name.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word));
    let found: Vec<&str> = names.iter().filter(begins).copied().collect();
    match found[..] {
        _ if word.is_empty() => bail!("no command specified"),
        [name] => Ok(name),
        [] => bail!("unknown command {word:?}; there are {}", names.join(", ")),
        _ => bail!("ambiguous command {word:?}: {}", found.join(", ")),
    }
}

/// Whether something can be the name of a guest, a switch, a datastore or a tag.
pub fn valid_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    (2..=231).contains(&bytes.len())
        && ends(bytes.first())
        && ends(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(b))
}

/// Refuses what cannot be a name.
///
/// # Errors
/// Always then.
pub fn check_name(what: &str, name: &str) -> Result<()> {
    if valid_name(name) {
        return Ok(());
    }
    let short: String = name.chars().take(40).collect();
    let more = if short.len() < name.len() { "..." } else { "" };
    bail!(
        "invalid {what} name {short:?}{more}: 2 to 231 letters, digits and . _ -, with a letter or digit at both ends"
    )
}

/// Asks, until somebody says yes or no.
///
/// # Errors
/// When nobody is there to ask.
pub fn confirm(question: &str) -> Result<bool> {
    let mut lines = std::io::stdin().lock().lines();
    loop {
        print!("{question} (y/n)? ");
        std::io::stdout().flush()?;
        match lines.next().transpose()? {
            Some(line) if line.starts_with('y') => return Ok(true),
            Some(line) if line.starts_with('n') => return Ok(false),
            Some(_) => {}
            None => {
                println!();
                bail!("nobody answers; -f does it without asking");
            }
        }
    }
}

/// Random bytes.
///
/// # Errors
/// When the system has none.
pub fn random<const N: usize>() -> Result<[u8; N]> {
    use std::io::Read;
    let mut bytes = [0; N];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).context("/dev/urandom")?;
    Ok(bytes)
}

/// A random UUID (version 4).
///
/// # Errors
/// When the system has no random numbers.
pub fn uuid() -> Result<String> {
    let mut b: [u8; 16] = random()?;
    b[6] = b[6] & 0x0f | 0x40;
    b[8] = b[8] & 0x3f | 0x80;
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    Ok([&b[..4], &b[4..6], &b[6..8], &b[8..10], &b[10..]].map(hex).join("-"))
}

/// A random MAC address, of those that FreeBSD has set aside for bhyve.
///
/// # Errors
/// When the system has no random numbers.
pub fn mac() -> Result<String> {
    loop {
        let [a, b, c]: [u8; 3] = random()?;
        // The first of the block is not for guests.
        if [a & 0x0f, b, c] != [0; 3] {
            return Ok(format!("58:9c:fc:{:02x}:{b:02x}:{c:02x}", a & 0x0f));
        }
    }
}

/// This host's name.
pub fn hostname() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Year, month, day, hour, minute and second, UTC.
pub fn utc() -> [i64; 6] {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
    date(seconds)
}

fn date(seconds: i64) -> [i64; 6] {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days since 1 March of year 0: leap days then are at the end of their year.
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    [era * 400 + year + i64::from(month <= 2), month, day, second / 3600, second / 60 % 60, second % 60]
}

/// The time for a log.
pub fn timestamp() -> String {
    let [y, mo, d, h, mi, s] = utc();
    format!("{y:04}-{mo:02}-{d:02}T{h:02}:{mi:02}:{s:02}+00:00")
}

/// Bytes for people, with that many decimals: `n` is in bytes times 1024 to the power of `unit`.
pub fn human(n: u64, decimals: usize, unit: usize) -> String {
    // In thousandths, cut off at every step, so that numbers are those that vm-bhyve's bc(1) gives.
    let (mut thousandths, mut unit) = (u128::from(n) * 1000, unit);
    while thousandths >= 1024 * 1000 && unit < 4 {
        thousandths /= 1024;
        unit += 1;
    }
    let letter = ["B", "K", "M", "G", "T"][unit.min(4)];
    format!("{:.decimals$}{letter}", thousandths as f64 / 1000.0)
}

/// A size with a unit of 1024, as truncate(1) takes it.
///
/// # Errors
/// When it is none.
pub fn size(text: &str) -> Result<u64> {
    let bad = || anyhow!("{text:?} is no size; 512M or 20G would be");
    let (number, unit) = text.split_at(text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).len());
    let shift = match unit.to_ascii_uppercase().as_str() {
        "" => 0,
        "K" | "KB" => 10,
        "M" | "MB" => 20,
        "G" | "GB" => 30,
        "T" | "TB" => 40,
        _ => return Err(bad()),
    };
    let number: u64 = number.parse().map_err(|_| bad())?;
    let bytes = number.checked_mul(1 << shift).filter(|n| (1..=i64::MAX as u64).contains(n)).ok_or_else(bad)?;
    Ok(bytes.next_multiple_of(512))
}

/// Lines in columns, as column(1) makes them of a table.
pub fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |n: usize| rows.iter().filter_map(|row| row.get(n)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().enumerate().map(|(n, cell)| {
            let pad = if n + 1 < row.len() { widths[n] + 2 - cell.chars().count() } else { 0 };
            format!("{cell}{}", " ".repeat(pad))
        });
        cells.collect::<String>() + "\n"
    };
    rows.iter().map(line).collect()
}

/// Makes a folder for something that is not complete yet. What a command that died has left there goes; the folder is
/// this process's for as long as the file is open.
///
/// # Errors
/// When another process makes the same, or the folder cannot be made.
pub fn draft(folder: &Path) -> Result<File> {
    let make = || -> Result<File> {
        if let Ok(there) = File::open(folder) {
            if there.try_lock().is_err() {
                bail!("another command is just making it");
            }
            std::fs::remove_dir_all(folder)?;
        }
        std::fs::create_dir(folder)?;
        let file = File::open(folder)?;
        file.try_lock()?;
        Ok(file)
    };
    make().with_context(|| folder.display().to_string())
}

/// Runs a program and returns what it printed.
///
/// # Errors
/// When it cannot be run, or says that it failed; what it wrote to standard error is in the message.
pub fn output(program: &str, args: &[&str]) -> Result<String> {
    let shown = || format!("{program} {}", args.join(" "));
    let out = Command::new(program).args(args).stdin(Stdio::null()).output().with_context(shown)?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr);
        bail!("{}: {}", shown(), said.trim().lines().last().unwrap_or("it failed and says nothing"));
    }
    Ok(String::from_utf8_lossy(&out.stdout).trim_end_matches('\n').to_owned())
}

/// The program of a name in PATH.
pub fn which(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn options_come_bundled_glued_and_apart() {
        let args = args("-fi -t linux -s20G -- -x y");
        let (options, rest) = getopt(&args, "fit:s:").unwrap();
        assert_eq!(options, [('f', ""), ('i', ""), ('t', "linux"), ('s', "20G")]);
        assert_eq!(rest, ["-x", "y"]);
        for (bad, letters) in [("-q", "f"), ("-t", "t:"), ("-:", "t:"), ("--json", "f"), ("-é", "f")] {
            assert!(getopt(&[bad.to_owned()], letters).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_unique_beginning_is_enough() {
        let names = ["start", "startall", "stop", "stopall", "list", "info"];
        assert_eq!(unique("start", &names).unwrap(), "start");
        assert_eq!(unique("L", &names).unwrap(), "list");
        assert_eq!(unique("starta", &names).unwrap(), "startall");
        assert!(unique("sto", &names).unwrap_err().to_string().starts_with("ambiguous"));
        for bad in ["", "nothing", "listx", "é"] {
            assert!(unique(bad, &names).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_harmless_file_names() {
        for good in ["ab", "a.b", "web-1", "Web_2", "00"] {
            assert!(valid_name(good), "{good}");
        }
        let long = "a".repeat(300);
        for bad in ["", "a", ".a", "a.", "-ab", "a/b", "a b", "a\tb", "a\u{7}b", "ä-ö", "../a", "a@b", &long] {
            assert!(check_name("guest", bad).is_err(), "{bad}");
        }
        assert!(valid_name(&"a".repeat(231)) && !valid_name(&"a".repeat(232)));
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), [1970, 1, 1, 0, 0, 0]);
        assert_eq!(date(951_782_399), [2000, 2, 28, 23, 59, 59]);
        assert_eq!(date(951_782_400), [2000, 2, 29, 0, 0, 0]);
        assert_eq!(date(1_795_392_000), [2026, 11, 23, 0, 0, 0]);
    }

    #[test]
    fn bytes_for_people_have_a_unit() {
        assert_eq!(human(512, 3, 0), "512.000B");
        assert_eq!(human(20 << 30, 3, 0), "20.000G");
        assert_eq!(human(1_500_000, 3, 0), "1.430M");
        assert_eq!(human(125_952, 1, 1), "123.0M");
        assert_eq!(human(u64::MAX, 0, 0), "16777216T");
    }

    #[test]
    fn sizes_are_whole_sectors() {
        assert_eq!(size("20G").unwrap(), 20 << 30);
        assert_eq!(size("1000").unwrap(), 1024);
        for bad in ["", "0", "G", "-1", "1Q", "99999999999T", "1.5G"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [args("NAME STATE"), args("a Stopped"), args("longer x")];
        assert_eq!(columns(&rows), "NAME    STATE\na       Stopped\nlonger  x\n");
    }

    #[test]
    fn what_is_being_made_is_one_processs_alone() {
        let folder = std::env::temp_dir().join(format!("bhyve-rs-draft-{}", std::process::id()));
        let first = draft(&folder).unwrap();
        std::fs::write(folder.join("half"), "").unwrap();
        assert!(draft(&folder).is_err());
        drop(first);
        let second = draft(&folder).unwrap();
        assert!(!folder.join("half").exists());
        drop(second);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn uuids_and_macs_have_their_form() {
        let uuid = uuid().unwrap();
        assert_eq!(uuid.split('-').map(str::len).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
        assert_eq!(&uuid[14..15], "4");
        let mac = mac().unwrap();
        assert!(mac.starts_with("58:9c:fc:0") && mac.len() == 17, "{mac}");
    }
}
