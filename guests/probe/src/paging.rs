//! Paging: error codes, permission bits, accessed and dirty bits, translations that must go.

use crate::cpu::{self, MSR_EFER, rdmsr, wrmsr};
use crate::exceptions::expect;
use crate::mem::{self, PAGE, WINDOW, read64, write64};
use crate::report::Verdict;
use crate::trap::{self, Caught};
use crate::{catch, ensure, good, skip};

const WP: u64 = 1 << 16;
const PGE: u64 = 1 << 7;
const SMEP: u64 = 1 << 20;
const SMAP: u64 = 1 << 21;

fn load(at: u64) -> Option<Caught> {
    catch!("mov al, [{p}]"; p = in(reg) at, out("al") _)
}

fn store(at: u64) -> Option<Caught> {
    catch!("mov byte ptr [{p}], 1"; p = in(reg) at)
}

/// Jumps to `at`, where a RET must be.
fn fetch(at: u64) -> Option<Caught> {
    // A fault on the fetch leaves the return address pushed: RSP is kept by hand, and the way back set behind the call.
    catch!("mov r12, rsp", "lea rcx, [rip + 78f]", "mov [rip + {back}], rcx", "call {p}", "78:", "mov rsp, r12";
        back = sym trap::RESUME, p = in(reg) at, out("rcx") _, out("r12") _)
}

/// Whether the processor offers NX; turns it on for this run.
pub fn enable_nx() -> bool {
    let offered = cpu::cpuid(0x8000_0001, 0).edx & 1 << 20 != 0;
    if offered {
        wrmsr(MSR_EFER, rdmsr(MSR_EFER) | 1 << 11);
    }
    offered
}

/// #PF for absent, read-only, no-execute and reserved-bit entries.
pub fn check_faults() -> Verdict {
    let Some(frame) = mem::pages(1) else { skip!("no memory") };
    let (va, absent) = (WINDOW + PAGE, WINDOW + 2 * PAGE);
    let Some(()) = mem::map(va, frame, 0) else { skip!("no memory") };
    mem::write8(frame, 0xc3);
    cpu::set_cr2(0x1234);
    ensure!(cpu::cr2() == 0x1234, "CR2 cannot be written");
    let c = expect("absent, read", load(absent + 5), trap::PF, 0)?;
    ensure!(c.cr2 == absent + 5, "CR2 {:#x}, wanted {:#x}", c.cr2, absent + 5);
    expect("absent, write", store(absent), trap::PF, 2)?;
    expect("read-only, write", store(va), trap::PF, 3)?;
    ensure!(load(va).is_none() && fetch(va).is_none(), "a read-only page cannot be read or run");
    cpu::set_cr0(cpu::cr0() & !WP);
    let unprotected = store(va + 8);
    cpu::set_cr0(cpu::cr0() | WP);
    ensure!(unprotected.is_none(), "CR0.WP clear does not let level 0 write");
    expect("read-only, write, WP on again", store(va), trap::PF, 3)?;
    let nx = enable_nx();
    if nx {
        mem::map(va, frame, mem::NX | mem::W);
        expect("NX, fetch", fetch(va), trap::PF, 0x11)?;
        ensure!(load(va).is_none() && store(va + 8).is_none(), "an NX page cannot be read or written");
    }
    let bits = cpu::cpuid(0x8000_0008, 0).eax & 0xff;
    if bits < 52 {
        mem::map(va, frame | 1 << 51, mem::W);
        let error = |c: Option<Caught>| c.map_or(0, |c| if c.vector == trap::PF { c.error } else { 0 });
        let (read, write) = (error(load(va)), error(store(va)));
        ensure!(
            read & !1 == 8 && write & !1 == 0xa,
            "reserved bit: error {read:#x} for a read, {write:#x} for a write"
        );
    }
    // The lower level grants, the upper refuses: the stricter wins.
    mem::map(va, frame, mem::W);
    let Some(upper) = mem::entry(va, 2) else { skip!("no memory") };
    write64(upper, read64(upper) & !mem::W);
    cpu::flush_tlb();
    expect("read-only directory, write", store(va), trap::PF, 3)?;
    good!("error codes 0, 2, 3{}, reserved bit; WP; {bits} address bits", if nx { ", 11h" } else { "" })
}

/// Accessed on every level, dirty on the last and by writes alone.
pub fn check_accessed_dirty() -> Verdict {
    let Some(frame) = mem::pages(1) else { skip!("no memory") };
    let va = WINDOW + 0x40_0000;
    let Some(()) = mem::map(va, frame, mem::W) else { skip!("no memory") };
    let slots =
        [mem::entry(va, 1), mem::entry(va, 2), mem::entry(va, 3), mem::entry(va, 4)].map(Option::unwrap_or_default);
    let clear = || {
        for slot in slots {
            write64(slot, read64(slot) & !(mem::A | mem::D));
        }
        cpu::flush_tlb();
    };
    clear();
    load(va);
    for (level, slot) in slots.iter().enumerate() {
        let bits = read64(*slot) & (mem::A | mem::D);
        ensure!(bits & mem::A != 0, "read: A clear on level {}", level + 1);
        ensure!(level != 0 || bits & mem::D == 0, "read: D set");
    }
    store(va);
    ensure!(read64(slots[0]) & mem::D != 0, "write after read: D clear");
    clear();
    store(va);
    ensure!(read64(slots[0]) & (mem::A | mem::D) == mem::A | mem::D, "write: entry {:#x}", read64(slots[0]));
    write64(slots[0], read64(slots[0]) & !(mem::A | mem::D | mem::W));
    cpu::flush_tlb();
    store(va);
    ensure!(read64(slots[0]) & mem::D == 0, "a write that faults sets D");
    good!("A on four levels, D by writes")
}

