//! TOML text into a tree.
//!
//! The parser recovers from a fault and goes on with the next line, so that one run reports all of them. Of several
//! faults in one statement only the first is kept: the rest are its echo. What a faulty statement would have set is
//! put into the tree as [`Form::Broken`], so that nobody complains that it is missing.

use std::borrow::Cow;
use std::collections::HashSet;

use toml_parser::decoder::ScalarKind;
use toml_parser::parser::{Event, EventKind, RecursionGuard, ValidateWhitespace, parse_document};
use toml_parser::{Expected, ParseError, Source};

use crate::error::{Error, Problem, quoted};
use crate::tree::{Branch, DEEPEST, Entry, Form, Item, Name, Origin, Tree, Value, join, too_deep};
use crate::value::toml_string;

/// Arrays and inline tables within each other.
const NESTING: u32 = 8;

/// What was read, and what was wrong with it.
pub(crate) struct Outcome {
    pub(crate) tree: Tree,
    pub(crate) errors: Vec<Error>,
    /// A fault may have swallowed keys: that one is missing means nothing.
    pub(crate) partial: bool,
}

/// Reads TOML. Places are reported as being in `origin`.
pub(crate) fn toml(origin: &Origin, bytes: &[u8]) -> Outcome {
    let start = origin.at(1, 1);
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let (good, bad) = bytes.split_at(error.valid_up_to());
            let good = String::from_utf8_lossy(good);
            let good = good.strip_prefix('\u{feff}').unwrap_or(&good);
            let (line, column) = Places::new(good).of(good.len());
            let message = format!("not UTF-8 text: byte 0x{:02x}", bad[0]);
            let error = Error::new(&origin.at(line, column), "", Problem::new(message));
            return Outcome { tree: Tree::new(start), errors: vec![error], partial: true };
        }
    };
    // Editors on Windows put a byte order mark in front; it is not part of the first line.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let source = Source::new(text);
    let tokens = source.lex().into_vec();
    let (mut events, mut errors) = (Vec::new(), Vec::<ParseError>::new());
    let mut receiver = ValidateWhitespace::new(&mut events, source);
    let mut receiver = RecursionGuard::new(&mut receiver, NESTING);
    parse_document(&tokens, &mut receiver, &mut errors);
    let mut faults: Vec<Fault> = errors.iter().map(Fault::new).collect();
    faults.sort_by_key(|fault| fault.offset);

    let mut builder = Builder {
        text,
        source,
        places: Places::new(text),
        origin: origin.clone(),
        events: &events,
        next: 0,
        syntax: faults.iter().map(|fault| fault.offset).collect(),
        faults,
        root: Branch::default(),
        table: Some(String::new()),
        dotted: HashSet::new(),
        headers: HashSet::new(),
        arrays: HashSet::new(),
        closed: HashSet::new(),
        statements: Vec::new(),
        unread: None,
    };
    builder.document();
    builder.finish(start)
}

/// Byte offsets into lines and columns. Columns count characters, so that they agree with editors.
struct Places<'a> {
    text: &'a str,
    /// Offset, line and column of some places, so that a file of one long line is not counted again for each key.
    known: Vec<(usize, u32, u32)>,
}

