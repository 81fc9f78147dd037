//! The `.conf` files of guests, templates and the datastore.
//!
//! They are read as vm-bhyve reads them, which is not as a shell does: a setting begins with a lower-case letter in the
//! first column, ends at a `#` wherever that stands, and loses all its double quotes. They are changed as sysrc(8) changes
//! files, so that comments and order stay.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Settings in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conf(Vec<(String, String)>);

impl Conf {
    /// Reads a file; one that is not there has no settings.
    pub fn read(path: &Path) -> Conf {
        std::fs::read(path).map(|text| Conf::parse(&String::from_utf8_lossy(&text))).unwrap_or_default()
    }

    /// The settings of a text.
    pub fn parse(text: &str) -> Conf {
        Conf(text.lines().filter_map(setting).collect())
    }

    /// A setting, unless it is empty. The first one of a name counts.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// A setting, or what it is without.
    pub fn or<'a>(&'a self, key: &str, default: &'a str) -> &'a str {
        self.get(key).unwrap_or(default)
    }

    /// Whether a setting says yes.
    pub fn yes(&self, key: &str) -> bool {
        yes(self.or(key, ""))
    }

    /// The words of a setting.
    pub fn words(&self, key: &str) -> Vec<String> {
        self.or(key, "").split_whitespace().map(str::to_owned).collect()
    }

    /// All settings.
    pub fn all(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Sets a value in memory alone.
    pub fn put(&mut self, key: &str, value: &str) {
        match self.0.iter_mut().find(|(k, _)| k == key) {
            Some(setting) => value.clone_into(&mut setting.1),
            None => self.0.push((key.to_owned(), value.to_owned())),
        }
    }
}

/// Whatever does not say no says yes.
pub fn yes(value: &str) -> bool {
    !value.is_empty() && !["no", "false", "off", "0"].iter().any(|no| value.eq_ignore_ascii_case(no))
}

/// A change to a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A key gets a value.
    Set(String, String),
    /// A key goes.
    Remove(String),
    /// Words join a key's list, those that are not in it yet.
    Add(String, Vec<String>),
    /// Words leave a key's list.
    Take(String, Vec<String>),
}

impl Change {
    /// A key gets a value.
    pub fn set(key: impl Into<String>, value: impl Into<String>) -> Change {
        Change::Set(key.into(), value.into())
    }
}

/// Changes a file, or makes it. Others see it as it was, or with all changes.
///
/// # Errors
/// When a value cannot stand in such a file, or when it cannot be written.
pub fn edit(path: &Path, changes: &[Change]) -> Result<()> {
    let change = || {
        // What a link leads to is the file.
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        // Two programs that change a file at a time would lose the changes of one.
        let _lock = lock(&path)?;
        let old = match std::fs::read(&path) {
            Ok(bytes) => String::from_utf8(bytes).context("it is no UTF-8")?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(e.into()),
        };
        let mut text = old.clone();
        for change in changes {
            text = apply(&text, change)?;
        }
        if text == old && path.exists() {
            return Ok(());
        }
        replace(&path, text.as_bytes())
    };
    change().with_context(|| path.display().to_string())
}

/// Keeps others from changing a file, for as long as what is returned is open.
fn lock(path: &Path) -> Result<File> {
    loop {
        let file = match File::open(path) {
            Ok(file) => file,
            // Whoever makes it has the folder.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
                let folder = File::open(folder)?;
                folder.lock()?;
                return Ok(folder);
            }
            Err(e) => return Err(e.into()),
        };
        file.lock()?;
        // It may have been replaced in the meantime.
        if std::fs::metadata(path).is_ok_and(|there| file.metadata().is_ok_and(|ours| there.ino() == ours.ino())) {
            return Ok(file);
        }
    }
}

