//! `vm switch`: the virtual switches that guests are plugged into.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::conf::{Change, edit, yes};
use super::net::Net;
use super::store::Host;
use super::{usage, util};

/// What kind of switch it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A bridge of ours.
    Standard,
    /// A bridge of the user's.
    Manual,
    /// vale(4).
    Vale,
    /// A netgraph(4) bridge.
    Netgraph,
}

impl Kind {
    fn parse(text: &str) -> Result<Kind> {
        Ok(match text {
            "standard" | "" => Kind::Standard,
            "manual" => Kind::Manual,
            "vale" => Kind::Vale,
            "netgraph" => Kind::Netgraph,
            "vxlan" => bail!("vxlan switches are not supported; make the bridge yourself and use a manual switch"),
            _ => bail!("invalid switch type - {text:?}; there are standard, manual, vale and netgraph"),
        })
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Standard => "standard",
            Kind::Manual => "manual",
            Kind::Vale => "vale",
            Kind::Netgraph => "netgraph",
        }
    }
}

/// A switch, as it is configured.
pub struct Switch<'a> {
    host: &'a Host,
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: Kind,
    net: Net,
}

/// The commands.
pub const COMMANDS: [&str; 10] =
    ["create", "list", "destroy", "add", "remove", "vlan", "nat", "address", "private", "info"];

/// `vm switch ...`.
///
/// # Errors
/// Why not.
pub fn main(host: &mut Host, args: &[String]) -> Result<u8> {
    let Some((command, args)) = args.split_first() else { return usage::missing("switch") };
    let text = |n: usize| args.get(n).map(String::as_str).filter(|word| !word.is_empty());
    let command = util::unique(command, &COMMANDS)?;
    match (command, text(0), text(1)) {
        ("create", ..) => create(host, args)?,
        ("list", ..) => list(host)?,
        ("info", ..) => info(host, args)?,
        ("nat", ..) => {
            util::warn("internal nat support is currently disabled");
            util::warn("please add an address to the virtual switch and configure your firewall for NAT manually");
        }
        ("destroy", Some(name), _) => destroy(host, name)?,
        ("add", Some(name), Some(port)) => Switch::of(host, name)?.standard()?.plug(port, true)?,
        ("remove", Some(name), Some(port)) => Switch::of(host, name)?.standard()?.plug(port, false)?,
        ("vlan", Some(name), Some(id)) => vlan(host, name, id)?,
        ("private", Some(name), Some(value)) => {
            let switch = Switch::of(host, name)?;
            if !matches!(switch.kind, Kind::Standard | Kind::Manual) {
                bail!("unable to configure private mode on {} switches", switch.kind.name());
            }
            let value = if yes(value) { "yes" } else { "no" };
            edit(&host.system_conf(), &[Change::set(format!("private_{name}"), value)])?;
        }
        ("address", Some(name), Some(address)) => {
            Switch::of(host, name)?.standard()?.address(address, text(2) == Some("delete"))?;
        }
        _ => return usage::missing("switch"),
    }
    Ok(0)
}

/// Makes all bridges that are not there.
///
/// # Errors
/// When the host refuses one.
pub fn init(host: &Host) -> Result<()> {
    for name in host.system.words("switch_list") {
        match Switch::of(host, &name) {
            Ok(switch) => switch.init()?,
            // One that cannot work must not keep the others from it.
            Err(e) => util::warn(format!("switch {name}: {e:#}")),
        }
    }
    Ok(())
}

impl<'a> Switch<'a> {
    /// A switch.
    ///
    /// # Errors
    /// When there is none of the name, or we do not know its kind.
    pub fn of(host: &'a Host, name: &str) -> Result<Switch<'a>> {
        if !host.system.words("switch_list").iter().any(|switch| switch == name) {
            bail!("unable to locate specified virtual switch {name:?}");
        }
        let kind = Kind::parse(host.system.or(&format!("type_{name}"), ""))?;
        Ok(Switch { host, name: name.to_owned(), kind, net: Net::default() })
    }

    /// A setting.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.host.system.get(&format!("{key}_{}", self.name))
    }

