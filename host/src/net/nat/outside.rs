//! The host's side of the NAT: sockets to the outside, and who may have which.
//!
//! A confined process can connect to nothing, so its sockets come from a thread of the broker, by a channel of the NAT's
//! own: whoever waits there for an image to be opened keeps no connection waiting. The rules are the broker's; the
//! process that runs the guest cannot change them. Nothing here waits: a socket comes before it is connected.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};
use serde::{Deserialize, Serialize};

use super::config::can_leave;
use crate::broker;

/// Requests that the broker had no room for yet.
const QUEUE: usize = 8192;
/// Bytes of a request.
const MOST: usize = 2048;

/// What a NAT may ask for.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Rules {
    /// The host's loopback.
    pub loopback: bool,
    /// Anybody outside.
    pub outbound: bool,
    /// Name servers; those of the host if there are none.
    pub resolvers: Vec<SocketAddr>,
    /// Where datagrams come in.
    pub listeners: Vec<SocketAddr>,
    /// The directory of files for TFTP.
    pub tftp: Option<PathBuf>,
}

/// What a NAT asks for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// A connection.
    Tcp(SocketAddr),
    /// A socket that exchanges datagrams with this one only.
    Udp(SocketAddr),
    /// The same, for who has sent one to this listener.
    Answer(usize, SocketAddr),
    /// A connection to the name server with this number, counted around.
    TcpResolver(usize),
    /// A socket to it.
    UdpResolver(usize),
    /// A socket for echo requests.
    Ping(IpAddr),
    /// A file to read, below the directory for TFTP.
    File(String),
}

impl Rules {
    fn reach(&self, to: IpAddr) -> io::Result<()> {
        let may = if to.is_loopback() { self.loopback } else { self.outbound && can_leave(to) };
        if may { Ok(()) } else { Err(Errno::EACCES.into()) }
    }

    fn resolver(&self, number: usize) -> SocketAddr {
        let from_host;
        let all = match &self.resolvers[..] {
            // Looked at each time: hosts move between networks.
            [] => {
                from_host = resolvers(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
                &from_host
            }
            all => all,
        };
        all[number % all.len()]
    }

    pub fn answer(&self, request: &Request) -> io::Result<OwnedFd> {
        match request {
            Request::Tcp(to) => {
                self.reach(to.ip())?;
                connected(SockType::Stream, *to, None)
            }
            Request::Udp(to) => {
                self.reach(to.ip())?;
                connected(SockType::Datagram, *to, None)
            }
            Request::Answer(listener, peer) => {
                let local = self.listeners.get(*listener).ok_or(Errno::EACCES)?;
                // Who comes from the loopback comes to it; others are who they say, as the listener heard them.
                if peer.ip().is_loopback() && !(local.ip().is_loopback() || local.ip().is_unspecified()) {
                    return Err(Errno::EACCES.into());
                }
                connected(SockType::Datagram, *peer, Some(*local))
            }
            Request::TcpResolver(_) | Request::UdpResolver(_) if !self.outbound => Err(Errno::EACCES.into()),
            Request::TcpResolver(number) => connected(SockType::Stream, self.resolver(*number), None),
            Request::UdpResolver(number) => connected(SockType::Datagram, self.resolver(*number), None),
            Request::Ping(to) => {
                self.reach(*to)?;
                ping(*to)
            }
            Request::File(name) => file(self.tftp.as_deref().ok_or(Errno::EACCES)?, name),
        }
    }
}

/// The name servers of a resolv.conf(5), which without any means the host itself.
fn resolvers(text: &str) -> Vec<SocketAddr> {
    let address = |line: &str| {
        let word = line.strip_prefix("nameserver")?.split_whitespace().next()?;
        if let Some((address, interface)) = word.split_once('%') {
            let index = nix::net::if_::if_nametoindex(interface).ok()?;
            return Some(std::net::SocketAddrV6::new(address.parse().ok()?, 53, 0, index).into());
        }
        Some(SocketAddr::new(word.parse().ok()?, 53))
    };
    let mut all: Vec<SocketAddr> = text.lines().filter_map(|line| address(line.trim_start())).collect();
    if all.is_empty() {
        all.push((Ipv4Addr::LOCALHOST, 53).into());
    }
    all
}

fn family(of: IpAddr) -> AddressFamily {
    if of.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn new_socket(to: IpAddr, kind: SockType, protocol: Option<SockProtocol>) -> io::Result<OwnedFd> {
    Ok(socket(family(to), kind, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, protocol)?)
}

/// The guest has done what Nagle's algorithm would do again; and it is not asked whether its peer still lives.
pub(super) fn prepare(stream: &impl AsFd) -> io::Result<()> {
    setsockopt(stream, sockopt::TcpNoDelay, &true)?;
    Ok(setsockopt(stream, sockopt::KeepAlive, &true)?)
}

/// A socket that is connected, or is being.
fn connected(kind: SockType, to: SocketAddr, local: Option<SocketAddr>) -> io::Result<OwnedFd> {
    let fd = new_socket(to.ip(), kind, None)?;
    if kind == SockType::Stream {
        prepare(&fd)?;
    }
    if let Some(local) = local {
        setsockopt(&fd, sockopt::ReusePort, &true)?;
        bind(fd.as_raw_fd(), &SockaddrStorage::from(local))?;
    }
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(fd),
        Err(e) => Err(e.into()),
    }
}

/// Linux gives such sockets to the groups that the administrator names in net.ipv4.ping_group_range. FreeBSD gives raw
/// ones to root, and the sandbox keeps those to the host that they are connected to.
fn ping(to: IpAddr) -> io::Result<OwnedFd> {
    let kind = if cfg!(target_os = "linux") { SockType::Datagram } else { SockType::Raw };
    let protocol = if to.is_ipv4() { SockProtocol::Icmp } else { SockProtocol::IcmpV6 };
    let fd = new_socket(to, kind, Some(protocol))?;
    connect(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(to, 0)))?;
    Ok(fd)
}

