//! TFTP for who boots from the network: files of one directory, to read.
//!
//! RFC 1350 with the options blksize, tsize and timeout (RFC 2347 to 2349). Files are opened by the broker.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use super::engine::Packet;
use super::host::{Host, Owner};
use super::link::{Link, MTU};
use super::outside::Request;
use super::slab::Slab;

pub(super) const PORT: u16 = 69;
/// Transfers at a time; one more ends the oldest.
const TRANSFERS: usize = 32;
/// The server's ports of transfers.
const PORTS: std::ops::Range<u16> = 32768..61000;
/// How often a packet is sent again before the transfer is given up.
const TRIES: u32 = 8;
const PATIENCE: Duration = Duration::from_secs(1);
/// Longest name that is read, and longest request.
const NAME: usize = 512;

const READ: u16 = 1;
const WRITE: u16 = 2;
const DATA: u16 = 3;
const ACK: u16 = 4;
const ERROR: u16 = 5;
const OPTIONS: u16 = 6;

const UNDEFINED: u16 = 0;
const NOT_FOUND: u16 = 1;
const ACCESS: u16 = 2;
const ILLEGAL: u16 = 4;

/// The ends of a transfer: the guest's, and ours.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    guest: SocketAddr,
    server: SocketAddr,
}

struct Transfer {
    key: Key,
    ticket: u64,
    name: String,
    file: Option<(File, u64)>,
    asked: Asked,
    /// What was sent last: block 0 are the options.
    block: u64,
    deadline: Instant,
    tries: u32,
}

/// The options of a request that are granted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Asked {
    block: Option<usize>,
    size: bool,
    timeout: Option<u8>,
}

impl Asked {
    fn any(self) -> bool {
        self != Asked::default()
    }

    fn block(self) -> usize {
        self.block.unwrap_or(512)
    }

    fn patience(self) -> Duration {
        self.timeout.map_or(PATIENCE, |seconds| Duration::from_secs(seconds.into()))
    }
}

/// The server.
#[derive(Default)]
pub(super) struct Tftp {
    transfers: Slab<Transfer>,
    by_key: HashMap<Key, usize>,
    next_port: u16,
}

/// The zero-terminated texts of a request.
fn request(mut rest: &[u8], longest_block: usize) -> Option<(String, Asked)> {
    let mut text = || {
        let end = rest.iter().position(|byte| *byte == 0)?;
        let text = std::str::from_utf8(&rest[..end]).ok()?;
        rest = &rest[end + 1..];
        Some(text)
    };
    let name = text().filter(|name| !name.is_empty() && name.len() <= NAME)?.to_owned();
    // Netascii would change the bytes of a program.
    text().filter(|mode| mode.eq_ignore_ascii_case("octet"))?;
    let mut asked = Asked::default();
    while let Some((option, value)) = text().and_then(|option| Some((option, text()?))) {
        match option.to_ascii_lowercase().as_str() {
            "blksize" => {
                asked.block = value.parse().ok().filter(|size| *size >= 8).map(|size: usize| size.min(longest_block));
            }
            "tsize" => asked.size = true,
            "timeout" => asked.timeout = value.parse().ok().filter(|seconds| *seconds >= 1),
            _ => {}
        }
    }
    Some((name, asked))
}

fn error(link: &mut Link, key: Key, code: u16, text: &str) {
    let mut packet = [ERROR.to_be_bytes(), code.to_be_bytes()].concat();
    packet.extend(text.as_bytes());
    packet.push(0);
    link.udp(key.server, key.guest, &packet);
}

impl Tftp {
    /// A datagram to the gateway. False if it is not for this server.
    pub fn input(&mut self, link: &mut Link, host: &mut Host, packet: &Packet, data: &[u8], now: Instant) -> bool {
        let mut key = Key { guest: packet.source(), server: packet.target() };
        if let Some(&at) = self.by_key.get(&key) {
            self.answer(link, host, at, data, now);
            return true;
        }
        if key.server.port() != PORT {
            return false;
        }
        // A header of IP and one of UDP, and four bytes of TFTP.
        let longest = MTU - if key.guest.is_ipv4() { 20 } else { 40 } - 8 - 4;
        let (operation, rest) = data.split_at_checked(2).unwrap_or_default();
        let operation = operation.try_into().map_or(0, u16::from_be_bytes);
        match operation {
            READ => {}
            WRITE => {
                error(link, key, ACCESS, "files can only be read");
                return true;
            }
            _ => return true,
        }
        let Some((name, asked)) = request(rest, longest) else {
            error(link, key, ILLEGAL, "not understood; the mode is octet");
            return true;
        };
        // The same request again, as the answer takes its time.
        if self.transfers.iter().any(|(_, t)| t.key.guest == key.guest && t.name == name && t.block == 0) {
            return true;
        }
        self.next_port = match self.next_port.wrapping_add(1) {
            port if PORTS.contains(&port) => port,
            _ => PORTS.start,
        };
        key.server.set_port(self.next_port);
        if self.transfers.len() >= TRANSFERS
            && let Some((oldest, _)) = self.transfers.iter().min_by_key(|(_, t)| t.deadline)
        {
            self.remove(host, oldest);
        }
        let deadline = now + Duration::from_secs(60);
        let ask = Request::File(name.clone());
        let at =
            self.transfers.insert(Transfer { key, ticket: 0, name, file: None, asked, block: 0, deadline, tries: 0 });
        if let Some(old) = self.by_key.insert(key, at) {
            self.remove(host, old);
            self.by_key.insert(key, at);
        }
        let ticket = host.ask(Owner::Tftp(at), &ask);
        self.transfers.get_mut(at).expect("just put there").ticket = ticket;
        true
    }

