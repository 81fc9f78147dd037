//! A loader's entry state as processor registers.

use boot::Entry;

/// Sets what `entry` names and leaves the rest at its power-on value.
pub fn apply(regs: &mut cpu::Regs, entry: &Entry) {
    let r = &entry.registers;
    for (n, v) in [(0, r.rax), (1, r.rcx), (2, r.rdx), (3, r.rbx), (4, r.rsp), (5, r.rbp), (6, r.rsi), (7, r.rdi)] {
        regs.gpr[n] = v;
    }
    regs.rip = entry.rip;
    regs.rflags = entry.rflags;
    (regs.cr0, regs.cr3, regs.cr4) = (entry.cr0, entry.cr3, entry.cr4);
    regs.msrs.efer = entry.efer;
    regs.gdtr = cpu::Table { base: entry.gdt.base, limit: entry.gdt.limit };
    regs.idtr = cpu::Table { base: entry.idt.base, limit: entry.idt.limit };
    let segment =
        |s: &boot::Segment| cpu::Segment { selector: s.selector, base: s.base, limit: s.limit, access: s.access };
    regs.es = segment(&entry.es);
    regs.cs = segment(&entry.cs);
    regs.ss = segment(&entry.ss);
    regs.ds = segment(&entry.ds);
    regs.fs = segment(&entry.fs);
    regs.gs = segment(&entry.gs);
    regs.ldtr = segment(&entry.ldt);
    regs.tr = segment(&entry.tr);
}
