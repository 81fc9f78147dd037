//! The other processors: INIT-SIPI-SIPI, jobs for them, and what several processors must agree on.

use crate::acpi::acpi;
use crate::cpu::{self, MSR_EFER, rdmsr, wrmsr};
use crate::entry::{self, MAX_CPUS};
use crate::report::Verdict;
use crate::{apic, ensure, good, mem, skip, smc, start, time, trap};
use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};

/// Next number to give out to a processor that arrives (0 is the first of the others).
#[unsafe(no_mangle)]
static ap_next: AtomicU32 = AtomicU32::new(0);
/// Initial stack pointers by number.
#[unsafe(no_mangle)]
static ap_stacks: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

static AREAS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
static ONLINE: AtomicU32 = AtomicU32::new(0);
static SEEN: [AtomicBool; 256] = [const { AtomicBool::new(false) }; 256];
static EFER: AtomicU64 = AtomicU64::new(0);

static JOB: AtomicUsize = AtomicUsize::new(0);
static ROUND: AtomicU32 = AtomicU32::new(0);
static DONE: AtomicU32 = AtomicU32::new(0);

const IPI: u8 = 0x70;
const SHOOTDOWN: u8 = 0x71;

#[unsafe(no_mangle)]
extern "C" fn ap_main(number: u64) -> ! {
    trap::load(AREAS[number as usize].load(Relaxed));
    wrmsr(MSR_EFER, EFER.load(Relaxed));
    apic::init_other();
    SEEN[apic::id() as usize & 0xff].store(true, Relaxed);
    let mut round = ROUND.load(SeqCst);
    ONLINE.fetch_add(1, SeqCst);
    loop {
        if ROUND.load(SeqCst) == round {
            cpu::pause();
            continue;
        }
        round = round.wrapping_add(1);
        // SAFETY: `post` stores a function of this type before it opens the round.
        let job: fn(u32) = unsafe { core::mem::transmute(JOB.load(SeqCst)) };
        job(number as u32 + 1);
        DONE.fetch_add(1, SeqCst);
    }
}

/// Starts every processor of the MADT but this one; returns how many came up.
pub fn start_all() -> Result<u32, &'static str> {
    if !apic::present() {
        return Err("no local APIC");
    }
    let low = start::memory().iter().any(|r| {
        r.kind == start::RAM && r.address <= entry::TRAMPOLINE && entry::TRAMPOLINE + mem::PAGE <= r.address + r.size
    });
    if !low && !start::memory().is_empty() {
        return Err("no memory at 0x8000 for the trampoline");
    }
    let own = apic::id();
    let others = acpi().apic_ids[..acpi().cpus].iter().filter(|id| **id != own && **id < 255).count();
    for i in 0..others {
        if AREAS[i].load(Relaxed) == 0 {
            let Some(area) = trap::new_area() else { return Err("no memory for the stacks") };
            AREAS[i].store(area, Relaxed);
            ap_stacks[i].store(trap::area_stack(area), Relaxed);
        }
    }
    let code = &raw const entry::ap_trampoline;
    let size = &raw const entry::ap_trampoline_end as usize - code as usize;
    // SAFETY: the symbols enclose the trampoline; the target page is RAM that nothing else uses.
    unsafe { mem::memcpy(entry::TRAMPOLINE as *mut u8, code, size) };
    ap_next.store(0, SeqCst);
    ONLINE.store(0, SeqCst);
    EFER.store(rdmsr(MSR_EFER) & !(1 << 10), Relaxed);
    for seen in &SEEN {
        seen.store(false, Relaxed);
    }
    for &id in acpi().apic_ids[..acpi().cpus].iter().filter(|id| **id != own && **id < 255) {
        let before = ONLINE.load(SeqCst);
        apic::send(id, apic::INIT);
        time::delay(10_000);
        apic::send(id, apic::STARTUP | (entry::TRAMPOLINE >> 12) as u32);
        time::delay(200);
        if ONLINE.load(SeqCst) == before && ap_next.load(SeqCst) == before {
            apic::send(id, apic::STARTUP | (entry::TRAMPOLINE >> 12) as u32);
        }
        time::spin_until(2000, || ONLINE.load(SeqCst) > before);
    }
    Ok(ONLINE.load(SeqCst))
}

