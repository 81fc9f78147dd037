//! TCP.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use smoltcp::socket::tcp::State;

use super::*;

/// Bytes that repeat at no power of two.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n % 251) as u8).collect()
}

/// A server on the host's loopback, and its address as the guest sees it.
fn server(v6: bool) -> (TcpListener, SocketAddr) {
    let host: IpAddr = if v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
    let listener = TcpListener::bind((host, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, SocketAddr::new(if v6 { GATEWAY6 } else { GATEWAY }, port))
}

/// Sends all of `data`, and reads until the end, what the other end sends.
fn exchange(guest: &mut Guest, handle: SocketHandle, data: &[u8]) -> Vec<u8> {
    let (mut sent, mut got) = (0, Vec::new());
    guest.until("the end of the stream", |guest| {
        let socket = guest.tcp(handle);
        if sent < data.len() && socket.can_send() {
            sent += socket.send_slice(&data[sent..]).unwrap();
            if sent == data.len() {
                socket.close();
            }
        }
        while socket.can_recv() {
            let part = socket.recv(|part| (part.len(), part.to_vec())).unwrap();
            got.extend(part);
        }
        (sent == data.len() && !socket.may_recv()).then_some(())
    });
    got
}

#[test]
fn bytes_go_both_ways_and_each_end_closes_by_itself() {
    for v6 in [false, true] {
        let (listener, at) = server(v6);
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            // The guest's half is closed; ours goes on.
            stream.write_all(&pattern(3_000_000)).unwrap();
            all
        });
        let mut guest = Guest::new(config());
        let handle = guest.connect(at);
        assert!(guest.connected(handle));
        let got = exchange(&mut guest, handle, &pattern(2_000_000));
        assert!(got == pattern(3_000_000));
        assert!(guest.join(server) == pattern(2_000_000));
        guest.until("no connection left", |guest| (guest.cable.engine.flows().0 == 0).then_some(()));
    }
}

#[test]
fn the_host_may_close_first_and_still_reads_all() {
    let (listener, at) = server(false);
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"first and last").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        all
    });
    let mut guest = Guest::new(config());
    let handle = guest.connect(at);
    guest.until("the host's end", |guest| (guest.tcp(handle).state() == State::CloseWait).then_some(()));
    let got = exchange(&mut guest, handle, &pattern(1_000_000));
    assert_eq!(got, b"first and last");
    assert!(guest.join(server) == pattern(1_000_000));
}

#[test]
fn a_port_where_nobody_listens_refuses() {
    for v6 in [false, true] {
        let (listener, at) = server(v6);
        drop(listener);
        let mut guest = Guest::new(config());
        let handle = guest.connect(at);
        let begun = Instant::now();
        assert!(!guest.connected(handle));
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}

#[test]
fn the_hosts_loopback_is_out_of_reach_unless_it_is_allowed() {
    for v6 in [false, true] {
        let (listener, at) = server(v6);
        listener.set_nonblocking(true).unwrap();
        let mut guest = Guest::new(Config { host_loopback: false, ..config() });
        let loopback: IpAddr = if v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
        for address in [at.ip(), loopback] {
            let handle = guest.connect(SocketAddr::new(address, at.port()));
            assert!(!guest.connected(handle), "{address}");
        }
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}

#[test]
fn resets_pass_both_ways() {
    let (listener, at) = server(false);
    let mut guest = Guest::new(config());
    let handle = guest.connect(at);
    assert!(guest.connected(handle));
    let (mut stream, _) = listener.accept().unwrap();
    guest.tcp(handle).abort();
    let reading = thread::spawn(move || stream.read(&mut [0]).unwrap_err().kind());
    guest.until("the reset", |_| reading.is_finished().then_some(()));
    assert_eq!(reading.join().unwrap(), ErrorKind::ConnectionReset);

    let handle = guest.connect(at);
    assert!(guest.connected(handle));
    let (stream, _) = listener.accept().unwrap();
    super::super::tcp::abort(stream);
    guest.until("the reset", |guest| (guest.tcp(handle).state() == State::Closed).then_some(()));
    guest.until("no connection left", |guest| (guest.cable.engine.flows().0 == 0).then_some(()));
}

#[test]
fn who_does_not_read_stops_who_sends_and_nothing_is_lost() {
    const ALL: usize = 40 << 20;
    let (listener, at) = server(false);
    let (go, wait) = channel::<()>();
    let (said, count) = channel();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        // As much as goes in while the guest does not read.
        let mut sent = 0;
        let data = pattern(ALL);
        let mut idle = Instant::now();
        while idle.elapsed() < Duration::from_millis(300) {
            if let Ok(n) = stream.write(&data[sent..]) {
                (sent, idle) = (sent + n, Instant::now());
            }
        }
        said.send(sent).unwrap();
        wait.recv().unwrap();
        stream.set_nonblocking(false).unwrap();
        stream.write_all(&data[sent..]).unwrap();
    });
    let mut guest = Guest::new(config());
    let handle = guest.connect(at);
    assert!(guest.connected(handle));
    let sent = guest.until("the host to stop", |_| count.try_recv().ok());
    // The rest is in the kernel's buffers and the guest's.
    assert!(sent < ALL, "{sent}");
    assert!(guest.cable.engine.waiting() < 1 << 20);
    go.send(()).unwrap();
    let mut got = 0;
    guest.until("all of it", |guest| {
        let socket = guest.tcp(handle);
        while socket.can_recv() {
            let whole = |part: &mut [u8]| {
                let same = part.iter().zip(got..).all(|(byte, n)| *byte == (n % 251) as u8);
                (part.len(), (part.len(), same))
            };
            let (len, same) = socket.recv(whole).unwrap();
            assert!(same, "after {got}");
            got += len;
        }
        (!socket.may_recv()).then_some(())
    });
    assert_eq!(got, ALL);
    guest.join(server);
}

