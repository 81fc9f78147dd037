//! Bridges and taps of the host: by ifconfig(8) on FreeBSD, by ip(8) and bridge(8) on Linux.

use anyhow::{Context, Result, bail};

use super::util;

/// Longest name of an interface, without the terminator.
const LONGEST: usize = 15;

/// Runs a program; a test brings its own.
type Runner = fn(&str, &[&str]) -> Result<String>;

/// The host's programs.
#[derive(Clone, Copy)]
pub struct Net {
    freebsd: bool,
    run: Runner,
}

impl Default for Net {
    fn default() -> Net {
        Net { freebsd: cfg!(target_os = "freebsd"), run: util::output }
    }
}

/// The name by which vm-bhyve finds interfaces of a switch: a group of interfaces on FreeBSD.
fn group(switch: &str) -> String {
    format!("viid-{}@", &md5(switch)[..5])
}

impl Net {
    fn ifconfig(&self, line: &str) -> Result<String> {
        (self.run)("ifconfig", &line.split(' ').collect::<Vec<_>>())
    }

    fn ip(&self, line: &str) -> Result<String> {
        (self.run)("ip", &line.split(' ').collect::<Vec<_>>())
    }

    /// Has it done by arguments for ifconfig(8), or on Linux for ip(8).
    fn either(&self, ifconfig: &str, ip: &str) -> Result<()> {
        if self.freebsd { self.ifconfig(ifconfig) } else { self.ip(ip) }.map(drop)
    }

    /// Whether an interface is there.
    pub fn exists(&self, interface: &str) -> bool {
        if self.freebsd {
            self.ifconfig(interface).is_ok()
        } else {
            self.ip(&format!("link show dev {interface}")).is_ok()
        }
    }

    /// The bridge of a switch that we made, if it is there.
    pub fn bridge(&self, switch: &str) -> Option<String> {
        if self.freebsd {
            let names = self.ifconfig(&format!("-g {}", group(switch))).ok()?;
            return names.lines().next().filter(|name| !name.is_empty()).map(str::to_owned);
        }
        let name = bridge_name(switch);
        self.exists(&name).then_some(name)
    }

    /// Makes the bridge of a switch, and returns its name.
    ///
    /// # Errors
    /// When the host refuses; so all of these.
    pub fn create_bridge(&self, switch: &str) -> Result<String> {
        let make = || -> Result<String> {
            if self.freebsd {
                // Other programs like the name, where it fits.
                let named = match switch.len() {
                    ..=12 => format!("name vm-{switch}"),
                    _ => format!("descr vm/{switch}"),
                };
                let id = self.ifconfig(&format!("bridge create {named} group vm-switch up"))?;
                self.ifconfig(&format!("{id} group {}", group(switch)))?;
                self.ifconfig(&format!("{id} link random"))?;
                return Ok(id);
            }
            let id = bridge_name(switch);
            self.ip(&format!("link add name {id} type bridge"))?;
            self.ip(&format!("link set dev {id} alias vm/{switch} up"))?;
            Ok(id)
        };
        make().with_context(|| format!("failed to create bridge interface for switch {switch}"))
    }

