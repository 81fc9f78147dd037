//! Settings from rc.conf(5), which is a shell script of assignments.
//!
//! Only assignments are understood: quotes, backslashes, comments, and `$NAME` or `${NAME}` of what was assigned before.
//! Anything else in there has no say in what we read.

use std::collections::BTreeMap;
use std::path::Path;

/// The files in which rc(8) looks for the settings of the service `vm`, the last word last.
const FILES: [&str; 6] = [
    "etc/defaults/vendor.conf",
    "etc/rc.conf",
    "etc/rc.conf.local",
    "etc/rc.conf.d/vm",
    "usr/local/etc/rc.conf.d/vm",
    "usr/local/etc/rc.conf.d/vm.local",
];

/// Variables by name.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct RcConf(BTreeMap<String, String>);

impl RcConf {
    /// What the files below `root` say; one that is not there says nothing.
    pub fn read(root: &Path) -> RcConf {
        let mut rc = RcConf::default();
        for file in FILES {
            if let Ok(text) = std::fs::read(root.join(file)) {
                rc.take(&String::from_utf8_lossy(&text));
            }
        }
        rc
    }

    /// A variable, unless it is empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Takes the assignments of a script over.
    pub fn take(&mut self, text: &str) {
        let mut words = Words(text);
        let mut command = false;
        let mut found = Vec::new();
        while let Some((word, last)) = words.next(&self.0) {
            // Whatever follows the first word of a command is an argument of it.
            match word.split_once('=') {
                Some((name, value)) if !command && is_name(name) => found.push((name.to_owned(), value.to_owned())),
                _ => command = true,
            }
            if last {
                command = false;
                self.0.extend(found.drain(..));
            }
        }
    }
}

fn is_name(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// A script, word by word.
struct Words<'a>(&'a str);

impl Words<'_> {
    /// The next word, unquoted and with variables replaced, and whether it ends its command.
    fn next(&mut self, variables: &BTreeMap<String, String>) -> Option<(String, bool)> {
        loop {
            self.0 = self.0.trim_start_matches([' ', '\t', '\n', '\r', ';', '&']);
            match self.0.strip_prefix('#') {
                Some(comment) => self.0 = comment.split_once('\n').map_or("", |(_, rest)| rest),
                None => break,
            }
        }
        if self.0.is_empty() {
            return None;
        }
        let mut word = String::new();
        let mut quote = None;
        while let Some(c) = self.0.chars().next() {
            if quote.is_none() && c.is_ascii_whitespace() || quote.is_none() && matches!(c, ';' | '&') {
                break;
            }
            self.0 = &self.0[c.len_utf8()..];
            match (quote, c) {
                (None, '"' | '\'') => quote = Some(c),
                (Some(open), _) if c == open => quote = None,
                (None | Some('"'), '$') => word.push_str(variables.get(self.variable()).map_or("", String::as_str)),
                (None | Some('"'), '\\') => {
                    let next = self.0.chars().next().unwrap_or('\\');
                    self.0 = &self.0[next.len_utf8().min(self.0.len())..];
                    // Between quotes a backslash is itself before most characters.
                    if quote.is_some() && !matches!(next, '"' | '\\' | '$' | '`' | '\n') {
                        word.push('\\');
                    }
                    if next != '\n' {
                        word.push(next);
                    }
                }
                _ => word.push(c),
            }
        }
        let rest = self.0.trim_start_matches([' ', '\t']);
        let last = rest.is_empty() || rest.starts_with(['\n', '\r', ';', '&', '#']);
        Some((word, last))
    }

    /// The name that stands here, behind its dollar sign.
    fn variable(&mut self) -> &str {
        let braced = self.0.strip_prefix('{').and_then(|inner| inner.split_once('}'));
        let (name, rest) = braced.unwrap_or_else(|| {
            let end = self.0.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(self.0.len());
            self.0.split_at(end)
        });
        self.0 = rest;
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> RcConf {
        let mut rc = RcConf::default();
        rc.take(text);
        rc
    }

    #[test]
    fn assignments_are_read_as_the_shell_reads_them() {
        let rc = of("# vm_dir=/no\nvm_enable=\"YES\"\nvm_dir='/vm # 1' # where\nvm_list=\"a b\n c\"; vm_delay=5\n");
        assert_eq!(rc.get("vm_enable"), Some("YES"));
        assert_eq!(rc.get("vm_dir"), Some("/vm # 1"));
        assert_eq!(rc.get("vm_list"), Some("a b\n c"));
        assert_eq!(rc.get("vm_delay"), Some("5"));
    }

    #[test]
    fn variables_stand_for_what_was_assigned_before() {
        let rc = of("pool=tank\nvm_dir=\"zfs:${pool}/vm\"\nvm_list=$pool'$pool'\\$pool\nvm_list=\"$vm_list x\"\n");
        assert_eq!(rc.get("vm_dir"), Some("zfs:tank/vm"));
        assert_eq!(rc.get("vm_list"), Some("tank$pool$pool x"));
    }

    #[test]
    fn commands_and_their_arguments_assign_nothing() {
        let rc = of("if [ -f /x ]; then\n  echo vm_dir=/wrong\nfi\nexport vm_dir=/also\nvm_dir=/vm\n");
        assert_eq!(rc.get("vm_dir"), Some("/vm"));
        assert_eq!(rc.get("nothing"), None);
    }

    #[test]
    fn what_does_not_end_is_no_harm() {
        for text in ["a=\"", "a='x", "a=${", "a=$", "a=\\", "=", "a=\"\\", "ä=ö \u{0} &"] {
            of(text);
        }
        let mut seed = 1_u32;
        for _ in 0..20_000 {
            let mut next = |limit: u32| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (seed >> 8) % limit
            };
            let text: String = (0..next(40)).map(|_| b"ab=#\"' \n\\$;{}&"[next(14) as usize] as char).collect();
            // A line of its own says what it says, unless a quote is open or the line before goes on.
            let closed = !text.contains(['"', '\'', '\\', '{']);
            let rc = of(&format!("{text}\nvm_dir=/vm\n"));
            assert!(!closed || rc.get("vm_dir") == Some("/vm"), "{text:?}");
        }
    }

    #[test]
    fn later_files_have_the_last_word() {
        let root = std::env::temp_dir().join(format!("bhyve-rs-rc-{}", std::process::id()));
        std::fs::create_dir_all(root.join("etc/rc.conf.d")).unwrap();
        std::fs::write(root.join("etc/rc.conf"), "vm_dir=/one\nvm_list=a\n").unwrap();
        std::fs::write(root.join("etc/rc.conf.d/vm"), "vm_dir=/two\n").unwrap();
        let rc = RcConf::read(&root);
        std::fs::remove_dir_all(&root).unwrap();
        assert_eq!((rc.get("vm_dir"), rc.get("vm_list")), (Some("/two"), Some("a")));
    }
}
