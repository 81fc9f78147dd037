//! What the cable of a network card leads to.

mod cable;
mod frames;
pub(crate) mod interface;
pub mod nat;
mod pcap;
pub(crate) mod socket;
pub mod switch;
mod tap;
mod vnet;
mod wire;

pub use cable::Cable;
pub use nat::Nat;
pub use socket::socket;
pub use tap::Tap;
pub use wire::Wire;

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    /// A directory that goes when its owner does.
    pub struct Scratch(PathBuf);

    impl Scratch {
        pub fn new(name: &str) -> Scratch {
            let path = std::env::temp_dir().join(format!("bhyve-rs-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Scratch(path)
        }

        pub fn path(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}
