//! Consoles to which programs connect, over a UNIX socket or over TCP.
//!
//! One client at a time has the console. The next one takes it over and the earlier one is told: a client that hangs,
//! or that somebody left behind elsewhere, must not lock out its owner. The end of a client's output ends the
//! connection. Bytes pass as they are; there is no TELNET protocol.

use std::io::{self, ErrorKind, Read, Write};
use std::net::ToSocketAddrs;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use mio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use mio::{Interest, event};

use super::Description;
use super::line::Line;
use crate::broker::Name;
use crate::io::{Gate, Io, Key, Source};
use crate::unix;

const TAKEN_OVER: &[u8] = b"\r\nbhyve-rs: another client has taken over the console\r\n";

/// Listens at a path of the file system, for this user only.
pub(super) fn open_unix(io: &Arc<Io>, path: &Path, block: bool) -> io::Result<(Arc<Line>, Description)> {
    let (listener, file) = unix::listen(path)?;
    listener.set_nonblocking(true)?;
    let place = path.display().to_string();
    let listener = Unix(UnixListener::from_std(listener), file);
    serve(io, Box::new(listener), format!("socket {place}"), place, block)
}

/// Listens at a TCP address, of this host only unless `remote`.
pub(super) fn open_tcp(
    io: &Arc<Io>,
    host: &str,
    port: u16,
    remote: bool,
    block: bool,
) -> io::Result<(Arc<Line>, Description)> {
    let addresses: Vec<_> = (host, port).to_socket_addrs()?.collect();
    let Some(&address) = addresses.first() else {
        return Err(io::Error::new(ErrorKind::NotFound, "the name has no address"));
    };
    if !remote && let Some(other) = addresses.iter().find(|a| !a.ip().is_loopback()) {
        let why = format!("{} is no loopback address: whoever reaches it would own the guest", other.ip());
        return Err(io::Error::new(ErrorKind::PermissionDenied, why));
    }
    let listener = TcpListener::bind(address)?;
    let place = listener.local_addr()?.to_string();
    serve(io, Box::new(Tcp(listener)), format!("tcp {place}"), place, block)
}

fn serve(
    io: &Arc<Io>,
    mut listener: Box<dyn Listener>,
    text: String,
    place: String,
    block: bool,
) -> io::Result<(Arc<Line>, Description)> {
    let line = Line::loose(&text, block);
    line.connected(false);
    let key = io.key();
    io.registry().register(listener.source(), key.token(), Interest::READABLE)?;
    line.serve(io, key);
    let server = Server { line: line.clone(), io: io.clone(), key, listener, client: None };
    io.add(key, Box::new(server));
    Ok((line.clone(), Description::new(text, Some(place), Some(line))))
}

/// A connection of either kind.
trait Client: Read + Write + event::Source + Send {}
impl<T: Read + Write + event::Source + Send> Client for T {}

/// A listening socket of either kind.
trait Listener: Send {
    fn source(&mut self) -> &mut dyn event::Source;
    fn accept(&self) -> io::Result<Box<dyn Client>>;
}

/// The file goes with the socket.
struct Unix(UnixListener, #[expect(dead_code, reason = "removes the file when it is dropped")] Name);
struct Tcp(TcpListener);

impl Listener for Unix {
    fn source(&mut self) -> &mut dyn event::Source {
        &mut self.0
    }

    fn accept(&self) -> io::Result<Box<dyn Client>> {
        let (client, _): (UnixStream, _) = self.0.accept()?;
        Ok(Box::new(client))
    }
}

impl Listener for Tcp {
    fn source(&mut self) -> &mut dyn event::Source {
        &mut self.0
    }

    fn accept(&self) -> io::Result<Box<dyn Client>> {
        let (client, _): (TcpStream, _) = self.0.accept()?;
        // Without it echoed keys come late.
        let _ = client.set_nodelay(true);
        Ok(Box::new(client))
    }
}

struct Server {
    line: Arc<Line>,
    io: Arc<Io>,
    key: Key,
    listener: Box<dyn Listener>,
    client: Option<Box<dyn Client>>,
}

impl Server {
    fn accept(&mut self) {
        loop {
            let mut client = match self.listener.accept() {
                Ok(client) => client,
                Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => continue,
                Err(e) => {
                    if e.kind() != ErrorKind::WouldBlock {
                        tracing::warn!("a console cannot take a client: {e}");
                    }
                    return;
                }
            };
            let both = Interest::READABLE | Interest::WRITABLE;
            if self.io.registry().register(&mut *client, self.key.token(), both).is_err() {
                continue;
            }
            if let Some(mut earlier) = self.client.replace(client) {
                let _ = earlier.write(TAKEN_OVER);
            }
            self.line.connected(true);
        }
    }

    /// Moves bytes both ways; an error or false when the client is gone.
    fn transfer(&mut self) -> io::Result<bool> {
        let Some(client) = &mut self.client else { return Ok(true) };
        let more = self.line.receive(client)?;
        self.line.send(client)?;
        Ok(more)
    }
}

impl Source for Server {
    fn turn(&mut self, gate: &Gate) -> bool {
        self.accept();
        if !matches!(self.transfer(), Ok(true)) {
            self.client = None;
            self.line.connected(false);
        }
        self.line.deliver(gate);
        !self.line.closed()
    }

    fn deadline(&self) -> Option<Instant> {
        self.line.deadline()
    }
}
