//! Device nodes: `/dev/vmmctl`, `/dev/vmm/NAME`, `/dev/vmm.io/NAME.SEGMENT`.

use std::ffi::c_void;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use vmmapi_sys::{Access, Node};

use crate::codes::{self, REQUESTS, copies_in, copies_out, size};
use crate::memory::map_file;
use crate::version::Version;
use crate::vm::Vm;
use crate::wire::{Bytes, Res};
use crate::{Lack, Sim, errno};

/// Bytes of the name in requests to `/dev/vmmctl`.
const NAME: usize = 230;
const FLAGS: usize = 232;
const RESERVED: usize = 236;
const DESTROY_ON_CLOSE: u32 = 1;

pub(crate) fn open(sim: &Arc<Sim>, path: &str, access: Access) -> Res<Box<dyn Node>> {
    let named = |name: &str| sim.vms.lock().unwrap().get(name).cloned().ok_or(libc::ENOENT);
    let rights = || if sim.lacks(Lack::Rights) { Err(libc::EACCES) } else { Ok(()) };
    if sim.lacks(Lack::Nodes) {
        return Err(libc::ENOENT);
    }
    if path == "/dev/vmmctl" {
        if sim.version != Version::V15 {
            return Err(libc::ENOENT);
        }
        rights()?;
        if sim.lacks(Lack::Root) {
            return Err(libc::EACCES);
        }
        if sim.lacks(Lack::Jail) || access != Access::ReadWrite {
            return Err(libc::EPERM);
        }
        return Ok(Box::new(Control { sim: sim.clone(), made: Mutex::default() }));
    }
    if let Some(name) = path.strip_prefix("/dev/vmm/") {
        let vm = named(name)?;
        rights()?;
        return Ok(Box::new(VmNode(vm)));
    }
    let (name, segment) = path.strip_prefix("/dev/vmm.io/").and_then(|p| p.rsplit_once('.')).ok_or(libc::ENOENT)?;
    let vm = named(name)?;
    rights()?;
    let file = vm.memory.lock().unwrap().named(segment).map(|s| (s.file.clone(), s.len)).ok_or(libc::ENOENT)?;
    Ok(Box::new(Segment { vm, file: file.0, len: file.1 }))
}

/// The argument of a request: copied in, given to `f`, and copied out if that went well.
#[expect(unsafe_code, reason = "the argument of a system call")]
fn call(request: u32, arg: *mut c_void, f: impl FnOnce(&mut [u8]) -> Res) -> io::Result<()> {
    let mut data = vec![0; size(request)];
    if copies_in(request) {
        // SAFETY: the caller of `Node::ioctl` vouches for as many bytes as the code says.
        unsafe { std::ptr::copy_nonoverlapping(arg.cast::<u8>(), data.as_mut_ptr(), data.len()) };
    }
    f(&mut data).map_err(errno)?;
    if copies_out(request) {
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), arg.cast::<u8>(), data.len()) };
    }
    Ok(())
}

/// `/dev/vmmctl`.
struct Control {
    sim: Arc<Sim>,
    /// VMs that go with this descriptor.
    made: Mutex<Vec<String>>,
}

#[expect(unsafe_code, reason = "the trait's")]
impl Node for Control {
    unsafe fn ioctl(&self, request: u32, arg: *mut c_void) -> io::Result<()> {
        if !matches!(request, codes::VM_CREATE | codes::VM_DESTROY) {
            self.sim.rules.broken(&format!("/dev/vmmctl has no request {request:#x}"));
            return Err(errno(libc::ENOTTY));
        }
        let create = request == codes::VM_CREATE;
        self.sim.rules.requested(if create { "VMMCTL_VM_CREATE" } else { "VMMCTL_VM_DESTROY" });
        call(request, arg, |data| {
            let reserved = if create { RESERVED } else { FLAGS };
            if data[NAME..FLAGS].iter().chain(&data[reserved..]).any(|b| *b != 0) {
                self.sim.rules.broken("/dev/vmmctl: padding or reserved words are not 0");
                return Err(libc::EINVAL);
            }
            let b = Bytes(data);
            let name = b.string(0, NAME).ok_or(libc::EINVAL)?;
            if !create {
                return self.sim.destroy(&name);
            }
            let flags = b.u32(FLAGS);
            let known = if self.sim.lacks(Lack::DestroyOnClose) { 0 } else { DESTROY_ON_CLOSE };
            if flags & !known != 0 {
                return Err(libc::EINVAL);
            }
            self.sim.create(&name)?;
            if flags & DESTROY_ON_CLOSE != 0 {
                self.made.lock().unwrap().push(name);
            }
            Ok(())
        })
    }

    unsafe fn map(&self, _: *mut u8, _: usize, _: u64) -> io::Result<()> {
        Err(errno(libc::ENODEV))
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        for name in self.made.lock().unwrap().drain(..) {
            let _ = self.sim.destroy(&name);
        }
    }
}

/// `/dev/vmm/NAME`.
struct VmNode(Arc<Vm>);

#[expect(unsafe_code, reason = "the trait's")]
impl Node for VmNode {
    unsafe fn ioctl(&self, request: u32, arg: *mut c_void) -> io::Result<()> {
        let vm = &self.0;
        let abi = vm.version.abi();
        let Some(row) = REQUESTS.iter().find(|r| r.code == request && r.abis & abi != 0) else {
            // Kernels are told apart by asking for what others have, before anything runs.
            if !codes::known_elsewhere(request) || vm.world().ran {
                vm.rules.broken(&format!("no request {request:#x} in {}", vm.version.name()));
            }
            return Err(errno(libc::ENOTTY));
        };
        vm.rules.requested(row.name);
        call(request, arg, |data| vm.request(row, data))
    }

    unsafe fn map(&self, at: *mut u8, len: usize, offset: u64) -> io::Result<()> {
        let (file, start) = self.0.memory.lock().unwrap().host_view(offset, len as u64).map_err(errno)?;
        map_in(&self.0, &file, start, at, len)
    }
}

/// `/dev/vmm.io/NAME.SEGMENT`.
struct Segment {
    vm: Arc<Vm>,
    file: Arc<OwnedFd>,
    len: u64,
}

#[expect(unsafe_code, reason = "the trait's")]
impl Node for Segment {
    unsafe fn ioctl(&self, request: u32, _: *mut c_void) -> io::Result<()> {
        self.vm.rules.broken(&format!("request {request:#x} to a segment's node"));
        Err(errno(libc::ENOTTY))
    }

    unsafe fn map(&self, at: *mut u8, len: usize, offset: u64) -> io::Result<()> {
        if offset.checked_add(len as u64).is_none_or(|end| end > self.len) {
            return Err(errno(libc::EINVAL));
        }
        map_in(&self.vm, &self.file, offset, at, len)
    }
}

/// Maps a segment into user space, and remembers where.
fn map_in(vm: &Vm, file: &Arc<OwnedFd>, offset: u64, at: *mut u8, len: usize) -> io::Result<()> {
    map_file(file, offset, at, len)?;
    if let Some(ram) = vm.memory.lock().unwrap().arena(file, offset) {
        vm.user_maps.lock().unwrap().insert(at as usize, (len, ram));
        vm.watch(at as usize, len);
    }
    Ok(())
}
