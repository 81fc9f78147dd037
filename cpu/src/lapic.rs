//! The local APIC (Intel SDM volume 3, chapter 11): xAPIC and x2APIC, version 14h, six local vectors.
//!
//! A leaf chip with a lock of its own: devices, the I/O APIC and other processors signal it from any thread, and it
//! tells its processor by one atomic word that the run loop looks at between blocks. Its timer counts at 1 GHz before
//! the divider and lives on the machine's timers. Not modelled: thermal and performance interrupts (their vectors only
//! hold what is written), SMI, and bus arbitration (lowest priority goes to the lowest task priority, then the lowest
//! id).

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock, Weak};

use emu::{MsiSink, Timer, TimerSink, Timers};
use serde::{Deserialize, Serialize};

/// Reasons for the run loop to look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Signals {
    pub(crate) nmi: bool,
    pub(crate) init: bool,
    pub(crate) sipi: Option<u8>,
    /// Somebody wants the processor's thread back.
    pub(crate) kick: bool,
}

/// Delivery modes of messages and local vectors.
mod mode {
    pub(super) const FIXED: u32 = 0;
    pub(super) const LOWEST: u32 = 1;
    pub(super) const NMI: u32 = 4;
    pub(super) const INIT: u32 = 5;
    pub(super) const SIPI: u32 = 6;
    pub(super) const EXTINT: u32 = 7;
}

/// Attention: an interrupt that waits for IF.
const INTERRUPT: u8 = 1;
/// Attention: anything else.
const SIGNAL: u8 = 2;

const LVT_TIMER: usize = 0;
const LVT_LINT0: usize = 3;
const LVT_LINT1: usize = 4;
const LVT_ERROR: usize = 5;
const MASKED: u32 = 1 << 16;
const PENDING: u32 = 1 << 12;
const ENABLE: u64 = 1 << 11;
const X2: u64 = 1 << 10;
const BSP: u64 = 1 << 8;

/// What a local APIC holds; the saved form.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LapicState {
    base: u64,
    id: u32,
    tpr: u8,
    ldr: u32,
    dfr: u32,
    svr: u32,
    isr: [u32; 8],
    tmr: [u32; 8],
    irr: [u32; 8],
    esr: u32,
    esr_latched: u32,
    icr: u64,
    /// Timer, thermal, performance, LINT0, LINT1, error.
    lvt: [u32; 6],
    initial: u32,
    divide: u32,
    /// When the present count started, nanoseconds of guest time.
    started: u64,
    tsc_deadline: u64,
    /// Pins.
    lint: [bool; 2],
    nmi: bool,
    init: bool,
    sipi: Option<u8>,
}

impl LapicState {
    fn power_on(id: u32, bsp: bool) -> LapicState {
        let mut s = LapicState {
            base: 0xfee0_0000 | ENABLE | if bsp { BSP } else { 0 },
            id,
            tpr: 0,
            ldr: 0,
            dfr: u32::MAX,
            svr: 0xff,
            isr: [0; 8],
            tmr: [0; 8],
            irr: [0; 8],
            esr: 0,
            esr_latched: 0,
            icr: 0,
            lvt: [MASKED; 6],
            initial: 0,
            divide: 0,
            started: 0,
            tsc_deadline: 0,
            lint: [false; 2],
            nmi: false,
            init: false,
            sipi: None,
        };
        if bsp {
            // Virtual wire mode, which a BIOS sets up: a kernel started without one and told not to use the APIC
            // expects its 8259 to be heard.
            s.lvt[LVT_LINT0] = mode::EXTINT << 8;
        }
        s
    }

    fn software_enabled(&self) -> bool {
        self.base & ENABLE != 0 && self.svr & 0x100 != 0
    }

    fn x2(&self) -> bool {
        self.base & X2 != 0
    }

    fn ppr(&self) -> u8 {
        let isrv = highest(&self.isr).unwrap_or(0);
        if self.tpr >> 4 >= isrv >> 4 { self.tpr } else { isrv & 0xf0 }
    }

    /// The fixed interrupt that the processor would take.
    fn deliverable(&self) -> Option<u8> {
        if !self.software_enabled() {
            return None;
        }
        highest(&self.irr).filter(|v| v >> 4 > self.ppr() >> 4)
    }

    /// Whether the 8259 is heard.
    fn extint(&self) -> bool {
        let lint0 = self.lvt[LVT_LINT0];
        self.lint[0] && (self.base & ENABLE == 0 || lint0 & MASKED == 0 && lint0 >> 8 & 7 == mode::EXTINT)
    }

    fn accept(&mut self, vector: u8, level: bool) {
        if vector < 16 {
            self.esr |= 1 << 6;
            self.raise_error();
            return;
        }
        set(&mut self.irr, vector, true);
        set(&mut self.tmr, vector, level);
    }

