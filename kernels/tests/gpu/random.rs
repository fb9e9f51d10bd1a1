//! The device's random numbers are those of the crate, bit for bit.

use crate::harness::{Emulated, checked, fast};
use crate::naive::download;
use kernels::backend::Backend;
use kernels::gpu::Launch;
use kernels::random::{Dropout, philox};

const COUNT: usize = 150;

fn compare(b: &Emulated, key: [u32; 2], [counter, site, step]: [u32; 3], p: f32) {
    let words = b.alloc::<[u32; 4]>(COUNT).unwrap();
    let (kept, scales) = (b.alloc::<u32>(COUNT).unwrap(), b.alloc::<f32>(COUNT).unwrap());
    b.launch(Launch {
        module: "random",
        kernel: "random_words",
        grid: [2, 1, 1],
        block: [128, 1, 1],
        shared: 0,
        args: &[
            words.arg(),
            kept.arg(),
            scales.arg(),
            key[0].into(),
            key[1].into(),
            counter.into(),
            site.into(),
            step.into(),
            p.into(),
            (COUNT as i32).into(),
        ],
    })
    .unwrap();
    let dropout = Dropout::new(key, step, site, p);
    let (words, kept, scales) = (download(b, &words), download(b, &kept), download(b, &scales));
    for token in 0..COUNT as u32 {
        let i = token as usize;
        assert_eq!(words[i], philox(key, [token, counter, site, step]));
        let mut ones = [1.0f32; 32];
        dropout.apply(token, 32 * counter, &mut ones);
        for (c, v) in ones.iter().enumerate() {
            let want = if kept[i] >> c & 1 == 1 { scales[i] } else { 0.0 };
            assert_eq!(v.to_bits(), want.to_bits(), "token {token}, column {c}, p {p}");
        }
    }
}

#[test]
fn words_and_masks_are_equal() {
    for (key, counters, p) in [
        ([0, 0], [0, 0, 0], 0.0),
        ([0xa409_3822, 0x299f_31d0], [5, 0x1319_8a2e, 0x0370_7344], 0.1),
        ([u32::MAX, 1], [9, u32::MAX, 3], 0.05),
        ([1, u32::MAX], [1, 2, u32::MAX], 0.999_999_9),
    ] {
        compare(fast(), key, counters, p);
    }
    for (step, p) in [(3, 0.5), (4, 0.0), (u32::MAX, 0.9)] {
        compare(checked(), [7, 8], [1, 2, step], p);
    }
}
