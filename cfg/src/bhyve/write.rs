//! bhyve's tree as a command line.

use super::slot::{DEVICES, Opts};
use super::{Config, args};

/// Keys that a flag sets, in the order in which they are written.
const FLAGS: [(&str, &str); 3] = [("memory.size", "-m"), ("uuid", "-U"), ("keyboard.layout", "-K")];

impl Config {
    /// The arguments of a bhyve(8) that has this tree, its own name not included. What no flag can say is set by `-o`.
    pub fn to_args(&self) -> Vec<String> {
        let mut args = Vec::new();
        let mut left: Vec<String> = self.keys().into_iter().filter(|key| key != "name" && self.is_given(key)).collect();
        let mut take = |key: &str| -> Option<String> {
            let at = left.iter().position(|k| k == key)?;
            left.remove(at);
            self.tree.text(key).map(str::to_owned)
        };
        for bus in self.names("pci") {
            for slot in self.names(&format!("pci.{bus}")) {
                for function in self.names(&format!("pci.{bus}.{slot}")) {
                    let node = format!("pci.{bus}.{slot}.{function}");
                    let place =
                        if bus == "0" { format!("{slot}:{function}") } else { format!("{bus}:{slot}:{function}") };
                    let Some(device) = self.tree.text(&format!("{node}.device")) else { continue };
                    // What -s cannot take stays for -o.
                    let Some(known) = DEVICES.iter().find(|known| known.name == device) else { continue };
                    take(&format!("{node}.device"));
                    let mut words = vec![place, device.to_owned()];
                    let first = match known.opts {
                        Opts::First(key) => Some(key),
                        Opts::Targets => Some("dev"),
                        Opts::PathOrRam => Some("path"),
                        _ => None,
                    };
                    let fits = |key: &str| self.tree.text(&format!("{node}.{key}")).is_some_and(|v| !v.contains(','));
                    if let Some(key) = first.filter(|key| fits(key)) {
                        words.extend(take(&format!("{node}.{key}")));
                    }
                    let targets =
                        if known.opts == Opts::Targets { self.names(&format!("{node}.target")) } else { Vec::new() };
                    for id in targets {
                        if fits(&format!("target.{id}"))
                            && let Some(path) = take(&format!("{node}.target.{id}"))
                        {
                            words.push(format!("target={id}:{path}"));
                        }
                    }
                    if first.is_none_or(|_| words.len() >= 3)
                        && matches!(known.opts, Opts::First(_) | Opts::Targets | Opts::Plain | Opts::PathOrRam)
                    {
                        for key in self.names(&node) {
                            if fits(&key)
                                && let Some(value) = take(&format!("{node}.{key}"))
                            {
                                words.push(if value == "true" { key } else { format!("{key}={value}") });
                            }
                        }
                    }
                    args.extend(["-s".to_owned(), words.join(",")]);
                }
            }
        }
        let topology: Vec<String> = ["cpus", "sockets", "cores", "threads"]
            .iter()
            .filter_map(|key| take(key).map(|value| format!("{key}={value}")))
            .collect();
        if !topology.is_empty() {
            args.extend(["-c".to_owned(), topology.join(",")]);
        }
        for (key, flag) in FLAGS {
            args.extend(take(key).into_iter().flat_map(|value| [flag.to_owned(), value]));
        }
        for (flag, key, value) in args::switches() {
            if self.tree.text(key) == Some(value) && take(key).is_some() {
                args.push(format!("-{flag}"));
            }
        }
        let no_comma = |key: &str| self.tree.text(key).is_some_and(|v| !v.contains(',') && !v.contains('='));
        if no_comma("bootrom") {
            let vars = if no_comma("bootvars") { take("bootvars") } else { None };
            let rom = take("bootrom").into_iter().chain(vars);
            args.extend(["-l".to_owned(), ["bootrom".to_owned()].into_iter().chain(rom).collect::<Vec<_>>().join(",")]);
        }
        for n in 1..=4 {
            let path = take(&format!("lpc.com{n}.path"));
            args.extend(path.into_iter().flat_map(|path| ["-l".to_owned(), format!("com{n},{path}")]));
        }
        for key in left {
            args.extend(["-o".to_owned(), format!("{key}={}", self.tree.text(&key).unwrap_or_default())]);
        }
        let name = self.tree.text("name");
        // What looks like a flag is none behind this.
        args.extend(name.filter(|name| name.starts_with('-')).map(|_| "--".to_owned()));
        args.extend(name.map(str::to_owned));
        args
    }
}