    fn raise_error(&mut self) {
        let lvt = self.lvt[LVT_ERROR];
        if lvt & MASKED == 0 && lvt & 0xff >= 16 {
            set(&mut self.irr, lvt as u8, true);
        }
    }

    /// Nanoseconds for one count.
    fn tick(&self) -> u64 {
        let code = self.divide & 3 | self.divide >> 1 & 4;
        1 << ((code + 1) & 7)
    }

    fn timer_mode(&self) -> u32 {
        self.lvt[LVT_TIMER] >> 17 & 3
    }

    fn period(&self) -> u64 {
        u64::from(self.initial) * self.tick()
    }

    fn current(&self, now: u64) -> u32 {
        if self.initial == 0 || self.timer_mode() == 2 {
            return 0;
        }
        let gone = now.saturating_sub(self.started) / self.tick();
        if self.timer_mode() == 1 {
            self.initial - (gone % u64::from(self.initial)) as u32
        } else {
            u64::from(self.initial).saturating_sub(gone) as u32
        }
    }
}

fn set(bits: &mut [u32; 8], vector: u8, on: bool) {
    let (word, bit) = (vector as usize / 32, 1 << (vector % 32));
    bits[word] = bits[word] & !bit | if on { bit } else { 0 };
}

fn get(bits: &[u32; 8], vector: u8) -> bool {
    bits[vector as usize / 32] >> (vector % 32) & 1 != 0
}

fn highest(bits: &[u32; 8]) -> Option<u8> {
    (0..8).rev().find(|&w| bits[w] != 0).map(|w| (w as u32 * 32 + 31 - bits[w].leading_zeros()) as u8)
}

/// A message on the APIC bus.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    /// Destination id, or set of logical ids.
    pub dest: u32,
    /// Logical destination mode.
    pub logical: bool,
    /// Delivery mode as the hardware encodes it.
    pub mode: u32,
    /// Vector.
    pub vector: u8,
    /// Level-triggered.
    pub level: bool,
}

/// Hears of an INIT or a SIPI instead of the processors: sender, whether it is a SIPI, its vector, and whom it is for.
type Start = Box<dyn Fn(u32, bool, u8, &[u32]) + Send + Sync>;

/// What the local APICs of a machine are connected by.
#[derive(Default)]
pub struct ApicBus {
    lapics: RwLock<Vec<Arc<Lapic>>>,
    /// The A20 gate is closed; a pin of all processors, so it comes the same way.
    a20_closed: Arc<AtomicBool>,
    eoi: OnceLock<Box<dyn Fn(u8) + Send + Sync>>,
    start: OnceLock<Start>,
}

impl ApicBus {
    /// An empty bus.
    pub fn new() -> Arc<ApicBus> {
        Arc::default()
    }

    /// Who hears the end of level-triggered interrupts (the I/O APIC), set once.
    pub fn on_eoi(&self, f: impl Fn(u8) + Send + Sync + 'static) {
        let _ = self.eoi.set(Box::new(f));
    }

    /// A monitor starts processors itself: INIT and SIPI that a processor sends go to `f` (sender, whether it is a SIPI,
    /// vector, destinations), on the sender's thread. Set once.
    pub fn on_start(&self, f: impl Fn(u32, bool, u8, &[u32]) + Send + Sync + 'static) {
        let _ = self.start.set(Box::new(f));
    }

    /// The local APICs, by processor.
    pub fn lapics(&self) -> Vec<Arc<Lapic>> {
        self.lapics.read().unwrap().clone()
    }

    /// Opens or closes the A20 gate of all processors.
    pub fn set_a20(&self, open: bool) {
        self.a20_closed.store(!open, Ordering::Release);
        self.lapics().iter().for_each(|l| l.alert(SIGNAL));
    }

    /// Delivers a message. No APIC's lock may be held.
    pub fn send(&self, m: Message) {
        let lapics = self.lapics.read().unwrap();
        let hit = |l: &&Arc<Lapic>| l.matches(m.dest, m.logical);
        if m.mode == mode::LOWEST {
            if let Some(l) = lapics.iter().filter(hit).min_by_key(|l| (l.ppr(), l.index)) {
                l.deliver(m);
            }
        } else {
            lapics.iter().filter(hit).for_each(|l| l.deliver(m));
        }
    }
}

impl MsiSink for ApicBus {
    fn msi(&self, addr: u64, data: u32) {
        if addr >> 20 != 0xfee {
            return;
        }
        self.send(Message {
            dest: (addr >> 12 & 0xff) as u32,
            logical: addr & 4 != 0,
            mode: data >> 8 & 7,
            vector: data as u8,
            level: data & 0x8000 != 0,
        });
    }

