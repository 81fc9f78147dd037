//! ISA and chipset parts that every PC has.
//!
//! Interrupt controllers are leaf chips with locks of their own, driven from any thread; all others are devices. Boards
//! (`bhyve-rs`) decide which of them a machine gets, and leave out what the hypervisor brings itself.

mod acpi_pm;
mod debug_port;
mod floppy_drive;
mod fw_cfg;
mod hpet;
mod i440;
mod i8042;
mod i82077aa;
mod i8237;
mod i8254;
mod i8259;
mod ioapic;
pub mod lpc_bhyve;
mod mc146818;
mod ns16550;
mod pflash;
mod piix_isa;
mod pirq;

pub use acpi_pm::{ACPI_DISABLE, ACPI_ENABLE, AcpiPm};
pub use debug_port::DebugPorts;
pub use floppy_drive::{FloppyModel, Medium};
pub use fw_cfg::{FwCfg, FwCfgItems};
pub use hpet::{Hpet, LegacyRoute};
pub use i440::{HostBridge, I440, Mechanism1};
pub use i8042::I8042;
pub use i8237::I8237;
pub use i8254::I8254;
pub use i8259::I8259;
pub use i82077aa::{FloppyUnit, I82077aa};
pub use ioapic::IoApic;
pub use lpc_bhyve::{BhyveHostBridge, BhyveLpc};
pub use mc146818::Mc146818;
pub use ns16550::{Ns16550, UART};
pub use pflash::{BLOCK, Pflash};
pub use piix_isa::{Piix, PiixIsa};
pub use pirq::Pirq;
