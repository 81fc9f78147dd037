//! The processor that the section `[cpu]` describes: a named model, and what is changed of it.

use cfg::{Error, Node, Problem};
use cpu::{Feature, Model};

/// RAM below this address; the rest lies above 4 GiB.
pub const LOW_LIMIT: u64 = 0xc000_0000;
/// What profiles have that name no other.
const DEFAULT: &str = "x86-64-v2";

/// The words of `cpu.model`.
pub fn models() -> Vec<&'static str> {
    Model::names().collect()
}

/// The words of `cpu.enable` and `cpu.disable`, those of features that we cannot give included: to disable them is no
/// mistake, and to enable them is refused for the right reason.
pub fn features() -> Vec<&'static str> {
    Feature::names().chain(Feature::names_elsewhere().iter().copied()).collect()
}

/// The processor of a checked configuration.
///
/// # Errors
/// What cannot be together.
pub fn model(node: &Node) -> Result<Model, Vec<Error>> {
    let cpu = node.child("cpu");
    let mut model = Model::named(cpu.maybe::<&str>("model").unwrap_or(DEFAULT)).unwrap_or_default();
    if let Some(vendor) = cpu.maybe::<&str>("vendor") {
        model.vendor = match vendor {
            "amd" => *b"AuthenticAMD",
            "via" => *b"CentaurHauls",
            _ => *b"GenuineIntel",
        };
    }
    for key in ["family", "number", "stepping"] {
        if let Some(value) = cpu.maybe::<i64>(key) {
            model.signature = with_field(model.signature, key, value as u32);
        }
    }
    model.ignore_unknown_msrs = !cpu.bool("strictmsr");
    let mut errors = change_features(cpu, &mut model);
    let parts = ["sockets", "cores", "threads"].map(|key| cpu.maybe::<i64>(key));
    if parts.iter().any(Option::is_some) {
        let [sockets, cores, threads] = parts;
        let (cpus, cores, threads) = (node.int("cpus"), cores.unwrap_or(1), threads.unwrap_or(1));
        let sockets = sockets.unwrap_or(cpus / (cores * threads));
        if sockets * cores * threads != cpus {
            let message = format!("{sockets} sockets of {cores} cores with {threads} threads are no {cpus} processors");
            let key = ["sockets", "cores", "threads"].into_iter().find(|key| cpu.is_given(key)).unwrap_or("sockets");
            errors.push(cpu.error(key, Problem::new(message).allowed("sockets * cores * threads = cpus")));
        }
        (model.cores, model.threads) = (cores as u32, threads as u32);
    }
    model.hypervisor = match cpu.text("hypervisor") {
        "kvm" => Some(Model::KVM),
        "bhyve" => Some(Model::BHYVE),
        _ => None,
    };
    let name = model.name;
    if model.hypervisor.is_some() && !model.has(Feature::Cpuid) {
        errors.push(cpu.error("hypervisor", Problem::new(format!("the {name} has no CPUID to show it"))));
    }
    if node.int("cpus") > 1 && !model.has(Feature::Apic) {
        let message = format!("several processors need a local APIC, and the {name} has none");
        errors.push(node.error("cpus", Problem::new(message).allowed("1")));
    }
    // Memory that does not fit below the PCI hole goes above 4 GiB.
    let (memory, limit) = (node.size("memory"), 1u64 << model.phys_bits);
    let most = if limit > 1 << 32 { limit - (1 << 32) + LOW_LIMIT } else { LOW_LIMIT };
    if memory > most {
        let message = format!("too much for the {} address bits of the {name}", model.phys_bits);
        errors.push(node.error("memory", Problem::new(message).allowed(format!("up to {}G", most >> 30))));
    }
    if errors.is_empty() { Ok(model) } else { Err(errors) }
}

/// Applies `enable` and `disable`. A feature goes with all that need it, but comes alone.
fn change_features(cpu: &Node, model: &mut Model) -> Vec<Error> {
    let mut errors = Vec::new();
    let mut features = model.features;
    let mut enabled = Vec::new();
    for word in cpu.words("enable") {
        match Feature::named(word) {
            Some(feature) => {
                features = features.with(&[feature]);
                enabled.push(feature);
            }
            None => {
                let names: Vec<&str> = Feature::names().collect();
                let problem = Problem::new(format!("there is no {word} in this version")).allowed(names.join(", "));
                errors.push(cpu.error("enable", problem));
            }
        }
    }
    for word in cpu.words("disable") {
        match Feature::named(word) {
            Some(Feature::Fpu) => errors.push(cpu.error("disable", Problem::new("every model has its fpu"))),
            Some(feature) => features = features.bereft_of(feature),
            None => {}
        }
    }
    for feature in enabled {
        let missing: Vec<&str> = features.missing_for(feature).iter().map(Feature::name).collect();
        let message = if !missing.is_empty() {
            format!("{} needs {}, which the {} is left without", feature.name(), missing.join(", "), model.name)
        } else if !features.has(feature) {
            format!("{} is disabled too", feature.name())
        } else {
            continue;
        };
        errors.push(cpu.error("enable", Problem::new(message)));
    }
    model.set_features(features);
    errors
}

