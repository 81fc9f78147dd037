//! `bhyve-rs manual`: the manual pages, made of what the program itself goes by: the commands of clap, the keys of the
//! schema, the models of devices, and the usage of the tools that it stands for.

mod completion;
mod mdoc;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cfg::schema::MACHINE;
use cfg::{Key, Kind, Rule, Section, Shape};
use clap::{Arg, ArgAction, Args, Command};
use devices::MODELS;

pub use self::completion::Completion;
use self::mdoc::{Page, Word};
use crate::compat::Tool;
use crate::compat::translate::extra_devices;
use crate::fleet::usage::COMMANDS;
use crate::tell::say;
use crate::{SUCCESS, config, plan};

/// Write the manual pages into a directory, in its man5 and man8.
#[derive(Args)]
pub struct Manual {
    /// The directory, as /usr/local/share/man.
    dir: PathBuf,
}

/// What goes for every command.
const ENVIRONMENT: [(&str, &str); 4] = [
    ("BHYVE_RS_RUN_DIR", "Directory of the control sockets, as --run-dir."),
    (
        "BHYVE_RS_VMM_DIR",
        "Directory of the nodes that stand for /dev/vmm where the software CPU or KVM runs a machine.",
    ),
    ("NO_COLOR", "If it is set, there are no colours on terminals either."),
    ("XDG_RUNTIME_DIR", "Its bhyve-rs has the control sockets of users that are not root."),
];
const FILES: [(&str, &str); 3] = [
    ("/usr/local/etc/bhyve-rs/*.toml", "The machines that may start with the host; /etc/bhyve-rs on Linux."),
    ("/var/run/bhyve-rs", "Control sockets of root's machines, and their logs."),
    ("/usr/local/libexec/bhyve-rs", "The names of other tools, as links to this program."),
];
const STATUS: [(&str, &str); 5] = [
    ("0", "The guest rebooted; of commands that run no guest: it is done."),
    ("1", "The guest powered off; of commands that look at several things: something is not as it should be."),
    ("2", "The guest halted."),
    ("3", "Triple fault."),
    ("4", "An error, which is on standard error."),
];

impl Manual {
    /// Does it and returns the exit status; `root` is the command line of this program.
    ///
    /// # Errors
    /// When a page cannot be written.
    pub fn run(&self, root: &Command) -> Result<u8> {
        for (name, section, text) in pages(root) {
            let path = self.dir.join(format!("man{section}/{name}.{section}"));
            let put = |path: &Path| -> std::io::Result<()> {
                std::fs::create_dir_all(path.parent().unwrap_or(path))?;
                std::fs::write(path, &text)
            };
            put(&path).with_context(|| path.display().to_string())?;
            say(&path.display().to_string());
        }
        Ok(SUCCESS)
    }
}

/// All pages: name, section and text.
fn pages(root: &Command) -> Vec<(String, u8, String)> {
    let commands: Vec<&Command> = root.get_subcommands().filter(|c| !c.is_hide_set()).collect();
    let name = |command: &Command| format!("bhyve-rs-{}", command.get_name());
    let all: Vec<(String, u8)> = commands
        .iter()
        .map(|command| (name(command), 8))
        .chain([("bhyve-rs".to_owned(), 8), ("bhyve-rs.toml".to_owned(), 5)])
        .collect();
    let but = |own: &str| -> Vec<(String, u8)> { all.iter().filter(|(name, _)| name != own).cloned().collect() };
    let mut pages = vec![
        ("bhyve-rs".to_owned(), 8, overview(root, &commands, &but("bhyve-rs"))),
        ("bhyve-rs.toml".to_owned(), 5, configuration()),
    ];
    for command in commands {
        let tool = Tool::ALL.into_iter().find(|tool| tool.name() == command.get_name());
        let text = match tool {
            Some(tool) => of_tool(tool, &name(command)),
            None => of_command(command, &name(command)),
        };
        pages.push((name(command), 8, text));
    }
    pages
}

/// The first sentence of what a command says of itself.
fn about(command: &Command) -> String {
    let text = command.get_about().map_or(String::new(), ToString::to_string);
    let first = text.split(". ").next().unwrap_or_default().trim_end_matches('.').to_owned();
    first.lines().next().unwrap_or_default().to_owned()
}

