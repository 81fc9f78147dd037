//! Compiles the embedded demo guest, `guests/probe`.

include!("../guests/probe/build_probe.rs");

fn main() {
    build_probe(std::path::Path::new("../guests/probe"));
}
