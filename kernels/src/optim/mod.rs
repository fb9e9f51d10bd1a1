//! Grouped AdamW: one call over all due slots, each with its own step, learning rate, decay and clip norm.
//!
//! For each slot, as `torch.nn.utils.clip_grad_norm_` and `torch.optim.AdamW` do it in `f32`:
//! `norm = ||g||`; `g *= min(1, clip / (norm + 1e-6))` when a clip norm is set; `p *= 1 - lr · wd`;
//! `m = b1 m + (1-b1) g`; `v = b2 v + (1-b2) g²`;
//! `p -= lr/(1-b1^t) · m / (sqrt(v)/sqrt(1-b2^t) + eps)`, `t` counted from 1.
//! The norm is summed in `f64` in a fixed order within the slot. A slot whose norm is not finite is left
//! untouched: the caller sees the norm and puts the user aside.

use crate::backend::{Backend, Buffer};
use crate::error::{Error, Result, check_len};

pub mod cpu;
mod gpu;

/// One due slot.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Update {
    /// First element in the slabs of parameters, gradients and both moments.
    pub offset: u64,
    /// Parameters.
    pub len: u32,
    /// `t`, counted from 1.
    pub step: u32,
    /// Learning rate of this step.
    pub learning_rate: f32,
    /// `b1`.
    pub beta1: f32,
    /// `b2`.
    pub beta2: f32,
    /// `eps`.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// Largest norm of the gradient; zero or less for none.
    pub clip_norm: f32,
}

/// The slabs; all four have the same layout.
#[derive(Debug)]
pub struct AdamW<'a, B: Backend + ?Sized> {
    /// Due slots, distinct, not overlapping, in order of `offset`.
    pub updates: &'a B::Buf<Update>,
    /// Number of due slots.
    pub num_updates: usize,
    /// Parameters, updated in place.
    pub params: &'a mut B::Buf<f32>,
    /// Gradients, read and then written `= 0` for the due slots.
    pub grads: &'a mut B::Buf<f32>,
    /// First moments, updated in place.
    pub m: &'a mut B::Buf<f32>,
    /// Second moments, updated in place.
    pub v: &'a mut B::Buf<f32>,
    /// Norm of each due slot's gradient before clipping, written `=`.
    pub norms: &'a mut B::Buf<f32>,
}

/// The optimiser.
pub trait Optim: Backend {
    /// See the module's head.
    ///
    /// # Errors
    /// [`Error`] when a slot leaves the slabs.
    fn adamw(&self, args: AdamW<'_, Self>) -> Result<()>;
}

impl Update {
    /// Checks, once per step on the host, order and bounds.
    ///
    /// # Errors
    /// [`Error::Routing`] naming the update.
    pub fn check_all(updates: &[Self], slab: usize) -> Result<()> {
        let mut end = 0u64;
        for (index, u) in updates.iter().enumerate() {
            if u.offset < end || u.offset + u64::from(u.len) > slab as u64 || u.step == 0 {
                let what = format!("update {index}: out of order, outside the slab, or step 0");
                return Err(Error::Routing { op: "adamw", what });
            }
            end = u.offset + u64::from(u.len);
        }
        Ok(())
    }
}

impl<B: Backend + ?Sized> AdamW<'_, B> {
    /// Checks every length once.
    ///
    /// # Errors
    /// [`Error::Length`].
    pub fn check(&self) -> Result<()> {
        let op = "adamw";
        check_len(op, "updates", self.num_updates, self.updates.len())?;
        check_len(op, "norms", self.num_updates, self.norms.len())?;
        for (what, buf) in [("grads", &*self.grads), ("m", &*self.m), ("v", &*self.v)] {
            check_len(op, what, self.params.len(), buf.len())?;
        }
        Ok(())
    }
}
