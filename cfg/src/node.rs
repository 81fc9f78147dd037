//! A checked section: values by their kind, defaults filled in.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::error::{Error, Problem};
use crate::key::{Address, PciSlot};
use crate::tree::{Origin, join};
use crate::value::Setting;

/// A value and where it comes from.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) setting: Setting,
    /// Place of the value; of the section for a default.
    pub(crate) origin: Origin,
    /// Written, and not a default.
    pub(crate) given: bool,
}

/// A section that passed the check, so that reading it cannot fail.
///
/// The getters panic if the key or section is not declared, if it is declared with another kind, or (those that do not
/// return an `Option`) if it is neither given nor has a default. Each of these is a fault of the program, not of the
/// configuration.
#[derive(Clone, Debug)]
pub struct Node {
    pub(crate) path: String,
    pub(crate) index: u32,
    pub(crate) origin: Origin,
    /// Every declared key.
    pub(crate) values: BTreeMap<&'static str, Option<Held>>,
    pub(crate) tables: BTreeMap<&'static str, Node>,
    pub(crate) arrays: BTreeMap<&'static str, Vec<Node>>,
}

impl Node {
    /// Dotted key of the section, empty for the root.
    pub fn key(&self) -> &str {
        &self.path
    }

    /// Number of the section within its array.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Where the section begins.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// A table within.
    pub fn child(&self, name: &str) -> &Node {
        self.tables.get(name).unwrap_or_else(|| panic!("no table {name:?} is declared in {:?}", self.path))
    }

    /// The elements of an array of tables, by their number.
    pub fn children(&self, name: &str) -> &[Node] {
        self.arrays.get(name).unwrap_or_else(|| panic!("no array {name:?} is declared in {:?}", self.path))
    }

    /// Every key that is given or has a default.
    pub fn settings(&self) -> impl Iterator<Item = (&'static str, &Setting)> {
        self.values.iter().filter_map(|(name, held)| Some((*name, &held.as_ref()?.setting)))
    }

    /// True if the key was written, and is not a default.
    pub fn is_given(&self, key: &str) -> bool {
        self.held(key).is_some_and(|held| held.given)
    }

    /// The value of a key; none if it is neither given nor has a default.
    pub fn get(&self, key: &str) -> Option<&Setting> {
        self.held(key).map(|held| &held.setting)
    }

    /// The value of a key as what it is declared to be: `let kernel: Option<&Path> = boot.maybe("kernel");`
    pub fn maybe<'a, T: FromSetting<'a>>(&'a self, key: &str) -> Option<T> {
        let setting = self.get(key)?;
        Some(T::from_setting(setting).unwrap_or_else(|| panic!("{} is {setting:?}", join(&self.path, key))))
    }

    fn value<'a, T: FromSetting<'a>>(&'a self, key: &str) -> T {
        self.maybe(key).unwrap_or_else(|| panic!("{} has no value and no default", join(&self.path, key)))
    }

    /// A [`Kind::Bool`](crate::Kind::Bool).
    pub fn bool(&self, key: &str) -> bool {
        self.value(key)
    }

    /// A [`Kind::Int`](crate::Kind::Int).
    pub fn int(&self, key: &str) -> i64 {
        self.value(key)
    }

    /// A [`Kind::Size`](crate::Kind::Size), in bytes.
    pub fn size(&self, key: &str) -> u64 {
        self.value(key)
    }

    /// A [`Kind::Text`](crate::Kind::Text), `Word`, `Choice` or `Named`.
    pub fn text(&self, key: &str) -> &str {
        self.value(key)
    }

    /// A [`Kind::Path`](crate::Kind::Path), absolute.
    pub fn path(&self, key: &str) -> &Path {
        self.value(key)
    }

    /// A [`Kind::Duration`](crate::Kind::Duration).
    pub fn duration(&self, key: &str) -> Duration {
        self.value(key)
    }

    /// A [`Kind::List`](crate::Kind::List); empty if it is neither given nor has a default.
    pub fn list(&self, key: &str) -> &[Setting] {
        self.maybe(key).unwrap_or_default()
    }

    /// The texts of a [`Kind::List`](crate::Kind::List) of texts or words.
    pub fn words(&self, key: &str) -> Vec<&str> {
        let word =
            |setting| FromSetting::from_setting(setting).unwrap_or_else(|| panic!("{key} is not a list of texts"));
        self.list(key).iter().map(word).collect()
    }

    /// A [`Kind::List`](crate::Kind::List) of [`Kind::Path`](crate::Kind::Path).
    pub fn paths(&self, key: &str) -> Vec<&Path> {
        let path =
            |setting| FromSetting::from_setting(setting).unwrap_or_else(|| panic!("{key} is not a list of paths"));
        self.list(key).iter().map(path).collect()
    }

    /// A fault of the key, to be reported like those that the check finds: at the value if the key is given, else at
    /// the section.
    pub fn error(&self, key: &str, problem: Problem) -> Error {
        let origin = self.held(key).map_or(&self.origin, |held| &held.origin);
        Error::new(origin, join(&self.path, key), problem)
    }

    pub(crate) fn held(&self, key: &str) -> Option<&Held> {
        let held = self.values.get(key).unwrap_or_else(|| panic!("no key {key:?} is declared in {:?}", self.path));
        held.as_ref()
    }
}

/// What a [`Setting`] can be read as.
pub trait FromSetting<'a>: Sized {
    /// The value, if the setting is of this kind.
    fn from_setting(setting: &'a Setting) -> Option<Self>;
}

macro_rules! from_setting {
    ($($type:ty: $pattern:pat => $value:expr;)*) => {$(
        impl<'a> FromSetting<'a> for $type {
            fn from_setting(setting: &'a Setting) -> Option<Self> {
                match setting {
                    $pattern => Some($value),
                    _ => None,
                }
            }
        }
    )*};
}

from_setting! {
    bool: Setting::Bool(value) => *value;
    i64: Setting::Int(value) => *value;
    u64: Setting::Size(value) => *value;
    &'a str: Setting::Text(value) => value;
    &'a Path: Setting::Path(value) => value;
    [u8; 6]: Setting::Mac(value) => *value;
    PciSlot: Setting::PciSlot(value) => *value;
    Duration: Setting::Duration(value) => *value;
    [u8; 16]: Setting::Uuid(value) => *value;
    &'a Address: Setting::Address(value) => value;
    &'a [Setting]: Setting::List(value) => value;
}
