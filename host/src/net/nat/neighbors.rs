//! ARP and neighbour discovery: the guest asks where we are, and we where it is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress};

use super::config::Behind;
use super::link::{ARP, Link, Mac};

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const SOURCE_ADDRESS: u8 = 1;
const TARGET_ADDRESS: u8 = 2;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// An ARP packet; `operation` 1 is a request.
pub(super) fn arp(operation: u16, from: Mac, from_ip: Ipv4Addr, to: Mac, to_ip: Ipv4Addr) -> Vec<u8> {
    let repr = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::from(operation),
        source_hardware_addr: EthernetAddress(from),
        source_protocol_addr: from_ip,
        target_hardware_addr: EthernetAddress(to),
        target_protocol_addr: to_ip,
    };
    let mut packet = vec![0; repr.buffer_len()];
    repr.emit(&mut ArpPacket::new_unchecked(&mut packet[..]));
    packet
}

/// The guest has sent ARP.
pub(super) fn arp_input(link: &mut Link, packet: &[u8]) {
    let Ok(packet) = ArpPacket::new_checked(packet) else { return };
    let Ok(ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr: EthernetAddress(mac),
        source_protocol_addr: from,
        target_protocol_addr: wanted,
        ..
    }) = ArpRepr::parse(&packet)
    else {
        return;
    };
    let addresses = &link.addresses;
    if addresses.is_guests(from.into()) {
        link.learn(from.into(), mac);
    } else if !from.is_unspecified() {
        return;
    }
    if operation == ArpOperation::Request && link.addresses.is_ours(wanted.into()) {
        let reply = arp(2, link.mac, wanted, mac, from);
        link.frame_to(mac, ARP, &reply);
    }
}

/// The group that the owner of an address listens to.
pub(super) fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(0xff02_0000_0000_0000_0000_0001_ff00_0000 | address.to_bits() & 0xff_ffff)
}

/// Asks where `address` is.
pub(super) fn solicitation(address: Ipv6Addr, our: Mac) -> Vec<u8> {
    message(SOLICITATION, 0, address, SOURCE_ADDRESS, our)
}

fn message(kind: u8, flags: u8, target: Ipv6Addr, option: u8, mac: Mac) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, flags, 0, 0, 0];
    message.extend(target.octets());
    message.extend([option, 1]);
    message.extend(mac);
    message
}

/// The address in an option of a neighbour message.
fn address_in(mut options: &[u8], wanted: u8) -> Option<Mac> {
    while let [kind, units, ..] = *options {
        let option = options.get(..usize::from(units.max(1)) * 8)?;
        if kind == wanted && units == 1 {
            return option[2..8].try_into().ok();
        }
        options = &options[option.len()..];
    }
    None
}

/// The guest has sent a neighbour solicitation or advertisement: an ICMPv6 message whose checksum is right.
pub(super) fn ndp_input(link: &mut Link, from: Ipv6Addr, hops: u8, source: Mac, message: &[u8]) {
    // From beyond a router nobody has a say in this.
    let Some((fixed, options)) = message.split_at_checked(24).filter(|_| hops == 255) else { return };
    let target = Ipv6Addr::from(<[u8; 16]>::try_from(&fixed[8..24]).expect("16 bytes"));
    match fixed[0] {
        SOLICITATION => {
            if !matches!(link.addresses.behind(target.into()), Behind::Gateway | Behind::Dns) {
                return;
            }
            // Without an address of its own the guest looks whether anybody has this one.
            let probe = from.is_unspecified();
            let mac = address_in(options, SOURCE_ADDRESS).unwrap_or(source);
            if !probe {
                link.learn(from.into(), mac);
            }
            let flags = if probe { 0x80 | 0x20 } else { 0x80 | 0x40 | 0x20 };
            let answer = self::message(ADVERTISEMENT, flags, target, TARGET_ADDRESS, link.mac);
            link.icmp(target.into(), IpAddr::V6(if probe { ALL_NODES } else { from }), answer);
        }
        ADVERTISEMENT if link.addresses.is_guests(target.into()) => {
            link.learn(target.into(), address_in(options, TARGET_ADDRESS).unwrap_or(source));
        }
        _ => {}
    }
}
