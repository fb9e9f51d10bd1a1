//! Operations of a packed multi-LoRA training step on typed buffers.
//!
//! Owns the backend seam ([`backend`]) and one module per operation family: `mod.rs` is the contract
//! (arguments in a struct, shapes checked once, forward and backward side by side), `cpu.rs` the CPU
//! implementation. Knows no user, file, MPI rank or model name. Start reading at [`backend::Backend`],
//! then [`linear`] and [`lora`].
//!
//! Shape letters: `t` packed token rows, `d` input width, `n` output width, `r` LoRA rank, `s` segments,
//! `v` vocabulary, `h` query heads, `g` key/value heads, `e` head width.

pub mod activation;
pub mod adapted;
pub mod attention;
pub mod backend;
pub mod classify;
mod columns;
pub mod cpu;
pub mod cuda;
pub mod embedding;
pub mod error;
pub mod gpu;
pub mod intent;
mod lanes;
pub mod linear;
pub mod lora;
pub mod loss;
mod math;
pub mod nccl;
pub mod norm;
pub mod optim;
pub mod pool;
mod product;
pub mod random;
pub mod rope;

pub use backend::{Backend, Mat, MatMut};
pub use cpu::Cpu;
pub use error::{Error, Result};

/// Every operation family of a training step; implemented by each complete backend.
pub trait Ops:
    Backend
    + linear::Trainable
    + linear::wide::Wide
    + lora::Lora
    + adapted::Adapted
    + attention::Attention
    + norm::Norm
    + rope::Rope
    + activation::Activation
    + embedding::Embedding
    + pool::Pool
    + loss::Loss
    + classify::Classify
    + intent::Intent
    + optim::Optim
{
}

impl<B> Ops for B where
    B: Backend
        + linear::Trainable
        + linear::wide::Wide
        + lora::Lora
        + adapted::Adapted
        + attention::Attention
        + norm::Norm
        + rope::Rope
        + activation::Activation
        + embedding::Embedding
        + pool::Pool
        + loss::Loss
        + classify::Classify
        + intent::Intent
        + optim::Optim
{
}
