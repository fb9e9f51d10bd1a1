//! The seam: where buffers live and how bytes get there.
//!
//! A backend owns memory; the operation traits (one small trait per family) are implemented on it.
//! Routing tables (segments, sequences, indices) are plain-data elements, so they travel as ordinary
//! buffers: written once per pack, read by every layer.

use crate::error::{Result, check_len};
use std::fmt::Debug;

/// A plain-data element that a buffer can hold.
pub trait Element: bytemuck::Pod + Send + Sync + Debug {}
impl<T: bytemuck::Pod + Send + Sync + Debug> Element for T {}

/// A buffer of one backend.
pub trait Buffer: Send + Sync + Debug {
    /// Number of elements.
    fn len(&self) -> usize;
    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Memory of one device.
pub trait Backend: Send + Sync + Debug + 'static {
    /// Element of activations: `f32` on the CPU, `bf16` on CUDA.
    type Act: Element + Into<f32>;
    /// A buffer of `T`.
    type Buf<T: Element>: Buffer;

    /// A zeroed buffer of `len` elements. Called while planning, never in a steady step.
    ///
    /// # Errors
    /// [`crate::Error::Backend`] when there is not enough memory.
    fn alloc<T: Element>(&self, len: usize) -> Result<Self::Buf<T>>;

    /// `dst[offset..offset+src.len()] = src`.
    ///
    /// # Errors
    /// [`crate::Error::Length`] when the range leaves the buffer.
    fn write<T: Element>(&self, dst: &mut Self::Buf<T>, offset: usize, src: &[T]) -> Result<()>;

    /// `dst = src[offset..offset+dst.len()]`; waits for the work that produces it.
    ///
    /// # Errors
    /// [`crate::Error::Length`] when the range leaves the buffer.
    fn read<T: Element>(&self, src: &Self::Buf<T>, offset: usize, dst: &mut [T]) -> Result<()>;

    /// `dst[offset..offset+len] = 0`.
    ///
    /// # Errors
    /// [`crate::Error::Length`] when the range leaves the buffer.
    fn zero<T: Element>(&self, dst: &mut Self::Buf<T>, offset: usize, len: usize) -> Result<()>;

    /// Begins to read `src[offset..offset+len]` as the work queued so far leaves it; whatever is queued later may
    /// overwrite it. Without a device of its own a backend reads at once.
    ///
    /// # Errors
    /// [`crate::Error::Length`] when the range leaves the buffer.
    fn begin_read<T: Element>(
        &self,
        src: &Self::Buf<T>,
        offset: usize,
        len: usize,
    ) -> Result<Pending<T>> {
        check_len("begin_read", "src", offset.saturating_add(len), src.len())?;
        let mut all = vec![T::zeroed(); len];
        self.read(src, offset, &mut all)?;
        Ok(Pending::ready(all))
    }

    /// As [`Backend::begin_read`], of a range that is given up: its content counts as undefined, also to kernels,
    /// until it is written or zeroed, which is put after the copy without waiting here. So the copy runs beside
    /// the work that is queued next.
    ///
    /// # Errors
    /// [`crate::Error::Length`] when the range leaves the buffer.
    fn evict<T: Element>(
        &self,
        src: &mut Self::Buf<T>,
        offset: usize,
        len: usize,
    ) -> Result<Pending<T>> {
        self.begin_read(src, offset, len)
    }

    /// Hands held-back work to the device, for callers that queue on its stream themselves; does not wait.
    ///
    /// # Errors
    /// [`crate::Error::Backend`] when a launch is refused.
    fn flush(&self) -> Result<()> {
        Ok(())
    }
}

/// Bytes on their way to the host.
pub trait Coming: Send + Debug {
    /// Waits for the bytes, and for nothing queued after them; `dst` has their number.
    ///
    /// # Errors
    /// [`crate::Error::Backend`] with the device's words, and what work queued before has noted.
    fn finish(self: Box<Self>, dst: &mut [u8]) -> Result<()>;
}

impl Coming for Vec<u8> {
    fn finish(self: Box<Self>, dst: &mut [u8]) -> Result<()> {
        crate::error::check_eq("finish", "bytes", self.len(), dst.len())?;
        dst.copy_from_slice(&self);
        Ok(())
    }
}

