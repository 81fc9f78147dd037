//! A boot disk whose program calls the BIOS from a list: in real mode, in virtual-8086 mode under paging that is not
//! the identity, and the same with a monitor that traps the BIOS's port and repeats the OUT; then as a kernel's
//! emulator of real mode calls it, which has the machine's low memory, but not at its place. It ends in protected mode,
//! at the 32-bit entries.
//!
//! Each call's results come out at COM1 as a line: `R`, the mode, the number of the call, EAX to EDI, flags, and a sum
//! over the buffer at [`BUFFER`].

use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// A call: its interrupt and registers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Call {
    pub int: u8,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
    pub esi: u32,
    pub edi: u32,
    pub es: u16,
    pub ds: u16,
    /// Left out in real mode, where it would not come back.
    pub not_real: bool,
}

/// Segments of the buffer that is summed and of the data that calls point to; both move in virtual-8086 mode, as the
/// stack does.
pub const BUFFER: u16 = 0x3000;
pub const DATA: u16 = 0x3800;
/// Bytes that are summed.
pub const SUMMED: usize = 0x800;

/// Where things lie: code for real mode, the list, the data, the monitor, its tables. All is loaded from sector 1 on.
const LOADED: u32 = 0x8000;
const LIST: u32 = 0x8800;
const DATA_IMAGE: u32 = 0x9800;
const MONITOR: u32 = 0xa000;
const DIRECTORY: u32 = 0xb000;
const PAGES: u32 = 0xc000;
const GDT: u32 = 0xd000;
/// The table that INT 15h/89h takes.
const SWITCH: u32 = 0xd080;
const IDT: u32 = 0xd100;
const TSS: u32 = 0xe000;
const END: u32 = 0x1_0000;
/// Variables: the call, its results, the mode's letter.
const CURRENT: u32 = 0x9c00;
const NUMBER: u32 = 0x9c04;
const MODE: u32 = 0x9c08;
const RESULT: u32 = 0x9c10;
const TRAPPED: u32 = 0x9c40;
const POINTER: u32 = 0x9c44;
const MASKS: u32 = 0x9c4c;
const STACK0: u32 = 0x9ff0;

const CODE32: u32 = 0x08;
const DATA32: u32 = 0x10;
const TASK: u32 = 0x18;
/// The BIOS's segments, as APM wants them.
const BIOS32: u32 = 0x20;
const BIOS16: u32 = 0x28;
const LOW16: u32 = 0x30;

/// The image of a disk of `len` bytes; its sectors from 100 on begin with their numbers.
pub fn disk(calls: &[Call], data: &[u8], len: usize) -> Vec<u8> {
    build(calls, data, len).expect("the guest's code")
}

