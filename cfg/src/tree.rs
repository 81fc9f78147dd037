//! The tree as it was written: names, texts and the place of each.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Problem, quoted};
use crate::key::Section;

/// Names in one dotted key. bhyve's own deepest key has six.
pub(crate) const DEEPEST: usize = 16;

#[derive(Debug, PartialEq, Eq)]
struct Source {
    name: String,
    dir: PathBuf,
}

/// Where a key or a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    source: Arc<Source>,
    line: u32,
    column: u32,
}

impl Origin {
    /// Text that is in no file, such as a command line argument or a built-in profile; paths in it are relative to
    /// the current directory.
    pub fn named(name: impl Into<String>) -> Origin {
        Origin { source: Arc::new(Source { name: name.into(), dir: PathBuf::new() }), line: 0, column: 0 }
    }

    /// The file at `path`; paths in it are relative to its directory.
    pub(crate) fn of_file(path: &Path) -> Origin {
        let dir = path.parent().unwrap_or(Path::new("")).to_owned();
        let source = Source { name: path.display().to_string(), dir };
        Origin { source: Arc::new(source), line: 0, column: 0 }
    }

    pub(crate) fn at(&self, line: u32, column: u32) -> Origin {
        Origin { source: Arc::clone(&self.source), line, column }
    }

    /// The file as the user named it, or the name given to [`Origin::named`].
    pub fn file(&self) -> &str {
        &self.source.name
    }

    /// Line, from 1; 0 if the text has no lines.
    pub fn line(&self) -> u32 {
        self.line
    }

    /// Column in characters, from 1; 0 if the text has no lines.
    pub fn column(&self) -> u32 {
        self.column
    }

    /// What `path`, written here, means.
    pub(crate) fn resolve(&self, path: &str) -> PathBuf {
        self.source.dir.join(path)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source.name)?;
        if self.line != 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        Ok(())
    }
}

/// How a value was written. bhyve_config(5) and the command line know only bare text; TOML has types, and a value of
/// the wrong one is an error even if its text would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Text without a type: the kind of the key decides.
    Bare,
    /// A TOML string.
    String,
    /// A TOML integer, its text in decimal.
    Integer,
    /// A TOML float.
    Float,
    /// A TOML boolean.
    Boolean,
    /// A TOML date or time.
    Datetime,
    /// Not readable, and already reported: nothing more is said about it.
    Broken,
}

/// One text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// The text, `%(name)` unexpanded.
    pub text: String,
    /// How it was written.
    pub form: Form,
    /// Where.
    pub origin: Origin,
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A leaf.
    Value(Value),
    /// A leaf with several texts (a TOML array); as one text they are joined by commas.
    List(Vec<Value>),
    /// A node.
    Branch(Branch),
}

/// One name with what it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Where the name was written.
    pub key: Origin,
    /// What it stands for.
    pub entry: Entry,
}

/// One part of a dotted key. Numbers sort as numbers and before words, so that `disk.10` follows `disk.9`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Name {
    Index(u32),
    Word(String),
}

impl Name {
    pub(crate) fn new(text: &str) -> Name {
        match text.parse() {
            Ok(index) if text == "0" || !text.starts_with(['0', '+']) => Name::Index(index),
            _ => Name::Word(text.to_owned()),
        }
    }

    /// The name, if it may be one: letters, digits, `-` and `_`, or a single `*`.
    pub(crate) fn valid(text: &str) -> Result<Name, Problem> {
        let allowed = "letters, digits, \"-\" and \"_\"";
        if text.is_empty() {
            return Err(Problem::new("a name is empty").allowed(allowed));
        }
        let good = |c: char| c.is_alphanumeric() || c == '-' || c == '_';
        match text.chars().find(|&c| !good(c)) {
            Some(c) if text != "*" => {
                Err(Problem::new(format!("a name cannot have {} in it", quoted(&c.to_string()))).allowed(allowed))
            }
            _ => Ok(Name::new(text)),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Name::Index(index) => write!(f, "{index}"),
            Name::Word(word) => f.write_str(word),
        }
    }
}

/// A node: names and what they stand for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Branch {
    pub(crate) items: BTreeMap<Name, Item>,
}

impl Branch {
    /// What `name`, one part of a dotted key, stands for.
    pub fn get(&self, name: &str) -> Option<&Item> {
        self.items.get(&Name::new(name))
    }

