//! The processor's model, cut to what this host's kernel can give.

use anyhow::Context;
use cpu::{Feature, Features, Model};
use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_msr_entry,
};
use kvm_ioctls::{Cap, Kvm};

/// What needs nothing of the host: the local APIC is the kernel's, and the others are promises that hold for any guest.
const OURS: Features =
    Features::of(&[Feature::Apic, Feature::X2apic, Feature::Arat, Feature::Ht, Feature::Ss, Feature::Erms]);

const ARCH_CAPABILITIES: u32 = 0x10a;

/// The model that guests get, and the names of the features that they go without. A feature that the processor has and
/// the model lacks is not shown; its instructions work all the same.
pub(super) fn fit(kvm: &Kvm, model: &Model, cpus: u32) -> anyhow::Result<(Model, Vec<&'static str>)> {
    let host = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).context("KVM_GET_SUPPORTED_CPUID")?;
    let register = |leaf: u32, n: usize| {
        let entry = host.as_slice().iter().find(|e| e.function == leaf && e.index == 0);
        entry.map_or(0, |e| [e.eax, e.ebx, e.ecx, e.edx][n])
    };
    let mut there = Features::shown(register).with(&OURS.iter().collect::<Vec<_>>());
    if kvm.check_extension(Cap::TscDeadlineTimer) {
        there = there.with(&[Feature::TscDeadline]);
    }
    let mut fitted = Model { cpus, ..model.clone() };
    let missing: Vec<Feature> = model.features.iter().filter(|f| !there.has(*f)).collect();
    let features = missing.into_iter().fold(model.features, Features::bereft_of);
    fitted.features = features;
    if fitted.has(Feature::ArchCapabilities) {
        // Which faults of the processor guests must work around is not the model's to say.
        fitted.arch_capabilities = feature_msr(kvm, ARCH_CAPABILITIES);
    }
    let dropped = model.features.iter().filter(|f| !features.has(*f)).map(Feature::name).collect();
    Ok((fitted, dropped))
}

/// What the host says in a register about its features; 0 if it has no such one.
fn feature_msr(kvm: &Kvm, index: u32) -> u64 {
    let entry = kvm_msr_entry { index, ..Default::default() };
    let Ok(mut msrs) = Msrs::from_entries(&[entry]) else { return 0 };
    match kvm.get_msrs(&mut msrs) {
        Ok(1) => msrs.as_slice()[0].data,
        _ => 0,
    }
}

/// CPUID of the processor of this number.
pub(super) fn cpuid(model: &Model, index: u32) -> CpuId {
    let entries: Vec<kvm_cpuid_entry2> = model
        .leaves(index)
        .into_iter()
        .map(|leaf| kvm_cpuid_entry2 {
            function: leaf.leaf,
            index: leaf.sub.unwrap_or(0),
            flags: if leaf.sub.is_some() { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
            eax: leaf.regs[0],
            ebx: leaf.regs[1],
            ecx: leaf.regs[2],
            edx: leaf.regs[3],
            ..Default::default()
        })
        .collect();
    CpuId::from_entries(&entries).expect("fewer leaves than the kernel takes")
}