impl<'a> Places<'a> {
    fn new(text: &'a str) -> Places<'a> {
        const APART: usize = 1024;
        let mut known = vec![(0, 1, 1)];
        let (mut line, mut column) = (1, 1);
        for (offset, c) in text.char_indices() {
            if offset >= known.len() * APART {
                known.push((offset, line, column));
            }
            (line, column) = step(c, line, column);
        }
        Places { text, known }
    }

    fn of(&self, offset: usize) -> (u32, u32) {
        let after = self.known.partition_point(|&(known, _, _)| known <= offset);
        let (from, line, column) = self.known[after - 1];
        let rest = self.text[from..].char_indices().take_while(|&(at, _)| from + at < offset);
        rest.fold((line, column), |(line, column), (_, c)| step(c, line, column))
    }
}

fn step(c: char, line: u32, column: u32) -> (u32, u32) {
    if c == '\n' { (line + 1, 1) } else { (line, column + 1) }
}

/// Something wrong at a byte offset.
struct Fault {
    offset: usize,
    problem: Problem,
}

impl Fault {
    fn new(error: &ParseError) -> Fault {
        let offset = error.unexpected().or(error.context()).map_or(0, |span| span.start());
        let expected: Vec<String> = error
            .expected()
            .unwrap_or_default()
            .iter()
            .filter_map(|expected| match expected {
                Expected::Literal("\n") => Some("the end of the line".to_owned()),
                Expected::Literal(text) => Some((*text).to_owned()),
                Expected::Description(text) => Some((*text).to_owned()),
                _ => None,
            })
            .collect();
        let allowed = (!expected.is_empty()).then(|| expected.join(", "));
        Fault { offset, problem: Problem { allowed, ..Problem::new(error.description()) } }
    }
}

/// A key with its value, or a header; faults between `start` and `end` are about `key`.
struct Statement {
    start: usize,
    end: usize,
    key: String,
    /// Table that the statements behind it belong to.
    table: String,
    /// The keys below it are not read.
    lost: bool,
}

/// The names of a dotted key, each with its offset.
struct Dotted {
    names: Vec<(Name, usize)>,
    start: usize,
    end: usize,
}

struct Builder<'a> {
    text: &'a str,
    source: Source<'a>,
    places: Places<'a>,
    origin: Origin,
    events: &'a [Event],
    next: usize,
    /// Offsets of the parser's own faults, ascending.
    syntax: Vec<usize>,
    faults: Vec<Fault>,
    root: Branch,
    /// Dotted key of the current table; none after a header that could not be used.
    table: Option<String>,
    // How tables were made decides what may still be added to them: by dotted keys, by a header, by `[[header]]`, or
    // as an inline value.
    dotted: HashSet<String>,
    headers: HashSet<String>,
    arrays: HashSet<String>,
    closed: HashSet<String>,
    statements: Vec<Statement>,
    /// The first thing that could not be read.
    unread: Option<Origin>,
}

