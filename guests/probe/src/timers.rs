//! The clocks of a PC against each other: TSC, 8254, ACPI PM timer, HPET.
//!
//! Rates are taken over 20 ms from pairs of samples, so a busy host costs accuracy only when it takes the processor
//! away inside every one of a dozen reads. Tolerance is 0.5 % unless the line says otherwise.

use crate::acpi::acpi;
use crate::cpu::{self, inb, inl, outb};
use crate::report::{Verdict, ppm};
use crate::time::{self, PIT_HZ, PM_HZ, latch, sample};
use crate::{apic, ensure, good, mem, pic, skip, trap};

/// Largest difference of two clocks, in parts per million.
pub const TOLERANCE: u64 = 5000;

/// Rate in Hz of an up-counter that wraps at `mask` + 1, by the TSC over at least 20 ms.
pub fn rate(mask: u64, nominal: u64, mut read: impl FnMut() -> u64) -> u64 {
    let (t0, v0) = sample(&mut read);
    time::delay(20_000);
    let (t1, v1) = sample(&mut read);
    let elapsed = t1.wrapping_sub(t0).max(1);
    let mut ticks = v1.wrapping_sub(v0) & mask;
    // A host that slept through a wrap is no fault of the counter: add the whole turns that the TSC tells of.
    if nominal != 0 && mask < u64::MAX {
        let expected = (u128::from(elapsed) * u128::from(nominal) / u128::from(time::tsc_hz())) as u64;
        while ticks + mask / 2 < expected {
            ticks += mask + 1;
        }
    }
    (u128::from(ticks) * u128::from(time::tsc_hz()) / u128::from(elapsed)) as u64
}

/// The TSC runs forward at one rate, and at the one that CPUID tells, if it does.
pub fn check_tsc() -> Verdict {
    let mut last = cpu::rdtsc();
    for _ in 0..10_000 {
        let now = cpu::rdtsc();
        ensure!(now >= last, "went back from {last} to {now}");
        last = now;
    }
    let first = cpu::rdtsc();
    inb(0x61);
    ensure!(cpu::rdtsc() > first, "stands still over a port access");
    let hz = time::tsc_hz();
    let mut off = u64::MAX;
    for _ in 0..3 {
        off = off.min(ppm(time::measure_tsc(), hz));
    }
    ensure!(off <= TOLERANCE, "two measurements differ by {off} ppm");
    let max = cpu::cpuid(0, 0).eax;
    if max >= 0x15 {
        let leaf = cpu::cpuid(0x15, 0);
        if leaf.eax != 0 && leaf.ebx != 0 && leaf.ecx != 0 {
            let told = u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax);
            ensure!(ppm(hz, told) <= 2 * TOLERANCE, "{hz} Hz, but CPUID leaf 15h says {told}");
        }
    }
    good!("{hz} Hz by the 8254, again within {off} ppm")
}

/// Channel 0 counts at its rate, and latched counts never go up but at the reload.
pub fn check_pit() -> Verdict {
    time::start_channel0(0);
    let hz = rate(0xffff, PIT_HZ, || 0x1_0000 - u64::from(latch(0)));
    let off = ppm(hz, PIT_HZ);
    ensure!(off <= TOLERANCE, "channel 0 at {hz} Hz, {off} ppm off channel 2");
    let mut reloads = 0;
    let mut last = latch(0);
    let start = cpu::rdtsc();
    while cpu::rdtsc() - start < time::cycles(3000) {
        let now = latch(0);
        reloads += u32::from(now > last);
        last = now;
    }
    ensure!(reloads <= 1 + (time::ns(cpu::rdtsc() - start) / 54_000_000) as u32, "went up {reloads} times in 3 ms");
    good!("channel 0 at {hz} Hz, {off} ppm off")
}

fn channel2_out() -> bool {
    inb(0x61) & 0x20 != 0
}