/// Whether stacks of other processors have been allocated, which must outlive a check.
pub fn running() -> bool {
    AREAS[0].load(Relaxed) != 0
}

/// Puts the others back to waiting for SIPI.
pub fn park() {
    if ONLINE.swap(0, SeqCst) != 0 {
        apic::send(0, apic::INIT | apic::OTHERS);
        time::delay(10_000);
    }
}

fn post(job: fn(u32)) {
    DONE.store(0, SeqCst);
    JOB.store(job as usize, SeqCst);
    ROUND.fetch_add(1, SeqCst);
}

fn finished() -> bool {
    time::spin_until(20_000, || DONE.load(SeqCst) == ONLINE.load(SeqCst))
}

/// Runs `job` everywhere at once, here as processor 0; false if somebody does not finish.
fn everywhere(job: fn(u32)) -> bool {
    post(job);
    job(0);
    finished()
}

/// Every processor of the MADT starts, twice: INIT must bring a running one back to its reset state.
pub fn check_start() -> Verdict {
    if !apic::present() {
        skip!("no local APIC");
    }
    let expected = acpi().cpus as u32;
    ensure!(expected > 0, "the MADT lists no processor");
    let own = apic::id();
    for pass in 1..=2 {
        let started = match start_all() {
            Ok(n) => n + 1,
            Err(why) => skip!("{why}"),
        };
        let late = ap_next.load(SeqCst);
        ensure!(started == expected, "pass {pass}: {started} of {expected} processors ({late} in the trampoline)");
        for &id in &acpi().apic_ids[..acpi().cpus] {
            ensure!(id == own || SEEN[id as usize & 0xff].load(Relaxed), "pass {pass}: nobody has APIC id {id}");
        }
        if pass == 1 {
            park();
        }
    }
    let boot = rdmsr(cpu::MSR_APIC_BASE) & 1 << 8 != 0;
    ensure!(boot, "the first processor's APIC_BASE lacks the BSP flag");
    good!("{expected} processors, twice")
}

const LOOPS: u64 = 3000;
static SUM: AtomicU64 = AtomicU64::new(0);
static LOCK: AtomicBool = AtomicBool::new(false);
static PLAIN: AtomicU64 = AtomicU64::new(0);
static BITS: AtomicU64 = AtomicU64::new(0);

#[repr(align(16))]
struct Wide(mem::Racy<[u64; 2]>);
static WIDE: Wide = Wide(mem::Racy::new([0; 2]));

fn locked<R>(f: impl FnOnce() -> R) -> R {
    while LOCK.swap(true, SeqCst) {
        cpu::pause();
    }
    let result = f();
    LOCK.store(false, SeqCst);
    result
}

fn contend(number: u32) {
    let wide = cpu::cpuid(1, 0).ecx & 1 << 13 != 0;
    for _ in 0..LOOPS {
        SUM.fetch_add(1, SeqCst);
        locked(|| PLAIN.store(PLAIN.load(Relaxed) + 1, Relaxed));
        BITS.fetch_xor(1 << (number & 63), SeqCst);
        if wide {
            add_wide();
        }
    }
}

/// Adds 1 to the lower and 3 to the upper half of WIDE in one CMPXCHG16B.
fn add_wide() {
    let at = WIDE.0.get() as u64;
    // SAFETY: all accesses to WIDE are this instruction; RBX is saved because the compiler keeps it for itself.
    unsafe {
        asm!(
            "mov {keep}, rbx",
            "mov rax, [{at}]",
            "mov rdx, [{at} + 8]",
            "2:",
            "lea rbx, [rax + 1]",
            "lea rcx, [rdx + 3]",
            "lock cmpxchg16b [{at}]",
            "jne 2b",
            "mov rbx, {keep}",
            at = in(reg) at,
            keep = out(reg) _,
            out("rax") _,
            out("rcx") _,
            out("rdx") _,
        );
    }
}