fn overview(root: &Command, commands: &[&Command], others: &[(String, u8)]) -> String {
    let mut page = Page::new("bhyve-rs", 8, "the user space of a hypervisor");
    page.section("SYNOPSIS");
    page.synopsis("bhyve-rs", &[word(&[], "command", false, false), word(&[], "argument", true, true)]);
    page.synopsis("bhyve-rs", &root.get_arguments().filter(|arg| !arg.is_hide_set()).map(of_arg).collect::<Vec<_>>());
    page.section("DESCRIPTION");
    page.say(
        "It runs machines for guests, BSD systems and old ones above all, on FreeBSD's vmm(4), on Linux's KVM, or on a \
         processor in software.\n\nWithout a command it runs the machine of a configuration file, see bhyve-rs.toml(5), \
         with its console on the terminal, until the guest ends. Its commands are:",
    );
    page.list();
    for command in commands {
        page.term(command.get_name());
        page.say(&format!("{}.", about(command)));
    }
    page.end_list();
    page.section("OPTIONS");
    options(&mut page, root);
    for (name, rows) in [("ENVIRONMENT", &ENVIRONMENT[..]), ("FILES", &FILES[..]), ("EXIT STATUS", &STATUS[..])] {
        page.section(name);
        page.list();
        for (term, text) in rows {
            page.term(term);
            page.say(text);
        }
        page.end_list();
    }
    page.see_also(others);
    page.finish()
}

fn of_command(command: &Command, name: &str) -> String {
    let mut page = Page::new(name, 8, &lower(&about(command)));
    let below: Vec<&Command> =
        command.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help").collect();
    let words = |command: &Command, before: &[&str]| -> Vec<Word> {
        let names = before.iter().map(|name| Word { flag: (*name).to_owned(), ..word(&[], "", false, false) });
        let names = names.map(|w| Word { value: None, ..w });
        names.chain(arguments(command).map(of_arg)).collect()
    };
    page.section("SYNOPSIS");
    if below.is_empty() {
        page.synopsis("bhyve-rs", &words(command, &[command.get_name()]));
    }
    for sub in &below {
        page.synopsis("bhyve-rs", &words(sub, &[command.get_name(), sub.get_name()]));
    }
    page.section("DESCRIPTION");
    page.say(&description(command));
    options(&mut page, command);
    for sub in &below {
        page.subsection(&format!("{} {}", command.get_name(), sub.get_name()));
        page.say(&description(sub));
        options(&mut page, sub);
    }
    page.see_also(&[("bhyve-rs".to_owned(), 8), ("bhyve-rs.toml".to_owned(), 5)]);
    page.finish()
}

/// A tool that the program stands for.
fn of_tool(tool: Tool, name: &str) -> String {
    let mut page = Page::new(name, 8, &format!("the program as {}", tool.name()));
    let rest = word(&[], "argument", true, true);
    page.section("SYNOPSIS");
    page.synopsis("bhyve-rs", &[Word { flag: tool.name().to_owned(), ..word(&[], "", false, false) }, rest.clone()]);
    page.synopsis(tool.name(), &[rest]);
    page.section("DESCRIPTION");
    page.say(&format!(
        "Called as {0}, by a link of that name (see bhyve-rs-links(8)) or with {0} as its command, the program takes the \
         command line of {0} and does as that does.",
        tool.name()
    ));
    page.literal(&tool.usage());
    if tool == Tool::Bhyve {
        page.subsection("Devices of -s, beside those of bhyve(8) itself");
        page.list();
        for device in extra_devices() {
            page.term(device.name);
            let summary = MODELS.iter().find(|model| model.name == device.name).map(|model| model.summary);
            page.say(&sentence(summary.unwrap_or(device.name)));
        }
        page.end_list();
    }
    if tool == Tool::GrubBhyve {
        page.subsection("Kernels inside of images");
        page.say(
            "With -r host the commands of DIRECTORY/FILE are done: root=, set, search, configfile, linux, initrd, multiboot, \
             module, kopenbsd, knetbsd, kfreebsd. Their files are the host's, or those of an image of the device map, as \
             (hd0,openbsd1)/bsd: in a partition msdosN, gptN, openbsdN, netbsdN or bsdN, or the one of that number alone, with \
             FFS, ext2 to ext4, FAT or ISO 9660. bhyve(8) reads them when it starts the machine.",
        );
        page.say(
            "With -r hdN or cdN the built-in BIOS starts what boots there. Where nothing does, grub.cfg in the image is read \
             as above.",
        );
    }
    if tool == Tool::Vm {
        page.section("COMMANDS");
        for (name, uses, what) in COMMANDS.iter().filter(|(name, ..)| !name.starts_with('_')) {
            page.subsection(name);
            page.say(&sentence(what));
            let uses: Vec<String> = uses.iter().map(|rest| format!("vm {name} {rest}")).collect();
            page.literal(&uses.join("\n"));
        }
    }
    page.see_also(&[("bhyve-rs".to_owned(), 8), ("bhyve-rs-links".to_owned(), 8)]);
    page.finish()
}

