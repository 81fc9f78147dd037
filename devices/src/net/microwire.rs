//! The serial EEPROM of network cards: 93C46 (64 words of 16 bits) and 93C56/66 (128 or 256), as drivers clock it.
//!
//! Microwire: while CS is high each rising edge of SK takes a bit from DI, which is DO of the chip that the EEPROM is at.
//! A command is a start bit (1; zeros before it are skipped), two bits of opcode, and 6 or 8 bits of address. The answer
//! to READ comes at the next rising edges, most significant bit first and after a dummy 0, and goes on with the next word.
//! Microchip 93C46B/93C66B data sheets.

use serde::{Deserialize, Serialize};

/// The lines that the chip drives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lines {
    /// Chip select.
    pub cs: bool,
    /// Clock.
    pub sk: bool,
    /// Data to the EEPROM.
    pub di: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Phase {
    /// Waits for a start bit, or for the opcode and address behind it.
    #[default]
    Command,
    /// Puts words out.
    Read,
    /// Takes a word for an address, or for all.
    Write { all: bool },
    /// Does nothing until CS falls.
    Over,
}

/// An EEPROM. Its words are saved with it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Microwire {
    words: Vec<u16>,
    phase: Phase,
    cs: bool,
    sk: bool,
    /// Bits taken in since the start bit, and how many.
    bits: u32,
    count: u32,
    address: usize,
    /// Erasing and writing are allowed (EWEN).
    unlocked: bool,
    out: bool,
}

impl Microwire {
    /// With these words: 64, 128 or 256.
    pub fn new(words: Vec<u16>) -> Microwire {
        debug_assert!(matches!(words.len(), 64 | 128 | 256));
        Microwire {
            words,
            phase: Phase::Command,
            cs: false,
            sk: false,
            bits: 0,
            count: 0,
            address: 0,
            unlocked: false,
            out: true,
        }
    }

    /// A word, as chips read it that have an engine for it.
    pub fn word(&self, address: usize) -> u16 {
        self.words[address % self.words.len()]
    }

    /// All words.
    pub fn words(&self) -> &[u16] {
        &self.words
    }

    /// DO: what the EEPROM says. It is high while nobody drives it, which also means "ready" after a write.
    pub fn data_out(&self) -> bool {
        !self.cs || self.out
    }

    /// The chip sets its lines.
    pub fn drive(&mut self, lines: Lines) {
        if !lines.cs || !self.cs {
            // The write itself takes place when CS falls; ours has no delay.
            (self.phase, self.bits, self.count, self.out) = (Phase::Command, 0, 0, true);
        }
        if lines.cs && self.cs && lines.sk && !self.sk {
            self.clock(lines.di);
        }
        (self.cs, self.sk) = (lines.cs, lines.sk);
    }

    fn address_bits(&self) -> u32 {
        if self.words.len() == 64 { 6 } else { 8 }
    }

    fn clock(&mut self, bit: bool) {
        match self.phase {
            Phase::Command => {
                if self.count == 0 && !bit {
                    return;
                }
                (self.bits, self.count) = (self.bits << 1 | u32::from(bit), self.count + 1);
                if self.count == 3 + self.address_bits() {
                    self.command();
                }
            }
            Phase::Read => {
                let word = self.word(self.address);
                self.out = word >> (15 - self.count) & 1 != 0;
                self.count += 1;
                if self.count == 16 {
                    (self.address, self.count) = ((self.address + 1) % self.words.len(), 0);
                }
            }
            Phase::Write { all } => {
                (self.bits, self.count) = (self.bits << 1 | u32::from(bit), self.count + 1);
                if self.count == 16 {
                    let word = self.bits as u16;
                    match (self.unlocked, all) {
                        (false, _) => {}
                        (true, true) => self.words.fill(word),
                        (true, false) => self.words[self.address] = word,
                    }
                    self.phase = Phase::Over;
                }
            }
            Phase::Over => {}
        }
    }

    fn command(&mut self) {
        let bits = self.address_bits();
        let (opcode, address) = (self.bits >> bits & 3, self.bits & ((1 << bits) - 1));
        self.address = address as usize % self.words.len();
        (self.bits, self.count) = (0, 0);
        // The high two bits of the address tell the commands with opcode 0 apart.
        self.phase = match (opcode, address >> (bits - 2)) {
            (0b10, _) => {
                self.out = false;
                Phase::Read
            }
            (0b01, _) => Phase::Write { all: false },
            (0b00, 0b01) => Phase::Write { all: true },
            (0b11, _) => {
                if self.unlocked {
                    self.words[self.address] = 0xffff;
                }
                Phase::Over
            }
            (_, kind) => {
                match kind {
                    0b11 => self.unlocked = true,
                    0b10 if self.unlocked => self.words.fill(0xffff),
                    0b00 => self.unlocked = false,
                    _ => {}
                }
                Phase::Over
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(rom: &mut Microwire, value: u32, bits: u32) {
        for n in (0..bits).rev() {
            let di = value >> n & 1 != 0;
            rom.drive(Lines { cs: true, sk: false, di });
            rom.drive(Lines { cs: true, sk: true, di });
        }
    }

    fn command(rom: &mut Microwire, value: u32, bits: u32) {
        rom.drive(Lines::default());
        rom.drive(Lines { cs: true, ..Lines::default() });
        send(rom, value, bits);
    }

    fn receive(rom: &mut Microwire) -> u16 {
        (0..16).fold(0, |word, _| {
            rom.drive(Lines { cs: true, sk: false, di: false });
            rom.drive(Lines { cs: true, sk: true, di: false });
            word << 1 | u16::from(rom.data_out())
        })
    }

    #[test]
    fn words_are_read_one_after_the_other_behind_a_dummy_bit() {
        for (len, bits) in [(64, 6), (256, 8)] {
            let mut rom = Microwire::new((0..len as u16).map(|n| n * 0x0101 ^ 0xa500).collect());
            // Zeros before the start bit do not count.
            command(&mut rom, 0b110 << bits | 5, 3 + bits + 2);
            assert!(!rom.data_out());
            assert_eq!((receive(&mut rom), receive(&mut rom)), (0xa500 ^ 0x0505, 0xa500 ^ 0x0606));
            command(&mut rom, 0b110 << bits | (len - 1), 3 + bits);
            assert_eq!(receive(&mut rom), (len as u16 - 1).wrapping_mul(0x0101) ^ 0xa500);
            assert_eq!(receive(&mut rom), 0xa500, "the first follows the last");
        }
    }

    #[test]
    fn a_word_is_written_only_after_it_was_allowed() {
        let mut rom = Microwire::new(vec![0x1234; 64]);
        command(&mut rom, 0b101_000111, 9);
        send(&mut rom, 0xbeef, 16);
        assert_eq!(rom.word(7), 0x1234);
        command(&mut rom, 0b100_110000, 9);
        command(&mut rom, 0b101_000111, 9);
        send(&mut rom, 0xbeef, 16);
        rom.drive(Lines::default());
        rom.drive(Lines { cs: true, ..Lines::default() });
        assert!(rom.data_out(), "ready");
        assert_eq!((rom.word(6), rom.word(7), rom.word(8)), (0x1234, 0xbeef, 0x1234));
        command(&mut rom, 0b111_000111, 9);
        assert_eq!(rom.word(7), 0xffff);
        command(&mut rom, 0b100_000000, 9);
        command(&mut rom, 0b100_100000, 9);
        assert_eq!(rom.word(8), 0x1234, "locked again");
    }
}
