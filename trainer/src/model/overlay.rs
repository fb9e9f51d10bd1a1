//! Merging a task adapter into the base: `W' = W + scale · B·A`.
//!
//! Owns the arithmetic of the merge and the writing of the overlay file, which holds the replaced tensors only; the base
//! itself is never written. Start reading at [`merge`].

use super::cache::{BaseHash, MappedBase, append, stored_len};
use super::cache_file::{CanonicalHasher, Header, Role, Writer};
use super::error::{Error, Result};
use super::spec::{Kind, TensorSpec};
use kernels::linear::{Layout, Linear};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;

/// One low-rank change of one weight.
#[derive(Debug, Clone, Copy)]
pub struct Delta<'a> {
    /// Canonical name of the weight, for example `layers.3.q.weight`.
    pub name: &'a str,
    /// Input width `d`.
    pub in_dim: usize,
    /// Output width `n`.
    pub out_dim: usize,
    /// LoRA rank `r`.
    pub lora_rank: usize,
    /// `A [r, d]`.
    pub a: &'a [f32],
    /// `B [n, r]`; for GPT-2's `c_attn` the rows of q, of k or of v.
    pub b: &'a [f32],
    /// `alpha / r`.
    pub scale: f32,
}

/// Writes the overlay file `path` (whole or not at all) with `W' = W + scale · B·A` for every delta, and gives the merged
/// base's hash: BLAKE3 of the base's hash and the changed tensors.
///
/// All in `f32`; an element's terms are added in rising LoRA rank, then scaled, then added to `W`, whatever the layout
/// and the number of threads. The order of the deltas does not matter.
///
/// # Errors
/// [`Error::Delta`] for a name that is unknown, given twice or not a block's weight, and for wrong lengths;
/// [`Error::NonFinite`] when a merged weight is NaN or infinite.
pub fn merge<'a, B: Linear>(
    backend: &B,
    base: &MappedBase,
    deltas: impl IntoIterator<Item = Delta<'a>>,
    path: &Path,
) -> Result<BaseHash> {
    let mut by_name = BTreeMap::new();
    for delta in deltas {
        if by_name.insert(delta.name, delta).is_some() {
            return refuse(delta.name, "given twice");
        }
    }
    let mut changed: Vec<(TensorSpec, usize)> = Vec::new();
    for tensor in base.spec().tensors() {
        if let Some(delta) = by_name.get(tensor.name.as_str()) {
            delta.check(&tensor)?;
            let len = stored_len(backend, tensor.kind);
            changed.push((tensor, len));
        }
    }
    if let Some(unknown) =
        by_name.keys().find(|name| !changed.iter().any(|(t, _)| t.name == **name))
    {
        return refuse(unknown, "the base has no such weight");
    }
    let header = Header::plan(
        Role::Overlay,
        Some(base.hash()),
        backend.prepared_form(),
        base.spec(),
        &changed,
    );
    let mut writer = Writer::create(path, header)?;
    let mut hasher = CanonicalHasher::overlay(base.hash());
    let mut scratch = Vec::new();
    for (tensor, _) in &changed {
        let mut weight = base.canonical(backend, &tensor.name)?;
        if let (Some(delta), Kind::Matrix { layout, .. }) =
            (by_name.get(tensor.name.as_str()), tensor.kind)
        {
            delta.add(layout, &mut weight);
        }
        if let Some((index, &value)) = weight.iter().enumerate().find(|(_, w)| !w.is_finite()) {
            return Err(Error::NonFinite { name: tensor.name.clone(), index, value });
        }
        hasher.add(tensor, &weight);
        append(backend, &mut writer, tensor.kind, &weight, &mut scratch)?;
    }
    let hash = hasher.finish();
    writer.finish(hash, path)?;
    Ok(hash)
}

fn refuse<T>(name: &str, what: impl Into<String>) -> Result<T> {
    Err(Error::Delta { name: name.to_owned(), what: what.into() })
}

impl Delta<'_> {
    fn check(&self, tensor: &TensorSpec) -> Result<()> {
        let Kind::Matrix { shape, .. } = tensor.kind else {
            return refuse(self.name, "not a weight of a product");
        };
        if matches!(tensor.name.as_str(), "head" | "embedding") {
            return refuse(self.name, "only weights of the blocks can be merged");
        }
        let lengths = [
            ("in_dim", shape.in_dim, self.in_dim),
            ("out_dim", shape.out_dim, self.out_dim),
            ("elements of A", self.lora_rank.saturating_mul(shape.in_dim), self.a.len()),
            ("elements of B", self.lora_rank.saturating_mul(shape.out_dim), self.b.len()),
        ];
        match lengths.iter().find(|(_, expected, got)| expected != got) {
            Some((what, expected, got)) => {
                refuse(self.name, format!("{what}: {got}, expected {expected}"))
            }
            None if self.lora_rank == 0 => refuse(self.name, "LoRA rank 0"),
            None => Ok(()),
        }
    }

    fn add(&self, layout: Layout, weight: &mut [f32]) {
        // Rows of `left` scale rows of `right`; the two layouts differ only in which factor is which.
        let (a_t, b_t) = (transpose(self.a, self.in_dim), transpose(self.b, self.lora_rank));
        let (left, right, width) = match layout {
            Layout::OutIn => (self.b, self.a, self.in_dim),
            Layout::InOut => (&a_t[..], &b_t[..], self.out_dim),
        };
        weight.par_chunks_mut(width).zip(left.par_chunks(self.lora_rank)).for_each(
            |(row, factors)| {
                let mut change = vec![0.0f32; width];
                for (factor, term) in factors.iter().zip(right.chunks_exact(width)) {
                    for (c, t) in change.iter_mut().zip(term) {
                        *c += factor * t;
                    }
                }
                for (w, c) in row.iter_mut().zip(&change) {
                    *w += self.scale * c;
                }
            },
        );
    }
}

/// `[rows, cols]` → `[cols, rows]`.
fn transpose(matrix: &[f32], cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|c| matrix.iter().skip(c).step_by(cols)).copied().collect()
}
