// Builds guests/probe with the compiler that builds the program itself. Meant for `include!` in a build script:
//
//     include!("../guests/probe/build_probe.rs");
//     fn main() { build_probe(std::path::Path::new("../guests/probe")); }
//
// and then, in the program:
//
//     #[cfg(probe)]
//     static PROBE: &[u8] = include_bytes!(env!("PROBE_ELF"));

/// Arguments to the C compiler driver as linker; the linker script is appended by [`probe_link_args`].
#[allow(dead_code)]
const PROBE_LINK_ARGS: &[&str] =
    &["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-z,max-page-size=4096"];

/// All linker arguments for the probe in `dir`.
#[allow(dead_code)]
fn probe_link_args(dir: &std::path::Path) -> Vec<String> {
    let mut args: Vec<String> = PROBE_LINK_ARGS.iter().map(|a| (*a).to_string()).collect();
    args.push(format!("-Wl,-T,{}", dir.join("link.ld").display()));
    args
}

/// Compiles the package in `dir` into `OUT_DIR/probe.elf`, sets `cfg(probe)` and the variable `PROBE_ELF`.
///
/// Returns the path, or nothing where the host is not an x86-64 ELF system: the program then has no embedded guest.
/// The probe is always compiled for the *host*, so a cross build needs no second toolchain: the guest is the same.
/// `BHYVE_RS_PROBE=FILE` takes a finished ELF instead (a distributor's choice, or a host without a linker).
///
/// # Panics
/// When the compiler is there but refuses, with all that it said.
#[allow(dead_code)]
fn build_probe(dir: &std::path::Path) -> Option<std::path::PathBuf> {
    println!("cargo:rustc-check-cfg=cfg(probe)");
    println!("cargo:rerun-if-env-changed=BHYVE_RS_PROBE");
    for watched in ["src", "link.ld", "build_probe.rs"] {
        println!("cargo:rerun-if-changed={}", dir.join(watched).display());
    }
    let dir = dir.canonicalize().unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let elf = match std::env::var_os("BHYVE_RS_PROBE") {
        Some(given) => std::path::PathBuf::from(given),
        None => compile_probe(&dir)?,
    };
    println!("cargo:rustc-cfg=probe");
    println!("cargo:rustc-env=PROBE_ELF={}", elf.display());
    Some(elf)
}

#[allow(dead_code)]
fn compile_probe(dir: &std::path::Path) -> Option<std::path::PathBuf> {
    let var = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    let host = var("HOST");
    let systems = ["-linux-gnu", "-freebsd", "-netbsd", "-openbsd", "-dragonfly"];
    if !host.starts_with("x86_64-") || !systems.iter().any(|s| host.ends_with(s)) {
        return None;
    }
    let elf = std::path::Path::new(&var("OUT_DIR")).join("probe.elf");
    let mut rustc = std::process::Command::new(var("RUSTC"));
    rustc.args(["--edition=2024", "--crate-name=probe", "--crate-type=bin", "--cap-lints=allow", "--target", &host]);
    for option in [
        "panic=abort",
        "opt-level=s",
        "codegen-units=1",
        "debuginfo=0",
        "strip=symbols",
        "relocation-model=static",
        "no-redzone=yes",
        "overflow-checks=no",
        "debug-assertions=no",
    ] {
        rustc.args(["-C", option]);
    }
    for arg in probe_link_args(dir) {
        rustc.arg("-C").arg(format!("link-arg={arg}"));
    }
    if let (Ok(linker), true) = (std::env::var("RUSTC_LINKER"), std::env::var("TARGET").as_deref() == Ok(&host)) {
        rustc.arg("-C").arg(format!("linker={linker}"));
    }
    rustc.arg("-o").arg(&elf).arg(dir.join("src/main.rs"));
    let out = rustc.output().unwrap_or_else(|e| panic!("cannot run {:?}: {e}", rustc.get_program()));
    assert!(out.status.success(), "the probe guest does not build:\n{}", String::from_utf8_lossy(&out.stderr));
    Some(elf)
}
