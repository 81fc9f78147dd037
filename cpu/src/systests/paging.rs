//! Page tables of all three kinds, rights, accessed and dirty bits, and what the TLB may remember.

use iced_x86::code_asm::*;

use super::*;
use crate::feature::Feature;
use crate::flags::AC;
use crate::insn::{RAX, RBX};
use crate::mem::Access as Want;
use crate::state::Why;

const ROOT: u64 = 0x10_0000;
const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const A: u64 = 0x20;
const D: u64 = 0x40;
const PS: u64 = 0x80;
const G: u64 = 0x100;
const NX: u64 = 1 << 63;

const WP: u64 = 1 << 16;
const PG: u64 = 1 << 31;
const PSE: u64 = 1 << 4;
const PAE: u64 = 1 << 5;
const PGE: u64 = 1 << 7;
const SMEP: u64 = 1 << 20;
const SMAP: u64 = 1 << 21;

/// The page that the tests play with, and where it is mapped.
const PAGE: u64 = 0x20_0000;
const VIRT: u64 = 0x30_0000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Bits32,
    Pae,
    Long,
}

const ALL: [Kind; 3] = [Kind::Bits32, Kind::Pae, Kind::Long];

struct Paged {
    m: Machine,
    kind: Kind,
}

impl Paged {
    /// The first 4 MiB mapped to themselves, writable and for users, but for [`VIRT`], which leads to [`PAGE`].
    fn new(kind: Kind) -> Paged {
        let m = Machine::protected();
        let mut p = Paged { m, kind };
        match kind {
            Kind::Bits32 => {
                p.m.write32(ROOT, (ROOT + 0x1000 | P | W | U) as u32);
                for n in 0..1024 {
                    p.m.write32(ROOT + 0x1000 + 4 * n, (n << 12 | P | W | U) as u32);
                }
            }
            Kind::Pae | Kind::Long => {
                p.m.write64(ROOT, ROOT + 0x1000 | P | if kind == Kind::Long { W | U } else { 0 });
                let (pd, pt) = if kind == Kind::Long { (0x2000, 0x3000) } else { (0x1000, 0x3000) };
                if kind == Kind::Long {
                    p.m.write64(ROOT + 0x1000, ROOT + 0x2000 | P | W | U);
                }
                for k in 0..2 {
                    p.m.write64(ROOT + pd + 8 * k, ROOT + pt + 0x1000 * k | P | W | U);
                    for n in 0..512 {
                        p.m.write64(ROOT + pt + 0x1000 * k + 8 * n, (512 * k + n) << 12 | P | W | U);
                    }
                }
                p.m.cpu.cr4 = PAE;
            }
        }
        p.m.cpu.cr3 = ROOT;
        p.m.cpu.cr0 |= PG | WP;
        p.m.cpu.msr.efer = 0x800;
        if kind == Kind::Long {
            p.m.cpu.msr.efer = 0xd00;
        }
        if kind == Kind::Pae {
            assert!(p.m.cpu.load_pdptes(ROOT));
        }
        p.m.cpu.mode_changed();
        p.set_pte(PAGE | P | W | U);
        p
    }

    fn pte_at(&self) -> u64 {
        match self.kind {
            Kind::Bits32 => ROOT + 0x1000 + VIRT / 4096 * 4,
            _ => ROOT + 0x4000 + (VIRT / 4096 & 511) * 8,
        }
    }

    fn pde_at(&self) -> u64 {
        match self.kind {
            Kind::Bits32 => ROOT,
            Kind::Pae => ROOT + 0x1000 + 8,
            Kind::Long => ROOT + 0x2000 + 8,
        }
    }

    fn set(&mut self, at: u64, v: u64) {
        if self.kind == Kind::Bits32 {
            self.m.write32(at, v as u32)
        } else {
            self.m.write64(at, v)
        }
        self.m.cpu.flush_tlb(false);
    }

    fn get(&self, at: u64) -> u64 {
        if self.kind == Kind::Bits32 { self.m.read32(at).into() } else { self.m.read64(at) }
    }

    fn set_pte(&mut self, v: u64) {
        let at = self.pte_at();
        self.set(at, v);
    }

    fn pte(&self) -> u64 {
        self.get(self.pte_at())
    }