fn lower(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| first.to_lowercase().chain(chars).collect())
}

fn description(command: &Command) -> String {
    let text = command.get_long_about().or_else(|| command.get_about()).map_or(String::new(), ToString::to_string);
    if text.ends_with('.') { text } else { format!("{text}.") }
}

fn arguments(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| !arg.is_hide_set() && !matches!(arg.get_id().as_str(), "help" | "version"))
}

fn word(spellings: &[String], value: &str, optional: bool, many: bool) -> Word {
    let value = Some(value.to_owned()).filter(|value| !value.is_empty());
    Word { flag: spellings.first().cloned().unwrap_or_default(), value, optional, many }
}

/// An option's ways to be written, short before long; none of an argument.
fn spellings(arg: &Arg) -> Vec<String> {
    let short = arg.get_short().map(|c| format!("-{c}"));
    let long = arg.get_long().map(|name| format!("--{name}"));
    short.into_iter().chain(long).collect()
}

fn value(arg: &Arg) -> String {
    let takes = arg.is_positional() || arg.get_action().takes_values();
    let named = arg.get_value_names().map(|names| names.join(" "));
    if takes { named.unwrap_or_else(|| arg.get_id().to_string()) } else { String::new() }
}

fn is_many(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Append) || arg.get_num_args().is_some_and(|n| n.max_values() > 1)
}

fn of_arg(arg: &Arg) -> Word {
    word(&spellings(arg), &value(arg), !arg.is_required_set(), is_many(arg))
}

fn options(page: &mut Page, command: &Command) {
    if arguments(command).next().is_none() {
        return;
    }
    page.list();
    for arg in arguments(command) {
        let term = |spelling: String| word(&[spelling], &value(arg), false, false);
        let terms: Vec<Word> = spellings(arg).into_iter().map(term).collect();
        page.option(if terms.is_empty() { vec![term(String::new())] } else { terms }.as_slice());
        let help = arg.get_long_help().or_else(|| arg.get_help()).map_or(String::new(), ToString::to_string);
        match help.strip_suffix(']').and_then(|help| help.rsplit_once(" [default: ")) {
            Some((help, default)) => page.say(&format!("{} By default {default}.", sentence(help))),
            None => page.say(&sentence(&help)),
        }
        let words: Vec<String> = arg.get_possible_values().iter().map(|v| v.get_name().to_owned()).collect();
        if !words.is_empty() && arg.get_action().takes_values() {
            page.say(&format!("One of {}.", words.join(", ")));
        }
        let default: Vec<_> = arg.get_default_values().iter().map(|v| v.to_string_lossy()).collect();
        if !default.is_empty() && arg.get_action().takes_values() {
            page.say(&format!("By default {}.", default.join(" ")));
        }
    }
    page.end_list();
}