    /// The names, in order.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.items.keys().map(ToString::to_string)
    }

    /// True if every name is a number: the elements of an array of tables.
    pub(crate) fn is_array(&self) -> bool {
        !self.items.is_empty() && self.items.keys().all(|name| matches!(name, Name::Index(_)))
    }

    fn merge_under(&mut self, base: Branch) {
        for (name, item) in base.items {
            match self.items.get_mut(&name) {
                None => {
                    self.items.insert(name, item);
                }
                Some(Item { entry: Entry::Branch(mine), .. }) => {
                    if let Entry::Branch(theirs) = item.entry {
                        mine.merge_under(theirs);
                    }
                }
                Some(_) => {}
            }
        }
    }

    /// Makes a node of each single text that stands for one.
    pub(crate) fn spell_out(&mut self, section: &Section) {
        for below in section.sections {
            let Some(item) = self.items.get_mut(&Name::new(below.name)) else { continue };
            match (&mut item.entry, below.short) {
                (Entry::Branch(branch), _) => branch.spell_out(below),
                (Entry::Value(_), Some(key)) => {
                    let items = BTreeMap::from([(Name::new(key), item.clone())]);
                    item.entry = Entry::Branch(Branch { items });
                }
                _ => {}
            }
        }
    }

    fn spread_wildcards(&mut self) {
        if let Some(Item { entry: Entry::Branch(common), .. }) = self.items.remove(&Name::Word("*".to_owned())) {
            for (name, item) in &mut self.items {
                if let (Name::Index(_), Entry::Branch(element)) = (name, &mut item.entry) {
                    element.merge_under(common.clone());
                }
            }
        }
        for item in self.items.values_mut() {
            if let Entry::Branch(branch) = &mut item.entry {
                branch.spread_wildcards();
            }
        }
    }

    fn write_lines(&self, path: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, item) in &self.items {
            let key = join(path, name);
            match &item.entry {
                Entry::Value(value) => writeln!(f, "{key}={}", value.text)?,
                Entry::List(items) => {
                    let items: Vec<String> = items.iter().map(|item| escape_item(&item.text)).collect();
                    writeln!(f, "{key}={}", items.join(","))?;
                }
                Entry::Branch(branch) => branch.write_lines(&key, f)?,
            }
        }
        Ok(())
    }
}

/// A tree of dotted keys.
///
/// It displays as bhyve's `config.dump=1` prints its own: `key=value`, one a line, values unexpanded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    pub(crate) root: Branch,
    pub(crate) origin: Origin,
}

impl Tree {
    /// An empty tree that will be reported as being at `origin`.
    pub fn new(origin: Origin) -> Tree {
        Tree { root: Branch::default(), origin }
    }

    /// The node that holds everything.
    pub fn root(&self) -> &Branch {
        &self.root
    }

    /// What the dotted `key` stands for.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.item(key).map(|item| &item.entry)
    }

    pub(crate) fn item(&self, key: &str) -> Option<&Item> {
        let mut names = key.split('.');
        let mut item = self.root.get(names.next()?)?;
        for name in names {
            let Entry::Branch(branch) = &item.entry else { return None };
            item = branch.get(name)?;
        }
        Some(item)
    }

    /// The unexpanded text of the dotted `key`, if it is a single text.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            Entry::Value(value) => Some(&value.text),
            _ => None,
        }
    }

    /// Sets the dotted `key` to bare text, over what is there.
    ///
    /// # Errors
    /// The key is empty, too deep or has a character that no key has.
    pub fn set(&mut self, key: &str, text: impl Into<String>, origin: &Origin) -> Result<(), Problem> {
        let mut names = split(key)?;
        let value = Value { text: text.into(), form: Form::Bare, origin: origin.clone() };
        let mut branch = &mut self.root;
        let Some(last) = names.pop() else { return Err(Problem::new("the key is empty")) };
        for name in names {
            let fresh = || Item { key: origin.clone(), entry: Entry::Branch(Branch::default()) };
            let item = branch.items.entry(name).or_insert_with(fresh);
            if !matches!(item.entry, Entry::Branch(_)) {
                *item = fresh();
            }
            let Entry::Branch(next) = &mut item.entry else { unreachable!("made a branch above") };
            branch = next;
        }
        branch.items.insert(last, Item { key: origin.clone(), entry: Entry::Value(value) });
        Ok(())
    }

    /// Removes a name at the top.
    pub(crate) fn take(&mut self, name: &str) -> Option<Item> {
        self.root.items.remove(&Name::new(name))
    }

    /// Takes from `base` whatever this tree does not say. Nodes are merged name by name, and so are the elements of
    /// arrays of tables, which are names too (`disk.0`); a list is one value.
    pub fn merge_under(&mut self, base: Tree) {
        self.root.merge_under(base.root);
    }

    /// Gives every numbered element of a node what the node's `*` says, beneath what the element says itself:
    /// `disk.*.model=ide` is a default for all disks.
    pub(crate) fn spread_wildcards(&mut self) {
        self.root.spread_wildcards();
    }

    /// All dotted keys that have a value.
    pub(crate) fn keys(&self) -> Vec<String> {
        fn collect(branch: &Branch, path: &str, keys: &mut Vec<String>) {
            for (name, item) in &branch.items {
                match &item.entry {
                    Entry::Branch(branch) => collect(branch, &join(path, name), keys),
                    _ => keys.push(join(path, name)),
                }
            }
        }
        let mut keys = Vec::new();
        collect(&self.root, "", &mut keys);
        keys
    }
}

