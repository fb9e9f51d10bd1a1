//! Reads that are begun and waited for later, and ranges that leave beside the work queued next.

use crate::device::skipped_on_gpu;
use crate::harness::{Emulated, own};
use crate::naive::{download, numbers, upload};
use emulator::Copies;
use half::bf16;
use kernels::backend::{Backend, Mat, MatMut};
use kernels::embedding::{Embedding, Gather};
use kernels::norm::{Forward, Norm, Params};

const LEN: usize = 96;
const ALL: [Copies; 2] = [Copies::AtOnce, Copies::Late];

/// `y = norm(x)`, rows of 16.
fn norm(
    b: &Emulated,
    x: &<Emulated as Backend>::Buf<bf16>,
    y: &mut <Emulated as Backend>::Buf<bf16>,
) {
    let weight = upload(b, &[1.0f32; 16]);
    let params = Params { weight: &weight, bias: None, eps: 1e-5 };
    let (x, y) = (Mat::new(x, 16), MatMut::new(y, 16));
    b.norm_forward(Forward { params, x, y, rows: LEN / 16, dim: 16 }).unwrap();
}

fn acts(seed: u64) -> Vec<bf16> {
    numbers(seed, LEN).into_iter().map(bf16::from_f32).collect()
}

#[test]
fn a_read_that_was_begun_has_what_was_there() {
    for copies in ALL {
        let b = own();
        b.device().set_copies(copies);
        let (x, mut y) = (upload(&b, &acts(1)), upload(&b, &acts(2)));
        let (before, one) = (b.begin_read(&y, 0, LEN).unwrap(), b.begin_read(&y, 7, 1).unwrap());
        norm(&b, &x, &mut y);
        let normed = b.begin_read(&y, 0, LEN).unwrap();
        b.zero(&mut y, 0, LEN).unwrap();
        let (empty, given_up) =
            (b.begin_read(&y, LEN, 0).unwrap(), b.begin_read(&y, 3, 9).unwrap());
        assert_eq!((normed.len(), empty.len(), given_up.len()), (LEN, 0, 9));
        drop(given_up);
        drop(b.alloc::<f32>(5).unwrap());
        let normed = normed.wait().unwrap();
        assert_eq!(before.wait().unwrap(), acts(2));
        assert_eq!(one.wait().unwrap(), acts(2)[7..8]);
        assert!(empty.is_empty() && empty.wait().unwrap().is_empty());
        assert!(normed != acts(2) && normed.iter().any(|v| *v != bf16::ZERO));
        assert!(b.begin_read(&y, LEN - 1, 2).is_err() && b.begin_read(&y, usize::MAX, 2).is_err());
        assert!(b.evict(&mut y, LEN - 1, 2).is_err());
    }
}

/// What left a range, part of which was overwritten by each of the host's calls after a kernel ran elsewhere.
fn left(b: &Emulated, how: usize) -> (Vec<bf16>, Vec<bf16>) {
    let mut slab = upload(b, &acts(3));
    let (x, mut y) = (upload(b, &acts(4)), upload(b, &acts(5)));
    let leaving = b.evict(&mut slab, 16, 48).unwrap();
    // Beside the range anybody may write.
    b.write(&mut slab, 0, &[bf16::ONE; 16]).unwrap();
    norm(b, &x, &mut y);
    match how {
        0 => b.write(&mut slab, 16, &[bf16::ONE; 48]).unwrap(),
        1 => b.write(&mut slab, 40, &[bf16::ONE]).unwrap(),
        2 => b.zero(&mut slab, 63, 33).unwrap(),
        3 => b.copy((&mut slab, 10), (&x, 0), 7).unwrap(),
        4 => norm(b, &x, &mut slab),
        _ => drop(slab),
    }
    (leaving.wait().unwrap(), acts(3)[16..64].to_vec())
}

#[test]
fn what_left_is_whole_whatever_comes_after() {
    for copies in ALL {
        let b = own();
        b.device().set_copies(copies);
        for how in [0, 1, 2, 3, 5] {
            let (got, want) = left(&b, how);
            assert_eq!(got, want, "{copies:?}, {how}");
        }
    }
}

/// The comparison can fail: a device that forgets the order, and a kernel that writes where it may not.
#[test]
fn a_missing_order_shows() {
    if skipped_on_gpu("copies as late as can be") {
        return;
    }
    let b = own();
    b.device().set_copies(Copies::Unordered);
    for how in 0..4 {
        let (got, want) = left(&b, how);
        assert_ne!(got, want, "{how}");
    }
    b.device().set_copies(Copies::Late);
    let (got, want) = left(&b, 4);
    assert_ne!(got, want, "a kernel");
}

#[test]
fn a_refusal_is_told_by_the_wait() {
    let b = own();
    let (rows, index) = (upload(&b, &acts(6)), upload(&b, &[9u32]));
    let mut x = upload(&b, &acts(7));
    let early = b.begin_read(&x, 0, 4).unwrap();
    let (from, to) = (Mat::new(&rows, 16), MatMut::new(&mut x, 16));
    b.gather(Gather { x: from, index: &index, y: to, rows: 1, dim: 16 }).unwrap();
    let late = b.begin_read(&x, 0, 4).unwrap();
    assert_eq!(early.wait().unwrap(), acts(7)[..4], "begun before");
    let error = late.wait().expect_err("there is no row 9").to_string();
    assert!(error.contains("index 9"), "{error}");
    assert_eq!(download(&b, &index), [9], "told once");
}
