//! Link arguments for a plain `cargo build` in this folder; the embedding program calls `build_probe` instead.

include!("build_probe.rs");

fn main() {
    println!("cargo:rerun-if-changed=link.ld");
    let dir = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    for arg in probe_link_args(std::path::Path::new(&dir)) {
        println!("cargo:rustc-link-arg={arg}");
    }
}
