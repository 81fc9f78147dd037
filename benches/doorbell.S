/*
 * The guest of benches/doorbell: a ROM that reads the first sector of a virtio-blk disk COUNT times, one request at a
 * time, by the legacy interface and without interrupts, and then resets the machine by the 8042.
 */
.equ DESC, 0x100000
.equ HEADER, 0x200000
.equ DATA, 0x201000
.equ STATUS, 0x202000
.equ PORTS, 0xc000
.equ ROM, 0xffff0000

.macro put width, port, value
 mov $\port, %dx
 mov \value, %eax
 .if \width == 1
 out %al, %dx
 .elseif \width == 2
 out %ax, %dx
 .else
 out %eax, %dx
 .endif
.endm

.macro config at, value
 lea \at(%ebx), %eax
 mov $0xcf8, %dx
 out %eax, %dx
 put 4, 0xcfc, \value
.endm

.code16
start:
 cli
 lgdtl %cs:gdtr - start
 mov %cr0, %eax
 or $1, %al
 mov %eax, %cr0
 ljmpl $8, $(ROM + flat - start)
.align 8
gdt:
 .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
gdtr:
 .word 0x17
 .long ROM + gdt - start

.code32
flat:
 mov $0x10, %ax
 mov %ax, %ds
 mov $0x80000000, %ebx
find:
 put 4, 0xcf8, %ebx
 mov $0xcfc, %dx
 in %dx, %eax
 cmp $0x1af4, %ax
 je found
 add $0x800, %ebx
 cmp $0x80010000, %ebx
 jb find
 jmp done
found:
 config 0x10, $PORTS
 config 4, $5
 put 1, PORTS + 0x12, $0
 put 1, PORTS + 0x12, $3
 put 2, PORTS + 0x0e, $0
 mov $PORTS + 0x0c, %dx
 in %dx, %ax
 movzwl %ax, %ebp
 put 4, PORTS + 8, $(DESC >> 12)
 put 1, PORTS + 0x12, $7
/* ESI: the available ring, EDI: the used ring. */
 mov %ebp, %esi
 shl $4, %esi
 add $DESC, %esi
 lea 6 + 4095(%esi, %ebp, 2), %edi
 and $~4095, %edi
/* Header, data, status; flags are NEXT and WRITE. */
 movl $HEADER, DESC
 movl $16, DESC + 8
 movl $0x00010001, DESC + 12
 movl $DATA, DESC + 16
 movl $512, DESC + 24
 movl $0x00020003, DESC + 28
 movl $STATUS, DESC + 32
 movl $1, DESC + 40
 movl $2, DESC + 44
/* No interrupts; all entries of the ring name descriptor 0. */
 movw $1, (%esi)
 xor %ebx, %ebx
 mov $COUNT, %ecx
 jecxz done
again:
 inc %ebx
 mov %bx, 2(%esi)
 put 2, PORTS + 0x10, $0
wait:
 cmp %bx, 2(%edi)
 jne wait
 dec %ecx
 jnz again
done:
 mov $0xfe, %al
 out %al, $0x64
 hlt
 jmp done
