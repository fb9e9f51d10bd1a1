//! Devices of the tests, windows of rows with poison around them, and what `bf16` allows.

use crate::device::{TestDevice, skipped_on_gpu};
use crate::naive::{Naive, upload};
use crate::tolerance::EPS;
use emulator::Mode;
use half::bf16;
use kernels::backend::{Backend, Buffer, Element, Mat, MatMut};
use kernels::gpu::Gpu;
use std::sync::OnceLock;

/// The backend on the emulator, or on a GPU where the tests are told so.
pub(crate) type Emulated = Gpu<TestDevice>;

/// Written around every window that an operation writes.
const AROUND: f32 = 7.0;

/// For results.
pub(crate) fn fast() -> &'static Emulated {
    static DEVICE: OnceLock<Emulated> = OnceLock::new();
    DEVICE.get_or_init(|| open(Mode::Fast, &[]))
}

/// For accesses.
pub(crate) fn checked() -> &'static Emulated {
    static DEVICE: OnceLock<Emulated> = OnceLock::new();
    DEVICE.get_or_init(|| open(Mode::Checked, &[]))
}

/// For a test whose kernels refuse something: on a shared device the next read of any other test would be told.
pub(crate) fn own() -> Emulated {
    open(Mode::Fast, &[])
}

/// A device that makes graphs of what repeats.
pub(crate) fn with_graphs(kept: usize) -> Emulated {
    Gpu::with_graphs(TestDevice::open(Mode::Fast, &[]), kept).unwrap()
}

fn open(mode: Mode, faults: &[&str]) -> Emulated {
    Gpu::new(TestDevice::open(mode, faults)).unwrap()
}

/// What a body needs of a backend beyond its operations.
pub(crate) trait Subject: Backend {
    /// The nearest activation.
    fn act(v: f32) -> Self::Act;

    /// Makes elements as if never written, where the backend can tell.
    fn poison<T: Element>(&self, buf: &mut Self::Buf<T>, offset: usize, len: usize);
}

impl Subject for Naive {
    fn act(v: f32) -> f32 {
        v
    }

    fn poison<T: Element>(&self, buf: &mut Self::Buf<T>, offset: usize, len: usize) {
        let mut values = vec![T::zeroed(); len];
        bytemuck::cast_slice_mut::<T, u8>(&mut values).fill(0xff);
        self.write(buf, offset, &values).unwrap();
    }
}

impl Subject for Emulated {
    fn act(v: f32) -> bf16 {
        bf16::from_f32(v)
    }

    fn poison<T: Element>(&self, buf: &mut Self::Buf<T>, offset: usize, len: usize) {
        if let Some(memory) = buf.memory()
            && len > 0
        {
            let size = size_of::<T>();
            self.device().poison(memory, offset * size, len * size).unwrap();
        }
    }
}

/// The numbers as activations hold them.
pub(crate) fn rounded(x: &[f32]) -> Vec<f32> {
    x.iter().map(|&v| bf16::from_f32(v).to_f32()).collect()
}

/// A window of rows in a buffer that is larger on every side.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    pub(crate) rows: usize,
    pub(crate) width: usize,
    pub(crate) start: usize,
    pub(crate) stride: usize,
}

/// How a window lies: the element it starts at, and the columns between its rows.
pub(crate) const PLACES: [(usize, usize); 3] = [(0, 0), (8, 16), (3, 5)];

impl Window {
    pub(crate) fn new(rows: usize, width: usize, (start, gap): (usize, usize)) -> Self {
        Self { rows, width, start, stride: width + gap }
    }

    /// Elements of the buffer: one more after the last row, unless nothing is to lie around.
    fn len(&self) -> usize {
        self.start + self.rows * self.stride + usize::from(self.start > 0)
    }

    fn elements(&self) -> impl Iterator<Item = usize> {
        let Self { rows, width, start, stride } = *self;
        (0..rows).flat_map(move |i| (start + i * stride)..(start + i * stride + width))
    }

    fn fill<B: Subject>(&self, b: &B, values: &[f32], around: f32) -> B::Buf<B::Act> {
        assert_eq!(values.len(), self.rows * self.width, "values of a window");
        let mut all = vec![B::act(around); self.len()];
        self.elements().zip(values).for_each(|(i, &v)| all[i] = B::act(v));
        upload(b, &all)
    }

