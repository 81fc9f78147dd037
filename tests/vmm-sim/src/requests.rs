//! What each request does.

use cpu::{Fault, Message};

use crate::codes::{Lock, Op, Row};
use crate::exit;
use crate::ioapic::PINS;
use crate::regs::{self, Paging};
use crate::version::Version;
use crate::vm::{State, Vm, load};
use crate::walk::{Want, translate};
use crate::wire::{Bytes, Res};

/// VM_GLA2GPA_NOFAULT.
const NOFAULT: u32 = 0xc038_7612;
/// Values of VM_STATS; more than one request gives.
const STATISTICS: usize = 70;
/// Values in one answer.
const PAGE: usize = 64;

const UNRESTRICTED: i32 = 3;

/// Copies to user space.
#[expect(unsafe_code, reason = "a pointer in a request")]
fn copy_out(to: u64, bytes: &[u8]) -> Res {
    if to == 0 {
        return Err(libc::EFAULT);
    }
    // SAFETY: who makes the request vouches for the pointers in it.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as usize as *mut u8, bytes.len()) };
    Ok(())
}

/// Copies from user space.
#[expect(unsafe_code, reason = "a pointer in a request")]
fn copy_in(from: u64, bytes: &mut [u8]) -> Res {
    if from == 0 {
        return Err(libc::EFAULT);
    }
    // SAFETY: as above.
    unsafe { std::ptr::copy_nonoverlapping(from as usize as *const u8, bytes.as_mut_ptr(), bytes.len()) };
    Ok(())
}

impl Vm {
    /// Does a request whose argument has been copied in.
    pub(crate) fn request(&self, row: &Row, data: &mut [u8]) -> Res {
        for (from, to) in row.zero {
            if data[*from..*to].iter().any(|b| *b != 0) {
                self.rules.broken(&format!("{}: bytes {from} to {to}, which are padding, are not 0", row.name));
            }
        }
        let mut b = Bytes(data);
        let lock = match row.lock {
            Lock::VcpuFrom15 if self.version.id_requests_lock() => Lock::Vcpu,
            Lock::VcpuFrom15 => Lock::None,
            lock => lock,
        };
        match lock {
            Lock::Vcpu => {
                let n = self.index(b.i32(0))?;
                self.lock_vcpu(n, State::Frozen)?;
                let done = self.dispatch(row, &mut b);
                self.unlock_vcpu(n);
                done
            }
            Lock::All => {
                let mut locked = 0;
                let mut done = Ok(());
                for n in 0..self.cores.len() {
                    done = self.lock_vcpu(n, State::Frozen);
                    if done.is_err() {
                        break;
                    }
                    locked = n + 1;
                }
                let done = done.and_then(|()| self.dispatch(row, &mut b));
                (0..locked).for_each(|n| self.unlock_vcpu(n));
                done
            }
            _ => {
                if self.world().destroyed {
                    return Err(libc::ENXIO);
                }
                self.dispatch(row, &mut b)
            }
        }
    }

