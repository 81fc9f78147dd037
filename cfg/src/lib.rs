//! One tree of dotted keys (`pci.0.3.0.device=rtl8139`), the shape of bhyve_config(5).
//!
//! A configuration goes through two forms. A [`Tree`] is what was written: names, texts and the place of each, whether
//! they came from TOML, from `-o key=value` or from a built-in profile; trees are laid over one another key by key.
//! A [`Node`] is a section that has passed the check against its declarations ([`Section`], [`Key`], [`Rule`]): its
//! values have their kinds and defaults, and reading it cannot fail. A [`Draft`] leads from one to the other, and
//! gathers everything that is wrong on the way, so that the user sees all of it in one run.
//!
//! ```
//! # struct Words;
//! # impl cfg::Catalogue for Words {
//! #     fn words(&self, class: &str) -> Vec<&str> { if class == "profile" { vec!["pc"] } else { vec![] } }
//! # }
//! let mut draft = cfg::Draft::parse("guest", "name = 'fw1'\nmemory = '256M'\n");
//! draft.merge_under(cfg::Draft::parse("profile pc", "cpus = 2"));
//! draft.set("memory=1G", &cfg::Origin::named("-o memory=1G"));
//! let machine = draft.check(cfg::Schema { root: &cfg::schema::MACHINE, catalogue: &Words }).unwrap();
//! assert_eq!((machine.int("cpus"), machine.size("memory")), (2, 1 << 30));
//!
//! let draft = cfg::Draft::parse("guest.toml", "name = 'fw1'\nmemory = '256Q'\ncpu = 2\n");
//! let errors = draft.check(cfg::Schema { root: &cfg::schema::MACHINE, catalogue: &Words }).unwrap_err();
//! assert_eq!(errors.0.len(), 2);
//! ```
//!
//! # What is written
//!
//! - TOML, with types: `cpus = "2"` is an error although bare text, from `-o cpus=2`, has no types at all.
//! - `[[disk]]` makes `disk.0`, `disk.1` and so on. A key in `disk.*` is a default for all of them.
//! - `include = "base.toml"` at the top lays another file under this one.
//! - `%(name)` in a value stands for the value of the key `name`; `%%` is a percent sign. `[vars]` has room for names
//!   of one's own.
//! - Relative paths are relative to the directory of the file that they are written in.
//!
//! The crate knows nothing of devices: the words for models, and the keys that each of them has, come from the
//! caller's [`Catalogue`].

pub mod bhyve;
mod check;
mod draft;
mod error;
mod expand;
mod key;
mod node;
mod read;
pub mod schema;
mod tree;
mod value;
mod write;

pub use draft::Draft;
pub use error::{Error, Errors, Problem, nearest};
pub use key::{Address, Catalogue, Key, Kind, PathCheck, PciSlot, Rule, Schema, Section, Shape};
pub use node::{FromSetting, Node};
pub use tree::{Branch, Entry, Form, Item, Origin, Tree, Value};
pub use value::{Setting, bytes};
