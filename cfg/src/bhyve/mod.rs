//! bhyve(8)'s own configuration: the tree of bhyve_config(5), read from a command line or a file, and written as either.
//!
//! The tree has bhyve's keys (`pci.0.3.0.device`, `lpc.com1.path`), every value is text, and unknown keys are kept. What
//! they mean for a machine is not known here. Flags and files write into the one tree from left to right, and the last
//! write wins; a name is a node or a leaf, never both.

mod args;
mod slot;
mod write;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

pub use args::{Asked, LPC_DEVICES, SNAPSHOTS, parse};
pub use slot::{DEVICES, Device, Opts};

use crate::error::{Error, Problem, nearest, quoted};
use crate::expand::Expander;
use crate::key::Section;
use crate::tree::{Branch, Entry, Origin, Tree, Value};

/// sysexits(3): a bad argument.
pub const EX_USAGE: u8 = 64;
/// bhyve(8)'s status for what is wrong with a configuration or at run time.
pub const FAILED: u8 = 4;
/// Its status for a command line that is not understood, after the usage.
pub const BAD_USAGE: u8 = 1;

/// What values written by nobody are said to come from.
const DEFAULT: &str = "bhyve(8)'s defaults";
/// Values that are in the tree from the start.
const DEFAULTS: [(&str, &str); 5] = [
    ("acpi_tables", "false"),
    ("acpi_tables_in_memory", "true"),
    ("memory.size", "256M"),
    ("x86.strictmsr", "true"),
    ("lpc.fwcfg", "bhyve"),
];
/// Longest file, in bytes.
const LARGEST: u64 = 1 << 20;

/// Why bhyve(8) does not start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Its exit status.
    pub status: u8,
    /// What it says, in full; empty if the usage says it all.
    pub message: String,
    /// The usage is to follow.
    pub usage: bool,
}

impl Refusal {
    /// With the name of the program in front, as errx(3) has it.
    pub fn new(status: u8, message: impl fmt::Display) -> Refusal {
        Refusal { status, message: format!("bhyve: {message}"), usage: false }
    }

    /// Of a command line that is not understood.
    fn usage(message: String) -> Refusal {
        Refusal { status: BAD_USAGE, message, usage: true }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// bhyve's tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    tree: Tree,
    missing: RefCell<BTreeSet<String>>,
}

impl Default for Config {
    fn default() -> Self {
        Config::new()
    }
}

impl Config {
    /// With bhyve's defaults.
    pub fn new() -> Config {
        let origin = Origin::named(DEFAULT);
        let mut config = Config { tree: Tree::new(origin.clone()), missing: RefCell::default() };
        for (key, value) in DEFAULTS {
            config.tree.set(key, value, &origin).expect("the defaults are keys");
        }
        config
    }

    /// The tree, values unexpanded.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Sets a key.
    ///
    /// # Errors
    /// It is no key, a node has its name, or a value is where it has a node.
    pub fn set(&mut self, key: &str, value: &str, origin: &Origin) -> Result<(), Refusal> {
        let place = |message: String| Refusal::new(FAILED, format!("{origin}: {message}"));
        if matches!(self.tree.get(key), Some(Entry::Branch(_))) {
            return Err(place(format!("{} is a node and cannot have a value", quoted(key))));
        }
        for (at, _) in key.match_indices('.') {
            if self.tree.text(&key[..at]).is_some() {
                let message = format!("{} has a value, and {} cannot be below it", quoted(&key[..at]), quoted(key));
                return Err(place(message));
            }
        }
        self.tree.set(key, value, origin).map_err(|problem| {
            let allowed = problem.allowed.map_or(String::new(), |allowed| format!("; allowed: {allowed}"));
            place(format!("{}: {}{allowed}", quoted(key), problem.message))
        })
    }

    /// Whether there is a node of this name.
    pub fn has_node(&self, key: &str) -> bool {
        matches!(self.tree.get(key), Some(Entry::Branch(_)))
    }

    /// Whether a key was written, and not only is by default.
    pub fn is_given(&self, key: &str) -> bool {
        matches!(self.tree.get(key), Some(Entry::Value(value)) if !is_default(value))
    }

    /// The value of a key, unexpanded, with its place.
    pub fn value(&self, key: &str) -> Option<&Value> {
        match self.tree.get(key)? {
            Entry::Value(value) => Some(value),
            _ => None,
        }
    }

    /// The value of a key, with what it refers to. What is not there is empty, and [`Config::missing`] knows of it.
    ///
    /// # Errors
    /// It refers to itself, or too deeply.
    pub fn text(&self, key: &str) -> Result<Option<String>, Box<Error>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        static NO_DEFAULTS: Section = Section::EMPTY;
        let expander = Expander { tree: &self.tree, root: &NO_DEFAULTS, missing: Some(&self.missing) };
        let expanded = expander.expand(key, &value.text);
        Ok(Some(expanded.map_err(|problem| Box::new(Error::new(&value.origin, key, problem)))?.0))
    }

