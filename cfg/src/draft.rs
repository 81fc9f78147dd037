//! A configuration in the making: files, what they include, what is laid under and set over them.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::check;
use crate::error::{Error, Errors, Problem, os_text, quoted, quoted_path};
use crate::key::{Schema, Section};
use crate::node::Node;
use crate::read::{self, Outcome};
use crate::tree::{Entry, Form, Origin, Tree, Value};

/// Largest file, in bytes. A configuration is a few kilobytes; what is larger is something else, a disk say.
const LARGEST: u64 = 1 << 20;
/// Files that include one another, and files in all.
const DEEPEST: usize = 16;
const MOST_FILES: usize = 64;

const INCLUDE: &str = "include";

/// A tree with what was wrong on the way to it. Nothing is reported before [`Draft::check`], so that everything is
/// reported at once.
#[derive(Clone, Debug)]
pub struct Draft {
    tree: Tree,
    errors: Vec<Error>,
    partial: bool,
}

impl Draft {
    /// An empty configuration, to be filled by [`Draft::set`].
    pub fn new(origin: Origin) -> Draft {
        Draft { tree: Tree::new(origin), errors: Vec::new(), partial: false }
    }

    /// Reads the TOML file at `path` and the files that it includes.
    ///
    /// `include = "base.toml"`, or a list, at the top of a file lays other files under it, a later one of the list over
    /// an earlier; their paths are relative to the file that names them, and not expanded.
    pub fn read(path: &Path) -> Draft {
        let mut loader = Loader { errors: Vec::new(), partial: false, above: Vec::new(), files: 0 };
        let origin = Origin::of_file(path);
        let tree = loader.load(path, &origin, "", &origin);
        Draft { tree: tree.unwrap_or(Tree::new(origin)), errors: loader.errors, partial: loader.partial }
    }

    /// Reads TOML that is not in a file, such as a built-in profile; `name` is what errors call it.
    pub fn parse(name: &str, text: &str) -> Draft {
        let Outcome { tree, errors, partial } = read::toml(&Origin::named(name), text.as_bytes());
        Draft { tree, errors, partial }
    }

    /// The tree so far.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Lays `base` under this: it gives what is not said here.
    pub fn merge_under(&mut self, base: Draft) {
        self.tree.merge_under(base.tree);
        self.errors.extend(base.errors);
        self.partial |= base.partial;
    }

    /// Puts texts that stand for sections ([`Section::short`]) where they belong. To be done before something is laid
    /// under this.
    pub fn spell_out(&mut self, root: &Section) {
        self.tree.root.spell_out(root);
    }

    /// Sets `key=value` over everything so far, as `-o` does. `origin` is what errors call it.
    pub fn set(&mut self, assignment: &str, origin: &Origin) {
        let allowed = "KEY=VALUE";
        let result = match assignment.split_once('=') {
            None => Err(Problem::new(format!("{} has no \"=\"", quoted(assignment))).allowed(allowed)),
            Some((key, "")) => Err(Problem::new(format!("no value for {}", quoted(key))).allowed(allowed)),
            Some((INCLUDE, _)) => Err(Problem::new("only a file can include another")),
            Some((key, value)) => self.tree.set(key, value, origin),
        };
        if let Err(problem) = result {
            self.errors.push(Error::new(origin, "", problem));
        }
    }

    /// Checks everything against the declared keys.
    ///
    /// # Errors
    /// All that is wrong: while reading, in the values, and between them.
    pub fn check(&self, schema: Schema<'_>) -> Result<Node, Errors> {
        let (node, mut errors) = check::check(&self.tree, schema, self.partial);
        errors.extend_from_slice(&self.errors);
        if errors.is_empty() { Ok(node) } else { Err(Errors::sorted(errors)) }
    }
}

struct Loader {
    errors: Vec<Error>,
    partial: bool,
    /// The files that include the one being read, outermost first.
    above: Vec<PathBuf>,
    files: usize,
}

impl Loader {
    /// Reads one file. That it cannot be read is reported at `from`, as being about `key`.
    fn load(&mut self, path: &Path, from: &Origin, key: &str, origin: &Origin) -> Option<Tree> {
        match self.open(path) {
            Ok((bytes, canonical)) => {
                self.above.push(canonical);
                let tree = self.parse(origin, &bytes);
                self.above.pop();
                Some(tree)
            }
            Err(problem) => {
                self.partial = true;
                self.errors.push(Error::new(from, key, problem));
                None
            }
        }
    }

    fn open(&mut self, path: &Path) -> Result<(Vec<u8>, PathBuf), Problem> {
        let shown = quoted_path(path);
        let failed = |error: io::Error| Problem::new(format!("cannot read {shown}: {}", os_text(&error)));
        // A pipe has no canonical path, and a file that does not exist fails below.
        let canonical = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        if self.above.contains(&canonical) {
            return Err(Problem::new(format!("{shown} includes itself")));
        }
        if self.above.len() >= DEEPEST {
            let message = format!("{shown} is included too deeply");
            return Err(Problem::new(message).allowed(format!("{DEEPEST} files within each other")));
        }
        self.files += 1;
        if self.files > MOST_FILES {
            return Err(Problem::new("too many files are included").allowed(format!("{MOST_FILES} files")));
        }
        if path.is_dir() {
            return Err(Problem::new(format!("{shown} is a directory")).allowed("a TOML file"));
        }
        let mut bytes = Vec::new();
        File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes)).map_err(failed)?;
        if bytes.len() as u64 > LARGEST {
            return Err(Problem::new(format!("{shown} is too large")).allowed("a TOML file of at most 1 MiB"));
        }
        Ok((bytes, canonical))
    }

    fn parse(&mut self, origin: &Origin, bytes: &[u8]) -> Tree {
        let Outcome { mut tree, errors, partial } = read::toml(origin, bytes);
        self.errors.extend(errors);
        self.partial |= partial;
        let Some(item) = tree.take(INCLUDE) else { return tree };
        let includes = match item.entry {
            Entry::Value(value) => vec![value],
            Entry::List(values) => values,
            Entry::Branch(_) => {
                let problem = Problem::new("expected a path, found a section").allowed("a path, or a list of paths");
                self.errors.push(Error::new(&item.key, INCLUDE, problem));
                Vec::new()
            }
        };
        for include in includes.iter().rev() {
            if let Some(base) = self.include(include) {
                tree.merge_under(base);
            }
        }
        tree
    }

    fn include(&mut self, value: &Value) -> Option<Tree> {
        let problem = match value.form {
            Form::String if value.text.is_empty() => Problem::new("the path is empty"),
            Form::String if value.text.contains('\0') => Problem::new("control character U+0000 in the text"),
            Form::String => {
                let path = value.origin.resolve(&value.text);
                return self.load(&path, &value.origin, INCLUDE, &Origin::of_file(&path));
            }
            Form::Broken => return None,
            form => Problem::new(format!("expected a path, found {}", crate::value::describe(&value.text, form))),
        };
        self.errors.push(Error::new(&value.origin, INCLUDE, problem.allowed("a path, or a list of paths")));
        None
    }
}
