//! virtio-net: a network card.
//!
//! Virtio 1.2, 5.1. Modelled: several pairs of queues, frames that are scattered over several buffers (MRG_RXBUF), the
//! link's state, checksums and TCP segmentation done by the card, and a control queue for what the card takes in
//! ([`filter`]), its address, its pairs of queues and what it does for the driver. Not modelled: segmentation of UDP,
//! RSS, announcements.
//!
//! What the driver leaves undone goes to the cable as it is if that takes such frames, and is done here otherwise; and
//! the other way round. Segments that come in whole are not put together: GUEST_TSO is only offered where the cable
//! brings large frames. Checksums of what comes in are looked at in any case, since a processor of ours is slower at it.
//!
//! Without a backend the cable is out: the link is down, frames that the driver sends vanish.

mod filter;

use emu::backend::{Net, Offload};
use emu::{Class, Event, Model, Param, ParamKind, Params, Slot};
use serde::{Deserialize, Serialize};

use self::filter::Filter;
use super::pci::{Core, Function, IOEVENTFD, Kind, MSIX, VERSION, VERSION_1, VirtioPci};
use super::queue::Chain;
use crate::net::offload::{self, Packet};
use crate::net::{self, MAC, Mac};

/// The model.
pub static MODEL: Model = Model {
    name: "virtio-net",
    summary: "virtio network card",
    class: Class::Network,
    keys: &[
        VERSION,
        IOEVENTFD,
        MSIX,
        MAC,
        Param {
            name: "mtu",
            kind: ParamKind::Int(68, MAX_MTU),
            default: "",
            help: "largest packet that the driver is told to send",
        },
        Param {
            name: "queues",
            kind: ParamKind::Int(1, MAX_PAIRS as i64),
            default: "1",
            help: "pairs of queues, for guests with several processors",
        },
        Param {
            name: "offload",
            kind: ParamKind::Bool,
            default: "true",
            help: "the card does checksums and TCP segmentation for the driver",
        },
    ],
    create,
};

const KIND: Kind = Kind { id: 1, legacy_device: 0x1000, class: 0x02_0000, config: 12 };

const MAX_MTU: i64 = 65535;
const MAX_PAIRS: usize = 8;

/// Feature bits.
mod feature {
    pub const CSUM: u64 = 1 << 0;
    pub const GUEST_CSUM: u64 = 1 << 1;
    pub const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
    pub const MTU: u64 = 1 << 3;
    pub const MAC: u64 = 1 << 5;
    pub const GUEST_TSO4: u64 = 1 << 7;
    pub const GUEST_TSO6: u64 = 1 << 8;
    pub const GUEST_ECN: u64 = 1 << 9;
    pub const HOST_TSO4: u64 = 1 << 11;
    pub const HOST_TSO6: u64 = 1 << 12;
    pub const HOST_ECN: u64 = 1 << 13;
    pub const MRG_RXBUF: u64 = 1 << 15;
    pub const STATUS: u64 = 1 << 16;
    pub const CTRL_VQ: u64 = 1 << 17;
    pub const CTRL_RX: u64 = 1 << 18;
    pub const CTRL_VLAN: u64 = 1 << 19;
    pub const CTRL_RX_EXTRA: u64 = 1 << 20;
    pub const MQ: u64 = 1 << 22;
    pub const CTRL_MAC_ADDR: u64 = 1 << 23;
    /// What the driver can turn off while it runs.
    pub const GUEST: u64 = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN;
}

/// Commands of the control queue, class and command, besides those of the filter.
mod command {
    pub const MAC_ADDR_SET: (u8, u8) = (super::filter::MAC, 1);
    pub const VQ_PAIRS_SET: (u8, u8) = (4, 0);
    pub const GUEST_OFFLOADS_SET: (u8, u8) = (5, 0);
}

const ACK_OK: u8 = 0;
const ACK_ERR: u8 = 1;

/// Link is up, in the status register.
const LINK_UP: u16 = 1;

