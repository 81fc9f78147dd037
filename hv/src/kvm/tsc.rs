//! The time-stamp counter: the host's with an offset of each processor, which grows by the time for which the machine
//! stood still. All processors' grow by the same number, so that they stay in step.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use emu::Clock;
use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_device_attr};
use kvm_ioctls::VcpuFd;

/// _IOW(KVMIO, 0xe1, struct kvm_device_attr), and 0xe2.
const SET_DEVICE_ATTR: libc::c_ulong = 0x4018_aee1;
const GET_DEVICE_ATTR: libc::c_ulong = 0x4018_aee2;

/// The host's counter less what it counted while the machine stood still: for a paused machine a constant, which is
/// taken once in each pause.
#[derive(Default)]
pub(super) struct Frozen(Mutex<Option<u64>>);

/// A processor's counter.
pub(super) struct Tsc {
    clock: Arc<Clock>,
    khz: u32,
    /// What its offset makes up for of the time for which the machine stood still.
    stood: u64,
    /// It can be set: not before Linux 5.16, and not where the kernel interprets guests.
    settable: bool,
}

impl Tsc {
    /// Of a new processor.
    pub(super) fn of(vcpu: &VcpuFd, clock: Arc<Clock>, khz: u32) -> Tsc {
        const TRIED: u64 = 1 << 40;
        let settable = set_offset(vcpu, TRIED).is_ok() && offset(vcpu).is_ok_and(|got| got == TRIED);
        Tsc { clock, khz, stood: 0, settable }
    }

    /// Whether it can be set.
    pub(super) fn is_set(&self) -> bool {
        self.settable
    }

    /// What the host's counter counted while the machine stood still. A constant while it runs.
    fn ticks(&self) -> u64 {
        (u128::from(self.clock.stood_still()) * u128::from(self.khz) / 1_000_000) as u64
    }

    #[expect(unsafe_code, reason = "RDTSC")]
    fn frozen(&self, frozen: &Frozen) -> u64 {
        let now = || {
            // SAFETY: every processor with KVM has the instruction.
            let host = unsafe { std::arch::x86_64::_rdtsc() };
            host.wrapping_sub(self.ticks())
        };
        if self.clock.stands() { *frozen.0.lock().unwrap().get_or_insert_with(now) } else { now() }
    }

    /// What it shows; 0 if it cannot be set.
    pub(super) fn get(&self, vcpu: &VcpuFd, frozen: &Frozen) -> io::Result<u64> {
        if !self.settable {
            return Ok(0);
        }
        Ok(self.frozen(frozen).wrapping_add(offset(vcpu)?).wrapping_add(self.stood))
    }

    /// Sets it for the paused machine.
    pub(super) fn set(&self, vcpu: &VcpuFd, frozen: &Frozen, value: u64) -> io::Result<()> {
        set_offset(vcpu, value.wrapping_sub(self.frozen(frozen)).wrapping_sub(self.stood))
    }

    /// The machine goes on, and the counter from where it stood.
    pub(super) fn catch_up(&mut self, vcpu: &VcpuFd, frozen: &Frozen) -> io::Result<()> {
        let stood = self.ticks();
        if stood != self.stood && self.settable {
            frozen.0.lock().unwrap().take();
            set_offset(vcpu, offset(vcpu)?.wrapping_sub(stood.wrapping_sub(self.stood)))?;
            self.stood = stood;
        }
        Ok(())
    }
}

/// Sets what KVM adds to the host's counter.
fn set_offset(vcpu: &VcpuFd, mut offset: u64) -> io::Result<()> {
    access(vcpu, SET_DEVICE_ATTR, &mut offset)
}

/// Gets it.
fn offset(vcpu: &VcpuFd) -> io::Result<u64> {
    let mut offset = 0;
    access(vcpu, GET_DEVICE_ATTR, &mut offset).map(|()| offset)
}

#[expect(unsafe_code, reason = "two requests, of which kvm-ioctls has one")]
fn access(vcpu: &VcpuFd, request: libc::c_ulong, offset: &mut u64) -> io::Result<()> {
    let attr = kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr: std::ptr::from_mut(offset) as u64,
        flags: 0,
    };
    // SAFETY: the requests read the attribute, and read or write the eight bytes that it points to, which are borrowed.
    match unsafe { libc::ioctl(vcpu.as_raw_fd(), request as _, &raw const attr) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