    /// A transfer's file has come, or not.
    pub fn answered(
        &mut self,
        link: &mut Link,
        host: &mut Host,
        at: usize,
        ticket: u64,
        fd: io::Result<OwnedFd>,
        now: Instant,
    ) {
        let Some(transfer) = self.transfers.get_mut(at).filter(|t| t.ticket == ticket) else { return };
        let opened = fd.map(File::from).and_then(|file| {
            let len = file.metadata()?.len();
            Ok((file, len))
        });
        match opened {
            Ok(file) => {
                tracing::debug!("TFTP: {} of {} bytes", transfer.name, file.1);
                transfer.file = Some(file);
                transfer.block = u64::from(!transfer.asked.any());
                self.send(link, host, at, now);
            }
            Err(e) => {
                tracing::debug!("TFTP: {}: {e}", transfer.name);
                let (code, text) = match e.raw_os_error() {
                    Some(libc::EACCES | libc::EPERM) => (ACCESS, "access denied"),
                    _ => (NOT_FOUND, "no such file"),
                };
                error(link, transfer.key, code, text);
                self.remove(host, at);
            }
        }
    }

    /// Sends the packet whose turn it is.
    fn send(&mut self, link: &mut Link, host: &mut Host, at: usize, now: Instant) {
        let Some(transfer) = self.transfers.get_mut(at) else { return };
        let Some((file, len)) = &transfer.file else { return };
        let asked = transfer.asked;
        transfer.deadline = now + asked.patience();
        let mut packet = Vec::new();
        if transfer.block == 0 {
            packet.extend(OPTIONS.to_be_bytes());
            let mut option = |name: &str, value: u64| packet.extend(format!("{name}\0{value}\0").bytes());
            asked.block.into_iter().for_each(|size| option("blksize", size as u64));
            asked.timeout.into_iter().for_each(|seconds| option("timeout", seconds.into()));
            if asked.size {
                option("tsize", *len);
            }
        } else {
            packet.extend(DATA.to_be_bytes());
            packet.extend((transfer.block as u16).to_be_bytes());
            let from = (transfer.block - 1) * asked.block() as u64;
            let part = len.saturating_sub(from).min(asked.block() as u64) as usize;
            packet.resize(4 + part, 0);
            if file.read_exact_at(&mut packet[4..], from).is_err() {
                error(link, transfer.key, UNDEFINED, "the file cannot be read");
                return self.remove(host, at);
            }
        }
        link.udp(transfer.key.server, transfer.key.guest, &packet);
    }

    fn answer(&mut self, link: &mut Link, host: &mut Host, at: usize, data: &[u8], now: Instant) {
        let Some(transfer) = self.transfers.get_mut(at) else { return };
        let &[o1, o0, b1, b0, ..] = data else { return };
        match u16::from_be_bytes([o1, o0]) {
            ERROR => self.remove(host, at),
            // Only that of the packet which was sent last counts: an answer to a copy would double all that follows.
            ACK if transfer.file.is_some() && u16::from_be_bytes([b1, b0]) == transfer.block as u16 => {
                let len = transfer.file.as_ref().map_or(0, |(_, len)| *len);
                let sent_all = transfer.block > 0 && transfer.block * transfer.asked.block() as u64 > len;
                if sent_all {
                    return self.remove(host, at);
                }
                transfer.block += 1;
                transfer.tries = 0;
                self.send(link, host, at, now);
            }
            _ => {}
        }
    }

    /// When the first packet is to be sent again.
    pub fn deadline(&self) -> Option<Instant> {
        self.transfers.iter().map(|(_, t)| t.deadline).min()
    }

    /// Sends again what was not acknowledged.
    pub fn tick(&mut self, link: &mut Link, host: &mut Host, now: Instant) {
        let late: Vec<usize> = self.transfers.iter().filter(|(_, t)| t.deadline <= now).map(|(at, _)| at).collect();
        for at in late {
            let Some(transfer) = self.transfers.get_mut(at) else { continue };
            transfer.tries += 1;
            if transfer.tries > TRIES || transfer.file.is_none() {
                self.remove(host, at);
            } else {
                self.send(link, host, at, now);
            }
        }
    }

    fn remove(&mut self, host: &mut Host, at: usize) {
        if let Some(transfer) = self.transfers.remove(at) {
            self.by_key.remove(&transfer.key);
            host.forget(transfer.ticket);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_granted_as_far_as_a_frame_goes() {
        let (name, asked) = request(b"boot/pxelinux.0\0Octet\0blksize\x0065464\0tsize\x000\0x\0y\0", 1468).unwrap();
        assert_eq!((name.as_str(), asked), ("boot/pxelinux.0", Asked { block: Some(1468), size: true, timeout: None }));
        let (_, asked) = request(b"f\0octet\0TIMEOUT\x003\0blksize\x007\0", 1468).unwrap();
        assert_eq!(asked, Asked { block: None, size: false, timeout: Some(3) });
        for wrong in [&b"f\0netascii\0"[..], b"f\0octet", b"\0octet\0", b"f", b"", b"\xff\0octet\0"] {
            assert!(request(wrong, 1468).is_none(), "{wrong:?}");
        }
    }
}