/// Bytes before a frame; those of old drivers lack the number of buffers unless they accepted MRG_RXBUF.
const HEADER: usize = 12;
const SHORT_HEADER: usize = 10;
/// Bytes of the longest frame, and of the shortest that has an address and a type.
const MAX_FRAME: usize = 65550;
const MIN_FRAME: usize = 14;
/// Buffers that one frame is scattered over.
const MAX_BUFFERS: usize = 64;
/// Bytes of the longest command.
const MAX_COMMAND: u64 = 4096;

/// In the first byte of a header: a checksum is missing; or it was looked at and is good.
const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
/// In the second byte: the frame is to be cut, or is what was not cut yet.
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_ECN: u8 = 0x80;

/// Connections, by hash, of which it is known which pair of queues they use.
const FLOWS: usize = 256;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Card {
    mac: Mac,
    filter: Filter,
    link: bool,
    /// Pairs whose driver has no room for frames, a bit each; the backend waits for all.
    starved: u8,
    /// A frame that found no room, with its header; what follows waits with the backend.
    held: Option<(Vec<u8>, [u8; SHORT_HEADER])>,
    /// Pairs that the driver wants to be used.
    pairs: u16,
    /// On which pair the driver last sent something for a connection: there it gets what comes for it.
    flows: Vec<u8>,
    /// Which of [`feature::GUEST`] the driver wants at the moment, of those that it has.
    wanted: u64,
}

struct VirtioNet {
    s: Card,
    net: Option<Box<dyn Net>>,
    /// What the configuration gives it.
    mac: Mac,
    mtu: Option<u16>,
    pairs: u16,
    offload: bool,
    /// The cable takes and brings frames with work left over.
    partial: bool,
    /// A frame on its way out, and one that is made of another.
    frame: Vec<u8>,
    scratch: Vec<u8>,
    /// What the frame that comes in at the moment lies in.
    chain: Chain,
    used: Vec<(u16, u32)>,
}

fn create(slot: &mut Slot, params: &Params) -> Result<Box<dyn emu::Device>, String> {
    let mac = net::mac(slot, params)?;
    let offload = params.get("offload").is_none() || params.flag("offload");
    let mut net = slot.backends.net.take();
    if let Some(net) = &mut net {
        net.attach(slot.cell());
    }
    let partial = offload && net.as_mut().is_some_and(|net| net.partial());
    let mtu = params.int("mtu").map(|mtu| mtu.clamp(68, MAX_MTU) as u16);
    let pairs = params.int("queues").map_or(1, |n| n.clamp(1, MAX_PAIRS as i64)) as u16;
    let s = Card {
        mac,
        filter: Filter::default(),
        link: net.is_some(),
        starved: 0,
        held: None,
        pairs: 1,
        flows: vec![0; FLOWS],
        wanted: feature::GUEST,
    };
    let card = VirtioNet {
        s,
        net,
        mac,
        mtu,
        pairs,
        offload,
        partial,
        frame: Vec::new(),
        scratch: Vec::new(),
        chain: Chain::default(),
        used: Vec::new(),
    };
    VirtioPci::create(slot, params, &KIND, 2 * usize::from(pairs) + 1, card)
}

/// The queues of a pair.
fn rx(pair: usize) -> usize {
    2 * pair
}

fn tx(pair: usize) -> usize {
    2 * pair + 1
}

impl VirtioNet {
    fn header(core: &Core) -> usize {
        if core.has(VERSION_1) || core.has(feature::MRG_RXBUF) { HEADER } else { SHORT_HEADER }
    }

    /// The control queue follows those pairs that the driver knows of.
    fn control_queue(&self, core: &Core) -> usize {
        if core.has(feature::MQ) { 2 * usize::from(self.pairs) } else { 2 }
    }

    fn send(&mut self, core: &mut Core, chain: &Chain, pair: usize) {
        let header = VirtioNet::header(core) as u64;
        let len = chain.out_len.saturating_sub(header);
        if (MIN_FRAME as u64..=MAX_FRAME as u64).contains(&len)
            && let Some(net) = &mut self.net
            && self.s.link
        {
            let (frame, scratch) = (&mut self.frame, &mut self.scratch);
            frame.resize(len as usize, 0);
            let mut about = [0; SHORT_HEADER];
            if chain.read(core.dma(), 0, &mut about)
                && chain.read(core.dma(), header, frame)
                && let Some(rest) = left_to_do(core, &about, frame)
            {
                if self.s.pairs > 1
                    && let Some(flow) = flow(frame)
                {
                    self.s.flows[flow] = pair as u8;
                }
                if self.partial && rest != Offload::default() {
                    net.send_partial(frame, rest);
                } else {
                    offload::finish(frame, rest, scratch, |frame| net.send(frame));
                }
            }
        }
        core.push(tx(pair), chain.head, 0);
    }

