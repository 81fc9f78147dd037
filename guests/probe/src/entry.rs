//! The way in: the PVH note, the 32-bit entry, the trampoline of the other processors and the interrupt stubs.
//!
//! PVH ("Xen HVM start info" ABI) enters flat 32-bit code with EBX at the start_info block and nothing else of use. The
//! code here maps the first 4 GiB one to one with 2 MiB pages, turns on SSE (the host's `core` is compiled for it) and
//! goes to long mode. The other processors come through a page below 1 MiB, as SIPI demands.
//!
//! The host's `core` also uses the red zone below RSP, so no interrupt may push onto the interrupted stack: every gate
//! names an IST stack (see `trap`).

use core::arch::global_asm;

/// Physical page that SIPI starts the other processors at (vector 08h).
pub const TRAMPOLINE: u64 = 0x8000;
/// Most processors that one run starts, the first included.
pub const MAX_CPUS: usize = 64;

unsafe extern "C" {
    pub safe static ap_trampoline: u8;
    pub safe static ap_trampoline_end: u8;
    pub safe static trap_stubs: u8;
    pub safe static image_end: u8;
    /// Level-4 page table that all processors share.
    pub safe static boot_pml4: u8;
}

global_asm!(
    r#"
    .section .note.Xen, "a", @note
    .balign 4
    .long 4, 8, 18
    .asciz "Xen"
    .quad pvh_entry

    .section .text.entry, "ax"
    .code32
    .globl pvh_entry
pvh_entry:
    cli
    cld
    lgdt [boot_gdtr]
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov esp, offset boot_stack_end
    mov ebp, ebx

    // 2048 large pages; the carry out of the address ends the loop at 4 GiB.
    mov edi, offset boot_pd
    mov eax, 0x83
2:  mov [edi], eax
    mov dword ptr [edi + 4], 0
    add edi, 8
    add eax, 0x200000
    jnc 2b

    mov edi, offset boot_pdpt
    mov eax, offset boot_pd + 3
    mov ecx, 4
3:  mov [edi], eax
    mov dword ptr [edi + 4], 0
    add edi, 8
    add eax, 0x1000
    dec ecx
    jnz 3b

    mov eax, offset boot_pdpt + 3
    mov [boot_pml4], eax
    mov dword ptr [boot_pml4 + 4], 0
    call long_mode
    .byte 0xea
    .long bsp64
    .word 8

    // Caller is 32-bit code; on return the far jump to a 64-bit segment is all that is left to do.
long_mode:
    mov eax, cr4
    or eax, 0x620
    mov cr4, eax
    mov eax, offset boot_pml4
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100
    wrmsr
    // INIT leaves CD and NW set; EM and TS would make the first SSE instruction fault.
    mov eax, cr0
    and eax, 0x9ffffff3
    or eax, 0x80010023
    mov cr0, eax
    ret

    .code64
bsp64:
    xor eax, eax
    mov ds, eax
    mov es, eax
    mov fs, eax
    mov gs, eax
    mov rsp, offset boot_stack_end
    mov edi, ebp
    xor ebp, ebp
    call probe_main
4:  hlt
    jmp 4b

    // Copied to TRAMPOLINE; runs there in real mode with CS = TRAMPOLINE >> 4.
    .code16
    .globl ap_trampoline, ap_trampoline_end
ap_trampoline:
    cli
    cld
    mov ax, cs
    mov ds, ax
    // LGDT with 32-bit operand size, at an offset that the assembler has no words for.
    .byte 0x66, 0x0f, 0x01, 0x16
    .word ap_gdtr - ap_trampoline
    mov eax, cr0
    or al, 1
    mov cr0, eax
    .byte 0x66, 0xea
    .long ap32
    .word 0x18
    .balign 4
ap_gdtr:
    .word 0x1f
    .long boot_gdt
ap_trampoline_end:

    .code32
ap32:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    // Several may arrive at once: each takes a number, and with the number a stack.
    mov ebx, 1
    lock xadd [ap_next], ebx
    cmp ebx, 64
    jae 5f
    mov esp, [ap_stacks + ebx * 8]
    call long_mode
    .byte 0xea
    .long ap64
    .word 8
5:  hlt
    jmp 5b

    .code64
ap64:
    xor eax, eax
    mov ds, eax
    mov es, eax
    mov fs, eax
    mov gs, eax
    mov edi, ebx
    mov rsp, [ap_stacks + rdi * 8]
    xor ebp, ebp
    call ap_main
6:  hlt
    jmp 6b

    .section .data.boot, "aw"
    .balign 16
boot_gdt:
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cf9b000000ffff
boot_gdtr:
    .word 0x1f
    .long boot_gdt

    .section .bss.boot, "aw", @nobits
    .balign 4096
    .globl boot_pml4
boot_pml4: .skip 4096
boot_pdpt: .skip 4096
boot_pd:   .skip 16384
boot_stack: .skip 32768
boot_stack_end:
    "#
);

// One stub of 16 bytes a vector: vectors without an error code of their own get a zero, so that all frames are alike.
global_asm!(
    r#"
    .section .text.trap, "ax"
    .balign 16
    .globl trap_stubs
trap_stubs:
    .set vec, 0
    .rept 256
    .balign 16
    .if (vec == 8) || ((vec >= 10) && (vec <= 14)) || (vec == 17)
    .else
    .byte 0x6a, 0x00
    .endif
    .byte 0x68
    .long vec
    jmp trap_common
    .set vec, vec + 1
    .endr

    .balign 16
trap_common:
    push rax
    push rbx
    push rcx
    push rdx
    push rsi
    push rdi
    push rbp
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    mov rdi, rsp
    mov rbx, rsp
    cld
    sub rsp, 512
    and rsp, -16
    fxsave64 [rsp]
    // The handler must not fault on an unmasked exception that the interrupted code has pending or enabled.
    fninit
    mov dword ptr [rip + trap_mxcsr], 0x1f80
    ldmxcsr [rip + trap_mxcsr]
    call trap_entry
    fxrstor64 [rsp]
    mov rsp, rbx
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rbp
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rbx
    pop rax
    add rsp, 16
    iretq

    .section .bss.trap, "aw", @nobits
    .balign 4
trap_mxcsr: .skip 4
    "#
);