impl Builder<'_> {
    fn document(&mut self) {
        while let Some(event) = self.bump() {
            match event.kind() {
                EventKind::StdTableOpen => self.header(event, false),
                EventKind::ArrayTableOpen => self.header(event, true),
                EventKind::SimpleKey => self.pair(event),
                _ => {}
            }
        }
    }

    /// Turns the faults into errors, the first of each statement.
    fn finish(mut self, start: Origin) -> Outcome {
        self.faults.sort_by_key(|fault| fault.offset);
        let mut errors = Vec::new();
        let mut reported = HashSet::new();
        let mut partial = false;
        for Fault { offset, problem } in self.faults {
            let index = self.statements.partition_point(|statement| statement.start <= offset);
            let statement = index.checked_sub(1).and_then(|index| self.statements.get(index));
            let key = match statement {
                Some(statement) if offset <= statement.end => {
                    if !reported.insert(statement.start) {
                        continue;
                    }
                    partial |= statement.lost || self.text[statement.start..statement.end].contains('\n');
                    &statement.key
                }
                _ => {
                    partial = true;
                    statement.map_or("", |statement| statement.table.as_str())
                }
            };
            let (line, column) = self.places.of(offset);
            errors.push(Error::new(&self.origin.at(line, column), key, problem));
        }
        // A parser that recovers in silence must not make a setting disappear.
        if let (true, Some(origin)) = (errors.is_empty(), self.unread) {
            errors.push(Error::new(&origin, "", Problem::new("this cannot be read")));
        }
        Outcome { tree: Tree { root: self.root, origin: start }, errors, partial }
    }

    fn bump(&mut self) -> Option<Event> {
        let event = self.events.get(self.next).copied();
        self.next += 1;
        event
    }

    /// The kind of the next event that is not blank. The parser lets lines end anywhere within an inline table.
    fn peek(&mut self, inline: bool) -> Option<EventKind> {
        while let Some(event) = self.events.get(self.next) {
            match event.kind() {
                EventKind::Whitespace => self.next += 1,
                EventKind::Newline | EventKind::Comment if inline => self.next += 1,
                kind => return Some(kind),
            }
        }
        None
    }

    fn place(&self, offset: usize) -> Origin {
        let (line, column) = self.places.of(offset);
        self.origin.at(line, column)
    }

    fn fault(&mut self, offset: usize, problem: Problem) {
        self.faults.push(Fault { offset, problem });
    }

    /// The end of the line that `offset` is in.
    fn line_end(&self, offset: usize) -> usize {
        self.text.as_bytes()[offset..]
            .iter()
            .position(|&b| b == b'\n')
            .map_or(self.text.len(), |length| offset + length)
    }

    /// True if the parser found a fault between two offsets.
    fn is_broken(&self, start: usize, end: usize) -> bool {
        let first = self.syntax.partition_point(|&offset| offset < start);
        self.syntax.get(first).is_some_and(|&offset| offset <= end)
    }

    fn broken(&mut self, offset: usize) -> Entry {
        let origin = self.place(offset);
        self.unread.get_or_insert_with(|| origin.clone());
        Entry::Value(Value { text: String::new(), form: Form::Broken, origin })
    }

    /// The rest of a dotted key; none, and a fault, if a name of it cannot be used.
    fn dotted(&mut self, first: Event, inline: bool) -> Result<Dotted, usize> {
        let start = first.span().start();
        let mut dotted = Dotted { names: Vec::new(), start, end: start };
        let mut good = true;
        let mut event = first;
        loop {
            let span = event.span();
            dotted.end = span.end();
            let mut text = Cow::Borrowed("");
            let mut errors = Vec::<ParseError>::new();
            match self.source.get(event) {
                Some(raw) => raw.decode_key(&mut text, &mut errors),
                None => good = false,
            }
            good &= errors.is_empty();
            self.faults.extend(errors.iter().map(Fault::new));
            // A quoted name may itself be dotted: "0.3.0" is three names, as it is anywhere else.
            for part in text.split('.').take(DEEPEST + 1) {
                match Name::valid(part) {
                    Ok(name) => dotted.names.push((name, span.start())),
                    Err(problem) => {
                        good = false;
                        self.fault(span.start(), problem);
                    }
                }
            }
            if self.peek(inline) != Some(EventKind::KeySep) {
                break;
            }
            self.next += 1;
            if self.peek(inline) != Some(EventKind::SimpleKey) {
                break;
            }
            let Some(next) = self.bump() else { break };
            event = next;
        }
        if good { Ok(dotted) } else { Err(dotted.end) }
    }

    fn header(&mut self, open: Event, array: bool) {
        let start = open.span().start();
        let dotted = match self.peek(false) {
            Some(EventKind::SimpleKey) => self.bump().map(|first| self.dotted(first, false)),
            _ => None,
        };
        let (table, key, end) = match dotted {
            Some(Ok(dotted)) => {
                let key = names_text("", &dotted.names);
                (self.open_table(&dotted.names, array), key, dotted.end)
            }
            Some(Err(end)) => (None, String::new(), end),
            None => (None, String::new(), open.span().end()),
        };
        let below = table.clone().unwrap_or_default();
        let end = self.line_end(end);
        self.statements.push(Statement { start, end, key, table: below, lost: table.is_none() });
        self.table = table;
    }

    /// Makes the table of a header, or finds it, and gives its dotted key.
    fn open_table(&mut self, names: &[(Name, usize)], array: bool) -> Option<String> {
        let (last, above) = names.split_last()?;
        if names.len() >= DEEPEST {
            self.fault(last.1, too_deep());
            return None;
        }
        let origins: Vec<Origin> = names.iter().map(|&(_, offset)| self.place(offset)).collect();
        let (branch, mut path) = match descend(&mut self.root, above, &origins, &self.arrays, &self.closed) {
            Ok(found) => found,
            Err((offset, problem)) => {
                self.fault(offset, problem);
                return None;
            }
        };
        let (name, offset) = last;
        let origin = &origins[above.len()];
        path = join(&path, name);
        let exists = branch.items.contains_key(name);
        let item = branch.items.entry(name.clone()).or_insert_with(|| branch_item(origin));
        let first = item.key.clone();
        let Entry::Branch(next) = &mut item.entry else {
            self.fault(*offset, duplicate(&first));
            return None;
        };
        if array {
            if exists && !self.arrays.contains(&path) {
                self.fault(*offset, duplicate(&first));
                return None;
            }
            self.arrays.insert(path.clone());
            let index = next.items.len() as u32;
            next.items.insert(Name::Index(index), branch_item(origin));
            path = join(&path, index);
            self.headers.insert(path.clone());
            return Some(path);
        }
        let made = [&self.headers, &self.dotted, &self.arrays, &self.closed].iter().any(|set| set.contains(&path));
        if made {
            self.fault(*offset, duplicate(&first));
            // The keys below still get checked, where they can be.
            return self.headers.contains(&path).then_some(path);
        }
        self.headers.insert(path.clone());
        Some(path)
    }

    fn pair(&mut self, first: Event) {
        let start = first.span().start();
        let dotted = self.dotted(first, false);
        let table = self.table.clone();
        let below = table.clone().unwrap_or_default();
        let key = match &dotted {
            Ok(dotted) => names_text(&below, &dotted.names),
            Err(_) => below.clone(),
        };
        let depth = key.split('.').count();
        let key_end = match &dotted {
            Ok(dotted) => dotted.end,
            Err(end) => *end,
        };
        let (entry, end) = match self.peek(false) {
            Some(EventKind::KeyValSep) => {
                self.next += 1;
                self.value(key_end, depth, false)
            }
            _ => (self.broken(start), key_end),
        };
        let end = self.line_end(end);
        self.statements.push(Statement { start, end, key: key.clone(), table: below.clone(), lost: false });
        let (Ok(dotted), Some(table)) = (dotted, table) else { return };
        if depth > DEEPEST {
            return self.fault(dotted.start, too_deep());
        }
        let entry = if self.is_broken(start, end) { self.broken(start) } else { entry };
        let origins = dotted.names.iter().map(|&(_, offset)| self.place(offset)).collect::<Vec<_>>();
        if matches!(entry, Entry::Branch(_)) {
            self.closed.insert(key);
        }
        let mut branch = &mut self.root;
        for name in table.split('.').filter(|name| !name.is_empty()) {
            let Some(Item { entry: Entry::Branch(next), .. }) = branch.items.get_mut(&Name::new(name)) else {
                unreachable!("the header made its table");
            };
            branch = next;
        }
        if let Err((offset, problem)) = insert(branch, &dotted.names, &origins, entry, &table, &mut self.dotted) {
            self.fault(offset, problem);
        }
    }

    /// The value behind `=`, and where it ends.
    fn value(&mut self, after: usize, depth: usize, inline: bool) -> (Entry, usize) {
        loop {
            let Some(event) = self.events.get(self.next).copied() else { return (self.broken(after), after) };
            match event.kind() {
                EventKind::Whitespace | EventKind::Error => self.next += 1,
                EventKind::Newline | EventKind::Comment if inline => self.next += 1,
                EventKind::Scalar => {
                    self.next += 1;
                    return (Entry::Value(self.scalar(event)), event.span().end());
                }
                EventKind::ArrayOpen => {
                    self.next += 1;
                    return self.array(event, depth);
                }
                EventKind::InlineTableOpen => {
                    self.next += 1;
                    let (branch, end) = self.inline_table(event, depth);
                    return (Entry::Branch(branch), end);
                }
                _ => return (self.broken(after), after),
            }
        }
    }

    fn scalar(&mut self, event: Event) -> Value {
        let start = event.span().start();
        let origin = self.place(start);
        let broken = Value { text: String::new(), form: Form::Broken, origin: origin.clone() };
        let Some(raw) = self.source.get(event) else { return broken };
        let mut text = Cow::Borrowed("");
        let mut errors = Vec::<ParseError>::new();
        let kind = raw.decode_scalar(&mut text, &mut errors);
        if let Some(error) = errors.first() {
            let fault = if event.encoding().is_some() {
                Fault::new(error)
            } else {
                Fault { offset: start, problem: unquoted(raw.as_str()) }
            };
            self.faults.push(fault);
            return broken;
        }
        let (text, form) = match kind {
            ScalarKind::String => (text.into_owned(), Form::String),
            ScalarKind::Boolean(value) => (value.to_string(), Form::Boolean),
            ScalarKind::Float => (text.into_owned(), Form::Float),
            ScalarKind::DateTime => (text.into_owned(), Form::Datetime),
            ScalarKind::Integer(radix) => match i128::from_str_radix(&text, radix.value()) {
                Ok(value) => (value.to_string(), Form::Integer),
                Err(_) => {
                    self.fault(start, Problem::new("the number is too large"));
                    return broken;
                }
            },
        };
        Value { text, form, origin }
    }

    fn array(&mut self, open: Event, depth: usize) -> (Entry, usize) {
        let start = open.span().start();
        let mut end = open.span().end();
        let mut values = Vec::new();
        let mut tables = Vec::new();
        let mut nested = None;
        while let Some(event) = self.events.get(self.next).copied() {
            match event.kind() {
                EventKind::StdTableOpen | EventKind::ArrayTableOpen | EventKind::SimpleKey => break,
                _ => self.next += 1,
            }
            end = event.span().end();
            match event.kind() {
                EventKind::Scalar => values.push(self.scalar(event)),
                EventKind::InlineTableOpen => {
                    let origin = self.place(event.span().start());
                    let (branch, after) = self.inline_table(event, depth + 1);
                    tables.push((origin, branch));
                    end = after;
                }
                EventKind::ArrayOpen => {
                    nested = nested.or(Some(event.span().start()));
                    end = self.array(event, depth).1;
                }
                EventKind::ArrayClose => break,
                _ => {}
            }
        }
        let entry = match (nested, values.is_empty(), tables.is_empty()) {
            (Some(offset), _, _) => {
                self.fault(offset, Problem::new("a list within a list").allowed("a list of plain values"));
                self.broken(start)
            }
            (None, false, false) => {
                self.fault(start, Problem::new("a list of both values and tables").allowed("all values or all tables"));
                self.broken(start)
            }
            (None, _, true) => Entry::List(values),
            (None, true, false) => {
                let items = tables
                    .into_iter()
                    .zip(0..)
                    .map(|((key, branch), index)| (Name::Index(index), Item { key, entry: Entry::Branch(branch) }));
                Entry::Branch(Branch { items: items.collect() })
            }
        };
        (entry, end)
    }

    fn inline_table(&mut self, open: Event, depth: usize) -> (Branch, usize) {
        let mut end = open.span().end();
        let mut branch = Branch::default();
        let mut made = HashSet::new();
        while let Some(event) = self.events.get(self.next).copied() {
            match event.kind() {
                EventKind::StdTableOpen | EventKind::ArrayTableOpen | EventKind::ArrayClose => break,
                _ => self.next += 1,
            }
            end = event.span().end();
            match event.kind() {
                EventKind::SimpleKey => {
                    let start = event.span().start();
                    let dotted = self.dotted(event, true);
                    let depth = depth + dotted.as_ref().map_or(1, |dotted| dotted.names.len());
                    let entry = match self.peek(true) {
                        Some(EventKind::KeyValSep) => {
                            self.next += 1;
                            let (entry, after) = self.value(end, depth, true);
                            end = after;
                            entry
                        }
                        _ => self.broken(start),
                    };
                    let Ok(dotted) = dotted else { continue };
                    if depth > DEEPEST {
                        self.fault(dotted.start, too_deep());
                        continue;
                    }
                    let origins = dotted.names.iter().map(|&(_, offset)| self.place(offset)).collect::<Vec<_>>();
                    if let Err((offset, problem)) = insert(&mut branch, &dotted.names, &origins, entry, "", &mut made) {
                        self.fault(offset, problem);
                    }
                }
                EventKind::InlineTableClose => break,
                _ => {}
            }
        }
        (branch, end)
    }
}