/// Puts a file in place, with the mode and owner of the one before it.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let name = path.file_name().context("it is no name of a file")?.to_string_lossy();
    let fresh = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let before = std::fs::metadata(path).ok();
    let mode = before.as_ref().map_or(0o644, |m| m.mode() & 0o7777);
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&fresh)?;
        if let Some(before) = &before {
            // Not ours to give is not ours to keep, either; root's own files are the usual case.
            let _ = std::os::unix::fs::fchown(&file, Some(before.uid()), Some(before.gid()));
        }
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)
    };
    write().inspect_err(|_| {
        let _ = std::fs::remove_file(&fresh);
    })?;
    Ok(())
}

fn apply(text: &str, change: &Change) -> Result<String> {
    let current = |key: &str| Conf::parse(text).words(key);
    match change {
        Change::Set(key, value) => {
            if let Some(c) = value.chars().find(|c| matches!(c, '"' | '#' | '\\' | '$' | '`') || c.is_control()) {
                bail!("{key}: {c:?} cannot stand in a value");
            }
            Ok(set(text, key, value))
        }
        Change::Remove(key) => Ok(text.split_inclusive('\n').filter(|line| !sets(line, key)).collect()),
        Change::Add(key, words) => {
            let mut list = current(key);
            for word in words {
                if !list.contains(word) {
                    list.push(word.clone());
                }
            }
            apply(text, &Change::Set(key.clone(), list.join(" ")))
        }
        Change::Take(key, words) => {
            let mut list = current(key);
            list.retain(|word| !words.contains(word));
            apply(text, &Change::Set(key.clone(), list.join(" ")))
        }
    }
}

/// What a line sets.
fn setting(line: &str) -> Option<(String, String)> {
    if !line.starts_with(|c: char| c.is_ascii_lowercase()) {
        return None;
    }
    let line = line.split('#').next().unwrap_or_default().trim_end_matches(' ').replace('"', "");
    // A line without a value is its own, so that a bare word is a yes.
    let (key, value) = line.split_once('=').unwrap_or((&line, &line));
    Some((key.to_owned(), value.to_owned()))
}

/// Whether a line sets a key.
fn sets(line: &str, key: &str) -> bool {
    line.lines().next().and_then(setting).is_some_and(|(k, _)| k == key)
}

/// Every line of the key gets the value; what reads the first of them and what reads the last then agree.
fn set(text: &str, key: &str, value: &str) -> String {
    let mut found = false;
    let mut out = String::new();
    for line in text.split_inclusive('\n') {
        if sets(line, key) {
            found = true;
            out.push_str(&format!("{key}=\"{value}\"{}", behind(line)));
        } else {
            out.push_str(line);
        }
    }
    if !found {
        if !out.is_empty() && !out.ends_with('\n') {
            out.push('\n');
        }
        out.push_str(&format!("{key}=\"{value}\"\n"));
    }
    out
}

/// The comment behind a value, with the blanks in front of it, and the end of the line.
fn behind(line: &str) -> String {
    let end = line.find(['#', '\n']).unwrap_or(line.len());
    let value = line[..end].find('=').map_or(end, |at| at + 1 + value_len(&line[at + 1..]));
    let rest = &line[value..];
    let comment = rest.find(['#', '\n']).unwrap_or(rest.len());
    match &rest[..comment] {
        blank if blank.trim().is_empty() && (!blank.is_empty() || !rest.starts_with('#')) => rest.to_owned(),
        // More of the value, which goes.
        _ => format!(" {}", &rest[comment..]),
    }
}

