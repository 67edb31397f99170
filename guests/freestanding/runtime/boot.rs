//! From the reset vector, or from a STARTUP, to 64-bit Rust.
//!
//! Both ways meet in `enter_long_mode`: the BSP comes from the ROM, an AP from a trampoline page.
//!
//! A CPU that comes where nobody sent it says so and stops: an AP at the reset vector, an AP in a trampoline page that no
//! STARTUP named ([`EXPECTED_PAGES`]) or off the trampoline's beginning, a CPU that the firmware did not tell of. The BSP that
//! comes to the reset vector again goes on in Rust.

use crate::apic::{APIC_BASE_BSP, APIC_BASE_EXTD, IA32_APIC_BASE, X2APIC_ID, XAPIC_BASE, XAPIC_ID};
use crate::cpu::{CPU_NUMBER, CPUS, MAX_APIC_IDS};
use crate::report::{REPORT_PORT, RESET_VECTOR, STRAY};
use crate::startup::EXPECTED_PAGES;
use core::arch::global_asm;

// The reset code, at the end of the ROM. The processor starts at F000:FFF0 with CS base FFFF0000H (SDM 3A 10.1.4), so this
// page is addressed as CS:FF00 until paging takes over. It uses no memory but the ROM itself before it knows RAM.
global_asm!(
    r#"
    .section .reset, "ax", @progbits
    .code16
reset_start:
    cli
    cld
    movl ${apic_base}, %ecx
    rdmsr
    testl ${bsp}, %eax
    jz reset_astray
    lgdtl %cs:(0xff00 + reset_gdtr - reset_start)
    movl %cr0, %eax
    andl ${cr0_clear}, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $0x08, $reset_protected

    .code32
reset_protected:
    movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $bsp_again, %ebx
    cmpl ${started}, bsp_started
    je 1f
    movl $rom_base, %esi
    movl $payload_start, %edi
    movl $payload_dwords, %ecx
    rep movsl
    xorl %eax, %eax
    movl $bss_start, %edi
    movl $bss_dwords, %ecx
    rep stosl
    movl ${started}, bsp_started
    movl $bsp_entry, %ebx
1:  movl $enter_long_mode, %eax
    jmp *%eax

    // Only CPUID tells an AP in real mode who it is: leaf 0BH, or leaf 1 of a processor that has no such leaf.
    .code16
reset_astray:
    xorl %eax, %eax
    cpuid
    cmpl $0xb, %eax
    movl $1, %eax
    jb 1f
    movb $0xb, %al
    xorl %ecx, %ecx
    cpuid
    jmp 2f
1:  cpuid
    shrl $24, %ebx
    movl %ebx, %edx
2:  movzwl %dx, %eax
    orl ${stray_at_reset}, %eax
    movw ${port}, %dx
    outl %eax, %dx
3:  hlt
    jmp 3b

    // The descriptors' accessed bits are set already: the processor must not want to write to the ROM.
    .balign 8
reset_gdt:
    .quad 0
    .quad 0x00cf9b000000ffff
    .quad 0x00cf93000000ffff
reset_gdtr:
    .word . - reset_gdt - 1
    .long reset_gdt

    .org 0xf0, 0xf4
    .code16
    .globl reset_vector
reset_vector:
    jmp reset_start
    .org 0x100, 0xf4
    .code64
"#,
    cr0_clear = const CR0_CACHE_OFF,
    apic_base = const IA32_APIC_BASE,
    bsp = const APIC_BASE_BSP,
    started = const BSP_STARTED,
    port = const REPORT_PORT,
    stray_at_reset = const (STRAY as u32) << 24 | RESET_VECTOR << 16,
    options(att_syntax),
);

/// What `bsp_started` holds once the BSP has been at the reset vector, and hardly ever before.
const BSP_STARTED: u32 = 0x4253_5021;

/// What to keep of CR0: everything but CD and NW, which RESET and INIT set (SDM 3A 10.1.1).
const CR0_CACHE_OFF: u32 = !(1 << 30 | 1 << 29);

// The trampoline: the page whose number is the STARTUP vector gets a copy of this. CS is the page, whose number goes along in
// BP; nothing else depends on which one. Several APs may be in it at once: it writes nothing but the count of NMIs.
//
// The copy below 1000H serves real mode's interrupt vectors: `trampoline_trap` is for INT3, which fills the pages, and marks CS as
// no vector; `trampoline_nmi` counts.
global_asm!(
    r#"
    .section .mode_switch, "aw", @progbits
    .code16
    .globl trampoline_start, trampoline_trap, trampoline_nmi, trampoline_nmis, trampoline_end
    .balign 8
trampoline_start:
    movw %cs, %bp
1:  cli
    cld
    lgdtl %cs:(trampoline_gdtr - trampoline_start)
    movl $ap_entry, %ebx
    movl %cr0, %eax
    andl ${cr0_clear}, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $0x08, $enter_long_mode
trampoline_trap:
    popw %bp
    popw %bp
    orw $1, %bp
    jmp 1b
trampoline_nmi:
    incw %cs:(trampoline_nmis - trampoline_start)
    iretw
trampoline_gdtr:
    .word gdt_end - gdt - 1
    .long gdt
    .balign 2
trampoline_nmis:
    .word 0
trampoline_end:
    .code64
"#,
    cr0_clear = const CR0_CACHE_OFF,
    options(att_syntax),
);

