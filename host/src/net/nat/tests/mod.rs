//! The NAT from the guest's side of the cable, and against real servers on the host's loopback.
//!
//! The guest is smoltcp, or frames by hand where a guest does what no stack would.

mod datagrams;
mod dhcp;
mod hostile;
mod streams;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use smoltcp::iface::{Config as InterfaceConfig, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr};

use super::engine::Engine;
use super::{Addresses, Config, Forward, Nat};

/// Longest that anything here may take.
pub(super) const SOON: Duration = Duration::from_secs(60);
pub(super) const MAC: [u8; 6] = [0x00, 0xa0, 0x98, 1, 2, 3];
pub(super) const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 2));
pub(super) const GUEST: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 15));
pub(super) const GATEWAY6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 2, 0, 0, 0, 2));
pub(super) const GUEST6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 2, 0, 0, 0, 0x15));

/// What the tests are about by default: the host's loopback can be reached.
pub(super) fn config() -> Config {
    let addresses = Addresses::new("10.0.2.0/24", &["fd00:0:0:2::/64".to_owned()]).unwrap();
    Config { host_loopback: true, ..Config::new(addresses) }
}

/// A NAT, and the frames on its cable.
pub(super) struct Cable {
    pub engine: Engine,
    pub to_guest: VecDeque<Vec<u8>>,
    /// What the guest is to get is left with the NAT.
    pub full: bool,
}

impl Cable {
    pub fn new(config: Config) -> Cable {
        let nat = Nat::open(config).unwrap();
        let engine = Engine::new(&nat.config, nat.listening, Instant::now()).unwrap();
        Cable { engine, to_guest: VecDeque::new(), full: false }
    }

    /// The guest sends a frame.
    pub fn send(&mut self, frame: &[u8]) {
        self.engine.input(frame, Instant::now());
    }

    /// The NAT has a turn, after waiting a little for the host if it has nothing to do.
    pub fn turn(&mut self) {
        if !self.engine.is_busy() && self.to_guest.is_empty() {
            // SAFETY: the engine outlives the call.
            #[expect(unsafe_code, reason = "the descriptor is known by its number")]
            let fd = unsafe { BorrowedFd::borrow_raw(self.engine.fd()) };
            poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::from(1u8)).unwrap();
        }
        self.engine.turn(Instant::now());
        while !self.full
            && let Some(frame) = self.engine.pop()
        {
            self.to_guest.push_back(frame);
        }
    }

    /// The frames for the guest, until one of them is what is looked for.
    pub fn until<T>(&mut self, what: &str, mut wanted: impl FnMut(&[u8]) -> Option<T>) -> T {
        let end = Instant::now() + SOON;
        loop {
            while let Some(frame) = self.to_guest.pop_front() {
                if let Some(found) = wanted(&frame) {
                    return found;
                }
            }
            assert!(Instant::now() < end, "there is no {what}");
            self.turn();
        }
    }
}

pub(super) struct Incoming(Vec<u8>);
pub(super) struct Outgoing<'a>(&'a mut Engine);

impl phy::RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl phy::TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let done = f(&mut frame);
        self.0.input(&frame, Instant::now());
        done
    }
}

impl phy::Device for Cable {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Incoming, Outgoing<'_>)> {
        self.to_guest.pop_front().map(|frame| (Incoming(frame), Outgoing(&mut self.engine)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Outgoing<'_>> {
        Some(Outgoing(&mut self.engine))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

/// A guest with a network stack, which has its addresses already.
pub(super) struct Guest {
    pub cable: Cable,
    pub interface: Interface,
    pub sockets: SocketSet<'static>,
    begun: Instant,
    next_port: u16,
}

impl Guest {
    pub fn new(config: Config) -> Guest {
        let mut cable = Cable::new(config);
        let mac = HardwareAddress::Ethernet(EthernetAddress(MAC));
        let mut interface =
            Interface::new(InterfaceConfig::new(mac), &mut cable, smoltcp::time::Instant::from_micros(0));
        interface.update_ip_addrs(|all| all.extend([IpCidr::new(GUEST.into(), 24), IpCidr::new(GUEST6.into(), 64)]));
        let (IpAddr::V4(gateway), IpAddr::V6(gateway6)) = (GATEWAY, GATEWAY6) else { unreachable!() };
        interface.routes_mut().add_default_ipv4_route(gateway).unwrap();
        interface.routes_mut().add_default_ipv6_route(gateway6).unwrap();
        Guest { cable, interface, sockets: SocketSet::new(Vec::new()), begun: Instant::now(), next_port: 49152 }
    }

    /// Guest and NAT have a turn.
    pub fn turn(&mut self) {
        let time = smoltcp::time::Instant::from_micros(self.begun.elapsed().as_micros() as i64);
        self.interface.poll(time, &mut self.cable, &mut self.sockets);
        self.cable.turn();
    }

    /// Goes on until something is so.
    pub fn until<T>(&mut self, what: &str, mut wanted: impl FnMut(&mut Guest) -> Option<T>) -> T {
        let end = Instant::now() + SOON;
        loop {
            if let Some(found) = wanted(self) {
                return found;
            }
            assert!(Instant::now() < end, "{what}: it does not come to that");
            self.turn();
        }
    }

    /// Begins a connection.
    pub fn connect(&mut self, to: SocketAddr) -> SocketHandle {
        let room = || tcp::SocketBuffer::new(vec![0; 64 << 10]);
        let handle = self.sockets.add(tcp::Socket::new(room(), room()));
        self.next_port = self.next_port.checked_add(1).unwrap_or(49152);
        let socket = self.sockets.get_mut::<tcp::Socket>(handle);
        let to = (IpAddress::from(to.ip()), to.port());
        socket.connect(self.interface.context(), to, self.next_port).unwrap();
        handle
    }

    /// Goes on until a server has come to its end.
    pub fn join<T>(&mut self, server: JoinHandle<T>) -> T {
        self.until("the server's end", |_| server.is_finished().then_some(()));
        server.join().unwrap()
    }

    pub fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Waits until a connection stands, or has been refused.
    pub fn connected(&mut self, handle: SocketHandle) -> bool {
        self.until("a connection", |guest| match guest.tcp(handle).state() {
            tcp::State::Established | tcp::State::CloseWait => Some(true),
            tcp::State::Closed => Some(false),
            _ => None,
        })
    }
}

/// A forward, as it is configured.
pub(super) fn forward(text: &str) -> Forward {
    Forward::parse(text).unwrap()
}