impl fmt::Display for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.root.write_lines("", f)
    }
}

/// Splits a dotted key.
pub(crate) fn split(key: &str) -> Result<Vec<Name>, Problem> {
    let names = key.split('.').take(DEEPEST + 1).map(Name::valid).collect::<Result<Vec<_>, _>>()?;
    if names.len() > DEEPEST {
        return Err(too_deep());
    }
    Ok(names)
}

pub(crate) fn too_deep() -> Problem {
    Problem::new("the key has too many names").allowed(format!("up to {DEEPEST} names joined by dots"))
}

/// `path.name`, or `name` at the root.
pub(crate) fn join(path: &str, name: impl fmt::Display) -> String {
    if path.is_empty() { name.to_string() } else { format!("{path}.{name}") }
}

fn escape_item(text: &str) -> String {
    text.replace('\\', "\\\\").replace(',', "\\,")
}

/// The items of a list in bare text: separated by commas, where `\,` is a comma and `\\` a backslash of an item.
pub(crate) fn split_items(text: &str) -> Vec<String> {
    if text.is_empty() {
        return Vec::new();
    }
    let mut items = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let last = items.len() - 1;
        match c {
            ',' => items.push(String::new()),
            '\\' => items[last].push(chars.next_if(|&next| next == ',' || next == '\\').unwrap_or(c)),
            c => items[last].push(c),
        }
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(lines: &[(&str, &str)]) -> Tree {
        let mut tree = Tree::new(Origin::named("test"));
        for (key, text) in lines {
            tree.set(key, *text, &Origin::named("test")).unwrap();
        }
        tree
    }

    #[test]
    fn a_dump_lists_keys_in_natural_order() {
        let tree = tree(&[("disk.10.path", "c"), ("name", "fw1"), ("disk.9.path", "b"), ("disk.*.model", "ide")]);
        assert_eq!(tree.to_string(), "disk.9.path=b\ndisk.10.path=c\ndisk.*.model=ide\nname=fw1\n");
    }

    #[test]
    fn the_tree_above_wins_key_by_key() {
        let mut over = tree(&[("name", "mine"), ("disk.0.path", "a.img"), ("boot", "x")]);
        over.merge_under(tree(&[("name", "base"), ("cpus", "4"), ("disk.0.model", "ide"), ("boot.order", "cd")]));
        assert_eq!(over.to_string(), "boot=x\ncpus=4\ndisk.0.model=ide\ndisk.0.path=a.img\nname=mine\n");
    }

    #[test]
    fn a_wildcard_reaches_every_element_beneath_its_own_keys() {
        let mut tree = tree(&[("disk.*.model", "ide"), ("disk.0.path", "a"), ("disk.1.model", "ahci")]);
        tree.spread_wildcards();
        assert_eq!(tree.to_string(), "disk.0.model=ide\ndisk.0.path=a\ndisk.1.model=ahci\n");
    }

    #[test]
    fn setting_a_key_replaces_whatever_was_there() {
        let mut tree = tree(&[("a", "1"), ("a.b", "2")]);
        assert_eq!(tree.to_string(), "a.b=2\n", "a leaf gives way to a node");
        tree.set("a", "3", &Origin::named("test")).unwrap();
        assert_eq!(tree.to_string(), "a=3\n", "and a node to a leaf");
    }

    #[test]
    fn names_that_no_key_has_are_refused() {
        let origin = Origin::named("test");
        let mut tree = Tree::new(origin.clone());
        for key in ["", "a..b", ".a", "a.", "a b", "a=b", "a\nb", "%(a)", "a*"] {
            assert!(tree.set(key, "1", &origin).is_err(), "{key:?}");
        }
        assert!(tree.set(&["a"; DEEPEST].join("."), "1", &origin).is_ok());
        assert!(tree.set(&["a"; DEEPEST + 1].join("."), "1", &origin).is_err());
        assert!(tree.set(&"a.".repeat(1_000_000), "1", &origin).is_err());
    }

    #[test]
    fn list_items_survive_commas_and_backslashes() {
        let items = ["a,b", "c\\", "\\,", "d"];
        let joined: Vec<String> = items.iter().map(|item| escape_item(item)).collect();
        assert_eq!(split_items(&joined.join(",")), items);
        assert_eq!(split_items(r"C:\dir,x"), [r"C:\dir", "x"]);
        assert!(split_items("").is_empty());
    }

    #[test]
    fn only_plain_numbers_are_indices() {
        assert_eq!(Name::new("7"), Name::Index(7));
        for word in ["07", "+7", "-7", "7a", "99999999999", ""] {
            assert_eq!(Name::new(word), Name::Word(word.to_owned()));
        }
    }
}
