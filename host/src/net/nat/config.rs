//! What a configuration says of a NAT, and the addresses that follow from it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// The router's address on the cable, for which no prefix is needed.
pub(super) const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
/// Prefixes that a router advertisement has room for.
const PREFIXES: usize = 16;
/// The gateway's place in the network, the name server's, and that of the first guest.
const GATEWAY: u32 = 2;
const DNS: u32 = 3;
const GUEST: u32 = 15;

/// A NAT as it is configured.
#[derive(Clone, Debug)]
pub struct Config {
    /// Addresses on the cable.
    pub addresses: Addresses,
    /// Name servers; of the host if there are none.
    pub resolvers: Vec<SocketAddr>,
    /// Whether the gateway's address leads to the host's loopback.
    pub host_loopback: bool,
    /// Whether the guest reaches anything but the NAT itself.
    pub outbound: bool,
    /// Ports of the host that lead to the guest.
    pub forwards: Vec<Forward>,
    /// The directory that TFTP reads from.
    pub tftp: Option<PathBuf>,
    /// The file that DHCP names to who boots from the network.
    pub bootfile: Option<String>,
}

impl Config {
    /// One that leads outside, but not to the host's loopback, and has nothing else.
    pub fn new(addresses: Addresses) -> Config {
        Config {
            addresses,
            resolvers: Vec::new(),
            host_loopback: false,
            outbound: true,
            forwards: Vec::new(),
            tftp: None,
            bootfile: None,
        }
    }
}

/// The addresses of a NAT's network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    network: Ipv4Addr,
    length: u32,
    prefixes: Vec<Ipv6Addr>,
}

/// What stands behind an address, as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behind {
    /// The gateway itself.
    Gateway,
    /// The name server.
    Dns,
    /// A host beyond the gateway.
    Outside,
    /// Nobody: an address of the cable, or one that does not leave a host.
    Nobody,
}

impl Addresses {
    /// Of an IPv4 network, `10.0.2.0/24`, and IPv6 prefixes, `fd00::/64`.
    ///
    /// # Errors
    /// When one of these is not what its name says, or has no room.
    pub fn new(network: &str, prefixes: &[String]) -> Result<Addresses> {
        let parts = network.split_once('/').and_then(|(a, len)| Some((a.parse().ok()?, len.parse().ok()?)));
        let (network, length): (Ipv4Addr, u32) = match parts {
            Some((network, length @ 8..=27)) => (network, length),
            _ => {
                bail!("{network:?} is no network; allowed: ADDRESS/LENGTH with a length of 8 to 27, as in 10.0.2.0/24")
            }
        };
        let rest = u32::MAX >> length;
        ensure!(
            network.to_bits() & rest == 0,
            "{network}/{length} is an address in the network {}/{length}",
            Ipv4Addr::from_bits(network.to_bits() & !rest)
        );
        ensure!(
            can_leave(network.into()) && network.octets()[0] != 0,
            "{network}/{length} cannot be a guest's network"
        );
        ensure!(prefixes.len() <= PREFIXES, "{} prefixes; allowed: {PREFIXES} at most", prefixes.len());
        let prefixes = prefixes.iter().map(|text| prefix(text)).collect::<Result<Vec<_>>>()?;
        if let Some(twice) = prefixes.iter().enumerate().find(|(n, p)| prefixes[..*n].contains(p)) {
            bail!("{}/64 is there twice", twice.1);
        }
        Ok(Addresses { network, length, prefixes })
    }