    /// Translates [`VIRT`]; the error code if it faults.
    fn walk(&mut self, access: Want, user: bool) -> Result<u64, u32> {
        let done = self.m.cpu.translate(VIRT + 0x123, access, user);
        done.map_err(|_| match std::mem::replace(&mut self.m.cpu.why, Why::None) {
            Why::Fault(f) => {
                assert_eq!((f.vector, f.cr2), (14, VIRT + 0x123));
                f.error.unwrap()
            }
            why => panic!("{why:?}"),
        })
    }
}

#[test]
fn rights_of_both_levels_count() {
    for kind in ALL {
        let mut p = Paged::new(kind);
        assert_eq!(p.walk(Want::Write, true), Ok(PAGE + 0x123), "{kind:?}");
        p.set_pte(PAGE | P | U);
        assert_eq!(p.walk(Want::Read, true), Ok(PAGE + 0x123));
        assert_eq!(p.walk(Want::Write, true), Err(7));
        assert_eq!(p.walk(Want::Write, false), Err(3), "CR0.WP");
        p.m.cpu.cr0 &= !WP;
        assert_eq!(p.walk(Want::Write, false), Ok(PAGE + 0x123));
        assert_eq!(p.walk(Want::Write, true), Err(7), "WP is not for users");
        p.set_pte(PAGE | P | W);
        assert_eq!(p.walk(Want::Read, true), Err(5));
        p.set_pte(0);
        assert_eq!(p.walk(Want::Write, true), Err(6));
        assert_eq!(p.walk(Want::Read, false), Err(0));
        p.set_pte(PAGE | P | W | U);
        let at = p.pde_at();
        let pde = p.get(at);
        p.set(at, pde & !W);
        assert_eq!(p.walk(Want::Write, true), Err(7));
        p.set(at, pde & !U);
        assert_eq!(p.walk(Want::Read, true), Err(5));
        p.set(at, pde & !P);
        assert_eq!(p.walk(Want::Read, true), Err(4));
    }
}

#[test]
fn accessed_and_dirty_bits_are_set_by_what_succeeds() {
    for kind in ALL {
        let mut p = Paged::new(kind);
        assert_eq!(p.walk(Want::Read, true), Ok(PAGE + 0x123));
        assert_eq!(p.pte(), PAGE | P | W | U | A, "{kind:?}");
        assert_eq!(p.get(p.pde_at()) & (A | D), A);
        p.m.cpu.store::<u32>(VIRT, 7).unwrap();
        assert_eq!(p.pte(), PAGE | P | W | U | A | D);
        p.set_pte(PAGE | P | U);
        assert_eq!(p.walk(Want::Write, true), Err(7));
        assert_eq!(p.pte(), PAGE | P | U, "a fault leaves no mark");
    }
}

#[test]
fn a_page_that_was_only_read_becomes_dirty_by_the_first_write() {
    for kind in ALL {
        let mut p = Paged::new(kind);
        assert_eq!(p.m.cpu.load::<u32>(VIRT), Ok(0));
        assert_eq!(p.pte() & D, 0, "{kind:?}");
        p.m.cpu.store::<u32>(VIRT + 4, 1).unwrap();
        assert_eq!(p.pte() & D, D);
        // A read-modify-write counts as a write from the start.
        p.set_pte(PAGE | P | W | U);
        assert_eq!(p.m.cpu.load_rmw::<u32>(VIRT + 4), Ok(1));
        assert_eq!(p.pte() & D, D);
        p.set_pte(PAGE | P | U);
        p.m.cpu.load_rmw::<u32>(VIRT + 4).unwrap_err();
        assert!(matches!(p.m.cpu.why, Why::Fault(f) if f.error == Some(3)));
    }
}

#[test]
fn reserved_bits_fault() {
    for kind in [Kind::Pae, Kind::Long] {
        let mut p = Paged::new(kind);
        p.set_pte(PAGE | P | W | U | 1 << 45);
        assert_eq!(p.walk(Want::Read, true), Err(0xd), "{kind:?}: beyond the physical addresses");
        p.set_pte(PAGE | P | W | U | 1 << 55);
        let want = if kind == Kind::Pae { Err(9) } else { Ok(PAGE + 0x123) };
        assert_eq!(p.walk(Want::Read, false), want, "bits 52 to 62 are free in long mode only");
        p.set_pte(PAGE | P | W | U | NX);
        p.m.cpu.msr.efer &= !0x800;
        assert_eq!(p.walk(Want::Write, false), Err(0xb), "NX without EFER.NXE");
    }
    let mut p = Paged::new(Kind::Long);
    p.set(ROOT, ROOT + 0x1000 | P | W | U | PS);
    assert_eq!(p.walk(Want::Read, false), Err(9), "PS in the PML4");
    let mut p = Paged::new(Kind::Long);
    p.set(p.pde_at(), PAGE | P | W | U | PS | 1 << 13);
    assert_eq!(p.walk(Want::Read, false), Err(9), "a 2 MiB page has to be aligned");
    let mut p = Paged::new(Kind::Bits32);
    p.m.cpu.cr4 |= PSE;
    p.set(ROOT, P | W | U | PS | 1 << 21);
    assert_eq!(p.walk(Want::Read, false), Err(9), "bit 21 is above 40 physical bits");
}

