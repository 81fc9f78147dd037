//! The parts of benches/nat-speed: our NAT on a datagram socket, and a guest without a processor that drives it, or
//! QEMU's, through such a socket.
//!
//! ```text
//! nat_speed nat LOCAL REMOTE
//! nat_speed guest LOCAL REMOTE PID upload|download|connect AMOUNT
//! ```
//!
//! The guest prints the processor time, in seconds, that process PID has taken for AMOUNT MiB, or connections.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use emu::Event;
use emu::backend::Listener;
use emu::bench::Bench;
use host::net::{Nat, nat};
use host::{Gate, Io, IoThread};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr, Ipv4Address};

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["nat", local, remote] => serve(local, remote),
        ["guest", local, remote, pid, what, amount] => measure(local, remote, pid, what, amount.parse()?),
        _ => bail!("see benches/nat-speed"),
    }
}

/// A card whose frames come out of a socket.
struct Card(UnixDatagram);

impl Listener for Card {
    fn event(&self, event: Event) {
        if let Event::Frame(frame) = event {
            // The guest is there, or all is over.
            let _ = self.0.send(&frame);
        }
    }
}

fn serve(local: &str, remote: &str) -> Result<()> {
    let socket = UnixDatagram::bind(local)?;
    let config = nat::Config { host_loopback: true, ..nat::Config::new(nat::Addresses::new("10.0.2.0/24", &[])?) };
    let bench = Bench::new();
    let io = Io::new()?;
    let mut net = Nat::open(config)?.plug(&io)?;
    let gate = Gate::new();
    gate.open();
    let _thread = IoThread::start_on(&io, &bench.machine.timers, &gate)?;
    let mut frame = vec![0; 2048];
    // The guest speaks first.
    let first = socket.recv(&mut frame)?;
    socket.connect(remote)?;
    let card: Arc<dyn Listener> = Arc::new(Card(socket.try_clone()?));
    net.attach(Arc::downgrade(&card));
    net.want(true);
    net.send(&frame[..first]);
    loop {
        let len = socket.recv(&mut frame)?;
        net.send(&frame[..len]);
    }
}

/// The guest's end of the socket.
struct Wire {
    socket: UnixDatagram,
    waiting: VecDeque<Vec<u8>>,
}

struct Incoming(Vec<u8>);
struct Outgoing<'a>(&'a mut Wire);

impl phy::RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl Wire {
    /// Sends what the socket takes.
    fn flush(&mut self) {
        while let Some(frame) = self.waiting.pop_front() {
            if self.socket.send(&frame).is_err() {
                self.waiting.push_front(frame);
                return;
            }
        }
    }
}

impl phy::TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let done = f(&mut frame);
        self.0.waiting.push_back(frame);
        self.0.flush();
        done
    }
}

