//! Asks the running kernel's vmm(4) what it is: to be run as root on FreeBSD 13, 14 and 15.
//!
//! It makes a machine of its own name, asks all that can be asked without a guest, maps 2 MiB, runs a few real-mode
//! instructions, and destroys the machine. Each line is a question and the answer; an answer that is refused has its
//! errno. Nothing is left behind, and no other machine is touched.

#[cfg(not(target_os = "freebsd"))]
fn main() -> std::process::ExitCode {
    eprintln!("probe: this is no FreeBSD");
    std::process::ExitCode::from(4)
}

#[cfg(target_os = "freebsd")]
fn main() -> std::process::ExitCode {
    match probe::main() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("probe: {error}");
            std::process::ExitCode::from(4)
        }
    }
}

#[cfg(target_os = "freebsd")]
mod probe {
    use std::error::Error;
    use std::fmt::Debug;
    use std::io;
    use std::ptr::null_mut;
    use std::sync::Arc;

    use vmmapi_sys::common::{VM_MEMMAP_F_WIRED, seg_desc, vm_memmap};
    use vmmapi_sys::memory::{PROT_EXEC, PROT_READ, PROT_WRITE};
    use vmmapi_sys::{Cap, Exit, Kernel, Lifetime, Name, Part, Reg, RunBuffer, Suspend, System, Vm, Vmm};

    const MEMORY: usize = 2 << 20;

    /// mov al, 5Ah; out 80h, al; mov fs:[0], al, where nothing is mapped; cli; hlt.
    const GUEST: &[u8] = &[0xb0, 0x5a, 0xe6, 0x80, 0x64, 0xa2, 0, 0, 0xfa, 0xf4];
    /// Where it lies, and its CLI.
    const ENTRY: u64 = 0x1000;
    const CLI: u64 = ENTRY + 8;

    fn say(question: &str, answer: Result<impl Debug, io::Error>) {
        match answer {
            Ok(answer) => println!("{question}: {answer:x?}"),
            Err(error) => println!("{question}: {error}"),
        }
    }

    pub fn main() -> Result<(), Box<dyn Error>> {
        let vmm = Vmm::attach(Arc::new(System))?;
        println!("kern.osreldate: {}", vmm.osreldate());
        println!("/dev/vmmctl: {}, open: {}", vmm.has_control_node(), vmm.control().is_some());
        for name in [
            "maxcpu",
            "maxvmms",
            "ipinum",
            "halt_detection",
            "vmx.initialized",
            "vmx.cap.unrestricted_guest",
            "svm.num_asids",
            "iommu.initialized",
        ] {
            say(&format!("hw.vmm.{name}"), System.sysctl(&format!("hw.vmm.{name}")));
        }
        let name = Name::new(&format!("bhyve-rs-probe-{}", std::process::id()))?;
        println!("create: {:?}", vmm.create(&name, Lifetime::Descriptor)?);
        let asked = ask(&vmm, &name);
        say("destroy", vmm.destroy(&name));
        println!("then open: {:?}", vmm.open(&name).map(drop));
        asked
    }

    fn ask(vmm: &Vmm, name: &Name) -> Result<(), Box<dyn Error>> {
        let vm = vmm.open(name)?;
        println!("ABI by probes: {:?}", vm.abi().version);
        say("suspended at first", vm.suspended_cpus().map(|set| set.iter().collect::<Vec<_>>()));
        say("topology", vm.topology());
        say("set topology 1,1,1", vm.set_topology(1, 1, 1));
        say("I/O APIC pins", vm.ioapic_pins());
        say("HPET capabilities", vm.hpet_capabilities());
        for (cap, name) in Cap::ALL {
            say(name, vm.capability(0, *cap));
        }
        say("set VM_CAP_IPI_EXIT", vm.set_capability(0, Cap::IpiExit, true));
        say("set VM_CAP_HALT_EXIT", vm.set_capability(0, Cap::HaltExit, true));
        say("set VM_CAP_UNRESTRICTED_GUEST", vm.set_capability(0, Cap::UnrestrictedGuest, true));
        for (reg, name) in &Reg::ALL[Reg::EntryInstLength as usize..] {
            say(name, vm.register(0, *reg));
        }
        for offset in [0x00, 0x0a, 0x0e, 0x34, 0x5b, 0x7f] {
            say(&format!("CMOS {offset:x}"), vm.rtc_read(offset));
        }
        say("RTC", vm.rtc_time());
        say("x2APIC", vm.x2apic(0));
        let mut snapshot = vec![0; 1 << 20];
        say("snapshot of the HPET", vm.save(Part::Vhpet, &mut snapshot));
        for irq in [0, 1, 2, 8, 9, 13] {
            say(&format!("IRQ {irq} level"), vm.set_isa_trigger(irq, true));
            say(&format!("IRQ {irq} edge"), vm.set_isa_trigger(irq, false));
        }
        memory(&vm)?;
        run(&vm)?;
        match vm.stats(0) {
            Ok(stats) => {
                for (index, value) in stats.iter().enumerate() {
                    println!("statistic {index}: {:?} = {value}", vm.stat_description(index as u32)?);
                }
            }
            Err(error) => println!("statistics: {error}"),
        }
        say("reinit", vm.reinit());
        say("mapping after it", vm.next_mapping(0));
        Ok(())
    }

