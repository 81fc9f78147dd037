//! The devices inside vmm.ko: interrupts, clocks, what is passed through; statistics and snapshots.

use std::io;

use crate::abi::Version;
use crate::common::{self, MAX_STATS};
use crate::ids::Part;
use crate::layout::Plain;
use crate::memory::text;
use crate::vm::{Vm, address, call_pointing, id};
use crate::{v13, v14};

/// A message signalled interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    /// Where it is written.
    pub address: u64,
    /// What is written.
    pub data: u64,
}

/// A PCI function of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostFunction {
    /// Bus.
    pub bus: i32,
    /// Slot.
    pub slot: i32,
    /// Function.
    pub func: i32,
}

impl HostFunction {
    fn request(self) -> common::vm_pptdev {
        common::vm_pptdev { bus: self.bus, slot: self.slot, func: self.func }
    }

    fn mmio(self, gpa: u64, hpa: u64, len: u64) -> common::vm_pptdev_mmio {
        let HostFunction { bus, slot, func } = self;
        common::vm_pptdev_mmio { bus, slot, func, gpa, hpa, len, ..Plain::ZERO }
    }
}

impl Vm {
    /// `VM_LAPIC_MSI`.
    ///
    /// # Errors
    /// `EINVAL`: the address is no local APIC's. Kernels take that for a call to be made again, without end, so it is
    /// refused here.
    pub fn lapic_msi(&self, msi: Msi) -> io::Result<()> {
        if msi.address >> 20 != 0xfee {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        self.call(common::VM_LAPIC_MSI, &mut common::vm_lapic_msi { msg: msi.data, addr: msi.address })
    }

    /// `VM_LAPIC_IRQ`: an edge of a vector at a local APIC. 15 forces the vCPU out for it; [`Self::lapic_msi`] does not.
    ///
    /// # Errors
    /// `EINVAL`: the vector is below 16.
    pub fn lapic_irq(&self, cpu: u32, vector: u8) -> io::Result<()> {
        self.call(common::VM_LAPIC_IRQ, &mut common::vm_lapic_irq { cpuid: id(cpu), vector: vector.into() })
    }

    /// `VM_LAPIC_LOCAL_IRQ`: an entry of a local APIC's vector table, or of all; 0 and 1 are LINT0 and LINT1.
    ///
    /// # Errors
    /// `EINVAL`: there is no such entry.
    pub fn lapic_local_irq(&self, cpu: Option<u32>, entry: i32) -> io::Result<()> {
        self.call(common::VM_LAPIC_LOCAL_IRQ, &mut common::vm_lapic_irq { cpuid: cpu.map_or(-1, id), vector: entry })
    }

    /// `VM_IOAPIC_ASSERT_IRQ` or `VM_IOAPIC_DEASSERT_IRQ`. The kernel counts: tell it changes of a line alone.
    ///
    /// # Errors
    /// `EINVAL`: there is no such pin.
    pub fn set_ioapic_pin(&self, pin: u32, high: bool) -> io::Result<()> {
        let request = if high { common::VM_IOAPIC_ASSERT_IRQ } else { common::VM_IOAPIC_DEASSERT_IRQ };
        self.call(request, &mut common::vm_ioapic_irq { irq: id(pin) })
    }

    /// `VM_IOAPIC_PULSE_IRQ`: up and down.
    ///
    /// # Errors
    /// `EINVAL`: there is no such pin.
    pub fn pulse_ioapic_pin(&self, pin: u32) -> io::Result<()> {
        self.call(common::VM_IOAPIC_PULSE_IRQ, &mut common::vm_ioapic_irq { irq: id(pin) })
    }

    /// `VM_IOAPIC_PINCOUNT`.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn ioapic_pins(&self) -> io::Result<u32> {
        let mut count = common::int { value: 0 };
        self.call(common::VM_IOAPIC_PINCOUNT, &mut count)?;
        Ok(u32::try_from(count.value).unwrap_or(0))
    }

    /// `VM_ISA_ASSERT_IRQ` or `VM_ISA_DEASSERT_IRQ`: a line of the 8259 pair and, if there is one, the I/O APIC's pin
    /// that it is wired to. The kernel counts here too.
    ///
    /// # Errors
    /// `EINVAL`: there is no such line or pin.
    pub fn set_isa_irq(&self, irq: u32, pin: Option<u32>, high: bool) -> io::Result<()> {
        let request = if high { common::VM_ISA_ASSERT_IRQ } else { common::VM_ISA_DEASSERT_IRQ };
        self.call(request, &mut isa_irq(irq, pin))
    }

    /// `VM_ISA_PULSE_IRQ`: up and down.
    ///
    /// # Errors
    /// `EINVAL`: there is no such line or pin.
    pub fn pulse_isa_irq(&self, irq: u32, pin: Option<u32>) -> io::Result<()> {
        self.call(common::VM_ISA_PULSE_IRQ, &mut isa_irq(irq, pin))
    }

