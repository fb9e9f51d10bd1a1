//! The canonical tensors of a base, read from whatever file holds them.
//!
//! Owns the seam [`WeightSource`] and the choice of a reader by path. A source is checked whole when it is opened (every
//! tensor there, every shape right, nothing unexpected), so reading can fail only on element values and the disk.

use super::error::{Error, Result};
use super::gguf::Gguf;
use super::huggingface::HuggingFace;
use super::spec::{BaseSpec, TensorSpec};
use std::path::{Path, PathBuf};

/// A base in a foreign format, checked and ready to be read tensor by tensor.
pub trait WeightSource: std::fmt::Debug + Send + Sync {
    /// What the base is.
    fn spec(&self) -> &BaseSpec;

    /// Folder or file it was opened from.
    fn path(&self) -> &Path;

    /// The files whose bytes decide the weights, in a fixed order.
    fn files(&self) -> Vec<PathBuf>;

    /// One canonical tensor in `f32`, row-major in its canonical layout; `tensor` is one of `spec().tensors()`.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] for a tensor that is not the base's, [`Error::Io`], [`Error::Format`].
    fn read(&self, tensor: &TensorSpec) -> Result<Vec<f32>>;
}

/// Opens a base: a Hugging Face folder or a GGUF file.
///
/// # Errors
/// [`Error::Pickle`] for pickle checkpoints; otherwise what the reader finds wrong.
pub fn open(path: &Path) -> Result<Box<dyn WeightSource>> {
    if path.is_dir() {
        return Ok(Box::new(HuggingFace::open(path)?));
    }
    refuse_pickle(path)?;
    Ok(Box::new(Gguf::open(path)?))
}

/// Refuses the file names of pickle checkpoints.
pub(crate) fn refuse_pickle(path: &Path) -> Result<()> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    if ["bin", "pt", "pth", "ckpt", "pkl"].contains(&extension.to_ascii_lowercase().as_str()) {
        return Err(Error::Pickle { path: path.to_path_buf() });
    }
    Ok(())
}

/// Reads a tensor and refuses NaN and infinities.
///
/// # Errors
/// [`Error::NonFinite`] naming the first bad element; otherwise as [`WeightSource::read`].
pub fn read_finite(source: &dyn WeightSource, tensor: &TensorSpec) -> Result<Vec<f32>> {
    let values = source.read(tensor)?;
    match values.iter().enumerate().find(|(_, v)| !v.is_finite()) {
        None => Ok(values),
        Some((index, &value)) => Err(Error::NonFinite { name: tensor.name.clone(), index, value }),
    }
}

/// Copies columns `from..from + width` of rows of `stride` elements: GPT-2's q, k and v out of `c_attn`.
pub(crate) fn columns(rows: &[f32], stride: usize, from: usize, width: usize) -> Vec<f32> {
    rows.chunks_exact(stride).flat_map(|row| &row[from..from + width]).copied().collect()
}
