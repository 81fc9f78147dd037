//! A disk whose boot sector loads a Linux kernel as the first loaders did: sectors by INT 13h into conventional memory,
//! from there by INT 15h/87h to where they belong, and a start at the kernel's own real-mode code, which asks the BIOS
//! for memory, video modes and drives (Documentation/arch/x86/boot.rst).

use iced_x86::IcedError;
use iced_x86::code_asm::*;

const SECTOR: usize = 512;
/// Sectors that are moved at once, and where they are in between.
const CHUNK: usize = 64;
const BETWEEN: u16 = 0x1000;
/// Segment of the kernel's real-mode code, and what lies behind it there: the end of its heap and the command line.
const SETUP: u16 = 0x9000;
const HEAP_END: u16 = 0xdf00;
const COMMAND_LINE: u16 = 0xe000;
/// Where the kernel goes, and the initial RAM disk.
const KERNEL: u32 = 0x10_0000;
const INITRD: u32 = 0x400_0000;
/// In the boot sector: packets for the setup code, the command line and the chunks, and INT 15h/87h's table.
const PACKETS: u16 = 0x7d00;
const TABLE: u16 = 0x7d40;

/// The disk. Behind the boot sector lie the setup code, the command line, the kernel and the initial RAM disk.
pub fn disk(kernel: &[u8], initrd: &[u8], arguments: &str) -> Vec<u8> {
    let setup = SECTOR * (usize::from(kernel[0x1f1].max(1)) + 1);
    let mut start = kernel[..setup].to_vec();
    let mut put = |at: usize, bytes: &[u8]| start[at..at + bytes.len()].copy_from_slice(bytes);
    // A loader without a number of its own, with a heap, an initial RAM disk, and a command line.
    put(0x210, &[0xff, kernel[0x211] | 0x80]);
    put(0x218, &INITRD.to_le_bytes());
    put(0x21c, &(initrd.len() as u32).to_le_bytes());
    put(0x224, &(HEAP_END - 0x200).to_le_bytes());
    put(0x228, &(u32::from(SETUP) << 4 | u32::from(COMMAND_LINE)).to_le_bytes());
    let mut line = arguments.as_bytes().to_vec();
    line.resize(SECTOR, 0);
    let chunked = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        bytes.resize(bytes.len().next_multiple_of(CHUNK * SECTOR), 0);
        bytes
    };
    let (kernel, initrd) = (chunked(&kernel[setup..]), chunked(initrd));
    let sectors = setup / SECTOR;
    let chunks = |bytes: &[u8]| (bytes.len() / SECTOR / CHUNK) as u16;
    let mut image = boot_sector(sectors, chunks(&kernel), chunks(&initrd)).expect("the boot sector's code");
    for part in [start, line, kernel, initrd] {
        image.extend(part);
    }
    image
}

fn boot_sector(setup: usize, kernel: u16, initrd: u16) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(16)?;
    let (mut load, mut failed, mut read) = (a.create_label(), a.create_label(), a.create_label());
    a.cli()?;
    a.xor(ax, ax)?;
    a.mov(ds, ax)?;
    a.mov(es, ax)?;
    a.mov(ss, ax)?;
    a.mov(sp, 0x7c00u32)?;
    a.sti()?;
    for n in 0..2u16 {
        a.mov(si, u32::from(PACKETS + 16 * n))?;
        a.call(read)?;
    }
    a.mov(bp, u32::from(kernel))?;
    a.call(load)?;
    let [_, _, b2, b3] = INITRD.to_le_bytes();
    a.mov(word_ptr(TABLE + 0x1a), 0u32)?;
    a.mov(byte_ptr(TABLE + 0x1c), u32::from(b2))?;
    a.mov(byte_ptr(TABLE + 0x1f), u32::from(b3))?;
    a.mov(bp, u32::from(initrd))?;
    a.call(load)?;
    a.cli()?;
    a.mov(ax, u32::from(SETUP))?;
    for register in [ds, es, fs, gs, ss] {
        a.mov(register, ax)?;
    }
    a.mov(sp, u32::from(HEAP_END))?;
    // Behind the kernel's own boot sector.
    a.push(u32::from(SETUP) + 0x20)?;
    a.push(0)?;
    a.retf()?;
    // BP chunks from the disk to where the table says.
    a.set_label(&mut load)?;
    a.mov(si, u32::from(PACKETS + 32))?;
    a.call(read)?;
    a.add(dword_ptr(PACKETS + 40), CHUNK as i32)?;
    a.mov(si, u32::from(TABLE))?;
    a.mov(cx, (CHUNK * SECTOR / 2) as u32)?;
    a.mov(ah, 0x87u32)?;
    a.int(0x15u32)?;
    a.jb(failed)?;
    a.add(word_ptr(TABLE + 0x1a), (CHUNK * SECTOR) as u32)?;
    a.adc(byte_ptr(TABLE + 0x1c), 0u32)?;
    a.adc(byte_ptr(TABLE + 0x1f), 0u32)?;
    a.dec(bp)?;
    a.jne(load)?;
    a.ret()?;
    a.set_label(&mut read)?;
    a.mov(ah, 0x42u32)?;
    a.int(0x13u32)?;
    a.jb(failed)?;
    a.ret()?;
    a.set_label(&mut failed)?;
    a.int(0x18u32)?;
    let code = a.assemble(0x7c00)?;
    assert!(code.len() <= usize::from(PACKETS - 0x7c00));

    let mut sector = vec![0; SECTOR];
    let mut put = |at: u16, bytes: &[u8]| {
        let at = usize::from(at - 0x7c00);
        sector[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(0x7c00, &code);
    let parts = [(setup, SETUP, 0, 1), (1, SETUP, COMMAND_LINE, setup + 1), (CHUNK, BETWEEN, 0, setup + 2)];
    for (n, (count, segment, offset, lba)) in (0..).zip(parts) {
        put(PACKETS + 16 * n, &[16, 0, count as u8, 0]);
        put(PACKETS + 16 * n + 4, &[offset.to_le_bytes(), segment.to_le_bytes()].concat());
        put(PACKETS + 16 * n + 8, &(lba as u32).to_le_bytes());
    }
    let [b0, b1, b2, _] = (u32::from(BETWEEN) << 4).to_le_bytes();
    put(TABLE + 0x10, &[0xff, 0xff, b0, b1, b2, 0x93]);
    let [b0, b1, b2, _] = KERNEL.to_le_bytes();
    put(TABLE + 0x18, &[0xff, 0xff, b0, b1, b2, 0x93]);
    put(0x7dfe, &[0x55, 0xaa]);
    Ok(sector)
}