#[test]
fn forwarded_connections_reach_the_guest() {
    for v6 in [false, true] {
        let (listener, at) = server(v6);
        let probe = listener.local_addr().unwrap();
        drop(listener);
        let mut guest = Guest::new(Config { forwards: vec![forward(&format!("tcp:{probe}:22"))], ..config() });
        // The NAT knows the guest's address when the guest has been heard.
        let handle = guest.connect(SocketAddr::new(at.ip(), 1));
        assert!(!guest.connected(handle));
        let taken = Nat::open(Config { forwards: vec![forward(&format!("tcp:{probe}:1"))], ..config() });
        let error = format!("{:#}", taken.err().expect("the port is in use"));
        assert!(error.contains("the forward tcp:") && error.contains("in use"), "{error}");

        let handle = guest.connect(at);
        guest.tcp(handle).abort();
        guest.tcp(handle).listen(22).unwrap();
        let client = thread::spawn(move || {
            let mut stream = TcpStream::connect(probe).unwrap();
            stream.write_all(&pattern(500_000)).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            all
        });
        assert!(guest.connected(handle));
        assert_eq!(guest.tcp(handle).remote_endpoint().unwrap().addr, at.ip().into());
        assert!(exchange(&mut guest, handle, &pattern(400_000)) == pattern(500_000));
        assert!(guest.join(client) == pattern(400_000));

        // Nobody listens any more.
        let client = thread::spawn(move || TcpStream::connect(probe).unwrap().read(&mut [0]).unwrap_err().kind());
        assert_eq!(guest.join(client), ErrorKind::ConnectionReset);
    }
}

#[test]
fn a_thousand_connections_at_once_are_opened_used_and_closed() {
    const MANY: usize = 1000;
    for v6 in [false, true] {
        let (listener, at) = server(v6);
        let server = thread::spawn(move || {
            let mut streams: Vec<_> = (0..MANY).map(|_| listener.accept().unwrap().0).collect();
            for stream in &mut streams {
                let mut word = [0; 4];
                stream.read_exact(&mut word).unwrap();
                stream.write_all(&word).unwrap();
            }
        });
        let mut guest = Guest::new(config());
        let handles: Vec<_> = (0..MANY).map(|_| guest.connect(at)).collect();
        for (n, handle) in handles.iter().enumerate() {
            assert!(guest.connected(*handle), "{n}");
        }
        assert_eq!(guest.cable.engine.flows().0, MANY);
        for (n, handle) in handles.iter().enumerate() {
            guest.tcp(*handle).send_slice(&(n as u32).to_be_bytes()).unwrap();
        }
        guest.join(server);
        for (n, handle) in handles.iter().enumerate() {
            let got = guest.until("an answer", |guest| {
                let socket = guest.tcp(*handle);
                (socket.recv_queue() == 4).then(|| socket.recv(|part| (4, part.to_vec())).unwrap())
            });
            assert_eq!(got, (n as u32).to_be_bytes());
            guest.tcp(*handle).close();
        }
        guest.until("no connection left", |guest| (guest.cable.engine.flows().0 == 0).then_some(()));
    }
}

#[test]
fn a_segment_of_no_connection_is_answered_by_a_reset() {
    use smoltcp::wire::{IpProtocol, TcpPacket};
    let mut cable = Cable::new(config());
    let mut link = super::super::link::Link::new(config().addresses);
    let mac = std::mem::replace(&mut link.mac, MAC);
    link.learn(GATEWAY, mac);
    // From port 1 to 2, acknowledging 8, with ACK.
    let mut segment = vec![0, 1, 0, 2, 0, 0, 0, 7, 0, 0, 0, 8, 0x50, 0x10, 1, 0, 0, 0, 0, 0];
    let sum = super::super::link::sum(GUEST, GATEWAY, IpProtocol::Tcp, &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    link.packet(GUEST, GATEWAY, IpProtocol::Tcp, &segment);
    cable.send(&link.pop().unwrap());
    let reset = cable.until("reset", |frame| Some(frame[34..].to_vec()));
    let reset = TcpPacket::new_checked(&reset[..]).unwrap();
    assert!(reset.rst() && !reset.ack());
    assert_eq!((reset.seq_number().0, reset.src_port(), reset.dst_port()), (8, 2, 1));
}