    fn dispatch(&self, row: &Row, b: &mut Bytes) -> Res {
        match row.op {
            Op::Run13 | Op::Run14 => self.run_request(row.op == Op::Run13, b),
            Op::SetCapability => self.set_capability(b),
            Op::GetCapability => self.get_capability(b),
            Op::Suspend => self.suspend(b.u32(0)),
            Op::Reinit => self.reinit(),
            Op::AllocMemseg | Op::GetMemseg | Op::MmapMemseg | Op::MmapGetnext | Op::MunmapMemseg | Op::GpaPmap => {
                self.memory_request(row, b)
            }
            Op::Gla2Gpa => self.gla2gpa(row.code == NOFAULT, b),
            Op::SetRegister | Op::GetRegister | Op::SetSegment | Op::GetSegment => self.register_request(row.op, b),
            Op::SetRegisters | Op::GetRegisters => self.register_set(row.op == Op::SetRegisters, b),
            Op::GetKernemu | Op::SetKernemu => self.kernemu(row.op == Op::SetKernemu, b),
            Op::GetIntinfo | Op::SetIntinfo => self.intinfo(row.op == Op::SetIntinfo, b),
            Op::InjectException => self.inject(b),
            Op::Restart => {
                let n = self.index(b.i32(0))?;
                self.with(n, |core| {
                    core.debts.restarted();
                    core.next = core.cpu.rip();
                });
                Ok(())
            }
            Op::Passthrough => Err(libc::ENXIO),
            Op::Stats | Op::StatDesc => self.stats(row, b),
            Op::SetX2apic | Op::GetX2apic => self.x2apic(row.op == Op::SetX2apic, b),
            Op::SetTopology | Op::GetTopology => self.topology(row.op == Op::SetTopology, b),
            Op::Activate | Op::GetCpus | Op::SuspendCpu | Op::ResumeCpu => self.cpus(row.op, b),
            Op::RtcRead | Op::RtcWrite => {
                let at = b.i32(0);
                if !(0x0e..0x80).contains(&at) || at == 0x32 {
                    return Err(libc::EINVAL);
                }
                if row.op == Op::RtcWrite {
                    self.chips.set_nvram(at as usize, b.u8(4));
                } else {
                    b.put(4, &[self.chips.nvram(at as usize)]);
                }
                Ok(())
            }
            Op::RtcSetTime => {
                self.chips.set_time(b.u64(0) as i64);
                Ok(())
            }
            Op::RtcGetTime => {
                b.put_u64(0, self.chips.time() as u64);
                Ok(())
            }
            Op::HpetCapabilities => {
                b.put_u32(0, self.chips.hpet_capabilities());
                Ok(())
            }
            Op::IoapicPincount => {
                b.put_u32(0, PINS as u32);
                Ok(())
            }
            _ => self.interrupt(row.op, b),
        }
    }

    fn run_request(&self, old: bool, b: &mut Bytes) -> Res {
        let id = b.i32(0);
        if id < 0 {
            // How user space asks whether there is this form of VM_RUN.
            return Err(libc::EINVAL);
        }
        let image = self.run(id)?;
        self.rules.exited(image.code());
        if old {
            b.put(8, &image.bytes);
            return Ok(());
        }
        let (cpus, size, exit) = (b.u64(8), b.u64(16) as usize, b.u64(24));
        if image.code() == exit::IPI {
            if size < self.version.cpuset() {
                self.rules.broken(&format!("VM_RUN: a set of {size} bytes for the processors of an IPI exit"));
            }
            let mut set = vec![0; size];
            set.iter_mut().zip(image.cpus.to_le_bytes()).for_each(|(to, from)| *to = from);
            copy_out(cpus, &set)?;
        }
        copy_out(exit, &image.bytes)
    }

    fn set_capability(&self, b: &mut Bytes) -> Res {
        let (n, which, value) = (self.index(b.i32(0))?, b.i32(4), b.i32(8));
        self.capability_there(which)?;
        if matches!(which, 6 | 7) {
            return Err(libc::ENOENT);
        }
        let mut w = self.world();
        let set = &mut w.vcpus[n].capabilities;
        *set = *set & !(1 << which) | u32::from(value != 0) << which;
        Ok(())
    }

    fn get_capability(&self, b: &mut Bytes) -> Res {
        let (n, which) = (self.index(b.i32(0))?, b.i32(4));
        self.capability_there(which)?;
        let on = self.world().vcpus[n].capabilities >> which & 1;
        b.put_u32(8, on);
        Ok(())
    }

    fn capability_there(&self, which: i32) -> Res {
        if !(0..self.version.capabilities()).contains(&which) {
            return Err(libc::EINVAL);
        }
        match which {
            UNRESTRICTED if !self.rules.unrestricted() => Err(libc::ENOENT),
            // INVPCID, RDPID, RDTSCP; MASK_HWINTR and RFLAGS_TF are AMD's.
            4 | 6 | 7 | 9 | 10 => Err(libc::ENOENT),
            _ => Ok(()),
        }
    }

