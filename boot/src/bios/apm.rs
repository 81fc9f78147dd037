//! APM 1.2 (Intel and Microsoft, Advanced Power Management BIOS Interface Specification, revision 1.2).
//!
//! The machine has no battery and no states between on and off: what drivers want of it is that idling sleeps and that
//! switching off works, also where the system does not know ACPI. Connecting gives entry points for 16-bit and 32-bit
//! protected mode, which do the same as INT 15h/53h. OpenBSD/i386 calls the 32-bit one when function 03 says that it
//! is there.

use serde::{Deserialize, Serialize};

use super::{Call, Flow, data, rom};

const DISABLED: u8 = 0x01;
const REAL_CONNECTED: u8 = 0x02;
const NOT_CONNECTED: u8 = 0x03;
const CONNECTED_16: u8 = 0x05;
const CONNECTED_32: u8 = 0x07;
const UNKNOWN_DEVICE: u8 = 0x09;
const OUT_OF_RANGE: u8 = 0x0a;
const CANNOT: u8 = 0x60;
const NO_EVENT: u8 = 0x80;
const NOT_THERE: u8 = 0x86;

/// Devices: the BIOS itself, everything.
const BIOS: u16 = 0;
const ALL: u16 = 1;
/// Length of the segments that protected mode gets.
const SEGMENT: u16 = 0xfff0;
/// SLP_EN of the power management block's control register.
const SLP_EN: u32 = 1 << 13;

/// Who is connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Connection {
    #[default]
    None,
    Real,
    Bits16,
    Bits32,
}

/// What drivers have set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    connection: Connection,
    /// The driver's version, 0100 until it has said so.
    version: u16,
    disabled: bool,
}

/// INT 15h/53h, and the entries for protected mode.
pub(super) fn service(c: &mut Call) -> Flow {
    let function = c.r.al();
    if function == 0x05 && c.config.options.apm && !c.again && !c.is_latched() {
        // Idle: until the next interrupt. The entries for protected mode do it themselves.
        return Flow::Wait;
    }
    let result = if c.config.options.apm { call(c, function) } else { Err(NOT_THERE) };
    if let Err(status) = result {
        c.r.set_ah(status);
    }
    c.r.set_carry(result.is_err());
    Flow::Done
}

fn call(c: &mut Call, function: u8) -> Result<(), u8> {
    let device = c.r.bx();
    let bios = |device: u16| if device == BIOS { Ok(()) } else { Err(UNKNOWN_DEVICE) };
    let known = |device: u16| if device <= ALL { Ok(()) } else { Err(UNKNOWN_DEVICE) };
    let connection = c.state.apm.connection;
    match function {
        0x00 => {
            bios(device)?;
            c.r.set_ax(0x0102);
            c.r.set_bx(0x504d);
            // Entries for both; bit 3: disabled.
            let disabled = u16::from(c.state.apm.disabled) << 3;
            c.r.set_cx(3 | disabled);
            return Ok(());
        }
        0x01..=0x03 => {
            bios(device)?;
            match connection {
                Connection::None => {}
                Connection::Real => return Err(REAL_CONNECTED),
                Connection::Bits16 => return Err(CONNECTED_16),
                Connection::Bits32 => return Err(CONNECTED_32),
            }
            c.state.apm.version = 0x0100;
            c.state.apm.connection = match function {
                1 => Connection::Real,
                2 => Connection::Bits16,
                _ => Connection::Bits32,
            };
            if function == 2 {
                c.r.set_ax(data::ROM_SEGMENT);
                c.r.set_bx(rom::APM16);
                c.r.set_cx(data::ROM_SEGMENT);
                c.r.set_si(SEGMENT);
                c.r.set_di(SEGMENT);
            } else if function == 3 {
                c.r.set_ax(data::ROM_SEGMENT);
                c.r.ebx = rom::APM32.into();
                c.r.set_cx(data::ROM_SEGMENT);
                c.r.set_dx(data::ROM_SEGMENT);
                c.r.esi = u32::from(SEGMENT) << 16 | u32::from(SEGMENT);
                c.r.set_di(SEGMENT);
            }
            return Ok(());
        }
        _ if connection == Connection::None => return Err(NOT_CONNECTED),
        _ => {}
    }
    match function {
        0x04 => {
            bios(device)?;
            c.state.apm.connection = Connection::None;
        }
        0x05 | 0x06 => {}
        0x07 => {
            match (device, c.r.cx()) {
                // Displays, disks and so on obey, without effect: OpenBSD spins disks down before it switches off.
                (0x0100..=0x06ff, 0..=3) | (ALL, 0) => {}
                (2..=0x00ff | 0x0700.., _) => return Err(UNKNOWN_DEVICE),
                _ if c.state.apm.disabled => return Err(DISABLED),
                (ALL, 3) => power_off(c)?,
                (ALL, 1 | 2) => return Err(CANNOT),
                // Notices that a request is under way or refused.
                (ALL, 4 | 5) => {}
                _ => return Err(OUT_OF_RANGE),
            }
        }
        // Drivers disagree on which device that is: OpenBSD names the BIOS.
        0x08 => match (device, c.r.cx()) {
            (BIOS | ALL | 0xffff, state @ (0 | 1)) => c.state.apm.disabled = state == 0,
            (BIOS | ALL | 0xffff, _) => return Err(OUT_OF_RANGE),
            _ => return Err(UNKNOWN_DEVICE),
        },
        0x09 => c.state.apm.disabled = false,
        0x0a => {
            if device != ALL {
                return Err(UNKNOWN_DEVICE);
            }
            // On line; no battery.
            c.r.set_bx(0x01ff);
            c.r.set_cx(0x80ff);
            c.r.set_dx(0xffff);
        }
        0x0b => return Err(NO_EVENT),
        0x0c => {
            known(device)?;
            c.r.set_cx(0);
        }
        0x0d | 0x0f => known(device)?,
        0x0e => {
            bios(device)?;
            let version = c.r.cx().min(0x0102);
            c.state.apm.version = version;
            c.r.set_ax(version);
        }
        0x10 => {
            bios(device)?;
            // No batteries, nothing that it can do to itself.
            c.r.set_bl(0);
            c.r.set_cx(0);
        }
        _ => return Err(0x0c),
    }
    Ok(())
}

/// Off, by the power management block that ACPI uses.
fn power_off(c: &mut Call) -> Result<(), u8> {
    let pm = c.config.platform.pm.ok_or(CANNOT)?;
    let control = pm.base + 4;
    let value = c.host.inp(control, 2) & !(7 << 10);
    c.host.outp(control, 2, value | u32::from(pm.s5) << 10 | SLP_EN);
    Ok(())
}
