//! Frames on a stream of bytes: each behind its length in four bytes, big-endian. QEMU's `-netdev stream` and `socket`
//! speak this, too.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};

/// The longest frame: more than any card sends.
const LONGEST: usize = 68 << 10;
/// Bytes that may wait for a peer that does not read; frames beyond are lost.
const WAITING: usize = 1 << 20;

/// What comes from a peer.
pub(super) struct Decoder {
    buffer: Vec<u8>,
    /// What of the buffer was read, and how much of that was taken out.
    end: usize,
    begin: usize,
}

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder { buffer: vec![0; 4 + LONGEST], end: 0, begin: 0 }
    }
}

impl Decoder {
    /// The next frame; an error is the end of the connection, be it [`ErrorKind::WouldBlock`] for now.
    pub fn next(&mut self, from: &mut impl Read) -> io::Result<Vec<u8>> {
        loop {
            let had = &self.buffer[self.begin..self.end];
            if let Some((length, rest)) = had.split_first_chunk() {
                let length = u32::from_be_bytes(*length) as usize;
                if length > LONGEST {
                    let why = format!("a frame of {length} bytes: the peer speaks another protocol");
                    return Err(io::Error::new(ErrorKind::InvalidData, why));
                }
                if let Some(frame) = rest.get(..length) {
                    let frame = frame.to_vec();
                    self.begin += 4 + length;
                    return Ok(frame);
                }
            }
            self.buffer.copy_within(self.begin..self.end, 0);
            (self.begin, self.end) = (0, self.end - self.begin);
            match from.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(n) => self.end += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// What goes to a peer.
#[derive(Default)]
pub(super) struct Encoder {
    waiting: VecDeque<u8>,
}

impl Encoder {
    /// Sends a frame, or as much of it as the peer takes. False if there was no room for it.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn send(&mut self, to: &mut impl Write, frame: &[u8]) -> io::Result<bool> {
        if self.waiting.len() + 4 + frame.len() > WAITING || frame.len() > LONGEST {
            return Ok(false);
        }
        self.waiting.extend((frame.len() as u32).to_be_bytes());
        self.waiting.extend(frame);
        self.flush(to)?;
        Ok(true)
    }

    /// Sends what waits, as far as the peer takes it.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn flush(&mut self, to: &mut impl Write) -> io::Result<()> {
        while !self.waiting.is_empty() {
            let (front, back) = self.waiting.as_slices();
            match to.write_vectored(&[io::IoSlice::new(front), io::IoSlice::new(back)]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => drop(self.waiting.drain(..n)),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives what it has, a few bytes at a time.
    struct Drops<'a>(&'a [u8], usize);

    impl Read for Drops<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let n = self.1.min(self.0.len()).min(buf.len());
            buf[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    #[test]
    fn frames_come_out_as_they_went_in_however_the_stream_is_cut() {
        let frames: Vec<Vec<u8>> = [0, 1, 60, 1514, LONGEST, 64].iter().map(|n| vec![*n as u8; *n]).collect();
        let mut bytes = Vec::new();
        let mut encoder = Encoder::default();
        for frame in &frames {
            assert!(encoder.send(&mut bytes, frame).unwrap());
        }
        for piece in [1, 3, 5, 1000, bytes.len()] {
            let (mut decoder, mut from) = (Decoder::default(), Drops(&bytes, piece));
            for frame in &frames {
                assert_eq!(decoder.next(&mut from).unwrap(), *frame);
            }
            assert_eq!(decoder.next(&mut from).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn a_length_that_no_frame_has_ends_the_connection() {
        let bytes = *b"GET / HTTP/1.0\r\n";
        assert_eq!(Decoder::default().next(&mut &bytes[..]).unwrap_err().kind(), ErrorKind::InvalidData);
    }

    /// Takes nothing.
    struct Stuck;

    impl Write for Stuck {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(ErrorKind::WouldBlock.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_peer_that_does_not_read_costs_so_much_memory_and_no_more() {
        let mut encoder = Encoder::default();
        let taken = (0..10_000).filter(|_| encoder.send(&mut Stuck, &[0; 1514]).unwrap()).count();
        assert_eq!(taken, WAITING / 1518);
        let mut all = Vec::new();
        encoder.flush(&mut all).unwrap();
        assert_eq!(all.len(), taken * 1518);
    }
}
