//! What is wrong with a configuration, where, what is allowed and what was probably meant.

use std::fmt;
use std::path::Path;

use crate::tree::Origin;

/// One fault in a configuration.
///
/// It displays as one line:
/// `guest.toml:7:9: disk.0.model: unknown model "rtl8193"; allowed: ahci, ide, nvme; did you mean "ide"?`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// File as the user named it, or where else the text came from (`-o cpus=99`).
    pub file: String,
    /// Line, from 1; 0 if the text has no lines (a command line argument) or the file could not be read at all.
    pub line: u32,
    /// Column in characters, from 1; 0 together with `line`.
    pub column: u32,
    /// Dotted key, empty if the fault belongs to none.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// What may stand there.
    pub allowed: Option<String>,
    /// The nearest valid text, as one would type it: words in quotes, numbers and booleans without.
    pub suggestion: Option<String>,
}

impl Error {
    /// A fault of `key` at `origin`.
    pub fn new(origin: &Origin, key: impl Into<String>, problem: Problem) -> Error {
        let Problem { message, allowed, suggestion } = problem;
        let (line, column) = (origin.line(), origin.column());
        Error { file: origin.file().to_owned(), line, column, key: key.into(), message, allowed, suggestion }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        if self.line != 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)?;
        if let Some(allowed) = &self.allowed {
            write!(f, "; allowed: {allowed}")?;
        }
        if let Some(suggestion) = &self.suggestion {
            write!(f, "; did you mean {suggestion}?")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// Every fault found, sorted by file, line and column. Displays one a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Errors(pub Vec<Error>);

impl Errors {
    /// Sorts, and keeps one of several equal ones.
    pub fn sorted(mut errors: Vec<Error>) -> Errors {
        errors.sort_by(|a, b| (&a.file, a.line, a.column, &a.key).cmp(&(&b.file, b.line, b.column, &b.key)));
        errors.dedup();
        Errors(errors)
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            if i != 0 {
                writeln!(f)?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}

/// The part of an [`Error`] that does not depend on the place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong.
    pub message: String,
    /// What may stand there.
    pub allowed: Option<String>,
    /// The nearest valid text, as one would type it.
    pub suggestion: Option<String>,
}

impl Problem {
    /// A problem with nothing to add.
    pub fn new(message: impl Into<String>) -> Problem {
        Problem { message: message.into(), allowed: None, suggestion: None }
    }

    /// Says what may stand there.
    pub fn allowed(mut self, allowed: impl Into<String>) -> Problem {
        self.allowed = Some(allowed.into());
        self
    }

    /// Says what was probably meant, given as one would type it.
    pub fn suggest(mut self, suggestion: Option<String>) -> Problem {
        self.suggestion = suggestion;
        self
    }
}

/// `text` in quotes on one line, control characters escaped and the middle of a long text left out, so that no value
/// can garble the terminal or hide the rest of the line.
pub(crate) fn quoted(text: &str) -> String {
    quoted_within(text, 80)
}

/// `path` in quotes; both ends of a path matter, so that more of it is kept.
pub(crate) fn quoted_path(path: &Path) -> String {
    quoted_within(&path.to_string_lossy(), 1000)
}

fn quoted_within(text: &str, longest: usize) -> String {
    let count = text.chars().count();
    let mut out = String::from("\"");
    for (i, c) in text.chars().enumerate() {
        match c {
            _ if count > longest && (longest / 2..count - longest / 4).contains(&i) => {
                if i == longest / 2 {
                    out.push_str("...");
                }
            }
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The text of an operating system error without the number that the standard library adds.
pub(crate) fn os_text(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// The candidate that `word` was probably meant to be: nearest by edits, else one that it begins or that begins it,
/// the last with one edit too (`opnebsd-4.6`).
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Beyond this, what was typed is not a slip, and the distance would cost more than it tells.
    const LONGEST: usize = 64;
    let typed: Vec<char> = word.chars().take(LONGEST + 1).flat_map(char::to_lowercase).collect();
    if typed.is_empty() || typed.len() > LONGEST {
        return None;
    }
    let mut near: Option<(usize, &str)> = None;
    let mut prefix: Option<&str> = None;
    let mut beginning: Option<&str> = None;
    for candidate in candidates {
        let valid: Vec<char> = candidate.chars().take(LONGEST).flat_map(char::to_lowercase).collect();
        let edits = distance(&typed, &valid);
        let slip = (typed.len().max(valid.len()) / 3).max(1);
        if edits <= slip && edits < valid.len() && near.is_none_or(|(best, _)| edits < best) {
            near = Some((edits, candidate));
        }
        let begins = (typed.len() >= 2 && valid.starts_with(&typed)) || (valid.len() >= 2 && typed.starts_with(&valid));
        if begins && prefix.is_none() {
            prefix = Some(candidate);
        }
        let long = valid.len() >= 4 && typed.len() > valid.len();
        if long && beginning.is_none() && distance(&typed[..valid.len()], &valid) == 1 {
            beginning = Some(candidate);
        }
    }
    near.map(|(_, candidate)| candidate).or(prefix).or(beginning)
}

/// Optimal string alignment distance: insertions, deletions, substitutions and swaps of neighbours.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for (i, &x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, &y) in b.iter().enumerate() {
            let mut best = (above[j + 1] + 1).min(row[j] + 1).min(above[j] + usize::from(x != y));
            if i > 0 && j > 0 && x == b[j - 1] && a[i - 1] == y {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swapped_missing_and_wrong_letters_find_the_word() {
        let words = ["ahci", "ide", "nvme", "rtl8139", "virtio-blk"];
        assert_eq!(nearest("rtl8193", words), Some("rtl8139"));
        assert_eq!(nearest("ahc", words), Some("ahci"));
        assert_eq!(nearest("NVME", words), Some("nvme"));
        assert_eq!(nearest("virtio", words), Some("virtio-blk"), "a beginning of the word");
        assert_eq!(nearest("nvme-pci", words), Some("nvme"), "the word and more");
        assert_eq!(nearest("nmve-pci", words), Some("nvme"), "the word with a slip, and more");
        assert_eq!(nearest("lsilogic", words), None);
        assert_eq!(nearest("", words), None);
        assert_eq!(nearest(&"x".repeat(1000), words), None);
    }

    #[test]
    fn a_swap_costs_one_edit_and_not_two() {
        let count = |a: &str, b: &str| distance(&a.chars().collect::<Vec<_>>(), &b.chars().collect::<Vec<_>>());
        assert_eq!(count("ab", "ba"), 1);
        assert_eq!(count("kitten", "sitting"), 3);
        assert_eq!(count("", "abc"), 3);
    }

    #[test]
    fn quoted_text_stays_on_one_short_line() {
        assert_eq!(quoted("a\n\u{1b}[2J\"b"), r#""a\n\u{1b}[2J\"b""#);
        let long = quoted(&"é".repeat(1000));
        assert_eq!(long.chars().count(), 40 + 3 + 20 + 2);
    }
}
