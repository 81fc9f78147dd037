//! A machine's processors seen from outside: counters and registers, as bhyvectl(8) shows them; and NMIs.
//!
//! The control socket has all of it as numbers; what is printed is made where the question comes from.

use std::fmt::Write;

use clap::Args;
use cpu::{Regs, Segment, Table};
use host::control::Members;
use serde_json::{Map, Value, json};

use crate::vm::{Handle, Instance};

/// Which of a machine's processors.
#[derive(Args)]
pub struct Processor {
    /// Processor.
    #[arg(long, value_name = "N")]
    cpu: Option<u32>,
}

impl Processor {
    /// The argument for the machine.
    pub fn member(&self) -> Members {
        self.cpu.map(|n| ("cpu".to_owned(), n.into())).into_iter().collect()
    }
}

const GPRS: [&str; 16] =
    ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];
const OTHERS: [&str; 13] =
    ["rip", "rflags", "cr0", "cr2", "cr3", "cr4", "dr0", "dr1", "dr2", "dr3", "dr6", "dr7", "efer"];
const SEGMENTS: [&str; 8] = ["es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr"];
const TABLES: [&str; 2] = ["gdtr", "idtr"];

/// The processor that is asked for, if one is.
fn asked(args: &Members) -> Result<Option<u32>, String> {
    let number = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
    args.get("cpu").map(|v| number(v).ok_or_else(|| format!("{v} is no number of a processor"))).transpose()
}

/// Those of `all` that are asked for, with their numbers.
fn chosen<T>(all: Vec<T>, which: Option<u32>) -> Result<Vec<(u32, T)>, String> {
    let last = all.len().saturating_sub(1);
    let chosen: Vec<_> = (0..).zip(all).filter(|(n, _)| which.is_none_or(|which| which == *n)).collect();
    match which {
        Some(which) if chosen.is_empty() => Err(format!("there is no processor {which}; the last one is {last}")),
        _ => Ok(chosen),
    }
}

fn processors(of: Vec<(u32, Map<String, Value>)>) -> Members {
    let with_number = |(n, mut members): (u32, Map<String, Value>)| {
        members.insert("cpu".to_owned(), n.into());
        Value::from(members)
    };
    Members::from_iter([("cpus".to_owned(), of.into_iter().map(with_number).collect())])
}

/// The verb `stats`.
pub fn stats(handle: &Handle, args: &Members) -> Result<Members, String> {
    let which = asked(args)?;
    let all = handle.ask_machine(|machine, _| machine.stats())?;
    let counters = |counters: Vec<(String, u64)>| {
        let counters: Vec<Value> = counters.into_iter().map(|(name, value)| json!([name, value])).collect();
        Map::from_iter([("stats".to_owned(), counters.into())])
    };
    Ok(processors(chosen(all, which)?.into_iter().map(|(n, c)| (n, counters(c))).collect()))
}

/// The verb `registers`.
pub fn registers(handle: &Handle, args: &Members) -> Result<Members, String> {
    let which = asked(args)?;
    let all = handle.ask_machine(Instance::registers)?;
    Ok(processors(chosen(all, which)?.into_iter().map(|(n, r)| (n, members(&r))).collect()))
}

/// The verb `nmi`.
pub fn nmi(handle: &Handle, args: &Members) -> Result<Members, String> {
    let cpu = asked(args)?.unwrap_or(0);
    handle.ask_machine(move |machine, paused| machine.nmi(cpu, paused))?;
    Ok(Members::new())
}

fn members(r: &Regs) -> Map<String, Value> {
    let others =
        [r.rip, r.rflags, r.cr0, r.cr2, r.cr3, r.cr4, r.dr[0], r.dr[1], r.dr[2], r.dr[3], r.dr6, r.dr7, r.msrs.efer];
    let numbers = GPRS.into_iter().zip(r.gpr).chain(OTHERS.into_iter().zip(others)).map(|(n, v)| (n, v.into()));
    let segment = |s: Segment| json!({"selector": s.selector, "base": s.base, "limit": s.limit, "access": s.access});
    let table = |t: Table| json!({"base": t.base, "limit": t.limit});
    let segments = SEGMENTS.into_iter().zip([r.es, r.cs, r.ss, r.ds, r.fs, r.gs, r.ldtr, r.tr].map(segment));
    let tables = TABLES.into_iter().zip([r.gdtr, r.idtr].map(table));
    numbers.chain(segments).chain(tables).map(|(name, value)| (name.to_owned(), value)).collect()
}