    fn pending(&self, addr: u64, data: u32) -> bool {
        let fixed = matches!(data >> 8 & 7, mode::FIXED | mode::LOWEST);
        let (dest, logical) = ((addr >> 12 & 0xff) as u32, addr & 4 != 0);
        let lapics = self.lapics.read().unwrap();
        fixed && addr >> 20 == 0xfee && lapics.iter().any(|l| l.matches(dest, logical) && l.requests(data as u8))
    }
}

type Ack = Box<dyn Fn() -> u8 + Send + Sync>;

/// A local APIC.
pub struct Lapic {
    index: u32,
    bus: Weak<ApicBus>,
    state: Mutex<LapicState>,
    timer: Timer,
    timers: Arc<Timers>,
    /// [`INTERRUPT`] and [`SIGNAL`].
    attention: AtomicU8,
    kick: AtomicBool,
    a20_closed: Arc<AtomicBool>,
    /// The processor's model has no APIC: INTR and NMI are plain pins.
    absent: AtomicBool,
    /// Copies that the processor reads without the lock.
    base: AtomicU64,
    ack: OnceLock<Ack>,
    wake: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// TSC ticks a second and the processor's TSC offset, for the deadline timer.
    tsc_hz: u64,
    tsc_offset: AtomicU64,
}

impl Lapic {
    /// The local APIC of processor `index`, connected to `bus`.
    pub fn new(index: u32, bus: &Arc<ApicBus>, timers: &Arc<Timers>, tsc_hz: u64) -> Arc<Lapic> {
        let lapic = Arc::new_cyclic(|me: &Weak<Lapic>| {
            let sink: Weak<dyn TimerSink> = me.clone();
            let state = LapicState::power_on(index, index == 0);
            Lapic {
                index,
                bus: Arc::downgrade(bus),
                base: AtomicU64::new(state.base),
                state: Mutex::new(state),
                timer: timers.add(sink, 0),
                timers: timers.clone(),
                attention: AtomicU8::new(0),
                kick: AtomicBool::new(false),
                a20_closed: bus.a20_closed.clone(),
                absent: AtomicBool::new(false),
                ack: OnceLock::new(),
                wake: OnceLock::new(),
                tsc_hz,
                tsc_offset: AtomicU64::new(0),
            }
        });
        bus.lapics.write().unwrap().push(lapic.clone());
        lapic
    }

    /// Takes it out for good, as on processors that came before it.
    pub(crate) fn remove(&self) {
        self.absent.store(true, Ordering::Relaxed);
        self.reset();
    }

    /// The processor's number, which is its APIC id after reset.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// How an ExtINT is acknowledged: the 8259's INTA cycle, which gives the vector. Set once.
    pub fn on_ack(&self, ack: impl Fn() -> u8 + Send + Sync + 'static) {
        let _ = self.ack.set(Box::new(ack));
    }

    /// Called when a sleeping processor has to look. Set once.
    pub fn on_wake(&self, wake: impl Fn() + Send + Sync + 'static) {
        let _ = self.wake.set(Box::new(wake));
    }

    /// Whether the processor has to look before its next block, if it takes interrupts or if not; one relaxed load.
    #[inline(always)]
    pub fn attention(&self, interruptible: bool) -> bool {
        let a = self.attention.load(Ordering::Relaxed);
        a != 0 && (interruptible || a & SIGNAL != 0)
    }

    /// Makes the processor leave its run loop soon, from any thread.
    pub fn kick(&self) {
        self.kick.store(true, Ordering::Release);
        self.alert(SIGNAL);
    }

    /// The mask that the A20 gate puts on physical addresses.
    pub(crate) fn a20_mask(&self) -> u64 {
        if self.a20_closed.load(Ordering::Acquire) { !(1 << 20) } else { u64::MAX }
    }

    /// Drives LINT0 (the 8259's INTR).
    pub fn set_lint0(&self, level: bool) {
        let mut s = self.state.lock().unwrap();
        let rising = level && !s.lint[0];
        s.lint[0] = level;
        let lvt = s.lvt[LVT_LINT0];
        if rising && s.base & ENABLE != 0 && lvt & MASKED == 0 {
            match lvt >> 8 & 7 {
                mode::FIXED => s.accept(lvt as u8, lvt & 1 << 15 != 0),
                mode::NMI => s.nmi = true,
                _ => {}
            }
        }
        self.update(s);
    }

    /// Drives LINT1 (NMI).
    pub fn set_lint1(&self, level: bool) {
        let mut s = self.state.lock().unwrap();
        let rising = level && !s.lint[1];
        s.lint[1] = level;
        let lvt = s.lvt[LVT_LINT1];
        if rising && (s.base & ENABLE == 0 || lvt & MASKED == 0 && lvt >> 8 & 7 == mode::NMI) {
            s.nmi = true;
        }
        self.update(s);
    }

    /// An NMI from outside, whatever LINT1 says.
    pub fn nmi(&self) {
        let mut s = self.state.lock().unwrap();
        s.nmi = true;
        self.update(s);
    }