/// Replaces a field of CPUID.1:EAX; numbers include the extended parts.
fn with_field(signature: u32, key: &str, value: u32) -> u32 {
    match key {
        "family" => signature & !0x0ff0_0f00 | value.min(15) << 8 | value.saturating_sub(15) << 20,
        "number" => signature & !0x000f_00f0 | (value & 15) << 4 | (value >> 4) << 16,
        _ => signature & !15 | value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signature_fields_encode_their_extended_parts() {
        assert_eq!(with_field(0, "family", 6), 0x600);
        assert_eq!(with_field(0xffff_ffff, "family", 0x17), 0xf08f_ffff);
        assert_eq!(with_field(0x600, "number", 0x3a), 0x0003_06a0);
    }

    #[test]
    fn the_manual_lists_every_model_with_its_signature_and_features() {
        let rows = include_str!("../../docs/processors.md").lines().filter(|line| line.starts_with("| `"));
        let mut listed = Vec::new();
        for row in rows {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let named = |name: &str| Model::named(name.trim_matches('`')).expect(row);
            let model = named(cells[1]);
            let signature = cells[3].split(' ').next().expect(row);
            assert_eq!(u32::from_str_radix(signature, 16), Ok(model.signature), "{row}");
            if let Some((base, more)) = cells[4].split_once(':') {
                let words = more.split('(').next().expect(row).split_whitespace();
                let more: Vec<Feature> = words.map(|word| Feature::named(word).expect(word)).collect();
                assert_eq!(named(base).features.with(&more), model.features, "{row}");
            }
            listed.push(model.name);
        }
        listed.sort_unstable();
        let mut all = models();
        all.sort_unstable();
        assert_eq!(listed, all);
    }

    fn read(settings: &[&str]) -> Result<Model, String> {
        let node = crate::config::from_settings(&[&["name=x"], settings].concat()).map_err(|e| e.to_string())?;
        Ok(model(&node).expect("checked"))
    }

    #[test]
    fn a_model_is_taken_by_name_and_changed_by_features() {
        let m = read(&["cpu.model=pentium3", "cpu.enable=sse2,nx", "cpu.disable=sep,avx"]).unwrap();
        assert!(m.has(Feature::Sse2) && m.has(Feature::Nx) && !m.has(Feature::Sep));
        assert_eq!((m.signature, m.max_extended), (0x68a, 0x8000_0008), "NX must have a leaf to show in");
        let m = read(&["cpu.disable=sse3"]).unwrap();
        assert!(m.has(Feature::Sse2) && m.has(Feature::Lm));
        assert!(!m.has(Feature::Sse42) && !m.has(Feature::Ssse3), "what needs it goes with it");
        assert_eq!(read(&["cpu.model=486", "cpu.enable=cpuid"]).unwrap().max_leaf, 1);
    }

    #[test]
    fn what_cannot_be_is_refused_by_key_and_name() {
        for (settings, says) in [
            (&["cpu.model=pentum3"][..], &["cpu.model", "did you mean \"pentium3\"?"][..]),
            (&["cpu.enable=sse4_3"], &["cpu.enable", "sse4_3", "did you mean \"sse4_"]),
            (&["cpu.enable=avx2"], &["cpu.enable", "there is no avx2 in this version; allowed: i486, cpuid"]),
            (&["cpu.model=pentium2", "cpu.enable=sse2"], &["cpu.enable: sse2 needs sse, which the pentium2 is"]),
            (&["cpu.enable=sse4_2", "cpu.disable=ssse3"], &["cpu.enable: sse4_2 needs ssse3, sse4_1, which"]),
            (&["cpu.enable=popcnt", "cpu.disable=popcnt"], &["cpu.enable: popcnt is disabled too"]),
            (&["cpu.disable=fpu"], &["cpu.disable: every model has its fpu"]),
            (&["cpu.model=486", "cpu.hypervisor=kvm"], &["cpu.hypervisor: the 486 has no CPUID"]),
            (&["cpu.model=486", "cpus=2"], &["cpus: several processors need a local APIC, and the 486"]),
            (&["cpu.model=pentium", "memory=4G"], &["memory: too much for the 32 address bits", "up to 3G"]),
            (&["cpu.model=athlon", "memory=16G"], &["memory: too much for the 34 address bits", "up to 15G"]),
        ] {
            let line = read(settings).expect_err(says[0]);
            assert_eq!(line.lines().count(), 1, "{line}");
            for part in says {
                assert!(line.contains(part), "no {part:?} in {line}");
            }
        }
    }
}