fn cpus(results: &Members) -> impl Iterator<Item = (&Value, u64)> {
    let cpus = results.get("cpus").and_then(Value::as_array).into_iter().flatten();
    cpus.map(|cpu| (cpu, cpu["cpu"].as_u64().unwrap_or(0)))
}

/// Counters as bhyvectl(8) prints them; other programs read that.
pub fn show_stats(results: &Members) -> String {
    let mut out = String::new();
    for (cpu, n) in cpus(results) {
        let counters = cpu["stats"].as_array().into_iter().flatten();
        let named = |counter: &Value| Some((counter[0].as_str()?.to_owned(), counter[1].as_u64()?));
        out += &stats_text(n, &counters.filter_map(named).collect::<Vec<_>>());
    }
    out
}

/// One processor's counters as bhyvectl(8) prints them.
pub fn stats_text(cpu: impl std::fmt::Display, counters: &[(String, u64)]) -> String {
    let mut out = format!("vcpu{cpu} stats:\n");
    for (name, value) in counters {
        let _ = writeln!(out, "{name:<40}\t{value}");
    }
    out
}

/// Registers, one a line.
pub fn show_registers(results: &Members) -> String {
    let mut out = String::new();
    for (cpu, n) in cpus(results) {
        let _ = writeln!(out, "vcpu{n} registers:");
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        for name in GPRS.into_iter().chain(OTHERS) {
            let _ = writeln!(out, "{name:<7} {:016x}", number(&cpu[name]));
        }
        for name in SEGMENTS {
            let [selector, base, limit, access] =
                ["selector", "base", "limit", "access"].map(|part| number(&cpu[name][part]));
            let _ = writeln!(out, "{name:<7} {selector:04x} base {base:016x} limit {limit:08x} access {access:05x}");
        }
        for name in TABLES {
            let [base, limit] = ["base", "limit"].map(|part| number(&cpu[name][part]));
            let _ = writeln!(out, "{name:<7} base {base:016x} limit {limit:04x}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_printed_as_bhyvectl_prints_them() {
        let results = json!({"cpus": [{"cpu": 1, "stats": [["Resident memory", 4096]]}]});
        let shown = show_stats(results.as_object().unwrap());
        assert_eq!(shown, format!("vcpu1 stats:\nResident memory{}\t4096\n", " ".repeat(25)));
    }

    #[test]
    fn registers_come_back_by_their_names() {
        let mut r = Regs { rip: u64::MAX, dr6: 6, ..Regs::default() };
        (r.gpr[3], r.cs.base, r.idtr.limit) = (0xb, 0xffff_0000, 0x3ff);
        let shown = show_registers(&processors(vec![(0, members(&r))]));
        for line in
            ["vcpu0 registers:", "rip     ffffffffffffffff", "rbx     000000000000000b", "dr6     0000000000000006"]
        {
            assert!(shown.lines().any(|l| l == line), "{line}: {shown}");
        }
        assert!(shown.contains("cs      0000 base 00000000ffff0000 limit"), "{shown}");
        assert!(shown.contains("idtr    base 0000000000000000 limit 03ff\n"), "{shown}");
    }

    #[test]
    fn a_processor_that_is_not_there_is_refused_by_number() {
        assert_eq!(chosen(vec!['a', 'b'], Some(1)), Ok(vec![(1, 'b')]));
        assert_eq!(chosen(vec!['a', 'b'], Some(2)), Err("there is no processor 2; the last one is 1".to_owned()));
        let args = json!({"cpu": "one"});
        assert_eq!(asked(args.as_object().unwrap()), Err("\"one\" is no number of a processor".to_owned()));
    }
}