fn build(calls: &[Call], data: &[u8], len: usize) -> Result<Vec<u8>, IcedError> {
    let mut memory = vec![0; (END - LOADED) as usize];
    let mut put = |at: u32, bytes: &[u8]| {
        let at = (at - LOADED) as usize;
        memory[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(LOADED, &real_mode()?);
    put(MONITOR, &monitor()?);
    for (n, c) in (0..).zip(calls) {
        let mut entry = vec![c.int, c.not_real.into(), 0, 0];
        [c.eax, c.ebx, c.ecx, c.edx, c.esi, c.edi].iter().for_each(|v| entry.extend(v.to_le_bytes()));
        [c.es, c.ds].iter().for_each(|v| entry.extend(v.to_le_bytes()));
        put(LIST + 32 * n, &entry);
    }
    assert!(LIST + 32 * calls.len() as u32 + 1 < DATA_IMAGE && data.len() <= 0x200);
    put(DATA_IMAGE, data);
    put(DIRECTORY, &(PAGES | 7).to_le_bytes());
    for page in 0..1024u32 {
        // Segments 1000 to 7FFF lie 2 MiB higher. The monitor's own addresses stay.
        let moved = if (0x10..0x80).contains(&page) { 0x200 } else { 0 };
        put(PAGES + 4 * page, &((page + moved) << 12 | 7).to_le_bytes());
    }
    let descriptor = |base: u32, limit: u32, access: u32, flags: u32| {
        let low = limit & 0xffff | base << 16;
        let high = base >> 16 & 0xff | access << 8 | limit & 0xf_0000 | flags << 20 | base & 0xff00_0000;
        u64::from(low) | u64::from(high) << 32
    };
    let gdt = [
        0,
        descriptor(0, 0xf_ffff, 0x9a, 0xc),
        descriptor(0, 0xf_ffff, 0x92, 0xc),
        descriptor(TSS, 0x68 + 0x200, 0x89, 0),
        descriptor(0xf_0000, 0xffff, 0x9a, 4),
        descriptor(0xf_0000, 0xffff, 0x9a, 0),
        descriptor(0, 0xffff, 0x9a, 0),
    ];
    gdt.iter().zip(0..).for_each(|(d, n)| put(GDT + 8 * n, &d.to_le_bytes()));
    // What INT 15h/89h wants: itself, the interrupts, DS, ES, SS, CS, and room for the BIOS's own.
    let switch = [
        0,
        descriptor(SWITCH, 0x3f, 0x92, 0),
        descriptor(IDT, 0x3ff, 0x92, 0),
        descriptor(0, 0xf_ffff, 0x92, 0xc),
        descriptor(0, 0xf_ffff, 0x92, 0xc),
        descriptor(0x2_0000, 0xffff, 0x92, 0),
        descriptor(0, 0xf_ffff, 0x9a, 0xc),
        0,
    ];
    switch.iter().zip(0..).for_each(|(d, n)| put(SWITCH + 8 * n, &d.to_le_bytes()));
    for vector in 0..0x80u32 {
        // Each vector has 16 bytes of code of its own.
        let handler = MONITOR + 0x800 + 16 * vector;
        let gate = u64::from(handler & 0xffff) | u64::from(CODE32) << 16 | 0x8e00 << 32;
        put(IDT + 8 * vector, &gate.to_le_bytes());
        let mut a = CodeAssembler::new(32)?;
        if vector != 13 {
            a.push(0)?;
        }
        a.push(vector as i32)?;
        a.jmp(u64::from(MONITOR))?;
        put(handler, &a.assemble(handler.into())?);
    }
    put(TSS + 4, &STACK0.to_le_bytes());
    put(TSS + 8, &DATA32.to_le_bytes());
    put(TSS + 0x66, &0x68u16.to_le_bytes());
    put(TSS + 0x68 + 0x200, &[0xff]);

    let mut image = vec![0; len];
    for (n, sector) in image.chunks_mut(512).enumerate().skip(100) {
        sector[..4].copy_from_slice(&(n as u32).to_le_bytes());
    }
    image[512..512 + memory.len()].copy_from_slice(&memory);
    let first = loader()?;
    image[..first.len()].copy_from_slice(&first);
    image[510..512].copy_from_slice(&[0x55, 0xaa]);
    Ok(image)
}

/// The boot sector: loads the rest by a packet.
fn loader() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(16)?;
    a.xor(ax, ax)?;
    a.mov(ds, ax)?;
    a.mov(si, 0x7d00u32)?;
    a.mov(ah, 0x42u32)?;
    a.int(0x13u32)?;
    a.db(&[0xea, LOADED as u8, (LOADED >> 8) as u8, 0, 0])?;
    let mut code = a.assemble(0x7c00)?;
    code.resize(0x100, 0);
    code.extend([
        16,
        0,
        ((END - LOADED) / 512) as u8,
        0,
        LOADED as u8,
        (LOADED >> 8) as u8,
        0,
        0,
        1,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    ]);
    Ok(code)
}

/// The digits of EBX by calls of `put`, which takes AL; CX and EBX are used up.
fn digits(a: &mut CodeAssembler, put: CodeLabel) -> Result<(), IcedError> {
    let (mut digit, mut below) = (a.create_label(), a.create_label());
    a.mov(ecx, 8u32)?;
    a.set_label(&mut digit)?;
    a.rol(ebx, 4u32)?;
    a.mov(al, bl)?;
    a.and(al, 15)?;
    a.add(al, u32::from(b'0'))?;
    a.cmp(al, u32::from(b'9'))?;
    a.jbe(below)?;
    a.add(al, 39)?;
    a.set_label(&mut below)?;
    a.call(put)?;
    a.loop_(digit)
}

/// Starts the list in real mode, then the monitor. The list's loop is at a fixed place behind the start, where
/// virtual-8086 mode begins.
const LOOP: u32 = LOADED + 0x100;

fn real_mode() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(16)?;
    a.mov(ax, 0x2000u32)?;
    a.mov(ss, ax)?;
    a.mov(sp, 0xfff0u32)?;
    a.mov(byte_ptr(MODE), u32::from(b'r'))?;
    // FIFO on, 8N1.
    a.mov(dx, 0x3fbu32)?;
    a.mov(al, 3u32)?;
    a.out(dx, al)?;
    a.push(cs)?;
    a.call(u64::from(LOOP))?;
    // Into protected mode by the BIOS, which puts the interrupts where they were, and masks them.
    for (port, at) in [(0x21u32, MASKS), (0xa1, MASKS + 1)] {
        a.in_(al, port)?;
        a.mov(byte_ptr(at), al)?;
    }
    a.xor(ax, ax)?;
    a.mov(es, ax)?;
    a.mov(si, SWITCH)?;
    a.mov(bx, 0x0870u32)?;
    a.mov(ax, 0x8900u32)?;
    a.int(0x15u32)?;
    // Code of 32 bits from here on: to the monitor's own segments.
    a.db(&[0xea])?;
    a.dd(&[MONITOR + 0x400])?;
    a.dw(&[0x30])?;
    let mut code = a.assemble(LOADED.into())?;
    assert!(code.len() < 0x100);
    code.resize(0x100, 0x90);

    let mut a = CodeAssembler::new(16)?;
    let (mut next, mut done, mut sum, mut patch) =
        (a.create_label(), a.create_label(), a.create_label(), a.create_label());
    let (mut hex, mut wait, mut put, mut called) =
        (a.create_label(), a.create_label(), a.create_label(), a.create_label());
    a.xor(ax, ax)?;
    a.mov(ds, ax)?;
    a.cld()?;
    a.mov(ax, u32::from(DATA))?;
    a.mov(es, ax)?;
    a.mov(si, DATA_IMAGE)?;
    a.xor(di, di)?;
    a.mov(cx, 0x200u32)?;
    a.rep().movsb()?;
    a.mov(word_ptr(CURRENT), LIST)?;
    a.mov(dword_ptr(NUMBER), 0u32)?;
    a.set_label(&mut next)?;
    a.mov(bx, word_ptr(CURRENT))?;
    a.cmp(byte_ptr(bx), 0)?;
    a.je(done)?;
    // An empty buffer for each.
    a.mov(ax, u32::from(BUFFER))?;
    a.mov(es, ax)?;
    a.xor(di, di)?;
    a.xor(ax, ax)?;
    a.mov(cx, SUMMED as u32)?;
    a.rep().stosb()?;
    a.mov(al, byte_ptr(bx))?;
    a.cmp(byte_ptr(bx + 1), 0)?;
    a.je(called)?;
    a.cmp(byte_ptr(MODE), u32::from(b'r'))?;
    a.jne(called)?;
    // INT 12h in its place.
    a.mov(al, 0x12u32)?;
    a.set_label(&mut called)?;
    // The number of the INT below, in the byte behind its opcode.
    a.mov(byte_ptr(LOOP + PATCH), al)?;
    a.mov(ecx, dword_ptr(bx + 12))?;
    a.mov(edx, dword_ptr(bx + 16))?;
    a.mov(esi, dword_ptr(bx + 20))?;
    a.mov(edi, dword_ptr(bx + 24))?;
    a.mov(es, word_ptr(bx + 28))?;
    a.mov(eax, dword_ptr(bx + 4))?;
    a.push(word_ptr(bx + 30))?;
    a.mov(ebx, dword_ptr(bx + 8))?;
    a.pop(ds)?;
    a.sti()?;
    a.set_label(&mut patch)?;
    a.int(0x10u32)?;
    a.pushf()?;
    a.push(0)?;
    a.pop(ds)?;
    for (n, register) in [eax, ebx, ecx, edx, esi, edi].into_iter().enumerate() {
        a.mov(dword_ptr(RESULT + 4 * n as u32), register)?;
    }
    a.pop(ax)?;
    // CF and ZF are results, the others the program's.
    a.and(ax, 0x41)?;
    a.movzx(eax, ax)?;
    a.mov(dword_ptr(RESULT + 24), eax)?;
    a.mov(ax, u32::from(BUFFER))?;
    a.mov(es, ax)?;
    a.xor(di, di)?;
    a.xor(edx, edx)?;
    a.mov(cx, SUMMED as u32)?;
    a.set_label(&mut sum)?;
    a.rol(edx, 5u32)?;
    a.movzx(eax, byte_ptr(di).es())?;
    a.add(edx, eax)?;
    a.inc(di)?;
    a.loop_(sum)?;
    a.mov(dword_ptr(RESULT + 28), edx)?;
    a.mov(al, u32::from(b'R'))?;
    a.call(put)?;
    a.mov(al, byte_ptr(MODE))?;
    a.call(put)?;
    a.mov(ebx, dword_ptr(NUMBER))?;
    a.call(hex)?;
    for n in 0..8u32 {
        a.mov(ebx, dword_ptr(RESULT + 4 * n))?;
        a.call(hex)?;
    }
    a.mov(al, u32::from(b'\n'))?;
    a.call(put)?;
    a.inc(dword_ptr(NUMBER))?;
    a.add(word_ptr(CURRENT), 32)?;
    a.jmp(next)?;
    a.set_label(&mut done)?;
    // In virtual-8086 mode: to the monitor.
    a.cmp(byte_ptr(MODE), u32::from(b'r'))?;
    let mut leave = a.create_label();
    a.jne(leave)?;
    a.retf()?;
    a.set_label(&mut leave)?;
    a.int(0xfeu32)?;
    a.set_label(&mut hex)?;
    a.mov(al, u32::from(b' '))?;
    a.call(put)?;
    digits(&mut a, put)?;
    a.ret()?;
    a.set_label(&mut put)?;
    a.push(dx)?;
    a.push(ax)?;
    a.mov(dx, 0x3fdu32)?;
    a.set_label(&mut wait)?;
    a.in_(al, dx)?;
    a.test(al, 0x20)?;
    a.je(wait)?;
    a.pop(ax)?;
    a.mov(dx, 0x3f8u32)?;
    a.out(dx, al)?;
    a.pop(dx)?;
    a.ret()?;
    let out = a.assemble_options(LOOP.into(), iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
    assert_eq!(out.label_ip(&patch)? as u32 + 1, LOOP + PATCH, "the INT is where it is patched");
    code.extend(out.inner.code_buffer);
    assert!(code.len() as u32 <= LIST - LOADED);
    Ok(code)
}

/// Where the INT's number is, from [`LOOP`] on.
const PATCH: u32 = 0x71;

/// The monitor: at its beginning the handler of all vectors, at 400 the start.
fn monitor() -> Result<Vec<u8>, IcedError> {
    /// Offsets in the handler's frame.
    const VECTOR: i32 = 32;
    const EIP: i32 = 40;
    const CS: i32 = 44;
    const EFLAGS: i32 = 48;
    const ESP: i32 = 52;
    const SS: i32 = 56;
    let mut a = CodeAssembler::new(32)?;
    let (mut reflect, mut exit, mut bad, mut v86, mut last) =
        (a.create_label(), a.create_label(), a.create_label(), a.create_label(), a.create_label());
    a.pushad()?;
    a.mov(eax, DATA32)?;
    a.mov(ds, eax)?;
    a.mov(es, eax)?;
    a.mov(ebp, esp)?;
    a.mov(eax, dword_ptr(ebp + VECTOR))?;
    a.cmp(eax, 13)?;
    a.jne(reflect)?;
    a.movzx(esi, word_ptr(ebp + CS))?;
    a.shl(esi, 4u32)?;
    a.add(esi, dword_ptr(ebp + EIP))?;
    // The task's stack in EDI.
    a.movzx(edi, word_ptr(ebp + SS))?;
    a.shl(edi, 4u32)?;
    a.movzx(ecx, word_ptr(ebp + ESP))?;
    a.add(edi, ecx)?;
    a.mov(al, byte_ptr(esi))?;
    let opcode = |a: &mut CodeAssembler,
                  byte: u8,
                  body: &dyn Fn(&mut CodeAssembler) -> Result<(), IcedError>|
     -> Result<(), IcedError> {
        let mut other = a.create_label();
        a.cmp(al, u32::from(byte))?;
        a.jne(other)?;
        body(a)?;
        a.set_label(&mut other)
    };
    opcode(&mut a, 0xcd, &|a| {
        a.add(dword_ptr(ebp + EIP), 2)?;
        a.movzx(eax, byte_ptr(esi + 1))?;
        a.cmp(al, 0xfeu32)?;
        a.je(last)?;
        a.jmp(reflect)
    })?;
    opcode(&mut a, 0xfa, &|a| {
        a.and(dword_ptr(ebp + EFLAGS), !0x200)?;
        a.inc(dword_ptr(ebp + EIP))?;
        a.jmp(exit)
    })?;
    opcode(&mut a, 0xfb, &|a| {
        a.or(dword_ptr(ebp + EFLAGS), 0x200)?;
        a.inc(dword_ptr(ebp + EIP))?;
        a.jmp(exit)
    })?;
    // HLT passes at once.
    opcode(&mut a, 0xf4, &|a| {
        a.inc(dword_ptr(ebp + EIP))?;
        a.jmp(exit)
    })?;
    opcode(&mut a, 0x9c, &|a| {
        a.sub(word_ptr(ebp + ESP), 2)?;
        a.mov(ax, word_ptr(ebp + EFLAGS))?;
        a.mov(word_ptr(edi - 2), ax)?;
        a.inc(dword_ptr(ebp + EIP))?;
        a.jmp(exit)
    })?;
    opcode(&mut a, 0xcf, &|a| {
        a.movzx(eax, word_ptr(edi))?;
        a.mov(dword_ptr(ebp + EIP), eax)?;
        a.movzx(eax, word_ptr(edi + 2))?;
        a.mov(dword_ptr(ebp + CS), eax)?;
        a.mov(ax, word_ptr(edi + 4))?;
        a.and(ax, 0x0fff)?;
        a.mov(word_ptr(ebp + EFLAGS), ax)?;
        a.add(word_ptr(ebp + ESP), 6)?;
        a.jmp(exit)
    })?;
    // OUT to a port that is trapped: repeated from here, with registers that are the monitor's.
    opcode(&mut a, 0xe6, &|a| {
        a.inc(dword_ptr(TRAPPED))?;
        a.movzx(edx, byte_ptr(esi + 1))?;
        a.mov(al, byte_ptr(ebp + 28))?;
        a.add(dword_ptr(ebp + EIP), 2)?;
        a.xor(ebx, ebx)?;
        a.xor(ecx, ecx)?;
        // As an emulator: where the BIOS keeps its data there is nothing in these tables.
        let (mut plain, mut out) = (a.create_label(), a.create_label());
        a.cmp(byte_ptr(MODE), u32::from(b'e'))?;
        a.jne(plain)?;
        a.mov(dword_ptr(PAGES + 4 * 0x9f), 0)?;
        a.mov(esi, cr3)?;
        a.mov(cr3, esi)?;
        a.out(dx, al)?;
        a.mov(dword_ptr(PAGES + 4 * 0x9f), 0x9_f007)?;
        a.mov(cr3, esi)?;
        a.jmp(out)?;
        a.set_label(&mut plain)?;
        a.out(dx, al)?;
        a.set_label(&mut out)?;
        a.jmp(exit)
    })?;
    a.jmp(bad)?;
    // To the handler of the vector in EAX, as the processor does in real mode.
    a.set_label(&mut reflect)?;
    a.sub(word_ptr(ebp + ESP), 6)?;
    a.movzx(edi, word_ptr(ebp + SS))?;
    a.shl(edi, 4u32)?;
    a.movzx(ecx, word_ptr(ebp + ESP))?;
    a.add(edi, ecx)?;
    for (from, to) in [(EIP, 0), (CS, 2), (EFLAGS, 4)] {
        a.mov(bx, word_ptr(ebp + from))?;
        a.mov(word_ptr(edi + to), bx)?;
    }
    a.and(dword_ptr(ebp + EFLAGS), !0x300)?;
    a.mov(ebx, dword_ptr(eax * 4))?;
    a.movzx(ecx, bx)?;
    a.mov(dword_ptr(ebp + EIP), ecx)?;
    a.shr(ebx, 16u32)?;
    a.mov(dword_ptr(ebp + CS), ebx)?;
    a.set_label(&mut exit)?;
    a.popad()?;
    a.add(esp, 8)?;
    a.iretd()?;
    // The task is at its end.
    let (mut over, mut print, mut send, mut wait) =
        (a.create_label(), a.create_label(), a.create_label(), a.create_label());
    a.set_label(&mut last)?;
    a.cmp(byte_ptr(MODE), u32::from(b'e'))?;
    a.je(over)?;
    let (mut emulated, mut page) = (a.create_label(), a.create_label());
    a.cmp(byte_ptr(MODE), u32::from(b't'))?;
    a.je(emulated)?;
    // Once more, with the BIOS's port trapped.
    a.mov(byte_ptr(MODE), u32::from(b't'))?;
    a.mov(byte_ptr(TSS + 0x68 + 0xb8 / 8), 1u32)?;
    a.jmp(v86)?;
    // And once more with the machine's own memory, at its place, that is not there at the OUT.
    a.set_label(&mut emulated)?;
    a.mov(byte_ptr(MODE), u32::from(b'e'))?;
    a.mov(edi, 0x10)?;
    a.set_label(&mut page)?;
    a.mov(eax, edi)?;
    a.shl(eax, 12)?;
    a.or(eax, 7)?;
    a.mov(dword_ptr(edi * 4 + PAGES), eax)?;
    a.inc(edi)?;
    a.cmp(edi, 0x80)?;
    a.jb(page)?;
    a.mov(eax, cr3)?;
    a.mov(cr3, eax)?;
    a.set_label(&mut v86)?;
    a.mov(esp, STACK0)?;
    for value in [0, 0, 0, 0, 0x2000, 0xfff0, 0x2_0202, 0, LOOP] {
        a.push(value as i32)?;
    }
    a.iretd()?;
    a.set_label(&mut over)?;
    // BIOS32: the PCI BIOS, and by it the ISA bridge's identity.
    a.mov(eax, u32::from_le_bytes(*b"$PCI"))?;
    a.xor(ebx, ebx)?;
    a.mov(edi, dword_ptr(0xf_e084))?;
    far_call(&mut a, edi)?;
    a.movzx(eax, al)?;
    a.mov(dword_ptr(RESULT), eax)?;
    a.lea(edi, dword_ptr(ebx + edx))?;
    a.mov(eax, 0xb10au32)?;
    a.mov(ebx, 8u32)?;
    a.push(edi)?;
    a.mov(esi, edi)?;
    a.xor(edi, edi)?;
    far_call(&mut a, esi)?;
    a.pop(edi)?;
    a.mov(dword_ptr(RESULT + 4), ecx)?;
    a.mov(eax, dword_ptr(TRAPPED))?;
    a.mov(dword_ptr(RESULT + 8), eax)?;
    // APM's entry for 16 bits, from a segment of 16 bits: get the power status.
    a.mov(eax, 0x530au32)?;
    a.mov(ebx, 1u32)?;
    a.db(&[0xea])?;
    a.dd(&[MONITOR + 0x700])?;
    a.dw(&[LOW16 as u16])?;
    a.set_label(&mut print)?;
    a.nop()?;
    let mut text = a.create_label();
    a.jmp(text)?;
    a.set_label(&mut send)?;
    a.push(eax)?;
    a.mov(edx, 0x3fdu32)?;
    a.set_label(&mut wait)?;
    a.in_(al, dx)?;
    a.test(al, 0x20)?;
    a.je(wait)?;
    a.pop(eax)?;
    a.mov(edx, 0x3f8u32)?;
    a.out(dx, al)?;
    a.ret()?;
    a.set_label(&mut bad)?;
    a.mov(al, u32::from(b'?'))?;
    a.call(send)?;
    a.mov(al, 0xfeu32)?;
    a.out(0x64u32, al)?;
    a.hlt()?;
    // P and the results.
    a.set_label(&mut text)?;
    a.mov(dword_ptr(RESULT + 12), ebx)?;
    a.mov(eax, cr0)?;
    a.mov(dword_ptr(RESULT + 16), eax)?;
    a.mov(al, u32::from(b'P'))?;
    a.call(send)?;
    a.mov(esi, RESULT)?;
    let mut number = a.create_label();
    a.set_label(&mut number)?;
    a.mov(al, u32::from(b' '))?;
    a.call(send)?;
    a.mov(ebx, dword_ptr(esi))?;
    digits(&mut a, send)?;
    a.add(esi, 4)?;
    a.cmp(esi, RESULT + 20)?;
    a.jb(number)?;
    a.mov(al, u32::from(b'\n'))?;
    a.call(send)?;
    // APM's entry for 32 bits: off.
    a.mov(eax, 0x5307u32)?;
    a.mov(ebx, 1u32)?;
    a.mov(ecx, 3u32)?;
    a.db(&[0x9a])?;
    a.dd(&[0x9800])?;
    a.dw(&[BIOS32 as u16])?;
    a.jmp(bad)?;

    // 400: the start, from real mode.
    let mut start = CodeAssembler::new(32)?;
    let s = &mut start;
    // As the BIOS left it: DS is all of memory.
    s.mov(word_ptr(POINTER), 0x67u32)?;
    s.mov(dword_ptr(POINTER + 2), GDT)?;
    s.lgdt(fword_ptr(POINTER))?;
    for (port, at) in [(0x21u32, MASKS), (0xa1, MASKS + 1)] {
        s.mov(al, byte_ptr(at))?;
        s.out(port, al)?;
    }
    s.mov(eax, DATA32)?;
    s.mov(ds, eax)?;
    s.mov(es, eax)?;
    s.mov(ss, eax)?;
    s.mov(esp, STACK0)?;
    s.mov(word_ptr(POINTER), 0x3ffu32)?;
    s.mov(dword_ptr(POINTER + 2), IDT)?;
    s.lidt(fword_ptr(POINTER))?;
    s.mov(eax, TASK)?;
    s.ltr(ax)?;
    s.mov(eax, DIRECTORY)?;
    s.mov(cr3, eax)?;
    s.mov(eax, cr0)?;
    s.or(eax, 0x8000_0000u32 as i32)?;
    s.mov(cr0, eax)?;
    s.mov(byte_ptr(MODE), u32::from(b'v'))?;
    let out = a.assemble_options(MONITOR.into(), iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
    // CS is still the BIOS's caller's.
    s.db(&[0xea])?;
    s.dd(&[out.label_ip(&v86)? as u32])?;
    s.dw(&[CODE32 as u16])?;
    let start = start.assemble(u64::from(MONITOR + 0x400))?;
    // 700: the 16-bit segment.
    let mut low = CodeAssembler::new(16)?;
    low.db(&[0x9a, 0x48, 0xe0, BIOS16 as u8, 0])?;
    low.db(&[0x66, 0xea])?;
    low.dd(&[out.label_ip(&print)? as u32])?;
    low.dw(&[CODE32 as u16])?;
    let low = low.assemble(u64::from(MONITOR + 0x700))?;
    let mut code = out.inner.code_buffer;
    assert!(code.len() <= 0x400, "{:x}", code.len());
    code.resize(0x400, 0);
    code.extend(start);
    code.resize(0x700, 0);
    code.extend(low);
    Ok(code)
}

/// A far call of the flat address in a register, which is pushed as an indirect operand.
fn far_call(a: &mut CodeAssembler, to: AsmRegister32) -> Result<(), IcedError> {
    a.mov(dword_ptr(POINTER), to)?;
    a.mov(word_ptr(POINTER + 4), CODE32)?;
    a.call(fword_ptr(POINTER))
}
