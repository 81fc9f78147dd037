//! A machine that another program has, reached from outside, over each kernel.

use std::sync::Arc;

use hv::Outside;
use vmm_sim::{Sim, Version};
use vmmapi_sys::{Kernel, Lifetime, Name, Vmm};

#[test]
fn a_machine_of_another_program_is_reached_on_each_kernel() {
    for version in [Version::V13_1, Version::V13, Version::V14, Version::V15] {
        let sim = Sim::new(version);
        let kernel: Arc<dyn Kernel> = sim.clone();
        assert!(Outside::open(kernel.clone(), "other").expect("vmm(4) is there").is_none(), "{version:?}");
        let vmm = Vmm::attach(kernel.clone()).expect("vmm(4)");
        let name = Name::new("other").expect("a name");
        vmm.create(&name, Lifetime::Destroyed).expect("a machine");
        let theirs = vmm.open(&name).expect("its node");
        theirs.set_topology(1, 1, 1).expect("a topology");
        theirs.activate_cpu(0).expect("a processor");
        let other = Outside::open(kernel, "other").expect("vmm(4)").expect("the machine");
        let stats = other.stats(0).expect("counters");
        assert!(stats.iter().any(|(name, _)| name == "Resident memory"), "{version:?}: {stats:?}");
        other.nmi(0).expect("an NMI");
        other.power_off().expect("it goes");
        vmm.destroy(&name).expect("destroyed");
        assert_eq!(sim.violations(), Vec::<String>::new(), "{version:?}");
    }
}
