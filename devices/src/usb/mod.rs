//! USB devices, whatever controller they are at.
//!
//! Universal Serial Bus Specification 2.0, chapters 8 and 9. A controller moves packets: it sends and receives at an
//! endpoint, and tries again what was not acknowledged when the device has had an event. What all devices do alike, the
//! default control endpoint, is here; a [`Function`] is what makes a device the one that it is.

mod hid;
pub mod xhci;

use emu::backend::{Keys, Pointer, Pointing};
use emu::{Event, Params, Slot, State};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What can be plugged into a port.
pub const DEVICES: &[&str] = &["tablet", "keyboard", "mouse"];

/// The parameter of a unit that says which of [`DEVICES`] is there.
pub const DEVICE: &str = "device";

/// Bytes that a control transfer carries at most.
const MOST_CONTROL: usize = 4096;

/// How fast a device talks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speed {
    /// 12 Mbit/s.
    Full,
    /// 480 Mbit/s.
    High,
}

/// What a device answers to data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Out {
    /// ACK.
    Taken,
    /// Never, until the endpoint is set right.
    Stall,
}

/// What a device answers to being asked for data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum In {
    /// These. A transfer ends with what is no multiple of the endpoint's packet size.
    Data(Vec<u8>),
    /// Not now.
    Nak,
    /// Never, until the endpoint is set right.
    Stall,
}

/// The packet that a control transfer begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Setup {
    /// bmRequestType and bRequest.
    pub request: (u8, u8),
    /// wValue.
    pub value: u16,
    /// wIndex.
    pub index: u16,
    /// wLength.
    pub length: u16,
}

impl Setup {
    fn new(packet: [u8; 8]) -> Setup {
        let word = |at| u16::from_le_bytes([packet[at], packet[at + 1]]);
        Setup { request: (packet[0], packet[1]), value: word(2), index: word(4), length: word(6) }
    }

    /// The device sends.
    fn reads(&self) -> bool {
        self.request.0 & 0x80 != 0 && self.length > 0
    }
}

/// Who a device is.
pub(crate) struct Identity {
    pub vendor: u16,
    pub product: u16,
    /// Maker, product and serial number.
    pub strings: [&'static str; 3],
    pub speed: Speed,
    /// The configuration descriptor with all that belongs to it. There is one configuration, 1, and of each interface
    /// one setting, 0.
    pub configuration: Vec<u8>,
}

/// A keyboard that a guest has set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Keyboard {
    /// It can take the next key.
    pub ready: bool,
    /// As [`Keys::lights`] has them.
    pub lights: u8,
}

/// What a device is for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hands {
    pub keyboard: Option<Keyboard>,
    pub pointing: Option<Pointing>,
}

/// What makes a device the one that it is.
pub(crate) trait Function: Send {
    /// Who it is.
    fn identity(&self) -> &Identity;
    /// The bus, or the power, was reset.
    fn reset(&mut self);
    /// A request that not all devices know, with what the host has sent. What it answers, or nothing: it stalls.
    fn request(&mut self, setup: &Setup, data: &[u8]) -> Option<Vec<u8>>;
    /// Data for an endpoint.
    fn send(&mut self, _endpoint: u8, _data: &[u8]) -> Out {
        Out::Stall
    }
    /// Up to `most` bytes from an endpoint.
    fn receive(&mut self, endpoint: u8, most: usize) -> In;
    /// Something happened outside. Whether there is something new at an endpoint.
    fn event(&mut self, event: &Event) -> bool;
    /// What it is for people, once it is set up.
    fn hands(&self) -> Hands {
        Hands::default()
    }
    /// What is saved of it.
    fn save(&self) -> Value;
    /// # Errors
    /// When the value does not have the shape of what is saved.
    fn load(&mut self, value: Value) -> Result<(), String>;
}

/// Where a control transfer is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
enum Stage {
    #[default]
    Idle,
    /// The device sends the rest of this.
    In(Vec<u8>),
    /// The host has sent so much.
    Out(Setup, Vec<u8>),
    /// What was asked for cannot be had.
    Stalled,
}

/// What is saved of every device.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Common {
    address: u8,
    configured: bool,
    /// DEVICE_REMOTE_WAKEUP.
    wakes: bool,
    /// Endpoints that are halted: a bit each, those that send from bit 16 on.
    halted: u32,
    /// The guest has asked for data of an endpoint other than 0.
    asked: bool,
    stage: Stage,
}

/// A device at a port.
pub(crate) struct Device {
    function: Box<dyn Function>,
    c: Common,
}

fn halt_bit(endpoint: u16) -> u32 {
    1 << (endpoint & 15 | (endpoint & 0x80) >> 3)
}

impl Device {
    pub fn new(function: Box<dyn Function>) -> Device {
        Device { function, c: Common::default() }
    }

