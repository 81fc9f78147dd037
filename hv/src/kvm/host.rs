//! What KVM is on this host, in words that say what to do about it.

use std::fs;
use std::io::{Error, ErrorKind};
use std::os::unix::fs::MetadataExt;

use kvm_ioctls::{Cap, Kvm};

const API: i32 = 12;

/// What must be there, with the Linux that brought it; the newest thing, an attribute of processors, shows only on one.
const NEEDED: [(Cap, &str, &str); 8] = [
    (Cap::SplitIrqchip, "the split irqchip", "4.4"),
    (Cap::SignalMsi, "MSIs", "3.5"),
    (Cap::IrqRouting, "interrupt routing", "2.6.31"),
    (Cap::ReadonlyMem, "read-only memory", "3.7"),
    (Cap::ImmediateExit, "immediate exits", "4.12"),
    (Cap::VcpuEvents, "events of processors", "2.6.33"),
    (Cap::Xsave, "the XSAVE state", "2.6.36"),
    (Cap::X86UserSpaceMsr, "exits for MSRs", "5.10"),
];

/// Whether the processor has VT-x or SVM, and not just a kernel that makes up for it.
pub(super) fn virtualizes() -> bool {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut flags = info.lines().filter(|line| line.starts_with("flags"));
    flags.next().is_some_and(|line| line.split_whitespace().any(|flag| matches!(flag, "vmx" | "svm")))
}

/// Opens /dev/kvm.
pub(super) fn open() -> Result<Kvm, String> {
    let kvm = Kvm::new().map_err(|e| refused(&Error::from_raw_os_error(e.errno())))?;
    let version = kvm.get_api_version();
    if version != API {
        return Err(format!("/dev/kvm speaks version {version} of its interface, and this program {API}"));
    }
    match NEEDED.into_iter().find(|(cap, ..)| !kvm.check_extension(*cap)) {
        Some((_, what, since)) => Err(format!("this kernel's KVM lacks {what}, which Linux has had since {since}")),
        None => Ok(kvm),
    }
}

/// Why it cannot be opened, and what helps.
fn refused(error: &Error) -> String {
    match error.kind() {
        ErrorKind::NotFound if virtualizes() => {
            "there is no /dev/kvm: load its module (modprobe kvm_intel or kvm_amd)".to_owned()
        }
        ErrorKind::NotFound => "there is no /dev/kvm, and the processor shows neither VT-x nor SVM: the firmware's \
                                setup, or the hypervisor below, may have it turned off"
            .to_owned(),
        ErrorKind::PermissionDenied => {
            let node = fs::metadata("/dev/kvm").map(|m| (m.mode(), group(m.gid()))).unwrap_or_default();
            format!("no right to open /dev/kvm: {}", remedy(node.0, node.1.as_deref()))
        }
        _ => format!("/dev/kvm: {error}"),
    }
}

/// What gives the right to open a node of this mode and group.
fn remedy(mode: u32, group: Option<&str>) -> String {
    const GROUP_OPENS: u32 = 0o060;
    match group.filter(|_| mode & GROUP_OPENS == GROUP_OPENS) {
        Some(name) => format!("become a member of the group {name} (usermod -aG {name} USER)"),
        None => "only its owner has; as such, give it a group (chgrp kvm /dev/kvm; chmod 660 /dev/kvm)".to_owned(),
    }
}

/// Whether a machine may have so many processors.
pub(super) fn room(cpus: u32, most: usize) -> Result<(), String> {
    if cpus as usize <= most {
        return Ok(());
    }
    Err(format!("KVM on this host runs up to {most} processors, and cpus = {cpus} asks for more"))
}

/// The name of a group.
fn group(gid: u32) -> Option<String> {
    let groups = fs::read_to_string("/etc/group").ok()?;
    let of = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(gid)).then(|| name.to_owned())
    };
    groups.lines().find_map(of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_not_open_it_is_told_the_group() {
        let says = refused(&Error::from(ErrorKind::PermissionDenied));
        assert!(says.starts_with("no right to open /dev/kvm: "), "{says}");
        assert!(remedy(0o660, Some("kvm")).contains("usermod -aG kvm"));
        assert!(remedy(0o600, Some("root")).contains("chgrp kvm"), "membership would not help");
        if fs::exists("/etc/group").is_ok_and(|there| there) {
            assert_eq!(group(0).as_deref(), Some("root"));
        }
        assert_eq!(group(u32::MAX), None);
        assert!(refused(&Error::from(ErrorKind::NotFound)).contains("no /dev/kvm"));
    }

    #[test]
    fn more_processors_than_the_kernel_runs_are_refused_by_number() {
        assert_eq!(room(8, 8), Ok(()));
        let says = room(9, 8).unwrap_err();
        assert!(says.contains("up to 8") && says.contains("cpus = 9"), "{says}");
    }
}
