//! Which back end runs a machine's processors.

use std::fmt::Write;

use anyhow::{Result, bail};
use cfg::{Errors, Node, Problem};
use hv::Hypervisor;

/// The back ends of this program, in the order in which `auto` prefers them.
pub struct Backends(pub Vec<Box<dyn Hypervisor>>);

/// Those of other systems' programs, for who asks for them here.
const ELSEWHERE: [(&str, &str); 2] = [("vmm", "FreeBSD"), ("kvm", "Linux")];

impl Backends {
    /// The back end that a configuration asks for. `counted` is whether instructions are to be counted, or the
    /// processors executed in a particular way: only the software CPU can.
    ///
    /// # Errors
    /// Why it is not to be had here, and what is.
    pub fn choose(&self, node: &Node, counted: bool) -> Result<&dyn Hypervisor> {
        let name = node.text("backend");
        if name == "auto" {
            let fits = |b: &&dyn Hypervisor| (!counted || b.counts()) && self.takes(*b).is_ok();
            return match self.0.iter().map(AsRef::as_ref).find(fits) {
                Some(backend) => Ok(backend),
                None => bail!("no back end works here\n{}", self.report()),
            };
        }
        let wrong = |problem: Problem| Errors(vec![node.error("backend", problem)]);
        let others = || self.0.iter().map(|b| b.name()).chain(["auto"]).collect::<Vec<_>>().join(", ");
        let Some(backend) = self.0.iter().find(|b| b.name() == name) else {
            let system = ELSEWHERE.into_iter().find(|(n, _)| *n == name).map_or("another system", |(_, system)| system);
            let message = format!("the back end \"{name}\" is {system}'s, and this program is not built for it");
            bail!(wrong(Problem::new(message).allowed(others())));
        };
        if counted && !backend.counts() {
            let message = format!("\"{name}\" does not count instructions, which this run asks for");
            bail!(wrong(Problem::new(message).allowed("soft, auto")));
        }
        if let Err(why) = backend.available() {
            bail!(wrong(Problem::new(format!("\"{name}\" does not work here: {why}"))));
        }
        Ok(backend.as_ref())
    }

    /// Whether `auto` may take a back end; why, either way.
    fn takes(&self, backend: &dyn Hypervisor) -> Result<String, String> {
        let why = backend.available()?;
        backend.worthwhile().map(|()| why)
    }

    /// What was found on this host, and what `auto` makes of it: some lines.
    pub fn report(&self) -> String {
        let mut out = String::new();
        let mut line = |name: &str, works: &str, why: &str| _ = writeln!(out, "{name:<6} {works:<4} {why}");
        for backend in &self.0 {
            match (backend.available(), backend.worthwhile()) {
                (Ok(why), Ok(())) => line(backend.name(), "yes", &why),
                (Ok(why), Err(but)) => line(backend.name(), "yes", &format!("{why}; {but}")),
                (Err(why), _) => line(backend.name(), "no", &why),
            }
        }
        for (name, system) in ELSEWHERE {
            if !self.0.iter().any(|b| b.name() == name) {
                line(name, "no", &format!("{system}'s; this program is not built for it"));
            }
        }
        if let Some(first) = self.0.iter().find(|b| self.takes(b.as_ref()).is_ok()) {
            let _ = writeln!(out, "auto takes {}; with clock = \"instructions\", soft", first.name());
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hv::{Vm, VmConfig};

    use super::*;
    use crate::config;

    struct Fake(&'static str, Result<(), &'static str>, Result<(), &'static str>, bool);

    impl Hypervisor for Fake {
        fn name(&self) -> &'static str {
            self.0
        }
        fn available(&self) -> Result<String, String> {
            self.1.map(|()| "works".to_owned()).map_err(str::to_owned)
        }
        fn worthwhile(&self) -> Result<(), String> {
            self.2.map_err(str::to_owned)
        }
        fn counts(&self) -> bool {
            self.3
        }
        fn create(&self, _: &Arc<emu::Machine>, _: &VmConfig) -> Result<Arc<dyn Vm>> {
            bail!("not a real one")
        }
    }

    fn choose(kvm: Fake, settings: &[&str], counted: bool) -> Result<String, String> {
        let settings: Vec<_> = ["name=x"].iter().chain(settings).collect();
        let node = config::from_settings(&settings).expect("a right configuration");
        let backends = Backends(vec![Box::new(kvm), Box::new(Fake("soft", Ok(()), Ok(()), true))]);
        backends.choose(&node, counted).map(|b| b.name().to_owned()).map_err(|e| format!("{e:#}"))
    }

    fn kvm() -> Fake {
        Fake("kvm", Ok(()), Ok(()), false)
    }

    #[test]
    fn auto_takes_the_first_that_works_and_pays() {
        assert_eq!(choose(kvm(), &[], false).as_deref(), Ok("kvm"));
        assert_eq!(choose(Fake("kvm", Err("no such file"), Ok(()), false), &[], false).as_deref(), Ok("soft"));
        assert_eq!(choose(Fake("kvm", Ok(()), Err("slow"), false), &[], false).as_deref(), Ok("soft"));
        assert_eq!(choose(kvm(), &[], true).as_deref(), Ok("soft"), "only soft counts instructions");
    }

    #[test]
    fn one_that_is_asked_for_is_taken_though_it_does_not_pay() {
        assert_eq!(choose(Fake("kvm", Ok(()), Err("slow"), false), &["backend=kvm"], false).as_deref(), Ok("kvm"));
    }

    #[test]
    fn one_that_cannot_be_had_is_refused_with_the_reason() {
        let says = |r: Result<String, String>, what: &str| {
            let text = r.expect_err("refused");
            assert!(text.contains("backend") && text.contains(what), "{text}");
        };
        says(choose(Fake("kvm", Err("/dev/kvm: no rights"), Ok(()), false), &["backend=kvm"], false), "no rights");
        says(choose(kvm(), &["backend=vmm"], false), "FreeBSD's");
        says(choose(kvm(), &["backend=kvm"], true), "does not count instructions");
    }
}
