//! Sample kernels give right results, in both modes and any order, and clean ones give no finding.
#![expect(clippy::unwrap_used, reason = "a failing helper fails its test")]

use emulator::{Emulator, Memory, Mode};
use kernels::gpu::{Arg, Device, Launch};
use std::path::Path;

fn open(mode: Mode) -> Emulator {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulator");
    let sources = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cu"));
    Emulator::open_in(sources, &cache, mode, &[]).unwrap()
}

#[test]
fn row_sums() {
    let emulator = open(Mode::Fast);
    let x: Vec<f32> = (0..3 * 300).map(|i| (i % 7) as f32 - 3.0).collect();
    let bytes: Vec<u8> = x.iter().flat_map(|v| v.to_le_bytes()).collect();
    let dx = emulator.alloc_poisoned(bytes.len()).unwrap();
    emulator.write(&dx, 0, &bytes).unwrap();
    let (y, p): (Memory, Memory) =
        (emulator.alloc_poisoned(12).unwrap(), emulator.alloc_poisoned(12).unwrap());
    let args = [
        Arg::Pointer(dx.address()),
        Arg::Pointer(y.address()),
        Arg::Pointer(p.address()),
        Arg::I32(300),
    ];
    emulator
        .run(&Launch {
            module: "rows",
            kernel: "row_sums",
            grid: [3, 1, 1],
            block: [128, 1, 1],
            shared: 0,
            args: &args,
        })
        .unwrap();
    let mut out = [0_u8; 12];
    emulator.read(&y, 0, &mut out).unwrap();
    for (row, got) in out.chunks_exact(4).enumerate() {
        let want: f32 = x[row * 300..][..300].iter().sum();
        assert_eq!(f32::from_le_bytes(got.try_into().unwrap()), want);
    }
}