    /// An INIT from outside.
    pub fn request_init(&self) {
        let mut s = self.state.lock().unwrap();
        s.init = true;
        self.update(s);
    }

    /// A SIPI from outside.
    pub fn request_sipi(&self, vector: u8) {
        let mut s = self.state.lock().unwrap();
        s.sipi = Some(vector);
        self.update(s);
    }

    /// Takes the signals that are not interrupts, and settles [`Lapic::attention`].
    pub(crate) fn signals(&self) -> Signals {
        self.attention.fetch_and(!SIGNAL, Ordering::AcqRel);
        let mut s = self.state.lock().unwrap();
        let signals = Signals {
            nmi: std::mem::take(&mut s.nmi),
            init: std::mem::take(&mut s.init),
            sipi: s.sipi.take(),
            kick: self.kick.swap(false, Ordering::AcqRel),
        };
        self.update(s);
        signals
    }

    /// Whether an interrupt could be taken if the processor lets it.
    pub fn has_interrupt(&self) -> bool {
        let s = self.state.lock().unwrap();
        s.deliverable().is_some() || s.extint()
    }

    /// Acknowledges the interrupt to take now.
    pub(crate) fn take_interrupt(&self) -> Option<u8> {
        let mut s = self.state.lock().unwrap();
        if let Some(vector) = s.deliverable() {
            set(&mut s.irr, vector, false);
            set(&mut s.isr, vector, true);
            self.update(s);
            return Some(vector);
        }
        let extint = s.extint();
        drop(s);
        // The 8259 lowers its output during INTA, which comes back to `set_lint0`: the lock must be free.
        extint.then(|| self.ack.get().map_or(0xff, |ack| ack()))
    }

    /// Sets attention from the state and wakes the processor if there is something new.
    fn update(&self, s: std::sync::MutexGuard<LapicState>) {
        let interrupt = s.deliverable().is_some() || s.extint();
        let signal = s.nmi || s.init || s.sipi.is_some();
        // SIGNAL stays until the processor has looked: see `signals`.
        let old = if interrupt {
            self.attention.fetch_or(INTERRUPT, Ordering::AcqRel)
        } else {
            self.attention.fetch_and(!INTERRUPT, Ordering::AcqRel) | INTERRUPT
        };
        drop(s);
        if signal {
            self.alert(SIGNAL);
        }
        if old & INTERRUPT == 0 {
            self.wake();
        }
    }

