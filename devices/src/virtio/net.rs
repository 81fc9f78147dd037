//! virtio-net: a network card.
//!
//! Virtio 1.2, 5.1. Modelled: one pair of queues, frames that are scattered over several buffers (MRG_RXBUF), the
//! link's state, and a control queue for what the card takes in: promiscuous and the like, a table of addresses, VLANs,
//! and the address of the card itself. Not modelled: checksums and segmentation done by the card, several pairs of
//! queues, announcements.
//!
//! Without a backend the cable is out: the link is down, frames that the driver sends vanish.

use emu::backend::Net;
use emu::{Class, Event, Model, Param, ParamKind, Params, Slot};
use serde::{Deserialize, Serialize};

use super::pci::{Core, Function, Kind, VERSION, VERSION_1, VirtioPci};
use super::queue::Chain;

/// The model.
pub static MODEL: Model = Model {
    name: "virtio-net",
    summary: "virtio network card",
    class: Class::Network,
    keys: &[
        VERSION,
        Param { name: "mac", kind: ParamKind::Mac, default: "", help: "address; by default made from the slot" },
        Param {
            name: "mtu",
            kind: ParamKind::Int(68, MAX_MTU),
            default: "",
            help: "largest packet that the driver is told to send",
        },
    ],
    create,
};

const KIND: Kind = Kind { id: 1, legacy_device: 0x1000, class: 0x02_0000, config: 12 };

const MAX_MTU: i64 = 65535;

/// Feature bits.
mod feature {
    pub const MTU: u64 = 1 << 3;
    pub const MAC: u64 = 1 << 5;
    pub const MRG_RXBUF: u64 = 1 << 15;
    pub const STATUS: u64 = 1 << 16;
    pub const CTRL_VQ: u64 = 1 << 17;
    pub const CTRL_RX: u64 = 1 << 18;
    pub const CTRL_VLAN: u64 = 1 << 19;
    pub const CTRL_RX_EXTRA: u64 = 1 << 20;
    pub const CTRL_MAC_ADDR: u64 = 1 << 23;
}

/// Queues.
const RX: usize = 0;
const TX: usize = 1;
const CTRL: usize = 2;

/// Commands of the control queue: class and command.
mod command {
    pub const RX: u8 = 0;
    pub const MAC: u8 = 1;
    pub const MAC_TABLE_SET: u8 = 0;
    pub const MAC_ADDR_SET: u8 = 1;
    pub const VLAN: u8 = 2;
    pub const VLAN_ADD: u8 = 0;
    pub const VLAN_DEL: u8 = 1;
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
/// Bytes of the longest command, and addresses in a table.
const MAX_COMMAND: u64 = 4096;
const MAX_ADDRESSES: usize = 64;

type Mac = [u8; 6];

/// Which frames the card takes in.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Filter {
    /// By the number of their command: promiscuous, all multicast, all unicast, no multicast, no unicast, no broadcast.
    modes: [bool; 6],
    unicast: Vec<Mac>,
    multicast: Vec<Mac>,
    /// The table was too long: take all of the kind.
    unicast_full: bool,
    multicast_full: bool,
    /// VLANs that are let in.
    vlans: Vec<u16>,
}

const PROMISC: usize = 0;
const ALL_MULTI: usize = 1;
const ALL_UNI: usize = 2;
const NO_MULTI: usize = 3;
const NO_UNI: usize = 4;
const NO_BROADCAST: usize = 5;

impl Default for Filter {
    /// A driver that knows no control queue gets everything.
    fn default() -> Filter {
        Filter {
            modes: [true, false, false, false, false, false],
            unicast: Vec::new(),
            multicast: Vec::new(),
            unicast_full: false,
            multicast_full: false,
            vlans: Vec::new(),
        }
    }
}

