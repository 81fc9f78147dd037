//! A tree as TOML.

use std::fmt::Write;

use crate::key::{Kind, Schema, Section, Shape};
use crate::tree::{Branch, Entry, Form, Item, Name, Origin, Tree, Value, join, split_items};
use crate::value::{Setting, Text, literal, toml_string};

impl Tree {
    /// The tree as TOML that reads back as the same. Bare text has no type; the schema tells which it needs.
    pub fn to_toml(&self, schema: Schema<'_>) -> String {
        let mut writer = Writer { schema, out: String::new() };
        writer.branch(&self.root, Some(schema.root), "");
        writer.out
    }
}

struct Writer<'a> {
    schema: Schema<'a>,
    out: String,
}

impl Writer<'_> {
    fn branch(&mut self, branch: &Branch, section: Option<&'static Section>, path: &str) {
        for (name, item) in &branch.items {
            let kind = self.kind(branch, section, &name.to_string());
            let text = match &item.entry {
                Entry::Value(value) => self.leaf(value, kind),
                Entry::List(values) => self.list(values.iter().map(|value| (value.text.as_str(), value.form)), kind),
                Entry::Branch(_) => continue,
            };
            let _ = writeln!(self.out, "{} = {text}", bare_name(name));
        }
        for (name, item) in &branch.items {
            let Entry::Branch(below) = &item.entry else { continue };
            let name = name.to_string();
            let section = section.and_then(|section| section.sections.iter().find(|below| below.name == name));
            let path = join(path, bare_name(&Name::new(&name)));
            let elements: Option<Vec<(&Name, &Branch)>> = match section {
                Some(Section { shape: Shape::Array { .. }, .. }) => below.items.iter().map(element).collect(),
                _ => None,
            };
            let Some(elements) = elements else {
                // What holds only sections is named by theirs.
                let leaves = below.items.values().any(|item| !matches!(item.entry, Entry::Branch(_)));
                if leaves || below.items.is_empty() {
                    self.header(&path, "[", "]");
                }
                self.branch(below, section, &path);
                continue;
            };
            // [[name]] numbers from 0 by itself; with a gap the numbers have to be written.
            let whole = (0u32..).zip(&elements).all(|(index, (name, _))| **name == Name::Index(index));
            for (name, element) in elements {
                if whole {
                    self.header(&path, "[[", "]]");
                    self.branch(element, section, &path);
                } else {
                    let path = join(&path, bare_name(name));
                    self.header(&path, "[", "]");
                    self.branch(element, section, &path);
                }
            }
        }
    }

    fn header(&mut self, path: &str, open: &str, close: &str) {
        let gap = if self.out.is_empty() { "" } else { "\n" };
        let _ = writeln!(self.out, "{gap}{open}{path}{close}");
    }

    /// The kind of a key in a section, which one of the section's words may have brought.
    fn kind(&self, branch: &Branch, section: Option<&'static Section>, name: &str) -> Option<Kind> {
        let section = section?;
        let brought = section.keys.iter().filter_map(|key| {
            let Kind::Named(class) = key.kind else { return None };
            let Entry::Value(word) = &branch.get(key.name)?.entry else { return None };
            Some(self.schema.catalogue.keys(class, &word.text))
        });
        let all = brought.flatten().chain(section.keys);
        all.into_iter().find(|key| key.name == name).map(|key| key.kind)
    }

    fn leaf(&self, value: &Value, kind: Option<Kind>) -> String {
        match kind {
            Some(list @ Kind::List(_)) if value.form == Form::Bare => {
                let items = split_items(&value.text);
                self.list(items.iter().map(|text| (text.as_str(), Form::Bare)), Some(list))
            }
            _ => self.text(&value.text, value.form, kind),
        }
    }

    fn list<'t>(&self, items: impl Iterator<Item = (&'t str, Form)>, kind: Option<Kind>) -> String {
        let items: Vec<String> = items.map(|(text, form)| self.text(text, form, kind.map(Kind::item))).collect();
        format!("[{}]", items.join(", "))
    }

    fn text(&self, text: &str, form: Form, kind: Option<Kind>) -> String {
        match (form, kind) {
            (Form::Integer | Form::Float | Form::Boolean | Form::Datetime, _) => text.to_owned(),
            (Form::Bare, Some(kind @ (Kind::Bool | Kind::Int { .. }))) => {
                let origin = Origin::named("");
                let text = Text { name: "", text, form, origin: &origin };
                match kind.convert(text, self.schema.catalogue, false) {
                    Ok(setting @ (Setting::Bool(_) | Setting::Int(_))) => literal(&setting, text.text),
                    _ => toml_string(text.text),
                }
            }
            _ => toml_string(text),
        }
    }
}

fn element<'b>((name, item): (&'b Name, &'b Item)) -> Option<(&'b Name, &'b Branch)> {
    match &item.entry {
        Entry::Branch(branch) => Some((name, branch)),
        _ => None,
    }
}

fn bare_name(name: &Name) -> String {
    let text = name.to_string();
    let bare = text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    if bare { text } else { toml_string(&text) }
}