    fn alert(&self, bit: u8) {
        if self.attention.fetch_or(bit, Ordering::AcqRel) & bit == 0 {
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(wake) = self.wake.get() {
            wake();
        }
    }

    fn ppr(&self) -> u8 {
        self.state.lock().unwrap().ppr()
    }

    fn requests(&self, vector: u8) -> bool {
        get(&self.state.lock().unwrap().irr, vector)
    }

    fn matches(&self, dest: u32, logical: bool) -> bool {
        let s = self.state.lock().unwrap();
        if s.base & ENABLE == 0 {
            return false;
        }
        if !logical {
            let all = if s.x2() { u32::MAX } else { 0xff };
            // An 8-bit broadcast from the I/O APIC or an MSI reaches x2APICs as well.
            return dest == s.id || dest == all || dest == 0xff;
        }
        if s.x2() {
            let mine = (s.id >> 4) << 16 | 1 << (s.id & 15);
            return mine >> 16 == dest >> 16 && mine & dest & 0xffff != 0;
        }
        let (mine, dest) = (s.ldr >> 24, dest & 0xff);
        if s.dfr >> 28 == 0xf { mine & dest != 0 } else { mine >> 4 == dest >> 4 && mine & dest & 15 != 0 }
    }

    fn deliver(&self, m: Message) {
        let mut s = self.state.lock().unwrap();
        match m.mode {
            mode::FIXED | mode::LOWEST if s.software_enabled() => s.accept(m.vector, m.level),
            mode::NMI => s.nmi = true,
            mode::INIT => {
                s.init = true;
                s.sipi = None;
            }
            mode::SIPI => s.sipi = Some(m.vector),
            _ => {}
        }
        self.update(s);
    }

    /// IA32_APIC_BASE.
    #[inline]
    pub fn apic_base(&self) -> u64 {
        self.base.load(Ordering::Relaxed)
    }

    /// Writes IA32_APIC_BASE. `false`: reserved bits or a forbidden transition, #GP.
    pub fn set_apic_base(&self, value: u64) -> bool {
        let mut s = self.state.lock().unwrap();
        let (old, new) = (s.base & (ENABLE | X2), value & (ENABLE | X2));
        let allowed = new != X2 && !(old == ENABLE | X2 && new == ENABLE) && !(old == 0 && new == ENABLE | X2);
        if !allowed || value & !(0xf_ffff_f000 | ENABLE | X2 | BSP) != 0 {
            return false;
        }
        let bsp = s.base & BSP;
        if new == 0 && old != 0 {
            let (base, lint) = (s.base, s.lint);
            *s = LapicState { base, lint, ..LapicState::power_on(self.index, bsp != 0) };
            self.timer.cancel();
        }
        s.base = value & !BSP | bsp;
        self.base.store(s.base, Ordering::Relaxed);
        self.update(s);
        true
    }

    /// The task priority register.
    pub fn tpr(&self) -> u8 {
        self.state.lock().unwrap().tpr
    }

    /// Writes the task priority register.
    pub fn set_tpr(&self, tpr: u8) {
        let mut s = self.state.lock().unwrap();
        s.tpr = tpr;
        self.update(s);
    }

    /// IA32_TSC_DEADLINE.
    pub fn tsc_deadline(&self) -> u64 {
        self.state.lock().unwrap().tsc_deadline
    }

    /// Arms the timer for a TSC value, if it is in deadline mode.
    pub fn set_tsc_deadline(&self, tsc: u64) {
        let mut s = self.state.lock().unwrap();
        if s.timer_mode() != 2 {
            return;
        }
        s.tsc_deadline = tsc;
        if tsc == 0 {
            self.timer.cancel();
        } else {
            let ticks = tsc.wrapping_sub(self.tsc_offset.load(Ordering::Relaxed));
            let ns = (u128::from(ticks) * 1_000_000_000).div_ceil(u128::from(self.tsc_hz));
            self.timer.set(u64::try_from(ns).unwrap_or(u64::MAX - 1).min(u64::MAX - 1));
        }
    }

    /// The processor's TSC counts from another point now.
    pub(crate) fn set_tsc_offset(&self, offset: u64) {
        self.tsc_offset.store(offset, Ordering::Relaxed);
    }

    /// Reads the 32-bit register at `offset` of the memory-mapped page.
    pub fn read(&self, offset: u32) -> u32 {
        let s = self.state.lock().unwrap();
        let word = offset as usize >> 4 & 7;
        match offset & 0xff0 {
            0x020 => {
                if s.x2() {
                    s.id
                } else {
                    s.id << 24
                }
            }
            0x030 => 0x0005_0014,
            0x080 => u32::from(s.tpr),
            0x0a0 => u32::from(s.ppr()),
            0x0d0 => {
                if s.x2() {
                    (s.id >> 4) << 16 | 1 << (s.id & 15)
                } else {
                    s.ldr
                }
            }
            0x0e0 => s.dfr,
            0x0f0 => s.svr,
            0x100..=0x170 => s.isr[word],
            0x180..=0x1f0 => s.tmr[word],
            0x200..=0x270 => s.irr[word],
            0x280 => s.esr_latched,
            0x300 => s.icr as u32,
            0x310 => (s.icr >> 32) as u32,
            0x320..=0x370 => {
                let n = (offset as usize >> 4) - 0x32;
                // A timer interrupt that is pending in IRR shows as delivered: status is always idle.
                s.lvt[n] & !PENDING
            }
            0x380 => s.initial,
            0x390 => s.current(self.timers.clock().now()),
            0x3e0 => s.divide,
            _ => 0,
        }
    }

    /// Writes the 32-bit register at `offset` of the memory-mapped page.
    pub fn write(&self, offset: u32, value: u32) {
        let mut s = self.state.lock().unwrap();
        match offset & 0xff0 {
            0x020 if !s.x2() => s.id = value >> 24,
            0x080 => s.tpr = value as u8,
            0x0b0 => return self.eoi(s),
            0x0d0 if !s.x2() => s.ldr = value & 0xff00_0000,
            0x0e0 => s.dfr = value | 0x0fff_ffff,
            0x0f0 => {
                s.svr = value & 0x11ff;
                if value & 0x100 == 0 {
                    s.lvt.iter_mut().for_each(|l| *l |= MASKED);
                }
            }
            0x280 => s.esr_latched = std::mem::take(&mut s.esr),
            0x300 => {
                s.icr = s.icr & !0xffff_ffff | u64::from(value & !PENDING);
                let icr = s.icr;
                let dest = (icr >> 56) as u32;
                drop(s);
                return self.send_icr(icr as u32, dest, false);
            }
            0x310 => s.icr = s.icr & 0xffff_ffff | u64::from(value) << 32,
            0x320..=0x370 => self.write_lvt(&mut s, (offset as usize >> 4) - 0x32, value),
            0x380 if s.timer_mode() != 2 => {
                s.initial = value;
                s.started = self.timers.clock().now();
                self.arm(&s);
            }
            0x3e0 => {
                let now = self.timers.clock().now();
                let left = s.current(now);
                s.divide = value & 0xb;
                // The count goes on from where it is, at the new speed.
                s.started = now.wrapping_sub(u64::from(s.initial - left) * s.tick());
                self.arm(&s);
            }
            _ => {}
        }
        self.update(s);
    }

    fn write_lvt(&self, s: &mut LapicState, n: usize, value: u32) {
        let mut value = value & [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff][n];
        if s.svr & 0x100 == 0 {
            value |= MASKED;
        }
        let old_mode = s.timer_mode();
        s.lvt[n] = value;
        if n == LVT_TIMER && s.timer_mode() != old_mode {
            if s.timer_mode() == 2 || old_mode == 2 {
                s.initial = 0;
                s.tsc_deadline = 0;
                self.timer.cancel();
            } else {
                self.arm(s);
            }
        }
    }

    /// Sets the timer for the next expiry of the present count.
    fn arm(&self, s: &LapicState) {
        let period = s.period();
        if period == 0 || s.timer_mode() == 2 {
            return self.timer.cancel();
        }
        let now = self.timers.clock().now();
        let gone = now.saturating_sub(s.started);
        if s.timer_mode() == 1 {
            self.timer.set(s.started.saturating_add((gone / period + 1).saturating_mul(period)));
        } else if gone < period {
            self.timer.set(s.started + period);
        } else {
            self.timer.cancel();
        }
    }

    fn eoi(&self, mut s: std::sync::MutexGuard<LapicState>) {
        let Some(vector) = highest(&s.isr) else { return };
        set(&mut s.isr, vector, false);
        let level = get(&s.tmr, vector);
        self.update(s);
        if level
            && let Some(bus) = self.bus.upgrade()
            && let Some(eoi) = bus.eoi.get()
        {
            eoi(vector);
        }
    }

    fn send_icr(&self, low: u32, dest: u32, x2: bool) {
        let Some(bus) = self.bus.upgrade() else { return };
        let (kind, vector) = (low >> 8 & 7, low as u8);
        // INIT level de-assert does nothing on these processors.
        if kind == mode::INIT && low & 1 << 15 != 0 && low & 1 << 14 == 0 {
            return;
        }
        if kind <= mode::LOWEST && vector < 16 {
            let mut s = self.state.lock().unwrap();
            s.esr |= 1 << 5;
            s.raise_error();
            return self.update(s);
        }
        let m = Message { dest, logical: low & 1 << 11 != 0, mode: kind, vector, level: false };
        let shorthand = low >> 18 & 3;
        if matches!(kind, mode::INIT | mode::SIPI)
            && let Some(start) = bus.start.get()
        {
            let hit = |l: &&Arc<Lapic>| match shorthand {
                0 => l.matches(dest, m.logical),
                1 => l.index == self.index,
                shorthand => shorthand == 2 || l.index != self.index,
            };
            let dests: Vec<u32> = bus.lapics().iter().filter(hit).map(|l| l.index).collect();
            return start(self.index, kind == mode::SIPI, vector, &dests);
        }
        match shorthand {
            0 => {
                // xAPIC broadcast is FF, x2APIC's is all ones; 0xff is an ordinary id there.
                let m = if x2 && dest == 0xff && !m.logical { Message { dest: 0x1_00ff, ..m } } else { m };
                bus.send(m);
            }
            1 => self.deliver(m),
            shorthand => {
                for lapic in bus.lapics() {
                    if shorthand == 2 || lapic.index != self.index {
                        lapic.deliver(m);
                    }
                }
            }
        }
    }

    /// Reads x2APIC register MSR 800h-8FFh. `None`: #GP.
    pub fn read_msr(&self, msr: u32) -> Option<u64> {
        if self.apic_base() & (ENABLE | X2) != ENABLE | X2 {
            return None;
        }
        match msr {
            0x830 => Some(self.state.lock().unwrap().icr),
            0x802 | 0x803 | 0x808 | 0x80a | 0x80d | 0x80f | 0x810..=0x828 | 0x832..=0x839 | 0x83e => {
                Some(u64::from(self.read((msr - 0x800) << 4)))
            }
            _ => None,
        }
    }

    /// Writes an x2APIC register. `false`: #GP.
    pub fn write_msr(&self, msr: u32, value: u64) -> bool {
        if self.apic_base() & (ENABLE | X2) != ENABLE | X2 {
            return false;
        }
        match msr {
            0x830 => {
                self.state.lock().unwrap().icr = value & !u64::from(PENDING);
                self.send_icr(value as u32, (value >> 32) as u32, true);
                true
            }
            0x83f => {
                self.send_icr(1 << 18 | (value as u32 & 0xff), 0, true);
                true
            }
            0x80b | 0x828 if value != 0 => false,
            0x808 | 0x80b | 0x80f | 0x828 | 0x832..=0x838 | 0x83e if value >> 32 == 0 => {
                self.write((msr - 0x800) << 4, value as u32);
                true
            }
            _ => false,
        }
    }

    /// Power-on or RESET.
    pub fn reset(&self) {
        let mut s = self.state.lock().unwrap();
        let lint = s.lint;
        *s = LapicState { lint, ..LapicState::power_on(self.index, self.index == 0) };
        if self.absent.load(Ordering::Relaxed) {
            s.base &= !ENABLE;
        }
        self.base.store(s.base, Ordering::Relaxed);
        self.timer.cancel();
        self.update(s);
    }

    /// INIT: as RESET, but the id and the base stay.
    pub(crate) fn init(&self) {
        let mut s = self.state.lock().unwrap();
        let (base, id, lint, sipi) = (s.base, s.id, s.lint, s.sipi);
        *s = LapicState { base, id, lint, sipi, ..LapicState::power_on(self.index, self.index == 0) };
        self.timer.cancel();
        self.update(s);
    }

    /// The state to be saved, with the timer's deadline.
    pub fn save(&self) -> (LapicState, Option<u64>) {
        (self.state.lock().unwrap().clone(), self.timer.deadline())
    }

    /// Takes over a saved state.
    pub fn load(&self, state: LapicState, deadline: Option<u64>) {
        let mut s = self.state.lock().unwrap();
        *s = state;
        self.base.store(s.base, Ordering::Relaxed);
        self.timer.set(deadline.unwrap_or(u64::MAX));
        self.update(s);
    }
}

impl TimerSink for Lapic {
    fn fire(&self, _: u32) {
        let mut s = self.state.lock().unwrap();
        if s.timer_mode() == 2 {
            s.tsc_deadline = 0;
        }
        // Periodic ticks that came too late to be told apart are dropped: IRR holds one.
        if s.timer_mode() == 1 {
            self.arm(&s);
        }
        let lvt = s.lvt[LVT_TIMER];
        if lvt & MASKED == 0 && s.software_enabled() {
            s.accept(lvt as u8, false);
        }
        self.update(s);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use emu::Clock;

    struct Rig {
        clock: Arc<Clock>,
        timers: Arc<Timers>,
        bus: Arc<ApicBus>,
        cpus: Vec<Arc<Lapic>>,
    }

    fn rig(n: u32) -> Rig {
        let clock = Clock::manual();
        let timers = Timers::new(clock.clone());
        let bus = ApicBus::new();
        let cpus: Vec<_> = (0..n).map(|i| Lapic::new(i, &bus, &timers, 1_000_000_000)).collect();
        for c in &cpus {
            c.write(0xf0, 0x1ff);
            c.write(0xd0, 1 << (24 + c.index));
        }
        Rig { clock, timers, bus, cpus }
    }

    #[test]
    fn a_higher_class_interrupts_and_eoi_uncovers_the_lower() {
        let r = rig(1);
        let c = &r.cpus[0];
        c.write(0x300, 1 << 18 | 0x41);
        assert_eq!(c.take_interrupt(), Some(0x41));
        c.write(0x300, 1 << 18 | 0x4f);
        assert!(!c.has_interrupt(), "same class waits");
        c.write(0x300, 1 << 18 | 0x51);
        assert_eq!(c.take_interrupt(), Some(0x51));
        c.write(0xb0, 0);
        c.write(0xb0, 0);
        assert_eq!(c.take_interrupt(), Some(0x4f));
    }

    #[test]
    fn the_task_priority_holds_interrupts_back() {
        let r = rig(1);
        let c = &r.cpus[0];
        c.set_tpr(0x50);
        c.write(0x300, 1 << 18 | 0x55);
        assert!(!c.attention(true) && !c.has_interrupt());
        c.set_tpr(0x40);
        assert!(c.attention(true) && !c.attention(false));
        assert_eq!(c.take_interrupt(), Some(0x55));
        assert!(!c.attention(true));
    }

    #[test]
    fn a_periodic_timer_keeps_its_phase_when_it_is_served_late() {
        let r = rig(1);
        let c = &r.cpus[0];
        c.write(0x3e0, 0xb);
        c.write(0x320, 1 << 17 | 0x30);
        c.write(0x380, 1000);
        r.clock.set(999);
        r.timers.run_due();
        assert!(!c.has_interrupt());
        assert_eq!(c.read(0x390), 1);
        r.clock.set(3500);
        r.timers.run_due();
        assert_eq!(c.take_interrupt(), Some(0x30));
        assert_eq!(r.timers.next(), 4000);
        assert_eq!(c.read(0x390), 500);
    }

    #[test]
    fn the_divider_counts_as_the_register_encodes_it() {
        for (code, divisor) in [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)] {
            let r = rig(1);
            let c = &r.cpus[0];
            c.write(0x3e0, code);
            c.write(0x380, 100);
            assert_eq!(r.timers.next() - r.clock.now(), 100 * divisor, "code {code}");
        }
    }

