//! DHCP for IPv4: the guest's address, and what it may boot from the network.

use std::net::Ipv4Addr;

use smoltcp::wire::{DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr, EthernetAddress};

use super::link::{Link, MTU, Mac};

pub(super) const SERVER: u16 = 67;
const CLIENT: u16 = 68;
/// Seconds. The guest's address is its own for as long as the machine runs.
const LEASE: u32 = 86400;
/// Clients of one network: guests that bridge machines of their own to the cable.
const CLIENTS: usize = 64;
const TFTP_SERVER: u8 = 66;
const BOOT_FILE: u8 = 67;
/// Where the header has the file's name, and its room there.
const FILE: std::ops::Range<usize> = 108..236;
/// The shortest message that a BOOTP client of old takes.
const LEAST: usize = 300;

/// The server.
#[derive(Default)]
pub(super) struct Dhcp {
    /// Who has asked, in the order of their addresses.
    clients: Vec<Mac>,
}

impl Dhcp {
    fn address(&mut self, link: &Link, mac: Mac) -> Option<Ipv4Addr> {
        let known = self.clients.iter().position(|client| *client == mac);
        let place = known.or_else(|| (self.clients.len() < CLIENTS).then_some(self.clients.len()))?;
        let address = link.addresses.guest4(place)?;
        if known.is_none() {
            self.clients.push(mac);
        }
        Some(address)
    }

    /// A message to the server's port.
    pub fn input(&mut self, link: &mut Link, bootfile: Option<&str>, from: Ipv4Addr, message: &[u8]) {
        let Ok(packet) = DhcpPacket::new_checked(message) else { return };
        let Ok(asked) = DhcpRepr::parse(&packet) else { return };
        let EthernetAddress(mac) = asked.client_hardware_address;
        let gateway = link.addresses.gateway4();
        let Some(address) = self.address(link, mac) else { return };
        let (kind, address) = match asked.message_type {
            DhcpMessageType::Discover => (DhcpMessageType::Offer, address),
            DhcpMessageType::Request => {
                if asked.server_identifier.is_some_and(|server| server != gateway) {
                    return;
                }
                // Who renews names its address in the header.
                let wanted = asked.requested_ip.unwrap_or(asked.client_ip);
                if wanted == address {
                    (DhcpMessageType::Ack, address)
                } else {
                    (DhcpMessageType::Nak, Ipv4Addr::UNSPECIFIED)
                }
            }
            DhcpMessageType::Inform => (DhcpMessageType::Ack, Ipv4Addr::UNSPECIFIED),
            _ => return,
        };
        let refused = kind == DhcpMessageType::Nak;
        let inform = asked.message_type == DhcpMessageType::Inform;
        let leased = (!refused && !inform).then_some(LEASE);
        let server = gateway.to_string();
        let boot = [
            DhcpOption { kind: TFTP_SERVER, data: server.as_bytes() },
            DhcpOption { kind: BOOT_FILE, data: bootfile.unwrap_or_default().as_bytes() },
        ];
        let boot = if bootfile.is_some() && !refused { &boot[..] } else { &[] };
        let reply = DhcpRepr {
            message_type: kind,
            transaction_id: asked.transaction_id,
            secs: 0,
            client_hardware_address: asked.client_hardware_address,
            client_ip: asked.client_ip,
            your_ip: address,
            server_ip: if refused { Ipv4Addr::UNSPECIFIED } else { gateway },
            router: (!refused).then_some(gateway),
            subnet_mask: (!refused).then_some(link.addresses.mask4()),
            relay_agent_ip: Ipv4Addr::UNSPECIFIED,
            broadcast: asked.broadcast,
            requested_ip: None,
            client_identifier: asked.client_identifier,
            server_identifier: Some(gateway),
            parameter_request_list: None,
            dns_servers: (!refused).then(|| [link.addresses.dns4()].into_iter().collect()),
            max_size: None,
            lease_duration: leased,
            renew_duration: leased.map(|lease| lease / 2),
            rebind_duration: leased.map(|lease| lease / 8 * 7),
            additional_options: boot,
        };
        let mut message = vec![0; reply.buffer_len().max(LEAST)];
        if message.len() > MTU - 28 || reply.emit(&mut DhcpPacket::new_unchecked(&mut message[..])).is_err() {
            return;
        }
        if let Some(file) = bootfile.filter(|_| !refused) {
            // Options have room for the whole of a name that is longer.
            let len = file.len().min(FILE.len() - 1);
            message[FILE][..len].copy_from_slice(&file.as_bytes()[..len]);
        }
        // Whoever has no address yet may not hear what is sent to it, and gets it by its Ethernet address only if it
        // does not ask for more.
        let to = match () {
            _ if !from.is_unspecified() && !refused => from,
            _ if asked.broadcast || refused || address.is_unspecified() => Ipv4Addr::BROADCAST,
            _ => {
                link.learn(address.into(), mac);
                address
            }
        };
        link.udp((gateway, SERVER).into(), (to, CLIENT).into(), &message);
    }
}