    fn memory_request(&self, row: &Row, b: &mut Bytes) -> Res {
        let mut m = self.memory.lock().unwrap();
        match row.op {
            Op::AllocMemseg => {
                let (id, len) = (b.i32(0), b.u64(8));
                let name = b.string(16, 16).ok_or(libc::EINVAL)?;
                if name.is_empty() == m.is_device(id) {
                    let kind = if m.is_device(id) { "device" } else { "system" };
                    self.rules.broken(&format!(
                        "VM_ALLOC_MEMSEG: segment {id} is {kind} memory in {}, its name is \"{name}\"",
                        self.version.name()
                    ));
                }
                if row.size() == 56 && (b.u64(32) == 0) != (b.u64(40) == 0) {
                    return Err(libc::ERANGE);
                }
                m.alloc(id, len, name)
            }
            Op::GetMemseg => {
                let id = b.i32(0);
                if id < 0 || id as usize >= self.version.segments() {
                    return Err(libc::EINVAL);
                }
                let (len, name) = m.segment(id).map_or((0, ""), |s| (s.len, s.name.as_str()));
                b.put_u64(8, len);
                let mut field = [0; 16];
                field[..name.len()].copy_from_slice(name.as_bytes());
                b.put(16, &field);
                Ok(())
            }
            Op::MmapMemseg => m.map(b.u64(0), b.i32(8), b.u64(16), b.u64(24), b.i32(32), b.i32(36)),
            Op::MunmapMemseg => m.unmap(b.u64(0), b.u64(8)),
            Op::MmapGetnext => {
                let next = m.next(b.u64(0))?;
                b.put_u64(0, next.gpa);
                b.put_u32(8, next.segid as u32);
                b.put_u64(16, next.segoff);
                b.put_u64(24, next.len);
                b.put_u32(32, next.prot as u32);
                b.put_u32(36, next.flags as u32);
                Ok(())
            }
            _ => {
                let there = m.readable(b.u64(0));
                b.put_u32(40, u32::from(there));
                b.put_u64(8, if there { b.u64(0) & !0xfff | 7 } else { 0 });
                Ok(())
            }
        }
    }

    fn gla2gpa(&self, quiet: bool, b: &mut Bytes) -> Res {
        let n = self.index(b.i32(0))?;
        let prot = b.i32(4);
        if prot == 0 || prot & !7 != 0 {
            return Err(libc::EINVAL);
        }
        let paging = Paging { cr3: b.u64(16), cpl: b.i32(24), cpu_mode: b.i32(28), paging_mode: b.i32(32) };
        if !(0..=3).contains(&paging.cpl)
            || !(0..=3).contains(&paging.cpu_mode)
            || !(0..=4).contains(&paging.paging_mode)
        {
            self.rules.broken(&format!("VM_GLA2GPA: {paging:?} is no way to translate"));
            return Err(libc::EINVAL);
        }
        let want = Want { write: prot & 2 != 0, fetch: prot & 4 != 0, user: paging.cpl == 3, mark: !quiet };
        let lin = b.u64(8);
        match translate(&self.chips, &paging, lin, want) {
            Ok(gpa) => {
                b.put_u32(40, 0);
                b.put_u64(48, gpa);
            }
            Err(code) => {
                b.put_u32(40, 1);
                if !quiet {
                    self.with(n, |core| {
                        core.debts.injected();
                        core.pending = Some(Fault { vector: 14, error: Some(code), cr2: lin });
                        core.next = core.cpu.rip();
                    });
                }
            }
        }
        Ok(())
    }

    fn known_register(&self, id: i32) -> Res {
        if (0..self.version.registers()).contains(&id) { Ok(()) } else { Err(libc::EINVAL) }
    }

    fn get_register(&self, n: usize, id: i32) -> Res<u64> {
        self.known_register(id)?;
        self.with(n, |core| match id {
            regs::RIP => Ok(core.cpu.rip()),
            48 => Ok(u64::from(core.cpu.lapic().tpr())),
            regs::ENTRY_INST_LENGTH => Ok(core.next.wrapping_sub(core.cpu.rip())),
            _ => match regs::general(id) {
                Some(g) => Ok(core.cpu.gpr(g)),
                None => regs::get(&mut core.cpu.regs(), id).ok_or(libc::EINVAL),
            },
        })
    }