    #[test]
    fn the_deadline_timer_fires_at_a_tsc_value_once() {
        let r = rig(1);
        let c = &r.cpus[0];
        c.write(0x320, 2 << 17 | 0x31);
        c.set_tsc_deadline(5000);
        r.clock.set(5000);
        r.timers.run_due();
        assert_eq!(c.take_interrupt(), Some(0x31));
        assert_eq!(c.tsc_deadline(), 0);
        assert_eq!(r.timers.next(), u64::MAX);
    }

    #[test]
    fn ipis_reach_physical_logical_and_shorthand_destinations() {
        let r = rig(3);
        let told = |r: &Rig| r.cpus.iter().map(|c| c.take_interrupt()).collect::<Vec<_>>();
        r.cpus[0].write(0x310, 2 << 24);
        r.cpus[0].write(0x300, 0x60);
        assert_eq!(told(&r), [None, None, Some(0x60)]);
        r.cpus[0].write(0x310, 3 << 24);
        r.cpus[0].write(0x300, 1 << 11 | 0x71);
        assert_eq!(told(&r), [Some(0x71), Some(0x71), None]);
        r.cpus[1].write(0x300, 3 << 18 | 0x82);
        assert_eq!(told(&r), [Some(0x82), None, Some(0x82)]);
        r.bus.msi(0xfee0_1000, 0x93);
        assert_eq!(told(&r), [None, Some(0x93), None]);
    }

