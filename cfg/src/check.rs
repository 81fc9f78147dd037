//! A tree against its declarations: every fault, and the checked sections.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Error, Problem, nearest, quoted};
use crate::expand::Expander;
use crate::key::{Key, Kind, Rule, Schema, Section, Shape};
use crate::node::{Held, Node};
use crate::tree::{Branch, Entry, Form, Item, Name, Origin, Tree, Value, join, split_items};
use crate::value::{Setting, Text, describe};

/// Checks `tree`. With `partial`, keys may have been lost in reading, and none is reported as missing.
pub(crate) fn check(tree: &Tree, schema: Schema<'_>, partial: bool) -> (Node, Vec<Error>) {
    let mut tree = tree.clone();
    tree.spread_wildcards();
    let expander = Expander { tree: &tree, root: schema.root, missing: None };
    let mut checker = Checker { schema, expander, partial, errors: Vec::new() };
    let place = Place { path: "", index: 0, origin: &tree.origin };
    let node = checker.section(schema.root, Some(&tree.root), place);
    (node, checker.errors)
}

struct Checker<'a> {
    schema: Schema<'a>,
    expander: Expander<'a>,
    partial: bool,
    errors: Vec<Error>,
}

/// Where a section is.
#[derive(Clone, Copy)]
struct Place<'a> {
    path: &'a str,
    index: u32,
    origin: &'a Origin,
}