    fn set_register(&self, n: usize, id: i32, value: u64) -> Res {
        self.known_register(id)?;
        self.with(n, |core| {
            core.debts.set(id, value, core.next);
            if id == regs::RIP {
                core.cpu.set_rip(value);
                core.next = value;
                return Ok(());
            }
            if id == regs::ENTRY_INST_LENGTH {
                core.entry_length = value;
                return Ok(());
            }
            if let Some(g) = regs::general(id) {
                core.cpu.set_gpr(g, value);
                return Ok(());
            }
            let mut r = core.cpu.regs();
            if !regs::set(&mut r, id, value) {
                return Err(libc::EINVAL);
            }
            load(&mut core.cpu, &r);
            Ok(())
        })
    }

    fn register_request(&self, op: Op, b: &mut Bytes) -> Res {
        let (n, id) = (self.index(b.i32(0))?, b.i32(4));
        match op {
            Op::SetRegister => self.set_register(n, id, b.u64(8)),
            Op::GetRegister => {
                let value = self.get_register(n, id)?;
                b.put_u64(8, value);
                Ok(())
            }
            Op::SetSegment => {
                let (base, limit, access) = (b.u64(8), b.u32(16), b.u32(20));
                self.check_descriptor(id, limit, access);
                self.with(n, |core| {
                    let mut r = core.cpu.regs();
                    if !regs::set_descriptor(&mut r, id, base, limit, access) {
                        return Err(libc::EINVAL);
                    }
                    load(&mut core.cpu, &r);
                    Ok(())
                })
            }
            _ => {
                let found = self.with(n, |core| regs::get_descriptor(&mut core.cpu.regs(), id));
                let (base, limit, access) = found.ok_or(libc::EINVAL)?;
                b.put_u64(8, base);
                b.put_u32(16, limit);
                b.put_u32(20, access);
                Ok(())
            }
        }
    }

    /// What a VM entry refuses in a descriptor.
    fn check_descriptor(&self, id: i32, limit: u32, access: u32) {
        const RESERVED: u32 = 0xfffe_0f00;
        const UNUSABLE: u32 = 1 << 16;
        const G: u32 = 1 << 15;
        if matches!(id, 30 | 31) {
            if access != 0 {
                self.rules.broken(&format!("a descriptor table register with access {access:#x}"));
            }
            return;
        }
        if access & UNUSABLE != 0 {
            return;
        }
        let pages = access & G != 0 && limit & 0xfff != 0xfff;
        let bytes = access & G == 0 && limit >> 20 != 0;
        if access & RESERVED != 0 || pages || bytes {
            self.rules.broken(&format!("segment {id}: access {access:#x} and limit {limit:#x} do not fit each other"));
        }
    }

    fn register_set(&self, set: bool, b: &mut Bytes) -> Res {
        let (n, count) = (self.index(b.i32(0))?, b.u32(4) as usize);
        if count > self.version.registers() as usize {
            return Err(libc::EINVAL);
        }
        let (ids, values) = (b.u64(8), b.u64(16));
        for k in 0..count as u64 {
            let (mut id, mut value) = ([0; 4], [0; 8]);
            copy_in(ids + 4 * k, &mut id)?;
            let id = i32::from_le_bytes(id);
            if set {
                copy_in(values + 8 * k, &mut value)?;
                self.set_register(n, id, u64::from_le_bytes(value))?;
            } else {
                copy_out(values + 8 * k, &self.get_register(n, id)?.to_le_bytes())?;
            }
        }
        Ok(())
    }

    fn kernemu(&self, write: bool, b: &mut Bytes) -> Res {
        let (n, size, gpa, value) = (self.index(b.i32(0))?, b.u8(4), b.u64(8), b.u64(16));
        if size > 3 {
            return Err(libc::EINVAL);
        }
        let width = 1 << size;
        match gpa {
            0xfee0_0000..0xfee0_1000 => {
                if width != 4 || gpa & 15 != 0 {
                    return Err(libc::EINVAL);
                }
                let lapic = self.lapic(n);
                let offset = gpa as u32 & 0xfff;
                if write {
                    lapic.write(offset, value as u32);
                } else {
                    b.put_u64(16, lapic.read(offset).into());
                }
            }
            0xfec0_0000..0xfec0_1000 | 0xfed0_0000..0xfed0_0400 => {
                if write {
                    self.chips.device_write(gpa, width, value);
                } else {
                    b.put_u64(16, self.chips.device_read(gpa, width));
                }
            }
            _ => return Err(libc::EINVAL),
        }
        Ok(())
    }