// From 32-bit protected mode to long mode, then on at EBX. No stack is needed, none is used. EBP stays.
global_asm!(
    r#"
    .section .mode_switch, "aw", @progbits
    .code32
enter_long_mode:
    movw $0x10, %ax             // in both GDTs; real mode's DS ends at 64 KiB
    movw %ax, %ds
    lgdtl gdtr
    movw %ax, %es
    movw %ax, %ss
    movw %ax, %fs
    movw %ax, %gs
    movl %cr4, %eax
    orl $(1 << 5), %eax         // PAE
    movl %eax, %cr4
    movl $page_map_level_4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx      // IA32_EFER
    rdmsr
    orl $(1 << 8), %eax         // LME
    wrmsr
    movl %cr0, %eax
    orl $(1 << 31), %eax        // PG
    movl %eax, %cr0
    ljmpl $0x18, $long_mode
    .code64
long_mode:
    movl %ebx, %eax
    jmp *%rax

    .section .text.entry, "ax", @progbits
bsp_entry:
    movl ${cpus} + 4096, %esp
    xorl %ebp, %ebp
    call bsp_main
    ud2
bsp_again:
    movl ${cpus} + 4096, %esp
    xorl %ebp, %ebp
    call bsp_restarted
    ud2

    // Which CPU is this? Its local APIC says, in the mode that it is in. And did anybody send it here?
ap_entry:
    movl ${apic_base}, %ecx
    rdmsr
    testl ${extd}, %eax
    jnz 2f
    movl ${xapic_id}, %edx
    movl (%rdx), %eax
    shrl $24, %eax
    jmp 3f
2:  movl ${x2apic_id}, %ecx
    rdmsr
3:  movl %eax, %eax
    movzwl %bp, %ecx
    shrl $8, %ecx
    testb $0xff, %bpl
    jnz 4f
    movl {expected_pages}, %edx
    btl %ecx, %edx
    jnc 4f
    cmpl ${apic_ids}, %eax
    jae 4f
    movzwl {cpu_number}(, %rax, 2), %edx
    testl %edx, %edx
    jz 4f
    leal 1(%rdx), %esp
    shll $12, %esp
    addl ${cpus}, %esp
    xorl %ebp, %ebp
    movl %ecx, %edi
    call ap_main
    ud2
    // It has no stack: it says so, and stops.
4:  shll $16, %ecx
    movzwl %ax, %eax
    orl %ecx, %eax
    orl ${stray}, %eax
    movw ${port}, %dx
    outl %eax, %dx
5:  cli
    hlt
    jmp 5b

    .section .mode_switch, "aw", @progbits
    .balign 8
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff    // 08h: 32-bit code
    .quad 0x00cf93000000ffff    // 10h: data
    .quad 0x00af9b000000ffff    // 18h: 64-bit code
gdt_end:
gdtr:
    .word gdt_end - gdt - 1
    .long gdt
bsp_started:
    .long 0
"#,
    cpus = sym CPUS,
    cpu_number = sym CPU_NUMBER,
    expected_pages = sym EXPECTED_PAGES,
    apic_ids = const MAX_APIC_IDS,
    stray = const (STRAY as u32) << 24,
    port = const REPORT_PORT,
    apic_base = const IA32_APIC_BASE,
    extd = const APIC_BASE_EXTD,
    xapic_id = const XAPIC_BASE + XAPIC_ID,
    x2apic_id = const X2APIC_ID,
    options(att_syntax),
);

// 4 GiB mapped to themselves in pages of 2 MiB, as data: copying is cheaper than computing on a slow processor. Accessed and
// dirty are set already; the uppermost GiB, where the local APIC is, is not cached (SDM 3A 11.4.1).
global_asm!(
    r#"
    .section .page_tables, "aw", @progbits
    .balign 4096
page_map_level_4:
    .quad page_directory_pointers + 0x23
    .fill 511, 8, 0
page_directory_pointers:
    .quad page_directories + 0x0023
    .quad page_directories + 0x1023
    .quad page_directories + 0x2023
    .quad page_directories + 0x3023
    .fill 508, 8, 0
page_directories:
    .set page, 0
    .rept 3 * 512
    .quad page * 0x200000 + 0xe3
    .set page, page + 1
    .endr
    .rept 512
    .quad page * 0x200000 + 0xfb
    .set page, page + 1
    .endr
"#,
    options(att_syntax),
);