fn file(dir: &Path, name: &str) -> io::Result<OwnedFd> {
    // Some loaders ask with a leading slash, and pxelinux with two in the middle.
    let name = Path::new(name.trim_start_matches('/'));
    if !name.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(Errno::EACCES.into());
    }
    // A link may lead elsewhere in the directory, and nowhere else.
    let path = dir.join(name).canonicalize()?;
    if !path.starts_with(dir) {
        return Err(Errno::EACCES.into());
    }
    if !std::fs::metadata(&path)?.is_file() {
        return Err(ErrorKind::NotFound.into());
    }
    Ok(std::fs::File::open(path)?.into())
}

/// Where sockets come from.
pub(super) enum Dialer {
    /// This process.
    Own(Rules, Vec<(u64, io::Result<OwnedFd>)>),
    /// The broker; and the requests that it has no room for yet.
    Broker {
        channel: OwnedFd,
        queue: VecDeque<Vec<u8>>,
        /// Tickets of requests that found the queue full.
        refused: Vec<u64>,
    },
}

impl Dialer {
    /// Of the broker, if there is one.
    pub fn new(rules: Rules) -> io::Result<Dialer> {
        Ok(match broker::network(&rules)? {
            Some(channel) => Dialer::of(channel),
            None => Dialer::Own(rules, Vec::new()),
        })
    }

    fn of(channel: OwnedFd) -> Dialer {
        Dialer::Broker { channel, queue: VecDeque::new(), refused: Vec::new() }
    }

    /// What becomes readable with answers.
    pub fn channel(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Dialer::Own(..) => None,
            Dialer::Broker { channel, .. } => Some(channel.as_fd()),
        }
    }

    /// Asks. The answer comes under `ticket`.
    pub fn ask(&mut self, ticket: u64, request: &Request) {
        match self {
            Dialer::Own(rules, answers) => answers.push((ticket, rules.answer(request))),
            Dialer::Broker { queue, refused, .. } if queue.len() >= QUEUE => refused.push(ticket),
            Dialer::Broker { queue, .. } => {
                queue.push_back(serde_json::to_vec(&(ticket, request)).expect("numbers and text"));
                self.flush();
            }
        }
    }

    fn flush(&mut self) {
        let Dialer::Broker { channel, queue, .. } = self else { return };
        while let Some(packet) = queue.front() {
            match broker::send(channel.as_fd(), packet, &[]) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS)) => return,
                // Sent, or the broker is gone, and no answer will come.
                _ => {
                    queue.pop_front();
                }
            }
        }
    }

    /// The answers that are there.
    pub fn answers(&mut self) -> Vec<(u64, io::Result<OwnedFd>)> {
        self.flush();
        match self {
            Dialer::Own(_, answers) => std::mem::take(answers),
            Dialer::Broker { channel, refused, .. } => {
                let mut answers: Vec<_> = refused.drain(..).map(|ticket| (ticket, Err(Errno::EAGAIN.into()))).collect();
                // The channel is asked again when there are more.
                while let Some(answer) = receive(channel.as_fd()) {
                    answers.push(answer);
                }
                answers
            }
        }
    }
}

