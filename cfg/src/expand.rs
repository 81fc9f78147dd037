//! `%(name)` in a value stands for the value of the key `name`, `%%` for a percent sign; any other `%` is itself.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use crate::error::{Problem, nearest, quoted};
use crate::key::Section;
use crate::tree::{Entry, Tree};

/// References within references, as in bhyve.
const DEEPEST: usize = 15;
/// References followed and bytes made for one value: a few lines of config must not be able to ask for gigabytes.
const MOST_REFERENCES: usize = 1000;
const LONGEST: usize = 64 << 10;

/// Expands the values of one tree. A key that is not set has its declared default.
pub(crate) struct Expander<'a> {
    pub(crate) tree: &'a Tree,
    pub(crate) root: &'static Section,
    /// Where keys are noted that are not there, if that is no fault.
    pub(crate) missing: Option<&'a RefCell<BTreeSet<String>>>,
}

impl Expander<'_> {
    /// The text that `text`, the value of `key`, stands for, and whether it refers to another key.
    pub(crate) fn expand(&self, key: &str, text: &str) -> Result<(String, bool), Problem> {
        let budget = Cell::new(MOST_REFERENCES);
        let mut out = String::new();
        self.append(text, &mut vec![key.to_owned()], &budget, &mut out)?;
        Ok((out, budget.get() != MOST_REFERENCES))
    }

    fn append(
        &self,
        text: &str,
        stack: &mut Vec<String>,
        budget: &Cell<usize>,
        out: &mut String,
    ) -> Result<(), Problem> {
        let mut rest = text;
        while let Some(percent) = rest.find('%') {
            out.push_str(&rest[..percent]);
            rest = &rest[percent + 1..];
            if let Some(after) = rest.strip_prefix('%') {
                out.push('%');
                rest = after;
            } else if let Some(after) = rest.strip_prefix('(') {
                let Some((name, after)) = after.split_once(')') else {
                    return Err(Problem::new("\"%(\" without a \")\"").allowed("%(name), or %% for a percent sign"));
                };
                self.append_key(name, stack, budget, out)?;
                rest = after;
            } else {
                out.push('%');
            }
            check_length(out)?;
        }
        out.push_str(rest);
        check_length(out)
    }

    fn append_key(
        &self,
        name: &str,
        stack: &mut Vec<String>,
        budget: &Cell<usize>,
        out: &mut String,
    ) -> Result<(), Problem> {
        if stack.iter().any(|above| above == name) {
            return Err(Problem::new(format!("refers to itself: {} -> {name}", stack.join(" -> "))));
        }
        if stack.len() > DEEPEST {
            let message = format!("references are nested too deeply: {} -> {name}", stack.join(" -> "));
            return Err(Problem::new(message).allowed(format!("{DEEPEST} levels")));
        }
        budget.set(
            budget.get().checked_sub(1).ok_or_else(|| {
                Problem::new("refers to too many keys").allowed(format!("{MOST_REFERENCES} references"))
            })?,
        );
        let text = self.text(name)?;
        stack.push(name.to_owned());
        self.append(&text, stack, budget, out)?;
        stack.pop();
        Ok(())
    }

    fn text(&self, name: &str) -> Result<String, Problem> {
        let shown = quoted(&format!("%({name})"));
        match self.tree.get(name) {
            Some(Entry::Value(value)) => Ok(value.text.clone()),
            Some(Entry::List(_)) => Err(Problem::new(format!("{shown} is a list")).allowed("keys with a single value")),
            Some(Entry::Branch(_)) => {
                Err(Problem::new(format!("{shown} is a section")).allowed("keys with a single value"))
            }
            None => {
                let mut default = None;
                self.root.walk(&mut |path, _, key| {
                    if path == name {
                        default = key.default;
                    }
                });
                if let (None, Some(missing)) = (default, self.missing) {
                    missing.borrow_mut().insert(name.to_owned());
                    return Ok(String::new());
                }
                default.map(str::to_owned).ok_or_else(|| {
                    let keys = self.tree.keys();
                    let near = nearest(name, keys.iter().map(String::as_str));
                    Problem::new(format!("{shown} refers to a key that is not set"))
                        .suggest(near.map(|name| quoted(&format!("%({name})"))))
                })
            }
        }
    }
}