    #[test]
    fn a_message_is_pending_until_a_processor_that_it_went_to_takes_it() {
        let r = rig(2);
        let (addr, data) = (0xfee0_100c, 0x31);
        assert!(!r.bus.pending(addr, data));
        r.bus.msi(addr, data);
        assert!(!r.bus.pending(addr, 0x32) && !r.bus.pending(0xfee0_2000, data) && !r.bus.pending(addr, 0x731));
        let logical = 0xfee0_3004;
        r.bus.msi(logical, data);
        assert!(r.bus.pending(logical, data));
        for c in &r.cpus {
            assert_eq!(c.take_interrupt(), Some(0x31));
        }
        assert!(!r.bus.pending(logical, data));
    }

    #[test]
    fn x2apic_is_entered_only_from_xapic_and_left_only_by_disabling() {
        let r = rig(2);
        let c = &r.cpus[1];
        assert!(c.read_msr(0x802).is_none());
        assert!(!c.set_apic_base(0xfee0_0000 | X2), "x2APIC without enable");
        assert!(c.set_apic_base(0xfee0_0000 | ENABLE | X2));
        assert_eq!(c.read_msr(0x802), Some(1));
        assert!(!c.set_apic_base(0xfee0_0000 | ENABLE), "back to xAPIC");
        assert!(c.write_msr(0x80f, 0x1ff));
        assert!(c.write_msr(0x83f, 0x44));
        assert_eq!(c.take_interrupt(), Some(0x44));
        assert!(!c.write_msr(0x80b, 1), "EOI takes only 0");
        assert!(c.set_apic_base(0xfee0_0000));
    }