    /// How fast it talks.
    pub fn speed(&self) -> Speed {
        self.function.identity().speed
    }

    /// It may wake a bus up that sleeps.
    pub fn wakes(&self) -> bool {
        self.c.wakes
    }

    /// The bus is reset.
    pub fn reset(&mut self) {
        self.c = Common::default();
        self.function.reset();
    }

    /// Begins a control transfer at endpoint 0.
    pub fn setup(&mut self, packet: [u8; 8]) {
        let setup = Setup::new(packet);
        self.c.stage = match setup.reads() {
            false => Stage::Out(setup, Vec::new()),
            true => match self.request(&setup, &[]) {
                Some(mut data) => {
                    data.truncate(setup.length.into());
                    Stage::In(data)
                }
                None => Stage::Stalled,
            },
        };
    }

    /// Data from the host.
    pub fn send(&mut self, endpoint: u8, data: &[u8]) -> Out {
        if endpoint != 0 {
            let halt = halt_bit(endpoint.into());
            if !self.c.configured || self.c.halted & halt != 0 {
                return Out::Stall;
            }
            let answer = self.function.send(endpoint, data);
            if answer == Out::Stall {
                self.c.halted |= halt;
            }
            return answer;
        }
        match &mut self.c.stage {
            // The host has what it wants.
            Stage::In(_) => {
                self.c.stage = Stage::Idle;
                Out::Taken
            }
            Stage::Out(setup, got) if got.len() + data.len() <= usize::from(setup.length).min(MOST_CONTROL) => {
                got.extend(data);
                Out::Taken
            }
            _ => Out::Stall,
        }
    }

    /// Data for the host.
    pub fn receive(&mut self, endpoint: u8, most: usize) -> In {
        if endpoint != 0 {
            let halt = halt_bit(u16::from(endpoint) | 0x80);
            if !self.c.configured || self.c.halted & halt != 0 {
                return In::Stall;
            }
            self.c.asked = true;
            let answer = self.function.receive(endpoint, most);
            if answer == In::Stall {
                self.c.halted |= halt;
            }
            return answer;
        }
        match std::mem::take(&mut self.c.stage) {
            Stage::In(mut data) => {
                let rest = data.split_off(most.min(data.len()));
                self.c.stage = Stage::In(rest);
                In::Data(data)
            }
            Stage::Out(setup, data) if data.len() == usize::from(setup.length) => match self.request(&setup, &data) {
                Some(_) => In::Data(Vec::new()),
                None => In::Stall,
            },
            _ => In::Stall,
        }
    }

    /// Chapter 9.4.
    fn request(&mut self, setup: &Setup, data: &[u8]) -> Option<Vec<u8>> {
        let c = &mut self.c;
        match setup.request {
            (0x80, 0) => Some(vec![1 | u8::from(c.wakes) << 1, 0]),
            (0x81, 0) => Some(vec![0, 0]),
            (0x82, 0) => Some(vec![u8::from(c.halted & halt_bit(setup.index) != 0), 0]),
            (0, set @ (1 | 3)) if setup.value == 1 => {
                c.wakes = set == 3;
                Some(Vec::new())
            }
            (2, 1) if setup.value == 0 => {
                c.halted &= !halt_bit(setup.index);
                Some(Vec::new())
            }
            (2, 3) if setup.value == 0 => {
                c.halted |= halt_bit(setup.index);
                Some(Vec::new())
            }
            (0, 5) => {
                c.address = setup.value as u8 & 0x7f;
                Some(Vec::new())
            }
            (0x80, 6) => self.descriptor(setup.value),
            (0x80, 8) => Some(vec![u8::from(c.configured)]),
            (0, 9) if setup.value <= 1 => {
                // All endpoints begin anew.
                (c.configured, c.halted, c.asked) = (setup.value == 1, 0, false);
                Some(Vec::new())
            }
            (0x81, 10) => Some(vec![0]),
            (1, 11) if setup.value == 0 => {
                c.halted = 0;
                Some(Vec::new())
            }
            _ => self.function.request(setup, data),
        }
    }