    /// Makes a bridge of somebody else's the one of a switch.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn adopt_bridge(&self, bridge: &str, switch: &str) -> Result<()> {
        if self.freebsd {
            self.ifconfig(&format!("{bridge} group vm-switch up"))?;
            self.ifconfig(&format!("{bridge} group {}", group(switch)))?;
        } else {
            self.ip(&format!("link set dev {bridge} up"))?;
        }
        Ok(())
    }

    /// Removes an interface.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn destroy(&self, interface: &str) -> Result<()> {
        self.either(&format!("{interface} destroy"), &format!("link del dev {interface}"))
    }

    /// Gives an interface an address, or takes it.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn address(&self, interface: &str, address: &str, add: bool) -> Result<()> {
        let six = address.contains(':');
        if self.freebsd {
            let family = if six { "inet6" } else { "inet" };
            let end = match (add, six) {
                (false, _) => " delete",
                (true, true) => " auto_linklocal",
                (true, false) => "",
            };
            self.ifconfig(&format!("{interface} {family} {address}{end}"))?;
        } else {
            self.ip(&format!("address {} {address} dev {interface}", if add { "add" } else { "del" }))?;
        }
        Ok(())
    }

    /// Sets the largest packet.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn set_mtu(&self, interface: &str, mtu: &str) -> Result<()> {
        self.either(&format!("{interface} mtu {mtu}"), &format!("link set dev {interface} mtu {mtu}"))
    }

    /// The largest packet.
    pub fn mtu(&self, interface: &str) -> Option<String> {
        let line = if self.freebsd { self.ifconfig(interface) } else { self.ip(&format!("link show dev {interface}")) };
        let text = line.ok()?;
        let mut words = text.split_whitespace();
        words.find(|word| *word == "mtu")?;
        words.next().map(str::to_owned)
    }

    /// Makes an interface a member of a bridge; a `span` member sees everything.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn add_member(&self, bridge: &str, interface: &str, span: bool) -> Result<()> {
        if self.freebsd {
            self.ifconfig(&format!("{bridge} {} {interface}", if span { "span" } else { "addm" }))?;
        } else if span {
            bail!("Linux's bridges have no span ports");
        } else {
            self.ip(&format!("link set dev {interface} master {bridge}"))?;
        }
        Ok(())
    }

    /// Takes an interface out of a bridge.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn remove_member(&self, bridge: &str, interface: &str) -> Result<()> {
        self.either(&format!("{bridge} deletem {interface}"), &format!("link set dev {interface} nomaster"))
    }

    /// Keeps a member from the bridge's other private ones.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn set_private(&self, bridge: &str, interface: &str) -> Result<()> {
        if self.freebsd {
            self.ifconfig(&format!("{bridge} private {interface}"))?;
        } else {
            (self.run)("bridge", &["link", "set", "dev", interface, "isolated", "on"])?;
        }
        Ok(())
    }

    /// The interface of a VLAN on a port, which is made if it is not there.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn vlan(&self, switch: &str, port: &str, vlan: &str) -> Result<String> {
        let name = format!("{port}.{vlan}");
        if name.len() > LONGEST {
            bail!("{name}: an interface's name has {LONGEST} characters at most");
        }
        if self.exists(&name) {
            return Ok(name);
        }
        if self.freebsd {
            let made = format!("vlandev {port} vlan {vlan} descr vm-vlan/{switch}/{name} name {name} group vm-vlan up");
            self.ifconfig(&format!("vlan create {made}"))?;
            self.ifconfig(&format!("{name} group {}", group(&name)))?;
        } else {
            self.ip(&format!("link add link {port} name {name} type vlan id {vlan}"))?;
            self.ip(&format!("link set dev {name} alias vm-vlan/{switch}/{name} up"))?;
        }
        Ok(name)
    }

    /// Makes a tap, of a name if it is to have one, and returns its name. It belongs to a port of a guest.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn create_tap(&self, name: Option<&str>, port: &str) -> Result<String> {
        let tap = match (self.freebsd, name) {
            (true, Some(name)) => self.ifconfig(&format!("tap create name {name}"))?,
            (true, None) => self.ifconfig("tap create")?,
            (false, Some(name)) => {
                self.ip(&format!("tuntap add mode tap name {name}"))?;
                name.to_owned()
            }
            (false, None) => self.first_tap()?,
        };
        self.describe(&tap, port)?;
        Ok(tap)
    }

    /// Linux does not number taps as FreeBSD does. Somebody else may take a number first.
    fn first_tap(&self) -> Result<String> {
        let free = (0..1000).map(|n| format!("tap{n}")).filter(|name| !self.exists(name));
        let mut failed = None;
        for name in free.take(8) {
            match self.ip(&format!("tuntap add mode tap name {name}")) {
                Ok(_) => return Ok(name),
                Err(e) => failed = Some(e),
            }
        }
        Err(failed.context("no tap is free")?)
    }

    /// Notes on an interface whose port it is.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn describe(&self, tap: &str, port: &str) -> Result<()> {
        self.either(&format!("{tap} descr {port} group vm-port"), &format!("link set dev {tap} alias {port}"))
    }

    /// Brings an interface up.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn up(&self, interface: &str) -> Result<()> {
        self.either(&format!("{interface} up"), &format!("link set dev {interface} up"))
    }

    /// The taps of guests: interface and `vmnet/GUEST/NUMBER/SWITCH`.
    pub fn ports(&self) -> Vec<(String, String)> {
        let text = if self.freebsd { self.ifconfig("-g vm-port") } else { self.ip("-o link show") };
        let text = text.unwrap_or_default();
        if !self.freebsd {
            // 7: tap0: <BROADCAST,...> mtu 1500 ...\    link/ether ...\    alias vmnet/web/0/public
            return text.lines().filter_map(linux_port).collect();
        }
        let port = |tap: &str| {
            let text = self.ifconfig(tap).ok()?;
            let description = text.lines().find_map(|line| line.trim().strip_prefix("description: "))?;
            Some((tap.to_owned(), description.to_owned()))
        };
        text.lines().filter_map(port).collect()
    }

    /// Bytes that came in and went out on an interface.
    pub fn bytes(&self, interface: &str) -> Option<(u64, u64)> {
        if self.freebsd {
            let text = (self.run)("netstat", &["-biI", interface]).ok()?;
            // From the right: drops, collisions, output bytes, errors and packets, then the input's.
            let line = text.lines().rfind(|line| line.contains("<Link#"))?;
            let words: Vec<&str> = line.split_whitespace().rev().collect();
            return Some((words.get(4)?.parse().ok()?, words.get(1)?.parse().ok()?));
        }
        let count = |name: &str| {
            let path = format!("/sys/class/net/{interface}/statistics/{name}");
            std::fs::read_to_string(path).ok()?.trim().parse().ok()
        };
        Some((count("rx_bytes")?, count("tx_bytes")?))
    }
}