impl Filter {
    fn takes(&self, frame: &[u8], mac: Mac, by_vlan: bool) -> bool {
        let Some(to) = frame.first_chunk::<6>() else { return false };
        if self.modes[PROMISC] {
            return true;
        }
        if by_vlan && frame[12..14] == [0x81, 0x00] {
            let tag = frame.get(14..16).map_or(0, |t| u16::from_be_bytes([t[0], t[1]]) & 0xfff);
            if self.vlans.binary_search(&tag).is_err() {
                return false;
            }
        }
        if *to == [0xff; 6] {
            !self.modes[NO_BROADCAST]
        } else if to[0] & 1 != 0 {
            !self.modes[NO_MULTI] && (self.modes[ALL_MULTI] || self.multicast_full || self.multicast.contains(to))
        } else {
            let known = *to == mac || self.modes[ALL_UNI] || self.unicast_full || self.unicast.contains(to);
            !self.modes[NO_UNI] && known
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Card {
    mac: Mac,
    filter: Filter,
    link: bool,
    /// The backend was told that there is no room for frames.
    starved: bool,
}

struct VirtioNet {
    s: Card,
    net: Option<Box<dyn Net>>,
    /// What the configuration gives it.
    mac: Mac,
    mtu: Option<u16>,
    /// A frame on its way out.
    frame: Vec<u8>,
    /// What the frame that comes in at the moment lies in.
    chain: Chain,
    used: Vec<(u16, u32)>,
}

fn create(slot: &mut Slot, params: &Params) -> Result<Box<dyn emu::Device>, String> {
    let mac = match params.get("mac") {
        Some(text) => parse_mac(text).ok_or_else(|| format!("mac: {text:?} is no Ethernet address"))?,
        None => default_mac(slot.name()),
    };
    let mut net = slot.backends.net.take();
    if let Some(net) = &mut net {
        net.attach(slot.cell());
    }
    let mtu = params.int("mtu").map(|mtu| mtu.clamp(68, MAX_MTU) as u16);
    let s = Card { mac, filter: Filter::default(), link: net.is_some(), starved: false };
    let card = VirtioNet { s, net, mac, mtu, frame: Vec::new(), chain: Chain::default(), used: Vec::new() };
    VirtioPci::create(slot, params, &KIND, 3, card)
}

fn parse_mac(text: &str) -> Option<Mac> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next().filter(|p| p.len() == 2)?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

/// One of bhyve's addresses that stays with a name: FNV-1a over it.
fn default_mac(name: &str) -> Mac {
    let hash = name.bytes().fold(0x811c_9dc5u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193)).to_be_bytes();
    [0x00, 0xa0, 0x98, hash[1], hash[2], hash[3]]
}

impl VirtioNet {
    fn header(core: &Core) -> usize {
        if core.has(VERSION_1) || core.has(feature::MRG_RXBUF) { HEADER } else { SHORT_HEADER }
    }

    fn send(&mut self, core: &mut Core, chain: &Chain) {
        let header = VirtioNet::header(core) as u64;
        let len = chain.out_len.saturating_sub(header);
        if (MIN_FRAME as u64..=MAX_FRAME as u64).contains(&len)
            && let Some(net) = &mut self.net
            && self.s.link
        {
            self.frame.resize(len as usize, 0);
            if chain.read(core.dma(), header, &mut self.frame) {
                net.send(&self.frame);
            }
        }
        core.push(TX, chain.head, 0);
    }

    /// Puts a frame into the driver's buffers, or drops it.
    fn receive(&mut self, core: &mut Core, frame: &[u8]) {
        let fits = (MIN_FRAME..=MAX_FRAME).contains(&frame.len());
        let wanted = |s: &Card| s.link && s.filter.takes(frame, s.mac, core.has(feature::CTRL_VLAN));
        if !fits || !core.runs(RX) || !wanted(&self.s) {
            return;
        }
        let (mut chain, mut used) = (std::mem::take(&mut self.chain), std::mem::take(&mut self.used));
        used.clear();
        if scatter(core, frame, &mut chain, &mut used) {
            used.iter().for_each(|(head, len)| core.push(RX, *head, *len));
            core.publish(RX);
        } else {
            // No room: the backend keeps what follows until the driver kicks.
            used.iter().for_each(|_| core.put_back(RX));
            self.set_starved(used.is_empty() || core.has(feature::MRG_RXBUF));
        }
        (self.chain, self.used) = (chain, used);
    }

    fn set_starved(&mut self, starved: bool) {
        self.s.starved = starved;
        if let Some(net) = &mut self.net {
            net.want(!starved);
        }
    }

    /// Answers a command.
    fn control(&mut self, core: &mut Core, chain: &Chain) {
        let mut bytes = vec![0; chain.out_len.min(MAX_COMMAND) as usize];
        let whole = chain.out_len <= MAX_COMMAND && chain.read(core.dma(), 0, &mut bytes);
        let good = whole && self.obey(core, &bytes).is_some();
        chain.write(core.dma(), 0, &[if good { ACK_OK } else { ACK_ERR }]);
        core.push(CTRL, chain.head, 1);
    }

    /// `None`: it is not understood.
    fn obey(&mut self, core: &Core, bytes: &[u8]) -> Option<()> {
        let (&[class, command], data) = bytes.split_first_chunk()?;
        let filter = &mut self.s.filter;
        match (class, command) {
            (command::RX, mode) => {
                let needs = if mode <= ALL_MULTI as u8 { feature::CTRL_RX } else { feature::CTRL_RX_EXTRA };
                let mode = filter.modes.get_mut(usize::from(mode)).filter(|_| core.has(needs))?;
                *mode = *data.first()? != 0;
            }
            (command::MAC, command::MAC_TABLE_SET) if core.has(feature::CTRL_RX) => {
                let (unicast, rest) = table(data)?;
                let (multicast, _) = table(rest)?;
                filter.unicast_full = unicast.len() > MAX_ADDRESSES;
                filter.multicast_full = multicast.len() > MAX_ADDRESSES;
                filter.unicast = if filter.unicast_full { Vec::new() } else { unicast };
                filter.multicast = if filter.multicast_full { Vec::new() } else { multicast };
            }
            (command::MAC, command::MAC_ADDR_SET) if core.has(feature::CTRL_MAC_ADDR) => {
                self.s.mac = data.try_into().ok()?;
            }
            (command::VLAN, command::VLAN_ADD | command::VLAN_DEL) if core.has(feature::CTRL_VLAN) => {
                let vlan = u16::from_le_bytes(data.try_into().ok()?);
                match (filter.vlans.binary_search(&vlan), command) {
                    (Err(at), command::VLAN_ADD) if vlan < 4096 => filter.vlans.insert(at, vlan),
                    (Ok(at), command::VLAN_DEL) => {
                        filter.vlans.remove(at);
                    }
                    (Ok(_), _) => {}
                    _ => return None,
                }
            }
            _ => return None,
        }
        Some(())
    }
}

/// Lays a frame behind its header into the driver's next buffers; false if they have not enough room. `used` gets the
/// heads of those that were taken, and how many bytes each got.
fn scatter(core: &mut Core, frame: &[u8], chain: &mut Chain, used: &mut Vec<(u16, u32)>) -> bool {
    let header = VirtioNet::header(core);
    let most = if core.has(feature::MRG_RXBUF) { MAX_BUFFERS } else { 1 };
    let (mut rest, mut count_at) = (frame, [None; 2]);
    while !rest.is_empty() {
        if used.len() == most || !core.pop(RX, chain) {
            return false;
        }
        let skip = if used.is_empty() { header } else { 0 };
        if used.is_empty() {
            chain.write(core.dma(), 0, &[0; HEADER][..header]);
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

/// A table of addresses, and what follows it.
fn table(data: &[u8]) -> Option<(Vec<Mac>, &[u8])> {
    let (count, rest) = data.split_first_chunk()?;
    let bytes = usize::try_from(u32::from_le_bytes(*count)).ok()?.checked_mul(6)?;
    let (macs, rest) = rest.split_at_checked(bytes)?;
    Some((macs.as_chunks().0.to_vec(), rest))
}

impl Function for VirtioNet {
    type Saved = Card;

    fn features(&self) -> u64 {
        use feature::*;
        let mtu = if self.mtu.is_some() { MTU } else { 0 };
        MAC | MRG_RXBUF | STATUS | CTRL_VQ | CTRL_RX | CTRL_VLAN | CTRL_RX_EXTRA | CTRL_MAC_ADDR | mtu
    }

    fn config(&self, _: &Core, image: &mut [u8]) {
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.s.mac);
        put(6, &(if self.s.link { LINK_UP } else { 0 }).to_le_bytes());
        put(8, &1u16.to_le_bytes());
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
        match n {
            RX => {
                core.leave_alone(RX);
                if self.s.starved {
                    self.set_starved(false);
                }
            }
            TX => core.drain(TX, |core, chain| self.send(core, chain)),
            _ => core.drain(CTRL, |core, chain| self.control(core, chain)),
        }
    }

    fn event(&mut self, core: &mut Core, event: Event) {
        match event {
            Event::Frame(frame) => self.receive(core, &frame),
            Event::Link(up) if up != self.s.link => {
                self.s.link = up;
                core.config_changed();
            }
            _ => {}
        }
    }

    fn reset(&mut self) {
        (self.s.mac, self.s.filter) = (self.mac, Filter::default());
        // Nobody listens now: what comes is lost, as on a wire.
        self.set_starved(false);
    }

    fn save(&self) -> Card {
        self.s.clone()
    }

    fn load(&mut self, saved: Card) -> Result<(), String> {
        self.s = saved;
        self.s.link &= self.net.is_some();
        self.set_starved(self.s.starved);
        Ok(())
    }
}
