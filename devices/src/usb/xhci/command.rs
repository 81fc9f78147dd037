//! The command ring, xHCI 4.6.

use super::{
    BUDGET, DeviceSlot, Endpoint, EndpointState, PAUSE, PORTS, Ring, SLOTS, SlotState, Trb, Xhci, code, kind, portsc,
};

/// Types of commands.
mod types {
    pub const ENABLE_SLOT: u32 = 9;
    pub const DISABLE_SLOT: u32 = 10;
    pub const ADDRESS_DEVICE: u32 = 11;
    pub const CONFIGURE_ENDPOINT: u32 = 12;
    pub const EVALUATE_CONTEXT: u32 = 13;
    pub const RESET_ENDPOINT: u32 = 14;
    pub const STOP_ENDPOINT: u32 = 15;
    pub const SET_DEQUEUE: u32 = 16;
    pub const RESET_DEVICE: u32 = 17;
    pub const NO_OP: u32 = 23;
}

/// Block Set Address, and Deconfigure.
const FLAG: u32 = 1 << 9;

/// Bytes of a context.
const CONTEXT: u64 = 32;
/// Endpoint 0 in contexts.
const CONTROL: u8 = 1;

/// The double words of a context.
type Words = [u32; 8];

impl Xhci {
    pub(super) fn run_commands(&mut self) {
        for _ in 0..BUDGET {
            if !self.r.commands_run || !self.works() {
                return;
            }
            let (at, trb) = (self.r.commands.at, Trb::fetch(&self.dma, self.r.commands.at));
            if trb.cycle() != self.r.commands.cycle {
                return;
            }
            self.r.commands.pass(&trb);
            if trb.kind() != kind::LINK {
                let mut slot = trb.slot();
                let done = self.obey(&trb, &mut slot);
                self.complete_command(at, done.err().unwrap_or(code::SUCCESS), slot);
            }
        }
        self.work.set(self.work.now() + PAUSE);
    }

    /// CS and CA. Commands take no time, so that none is under way.
    pub(super) fn stop_commands(&mut self) {
        self.r.commands_run = false;
        self.complete_command(self.r.commands.at, code::COMMAND_RING_STOPPED, 0);
    }

    fn complete_command(&mut self, at: u64, code: u32, slot: usize) {
        let control = kind::COMMAND_COMPLETION << 10 | (slot as u32) << 24;
        self.post(Trb { parameter: at, status: code << 24, control }, true);
    }

    /// # Errors
    /// The completion code.
    fn obey(&mut self, trb: &Trb, slot: &mut usize) -> Result<(), u32> {
        let (n, input, flag) = (*slot, trb.parameter & !0xf, trb.has(FLAG));
        let endpoint = (trb.control >> 16 & 31) as u8;
        match trb.kind() {
            types::NO_OP => Ok(()),
            types::ENABLE_SLOT => {
                let free = |n: &usize| self.r.slots[*n].state == SlotState::Disabled;
                let most = (self.r.config as usize).min(SLOTS);
                *slot = (1..=most).find(free).ok_or(code::NO_SLOTS)?;
                self.r.slots[*slot].state = SlotState::Enabled;
                Ok(())
            }
            types::DISABLE_SLOT => {
                *self.slot(n)? = DeviceSlot::default();
                self.write_slot_state(n, SlotState::Disabled, 0);
                Ok(())
            }
            types::ADDRESS_DEVICE => self.address(n, input, flag),
            types::CONFIGURE_ENDPOINT => self.configure(n, input, flag),
            types::EVALUATE_CONTEXT => self.evaluate(n, input),
            types::RESET_ENDPOINT => {
                let e = self.endpoint(n, endpoint)?;
                if e.state != EndpointState::Halted {
                    return Err(code::CONTEXT_STATE);
                }
                e.state = EndpointState::Stopped;
                self.write_endpoint(n, endpoint);
                Ok(())
            }
            types::STOP_ENDPOINT => {
                if self.endpoint(n, endpoint)?.state != EndpointState::Running {
                    return Err(code::CONTEXT_STATE);
                }
                self.stop_transfer(n, endpoint);
                let e = self.endpoint(n, endpoint)?;
                (e.state, e.rung) = (EndpointState::Stopped, false);
                self.write_endpoint(n, endpoint);
                Ok(())
            }
            types::SET_DEQUEUE => {
                let e = self.endpoint(n, endpoint)?;
                if !matches!(e.state, EndpointState::Stopped | EndpointState::Error) {
                    return Err(code::CONTEXT_STATE);
                }
                (e.ring, e.done, e.state) = (Ring::new(trb.parameter), 0, EndpointState::Stopped);
                self.write_endpoint(n, endpoint);
                Ok(())
            }
            types::RESET_DEVICE => {
                let s = self.slot(n)?;
                if s.state < SlotState::Addressed {
                    return Err(code::CONTEXT_STATE);
                }
                s.state = SlotState::Default;
                self.disable_endpoints(n, |endpoint| endpoint != CONTROL);
                self.write_slot_state(n, SlotState::Default, 0);
                Ok(())
            }
            _ => Err(code::TRB),
        }
    }

