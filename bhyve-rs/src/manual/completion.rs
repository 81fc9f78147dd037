//! `bhyve-rs completion`: what shells are told so that they complete commands, options and the names of machines.

use std::path::Path;

use anyhow::{Result, bail};
use clap::{Arg, Args, Command, ValueEnum};
use clap_complete::Shell;

use crate::SUCCESS;
use crate::fleet::usage::COMMANDS;

/// Print what a shell reads to complete command lines of this program, or of the program as vm.
///
/// bash: source <(bhyve-rs completion bash). zsh: put it into a file _bhyve-rs of $fpath. fish: put it into
/// ~/.config/fish/completions/bhyve-rs.fish. sh: for ksh and OpenBSD's sh, . it in the file of $ENV.
#[derive(Args)]
pub struct Completion {
    /// The shell.
    shell: Option<Kind>,
    /// Whose command line.
    #[arg(default_value = "bhyve-rs")]
    program: Program,
    /// Print the names of the machines that run, for these.
    #[arg(long, hide = true)]
    names: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Sh,
    Bash,
    Zsh,
    Fish,
}

#[derive(Clone, Copy, ValueEnum)]
enum Program {
    BhyveRs,
    Vm,
}

/// A program as shells see it.
struct Shown {
    name: &'static str,
    /// Without a dash: in the labels of the script for bash and in names of arrays.
    word: &'static str,
    command: Command,
    /// Prints the names of machines.
    names: &'static str,
}

impl Shown {
    fn of(program: Program, root: &Command) -> Shown {
        match program {
            Program::BhyveRs => Shown {
                name: "bhyve-rs",
                word: "bhyve_rs",
                command: shown(root),
                names: "bhyve-rs completion --names 2>/dev/null",
            },
            Program::Vm => {
                Shown { name: "vm", word: "vm", command: vm(), names: "vm list 2>/dev/null | sed -e 1d -e 's/ .*//'" }
            }
        }
    }
}

impl Completion {
    /// Does it and returns the exit status.
    ///
    /// # Errors
    /// When there is nothing for the shell.
    pub fn run(&self, root: &Command, run: &Path) -> Result<u8> {
        if self.names {
            names(run).iter().for_each(|name| println!("{name}"));
            return Ok(SUCCESS);
        }
        let shown = Shown::of(self.program, root);
        let text = match self.shell {
            Some(Kind::Sh) => sh(&shown),
            Some(Kind::Bash) => bash(&shown),
            Some(Kind::Zsh) => zsh(&shown),
            Some(Kind::Fish) => fish(&shown),
            None => bail!("which shell: sh, bash, zsh or fish?"),
        };
        print!("{text}");
        Ok(SUCCESS)
    }
}

/// vm's command line, of its own table.
fn vm() -> Command {
    let commands = COMMANDS.iter().filter(|(name, ..)| !name.starts_with('_')).map(|(name, uses, what)| {
        let command = Command::new(*name).about(*what);
        match uses.iter().any(|rest| rest.split([' ', '[', ']']).any(|word| word == "NAME")) {
            true => command.arg(Arg::new("name").num_args(0..)),
            false => command,
        }
    });
    Command::new("vm").arg(Arg::new("datastore").short('D')).subcommands(commands).disable_help_subcommand(true)
}

/// The machines that have a control socket.
fn names(run: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(run).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".sock")?.to_owned())).collect();
    names.sort();
    names
}

/// The commands that take the name of a machine that runs.
fn named(root: &Command) -> Vec<&str> {
    let takes = |command: &Command| {
        let below = command.get_subcommands().flat_map(Command::get_arguments);
        let mut all = command.get_arguments().chain(below);
        all.any(|arg| arg.is_positional() && matches!(arg.get_id().as_str(), "name" | "names"))
    };
    let fresh = |name: &str| name == "new";
    root.get_subcommands()
        .filter(|c| !c.is_hide_set() && takes(c) && !fresh(c.get_name()))
        .map(Command::get_name)
        .collect()
}