    fn at(&self, place: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() | place)
    }

    pub(super) fn gateway4(&self) -> Ipv4Addr {
        self.at(GATEWAY)
    }

    pub(super) fn dns4(&self) -> Ipv4Addr {
        self.at(DNS)
    }

    pub(super) fn broadcast4(&self) -> Ipv4Addr {
        self.at(u32::MAX >> self.length)
    }

    pub(super) fn mask4(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(!(u32::MAX >> self.length))
    }

    /// The address of the guest's `n`th card or machine.
    pub(super) fn guest4(&self, n: usize) -> Option<Ipv4Addr> {
        let last = (u32::MAX >> self.length) - 1;
        u32::try_from(n).ok().and_then(|n| n.checked_add(GUEST)).filter(|place| *place <= last).map(|n| self.at(n))
    }

    fn on_link4(&self, address: Ipv4Addr) -> bool {
        (address & self.mask4()) == self.network
    }

    pub(super) fn prefixes(&self) -> &[Ipv6Addr] {
        &self.prefixes
    }

    pub(super) fn gateway6(&self, prefix: Ipv6Addr) -> Ipv6Addr {
        Ipv6Addr::from_bits(prefix.to_bits() | u128::from(GATEWAY))
    }

    pub(super) fn dns6(&self) -> Option<Ipv6Addr> {
        self.prefixes.first().map(|prefix| Ipv6Addr::from_bits(prefix.to_bits() | u128::from(DNS)))
    }

    pub(super) fn prefix_of(&self, address: Ipv6Addr) -> Option<Ipv6Addr> {
        self.prefixes.iter().copied().find(|prefix| prefix.to_bits() >> 64 == address.to_bits() >> 64)
    }

    /// Whether a guest may have an address.
    pub(super) fn is_guests(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(a) => self.on_link4(a) && a != self.network && a != self.broadcast4() && !self.is_ours(address),
            IpAddr::V6(a) => (self.prefix_of(a).is_some() || a.is_unicast_link_local()) && !self.is_ours(address),
        }
    }

    /// Whether an address is one of the NAT's own.
    pub(super) fn is_ours(&self, address: IpAddr) -> bool {
        matches!(self.behind(address), Behind::Gateway | Behind::Dns)
    }

    pub(super) fn behind(&self, address: IpAddr) -> Behind {
        match address {
            IpAddr::V4(a) if a == self.gateway4() => Behind::Gateway,
            IpAddr::V4(a) if a == self.dns4() => Behind::Dns,
            IpAddr::V4(a) if self.on_link4(a) => Behind::Nobody,
            IpAddr::V6(_) if self.prefixes.is_empty() => Behind::Nobody,
            IpAddr::V6(ROUTER) => Behind::Gateway,
            IpAddr::V6(a) if a.is_unicast_link_local() => Behind::Nobody,
            IpAddr::V6(a) if self.dns6() == Some(a) => Behind::Dns,
            IpAddr::V6(a) => match self.prefix_of(a) {
                Some(prefix) if self.gateway6(prefix) == a => Behind::Gateway,
                Some(_) => Behind::Nobody,
                None if can_leave(address) => Behind::Outside,
                None => Behind::Nobody,
            },
            IpAddr::V4(_) if can_leave(address) => Behind::Outside,
            IpAddr::V4(_) => Behind::Nobody,
        }
    }
}

fn prefix(text: &str) -> Result<Ipv6Addr> {
    let address = text.strip_suffix("/64").and_then(|address| address.parse::<Ipv6Addr>().ok());
    let address = address.with_context(|| format!("{text:?} is no prefix; allowed: ADDRESS/64, as in fd00::/64"))?;
    ensure!(address.to_bits() << 64 == 0, "{text} is an address; of a prefix the last 64 bits are 0");
    ensure!(
        can_leave(address.into()) && !address.is_unicast_link_local(),
        "{text} cannot be a prefix of guests' addresses"
    );
    Ok(address)
}

/// Whether packets to an address may leave a host: it is one host's, and not this one's loopback.
pub(super) fn can_leave(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => !(a.is_loopback() || a.octets()[0] == 0 || a.is_multicast() || a.octets()[0] >= 240),
        // A mapped address would be one of IPv4 after all.
        IpAddr::V6(a) => !(a.is_loopback() || a.is_unspecified() || a.is_multicast() || a.to_ipv4_mapped().is_some()),
    }
}

/// A protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

/// A port of the host that leads to the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Which of the ports of that number.
    pub protocol: Protocol,
    /// Where the host listens.
    pub host: SocketAddr,
    /// The guest's port.
    pub guest: u16,
}

impl Forward {
    /// Reads `PROTOCOL:[ADDRESS:]PORT:GUESTPORT`. Without an address it is 127.0.0.1, `*` is all of IPv4's, and those of
    /// IPv6 are in brackets.
    ///
    /// # Errors
    /// Any other text.
    pub fn parse(text: &str) -> Result<Forward> {
        Forward::read(text).with_context(|| {
            format!(
                "{text:?} is no forward; allowed: PROTOCOL:[ADDRESS:]PORT:GUESTPORT, as in tcp:127.0.0.1:2222:22, \
                 udp:*:53:53 or tcp:[::1]:2222:22, ports 1 to 65535"
            )
        })
    }

    fn read(text: &str) -> Option<Forward> {
        let port = |text: &str| text.parse().ok().filter(|port| *port != 0);
        let (protocol, rest) = text.split_once(':')?;
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return None,
        };
        let (rest, guest) = rest.rsplit_once(':')?;
        let (address, host) = match rest.rsplit_once(':') {
            None => (Ipv4Addr::LOCALHOST.into(), rest),
            Some(("*", host)) => (Ipv4Addr::UNSPECIFIED.into(), host),
            Some((address, host)) => (
                match address.strip_prefix('[').and_then(|a| a.strip_suffix(']')) {
                    Some(v6) => IpAddr::V6(v6.parse().ok()?),
                    None => IpAddr::V4(address.parse().ok()?),
                },
                host,
            ),
        };
        Some(Forward { protocol, host: SocketAddr::new(address, port(host)?), guest: port(guest)? })
    }
}