    fn intinfo(&self, set: bool, b: &mut Bytes) -> Res {
        const VALID: u64 = 1 << 31;
        let n = self.index(b.i32(0))?;
        if !set {
            let pending = self.with(n, |core| core.pending);
            let word = pending.map_or(0, |f| {
                let error = f.error.map_or(0, |e| 1 << 11 | u64::from(e) << 32);
                u64::from(f.vector) | 3 << 8 | VALID | error
            });
            b.put_u64(8, 0);
            b.put_u64(16, word);
            return Ok(());
        }
        let info = b.u64(8);
        if info & VALID == 0 {
            self.with(n, |core| core.debts.taken_back());
            return Ok(());
        }
        let (vector, kind) = (info as u8, info >> 8 & 7);
        let wrong = info & 0x7fff_f000 != 0 || kind == 2 && vector != 2 || kind == 3 && vector >= 32;
        if wrong {
            return Err(libc::EINVAL);
        }
        let error = (info >> 11 & 1 != 0).then_some((info >> 32) as u32);
        self.with(n, |core| core.pending = Some(Fault { vector, error, cr2: core.cpu.regs().cr2 }));
        Ok(())
    }

    fn inject(&self, b: &mut Bytes) -> Res {
        let (n, vector) = (self.index(b.i32(0))?, b.i32(4));
        let (code, valid, restart) = (b.u32(8), b.i32(12), b.i32(16));
        if !(0..32).contains(&vector) || vector == 8 {
            return Err(libc::EINVAL);
        }
        let has_code = matches!(vector, 10..=14 | 17);
        if (valid != 0) != has_code {
            self.rules.broken(&format!("VM_INJECT_EXCEPTION: vector {vector} with error code: {}", valid != 0));
        }
        if matches!(vector, 6 | 10..=14 | 17) && restart == 0 {
            self.rules.broken(&format!("VM_INJECT_EXCEPTION: vector {vector} is a fault and does not restart"));
        }
        self.with(n, |core| {
            if core.pending.is_some() {
                return Err(libc::EBUSY);
            }
            core.debts.injected();
            let real = core.cpu.regs().cr0 & 1 == 0;
            let error = (valid != 0 && !real).then_some(code);
            core.pending = Some(Fault { vector: vector as u8, error, cr2: core.cpu.regs().cr2 });
            if restart != 0 {
                core.next = core.cpu.rip();
            }
            Ok(())
        })
    }

    fn stats(&self, row: &Row, b: &mut Bytes) -> Res {
        if row.op == Op::StatDesc {
            let index = b.i32(0);
            if !(0..STATISTICS as i32).contains(&index) {
                return Err(libc::EINVAL);
            }
            // The names that tools read, the first, and room for the rest of what the kernels have.
            let name = match index {
                0 => "total number of vm exits".to_owned(),
                1 => "Resident memory".to_owned(),
                2 => "vcpu total runtime".to_owned(),
                _ => format!("statistic {index}"),
            };
            let mut field = [0; 128];
            field[..name.len()].copy_from_slice(name.as_bytes());
            b.put(4, &field);
            return Ok(());
        }
        let n = self.index(b.i32(0))?;
        let (first, count_at, values_at) = if row.size() == 536 { (0, 4, 24) } else { (b.i32(4), 8, 32) };
        let first = usize::try_from(first).map_err(|_| libc::EINVAL)?;
        let count = STATISTICS.saturating_sub(first).min(PAGE);
        // A vCPU that runs holds its core.
        let runs = self.cores[n].try_lock().ok().and_then(|c| c.as_ref().map(|c| c.runs)).unwrap_or(0);
        b.put_u32(count_at, count as u32);
        for k in 0..count {
            let value = match first + k {
                0 => runs,
                1 => self.memory.lock().unwrap().bytes(),
                2 => runs * 1000,
                _ => 0,
            };
            b.put_u64(values_at + 8 * k, value);
        }
        Ok(())
    }

