//! A whole machine in a file, and its state in a number.
//!
//! The file holds a line that names the format, the length of a JSON document and the document (processors, devices,
//! timers, clock), then the pages of the memory arena that are not zero, each behind its number. It is written beside
//! its place and renamed, so it appears whole or not at all. The number is a digest of the same content; two machines
//! that agree in it are in the same state.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use emu::{Machine, PAGE_SIZE, RamAddr, RamBlock, Saved};
use host::broker;
use hv::{Runner, Turn};
use serde::{Deserialize, Serialize};
use serde_json::Value;

const MAGIC: &[u8] = b"bhyve-rs machine state 1\n";
/// Follows the last page.
const END: u64 = u64::MAX;
/// No document is larger.
const MAX_DOCUMENT: u64 = 256 << 20;

#[derive(Serialize, Deserialize)]
struct Document {
    /// What must be equal where it is loaded: boards, sizes.
    shape: String,
    clock: u64,
    turns: Vec<Turn>,
    vcpus: Vec<Value>,
    parts: BTreeMap<String, Saved>,
}

/// Where a state is written before it has its name.
pub fn beside(path: &Path) -> PathBuf {
    path.with_extension("part")
}

/// A paused machine.
pub struct Paused<'a> {
    /// Its devices, memory and clock.
    pub machine: &'a Machine,
    /// Its processors.
    pub runner: &'a Runner,
    /// Says what the machine is made of, in a line.
    pub shape: &'a str,
}

impl Paused<'_> {
    fn document(&self) -> Result<Document> {
        Ok(Document {
            shape: self.shape.to_owned(),
            clock: self.machine.clock().now(),
            turns: self.runner.turns(),
            vcpus: self.runner.with_vcpus(|v| v.save()).into_iter().collect::<Result<_>>()?,
            parts: self.machine.parts().iter().map(|p| (p.name().to_owned(), p.save())).collect(),
        })
    }

    /// Calls `f` with each page of memory that is not zero.
    fn pages(&self, mut f: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        let ram = self.machine.space.ram();
        let mut page = [0; PAGE_SIZE as usize];
        for block in ram.blocks() {
            for n in numbers(&block) {
                ram.read(RamAddr(n * PAGE_SIZE), &mut page);
                if page.iter().any(|b| *b != 0) {
                    f(n, &page)?;
                }
            }
        }
        Ok(())
    }

    /// A digest (FNV-1a, 64 bits) of the state.
    pub fn digest(&self) -> Result<u64> {
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        let mut take = |word: u64| hash = (hash ^ word).wrapping_mul(0x0000_0100_0000_01b3);
        for byte in serde_json::to_vec(&self.document()?)? {
            take(u64::from(byte));
        }
        self.pages(|n, page| {
            take(n);
            page.chunks_exact(8).for_each(|w| take(u64::from_le_bytes(w.try_into().expect("8 bytes"))));
            Ok(())
        })?;
        Ok(hash)
    }

    /// Writes the state to `path`.
    ///
    /// # Errors
    /// What the host says; `path` is then as it was.
    pub fn save(&self, path: &Path) -> Result<()> {
        let beside = beside(path);
        let write = || -> Result<()> {
            let mut out = BufWriter::new(broker::create(&beside)?);
            let document = serde_json::to_vec(&self.document()?)?;
            out.write_all(MAGIC)?;
            out.write_all(&(document.len() as u64).to_le_bytes())?;
            out.write_all(&document)?;
            self.pages(|n, page| {
                out.write_all(&n.to_le_bytes())?;
                Ok(out.write_all(page)?)
            })?;
            out.write_all(&END.to_le_bytes())?;
            out.into_inner()?.sync_all()?;
            broker::rename(&beside, path)
        };
        write().with_context(|| path.display().to_string())
    }

    /// Takes over the state in `path`.
    ///
    /// # Errors
    /// When it is not the state of such a machine. The machine must not be run then.
    pub fn load(&self, path: &Path) -> Result<()> {
        self.load_from(path).with_context(|| path.display().to_string())
    }

    fn load_from(&self, path: &Path) -> Result<()> {
        let mut input = BufReader::new(File::open(path)?);
        let mut magic = [0; MAGIC.len()];
        let known = input.read_exact(&mut magic).is_ok() && magic == MAGIC;
        ensure!(known, "not a machine state, or of another version");
        let len = word(&mut input)?;
        ensure!(len <= MAX_DOCUMENT, "damaged: a document of {len} bytes");
        let mut document = vec![0; len as usize];
        input.read_exact(&mut document).context("truncated")?;
        let document: Document = serde_json::from_slice(&document).context("damaged")?;
        ensure!(
            document.shape == self.shape,
            "the state of another machine: {}; this one is {}",
            document.shape,
            self.shape
        );
        let ram = self.machine.space.ram();
        let blocks = ram.blocks();
        let zeros = [0; PAGE_SIZE as usize];
        for block in &blocks {
            numbers(block).for_each(|n| ram.write(RamAddr(n * PAGE_SIZE), &zeros));
        }
        loop {
            let n = word(&mut input)?;
            if n == END {
                break;
            }
            let mut page = [0; PAGE_SIZE as usize];
            input.read_exact(&mut page).context("truncated")?;
            ensure!(blocks.iter().any(|b| numbers(b).contains(&n)), "damaged: no page {n}");
            ram.write(RamAddr(n * PAGE_SIZE), &page);
        }
        // Timers are compared with the clock as they are set.
        self.machine.clock().set(document.clock);
        let mut parts = document.parts;
        // The last first: devices drive their wires, then the interrupt chips that came before them forget the edges.
        for part in self.machine.parts().iter().rev() {
            let Some(saved) = parts.remove(part.name()) else { bail!("no state of {}", part.name()) };
            part.load(saved).map_err(|e| anyhow::anyhow!("{}: {e}", part.name()))?;
        }
        let mut vcpus = document.vcpus.into_iter();
        for loaded in self.runner.with_vcpus(|v| v.load(vcpus.next().unwrap_or_default())) {
            loaded.context("processor")?;
        }
        ensure!(self.runner.set_turns(&document.turns), "damaged: no such processor");
        Ok(())
    }
}

fn numbers(block: &RamBlock) -> std::ops::Range<u64> {
    block.start.page()..block.start.page() + block.len / PAGE_SIZE
}

fn word(input: &mut impl Read) -> Result<u64> {
    let mut bytes = [0; 8];
    input.read_exact(&mut bytes).context("truncated")?;
    Ok(u64::from_le_bytes(bytes))
}