/// Modes, latch and read-back of channel 2, and the refresh bit of port 61h.
pub fn check_pit_modes() -> Verdict {
    time::start_channel2(0, 11_932);
    ensure!(!channel2_out(), "mode 0: OUT is high after the count was loaded");
    let start = cpu::rdtsc();
    ensure!(time::spin_until(500, channel2_out), "mode 0: OUT never goes high");
    let us = time::ns(cpu::rdtsc() - start) / 1000;
    ensure!((9_900..200_000).contains(&us), "mode 0: 10 ms took {us} us");
    ensure!(
        {
            time::delay(100);
            channel2_out()
        },
        "mode 0: OUT does not stay high"
    );

    time::start_channel2(2, 0xfffe);
    outb(0x43, 0x80);
    time::delay(200);
    // A second latch command before the first is read is ignored.
    outb(0x43, 0x80);
    let first = u16::from(inb(0x42)) | u16::from(inb(0x42)) << 8;
    let second = latch(2);
    ensure!(first.wrapping_sub(second) > 100, "latch: {first:#x} then {second:#x}");

    outb(0x43, 0xe8);
    let status = inb(0x42);
    ensure!(status & 0x3f == 0x34, "read-back: status {status:#x} in mode 2, low then high byte");

    // Mode 3 on 20 ms: OUT is high in one half and low in the other.
    time::start_channel2(3, 23_864);
    let high = time::spin_until(200, channel2_out);
    let low = time::spin_until(200, || !channel2_out());
    ensure!(high && low && time::spin_until(200, channel2_out), "mode 3: OUT does not toggle");

    time::start_channel2(2, 0);

    let refresh = inb(0x61) & 0x10;
    ensure!(time::spin_until(10, || inb(0x61) & 0x10 != refresh), "port 61h bit 4 does not toggle");
    good!("modes 0, 2, 3; latch, read-back; refresh bit")
}

/// Rate of the ACPI PM timer.
pub fn check_pm_timer() -> Verdict {
    let port = acpi().pm_tmr;
    if port == 0 {
        skip!("no FADT with a PM timer");
    }
    let mask = if acpi().pm_tmr_32 { 0xffff_ffff } else { 0xff_ffff };
    let hz = rate(mask, PM_HZ, || u64::from(inl(port)) & mask);
    let off = ppm(hz, PM_HZ);
    ensure!(off <= TOLERANCE, "{hz} Hz, {off} ppm off");
    if !acpi().pm_tmr_32 {
        ensure!(inl(port) >> 24 == 0, "bits above 23 are set");
    }
    good!("port {port:#x} at {hz} Hz, {off} ppm off")
}

const HPET_ID: u64 = 0;
const HPET_CONFIG: u64 = 0x10;
const HPET_COUNTER: u64 = 0xf0;
const HPET_TIMER0: u64 = 0x100;

/// Base address and rate in Hz of the HPET.
pub fn hpet() -> Option<(u64, u64)> {
    let base = acpi().hpet;
    if base == 0 || base >> 32 != 0 {
        return None;
    }
    let period = u64::from(mem::read32(base + HPET_ID + 4));
    if period == 0 || period > 100_000_000 {
        return None;
    }
    Some((base, 1_000_000_000_000_000 / period))
}

fn hpet_config(base: u64, value: u32) {
    mem::write32(base + HPET_CONFIG, value);
}

/// Main counter, 32 bits: starts, stops, can be set, and runs at the rate that its period tells.
pub fn check_hpet() -> Verdict {
    if acpi().hpet == 0 {
        skip!("no HPET table");
    }
    let Some((base, nominal)) = hpet() else { crate::fail!("no sane period at {:#x}", acpi().hpet) };
    hpet_config(base, 0);
    let held = mem::read32(base + HPET_COUNTER);
    time::delay(100);
    ensure!(mem::read32(base + HPET_COUNTER) == held, "counts while halted");
    mem::write32(base + HPET_COUNTER, 0xffff_f000);
    mem::write32(base + HPET_COUNTER + 4, 0);
    ensure!(mem::read32(base + HPET_COUNTER) == 0xffff_f000, "the counter cannot be set");
    hpet_config(base, 1);
    let hz = rate(0xffff_ffff, nominal, || u64::from(mem::read32(base + HPET_COUNTER)));
    let off = ppm(hz, nominal);
    ensure!(off <= TOLERANCE, "{hz} Hz for {nominal}, {off} ppm off");
    let id = mem::read32(base + HPET_ID);
    if id & 1 << 13 != 0 {
        let high = mem::read32(base + HPET_COUNTER + 4);
        ensure!(high >= 1, "no carry into the upper half");
    }
    good!("{hz} Hz, {off} ppm off, {} timers", (id >> 8 & 0x1f) + 1)
}