    fn slot(&mut self, n: usize) -> Result<&mut DeviceSlot, u32> {
        let enabled = |s: &&mut DeviceSlot| s.state != SlotState::Disabled;
        self.r.slots.get_mut(n).filter(enabled).ok_or(code::SLOT_NOT_ENABLED)
    }

    fn endpoint(&mut self, n: usize, endpoint: u8) -> Result<&mut Endpoint, u32> {
        self.slot(n)?.endpoints.get_mut(&endpoint).ok_or(code::ENDPOINT_NOT_ENABLED)
    }

    /// Where a slot's contexts are.
    fn contexts(&self, n: usize) -> u64 {
        u64::from_le_bytes(self.dma.fetch(self.r.contexts.wrapping_add(8 * n as u64))) & !0x3f
    }

    fn read_context(&self, at: u64) -> Words {
        let bytes: [u8; CONTEXT as usize] = self.dma.fetch(at);
        let mut words = [0; 8];
        words.iter_mut().zip(bytes.as_chunks().0).for_each(|(word, bytes)| *word = u32::from_le_bytes(*bytes));
        words
    }

    fn write_context(&self, at: u64, words: &Words) {
        self.dma.write(at, words.map(u32::to_le_bytes).as_flattened());
    }

    /// A context behind a slot's first, or of an input behind its flags.
    fn nth(at: u64, n: u8) -> u64 {
        at.wrapping_add(CONTEXT * u64::from(n))
    }

    fn write_slot_state(&mut self, n: usize, state: SlotState, address: usize) {
        let number = match state {
            SlotState::Disabled | SlotState::Enabled => 0,
            SlotState::Default => 1,
            SlotState::Addressed => 2,
            SlotState::Configured => 3,
        };
        self.dma.write_u32(self.contexts(n).wrapping_add(12), number << 27 | address as u32);
    }

    /// Brings an endpoint's context up to date.
    pub(super) fn write_endpoint(&mut self, n: usize, endpoint: u8) {
        let at = Self::nth(self.contexts(n), endpoint);
        let Some(e) = self.r.slots[n].endpoints.get(&endpoint).copied() else {
            return self.dma.write_u32(at, 0);
        };
        self.dma.write_u32(at, self.dma.read_u32(at) & !7 | e.state as u32);
        let ring = self.position(n, endpoint).unwrap_or(e.ring);
        self.dma.write(at.wrapping_add(8), &ring.pointer().to_le_bytes());
    }

    /// Disables endpoints and says so in their contexts.
    fn disable_endpoints(&mut self, n: usize, which: impl Fn(u8) -> bool) {
        for endpoint in (CONTROL..32).filter(|endpoint| which(*endpoint)) {
            if self.r.slots[n].endpoints.remove(&endpoint).is_some() {
                self.write_endpoint(n, endpoint);
            }
        }
    }

    /// Sets up an endpoint by its context in an input.
    fn add_endpoint(&mut self, n: usize, endpoint: u8, input: u64) -> Result<(), u32> {
        let mut words = self.read_context(Self::nth(input, endpoint + 1));
        let (kind, packet, streams) = (words[1] >> 3 & 7, (words[1] >> 16) as u16, words[0] >> 10 & 31);
        // The type says the direction, too: 4 is control, 1 to 3 send, 5 to 7 receive.
        let fits = match endpoint {
            CONTROL => kind == 4,
            _ if endpoint & 1 == 0 => (1..4).contains(&kind),
            _ => kind > 4,
        };
        if !fits || packet == 0 || streams != 0 {
            return Err(code::PARAMETER);
        }
        let ring = Ring::new(u64::from(words[2]) | u64::from(words[3]) << 32);
        let e = Endpoint { state: EndpointState::Running, packet, ring, done: 0, rung: false };
        self.r.slots[n].endpoints.insert(endpoint, e);
        words[0] = words[0] & !7 | EndpointState::Running as u32;
        self.write_context(Self::nth(self.contexts(n), endpoint), &words);
        Ok(())
    }