    /// An input: nothing around the window has ever been written.
    pub(crate) fn input<B: Subject>(&self, b: &B, values: &[f32]) -> B::Buf<B::Act> {
        let mut buf = self.fill(b, values, f32::NAN);
        let len = buf.len();
        b.poison(&mut buf, 0, self.start.min(len));
        for row in 0..self.rows {
            let end = self.start + row * self.stride + self.width;
            let next = if row + 1 == self.rows { len } else { end - self.width + self.stride };
            b.poison(&mut buf, end, next - end);
        }
        buf
    }

    /// An output: poison in the window, marks around it.
    pub(crate) fn output<B: Subject>(&self, b: &B) -> B::Buf<B::Act> {
        let mut buf = self.fill(b, &vec![AROUND; self.rows * self.width], AROUND);
        for row in 0..self.rows {
            b.poison(&mut buf, self.start + row * self.stride, self.width);
        }
        buf
    }

    /// An output that is added to: `values` in the window, marks around it.
    pub(crate) fn updated<B: Subject>(&self, b: &B, values: &[f32]) -> B::Buf<B::Act> {
        self.fill(b, values, AROUND)
    }

    /// The window's elements; the marks around it must still be there.
    pub(crate) fn result<B: Subject>(&self, b: &B, buf: &B::Buf<B::Act>) -> Vec<f32> {
        let mut all = vec![B::act(0.0); buf.len()];
        b.read(buf, 0, &mut all).unwrap();
        let all: Vec<f32> = all.into_iter().map(Into::into).collect();
        let mut inside = vec![false; all.len()];
        self.elements().for_each(|i| inside[i] = true);
        for (i, v) in all.iter().enumerate() {
            assert!(inside[i] || *v == AROUND, "element {i} outside the window became {v}");
        }
        self.elements().map(|i| all[i]).collect()
    }

    pub(crate) fn mat<'a, Buf>(&self, buf: &'a Buf) -> Mat<'a, Buf> {
        Mat { buf, start: self.start, stride: self.stride }
    }

    pub(crate) fn mat_mut<'a, Buf>(&self, buf: &'a mut Buf) -> MatMut<'a, Buf> {
        MatMut { buf, start: self.start, stride: self.stride }
    }
}

/// Half a unit in the last place of 1 in `bf16`: one rounding is off by this times the value.
pub(crate) const HALF_ULP: f64 = 1.0 / 256.0;

/// Asserts that a `bf16` result is the `f64` reference, off by `k` roundings of `f32` on terms of absolute sum
/// `scale` and one rounding to `bf16`; NaN never passes.
pub(crate) fn within_bf16(what: &str, k: f64, got: &[f32], want: &[f32], scale: &[f64]) {
    // The reference itself was rounded to f32 once.
    let before: Vec<f64> = scale.iter().map(|s| (k + 1.0) * EPS * s).collect();
    within_rounding(what, got, want, &before);
}

/// Asserts that a `bf16` result is the reference, off by `before`, an absolute error of each element, and then by
/// one rounding to `bf16`; NaN never passes.
pub(crate) fn within_rounding(what: &str, got: &[f32], want: &[f32], before: &[f64]) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    assert_eq!(got.len(), before.len(), "{what}: errors");
    for (i, ((g, w), before)) in got.iter().zip(want).zip(before).enumerate() {
        let w = f64::from(*w);
        let (error, bound) =
            ((f64::from(*g) - w).abs(), HALF_ULP * (w.abs() + before) + before + 1e-37);
        assert!(error <= bound, "{what}[{i}]: {g} for {w}: off by {error:e}, allowed {bound:e}");
    }
}

/// Asserts that a body fails, by an error of a launch or a comparison, on device code with a seeded bug.
pub(crate) fn caught(mode: Mode, fault: &str, body: impl FnOnce(&Emulated)) {
    if skipped_on_gpu(fault) {
        return;
    }
    // Opened first: a build that fails is no catch.
    let device = open(mode, &[fault]);
    let body = std::panic::AssertUnwindSafe(|| body(&device));
    assert!(std::panic::catch_unwind(body).is_err(), "the seeded fault {fault} was not seen");
}
