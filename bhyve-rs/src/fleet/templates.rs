//! Templates: the user's in `.templates`, and ours where there is none of the name.

use anyhow::{Result, bail};

use super::conf::Conf;
use super::store::Host;
use super::util;

/// Ours.
pub const TEMPLATES: [(&str, &str); 7] = [
    ("default", include_str!("templates/default.conf")),
    ("freebsd", include_str!("templates/freebsd.conf")),
    ("openbsd", include_str!("templates/openbsd.conf")),
    ("netbsd", include_str!("templates/netbsd.conf")),
    ("dragonfly", include_str!("templates/dragonfly.conf")),
    ("linux", include_str!("templates/linux.conf")),
    ("bsd-classic", include_str!("templates/bsd-classic.conf")),
];

/// The text of a template.
///
/// # Errors
/// When there is none of the name.
pub fn text(host: &Host, name: &str) -> Result<String> {
    util::check_name("template", name)?;
    let path = host.dir().join(format!(".templates/{name}.conf"));
    match std::fs::read_to_string(&path) {
        Ok(text) => return Ok(text),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => bail!("{}: {e}", path.display()),
    }
    match TEMPLATES.iter().find(|(ours, _)| *ours == name) {
        Some((_, text)) => Ok((*text).to_owned()),
        None => {
            let ours: Vec<&str> = TEMPLATES.iter().map(|(name, _)| *name).collect();
            bail!("unable to find template {}; built in are {}", path.display(), ours.join(", "))
        }
    }
}

/// The settings of a template, which must have a disk.
///
/// # Errors
/// When it has none.
pub fn check(name: &str, text: &str) -> Result<Conf> {
    let conf = Conf::parse(text);
    if conf.get("disk0_name").is_none() {
        bail!("template {name} is missing disk0_name specification");
    }
    Ok(conf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_templates_are_complete() {
        for (name, text) in TEMPLATES {
            let conf = check(name, text).unwrap();
            for key in ["loader", "cpu", "memory", "disk0_type", "network0_type"] {
                assert!(conf.get(key).is_some(), "{name} has no {key}");
            }
            assert!(text.starts_with("# "), "{name} says what it is for");
        }
    }
}