/// LOCK XADD, XCHG, LOCK XOR loops and CMPXCHG16B by all processors at once lose nothing.
pub fn check_atomics() -> Verdict {
    let cpus = u64::from(ONLINE.load(SeqCst)) + 1;
    ensure!(everywhere(contend), "{} of {} processors finished", DONE.load(SeqCst) + 1, cpus);
    let (sum, plain, bits) = (SUM.load(SeqCst), PLAIN.load(SeqCst), BITS.load(SeqCst));
    ensure!(sum == cpus * LOOPS, "LOCK XADD: {sum} of {}", cpus * LOOPS);
    ensure!(plain == cpus * LOOPS, "XCHG lock: {plain} of {}", cpus * LOOPS);
    ensure!(bits == 0, "LOCK XOR: {bits:#x} left of an even number of flips");
    // SAFETY: everybody is done.
    let [low, high] = unsafe { WIDE.0.get().read_volatile() };
    let wide = if cpu::cpuid(1, 0).ecx & 1 << 13 != 0 { sum } else { 0 };
    ensure!(low == wide && high == 3 * wide, "CMPXCHG16B: {low}, {high} for {wide}");
    good!("{cpus} processors, {LOOPS} rounds")
}

static LAST: AtomicU64 = AtomicU64::new(0);
static BACK: AtomicU64 = AtomicU64::new(0);

fn watch_tsc(_: u32) {
    for _ in 0..1000 {
        locked(|| {
            let now = cpu::rdtsc();
            let last = LAST.load(Relaxed);
            if now < last {
                BACK.fetch_max(last - now, Relaxed);
            }
            LAST.store(now, Relaxed);
        });
    }
}

/// The TSC never goes back from one processor to another.
pub fn check_tsc() -> Verdict {
    if ONLINE.load(SeqCst) == 0 {
        skip!("one processor");
    }
    ensure!(everywhere(watch_tsc), "a processor did not finish");
    let back = BACK.load(Relaxed);
    ensure!(back == 0, "back by up to {back} cycles");
    good!("monotonic over {} processors", ONLINE.load(SeqCst) + 1)
}

fn wait_for_ipi(_: u32) {
    READY.fetch_add(1, SeqCst);
    // The interrupt stays pending while IF is clear, so it cannot be missed; it ends exactly one HLT.
    cpu::sti_hlt_cli();
}

static READY: AtomicU32 = AtomicU32::new(0);

/// One fixed IPI to each, then one to all others; all of them sleep in HLT.
pub fn check_ipi() -> Verdict {
    let others = ONLINE.load(SeqCst);
    if others == 0 {
        skip!("one processor");
    }
    trap::clear(IPI, trap::EOI_APIC, None);
    let own = apic::id();
    for pass in 0..2 {
        READY.store(0, SeqCst);
        post(wait_for_ipi);
        ensure!(time::spin_until(2000, || READY.load(SeqCst) == others), "only {} ready", READY.load(SeqCst));
        if pass == 0 {
            for &id in acpi().apic_ids[..acpi().cpus].iter().filter(|id| **id != own && **id < 255) {
                apic::send(id, apic::FIXED | u32::from(IPI));
            }
        } else {
            apic::send(0, apic::FIXED | apic::OTHERS | u32::from(IPI));
        }
        let what = if pass == 0 { "one by one" } else { "all but self" };
        ensure!(finished(), "{what}: {} of {others} woke", DONE.load(SeqCst));
        let n = trap::count(IPI);
        ensure!(n == u64::from(others) * (pass + 1), "{what}: {n} interrupts at {others} processors");
    }
    good!("{others} processors woke from HLT, twice")
}

static CODE: AtomicU64 = AtomicU64::new(0);
static WRITTEN: AtomicU32 = AtomicU32::new(0);
static TOLD: AtomicU32 = AtomicU32::new(0);
const PATCHES: u32 = 300;

fn patch(number: u32) {
    if number != 1 {
        return;
    }
    for value in 1..=PATCHES {
        mem::write32(CODE.load(Relaxed), value);
        WRITTEN.store(value, SeqCst);
        if !time::spin_until(2000, || TOLD.load(SeqCst) == value) {
            return;
        }
    }
}