fn linux_port(line: &str) -> Option<(String, String)> {
    let name = line.split(": ").nth(1)?.split('@').next()?;
    let alias = line.split("alias ").nth(1)?.split_whitespace().next()?.trim_end_matches('\\');
    alias.starts_with("vmnet/").then(|| (name.to_owned(), alias.to_owned()))
}

/// The bridge of a switch on Linux, whose interfaces have no groups to find them by.
fn bridge_name(switch: &str) -> String {
    let name = format!("vm-{switch}");
    if name.len() <= LONGEST { name } else { format!("vm-{}", &md5(switch)[..LONGEST - 3]) }
}

/// The digest by which vm-bhyve shortens names, in hexadecimal digits. Nothing is secured by it.
fn md5(text: &str) -> String {
    format!("{:x}", md5::compute(text))
}

/// The port of a vale(4) switch that belongs to a MAC address.
pub fn vale(switch: &str, mac: &str) -> String {
    format!("vale{}:{}", &md5(switch)[..5], &md5(mac)[..5])
}

/// The first free link of a netgraph(4) bridge.
pub fn netgraph(switch: &str) -> String {
    let taken = |n: &u32| util::output("ngctl", &["msg", &format!("{switch}:"), "getstats", &n.to_string()]).is_ok();
    let link = (2..1000).find(|n| !taken(n)).unwrap_or(2);
    format!("netgraph,path={switch}:,peerhook=link{link}")
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    thread_local! {
        static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    }

    /// Notes what is run; what is asked for is not there, and what is made gets a name.
    fn note(program: &str, args: &[&str]) -> Result<String> {
        let line = format!("{program} {}", args.join(" "));
        if line.contains("show") || args.len() == 1 {
            bail!("not there");
        }
        LINES.with_borrow_mut(|lines| lines.push(line.clone()));
        Ok(if line.contains(" create") { "made0".to_owned() } else { String::new() })
    }

    fn run(freebsd: bool, what: impl FnOnce(Net)) -> Vec<String> {
        what(Net { freebsd, run: note });
        LINES.with_borrow_mut(std::mem::take)
    }

    #[test]
    fn freebsd_gets_groups_and_descriptions() {
        let lines = run(true, |net| {
            net.create_bridge("public").unwrap();
            let tap = net.create_tap(None, "vmnet/web/0/public").unwrap();
            net.add_member("vm-public", &tap, false).unwrap();
            net.set_private("vm-public", &tap).unwrap();
            net.destroy(&tap).unwrap();
        });
        assert_eq!(
            lines,
            [
                "ifconfig bridge create name vm-public group vm-switch up",
                // The first five digits of the MD5 of the name, as vm-bhyve marks its own.
                "ifconfig made0 group viid-4c918@",
                "ifconfig made0 link random",
                "ifconfig tap create",
                "ifconfig made0 descr vmnet/web/0/public group vm-port",
                "ifconfig vm-public addm made0",
                "ifconfig vm-public private made0",
                "ifconfig made0 destroy",
            ]
        );
    }

    #[test]
    fn linux_gets_bridges_of_its_own() {
        let lines = run(false, |net| {
            let bridge = net.create_bridge("public").unwrap();
            let tap = net.create_tap(None, "vmnet/web/0/public").unwrap();
            net.add_member(&bridge, &tap, false).unwrap();
            assert!(net.add_member(&bridge, &tap, true).is_err());
            net.address(&bridge, "fd00::1/64", false).unwrap();
        });
        assert_eq!(
            lines,
            [
                "ip link add name vm-public type bridge",
                "ip link set dev vm-public alias vm/public up",
                "ip tuntap add mode tap name tap0",
                "ip link set dev tap0 alias vmnet/web/0/public",
                "ip link set dev tap0 master vm-public",
                "ip address del fd00::1/64 dev vm-public",
            ]
        );
    }

    #[test]
    fn long_names_of_switches_fit_an_interface() {
        assert_eq!(bridge_name("twelve-chars"), "vm-twelve-chars");
        assert_eq!(bridge_name("thirteen-char").len(), LONGEST);
        let lines = run(true, |net| {
            net.create_bridge("thirteen-char").unwrap();
        });
        assert_eq!(lines[0], "ifconfig bridge create descr vm/thirteen-char group vm-switch up");
    }

    #[test]
    fn ports_are_read_from_what_ip_prints() {
        let line =
            "7: tap0: <BROADCAST> mtu 1500 qdisc noop\\    link/ether 1a:76 brd ff:ff\\    alias vmnet/web/0/public";
        assert_eq!(linux_port(line), Some(("tap0".to_owned(), "vmnet/web/0/public".to_owned())));
        assert_eq!(linux_port("1: lo: <LOOPBACK> mtu 65536"), None);
    }

    #[test]
    fn vale_ports_are_hashes() {
        let port = vale("public", "58:9c:fc:00:00:01");
        assert!(port.starts_with("vale4c918:") && port.len() == 15, "{port}");
    }
}
