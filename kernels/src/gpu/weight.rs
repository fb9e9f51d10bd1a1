//! A frozen weight on a device.

use super::{Device, GpuBuf};
use crate::backend::{Backend, Buffer};
use crate::error::{Result, check_eq};
use crate::gpu::Gpu;
use crate::linear::Shape;
use half::bf16;

/// `W` as `bf16 [n, d]`, row-major and without gaps: a row for each output.
#[derive(Debug)]
pub struct Weight<D: Device> {
    shape: Shape,
    values: GpuBuf<D, bf16>,
}

impl<D: Device> Weight<D> {
    /// A weight of zeros.
    ///
    /// # Errors
    /// [`crate::Error::Backend`] when there is not enough memory.
    pub fn zeros(gpu: &Gpu<D>, shape: Shape) -> Result<Self> {
        let values = gpu.alloc(shape.in_dim.saturating_mul(shape.out_dim))?;
        Ok(Self { shape, values })
    }

    /// A weight of the numbers `src [n, d]`, each rounded to the nearest `bf16`.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] when `src` has another length, [`crate::Error::Backend`] when there is not enough memory.
    pub fn from_host(gpu: &Gpu<D>, shape: Shape, src: &[f32]) -> Result<Self> {
        let mut weight = Self::zeros(gpu, shape)?;
        check_eq("weight", "elements", weight.values.len(), src.len())?;
        // In pieces: a head of a large vocabulary needs no second copy of itself.
        let mut piece = Vec::with_capacity(src.len().min(PIECE));
        for (i, from) in src.chunks(PIECE).enumerate() {
            piece.clear();
            piece.extend(from.iter().map(|&v| bf16::from_f32(v)));
            gpu.write(&mut weight.values, i * PIECE, &piece)?;
        }
        Ok(weight)
    }

    /// Widths.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The elements.
    pub fn values(&self) -> &GpuBuf<D, bf16> {
        &self.values
    }

    /// The elements, to be written.
    pub fn values_mut(&mut self) -> &mut GpuBuf<D, bf16> {
        &mut self.values
    }
}

/// Elements that are rounded and written at a time.
const PIECE: usize = 1 << 20;