/// The same command line without what is hidden: that is nobody's to complete.
fn shown(command: &Command) -> Command {
    let copy = Command::new(command.get_name().to_owned())
        .args(command.get_arguments().filter(|arg| !arg.is_hide_set()).cloned())
        .subcommands(command.get_subcommands().filter(|c| !c.is_hide_set()).map(shown));
    match command.get_about() {
        Some(about) => copy.about(about.clone()),
        None => copy,
    }
}

fn generated(shown: &Shown, shell: Shell, name: &str) -> String {
    let mut out = Vec::new();
    clap_complete::generate(shell, &mut shown.command.clone(), name, &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

fn bash(shown: &Shown) -> String {
    let Shown { name, word, command, names } = shown;
    // With a dash in the program's name the generated script looks for other labels than it has.
    let text = generated(shown, Shell::Bash, word);
    let functions = text.rsplit_once("\nif [[").map_or(text.as_str(), |(functions, _)| functions);
    let commands = named(command).join(" | ");
    format!(
        "{functions}

# Names of machines, beside what is above.
_{word}_named() {{
    _{word} \"$@\"
    local word=\"${{COMP_WORDS[COMP_CWORD]}}\"
    case \"${{COMP_WORDS[1]}}\" in
    {commands})
        case \"$word\" in
        -*) ;;
        *) COMPREPLY+=($(compgen -W \"$({names})\" -- \"$word\")) ;;
        esac
        ;;
    esac
}}
complete -F _{word}_named -o bashdefault -o default {name}
"
    )
}

fn zsh(shown: &Shown) -> String {
    let Shown { name, word, names, .. } = shown;
    let function = format!(
        "_{word}_names() {{\n    local -a names\n    names=(${{(f)\"$({names})\"}})\n    compadd -a names\n}}\n"
    );
    let mut out = String::new();
    for (n, line) in generated(shown, Shell::Zsh, name).lines().enumerate() {
        // The name of a machine is an argument that clap has no completion for.
        let positional = ["':name", "'::name", "'*::name"].iter().any(|begin| line.starts_with(begin));
        match line.strip_suffix(":_default' \\").filter(|_| positional) {
            Some(begin) => out += &format!("{begin}:_{word}_names' \\\n"),
            None => out += &format!("{line}\n"),
        }
        if n == 0 {
            out += &function;
        }
    }
    out
}

fn fish(shown: &Shown) -> String {
    let Shown { name, command, names, .. } = shown;
    let commands = named(command).join(" ");
    let text = generated(shown, Shell::Fish, name);
    format!("{text}complete -c {name} -n \"__fish_seen_subcommand_from {commands}\" -f -a \"({names})\"\n")
}

/// ksh completes by arrays that are named after the program, and `bhyve-rs` is no name of an array: so that gets a
/// second name.
fn sh(shown: &Shown) -> String {
    let Shown { name, word, command, names } = shown;
    let commands: Vec<&str> = command.get_subcommands().map(Command::get_name).collect();
    let alias = if name == word { String::new() } else { format!("\t{word}() {{ {name} \"$@\"; }}\n") };
    format!(
        "# For ksh and OpenBSD's sh, which complete by arrays; other sh(1) complete names of files and no more.\n\
         if [ -n \"${{KSH_VERSION-}}\" ]; then\n\
         {alias}\
         \tset -A complete_{word}_1 -- {}\n\
         \tset -A complete_{word}_2 -- $({names})\n\
         fi\n",
        commands.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn names_of_machines_are_completed_where_they_are_taken() {
        let root = crate::Cli::command();
        let named = named(&root);
        assert!(["stop", "status", "wait", "autostart"].iter().all(|name| named.contains(name)), "{named:?}");
        assert!(!named.contains(&"new") && !named.contains(&"check"), "{named:?}");
        let zsh = zsh(&Shown::of(Program::BhyveRs, &root));
        assert!(zsh.matches(":_bhyve_rs_names'").count() >= named.len() - 1, "{zsh}");
        assert!(zsh.starts_with("#compdef bhyve-rs\n_bhyve_rs_names"), "{}", &zsh[..100]);
        let vm = Shown::of(Program::Vm, &root);
        assert!(self::named(&vm.command).contains(&"start") && !self::named(&vm.command).contains(&"init"));
    }
}
