//! virtio-9p: a directory of the host.
//!
//! Virtio 1.2 has only the number of it; the rest is Linux's virtio_9p.h: one queue, whose chains hold a message of 9P
//! and room for its reply, and a tag by which the guest mounts it. The protocol is the share's
//! ([`emu::backend::Share`]). Linux's 9p(5) has it since 2.6.38, FreeBSD's p9fs(4) since 15.0.
//!
//! The share takes a limited number of messages at a time, and the rest waits in the queue: so neither a slow host nor
//! a guest in a hurry makes this process grow.

use emu::{Class, Event, Model, Params, SharePort, Slot};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::pci::{Core, Function, IOEVENTFD, Kind, MSIX, VERSION, VirtioPci};
use super::queue::{Chain, MAX_SIZE};

/// The model. Its parameter `name` is the tag.
pub static MODEL: Model = Model {
    name: "virtio-9p",
    summary: "virtio share: a directory of the host, by 9P",
    class: Class::Share,
    keys: &[VERSION, IOEVENTFD, MSIX],
    create,
};

const MOUNT_TAG: u64 = 1;

/// Bytes of the longest tag, which is bhyve's.
const MAX_TAG: usize = 256;
/// Messages that the share has at a time.
const MOST: usize = 32;
/// Bytes of the longest message that is handed over. The share agrees to none that is longer.
const MAX_MESSAGE: u64 = 512 << 10;
/// Bytes of a reply's header.
const HEADER: u64 = 7;

const QUEUE: usize = 0;

/// A message whose reply is not there yet.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Request {
    head: u16,
    /// Where the reply goes: addresses and lengths.
    room: Vec<(u64, u32)>,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    requests: Vec<Option<Request>>,
    session: Value,
}

struct P9 {
    /// By their tags.
    requests: [Option<Request>; MOST],
    share: SharePort,
    tag: Vec<u8>,
    chain: Chain,
}

fn create(slot: &mut Slot, params: &Params) -> Result<Box<dyn emu::Device>, String> {
    let share = slot.share().ok_or("virtio-9p needs a share")?;
    let tag = params.get("name").unwrap_or(slot.name()).as_bytes().to_vec();
    if tag.is_empty() || tag.len() > MAX_TAG {
        return Err(format!("the name of a share has 1 to {MAX_TAG} bytes"));
    }
    let kind = Kind { id: 9, legacy_device: 0x1009, class: 0x01_8000, config: 2 + tag.len() };
    let p9 = P9 { requests: [const { None }; MOST], share, tag, chain: Chain::default() };
    VirtioPci::create(slot, params, &kind, 1, p9)
}

impl P9 {
    /// Hands messages to the share as long as it takes them.
    fn pump(&mut self, core: &mut Core) {
        let mut chain = std::mem::take(&mut self.chain);
        let mut left = MAX_SIZE;
        while let Some(tag) = self.requests.iter().position(Option::is_none) {
            // Those for which there is no reply take no place.
            if left == 0 {
                core.again(QUEUE);
                break;
            }
            if !core.pop(QUEUE, &mut chain) {
                break;
            }
            left -= 1;
            if chain.in_len < HEADER {
                core.push(QUEUE, chain.head, 0);
                continue;
            }
            let mut message = vec![0; chain.out_len.min(MAX_MESSAGE) as usize];
            chain.read(core.dma(), 0, &mut message);
            self.requests[tag] = Some(Request { head: chain.head, room: chain.writable().to_vec() });
            self.share.submit(tag as u64, message, chain.in_len.min(MAX_MESSAGE) as usize);
        }
        self.chain = chain;
    }

    /// Gives a reply to the driver.
    fn done(&mut self, core: &mut Core, tag: u64, reply: &[u8]) {
        let Some(request) = self.requests.get_mut(tag as usize).and_then(Option::take) else { return };
        let mut rest = reply;
        for (addr, len) in request.room {
            let (here, behind) = rest.split_at(rest.len().min(len as usize));
            core.dma().write(addr, here);
            rest = behind;
        }
        core.push(QUEUE, request.head, (reply.len() - rest.len()) as u32);
    }
}

impl Function for P9 {
    type Saved = Saved;

    fn features(&self) -> u64 {
        MOUNT_TAG
    }

    fn config(&self, _: &Core, image: &mut [u8]) {
        image[..2].copy_from_slice(&(self.tag.len() as u16).to_le_bytes());
        image[2..].copy_from_slice(&self.tag);
    }

    fn kick(&mut self, core: &mut Core, _: usize) {
        self.pump(core);
        core.publish(QUEUE);
    }

    fn event(&mut self, core: &mut Core, event: Event) {
        match event {
            Event::Done(completion) => self.done(core, completion.tag, &completion.data),
            Event::AllDone => self.kick(core, QUEUE),
            _ => {}
        }
    }

    fn reset(&mut self) {
        self.share.reset();
        self.requests = [const { None }; MOST];
    }

    fn save(&self) -> Saved {
        Saved { requests: self.requests.to_vec(), session: self.share.save() }
    }

    fn load(&mut self, saved: Saved) -> Result<(), String> {
        let room = |r: &Request| r.room.len() <= usize::from(MAX_SIZE);
        if !saved.requests.iter().flatten().all(room) {
            return Err("a request has more buffers than a queue".to_owned());
        }
        let requests = saved.requests.try_into().map_err(|_| "it was saved with other requests".to_owned())?;
        self.share.load(saved.session)?;
        self.requests = requests;
        Ok(())
    }
}
