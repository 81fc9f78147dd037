//! What devices want of the host: disks, networks, character streams, shares. Implemented in `host`.
//!
//! Nothing here waits. A request carries what it owns, the answer comes back as an [`crate::Event`] to the device's
//! cell.

use std::sync::Weak;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::completion::Ticket;
use crate::device::{DeviceCell, Event};
use crate::dma::IoVec;

/// What a disk is asked to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskOp {
    /// Read into guest memory.
    Read(IoVec),
    /// Write from guest memory.
    Write(IoVec),
    /// Read this many bytes, to come back with the completion.
    ReadBytes(u64),
    /// Write these bytes.
    WriteBytes(Vec<u8>),
    /// Everything that was completed is on stable storage when this completes.
    Flush,
    /// The contents of this many bytes are no longer needed.
    Discard(u64),
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRequest {
    /// The device's name for it.
    pub tag: u64,
    /// Byte offset on the disk.
    pub offset: u64,
    /// What to do.
    pub op: DiskOp,
}

/// The answer to a [`DiskRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The request's tag.
    pub tag: u64,
    /// Whether it worked; the disk has logged why not.
    pub ok: bool,
    /// What [`DiskOp::ReadBytes`] read.
    pub data: Vec<u8>,
}

/// What stands at a unit of a disk controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Nothing.
    #[default]
    None,
    /// A disk.
    Disk,
    /// A CD-ROM drive.
    Cd,
}

/// A handle on a block store. A device reaches it by a [`crate::DiskPort`].
pub trait Disk: Send {
    /// Size in bytes; 0 for a drive without a medium.
    fn size(&self) -> u64;
    /// Whether writes are refused.
    fn read_only(&self) -> bool;
    /// Starts a request, which the ticket answers when it is finished. It must not wait for the host.
    fn submit(&mut self, request: DiskRequest, ticket: Ticket);
    /// Forgets all requests of this handle that are under way: none of them touches guest memory after this returns.
    fn cancel(&mut self);
    /// The guest wants the medium to stay in the drive, or no longer wants that.
    fn lock(&mut self, locked: bool) {
        let _ = locked;
    }
    /// Another handle on the same store. Requests of all handles are served in the order in which they were made.
    fn share(&self) -> Box<dyn Disk>;
}

/// What is left to do for a frame before it is one for a wire. Virtio 1.2, 5.1.6 says so in its header, and Linux's taps
/// have the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// The checksum: where its sum begins, and how far behind that it is, which holds the pseudo header's until then.
    pub checksum: Option<(u16, u16)>,
    /// Bytes of data in each TCP segment that the frame is to be cut into; 0: it stays whole.
    pub mss: u16,
}

/// Who hears what comes out of a wire: a card, or what stands before it.
pub trait Listener: Send + Sync {
    /// Takes an event. It is called as [`DeviceCell::event`] is: without a device's lock, and while the machine runs.
    fn event(&self, event: Event);
}

impl Listener for DeviceCell {
    fn event(&self, event: Event) {
        DeviceCell::event(self, event);
    }
}

/// A wire.
pub trait Net: Send {
    /// Sends a frame (without FCS). It may be dropped.
    fn send(&mut self, frame: &[u8]);
    /// The card can do what is left to do for a frame, and asks whether this end can. If so, [`Net::send_partial`] and
    /// [`crate::Event::Partial`] are allowed from now on.
    fn partial(&mut self) -> bool {
        false
    }
    /// Sends a frame for which `rest` is left to do.
    fn send_partial(&mut self, frame: &[u8], rest: Offload) {
        let _ = (frame, rest);
    }
    /// Who gets [`crate::Event::Frame`].
    fn attach(&mut self, to: Weak<dyn Listener>);
    /// The device has room for frames again (true), or wants none now.
    fn want(&mut self, ready: bool);
}

/// A stream of bytes both ways.
pub trait Chardev: Send {
    /// Takes some of `data` and says how many bytes. Less than all: [`crate::Event::CharsReady`] follows.
    fn write(&mut self, data: &[u8]) -> usize;
    /// Who gets [`crate::Event::Chars`], and as which number.
    fn attach(&mut self, to: Weak<DeviceCell>, number: usize);
    /// How many more bytes the device can take; the stream holds back the rest.
    fn want(&mut self, bytes: usize);
}

