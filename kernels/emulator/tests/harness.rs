//! The sample kernels of `tests/cu` with buffers around them.

use emulator::{Emulator, Error, Memory, Mode};
use kernels::gpu::{Arg, Device, Launch};
use std::path::Path;

/// An emulator of the sample kernels.
pub(crate) struct Bench {
    pub(crate) emulator: Emulator,
}

/// A launch of a sample kernel.
pub(crate) struct Shape {
    pub(crate) grid: [u32; 3],
    pub(crate) threads: u32,
    pub(crate) shared: u32,
}

impl Bench {
    pub(crate) fn new(mode: Mode, faults: &[&str]) -> Self {
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulator");
        let sources = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cu"));
        Self { emulator: Emulator::open_in(sources, &cache, mode, faults).unwrap() }
    }

    pub(crate) fn upload(&self, bytes: &[u8]) -> Memory {
        let memory = self.emulator.alloc_poisoned(bytes.len()).unwrap();
        self.emulator.write(&memory, 0, bytes).unwrap();
        memory
    }

    pub(crate) fn floats(&self, values: &[f32]) -> Memory {
        self.upload(&values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())
    }

    pub(crate) fn poisoned(&self, floats: usize) -> Memory {
        self.emulator.alloc_poisoned(4 * floats).unwrap()
    }

    pub(crate) fn read(&self, memory: &Memory) -> Vec<f32> {
        let mut bytes = vec![0; memory.bytes()];
        self.emulator.read(memory, 0, &mut bytes).unwrap();
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    pub(crate) fn run(
        &self,
        (module, kernel): (&'static str, &str),
        shape: &Shape,
        args: &[Arg],
    ) -> Result<(), Error> {
        let block = [shape.threads, 1, 1];
        let launch = Launch { module, kernel, grid: shape.grid, block, shared: shape.shared, args };
        self.emulator.run(&launch)
    }
}

/// A pointer argument.
pub(crate) fn pointer(memory: &Memory) -> Arg {
    Arg::Pointer(memory.address())
}

/// Small numbers that repeat only after 8191.
pub(crate) fn numbers(count: usize, seed: u64) -> Vec<f32> {
    (0..count as u64)
        .map(|i| {
            let mixed = (i + 1).wrapping_mul(seed.wrapping_mul(2).wrapping_add(0x9e37_79b9)) % 8191;
            mixed as f32 / 4096.0 - 1.0
        })
        .collect()
}
