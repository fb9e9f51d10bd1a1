//! Predictions: many sequences, each with its own adapter, prefilled and decoded in one batch.
//!
//! Keys and values lie in a cache by rows; a sequence owns its rows from prefill to its end, a prefix
//! that several sequences share is there once. Row-invariant products make a sequence's logits
//! independent of the sequences beside it.

use super::activations::{Activations, StepSize};
use super::batch::{Batch, DeviceBatch};
use super::network::Network;
use super::pass::{Adapters, Pass};
use super::{Error, Result};
use kernels::backend::Buffer;
use kernels::{Mat, MatMut, Ops, embedding, linear};

/// Rows of logits computed at a time.
const LOGIT_ROWS: usize = 32;

/// Receives the logits of one output row: its number in the batch, and `[vocab]` values.
pub type OnLogits<'a> = dyn FnMut(usize, &[f32]) + 'a;

/// Buffers for prediction.
#[derive(Debug)]
pub struct Predictor<B: Ops> {
    batch: DeviceBatch<B>,
    acts: Activations<B>,
    /// Per block `[cache_rows, k | v]`.
    cache: Vec<B::Buf<B::Act>>,
    cache_rows: usize,
    /// Cache row of each row of the batch.
    index: B::Buf<u32>,
    logits: B::Buf<B::Act>,
    /// Logits of some rows as they come, and of one as `f32`.
    host: (Vec<B::Act>, Vec<f32>),
}

impl<B: Ops> Predictor<B> {
    /// Buffers for packs of up to `rows` rows and a cache of `cache_rows` rows (zero to score only).
    ///
    /// # Errors
    /// When the backend has no memory.
    pub fn new(net: &Network<B>, rows: usize, cache_rows: usize) -> Result<Self> {
        let (backend, d) = (net.backend(), net.dims);
        let size = StepSize { rows, stored_blocks: 0, backward: false };
        let layers = if cache_rows == 0 { 0 } else { net.blocks.len() };
        let mut batch = DeviceBatch::alloc(backend, rows)?;
        batch.alloc_flash(backend, rows)?;
        Ok(Self {
            batch,
            acts: Activations::alloc(backend, net.spec(), net.plan(size))?,
            cache: (0..layers)
                .map(|_| backend.alloc(cache_rows * 2 * d.kv))
                .collect::<kernels::Result<_>>()?,
            cache_rows,
            index: backend.alloc(rows)?,
            logits: backend.alloc(LOGIT_ROWS * d.vocab)?,
            host: (vec![bytemuck::Zeroable::zeroed(); LOGIT_ROWS * d.vocab], vec![0.0; d.vocab]),
        })
    }

    /// Bytes of [`Predictor::new`].
    pub fn bytes(net: &Network<B>, rows: usize, cache_rows: usize) -> usize {
        let (d, act) = (net.dims, size_of::<B::Act>());
        let size = StepSize { rows, stored_blocks: 0, backward: false };
        DeviceBatch::<B>::bytes(rows, 1)
            + DeviceBatch::flash_bytes(net.backend(), rows)
            + Activations::<B>::bytes(net.backend(), net.spec(), net.plan(size))
            + net.blocks.len() * cache_rows * 2 * d.kv * act
            + rows * size_of::<u32>()
            + LOGIT_ROWS * d.vocab * act
    }

    /// Rows of the cache.
    pub fn cache_rows(&self) -> usize {
        self.cache_rows
    }

    /// Rows a pack may have.
    pub fn rows(&self) -> usize {
        self.acts.plan.size.rows
    }

    /// Runs whole prompts; keys and values of row `i` go to cache row `to_cache[i]` when there is a
    /// cache; `on_logits` gets the logits of each output row.
    ///
    /// # Errors
    /// When the batch does not fit or is inconsistent.
    pub fn prefill(
        &mut self,
        net: &Network<B>,
        (batch, to_cache): (&Batch, &[u32]),
        adapters: Adapters<'_, B>,
        on_logits: &mut OnLogits<'_>,
    ) -> Result<()> {
        adapters.check(batch)?;
        self.upload(net, batch, to_cache)?;
        self.batch.cut(net.backend(), batch)?;
        let pass = Pass { net, batch: &self.batch, adapters, whole: None };
        let (d, acts, lane) = (net.dims, &mut self.acts, &self.batch.full);
        pass.embed(&mut acts.inputs[0])?;
        let (last, before) =
            net.blocks.split_last().ok_or(Error::Batch { what: "no block".into() })?;
        for (layer, block) in before.iter().enumerate() {
            let (x, y) = two_streams(&mut acts.inputs, layer)?;
            let set = &mut acts.blocks[0];
            pass.qkv(block, x, &mut set.qkv, &mut acts.scratch)?;
            if let Some(cache) = self.cache.get_mut(layer) {
                pass.store(&set.qkv, &self.index, cache)?;
            }
            pass.attend(
                lane,
                pass.packed(&set.qkv),
                lane.rows,
                (&mut set.attention, &mut set.lse),
            )?;
            pass.after_attention(block, (lane, Mat::new(x, d.hidden)), set, y, &mut acts.scratch)?;
        }
        pass.last_block(last, &acts.inputs[before.len() % 2], &mut acts.last, &mut acts.scratch)?;
        if let Some(cache) = self.cache.get_mut(before.len()) {
            pass.store(&acts.last.qkv, &self.index, cache)?;
        }
        let rows = self.batch.outputs.rows;
        pass.norm(
            rows,
            &net.final_norm,
            Mat::new(&acts.last.output, d.hidden),
            MatMut::new(&mut acts.scratch.gathered, d.hidden),
        )?;
        self.emit_logits(net, rows, on_logits)
    }

