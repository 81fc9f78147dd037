//! How the guest gets its addresses, and who is who on the cable.

use smoltcp::socket::dhcpv4;
use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr};

use super::super::{neighbors, router6};
use super::*;

/// An Ethernet frame of the guest's.
pub(in super::super) fn frame(to: [u8; 6], kind: u16, packet: &[u8]) -> Vec<u8> {
    [&to[..], &MAC, &kind.to_be_bytes(), packet].concat()
}

#[test]
fn a_guest_gets_its_address_its_gateway_and_a_name_server() {
    let mut guest = Guest::new(Config { bootfile: Some("pxelinux.0".to_owned()), ..config() });
    guest.interface.update_ip_addrs(|all| all.clear());
    guest.interface.routes_mut().remove_default_ipv4_route();
    let mut socket = dhcpv4::Socket::new();
    socket.set_outgoing_options(&[]);
    let handle = guest.sockets.add(socket);
    let lease = guest.until("a lease", |guest| match guest.sockets.get_mut::<dhcpv4::Socket>(handle).poll() {
        Some(dhcpv4::Event::Configured(lease)) => Some((lease.address, lease.router, lease.dns_servers, lease.server)),
        _ => None,
    });
    let (address, router, dns, server) = lease;
    assert_eq!(address.to_string(), "10.0.2.15/24");
    assert_eq!(router.unwrap().to_string(), "10.0.2.2");
    assert_eq!(dns[0].to_string(), "10.0.2.3");
    assert_eq!(server.address.to_string(), "10.0.2.2");
}

#[test]
fn only_our_own_addresses_are_answered_for() {
    let mut cable = Cable::new(config());
    let IpAddr::V4(guest) = GUEST else { unreachable!() };
    for (n, mine) in [(2, true), (3, true), (4, false), (15, false), (255, false)] {
        let wanted = Ipv4Addr::new(10, 0, 2, n);
        cable.send(&frame([0xff; 6], 0x806, &neighbors::arp(1, MAC, guest, [0; 6], wanted)));
        cable.turn();
        let answers: Vec<_> = cable.to_guest.drain(..).collect();
        assert_eq!(answers.len(), usize::from(mine), "{wanted}");
        for answer in answers {
            assert_eq!(answer[..6], MAC);
            let packet = ArpPacket::new_checked(&answer[14..]).unwrap();
            let ArpRepr::EthernetIpv4 { operation, source_protocol_addr, .. } = ArpRepr::parse(&packet).unwrap() else {
                panic!("not of IPv4")
            };
            assert_eq!((operation, source_protocol_addr), (ArpOperation::Reply, wanted));
        }
    }
}

#[test]
fn every_prefix_is_advertised_with_a_name_server() {
    let prefixes = ["fd00:0:0:2::/64", "fd01::/64", "2001:db8:1:2::/64", "fd02::/64"].map(str::to_owned);
    let addresses = Addresses::new("10.0.2.0/24", &prefixes).unwrap();
    let mut cable = Cable::new(Config { addresses, ..config() });
    cable.send(&icmp6(Ipv6Addr::UNSPECIFIED, ALL_ROUTERS, vec![router6::SOLICITATION, 0, 0, 0, 0, 0, 0, 0]));
    let message = cable.until("advertisement", |frame| (frame[12..14] == [0x86, 0xdd]).then(|| frame[54..].to_vec()));
    assert_eq!((message[0], message[5]), (134, 0x40));
    let (mut found, mut dns, mut options) = (Vec::new(), 0, &message[16..]);
    while let [kind, units, ..] = *options {
        let (option, rest) = options.split_at(usize::from(units) * 8);
        match kind {
            3 => {
                assert_eq!(option[2..4], [64, 0xc0]);
                found.push(format!("{}/64", Ipv6Addr::from(<[u8; 16]>::try_from(&option[16..32]).unwrap())));
            }
            25 => dns += 1,
            _ => {}
        }
        options = rest;
    }
    assert_eq!((found, dns), (prefixes.to_vec(), 1));
}

const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// A frame with an ICMPv6 message of the guest's.
fn icmp6(from: Ipv6Addr, to: Ipv6Addr, mut message: Vec<u8>) -> Vec<u8> {
    let sum = super::super::link::sum(from.into(), to.into(), smoltcp::wire::IpProtocol::Icmpv6, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut packet = vec![0x60, 0, 0, 0, 0, message.len() as u8, 58, 255];
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(message);
    frame([0x33, 0x33, 0, 0, 0, 1], 0x86dd, &packet)
}

#[test]
fn stateless_dhcp_says_where_names_and_files_are() {
    let mut cable = Cable::new(Config { bootfile: Some("boot.efi".to_owned()), ..config() });
    let from: SocketAddr = "[fe80::15]:546".parse().unwrap();
    let IpAddr::V6(guest) = from.ip() else { unreachable!() };
    // Information-request 010203, client identifier, boot file URL wanted.
    let message = [11, 1, 2, 3, 0, 1, 0, 4, 9, 8, 7, 6, 0, 6, 0, 4, 0, 23, 0, 59];
    let mut link = super::super::link::Link::new(config().addresses);
    link.mac = MAC;
    link.udp(from, SocketAddr::new(router6::DHCP_SERVERS.into(), 547), &message);
    cable.send(&link.pop().unwrap());
    // It asks where the guest is before it answers.
    let reply = cable.until("solicitation or reply", |frame| Some(frame.to_vec()));
    let reply = if reply[54] == 135 {
        let mut answer = neighbors::solicitation(guest, MAC);
        (answer[0], answer[24]) = (136, 2);
        cable.send(&icmp6(guest, "fe80::2".parse().unwrap(), answer));
        cable.until("reply", |frame| Some(frame.to_vec()))
    } else {
        reply
    };
    let reply = &reply[62..];
    assert_eq!(reply[..12], [7, 1, 2, 3, 0, 1, 0, 4, 9, 8, 7, 6]);
    let text = String::from_utf8_lossy(reply);
    assert!(text.contains("tftp://[fd00:0:0:2::2]/boot.efi"), "{text:?}");
}