/// Whoever presses the keys of a keyboard.
pub trait Keys: Send {
    /// Who gets [`crate::Event::Key`].
    fn attach(&mut self, to: Weak<DeviceCell>);
    /// The guest has read all that the keyboard had to say, and can take the next key (true), or not yet. Called when
    /// it changes, with the device's lock held.
    fn want(&mut self, ready: bool);
    /// The guest has set the keyboard's lights: bit 0 Scroll Lock, 1 Num Lock, 2 Caps Lock. Called with the device's
    /// lock held.
    fn lights(&mut self, lights: u8) {
        let _ = lights;
    }
    /// The guest has set this keyboard up beside that of the board, and reads it (true), or no longer: while it does,
    /// keys are pressed here. Called with the device's lock held.
    fn listens(&mut self, on: bool) {
        let _ = on;
    }
}

/// How a device points.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pointing {
    /// It moves ([`crate::Event::Pointer`]).
    By,
    /// It is at a place on the screen ([`crate::Event::PointerAt`]).
    At,
}

/// Whoever moves a pointer.
pub trait Pointer: Send {
    /// Who gets the events.
    fn attach(&mut self, to: Weak<DeviceCell>);
    /// What the guest has set up here and reads: such a device, or none. Called when it changes, with the device's lock
    /// held.
    fn listens(&mut self, kind: Option<Pointing>);
}

/// What an input device says, as evdev has it: type, code, value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputEvent {
    /// Its type.
    pub kind: u16,
    /// Which key, axis or lamp.
    pub code: u16,
    /// What it is now, or by how much it moved; signed where that makes sense.
    pub value: u32,
}

/// What an input device is, and what it can say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InputIdentity {
    /// What it is called.
    pub name: String,
    /// Which one it is.
    pub serial: String,
    /// Bus, vendor, product, version.
    pub ids: [u16; 4],
    /// A bit for each property.
    pub properties: Vec<u8>,
    /// By type of event, a bit for each code.
    pub codes: Vec<(u8, Vec<u8>)>,
    /// By axis: least, most, fuzz, flat, resolution.
    pub axes: Vec<(u8, [u32; 5])>,
}

/// An input device of the host.
pub trait Evdev: Send {
    /// What it is.
    fn identity(&self) -> InputIdentity;
    /// Who gets [`crate::Event::Input`].
    fn attach(&mut self, to: Weak<DeviceCell>);
    /// The device has room for events (true), or the host is to wait.
    fn want(&mut self, ready: bool);
    /// Tells the device something, such as to light a lamp.
    fn send(&mut self, event: InputEvent);
}

/// A directory of the host, as a server of 9P. A device reaches it by a [`crate::SharePort`].
pub trait Share: Send {
    /// Serves a message; the ticket is answered with the reply, of at most `room` bytes, or with a failure where there
    /// is none that fits. It must not wait for the host.
    fn submit(&mut self, message: Vec<u8>, room: usize, ticket: Ticket);
    /// Forgets what was asked for, and all that the guest has open.
    fn reset(&mut self);
    /// What the guest has open when all that it asked for is done.
    fn save(&self) -> Value;
    /// Opens that again.
    ///
    /// # Errors
    /// It is nothing that was saved. Files that are gone are not an error: the guest hears of them.
    fn load(&mut self, saved: Value) -> Result<(), String>;
}

/// What is heard at one moment: a linear sample at the left and one at the right.
pub type Frame = [i16; 2];

/// Where sound is played.
pub trait Playback: Send {
    /// A stream of so many frames a second begins.
    fn open(&mut self, rate: u32);
    /// Plays frames. It must not wait for the host: what finds no room is dropped.
    fn write(&mut self, frames: &[Frame]);
    /// The stream ends.
    fn close(&mut self);
}

/// Where sound is recorded.
pub trait Capture: Send {
    /// A stream of so many frames a second begins.
    fn open(&mut self, rate: u32);
    /// Fills `frames`, with silence where nothing was recorded. It must not wait for the host.
    fn read(&mut self, frames: &mut [Frame]);
    /// The stream ends.
    fn close(&mut self);
}