/// A changed entry counts after INVLPG, after a CR3 load unless global, and after CR4.PGE was flipped.
pub fn check_invalidation() -> Verdict {
    let Some(frames) = mem::pages(2) else { skip!("no memory") };
    write64(frames, 1);
    write64(frames + PAGE, 2);
    let va = WINDOW + 0x60_0000;
    let Some(()) = mem::map(va, frames, mem::W) else { skip!("no memory") };
    let Some(slot) = mem::entry(va, 1) else { skip!("no memory") };
    let set = |frame: u64, flags: u64| write64(slot, frame | flags | mem::W | mem::P);

    ensure!(read64(va) == 1, "first read {}", read64(va));
    set(frames + PAGE, 0);
    cpu::invlpg(va + 8);
    ensure!(read64(va) == 2, "INVLPG: the old frame is read");
    set(frames, 0);
    cpu::flush_tlb();
    ensure!(read64(va) == 1, "CR3: the old frame is read");
    let mut survived = "no global pages";
    if cpu::cpuid(1, 0).edx & 1 << 13 != 0 {
        let cr4 = cpu::cr4();
        cpu::set_cr4(cr4 | PGE);
        set(frames + PAGE, mem::G);
        cpu::invlpg(va);
        let first = read64(va);
        set(frames, mem::G);
        cpu::flush_tlb();
        survived = if read64(va) == 2 { "global pages outlive CR3" } else { "global pages dropped by CR3" };
        cpu::invlpg(va);
        let second = read64(va);
        set(frames + PAGE, mem::G);
        cpu::set_cr4(cr4 & !PGE);
        let third = read64(va);
        cpu::set_cr4(cr4);
        ensure!(first == 2 && second == 1, "INVLPG of a global page: read {first}, {second}");
        ensure!(third == 2, "CR4.PGE off: the old frame is read");
    }
    // From absent to present no invalidation is needed.
    write64(slot, 0);
    cpu::invlpg(va);
    expect("absent", load(va), trap::PF, 0)?;
    set(frames, 0);
    ensure!(load(va).is_none(), "a page made present still faults");
    good!("INVLPG, CR3, CR4.PGE; {survived}")
}

/// 2 MiB pages: one INVLPG drops all of it; 1 GiB pages where offered.
pub fn check_large() -> Verdict {
    let va = WINDOW + (1 << 30);
    let Some(slot) = mem::entry(va, 2) else { skip!("no memory") };
    let image = 0x20_0000;
    write64(slot, image | mem::PS | mem::P);
    cpu::invlpg(va);
    let offset = 0x1000;
    ensure!(read64(va + offset) == read64(image + offset), "2 MiB page: wrong frame");
    read64(va + 0x10_0000);
    write64(slot, mem::PS | mem::P);
    cpu::invlpg(va + 0x10_0000);
    mem::write64(0x9000, 0x1357_9bdf);
    ensure!(read64(va + 0x9000) == 0x1357_9bdf, "2 MiB page: INVLPG of one address leaves the rest");
    expect("2 MiB page, read-only, write", store(va + 0x9000), trap::PF, 3)?;
    if cpu::cpuid(0x8000_0001, 0).edx & 1 << 26 == 0 {
        return good!("2 MiB");
    }
    let va = WINDOW + (3 << 30);
    let Some(slot) = mem::entry(va, 3) else { skip!("no memory") };
    write64(slot, mem::PS | mem::P | mem::W);
    cpu::invlpg(va);
    ensure!(read64(va + 0x9000) == 0x1357_9bdf, "1 GiB page: wrong frame");
    good!("2 MiB, 1 GiB")
}

/// SMEP and SMAP, where offered.
pub fn check_supervisor() -> Verdict {
    let leaf = if cpu::cpuid(0, 0).eax >= 7 { cpu::cpuid(7, 0).ebx } else { 0 };
    let (smep, smap) = (leaf & 1 << 7 != 0, leaf & 1 << 20 != 0);
    if !smep && !smap {
        skip!("not offered");
    }
    let Some(frame) = mem::pages(1) else { skip!("no memory") };
    mem::write8(frame, 0xc3);
    let va = WINDOW + 0x80_0000;
    let Some(()) = mem::map(va, frame, mem::U | mem::W) else { skip!("no memory") };
    let cr4 = cpu::cr4();
    let mut result = [None; 4];
    if smep {
        cpu::set_cr4(cr4 | SMEP);
        result[0] = fetch(va);
    }
    if smap {
        cpu::set_cr4(cr4 | SMAP);
        result[1] = load(va);
        result[2] = store(va);
        result[3] = catch!("stac", "mov al, [{p}]", "clac"; p = in(reg) va, out("al") _);
    }
    cpu::set_cr4(cr4);
    if smep {
        expect("SMEP, fetch", result[0], trap::PF, 0x11)?;
    }
    if smap {
        expect("SMAP, read", result[1], trap::PF, 1)?;
        expect("SMAP, write", result[2], trap::PF, 3)?;
        ensure!(result[3].is_none(), "STAC does not open user pages");
    }
    ensure!(fetch(va).is_none(), "without SMEP a user page cannot be run");
    good!("SMEP {smep}, SMAP {smap}")
}
