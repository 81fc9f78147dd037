//! What FreeBSD 13 has of its own: the exit embedded in `VM_RUN`, statistics without an index, snapshots with a pointer
//! too many; and the 32-byte memory segments that 14 kept.

use crate::common::timeval;
use crate::exit::EXIT_SIZE;
use crate::layout::layouts;
use crate::request::requests;

/// Bytes of the set of an IPI's destinations, at [`crate::exit::ipi_13::mask`].
pub const CPUSET_BYTES: usize = 32;

layouts! {
    /// `VM_RUN`: the exit comes back in it.
    vm_run_13(144) { 0 cpuid: i32, 4 pad: u32, 8 vm_exit: [u8; EXIT_SIZE], }
    /// A memory segment, of 13 and 14.
    vm_memseg_14(32) { 0 segid: i32, 4 pad: u32, 8 len: u64, 16 name: [u8; 16], }
    /// Statistics.
    vm_stats_13(536) { 0 cpuid: i32, 4 num_entries: i32, 8 tv: timeval, 24 statbuf: [u64; 64], }
}

layouts! {
    pointers:
    /// A part of the kernel's state: as 14's after a pointer that is ignored.
    vm_snapshot_meta_13(72) { 0 ctx: u64, 8 meta: crate::v14::vm_snapshot_meta, }
}

requests! {
    REQUESTS:
    VM_RUN: vm_run_13 = rw 1;
    VM_STATS: vm_stats_13 = rw 50;
    VM_SNAPSHOT_REQ: vm_snapshot_meta_13 = rw 113;
}

requests! {
    MEMSEG_REQUESTS:
    VM_ALLOC_MEMSEG: vm_memseg_14 = w 14;
    VM_GET_MEMSEG: vm_memseg_14 = rw 15;
}
