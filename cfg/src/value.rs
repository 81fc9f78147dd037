//! Texts into values, by the kind that the key declares.

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Problem, nearest, os_text, quoted, quoted_path};
use crate::key::{Address, Catalogue, Kind, PathCheck, PciSlot};
use crate::tree::{Form, Origin};

/// A checked value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setting {
    /// Of [`Kind::Bool`].
    Bool(bool),
    /// Of [`Kind::Int`].
    Int(i64),
    /// Of [`Kind::Size`], in bytes.
    Size(u64),
    /// Of [`Kind::Text`], [`Kind::Word`], [`Kind::Choice`] and [`Kind::Named`].
    Text(String),
    /// Of [`Kind::Path`], made absolute.
    Path(PathBuf),
    /// Of [`Kind::Mac`].
    Mac([u8; 6]),
    /// Of [`Kind::PciSlot`].
    PciSlot(PciSlot),
    /// Of [`Kind::Duration`].
    Duration(Duration),
    /// Of [`Kind::Uuid`], in the order in which it is written.
    Uuid([u8; 16]),
    /// Of [`Kind::Address`].
    Address(Address),
    /// Of [`Kind::List`].
    List(Vec<Setting>),
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Setting::Bool(value) => write!(f, "{value}"),
            Setting::Int(value) => write!(f, "{value}"),
            Setting::Size(value) => f.write_str(&size_text(*value)),
            Setting::Text(value) => f.write_str(value),
            Setting::Path(value) => write!(f, "{}", value.display()),
            Setting::Mac(value) => {
                let bytes: Vec<String> = value.iter().map(|byte| format!("{byte:02x}")).collect();
                f.write_str(&bytes.join(":"))
            }
            Setting::PciSlot(value) => write!(f, "{value}"),
            Setting::Duration(value) => write!(f, "{value:?}"),
            Setting::Uuid(value) => {
                for (i, byte) in value.iter().enumerate() {
                    write!(f, "{}{byte:02x}", if matches!(i, 4 | 6 | 8 | 10) { "-" } else { "" })?;
                }
                Ok(())
            }
            Setting::Address(value) => write!(f, "{value}"),
            Setting::List(items) => {
                let items: Vec<String> = items.iter().map(Setting::to_string).collect();
                f.write_str(&items.join(", "))
            }
        }
    }
}

/// A text about to become a value.
#[derive(Clone, Copy)]
pub(crate) struct Text<'a> {
    /// Last part of the key, for the wording.
    pub(crate) name: &'a str,
    /// The text, expanded.
    pub(crate) text: &'a str,
    pub(crate) form: Form,
    pub(crate) origin: &'a Origin,
}

/// What a text in TOML is called in errors.
pub(crate) fn describe(text: &str, form: Form) -> String {
    match form {
        Form::Bare => quoted(text),
        Form::String | Form::Broken => format!("the string {}", quoted(text)),
        Form::Integer => format!("the integer {text}"),
        Form::Float => format!("the number {text}"),
        Form::Boolean => format!("the boolean {text}"),
        Form::Datetime => format!("the date {text}"),
    }
}

impl Kind {
    /// The kind of one value: of a list, that of its items.
    pub(crate) fn item(self) -> Kind {
        match self {
            Kind::List(item) => item.item(),
            kind => kind,
        }
    }