    /// Runs one more token of each sequence: row `i` is written to cache row `to_cache[i]` first, then
    /// attends to the cache rows its sequence names; `on_logits` gets the logits of every row.
    ///
    /// # Errors
    /// When the batch does not fit or is inconsistent.
    pub fn decode(
        &mut self,
        net: &Network<B>,
        (batch, to_cache): (&Batch, &[u32]),
        adapters: Adapters<'_, B>,
        on_logits: &mut OnLogits<'_>,
    ) -> Result<()> {
        adapters.check(batch)?;
        self.upload(net, batch, to_cache)?;
        let pass = Pass { net, batch: &self.batch, adapters, whole: None };
        let (d, acts, lane) = (net.dims, &mut self.acts, &self.batch.full);
        let kv = 2 * d.kv;
        pass.embed(&mut acts.inputs[0])?;
        for (layer, block) in net.blocks.iter().enumerate() {
            let (x, y) = two_streams(&mut acts.inputs, layer)?;
            let cache = &mut self.cache[layer];
            // The last block's buffers do for every block when a single block has no set of its own.
            let set = &mut acts.last.acts;
            pass.qkv(block, x, &mut acts.last.qkv, &mut acts.scratch)?;
            pass.store(&acts.last.qkv, &self.index, cache)?;
            let (q, _, _) = pass.packed(&acts.last.qkv);
            let keys = (q, Mat::at(&*cache, 0, kv), Mat::at(&*cache, d.kv, kv));
            pass.attend(lane, keys, self.cache_rows, (&mut set.attention, &mut set.lse))?;
            pass.after_attention(block, (lane, Mat::new(x, d.hidden)), set, y, &mut acts.scratch)?;
        }
        let (rows, stream) = (lane.rows, &acts.inputs[net.blocks.len() % 2]);
        pass.norm(
            rows,
            &net.final_norm,
            Mat::new(stream, d.hidden),
            MatMut::new(&mut acts.scratch.gathered, d.hidden),
        )?;
        self.emit_logits(net, rows, on_logits)
    }

    fn upload(&mut self, net: &Network<B>, batch: &Batch, to_cache: &[u32]) -> Result<()> {
        let rows = batch.full.rows();
        let wrong = |what: String| Err(Error::Batch { what });
        if rows > self.rows() {
            return wrong(format!("a pack of {rows} rows, room for {}", self.rows()));
        }
        if !self.cache.is_empty()
            && (to_cache.len() != rows || to_cache.iter().any(|&r| r as usize >= self.cache_rows))
        {
            return wrong(format!(
                "cache rows for {} of {rows} rows, the cache has {}",
                to_cache.len(),
                self.cache_rows
            ));
        }
        self.batch.upload(net.backend(), batch)?;
        net.backend().write(&mut self.index, 0, to_cache)?;
        Ok(())
    }

    /// Head product of the rows in `scratch.gathered`, a few rows at a time.
    fn emit_logits(
        &mut self,
        net: &Network<B>,
        rows: usize,
        on_logits: &mut OnLogits<'_>,
    ) -> Result<()> {
        let (backend, d) = (net.backend(), net.dims);
        for first in (0..rows).step_by(LOGIT_ROWS) {
            let taken = LOGIT_ROWS.min(rows - first);
            backend.linear_forward(linear::Forward {
                x: Mat {
                    buf: &self.acts.scratch.gathered,
                    start: first * d.hidden,
                    stride: d.hidden,
                },
                weight: &net.head,
                bias: None,
                residual: None,
                y: MatMut::new(&mut self.logits, d.vocab),
                rows: taken,
            })?;
            let (raw, values) = &mut self.host;
            let raw = &mut raw[..taken * d.vocab];
            // Once for all of them: a device is waited for.
            backend.read(&self.logits, 0, raw)?;
            for (row, raw) in raw.chunks_exact(d.vocab).enumerate() {
                values.iter_mut().zip(raw).for_each(|(v, &r)| *v = r.into());
                on_logits(first + row, values);
            }
        }
        Ok(())
    }
}

/// The stream a block reads and the one it writes, taking turns.
fn two_streams<T>(inputs: &mut [T], layer: usize) -> Result<(&T, &mut T)> {
    match (inputs, layer % 2) {
        ([a, b], 0) => Ok((a, b)),
        ([a, b], _) => Ok((b, a)),
        _ => Err(Error::Batch { what: "a forward-only step has two streams".into() }),
    }
}

impl<B: Ops> Pass<'_, B> {
    /// Keys and values of the rows of `qkv` into cache rows `index`.
    fn store(
        &self,
        qkv: &B::Buf<B::Act>,
        index: &B::Buf<u32>,
        cache: &mut B::Buf<B::Act>,
    ) -> Result<()> {
        debug_assert!(!cache.is_empty(), "a cache has rows");
        let (d, rows) = (self.net.dims, self.batch.full.rows);
        let (x, y, dim) = (Mat::at(qkv, d.q, d.qkv), MatMut::new(cache, 2 * d.kv), 2 * d.kv);
        Ok(self.net.backend.scatter(embedding::Scatter {
            x,
            index,
            y,
            accumulate: false,
            rows,
            dim,
        })?)
    }
}
