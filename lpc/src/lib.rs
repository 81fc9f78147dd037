//! ISA and chipset parts that every PC has.
//!
//! Interrupt controllers are leaf chips with locks of their own, driven from any thread; all others are devices. Boards
//! (`bhyve-rs`) decide which of them a machine gets, and leave out what the hypervisor brings itself.

mod i8254;
mod i8259;
mod ioapic;
mod mc146818;
mod ns16550;

pub use i8254::I8254;
pub use i8259::I8259;
pub use ioapic::IoApic;
pub use mc146818::Mc146818;
pub use ns16550::Ns16550;