impl phy::Device for Wire {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Incoming, Outgoing<'_>)> {
        let mut frame = vec![0; 2048];
        let len = self.socket.recv(&mut frame).ok()?;
        frame.truncate(len);
        Some((Incoming(frame), Outgoing(self)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Outgoing<'_>> {
        (self.waiting.len() < 64).then_some(Outgoing(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

struct Guest {
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
    begun: Instant,
    port: u16,
    next: u16,
}

impl Guest {
    fn turn(&mut self) -> Result<()> {
        let time = smoltcp::time::Instant::from_micros(self.begun.elapsed().as_micros() as i64);
        self.wire.flush();
        self.interface.poll(time, &mut self.wire, &mut self.sockets);
        let events = match self.wire.waiting.is_empty() {
            true => PollFlags::POLLIN,
            false => PollFlags::POLLIN | PollFlags::POLLOUT,
        };
        poll(&mut [PollFd::new(self.wire.socket.as_fd(), events)], PollTimeout::from(2u8))?;
        Ok(())
    }

    fn connect(&mut self, buffer: usize) -> Result<SocketHandle> {
        let room = || tcp::SocketBuffer::new(vec![0; buffer]);
        let handle = self.sockets.add(tcp::Socket::new(room(), room()));
        self.next = self.next.checked_add(1).unwrap_or(20000);
        let to = (IpAddress::v4(10, 0, 2, 2), self.port);
        let socket = self.sockets.get_mut::<tcp::Socket>(handle);
        socket.connect(self.interface.context(), to, self.next).map_err(|e| anyhow::anyhow!("{e}"))?;
        Ok(handle)
    }
}

/// The processor time of a process, in seconds.
fn cpu(pid: &str) -> Result<f64> {
    let mut all = 0.0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // Nanoseconds on a processor, time in the kernel included.
        let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
        all += text.split_whitespace().next().context("a number")?.parse::<f64>()? / 1e9;
    }
    Ok(all)
}

/// The host's server: it sends without end to who asks for it, and takes all from others.
fn server() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(std::io::Result::ok) {
            std::thread::spawn(move || answer(stream));
        }
    });
    Ok(port)
}

fn answer(mut stream: TcpStream) {
    let mut block = vec![0; 256 << 10];
    let Ok(len @ 1..) = stream.read(&mut block) else { return };
    if block[0] == b'd' {
        while stream.write_all(&block).is_ok() {}
    } else if block[0] == b'c' {
        let _ = stream.write_all(&block[..len]);
    } else {
        while stream.read(&mut block).is_ok_and(|n| n > 0) {}
    }
}

fn measure(local: &str, remote: &str, pid: &str, what: &str, amount: usize) -> Result<()> {
    let socket = UnixDatagram::bind(local)?;
    socket.connect(remote)?;
    socket.set_nonblocking(true)?;
    let mut wire = Wire { socket, waiting: VecDeque::new() };
    let mac = HardwareAddress::Ethernet(EthernetAddress([0x52, 0x54, 0, 1, 2, 3]));
    let zero = smoltcp::time::Instant::from_micros(0);
    let mut interface = Interface::new(Config::new(mac), &mut wire, zero);
    interface.update_ip_addrs(|all| all.extend([IpCidr::new(IpAddress::v4(10, 0, 2, 15), 24)]));
    interface.routes_mut().add_default_ipv4_route(Ipv4Address::new(10, 0, 2, 2))?;
    let sockets = SocketSet::new(Vec::new());
    let mut guest = Guest { wire, interface, sockets, begun: Instant::now(), port: server()?, next: 20000 };
    let limit = Instant::now() + Duration::from_secs(600);
    let stream = guest.connect(512 << 10)?;
    while !guest.sockets.get::<tcp::Socket>(stream).may_send() {
        guest.turn()?;
        anyhow::ensure!(Instant::now() < limit, "no connection");
    }
    let (before, begun) = (cpu(pid)?, Instant::now());
    let block = vec![b'u'; 64 << 10];
    let mut left = amount << 20;
    match what {
        "upload" => {
            while left > 0 || guest.sockets.get::<tcp::Socket>(stream).send_queue() > 0 {
                let socket = guest.sockets.get_mut::<tcp::Socket>(stream);
                while left > 0 && socket.can_send() {
                    left -= socket.send_slice(&block[..left.min(block.len())]).map_err(anyhow::Error::msg)?;
                }
                guest.turn()?;
                anyhow::ensure!(Instant::now() < limit, "{left} bytes left");
            }
        }
        "download" => {
            guest.sockets.get_mut::<tcp::Socket>(stream).send_slice(b"d").map_err(anyhow::Error::msg)?;
            while left > 0 {
                let socket = guest.sockets.get_mut::<tcp::Socket>(stream);
                while socket.can_recv() {
                    let got = socket.recv(|part| (part.len(), part.len())).map_err(anyhow::Error::msg)?;
                    left = left.saturating_sub(got);
                }
                guest.turn()?;
                anyhow::ensure!(Instant::now() < limit, "{left} bytes left");
            }
        }
        "connect" => {
            for _ in 0..amount / 50 {
                let handles = (0..50).map(|_| guest.connect(2048)).collect::<Result<Vec<_>>>()?;
                let mut open = handles.len();
                let mut asked = vec![false; open];
                while open > 0 {
                    open = 0;
                    for (handle, asked) in handles.iter().zip(&mut asked) {
                        let socket = guest.sockets.get_mut::<tcp::Socket>(*handle);
                        if !*asked && socket.may_send() {
                            socket.send_slice(b"c").map_err(anyhow::Error::msg)?;
                            *asked = true;
                        } else if *asked && socket.can_recv() {
                            socket.recv(|part| (part.len(), ())).map_err(anyhow::Error::msg)?;
                        } else if *asked && !socket.may_recv() {
                            socket.close();
                        }
                        let over = matches!(socket.state(), tcp::State::Closed | tcp::State::TimeWait);
                        open += usize::from(!over || !*asked);
                    }
                    guest.turn()?;
                    anyhow::ensure!(Instant::now() < limit, "{open} connections open");
                }
                handles.into_iter().for_each(|handle| drop(guest.sockets.remove(handle)));
            }
        }
        _ => bail!("no such measurement: {what}"),
    }
    println!("{} {}", cpu(pid)? - before, begun.elapsed().as_secs_f64());
    Ok(())
}