/// bhyve-rs.toml(5).
fn configuration() -> String {
    let mut page = Page::new("bhyve-rs.toml", 5, "configuration of a machine");
    page.section("DESCRIPTION");
    page.say(
        "A file describes one machine, in TOML. On a command line the keys are written with dots: -o memory=1G, \
         -o disk.0.path=disk.img. Relative paths begin at the directory of the file that they are written in. \
         %(key) in a value stands for the value of another key, and %% for a percent sign. A key in [disk.*] goes for \
         all disks. bhyve-rs check tells everything that is wrong with a file.",
    );
    page.section("EXAMPLES");
    page.literal(
        "name = \"first\"\nmemory = \"512M\"\nscreen = \"terminal\"\n\n[boot]\norder = [\"cd\", \"disk\"]\n\n\
         [[disk]]\npath = \"disk.img\"\n\n[[cd]]\npath = \"install.iso\"",
    );
    page.section("KEYS");
    page.say("These are at the top, before any section.");
    keys(&mut page, MACHINE.keys, MACHINE.rules);
    for section in MACHINE.sections {
        of_section(&mut page, section);
    }
    page.section("MODELS");
    page.say("What the key model of a section may be, and the keys that the section then has as well.");
    for (section, title) in [
        ("disk", "[[disk]]"),
        ("cd", "[[cd]]"),
        ("floppy", "[[floppy]]"),
        ("nic", "[[nic]]"),
        ("screen", "[screen]"),
        ("share", "[[share]]"),
        ("device", "[[device]]"),
    ] {
        page.subsection(title);
        page.list();
        for word in plan::words(section) {
            page.term(word);
            let summary = MODELS.iter().find(|model| model.name == word).map(|model| model.summary);
            page.say(&sentence(summary.unwrap_or(match word {
                "none" => "nothing",
                "ide" => "the board's own controller",
                _ => "a diskette drive",
            })));
            let own = plan::keys(word);
            if !own.is_empty() {
                keys(&mut page, own, &[]);
            }
        }
        page.end_list();
    }
    page.see_also(&[("bhyve-rs".to_owned(), 8), ("bhyve-rs-check".to_owned(), 8)]);
    page.finish()
}

fn of_section(page: &mut Page, section: &Section) {
    let title = match section.shape {
        Shape::Array { .. } => format!("[[{}]]", section.name),
        _ => format!("[{}]", section.name),
    };
    page.subsection(&title);
    page.say(&sentence(section.help));
    match section.shape {
        Shape::Array { max } => page.say(&format!("There may be up to {max}.")),
        Shape::Free => page.say("Any names, each of them a text."),
        Shape::Tree => page.say("Any names, with sections of their own."),
        Shape::Table => {}
    }
    if !section.keys.is_empty() {
        keys(page, section.keys, section.rules);
    }
    for below in section.sections {
        of_section(page, below);
    }
}

fn keys(page: &mut Page, keys: &[Key], rules: &[Rule]) {
    page.list();
    for key in keys {
        page.term(key.name);
        page.say(&sentence(key.help));
        page.say(&allowed(key.kind));
        let required = rules.iter().any(|rule| matches!(rule, Rule::Required(name) if *name == key.name));
        match key.default {
            Some(default) => page.say(&format!("By default {default}.")),
            None if required => page.say("It has to be given."),
            None => {}
        }
        for rule in rules {
            page.say(&match rule {
                Rule::Exclusive(names) if names.contains(&key.name) => {
                    format!("Of {} only one is given.", names.join(" and "))
                }
                Rule::Needs(name, needs) if *name == key.name => format!("It goes with {needs}."),
                Rule::OnlyWhen { key: name, when, is } if *name == key.name => {
                    format!("It goes with {when} = {}.", is.join(", "))
                }
                _ => continue,
            });
        }
    }
    page.end_list();
}

/// What a key may be, as a sentence.
fn allowed(kind: Kind) -> String {
    let text = config::allowed(kind);
    match kind {
        Kind::Bool => "It is true or false.".to_owned(),
        Kind::Choice(_) => format!("One of {text}."),
        Kind::Named(_) if text.starts_with("none (") => "This version has none.".to_owned(),
        Kind::Named(_) => format!("One of {text}."),
        Kind::List(_) => format!("{}.", sentence(&text).trim_end_matches('.')),
        _ => format!("It is {text}."),
    }
}

/// A line of help as a sentence.
fn sentence(help: &str) -> String {
    let mut chars = help.chars();
    let text: String = chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect());
    if text.ends_with('.') { text } else { format!("{text}.") }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_command_and_every_key_has_its_place() {
        let root = crate::Cli::command();
        let pages = pages(&root);
        let names: Vec<&str> = pages.iter().map(|(name, ..)| name.as_str()).collect();
        for name in ["bhyve-rs", "bhyve-rs.toml", "bhyve-rs-image", "bhyve-rs-stop", "bhyve-rs-bhyve", "bhyve-rs-vm"] {
            assert!(names.contains(&name), "{name} is not among {names:?}");
        }
        assert!(!names.contains(&"bhyve-rs-broker"), "hidden commands have none");
        let text = &pages[1].2;
        MACHINE.walk(&mut |path, _, key| {
            let begins = format!("\n.It Ic {}\n", key.name);
            let short = format!("\n.It Ic \\&{}\n", key.name);
            assert!(text.contains(&begins) || text.contains(&short), "{path}");
        });
    }
}
