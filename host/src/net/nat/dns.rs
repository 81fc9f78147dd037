//! Name service: the guest's queries go to the host's name servers, one socket a query.
//!
//! A server that refuses, or says nothing, is followed by the next; when none has answered the guest hears of it
//! (SERVFAIL) before it gives up by itself.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::engine::Packet;
use super::host::{Host, Owner};
use super::link::Link;
use super::outside::Request;
use super::slab::Slab;

/// Queries under way; others are answered that the server has failed.
const QUERIES: usize = 256;
/// How often a query is sent, and how long each may take. Most guests wait for five seconds.
const TRIES: usize = 3;
const PATIENCE: Duration = Duration::from_millis(1500);
const HEADER: usize = 12;
const SERVFAIL: u8 = 2;
const REFUSED: u8 = 5;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    guest: SocketAddr,
    dns: SocketAddr,
    ident: [u8; 2],
}

struct Query {
    key: Key,
    message: Vec<u8>,
    ticket: u64,
    socket: Option<UdpSocket>,
    tries: usize,
    deadline: Instant,
}

/// The forwarder.
#[derive(Default)]
pub(super) struct Dns {
    queries: Slab<Query>,
    by_key: HashMap<Key, usize>,
    /// The name server that answered last.
    good: usize,
    buffer: Vec<u8>,
}

impl Dns {
    /// A datagram to the name server's port.
    pub fn input(
        &mut self,
        link: &mut Link,
        host: &mut Host,
        outbound: bool,
        packet: &Packet,
        message: &[u8],
        now: Instant,
    ) {
        // An answer is no query.
        if message.len() < HEADER || message[2] & 0x80 != 0 {
            return;
        }
        let key = Key { guest: packet.source(), dns: packet.target(), ident: [message[0], message[1]] };
        if self.by_key.contains_key(&key) {
            return;
        }
        if !outbound {
            return fail(link, key, message, REFUSED);
        }
        if self.queries.len() >= QUERIES {
            return fail(link, key, message, SERVFAIL);
        }
        let query = Query { key, message: message.to_vec(), ticket: 0, socket: None, tries: 0, deadline: now };
        let at = self.queries.insert(query);
        self.by_key.insert(key, at);
        self.try_next(link, host, at, now);
    }

    fn try_next(&mut self, link: &mut Link, host: &mut Host, at: usize, now: Instant) {
        let Some(query) = self.queries.get_mut(at) else { return };
        if query.tries == TRIES {
            let (key, message) = (query.key, std::mem::take(&mut query.message));
            self.remove(host, at);
            return fail(link, key, &message, SERVFAIL);
        }
        host.forget(query.ticket);
        query.ticket = host.ask(Owner::Dns(at), &Request::UdpResolver(self.good.wrapping_add(query.tries)));
        query.socket = None;
        query.tries += 1;
        query.deadline = now + PATIENCE;
    }

    /// The name server that TCP goes to.
    pub fn good(&self) -> usize {
        self.good
    }

    /// A query's socket has come, or not.
    pub fn answered(
        &mut self,
        link: &mut Link,
        host: &mut Host,
        at: usize,
        ticket: u64,
        fd: io::Result<OwnedFd>,
        now: Instant,
    ) {
        let Some(query) = self.queries.get_mut(at).filter(|query| query.ticket == ticket) else { return };
        let sent = fd.map(UdpSocket::from).and_then(|socket| {
            host.watch(&socket, Owner::Dns(at))?;
            socket.send(&query.message)?;
            Ok(socket)
        });
        match sent {
            Ok(socket) => query.socket = Some(socket),
            Err(_) => self.try_next(link, host, at, now),
        }
    }

    /// Takes an answer. False: there is no room for it.
    pub fn turn(&mut self, link: &mut Link, host: &mut Host, at: usize, now: Instant) -> bool {
        if !link.has_room() {
            return false;
        }
        self.buffer.resize(1 << 16, 0);
        loop {
            let Some(query) = self.queries.get_mut(at) else { return true };
            let Some(socket) = &query.socket else { return true };
            match socket.recv(&mut self.buffer) {
                Ok(len) if len >= HEADER && self.buffer[..2] == query.key.ident && self.buffer[2] & 0x80 != 0 => {
                    link.udp(query.key.dns, query.key.guest, &self.buffer[..len]);
                    self.good = self.good.wrapping_add(query.tries - 1);
                    self.remove(host, at);
                    return true;
                }
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return true,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.try_next(link, host, at, now),
            }
        }
    }

    /// When the first query is to be sent again.
    pub fn deadline(&self) -> Option<Instant> {
        self.queries.iter().map(|(_, query)| query.deadline).min()
    }

    /// Sends again what has got no answer.
    pub fn tick(&mut self, link: &mut Link, host: &mut Host, now: Instant) {
        let late: Vec<usize> =
            self.queries.iter().filter(|(_, query)| query.deadline <= now).map(|(at, _)| at).collect();
        late.into_iter().for_each(|at| self.try_next(link, host, at, now));
    }

    fn remove(&mut self, host: &mut Host, at: usize) {
        if let Some(query) = self.queries.remove(at) {
            self.by_key.remove(&query.key);
            host.forget(query.ticket);
        }
    }
}

/// Answers a query that it cannot be answered.
fn fail(link: &mut Link, key: Key, query: &[u8], code: u8) {
    let question = question(query).unwrap_or_default();
    let mut answer = query[..HEADER].to_vec();
    answer[2] = answer[2] & 0x79 | 0x80;
    answer[3] = 0x80 | code;
    answer[4..].fill(0);
    answer[5] = u8::from(!question.is_empty());
    answer.extend(question);
    link.udp(key.dns, key.guest, &answer);
}

/// The question of a query that has one.
fn question(query: &[u8]) -> Option<&[u8]> {
    let questions = query.get(HEADER..).filter(|_| query[4..6] == [0, 1])?;
    let mut at = 0;
    loop {
        match *questions.get(at)? {
            0 => return questions.get(..at + 5),
            len @ 1..64 => at += usize::from(len) + 1,
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_found_or_not_believed() {
        let mut query = vec![1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
        query.extend(b"\x02ab\x01c\0\0\x01\0\x01");
        query.extend([0; 11]);
        assert_eq!(question(&query).unwrap(), b"\x02ab\x01c\0\0\x01\0\x01");
        assert_eq!(question(&query[..20]), None);
        query[5] = 2;
        assert_eq!(question(&query), None);
        query[5] = 1;
        query[12] = 0xc0;
        assert_eq!(question(&query), None);
    }
}