/// Another processor writes into a function that this one has run, in the way that the manuals prescribe for
/// cross-modifying code: this one waits for word of it, executes a serialising instruction, and calls.
pub fn check_cross_code() -> Verdict {
    if ONLINE.load(SeqCst) == 0 {
        skip!("one processor");
    }
    let Some(page) = mem::pages(1) else { skip!("no memory") };
    mem::write_bytes(page, &[0xb8, 0, 0, 0, 0, 0xc3]);
    ensure!(smc::call(page, 0) == 0, "the function does not run");
    CODE.store(page + 1, Relaxed);
    WRITTEN.store(0, SeqCst);
    TOLD.store(0, SeqCst);
    post(patch);
    let mut wrong = None;
    for value in 1..=PATCHES {
        ensure!(time::spin_until(3000, || WRITTEN.load(SeqCst) == value), "no word of change {value}");
        cpu::cpuid(0, 0);
        let got = smc::call(page, 0);
        if got != u64::from(value) {
            wrong.get_or_insert((got, value));
        }
        TOLD.store(value, SeqCst);
    }
    finished();
    if let Some((got, value)) = wrong {
        crate::fail!("change {value}: the old code ran and gave {got}");
    }
    good!("{PATCHES} changes seen")
}

static TARGET: AtomicU64 = AtomicU64::new(0);
static STEP: AtomicU32 = AtomicU32::new(0);
static READ: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

fn drop_translation() {
    cpu::invlpg(TARGET.load(Relaxed));
    STEP.store(2, SeqCst);
}

fn read_twice(number: u32) {
    if number != 1 {
        return;
    }
    READ[0].store(mem::read64(TARGET.load(Relaxed)), SeqCst);
    STEP.store(1, SeqCst);
    cpu::sti_hlt_cli();
    READ[1].store(mem::read64(TARGET.load(Relaxed)), SeqCst);
}

/// A page changes its frame; the other processor is told by IPI and executes INVLPG in the handler.
pub fn check_shootdown() -> Verdict {
    if ONLINE.load(SeqCst) == 0 {
        skip!("one processor");
    }
    let Some(pages) = mem::pages(2) else { skip!("no memory") };
    mem::write64(pages, 0x1111);
    mem::write64(pages + mem::PAGE, 0x2222);
    let va = mem::WINDOW + 0x20_0000;
    let Some(()) = mem::map(va, pages, mem::W) else { skip!("no memory") };
    TARGET.store(va, Relaxed);
    STEP.store(0, SeqCst);
    trap::clear(SHOOTDOWN, trap::EOI_APIC, Some(drop_translation));
    post(read_twice);
    ensure!(time::spin_until(2000, || STEP.load(SeqCst) == 1), "the other processor does not read");
    mem::map(va, pages + mem::PAGE, mem::W);
    apic::send(0, apic::FIXED | apic::OTHERS | u32::from(SHOOTDOWN));
    let done = finished();
    let (before, after) = (READ[0].load(SeqCst), READ[1].load(SeqCst));
    ensure!(done && STEP.load(SeqCst) == 2, "the IPI did not arrive");
    ensure!(before == 0x1111 && after == 0x2222, "read {before:#x} and then {after:#x}");
    good!("the new frame is seen")
}

/// Parks the others and tells of exceptions that they had.
pub fn check_end() -> Verdict {
    let others = ONLINE.load(SeqCst);
    park();
    let fault = trap::AP_FAULT[0].load(Relaxed);
    ensure!(fault == 0, "exception {} at {:#x}", fault.wrapping_sub(1), trap::AP_FAULT[1].load(Relaxed));
    good!("{others} parked by INIT")
}

/// Start and IPIs again, all in x2APIC mode. INIT leaves the others in it, so this comes last.
pub fn check_x2apic() -> Verdict {
    if !apic::present() || acpi().cpus < 2 || cpu::cpuid(1, 0).ecx & 1 << 21 == 0 {
        skip!("not offered, or one processor");
    }
    apic::enter_x2apic();
    apic::init();
    let started = start_all();
    let result = if started == Ok(acpi().cpus as u32 - 1) { check_ipi() } else { Ok(crate::text!("")) };
    park();
    apic::leave_x2apic();
    ensure!(started == Ok(acpi().cpus as u32 - 1), "{started:?} others started of {}", acpi().cpus - 1);
    result
}
