//! The vocabulary of the machine: what a device, a bus, a wire, a clock and guest memory are.
//!
//! Everything else is written in these words, and this crate depends on nothing of ours. Its rules:
//!
//! * A [`Device`] has `&mut self` and no locks; the framework holds the one device lock while it runs ([`DeviceCell`]).
//!   A thread holds at most one device lock; below it there are only leaf locks (interrupt chips, timers, the address
//!   space), which never call up into a device. Debug builds assert this.
//! * Guest RAM is never borrowed: [`Ram`] hands out copies, made by volatile accesses, and a raw pointer to the CPU
//!   back ends. Devices reach it through [`DmaMem`], which obeys the bus-master bit.
//! * Time comes from [`Clock`], never from the operating system. It stops with the machine.
//! * A guest's bad access is not an error: reads of nothing give ones, writes to nothing vanish.

pub mod backend;
pub mod bench;
mod bus;
mod clock;
mod completion;
mod device;
mod display;
mod dma;
mod irq;
mod pci;
mod ram;
mod random;
pub mod scancode;
mod space;

pub use backend::Unit;
pub use bus::{CpuBus, Exit};
pub use clock::{Clock, Timer, TimerSink, Timers};
pub use completion::{DISK_LATENCY, DiskPort, SavedAnswer, SharePort, Ticket};
pub use device::{
    Backends, Class, Create, Device, DeviceCell, DeviceState, Event, IrqSaved, Machine, Model, Param, ParamKind,
    Params, Region, ResetKind, Saved, Slot, State, SystemEvent, when_unlocked,
};
pub use display::{Cell, Display, Picture, TILE, TextScreen, Tiles, View};
pub use dma::{DmaMem, IoVec};
pub use irq::{IrqLine, IrqSink, MsiSink, NoMsi};
pub use pci::{Bar, BarKind, Bdf, Msi, Msix, PciBus, PciConfig, PciFunction, PciIds, Pin, Routing};
pub use ram::{PAGE_SIZE, Ram, RamAddr, RamBlock};
pub use random::{Random, derive};
pub use space::{
    Access, AddressSpace, Backing, Doorbell, FlatRange, Map, MapListener, PortRange, RegionId, Rights, Target, Watch,
    Widths,
};