/// How far a value goes: to a blank or the line's end that no quotes enclose.
fn value_len(text: &str) -> usize {
    let mut quote = None;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (_, '\n') => return at,
            (None, ' ' | '\t' | ';') => return at,
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), _) if c == open => quote = None,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_settings_as_vm_bhyve_has_them() {
        let conf =
            Conf::parse("loader=\"uefi\"   # boots\n cpu=9\nCpu=8\n#memory=1G\ncpu=2\ncpu=3\nx=\"a#b\"\ngraphics\n");
        assert_eq!(conf.get("loader"), Some("uefi"));
        // Indented and upper-case keys are none, and the first of a name counts.
        assert_eq!(conf.get("cpu"), Some("2"));
        assert_eq!(conf.get("memory"), None);
        // A # begins a comment between quotes, too.
        assert_eq!(conf.get("x"), Some("a"));
        assert!(conf.yes("graphics"));
        assert!(!Conf::parse("graphics=\"Off\"\n").yes("graphics"));
        assert!(!Conf::parse("").yes("graphics"));
    }

    #[test]
    fn values_may_hold_equals_signs() {
        assert_eq!(Conf::parse("disk0_name=\"root=/x\"\n").get("disk0_name"), Some("root=/x"));
    }

    fn changed(text: &str, changes: &[Change]) -> String {
        changes.iter().fold(text.to_owned(), |text, change| apply(&text, change).unwrap())
    }

    #[test]
    fn changes_keep_comments_and_order() {
        let text = "# mine\nloader=\"uefi\"  # boots\ncpu=1\n\nmemory=\"256M\"";
        let new = changed(text, &[Change::set("loader", "grub"), Change::set("cpu", "4"), Change::set("uuid", "u-1")]);
        assert_eq!(new, "# mine\nloader=\"grub\"  # boots\ncpu=\"4\"\n\nmemory=\"256M\"\nuuid=\"u-1\"\n");
        assert_eq!(changed(&new, &[Change::Remove("memory".to_owned())]).matches("memory").count(), 0);
    }

    #[test]
    fn whatever_the_file_says_a_change_is_what_is_read_afterwards() {
        let mut seed = 1_u32;
        let mut next = |limit: u32| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) % limit
        };
        for _ in 0..20_000 {
            let text: String = (0..next(40)).map(|_| b"ab=#\"' \n\\$;\t"[next(12) as usize] as char).collect();
            let others = |text: &str| Conf::parse(text).0.into_iter().filter(|(key, _)| key != "b").collect::<Vec<_>>();
            let new = apply(&text, &Change::set("b", "v w")).unwrap();
            assert_eq!(Conf::parse(&new).get("b").map(str::trim_end), Some("v w"), "{text:?} -> {new:?}");
            assert_eq!(others(&new), others(&text), "{text:?} -> {new:?}");
            let gone = apply(&new, &Change::Remove("b".to_owned())).unwrap();
            assert_eq!((Conf::parse(&gone).get("b"), others(&gone)), (None, others(&text)), "{text:?}");
        }
    }

    #[test]
    fn a_comment_is_not_the_key_that_it_names() {
        assert_eq!(changed("#cpu=1\n", &[Change::set("cpu", "2")]), "#cpu=1\ncpu=\"2\"\n");
        assert_eq!(changed("cpu_cores=1\n", &[Change::set("cpu", "2")]), "cpu_cores=1\ncpu=\"2\"\n");
    }

    #[test]
    fn lists_gain_and_lose_words_once() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let add = |text: &str| Change::Add("tags".to_owned(), words(text));
        let take = |text: &str| Change::Take("tags".to_owned(), words(text));
        let text = changed("", &[add("a b"), add("b c")]);
        assert_eq!(text, "tags=\"a b c\"\n");
        assert_eq!(changed(&text, &[take("a"), take("x")]), "tags=\"b c\"\n");
    }

    #[test]
    fn what_a_file_cannot_hold_is_refused() {
        for value in ["a\"b", "a#b", "a\nb", "$(x)", "`x`", "a\\"] {
            assert!(apply("", &Change::set("k", value)).is_err(), "{value:?}");
        }
    }

    #[test]
    fn files_are_replaced_as_a_whole_and_keep_their_mode() {
        use std::os::unix::fs::PermissionsExt;
        let dir = std::env::temp_dir().join(format!("bhyve-rs-conf-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("a.conf");
        edit(&path, &[Change::set("cpu", "1")]).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        edit(&path, &[Change::set("cpu", "2")]).unwrap();
        let mode = std::fs::metadata(&path).unwrap().mode() & 0o777;
        assert_eq!((Conf::read(&path).get("cpu"), mode), (Some("2"), 0o600));
        assert!(edit(&path, &[Change::set("cpu", "3"), Change::set("x", "\"")]).is_err());
        assert_eq!(Conf::read(&path).get("cpu"), Some("2"));
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1, "nothing is left over");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
