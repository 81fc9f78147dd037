//! What FreeBSD 15 changed: memory segments have a NUMA policy (and other numbers, see [`crate::Abi::segments`]), and
//! machines are made by requests on `/dev/vmmctl`.

use crate::layout::layouts;
use crate::request::requests;

/// [`vmmctl_vm_create::flags`]: the VM goes with the descriptor that made it. Kernels without it answer `EINVAL`.
pub const VMMCTL_CREATE_DESTROY_ON_CLOSE: u32 = 1;

layouts! {
    /// Makes a VM: the name ends with a NUL.
    vmmctl_vm_create(296) { 0 name: [u8; 230], 230 pad: [u8; 2], 232 flags: u32, 236 reserved: [u32; 15], }
    /// Destroys one.
    vmmctl_vm_destroy(296) { 0 name: [u8; 230], 230 pad: [u8; 2], 232 reserved: [u32; 16], }
}

layouts! {
    pointers:
    /// A memory segment. A `ds_policy` of 0 with no mask is the host's default policy.
    vm_memseg(56) {
        0 segid: i32, 4 pad: u32, 8 len: u64, 16 name: [u8; 16], 32 ds_mask: u64, 40 ds_mask_size: u64,
        48 ds_policy: i32, 52 pad1: u32,
    }
}

requests! {
    REQUESTS:
    VM_ALLOC_MEMSEG: vm_memseg = w 14;
    VM_GET_MEMSEG: vm_memseg = rw 15;
}

requests! {
    CONTROL_REQUESTS:
    VMMCTL_VM_CREATE: vmmctl_vm_create = control 0;
    VMMCTL_VM_DESTROY: vmmctl_vm_destroy = control 1;
}
