//! VNC authentication: a challenge that the client encrypts with the password. It protects nothing but the door.

use des::Des;
use des::cipher::{BlockCipherEncrypt, KeyInit};

/// Bytes of a challenge and of its answer.
pub(super) const LEN: usize = 16;

/// What answers a challenge. Of a password eight bytes matter.
pub(super) fn answer(password: &str, challenge: &[u8; LEN]) -> [u8; LEN] {
    let mut key = [0; 8];
    // The first client had the bits of each byte the wrong way round.
    key.iter_mut().zip(password.bytes()).for_each(|(key, byte)| *key = byte.reverse_bits());
    let cipher = Des::new(&key.into());
    let mut out = *challenge;
    for half in out.as_chunks_mut::<8>().0 {
        let mut block = (*half).into();
        cipher.encrypt_block(&mut block);
        *half = block.into();
    }
    out
}

/// Whether two are the same, in a time that does not tell where they differ.
pub(super) fn same(a: &[u8; LEN], b: &[u8; LEN]) -> bool {
    a.iter().zip(b).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_des_with_the_bits_of_the_key_turned_round() {
        // FIPS 46-3's classical example: key 13345779 9BBCDFF1, 01234567 89ABCDEF becomes 85E81354 0F0AB405.
        let key: String = [0x13u8, 0x34, 0x57, 0x79].map(|byte| char::from(byte.reverse_bits())).iter().collect();
        assert!(key.len() > 4, "not all of that key can be typed");
        let zero = answer("", &[0; LEN]);
        // Weak keys make DES its own inverse.
        assert_eq!(answer("", &zero), [0; LEN]);
        assert_eq!(zero[..8], [0x8c, 0xa6, 0x4d, 0xe9, 0xc1, 0xb1, 0x23, 0xa7]);
        assert_eq!(answer("12345678", &[1; LEN]), answer("123456789", &[1; LEN]));
        assert!(same(&zero, &zero.clone()) && !same(&zero, &[0; LEN]));
    }
}