fn receive(channel: BorrowedFd) -> Option<(u64, io::Result<OwnedFd>)> {
    let mut packet = [0; 12];
    let (len, mut fds) = loop {
        match broker::receive(channel, &mut packet) {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => return None,
            Ok(got) => break got,
        }
    };
    if len < packet.len() {
        return None;
    }
    let (ticket, errno) = packet.split_at(8);
    let ticket = u64::from_le_bytes(ticket.try_into().expect("8 of 12"));
    let errno = i32::from_le_bytes(errno.try_into().expect("4 of 12"));
    // A process that has no descriptor left for it gets the answer without it.
    let fd = match errno {
        0 => fds.pop().ok_or_else(|| Errno::EMFILE.into()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    };
    Some((ticket, fd))
}

/// The broker's side of the channel.
pub(crate) fn serve(channel: &OwnedFd, rules: &Rules) {
    let mut packet = [0; MOST];
    loop {
        let len = match broker::receive(channel.as_fd(), &mut packet) {
            Ok((0, _)) => return,
            Ok((len, _)) => len,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        let Ok((ticket, request)) = serde_json::from_slice::<(u64, Request)>(&packet[..len]) else { return };
        let (errno, fd) = match rules.answer(&request) {
            Ok(fd) => (0, Some(fd)),
            Err(e) => (e.raw_os_error().unwrap_or(libc::EIO), None),
        };
        let mut reply = ticket.to_le_bytes().to_vec();
        reply.extend(errno.to_le_bytes());
        let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
        if broker::send(channel.as_fd(), &reply, &fds).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(rules: &Rules, request: &Request) -> bool {
        rules.answer(request).is_err_and(|e| e.raw_os_error() == Some(libc::EACCES))
    }

    #[test]
    fn only_what_the_configuration_allows_is_connected_to() {
        let rules = Rules { outbound: true, ..Rules::default() };
        for never in ["127.0.0.1:80", "[::1]:80", "0.0.0.0:80", "[::]:80", "[::ffff:127.0.0.1]:80", "224.0.0.1:80"] {
            assert!(refused(&rules, &Request::Tcp(never.parse().unwrap())), "{never}");
            assert!(refused(&rules, &Request::Udp(never.parse().unwrap())), "{never}");
        }
        assert!(refused(&rules, &Request::Ping("127.0.0.1".parse().unwrap())));
        assert!(refused(&rules, &Request::Answer(0, "192.0.2.1:1".parse().unwrap())));
        assert!(refused(&rules, &Request::File("x".to_owned())));
        let here = Rules { listeners: vec!["192.0.2.1:9".parse().unwrap()], ..rules };
        assert!(refused(&here, &Request::Answer(0, "127.0.0.1:53".parse().unwrap())), "nobody comes from there");
        let inside = Rules { loopback: true, ..Rules::default() };
        assert!(refused(&inside, &Request::Tcp("192.0.2.1:80".parse().unwrap())));
        assert!(refused(&inside, &Request::TcpResolver(0)) && refused(&inside, &Request::UdpResolver(0)));
        assert!(inside.answer(&Request::Udp("127.0.0.1:9".parse().unwrap())).is_ok());
    }

    #[test]
    fn a_burst_of_requests_is_answered_by_the_broker_in_full() {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        let rules = Rules { loopback: true, ..Rules::default() };
        let (ours, its) =
            nix::sys::socket::socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .unwrap();
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let broker = std::thread::spawn(move || serve(&its, &rules));
        let mut dialer = Dialer::of(ours);
        const MANY: u64 = 500;
        for ticket in 0..MANY {
            let host = if ticket % 2 == 0 { "127.0.0.1:9" } else { "192.0.2.1:9" };
            dialer.ask(ticket, &Request::Udp(host.parse().unwrap()));
        }
        let mut answers = Vec::new();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while answers.len() < MANY as usize && std::time::Instant::now() < end {
            answers.extend(dialer.answers());
            std::thread::yield_now();
        }
        for (n, (ticket, answer)) in answers.iter().enumerate() {
            assert_eq!(n as u64, *ticket);
            let errno = answer.as_ref().err().map(|e| e.raw_os_error());
            assert_eq!(errno, (ticket % 2 == 1).then_some(Some(libc::EACCES)));
        }
        assert_eq!(answers.len(), MANY as usize);
        drop(dialer);
        broker.join().unwrap();
    }

    #[test]
    fn resolv_conf_without_a_name_server_means_this_host() {
        let all = resolvers("# nameserver 192.0.2.9\nsearch example\n nameserver 192.0.2.1\nnameserver ::1 # x\n");
        assert_eq!(all, ["192.0.2.1:53".parse().unwrap(), "[::1]:53".parse().unwrap()]);
        assert_eq!(resolvers("nameserver nonsense"), ["127.0.0.1:53".parse().unwrap()]);
    }

    #[test]
    fn files_are_those_of_the_directory() {
        let dir = std::env::temp_dir().join(format!("bhyve-rs-tftp-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("root/sub")).unwrap();
        let root = dir.join("root").canonicalize().unwrap();
        std::fs::write(dir.join("secret"), "x").unwrap();
        std::fs::write(root.join("sub/file"), "x").unwrap();
        std::os::unix::fs::symlink("sub/file", root.join("within")).unwrap();
        std::os::unix::fs::symlink("../secret", root.join("without")).unwrap();
        let rules = Rules { tftp: Some(root), ..Rules::default() };
        let ask = |name: &str| rules.answer(&Request::File(name.to_owned()));
        for there in ["sub/file", "/sub//file", "./within"] {
            assert!(ask(there).is_ok(), "{there}");
        }
        for denied in ["../secret", "sub/../../secret", "without"] {
            assert_eq!(ask(denied).unwrap_err().raw_os_error(), Some(libc::EACCES), "{denied}");
        }
        for missing in ["sub", "nothing", "a\0b"] {
            assert_ne!(ask(missing).unwrap_err().raw_os_error(), Some(libc::EACCES), "{missing}");
        }
        std::fs::remove_dir_all(dir).unwrap();
    }
}
