//! virtio-console: named ports between programs on the host and in the guest, up to sixteen.
//!
//! Virtio 1.2, 5.3, with MULTIPORT. Guest agents talk over these (Linux's virtio_console makes
//! `/dev/virtio-ports/NAME` of one, FreeBSD's virtio_console(4) `/dev/vtcon/NAME`). As bhyve's it has no port that is a
//! system console. Both sides are told when the other opens and closes a port: what the guest writes while nobody is
//! connected is lost, and what comes from the host waits with the host until a program in the guest opens the port.

use emu::backend::Chardev;
use emu::{Class, Event, Model, Params, Slot};
use serde::{Deserialize, Serialize};

use super::pci::{Core, Function, IOEVENTFD, Kind, MSIX, VERSION, VirtioPci};
use super::queue::Chain;

/// The model. The port of number N is called as `N.port` says, and is at that character backend.
pub static MODEL: Model = Model {
    name: "virtio-console",
    summary: "virtio console ports, for guest agents",
    class: Class::Lines { most: MAX_PORTS },
    keys: &[VERSION, IOEVENTFD, MSIX],
    create,
};

const KIND: Kind = Kind { id: 3, legacy_device: 0x1003, class: 0x07_8000, config: 12 };

/// As many as bhyve has.
const MAX_PORTS: usize = 16;
const QUEUES: usize = 2 * MAX_PORTS + 2;

/// The driver knows ports beyond the first, and control messages.
const MULTIPORT: u64 = 1 << 1;

/// The control queues. Port 0 has queues 0 and 1, the others follow behind these.
const CONTROL_RX: usize = 2;
const CONTROL_TX: usize = 3;

/// Control messages.
mod control {
    pub const DEVICE_READY: u16 = 0;
    pub const PORT_ADD: u16 = 1;
    pub const PORT_READY: u16 = 3;
    pub const PORT_OPEN: u16 = 6;
    pub const PORT_NAME: u16 = 7;
}
/// Bytes of a control message, without a name.
const MESSAGE: usize = 8;

