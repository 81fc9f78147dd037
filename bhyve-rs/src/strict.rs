//! A machine that ends at an access to a port that no device has, as bhyve(8)'s `-e` asks for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use emu::{Access, AddressSpace, Widths};

/// What lies under all devices' ports.
struct Floor<F> {
    tell: F,
    on: Arc<AtomicBool>,
}

/// Has `tell` called with the first such access, in words, from a processor's thread. What was plugged in before and
/// what is plugged in later goes before it. The switch is for the built-in BIOS, which looks for devices that need not
/// be there.
pub fn attach(space: &AddressSpace, tell: impl Fn(String) + Send + Sync + 'static) -> Arc<AtomicBool> {
    let on = Arc::new(AtomicBool::new(true));
    let floor = Arc::new(Floor { tell, on: on.clone() });
    let id = space.add_ports(0, 0x1_0000, i32::MIN, floor, 0, Widths::DWORD);
    space.enable_ports(id, 0, true);
    on
}

impl<F: Fn(String) + Send + Sync> Floor<F> {
    fn met(&self, what: &str, port: u64, width: u8) {
        if self.on.swap(false, Ordering::Relaxed) {
            (self.tell)(format!("{what} of {width} bytes at port {port:#x}, which no device has (cpu.strictio)"));
        }
    }
}

impl<F: Fn(String) + Send + Sync> Access for Floor<F> {
    fn owner(&self) -> &str {
        "strictio"
    }

    fn read(&self, _: u32, port: u64, width: u8) -> u64 {
        self.met("a read", port, width);
        u64::MAX
    }

    fn write(&self, _: u32, port: u64, width: u8, _: u64) {
        self.met("a write", port, width);
    }
}