impl Checker<'_> {
    fn error(&mut self, origin: &Origin, key: impl Into<String>, problem: Problem) {
        self.errors.push(Error::new(origin, key, problem));
    }

    /// Checks one section; `branch` is none if it is not written.
    fn section(&mut self, section: &'static Section, branch: Option<&Branch>, place: Place<'_>) -> Node {
        let nothing = Branch::default();
        let items = branch.unwrap_or(&nothing);
        let keys = self.keys(section, items, place.path);
        let mut written = BTreeSet::new();
        let mut values = BTreeMap::new();
        for key in &keys {
            let path = join(place.path, key.name);
            let held = match items.get(key.name) {
                Some(item) => {
                    written.insert(key.name);
                    self.item(key, item, &path).map(|(setting, origin)| Held { setting, origin, given: true })
                }
                None => self.default(key, &path, place.origin),
            };
            values.insert(key.name, held);
        }
        for (name, item) in &items.items {
            let name = name.to_string();
            let known = keys.iter().any(|key| key.name == name) || section.sections.iter().any(|s| s.name == name);
            // With a bad model nobody knows which keys there are, and that has been said.
            let undecided = self
                .bringer(section, &name)
                .is_some_and(|(key, _)| written.contains(key) && values.get(key).is_some_and(Option::is_none));
            if !known && !undecided && !is_broken(&item.entry) {
                let problem = self.unknown(section, &keys, &name, matches!(item.entry, Entry::Branch(_)));
                self.error(&item.key, join(place.path, &name), problem);
            }
        }
        let (mut tables, mut arrays) = (BTreeMap::new(), BTreeMap::new());
        for below in section.sections {
            let path = join(place.path, below.name);
            let item = items.get(below.name);
            match below.shape {
                Shape::Table => {
                    tables.insert(below.name, self.table(below, item, &path, place.origin));
                }
                Shape::Array { max } => {
                    arrays.insert(below.name, self.array(below, max, item, &path));
                }
                Shape::Free => self.free(item, &path, false),
                Shape::Tree => self.free(item, &path, true),
            }
        }
        let origin = place.origin.clone();
        let node = Node { path: place.path.to_owned(), index: place.index, origin, values, tables, arrays };
        for rule in section.rules {
            self.rule(rule, &node, &written, branch.is_some());
        }
        node
    }

    /// The keys of a section: its own, and those that its words bring. A word's key stands in for one of the section.
    fn keys(&self, section: &'static Section, items: &Branch, path: &str) -> Vec<Key> {
        let mut keys = section.keys.to_vec();
        for key in section.keys {
            let Kind::Named(class) = key.kind else { continue };
            let word = match items.get(key.name) {
                Some(Item { entry: Entry::Value(value), .. }) => {
                    self.expander.expand(&join(path, key.name), &value.text).ok().map(|(text, _)| text)
                }
                Some(_) => None,
                None => key.default.map(str::to_owned),
            };
            let Some(word) = word.filter(|word| self.schema.catalogue.knows(class, word)) else { continue };
            for &brought in self.schema.catalogue.keys(class, &word) {
                keys.retain(|key| key.name != brought.name);
                keys.push(brought);
            }
        }
        keys
    }

    /// The key of a section, and its word, that would bring the key `name`.
    fn bringer(&self, section: &'static Section, name: &str) -> Option<(&'static str, String)> {
        section.keys.iter().find_map(|key| {
            let Kind::Named(class) = key.kind else { return None };
            let catalogue = self.schema.catalogue;
            let brings = |word: &&str| catalogue.keys(class, word).iter().any(|key| key.name == name);
            catalogue.words(class).into_iter().find(brings).map(|word| (key.name, word.to_owned()))
        })
    }

    fn default(&mut self, key: &Key, path: &str, origin: &Origin) -> Option<Held> {
        let value = Value { text: key.default?.to_owned(), form: Form::Bare, origin: origin.clone() };
        let setting = self.entry(key.kind, key.name, &Entry::Value(value), path, false)?;
        Some(Held { setting, origin: origin.clone(), given: false })
    }

    fn item(&mut self, key: &Key, item: &Item, path: &str) -> Option<(Setting, Origin)> {
        let origin = match &item.entry {
            Entry::Value(value) => &value.origin,
            Entry::List(values) => values.first().map_or(&item.key, |value| &value.origin),
            Entry::Branch(_) => {
                let problem = Problem::new(format!("expected {}, found a section", key.kind.noun()));
                let allowed = key.kind.allowed(self.schema.catalogue);
                self.error(&item.key, path, problem.allowed(allowed));
                return None;
            }
        };
        if let (Entry::List(_), false) = (&item.entry, matches!(key.kind, Kind::List(_))) {
            let problem = Problem::new(format!("expected {}, found a list", key.kind.noun()));
            let allowed = key.kind.allowed(self.schema.catalogue);
            self.error(origin, path, problem.allowed(allowed));
            return None;
        }
        let setting = self.entry(key.kind, key.name, &item.entry, path, true)?;
        Some((setting, origin.clone()))
    }

    /// The value of a leaf. None if it is broken, or if anything was reported.
    fn entry(&mut self, kind: Kind, name: &str, entry: &Entry, path: &str, look: bool) -> Option<Setting> {
        let values = match entry {
            Entry::Value(value) if !matches!(kind, Kind::List(_)) => return self.value(kind, name, value, path, look),
            Entry::Value(value) => {
                let (text, form) = self.expanded(value, path)?;
                let texts = if form == Form::Bare { split_items(&text) } else { vec![text] };
                // They are expanded, and must not be again: a literal %( may have come out of it.
                let settings: Vec<_> =
                    texts.iter().map(|text| self.convert(kind.item(), "word", value, text, form, path, look)).collect();
                return settings.into_iter().collect::<Option<_>>().map(Setting::List);
            }
            Entry::List(values) => values,
            Entry::Branch(_) => return None,
        };
        // All are checked before the first bad one makes the list none.
        let settings: Vec<_> = values.iter().map(|value| self.value(kind.item(), "word", value, path, look)).collect();
        settings.into_iter().collect::<Option<_>>().map(Setting::List)
    }

    fn value(&mut self, kind: Kind, name: &str, value: &Value, path: &str, look: bool) -> Option<Setting> {
        let (text, form) = self.expanded(value, path)?;
        self.convert(kind, name, value, &text, form, path, look)
    }

    /// The text with its references followed; if there were any, it is no longer of any TOML type.
    fn expanded(&mut self, value: &Value, path: &str) -> Option<(String, Form)> {
        match value.form {
            Form::Broken => None,
            Form::Bare | Form::String => match self.expander.expand(path, &value.text) {
                Ok((text, true)) => Some((text, Form::Bare)),
                Ok((text, false)) => Some((text, value.form)),
                Err(problem) => {
                    self.error(&value.origin, path, problem);
                    None
                }
            },
            form => Some((value.text.clone(), form)),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "what is said about a value, each once")]
    fn convert(
        &mut self,
        kind: Kind,
        name: &str,
        value: &Value,
        text: &str,
        form: Form,
        path: &str,
        look: bool,
    ) -> Option<Setting> {
        match kind.convert(Text { name, text, form, origin: &value.origin }, self.schema.catalogue, look) {
            Ok(setting) => Some(setting),
            Err(problem) => {
                self.error(&value.origin, path, problem);
                None
            }
        }
    }

    fn unknown(&self, section: &'static Section, keys: &[Key], name: &str, branch: bool) -> Problem {
        let words = || keys.iter().map(|key| key.name).chain(section.sections.iter().map(|section| section.name));
        let shown = |name: &str| match section.sections.iter().find(|section| section.name == name) {
            Some(section) if matches!(section.shape, Shape::Array { .. }) => format!("[[{name}]]"),
            Some(_) => format!("[{name}]"),
            None => name.to_owned(),
        };
        let allowed: Vec<String> = words().map(shown).collect();
        let what = if branch { "section" } else { "key" };
        let problem = Problem::new(format!("unknown {what} {}", quoted(name))).allowed(allowed.join(", "));
        if let Some((key, word)) = self.bringer(section, name) {
            return Problem { message: format!("{} needs {key} = {}", quoted(name), quoted(&word)), ..problem };
        }
        if let Some(near) = nearest(name, words()) {
            let section = section.sections.iter().any(|section| section.name == near);
            return problem.suggest(Some(if section { shown(near) } else { quoted(near) }));
        }
        // TOML's commonest slip: a key that ended up in, or outside, a section.
        let mut elsewhere = Vec::new();
        self.schema.root.walk(&mut |path, _, key| {
            if key.name == name {
                elsewhere.push(path.to_owned());
            }
        });
        match &elsewhere[..] {
            [path, ..] if path == name => {
                let message = format!("{} belongs at the top, before the first [section]", quoted(name));
                Problem { message, ..problem }
            }
            [path] => problem.suggest(Some(quoted(path))),
            _ => problem,
        }
    }

    fn table(&mut self, section: &'static Section, item: Option<&Item>, path: &str, above: &Origin) -> Node {
        let (branch, origin) = match item {
            Some(Item { key, entry: Entry::Branch(branch) }) if !branch.is_array() => (Some(branch), key),
            Some(Item { key, entry }) => {
                let problem = match entry {
                    Entry::Branch(_) => Problem::new("there can be only one"),
                    _ => Problem::new(format!("expected a section, found {}", found(entry))),
                };
                if !is_broken(entry) {
                    self.error(key, path, problem.allowed(format!("[{path}]")));
                }
                (None, key)
            }
            None => (None, above),
        };
        self.section(section, branch, Place { path, index: 0, origin })
    }

    fn array(&mut self, section: &'static Section, max: u32, item: Option<&Item>, path: &str) -> Vec<Node> {
        let allowed = format!("[[{path}]], numbered 0 to {}", max - 1);
        let mut nodes = Vec::new();
        let (key, branch) = match item {
            None => return nodes,
            Some(Item { key, entry: Entry::Branch(branch) }) => (key, branch),
            Some(Item { entry: Entry::List(values), .. }) if values.is_empty() => return nodes,
            Some(Item { key, entry }) => {
                if !is_broken(entry) {
                    let problem = Problem::new(format!("expected tables, found {}", found(entry)));
                    self.error(key, path, problem.allowed(allowed));
                }
                return nodes;
            }
        };
        if branch.items.keys().any(|name| matches!(name, Name::Word(_))) {
            self.error(key, path, Problem::new("there can be several, and each is its own table").allowed(allowed));
            return nodes;
        }
        for (name, Item { key, entry }) in &branch.items {
            let Name::Index(index) = *name else { continue };
            let path = join(path, index);
            match entry {
                Entry::Branch(_) if index >= max => {
                    self.error(key, path, Problem::new("one too many").allowed(format!("at most {max}")));
                }
                Entry::Branch(branch) => {
                    nodes.push(self.section(section, Some(branch), Place { path: &path, index, origin: key }));
                }
                entry if is_broken(entry) => {}
                entry => {
                    let problem = Problem::new(format!("expected a table, found {}", found(entry)));
                    self.error(key, path, problem.allowed(allowed.as_str()));
                }
            }
        }
        nodes
    }

    fn free(&mut self, item: Option<&Item>, path: &str, sections: bool) {
        match item.map(|item| (&item.key, &item.entry)) {
            None => {}
            Some((_, Entry::Branch(branch))) => {
                for (name, item) in &branch.items {
                    let path = join(path, name);
                    let allowed = "a single value";
                    match &item.entry {
                        Entry::Branch(_) if sections => self.free(Some(item), &path, true),
                        // An integer or a boolean does as well as a text: it is only ever put into another value.
                        Entry::Value(value) => {
                            if let Some((text, _)) = self.expanded(value, &path) {
                                self.convert(Kind::Text, "text", value, &text, Form::Bare, &path, false);
                            }
                        }
                        entry => {
                            let problem = Problem::new(format!("expected a value, found {}", found(entry)));
                            self.error(&item.key, path, problem.allowed(allowed));
                        }
                    }
                }
            }
            Some((key, entry)) if !is_broken(entry) => {
                let problem = Problem::new(format!("expected a section, found {}", found(entry)));
                self.error(key, path, problem.allowed(format!("[{path}]")));
            }
            Some(_) => {}
        }
    }

    fn rule(&mut self, rule: &Rule, node: &Node, written: &BTreeSet<&str>, there: bool) {
        let missing = |key: &str| !written.contains(key) && node.held(key).is_none();
        match *rule {
            Rule::Required(key) => {
                if there && !self.partial && missing(key) {
                    self.missing(node, &node.origin, key, "required key is missing".to_owned());
                }
            }
            Rule::Exclusive(keys) => {
                let given: Vec<_> = keys.iter().filter(|key| written.contains(*key)).collect();
                for key in given.iter().skip(1) {
                    let message = format!("cannot be given together with {}", join(&node.path, given[0]));
                    self.given(node, key, Problem::new(message).allowed(format!("one of {}", keys.join(", "))));
                }
            }
            Rule::Needs(key, needs) => {
                if written.contains(key) && !self.partial && missing(needs) {
                    let message = format!("has no effect without {}", join(&node.path, needs));
                    self.given(node, key, Problem::new(message));
                }
            }
            Rule::NeedsWhen { key, is, needs } => {
                if let Some(held) = node.held(key).filter(|held| held.setting.to_string() == is)
                    && !self.partial
                    && missing(needs)
                {
                    let message = format!("required with {key} = {}", quoted(is));
                    self.missing(node, &held.origin, needs, message);
                }
            }
            Rule::OnlyWhen { key, when, is } => {
                if let Some(held) = node.held(when)
                    && written.contains(key)
                    && !is.contains(&held.setting.to_string().as_str())
                {
                    let message = format!("has no effect with {when} = {}", quoted(&held.setting.to_string()));
                    let words: Vec<String> = is.iter().map(|word| quoted(word)).collect();
                    self.given(node, key, Problem::new(message).allowed(format!("with {when} = {}", words.join(", "))));
                }
            }
            Rule::Unique { keys, share, only, what } => self.unique(node, (keys, share), only, what),
        }
    }

    fn missing(&mut self, node: &Node, origin: &Origin, key: &str, message: String) {
        let path = join(&node.path, key);
        let kind = self.declared(node, key);
        let problem = Problem::new(message);
        let problem = match kind {
            Some(kind) => problem.allowed(kind.allowed(self.schema.catalogue)),
            None => problem,
        };
        self.error(origin, path, problem);
    }

    /// The kind of a key of `node`'s section.
    fn declared(&self, node: &Node, name: &str) -> Option<Kind> {
        let pattern: Vec<&str> =
            node.path.split('.').map(|part| if part.parse::<u32>().is_ok() { "*" } else { part }).collect();
        let wanted = join(&pattern.join("."), name);
        let mut kind = None;
        self.schema.root.walk(&mut |path, _, key| {
            if path == wanted {
                kind = Some(key.kind);
            }
        });
        kind
    }

    /// Reports a fault of a key that is written, at the key.
    fn given(&mut self, node: &Node, key: &str, problem: Problem) {
        let origin = self.expander.tree.item(&join(&node.path, key)).map_or(&node.origin, |item| &item.key);
        self.errors.push(Error::new(origin, join(&node.path, key), problem));
    }

    fn unique(&mut self, node: &Node, (keys, share): (&[&str], &[&str]), only: Option<&str>, what: &str) {
        let mut seen: Vec<(String, String, Origin, bool)> = Vec::new();
        for pattern in keys {
            let (section, name) = pattern.rsplit_once('.').unwrap_or(("", pattern));
            for found in matching(node, section) {
                let Some(held) = found.held(name).filter(|held| held.given) else { continue };
                let text = held.setting.to_string();
                if only.is_some_and(|only| only != text) {
                    continue;
                }
                seen.push((text, join(&found.path, name), held.origin.clone(), share.contains(pattern)));
            }
        }
        // The second in the file is the one to complain of, whatever order the patterns come in.
        seen.sort_by(|(_, _, a, _), (_, _, b, _)| {
            (a.file(), a.line(), a.column()).cmp(&(b.file(), b.line(), b.column()))
        });
        for (i, (text, path, origin, shares)) in seen.iter().enumerate() {
            let taken = |(other, _, _, too): &&(String, String, Origin, bool)| other == text && !(*shares && *too);
            if let Some((_, first, place, _)) = seen[..i].iter().find(taken) {
                self.error(origin, path, Problem::new(format!("{what} {text} is already used by {first} at {place}")));
            }
        }
    }
}

/// The sections below `node` that match a dotted pattern.
fn matching<'n>(node: &'n Node, pattern: &str) -> Vec<&'n Node> {
    let mut nodes = vec![node];
    let mut parts = pattern.split('.').filter(|part| !part.is_empty()).peekable();
    while let Some(part) = parts.next() {
        let array = parts.next_if_eq(&"*").is_some();
        nodes = nodes
            .into_iter()
            .flat_map(|node| if array { node.children(part).iter().collect() } else { vec![node.child(part)] })
            .collect();
    }
    nodes
}

fn is_broken(entry: &Entry) -> bool {
    matches!(entry, Entry::Value(Value { form: Form::Broken, .. }))
}

fn found(entry: &Entry) -> String {
    match entry {
        Entry::Value(value) => describe(&value.text, value.form),
        Entry::List(_) => "a list".to_owned(),
        Entry::Branch(_) => "a section".to_owned(),
    }
}