    /// What it is called in errors: "expected ...".
    pub(crate) fn noun(self) -> &'static str {
        match self {
            Kind::Bool => "true or false",
            Kind::Int { .. } => "an integer",
            Kind::Size { .. } => "a size",
            Kind::Text => "a string",
            Kind::Word { .. } => "a name",
            Kind::Path(_) => "a path",
            Kind::Choice(_) | Kind::Named(_) => "a word",
            Kind::Mac => "a MAC address",
            Kind::PciSlot => "a PCI slot",
            Kind::Duration => "a duration",
            Kind::Uuid => "a UUID",
            Kind::Address => "an address",
            Kind::List(_) => "a list",
        }
    }

    /// What a value of this kind may be, for errors, help and manual.
    pub fn allowed(self, catalogue: &dyn Catalogue) -> String {
        match self {
            Kind::Bool => "true, false".to_owned(),
            Kind::Int { min, max } => match (min, max) {
                (i64::MIN, i64::MAX) => "any integer".to_owned(),
                (i64::MIN, _) => format!("up to {max}"),
                (_, i64::MAX) => format!("{min} or more"),
                _ => format!("{min} to {max}"),
            },
            Kind::Size { min, max } => {
                let (min, max) = (size_text(min), size_text(max));
                format!("{min} to {max}, as a number with B, K, M, G or T")
            }
            Kind::Text => "text in quotes".to_owned(),
            Kind::Word { max } => format!("1 to {max} letters, digits, \"-\", \"_\" and \".\""),
            Kind::Path(PathCheck::Any) => "a path".to_owned(),
            Kind::Path(PathCheck::File) => "the path of a file or disk that can be read".to_owned(),
            Kind::Path(PathCheck::Inside) => {
                "the path of a file that can be read, or (disk0,PARTITION)/PATH inside of a disk".to_owned()
            }
            Kind::Path(PathCheck::Parent) => "a path in a directory that exists".to_owned(),
            Kind::Path(PathCheck::Directory) => "the path of a directory".to_owned(),
            Kind::Choice(words) => words.join(", "),
            Kind::Named(class) => match catalogue.words(class) {
                words if words.is_empty() => format!("none (there is no {class})"),
                words => words.join(", "),
            },
            Kind::Mac => "six bytes as \"00:a0:98:12:34:56\", not multicast".to_owned(),
            Kind::PciSlot => "\"3\", \"3:0\" (slot:function) or \"0:3:0\" (bus:slot:function)".to_owned(),
            Kind::Duration => "a number with us, ms, s, m or h, as \"500ms\"".to_owned(),
            Kind::Uuid => "32 hexadecimal digits as \"c0ffee00-1234-5678-9abc-def012345678\"".to_owned(),
            Kind::Address => "\"PORT\" or \"HOST:PORT\", port 1 to 65535".to_owned(),
            Kind::List(item) => format!("a list of: {}", item.allowed(catalogue)),
        }
    }

    fn takes(self, form: Form) -> bool {
        match form {
            Form::Bare => true,
            Form::String => !matches!(self, Kind::Bool | Kind::Int { .. }),
            Form::Integer => matches!(self, Kind::Int { .. } | Kind::Size { .. } | Kind::PciSlot),
            Form::Boolean => matches!(self, Kind::Bool),
            Form::Float | Form::Datetime | Form::Broken => false,
        }
    }

    /// The value that a text stands for. `self` is not a list. The file system is looked at only if `look`.
    pub(crate) fn convert(self, from: Text<'_>, catalogue: &dyn Catalogue, look: bool) -> Result<Setting, Problem> {
        if !self.takes(from.form) {
            let bare = self.convert(Text { form: Form::Bare, ..from }, catalogue, false).ok();
            return Err(Problem::new(format!("expected {}, found {}", self.noun(), describe(from.text, from.form)))
                .allowed(self.allowed(catalogue))
                .suggest(bare.map(|setting| literal(&setting, from.text))));
        }
        let (text, word) = (from.text, quoted(from.text));
        let malformed = || Problem::new(format!("{word} is not {}", self.noun())).allowed(self.allowed(catalogue));
        match self {
            Kind::Bool => boolean(text).map(Setting::Bool).ok_or_else(malformed),
            Kind::Int { min, max } => {
                let value = match from.form {
                    Form::Integer => text.parse().ok(),
                    _ => c_integer(text),
                };
                match value.ok_or_else(malformed)? {
                    value if (i128::from(min)..=i128::from(max)).contains(&value) => Ok(Setting::Int(value as i64)),
                    _ => Err(Problem::new(format!("{text} is out of range")).allowed(self.allowed(catalogue))),
                }
            }
            Kind::Size { min, max } => match size(text) {
                Ok(value) if (min..=max).contains(&value) => Ok(Setting::Size(value)),
                Ok(_) => Err(Problem::new(format!("{word} is out of range")).allowed(self.allowed(catalogue))),
                Err(BadSize::Unit(unit)) => {
                    let message = format!("{word} has an unknown unit {}", quoted(unit));
                    Err(Problem::new(message).allowed(self.allowed(catalogue)))
                }
                Err(BadSize::Number) => Err(malformed()),
            },
            Kind::Text => printable(text).map(|()| Setting::Text(text.to_owned())),
            Kind::Word { max } => {
                let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
                if text.is_empty() || !text.chars().all(good) || text.starts_with(['-', '.']) {
                    return Err(malformed());
                }
                if text.len() > max {
                    let message = format!("a name of {} characters is too long", text.len());
                    return Err(Problem::new(message).allowed(self.allowed(catalogue)));
                }
                Ok(Setting::Text(text.to_owned()))
            }
            Kind::Path(check) => {
                printable(text)?;
                if text.is_empty() {
                    return Err(Problem::new("the path is empty").allowed(self.allowed(catalogue)));
                }
                if check == PathCheck::Inside && text.starts_with('(') {
                    return Ok(Setting::Path(text.into()));
                }
                let path = from.origin.resolve(text);
                if look {
                    check_path(&path, text, check).map_err(|problem| problem.allowed(self.allowed(catalogue)))?;
                }
                // A daemon changes its directory; what was meant is relative to the one we were started in.
                Ok(Setting::Path(std::path::absolute(&path).unwrap_or(path)))
            }
            Kind::Choice(words) => {
                if words.contains(&text) {
                    return Ok(Setting::Text(text.to_owned()));
                }
                Err(unknown(from, words.iter().copied()).allowed(self.allowed(catalogue)))
            }
            Kind::Named(class) => {
                if catalogue.knows(class, text) {
                    return Ok(Setting::Text(text.to_owned()));
                }
                Err(unknown(from, catalogue.words(class)).allowed(self.allowed(catalogue)))
            }
            Kind::Mac => match mac(text).ok_or_else(malformed)? {
                bytes if bytes[0] & 1 != 0 => {
                    let message = format!("{word} is a multicast address");
                    Err(Problem::new(message).allowed(self.allowed(catalogue)))
                }
                bytes => Ok(Setting::Mac(bytes)),
            },
            Kind::PciSlot => pci_slot(text).map(Setting::PciSlot).ok_or_else(malformed),
            Kind::Duration => duration(text).map(Setting::Duration).ok_or_else(malformed),
            Kind::Uuid => uuid(text).map(Setting::Uuid).ok_or_else(malformed),
            Kind::Address => address(text).map(Setting::Address).ok_or_else(malformed),
            Kind::List(_) => unreachable!("lists are converted item by item"),
        }
    }
}