    /// Takes in a frame for which something is left to do, which the driver may know how to or not.
    fn receive_partial(&mut self, core: &mut Core, mut frame: Vec<u8>, rest: Offload) {
        if let Some(about) = self.passed_on(core, &frame, rest) {
            return self.receive(core, &frame, about);
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        // What is made good here need not be looked at by the driver.
        let about = about_good(rest != Offload::default() && self.has_now(core, feature::GUEST_CSUM));
        offload::finish(&mut frame, rest, &mut scratch, |frame| self.receive(core, frame, about));
        self.scratch = scratch;
    }

    fn has_now(&self, core: &Core, features: u64) -> bool {
        core.has(features) && self.s.wanted & features == features
    }

    /// The header that tells the driver what is left to do, if it can do it.
    fn passed_on(&self, core: &Core, frame: &[u8], rest: Offload) -> Option<[u8; SHORT_HEADER]> {
        let (from, at) = rest.checksum.filter(|_| self.has_now(core, feature::GUEST_CSUM))?;
        let mut about = [0; SHORT_HEADER];
        let mut put = |at: usize, value: u16| about[at..at + 2].copy_from_slice(&value.to_le_bytes());
        put(6, from);
        put(8, at);
        let mut cut = 0;
        if rest.mss != 0 {
            let packet = Packet::of(frame).filter(|p| p.tcp)?;
            let ecn = packet.marks_congestion(frame);
            let (kind, needs) =
                if packet.v6 { (GSO_TCPV6, feature::GUEST_TSO6) } else { (GSO_TCPV4, feature::GUEST_TSO4) };
            if !self.has_now(core, needs | if ecn { feature::GUEST_ECN } else { 0 }) {
                return None;
            }
            put(2, packet.headers() as u16);
            put(4, rest.mss);
            cut = kind | if ecn { GSO_ECN } else { 0 };
        }
        (about[0], about[1]) = (NEEDS_CSUM, cut);
        Some(about)
    }

    /// Puts a frame into the driver's buffers, or drops it. `about` is its header.
    fn receive(&mut self, core: &mut Core, frame: &[u8], about: [u8; SHORT_HEADER]) {
        let pair = match self.s.pairs {
            1 => 0,
            pairs => flow(frame).map_or(0, |flow| usize::from(u16::from(self.s.flows[flow]) % pairs)),
        };
        let fits = (MIN_FRAME..=MAX_FRAME).contains(&frame.len());
        let wanted = |s: &Card| s.link && s.filter.takes(frame, s.mac, core.has(feature::CTRL_VLAN));
        if !fits || !core.runs(rx(pair)) || !wanted(&self.s) {
            return;
        }
        let (mut chain, mut used) = (std::mem::take(&mut self.chain), std::mem::take(&mut self.used));
        used.clear();
        if scatter(core, rx(pair), about, frame, &mut chain, &mut used) {
            used.iter().for_each(|(head, len)| core.push(rx(pair), *head, *len));
            core.publish(rx(pair));
        } else {
            used.iter().for_each(|_| core.put_back(rx(pair)));
            // No room: it waits, and what follows with the backend, until the driver kicks. For one that needs more buffers
            // than there may be, there never is any.
            if used.is_empty() || core.has(feature::MRG_RXBUF) && used.len() < MAX_BUFFERS {
                self.s.held.get_or_insert_with(|| (frame.to_vec(), about));
                self.set_starved(self.s.starved | 1 << pair);
            }
        }
        (self.chain, self.used) = (chain, used);
    }

    fn set_starved(&mut self, starved: u8) {
        self.s.starved = starved;
        if let Some(net) = &mut self.net {
            net.want(starved == 0);
        }
    }

    /// Answers a command.
    fn control(&mut self, core: &mut Core, n: usize, chain: &Chain) {
        let mut bytes = vec![0; chain.out_len.min(MAX_COMMAND) as usize];
        let whole = chain.out_len <= MAX_COMMAND && chain.read(core.dma(), 0, &mut bytes);
        let good = whole && self.obey(core, &bytes).is_some();
        chain.write(core.dma(), 0, &[if good { ACK_OK } else { ACK_ERR }]);
        core.push(n, chain.head, 1);
    }

    /// `None`: it is not understood.
    fn obey(&mut self, core: &Core, bytes: &[u8]) -> Option<()> {
        let (&[class, command], data) = bytes.split_first_chunk()?;
        match (class, command) {
            command::MAC_ADDR_SET if core.has(feature::CTRL_MAC_ADDR) => self.s.mac = data.try_into().ok()?,
            command::VQ_PAIRS_SET if core.has(feature::MQ) => {
                let pairs = u16::from_le_bytes(data.try_into().ok()?);
                self.s.pairs = Some(pairs).filter(|n| (1..=self.pairs).contains(n))?;
                // Nobody refills the others.
                let used = u8::MAX >> (MAX_PAIRS as u16 - pairs);
                self.s.held = None;
                self.set_starved(self.s.starved & used);
            }
            command::GUEST_OFFLOADS_SET if core.has(feature::CTRL_GUEST_OFFLOADS) => {
                let wanted = u64::from_le_bytes(data.try_into().ok()?);
                let known = wanted & !feature::GUEST == 0 && core.has(wanted);
                self.s.wanted = Some(wanted).filter(|_| known)?;
            }
            _ => self.s.filter.obey(|features| core.has(features), class, command, data)?,
        }
        Some(())
    }
}

/// Which of [`FLOWS`] a frame belongs to, if it is of a connection.
fn flow(frame: &[u8]) -> Option<usize> {
    Packet::of(frame).map(|packet| packet.flow(frame) as usize >> 16 & (FLOWS - 1))
}

/// The header of a frame that is whole, and whose checksum may be `good`.
fn about_good(good: bool) -> [u8; SHORT_HEADER] {
    let mut about = [0; SHORT_HEADER];
    about[0] = if good { DATA_VALID } else { 0 };
    about
}

/// What the driver's header says is left to do; `None` if that is nothing it may ask for.
fn left_to_do(core: &Core, about: &[u8; SHORT_HEADER], frame: &[u8]) -> Option<Offload> {
    if !core.has(feature::CSUM) {
        return Some(Offload::default());
    }
    let word = |at: usize| u16::from_le_bytes([about[at], about[at + 1]]);
    let (from, at) = (word(6), word(8));
    let checksum = (about[0] & NEEDS_CSUM != 0).then_some((from, at));
    let mss = match about[1] & !GSO_ECN {
        0 => 0,
        kind => {
            let packet = Packet::of(frame).filter(|p| p.tcp && checksum.is_some())?;
            let wanted = if packet.v6 { (GSO_TCPV6, feature::HOST_TSO6) } else { (GSO_TCPV4, feature::HOST_TSO4) };
            Some(word(4)).filter(|mss| *mss != 0 && kind == wanted.0 && core.has(wanted.1))?
        }
    };
    let inside = checksum.is_none_or(|(from, at)| usize::from(from) + usize::from(at) + 2 <= frame.len());
    inside.then_some(Offload { checksum, mss })
}

/// Lays a frame behind its header into the next buffers of queue `n`; false if they have not enough room. `used` gets the
/// heads of those that were taken, and how many bytes each got.
fn scatter(
    core: &mut Core,
    n: usize,
    about: [u8; SHORT_HEADER],
    frame: &[u8],
    chain: &mut Chain,
    used: &mut Vec<(u16, u32)>,
) -> bool {
    let header = VirtioNet::header(core);
    let most = if core.has(feature::MRG_RXBUF) { MAX_BUFFERS } else { 1 };
    let (mut rest, mut count_at) = (frame, [None; 2]);
    while !rest.is_empty() {
        if used.len() == most || !core.pop(n, chain) {
            return false;
        }
        let skip = if used.is_empty() { header } else { 0 };
        if used.is_empty() {
            let mut whole = [0; HEADER];
            whole[..SHORT_HEADER].copy_from_slice(&about);
            chain.write(core.dma(), 0, &whole[..header]);
            count_at = [chain.place(HEADER as u64 - 2), chain.place(HEADER as u64 - 1)];
        }
        let room = chain.in_len.saturating_sub(skip as u64).min(rest.len() as u64) as usize;
        chain.write(core.dma(), skip as u64, &rest[..room]);
        rest = &rest[room..];
        used.push((chain.head, (skip + room) as u32));
    }
    if header == HEADER {
        for (at, byte) in count_at.iter().zip((used.len() as u16).to_le_bytes()) {
            at.iter().for_each(|at| core.dma().write(*at, &[byte]));
        }
    }
    true
}

impl Function for VirtioNet {
    type Saved = Card;