    #[expect(unsafe_code, reason = "maps guest memory")]
    fn memory(vm: &Vm) -> Result<(), Box<dyn Error>> {
        vm.alloc_memseg(0, MEMORY as u64, None)?;
        say("allocated again", vm.alloc_memseg(0, MEMORY as u64, None));
        say("allocated otherwise", vm.alloc_memseg(0, 2 * MEMORY as u64, None));
        say("segment", vm.memseg(0));
        let prot = PROT_READ | PROT_WRITE | PROT_EXEC;
        let mut map = vm_memmap { gpa: 0, segid: 0, pad: 0, segoff: 0, len: MEMORY as u64, prot, flags: 0 };
        vm.mmap_memseg(&map)?;
        say("mapped again", vm.mmap_memseg(&map));
        map.flags = VM_MEMMAP_F_WIRED;
        say("mapped again, wired", vm.mmap_memseg(&map));
        say("mapping", vm.next_mapping(0));
        say("device memory", vm.alloc_memseg(vm.abi().segments.bootrom, 1 << 24, Some("bootrom")));
        say("its node", vm.devmem("bootrom").map(drop));
        // SAFETY: anonymous memory, at a place of the kernel's choice.
        let at = unsafe { libc::mmap(null_mut(), MEMORY, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANON, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error().into());
        }
        let at = at.cast::<u8>();
        // SAFETY: it is the mapping made above, which nothing refers to; the guest lies inside.
        unsafe {
            vm.map_memory(at, MEMORY, 0)?;
            at.add(ENTRY as usize).copy_from_nonoverlapping(GUEST.as_ptr(), GUEST.len());
        }
        Ok(())
    }

    fn run(vm: &Vm) -> Result<(), Box<dyn Error>> {
        let mut buffer = RunBuffer::default();
        say("run before activation", vm.run(0, &mut buffer));
        vm.activate_cpu(0)?;
        say("activated again", vm.activate_cpu(0));
        say("hold", vm.suspend_cpu(Some(0)));
        say("run while held", vm.run(0, &mut buffer));
        say("resume", vm.resume_cpu(Some(0)));
        say("resume again", vm.resume_cpu(Some(0)));
        let flat = seg_desc { base: 0, limit: 0xffff, access: 0x93 };
        for reg in [Reg::Cs, Reg::Ds, Reg::Es, Reg::Ss, Reg::Fs, Reg::Gs] {
            vm.set_register(0, reg, 0)?;
            vm.set_segment(0, reg, flat)?;
        }
        // Beyond the memory.
        vm.set_segment(0, Reg::Fs, seg_desc { base: 2 * MEMORY as u64, ..flat })?;
        let table = seg_desc { base: 0, limit: 0xffff, access: 0 };
        vm.set_segment(0, Reg::Gdtr, table)?;
        vm.set_segment(0, Reg::Idtr, table)?;
        vm.set_register(0, Reg::Tr, 0)?;
        vm.set_segment(0, Reg::Tr, seg_desc { base: 0, limit: 0, access: 0x8b })?;
        vm.set_register(0, Reg::Ldtr, 0)?;
        vm.set_segment(0, Reg::Ldtr, seg_desc { base: 0, limit: 0xffff, access: 0x82 })?;
        let state =
            [(Reg::Cr0, 0x20), (Reg::Cr3, 0), (Reg::Cr4, 0), (Reg::Efer, 0), (Reg::Rflags, 2), (Reg::Rip, ENTRY)];
        for (reg, value) in state {
            vm.set_register(0, reg, value)?;
        }
        // The port, the address that nothing is mapped at, and the end; some more for runs that say nothing.
        for _ in 0..8 {
            let exit = match vm.run(0, &mut buffer) {
                Ok(exit) => exit,
                Err(error) => {
                    println!("run: {error}");
                    break;
                }
            };
            println!("run: {exit:x?}, then RIP {:x}", vm.register(0, Reg::Rip)?);
            match exit.exit {
                // Undecoded, the instruction is ours to step over.
                Exit::InstEmul(access) if !access.decoded => vm.set_register(0, Reg::Rip, CLI)?,
                Exit::Suspended { .. } => break,
                _ => {}
            }
        }
        say("run after suspension", vm.run(0, &mut buffer));
        say("suspend", vm.suspend(Suspend::PowerOff));
        Ok(())
    }
}
