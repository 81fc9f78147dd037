//! Random numbers of a machine: for what gives them to its guest, and for what is made up when it is assembled.
//!
//! Real numbers come from the host's operating system. When instructions drive the clock they come from the machine's
//! seed, by xoshiro256** (Blackman and Vigna, 2018), and are part of the machine's state: a run can be repeated, and a
//! guest must not keep secrets by them.

use std::fs::File;
use std::io::Read;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use crate::device::{DeviceState, ResetKind, Saved, State};

/// Where the host's random numbers are.
const HOST: &str = "/dev/urandom";

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Generator([u64; 4]);

impl Generator {
    fn new(seed: u64) -> Generator {
        Generator(std::array::from_fn(|n| mix(seed.wrapping_add(GAMMA.wrapping_mul(n as u64 + 1)))))
    }

    fn next(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }
}

/// SplitMix64's (Steele, Lea, Flood, 2014) step and what it makes of it.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(z: u64) -> u64 {
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// The number that goes with `seed` for what is called `name`: another name has another.
pub fn derive(seed: u64, name: &str) -> u64 {
    let hash =
        name.bytes().fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
    mix(hash ^ mix(seed.wrapping_add(GAMMA)))
}

enum Source {
    Host(File),
    Seed(u64, Generator),
}

/// A source of random numbers. A leaf: it may be asked with a device lock held.
pub struct Random(Mutex<Source>);

impl Random {
    /// The host's.
    ///
    /// # Errors
    /// When it has none.
    pub fn host() -> std::io::Result<Arc<Random>> {
        Ok(Arc::new(Random(Mutex::new(Source::Host(File::open(HOST)?)))))
    }

    /// Those that go with `seed`.
    pub fn seeded(seed: u64) -> Arc<Random> {
        Arc::new(Random(Mutex::new(Source::Seed(seed, Generator::new(seed)))))
    }

    /// Fills `buf`.
    ///
    /// # Panics
    /// When the host's source, once open, fails: nothing that a guest took for random may be anything else.
    pub fn fill(&self, buf: &mut [u8]) {
        match &mut *self.0.lock().unwrap() {
            Source::Host(file) => file.read_exact(buf).expect(HOST),
            Source::Seed(_, generator) => {
                for part in buf.chunks_mut(8) {
                    part.copy_from_slice(&generator.next().to_le_bytes()[..part.len()]);
                }
            }
        }
    }
}

impl DeviceState for Random {
    fn name(&self) -> &str {
        "random"
    }

    fn reset(&self, kind: ResetKind) {
        if let Source::Seed(seed, generator) = &mut *self.0.lock().unwrap()
            && kind == ResetKind::PowerOn
        {
            *generator = Generator::new(*seed);
        }
    }

    fn save(&self) -> Saved {
        let state = match &*self.0.lock().unwrap() {
            Source::Host(_) => serde_json::Value::Null,
            Source::Seed(_, generator) => generator.save(),
        };
        Saved { version: 1, state, ..Saved::default() }
    }

    fn load(&self, saved: Saved) -> Result<(), String> {
        match &mut *self.0.lock().unwrap() {
            Source::Seed(_, generator) if !saved.state.is_null() => generator.load(saved.state),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(random: &Random, n: usize) -> Vec<u8> {
        let mut buf = vec![0; n];
        random.fill(&mut buf);
        buf
    }

    #[test]
    fn a_seed_gives_the_same_numbers_and_another_seed_others() {
        let first = take(&Random::seeded(7), 100);
        assert_eq!(first, take(&Random::seeded(7), 100));
        assert_ne!(first, take(&Random::seeded(8), 100));
        assert_ne!(derive(7, "a"), derive(7, "b"));
        assert_ne!(derive(7, "a"), derive(8, "a"));
    }

    #[test]
    fn the_generator_is_xoshiro256_starstar() {
        let mut generator = Generator([1, 2, 3, 4]);
        assert_eq!([generator.next(), generator.next(), generator.next()], [11_520, 0, 1_509_978_240]);
    }

    #[test]
    fn a_saved_machine_goes_on_with_the_next_numbers_and_power_on_starts_anew() {
        let (one, two) = (Random::seeded(7), Random::seeded(7));
        let start = take(&one, 16);
        two.load(one.save()).unwrap();
        let next = take(&one, 16);
        assert_eq!(next, take(&two, 16));
        one.reset(ResetKind::System);
        assert_ne!(take(&one, 16), start);
        one.reset(ResetKind::PowerOn);
        assert_eq!(take(&one, 16), start);
    }

    #[test]
    fn the_hosts_numbers_are_not_the_same_twice_and_are_not_saved() {
        let Ok(host) = Random::host() else { return };
        assert_ne!(take(&host, 32), take(&host, 32));
        assert!(host.save().state.is_null());
        Random::seeded(1).load(host.save()).unwrap();
        host.load(Random::seeded(1).save()).unwrap();
    }
}
