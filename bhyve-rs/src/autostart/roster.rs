//! The guests' directory: which machines there are, and in which order they start.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::config;

/// A machine of the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// Its name.
    pub name: String,
    /// Its file.
    pub file: PathBuf,
    /// It starts with the host.
    pub enabled: bool,
    /// Lower ones start first.
    pub order: i64,
    /// What must run before.
    pub after: Vec<String>,
    /// To wait before the start.
    pub delay: Duration,
    /// When it starts again.
    pub restart: String,
    /// Whose process it is, if not that of who starts it.
    pub user: Option<String>,
}

/// Why a machine does not start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Its name; that of its file without the ending if the file does not say.
    pub guest: String,
    /// One line, or one for each error of its file.
    pub why: String,
}

/// All machines of a directory.
#[derive(Debug, Default)]
pub struct Roster {
    /// Those whose files are right, by name.
    pub guests: BTreeMap<String, Guest>,
    /// What is wrong with the others.
    pub faults: Vec<Fault>,
}

impl Roster {
    /// Reads and checks all `*.toml` of a directory.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn read(dir: &Path) -> Result<Roster> {
        let what = || format!("the guests' directory {}", dir.display());
        // Paths in the files are relative to them, and the machines start elsewhere.
        let dir = std::path::absolute(dir).with_context(what)?;
        let entries = std::fs::read_dir(&dir).with_context(what)?;
        let mut files = entries.map(|e| e.map(|e| e.path())).collect::<std::io::Result<Vec<_>>>().with_context(what)?;
        files.retain(|file| file.extension().is_some_and(|ending| ending == "toml"));
        files.sort();
        let mut roster = Roster::default();
        files.iter().for_each(|file| roster.add_file(file));
        Ok(roster)
    }

    /// Adds the machine of a file, wherever that is.
    pub fn add_file(&mut self, file: &Path) {
        match guest(file) {
            Ok(guest) => self.add(guest),
            Err(fault) => self.faults.push(fault),
        }
    }

    fn add(&mut self, guest: Guest) {
        if let Some(other) = self.guests.get(&guest.name) {
            let why = format!(
                "{} has the name {:?}, which {} has, too",
                guest.file.display(),
                guest.name,
                other.file.display()
            );
            self.faults.push(Fault { guest: stem(&guest.file), why });
        } else {
            self.guests.insert(guest.name.clone(), guest);
        }
    }

    /// The order in which those machines start that are wanted, and those of them that cannot, with the reason. What a
    /// machine comes after and is not wanted itself has to run already; that is seen when it is its turn.
    pub fn plan(&self, wanted: &BTreeSet<String>) -> (Vec<&Guest>, Vec<Fault>) {
        let mut faults: Vec<Fault> = Vec::new();
        let mut waiting: Vec<&Guest> = self.guests.values().filter(|guest| wanted.contains(&guest.name)).collect();
        waiting.sort_by_key(|guest| (guest.order, &guest.name));
        waiting.retain(|guest| match guest.after.iter().find(|name| !self.guests.contains_key(*name)) {
            None => true,
            Some(unknown) => {
                let broken = self.faults.iter().any(|fault| fault.guest == *unknown);
                let what = if broken { "whose file has errors" } else { "and there is no such machine" };
                let why = format!("autostart.after names {unknown:?}, {what}");
                faults.push(Fault { guest: guest.name.clone(), why });
                false
            }
        });
        let mut sorted: Vec<&Guest> = Vec::new();
        loop {
            let comes_later = |name: &String| waiting.iter().any(|guest| guest.name == *name);
            let Some(next) = waiting.iter().position(|guest| !guest.after.iter().any(comes_later)) else { break };
            sorted.push(waiting.remove(next));
        }
        // What is left is a circle, or waits for one.
        for guest in &waiting {
            let why = match circle(&waiting, guest) {
                Some(names) => format!("autostart.after goes in a circle: {}", names.join(" after ")),
                None => {
                    let stuck = guest.after.iter().find(|name| waiting.iter().any(|other| other.name == **name));
                    format!("autostart.after names {:?}, which is not started", stuck.map_or("", String::as_str))
                }
            };
            faults.push(Fault { guest: guest.name.clone(), why });
        }
        (sorted, faults)
    }
}