    fn features(&self) -> u64 {
        use feature::*;
        let when = |condition, features| if condition { features } else { 0 };
        let control = CTRL_VQ | CTRL_RX | CTRL_VLAN | CTRL_RX_EXTRA | CTRL_MAC_ADDR;
        let done = CSUM | HOST_TSO4 | HOST_TSO6 | HOST_ECN | GUEST_CSUM | CTRL_GUEST_OFFLOADS;
        MAC | MRG_RXBUF
            | STATUS
            | control
            | when(self.mtu.is_some(), MTU)
            | when(self.pairs > 1, MQ)
            | when(self.offload, done)
            | when(self.partial, GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN)
    }

    fn config(&self, _: &Core, image: &mut [u8]) {
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.s.mac);
        put(6, &(if self.s.link { LINK_UP } else { 0 }).to_le_bytes());
        put(8, &self.pairs.to_le_bytes());
        put(10, &self.mtu.unwrap_or(0).to_le_bytes());
    }

    fn config_write(&mut self, core: &mut Core, at: usize, data: &[u8]) {
        // Old drivers set the address here, a byte at a time.
        if !core.has(VERSION_1)
            && let Some(part) = self.s.mac.get_mut(at..at + data.len())
        {
            part.copy_from_slice(data);
        }
    }