    fn x2apic(&self, set: bool, b: &mut Bytes) -> Res {
        let n = self.index(b.i32(0))?;
        if !set {
            let on = self.world().vcpus[n].x2apic;
            b.put_u32(4, on.into());
            return Ok(());
        }
        let state = b.i32(4);
        if !(0..=1).contains(&state) {
            return Err(libc::EINVAL);
        }
        if self.world().vcpus[n].ran {
            self.rules.broken(&format!("VM_SET_X2APIC_STATE of vCPU {n}, which has run"));
        }
        self.set_x2apic(n, state == 1);
        Ok(())
    }

    fn topology(&self, set: bool, b: &mut Bytes) -> Res {
        let mut w = self.world();
        if !set {
            for (k, n) in w.topology.iter().enumerate() {
                b.put_u16(2 * k, *n);
            }
            b.put_u16(6, self.version.max_cpus() as u16);
            return Ok(());
        }
        let given = [b.u16(0), b.u16(2), b.u16(4)];
        if b.u16(6) != 0 {
            if self.version == Version::V13_1 {
                return Err(libc::EINVAL);
            }
            drop(w);
            self.rules.broken("VM_SET_TOPOLOGY: maxcpus is not 0");
            return Ok(());
        }
        let total = given.iter().map(|n| u32::from(*n)).product::<u32>();
        if total == 0 || total > self.version.max_cpus() as u32 {
            return Err(libc::EINVAL);
        }
        let ran = w.ran;
        w.topology = given;
        drop(w);
        if ran {
            self.rules.broken("VM_SET_TOPOLOGY after a vCPU has run");
        }
        self.set_x2apic(0, self.world_x2apic());
        Ok(())
    }

    fn world_x2apic(&self) -> bool {
        self.world().vcpus[0].x2apic
    }

    fn cpus(&self, op: Op, b: &mut Bytes) -> Res {
        let mut w = self.world();
        match op {
            Op::Activate => {
                let n = self.index(b.i32(0))?;
                if w.active >> n & 1 != 0 {
                    return Err(libc::EBUSY);
                }
                w.active |= 1 << n;
                drop(w);
                self.with(n, |_| ());
                Ok(())
            }
            Op::GetCpus => {
                let set = match b.i32(0) {
                    0 => w.active,
                    1 => w.suspended,
                    2 => w.held,
                    _ => return Err(libc::EINVAL),
                };
                let size = b.i32(4);
                let (least, most) = match self.version {
                    Version::V15 => (((64 - set.leading_zeros()).div_ceil(8) as i32).max(1), 1024),
                    Version::V14 => (128, 128),
                    _ => (32, 32),
                };
                if size < least || size > most {
                    return Err(libc::ERANGE);
                }
                let mut bytes = vec![0; size as usize];
                bytes.iter_mut().zip(set.to_le_bytes()).for_each(|(to, from)| *to = from);
                copy_out(b.u64(8), &bytes)
            }
            Op::SuspendCpu => {
                let which = self.set_of(b.i32(0), w.active, w.active)?;
                w.held |= which;
                drop(w);
                (0..self.cores.len()).filter(|n| which >> n & 1 != 0).for_each(|n| self.nudge(n));
                Ok(())
            }
            _ => {
                let which = self.set_of(b.i32(0), w.held, w.held)?;
                w.held &= !which;
                Ok(())
            }
        }
    }

    /// The processors that an id names: all of `every` for -1, else one of `among`.
    fn set_of(&self, id: i32, every: u64, among: u64) -> Res<u64> {
        if id == -1 {
            return Ok(every);
        }
        let n = self.index(id)?;
        if among >> n & 1 == 0 { Err(libc::EINVAL) } else { Ok(1 << n) }
    }

    fn ioapic_pin(&self, pin: i32, assert: bool) {
        let count = self.chips.ioapic.count(pin as usize, assert);
        self.counted("I/O APIC pin", pin, count);
    }

