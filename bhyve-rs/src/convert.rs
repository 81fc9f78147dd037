//! `config`: one machine in the three forms that it can be written in.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use cfg::bhyve::{Asked, Config, parse};
use cfg::{Draft, Errors};
use clap::{Args, ValueEnum};

use crate::compat::translate;
use crate::{SUCCESS, config};

/// How a machine is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// A configuration file of bhyve-rs.
    Toml,
    /// A command line of bhyve(8).
    Bhyve,
    /// A file of bhyve_config(5).
    #[value(name = "bhyve_config", alias = "bhyve-config")]
    BhyveConfig,
}

/// Write a machine's configuration in another form. What the other form cannot say is an error, key by key.
#[derive(Args)]
pub struct Convert {
    /// What it is written in.
    #[arg(long, value_name = "FORM")]
    from: Form,
    /// What it is to be written in, to standard output.
    #[arg(long, value_name = "FORM")]
    to: Form,
    /// Leave out, with a warning each, what the other form cannot say.
    #[arg(long)]
    lossy: bool,
    /// The file, or with --from bhyve the arguments, behind a "--".
    #[arg(required = true, allow_hyphen_values = true, value_name = "FILE|ARGUMENTS")]
    what: Vec<String>,
}

impl Convert {
    /// Does it, and returns the exit status.
    ///
    /// # Errors
    /// What is wrong with the configuration, or cannot be said.
    pub fn run(&self) -> Result<u8> {
        let file = || match &self.what[..] {
            [file] => Ok(PathBuf::from(file)),
            _ => bail!("one file, please"),
        };
        match (self.from, self.to) {
            (Form::Toml, Form::Toml) => {
                let draft = Draft::read(&file()?);
                config::describe(&draft)?;
                print!("{}", config::to_toml(draft.tree()));
            }
            (Form::Toml, to) => {
                let (bhyve, left) = from_toml(&file()?)?;
                if !left.0.is_empty() {
                    eprintln!("{left}");
                    if !self.lossy {
                        bail!("bhyve(8) cannot say all of it; --lossy leaves that out");
                    }
                }
                print!("{}", written(&bhyve, to)?);
            }
            (from, to) => {
                let bhyve = match from {
                    Form::Bhyve => from_args(&self.what)?,
                    _ => {
                        let mut bhyve = Config::new();
                        bhyve.read(&file()?).map_err(|refusal| anyhow::anyhow!(refusal.message))?;
                        bhyve
                    }
                };
                print!("{}", written(&bhyve, to)?);
            }
        }
        Ok(SUCCESS)
    }
}

fn from_args(args: &[String]) -> Result<Config> {
    let args = match args {
        [bhyve, rest @ ..] if Path::new(bhyve).file_name().is_some_and(|name| name == "bhyve") => rest,
        args => args,
    };
    match parse(args, &translate::extra_devices()) {
        Ok(Asked::Run(bhyve)) => Ok(bhyve),
        Ok(_) => bail!("that command line runs no machine"),
        Err(refusal) if refusal.message.is_empty() => bail!("that command line names no machine, or several"),
        Err(refusal) => bail!(refusal.message),
    }
}

fn from_toml(file: &Path) -> Result<(Config, Errors)> {
    let draft = Draft::read(file);
    let node = config::describe(&draft)?;
    translate::from_machine(draft.tree(), &node).context("this machine is none of bhyve(8)'s")
}

/// bhyve's tree in a form.
fn written(bhyve: &Config, form: Form) -> Result<String> {
    Ok(match form {
        Form::BhyveConfig => bhyve.dump(false),
        Form::Bhyve => {
            let words: Vec<String> = bhyve.to_args().iter().map(|arg| quoted(arg)).collect();
            format!("bhyve {}\n", words.join(" "))
        }
        Form::Toml => config::to_toml(translate::to_machine(bhyve)?.tree()),
    })
}

/// A word for a shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}