    /// `VM_ISA_SET_IRQ_TRIGGER`.
    ///
    /// # Errors
    /// `EINVAL`: the line cannot have it.
    pub fn set_isa_trigger(&self, irq: u32, level: bool) -> io::Result<()> {
        let mut trigger = common::vm_isa_irq_trigger { atpic_irq: id(irq), trigger: level.into() };
        self.call(common::VM_ISA_SET_IRQ_TRIGGER, &mut trigger)
    }

    /// `VM_GET_HPET_CAPABILITIES`: the low half of the register, which ACPI's table has too.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn hpet_capabilities(&self) -> io::Result<u32> {
        let mut hpet = common::vm_hpet_cap { capabilities: 0 };
        self.call(common::VM_GET_HPET_CAPABILITIES, &mut hpet)?;
        Ok(hpet.capabilities)
    }

    /// `VM_RTC_READ`: a byte of the RTC's memory.
    ///
    /// # Errors
    /// `EINVAL`: it is the clock's, or beyond the end.
    pub fn rtc_read(&self, offset: u8) -> io::Result<u8> {
        let mut data = common::vm_rtc_data { offset: offset.into(), ..Plain::ZERO };
        self.call(common::VM_RTC_READ, &mut data)?;
        Ok(data.value)
    }

    /// `VM_RTC_WRITE`.
    ///
    /// # Errors
    /// `EINVAL`: it is the clock's, or beyond the end.
    pub fn rtc_write(&self, offset: u8, value: u8) -> io::Result<()> {
        self.call(common::VM_RTC_WRITE, &mut common::vm_rtc_data { offset: offset.into(), value, ..Plain::ZERO })
    }

    /// `VM_RTC_GETTIME`, in seconds since 1970.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn rtc_time(&self) -> io::Result<i64> {
        let mut time = common::vm_rtc_time { secs: 0 };
        self.call(common::VM_RTC_GETTIME, &mut time)?;
        Ok(time.secs)
    }

    /// `VM_RTC_SETTIME`.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn set_rtc_time(&self, secs: i64) -> io::Result<()> {
        self.call(common::VM_RTC_SETTIME, &mut common::vm_rtc_time { secs })
    }

    /// `VM_GET_KERNEMU_DEV`: reads a register of the local APIC, the I/O APIC or the HPET. `bytes` is 1, 2, 4 or 8.
    ///
    /// # Errors
    /// `EINVAL`: none of them is at `gpa`, or it has no such width.
    pub fn kernemu_read(&self, cpu: u32, gpa: u64, bytes: u8) -> io::Result<u64> {
        let mut access = kernemu(cpu, gpa, bytes, 0)?;
        self.call(common::VM_GET_KERNEMU_DEV, &mut access)?;
        Ok(access.value)
    }

    /// `VM_SET_KERNEMU_DEV`: writes one.
    ///
    /// # Errors
    /// `EINVAL`: none of them is at `gpa`, or it has no such width.
    pub fn kernemu_write(&self, cpu: u32, gpa: u64, bytes: u8, value: u64) -> io::Result<()> {
        self.call(common::VM_SET_KERNEMU_DEV, &mut kernemu(cpu, gpa, bytes, value)?)
    }

    /// `VM_STATS`: a vCPU's counters; 13 gives the first 64. What they count is [`Self::stat_description`]'s.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn stats(&self, cpu: u32) -> io::Result<Vec<u64>> {
        let mut values = Vec::new();
        if self.abi().version == Version::V13 {
            let mut stats = v13::vm_stats_13 { cpuid: id(cpu), ..Plain::ZERO };
            self.call(v13::VM_STATS, &mut stats)?;
            values.extend_from_slice(&stats.statbuf[..entries(stats.num_entries)]);
            return Ok(values);
        }
        // No kernel has a fraction of these; one that never ended would be broken.
        while values.len() < 64 * MAX_STATS {
            let mut stats = v14::vm_stats { cpuid: id(cpu), index: values.len() as i32, ..Plain::ZERO };
            self.call(v14::VM_STATS, &mut stats)?;
            let count = entries(stats.num_entries);
            values.extend_from_slice(&stats.statbuf[..count]);
            if count < MAX_STATS {
                break;
            }
        }
        Ok(values)
    }

    /// `VM_STAT_DESC`: what the counter of an index counts, if there is one. It differs by kernel.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn stat_description(&self, index: u32) -> io::Result<Option<String>> {
        let mut description = common::vm_stat_desc { index: id(index), ..Plain::ZERO };
        match self.call(common::VM_STAT_DESC, &mut description) {
            Ok(()) => Ok(Some(text(&description.desc))),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// `VM_SNAPSHOT_REQ`: saves a part of the kernel's state, and tells its size. The format is the kernel's own.
    ///
    /// # Errors
    /// `ENOTTY`: the kernel was built without `BHYVE_SNAPSHOT`. `EFAULT` or `E2BIG`: `buffer` is too small.
    pub fn save(&self, part: Part, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.snapshot(part, buffer, 0)?;
        Ok(buffer.len().saturating_sub(usize::try_from(left).unwrap_or(usize::MAX)))
    }

    /// `VM_SNAPSHOT_REQ`: restores what [`Self::save`] saved.
    ///
    /// # Errors
    /// `ENOTTY`: the kernel was built without `BHYVE_SNAPSHOT`. `EINVAL`: it is none of this kernel's.
    pub fn restore(&self, part: Part, saved: &[u8]) -> io::Result<()> {
        // A copy, because the structure has one pointer for both directions.
        self.snapshot(part, &mut saved.to_vec(), 1).map(drop)
    }

    #[expect(unsafe_code, reason = "the boundary to the kernel")]
    fn snapshot(&self, part: Part, buffer: &mut [u8], op: i32) -> io::Result<u64> {
        let (start, size) = (address(buffer.as_mut_ptr()), buffer.len() as u64);
        let buffer = v14::vm_snapshot_buffer { buf_start: start, buf_size: size, buf: start, buf_rem: size };
        let mut meta = v14::vm_snapshot_meta { dev_req: part as i32, buffer, op, ..Plain::ZERO };
        // SAFETY: the buffer is there for the call, its size is told, and the other pointers are null.
        unsafe {
            if self.abi().version == Version::V13 {
                let mut before = v13::vm_snapshot_meta_13 { ctx: 0, meta };
                call_pointing(&*self.node, v13::VM_SNAPSHOT_REQ, &mut before)?;
                meta = before.meta;
            } else {
                call_pointing(&*self.node, v14::VM_SNAPSHOT_REQ, &mut meta)?;
            }
        }
        Ok(meta.buffer.buf_rem)
    }

    /// `VM_RESTORE_TIME`: the last step of restoring, after which guests' clocks go on.
    ///
    /// # Errors
    /// `ENOTTY`: the kernel was built without `BHYVE_SNAPSHOT`.
    pub fn restore_time(&self) -> io::Result<()> {
        self.call(common::VM_RESTORE_TIME, &mut common::int { value: 0 })
    }

    /// `VM_BIND_PPTDEV`: passes a function of the host through. All memory has to be mapped, and wired.
    ///
    /// # Errors
    /// `ENXIO`: there is no IOMMU. `EBUSY`: it is another's.
    pub fn bind_pptdev(&self, function: HostFunction) -> io::Result<()> {
        self.call(common::VM_BIND_PPTDEV, &mut function.request())
    }

    /// `VM_UNBIND_PPTDEV`.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn unbind_pptdev(&self, function: HostFunction) -> io::Result<()> {
        self.call(common::VM_UNBIND_PPTDEV, &mut function.request())
    }

    /// `VM_MAP_PPTDEV_MMIO`: maps a BAR's memory.
    ///
    /// # Errors
    /// `EINVAL`: no multiple of a page. `ENOSPC`: too many.
    pub fn map_pptdev_mmio(&self, function: HostFunction, gpa: u64, len: u64, hpa: u64) -> io::Result<()> {
        self.call(common::VM_MAP_PPTDEV_MMIO, &mut function.mmio(gpa, hpa, len))
    }

    /// `VM_UNMAP_PPTDEV_MMIO`.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn unmap_pptdev_mmio(&self, function: HostFunction, gpa: u64, len: u64) -> io::Result<()> {
        self.call(common::VM_UNMAP_PPTDEV_MMIO, &mut function.mmio(gpa, 0, len))
    }

    /// `VM_PPTDEV_MSI`: where `numvec` messages go; 0 turns them off.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn pptdev_msi(&self, function: HostFunction, msi: Msi, numvec: i32) -> io::Result<()> {
        let HostFunction { bus, slot, func } = function;
        let mut request =
            common::vm_pptdev_msi { bus, slot, func, numvec, msg: msi.data, addr: msi.address, ..Plain::ZERO };
        self.call(common::VM_PPTDEV_MSI, &mut request)
    }

    /// `VM_PPTDEV_MSIX`: an entry of the table.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn pptdev_msix(&self, function: HostFunction, idx: i32, msi: Msi, vector_control: u32) -> io::Result<()> {
        let HostFunction { bus, slot, func } = function;
        let (msg, addr) = (msi.data, msi.address);
        let mut request = common::vm_pptdev_msix { bus, slot, func, idx, msg, vector_control, addr, ..Plain::ZERO };
        self.call(common::VM_PPTDEV_MSIX, &mut request)
    }

    /// `VM_PPTDEV_DISABLE_MSIX`.
    ///
    /// # Errors
    /// As the kernel answers.
    pub fn pptdev_disable_msix(&self, function: HostFunction) -> io::Result<()> {
        self.call(common::VM_PPTDEV_DISABLE_MSIX, &mut function.request())
    }
}

fn isa_irq(irq: u32, pin: Option<u32>) -> common::vm_isa_irq {
    common::vm_isa_irq { atpic_irq: id(irq), ioapic_irq: pin.map_or(-1, id) }
}

fn kernemu(cpu: u32, gpa: u64, bytes: u8, value: u64) -> io::Result<common::vm_readwrite_kernemu_device> {
    if !matches!(bytes, 1 | 2 | 4 | 8) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let access_width = bytes.trailing_zeros();
    Ok(common::vm_readwrite_kernemu_device { vcpuid: id(cpu), access_width, gpa, value })
}

fn entries(count: i32) -> usize {
    usize::try_from(count).unwrap_or(0).min(MAX_STATS)
}