    fn kick(&mut self, core: &mut Core, n: usize) {
        let (control, pair) = (self.control_queue(core), n / 2);
        if n == control {
            core.drain(n, |core, chain| self.control(core, n, chain));
        } else if n > control {
            // A queue that the driver cannot know of.
        } else if n == rx(pair) {
            core.leave_alone(n);
            if self.s.starved >> pair & 1 != 0 {
                if let Some((frame, about)) = self.s.held.take() {
                    self.s.starved &= !(1 << pair);
                    self.receive(core, &frame, about);
                }
                if self.s.held.is_none() {
                    self.set_starved(self.s.starved & !(1 << pair));
                }
            }
        } else {
            core.drain(n, |core, chain| self.send(core, chain, pair));
        }
    }

    fn event(&mut self, core: &mut Core, event: Event) {
        match event {
            Event::Frame(frame) => {
                let looks = self.has_now(core, feature::GUEST_CSUM);
                let about = about_good(looks && offload::checksum_is_good(&frame) == Some(true));
                self.receive(core, &frame, about);
            }
            Event::Partial(frame, rest) => self.receive_partial(core, frame, rest),
            Event::Link(up) if up != self.s.link => {
                self.s.link = up;
                core.config_changed();
            }
            _ => {}
        }
    }

    fn reset(&mut self) {
        (self.s.mac, self.s.filter) = (self.mac, Filter::default());
        (self.s.pairs, self.s.wanted) = (1, feature::GUEST);
        self.s.flows.fill(0);
        // Nobody listens now: what comes is lost, as on a wire.
        self.s.held = None;
        self.set_starved(0);
    }

    fn save(&self) -> Card {
        self.s.clone()
    }

    fn load(&mut self, saved: Card) -> Result<(), String> {
        if !(1..=self.pairs).contains(&saved.pairs) || saved.flows.len() != FLOWS {
            return Err("it has other queues".to_owned());
        }
        self.s = saved;
        self.s.link &= self.net.is_some();
        self.set_starved(self.s.starved);
        Ok(())
    }
}