    fn pic_line(&self, line: i32, assert: bool) {
        let count = self.chips.pic_count(line as usize, assert);
        self.counted("8259 line", line, count);
    }

    fn counted(&self, what: &str, n: i32, count: i32) {
        if !(0..=1).contains(&count) {
            let done = if count > 1 { "asserted" } else { "deasserted" };
            self.rules.broken(&format!("{what} {n} is {done} twice: its count is {count}"));
        }
    }

    fn isa(&self, b: &Bytes) -> Res<(i32, Option<i32>)> {
        let (pic, ioapic) = (b.i32(0), b.i32(4));
        if !(0..16).contains(&pic) || !(-1..PINS as i32).contains(&ioapic) {
            return Err(libc::EINVAL);
        }
        Ok((pic, (ioapic >= 0).then_some(ioapic)))
    }

    fn interrupt(&self, op: Op, b: &mut Bytes) -> Res {
        match op {
            Op::IoapicAssert | Op::IoapicDeassert | Op::IoapicPulse => {
                let pin = b.i32(0);
                if !(0..PINS as i32).contains(&pin) {
                    return Err(libc::EINVAL);
                }
                if op != Op::IoapicDeassert {
                    self.ioapic_pin(pin, true);
                }
                if op != Op::IoapicAssert {
                    self.ioapic_pin(pin, false);
                }
            }
            Op::IsaAssert | Op::IsaDeassert | Op::IsaPulse => {
                let (pic, ioapic) = self.isa(b)?;
                for assert in [true, false] {
                    if op == Op::IsaPulse || (op == Op::IsaAssert) == assert {
                        self.pic_line(pic, assert);
                        ioapic.into_iter().for_each(|pin| self.ioapic_pin(pin, assert));
                    }
                }
            }
            Op::IsaTrigger => {
                let (line, trigger) = (b.i32(0), b.i32(4));
                let fixed = matches!(line, 0 | 1 | 2 | 8 | 13) && trigger == 1;
                if !(0..16).contains(&line) || !(0..=1).contains(&trigger) || fixed {
                    return Err(libc::EINVAL);
                }
                self.chips.set_trigger(line as u8, trigger == 1);
            }
            Op::LapicMsi => {
                let (msg, addr) = (b.u64(0), b.u64(8));
                if addr >> 20 != 0xfee {
                    let swapped = if msg >> 20 == 0xfee { ": it and the message are swapped" } else { "" };
                    self.rules.broken(&format!("VM_LAPIC_MSI: the address is {addr:#x}{swapped}"));
                    return Err(libc::EINVAL);
                }
                // Destination mode is logical only with the redirection hint.
                self.chips.bus.send(Message {
                    dest: (addr >> 12 & 0xff) as u32,
                    logical: addr & 12 == 12,
                    mode: (msg >> 8 & 7) as u32,
                    vector: msg as u8,
                    level: false,
                });
            }
            Op::LapicIrq => {
                let (n, vector) = (self.index(b.i32(0))?, b.i32(4));
                if !(16..256).contains(&vector) {
                    return Err(libc::EINVAL);
                }
                let dest = n as u32;
                self.chips.bus.send(Message { dest, logical: false, mode: 0, vector: vector as u8, level: false });
            }
            Op::InjectNmi => {
                let n = self.index(b.i32(0))?;
                self.lapic_of(n).ok_or(libc::EINVAL)?.nmi();
            }
            Op::LapicLocalIrq => {
                let (id, entry) = (b.i32(0), b.i32(4));
                if id < -1 || !(0..7).contains(&entry) {
                    return Err(libc::EINVAL);
                }
                for lapic in self.chips.bus.lapics() {
                    if id != -1 && lapic.index() != id as u32 {
                        continue;
                    }
                    for level in [true, false] {
                        match entry {
                            0 => lapic.set_lint0(level),
                            1 => lapic.set_lint1(level),
                            _ => {}
                        }
                    }
                }
            }
            _ => return Err(libc::ENOTTY),
        }
        Ok(())
    }
}