#[test]
fn large_pages_of_all_sizes() {
    for (kind, shift) in [(Kind::Bits32, 22), (Kind::Pae, 21), (Kind::Long, 21), (Kind::Long, 30)] {
        let mut p = Paged::new(kind);
        p.m.cpu.cr4 |= PSE;
        let at = if shift == 30 { ROOT + 0x1000 } else { p.pde_at() };
        // The page at 0 for 4 MiB and 1 GiB, at 2 MiB for 2 MiB: the identity.
        let base = VIRT >> shift << shift;
        p.set(at, base | P | W | U | PS);
        assert_eq!(p.walk(Want::Write, true), Ok(VIRT + 0x123), "{kind:?} {shift}");
        assert_eq!(p.get(at) & (A | D), A | D);
    }
    let mut p = Paged::new(Kind::Bits32);
    p.set(ROOT, P | W | U | PS | 1 << 13);
    // Without CR4.PSE it is a page table, at address 2000.
    assert_eq!(p.walk(Want::Read, true), Err(4));
    p.m.cpu.cr4 |= PSE;
    p.m.cpu.flush_tlb(false);
    assert_eq!(p.walk(Want::Read, true), Ok(1 << 32 | VIRT + 0x123), "PSE-36");
    // 1 GiB pages where there are none.
    let mut m = Model::default();
    m.features = m.features.without(&[Feature::Pdpe1gb]);
    let mut p = Paged::new(Kind::Long);
    p.m.cpu.model = Arc::new(m);
    p.set(ROOT + 0x1000, P | W | U | PS);
    assert_eq!(p.walk(Want::Read, false), Err(9));
}

#[test]
fn instruction_fetches_obey_nx_and_smep() {
    for kind in [Kind::Pae, Kind::Long] {
        let mut p = Paged::new(kind);
        p.set_pte(PAGE | P | W | U | NX);
        assert_eq!(p.walk(Want::Fetch, true), Err(0x15), "{kind:?}");
        assert_eq!(p.walk(Want::Read, true), Ok(PAGE + 0x123));
        p.set_pte(PAGE | P | W | U);
        assert_eq!(p.walk(Want::Fetch, false), Ok(PAGE + 0x123));
        p.m.cpu.cr4 |= SMEP;
        assert_eq!(p.walk(Want::Fetch, false), Err(0x11));
        assert_eq!(p.walk(Want::Fetch, true), Ok(PAGE + 0x123));
    }
    let mut p = Paged::new(Kind::Bits32);
    p.set_pte(0);
    assert_eq!(p.walk(Want::Fetch, true), Err(4), "no I bit without NX or SMEP");
    p.m.cpu.cr4 |= SMEP;
    assert_eq!(p.walk(Want::Fetch, true), Err(0x14));
}

#[test]
fn smap_closes_user_pages_until_ac_opens_them() {
    for kind in ALL {
        let mut p = Paged::new(kind);
        // The code runs at level 0 in a supervisor page.
        let pt = if kind == Kind::Bits32 { ROOT + 0x1000 + 4 * 16 } else { ROOT + 0x3000 + 8 * 16 };
        p.set(pt, CODE | P | W);
        p.m.write32(PAGE, 0x1234);
        p.m.cpu.cr4 |= SMAP;
        // The handlers, the IDT and the stack would be closed, too.
        for page in [1, 2, 3, 8, 0x20] {
            let at = if kind == Kind::Bits32 { ROOT + 0x1000 + 4 * page } else { ROOT + 0x3000 + 8 * page };
            p.set(at, page << 12 | P | W);
        }
        if kind == Kind::Long {
            // Compatibility mode is enough here; its interrupts need gates of 16 bytes.
            long::interrupt_gates(&mut p.m);
            p.set(ROOT + 0x3000, P | W);
        }
        p.m.cpu.mode_changed();
        p.m.code(32, |a| {
            a.stac().unwrap();
            a.mov(eax, dword_ptr(VIRT)).unwrap();
            a.clac().unwrap();
            a.mov(ebx, dword_ptr(VIRT)).unwrap();
        });
        assert_eq!(p.m.vector(), 14, "{kind:?}");
        assert_eq!((p.m.gpr(RAX), p.m.gpr(RBX)), (0x1234, 0));
        assert_eq!((p.m.cpu.cr2, p.m.read32(p.m.gpr(RSP)) & 0x1f), (VIRT, 1));
        // Users are not concerned, and descriptor tables in user pages are closed whatever AC says.
        p.m.cpu.set_rflags(AC, AC);
        assert_eq!(p.m.cpu.sys_load::<u32>(VIRT), Err(crate::insn::Stop));
    }
}