fn check_length(text: &str) -> Result<(), Problem> {
    if text.len() > LONGEST {
        return Err(Problem::new("too long when expanded").allowed(format!("{LONGEST} bytes")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{Key, Kind};
    use crate::tree::Origin;

    static ROOT: Section = Section {
        keys: &[Key { name: "cpus", kind: Kind::Int { min: 1, max: 8 }, default: Some("1"), help: "" }],
        ..Section::EMPTY
    };

    fn expand(lines: &[(&str, &str)], text: &str) -> Result<(String, bool), String> {
        let origin = Origin::named("test");
        let mut tree = Tree::new(origin.clone());
        for (key, text) in lines {
            tree.set(key, *text, &origin).unwrap();
        }
        Expander { tree: &tree, root: &ROOT, missing: None }.expand("self", text).map_err(|problem| problem.message)
    }

    #[test]
    fn references_are_followed_through_other_values() {
        let lines = [("vars.dir", "/vm/%(name)"), ("name", "fw1")];
        assert_eq!(expand(&lines, "%(vars.dir)/a.img"), Ok(("/vm/fw1/a.img".to_owned(), true)));
        assert_eq!(expand(&lines, "no reference"), Ok(("no reference".to_owned(), false)));
    }

    #[test]
    fn a_key_that_is_not_set_has_its_default() {
        assert_eq!(expand(&[], "%(cpus)"), Ok(("1".to_owned(), true)));
        assert_eq!(expand(&[("cpus", "4")], "%(cpus)"), Ok(("4".to_owned(), true)));
    }

    #[test]
    fn percent_signs_are_literal_unless_a_name_follows() {
        assert_eq!(expand(&[], "100%, %%(name), 5%d%"), Ok(("100%, %(name), 5%d%".to_owned(), false)));
    }

    #[test]
    fn cycles_and_unknown_names_are_errors() {
        let lines = [("a", "%(b)"), ("b", "%(a)")];
        assert_eq!(expand(&lines, "%(a)"), Err("refers to itself: self -> a -> b -> a".to_owned()));
        assert_eq!(expand(&[], "%(self)"), Err("refers to itself: self -> self".to_owned()));
        assert!(expand(&[], "%(nothing)").unwrap_err().contains("not set"));
        assert!(expand(&[("a.b", "1")], "%(a)").unwrap_err().contains("section"));
        assert!(expand(&[], "%(name").unwrap_err().contains("without"));
    }

    #[test]
    fn fifteen_levels_are_the_most() {
        let names: Vec<(String, String)> = (1..=16).map(|i| (format!("v{i}"), format!("%(v{})", i + 1))).collect();
        let mut lines: Vec<(&str, &str)> = names.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        lines[15].1 = "end";
        assert_eq!(expand(&lines, "%(v2)"), Ok(("end".to_owned(), true)));
        assert!(expand(&lines, "%(v1)").unwrap_err().contains("nested too deeply"));
    }

    #[test]
    fn doubling_values_end_in_an_error_and_not_in_gigabytes() {
        let names: Vec<(String, String)> =
            (0..14).map(|i| (format!("v{i}"), format!("%(v{})", i + 1).repeat(9))).collect();
        let mut lines: Vec<(&str, &str)> = names.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let long = "x".repeat(1000);
        for (end, complaint) in [("", "too many"), (long.as_str(), "too long")] {
            lines.push(("v14", end));
            assert!(expand(&lines, "%(v0)").unwrap_err().contains(complaint));
            lines.pop();
        }
    }
}