    fn descriptor(&self, value: u16) -> Option<Vec<u8>> {
        let id = self.function.identity();
        // Version 2.0, no class of its own, packets of 64 bytes at endpoint 0.
        const GENERAL: [u8; 6] = [0, 2, 0, 0, 0, 64];
        let other_speed = id.speed == Speed::High;
        match value.to_be_bytes() {
            [1, 0] => {
                let ids = [id.vendor, id.product, 0].map(u16::to_le_bytes);
                Some([&[18, 1][..], &GENERAL, ids.as_flattened(), &[1, 2, 3, 1]].concat())
            }
            [2, 0] => Some(id.configuration.clone()),
            [3, 0] => Some(vec![4, 3, 0x09, 0x04]),
            [3, n @ 1..=3] => {
                let text: Vec<u8> = id.strings[usize::from(n) - 1].encode_utf16().flat_map(u16::to_le_bytes).collect();
                Some([&[text.len() as u8 + 2, 3][..], &text].concat())
            }
            // At full speed it would be the same.
            [6, 0] if other_speed => Some([&[10, 6][..], &GENERAL, &[1, 0]].concat()),
            [7, 0] if other_speed => {
                let mut other = id.configuration.clone();
                other[1] = 7;
                Some(other)
            }
            _ => None,
        }
    }

    /// What it is for people now.
    fn hands(&self) -> Hands {
        if self.c.configured && self.c.asked { self.function.hands() } else { Hands::default() }
    }

    fn save(&self) -> SavedDevice {
        (self.function.identity().product, State::save(&self.c), self.function.save())
    }

    fn load(&mut self, (product, common, own): SavedDevice) -> Result<(), String> {
        if product != self.function.identity().product {
            return Err("another device is plugged in".to_owned());
        }
        State::load(&mut self.c, common)?;
        self.function.load(own)
    }
}

/// The ports of a controller, what is plugged into them, and who has their hands on it.
pub(crate) struct Bus {
    devices: Vec<Option<Device>>,
    keys: Option<Box<dyn Keys>>,
    pointer: Option<Box<dyn Pointer>>,
    told: Hands,
}

/// What is saved of a device: which it is, what all have, and its own.
type SavedDevice = (u16, Value, Value);
/// What is saved of all of them.
pub(crate) type Saved = Vec<Option<SavedDevice>>;

impl Bus {
    /// With what the parameters plug into `ports` ports.
    pub fn create(slot: &mut Slot, params: &Params, ports: usize) -> Bus {
        let mut backends = (slot.backends.keys.take(), slot.backends.pointer.take());
        if let Some(keys) = &mut backends.0 {
            keys.attach(slot.cell());
        }
        if let Some(pointer) = &mut backends.1 {
            pointer.attach(slot.cell());
        }
        let devices = (0..ports).map(|n| -> Option<Device> {
            let function = hid::Hid::named(params.of_unit(n, DEVICE)?)?;
            Some(Device::new(Box::new(function)))
        });
        Bus { devices: devices.collect(), keys: backends.0, pointer: backends.1, told: Hands::default() }
    }

    /// The device at a port.
    pub fn device(&mut self, port: usize) -> Option<&mut Device> {
        self.devices.get_mut(port)?.as_mut()
    }

    /// Hands an event to all devices. The ports of those that have something new to say.
    pub fn event(&mut self, event: &Event) -> Vec<usize> {
        let here = self.devices.iter_mut().enumerate().filter_map(|(n, d)| Some((n, d.as_mut()?)));
        here.filter_map(|(n, d)| (d.c.configured && d.function.event(event)).then_some(n)).collect()
    }

    /// All devices lose their power.
    pub fn reset(&mut self) {
        self.devices.iter_mut().flatten().for_each(Device::reset);
    }

    /// Tells people which devices the guest listens to; to none while the controller is not `on`.
    pub fn tell(&mut self, on: bool) {
        let mut now = Hands::default();
        for device in self.devices.iter().flatten().filter(|_| on) {
            let Hands { keyboard, pointing } = device.hands();
            now = Hands { keyboard: now.keyboard.or(keyboard), pointing: now.pointing.max(pointing) };
        }
        let before = std::mem::replace(&mut self.told, now);
        if let Some(pointer) = self.pointer.as_mut().filter(|_| before.pointing != now.pointing) {
            pointer.listens(now.pointing);
        }
        let Some(keys) = self.keys.as_mut().filter(|_| before.keyboard != now.keyboard) else { return };
        if before.keyboard.is_some() != now.keyboard.is_some() {
            keys.listens(now.keyboard.is_some());
        }
        keys.want(now.keyboard.is_some_and(|k| k.ready));
        if let Some(keyboard) = now.keyboard {
            keys.lights(keyboard.lights);
        }
    }

    pub fn save(&self) -> Saved {
        self.devices.iter().map(|d| d.as_ref().map(Device::save)).collect()
    }

    /// # Errors
    /// When other devices were saved.
    pub fn load(&mut self, saved: Saved) -> Result<(), String> {
        let same = saved.len() == self.devices.len()
            && saved.iter().zip(&self.devices).all(|(s, d)| s.is_some() == d.is_some());
        if !same {
            return Err("other devices are plugged in".to_owned());
        }
        self.devices.iter_mut().flatten().zip(saved.into_iter().flatten()).try_for_each(|(d, s)| d.load(s))
    }
}