#[test]
fn stac_needs_level_0_and_the_feature() {
    let mut m = Machine::protected();
    m.level(3);
    m.code(32, |a| a.stac().unwrap());
    assert_eq!(m.vector(), 6);
    let model = Model { features: Model::default().features.without(&[Feature::Smap]), ..Model::default() };
    let mut m = Machine::protected_with(model);
    m.code(32, |a| a.clac().unwrap());
    assert_eq!(m.vector(), 6);
}

#[test]
fn pdptes_are_registers() {
    let mut p = Paged::new(Kind::Pae);
    // Reserved bits: the write of CR3 is #GP, and changes nothing.
    p.m.write64(ROOT + 0x8000, ROOT + 0x1000 | P | W);
    p.m.code(32, |a| {
        a.mov(eax, (ROOT + 0x8000) as u32).unwrap();
        a.mov(cr3, eax).unwrap();
    });
    assert_eq!(p.m.faults32(), (13, 0));
    assert_eq!(p.m.cpu.cr3, ROOT);
    // An edit of the table shows only when CR3 is written.
    let mut p = Paged::new(Kind::Pae);
    p.m.write64(ROOT, 0);
    p.m.cpu.flush_tlb(false);
    assert_eq!(p.walk(Want::Read, false), Ok(PAGE + 0x123));
    p.m.cpu.load_pdptes(ROOT);
    p.m.cpu.flush_tlb(false);
    assert_eq!(p.walk(Want::Read, false), Err(0));
}

#[test]
fn invlpg_and_cr3_end_stale_translations_and_global_ones_survive_cr3() {
    for kind in ALL {
        for global in [false, true] {
            let mut p = Paged::new(kind);
            p.m.cpu.cr4 |= PGE;
            let bits = P | W | U | if global { G } else { 0 };
            p.set_pte(PAGE | bits);
            p.m.write32(PAGE, 1);
            p.m.write32(PAGE + 0x1000, 2);
            assert_eq!(p.m.cpu.load::<u32>(VIRT), Ok(1));
            let at = p.pte_at();
            let v = PAGE + 0x1000 | bits;
            if kind == Kind::Bits32 {
                p.m.write32(at, v as u32)
            } else {
                p.m.write64(at, v)
            }
            p.m.code(32, |a| {
                a.mov(eax, cr3).unwrap();
                a.mov(cr3, eax).unwrap();
                a.invlpg(byte_ptr(VIRT + 0x800)).unwrap();
            });
            p.m.step();
            p.m.step();
            let want = if global { 1 } else { 2 };
            assert_eq!(p.m.cpu.load::<u32>(VIRT), Ok(want), "{kind:?} {global}");
            p.m.step();
            assert_eq!(p.m.cpu.load::<u32>(VIRT), Ok(2));
        }
    }
}

#[test]
fn a_write_of_cr4_pge_drops_global_translations() {
    let mut p = Paged::new(Kind::Bits32);
    p.m.cpu.cr4 |= PGE;
    p.set_pte(PAGE | P | W | U | G);
    p.m.write32(PAGE + 0x1000, 2);
    assert_eq!(p.m.cpu.load::<u32>(VIRT), Ok(0));
    p.m.write32(p.pte_at(), (PAGE + 0x1000 | P | W | U | G) as u32);
    p.m.code(32, |a| {
        a.mov(eax, cr4).unwrap();
        a.and(eax, !(PGE as u32)).unwrap();
        a.mov(cr4, eax).unwrap();
    });
    for _ in 0..3 {
        p.m.step();
    }
    assert_eq!(p.m.cpu.load::<u32>(VIRT), Ok(2));
}