    #[test]
    fn the_8259_is_heard_in_virtual_wire_mode_and_with_the_apic_off() {
        let r = rig(2);
        let c = &r.cpus[0];
        c.on_ack(|| 0x20);
        c.write(0x350, MASKED | 0x700);
        c.set_lint0(true);
        assert!(!c.has_interrupt());
        c.write(0x350, 0x700);
        assert!(c.attention(true) && !c.attention(false));
        assert_eq!(c.take_interrupt(), Some(0x20));
        c.write(0x350, MASKED | 0x700);
        assert!(!c.has_interrupt());
        c.set_apic_base(0xfee0_0000);
        assert_eq!(c.take_interrupt(), Some(0x20));
    }

    #[test]
    fn level_interrupts_tell_the_io_apic_when_they_end() {
        let r = rig(1);
        let ended = Arc::new(Mutex::new(Vec::new()));
        let log = ended.clone();
        r.bus.on_eoi(move |v| log.lock().unwrap().push(v));
        for level in [false, true] {
            r.bus.send(Message { dest: 0, logical: false, mode: 0, vector: 0x61, level });
            assert_eq!(r.cpus[0].take_interrupt(), Some(0x61));
            r.cpus[0].write(0xb0, 0);
        }
        assert_eq!(*ended.lock().unwrap(), [0x61]);
    }

    #[test]
    fn init_and_sipi_come_to_the_application_processor_alone() {
        let r = rig(2);
        r.cpus[0].write(0x310, 1 << 24);
        r.cpus[0].write(0x300, 0x4500);
        r.cpus[0].write(0x300, 0x4608);
        assert_eq!(r.cpus[0].signals(), Signals::default());
        let s = r.cpus[1].signals();
        assert!(s.init && s.sipi == Some(8));
        assert!(!r.cpus[1].attention(true));
    }
}
