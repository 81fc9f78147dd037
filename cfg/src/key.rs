//! Declarations: which keys there are, what they may hold and how they depend on each other.
//!
//! All of it can be built in a `const`, so that a device declares its keys in a `static` next to its code and help,
//! manual and errors come from the same table.

use std::fmt;

/// One key of a section.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Name within its section.
    pub name: &'static str,
    /// What it may hold.
    pub kind: Kind,
    /// Value if the key is not given, as bare text; without one the key is simply absent.
    pub default: Option<&'static str>,
    /// One line for help and manual.
    pub help: &'static str,
}

/// What a key may hold.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// `true` or `false`; bare text may also be on, yes, 1, off, no, 0.
    Bool,
    /// A whole number; bare text may have 0x or a leading 0 (octal) in front, as in C.
    Int {
        /// Smallest allowed.
        min: i64,
        /// Largest allowed.
        max: i64,
    },
    /// Bytes: a number with B, K, M, G or T (powers of 1024, also written KB or KiB and so on). A plain number is MiB,
    /// and bytes from 1048576 up: the rule of `bhyve -m`, so that one word means the same in every form.
    Size {
        /// Smallest allowed, in bytes.
        min: u64,
        /// Largest allowed, in bytes.
        max: u64,
    },
    /// Any text without control characters.
    Text,
    /// A name: letters, digits, `-`, `_` and `.`, not beginning with `-` or `.`.
    Word {
        /// Most characters.
        max: usize,
    },
    /// A path, relative to the directory of the file that it is written in.
    Path(PathCheck),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// One of the words that the [`Catalogue`] has under this class. The word may bring further keys to its section.
    Named(&'static str),
    /// A unicast MAC address, `00:a0:98:12:34:56`.
    Mac,
    /// `SLOT`, `SLOT:FUNCTION` or `BUS:SLOT:FUNCTION`, decimal, as in `bhyve -s`.
    PciSlot,
    /// A whole number with us, ms, s, m or h.
    Duration,
    /// `c0ffee00-1234-5678-9abc-def012345678`.
    Uuid,
    /// `[HOST:]PORT`; an IPv6 address stands in brackets, and no host means 127.0.0.1.
    Address,
    /// Several of one kind. Bare text is split at commas.
    List(&'static Kind),
}

/// What must be true of a path before anything is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathCheck {
    /// Nothing.
    Any,
    /// It is a regular file or a disk device, and can be read.
    File,
    /// As `File`, or a file inside of an image, `(DEVICE,PARTITION)/PATH`, which is not looked for.
    Inside,
    /// Its directory exists; the file itself may or may not.
    Parent,
    /// It is a directory.
    Directory,
}

/// A table of the configuration, or an array of tables.
#[derive(Clone, Copy, Debug)]
pub struct Section {
    /// Name within the section above; empty for the root.
    pub name: &'static str,
    /// One line for help and manual.
    pub help: &'static str,
    /// One table, many, or free names.
    pub shape: Shape,
    /// Of a table: the key that a text in its place is for, as in `screen = "terminal"`.
    pub short: Option<&'static str>,
    /// Keys that it always has. A [`Kind::Named`] key may bring more.
    pub keys: &'static [Key],
    /// Sections within.
    pub sections: &'static [Section],
    /// What must hold between keys.
    pub rules: &'static [Rule],
}

impl Section {
    /// A table with nothing in it: the rest of a declaration (`..Section::EMPTY`).
    pub const EMPTY: Section =
        Section { name: "", help: "", shape: Shape::Table, short: None, keys: &[], sections: &[], rules: &[] };

    /// A dotted key in full: one that names a section, and not a key of it, is for the section's short one.
    pub fn spell_out(&self, key: &str) -> String {
        let mut section = Some(self);
        for name in key.split('.') {
            section = section.and_then(|s| s.sections.iter().find(|below| below.name == name));
        }
        section.and_then(|s| s.short).map_or_else(|| key.to_owned(), |short| crate::tree::join(key, short))
    }

    /// Every declared key by its dotted name, elements of arrays as `*`; not those that a word brings.
    pub fn walk(&'static self, visit: &mut dyn FnMut(&str, &'static Section, &'static Key)) {
        fn walk(section: &'static Section, path: &str, visit: &mut dyn FnMut(&str, &'static Section, &'static Key)) {
            for key in section.keys {
                visit(&crate::tree::join(path, key.name), section, key);
            }
            for below in section.sections {
                let mut path = crate::tree::join(path, below.name);
                if matches!(below.shape, Shape::Array { .. }) {
                    path.push_str(".*");
                }
                walk(below, &path, visit);
            }
        }
        walk(self, "", visit);
    }
}

/// How often a section may be there, and whether its names are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `[name]`, once.
    Table,
    /// `[[name]]`, numbered from 0.
    Array {
        /// Most elements.
        max: u32,
    },
    /// `[name]` with any names, each of them a text that `%(name.x)` may refer to.
    Free,
    /// The same, with sections in it.
    Tree,
}

/// What must hold between the keys of a section. Keys are named within the section.
#[derive(Clone, Copy, Debug)]
pub enum Rule {
    /// The key has to be given, if the section is there at all.
    Required(&'static str),
    /// At most one of these is given.
    Exclusive(&'static [&'static str]),
    /// If the first is given, so is the second.
    Needs(&'static str, &'static str),
    /// If `key` has the value `is`, `needs` is given.
    NeedsWhen {
        /// The deciding key.
        key: &'static str,
        /// Its deciding value.
        is: &'static str,
        /// The key that is then required.
        needs: &'static str,
    },
    /// `key` is given only if `when` has one of the values `is`.
    OnlyWhen {
        /// The key that otherwise has no effect.
        key: &'static str,
        /// The deciding key.
        when: &'static str,
        /// Its values with which `key` makes sense.
        is: &'static [&'static str],
    },
    /// No two of the keys that match have the same value.
    Unique {
        /// Dotted keys, `*` for every element of an array.
        keys: &'static [&'static str],
        /// Those of them that may have the same value as one another.
        share: &'static [&'static str],
        /// Only this value is unique, others may repeat.
        only: Option<&'static str>,
        /// What the value is called in the error: `PCI slot`.
        what: &'static str,
    },
}

/// The words that only the caller knows, such as device models and the keys they bring.
pub trait Catalogue {
    /// The words of a class, in the order in which help and errors show them.
    fn words(&self, class: &str) -> Vec<&str>;

    /// True if `word` belongs to `class`. Overridden where not every word can be listed.
    fn knows(&self, class: &str, word: &str) -> bool {
        self.words(class).contains(&word)
    }

    /// The keys that `word` brings to the section that names it.
    fn keys(&self, _class: &str, _word: &str) -> &[Key] {
        &[]
    }
}

/// What a tree is checked against.
#[derive(Clone, Copy)]
pub struct Schema<'a> {
    /// The section at the top.
    pub root: &'static Section,
    /// The words that only the caller knows.
    pub catalogue: &'a dyn Catalogue,
}

/// The place of a PCI function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PciSlot {
    /// Bus, 0 to 255.
    pub bus: u8,
    /// Device on the bus, 0 to 31.
    pub slot: u8,
    /// Function of the device, 0 to 7.
    pub function: u8,
}

impl fmt::Display for PciSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.bus, self.slot, self.function)
    }
}

/// A TCP address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Host name or address, an IPv6 one without its brackets.
    pub host: String,
    /// Port, not 0.
    pub port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}