/// How `setting`, written as `text`, is typed in TOML.
pub(crate) fn literal(setting: &Setting, text: &str) -> String {
    match setting {
        Setting::Bool(value) => value.to_string(),
        Setting::Int(value) => value.to_string(),
        _ => toml_string(text),
    }
}

/// `text` as a TOML basic string.
pub(crate) fn toml_string(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn unknown<'a>(from: Text<'_>, words: impl IntoIterator<Item = &'a str>) -> Problem {
    let message = format!("unknown {} {}", from.name, quoted(from.text));
    Problem::new(message).suggest(nearest(from.text, words).map(toml_string))
}

fn printable(text: &str) -> Result<(), Problem> {
    match text.chars().find(|&c| c.is_control() && c != '\t') {
        Some(c) => Err(Problem::new(format!("control character U+{:04X} in the text", u32::from(c)))),
        None => Ok(()),
    }
}

fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "on" | "yes" | "1" => Some(true),
        "false" | "off" | "no" | "0" => Some(false),
        _ => None,
    }
}

fn c_integer(text: &str) -> Option<i128> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text),
    };
    let (digits, radix) = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if digits.len() > 1 && digits.starts_with('0') => (&digits[1..], 8),
        None => (digits, 10),
    };
    if !digits.starts_with(|c: char| c.is_ascii_hexdigit()) {
        return None;
    }
    i128::from_str_radix(digits, radix).ok().map(|value| sign * value)
}

enum BadSize<'a> {
    Number,
    Unit(&'a str),
}

fn size(text: &str) -> Result<u64, BadSize<'_>> {
    const MIB: u64 = 1 << 20;
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let number: u64 = digits.parse().map_err(|_| BadSize::Number)?;
    let shift = match unit.to_ascii_uppercase().as_str() {
        "" if number < MIB => 20,
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        _ => return Err(BadSize::Unit(unit)),
    };
    // What does not fit is out of any range.
    Ok(number.saturating_mul(1 << shift))
}