    fn address(&mut self, n: usize, input: u64, blocked: bool) -> Result<(), u32> {
        let state = self.slot(n)?.state;
        if state > SlotState::Default || blocked && state == SlotState::Default {
            return Err(code::CONTEXT_STATE);
        }
        let mut words = self.read_context(Self::nth(input, 1));
        let port = (words[1] >> 16 & 0xff) as usize;
        if !(1..=PORTS).contains(&port) {
            return Err(code::PARAMETER);
        }
        let ready = portsc::CONNECTED | portsc::ENABLED;
        // Behind a hub, of which there are none, or nobody answers.
        if words[0] & 0xf_ffff != 0 || self.r.ports[port - 1] & ready != ready {
            return Err(code::TRANSACTION);
        }
        self.add_endpoint(n, CONTROL, input)?;
        let slot = &mut self.r.slots[n];
        slot.port = port - 1;
        slot.state = if blocked { SlotState::Default } else { SlotState::Addressed };
        let (state, address) = (slot.state, if blocked { 0 } else { n });
        self.write_context(self.contexts(n), &{
            words[3] = 0;
            words
        });
        self.write_slot_state(n, state, address);
        if !blocked && let Some(device) = self.device_at(port - 1) {
            // SET_ADDRESS.
            device.setup([0, 5, n as u8, 0, 0, 0, 0, 0]);
            device.receive(0, 0);
        }
        Ok(())
    }

    fn configure(&mut self, n: usize, input: u64, deconfigure: bool) -> Result<(), u32> {
        if self.slot(n)?.state < SlotState::Addressed {
            return Err(code::CONTEXT_STATE);
        }
        if deconfigure {
            self.disable_endpoints(n, |endpoint| endpoint != CONTROL);
            self.r.slots[n].state = SlotState::Addressed;
        } else {
            let flags = self.read_context(input);
            let (drop, add) = (flags[0] & !3, flags[1] & !3);
            self.disable_endpoints(n, |endpoint| drop >> endpoint & 1 != 0);
            for endpoint in (CONTROL + 1..32).filter(|endpoint| add >> endpoint & 1 != 0) {
                self.add_endpoint(n, endpoint, input)?;
            }
            let some = self.r.slots[n].endpoints.keys().any(|endpoint| *endpoint != CONTROL);
            self.r.slots[n].state = if some { SlotState::Configured } else { SlotState::Addressed };
            // Context Entries.
            let (at, given) = (self.contexts(n), self.read_context(Self::nth(input, 1)));
            let own = self.dma.read_u32(at);
            self.dma.write_u32(at, own & !(31 << 27) | given[0] & 31 << 27);
        }
        let state = self.r.slots[n].state;
        self.write_slot_state(n, state, n);
        Ok(())
    }

    fn evaluate(&mut self, n: usize, input: u64) -> Result<(), u32> {
        if self.slot(n)?.state < SlotState::Default {
            return Err(code::CONTEXT_STATE);
        }
        let (flags, at) = (self.read_context(input), self.contexts(n));
        if flags[1] & 1 != 0 {
            // Max Exit Latency and Interrupter Target.
            let given = self.read_context(Self::nth(input, 1));
            let own = self.read_context(at);
            self.dma.write_u32(at.wrapping_add(4), own[1] & !0xffff | given[1] & 0xffff);
            self.dma.write_u32(at.wrapping_add(8), own[2] & !(0x3ff << 22) | given[2] & 0x3ff << 22);
        }
        if flags[1] & 2 != 0 {
            let given = self.read_context(Self::nth(input, CONTROL + 1));
            let packet = (given[1] >> 16) as u16;
            if packet == 0 {
                return Err(code::PARAMETER);
            }
            self.endpoint(n, CONTROL)?.packet = packet;
            let at = Self::nth(at, CONTROL).wrapping_add(4);
            self.dma.write_u32(at, self.dma.read_u32(at) & 0xffff | given[1] & 0xffff_0000);
        }
        Ok(())
    }
}
