//! Where clients come from.

use std::io::{self, ErrorKind, Read, Write};
use std::net::ToSocketAddrs;
use std::path::PathBuf;

use mio::event::Source;
use mio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::broker::Name;
use crate::unix;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A TCP address.
    Tcp {
        /// Name or address of an interface.
        host: String,
        /// Port; 0 for any.
        port: u16,
        /// Others than this host may reach it.
        remote: bool,
    },
    /// A UNIX socket, for this user.
    Unix(PathBuf),
}

/// A connection of either kind.
pub(crate) trait Stream: Read + Write + Source + Send {}
impl<T: Read + Write + Source + Send> Stream for T {}

enum Socket {
    Tcp(TcpListener),
    /// The file goes with the socket.
    Unix(UnixListener, #[expect(dead_code, reason = "removes the file when it is dropped")] Name),
}

/// A socket that listens.
pub struct Listener {
    socket: Socket,
    place: String,
}

impl Listener {
    /// Listens.
    ///
    /// # Errors
    /// What the system says, or that others would reach an address that is not for them.
    pub fn open(place: &Place) -> io::Result<Listener> {
        match place {
            Place::Tcp { host, port, remote } => {
                let addresses: Vec<_> = (host.as_str(), *port).to_socket_addrs()?.collect();
                let Some(&address) = addresses.first() else {
                    return Err(io::Error::new(ErrorKind::NotFound, "the name has no address"));
                };
                if !remote && let Some(other) = addresses.iter().find(|a| !a.ip().is_loopback()) {
                    let why = format!(
                        "{} is no loopback address, and there is no password: whoever reaches it would own the guest",
                        other.ip()
                    );
                    return Err(io::Error::new(ErrorKind::PermissionDenied, why));
                }
                let listener = TcpListener::bind(address)?;
                let place = listener.local_addr()?.to_string();
                Ok(Listener { socket: Socket::Tcp(listener), place })
            }
            Place::Unix(path) => {
                let (listener, name) = unix::listen(path)?;
                listener.set_nonblocking(true)?;
                let socket = Socket::Unix(UnixListener::from_std(listener), name);
                Ok(Listener { socket, place: path.display().to_string() })
            }
        }
    }

    /// The address or the path.
    pub fn place(&self) -> &str {
        &self.place
    }

    pub(crate) fn source(&mut self) -> &mut dyn Source {
        match &mut self.socket {
            Socket::Tcp(listener) => listener,
            Socket::Unix(listener, _) => listener,
        }
    }

    pub(crate) fn accept(&self) -> io::Result<Box<dyn Stream>> {
        match &self.socket {
            Socket::Tcp(listener) => {
                let (client, _): (TcpStream, _) = listener.accept()?;
                // Updates are written whole.
                let _ = client.set_nodelay(true);
                Ok(Box::new(client))
            }
            Socket::Unix(listener, _) => {
                let (client, _): (UnixStream, _) = listener.accept()?;
                Ok(Box::new(client))
            }
        }
    }
}