/// The bytes that a size stands for.
pub fn bytes(text: &str) -> Option<u64> {
    size(text).ok()
}

/// `bytes` with the largest unit that divides it.
pub(crate) fn size_text(bytes: u64) -> String {
    let units = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
    match units.iter().find(|(shift, _)| bytes != 0 && u64::is_multiple_of(bytes, 1 << shift)) {
        Some((shift, unit)) => format!("{}{unit}", bytes >> shift),
        None => format!("{bytes}B"),
    }
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let separator = if text.contains(':') { ':' } else { '-' };
    let mut bytes = [0; 6];
    let mut parts = text.split(separator);
    for byte in &mut bytes {
        *byte = hex_byte(parts.next()?)?;
    }
    parts.next().is_none().then_some(bytes)
}

fn hex_byte(text: &str) -> Option<u8> {
    let hex = text.len() == 2 && text.bytes().all(|b| b.is_ascii_hexdigit());
    if hex { u8::from_str_radix(text, 16).ok() } else { None }
}

fn pci_slot(text: &str) -> Option<PciSlot> {
    let number = |part: &str, max: u8| {
        let value: u8 = part.parse().ok()?;
        (part.bytes().all(|b| b.is_ascii_digit()) && value <= max).then_some(value)
    };
    let parts: Vec<&str> = text.split(':').take(4).collect();
    let (bus, slot, function) = match parts[..] {
        [slot] => ("0", slot, "0"),
        [slot, function] => ("0", slot, function),
        [bus, slot, function] => (bus, slot, function),
        _ => return None,
    };
    Some(PciSlot { bus: number(bus, 255)?, slot: number(slot, 31)?, function: number(function, 7)? })
}

fn duration(text: &str) -> Option<Duration> {
    let split = text.find(|c: char| !c.is_ascii_digit())?;
    let (digits, unit) = text.split_at(split);
    let number: u64 = digits.parse().ok()?;
    match unit {
        "us" => Some(Duration::from_micros(number)),
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        "h" => number.checked_mul(3600).map(Duration::from_secs),
        _ => None,
    }
}

fn uuid(text: &str) -> Option<[u8; 16]> {
    let parts: Vec<&str> = text.split('-').take(6).collect();
    if parts.iter().map(|part| part.len()).ne([8, 4, 4, 4, 12]) || !text.is_ascii() {
        return None;
    }
    let digits = parts.concat();
    let mut bytes = [0; 16];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = hex_byte(&digits[2 * i..2 * i + 2])?;
    }
    Some(bytes)
}

fn address(text: &str) -> Option<Address> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port),
        None => ("127.0.0.1", text),
    };
    let host = match host.strip_prefix('[').map(|host| host.strip_suffix(']')) {
        Some(inside) => inside?,
        None if host.contains(':') => return None,
        None => host,
    };
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '%' | '_');
    let digits = port.bytes().all(|b| b.is_ascii_digit());
    let port: u16 = port.parse().ok()?;
    (digits && port != 0 && !host.is_empty() && host.chars().all(fine)).then(|| Address { host: host.to_owned(), port })
}

/// `text` is what was written, `path` what it means.
fn check_path(path: &Path, text: &str, check: PathCheck) -> Result<(), Problem> {
    let shown = quoted_path(path);
    match check {
        PathCheck::Any => Ok(()),
        PathCheck::File | PathCheck::Inside => {
            let meta = fs::metadata(path).map_err(|error| {
                Problem::new(format!("cannot read {shown}: {}", os_text(&error))).suggest(near(path, text))
            })?;
            match file_type(&meta) {
                FileType::File => File::open(path)
                    .map(drop)
                    .map_err(|error| Problem::new(format!("cannot read {shown}: {}", os_text(&error)))),
                FileType::Device => Ok(()),
                FileType::Other(what) => Err(Problem::new(format!("{shown} is {what}"))),
            }
        }
        PathCheck::Parent => {
            if path.is_dir() {
                return Err(Problem::new(format!("{shown} is a directory")));
            }
            let parent = match path.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                _ => Path::new("."),
            };
            check_directory(parent, None)
        }
        PathCheck::Directory => check_directory(path, Some(text)),
    }
}