    /// Keys that values referred to so far, and that are not there.
    pub fn missing(&self) -> Vec<String> {
        self.missing.borrow().iter().cloned().collect()
    }

    /// A boolean: true, on, yes and 1, false, off, no and 0, in any case.
    ///
    /// # Errors
    /// Another text.
    pub fn bool(&self, key: &str, default: bool) -> Result<bool, Box<Error>> {
        let Some(text) = self.text(key)? else { return Ok(default) };
        match text.to_ascii_lowercase().as_str() {
            "true" | "on" | "yes" | "1" => Ok(true),
            "false" | "off" | "no" | "0" => Ok(false),
            _ => Err(self.wrong(key, format!("{} is no boolean", quoted(&text)), "true, false")),
        }
    }

    /// An integer, in C's notations.
    ///
    /// # Errors
    /// Another text, or out of range.
    pub fn int(&self, key: &str, range: std::ops::RangeInclusive<i64>) -> Result<Option<i64>, Box<Error>> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        let allowed = || format!("{} to {}", range.start(), range.end());
        match number(&text).filter(|n| range.contains(n)) {
            Some(n) => Ok(Some(n)),
            None => Err(self.wrong(key, format!("invalid value {}", quoted(&text)), &allowed())),
        }
    }

    /// A fault of a key.
    pub fn wrong(&self, key: &str, message: String, allowed: &str) -> Box<Error> {
        let origin = self.value(key).map_or(&self.tree.origin, |value| &value.origin);
        let problem = Problem::new(message);
        Box::new(Error::new(origin, key, if allowed.is_empty() { problem } else { problem.allowed(allowed) }))
    }

    /// All keys that have a value, in order.
    pub fn keys(&self) -> Vec<String> {
        self.tree.keys()
    }

    /// The names below a node, in order; none if there is no such node.
    pub fn names(&self, key: &str) -> Vec<String> {
        let names = |branch: &Branch| branch.items.keys().map(ToString::to_string).collect();
        match self.tree.get(key) {
            Some(Entry::Branch(branch)) => names(branch),
            _ if key.is_empty() => names(&self.tree.root),
            _ => Vec::new(),
        }
    }

    /// Reads a file of bhyve_config(5) over what is there: one `name=value` a line, `#` begins a comment line.
    ///
    /// # Errors
    /// It cannot be read, or a line is neither.
    pub fn read(&mut self, path: &Path) -> Result<(), Refusal> {
        use std::io::Read;
        let failed = |why: String| Refusal::new(FAILED, format!("{}: {why}", path.display()));
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes));
        file.map_err(|e| failed(e.to_string()))?;
        if bytes.len() as u64 > LARGEST {
            return Err(failed("too large for a configuration of at most 1 MiB".to_owned()));
        }
        let text = String::from_utf8(bytes).map_err(|_| failed("no UTF-8 text".to_owned()))?;
        self.read_text(&Origin::named(path.display().to_string()), &text)
    }

    /// Reads the text of such a file.
    ///
    /// # Errors
    /// A line is neither an assignment nor a comment.
    pub fn read_text(&mut self, origin: &Origin, text: &str) -> Result<(), Refusal> {
        for (n, line) in (1u32..).zip(text.lines()) {
            let line = line.trim_end_matches('\r');
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let origin = origin.at(n, 1);
            match line.split_once('=') {
                Some((key, value)) if !value.is_empty() => self.set(key, value, &origin)?,
                _ => return Err(Refusal::new(FAILED, format!("{origin}: {} is no name=value", quoted(line)))),
            }
        }
        Ok(())
    }

    /// As a file of bhyve_config(5): what was given, or with `all` the defaults too, as `config.dump=1` prints them.
    pub fn dump(&self, all: bool) -> String {
        let keys = self.tree.keys().into_iter().filter(|key| all || self.is_given(key));
        keys.map(|key| format!("{key}={}\n", self.tree.text(&key).unwrap_or_default())).collect()
    }
}

/// Whether bhyve has a value by default.
fn is_default(value: &Value) -> bool {
    value.origin.file() == DEFAULT
}

/// A whole number in C's notations: decimal, 0x, and octal after a 0.
pub(crate) fn number(text: &str) -> Option<i64> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let value = match digits.strip_prefix("0x").or(digits.strip_prefix("0X")) {
        Some(hex) if !hex.starts_with(['+', '-']) => i64::from_str_radix(hex, 16),
        Some(_) => return None,
        None if digits.len() > 1 && digits.starts_with('0') => i64::from_str_radix(&digits[1..], 8),
        None => digits.parse(),
    };
    value.ok().map(|n| sign * n)
}

/// The nearest of some words, for messages.
fn or_near<'a>(word: &str, words: impl Iterator<Item = &'a str>) -> String {
    nearest(word, words).map_or(String::new(), |near| format!("; did you mean {}?", quoted(near)))
}

#[cfg(test)]
mod tests;