/// The table that the names of a header lead to, made where it is not there, and its dotted key.
fn descend<'b>(
    root: &'b mut Branch,
    names: &[(Name, usize)],
    origins: &[Origin],
    arrays: &HashSet<String>,
    closed: &HashSet<String>,
) -> Result<(&'b mut Branch, String), (usize, Problem)> {
    let mut path = String::new();
    let mut branch = root;
    for ((name, offset), origin) in names.iter().zip(origins) {
        path = join(&path, name);
        let item = branch.items.entry(name.clone()).or_insert_with(|| branch_item(origin));
        match &mut item.entry {
            Entry::Branch(next) if !closed.contains(&path) => branch = next,
            _ => return Err((*offset, duplicate(&item.key))),
        }
        if arrays.contains(&path) {
            let index = branch.items.len() as u32 - 1;
            path = join(&path, index);
            let Some(Item { entry: Entry::Branch(next), .. }) = branch.items.get_mut(&Name::Index(index)) else {
                unreachable!("an array of tables has tables");
            };
            branch = next;
        }
    }
    Ok((branch, path))
}

/// Puts `entry` into `branch` under a dotted key, whose names but the last may only be tables that dotted keys made.
fn insert(
    branch: &mut Branch,
    names: &[(Name, usize)],
    origins: &[Origin],
    entry: Entry,
    path: &str,
    made: &mut HashSet<String>,
) -> Result<(), (usize, Problem)> {
    let Some(((last, offset), above)) = names.split_last() else { return Ok(()) };
    let mut branch = branch;
    let mut path = path.to_owned();
    for ((name, offset), origin) in above.iter().zip(origins) {
        path = join(&path, name);
        if !branch.items.contains_key(name) {
            made.insert(path.clone());
        }
        let item = branch.items.entry(name.clone()).or_insert_with(|| branch_item(origin));
        match &mut item.entry {
            Entry::Branch(next) if made.contains(&path) => branch = next,
            _ => return Err((*offset, duplicate(&item.key))),
        }
    }
    match branch.items.get(last) {
        Some(item) => Err((*offset, duplicate(&item.key))),
        None => {
            branch.items.insert(last.clone(), Item { key: origins[above.len()].clone(), entry });
            Ok(())
        }
    }
}

