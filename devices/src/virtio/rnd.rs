//! virtio-rnd: random numbers.
//!
//! Virtio 1.2, 5.4: one queue, whose buffers are filled. The numbers are the machine's, so that a run by the
//! instruction clock can be repeated. bhyve's name for what others call virtio-rng.

use std::sync::Arc;

use emu::{Class, Event, Model, Params, Random, Slot};

use super::pci::{Core, Function, IOEVENTFD, Kind, MSIX, VERSION, VirtioPci};

/// The model.
pub static MODEL: Model = Model {
    name: "virtio-rnd",
    summary: "virtio source of random numbers",
    class: Class::Other,
    keys: &[VERSION, IOEVENTFD, MSIX],
    create,
};

const KIND: Kind = Kind { id: 4, legacy_device: 0x1005, class: 0x10_0000, config: 0 };

/// Bytes that one buffer gets at most; the driver comes again for more.
const MOST: usize = 4096;

struct Rnd(Arc<Random>);

fn create(slot: &mut Slot, params: &Params) -> Result<Box<dyn emu::Device>, String> {
    let random = slot.machine().random();
    VirtioPci::create(slot, params, &KIND, 1, Rnd(random))
}

impl Function for Rnd {
    type Saved = ();

    fn features(&self) -> u64 {
        0
    }

    fn config(&self, _: &Core, _: &mut [u8]) {}

    fn kick(&mut self, core: &mut Core, n: usize) {
        core.drain(n, |core, chain| {
            let mut buf = [0; MOST];
            let bytes = &mut buf[..chain.in_len.min(MOST as u64) as usize];
            self.0.fill(bytes);
            chain.write(core.dma(), 0, bytes);
            core.push(n, chain.head, bytes.len() as u32);
        });
    }

    fn event(&mut self, _: &mut Core, _: Event) {}

    fn reset(&mut self) {}

    fn save(&self) {}

    fn load(&mut self, (): ()) -> Result<(), String> {
        Ok(())
    }
}