/// Bytes from the host that wait for buffers.
const PENDING: usize = 4 << 10;
/// Bytes that are taken of one buffer. Drivers send at most 32 KiB (Linux), or a page (FreeBSD).
const MOST: u64 = 64 << 10;
/// Buffers of a port that are filled or taken in one go.
const BUDGET: usize = 64;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Port {
    /// A program in the guest has it open.
    open: bool,
    /// What the guest wrote and the host did not take yet.
    out: Vec<u8>,
    /// What came from the host and found no buffer yet.
    pending: Vec<u8>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Ports {
    ports: Vec<Port>,
    /// The driver has said that it is ready.
    ready: bool,
    /// Control messages that wait for buffers.
    messages: Vec<Vec<u8>>,
}

/// The host's end of a port.
struct End {
    name: String,
    backend: Option<Box<dyn Chardev>>,
    /// Somebody is there.
    open: bool,
}

struct Console {
    s: Ports,
    ends: Vec<End>,
    chain: Chain,
}

fn create(slot: &mut Slot, params: &Params) -> Result<Box<dyn emu::Device>, String> {
    let backends = std::mem::take(&mut slot.backends.chardevs);
    if backends.len() > MAX_PORTS {
        return Err(format!("{} ports are more than {MAX_PORTS}", backends.len()));
    }
    let cell = slot.cell();
    let end = |(n, mut backend): (usize, Option<Box<dyn Chardev>>)| {
        if let Some(backend) = &mut backend {
            backend.attach(cell.clone(), n);
        }
        let name = params.of_unit(n, "port").filter(|name| !name.is_empty());
        End { name: name.map_or_else(|| format!("port{n}"), str::to_owned), backend, open: false }
    };
    let ends: Vec<End> = backends.into_iter().enumerate().map(end).collect();
    let s = Ports { ports: vec![Port::default(); ends.len()], ..Ports::default() };
    VirtioPci::create(slot, params, &KIND, QUEUES, Console { s, ends, chain: Chain::default() })
}

/// The queue that port `n` receives by; the one that it sends by follows.
fn queue(n: usize) -> usize {
    if n == 0 { 0 } else { 2 * n + 2 }
}

impl Console {
    /// Tells the driver something about port `n`.
    fn say(&mut self, core: &mut Core, n: usize, event: u16, value: u16, name: &str) {
        self.note(n, event, value, name);
        self.deliver_messages(core);
    }

    /// Puts a message where the driver fetches it, in the place of what it would say anew.
    fn note(&mut self, n: usize, event: u16, value: u16, name: &str) {
        let mut message = Vec::with_capacity(MESSAGE + name.len());
        message.extend((n as u32).to_le_bytes());
        message.extend(event.to_le_bytes());
        message.extend(value.to_le_bytes());
        message.extend(name.as_bytes());
        // Of each kind there is one a port.
        self.s.messages.retain(|earlier| earlier[..6] != message[..6]);
        self.s.messages.push(message);
    }

    fn deliver_messages(&mut self, core: &mut Core) {
        let mut chain = std::mem::take(&mut self.chain);
        let mut said = 0;
        while said < self.s.messages.len() && core.pop(CONTROL_RX, &mut chain) {
            let message = &self.s.messages[said];
            let n = chain.in_len.min(message.len() as u64) as usize;
            chain.write(core.dma(), 0, &message[..n]);
            core.push(CONTROL_RX, chain.head, n as u32);
            said += 1;
        }
        self.chain = chain;
        self.s.messages.drain(..said);
        core.publish(CONTROL_RX);
    }

    /// Takes a message of the driver's. What is none, or of no port, is ignored.
    fn obey(&mut self, core: &mut Core, message: [u8; MESSAGE]) {
        let [n @ .., _, _, _, _] = message;
        let n = u32::from_le_bytes(n) as usize;
        let (event, value) =
            (u16::from_le_bytes([message[4], message[5]]), u16::from_le_bytes([message[6], message[7]]));
        if event == control::DEVICE_READY && value == 1 && !self.s.ready {
            self.s.ready = true;
            (0..self.ends.len()).for_each(|n| self.say(core, n, control::PORT_ADD, 1, ""));
            return;
        }
        if n >= self.ends.len() {
            return;
        }
        match event {
            control::PORT_READY if value == 1 => {
                let name = self.ends[n].name.clone();
                self.say(core, n, control::PORT_NAME, 1, &name);
                if self.ends[n].open {
                    self.say(core, n, control::PORT_OPEN, 1, "");
                }
            }
            control::PORT_OPEN => {
                let port = &mut self.s.ports[n];
                port.open = value != 0;
                if !port.open {
                    port.pending.clear();
                }
                self.ask(n);
            }
            _ => {}
        }
    }

    /// Says how much port `n` takes.
    fn ask(&mut self, n: usize) {
        let port = &self.s.ports[n];
        let room = if port.open { PENDING.saturating_sub(port.pending.len()) } else { 0 };
        if let Some(backend) = &mut self.ends[n].backend {
            backend.want(room);
        }
    }

    /// Gives the guest what waits for it.
    fn deliver(&mut self, core: &mut Core, n: usize) {
        let port = &mut self.s.ports[n];
        let mut chain = std::mem::take(&mut self.chain);
        let mut left = BUDGET;
        while !port.pending.is_empty() {
            if left == 0 {
                core.again(queue(n));
                break;
            }
            if !core.pop(queue(n), &mut chain) {
                break;
            }
            left -= 1;
            let len = chain.in_len.min(port.pending.len() as u64) as usize;
            chain.write(core.dma(), 0, &port.pending[..len]);
            port.pending.drain(..len);
            core.push(queue(n), chain.head, len as u32);
        }
        self.chain = chain;
        core.publish(queue(n));
        self.ask(n);
    }

    /// Hands the host what the guest wrote, as far as it takes it.
    fn drain(&mut self, core: &mut Core, n: usize) {
        let tx = queue(n) + 1;
        let (port, end) = (&mut self.s.ports[n], &mut self.ends[n]);
        let mut chain = std::mem::take(&mut self.chain);
        let mut left = BUDGET;
        loop {
            match &mut end.backend {
                Some(backend) if end.open && !port.out.is_empty() => {
                    let taken = backend.write(&port.out);
                    port.out.drain(..taken);
                }
                _ => port.out.clear(),
            }
            // The host says when it takes more.
            if !port.out.is_empty() {
                break;
            }
            if left == 0 {
                core.again(tx);
                break;
            }
            if !core.pop(tx, &mut chain) {
                break;
            }
            left -= 1;
            port.out.resize(chain.out_len.min(MOST) as usize, 0);
            if !chain.read(core.dma(), 0, &mut port.out) {
                port.out.clear();
            }
            core.push(tx, chain.head, 0);
        }
        self.chain = chain;
        core.publish(tx);
    }
}

impl Function for Console {
    type Saved = Ports;

    fn features(&self) -> u64 {
        MULTIPORT
    }

    fn config(&self, _: &Core, image: &mut [u8]) {
        // Columns and rows, which nobody says, and how many ports there are.
        image[4..8].copy_from_slice(&(MAX_PORTS as u32).to_le_bytes());
    }

    fn kick(&mut self, core: &mut Core, n: usize) {
        match n {
            CONTROL_RX => self.deliver_messages(core),
            CONTROL_TX => {
                let mut messages = Vec::new();
                core.drain(CONTROL_TX, |core, chain| {
                    let mut message = [0; MESSAGE];
                    if chain.out_len >= MESSAGE as u64 && chain.read(core.dma(), 0, &mut message) {
                        messages.push(message);
                    }
                    core.push(CONTROL_TX, chain.head, 0);
                });
                messages.into_iter().for_each(|message| self.obey(core, message));
            }
            _ => {
                let port = if n < CONTROL_RX { 0 } else { n / 2 - 1 };
                if port < self.ends.len() {
                    if n.is_multiple_of(2) { self.deliver(core, port) } else { self.drain(core, port) }
                }
            }
        }
    }

    fn event(&mut self, core: &mut Core, event: Event) {
        match event {
            Event::Chars(n, bytes) if n < self.ends.len() => {
                let port = &mut self.s.ports[n];
                if port.open {
                    port.pending.extend(bytes);
                }
                self.deliver(core, n);
            }
            Event::CharsReady(n) if n < self.ends.len() => self.drain(core, n),
            Event::CharsOpen(n, open) if n < self.ends.len() => {
                self.ends[n].open = open;
                if self.s.ready {
                    self.say(core, n, control::PORT_OPEN, open.into(), "");
                }
                // What nobody takes any more is lost.
                self.drain(core, n);
            }
            _ => {}
        }
    }

    fn reset(&mut self) {
        self.s = Ports { ports: vec![Port::default(); self.ends.len()], ..Ports::default() };
        (0..self.ends.len()).for_each(|n| self.ask(n));
    }

    fn save(&self) -> Ports {
        self.s.clone()
    }

    fn load(&mut self, saved: Ports) -> Result<(), String> {
        if saved.ports.len() != self.ends.len() {
            return Err(format!("it was saved with {} ports", saved.ports.len()));
        }
        if saved.messages.iter().any(|message| message.len() < MESSAGE) {
            return Err("a message is cut off".to_owned());
        }
        self.s = saved;
        for n in 0..self.ends.len() {
            // Who was there when it was saved need not be here.
            if self.s.ready {
                self.note(n, control::PORT_OPEN, self.ends[n].open.into(), "");
            }
            self.ask(n);
        }
        Ok(())
    }
}