fn check_directory(path: &Path, text: Option<&str>) -> Result<(), Problem> {
    let shown = quoted_path(path);
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => Ok(()),
        Ok(_) => Err(Problem::new(format!("{shown} is not a directory"))),
        Err(error) => Err(Problem::new(format!("cannot use directory {shown}: {}", os_text(&error)))
            .suggest(text.and_then(|text| near(path, text)))),
    }
}

enum FileType {
    File,
    Device,
    Other(&'static str),
}

/// Opening a device can rewind, block or hang up, so a device only has to be one.
#[cfg(unix)]
fn file_type(meta: &fs::Metadata) -> FileType {
    use std::os::unix::fs::FileTypeExt;
    let kind = meta.file_type();
    // Disks are character devices on FreeBSD, and block devices elsewhere.
    let disk = if cfg!(target_os = "linux") { kind.is_block_device() } else { kind.is_char_device() };
    match () {
        () if kind.is_file() => FileType::File,
        () if disk || kind.is_block_device() => FileType::Device,
        () if kind.is_dir() => FileType::Other("a directory"),
        () if kind.is_fifo() => FileType::Other("a FIFO"),
        () if kind.is_socket() => FileType::Other("a socket"),
        () => FileType::Other("a device, but not a disk"),
    }
}

#[cfg(not(unix))]
fn file_type(meta: &fs::Metadata) -> FileType {
    if meta.is_file() { FileType::File } else { FileType::Other("not a file") }
}

/// The file beside `path` with the nearest name, in the words of `text`.
fn near(path: &Path, text: &str) -> Option<String> {
    // Enough for a directory of images; a mail spool is not worth the time.
    const MOST: usize = 1000;
    let dir = match path.parent()? {
        dir if dir.as_os_str().is_empty() => Path::new("."),
        dir => dir,
    };
    let mut names: Vec<String> =
        fs::read_dir(dir).ok()?.take(MOST).filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    let name = nearest(path.file_name()?.to_str()?, names.iter().map(String::as_str))?;
    Some(toml_string(&Path::new(text).with_file_name(name).to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;

    impl Catalogue for Nothing {
        fn words(&self, _class: &str) -> Vec<&str> {
            Vec::new()
        }
    }

    fn read(kind: Kind, text: &str) -> Result<Setting, Problem> {
        let origin = Origin::named("test");
        kind.convert(Text { name: "word", text, form: Form::Bare, origin: &origin }, &Nothing, true)
    }

    const ANY_SIZE: Kind = Kind::Size { min: 0, max: u64::MAX - 1 };
    const ANY_INT: Kind = Kind::Int { min: i64::MIN, max: i64::MAX };

    #[test]
    fn a_plain_size_is_mebibytes_until_it_is_one_mebibyte_of_bytes() {
        for (text, bytes) in [
            ("512", 512 << 20),
            ("1048575", 1_048_575 << 20),
            ("1048576", 1 << 20),
            ("1073741824", 1 << 30),
            ("512B", 512),
            ("512K", 512 << 10),
            ("256M", 256 << 20),
            ("256MiB", 256 << 20),
            ("8g", 8 << 30),
            ("1T", 1 << 40),
            ("0B", 0),
        ] {
            assert_eq!(read(ANY_SIZE, text), Ok(Setting::Size(bytes)), "{text}");
        }
        for text in ["", "M", "-1M", "1.5G", "1 G", "256Q", "1MM", "0x10", "99999999999999999999", "16777216T"] {
            assert!(read(ANY_SIZE, text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_print_with_the_unit_that_reads_back() {
        for bytes in [0, 1, 1023, 1024, 1 << 20, 3 << 30, 1 << 40, (1 << 20) + 1] {
            assert_eq!(read(ANY_SIZE, &size_text(bytes)), Ok(Setting::Size(bytes)));
        }
    }

    #[test]
    fn bare_integers_follow_c() {
        for (text, value) in [("10", 10), ("0x1F", 31), ("017", 15), ("0", 0), ("-5", -5), ("-0x10", -16)] {
            assert_eq!(read(ANY_INT, text), Ok(Setting::Int(value)), "{text}");
        }
        for text in ["", "-", "0x", "08", "1a", "+1", "--1", "0x-1", "0+7", " 1", "9223372036854775808"] {
            assert!(read(ANY_INT, text).is_err(), "{text}");
        }
    }

    #[test]
    fn bare_booleans_follow_bhyve_config() {
        for (text, value) in [("TRUE", true), ("on", true), ("Yes", true), ("1", true), ("off", false), ("0", false)] {
            assert_eq!(read(Kind::Bool, text), Ok(Setting::Bool(value)));
        }
        assert!(read(Kind::Bool, "2").is_err());
    }

    #[test]
    fn pci_slots_take_bhyves_three_forms() {
        let slot = |bus, slot, function| Ok(Setting::PciSlot(PciSlot { bus, slot, function }));
        assert_eq!(read(Kind::PciSlot, "3"), slot(0, 3, 0));
        assert_eq!(read(Kind::PciSlot, "31:7"), slot(0, 31, 7));
        assert_eq!(read(Kind::PciSlot, "255:0:1"), slot(255, 0, 1));
        for text in ["", "32", "3:8", "256:0:0", "0:0:0:0", "+3", "3:", "a"] {
            assert!(read(Kind::PciSlot, text).is_err(), "{text}");
        }
    }

    #[test]
    fn mac_addresses_are_unicast() {
        assert_eq!(read(Kind::Mac, "00:a0:98:01:02:FF"), Ok(Setting::Mac([0, 0xa0, 0x98, 1, 2, 0xff])));
        assert_eq!(read(Kind::Mac, "00-a0-98-01-02-03"), Ok(Setting::Mac([0, 0xa0, 0x98, 1, 2, 3])));
        let multicast = read(Kind::Mac, "01:00:5e:00:00:01").unwrap_err();
        assert!(multicast.message.contains("multicast"), "{multicast:?}");
        for text in
            ["", "00:a0:98:01:02", "00:a0:98:01:02:03:04", "0:a0:98:1:2:3", "00:a0-98:01:02:03", "00:a0:98:01:02:+3"]
        {
            assert!(read(Kind::Mac, text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(read(Kind::Duration, "500ms"), Ok(Setting::Duration(Duration::from_millis(500))));
        assert_eq!(read(Kind::Duration, "250us"), Ok(Setting::Duration(Duration::from_micros(250))));
        assert_eq!(read(Kind::Duration, "2h"), Ok(Setting::Duration(Duration::from_secs(7200))));
        for text in ["", "5", "s", "5 s", "-5s", "5d", "99999999999999999999s", "18446744073709551615h"] {
            assert!(read(Kind::Duration, text).is_err(), "{text}");
        }
    }

    #[test]
    fn uuids_and_their_text_agree() {
        let text = "c0ffee00-1234-5678-9abc-def012345678";
        let uuid = read(Kind::Uuid, text).unwrap();
        assert_eq!(uuid.to_string(), text);
        for text in [
            "",
            "c0ffee00123456789abcdef012345678",
            "c0ffee00-1234-5678-9abc-def01234567é",
            "g0ffee00-1234-5678-9abc-def012345678",
        ] {
            assert!(read(Kind::Uuid, text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_default_to_loopback() {
        let address = |host: &str, port| Ok(Setting::Address(Address { host: host.to_owned(), port }));
        assert_eq!(read(Kind::Address, "5900"), address("127.0.0.1", 5900));
        assert_eq!(read(Kind::Address, "host.example:23"), address("host.example", 23));
        assert_eq!(read(Kind::Address, "[fe80::1%em0]:65535"), address("fe80::1%em0", 65535));
        for text in ["", ":23", "0", "65536", "a b:1", "::1:23", "[::1:23", "[]:1", "host:", "host:+1"] {
            assert!(read(Kind::Address, text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_cannot_be_options_or_hidden_files() {
        let name = Kind::Word { max: 8 };
        assert!(read(name, "fw1.x_-").is_ok());
        for text in ["", "-fw", ".fw", "a/b", "a b", "naïve", "a\n", "123456789"] {
            assert!(read(name, text).is_err(), "{text}");
        }
    }

    #[test]
    fn toml_strings_escape_what_would_end_them() {
        assert_eq!(toml_string("a\"\\\u{7}é"), r#""a\"\\\u0007é""#);
    }
}
