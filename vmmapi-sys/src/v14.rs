//! What FreeBSD 14 changed: `VM_RUN` takes pointers, statistics are asked for in parts. 15 kept all of it.

use crate::common::timeval;
use crate::layout::layouts;
use crate::request::requests;

layouts! {
    /// Statistics from `index` on.
    vm_stats(544) {
        0 cpuid: i32, 4 index: i32, 8 num_entries: i32, 12 pad: u32, 16 tv: timeval, 32 statbuf: [u64; 64],
    }
}

layouts! {
    pointers:
    /// `VM_RUN`: `cpuset` points to `cpusetsize` bytes for the destinations of an IPI, `vm_exit` to room for the exit,
    /// whose size only the kernel knows.
    vm_run(32) { 0 cpuid: i32, 4 pad: u32, 8 cpuset: u64, 16 cpusetsize: u64, 24 vm_exit: u64, }
    /// Memory that a part of the kernel's state is saved to or restored from.
    vm_snapshot_buffer(32) { 0 buf_start: u64, 8 buf_size: u64, 16 buf: u64, 24 buf_rem: u64, }
    /// A part of the kernel's state.
    vm_snapshot_meta(64) {
        0 dev_data: u64, 8 dev_name: u64, 16 dev_req: i32, 20 pad: u32, 24 buffer: vm_snapshot_buffer,
        56 op: i32, 60 pad1: u32,
    }
}

requests! {
    REQUESTS:
    VM_RUN: vm_run = w 1;
    VM_STATS: vm_stats = rw 50;
    VM_SNAPSHOT_REQ: vm_snapshot_meta = rw 113;
}