    fn standard(self) -> Result<Self> {
        match self.kind {
            Kind::Standard => Ok(self),
            Kind::Manual => bail!("manual switches and member interfaces should be configured using /etc/rc.conf"),
            kind => bail!("feature not currently supported on {} switches", kind.name()),
        }
    }

    /// The bridge, or what there is in its place.
    pub fn id(&self) -> Option<String> {
        match self.kind {
            Kind::Standard => self.net.bridge(&self.name),
            Kind::Manual => self.get("bridge").map(str::to_owned),
            Kind::Vale => super::net::vale(&self.name, "").split(':').next().map(str::to_owned),
            Kind::Netgraph => Some(super::net::netgraph(&self.name)),
        }
    }

    fn existing(&self) -> Result<String> {
        self.id().with_context(|| format!("unable to locate switch id of {}; vm init makes the bridge", self.name))
    }

    fn init(&self) -> Result<()> {
        match self.kind {
            Kind::Standard if self.id().is_none() => {
                let bridge = self.net.create_bridge(&self.name)?;
                for key in ["addr", "addr6"] {
                    if let Some(address) = self.get(key) {
                        self.net.address(&bridge, address, true)?;
                    }
                }
                if let Some(mtu) = self.get("mtu") {
                    self.net.set_mtu(&bridge, mtu)?;
                }
                for port in self.host.system.words(&format!("ports_{}", self.name)) {
                    self.connect(&bridge, &port, self.get("vlan"))?;
                }
            }
            Kind::Manual => {
                if let Some(bridge) = self.get("bridge") {
                    self.net.adopt_bridge(bridge, &self.name)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn connect(&self, bridge: &str, port: &str, vlan: Option<&str>) -> Result<()> {
        let connect = || {
            if let Some(mtu) = self.get("mtu") {
                self.net.set_mtu(port, mtu)?;
            }
            let member = match vlan {
                Some(vlan) => self.net.vlan(&self.name, port, vlan)?,
                None => port.to_owned(),
            };
            self.net.add_member(bridge, &member, false)
        };
        connect().with_context(|| format!("failed to add member {port} to the virtual switch {}", self.name))
    }

    fn disconnect(&self, bridge: &str, port: &str, vlan: Option<&str>) -> Result<()> {
        match vlan {
            Some(vlan) => self.net.destroy(&format!("{port}.{vlan}")),
            None => self.net.remove_member(bridge, port),
        }
    }

    fn plug(&self, port: &str, add: bool) -> Result<()> {
        interface(port)?;
        let (bridge, key) = (self.existing()?, format!("ports_{}", self.name));
        let words = vec![port.to_owned()];
        if add {
            self.connect(&bridge, port, self.get("vlan"))?;
            return edit(&self.host.system_conf(), &[Change::Add(key, words)]);
        }
        edit(&self.host.system_conf(), &[Change::Take(key, words)])?;
        self.disconnect(&bridge, port, self.get("vlan"))
    }

    fn address(&self, address: &str, delete: bool) -> Result<()> {
        let (bridge, file) = (self.existing()?, self.host.system_conf());
        let key = |key: &str| format!("{key}_{}", self.name);
        let keys = ["addr", "addr6"];
        if address == "none" || delete {
            let gone: Vec<_> =
                keys.into_iter().filter(|k| self.get(k).is_some_and(|a| !delete || a == address)).collect();
            if gone.is_empty() {
                bail!("address {address} is not assigned to this switch");
            }
            for k in gone {
                self.net.address(&bridge, self.get(k).unwrap_or_default(), false)?;
                edit(&file, &[Change::Remove(key(k))])?;
            }
            return Ok(());
        }
        check_address(address)?;
        let k = keys[usize::from(address.contains(':'))];
        let old = self.get(k);
        if old == Some(address) {
            bail!("the specified IP address is already assigned to this switch");
        }
        if let Some(old) = old {
            if !util::confirm(&format!("This switch already has {old} assigned, replace it"))? {
                return Ok(());
            }
            self.net.address(&bridge, old, false)?;
        }
        self.net.address(&bridge, address, true)?;
        edit(&file, &[Change::set(key(k), address)])
    }
}

/// Something with a prefix length.
fn check_address(address: &str) -> Result<()> {
    let good = address.split_once('/').is_some_and(|(ip, bits)| {
        let most = if ip.contains(':') { 128 } else { 32 };
        ip.parse::<std::net::IpAddr>().is_ok() && bits.parse::<u32>().is_ok_and(|bits| bits <= most)
    });
    if !good {
        bail!("address must be supplied in CIDR notation (e.g. 192.0.2.1/24, 3fff::1/64), not {address:?}");
    }
    Ok(())
}

fn check_vlan(id: &str) -> Result<()> {
    match id.parse::<u16>() {
        Ok(0..4095) => Ok(()),
        _ => bail!("invalid vlan number {id:?}: 0 to 4094"),
    }
}

/// Refuses what cannot be an interface's name.
fn interface(name: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.len() > 15 || !name.chars().all(good) || name.starts_with('-') {
        bail!("invalid interface name {name:?}");
    }
    Ok(())
}

fn create(host: &mut Host, args: &[String]) -> Result<()> {
    let (options, rest) = util::getopt(args, "t:i:n:b:a:m:p")?;
    let get = |letter: char| options.iter().rfind(|(l, _)| *l == letter).map(|(_, value)| *value);
    let Some(name) = rest.first() else { bail!("which name is the switch to have?") };
    util::check_name("switch", name)?;
    if host.system.words("switch_list").contains(name) {
        bail!("switch {name} already exists");
    }
    get('n').map_or(Ok(()), check_vlan)?;
    get('a').map_or(Ok(()), check_address)?;
    get('i').map_or(Ok(()), interface)?;
    get('b').map_or(Ok(()), interface)?;
    if let Some(mtu) = get('m')
        && !mtu.parse::<u32>().is_ok_and(|mtu| (100..=9000).contains(&mtu))
    {
        bail!("invalid mtu {mtu:?}: 100 to 9000");
    }
    let kind = Kind::parse(get('t').unwrap_or_default())?;
    let mut changes = vec![
        Change::Add("switch_list".to_owned(), vec![name.clone()]),
        Change::set(format!("type_{name}"), kind.name()),
    ];
    let mut set = |key: &str, value: Option<&str>| {
        changes.extend(value.map(|value| Change::set(format!("{key}_{name}"), value)));
    };
    let private = get('p').map(|_| "yes");
    match kind {
        Kind::Standard => {
            set("ports", get('i'));
            set("vlan", get('n'));
            set("private", private);
            set("mtu", get('m'));
            set(if get('a').is_some_and(|a| a.contains(':')) { "addr6" } else { "addr" }, get('a'));
        }
        Kind::Manual => {
            let bridge = get('b').context("you must specify a bridge to import when creating a manual switch")?;
            if !Net::default().exists(bridge) {
                bail!("{bridge} does not appear to be a valid existing bridge");
            }
            set("bridge", Some(bridge));
            set("private", private);
        }
        Kind::Vale | Kind::Netgraph => {}
    }
    edit(&host.system_conf(), &changes)?;
    host.load();
    let made = Switch::of(host, name)?.init();
    if made.is_err() {
        // What could not be made is not in the list.
        forget(host, name)?;
    }
    made
}

/// Removes the settings of a switch.
fn forget(host: &Host, name: &str) -> Result<()> {
    let keys = ["type", "ports", "vlan", "nat", "addr", "addr6", "private", "mtu", "bridge"];
    let mut changes = vec![Change::Take("switch_list".to_owned(), vec![name.to_owned()])];
    changes.extend(keys.map(|key| Change::Remove(format!("{key}_{name}"))));
    edit(&host.system_conf(), &changes)
}

fn destroy(host: &Host, name: &str) -> Result<()> {
    let switch = Switch::of(host, name)?;
    if switch.kind == Kind::Standard
        && let Some(bridge) = switch.id()
    {
        for port in host.system.words(&format!("ports_{name}")) {
            if let Err(e) = switch.disconnect(&bridge, &port, switch.get("vlan")) {
                util::warn(format!("{e:#}"));
            }
        }
        switch.net.destroy(&bridge).context("failed to remove virtual switch")?;
    }
    forget(host, name)
}

fn vlan(host: &mut Host, name: &str, id: &str) -> Result<()> {
    check_vlan(id)?;
    let before = Switch::of(host, name)?.standard()?.get("vlan").map(str::to_owned);
    let wanted = Some(id.to_owned()).filter(|id| id != "0");
    move_to_vlan(host, name, wanted.as_deref()).inspect_err(|_| {
        // As it was, as far as that goes.
        if let Err(e) = move_to_vlan(host, name, before.as_deref()) {
            util::warn(format!("{e:#}"));
        }
    })
}

fn move_to_vlan(host: &mut Host, name: &str, id: Option<&str>) -> Result<()> {
    let ports = host.system.words(&format!("ports_{name}"));
    let switch = Switch::of(host, name)?;
    let bridge = switch.existing()?;
    for port in &ports {
        // One that is not connected needs no more.
        let _ = switch.disconnect(&bridge, port, switch.get("vlan"));
    }
    let key = format!("vlan_{name}");
    edit(&host.system_conf(), &[id.map_or_else(|| Change::Remove(key.clone()), |id| Change::set(key.clone(), id))])?;
    host.load();
    let switch = Switch::of(host, name)?;
    ports.iter().try_for_each(|port| switch.connect(&bridge, port, switch.get("vlan")))
}

/// The columns of a switch in the list; a standard one with two addresses has two lines.
fn rows(switch: &Switch) -> Vec<Vec<String>> {
    let text = |value: Option<&str>| value.unwrap_or("-").to_owned();
    let (name, kind) = (switch.name.clone(), switch.kind.name().to_owned());
    let na = || "n/a".to_owned();
    match switch.kind {
        Kind::Standard => {
            let (four, six) = (switch.get("addr"), switch.get("addr6"));
            let private = text(Some(switch.get("private").unwrap_or("no")));
            let (mtu, vlan, ports) = (text(switch.get("mtu")), text(switch.get("vlan")), text(switch.get("ports")));
            let id = text(switch.id().as_deref());
            let mut rows = vec![vec![name, kind, id, text(four.or(six)), private, mtu, vlan, ports]];
            if let (Some(_), Some(six)) = (four, six) {
                let mut second = vec![String::new(); 8];
                second[3] = six.to_owned();
                rows.push(second);
            }
            rows
        }
        Kind::Manual => {
            let private = text(Some(switch.get("private").unwrap_or("no")));
            vec![vec![name, kind, text(switch.id().as_deref()), na(), private, na(), na(), na()]]
        }
        _ => vec![vec![name, kind, text(switch.id().as_deref()), na(), na(), na(), na(), na()]],
    }
}

fn list(host: &Host) -> Result<()> {
    let mut table =
        vec![["NAME", "TYPE", "IFACE", "ADDRESS", "PRIVATE", "MTU", "VLAN", "PORTS"].map(str::to_owned).to_vec()];
    let mut values = Vec::new();
    for name in host.system.words("switch_list") {
        match Switch::of(host, &name) {
            Ok(switch) if host.json => values.push(describe(&switch)),
            Ok(switch) => table.extend(rows(&switch)),
            Err(e) => util::warn(format!("switch {name}: {e:#}")),
        }
    }
    if host.json {
        println!("{}", Value::from(values));
    } else {
        print!("{}", util::columns(&table));
    }
    Ok(())
}

fn describe(switch: &Switch) -> Value {
    let get = |key: &str| switch.get(key);
    let number = |key: &str| get(key).and_then(|text| text.parse::<u64>().ok());
    let addresses: Vec<_> = [get("addr"), get("addr6")].into_iter().flatten().collect();
    json!({
        "name": switch.name,
        "type": switch.kind.name(),
        "interface": switch.id(),
        "addresses": addresses,
        "private": get("private").is_some_and(yes),
        "mtu": number("mtu"),
        "vlan": number("vlan"),
        "ports": get("ports").unwrap_or_default().split_whitespace().collect::<Vec<_>>(),
    })
}

fn info(host: &Host, names: &[String]) -> Result<()> {
    let names = if names.is_empty() { host.system.words("switch_list") } else { names.to_vec() };
    let net = Net::default();
    let mut values = Vec::new();
    for name in names {
        let switch = Switch::of(host, &name)?;
        let id = switch.id();
        let bridge = id.as_deref().filter(|_| matches!(switch.kind, Kind::Standard | Kind::Manual));
        let bytes = bridge.and_then(|bridge| net.bytes(bridge));
        let end = format!("/{name}");
        let ports: Vec<_> = net.ports().into_iter().filter(|(_, port)| port.ends_with(&end)).collect();
        let guest = |port: &str| port.split('/').nth(1).unwrap_or("-").to_owned();
        if host.json {
            let mut value = describe(&switch);
            value["bytes_in"] = json!(bytes.map(|(read, _)| read));
            value["bytes_out"] = json!(bytes.map(|(_, wrote)| wrote));
            value["virtual_ports"] =
                ports.iter().map(|(tap, port)| json!({ "device": tap, "vm": guest(port) })).collect();
            values.push(value);
            continue;
        }
        let line = "-".repeat(24);
        println!("{line}\nVirtual Switch: {name}\n{line}");
        println!("  type: {}", switch.kind.name());
        println!("  ident: {}", id.as_deref().unwrap_or("-"));
        println!("  vlan: {}", switch.get("vlan").unwrap_or("-"));
        println!("  physical-ports: {}", switch.get("ports").unwrap_or("-"));
        if let Some((read, wrote)) = bytes {
            println!("  bytes-in: {read} ({})", util::human(read, 3, 0));
            println!("  bytes-out: {wrote} ({})", util::human(wrote, 3, 0));
        }
        for (tap, port) in &ports {
            println!("\n  virtual-port\n    device: {tap}\n    vm: {}", guest(port));
        }
        println!();
    }
    if host.json {
        println!("{}", Value::from(values));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_vlans_and_interfaces_are_checked() {
        for good in ["192.0.2.1/24", "3fff::1/64", "10.0.0.1/32"] {
            check_address(good).unwrap();
        }
        for bad in ["192.0.2.1", "192.0.2.1/33", "300.0.0.1/8", "x/24", "1.2.3.4/24 up"] {
            assert!(check_address(bad).is_err(), "{bad}");
        }
        assert!(check_vlan("0").is_ok() && check_vlan("4094").is_ok() && check_vlan("4095").is_err());
        for bad in ["", "em0 destroy", "-a", "a/b", "interface-of-many-letters"] {
            assert!(interface(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn kinds_have_the_names_of_the_settings() {
        assert_eq!(Kind::parse("").unwrap(), Kind::Standard);
        for name in ["standard", "manual", "vale", "netgraph"] {
            assert_eq!(Kind::parse(name).unwrap().name(), name);
        }
        assert!(Kind::parse("vxlan").is_err());
    }
}