/// The way from a machine back to itself, if there is one.
fn circle(waiting: &[&Guest], from: &Guest) -> Option<Vec<String>> {
    let mut seen = BTreeSet::new();
    let mut paths = vec![vec![from.name.clone()]];
    while let Some(path) = paths.pop() {
        let last = waiting.iter().find(|guest| Some(&guest.name) == path.last())?;
        for next in last.after.iter().filter(|name| waiting.iter().any(|guest| guest.name == **name)) {
            let longer: Vec<String> = path.iter().chain([next]).cloned().collect();
            if *next == from.name {
                return Some(longer);
            }
            if seen.insert(next.clone()) {
                paths.push(longer);
            }
        }
    }
    None
}

fn stem(file: &Path) -> String {
    file.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn guest(file: &Path) -> Result<Guest, Fault> {
    let node = config::read(file, &[]).map_err(|errors| Fault { guest: stem(file), why: errors.to_string() })?;
    let autostart = node.child("autostart");
    Ok(Guest {
        name: node.text("name").to_owned(),
        file: file.to_owned(),
        enabled: autostart.bool("enabled"),
        order: autostart.int("order"),
        after: autostart.words("after").into_iter().map(str::to_owned).collect(),
        delay: autostart.duration("delay"),
        restart: autostart.text("restart").to_owned(),
        user: autostart.maybe::<&str>("user").map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roster(guests: &[(&str, i64, &[&str])]) -> Roster {
        let guest = |(name, order, after): &(&str, i64, &[&str])| Guest {
            name: (*name).to_owned(),
            file: PathBuf::from(format!("/g/{name}.toml")),
            enabled: true,
            order: *order,
            after: after.iter().map(|name| (*name).to_owned()).collect(),
            delay: Duration::ZERO,
            restart: "reboot".to_owned(),
            user: None,
        };
        let mut roster = Roster::default();
        guests.iter().for_each(|row| roster.add(guest(row)));
        roster
    }

    fn plan(roster: &Roster) -> (Vec<&str>, Vec<String>) {
        let wanted = roster.guests.keys().cloned().collect();
        let (sorted, faults) = roster.plan(&wanted);
        let faults = faults.into_iter().map(|fault| format!("{}: {}", fault.guest, fault.why)).collect();
        (sorted.into_iter().map(|guest| guest.name.as_str()).collect(), faults)
    }

    #[test]
    fn machines_start_by_order_and_name_but_never_before_what_they_come_after() {
        let roster = roster(&[("a", 100, &["z"]), ("b", 100, &[]), ("c", 5, &["a"]), ("z", 200, &[]), ("y", 1, &[])]);
        assert_eq!(plan(&roster), (vec!["y", "b", "z", "a", "c"], vec![]));
    }

    #[test]
    fn a_circle_is_reported_for_each_in_it_and_the_others_start() {
        let roster = roster(&[("a", 1, &["b"]), ("b", 1, &["c"]), ("c", 1, &["a"]), ("d", 1, &["a"]), ("e", 9, &[])]);
        let (sorted, faults) = plan(&roster);
        assert_eq!(sorted, ["e"]);
        assert_eq!(faults[0], "a: autostart.after goes in a circle: a after b after c after a");
        assert_eq!(faults[3], "d: autostart.after names \"a\", which is not started");
        let alone = self::roster(&[("x", 1, &["x"])]);
        assert_eq!(plan(&alone).1, ["x: autostart.after goes in a circle: x after x"]);
    }

    #[test]
    fn what_comes_after_an_unknown_or_broken_machine_is_reported_and_the_others_start() {
        let mut roster = roster(&[("a", 1, &["nobody"]), ("b", 1, &["broken"]), ("c", 1, &[])]);
        roster.faults.push(Fault { guest: "broken".to_owned(), why: String::new() });
        let (sorted, faults) = plan(&roster);
        assert_eq!(sorted, ["c"]);
        assert_eq!(
            faults,
            [
                "a: autostart.after names \"nobody\", and there is no such machine",
                "b: autostart.after names \"broken\", whose file has errors"
            ]
        );
    }

    #[test]
    fn what_is_not_wanted_is_not_planned() {
        let roster = roster(&[("a", 1, &["b"]), ("b", 1, &[])]);
        let (sorted, faults) = roster.plan(&BTreeSet::from(["a".to_owned()]));
        assert_eq!((sorted.len(), faults.len()), (1, 0));
    }

    #[test]
    fn two_files_with_one_name_are_a_fault_of_the_second() {
        let mut roster = roster(&[("a", 1, &[])]);
        let second = Guest { file: PathBuf::from("/g/b.toml"), ..roster.guests["a"].clone() };
        roster.add(second);
        assert_eq!(roster.faults[0].guest, "b");
        assert_eq!(roster.faults[0].why, "/g/b.toml has the name \"a\", which /g/a.toml has, too");
    }
}