/// Timer 0 in legacy replacement mode: one shot after 5 ms on IRQ 0.
pub fn check_hpet_irq() -> Verdict {
    let Some((base, hz)) = hpet() else { skip!("no HPET table") };
    if mem::read32(base + HPET_ID) & 1 << 15 == 0 {
        skip!("no legacy replacement");
    }
    let vector = pic::vector(0);
    // The 8254 must not tick into the same line should the replacement be missing: one shot after 55 ms.
    outb(0x43, 0x30);
    outb(0x40, 0);
    outb(0x40, 0);
    pic::init();
    trap::clear(vector, trap::EOI_PIC, None);
    hpet_config(base, 0);
    mem::write32(base + HPET_COUNTER, 0);
    mem::write32(base + HPET_COUNTER + 4, 0);
    // Edge, enabled, one shot, 32 bits.
    mem::write32(base + HPET_TIMER0, 1 << 2 | 1 << 8);
    mem::write32(base + HPET_TIMER0 + 8, (hz / 200) as u32);
    hpet_config(base, 3);
    let start = cpu::rdtsc();
    pic::open(1);
    let came = time::spin_until(500, || {
        cpu::interrupt_window();
        trap::count(vector) != 0
    });
    let us = time::ns(trap::stamp(vector).wrapping_sub(start)) / 1000;
    mem::write32(base + HPET_TIMER0, 0);
    hpet_config(base, 1);
    pic::open(0);
    ensure!(came, "no interrupt");
    ensure!((4_950..200_000).contains(&us), "5 ms took {us} us");
    good!("5 ms took {us} us")
}

/// Local APIC timer: one shot, periodic, divider.
pub fn check_apic_timer() -> Verdict {
    if !apic::present() {
        skip!("no local APIC");
    }
    const VECTOR: u8 = 0x60;
    apic::write(apic::TIMER_DIVIDE, 0x0b);
    apic::write(apic::LVT_TIMER, apic::MASKED | u32::from(VECTOR));
    let fast = apic_rate();
    apic::write(apic::TIMER_DIVIDE, 0x03);
    let slow = apic_rate();
    ensure!(slow > 1000, "runs at {slow} Hz");
    ensure!(ppm(slow * 16, fast) <= 2 * TOLERANCE, "{fast} Hz divided by 16 gives {slow}");

    let shot = one_shot(VECTOR, (slow / 200) as u32)?;
    ensure!(apic::read(apic::TIMER_CURRENT) == 0, "one shot: the count goes on after 0");
    let us = time::nearest(20_000, || {
        trap::clear(VECTOR, trap::EOI_APIC, None);
        apic::write(apic::LVT_TIMER, apic::PERIODIC | u32::from(VECTOR));
        apic::write(apic::TIMER_INITIAL, (slow / 500) as u32);
        ensure!(time::idle_until(1000, 0, || trap::count(VECTOR) >= 1), "periodic: no interrupt");
        let first = trap::stamp(VECTOR);
        ensure!(time::idle_until(1000, 0, || trap::count(VECTOR) >= 11), "periodic: {} of 11", trap::count(VECTOR));
        apic::write(apic::TIMER_INITIAL, 0);
        Ok(time::ns(trap::stamp(VECTOR) - first) / 1000)
    })?;
    apic::write(apic::LVT_TIMER, apic::MASKED);
    ensure!(time::punctual(us, 20_000), "periodic: ten times 2 ms took {us} us");
    good!("{fast} Hz; one shot of 5 ms took {shot} us, ten periods of 2 ms {us} us")
}

/// Rate of the local APIC timer with the divider that is set.
pub fn apic_rate() -> u64 {
    apic::write(apic::TIMER_INITIAL, 0xffff_ffff);
    let hz = rate(0xffff_ffff, 0, || 0xffff_ffff - u64::from(apic::read(apic::TIMER_CURRENT)));
    apic::write(apic::TIMER_INITIAL, 0);
    hz
}

