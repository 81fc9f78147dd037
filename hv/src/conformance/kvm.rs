//! What is KVM's alone.

use serde_json::{Value, json};

use super::*;
use crate::Kvm;

/// Whether it can be tried here.
pub(super) fn there() -> bool {
    Kvm.available().inspect_err(|why| println!("skipped: {why}")).is_ok()
}

pub(super) fn kvm(_: &Listing) -> Box<dyn Hypervisor> {
    Box::new(Kvm)
}

#[test]
fn a_tsc_deadline_waits_with_the_machine() {
    /// Bytes of the local APIC: spurious vector, timer's entry, and requests from vector 40 on.
    const SVR: usize = 0xf0;
    const LVTT: usize = 0x320;
    const IRR: usize = 0x220;
    if !there() {
        return;
    }
    let rig = Rig::new(&kvm, 1, &[], |l| {
        let again = l.here();
        l.out(REPORT, 1).op(Op::Jump(again));
    });
    let runner = rig.runner();
    let state = || runner.with_vcpus(|v| v.save()).remove(0);
    let Ok(mut saved) = state() else { return println!("skipped: this kernel does not set the TSC") };
    for (at, bytes) in [(SVR, [0xff, 1, 0, 0]), (LVTT, [0x41, 0, 4, 0])] {
        bytes.into_iter().enumerate().for_each(|(n, byte)| saved["lapic"][at + n] = json!(byte));
    }
    saved["tsc_deadline"] = json!(1);
    runner.with_vcpus(|v| v.load(saved.clone()).unwrap());
    let timer = |state: &Value| (state["tsc_deadline"].clone(), state["lapic"][IRR].clone());
    assert_eq!(timer(&state().unwrap()), (json!(1), json!(0)), "it has passed, and nobody heard of it");
    runner.resume();
    rig.expect(&[report(1), report(1), report(1)]);
    runner.pause();
    assert_eq!(timer(&state().unwrap()), (json!(0), json!(2)));
    // One that has not passed.
    saved["tsc_deadline"] = json!(i64::MAX);
    runner.with_vcpus(|v| v.load(saved.clone()).unwrap());
    runner.resume();
    rig.seen.try_iter().for_each(drop);
    rig.expect(&[report(1), report(1)]);
    runner.pause();
    assert_eq!(timer(&state().unwrap()), (json!(i64::MAX), json!(0)));
}
