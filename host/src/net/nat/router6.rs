//! Router advertisements, and stateless DHCP for IPv6: from both the guest has all but its address, which it makes of a
//! prefix.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use super::config::ROUTER;
use super::link::{Link, MTU};

pub(super) const SOLICITATION: u8 = 133;
const ADVERTISEMENT: u8 = 134;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// How long a guest believes one, and how often it hears one unasked, which a machine that was restored needs.
const LIFETIME: u16 = 1800;
const PERIOD: Duration = Duration::from_secs(600);
const PREFIX_VALID: u32 = 86400;
const PREFIX_PREFERRED: u32 = 14400;
/// Other things than addresses are known by DHCP.
const OTHER: u8 = 0x40;

pub(super) const DHCP_SERVER: u16 = 547;
pub(super) const DHCP_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
const INFORMATION_REQUEST: u8 = 11;
const REPLY: u8 = 7;
const CLIENT_ID: u16 = 1;
const SERVER_ID: u16 = 2;
const OPTION_REQUEST: u16 = 6;
const DNS_SERVERS: u16 = 23;
const BOOT_FILE_URL: u16 = 59;
/// Longest identifier of a client.
const ID: usize = 130;

/// The router's voice.
#[derive(Default)]
pub(super) struct Router {
    next: Option<Instant>,
}

impl Router {
    /// When it wants to be heard again.
    pub fn deadline(&self) -> Option<Instant> {
        self.next
    }

    /// Speaks when it is time, and for the first time when the guest has been heard.
    pub fn tick(&mut self, link: &mut Link, now: Instant) {
        if self.next.is_some_and(|next| next <= now) {
            self.advertise(link, now);
        }
    }

    /// Sends an advertisement to all.
    pub fn advertise(&mut self, link: &mut Link, now: Instant) {
        if link.addresses.prefixes().is_empty() {
            return;
        }
        self.next = Some(now + PERIOD);
        let mut message = vec![ADVERTISEMENT, 0, 0, 0, 64, OTHER];
        message.extend(LIFETIME.to_be_bytes());
        message.extend([0; 8]);
        message.extend([1, 1]);
        message.extend(link.mac);
        message.extend([5, 1, 0, 0]);
        message.extend((MTU as u32).to_be_bytes());
        for prefix in link.addresses.prefixes() {
            // On this cable, and good to make addresses of.
            message.extend([3, 4, 64, 0xc0]);
            message.extend(PREFIX_VALID.to_be_bytes());
            message.extend(PREFIX_PREFERRED.to_be_bytes());
            message.extend([0; 4]);
            message.extend(prefix.octets());
        }
        if let Some(dns) = link.addresses.dns6() {
            message.extend([25, 3, 0, 0]);
            message.extend(u32::from(LIFETIME).to_be_bytes());
            message.extend(dns.octets());
        }
        link.icmp(ROUTER.into(), ALL_NODES.into(), message);
    }
}

/// An option of DHCPv6.
fn option(message: &mut Vec<u8>, code: u16, data: &[u8]) {
    message.extend(code.to_be_bytes());
    message.extend((data.len() as u16).to_be_bytes());
    message.extend(data);
}

/// The option `wanted` of a message.
fn option_in(mut options: &[u8], wanted: u16) -> Option<&[u8]> {
    while let [c1, c0, l1, l0, rest @ ..] = options {
        let data = rest.get(..usize::from(u16::from_be_bytes([*l1, *l0])))?;
        if u16::from_be_bytes([*c1, *c0]) == wanted {
            return Some(data);
        }
        options = &rest[data.len()..];
    }
    None
}

/// A message to the port of DHCPv6 servers.
pub(super) fn dhcp_input(link: &mut Link, bootfile: Option<&str>, from: SocketAddr, message: &[u8]) {
    let [INFORMATION_REQUEST, x2, x1, x0, options @ ..] = message else { return };
    // A DUID of the Ethernet address.
    let mut us = vec![0, 3, 0, 1];
    us.extend(link.mac);
    if option_in(options, SERVER_ID).is_some_and(|server| server != us) {
        return;
    }
    let mut reply = vec![REPLY, *x2, *x1, *x0];
    if let Some(id) = option_in(options, CLIENT_ID).filter(|id| id.len() <= ID) {
        option(&mut reply, CLIENT_ID, id);
    }
    option(&mut reply, SERVER_ID, &us);
    if let Some(dns) = link.addresses.dns6() {
        option(&mut reply, DNS_SERVERS, &dns.octets());
    }
    let wanted = option_in(options, OPTION_REQUEST).unwrap_or_default();
    let wants_file = wanted.chunks_exact(2).any(|code| code == BOOT_FILE_URL.to_be_bytes());
    if let Some((file, prefix)) = bootfile.filter(|_| wants_file).zip(link.addresses.prefixes().first()) {
        let url = format!("tftp://[{}]/{file}", link.addresses.gateway6(*prefix));
        option(&mut reply, BOOT_FILE_URL, url.as_bytes());
    }
    link.udp((ROUTER, DHCP_SERVER).into(), from, &reply);
}