impl std::fmt::Display for Forward {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        write!(f, "{protocol}:{}:{}", self.host, self.guest)
    }
}

/// A name server: an address, with a port if it is not 53.
///
/// # Errors
/// When it is none.
pub fn resolver(text: &str) -> Result<SocketAddr> {
    let plain = text.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, 53));
    plain.or_else(|| text.parse().ok()).filter(|at| at.port() != 0).with_context(|| {
        format!("{text:?} is no name server; allowed: ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT, as in 192.0.2.53")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwards_are_read_with_and_without_an_address() {
        let read = |text: &str| Forward::parse(text).unwrap().to_string();
        assert_eq!(read("tcp:2222:22"), "tcp:127.0.0.1:2222:22");
        assert_eq!(read("udp:*:53:5353"), "udp:0.0.0.0:53:5353");
        assert_eq!(read("tcp:192.0.2.1:80:8080"), "tcp:192.0.2.1:80:8080");
        assert_eq!(read("tcp:[::1]:80:8080"), "tcp:[::1]:80:8080");
        for wrong in [
            "",
            "tcp",
            "tcp:22",
            "sctp:1:1",
            "tcp:0:22",
            "tcp:1:0",
            "tcp:1:65536",
            "tcp:::1:1:1",
            "tcp:host:1:1",
            "tcp::1:1",
        ] {
            let error = Forward::parse(wrong).unwrap_err().to_string();
            assert!(error.contains("allowed: PROTOCOL:[ADDRESS:]PORT:GUESTPORT"), "{wrong}: {error}");
        }
    }

    #[test]
    fn networks_have_room_for_gateway_name_server_and_guest() {
        let net = Addresses::new("192.0.2.64/27", &["fd12::/64".to_owned()]).unwrap();
        assert_eq!(net.gateway4().to_string(), "192.0.2.66");
        assert_eq!(net.guest4(0).unwrap().to_string(), "192.0.2.79");
        assert_eq!(net.guest4(15).unwrap().to_string(), "192.0.2.94");
        assert_eq!(net.guest4(16), None, "that is the broadcast address");
        assert_eq!(net.mask4().to_string(), "255.255.255.224");
        for wrong in
            ["10.0.2.0", "10.0.2.0/28", "10.0.2.1/24", "127.0.0.0/8", "224.0.0.0/8", "0.0.0.0/8", "x/24", "::/64"]
        {
            assert!(Addresses::new(wrong, &[]).is_err(), "{wrong}");
        }
        for wrong in ["fd00::", "fd00::/48", "fd00::1/64", "fe80::/64", "ff00::/64", "::/64", "10.0.0.0/64"] {
            assert!(Addresses::new("10.0.2.0/24", &[wrong.to_owned()]).is_err(), "{wrong}");
        }
        assert!(Addresses::new("10.0.2.0/24", &["fd00::/64".to_owned(), "fd00:0::/64".to_owned()]).is_err());
    }

    #[test]
    fn loopback_multicast_and_strangers_on_the_cable_are_nobody() {
        let net = Addresses::new("10.0.2.0/24", &["fd00::/64".to_owned(), "fd01::/64".to_owned()]).unwrap();
        let behind = |address: &str| net.behind(address.parse().unwrap());
        for gateway in ["10.0.2.2", "fe80::2", "fd00::2", "fd01::2"] {
            assert_eq!(behind(gateway), Behind::Gateway, "{gateway}");
        }
        for dns in ["10.0.2.3", "fd00::3"] {
            assert_eq!(behind(dns), Behind::Dns, "{dns}");
        }
        for outside in ["192.0.2.1", "10.0.3.2", "2001:db8::1", "fd02::2"] {
            assert_eq!(behind(outside), Behind::Outside, "{outside}");
        }
        for nobody in [
            "10.0.2.15",
            "10.0.2.255",
            "127.0.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "ff02::1",
            "fe80::3",
            "fd01::3",
        ] {
            assert_eq!(behind(nobody), Behind::Nobody, "{nobody}");
        }
    }

    #[test]
    fn name_servers_may_have_a_port() {
        assert_eq!(resolver("192.0.2.1").unwrap().to_string(), "192.0.2.1:53");
        assert_eq!(resolver("127.0.0.1:5353").unwrap().to_string(), "127.0.0.1:5353");
        assert_eq!(resolver("2001:db8::1").unwrap().to_string(), "[2001:db8::1]:53");
        assert_eq!(resolver("[::1]:5353").unwrap().to_string(), "[::1]:5353");
        assert!(resolver("dns.example").is_err() && resolver("1.2.3.4:0").is_err());
    }
}
