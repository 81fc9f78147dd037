//! Hypervisor back ends behind one set of traits: the software CPU anywhere, vmm(4) on FreeBSD, KVM on Linux.