fn branch_item(origin: &Origin) -> Item {
    Item { key: origin.clone(), entry: Entry::Branch(Branch::default()) }
}

fn duplicate(first: &Origin) -> Problem {
    Problem::new(format!("given twice; first at {first}"))
}

fn names_text(path: &str, names: &[(Name, usize)]) -> String {
    names.iter().fold(path.to_owned(), |path, (name, _)| join(&path, name))
}

/// What to say of a value that is not TOML and not in quotes.
fn unquoted(raw: &str) -> Problem {
    let word = raw.trim();
    if word.is_empty() {
        return Problem::new("the value is missing");
    }
    let meant = match word.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" => Some("true".to_owned()),
        "false" | "no" | "off" => Some("false".to_owned()),
        // More likely a number with something behind it.
        _ if word.contains(' ') && word.starts_with(|c: char| c.is_ascii_digit()) => None,
        _ => Some(toml_string(word)),
    };
    let shown = quoted(word);
    Problem::new(format!("text without quotes: {}", shown.trim_matches('"'))).suggest(meant)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Outcome {
        toml(&Origin::named("test"), text.as_bytes())
    }

    fn dump(text: &str) -> String {
        let outcome = read(text);
        assert!(outcome.errors.is_empty(), "{:?}", outcome.errors);
        outcome.tree.to_string()
    }

    #[test]
    fn every_way_to_write_a_table_gives_the_same_tree() {
        let expected = "a.b.c=1\na.b.d=x\n";
        for text in [
            "a.b.c = 1\na.b.d = 'x'",
            "[a]\nb.c = 1\nb.d = 'x'",
            "[a.b]\nc = 1\nd = 'x'",
            "a = { b = { c = 1, d = 'x' } }",
            "a = { b.c = 1,\n b.d # TOML 1.1\n = \n'x',\n}",
            "[ a . 'b' ]\n\"c\" = 1\nd = \"\"\"\\\n  x\"\"\"",
            "'a.b.c' = 1\n'a.b'.d = 'x'",
        ] {
            assert_eq!(dump(text), expected, "{text}");
        }
    }

    #[test]
    fn arrays_of_tables_are_numbered_and_what_follows_belongs_to_the_last() {
        let text = "[[a]]\nx = 1\n[a.s]\ny = 2\n[[a]]\n[[a.t]]\nz = 3\n[[a.t]]\n";
        assert_eq!(dump(text), "a.0.s.y=2\na.0.x=1\na.1.t.0.z=3\n");
        assert_eq!(dump("a = [{ x = 1 }, { x = 2 }]"), "a.0.x=1\na.1.x=2\n");
    }

    #[test]
    fn integers_of_every_base_become_decimal() {
        assert_eq!(dump("a = 0x1F\nb = 0o17\nc = 0b11\nd = +1_000\ne = -5"), "a=31\nb=15\nc=3\nd=1000\ne=-5\n");
    }

    #[test]
    fn a_place_is_where_the_key_and_where_the_value_begins() {
        let outcome = read("# 日本\n\t[[é]]\r\n".replace('é', "e").as_str());
        let item = outcome.tree.root.get("e").unwrap();
        assert_eq!((item.key.line(), item.key.column()), (2, 4));
        let outcome = read("\u{feff}\"日本語\" = { é = 1, \"y\" =  \"x\" }");
        assert_eq!(outcome.errors.len(), 1, "é needs quotes");
        let Some(Entry::Value(value)) = read("日 = 1\n\"日本\".y =  '語'").tree.get("日本.y").cloned() else {
            panic!("a value");
        };
        assert_eq!((value.origin.line(), value.origin.column()), (2, 11));
    }

    #[test]
    fn places_are_right_on_both_sides_of_every_checkpoint() {
        let text = "é日x\n".repeat(2000) + &"日".repeat(3000);
        let places = Places::new(&text);
        let (mut line, mut column) = (1, 1);
        for (offset, c) in text.char_indices() {
            assert_eq!(places.of(offset), (line, column));
            (line, column) = step(c, line, column);
        }
        assert_eq!(places.of(text.len()), (line, column));
    }

    /// Pieces of TOML, put together at random: both parsers have to agree which of them are documents.
    #[test]
    fn what_toml_allows_is_read_and_nothing_else() {
        const PIECES: &[&str] = &[
            "a",
            "b",
            "c",
            ".",
            "=",
            "[",
            "]",
            "[[",
            "]]",
            "{",
            "}",
            ",",
            "\n",
            " ",
            "1",
            "'x'",
            "\"y\"",
            "a = 1\n",
            "[a]\n",
            "[a.b]\n",
            "[[a]]\n",
            "[[a.b]]\n",
            "a.b = 1\n",
            "a.b.c = 2\n",
            "b = {}\n",
            "a = { b = 1 }\n",
            "b = []\n",
            "a = [{}]\n",
            "true",
            "# x\n",
            "c = { a.b = 1, a.c = 2 }\n",
            "[c]\n",
            "[b.c]\n",
        ];
        // What TOML allows and a configuration has no use for.
        let ours = ["within a list", "both values and tables", "too many names", "a name "];
        let mut state = 0x1234_5678_9ABC_DEF0_u64;
        let (mut accepted, mut refused) = (0, 0);
        for _ in 0..200_000 {
            let mut text = String::new();
            for _ in 0..state % 9 + 1 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                text.push_str(PIECES[(state >> 33) as usize % PIECES.len()]);
            }
            let valid = text.parse::<toml::Table>().is_ok();
            let errors = read(&text).errors;
            if valid {
                accepted += 1;
                let more = errors.iter().find(|error| !ours.iter().any(|what| error.message.contains(what)));
                assert_eq!(more, None, "{text:?}");
            } else {
                refused += 1;
                assert!(!errors.is_empty(), "{text:?} is not TOML");
            }
        }
        assert!(accepted > 5_000 && refused > 5_000, "{accepted} accepted, {refused} refused");
    }
}