#[test]
fn invlpg_drops_all_pieces_of_a_large_page() {
    let mut p = Paged::new(Kind::Bits32);
    p.m.cpu.cr4 |= PSE;
    p.set(ROOT, P | W | U | PS);
    for n in 0..1024 {
        p.m.cpu.load::<u32>(n << 12).unwrap();
        p.m.cpu.code_page(n << 12).unwrap();
    }
    // The same page as small ones, all of which lead to the first.
    for n in 0..1024 {
        p.m.write32(ROOT + 0x1000 + 4 * n, (P | W | U) as u32);
    }
    p.m.write32(0, 0x77);
    p.m.write32(ROOT, (ROOT + 0x1000 | P | W | U) as u32);
    p.m.cpu.invlpg(0x12_3456);
    for n in 1..1024 {
        assert_eq!(p.m.cpu.load::<u32>(n << 12), Ok(0x77), "{n:x}");
        assert_eq!(p.m.cpu.code_page(n << 12), Ok(Some(RamAddr(0))), "{n:x}");
    }
}

#[test]
fn a_page_fault_reports_address_and_cause() {
    let mut p = Paged::new(Kind::Bits32);
    p.set_pte(0);
    p.m.level(3);
    p.m.code(32, |a| a.add(dword_ptr(VIRT + 0x10), 1).unwrap());
    assert_eq!(p.m.faults32(), (14, 6), "a read-modify-write of an absent page is a write");
    assert_eq!(p.m.cpu.cr2, VIRT + 0x10);
    assert_eq!(p.m.stack32::<2>()[1], CODE as u32);
}

#[test]
fn a_page_fault_in_the_delivery_of_one_is_a_double_fault() {
    let mut p = Paged::new(Kind::Bits32);
    p.set_pte(0);
    // The handler of #PF lies in an absent page of the IDT: a second page fault.
    p.m.cpu.idtr.base = VIRT - 8 * 14;
    p.m.cpu.idtr.limit = 8 * 15 - 1;
    let table = VIRT - 0x1000;
    p.m.write64(table + 0x1000 - 8 * 14 + 8 * 8, gate(sel::CODE0, HANDLERS as u32 + 128, 0x8e00));
    p.m.code(32, |a| a.mov(eax, dword_ptr(VIRT + 0x500)).unwrap());
    assert_eq!(p.m.faults32(), (8, 0));
    assert_eq!(p.m.cpu.cr2, VIRT, "the second fault's address");
}

#[test]
fn cr0_and_cr4_refuse_impossible_combinations() {
    let refused = |setup: fn(&mut Machine), code: fn(&mut CodeAssembler)| {
        let mut m = Machine::protected();
        setup(&mut m);
        m.code(32, code);
        m.faults32() == (13, 0)
    };
    assert!(refused(
        |_| {},
        |a| {
            a.mov(eax, 0x8000_0000u32).unwrap();
            a.mov(cr0, eax).unwrap();
        }
    ));
    assert!(refused(
        |_| {},
        |a| {
            a.mov(eax, 0x2000_0001).unwrap();
            a.mov(cr0, eax).unwrap();
        }
    ));
    assert!(refused(
        |_| {},
        |a| {
            a.mov(eax, 1 << 15).unwrap();
            a.mov(cr4, eax).unwrap();
        }
    ));
    // EFER.LME without PAE.
    assert!(refused(
        |m| m.cpu.msr.efer = 0x100,
        |a| {
            a.mov(eax, 0x8000_0001u32).unwrap();
            a.mov(cr0, eax).unwrap();
        }
    ));
    // A 16-bit TSS.
    assert!(refused(
        |m| {
            m.cpu.msr.efer = 0x100;
            m.cpu.cr4 = PAE;
            m.cpu.tr.access = 0x83;
        },
        |a| {
            a.mov(eax, 0x8000_0001u32).unwrap();
            a.mov(cr0, eax).unwrap();
        }
    ));
    for bytes in [[0x0f, 0x20, 0xc8], [0x0f, 0x22, 0xe8], [0x0f, 0x20, 0xf0]] {
        let mut m = Machine::protected();
        m.code(32, |a| a.db(&bytes).unwrap());
        assert_eq!(m.vector(), 6, "CR1, CR5 and CR6 do not exist");
    }
    let mut m = Machine::protected();
    m.level(3);
    m.code(32, |a| a.mov(eax, cr0).unwrap());
    assert_eq!(m.faults32(), (13, 0));
}
