//! A recorded launch can be repeated on another device, with the same bytes.

use crate::device::skipped_on_gpu;
use crate::harness::fast;
use crate::naive::{download, numbers, upload};
use emulator::{Emulator, Mode};
use kernels::Backend;
use kernels::gpu::Gpu;
use kernels::gpu::record::{Recorder, Recording};
use kernels::norm::{Norm, ParamGradient};

#[test]
fn launches_are_recorded_and_repeated() {
    // Roots and exponentials of a GPU have other last bits.
    if skipped_on_gpu("the same bytes from two devices") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let emulator = Emulator::open(Mode::Fast, &[]).unwrap();
    let b = Gpu::new(Recorder::new(emulator, folder.path()).unwrap()).unwrap();
    let (rows, dim) = (5, 24);
    let act = |seed| numbers(seed, rows * dim).into_iter().map(half::bf16::from_f32);
    let x = upload(&b, &act(1).collect::<Vec<_>>());
    let dy = upload(&b, &act(2).collect::<Vec<_>>());
    drop(b.alloc::<f32>(7).unwrap());
    let mut grads = upload(&b, &numbers(3, 1 + dim));
    b.norm_param_gradient(ParamGradient {
        centred: false,
        eps: 1e-5,
        x: kernels::Mat::new(&x, dim),
        dy: kernels::Mat::new(&dy, dim),
        rows,
        dim,
        grads: &mut grads,
        weight_offset: 1,
        bias_offset: None,
    })
    .unwrap();
    let files: Vec<_> = ["000000-norm_statistics_rms.launch", "000001-norm_gradient.launch"]
        .map(|name| folder.path().join(name))
        .into();
    for file in &files {
        let recording = Recording::read(file).unwrap();
        let after = recording.replay(fast().device()).unwrap();
        for (after, buffer) in after.iter().zip(&recording.buffers) {
            assert_eq!(*after, buffer.after, "{}", recording.kernel);
        }
        assert!(recording.buffers.iter().any(|b| b.before != b.after), "something was written");
    }
    let last = Recording::read(&files[1]).unwrap();
    let weight = last.args[5];
    let (which, at) = weight.target.unwrap();
    assert_eq!(at, 4, "the gradient begins at element 1");
    let written: Vec<f32> =
        last.buffers[which].after.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    assert_eq!(written, download(&b, &grads));
    assert_eq!(last.args[6].target, None, "there is no bias");
    let bytes = std::fs::read(&files[0]).unwrap();
    let torn = folder.path().join("torn");
    std::io::Write::write_all(&mut std::fs::File::create(&torn).unwrap(), &bytes[1..]).unwrap();
    assert!(Recording::read(&torn).is_err());
}