/// A read that was begun; dropping it gives the content up.
#[derive(Debug)]
pub struct Pending<T>(State<T>);

#[derive(Debug)]
enum State<T> {
    Ready(Vec<T>),
    Coming(usize, Box<dyn Coming>),
}

impl<T: Element> Pending<T> {
    /// A read that is done.
    pub fn ready(all: Vec<T>) -> Self {
        Self(State::Ready(all))
    }

    /// `len` elements that come.
    pub fn coming(len: usize, bytes: Box<dyn Coming>) -> Self {
        Self(State::Coming(len, bytes))
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match &self.0 {
            State::Ready(all) => all.len(),
            State::Coming(len, _) => *len,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether [`Pending::wait`] is known not to wait.
    pub fn is_here(&self) -> bool {
        matches!(self.0, State::Ready(_))
    }

    /// The elements; waits for them alone.
    ///
    /// # Errors
    /// As [`Coming::finish`].
    pub fn wait(self) -> Result<Vec<T>> {
        match self.0 {
            State::Ready(all) => Ok(all),
            State::Coming(len, bytes) => {
                let mut all = vec![T::zeroed(); len];
                bytes.finish(bytemuck::cast_slice_mut(&mut all))?;
                Ok(all)
            }
        }
    }
}

/// A read-only window of rows in an activation buffer: row `i`, column `c` is element
/// `start + i * stride + c`; the operation says how wide and how many rows.
#[derive(Debug)]
pub struct Mat<'a, Buf> {
    /// The buffer.
    pub buf: &'a Buf,
    /// Element of row 0, column 0.
    pub start: usize,
    /// Elements from one row to the next.
    pub stride: usize,
}

impl<Buf> Clone for Mat<'_, Buf> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<Buf> Copy for Mat<'_, Buf> {}

/// A writable window of rows, laid out as [`Mat`].
#[derive(Debug)]
pub struct MatMut<'a, Buf> {
    /// The buffer.
    pub buf: &'a mut Buf,
    /// Element of row 0, column 0.
    pub start: usize,
    /// Elements from one row to the next.
    pub stride: usize,
}

impl<'a, Buf: Buffer> Mat<'a, Buf> {
    /// The whole buffer as rows of `stride` elements.
    pub fn new(buf: &'a Buf, stride: usize) -> Self {
        Self { buf, start: 0, stride }
    }

    /// A window that begins at column `col` of rows of `stride` elements.
    pub fn at(buf: &'a Buf, col: usize, stride: usize) -> Self {
        Self { buf, start: col, stride }
    }

    /// Checks that `rows` rows of `width` columns fit.
    ///
    /// # Errors
    /// [`crate::Error::Length`] when they do not.
    pub fn check(
        &self,
        op: &'static str,
        what: &'static str,
        rows: usize,
        width: usize,
    ) -> Result<()> {
        check_window(op, what, (rows, width), (self.start, self.stride), self.buf.len())
    }
}

impl<'a, Buf: Buffer> MatMut<'a, Buf> {
    /// The whole buffer as rows of `stride` elements.
    pub fn new(buf: &'a mut Buf, stride: usize) -> Self {
        Self { buf, start: 0, stride }
    }

    /// A window that begins at column `col` of rows of `stride` elements.
    pub fn at(buf: &'a mut Buf, col: usize, stride: usize) -> Self {
        Self { buf, start: col, stride }
    }

    /// Checks that `rows` rows of `width` columns fit.
    ///
    /// # Errors
    /// [`crate::Error::Length`] when they do not.
    pub fn check(
        &self,
        op: &'static str,
        what: &'static str,
        rows: usize,
        width: usize,
    ) -> Result<()> {
        check_window(op, what, (rows, width), (self.start, self.stride), self.buf.len())
    }
}

fn check_window(
    op: &'static str,
    what: &'static str,
    (rows, width): (usize, usize),
    (start, stride): (usize, usize),
    len: usize,
) -> Result<()> {
    if rows == 0 {
        return Ok(());
    }
    crate::error::check_eq(op, what, width, width.min(stride))?;
    check_len(op, what, start + (rows - 1) * stride + width, len)
}