fn one_shot(vector: u8, count: u32) -> Result<u64, crate::report::Bad> {
    trap::clear(vector, trap::EOI_APIC, None);
    apic::write(apic::LVT_TIMER, u32::from(vector));
    let start = cpu::rdtsc();
    apic::write(apic::TIMER_INITIAL, count);
    ensure!(time::idle_until(1000, 0, || trap::count(vector) != 0), "one shot: no interrupt");
    let us = time::ns(trap::stamp(vector) - start) / 1000;
    ensure!((4_950..200_000).contains(&us), "one shot: 5 ms took {us} us");
    time::delay(6_000);
    cpu::interrupt_window();
    ensure!(trap::count(vector) == 1, "one shot: {} interrupts", trap::count(vector));
    Ok(us)
}

/// TSC-deadline mode.
pub fn check_deadline() -> Verdict {
    if !apic::present() || cpu::cpuid(1, 0).ecx & 1 << 24 == 0 {
        skip!("not offered");
    }
    const VECTOR: u8 = 0x61;
    trap::clear(VECTOR, trap::EOI_APIC, None);
    apic::write(apic::LVT_TIMER, apic::TSC_DEADLINE | u32::from(VECTOR));
    let start = cpu::rdtsc();
    let deadline = start + time::cycles(5000);
    cpu::wrmsr(cpu::MSR_TSC_DEADLINE, deadline);
    ensure!(cpu::rdmsr(cpu::MSR_TSC_DEADLINE) == deadline, "the deadline does not read back");
    let came = time::idle_until(1000, 0, || trap::count(VECTOR) != 0);
    apic::write(apic::LVT_TIMER, apic::MASKED);
    ensure!(came, "no interrupt");
    let stamp = trap::stamp(VECTOR);
    ensure!(stamp >= deadline, "{} cycles early", deadline - stamp);
    ensure!(cpu::rdmsr(cpu::MSR_TSC_DEADLINE) == 0, "the deadline stays armed");
    good!("5 ms took {} us", time::ns(stamp - start) / 1000)
}

/// PIT at 1000 Hz for `seconds`, the other clocks beside it: one line for a test that compares with the host's clock.
pub fn long_run(seconds: u64) {
    let vector = pic::vector(0);
    trap::clear(vector, trap::EOI_PIC, None);
    let pm_mask = if acpi().pm_tmr_32 { 0xffff_ffff } else { 0xff_ffff };
    let read_pm = || if acpi().pm_tmr == 0 { 0 } else { u64::from(inl(acpi().pm_tmr)) & pm_mask };
    let chip = hpet();
    if let Some((base, _)) = chip {
        hpet_config(base, 1);
    }
    let read_hpet = || chip.map_or(0, |(base, _)| u64::from(mem::read32(base + HPET_COUNTER)));
    crate::println!("PROBE clock start {seconds}");
    let divisor = PIT_HZ.div_ceil(1000);
    time::start_channel0(divisor as u16);
    pic::open(1);
    let ((t0, mut pm_last), (_, mut hpet_last)) = (sample(read_pm), sample(read_hpet));
    let (mut pm, mut hpet_ticks) = (0, 0);
    let limit = time::cycles(seconds * 1_000_000);
    let mut now = t0;
    while now - t0 < limit {
        cpu::sti_hlt_cli();
        let (p, h) = (read_pm(), read_hpet());
        now = cpu::rdtsc();
        pm += p.wrapping_sub(pm_last) & pm_mask;
        hpet_ticks += h.wrapping_sub(hpet_last) & 0xffff_ffff;
        (pm_last, hpet_last) = (p, h);
    }
    pic::open(0);
    let ns = |ticks: u64, hz: u64| (u128::from(ticks) * 1_000_000_000 / u128::from(hz.max(1))) as u64;
    crate::println!(
        "PROBE clock end tsc_ns {} pit_ticks {} pit_ns {} pm_ns {} hpet_ns {}",
        time::ns(now - t0),
        trap::count(vector),
        ns(trap::count(vector) * divisor, PIT_HZ),
        ns(pm, PM_HZ),
        ns(hpet_ticks, chip.map_or(1, |c| c.1))
    );
}
